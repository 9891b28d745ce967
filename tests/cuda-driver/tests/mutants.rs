//! Planted bugs: each is a small change to the PTX of a shipped kernel, and each must be caught, by a check of the
//! emulated device or by a wrong result. This is the test of the checker.

#[path = "common/attention.rs"]
mod attention;
mod common;
#[path = "common/packed.rs"]
mod packed_weights;

use std::panic::{AssertUnwindSafe, catch_unwind};

use attention::Setup;
use common::Gpu;
use tramontane_kernels::cases::{AttentionCase, MatmulCase, Numbers, assert_close};
use tramontane_kernels::cuda::{self, Cached, Element, Matmul, Norm, Packed};
use tramontane_kernels::reference;

/// A planted bug.
struct Mutant {
    what: &'static str,
    kernel: &'static str,
    change: fn(&str) -> String,
    /// Runs the operation and panics where a check fails or the result is wrong.
    probe: fn(&Gpu<'_>),
    /// What the panic must say.
    caught: &'static str,
}

/// A wrong result, as `assert_close` says it.
const WRONG: &str = "expected";

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
        change: |p| nudged(p, 3, 1),
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
        change: |p| nudged(p, 3, 1),
        probe: gemv_q8,
        caught: "GlobalBounds",
    },
    Mutant {
        what: "packed gemv: one column past the end of the input",
        kernel: "gemv_q8_1",
        change: |p| nudged(p, 4, 1),
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

/// The text without the `n`-th line that holds `needle`.
fn without(ptx: &str, needle: &str, n: usize) -> String {
    edited(ptx, needle, n, |_| String::new())
}

fn replaced(ptx: &str, from: &str, to: &str, n: usize) -> String {
    edited(ptx, from, n, |line| line.replace(from, to))
}

/// The `n`-th line that holds `needle`, for every second lane only.
fn halved(ptx: &str, needle: &str, n: usize) -> String {
    let odd = "{ .reg .pred odd; .reg .b32 t; mov.u32 t, %tid.x; and.b32 t, t, 1; setp.eq.s32 odd, t, 0; @odd ";
    edited(ptx, needle, n, |line| format!("{odd}{line} }}"))
}

/// A parameter that is off by `by`: a bound that is one too large, say.
fn nudged(ptx: &str, param: usize, by: i32) -> String {
    edited(ptx, &format!("_param_{param}];"), 0, |line| {
        let register = line.split_whitespace().nth(1).expect("an operand").trim_end_matches(',');
        let bits = if register.starts_with("%rd") { 64 } else { 32 };
        format!("{line} add.s{bits} {register}, {register}, {by};")
    })
}

/// Copies that read also where they should fill up with zeros, from where the next row would be.
fn unguarded_copies(ptx: &str) -> String {
    let line = |line: &str| {
        if line.contains("selp.b32") && line.contains(", 16, 0, ") {
            let register = line.split_whitespace().nth(1).expect("an operand");
            return format!("mov.b32 {register} 16;");
        }
        let choice = line.contains("selp.b32") && line.contains(", 0, %p");
        if choice {
            let words: Vec<&str> = line.split_whitespace().collect();
            return format!("mov.b32 {} {};", words[1], words[2].trim_end_matches(','));
        }
        line.to_owned()
    };
    ptx.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Causal masks that let the next key pass: `query >= key` becomes `query + 1 >= key`.
fn next_key_passes(ptx: &str) -> String {
    // The mask of each score is a pair of comparisons; the first of a pair is the causal one.
    let (head, tail) = ptx.split_at(ptx.rfind("wait_group").expect("a wait"));
    let (tail, rest) = tail.split_at(tail.rfind("bar.sync").expect("a barrier"));
    // One comparison before them asks whether a mask is needed at all.
    let mut first = false;
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.first() != Some(&"setp.ge.u32") {
            return line.to_owned();
        }
        first = !first;
        if first {
            return line.to_owned();
        }
        let (query, key) = (words[2].trim_end_matches(','), words[3].trim_end_matches(';'));
        format!(
            "{{ .reg .b32 next; add.s32 next, {query}, 1; setp.ge.u32 {} next, {key}; }}",
            words[1]
        )
    };
    head.to_owned() + &tail.lines().map(line).collect::<Vec<_>>().join("\n") + rest
}

/// Changes the `n`-th line that holds `needle`.
fn edited(ptx: &str, needle: &str, n: usize, change: impl Fn(&str) -> String) -> String {
    let at = ptx.lines().enumerate().filter(|(_, l)| l.contains(needle)).nth(n);
    let at = at.unwrap_or_else(|| panic!("no {n}-th `{needle}`")).0;
    let line = |(i, l): (usize, &str)| if i == at { change(l) } else { l.to_owned() };
    ptx.lines().enumerate().map(line).collect::<Vec<_>>().join("\n")
}

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
    let m = Matmul { element, w, x: at, rounded, out, n: case.n, rows: case.rows, cols: case.cols };
    gpu.run(&cuda::matmul(&m));
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

/// What a panic said.
fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
}

#[test]
fn the_probes_pass_without_a_planted_bug() {
    for probe in [prefill, decode, gemm_bf16, gemm_f32, gemv, norm, top, add] {
        probe(&Gpu::new());
    }
}

#[test]
fn every_planted_bug_is_caught() {
    let mut missed = Vec::new();
    for mutant in MUTANTS {
        let edit = |name: &str, ptx: String| {
            if name != mutant.kernel {
                return ptx;
            }
            let changed = (mutant.change)(&ptx);
            assert_ne!(changed, ptx, "{}: the change changes nothing", mutant.what);
            changed
        };
        let run = || (mutant.probe)(&Gpu::edited(&edit));
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(()) => missed.push(format!("{}: not caught", mutant.what)),
            Err(panic) => {
                let text = message(&*panic);
                println!("{}: {text}", mutant.what);
                if !text.contains(mutant.caught) {
                    missed.push(format!("{}: caught as: {text}", mutant.what));
                }
            }
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
    assert!(MUTANTS.len() >= 12);
}
