//! Products and rows of weights in 8 and 4 bits, in the panels that [`crate::cpu::pack`] makes.

use super::matmul::in_steps;
use super::{Args, Element, Launch, rounded_bytes, rows};
use crate::packed::{PANEL, Q4_GROUP, Q8_GROUP};

/// Formats of packed weights for which there are kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Packed {
    /// [`crate::packed::Format::Q8`].
    Q8,
    /// [`crate::packed::Format::Q4`].
    Q4,
}

/// One product with packed weights.
#[derive(Debug, Clone, Copy)]
pub struct PackedMatmul {
    /// Format of the weights.
    pub format: Packed,
    /// Address of the weights, `[rows, cols]` in panels.
    pub w: u64,
    /// Address of the f32 inputs `[n, cols]`.
    pub x: u64,
    /// Address of the inputs as f16 `[n, cols]`, where [`rounded_bytes`] is not 0 for them; else not read.
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

/// `out[t] = w · x[t]`. Few tokens read the f32 inputs; many go through the tensor cores, with weights that become f16
/// on their way to them.
#[must_use]
pub fn matmul_packed(m: &PackedMatmul) -> Vec<Launch> {
    if rounded_bytes(Element::F16, m.n, m.cols) > 0 {
        return vec![gemm(m)];
    }
    in_steps(m.n, |first, n| gemv(m, first, n))
}

/// Rows of the tiles of many tokens.
pub(super) const TILE_ROWS: usize = 128;

/// Shared memory of the tiles of many tokens: two stages of 64 tokens and of a group of 64 columns of 8 panels.
pub(super) fn tile_shared(format: Packed) -> u32 {
    match format {
        Packed::Q8 => 2 * (64 * 160 + 8 * Q8_GROUP as u32),
        Packed::Q4 => 2 * (64 * 192 + 8 * Q4_GROUP as u32),
    }
}

fn gemm(m: &PackedMatmul) -> Launch {
    let kernel = match m.format {
        Packed::Q8 => "gemm_q8",
        Packed::Q4 => "gemm_q4",
    };
    let grid = [m.rows.div_ceil(TILE_ROWS) as u32, m.n.div_ceil(64) as u32, 1];
    let args = Args::new().ptr(m.w).ptr(m.rounded).ptr(m.out).u32(m.n).u32(m.rows).u32(m.cols);
    Launch { kernel, grid, block: 128, shared: tile_shared(m.format), args }
}

/// The product for `n` tokens from `first` on.
fn gemv(m: &PackedMatmul, first: usize, n: usize) -> Launch {
    let kernels = match m.format {
        Packed::Q8 => ["gemv_q8_1", "gemv_q8_2", "gemv_q8_4", "gemv_q8_8"],
        Packed::Q4 => ["gemv_q4_1", "gemv_q4_2", "gemv_q4_4", "gemv_q4_8"],
    };
    let (x, out) = (m.x + (4 * first * m.cols) as u64, m.out + (4 * first * m.rows) as u64);
    let args = Args::new().ptr(m.w).ptr(x).ptr(out).u32(m.rows).u32(m.cols);
    let grid = [m.rows.div_ceil(PANEL) as u32, 1, 1];
    Launch { kernel: kernels[n.ilog2() as usize], grid, block: 256, shared: 0, args }
}

/// `x[t] = table[ids[t]]`: `table` `[vocab, width]` in panels, `ids` `[n]` u32, `x` `[n, width]` f32.
#[must_use]
pub fn embed_packed(
    format: Packed,
    table: u64,
    ids: u64,
    x: u64,
    n: usize,
    width: usize,
) -> Launch {
    let kernel = match format {
        Packed::Q8 => "embed_q8",
        Packed::Q4 => "embed_q4",
    };
    rows(kernel, width, n, Args::new().ptr(table).ptr(ids).ptr(x).u32(width))
}
