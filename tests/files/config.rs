//! D: the configuration. What is not implemented is refused by name, never passed over.

use serde_json::json;

use crate::tiny::Folder;
use crate::{Case, bad, good};

mod features;
mod rope;

use features::{family, features, unknown_keys};
use rope::rope;

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
fn code_beside_the_model_is_never_executed() {
    let folder = Folder::new();
    folder.set("auto_map", json!({"AutoModelForCausalLM": "modeling_evil.Evil"}));
    let canary = folder.file("executed");
    folder.write("modeling_evil.py", format!("open({canary:?}, 'w')"));
    let outcome = crate::generate(folder.path(), &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(!canary.exists());
}
