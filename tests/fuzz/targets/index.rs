//! An index of shards of any text: an error or bare file names, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tramontane::checkpoint::index::Index;

fuzz_target!(|text: &str| {
    if let Ok(index) = Index::parse(text) {
        assert!(index.shards.iter().all(|name| !name.contains(['/', '\\', '\0'])));
        assert!(index.tensors.values().all(|shard| *shard < index.shards.len()));
    }
});
