//! C: tensors against the configuration.

use serde_json::json;

use crate::tiny::{Folder, Tensor, VOCAB};
use crate::{Case, bad, good};

const UP: &str = "model.layers.1.mlp.up_proj.weight";
const K: &str = "model.layers.0.self_attn.k_proj.weight";
const NORM: &str = "model.layers.0.input_layernorm.weight";

#[test]
fn tensors_that_contradict_the_configuration_are_refused_by_name() {
    crate::check(shapes().into_iter().chain(values()));
}

fn resize(tensor: &mut Tensor, shape: &[usize]) {
    tensor.data.resize(4 * shape.iter().product::<usize>(), 0);
    tensor.shape = shape.to_vec();
}

fn shapes() -> Vec<Case> {
    vec![
        bad(
            "C01",
            "a tensor is missing",
            |f| f.tensors(|t| t.retain(|t| t.name != UP)),
            &[UP, "missing", "2 layers"],
        ),
        bad(
            "C02",
            "a third layer",
            |f| {
                f.tensors(|tensors| {
                    let extra: Vec<Tensor> = tensors
                        .iter()
                        .filter(|t| t.name.contains(".layers.1."))
                        .map(|t| Tensor { name: t.name.replace(".1.", ".2."), ..t.clone() })
                        .collect();
                    tensors.extend(extra);
                });
            },
            &["model.layers.2.", "2 layers", "num_hidden_layers"],
        ),
        bad(
            "C03",
            "a transposed matrix",
            |f| f.tensor(UP, |t| t.shape.reverse()),
            &[UP, "[64, 96]", "[96, 64]", "transposed"],
        ),
        bad(
            "C04",
            "keys of another number of heads",
            |f| f.tensor(K, |t| resize(t, &[64, 64])),
            &[K, "[64, 64]", "[32, 64]", "num_key_value_heads"],
        ),
        bad(
            "C05",
            "no head",
            |f| f.tensors(|t| t.retain(|t| t.name != "lm_head.weight")),
            &["lm_head.weight", "missing", "tie_word_embeddings"],
        ),
        good(
            "C06a",
            "a head of its own although it is tied",
            |f| f.set("tie_word_embeddings", json!(true)),
            &["`lm_head.weight` differs", "`tie_word_embeddings`", "stored head is used"],
        ),
        good(
            "C06b",
            "a tied head that is stored nevertheless",
            |f| {
                f.set("tie_word_embeddings", json!(true));
                f.tensors(|tensors| {
                    let embedding = tensors[0].data.clone();
                    tensors
                        .iter_mut()
                        .filter(|t| t.name == "lm_head.weight")
                        .for_each(|t| t.data = embedding.clone());
                });
            },
            &[],
        ),
        bad(
            "C07a",
            "fewer rows than the vocabulary",
            |f| {
                f.tensor("model.embed_tokens.weight", |t| resize(t, &[299, 64]));
            },
            &["model.embed_tokens.weight", "[299, 64]", "[300, 64]", "vocab_size"],
        ),
        bad(
            "C07b",
            "a tokenizer of more ids than rows",
            oversized_tokenizer,
            &["300", "tokenizer", "rows"],
        ),
        bad(
            "C08",
            "a bias that the family does not add",
            |f| {
                let name = "model.layers.0.self_attn.q_proj.bias";
                f.tensors(|t| t.push(Tensor::f32(name, &[64], &[1.0; 64])));
            },
            &["model.layers.0.self_attn.q_proj.bias", "not used"],
        ),
        bad(
            "C15",
            "a LoRA adapter",
            |f| {
                f.remove("model.safetensors");
                f.write("adapter_config.json", r#"{"peft_type": "LORA", "r": 8}"#);
                f.write("adapter_model.safetensors", "");
            },
            &["LoRA", "adapter_config.json", "base model"],
        ),
    ]
}

#[test]
fn a_stored_head_that_differs_is_used_although_the_configuration_ties_it() {
    let (untied, tied) = (Folder::new(), Folder::new());
    tied.set("tie_word_embeddings", json!(true));
    assert!(crate::logits(&untied, "5,6,7") == crate::logits(&tied, "5,6,7"));
}

/// A tokenizer whose last word has an id without a row in the embedding.
fn oversized_tokenizer(folder: &Folder) {
    let vocab: serde_json::Map<_, _> =
        (0..=VOCAB).map(|id| (format!("w{id}"), json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    folder.write("tokenizer.json", tokenizer.to_string());
}

fn values() -> Vec<Case> {
    vec![
        // A single bad weight is not looked for at load; its NaN is met by the first token.
        bad(
            "C09a",
            "NaN in a matrix",
            |f| f.tensor(UP, |t| t.data[..4].fill(0xff)),
            &["NaN", "finite", "damaged"],
        )
        .exit(1),
        bad(
            "C09b",
            "NaN in a norm",
            |f| f.tensor(NORM, |t| t.data[..4].fill(0xff)),
            &[NORM, "NaN", "finite"],
        ),
        bad(
            "C10",
            "infinity in a norm",
            |f| {
                f.tensor(NORM, |t| {
                    t.data[8..12].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
                });
            },
            &[NORM, "-inf", "finite"],
        ),
        good(
            "C11",
            "a layer of zeros",
            |f| {
                f.tensors(|tensors| {
                    let layer = tensors.iter_mut().filter(|t| t.name.contains(".layers.0."));
                    layer.for_each(|t| t.fill(|_| 0.0));
                });
            },
            &[],
        ),
        bad(
            "C12",
            "a weight that overflows f16",
            |f| {
                f.tensor(UP, |t| {
                    t.data[4..8].copy_from_slice(&1e30_f32.to_le_bytes());
                    t.make_bf16();
                });
            },
            &[UP, "f16", "bf16"],
        )
        .flags(&["--format", "f16"]),
        good(
            "C13",
            "a mixture of types",
            |f| {
                f.tensors(|tensors| {
                    tensors.iter_mut().step_by(3).for_each(Tensor::make_bf16);
                    tensors.iter_mut().skip(1).step_by(3).for_each(Tensor::make_f16);
                });
            },
            &[],
        ),
        good(
            "C14",
            "denormal numbers everywhere",
            |f| {
                f.tensors(|tensors| {
                    tensors
                        .iter_mut()
                        .for_each(|t| t.fill(|i| f32::from_bits(1 + i as u32 % 1000)));
                });
            },
            &[],
        ),
    ]
}
