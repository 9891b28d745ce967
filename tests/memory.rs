//! Loading never holds two copies of the weights: peak memory of the real program on checkpoints of some hundred megabytes.
//!
//! Writes 600 MB to the temporary folder: `cargo test --release --test memory -- --ignored --nocapture`.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/tiny.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod tiny;

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tiny::{Tensor, safetensors};

const HIDDEN: usize = 1024;
const INNER: usize = 4096;
const VOCAB: usize = 32_000;
const LAYERS: usize = 8;
/// What may come on top of the weights, their largest tensor and the cache: the program itself, its threads, its
/// buffers.
const BESIDES: u64 = 150_000_000;

fn config(fp8: bool) -> Value {
    let mut config = json!({
        "architectures": ["MistralForCausalLM"], "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 64, "hidden_act": "silu", "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    if fp8 {
        config["quantization_config"] = json!({ "quant_method": "fp8", "fmt": "e4m3" });
    }
    config
}

/// A matrix of small numbers in bf16, or in 8-bit floats with its scale.
fn matrix(name: &str, rows: usize, cols: usize, fp8: bool) -> Vec<Tensor> {
    let (name, shape, n) = (format!("{name}.weight"), vec![rows, cols], rows * cols);
    if !fp8 {
        // Numbers around 0.01 of either sign.
        let bits =
            |i: usize| 0x3c00 | (((i * 2_654_435_761) >> 7) & 0xff) as u16 | ((i as u16 & 1) << 15);
        let data = (0..n).flat_map(|i| bits(i).to_le_bytes()).collect();
        return vec![Tensor { name, dtype: "BF16", shape, data }];
    }
    let data = (0..n).map(|i| 0x30 | ((i * 7) & 0xf) as u8 | ((i as u8 & 1) << 7)).collect();
    let scale = Tensor::f32(&name.replace("weight", "weight_scale_inv"), &[1, 1], &[0.01]);
    vec![Tensor { name, dtype: "F8_E4M3", shape, data }, scale]
}

fn tensors(fp8: bool) -> Vec<Tensor> {
    let mut all = matrix("model.embed_tokens", VOCAB, HIDDEN, false);
    all.extend(matrix("lm_head", VOCAB, HIDDEN, false));
    let ones = vec![1.0; HIDDEN];
    all.push(Tensor::f32("model.norm.weight", &[HIDDEN], &ones));
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        for norm in ["input_layernorm.weight", "post_attention_layernorm.weight"] {
            all.push(Tensor::f32(&name(norm), &[HIDDEN], &ones));
        }
        for (part, rows, cols) in [
            ("self_attn.q_proj", 1024, HIDDEN),
            ("self_attn.k_proj", 256, HIDDEN),
            ("self_attn.v_proj", 256, HIDDEN),
            ("self_attn.o_proj", HIDDEN, 1024),
            ("mlp.gate_proj", INNER, HIDDEN),
            ("mlp.up_proj", INNER, HIDDEN),
            ("mlp.down_proj", HIDDEN, INNER),
        ] {
            all.extend(matrix(&name(part), rows, cols, fp8));
        }
    }
    all
}

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
    std::fs::write(folder.path().join("config.json"), config(fp8).to_string()).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), safetensors(tensors)).unwrap();
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
    let need = needs.iter().find(|need| need["format"] == format && need["context"] == 256);
    need.unwrap()["total"].as_u64().unwrap()
}

/// Peak memory of the program, and what it may be.
fn measure(fp8: bool) -> (u64, u64) {
    let tensors = tensors(fp8);
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
    let cache = (2 * 2 * LAYERS * 256 * 256) as u64;
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
        let folder = written(fp8, &tensors(fp8));
        let model = folder.path().to_string_lossy();
        for format in formats {
            let (said, seen) = (predicted(&model, format) as f64, peak(&model, format) as f64);
            eprintln!("fp8 {fp8}, {format}: {:.0} MB said, {:.0} MB seen", said / 1e6, seen / 1e6);
            assert!((said / seen - 1.0).abs() <= 0.1, "fp8 {fp8}, {format}: {said} and {seen}");
        }
    }
}
