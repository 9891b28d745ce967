//! Products and rows of weights in 8 and 4 bits, in the panels that [`crate::cpu::pack`] makes.

use super::matmul::in_steps;
use super::{Args, Element, Launch, MAX_GEMV, Matmul, THREADS, matmul, rows};
use crate::packed::PANEL;

/// Formats of packed weights for which there are kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Packed {
    /// [`crate::packed::Format::Q8`].
    Q8,
    /// [`crate::packed::Format::Q4`].
    Q4,
}

/// Most tokens that read the packed weights themselves, [`MAX_GEMV`] at a time. For more the weights are widened once:
/// reading them, writing f16 and reading that is as many bytes as four reads of q8.
pub const MAX_PACKED: usize = 4 * MAX_GEMV;

/// One product with packed weights.
#[derive(Debug, Clone, Copy)]
pub struct PackedMatmul {
    /// Format of the weights.
    pub format: Packed,
    /// Address of the weights, `[rows, cols]` in panels.
    pub w: u64,
    /// Address of the f32 inputs `[n, cols]`.
    pub x: u64,
    /// Address of [`widened_bytes`] bytes for the weights as f16; not used where that is 0.
    pub wide: u64,
    /// Address of the inputs as f16 `[n, cols]`; not read where [`widened_bytes`] is 0.
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

/// Bytes of the weights as f16 where a product of this shape goes through the tensor cores; else 0.
#[must_use]
pub fn widened_bytes(n: usize, rows: usize, cols: usize) -> usize {
    if n > MAX_PACKED && cols.is_multiple_of(8) { 2 * rows * cols } else { 0 }
}

/// `out[t] = w · x[t]`.
#[must_use]
pub fn matmul_packed(m: &PackedMatmul) -> Vec<Launch> {
    if widened_bytes(m.n, m.rows, m.cols) > 0 {
        let dense = Matmul {
            element: Element::F16,
            w: m.wide,
            x: m.x,
            rounded: m.rounded,
            out: m.out,
            n: m.n,
            rows: m.rows,
            cols: m.cols,
        };
        let mut launches = matmul(&dense);
        launches.insert(0, widen(m));
        return launches;
    }
    in_steps(m.n, |first, n| gemv(m, first, n))
}

fn widen(m: &PackedMatmul) -> Launch {
    let kernel = match m.format {
        Packed::Q8 => "widen_q8",
        Packed::Q4 => "widen_q4",
    };
    let grid = [m.rows as u32, (m.cols as u32).div_ceil(THREADS), 1];
    let args = Args::new().ptr(m.w).ptr(m.wide).u32(m.cols);
    Launch { kernel, grid, block: THREADS, shared: 0, args }
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
