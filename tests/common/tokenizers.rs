//! Folders with the tokenizers of `tests/data/tokenizers`, unpacked and named as models ship them.
#![allow(dead_code, reason = "each test file that includes this uses some of it")]
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::io::BufReader;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tramontane::files::ModelFiles;
use tramontane::tokenizer::Tokenizer;

/// The tokenizers, by the names that the vectors give them, with their file and its name in a model.
pub(crate) const FILES: [(&str, &str, &str); 15] = [
    ("spm_v1", "tokenizer.model.v1", "tokenizer.model"),
    ("spm_v2", "mistral_instruct_tokenizer_240216.model.v2", "tokenizer.model.v2"),
    ("spm_v3", "mistral_instruct_tokenizer_240323.model.v3", "tokenizer.model.v3"),
    ("spm_v7", "mistral_instruct_tokenizer_241114.model.v7", "tokenizer.model.v7m1"),
    ("tekken_240911_v3", "tekken_240911.json.xz", "tekken.json"),
    ("tekken_v7", "tekken_240911.json.xz", "tekken.json"),
    ("tekken_v11", "tekken_240911.json.xz", "tekken.json"),
    ("tekken_v13", "tekken_240911.json.xz", "tekken.json"),
    ("tekken_v15", "tekken_240911.json.xz", "tekken.json"),
    ("spm_v1.json", "spm_v1.tokenizer.json.xz", "tokenizer.json"),
    ("spm_v2.json", "spm_v2.tokenizer.json.xz", "tokenizer.json"),
    ("spm_v3.json", "spm_v3.tokenizer.json.xz", "tokenizer.json"),
    ("spm_v3.metaspace_first.json", "spm_v3.metaspace_first.tokenizer.json.xz", "tokenizer.json"),
    ("spm_v7.json", "spm_v7.tokenizer.json.xz", "tokenizer.json"),
    ("tekken_240911_v3.json", "tekken_240911_v3.tokenizer.json.xz", "tokenizer.json"),
];

/// The folder of test data.
pub(crate) fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizers")
}

/// The content of a tokenizer file, unpacked; `tekken_v7`, `v11`, `v13` and `v15` are made from the one that
/// is published with Nemo and the special tokens in `tekken_patches.json`.
pub(crate) fn content(name: &str) -> Vec<u8> {
    let (_, file, _) = FILES.iter().find(|f| f.0 == name).expect("a tokenizer of that name");
    if !file.ends_with(".xz") {
        return std::fs::read(data().join(file)).expect("test data");
    }
    let json = unpacked(file);
    let patches = std::fs::read(data().join("tekken_patches.json")).expect("test data");
    let patches: serde_json::Value = serde_json::from_slice(&patches).expect("json");
    let Some(patch) = patches.get(name) else { return json };
    let mut tekken: serde_json::Value = serde_json::from_slice(&json).expect("json");
    let file = tekken.as_object_mut().expect("an object");
    file.remove("image");
    file["config"]["version"] = patch["version"].clone();
    file.insert("special_tokens".to_owned(), patch["special_tokens"].clone());
    if let Some(settings) = patch.get("model_settings_builder") {
        file.insert("model_settings_builder".to_owned(), settings.clone());
    }
    serde_json::to_vec(&tekken).expect("json")
}

/// The content of a compressed file.
pub(crate) fn unpacked(file: &str) -> Vec<u8> {
    let packed = std::fs::read(data().join(file)).expect("test data");
    let mut bytes = Vec::new();
    lzma_rs::xz_decompress(&mut BufReader::new(&packed[..]), &mut bytes).expect("xz");
    bytes
}

/// A folder that holds this tokenizer and nothing else.
pub(crate) fn folder(name: &str) -> TempDir {
    let (_, _, as_name) = FILES.iter().find(|f| f.0 == name).expect("a tokenizer of that name");
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join(as_name), content(name)).expect("a file");
    dir
}

/// This tokenizer, loaded.
pub(crate) fn load(name: &str) -> Tokenizer {
    let dir = folder(name);
    let loaded = Tokenizer::load(&ModelFiles::folder(dir.path())).expect("a sound tokenizer");
    loaded.expect("a tokenizer")
}
