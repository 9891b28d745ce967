//! q8 and q4 with AVX2 for whole tiles, instruction by instruction.
//!
//! On Zen 3 a core starts four to five instructions a cycle here, and in a virtual machine it often shares them with a
//! neighbour: then every instruction counts. A compiler's loops make the same products, but take one step at a turn (q8), or have
//! registers for the sums of 8 rows only and spread each activation twice (q4). These are 13 (q8) and 8 % (q4) faster
//! beside a busy neighbour, and 3 to 5 % alone.
//!
//! The products are exact, so their order does not matter; whole tiles and the others, which [`super::integers`] multiplies, have the
//! same bits.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::wildcard_imports, reason = "the names of the intrinsics say where they come from")]

use std::arch::asm;
use std::arch::x86_64::*;

use super::integers::{Q4Span, Q8Span, TOKENS, add_tile, load};
use super::linear::Totals;
use super::quantized::{Q4_COLUMNS, Q8_COLUMNS};
use crate::packed::PANEL;

/// The offsets in the instructions are for these.
const _: () = assert!(TOKENS == 6 && PANEL == 16 && Q8_COLUMNS == 32 && Q4_COLUMNS == 16);

/// Tokens that q4 multiplies at a time: their sums of 16 rows fill six registers, and each activation is spread once for
/// both halves of the rows.
const FEW: usize = 3;

// ---------------------------------------------------------------------------------------------- q8

/// A whole tile times one span.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn q8(wide: &Q8Span, x: &[i16], scales: &[f32], totals: &mut Totals) {
    let (x, _) = x.as_chunks::<2>().0.as_chunks::<TOKENS>();
    let sums = q8_sums(wide.words.as_chunks().0, &wide.scales, x.as_chunks().0);
    add_tile(&sums, scales, totals);
}

/// 32 columns of weights, `[pair of columns][row][2]`.
type Words = [[i16; 2 * PANEL]; Q8_COLUMNS / 2];

/// 32 columns of activations, `[pair of columns][token][2]`.
type WordTile = [[[i16; 2]; TOKENS]; Q8_COLUMNS / 2];

/// The products of a pair of columns for one token, into two registers of sums: set, or added.
macro_rules! q8_token {
    (set $step:literal, $token:literal, $low:literal, $high:literal) => {
        concat!(
            q8_token!(@ $step, $token),
            "vpmaddwd ymm", $low, ", ymm14, ymm13\n",
            "vpmaddwd ymm", $high, ", ymm15, ymm13\n",
        )
    };
    (add $step:literal, $token:literal, $low:literal, $high:literal) => {
        concat!(
            q8_token!(@ $step, $token),
            "vpmaddwd ymm12, ymm14, ymm13\n",
            "vpmaddwd ymm13, ymm15, ymm13\n",
            "vpaddd ymm", $low, ", ymm", $low, ", ymm12\n",
            "vpaddd ymm", $high, ", ymm", $high, ", ymm13\n",
        )
    };
    (@ $step:literal, $token:literal) => {
        concat!("vpbroadcastd ymm13, [{x} + 24 * ", $step, " + 4 * ", $token, "]\n")
    };
}

/// The products of a pair of columns for all tokens.
macro_rules! q8_step {
    ($set_or_add:tt $step:literal) => {
        concat!(
            "vmovdqu ymm14, [{w} + 64 * ", $step, "]\n",
            "vmovdqu ymm15, [{w} + 64 * ", $step, " + 32]\n",
            q8_token!($set_or_add $step, 0, 0, 6),
            q8_token!($set_or_add $step, 1, 1, 7),
            q8_token!($set_or_add $step, 2, 2, 8),
            q8_token!($set_or_add $step, 3, 3, 9),
            q8_token!($set_or_add $step, 4, 4, 10),
            q8_token!($set_or_add $step, 5, 5, 11),
        )
    };
}

/// Adds a token's products of 32 columns, times the scales of the rows, to its sums.
#[rustfmt::skip]
macro_rules! q8_scaled {
    ($token:literal, $low:literal, $high:literal) => {
        concat!(
            "vcvtdq2ps ymm", $low, ", ymm", $low, "\n",
            "vcvtdq2ps ymm", $high, ", ymm", $high, "\n",
            "vfmadd213ps ymm", $low, ", ymm14, [{sums} + 64 * ", $token, "]\n",
            "vfmadd213ps ymm", $high, ", ymm15, [{sums} + 64 * ", $token, " + 32]\n",
            "vmovups [{sums} + 64 * ", $token, "], ymm", $low, "\n",
            "vmovups [{sums} + 64 * ", $token, " + 32], ymm", $high, "\n",
        )
    };
}

/// The dot products of a span, `[token][half of the rows]`, without the scales of the activations: of weights with their scales, `[row]` for each 32
/// columns, and a whole tile, of as many columns each.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q8_sums(words: &[Words], scales: &[[f32; PANEL]], x: &[WordTile]) -> [[__m256; 2]; TOKENS] {
    let mut sums = [[_mm256_setzero_ps(); 2]; TOKENS];
    let groups = x.len();
    assert!(groups > 0 && words.len() >= groups && scales.len() >= groups);
    // SAFETY: what is read are the `groups` first elements of each slice, which are there, and `sums`.
    unsafe {
        asm!(
            "2:",
            q8_step!(set 0),
            "mov {steps:e}, 5",
            "3:",
            q8_step!(add 1),
            q8_step!(add 2),
            q8_step!(add 3),
            "add {w}, 3 * 64",
            "add {x}, 3 * 24",
            "dec {steps:e}",
            "jnz 3b",
            "vmovups ymm14, [{scales}]",
            "vmovups ymm15, [{scales} + 32]",
            q8_scaled!(0, 0, 6),
            q8_scaled!(1, 1, 7),
            q8_scaled!(2, 2, 8),
            q8_scaled!(3, 3, 9),
            q8_scaled!(4, 4, 10),
            q8_scaled!(5, 5, 11),
            "add {w}, 64",
            "add {x}, 24",
            "add {scales}, 64",
            "dec {groups}",
            "jnz 2b",
            w = inout(reg) words.as_ptr() => _,
            x = inout(reg) x.as_ptr() => _,
            scales = inout(reg) scales.as_ptr() => _,
            groups = inout(reg) groups => _,
            sums = in(reg) &mut sums,
            steps = out(reg) _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
            out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack),
        );
    }
    sums
}

// ---------------------------------------------------------------------------------------------- q4

/// A whole tile times one span.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn q4(wide: &Q4Span, x: &[u8], scales: &[f32], totals: &mut Totals) {
    let (x, _) = x.as_chunks::<4>().0.as_chunks::<TOKENS>();
    let (x, (codes, _)) = (x.as_chunks().0, wide.codes.as_chunks());
    let offset = [[load(&wide.offset, 0), load(&wide.offset, 8)]; FEW];
    let all = [
        q4_sums::<0>(codes, &wide.scales, x, offset),
        q4_sums::<FEW>(codes, &wide.scales, x, offset),
    ];
    let mut sums = [[_mm256_setzero_ps(); 2]; TOKENS];
    for (sums, [low, high]) in sums.iter_mut().zip(all.as_flattened()) {
        *sums = [_mm256_cvtepi32_ps(*low), _mm256_cvtepi32_ps(*high)];
    }
    add_tile(&sums, scales, totals);
}

/// 16 columns of codes, `[4 columns][row][4]`.
type Codes = [[i8; 4 * PANEL]; Q4_COLUMNS / 4];

/// 16 columns of activations, `[4 columns][token][4]`.
type ByteTile = [[[u8; 4]; TOKENS]; Q4_COLUMNS / 4];

/// Adds the products of 8 columns for one token, times the scales of the rows, to two registers of sums.
#[rustfmt::skip]
macro_rules! q4_token {
    ($step:literal, $token:literal, $low:literal, $high:literal) => {
        concat!(
            "vpbroadcastd ymm8, [{x} + 48 * ", $step, " + 4 * ", $token, "]\n",
            "vpbroadcastd ymm9, [{x} + 48 * ", $step, " + 4 * ", $token, " + 24]\n",
            q4_half!($step, 0, 6, $low),
            q4_half!($step, 32, 7, $high),
        )
    };
}

/// As `q4_token`, for half of the rows.
#[rustfmt::skip]
macro_rules! q4_half {
    ($step:literal, $half:literal, $scales:literal, $sums:literal) => {
        concat!(
            "vpmaddubsw ymm10, ymm8, [{codes} + 128 * ", $step, " + ", $half, "]\n",
            "vpmaddubsw ymm11, ymm9, [{codes} + 128 * ", $step, " + 64 + ", $half, "]\n",
            "vpaddw ymm10, ymm10, ymm11\n",
            "vpmaddwd ymm10, ymm10, ymm", $scales, "\n",
            "vpaddd ymm", $sums, ", ymm", $sums, ", ymm10\n",
        )
    };
}

/// Adds the dot products of a span with the tokens from `FROM` on to `sums`, `[token][half of the rows]`, without the scales of rows and
/// activations: of codes with the scales of their groups, `[row][2]` for each 16 columns, and a whole tile, of as many columns each.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_sums<const FROM: usize>(
    codes: &[Codes],
    scales: &[[i16; 2 * PANEL]],
    x: &[ByteTile],
    sums: [[__m256i; 2]; FEW],
) -> [[__m256i; 2]; FEW] {
    const { assert!(FROM + FEW <= TOKENS) };
    let groups = x.len();
    assert!(groups > 0 && codes.len() >= groups && scales.len() >= groups);
    let [[mut a, mut b], [mut c, mut d], [mut e, mut f]] = sums;
    // SAFETY: what is read are the `groups` first elements of each slice, which are there; of each group of tokens, those from
    // `FROM` on, which are in it.
    unsafe {
        asm!(
            "2:",
            "vmovdqu ymm6, [{scales}]",
            "vmovdqu ymm7, [{scales} + 32]",
            q4_token!(0, 0, 0, 1),
            q4_token!(0, 1, 2, 3),
            q4_token!(0, 2, 4, 5),
            q4_token!(1, 0, 0, 1),
            q4_token!(1, 1, 2, 3),
            q4_token!(1, 2, 4, 5),
            "add {codes}, 256",
            "add {x}, 96",
            "add {scales}, 64",
            "dec {groups}",
            "jnz 2b",
            codes = inout(reg) codes.as_ptr() => _,
            x = inout(reg) x.as_ptr().cast::<[u8; 4]>().add(FROM) => _,
            scales = inout(reg) scales.as_ptr() => _,
            groups = inout(reg) groups => _,
            inout("ymm0") a, inout("ymm1") b, inout("ymm2") c,
            inout("ymm3") d, inout("ymm4") e, inout("ymm5") f,
            out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            options(nostack, readonly),
        );
    }
    [[a, b], [c, d], [e, f]]
}
