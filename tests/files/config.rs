//! D: the configuration. What is not implemented is refused by name, never passed over.

use serde_json::json;

use crate::tiny::Folder;
use crate::{Case, bad, good};

const CONFIG: &str = "config.json";

#[test]
fn configurations_are_read_strictly() {
    let parts =
        [text(), sizes(), heads(), rope(), features(), unknown_keys(), family(), generation()];
    crate::check(parts.into_iter().flatten());
}

/// The valid configuration's text.
fn valid() -> String {
    serde_json::Value::Object(crate::tiny::config()).to_string()
}

fn text() -> Vec<Case> {
    vec![
        bad("D01a", "no configuration", |f| f.remove(CONFIG), &[CONFIG]),
        bad("D01b", "an empty file", |f| f.write(CONFIG, ""), &["empty", CONFIG]),
        good("D01c", "a byte order mark", |f| f.write(CONFIG, format!("\u{feff}{}", valid())), &[]),
        bad(
            "D01d",
            "a trailing comma",
            |f| f.write(CONFIG, valid().replace('}', ",}")),
            &["not JSON", "line 1", CONFIG],
        ),
        bad("D01e", "a list", |f| f.write(CONFIG, "[]"), &["a list", "object", CONFIG]),
        bad("D01f", "not UTF-8", |f| f.write(CONFIG, b"{\"a\": \"\xff\"}"), &["not UTF-8", CONFIG]),
        bad(
            "D01g",
            "lists nested 100,000 deep",
            |f| f.write(CONFIG, format!("{{\"a\":{}", "[".repeat(100_000))),
            &["not JSON", CONFIG],
        ),
        bad(
            "D01h",
            "a key twice",
            |f| f.write(CONFIG, valid().replacen('{', "{\"hidden_size\":32,", 1)),
            &["`hidden_size` stands twice", CONFIG],
        ),
        bad(
            "D01i",
            "a key twice in an object",
            |f| {
                let twice =
                    "{\"rope_scaling\":{\"factor\":2.0,\"type\":\"linear\",\"factor\":4.0},";
                f.write(CONFIG, valid().replacen('{', twice, 1));
            },
            &["`rope_scaling.factor` stands twice", CONFIG],
        ),
        bad(
            "D27",
            "17 MiB of spaces",
            |f| f.write(CONFIG, " ".repeat(17 << 20) + &valid()),
            &["16777216", CONFIG],
        ),
    ]
}

fn sizes() -> Vec<Case> {
    const HIDDEN: &[&str] = &["`hidden_size`", CONFIG];
    vec![
        bad("D02a", "hidden_size 0", |f| f.set("hidden_size", json!(0)), HIDDEN),
        bad("D02b", "hidden_size −1", |f| f.set("hidden_size", json!(-1)), HIDDEN),
        bad("D02c", "hidden_size 1e18", |f| f.set("hidden_size", json!(1e18)), HIDDEN),
        bad("D02d", "hidden_size as text", |f| f.set("hidden_size", json!("64")), HIDDEN),
        bad("D02e", "hidden_size 64.5", |f| f.set("hidden_size", json!(64.5)), HIDDEN),
        bad("D02f", "hidden_size null", |f| f.set("hidden_size", json!(null)), HIDDEN),
        bad(
            "D02g",
            "hidden_size 2^31",
            |f| f.set("hidden_size", json!(1_u64 << 31)),
            &["hidden_size"],
        ),
        bad("D02h", "hidden_size 2^62", |f| f.set("hidden_size", json!(1_u64 << 62)), HIDDEN),
        bad(
            "D02i",
            "heads of 2^30 elements",
            |f| f.set("head_dim", json!(1 << 30)),
            &["self_attn.q_proj.weight", "[4294967296, 64]", "`head_dim`"],
        ),
        bad(
            "D02j",
            "every width at its largest",
            |f| {
                f.config(|c| {
                    for key in
                        ["hidden_size", "intermediate_size", "num_attention_heads", "head_dim"]
                    {
                        c.insert(key.to_owned(), json!(1_u64 << 31));
                    }
                    c.insert("num_key_value_heads".to_owned(), json!(1_u64 << 31));
                });
            },
            &["model.embed_tokens.weight", "[300, 64]", "[300, 2147483648]"],
        ),
        bad(
            "D03",
            "a billion layers",
            |f| f.set("num_hidden_layers", json!(1_000_000_000)),
            &["`num_hidden_layers`", "1000000000"],
        ),
        bad(
            "D03b",
            "4,096 layers",
            |f| f.set("num_hidden_layers", json!(4096)),
            &["model.layers.2.", "missing", "4096 layers"],
        ),
    ]
}

fn heads() -> Vec<Case> {
    vec![
        bad(
            "D04",
            "no heads",
            |f| f.set("num_attention_heads", json!(0)),
            &["`num_attention_heads`", CONFIG],
        ),
        bad(
            "D05",
            "key/value heads that do not divide the heads",
            |f| f.set("num_key_value_heads", json!(3)),
            &["`num_key_value_heads` is 3", "divisor", CONFIG],
        ),
        bad(
            "D06",
            "heads of 15 elements",
            |f| f.set("head_dim", json!(15)),
            &["`head_dim`", "15", "even"],
        ),
        bad(
            "D07a",
            "heads that do not divide the width, and no head_dim",
            |f| {
                f.config(|c| {
                    c.remove("head_dim");
                    c.insert("num_attention_heads".to_owned(), json!(3));
                    c.insert("num_key_value_heads".to_owned(), json!(3));
                });
            },
            &["`num_attention_heads` is 3", "`head_dim`", CONFIG],
        ),
        good("D07b", "no head_dim, but it follows", |f| f.unset("head_dim"), &[]),
        bad(
            "D07c",
            "a head_dim that the tensors do not have",
            |f| f.set("head_dim", json!(32)),
            &["self_attn.q_proj.weight", "[64, 64]", "[128, 64]", "`head_dim`"],
        ),
        bad(
            "D08",
            "another vocab_size than the embedding has rows",
            |f| f.set("vocab_size", json!(301)),
            &["model.embed_tokens.weight", "[300, 64]", "[301, 64]", "`vocab_size`"],
        ),
        bad(
            "D24a",
            "no positions",
            |f| f.set("max_position_embeddings", json!(0)),
            &["`max_position_embeddings`", CONFIG],
        ),
        bad(
            "D24b",
            "2^40 positions",
            |f| f.set("max_position_embeddings", json!(1_u64 << 40)),
            &["`max_position_embeddings`", CONFIG],
        ),
        good(
            "D24c",
            "2^29 positions: nothing is sized by them",
            |f| f.set("max_position_embeddings", json!(1 << 29)),
            &[],
        ),
    ]
}

/// A configuration with this `rope_scaling`.
fn scaling(folder: &Folder, value: serde_json::Value) {
    folder.set("rope_scaling", value);
}

fn rope() -> Vec<Case> {
    vec![
        good("D09a", "yarn", |f| scaling(f, json!({"rope_type": "yarn", "factor": 4.0})), &[]),
        good("D09b", "linear", |f| scaling(f, json!({"type": "linear", "factor": 2.0})), &[]),
        good("D09c", "dynamic", |f| scaling(f, json!({"type": "dynamic", "factor": 2.0})), &[]),
        bad(
            "D09d",
            "longrope",
            |f| scaling(f, json!({"type": "longrope"})),
            &["\"longrope\"", CONFIG],
        ),
        bad("D09e", "su", |f| scaling(f, json!({"type": "su"})), &["\"su\"", CONFIG]),
        bad("D09f", "mrope", |f| scaling(f, json!({"type": "mrope"})), &["\"mrope\"", CONFIG]),
        bad(
            "D09g",
            "foo",
            |f| scaling(f, json!({"rope_type": "foo"})),
            &["\"foo\"", "yarn", CONFIG],
        ),
        bad(
            "D09h",
            "a key that this type does not have",
            |f| scaling(f, json!({"type": "linear", "factor": 2.0, "long_factor": [1.0]})),
            &["`rope_scaling.long_factor`", CONFIG],
        ),
        bad(
            "D10a",
            "factor 0",
            |f| scaling(f, json!({"type": "linear", "factor": 0.0})),
            &["`rope_scaling.factor`", "0"],
        ),
        bad(
            "D10b",
            "no factor",
            |f| scaling(f, json!({"type": "yarn"})),
            &["`rope_scaling.factor`", "missing"],
        ),
        bad(
            "D10c",
            "llama3 with equal borders",
            |f| {
                scaling(
                    f,
                    json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                        "high_freq_factor": 4.0, "original_max_position_embeddings": 256}),
                );
            },
            &["low_freq_factor", "high_freq_factor", CONFIG],
        ),
        bad(
            "D10d",
            "an infinite factor",
            |f| {
                f.write(
                    CONFIG,
                    valid().replacen(
                        '{',
                        r#"{"rope_scaling": {"type": "linear", "factor": Infinity},"#,
                        1,
                    ),
                )
            },
            &["`rope_scaling.factor`", "finite", CONFIG],
        ),
        good(
            "D11a",
            "the base inside rope_parameters",
            |f| {
                f.config(|c| {
                    c.remove("rope_theta");
                    c.insert(
                        "rope_parameters".to_owned(),
                        json!({"rope_type": "default", "rope_theta": 1e6}),
                    );
                });
            },
            &[],
        ),
        bad(
            "D11b",
            "two bases that disagree",
            |f| f.set("rope_parameters", json!({"rope_type": "default", "rope_theta": 1e6})),
            &["`rope_theta` is 10000", "1000000", CONFIG],
        ),
        bad("D12a", "rope_theta 0", |f| f.set("rope_theta", json!(0)), &["`rope_theta`", CONFIG]),
        bad(
            "D12b",
            "rope_theta −1",
            |f| f.set("rope_theta", json!(-1.0)),
            &["`rope_theta`", CONFIG],
        ),
        good(
            "D12c",
            "no rope_theta",
            |f| f.unset("rope_theta"),
            &["`rope_theta` is missing", "10000"],
        ),
    ]
}

fn features() -> Vec<Case> {
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

fn unknown_keys() -> Vec<Case> {
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

fn family() -> Vec<Case> {
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

fn generation() -> Vec<Case> {
    fn write(folder: &Folder, text: &str) {
        folder.write("generation_config.json", text);
    }
    const GENERATION: &str = "generation_config.json";
    vec![
        good("D25a", "a list of end tokens", |f| f.set("eos_token_id", json!([2, 7])), &[]),
        good("D25b", "no end token", |f| f.set("eos_token_id", json!(null)), &[]),
        bad(
            "D25c",
            "an end token without a row",
            |f| f.set("eos_token_id", json!(300)),
            &["`eos_token_id`", "300", CONFIG],
        ),
        bad(
            "D25d",
            "an end token as text",
            |f| f.set("eos_token_id", json!("</s>")),
            &["`eos_token_id`", CONFIG],
        ),
        bad(
            "D25e",
            "a negative end token",
            |f| f.set("eos_token_id", json!(-1)),
            &["`eos_token_id`", CONFIG],
        ),
        bad(
            "D26a",
            "a negative temperature",
            |f| write(f, r#"{"temperature": -1}"#),
            &["temperature", "-1", GENERATION],
        ),
        bad("D26b", "top_p 2", |f| write(f, r#"{"top_p": 2.0}"#), &["top_p", "2", GENERATION]),
        bad("D26c", "not JSON", |f| write(f, "{"), &[GENERATION]),
        good(
            "D26d",
            "an end token without a row",
            |f| write(f, r#"{"eos_token_id": 999}"#),
            &["`eos_token_id`", "999", GENERATION],
        ),
        bad(
            "D26f",
            "a temperature twice",
            |f| write(f, r#"{"temperature": 0.1, "temperature": 2.0}"#),
            &["`temperature` stands twice", GENERATION],
        ),
        good("D26e", "another end token", |f| write(f, r#"{"eos_token_id": 9}"#), &[]),
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

#[test]
fn code_beside_the_model_is_never_executed() {
    let folder = Folder::new();
    folder.set("auto_map", json!({"AutoModelForCausalLM": "modeling_evil.Evil"}));
    let canary = folder.file("executed");
    folder.write("modeling_evil.py", format!("open({canary:?}, 'w')"));
    let outcome = crate::generate(folder.path(), &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(!canary.exists());
}
