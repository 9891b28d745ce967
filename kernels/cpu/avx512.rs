//! AVX-512: vectors of sixteen lanes for the rows of a panel, and for attention on Intel's CPUs. Everything else is left to AVX2:
//! Zen 4 computes sixteen lanes in two steps, and compiled for AVX-512, attention over a prompt was 2 to 9 % slower there.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::wildcard_imports, reason = "the names of the intrinsics say where they come from")]

use std::arch::x86_64::*;

use super::ahead;
use super::amx::Amx;
use super::rows::{BothKernel, Rows, RowsKernel};
use super::simd::{Avx2, intrinsics};
use crate::packed::PANEL;

/// Proof that the CPU has AVX-512 (F, BW, DQ, VL and VNNI) and AVX2: only [`Avx512::detect`] makes one.
///
/// These are the servers of Intel since Cascade Lake (2019) and of AMD since Zen 4 (2022), and some desktops.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512 {
    avx2: Avx2,
    /// Whether bytes can be looked up by six bits (VBMI: Intel since Ice Lake, AMD since Zen 4).
    vbmi: bool,
    bf16: Option<Bf16Products>,
    amx: Option<Amx>,
}

/// Proof that the CPU also multiplies bf16 (AMD since Zen 4, Intel's servers since Cooper Lake): see [`super::bfloats512`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bf16Products(());

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        let vbmi = is_x86_feature_detected!("avx512vbmi");
        let bf16 = is_x86_feature_detected!("avx512bf16").then_some(Bf16Products(()));
        Avx2::detect().filter(|_| all).map(|avx2| Self { avx2, vbmi, bf16, amx: None })
    }

    /// The same with AMX, where the CPU has it, and all that its CPUs have.
    pub(crate) fn with_amx(self) -> Option<Self> {
        let complete = self.vbmi && self.bf16.is_some();
        Amx::detect().filter(|_| complete).map(|amx| Self { amx: Some(amx), ..self })
    }

    pub(crate) fn amx(self) -> Option<Amx> {
        self.amx
    }

    pub(crate) fn avx2(self) -> Avx2 {
        self.avx2
    }

    pub(crate) fn has_vbmi(self) -> bool {
        self.vbmi
    }

    pub(crate) fn bf16(self) -> Option<Bf16Products> {
        self.bf16
    }

    /// As on the first CPUs with AVX-512 VNNI.
    #[cfg(test)]
    pub(crate) fn without_extras(self) -> Self {
        Self { vbmi: false, bf16: None, amx: None, ..self }
    }
}

/// The one place where code compiled for AVX-512 is entered: all that is inlined into it may use the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn avx512_door<K: RowsKernel>(token: Avx512, kernel: K) -> K::Output {
    kernel.run(token)
}

/// As [`avx512_door`], for kernels that need the vectors of AVX2, too.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn avx512_both_door<K: BothKernel>(token: Avx512, kernel: K) -> K::Output {
    kernel.run(token.avx2(), token)
}

impl Rows for Avx512 {
    type F = __m512;
    type Pairs = __m512i;
    type Sums = __m512i;
    const VECTORS: usize = 1;
    /// Two units with a latency of four; the quantised formats need as many registers again for the products.
    const TOKENS: usize = 8;

    /// Into the second-level cache. Where a piece of the keys or values and the one after it do not fit the first, attention
    /// read 24.6 GB/s of both instead of 21.4 into the first (Xeon with AMX, heads of 128 in 8 bits), and as much where they do.
    #[inline(always)]
    fn prefetch(self, soon: &[u8], at: usize) {
        ahead::prefetch_far(soon.as_ptr(), at);
    }

    intrinsics! {
        splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        load(from: &[f32; PANEL]) -> __m512 = _mm512_loadu_ps(from.as_ptr());
        store(v: __m512, to: &mut [f32; PANEL]) -> () = _mm512_storeu_ps(to.as_mut_ptr(), v);
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        load_f32(from: &[u8; 4 * PANEL]) -> __m512 = _mm512_loadu_ps(from.as_ptr().cast());
        load_f16(from: &[u8; 2 * PANEL]) -> __m512 =
            _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()));
        no_pairs() -> __m512i = _mm512_setzero_si512();
        load_pairs(from: &[i8; 2 * PANEL]) -> __m512i =
            _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.as_ptr().cast()));
        splat_pair(pair: [i16; 2]) -> __m512i =
            _mm512_set1_epi32(std::mem::transmute::<[i16; 2], i32>(pair));
        no_sums() -> __m512i = _mm512_setzero_si512();
        add_pairs(a: __m512i, b: __m512i, sums: __m512i) -> __m512i =
            _mm512_dpwssd_epi32(sums, a, b);
        to_f32(sums: __m512i) -> __m512 = _mm512_cvtepi32_ps(sums);
        load_bf16(from: &[u8; 2 * PANEL]) -> __m512 = {
            // The pairs of rows twice: moved up in the lower half, as they are in the upper half.
            let pairs = _mm512_broadcast_i64x4(_mm256_loadu_si256(from.as_ptr().cast()));
            let up = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 16, 16, 16, 16, 16, 16, 16, 16);
            let top = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_sllv_epi32(pairs, up), top))
        };
    }
}
