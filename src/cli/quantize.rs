//! `quantize`: weights packed once and for all.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use tramontane::error::Result;
use tramontane::quantize::{Report, quantize};
use tramontane::{Format, LoadOptions};

use super::args::ModelArgs;
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

    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let bar = Arc::new(LoadBar::new(!args.model.quiet));
    let options = args.model.options(&bar);
    let format = if options.format == Format::Auto { Format::Q4 } else { options.format };
    let name = args.model.model.as_deref().unwrap_or("");
    let report = quantize(name, &LoadOptions { format, ..options }, &args.output);
    bar.done();
    let report = report?;
    if !args.model.quiet {
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
