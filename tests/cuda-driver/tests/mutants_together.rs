//! Planted bugs in kernels that do several things in one launch; see `mutants.rs`.

mod common;
#[path = "common/edits.rs"]
#[expect(dead_code, reason = "each test uses its part")]
mod edits;
#[path = "common/packed.rs"]
mod packed;
#[path = "common/plant.rs"]
mod plant;

use common::Gpu;
use edits::{nudged, nudged_field, replaced, without};
use packed::Layout;
use plant::{Mutant, WRONG, all_are_caught};
use tramontane_kernels::cases::{Numbers, assert_close};
use tramontane_kernels::cpu::elementwise::{Rope, RopeStyle};
use tramontane_kernels::cuda::{self, Element, Input, Norm, Packed, Target};
use tramontane_kernels::reference;

#[test]
fn bugs_in_products_of_several_matrices_are_caught() {
    all_are_caught(&[
        Mutant {
            what: "the third product goes where the second does",
            kernel: "gemv_f16_1",
            change: |p| replaced(p, "_param_0+56]", "_param_0+32]", 0),
            probe: dense,
            caught: "Race",
        },
        Mutant {
            what: "the second matrix has the rows of the first",
            kernel: "gemv_f16_1",
            change: |p| replaced(p, "_param_0+40]", "_param_0+16]", 0),
            probe: dense,
            caught: "GlobalBounds",
        },
        Mutant {
            what: "the third matrix is the first",
            kernel: "gemv_q4_1",
            change: |p| replaced(p, "_param_0+48]", "_param_0]", 0),
            probe: q4,
            caught: WRONG,
        },
        Mutant {
            what: "one panel too many of the second matrix",
            kernel: "gemv_q4_1",
            change: |p| nudged_field(p, 40, 16),
            probe: q4,
            caught: "GlobalBounds",
        },
    ]);
}

#[test]
fn bugs_in_the_norm_of_a_sum_are_caught() {
    all_are_caught(&[
        Mutant {
            what: "the sum is not written back",
            kernel: "norm_rows",
            change: |p| without(p, "st.global", 0),
            probe: norm,
            caught: WRONG,
        },
        Mutant {
            what: "the sum is only written back",
            kernel: "norm_rows",
            change: |p| without(p, "add.f32", 0),
            probe: norm,
            caught: WRONG,
        },
    ]);
}

#[test]
fn bugs_in_rotations_of_queries_and_keys_are_caught() {
    all_are_caught(&[
        Mutant {
            what: "one key head too many",
            kernel: "rotate",
            change: |p| nudged(p, 5, 1),
            probe: rotate,
            caught: "GlobalBounds",
        },
        Mutant {
            what: "one query head too few",
            kernel: "rotate",
            change: |p| nudged(p, 4, -1),
            probe: rotate,
            caught: WRONG,
        },
    ]);
}

fn dense(gpu: &Gpu<'_>) {
    products(gpu, Layout::Dense(Element::F16));
}

fn q4(gpu: &Gpu<'_>) {
    products(gpu, Layout::Packed(Packed::Q4));
}

/// One token through three matrices in one launch, against each alone in an f32 product of the reference.
fn products(gpu: &Gpu<'_>, layout: Layout) {
    let (cols, mut numbers) = (128, Numbers::new(3));
    let x = numbers.normal(cols);
    let input = Input { x: gpu.floats(&x), rounded: 0, n: 1, cols };
    let (mut targets, mut wants) = (Vec::new(), Vec::new());
    for rows in [48, 16, 32] {
        let w = numbers.normal(rows * cols);
        let kept = match layout {
            Layout::Dense(element) => common::rounded(element, &w),
            Layout::Packed(format) => packed::pack_as(format, &w, rows, cols).1,
        };
        let mut want = vec![0.0; rows];
        reference::matmul(&kept, rows, cols, &x, &mut want);
        wants.push(want);
        let w = layout.matrix(gpu, &w, rows, cols);
        targets.push(Target { w, out: gpu.empty(4 * rows), rows });
    }
    gpu.run(&layout.matmul(input, &targets));
    for (target, want) in targets.iter().zip(&wants) {
        assert_close(&gpu.read(target.out, want.len()), want, 1e-4, "products");
    }
}

fn norm(gpu: &Gpu<'_>) {
    let mut numbers = Numbers::new(1);
    let [x, y, weight] = [(); 3].map(|()| numbers.normal(300));
    let sum: Vec<f32> = x.iter().zip(&y).map(|(a, b)| a + b).collect();
    let mut want = vec![0.0; 300];
    reference::rms_norm(&sum, &weight, 1e-5, &mut want);
    let norm = Norm { weight: gpu.floats(&weight), bias: 0, width: 300, eps: 1e-5, centred: false };
    let (at, out) = (gpu.floats(&x), gpu.empty(1200));
    gpu.run(&[cuda::norm(&norm, gpu.floats(&y), at, out, 1)]);
    assert_close(&gpu.read(at, 300), &sum, 0.0, "sum");
    assert_close(&gpu.read(out, 300), &want, 2e-5, "norm");
}

fn rotate(gpu: &Gpu<'_>) {
    let mut numbers = Numbers::new(2);
    let style = RopeStyle::Halves;
    let rope = Rope { n_heads: 4, head_dim: 16, offset: 0, rotary_dim: 16, style };
    let (cos, sin) = (numbers.normal(8), numbers.normal(8));
    let (mut q, mut k) = (numbers.normal(64), numbers.normal(32));
    let (q_at, k_at) = (gpu.floats(&q), gpu.floats(&k));
    let angles = [gpu.floats(&cos), gpu.floats(&sin)];
    gpu.run(&[cuda::rotate_both(&rope, angles, q_at, k_at, 2, 1)]);
    reference::rope(&rope, &cos, &sin, &mut q);
    reference::rope(&Rope { n_heads: 2, ..rope }, &cos, &sin, &mut k);
    assert_close(&gpu.read(q_at, 64), &q, 1e-6, "queries");
    assert_close(&gpu.read(k_at, 32), &k, 1e-6, "keys");
}
