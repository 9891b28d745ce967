//! Loading never holds two copies of the weights: peak memory of the real program on checkpoints of some hundred megabytes.
//!
//! Writes 600 MB to the temporary folder: `cargo test --release --test memory -- --ignored --nocapture`.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/tiny.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod tiny;

#[path = "common/large.rs"]
mod large;

use std::process::{Command, Stdio};
use std::time::Duration;

use large::{CONTEXT, KV_DIM, LAYERS};
use serde_json::Value;
use tiny::Tensor;

/// What may come on top of the weights, their largest tensor and the cache: the program itself, its threads, its
/// buffers.
const BESIDES: u64 = 150_000_000;

/// The most memory that the program uses while it loads the model and writes some tokens, as the system counts it.
fn peak(model: &str, format: &str) -> u64 {
    let flags = ["--ids", "1,2,3", "-n", "200", "--ignore-eos", "-t", "2", "-q", "--device", "cpu"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_tramontane"));
    let mut child = command
        .args(["generate", "-m", model, "--format", format])
        .args(flags)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        peak = peak.max(1024 * kib.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success() && peak > 0);
    peak
}

/// A folder with the model.
fn written(fp8: bool, tensors: &[Tensor]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    large::write(folder.path(), fp8, tensors);
    folder
}

/// What `inspect` says that the model needs with weights in `format` and as many tokens as the context holds.
fn predicted(model: &str, format: &str) -> u64 {
    let output = Command::new(env!("CARGO_BIN_EXE_tramontane"))
        .args(["inspect", "-m", model, "--json", "--device", "cpu"])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let needs = report["memory"].as_array().unwrap();
    let need = needs.iter().find(|need| need["format"] == format && need["context"] == CONTEXT);
    need.unwrap()["total"].as_u64().unwrap()
}

/// Peak memory of the program, and what it may be.
fn measure(fp8: bool) -> (u64, u64) {
    let tensors = large::tensors(fp8);
    let bytes = |tensor: &Tensor| {
        // 8-bit floats are widened to bf16.
        tensor.data.len() as u64 * if tensor.dtype == "F8_E4M3" { 2 } else { 1 }
    };
    let weights: u64 = tensors.iter().map(bytes).sum();
    let largest = tensors.iter().map(bytes).max().unwrap();
    let folder = written(fp8, &tensors);
    drop(tensors);
    let peak = peak(&folder.path().to_string_lossy(), "auto");
    // Keys and values of all layers for as many tokens as the context holds.
    let cache = (2 * 2 * LAYERS * KV_DIM * CONTEXT) as u64;
    (peak, weights + largest + cache + BESIDES)
}

#[test]
#[ignore = "writes 600 MB"]
fn loading_holds_the_weights_once() {
    for fp8 in [false, true] {
        let (peak, limit) = measure(fp8);
        let mb = |bytes: u64| bytes / 1_000_000;
        eprintln!("fp8 {fp8}: peak {} MB, limit {} MB", mb(peak), mb(limit));
        assert!(
            peak <= limit,
            "fp8 {fp8}: peak {} MB, expected at most {} MB",
            mb(peak),
            mb(limit)
        );
    }
}

#[test]
#[ignore = "writes 600 MB"]
fn inspect_tells_what_is_needed_within_a_tenth() {
    for (fp8, formats) in [(false, &["f32", "bf16", "q8", "q4"][..]), (true, &["bf16", "q8"])] {
        let folder = written(fp8, &large::tensors(fp8));
        let model = folder.path().to_string_lossy();
        for format in formats {
            let (said, seen) = (predicted(&model, format) as f64, peak(&model, format) as f64);
            eprintln!("fp8 {fp8}, {format}: {:.0} MB said, {:.0} MB seen", said / 1e6, seen / 1e6);
            assert!((said / seen - 1.0).abs() <= 0.1, "fp8 {fp8}, {format}: {said} and {seen}");
        }
    }
}
