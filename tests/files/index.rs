//! B: the index of a sharded model.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::tiny::{Folder, INDEX, SHARDS, safetensors, tensors};
use crate::{Case, bad, good};

#[test]
fn broken_indexes_are_refused_by_name() {
    let parts = [paths(), contents(), shards()];
    crate::check(parts.into_iter().flatten());
}

/// A sharded model whose index names `file` as the place of one tensor.
fn names_file(folder: &Folder, file: &str) {
    folder.shard();
    folder.index(|index| index["weight_map"]["lm_head.weight"] = json!(file));
}

fn paths() -> Vec<Case> {
    const LEAVES: &[&str] = &["leave the model folder", INDEX];
    vec![
        bad("B01", "a path upwards", |f| names_file(f, "../../etc/passwd"), LEAVES)
            .never(&["root:"]),
        bad("B02", "an absolute path", |f| names_file(f, "/etc/passwd"), LEAVES).never(&["root:"]),
        bad("B03a", "a path down and up", |f| names_file(f, "sub/../../x.safetensors"), LEAVES),
        bad("B03b", "backslashes", |f| names_file(f, "..\\x.safetensors"), LEAVES),
        bad("B03c", "NUL in a name", |f| names_file(f, "x\0.safetensors"), LEAVES),
        bad(
            "B04a",
            "a shard is a link to elsewhere",
            |f| {
                f.shard();
                f.remove(SHARDS[1]);
                symlink("/etc/passwd", f.file(SHARDS[1])).unwrap();
            },
            &["outside the model folder", SHARDS[1]],
        )
        .never(&["root:"]),
        bad(
            "B04b",
            "a link into a folder that only looks like the hub's cache",
            |f| {
                f.shard();
                f.remove(SHARDS[1]);
                symlink("../../blobs/../../../etc/passwd", f.file(SHARDS[1])).unwrap();
            },
            &["outside the model folder", SHARDS[1]],
        ),
    ]
}

fn contents() -> Vec<Case> {
    vec![
        bad(
            "B05",
            "a shard is missing",
            |f| {
                f.shard();
                f.remove(SHARDS[1]);
            },
            &["1 of 2 weight files are missing", SHARDS[1], "bytes", "pull"],
        ),
        bad(
            "B06",
            "the shard lacks a tensor of the index",
            |f| {
                f.shard();
                f.index(|index| {
                    index["weight_map"]["model.layers.7.odd.weight"] = json!(SHARDS[0])
                });
            },
            &["`model.layers.7.odd.weight`", SHARDS[0], INDEX],
        ),
        good(
            "B07",
            "the index leaves a tensor out",
            |f| {
                f.shard();
                f.index(|index| {
                    index["weight_map"].as_object_mut().unwrap().remove("lm_head.weight");
                });
            },
            &["does not name", "`lm_head.weight`"],
        ),
        bad(
            "B08",
            "one tensor in two shards",
            |f| {
                f.shard();
                f.write(SHARDS[1], safetensors(&tensors()[10..]));
            },
            &["is in two files", SHARDS[0], SHARDS[1]],
        ),
        bad(
            "B09a",
            "the index is not JSON",
            |f| {
                f.shard();
                f.write(INDEX, "weight_map:");
            },
            &[INDEX, "JSON"],
        ),
        bad(
            "B09b",
            "no weight_map",
            |f| {
                f.shard();
                f.write(INDEX, r#"{"metadata": {}}"#);
            },
            &[INDEX, "no `weight_map`"],
        ),
        bad(
            "B09c",
            "weight_map is a list",
            |f| {
                f.shard();
                f.write(INDEX, r#"{"weight_map": ["a"]}"#);
            },
            &[INDEX, "`weight_map` as an object"],
        ),
        good(
            "B10",
            "a wrong total size",
            |f| {
                f.shard();
                f.index(|index| index["metadata"]["total_size"] = json!(1));
            },
            &["claims 1 bytes"],
        ),
    ]
}

fn shards() -> Vec<Case> {
    vec![
        good("B00", "a whole sharded model", Folder::shard, &[]),
        good(
            "B11",
            "an index and a single file",
            |f| {
                let single = fs::read(f.file("model.safetensors")).unwrap();
                f.shard();
                f.write("model.safetensors", single);
            },
            &[INDEX, "left aside model.safetensors"],
        ),
        bad(
            "B12",
            "a shard of a wider model",
            |f| {
                f.shard();
                let mut tensors = tensors();
                for tensor in &mut tensors {
                    tensor.data = [tensor.data.as_slice(); 2].concat();
                    *tensor.shape.last_mut().unwrap() *= 2;
                }
                f.write(SHARDS[1], safetensors(&tensors[11..]));
            },
            &["[64, 128]", "[64, 64]", SHARDS[1]],
        ),
        bad(
            "B13",
            "a truncated shard",
            |f| {
                f.shard();
                let mut bytes = fs::read(f.file(SHARDS[1])).unwrap();
                bytes.truncate(bytes.len() - 100);
                f.write(SHARDS[1], bytes);
            },
            &["100 bytes early", "truncated", SHARDS[1]],
        ),
    ]
}

#[test]
fn a_sharded_model_gives_the_same_logits() {
    let (single, sharded) = (Folder::new(), Folder::new());
    sharded.shard();
    assert!(crate::logits(&single, "5,6,7") == crate::logits(&sharded, "5,6,7"));
}

#[test]
fn the_hubs_cache_may_link_to_its_store() {
    let (folder, cache) = (Folder::new(), tempfile::tempdir().unwrap());
    let snapshot = cache.path().join("snapshots/main");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(cache.path().join("blobs")).unwrap();
    for (file, hash) in [("config.json", "a".repeat(40)), ("model.safetensors", "b".repeat(64))] {
        fs::copy(folder.file(file), cache.path().join("blobs").join(&hash)).unwrap();
        symlink(format!("../../blobs/{hash}"), snapshot.join(file)).unwrap();
    }
    let outcome = crate::generate(&snapshot, &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}
