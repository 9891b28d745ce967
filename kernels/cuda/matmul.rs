//! Which kernel makes a matrix product: one that reads the weights once for few tokens, or tiles for many.

use super::{Args, Element, Launch, flat};

/// Most tokens that go through the matrix-vector kernels; more go through tiles.
pub const MAX_GEMV: usize = 8;

/// Rows of a block of the matrix-vector kernels: four warps of two rows.
pub(super) const GEMV_ROWS: u32 = 8;

/// Shared memory of the tiles of 16-bit weights: three stages of 64 + 128 rows of 80 bytes.
pub(super) const TILE_SHARED: u32 = 3 * (64 + 128) * 80;

/// One matrix product.
#[derive(Debug, Clone, Copy)]
pub struct Matmul {
    /// Type of the weights.
    pub element: Element,
    /// Address of the weights `[rows, cols]`.
    pub w: u64,
    /// Address of the f32 inputs `[n, cols]`.
    pub x: u64,
    /// Address of [`rounded_bytes`] bytes where [`round`] put the inputs; not read where that is 0.
    pub rounded: u64,
    /// Address of the f32 outputs `[n, rows]`.
    pub out: u64,
    /// Tokens.
    pub n: usize,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
}

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

/// `out[t] = w · x[t]`. Several launches where a width that the tiles cannot take meets many tokens.
#[must_use]
pub fn matmul(m: &Matmul) -> Vec<Launch> {
    if m.n > MAX_GEMV && (m.element == Element::F32 || tensor_cores(m.element, m.n, m.cols)) {
        return vec![gemm(m)];
    }
    in_steps(m.n, |first, n| gemv(m, first, n))
}

/// Launches for all of `n` tokens, of the first token and the number of tokens of each.
pub(super) fn in_steps(n: usize, launch: impl Fn(usize, usize) -> Launch) -> Vec<Launch> {
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

/// The product for `n` tokens from `first` on.
fn gemv(m: &Matmul, first: usize, n: usize) -> Launch {
    let kernels = match m.element {
        Element::F32 => ["gemv_f32_1", "gemv_f32_2", "gemv_f32_4", "gemv_f32_8"],
        Element::F16 => ["gemv_f16_1", "gemv_f16_2", "gemv_f16_4", "gemv_f16_8"],
        Element::Bf16 => ["gemv_bf16_1", "gemv_bf16_2", "gemv_bf16_4", "gemv_bf16_8"],
    };
    let (x, out) = (m.x + (4 * first * m.cols) as u64, m.out + (4 * first * m.rows) as u64);
    let args = Args::new().ptr(m.w).ptr(x).ptr(out).u32(m.rows).u32(m.cols);
    let grid = [(m.rows as u32).div_ceil(GEMV_ROWS), 1, 1];
    Launch { kernel: kernels[n.ilog2() as usize], grid, block: 128, shared: 0, args }
}

fn gemm(m: &Matmul) -> Launch {
    let args = |x| Args::new().ptr(m.w).ptr(x).ptr(m.out).u32(m.n).u32(m.rows).u32(m.cols);
    let tiles =
        |rows: u32, tokens: u32| [(m.rows as u32).div_ceil(rows), (m.n as u32).div_ceil(tokens), 1];
    if m.element == Element::F32 {
        return Launch {
            kernel: "gemm_f32",
            grid: tiles(64, 64),
            block: 256,
            shared: 0,
            args: args(m.x),
        };
    }
    let kernel = m.element.pick("", "gemm_f16", "gemm_bf16");
    let args = args(m.rounded);
    Launch { kernel, grid: tiles(128, 64), block: 128, shared: TILE_SHARED, args }
}
