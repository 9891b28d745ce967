//! Planted bugs: each is a small change to the PTX of a shipped kernel, and each must be caught, by a check of the
//! emulated device or by a wrong result. This is the test of the checker.

#[path = "common/attention.rs"]
mod attention;
mod common;
#[path = "common/edits.rs"]
mod edits;
#[path = "common/packed.rs"]
mod packed_weights;
#[path = "common/plant.rs"]
mod plant;

use attention::Setup;
use common::Gpu;
use edits::{halved, next_key_passes, nudged, nudged_field, replaced, unguarded_copies, without};
use plant::{Mutant, WRONG, all_are_caught};
use tramontane_kernels::cases::{AttentionCase, MatmulCase, Numbers, assert_close};
use tramontane_kernels::cuda::{self, Cached, Element, Input, Norm, Packed, Target};
use tramontane_kernels::reference;

const MUTANTS: &[Mutant] = &[
    Mutant {
        what: "prefill: no barrier between the copies' arrival and their use",
        kernel: "attend_prefill_f16_64",
        change: |p| without(p, "bar.sync", 0),
        probe: prefill,
        caught: "SharedRace",
    },
    Mutant {
        what: "prefill: no barrier before a buffer is filled again",
        kernel: "attend_prefill_f16_64",
        change: |p| without(p, "bar.sync", 1),
        probe: prefill,
        caught: "SharedRace",
    },
    Mutant {
        what: "prefill: waits for one group of copies too few",
        kernel: "attend_prefill_f16_64",
        change: |p| replaced(p, "wait_group 1", "wait_group 2", 0),
        probe: prefill,
        caught: "InFlight",
    },
    Mutant {
        what: "prefill: does not commit the first tile",
        kernel: "attend_prefill_f16_64",
        change: |p| without(p, "cp.async.commit_group", 0),
        probe: prefill,
        caught: "InFlight",
    },
    Mutant {
        what: "prefill: copies keys past the end of the sequence",
        kernel: "attend_prefill_f16_64",
        change: |p| unguarded_copies(p),
        probe: prefill,
        caught: "Uninitialised",
    },
    Mutant {
        what: "prefill: a query sees the key after its own",
        kernel: "attend_prefill_f16_64",
        change: |p| next_key_passes(p),
        probe: prefill,
        caught: WRONG,
    },
    Mutant {
        what: "prefill: the values are not transposed",
        kernel: "attend_prefill_f16_64",
        change: |p| p.replace(".x4.trans.", ".x4."),
        probe: prefill,
        caught: WRONG,
    },
    Mutant {
        what: "decode: no barrier after the queries are in shared memory",
        kernel: "attend_decode_f16_2",
        change: |p| without(p, "bar.sync", 0),
        probe: decode,
        caught: "SharedRace",
    },
    Mutant {
        what: "decode: no barrier between scores and softmax",
        kernel: "attend_decode_f16_2",
        change: |p| without(p, "bar.sync", 1),
        probe: decode,
        caught: "SharedRace",
    },
    Mutant {
        what: "decode: no barrier between softmax and values",
        kernel: "attend_decode_f16_2",
        change: |p| without(p, "bar.sync", 2),
        probe: decode,
        caught: "SharedRace",
    },
    Mutant {
        what: "decode: no barrier before the walkers are added up",
        kernel: "attend_decode_f16_2",
        change: |p| without(p, "bar.sync", 3),
        probe: decode,
        caught: "SharedRace",
    },
    Mutant {
        what: "decode: a barrier that half a warp skips",
        kernel: "attend_decode_f16_2",
        change: |p| halved(p, "bar.sync", 1),
        probe: decode,
        caught: "Barrier",
    },
    Mutant {
        what: "decode: a shuffle that half a warp skips",
        kernel: "attend_decode_f16_2",
        change: |p| halved(p, "shfl.sync", 8),
        probe: decode,
        caught: "Divergent",
    },
    Mutant {
        what: "decode: begins at the wrong chunk",
        kernel: "attend_decode_f16_2",
        change: |p| nudged(p, 2, 1),
        probe: decode,
        caught: WRONG,
    },
    Mutant {
        what: "merge: one chunk too few",
        kernel: "attend_merge",
        change: |p| nudged(p, 2, -1),
        probe: decode,
        caught: WRONG,
    },
    Mutant {
        what: "merge: one chunk too many",
        kernel: "attend_merge",
        change: |p| nudged(p, 2, 1),
        probe: decode,
        caught: "GlobalBounds",
    },
    Mutant {
        what: "gemm: no barrier between stages",
        kernel: "gemm_bf16",
        change: |p| without(p, "bar.sync", 0),
        probe: gemm_bf16,
        caught: "SharedRace",
    },
    Mutant {
        what: "gemm: waits for one stage too few",
        kernel: "gemm_bf16",
        change: |p| p.replace("wait_group 1", "wait_group 2"),
        probe: gemm_bf16,
        caught: "InFlight",
    },
    Mutant {
        what: "gemm: reads one token past the end",
        kernel: "gemm_bf16",
        change: |p| nudged(p, 3, 1),
        probe: gemm_bf16,
        caught: "GlobalBounds",
    },
    Mutant {
        what: "gemm: rows one element too long",
        kernel: "gemm_bf16",
        change: |p| nudged(p, 5, 1),
        probe: gemm_bf16,
        caught: "Misaligned",
    },
    Mutant {
        what: "gemm f32: no barrier before a tile is overwritten",
        kernel: "gemm_f32",
        change: |p| without(p, "bar.sync", 1),
        probe: gemm_f32,
        caught: "SharedRace",
    },
    Mutant {
        what: "gemm f32: one row past the end of the weights",
        kernel: "gemm_f32",
        change: |p| nudged(p, 4, 1),
        probe: gemm_f32,
        caught: "GlobalBounds",
    },
    Mutant {
        what: "gemv: one row past the end",
        kernel: "gemv_f16_1",
        change: |p| nudged_field(p, 16, 1),
        probe: gemv,
        caught: "GlobalBounds",
    },
    Mutant {
        what: "gemv: adds up the wrong lanes",
        kernel: "gemv_f16_1",
        change: |p| replaced(p, ", 16;", ", 8;", 0),
        probe: gemv,
        caught: WRONG,
    },
    Mutant {
        what: "packed gemv: no barrier before the warps' sums are added",
        kernel: "gemv_q8_1",
        change: |p| without(p, "bar.sync", 0),
        probe: gemv_q8,
        caught: "SharedRace",
    },
    Mutant {
        what: "packed gemv: one row past the end of the output",
        kernel: "gemv_q8_1",
        change: |p| nudged_field(p, 16, 1),
        probe: gemv_q8,
        caught: "GlobalBounds",
    },
    Mutant {
        what: "packed gemv: one column past the end of the input",
        kernel: "gemv_q8_1",
        change: |p| nudged(p, 2, 1),
        probe: gemv_q8,
        caught: "GlobalBounds",
    },
    Mutant {
        what: "packed gemv: the upper half of the 4-bit codes is taken for the lower",
        kernel: "gemv_q4_1",
        change: |p| p.replace(", 34952;", ", 0;"),
        probe: gemv_q4,
        caught: WRONG,
    },
    Mutant {
        what: "packed gemm: no barrier between stages",
        kernel: "gemm_q4",
        change: |p| without(p, "bar.sync", 0),
        probe: gemm_q4,
        caught: "SharedRace",
    },
    Mutant {
        what: "packed gemm: does not wait for the stage it reads",
        kernel: "gemm_q4",
        change: |p| p.replace("wait_group 0", "wait_group 1"),
        probe: gemm_q4,
        caught: "InFlight",
    },
    Mutant {
        what: "packed gemm: reads one token past the end",
        kernel: "gemm_q4",
        change: |p| nudged(p, 3, 1),
        probe: gemm_q4,
        caught: "GlobalBounds",
    },
    Mutant {
        what: "norm: no barrier before the sums are read",
        kernel: "norm_rows",
        change: |p| without(p, "bar.sync", 3),
        probe: norm,
        caught: "SharedRace",
    },
    Mutant {
        what: "norm: no barrier before the sums are used again",
        kernel: "norm_rows",
        change: |p| without(p, "bar.sync", 2),
        probe: norm,
        caught: "SharedRace",
    },
    Mutant {
        what: "norm: one element past the row",
        kernel: "norm_rows",
        change: |p| nudged(p, 5, 1),
        probe: norm,
        caught: "GlobalBounds",
    },
    Mutant {
        what: "top: no barrier between the steps of the sort",
        kernel: "top_k",
        change: |p| without(p, "bar.sync", 0),
        probe: top,
        caught: "SharedRace",
    },
    Mutant {
        what: "top: one value too many",
        kernel: "top_k",
        change: |p| nudged(p, 2, 1),
        probe: top,
        caught: "GlobalBounds",
    },
    Mutant {
        what: "add: no check of the bound",
        kernel: "add",
        change: |p| without(p, "@%p1 bra", 0),
        probe: add,
        caught: "GlobalBounds",
    },
    Mutant {
        what: "add: every block writes the same elements",
        kernel: "add",
        change: |p| p.replace("mov.u32 \t%r1, %ctaid.x;", "mov.u32 \t%r1, 0;"),
        probe: add,
        caught: "GlobalRace",
    },
];

fn attention(gpu: &Gpu<'_>, n: usize, start: usize, n_heads: usize) {
    let case = AttentionCase {
        n,
        start,
        n_heads,
        n_kv_heads: 1,
        k_dim: 64,
        v_dim: 64,
        window: None,
        softcap: None,
        alibi: false,
    };
    let setup = Setup::new(case, Cached::Float(Element::F16));
    let got = setup.try_run(gpu).unwrap_or_else(|e| panic!("{e}"));
    assert_close(&got, &setup.want, setup.tolerance(), "attention");
}

fn prefill(gpu: &Gpu<'_>) {
    // 200 keys: three whole tiles and one that ends early.
    attention(gpu, 100, 100, 1);
}

fn decode(gpu: &Gpu<'_>) {
    attention(gpu, 1, 300, 2);
}

fn matmul(gpu: &Gpu<'_>, element: Element, case: MatmulCase) {
    let mut numbers = Numbers::new(case.seed());
    let w = common::rounded(element, &numbers.normal(case.rows * case.cols));
    let x = common::rounded(element, &numbers.normal(case.n * case.cols));
    let mut want = vec![0.0; case.n * case.rows];
    reference::matmul(&w, case.rows, case.cols, &x, &mut want);
    let at = gpu.floats(&x);
    let rounded = gpu.empty(cuda::rounded_bytes(element, case.n, case.cols));
    if cuda::rounded_bytes(element, case.n, case.cols) > 0 {
        gpu.run(&[cuda::round(element, at, rounded, x.len())]);
    }
    let out = gpu.empty(4 * want.len());
    let w = gpu.elements(element, &w);
    let input = Input { x: at, rounded, n: case.n, cols: case.cols };
    gpu.run(&cuda::matmul(element, input, &[Target { w, out, rows: case.rows }]));
    assert_close(&gpu.read(out, want.len()), &want, case.tolerance(), "matmul");
}

fn gemm_bf16(gpu: &Gpu<'_>) {
    matmul(gpu, Element::Bf16, MatmulCase { n: 65, rows: 40, cols: 160 });
}

fn gemm_f32(gpu: &Gpu<'_>) {
    matmul(gpu, Element::F32, MatmulCase { n: 20, rows: 40, cols: 50 });
}

fn gemv(gpu: &Gpu<'_>) {
    matmul(gpu, Element::F16, MatmulCase { n: 1, rows: 39, cols: 320 });
}

fn packed(gpu: &Gpu<'_>, format: Packed, case: MatmulCase) {
    let (got, want, tolerance) = packed_weights::matmul_on(gpu, case, format);
    assert_close(&got, &want, tolerance, "packed");
}

fn gemv_q8(gpu: &Gpu<'_>) {
    packed(gpu, Packed::Q8, MatmulCase { n: 1, rows: 39, cols: 318 });
}

fn gemv_q4(gpu: &Gpu<'_>) {
    packed(gpu, Packed::Q4, MatmulCase { n: 1, rows: 39, cols: 320 });
}

fn gemm_q4(gpu: &Gpu<'_>) {
    packed(gpu, Packed::Q4, MatmulCase { n: 40, rows: 39, cols: 320 });
}

fn norm(gpu: &Gpu<'_>) {
    let mut numbers = Numbers::new(1);
    let (x, weight) = (numbers.normal(300), numbers.normal(300));
    let mut want = vec![0.0; 300];
    reference::layer_norm(&x, &weight, None, 1e-5, &mut want);
    let norm = Norm { weight: gpu.floats(&weight), bias: 0, width: 300, eps: 1e-5, centred: true };
    let out = gpu.empty(1200);
    gpu.run(&[cuda::norm(&norm, 0, gpu.floats(&x), out, 1)]);
    assert_close(&gpu.read(out, 300), &want, 2e-5, "norm");
}

fn top(gpu: &Gpu<'_>) {
    let values = Numbers::new(1).normal(700);
    let scratch = [(); 2].map(|()| gpu.empty(cuda::top_bytes(700, 10)));
    let (launches, side) = cuda::top(gpu.floats(&values), 700, 10, scratch);
    gpu.run(&launches);
    let mut sorted = values;
    sorted.sort_by(|a, b| b.total_cmp(a));
    assert_close(&gpu.read(scratch[side], 10), &sorted[..10], 0.0, "top");
}

fn add(gpu: &Gpu<'_>) {
    let values = Numbers::new(1).normal(1000);
    let x = gpu.floats(&values);
    gpu.run(&[cuda::add(gpu.floats(&values), x, 1000)]);
    let want: Vec<f32> = values.iter().map(|v| 2.0 * v).collect();
    assert_close(&gpu.read(x, 1000), &want, 0.0, "add");
}

#[test]
fn every_planted_bug_is_caught() {
    all_are_caught(MUTANTS);
    assert!(MUTANTS.len() >= 12);
}
