//! `eval`: the perplexity that the reference implementation measures.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn eval(args: &[&str]) -> Value {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/brise/eval.txt");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tramontane"));
    let output =
        command.args(["eval", "-q", "--offline", "--json"]).arg(text).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn perplexity_is_that_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/brise/expected.json");
    let expected: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let report = eval(&["--format", "f32", "--limit", "17408"]);
    assert_eq!(report["perplexity"]["tokens"], expected["perplexity"]["tokens"]);
    let (found, nll) =
        (report["perplexity"]["mean_nll"].as_f64().unwrap(), &expected["perplexity"]["mean_nll"]);
    assert!((found - nll.as_f64().unwrap()).abs() < 1e-4, "found {found}, expected {nll}");
}

#[test]
fn a_format_is_close_to_itself_and_not_far_from_its_source() {
    let same =
        eval(&["--format", "f32", "--reference", "f32", "--limit", "256", "--window", "128"]);
    assert_eq!(same["divergence"]["mean_kl"], 0.0);
    assert_eq!(same["divergence"]["same_top_percent"], 100.0);
    let near =
        eval(&["--format", "f16", "--reference", "f32", "--limit", "256", "--window", "128"]);
    let kl = near["divergence"]["mean_kl"].as_f64().unwrap();
    assert!(kl > 0.0 && kl < 1e-4, "{kl}");
}

#[test]
fn more_text_before_a_token_makes_it_likelier() {
    let nll = |stride: &str| {
        let report = eval(&["--limit", "2048", "--window", "64", "--stride", stride]);
        report["perplexity"]["mean_nll"].as_f64().unwrap()
    };
    assert!(nll("16") < nll("64"));
}
