//! Attention of new tokens over the key/value cache.
//!
//! The cache is made of blocks of [`BLOCK`] positions. Each token goes through the blocks in order, with a running
//! maximum and sum (the softmax of Milakov and Gimelshein, 2018, as flash attention uses it), so the work on a block is
//! the same whether a token comes alone or with many: a prompt gives the same bits however it is cut. All scores and
//! sums are f32. Each key and value is loaded once for several query heads that share it.

use half::f16;

use super::elementwise::f32_to_f16;
use super::math::{exp, tanh};
use super::shared::SharedMut;
use super::simd::{Kernel, LANES, Simd};
use crate::formats::Element;
use crate::{Isa, Pool};

/// Positions in a block of the cache: with heads of 128 in f16, the keys of a block and head are 32 KiB.
pub const BLOCK: usize = 128;

/// Query heads that are worked on together.
const HEADS: usize = 4;

/// The keys or the values of one block, `[n_kv_heads, BLOCK, head width]`.
#[derive(Clone, Copy, Debug)]
pub enum Kv<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
}

/// The keys or the values of one block, to write.
#[derive(Debug)]
pub enum KvMut<'a> {
    /// 32-bit floats.
    F32(&'a mut [f32]),
    /// IEEE half precision.
    F16(&'a mut [f16]),
}

/// A block of the cache: [`BLOCK`] positions of one layer. Keys and values have the same element type.
#[derive(Clone, Copy, Debug)]
pub struct KvBlock<'a> {
    /// Keys, `[n_kv_heads, BLOCK, k_dim]`.
    pub k: Kv<'a>,
    /// Values, `[n_kv_heads, BLOCK, v_dim]`.
    pub v: Kv<'a>,
}

/// The part of a layer's cache that attention reads.
#[derive(Clone, Copy, Debug)]
pub struct KvView<'a> {
    /// The position of the first element of the first block; a multiple of [`BLOCK`].
    pub first: usize,
    /// Blocks without gaps.
    pub blocks: &'a [KvBlock<'a>],
}

/// What kind of attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`. Query head `h` uses key/value head `h / (n_heads / n_kv_heads)`.
    pub n_kv_heads: usize,
    /// Width of a query and a key head.
    pub k_dim: usize,
    /// Width of a value head.
    pub v_dim: usize,
    /// The factor of the scores, mostly `1 / sqrt(k_dim)`.
    pub scale: f32,
    /// With a window, a token at `p` sees the positions from `p - window + 1` on.
    pub window: Option<usize>,
    /// With a cap, the scaled score becomes `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// ALiBi: head `h` adds `slopes[h] * (key position - query position)` to its scaled scores.
    pub alibi_slopes: Option<&'a [f32]>,
}

/// Attention of `n` tokens at the positions `start ..` over the cache, in which their own keys and values already are.
///
/// `q` is `[n, n_heads, k_dim]`, `out` is `[n, n_heads, v_dim]`. A token sees itself and what is before it (within the
/// window). Where all scores of a token are minus infinity, its output is zero.
///
/// # Panics
/// When lengths do not fit together, or the cache does not hold all positions that are seen.
pub fn attend(
    isa: Isa,
    pool: &Pool,
    a: &Attention<'_>,
    q: &[f32],
    start: usize,
    kv: &KvView<'_>,
    out: &mut [f32],
) {
    let n = q.len().checked_div(a.n_heads * a.k_dim).unwrap_or(0);
    a.check(q.len(), out.len(), n);
    kv.check(a, a.first_seen(start), start + n);
    let group = a.n_heads / a.n_kv_heads;
    let out = SharedMut::new(out);
    pool.run(n * a.n_kv_heads, &|part| {
        let (token, kv_head) = (part / a.n_kv_heads, part % a.n_kv_heads);
        for from in (0..group).step_by(HEADS) {
            let (head, count) = (kv_head * group + from, HEADS.min(group - from));
            let row = token * a.n_heads + head;
            let q = &q[row * a.k_dim..][..count * a.k_dim];
            // SAFETY: each token and head belongs to one part.
            let out = unsafe { out.slice(row * a.v_dim, count * a.v_dim) };
            isa.run(Heads { a, kv, head, kv_head, position: start + token, q, out });
        }
    });
}

impl Attention<'_> {
    /// The first position that a token at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    fn check(&self, q: usize, out: usize, n: usize) {
        assert!(
            self.n_kv_heads > 0 && self.n_heads.is_multiple_of(self.n_kv_heads),
            "{} query heads over {} key/value heads",
            self.n_heads,
            self.n_kv_heads
        );
        let want = (n * self.n_heads * self.k_dim, n * self.n_heads * self.v_dim);
        assert_eq!((q, out), want, "attention: queries, outputs");
        if let Some(slopes) = self.alibi_slopes {
            assert_eq!(slopes.len(), self.n_heads, "attention: slopes");
        }
    }
}

impl KvView<'_> {
    /// Checks that the positions `from .. to` are there and that the blocks are large enough.
    fn check(&self, a: &Attention<'_>, from: usize, to: usize) {
        let end = self.first + self.blocks.len() * BLOCK;
        assert!(
            self.first.is_multiple_of(BLOCK),
            "the cache begins inside a block: {}",
            self.first
        );
        assert!(
            to <= from || (self.first <= from && to <= end),
            "the cache holds the positions {} .. {end}, attention needs {from} .. {to}",
            self.first
        );
        for block in self.blocks {
            assert_eq!(block.k.len(), a.n_kv_heads * BLOCK * a.k_dim, "attention: keys of a block");
            assert_eq!(
                block.v.len(),
                a.n_kv_heads * BLOCK * a.v_dim,
                "attention: values of a block"
            );
        }
    }
}

impl Kv<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::F16(data) => data.len(),
        }
    }
}

/// Up to [`HEADS`] query heads of one token that share a key/value head.
struct Heads<'a> {
    a: &'a Attention<'a>,
    kv: &'a KvView<'a>,
    /// The first of the query heads.
    head: usize,
    kv_head: usize,
    /// Of the token.
    position: usize,
    /// `[heads, k_dim]`
    q: &'a [f32],
    /// `[heads, v_dim]`: while we go through the blocks, the sum of the values seen so far, each times `e^(score - top)`.
    out: &'a mut [f32],
}

/// The running softmax of a head.
#[derive(Clone, Copy)]
struct Softmax {
    /// The largest score so far.
    top: f32,
    /// The sum of `e^(score - top)` so far.
    sum: f32,
}

impl Kernel for Heads<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { a, kv, .. } = self;
        self.out.fill(0.0);
        let mut softmax = [Softmax { top: f32::NEG_INFINITY, sum: 0.0 }; HEADS];
        let first = a.first_seen(self.position);
        for block in (first / BLOCK)..=(self.position / BLOCK) {
            let at = block * BLOCK;
            let seen = first.max(at) - at..(self.position + 1).min(at + BLOCK) - at;
            let KvBlock { k, v } = kv.blocks[block - kv.first / BLOCK];
            let mut scores = [[0.0_f32; BLOCK]; HEADS];
            let heads = self.kv_head * BLOCK;
            match k {
                Kv::F32(k) => {
                    dot_keys(s, self.q, &k[heads * a.k_dim..], a.k_dim, seen.clone(), &mut scores)
                }
                Kv::F16(k) => {
                    dot_keys(s, self.q, &k[heads * a.k_dim..], a.k_dim, seen.clone(), &mut scores)
                }
            }
            for (h, out) in self.out.chunks_exact_mut(a.v_dim).enumerate() {
                let scores = &mut scores[h][seen.clone()];
                adjust_scores(s, a, self.head + h, self.position, at + seen.start, scores);
                let factor = update_softmax(s, &mut softmax[h], scores);
                out.iter_mut().for_each(|out| *out *= factor);
            }
            match v {
                Kv::F32(v) => {
                    add_values(s, &scores, &v[heads * a.v_dim..], a.v_dim, seen, self.out)
                }
                Kv::F16(v) => {
                    add_values(s, &scores, &v[heads * a.v_dim..], a.v_dim, seen, self.out)
                }
            }
        }
        for (out, softmax) in self.out.chunks_exact_mut(a.v_dim).zip(softmax) {
            let factor = if softmax.sum == 0.0 { 0.0 } else { 1.0 / softmax.sum };
            out.iter_mut().for_each(|out| *out *= factor);
        }
    }
}

/// `scores[h][p] = q[h] · k[p]` for the positions `seen`.
#[inline(always)]
fn dot_keys<S: Simd, E: Element>(
    s: S,
    q: &[f32],
    k: &[E],
    dim: usize,
    seen: std::ops::Range<usize>,
    scores: &mut [[f32; BLOCK]; HEADS],
) {
    for p in seen {
        let (k, k_rest) = k[p * dim..][..dim].as_chunks::<LANES>();
        let mut sums = [s.splat(0.0); HEADS];
        for (sum, q) in sums.iter_mut().zip(q.chunks_exact(dim)) {
            let (q, q_rest) = q.as_chunks::<LANES>();
            for (q, k) in q.iter().zip(k) {
                *sum = s.mul_add(s.load(q), E::load(s, k), *sum);
            }
            if !k_rest.is_empty() {
                *sum = s.mul_add(s.load_some(q_rest, 0.0), E::load_some(s, k_rest), *sum);
            }
        }
        for (scores, sum) in scores.iter_mut().zip(sums) {
            scores[p] = s.sum(sum);
        }
    }
}

/// Scale, cap and ALiBi, for the scores of one head at the key positions from `at` on.
#[inline(always)]
fn adjust_scores<S: Simd>(
    s: S,
    a: &Attention<'_>,
    head: usize,
    position: usize,
    at: usize,
    scores: &mut [f32],
) {
    each(s, scores, |v| s.mul(v, s.splat(a.scale)));
    if let Some(cap) = a.softcap {
        each(s, scores, |v| s.mul(s.splat(cap), tanh(s, s.div(v, s.splat(cap)))));
    }
    if let Some(slopes) = a.alibi_slopes {
        for (i, score) in scores.iter_mut().enumerate() {
            *score -= slopes[head] * (position - (at + i)) as f32;
        }
    }
}

/// Turns scores into weights `e^(score - top)`, and gives the factor for all that was summed before.
#[inline(always)]
fn update_softmax<S: Simd>(s: S, softmax: &mut Softmax, scores: &mut [f32]) -> f32 {
    let top = scores.iter().copied().fold(softmax.top, |a, b| if a < b { b } else { a });
    if top == f32::NEG_INFINITY && !scores.iter().any(|score| score.is_nan()) {
        scores.fill(0.0);
        return 1.0;
    }
    each(s, scores, |v| exp(s, s.sub(v, s.splat(top))));
    let factor = s.lanes(exp(s, s.splat(softmax.top - top)))[0];
    let (whole, rest) = scores.as_chunks::<LANES>();
    let mut sum = s.load_some(rest, 0.0);
    for v in whole {
        sum = s.add(sum, s.load(v));
    }
    *softmax = Softmax { top, sum: softmax.sum * factor + s.sum(sum) };
    factor
}

/// `out[h] += weights[h][p] * v[p]` for the positions `seen`, in order.
#[inline(always)]
fn add_values<S: Simd, E: Element>(
    s: S,
    weights: &[[f32; BLOCK]; HEADS],
    v: &[E],
    dim: usize,
    seen: std::ops::Range<usize>,
    out: &mut [f32],
) {
    for p in seen {
        let (v, v_rest) = v[p * dim..][..dim].as_chunks::<LANES>();
        for (out, weights) in out.chunks_exact_mut(dim).zip(weights) {
            let weight = s.splat(weights[p]);
            let (out, out_rest) = out.as_chunks_mut::<LANES>();
            for (out, v) in out.iter_mut().zip(v) {
                let sum = s.mul_add(weight, E::load(s, v), s.load(out));
                s.store(sum, out);
            }
            let sum = s.mul_add(weight, E::load_some(s, v_rest), s.load_some(out_rest, 0.0));
            s.store_some(sum, out_rest);
        }
    }
}

/// `x = f(x)` for all vectors of a slice.
#[inline(always)]
fn each<S: Simd>(s: S, x: &mut [f32], f: impl Fn(S::F) -> S::F) {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    for v in whole {
        let y = f(s.load(v));
        s.store(y, v);
    }
    let y = f(s.load_some(rest, 0.0));
    s.store_some(y, rest);
}

/// Writes the keys or values of tokens to a block, `rows` being `[n, n_kv_heads, dim]`, the first at place `at` of the
/// block.
///
/// # Panics
/// When the rows leave the block, or lengths do not fit together.
pub fn store_kv(
    isa: Isa,
    block: KvMut<'_>,
    n_kv_heads: usize,
    dim: usize,
    at: usize,
    rows: &[f32],
) {
    let len = match &block {
        KvMut::F32(data) => data.len(),
        KvMut::F16(data) => data.len(),
    };
    let n = rows.len().checked_div(n_kv_heads * dim).unwrap_or(0);
    assert_eq!(
        (len, rows.len()),
        (n_kv_heads * BLOCK * dim, n * n_kv_heads * dim),
        "store_kv: block, rows"
    );
    assert!(at + n <= BLOCK, "store_kv: {n} rows at place {at} of a block of {BLOCK}");
    if n == 0 {
        return;
    }
    let places = |row: usize| {
        let (token, head) = (row / n_kv_heads, row % n_kv_heads);
        let place = (head * BLOCK + at + token) * dim;
        place..place + dim
    };
    match block {
        KvMut::F32(block) => {
            for (i, row) in rows.chunks_exact(dim).enumerate() {
                block[places(i)].copy_from_slice(row);
            }
        }
        KvMut::F16(block) => {
            for (i, row) in rows.chunks_exact(dim).enumerate() {
                f32_to_f16(isa, row, &mut block[places(i)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::{ATTENTION, AttentionCase, Numbers, assert_close, assert_same_bits};
    use crate::reference;

    /// A cache with random content; positions that may not be read hold NaN.
    struct Cache {
        first: usize,
        k: Vec<Vec<f32>>,
        v: Vec<Vec<f32>>,
        k_half: Vec<Vec<f16>>,
        v_half: Vec<Vec<f16>>,
    }

    impl Cache {
        fn new(case: &AttentionCase, isa: Isa, numbers: &mut Numbers) -> Self {
            let end = case.start + case.n;
            let from = case.window.map_or(0, |window| (case.start + 1).saturating_sub(window));
            let first = from / BLOCK * BLOCK;
            let blocks = (end - first).div_ceil(BLOCK);
            let mut cache = Self {
                first,
                k: Vec::new(),
                v: Vec::new(),
                k_half: Vec::new(),
                v_half: Vec::new(),
            };
            for block in 0..blocks {
                let n = BLOCK.min(end - first - block * BLOCK);
                for dim in [case.k_dim, case.v_dim] {
                    let rows = numbers.normal(n * case.n_kv_heads * dim);
                    let mut wide = vec![f32::NAN; case.n_kv_heads * BLOCK * dim];
                    let mut half = vec![f16::NAN; wide.len()];
                    // In two steps, as a prompt and a first token would.
                    let (head, tail) = rows.split_at(n / 2 * case.n_kv_heads * dim);
                    for (at, rows) in [(0, head), (n / 2, tail)] {
                        store_kv(isa, KvMut::F32(&mut wide), case.n_kv_heads, dim, at, rows);
                        store_kv(isa, KvMut::F16(&mut half), case.n_kv_heads, dim, at, rows);
                    }
                    // Keys come first, then values.
                    if cache.k.len() == cache.v.len() {
                        cache.k.push(wide);
                        cache.k_half.push(half);
                    } else {
                        cache.v.push(wide);
                        cache.v_half.push(half);
                    }
                }
            }
            cache
        }

        fn wide(&self) -> Vec<KvBlock<'_>> {
            self.k
                .iter()
                .zip(&self.v)
                .map(|(k, v)| KvBlock { k: Kv::F32(k), v: Kv::F32(v) })
                .collect()
        }

        fn half(&self) -> Vec<KvBlock<'_>> {
            let blocks = self.k_half.iter().zip(&self.v_half);
            blocks.map(|(k, v)| KvBlock { k: Kv::F16(k), v: Kv::F16(v) }).collect()
        }
    }

    fn slopes(case: &AttentionCase) -> Vec<f32> {
        (0..case.n_heads).map(|head| 0.5_f32.powi(head as i32 + 1)).collect()
    }

    fn shape<'a>(case: &AttentionCase, slopes: &'a [f32]) -> Attention<'a> {
        Attention {
            n_heads: case.n_heads,
            n_kv_heads: case.n_kv_heads,
            k_dim: case.k_dim,
            v_dim: case.v_dim,
            scale: 1.0 / (case.k_dim as f32).sqrt(),
            window: case.window,
            softcap: case.softcap,
            alibi_slopes: case.alibi.then_some(slopes),
        }
    }

    #[test]
    fn attention_matches_the_reference() {
        let pool = Pool::new(2);
        for case in ATTENTION {
            for isa in Isa::available() {
                let mut numbers = Numbers::new(case.start as u64);
                let cache = Cache::new(case, isa, &mut numbers);
                let q = numbers.normal(case.n * case.n_heads * case.k_dim);
                let slopes = slopes(case);
                let a = shape(case, &slopes);
                for (name, blocks) in [("f32", cache.wide()), ("f16", cache.half())] {
                    let kv = KvView { first: cache.first, blocks: &blocks };
                    let mut want = vec![0.0; case.n * case.n_heads * case.v_dim];
                    reference::attend(&a, &q, case.start, &kv, &mut want);
                    let mut got = vec![f32::NAN; want.len()];
                    attend(isa, &pool, &a, &q, case.start, &kv, &mut got);
                    assert_close(&got, &want, 5e-6, &format!("{case:?} {name} {isa:?}"));
                }
            }
        }
    }

    #[test]
    fn the_bits_depend_on_neither_threads_nor_the_cut_of_the_prompt() {
        for case in ATTENTION {
            for isa in Isa::available() {
                let mut numbers = Numbers::new(case.start as u64);
                let cache = Cache::new(case, isa, &mut numbers);
                let q = numbers.normal(case.n * case.n_heads * case.k_dim);
                let slopes = slopes(case);
                let a = shape(case, &slopes);
                let blocks = cache.half();
                let kv = KvView { first: cache.first, blocks: &blocks };
                let mut one_by_one = vec![0.0; case.n * case.n_heads * case.v_dim];
                let alone = Pool::new(1);
                let outs = one_by_one.chunks_mut(case.n_heads * case.v_dim);
                for (i, (q, out)) in q.chunks(case.n_heads * case.k_dim).zip(outs).enumerate() {
                    attend(isa, &alone, &a, q, case.start + i, &kv, out);
                }
                for n_threads in [1, 2, 3] {
                    let mut got = vec![f32::NAN; one_by_one.len()];
                    attend(isa, &Pool::new(n_threads), &a, &q, case.start, &kv, &mut got);
                    assert_same_bits(
                        &got,
                        &one_by_one,
                        &format!("{case:?} {isa:?} {n_threads} threads"),
                    );
                }
            }
        }
    }

    #[test]
    fn scores_of_minus_infinity_give_zeros_and_nan_stays() {
        for isa in Isa::available() {
            for (key, want_nan) in [(f32::NEG_INFINITY, false), (f32::NAN, true)] {
                let (k, v) = (vec![key; BLOCK * 8], vec![1.0; BLOCK * 8]);
                let blocks = [KvBlock { k: Kv::F32(&k), v: Kv::F32(&v) }];
                let case = AttentionCase { start: 9, ..ATTENTION[0] };
                let mut out = [5.0; 8];
                let kv = KvView { first: 0, blocks: &blocks };
                attend(isa, &Pool::new(1), &shape(&case, &[]), &[1.0; 8], 9, &kv, &mut out);
                let right = |out: f32| if want_nan { out.is_nan() } else { out == 0.0 };
                assert!(out.iter().all(|&out| right(out)), "{isa:?} {key}: {out:?}");
            }
        }
    }
}
