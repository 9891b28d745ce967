//! The activations that enter a linear layer, prepared once for all matrices that read them.
//!
//! The kernels work on tiles of a few tokens and spans of `SPAN` columns, so the activations of a tile lie side by
//! side: `[span][tile][column][token]`. A span is also the unit of the sums (see [`super::linear`]), and of most scales of
//! quantised activations.
//!
//! What is prepared depends on the formats of the weights and on the instruction set:
//!
//! - f32 for weights in 16 and 32 bits, and for every format where there are no integer kernels;
//! - bf16 for weights in bf16 where the CPU multiplies it;
//! - integers for q8: of 16 bits with AVX2, with a scale for each token and span, which is as good as exact and no slower there
//!   than 8 bits would be; of 8 bits with AVX-512, which multiplies twice as many of them, with a scale for each token and
//!   32 columns, like the weights;
//! - 8-bit integers for q4, with a scale for each token and span.
//!
//! For prompts with AMX, bf16 and bytes lie as its tiles need them, `[span][16 tokens][64 bytes of columns][token][byte]`, and nothing is
//! raised: see `linear_amx`.
//!
//! Else, one side of the products of bytes must be unsigned. With AVX-512 these are the weights, so the activations are signed,
//! with sums of columns to take off what raising the weights adds; with AVX2 (q4) they are so for a single token, for many they
//! are unsigned (plus 128).

use std::ops::Range;

use half::bf16;

use super::ahead;
use super::prepare::{Places, Prepare, PrepareTiles};
use super::quantized::{Q4_COLUMNS, Q8_COLUMNS};
use super::rows::{Rows, RowsKernel};
use crate::memory::Lines;
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
            6 if $most >= 6 => by_tokens!(@ 6, $n => $body),
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

/// Tokens, or rows of weights, of a tile of AMX.
pub(crate) const TILE_SIDE: usize = 16;

/// Bytes of a token's columns, or of a row's, in a tile of AMX.
pub(crate) const TILE_LINE: usize = 64;

/// Tokens that are multiplied together with AMX.
pub(crate) const TILED_TOKENS: usize = 2 * TILE_SIDE;

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
    /// Whether the weights should be asked for before they are read.
    pub(super) ahead: bool,
    pub(super) kinds: Kinds,
    pub(super) floats: Lines<f32>,
    /// `[span][tile][pair of columns][token]`; in tiles `[span][16 tokens][32 columns][token][column]`.
    pub(super) halves: Lines<[bf16; 2]>,
    /// For q8 and AVX2.
    pub(super) words: Lines<i16>,
    /// `[span][token]`: what a unit of `words` is worth.
    pub(super) word_scales: Lines<f32>,
    /// For q4; in tiles as `halves`, with 64 columns.
    pub(super) bytes: Lines<u8>,
    /// `[span][token]`: what a unit of `bytes` is worth.
    pub(super) byte_scales: Lines<f32>,
    /// For a single token and AVX2, for each 16 columns and the first two and the last two of each 4: minus what raising the
    /// codes adds to the sum of the columns.
    pub(super) sums: Lines<[i16; 2]>,
    /// For AVX-512, `[span][tile][16 columns][token]`: minus what raising the codes adds to the sum of the columns.
    pub(super) offsets: Lines<i32>,
    /// For q8 and AVX-512, as `bytes`; of each 4 columns in the order of [`super::quantized::Q8_ORDER`].
    pub(super) fine_bytes: Lines<u8>,
    /// `[span][tile][32 columns][token]`, in tiles `[32 columns][token]`: what a unit of `fine_bytes` is worth.
    pub(super) fine_scales: Lines<f32>,
    /// As `fine_scales`: minus what raising the weights adds to the sum of the columns.
    pub(super) fine_offsets: Lines<i32>,
}

/// Which forms of the activations are wanted.
#[derive(Clone, Copy, Default)]
pub(super) struct Kinds {
    pub(super) floats: bool,
    pub(super) halves: bool,
    pub(super) words: bool,
    pub(super) bytes: bool,
    pub(super) offsets: bool,
    pub(super) fine_bytes: bool,
    /// Whether they are laid out for AMX; then there are no floats.
    pub(super) tiled: bool,
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
        self.ahead = self.n == 1 && ahead::pays();
        self.kinds = Kinds::for_formats(isa, formats);
        self.kinds.tiled =
            isa.multiplies_tiles() && formats.iter().all(|format| self.n >= fewest_tiled(*format));
        self.make_room();
        let (tiles, spans) = (self.n.div_ceil(self.tile_len), self.spans());
        let tiled = self.kinds.tiled;
        let places = Places::new(self);
        // A region costs more than a single token's activations.
        let few = x.len() <= 1 << 14;
        // A part goes along its rows, so that what it reads next is foreseen.
        let work = |part: usize| {
            let first = part / tiles * RUN;
            let (tile, spans) = (part % tiles, first..spans.min(first + RUN));
            let prepare = Prepare { x, places: &places, tile, spans };
            match tiled {
                true => isa.run(PrepareTiles(prepare)),
                false => isa.run(prepare),
            }
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

    /// Whether it is laid out for AMX.
    pub(crate) fn tiled(&self) -> bool {
        self.kinds.tiled
    }

    /// Tokens, and what fills them up to whole pairs of tiles: rows of scales and tiles have so many.
    pub(crate) fn padded(&self) -> usize {
        self.kinds.padded(self.n)
    }

    /// All tiles of a span for some tokens, one after the other.
    pub(crate) fn all_tiles<'a, T>(
        &self,
        all: &'a [T],
        columns: usize,
        span: usize,
        tokens: &Range<usize>,
    ) -> &'a [T] {
        let steps = self.columns(span).div_ceil(columns);
        let first = first_tile(self.padded(), columns, steps, span, tokens.start);
        &all[first..][..tokens.len().div_ceil(TILED_TOKENS) * 2 * steps]
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
        let Kinds { floats, halves, words, bytes, fine_bytes, offsets: _, tiled: _ } =
            Kinds::for_formats(isa, &[format]);
        let have = self.kinds;
        assert!(
            (have.floats || !floats)
                && (have.halves || !halves)
                && (have.words || !words)
                && (have.bytes || !bytes)
                && (have.fine_bytes || !fine_bytes),
            "the input was not prepared for {format} weights"
        );
    }

    fn make_room(&mut self) {
        let n = self.padded();
        let padded = n * self.cols.next_multiple_of(COLUMNS);
        let scales = n * self.spans();
        let Kinds { floats, halves, words, bytes, fine_bytes, offsets, tiled } = self.kinds;
        let pairs = if tiled { padded / 2 } else { n * self.cols.div_ceil(2) };
        self.floats.grow(if floats { self.n * self.cols } else { 0 });
        self.halves.grow(if halves { pairs } else { 0 });
        self.words.grow(if words { padded } else { 0 });
        self.word_scales.grow(if words { scales } else { 0 });
        self.bytes.grow(if bytes { padded } else { 0 });
        self.byte_scales.grow(if bytes { scales } else { 0 });
        self.sums.grow(if bytes && self.n == 1 { padded / Q4_COLUMNS } else { 0 });
        self.offsets.grow(if offsets { padded / Q4_COLUMNS } else { 0 });
        self.fine_bytes.grow(if fine_bytes { padded } else { 0 });
        self.fine_scales.grow(if fine_bytes { padded / Q8_COLUMNS } else { 0 });
        self.fine_offsets.grow(if fine_bytes { padded / Q8_COLUMNS } else { 0 });
    }
}

/// The fewest tokens that are multiplied faster with AMX, where it is.
fn fewest_tiled(format: Format) -> usize {
    match format {
        Format::F32 | Format::F16 => usize::MAX,
        Format::Bf16 => MOST_TOKENS + 1,
        Format::Q8 => 22,
        Format::Q4 => 14,
    }
}

/// Where the tiles of a token begin in a span: `steps` of them, each of so many columns, with `n` tokens in all.
#[inline(always)]
pub(super) fn first_tile(
    n: usize,
    columns: usize,
    steps: usize,
    span: usize,
    token: usize,
) -> usize {
    SPAN / columns * span * n / TILE_SIDE + token / TILE_SIDE * steps
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
    /// For `n` tokens, see [`Input::padded`].
    pub(super) fn padded(&self, n: usize) -> usize {
        if self.tiled { n.next_multiple_of(TILED_TOKENS) } else { n }
    }

    fn for_formats(isa: Isa, formats: &[Format]) -> Self {
        let mut kinds = Self::default();
        for format in formats {
            match format {
                Format::Bf16 if isa.multiplies_bf16() => kinds.halves = true,
                Format::F32 | Format::F16 | Format::Bf16 => kinds.floats = true,
                Format::Q8 if isa.has_vnni() => kinds.fine_bytes = true,
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
