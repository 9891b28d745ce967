//! Scores that become weights, for AMX: see [`super::attention_amx`].

#![cfg(target_arch = "x86_64")]
#![allow(clippy::wildcard_imports, reason = "the names of the intrinsics say where they come from")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::amx::HALVES;
use super::attention::{Job, Softmax};
use super::attention_amx::{ROWS, Scores, Weights};
use super::cache::BLOCK;
use super::parts_amx::{LANES, first_lanes};

/// Vectors of a step.
const VECTORS: usize = HALVES / LANES;

/// What 32 queries see of a block.
pub(super) struct Seen<'a> {
    job: &'a Job<'a>,
    /// The first of them.
    pub(super) row: usize,
    block: usize,
    /// The steps of positions that any of them sees.
    pub(super) steps: Range<usize>,
    /// Whether all see all.
    all: bool,
}

impl<'a> Seen<'a> {
    pub(super) fn new(job: &'a Job<'a>, row: usize, block: usize) -> Self {
        let (first, last) = (job.seen(row, block), job.seen(row + ROWS - 1, block));
        let any = first.start < last.end;
        let steps = if any { first.start / HALVES..last.end.div_ceil(HALVES) } else { 0..0 };
        Self { job, row, block, steps, all: first.end == BLOCK && last.start == 0 }
    }

    /// What each of them sees.
    pub(super) fn each(&self) -> [Range<usize>; ROWS] {
        std::array::from_fn(|i| self.job.seen(self.row + i, self.block))
    }

    /// The masks of the vectors of a block.
    fn masks(&self) -> [[u16; BLOCK / LANES]; ROWS] {
        let mut masks = [[0; BLOCK / LANES]; ROWS];
        for (masks, seen) in masks.iter_mut().zip(self.each()) {
            for (i, mask) in masks.iter_mut().enumerate() {
                let below = first_lanes(seen.end.saturating_sub(i * LANES));
                *mask = below & !first_lanes(seen.start.saturating_sub(i * LANES));
            }
        }
        masks
    }
}

/// Turns scores into weights `2^(score - top)`, which are zero for what a query does not see, and moves the softmax on; `sums`,
/// `[ROWS, width]`, become what they are worth now.
///
/// Each step is done for all queries: one query after the other would wait for its largest score and for its sum. A NaN gets
/// lost in a weight, but not in the sum that all is divided by at last.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn weigh(
    seen: &Seen<'_>,
    scores: &Scores,
    weights: &mut Weights,
    softmax: &mut [Softmax],
    sums: &mut [f32],
) {
    if seen.all {
        weigh_seen::<true>(seen, scores, weights, softmax, sums);
    } else {
        weigh_seen::<false>(seen, scores, weights, softmax, sums);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn weigh_seen<const ALL: bool>(
    seen: &Seen<'_>,
    scores: &Scores,
    weights: &mut Weights,
    softmax: &mut [Softmax],
    sums: &mut [f32],
) {
    let masks = if ALL { [[u16::MAX; BLOCK / LANES]; ROWS] } else { seen.masks() };
    let steps = seen.steps.clone();
    let mut bases = [0.0; ROWS];
    for (row, softmax) in softmax.iter().enumerate() {
        // A NaN is passed over here, and ends in the sum.
        let mut tops = _mm512_set1_ps(softmax.top);
        for i in VECTORS * steps.start..VECTORS * steps.end {
            tops = _mm512_max_ps(load::<ALL>(&scores[row], &masks[row], i), tops);
        }
        bases[row] = _mm512_reduce_max_ps(tops);
    }
    rebase(softmax, &mut bases, sums);
    let mut totals = [_mm512_setzero_ps(); ROWS];
    for step in steps {
        for row in 0..ROWS {
            let base = _mm512_set1_ps(bases[row]);
            let mut line = [_mm512_setzero_ps(); VECTORS];
            for (i, v) in line.iter_mut().enumerate() {
                let i = VECTORS * step + i;
                let score = load::<ALL>(&scores[row], &masks[row], i);
                *v = exp2(_mm512_sub_ps(score, base));
                if !ALL {
                    // What is not seen shall weigh nothing.
                    *v = _mm512_maskz_mov_ps(masks[row][i], *v);
                }
            }
            totals[row] = _mm512_add_ps(totals[row], _mm512_add_ps(line[0], line[1]));
            weights[step].store(row, line[0], line[1]);
        }
    }
    for (softmax, total) in softmax.iter_mut().zip(totals) {
        softmax.sum += _mm512_reduce_add_ps(total);
        // All scores were minus infinity.
        if softmax.top == f32::NEG_INFINITY && !softmax.sum.is_nan() {
            softmax.sum = 0.0;
        }
    }
}

/// Moves the softmax on to the largest scores, `bases`; those that are minus infinity become zero, so that no infinities are
/// subtracted.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn rebase(softmax: &mut [Softmax], bases: &mut [f32; ROWS], sums: &mut [f32]) {
    let width = sums.len() / ROWS;
    for ((softmax, sums), base) in softmax.iter_mut().zip(sums.chunks_mut(width)).zip(bases) {
        if softmax.top != *base {
            let factor = exp2(_mm512_set1_ps(softmax.top - *base));
            softmax.top = *base;
            softmax.sum *= _mm512_cvtss_f32(factor);
            for v in sums.as_chunks_mut::<LANES>().0 {
                // SAFETY: the array is 64 bytes long.
                unsafe {
                    let scaled = _mm512_mul_ps(_mm512_loadu_ps(v.as_ptr()), factor);
                    _mm512_storeu_ps(v.as_mut_ptr(), scaled);
                }
            }
        } else if *base == f32::NEG_INFINITY {
            *base = 0.0;
        }
    }
}

/// A vector of scores, and minus infinity for what is not seen.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load<const ALL: bool>(scores: &[f32; BLOCK], masks: &[u16; BLOCK / LANES], i: usize) -> __m512 {
    let from = scores.as_chunks::<LANES>().0[i].as_ptr();
    // SAFETY: the array is 64 bytes long.
    unsafe {
        if ALL {
            _mm512_loadu_ps(from)
        } else {
            _mm512_mask_loadu_ps(_mm512_set1_ps(f32::NEG_INFINITY), masks[i], from)
        }
    }
}

/// 2 to the power of `x`, which is not above zero: relative error below 2e-7; not less than the least normal f32, and NaN for NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn exp2(x: __m512) -> __m512 {
    /// `2^f = 1 + f * p(f)` for `f` from 0 to 1: the coefficients of `p`, with the least error.
    const P: [f32; 5] = [0.693_151_3, 0.240_164_44, 0.055_799_913, 0.009_017_03, 0.001_867_130_2];
    const TO_FLOOR: i32 = 0b1001;
    // In this order of the arguments, a NaN passes.
    let x = _mm512_max_ps(_mm512_set1_ps(-126.0), x);
    let f = _mm512_reduce_ps::<TO_FLOOR>(x);
    let mut p = _mm512_set1_ps(P[4]);
    let mut i = 4;
    while i > 0 {
        i -= 1;
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(P[i]));
    }
    let p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0));
    // It takes the floor of its second argument.
    _mm512_scalef_ps(p, x)
}
