//! `tramontane template`: the real binary.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/tokenizers.rs"]
mod files;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/chat");

fn template(model: &Path, args: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tramontane"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TRAMONTANE_")) {
        command.env_remove(name);
    }
    command.arg("template").arg("-m").arg(model).args(args).env("TRAMONTANE_OFFLINE", "true");
    let messages = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(messages.path(), input).unwrap();
    // A pipe fills up; a file does not.
    command.stdin(messages.reopen().unwrap()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.output().unwrap()
}

/// stdout of a run that succeeds, byte for byte.
fn stdout(model: &Path, args: &[&str], input: &str) -> String {
    let output = template(model, args, input);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    assert_eq!(stderr, "", "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Exit code and stderr of a run that fails.
fn failure(model: &Path, args: &[&str], input: &str) -> (i32, String) {
    let output = template(model, args, input);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("error: ") && !stderr.contains("panicked"), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
    (output.status.code().unwrap(), stderr)
}

/// A folder with the template of a line of `renders.jsonl` and nothing else but its special tokens.
fn folder(line: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let from = format!("{DATA}/{}", line["template_file"].as_str().unwrap());
    std::fs::copy(from, dir.path().join("chat_template.jinja")).unwrap();
    let config =
        json!({"bos_token": {"content": line["bos_token"]}, "eos_token": line["eos_token"]});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

fn lines(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(format!("{DATA}/{file}")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Some conversations of every template, through the binary.
#[test]
fn prompts_are_those_of_transformers() {
    let wanted = ["spaces_newlines", "continue_final", "tool_parallel", "single_nogen", "no_think"];
    let mut equal = 0;
    for line in lines("renders.jsonl") {
        if !wanted.contains(&line["conversation"].as_str().unwrap()) {
            continue;
        }
        let dir = folder(&line);
        let input = json!({"messages": line["messages"], "tools": line["tools"],
            "chat_template_kwargs": line["extra"]});
        let mut args = vec!["--now", line["now"].as_str().unwrap()];
        if line["continue_final_message"] == true {
            args.push("--continue-final-message");
        } else if line["add_generation_prompt"] == false {
            args.push("--no-generation-prompt");
        }
        if let Some(expected) = line["expected"].as_str() {
            assert_eq!(
                stdout(dir.path(), &args, &input.to_string()),
                expected,
                "{}",
                line["template"]
            );
            equal += 1;
        } else {
            let (code, stderr) = failure(dir.path(), &args, &input.to_string());
            assert_eq!(code, 1, "{stderr}");
        }
    }
    assert!(equal > 120, "{equal}");
}

#[test]
fn ids_are_those_of_mistral_common() {
    let mut equal = 0;
    for name in ["spm_v1", "spm_v3", "tekken_v13"] {
        let dir = files::folder(name);
        for line in lines("chat.jsonl").iter().filter(|line| line["tokenizer"] == name) {
            let input = json!({"messages": line["messages"], "tools": line["tools"]}).to_string();
            if line.get("error").is_some() {
                assert_eq!(failure(dir.path(), &["--json"], &input).0, 1);
                continue;
            }
            let answer: Value =
                serde_json::from_str(&stdout(dir.path(), &["--json"], &input)).unwrap();
            assert_eq!(answer["ids"], line["ids"], "{name} {}", line["name"]);
            assert!(answer["text"].is_string());
            equal += 1;
        }
    }
    assert_eq!(equal, 46);
}

#[test]
fn mistakes_are_named() {
    let line = lines("renders.jsonl").into_iter().find(|line| line["template"] == "chatml.generic");
    let dir = folder(&line.unwrap());
    let good = json!([{"role": "user", "content": "Bonjour"}]).to_string();
    let cases = [
        (&[][..], "[{\"role\": \"user\"", 64, "this is not JSON"),
        (&[], "{\"messages\": 1}", 64, "`messages` is a number"),
        (&[], "[]", 64, "the conversation is empty"),
        (&[], "[{\"role\": \"<|im_end|>\", \"content\": \"x\"}]", 64, "expected one of system"),
        (&[], "[{\"role\": \"user\", \"content\": \"\\ud800\"}]", 64, "stdin"),
        (&["--messages", "/nonexistent.json"], "", 64, "/nonexistent.json"),
        (&["--now", "morgen"], &good, 64, "\"morgen\" is not a date and time"),
        (&["--json"], &good, 2, "no tokenizer"),
    ];
    for (args, input, code, words) in cases {
        let (found, stderr) = failure(dir.path(), args, input);
        assert_eq!(found, code, "{args:?} {input}: {stderr}");
        assert!(stderr.contains(words), "{args:?} {input}: {stderr}");
    }
    let empty = tempfile::tempdir().unwrap();
    let (code, stderr) = failure(empty.path(), &[], &good);
    assert!(code == 2 && stderr.contains("no chat template"), "{stderr}");
    std::fs::write(dir.path().join("chat_template.jinja"), "{{ 1 }}\n{% if %}").unwrap();
    let (code, stderr) = failure(dir.path(), &[], &good);
    assert!(code == 1 && stderr.contains("syntax error in line 2"), "{stderr}");
}

/// What one step of a template may build is not counted in steps: time ends it, and before it has taken much memory.
#[test]
fn a_template_that_doubles_what_it_has_ends_before_memory_does() {
    let double = |step: &str, end: &str| {
        format!(
            "{{% set ns = namespace(x=[1]) %}}{{% for i in range(40) %}}{{% set ns.x = {step} %}}{{% endfor %}}{{{{ {end} }}}}"
        )
    };
    for text in [double("ns.x + ns.x", "ns.x | length"), double("[ns.x, ns.x]", "ns.x ~ ''")] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("chat_template.jinja"), &text).unwrap();
        std::fs::write(dir.path().join("messages.json"), r#"[{"role": "user", "content": "x"}]"#)
            .unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_tramontane"))
            .args(["template", "--messages", "messages.json", "-m", "."])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut peak = 0;
        while child.try_wait().unwrap().is_none() {
            peak = peak.max(memory(child.id()));
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("does not come to an end"), "{text}: {stderr}");
        assert_eq!(output.status.code(), Some(1), "{text}: {stderr}");
        assert!(peak < 200_000_000, "{text}: {peak} bytes");
    }
}

/// The most memory that a process has had so far, in bytes; 0 where the system does not tell.
fn memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    1024 * kib.unwrap_or(0)
}
