//! Attention of prompts with AMX, over caches in f16 and in 8 bits: see [`super::amx`].
//!
//! A part is some tokens of a key/value head. It goes through the blocks with a running softmax for each query, as
//! [`super::attention`] does, and widens each block once for all of its queries. 32 of them at a time meet 32 keys, then with
//! their weights 32 elements of the values.
//!
//! Queries and weights have 17 bits here: see [`super::parts_amx`]. So a query's bits are not those that it would have alone, and to
//! depend on nothing but its position, whole groups of [`TILED`] positions are computed here or none of them.
//!
//! Measured on a Xeon, a prompt of 512 after 3584 others: 2.7 (heads of 64) to 3.2 times (128) the speed of AVX-512. Half of the time goes
//! into products, which run at half of what the registers allow (what they are loaded from, and the sums, fill the first-level cache
//! and more), a third into weights, an eighth into widening. To do these at the same time on one core, products between vectors,
//! gained a tenth: what multiplies tiles takes a port that vectors need.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::wildcard_imports, reason = "the names of the intrinsics say where they come from")]

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::amx::{Amx, HALVES, SIDE, Tiles};
use super::attention::{Job, Softmax, TILED};
use super::cache::{BLOCK, KEYS};
use super::functions::{Scale, each};
use super::parts_amx::{LANES, Parts, Square, first_lanes, multiply, plain_nan};
use super::shared::SharedMut;
use super::simd::{Kernel, Simd};
use super::tile::Adjust;
use super::weigh_amx::{Seen, weigh};
use super::widen_kv::Cached;
use crate::Pool;
use crate::memory::{Aligned, Lines};

/// Queries that meet keys together.
pub(super) const ROWS: usize = 2 * SIDE;

const _: () = assert!(
    TILED.is_multiple_of(ROWS),
    "groups of positions are whole tiles, for any number of heads"
);

/// Queries of a part, about: a block is widened once for all of them, and their sums stay in the second-level cache.
const PART: usize = 512;

/// Steps of the positions of a block.
pub(super) const STEPS: usize = BLOCK / HALVES;

/// The scores of 32 queries for the positions of a block.
pub(super) type Scores = [[f32; BLOCK]; ROWS];

/// The weights of 32 queries for steps of positions.
pub(super) type Weights = [Parts; STEPS];

/// What a thread needs for a part.
struct Scratch {
    /// `[queries / ROWS, steps of elements]`
    q: Vec<Parts>,
    /// `[pairs of panels, steps of elements]`
    keys: Vec<Parts>,
    /// `[pairs of tiles of elements, steps of positions]`
    values: Vec<Parts>,
    /// `[queries, width]`
    sums: Lines<f32>,
    scores: Aligned<Scores>,
    weights: Weights,
    softmax: Vec<Softmax>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            q: Vec::new(),
            keys: Vec::new(),
            values: Vec::new(),
            sums: Lines::new(),
            scores: Aligned([[0.0; BLOCK]; ROWS]),
            weights: [Parts::ZERO; STEPS],
            softmax: Vec::new(),
        })
    };
}

/// At least `len` of something.
fn grown<T: Clone>(all: &mut Vec<T>, len: usize, new: T) -> &mut [T] {
    if all.len() < len {
        all.resize(len, new);
    }
    &mut all[..len]
}

/// The attention of whole groups of [`TILED`] positions.
pub(super) fn attend(amx: Amx, pool: &Pool, job: &Job<'_>, out: &mut [f32]) {
    let (heads, group) = (job.a.n_kv_heads, job.a.group());
    let n = job.rows / group;
    let mut tokens = (PART / group / TILED * TILED).max(TILED);
    // A part for each thread, and one more for who is done first; as sums belong to queries, this changes no bit.
    while tokens > TILED && heads * n.div_ceil(tokens) < 2 * pool.n_threads() {
        tokens -= TILED;
    }
    let parts = n.div_ceil(tokens);
    let out = SharedMut::new(out);
    pool.run(heads * parts, &|part| {
        // The last tokens see most, so they come first.
        let (kv_head, first) = (part % heads, (parts - 1 - part / heads) * tokens);
        let rows = first * group..n.min(first + tokens) * group;
        SCRATCH.with_borrow_mut(|scratch| {
            let part = Part { job, kv_head, rows, tiles: &Tiles::new(amx) };
            // SAFETY: where there is AMX, there is AVX-512.
            unsafe { part.run(scratch, &out) };
        });
    });
}

/// Some queries of a key/value head.
struct Part<'a> {
    job: &'a Job<'a>,
    kv_head: usize,
    rows: Range<usize>,
    tiles: &'a Tiles,
}

impl Part<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn run(&self, scratch: &mut Scratch, out: &SharedMut<'_, f32>) {
        let a = self.job.a;
        let (k_steps, v_pairs) = (a.k_dim.div_ceil(HALVES), a.v_dim.div_ceil(2 * SIDE));
        let width = v_pairs * 2 * SIDE;
        let Scratch { q, keys, values, sums, softmax, scores, weights } = scratch;
        let q = grown(q, self.rows.len() / ROWS * k_steps, Parts::ZERO);
        let keys = grown(keys, BLOCK / (2 * KEYS) * k_steps, Parts::ZERO);
        let values = grown(values, v_pairs * STEPS, Parts::ZERO);
        let softmax = grown(softmax, self.rows.len(), Softmax::START);
        sums.grow(self.rows.len() * width);
        let sums = &mut sums[..self.rows.len() * width];
        sums.fill(0.0);
        softmax.fill(Softmax::START);
        self.lay_queries(q, k_steps);

        let last = self.job.position(self.rows.end - 1);
        let first = self.job.a.first_seen(self.job.position(self.rows.start));
        for block in first / BLOCK..last / BLOCK + 1 {
            let places = (last + 1 - block * BLOCK).min(BLOCK);
            let cached = self.cached(block);
            cached.widen_keys(places, keys);
            let all_finite = cached.widen_values(places, values);
            let block = Block { part: self, block, q, keys, values, all_finite };
            block.run(scores, weights, softmax, sums);
        }
        for (i, row) in self.rows.clone().enumerate() {
            // SAFETY: each query's output belongs to one part.
            let out = unsafe { out.slice(self.job.query(self.kv_head, row) * a.v_dim, a.v_dim) };
            softmax[i].finish(&sums[i * width..][..a.v_dim], out);
        }
    }

    /// The keys and values of a block.
    fn cached(&self, block: usize) -> Cached<'_> {
        Cached { block: self.job.block(block), head: self.kv_head }
    }

    /// The queries, times the factor of the scores; those are logarithms to the base of 2 here.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn lay_queries(&self, to: &mut [Parts], steps: usize) {
        let scale = _mm512_set1_ps(self.job.a.scale * std::f32::consts::LOG2_E);
        for (i, row) in self.rows.clone().enumerate() {
            let q = self.job.query_of(self.kv_head, row);
            for (step, q) in q.chunks(HALVES).enumerate() {
                let (first, second) = q.split_at(LANES.min(q.len()));
                let first = plain_nan(_mm512_mul_ps(load_some(first), scale));
                let second = plain_nan(_mm512_mul_ps(load_some(second), scale));
                to[i / ROWS * steps + step].store(i % ROWS, first, second);
            }
        }
    }
}

/// Up to 16 numbers, and zeros behind the last.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load_some(from: &[f32]) -> __m512 {
    // SAFETY: only what is inside is loaded.
    unsafe { _mm512_maskz_loadu_ps(first_lanes(from.len()), from.as_ptr()) }
}

/// The queries of a part and the keys and values of a block.
struct Block<'a> {
    part: &'a Part<'a>,
    block: usize,
    q: &'a [Parts],
    keys: &'a [Parts],
    values: &'a [Parts],
    all_finite: bool,
}

impl Block<'_> {
    fn run(
        &self,
        scores: &mut Aligned<Scores>,
        weights: &mut Weights,
        softmax: &mut [Softmax],
        sums: &mut [f32],
    ) {
        let len = sums.len() / (softmax.len() / ROWS);
        let each = softmax.chunks_exact_mut(ROWS).zip(sums.chunks_exact_mut(len));
        for (i, (softmax, sums)) in each.enumerate() {
            let seen = self.seen(i);
            if seen.steps.is_empty() {
                continue;
            }
            self.dot(i, &seen, &mut scores.0);
            self.adjust(&seen, &mut scores.0);
            // SAFETY: where there is AMX, there is AVX-512.
            unsafe { weigh(&seen, &scores.0, weights, softmax, sums) };
            self.add(&seen, weights, sums);
            if !self.all_finite {
                self.part.cached(self.block).add_not_finite(&seen.each(), weights, sums);
            }
        }
    }

    /// What the queries see.
    fn seen(&self, i: usize) -> Seen<'_> {
        Seen::new(self.part.job, self.part.rows.start + i * ROWS, self.block)
    }

    /// The scores of 32 queries.
    fn dot(&self, i: usize, seen: &Seen<'_>, scores: &mut Scores) {
        let steps = self.q.len() / (self.part.rows.len() / ROWS);
        let q = &self.q[i * steps..][..steps];
        let numbers = SharedMut::new(scores.as_flattened_mut());
        let squares = seen.steps.clone().map(|i| {
            (&self.keys[i * steps..][..steps], Square { numbers, at: i * 2 * SIDE, line: BLOCK })
        });
        multiply(self.part.tiles, q, squares, false);
    }

    /// Adds the weighted values to the sums of 32 queries.
    fn add(&self, seen: &Seen<'_>, weights: &Weights, sums: &mut [f32]) {
        let line = sums.len() / ROWS;
        let numbers = SharedMut::new(sums);
        let squares = self.values.chunks_exact(STEPS).enumerate().map(|(i, values)| {
            (&values[seen.steps.clone()], Square { numbers, at: i * 2 * SIDE, line })
        });
        multiply(self.part.tiles, &weights[seen.steps.clone()], squares, true);
    }

    /// Caps the scores, and adds what they owe to the distance, where that is asked for.
    fn adjust(&self, seen: &Seen<'_>, scores: &mut Scores) {
        let Part { job, kv_head, .. } = *self.part;
        if job.a.softcap.is_none() && job.a.alibi_slopes.is_none() {
            return;
        }
        let block = self.block;
        for ((row, seen), scores) in (seen.row..).zip(seen.each()).zip(scores) {
            job.isa.run(AdjustDoubled(Adjust { job, kv_head, row, block, seen, scores }));
        }
    }
}

/// As [`Adjust`], for scores that are logarithms to the base of 2.
struct AdjustDoubled<'a>(Adjust<'a>);

impl Kernel for AdjustDoubled<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Adjust { job, kv_head, row, block, seen, scores } = self.0;
        each(s, scores, Scale(std::f32::consts::LN_2));
        Adjust { job, kv_head, row, block, seen, scores: &mut *scores }.run(s);
        each(s, scores, Scale(std::f32::consts::LOG2_E));
    }
}
