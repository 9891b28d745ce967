//! `quantize`: weights packed once and for all.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use tramontane::error::Result;
use tramontane::hub::HubOptions;
use tramontane::quantize::{Report, quantize};
use tramontane::{Format, LoadOptions};

use super::args::FormatArg;
use super::generate::print;
use super::talk::{self, LoadBar};

/// Pack a model's weights into a folder that loads at once
///
/// The new folder holds the model with its matrices as they are multiplied, in q4 unless --format says otherwise; it is
/// read back and compared with its source before the command ends. stdout gets the folder.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The folder to make; it must be empty or not exist
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// Print one JSON object instead of the folder
    #[arg(long, env = "TRAMONTANE_JSON")]
    json: bool,

    /// Model: a folder, a *.safetensors file, organisation/name[@revision] or a short name of the catalogue; nothing for
    /// the built-in one
    #[arg(short, long, env = "TRAMONTANE_MODEL", value_name = "MODEL")]
    model: Option<String>,

    /// Format of the matrices; auto is q4
    #[arg(long, env = "TRAMONTANE_FORMAT", value_enum, default_value = "auto")]
    format: FormatArg,

    /// Threads that compute [default: physical cores that this process may use]
    #[arg(short, long, env = "TRAMONTANE_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Take warnings about the model's files as errors
    #[arg(long, env = "TRAMONTANE_STRICT")]
    strict: bool,

    /// Never use the network
    #[arg(long, env = "TRAMONTANE_OFFLINE")]
    offline: bool,

    /// Say nothing on stderr but errors
    #[arg(short, long, env = "TRAMONTANE_QUIET")]
    quiet: bool,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let bar = Arc::new(LoadBar::of("packing", !args.quiet));
    let mut hub = HubOptions::from_env();
    hub.offline |= args.offline;
    let format = args.format.format();
    let options = LoadOptions {
        format: if format == Format::Auto { Format::Q4 } else { format },
        threads: args.threads.map(usize::from),
        strict: args.strict,
        hub,
        progress: Some(bar.clone()),
        ..LoadOptions::default()
    };
    let report = quantize(args.model.as_deref().unwrap_or(""), &options, &args.output);
    bar.done();
    let report = report?;
    if !args.quiet {
        talk::say(&summary(&report));
    }
    if args.json {
        print(&format!("{}\n", serde_json::json!(report)))?;
    } else {
        print(&format!("{}\n", report.folder.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(report: &Report) -> String {
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    format!(
        "{} matrices in {}: {:.3} GB of {:.3} GB; relative error {:.4}, at most {:.4} ({})",
        report.matrices,
        report.format,
        gigabytes(report.bytes),
        gigabytes(report.source_bytes),
        report.error,
        report.largest_error,
        report.largest_error_in
    )
}
