//! Decoding with the launches of a token as one graph: the same ids, fewer calls of the driver, and what happens where a
//! driver has no graphs or fails within one.

use std::process::Command;

use tramontane::sample::Sampling;
use tramontane::{DeviceChoice, Format, LoadOptions, Model};

use super::common::{Expected, folder};
use super::{BRISE, driver, falls_back, is_real, json, list, on_cpu, run, stderr, tramontane};

/// The functions of graphs that a driver may refuse.
const FUNCTIONS: [&str; 5] = [
    "cuGraphCreate",
    "cuGraphAddKernelNode_v2",
    "cuGraphInstantiateWithFlags",
    "cuGraphExecKernelNodeSetParams_v2",
    "cuGraphLaunch",
];

/// What the device was asked for during a generation, in order, and the ids that came of it.
pub(super) fn traced(settings: &str, args: &[&str]) -> (Vec<String>, serde_json::Value) {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let settings = format!("{settings},trace={}", trace.display());
    let output = tramontane(dir.path(), &settings).args(args).output().unwrap();
    let ids = json(&output)["token_ids"].clone();
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
    assert_eq!(log, "", "{settings}");
    let trace = std::fs::read_to_string(trace).unwrap();
    (trace.lines().map(str::to_owned).collect(), ids)
}

/// The calls of each token after the first, which ends with a read of its logits.
pub(super) fn of_tokens(trace: &[String], n: usize) -> Vec<&[String]> {
    let tokens: Vec<_> = trace.split_inclusive(|call| call.starts_with("read ")).collect();
    tokens[tokens.len() - n..].to_vec()
}

fn count(calls: &[String], what: &str) -> usize {
    calls.iter().filter(|call| call.split(' ').next() == Some(what)).count()
}

/// Greedy ids of `n` tokens after a prompt.
fn args<'a>(model: &'a str, ids: &'a str, n: &'a str) -> Vec<&'a str> {
    let rest = ["--temp", "0", "--ignore-eos", "--json", "--format", "f32", "--device", "cuda"];
    [&["generate", "-m", model, "--ids", ids, "-n", n], &rest[..]].concat()
}

#[test]
fn a_token_is_one_graph_of_which_little_changes() {
    if is_real() {
        return;
    }
    let args = [&BRISE[..], &["--device", "cuda"]].concat();
    let (trace, ids) = traced("on", &args);
    let (plain, plain_ids) = traced("graph_fails=cuGraphCreate", &args);
    assert_eq!(ids, plain_ids);
    let launches: Vec<_> = of_tokens(&plain, 11).iter().map(|t| count(t, "launch")).collect();
    // The built-in model has 6 layers.
    assert!(launches.iter().all(|n| *n == 6 * 11 + 6), "{launches:?}");
    assert_eq!(count(&plain, "graph") + count(&plain, "prepare"), 0);
    for token in &of_tokens(&trace, 11) {
        assert_eq!(count(token, "graph"), 1, "{token:?}");
        assert!(token.contains(&format!("graph {}", launches[0])), "{token:?}");
        // Cosines, sines and the id; of each layer, where its keys are stored and up to where they are read.
        let calls = [count(token, "write"), count(token, "change"), count(token, "launch")];
        assert!(calls[0] == 3 && calls[1] <= 2 * 6 && calls[2] == 0, "{calls:?}: {token:?}");
    }
    assert_eq!(count(&trace, "prepare"), 1, "one graph serves all tokens");
}

#[test]
fn a_driver_that_refuses_graphs_launches_each_kernel() {
    if is_real() {
        return;
    }
    for function in FUNCTIONS {
        let (output, log) = run(&format!("graph_fails={function}"), &BRISE);
        assert_eq!((json(&output)["text"].clone(), log.as_str()), (on_cpu(), ""), "{function}");
        let device = json(&output)["model"]["device"].as_str().unwrap().to_owned();
        assert!(device.starts_with("cuda:0"), "{function}: {device}");
        assert_eq!(super::notes(&output), [""; 0], "{function}");
    }
}

#[test]
fn a_driver_without_graphs_launches_each_kernel() {
    if is_real() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = tramontane(dir.path(), "on");
    // The same library, but for the name of one function.
    let mut library = std::fs::read(dir.path().join("libcuda.so")).unwrap();
    let name = b"\0cuGraphLaunch\0";
    let places: Vec<_> = (0..library.len()).filter(|i| library[*i..].starts_with(name)).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|at| library[at + 3] = b'g');
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::fs::remove_file(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name), &library).unwrap();
    }
    let trace = dir.path().join("trace");
    command.env("TRAMONTANE_EMULATED_CUDA", format!("trace={}", trace.display()));
    let output = command.args(BRISE).args(["--device", "cuda"]).output().unwrap();
    assert_eq!(json(&output)["text"], on_cpu());
    let calls = std::fs::read_to_string(trace).unwrap();
    assert!(calls.contains("launch") && !calls.contains("graph"), "graphs without the function");
}

#[test]
fn a_context_that_grows_over_pages_and_chunks_gives_the_ids_of_the_cpu() {
    // Pages have 64 positions and chunks of attention 256; a window lets pages go.
    for (name, n) in [("mistral_v03", 150), ("mistral_v01_swa", 150), ("gpt2", 60)] {
        let folder = folder(name);
        let ids: Vec<u32> =
            Expected::of(name).ids("input_ids_0").into_iter().cycle().take(240).collect();
        let length = if name == "gpt2" { 4 } else { 180 };
        let (ids, n) = (list(&ids[..length]), n.to_string());
        let args = args(folder.to_str().unwrap(), &ids, &n);
        let (output, log) = run("on", &args);
        assert_eq!(log, "", "{name}");
        let on_cpu = args.iter().map(|arg| if *arg == "cuda" { "cpu" } else { arg });
        let (on_cpu, _) = run("on", &on_cpu.collect::<Vec<_>>());
        assert_eq!(json(&output)["token_ids"], json(&on_cpu)["token_ids"], "{name}");
    }
}

#[test]
fn a_kernel_that_fails_within_a_graph_moves_the_text_to_the_cpu() {
    if is_real() {
        return;
    }
    let args = [&BRISE[..], &["--device", "cuda"]].concat();
    let (trace, _) = traced("on", &args);
    // The kernels that have run before the fourth token from the end, and half of its own.
    let before = trace.len() - of_tokens(&trace, 4).iter().map(|t| t.len()).sum::<usize>();
    let kernels = |call: &String| match call.split_once(' ') {
        Some(("launch", _)) => 1,
        Some(("graph", n)) => n.parse().unwrap(),
        Some(_) | None => 0,
    };
    let ran: usize = trace[..before].iter().map(kernels).sum();
    let settings = format!("launch_fails={}", ran + 50);
    falls_back(&settings, "going on on the CPU");
    falls_back(&settings, "unspecified launch failure");
    let (output, _) = run(&settings, &args);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("unspecified launch failure"), "{}", stderr(&output));
}

/// Two sessions of one model that decode side by side in this process, against each alone.
#[test]
#[ignore = "a_graph_serves_sessions_that_take_turns runs it, with the emulated driver"]
fn sessions_side_by_side() {
    let options =
        LoadOptions { device: DeviceChoice::Cuda(None), format: Format::F32, ..Default::default() };
    let model = Model::load("", &options).unwrap();
    let text = |prompt: &str| {
        let sampling = Sampling { max_tokens: Some(12), ..Sampling::greedy() };
        let pieces = model.session().generate(prompt, &sampling).unwrap();
        pieces.map(|piece| piece.unwrap().text).collect::<String>()
    };
    let prompts = ["Il était une fois", "La mer", "Dans la ville de Lyon, un enfant"];
    let alone: Vec<_> = prompts.iter().map(|prompt| text(prompt)).collect();
    let together = std::thread::scope(|scope| {
        let threads: Vec<_> = prompts.iter().map(|p| scope.spawn(|| text(p))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(together, alone);
}

#[test]
fn a_graph_serves_sessions_that_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "graphs::sessions_side_by_side", "--ignored"]);
    let trace = dir.path().join("trace");
    if !is_real() {
        driver(dir.path());
        let settings = format!("trace={}", trace.display());
        command.env("LD_LIBRARY_PATH", dir.path()).env("TRAMONTANE_EMULATED_CUDA", settings);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", stderr(&output));
    if !is_real() {
        let calls = std::fs::read_to_string(trace).unwrap();
        let prepared = calls.lines().filter(|call| call.starts_with("prepare")).count();
        // Alone each session may bring a graph of its own; together they use those.
        assert!((1..=4).contains(&prepared), "{prepared} graphs were made");
    }
}
