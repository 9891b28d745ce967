//! Sampling from the largest logits that the GPU finds: the same ids as from all of them, and few bytes read back.

use std::path::Path;
use std::process::Output;

use super::common::{Expected, folder};
use super::graphs::{of_tokens, traced};
use super::variant::Tiny;
use super::{is_real, json, list, run, stderr};

/// Adding nothing to a logit makes the sampler look at all of them.
const ALL: [&str; 2] = ["--logit-bias", "0=0"];

/// The ids of eight tokens of the built-in model, and the bytes that were read back for each but the first.
fn sample(sampling: &[&str]) -> (serde_json::Value, Vec<usize>) {
    let args = ["generate", "La mer", "-n", "8", "--ignore-eos", "--json", "--device", "cuda"];
    let (trace, ids) = traced("on", &[&args[..], sampling].concat());
    let read = |token: &&[String]| {
        let bytes = token.last().and_then(|call| call.strip_prefix("read ")).unwrap();
        bytes.parse().unwrap()
    };
    (ids, of_tokens(&trace, 7).iter().map(read).collect())
}

#[test]
fn few_bytes_are_read_back_and_the_ids_are_those_of_all_logits() {
    if is_real() {
        return;
    }
    let cases: [(&[&str], usize); 5] = [
        (&["--temp", "0"], 1),
        (&["--temp", "0.9", "--top-k", "20", "--seed", "7"], 20),
        (&["--temp", "1.3", "--top-k", "50", "--top-p", "0.8", "--seed", "8"], 50),
        (&["--temp", "1", "--top-k", "255", "--min-p", "0.01", "--seed", "9"], 255),
        (&["--temp", "1", "--top-k", "1", "--seed", "9"], 1),
    ];
    for (sampling, k) in cases {
        let (ids, bytes) = sample(sampling);
        let (of_all, all_bytes) = sample(&[sampling, &ALL].concat());
        assert_eq!(ids, of_all, "{sampling:?}");
        // Values and ids of one more than are needed, against a float for each of 4096 tokens.
        assert_eq!((bytes, all_bytes), (vec![8 * (k + 1); 7], vec![4 * 4096; 7]), "{sampling:?}");
    }
}

#[test]
fn all_logits_are_read_where_all_count() {
    if is_real() {
        return;
    }
    for sampling in [
        &["--temp", "1", "--top-p", "0.9", "--seed", "7"][..],
        &["--temp", "0", "--repeat-penalty", "1.1"],
        &["--temp", "1", "--top-k", "256", "--seed", "7"],
    ] {
        assert_eq!(sample(sampling).1, [4 * 4096; 7], "{sampling:?}");
    }
}

/// A tiny model with other numbers in its head: `change(row, value)` gives what stands in place of `value`.
fn with_head(variant: &str, change: impl Fn(usize, f32) -> f32) -> std::path::PathBuf {
    let mut tiny = Tiny::of("mistral_v03");
    for tensor in tiny.tensors.iter_mut().filter(|tensor| tensor.name == "lm_head.weight") {
        let (old, cols) = (tensor.values(), tensor.shape[1]);
        // Every two rows are the same, so every logit is there twice.
        tensor.fill(|i| change(i / cols, old[i / cols / 2 * 2 * cols + i % cols]));
    }
    tiny.write(variant)
}

fn generate(model: &Path, sampling: &[&str], device: &str) -> Output {
    let ids = list(&Expected::of("mistral_v03").ids("input_ids_0"));
    let args = ["generate", "-m", model.to_str().unwrap(), "--ids", &ids, "-n", "6", "--format"];
    let rest = ["f32", "--ignore-eos", "--json", "--device", device];
    let (output, log) = run("on", &[&args[..], &rest, sampling].concat());
    assert_eq!(log, "");
    output
}

/// The ids that come of it on the GPU, which must be those of the CPU.
fn ids(model: &Path, sampling: &[&str]) -> serde_json::Value {
    let [gpu, cpu] =
        ["cuda", "cpu"].map(|device| json(&generate(model, sampling, device))["token_ids"].clone());
    assert_eq!(gpu, cpu, "{sampling:?}");
    gpu
}

#[test]
fn tokens_that_tie_are_chosen_among_as_on_the_cpu() {
    let model = with_head("tied-logits", |_, value| value);
    for sampling in [
        &["--temp", "0"][..],
        // The third largest ties with the fourth, which transformers keeps too.
        &["--temp", "2", "--top-k", "3", "--seed", "4"],
        &["--temp", "2", "--top-k", "4", "--seed", "5"],
    ] {
        assert_eq!(ids(&model, sampling).as_array().unwrap().len(), 6);
    }
}

#[test]
fn what_is_no_number_ends_the_text_with_the_same_words() {
    // An infinite weight gives an infinite logit, or NaN where it meets both signs.
    let broken = [("nan", f32::NAN, "token 40 is NaN"), ("infinite", f32::INFINITY, "token 40 is")];
    for (variant, number, says) in broken {
        let change = |row, value| if row == 40 || row == 90 { number } else { value };
        let model = with_head(variant, change);
        for sampling in [&["--temp", "0"][..], &["--temp", "1", "--top-k", "5", "--seed", "1"]] {
            let errors = ["cuda", "cpu"].map(|device| {
                let output = generate(&model, sampling, device);
                assert_eq!(output.status.code(), Some(1), "{variant}, {device}");
                let said = stderr(&output);
                said.lines().find(|line| line.starts_with("error")).unwrap().to_owned()
            });
            assert_eq!(errors[0], errors[1]);
            assert!(errors[0].contains(says), "{errors:?}");
        }
    }
}

#[test]
fn a_tiny_model_uses_the_same_tokens() {
    let model = folder("mistral_v03");
    for seed in ["1", "2"] {
        let sampling = ["--temp", "1.5", "--top-k", "12", "--seed", seed];
        assert_eq!(ids(&model, &sampling).as_array().unwrap().len(), 6);
    }
}
