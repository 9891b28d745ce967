//! Our side of the comparison with other engines: answers the questions of `run.py`, as `worker.py` does for the others.
//!
//! `cargo bench --bench peer -- FOLDER FORMAT KV THREADS`: loads the model and says how long that took, then reads from
//! stdin a test in each line, `{"prompt": 512, "generate": 0, "depth": 0}`, and answers with its tokens per second; or
//! `{"ceilings": true}`, and answers with what the machine can do. All answers are lines of JSON.

#![allow(clippy::print_stdout, reason = "answers go there")]

#[path = "../common/mod.rs"]
mod common;

use std::fmt::Display;
use std::io::{BufRead, stdin};
use std::time::Instant;

use common::Machine;
use serde_json::{Value, json};
use tramontane::error::{Error, Result};
use tramontane::{DeviceChoice, Format, KvCache, KvFormat, LoadOptions, Model};

fn main() -> Result<()> {
    // `cargo bench` adds a flag of its own.
    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let [folder, format, kv, threads] = &words[..] else {
        println!("nothing to do: this is started by benches/peers/run.py");
        return Ok(());
    };
    let threads = threads.parse().map_err(|_| Error::bad_input("THREADS is no number"))?;
    let options = LoadOptions {
        format: named([Format::F32, Format::F16, Format::Bf16, Format::Q8, Format::Q4], format)?,
        kv: named([KvFormat::F32, KvFormat::F16, KvFormat::Q8], kv)?,
        threads: Some(threads),
        device: DeviceChoice::Cpu,
        ..LoadOptions::default()
    };
    let model = Model::load(folder, &options)?;
    println!("{}", json!({ "load_s": model.load_time().as_secs_f64() }));
    let (mut cache, mut logits) = (model.cache()?, Vec::new());
    model.advance(&ids(32), &mut cache, &mut logits)?;
    model.advance(&[5], &mut cache, &mut logits)?;
    cache.truncate(0);
    for line in stdin().lock().lines() {
        let line = line.map_err(|e| Error::bad_input(e.to_string()))?;
        let test: Value =
            serde_json::from_str(&line).map_err(|e| Error::bad_input(e.to_string()))?;
        let number = |key: &str| test[key].as_u64().unwrap_or(0) as usize;
        let answer = if test["ceilings"] == true {
            ceilings(threads)
        } else {
            measure(&model, &mut cache, number("prompt"), number("generate"), number("depth"))?
        };
        println!("{answer}");
    }
    Ok(())
}

/// The one of `all` that is called so.
fn named<T: Display, const N: usize>(all: [T; N], name: &str) -> Result<T> {
    let unknown = || Error::bad_input(format!("`{name}` is no format of ours"));
    all.into_iter().find(|one| one.to_string() == name).ok_or_else(unknown)
}

/// Bytes per second that are read from memory, and f32 operations per second.
fn ceilings(threads: usize) -> Value {
    let machine = Machine::with_threads(threads);
    json!({ "bandwidth": machine.bandwidth, "flops": machine.flops, "isa": format!("{:?}", machine.isa) })
}

/// Ids that are words in any vocabulary: those that the other engines get.
fn ids(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 3 + 7919 * i % 29000).collect()
}

/// The speed of a prompt, or of tokens one at a time, after `depth` others. Those stay in the cache for the next test.
fn measure(
    model: &Model,
    cache: &mut KvCache,
    prompt: usize,
    generate: usize,
    depth: usize,
) -> Result<Value> {
    let mut logits = Vec::new();
    if !cache.truncate(depth) || cache.len() != depth {
        *cache = model.cache()?;
        model.advance(&ids(depth), cache, &mut logits)?;
    }
    let begin = Instant::now();
    if prompt > 0 {
        model.advance(&ids(prompt), cache, &mut logits)?;
    } else {
        for id in ids(generate) {
            model.advance(&[id], cache, &mut logits)?;
        }
    }
    let speed = prompt.max(generate) as f64 / begin.elapsed().as_secs_f64();
    let bytes =
        model.info().weight_bytes_per_token + model.cache_bytes_per_token(depth + generate / 2);
    // The embedding and the head do not meet every token of a prompt.
    let a = model.architecture();
    let parameters = model.info().parameters as usize - 2 * a.vocab * a.hidden;
    Ok(json!({ "t_s": speed, "bytes_per_token": bytes, "parameters_per_token": parameters }))
}
