//! A head's keys and values in 8 bits, as a tile of attention meets them: all in integers.
//!
//! Queries and weights are rounded to 16 bits, with a unit for each query (of a weight: for each query and block), so that
//! one instruction multiplies two of them with two bytes and adds both products. Sums of integers are exact: of 32
//! elements of a key, which share a scale, and of all values of a block. The rounding is 256 times finer than that of keys
//! and values. What is not finite ends in a unit, or in the sum of the weights that all is divided by at last.

use std::ops::Range;

use super::cache::{BLOCK, GROUP, KEYS};
use super::functions::{Mul, each_with, largest_magnitude};
use super::prepare::{inverse_and_unit, round_to};
use super::rows::Rows;
use super::simd::{Kernel, LANES, Simd};
use super::tile::{GROUPED, Keys, Next, Scores, Shares, Values, any_sees, unroll};
use crate::packed::PANEL;

const _: () = assert!(32_767 * 127 * BLOCK as u64 <= i32::MAX as u64, "a block's sums fit i32");

/// Two elements of a query, or two weights.
pub(super) type Pair = [i16; 2];

/// Lays a query among those of its group, `[pairs of elements, queries of the group]`, and gives its unit.
pub(super) struct RoundQuery<'a> {
    pub(super) q: &'a [f32],
    /// What each element is multiplied with before.
    pub(super) scale: f32,
    pub(super) to: &'a mut [Pair],
    /// Queries of the group.
    pub(super) count: usize,
    /// Which of them this is.
    pub(super) i: usize,
}

impl Kernel for RoundQuery<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (inverse, unit) = inverse_and_unit(largest_magnitude(s, self.q), f32::from(i16::MAX));
        for (q, to) in self.q.chunks(LANES).zip(self.to.chunks_mut(LANES / 2 * self.count)) {
            let mut eight = [0; LANES];
            s.store_i16(s.mul(s.load_first(q), s.splat(inverse)), &mut eight);
            for (pair, to) in eight.as_chunks().0.iter().zip(to.chunks_mut(self.count)) {
                to[self.i] = *pair;
            }
        }
        unit * self.scale
    }
}

/// The keys of a head in a block.
pub(super) struct ByteKeys<'a> {
    /// The queries, `[groups, pairs, queries of a group]`.
    pub(super) q: &'a [Pair],
    /// One for each query.
    pub(super) units: &'a [f32],
    /// `[panels, pairs, KEYS, 2]`
    pub(super) keys: &'a [[i8; 2 * KEYS]],
    /// `[panels, groups of elements, KEYS]`
    pub(super) scales: &'a [[f32; KEYS]],
    pub(super) pairs: usize,
    /// What is read after the keys, in steps of a pair of a panel.
    pub(super) next: Next<'a>,
}

impl Keys for ByteKeys<'_> {
    #[inline(always)]
    fn dot<R: Rows, const Q: usize, const P: usize>(
        &self,
        r: R,
        group: usize,
        panel: usize,
        scores: &mut Scores,
    ) {
        let q = &self.q[group * GROUPED * self.pairs..].as_chunks::<Q>().0[..self.pairs];
        let groups = self.pairs.div_ceil(GROUP / 2);
        let mut totals = [[r.splat(0.0); P]; Q];
        for (i, q) in q.chunks(GROUP / 2).enumerate() {
            let from = i * (GROUP / 2);
            let mut panels = [const { &[] as &[[i8; 2 * KEYS]] }; P];
            for (p, keys) in panels.iter_mut().enumerate() {
                *keys = &self.keys[(panel + p) * self.pairs + from..][..q.len()];
            }
            let next = self.next.from(panel * self.pairs + from * P);
            let sums = products::<R, Q, P>(r, q, panels, next);
            unroll!(p in 0..P => {
                let scales = r.load(&self.scales[(panel + p) * groups + i]);
                unroll!(q in 0..Q => {
                    totals[q][p] = r.mul_add(r.to_f32(sums[q][p]), scales, totals[q][p]);
                });
            });
        }
        let units = self.units[group * GROUPED..].first_chunk::<Q>().expect("units of the queries");
        for ((totals, unit), scores) in totals.iter().zip(units).zip(scores) {
            let scores = scores[panel * KEYS..][..P * KEYS].as_chunks_mut::<KEYS>().0;
            for (v, to) in totals.iter().zip(scores) {
                r.store(r.mul_add(*v, r.splat(*unit), r.splat(0.0)), to);
            }
        }
    }
}

/// The products of `Q` queries with the keys of `P` panels; asks for a share of `next` with each key.
#[inline(always)]
fn products<R: Rows, const Q: usize, const P: usize>(
    r: R,
    q: &[[Pair; Q]],
    panels: [&[[i8; 2 * KEYS]]; P],
    mut next: Shares<'_>,
) -> [[R::Sums; P]; Q] {
    let mut sums = [[r.no_sums(); P]; Q];
    for panel in panels {
        assert_eq!(panel.len(), q.len(), "pairs of queries and keys");
    }
    for (d, q) in q.iter().enumerate() {
        unroll!(p in 0..P => {
            next.ask(r);
            // SAFETY: all have the same length.
            let key = r.load_pairs(unsafe { panels[p].get_unchecked(d) });
            unroll!(i in 0..Q => {
                sums[i][p] = r.add_pairs(r.splat_pair(q[i]), key, sums[i][p]);
            });
        });
    }
    sums
}

/// The weights of a group of queries for the values of a block, rounded; zero for what a query does not see.
pub(super) struct RoundWeights {
    weights: [[Pair; BLOCK / 2]; GROUPED],
    units: [f32; GROUPED],
    /// Pairs of places that any of them sees.
    pairs: Range<usize>,
}

impl RoundWeights {
    /// Of weights that still have to be multiplied with the scales of the values, and are here.
    #[inline(always)]
    pub(super) fn new<S: Simd>(
        s: S,
        weights: &mut Scores,
        scales: &[f32],
        seen: &[Range<usize>],
    ) -> Self {
        let any = any_sees(seen);
        let mut out = Self {
            weights: [[[0; 2]; BLOCK / 2]; GROUPED],
            units: [0.0; GROUPED],
            pairs: any.start / 2..any.end.div_ceil(2),
        };
        for (i, (weights, seen)) in weights.iter_mut().zip(seen).enumerate() {
            if seen.is_empty() {
                continue;
            }
            weights[..seen.start].fill(0.0);
            weights[seen.end..].fill(0.0);
            each_with(s, &mut weights[seen.clone()], &scales[seen.clone()], Mul);
            let rounded = out.weights[i].as_flattened_mut();
            out.units[i] = round_to(s, weights, f32::from(i16::MAX), rounded);
        }
        out
    }
}

/// The values of a head in a block.
pub(super) struct ByteValues<'a> {
    pub(super) weights: &'a RoundWeights,
    /// `[BLOCK / 2, dim, 2]`
    pub(super) values: &'a [i8],
    pub(super) dim: usize,
    /// What is read after the values.
    pub(super) next: &'a [u8],
}

impl Values for ByteValues<'_> {
    #[inline(always)]
    fn dim(&self) -> usize {
        self.dim
    }

    #[inline(always)]
    fn next(&self, strips: usize) -> (Next<'_>, usize) {
        (Next::new(self.next, strips * (BLOCK / 2)), BLOCK / 2)
    }

    #[inline(always)]
    fn strip<R: Rows, const Q: usize, const V: usize>(
        &self,
        r: R,
        at: usize,
        next: &Next<'_>,
        step: usize,
        sums: &mut [f32],
    ) {
        let RoundWeights { weights, units, pairs } = self.weights;
        let (weights, units) = (weights.first_chunk::<Q>(), units.first_chunk::<Q>());
        let (Some(weights), Some(units)) = (weights, units) else {
            unreachable!("a group has so many queries");
        };
        let mut totals = [[r.no_sums(); V]; Q];
        assert!(pairs.end <= BLOCK / 2 && 2 * pairs.end * self.dim <= self.values.len());
        assert!(at + V * PANEL <= self.dim, "elements of values");
        let mut next = next.from(step + pairs.start);
        for pair in pairs.clone() {
            next.ask(r);
            // SAFETY: the row of each pair is inside, and the elements are inside the row.
            let values = unsafe {
                let first = self.values.as_ptr().add(2 * (pair * self.dim + at));
                &*first.cast::<[[i8; 2 * PANEL]; V]>()
            };
            let mut value = [r.no_pairs(); V];
            unroll!(v in 0..V => { value[v] = r.load_pairs(&values[v]); });
            unroll!(q in 0..Q => {
                let weight = r.splat_pair(weights[q][pair]);
                unroll!(v in 0..V => {
                    totals[q][v] = r.add_pairs(weight, value[v], totals[q][v]);
                });
            });
        }
        unroll!(q in 0..Q => {
            let sums = sums[q * self.dim + at..][..V * PANEL].as_chunks_mut::<PANEL>().0;
            unroll!(v in 0..V => {
                let sum = r.mul_add(r.to_f32(totals[q][v]), r.splat(units[q]), r.load(&sums[v]));
                r.store(sum, &mut sums[v]);
            });
        });
    }

    #[inline(always)]
    fn rest<S: Simd, R: Rows>(&self, _: S, r: R, at: usize, sums: &mut [f32]) {
        let RoundWeights { weights, units, pairs } = self.weights;
        let len = self.dim - at;
        let rows = weights.iter().zip(units).zip(sums.chunks_exact_mut(self.dim));
        for ((weights, unit), sums) in rows {
            let mut totals = r.no_sums();
            for pair in pairs.clone() {
                let mut values = [0; 2 * PANEL];
                let from = &self.values[2 * (pair * self.dim + at)..][..2 * len];
                values[..2 * len].copy_from_slice(from);
                let weight = r.splat_pair(weights[pair]);
                totals = r.add_pairs(weight, r.load_pairs(&values), totals);
            }
            let mut some = [0.0; PANEL];
            some[..len].copy_from_slice(&sums[at..]);
            let sum = r.mul_add(r.to_f32(totals), r.splat(*unit), r.load(&some));
            r.store(sum, &mut some);
            sums[at..].copy_from_slice(&some[..len]);
        }
    }
}
