//! `eval`: perplexity on a text, and how far a format is from a reference format.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;
use tramontane::error::Result;
use tramontane::eval::{self, Divergence, Perplexity, Windows};

use super::args::{FormatArg, ModelArgs, read_text};
use super::generate::print;
use super::talk;

/// Measure perplexity on a text
///
/// With --reference, the same weights are loaded in a second format too, and the distributions are compared.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A text file, UTF-8
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Length of a window, in tokens
    #[arg(long, value_name = "N", default_value = "512")]
    window: usize,

    /// New tokens in each window [default: the window, so that windows do not overlap]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,

    /// Most tokens to count
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// Compare with the weights in this format
    #[arg(long, value_enum)]
    reference: Option<FormatArg>,

    /// Print one JSON object instead of text
    #[arg(long, env = "TRAMONTANE_JSON")]
    json: bool,

    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let text = read_text(&args.file)?;
    let stride = args.stride.unwrap_or(args.window);
    let windows = Windows { context: args.window, stride, limit: args.limit };
    let model = args.model.load()?;
    let bar = talk::TokenBar::new(!args.model.quiet);
    let mut progress = |done, all| bar.set(done, all);
    let (perplexity, divergence) = match args.reference {
        None => (eval::perplexity(&model, &text, windows, &mut progress)?, None),
        Some(format) => {
            let reference = ModelArgs { format, ..args.model.clone() }.load()?;
            let (perplexity, divergence) =
                eval::compare(&model, &reference, &text, windows, &mut progress)?;
            (perplexity, Some(divergence))
        }
    };
    bar.done();
    if !args.model.quiet {
        talk::say_notes(&model);
    }
    let info = model.info();
    if args.json {
        let report = json!({
            "model": info.name,
            "format": info.format,
            "kv": info.kv,
            "file": args.file.display().to_string(),
            "window": windows.context,
            "stride": windows.stride,
            "perplexity": perplexity,
            "divergence": divergence,
        });
        print(&format!("{report}\n"))?;
    } else {
        print(&table(&info.format, &perplexity, windows, divergence.as_ref()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(format: &str, p: &Perplexity, w: Windows, divergence: Option<&Divergence>) -> String {
    let line = |name: &str, p: &Perplexity| {
        format!(
            "{name:<12}perplexity {:.4} (mean nll {:.5} ± {:.5}, {:.4} bits per character)\n",
            p.perplexity, p.mean_nll, p.stderr_nll, p.bits_per_char
        )
    };
    let mut out = format!("{} tokens, windows of {} every {}\n", p.tokens, w.context, w.stride);
    out += &line(format, p);
    let Some(d) = divergence else { return out };
    out += &line("reference", &d.reference);
    out += &format!(
        "KL          mean {:.6}, median {:.6}, 99 % {:.6}, max {:.6} nats\n\
         top token   the same at {:.2} % of positions\n\
         Δp          rms {:.3} %",
        d.mean_kl, d.median_kl, d.p99_kl, d.max_kl, d.same_top_percent, d.rms_delta_p
    );
    for (percentile, delta) in &d.delta_p_percentiles {
        out += &format!("; {percentile} %: {delta:+.3}");
    }
    out + "\n"
}
