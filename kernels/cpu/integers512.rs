//! q8 and q4 with AVX-512 VNNI. All sixteen rows of a panel stand in one vector, and one instruction, `vpdpbusd`, multiplies
//! and adds up 64 products of 8 bits. The sums are exact; those of q4 are the same as in [`super::integers`], so both
//! instruction sets give the same bits. q8 has 16-bit activations there and 8-bit ones here, where 16 bits would halve the speed.
//!
//! Weights are unpacked in registers, for many tokens too: the shifts and shuffles run beside the multipliers, and
//! a widened copy would have to be stored first, at half a vector in a cycle.
//!
//! One side of `vpdpbusd` must be unsigned. These are the weights (q8 plus 128, codes plus 32); what that adds is taken off where
//! the sum of some columns starts (see [`Input::offsets`]), so it costs nothing. A sum of 32 products of q8 becomes a float, which
//! the scales of both sides enter. A sum of 16 products of q4 has 18 bits, too many for multiply-adds of 16 bits, so the group
//! scale enters with `vpmulld`: 5 instructions on the multipliers for 256 products, where AVX2 needs
//! 12 of half the width. The tokens take turns, or each would wait for its own last product.
//!
//! Measured on one Zen 4 core, data in the cache: 48 tokens of q8 324 GOP/s, of q4 319 GOP/s, where AVX2 makes 146 and 216 and
//! multiply-adds in f32 118. Tiles of 8 tokens are as fast as tiles of 6, but for 8 tokens, and 12 are no better.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::wildcard_imports, reason = "the names of the intrinsics say where they come from")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::ahead;
use super::avx512::Avx512;
use super::input::{Input, by_tokens};
use super::linear::Totals;
use super::quantized::{
    Q4_COLUMNS, Q8_COLUMNS, Q8_RAISED, RAISED_CODES, groups, q4_row_scales, q4_span, q8_span,
    scale_rows,
};
use super::rows::Rows;
use crate::packed::{COLUMNS, PANEL, Q4_GROUP, Q8_GROUP};

/// Tokens of a tile.
const TOKENS: usize = Avx512::TOKENS;

/// The dot products of q8 panels with the tokens of some tiles; `totals` are zeros.
pub(crate) fn q8<const P: usize>(
    _: Avx512,
    panels: [&[u8]; P],
    input: &Input,
    tiles: &Range<usize>,
    totals: [&mut Totals; P],
) {
    if input.n == 1 {
        // SAFETY: an `Avx512` exists only where the CPU has the instructions.
        return unsafe { q8_single(panels, input, totals) };
    }
    for (panel, totals) in panels.into_iter().zip(totals) {
        // SAFETY: as above.
        unsafe { q8_tiles(panel, input, tiles.clone(), totals) };
    }
}

/// The dot products of q4 panels with the tokens of some tiles; `totals` are zeros.
pub(crate) fn q4<const P: usize>(
    avx512: Avx512,
    panels: [&[u8]; P],
    input: &Input,
    tiles: &Range<usize>,
    totals: [&mut Totals; P],
) {
    if input.n == 1 {
        // SAFETY: an `Avx512` exists only where the CPU has the instructions, and it is asked whether that has VBMI.
        return unsafe {
            match avx512.has_vbmi() {
                true => q4_single::<P, true>(panels, input, totals),
                false => q4_single::<P, false>(panels, input, totals),
            }
        };
    }
    for (panel, totals) in panels.into_iter().zip(totals) {
        // SAFETY: as above.
        unsafe { q4_tiles(panel, input, tiles.clone(), totals) };
    }
}

// ---------------------------------------------------------------------------------------------- loads

/// 64 bytes from place `at` of `from`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn load(from: &[u8], at: usize) -> __m512i {
    let from = &from[at..at + 64];
    // SAFETY: the slice is 64 bytes long.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

/// 16 scales of a q8 group, from place `at`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn load_f16(from: &[u8], at: usize) -> __m512 {
    let from = &from[at..at + 32];
    // SAFETY: the slice is 32 bytes long.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.as_ptr().cast()) })
}

/// `sum` and the products of the 4 bytes in each lane of `w`, which are unsigned, with those of `x`, which are not.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_products(sum: __m512i, w: __m512i, x: [u8; 4]) -> __m512i {
    _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(i32::from_ne_bytes(x)))
}

/// `total + sum * scale` for each token and row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_scaled<const T: usize>(sums: [__m512; T], scales: &[f32], totals: &mut Totals) {
    let (scales, totals) = (&scales[..T], &mut totals[..T]);
    for t in 0..T {
        // SAFETY: the array is 64 bytes long.
        unsafe {
            let total = _mm512_loadu_ps(totals[t].as_ptr());
            let total = _mm512_fmadd_ps(sums[t], _mm512_set1_ps(scales[t]), total);
            _mm512_storeu_ps(totals[t].as_mut_ptr(), total);
        }
    }
}

// ---------------------------------------------------------------------------------------------- q8

/// The activations of a tile in a span, for q8.
struct Q8Input<'a> {
    /// `[4 columns][token][4]`
    bytes: &'a [u8],
    /// `[32 columns][token]`
    scales: &'a [f32],
    /// `[32 columns][token]`
    offsets: &'a [i32],
    ahead: bool,
}

impl<'a> Q8Input<'a> {
    #[inline(always)]
    fn new(input: &'a Input, span: usize, tile: usize) -> Self {
        let (start, columns) = input.integers(span, tile);
        let len = columns * input.tokens(tile);
        let groups = start / Q8_COLUMNS..(start + len) / Q8_COLUMNS;
        Self {
            bytes: &input.fine_bytes[start..start + len],
            scales: &input.fine_scales[groups.clone()],
            offsets: &input.fine_offsets[groups],
            ahead: input.ahead,
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q8_single<const P: usize>(panels: [&[u8]; P], input: &Input, mut totals: [&mut Totals; P]) {
    for span in 0..input.spans() {
        let mut w = [&[][..]; P];
        w.iter_mut().zip(panels).for_each(|(w, panel)| *w = q8_span(panel, span));
        let sums = q8_dot::<P, 1>(w, &Q8Input::new(input, span, 0));
        for (sums, totals) in sums.into_iter().zip(&mut totals) {
            add_scaled(sums, &[1.0], totals);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q8_tiles(panel: &[u8], input: &Input, tiles: Range<usize>, totals: &mut Totals) {
    for span in 0..input.spans() {
        let w = q8_span(panel, span);
        for tile in tiles.clone() {
            let tokens = input.tokens(tile);
            let x = Q8Input::new(input, span, tile);
            let totals = &mut totals[(tile - tiles.start) * TOKENS..];
            by_tokens!(tokens up to TOKENS, T => {
                let [sums] = q8_dot::<1, T>([w], &x);
                add_scaled(sums, &[1.0; T], totals);
            });
        }
    }
}

/// The sums of a span for `P` panels and the `T` tokens of a tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q8_dot<const P: usize, const T: usize>(
    w: [&[[u8; Q8_GROUP]]; P],
    x: &Q8Input<'_>,
) -> [[__m512; T]; P] {
    let (bytes, _) = x.bytes.as_chunks::<4>().0.as_chunks::<T>();
    let (bytes, _) = bytes.as_chunks::<{ Q8_COLUMNS / 4 }>();
    let scales = x.scales.as_chunks::<T>().0.iter();
    let scales = scales.zip(x.offsets.as_chunks::<T>().0);
    let mut sums = [[_mm512_setzero_ps(); T]; P];
    for (i, (bytes, (scales, offsets))) in bytes.iter().zip(scales).enumerate() {
        q8_add(groups(w, i / 2), i % 2, bytes, scales, offsets, x.ahead, &mut sums);
    }
    sums
}

/// Adds the products of the first or second 32 columns of a group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q8_add<const P: usize, const T: usize>(
    groups: [&[u8; Q8_GROUP]; P],
    half: usize,
    x: &[[[u8; 4]; T]; Q8_COLUMNS / 4],
    x_scales: &[f32; T],
    offsets: &[i32; T],
    ahead: bool,
    sums: &mut [[__m512; T]; P],
) {
    let raised = _mm512_set1_epi8(Q8_RAISED as i8);
    for p in 0..P {
        let mut products = [_mm512_setzero_si512(); T];
        for (products, offset) in products.iter_mut().zip(offsets) {
            *products = _mm512_set1_epi32(*offset);
        }
        for (step, x) in x.iter().enumerate() {
            let at = 4 * PANEL + half * Q8_COLUMNS * PANEL + step * 4 * PANEL;
            if ahead {
                ahead::ask(&groups[p][at]);
            }
            // Adds 128.
            let w = _mm512_xor_si512(load(groups[p], at), raised);
            for (products, x) in products.iter_mut().zip(x) {
                *products = add_products(*products, w, *x);
            }
        }
        if ahead {
            ahead::ask(&groups[p][half * 2 * PANEL]);
        }
        let scales = load_f16(groups[p], half * 2 * PANEL);
        for ((sum, products), x_scale) in sums[p].iter_mut().zip(products).zip(x_scales) {
            *sum = q8_scaled(products, scales, *x_scale, *sum);
        }
    }
}

/// `sum` and the products of 32 columns, with the scales of both sides.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn q8_scaled(products: __m512i, scales: __m512, x_scale: f32, sum: __m512) -> __m512 {
    let products = _mm512_mul_ps(_mm512_cvtepi32_ps(products), _mm512_set1_ps(x_scale));
    _mm512_fmadd_ps(products, scales, sum)
}

// ---------------------------------------------------------------------------------------------- q4

/// # Safety
/// Where `VBMI` is set, the CPU has it.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn q4_single<const P: usize, const VBMI: bool>(
    panels: [&[u8]; P],
    input: &Input,
    mut totals: [&mut Totals; P],
) {
    for span in 0..input.spans() {
        let (start, columns) = input.integers(span, 0);
        let mut w = [&[][..]; P];
        w.iter_mut().zip(panels).for_each(|(w, panel)| *w = q4_span(panel, span));
        let offsets = &input.offsets[start / Q4_COLUMNS..][..columns / Q4_COLUMNS];
        let x = &input.bytes[start..start + columns];
        // SAFETY: as for this function.
        let sums = unsafe { q4_dot::<P, 1, VBMI>(w, x, offsets, input.ahead) };
        for (sums, totals) in sums.into_iter().zip(&mut totals) {
            add_scaled(sums, &input.byte_scales[span..], totals);
        }
    }
    for (panel, totals) in panels.into_iter().zip(totals) {
        scale_rows(q4_row_scales(panel), totals);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q4_tiles(panel: &[u8], input: &Input, tiles: Range<usize>, totals: &mut Totals) {
    for span in 0..input.spans() {
        let w = q4_span(panel, span);
        for tile in tiles.clone() {
            let (start, columns) = input.integers(span, tile);
            let tokens = input.tokens(tile);
            let x = &input.bytes[start..start + columns * tokens];
            let offsets = &input.offsets[start / Q4_COLUMNS..][..columns / Q4_COLUMNS * tokens];
            let scales = &input.byte_scales[span * input.n + tile * TOKENS..];
            let totals = &mut totals[(tile - tiles.start) * TOKENS..];
            by_tokens!(tokens up to TOKENS, T => {
                // SAFETY: without VBMI.
                let [sums] = unsafe { q4_dot::<1, T, false>([w], x, offsets, false) };
                add_scaled(sums, scales, totals);
            });
        }
    }
    scale_rows(q4_row_scales(panel), totals);
}

/// The sums of a span for `P` panels and the `T` tokens of a tile.
///
/// # Safety
/// As for [`q4_codes`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn q4_dot<const P: usize, const T: usize, const VBMI: bool>(
    w: [&[[u8; Q4_GROUP]]; P],
    x: &[u8],
    offsets: &[i32],
    ahead: bool,
) -> [[__m512; T]; P] {
    let (x, _) = x.as_chunks::<4>().0.as_chunks::<T>();
    let (x, _) = x.as_chunks::<{ COLUMNS / 4 }>();
    let (offsets, _) = offsets.as_chunks::<T>().0.as_chunks::<{ COLUMNS / Q4_COLUMNS }>();
    let table = table();
    let mut sums = [[_mm512_setzero_si512(); T]; P];
    for (i, (x, offsets)) in x.iter().zip(offsets).enumerate() {
        // SAFETY: as for this function.
        unsafe { q4_add::<P, T, VBMI>(groups(w, i), table, x, offsets, ahead, &mut sums) };
    }
    let mut floats = [[_mm512_setzero_ps(); T]; P];
    for (floats, sums) in floats.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
        *floats = _mm512_cvtepi32_ps(*sums);
    }
    floats
}

/// Adds the products of 64 columns.
///
/// # Safety
/// As for [`q4_codes`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn q4_add<const P: usize, const T: usize, const VBMI: bool>(
    groups: [&[u8; Q4_GROUP]; P],
    table: __m512i,
    x: &[[[u8; 4]; T]; COLUMNS / 4],
    offsets: &[[i32; T]; COLUMNS / Q4_COLUMNS],
    ahead: bool,
    sums: &mut [[__m512i; T]; P],
) {
    for (i, (x, offsets)) in x.as_chunks::<4>().0.iter().zip(offsets).enumerate() {
        for p in 0..P {
            let mut products = [_mm512_setzero_si512(); T];
            for (products, offset) in products.iter_mut().zip(offsets) {
                *products = _mm512_set1_epi32(*offset);
            }
            for (j, x) in x.as_chunks::<2>().0.iter().enumerate() {
                let at = 4 * PANEL + (2 * i + j) * 4 * PANEL;
                if ahead {
                    ahead::ask(&groups[p][at]);
                }
                let bytes = load(groups[p], at);
                // SAFETY: as for this function.
                let codes = unsafe { q4_codes::<VBMI>(bytes, table) };
                for (codes, x) in codes.into_iter().zip(x) {
                    for (products, x) in products.iter_mut().zip(x) {
                        *products = add_products(*products, codes, *x);
                    }
                }
            }
            if ahead && i == 0 {
                ahead::ask(&groups[p][0]);
            }
            let scales = q4_scales(groups[p], i);
            for (sum, products) in sums[p].iter_mut().zip(products) {
                *sum = _mm512_add_epi32(*sum, _mm512_mullo_epi32(products, scales));
            }
        }
    }
}

/// The codes (plus 32) of the first and of the last 4 columns of 8.
///
/// # Safety
/// Where `VBMI` is set, the CPU has it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn q4_codes<const VBMI: bool>(codes: __m512i, table: __m512i) -> [__m512i; 2] {
    let high = _mm512_srli_epi16::<4>(codes);
    if VBMI {
        // The table repeats itself every 16 bytes, so what stands above the four bits of a code does not matter.
        // SAFETY: as for this function.
        return unsafe { [permute(table, codes), permute(table, high)] };
    }
    let low = _mm512_set1_epi8(15);
    [
        _mm512_shuffle_epi8(table, _mm512_and_si512(codes, low)),
        _mm512_shuffle_epi8(table, _mm512_and_si512(high, low)),
    ]
}

/// The bytes of `table` at the lowest six bits of each byte of `places`.
///
/// # Safety
/// The CPU has VBMI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn permute(table: __m512i, places: __m512i) -> __m512i {
    let found;
    // The intrinsic would be a call, for nothing else here is compiled for VBMI.
    // SAFETY: the CPU has the instruction, and it touches nothing but registers.
    unsafe {
        std::arch::asm!(
            "vpermb {found}, {places}, {table}",
            found = lateout(zmm_reg) found,
            places = in(zmm_reg) places,
            table = in(zmm_reg) table,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    found
}

/// The table of the codes (plus 32), in all four quarters.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn table() -> __m512i {
    // SAFETY: the array is 16 bytes long.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(RAISED_CODES.as_ptr().cast()) })
}

/// The scales of 16 columns out of 64.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn q4_scales(group: &[u8; Q4_GROUP], index: usize) -> __m512i {
    let from = &group[index / 2 * 2 * PANEL..][..2 * PANEL];
    // SAFETY: the slice is 32 bytes long.
    let both = _mm512_cvtepi8_epi16(unsafe { _mm256_loadu_si256(from.as_ptr().cast()) });
    let high = if index.is_multiple_of(2) { _mm512_slli_epi32::<16>(both) } else { both };
    _mm512_srai_epi32::<16>(high)
}
