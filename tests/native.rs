//! Mistral's own files (`params.json`, `consolidated.safetensors`) give the logits of the same weights in the form of
//! Hugging Face; and so do experts that transformers 5 keeps in one tensor.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/tiny.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod tiny;
#[path = "common/variant.rs"]
mod variant;

use std::path::PathBuf;

use common::{Distance, Expected, load, prefill};
use serde_json::{Value, json};
use tiny::{Tensor, safetensors};
use tramontane::{Format, Model, Result};
use variant::{Tiny, apart};

/// Hugging Face's names and Mistral's, in the order in which they are replaced.
const NAMES: &[(&str, &str)] = &[
    ("model.embed_tokens", "tok_embeddings"),
    ("model.layers.", "layers."),
    ("model.norm", "norm"),
    ("lm_head", "output"),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_a_proj", "attention.wq_a"),
    ("self_attn.q_a_layernorm", "attention.q_a_norm"),
    ("self_attn.q_b_proj", "attention.wq_b"),
    ("self_attn.kv_a_proj_with_mqa", "attention.wkv_a_with_mqa"),
    ("self_attn.kv_a_layernorm", "attention.kv_a_norm"),
    ("self_attn.kv_b_proj", "attention.wkv_b"),
    ("self_attn.q_proj", "attention.wq"),
    ("self_attn.k_proj", "attention.wk"),
    ("self_attn.v_proj", "attention.wv"),
    ("self_attn.o_proj", "attention.wo"),
    ("mlp.gate.", "gate."),
    ("mlp.experts.", "experts."),
    ("mlp.shared_experts.", "shared_experts."),
    ("mlp.", "feed_forward."),
    ("gate_proj", "w1"),
    ("down_proj", "w2"),
    ("up_proj", "w3"),
];

/// The logits of the first prompt of `tiny`, whose tensors and configuration are Mistral's own.
fn native_logits(tiny: &Tiny, variant: &str) -> Vec<f32> {
    let ids = Expected::of(tiny.name).ids("input_ids_0");
    prefill(&load_native(tiny, variant).unwrap(), &ids)
}

fn load_native(tiny: &Tiny, variant: &str) -> Result<Model> {
    let tmp = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let folder = tmp.join("native").join(tiny.name).join(variant);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("params.json"), tiny.config.to_string()).unwrap();
    std::fs::write(folder.join("consolidated.safetensors"), safetensors(&tiny.tensors)).unwrap();
    load(&folder, Format::F32)
}

/// Gives the tensors Mistral's names, and the rows of queries and keys the order in which neighbours turn together.
fn rename(tiny: &mut Tiny, head_dim: Option<usize>) {
    for tensor in &mut tiny.tensors {
        let turns = tensor.name.contains("q_proj") || tensor.name.contains("k_proj");
        if let Some(head_dim) = head_dim.filter(|_| turns) {
            let row = tensor.data.len() / tensor.shape[0];
            let head = |head: &[u8]| -> Vec<u8> {
                let (first, second) = head.split_at(head_dim / 2 * row);
                first
                    .chunks(row)
                    .zip(second.chunks(row))
                    .flat_map(|(a, b)| [a, b].concat())
                    .collect()
            };
            tensor.data = tensor.data.chunks(head_dim * row).flat_map(head).collect();
        }
        for (from, to) in NAMES {
            tensor.name = tensor.name.replace(from, to);
        }
    }
}

/// The keys that all of Mistral's own files have.
fn params(config: &Value) -> Value {
    json!({
        "dim": config["hidden_size"], "n_layers": config["num_hidden_layers"],
        "hidden_dim": config["intermediate_size"], "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"], "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"], "head_dim": config["head_dim"], "tied_embeddings": false,
        "rope_theta": config["rope_parameters"]["rope_theta"], "max_position_embeddings": 1024,
        "vision_encoder": { "hidden_size": 8 }, "q_lora_rank": null,
        "yarn": {
            "factor": config["rope_parameters"]["factor"], "beta": 32.0, "alpha": 1.0,
            "original_max_position_embeddings": 16, "apply_scale": false,
        },
        "llama_4_scaling": { "original_max_position_embeddings": 16, "beta": 0.1 },
    })
}

#[test]
fn ministral_3_in_mistrals_own_form() {
    let mut tiny = Tiny::of("ministral3_yarn");
    let expected = tiny.logits("hugging-face");
    rename(&mut tiny, Some(24));
    tiny.config = params(&tiny.config);
    assert!(native_logits(&tiny, "plain") == expected);
    tiny.config["llama_4_scaling"]["beta"] = json!(0.0);
    assert!(native_logits(&tiny, "without-query-scale") != expected);
    tiny.config["llama_4_scaling"]["beta"] = json!(0.1);
    tiny.config["yarn"]["apply_scale"] = json!(true);
    assert!(native_logits(&tiny, "with-magnitude") != expected);
    tiny.config["yarn"]["gamma"] = json!(1);
    tiny.config["yarn"]["factor_2"] = json!(1);
    let error = load_native(&tiny, "unknown-key").unwrap_err().to_string();
    assert!(error.contains("`yarn.factor_2`"), "{error}");
}

/// Mistral Small 4 in Mistral's own form, beside the same in the form of Hugging Face.
fn small_4() -> (Tiny, Tiny) {
    let mut hugging_face = Tiny::of("mistral4_mla_moe");
    // Its latents' norms have this in any case; Mistral's file says one number for all norms.
    hugging_face.config["rms_norm_eps"] = json!(1e-6);
    let mut native = Tiny::of("mistral4_mla_moe");
    apart(&mut native);
    rename(&mut native, None);
    let c = &hugging_face.config;
    let mut config = params(c);
    for key in ["q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"]
    {
        config[key] = c[key].clone();
    }
    config["moe"] = json!({
        "num_experts": 6, "num_experts_per_tok": 2, "expert_hidden_dim": 32, "num_shared_experts": 1,
        "routed_scale": 1.0, "num_expert_groups": 1, "num_expert_groups_per_tok": 1,
        "first_k_dense_replace": 0, "route_every_n": 1, "expert_parallel": 1, "expert_model_parallel": 1,
    });
    native.config = config;
    (native, hugging_face)
}

#[test]
fn small_4_in_mistrals_own_form_follows_apply_scale() {
    let (mut native, mut hugging_face) = small_4();
    for apply_scale in [true, false] {
        native.config["yarn"]["apply_scale"] = json!(apply_scale);
        hugging_face.config["rope_parameters"]["apply_scale"] = json!(apply_scale);
        let variant = format!("apply-scale-{apply_scale}");
        assert!(native_logits(&native, &variant) == hugging_face.logits(&variant), "{variant}");
    }
}

#[test]
fn small_4_reads_every_key_about_its_experts() {
    for (key, value) in [
        ("num_experts", json!(7)),
        ("num_shared_experts", json!(2)),
        ("first_k_dense_replace", json!(1)),
        ("route_every_n", json!(2)),
        ("num_expert_groups", json!(4)),
        ("use_load_balancing_bias_of_experts", json!(true)),
    ] {
        let (mut native, _) = small_4();
        native.config["moe"][key] = value;
        assert!(load_native(&native, key).is_err(), "{key}");
    }
    let (mut native, _) = small_4();
    let logits = native_logits(&native, "plain");
    native.config["moe"]["routed_scale"] = json!(2.0);
    assert!(native_logits(&native, "routed-scale") != logits);
}

#[test]
fn mixtral_with_all_experts_in_one_tensor() {
    let mut tiny = Tiny::of("mixtral");
    let name = |layer: usize| format!("model.layers.{layer}.");
    for layer in 0..2 {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for e in 0..4 {
            let mut take = |part: &str| {
                let end = format!("{}block_sparse_moe.experts.{e}.{part}.weight", name(layer));
                tiny.take(&end).remove(0).data
            };
            up.extend([take("w1"), take("w3")].concat());
            down.extend(take("w2"));
        }
        let joined = [("gate_up_proj", [4, 80, 64], up), ("down_proj", [4, 64, 40], down)];
        for (part, shape, data) in joined {
            let name = format!("{}mlp.experts.{part}", name(layer));
            tiny.tensors.push(Tensor { name, dtype: "F32", shape: shape.to_vec(), data });
        }
    }
    for tensor in &mut tiny.tensors {
        tensor.name = tensor.name.replace("block_sparse_moe.gate", "mlp.gate");
    }
    let expected = Expected::of("mixtral").numbers("logits_0");
    let distance = Distance::between(&tiny.logits("joined"), &expected);
    assert!(distance.within(Distance { max_abs: 1e-3, rel_l2: 5e-5 }), "{distance}");
}

/// A Mamba-2 of one head of 64 elements, which is the width that Mistral's file takes for granted.
fn mamba() -> Tiny {
    let (hidden, vocab, conv, inputs) = (32, 40, 320, 385);
    let mut seed = 1_u32;
    let mut tensor = |name: &str, shape: &[usize]| {
        let n: usize = shape.iter().product();
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let values: Vec<f32> = (0..n).map(|_| next()).collect();
        Tensor::f32(name, shape, &values)
    };
    let mut tensors = vec![
        tensor("backbone.embeddings.weight", &[vocab, hidden]),
        tensor("backbone.norm_f.weight", &[hidden]),
        tensor("lm_head.weight", &[vocab, hidden]),
    ];
    for layer in 0..2 {
        let mut add = |part: &str, shape: &[usize]| {
            tensors.push(tensor(&format!("backbone.layers.{layer}.{part}"), shape));
        };
        add("norm.weight", &[hidden]);
        add("mixer.in_proj.weight", &[inputs, hidden]);
        add("mixer.out_proj.weight", &[hidden, 64]);
        add("mixer.conv1d.weight", &[conv, 1, 4]);
        add("mixer.conv1d.bias", &[conv]);
        add("mixer.A_log", &[1]);
        add("mixer.D", &[1]);
        add("mixer.dt_bias", &[1]);
        add("mixer.norm.weight", &[64]);
    }
    let config = json!({
        "architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "vocab_size": vocab,
        "hidden_size": hidden, "num_hidden_layers": 2, "num_heads": 1, "head_dim": 64, "n_groups": 1,
        "state_size": 128, "conv_kernel": 4, "expand": 2, "hidden_act": "silu", "use_bias": false,
        "use_conv_bias": true, "layer_norm_epsilon": 1e-5, "rms_norm": true, "tie_word_embeddings": false,
    });
    Tiny { name: "nemotron_h_mlp", config, tensors }
}

#[test]
fn mamba_codestral_in_mistrals_own_form() {
    let ids = [3, 1, 4, 15, 9, 26, 5, 35];
    let mut tiny = mamba();
    let expected = prefill(&tiny.load("mamba2").unwrap(), &ids);
    for tensor in &mut tiny.tensors {
        tensor.name = format!("model.{}", tensor.name.replace("embeddings", "embedding"));
    }
    tiny.config = json!({
        "dim": 32, "n_layers": 2, "vocab_size": 33, "n_groups": 1, "rms_norm": true,
        "residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 8,
        "tie_embeddings": false, "model_type": "mamba",
    });
    assert!(prefill(&load_native(&tiny, "mamba").unwrap(), &ids) == expected);
    tiny.config["d_state_size"] = json!(64);
    let error = load_native(&tiny, "unknown-key").unwrap_err().to_string();
    assert!(error.contains("`d_state_size`"), "{error}");
}
