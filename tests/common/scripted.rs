//! A tiny model that says what it is told to say: each token of a script is followed by the next.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tramontane::files::ModelFiles;
use tramontane::tokenizer::Tokenizer;

use crate::tiny::{Folder, HIDDEN, VOCAB};

/// A `tokenizer.json` whose tokens are control tokens with these names, and then the 256 bytes.
pub(crate) fn bytes(controls: &[&str]) -> String {
    // The byte-level alphabet of GPT-2: printable bytes stand for themselves, the others follow from U+0100.
    let mut others = (0x100..).map(|c| char::from_u32(c).unwrap());
    let mut letter = |byte: u8| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => others.next().unwrap(),
    };
    let first = controls.len();
    let alphabet = (0..=255_u8).map(|b| (letter(b).to_string(), json!(first + usize::from(b))));
    let vocab: serde_json::Map<String, Value> = alphabet.collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    tokenizer(controls, &vocab, json!({"pre_tokenizer": byte_level, "decoder": byte_level}))
}

/// A `tokenizer.json` in the manner of SentencePiece: letters, and letters after a space, which goes before a first
/// word, too.
pub(crate) fn words() -> String {
    let controls = ["<unk>", "<s>", "</s>"];
    let letters = ('a'..='z').flat_map(|c| [format!("▁{c}"), c.to_string()]).chain(["▁".into()]);
    let vocab = letters.zip(controls.len()..).map(|(word, id)| (word, json!(id))).collect();
    let merges: Vec<String> = ('a'..='z').map(|c| format!("▁ {c}")).collect();
    let space = json!({"String": " "});
    let rest = json!({
        "merges": merges,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": space, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    });
    tokenizer(&controls, &vocab, rest)
}

/// A `tokenizer.json` of control tokens, a vocabulary, and what else `rest` says.
fn tokenizer(controls: &[&str], vocab: &serde_json::Map<String, Value>, rest: Value) -> String {
    let added = controls.iter().enumerate().map(|(id, name)| {
        json!({"id": id, "content": name, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false})
    });
    let part = |name: &str| rest.get(name).cloned().unwrap_or_default();
    let merges = rest.get("merges").cloned().unwrap_or_else(|| json!([]));
    json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": part("normalizer"), "pre_tokenizer": part("pre_tokenizer"),
        "post_processor": null, "decoder": part("decoder"),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": merges}})
    .to_string()
}

/// A folder with the model, and the program that runs it.
pub(crate) struct Model {
    pub(crate) folder: Folder,
    tokenizer: Tokenizer,
}

impl Model {
    /// The model after whose token `script[i]` always comes `script[i + 1]`. A word of the script is a token by its
    /// name, or the tokens of a text.
    pub(crate) fn new(tokenizer_json: &str, script: &[&str]) -> Self {
        let folder = Folder::new();
        folder.write("tokenizer.json", tokenizer_json);
        let tokenizer = Tokenizer::load(&ModelFiles::folder(folder.path())).unwrap().unwrap();
        let ids = |word: &&str| match tokenizer.id(word) {
            Some(id) => vec![id],
            None => tokenizer.encode(word).unwrap(),
        };
        let ids: Vec<usize> = script.iter().flat_map(ids).map(|id| id as usize).collect();
        assert!(ids.len() <= HIDDEN && ids.iter().all(|id| *id < VOCAB));
        folder.tensors(|tensors| {
            for tensor in tensors {
                // Without attention and MLP, a token's logits depend on its own row alone.
                let silent = ["o_proj", "down_proj", "embed_tokens", "lm_head"];
                if silent.iter().any(|name| tensor.name.contains(name)) {
                    tensor.fill(|_| 0.0);
                }
                // Direction i stands for the script's i-th token: its own row, and the head's row of the next.
                let rows = match tensor.name.as_str() {
                    "model.embed_tokens.weight" => &ids[..],
                    "lm_head.weight" => &ids[1..],
                    _ => continue,
                };
                let mut values = tensor.values();
                rows.iter().enumerate().for_each(|(i, id)| values[id * HIDDEN + i] = 1.0);
                tensor.fill(|i| values[i]);
            }
        });
        Self { folder, tokenizer }
    }

    /// The id of a token.
    pub(crate) fn id(&self, name: &str) -> u32 {
        self.tokenizer.id(name).unwrap()
    }

    /// Where the model is.
    pub(crate) fn path(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    /// The path of a file beside the model's.
    pub(crate) fn file(&self, name: &str) -> String {
        self.folder.file(name).to_str().unwrap().to_owned()
    }

    /// Runs a command on the model.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_tramontane"))
            .args(args)
            .args(["-m", self.path(), "--device", "cpu"])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// What a command prints.
    pub(crate) fn stdout(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}
