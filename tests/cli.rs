//! The real binary: results, exit codes, JSON, stdin, closed pipes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn tramontane(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tramontane"));
    command.args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TRAMONTANE_")) {
        command.env_remove(name);
    }
    command.env("TRAMONTANE_OFFLINE", "true");
    command
}

fn run(args: &[&str]) -> Output {
    tramontane(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs with `input` on stdin.
fn run_with_stdin(args: &[&str], input: &str) -> Output {
    let mut child = tramontane(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Cases of `tests/data/brise/expected.json`.
fn expected() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/brise/expected.json");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    all["cases"].as_array().unwrap().clone()
}

#[test]
fn the_built_in_model_writes_what_the_reference_writes() {
    for case in expected() {
        let prompt = case["prompt"].as_str().unwrap();
        let n = case["greedy_ids"].as_array().unwrap().len().to_string();
        let output = run(&[
            "generate",
            prompt,
            "-n",
            &n,
            "--temp",
            "0",
            "--ignore-eos",
            "--format",
            "f32",
            "--json",
        ]);
        let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(json["token_ids"], case["greedy_ids"], "{prompt}");
        assert_eq!(json["text"], case["greedy_text"], "{prompt}");
    }
}

#[test]
fn the_prompt_stands_before_the_text_unless_told_otherwise() {
    let base = ["generate", "Il était une fois", "-n", "8", "--temp", "0"];
    let shown = stdout(&run(&base));
    let bare = stdout(&run(&[&base[..], &["--no-display-prompt"]].concat()));
    assert_eq!(shown, format!("Il était une fois{bare}"));
    assert!(bare.ends_with('\n') && bare.len() > 8);
}

#[test]
fn the_json_report_has_its_stable_fields() {
    let output =
        run(&["generate", "-p", "Bonjour", "-n", "3", "--ignore-eos", "--seed", "1", "--json"]);
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    for field in ["token_ids", "text", "finish_reason", "usage", "timings", "model", "token_hash"] {
        assert!(json.get(field).is_some(), "{field}");
    }
    for field in ["load_ms", "prefill_ms", "decode_ms", "prefill_tok_s", "decode_tok_s", "ttft_ms"]
    {
        assert!(json["timings"][field].is_number(), "{field}");
    }
    for field in ["name", "family", "parameters", "format", "device"] {
        assert!(!json["model"][field].is_null(), "{field}");
    }
    assert_eq!(json["finish_reason"], "length");
    assert_eq!(json["usage"]["completion_tokens"], 3);
    assert_eq!(json["model"]["family"], "MistralForCausalLM");
    assert!(stderr(&output).contains("tok/s"));
}

#[test]
fn a_seed_repeats_the_text_for_any_number_of_threads() {
    let text = |threads: &str| {
        stdout(&run(&["generate", "La nuit", "-n", "24", "--seed", "7", "-t", threads, "-q"]))
    };
    let one = text("1");
    assert_eq!(one, text("1"));
    assert_eq!(one, text("3"));
    let other = stdout(&run(&["generate", "La nuit", "-n", "24", "--seed", "8", "-q"]));
    assert_ne!(one, other);
}

#[test]
fn the_prompt_may_come_from_stdin_or_a_file() {
    let args = ["generate", "-n", "4", "--temp", "0", "-q"];
    let from_stdin = run_with_stdin(&args, "Il était une fois\n");
    assert!(from_stdin.status.success());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompt.txt");
    std::fs::write(&path, "Il était une fois").unwrap();
    let from_file = run(&[&args[..], &["-f", path.to_str().unwrap()]].concat());
    assert_eq!(stdout(&from_stdin), stdout(&from_file));
    assert_eq!(stdout(&from_file), stdout(&run(&[&args[..], &["Il était une fois"]].concat())));
}

/// The built-in model with a template that opens a block of reasoning, which this model never closes.
fn thinking_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let brise = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/brise");
    for name in ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(brise.join(name), folder.path().join(name)).unwrap();
    }
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}<think>";
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    folder
}

#[test]
fn reasoning_is_shown_hidden_or_shown_alone() {
    let folder = thinking_model();
    let model = folder.path().to_str().unwrap();
    let args = ["Bonjour", "-m", model, "--temp", "0", "-n", "6", "-q", "--ignore-eos"];
    let answer =
        |more: &[&str]| stdout(&run(&[&["generate"], &args[..], &["--chat"], more].concat()));
    let json = |more: &[&str]| -> Value {
        serde_json::from_str(&answer(&[&["--json"], more].concat())).unwrap()
    };
    let shown = json(&[]);
    let thought = shown["reasoning"].as_str().unwrap();
    assert!(thought.len() > 3 && shown["text"] == "", "{shown}");
    let hidden = json(&["--reasoning", "hide"]);
    assert!(hidden["reasoning"].is_null() && hidden["text"] == "", "{hidden}");
    let only = json(&["--reasoning", "only"]);
    assert!(only["reasoning"] == thought && only["text"].is_null(), "{only}");

    assert_eq!(answer(&[]), format!("<think>\n{thought}\n</think>\n\n\n"));
    assert_eq!(answer(&["--reasoning", "hide"]), "\n");
    assert_eq!(answer(&["--reasoning", "only"]), format!("{thought}\n"));
    let chat = run_with_stdin(
        &["chat", "-m", model, "--temp", "0", "-n", "6", "-q", "--reasoning", "only"],
        "Bonjour\n",
    );
    assert!(chat.status.success(), "{}", stderr(&chat));
    assert!(!stdout(&chat).contains("think>") && stdout(&chat).len() > 4, "{}", stdout(&chat));
}

#[test]
fn the_catalogue_is_listed_and_filtered() {
    let list = |args: &[&str]| stdout(&run(&[&["list", "--catalogue"], args].concat()));
    assert!(list(&[]).lines().count() > 90);
    let french: Value =
        serde_json::from_str(&list(&["--family", "olmo2", "--language", "fr", "--json"])).unwrap();
    for model in french.as_array().unwrap() {
        assert_eq!(model["family"], "Olmo2ForCausalLM");
        assert!(
            model["memory"]["q4"]["bytes"].as_u64() < model["memory"]["bf16"]["bytes"].as_u64()
        );
    }
    assert_eq!(run(&["list", "--family", "olmo2"]).status.code(), Some(64));
    let error = stderr(&run(&["generate", "x", "-m", "lucie-70b"]));
    assert!(error.contains("lucie-7b-base"), "{error}");
    let error = stderr(&run(&["generate", "x", "-m", "lucie-7b"]));
    assert!(error.contains("OpenLLM-France/Lucie-7B-Instruct-v1.1"), "{error}");
}

#[test]
fn environment_variables_stand_for_flags() {
    let output = tramontane(&["generate", "Bonjour", "--json"])
        .envs([
            ("TRAMONTANE_MAX_TOKENS", "2"),
            ("TRAMONTANE_TEMP", "0"),
            ("TRAMONTANE_IGNORE_EOS", "true"),
            ("TRAMONTANE_QUIET", "1"),
            ("TRAMONTANE_VERBOSE", ""),
        ])
        .output()
        .unwrap();
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["usage"]["completion_tokens"], 2);
    assert_eq!(stderr(&output), "");
    let off = tramontane(&["inspect", "--tensors"]).env("TRAMONTANE_JSON", "0").output().unwrap();
    assert!(stdout(&off).starts_with("model"), "{}", stderr(&off));
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let base = ["generate", "Il était une fois", "--temp", "0", "--no-display-prompt", "-q"];
    let whole = stdout(&run(&[&base[..], &["-n", "12"]].concat()));
    let stopped = stdout(&run(&[&base[..], &["-n", "12", "--stop", "pas"]].concat()));
    assert_eq!(stopped.trim_end_matches('\n'), whole.split("pas").next().unwrap());
}

#[test]
fn exit_codes_are_the_documented_ones() {
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--help"], 0, ""),
        (&["--version"], 0, ""),
        (&["generate", "--no-such-flag"], 64, "no-such-flag"),
        (&["no-such-command"], 64, "no-such-command"),
        (&["generate", "x", "-m", "/no/such/folder"], 2, "/no/such/folder"),
        (&["generate", "x", "--temp", "-1"], 64, "temp"),
        (&["generate", "x", "--seed", "-2"], 64, "or -1"),
        (&["generate", "x", "-n", "1", "--seed", "-1"], 0, ""),
        (&["generate", "-f", "/no/such/file"], 64, "/no/such/file"),
        (&["generate", "--ids-file", "/no/such/file"], 64, "cannot be read"),
        (&["eval", "/no/such/file"], 64, "cannot be read"),
        (&["generate", "x", "--device", "cuda:99"], 1, "cuda"),
        (&["generate", "x", "--top-p", "2"], 64, "top_p"),
        (&["generate", "x", "-n", "-7"], 64, "-7"),
        (&["generate", "--ids", "5000"], 64, "5000"),
        (&["generate", "x", "--ctx-size", "2"], 64, "context"),
        (&["generate", "x", "--threads", "0"], 64, "threads"),
        (&["generate", "x", "--logit-bias", "9999=1"], 64, "9999"),
        (&["generate", "x", "--logit-bias", "a=b"], 64, "token id"),
        (&["chat"], 64, "no chat template"),
        (&["logits", "-o", "x"], 64, "no token ids"),
        (&["completions", "bash"], 0, ""),
        (&["doctor", "--json"], 0, ""),
    ];
    assert!(stdout(&run(&["doctor"])).contains("\ncache "));
    for (args, code, words) in cases {
        let output = run(args);
        assert_eq!(output.status.code(), Some(*code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(words), "{args:?}: {}", stderr(&output));
        for word in ["panicked", "unwrap", "RUST_"] {
            assert!(!stderr(&output).contains(word), "{args:?}: {}", stderr(&output));
        }
    }
}

#[test]
fn help_tells_the_exit_codes() {
    let help = stdout(&run(&["--help"])).split_whitespace().collect::<Vec<_>>().join(" ");
    for word in [
        "0 success",
        "2 bad model",
        "3 not enough memory",
        "4 network",
        "64 usage",
        "130 interrupted",
    ] {
        assert!(help.contains(word), "{word}");
    }
}

#[test]
fn a_closed_stdout_is_success_and_silent() {
    let mut child =
        tramontane(&["generate", "Il était une fois", "-n", "200", "--ignore-eos", "-q"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

#[test]
fn nothing_decorates_what_is_not_a_terminal() {
    let output = run(&["generate", "Bonjour", "-n", "4", "--seed", "1", "-v"]);
    assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b));
    assert!(stderr(&output).contains("sampler"));
}

#[cfg(unix)]
#[test]
fn an_interrupt_keeps_the_text_and_exits_with_130() {
    let mut child =
        tramontane(&["generate", "Il était une fois", "-n", "2000", "--ignore-eos", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    // The handler is installed once the model is loaded, which takes a moment.
    std::thread::sleep(std::time::Duration::from_millis(600));
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["finish_reason"], "cancelled");
    assert!(!json["token_ids"].as_array().unwrap().is_empty());
}

#[test]
fn logits_go_to_a_safetensors_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.safetensors");
    let output =
        run(&["logits", "--ids", "1,414,446", "--format", "f32", "-o", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("logits").unwrap().shape(), [3, 4096]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_conversation_is_set_up_saved_and_loaded() {
    let folder = thinking_model();
    let model = folder.path().to_str().unwrap();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let saved = folder.path().join("saved.json");
    let saved = saved.to_str().unwrap();
    let chat = |args: &[&str], input: &str| {
        run_with_stdin(&[&["chat", "-m", model, "-n", "4"], args].concat(), input)
    };

    let input = format!(
        "/set temperature 0\n/set top_k 3\n/set stop fin\n/set stop none\n/show\nBonjour\n/save {saved}\n"
    );
    let first = chat(&["--system", "Sois bref.", "--seed", "5", "-v"], &input);
    let said = stderr(&first);
    assert_eq!(first.status.code(), Some(0), "{said}");
    assert!(said.contains("sampler: temperature 0.7") && said.contains("seed 5"), "{said}");
    assert!(said.contains("sampler  greedy"), "{said}");

    // What was saved is a conversation for other commands too.
    let rendered = stdout(&run(&["template", "-m", model, "--messages", saved]));
    let answer = stdout(&first);
    assert_eq!(rendered, format!("system: Sois bref.\nuser: Bonjour\nassistant: {answer}"));

    let second = chat(&[], &format!("/load {saved}\n/show\n/set temprature 1\n"));
    let said = stderr(&second);
    assert!(said.contains("system   Sois bref.") && said.contains("messages 2"), "{said}");
    assert!(said.contains("temprature") && said.contains("temperature"), "{said}");
    assert_eq!(second.status.code(), Some(64), "the first error tells the code");
    // A block that nobody closed is a message; what makes no sense is told before the first one.
    assert!(stdout(&chat(&["-q"], "\"\"\"un\ndeux\n")).len() > 1);
    assert_eq!(chat(&["--temp", "-1"], "").status.code(), Some(64));
}

#[cfg(target_os = "linux")]
#[test]
fn a_weight_file_that_is_cut_while_it_is_read_ends_the_program_with_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/logits/llama_mha");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(model.join(name), folder.path().join(name)).unwrap();
    }
    let args = ["generate", "-m", folder.path().to_str().unwrap(), "--ids", "1,2,3", "-v"];
    let endless = ["-n", "2000000", "-c", "4000000", "--ignore-eos", "--kv", "q8"];
    let mut child = tramontane(&[&args[..], &endless].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first line comes after the header was read: a file that is cut before has a header that makes no sense.
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut loaded = String::new();
    said.read_line(&mut loaded).unwrap();
    assert!(loaded.contains("loaded in"), "{loaded}");
    let path = folder.path().join("model.safetensors");
    let weights = std::fs::File::options().write(true).open(path).unwrap();
    weights.set_len(100).unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3), "{rest}");
    assert!(rest.contains("was cut while it was in use"), "{rest}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_limit_of_the_address_space_is_obeyed() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/logits/llama_mha");
    let limited = |context: usize| {
        let program = env!("CARGO_BIN_EXE_tramontane");
        let args = format!("generate -m {} --ids 1,2 -n 1 -c {context} --kv f32", model.display());
        let line = format!("ulimit -v 1000000; exec {program} {args}");
        Command::new("sh").args(["-c", &line]).env("TRAMONTANE_OFFLINE", "1").output().unwrap()
    };
    assert!(limited(1000).status.success());
    // 512 bytes of keys and values for each of 2 layers and each token: 2 GB.
    let output = limited(2_000_000);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("free on this machine"), "{}", stderr(&output));
}
