//! The real program against the fake hub: killed, interrupted, started twice; exit codes and JSON.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::fake::{self, Answer, At, REPO};
use crate::{SIZE, Setup, names, setup};

/// The program with an environment of its own.
fn tramontane(s: &Setup, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tramontane"));
    command
        .args(args)
        .env_clear()
        .env("HOME", s.folder.path())
        .env("HF_HUB_CACHE", s.cache())
        .env("HF_ENDPOINT", s.hub.endpoint())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(s: &Setup, args: &[&str]) -> Output {
    tramontane(s, args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Lets the weights come slowly, so that something can happen meanwhile.
fn slow_down(s: &Setup, pace: Duration) {
    s.hub.bend(move |request, answer| match request.at {
        At::Store => Answer { pace, ..answer },
        At::Hub => answer,
    });
}

/// Waits until so many bytes of the weights were sent.
fn wait_for(s: &Setup, bytes: u64) {
    while s.hub.sent() < bytes {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// How much of the weights an interrupted download left.
fn left(s: &Setup) -> u64 {
    let blobs = s.repo().join("blobs");
    let partial = s.blobs().into_iter().find(|name| name.ends_with(".incomplete"));
    partial.map_or(0, |name| blobs.join(name).metadata().unwrap().len())
}

fn interrupt(child: &Child) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
}

#[test]
fn killed_at_any_point_it_goes_on_from_there() {
    let s = setup();
    let mut seed = 7_u64;
    for round in 0..20 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let kill_at = (seed >> 33) % SIZE as u64;
        s.hub.reset();
        slow_down(&s, Duration::from_millis(2));
        let mut child = tramontane(&s, &["pull", REPO]).spawn().unwrap();
        wait_for(&s, kill_at);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!s.weights().exists(), "nothing has its name before it is whole");

        let left = left(&s);
        s.hub.reset();
        let output = run(&s, &["pull", REPO]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        s.assert_whole();
        let rest = SIZE as u64 - left;
        assert!(s.hub.sent() <= rest + rest / 20, "round {round}: {} of {rest}", s.hub.sent());
        std::fs::remove_dir_all(s.repo()).unwrap();
    }
}

#[test]
#[cfg(unix)]
fn interrupted_it_keeps_what_is_there_and_says_so() {
    let s = setup();
    slow_down(&s, Duration::from_millis(50));
    let child = tramontane(&s, &["pull", REPO]).spawn().unwrap();
    wait_for(&s, SIZE as u64 / 3);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(text(&output.stderr).contains("goes on from it"), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
    assert!(left(&s) > 0);
    s.hub.reset();
    assert!(run(&s, &["pull", REPO]).status.success(), "the lock is free again");
    s.assert_whole();
    assert!(s.hub.sent() < SIZE as u64);
}

#[test]
#[cfg(unix)]
fn interrupted_while_the_hub_is_silent_it_ends() {
    let s = setup();
    s.hub.bend(|_, answer| Answer { silent: Duration::from_secs(15), ..answer });
    for args in [&["pull", REPO][..], &["inspect", "-m", REPO]] {
        s.hub.forget();
        let child = tramontane(&s, args).spawn().unwrap();
        while s.hub.log().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        interrupt(&child);
        let begin = std::time::Instant::now();
        assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130), "{args:?}");
        assert!(begin.elapsed() < Duration::from_secs(10), "it waited for the hub");
    }
}

#[test]
fn the_second_waits_and_takes_over_when_the_first_is_killed() {
    let s = setup();
    slow_down(&s, Duration::from_millis(40));
    let mut first = tramontane(&s, &["pull", REPO]).spawn().unwrap();
    wait_for(&s, SIZE as u64 / 4);
    let mut second = tramontane(&s, &["pull", REPO]).spawn().unwrap();
    let mut said = BufReader::new(second.stderr.take().unwrap()).lines().map(|line| line.unwrap());
    let waits = "waiting for another process that downloads model.safetensors";
    assert!(said.any(|line| line == waits));
    first.kill().unwrap();
    first.wait().unwrap();
    let rest: Vec<String> = said.collect();
    assert!(second.wait().unwrap().success(), "{rest:?}");
    s.assert_whole();
}

#[test]
fn exit_codes_are_the_documented_ones() {
    let s = setup();
    let code = |args: &[&str]| {
        let output = run(&s, args);
        let said = text(&output.stderr);
        assert!(said.lines().any(|line| line.starts_with("error: ")), "{args:?}: {said}");
        assert!(!said.contains("panicked") && !said.contains("RUST_"), "{said}");
        output.status.code().unwrap()
    };
    assert_eq!(code(&["pull", "essai/inconnu"]), 2);
    assert_eq!(code(&["pull", REPO, "--revision", "v9"]), 2);
    assert_eq!(code(&["pull", REPO, "--offline"]), 4);
    assert_eq!(code(&["pull", "../../etc"]), 64);
    assert_eq!(code(&["pull", "brise"]), 64);
    assert_eq!(code(&["pull", "a/b@v1", "--revision", "v2"]), 64);
    assert_eq!(code(&["pull", REPO, "--revision", "../x"]), 64);
    assert_eq!(code(&["generate", "-m", "essai/inconnu", "x"]), 2);
    s.hub.bend(|request, mut answer| {
        if request.at == At::Store {
            answer.body[9] ^= 1;
        }
        answer
    });
    assert_eq!(code(&["pull", REPO]), 4);
    s.hub.bend(|_, _| Answer::new(403));
    assert_eq!(code(&["pull", REPO]), 4);
}

#[test]
fn json_tells_what_was_pulled_and_what_is_there() {
    let s = setup();
    let json = |args: &[&str]| -> Value {
        let output = run(&s, args);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(json(&["list", "--json"]).as_array().unwrap().len(), 1, "the built-in model");
    let pulled = json(&["pull", REPO, "--json", "--quiet"]);
    assert_eq!(pulled["name"], REPO);
    assert_eq!(pulled["commit"], s.hub.commit());
    assert_eq!(pulled["transferred"], pulled["bytes"]);
    let weights = fake::sha256(&s.hub.file("model.safetensors"));
    assert!(pulled["files"].as_array().unwrap().iter().any(|file| file["hash"] == *weights));
    assert_eq!(json(&["pull", REPO, "--json", "--offline"])["transferred"], 0);

    let list = json(&["list", "--json"]);
    let [built_in, model] = &list.as_array().unwrap()[..] else { panic!("{list}") };
    assert_eq!((&built_in["name"], &built_in["commit"]), (&"brise".into(), &Value::Null));
    assert_eq!((&model["name"], &model["complete"]), (&REPO.into(), &true.into()));
    assert_eq!((&model["revisions"][0], &model["path"]), (&"main".into(), &pulled["path"]));
    assert!(model["last_used"].as_str().unwrap().ends_with('Z'));

    let table = text(&run(&s, &["list"]).stdout);
    assert!(table.contains(REPO) && table.contains("complete"), "{table}");
    let folder = text(&run(&s, &["pull", REPO]).stdout);
    assert_eq!(names(folder.trim().as_ref()).len(), 3);
}

#[test]
fn the_token_is_in_no_output() {
    let s = setup();
    for broken in [false, true] {
        s.hub.bend(move |_, answer| if broken { Answer::new(403) } else { answer });
        let mut command = tramontane(&s, &["pull", REPO, "--json"]);
        command
            .env("HF_TOKEN", "hf_very_secret")
            .env("RUST_LOG", "trace")
            .env("RUST_BACKTRACE", "1");
        let output = command.output().unwrap();
        assert_eq!(output.status.success(), !broken);
        let all = text(&output.stdout) + &text(&output.stderr);
        assert!(!all.contains("secret"), "{all}");
    }
    let sent = s.hub.log().iter().any(|r| r.header("authorization").is_some());
    assert!(sent, "the hub got it");
}

#[test]
fn a_model_of_the_hub_runs_and_runs_again_offline() {
    let s = setup();
    let model =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/logits/llama_mha");
    for name in ["config.json", "model.safetensors"] {
        s.hub.put(name, &std::fs::read(model.join(name)).unwrap());
    }
    s.hub.remove("tokenizer.json");
    let args = ["generate", "-m", REPO, "--ids", "1,2,3", "-n", "4", "--temp", "0", "--json"];
    let generate = |offline: &str| -> Value {
        let output = tramontane(&s, &args).env("HF_HUB_OFFLINE", offline).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let online = generate("0");
    s.hub.reset();
    let offline = generate("1");
    assert_eq!(online["token_ids"], offline["token_ids"]);
    assert_eq!(online["model"]["name"], REPO);
    assert!(s.hub.log().is_empty());
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let s = setup();
    let file = s.folder.path().join("a file");
    std::fs::write(&file, "").unwrap();
    let output = tramontane(&s, &["pull", REPO]).env("HF_HUB_CACHE", &file).output().unwrap();
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("a file"), "{said}");
    assert!(said.contains("HF_HOME=") && !said.contains("panicked"), "{said}");
}

#[test]
fn text_and_prompts_need_no_weights() {
    let s = setup();
    s.hub.put("tokenizer.json", include_bytes!("../../models/brise/tokenizer.json"));
    let config = r#"{"chat_template": "{% for m in messages %}<{{ m.content }}>{% endfor %}"}"#;
    s.hub.put("tokenizer_config.json", config.as_bytes());
    let output = run(&s, &["tokenize", "-m", REPO, "--ids", "Bonjour"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let messages = s.folder.path().join("messages.json");
    std::fs::write(&messages, r#"[{"role": "user", "content": "Bonjour"}]"#).unwrap();
    let output = run(&s, &["template", "-m", REPO, "--messages", messages.to_str().unwrap()]);
    assert_eq!(text(&output.stdout), "<Bonjour>", "{}", text(&output.stderr));
    assert_eq!(s.hub.sent(), 0, "weights were fetched");
    // The rest comes when it is needed, and the small files do not come again.
    s.hub.reset();
    assert!(run(&s, &["pull", REPO]).status.success());
    s.assert_whole();
}
