//! Sums of products in f32: the inner loops for 16- and 32-bit weights, and for every format where there are no
//! integer kernels.
//!
//! A tile of a prompt is 16 rows by 6 tokens: 12 vectors of sums, 2 of weights and 1 activation fill the 16 registers of
//! AVX2, and 12 multiply-adds follow on 8 loads, so the loop runs at the speed of the multipliers (95 % of their peak on
//! Zen 3). Widening 16-bit weights in registers on the way is free there, as the multipliers are what is short.
//! AVX-512 has the 16 rows in one vector and tiles of 8 tokens: half the instructions, and 98 % of the same peak on Zen 4.
//! A span of a panel (8 or 16 KiB) stays in the first-level cache while all tokens pass by.
//!
//! A single token is bound by memory: it works on several panels at once, see [`super::linear`]. There vectors of
//! sixteen lanes have no multiplications to save, and 16-bit weights are widened faster in vectors of eight.

use super::ahead;
use super::input::{Input, SPAN, by_tokens};
use super::linear::Totals;
use super::quantized::scale_rows;
use super::rows::{Halves, Rows, RowsKernel};
use super::simd::{Kernel, Simd};
use crate::packed::PANEL;

/// A span of a panel in f32: for each column, the values of the rows.
pub(crate) type Wide = [[f32; PANEL]; SPAN];

/// A packed format whose panels can be widened to f32.
pub(crate) trait Widen {
    /// Writes the columns of a span of `panel` to the first places of `wide`.
    fn widen<S: Simd>(s: S, panel: &[u8], span: usize, columns: usize, wide: &mut Wide);

    /// The factors of the rows that `widen` leaves out.
    #[inline(always)]
    fn row_scales(_panel: &[u8]) -> Option<[f32; PANEL]> {
        None
    }
}

/// A packed format with one float for each weight.
pub(crate) trait Floats {
    /// The values of the rows in one column.
    type Column: Copy;
    /// Whether tiles are multiplied four columns in a turn: a seventh faster where the core has a busy neighbour.
    const UNROLLED: bool = true;
    fn columns(panel: &[u8]) -> &[Self::Column];
    fn load<R: Rows>(r: R, column: &Self::Column) -> R::F;
}

/// [`crate::packed::Format::F32`]
pub(crate) struct F32;
/// [`crate::packed::Format::F16`]
pub(crate) struct F16;
/// [`crate::packed::Format::Bf16`]
pub(crate) struct Bf16;

impl Floats for F32 {
    type Column = [u8; 4 * PANEL];
    #[inline(always)]
    fn columns(panel: &[u8]) -> &[Self::Column] {
        panel.as_chunks().0
    }
    #[inline(always)]
    fn load<R: Rows>(r: R, column: &Self::Column) -> R::F {
        r.load_f32(column)
    }
}

impl Floats for F16 {
    type Column = [u8; 2 * PANEL];
    /// With AVX2 the compiler would keep a sum in memory: the products of prompts took 1.7 to 3 times as long.
    const UNROLLED: bool = false;
    #[inline(always)]
    fn columns(panel: &[u8]) -> &[Self::Column] {
        panel.as_chunks().0
    }
    #[inline(always)]
    fn load<R: Rows>(r: R, column: &Self::Column) -> R::F {
        r.load_f16(column)
    }
}

impl Floats for Bf16 {
    type Column = [u8; 2 * PANEL];
    #[inline(always)]
    fn columns(panel: &[u8]) -> &[Self::Column] {
        panel.as_chunks().0
    }
    #[inline(always)]
    fn load<R: Rows>(r: R, column: &Self::Column) -> R::F {
        r.load_bf16(column)
    }
}

impl<W: Floats> Widen for W {
    #[inline(always)]
    fn widen<S: Simd>(s: S, panel: &[u8], span: usize, columns: usize, wide: &mut Wide) {
        let from = &W::columns(panel)[span * SPAN..][..columns];
        for (from, to) in from.iter().zip(wide) {
            Halves(s).store(W::load(Halves(s), from), to);
        }
    }
}

/// The dot products of one panel with the tokens of some tiles, by way of widened weights; the totals are zeros.
pub(crate) struct WidePanel<'a, W> {
    pub(crate) panel: &'a [u8],
    pub(crate) input: &'a Input,
    pub(crate) tiles: std::ops::Range<usize>,
    pub(crate) totals: &'a mut Totals,
    pub(crate) format: std::marker::PhantomData<W>,
}

impl<W: Widen> Kernel for WidePanel<'_, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { panel, input, tiles, totals, .. } = self;
        let mut wide = [[0.0; PANEL]; SPAN];
        for span in 0..input.spans() {
            let columns = input.columns(span);
            W::widen(s, panel, span, columns, &mut wide);
            for tile in tiles.clone() {
                let totals = &mut totals[(tile - tiles.start) * input.tile_len..];
                let x = input.floats(span, tile);
                let wide = &wide[..columns];
                let tokens = input.tokens(tile);
                by_tokens!(tokens up to Halves::<S>::TOKENS, T => {
                    wide_tile::<Halves<S>, T>(Halves(s), wide, x, totals);
                });
            }
        }
        if let Some(scales) = W::row_scales(panel) {
            scale_rows(scales, totals);
        }
    }
}

/// `totals[token] += wide · x[token]` over one span.
#[inline(always)]
fn wide_tile<R: Rows, const T: usize>(
    r: R,
    wide: &[[f32; PANEL]],
    x: &[f32],
    totals: &mut [[f32; PANEL]],
) {
    let mut sums = [r.splat(0.0); T];
    for (w, x) in wide.iter().zip(x.as_chunks::<T>().0) {
        let w = r.load(w);
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = r.mul_add(w, r.splat(*x), *sum);
        }
    }
    add_sums(r, sums, totals);
}

#[inline(always)]
fn add_sums<R: Rows, const T: usize>(r: R, sums: [R::F; T], totals: &mut [[f32; PANEL]]) {
    let totals = &mut totals[..T];
    for t in 0..T {
        r.store(r.add(r.load(&totals[t]), sums[t]), &mut totals[t]);
    }
}

/// The dot products of `P` panels with a single token.
pub(crate) struct FloatSingle<'a, W, const P: usize> {
    pub(crate) panels: [&'a [u8]; P],
    pub(crate) input: &'a Input,
    pub(crate) totals: [&'a mut Totals; P],
    pub(crate) format: std::marker::PhantomData<W>,
}

impl<W: Floats, const P: usize> Kernel for FloatSingle<'_, W, P> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let panels = self.panels.map(W::columns);
        for span in 0..self.input.spans() {
            let x = self.input.floats(span, 0);
            let w = panels.map(|panel| &panel[span * SPAN..][..x.len()]);
            let sums = dot_columns::<Halves<S>, W, P>(Halves(s), w, x, self.input.ahead);
            for (totals, sum) in self.totals.iter_mut().zip(sums) {
                add_sums(Halves(s), [sum], totals);
            }
        }
    }
}

/// The sums of `P` panels over the columns of one span.
#[inline(always)]
fn dot_columns<R: Rows, W: Floats, const P: usize>(
    r: R,
    w: [&[W::Column]; P],
    x: &[f32],
    ahead: bool,
) -> [R::F; P] {
    assert!(w.iter().all(|w| w.len() == x.len()));
    let w = w.map(<[W::Column]>::as_ptr);
    let mut sums = [r.splat(0.0); P];
    for (k, x) in x.iter().enumerate() {
        let x = r.splat(*x);
        for p in 0..P {
            // SAFETY: `k` is below the length of all of them. Checked one by one, there would be more checks than
            // arithmetic here.
            let w = unsafe { &*w[p].add(k) };
            if ahead {
                ahead::ask(w);
            }
            let w = W::load(r, w);
            sums[p] = r.mul_add(w, x, sums[p]);
        }
    }
    sums
}

/// The dot products of a panel with the tokens of some tiles, straight from the packed weights.
pub(crate) struct FloatTiles<'a, W> {
    pub(crate) panel: &'a [u8],
    pub(crate) input: &'a Input,
    pub(crate) tiles: std::ops::Range<usize>,
    pub(crate) totals: &'a mut Totals,
    pub(crate) format: std::marker::PhantomData<W>,
}

impl<W: Floats> RowsKernel for FloatTiles<'_, W> {
    type Output = ();
    #[inline(always)]
    fn run<R: Rows>(self, r: R) {
        let Self { panel, input, tiles, totals, .. } = self;
        for span in 0..input.spans() {
            let w = &W::columns(panel)[span * SPAN..][..input.columns(span)];
            for tile in tiles.clone() {
                let x = input.floats(span, tile);
                let totals = &mut totals[(tile - tiles.start) * input.tile_len..];
                let tokens = input.tokens(tile);
                by_tokens!(tokens up to R::TOKENS, T => float_tile::<R, W, T>(r, w, x, totals));
            }
        }
    }
}

/// `T` tokens of a tile times one span.
#[inline(always)]
fn float_tile<R: Rows, W: Floats, const T: usize>(
    r: R,
    w: &[W::Column],
    x: &[f32],
    totals: &mut Totals,
) {
    let mut sums = [r.splat(0.0); T];
    let (mut w, (mut x, _)) = (w, x.as_chunks::<T>());
    if W::UNROLLED {
        let (four, x_four);
        ((four, w), (x_four, x)) = (w.as_chunks::<4>(), x.as_chunks::<4>());
        for (w, x) in four.iter().zip(x_four) {
            for i in 0..4 {
                add_column::<R, W, T>(r, &w[i], &x[i], &mut sums);
            }
        }
    }
    for (w, x) in w.iter().zip(x) {
        add_column::<R, W, T>(r, w, x, &mut sums);
    }
    add_sums(r, sums, totals);
}

/// Adds the products of a column.
#[inline(always)]
fn add_column<R: Rows, W: Floats, const T: usize>(
    r: R,
    w: &W::Column,
    x: &[f32; T],
    sums: &mut [R::F; T],
) {
    let w = W::load(r, w);
    for t in 0..T {
        sums[t] = r.mul_add(w, r.splat(x[t]), sums[t]);
    }
}
