//! Mamba-2 mixers on the emulated device, beside those of the reference.
#![allow(dead_code, reason = "each test uses its part")]

use tramontane_kernels::cases::{Numbers, assert_close};
use tramontane_kernels::cpu::mamba::{Mamba, Weights};
use tramontane_kernels::cuda::{self, MambaWeights};
use tramontane_kernels::reference;

use crate::common::Gpu;

/// Tokens of a test.
pub(crate) const TOKENS: usize = 9;

/// Weights of a shape: convolution, its bias, decay, skip, step, norm.
pub(crate) fn weights(m: &Mamba) -> [Vec<f32>; 6] {
    let mut numbers = Numbers::new(m.in_dim() as u64);
    let (conv, bias) = (numbers.normal(m.conv_width * m.conv_dim()), numbers.normal(m.conv_dim()));
    let decay = numbers.normal(m.n_heads).iter().map(|x| -x.exp()).collect();
    let (skip, step) = (numbers.normal(m.n_heads), numbers.normal(m.n_heads));
    [conv, bias, decay, skip, step, numbers.normal(m.inner())]
}

/// Passes `x` in pieces of `cut` tokens, with or without the bias of the convolution.
pub(crate) fn run(
    gpu: &Gpu<'_>,
    m: &Mamba,
    all: &[Vec<f32>; 6],
    with_bias: bool,
    x: &[f32],
    cut: usize,
) -> Vec<f32> {
    let [conv, bias, decay, skip, step, norm] = all.each_ref().map(|v| gpu.floats(v));
    let conv_bias = if with_bias { bias } else { 0 };
    let w = MambaWeights { conv, conv_bias, decay, skip, step, norm };
    let state = [m.conv_state(), m.head_state()].map(|len| gpu.floats(&vec![0.0; len]));
    let mut result = Vec::new();
    for x in x.chunks(cut * m.in_dim()) {
        let n = x.len() / m.in_dim();
        let out = gpu.empty(4 * n * m.inner());
        gpu.run(&cuda::mamba(m, &w, gpu.floats(x), state, out, n));
        result.extend(gpu.read(out, n * m.inner()));
    }
    result
}

/// Compares a shape with the reference, with and without the bias; the largest error.
pub(crate) fn check(gpu: &Gpu<'_>, m: &Mamba) -> f32 {
    let (x, all) = (Numbers::new(7).normal(TOKENS * m.in_dim()), weights(m));
    let [conv, bias, decay, skip, step, norm] = &all;
    let mut worst = 0.0f32;
    for with_bias in [true, false] {
        let conv_bias = with_bias.then_some(&bias[..]);
        let w = Weights { conv, conv_bias, decay, skip, step, norm };
        let mut want = vec![0.0; TOKENS * m.inner()];
        reference::mamba(m, &w, &x, &mut want);
        let got = run(gpu, m, &all, with_bias, &x, TOKENS);
        assert_close(&got, &want, 2e-5, &format!("{m:?}"));
        worst = got.iter().zip(&want).fold(worst, |worst, (a, b)| worst.max((a - b).abs()));
    }
    worst
}
