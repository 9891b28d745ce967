//! Hostile and broken model files, given to the real program.
//!
//! One table in four parts: the safetensors container (A), the index of a sharded model (B), tensors against
//! the configuration (C), the configuration itself (D). A row spoils a valid tiny model in one way, and says
//! with which code the program must end and which words its message must have. Whatever happens, the output
//! never shows a panic, an escape sequence, or advice to set a variable for a backtrace.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../common/tiny.rs"]
mod tiny;

mod config;
mod container;
mod index;
mod inspect;
mod mutations;
mod tensors;
mod verify;

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tiny::Folder;

/// One row of the table.
struct Case {
    /// Letter and number of the hazard.
    id: &'static str,
    /// What is wrong, in words.
    input: &'static str,
    /// Spoils the valid model.
    spoil: fn(&Folder),
    /// Flags beside the usual ones.
    flags: &'static [&'static str],
    /// The exit code.
    exit: i32,
    /// What stderr must have.
    words: &'static [&'static str],
    /// What stderr must not have.
    never: &'static [&'static str],
}

/// A row whose model must be refused as a bad model.
fn bad(
    id: &'static str,
    input: &'static str,
    spoil: fn(&Folder),
    words: &'static [&'static str],
) -> Case {
    Case { id, input, spoil, flags: &[], exit: 2, words, never: &[] }
}

/// A row whose model must run, with these words of warning, if any.
fn good(
    id: &'static str,
    input: &'static str,
    spoil: fn(&Folder),
    words: &'static [&'static str],
) -> Case {
    Case { id, input, spoil, flags: &[], exit: 0, words, never: &["error"] }
}

impl Case {
    fn flags(mut self, flags: &'static [&'static str]) -> Self {
        self.flags = flags;
        self
    }

    fn exit(mut self, exit: i32) -> Self {
        self.exit = exit;
        self
    }

    fn never(mut self, never: &'static [&'static str]) -> Self {
        self.never = never;
        self
    }

    /// What is wrong with the program's answer, if anything.
    fn check(&self) -> Option<String> {
        let folder = Folder::new();
        (self.spoil)(&folder);
        let Outcome { code, stdout, stderr } = generate(folder.path(), self.flags);
        let mut faults = Vec::new();
        if code != Some(self.exit) {
            faults.push(format!("exit code {code:?}, expected {}", self.exit));
        }
        for word in self.words.iter().filter(|word| !stderr.contains(**word)) {
            faults.push(format!("`{word}` is missing"));
        }
        let never = ["panicked", "unwrap", "backtrace", "RUST_", "\u{1b}", "\0", "\u{202e}"];
        for word in never.iter().chain(self.never).filter(|word| stderr.contains(**word)) {
            faults.push(format!("{word:?} must not be there"));
        }
        if self.exit != 0 && !stderr.contains("\n  in  ") {
            faults.push("the message names no file".to_owned());
        }
        if self.exit == 2 && !stdout.is_empty() {
            faults.push(format!("stdout is not empty: {stdout}"));
        }
        let (id, input) = (self.id, self.input);
        (!faults.is_empty()).then(|| format!("{id} ({input}): {}\n{stderr}", faults.join("; ")))
    }
}

/// Runs every row, and reports all that fail at once.
fn check(cases: impl IntoIterator<Item = Case>) {
    let answers: Vec<Option<String>> = cases.into_iter().map(|case| case.check()).collect();
    let all = answers.len();
    let faults: Vec<String> = answers.into_iter().flatten().collect();
    let failed = faults.len();
    assert!(faults.is_empty(), "{failed} of {all} rows failed:\n\n{}", faults.join("\n\n"));
}

/// How the program ended.
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Two tokens after three, without sampling or tokenizer.
fn generate(model: &Path, flags: &[&str]) -> Outcome {
    let usual =
        ["--ids", "5,6,7", "-n", "2", "--temp", "0", "--ignore-eos", "--json", "--device", "cpu"];
    run("generate", model, &[&usual, flags].concat())
}

/// Runs one command on a model; a program that hangs for a minute is killed.
fn run(command: &str, model: &Path, flags: &[&str]) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tramontane"))
        .args([command, "-m"])
        .arg(model)
        .args(flags)
        .env("HF_HUB_OFFLINE", "1")
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut out = child.stdout.take().expect("stdout is piped");
    let mut err = child.stderr.take().expect("stderr is piped");
    let out = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).map(|_| bytes)
    });
    let err = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        err.read_to_end(&mut bytes).map(|_| bytes)
    });
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        match child.try_wait().expect("the program is waited for") {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => {
                child.kill().expect("the program is killed");
                child.wait().expect("the program ends");
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let text = |bytes: std::thread::JoinHandle<std::io::Result<Vec<u8>>>| {
        let bytes = bytes.join().expect("the reader ends").expect("the output is read");
        String::from_utf8(bytes).expect("the output is UTF-8")
    };
    Outcome { code: status.and_then(|s| s.code()), stdout: text(out), stderr: text(err) }
}

/// All logits of `ids`, as the bytes of the file that `logits` writes.
fn logits(folder: &Folder, ids: &str) -> Vec<u8> {
    let output = folder.file("out.logits");
    let path = output.to_str().expect("the path is text");
    let flags = ["--ids", ids, "--format", "f32", "--output", path, "--device", "cpu"];
    let outcome = run("logits", folder.path(), &flags);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    std::fs::read(output).expect("the logits are written")
}

#[test]
fn the_unspoiled_model_runs() {
    let outcome = generate(Folder::new().path(), &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let answer: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("stdout is JSON");
    assert_eq!(answer["token_ids"].as_array().map(Vec::len), Some(2), "{answer}");
}
