//! What `verify` says of models that are whole, and of those that are not.

use std::path::Path;

use serde_json::{Value, json};

use crate::tiny::Folder;
use crate::{Outcome, run};

/// The exit code, and the outcome of each check by its name.
fn verify(model: &Path) -> (Option<i32>, Value) {
    let Outcome { code, stdout, stderr, .. } = run("verify", model, &["--json"]);
    let report: Value =
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout} {stderr}"));
    assert_eq!(report["ok"] == true, code == Some(0));
    let checks = report["checks"].as_array().unwrap();
    let pairs = checks.iter().map(|c| (c["name"].as_str().unwrap().to_owned(), c.clone()));
    (code, Value::Object(pairs.collect()))
}

fn outcomes(checks: &Value) -> Vec<&str> {
    let names = ["files", "weights", "config", "tokenizer", "template", "logits", "perplexity"];
    names.iter().map(|name| checks[*name]["outcome"].as_str().unwrap()).collect()
}

#[test]
fn a_whole_model_passes() {
    let brise = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/brise");
    let (code, checks) = verify(&brise);
    let want = ["skipped", "passed", "passed", "passed", "skipped", "passed", "passed"];
    assert_eq!((code, outcomes(&checks)), (Some(0), want.to_vec()), "{checks}");
    let table = run("verify", &brise, &[]);
    assert_eq!(table.stdout.lines().count(), 7, "{}", table.stdout);
    assert!(table.stdout.contains("perplexity  ok "), "{}", table.stdout);
}

#[test]
fn a_number_that_is_none_is_named() {
    let folder = Folder::new();
    folder.tensor("model.layers.1.mlp.up_proj.weight", |t| {
        t.data[40..44].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let (code, checks) = verify(folder.path());
    assert_eq!(code, Some(2));
    let detail = checks["weights"]["detail"].as_str().unwrap();
    assert!(detail.contains("`model.layers.1.mlp.up_proj.weight` holds NaN"), "{detail}");
    assert_eq!(checks["config"]["outcome"], "passed");
    assert_eq!(checks["logits"]["outcome"], "failed");
}

#[test]
fn a_contradiction_fails_and_what_follows_is_skipped() {
    let folder = Folder::new();
    folder.set("num_key_value_heads", json!(4));
    let (code, checks) = verify(folder.path());
    assert_eq!(code, Some(2));
    let want = ["skipped", "passed", "failed", "skipped", "skipped", "skipped", "skipped"];
    assert_eq!(outcomes(&checks), want, "{checks}");
    let detail = checks["config"]["detail"].as_str().unwrap();
    assert!(detail.contains("num_key_value_heads"), "{detail}");
}

#[test]
fn a_tokenizer_that_changes_texts_fails() {
    let folder = tempfile::tempdir().unwrap();
    let brise = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/brise");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(brise.join(name), folder.path().join(name)).unwrap();
    }
    let text = std::fs::read_to_string(brise.join("tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    tokenizer["normalizer"] = json!({ "type": "Lowercase" });
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let (code, checks) = verify(folder.path());
    assert_eq!((code, &checks["tokenizer"]["outcome"]), (Some(2), &json!("failed")), "{checks}");
}

#[cfg(all(feature = "hub", unix))]
#[test]
fn a_file_of_the_cache_that_was_changed_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let repo = cache.path().join("models--a--b");
    let commit = "0123456789012345678901234567890123456789";
    let snapshot = repo.join("snapshots").join(commit);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repo.join("blobs")).unwrap();
    let folder = Folder::new();
    // The hash is that of another content.
    let blob = repo.join("blobs").join("a".repeat(64));
    std::fs::copy(folder.file("model.safetensors"), &blob).unwrap();
    std::os::unix::fs::symlink(&blob, snapshot.join("model.safetensors")).unwrap();
    std::fs::copy(folder.file("config.json"), snapshot.join("config.json")).unwrap();
    let (code, checks) = verify(&snapshot);
    assert_eq!(code, Some(2));
    let detail = checks["files"]["detail"].as_str().unwrap();
    assert!(detail.contains("model.safetensors does not have the hash"), "{detail}");
}
