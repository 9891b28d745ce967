//! Linear layers with AMX, for prompts: see [`super::amx`].
//!
//! Tokens stand in the rows of one side, the rows of a panel in the columns of the other, so the sums come out as the other
//! kernels have them, `[token][row]`. The results have the bits of the AVX-512 kernels, which serve for a single token:
//!
//! - **bf16**: the four columns that those take together are the first and second columns of two pairs here.
//! - **q4**: `code × group scale` has 13 bits, so it is a byte times 128 and another byte; sums of integers over a span are exact,
//!   however they are made. Two products for each weight, and no multiplication for each group: as fast as bf16.
//! - **q8**: a sum of 32 products for each scale, which enters as there. A register holds 64 columns, so half of the
//!   weights beside each are zeros: what becomes of the sums takes longer than the products.
//!
//! Where the time goes: activations that come from the third-level cache are slow (10 bytes for each cycle, where 32 are
//! needed), hence the blocks of columns; sums that are stored and read again at once have to be waited for, hence `Pending`. Measured
//! for 256 tokens and 2048 × 2048, one core: bf16 1050, q4 1010, q8 600 GOP/s; AVX-512 80, 290 and 320.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::wildcard_imports, reason = "the names of the intrinsics say where they come from")]

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::ahead;
use super::amx::{
    HALVES, LINE, Pending, SIDE, Sums, Tiles, Weights, add_bf16, multiply_bytes, multiply_steps,
};
use super::input::{Input, SPAN, TILED_TOKENS};
use super::integers512::{load, load_f16, q4_codes, q4_scales, q8_scaled, table};
use super::linear::{GROUP, Totals};
use super::quantized::{Q4_RAISED, Q8_COLUMNS, q4_span, q8_span, scale_rows};
use crate::memory::{ALIGN, Aligned, Lines};
use crate::packed::{COLUMNS, Format, PANEL, Q4_GROUP, Q8_GROUP};

/// Bytes of activations that are multiplied with one panel after the other: they stay in the second-level cache.
const ACTIVATIONS: usize = 512 << 10;

/// What the kernels of a thread need for themselves.
struct Scratch {
    bf16: [[Weights; 2]; SPAN / HALVES],
    q4: [[Weights; 2]; SPAN / COLUMNS],
    /// In the first ones the second half, in the second ones the first half stays zero.
    q8: [[Weights; 2]; SPAN / COLUMNS],
    products: Aligned<[[Sums<i32>; 2]; SPAN / COLUMNS]>,
    /// Where what nobody wants is added.
    nobody: Aligned<[[f32; PANEL]; TILED_TOKENS]>,
}

impl Scratch {
    const fn new() -> Self {
        const ZERO: [Weights; 2] = [Aligned([[0; LINE]; SIDE]); 2];
        Self {
            bf16: [ZERO; SPAN / HALVES],
            q4: [ZERO; SPAN / COLUMNS],
            q8: [ZERO; SPAN / COLUMNS],
            products: Aligned([[[[0; SIDE]; SIDE]; 2]; SPAN / COLUMNS]),
            nobody: Aligned([[0.0; PANEL]; TILED_TOKENS]),
        }
    }
}

thread_local! {
    /// The sums of a group of panels, and what the kernels need.
    static SCRATCH: RefCell<(Lines<f32>, Scratch)> =
        const { RefCell::new((Lines::new(), Scratch::new())) };
}

/// What tells a panel: how it is packed, and its bytes.
type PanelOf<'a, 'w> = &'a dyn Fn(usize) -> (Format, &'w [u8]);

/// Computes the totals of `count` panels, at most [`GROUP`], for some tokens, and hands them to `finish`.
pub(crate) fn totals<'w>(
    tiles: &Tiles,
    input: &Input,
    tokens: Range<usize>,
    count: usize,
    weights: PanelOf<'_, 'w>,
    finish: &dyn Fn(Range<usize>, &mut [&mut Totals]),
) {
    SCRATCH.with_borrow_mut(|(sums, scratch)| {
        let len = tokens.len().next_multiple_of(TILED_TOKENS) * PANEL;
        sums.grow(count * len);
        let sums = &mut sums[..count * len];
        sums.fill(0.0);
        let mut sums = sums.chunks_exact_mut(len).map(|sums| sums.as_chunks_mut().0);
        let mut totals: [&mut Totals; GROUP] =
            std::array::from_fn(|_| sums.next().unwrap_or_default());
        let totals = &mut totals[..count];
        let group = Group { input, tokens: tokens.clone(), count, weights };
        group.add(tiles, scratch, totals);
        for (i, totals) in totals.iter_mut().enumerate() {
            if let (Format::Q4, panel) = weights(i) {
                scale_rows(panel, &mut totals[..tokens.len()]);
            }
        }
        finish(tokens, totals);
    });
}

/// Some panels and tokens.
struct Group<'a, 'w> {
    input: &'a Input,
    tokens: Range<usize>,
    count: usize,
    weights: PanelOf<'a, 'w>,
}

impl<'w> Group<'_, 'w> {
    /// Adds the products. The activations are read again for each panel, so as many columns are taken at a time as leave them in
    /// the cache.
    fn add(&self, tiles: &Tiles, scratch: &mut Scratch, totals: &mut [&mut Totals]) {
        let halves = (0..self.count).any(|i| self.is_bf16(i));
        let span_len = self.tokens.len() * SPAN * if halves { 2 } else { 1 };
        let spans = (ACTIVATIONS / span_len).max(1);
        let units = || {
            (0..self.input.spans()).step_by(spans).flat_map(|start| {
                let spans = start..self.input.spans().min(start + spans);
                self.firsts().flat_map(move |i| spans.clone().map(move |span| (i, span)))
            })
        };
        let nexts = units().skip(1).map(Some).chain([None]);
        for ((i, span), next) in units().zip(nexts) {
            let next = next.map_or([&[][..]; 2], |(i, span)| self.bytes(i, span));
            let (weights, tokens) = (self.bytes(i, span), self.tokens.clone());
            let unit = Unit { weights, span, tokens, next };
            let [first, rest @ ..] = &mut totals[i..] else { return };
            match (self.weights)(i).0 {
                Format::F32 | Format::F16 => unreachable!("there are no tiles of them"),
                Format::Bf16 => {
                    let second = rest.first_mut().map_or(&mut [][..], |second| second);
                    bf16(tiles, scratch, &unit, self.input, [first, second]);
                }
                Format::Q8 => q8(tiles, scratch, &unit, self.input, first),
                Format::Q4 => q4(tiles, scratch, &unit, self.input, first),
            }
        }
    }

    fn is_bf16(&self, i: usize) -> bool {
        i < self.count && (self.weights)(i).0 == Format::Bf16
    }

    /// How many panels are multiplied together, from `i` on: two of bf16 share what is read of the activations, as the two
    /// bytes of q4 do.
    fn together(&self, i: usize) -> usize {
        if self.is_bf16(i) && self.is_bf16(i + 1) { 2 } else { 1 }
    }

    /// The first of those that are multiplied together.
    fn firsts(&self) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(0), |i| Some(i + self.together(*i)))
            .take_while(|i| *i < self.count)
    }

    /// The weights of a unit.
    fn bytes(&self, i: usize, span: usize) -> [&'w [u8]; 2] {
        let bytes = |i| {
            let (format, panel) = (self.weights)(i);
            span_bytes(format, panel, self.input, span)
        };
        [bytes(i), if self.together(i) == 2 { bytes(i + 1) } else { &[] }]
    }
}

/// A span of some panels, and the tokens that meet it.
struct Unit<'a> {
    /// The packed weights of one or two panels, see [`span_bytes`]; those of a second one may be empty.
    weights: [&'a [u8]; 2],
    span: usize,
    tokens: Range<usize>,
    /// What is read next.
    next: [&'a [u8]; 2],
}

/// The bytes of a span of a panel; none where there is no such kernel.
fn span_bytes<'a>(format: Format, panel: &'a [u8], input: &Input, span: usize) -> &'a [u8] {
    match format {
        Format::F32 | Format::F16 => &[],
        Format::Bf16 => panel.as_chunks::<{ 2 * PANEL }>().0[span * SPAN..][..input.columns(span)]
            .as_flattened(),
        Format::Q8 => q8_span(panel, span).as_flattened(),
        Format::Q4 => q4_span(panel, span).as_flattened(),
    }
}

impl Unit<'_> {
    /// The pairs of tiles: their first tokens, and the places of these among the totals. What is read next is asked for
    /// meanwhile.
    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        let start = self.tokens.start;
        let count = self.tokens.len().div_ceil(TILED_TOKENS);
        let share = self.next.map(|next| next.len().div_ceil(count));
        (0..count).map(move |i| {
            for (next, share) in self.next.iter().zip(share) {
                for at in (i * share..next.len().min((i + 1) * share)).step_by(ALIGN) {
                    ahead::prefetch(next.as_ptr(), at);
                }
            }
            (start + i * TILED_TOKENS, i * TILED_TOKENS)
        })
    }
}

/// Adds the products of a unit in bf16 to the totals of its panels.
fn bf16(
    tiles: &Tiles,
    scratch: &mut Scratch,
    unit: &Unit<'_>,
    input: &Input,
    [first, second]: [&mut Totals; 2],
) {
    let w = &mut scratch.bf16[..input.columns(unit.span).div_ceil(HALVES)];
    for (p, weights) in unit.weights.into_iter().enumerate() {
        // SAFETY: where there are such tiles, there is AVX-512.
        unsafe { widen_bf16(weights.as_chunks().0, w, p) };
    }
    for (token, place) in unit.pairs() {
        let second = match unit.weights[1] {
            [] => two_tiles(&mut scratch.nobody.0, 0),
            [..] => two_tiles(second, place),
        };
        let x = input.tiles(input.halves.as_chunks().0, HALVES, unit.span, token);
        add_bf16(tiles, x, w, [two_tiles(first, place), second]);
    }
}

/// The sums of 32 tokens from `at` on.
fn two_tiles(totals: &mut Totals, at: usize) -> &mut [Sums<f32>; 2] {
    const { assert!(PANEL == SIDE) };
    let tiles = totals[at..].as_chunks_mut::<SIDE>().0;
    tiles.first_chunk_mut().expect("room for whole tiles")
}

/// The columns of a span, in the order of [`super::amx`]: of each four, the second and the last in a line, then the others.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn widen_bf16(columns: &[[u8; 2 * PANEL]], w: &mut [[Weights; 2]], p: usize) {
    let (steps, rest) = columns.as_chunks::<HALVES>();
    for (step, w) in steps.iter().zip(&mut *w) {
        widen_step(step, &mut w[p]);
    }
    if !rest.is_empty() {
        let mut last = [[0; 2 * PANEL]; HALVES];
        last[..rest.len()].copy_from_slice(rest);
        widen_step(&last, &mut w[steps.len()][p]);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn widen_step(columns: &[[u8; 2 * PANEL]; HALVES], w: &mut Weights) {
    let fours = columns.as_chunks::<4>().0;
    for (lines, four) in w.0.as_chunks_mut::<2>().0.iter_mut().zip(fours) {
        let (first, second) = four.split_at(2);
        // SAFETY: all are 64 bytes long.
        unsafe {
            // Rows 0 and 8, 1 and 9 … of two columns, one after the other.
            let first = _mm512_loadu_si512(first.as_ptr().cast());
            let second = _mm512_loadu_si512(second.as_ptr().cast());
            let low = _mm512_mask_blend_epi16(0xaaaa_aaaa, first, _mm512_slli_epi32::<16>(second));
            let high = _mm512_mask_blend_epi16(0x5555_5555, second, _mm512_srli_epi32::<16>(first));
            let odd = _mm512_shuffle_i64x2::<0b11_10_11_10>(low, high);
            let even = _mm512_shuffle_i64x2::<0b01_00_01_00>(low, high);
            _mm512_store_si512(lines[0].as_mut_ptr().cast(), odd);
            _mm512_store_si512(lines[1].as_mut_ptr().cast(), even);
        }
    }
}

/// Adds the products of a unit in q4, without the row scales, to the totals of its only panel.
fn q4(tiles: &Tiles, scratch: &mut Scratch, unit: &Unit<'_>, input: &Input, totals: &mut Totals) {
    let Scratch { q4: w, products: Aligned(products), nobody, .. } = scratch;
    let [first, second] = products.as_chunks_mut::<2>().0 else { unreachable!("twice two") };
    let (mut sums, mut before) = (first, second);
    let groups = unit.weights[0].as_chunks().0;
    // SAFETY: where there are such tiles, there is AVX-512.
    unsafe { widen_q4(groups, w) };
    let no_scales = [0.0; TILED_TOKENS];
    let mut scales = &no_scales;
    let mut to: &mut [[f32; PANEL]; TILED_TOKENS] = &mut nobody.0;
    let all_scales = &input.byte_scales[unit.span * input.padded() + unit.tokens.start..];
    let all_scales = all_scales.as_chunks().0;
    let all_totals = totals.as_chunks_mut().0;
    let pairs = unit.pairs().zip(all_scales).zip(all_totals);
    for (((token, _), next_scales), next_totals) in pairs {
        let x = input.tiles(input.bytes.as_chunks().0, COLUMNS, unit.span, token);
        let pending = Pending { sums: before, scales, totals: to };
        multiply_bytes(tiles, x, &w[..groups.len()], sums, pending);
        (sums, before) = (before, sums);
        (scales, to) = (next_scales, next_totals);
    }
    // SAFETY: as above.
    unsafe { add_scaled(before, scales, to) };
}

/// `totals += (128 × sums[0] + sums[1]) × scale`, for each of 32 tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_scaled(
    sums: &[[Sums<i32>; 2]; 2],
    scales: &[f32; TILED_TOKENS],
    totals: &mut [[f32; PANEL]; TILED_TOKENS],
) {
    let high = sums[0].as_flattened().iter();
    let sums = high.zip(sums[1].as_flattened());
    for (((high, low), scale), total) in sums.zip(scales).zip(totals) {
        // SAFETY: all arrays are 64 bytes long.
        unsafe {
            let high = _mm512_slli_epi32::<7>(_mm512_loadu_si512(high.as_ptr().cast()));
            let sum = _mm512_add_epi32(high, _mm512_loadu_si512(low.as_ptr().cast()));
            let before = _mm512_loadu_ps(total.as_ptr());
            let scale = _mm512_set1_ps(*scale);
            let after = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, before);
            _mm512_storeu_ps(total.as_mut_ptr(), after);
        }
    }
}

/// The weights of a span without their row scales, in two bytes: the upper one is worth 128.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn widen_q4(groups: &[[u8; Q4_GROUP]], w: &mut [[Weights; 2]]) {
    let table = _mm512_sub_epi8(table(), _mm512_set1_epi8(Q4_RAISED));
    for (group, [high, low]) in groups.iter().zip(w) {
        let lines = high.0.as_chunks_mut::<4>().0.iter_mut().zip(low.0.as_chunks_mut::<4>().0);
        for (i, (high, low)) in lines.enumerate() {
            // For each row twice.
            let scales = q4_scales(group, i);
            let scales =
                _mm512_mask_blend_epi16(0xaaaa_aaaa, scales, _mm512_slli_epi32::<16>(scales));
            for j in 0..2 {
                let bytes = load(group, 4 * PANEL + (2 * i + j) * LINE);
                // SAFETY: without VBMI.
                let codes = unsafe { q4_codes::<false>(bytes, table) };
                for (k, codes) in codes.into_iter().enumerate() {
                    let [upper, lower] = split(codes, scales);
                    // SAFETY: the arrays are 64 bytes long.
                    unsafe {
                        _mm512_storeu_si512(high[2 * j + k].as_mut_ptr().cast(), upper);
                        _mm512_storeu_si512(low[2 * j + k].as_mut_ptr().cast(), lower);
                    }
                }
            }
        }
    }
}

/// The products of codes with scales of 16 bits, as bytes: those of the upper bits, and the lower seven bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn split(codes: __m512i, scales: __m512i) -> [__m512i; 2] {
    const ODD: u64 = 0xaaaa_aaaa_aaaa_aaaa;
    let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(codes));
    let even = _mm512_mullo_epi16(even, scales);
    let odd = _mm512_mullo_epi16(_mm512_srai_epi16::<8>(codes), scales);
    let high = _mm512_srli_epi16::<7>(even);
    let high = _mm512_mask_blend_epi8(ODD, high, _mm512_slli_epi16::<1>(odd));
    let low = _mm512_mask_blend_epi8(ODD, even, _mm512_slli_epi16::<8>(odd));
    [high, _mm512_and_si512(low, _mm512_set1_epi8(127))]
}

/// Adds the products of a unit in q8 to the totals of its only panel.
fn q8(tiles: &Tiles, scratch: &mut Scratch, unit: &Unit<'_>, input: &Input, totals: &mut Totals) {
    let Scratch { q8: w, products: Aligned(sums), .. } = scratch;
    let groups = unit.weights[0].as_chunks().0;
    for (group, w) in groups.iter().zip(&mut *w) {
        let (halves, _) = group[4 * PANEL..].as_chunks::<{ Q8_COLUMNS * PANEL }>();
        let [first, second] = w;
        first.0[..SIDE / 2].as_flattened_mut().copy_from_slice(&halves[0]);
        second.0[SIDE / 2..].as_flattened_mut().copy_from_slice(&halves[1]);
    }
    for (token, place) in unit.pairs() {
        let x = input.tiles(input.fine_bytes.as_chunks().0, COLUMNS, unit.span, token);
        let totals = two_tiles(totals, place).iter_mut();
        for ((x, totals), token) in x.into_iter().zip(totals).zip([token, token + SIDE]) {
            multiply_steps(tiles, x, &w[..groups.len()], sums);
            let first = unit.span * SPAN / Q8_COLUMNS;
            let scales = &input.fine_scales[first * input.padded() + token..];
            // SAFETY: where there are such tiles, there is AVX-512.
            unsafe { add_groups(groups, sums, scales, input.padded(), totals) };
        }
    }
}

/// Adds the sums of 32 columns each, with the scales of both sides; those of the tokens are `next` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_groups(
    groups: &[[u8; Q8_GROUP]],
    products: &[[Sums<i32>; 2]],
    x_scales: &[f32],
    next: usize,
    totals: &mut Sums<f32>,
) {
    let mut sums = [_mm512_setzero_ps(); SIDE];
    let mut x_scales = x_scales.chunks(next);
    for (group, products) in groups.iter().zip(products) {
        for (half, products) in products.iter().enumerate() {
            let scales = load_f16(group, half * 2 * PANEL);
            let x_scales = x_scales.next().and_then(|scales| scales.first_chunk::<SIDE>());
            let x_scales = x_scales.expect("scales of each token");
            for ((sum, products), x_scale) in sums.iter_mut().zip(products).zip(x_scales) {
                // SAFETY: the array is 64 bytes long.
                let products = unsafe { _mm512_loadu_si512(products.as_ptr().cast()) };
                *sum = q8_scaled(products, scales, *x_scale, *sum);
            }
        }
    }
    // A scale of one, as the other kernels have here, would cost a tenth of the speed.
    for (sum, total) in sums.into_iter().zip(totals) {
        // SAFETY: the array is 64 bytes long.
        unsafe {
            let before = _mm512_loadu_ps(total.as_ptr());
            _mm512_storeu_ps(total.as_mut_ptr(), _mm512_add_ps(before, sum));
        }
    }
}
