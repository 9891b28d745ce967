//! The activations that enter a linear layer, prepared once for all matrices that read them.
//!
//! The kernels work on tiles of a few tokens and spans of `SPAN` columns, so the activations of a tile lie side by
//! side: `[span][tile][column][token]`. A span is also the unit of the sums (see [`super::linear`]) and of the scales of
//! quantised activations: each token has one scale for each span.
//!
//! What is prepared depends on the formats of the weights and on the instruction set:
//!
//! - f32 for weights in 16 and 32 bits, and for every format where there are no integer kernels;
//! - 16-bit integers for q8, which is as good as exact;
//! - 8-bit integers for q4, one side of whose products must be unsigned. With AVX-512 these are the codes, so the activations
//!   are signed, with the sums of 16 columns to take off what raising the codes adds; with AVX2 they are so for a single
//!   token, for many they are unsigned (plus 128).

use super::quantized::{Q4_COLUMNS, Q4_RAISED};
use super::rows::{Rows, RowsKernel};
use super::shared::SharedMut;
use super::simd::{Kernel, LANES, Simd};
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
        let (tiles, spans) = (self.n.div_ceil(self.tile_len), cols.div_ceil(SPAN));
        let places = Places::new(self);
        // A region costs more than a single token's activations.
        let few = x.len() <= 1 << 14;
        let work = |part: usize| {
            isa.run(Prepare { x, places: &places, tile: part % tiles, span: part / tiles })
        };
        if few { (0..tiles * spans).for_each(work) } else { pool.run(tiles * spans, &work) }
    }

    /// The activations of a tile in a span, `[columns, tokens]`.
    #[inline(always)]
    pub(crate) fn floats(&self, span: usize, tile: usize) -> &[f32] {
        let (columns, tokens) = (self.columns(span), self.tokens(tile));
        &self.floats[span * SPAN * self.n + tile * self.tile_len * columns..][..columns * tokens]
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
        let Kinds { floats, words, bytes, .. } = Kinds::for_formats(isa, &[format]);
        let have = self.kinds;
        assert!(
            (have.floats || !floats) && (have.words || !words) && (have.bytes || !bytes),
            "the input was not prepared for {format} weights"
        );
    }

    fn make_room(&mut self) {
        let padded = self.n * self.cols.next_multiple_of(COLUMNS);
        let scales = self.n * self.spans();
        let Kinds { floats, words, bytes, offsets } = self.kinds;
        grow(&mut self.floats, if floats { self.n * self.cols } else { 0 });
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
            words: SharedMut::new(&mut input.words),
            bytes: SharedMut::new(&mut input.bytes),
            word_scales: SharedMut::new(&mut input.word_scales),
            byte_scales: SharedMut::new(&mut input.byte_scales),
            sums: SharedMut::new(&mut input.sums),
            offsets: SharedMut::new(&mut input.offsets),
        }
    }
}

/// Prepares one tile of one span.
struct Prepare<'a> {
    x: &'a [f32],
    places: &'a Places<'a>,
    tile: usize,
    span: usize,
}

impl Kernel for Prepare<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, places, tile, span } = self;
        let Places { n, cols, tile_len, kinds, .. } = *places;
        let (from, tokens) = (span * SPAN, tile_len.min(n - tile * tile_len));
        let columns = SPAN.min(cols - from);
        let row = |token: usize| &x[(tile * tile_len + token) * cols + from..][..columns];
        if kinds.floats {
            // SAFETY: each tile of each span has its own place, and belongs to one part.
            let to = unsafe {
                places.floats.slice(from * n + tile * tile_len * columns, columns * tokens)
            };
            (0..tokens).for_each(|token| interleave(row(token), to, token, tokens));
        }
        if kinds.words || kinds.bytes {
            for token in 0..tokens {
                quantize(s, row(token), places, kinds, Place { span, tile, token, tokens });
            }
        }
    }
}

/// Which row of a tile is written.
#[derive(Clone, Copy)]
struct Place {
    span: usize,
    tile: usize,
    token: usize,
    tokens: usize,
}

/// Writes the elements of a row to every `tokens`-th place.
#[inline(always)]
fn interleave<T: Copy>(row: &[T], to: &mut [T], token: usize, tokens: usize) {
    if tokens == 1 {
        return to.copy_from_slice(row);
    }
    for (to, x) in to.iter_mut().skip(token).step_by(tokens).zip(row) {
        *to = *x;
    }
}

/// Quantises a row of a span to the forms that are wanted.
#[inline(always)]
fn quantize<S: Simd>(s: S, row: &[f32], places: &Places<'_>, kinds: Kinds, at: Place) {
    let Place { span, tile, token, tokens } = at;
    let padded = row.len().next_multiple_of(COLUMNS);
    let start = span * SPAN * places.n + tile * places.tile_len * padded;
    let scale_at = span * places.n + tile * places.tile_len + token;
    let top = largest_magnitude(s, row);
    if kinds.words {
        let mut words = [0_i16; SPAN];
        let scale = round_to(s, row, top, f32::from(i16::MAX), &mut words);
        // SAFETY: each tile of each span belongs to one part.
        let (to, scales) = unsafe {
            (places.words.slice(start, padded * tokens), places.word_scales.slice(scale_at, 1))
        };
        interleave(words[..padded].as_chunks::<2>().0, to.as_chunks_mut::<2>().0, token, tokens);
        scales[0] = scale;
    }
    if kinds.bytes {
        let mut bytes = [0_i8; SPAN];
        let scale = round_to(s, row, top, f32::from(i8::MAX), &mut bytes);
        // SAFETY: as above.
        let scales = unsafe { places.byte_scales.slice(scale_at, 1) };
        scales[0] = scale;
        store_bytes(&bytes[..padded], start, places, kinds, at);
    }
}

/// Writes a row of a span in 8 bits, and the sums of its columns where they are wanted.
#[inline(always)]
fn store_bytes(bytes: &[i8], start: usize, places: &Places<'_>, kinds: Kinds, at: Place) {
    let Place { token, tokens, .. } = at;
    let groups = bytes.as_chunks::<Q4_COLUMNS>().0;
    let sum = |group: &[i8; Q4_COLUMNS]| group.iter().map(|v| i16::from(*v)).sum::<i16>();
    let (first, len) = (start / Q4_COLUMNS, groups.len());
    if kinds.offsets {
        // SAFETY: each tile of each span belongs to one part.
        let offsets = unsafe { places.offsets.slice(first, len * tokens) };
        let mut row = [0; SPAN / Q4_COLUMNS];
        for (offset, group) in row.iter_mut().zip(groups) {
            *offset = -i32::from(Q4_RAISED) * i32::from(sum(group));
        }
        interleave(&row[..len], offsets, token, tokens);
    } else if places.n == 1 {
        // SAFETY: as above.
        let sums = unsafe { places.sums.slice(first, len) };
        sums.iter_mut().zip(groups).for_each(|(to, group)| *to = sum(group));
    }
    // Signed or raised by 128.
    let flip = if places.n == 1 || kinds.offsets { 0 } else { 0x80 };
    let mut flipped = [0_u8; SPAN];
    flipped.iter_mut().zip(bytes).for_each(|(to, v)| *to = *v as u8 ^ flip);
    let flipped = flipped[..bytes.len()].as_chunks::<4>().0;
    // SAFETY: as above.
    let to = unsafe { places.bytes.slice(start, bytes.len() * tokens) };
    interleave(flipped, to.as_chunks_mut::<4>().0, token, tokens);
}

/// The largest magnitude of a row; NaN where an element is not finite.
#[inline(always)]
pub(crate) fn largest_magnitude<S: Simd>(s: S, row: &[f32]) -> f32 {
    let (whole, rest) = row.as_chunks::<LANES>();
    let rest = s.lanes(s.load_some(rest, 0.0));
    let (mut top, mut not_finite) = (s.splat(0.0), s.splat(0.0));
    for v in whole.iter().chain([&rest]) {
        let v = s.load(v);
        top = s.max(top, s.max(v, s.sub(s.splat(0.0), v)));
        // Infinity and NaN times zero are NaN.
        not_finite = s.mul_add(v, s.splat(0.0), not_finite);
    }
    s.largest(top) + s.sum(not_finite)
}

/// Integers that activations are rounded to.
trait Whole: Sized {
    fn store<S: Simd>(s: S, v: S::F, to: &mut [Self; LANES]);
}

impl Whole for i8 {
    #[inline(always)]
    fn store<S: Simd>(s: S, v: S::F, to: &mut [Self; LANES]) {
        s.store_i8(v, to);
    }
}

impl Whole for i16 {
    #[inline(always)]
    fn store<S: Simd>(s: S, v: S::F, to: &mut [Self; LANES]) {
        s.store_i16(v, to);
    }
}

/// Rounds a row to whole multiples of `top / limit`, and gives that unit. What is behind the row stays zero.
#[inline(always)]
fn round_to<S: Simd, T: Whole>(s: S, row: &[f32], top: f32, limit: f32, to: &mut [T; SPAN]) -> f32 {
    // Where all is next to nothing, the reciprocal of the unit would be infinite.
    if top < 1e-30 {
        return 0.0;
    }
    if top.is_nan() {
        return f32::NAN;
    }
    let inverse = s.splat(limit / top);
    let (whole, rest) = row.as_chunks::<LANES>();
    let (to, _) = to.as_chunks_mut::<LANES>();
    for (to, v) in to.iter_mut().zip(whole) {
        T::store(s, s.mul(s.load(v), inverse), to);
    }
    if !rest.is_empty() {
        T::store(s, s.mul(s.load_some(rest, 0.0), inverse), &mut to[whole.len()]);
    }
    top / limit
}
