//! Which kernel makes a matrix product: one that reads the weights once for few tokens, or tiles for many.

use super::{Args, Element, Launch, flat};

/// Most tokens that go through the matrix-vector kernels; more go through tiles.
pub const MAX_GEMV: usize = 8;

/// Rows of a block of the matrix-vector kernels: four warps of two rows.
pub(super) const GEMV_ROWS: u32 = 8;

/// Shared memory of the tiles of 16-bit weights: three stages of 64 + 128 rows of 80 bytes.
pub(super) const TILE_SHARED: u32 = 3 * (64 + 128) * 80;

/// What matrices are multiplied with.
#[derive(Debug, Clone, Copy)]
pub struct Input {
    /// Address of the f32 inputs `[n, cols]`.
    pub x: u64,
    /// Address of [`rounded_bytes`] bytes where [`round`] put the inputs; not read where that is 0.
    pub rounded: u64,
    /// Tokens.
    pub n: usize,
    /// Inputs.
    pub cols: usize,
}

/// A matrix, and where its product goes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Address of the weights `[rows, cols]`.
    pub w: u64,
    /// Address of the f32 outputs `[n, rows]`.
    pub out: u64,
    /// Outputs.
    pub rows: usize,
}

/// Matrices that one launch of the matrix-vector kernels takes.
const MAX_TARGETS: usize = 3;

/// Whether a product goes through the tensor cores: 16-bit weights, many tokens, rows of whole 16-byte pieces.
fn tensor_cores(element: Element, n: usize, cols: usize) -> bool {
    element != Element::F32 && n > MAX_GEMV && cols.is_multiple_of(8)
}

/// Bytes that [`round`] fills for a product of this shape; 0 where the product reads the f32 inputs.
#[must_use]
pub fn rounded_bytes(element: Element, n: usize, cols: usize) -> usize {
    if tensor_cores(element, n, cols) { 2 * n * cols } else { 0 }
}

/// Rounds `len` inputs at `x` to the type of the weights, once for all products that read them.
///
/// # Panics
///
/// If `element` is f32, which needs no rounding.
#[must_use]
pub fn round(element: Element, x: u64, rounded: u64, len: usize) -> Launch {
    assert_ne!(element, Element::F32, "f32 inputs are not rounded");
    flat(element.pick("", "round_f16", "round_bf16"), len, Args::new().ptr(x).ptr(rounded).u64(len))
}

/// `out[t] = w · x[t]` for each target, whose weights are all of one type. Few tokens go through up to three matrices in
/// one launch; several launches where a width that the tiles cannot take meets many tokens.
#[must_use]
pub fn matmul(element: Element, input: Input, targets: &[Target]) -> Vec<Launch> {
    let Input { n, cols, .. } = input;
    if n > MAX_GEMV && (element == Element::F32 || tensor_cores(element, n, cols)) {
        return targets.iter().map(|target| gemm(element, input, target)).collect();
    }
    let kernels = match element {
        Element::F32 => ["gemv_f32_1", "gemv_f32_2", "gemv_f32_4", "gemv_f32_8"],
        Element::F16 => ["gemv_f16_1", "gemv_f16_2", "gemv_f16_4", "gemv_f16_8"],
        Element::Bf16 => ["gemv_bf16_1", "gemv_bf16_2", "gemv_bf16_4", "gemv_bf16_8"],
    };
    gemvs(kernels, 128, GEMV_ROWS as usize, input, targets)
}

/// Launches of `kernels`, for 1, 2, 4 and 8 tokens, whose blocks of `block` threads make `rows` rows of a matrix.
pub(super) fn gemvs(
    kernels: [&'static str; 4],
    block: u32,
    rows: usize,
    input: Input,
    targets: &[Target],
) -> Vec<Launch> {
    let launches = |targets: &[Target]| {
        let most = targets.iter().map(|target| target.rows).max().unwrap_or(0);
        let grid = [most.div_ceil(rows) as u32, targets.len() as u32, 1];
        in_steps(input.n, |first, n| {
            let kernel = kernels[n.ilog2() as usize];
            let x = input.x + (4 * first * input.cols) as u64;
            let args = Args::new().structure(&structure(targets, first)).ptr(x).u32(input.cols);
            Launch { kernel, grid, block, shared: 0, args }
        })
    };
    targets.chunks(MAX_TARGETS).flat_map(launches).collect()
}

/// The matrices as the kernels take them, with the outputs of the tokens from `first` on.
fn structure(targets: &[Target], first: usize) -> Args {
    let nothing = Target { w: 0, out: 0, rows: 0 };
    let all = targets.iter().chain(std::iter::repeat(&nothing)).take(MAX_TARGETS);
    all.fold(Args::new(), |args, target| {
        let out = target.out + (4 * first * target.rows) as u64;
        args.ptr(target.w).ptr(out).u32(target.rows)
    })
}

/// Launches for all of `n` tokens, of the first token and the number of tokens of each.
fn in_steps(n: usize, launch: impl Fn(usize, usize) -> Launch) -> Vec<Launch> {
    let mut launches = Vec::new();
    let mut done = 0;
    while done < n {
        // Kernels exist for 1, 2, 4 and 8 tokens: 7 go as 4 + 2 + 1.
        let step = 1 << (n - done).min(MAX_GEMV).ilog2();
        launches.push(launch(done, step));
        done += step;
    }
    launches
}

fn gemm(element: Element, input: Input, target: &Target) -> Launch {
    let Input { x, rounded, n, cols } = input;
    let Target { w, out, rows } = *target;
    let args = |x| Args::new().ptr(w).ptr(x).ptr(out).u32(n).u32(rows).u32(cols);
    let tiles = |of_rows: u32, tokens: u32| {
        [(rows as u32).div_ceil(of_rows), (n as u32).div_ceil(tokens), 1]
    };
    if element == Element::F32 {
        let (kernel, grid) = ("gemm_f32", tiles(64, 64));
        return Launch { kernel, grid, block: 256, shared: 0, args: args(x) };
    }
    let kernel = element.pick("", "gemm_f16", "gemm_bf16");
    let (grid, args) = (tiles(128, 64), args(rounded));
    Launch { kernel, grid, block: 128, shared: TILE_SHARED, args }
}
