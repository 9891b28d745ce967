use super::*;
use crate::cases::{self, MATMUL, MatmulCase, Numbers, assert_close, assert_same_bits};
use crate::cpu::pack::pack;
use crate::formats::{Dense, Matrix};
use crate::memory::Arena;
use crate::reference;

/// What matters to AMX alone: the fewest tokens of each format, more panels than are summed at a time, more activations than are
/// multiplied at a time.
const TILED: &[MatmulCase] = &[
    MatmulCase { n: 9, rows: 16, cols: 31 },
    MatmulCase { n: 14, rows: 49, cols: 270 },
    MatmulCase { n: 22, rows: 530, cols: 40 },
    MatmulCase { n: 250, rows: 33, cols: 2100 },
];

/// The matrix of a case, packed, and its input.
fn setup(case: &MatmulCase, format: Format) -> (Packed, Vec<f32>, Numbers) {
    let mut numbers = Numbers::new(case.seed());
    let values = numbers.normal(case.rows * case.cols);
    let x = numbers.normal(case.n * case.cols);
    let w = Matrix::new(case.rows, case.cols, Dense::F32(&values));
    let packed = pack(Isa::best(), &Pool::new(1), format, &w, &mut Arena::new()).unwrap();
    (packed, x, numbers)
}

fn run(isa: Isa, n_threads: usize, w: &Packed, x: &[f32]) -> Vec<f32> {
    let pool = Pool::new(n_threads);
    let mut input = Input::new();
    input.set(isa, &pool, x, w.cols(), &[w.format()]);
    let mut out = vec![f32::NAN; input.n * w.rows()];
    linear(isa, &pool, &input, &mut [Linear::new(w, &mut out)]);
    out
}

/// What an input is to a kernel.
fn seen(isa: Isa, format: Format, x: &[f32], cols: usize) -> Vec<f32> {
    match format {
        Format::Q8 if isa.has_vnni() => reference::quantize(x, cols, 32, 127.0),
        Format::Q8 if isa.has_integers() => reference::quantize(x, cols, 256, 32767.0),
        Format::Q4 if isa.has_integers() => reference::quantize(x, cols, 256, 127.0),
        Format::Bf16 if isa.multiplies_bf16() => {
            x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect()
        }
        Format::F32 | Format::F16 | Format::Bf16 | Format::Q8 | Format::Q4 => x.to_vec(),
    }
}

#[test]
fn linear_matches_the_reference_in_every_format() {
    for case in MATMUL.iter().chain(TILED) {
        for format in Format::ALL {
            let (w, x, _) = setup(case, format);
            let values = reference::unpack(&w);
            for isa in Isa::variants() {
                let mut want = vec![0.0; case.n * case.rows];
                reference::matmul(
                    &values,
                    case.rows,
                    case.cols,
                    &seen(isa, format, &x, case.cols),
                    &mut want,
                );
                let place = format!("{case:?} {format} {isa:?}");
                assert_close(&run(isa, 2, &w, &x), &want, case.tolerance(), &place);
            }
        }
    }
}

#[test]
fn quantised_activations_cost_little() {
    let case = MatmulCase { n: 3, rows: 32, cols: 1024 };
    for (format, plain, vnni) in [(Format::Q8, 3e-5, 6e-3), (Format::Q4, 8e-3, 8e-3)] {
        let (w, x, _) = setup(&case, format);
        let mut want = vec![0.0; case.n * case.rows];
        reference::matmul(&reference::unpack(&w), case.rows, case.cols, &x, &mut want);
        for isa in Isa::variants() {
            let tolerance = if isa.has_vnni() { vnni } else { plain };
            let got = run(isa, 1, &w, &x);
            let error: f32 = got.iter().zip(&want).map(|(a, b)| (a - b).powi(2)).sum();
            let size: f32 = want.iter().map(|v| v * v).sum();
            assert!(
                (error / size).sqrt() < tolerance,
                "{format} {isa:?}: {}",
                (error / size).sqrt()
            );
        }
    }
}

#[test]
fn the_bits_depend_on_neither_threads_nor_tokens() {
    for case in MATMUL.iter().chain(TILED) {
        for format in Format::ALL {
            let (w, x, _) = setup(case, format);
            for isa in Isa::variants() {
                let one_by_one: Vec<_> =
                    x.chunks(case.cols).flat_map(|x| run(isa, 1, &w, x)).collect();
                for n_threads in [1, 2, 3] {
                    let place = format!("{case:?} {format} {isa:?} {n_threads} threads");
                    assert_same_bits(&run(isa, n_threads, &w, &x), &one_by_one, &place);
                }
            }
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn avx512_gives_the_bits_of_avx2() {
    let wide: Vec<_> = Isa::variants().into_iter().filter(|isa| isa.has_integers()).collect();
    for case in MATMUL.iter().chain(TILED) {
        for format in Format::ALL {
            let (w, x, _) = setup(case, format);
            // Where activations are rounded more than elsewhere, the bits are others.
            let rounded = |isa: &Isa| match format {
                Format::Bf16 => isa.multiplies_bf16(),
                Format::Q8 => isa.has_vnni(),
                Format::F32 | Format::F16 | Format::Q4 => false,
            };
            for kind in [false, true] {
                let isas: Vec<_> = wide.iter().filter(|isa| rounded(isa) == kind).collect();
                let outs: Vec<_> = isas.iter().map(|isa| run(**isa, 1, &w, &x)).collect();
                for out in &outs {
                    assert_same_bits(out, &outs[0], &format!("{case:?} {format} {isas:?}"));
                }
            }
        }
    }
}

#[test]
fn several_layers_with_bias_and_residual_in_one_region() {
    let shapes = [(40, Format::Bf16), (16, Format::Q8), (7, Format::Q4), (33, Format::F32)];
    for n in [1, 2, 9] {
        for isa in Isa::variants() {
            let cases = shapes.map(|(rows, format)| (MatmulCase { n, rows, cols: 130 }, format));
            let weights = cases.map(|(case, format)| setup(&case, format).0);
            let mut numbers = Numbers::new(8);
            let x = numbers.normal(n * 130);
            let bias = numbers.normal(40);
            let before = numbers.normal(n * 40);
            let apart: Vec<_> = weights.iter().map(|w| run(isa, 1, w, &x)).collect();

            let mut outs = weights.each_ref().map(|w| vec![0.0; n * w.rows()]);
            let mut layers: Vec<_> =
                weights.iter().zip(&mut outs).map(|(w, out)| Linear::new(w, out)).collect();
            let pool = Pool::new(2);
            let mut input = Input::new();
            input.set(isa, &pool, &x, 130, &Format::ALL);
            linear(isa, &pool, &input, &mut layers);
            for (apart, out) in apart.iter().zip(&outs) {
                assert_same_bits(out, apart, &format!("{n} {isa:?}"));
            }

            let mut out = before.clone();
            let layer = Linear { w: &weights[0], bias: Some(&bias), add: true, out: &mut out };
            linear(isa, &pool, &input, &mut [layer]);
            let sum = |(i, x): (usize, &f32)| before[i] + (x + bias[i % 40]);
            let want: Vec<_> = apart[0].iter().enumerate().map(sum).collect();
            assert_same_bits(&out, &want, &format!("{n} {isa:?} residual"));
        }
    }
}

#[test]
fn a_gated_layer_is_two_layers_and_a_gate() {
    for n in [1, 2, 7, 300] {
        for formats in [
            [Format::Bf16; 2],
            [Format::Q4; 2],
            [Format::Q8, Format::Q4],
            [Format::F16, Format::F32],
        ] {
            let case = MatmulCase { n, rows: 37, cols: 100 };
            let ups = MatmulCase { rows: 37, cols: 100, n: n + 1 };
            let (gate, up) = (setup(&case, formats[0]).0, setup(&ups, formats[1]).0);
            let x = Numbers::new(9).normal(n * 100);
            for isa in Isa::variants() {
                let pool = Pool::new(2);
                let mut want = run(isa, 1, &gate, &x);
                let act = Activation::Silu;
                crate::cpu::elementwise::gated(isa, &pool, act, &mut want, &run(isa, 1, &up, &x));
                let mut input = Input::new();
                input.set(isa, &pool, &x, 100, &formats);
                let mut out = vec![f32::NAN; n * 37];
                gated_linear(isa, &pool, &input, act, &gate, &up, &mut out);
                assert_same_bits(&out, &want, &format!("{n} {formats:?} {isa:?}"));
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_not_hidden() {
    let case = MatmulCase { n: 2, rows: 20, cols: 300 };
    for format in Format::ALL {
        for isa in Isa::variants() {
            for bad in [f32::NAN, f32::INFINITY] {
                // In the activations: the token's outputs, not the other's.
                let (w, mut x, mut numbers) = setup(&case, format);
                x[270] = bad;
                let out = run(isa, 1, &w, &x);
                assert!(out[..20].iter().all(|v| !v.is_finite()), "{format} {isa:?} {bad}");
                assert!(out[20..].iter().all(|v| v.is_finite()), "{format} {isa:?} {bad}");
                // In the weights: the row's outputs, not the others'.
                let mut values = numbers.normal(20 * 300);
                values[7 * 300 + 40] = bad;
                let w = Matrix::new(20, 300, Dense::F32(&values));
                let w = pack(isa, &Pool::new(1), format, &w, &mut Arena::new()).unwrap();
                for n in 1..3 {
                    let out = run(isa, 1, &w, &numbers.normal(n * 300));
                    for (i, out) in out.iter().enumerate() {
                        assert_eq!(
                            out.is_finite(),
                            i % 20 != 7,
                            "{format} {isa:?} {bad} row {i}: {out}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn extreme_integers_do_not_overflow() {
    // Weights and activations that are all at the ends of their ranges.
    for format in [Format::Q8, Format::Q4] {
        for sign in [1.0, -1.0] {
            for n in [1, 6] {
                let (rows, cols) = (16, 1024);
                let values = vec![sign; rows * cols];
                let w = Matrix::new(rows, cols, Dense::F32(&values));
                let w = pack(Isa::best(), &Pool::new(1), format, &w, &mut Arena::new()).unwrap();
                for isa in Isa::variants() {
                    for x in [3.0, -3.0] {
                        let got = run(isa, 1, &w, &vec![x; n * cols]);
                        let want = vec![sign * x * cols as f32; n * rows];
                        cases::assert_close(
                            &got,
                            &want,
                            2e-3 * 3072.0,
                            &format!("{format} {isa:?}"),
                        );
                    }
                }
            }
        }
    }
}
