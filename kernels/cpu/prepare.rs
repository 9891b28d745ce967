//! How activations become an [`Input`]: rounded, and the tokens of a tile laid side by side.

use std::ops::Range;

use half::bf16;

use super::elementwise::Narrow;
use super::functions::largest_magnitude;
use super::input::{Input, Kinds, MOST_TOKENS, SPAN, TILE_LINE, TILE_SIDE, first_tile};
use super::quantized::{Q4_COLUMNS, Q4_RAISED, Q8_COLUMNS, Q8_ORDER, Q8_RAISED};
use super::shared::SharedMut;
use super::simd::{Kernel, LANES, Round, Simd};
use crate::packed::COLUMNS;

/// The vectors of an [`Input`], for several threads to fill.
pub(super) struct Places<'a> {
    n: usize,
    cols: usize,
    tile_len: usize,
    kinds: Kinds,
    floats: SharedMut<'a, f32>,
    halves: SharedMut<'a, [bf16; 2]>,
    words: SharedMut<'a, i16>,
    word_scales: SharedMut<'a, f32>,
    bytes: SharedMut<'a, u8>,
    byte_scales: SharedMut<'a, f32>,
    sums: SharedMut<'a, [i16; 2]>,
    offsets: SharedMut<'a, i32>,
    fine_bytes: SharedMut<'a, u8>,
    fine_scales: SharedMut<'a, f32>,
    fine_offsets: SharedMut<'a, i32>,
}

impl<'a> Places<'a> {
    pub(super) fn new(input: &'a mut Input) -> Self {
        Self {
            n: input.n,
            cols: input.cols,
            tile_len: input.tile_len,
            kinds: input.kinds,
            floats: SharedMut::new(&mut input.floats),
            halves: SharedMut::new(&mut input.halves),
            words: SharedMut::new(&mut input.words),
            word_scales: SharedMut::new(&mut input.word_scales),
            bytes: SharedMut::new(&mut input.bytes),
            byte_scales: SharedMut::new(&mut input.byte_scales),
            sums: SharedMut::new(&mut input.sums),
            offsets: SharedMut::new(&mut input.offsets),
            fine_bytes: SharedMut::new(&mut input.fine_bytes),
            fine_scales: SharedMut::new(&mut input.fine_scales),
            fine_offsets: SharedMut::new(&mut input.fine_offsets),
        }
    }
}

/// Prepares one tile of some spans.
pub(super) struct Prepare<'a> {
    pub(super) x: &'a [f32],
    pub(super) places: &'a Places<'a>,
    pub(super) tile: usize,
    pub(super) spans: Range<usize>,
}

impl Kernel for Prepare<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.tokens() {
            1 => self.tile::<S, 1>(s),
            _ => self.tile::<S, MOST_TOKENS>(s),
        }
    }
}

impl Prepare<'_> {
    /// For a tile of up to `N` tokens: where it has fewer, the first stands for the others, and is not stored.
    #[inline(always)]
    fn tile<S: Simd, const N: usize>(&self, s: S) {
        let kinds = self.places.kinds;
        let (mut words, mut bytes) = ([[0; SPAN]; N], [[0; SPAN]; N]);
        let mut halves = [[bf16::ZERO; SPAN]; N];
        for span in self.spans.clone() {
            let rows: [_; N] = std::array::from_fn(|i| self.row(span, i));
            if kinds.floats {
                self.store_floats(s, span, &rows);
            }
            if kinds.halves {
                self.store_halves(s, span, &rows, &mut halves);
            }
            if kinds.words {
                self.store_words(s, span, &rows, &mut words);
            }
            if kinds.bytes {
                self.store_bytes(s, span, &rows, &mut bytes);
            }
            if kinds.fine_bytes {
                self.store_fine_bytes(s, span, &rows, &mut bytes);
            }
        }
    }

    /// Tokens of the tile.
    #[inline(always)]
    fn tokens(&self) -> usize {
        let Places { n, tile_len, .. } = *self.places;
        tile_len.min(n - self.tile * tile_len)
    }

    /// The activations of a row of the tile; of the first, where there are not so many.
    #[inline(always)]
    fn row(&self, span: usize, i: usize) -> &[f32] {
        let Places { cols, tile_len, .. } = *self.places;
        let token = self.tile * tile_len + if i < self.tokens() { i } else { 0 };
        &self.x[token * cols..][..cols][span * SPAN..cols.min((span + 1) * SPAN)]
    }

    /// Where the tile's numbers of a span belong, one for each `share` columns of each token; rows have `width` columns.
    #[inline(always)]
    fn place<'a, T>(
        &self,
        all: &SharedMut<'a, T>,
        span: usize,
        width: usize,
        share: usize,
    ) -> &'a mut [T] {
        let Places { n, tile_len, .. } = *self.places;
        let start = span * SPAN * n + self.tile * tile_len * width;
        // SAFETY: each tile of each span has its own place in each vector, and belongs to one part.
        unsafe { all.slice(start / share, width / share * self.tokens()) }
    }

    /// Where the scales of the tile for a span belong.
    #[inline(always)]
    fn scales<'a>(&self, all: &SharedMut<'a, f32>, span: usize) -> &'a mut [f32] {
        let Places { n, tile_len, .. } = *self.places;
        // SAFETY: as above.
        unsafe { all.slice(span * n + self.tile * tile_len, self.tokens()) }
    }

    #[inline(always)]
    fn store_floats<S: Simd, const N: usize>(&self, s: S, span: usize, rows: &[&[f32]; N]) {
        let to = self.place(&self.places.floats, span, rows[0].len(), 1);
        s.prefetch_to_write(to);
        interleave(s, rows, self.tokens(), to);
    }

    /// Stores the rows as bf16; `halves` is memory for them.
    #[inline(always)]
    fn store_halves<S: Simd, const N: usize>(
        &self,
        s: S,
        span: usize,
        rows: &[&[f32]; N],
        halves: &mut [[bf16; SPAN]; N],
    ) {
        let (tokens, width) = (self.tokens(), rows[0].len().next_multiple_of(2));
        let to = self.place(&self.places.halves, span, width, 2);
        s.prefetch_to_write(to);
        for (row, to) in rows[..tokens].iter().zip(&mut *halves) {
            Narrow { from: row, to: &mut to[..row.len()] }.run(s);
            to[row.len()..width].fill(bf16::ZERO);
        }
        let rows = halves.each_ref().map(|row| row[..width].as_chunks::<2>().0);
        interleave(s, &rows, tokens, to);
    }

    /// Stores the rows in 16 bits; `words` is memory for them.
    #[inline(always)]
    fn store_words<S: Simd, const N: usize>(
        &self,
        s: S,
        span: usize,
        rows: &[&[f32]; N],
        words: &mut [[i16; SPAN]; N],
    ) {
        let width = rows[0].len().next_multiple_of(COLUMNS);
        let to = self.place(&self.places.words, span, width, 1);
        s.prefetch_to_write(to);
        for (i, scale) in self.scales(&self.places.word_scales, span).iter_mut().enumerate() {
            *scale = round_to(s, rows[i], f32::from(i16::MAX), &mut words[i]);
        }
        let rows = words.each_ref().map(|row| row[..width].as_chunks::<2>().0);
        interleave(s, &rows, self.tokens(), to.as_chunks_mut::<2>().0);
    }

    /// Stores the rows in 8 bits, and the sums of their columns where they are wanted; `bytes` is memory for them.
    #[inline(always)]
    fn store_bytes<S: Simd, const N: usize>(
        &self,
        s: S,
        span: usize,
        rows: &[&[f32]; N],
        bytes: &mut [[i8; SPAN]; N],
    ) {
        let Places { n, ref kinds, .. } = *self.places;
        let width = rows[0].len().next_multiple_of(COLUMNS);
        let to = self.place(&self.places.bytes, span, width, 1);
        s.prefetch_to_write(to);
        for (i, scale) in self.scales(&self.places.byte_scales, span).iter_mut().enumerate() {
            *scale = round_to(s, rows[i], f32::from(i8::MAX), &mut bytes[i]);
        }
        if kinds.offsets {
            let mut offsets = [[0; SPAN / Q4_COLUMNS]; N];
            for (offsets, bytes) in offsets.iter_mut().zip(&bytes[..self.tokens()]) {
                *offsets = sums_of_columns(s, bytes).map(|sum| -i32::from(Q4_RAISED) * sum);
            }
            self.lay_shared(s, span, width, &offsets, &self.places.offsets);
        } else if n == 1 {
            let to = self.place(&self.places.sums, span, width, Q4_COLUMNS);
            for (to, bytes) in to.iter_mut().zip(bytes[0].as_chunks::<Q4_COLUMNS>().0) {
                // Numbers that were not finite may be any bytes.
                for (to, sum) in to.iter_mut().zip(sums_of_pairs(bytes)) {
                    *to = sum.wrapping_mul(-i16::from(Q4_RAISED));
                }
            }
        }
        // Signed or raised by 128.
        let flip = if n == 1 || kinds.offsets { 0 } else { 0x8080_8080 };
        self.lay_bytes(s, bytes, |four| four ^ flip, to);
    }

    /// Stores the rows in 8 bits, with a scale and a sum for each 32 columns; `bytes` is memory for them.
    #[inline(always)]
    fn store_fine_bytes<S: Simd, const N: usize>(
        &self,
        s: S,
        span: usize,
        rows: &[&[f32]; N],
        bytes: &mut [[i8; SPAN]; N],
    ) {
        const GROUPS: usize = SPAN / Q8_COLUMNS;
        let width = rows[0].len().next_multiple_of(COLUMNS);
        let to = self.place(&self.places.fine_bytes, span, width, 1);
        s.prefetch_to_write(to);
        let (mut scales, mut offsets) = ([[0.0; GROUPS]; N], [[0; GROUPS]; N]);
        for (i, row) in rows[..self.tokens()].iter().enumerate() {
            scales[i] = round_groups(s, row, &mut bytes[i]);
            let sums = sums_of_columns(s, &bytes[i]);
            for (offset, [a, b]) in offsets[i].iter_mut().zip(sums.as_chunks().0) {
                *offset = -i32::from(Q8_RAISED) * (a + b);
            }
        }
        self.lay_shared(s, span, width, &scales, &self.places.fine_scales);
        self.lay_shared(s, span, width, &offsets, &self.places.fine_offsets);
        self.lay_bytes(s, bytes, q8_order, to);
    }

    /// Lays numbers of the tile's tokens side by side, of which each span of a row has up to `M`, each for as many columns.
    #[inline(always)]
    fn lay_shared<S: Simd, T: Unit, const M: usize, const N: usize>(
        &self,
        s: S,
        span: usize,
        width: usize,
        rows: &[[T; M]; N],
        all: &SharedMut<'_, T>,
    ) {
        let share = SPAN / M;
        let rows = rows.each_ref().map(|row| &row[..width / share]);
        interleave(s, &rows, self.tokens(), self.place(all, span, width, share));
    }

    /// Lays the bytes of the tile's tokens side by side, four at a time, changed by `change`.
    #[inline(always)]
    fn lay_bytes<S: Simd, const N: usize>(
        &self,
        s: S,
        bytes: &[[i8; SPAN]; N],
        change: impl Fn(u32) -> u32,
        to: &mut [u8],
    ) {
        let mut changed = [[[0_u8; 4]; SPAN / 4]; N];
        for (to, from) in changed[..self.tokens()].iter_mut().zip(bytes) {
            change_fours(from, &change, to);
        }
        let rows = changed.each_ref().map(|row| &row[..to.len() / 4 / self.tokens()]);
        interleave(s, &rows, self.tokens(), to.as_chunks_mut::<4>().0);
    }
}

/// As [`Prepare`], in the layout for AMX: each token has its own line in a tile, and nothing is raised, so nothing has to be
/// taken off.
pub(super) struct PrepareTiles<'a>(pub(super) Prepare<'a>);

impl Kernel for PrepareTiles<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Prepare { places, tile, .. } = self.0;
        let first = tile * places.tile_len;
        for span in self.0.spans.clone() {
            for i in 0..self.0.tokens() {
                self.token(s, span, first + i, self.0.row(span, i));
            }
        }
    }
}

impl PrepareTiles<'_> {
    #[inline(always)]
    fn token<S: Simd>(&self, s: S, span: usize, token: usize, row: &[f32]) {
        let places = self.0.places;
        if places.kinds.halves {
            let mut halves = [bf16::ZERO; SPAN];
            Narrow { from: row, to: &mut halves[..row.len()] }.run(s);
            // Of four columns the second and the last, then the first and the third: see `linear_amx`.
            let mut lines = [[[bf16::ZERO; 2]; 2]; SPAN / 4];
            for (to, [a, b, c, d]) in lines.iter_mut().zip(halves.as_chunks().0) {
                *to = [[*b, *d], [*a, *c]];
            }
            self.lay(span, token, row.len(), lines.as_flattened(), &places.halves);
        }
        if places.kinds.bytes {
            let mut bytes = [0; SPAN];
            let scale = round_to(s, row, f32::from(i8::MAX), &mut bytes);
            self.set(&places.byte_scales, span, token, scale);
            self.lay(span, token, row.len(), &bytes.map(|v: i8| v as u8), &places.bytes);
        }
        if places.kinds.fine_bytes {
            let mut bytes = [0_i8; SPAN];
            let scales = round_groups(s, row, &mut bytes);
            // Whole groups of the weights.
            let count = row.len().next_multiple_of(COLUMNS) / Q8_COLUMNS;
            for (i, scale) in scales.into_iter().take(count).enumerate() {
                self.set(&places.fine_scales, span * SPAN / Q8_COLUMNS + i, token, scale);
            }
            let mut ordered = [[0; 4]; SPAN / 4];
            change_fours(&bytes, q8_order, &mut ordered);
            self.lay(span, token, row.len(), ordered.as_flattened(), &places.fine_bytes);
        }
    }

    /// Stores the scale of a token for a span, or for a part of one.
    #[inline(always)]
    fn set(&self, all: &SharedMut<'_, f32>, part: usize, token: usize, scale: f32) {
        let Places { n, ref kinds, .. } = *self.0.places;
        // SAFETY: each token has its own place, and belongs to one part.
        unsafe { all.slice(part * kinds.padded(n) + token, 1) }.fill(scale);
    }

    /// Lays a token's columns of a span into the lines of its tiles.
    #[inline(always)]
    fn lay<T: Copy>(
        &self,
        span: usize,
        token: usize,
        columns: usize,
        row: &[T],
        all: &SharedMut<'_, T>,
    ) {
        let Places { n, ref kinds, .. } = *self.0.places;
        // Elements of a line, and columns of one.
        let len = TILE_LINE / size_of::<T>();
        let width = SPAN / (row.len() / len);
        let steps = columns.div_ceil(width);
        let tile = first_tile(kinds.padded(n), width, steps, span, token);
        for (i, line) in row.chunks_exact(len).take(steps).enumerate() {
            // SAFETY: each token has its own line, and belongs to one part.
            let to = unsafe { all.slice(((tile + i) * TILE_SIDE + token % TILE_SIDE) * len, len) };
            to.copy_from_slice(line);
        }
    }
}

/// Rounds each 32 columns of a row to 8 bits, and gives their scales; what is behind the row becomes zero.
#[inline(always)]
fn round_groups<S: Simd>(s: S, row: &[f32], bytes: &mut [i8; SPAN]) -> [f32; SPAN / Q8_COLUMNS] {
    let groups = bytes.as_chunks_mut::<Q8_COLUMNS>().0;
    groups[row.len().div_ceil(Q8_COLUMNS)..].fill([0; Q8_COLUMNS]);
    let mut scales = [0.0; SPAN / Q8_COLUMNS];
    for (scale, (row, to)) in scales.iter_mut().zip(row.chunks(Q8_COLUMNS).zip(groups)) {
        *scale = round_to(s, row, f32::from(i8::MAX), to);
    }
    scales
}

/// Four bytes in the order of q8: the two in the middle change places.
#[inline(always)]
fn q8_order(v: u32) -> u32 {
    const { assert!(matches!(Q8_ORDER, [0, 2, 1, 3])) };
    v & 0xff00_00ff | (v & 0xff00) << 8 | (v & 0x00ff_0000) >> 8
}

/// Changes four bytes at a time.
#[inline(always)]
fn change_fours(
    bytes: &[i8; SPAN],
    change: impl Fn(u32) -> u32,
    changed: &mut [[u8; 4]; SPAN / 4],
) {
    for (to, from) in changed.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *to = change(u32::from_le_bytes(from.map(|v| v as u8))).to_le_bytes();
    }
}

/// The sums of 16 columns each.
#[inline(always)]
fn sums_of_columns<S: Simd>(s: S, bytes: &[i8; SPAN]) -> [i32; SPAN / Q4_COLUMNS] {
    const { assert!(Q4_COLUMNS == 16) };
    let mut sums = [0; SPAN / Q4_COLUMNS];
    let (parts, _) = bytes.as_chunks::<128>();
    for (sums, part) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(parts) {
        *sums = s.sums_of_16(part);
    }
    sums
}

/// The sums of the first two and of the last two of each 4 columns.
#[inline(always)]
fn sums_of_pairs(bytes: &[i8; Q4_COLUMNS]) -> [i16; 2] {
    let mut sums = [0; 2];
    for four in bytes.as_chunks::<4>().0 {
        sums[0] += i16::from(four[0]) + i16::from(four[1]);
        sums[1] += i16::from(four[2]) + i16::from(four[3]);
    }
    sums
}

/// Four bytes without padding, of which any bits are a value.
///
/// # Safety
/// That is promised.
unsafe trait Unit: Copy {}
// SAFETY: numbers.
unsafe impl Unit for f32 {}
// SAFETY: numbers.
unsafe impl Unit for i32 {}
// SAFETY: numbers.
unsafe impl Unit for [bf16; 2] {}
// SAFETY: numbers.
unsafe impl Unit for [i16; 2] {}
// SAFETY: numbers.
unsafe impl Unit for [u8; 4] {}

/// Lays the first `n` rows side by side: unit `u` of row `r` goes to place `u * n + r`.
#[inline(always)]
fn interleave<S: Simd, T: Unit, const N: usize>(s: S, rows: &[&[T]; N], n: usize, to: &mut [T]) {
    const { assert!(N <= LANES) };
    if N == 1 {
        return to.copy_from_slice(rows[0]);
    }
    let len = rows[0].len();
    let whole = len - len % LANES;
    for from in (0..whole).step_by(LANES) {
        let mut units = [s.splat(0.0); LANES];
        for (units, row) in units.iter_mut().zip(rows) {
            let row: &[T; LANES] = row[from..].first_chunk().expect("as many in each row");
            // SAFETY: 32 bytes without padding.
            *units = s.load_f32_bytes(unsafe { &*row.as_ptr().cast() });
        }
        // Lanes behind those of the rows are overwritten by the next store.
        for (i, v) in s.transpose(units).into_iter().enumerate() {
            let to = &mut to[(from + i) * n..];
            if let Some(to) = to.first_chunk_mut::<LANES>() {
                // SAFETY: 32 bytes, any bits of which are values.
                s.store_f32_bytes(v, unsafe { &mut *to.as_mut_ptr().cast() });
            } else {
                let units = rows.each_ref().map(|row| row[from + i]);
                to[..n].copy_from_slice(&units[..n]);
            }
        }
    }
    for (i, to) in to[whole * n..].chunks_exact_mut(n).enumerate() {
        let units = rows.each_ref().map(|row| row[whole + i]);
        to.copy_from_slice(&units[..n]);
    }
}

/// Rounds a row to whole multiples of its largest magnitude divided by `limit`, and gives that unit. What is behind the row
/// becomes zero.
#[inline(always)]
pub(super) fn round_to<S: Simd, T: Round>(s: S, row: &[f32], limit: f32, to: &mut [T]) -> f32 {
    let (inverse, unit) = inverse_and_unit(largest_magnitude(s, row), limit);
    if inverse == 0.0 {
        to.fill(T::default());
        return unit;
    }
    let inverse = s.splat(inverse);
    let (whole, rest) = row.as_chunks::<LANES>();
    let (to, _) = to.as_chunks_mut::<LANES>();
    for (to, v) in to.iter_mut().zip(whole) {
        T::store(s, s.mul(s.load(v), inverse), to);
    }
    let behind = &mut to[whole.len()..];
    behind.as_flattened_mut().fill(T::default());
    if !rest.is_empty() {
        T::store(s, s.mul(s.load_some(rest, 0.0), inverse), &mut behind[0]);
    }
    unit
}

/// The unit of which the magnitude `top` is `limit` times as much, after its reciprocal: NaN and zero where `top` is NaN,
/// zeros where it is next to nothing, or the reciprocal would be infinite.
#[inline(always)]
pub(super) fn inverse_and_unit(top: f32, limit: f32) -> (f32, f32) {
    if top.is_nan() {
        (0.0, f32::NAN)
    } else if top < 1e-30 {
        (0.0, 0.0)
    } else {
        (limit / top, top / limit)
    }
}
