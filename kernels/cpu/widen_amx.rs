//! Packed weights as AMX multiplies them: see [`super::linear_amx`].

#![cfg(target_arch = "x86_64")]
#![allow(clippy::wildcard_imports, reason = "the names of the intrinsics say where they come from")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::amx::{HALVES, LINE, SIDE, Weights};
use super::input::{Input, SPAN};
use super::integers512::{load, q4_codes, q4_scales, table};
use super::quantized::{Q4_RAISED, Q8_COLUMNS, q4_span, q8_span};
use crate::packed::{Format, PANEL, Q4_GROUP, Q8_GROUP};

/// The weights of a span: for each step of columns two tiles.
pub(super) type Widened = [[Weights; 2]; SPAN / HALVES];

/// The packed weights of a span, of one panel or two.
#[derive(Clone, Copy)]
pub(super) struct PackedSpan<'a> {
    pub(super) format: Format,
    /// Those of a second panel may be empty.
    pub(super) bytes: [&'a [u8]; 2],
}

/// The bytes of a span of a panel; none where there is no such kernel.
pub(super) fn span_bytes<'a>(
    format: Format,
    panel: &'a [u8],
    input: &Input,
    span: usize,
) -> &'a [u8] {
    match format {
        Format::F32 | Format::F16 => &[],
        Format::Bf16 => panel.as_chunks::<{ 2 * PANEL }>().0[span * SPAN..][..input.columns(span)]
            .as_flattened(),
        Format::Q8 => q8_span(panel, span).as_flattened(),
        Format::Q4 => q4_span(panel, span).as_flattened(),
    }
}

impl PackedSpan<'_> {
    /// Steps of columns.
    pub(super) fn steps(&self) -> usize {
        let len = match self.format {
            Format::F32 | Format::F16 => return 0,
            Format::Bf16 => 2 * PANEL * HALVES,
            Format::Q8 => Q8_GROUP,
            Format::Q4 => Q4_GROUP,
        };
        self.bytes[0].len().div_ceil(len)
    }

    /// Pieces that can be widened on their own.
    pub(super) fn pieces(&self) -> usize {
        self.steps() * self.pieces_of_a_step()
    }

    fn pieces_of_a_step(&self) -> usize {
        match self.format {
            Format::F32 | Format::F16 => 0,
            Format::Bf16 => HALVES / 4,
            Format::Q8 => 2,
            Format::Q4 => 4,
        }
    }

    /// Widens some pieces.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) fn widen(&self, pieces: Range<usize>, to: &mut Widened) {
        let share = self.pieces_of_a_step();
        for i in pieces {
            let (step, piece) = (i / share, i % share);
            let to = &mut to[step];
            match self.format {
                Format::F32 | Format::F16 => (),
                Format::Bf16 => {
                    for (bytes, to) in self.bytes.into_iter().zip(to) {
                        widen_bf16(bytes.as_chunks().0, i, &mut to.0.as_chunks_mut().0[piece]);
                    }
                }
                Format::Q8 => widen_q8(&self.bytes[0].as_chunks().0[step], piece, to),
                Format::Q4 => widen_q4(&self.bytes[0].as_chunks().0[step], piece, to),
            }
        }
    }
}

/// Four columns, in the order of [`super::amx`]: the second and the last in a line, then the others. What is behind the last
/// column becomes zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn widen_bf16(columns: &[[u8; 2 * PANEL]], i: usize, to: &mut [[u8; LINE]; 2]) {
    let (fours, rest) = columns.as_chunks::<4>();
    let mut last = [[0; 2 * PANEL]; 4];
    let four = match fours.get(i) {
        Some(four) => four,
        None if i == fours.len() => {
            last[..rest.len()].copy_from_slice(rest);
            &last
        }
        None => &last,
    };
    let (first, second) = four.split_at(2);
    // SAFETY: all are 64 bytes long.
    unsafe {
        // Rows 0 and 8, 1 and 9 … of two columns, one after the other.
        let first = _mm512_loadu_si512(first.as_ptr().cast());
        let second = _mm512_loadu_si512(second.as_ptr().cast());
        let low = _mm512_mask_blend_epi16(0xaaaa_aaaa, first, _mm512_slli_epi32::<16>(second));
        let high = _mm512_mask_blend_epi16(0x5555_5555, second, _mm512_srli_epi32::<16>(first));
        let odd = _mm512_shuffle_i64x2::<0b11_10_11_10>(low, high);
        let even = _mm512_shuffle_i64x2::<0b01_00_01_00>(low, high);
        _mm512_storeu_si512(to[0].as_mut_ptr().cast(), odd);
        _mm512_storeu_si512(to[1].as_mut_ptr().cast(), even);
    }
}

/// The first or second 32 columns of a group: zeros stand beside them, so that they have a sum of their own.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn widen_q8(group: &[u8; Q8_GROUP], half: usize, to: &mut [Weights; 2]) {
    let (codes, _) = group[4 * PANEL..].as_chunks::<{ Q8_COLUMNS * PANEL }>();
    let (first, second) = to[half].0.split_at_mut(SIDE / 2);
    let (to, zeros) = if half == 0 { (first, second) } else { (second, first) };
    to.as_flattened_mut().copy_from_slice(&codes[half]);
    zeros.fill([0; LINE]);
}

/// A quarter of a group without the row scales, in two bytes: the upper one is worth 128.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn widen_q4(group: &[u8; Q4_GROUP], i: usize, [high, low]: &mut [Weights; 2]) {
    let table = _mm512_sub_epi8(table(), _mm512_set1_epi8(Q4_RAISED));
    // For each row twice.
    let scales = q4_scales(group, i);
    let scales = _mm512_mask_blend_epi16(0xaaaa_aaaa, scales, _mm512_slli_epi32::<16>(scales));
    for j in 0..2 {
        let bytes = load(group, 4 * PANEL + (2 * i + j) * LINE);
        // SAFETY: without VBMI.
        let codes = unsafe { q4_codes::<false>(bytes, table) };
        for (k, codes) in codes.into_iter().enumerate() {
            let [upper, lower] = split(codes, scales);
            let line = 4 * i + 2 * j + k;
            // SAFETY: the arrays are 64 bytes long.
            unsafe {
                _mm512_storeu_si512(high.0[line].as_mut_ptr().cast(), upper);
                _mm512_storeu_si512(low.0[line].as_mut_ptr().cast(), lower);
            }
        }
    }
}

/// The products of codes with scales of 16 bits, as bytes: those of the upper bits, and the lower seven bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn split(codes: __m512i, scales: __m512i) -> [__m512i; 2] {
    const ODD: u64 = 0xaaaa_aaaa_aaaa_aaaa;
    let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(codes));
    let even = _mm512_mullo_epi16(even, scales);
    let odd = _mm512_mullo_epi16(_mm512_srai_epi16::<8>(codes), scales);
    let high = _mm512_srli_epi16::<7>(even);
    let high = _mm512_mask_blend_epi8(ODD, high, _mm512_slli_epi16::<1>(odd));
    let low = _mm512_mask_blend_epi8(ODD, even, _mm512_slli_epi16::<8>(odd));
    [high, _mm512_and_si512(low, _mm512_set1_epi8(127))]
}
