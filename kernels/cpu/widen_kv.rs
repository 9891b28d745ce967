//! Keys and values of the cache as AMX multiplies them: see [`super::attention_amx`].

#![cfg(target_arch = "x86_64")]
#![allow(clippy::wildcard_imports, reason = "the names of the intrinsics say where they come from")]

use std::arch::x86_64::*;
use std::ops::Range;

use half::f16;

use super::amx::{HALVES, SIDE};
use super::attention_amx::{STEPS, Weights};
use super::cache::{Elements, GROUP, KEYS, KvBlock};
use super::parts_amx::{LANES, Parts, first_lanes, plain_nan};

/// The keys and values of a head in a block.
pub(super) struct Cached<'a> {
    pub(super) block: &'a KvBlock,
    pub(super) head: usize,
}

/// Two elements of sixteen keys, or sixteen elements of two values, as they lie side by side in 8 bits.
type Pair = [__m512; 2];

impl Cached<'_> {
    /// Widens the keys of the first places, `[pairs of panels, steps of elements]`. Elements behind the last are zeros.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn widen_keys(&self, places: usize, to: &mut [Parts]) {
        let shape = self.block.shape();
        let [range, _] = shape.of_head(self.head);
        let [scales_range, _] = shape.scales_of_head(self.head);
        let dim = shape.k_dim;
        let keys = match &self.block.keys {
            Elements::F32(_) => unreachable!("f32 is not widened"),
            Elements::F16(keys) => Keys::F16 { keys: keys[range].as_chunks().0, dim },
            Elements::Q8 { values, scales } => {
                let scales = scales[scales_range].as_chunks().0;
                Keys::Q8 { keys: values[range].as_chunks().0, scales, pairs: dim.div_ceil(2) }
            }
        };
        let steps = dim.div_ceil(HALVES);
        for panel in 0..places.div_ceil(KEYS) {
            let to = &mut to[panel / 2 * steps..][..steps];
            for i in 0..steps * (SIDE / 2) {
                let [first, second] = half_a_step_apart(i);
                let mut pairs = [keys.pair(panel, first), keys.pair(panel, second)];
                for v in pairs.as_flattened_mut() {
                    *v = plain_nan(*v);
                }
                store(pairs[0], pairs[1], to, panel, i);
            }
        }
    }

    /// Widens the values of the first places, `[pairs of tiles of elements, steps of positions]`, with zeros for elements behind
    /// the last, and for what is not finite; says whether all was.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn widen_values(&self, places: usize, to: &mut [Parts]) -> bool {
        let shape = self.block.shape();
        let [_, range] = shape.of_head(self.head);
        let [_, scales_range] = shape.scales_of_head(self.head);
        let dim = shape.v_dim;
        let values = match &self.block.values {
            Elements::F32(_) => unreachable!("f32 is not widened"),
            Elements::F16(values) => Values::F16 { values: &values[range], dim },
            Elements::Q8 { values, scales } => {
                let scales = scales[scales_range].as_chunks().0;
                Values::Q8 { values: &values[range], scales, dim }
            }
        };
        let mut not_finite = 0;
        for tile in 0..dim.div_ceil(2 * SIDE) * 2 {
            let to = &mut to[tile / 2 * STEPS..][..STEPS];
            for i in 0..places.div_ceil(HALVES) * (SIDE / 2) {
                let [first, second] = half_a_step_apart(i);
                let mut pairs = [values.pair(first, tile * SIDE), values.pair(second, tile * SIDE)];
                for v in pairs.as_flattened_mut() {
                    // NaN and infinities.
                    let bad = _mm512_fpclass_ps_mask::<0x99>(*v);
                    *v = _mm512_mask_mov_ps(*v, bad, _mm512_setzero_ps());
                    not_finite |= bad;
                }
                store(pairs[0], pairs[1], to, tile, i);
            }
        }
        not_finite == 0
    }

    /// Adds what [`Self::widen_values`] took as zeros to the sums of some queries, `[queries, width]`.
    #[cold]
    pub(super) fn add_not_finite(
        &self,
        seen: &[Range<usize>],
        weights: &Weights,
        sums: &mut [f32],
    ) {
        let width = sums.len() / seen.len();
        for (row, (seen, sums)) in seen.iter().zip(sums.chunks_mut(width)).enumerate() {
            for place in seen.clone() {
                for (d, sum) in sums[..self.block.shape().v_dim].iter_mut().enumerate() {
                    let value = self.block.value(self.head, place, d);
                    if !value.is_finite() {
                        *sum += weights[place / HALVES].get(row, place % HALVES) * value;
                    }
                }
            }
        }
    }
}

/// The keys of a head.
enum Keys<'a> {
    F16 { keys: &'a [[f16; KEYS]], dim: usize },
    Q8 { keys: &'a [[i8; 2 * KEYS]], scales: &'a [[f32; KEYS]], pairs: usize },
}

impl Keys<'_> {
    /// Two elements of the keys of a panel; zeros behind the last.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn pair(&self, panel: usize, pair: usize) -> Pair {
        match *self {
            Self::F16 { keys, dim } => {
                let keys = &keys[panel * dim..][..dim];
                [load_key(keys, 2 * pair), load_key(keys, 2 * pair + 1)]
            }
            Self::Q8 { pairs, .. } if pair >= pairs => [_mm512_setzero_ps(); 2],
            Self::Q8 { keys, scales, pairs } => {
                let group = panel * pairs.div_ceil(GROUP / 2) + 2 * pair / GROUP;
                let [first, second] = load_bytes(&keys[panel * pairs + pair]);
                // SAFETY: the array is 64 bytes long.
                let scales = unsafe { _mm512_loadu_ps(scales[group].as_ptr()) };
                [_mm512_mul_ps(first, scales), _mm512_mul_ps(second, scales)]
            }
        }
    }
}

/// The values of a head.
enum Values<'a> {
    F16 { values: &'a [f16], dim: usize },
    Q8 { values: &'a [i8], scales: &'a [[f32; 2]], dim: usize },
}

impl Values<'_> {
    /// Sixteen elements, from `at` on, of the values of two places; zeros behind the last.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn pair(&self, pair: usize, at: usize) -> Pair {
        match *self {
            Self::F16 { values, dim } => {
                let (first, second) = values[2 * pair * dim..][..2 * dim].split_at(dim);
                let at = at.min(dim);
                let len = (dim - at).min(SIDE);
                [load_f16(&first[at..], len), load_f16(&second[at..], len)]
            }
            Self::Q8 { values, scales, dim } => {
                let values = &values[2 * pair * dim..][..2 * dim];
                let values = &values[2 * at.min(dim)..];
                let mut some = [0; 2 * SIDE];
                let both = match values.first_chunk() {
                    Some(values) => values,
                    None => {
                        some[..values.len()].copy_from_slice(values);
                        &some
                    }
                };
                let [first, second] = load_bytes(both);
                let scales = scales[pair];
                [
                    _mm512_mul_ps(first, _mm512_set1_ps(scales[0])),
                    _mm512_mul_ps(second, _mm512_set1_ps(scales[1])),
                ]
            }
        }
    }
}

/// An element of the keys of a panel; zeros behind the last.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load_key(keys: &[[f16; KEYS]], i: usize) -> __m512 {
    match keys.get(i) {
        Some(key) => load_f16(key, LANES),
        None => _mm512_setzero_ps(),
    }
}

/// The first numbers, 16 at most, and zeros behind them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load_f16(from: &[f16], len: usize) -> __m512 {
    let len = len.min(from.len());
    // SAFETY: only what is inside is loaded.
    let halves = unsafe { _mm256_maskz_loadu_epi16(first_lanes(len), from.as_ptr().cast()) };
    _mm512_cvtph_ps(halves)
}

/// The first and the second numbers of pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load_bytes(from: &[i8; 2 * LANES]) -> Pair {
    // SAFETY: the array is 32 bytes long.
    let wide = _mm512_cvtepi8_epi16(unsafe { _mm256_loadu_si256(from.as_ptr().cast()) });
    let first = _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(wide));
    let second = _mm512_srai_epi32::<16>(wide);
    [_mm512_cvtepi32_ps(first), _mm512_cvtepi32_ps(second)]
}

/// The pairs of numbers of a step whose first and second numbers are multiplied and summed at once: the `i`th of the first half of all
/// steps, and that of the second half.
fn half_a_step_apart(i: usize) -> [usize; 2] {
    let first = i / (SIDE / 2) * SIDE + i % (SIDE / 2);
    [first, first + SIDE / 2]
}

/// Stores two such pairs as lines of the tile whose turn it is in a pair of them; `to` are steps.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn store(first: Pair, second: Pair, to: &mut [Parts], tile: usize, i: usize) {
    let (step, line) = (i / (SIDE / 2), tile % 2 * SIDE + 2 * (i % (SIDE / 2)));
    to[step].store(line, first[0], second[0]);
    to[step].store(line + 1, first[1], second[1]);
}
