//! Attention of new tokens over the key/value cache.
//!
//! For each key/value head, the queries that share it are worked through in tiles of `ROWS`, each of which meets
//! every key and value once: sixteen keys at a time against up to six queries, then sixteen elements of the values
//! against the same queries' weights, all sums in registers.
//!
//! Within a segment of [`SEGMENT`] positions each query goes through the blocks with a running maximum and sum (the
//! softmax of Milakov and Gimelshein, 2018, as flash attention uses it); then the segments are merged in order.
//! Blocks and segments begin at fixed positions and every sum is taken in the order of the positions, so a query's
//! result has the same bits alone or among others, and whether the segments of a long context were computed one after
//! the other or, where there are too few heads for the threads, side by side.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use half::f16;

pub use super::cache::{BLOCK, KvBlock, KvFormat, KvShape};
use super::cache::{Elements, GROUP, KEYS};
use super::functions::{ExpMinus, Mul, Scale, SoftCap, Unary, each, each_with};
use super::math::exp;
use super::shared::SharedMut;
use super::simd::{Kernel, LANES, Simd};
use crate::formats::Element;
use crate::{Isa, Pool};

/// Positions over which one softmax runs: what a thread works through in a long context.
pub const SEGMENT: usize = 4 * BLOCK;

/// Queries of a tile.
const ROWS: usize = 24;

/// Queries that meet a key together: with 16 keys, their sums fill the registers.
const GROUPED: usize = 6;

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

/// The part of a layer's cache that attention reads.
#[derive(Clone, Copy, Debug)]
pub struct KvView<'a> {
    /// The position of the first element of the first block; a multiple of [`BLOCK`].
    pub first: usize,
    /// Blocks without gaps.
    pub blocks: &'a [Arc<KvBlock>],
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
    if n == 0 {
        return;
    }
    let job = Job { isa, a, kv, q, start, rows: n * (a.n_heads / a.n_kv_heads) };
    let segments = a.first_seen(start) / SEGMENT..(start + n - 1) / SEGMENT + 1;
    let parts = a.n_kv_heads * job.rows.div_ceil(ROWS);
    if pool.n_threads() > 1 && parts < 2 * pool.n_threads() && segments.len() > 1 {
        job.by_segments(pool, segments, out);
    } else {
        job.by_tiles(pool, out);
    }
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
    /// Checks that the positions `from .. to` are there and that the blocks have the right shape.
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
            let KvShape { n_kv_heads, k_dim, v_dim, .. } = block.shape();
            let shape = (a.n_kv_heads, a.k_dim, a.v_dim);
            assert_eq!((n_kv_heads, k_dim, v_dim), shape, "attention: a block of the cache");
        }
    }
}

thread_local! {
    /// Memory of a thread for its tiles, kept from one to the next: as many pieces as it ever used at once.
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` numbers of any value, from the thread's memory.
fn with_scratch(len: usize, f: impl FnOnce(&mut [f32])) {
    let mut scratch = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    f(&mut scratch[..len]);
    SCRATCH.with_borrow_mut(|all| all.push(scratch));
}

/// One call of [`attend`].
struct Job<'a> {
    isa: Isa,
    a: &'a Attention<'a>,
    kv: &'a KvView<'a>,
    q: &'a [f32],
    start: usize,
    /// Queries of each key/value head: for each token the heads that share it.
    rows: usize,
}

impl Job<'_> {
    /// Each part is a tile of queries, which goes through its segments in order.
    fn by_tiles(&self, pool: &Pool, out: &mut [f32]) {
        let (tiles, v_dim) = (self.rows.div_ceil(ROWS), self.a.v_dim);
        let out = SharedMut::new(out);
        pool.run(self.a.n_kv_heads * tiles, &|part| {
            let (kv_head, tile) = (part / tiles, part % tiles);
            let rows = tile * ROWS..self.rows.min((tile + 1) * ROWS);
            let positions = self.position(rows.start)..self.position(rows.end - 1) + 1;
            let segments =
                self.a.first_seen(positions.start) / SEGMENT..(positions.end - 1) / SEGMENT + 1;
            let (tile_len, len) = (self.tile_len(rows.len()), rows.len() * v_dim);
            with_scratch(tile_len + len, |scratch| {
                let (memory, total) = scratch.split_at_mut(tile_len);
                self.spread_queries(kv_head, &rows, memory);
                let mut whole = [Softmax::START; ROWS];
                total.fill(0.0);
                for segment in segments {
                    let (softmax, sums) = self.tile(kv_head, &rows, segment, memory);
                    for (i, one) in softmax[..rows.len()].iter().enumerate() {
                        let range = i * v_dim..(i + 1) * v_dim;
                        merge(&mut whole[i], one, &mut total[range.clone()], &sums[range]);
                    }
                }
                for (i, row) in rows.clone().enumerate() {
                    // SAFETY: each query's output belongs to one part.
                    let out = unsafe { out.slice(self.query(kv_head, row) * v_dim, v_dim) };
                    whole[i].finish(&total[i * v_dim..][..v_dim], out);
                }
            });
        });
    }

    /// Each part is a tile of queries and a segment; then the segments are merged.
    fn by_segments(&self, pool: &Pool, segments: Range<usize>, out: &mut [f32]) {
        let (tiles, v_dim) = (self.rows.div_ceil(ROWS), self.a.v_dim);
        let queries = self.a.n_kv_heads * self.rows;
        // For each segment and query: its sums, its largest score, its sum of weights.
        let width = v_dim + 2;
        with_scratch(segments.len() * queries * width, |scratch| {
            let shared = SharedMut::new(scratch);
            pool.run(segments.len() * self.a.n_kv_heads * tiles, &|part| {
                let (segment, tile) = (part / (self.a.n_kv_heads * tiles), part % tiles);
                let kv_head = part / tiles % self.a.n_kv_heads;
                let rows = tile * ROWS..self.rows.min((tile + 1) * ROWS);
                with_scratch(self.tile_len(rows.len()), |memory| {
                    self.spread_queries(kv_head, &rows, memory);
                    let segment_number = segments.start + segment;
                    let (softmax, sums) = self.tile(kv_head, &rows, segment_number, memory);
                    for (i, row) in rows.clone().enumerate() {
                        let at = (segment * queries + self.query(kv_head, row)) * width;
                        // SAFETY: each query and segment belongs to one part.
                        let to = unsafe { shared.slice(at, width) };
                        to[..v_dim].copy_from_slice(&sums[i * v_dim..][..v_dim]);
                        (to[v_dim], to[v_dim + 1]) = (softmax[i].top, softmax[i].sum);
                    }
                });
            });
            with_scratch(v_dim, |total| {
                for (query, out) in out.chunks_exact_mut(v_dim).enumerate() {
                    let mut whole = Softmax::START;
                    total.fill(0.0);
                    for segment in 0..segments.len() {
                        let one = &scratch[(segment * queries + query) * width..][..width];
                        let softmax = Softmax { top: one[v_dim], sum: one[v_dim + 1] };
                        merge(&mut whole, &softmax, total, &one[..v_dim]);
                    }
                    whole.finish(total, out);
                }
            });
        });
    }

    /// The position of the token of a query.
    fn position(&self, row: usize) -> usize {
        self.start + row / (self.a.n_heads / self.a.n_kv_heads)
    }

    /// The head of a query.
    fn head(&self, kv_head: usize, row: usize) -> usize {
        let group = self.a.n_heads / self.a.n_kv_heads;
        kv_head * group + row % group
    }

    /// The place of a query among those of all heads and tokens.
    fn query(&self, kv_head: usize, row: usize) -> usize {
        row / (self.a.n_heads / self.a.n_kv_heads) * self.a.n_heads + self.head(kv_head, row)
    }

    /// Lays the queries of a tile, times the factor of the scores, side by side: `[groups, k_dim, rows of a group]`.
    fn spread_queries(&self, kv_head: usize, rows: &Range<usize>, to: &mut [f32]) {
        let k_dim = self.a.k_dim;
        for (i, row) in rows.clone().enumerate() {
            let first = i / GROUPED * GROUPED;
            let count = GROUPED.min(rows.len() - first);
            let from = &self.q[self.query(kv_head, row) * k_dim..][..k_dim];
            let to = &mut to[first * k_dim..][..count * k_dim];
            for (to, x) in to.chunks_exact_mut(count).zip(from) {
                to[i % GROUPED] = x * self.a.scale;
            }
        }
    }

    /// Numbers of memory that a tile of some queries needs.
    fn tile_len(&self, rows: usize) -> usize {
        rows * (self.a.k_dim + self.a.v_dim + BLOCK) + self.wide_len(rows)
    }

    /// Numbers of memory to widen what each group of queries would else widen anew.
    fn wide_len(&self, rows: usize) -> usize {
        if rows > GROUPED { BLOCK * self.a.k_dim.max(self.a.v_dim) } else { 0 }
    }

    /// The attention of some queries of a head, spread at the start of `memory`, over one segment: their softmax, and
    /// their sums, `[rows, v_dim]`, in `memory`.
    fn tile<'m>(
        &self,
        kv_head: usize,
        rows: &Range<usize>,
        segment: usize,
        memory: &'m mut [f32],
    ) -> ([Softmax; ROWS], &'m [f32]) {
        let (q, memory) = memory.split_at_mut(rows.len() * self.a.k_dim);
        let (sums, memory) = memory.split_at_mut(rows.len() * self.a.v_dim);
        let (wide, scores) = memory.split_at_mut(self.wide_len(rows.len()));
        let mut softmax = [Softmax::START; ROWS];
        sums.fill(0.0);
        let first = self.a.first_seen(self.position(rows.start)).max(segment * SEGMENT);
        let end = (self.position(rows.end - 1) + 1).min((segment + 1) * SEGMENT);
        for block in first / BLOCK..end.div_ceil(BLOCK) {
            let mut seen = [const { 0..0 }; ROWS];
            for (seen, row) in seen.iter_mut().zip(rows.clone()) {
                *seen = self.seen(row, block);
            }
            self.isa.run(Tile {
                job: self,
                kv_head,
                rows: rows.clone(),
                block,
                content: &self.kv.blocks[block - self.kv.first / BLOCK],
                next: self.kv.blocks.get(block + 1 - self.kv.first / BLOCK).map(|next| &**next),
                seen: &seen[..rows.len()],
                q,
                scores: scores.as_chunks_mut().0,
                sums,
                softmax: &mut softmax[..rows.len()],
                wide: &mut *wide,
            });
        }
        (softmax, sums)
    }

    /// The places of a block that a query sees.
    fn seen(&self, row: usize, block: usize) -> Range<usize> {
        let (position, at) = (self.position(row), block * BLOCK);
        let from = self.a.first_seen(position).clamp(at, at + BLOCK) - at;
        let to = (position + 1).clamp(at, at + BLOCK) - at;
        from..to.max(from)
    }
}

/// The running softmax of a query.
#[derive(Clone, Copy)]
struct Softmax {
    /// The largest score so far.
    top: f32,
    /// The sum of `e^(score - top)` so far.
    sum: f32,
}

impl Softmax {
    /// Before the first score.
    const START: Self = Self { top: f32::NEG_INFINITY, sum: 0.0 };

    /// The output of a query whose weighted values add up to `total`.
    fn finish(&self, total: &[f32], out: &mut [f32]) {
        let factor = if self.sum == 0.0 { 0.0 } else { 1.0 / self.sum };
        for (out, total) in out.iter_mut().zip(total) {
            *out = total * factor;
        }
    }
}

/// Adds the softmax over one segment to that over those before it.
fn merge(whole: &mut Softmax, one: &Softmax, total: &mut [f32], sums: &[f32]) {
    if one.sum == 0.0 {
        return;
    }
    let top = if one.top < whole.top { whole.top } else { one.top };
    // The factor of what has the larger score is 1: e to the power of 0.
    let factor = |own: f32| if own == top { 1.0 } else { (own - top).exp() };
    let (before, added) = (factor(whole.top), factor(one.top));
    *whole = Softmax { top, sum: whole.sum * before + one.sum * added };
    for (total, sum) in total.iter_mut().zip(sums) {
        *total = *total * before + sum * added;
    }
}

/// The scores of queries for the positions of a block, then their weights.
type Scores = [[f32; BLOCK]];

/// Some queries of a head that meet a block.
struct Tile<'a> {
    job: &'a Job<'a>,
    kv_head: usize,
    rows: Range<usize>,
    block: usize,
    content: &'a KvBlock,
    /// The block that comes after it.
    next: Option<&'a KvBlock>,
    /// What each query sees of the block.
    seen: &'a [Range<usize>],
    q: &'a [f32],
    scores: &'a mut Scores,
    sums: &'a mut [f32],
    softmax: &'a mut [Softmax],
    /// Memory to widen the f16 keys or values of a head, or none.
    wide: &'a mut [f32],
}

impl Kernel for Tile<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
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
            Part::F32(k) => self.dot_keys(s, k, scales, next),
            Part::F16(k) => self.dot_keys(s, k, scales, next),
            Part::I8(k) => self.dot_keys(s, k, scales, next),
        }

        self.weigh(s);

        if let Some(scales) = values.scales().map(|scales| &scales[positions.clone()]) {
            for (scores, seen) in self.scores.iter_mut().zip(self.seen) {
                each_with(s, &mut scores[seen.clone()], &scales[seen.clone()], Mul);
            }
        }
        let next = self.next.map_or(&[][..], |block| block.keys.bytes_of(k_range));
        match values.part(s, v_range, wide) {
            Part::F32(v) => self.add_values(s, v, next),
            Part::F16(v) => self.add_values(s, v, next),
            Part::I8(v) => self.add_values(s, v, next),
        }
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

    /// The bytes of a part of the elements.
    fn bytes_of(&self, range: Range<usize>) -> &[u8] {
        // SAFETY: numbers without padding may be read as bytes.
        unsafe {
            match self {
                Self::F32(values) => values[range].align_to().1,
                Self::F16(values) => values[range].align_to().1,
                Self::Q8 { values, .. } => values[range].align_to().1,
            }
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
    /// what is read after them: a core alone waits too long for each line of memory.
    #[inline(always)]
    fn dot_keys<S: Simd, E: Element>(
        &mut self,
        s: S,
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
        let keys = Keys { keys, scales, dim: self.job.a.k_dim };
        let (mut panel, end) = (from / KEYS, to.div_ceil(KEYS));
        // Few queries meet several panels at a time, or each sum would have to wait for the one before it.
        let several = match self.rows.len() {
            1 => 4,
            2 | 3 => 2,
            _ => 1,
        };
        while panel < end {
            let step = if panel + several <= end { several } else { 1 };
            let share = next.len() / (BLOCK / KEYS);
            s.prefetch(&next[panel * share..(panel + step) * share]);
            let groups = self.scores.chunks_mut(GROUPED);
            for (q, scores) in self.q.chunks(GROUPED * keys.dim).zip(groups) {
                match (scores.len(), step) {
                    (1, 4) => keys.dot::<S, 1, 4>(s, q, panel, scores),
                    (2, 2) => keys.dot::<S, 2, 2>(s, q, panel, scores),
                    (3, 2) => keys.dot::<S, 3, 2>(s, q, panel, scores),
                    (1, _) => keys.dot_each::<S, 1>(s, q, panel, step, scores),
                    (2, _) => keys.dot_each::<S, 2>(s, q, panel, step, scores),
                    (3, _) => keys.dot_each::<S, 3>(s, q, panel, step, scores),
                    (4, _) => keys.dot_each::<S, 4>(s, q, panel, step, scores),
                    (5, _) => keys.dot_each::<S, 5>(s, q, panel, step, scores),
                    _ => keys.dot_each::<S, GROUPED>(s, q, panel, step, scores),
                }
            }
            panel += step;
        }
    }

    /// Turns the scores of each query into weights `e^(score - top)`, and moves its softmax on.
    #[inline(always)]
    fn weigh<S: Simd>(&mut self, s: S) {
        let a = self.job.a;
        for (i, row) in self.rows.clone().enumerate() {
            let seen = self.seen[i].clone();
            if seen.is_empty() {
                continue;
            }
            let scores = &mut self.scores[i][seen.clone()];
            if let Some(cap) = a.softcap {
                each(s, scores, SoftCap(cap));
            }
            if let Some(slopes) = a.alibi_slopes {
                let slope = slopes[self.job.head(self.kv_head, row)];
                let distance = self.job.position(row) - (self.block * BLOCK + seen.start);
                for (i, score) in scores.iter_mut().enumerate() {
                    *score -= slope * (distance - i) as f32;
                }
            }
            let factor = update_softmax(s, &mut self.softmax[i], scores);
            if factor != 1.0 {
                each(s, &mut self.sums[i * a.v_dim..][..a.v_dim], Scale(factor));
            }
        }
    }

    /// Adds the weighted values of a head, `[BLOCK, v_dim]`, to the sums of all queries. `next` is what is read after
    /// them.
    #[inline(always)]
    fn add_values<S: Simd, E: Element>(&mut self, s: S, values: &[E], next: &[u8]) {
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
                    together.alone(s, i, seen.clone(), sums);
                }
                continue;
            }
            for (i, seen) in seen.iter().enumerate() {
                together.alone(s, i, seen.start..common.start, sums);
            }
            together.all(s, sums);
            for (i, seen) in seen.iter().enumerate() {
                together.alone(s, i, common.end..seen.end, sums);
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
}

impl<E: Element> Keys<'_, E> {
    /// As [`Self::dot`], one panel after the other.
    #[inline(always)]
    fn dot_each<S: Simd, const R: usize>(
        &self,
        s: S,
        q: &[f32],
        panel: usize,
        panels: usize,
        scores: &mut Scores,
    ) {
        for panel in panel..panel + panels {
            self.dot::<S, R, 1>(s, q, panel, scores);
        }
    }

    /// `scores[r][p] = q[r] · key[p]` for `R` queries, `[dim, R]`, and the keys of `P` panels from `panel` on.
    #[inline(always)]
    fn dot<S: Simd, const R: usize, const P: usize>(
        &self,
        s: S,
        q: &[f32],
        panel: usize,
        scores: &mut Scores,
    ) {
        let zeros = [[[s.splat(0.0); 2]; P]; R];
        let mut totals = zeros;
        let (q, _) = q.as_chunks::<R>();
        let len = if self.scales.is_some() { GROUP } else { self.dim };
        let mut panels = [const { &[] as &[[E; KEYS]] }; P];
        let mut from = 0;
        while from < self.dim {
            let to = self.dim.min(from + len);
            for (i, keys) in panels.iter_mut().enumerate() {
                *keys = &self.keys.as_chunks::<KEYS>().0[(panel + i) * self.dim..][from..to];
            }
            let sums = products(s, &q[from..to], panels);
            match self.scales {
                None => totals = sums,
                Some(scales) => {
                    let groups = self.dim.div_ceil(GROUP);
                    for p in 0..P {
                        let at = ((panel + p) * groups + from / GROUP) * KEYS;
                        let scales = &scales[at..at + KEYS].as_chunks::<LANES>().0;
                        for r in 0..R {
                            for i in 0..2 {
                                let scale = s.load(&scales[i]);
                                totals[r][p][i] = s.mul_add(sums[r][p][i], scale, totals[r][p][i]);
                            }
                        }
                    }
                }
            }
            from = to;
        }
        for (totals, scores) in totals.iter().zip(scores) {
            let scores = scores[panel * KEYS..][..P * KEYS].as_chunks_mut::<LANES>().0;
            for (v, to) in totals.as_flattened().iter().zip(scores) {
                s.store(*v, to);
            }
        }
    }
}

/// The products of `R` queries with the keys of `P` panels.
#[inline(always)]
fn products<S: Simd, E: Element, const R: usize, const P: usize>(
    s: S,
    q: &[[f32; R]],
    panels: [&[[E; KEYS]]; P],
) -> [[[S::F; 2]; P]; R] {
    let mut sums = [[[s.splat(0.0); 2]; P]; R];
    for panel in panels {
        assert_eq!(panel.len(), q.len(), "elements of queries and keys");
    }
    for (d, q) in q.iter().enumerate() {
        unroll!(p in 0..P => {
            // SAFETY: all have the same length.
            let key = unsafe { panels[p].get_unchecked(d) }.as_chunks::<LANES>().0;
            let key = [E::load(s, &key[0]), E::load(s, &key[1])];
            unroll!(r in 0..R => {
                let q = s.splat(q[r]);
                sums[r][p][0] = s.mul_add(q, key[0], sums[r][p][0]);
                sums[r][p][1] = s.mul_add(q, key[1], sums[r][p][1]);
            });
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

impl<E: Element> Mix<'_, E> {
    /// For one query and what it sees.
    #[inline(always)]
    fn alone<S: Simd>(&self, s: S, row: usize, seen: Range<usize>, sums: &mut [f32]) {
        if !seen.is_empty() {
            let weights = &self.weights[row..=row];
            let sums = &mut sums[row * self.dim..][..self.dim];
            Mix { weights, seen, next: &[], ..*self }.rows::<S, 1, 8>(s, sums);
        }
    }

    /// For all queries.
    #[inline(always)]
    fn all<S: Simd>(&self, s: S, sums: &mut [f32]) {
        match self.weights.len() {
            1 => self.rows::<S, 1, 8>(s, sums),
            2 => self.rows::<S, 2, 4>(s, sums),
            3 => self.rows::<S, 3, 4>(s, sums),
            4 => self.rows::<S, 4, 2>(s, sums),
            5 => self.rows::<S, 5, 2>(s, sums),
            _ => self.rows::<S, GROUPED, 2>(s, sums),
        }
    }

    /// For `R` queries, `V` vectors at a time.
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const V: usize>(&self, s: S, sums: &mut [f32]) {
        let mut at = 0;
        while at + V * LANES <= self.dim {
            let share = self.next.len() / self.dim;
            s.prefetch(&self.next[at * share..(at + V * LANES) * share]);
            self.strip::<S, R, V>(s, at, sums);
            at += V * LANES;
        }
        while at + LANES <= self.dim {
            self.strip::<S, R, 1>(s, at, sums);
            at += LANES;
        }
        if at < self.dim {
            self.rest(s, at, sums);
        }
    }

    /// For all queries and the last elements, fewer than a vector, from `at` on.
    #[inline(always)]
    fn rest<S: Simd>(&self, s: S, at: usize, sums: &mut [f32]) {
        for (weights, sums) in self.weights.iter().zip(sums.chunks_exact_mut(self.dim)) {
            let sums = &mut sums[at..];
            let mut sum = s.load_some(sums, 0.0);
            for p in self.seen.clone() {
                let value = E::load_some(s, &self.values[p * self.dim + at..][..sums.len()]);
                sum = s.mul_add(s.splat(weights[p]), value, sum);
            }
            s.store_some(sum, sums);
        }
    }

    /// For `R` queries and the elements from `at` on.
    #[inline(always)]
    fn strip<S: Simd, const R: usize, const V: usize>(&self, s: S, at: usize, sums: &mut [f32]) {
        let place = |r: usize| r * self.dim + at..r * self.dim + at + V * LANES;
        let weights = self.weights.first_chunk::<R>().expect("weights of each query");
        let mut totals = [[s.splat(0.0); V]; R];
        unroll!(r in 0..R => {
            let sums = sums[place(r)].as_chunks::<LANES>().0;
            unroll!(v in 0..V => { totals[r][v] = s.load(&sums[v]); });
        });
        let seen = self.seen.clone();
        assert!(seen.end <= BLOCK && seen.end * self.dim <= self.values.len());
        assert!(at + V * LANES <= self.dim, "elements of values");
        for p in seen {
            // SAFETY: the row of each place is inside, and the elements are inside the row.
            let values =
                unsafe { &*self.values.as_ptr().add(p * self.dim + at).cast::<[[E; LANES]; V]>() };
            let mut value = [s.splat(0.0); V];
            unroll!(v in 0..V => { value[v] = E::load(s, &values[v]); });
            unroll!(r in 0..R => {
                let weight = s.splat(weights[r][p]);
                unroll!(v in 0..V => { totals[r][v] = s.mul_add(weight, value[v], totals[r][v]); });
            });
        }
        unroll!(r in 0..R => {
            let sums = sums[place(r)].as_chunks_mut::<LANES>().0;
            unroll!(v in 0..V => { s.store(totals[r][v], &mut sums[v]); });
        });
    }
}

/// Turns scores into weights `e^(score - top)`, and gives the factor for all that was summed before.
#[inline(always)]
fn update_softmax<S: Simd>(s: S, softmax: &mut Softmax, scores: &mut [f32]) -> f32 {
    let (whole, rest) = scores.as_chunks::<LANES>();
    let mut tops = s.max(s.load_some(rest, f32::NEG_INFINITY), s.splat(softmax.top));
    for v in whole {
        tops = s.max(s.load(v), tops);
    }
    let top = s.largest(tops);
    if top == f32::NEG_INFINITY && !scores.iter().any(|score| score.is_nan()) {
        scores.fill(0.0);
        return 1.0;
    }
    let factor = s.lanes(exp(s, s.splat(softmax.top - top)))[0];
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
    *softmax = Softmax { top, sum: softmax.sum * factor + s.sum(sum) };
    factor
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
