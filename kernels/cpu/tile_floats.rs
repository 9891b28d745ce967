//! A head's keys and values in f32 or f16, as a tile of attention meets them.

use std::ops::Range;

use half::f16;

use super::cache::{BLOCK, KEYS};
use super::rows::Rows;
use super::simd::{LANES, Simd};
use super::tile::{GROUPED, Keys, Next, Scores, Values, unroll};
use crate::formats::Element;
use crate::packed::PANEL;

/// An element of caches, sixteen at a time.
pub(super) trait Cached: Element {
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

/// Elements as f32, in `to`.
#[inline(always)]
pub(super) fn widen<'a, S: Simd>(s: S, from: &[f16], to: &'a mut [f32]) -> &'a [f32] {
    let to = &mut to[..from.len()];
    for (from, to) in from.as_chunks::<LANES>().0.iter().zip(to.as_chunks_mut::<LANES>().0) {
        s.store(s.load_f16(from), to);
    }
    to
}

/// The keys of a head in a block.
pub(super) struct FloatKeys<'a, E> {
    /// The queries, `[groups, dim, queries of a group]`.
    pub(super) q: &'a [f32],
    /// `[panels, dim, KEYS]`
    pub(super) keys: &'a [E],
    pub(super) dim: usize,
    /// What is read after the keys, in steps of an element of a panel.
    pub(super) next: Next<'a>,
}

impl<E: Cached> Keys for FloatKeys<'_, E> {
    #[inline(always)]
    fn dot<R: Rows, const Q: usize, const P: usize>(
        &self,
        r: R,
        group: usize,
        panel: usize,
        scores: &mut Scores,
    ) {
        let q = &self.q[group * GROUPED * self.dim..].as_chunks::<Q>().0[..self.dim];
        let (all, _) = self.keys.as_chunks::<KEYS>();
        let mut panels = [const { &[] as &[[E; KEYS]] }; P];
        for (i, keys) in panels.iter_mut().enumerate() {
            *keys = &all[(panel + i) * self.dim..][..self.dim];
        }
        let mut next = self.next.from(panel * self.dim);
        let mut sums = [[r.splat(0.0); P]; Q];
        for (d, q) in q.iter().enumerate() {
            unroll!(p in 0..P => {
                next.ask(r);
                // SAFETY: all have as many elements as the queries.
                let key = E::load_wide(r, unsafe { panels[p].get_unchecked(d) });
                unroll!(i in 0..Q => { sums[i][p] = r.mul_add(r.splat(q[i]), key, sums[i][p]); });
            });
        }
        for (sums, scores) in sums.iter().zip(scores) {
            let scores = scores[panel * KEYS..][..P * KEYS].as_chunks_mut::<KEYS>().0;
            for (v, to) in sums.iter().zip(scores) {
                r.store(*v, to);
            }
        }
    }
}

/// The values of a head in a block, to be summed in the order of the places that are seen.
pub(super) struct FloatValues<'a, E> {
    pub(super) weights: &'a Scores,
    /// `[BLOCK, dim]`
    pub(super) values: &'a [E],
    pub(super) dim: usize,
    pub(super) seen: Range<usize>,
    /// What is read after the values.
    pub(super) next: &'a [u8],
}

impl<E: Cached> FloatValues<'_, E> {
    /// Adds what each of a group of queries sees to its sums: what all of them see, they meet together; what only some see,
    /// each alone, before and after.
    #[inline(always)]
    pub(super) fn add<S: Simd, R: Rows>(
        &self,
        s: S,
        r: R,
        seen: &[Range<usize>],
        sums: &mut [f32],
    ) {
        let mut common = 0..BLOCK;
        for one in seen {
            common = common.start.max(one.start)..common.end.min(one.end);
        }
        if common.is_empty() {
            for (i, seen) in seen.iter().enumerate() {
                self.alone(s, r, i, seen.clone(), sums);
            }
            return;
        }
        for (i, seen) in seen.iter().enumerate() {
            self.alone(s, r, i, seen.start..common.start, sums);
        }
        let n = self.weights.len();
        Self { seen: common.clone(), ..*self }.all(s, r, n, sums);
        for (i, seen) in seen.iter().enumerate() {
            self.alone(s, r, i, common.end..seen.end, sums);
        }
    }

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
            Self { weights, seen, next: &[], ..*self }.all(s, r, 1, sums);
        }
    }
}

impl<E: Cached> Values for FloatValues<'_, E> {
    #[inline(always)]
    fn dim(&self) -> usize {
        self.dim
    }

    #[inline(always)]
    fn next(&self, strips: usize) -> (Next<'_>, usize) {
        (Next::new(self.next, strips * BLOCK), BLOCK)
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
        let mut next = next.from(step + seen.start);
        for p in seen {
            next.ask(r);
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

    #[inline(always)]
    fn rest<S: Simd, R: Rows>(&self, s: S, _: R, at: usize, sums: &mut [f32]) {
        for at in (at..self.dim).step_by(LANES) {
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
    }
}
