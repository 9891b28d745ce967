//! q8 and q4 with AVX-512 VNNI. All sixteen rows of a panel stand in one vector, and one instruction multiplies and adds up:
//! `vpdpwssd` 32 products of 16 bits, `vpdpbusd` 64 of 8 bits. The sums are exact, and the same as those of
//! [`super::integers`]: both instruction sets give the same bits.
//!
//! As there, a single token's q4 codes are unsigned (plus 32) and its activations signed; for many tokens it is the other way
//! round (plus 128). What the first adds is taken off where the sum of 16 columns starts, so it costs nothing.
//!
//! The sums of 16 columns of q4 have 18 bits, too many for the multiply-adds of 16 bits, so the group scale enters with
//! `vpmulld`: 5 instructions on the multipliers for 256 products, where AVX2 needs 12 of half the width.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::wildcard_imports, reason = "the names of the intrinsics say where they come from")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx512::Avx512;
use super::input::{Input, SPAN, TILE, by_tokens};
use super::linear::Totals;
use super::quantized::{CODES, Q4_COLUMNS, Q8_COLUMNS, q4_span, q8_span, scale_rows};
use crate::packed::{COLUMNS, PANEL, Q4_GROUP, Q8_GROUP};

/// The dot products of q8 panels with the tokens of some tiles, added to `totals`.
pub(crate) fn q8<const P: usize>(
    _: Avx512,
    panels: [&[u8]; P],
    input: &Input,
    tiles: &Range<usize>,
    totals: [&mut Totals; P],
) {
    if input.n == 1 {
        // SAFETY: an `Avx512` exists only where the CPU has the instructions.
        return unsafe { q8_single(panels, input, totals.map(|totals| &mut totals[0])) };
    }
    for (panel, totals) in panels.into_iter().zip(totals) {
        // SAFETY: as above.
        unsafe { q8_tiles(panel, input, tiles.clone(), totals) };
    }
}

/// The dot products of q4 panels with the tokens of some tiles; `totals` are zeros.
pub(crate) fn q4<const P: usize>(
    _: Avx512,
    panels: [&[u8]; P],
    input: &Input,
    tiles: &Range<usize>,
    mut totals: [&mut Totals; P],
) {
    let tokens = input.n.min(tiles.end * TILE) - tiles.start * TILE;
    if input.n == 1 {
        let totals = totals.each_mut().map(|totals| &mut totals[0]);
        // SAFETY: an `Avx512` exists only where the CPU has the instructions.
        unsafe { q4_single(panels, input, totals) };
    } else {
        for (panel, totals) in panels.into_iter().zip(&mut totals) {
            // SAFETY: as above.
            unsafe { q4_tiles(panel, input, tiles.clone(), totals) };
        }
    }
    for (panel, totals) in panels.into_iter().zip(totals) {
        scale_rows(panel, &mut totals[..tokens]);
    }
}

// ---------------------------------------------------------------------------------------------- loads

/// 64 bytes from place `at` of `from`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn load<T: Copy>(from: &[T], at: usize) -> __m512i {
    let from = &from[at..at + 64 / size_of::<T>()];
    // SAFETY: the slice is 64 bytes long.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

/// 4 bytes in each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn spread<T: Copy, const N: usize>(from: &[T; N]) -> __m512i {
    const { assert!(N * size_of::<T>() == 4) };
    // SAFETY: four bytes, all of which are part of a number without padding.
    _mm512_set1_epi32(unsafe { from.as_ptr().cast::<i32>().read_unaligned() })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn store<T: Copy>(v: __m512i, to: &mut [T], at: usize) {
    let to = &mut to[at..at + 64 / size_of::<T>()];
    // SAFETY: the slice is 64 bytes long, and any bits are integers.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), v) }
}

/// 16 scales of a q8 group, from place `at`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn load_f16(from: &[u8], at: usize) -> __m512 {
    let from = &from[at..at + 32];
    // SAFETY: the slice is 32 bytes long.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.as_ptr().cast()) })
}

/// `total + sum * scale` for each row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_scaled(sum: __m512, scale: f32, totals: &mut [f32; PANEL]) {
    // SAFETY: the array is 64 bytes long.
    unsafe {
        let total = _mm512_loadu_ps(totals.as_ptr());
        let total = _mm512_fmadd_ps(sum, _mm512_set1_ps(scale), total);
        _mm512_storeu_ps(totals.as_mut_ptr(), total);
    }
}

// ---------------------------------------------------------------------------------------------- q8

/// The values of columns 0 1 and of columns 2 3, for 16 rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q8_pairs(values: __m512i) -> [__m512i; 2] {
    [_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(values)), _mm512_srai_epi16::<8>(values)]
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q8_single<const P: usize>(panels: [&[u8]; P], input: &Input, totals: [&mut [f32; PANEL]; P]) {
    let mut totals = totals;
    for span in 0..input.spans() {
        let (start, columns) = input.integers(span, 0);
        let (x, _) = input.words[start..start + columns].as_chunks::<COLUMNS>();
        let w = panels.map(|panel| &q8_span(panel, span)[..x.len()]);
        let mut sums = [_mm512_setzero_ps(); P];
        for (i, x) in x.iter().enumerate() {
            for p in 0..P {
                sums[p] = q8_single_group(&w[p][i], x, sums[p]);
            }
        }
        for (sum, totals) in sums.into_iter().zip(&mut totals) {
            add_scaled(sum, input.word_scales[span], totals);
        }
    }
}

/// `sum` and the products of 64 columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q8_single_group(group: &[u8; Q8_GROUP], x: &[i16; COLUMNS], mut sum: __m512) -> __m512 {
    let (x, _) = x.as_chunks::<2>().0.as_chunks::<{ Q8_COLUMNS / 2 }>();
    for (half, x) in x.iter().enumerate() {
        let mut products = [_mm512_setzero_si512(); 2];
        for (step, x) in x.as_chunks::<2>().0.iter().enumerate() {
            let at = 4 * PANEL + half * Q8_COLUMNS * PANEL + step * 4 * PANEL;
            let w = q8_pairs(load(group, at));
            products[0] = _mm512_dpwssd_epi32(products[0], w[0], spread(&x[0]));
            products[1] = _mm512_dpwssd_epi32(products[1], w[1], spread(&x[1]));
        }
        let products = _mm512_cvtepi32_ps(_mm512_add_epi32(products[0], products[1]));
        sum = _mm512_fmadd_ps(products, load_f16(group, half * 2 * PANEL), sum);
    }
    sum
}

/// A span of a q8 panel, widened to 16 bits; aligned, or all loads would touch two cache lines.
#[repr(align(64))]
struct Q8Span {
    /// `[pair of columns][row][2]`
    words: [[i16; 2 * PANEL]; SPAN / 2],
    /// `[32 columns][row]`
    scales: [[f32; PANEL]; SPAN / Q8_COLUMNS],
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q8_tiles(panel: &[u8], input: &Input, tiles: Range<usize>, totals: &mut Totals) {
    let mut wide =
        Q8Span { words: [[0; 2 * PANEL]; SPAN / 2], scales: [[0.0; PANEL]; SPAN / Q8_COLUMNS] };
    for span in 0..input.spans() {
        for (i, group) in q8_span(panel, span).iter().enumerate() {
            q8_widen(group, i, &mut wide);
        }
        for tile in tiles.clone() {
            let totals = &mut totals[(tile - tiles.start) * TILE..];
            let (start, columns) = input.integers(span, tile);
            let tokens = input.tokens(tile);
            let x = &input.words[start..start + columns * tokens];
            let scales = &input.word_scales[span * input.n + tile * TILE..];
            by_tokens!(tokens, T => q8_tile::<T>(&wide, x, scales, totals));
        }
    }
}

/// Widens 64 columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q8_widen(group: &[u8; Q8_GROUP], index: usize, wide: &mut Q8Span) {
    let words = &mut wide.words[index * COLUMNS / 2..][..COLUMNS / 2];
    for (step, words) in words.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let pairs = q8_pairs(load(group, 4 * PANEL + step * 4 * PANEL));
        store(pairs[0], &mut words[0], 0);
        store(pairs[1], &mut words[1], 0);
    }
    for (i, scales) in wide.scales[2 * index..][..2].iter_mut().enumerate() {
        store(_mm512_castps_si512(load_f16(group, i * 2 * PANEL)), scales, 0);
    }
}

/// `T` tokens of a tile times one span.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q8_tile<const T: usize>(wide: &Q8Span, x: &[i16], scales: &[f32], totals: &mut Totals) {
    const PAIRS: usize = Q8_COLUMNS / 2;
    let (x, _) = x.as_chunks::<2>().0.as_chunks::<T>();
    let mut sums = [_mm512_setzero_ps(); T];
    let groups = x.as_chunks::<PAIRS>().0.iter().zip(wide.words.as_chunks::<PAIRS>().0);
    for ((x, words), w_scales) in groups.zip(&wide.scales) {
        let mut products = [_mm512_setzero_si512(); T];
        for (x, words) in x.iter().zip(words) {
            let w = load(words, 0);
            for (products, x) in products.iter_mut().zip(x) {
                *products = _mm512_dpwssd_epi32(*products, w, spread(x));
            }
        }
        let w_scales = _mm512_castsi512_ps(load(w_scales, 0));
        for (sum, products) in sums.iter_mut().zip(products) {
            *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), w_scales, *sum);
        }
    }
    for ((sum, scale), totals) in sums.into_iter().zip(scales).zip(totals) {
        add_scaled(sum, *scale, totals);
    }
}

// ---------------------------------------------------------------------------------------------- q4

/// A table of 16 bytes for `vpshufb`, in all four quarters.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn table(plus: i8) -> __m512i {
    let codes = CODES.map(|code| code + plus);
    // SAFETY: the array is 16 bytes long.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) })
}

/// The codes of the first and of the last 4 columns of 8, as values of the table.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q4_codes(codes: __m512i, table: __m512i) -> [__m512i; 2] {
    let low = _mm512_set1_epi8(15);
    let high = _mm512_and_si512(_mm512_srli_epi16::<4>(codes), low);
    [_mm512_shuffle_epi8(table, _mm512_and_si512(codes, low)), _mm512_shuffle_epi8(table, high)]
}

/// The scales of both groups of 32 columns, from place `at`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q4_scales(group: &[u8; Q4_GROUP], at: usize) -> [__m512i; 2] {
    let from = &group[at..at + 32];
    // SAFETY: the slice is 32 bytes long.
    let both = _mm512_cvtepi8_epi16(unsafe { _mm256_loadu_si256(from.as_ptr().cast()) });
    [_mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(both)), _mm512_srai_epi32::<16>(both)]
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q4_single<const P: usize>(panels: [&[u8]; P], input: &Input, totals: [&mut [f32; PANEL]; P]) {
    let mut totals = totals;
    let table = table(32);
    for span in 0..input.spans() {
        let (start, columns) = input.integers(span, 0);
        let (x, _) = input.bytes[start..start + columns].as_chunks::<COLUMNS>();
        let offsets = q4_offsets(&input.sums[start / 16..][..4 * x.len()]);
        let w = panels.map(|panel| &q4_span(panel, span)[..x.len()]);
        let mut sums = [_mm512_setzero_si512(); P];
        for (i, (x, offsets)) in x.iter().zip(offsets.as_chunks::<4>().0).enumerate() {
            for p in 0..P {
                sums[p] = q4_single_group(&w[p][i], x, offsets, table, sums[p]);
            }
        }
        for (sum, totals) in sums.into_iter().zip(&mut totals) {
            add_scaled(_mm512_cvtepi32_ps(sum), input.byte_scales[span], totals);
        }
    }
}

/// What the sums of each 16 columns start from: minus what the codes were raised by, times the sum of the activations.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q4_offsets(x_sums: &[i16]) -> [i32; SPAN / Q4_COLUMNS] {
    let mut offsets = [0; SPAN / Q4_COLUMNS];
    for (offset, x_sum) in offsets.iter_mut().zip(x_sums) {
        *offset = -32 * i32::from(*x_sum);
    }
    offsets
}

/// `sum` and the products of 64 columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q4_single_group(
    group: &[u8; Q4_GROUP],
    x: &[u8; COLUMNS],
    offsets: &[i32; 4],
    table: __m512i,
    mut sum: __m512i,
) -> __m512i {
    let (x, _) = x.as_chunks::<4>().0.as_chunks::<4>();
    for (i, (x, offset)) in x.iter().zip(offsets).enumerate() {
        let scale = q4_scales(group, i / 2 * 2 * PANEL)[i % 2];
        let mut products = _mm512_set1_epi32(*offset);
        for (j, x) in x.as_chunks::<2>().0.iter().enumerate() {
            let at = 4 * PANEL + i * 8 * PANEL + j * 4 * PANEL;
            let codes = q4_codes(load(group, at), table);
            products = _mm512_dpbusd_epi32(products, codes[0], spread(&x[0]));
            products = _mm512_dpbusd_epi32(products, codes[1], spread(&x[1]));
        }
        sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(products, scale));
    }
    sum
}

/// A span of a q4 panel, as signed bytes; aligned, or all loads would touch two cache lines.
#[repr(align(64))]
struct Q4Span {
    /// `[4 columns][row][4]`
    codes: [[i8; 4 * PANEL]; SPAN / 4],
    /// `[16 columns][row]`
    scales: [[i32; PANEL]; SPAN / Q4_COLUMNS],
    /// What to take off for activations that are raised by 128: for each row, minus 128 times the sum of the weights.
    offset: [i32; PANEL],
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q4_tiles(panel: &[u8], input: &Input, tiles: Range<usize>, totals: &mut Totals) {
    let mut wide = Q4Span {
        codes: [[0; 4 * PANEL]; SPAN / 4],
        scales: [[0; PANEL]; SPAN / Q4_COLUMNS],
        offset: [0; PANEL],
    };
    for span in 0..input.spans() {
        q4_widen(q4_span(panel, span), &mut wide);
        for tile in tiles.clone() {
            let totals = &mut totals[(tile - tiles.start) * TILE..];
            let (start, columns) = input.integers(span, tile);
            let tokens = input.tokens(tile);
            let x = &input.bytes[start..start + columns * tokens];
            let scales = &input.byte_scales[span * input.n + tile * TILE..];
            by_tokens!(tokens, T => q4_tile::<T>(&wide, x, scales, totals));
        }
    }
}

/// Widens a span.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q4_widen(groups: &[[u8; Q4_GROUP]], wide: &mut Q4Span) {
    let table = table(0);
    let raised = _mm512_set1_epi8(128_u8 as i8);
    let mut offset = _mm512_setzero_si512();
    let places =
        wide.codes.as_chunks_mut::<16>().0.iter_mut().zip(wide.scales.as_chunks_mut::<4>().0);
    for (group, (codes, scales)) in groups.iter().zip(places) {
        for (i, (codes, scales)) in codes.as_chunks_mut::<4>().0.iter_mut().zip(scales).enumerate()
        {
            let scale = q4_scales(group, i / 2 * 2 * PANEL)[i % 2];
            store(scale, scales, 0);
            let mut products = _mm512_setzero_si512();
            for (j, codes) in codes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let at = 4 * PANEL + i * 8 * PANEL + j * 4 * PANEL;
                for (four, codes) in q4_codes(load(group, at), table).into_iter().zip(codes) {
                    store(four, codes, 0);
                    products = _mm512_dpbusd_epi32(products, raised, four);
                }
            }
            offset = _mm512_sub_epi32(offset, _mm512_mullo_epi32(products, scale));
        }
    }
    store(offset, &mut wide.offset, 0);
}

/// `T` tokens of a tile times one span.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q4_tile<const T: usize>(wide: &Q4Span, x: &[u8], scales: &[f32], totals: &mut Totals) {
    let (x, _) = x.as_chunks::<4>().0.as_chunks::<T>();
    let mut sums = [load(&wide.offset, 0); T];
    let groups = x.as_chunks::<4>().0.iter().zip(wide.codes.as_chunks::<4>().0);
    for ((x, codes), w_scale) in groups.zip(&wide.scales) {
        let w_scale = load(w_scale, 0);
        let codes =
            [load(&codes[0], 0), load(&codes[1], 0), load(&codes[2], 0), load(&codes[3], 0)];
        for (t, sum) in sums.iter_mut().enumerate() {
            let mut products = _mm512_setzero_si512();
            for (x, codes) in x.iter().zip(codes) {
                products = _mm512_dpbusd_epi32(products, spread(&x[t]), codes);
            }
            *sum = _mm512_add_epi32(*sum, _mm512_mullo_epi32(products, w_scale));
        }
    }
    for ((sum, scale), totals) in sums.into_iter().zip(scales).zip(totals) {
        add_scaled(_mm512_cvtepi32_ps(sum), *scale, totals);
    }
}
