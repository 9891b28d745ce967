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
//!
//! Over a cache in 8 bits, queries and weights are rounded to 16, and the products and their sums are whole numbers.
//!
//! With AMX, over caches in f16 and 8 bits, whole groups of [`TILED`] positions are computed by `super::attention_amx`: there a
//! prompt gives the same bits where it is cut at multiples of it, and a token alone another rounding than among others.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

#[cfg(target_arch = "x86_64")]
use super::attention_amx;
pub use super::cache::{BLOCK, KvBlock, KvFormat, KvShape};
use super::rows::WithHalves;
use super::shared::SharedMut;
use super::tile::{GROUPED, Tile};
use super::tile_bytes::{Pair, RoundQuery};
use crate::{Isa, Pool};

/// Positions over which one softmax runs: what a thread works through in a long context.
pub const SEGMENT: usize = 4 * BLOCK;

/// Positions that kernels for tiles compute together, or not at all, so that what a token becomes depends on its position alone.
pub const TILED: usize = 32;

/// Queries of a tile.
pub(super) const ROWS: usize = 24;

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
    let tiled = tiled(isa, kv, start..start + n);
    let cuts = [start..tiled.start, tiled.clone(), tiled.end..start + n];
    let (mut q, mut out) = (q, out);
    for positions in cuts.into_iter().filter(|positions| !positions.is_empty()) {
        let n = positions.len();
        let (some_q, rest_q) = q.split_at(n * a.n_heads * a.k_dim);
        let (some_out, rest_out) = out.split_at_mut(n * a.n_heads * a.v_dim);
        (q, out) = (rest_q, rest_out);
        let job = Job { isa, a, kv, q: some_q, start: positions.start, rows: n * a.group() };
        #[cfg(target_arch = "x86_64")]
        if let (true, Some(amx)) = (positions == tiled, isa.amx()) {
            attention_amx::attend(amx, pool, &job, some_out);
            continue;
        }
        job.run(pool, some_out);
    }
}

/// Of some positions, those that kernels compute in tiles where there are such: whole groups of [`TILED`].
fn tiled(isa: Isa, kv: &KvView<'_>, positions: Range<usize>) -> Range<usize> {
    let exact = kv.format().is_none_or(|format| format == KvFormat::F32);
    let from = positions.start.next_multiple_of(TILED);
    let to = positions.end / TILED * TILED;
    if isa.multiplies_tiles() && !exact && from < to {
        from..to
    } else {
        positions.end..positions.end
    }
}

impl Attention<'_> {
    /// Query heads that share a key/value head.
    pub(super) fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// The first position that a token at `position` sees.
    pub(super) fn first_seen(&self, position: usize) -> usize {
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
    /// What its elements are, where it has any.
    fn format(&self) -> Option<KvFormat> {
        self.blocks.first().map(|block| block.shape().format)
    }

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
pub(super) struct Job<'a> {
    pub(super) isa: Isa,
    pub(super) a: &'a Attention<'a>,
    kv: &'a KvView<'a>,
    q: &'a [f32],
    start: usize,
    /// Queries of each key/value head: for each token the heads that share it.
    pub(super) rows: usize,
}

impl Job<'_> {
    /// The attention of all queries.
    fn run(&self, pool: &Pool, out: &mut [f32]) {
        let last = self.position(self.rows - 1);
        let segments = self.a.first_seen(self.start) / SEGMENT..last / SEGMENT + 1;
        let parts = self.a.n_kv_heads * self.rows.div_ceil(ROWS);
        if pool.n_threads() > 1 && parts < 2 * pool.n_threads() && segments.len() > 1 {
            self.by_segments(pool, segments, out);
        } else {
            self.by_tiles(pool, out);
        }
    }

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
    pub(super) fn position(&self, row: usize) -> usize {
        self.start + row / self.a.group()
    }

    /// The head of a query.
    pub(super) fn head(&self, kv_head: usize, row: usize) -> usize {
        kv_head * self.a.group() + row % self.a.group()
    }

    /// The place of a query among those of all heads and tokens.
    pub(super) fn query(&self, kv_head: usize, row: usize) -> usize {
        row / self.a.group() * self.a.n_heads + self.head(kv_head, row)
    }

    /// The elements of a query.
    pub(super) fn query_of(&self, kv_head: usize, row: usize) -> &[f32] {
        &self.q[self.query(kv_head, row) * self.a.k_dim..][..self.a.k_dim]
    }

    /// A block of the cache.
    pub(super) fn block(&self, block: usize) -> &KvBlock {
        &self.kv.blocks[block - self.kv.first / BLOCK]
    }

    /// Writes the queries of a tile, times the factor of the scores, to the start of `memory`: see [`Self::queries`].
    fn spread_queries(&self, kv_head: usize, rows: &Range<usize>, memory: &mut [f32]) {
        let (k_dim, scale) = (self.a.k_dim, self.a.scale);
        let (to, memory) = memory.split_at_mut(rows.len() * k_dim);
        for (i, row) in rows.clone().enumerate() {
            let first = i / GROUPED * GROUPED;
            let count = GROUPED.min(rows.len() - first);
            let q = self.query_of(kv_head, row);
            if self.in_bytes() {
                // SAFETY: any bits are a pair of integers.
                let (_, to, _) = unsafe { to.align_to_mut::<Pair>() };
                let pairs = k_dim.div_ceil(2);
                let to = &mut to[first * pairs..][..count * pairs];
                memory[i] = self.isa.run(RoundQuery { q, scale, to, count, i: i % GROUPED });
                continue;
            }
            let to = &mut to[first * k_dim..][..count * k_dim];
            for (to, x) in to.chunks_exact_mut(count).zip(q) {
                to[i % GROUPED] = x * scale;
            }
        }
    }

    /// The queries of a tile at the start of its memory, and the rest of it.
    fn queries<'m>(&self, rows: usize, memory: &'m mut [f32]) -> (Queries<'m>, &'m mut [f32]) {
        let (q, memory) = memory.split_at_mut(rows * self.a.k_dim);
        if !self.in_bytes() {
            return (Queries::Floats(q), memory);
        }
        let (units, memory) = memory.split_at_mut(rows);
        // SAFETY: any bits are a pair of integers.
        let (_, q, _) = unsafe { q.align_to() };
        (Queries::Rounded { q, units }, memory)
    }

    /// Whether keys and values are in 8 bits.
    fn in_bytes(&self) -> bool {
        self.kv.format() == Some(KvFormat::Q8)
    }

    /// Numbers of memory that a tile of some queries needs.
    fn tile_len(&self, rows: usize) -> usize {
        rows * (self.a.k_dim + self.a.v_dim + BLOCK + 1) + self.wide_len(rows)
    }

    /// Numbers of memory to widen what each group of queries would else widen anew, where that is worth it: with an
    /// instruction for it, widening at each load makes a prompt's attention 15 to 18 % faster (Zen 4), without one 40 % slower.
    fn wide_len(&self, rows: usize) -> usize {
        let worth = rows > GROUPED && !self.isa.widens_f16();
        if worth { BLOCK * self.a.k_dim.max(self.a.v_dim) } else { 0 }
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
        let (q, memory) = self.queries(rows.len(), memory);
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
            let tile = Tile {
                job: self,
                kv_head,
                rows: rows.clone(),
                block,
                content: self.block(block),
                next: self.kv.blocks.get(block + 1 - self.kv.first / BLOCK).map(|next| &**next),
                seen: &seen[..rows.len()],
                q,
                scores: &mut scores.as_chunks_mut().0[..rows.len()],
                sums,
                softmax: &mut softmax[..rows.len()],
                wide: &mut *wide,
            };
            // Few queries have too few sums of floats to keep vectors of sixteen lanes busy.
            if rows.len() >= GROUPED || self.in_bytes() {
                self.isa.run_both(tile);
            } else {
                self.isa.run(WithHalves(tile));
            }
        }
        (softmax, sums)
    }

    /// The places of a block that a query sees.
    pub(super) fn seen(&self, row: usize, block: usize) -> Range<usize> {
        let (position, at) = (self.position(row), block * BLOCK);
        let from = self.a.first_seen(position).clamp(at, at + BLOCK) - at;
        let to = (position + 1).clamp(at, at + BLOCK) - at;
        from..to.max(from)
    }
}

/// The queries of a tile, times the factor of the scores, side by side.
#[derive(Clone, Copy)]
pub(super) enum Queries<'a> {
    /// `[groups, k_dim, queries of a group]`
    Floats(&'a [f32]),
    /// For keys in 8 bits, in whole multiples of a unit for each query.
    Rounded {
        /// `[groups, pairs of elements, queries of a group]`
        q: &'a [Pair],
        units: &'a [f32],
    },
}

/// The running softmax of a query.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    /// The largest score so far.
    pub(super) top: f32,
    /// The sum of `e^(score - top)` so far.
    pub(super) sum: f32,
}

impl Softmax {
    /// Before the first score.
    pub(super) const START: Self = Self { top: f32::NEG_INFINITY, sum: 0.0 };

    /// The output of a query whose weighted values add up to `total`.
    pub(super) fn finish(&self, total: &[f32], out: &mut [f32]) {
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

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
