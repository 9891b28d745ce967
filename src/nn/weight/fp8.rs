//! Weights stored in 8-bit floats (E4M3, Micikevicius et al. 2022, arXiv:2209.05433) with scales.
//!
//! The scale multiplies, whatever its name (`weight_scale_inv`) says. Blocks are counted from the first row and
//! column, so those at the far edges may be partial.

use half::bf16;
use safetensors::Dtype;

use crate::checkpoint::{Bytes, TensorData};
use crate::error::Result;

/// Which scale belongs to which element: blocks of a matrix, each with one scale.
pub(super) struct Grid {
    cols: usize,
    block_rows: usize,
    block_cols: usize,
}

impl Grid {
    /// The blocks of `tensor`, whose scales are `scale`; `block` is how many rows and columns share one.
    ///
    /// # Errors
    ///
    /// If the tensor is not a matrix, or the scales do not fit it.
    pub(super) fn new(
        tensor: &TensorData,
        scale: &TensorData,
        block: Option<[usize; 2]>,
    ) -> Result<Self> {
        let [rows, cols] = tensor.shape[..] else {
            return Err(tensor.error(format!(
                "`{}` has shape {:?} in 8-bit floats, expected a matrix",
                tensor.name, tensor.shape
            )));
        };
        scale.check_is_float()?;
        // One scale for the whole matrix is one block as large as the matrix.
        let whole = [rows.max(1), cols.max(1)];
        let [block_rows, block_cols] =
            if scale.len() == 1 { whole } else { block.unwrap_or(whole) };
        let grid = [rows.div_ceil(block_rows), cols.div_ceil(block_cols)];
        if scale.len() != 1 && scale.shape != grid {
            return Err(scale.error(format!(
                "`{}` has shape {:?}, expected {grid:?}: one scale for each {block_rows} rows and {block_cols} columns",
                scale.name, scale.shape
            )));
        }
        Ok(Self { cols, block_rows, block_cols })
    }
}

/// `weight · scale` in f32 if `wide`, else in bf16; `grid` is that of the two.
///
/// # Errors
///
/// If the scales are not floats.
pub(super) fn dequantise(
    tensor: &TensorData,
    scale: &TensorData,
    grid: Grid,
    wide: bool,
) -> Result<TensorData> {
    let Grid { cols, block_rows, block_cols } = grid;
    let per_row = cols.div_ceil(block_cols);
    let scales = scale.to_f32()?;
    let table: Vec<f32> = (0..=u8::MAX).map(e4m3).collect();
    let mut bytes = Vec::with_capacity(tensor.len() * if wide { 4 } else { 2 });
    for (r, row) in tensor.bytes.chunks_exact(cols).enumerate() {
        for (c, x) in row.iter().enumerate() {
            let value = table[usize::from(*x)] * scales[r / block_rows * per_row + c / block_cols];
            if wide {
                bytes.extend_from_slice(&value.to_le_bytes());
            } else {
                bytes.extend_from_slice(&bf16::from_f32(value).to_le_bytes());
            }
        }
    }
    tensor.bytes.release();
    let mut result = tensor.clone();
    (result.dtype, result.bytes) =
        (if wide { Dtype::F32 } else { Dtype::BF16 }, Bytes::from(bytes));
    Ok(result)
}

/// The number that a byte stands for: one sign bit, four exponent bits with bias 7, three bits of mantissa.
/// There are no infinities; all ones is not a number.
fn e4m3(byte: u8) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(byte >> 3 & 0xf), f32::from(byte & 7));
    match (exponent, byte & 7) {
        (0, _) => sign * mantissa * 2f32.powi(-9),
        (15, 7) => f32::NAN,
        _ => sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stand_for_the_numbers_of_the_paper() {
        assert_eq!(e4m3(0x7e), 448.0);
        assert_eq!(e4m3(0x08), 2f32.powi(-6));
        assert_eq!(e4m3(0x01), 2f32.powi(-9));
        assert_eq!(e4m3(0xb8), -1.0);
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }
}
