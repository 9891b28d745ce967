//! What the targets for tokenizers share.

use std::cell::OnceCell;

use tempfile::TempDir;
use tramontane::files::ModelFiles;
use tramontane::tokenizer::Tokenizer;

/// Loads a tokenizer file of these bytes and, if that succeeds, turns text into ids and back with it.
///
/// Whatever the file says: no panic, no id beyond the vocabulary, no control token from text, and the
/// stream is the whole.
pub fn check(name: &str, bytes: &[u8]) {
    thread_local! {
        static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
    }
    let loaded = FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| tempfile::tempdir().expect("a folder for the files"));
        std::fs::write(folder.path().join(name), bytes).expect("the file is written");
        Tokenizer::load(&ModelFiles::folder(folder.path()))
    });
    let Ok(Some(tokenizer)) = loaded else { return };
    let text = "Été  abc<s>é\u{3000}ﬁ</s>[INST] 12\n\tzq 😀\0";
    let Ok(ids) = tokenizer.encode(text) else { return };
    assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
    // The unknown token stands for other text than its own name.
    let named = |id: u32| tokenizer.piece(id).is_some_and(|piece| text.contains(&piece));
    let mut control = ids.iter().filter(|id| tokenizer.control_ids().contains(id));
    assert!(!control.any(|id| named(*id)), "text became a command");
    let whole = tokenizer.decode(&ids).expect("ids are decoded");
    let mut stream = tokenizer.stream();
    let mut pieces = String::new();
    for id in &ids {
        pieces += &stream.push(*id).expect("ids are decoded");
    }
    pieces += &stream.finish().expect("ids are decoded");
    assert_eq!(pieces, whole);
}
