//! The logits and greedy ids of tramontane are those of transformers: 47 tiny models of `tests/data/logits`,
//! in both spellings of their configuration, and the built-in model.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use common::{Distance, Expected, argmax, folder, forward, load, prefill};
use tramontane::sample::Sampling;
use tramontane::{ErrorKind, Format, LoadOptions, Model};

/// Folders of `tests/data/logits` whose models cannot be loaded yet; each must be refused by name.
const NOT_YET: &[&str] = &[];

/// Float32 arithmetic on the very same weights.
const F32: Distance = Distance { max_abs: 1e-3, rel_l2: 5e-5 };
const BF16: Distance = Distance { max_abs: 0.25, rel_l2: 3e-2 };
const F16: Distance = Distance { max_abs: 0.05, rel_l2: 5e-3 };

/// One test for each folder, so that a failure names it.
macro_rules! golden {
    ($($name:ident)*) => {
        $(#[test] fn $name() { check(stringify!($name)); })*
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

golden! {
    bloom deepseek_v3 falcon_11b falcon_40b falcon_7b falcon_rw_alibi gpt2 gptj helium llama3_rope llama_biases
    llama_gqa_sharded llama_headdim_mqa llama_mha llama_rope_dynamic llama_rope_linear llama_rope_yarn
    llama_theta20m llama_tied mamba2 mamba2_one_group ministral3_fp8_tensor ministral3_realrope ministral3_yarn ministral_interleaved
    mistral3_ministral3 mistral3_mistral mistral4_mla_moe mistral_bf16 mistral_f16 mistral_fp8_block
    mistral_fp8_block128_partial mistral_nemo_headdim mistral_nemo_native mistral_v01_swa mistral_v03
    mistral_v03_native mixtral nemotron nemotron_h_mlp nemotron_h_moe olmo2 qwen2 qwen3 rw_40b rw_7b smollm3
}

#[test]
fn every_folder_has_its_test() {
    assert_eq!(common::names(), NAMES);
    assert!(
        NOT_YET.iter().all(|name| NAMES.contains(name)),
        "NOT_YET names a folder that is not there"
    );
}

fn check(name: &str) {
    if NOT_YET.contains(&name) {
        let Err(e) = load(&folder(name), Format::F32) else {
            panic!("{name} can be loaded now: take it out of NOT_YET");
        };
        assert_eq!(e.kind(), ErrorKind::NotSupported, "{e}");
        return;
    }
    let expected = Expected::of(name);
    // Of 16-bit models the expected greedy logits are 16-bit too, but not those of the whole prompt.
    let (logits, greedy_tolerance, stored) = match name {
        "mistral_bf16" => ("logits_f32compute", BF16, Some((Format::Bf16, BF16))),
        "mistral_f16" => ("logits_f32compute", F16, Some((Format::F16, F16))),
        _ => ("logits", F32, None),
    };
    for folder in [Some(folder(name)), with_v5_config(name)].into_iter().flatten() {
        for (format, tolerance) in [(Format::F32, F32)].into_iter().chain(stored) {
            let model = load(&folder, format).unwrap();
            for prompt in 0..2 {
                let at = format!("{}, {format}, prompt {prompt}", folder.display());
                let ids = expected.ids(&format!("input_ids_{prompt}"));
                let wanted = expected.numbers(&format!("{logits}_{prompt}"));
                let distance = Distance::between(&prefill(&model, &ids), &wanted);
                // `cargo test --test golden -- --nocapture` shows how far from the limit all is.
                eprintln!("{at}: {distance}");
                assert!(distance.within(tolerance), "{at}: {distance}, expected {tolerance}");
                check_greedy(&model, &expected, prompt, greedy_tolerance, &at);
            }
        }
    }
}

/// A copy of the model `name` whose `config.json` is spelt as transformers 5 spells it.
fn with_v5_config(name: &str) -> Option<PathBuf> {
    let original = folder(name);
    if !original.join("config.v5.json").exists() {
        return None;
    }
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("config-v5").join(name);
    std::fs::create_dir_all(&copy).unwrap();
    for entry in std::fs::read_dir(&original).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("model") {
            std::fs::copy(original.join(&name), copy.join(&name)).unwrap();
        }
    }
    std::fs::copy(original.join("config.v5.json"), copy.join("config.json")).unwrap();
    Some(copy)
}

/// Token by token with the cache, and once more through a session.
fn check_greedy(model: &Model, expected: &Expected, prompt: usize, tolerance: Distance, at: &str) {
    let ids = expected.ids(&format!("input_ids_{prompt}"));
    let greedy = expected.ids(&format!("greedy_ids_{prompt}"));
    let vocab = model.architecture().vocab;
    let mut cache = model.cache().unwrap();
    let mut last = forward(model, &ids, &mut cache).split_off((ids.len() - 1) * vocab);
    let mut all = Vec::new();
    for (step, &id) in greedy.iter().enumerate() {
        assert_eq!(argmax(&last), id, "{at}, greedy step {step}");
        all.extend_from_slice(&last);
        last = forward(model, &[id], &mut cache);
    }
    if prompt == 0 {
        let distance = Distance::between(&all, &expected.numbers("greedy_logits_0"));
        assert!(
            distance.within(tolerance),
            "{at}, greedy: {distance}, expected at most {tolerance}"
        );
    }
    assert_eq!(generate(model, &ids, greedy.len()), greedy, "{at}, session");
}

/// The ids of `n` greedy tokens, end tokens ignored.
fn generate(model: &Model, ids: &[u32], n: usize) -> Vec<u32> {
    let sampling = Sampling { max_tokens: Some(n), ignore_eos: true, ..Sampling::greedy() };
    let pieces = model.session().generate_ids(ids, &sampling).unwrap();
    pieces.map(Result::unwrap).last().unwrap().summary.unwrap().token_ids
}

#[cfg(feature = "embedded")]
#[test]
fn the_built_in_model_writes_what_it_should() {
    let options = LoadOptions { format: Format::F32, threads: Some(1), ..LoadOptions::default() };
    let model = Model::load("", &options).unwrap();
    let expected: serde_json::Value =
        serde_json::from_str(include_str!("data/brise/expected.json")).unwrap();
    for case in expected["cases"].as_array().unwrap() {
        let list = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
        let (prompt, ids, greedy) =
            (case["prompt"].as_str().unwrap(), list("ids"), list("greedy_ids"));
        let tokenizer = model.tokenizer().unwrap();
        assert_eq!(tokenizer.encode_prompt(prompt).unwrap(), ids, "{prompt}");
        let vocab = model.architecture().vocab;
        let last = prefill(&model, &ids).split_off((ids.len() - 1) * vocab);
        assert_eq!(u64::from(argmax(&last)), case["argmax"], "{prompt}");
        let first: Vec<f32> = serde_json::from_value(case["last_logits_first_16"].clone()).unwrap();
        let distance = Distance::between(&last[..16], &first);
        assert!(distance.within(F32), "{prompt}: {distance}");
        assert_eq!(generate(&model, &ids, greedy.len()), greedy, "{prompt}");
    }
}
