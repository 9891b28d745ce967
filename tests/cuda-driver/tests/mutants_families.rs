//! Planted bugs in the kernels of experts, Mamba-2, latent attention and caches in 8 bits; see `mutants.rs`.

#[path = "common/attention.rs"]
mod attention;
mod common;
#[path = "common/edits.rs"]
#[expect(dead_code, reason = "each test uses its part")]
mod edits;
#[path = "common/experts.rs"]
mod mixtures;
#[path = "common/packed.rs"]
mod packed;
#[path = "common/plant.rs"]
mod plant;
#[path = "common/recurrence.rs"]
mod recurrence;

use attention::Setup;
use common::Gpu;
use edits::{nudged, replaced, unguarded_copies, without};
use mixtures::Mixture;
use plant::{Mutant, WRONG, all_are_caught};
use tramontane_kernels::cases::{
    ATTENTION, AttentionCase, EXPERTS, ExpertsCase, MAMBA, Numbers, assert_close,
};
use tramontane_kernels::cuda::{self, Cached, Element, Packed, Weights};

#[test]
fn bugs_in_the_kernels_of_experts_are_caught() {
    all_are_caught(&[
        Mutant {
            what: "route: forgets the best of a group",
            kernel: "route",
            change: |p| replaced(p, "max.u64", "min.u64", 1),
            probe: choice_of_groups,
            caught: WRONG,
        },
        Mutant {
            what: "route: every block takes the first token",
            kernel: "route",
            change: |p| p.replace("%ctaid.x", "%warpid"),
            probe: choice,
            caught: "GlobalRace",
        },
        Mutant {
            what: "sort_pairs: one pair too many",
            kernel: "sort_pairs",
            change: |p| nudged(p, 1, 1),
            probe: products_f32,
            caught: "GlobalBounds",
        },
        Mutant {
            what: "sort_pairs: one token too far",
            kernel: "sort_pairs",
            change: |p| nudged(p, 2, -1),
            probe: products_f32,
            caught: "Uninitialised",
        },
        Mutant {
            what: "experts gemm: takes another matrix of the expert",
            kernel: "experts_gemm_f32",
            change: |p| everywhere(p, 2, 1),
            probe: products_f32,
            caught: WRONG,
        },
        Mutant {
            what: "experts gemm: rows one element too long",
            kernel: "experts_gemm_q8",
            change: |p| nudged(p, 8, 1),
            probe: products_q8,
            caught: "GlobalBounds",
        },
        Mutant {
            what: "experts gemm: no barrier between stages",
            kernel: "experts_gemm_q8",
            change: |p| without(p, "bar.sync", 0),
            probe: products_q8,
            caught: "SharedRace",
        },
        Mutant {
            what: "experts gemv: a token too far",
            kernel: "experts_gemv_q4",
            change: |p| nudged(p, 4, 1),
            probe: few_q4,
            caught: WRONG,
        },
        Mutant {
            what: "combine: one expert too many",
            kernel: "combine",
            change: |p| nudged(p, 4, 1),
            probe: few_q4,
            caught: "GlobalBounds",
        },
    ]);
}

#[test]
fn bugs_in_the_kernels_of_recurrent_layers_are_caught() {
    all_are_caught(&[
        Mutant {
            what: "convolution: one token past the end",
            kernel: "mamba_conv",
            change: |p| everywhere(p, 5, 1),
            probe: mamba,
            caught: "GlobalBounds",
        },
        Mutant {
            what: "scan: one token past the end",
            kernel: "mamba_scan",
            change: |p| everywhere(p, 7, 1),
            probe: mamba,
            caught: "GlobalBounds",
        },
        Mutant {
            what: "scan: adds up the wrong lanes",
            kernel: "mamba_scan",
            change: |p| replaced(p, ", 16;", ", 8;", 0),
            probe: mamba,
            caught: WRONG,
        },
        Mutant {
            what: "norm: no barrier before the sums are read",
            kernel: "mamba_norm",
            change: |p| without(p, "bar.sync", 1),
            probe: mamba,
            caught: "SharedRace",
        },
    ]);
}

#[test]
fn bugs_in_attention_of_two_widths_and_of_8_bits_are_caught() {
    all_are_caught(&[
        Mutant {
            what: "latent prefill: copies keys past the end of the sequence",
            kernel: "attend_prefill_f16_192_128",
            change: |p| unguarded_copies(p),
            probe: latent,
            caught: "Uninitialised",
        },
        Mutant {
            what: "blocks: one element past the row",
            kernel: "copy_blocks",
            change: |p| nudged(p, 2, 1),
            probe: blocks,
            caught: "GlobalRace",
        },
        Mutant {
            what: "8-bit prefill: does not wait for the tile",
            kernel: "attend_prefill_q8_64",
            change: |p| p.replace("wait_group 0", "wait_group 1"),
            probe: prefill_q8,
            caught: "InFlight",
        },
        Mutant {
            what: "8-bit prefill: no barrier before a tile is widened",
            kernel: "attend_prefill_q8_64",
            change: |p| without(p, "bar.sync", 0),
            probe: prefill_q8,
            caught: "SharedRace",
        },
        Mutant {
            what: "8-bit prefill: no barrier between widening a tile and its use",
            kernel: "attend_prefill_q8_64",
            change: |p| without(p, "bar.sync", 1),
            probe: prefill_q8,
            caught: "SharedRace",
        },
        Mutant {
            what: "8-bit decode: adds the scale of a key",
            kernel: "attend_decode_q8_2",
            change: |p| replaced(p, "mul.f32", "add.f32", 10),
            probe: decode_q8,
            caught: WRONG,
        },
        Mutant {
            what: "8-bit store: one element past the value",
            kernel: "store_q8",
            change: |p| nudged(p, 5, 1),
            probe: prefill_q8,
            caught: "GlobalBounds",
        },
    ]);
}

/// A 32-bit parameter that is off by `by` wherever it is read.
fn everywhere(ptx: &str, param: usize, by: i32) -> String {
    let line = |line: &str| {
        if !line.contains(&format!("_param_{param}];")) {
            return line.to_owned();
        }
        let register = line.split_whitespace().nth(1).expect("an operand").trim_end_matches(',');
        format!("{line} add.s32 {register}, {register}, {by};")
    };
    ptx.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn choice(gpu: &Gpu<'_>) {
    chosen(gpu, EXPERTS[5]);
}

fn choice_of_groups(gpu: &Gpu<'_>) {
    chosen(gpu, EXPERTS[7]);
}

fn chosen(gpu: &Gpu<'_>, case: ExpertsCase) {
    let mixture = Mixture::new(case);
    let pairs = mixture.choose(gpu);
    assert_close(&gpu.read(pairs.weights, pairs.len()), &mixture.weights, 2e-6, "weights");
}

fn products_f32(gpu: &Gpu<'_>) {
    Mixture::new(EXPERTS[3]).products(gpu, Weights::Dense(Element::F32));
}

fn products_q8(gpu: &Gpu<'_>) {
    Mixture::new(EXPERTS[4]).products(gpu, Weights::Packed(Packed::Q8));
}

fn few_q4(gpu: &Gpu<'_>) {
    Mixture::new(EXPERTS[1]).products(gpu, Weights::Packed(Packed::Q4));
}

fn mamba(gpu: &Gpu<'_>) {
    recurrence::check(gpu, &MAMBA[2]);
}

fn attend(gpu: &Gpu<'_>, case: AttentionCase, element: Cached) {
    let setup = Setup::new(case, element);
    let got = setup.try_run(gpu).unwrap_or_else(|e| panic!("{e}"));
    assert_close(&got, &setup.want, setup.tolerance(), "attention");
}

fn latent(gpu: &Gpu<'_>) {
    let case = AttentionCase { n: 12, start: 70, n_heads: 1, n_kv_heads: 1, ..ATTENTION[3] };
    attend(gpu, AttentionCase { k_dim: 192, v_dim: 128, ..case }, Cached::Float(Element::F16));
}

fn prefill_q8(gpu: &Gpu<'_>) {
    attend(gpu, AttentionCase { n: 70, start: 70, ..ATTENTION[3] }, Cached::Q8);
}

fn decode_q8(gpu: &Gpu<'_>) {
    attend(gpu, AttentionCase { n_heads: 4, ..ATTENTION[7] }, Cached::Q8);
}

fn blocks(gpu: &Gpu<'_>) {
    let x = Numbers::new(1).normal(3 * 40);
    let out = gpu.empty(4 * 3 * 24);
    gpu.run(&[cuda::copy_blocks(gpu.floats(&x), out, [24, 3, 1], (16, 40), (0, 24))]);
    let want: Vec<f32> = x.chunks(40).flat_map(|row| row[16..].to_vec()).collect();
    assert_close(&gpu.read(out, want.len()), &want, 0.0, "blocks");
}
