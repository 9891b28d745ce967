//! Flags that several commands share.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;
use tramontane::error::Result;
use tramontane::hub::HubOptions;
use tramontane::model::Plan;
use tramontane::sample::Sampling;
use tramontane::{DeviceChoice, Error, Format, KvFormat, LoadOptions, Model, Placement};

use super::talk::{self, LoadBar};

/// Which model, and how it runs.
#[derive(Clone, clap::Args)]
pub(super) struct ModelArgs {
    /// Model: a folder, a *.safetensors file, organisation/name[@revision] or a short name of the catalogue; nothing for
    /// the built-in one
    #[arg(short, long, env = "TRAMONTANE_MODEL", value_name = "MODEL")]
    pub(super) model: Option<String>,

    /// Threads that compute [default: physical cores that this process may use]
    #[arg(short, long, env = "TRAMONTANE_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) threads: Option<u16>,

    /// Longest sequence in tokens, prompt included [default: what the model was made for]
    #[arg(short, long, env = "TRAMONTANE_CTX_SIZE", value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub(super) ctx_size: Option<u32>,

    /// Format of the weights in memory
    #[arg(long, env = "TRAMONTANE_FORMAT", value_enum, default_value = "auto")]
    pub(super) format: FormatArg,

    /// Format of the key/value cache
    #[arg(long, env = "TRAMONTANE_KV", value_enum, default_value = "auto")]
    pub(super) kv: KvArg,

    /// Device that computes: auto takes an NVIDIA GPU that has room for the model, else the CPU
    #[arg(
        long,
        env = "TRAMONTANE_DEVICE",
        value_name = "auto|cpu|cuda[:N]",
        default_value = "auto"
    )]
    pub(super) device: DeviceChoice,

    /// Take warnings about the model's files as errors
    #[arg(long, env = "TRAMONTANE_STRICT")]
    pub(super) strict: bool,

    /// Never use the network
    #[arg(long, env = "TRAMONTANE_OFFLINE")]
    pub(super) offline: bool,

    /// Say more on stderr: model, sampler, warnings
    #[arg(short, long, env = "TRAMONTANE_VERBOSE")]
    pub(super) verbose: bool,

    /// Say nothing on stderr but errors
    #[arg(short, long, env = "TRAMONTANE_QUIET", conflicts_with = "verbose")]
    pub(super) quiet: bool,
}

/// [`Format`] on the command line.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum FormatArg {
    /// As stored
    Auto,
    /// 32-bit floats
    F32,
    /// bfloat16
    Bf16,
    /// IEEE half precision
    F16,
    /// 8 bits, made at load
    Q8,
    /// 4 bits, made at load
    Q4,
}

/// [`KvFormat`] on the command line.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum KvArg {
    /// f32 for f32 weights, else f16
    Auto,
    /// IEEE half precision
    F16,
    /// 32-bit floats
    F32,
    /// 8-bit integers with scales: half the memory of f16
    Q8,
}

impl FormatArg {
    /// The format that is meant.
    pub(super) fn format(self) -> Format {
        match self {
            Self::Auto => Format::Auto,
            Self::F32 => Format::F32,
            Self::Bf16 => Format::Bf16,
            Self::F16 => Format::F16,
            Self::Q8 => Format::Q8,
            Self::Q4 => Format::Q4,
        }
    }
}

impl ModelArgs {
    /// The format of the weights.
    pub(super) fn format(&self) -> Format {
        self.format.format()
    }

    /// The format of the cache.
    pub(super) fn kv(&self) -> KvFormat {
        match self.kv {
            KvArg::Auto => KvFormat::Auto,
            KvArg::F16 => KvFormat::F16,
            KvArg::F32 => KvFormat::F32,
            KvArg::Q8 => KvFormat::Q8,
        }
    }

    /// Where the model that `plan` describes would run.
    pub(super) fn placement(&self, plan: &Plan) -> Result<Placement> {
        plan.placement(&self.options(&Arc::new(LoadBar::new(false))))
    }

    /// How the model is loaded, with a progress bar.
    pub(super) fn options(&self, bar: &Arc<LoadBar>) -> LoadOptions {
        LoadOptions { progress: Some(bar.clone()), ..self.silent_options() }
    }

    /// How the model is loaded, where nobody hears of the progress.
    pub(super) fn silent_options(&self) -> LoadOptions {
        let mut hub = HubOptions::from_env();
        hub.offline |= self.offline;
        LoadOptions {
            format: self.format(),
            kv: self.kv(),
            device: self.device,
            threads: self.threads.map(usize::from),
            context: self.ctx_size.map(|n| n as usize),
            strict: self.strict,
            hub,
            progress: None,
        }
    }

    /// Reads everything but the weights.
    pub(super) fn plan(&self) -> Result<Plan> {
        let bar = Arc::new(LoadBar::new(!self.quiet));
        let plan = Plan::load(self.model.as_deref().unwrap_or(""), &self.options(&bar));
        bar.done();
        let plan = plan?;
        if self.strict {
            plan.check_strictly()?;
        }
        Ok(plan)
    }

    /// Loads the model, with a progress bar where that takes long.
    pub(super) fn load(&self) -> Result<Model> {
        let bar = Arc::new(LoadBar::new(!self.quiet));
        let model = Model::load(self.model.as_deref().unwrap_or(""), &self.options(&bar));
        bar.done();
        let model = model?;
        if !self.quiet {
            for warning in model.warnings() {
                talk::say(&format!("warning: {warning}"));
            }
            talk::say_notes(&model);
        }
        if self.verbose {
            let i = model.info();
            talk::say(&format!(
                "{}: {}, {} parameters, weights {}, cache {}, {} ({} threads), context {}, loaded in {:.2} s",
                i.name,
                i.family,
                talk::count(i.parameters),
                i.format,
                i.kv,
                i.device,
                i.threads,
                i.context,
                model.load_time().as_secs_f64()
            ));
            if let Some(reason) = &i.device_reason {
                talk::say(&format!("not on a GPU: {reason}"));
            }
        }
        Ok(model)
    }
}

/// How tokens are chosen. What is not given comes from the model's generation_config.json.
#[derive(clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(super) struct SamplingArgs {
    /// Most tokens to generate; -1 for as many as the context holds
    #[arg(
        short = 'n',
        long,
        env = "TRAMONTANE_MAX_TOKENS",
        value_name = "N",
        allow_negative_numbers = true
    )]
    max_tokens: Option<i64>,

    /// Seed of the random numbers; -1, the default, is a new one each time
    #[arg(
        short,
        long,
        env = "TRAMONTANE_SEED",
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = seed
    )]
    seed: Option<Seed>,

    /// Temperature; 0 always takes the most likely token
    #[arg(long, env = "TRAMONTANE_TEMP", value_name = "T", allow_negative_numbers = true)]
    temp: Option<f32>,

    /// Keep the K most likely tokens; 0 keeps all
    #[arg(long, env = "TRAMONTANE_TOP_K", value_name = "K")]
    top_k: Option<usize>,

    /// Keep the most likely tokens that together reach probability P
    #[arg(long, env = "TRAMONTANE_TOP_P", value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,

    /// Keep tokens at least P times as likely as the most likely one
    #[arg(long, env = "TRAMONTANE_MIN_P", value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,

    /// Keep tokens of typical information, up to probability P
    #[arg(long, env = "TRAMONTANE_TYPICAL_P", value_name = "P", allow_negative_numbers = true)]
    typical_p: Option<f32>,

    /// Penalty on tokens that occurred; 1 is none
    #[arg(
        long,
        env = "TRAMONTANE_REPEAT_PENALTY",
        value_name = "X",
        allow_negative_numbers = true
    )]
    repeat_penalty: Option<f32>,

    /// Subtracted once from tokens that were generated
    #[arg(
        long,
        env = "TRAMONTANE_PRESENCE_PENALTY",
        value_name = "X",
        allow_negative_numbers = true
    )]
    presence_penalty: Option<f32>,

    /// Subtracted for each time a token was generated
    #[arg(
        long,
        env = "TRAMONTANE_FREQUENCY_PENALTY",
        value_name = "X",
        allow_negative_numbers = true
    )]
    frequency_penalty: Option<f32>,

    /// Added to the logit of a token: ID=X (repeatable)
    #[arg(long, env = "TRAMONTANE_LOGIT_BIAS", value_name = "ID=X", value_delimiter = ',', value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,

    /// End the text before this string (repeatable)
    #[arg(long, env = "TRAMONTANE_STOP", value_name = "TEXT")]
    stop: Vec<String>,

    /// Go on when the model ends the text
    #[arg(long, env = "TRAMONTANE_IGNORE_EOS")]
    ignore_eos: bool,
}

/// A seed that was given: `None` for a new one each time.
#[derive(Clone, Copy)]
struct Seed(Option<u64>);

fn seed(text: &str) -> std::result::Result<Seed, String> {
    match text {
        "-1" => Ok(Seed(None)),
        _ => text
            .parse()
            .map(|seed| Seed(Some(seed)))
            .map_err(|_| format!("expected a number from 0 to {}, or -1", u64::MAX)),
    }
}

fn bias(text: &str) -> std::result::Result<(u32, f32), String> {
    let parse = || {
        let (id, value) = text.split_once('=')?;
        Some((id.trim().parse().ok()?, value.trim().parse().ok()?))
    };
    parse().ok_or_else(|| "expected a token id and a number, such as 17=-2.5".to_owned())
}

impl SamplingArgs {
    /// The parameters; `max_tokens` is the limit where none is given.
    pub(super) fn sampling(&self, max_tokens: Option<usize>) -> Result<Sampling> {
        let max_tokens = match self.max_tokens {
            None => max_tokens,
            Some(-1) => None,
            Some(n) => Some(usize::try_from(n).map_err(|_| {
                Error::bad_input(format!(
                    "--max-tokens is {n}, expected a number of tokens, or -1 for no limit"
                ))
            })?),
        };
        Ok(Sampling {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            repetition_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.iter().copied().collect(),
            seed: self.seed.and_then(|seed| seed.0),
            max_tokens,
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
        })
    }
}

/// The text of a file that a flag names.
pub(super) fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| {
        let what = if e.kind() == std::io::ErrorKind::InvalidData {
            "the file is not UTF-8".to_owned()
        } else {
            format!("the file cannot be read: {e}")
        };
        Error::bad_input(what).at(path.display()).caused_by(e)
    })
}

/// Token ids on the command line or in a file.
#[derive(clap::Args)]
pub(super) struct IdsArgs {
    /// Token ids instead of text, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub(super) ids: Option<Vec<u32>>,

    /// A JSON file with a list of token ids
    #[arg(long, value_name = "FILE", conflicts_with = "ids")]
    pub(super) ids_file: Option<PathBuf>,
}

impl IdsArgs {
    /// The ids, if any were given.
    pub(super) fn read(&self) -> Result<Option<Vec<u32>>> {
        let Some(path) = &self.ids_file else { return Ok(self.ids.clone()) };
        let text = read_text(path)?;
        let ids = serde_json::from_str(&text).map_err(|e| {
            Error::bad_input(format!("expected a JSON list of token ids: {e}")).at(path.display())
        })?;
        Ok(Some(ids))
    }
}
