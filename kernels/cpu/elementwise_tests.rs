use super::*;
use crate::cases::{Numbers, assert_close, assert_same_bits};
use crate::reference;

const ACTIVATIONS: [Activation; 5] = [
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::ReluSquared,
];

/// Lengths of rows and numbers of rows, some of them enough for several parts.
const ROWS: [(usize, usize); 7] =
    [(1, 1), (7, 3), (8, 1), (33, 5), (64, 2), (2048, 33), (100, 700)];

/// Runs `f` for each instruction set with one thread and with three, and checks that the bits agree.
fn on_each(mut f: impl FnMut(Isa, &Pool) -> Vec<f32>, check: impl Fn(&[f32], &str)) {
    for isa in Isa::available() {
        let alone = f(isa, &Pool::new(1));
        check(&alone, isa.name());
        assert_same_bits(&f(isa, &Pool::new(3)), &alone, isa.name());
    }
}

#[test]
fn norms_match_the_reference() {
    for (row, n) in ROWS {
        let mut numbers = Numbers::new(row as u64);
        let (x, y) = (numbers.normal(row * n), numbers.normal(row * n));
        let (weight, bias) = (numbers.normal(row), numbers.normal(row));
        let mut want = vec![0.0; x.len()];

        reference::rms_norm(&x, &weight, 1e-5, &mut want);
        let norm = |isa, pool: &Pool| {
            let mut out = vec![0.0; x.len()];
            rms_norm(isa, pool, &x, &weight, 1e-5, &mut out);
            let mut in_place = x.clone();
            rms_norm_in_place(isa, pool, &mut in_place, &weight, 1e-5);
            assert_same_bits(&in_place, &out, "in place");
            out
        };
        on_each(norm, |got, isa| assert_close(got, &want, 1e-5, &format!("rms {row} {n} {isa}")));

        for bias in [None, Some(&bias[..])] {
            reference::layer_norm(&x, &weight, bias, 1e-5, &mut want);
            let norm = |isa, pool: &Pool| {
                let mut out = vec![0.0; x.len()];
                layer_norm(isa, pool, &x, &weight, bias, 1e-5, &mut out);
                out
            };
            on_each(norm, |got, isa| {
                assert_close(got, &want, 1e-5, &format!("layer {row} {n} {isa}"))
            });
        }

        let sums: Vec<_> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        reference::rms_norm(&sums, &weight, 1e-5, &mut want);
        let norm = |isa, pool: &Pool| {
            let (mut x, mut out) = (x.clone(), vec![0.0; y.len()]);
            add_rms_norm(isa, pool, &mut x, &y, &weight, 1e-5, &mut out);
            assert_same_bits(&x, &sums, "residual");
            out
        };
        on_each(norm, |got, isa| {
            assert_close(got, &want, 1e-5, &format!("add rms {row} {n} {isa}"))
        });
    }
}

#[test]
fn activations_match_the_reference_over_the_whole_range() {
    let mut x: Vec<f32> = (-2000..=2000).map(|i| i as f32 * 0.01).collect();
    x.extend([0.0, -0.0, 1e-8, -1e-8, 1e-40, 88.5, -88.5, 300.0, -300.0, 1e30, -1e30]);
    for act in ACTIVATIONS {
        let want: Vec<_> = x.iter().map(|&x| reference::activation(act, x)).collect();
        for isa in Isa::available() {
            let mut got = x.clone();
            activate(isa, &Pool::new(1), act, &mut got);
            for ((got, want), x) in got.iter().zip(&want).zip(&x) {
                let tolerance = 2e-7 * x.abs().max(want.abs()).max(1e-3);
                let close = got == want || (got - want).abs() <= tolerance;
                assert!(close, "{act:?} {isa:?} of {x}: {got}, expected {want}");
            }
        }
    }
}

#[test]
fn activations_of_nan_and_infinity() {
    for act in ACTIVATIONS {
        for isa in Isa::available() {
            let mut x = [f32::NAN, f32::INFINITY];
            activate(isa, &Pool::new(1), act, &mut x);
            assert!(x[0].is_nan() && x[1] == f32::INFINITY, "{act:?} {isa:?}: {x:?}");
        }
    }
}

#[test]
fn gated_activations_are_activations_times_up() {
    let mut numbers = Numbers::new(1);
    let (gate, up) = (numbers.normal(40_003), numbers.normal(40_003));
    for act in ACTIVATIONS {
        let run = |isa, pool: &Pool| {
            let mut gate = gate.clone();
            gated(isa, pool, act, &mut gate, &up);
            gate
        };
        let product = |(gate, up): (&f32, &f32)| reference::activation(act, *gate) * up;
        let want: Vec<_> = gate.iter().zip(&up).map(product).collect();
        on_each(run, |got, isa| assert_close(got, &want, 2e-5, &format!("{act:?} {isa}")));
    }
}

#[test]
fn nan_is_not_hidden_by_a_softmax() {
    let pool = Pool::new(1);
    for isa in Isa::available() {
        // Alone among minus infinities, among numbers, in each lane and behind the last whole vector.
        for others in [f32::NEG_INFINITY, 3.0] {
            for at in 0..19 {
                let mut x = [others; 19];
                x[at] = f32::NAN;
                softmax(isa, &pool, &mut x, 19);
                assert!(x.iter().any(|x| x.is_nan()), "{isa:?} {others} {at}: {x:?}");
            }
        }
        let mut nothing = [f32::NEG_INFINITY; 19];
        softmax(isa, &pool, &mut nothing, 19);
        assert_eq!(nothing, [0.0; 19]);
    }
}

#[test]
fn softmax_matches_the_reference() {
    for (row, n) in ROWS {
        let mut x = Numbers::new(3).normal(row * n);
        x.iter_mut().for_each(|x| *x *= 10.0);
        x[0] = f32::NEG_INFINITY;
        let mut want = x.clone();
        reference::softmax(&mut want, row);
        let run = |isa, pool: &Pool| {
            let mut x = x.clone();
            softmax(isa, pool, &mut x, row);
            x
        };
        on_each(run, |got, isa| {
            assert_close(got, &want, 1e-6, &format!("softmax {row} {n} {isa}"))
        });
    }
}

#[test]
fn sums_products_and_caps() {
    let mut numbers = Numbers::new(4);
    let (x, y) = (numbers.normal(50_001), numbers.normal(50_001));
    let want =
        |f: fn(f32, f32) -> f32| -> Vec<_> { x.iter().zip(&y).map(|(x, y)| f(*x, *y)).collect() };
    let run = |f: fn(Isa, &Pool, &mut [f32], &[f32]), want: Vec<f32>| {
        let run = |isa, pool: &Pool| {
            let mut x = x.clone();
            f(isa, pool, &mut x, &y);
            x
        };
        on_each(run, |got, isa| assert_close(got, &want, 1e-5, isa));
    };
    run(add, want(|x, y| x + y));
    run(mul, want(|x, y| x * y));
    run(|isa, pool, x, y| add_scaled(isa, pool, x, 0.3, y), want(|x, y| x + 0.3 * y));
    run(|isa, pool, x, y| add_bias(isa, pool, x, &y[..7143]), {
        x.iter().enumerate().map(|(i, x)| x + y[i % 7143]).collect()
    });
    run(|isa, pool, x, _| scale(isa, pool, x, 1.7), want(|x, _| x * 1.7));
    run(|isa, pool, x, _| softcap(isa, pool, x, 1.5), want(|x, _| 1.5 * (x / 1.5).tanh()));
}

#[test]
fn rope_matches_the_reference() {
    let shapes = [
        (1, 1, 2, 0, 2),
        (3, 4, 16, 0, 16),
        (2, 3, 24, 8, 16),
        (700, 2, 64, 0, 48),
        (2, 2, 10, 4, 6),
    ];
    for (n, n_heads, head_dim, offset, rotary_dim) in shapes {
        for style in [RopeStyle::Halves, RopeStyle::Interleaved] {
            let shape = Rope { n_heads, head_dim, offset, rotary_dim, style };
            let mut numbers = Numbers::new(5);
            let x = numbers.normal(n * n_heads * head_dim);
            let angles = numbers.normal(n * rotary_dim / 2);
            let cos: Vec<_> = angles.iter().map(|a| a.cos()).collect();
            let sin: Vec<_> = angles.iter().map(|a| a.sin()).collect();
            let mut want = x.clone();
            reference::rope(&shape, &cos, &sin, &mut want);
            let run = |isa, pool: &Pool| {
                let mut x = x.clone();
                rope(isa, pool, &shape, &cos, &sin, &mut x);
                x
            };
            on_each(run, |got, isa| assert_close(got, &want, 1e-6, &format!("{shape:?} {isa}")));
        }
    }
}

#[test]
fn every_half_converts_as_the_half_crate_does() {
    let halves: Vec<_> = (0..=u16::MAX).map(f16::from_bits).collect();
    let brains: Vec<_> = (0..=u16::MAX).map(bf16::from_bits).collect();
    for isa in Isa::available() {
        let mut wide = vec![0.0; halves.len()];
        f16_to_f32(isa, &halves, &mut wide);
        let mut back = vec![f16::ZERO; halves.len()];
        f32_to_f16(isa, &wide, &mut back);
        for ((half, wide), back) in halves.iter().zip(&wide).zip(&back) {
            let same = half.to_f32().to_bits() == wide.to_bits() && half == back;
            assert!(
                same || (half.is_nan() && wide.is_nan() && back.is_nan()),
                "{isa:?} {half:?} {wide}"
            );
        }
        bf16_to_f32(isa, &brains, &mut wide);
        let mut back = vec![bf16::ZERO; brains.len()];
        f32_to_bf16(isa, &wide, &mut back);
        for ((brain, wide), back) in brains.iter().zip(&wide).zip(&back) {
            let same = brain.to_f32().to_bits() == wide.to_bits() && brain == back;
            assert!(
                same || (brain.is_nan() && wide.is_nan() && back.is_nan()),
                "{isa:?} {brain:?}"
            );
        }
    }
}

#[test]
fn rounding_to_bfloat16_is_to_the_nearest_even() {
    let mut numbers = Numbers::new(7);
    let mut x: Vec<f32> = (0..100_003).map(|_| f32::from_bits(numbers.bits() as u32)).collect();
    // Ties, the largest numbers, and a NaN all of whose upper bits would be lost.
    let bits = [0x3f80_8000, 0x3f81_8000, 0x7f7f_8000, 0x7f7f_7fff, 0x7f80_0001, 0xff80_0001, 1];
    x.extend(bits.map(f32::from_bits));
    for isa in Isa::available() {
        let mut got = vec![bf16::ZERO; x.len()];
        f32_to_bf16(isa, &x, &mut got);
        for (x, got) in x.iter().zip(&got) {
            assert_eq!(got.to_bits(), bf16::from_f32(*x).to_bits(), "{isa:?} {:#x}", x.to_bits());
        }
    }
}

#[test]
fn rounding_to_half_is_to_the_nearest_even() {
    let mut numbers = Numbers::new(6);
    let mut x: Vec<f32> = (0..100_003).map(|_| f32::from_bits(numbers.bits() as u32)).collect();
    x.extend([
        65504.0,
        65519.9,
        65520.0,
        5.96e-8,
        2.98e-8,
        2.99e-8,
        1.0 + 1.0 / 2048.0,
        1.0 + 3.0 / 2048.0,
    ]);
    for isa in Isa::available() {
        let mut half = vec![f16::ZERO; x.len()];
        f32_to_f16(isa, &x, &mut half);
        for (x, half) in x.iter().zip(&half) {
            let want = f16::from_f32_const(*x);
            assert!(
                want.to_bits() == half.to_bits() || (x.is_nan() && half.is_nan()),
                "{isa:?} {x}: {half}"
            );
        }
    }
}
