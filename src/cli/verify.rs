//! `verify`: whether a model on disk is whole and works.

use std::process::ExitCode;
use std::sync::Arc;

use serde_json::json;
use tramontane::error::{Result, printable};
use tramontane::verify::{Check, Outcome, verify};
use tramontane::{ErrorKind, Model};

use super::args::ModelArgs;
use super::generate::print;
use super::talk::LoadBar;

/// Check a model on disk: hashes, weights, configuration, tokenizer, template, numbers
///
/// One line for each check: the contents of the files against the hashes of the cache, every weight for being a finite
/// number, the configuration against the tensors, the tokenizer on French texts and control tokens, the chat template,
/// the logits and the perplexity on French prose. Nothing is downloaded. The exit code is 2 if a check fails, and 3 if
/// memory was short.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print one JSON object instead of a table
    #[arg(long, env = "TRAMONTANE_JSON")]
    json: bool,

    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let bar = Arc::new(LoadBar::of("checking", !args.model.quiet));
    let mut options = args.model.options(&bar);
    options.hub.offline = true;
    let (name, files) = Model::find(args.model.model.as_deref().unwrap_or(""), &options)?;
    let mut closed = Ok(());
    let checks = verify(&name, &files, &options, &mut |check| {
        bar.done();
        if !args.json && closed.is_ok() {
            closed = print(&line(check));
        }
    });
    closed?;
    if args.json {
        let ok = checks.iter().all(|check| check.outcome != Outcome::Failed);
        print(&format!("{}\n", json!({ "model": name, "ok": ok, "checks": checks })))?;
    }
    Ok(ExitCode::from(exit_code(&checks)))
}

/// A row of the table.
fn line(check: &Check) -> String {
    let outcome = match check.outcome {
        Outcome::Passed => "ok",
        Outcome::Failed => "FAILED",
        Outcome::Skipped => "-",
        _ => "?",
    };
    // The place and the next step of an error stand on lines of their own.
    let lines: Vec<String> = check.detail.lines().map(|l| printable(l.trim())).collect();
    format!("{:<12}{outcome:<8}{}\n", check.name, lines.join("\n                    "))
}

/// 0 if nothing failed, 3 if only memory was short, else 2.
fn exit_code(checks: &[Check]) -> u8 {
    let failed: Vec<&Check> =
        checks.iter().filter(|check| check.outcome == Outcome::Failed).collect();
    let no_memory = |check: &&Check| check.kind == Some(ErrorKind::NoMemory);
    match &failed[..] {
        [] => 0,
        failed if failed.iter().all(no_memory) => ErrorKind::NoMemory.exit_code(),
        _ => ErrorKind::BadModel.exit_code(),
    }
}
