//! A tile of attention: some queries of a head meet the keys and values of one block.
//!
//! All sums stay in registers. While a core works on one piece of the cache, it asks for the next: see [`Next`].

use std::ops::Range;

use half::f16;

use super::attention::{Job, ROWS, Softmax};
use super::cache::{BLOCK, Elements, GROUP, KEYS, KvBlock};
use super::functions::{ExpMinus, Mul, Scale, SoftCap, Unary, each, each_with, largest};
use super::rows::{BothKernel, Rows};
use super::simd::{LANES, Simd};
use crate::formats::Element;
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
    pub(super) q: &'a [f32],
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
        let (k_dim, v_dim) = (self.job.a.k_dim, self.job.a.v_dim);
        let (head, positions) = (self.kv_head, self.kv_head * BLOCK..(self.kv_head + 1) * BLOCK);
        let wide = std::mem::take(&mut self.wide);

        let (keys, values) = (&self.content.keys, &self.content.values);
        let (k_range, v_range) = (
            positions.start * k_dim..positions.end * k_dim,
            positions.start * v_dim..positions.end * v_dim,
        );
        let len = BLOCK * k_dim.div_ceil(GROUP);
        let scales = keys.scales().map(|scales| &scales[head * len..][..len]);
        let next = values.bytes_of(v_range.clone());
        match keys.part(s, k_range.clone(), wide) {
            Part::F32(k) => self.dot_keys(r, k, scales, next),
            Part::F16(k) => self.dot_keys(r, k, scales, next),
            Part::I8(k) => self.dot_keys(r, k, scales, next),
        }

        self.weigh(s);

        if let Some(scales) = values.scales().map(|scales| &scales[positions.clone()]) {
            for (scores, seen) in self.scores.iter_mut().zip(self.seen) {
                each_with(s, &mut scores[seen.clone()], &scales[seen.clone()], Mul);
            }
        }
        let next = self.next.map_or(&[][..], |block| block.keys.bytes_of(k_range));
        match values.part(s, v_range, wide) {
            Part::F32(v) => self.add_values(s, r, v, next),
            Part::F16(v) => self.add_values(s, r, v, next),
            Part::I8(v) => self.add_values(s, r, v, next),
        }
    }
}

/// An element of caches, sixteen at a time.
trait Cached: Element {
    fn load_wide<R: Rows>(r: R, from: &[Self; PANEL]) -> R::F;
}

impl Cached for f32 {
    #[inline(always)]
    fn load_wide<R: Rows>(r: R, from: &[Self; PANEL]) -> R::F {
        r.load(from)
    }
}

impl Cached for f16 {
    #[inline(always)]
    fn load_wide<R: Rows>(r: R, from: &[Self; PANEL]) -> R::F {
        // SAFETY: 32 bytes without padding.
        r.load_f16(unsafe { &*from.as_ptr().cast() })
    }
}

impl Cached for i8 {
    #[inline(always)]
    fn load_wide<R: Rows>(r: R, from: &[Self; PANEL]) -> R::F {
        r.load_i8(from)
    }
}

/// The keys or values of a head in a block.
enum Part<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    I8(&'a [i8]),
}

impl Elements {
    fn scales(&self) -> Option<&[f32]> {
        match self {
            Self::F32(_) | Self::F16(_) => None,
            Self::Q8 { scales, .. } => Some(scales),
        }
    }

    /// A part of the elements; if they are f16 and there is memory for it, widened (from i8 that costs nothing).
    #[inline(always)]
    fn part<'a, S: Simd>(&'a self, s: S, range: Range<usize>, wide: &'a mut [f32]) -> Part<'a> {
        match self {
            Self::F32(values) => Part::F32(&values[range]),
            Self::F16(values) if wide.is_empty() => Part::F16(&values[range]),
            Self::F16(values) => Part::F32(widen(s, &values[range], wide)),
            Self::Q8 { values, .. } => Part::I8(&values[range]),
        }
    }
}

/// Elements as f32, in `to`.
#[inline(always)]
fn widen<'a, S: Simd>(s: S, from: &[f16], to: &'a mut [f32]) -> &'a [f32] {
    let to = &mut to[..from.len()];
    for (from, to) in from.as_chunks::<LANES>().0.iter().zip(to.as_chunks_mut::<LANES>().0) {
        s.store(s.load_f16(from), to);
    }
    to
}

impl Tile<'_> {
    /// The scores of all queries for the keys of a head, `[panels, k_dim, KEYS]`, as far as any of them sees. `next` is
    /// what is read after them.
    #[inline(always)]
    fn dot_keys<R: Rows, E: Cached>(
        &mut self,
        r: R,
        keys: &[E],
        scales: Option<&[f32]>,
        next: &[u8],
    ) {
        let (mut from, mut to) = (BLOCK, 0);
        for one in self.seen {
            if !one.is_empty() {
                (from, to) = (from.min(one.start), to.max(one.end));
            }
        }
        let dim = self.job.a.k_dim;
        let keys = Keys { keys, scales, dim, next: Next::new(next, BLOCK / KEYS * dim) };
        let (mut panel, end) = (from / KEYS, to.div_ceil(KEYS));
        // Few queries meet several panels at a time, or each sum would have to wait for the one before it.
        let several = match self.rows.len() {
            1 => 4,
            2 | 3 => 2,
            _ if R::VECTORS == 1 => 2,
            _ => 1,
        };
        while panel < end {
            let step = if panel + several <= end { several } else { 1 };
            let groups = self.scores.chunks_mut(GROUPED);
            for (q, scores) in self.q.chunks(GROUPED * keys.dim).zip(groups) {
                match (scores.len(), step) {
                    (1, 4) => keys.dot::<R, 1, 4>(r, q, panel, scores),
                    (2, 2) => keys.dot::<R, 2, 2>(r, q, panel, scores),
                    (3, 2) => keys.dot::<R, 3, 2>(r, q, panel, scores),
                    (4, 2) if R::VECTORS == 1 => keys.dot::<R, 4, 2>(r, q, panel, scores),
                    (5, 2) if R::VECTORS == 1 => keys.dot::<R, 5, 2>(r, q, panel, scores),
                    (6, 2) if R::VECTORS == 1 => keys.dot::<R, GROUPED, 2>(r, q, panel, scores),
                    (1, _) => keys.dot_each::<R, 1>(r, q, panel, step, scores),
                    (2, _) => keys.dot_each::<R, 2>(r, q, panel, step, scores),
                    (3, _) => keys.dot_each::<R, 3>(r, q, panel, step, scores),
                    (4, _) => keys.dot_each::<R, 4>(r, q, panel, step, scores),
                    (5, _) => keys.dot_each::<R, 5>(r, q, panel, step, scores),
                    _ => keys.dot_each::<R, GROUPED>(r, q, panel, step, scores),
                }
            }
            panel += step;
        }
    }

    /// Turns the scores of each query into weights `e^(score - top)`, and moves its softmax on: each step for all
    /// queries, so that none waits for what another has to do one after the other.
    #[inline(always)]
    fn weigh<S: Simd>(&mut self, s: S) {
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
            let sum = self.softmax[i].sum * factor + turn_to_weights(s, scores, top);
            self.softmax[i] = Softmax { top, sum };
            if factor != 1.0 {
                let v_dim = self.job.a.v_dim;
                each(s, &mut self.sums[i * v_dim..][..v_dim], Scale(factor));
            }
        }
    }

    /// Caps the scores and adds what they owe to the distance, where that is asked for.
    #[inline(always)]
    fn adjust<S: Simd>(&mut self, s: S) {
        let a = self.job.a;
        for (i, row) in self.rows.clone().enumerate() {
            let seen = self.seen[i].clone();
            let scores = &mut self.scores[i][seen.clone()];
            if let Some(cap) = a.softcap {
                each(s, scores, SoftCap(cap));
            }
            if let Some(slopes) = a.alibi_slopes {
                let slope = slopes[self.job.head(self.kv_head, row)];
                let (position, first) = (self.job.position(row), self.block * BLOCK);
                for (score, key) in scores.iter_mut().zip(seen) {
                    *score -= slope * (position - (first + key)) as f32;
                }
            }
        }
    }

    /// Adds the weighted values of a head, `[BLOCK, v_dim]`, to the sums of all queries. `next` is what is read after
    /// them.
    #[inline(always)]
    fn add_values<S: Simd, R: Rows, E: Cached>(&mut self, s: S, r: R, values: &[E], next: &[u8]) {
        let dim = self.job.a.v_dim;
        let groups = self.scores.chunks(GROUPED).zip(self.sums.chunks_mut(GROUPED * dim));
        for ((weights, sums), seen) in groups.zip(self.seen.chunks(GROUPED)) {
            // What all of them see, they meet together; what only some see, each alone, before and after.
            let mut common = 0..BLOCK;
            for one in seen {
                common = common.start.max(one.start)..common.end.min(one.end);
            }
            let together = Mix { weights, values, dim, seen: common.clone(), next };
            if common.is_empty() {
                for (i, seen) in seen.iter().enumerate() {
                    together.alone(s, r, i, seen.clone(), sums);
                }
                continue;
            }
            for (i, seen) in seen.iter().enumerate() {
                together.alone(s, r, i, seen.start..common.start, sums);
            }
            together.all(s, r, sums);
            for (i, seen) in seen.iter().enumerate() {
                together.alone(s, r, i, common.end..seen.end, sums);
            }
        }
    }
}

/// The keys of a head in a block.
#[derive(Clone, Copy)]
struct Keys<'a, E> {
    /// `[panels, dim, KEYS]`
    keys: &'a [E],
    /// `[panels, groups, KEYS]`
    scales: Option<&'a [f32]>,
    dim: usize,
    /// What is read after the keys, in steps of an element of a panel.
    next: Next<'a>,
}

/// What is read next. A core that meets each line of memory unprepared waits most of its time, and one that asks for many
/// at once waits for room to ask: so it asks for a little at each step of what it does meanwhile. One token after 4096
/// others then takes 0.55 to 0.65 of the time in f16, and 0.64 to 0.9 in 8 bits (two Zen 4 cores; asking for a panel's
/// share at once did not help).
#[derive(Clone, Copy)]
struct Next<'a> {
    bytes: &'a [u8],
    /// Bytes for each step.
    share: usize,
}

impl<'a> Next<'a> {
    /// `bytes`, to be asked for in so many steps.
    fn new(bytes: &'a [u8], steps: usize) -> Self {
        Self { bytes, share: bytes.len().div_ceil(steps) }
    }

    /// Asks for what belongs to a step.
    #[inline(always)]
    fn ask<R: Rows>(&self, r: R, step: usize) {
        // To look for an address that is not mapped takes long.
        if !self.bytes.is_empty() {
            r.prefetch(self.bytes, step * self.share);
        }
    }
}

impl<E: Cached> Keys<'_, E> {
    /// As [`Self::dot`], one panel after the other.
    #[inline(always)]
    fn dot_each<R: Rows, const Q: usize>(
        &self,
        r: R,
        q: &[f32],
        panel: usize,
        panels: usize,
        scores: &mut Scores,
    ) {
        for panel in panel..panel + panels {
            self.dot::<R, Q, 1>(r, q, panel, scores);
        }
    }

    /// `scores[q][p] = q[q] · key[p]` for `Q` queries, `[dim, Q]`, and the keys of `P` panels from `panel` on.
    #[inline(always)]
    fn dot<R: Rows, const Q: usize, const P: usize>(
        &self,
        r: R,
        q: &[f32],
        panel: usize,
        scores: &mut Scores,
    ) {
        let mut totals = [[r.splat(0.0); P]; Q];
        let (q, _) = q.as_chunks::<Q>();
        let len = if self.scales.is_some() { GROUP } else { self.dim };
        let mut panels = [const { &[] as &[[E; KEYS]] }; P];
        let mut from = 0;
        while from < self.dim {
            let to = self.dim.min(from + len);
            for (i, keys) in panels.iter_mut().enumerate() {
                *keys = &self.keys.as_chunks::<KEYS>().0[(panel + i) * self.dim..][from..to];
            }
            let sums = products(r, &q[from..to], panels, &self.next, panel * self.dim + from * P);
            match self.scales {
                None => totals = sums,
                Some(scales) => {
                    let groups = self.dim.div_ceil(GROUP);
                    unroll!(p in 0..P => {
                        let at = ((panel + p) * groups + from / GROUP) * KEYS;
                        let scales = r.load(scales[at..].first_chunk().expect("scales of a panel"));
                        unroll!(i in 0..Q => {
                            totals[i][p] = r.mul_add(sums[i][p], scales, totals[i][p]);
                        });
                    });
                }
            }
            from = to;
        }
        for (totals, scores) in totals.iter().zip(scores) {
            let scores = scores[panel * KEYS..][..P * KEYS].as_chunks_mut::<KEYS>().0;
            for (v, to) in totals.iter().zip(scores) {
                r.store(*v, to);
            }
        }
    }
}

/// The products of `Q` queries with the keys of `P` panels; asks for what is read `next` from `step` on.
#[inline(always)]
fn products<R: Rows, E: Cached, const Q: usize, const P: usize>(
    r: R,
    q: &[[f32; Q]],
    panels: [&[[E; KEYS]]; P],
    next: &Next<'_>,
    step: usize,
) -> [[R::F; P]; Q] {
    let mut sums = [[r.splat(0.0); P]; Q];
    for panel in panels {
        assert_eq!(panel.len(), q.len(), "elements of queries and keys");
    }
    for (d, q) in q.iter().enumerate() {
        unroll!(p in 0..P => {
            next.ask(r, step + d * P + p);
            // SAFETY: all have the same length.
            let key = E::load_wide(r, unsafe { panels[p].get_unchecked(d) });
            unroll!(i in 0..Q => { sums[i][p] = r.mul_add(r.splat(q[i]), key, sums[i][p]); });
        });
    }
    sums
}

/// `sums[r] += weights[r][p] * values[p]` for the places that are seen, in order; `sums` is `[rows, dim]`.
struct Mix<'a, E> {
    weights: &'a Scores,
    /// `[BLOCK, dim]`
    values: &'a [E],
    dim: usize,
    seen: Range<usize>,
    /// What is read after the values.
    next: &'a [u8],
}

impl<E: Cached> Mix<'_, E> {
    /// For one query and what it sees.
    #[inline(always)]
    fn alone<S: Simd, R: Rows>(
        &self,
        s: S,
        r: R,
        row: usize,
        seen: Range<usize>,
        sums: &mut [f32],
    ) {
        if !seen.is_empty() {
            let weights = &self.weights[row..=row];
            let sums = &mut sums[row * self.dim..][..self.dim];
            Mix { weights, seen, next: &[], ..*self }.rows::<S, R, 1, 4>(s, r, sums);
        }
    }

    /// For all queries: with as many vectors at a time as there are registers for.
    #[inline(always)]
    fn all<S: Simd, R: Rows>(&self, s: S, r: R, sums: &mut [f32]) {
        match (self.weights.len(), R::VECTORS) {
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
        let (mut at, mut step) = (0, 0);
        let next = Next::new(self.next, self.dim.div_ceil(V * PANEL) * BLOCK);
        while at + V * PANEL <= self.dim {
            self.strip::<R, Q, V>(r, at, &next, step, sums);
            (at, step) = (at + V * PANEL, step + BLOCK);
        }
        while at + PANEL <= self.dim {
            self.strip::<R, Q, 1>(r, at, &next, step, sums);
            (at, step) = (at + PANEL, step + BLOCK);
        }
        for at in (at..self.dim).step_by(LANES) {
            self.rest(s, at, sums);
        }
    }

    /// For all queries and at most eight elements from `at` on.
    #[inline(always)]
    fn rest<S: Simd>(&self, s: S, at: usize, sums: &mut [f32]) {
        let end = self.dim.min(at + LANES);
        for (weights, sums) in self.weights.iter().zip(sums.chunks_exact_mut(self.dim)) {
            let sums = &mut sums[at..end];
            let mut sum = s.load_some(sums, 0.0);
            for p in self.seen.clone() {
                let value = E::load_some(s, &self.values[p * self.dim + at..][..sums.len()]);
                sum = s.mul_add(s.splat(weights[p]), value, sum);
            }
            s.store_some(sum, sums);
        }
    }

    /// For `Q` queries and the elements from `at` on; asks for what is read `next` from `step` on.
    #[inline(always)]
    fn strip<R: Rows, const Q: usize, const V: usize>(
        &self,
        r: R,
        at: usize,
        next: &Next<'_>,
        step: usize,
        sums: &mut [f32],
    ) {
        let place = |q: usize| q * self.dim + at..q * self.dim + at + V * PANEL;
        let weights = self.weights.first_chunk::<Q>().expect("weights of each query");
        let mut totals = [[r.splat(0.0); V]; Q];
        unroll!(q in 0..Q => {
            let sums = sums[place(q)].as_chunks::<PANEL>().0;
            unroll!(v in 0..V => { totals[q][v] = r.load(&sums[v]); });
        });
        let seen = self.seen.clone();
        assert!(seen.end <= BLOCK && seen.end * self.dim <= self.values.len());
        assert!(at + V * PANEL <= self.dim, "elements of values");
        for p in seen {
            next.ask(r, step + p);
            // SAFETY: the row of each place is inside, and the elements are inside the row.
            let values =
                unsafe { &*self.values.as_ptr().add(p * self.dim + at).cast::<[[E; PANEL]; V]>() };
            let mut value = [r.splat(0.0); V];
            unroll!(v in 0..V => { value[v] = E::load_wide(r, &values[v]); });
            unroll!(q in 0..Q => {
                let weight = r.splat(weights[q][p]);
                unroll!(v in 0..V => { totals[q][v] = r.mul_add(weight, value[v], totals[q][v]); });
            });
        }
        unroll!(q in 0..Q => {
            let sums = sums[place(q)].as_chunks_mut::<PANEL>().0;
            unroll!(v in 0..V => { r.store(totals[q][v], &mut sums[v]); });
        });
    }
}

/// Turns scores into weights `e^(score - top)`, and gives their sum.
#[inline(always)]
fn turn_to_weights<S: Simd>(s: S, scores: &mut [f32], top: f32) -> f32 {
    let weight = ExpMinus(top);
    let (whole, rest) = scores.as_chunks_mut::<LANES>();
    let last = weight.apply(s, s.load_some(rest, f32::NEG_INFINITY));
    s.store_some(last, rest);
    let mut sum = last;
    for v in whole {
        let weight = weight.apply(s, s.load(v));
        s.store(weight, v);
        sum = s.add(sum, weight);
    }
    s.sum(sum)
}
