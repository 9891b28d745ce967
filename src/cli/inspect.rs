//! `inspect`: what a model is, and what it needs.

use std::process::ExitCode;

use serde_json::json;
use tramontane::error::Result;

use super::args::ModelArgs;
use super::generate::print;
use super::talk;

/// Show what a model is: shapes, parameters, memory
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print one JSON object instead of text
    #[arg(long, env = "TRAMONTANE_JSON")]
    json: bool,

    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let model = args.model.load()?;
    let (i, a) = (model.info(), model.architecture());
    if args.json {
        print(&format!(
            "{}\n",
            json!({ "model": i, "hidden": a.hidden, "vocab": a.vocab, "layers": a.layers.len() })
        ))?;
    } else {
        print(&format!(
            "{}: {}, {} parameters, {} layers, hidden {}, vocabulary {}\nweights {} in {}, cache {}, context {}\n",
            i.name,
            i.family,
            talk::count(i.parameters),
            a.layers.len(),
            a.hidden,
            a.vocab,
            talk::bytes(i.weight_bytes),
            i.format,
            i.kv,
            i.context
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
