//! Packed folders compute the same bits as weights packed at load, for every tiny model, and broken ones are refused.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use common::{Expected, folder, load, prefill};
use tramontane::quantize::quantize;
use tramontane::{ErrorKind, Format, LoadOptions};

/// Packs the tiny model `name` into a new folder.
fn packed(name: &str, format: Format, to: &Path) -> PathBuf {
    let to = to.join(format!("{name}-{format}"));
    let options = LoadOptions { format, threads: Some(1), ..LoadOptions::default() };
    let report = quantize(folder(name).to_str().unwrap(), &options, &to).unwrap();
    assert!(report.matrices > 0, "{name}");
    let limit = if format == Format::Q4 { 0.09 } else { 0.01 };
    assert!(report.largest_error < limit, "{name} {format}: {report:?}");
    to
}

#[test]
fn every_tiny_model_computes_the_same_from_a_packed_folder() {
    let temp = tempfile::tempdir().unwrap();
    for name in common::names() {
        let ids = Expected::of(&name).ids("input_ids_0");
        for format in [Format::Q8, Format::Q4, Format::F32] {
            let to = packed(&name, format, temp.path());
            let want = prefill(&load(&folder(&name), format).unwrap(), &ids);
            let model = load(&to, Format::Auto).unwrap();
            assert_eq!(model.info().format, format.to_string(), "{name}");
            let got = prefill(&model, &ids);
            let same = got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && got.len() == want.len(), "{name} {format}");
        }
    }
}

#[test]
fn the_built_in_model_can_be_packed() {
    let temp = tempfile::tempdir().unwrap();
    let to = temp.path().join("brise-q4");
    let options = LoadOptions { format: Format::Q4, ..LoadOptions::default() };
    let report = quantize("", &options, &to).unwrap();
    assert!(report.bytes * 2 < report.source_bytes, "{report:?}");
    let model = load(&to, Format::Auto).unwrap();
    let ids = [1, 200, 300, 400];
    let want = prefill(&tramontane::Model::load("", &options).unwrap(), &ids);
    assert_eq!(prefill(&model, &ids), want);
    assert!(model.tokenizer().is_some());
}

#[test]
fn what_cannot_be_packed_is_refused_and_nothing_is_lost() {
    let temp = tempfile::tempdir().unwrap();
    let to = packed("llama_tied", Format::Q8, temp.path());
    let source = folder("llama_tied");
    let q4 = LoadOptions { format: Format::Q4, ..LoadOptions::default() };
    let refused = |name: &Path, to: &Path, words: &str| {
        let e = quantize(name.to_str().unwrap(), &q4, to).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::BadInput);
        assert!(e.to_string().contains(words), "{e}");
    };
    let before = std::fs::read(to.join("model.safetensors")).unwrap();
    refused(&source, &to, "not empty");
    refused(&to, &temp.path().join("again"), "packed already");
    assert_eq!(std::fs::read(to.join("model.safetensors")).unwrap(), before);
    assert!(!temp.path().join("again").exists(), "nothing is made before the check");

    let Err(e) = load(&to, Format::Q4) else { panic!("q4 out of q8") };
    assert!(e.to_string().contains("packed as q8 and cannot become q4"), "{e}");
    let mut cut = before.clone();
    cut.truncate(before.len() - 64);
    std::fs::write(to.join("model.safetensors"), cut).unwrap();
    let Err(e) = load(&to, Format::Auto) else { panic!("a cut file") };
    assert_eq!(e.kind(), ErrorKind::BadModel, "{e}");
    // As many bytes as another shape has.
    let text = String::from_utf8_lossy(&before).replace("packed_q8_v1", "packed_q4_v1");
    assert_eq!(text.matches("packed_q4_v1").count(), 15, "one for each matrix");
    let renamed = replace(&before, b"packed_q8_v1", b"packed_q4_v1");
    std::fs::write(to.join("model.safetensors"), renamed).unwrap();
    let Err(e) = load(&to, Format::Auto) else { panic!("q8 bytes as q4") };
    assert!(e.to_string().contains("bytes, expected"), "{e}");
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for at in 0..bytes.len() - from.len() {
        if bytes[at..].starts_with(from) {
            bytes[at..at + to.len()].copy_from_slice(to);
        }
    }
    bytes
}
