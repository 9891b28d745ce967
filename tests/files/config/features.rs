//! D13 to D22: what a configuration asks for beyond sizes: windows, activations, keys of other families.

use serde_json::json;

use super::CONFIG;
use crate::tiny::Folder;
use crate::{Case, bad, good};

pub(super) fn features() -> Vec<Case> {
    vec![
        good("D13", "a window of 4", |f| f.set("sliding_window", json!(4)), &[]),
        bad(
            "D14a",
            "a window of 0",
            |f| f.set("sliding_window", json!(0)),
            &["`sliding_window`", CONFIG],
        ),
        bad(
            "D14b",
            "a window of −1",
            |f| f.set("sliding_window", json!(-1)),
            &["`sliding_window`", CONFIG],
        ),
        good("D15a", "gelu", |f| f.set("hidden_act", json!("gelu")), &[]),
        good("D15b", "relu", |f| f.set("hidden_act", json!("relu")), &[]),
        bad(
            "D15c",
            "an unknown activation",
            |f| f.set("hidden_act", json!("evil")),
            &["`hidden_act`", "\"evil\"", CONFIG],
        ),
        bad("D16a", "epsilon 0", |f| f.set("rms_norm_eps", json!(0)), &["`rms_norm_eps`", CONFIG]),
        bad(
            "D16b",
            "a negative epsilon",
            |f| f.set("rms_norm_eps", json!(-1e-5)),
            &["`rms_norm_eps`", CONFIG],
        ),
        bad(
            "D16c",
            "epsilon as text",
            |f| f.set("rms_norm_eps", json!("1e-5")),
            &["`rms_norm_eps`", CONFIG],
        ),
        bad(
            "D16d",
            "no epsilon",
            |f| f.unset("rms_norm_eps"),
            &["`rms_norm_eps`", "missing", CONFIG],
        ),
        bad(
            "D17a",
            "attention biases that are not stored",
            |f| f.set("attention_bias", json!(true)),
            &["self_attn.q_proj.bias", "missing"],
        ),
        bad(
            "D17b",
            "MLP biases that are not stored",
            |f| f.set("mlp_bias", json!(true)),
            &["mlp.", ".bias", "missing"],
        ),
    ]
}

pub(super) fn unknown_keys() -> Vec<Case> {
    vec![
        bad(
            "D18a",
            "capped attention scores",
            |f| f.set("attn_logit_softcapping", json!(50.0)),
            &["`attn_logit_softcapping`", CONFIG],
        ),
        bad(
            "D18b",
            "normed queries and keys",
            |f| f.set("use_qk_norm", json!(true)),
            &["`use_qk_norm`", CONFIG],
        ),
        bad(
            "D18c",
            "partial rotation",
            |f| f.set("partial_rotary_factor", json!(0.5)),
            &["`partial_rotary_factor`", CONFIG],
        ),
        bad(
            "D18d",
            "a scaled residual",
            |f| f.set("residual_multiplier", json!(0.2)),
            &["`residual_multiplier`", CONFIG],
        ),
        bad(
            "D18e",
            "a scaled embedding",
            |f| f.set("embedding_multiplier", json!(12.0)),
            &["`embedding_multiplier`", CONFIG],
        ),
        bad(
            "D18f",
            "scaled logits",
            |f| f.set("logit_scale", json!(0.1)),
            &["`logit_scale`", CONFIG],
        ),
        bad(
            "D19",
            "experts",
            |f| f.set("num_local_experts", json!(8)),
            &["`num_local_experts`", CONFIG],
        ),
        bad("D20a", "gptq", |f| quantised(f, "gptq"), &["gptq", "quantization_config", CONFIG]),
        bad("D20b", "awq", |f| quantised(f, "awq"), &["awq", "quantization_config", CONFIG]),
        bad(
            "D20c",
            "bitsandbytes",
            |f| quantised(f, "bitsandbytes"),
            &["bitsandbytes", "quantization_config"],
        ),
        bad(
            "D20d",
            "an unknown method",
            |f| quantised(f, "evil"),
            &["evil", "quantization_config", CONFIG],
        ),
        bad(
            "D20e",
            "no method",
            |f| f.set("quantization_config", json!({"bits": 4})),
            &["quantization_config"],
        ),
        good("D23a", "an unknown key", |f| f.set("use_magic", json!(true)), &["`use_magic`"]),
        bad(
            "D23b",
            "an unknown key of the numerics",
            |f| f.set("use_magic_attention", json!(true)),
            &["`use_magic_attention`", CONFIG],
        ),
    ]
}

fn quantised(folder: &Folder, method: &str) {
    folder.set("quantization_config", json!({"quant_method": method, "bits": 4}));
}

pub(super) fn family() -> Vec<Case> {
    const NAMES: &[&str] = &["`architectures`", "MistralForCausalLM", CONFIG];
    vec![
        bad(
            "D21a",
            "an unknown family",
            |f| f.set("architectures", json!(["OPTForCausalLM"])),
            &["OPTForCausalLM", "MistralForCausalLM", CONFIG],
        ),
        bad("D21b", "no family", |f| f.unset("architectures"), NAMES),
        bad("D21c", "an empty list", |f| f.set("architectures", json!([])), NAMES),
        bad(
            "D21d",
            "a number",
            |f| f.set("architectures", json!(7)),
            &["`architectures`", "7", CONFIG],
        ),
        bad(
            "D21e",
            "an escape sequence",
            |f| f.set("architectures", json!(["\u{1b}[2J\u{7}"])),
            &["\\u{1b}"],
        ),
        good(
            "D22",
            "code beside the model",
            |f| {
                f.set("auto_map", json!({"AutoModelForCausalLM": "modeling_evil.Evil"}));
                let canary = f.file("executed");
                f.write("modeling_evil.py", format!("open({canary:?}, 'w')"));
            },
            &["auto_map"],
        ),
    ]
}

#[test]
fn a_window_hides_what_is_behind_it() {
    let (full, windowed) = (Folder::new(), Folder::new());
    windowed.set("sliding_window", json!(4));
    let ids: Vec<String> = (20..36).map(|id: u32| id.to_string()).collect();
    let (within, beyond) = (ids[..4].join(","), ids.join(","));
    assert!(crate::logits(&full, &within) == crate::logits(&windowed, &within));
    assert!(crate::logits(&full, &beyond) != crate::logits(&windowed, &beyond));
}
