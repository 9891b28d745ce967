//! Elementary functions on eight lanes, and on numbers that become integers.
//!
//! The polynomials interpolate at Chebyshev nodes; the errors given were measured against f64 over the whole range.

use super::simd::Simd;

/// ln 2 in two parts, so that `x - n * ln 2` loses nothing.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// Below this, e to the x is smaller than any normal f32 and taken as zero.
const EXP_ZERO: f32 = -87.3;
/// Above this, e to the x is taken as e to the 88.
const EXP_LARGEST: f32 = 88.0;

/// e to the power of `x`: relative error below 2e-7; zero below -87.3, no more than e to the 88, NaN for NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // In this order of the arguments, a NaN passes.
    let inside = s.max(s.splat(EXP_ZERO), s.min(s.splat(EXP_LARGEST), x));
    let n = s.round(s.mul(inside, s.splat(std::f32::consts::LOG2_E)));
    let r = s.mul_add(n, s.splat(-LN2_HIGH), inside);
    let r = s.mul_add(n, s.splat(-LN2_LOW), r);
    let p = polynomial(s, r, [0.5, 0.166_665_78, 0.041_666_556, 0.008_363_173, 0.001_392_617_6]);
    let e = s.add(s.mul_add(s.mul(r, r), p, r), s.splat(1.0));
    let e = s.mul(e, s.exp2_whole(n));
    s.if_less(x, s.splat(EXP_ZERO), s.splat(0.0), e)
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// The hyperbolic tangent: absolute error below 2e-7.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    // 1 - 2 / (e^2x + 1)
    let one = s.splat(1.0);
    let e = exp(s, s.add(x, x));
    s.sub(one, s.div(s.splat(2.0), s.add(e, one)))
}

/// The error function: absolute error below 2e-7.
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::F) -> S::F {
    let minus = s.sub(s.splat(0.0), x);
    let t = s.max(minus, x);
    // Below 1: x times a polynomial in x².
    let square = s.mul(x, x);
    let small = [
        std::f32::consts::FRAC_2_SQRT_PI,
        -0.376_123_43,
        0.112_803_17,
        -0.026_715_055,
        0.004_921_762,
        -0.000_564_806,
    ];
    let below = s.mul(x, polynomial(s, square, small));
    // From 1 on: 1 - e^-p(t), where p interpolates -ln(erfc(t)) up to 4; beyond, erf rounds to 1.
    let large = [
        0.000_765_897_8,
        1.125_893_6,
        0.639_141_26,
        0.103_281_12,
        -0.022_604_773,
        0.003_432_351_4,
        -0.000_316_937,
        0.000_013_272_362,
    ];
    let p = polynomial(s, s.min(s.splat(4.0), t), large);
    let above = s.sub(s.splat(1.0), exp(s, s.sub(s.splat(0.0), p)));
    let above = s.if_less(x, s.splat(0.0), s.sub(s.splat(0.0), above), above);
    s.if_less(s.splat(1.0), t, above, below)
}

/// c0 + c1 x + c2 x² …
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::F, coefficients: [f32; N]) -> S::F {
    let mut sum = s.splat(coefficients[N - 1]);
    for c in coefficients.into_iter().rev().skip(1) {
        sum = s.mul_add(sum, x, s.splat(c));
    }
    sum
}

/// Rounds numbers of magnitude 128 at most to the nearest, ties to even; 0 for NaN.
///
/// `f32::round_ties_even` would be a call of a library function where the target's baseline has no such instruction.
#[inline(always)]
pub(crate) fn to_i8(x: f32) -> i8 {
    // Adding and taking away 1.5 * 2^23 leaves no fraction bits.
    const SHIFT: f32 = 12_582_912.0;
    ((x + SHIFT) - SHIFT) as i8
}

/// The larger of two numbers; NaN where one is.
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if b <= a || a.is_nan() { a } else { b }
}
