//! A Mistral of 187 million parameters in bf16 or 8-bit floats, made in memory: large enough to be measured.

use std::path::Path;

use serde_json::{Value, json};

use super::tiny::{Tensor, safetensors};

/// Width of the residual stream.
pub(crate) const HIDDEN: usize = 1024;
/// Width of the MLP.
pub(crate) const INNER: usize = 4096;
/// Rows of the embedding and of the head.
pub(crate) const VOCAB: usize = 32_000;
/// Number of layers.
pub(crate) const LAYERS: usize = 8;
/// Width of the keys, and of the values.
pub(crate) const KV_DIM: usize = 256;
/// Tokens that the model is made for.
pub(crate) const CONTEXT: usize = 1024;

fn config(fp8: bool) -> Value {
    let mut config = json!({
        "architectures": ["MistralForCausalLM"], "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 64, "hidden_act": "silu", "max_position_embeddings": CONTEXT,
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

/// All tensors: matrices in bf16 or, but for embedding and head, in 8-bit floats.
pub(crate) fn tensors(fp8: bool) -> Vec<Tensor> {
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
            ("self_attn.k_proj", KV_DIM, HIDDEN),
            ("self_attn.v_proj", KV_DIM, HIDDEN),
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

/// Writes the model into a folder.
pub(crate) fn write(folder: &Path, fp8: bool, tensors: &[Tensor]) {
    std::fs::write(folder.join("config.json"), config(fp8).to_string()).expect("a configuration");
    std::fs::write(folder.join("model.safetensors"), safetensors(tensors)).expect("weights");
}
