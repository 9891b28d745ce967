//! Products and rows of weights in 8 and 4 bits, in the panels that [`crate::cpu::pack`] makes.

use super::matmul::gemvs;
use super::{Args, Element, Input, Launch, Target, rounded_bytes, rows};
use crate::packed::{PANEL, Q4_GROUP, Q8_GROUP};

/// Formats of packed weights for which there are kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Packed {
    /// [`crate::packed::Format::Q8`].
    Q8,
    /// [`crate::packed::Format::Q4`].
    Q4,
}

/// `out[t] = w · x[t]` for each target, whose weights are all packed in `format`. Few tokens read the f32 inputs, up to
/// three matrices in one launch; many go through the tensor cores, with weights that become f16 on their way to them:
/// where [`rounded_bytes`] is not 0 for them, the inputs have been rounded to f16.
#[must_use]
pub fn matmul_packed(format: Packed, input: Input, targets: &[Target]) -> Vec<Launch> {
    if rounded_bytes(Element::F16, input.n, input.cols) > 0 {
        return targets.iter().map(|target| gemm(format, input, target)).collect();
    }
    let kernels = match format {
        Packed::Q8 => ["gemv_q8_1", "gemv_q8_2", "gemv_q8_4", "gemv_q8_8"],
        Packed::Q4 => ["gemv_q4_1", "gemv_q4_2", "gemv_q4_4", "gemv_q4_8"],
    };
    gemvs(kernels, 256, PANEL, input, targets)
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

fn gemm(format: Packed, input: Input, target: &Target) -> Launch {
    let kernel = match format {
        Packed::Q8 => "gemm_q8",
        Packed::Q4 => "gemm_q4",
    };
    let Input { rounded, n, cols, .. } = input;
    let grid = [target.rows.div_ceil(TILE_ROWS) as u32, n.div_ceil(64) as u32, 1];
    let args = Args::new().ptr(target.w).ptr(rounded).ptr(target.out);
    let args = args.u32(n).u32(target.rows).u32(cols);
    Launch { kernel, grid, block: 128, shared: tile_shared(format), args }
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
