//! `tramontane tokenize`: the real binary.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/tokenizers.rs"]
mod files;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn tokenize(args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tramontane"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TRAMONTANE_")) {
        command.env_remove(name);
    }
    let mut child = command
        .arg("tokenize")
        .args(args)
        .env("TRAMONTANE_OFFLINE", "true")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // The program may end before it has read everything.
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap_or_default());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// stdout of a run that succeeds.
fn stdout(args: &[&str], input: &str) -> String {
    let output = tokenize(args, input.as_bytes());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    assert_eq!(stderr, "", "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Exit code and stderr of a run that fails.
fn failure(args: &[&str], input: &[u8]) -> (i32, String) {
    let output = tokenize(args, input);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("error: ") && !stderr.contains("panicked"), "{args:?}: {stderr}");
    (output.status.code().unwrap(), stderr)
}

#[test]
fn text_from_the_command_line_or_stdin() {
    let lines = stdout(&["Il était"], "");
    assert_eq!(lines, "414\tIl\n446\tĠÃ©tait\n");
    assert_eq!(stdout(&[], "Il était\n"), lines);
    assert_eq!(stdout(&["--ids", "Il était"], ""), "414,446\n");
    assert_eq!(stdout(&["--ids", "--bos", "Il était"], ""), "1,414,446\n");
    let object: Value = serde_json::from_str(&stdout(&["--json", "Il était"], "")).unwrap();
    assert_eq!(object, json!({"ids": [414, 446], "pieces": ["Il", "ĠÃ©tait"], "count": 2}));
    assert_eq!(stdout(&["--decode", "414, 446"], ""), "Il était\n");
    assert_eq!(stdout(&["--decode", "--json"], "[414, 446]\n"), "{\"text\":\"Il était\"}\n");
}

#[test]
fn control_tokens_are_text_unless_asked_for() {
    assert!(!stdout(&["--ids", "</s>"], "").split([',', '\n']).any(|id| id == "2"));
    assert_eq!(stdout(&["--ids", "--special", "</s>"], ""), "2\n");
    // Exactly one BOS.
    assert_eq!(stdout(&["--ids", "--special", "--bos", "<s>Il"], ""), "1,414\n");
    assert_eq!(stdout(&["--decode", "1 414 2"], ""), "Il\n");
    assert_eq!(stdout(&["--decode", "--special", "1 414 2"], ""), "<s>Il</s>\n");
}

/// All 308 texts of a tokenizer, through the binary and back.
#[test]
fn lines_of_json_give_the_ids_of_mistral_common() {
    let dir = files::folder("tekken_v7");
    let model = dir.path().to_str().unwrap();
    let vectors: Vec<Value> = std::fs::read_to_string(files::data().join("text.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|v: &Value| v["tokenizer"] == "tekken_240911_v3")
        .collect();
    let lines = |key: &str| -> String {
        vectors.iter().map(|v| format!("{}\n", json!({ key: v[key] }))).collect()
    };
    let answers = |args: &[&str], input: &str| -> Vec<Value> {
        stdout(args, input).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let ids = answers(&["-m", model, "--jsonl"], &lines("text"));
    let texts = answers(&["-m", model, "--jsonl", "--decode"], &lines("ids"));
    assert_eq!((ids.len(), texts.len()), (308, 308));
    for ((vector, ids), text) in vectors.iter().zip(ids).zip(texts) {
        assert_eq!(ids, json!({ "ids": vector["ids"] }), "{}", vector["text"]);
        assert_eq!(text, json!({ "text": vector["text"] }));
    }
    let breaks = answers(&["-m", model, "--jsonl"], "{\"text\": \"a\\u2028\\u0085b\"}\n");
    let raw = stdout(&["-m", model, "--jsonl", "--decode"], &format!("{}\n", breaks[0]));
    assert_eq!(raw, "{\"text\":\"a\\u2028\\u0085b\"}\n");
    let special = "{\"text\": \"</s>a\", \"special\": true}\n\n{\"text\": \"\"}\n";
    assert_eq!(stdout(&["-m", model, "--jsonl"], special), "{\"ids\":[2,1097]}\n{\"ids\":[]}\n");
}

#[test]
fn gaps_are_laid_out_as_by_mistral_common() {
    let vectors = std::fs::read_to_string(files::data().join("fim.jsonl")).unwrap();
    let lines: Vec<Value> = vectors.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    for name in ["spm_v2", "spm_v3", "tekken_240911_v3"] {
        let dir = files::folder(name);
        let model = dir.path().to_str().unwrap();
        let lines: Vec<&Value> = lines.iter().filter(|line| line["tokenizer"] == name).collect();
        let question = |line: &&Value| {
            let suffix = line["suffix"].as_str().unwrap_or_default();
            format!("{}\n", json!({"text": line["prompt"], "suffix": suffix}))
        };
        let input: String = lines.iter().map(question).collect();
        let answers = stdout(&["-m", model, "--jsonl"], &input);
        for (answer, line) in answers.lines().zip(&lines) {
            let answer: Value = serde_json::from_str(answer).unwrap();
            assert_eq!(answer["ids"], line["ids"], "{line}");
        }
        assert_eq!(answers.lines().count(), 4);
    }
    let dir = files::folder("spm_v2");
    let model = dir.path().to_str().unwrap();
    let output = tokenize(&["-m", model, "--ids", "a", "--suffix", ""], b"");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "1,0,0,1032\n");
    assert!(String::from_utf8(output.stderr).unwrap().contains("[SUFFIX]"));
    let (code, stderr) = failure(&["a", "--suffix", "b"], b"");
    assert!(code == 64 && stderr.contains("codestral-22b"), "{stderr}");
}

#[test]
fn every_kind_of_file_alone_is_enough() {
    for name in ["spm_v3", "spm_v3.json", "tekken_240911_v3"] {
        let dir = files::folder(name);
        let expected = files::load(name).encode("Ça va ?").unwrap();
        let expected: Vec<String> = expected.iter().map(u32::to_string).collect();
        let printed = stdout(&["-m", dir.path().to_str().unwrap(), "--ids", "Ça va ?"], "");
        assert_eq!(printed, expected.join(",") + "\n", "{name}");
    }
}

#[test]
fn mistakes_are_named() {
    for (args, input, code, words) in [
        (&["--jsonl"][..], &b"{\"text\": \"a\"}\n{\"txt\": 1}\n"[..], 64, "line 2 of stdin"),
        (&["--jsonl"], b"{\"text\": \"\\ud800\"}\n", 64, "line 1 of stdin"),
        (&["--jsonl", "--decode"], b"{\"text\": \"a\"}\n", 64, "no `ids`"),
        (&["--jsonl", "--decode"], b"{\"ids\": [-1]}\n", 64, "line 1 of stdin"),
        (&["--decode", "99999"], b"", 64, "the id 99999 is no token, expected less than 4096"),
        (&["--decode", "x"], b"", 64, "`x` is not a token id"),
        (&[], b"\xff\xfe", 64, "not UTF-8"),
    ] {
        let (found, stderr) = failure(args, input);
        assert_eq!(found, code, "{args:?}: {stderr}");
        assert!(stderr.contains(words), "{args:?}: {stderr}");
    }
    let usage = tokenize(&["--decode", "--bos", "1"], b"");
    assert_eq!(usage.status.code(), Some(64));
    let empty = tempfile::tempdir().unwrap();
    let (code, stderr) = failure(&["-m", empty.path().to_str().unwrap(), "a"], b"");
    assert!(code == 2 && stderr.contains("no tokenizer"), "{stderr}");
}

/// Broken files: named errors, exit code 2, no panic.
#[test]
fn broken_tokenizers_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let whole = files::content("spm_v3.json");
    let cases: [(&str, Vec<u8>); 8] = [
        ("tokenizer.json", Vec::new()),
        ("tokenizer.json", whole[..whole.len() / 2].to_vec()),
        ("tokenizer.json", b"[1, 2]".to_vec()),
        ("tokenizer.json", b"{\"model\": 7}".to_vec()),
        ("tokenizer.json", b"\xff\xff".to_vec()),
        ("tekken.json", b"{\"config\": {}}".to_vec()),
        ("tokenizer.model", files::content("spm_v3")[..300_000].to_vec()),
        ("tokenizer.model", b"\x08".to_vec()),
    ];
    for (name, bytes) in cases {
        let path = dir.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        let (code, stderr) = failure(&["-m", dir.path().to_str().unwrap(), "a"], b"");
        assert_eq!(code, 2, "{name} of {} bytes: {stderr}", bytes.len());
        assert!(stderr.contains(name), "{stderr}");
        std::fs::remove_file(path).unwrap();
    }
}
