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
//! With AMX, prompts go another way, see `linear_amx`: groups of panels at a time, with the same results.
//!
//! A single token is bound by memory, and a core that reads one stream may leave some of it unused: the hardware looks
//! ahead in each stream only so far. So the run of panels is cut into equal pieces, which are read side by side, as many as
//! `streams` says; whether it is asked for beforehand, says `ahead`.

use std::marker::PhantomData;
use std::ops::Range;

use super::ahead;
use super::elementwise::Activation;
use super::floats::{Bf16, F16, F32, FloatSingle, FloatTiles, Floats, WidePanel, Widen};
use super::input::{Input, MOST_TOKENS};
use super::outputs::{Place, Strided, write_gated, write_sums};
use super::quantized::{Q4, Q8};
use super::shared::SharedMut;
#[cfg(target_arch = "x86_64")]
use super::{amx::Tiles, bfloats512, integers, integers512, linear_amx};
use crate::isa::Level;
use crate::memory::Aligned;
use crate::packed::{Format, PANEL, Packed, Panels};
use crate::{Isa, Pool};

/// The most tokens of a block: their sums of one panel are 16 KiB.
const BLOCK: usize = 256;

/// The most with AMX, where what is made of each panel first is worth more.
pub(crate) const TILED_BLOCK: usize = 512;

/// The most panels that a single token reads side by side.
const STREAMS: usize = 4;

/// Panels that are summed at a time with AMX: their sums for a block of tokens are up to one MiB.
pub(crate) const GROUP: usize = 32;

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
/// Measured, in GB/s of two cores in one, two and four streams each: Zen 4, at times when 64 could be had, with AVX-512 45, – and 60 in bf16,
/// 43, 54 and 51 in q8, 51, 45 and 42 in q4; at times when 36 could be had, 34, 33 and 33 in q4. So the more is to be done for each byte,
/// the fewer streams. Where weights are asked for beforehand ([`super::ahead`]), two are enough for the quantised formats: of 31 GB/s, a
/// Xeon with AMX reached 25, 29 and 29 in q4, 26, 29 and 29 in q8 and 20, 30 and 30 in bf16. The kernels of AVX2 spread each activation
/// once for all streams, so there more of them are less work: Zen 3, at times when 20 could be had, reached 17.5 in two and 18 in four in q4,
/// 19 and 19 in q8, and (at a better time) 30 in one, 37 in two and 39 in four in bf16.
fn streams(isa: Isa, format: Format) -> usize {
    match format {
        Format::Q4 if isa.has_vnni() && !ahead::pays() => 1,
        Format::Q4 | Format::Q8 if isa.has_vnni() => 2,
        Format::F32 | Format::F16 | Format::Bf16 | Format::Q8 | Format::Q4 => STREAMS,
    }
}

/// Calls `many` with panels that are as far from each other as possible, `P` at a time, and `one` with those that are
/// left over.
fn by_streams<const P: usize>(panels: Range<usize>, many: impl Fn(Strided), one: impl Fn(usize)) {
    let piece = panels.len() / P;
    for first in panels.clone().take(piece) {
        many(Strided { first, step: piece });
    }
    (panels.start + P * piece..panels.end).for_each(one);
}

/// The blocks of tokens of an input, as ranges of tiles.
fn blocks(input: &Input) -> impl Iterator<Item = Range<usize>> {
    let tiles = input.n.div_ceil(input.tile_len);
    let len = if input.tiled() { TILED_BLOCK } else { BLOCK } / input.tile_len;
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

impl Part<'_> {
    /// Computes the totals of `count` panels with AMX, at most [`GROUP`], in blocks of tokens. `weights` tells the panels.
    fn in_tiles<'w>(
        &self,
        count: usize,
        weights: &dyn Fn(usize) -> (Weights<'w>, usize),
        finish: &dyn Fn(Range<usize>, &mut [&mut Totals]),
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Some(tiles) = &self.tiles {
            let weights = |i: usize| {
                let (w, panel) = weights(i);
                (w.format, w.panels.get(panel))
            };
            for block in blocks(self.input) {
                let tokens = tokens(self.input, &block);
                linear_amx::totals(tiles, self.input, tokens, count, &weights, finish);
            }
        }
        // On other CPUs no input is in tiles.
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (count, weights, finish);
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
                1 => self.in_streams::<1>(part, panels),
                2 => self.in_streams::<2>(part, panels),
                _ => self.in_streams::<STREAMS>(part, panels),
            },
            // Clearing the sums of a whole block would cost more than a few tokens' product with a panel.
            2..=MOST_TOKENS => panels.for_each(|panel| self.panel::<MOST_TOKENS>(part, panel)),
            _ if part.input.tiled() => {
                for panels in groups(panels, GROUP) {
                    let weights = |i: usize| (self.w, panels.start + i);
                    part.in_tiles(panels.len(), &weights, &|tokens, totals| {
                        self.finish(part.isa, Strided::from(panels.start), tokens, totals);
                    });
                }
            }
            _ => panels.for_each(|panel| self.panel::<BLOCK>(part, panel)),
        }
    }

    /// Computes the outputs of some panels for a single token, `P` at a time.
    fn in_streams<const P: usize>(&self, part: &Part<'_>, panels: Range<usize>) {
        by_streams::<P>(
            panels,
            |panels| self.single::<P>(part, panels),
            |panel| self.single::<1>(part, Strided::from(panel)),
        );
    }

    /// Computes the outputs of `P` panels for a single token.
    fn single<const P: usize>(&self, part: &Part<'_>, panels: Strided) {
        let mut sums = Aligned([[[0.0; PANEL]; 1]; P]);
        let mut sums = sums.0.each_mut().map(|sums| &mut sums[..]);
        let weights = std::array::from_fn(|i| (self.w, panels.get(i)));
        totals(part, weights, &(0..1), sums.each_mut().map(|sums| &mut **sums));
        self.finish(part.isa, panels, 0..1, &sums);
    }

    /// Computes the outputs of a panel, for all tokens in blocks of `N`.
    fn panel<const N: usize>(&self, part: &Part<'_>, panel: usize) {
        for block in blocks(part.input) {
            let tokens = tokens(part.input, &block);
            let mut sums = Aligned([[0.0; PANEL]; N]);
            let sums = &mut sums.0[..tokens.len()];
            totals(part, [(self.w, panel)], &block, [&mut *sums]);
            self.finish(part.isa, Strided::from(panel), tokens, &[sums]);
        }
    }

    /// Writes the outputs of as many panels as there are totals.
    fn finish(&self, isa: Isa, panels: Strided, tokens: Range<usize>, totals: &[&mut Totals]) {
        let place = Place { out: self.out, rows: self.rows, panels, tokens };
        // SAFETY: each token's rows of a panel belong to one part.
        unsafe { write_sums(isa, place, totals, self.bias, self.add) };
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
                1 => groups(panels, TURN).for_each(|panels| self.in_turn(part, panels)),
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
                        let totals = totals.as_chunks_mut().0;
                        self.finish(part.isa, Strided::from(panels.start), tokens, totals);
                    });
                }
            }
            _ => panels.for_each(|panel| self.panel::<BLOCK>(part, panel)),
        }
    }

    /// Computes the outputs of up to [`TURN`] panels for a single token, gates first.
    fn in_turn(&self, part: &Part<'_>, panels: Range<usize>) {
        let mut sums = Aligned([[[[0.0; PANEL]; 1]; 2]; TURN]);
        for (which, w) in [self.gate, self.up].into_iter().enumerate() {
            for (panel, sums) in panels.clone().zip(&mut sums.0) {
                totals(part, [(w, panel)], &(0..1), [&mut sums[which]]);
            }
        }
        let sums = sums.0.each_mut().map(|sums| sums.each_mut().map(|sums| &mut sums[..]));
        self.finish(part.isa, Strided::from(panels.start), 0..1, &sums[..panels.len()]);
    }

    /// Computes the outputs of two panels for a single token.
    fn two(&self, part: &Part<'_>, panels: Strided) {
        let mut sums = Aligned([[[0.0; PANEL]; 1]; STREAMS]);
        let mut sums = sums.0.each_mut().map(|sums| &mut sums[..]);
        let (a, b) = (panels.get(0), panels.get(1));
        let weights = [(self.gate, a), (self.gate, b), (self.up, a), (self.up, b)];
        totals(part, weights, &(0..1), sums.each_mut().map(|sums| &mut **sums));
        let [gate_a, gate_b, up_a, up_b] = sums;
        self.finish(part.isa, panels, 0..1, &[[gate_a, up_a], [gate_b, up_b]]);
    }

    /// Computes the outputs of a panel, for all tokens in blocks of `N`.
    fn panel<const N: usize>(&self, part: &Part<'_>, panel: usize) {
        for block in blocks(part.input) {
            let tokens = tokens(part.input, &block);
            let mut sums = Aligned([[[0.0; PANEL]; N]; 2]);
            let [gates, ups] = sums.0.each_mut().map(|sums| &mut sums[..tokens.len()]);
            let weights = [(self.gate, panel), (self.up, panel)];
            totals(part, weights, &block, [&mut *gates, &mut *ups]);
            self.finish(part.isa, Strided::from(panel), tokens, &[[gates, ups]]);
        }
    }

    /// Writes the outputs of as many panels as there are pairs of totals.
    fn finish(&self, isa: Isa, panels: Strided, tokens: Range<usize>, totals: &[[&mut Totals; 2]]) {
        let place = Place { out: self.out, rows: self.rows, panels, tokens };
        // SAFETY: as above.
        unsafe { write_gated(isa, place, self.act, totals) };
    }
}

/// The sums of some panels for the tokens of some tiles; the totals, one for each token, are zeros.
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

/// As [`totals`], for panels of one format.
fn panels<const P: usize>(
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
#[path = "linear_tests.rs"]
mod tests;
