//! The real binary on the emulated GPU: every golden model end to end, and every way in which a GPU may fail.
//!
//! The emulated driver interprets the shipped PTX and checks each access; a mistake of a kernel fails the run and
//! stands in the log. With `TRAMONTANE_TEST_GPU=1` the same tests of models run on the GPU of this machine instead.
#![cfg(all(unix, feature = "cuda"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "cuda/commands.rs"]
mod commands;
mod common;
#[path = "cuda/graphs.rs"]
mod graphs;
#[path = "cuda/largest.rs"]
mod largest;
#[path = "common/tiny.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod tiny;
#[path = "common/variant.rs"]
mod variant;

use std::path::Path;
use std::process::{Command, Output};

use common::{Distance, Expected, folder};
use tramontane::DeviceChoice;
use variant::Tiny;

const F32: Distance = Distance { max_abs: 1e-3, rel_l2: 5e-5 };
const BF16: Distance = Distance { max_abs: 0.25, rel_l2: 3e-2 };
const F16: Distance = Distance { max_abs: 0.05, rel_l2: 5e-3 };

/// A short text of the built-in model.
const BRISE: [&str; 7] = ["generate", "Il était une fois", "-n", "12", "--temp", "0", "--json"];

/// Whether the tests of models run on the GPU of this machine. Those that need a device to fail do not run then.
fn is_real() -> bool {
    std::env::var_os("TRAMONTANE_TEST_GPU").is_some()
}

/// A folder with the emulated driver under the names that programs look for.
fn driver(dir: &Path) {
    // Cargo puts the library of a dev-dependency beside the test's own program.
    let library = std::env::current_exe().unwrap().with_file_name("libemulated_cuda.so");
    assert!(library.exists(), "{} is not there", library.display());
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::os::unix::fs::symlink(&library, dir.join(name)).unwrap();
    }
}

/// The program with a device that behaves as `settings` say; the log of mistakes is `log` in `dir`.
fn tramontane(dir: &Path, settings: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tramontane"));
    // The faster instructions round the activations that meet quantised weights.
    command.env("HF_HUB_OFFLINE", "1").env("TRAMONTANE_ISA", "portable");
    if !is_real() {
        driver(dir);
        let settings = format!("{settings},log={}", dir.join("log").display());
        command.env("LD_LIBRARY_PATH", dir).env("TRAMONTANE_EMULATED_CUDA", settings);
    }
    command
}

fn run(settings: &str, args: &[&str]) -> (Output, String) {
    let dir = tempfile::tempdir().unwrap();
    let output = tramontane(dir.path(), settings).args(args).output().unwrap();
    (output, std::fs::read_to_string(dir.path().join("log")).unwrap_or_default())
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn list(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// The logits of a prompt from `tramontane logits --device cuda`.
fn logits(model: &Path, ids: &[u32], format: &str) -> Vec<f32> {
    logits_on("cuda", model, ids, format)
}

fn logits_on(device: &str, model: &Path, ids: &[u32], format: &str) -> Vec<f32> {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("out.safetensors");
    let (file_text, ids) = (file.to_str().unwrap(), list(ids));
    let args = ["logits", "-m", model.to_str().unwrap(), "--ids", &ids, "--format", format];
    let (output, log) =
        run("on", &[&args[..], &["--device", device, "--output", file_text]].concat());
    assert!(output.status.success(), "{}\n{log}", stderr(&output));
    assert_eq!(log, "");
    let bytes = std::fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor("logits").unwrap().data().to_vec();
    data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Greedy ids of a prompt from `tramontane generate --device cuda`.
fn greedy(model: &Path, ids: &[u32], n: usize, format: &str) -> Vec<u64> {
    let (ids, n) = (list(ids), n.to_string());
    let args =
        ["generate", "-m", model.to_str().unwrap(), "--ids", &ids, "-n", &n, "--format", format];
    let rest = ["--temp", "0", "--ignore-eos", "--json", "--device", "cuda"];
    let (output, log) = run("on", &[&args[..], &rest].concat());
    let report = json(&output);
    assert_eq!(log, "");
    assert!(report["model"]["device"].as_str().unwrap().starts_with("cuda:0"), "{report}");
    report["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

/// One test for each folder, so that a failure names it.
macro_rules! golden {
    ($($name:ident)*) => { $(#[test] fn $name() { check(stringify!($name)); })* };
}

golden! {
    bloom deepseek_v3 falcon_11b falcon_40b falcon_7b falcon_rw_alibi gpt2 gptj helium llama3_rope llama_biases
    llama_gqa_sharded llama_headdim_mqa llama_mha llama_rope_dynamic llama_rope_linear llama_rope_yarn
    llama_theta20m llama_tied mamba2 mamba2_one_group ministral3_fp8_tensor ministral3_realrope ministral3_yarn ministral_interleaved
    mistral3_ministral3 mistral3_mistral mistral4_mla_moe mistral_bf16 mistral_f16 mistral_fp8_block
    mistral_fp8_block128_partial mistral_nemo_headdim mistral_nemo_native mistral_v01_swa mistral_v03
    mistral_v03_native mixtral nemotron nemotron_h_mlp nemotron_h_moe olmo2 qwen2 qwen3 rw_40b rw_7b smollm3
}

fn check(name: &str) {
    let (expected, folder) = (Expected::of(name), folder(name));
    let (wanted, stored) = match name {
        "mistral_bf16" => ("logits_f32compute", Some(("bf16", BF16))),
        "mistral_f16" => ("logits_f32compute", Some(("f16", F16))),
        _ => ("logits", None),
    };
    for (format, tolerance) in [("f32", F32)].into_iter().chain(stored) {
        for prompt in 0..2 {
            let ids = expected.ids(&format!("input_ids_{prompt}"));
            let wanted = expected.numbers(&format!("{wanted}_{prompt}"));
            let distance = Distance::between(&logits(&folder, &ids, format), &wanted);
            eprintln!("{name}, {format}, prompt {prompt}: {distance}");
            assert!(distance.within(tolerance), "{name}, {format}, prompt {prompt}: {distance}");
            if format == "f32" && stored.is_some() {
                // The expected greedy ids of 16-bit models are those of 16-bit arithmetic.
                continue;
            }
            let wanted = expected.ids(&format!("greedy_ids_{prompt}"));
            let got = greedy(&folder, &ids, wanted.len(), format);
            assert!(
                got.iter().copied().eq(wanted.iter().map(|id| u64::from(*id))),
                "{name}, {format}: {got:?}"
            );
        }
    }
}

#[test]
fn packed_weights_give_what_the_cpu_gives() {
    // More tokens than read the packed weights themselves, so that the widened ones are used too.
    let model = folder("mistral_v03");
    let ids: Vec<u32> = Expected::of("mistral_v03").ids("input_ids_0");
    let ids: Vec<u32> = ids.iter().copied().cycle().take(40).collect();
    for format in ["q8", "q4"] {
        for ids in [&ids[..], &ids[..5]] {
            let on_cpu = logits_on("cpu", &model, ids, format);
            let distance = Distance::between(&logits(&model, ids, format), &on_cpu);
            eprintln!("{format}, {} tokens: {distance}", ids.len());
            assert!(distance.within(F16), "{format}: {distance}");
        }
    }
    let (output, log) = run("on", &[&BRISE[..], &["--format", "q8"]].concat());
    assert_eq!(log, "");
    let (on_cpu, _) = run("on", &[&BRISE[..], &["--format", "q8", "--device", "cpu"]].concat());
    assert_eq!(json(&output)["text"], json(&on_cpu)["text"]);
    assert!(json(&output)["model"]["device"].as_str().unwrap().starts_with("cuda:0"));
}

#[test]
fn packed_experts_and_8_bit_caches_give_what_the_cpu_gives() {
    for name in ["mixtral", "deepseek_v3"] {
        let model = folder(name);
        let ids = Expected::of(name).ids("input_ids_0");
        let ids: Vec<u32> = ids.iter().copied().cycle().take(30).collect();
        for format in ["q8", "q4"] {
            for ids in [&ids[..], &ids[..4]] {
                let on_cpu = logits_on("cpu", &model, ids, format);
                let distance = Distance::between(&logits(&model, ids, format), &on_cpu);
                eprintln!("{name}, {format}, {} tokens: {distance}", ids.len());
                assert!(distance.within(F16), "{name}, {format}: {distance}");
            }
        }
        let (folder, ids) = (model.to_str().unwrap(), list(&ids));
        let args = ["generate", "-m", folder, "--ids", &ids, "-n", "4", "--kv", "q8"];
        let rest = ["--temp", "0", "--ignore-eos", "--json", "--format", "f32", "--device"];
        let args = [&args[..], &rest].concat();
        let (output, log) = run("on", &[&args[..], &["cuda"]].concat());
        assert_eq!(log, "");
        let (on_cpu, _) = run("on", &[&args[..], &["cpu"]].concat());
        assert_eq!(json(&output)["token_ids"], json(&on_cpu)["token_ids"], "{name}");
    }
}

#[test]
fn weights_that_were_packed_before_are_taken_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    // q4 also packs its head in q8; in bf16 the panels are put back into rows.
    for format in ["q4", "bf16"] {
        let folder = dir.path().join(format);
        let folder = folder.to_str().unwrap();
        let (output, _) = run("on", &["quantize", "--format", format, "-o", folder]);
        assert!(output.status.success(), "{}", stderr(&output));
        let args = [&BRISE[..], &["-m", folder]].concat();
        let (output, log) = run("on", &[&args[..], &["--device", "cuda"]].concat());
        assert_eq!(log, "");
        let (on_cpu, _) = run("on", &[&args[..], &["--device", "cpu"]].concat());
        assert_eq!(json(&output)["text"], json(&on_cpu)["text"], "{format}");
    }
}

#[test]
fn a_cache_in_8_bits_gives_what_it_gives_on_the_cpu() {
    // A prompt for tensor cores, and tokens one at a time.
    let prompt = "Il était une fois, dans une petite ville au bord de la mer, un enfant qui aimait";
    let args = ["generate", prompt, "-n", "16", "--temp", "0", "--kv", "q8", "--json"];
    let (output, log) = run("on", &[&args[..], &["--device", "cuda"]].concat());
    assert_eq!(log, "");
    let (on_cpu, _) = run("on", &[&args[..], &["--device", "cpu"]].concat());
    assert_eq!(json(&output)["token_ids"], json(&on_cpu)["token_ids"]);
}

/// What the built-in model writes on the CPU.
fn on_cpu() -> serde_json::Value {
    let (output, _) = run("devices=0", &[&BRISE[..], &["--device", "cpu"]].concat());
    assert_eq!(notes(&output), [""; 0]);
    json(&output)["text"].clone()
}

/// The lines on stderr that tell what happened about devices.
fn notes(output: &Output) -> Vec<String> {
    stderr(output).lines().filter(|line| line.starts_with("note:")).map(str::to_owned).collect()
}

#[test]
fn auto_takes_the_gpu_and_writes_the_same_text() {
    let (output, log) = run("on", &BRISE);
    let report = json(&output);
    assert_eq!(log, "");
    assert!(report["model"]["device"].as_str().unwrap().starts_with("cuda:0"), "{report}");
    assert_eq!(report["text"], on_cpu());
    assert_eq!(notes(&output), [""; 0]);
}

/// A device that behaves as the settings say, and what the note tells.
#[track_caller]
fn falls_back(settings: &str, says: &str) {
    if is_real() {
        return;
    }
    let (output, _) = run(settings, &BRISE);
    assert_eq!(json(&output)["text"], on_cpu(), "{settings}");
    let notes = notes(&output);
    assert_eq!(notes.len(), 1, "{settings}: {}", stderr(&output));
    assert!(notes[0].contains("CPU") && notes[0].contains(says), "{settings}: {notes:?}");
}

#[test]
fn auto_takes_the_cpu_where_no_device_can_be_used() {
    falls_back("devices=0", "no CUDA-capable device");
    falls_back("capability=75", "compute capability 7.5");
    falls_back("memory=100000", "GB are free");
}

#[test]
fn auto_takes_the_cpu_where_a_self_test_fails() {
    falls_back("skip=norm_rows", "self-test");
    falls_back("skip=attend_merge", "self-test");
    falls_back("skip=gate", "self-test");
    falls_back("skip=top_k", "illegal memory access");
}

#[test]
fn layers_that_few_families_have_are_tested_before_they_are_used() {
    if is_real() {
        return;
    }
    for (name, kernel, says) in [
        ("mixtral", "combine", "`experts`"),
        ("nemotron_h_moe", "mamba_norm", "`mamba`"),
        ("deepseek_v3", "copy_blocks", "`copy_blocks`"),
    ] {
        let folder = folder(name);
        let args = ["generate", "-m", folder.to_str().unwrap(), "--ids", "1,2,3", "-n", "1"];
        let args = [&args[..], &["--device", "cuda", "--json"]].concat();
        let (output, _) = run(&format!("skip={kernel}"), &args);
        assert_eq!(output.status.code(), Some(1), "{name}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{name}: {}", stderr(&output));
    }
}

#[test]
fn auto_takes_the_cpu_where_memory_ends_while_loading() {
    falls_back("alloc_fails=3", "no room");
    // Past the self-test: while the weights come in, and in the midst of the text.
    falls_back("alloc_ends=60", "computing on the CPU");
    falls_back("alloc_ends=120", "going on on the CPU");
}

#[test]
fn memory_that_is_kept_for_later_is_given_back_where_it_is_short() {
    if is_real() {
        return;
    }
    let (output, log) = run("alloc_fails=60", &[&BRISE[..], &["--device", "cuda"]].concat());
    assert_eq!(log, "");
    assert_eq!(json(&output)["text"], on_cpu());
}

#[test]
fn auto_goes_on_on_the_cpu_where_a_launch_fails() {
    falls_back("launch_fails=2", "unspecified launch failure");
    // Past the self-test and the prompt: in the midst of the text.
    falls_back("launch_fails=900", "going on on the CPU");
}

#[test]
fn an_explicit_device_that_cannot_be_had_is_an_error_that_says_why() {
    for (settings, device, code, says) in [
        ("devices=0", "cuda", 1, "no CUDA-capable device"),
        ("on", "cuda:3", 1, "no CUDA device 3"),
        ("capability=75", "cuda", 1, "expected 8.0"),
        ("memory=100000", "cuda", 3, "the model needs"),
        ("alloc_fails=3", "cuda", 3, "no room"),
        ("launch_fails=900", "cuda", 1, "unspecified launch failure"),
        ("skip=norm_rows", "cuda", 1, "`norm`"),
        ("on", "gpu", 64, "cuda:N"),
    ] {
        if is_real() {
            return;
        }
        let (output, _) = run(settings, &[&BRISE[..], &["--device", device]].concat());
        assert_eq!(output.status.code(), Some(code), "{settings}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{settings}: {}", stderr(&output));
    }
}

#[test]
fn too_little_memory_names_the_format_that_fits() {
    if is_real() {
        return;
    }
    // The built-in model needs 27 MB in f32 and 15 MB in bf16.
    let more = ["--format", "f32", "--device", "cuda"];
    let (output, _) = run("memory=20000000", &[&BRISE[..], &more].concat());
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("--format bf16, which needs 0.0"), "{}", stderr(&output));
}

/// A model whose convolution is wider than the kernel takes: the same one, with weights of zero before the others.
fn wide_convolution() -> std::path::PathBuf {
    let mut tiny = Tiny::of("nemotron_h_mlp");
    for tensor in &mut tiny.tensors {
        if tensor.name.ends_with("conv1d.weight") {
            let narrow = tensor.values();
            tensor.shape[2] = 9;
            tensor.fill(|i| if i % 9 < 5 { 0.0 } else { narrow[i / 9 * 4 + i % 9 - 5] });
        }
    }
    tiny.config["conv_kernel"] = 9.into();
    tiny.write("wide-convolution")
}

#[test]
fn a_model_without_a_kernel_is_named_and_runs_on_the_cpu() {
    let folder = wide_convolution();
    let expected = Expected::of("nemotron_h_mlp");
    let ids = list(&expected.ids("input_ids_0"));
    let args = ["generate", "-m", folder.to_str().unwrap(), "--ids", &ids, "-n", "4"];
    let args = [&args[..], &["--temp", "0", "--ignore-eos", "--json"]].concat();
    let (output, _) = run("on", &[&args[..], &["--device", "cuda"]].concat());
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("recurrent layers"), "{}", stderr(&output));
    let (output, _) = run("on", &args);
    let wanted = expected.ids("greedy_ids_0")[..4].to_vec();
    assert_eq!(json(&output)["token_ids"], serde_json::json!(wanted));
    let notes = notes(&output);
    assert!(notes.len() == 1 && notes[0].contains("recurrent layers"), "{notes:?}");
}

#[test]
fn without_a_driver_the_cpu_computes_and_nothing_is_said() {
    let command = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tramontane"));
        // A folder without the library; where this machine has a driver of its own, that one is found.
        command.env("LD_LIBRARY_PATH", "").args(BRISE).args(more).output().unwrap()
    };
    let output = command(&["-v"]);
    if json(&output)["model"]["device"].as_str().unwrap().starts_with("cuda") || is_real() {
        return;
    }
    assert!(stderr(&output).contains("not on a GPU: no NVIDIA driver"), "{}", stderr(&output));
    let output = command(&[]);
    assert!(!stderr(&output).contains("GPU") && notes(&output).is_empty(), "{}", stderr(&output));
    let output = command(&["--device", "cuda"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no NVIDIA driver"), "{}", stderr(&output));
}

#[test]
fn a_library_that_is_no_driver_is_none() {
    if is_real() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Any library that is loaded without doing harm: it has none of the driver's functions.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut libraries = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    let Some(library) = libraries.find(|path| path.contains("libgcc_s")) else { return };
    std::os::unix::fs::symlink(library, dir.path().join("libcuda.so")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tramontane"));
    let output = command.env("LD_LIBRARY_PATH", dir.path()).args(BRISE).output().unwrap();
    assert_eq!(json(&output)["text"], on_cpu());
    assert!(notes(&output)[0].contains("has no function `cu"), "{}", stderr(&output));
}

#[test]
fn a_program_that_uses_the_library_chooses_the_device() {
    let options = |device| tramontane::LoadOptions { device, ..Default::default() };
    let model = tramontane::Model::load("", &options(DeviceChoice::Cpu)).unwrap();
    assert!(model.info().device.starts_with("cpu") && model.take_notes().is_empty());
    let e = tramontane::Model::load("", &options(DeviceChoice::Cuda(Some(999)))).unwrap_err();
    assert_eq!(e.kind(), tramontane::ErrorKind::Device, "{e}");
}

/// Says where the tests of models run; a GPU that was asked for must be there, and pass the self-tests.
#[test]
fn the_gpu_of_this_machine_runs_the_same_models() {
    if !is_real() {
        eprintln!("skipped on a GPU: only TRAMONTANE_TEST_GPU=1 says that there is one to test");
        return;
    }
    let (output, _) = run("", &["doctor", "--json"]);
    let lines = json(&output)["cuda"].to_string();
    assert!(
        lines.contains("self-test passed"),
        "TRAMONTANE_TEST_GPU is set, expected a GPU, found {lines}"
    );
    eprintln!("all tests of models run on {lines}");
}

#[test]
fn the_emulated_driver_is_no_device_unless_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    driver(dir.path());
    let mut command = Command::new(env!("CARGO_BIN_EXE_tramontane"));
    command.env("LD_LIBRARY_PATH", dir.path()).env_remove("TRAMONTANE_EMULATED_CUDA");
    let output = command.args(BRISE).output().unwrap();
    let device = json(&output)["model"]["device"].as_str().unwrap().to_owned();
    assert!(device.starts_with("cpu"), "{device}");
}
