//! What the commands beside `generate` tell about GPUs.

use super::{is_real, json, run, stderr};

#[test]
fn doctor_shows_driver_devices_and_self_tests() {
    if is_real() {
        return;
    }
    let (output, log) = run("devices=2", &["doctor", "--json"]);
    let report = json(&output);
    assert_eq!(log, "");
    let lines: Vec<_> =
        report["cuda"].as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect();
    assert_eq!(lines[0], "driver 13.0");
    assert!(
        lines[1].starts_with("cuda:0 Emulated GPU") && lines[1].ends_with("self-test passed"),
        "{lines:?}"
    );
    assert_eq!(lines.len(), 3);
    let (output, _) = run("skip=gemv_bf16_4", &["doctor", "--json"]);
    assert!(json(&output)["cuda"][1].as_str().unwrap().contains("`linear`"), "{}", stderr(&output));
}

#[test]
fn inspect_tells_where_the_model_would_run() {
    let device = |settings: &str, device: &str| {
        let (output, _) = run(settings, &["inspect", "--json", "--device", device]);
        json(&output)["run"]["device"].as_str().unwrap().to_owned()
    };
    assert!(device("on", "cuda").starts_with("cuda:0"));
    assert!(device("on", "auto").starts_with("cuda:0"));
    assert!(device("on", "cpu").starts_with("cpu"));
    assert!(is_real() || device("devices=0", "auto").starts_with("cpu"));
}

#[test]
fn bench_measures_the_gpu() {
    let args = ["bench", "-p", "8", "-n", "2", "-r", "1", "-o", "json", "--device", "cuda", "-q"];
    let (output, log) = run("memory=100000000", &args);
    assert_eq!(log, "");
    let records = json(&output);
    for record in records.as_array().unwrap() {
        assert_eq!(record["backends"], "CUDA");
        assert!(record["gpu_info"].as_str().unwrap().starts_with("cuda:0"), "{record}");
        assert!(record["bandwidth_gb_s"].as_f64().unwrap() > 0.0, "{record}");
    }
}
