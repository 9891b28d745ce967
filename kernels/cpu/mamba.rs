//! The core of a Mamba-2 mixer (Dao and Gu 2024, arXiv:2405.21060): what stands between its two projections.
//!
//! A token's row holds the gate, the channels of the convolution (what enters the heads, then `b` and `c` of each
//! group), and the time step of each head. In the recurrent form, for each head with state `h` of `head_dim` rows:
//!
//! ```text
//! x, b, c = silu(convolution over the last positions)
//! dt      = clamp(softplus(dt + bias))
//! h       = exp(decay · dt) · h + dt · x bᵀ
//! y       = h c + skip · x
//! out     = norm of each group of (y · silu(gate))
//! ```
//!
//! Tokens pass one after the other, so the result does not depend on how a text was cut.

use super::elementwise::{Activation, activate_slice};
use super::functions::{Add, GatedBy, Mul, Weighted, each_with};
use super::shared::SharedMut;
use super::simd::{Kernel, LANES, Simd};
use crate::{Isa, Pool};

/// Channels of the convolution that are one part of a parallel region.
const CHANNELS: usize = 256;

/// The shape of a Mamba-2 mixer.
#[derive(Clone, Copy, Debug)]
pub struct Mamba {
    /// Heads.
    pub n_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Groups of heads that share `b` and `c`; divides `n_heads`.
    pub n_groups: usize,
    /// Columns of a head's state.
    pub state_dim: usize,
    /// Positions that the convolution sees, the own one included.
    pub conv_width: usize,
    /// Time steps are at least this.
    pub step_min: f32,
    /// Time steps are at most this.
    pub step_max: f32,
    /// Added to the mean square of each group of the norm.
    pub eps: f32,
}

impl Mamba {
    /// Width of all heads together, and of a row of the output.
    pub fn inner(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Channels of the convolution.
    pub fn conv_dim(&self) -> usize {
        self.inner() + 2 * self.n_groups * self.state_dim
    }

    /// Width of a row of the input.
    pub fn in_dim(&self) -> usize {
        self.inner() + self.conv_dim() + self.n_heads
    }

    /// Elements of the convolution's state: the last `conv_width - 1` rows of its channels.
    pub fn conv_state(&self) -> usize {
        self.conv_width.saturating_sub(1) * self.conv_dim()
    }

    /// Elements of the heads' states, `[n_heads, head_dim, state_dim]`.
    pub fn head_state(&self) -> usize {
        self.inner() * self.state_dim
    }
}

/// The weights of a Mamba-2 mixer but its projections.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// The convolution, `[conv_width, conv_dim]`: the last row weighs the own position.
    pub conv: &'a [f32],
    /// Its bias, `[conv_dim]`.
    pub conv_bias: Option<&'a [f32]>,
    /// The decay of each head; negative.
    pub decay: &'a [f32],
    /// How much of its input each head passes on.
    pub skip: &'a [f32],
    /// What is added to the time step of each head.
    pub step: &'a [f32],
    /// Weights of the norm, `[inner]`.
    pub norm: &'a [f32],
}

/// What a mixer remembers of the tokens so far; zeros before the first.
#[derive(Debug)]
pub struct State<'a> {
    /// The last `conv_width - 1` rows of the convolution's channels before it, the oldest first.
    pub conv: &'a mut [f32],
    /// `[n_heads, head_dim, state_dim]`.
    pub heads: &'a mut [f32],
}

/// Passes the tokens of `x`, `[n, in_dim]`, through the mixer. `out` is `[n, inner]`; the channels of the convolution
/// in `x` are overwritten by its result.
///
/// # Panics
/// When lengths do not fit together.
pub fn mamba(
    isa: Isa,
    pool: &Pool,
    m: &Mamba,
    w: &Weights<'_>,
    x: &mut [f32],
    state: State<'_>,
    out: &mut [f32],
) {
    check(m, w, x, &state, out);
    convolve(isa, pool, m, w, x, state.conv);
    let x = &*x;
    let (heads, shared) = (SharedMut::new(state.heads), SharedMut::new(out));
    let size = m.head_dim * m.state_dim;
    pool.run(m.n_heads, &|head| {
        // SAFETY: each head belongs to one part.
        let state = unsafe { heads.slice(head * size, size) };
        isa.run(Head { m, w, x, head, state, out: shared });
    });
    let n_rows = out.len() / m.inner().max(1);
    let out = SharedMut::new(out);
    let group = m.inner() / m.n_groups;
    pool.run(n_rows, &|token| {
        let gate = &x[token * m.in_dim()..][..m.inner()];
        for ((at, gate), weight) in
            (0..).step_by(group).zip(gate.chunks_exact(group)).zip(w.norm.chunks_exact(group))
        {
            // SAFETY: each token belongs to one part.
            let x = unsafe { out.slice(token * m.inner() + at, group) };
            isa.run(GatedNorm { x, gate, weight, eps: m.eps });
        }
    });
}

#[track_caller]
fn check(m: &Mamba, w: &Weights<'_>, x: &[f32], state: &State<'_>, out: &[f32]) {
    assert!(
        m.n_groups > 0 && m.n_heads.is_multiple_of(m.n_groups),
        "{} heads in {} groups",
        m.n_heads,
        m.n_groups
    );
    assert!(m.conv_width > 0, "a convolution of no positions");
    assert_eq!(x.len() % m.in_dim().max(1), 0, "whole rows of the input");
    assert_eq!(out.len() * m.in_dim(), x.len() * m.inner(), "rows of the output");
    assert_eq!(w.conv.len(), m.conv_width * m.conv_dim(), "weights of the convolution");
    assert!(w.conv_bias.is_none_or(|b| b.len() == m.conv_dim()), "bias of the convolution");
    assert_eq!([w.decay.len(), w.skip.len(), w.step.len()], [m.n_heads; 3], "weights of heads");
    assert_eq!(w.norm.len(), m.inner(), "weights of the norm");
    assert_eq!(state.conv.len(), m.conv_state(), "state of the convolution");
    assert_eq!(state.heads.len(), m.head_state(), "state of the heads");
}

/// Replaces the channels of the convolution in `x` by its result, and moves its state on.
fn convolve(isa: Isa, pool: &Pool, m: &Mamba, w: &Weights<'_>, x: &mut [f32], state: &mut [f32]) {
    let (n, conv_dim) = (x.len() / m.in_dim().max(1), m.conv_dim());
    let (x, state) = (SharedMut::new(x), SharedMut::new(state));
    pool.run(conv_dim.div_ceil(CHANNELS), &|part| {
        let (from, width) = (part * CHANNELS, CHANNELS.min(conv_dim - part * CHANNELS));
        // The channels of row `i`, where the rows of the state come before those of the input.
        let past = m.conv_width - 1;
        let row = |i: usize| {
            let at = |i: usize| m.inner() + i * m.in_dim() + from;
            // SAFETY: each channel belongs to one part, which holds at most one slice of each row at a time.
            unsafe {
                if i < past {
                    state.slice(i * conv_dim + from, width)
                } else {
                    x.slice(at(i - past), width)
                }
            }
        };
        // What the next call sees of this one's rows, before they are overwritten.
        let mut next = vec![0.0; past * width];
        for (i, next) in next.chunks_exact_mut(width).enumerate() {
            next.copy_from_slice(row(n + i));
        }
        // From the last token on, so that each row is overwritten when no other needs it.
        for token in (0..n).rev() {
            let out = row(token + past);
            let weight = |k: usize| &w.conv[k * conv_dim + from..][..width];
            isa.run(Scale {
                x: out,
                weight: weight(past),
                bias: w.conv_bias.map(|b| &b[from..][..width]),
            });
            for k in 0..past {
                isa.run(AddProduct { out, x: row(token + k), weight: weight(k) });
            }
            activate_slice(isa, Activation::Silu, out);
        }
        for (i, next) in next.chunks_exact(width).enumerate() {
            // SAFETY: as above.
            unsafe { state.slice(i * conv_dim + from, width) }.copy_from_slice(next);
        }
    });
}

/// `x = x · weight + bias`.
struct Scale<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
}

impl Kernel for Scale<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        each_with(s, self.x, self.weight, Mul);
        if let Some(bias) = self.bias {
            each_with(s, self.x, bias, Add);
        }
    }
}

/// `out += x · weight`.
struct AddProduct<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
    weight: &'a [f32],
}

impl Kernel for AddProduct<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (xs, x_rest) = self.x.as_chunks::<LANES>();
        let (ws, w_rest) = self.weight.as_chunks::<LANES>();
        let (outs, out_rest) = self.out.as_chunks_mut::<LANES>();
        for ((out, x), w) in outs.iter_mut().zip(xs).zip(ws) {
            let v = s.mul_add(s.load(x), s.load(w), s.load(out));
            s.store(v, out);
        }
        let v = s.load_some(out_rest, 0.0);
        let v = s.mul_add(s.load_some(x_rest, 0.0), s.load_some(w_rest, 0.0), v);
        s.store_some(v, out_rest);
    }
}

/// One head over all tokens.
struct Head<'a> {
    m: &'a Mamba,
    w: &'a Weights<'a>,
    x: &'a [f32],
    head: usize,
    state: &'a mut [f32],
    out: SharedMut<'a, f32>,
}

impl Kernel for Head<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { m, w, x, head, state, out } = self;
        let (inner, group) = (m.inner(), head / (m.n_heads / m.n_groups));
        for (token, row) in x.chunks_exact(m.in_dim()).enumerate() {
            let channels = &row[inner..][..m.conv_dim()];
            let input = &channels[head * m.head_dim..][..m.head_dim];
            let b = &channels[inner + group * m.state_dim..][..m.state_dim];
            let c = &channels[inner + (m.n_groups + group) * m.state_dim..][..m.state_dim];
            let dt = softplus(row[inner + m.conv_dim() + head] + w.step[head]);
            let dt = at_most(at_least(dt, m.step_min), m.step_max);
            let kept = (w.decay[head] * dt).exp();
            // SAFETY: each head belongs to one part.
            let out = unsafe { out.slice(token * inner + head * m.head_dim, m.head_dim) };
            for ((h, x), out) in state.chunks_exact_mut(m.state_dim).zip(input).zip(out) {
                *out = advance(s, h, kept, dt * x, b, c) + w.skip[head] * x;
            }
        }
    }
}

/// `h = kept · h + factor · b`, and the product of the new `h` with `c`.
#[inline(always)]
fn advance<S: Simd>(s: S, h: &mut [f32], kept: f32, factor: f32, b: &[f32], c: &[f32]) -> f32 {
    let (kept, factor) = (s.splat(kept), s.splat(factor));
    let (hs, h_rest) = h.as_chunks_mut::<LANES>();
    let ((bs, b_rest), (cs, c_rest)) = (b.as_chunks::<LANES>(), c.as_chunks::<LANES>());
    let mut sum = s.splat(0.0);
    for ((h, b), c) in hs.iter_mut().zip(bs).zip(cs) {
        let v = s.mul_add(s.load(h), kept, s.mul(factor, s.load(b)));
        s.store(v, h);
        sum = s.mul_add(v, s.load(c), sum);
    }
    let added = s.mul(factor, s.load_some(b_rest, 0.0));
    let v = s.mul_add(s.load_some(h_rest, 0.0), kept, added);
    s.store_some(v, h_rest);
    s.sum(s.mul_add(v, s.load_some(c_rest, 0.0), sum))
}

/// `x · silu(gate)`, divided by the root of its mean square, times `weight`: one group of one token.
struct GatedNorm<'a> {
    x: &'a mut [f32],
    gate: &'a [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for GatedNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        each_with(s, self.x, self.gate, GatedBy);
        let (xs, rest) = self.x.as_chunks::<LANES>();
        let last = s.load_some(rest, 0.0);
        let mut sum = s.mul(last, last);
        for x in xs {
            let v = s.load(x);
            sum = s.mul_add(v, v, sum);
        }
        let mean = s.sum(sum) / self.x.len() as f32;
        each_with(s, self.x, self.weight, Weighted(1.0 / (mean + self.eps).sqrt()));
    }
}

/// `ln(1 + e^x)`; where the two cannot be told apart, `x`.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// `max` that lets a NaN pass.
fn at_least(x: f32, low: f32) -> f32 {
    if x < low { low } else { x }
}

/// `min` that lets a NaN pass.
fn at_most(x: f32, high: f32) -> f32 {
    if x > high { high } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::{Numbers, assert_close, assert_same_bits};
    use crate::reference;

    const SHAPES: [Mamba; 3] = [
        shape(1, 1, 1, 1, 1),
        shape(8, 8, 2, 16, 4),
        // More channels than one part has, and rests everywhere.
        shape(6, 50, 3, 13, 3),
    ];

    const fn shape(
        n_heads: usize,
        head_dim: usize,
        n_groups: usize,
        state_dim: usize,
        conv_width: usize,
    ) -> Mamba {
        Mamba {
            n_heads,
            head_dim,
            n_groups,
            state_dim,
            conv_width,
            step_min: 0.2,
            step_max: 1.5,
            eps: 1e-5,
        }
    }

    /// Weights of their own for a shape: convolution, its bias, decay, skip, step, norm.
    fn weights(m: &Mamba) -> [Vec<f32>; 6] {
        let mut numbers = Numbers::new(m.in_dim() as u64);
        let conv = numbers.normal(m.conv_width * m.conv_dim());
        let bias = numbers.normal(m.conv_dim());
        let decay = numbers.normal(m.n_heads).iter().map(|x| -x.exp()).collect();
        let (skip, step) = (numbers.normal(m.n_heads), numbers.normal(m.n_heads));
        [conv, bias, decay, skip, step, numbers.normal(m.inner())]
    }

    fn view([conv, bias, decay, skip, step, norm]: &[Vec<f32>; 6]) -> Weights<'_> {
        Weights { conv, conv_bias: Some(bias), decay, skip, step, norm }
    }

    /// Passes `x` in pieces of `cut` tokens; the output followed by both states.
    fn run(isa: Isa, n_threads: usize, m: &Mamba, x: &[f32], cut: usize) -> Vec<f32> {
        let (all, pool) = (weights(m), Pool::new(n_threads));
        let (mut conv, mut heads) = (vec![0.0; m.conv_state()], vec![0.0; m.head_state()]);
        let mut result = Vec::new();
        for x in x.chunks(cut * m.in_dim()) {
            let mut out = vec![0.0; x.len() / m.in_dim() * m.inner()];
            let state = State { conv: &mut conv, heads: &mut heads };
            mamba(isa, &pool, m, &view(&all), &mut x.to_vec(), state, &mut out);
            result.extend(out);
        }
        [result, conv, heads].concat()
    }

    #[test]
    fn the_reference_is_matched() {
        for m in &SHAPES {
            let x = Numbers::new(7).normal(9 * m.in_dim());
            let all = weights(m);
            let mut want = vec![0.0; 9 * m.inner()];
            reference::mamba(m, &view(&all), &x, &mut want);
            for isa in Isa::available() {
                let got = run(isa, 1, m, &x, 9);
                assert_close(&got[..want.len()], &want, 2e-5, &format!("{m:?} {}", isa.name()));
                assert_same_bits(&run(isa, 3, m, &x, 9), &got, "three threads");
            }
        }
    }

    #[test]
    fn how_a_text_is_cut_does_not_matter() {
        for m in &SHAPES {
            let x = Numbers::new(8).normal(9 * m.in_dim());
            for isa in Isa::available() {
                let whole = run(isa, 1, m, &x, 9);
                for cut in [1, 2, 4] {
                    assert_same_bits(&run(isa, 1, m, &x, cut), &whole, "cut");
                }
            }
        }
    }

    #[test]
    fn a_nan_passes() {
        let m = &SHAPES[1];
        let mut x = Numbers::new(9).normal(2 * m.in_dim());
        x[m.in_dim() - 1] = f32::NAN;
        let got = run(Isa::portable(), 1, m, &x, 2);
        assert!(got[..2 * m.inner()].iter().filter(|x| x.is_nan()).count() > m.head_dim);
    }
}
