//! What `inspect` says of models that are not broken.

use std::path::Path;

use serde_json::{Value, json};

use crate::run;
use crate::tiny::Folder;

fn report(model: &Path, flags: &[&str]) -> Value {
    let outcome = run("inspect", model, &[&["--json"], flags].concat());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    serde_json::from_str(&outcome.stdout).unwrap()
}

#[test]
fn the_report_tells_shapes_types_and_files() {
    let folder = Folder::new();
    folder.tensor("model.norm.weight", |t| t.make_bf16());
    let report = report(folder.path(), &[]);
    assert_eq!(report["family"], "MistralForCausalLM");
    assert_eq!(report["layout"], "hugging face");
    assert_eq!(report["parameters"], 100_160);
    assert_eq!(report["stored"]["F32"], json!({ "tensors": 20, "bytes": 4 * (100_160 - 64) }));
    assert_eq!(report["stored"]["BF16"], json!({ "tensors": 1, "bytes": 128 }));
    assert_eq!(report["layers"][0]["count"], 2);
    assert_eq!(report["tokenizer"], Value::Null);
    assert_eq!(report["template"], Value::Null);
    assert_eq!(report["end_tokens"], json!([2]));
    assert!(report["files"][0]["path"].as_str().unwrap().ends_with("model.safetensors"));
    assert_eq!(report["run"]["format"], "f32");
}

#[test]
fn memory_is_told_for_each_format_and_context() {
    let folder = Folder::new();
    folder.set("max_position_embeddings", json!(10_000));
    let report = report(folder.path(), &["--kv", "f16"]);
    let needs = report["memory"].as_array().unwrap();
    let find = |format: &str, context: usize| {
        let found = needs.iter().find(|n| n["format"] == format && n["context"] == context);
        found.unwrap_or_else(|| panic!("no {format} with {context} tokens in {needs:?}"))
    };
    for context in [2048, 8192, 10_000] {
        let need = find("bf16", context);
        assert_eq!(need["weights"], 2 * 100_160);
        // 2 layers · (keys + values) · 2 heads · 16 elements · 2 bytes
        assert_eq!(need["cache"], 256 * context);
        assert_eq!(find("f32", context)["weights"], 4 * 100_160);
    }
    assert!(needs.iter().all(|n| n["context"].as_u64() <= Some(10_000)));
}

#[test]
fn the_text_names_what_was_left_aside_and_lists_tensors() {
    let folder = Folder::new();
    std::fs::copy(folder.file("model.safetensors"), folder.file("consolidated.safetensors"))
        .unwrap();
    let outcome = run("inspect", folder.path(), &["--tensors", "--threads", "1"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    for words in [
        "MistralForCausalLM (hugging face layout)",
        "2 × attention with 4 heads of 16, 2 key/value heads",
        "rope of 16, theta 10000",
        "gated MLP of 96 with SiLU",
        "left aside consolidated.safetensors",
        "with 1 threads",
        "memory by format and context",
        "model.layers.1.self_attn.k_proj.weight",
        "[32, 64]",
    ] {
        assert!(outcome.stdout.contains(words), "`{words}` is not in:\n{}", outcome.stdout);
    }
}

#[test]
fn every_tiny_model_can_be_inspected() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/logits");
    for entry in std::fs::read_dir(models).unwrap() {
        let model = entry.unwrap().path();
        let outcome = run("inspect", &model, &["--json"]);
        let known = outcome.code == Some(0);
        // A family that is not there yet is named, and nothing else.
        let named = outcome.code == Some(2) && outcome.stderr.contains("not among the supported");
        assert!(known || named, "{}: {}", model.display(), outcome.stderr);
    }
}
