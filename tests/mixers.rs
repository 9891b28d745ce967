//! Ways of storing one and the same model give one and the same logits: experts apart, together and in 8-bit floats,
//! Mamba-2 under two names.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/tiny.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod tiny;
#[path = "common/variant.rs"]
mod variant;

use serde_json::json;
use tiny::Tensor;
use variant::{Tiny, apart};

#[test]
fn experts_together_or_apart_are_the_same() {
    let together = Tiny::of("mistral4_mla_moe");
    let mut other = Tiny::of("mistral4_mla_moe");
    apart(&mut other);
    assert!(together.logits("together") == other.logits("apart"));
}

/// The number that the byte of an 8-bit float stands for, where it is a small normal one.
fn e4m3(byte: u8) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    sign * (1.0 + f32::from(byte & 7) / 8.0) * 2f32.powi(i32::from(byte >> 3 & 15) - 7)
}

#[test]
fn each_expert_in_8_bit_floats_has_its_own_scale() {
    let (mut small, mut wide) = (Tiny::of("mistral4_mla_moe"), Tiny::of("mistral4_mla_moe"));
    let mut scales = Vec::new();
    for (small, wide) in small.tensors.iter_mut().zip(&mut wide.tensors) {
        if !small.name.contains(".experts.") {
            continue;
        }
        let n_experts = small.shape[0];
        let factors: Vec<f32> = (0..n_experts).map(|e| 0.01 * (e + 1) as f32).collect();
        let n: usize = small.shape.iter().product();
        // Any bytes with exponents around 7 will do.
        let bytes: Vec<u8> = (0..n).map(|i| (i * 37 % 32 + 40 + i * 11 % 2 * 128) as u8).collect();
        let per_expert = n / n_experts;
        wide.fill(|i| e4m3(bytes[i]) * factors[i / per_expert]);
        (small.dtype, small.data) = ("F8_E4M3", bytes);
        let name = format!("{}_scale_inv", small.name);
        scales.push(Tensor::f32(&name, &[n_experts, 1, 1], &factors));
        // Activations are not quantised.
        let name = format!("{}_activation_scale", small.name);
        scales.push(Tensor::f32(&name, &[n_experts], &vec![7.0; n_experts]));
    }
    small.tensors.extend(scales);
    assert!(small.logits("fp8") == wide.logits("fp8-as-f32"));

    small.take("experts.down_proj_scale_inv");
    let error = small.load("fp8-without-scale").unwrap_err().to_string();
    assert!(error.contains("experts.down_proj_scale_inv"), "{error}");
}

#[test]
fn layers_that_guess_further_tokens_are_left_alone() {
    let mut tiny = Tiny::of("deepseek_v3");
    let logits = tiny.logits("plain");
    let more = Tensor::f32("model.layers.2.eh_proj.weight", &[2, 2], &[0.0; 4]);
    tiny.tensors.push(more);
    let error = tiny.load("with-unknown-layer").unwrap_err().to_string();
    assert!(error.contains("model.layers.2.eh_proj"), "{error}");
    tiny.config["num_nextn_predict_layers"] = json!(1);
    assert!(tiny.logits("with-extra-layer") == logits);
}

#[test]
fn the_second_magnitude_of_latent_attention_can_be_switched_off() {
    let mut tiny = Tiny::of("mistral4_mla_moe");
    let logits = tiny.logits("with-magnitude");
    tiny.config["rope_parameters"]["apply_scale"] = json!(false);
    assert!(tiny.logits("without-magnitude") != logits);
}

#[test]
fn what_the_configuration_says_twice_must_agree() {
    for (key, value) in [
        ("num_key_value_heads", json!(2)),
        ("head_dim", json!(12)),
        ("n_group", json!(4)),
        ("moe_layer_freq", json!(2)),
        ("first_k_dense_replace", json!(3)),
        ("num_experts_per_tok", json!(7)),
        ("scoring_func", json!("sigmoid")),
    ] {
        let mut tiny = Tiny::of("mistral4_mla_moe");
        tiny.config[key] = value;
        let error = tiny.load("contradiction").unwrap_err().to_string();
        let named =
            error.contains(key) || (key == "num_experts_per_tok" && error.contains("7 of 6"));
        assert!(named, "{key}: {error}");
    }
}

/// Nemotron-H's two recurrent layers without the others.
fn two_mambas() -> Tiny {
    let mut tiny = Tiny::of("nemotron_h_mlp");
    tiny.config["hybrid_override_pattern"] = json!("MM");
    tiny.config["num_hidden_layers"] = json!(2);
    tiny.tensors
        .retain(|t| [".layers.1.", ".layers.3.", ".layers.4."].iter().all(|l| !t.name.contains(l)));
    for tensor in &mut tiny.tensors {
        tensor.name = tensor.name.replace(".layers.2.", ".layers.1.");
    }
    tiny
}

/// The same model as a Mamba-2.
fn as_mamba2(tiny: &mut Tiny) {
    tiny.config = json!({
        "architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "vocab_size": 256,
        "hidden_size": 64, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "n_groups": 2,
        "state_size": 16, "conv_kernel": 4, "expand": 1, "hidden_act": "silu", "use_bias": false,
        "use_conv_bias": true, "layer_norm_epsilon": 1e-5, "time_step_limit": [0.001, "Infinity"],
        "chunk_size": 16, "time_step_rank": 4, "rms_norm": true, "norm_before_gate": true,
        "residual_in_fp32": true, "tie_word_embeddings": false,
    });
}

#[test]
fn mamba_2_is_nemotron_h_with_recurrent_layers_only() {
    let mut tiny = two_mambas();
    let logits = tiny.logits("recurrent");
    as_mamba2(&mut tiny);
    assert!(tiny.logits("as-mamba2") == logits);
    tiny.config["time_step_limit"] = json!([0.001, 0.002]);
    assert!(tiny.logits("short-steps") != logits);
    tiny.config["expand"] = json!(2);
    let error = tiny.load("contradiction").unwrap_err().to_string();
    assert!(error.contains("`expand`"), "{error}");
}

#[test]
fn a_recurrent_cache_does_not_grow() {
    let mut tiny = two_mambas();
    as_mamba2(&mut tiny);
    let model = tiny.load("bounded").unwrap();
    let mut cache = model.cache().unwrap();
    // Two layers: three rows of 64 + 2 · 2 · 16 channels, and eight heads of eight rows of 16.
    let bytes = 2 * 4 * (3 * 128 + 8 * 8 * 16);
    for length in [1, 2, 300] {
        model.forward(&vec![7; length], &mut cache).unwrap();
        assert_eq!(cache.bytes(), bytes);
    }
    assert!(!cache.truncate(200));
    assert_eq!((cache.len(), cache.bytes()), (0, bytes));
}

/// `tiny` with each tensor's name changed.
fn renamed(name: &'static str, rename: impl Fn(&str) -> String) -> Tiny {
    let mut tiny = Tiny::of(name);
    for tensor in &mut tiny.tensors {
        tensor.name = rename(&tensor.name);
    }
    tiny
}

#[test]
fn names_of_older_and_newer_files_are_the_same() {
    // The text part of a multimodal model before transformers 5, and since.
    let newer = |name: &str| match name.strip_prefix("language_model.") {
        Some("lm_head.weight") => "lm_head.weight".to_owned(),
        Some(rest) => rest.replacen("model.", "model.language_model.", 1),
        None => format!("model.{name}"),
    };
    for name in ["mistral3_mistral", "mistral3_ministral3"] {
        assert!(Tiny::of(name).logits("older") == renamed(name, newer).logits("newer"), "{name}");
    }
    let newer = |name: &str| name.replacen("backbone.", "model.", 1);
    for name in ["nemotron_h_mlp", "nemotron_h_moe"] {
        assert!(Tiny::of(name).logits("older") == renamed(name, newer).logits("newer"), "{name}");
    }
}

#[test]
fn queries_grow_from_the_original_context_on() {
    let with_beta = |beta: f64, variant: &str| {
        let mut tiny = Tiny::of("ministral3_realrope");
        tiny.config["rope_parameters"]["llama_4_scaling_beta"] = beta.into();
        let model = tiny.load(variant).unwrap();
        let ids: Vec<u32> = (0..16_386).map(|i| (i % 241 * i % 251) + 3).collect();
        let mut cache = model.cache().unwrap();
        model.advance(&ids[..16_383], &mut cache, &mut Vec::new()).unwrap();
        common::forward(&model, &ids[16_383..], &mut cache)
    };
    let (grown, plain) = (with_beta(0.1, "grown"), with_beta(0.0, "plain"));
    let vocab = grown.len() / 3;
    assert!(grown[..vocab] == plain[..vocab], "position 16383 is the last of the first context");
    let distance = common::Distance::between(&grown[vocab..], &plain[vocab..]);
    assert!(distance.rel_l2 > 1e-4, "{distance}");
}

#[test]
fn keys_that_only_one_falcon_has_are_refused_by_name() {
    for (key, value) in [("ntk_scaling_factor", 5), ("embedding_scaling_factor", 4)] {
        let mut tiny = Tiny::of("rw_40b");
        tiny.config[key] = value.into();
        let error = tiny.load(key).unwrap_err();
        assert_eq!(error.kind(), tramontane::ErrorKind::NotSupported);
        assert!(error.to_string().contains(key), "{error}");
    }
}
