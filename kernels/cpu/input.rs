//! The activations that enter a linear layer, prepared once for all matrices that read them.
//!
//! The kernels work on tiles of a few tokens and spans of `SPAN` columns, so the activations of a tile lie side by
//! side: `[span][tile][column][token]`. A span is also the unit of the sums (see [`super::linear`]) and of the scales of
//! quantised activations: each token has one scale for each span.
//!
//! What is prepared depends on the formats of the weights and on the instruction set:
//!
//! - f32 for weights in 16 and 32 bits, and for every format where there are no integer kernels;
//! - bf16 for weights in bf16 where the CPU multiplies it;
//! - 16-bit integers for q8, which is as good as exact;
//! - 8-bit integers for q4, one side of whose products must be unsigned. With AVX-512 these are the codes, so the activations
//!   are signed, with the sums of 16 columns to take off what raising the codes adds; with AVX2 they are so for a single
//!   token, for many they are unsigned (plus 128).

use std::ops::Range;

use half::bf16;

use super::elementwise::Narrow;
use super::quantized::{Q4_COLUMNS, Q4_RAISED};
use super::rows::{Rows, RowsKernel};
use super::shared::SharedMut;
use super::simd::{Kernel, LANES, Round, Simd};
use crate::packed::{COLUMNS, Format};
use crate::{Isa, Pool};

/// Evaluates an expression with a constant for the number of tokens of a tile, so that each number has a kernel of its
/// own: `by_tokens!(tokens up to 6, T => tile::<T>(x))`. The limit is a constant, at most [`MOST_TOKENS`].
macro_rules! by_tokens {
    ($tokens:ident up to $most:expr, $n:ident => $body:expr) => {
        match $tokens {
            1 => by_tokens!(@ 1, $n => $body),
            2 => by_tokens!(@ 2, $n => $body),
            3 => by_tokens!(@ 3, $n => $body),
            4 => by_tokens!(@ 4, $n => $body),
            5 => by_tokens!(@ 5, $n => $body),
            6 => by_tokens!(@ 6, $n => $body),
            7 if $most >= 7 => by_tokens!(@ 7, $n => $body),
            8 if $most >= 8 => by_tokens!(@ 8, $n => $body),
            tokens => unreachable!("a tile of {tokens} tokens"),
        }
    };
    (@ $value:expr, $n:ident => $body:expr) => {{
        const $n: usize = $value;
        $body
    }};
}
pub(crate) use by_tokens;

/// The tokens of the largest tile of any instruction set.
pub(crate) const MOST_TOKENS: usize = 8;

/// Columns that are summed in one go.
pub(crate) const SPAN: usize = 256;

/// Spans that a thread prepares at a time.
const RUN: usize = 8;

/// Prepared activations. Keep one and set it anew for each layer: it allocates only when it has to grow.
#[derive(Default)]
pub struct Input {
    pub(crate) n: usize,
    pub(crate) cols: usize,
    /// Tokens of a tile; the last tile may hold fewer.
    pub(crate) tile_len: usize,
    /// What it was prepared for.
    isa: Option<Isa>,
    kinds: Kinds,
    floats: Vec<f32>,
    /// `[span][tile][pair of columns][token]`
    halves: Vec<[bf16; 2]>,
    pub(crate) words: Vec<i16>,
    pub(crate) bytes: Vec<u8>,
    /// `[span][token]`: what a unit of `words` is worth.
    pub(crate) word_scales: Vec<f32>,
    /// `[span][token]`: what a unit of `bytes` is worth.
    pub(crate) byte_scales: Vec<f32>,
    /// For a single token and AVX2, for each 16 columns the sum of `bytes`.
    pub(crate) sums: Vec<i16>,
    /// For AVX-512, `[span][tile][16 columns][token]`: minus what raising the codes adds to the sum of the columns.
    pub(crate) offsets: Vec<i32>,
}

/// Which forms of the activations are wanted.
#[derive(Clone, Copy, Default)]
struct Kinds {
    floats: bool,
    halves: bool,
    words: bool,
    bytes: bool,
    offsets: bool,
}

impl Input {
    /// No activations yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Prepares `x`, `[n, cols]`, for matrices of `formats`.
    ///
    /// Activations that are not finite make the outputs that they enter NaN.
    ///
    /// # Panics
    /// When `x` is not whole rows of `cols`.
    pub fn set(&mut self, isa: Isa, pool: &Pool, x: &[f32], cols: usize, formats: &[Format]) {
        assert!(
            x.is_empty() || (cols > 0 && x.len().is_multiple_of(cols)),
            "input: rows of {cols}"
        );
        self.n = x.len().checked_div(cols).unwrap_or(0);
        self.cols = cols;
        self.tile_len = isa.run_rows(TileLen);
        self.isa = Some(isa);
        self.kinds = Kinds::for_formats(isa, formats);
        self.make_room();
        let (tiles, spans) = (self.n.div_ceil(self.tile_len), self.spans());
        let places = Places::new(self);
        // A region costs more than a single token's activations.
        let few = x.len() <= 1 << 14;
        // A part goes along its rows, so that what it reads next is foreseen.
        let work = |part: usize| {
            let first = part / tiles * RUN;
            let spans = first..spans.min(first + RUN);
            isa.run(Prepare { x, places: &places, tile: part % tiles, spans });
        };
        let parts = tiles * spans.div_ceil(RUN);
        if few { (0..parts).for_each(work) } else { pool.run(parts, &work) }
    }

    /// The activations of a tile in a span, `[columns, tokens]`.
    #[inline(always)]
    pub(crate) fn floats(&self, span: usize, tile: usize) -> &[f32] {
        let (columns, tokens) = (self.columns(span), self.tokens(tile));
        &self.floats[span * SPAN * self.n + tile * self.tile_len * columns..][..columns * tokens]
    }

    /// The activations of a tile in a span, `[pairs of columns, tokens]`; the partner of an odd column is zero.
    #[inline(always)]
    pub(crate) fn halves(&self, span: usize, tile: usize) -> &[[bf16; 2]] {
        let (pairs, tokens) = (self.columns(span).div_ceil(2), self.tokens(tile));
        &self.halves[span * SPAN / 2 * self.n + tile * self.tile_len * pairs..][..pairs * tokens]
    }

    /// Where the integers of a tile begin in a span, and how many columns they have: whole groups of 64.
    #[inline(always)]
    pub(crate) fn integers(&self, span: usize, tile: usize) -> (usize, usize) {
        let columns = self.columns(span).next_multiple_of(COLUMNS);
        (span * SPAN * self.n + tile * self.tile_len * columns, columns)
    }

    pub(crate) fn spans(&self) -> usize {
        self.cols.div_ceil(SPAN)
    }

    /// Columns of a span.
    #[inline(always)]
    pub(crate) fn columns(&self, span: usize) -> usize {
        SPAN.min(self.cols - span * SPAN)
    }

    /// Tokens of a tile.
    #[inline(always)]
    pub(crate) fn tokens(&self, tile: usize) -> usize {
        self.tile_len.min(self.n - tile * self.tile_len)
    }

    /// Checks that a matrix can be multiplied with what was prepared.
    #[track_caller]
    pub(crate) fn check(&self, isa: Isa, format: Format, cols: usize) {
        assert_eq!(cols, self.cols, "columns of the weights, columns of the input");
        assert_eq!(Some(isa), self.isa, "the instruction set, and that of the input");
        let Kinds { floats, halves, words, bytes, .. } = Kinds::for_formats(isa, &[format]);
        let have = self.kinds;
        assert!(
            (have.floats || !floats)
                && (have.halves || !halves)
                && (have.words || !words)
                && (have.bytes || !bytes),
            "the input was not prepared for {format} weights"
        );
    }

    fn make_room(&mut self) {
        let padded = self.n * self.cols.next_multiple_of(COLUMNS);
        let scales = self.n * self.spans();
        let Kinds { floats, halves, words, bytes, offsets } = self.kinds;
        grow(&mut self.floats, if floats { self.n * self.cols } else { 0 });
        grow(&mut self.halves, if halves { self.n * self.cols.div_ceil(2) } else { 0 });
        grow(&mut self.words, if words { padded } else { 0 });
        grow(&mut self.word_scales, if words { scales } else { 0 });
        grow(&mut self.bytes, if bytes { padded } else { 0 });
        grow(&mut self.byte_scales, if bytes { scales } else { 0 });
        grow(&mut self.sums, if bytes && self.n == 1 { padded / Q4_COLUMNS } else { 0 });
        grow(&mut self.offsets, if offsets { padded / Q4_COLUMNS } else { 0 });
    }
}

/// Makes a vector at least `len` long. It never shrinks, so in the end nothing is allocated any more.
fn grow<T: Clone + Default>(vec: &mut Vec<T>, len: usize) {
    if vec.len() < len {
        vec.resize(len, T::default());
    }
}

/// How many tokens a tile holds.
struct TileLen;

impl RowsKernel for TileLen {
    type Output = usize;
    #[inline(always)]
    fn run<R: Rows>(self, _: R) -> usize {
        const { assert!(R::TOKENS <= MOST_TOKENS) };
        R::TOKENS
    }
}

impl Kinds {
    fn for_formats(isa: Isa, formats: &[Format]) -> Self {
        let mut kinds = Self::default();
        for format in formats {
            match format {
                Format::Bf16 if isa.multiplies_bf16() => kinds.halves = true,
                Format::F32 | Format::F16 | Format::Bf16 => kinds.floats = true,
                Format::Q8 if isa.has_integers() => kinds.words = true,
                Format::Q4 if isa.has_integers() => {
                    kinds.bytes = true;
                    kinds.offsets = isa.has_vnni();
                }
                Format::Q8 | Format::Q4 => kinds.floats = true,
            }
        }
        kinds
    }
}

/// The vectors of an [`Input`], for several threads to fill.
pub(crate) struct Places<'a> {
    pub(crate) n: usize,
    pub(crate) cols: usize,
    tile_len: usize,
    kinds: Kinds,
    floats: SharedMut<'a, f32>,
    halves: SharedMut<'a, [bf16; 2]>,
    pub(crate) words: SharedMut<'a, i16>,
    pub(crate) bytes: SharedMut<'a, u8>,
    pub(crate) word_scales: SharedMut<'a, f32>,
    pub(crate) byte_scales: SharedMut<'a, f32>,
    pub(crate) sums: SharedMut<'a, i16>,
    offsets: SharedMut<'a, i32>,
}

impl<'a> Places<'a> {
    fn new(input: &'a mut Input) -> Self {
        Self {
            n: input.n,
            cols: input.cols,
            tile_len: input.tile_len,
            kinds: input.kinds,
            floats: SharedMut::new(&mut input.floats),
            halves: SharedMut::new(&mut input.halves),
            words: SharedMut::new(&mut input.words),
            bytes: SharedMut::new(&mut input.bytes),
            word_scales: SharedMut::new(&mut input.word_scales),
            byte_scales: SharedMut::new(&mut input.byte_scales),
            sums: SharedMut::new(&mut input.sums),
            offsets: SharedMut::new(&mut input.offsets),
        }
    }
}

/// Prepares one tile of some spans.
struct Prepare<'a> {
    x: &'a [f32],
    places: &'a Places<'a>,
    tile: usize,
    spans: Range<usize>,
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
            if !kinds.words && !kinds.bytes {
                continue;
            }
            let mut tops = [0.0; N];
            for (top, row) in tops.iter_mut().zip(&rows[..self.tokens()]) {
                *top = largest_magnitude(s, row);
            }
            if kinds.words {
                self.store_words(s, span, &rows, &tops, &mut words);
            }
            if kinds.bytes {
                self.store_bytes(s, span, &rows, &tops, &mut bytes);
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

    /// Where the numbers of the tile begin in a span, if each row has so many.
    #[inline(always)]
    fn start(&self, span: usize, width: usize) -> usize {
        let Places { n, tile_len, .. } = *self.places;
        span * SPAN * n + self.tile * tile_len * width
    }

    /// Where the scales of the tile begin in a span.
    #[inline(always)]
    fn first_scale(&self, span: usize) -> usize {
        span * self.places.n + self.tile * self.places.tile_len
    }

    #[inline(always)]
    fn store_floats<S: Simd, const N: usize>(&self, s: S, span: usize, rows: &[&[f32]; N]) {
        let (tokens, width) = (self.tokens(), rows[0].len());
        // SAFETY: each tile of each span has its own place, and belongs to one part.
        let to = unsafe { self.places.floats.slice(self.start(span, width), width * tokens) };
        s.prefetch_to_write(to);
        interleave(s, rows, tokens, to);
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
        // SAFETY: as for floats.
        let to =
            unsafe { self.places.halves.slice(self.start(span, width) / 2, width / 2 * tokens) };
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
        tops: &[f32; N],
        words: &mut [[i16; SPAN]; N],
    ) {
        let (tokens, width) = (self.tokens(), rows[0].len().next_multiple_of(COLUMNS));
        // SAFETY: as for floats.
        let (to, scales) = unsafe {
            (
                self.places.words.slice(self.start(span, width), width * tokens),
                self.places.word_scales.slice(self.first_scale(span), tokens),
            )
        };
        s.prefetch_to_write(to);
        for (i, scale) in scales.iter_mut().enumerate() {
            *scale = round_to(s, rows[i], tops[i], f32::from(i16::MAX), &mut words[i]);
        }
        let rows = words.each_ref().map(|row| row[..width].as_chunks::<2>().0);
        interleave(s, &rows, tokens, to.as_chunks_mut::<2>().0);
    }

    /// Stores the rows in 8 bits, and the sums of their columns where they are wanted; `bytes` is memory for them.
    #[inline(always)]
    fn store_bytes<S: Simd, const N: usize>(
        &self,
        s: S,
        span: usize,
        rows: &[&[f32]; N],
        tops: &[f32; N],
        bytes: &mut [[i8; SPAN]; N],
    ) {
        let (tokens, width) = (self.tokens(), rows[0].len().next_multiple_of(COLUMNS));
        // SAFETY: as for floats.
        let (to, scales) = unsafe {
            (
                self.places.bytes.slice(self.start(span, width), width * tokens),
                self.places.byte_scales.slice(self.first_scale(span), tokens),
            )
        };
        s.prefetch_to_write(to);
        for (i, scale) in scales.iter_mut().enumerate() {
            *scale = round_to(s, rows[i], tops[i], f32::from(i8::MAX), &mut bytes[i]);
        }
        if self.places.kinds.offsets {
            self.store_offsets(s, span, bytes, width);
        } else if self.places.n == 1 {
            let len = width / Q4_COLUMNS;
            // SAFETY: as for floats.
            let sums = unsafe { self.places.sums.slice(self.start(span, width) / Q4_COLUMNS, len) };
            let all = sums_of_columns(s, &bytes[0]);
            sums.iter_mut().zip(all).for_each(|(to, sum)| *to = sum as i16);
        }
        // Signed or raised by 128.
        let flip = if self.places.n == 1 || self.places.kinds.offsets { 0 } else { 0x80 };
        let mut flipped = [[0_u8; SPAN]; N];
        for (to, from) in flipped[..tokens].iter_mut().zip(&*bytes) {
            to.iter_mut().zip(from).for_each(|(to, v)| *to = *v as u8 ^ flip);
        }
        let rows = flipped.each_ref().map(|row| row[..width].as_chunks::<4>().0);
        interleave(s, &rows, tokens, to.as_chunks_mut::<4>().0);
    }

    /// Stores what raising the codes adds to the sums, with the other sign.
    #[inline(always)]
    fn store_offsets<S: Simd, const N: usize>(
        &self,
        s: S,
        span: usize,
        bytes: &[[i8; SPAN]; N],
        width: usize,
    ) {
        let (tokens, len) = (self.tokens(), width / Q4_COLUMNS);
        // SAFETY: as for floats.
        let to = unsafe {
            self.places.offsets.slice(self.start(span, width) / Q4_COLUMNS, len * tokens)
        };
        let mut offsets = [[0; SPAN / Q4_COLUMNS]; N];
        for (offsets, bytes) in offsets.iter_mut().zip(&bytes[..tokens]) {
            *offsets = sums_of_columns(s, bytes).map(|sum| -i32::from(Q4_RAISED) * sum);
        }
        interleave(s, &offsets.each_ref().map(|row| &row[..len]), tokens, to);
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

/// The largest magnitude of a row; NaN where an element is not finite.
#[inline(always)]
pub(crate) fn largest_magnitude<S: Simd>(s: S, row: &[f32]) -> f32 {
    // As many chains as hide the latency of the multiply-adds.
    const CHAINS: usize = 4;
    let zero = s.splat(0.0);
    let (mut tops, mut not_finite) = ([zero; CHAINS], [zero; CHAINS]);
    let (whole, rest) = row.as_chunks::<{ CHAINS * LANES }>();
    let mut last = [0.0; CHAINS * LANES];
    last[..rest.len()].copy_from_slice(rest);
    let last = if rest.is_empty() { &[][..] } else { std::slice::from_ref(&last) };
    for four in [whole, last] {
        for four in four {
            for (i, v) in four.as_chunks::<LANES>().0.iter().enumerate() {
                let v = s.load(v);
                tops[i] = s.max(tops[i], s.max(v, s.sub(zero, v)));
                // Infinity and NaN times zero are NaN.
                not_finite[i] = s.mul_add(v, zero, not_finite[i]);
            }
        }
    }
    let top = s.max(s.max(tops[0], tops[1]), s.max(tops[2], tops[3]));
    let [a, b, c, d] = not_finite;
    s.largest(top) + s.sum(s.add(s.add(a, b), s.add(c, d)))
}

/// Rounds a row to whole multiples of `top / limit`, and gives that unit. What is behind the row becomes zero.
#[inline(always)]
fn round_to<S: Simd, T: Round>(s: S, row: &[f32], top: f32, limit: f32, to: &mut [T; SPAN]) -> f32 {
    // Where all is next to nothing, the reciprocal of the unit would be infinite.
    if top < 1e-30 || top.is_nan() {
        to.fill(T::default());
        return if top.is_nan() { f32::NAN } else { 0.0 };
    }
    let inverse = s.splat(limit / top);
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
    top / limit
}
