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
//! needed), hence the blocks of columns. Sums that are stored at once have to be waited for, and so has who widens weights: both are done
//! a share at a time, while later products are on their way. To ask for weights before they are widened made things worse: what is asked
//! for takes the places of what is read from the second-level cache. Measured for 512 tokens and 2048 × 2048 with one core that has no
//! busy neighbour: bf16 1020, q4 1140, q8 680 GOP/s, of 2660 that the products alone would allow (q8: half of that).

#![cfg(target_arch = "x86_64")]
#![allow(clippy::wildcard_imports, reason = "the names of the intrinsics say where they come from")]

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::amx::{
    HALVES, Half, LINE, SIDE, Sums, Tiles, Weights, add_bf16, add_bytes, begin_bf16, begin_bytes,
    multiply_bytes, store, store_half,
};
use super::input::{Input, SPAN, TILED_TOKENS};
use super::integers512::{load_f16, q8_scaled};
use super::linear::{GROUP, TILED_BLOCK, Totals};
use super::quantized::{Q8_COLUMNS, q4_row_scales};
use super::widen_amx::{PackedSpan, Widened, span_bytes};
use crate::memory::{Aligned, Lines};
use crate::packed::{COLUMNS, Format, PANEL, Q8_GROUP};

/// Bytes of activations that are multiplied with one panel after the other: they stay in the second-level cache.
const ACTIVATIONS: usize = 512 << 10;

/// What a thread needs for itself.
struct Scratch {
    /// The sums of a group of panels.
    totals: Lines<f32>,
    /// The weights of a unit, and those of the next.
    weights: [Widened; 2],
    products: Products,
}

/// Sums that are not yet part of the totals.
struct Products {
    bytes: Aligned<[[Sums<i32>; 2]; 2]>,
    /// For what nobody wants: what the registers hold before the first product, and a second panel's sums where there is none.
    before: Aligned<[[Sums<f32>; 2]; 2]>,
    nobody: Aligned<[[Sums<f32>; 2]; TILED_BLOCK / TILED_TOKENS]>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        const WEIGHTS: [Weights; 2] = [Aligned([[0; LINE]; SIDE]); 2];
        const SUMS: [Sums<f32>; 2] = [[[0.0; SIDE]; SIDE]; 2];
        RefCell::new(Scratch {
            totals: Lines::new(),
            weights: [[WEIGHTS; SPAN / HALVES]; 2],
            products: Products {
                bytes: Aligned([[[[0; SIDE]; SIDE]; 2]; 2]),
                before: Aligned([SUMS; 2]),
                nobody: Aligned([SUMS; TILED_BLOCK / TILED_TOKENS]),
            },
        })
    };
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
    SCRATCH.with_borrow_mut(|Scratch { totals: sums, weights: buffers, products }| {
        let len = tokens.len().next_multiple_of(TILED_TOKENS) * PANEL;
        sums.grow(count * len);
        let sums = &mut sums[..count * len];
        sums.fill(0.0);
        let mut sums = sums.chunks_exact_mut(len).map(|sums| sums.as_chunks_mut().0);
        let mut totals: [&mut Totals; GROUP] =
            std::array::from_fn(|_| sums.next().unwrap_or_default());
        let totals = &mut totals[..count];
        let group = Group { input, tokens: tokens.clone(), count, weights };
        group.add(tiles, buffers, products, totals);
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
    fn add(
        &self,
        tiles: &Tiles,
        [now, next]: &mut [Widened; 2],
        products: &mut Products,
        totals: &mut [&mut Totals],
    ) {
        let halves = (0..self.count).any(|i| self.is_bf16(i));
        let span_len = self.tokens.len() * SPAN * if halves { 2 } else { 1 };
        let spans = (ACTIVATIONS / span_len).max(1);
        let units = (0..self.input.spans()).step_by(spans).flat_map(|start| {
            let spans = start..self.input.spans().min(start + spans);
            self.firsts().flat_map(move |i| spans.clone().map(move |span| (i, span)))
        });
        let mut units = units.map(|(i, span)| (i, span, self.packed(i, span))).peekable();
        let (mut now, mut next) = (now, next);
        if let Some((.., first)) = units.peek() {
            // SAFETY: where there are such tiles, there is AVX-512.
            unsafe { first.widen(0..first.pieces(), now) };
        }
        while let Some((i, span, packed)) = units.next() {
            let [first, rest @ ..] = &mut totals[i..] else { return };
            let unit = Unit {
                packed,
                weights: &now[..packed.steps()],
                span,
                tokens: self.tokens.clone(),
                meanwhile: Meanwhile {
                    next: units.peek().map(|(.., packed)| (*packed, &mut *next)),
                    turns: self.tokens.len().div_ceil(TILED_TOKENS),
                    turn: 0,
                },
            };
            match packed.format {
                Format::F32 | Format::F16 => unreachable!("there are no tiles of them"),
                Format::Bf16 => {
                    let second = rest.first_mut().filter(|_| !packed.bytes[1].is_empty());
                    let second = second.map(|second| &mut **second);
                    bf16(tiles, unit, self.input, products, first, second);
                }
                // SAFETY: where there are such tiles, there is AVX-512.
                Format::Q8 => unsafe { q8(tiles, unit, self.input, products, first) },
                // SAFETY: as above.
                Format::Q4 => unsafe {
                    let last = span + 1 == self.input.spans();
                    let rows = last.then(|| q4_row_scales((self.weights)(i).1));
                    q4(tiles, unit, self.input, rows, products, first);
                },
            }
            (now, next) = (next, now);
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
    fn packed(&self, i: usize, span: usize) -> PackedSpan<'w> {
        let bytes = |i| {
            let (format, panel) = (self.weights)(i);
            span_bytes(format, panel, self.input, span)
        };
        let second = if self.together(i) == 2 { bytes(i + 1) } else { &[] };
        PackedSpan { format: (self.weights)(i).0, bytes: [bytes(i), second] }
    }
}

/// A span of one panel or two, and the tokens that meet it.
struct Unit<'a> {
    packed: PackedSpan<'a>,
    /// The same, widened.
    weights: &'a [[Weights; 2]],
    span: usize,
    tokens: Range<usize>,
    meanwhile: Meanwhile<'a>,
}

/// What is done while tiles are multiplied, a share for each pair of tiles.
struct Meanwhile<'a> {
    /// The weights of the next unit, to be widened.
    next: Option<(PackedSpan<'a>, &'a mut Widened)>,
    turns: usize,
    turn: usize,
}

impl Meanwhile<'_> {
    fn take_turn(&mut self) {
        let part = |len: usize| len * self.turn / self.turns..len * (self.turn + 1) / self.turns;
        if let Some((packed, to)) = &mut self.next {
            // SAFETY: where there are such tiles, there is AVX-512.
            unsafe { packed.widen(part(packed.pieces()), to) };
        }
        self.turn += 1;
    }
}

/// Adds the products of a unit in bf16 to the totals of its panels.
fn bf16(
    tiles: &Tiles,
    mut unit: Unit<'_>,
    input: &Input,
    products: &mut Products,
    first: &mut Totals,
    second: Option<&mut Totals>,
) {
    let second = second.map_or(&mut products.nobody.0[..], tile_pairs);
    let mut before = products.before.0.each_mut();
    let x = input.all_tiles(input.halves.as_chunks().0, HALVES, unit.span, &unit.tokens);
    let pairs = x.chunks_exact(2 * unit.weights.len());
    for (x, (first, second)) in pairs.zip(tile_pairs(first).iter_mut().zip(second)) {
        let (a, b) = x.split_at(unit.weights.len());
        let sums = [first, second];
        begin_bf16(tiles, [&a[0], &b[0]], &unit.weights[0], &sums, before);
        for ((a, b), w) in a.iter().zip(b).zip(unit.weights).skip(1) {
            add_bf16(tiles, [a, b], w);
        }
        unit.meanwhile.take_turn();
        before = sums;
    }
    store(tiles, before);
}

/// The sums of each 32 tokens.
fn tile_pairs(totals: &mut Totals) -> &mut [[Sums<f32>; 2]] {
    const { assert!(PANEL == SIDE) };
    totals.as_chunks_mut::<SIDE>().0.as_chunks_mut().0
}

/// Tokens whose sums of q4 are added between two steps.
const SOME: usize = TILED_TOKENS / (SPAN / COLUMNS);

/// Adds the products of a unit in q4 to the totals of its only panel; the last span scales the `rows`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q4(
    tiles: &Tiles,
    mut unit: Unit<'_>,
    input: &Input,
    rows: Option<[f32; PANEL]>,
    products: &mut Products,
    totals: &mut Totals,
) {
    let Products { bytes: Aligned(sums), before, .. } = products;
    // What the registers hold at first counts nothing.
    let mut before = (&[0.0; TILED_TOKENS], before.0[0].as_flattened_mut());
    let x = input.all_tiles(input.bytes.as_chunks().0, COLUMNS, unit.span, &unit.tokens);
    let scales = &input.byte_scales[unit.span * input.padded() + unit.tokens.start..];
    let places = scales.as_chunks().0.iter().zip(totals.chunks_exact_mut(TILED_TOKENS));
    for (x, place) in x.chunks_exact(2 * unit.weights.len()).zip(places) {
        let (a, b) = x.split_at(unit.weights.len());
        for i in 0..SPAN / COLUMNS {
            match unit.weights.get(i) {
                Some(w) if i == 0 => {
                    begin_bytes(tiles, [&a[i], &b[i]], w, sums.each_mut());
                }
                Some(w) => add_bytes(tiles, [&a[i], &b[i]], w),
                None => (),
            }
            // Meanwhile, of the sums before.
            add_some(sums, before.0, &rows, before.1, i);
        }
        unit.meanwhile.take_turn();
        before = place;
    }
    store(tiles, sums.each_mut());
    for i in 0..SPAN / COLUMNS {
        add_some(sums, before.0, &rows, before.1, i);
    }
}

/// `totals += (128 × sums[0] + sums[1]) × scale`, then all `× rows`, for some of 32 tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_some(
    sums: &[[Sums<i32>; 2]; 2],
    scales: &[f32; TILED_TOKENS],
    rows: &Option<[f32; PANEL]>,
    totals: &mut [[f32; PANEL]],
    i: usize,
) {
    let [high, low] = sums.each_ref().map(|sums| &sums.as_flattened().as_chunks::<SOME>().0[i]);
    let scales = &scales.as_chunks::<SOME>().0[i];
    let totals = &mut totals.as_chunks_mut::<SOME>().0[i];
    for i in 0..SOME {
        // SAFETY: all arrays are 64 bytes long.
        unsafe {
            let high = _mm512_slli_epi32::<7>(_mm512_loadu_si512(high[i].as_ptr().cast()));
            let sum = _mm512_add_epi32(high, _mm512_loadu_si512(low[i].as_ptr().cast()));
            let before = _mm512_loadu_ps(totals[i].as_ptr());
            let scale = _mm512_set1_ps(scales[i]);
            let mut after = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, before);
            if let Some(rows) = rows {
                after = _mm512_mul_ps(after, _mm512_loadu_ps(rows.as_ptr()));
            }
            _mm512_storeu_ps(totals[i].as_mut_ptr(), after);
        }
    }
}

/// Adds the products of a unit in q8 to the totals of its only panel.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q8(
    tiles: &Tiles,
    mut unit: Unit<'_>,
    input: &Input,
    products: &mut Products,
    totals: &mut Totals,
) {
    let Products { bytes: Aligned(products), .. } = products;
    let groups: &[[u8; Q8_GROUP]] = unit.packed.bytes[0].as_chunks().0;
    let (w, steps) = (unit.weights, groups.len());
    let x = input.all_tiles(input.fine_bytes.as_chunks().0, COLUMNS, unit.span, &unit.tokens);
    let scales = unit.span * SPAN / Q8_COLUMNS * input.padded() + unit.tokens.start;
    let scales = &input.fine_scales[scales..];
    // The sums of a step are added while the second after it is multiplied.
    for i in 0..2 {
        multiply_bytes(tiles, Half::of(i), &x[i], &w[i % steps], &mut products[i]);
    }
    for (tile, totals) in totals.chunks_exact_mut(SIDE).take(x.len() / steps).enumerate() {
        let mut sums = [_mm512_setzero_ps(); SIDE];
        for (step, group) in groups.iter().enumerate() {
            let i = tile * steps + step;
            let products = &mut products[i % 2];
            match x.get(i + 2) {
                Some(x) => multiply_bytes(tiles, Half::of(i), x, &w[(step + 2) % steps], products),
                None => store_half(tiles, Half::of(i), products),
            }
            let scales = &scales[2 * step * input.padded() + tile * SIDE..];
            sums = add_step(group, products, scales, input.padded(), sums);
        }
        add_sums(sums, totals);
        if tile % 2 == 1 {
            unit.meanwhile.take_turn();
        }
    }
}

/// Adds the sums of 64 columns to those of a tile's tokens, with the scales of both sides; those of the tokens for each 32 columns
/// are `next` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_step(
    group: &[u8; Q8_GROUP],
    products: &[Sums<i32>; 2],
    x_scales: &[f32],
    next: usize,
    mut sums: [__m512; SIDE],
) -> [__m512; SIDE] {
    for (half, products) in products.iter().enumerate() {
        let scales = load_f16(group, half * 2 * PANEL);
        let x_scales: &[f32; SIDE] =
            x_scales[half * next..].first_chunk().expect("scales of each token");
        for ((sum, products), x_scale) in sums.iter_mut().zip(products).zip(x_scales) {
            // SAFETY: the array is 64 bytes long.
            let products = unsafe { _mm512_loadu_si512(products.as_ptr().cast()) };
            *sum = q8_scaled(products, scales, *x_scale, *sum);
        }
    }
    sums
}

/// Adds the sums of a tile to its totals.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_sums(sums: [__m512; SIDE], totals: &mut Totals) {
    // A scale of one, as the other kernels have here, would cost a tenth of the speed.
    for (sum, total) in sums.into_iter().zip(totals) {
        // SAFETY: the array is 64 bytes long.
        unsafe {
            let before = _mm512_loadu_ps(total.as_ptr());
            _mm512_storeu_ps(total.as_mut_ptr(), _mm512_add_ps(before, sum));
        }
    }
}
