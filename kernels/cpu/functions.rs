//! Functions of one and of two vectors, and their way through slices.
//!
//! They are types, not closures: a method can be marked `#[inline(always)]`, a closure cannot, and one that is left
//! out of line is compiled without the instructions of its kernel: every intrinsic in it becomes a call.

use super::math::{erf, exp, sigmoid, tanh};
use super::simd::{LANES, Simd};

/// `x = f(x)` for all vectors of a slice.
#[inline(always)]
pub(crate) fn each<S: Simd>(s: S, x: &mut [f32], f: impl Unary) {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    for v in whole {
        let y = f.apply(s, s.load(v));
        s.store(y, v);
    }
    let y = f.apply(s, s.load_some(rest, 0.0));
    s.store_some(y, rest);
}

/// `x = f(x, y)` for all vectors of two slices.
#[inline(always)]
pub(crate) fn each_with<S: Simd>(s: S, x: &mut [f32], y: &[f32], f: impl Binary) {
    let (xs, x_rest) = x.as_chunks_mut::<LANES>();
    let (ys, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in xs.iter_mut().zip(ys) {
        let v = f.apply(s, s.load(x), s.load(y));
        s.store(v, x);
    }
    let v = f.apply(s, s.load_some(x_rest, 0.0), s.load_some(y_rest, 0.0));
    s.store_some(v, x_rest);
}

/// The largest of some numbers and of `top`, which is not NaN; others that are NaN are passed over.
#[inline(always)]
pub(crate) fn largest<S: Simd>(s: S, x: &[f32], top: f32) -> f32 {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut tops = s.max(s.load_some(rest, f32::NEG_INFINITY), s.splat(top));
    for v in whole {
        tops = s.max(s.load(v), tops);
    }
    s.largest(tops)
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

/// A function of one vector.
pub(crate) trait Unary: Copy + Sync {
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F;
}

/// A function of two vectors.
pub(crate) trait Binary: Copy + Sync {
    fn apply<S: Simd>(self, s: S, x: S::F, y: S::F) -> S::F;
}

#[derive(Clone, Copy)]
pub(crate) struct Silu;
impl Unary for Silu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        s.mul(x, sigmoid(s, x))
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Gelu;
impl Unary for Gelu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        let half = s.mul(x, s.splat(0.5));
        s.mul_add(half, erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2))), half)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct GeluTanh;
impl Unary for GeluTanh {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        // sqrt(2 / pi) * (x + 0.044715 x³)
        let cubic = s.mul_add(s.mul(x, x), s.splat(0.044_715), s.splat(1.0));
        let inner = s.mul(s.mul(x, s.splat(0.797_884_6)), cubic);
        let half = s.mul(x, s.splat(0.5));
        s.mul_add(half, tanh(s, inner), half)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Relu;
impl Unary for Relu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        s.max(s.splat(0.0), x)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct ReluSquared;
impl Unary for ReluSquared {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        let x = s.max(s.splat(0.0), x);
        s.mul(x, x)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Scale(pub(crate) f32);
impl Unary for Scale {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        s.mul(x, s.splat(self.0))
    }
}

#[derive(Clone, Copy)]
pub(crate) struct SoftCap(pub(crate) f32);
impl Unary for SoftCap {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        s.mul(s.splat(self.0), tanh(s, s.div(x, s.splat(self.0))))
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Add;
impl Binary for Add {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F, y: S::F) -> S::F {
        s.add(x, y)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Mul;
impl Binary for Mul {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F, y: S::F) -> S::F {
        s.mul(x, y)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct AddScaled(pub(crate) f32);
impl Binary for AddScaled {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F, y: S::F) -> S::F {
        s.mul_add(s.splat(self.0), y, x)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Gated<U>(pub(crate) U);
impl<U: Unary> Binary for Gated<U> {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, gate: S::F, up: S::F) -> S::F {
        s.mul(self.0.apply(s, gate), up)
    }
}

/// `x - c`.
#[derive(Clone, Copy)]
pub(crate) struct Minus(pub(crate) f32);
impl Unary for Minus {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        s.sub(x, s.splat(self.0))
    }
}

/// `e^(x - c)`.
#[derive(Clone, Copy)]
pub(crate) struct ExpMinus(pub(crate) f32);
impl Unary for ExpMinus {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        exp(s, s.sub(x, s.splat(self.0)))
    }
}

/// `x * c * y`: a norm's last step.
#[derive(Clone, Copy)]
pub(crate) struct Weighted(pub(crate) f32);
impl Binary for Weighted {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F, y: S::F) -> S::F {
        s.mul(s.mul(x, s.splat(self.0)), y)
    }
}

/// `x * silu(y)`.
#[derive(Clone, Copy)]
pub(crate) struct GatedBy;
impl Binary for GatedBy {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::F, y: S::F) -> S::F {
        s.mul(x, Silu.apply(s, y))
    }
}
