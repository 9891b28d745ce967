//! The layouts of the q8 and q4 panels, and their way back to f32.
//!
//! **q8**, for each 64 columns: 2 × 16 scales in f16 (one for each 32 columns and row), then for each 4 columns 16 rows
//! of 4 values in 8 bits, in the column order 0 2 1 3. Shifting 16-bit lanes left and right then gives the pairs 0 1
//! and 2 3 as 16-bit integers without a shuffle.
//!
//! **q4**: a weight is `row scale (f32) × group scale (8 bits) × code`, with groups of 16 columns and codes out of
//! [`CODES`]. For each 64 columns: 2 × 16 × 2 group scales (for each 32 columns and row, those of both groups), then for
//! each 8 columns 16 rows of 4 bytes; a byte's low half is a code of the first 4 columns, its high half of the last 4.
//!
//! Why this 4-bit format: with 4.5 bits per weight for all of them, the error of real bf16 weights (root of the mean
//! square, relative; the built-in model's matrices, some of whose rows the codes were fitted to) is 6.5 % here, 7.6 % with 16 evenly spaced values in the same groups
//! and 9.4 % with the groups of 32 of GGML's Q4_0 (synthetic weights). No calibration data is needed. The values are
//! integers of magnitude 32 at most, so two products with 8-bit activations (8 of them in each 16-bit lane pair) add up
//! in 16 bits without overflow, and the group scale enters with the multiply-add that widens them to 32 bits
//! anyway. Finer values (up to 64) lower the error by a hundredth of itself and cost a fifth of the speed of prompts;
//! coarser ones (up to 16) were 0 to 14 % faster in prototypes and raise it by a thirtieth.

use half::f16;

use super::floats::{Wide, Widen};
use super::input::SPAN;
use super::linear::Totals;
use super::simd::Simd;
use crate::packed::{COLUMNS, PANEL, Q4_GROUP, Q4_HEAD, Q8_GROUP};

/// The values of the 4-bit codes: what minimises the error of normal, heavy-tailed and real weights together, each group
/// with its best scale (Lloyd's method, then rounded and improved one by one). One is zero, and they are not
/// symmetric: a group's scale may be negative, so it can turn the finer side to where the group needs it.
pub(crate) const CODES: [i8; 16] =
    [-32, -26, -20, -16, -12, -8, -5, -2, 0, 3, 6, 9, 12, 16, 21, 28];

/// What is added to codes where they must not be negative.
pub(crate) const Q4_RAISED: i8 = 32;

/// The codes, raised: computed by the compiler, since it would not always see that it can.
pub(crate) const RAISED_CODES: [i8; 16] = {
    let mut codes = CODES;
    let mut i = 0;
    while i < codes.len() {
        codes[i] += Q4_RAISED;
        i += 1;
    }
    codes
};

/// Columns that share a q8 scale.
pub(crate) const Q8_COLUMNS: usize = 32;

/// Columns that share a q4 group scale.
pub(crate) const Q4_COLUMNS: usize = 16;

/// What is added to q8 values where they must not be negative.
pub(crate) const Q8_RAISED: u8 = 128;

/// Where the 4 columns of a q8 step lie.
pub(crate) const Q8_ORDER: [usize; 4] = [0, 2, 1, 3];

/// The bytes of one span of a q8 panel, in groups of 64 columns.
pub(crate) fn q8_span(panel: &[u8], span: usize) -> &[[u8; Q8_GROUP]] {
    let (groups, _) = panel.as_chunks::<Q8_GROUP>();
    let from = span * (SPAN / COLUMNS);
    &groups[from..groups.len().min(from + SPAN / COLUMNS)]
}

/// The bytes of one span of a q4 panel, in groups of 64 columns.
pub(crate) fn q4_span(panel: &[u8], span: usize) -> &[[u8; Q4_GROUP]] {
    let (groups, _) = panel[Q4_HEAD..].as_chunks::<Q4_GROUP>();
    let from = span * (SPAN / COLUMNS);
    &groups[from..groups.len().min(from + SPAN / COLUMNS)]
}

/// Group `i` of each panel's span. A loop: the closure of a `map` would have to be inlined there, where the instructions are not.
#[inline(always)]
pub(crate) fn groups<const P: usize, const N: usize>(
    w: [&[[u8; N]]; P],
    i: usize,
) -> [&[u8; N]; P] {
    let mut groups = [&[0; N]; P];
    for (group, w) in groups.iter_mut().zip(w) {
        *group = &w[i];
    }
    groups
}

/// The row scales of a q4 panel. Loops here and below, for the reason that [`groups`] gives.
#[inline(always)]
pub(crate) fn q4_row_scales(panel: &[u8]) -> [f32; PANEL] {
    let mut scales = [0.0; PANEL];
    for (scale, bytes) in scales.iter_mut().zip(panel[..Q4_HEAD].as_chunks().0) {
        *scale = f32::from_le_bytes(*bytes);
    }
    scales
}

/// Multiplies sums with the scales of the rows.
#[inline(always)]
pub(crate) fn scale_rows(scales: [f32; PANEL], totals: &mut Totals) {
    for total in totals {
        for (total, scale) in total.iter_mut().zip(scales) {
            *total *= scale;
        }
    }
}

/// [`crate::packed::Format::Q8`]
pub(crate) struct Q8;
/// [`crate::packed::Format::Q4`]
pub(crate) struct Q4;

impl Widen for Q8 {
    #[inline(always)]
    fn widen<S: Simd>(s: S, panel: &[u8], span: usize, columns: usize, wide: &mut Wide) {
        let (wide, _) = wide[..columns.next_multiple_of(COLUMNS)].as_chunks_mut::<COLUMNS>();
        for (group, wide) in q8_span(panel, span).iter().zip(wide) {
            let (scales, values) = group.split_at(4 * PANEL);
            let (wide, _) = wide.as_chunks_mut::<Q8_COLUMNS>();
            let halves =
                scales.chunks_exact(2 * PANEL).zip(values.chunks_exact(Q8_COLUMNS * PANEL));
            for (wide, (scales, values)) in wide.iter_mut().zip(halves) {
                let scales = q8_scales(s, scales);
                let (wide, _) = wide.as_chunks_mut::<4>();
                for (wide, values) in wide.iter_mut().zip(values.chunks_exact(4 * PANEL)) {
                    for (place, column) in Q8_ORDER.into_iter().enumerate() {
                        for (row, wide) in wide[column].iter_mut().enumerate() {
                            *wide = f32::from(values[4 * row + place] as i8) * scales[row];
                        }
                    }
                }
            }
        }
    }
}

/// 16 scales of a q8 group.
#[inline(always)]
pub(crate) fn q8_scales<S: Simd>(s: S, bytes: &[u8]) -> [f32; PANEL] {
    let mut scales = [0.0; PANEL];
    for (to, from) in scales.as_chunks_mut::<8>().0.iter_mut().zip(bytes.as_chunks::<16>().0) {
        s.store(s.load_f16_bytes(from), to);
    }
    scales
}

impl Widen for Q4 {
    /// Without the row scales.
    #[inline(always)]
    fn widen<S: Simd>(_: S, panel: &[u8], span: usize, columns: usize, wide: &mut Wide) {
        let (wide, _) = wide[..columns.next_multiple_of(COLUMNS)].as_chunks_mut::<Q4_COLUMNS>();
        for (group, wide) in q4_span(panel, span).iter().zip(wide.chunks_exact_mut(4)) {
            let (scales, codes) = group.split_at(4 * PANEL);
            for (i, (wide, codes)) in wide.iter_mut().zip(codes.chunks_exact(8 * PANEL)).enumerate()
            {
                let scales: [f32; PANEL] = std::array::from_fn(|row| {
                    f32::from(scales[i / 2 * 2 * PANEL + 2 * row + i % 2] as i8)
                });
                for (wide, codes) in wide.chunks_exact_mut(8).zip(codes.chunks_exact(4 * PANEL)) {
                    for (column, wide) in wide.iter_mut().enumerate() {
                        for (row, wide) in wide.iter_mut().enumerate() {
                            let code = codes[4 * row + column % 4] >> (column / 4 * 4) & 15;
                            *wide = f32::from(CODES[usize::from(code)]) * scales[row];
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn row_scales(panel: &[u8]) -> Option<[f32; PANEL]> {
        Some(q4_row_scales(panel))
    }
}

/// 16 f16 as bytes.
pub(crate) fn f16_bytes(values: [f16; PANEL]) -> [u8; 2 * PANEL] {
    let mut bytes = [0; 2 * PANEL];
    for (to, from) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
        *to = from.to_le_bytes();
    }
    bytes
}
