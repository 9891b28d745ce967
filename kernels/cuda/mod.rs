//! The CUDA kernels: their PTX, and for each operation the launches that make it. Pure data: no driver is called here.
//!
//! The sources are the `.cu` files beside this one; `build.sh` compiles them to `ptx/`, which is committed. Addresses
//! are those of the device; shapes and types are written at each function. `n` counts tokens.

mod attention;
mod experts;
mod launch;
mod mamba;
mod matmul;
mod packed;

pub use attention::{
    AttendArgs, CHUNK, CacheHeads, Cached, PAGE, attend, max_shared, page_bytes, partial_len, store,
};
pub use experts::{
    Choice, ExpertsMatmul, MAX_ACTIVE, MAX_EXPERTS, Pairs, Weights, combine, experts_matmul,
    in_tiles, rounding, route, sort_pairs,
};
pub use launch::{Args, Launch};
pub use mamba::{MAX_CONV_WIDTH, MAX_STATE_DIM, MambaWeights, mamba};
pub use matmul::{Input, MAX_GEMV, Target, matmul, round, rounded_bytes};
pub use packed::{Packed, embed_packed, matmul_packed};

use crate::cpu::elementwise::{Activation, Rope, RopeStyle};

/// The committed PTX, a file for each source.
const PTX: [&str; 10] = [
    include_str!("ptx/attend_decode.ptx"),
    include_str!("ptx/attend_prefill.ptx"),
    include_str!("ptx/elementwise.ptx"),
    include_str!("ptx/experts.ptx"),
    include_str!("ptx/mamba.ptx"),
    include_str!("ptx/matmul.ptx"),
    include_str!("ptx/norm.ptx"),
    include_str!("ptx/packed.ptx"),
    include_str!("ptx/store_q8.ptx"),
    include_str!("ptx/top.ptx"),
];

/// Lowest compute capability (times ten) that the kernels run on.
pub const MIN_CAPABILITY: i32 = 80;

/// Type of the elements of a weight matrix or of the key/value cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// 32-bit floats.
    F32,
    /// IEEE 16-bit floats.
    F16,
    /// 16-bit floats with the exponent of f32.
    Bf16,
}

impl Element {
    /// Bytes of one element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Of three names, the one for this type.
    fn pick(self, f32: &'static str, f16: &'static str, bf16: &'static str) -> &'static str {
        match self {
            Self::F32 => f32,
            Self::F16 => f16,
            Self::Bf16 => bf16,
        }
    }
}

/// The names of all kernels.
pub fn kernels() -> impl Iterator<Item = &'static str> {
    PTX.iter()
        .flat_map(|text| text.split(".visible .entry ").skip(1).filter_map(|t| t.split('(').next()))
}

/// A module that holds this kernel alone: a driver compiles only what is used, when it is used.
#[must_use]
pub fn ptx(kernel: &str) -> Option<String> {
    let start = format!(".visible .entry {kernel}(");
    PTX.iter().find_map(|text| {
        let entry = &text[text.find(&start)?..];
        // The entry ends at the first brace that stands alone at the start of a line and is not followed by `;`.
        let end = entry.find("\n}\n").map_or(entry.len(), |i| i + 3);
        let head = &text[..text.find(".visible").unwrap_or(0)];
        Some(format!("{head}{}", &entry[..end]))
    })
}

/// Threads of a block of the elementwise kernels.
const THREADS: u32 = 256;

/// A launch over `len` elements.
fn flat(kernel: &'static str, len: usize, args: Args) -> Launch {
    Launch { kernel, grid: [(len as u32).div_ceil(THREADS), 1, 1], block: THREADS, shared: 0, args }
}

/// A launch over `rows` rows of `width` elements.
fn rows(kernel: &'static str, width: usize, rows: usize, args: Args) -> Launch {
    Launch {
        kernel,
        grid: [(width as u32).div_ceil(THREADS), rows as u32, 1],
        block: THREADS,
        shared: 0,
        args,
    }
}

/// `x[t] = table[ids[t]]`: `table` `[vocab, width]`, `ids` `[n]` u32, `x` `[n, width]` f32.
#[must_use]
pub fn embed(element: Element, table: u64, ids: u64, x: u64, n: usize, width: usize) -> Launch {
    let kernel = element.pick("embed_f32", "embed_f16", "embed_bf16");
    rows(kernel, width, n, Args::new().ptr(table).ptr(ids).ptr(x).u32(width))
}

/// `x[i] += y[i]` for `i < len`, f32.
#[must_use]
pub fn add(y: u64, x: u64, len: usize) -> Launch {
    flat("add", len, Args::new().ptr(y).ptr(x).u64(len))
}

/// `x[t] += bias`: `bias` `[width]`, `x` `[n, width]`, f32.
#[must_use]
pub fn add_bias(bias: u64, x: u64, width: usize, n: usize) -> Launch {
    rows("add_bias", width, n, Args::new().ptr(bias).ptr(x).u32(width))
}

/// `x[t] *= factors[t]`: `factors` `[n]`, `x` `[n, width]`, f32.
#[must_use]
pub fn scale_rows(factors: u64, x: u64, width: usize, n: usize) -> Launch {
    rows("scale_rows", width, n, Args::new().ptr(factors).ptr(x).u32(width))
}

/// `out[i] = x[indices[i]]`: `indices` `[n]` u32, `out` `[n, width]` f32.
#[must_use]
pub fn gather(x: u64, indices: u64, out: u64, width: usize, n: usize) -> Launch {
    rows("gather", width, n, Args::new().ptr(x).ptr(indices).ptr(out).u32(width))
}

/// Blocks of `width` f32: the `i`-th of `count`, at `to.0 + i · to.1` of `out`, is the one at `from.0 + i / repeat · from.1`
/// of `x`.
#[must_use]
pub fn copy_blocks(
    x: u64,
    out: u64,
    [width, count, repeat]: [usize; 3],
    from: (usize, usize),
    to: (usize, usize),
) -> Launch {
    let args = Args::new().ptr(x).ptr(out).u32(width).u32(repeat);
    rows("copy_blocks", width, count, args.u32(from.0).u32(from.1).u32(to.0).u32(to.1))
}

/// `x[indices[i]] += factors[i] · y[i]`: `indices` `[n]` u32 without repetition, `factors` `[n]`, `y` `[n, width]` f32.
#[must_use]
pub fn scatter_add(y: u64, indices: u64, factors: u64, x: u64, width: usize, n: usize) -> Launch {
    rows("scatter_add", width, n, Args::new().ptr(y).ptr(indices).ptr(factors).ptr(x).u32(width))
}

/// The number by which the kernels know an activation.
fn number(act: Activation) -> usize {
    match act {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
        Activation::ReluSquared => 4,
    }
}

/// `x[i] = act(x[i])` for `i < len`, f32.
#[must_use]
pub fn activate(act: Activation, x: u64, len: usize) -> Launch {
    flat("activate", len, Args::new().u32(number(act)).ptr(x).u64(len))
}

/// `gate[i] = act(gate[i]) · up[i]` for `i < len`, f32.
#[must_use]
pub fn gate(act: Activation, up: u64, gate: u64, len: usize) -> Launch {
    flat("gate", len, Args::new().u32(number(act)).ptr(up).ptr(gate).u64(len))
}

/// Turns the heads of `x` `[n, rope.n_heads, rope.head_dim]` by the angles `cos`, `sin` `[n, rope.rotary_dim / 2]`, f32.
#[must_use]
pub fn rotate(rope: &Rope, angles: [u64; 2], x: u64, n: usize) -> Launch {
    rotate_both(rope, angles, x, 0, 0, n)
}

/// As [`rotate`], and the `y_heads` heads of `y` `[n, y_heads, rope.head_dim]` with them.
#[must_use]
pub fn rotate_both(
    rope: &Rope,
    [cos, sin]: [u64; 2],
    x: u64,
    y: u64,
    y_heads: usize,
    n: usize,
) -> Launch {
    let half = rope.rotary_dim / 2;
    let interleaved = match rope.style {
        RopeStyle::Halves => 0,
        RopeStyle::Interleaved => 1,
    };
    let args = Args::new().ptr(cos).ptr(sin).ptr(x).ptr(y).u32(rope.n_heads).u32(y_heads);
    let args = args.u32(rope.head_dim).u32(rope.offset).u32(half).u32(interleaved);
    rows("rotate", (rope.n_heads + y_heads) * half, n, args)
}

/// A norm: `weight` and `bias` `[width]`; `bias` is 0 where there is none.
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// Address of the weights.
    pub weight: u64,
    /// Address of the bias, or 0.
    pub bias: u64,
    /// Length of a row.
    pub width: usize,
    /// Added to the variance or mean square.
    pub eps: f32,
    /// Whether the mean is subtracted (LayerNorm) or not (RMSNorm).
    pub centred: bool,
}

/// `out[t] = norm(x[t])` over `n` rows, f32. Where `add` is not 0, `x[t] += add[t]` comes first. `out` may be `x`.
#[must_use]
pub fn norm(norm: &Norm, add: u64, x: u64, out: u64, n: usize) -> Launch {
    let args = Args::new().ptr(add).ptr(x).ptr(norm.weight).ptr(norm.bias).ptr(out);
    let args = args.u32(norm.width).f32(norm.eps).u32(usize::from(norm.centred));
    Launch { kernel: "norm_rows", grid: [n as u32, 1, 1], block: THREADS, shared: 0, args }
}

/// Values that one block of the sorting kernel takes in.
const SPAN: usize = 1024;

/// Most values that [`top`] can find: the passes must shrink what they read.
pub const MAX_TOP: usize = 256;

/// Bytes that each of the two halves of scratch memory of [`top`] needs.
#[must_use]
pub fn top_bytes(n: usize, k: usize) -> usize {
    8 * n.div_ceil(SPAN) * k
}

/// The `k` largest of the `n` f32 at `values`, largest first, equal ones by index, NaN before all.
///
/// Gives the launches, and which half of `scratch` begins with the result: `k` values f32, then their `k` indices u32.
///
/// # Panics
///
/// If `k` is 0, more than `n` or more than [`MAX_TOP`].
#[must_use]
pub fn top(values: u64, n: usize, k: usize, scratch: [u64; 2]) -> (Vec<Launch>, usize) {
    assert!(k > 0 && k <= n && k <= MAX_TOP, "top: {k} of {n}");
    let mut launches = Vec::new();
    let (mut from, mut indices, mut n, mut side) = (values, 0, n, 0);
    loop {
        let blocks = n.div_ceil(SPAN);
        let (out, out_indices) = (scratch[side], scratch[side] + (4 * blocks * k) as u64);
        let args = Args::new().ptr(from).ptr(indices).u32(n).u32(k).ptr(out).ptr(out_indices);
        let grid = [blocks as u32, 1, 1];
        launches.push(Launch { kernel: "top_k", grid, block: 512, shared: 0, args });
        if blocks == 1 {
            return (launches, side);
        }
        (from, indices, n, side) = (out, out_indices, blocks * k, 1 - side);
    }
}
