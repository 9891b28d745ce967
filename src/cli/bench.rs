//! `bench`: tokens per second and what bounds them, with the field names of llama-bench.
//!
//! What is timed: for `pp`, the prompt's pass through the model up to the last token's logits; for `tg`, one token at a
//! time, each up to its logits. Tokenising, sampling and detokenising are outside. Before the samples of a test there
//! is one run that is not counted; the cache is filled up to the depth outside the timer. With `--load`, the model is
//! loaded twice: with its files out of the page cache, then with them in it.

mod load;
mod machine;
mod output;
mod plot;
mod record;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use tramontane::error::Result;
use tramontane::{DeviceChoice, Error, ErrorKind};

use super::args::{FormatArg, KvArg, ModelArgs};
use super::generate::print;
use super::talk;
use record::{Record, Test};

/// Measure tokens per second
///
/// Lists (`-p 128,512`) make a cross product. Each prompt length (-p) and generation length (-n) is a test of its own;
/// -pg P,N runs both in one test.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Model: a folder, a *.safetensors file, organisation/name[@revision] or a short name of the catalogue; nothing for
    /// the built-in one
    #[arg(short, long, env = "TRAMONTANE_MODEL", value_name = "MODEL")]
    model: Option<String>,

    /// Lengths of prompts, in tokens
    #[arg(
        short = 'p',
        long = "n-prompt",
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "512"
    )]
    n_prompt: Vec<usize>,

    /// Lengths of generations, in tokens
    #[arg(
        short = 'n',
        long = "n-gen",
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "128"
    )]
    n_gen: Vec<usize>,

    /// A prompt and a generation in one test (repeatable)
    #[arg(long = "pg", value_name = "P,N", value_parser = pair)]
    pg: Vec<(usize, usize)>,

    /// Tokens in the cache before the test
    #[arg(
        short = 'd',
        long = "n-depth",
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "0"
    )]
    n_depth: Vec<usize>,

    /// Samples of each test
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,

    /// Threads that compute [default: physical cores that this process may use]
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,

    /// Formats of the weights in memory
    #[arg(long, value_enum, value_delimiter = ',', default_value = "auto")]
    format: Vec<FormatArg>,

    /// Formats of the key/value cache
    #[arg(long, value_enum, value_delimiter = ',', default_value = "auto")]
    kv: Vec<KvArg>,

    /// Device that computes: auto takes an NVIDIA GPU that has room for the model, else the CPU
    #[arg(
        long,
        env = "TRAMONTANE_DEVICE",
        value_name = "auto|cpu|cuda[:N]",
        default_value = "auto"
    )]
    device: DeviceChoice,

    /// Load the model twice, to tell how long that takes with its files out of the page cache, and in it
    #[arg(long)]
    load: bool,

    /// Form of the report on stdout
    #[arg(short, long, value_enum, default_value = "md")]
    output: Form,

    /// Put the speeds of an earlier report (json or jsonl) beside
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,

    /// Draw tokens per second over depth into an SVG file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,

    /// Never use the network
    #[arg(long, env = "TRAMONTANE_OFFLINE")]
    offline: bool,

    /// Say nothing on stderr but errors
    #[arg(short, long, env = "TRAMONTANE_QUIET")]
    quiet: bool,
}

/// Forms of the report.
#[derive(Clone, Copy, ValueEnum)]
enum Form {
    /// A table
    Md,
    /// Comma-separated values
    Csv,
    /// A list of objects
    Json,
    /// An object per line
    Jsonl,
    /// A table definition and insertions
    Sql,
}

fn pair(text: &str) -> std::result::Result<(usize, usize), String> {
    let parse = || {
        let (p, n) = text.split_once(',')?;
        Some((p.trim().parse().ok()?, n.trim().parse().ok()?))
    };
    parse().ok_or_else(|| "expected two numbers of tokens, such as 512,128".to_owned())
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let tests = args.tests();
    if tests.is_empty() {
        return Err(Error::bad_input("there is nothing to measure").hint("-p 512 or -n 128"));
    }
    let earlier = args.compare.as_deref().map(output::read_earlier).transpose()?;
    let mut records = Vec::new();
    for (format, kv, threads) in args.settings() {
        let (model, load) = load::load(&args.model_args(format, kv, threads), args.load)?;
        let machine = machine::Machine::measure(model.info())?;
        let progress = talk::CountBar::new(
            !args.quiet,
            (tests.len() as u64) * u64::from(args.repetitions + 1),
        );
        for test in &tests {
            records.push(run::measure(&model, *test, args.repetitions, &machine, load, &progress)?);
        }
        progress.done();
        if !args.quiet {
            talk::say_notes(&model);
        }
    }
    print(&output::text(args.output, &records, earlier.as_deref()))?;
    if let Some(path) = &args.plot {
        std::fs::write(path, plot::svg(&records)).map_err(|e| Error::io(path, e))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// Every test at every depth, prompts first, as llama-bench orders them.
    fn tests(&self) -> Vec<Test> {
        let prompts = self.n_prompt.iter().map(|p| (*p, 0));
        let generations = self.n_gen.iter().map(|n| (0, *n));
        let tests = prompts
            .chain(generations)
            .chain(self.pg.iter().copied())
            .filter(|test| *test != (0, 0));
        let tests: Vec<_> = tests.collect();
        let at = |depth: &usize| {
            let depth = *depth;
            tests.iter().map(move |(n_prompt, n_gen)| Test {
                n_prompt: *n_prompt,
                n_gen: *n_gen,
                n_depth: depth,
            })
        };
        self.n_depth.iter().flat_map(at).collect()
    }

    fn settings(&self) -> Vec<(FormatArg, KvArg, Option<u16>)> {
        let threads: Vec<Option<u16>> = if self.threads.is_empty() {
            vec![None]
        } else {
            self.threads.iter().copied().map(Some).collect()
        };
        let mut all = Vec::new();
        for format in &self.format {
            for kv in &self.kv {
                all.extend(threads.iter().map(|t| (*format, *kv, *t)));
            }
        }
        all
    }

    fn model_args(&self, format: FormatArg, kv: KvArg, threads: Option<u16>) -> ModelArgs {
        ModelArgs {
            model: self.model.clone(),
            threads,
            ctx_size: None,
            format,
            kv,
            device: self.device,
            strict: false,
            offline: self.offline,
            verbose: false,
            quiet: self.quiet,
        }
    }
}

/// The error for a test that does not fit the context.
fn too_deep(test: Test, context: usize) -> Error {
    let Test { n_prompt, n_gen, n_depth } = test;
    Error::new(
        ErrorKind::TooLong,
        format!("{n_depth} + {n_prompt} + {n_gen} tokens are to be measured, but the context has {context}"),
    )
    .hint("a smaller depth (-d), prompt (-p) or generation (-n)")
}

/// Mean, standard deviation (of the sample) and median.
fn statistics(samples: &[f64]) -> (f64, f64, f64) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let squares = samples.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
    let deviation = if samples.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 };
    (mean, deviation, percentile(samples, 0.5))
}

/// The value below which the part `p` of the samples lies, interpolated; 0 without samples.
fn percentile(samples: &[f64], p: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = p * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_a_sample() {
        let (mean, deviation, median) = statistics(&[2.0, 4.0, 9.0]);
        assert_eq!((mean, median), (5.0, 4.0));
        assert!((deviation - 13f64.sqrt()).abs() < 1e-12);
        assert_eq!(statistics(&[3.0]), (3.0, 0.0, 3.0));
    }

    #[test]
    fn percentiles_are_interpolated() {
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.9), 4.6);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
