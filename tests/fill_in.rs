//! Filling gaps, against mistral-common's `encode_fim`; texts of models that say what a test wants them to say.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "common/scripted.rs"]
mod scripted;
#[allow(dead_code, reason = "the ways to spoil a model are for other tests")]
#[path = "common/tiny.rs"]
mod tiny;
#[path = "common/tokenizers.rs"]
mod tokenizers;

use serde_json::Value;
use tramontane::files::ModelFiles;
use tramontane::tokenizer::{FillIn, Tokenizer};

/// The lines of a file of vectors.
fn lines(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(tokenizers::data().join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Checks `lines` of the tokenizer `name` with the files `file`; returns how many there were.
fn check(file: &str, name: &str, lines: &[Value]) -> usize {
    let tokenizer = tokenizers::load(file);
    let way = FillIn::of(&tokenizer);
    let lines = lines.iter().filter(|line| line["tokenizer"] == name);
    let check = |line: &Value| {
        let suffix = line["suffix"].as_str().unwrap_or_default();
        match (&way, line.get("error")) {
            (Err(e), Some(_)) => {
                let e = e.to_string();
                assert!(e.contains("[SUFFIX] and [PREFIX]") && e.contains("codestral-22b"), "{e}");
            }
            (Ok(way), None) => {
                let ids = way.encode(line["prompt"].as_str().unwrap(), suffix).unwrap();
                assert_eq!(Value::from(ids), line["ids"], "{file}: {line}");
            }
            (_, expected) => panic!("{file}: {way:?}, expected {expected:?}"),
        }
    };
    lines.map(check).count()
}

#[test]
fn gaps_are_laid_out_as_by_mistral_common() {
    let golden = lines("fim.jsonl");
    for name in ["spm_v1", "spm_v2", "spm_v3", "spm_v7"] {
        assert_eq!(check(name, name, &golden), 4);
    }
    for name in ["tekken_240911_v3", "tekken_v7", "tekken_v11", "tekken_v13"] {
        assert_eq!(check(name, name, &golden), 4);
    }
    assert_eq!(golden.len(), 32);
}

/// The same tokenizers as `tokenizer.json`; texts that begin oddly, and texts that spell control tokens.
#[test]
fn gaps_in_odd_texts_and_with_converted_tokenizers_are_the_same() {
    let (golden, more) = (lines("fim.jsonl"), lines("fim_more.jsonl"));
    for (file, name) in [
        ("spm_v3", "spm_v3"),
        ("spm_v7", "spm_v3"),
        ("spm_v3.json", "spm_v3"),
        ("tekken_240911_v3", "tekken_240911_v3"),
        ("tekken_v13", "tekken_240911_v3"),
        ("tekken_240911_v3.json", "tekken_240911_v3"),
    ] {
        assert_eq!(check(file, name, &more), 48);
        if file.ends_with(".json") {
            assert_eq!(check(file, name, &golden), 4);
        }
    }
}

#[test]
fn a_vocabulary_without_marks_is_told() {
    let without = FillIn::of(&tokenizers::load("spm_v2")).unwrap();
    assert_eq!(without.lacks(), ["[SUFFIX]", "[PREFIX]"]);
    assert!(FillIn::of(&tokenizers::load("spm_v3")).unwrap().lacks().is_empty());
    assert!(FillIn::of(&tokenizers::load("spm_v2.json")).is_err());
}

/// Qwen's and StarCoder's marks: the prefix first, and nothing before it.
#[test]
fn other_marks_have_the_prefix_first() {
    for marks in [
        ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
        ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let names = [&["<unk>", "<|endoftext|>"][..], &marks].concat();
        std::fs::write(folder.path().join("tokenizer.json"), scripted::bytes(&names)).unwrap();
        let tokenizer = Tokenizer::load(&ModelFiles::folder(folder.path())).unwrap().unwrap();
        let way = FillIn::of(&tokenizer).unwrap();
        let ids = way.encode("a b", &format!(" {}\n", marks[2])).unwrap();
        let [before, behind, middle] = marks.map(|mark| tokenizer.id(mark).unwrap());
        let text = |text: &str| tokenizer.encode(text).unwrap();
        let expected =
            [&[before][..], &text("a b"), &[behind], &text(&format!(" {}\n", marks[2])), &[middle]];
        assert_eq!(ids, expected.concat());
        assert_eq!(ids.iter().filter(|id| **id == middle).count(), 1);
        assert!(way.ends().contains(&tokenizer.id("<|endoftext|>").unwrap()));
    }
}

/// The marks of Mistral, and what a reasoning model has.
const NAMES: [&str; 8] =
    ["<unk>", "<s>", "</s>", "[SUFFIX]", "[PREFIX]", "[MIDDLE]", "[THINK]", "[/THINK]"];

#[test]
fn a_gap_is_filled_between_prompt_and_suffix() {
    let model = scripted::Model::new(&scripted::bytes(&NAMES), &["b", "m", "œ", "</s>"]);
    let args = ["generate", "ab", "--suffix", "yz", "--temp", "0", "-q"];
    assert_eq!(model.stdout(&args), "abmœyz\n");
    assert_eq!(model.stdout(&[&args[..], &["--no-display-prompt"]].concat()), "mœ\n");
    let json: Value =
        serde_json::from_str(&model.stdout(&[&args[..], &["--json"]].concat())).unwrap();
    assert_eq!((json["text"].as_str(), json["finish_reason"].as_str()), (Some("mœ"), Some("stop")));
    // <s> [SUFFIX] y z [PREFIX] a b
    assert_eq!(json["usage"]["prompt_tokens"], 7);

    let (before, behind) = (model.file("before"), model.file("behind"));
    std::fs::write(&before, "x\nb").unwrap();
    std::fs::write(&behind, "\n[SUFFIX]\n").unwrap();
    let files = ["generate", "-f", &before, "--suffix-file", &behind, "--temp", "0", "-q"];
    assert_eq!(model.stdout(&files), "x\nbmœ\n[SUFFIX]\n\n");
}

#[test]
fn a_mark_ends_what_fills_a_gap() {
    let model = scripted::Model::new(&scripted::bytes(&NAMES), &["b", "m", "[SUFFIX]", "x"]);
    let args = ["generate", "ab", "--temp", "0", "-q", "-n", "3"];
    assert_eq!(model.stdout(&[&args[..], &["--suffix", ""]].concat()), "abm\n");
    // In a text without a gap it ends nothing.
    assert_eq!(model.stdout(&args), "abmx\n");
}

#[test]
fn a_model_without_marks_is_refused_by_name() {
    let model = scripted::Model::new(&scripted::bytes(&["<unk>", "<s>", "</s>"]), &["b"]);
    let output = model.run(&["generate", "ab", "--suffix", "c"]);
    assert_eq!(output.status.code(), Some(64));
    let stderr = String::from_utf8(output.stderr).unwrap();
    for words in ["[SUFFIX]", "<|fim_prefix|>", model.path(), "codestral-22b"] {
        assert!(stderr.contains(words), "{stderr}");
    }
}

/// A stop string that has half appeared holds text back; a tag that is a control token must not overtake it.
#[test]
fn a_tag_stands_where_the_model_wrote_it() {
    let script = ["?", "[THINK]", "a", "b", "[/THINK]", "c", "</s>"];
    let model = scripted::Model::new(&scripted::bytes(&NAMES), &script);
    let args = ["generate", "?", "--temp", "0", "-q", "--reasoning", "show", "--json"];
    for stop in ["bx", "bc"] {
        let json: Value =
            serde_json::from_str(&model.stdout(&[&args[..], &["--stop", stop]].concat())).unwrap();
        assert_eq!((&json["reasoning"], &json["text"]), (&"ab".into(), &"c".into()), "{json}");
    }
}

/// Where a first word has a space that nobody typed, one in the midst of a text has one that belongs there.
#[test]
fn a_continued_text_keeps_its_first_space() {
    let model = scripted::Model::new(&scripted::words(), &["▁a", "▁b", "▁c", "</s>"]);
    assert_eq!(model.stdout(&["generate", "a", "--temp", "0", "-q"]), "a b c\n");
    let json = model.stdout(&["generate", "a", "--temp", "0", "-q", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["text"], " b c");
    // The ids by themselves are a text of their own.
    let id = model.id("▁a").to_string();
    let json = model.stdout(&["generate", "--ids", &id, "--temp", "0", "-q", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["text"], "b c");
}

/// Mamba-Codestral's configuration says that the unknown token ends a text; its tokenizer knows better.
#[test]
fn where_the_unknown_token_is_to_end_a_text_the_tokenizer_is_asked() {
    let model = scripted::Model::new(&scripted::bytes(&NAMES), &["a", "b", "</s>", "c"]);
    model.folder.set("eos_token_id", 0.into());
    model.folder.write("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
    let args = ["generate", "a", "--temp", "0", "-q", "-n", "3"];
    assert_eq!(model.stdout(&args), "ab\n");
}
