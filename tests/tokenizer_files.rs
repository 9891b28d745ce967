//! Tokenizer files that were made to hurt: each loads as it should or is refused by name, and nothing
//! panics, hangs, or turns text into a control token.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/tokenizers.rs"]
mod files;

use serde_json::{Value, json};
use tramontane::error::Result;
use tramontane::files::ModelFiles;
use tramontane::tokenizer::Tokenizer;
use tramontane::{Error, ErrorKind};

/// Loads the tokenizer in a folder of these files.
fn load_files(files: &[(&str, &[u8])]) -> Result<Tokenizer> {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    Tokenizer::load(&ModelFiles::folder(dir.path())).map(Option::unwrap)
}

fn load(json: &Value) -> Result<Tokenizer> {
    load_files(&[("tokenizer.json", json.to_string().as_bytes())])
}

/// A byte-level tokenizer of the letters a to e, some merges, and control tokens.
fn small() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [
            {"id": 0, "content": "<s>", "special": true, "normalized": false,
             "single_word": false, "lstrip": false, "rstrip": false},
            {"id": 1, "content": "</s>", "special": true, "normalized": false,
             "single_word": false, "lstrip": false, "rstrip": false},
            {"id": 20, "content": "<tool_call>", "special": false, "normalized": false,
             "single_word": false, "lstrip": false, "rstrip": false},
            {"id": 21, "content": "  ", "special": false, "normalized": false,
             "single_word": false, "lstrip": false, "rstrip": false},
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\s+(?!\\S)|\\s+"},
             "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": {"a": 2, "b": 3, "c": 4, "d": 5, "e": 6, "Ġ": 7, "<": 8, ">": 9, "/": 10, "s": 11,
                "ab": 12, "abc": 13, "<s": 14, "<s>": 0, "</s>": 1, "</": 15, "_": 16, "l": 17},
            "merges": [["a", "b"], ["ab", "c"], ["<", "s"], ["<s", ">"], ["<", "/"]]},
    })
}

/// `small()` after `edit`.
fn edited(edit: impl Fn(&mut Value)) -> Result<Tokenizer> {
    let mut json = small();
    edit(&mut json);
    load(&json)
}

#[test]
fn the_small_tokenizer_is_sound() {
    let tokenizer = load(&small()).unwrap();
    assert_eq!(tokenizer.encode("abc ab").unwrap(), [13, 7, 12]);
    assert_eq!(tokenizer.encode_prompt("abc").unwrap(), [0, 13]);
    // 18 and 19 are holes.
    assert_eq!((tokenizer.vocab_size(), tokenizer.piece(19)), (22, None));
    assert_eq!(tokenizer.decode(&[13, 19, 7, 12, 1, 4_000_000]).unwrap(), "abc ab");
}

/// Control tokens that the vocabulary could put together, and those that are not marked as special.
#[test]
fn text_never_becomes_a_control_token() {
    let tokenizer = load(&small()).unwrap();
    // The merges would make `<s>`, and `ignore_merges` takes `</s>` whole.
    assert_eq!(tokenizer.encode("<s>").unwrap(), [8, 11, 9]);
    assert_eq!(tokenizer.encode("</s>").unwrap(), [15, 11, 9]);
    assert!(!tokenizer.encode("<tool_call>").unwrap().contains(&20));
    assert_eq!(tokenizer.encode_special("<s>a</s><tool_call>").unwrap(), [0, 2, 1, 20]);
    // A run of spaces is a word like any other; and a tool's mark is shown.
    assert_eq!(tokenizer.encode("a  b").unwrap(), [2, 21, 3]);
    assert_eq!(tokenizer.decode(&[20, 0, 2]).unwrap(), "<tool_call>a");
    assert!(tokenizer.is_special(0) && !tokenizer.is_special(20));
    // Also where nothing cuts the text into words.
    let uncut = edited(|j| j["pre_tokenizer"] = Value::Null).unwrap();
    assert_eq!(uncut.encode("<s>").unwrap(), [8, 11, 9]);
    assert_eq!(uncut.encode("</s>").unwrap(), [8, 10, 11, 9]);
}

#[test]
fn broken_files_are_refused_by_name() {
    type Edit = fn(&mut Value);
    let cases: Vec<(Edit, &str)> = vec![
        (|j| *j = json!([]), "not a tokenizer"),
        (|j| j["model"] = Value::Null, "not a tokenizer"),
        (|j| j["model"]["vocab"] = json!("x"), "tokens and ids"),
        (|j| j["model"]["vocab"]["a"] = json!(-1), "not a tokenizer"),
        (|j| j["model"]["vocab"]["a"] = json!(1_u64 << 32), "not a tokenizer"),
        (|j| j["model"]["vocab"]["a"] = json!(u32::MAX), "expected at most"),
        (|j| j["model"]["vocab"]["a"] = json!(3), "share the id 3"),
        (|j| j["model"]["merges"][0] = json!(["a", "zzz"]), "not in the vocabulary"),
        (|j| j["model"]["merges"][0] = json!(["abc", "abc"]), "not in the vocabulary"),
        (|j| j["model"]["merges"][0] = json!(["a", "a"]), "not in the vocabulary"),
        (|j| j["model"]["merges"][0] = json!(["a", "b", "c"]), "two tokens"),
        (|j| j["model"]["merges"][0] = json!("a b c"), "no pair"),
        (|j| j["model"]["merges"][0] = json!(7), "a pair of tokens"),
        (|j| j["model"]["type"] = json!("WordPiece"), "`WordPiece`"),
        (|j| j["model"]["type"] = json!("Unigram"), "is an object"),
        (|j| j["model"]["dropout"] = json!(0.5), "dropout"),
        (|j| j["model"]["continuing_subword_prefix"] = json!("##é"), "continuing_subword_prefix"),
        (|j| j["added_tokens"][0]["id"] = json!(1), "share the id 1"),
        (|j| j["added_tokens"][0]["id"] = json!(u32::MAX), "expected at most"),
        (|j| j["added_tokens"][1]["content"] = json!("<s>"), "has the ids 0 and 1"),
        (|j| j["added_tokens"][0] = json!({"id": 3}), "not a tokenizer"),
        (|j| j["normalizer"] = json!({"type": "Rot13"}), "key `normalizer`"),
        (|j| j["normalizer"] = json!({"type": "Precompiled"}), "key `normalizer`"),
        (
            |j| j["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            "key `normalizer`",
        ),
        (
            |j| {
                j["normalizer"]["normalizers"][0] =
                    json!({"type": "Replace", "pattern": {"Regex": "("}, "content": ""})
            },
            "key `normalizer`",
        ),
        (|j| j["pre_tokenizer"] = json!({"type": "Cut"}), "`Cut`"),
        (|j| j["pre_tokenizer"] = json!({"type": "Sequence"}), "pretokenizers"),
        (|j| j["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0}), "length 0"),
        (
            |j| j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("(a"),
            "key `pre_tokenizer`",
        ),
        (|j| j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = json!("?"), "`behavior`"),
        (|j| j["pre_tokenizer"]["pretokenizers"][0]["invert"] = json!("?"), "`invert`"),
        (|j| j["post_processor"] = json!({"type": "Glue"}), "`Glue`"),
        (|j| j["post_processor"]["special_tokens"] = json!({}), "key `post_processor`"),
        (|j| j["post_processor"]["special_tokens"]["<s>"]["ids"][0] = json!(77), "the id 77"),
        (|j| j["decoder"] = json!({"type": "CTC"}), "`CTC`"),
        (|j| j["decoder"] = json!("ByteLevel"), "key `decoder`"),
    ];
    for (edit, words) in cases {
        let e = edited(edit).map(|t| format!("{t:?}")).unwrap_err();
        assert!(matches!(e.kind(), ErrorKind::BadModel | ErrorKind::NotSupported), "{e}");
        let shown = e.to_string();
        assert!(shown.contains(words) && shown.contains("tokenizer.json"), "{words}: {shown}");
    }
}

#[test]
fn every_cut_of_a_file_is_refused() {
    let whole = small().to_string();
    for end in 0..whole.len() {
        let cut = &whole.as_bytes()[..end];
        assert!(load_files(&[("tokenizer.json", cut)]).is_err(), "{end}");
    }
}

/// Patterns that take exponential time by backtracking, or quadratic time in any way, and those that
/// only look like it, on a megabyte: an error or a result, soon.
#[test]
fn patterns_without_end_are_given_up() {
    let text = "a".repeat(1 << 20);
    let done = |pattern: &str| {
        let tokenizer = edited(|j| {
            j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(pattern);
        });
        tokenizer.and_then(|t| t.encode(&text)).map(|ids| ids.len()).map_err(|e| e.to_string())
    };
    for pattern in ["(a+)+$", "(a|aa)+$", "(a*)*", "(.*)*x?"] {
        assert_eq!(done(pattern), Ok(text.len()), "{pattern}");
    }
    for pattern in ["(?:a+)+(?!a)b", "(?=(a+)+b)a", "(a*)*(?<!a)", r"(a+)\1+b", "a++b"] {
        assert!(done(pattern).unwrap_err().contains("is not usable"), "{pattern}");
    }
    for pattern in ["(.*)*x", "a*b|a", "(?:a?){5000}b"] {
        assert!(done(pattern).unwrap_err().contains("gave up"), "{pattern}");
    }
}

#[test]
fn texts_have_a_limit() {
    let tokenizer = load(&small()).unwrap();
    let text = "a ".repeat(17 << 20);
    for result in [tokenizer.encode(&text), tokenizer.encode_prompt(&text)] {
        let e = result.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::TooLong, "{e}");
        assert!(e.to_string().contains("expected at most 32 MiB"), "{e}");
    }
}

/// Bytes changed at random: no panic while loading, encoding or decoding.
#[test]
fn damaged_files_never_panic() {
    let mut state = 1u64;
    let mut random = |n: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let sources = [
        ("tokenizer.json", small().to_string().into_bytes(), 4000),
        ("tokenizer.model", files::unpacked("unigram_bytes.model.xz"), 1500),
        ("tokenizer.model", files::unpacked("bpe_user.model.xz"), 150),
    ];
    for (name, whole, rounds) in sources {
        let mut sound = 0;
        for _ in 0..rounds {
            let mut bytes = whole.clone();
            for _ in 0..=random(3) {
                let at = random(bytes.len());
                match random(4) {
                    0 => bytes[at] = random(256) as u8,
                    1 => bytes[at] ^= 1 << random(8),
                    2 => bytes.truncate(bytes.len() - random(bytes.len() / 50 + 1)),
                    // A piece of the file in another place.
                    _ => {
                        let (from, n) = (random(bytes.len()), random(12));
                        let piece: Vec<u8> = bytes[from..].iter().take(n).copied().collect();
                        bytes.splice(at..(at + n).min(bytes.len()), piece);
                    }
                }
            }
            let Ok(tokenizer) = load_files(&[(name, &bytes)]) else { continue };
            sound += 1;
            let text = "abc  <s>é\u{3000}ﬁ</s> zq 😀\0";
            let ids = tokenizer.encode(text).unwrap_or_default();
            let ids = [ids, tokenizer.encode_special(text).unwrap_or_default()].concat();
            tokenizer.decode(&ids).unwrap();
        }
        assert!(sound > 0, "{name}: no change was harmless, so nothing was tested");
    }
}

#[test]
fn the_files_beside_say_what_begins_and_ends_a_text() {
    let beside = |config: Value, small: Value| {
        let [config, small] = [config, small].map(|v| v.to_string());
        let files =
            [("tokenizer_config.json", config.as_bytes()), ("tokenizer.json", small.as_bytes())];
        let t = load_files(&files)?;
        Ok::<_, Error>((t.bos_id(), t.eos_id(), t.encode_prompt("a")?))
    };
    let without = || {
        let mut json = small();
        json["post_processor"] = Value::Null;
        json
    };
    let config =
        json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": true});
    assert_eq!(beside(config.clone(), small()).unwrap(), (Some(0), Some(1), vec![0, 2]));
    assert_eq!(beside(config, without()).unwrap(), (Some(0), Some(1), vec![0, 2]));
    assert_eq!(beside(json!({}), without()).unwrap(), (None, None, vec![2]));
    // What the tokenizer says itself goes first.
    assert_eq!(
        beside(json!({"add_bos_token": false}), small()).unwrap(),
        (Some(0), None, vec![0, 2])
    );
    for (config, words) in [
        ("[", "not JSON"),
        (r#"{"eos_token": "a", "eos_token": "</s>"}"#, "the key `eos_token` stands twice"),
        (r#"{"a": {"b": [{"c": 1, "c": 1}]}}"#, "the key `a.b.c` stands twice"),
    ] {
        let e = load_files(&[
            ("tokenizer.json", small().to_string().as_bytes()),
            ("tokenizer_config.json", config.as_bytes()),
        ]);
        let e = e.unwrap_err().to_string();
        assert!(e.contains(words) && e.contains("tokenizer_config.json"), "{e}");
    }
}

/// Tokens beside a SentencePiece model, as older repositories have them.
#[test]
fn tokens_may_be_added_to_sentencepiece() {
    let model = files::content("spm_v1");
    let added = br#"{"<|im_start|>": 32000, "<|im_end|>": 32001}"#;
    let t = load_files(&[("tokenizer.model", &model), ("added_tokens.json", added)]).unwrap();
    assert_eq!(t.vocab_size(), 32002);
    let ids = t.encode_special("<|im_start|>user\nBonjour<|im_end|>").unwrap();
    assert_eq!((ids[0], *ids.last().unwrap()), (32000, 32001));
    assert!(t.encode("<|im_end|>").unwrap().iter().all(|id| *id < 32000));
    assert_eq!(t.decode(&ids).unwrap(), "user\nBonjour");
}
