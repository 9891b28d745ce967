//! `bench`: its forms and fields.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::{Command, Output};

use serde_json::Value;

fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tramontane"));
    command.args(["bench", "-q", "--offline"]).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn lists_make_a_cross_product_with_llama_benchs_fields() {
    let args =
        ["-p", "8", "-n", "4", "--pg", "8,4", "-d", "0,16", "-t", "1,2", "-r", "2", "-o", "json"];
    let records: Vec<Value> = serde_json::from_str(&stdout(&bench(&args))).unwrap();
    assert_eq!(records.len(), 3 * 2 * 2);
    for record in &records {
        for field in [
            "n_prompt",
            "n_gen",
            "n_depth",
            "n_threads",
            "avg_ns",
            "stddev_ns",
            "avg_ts",
            "stddev_ts",
        ] {
            assert!(record[field].is_number(), "{field}");
        }
        assert_eq!(record["samples_ns"].as_array().unwrap().len(), 2);
        assert_eq!(record["samples_ts"].as_array().unwrap().len(), 2);
        let ts = record["samples_ts"][0].as_f64().unwrap();
        let n = record["n_prompt"].as_f64().unwrap() + record["n_gen"].as_f64().unwrap();
        let ns = record["samples_ns"][0].as_f64().unwrap();
        assert!((ts - n / ns * 1e9).abs() < 1e-6 * ts);
    }
    // The same tokens for one thread and two.
    let hash = |threads: u64| {
        let of = |r: &&Value| {
            r["n_threads"] == threads && r["n_gen"] == 4 && r["n_prompt"] == 0 && r["n_depth"] == 16
        };
        records.iter().find(of).unwrap()["token_hash"].clone()
    };
    assert!(hash(1).is_string());
    assert_eq!(hash(1), hash(2));
}

#[test]
fn every_form_holds_every_test() {
    for (form, words) in
        [("md", "| pp8 |"), ("csv", "\"pp8\""), ("jsonl", "\"test\":\"pp8\""), ("sql", "'pp8'")]
    {
        let text = stdout(&bench(&["-p", "8", "-n", "4", "-r", "1", "-o", form]));
        assert!(text.contains(words) && text.contains("tg4"), "{form}: {text}");
    }
}

#[test]
fn an_earlier_report_stands_beside_and_a_plot_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let (report, plot) = (dir.path().join("r.json"), dir.path().join("p.svg"));
    std::fs::write(&report, stdout(&bench(&["-p", "8", "-n", "0", "-r", "1", "-o", "json"])))
        .unwrap();
    let args = [
        "-p",
        "8",
        "-n",
        "0",
        "-r",
        "1",
        "--compare",
        report.to_str().unwrap(),
        "--plot",
        plot.to_str().unwrap(),
    ];
    let table = stdout(&bench(&args));
    assert!(table.contains("ratio"), "{table}");
    assert!(std::fs::read_to_string(plot).unwrap().contains("<polyline"));
}

#[test]
fn loading_is_timed_with_the_files_in_memory_and_without() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/logits/llama_gqa_sharded");
    let record = |flags: &[&str]| {
        let args = [&["-m", model, "-p", "4", "-n", "0", "-r", "1", "-o", "jsonl"], flags].concat();
        serde_json::from_str::<Value>(&stdout(&bench(&args))).unwrap()
    };
    assert!(record(&[])["load_cold_ms"].is_null());
    let timed = record(&["--load"]);
    assert!(timed["load_ms"].as_f64() > Some(0.0));
    assert_eq!(timed["load_cold_ms"].is_number(), cfg!(target_os = "linux"));
}

#[test]
fn what_does_not_fit_the_context_is_refused() {
    let output = bench(&["-p", "100000", "-n", "0"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("context"));
}
