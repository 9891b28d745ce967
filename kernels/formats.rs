//! How weights lie in memory.

use half::{bf16, f16};

use crate::Isa;
use crate::cpu::elementwise::{bf16_to_f32, f16_to_f32};
use crate::cpu::simd::{LANES, Simd};

/// The elements of a dense matrix.
#[derive(Clone, Copy, Debug)]
pub enum Dense<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// The upper half of a 32-bit float.
    Bf16(&'a [bf16]),
}

impl Dense<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::F16(data) => data.len(),
            Self::Bf16(data) => data.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A weight matrix `[rows, cols]`, row-major as in a checkpoint: row `r` makes output `r`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// `rows * cols` elements.
    pub data: Dense<'a>,
}

impl<'a> Matrix<'a> {
    /// A matrix over `data`.
    ///
    /// # Panics
    /// When `data` does not have `rows * cols` elements.
    pub fn new(rows: usize, cols: usize, data: Dense<'a>) -> Self {
        assert_eq!(Some(data.len()), rows.checked_mul(cols), "a matrix of {rows} x {cols}");
        Self { rows, cols, data }
    }

    /// Writes row `row` as f32 to `out`: an embedding, for one.
    ///
    /// # Panics
    /// When there is no such row, or `out` does not have `cols` elements.
    pub fn row(&self, isa: Isa, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "elements of a row");
        self.part_of_row(isa, row, 0, out);
    }

    /// Writes the elements of row `row` from column `from` on as f32 to `out`.
    pub(crate) fn part_of_row(&self, isa: Isa, row: usize, from: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of a matrix of {} rows", self.rows);
        assert!(from + out.len() <= self.cols, "columns of a row");
        let range = row * self.cols + from..row * self.cols + from + out.len();
        match self.data {
            Dense::F32(data) => out.copy_from_slice(&data[range]),
            Dense::F16(data) => f16_to_f32(isa, &data[range], out),
            Dense::Bf16(data) => bf16_to_f32(isa, &data[range], out),
        }
    }
}

/// An element type of dense matrices and caches.
pub(crate) trait Element: Copy + Sync + Default {
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F;

    /// Loads up to eight values; the missing lanes are zero.
    #[inline(always)]
    fn load_some<S: Simd>(s: S, from: &[Self]) -> S::F {
        let mut lanes = [Self::default(); LANES];
        lanes[..from.len()].copy_from_slice(from);
        Self::load(s, &lanes)
    }
}

impl Element for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F {
        s.load(from)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F {
        s.load_f16(from)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F {
        s.load_bf16(from)
    }
}
