//! Attention over the cache: one token at several depths against the read bandwidth, prompts against the f32
//! multiply-adds.
//!
//! `cargo bench -p tramontane-kernels --bench attention [-- PART OF A NAME ...]`

#![allow(clippy::print_stdout, reason = "a bench prints its results")]

mod common;

use std::sync::Arc;

use common::{Machine, report, time, wanted};
use tramontane_kernels::cases::Numbers;
use tramontane_kernels::cpu::attention::{
    Attention, BLOCK, KvBlock, KvFormat, KvShape, KvView, attend,
};
use tramontane_kernels::memory::Recycler;

/// Query heads, key/value heads and their width: CroissantLLM 1.3B, Mistral 7B, SmolLM2 135M, the 350M shape of
/// `benches/peers`.
const SHAPES: [(usize, usize, usize); 4] = [(16, 16, 128), (32, 8, 128), (9, 3, 64), (16, 4, 64)];

fn main() {
    let machine = Machine::measure();
    for (n_heads, n_kv_heads, dim) in SHAPES {
        for (n, depth) in [(1, 256), (1, 1024), (1, 4096), (512, 0), (512, 1536)] {
            for format in [KvFormat::F16, KvFormat::Q8] {
                attention(&machine, n_heads, n_kv_heads, dim, n, depth, format);
            }
        }
    }
}

/// `n` tokens after `depth` others. Several layers' caches in turn, so that a single token finds none of them cached.
fn attention(
    machine: &Machine,
    n_heads: usize,
    n_kv_heads: usize,
    dim: usize,
    n: usize,
    depth: usize,
    format: KvFormat,
) {
    let name =
        format!("{format:?}: {n_heads} heads over {n_kv_heads} of {dim}: {n} tokens at {depth}");
    if !wanted(&name) {
        return;
    }
    let a = Attention {
        n_heads,
        n_kv_heads,
        k_dim: dim,
        v_dim: dim,
        scale: 1.0 / (dim as f32).sqrt(),
        window: None,
        softcap: None,
        alibi_slopes: None,
    };
    let shape = KvShape { n_kv_heads, k_dim: dim, v_dim: dim, format };
    let values = Numbers::new(1).normal(n_kv_heads * BLOCK * dim);
    let mut block = KvBlock::new(shape, &Recycler::new()).expect("memory");
    block.store(machine.isa, &machine.pool, 0, &values, &values);
    let blocks = (depth + n).div_ceil(BLOCK);
    let layers =
        if n == 1 { ((128 << 20) / (blocks * shape.block_bytes())).clamp(1, 400) } else { 1 };
    let views: Vec<_> =
        (0..layers * blocks).map(|_| Arc::new(block.try_clone().expect("memory"))).collect();
    let q = Numbers::new(2).normal(n * n_heads * dim);
    let mut out = vec![0.0; q.len()];
    let time = time(|| {
        for blocks in views.chunks(blocks) {
            let kv = KvView { first: 0, blocks };
            attend(machine.isa, &machine.pool, &a, &q, depth, &kv, &mut out);
        }
    });
    let seen: usize = (depth + 1..=depth + n).sum();
    if n == 1 {
        let bytes = (layers * (depth + 1) * shape.block_bytes() / BLOCK) as f64;
        report(&name, time, bytes, "GB/s", machine.bandwidth);
    } else {
        report(&name, time, (4 * seen * n_heads * dim) as f64, "GOP/s", machine.flops);
    }
}
