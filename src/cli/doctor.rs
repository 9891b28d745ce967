//! `doctor`: what this machine offers.

use std::process::ExitCode;

use serde_json::{Value, json};
use tramontane::error::Result;
use tramontane::generate::token_hash;
use tramontane::ops::Cpu;
use tramontane::sample::Sampling;
use tramontane::{LoadOptions, Model, memory};

use super::generate::print;
#[cfg(feature = "hub")]
use super::talk;

/// Check this machine: instructions, threads, memory, devices, caches
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print one JSON object instead of text
    #[arg(long, env = "TRAMONTANE_JSON")]
    json: bool,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let cpu = Cpu::new(None)?;
    let gb = |bytes: Option<u64>| bytes.map(|b| (b as f64 / 1e7).round() / 100.0);
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "device": cpu.name(),
        "instructions": Cpu::instructions(),
        "threads": cpu.threads(),
        "memory_gb": gb(memory::total()),
        "free_gb": gb(memory::available()),
        "cache": cache(),
        "self_test": self_test()?,
        "cuda": cuda(),
    });
    if args.json {
        print(&format!("{report}\n"))?;
    } else {
        for (name, value) in report.as_object().into_iter().flatten() {
            print(&format!("{name:<14}{}\n", plain(value)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The NVIDIA driver, its devices, and whether each computes what the CPU computes.
#[cfg(feature = "cuda")]
fn cuda() -> Value {
    use tramontane::KvFormat;
    use tramontane::ops::{Cuda, Format, cuda};
    let reason = |e: tramontane::Error| e.to_string().lines().next().unwrap_or_default().to_owned();
    let (version, devices) = match cuda::devices() {
        Ok(found) => found,
        Err(e) => return Value::String(reason(e)),
    };
    let test = |number| -> Result<()> {
        let device = Cuda::new(Some(number))?;
        for (format, kv) in [
            (Format::F32, KvFormat::F32),
            (Format::F16, KvFormat::F16),
            (Format::Bf16, KvFormat::F16),
            (Format::Q8, KvFormat::F16),
            (Format::Q4, KvFormat::Q8),
        ] {
            let heads = cuda::HeadShape { head_dim: 128, v_dim: 128, group: 4 };
            device.self_test(format, kv, heads)?;
        }
        Ok(())
    };
    let describe = |d: &cuda::DeviceInfo| {
        let passed = test(d.number).map_or_else(reason, |()| "passed".to_owned());
        format!(
            "cuda:{} {} (compute {}.{}, {:.1} GB): self-test {passed}",
            d.number,
            d.name,
            d.capability / 10,
            d.capability % 10,
            d.memory as f64 / 1e9
        )
    };
    let mut lines = vec![format!("driver {}.{}", version / 1000, version % 1000 / 10)];
    lines.extend(devices.iter().map(describe));
    json!(lines)
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Value {
    Value::String("built without the feature `cuda`".to_owned())
}

/// Where models of the hub are kept, how many there are, and how many bytes they take.
#[cfg(feature = "hub")]
fn cache() -> Value {
    use tramontane::hub::{self, HubOptions};
    let options = HubOptions::from_env();
    let Some(folder) = &options.cache else { return "no folder: HOME is not set".into() };
    let models = match hub::list_cached(&options) {
        Ok(models) => models,
        Err(e) => return format!("{}: {}", folder.display(), e.what()).into(),
    };
    let used = talk::bytes(models.iter().map(|model| model.bytes).sum());
    let offline = if options.offline { ", offline" } else { "" };
    format!("{} ({} models, {used}{offline})", folder.display(), models.len()).into()
}

#[cfg(not(feature = "hub"))]
fn cache() -> Value {
    "built without the feature `hub`".into()
}

/// Runs the built-in model for a few tokens: the whole way from text to text works on this machine.
fn self_test() -> Result<String> {
    if !cfg!(feature = "embedded") {
        return Ok("no model is built in".to_owned());
    }
    let model = Model::load("", &LoadOptions::default())?;
    let sampling = Sampling { max_tokens: Some(16), ..Sampling::greedy() };
    for piece in model.session().generate("Il était une fois", &sampling)? {
        if let Some(summary) = piece?.summary {
            let hash = &token_hash(&summary.token_ids)[..12];
            return Ok(format!(
                "16 tokens at {:.0} tok/s, token hash {hash}",
                summary.timings.decode_tok_s
            ));
        }
    }
    Ok("the generation did not end".to_owned())
}

/// A JSON value as a table shows it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Null => "unknown".to_owned(),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}
