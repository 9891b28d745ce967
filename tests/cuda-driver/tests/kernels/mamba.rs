//! The kernels of a Mamba-2 mixer, with every shape of the shared table, on the emulated device, against the reference.

use crate::common::Gpu;
use crate::finished;
use tramontane_kernels::cases::{MAMBA, Numbers, assert_close, assert_same_bits};
use tramontane_kernels::cpu::mamba::{Mamba, Weights};
use tramontane_kernels::cuda::{self, MambaWeights};
use tramontane_kernels::reference;

/// Tokens of a test.
const TOKENS: usize = 9;

/// Weights of a shape: convolution, its bias, decay, skip, step, norm.
fn weights(m: &Mamba) -> [Vec<f32>; 6] {
    let mut numbers = Numbers::new(m.in_dim() as u64);
    let (conv, bias) = (numbers.normal(m.conv_width * m.conv_dim()), numbers.normal(m.conv_dim()));
    let decay = numbers.normal(m.n_heads).iter().map(|x| -x.exp()).collect();
    let (skip, step) = (numbers.normal(m.n_heads), numbers.normal(m.n_heads));
    [conv, bias, decay, skip, step, numbers.normal(m.inner())]
}

/// Passes `x` in pieces of `cut` tokens.
fn run(m: &Mamba, all: &[Vec<f32>; 6], with_bias: bool, x: &[f32], cut: usize) -> Vec<f32> {
    let gpu = Gpu::new();
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

#[test]
fn mamba_agrees_with_the_reference() {
    for m in MAMBA {
        let (x, all) = (Numbers::new(7).normal(TOKENS * m.in_dim()), weights(m));
        let mut worst = 0.0f32;
        for with_bias in [true, false] {
            let [conv, bias, decay, skip, step, norm] = &all;
            let conv_bias = with_bias.then_some(&bias[..]);
            let w = Weights { conv, conv_bias, decay, skip, step, norm };
            let mut want = vec![0.0; TOKENS * m.inner()];
            reference::mamba(m, &w, &x, &mut want);
            let got = run(m, &all, with_bias, &x, TOKENS);
            assert_close(&got, &want, 2e-5, &format!("{m:?}"));
            worst = got.iter().zip(&want).fold(worst, |worst, (a, b)| worst.max((a - b).abs()));
        }
        println!("mamba {m:?}: max error {worst:e}");
    }
    finished();
}

#[test]
fn how_a_text_is_cut_does_not_matter() {
    for m in MAMBA {
        let (x, all) = (Numbers::new(8).normal(TOKENS * m.in_dim()), weights(m));
        let whole = run(m, &all, true, &x, TOKENS);
        for cut in [1, 2, 4] {
            assert_same_bits(&run(m, &all, true, &x, cut), &whole, "cut");
        }
    }
    finished();
}

#[test]
fn a_time_step_that_is_no_number_shows() {
    let m = &MAMBA[1];
    let mut x = Numbers::new(9).normal(2 * m.in_dim());
    x[m.in_dim() - 1] = f32::NAN;
    let got = run(m, &weights(m), true, &x, 2);
    assert!(got.iter().filter(|x| x.is_nan()).count() > m.head_dim);
    finished();
}
