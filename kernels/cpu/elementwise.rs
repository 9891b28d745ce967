//! What happens to activations between the matrices: norms, rotary positions, activation functions, conversions.
//!
//! All of it reads and writes each value once, so it is bound by memory; long inputs are split over the pool.

use half::{bf16, f16};

use super::functions::{
    Add, AddScaled, Binary, ExpMinus, Gated, Minus, Mul, Scale, SoftCap, Unary, Weighted, each,
    each_with, largest,
};
use super::shared::SharedMut;
use super::simd::{Kernel, LANES, Round, Simd};
use crate::formats::Element;
use crate::{Isa, Pool};

/// Elements that are worth a part of a parallel region.
const PART: usize = 1 << 14;

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// x · Φ(x), with the exact error function.
    Gelu,
    /// The approximation of GELU by a hyperbolic tangent.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// max(x, 0)².
    ReluSquared,
}

/// Evaluates `$body` with the function of an activation as `$f`.
macro_rules! with_activation {
    ($act:expr, $f:ident => $body:expr) => {
        with_activation!(@ $act, $f => $body, Silu Gelu GeluTanh Relu ReluSquared)
    };
    (@ $act:expr, $f:ident => $body:expr, $($name:ident)*) => {
        match $act {
            $($crate::cpu::elementwise::Activation::$name => {
                let $f = $crate::cpu::functions::$name;
                $body
            })*
        }
    };
}
pub(crate) use with_activation;

/// Which elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Element `i` with element `i + rotary_dim / 2` (Hugging Face's Llama).
    Halves,
    /// Element `2 i` with element `2 i + 1` (GPT-J, Mistral's own files).
    Interleaved,
}

/// The shape of rotary position embeddings.
#[derive(Clone, Copy, Debug)]
pub struct Rope {
    /// Heads in each token's row.
    pub n_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// The first element of a head that turns.
    pub offset: usize,
    /// How many elements of a head turn, from `offset` on; even.
    pub rotary_dim: usize,
    /// Which of them turn together.
    pub style: RopeStyle,
}

// ---------------------------------------------------------------------------------------------- norms

/// Root-mean-square norm of each row of `weight.len()` elements: `out = x / sqrt(mean(x²) + eps) * weight`.
///
/// # Panics
/// When `x` is not whole rows, or `out` is not as long as `x`.
pub fn rms_norm(isa: Isa, pool: &Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    check_rows(x.len(), weight.len(), out.len());
    by_rows(pool, weight.len(), out, |at, out| {
        let x = &x[at..at + out.len()];
        for (x, out) in rows(x, weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            out.copy_from_slice(x);
            isa.run(RmsNorm { x: out, weight, eps });
        }
    });
}

/// [`rms_norm`] in place.
///
/// # Panics
/// When `x` is not whole rows.
pub fn rms_norm_in_place(isa: Isa, pool: &Pool, x: &mut [f32], weight: &[f32], eps: f32) {
    check_rows(x.len(), weight.len(), x.len());
    by_rows(pool, weight.len(), x, |_, x| {
        for x in x.chunks_exact_mut(weight.len()) {
            isa.run(RmsNorm { x, weight, eps });
        }
    });
}

/// Adds `y` to the residual stream `x`, then writes the root-mean-square norm of the sum to `out`.
///
/// # Panics
/// When `x` is not whole rows, or the lengths differ.
pub fn add_rms_norm(
    isa: Isa,
    pool: &Pool,
    x: &mut [f32],
    y: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    check_rows(x.len(), weight.len(), out.len());
    check_lengths(x.len(), y.len());
    let out = SharedMut::new(out);
    by_rows(pool, weight.len(), x, |at, x| {
        let y = &y[at..at + x.len()];
        isa.run(Zip { x, y, f: Add });
        // SAFETY: each part has its own rows.
        let out = unsafe { out.slice(at, x.len()) };
        for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            out.copy_from_slice(x);
            isa.run(RmsNorm { x: out, weight, eps });
        }
    });
}

/// Layer norm of each row of `weight.len()` elements: `out = (x - mean) / sqrt(variance + eps) * weight + bias`.
///
/// # Panics
/// When `x` is not whole rows, or the lengths differ.
pub fn layer_norm(
    isa: Isa,
    pool: &Pool,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
) {
    check_rows(x.len(), weight.len(), out.len());
    if let Some(bias) = bias {
        check_lengths(weight.len(), bias.len());
    }
    by_rows(pool, weight.len(), out, |at, out| {
        let x = &x[at..at + out.len()];
        for (x, out) in rows(x, weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            out.copy_from_slice(x);
            isa.run(LayerNorm { x: out, weight, bias, eps });
        }
    });
}

/// [`layer_norm`] in place.
///
/// # Panics
/// When `x` is not whole rows, or the lengths differ.
pub fn layer_norm_in_place(
    isa: Isa,
    pool: &Pool,
    x: &mut [f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
) {
    check_rows(x.len(), weight.len(), x.len());
    if let Some(bias) = bias {
        check_lengths(weight.len(), bias.len());
    }
    by_rows(pool, weight.len(), x, |_, x| {
        for x in x.chunks_exact_mut(weight.len()) {
            isa.run(LayerNorm { x, weight, bias, eps });
        }
    });
}

struct RmsNorm<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mean = sum_of_squares(s, self.x, 0.0) / self.x.len() as f32;
        scale_by_weight(s, self.x, 1.0 / (mean + self.eps).sqrt(), self.weight);
    }
}

struct LayerNorm<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
}

impl Kernel for LayerNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.x.len() as f32;
        let mean = sum(s, self.x) / n;
        let variance = sum_of_squares(s, self.x, mean) / n;
        each(s, self.x, Minus(mean));
        scale_by_weight(s, self.x, 1.0 / (variance + self.eps).sqrt(), self.weight);
        if let Some(bias) = self.bias {
            each_with(s, self.x, bias, Add);
        }
    }
}

/// The sum of all elements.
#[inline(always)]
fn sum<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut total = s.load_some(rest, 0.0);
    for v in whole {
        total = s.add(total, s.load(v));
    }
    s.sum(total)
}

/// The sum of the squares of the distances from `mean`.
#[inline(always)]
fn sum_of_squares<S: Simd>(s: S, x: &[f32], mean: f32) -> f32 {
    let (whole, rest) = x.as_chunks::<LANES>();
    let first = s.sub(s.load_some(rest, mean), s.splat(mean));
    let mut total = s.mul(first, first);
    for v in whole {
        let v = s.sub(s.load(v), s.splat(mean));
        total = s.mul_add(v, v, total);
    }
    s.sum(total)
}

#[inline(always)]
fn scale_by_weight<S: Simd>(s: S, x: &mut [f32], scale: f32, weight: &[f32]) {
    each_with(s, x, weight, Weighted(scale));
}

// ---------------------------------------------------------------------------------------------- sums and products

/// `x += y`.
///
/// # Panics
/// When the lengths differ.
pub fn add(isa: Isa, pool: &Pool, x: &mut [f32], y: &[f32]) {
    zip(isa, pool, x, y, Add);
}

/// `x *= y`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn mul(isa: Isa, pool: &Pool, x: &mut [f32], y: &[f32]) {
    zip(isa, pool, x, y, Mul);
}

/// `x += factor * y`: what an expert adds to a token.
///
/// # Panics
/// When the lengths differ.
pub fn add_scaled(isa: Isa, pool: &Pool, x: &mut [f32], factor: f32, y: &[f32]) {
    zip(isa, pool, x, y, AddScaled(factor));
}

/// Adds `bias` to each row of `bias.len()` elements.
///
/// # Panics
/// When `x` is not whole rows.
pub fn add_bias(isa: Isa, pool: &Pool, x: &mut [f32], bias: &[f32]) {
    check_rows(x.len(), bias.len(), x.len());
    by_rows(pool, bias.len(), x, |_, x| {
        for x in x.chunks_exact_mut(bias.len()) {
            isa.run(Zip { x, y: bias, f: Add });
        }
    });
}

/// `x *= factor`.
pub fn scale(isa: Isa, pool: &Pool, x: &mut [f32], factor: f32) {
    by_rows(pool, 1, x, |_, x| isa.run(Map { x, f: Scale(factor) }));
}

/// `x = cap * tanh(x / cap)`.
pub fn softcap(isa: Isa, pool: &Pool, x: &mut [f32], cap: f32) {
    by_rows(pool, 1, x, |_, x| isa.run(Map { x, f: SoftCap(cap) }));
}

/// Softmax of each row of `row` elements. A row that is minus infinity throughout becomes zeros.
///
/// # Panics
/// When `x` is not whole rows.
pub fn softmax(isa: Isa, pool: &Pool, x: &mut [f32], row: usize) {
    check_rows(x.len(), row, x.len());
    by_rows(pool, row, x, |_, x| {
        for x in x.chunks_exact_mut(row) {
            isa.run(Softmax { x });
        }
    });
}

struct Softmax<'a> {
    x: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let top = largest(s, self.x, f32::NEG_INFINITY);
        if top == f32::NEG_INFINITY && !self.x.iter().any(|x| x.is_nan()) {
            return self.x.fill(0.0);
        }
        each(s, self.x, ExpMinus(top));
        let total = sum(s, self.x);
        each(s, self.x, Scale(1.0 / total));
    }
}

// ---------------------------------------------------------------------------------------------- activations

/// `x = act(x)`.
pub fn activate(isa: Isa, pool: &Pool, act: Activation, x: &mut [f32]) {
    by_rows(pool, 1, x, |_, x| activate_slice(isa, act, x));
}

/// `x = act(x)`, on this thread.
pub(crate) fn activate_slice(isa: Isa, act: Activation, x: &mut [f32]) {
    with_activation!(act, f => isa.run(Map { x, f }));
}

/// `gate = act(gate) * up`: the middle of a gated MLP.
///
/// # Panics
/// When the lengths differ.
pub fn gated(isa: Isa, pool: &Pool, act: Activation, gate: &mut [f32], up: &[f32]) {
    with_activation!(act, f => zip(isa, pool, gate, up, Gated(f)));
}

/// `x = f(x)`.
struct Map<'a, U> {
    x: &'a mut [f32],
    f: U,
}

impl<U: Unary> Kernel for Map<'_, U> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        each(s, self.x, self.f);
    }
}

/// `x = f(x, y)`.
struct Zip<'a, B> {
    x: &'a mut [f32],
    y: &'a [f32],
    f: B,
}

impl<B: Binary> Kernel for Zip<'_, B> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        each_with(s, self.x, self.y, self.f);
    }
}

fn zip(isa: Isa, pool: &Pool, x: &mut [f32], y: &[f32], f: impl Binary) {
    check_lengths(x.len(), y.len());
    by_rows(pool, 1, x, |at, x| isa.run(Zip { y: &y[at..at + x.len()], x, f }));
}

// ---------------------------------------------------------------------------------------------- positions

/// Turns each head of each token by its position, in place.
///
/// `x` is `[n, n_heads, head_dim]`; `cos` and `sin` are `[n, rotary_dim / 2]`, the angles of each token's position.
///
/// # Panics
/// When the lengths do not fit together.
pub fn rope(isa: Isa, pool: &Pool, rope: &Rope, cos: &[f32], sin: &[f32], x: &mut [f32]) {
    let (row, half) = (rope.n_heads * rope.head_dim, rope.rotary_dim / 2);
    assert!(
        rope.rotary_dim.is_multiple_of(2),
        "an odd number of rotary elements: {}",
        rope.rotary_dim
    );
    assert!(rope.offset + rope.rotary_dim <= rope.head_dim, "rotary elements outside of the head");
    check_lengths(cos.len(), sin.len());
    if x.is_empty() || half == 0 {
        return;
    }
    assert_eq!((x.len() % row, x.len() / row * half), (0, cos.len()), "rope: rows of x, cosines");
    by_rows(pool, row, x, |at, x| {
        for (i, x) in x.chunks_exact_mut(row).enumerate() {
            let token = at / row + i;
            let angles = token * half..(token + 1) * half;
            isa.run(Turn { rope, cos: &cos[angles.clone()], sin: &sin[angles], x });
        }
    });
}

/// Turns the heads of one token.
struct Turn<'a> {
    rope: &'a Rope,
    cos: &'a [f32],
    sin: &'a [f32],
    x: &'a mut [f32],
}

impl Kernel for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Rope { head_dim, offset, rotary_dim, style, .. } = *self.rope;
        for head in self.x.chunks_exact_mut(head_dim) {
            let head = &mut head[offset..offset + rotary_dim];
            match style {
                RopeStyle::Halves => turn_halves(head, self.cos, self.sin),
                RopeStyle::Interleaved => turn_pairs(head, self.cos, self.sin),
            }
        }
    }
}

#[inline(always)]
fn turn_halves(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[inline(always)]
fn turn_pairs(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (pairs, _) = head.as_chunks_mut::<2>();
    for (([a, b], cos), sin) in pairs.iter_mut().zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

// ---------------------------------------------------------------------------------------------- conversions

/// Widens half precision.
///
/// # Panics
/// When the lengths differ.
pub fn f16_to_f32(isa: Isa, from: &[f16], to: &mut [f32]) {
    check_lengths(from.len(), to.len());
    isa.run(Widen { from, to });
}

/// Widens bfloat16.
///
/// # Panics
/// When the lengths differ.
pub fn bf16_to_f32(isa: Isa, from: &[bf16], to: &mut [f32]) {
    check_lengths(from.len(), to.len());
    isa.run(Widen { from, to });
}

/// Rounds to half precision, to the nearest, ties to even; too large becomes infinite.
///
/// # Panics
/// When the lengths differ.
pub fn f32_to_f16(isa: Isa, from: &[f32], to: &mut [f16]) {
    check_lengths(from.len(), to.len());
    isa.run(Narrow { from, to });
}

/// Rounds to bfloat16, to the nearest, ties to even; too large becomes infinite.
///
/// # Panics
/// When the lengths differ.
pub fn f32_to_bf16(isa: Isa, from: &[f32], to: &mut [bf16]) {
    check_lengths(from.len(), to.len());
    isa.run(Narrow { from, to });
}

struct Widen<'a, E> {
    from: &'a [E],
    to: &'a mut [f32],
}

impl<E: Element> Kernel for Widen<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (from, from_rest) = self.from.as_chunks::<LANES>();
        let (to, to_rest) = self.to.as_chunks_mut::<LANES>();
        for (from, to) in from.iter().zip(to) {
            s.store(E::load(s, from), to);
        }
        s.store_some(E::load_some(s, from_rest), to_rest);
    }
}

/// Rounds to f16 or bf16; the lengths are the same.
pub(super) struct Narrow<'a, T> {
    pub(super) from: &'a [f32],
    pub(super) to: &'a mut [T],
}

impl<T: Round> Kernel for Narrow<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (from, from_rest) = self.from.as_chunks::<LANES>();
        let (to, to_rest) = self.to.as_chunks_mut::<LANES>();
        for (from, to) in from.iter().zip(to) {
            T::store(s, s.load(from), to);
        }
        let mut last = [T::default(); LANES];
        T::store(s, s.load_some(from_rest, 0.0), &mut last);
        to_rest.copy_from_slice(&last[..to_rest.len()]);
    }
}

// ---------------------------------------------------------------------------------------------- shared

fn rows(x: &[f32], row: usize) -> std::slice::ChunksExact<'_, f32> {
    x.chunks_exact(row)
}

/// Calls `f(at, part)` for parts of whole rows of `x`, on the pool where there is enough to do.
fn by_rows(pool: &Pool, row: usize, x: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
    let rows_per_part = (PART / row.max(1)).max(1);
    let part = rows_per_part * row;
    let len = x.len();
    if len <= part || pool.n_threads() == 1 {
        return f(0, x);
    }
    let x = SharedMut::new(x);
    pool.run(len.div_ceil(part), &|i| {
        let at = i * part;
        // SAFETY: the parts do not overlap.
        f(at, unsafe { x.slice(at, part.min(len - at)) });
    });
}

#[track_caller]
fn check_lengths(a: usize, b: usize) {
    assert_eq!(a, b, "slices of different lengths");
}

#[track_caller]
fn check_rows(len: usize, row: usize, out: usize) {
    assert!(
        len == 0 || (row > 0 && len.is_multiple_of(row)),
        "{len} elements are not rows of {row}"
    );
    check_lengths(len, out);
}

#[cfg(test)]
#[path = "elementwise_tests.rs"]
mod tests;
