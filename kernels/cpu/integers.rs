//! q8 and q4 with AVX2: sums of products of integers, which are exact, so their order does not matter.
//!
//! q8 multiplies 8-bit weights, widened to 16 bits, with 16-bit activations: `vpmaddwd` makes 16 products and adds
//! them in pairs, as fast as the 8-bit way, which would need the sign moved from one side to the other.
//!
//! q4 multiplies codes with 8-bit activations by `vpmaddubsw`: 32 products at a time, but one side must be unsigned. For
//! many tokens the activations are (plus 128; what that adds depends on the weights alone and is taken off once for each
//! span). For a single token the codes are (plus 32), so that they need no second look; what that adds depends on the
//! activations and is taken off for each 16 columns, after which their sums are in 16 bits again. Both give the same integers.
//! Products of a lane add up in 16 bits, then `vpmaddwd` multiplies with the scale of the group and widens to 32 bits.
//!
//! Tiles that hold fewer tokens than others are multiplied here, whole ones in [`super::whole_tiles`]. Measured on one Zen 3
//! core, data in the cache: whole tiles of q8 144 GOP/s, of q4 217 GOP/s, beside 103 for multiply-adds in f32 (the best of runs on a
//! loaded machine).

#![cfg(target_arch = "x86_64")]
#![allow(clippy::wildcard_imports, reason = "the names of the intrinsics say where they come from")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::ahead;
use super::input::{Input, SPAN, by_tokens};
use super::linear::Totals;
use super::quantized::{
    CODES, Q4_COLUMNS, Q8_COLUMNS, RAISED_CODES, groups, q4_row_scales, q4_span, q8_span,
    scale_rows,
};
use super::rows::{Halves, Rows};
use super::simd::Avx2;
use super::whole_tiles;
use crate::packed::{COLUMNS, PANEL, Q4_GROUP, Q8_GROUP};

/// Tokens of a tile.
pub(super) const TOKENS: usize = Halves::<Avx2>::TOKENS;

/// The most tokens of a tile that is not whole.
const PART: usize = TOKENS - 1;

/// The dot products of q8 panels with the tokens of some tiles; `totals` are zeros.
pub(crate) fn q8<const P: usize>(
    _: Avx2,
    panels: [&[u8]; P],
    input: &Input,
    tiles: &Range<usize>,
    totals: [&mut Totals; P],
) {
    if input.n == 1 {
        // SAFETY: an `Avx2` exists only where the CPU has the instructions.
        return unsafe { q8_single(panels, input, totals.map(|totals| &mut totals[0])) };
    }
    for (panel, totals) in panels.into_iter().zip(totals) {
        // SAFETY: as above.
        unsafe { q8_tiles(panel, input, tiles.clone(), totals) };
    }
}

/// The dot products of q4 panels with the tokens of some tiles; `totals` are zeros.
pub(crate) fn q4<const P: usize>(
    _: Avx2,
    panels: [&[u8]; P],
    input: &Input,
    tiles: &Range<usize>,
    totals: [&mut Totals; P],
) {
    if input.n == 1 {
        // SAFETY: an `Avx2` exists only where the CPU has the instructions.
        return unsafe { q4_single(panels, input, totals.map(|totals| &mut totals[0])) };
    }
    for (panel, totals) in panels.into_iter().zip(totals) {
        // SAFETY: as above.
        unsafe { q4_tiles(panel, input, tiles.clone(), totals) };
    }
}

// ---------------------------------------------------------------------------------------------- loads

/// 32 bytes from place `at` of `from`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load<T: Copy>(from: &[T], at: usize) -> __m256i {
    let count = 32 / size_of::<T>();
    debug_assert!(at + count <= from.len());
    let from = &from[at..at + count];
    // SAFETY: the slice is 32 bytes long.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

/// 4 bytes in each lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn spread<T: Copy, const N: usize>(from: &[T; N]) -> __m256i {
    const { assert!(N * size_of::<T>() == 4) };
    // SAFETY: four bytes, all of which are part of a number without padding.
    _mm256_set1_epi32(unsafe { from.as_ptr().cast::<i32>().read_unaligned() })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_f32(from: &[f32], at: usize) -> __m256 {
    _mm256_castsi256_ps(load(from, at))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store_f32(v: __m256, to: &mut [f32], at: usize) {
    let to = &mut to[at..at + 8];
    // SAFETY: the slice is 32 bytes long.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store<T: Copy>(v: __m256i, to: &mut [T], at: usize) {
    let to = &mut to[at..at + 32 / size_of::<T>()];
    // SAFETY: the slice is 32 bytes long, and any bits are integers.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), v) }
}

/// 8 scales of a q8 group, from place `at`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_f16(from: &[u8], at: usize) -> __m256 {
    let from = &from[at..at + 16];
    // SAFETY: the slice is 16 bytes long.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(from.as_ptr().cast()) })
}

/// `total + sum * scale` in each lane, for 8 rows from place `at` of `totals`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_scaled(sum: __m256, scale: f32, totals: &mut [f32; PANEL], at: usize) {
    let total = _mm256_fmadd_ps(sum, _mm256_set1_ps(scale), load_f32(totals, at));
    store_f32(total, totals, at);
}

/// `total + sum * scale` for each token and row; the sums are `[token][half of the rows]`.
///
/// With zipped iterators, which of them ends first would be looked up in memory for each token: a tenth of the time.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn add_tile<const T: usize>(
    sums: &[[__m256; 2]; T],
    scales: &[f32],
    totals: &mut Totals,
) {
    let (scales, totals) = (&scales[..T], &mut totals[..T]);
    for t in 0..T {
        add_scaled(sums[t][0], scales[t], &mut totals[t], 0);
        add_scaled(sums[t][1], scales[t], &mut totals[t], 8);
    }
}

// ---------------------------------------------------------------------------------------------- q8

/// The values of columns 0 1 and of columns 2 3, for 8 rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q8_pairs(values: __m256i) -> [__m256i; 2] {
    [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(values)), _mm256_srai_epi16::<8>(values)]
}

#[target_feature(enable = "avx2,fma,f16c")]
fn q8_single<const P: usize>(
    panels: [&[u8]; P],
    input: &Input,
    mut totals: [&mut [f32; PANEL]; P],
) {
    for span in 0..input.spans() {
        let (start, columns) = input.integers(span, 0);
        let (x, _) = input.words[start..start + columns].as_chunks::<COLUMNS>();
        let mut w = [&[][..]; P];
        for p in 0..P {
            w[p] = &q8_span(panels[p], span)[..x.len()];
        }
        let mut sums = [[_mm256_setzero_ps(); 2]; P];
        for (i, x) in x.iter().enumerate() {
            q8_single_groups(groups(w, i), x, input.ahead, &mut sums);
        }
        let scale = input.word_scales[span];
        for (sums, totals) in sums.iter().zip(&mut totals) {
            add_scaled(sums[0], scale, totals, 0);
            add_scaled(sums[1], scale, totals, 8);
        }
    }
}

/// Adds the products of 64 columns of some panels, step by step, so that each activation is spread once for all of them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q8_single_groups<const P: usize>(
    groups: [&[u8; Q8_GROUP]; P],
    x: &[i16; COLUMNS],
    ahead: bool,
    sums: &mut [[__m256; 2]; P],
) {
    let (x, _) = x.as_chunks::<Q8_COLUMNS>();
    for half in 0..2 {
        let mut products = [[_mm256_setzero_si256(); 2]; P];
        for (step, x) in x[half].as_chunks::<4>().0.iter().enumerate() {
            let at = 4 * PANEL + half * Q8_COLUMNS * PANEL + step * 4 * PANEL;
            let x = [spread(&[x[0], x[1]]), spread(&[x[2], x[3]])];
            for p in 0..P {
                if ahead {
                    ahead::ask(&groups[p][at]);
                }
                for (i, products) in products[p].iter_mut().enumerate() {
                    let w = q8_pairs(load(groups[p], at + 32 * i));
                    let two = [_mm256_madd_epi16(w[0], x[0]), _mm256_madd_epi16(w[1], x[1])];
                    *products = _mm256_add_epi32(*products, _mm256_add_epi32(two[0], two[1]));
                }
            }
        }
        for p in 0..P {
            if ahead && half == 0 {
                ahead::ask(&groups[p][0]);
            }
            for i in 0..2 {
                let scale = load_f16(groups[p], half * 2 * PANEL + 16 * i);
                let products = _mm256_cvtepi32_ps(products[p][i]);
                sums[p][i] = _mm256_fmadd_ps(products, scale, sums[p][i]);
            }
        }
    }
}

/// A span of a q8 panel, widened to 16 bits; aligned, or half of all loads would touch two cache lines.
#[repr(align(64))]
pub(super) struct Q8Span {
    /// `[pair of columns][row][2]`
    pub(super) words: [[i16; 2 * PANEL]; SPAN / 2],
    /// `[32 columns][row]`
    pub(super) scales: [[f32; PANEL]; SPAN / Q8_COLUMNS],
}

#[target_feature(enable = "avx2,fma,f16c")]
fn q8_tiles(panel: &[u8], input: &Input, tiles: Range<usize>, totals: &mut Totals) {
    let mut wide =
        Q8Span { words: [[0; 2 * PANEL]; SPAN / 2], scales: [[0.0; PANEL]; SPAN / Q8_COLUMNS] };
    for span in 0..input.spans() {
        for (i, group) in q8_span(panel, span).iter().enumerate() {
            q8_widen(group, i, &mut wide);
        }
        for tile in tiles.clone() {
            let totals = &mut totals[(tile - tiles.start) * TOKENS..];
            let (start, columns) = input.integers(span, tile);
            let tokens = input.tokens(tile);
            let x = &input.words[start..start + columns * tokens];
            let scales = &input.word_scales[span * input.n + tile * TOKENS..];
            match tokens {
                TOKENS => whole_tiles::q8(&wide, x, scales, totals),
                _ => {
                    by_tokens!(tokens up to PART, T => q8_tile::<T>(&wide, x, scales, totals))
                }
            }
        }
    }
}

/// Widens 64 columns.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q8_widen(group: &[u8; Q8_GROUP], index: usize, wide: &mut Q8Span) {
    let words = &mut wide.words[index * COLUMNS / 2..][..COLUMNS / 2];
    for (step, words) in words.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        for half in 0..2 {
            let pairs = q8_pairs(load(group, 4 * PANEL + step * 4 * PANEL + 32 * half));
            store(pairs[0], &mut words[0], 16 * half);
            store(pairs[1], &mut words[1], 16 * half);
        }
    }
    for (i, scales) in wide.scales[2 * index..][..2].iter_mut().enumerate() {
        store_f32(load_f16(group, i * 2 * PANEL), scales, 0);
        store_f32(load_f16(group, i * 2 * PANEL + 16), scales, 8);
    }
}

/// `T` tokens of a tile times one span.
#[target_feature(enable = "avx2,fma,f16c")]
fn q8_tile<const T: usize>(wide: &Q8Span, x: &[i16], scales: &[f32], totals: &mut Totals) {
    const PAIRS: usize = Q8_COLUMNS / 2;
    let (x, _) = x.as_chunks::<2>().0.as_chunks::<T>();
    let mut sums = [[_mm256_setzero_ps(); 2]; T];
    let groups = x.as_chunks::<PAIRS>().0.iter().zip(wide.words.as_chunks::<PAIRS>().0);
    for ((x, words), w_scales) in groups.zip(&wide.scales) {
        let mut products = [[_mm256_setzero_si256(); 2]; T];
        for (x, words) in x.iter().zip(words) {
            let w = [load(words, 0), load(words, 16)];
            for (products, x) in products.iter_mut().zip(x) {
                let x = spread(x);
                products[0] = _mm256_add_epi32(products[0], _mm256_madd_epi16(w[0], x));
                products[1] = _mm256_add_epi32(products[1], _mm256_madd_epi16(w[1], x));
            }
        }
        for (sums, products) in sums.iter_mut().zip(products) {
            for i in 0..2 {
                let scale = load_f32(w_scales, 8 * i);
                sums[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products[i]), scale, sums[i]);
            }
        }
    }
    add_tile(&sums, scales, totals);
}

// ---------------------------------------------------------------------------------------------- q4

/// A table of 16 bytes for `vpshufb`, in both halves.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn table(codes: &[i8; 16]) -> __m256i {
    // SAFETY: the array is 16 bytes long.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) })
}

/// The codes of the first and of the last 4 columns of 8, as values of the table.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_codes(codes: __m256i, table: __m256i) -> [__m256i; 2] {
    let low = _mm256_set1_epi8(15);
    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low);
    [_mm256_shuffle_epi8(table, _mm256_and_si256(codes, low)), _mm256_shuffle_epi8(table, high)]
}

/// Where the scales of 8 rows lie for each of two groups, twice.
///
/// The compiler must not see through it: it would make two shuffles out of each.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_places() -> [__m256i; 2] {
    let first = _mm_set_epi32(0x0d0c_0d0c, 0x0908_0908, 0x0504_0504, 0x0100_0100);
    let second = _mm_set_epi32(0x0f0e_0f0e, 0x0b0a_0b0a, 0x0706_0706, 0x0302_0302);
    let places = [_mm256_broadcastsi128_si256(first), _mm256_broadcastsi128_si256(second)];
    std::hint::black_box(places)
}

/// The scales of both groups of 32 columns for 8 rows, where [`q4_places`] tells.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_two_scales(group: &[u8; Q4_GROUP], at: usize) -> __m256i {
    let from = &group[at..at + 16];
    // SAFETY: the slice is 16 bytes long.
    _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(from.as_ptr().cast()) })
}

#[target_feature(enable = "avx2,fma,f16c")]
fn q4_single<const P: usize>(
    panels: [&[u8]; P],
    input: &Input,
    mut totals: [&mut [f32; PANEL]; P],
) {
    let (table, places) = (table(&RAISED_CODES), q4_places());
    for span in 0..input.spans() {
        let (start, columns) = input.integers(span, 0);
        let (x, _) = input.bytes[start..start + columns].as_chunks::<COLUMNS>();
        let x_sums = &input.sums[start / Q4_COLUMNS..].as_chunks::<4>().0[..x.len()];
        let mut w = [&[][..]; P];
        for p in 0..P {
            w[p] = &q4_span(panels[p], span)[..x.len()];
        }
        let mut sums = [[_mm256_setzero_si256(); 2]; P];
        for (i, x) in x.iter().enumerate() {
            q4_single_groups(groups(w, i), x, &x_sums[i], table, places, input.ahead, &mut sums);
        }
        let scale = input.byte_scales[span];
        for (sums, totals) in sums.iter().zip(&mut totals) {
            add_scaled(_mm256_cvtepi32_ps(sums[0]), scale, totals, 0);
            add_scaled(_mm256_cvtepi32_ps(sums[1]), scale, totals, 8);
        }
    }
    for (panel, totals) in panels.into_iter().zip(totals) {
        scale_rows(q4_row_scales(panel), std::slice::from_mut(totals));
    }
}

/// Adds the products of 64 columns of some panels, step by step, so that each activation is spread once for all of them.
///
/// What raising the codes adds may leave 16 bits, but with it taken off the sums of 16 columns are in them again.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_single_groups<const P: usize>(
    groups: [&[u8; Q4_GROUP]; P],
    x: &[u8; COLUMNS],
    x_sums: &[[i16; 2]; 4],
    table: __m256i,
    places: [__m256i; 2],
    ahead: bool,
    sums: &mut [[__m256i; 2]; P],
) {
    let (x, _) = x.as_chunks::<4>();
    for (sixteen, x_sums) in x_sums.iter().enumerate() {
        let mut products = [[spread(x_sums); 2]; P];
        for eight in 2 * sixteen..2 * sixteen + 2 {
            let at = 4 * PANEL + eight * 4 * PANEL;
            let x = [spread(&x[2 * eight]), spread(&x[2 * eight + 1])];
            for p in 0..P {
                if ahead {
                    ahead::ask(&groups[p][at]);
                }
                for i in 0..2 {
                    let codes = q4_codes(load(groups[p], at + 32 * i), table);
                    let products = &mut products[p][i];
                    *products = _mm256_add_epi16(*products, _mm256_maddubs_epi16(codes[0], x[0]));
                    *products = _mm256_add_epi16(*products, _mm256_maddubs_epi16(codes[1], x[1]));
                }
            }
        }
        for p in 0..P {
            if ahead && sixteen == 0 {
                ahead::ask(&groups[p][0]);
            }
            for i in 0..2 {
                let scales = q4_two_scales(groups[p], sixteen / 2 * 2 * PANEL + 16 * i);
                let scales = _mm256_shuffle_epi8(scales, places[sixteen % 2]);
                let sum = _mm256_madd_epi16(products[p][i], scales);
                sums[p][i] = _mm256_add_epi32(sums[p][i], sum);
            }
        }
    }
}

/// A span of a q4 panel, as signed bytes; aligned, or half of all loads would touch two cache lines.
#[repr(align(64))]
pub(super) struct Q4Span {
    /// `[4 columns][row][4]`
    pub(super) codes: [[i8; 4 * PANEL]; SPAN / 4],
    /// `[16 columns][row][2]`: each scale twice.
    pub(super) scales: [[i16; 2 * PANEL]; SPAN / Q4_COLUMNS],
    /// What to take off for activations that are raised by 128: for each row, minus 128 times the sum of the weights.
    pub(super) offset: [i32; PANEL],
}

#[target_feature(enable = "avx2,fma,f16c")]
fn q4_tiles(panel: &[u8], input: &Input, tiles: Range<usize>, totals: &mut Totals) {
    let mut wide = Q4Span {
        codes: [[0; 4 * PANEL]; SPAN / 4],
        scales: [[0; 2 * PANEL]; SPAN / Q4_COLUMNS],
        offset: [0; PANEL],
    };
    for span in 0..input.spans() {
        q4_widen(q4_span(panel, span), &mut wide);
        for tile in tiles.clone() {
            let totals = &mut totals[(tile - tiles.start) * TOKENS..];
            let (start, columns) = input.integers(span, tile);
            let tokens = input.tokens(tile);
            let x = &input.bytes[start..start + columns * tokens];
            let scales = &input.byte_scales[span * input.n + tile * TOKENS..];
            match tokens {
                TOKENS => whole_tiles::q4(&wide, x, scales, totals),
                _ => {
                    by_tokens!(tokens up to PART, T => q4_tile::<T>(&wide, x, scales, totals))
                }
            }
        }
    }
    scale_rows(q4_row_scales(panel), totals);
}

/// Widens a span.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_widen(groups: &[[u8; Q4_GROUP]], wide: &mut Q4Span) {
    let (table, places) = (table(&CODES), q4_places());
    let raised = _mm256_set1_epi8(128_u8 as i8);
    let mut offsets = [_mm256_setzero_si256(); 2];
    let parts =
        wide.codes.as_chunks_mut::<16>().0.iter_mut().zip(wide.scales.as_chunks_mut::<4>().0);
    for (group, (codes, scales)) in groups.iter().zip(parts) {
        for (half, offset) in offsets.iter_mut().enumerate() {
            for i in 0..2 {
                let two = q4_two_scales(group, i * 2 * PANEL + 16 * half);
                store(_mm256_shuffle_epi8(two, places[0]), &mut scales[2 * i], 16 * half);
                store(_mm256_shuffle_epi8(two, places[1]), &mut scales[2 * i + 1], 16 * half);
            }
            for (i, codes) in codes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let two = q4_codes(load(group, 4 * PANEL + i * 4 * PANEL + 32 * half), table);
                store(two[0], &mut codes[0], 32 * half);
                store(two[1], &mut codes[1], 32 * half);
                let products = _mm256_add_epi16(
                    _mm256_maddubs_epi16(raised, two[0]),
                    _mm256_maddubs_epi16(raised, two[1]),
                );
                let scale = load(&scales[i / 2], 16 * half);
                *offset = _mm256_sub_epi32(*offset, _mm256_madd_epi16(products, scale));
            }
        }
    }
    store(offsets[0], &mut wide.offset, 0);
    store(offsets[1], &mut wide.offset, 8);
}

/// `T` tokens of a tile times one span, 8 rows at a time: both halves' sums would not fit into the registers.
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_tile<const T: usize>(wide: &Q4Span, x: &[u8], scales: &[f32], totals: &mut Totals) {
    let (x, _) = x.as_chunks::<4>().0.as_chunks::<T>();
    for half in 0..2 {
        let mut sums = [load(&wide.offset, 8 * half); T];
        let groups = x.as_chunks::<4>().0.iter().zip(wide.codes.as_chunks::<4>().0);
        for ((x, codes), w_scales) in groups.zip(&wide.scales) {
            let w_scale = load(w_scales, 16 * half);
            for (x, codes) in x.as_chunks::<2>().0.iter().zip(codes.as_chunks::<2>().0) {
                let codes = [load(&codes[0], 32 * half), load(&codes[1], 32 * half)];
                for (t, sum) in sums.iter_mut().enumerate() {
                    let products = _mm256_add_epi16(
                        _mm256_maddubs_epi16(spread(&x[0][t]), codes[0]),
                        _mm256_maddubs_epi16(spread(&x[1][t]), codes[1]),
                    );
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(products, w_scale));
                }
            }
        }
        // As in `add_tile`.
        let (scales, totals) = (&scales[..T], &mut totals[..T]);
        for t in 0..T {
            add_scaled(_mm256_cvtepi32_ps(sums[t]), scales[t], &mut totals[t], 8 * half);
        }
    }
}
