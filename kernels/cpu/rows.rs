//! Sixteen f32 lanes: the rows of a panel, in one vector where the instruction set has such wide ones, else in two.

use super::simd::{Kernel, LANES, Simd};
use crate::packed::PANEL;

/// A computation that is written once over [`Rows`].
pub(crate) trait RowsKernel {
    /// What it returns.
    type Output;
    /// The body; implementations are `#[inline(always)]`.
    fn run<R: Rows>(self, r: R) -> Self::Output;
}

/// As [`Kernel`], with vectors of sixteen lanes beside those of eight.
pub(crate) trait BothKernel {
    /// What it returns.
    type Output;
    /// The body; implementations are `#[inline(always)]`.
    fn run<S: Simd, R: Rows>(self, s: S, r: R) -> Self::Output;
}

/// Operations on the values of a panel's rows. `self` is the proof that the instructions exist.
pub(crate) trait Rows: Copy {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen pairs of i16.
    type Pairs: Copy;
    /// Sixteen i32.
    type Sums: Copy;
    /// Registers that sixteen lanes fill.
    const VECTORS: usize;
    /// Tokens of a tile of a prompt: as many as there are registers for, and enough that no sum waits for the last one.
    const TOKENS: usize;
    fn splat(self, x: f32) -> Self::F;
    fn load(self, from: &[f32; PANEL]) -> Self::F;
    fn store(self, v: Self::F, to: &mut [f32; PANEL]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the instruction set has it.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// A column of [`crate::packed::Format::F32`].
    fn load_f32(self, from: &[u8; 4 * PANEL]) -> Self::F;
    /// A column of [`crate::packed::Format::F16`].
    fn load_f16(self, from: &[u8; 2 * PANEL]) -> Self::F;
    /// A column of [`crate::packed::Format::Bf16`]: row 0, row 8, row 1, row 9 …
    fn load_bf16(self, from: &[u8; 2 * PANEL]) -> Self::F;
    /// As [`Simd::prefetch`].
    fn prefetch(self, soon: &[u8], at: usize);
    /// As [`Simd::no_pairs`].
    fn no_pairs(self) -> Self::Pairs;
    /// As [`Simd::load_pairs`].
    fn load_pairs(self, from: &[i8; 2 * PANEL]) -> Self::Pairs;
    /// As [`Simd::splat_pair`].
    fn splat_pair(self, pair: [i16; 2]) -> Self::Pairs;
    /// As [`Simd::no_sums`].
    fn no_sums(self) -> Self::Sums;
    /// As [`Simd::add_pairs`].
    fn add_pairs(self, a: Self::Pairs, b: Self::Pairs, sums: Self::Sums) -> Self::Sums;
    /// As [`Simd::to_f32`].
    fn to_f32(self, sums: Self::Sums) -> Self::F;
}

/// Two vectors of eight lanes.
#[derive(Clone, Copy)]
pub(crate) struct Halves<S>(pub(crate) S);

/// Both halves of an array.
#[inline(always)]
fn halves<T, const N: usize, const H: usize>(whole: &[T; N]) -> [&[T; H]; 2] {
    let [low, high] = whole.as_chunks().0 else { unreachable!("two halves make a whole") };
    [low, high]
}

impl<S: Simd> Rows for Halves<S> {
    type F = [S::F; 2];
    type Pairs = [S::Pairs; 2];
    type Sums = [S::Sums; 2];
    const VECTORS: usize = 2;
    const TOKENS: usize = 6;
    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [self.0.splat(x); 2]
    }
    #[inline(always)]
    fn load(self, from: &[f32; PANEL]) -> Self::F {
        let [low, high] = halves(from);
        [self.0.load(low), self.0.load(high)]
    }
    #[inline(always)]
    fn store(self, v: Self::F, to: &mut [f32; PANEL]) {
        let [low, high] = to.as_chunks_mut::<LANES>().0 else {
            unreachable!("a panel has two vectors of rows")
        };
        self.0.store(v[0], low);
        self.0.store(v[1], high);
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        [self.0.add(a[0], b[0]), self.0.add(a[1], b[1])]
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        [self.0.mul_add(a[0], b[0], c[0]), self.0.mul_add(a[1], b[1], c[1])]
    }
    #[inline(always)]
    fn load_f32(self, from: &[u8; 4 * PANEL]) -> Self::F {
        let [low, high] = halves(from);
        [self.0.load_f32_bytes(low), self.0.load_f32_bytes(high)]
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * PANEL]) -> Self::F {
        let [low, high] = halves(from);
        [self.0.load_f16_bytes(low), self.0.load_f16_bytes(high)]
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * PANEL]) -> Self::F {
        self.0.load_bf16_pairs(from)
    }
    #[inline(always)]
    fn prefetch(self, soon: &[u8], at: usize) {
        self.0.prefetch(soon, at);
    }
    #[inline(always)]
    fn no_pairs(self) -> Self::Pairs {
        [self.0.no_pairs(); 2]
    }
    #[inline(always)]
    fn load_pairs(self, from: &[i8; 2 * PANEL]) -> Self::Pairs {
        let [low, high] = halves(from);
        [self.0.load_pairs(low), self.0.load_pairs(high)]
    }
    #[inline(always)]
    fn splat_pair(self, pair: [i16; 2]) -> Self::Pairs {
        [self.0.splat_pair(pair); 2]
    }
    #[inline(always)]
    fn no_sums(self) -> Self::Sums {
        [self.0.no_sums(); 2]
    }
    #[inline(always)]
    fn add_pairs(self, a: Self::Pairs, b: Self::Pairs, sums: Self::Sums) -> Self::Sums {
        [self.0.add_pairs(a[0], b[0], sums[0]), self.0.add_pairs(a[1], b[1], sums[1])]
    }
    #[inline(always)]
    fn to_f32(self, sums: Self::Sums) -> Self::F {
        [self.0.to_f32(sums[0]), self.0.to_f32(sums[1])]
    }
}

/// A kernel for both that has none but vectors of eight lanes.
pub(crate) struct WithHalves<K>(pub(crate) K);

impl<K: BothKernel> Kernel for WithHalves<K> {
    type Output = K::Output;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> K::Output {
        self.0.run(s, Halves(s))
    }
}

/// A kernel for rows that computes with vectors of eight lanes.
pub(crate) struct InHalves<K>(pub(crate) K);

impl<K: RowsKernel> Kernel for InHalves<K> {
    type Output = K::Output;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> K::Output {
        self.0.run(Halves(s))
    }
}
