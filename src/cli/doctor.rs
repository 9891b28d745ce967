//! `doctor`: what this machine offers.

use std::process::ExitCode;

use serde_json::json;
use tramontane::error::Result;
use tramontane::ops::Cpu;

use super::generate::print;

/// Check this machine: instructions, threads, memory, devices, caches
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print one JSON object instead of text
    #[arg(long, env = "TRAMONTANE_JSON")]
    json: bool,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let cpu = Cpu::new(None)?;
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "device": cpu.name(),
        "threads": cpu.threads(),
    });
    if args.json {
        print(&format!("{report}\n"))?;
    } else {
        for (name, value) in report.as_object().into_iter().flatten() {
            let value = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
            print(&format!("{name:<10}{value}\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
