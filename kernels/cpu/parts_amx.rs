//! Numbers of more bits than bf16 has, for AMX: each is the sum of two of bf16.
//!
//! Those two have 17 bits together: f16, with 11, loses nothing, f32 at most 1/262144 of itself. Of the four products of two such numbers,
//! that of both lower parts is left out, which is as small as that.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::wildcard_imports, reason = "the names of the intrinsics say where they come from")]

use std::arch::asm;
use std::arch::x86_64::*;

use super::amx::{Content, LINE, SIDE, Tiles};
use super::shared::SharedMut;
use crate::memory::Aligned;

/// Floats of a vector.
pub(super) const LANES: usize = 16;

/// Numbers of two tiles, in their upper and lower parts: 32 columns of 32 rows, `[row][column]`, or what they are multiplied with,
/// `[pair of columns][row][2]` for each 16 rows. In both, column `i` and column `i + 16` are a pair.
#[derive(Clone)]
#[repr(C)]
pub(super) struct Parts {
    high: [Content; 2],
    low: [Content; 2],
}

impl Parts {
    pub(super) const ZERO: Self = {
        const TILES: [Content; 2] = [Aligned([[0; LINE]; SIDE]); 2];
        Self { high: TILES, low: TILES }
    };

    /// Stores 16 pairs as a line of the first tile or the second.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn store(&mut self, line: usize, first: __m512, second: __m512) {
        let (a, b) = (split(first), split(second));
        for (to, a, b) in [(&mut self.high, a[0], b[0]), (&mut self.low, a[1], b[1])] {
            let to = &mut to[line / SIDE].0[line % SIDE];
            let pairs = _mm512_or_si512(
                _mm512_srli_epi32::<16>(a),
                _mm512_and_si512(b, _mm512_set1_epi32(UPPER)),
            );
            // SAFETY: the line is 64 bytes long.
            unsafe { _mm512_store_si512(to.as_mut_ptr().cast(), pairs) };
        }
    }

    /// The number of a row and column.
    pub(super) fn get(&self, row: usize, column: usize) -> f32 {
        let at = 2 * (2 * (column % SIDE) + column / SIDE);
        let part = |tiles: &[Content; 2]| {
            let line = &tiles[row / SIDE].0[row % SIDE];
            f32::from_bits(u32::from_le_bytes([0, 0, line[at], line[at + 1]]))
        };
        part(&self.high) + part(&self.low)
    }
}

/// The bits of f32 that bf16 has.
const UPPER: i32 = 0xffff_0000_u32 as i32;

/// Numbers as the sum of two, of which the upper bits count. Of infinity the second is NaN; a NaN may get lost: see [`plain_nan`].
#[inline]
#[target_feature(enable = "avx512f")]
fn split(v: __m512) -> [__m512i; 2] {
    let high = round(v);
    let rounded = _mm512_castsi512_ps(_mm512_and_si512(high, _mm512_set1_epi32(UPPER)));
    [high, round(_mm512_sub_ps(v, rounded))]
}

/// The bits of numbers, of which the upper ones are rounded.
#[inline]
#[target_feature(enable = "avx512f")]
fn round(v: __m512) -> __m512i {
    _mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(0x8000))
}

/// Numbers with all NaN as one that rounding keeps: others may have bits that it would carry into the sign.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn plain_nan(v: __m512) -> __m512 {
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
    _mm512_mask_mov_ps(v, nan, _mm512_set1_ps(f32::NAN))
}

/// The mask of the first `n` lanes.
pub(super) fn first_lanes(n: usize) -> u16 {
    if n < LANES { (1 << n) - 1 } else { u16::MAX }
}

/// 32 × 32 sums among others, in lines that are `line` numbers long.
#[derive(Clone, Copy)]
pub(super) struct Square<'a> {
    pub(super) numbers: SharedMut<'a, f32>,
    pub(super) at: usize,
    pub(super) line: usize,
}

impl Square<'_> {
    /// Where the sums of a register begin: those of the first 16 rows with the first and the second 16 columns, then of the others.
    fn sums(&self, i: usize) -> *mut f32 {
        let at = self.at + i / 2 * SIDE * self.line + i % 2 * SIDE;
        // SAFETY: only the address is used, and no other slice of these numbers is.
        unsafe { self.numbers.slice(at, (SIDE - 1) * self.line + SIDE) }.as_mut_ptr()
    }
}

/// Sets each square to the products of the steps of `x` with those beside it, or adds them to it.
#[inline(always)]
pub(super) fn multiply<'a>(
    tiles: &Tiles,
    x: &[Parts],
    squares: impl Iterator<Item = (&'a [Parts], Square<'a>)>,
    add: bool,
) {
    macro_rules! products {
        ($x:expr, $w:expr, $($i:literal)*) => { $(add_product(tiles, $i, $x, $w);)* };
    }
    let mut made = None;
    for (w, square) in squares {
        for (step, (x, w)) in x.iter().zip(w).enumerate() {
            if step == 0 {
                macro_rules! begin {
                    ($($i:literal)*) => {
                        $(begin(tiles, $i, made, add.then_some(square)); add_product(tiles, $i, x, w);)*
                    };
                }
                begin!(0 1 2 3);
            } else {
                products!(x, w, 0 1 2 3);
            }
            products!(x, w, 4 5 6 7 8 9 10 11);
        }
        made = Some(square);
    }
    if let Some(made) = made {
        (0..4).for_each(|i| store(tiles, i, made));
    }
}

/// Makes room in one of the four registers for sums: of zero, or to go on `from`. Those before take long to be complete, and
/// are stored only now.
#[inline(always)]
fn begin(tiles: &Tiles, i: usize, before: Option<Square<'_>>, from: Option<Square<'_>>) {
    if let Some(before) = before {
        store(tiles, i, before);
    }
    match from {
        Some(from) => load(tiles, i, from),
        None => clear(tiles, i),
    }
}

/// An instruction for the register of one of the four sums.
macro_rules! on_sums {
    ($i:expr, [$($before:literal)?, $($after:literal)?], $($operands:tt)*) => {
        match $i {
            0 => asm!(concat!($($before,)? "tmm0" $(, $after)?), out("tmm0") _, $($operands)*),
            1 => asm!(concat!($($before,)? "tmm1" $(, $after)?), out("tmm1") _, $($operands)*),
            2 => asm!(concat!($($before,)? "tmm2" $(, $after)?), out("tmm2") _, $($operands)*),
            _ => asm!(concat!($($before,)? "tmm3" $(, $after)?), out("tmm3") _, $($operands)*),
        }
    };
}

#[inline(always)]
fn clear(_: &Tiles, i: usize) {
    // SAFETY: the registers are set up.
    unsafe { on_sums!(i, ["tilezero ",], options(nostack, preserves_flags, nomem)) }
}

#[inline(always)]
fn load(_: &Tiles, i: usize, from: Square<'_>) {
    // SAFETY: the registers are set up; `sums` has seen that all lines are inside.
    unsafe {
        on_sums!(
            i,
            ["tileloadd ", ", [{from} + {line}]"],
            from = in(reg) from.sums(i),
            line = in(reg) size_of::<f32>() * from.line,
            options(nostack, preserves_flags, readonly)
        );
    }
}

#[inline(always)]
fn store(_: &Tiles, i: usize, to: Square<'_>) {
    // SAFETY: as above.
    unsafe {
        on_sums!(
            i,
            ["tilestored [{to} + {line}], ",],
            to = in(reg) to.sums(i),
            line = in(reg) size_of::<f32>() * to.line,
            options(nostack, preserves_flags)
        );
    }
}

/// Adds one of the twelve products of a step to its sums. They are made in order: each finds in the registers what those before it
/// have left.
#[inline(always)]
fn add_product(_: &Tiles, product: usize, x: &Parts, w: &Parts) {
    macro_rules! add {
        ($($line:literal),*) => {
            asm!(
                "/* {x} {w} {line} */",
                $($line,)*
                x = in(reg) x,
                w = in(reg) w,
                line = in(reg) LINE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags, readonly),
            )
        };
    }
    // SAFETY: the registers are set up; they are loaded from whole tiles.
    unsafe {
        match product {
            // The lower part of one with the upper part of the other,
            0 => add!(
                "tileloadd tmm4, [{x} + {line} + 2048]",
                "tileloadd tmm6, [{w} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6"
            ),
            1 => add!("tileloadd tmm7, [{w} + {line} + 1024]", "tdpbf16ps tmm1, tmm4, tmm7"),
            2 => add!("tileloadd tmm5, [{x} + {line} + 3072]", "tdpbf16ps tmm2, tmm5, tmm6"),
            3 => add!("tdpbf16ps tmm3, tmm5, tmm7"),
            // of the upper parts of both,
            4 => add!("tileloadd tmm4, [{x} + {line}]", "tdpbf16ps tmm0, tmm4, tmm6"),
            5 => add!("tdpbf16ps tmm1, tmm4, tmm7"),
            6 => add!("tileloadd tmm5, [{x} + {line} + 1024]", "tdpbf16ps tmm2, tmm5, tmm6"),
            7 => add!("tdpbf16ps tmm3, tmm5, tmm7"),
            // and the other way round.
            8 => add!("tileloadd tmm6, [{w} + {line} + 2048]", "tdpbf16ps tmm0, tmm4, tmm6"),
            9 => add!("tileloadd tmm7, [{w} + {line} + 3072]", "tdpbf16ps tmm1, tmm4, tmm7"),
            10 => add!("tdpbf16ps tmm2, tmm5, tmm6"),
            _ => add!("tdpbf16ps tmm3, tmm5, tmm7"),
        }
    }
}
