//! The whole model, 187 million parameters: prompts against the f32 multiply-adds of the machine, decoded tokens against
//! its read bandwidth, in each format and at two depths.
//!
//! `cargo bench --bench generate [-- PART OF A NAME …]`; writes 0.4 GB to the temporary folder.

#![allow(clippy::print_stdout, reason = "a bench prints its results")]

mod common;
#[path = "../tests/common/large.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod large;
#[path = "../tests/common/tiny.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod tiny;

use common::{Machine, report, time, wanted};
use tramontane::error::Result;
use tramontane::{DeviceChoice, Format, KvFormat, LoadOptions, Model};

/// Tokens of a prompt.
const PROMPT: usize = 256;

/// Tokens that are decoded in one go.
const DECODE: usize = 8;

fn main() -> Result<()> {
    let machine = Machine::measure();
    let folder = tempfile::tempdir().expect("a temporary folder");
    large::write(folder.path(), false, &large::tensors(false));
    for (format, kv) in [
        (Format::F32, KvFormat::F32),
        (Format::Bf16, KvFormat::F16),
        (Format::Q8, KvFormat::F16),
        (Format::Q4, KvFormat::F16),
        (Format::Q4, KvFormat::Q8),
    ] {
        let name = format!("{format} weights, {kv} cache");
        if !["prompt", "decode"].into_iter().any(|what| wanted(&format!("{what} {name}"))) {
            continue;
        }
        let options = LoadOptions {
            format,
            kv,
            device: DeviceChoice::Cpu,
            threads: Some(machine.pool.n_threads()),
            ..LoadOptions::default()
        };
        let model = Model::load(&folder.path().to_string_lossy(), &options)?;
        prompt(&machine, &model, &name)?;
        for depth in [0, large::CONTEXT - DECODE] {
            decode(&machine, &model, &name, depth)?;
        }
    }
    Ok(())
}

fn ids(n: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 7919 % large::VOCAB) as u32).collect()
}

fn prompt(machine: &Machine, model: &Model, name: &str) -> Result<()> {
    let name = format!("prompt {name}, {PROMPT} tokens");
    if !wanted(&name) {
        return Ok(());
    }
    let (empty, ids, mut logits) = (model.cache()?, ids(PROMPT), Vec::new());
    model.advance(&ids, &mut empty.fork(), &mut logits)?;
    let time = time(|| drop(model.advance(&ids, &mut empty.fork(), &mut logits)));
    // Two operations for each parameter, of which embedding and head do not meet every token; and attention.
    let parameters = model.info().parameters as usize - 2 * large::VOCAB * large::HIDDEN;
    let attention = 2 * large::LAYERS * large::HIDDEN * PROMPT;
    let operations = (PROMPT * (2 * parameters + attention)) as f64;
    report(&name, time, operations, "GOP/s", machine.flops);
    println!("{:44} {:9.1} tokens/s", "", PROMPT as f64 / time.median);
    Ok(())
}

fn decode(machine: &Machine, model: &Model, name: &str, depth: usize) -> Result<()> {
    let name = format!("decode {name}, at {depth}");
    if !wanted(&name) {
        return Ok(());
    }
    let (mut full, mut logits) = (model.cache()?, Vec::new());
    if depth > 0 {
        model.advance(&ids(depth), &mut full, &mut logits)?;
    }
    let time = time(|| {
        let mut cache = full.fork();
        for id in ids(DECODE) {
            drop(model.advance(&[id], &mut cache, &mut logits));
        }
    });
    let bytes = model.info().weight_bytes_per_token + model.cache_bytes_per_token(depth);
    report(&name, time, (DECODE as u64 * bytes) as f64, "GB/s", machine.bandwidth);
    println!("{:44} {:9.1} tokens/s", "", DECODE as f64 / time.median);
    Ok(())
}
