//! A tile of attention: some queries of a head meet the keys and values of one block.
//!
//! All sums stay in registers. While a core works on one piece of the cache, it asks for the next: see [`Next`].

use std::ops::Range;

use super::attention::{Job, Queries, ROWS, Softmax};
use super::cache::{BLOCK, Elements, KEYS, KvBlock};
use super::functions::{ExpMinus, Scale, SoftCap, Unary, each, largest};
use super::rows::{BothKernel, Rows};
use super::simd::{Kernel, LANES, Simd};
use super::tile_bytes::{ByteKeys, ByteValues, RoundWeights};
use super::tile_floats::{Cached, FloatKeys, FloatValues, widen};
use crate::packed::PANEL;

/// Queries that meet a key together: with 16 keys, their sums fill the registers.
pub(super) const GROUPED: usize = 6;

/// Repeats a body for a number below `$n`, at most 8, as straight code: with indices that are constants from the outset,
/// arrays of sums are sure to stay in registers, where a loop that is unrolled late may leave them in memory.
macro_rules! unroll {
    ($i:ident in 0..$n:ident => $body:block) => {
        unroll!(@ $i $n $body 0 1 2 3 4 5 6 7)
    };
    (@ $i:ident $n:ident $body:block $($at:literal)*) => {
        const { assert!($n <= 8) };
        $(if $at < $n {
            let $i = $at;
            $body
        })*
    };
}
pub(super) use unroll;

/// The scores of queries for the positions of a block, then their weights.
pub(super) type Scores = [[f32; BLOCK]];

/// Some queries of a head that meet a block.
pub(super) struct Tile<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) kv_head: usize,
    pub(super) rows: Range<usize>,
    pub(super) block: usize,
    pub(super) content: &'a KvBlock,
    /// The block that comes after it.
    pub(super) next: Option<&'a KvBlock>,
    /// What each query sees of the block.
    pub(super) seen: &'a [Range<usize>],
    pub(super) q: Queries<'a>,
    pub(super) scores: &'a mut Scores,
    pub(super) sums: &'a mut [f32],
    pub(super) softmax: &'a mut [Softmax],
    /// Memory to widen the f16 keys or values of a head, or none.
    pub(super) wide: &'a mut [f32],
}

impl BothKernel for Tile<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd, R: Rows>(mut self, s: S, r: R) {
        let (keys, values, shape) =
            (&self.content.keys, &self.content.values, self.content.shape());
        let [k_range, v_range] = shape.of_head(self.kv_head);
        let [k_scales, v_scales] = shape.scales_of_head(self.kv_head);
        let wide = std::mem::take(&mut self.wide);
        let next = values.bytes_of(v_range.clone());
        match (keys, self.q) {
            (Elements::F32(k), Queries::Floats(q)) => {
                self.dot_floats(r, q, &k[k_range.clone()], next)
            }
            (Elements::F16(k), Queries::Floats(q)) if wide.is_empty() => {
                self.dot_floats(r, q, &k[k_range.clone()], next);
            }
            (Elements::F16(k), Queries::Floats(q)) => {
                self.dot_floats(r, q, widen(s, &k[k_range.clone()], wide), next);
            }
            (Elements::Q8 { values, scales }, Queries::Rounded { q, units }) => {
                let (keys, _) = values[k_range.clone()].as_chunks();
                let (scales, _) = scales[k_scales.clone()].as_chunks();
                let pairs = shape.key_len() / 2;
                let next = Next::new(next, BLOCK / KEYS * pairs);
                self.dot_keys(r, &ByteKeys { q, units, keys, scales, pairs, next });
            }
            _ => unreachable!("queries are rounded for keys in 8 bits alone"),
        }

        let next = self.next.map_or(&[][..], |block| block.keys.bytes_of(k_range));
        // Not more than a line at a time.
        let steps = self.rows.len() * (BLOCK / LANES);
        let (soon, next) = next.split_at((64 * steps).min(next.len() / 3));
        self.weigh(s, r, Next::new(soon, steps));

        if let Some(next) = self.next {
            // Of these there are few lines, so all of them at once: 1.02 to 1.06 times as fast (Zen 3).
            next.keys.ask_for_scales(r, k_scales);
            next.values.ask_for_scales(r, v_scales.clone());
        }
        match values {
            Elements::F32(v) => self.add_floats(s, r, &v[v_range], next),
            Elements::F16(v) if wide.is_empty() => self.add_floats(s, r, &v[v_range], next),
            Elements::F16(v) => self.add_floats(s, r, widen(s, &v[v_range], wide), next),
            Elements::Q8 { values, scales } => {
                self.add_bytes(s, r, &values[v_range], &scales[v_scales], next);
            }
        }
    }
}

impl Elements {
    /// Asks for some of the scales, where there are any.
    #[inline(always)]
    fn ask_for_scales<R: Rows>(&self, r: R, range: Range<usize>) {
        if let Self::Q8 { scales, .. } = self {
            // SAFETY: numbers without padding may be read as bytes.
            let bytes = unsafe { scales[range].align_to().1 };
            for line in (0..bytes.len()).step_by(64) {
                r.prefetch(bytes, line);
            }
        }
    }
}

/// The keys of a head in a block, and the queries that meet them.
pub(super) trait Keys {
    /// `scores[q][p] = q[q] · key[p]` for the `Q` queries of a group and the keys of `P` panels from `panel` on.
    fn dot<R: Rows, const Q: usize, const P: usize>(
        &self,
        r: R,
        group: usize,
        panel: usize,
        scores: &mut Scores,
    );

    /// As [`Self::dot`], one panel after the other.
    #[inline(always)]
    fn dot_each<R: Rows, const Q: usize>(
        &self,
        r: R,
        group: usize,
        panels: Range<usize>,
        scores: &mut Scores,
    ) {
        for panel in panels {
            self.dot::<R, Q, 1>(r, group, panel, scores);
        }
    }
}

/// The values of a head in a block, and the weights of a group of queries for them:
/// `sums[q] += weights[q][p] * values[p]` for the places that are seen; `sums` is `[queries, dim]`.
pub(super) trait Values {
    /// Width of a value.
    fn dim(&self) -> usize;

    /// What is read next, to be asked for while so many strips are summed, and the steps of a strip.
    fn next(&self, strips: usize) -> (Next<'_>, usize);

    /// For `Q` queries and `V` vectors of sixteen elements from `at` on; asks for what is read `next` from `step` on.
    fn strip<R: Rows, const Q: usize, const V: usize>(
        &self,
        r: R,
        at: usize,
        next: &Next<'_>,
        step: usize,
        sums: &mut [f32],
    );

    /// For all queries and the elements from `at` on, fewer than sixteen.
    fn rest<S: Simd, R: Rows>(&self, s: S, r: R, at: usize, sums: &mut [f32]);

    /// For `n` queries: with as many vectors at a time as there are registers for.
    #[inline(always)]
    fn all<S: Simd, R: Rows>(&self, s: S, r: R, n: usize, sums: &mut [f32]) {
        match (n, R::VECTORS) {
            (1, _) => self.rows::<S, R, 1, 4>(s, r, sums),
            (2, 1) => self.rows::<S, R, 2, 4>(s, r, sums),
            (3, 1) => self.rows::<S, R, 3, 4>(s, r, sums),
            (4, 1) => self.rows::<S, R, 4, 2>(s, r, sums),
            (5, 1) => self.rows::<S, R, 5, 2>(s, r, sums),
            (_, 1) => self.rows::<S, R, GROUPED, 2>(s, r, sums),
            (2, _) => self.rows::<S, R, 2, 2>(s, r, sums),
            (3, _) => self.rows::<S, R, 3, 2>(s, r, sums),
            (4, _) => self.rows::<S, R, 4, 1>(s, r, sums),
            (5, _) => self.rows::<S, R, 5, 1>(s, r, sums),
            _ => self.rows::<S, R, GROUPED, 1>(s, r, sums),
        }
    }

    /// For `Q` queries, `V` vectors of sixteen lanes at a time.
    #[inline(always)]
    fn rows<S: Simd, R: Rows, const Q: usize, const V: usize>(&self, s: S, r: R, sums: &mut [f32]) {
        let (mut at, mut step, dim) = (0, 0, self.dim());
        let (next, steps) = self.next(dim.div_ceil(V * PANEL));
        while at + V * PANEL <= dim {
            self.strip::<R, Q, V>(r, at, &next, step, sums);
            (at, step) = (at + V * PANEL, step + steps);
        }
        while at + PANEL <= dim {
            self.strip::<R, Q, 1>(r, at, &next, step, sums);
            (at, step) = (at + PANEL, step + steps);
        }
        if at < dim {
            self.rest(s, r, at, sums);
        }
    }
}

impl Tile<'_> {
    #[inline(always)]
    fn dot_floats<R: Rows, E: Cached>(&mut self, r: R, q: &[f32], keys: &[E], next: &[u8]) {
        let dim = self.job.a.k_dim;
        let next = Next::new(next, BLOCK / KEYS * dim);
        self.dot_keys(r, &FloatKeys { q, keys, dim, next });
    }

    /// The scores of all queries for the keys of a head, as far as any of them sees.
    #[inline(always)]
    fn dot_keys<R: Rows, K: Keys>(&mut self, r: R, keys: &K) {
        let any = any_sees(self.seen);
        let (mut panel, end) = (any.start / KEYS, any.end.div_ceil(KEYS));
        // Few queries meet several panels at a time, or each sum would have to wait for the one before it.
        let several = match self.rows.len() {
            1 => 4,
            2 | 3 => 2,
            _ if R::VECTORS == 1 => 2,
            _ => 1,
        };
        while panel < end {
            let step = if panel + several <= end { several } else { 1 };
            let panels = panel..panel + step;
            for (group, scores) in self.scores.chunks_mut(GROUPED).enumerate() {
                let panels = panels.clone();
                match (scores.len(), step) {
                    (1, 4) => keys.dot::<R, 1, 4>(r, group, panel, scores),
                    (2, 2) => keys.dot::<R, 2, 2>(r, group, panel, scores),
                    (3, 2) => keys.dot::<R, 3, 2>(r, group, panel, scores),
                    (4, 2) if R::VECTORS == 1 => keys.dot::<R, 4, 2>(r, group, panel, scores),
                    (5, 2) if R::VECTORS == 1 => keys.dot::<R, 5, 2>(r, group, panel, scores),
                    (6, 2) if R::VECTORS == 1 => keys.dot::<R, GROUPED, 2>(r, group, panel, scores),
                    (1, _) => keys.dot_each::<R, 1>(r, group, panels, scores),
                    (2, _) => keys.dot_each::<R, 2>(r, group, panels, scores),
                    (3, _) => keys.dot_each::<R, 3>(r, group, panels, scores),
                    (4, _) => keys.dot_each::<R, 4>(r, group, panels, scores),
                    (5, _) => keys.dot_each::<R, 5>(r, group, panels, scores),
                    _ => keys.dot_each::<R, GROUPED>(r, group, panels, scores),
                }
            }
            panel += step;
        }
    }

    /// Turns the scores of each query into weights `e^(score - top)`, and moves its softmax on: each step for all
    /// queries, so that none waits for what another has to do one after the other.
    #[inline(always)]
    fn weigh<S: Simd, R: Rows>(&mut self, s: S, r: R, next: Next<'_>) {
        let mut next = next.from(0);
        self.adjust(s);
        let rows = self.rows.len();
        let mut tops = [f32::NEG_INFINITY; ROWS];
        for (i, top) in tops[..rows].iter_mut().enumerate() {
            *top = largest(s, &self.scores[i][self.seen[i].clone()], self.softmax[i].top);
        }
        // What was summed before is worth so much less now.
        let mut factors = [0.0; ROWS];
        for (i, factor) in factors[..rows].iter_mut().enumerate() {
            *factor = self.softmax[i].top - tops[i];
        }
        each(s, &mut factors[..rows], ExpMinus(0.0));
        for (i, (top, factor)) in tops.into_iter().zip(factors).take(rows).enumerate() {
            let scores = &mut self.scores[i][self.seen[i].clone()];
            if top == f32::NEG_INFINITY && !scores.iter().any(|score| score.is_nan()) {
                scores.fill(0.0);
                continue;
            }
            let sum = self.softmax[i].sum * factor + turn_to_weights(s, r, scores, top, &mut next);
            self.softmax[i] = Softmax { top, sum };
            if factor != 1.0 {
                let v_dim = self.job.a.v_dim;
                each(s, &mut self.sums[i * v_dim..][..v_dim], Scale(factor));
            }
        }
    }

    /// See [`Adjust`].
    #[inline(always)]
    fn adjust<S: Simd>(&mut self, s: S) {
        let Self { job, kv_head, block, .. } = *self;
        for (i, row) in self.rows.clone().enumerate() {
            let (seen, scores) = (self.seen[i].clone(), &mut self.scores[i]);
            Adjust { job, kv_head, row, block, seen, scores }.run(s);
        }
    }

    /// Adds the weighted values of a head, `[BLOCK, v_dim]`, to the sums of all queries. `next` is what is read after
    /// them.
    #[inline(always)]
    fn add_floats<S: Simd, R: Rows, E: Cached>(&mut self, s: S, r: R, values: &[E], next: &[u8]) {
        let dim = self.job.a.v_dim;
        let groups = self.scores.chunks(GROUPED).zip(self.sums.chunks_mut(GROUPED * dim));
        for ((weights, sums), seen) in groups.zip(self.seen.chunks(GROUPED)) {
            FloatValues { weights, values, dim, seen: 0..0, next }.add(s, r, seen, sums);
        }
    }

    /// As [`Self::add_floats`], of values in 8 bits.
    #[inline(always)]
    fn add_bytes<S: Simd, R: Rows>(
        &mut self,
        s: S,
        r: R,
        values: &[i8],
        scales: &[f32],
        next: &[u8],
    ) {
        let dim = self.job.a.v_dim;
        let groups = self.scores.chunks_mut(GROUPED).zip(self.sums.chunks_mut(GROUPED * dim));
        for ((weights, sums), seen) in groups.zip(self.seen.chunks(GROUPED)) {
            let weights = &RoundWeights::new(s, weights, scales, seen);
            ByteValues { weights, values, dim, next }.all(s, r, seen.len(), sums);
        }
    }
}

/// Caps the scores of a query and adds what they owe to the distance, where that is asked for.
pub(super) struct Adjust<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) kv_head: usize,
    pub(super) row: usize,
    pub(super) block: usize,
    pub(super) seen: Range<usize>,
    pub(super) scores: &'a mut [f32; BLOCK],
}

impl Kernel for Adjust<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { job, row, seen, .. } = self;
        let scores = &mut self.scores[seen.clone()];
        if let Some(cap) = job.a.softcap {
            each(s, scores, SoftCap(cap));
        }
        if let Some(slopes) = job.a.alibi_slopes {
            let slope = slopes[job.head(self.kv_head, row)];
            let (position, first) = (job.position(row), self.block * BLOCK);
            for (score, key) in scores.iter_mut().zip(seen) {
                *score -= slope * (position - (first + key)) as f32;
            }
        }
    }
}

/// What is read next. A core that meets each line of memory unprepared waits most of its time, and one that asks for many
/// at once waits for room to ask: so it asks for a little at each step of what it does meanwhile. One token after 4096
/// others then takes 0.55 to 0.65 of the time in f16, and 0.64 to 0.9 in 8 bits (two Zen 4 cores; asking for a panel's
/// share at once did not help). It asks while it turns scores into weights, too, or memory would have nothing to do in that
/// time: 1.05 to 1.15 times as fast in 8 bits (two cores of a Xeon with AMX).
#[derive(Clone, Copy)]
pub(super) struct Next<'a> {
    bytes: &'a [u8],
    /// Bytes for each step.
    share: usize,
}

impl<'a> Next<'a> {
    /// `bytes`, to be asked for in so many steps.
    pub(super) fn new(bytes: &'a [u8], steps: usize) -> Self {
        // Where nothing is read next, the same byte is asked for: to look for an address that is not mapped takes long.
        let asked = if bytes.is_empty() { &[0] } else { bytes };
        Self { bytes: asked, share: bytes.len().div_ceil(steps) }
    }

    /// What belongs to the steps from `step` on.
    #[inline(always)]
    pub(super) fn from(&self, step: usize) -> Shares<'a> {
        Shares { of: *self, at: step * self.share }
    }
}

/// What is read next, from some step on.
pub(super) struct Shares<'a> {
    of: Next<'a>,
    /// Where what belongs to the next step begins.
    at: usize,
}

impl Shares<'_> {
    /// Asks for what belongs to one step more.
    #[inline(always)]
    pub(super) fn ask<R: Rows>(&mut self, r: R) {
        r.prefetch(self.of.bytes, self.at);
        self.at += self.of.share;
    }
}

/// The places of a block from the first to the last that any query sees; an empty range where there are none.
pub(super) fn any_sees(seen: &[Range<usize>]) -> Range<usize> {
    let (mut from, mut to) = (BLOCK, 0);
    for one in seen {
        if !one.is_empty() {
            (from, to) = (from.min(one.start), to.max(one.end));
        }
    }
    from..to
}

/// Turns scores into weights `e^(score - top)`, and gives their sum; asks for a share of `next` with each vector.
#[inline(always)]
fn turn_to_weights<S: Simd, R: Rows>(
    s: S,
    r: R,
    scores: &mut [f32],
    top: f32,
    next: &mut Shares<'_>,
) -> f32 {
    let weight = ExpMinus(top);
    let (whole, rest) = scores.as_chunks_mut::<LANES>();
    let last = weight.apply(s, s.load_some(rest, f32::NEG_INFINITY));
    s.store_some(last, rest);
    let mut sum = last;
    for v in whole {
        next.ask(r);
        let weight = weight.apply(s, s.load(v));
        s.store(weight, v);
        sum = s.add(sum, weight);
    }
    s.sum(sum)
}
