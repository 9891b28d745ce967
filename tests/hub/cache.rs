//! What is fetched, where it lies, and what is used without asking.

use tramontane::ErrorKind;
use tramontane::files::ModelFiles;
use tramontane::hub::{HubOptions, ModelRef, list_cached, pull, resolve};

use crate::fake;
use crate::fake::REPO;
use crate::{SIZE, names, refused, setup};

#[test]
fn a_model_is_fetched_once_and_only_what_it_needs() {
    let s = setup();
    let pulled = s.pull().unwrap();
    assert_eq!(pulled.commit, s.hub.commit());
    assert_eq!(names(&pulled.path), ["config.json", "model.safetensors", "tokenizer.json"]);
    let size: u64 = pulled.files.iter().map(|file| file.size).sum();
    assert_eq!(pulled.transferred, size);
    s.assert_whole();
    let head = std::fs::read_to_string(s.repo().join("refs/main")).unwrap();
    assert_eq!(head, s.hub.commit());

    s.hub.reset();
    assert_eq!(s.pull().unwrap().transferred, 0);
    assert_eq!(s.hub.log().len(), 1, "only the list is asked for: {:?}", s.hub.log());

    s.hub.reset();
    let model = ModelRef::parse(Some(REPO)).unwrap();
    let ModelFiles::Folder { path, weights: None } = resolve(&model, &s.options, &()).unwrap()
    else {
        panic!("expected a folder")
    };
    assert_eq!(path, pulled.path);
    assert!(s.hub.log().is_empty(), "a complete model needs no network");
}

#[test]
fn a_sharded_model_is_fetched_by_its_index_and_the_other_copy_left() {
    let s = setup();
    s.hub.remove("model.safetensors");
    s.hub.put("consolidated.safetensors", &fake::noise(1000));
    s.hub.put("a.safetensors", &fake::noise(2000));
    s.hub.put("b.safetensors", &fake::noise(3000));
    let index = br#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors"}}"#;
    s.hub.put("model.safetensors.index.json", index);
    let pulled = s.pull().unwrap();
    assert_eq!(
        names(&pulled.path),
        [
            "a.safetensors",
            "b.safetensors",
            "config.json",
            "model.safetensors.index.json",
            "tokenizer.json"
        ]
    );
    // The index names a shard that is not there.
    s.hub.remove("b.safetensors");
    s.hub.set_commit(&"1".repeat(40));
    refused(s.pull(), ErrorKind::BadModel, &["b.safetensors", "not there"]);
}

#[test]
fn without_weights_only_the_small_files_are_fetched() {
    let s = setup();
    let options = HubOptions { weights: false, ..s.options.clone() };
    let pulled = pull(REPO, "main", &options, &()).unwrap();
    assert_eq!(names(&pulled.path), ["config.json", "tokenizer.json"]);
    let model = ModelRef::parse(Some(REPO)).unwrap();
    assert!(resolve(&model, &HubOptions { offline: true, ..options }, &()).is_ok());
    let offline = HubOptions { offline: true, ..s.options.clone() };
    refused(resolve(&model, &offline, &()), ErrorKind::Network, &["missing: the weights"]);
}

#[test]
fn a_mirror_that_lists_names_only_is_asked_for_each_file() {
    let s = setup();
    s.hub.bend(|request, mut answer| {
        if request.path.starts_with("/api/") {
            let text = String::from_utf8(answer.body).unwrap();
            let mut list: serde_json::Value = serde_json::from_str(&text).unwrap();
            for file in list["siblings"].as_array_mut().unwrap() {
                let file = file.as_object_mut().unwrap();
                file.retain(|key, _| key == "rfilename");
            }
            answer.body = list.to_string().into_bytes();
        }
        answer
    });
    s.pull().unwrap();
    s.assert_whole();
    assert_eq!(s.hub.log().iter().filter(|r| r.method == "HEAD").count(), 3);
}

#[test]
fn offline_uses_what_is_there_and_asks_nobody() {
    let s = setup();
    let offline = HubOptions { offline: true, ..s.options.clone() };
    let model = ModelRef::parse(Some(REPO)).unwrap();
    refused(
        resolve(&model, &offline, &()),
        ErrorKind::Network,
        &["not in the cache", "offline mode"],
    );
    refused(pull(REPO, "main", &offline, &()), ErrorKind::Network, &["offline mode"]);
    let online = s.pull().unwrap();
    s.hub.reset();
    assert!(resolve(&model, &offline, &()).is_ok());
    let cached = pull(REPO, "main", &offline, &()).unwrap();
    assert_eq!((&cached.path, &cached.commit), (&online.path, &online.commit));
    let sorted = |files: &[tramontane::hub::PulledFile]| {
        let mut files = files.to_vec();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        files
    };
    assert_eq!(sorted(&cached.files), sorted(&online.files));
    std::fs::remove_file(s.weights()).unwrap();
    refused(resolve(&model, &offline, &()), ErrorKind::Network, &["missing: the weights"]);
    assert!(s.hub.log().is_empty());
    // Online, what is missing comes back.
    assert!(resolve(&model, &s.options, &()).is_ok());
    s.assert_whole();
}

#[test]
fn force_reads_what_is_there_and_mends_it() {
    let s = setup();
    s.pull().unwrap();
    let mut bytes = std::fs::read(s.weights()).unwrap();
    bytes[SIZE / 2] ^= 1;
    std::fs::write(s.weights(), &bytes).unwrap();
    assert_eq!(s.pull().unwrap().transferred, 0, "the size alone tells nothing");
    let force = HubOptions { force: true, ..s.options.clone() };
    assert_eq!(pull(REPO, "main", &force, &()).unwrap().transferred, SIZE as u64);
    s.assert_whole();
    assert_eq!(pull(REPO, "main", &force, &()).unwrap().transferred, 0);
}

#[test]
fn without_links_a_snapshot_has_files_of_its_own() {
    let mut s = setup();
    s.options.symlinks = false;
    s.pull().unwrap();
    assert!(!s.weights().is_symlink());
    s.assert_whole();
    // Python moves the content into the snapshot then: that is found too.
    std::fs::remove_dir_all(s.repo().join("blobs")).unwrap();
    assert_eq!(s.pull().unwrap().transferred, 0);
    // What is wrong there is replaced.
    std::fs::write(s.weights(), vec![0; SIZE]).unwrap();
    let force = HubOptions { force: true, ..s.options.clone() };
    pull(REPO, "main", &force, &()).unwrap();
    s.assert_whole();
}

#[test]
fn the_cache_is_listed() {
    let s = setup();
    s.pull().unwrap();
    let list = list_cached(&s.options).unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].name.as_str(), list[0].complete), (REPO, true));
    assert_eq!(list[0].revisions, ["main"]);
    assert!(list[0].bytes >= SIZE as u64);
}
