//! Linear layers over packed weights: the way of a parallel region from matrices to outputs.
//!
//! Every output is summed in one fixed order: within a span of 256 columns one product after the other (exactly, where
//! the products are integers), then span after span. That order depends neither on the number of tokens nor
//! on the threads nor on the neighbours of a row, so a prompt gives the same bits however it is cut, and a token the
//! same bits alone as among others.
//!
//! A part of the region is a run of panels. For each panel all tokens are worked through in blocks of `BLOCK`, whose
//! sums stay in the cache until they are complete; then come bias, residual or gate, and each output is written
//! once.
//!
//! A single token is bound by memory, and a core that reads one stream may leave some of it unused: the hardware looks
//! ahead in each stream only so far. So the run of panels is cut into equal pieces, which are read side by side, as many as
//! `streams` says; asking for the data beforehand with prefetch instructions made it worse wherever it was tried.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use super::ahead;
use super::elementwise::{Activation, activate_slice};
use super::floats::{Bf16, F16, F32, FloatSingle, FloatTiles, Floats, WidePanel, Widen};
use super::input::{Input, MOST_TOKENS};
#[cfg(target_arch = "x86_64")]
use super::input::{SPAN, TILED_TOKENS};
use super::quantized::{Q4, Q8, scale_rows};
use super::shared::SharedMut;
#[cfg(target_arch = "x86_64")]
use super::{
    amx::Tiles,
    bfloats512, integers, integers512, linear_amx,
    linear_amx::{Scratch, Unit},
};
use crate::isa::Level;
use crate::memory::{Aligned, Lines};
use crate::packed::{Format, PANEL, Packed, Panels};
use crate::{Isa, Pool};

/// The most tokens of a block: their sums of one panel are 16 KiB.
const BLOCK: usize = 256;

/// The most panels that a single token reads side by side.
const STREAMS: usize = 4;

/// Panels that are summed at a time with AMX: their sums for a block of tokens are half a MiB.
const GROUP: usize = 32;

/// Bytes of activations that are multiplied with one panel after the other with AMX: they stay in the second-level cache.
#[cfg(target_arch = "x86_64")]
const ACTIVATIONS: usize = 512 << 10;

/// Panels of gate and up that a single token works through in turn, where it reads one stream.
const TURN: usize = 8;

/// Matrices that one region can work through.
const MAX_LAYERS: usize = 8;

/// The sums of a panel for the tokens of a block.
pub(crate) type Totals = [[f32; PANEL]];

/// A linear layer to compute.
pub struct Linear<'a> {
    /// `[rows, cols]`.
    pub w: &'a Packed,
    /// `[rows]`, added to each token's outputs.
    pub bias: Option<&'a [f32]>,
    /// Whether the outputs are added to what `out` holds: the residual stream.
    pub add: bool,
    /// `[n, rows]`.
    pub out: &'a mut [f32],
}

impl<'a> Linear<'a> {
    /// `out = x · wᵀ`.
    pub fn new(w: &'a Packed, out: &'a mut [f32]) -> Self {
        Self { w, bias: None, add: false, out }
    }
}

/// Computes layers that have the same input, in one parallel region.
///
/// # Panics
/// When sizes do not fit together, the input was not prepared for a layer's format, or there are more than eight.
pub fn linear(isa: Isa, pool: &Pool, input: &Input, layers: &mut [Linear<'_>]) {
    assert!(layers.len() <= MAX_LAYERS, "{} layers in one region", layers.len());
    for layer in layers.iter() {
        input.check(isa, layer.w.format(), layer.w.cols());
        assert_eq!(layer.out.len(), input.n * layer.w.rows(), "outputs of a linear layer");
        assert!(
            layer.bias.is_none_or(|bias| bias.len() == layer.w.rows()),
            "bias of a linear layer"
        );
    }
    let mut layers = layers.iter_mut();
    let jobs: [_; MAX_LAYERS] = std::array::from_fn(|_| layers.next().map(Job::new));
    let panels = jobs.iter().flatten().map(|job| job.w.panels.count()).sum();
    by_panels(pool, panels, input.n, &|range| {
        let part = Part::new(isa, input);
        let mut first = 0;
        for job in jobs.iter().flatten() {
            let count = job.w.panels.count();
            let from = range.start.clamp(first, first + count) - first;
            let to = range.end.clamp(first, first + count) - first;
            job.run(&part, from..to);
            first += count;
        }
    });
}

/// `out = act(x · gateᵀ) * (x · upᵀ)`: the first half of a gated MLP, in one parallel region.
///
/// # Panics
/// When sizes do not fit together, or the input was not prepared for a matrix's format.
pub fn gated_linear(
    isa: Isa,
    pool: &Pool,
    input: &Input,
    act: Activation,
    gate: &Packed,
    up: &Packed,
    out: &mut [f32],
) {
    for w in [gate, up] {
        input.check(isa, w.format(), w.cols());
    }
    assert_eq!(
        (gate.rows(), out.len()),
        (up.rows(), input.n * up.rows()),
        "a gated layer's rows, outputs"
    );
    let rows = gate.rows();
    let (gate, up) = (Weights::new(gate), Weights::new(up));
    let job = GatedJob { act, gate, up, rows, out: SharedMut::new(out) };
    by_panels(pool, gate.panels.count(), input.n, &|range| {
        job.run(&Part::new(isa, input), range);
    });
}

/// Calls `f` for ranges that cover all panels, on the pool.
///
/// The first parts are long, for long streams, and the last so short that no thread waits long for another at the end. For
/// `n` tokens, so that a thread that is held up does not hold up the others, they are half as long as for a single one.
fn by_panels(pool: &Pool, panels: usize, n: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
    let shares = match pool.n_threads() {
        1 => 1,
        n_threads if n == 1 => n_threads,
        n_threads => 2 * n_threads,
    };
    let end = |start: usize| {
        let rest = panels - start;
        start + rest.div_ceil(shares).next_multiple_of(STREAMS).min(rest)
    };
    let starts = || std::iter::successors(Some(0), |start| Some(end(*start)));
    let parts = starts().take_while(|start| *start < panels).count();
    pool.run(parts, &|part| {
        let start = starts().nth(part).unwrap_or(panels);
        f(start..end(start));
    });
}

/// Panels that a core reads side by side for a single token.
///
/// Measured, in GB/s of two cores: Zen 3 reads 30 in one stream each, 37 in two and 38 in four. Zen 4, at times when 64 could
/// be had, reached with AVX-512 in one, two and four streams 45, – and 60 in bf16, 43, 54 and 51 in q8, 51, 45 and 42 in q4;
/// at times when 36 could be had, 34, 33 and 33 in q4, and with AVX2 33, 33 and 31. So the more is to be done for each byte, the
/// fewer streams. Where weights are asked for beforehand ([`super::ahead`]), two are enough for every format: of 31 GB/s, one, two
/// and four streams reached 25, 29 and 29 in q4, 26, 29 and 29 in q8 and 20, 30 and 30 in bf16 (a Xeon with AMX).
fn streams(isa: Isa, format: Format) -> usize {
    match format {
        _ if ahead::pays() => 2,
        Format::Q4 if isa.has_vnni() => 1,
        Format::Q4 => 2,
        Format::Q8 if isa.has_vnni() => 2,
        Format::F32 | Format::F16 | Format::Bf16 | Format::Q8 => STREAMS,
    }
}

/// Calls `many` with panels that are as far from each other as possible, `P` at a time, and `one` with those that are
/// left over.
fn by_streams<const P: usize>(
    panels: Range<usize>,
    many: impl Fn([usize; P]),
    one: impl Fn(usize),
) {
    let piece = panels.len() / P;
    for i in panels.clone().take(piece) {
        many(std::array::from_fn(|stream| i + stream * piece));
    }
    (panels.start + P * piece..panels.end).for_each(one);
}

/// The blocks of tokens of an input, as ranges of tiles.
fn blocks(input: &Input) -> impl Iterator<Item = Range<usize>> {
    let tiles = input.n.div_ceil(input.tile_len);
    let len = BLOCK / input.tile_len;
    (0..tiles).step_by(len).map(move |tile| tile..tiles.min(tile + len))
}

/// The tokens of some tiles.
fn tokens(input: &Input, tiles: &Range<usize>) -> Range<usize> {
    tiles.start * input.tile_len..input.n.min(tiles.end * input.tile_len)
}

/// What a thread computes a part of a region with.
struct Part<'a> {
    isa: Isa,
    input: &'a Input,
    #[cfg(target_arch = "x86_64")]
    tiles: Option<Tiles>,
}

impl<'a> Part<'a> {
    fn new(isa: Isa, input: &'a Input) -> Self {
        Self {
            isa,
            input,
            #[cfg(target_arch = "x86_64")]
            tiles: isa.amx().filter(|_| input.tiled()).map(Tiles::new),
        }
    }
}

thread_local! {
    /// What [`Part::in_tiles`] computes in: the sums of a group of panels, and what the kernels need.
    #[cfg(target_arch = "x86_64")]
    static SCRATCH: RefCell<(Lines<f32>, Scratch)> =
        const { RefCell::new((Lines::new(), Scratch::new())) };
}

/// The totals of some panels for some tokens, to write the outputs from.
type Finish<'a> = dyn Fn(Range<usize>, &mut [&mut Totals]) + 'a;

impl Part<'_> {
    /// Computes the totals of `count` panels with AMX, at most [`GROUP`], in blocks of tokens. `weights` tells the panels.
    #[cfg(target_arch = "x86_64")]
    fn in_tiles<'w>(
        &self,
        count: usize,
        weights: &dyn Fn(usize) -> (Weights<'w>, usize),
        finish: &Finish<'_>,
    ) {
        let Some(tiles) = &self.tiles else { return };
        SCRATCH.with_borrow_mut(|(sums, scratch)| {
            for block in blocks(self.input) {
                let tokens = tokens(self.input, &block);
                let len = tokens.len().next_multiple_of(TILED_TOKENS) * PANEL;
                sums.grow(count * len);
                let sums = &mut sums[..count * len];
                sums.fill(0.0);
                let mut sums = sums.chunks_exact_mut(len).map(|sums| sums.as_chunks_mut().0);
                let mut totals: [&mut Totals; GROUP] =
                    std::array::from_fn(|_| sums.next().unwrap_or_default());
                let totals = &mut totals[..count];
                self.sum_tiles(tiles, scratch, &block, weights, totals);
                for (i, totals) in totals.iter_mut().enumerate() {
                    let (w, panel) = weights(i);
                    if w.format == Format::Q4 {
                        scale_rows(w.panels.get(panel), &mut totals[..tokens.len()]);
                    }
                }
                finish(tokens, totals);
            }
        });
    }

    /// For each panel the sums for the tokens of a block. As many columns at a time as leave room in the cache for the activations:
    /// these are read again for each panel.
    #[cfg(target_arch = "x86_64")]
    fn sum_tiles<'w>(
        &self,
        tiles: &Tiles,
        scratch: &mut Scratch,
        block: &Range<usize>,
        weights: &dyn Fn(usize) -> (Weights<'w>, usize),
        totals: &mut [&mut Totals],
    ) {
        let input = self.input;
        let (count, tokens) = (totals.len(), tokens(input, block));
        let halves = (0..count).any(|i| weights(i).0.format == Format::Bf16);
        let span_len = tokens.len() * SPAN * if halves { 2 } else { 1 };
        let spans = (ACTIVATIONS / span_len).max(1);
        // Panels that are multiplied together.
        let together = |i: usize| {
            let bf16 = |i: usize| i < count && weights(i).0.format == Format::Bf16;
            if bf16(i) && bf16(i + 1) { 2 } else { 1 }
        };
        let firsts = || {
            std::iter::successors(Some(0), |i| Some(i + together(*i))).take_while(|i| *i < count)
        };
        let units = || {
            (0..input.spans()).step_by(spans).flat_map(|start| {
                let spans = start..input.spans().min(start + spans);
                firsts().flat_map(move |i| spans.clone().map(move |span| (i, span)))
            })
        };
        let bytes = |(i, span): (usize, usize)| {
            let bytes = |i: usize| {
                let (w, panel) = weights(i);
                linear_amx::span_bytes(w.format, w.panels.get(panel), input, span)
            };
            [bytes(i), if together(i) == 2 { bytes(i + 1) } else { &[] }]
        };
        let nexts = units().skip(1).map(Some).chain([None]);
        for (unit, next) in units().zip(nexts) {
            let ((i, span), next) = (unit, next.map_or([&[][..]; 2], bytes));
            let unit = Unit { weights: bytes(unit), span, tokens: tokens.clone(), next };
            let (w, panel) = weights(i);
            let [first, rest @ ..] = &mut totals[i..] else { continue };
            match w.format {
                Format::F32 | Format::F16 if span > 0 => (),
                Format::F32 | Format::F16 => {
                    products(self, w.format, [w.panels.get(panel)], block, [first]);
                }
                Format::Bf16 => {
                    let second = rest.first_mut().map_or(&mut [][..], |second| second);
                    linear_amx::bf16(tiles, scratch, &unit, input, [first, second]);
                }
                Format::Q8 => linear_amx::q8(tiles, scratch, &unit, input, first),
                Format::Q4 => linear_amx::q4(tiles, scratch, &unit, input, first),
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn in_tiles<'w>(
        &self,
        _count: usize,
        _weights: &dyn Fn(usize) -> (Weights<'w>, usize),
        _finish: &Finish<'_>,
    ) {
        unreachable!("there are such tiles on x86-64 alone")
    }
}

/// Ranges of at most `len` panels.
fn groups(panels: Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> {
    panels.clone().step_by(len).map(move |start| start..panels.end.min(start + len))
}

/// The weights of a layer.
#[derive(Clone, Copy)]
struct Weights<'a> {
    format: Format,
    panels: Panels<'a>,
}

impl<'a> Weights<'a> {
    fn new(w: &'a Packed) -> Self {
        Self { format: w.format(), panels: w.panels() }
    }
}

/// A layer whose outputs several threads write.
struct Job<'a> {
    w: Weights<'a>,
    rows: usize,
    bias: Option<&'a [f32]>,
    add: bool,
    out: SharedMut<'a, f32>,
}

impl<'a> Job<'a> {
    fn new(layer: &'a mut Linear<'_>) -> Self {
        let Linear { w, bias, add, out } = layer;
        Self {
            w: Weights::new(w),
            rows: w.rows(),
            bias: *bias,
            add: *add,
            out: SharedMut::new(out),
        }
    }

    /// Computes the outputs of some panels, for all tokens.
    fn run(&self, part: &Part<'_>, panels: Range<usize>) {
        match part.input.n {
            0 => (),
            1 => match streams(part.isa, self.w.format) {
                1 => self.in_streams::<1, 1>(part, panels),
                2 => self.in_streams::<1, 2>(part, panels),
                _ => self.in_streams::<1, STREAMS>(part, panels),
            },
            // Clearing the sums of a whole block would cost more than a few tokens' product with a panel.
            2..=MOST_TOKENS => self.in_streams::<MOST_TOKENS, 1>(part, panels),
            _ if part.input.tiled() => {
                for panels in groups(panels, GROUP) {
                    let weights = |i: usize| (self.w, panels.start + i);
                    part.in_tiles(panels.len(), &weights, &|tokens, totals| {
                        self.finish(panels.start, tokens, totals);
                    });
                }
            }
            _ => self.in_streams::<BLOCK, 1>(part, panels),
        }
    }

    /// Computes the outputs of some panels, `P` at a time, for all tokens in blocks of `N`.
    fn in_streams<const N: usize, const P: usize>(&self, part: &Part<'_>, panels: Range<usize>) {
        by_streams::<P>(
            panels,
            |panels| self.panels::<N, P>(part, panels),
            |panel| self.panels::<N, 1>(part, [panel]),
        );
    }

    /// Computes the outputs of `P` panels, for all tokens in blocks of `N`.
    fn panels<const N: usize, const P: usize>(&self, part: &Part<'_>, panels: [usize; P]) {
        for block in blocks(part.input) {
            let mut sums = Aligned([[[0.0; PANEL]; N]; P]);
            let weights = panels.map(|panel| (self.w, panel));
            totals(part, weights, &block, sums.0.each_mut().map(|sums| &mut sums[..]));
            for (panel, sums) in panels.into_iter().zip(&mut sums.0) {
                self.finish(panel, tokens(part.input, &block), &[&mut sums[..]]);
            }
        }
    }

    /// Writes the outputs of panels from `panel` on.
    fn finish(&self, panel: usize, tokens: Range<usize>, totals: &[&mut Totals]) {
        let row = panel * PANEL;
        let rows = (totals.len() * PANEL).min(self.rows - row);
        for (i, token) in tokens.enumerate() {
            // SAFETY: each token's rows of a panel belong to one part.
            let out = unsafe { self.out.slice(token * self.rows + row, rows) };
            let (panels, rest) = out.as_chunks_mut::<PANEL>();
            let bias = self.bias.map(|bias| &bias[row..row + rows]);
            for (p, (out, totals)) in panels.iter_mut().zip(totals).enumerate() {
                self.write(out, &totals[i], bias.map(|bias| &bias[p * PANEL..]));
            }
            if let Some(last) = totals.last().filter(|_| !rest.is_empty()) {
                let bias = bias.map(|bias| &bias[rows - rest.len()..]);
                self.write(rest, &last[i], bias);
            }
        }
    }

    /// Writes the outputs of a token.
    #[inline(always)]
    fn write(&self, out: &mut [f32], totals: &[f32; PANEL], bias: Option<&[f32]>) {
        let mut totals = *totals;
        if let Some(bias) = bias {
            totals.iter_mut().zip(bias).for_each(|(total, bias)| *total += bias);
        }
        let all = out.iter_mut().zip(totals);
        match self.add {
            true => all.for_each(|(out, total)| *out += total),
            false => all.for_each(|(out, total)| *out = total),
        }
    }
}

/// A gated layer whose outputs several threads write.
struct GatedJob<'a> {
    act: Activation,
    gate: Weights<'a>,
    up: Weights<'a>,
    /// Of either.
    rows: usize,
    out: SharedMut<'a, f32>,
}

impl GatedJob<'_> {
    /// Computes the outputs of some panels, for all tokens.
    fn run(&self, part: &Part<'_>, panels: Range<usize>) {
        match part.input.n {
            0 => (),
            // A panel of each is two streams.
            1 => match streams(part.isa, self.gate.format) {
                1 => panels.clone().step_by(TURN).for_each(|from| {
                    self.in_turn(part, from..panels.end.min(from + TURN));
                }),
                2 => panels.for_each(|panel| self.panel::<1>(part, panel)),
                _ => by_streams::<{ STREAMS / 2 }>(
                    panels,
                    |panels| self.two(part, panels),
                    |panel| self.panel::<1>(part, panel),
                ),
            },
            2..=MOST_TOKENS => panels.for_each(|panel| self.panel::<MOST_TOKENS>(part, panel)),
            _ if part.input.tiled() => {
                for panels in groups(panels, GROUP / 2) {
                    let weights = |i: usize| ([self.gate, self.up][i % 2], panels.start + i / 2);
                    part.in_tiles(2 * panels.len(), &weights, &|tokens, totals| {
                        for (panel, both) in panels.clone().zip(totals.as_chunks_mut::<2>().0) {
                            let [gates, ups] = both;
                            self.finish(part.isa, panel, tokens.clone(), gates, ups);
                        }
                    });
                }
            }
            _ => panels.for_each(|panel| self.panel::<BLOCK>(part, panel)),
        }
    }

    /// Computes the outputs of up to [`TURN`] panels for a single token, gates first.
    fn in_turn(&self, part: &Part<'_>, panels: Range<usize>) {
        let (mut gates, mut ups) = ([[0.0; PANEL]; TURN], [[0.0; PANEL]; TURN]);
        for (w, sums) in [(self.gate, &mut gates), (self.up, &mut ups)] {
            for (panel, sums) in panels.clone().zip(sums) {
                totals(part, [(w, panel)], &(0..1), [std::slice::from_mut(sums)]);
            }
        }
        for ((panel, gate), up) in panels.zip(&mut gates).zip(&ups) {
            let (gate, up) = (std::slice::from_mut(gate), std::slice::from_ref(up));
            self.finish(part.isa, panel, 0..1, gate, up);
        }
    }

    /// Computes the outputs of two panels for a single token.
    fn two(&self, part: &Part<'_>, panels: [usize; 2]) {
        let mut sums = [[[0.0; PANEL]; 1]; STREAMS];
        let [a, b] = panels;
        let weights = [(self.gate, a), (self.gate, b), (self.up, a), (self.up, b)];
        totals(part, weights, &(0..1), sums.each_mut().map(|sums| &mut sums[..]));
        let [mut gate_a, mut gate_b, up_a, up_b] = sums;
        self.finish(part.isa, a, 0..1, &mut gate_a, &up_a);
        self.finish(part.isa, b, 0..1, &mut gate_b, &up_b);
    }

    /// Computes the outputs of a panel, for all tokens in blocks of `N`.
    fn panel<const N: usize>(&self, part: &Part<'_>, panel: usize) {
        for block in blocks(part.input) {
            let mut sums = Aligned([[[0.0; PANEL]; N]; 2]);
            let [gates, ups] = &mut sums.0;
            let weights = [(self.gate, panel), (self.up, panel)];
            totals(part, weights, &block, [gates, ups]);
            self.finish(part.isa, panel, tokens(part.input, &block), gates, ups);
        }
    }

    /// Writes the outputs of a panel.
    fn finish(
        &self,
        isa: Isa,
        panel: usize,
        tokens: Range<usize>,
        gates: &mut Totals,
        ups: &Totals,
    ) {
        let rows = PANEL.min(self.rows - panel * PANEL);
        activate_slice(isa, self.act, gates[..tokens.len()].as_flattened_mut());
        for ((token, gates), ups) in tokens.zip(gates).zip(ups) {
            // SAFETY: each token's rows of a panel belong to one part.
            let out = unsafe { self.out.slice(token * self.rows + panel * PANEL, rows) };
            for ((out, gate), up) in out.iter_mut().zip(gates).zip(ups) {
                *out = *gate * up;
            }
        }
    }
}

/// The sums of some panels for the tokens of some tiles; the totals are zeros.
fn totals<const P: usize>(
    part: &Part<'_>,
    weights: [(Weights<'_>, usize); P],
    tiles: &Range<usize>,
    totals: [&mut Totals; P],
) {
    let format = weights[0].0.format;
    if part.input.n == 1 && weights.iter().all(|(w, _)| w.format == format) {
        let bytes = weights.map(|(w, panel)| w.panels.get(panel));
        return panels(part, format, bytes, tiles, totals);
    }
    // Many tokens find each panel in the cache, so one after the other.
    for ((w, panel), totals) in weights.into_iter().zip(totals) {
        panels(part, w.format, [w.panels.get(panel)], tiles, [totals]);
    }
}

/// The sums of some panels of one format; the totals are zeros.
fn panels<const P: usize>(
    part: &Part<'_>,
    format: Format,
    panels: [&[u8]; P],
    tiles: &Range<usize>,
    mut totals: [&mut Totals; P],
) {
    let sums = totals.each_mut().map(|totals| &mut **totals);
    products(part, format, panels, tiles, sums);
    if format == Format::Q4 {
        let n = tokens(part.input, tiles).len();
        for (panel, totals) in panels.into_iter().zip(totals) {
            scale_rows(panel, &mut totals[..n]);
        }
    }
}

/// As [`panels`], without the row scales of q4.
fn products<const P: usize>(
    part: &Part<'_>,
    format: Format,
    panels: [&[u8]; P],
    tiles: &Range<usize>,
    totals: [&mut Totals; P],
) {
    let Part { isa, input, .. } = *part;
    match format {
        Format::F32 => floats::<F32, P>(isa, panels, input, tiles, totals),
        Format::F16 => floats::<F16, P>(isa, panels, input, tiles, totals),
        Format::Bf16 => match isa.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(avx512) if let Some(bf16) = avx512.bf16() => {
                bfloats512::bf16(bf16, panels, input, tiles, totals);
            }
            _ => floats::<Bf16, P>(isa, panels, input, tiles, totals),
        },
        Format::Q8 => match isa.level() {
            Level::Portable(_) => wide::<Q8, P>(isa, panels, input, tiles, totals),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(avx2) => integers::q8(avx2, panels, input, tiles, totals),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(avx512) => integers512::q8(avx512, panels, input, tiles, totals),
        },
        Format::Q4 => match isa.level() {
            Level::Portable(_) => wide::<Q4, P>(isa, panels, input, tiles, totals),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(avx2) => integers::q4(avx2, panels, input, tiles, totals),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(avx512) => integers512::q4(avx512, panels, input, tiles, totals),
        },
    }
}

fn floats<W: Floats, const P: usize>(
    isa: Isa,
    panels: [&[u8]; P],
    input: &Input,
    tiles: &Range<usize>,
    totals: [&mut Totals; P],
) {
    let format = PhantomData::<W>;
    if input.n == 1 {
        return isa.run(FloatSingle { panels, input, totals, format });
    }
    for (panel, totals) in panels.into_iter().zip(totals) {
        isa.run_rows(FloatTiles { panel, input, tiles: tiles.clone(), totals, format });
    }
}

fn wide<W: Widen, const P: usize>(
    isa: Isa,
    panels: [&[u8]; P],
    input: &Input,
    tiles: &Range<usize>,
    totals: [&mut Totals; P],
) {
    for (panel, totals) in panels.into_iter().zip(totals) {
        isa.run(WidePanel { panel, input, tiles: tiles.clone(), totals, format: PhantomData::<W> });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::{self, MATMUL, MatmulCase, Numbers, assert_close, assert_same_bits};
    use crate::cpu::pack::pack;
    use crate::formats::{Dense, Matrix};
    use crate::memory::Arena;
    use crate::reference;

    /// The matrix of a case, packed, and its input.
    fn setup(case: &MatmulCase, format: Format) -> (Packed, Vec<f32>, Numbers) {
        let mut numbers = Numbers::new(case.seed());
        let values = numbers.normal(case.rows * case.cols);
        let x = numbers.normal(case.n * case.cols);
        let w = Matrix::new(case.rows, case.cols, Dense::F32(&values));
        let packed = pack(Isa::best(), &Pool::new(1), format, &w, &mut Arena::new()).unwrap();
        (packed, x, numbers)
    }

    fn run(isa: Isa, n_threads: usize, w: &Packed, x: &[f32]) -> Vec<f32> {
        let pool = Pool::new(n_threads);
        let mut input = Input::new();
        input.set(isa, &pool, x, w.cols(), &[w.format()]);
        let mut out = vec![f32::NAN; input.n * w.rows()];
        linear(isa, &pool, &input, &mut [Linear::new(w, &mut out)]);
        out
    }

    /// What an input is to a kernel.
    fn seen(isa: Isa, format: Format, x: &[f32], cols: usize) -> Vec<f32> {
        match format {
            Format::Q8 if isa.has_vnni() => reference::quantize(x, cols, 32, 127.0),
            Format::Q8 if isa.has_integers() => reference::quantize(x, cols, 256, 32767.0),
            Format::Q4 if isa.has_integers() => reference::quantize(x, cols, 256, 127.0),
            Format::Bf16 if isa.multiplies_bf16() => {
                x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect()
            }
            Format::F32 | Format::F16 | Format::Bf16 | Format::Q8 | Format::Q4 => x.to_vec(),
        }
    }

    #[test]
    fn linear_matches_the_reference_in_every_format() {
        for case in MATMUL {
            for format in Format::ALL {
                let (w, x, _) = setup(case, format);
                let values = reference::unpack(&w);
                for isa in Isa::variants() {
                    let mut want = vec![0.0; case.n * case.rows];
                    reference::matmul(
                        &values,
                        case.rows,
                        case.cols,
                        &seen(isa, format, &x, case.cols),
                        &mut want,
                    );
                    let place = format!("{case:?} {format} {isa:?}");
                    assert_close(&run(isa, 2, &w, &x), &want, case.tolerance(), &place);
                }
            }
        }
    }

    #[test]
    fn quantised_activations_cost_little() {
        let case = MatmulCase { n: 3, rows: 32, cols: 1024 };
        for (format, plain, vnni) in [(Format::Q8, 3e-5, 6e-3), (Format::Q4, 8e-3, 8e-3)] {
            let (w, x, _) = setup(&case, format);
            let mut want = vec![0.0; case.n * case.rows];
            reference::matmul(&reference::unpack(&w), case.rows, case.cols, &x, &mut want);
            for isa in Isa::variants() {
                let tolerance = if isa.has_vnni() { vnni } else { plain };
                let got = run(isa, 1, &w, &x);
                let error: f32 = got.iter().zip(&want).map(|(a, b)| (a - b).powi(2)).sum();
                let size: f32 = want.iter().map(|v| v * v).sum();
                assert!(
                    (error / size).sqrt() < tolerance,
                    "{format} {isa:?}: {}",
                    (error / size).sqrt()
                );
            }
        }
    }

    #[test]
    fn the_bits_depend_on_neither_threads_nor_tokens() {
        for case in MATMUL {
            for format in Format::ALL {
                let (w, x, _) = setup(case, format);
                for isa in Isa::variants() {
                    let one_by_one: Vec<_> =
                        x.chunks(case.cols).flat_map(|x| run(isa, 1, &w, x)).collect();
                    for n_threads in [1, 2, 3] {
                        let place = format!("{case:?} {format} {isa:?} {n_threads} threads");
                        assert_same_bits(&run(isa, n_threads, &w, &x), &one_by_one, &place);
                    }
                }
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn avx512_gives_the_bits_of_avx2() {
        let wide: Vec<_> = Isa::variants().into_iter().filter(|isa| isa.has_integers()).collect();
        for case in MATMUL {
            for format in Format::ALL {
                let (w, x, _) = setup(case, format);
                // Where activations are rounded more than elsewhere, the bits are others.
                let rounded = |isa: &Isa| match format {
                    Format::Bf16 => isa.multiplies_bf16(),
                    Format::Q8 => isa.has_vnni(),
                    Format::F32 | Format::F16 | Format::Q4 => false,
                };
                for kind in [false, true] {
                    let isas: Vec<_> = wide.iter().filter(|isa| rounded(isa) == kind).collect();
                    let outs: Vec<_> = isas.iter().map(|isa| run(**isa, 1, &w, &x)).collect();
                    for out in &outs {
                        assert_same_bits(out, &outs[0], &format!("{case:?} {format} {isas:?}"));
                    }
                }
            }
        }
    }

    #[test]
    fn several_layers_with_bias_and_residual_in_one_region() {
        let shapes = [(40, Format::Bf16), (16, Format::Q8), (7, Format::Q4), (33, Format::F32)];
        for n in [1, 2, 9] {
            for isa in Isa::variants() {
                let cases =
                    shapes.map(|(rows, format)| (MatmulCase { n, rows, cols: 130 }, format));
                let weights = cases.map(|(case, format)| setup(&case, format).0);
                let mut numbers = Numbers::new(8);
                let x = numbers.normal(n * 130);
                let bias = numbers.normal(40);
                let before = numbers.normal(n * 40);
                let apart: Vec<_> = weights.iter().map(|w| run(isa, 1, w, &x)).collect();

                let mut outs = weights.each_ref().map(|w| vec![0.0; n * w.rows()]);
                let mut layers: Vec<_> =
                    weights.iter().zip(&mut outs).map(|(w, out)| Linear::new(w, out)).collect();
                let pool = Pool::new(2);
                let mut input = Input::new();
                input.set(isa, &pool, &x, 130, &Format::ALL);
                linear(isa, &pool, &input, &mut layers);
                for (apart, out) in apart.iter().zip(&outs) {
                    assert_same_bits(out, apart, &format!("{n} {isa:?}"));
                }

                let mut out = before.clone();
                let layer = Linear { w: &weights[0], bias: Some(&bias), add: true, out: &mut out };
                linear(isa, &pool, &input, &mut [layer]);
                let sum = |(i, x): (usize, &f32)| before[i] + (x + bias[i % 40]);
                let want: Vec<_> = apart[0].iter().enumerate().map(sum).collect();
                assert_same_bits(&out, &want, &format!("{n} {isa:?} residual"));
            }
        }
    }

    #[test]
    fn a_gated_layer_is_two_layers_and_a_gate() {
        for n in [1, 2, 7, 300] {
            for formats in [
                [Format::Bf16; 2],
                [Format::Q4; 2],
                [Format::Q8, Format::Q4],
                [Format::F16, Format::F32],
            ] {
                let case = MatmulCase { n, rows: 37, cols: 100 };
                let ups = MatmulCase { rows: 37, cols: 100, n: n + 1 };
                let (gate, up) = (setup(&case, formats[0]).0, setup(&ups, formats[1]).0);
                let x = Numbers::new(9).normal(n * 100);
                for isa in Isa::variants() {
                    let pool = Pool::new(2);
                    let mut want = run(isa, 1, &gate, &x);
                    let act = Activation::Silu;
                    crate::cpu::elementwise::gated(
                        isa,
                        &pool,
                        act,
                        &mut want,
                        &run(isa, 1, &up, &x),
                    );
                    let mut input = Input::new();
                    input.set(isa, &pool, &x, 100, &formats);
                    let mut out = vec![f32::NAN; n * 37];
                    gated_linear(isa, &pool, &input, act, &gate, &up, &mut out);
                    assert_same_bits(&out, &want, &format!("{n} {formats:?} {isa:?}"));
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_not_hidden() {
        let case = MatmulCase { n: 2, rows: 20, cols: 300 };
        for format in Format::ALL {
            for isa in Isa::variants() {
                for bad in [f32::NAN, f32::INFINITY] {
                    // In the activations: the token's outputs, not the other's.
                    let (w, mut x, mut numbers) = setup(&case, format);
                    x[270] = bad;
                    let out = run(isa, 1, &w, &x);
                    assert!(out[..20].iter().all(|v| !v.is_finite()), "{format} {isa:?} {bad}");
                    assert!(out[20..].iter().all(|v| v.is_finite()), "{format} {isa:?} {bad}");
                    // In the weights: the row's outputs, not the others'.
                    let mut values = numbers.normal(20 * 300);
                    values[7 * 300 + 40] = bad;
                    let w = Matrix::new(20, 300, Dense::F32(&values));
                    let w = pack(isa, &Pool::new(1), format, &w, &mut Arena::new()).unwrap();
                    for n in 1..3 {
                        let out = run(isa, 1, &w, &numbers.normal(n * 300));
                        for (i, out) in out.iter().enumerate() {
                            assert_eq!(
                                out.is_finite(),
                                i % 20 != 7,
                                "{format} {isa:?} {bad} row {i}: {out}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn extreme_integers_do_not_overflow() {
        // Weights and activations that are all at the ends of their ranges.
        for format in [Format::Q8, Format::Q4] {
            for sign in [1.0, -1.0] {
                for n in [1, 6] {
                    let (rows, cols) = (16, 1024);
                    let values = vec![sign; rows * cols];
                    let w = Matrix::new(rows, cols, Dense::F32(&values));
                    let w =
                        pack(Isa::best(), &Pool::new(1), format, &w, &mut Arena::new()).unwrap();
                    for isa in Isa::variants() {
                        for x in [3.0, -3.0] {
                            let got = run(isa, 1, &w, &vec![x; n * cols]);
                            let want = vec![sign * x * cols as f32; n * rows];
                            cases::assert_close(
                                &got,
                                &want,
                                2e-3 * 3072.0,
                                &format!("{format} {isa:?}"),
                            );
                        }
                    }
                }
            }
        }
    }
}
