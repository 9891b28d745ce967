//! bf16 with AVX-512 BF16: `vdpbf16ps` multiplies 32 pairs of bf16 and adds them up in f32, twice the products of a
//! multiply-add in f32. The activations are rounded to bf16 for it, as in transformers on such models: their own layers hand on nothing finer.
//!
//! Even and odd pairs of columns have sums of their own, which are added up every 32 columns: so does the instruction of AMX, and
//! [`super::linear_amx`] gives the same bits.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::wildcard_imports, reason = "the names of the intrinsics say where they come from")]

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::ahead;
use super::avx512::Bf16Products;
use super::input::{Input, SPAN, by_tokens};
use super::linear::Totals;
use super::rows::Rows;
use crate::packed::PANEL;

/// Tokens of a tile.
const TOKENS: usize = super::avx512::Avx512::TOKENS;

/// Columns whose sum is added to the total at once.
const SUMMED: usize = super::input::TILE_LINE / 2;

/// The weights of a column.
type Column = [u8; 2 * PANEL];

/// The dot products of bf16 panels with the tokens of some tiles; `totals` are zeros.
pub(crate) fn bf16<const P: usize>(
    _: Bf16Products,
    panels: [&[u8]; P],
    input: &Input,
    tiles: &Range<usize>,
    totals: [&mut Totals; P],
) {
    if input.n == 1 {
        // SAFETY: a `Bf16Products` exists only where the CPU has the instructions.
        return unsafe { single(panels, input, totals) };
    }
    for (panel, totals) in panels.into_iter().zip(totals) {
        // SAFETY: as above.
        unsafe { many(panel, input, tiles.clone(), totals) };
    }
}

/// The columns of a span.
fn columns<'a>(panel: &'a [u8], input: &Input, span: usize) -> &'a [Column] {
    &panel.as_chunks().0[span * SPAN..][..input.columns(span)]
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn single<const P: usize>(panels: [&[u8]; P], input: &Input, mut totals: [&mut Totals; P]) {
    for span in 0..input.spans() {
        let w = panels.map(|panel| columns(panel, input, span));
        add_span::<P, 1>(w, input.halves(span, 0), input.ahead, &mut totals);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn many(panel: &[u8], input: &Input, tiles: Range<usize>, totals: &mut Totals) {
    for span in 0..input.spans() {
        let w = columns(panel, input, span);
        for tile in tiles.clone() {
            let x = input.halves(span, tile);
            let totals = &mut totals[(tile - tiles.start) * TOKENS..];
            let tokens = input.tokens(tile);
            by_tokens!(tokens up to TOKENS, T => add_span::<1, T>([w], x, false, &mut [totals]));
        }
    }
}

/// Adds the products of a span to the totals of `P` panels and the `T` tokens of a tile; `x` is `[pairs of columns, T]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn add_span<const P: usize, const T: usize>(
    w: [&[Column]; P],
    x: &[[bf16; 2]],
    ahead: bool,
    totals: &mut [&mut Totals; P],
) {
    let mut sums = [[_mm512_setzero_ps(); T]; P];
    for (sums, totals) in sums.iter_mut().zip(&mut *totals) {
        for (sum, total) in sums.iter_mut().zip(&**totals) {
            // SAFETY: the array is 64 bytes long.
            *sum = unsafe { _mm512_loadu_ps(total.as_ptr()) };
        }
    }
    let (x, _) = x.as_chunks::<T>();
    for (i, x) in x.chunks(SUMMED / 2).enumerate() {
        let mut columns = [&[][..]; P];
        for (to, w) in columns.iter_mut().zip(w) {
            *to = &w[i * SUMMED..w.len().min((i + 1) * SUMMED)];
        }
        add_columns(columns, x, ahead, &mut sums);
    }
    for (sums, totals) in sums.iter().zip(totals) {
        for (sum, total) in sums.iter().zip(&mut **totals) {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(total.as_mut_ptr(), *sum) };
        }
    }
}

/// Adds the products of at most [`SUMMED`] columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn add_columns<const P: usize, const T: usize>(
    w: [&[Column]; P],
    x: &[[[bf16; 2]; T]],
    ahead: bool,
    sums: &mut [[__m512; T]; P],
) {
    let mut even = [[_mm512_setzero_ps(); T]; P];
    let mut odd = even;
    let fours = w[0].len() / 4;
    for (i, [first, second]) in x[..2 * fours].as_chunks::<2>().0.iter().enumerate() {
        for p in 0..P {
            let w: &[Column; 4] = w[p][4 * i..].first_chunk().expect("four columns");
            if ahead {
                ahead::ask(w);
            }
            multiply(load(&[w[0], w[1]]), first, &mut even[p]);
            multiply(load(&[w[2], w[3]]), second, &mut odd[p]);
        }
    }
    // What is left, at most three columns; the partner of an odd one is zero on both sides.
    for p in 0..P {
        let column = |i: usize| w[p].get(4 * fours + i).copied().unwrap_or_default();
        if let Some(x) = x.get(2 * fours) {
            multiply(load(&[column(0), column(1)]), x, &mut even[p]);
        }
        if let Some(x) = x.get(2 * fours + 1) {
            multiply(load(&[column(2), column(3)]), x, &mut odd[p]);
        }
    }
    let halves = even.as_flattened().iter().zip(odd.as_flattened());
    for (sum, (even, odd)) in sums.as_flattened_mut().iter_mut().zip(halves) {
        *sum = _mm512_add_ps(*sum, _mm512_add_ps(*even, *odd));
    }
}

/// Adds the products of a pair of columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn multiply<const T: usize>(w: __m512bh, x: &[[bf16; 2]; T], sums: &mut [__m512; T]) {
    for (sum, x) in sums.iter_mut().zip(x) {
        let pair = u32::from(x[0].to_bits()) | u32::from(x[1].to_bits()) << 16;
        // SAFETY: both are 64 bytes, any bits of which are values.
        let x = unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair as i32)) };
        *sum = _mm512_dpbf16_ps(*sum, w, x);
    }
}

/// Two columns, those of a row side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn load(two: &[Column; 2]) -> __m512bh {
    // In a column, row `i` stands before row `i + 8`.
    const ORDER: [u16; 2 * PANEL] = {
        let mut order = [0; 2 * PANEL];
        let mut row = 0;
        while row < PANEL {
            let place = (row % 8 * 2 + row / 8) as u16;
            order[2 * row] = place;
            order[2 * row + 1] = place + PANEL as u16;
            row += 1;
        }
        order
    };
    // SAFETY: both arrays are 64 bytes long, and so are the vectors, any bits of which are values.
    unsafe {
        let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
        let two = _mm512_loadu_si512(two.as_ptr().cast());
        std::mem::transmute::<__m512i, __m512bh>(_mm512_permutexvar_epi16(order, two))
    }
}
