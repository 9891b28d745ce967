//! A model that is ready to run: weights on a device, tokenizer, chat template and defaults.
//!
//! [`Model`] is immutable, `Send + Sync` and cheap to clone; every [`Session`] and every
//! [`KvCache`] made from it has its own state, so several can run at once.

mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use tramontane_models::Architecture;
use tramontane_models::spec::{Rope, RopeScaling};

use crate::cache::{KvCache, Runtime};
use crate::chat::ChatTemplate;
use crate::device::{self, DeviceChoice, Notes};
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::generate::Session;
use crate::hub::{self, HubOptions, ModelRef};
use crate::memory;
use crate::nn::graph::{Logits, Rows};
use crate::ops::{Format, KvFormat};
use crate::sample::GenerationDefaults;
use crate::tokenizer::Tokenizer;
pub(crate) use plan::DEFAULT_CONTEXT;

pub use plan::Plan;

/// How a model is loaded.
#[derive(Clone, Default)]
pub struct LoadOptions {
    /// Format of the weights in memory.
    pub format: Format,
    /// Format of the key/value cache.
    pub kv: KvFormat,
    /// The device that computes; by default a GPU where one can be had, else the CPU.
    pub device: DeviceChoice,
    /// Threads that compute; `None` for the physical cores that this process may use.
    pub threads: Option<usize>,
    /// Longest sequence in tokens; `None` for what the model was made for.
    pub context: Option<usize>,
    /// Warnings about the model's files are errors.
    pub strict: bool,
    /// How the hub is used, where the model is named by its repository.
    pub hub: HubOptions,
    /// Is told how far loading has come.
    pub progress: Option<Arc<dyn LoadProgress>>,
}

/// Is told how far loading has come. Every method does nothing unless it is overridden.
pub trait LoadProgress: hub::Progress {
    /// `done` of `total` bytes of weights have been taken in.
    fn loaded(&self, done: u64, total: u64) {
        let _ = (done, total);
    }
}

/// Facts about a loaded model.
#[derive(Debug, Clone, serde::Serialize)]
#[non_exhaustive]
pub struct ModelInfo {
    /// What the caller asked for.
    pub name: String,
    /// The name in `architectures`.
    pub family: String,
    /// Number of parameters, tied weights counted once.
    pub parameters: u64,
    /// Format of the weights in memory.
    pub format: String,
    /// Format of the key/value cache.
    pub kv: String,
    /// The device that computes.
    pub device: String,
    /// Why the CPU computes, where [`DeviceChoice::Auto`] left the choice and might have taken a GPU.
    pub device_reason: Option<String>,
    /// Threads that compute.
    pub threads: usize,
    /// Tokens of a prompt that pass through the model together.
    pub chunk: usize,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Bytes of weights in the checkpoint.
    pub weight_bytes: u64,
    /// Bytes of weights in memory that are read for one token: all but the embedding's other rows and experts
    /// that are not chosen.
    pub weight_bytes_per_token: u64,
}

/// A model that is ready to run.
///
/// ```
/// use tramontane::{LoadOptions, Model};
/// use tramontane::sample::Sampling;
///
/// let model = Model::load("", &LoadOptions::default())?; // the model that is built in
/// let sampling = Sampling { max_tokens: Some(8), ..Sampling::greedy() };
/// let mut text = String::new();
/// for piece in model.session().generate("Il était une fois", &sampling)? {
///     text += &piece?.text;
/// }
/// assert!(text.starts_with(", il n'y a pas"), "{text}");
/// # Ok::<(), tramontane::Error>(())
/// ```
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Box<dyn Runtime>,
    architecture: Architecture,
    tokenizer: Option<Tokenizer>,
    chat: Option<ChatTemplate>,
    defaults: GenerationDefaults,
    eos: BTreeSet<u32>,
    kv: KvFormat,
    info: ModelInfo,
    warnings: Vec<String>,
    notes: Notes,
    load_time: Duration,
}

impl Model {
    /// Loads the model that `name` tells: empty for the built-in one, a folder, a `*.safetensors` file,
    /// or `organisation/name[@revision]` on the hub.
    ///
    /// # Errors
    ///
    /// If there is no such model, a file of it is broken or contradicts another, it needs something that is
    /// not implemented, or memory is short.
    pub fn load(name: &str, options: &LoadOptions) -> Result<Self> {
        let (name, files) = Self::find(name, options)?;
        Self::from_files(&name, &files, options)
    }

    /// Where the files of the model are that `name` tells, fetched if need be, and how reports call it.
    ///
    /// # Errors
    ///
    /// If there is no such model, or it is not complete and cannot be fetched.
    pub fn find(name: &str, options: &LoadOptions) -> Result<(String, ModelFiles)> {
        let reference = ModelRef::parse(Some(name).filter(|name| !name.is_empty()))?;
        let silent = Silent;
        let progress: &dyn hub::Progress = match &options.progress {
            Some(progress) => &**progress,
            None => &silent,
        };
        let files = hub::resolve(&reference, &options.hub, progress)?;
        Ok((reference.to_string(), files))
    }

    /// Loads the model whose files are at hand; `name` is how reports call it.
    ///
    /// # Errors
    ///
    /// As [`Model::load`].
    pub fn from_files(name: &str, files: &ModelFiles, options: &LoadOptions) -> Result<Self> {
        let start = Instant::now();
        let plan = Plan::from_files(name, files)?;
        if options.strict {
            plan.check_strictly()?;
        }
        let (format, kv) = (plan.format(options.format), plan.kv(options.kv, options.format));
        let context = options.context.unwrap_or_else(|| plan.context());
        let mut progress = |done, total| {
            if let Some(progress) = &options.progress {
                progress.loaded(done, total);
            }
        };
        let opened = device::open(&device::Request::new(&plan, options), &mut progress)?;
        let Plan { name, checkpoint, architecture, tokenizer, chat, defaults, eos, warnings } =
            plan;
        let info = ModelInfo {
            name,
            family: architecture.family.clone(),
            parameters: architecture.n_parameters(),
            format: format.to_string(),
            kv: kv.to_string(),
            device: opened.device,
            device_reason: opened.reason,
            threads: opened.threads,
            chunk: opened.chunk,
            context,
            weight_bytes: checkpoint.total_bytes(),
            weight_bytes_per_token: memory::weight_bytes_per_token(&architecture, format),
        };
        let inner = Inner {
            runtime: opened.runtime,
            notes: opened.notes,
            architecture,
            tokenizer,
            chat,
            defaults,
            eos,
            kv,
            info,
            warnings,
            load_time: start.elapsed(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A new session with an empty cache.
    #[must_use]
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }

    /// A new empty cache for [`Model::forward`].
    ///
    /// # Errors
    ///
    /// If the device has no memory.
    pub fn cache(&self) -> Result<KvCache> {
        Ok(KvCache { state: self.inner.runtime.sequence(self.inner.kv)?, owner: self.id() })
    }

    /// The logits of every token of `ids`, which follow what is in `cache`: an f32 tensor `[ids.len(), vocab]`.
    ///
    /// # Errors
    ///
    /// If `ids` is empty, an id is outside the vocabulary, the cache belongs to another model or would outgrow the
    /// context, or the device fails; the cache is then as before, or empty if the model has recurrent layers.
    ///
    /// ```
    /// # use tramontane::{LoadOptions, Model};
    /// let model = Model::load("", &LoadOptions::default())?;
    /// let mut cache = model.cache()?;
    /// let logits = model.forward(&[1, 414, 446], &mut cache)?;
    /// assert_eq!(logits.dims(), [3, 4096]);
    /// assert_eq!(cache.len(), 3);
    /// # Ok::<(), tramontane::Error>(())
    /// ```
    pub fn forward(&self, ids: &[u32], cache: &mut KvCache) -> Result<Tensor> {
        let mut logits = Logits::default();
        self.run(ids, cache, Rows::All, &mut logits, &|| true)?;
        Ok(Tensor::from_vec(
            logits.values,
            (ids.len(), self.inner.architecture.vocab),
            &Device::Cpu,
        )?)
    }

    /// Passes `ids` through the model after what is in `cache`, and puts the logits of the last one, `[vocab]`, into
    /// `logits`. Nothing else is computed for the other tokens' logits.
    ///
    /// # Errors
    ///
    /// As [`Model::forward`].
    pub fn advance(&self, ids: &[u32], cache: &mut KvCache, logits: &mut Vec<f32>) -> Result<()> {
        logits.clear();
        let mut found = Logits { values: std::mem::take(logits), ids: Vec::new() };
        let result = self.run(ids, cache, Rows::Last, &mut found, &|| true);
        *logits = found.values;
        result
    }

    /// Passes `ids` through the model and puts the wanted rows of logits into `logits`.
    pub(crate) fn run(
        &self,
        ids: &[u32],
        cache: &mut KvCache,
        rows: Rows,
        logits: &mut Logits,
        go_on: &dyn Fn() -> bool,
    ) -> Result<()> {
        if cache.owner != self.id() {
            return Err(Error::bad_input(
                "the cache was made by another model, expected one of this model",
            ));
        }
        if ids.is_empty() {
            return Err(Error::bad_input("there is no token to compute, expected at least one"));
        }
        let (length, context) = (cache.len() + ids.len(), self.inner.info.context);
        if length > context {
            return Err(too_long(length, context));
        }
        self.inner.runtime.forward(ids, &mut *cache.state, rows, logits, go_on)
    }

    /// The model's tokenizer, if its files hold one.
    #[must_use]
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.inner.tokenizer.as_ref()
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    ///
    /// If the model's files hold none.
    pub fn require_tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer().ok_or_else(|| {
            Error::bad_model("the model has no tokenizer, expected tokenizer.json, tekken.json or tokenizer.model")
                .at(&self.inner.info.name)
                .hint("token ids instead of text (--ids)")
        })
    }

    /// The model's chat template, if it has one.
    #[must_use]
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.inner.chat.as_ref()
    }

    /// What `generation_config.json` recommends.
    #[must_use]
    pub fn defaults(&self) -> &GenerationDefaults {
        &self.inner.defaults
    }

    /// The ids that end a text: of the configuration, of `generation_config.json`, and of the chat template.
    #[must_use]
    pub fn eos_ids(&self) -> &BTreeSet<u32> {
        &self.inner.eos
    }

    /// What the model computes, layer by layer.
    #[must_use]
    pub fn architecture(&self) -> &Architecture {
        &self.inner.architecture
    }

    /// Facts about the model as it was loaded.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.inner.info
    }

    /// Bytes of keys, values and states that a token reads after `depth` others.
    #[must_use]
    pub fn cache_bytes_per_token(&self, depth: usize) -> u64 {
        memory::cache_bytes_per_token(&self.inner.architecture, self.inner.kv, depth)
    }

    /// What seemed odd about the model's files.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.inner.warnings
    }

    /// What happened about devices since the last call: why the CPU computes although there is an NVIDIA driver, or
    /// took over in the midst of a text.
    #[must_use]
    pub fn take_notes(&self) -> Vec<String> {
        self.inner.notes.take()
    }

    /// How long loading took.
    #[must_use]
    pub fn load_time(&self) -> Duration {
        self.inner.load_time
    }

    fn id(&self) -> usize {
        Arc::as_ptr(&self.inner) as usize
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("info", self.info()).finish_non_exhaustive()
    }
}

/// The longest sequence that the model was made for. Dynamic scaling goes beyond it by design.
fn default_context(architecture: &Architecture) -> usize {
    let is_dynamic = |rope: &Rope| matches!(rope.scaling, RopeScaling::Dynamic { .. });
    let mut ropes = architecture.layers.iter().filter_map(|layer| layer.rope());
    match architecture.max_positions {
        Some(n) if ropes.any(is_dynamic) => n.max(DEFAULT_CONTEXT),
        Some(n) => n,
        None => DEFAULT_CONTEXT,
    }
}

/// The error for a sequence of `length` tokens.
pub(crate) fn too_long(length: usize, context: usize) -> Error {
    Error::new(
        crate::ErrorKind::TooLong,
        format!(
            "the text has {length} tokens, expected at most {context}, the size of the context"
        ),
    )
    .hint("a shorter prompt, or a larger context (--ctx-size)")
}

struct Silent;
impl hub::Progress for Silent {}

#[cfg(all(test, feature = "embedded"))]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_prompt_stops_between_two_blocks_and_leaves_the_cache_as_it_was() {
        let model = Model::load("", &LoadOptions::default()).unwrap();
        let ids: Vec<u32> = (0..200).map(|i| i * 17 % 4000 + 3).collect();
        let (mut cache, mut fresh) = (model.cache().unwrap(), model.cache().unwrap());
        let (mut logits, mut want) = (Vec::new(), Vec::new());
        for cache in [&mut cache, &mut fresh] {
            model.advance(&ids[..50], cache, &mut Vec::new()).unwrap();
        }
        let left = Cell::new(3);
        let go_on = || left.replace(left.get() - 1) > 0;
        let mut row = Logits::default();
        let stopped = model.run(&ids[60..], &mut cache, Rows::Last, &mut row, &go_on);
        assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(cache.len(), 50);
        model.advance(&ids[50..], &mut cache, &mut logits).unwrap();
        model.advance(&ids[50..], &mut fresh, &mut want).unwrap();
        assert!(logits == want);
    }

    #[test]
    fn a_prompt_that_was_stopped_has_no_speed() {
        let model = Model::load("", &LoadOptions::default()).unwrap();
        let session = model.session();
        session.cancel_token().cancel();
        let sampling = crate::sample::Sampling::greedy();
        let last = session.generate("Il était une fois", &sampling).unwrap().last();
        let summary = last.unwrap().unwrap().summary.unwrap();
        assert_eq!(summary.finish_reason, crate::generate::FinishReason::Cancelled);
        assert_eq!((summary.timings.prefill_tok_s, summary.usage.completion_tokens), (0.0, 0));
    }
}
