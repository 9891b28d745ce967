//! What is known about a model before its weights are loaded.

use std::collections::BTreeSet;

use safetensors::Dtype;
use tramontane_models::{Architecture, Config};

use super::{LoadOptions, Model, default_context};
use crate::chat::ChatTemplate;
use crate::checkpoint::{Checkpoint, Layout};
use crate::device::{self, Placement, Request};
use crate::error::{Error, Result};
use crate::files::{MAX_CONFIG, ModelFiles};
use crate::memory::{Estimate, Stored};
use crate::nn::graph;
use crate::nn::weight::untie_stored_head;
use crate::ops::{Format, KvFormat};
use crate::sample::GenerationDefaults;
use crate::tokenizer::Tokenizer;

/// The sequence length where neither the caller nor the configuration says one.
pub(crate) const DEFAULT_CONTEXT: usize = 4096;

/// Everything that the files of a model say, checked against each other; no weight has been read.
///
/// ```
/// use tramontane::{Format, KvFormat, LoadOptions};
/// use tramontane::model::Plan;
///
/// let plan = Plan::load("", &LoadOptions::default())?; // the model that is built in
/// assert_eq!(plan.architecture.vocab, 4096);
/// let needs = plan.estimate(Format::F32, KvFormat::F16, 512);
/// assert_eq!(needs.weights, 4 * plan.architecture.n_parameters());
/// # Ok::<(), tramontane::Error>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct Plan {
    /// What the caller asked for.
    pub name: String,
    /// The tensors, still in their files.
    pub checkpoint: Checkpoint,
    /// What the model computes, layer by layer.
    pub architecture: Architecture,
    /// The tokenizer, if the files hold one.
    pub tokenizer: Option<Tokenizer>,
    /// The chat template, if the model has one.
    pub chat: Option<ChatTemplate>,
    /// What `generation_config.json` recommends.
    pub defaults: GenerationDefaults,
    /// The ids that end a text: of the configuration, of `generation_config.json`, and of the chat template.
    pub eos: BTreeSet<u32>,
    /// What seems odd about the files.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Reads everything but the weights of the model that `name` tells, as [`Model::load`] does.
    ///
    /// # Errors
    ///
    /// If there is no such model, a file of it is broken or contradicts another, or it needs something that is
    /// not implemented.
    pub fn load(name: &str, options: &LoadOptions) -> Result<Self> {
        let (name, files) = Model::find(name, options)?;
        Self::from_files(&name, &files)
    }

    /// Reads everything but the weights of the model whose files are at hand; `name` is how reports call it.
    ///
    /// # Errors
    ///
    /// As [`Plan::load`].
    pub fn from_files(name: &str, files: &ModelFiles) -> Result<Self> {
        let checkpoint = Checkpoint::open(files)?;
        let (mut architecture, mut warnings) = read_architecture(files, checkpoint.layout())?;
        warnings.extend(checkpoint.notes().iter().cloned());
        warnings.extend(untie_stored_head(&mut architecture, &checkpoint));
        graph::rehearse(&architecture, &checkpoint)?;
        let tokenizer = Tokenizer::load(files)?;
        check_vocabulary(&architecture, tokenizer.as_ref()).map_err(|e| e.at(files.place("")))?;
        let chat = ChatTemplate::load(files, tokenizer.as_ref())?;
        let defaults = GenerationDefaults::read(files)?;
        warnings.extend(defaults.not_done.iter().map(|setting| {
            format!(
                "generation_config.json asks for {setting}, which is not done: texts will differ"
            )
        }));
        let eos = eos_ids(&architecture, &defaults, tokenizer.as_ref(), chat.as_ref());
        warnings.extend(warn_of_eos(&eos, architecture.vocab));
        let name = name.to_owned();
        Ok(Self { name, checkpoint, architecture, tokenizer, chat, defaults, eos, warnings })
    }

    /// The format of the weights in memory, where `wanted` may be [`Format::Auto`]: that of the largest tensor.
    #[must_use]
    pub fn format(&self, wanted: Format) -> Format {
        if wanted != Format::Auto {
            return wanted;
        }
        let packed = self.checkpoint.names().filter_map(Format::of_packed);
        // Beside 4-bit matrices there are others, for the head.
        if let Some(format) = packed.min_by_key(|format| format.bits().map(|bits| bits as u32)) {
            return format;
        }
        let largest = self.checkpoint.tensors().max_by_key(|tensor| tensor.bytes.len());
        match largest.map(|tensor| tensor.dtype) {
            Some(Dtype::F16) => Format::F16,
            // 8-bit floats are multiplied by their scales into bf16.
            Some(Dtype::BF16 | Dtype::F8_E4M3) => Format::Bf16,
            _ => Format::F32,
        }
    }

    /// The format of the key/value cache, where `wanted` may be [`KvFormat::Auto`]: f32 for weights in f32, else f16.
    #[must_use]
    pub fn kv(&self, wanted: KvFormat, format: Format) -> KvFormat {
        match wanted {
            KvFormat::Auto if self.format(format) == Format::F32 => KvFormat::F32,
            KvFormat::Auto => KvFormat::F16,
            KvFormat::F16 | KvFormat::F32 | KvFormat::Q8 => wanted,
        }
    }

    /// The longest sequence in tokens, where the caller does not say one.
    #[must_use]
    pub fn context(&self) -> usize {
        default_context(&self.architecture)
    }

    /// The memory that the model needs with weights in `format`, a cache in `kv` and `context` tokens.
    #[must_use]
    pub fn estimate(&self, format: Format, kv: KvFormat, context: usize) -> Estimate {
        let names = self.architecture.stored.names;
        let used = || self.checkpoint.tensors().filter(|tensor| !names.is_unused(&tensor.name));
        let in_memory = |tensor: &crate::checkpoint::TensorData| {
            let factor = if tensor.dtype == Dtype::F8_E4M3 { 2 } else { 1 };
            factor * tensor.bytes.len() as u64
        };
        let is_packed = self.checkpoint.names().any(|name| Format::of_packed(name).is_some());
        let stored = Stored {
            bytes: used().map(in_memory).sum(),
            // What is packed already is read where it is.
            largest: if is_packed { 0 } else { used().map(in_memory).max().unwrap_or(0) },
        };
        Estimate::new(&self.architecture, stored, format, self.kv(kv, format), context)
    }

    /// Where the model would run with `options`: no weight is read, but a GPU is opened.
    ///
    /// # Errors
    ///
    /// If `options` name a device that cannot be had, or that cannot take the model.
    pub fn placement(&self, options: &LoadOptions) -> Result<Placement> {
        device::place(&Request::new(self, options))
    }

    /// Refuses what seems odd.
    ///
    /// # Errors
    ///
    /// If there is any warning.
    pub fn check_strictly(&self) -> Result<()> {
        match self.warnings.first() {
            None => Ok(()),
            Some(warning) => Err(Error::bad_model(warning.clone())
                .at(&self.name)
                .hint("loading without --strict, if this is harmless")),
        }
    }
}

/// Reads and describes the configuration that belongs to the layout of the weights.
///
/// # Errors
///
/// If it is missing, broken, or asks for something that is not implemented.
fn read_architecture(files: &ModelFiles, layout: Layout) -> Result<(Architecture, Vec<String>)> {
    let name = match layout {
        Layout::HuggingFace => "config.json",
        Layout::MistralNative => "params.json",
    };
    let Some(text) = files.read_text(name, MAX_CONFIG)? else {
        return Err(Error::bad_model(format!("{name} is missing, expected it beside the weights"))
            .at(files.place(""))
            .hint("fetching the whole repository: weights alone do not tell the architecture"));
    };
    let config = match layout {
        Layout::HuggingFace => Config::parse(&text),
        Layout::MistralNative => Config::parse_native(&text),
    };
    let described = config.and_then(|config| tramontane_models::describe(&config));
    described.map_err(|e| Error::from(e).at(files.place(name)))
}

/// Every id that the tokenizer can give must have a row in the embedding.
fn check_vocabulary(architecture: &Architecture, tokenizer: Option<&Tokenizer>) -> Result<()> {
    let Some(ids) = tokenizer.map(Tokenizer::vocab_size) else { return Ok(()) };
    if ids <= architecture.vocab {
        return Ok(());
    }
    Err(Error::bad_model(format!(
        "the tokenizer knows id {}, but the embedding has {} rows (`vocab_size`)",
        ids - 1,
        architecture.vocab
    ))
    .hint("the tokenizer and weights of one and the same revision"))
}

fn eos_ids(
    architecture: &Architecture,
    defaults: &GenerationDefaults,
    tokenizer: Option<&Tokenizer>,
    chat: Option<&ChatTemplate>,
) -> BTreeSet<u32> {
    let mut eos: BTreeSet<u32> =
        architecture.eos.iter().chain(&defaults.eos_token_ids).copied().collect();
    if let Some(tokenizer) = tokenizer {
        eos.extend(chat.iter().flat_map(|chat| chat.stop_tokens(tokenizer)));
        // Mamba-Codestral's configuration names the unknown token, which ends nothing.
        let unknown = tokenizer.id("<unk>");
        if eos.iter().all(|id| Some(*id) == unknown) {
            eos.extend(tokenizer.eos_id());
        }
    }
    eos
}

/// A word about an end token that no model of this vocabulary can give.
fn warn_of_eos(eos: &BTreeSet<u32>, vocab: usize) -> Option<String> {
    let id = eos.iter().find(|id| **id as usize >= vocab)?;
    Some(format!(
        "an end token of generation_config.json or the chat template (`eos_token_id`) is {id}, \
         which can never come: the embedding has {vocab} rows"
    ))
}
