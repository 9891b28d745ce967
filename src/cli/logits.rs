//! `logits`: the logits of given token ids, as a safetensors file.

use std::path::PathBuf;
use std::process::ExitCode;

use tramontane::error::Result;
use tramontane::{Error, ErrorKind};

use super::args::{IdsArgs, ModelArgs};
use super::talk;

/// Write the logits of given token ids to a file
///
/// The file holds the tensor `logits`, f32 [n_tokens, vocab]. The ids are taken as they are: no BOS is added.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    ids: IdsArgs,

    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let Some(ids) = args.ids.read()? else {
        return Err(
            Error::bad_input("there are no token ids").hint("--ids 1,2,3 or --ids-file FILE.json")
        );
    };
    let model = args.model.load()?;
    let logits = model.forward(&ids, &mut model.cache()?)?;
    // A reader never sees half a file: it appears under its name when it is whole.
    let partial = args.output.with_extension("incomplete");
    let tensors = std::collections::HashMap::from([("logits", logits)]);
    candle_core::safetensors::save(&tensors, &partial)
        .map_err(|e| Error::new(ErrorKind::Io, e.to_string()).at(args.output.display()))?;
    std::fs::rename(&partial, &args.output).map_err(|e| Error::io(&args.output, e))?;
    if !args.model.quiet {
        talk::say_notes(&model);
        talk::say(&format!("logits of {} tokens written to {}", ids.len(), args.output.display()));
    }
    Ok(ExitCode::SUCCESS)
}
