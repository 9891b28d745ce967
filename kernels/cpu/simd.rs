//! Eight f32 lanes: the few vector operations that the kernels are written with, once for all instruction sets.
//!
//! A kernel is a struct with its arguments that implements [`Kernel`]; [`crate::Isa::run`] compiles its body once
//! for each instruction set and picks at run time. Everything that a body calls must be `#[inline(always)]`, or it is
//! compiled without the instructions (many times slower, never wrong). A closure cannot be marked so: it may not
//! touch a vector ([`super::functions`] has what is used instead). A release build has it right when `nm` finds no
//! function named `_mm256_…` or `_mm512_…` in it.
//!
//! The token types ([`Portable`], [`Avx2`]) prove that the instructions are there: that is what makes the intrinsics
//! below sound. With AVX-512 these eight lanes are left to AVX2, see [`super::avx512`].

use half::{bf16, f16};

/// Lanes of a vector.
pub(crate) const LANES: usize = 8;

/// A computation that is written once over [`Simd`].
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// The body; implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Operations on eight f32 lanes. `self` is the proof that the instructions exist.
pub(crate) trait Simd: Copy {
    /// Eight f32.
    type F: Copy;
    /// Eight pairs of i16.
    type Pairs: Copy;
    /// Eight i32.
    type Sums: Copy;
    fn splat(self, x: f32) -> Self::F;
    fn load(self, from: &[f32; LANES]) -> Self::F;
    fn store(self, v: Self::F, to: &mut [f32; LANES]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the instruction set has it.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `b` where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `b` where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `yes` where `a < b`, else `no`.
    fn if_less(self, a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// 2 to the power of whole numbers from -126 to 127.
    fn exp2_whole(self, n: Self::F) -> Self::F;
    fn load_f16(self, from: &[f16; LANES]) -> Self::F;
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F;
    /// Eight little-endian f32.
    fn load_f32_bytes(self, from: &[u8; 32]) -> Self::F;
    /// The opposite of [`Self::load_f32_bytes`].
    fn store_f32_bytes(self, v: Self::F, to: &mut [u8; 32]);
    /// Lane `i` of vector `j` becomes lane `j` of vector `i`; any bits stay what they are.
    fn transpose(self, v: [Self::F; LANES]) -> [Self::F; LANES];
    /// Eight little-endian f16.
    fn load_f16_bytes(self, from: &[u8; 16]) -> Self::F;
    /// Sixteen little-endian bf16: those at even and those at odd places.
    fn load_bf16_pairs(self, from: &[u8; 32]) -> [Self::F; 2];
    /// Rounds to whole numbers from -32 to 31 and looks them up: place 0 of the table is for -32. Any value of the table for
    /// NaN and for magnitudes from 2^31 on, infinity included.
    fn nearest(self, v: [Self::F; 4], table: &[i8; 64]) -> [Self::F; 4];
    /// To the nearest, ties to even.
    fn store_f16(self, v: Self::F, to: &mut [f16; LANES]);
    /// To the nearest, ties to even.
    fn store_bf16(self, v: Self::F, to: &mut [bf16; LANES]);
    /// Rounds numbers of magnitude 127.5 at most, ties to even. Any value for NaN.
    fn store_i8(self, v: Self::F, to: &mut [i8; LANES]);
    /// Rounds numbers of magnitude 32767.5 at most, ties to even. Any value for NaN.
    fn store_i16(self, v: Self::F, to: &mut [i16; LANES]);

    /// Pairs of zeros.
    #[inline(always)]
    fn no_pairs(self) -> Self::Pairs {
        self.splat_pair([0; 2])
    }
    /// Pairs of bytes, widened.
    fn load_pairs(self, from: &[i8; 2 * LANES]) -> Self::Pairs;
    /// The same pair in all lanes.
    fn splat_pair(self, pair: [i16; 2]) -> Self::Pairs;
    /// Zeros.
    fn no_sums(self) -> Self::Sums;
    /// `sums` and in each lane the products of both elements of `a` and `b`.
    fn add_pairs(self, a: Self::Pairs, b: Self::Pairs, sums: Self::Sums) -> Self::Sums;
    /// To the nearest, ties to even.
    fn to_f32(self, sums: Self::Sums) -> Self::F;

    /// The sums of sixteen each.
    fn sums_of_16(self, from: &[i8; 128]) -> [i32; LANES];

    /// Asks for the line at place `at` of what will be read soon, where the instruction set can. The place may lie
    /// behind the end.
    #[inline(always)]
    fn prefetch(self, _soon: &[u8], _at: usize) {}

    /// Asks for the lines of what will be written soon: another core may have them.
    #[inline(always)]
    fn prefetch_to_write<T>(self, _soon: &[T]) {}

    /// The lanes as an array.
    #[inline(always)]
    fn lanes(self, v: Self::F) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        self.store(v, &mut out);
        out
    }

    /// The sum of the lanes, always added in the same order.
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.lanes(v);
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    /// The largest lane, if none is NaN.
    #[inline(always)]
    fn largest(self, v: Self::F) -> f32 {
        self.lanes(v).into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    /// Loads up to eight values; the missing lanes are `fill`.
    #[inline(always)]
    fn load_some(self, from: &[f32], fill: f32) -> Self::F {
        if from.is_empty() {
            return self.splat(fill);
        }
        let mut lanes = [fill; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    /// Loads the first eight values; zeros where there are fewer.
    #[inline(always)]
    fn load_first(self, from: &[f32]) -> Self::F {
        match from.first_chunk() {
            Some(eight) => self.load(eight),
            None => self.load_some(from, 0.0),
        }
    }

    /// Stores the first `to.len()` lanes.
    #[inline(always)]
    fn store_some(self, v: Self::F, to: &mut [f32]) {
        if !to.is_empty() {
            to.copy_from_slice(&self.lanes(v)[..to.len()]);
        }
    }
}

/// Numbers that eight lanes are rounded to.
pub(crate) trait Round: Copy + Default {
    fn store<S: Simd>(s: S, v: S::F, to: &mut [Self; LANES]);
}

macro_rules! round {
    ($($type:ty: $store:ident),*) => {$(
        impl Round for $type {
            #[inline(always)]
            fn store<S: Simd>(s: S, v: S::F, to: &mut [Self; LANES]) {
                s.$store(v, to);
            }
        }
    )*};
}
round!(f16: store_f16, bf16: store_bf16, i8: store_i8, i16: store_i16);

/// Plain Rust on arrays; the compiler makes vector code of it for the target's baseline.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Portable;

#[inline(always)]
fn map(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type F = [f32; LANES];
    type Pairs = [[i16; 2]; LANES];
    type Sums = [i32; LANES];
    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        *from
    }
    #[inline(always)]
    fn store(self, v: Self::F, to: &mut [f32; LANES]) {
        *to = v;
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // Without the instruction, `f32::mul_add` is a call of a library function.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
        } else {
            std::array::from_fn(|i| a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn if_less(self, a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F {
        std::array::from_fn(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        // Adding and taking away 1.5 * 2^23 leaves no fraction bits: right for |a| < 2^22, and vectorises.
        const SHIFT: f32 = 12_582_912.0;
        a.map(|a| (a + SHIFT) - SHIFT)
    }
    #[inline(always)]
    fn exp2_whole(self, n: Self::F) -> Self::F {
        n.map(|n| {
            // As integers, floats just above 2^23 count up by one: the sum's low bits are the exponent.
            let biased = (n + (8_388_608.0 + 127.0)).to_bits();
            f32::from_bits(biased << 23)
        })
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::F {
        from.map(widen_f16)
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F {
        from.map(|x| f32::from_bits(u32::from(x.to_bits()) << 16))
    }
    #[inline(always)]
    fn load_f32_bytes(self, from: &[u8; 32]) -> Self::F {
        let (lanes, _) = from.as_chunks::<4>();
        std::array::from_fn(|i| f32::from_le_bytes(lanes[i]))
    }
    #[inline(always)]
    fn store_f32_bytes(self, v: Self::F, to: &mut [u8; 32]) {
        to.as_chunks_mut::<4>().0.iter_mut().zip(v).for_each(|(to, v)| *to = v.to_le_bytes());
    }
    #[inline(always)]
    fn transpose(self, v: [Self::F; LANES]) -> [Self::F; LANES] {
        std::array::from_fn(|i| v.map(|v| v[i]))
    }
    #[inline(always)]
    fn load_f16_bytes(self, from: &[u8; 16]) -> Self::F {
        let (lanes, _) = from.as_chunks::<2>();
        std::array::from_fn(|i| widen_f16(f16::from_le_bytes(lanes[i])))
    }
    #[inline(always)]
    fn load_bf16_pairs(self, from: &[u8; 32]) -> [Self::F; 2] {
        let (lanes, _) = from.as_chunks::<4>();
        let bits: [_; LANES] = std::array::from_fn(|i| u32::from_le_bytes(lanes[i]));
        [
            bits.map(|bits| f32::from_bits(bits << 16)),
            bits.map(|bits| f32::from_bits(bits & 0xffff_0000)),
        ]
    }
    #[inline(always)]
    fn nearest(self, v: [Self::F; 4], table: &[i8; 64]) -> [Self::F; 4] {
        v.map(|v| self.round(v).map(|v| f32::from(table[((v + 32.0) as usize).min(63)])))
    }
    #[inline(always)]
    fn store_f16(self, v: Self::F, to: &mut [f16; LANES]) {
        *to = v.map(f16::from_f32_const);
    }
    #[inline(always)]
    fn store_bf16(self, v: Self::F, to: &mut [bf16; LANES]) {
        *to = v.map(bf16::from_f32);
    }
    #[inline(always)]
    fn store_i8(self, v: Self::F, to: &mut [i8; LANES]) {
        *to = self.round(v).map(|v| v as i8);
    }
    #[inline(always)]
    fn store_i16(self, v: Self::F, to: &mut [i16; LANES]) {
        *to = self.round(v).map(|v| v as i16);
    }
    #[inline(always)]
    fn load_pairs(self, from: &[i8; 2 * LANES]) -> Self::Pairs {
        let (pairs, _) = from.as_chunks::<2>();
        std::array::from_fn(|i| pairs[i].map(i16::from))
    }
    #[inline(always)]
    fn splat_pair(self, pair: [i16; 2]) -> Self::Pairs {
        [pair; LANES]
    }
    #[inline(always)]
    fn no_sums(self) -> Self::Sums {
        [0; LANES]
    }
    #[inline(always)]
    fn add_pairs(self, a: Self::Pairs, b: Self::Pairs, sums: Self::Sums) -> Self::Sums {
        let product = |i: usize, j: usize| i32::from(a[i][j]) * i32::from(b[i][j]);
        std::array::from_fn(|i| sums[i] + product(i, 0) + product(i, 1))
    }
    #[inline(always)]
    fn to_f32(self, sums: Self::Sums) -> Self::F {
        sums.map(|sum| sum as f32)
    }
    #[inline(always)]
    fn sums_of_16(self, from: &[i8; 128]) -> [i32; LANES] {
        let groups = from.as_chunks::<16>().0;
        std::array::from_fn(|i| groups[i].iter().map(|v| i32::from(*v)).sum())
    }
}

/// f16 to f32 without branches, so that the loop around it vectorises.
#[inline(always)]
fn widen_f16(x: f16) -> f32 {
    let bits = u32::from(x.to_bits());
    let sign = (bits & 0x8000) << 16;
    let magnitude = bits & 0x7fff;
    // Read the bits as an f32 of exponent 112 too small, then multiply: this also rights subnormals.
    let value = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
    // An exponent of all ones must stay so (infinity, NaN).
    let special =
        if magnitude >= 0x7c00 { 0x7f80_0000 | (magnitude << 13) } else { value.to_bits() };
    f32::from_bits(special | sign)
}

/// Defines methods that are a few intrinsics each, of a type that proves that the CPU has them.
#[cfg(target_arch = "x86_64")]
macro_rules! intrinsics {
    ($($name:ident($($arg:ident: $type:ty),*) -> $out:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $type),*) -> $out {
            // SAFETY: `self` proves that the CPU has the instructions; loads and stores go through array
            // references of the full width.
            unsafe { $body }
        }
    )*};
}
#[cfg(target_arch = "x86_64")]
pub(crate) use intrinsics;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::{Avx2, avx2_door};

#[cfg(target_arch = "x86_64")]
mod avx2 {
    #[allow(
        clippy::wildcard_imports,
        reason = "the names of the intrinsics say where they come from"
    )]
    use std::arch::x86_64::*;

    use half::{bf16, f16};

    use super::{Kernel, LANES, Simd};
    use crate::cpu::ahead;

    /// Proof that the CPU has AVX2, FMA and F16C: only [`Avx2::detect`] makes one.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Avx2(());

    impl Avx2 {
        pub(crate) fn detect() -> Option<Self> {
            let all = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            all.then_some(Self(()))
        }
    }

    /// The one place where code compiled for AVX2 is entered: all that is inlined into it may use the instructions.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn avx2_door<K: Kernel>(token: Avx2, kernel: K) -> K::Output {
        kernel.run(token)
    }

    /// Rounds to 16 bits; what is too large becomes the largest.
    ///
    /// # Safety
    /// The CPU must have AVX2.
    #[inline(always)]
    unsafe fn to_i16(v: __m256) -> __m128i {
        // SAFETY: the caller promises the instructions.
        unsafe {
            let whole = _mm256_cvtps_epi32(v);
            _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256::<1>(whole))
        }
    }

    impl Simd for Avx2 {
        type F = __m256;
        type Pairs = __m256i;
        type Sums = __m256i;

        #[inline(always)]
        fn prefetch(self, soon: &[u8], at: usize) {
            ahead::prefetch(soon.as_ptr(), at);
        }

        #[inline(always)]
        fn prefetch_to_write<T>(self, soon: &[T]) {
            for at in (0..size_of_val(soon)).step_by(64) {
                let line = soon.as_ptr().cast::<u8>().wrapping_add(at);
                // The compiler makes this of no intrinsic unless it is told of one more feature. All CPUs with AVX2 have the
                // instruction or take it for none.
                // SAFETY: a prefetch of any address is allowed.
                unsafe {
                    std::arch::asm!("prefetchw byte ptr [{line}]", line = in(reg) line, options(nostack, preserves_flags, readonly));
                }
            }
        }

        intrinsics! {
            splat(x: f32) -> __m256 = _mm256_set1_ps(x);
            load(from: &[f32; LANES]) -> __m256 = _mm256_loadu_ps(from.as_ptr());
            store(v: __m256, to: &mut [f32; LANES]) -> () = _mm256_storeu_ps(to.as_mut_ptr(), v);
            add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
            sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
            mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
            div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
            mul_add(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
            max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);
            min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
            if_less(a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 =
                _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b));
            round(a: __m256) -> __m256 =
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
            largest(v: __m256) -> f32 = {
                let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
            };
            exp2_whole(n: __m256) -> __m256 = {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            };
            load_f16(from: &[f16; LANES]) -> __m256 =
                _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast()));
            load_bf16(from: &[bf16; LANES]) -> __m256 = {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            load_f32_bytes(from: &[u8; 32]) -> __m256 = _mm256_loadu_ps(from.as_ptr().cast());
            store_f32_bytes(v: __m256, to: &mut [u8; 32]) -> () =
                _mm256_storeu_ps(to.as_mut_ptr().cast(), v);
            transpose(v: [__m256; LANES]) -> [__m256; LANES] = {
                let [a, b, c, d, e, f, g, h] = v;
                // Two lanes of two vectors side by side, then two of four, then halves.
                let two = [
                    _mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b),
                    _mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d),
                    _mm256_unpacklo_ps(e, f), _mm256_unpackhi_ps(e, f),
                    _mm256_unpacklo_ps(g, h), _mm256_unpackhi_ps(g, h),
                ];
                let low = [
                    _mm256_shuffle_ps::<0x44>(two[0], two[2]), _mm256_shuffle_ps::<0xee>(two[0], two[2]),
                    _mm256_shuffle_ps::<0x44>(two[1], two[3]), _mm256_shuffle_ps::<0xee>(two[1], two[3]),
                ];
                let high = [
                    _mm256_shuffle_ps::<0x44>(two[4], two[6]), _mm256_shuffle_ps::<0xee>(two[4], two[6]),
                    _mm256_shuffle_ps::<0x44>(two[5], two[7]), _mm256_shuffle_ps::<0xee>(two[5], two[7]),
                ];
                [
                    _mm256_permute2f128_ps::<0x20>(low[0], high[0]),
                    _mm256_permute2f128_ps::<0x20>(low[1], high[1]),
                    _mm256_permute2f128_ps::<0x20>(low[2], high[2]),
                    _mm256_permute2f128_ps::<0x20>(low[3], high[3]),
                    _mm256_permute2f128_ps::<0x31>(low[0], high[0]),
                    _mm256_permute2f128_ps::<0x31>(low[1], high[1]),
                    _mm256_permute2f128_ps::<0x31>(low[2], high[2]),
                    _mm256_permute2f128_ps::<0x31>(low[3], high[3]),
                ]
            };
            load_f16_bytes(from: &[u8; 16]) -> __m256 =
                _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast()));
            load_bf16_pairs(from: &[u8; 32]) -> [__m256; 2] = {
                let pairs = _mm256_loadu_si256(from.as_ptr().cast());
                let high = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
                [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(high)]
            };
            nearest(v: [__m256; 4], table: &[i8; 64]) -> [__m256; 4] = {
                // All four in bytes: each half has four lanes of every vector, one vector after the other.
                let first = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
                let last = _mm256_packs_epi32(_mm256_cvtps_epi32(v[2]), _mm256_cvtps_epi32(v[3]));
                let whole = _mm256_packs_epi16(first, last);
                let inside = _mm256_max_epi8(whole, _mm256_set1_epi8(-32));
                let inside = _mm256_min_epi8(inside, _mm256_set1_epi8(31));
                let i = _mm256_add_epi8(inside, _mm256_set1_epi8(32));
                // Bits 0 to 3 choose an entry of each quarter of the table, bits 4 and 5 the quarter.
                let mut found = [i; 4];
                for (found, quarter) in found.iter_mut().zip(table.as_chunks::<16>().0) {
                    let quarter = _mm_loadu_si128(quarter.as_ptr().cast());
                    *found = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(quarter), i);
                }
                let (bit4, bit5) = (_mm256_slli_epi16::<3>(i), _mm256_slli_epi16::<2>(i));
                let low = _mm256_blendv_epi8(found[0], found[1], bit4);
                let high = _mm256_blendv_epi8(found[2], found[3], bit4);
                let codes = _mm256_blendv_epi8(low, high, bit5);
                // A byte goes to the top of its lane, and down again with its sign.
                let mut places = _mm256_broadcastsi128_si256(_mm_setr_epi32(
                    0x0080_8080, 0x0180_8080, 0x0280_8080, 0x0380_8080,
                ));
                let mut out = v;
                for out in &mut out {
                    let top = _mm256_shuffle_epi8(codes, places);
                    *out = _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(top));
                    places = _mm256_add_epi32(places, _mm256_set1_epi32(4 << 24));
                }
                out
            };
            store_f16(v: __m256, to: &mut [f16; LANES]) -> () = _mm_storeu_si128(
                to.as_mut_ptr().cast(),
                _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(v),
            );
            store_bf16(v: __m256, to: &mut [bf16; LANES]) -> () = {
                let bits = _mm256_castps_si256(v);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
                let rounded = _mm256_castsi256_ps(_mm256_add_epi32(bits, half));
                let quiet = _mm256_or_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(0x40_0000)));
                let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v);
                let top = _mm256_castps_si256(_mm256_blendv_ps(rounded, quiet, nan));
                let top = _mm256_srli_epi32::<16>(top);
                let (low, high) = (_mm256_castsi256_si128(top), _mm256_extracti128_si256::<1>(top));
                _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_packus_epi32(low, high));
            };
            store_i8(v: __m256, to: &mut [i8; LANES]) -> () = {
                let whole = to_i16(v);
                _mm_storel_epi64(to.as_mut_ptr().cast(), _mm_packs_epi16(whole, whole));
            };
            store_i16(v: __m256, to: &mut [i16; LANES]) -> () =
                _mm_storeu_si128(to.as_mut_ptr().cast(), to_i16(v));
            load_pairs(from: &[i8; 16]) -> __m256i =
                _mm256_cvtepi8_epi16(_mm_loadu_si128(from.as_ptr().cast()));
            splat_pair(pair: [i16; 2]) -> __m256i =
                _mm256_set1_epi32(std::mem::transmute::<[i16; 2], i32>(pair));
            no_sums() -> __m256i = _mm256_setzero_si256();
            add_pairs(a: __m256i, b: __m256i, sums: __m256i) -> __m256i =
                _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
            to_f32(sums: __m256i) -> __m256 = _mm256_cvtepi32_ps(sums);
            sums_of_16(from: &[i8; 128]) -> [i32; LANES] = {
                let mut fours = [_mm256_setzero_si256(); 4];
                for (fours, from) in fours.iter_mut().zip(from.as_chunks::<32>().0) {
                    let from = _mm256_loadu_si256(from.as_ptr().cast());
                    let twos = _mm256_maddubs_epi16(_mm256_set1_epi8(1), from);
                    *fours = _mm256_madd_epi16(twos, _mm256_set1_epi16(1));
                }
                let [a, b, c, d] = fours;
                let sums = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
                // Each vector's first half stands in the lower half, its last in the upper.
                let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                let mut out = [0; LANES];
                let sums = _mm256_permutevar8x32_epi32(sums, order);
                _mm256_storeu_si256(out.as_mut_ptr().cast(), sums);
                out
            };
        }
    }
}
