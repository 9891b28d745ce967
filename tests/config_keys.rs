//! No number of a configuration is ignored: each one that is changed changes the logits or stops the load, or stands in
//! a list with the reason why it changes nothing.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use common::{Expected, folder, load, names, prefill};
use serde_json::{Value, json};
use tramontane::Format;

/// Of which tiny models something is true.
#[derive(Clone, Copy)]
enum Of {
    All,
    Only(&'static [&'static str]),
    AllBut(&'static [&'static str]),
}

/// The models of Mamba-2 alone, whose class reads other keys than that of Nemotron-H.
const MAMBA: &[&str] = &["mamba2", "mamba2_one_group"];

/// Numbers that change no logit: the end of their path, the tiny models of which this is true, and why.
const WITHOUT_EFFECT: &[(&str, Of, &str)] = &[
    ("attention_dropout", Of::All, "acts in training only"),
    ("attn_pdrop", Of::All, "acts in training only"),
    ("embd_pdrop", Of::All, "acts in training only"),
    ("hidden_dropout", Of::All, "acts in training only"),
    ("resid_pdrop", Of::All, "acts in training only"),
    ("initializer_range", Of::All, "what weights were before training"),
    ("router_aux_loss_coef", Of::All, "acts in training only"),
    ("pretraining_tp", Of::All, "how matrices were cut in training"),
    ("bos_token_id", Of::All, "which id begins a text, not what it means"),
    ("eos_token_id", Of::All, "which id ends a text, not what it means"),
    ("pad_token_id", Of::All, "nothing is padded"),
    (
        "max_position_embeddings",
        Of::AllBut(&["llama_rope_dynamic"]),
        "how long a text may be; only this scaling goes by it",
    ),
    ("n_ctx", Of::All, "how long a text may be"),
    ("n_positions", Of::Only(&["gptj"]), "how long a text may be: it has no table of positions"),
    ("num_logits_to_keep", Of::All, "how much the reference returns"),
    ("chunk_size", Of::All, "how a prompt is cut, not what comes out"),
    ("expand", Of::AllBut(MAMBA), "the reference goes by the heads"),
    ("time_step_floor", Of::All, "how time steps were initialised"),
    ("time_step_max", Of::All, "how time steps were initialised"),
    ("time_step_limit.0", Of::AllBut(MAMBA), "the reference goes by `time_step_min`"),
    ("time_step_min", Of::Only(MAMBA), "the reference goes by `time_step_limit`"),
    ("time_step_rank", Of::All, "is of the first Mamba"),
    ("time_step_scale", Of::All, "how time steps were initialised"),
    ("max_window_layers", Of::All, "`use_sliding_window` is false"),
    ("sliding_window", Of::Only(&["qwen2"]), "`use_sliding_window` is false"),
    ("no_rope_layer_interval", Of::All, "`no_rope_layers` lists the layers"),
    ("num_nextn_predict_layers", Of::All, "layers that guess further tokens are never used"),
    (
        "intermediate_size",
        Of::Only(&["mistral4_mla_moe", "nemotron_h_moe"]),
        "all layers have experts, whose width is `moe_intermediate_size`",
    ),
    ("rope_theta", Of::Only(&["falcon_rw_alibi"]), "positions enter as a bias"),
    (
        "original_max_position_embeddings",
        Of::Only(&["ministral3_realrope"]),
        "as in real models, acts on positions behind the prompt's; `ministral3_yarn` shows it",
    ),
    (
        "llama_4_scaling_beta",
        Of::Only(&["ministral3_realrope"]),
        "as in real models, acts on positions behind the prompt's; `ministral3_yarn` shows it",
    ),
    ("image_token_index", Of::All, "images are not read"),
    ("spatial_merge_size", Of::All, "images are not read"),
    ("vision_feature_layer", Of::All, "images are not read"),
];

/// Whether the number at `path` of the model `name` is known to have no effect: the entry of the list.
fn without_effect(name: &str, path: &[String]) -> Option<&'static str> {
    if path[0] == "vision_config" {
        return Some("vision_config");
    }
    let joined = path.join(".");
    let entry = WITHOUT_EFFECT.iter().find(|(end, of, _)| {
        let is_true = match of {
            Of::All => true,
            Of::Only(models) => models.contains(&name),
            Of::AllBut(models) => !models.contains(&name),
        };
        is_true && (joined == *end || joined.ends_with(&format!(".{end}")))
    });
    entry.map(|(end, ..)| *end)
}

/// A copy of a tiny model whose configuration can be changed.
struct Copy {
    folder: PathBuf,
    /// `config.json` or `params.json`.
    file: &'static str,
    config: Value,
    ids: Vec<u32>,
}

impl Copy {
    fn of(name: &str) -> Self {
        let original = folder(name);
        let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("config-keys").join(name);
        std::fs::create_dir_all(&copy).unwrap();
        for entry in std::fs::read_dir(&original).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            if file.starts_with("model") || file.starts_with("consolidated") {
                std::fs::copy(original.join(&file), copy.join(&file)).unwrap();
            }
        }
        let is_native = original.join("params.json").exists();
        let file = if is_native { "params.json" } else { "config.json" };
        let text = std::fs::read_to_string(original.join(file)).unwrap();
        let config = serde_json::from_str(&text.replace("Infinity", "\"Infinity\"")).unwrap();
        let ids = Expected::of(name).ids("input_ids_0");
        Self { folder: copy, file, config, ids }
    }

    /// The logits with `config`; `None` if that is refused.
    fn logits(&self, config: &Value) -> Option<Vec<f32>> {
        std::fs::write(self.folder.join(self.file), config.to_string()).unwrap();
        Some(prefill(&load(&self.folder, Format::F32).ok()?, &self.ids))
    }

    /// Whether another number at `path` changes the logits or is refused.
    fn has_effect(&self, path: &[String], number: &Value, logits: &[f32]) -> bool {
        others(path.last().unwrap(), number).into_iter().any(|other| {
            let mut config = self.config.clone();
            let place = config.pointer_mut(&format!("/{}", path.join("/"))).unwrap();
            *place = other;
            self.logits(&config).is_none_or(|changed| changed != logits)
        })
    }
}

/// Other numbers for `key`, of the same kind.
fn others(key: &str, number: &Value) -> Vec<Value> {
    let x = number.as_f64().unwrap();
    match (key, number.as_i64()) {
        // These bounds are rounded, or seldom met: near numbers would do the same.
        ("beta_fast" | "beta_slow", _) => vec![json!(0.001 * x)],
        ("time_step_min", _) => vec![json!(1000.0 * x)],
        (_, Some(n)) => vec![json!(n + 1), json!(2 * n)],
        (_, None) => vec![json!(1.5 * x + if x == 0.0 { 0.25 } else { 0.0 })],
    }
}

/// Every number within `value`, with its path.
fn numbers(value: &Value, path: &mut Vec<String>, out: &mut Vec<(Vec<String>, Value)>) {
    let mut within = |key: String, inner: &Value| {
        path.push(key);
        numbers(inner, path, out);
        path.pop();
    };
    match value {
        Value::Number(_) => out.push((path.clone(), value.clone())),
        Value::Object(map) => map.iter().for_each(|(key, inner)| within(key.clone(), inner)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, inner)| within(i.to_string(), inner));
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

#[test]
fn every_number_changes_the_logits_or_stops_the_load() {
    let (mut faults, mut used, mut tried) = (Vec::new(), HashSet::new(), 0);
    for name in names() {
        let model = Copy::of(&name);
        let logits = model.logits(&model.config).unwrap();
        let mut found = Vec::new();
        numbers(&model.config, &mut Vec::new(), &mut found);
        for (path, number) in found {
            tried += 1;
            let known = without_effect(&name, &path);
            if known == Some("vision_config") {
                continue;
            }
            match (known, model.has_effect(&path, &number, &logits)) {
                (None, true) => {}
                (Some(end), false) => drop(used.insert(end)),
                (None, false) => {
                    faults.push(format!("{name}: `{}` {number} has no effect", path.join(".")));
                }
                (Some(_), true) => {
                    faults.push(format!("{name}: `{}` {number} has an effect", path.join(".")));
                }
            }
        }
    }
    let idle = WITHOUT_EFFECT.iter().filter(|(end, ..)| !used.contains(*end));
    faults.extend(idle.map(|(end, ..)| format!("`{end}` is listed and in no configuration")));
    assert!(tried > 700, "only {tried} numbers were tried");
    assert!(faults.is_empty(), "{} of {tried}:\n{}", faults.len(), faults.join("\n"));
}
