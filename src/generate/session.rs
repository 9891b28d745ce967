//! A sequence of a model that is kept between prompts.

use super::{CancelToken, Generator};
use crate::cache::KvCache;
use crate::chat::ChatRequest;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::nn::graph::{Logits, Rows};
use crate::sample::Sampling;
use crate::tokenizer::{FillIn, TextStream, Tokenizer};

/// One sequence of a model, kept between prompts.
pub struct Session {
    pub(super) model: Model,
    cache: Option<KvCache>,
    /// The ids in the cache.
    tokens: Vec<u32>,
    pub(super) cancel: CancelToken,
}

impl Session {
    pub(crate) fn new(model: Model) -> Self {
        Self { model, cache: None, tokens: Vec::new(), cancel: CancelToken::default() }
    }

    /// This session, stopped by `token` instead of its own.
    #[must_use]
    pub fn with_cancel_token(mut self, token: CancelToken) -> Self {
        self.cancel = token;
        self
    }

    /// The model of this session.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The token that stops this session's generations.
    #[must_use]
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }

    /// The ids that are in the cache.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Bytes of keys and values in use.
    #[must_use]
    pub fn cache_bytes(&self) -> u64 {
        self.cache.as_ref().map_or(0, KvCache::bytes)
    }

    /// Continues `prompt`, a plain text: a BOS goes before it where the model expects one.
    ///
    /// # Errors
    ///
    /// If the model has no tokenizer, the prompt does not fit the context, or a parameter makes no sense.
    pub fn generate(self, prompt: &str, sampling: &Sampling) -> Result<Generator> {
        let tokenizer = self.model.require_tokenizer()?;
        let ids = tokenizer.encode_prompt(prompt)?;
        let text = stream(tokenizer, !prompt.is_empty());
        Generator::start(self, &ids, sampling, Some(text), Vec::new())
    }

    /// Answers a conversation, by the model's own chat template.
    ///
    /// # Errors
    ///
    /// As [`Session::generate`], and if the model has no chat template or it refuses the conversation.
    pub fn chat(self, request: &ChatRequest, sampling: &Sampling) -> Result<Generator> {
        let Some(template) = self.model.chat_template() else {
            return Err(Error::bad_input(format!(
                "{} has no chat template",
                self.model.info().name
            ))
            .so("it completes texts, and was not made for conversations")
            .hint("generate, or an instruct model"));
        };
        let tokenizer = self.model.require_tokenizer()?;
        let ids = template.encode(request, tokenizer)?;
        let text = stream(tokenizer, request.continue_final_message);
        Generator::start(self, &ids, sampling, Some(text), Vec::new())
    }

    /// Writes what stands between `prefix` and `suffix`, by the tokens that the model has for it.
    ///
    /// # Errors
    ///
    /// As [`Session::generate`], and if the tokenizer has no such tokens: see [`FillIn`].
    pub fn fill_in(self, prefix: &str, suffix: &str, sampling: &Sampling) -> Result<Generator> {
        let tokenizer = self.model.require_tokenizer()?;
        let way = FillIn::of(tokenizer).and_then(FillIn::complete);
        let way = way.map_err(|e| e.at(&self.model.info().name))?;
        let ids = way.encode(prefix, suffix)?;
        let text = stream(tokenizer, !prefix.is_empty());
        Generator::start(self, &ids, sampling, Some(text), way.ends())
    }

    /// Continues `ids` as they are. What the cache already holds of them is not computed again.
    ///
    /// # Errors
    ///
    /// If `ids` is empty or does not fit the context, or a parameter makes no sense.
    pub fn generate_ids(self, ids: &[u32], sampling: &Sampling) -> Result<Generator> {
        let text = self.model.tokenizer().map(Tokenizer::stream);
        Generator::start(self, ids, sampling, text, Vec::new())
    }

    /// Cuts the cache back to what it has in common with `ids`, and tells how many that are. At least the last
    /// id is left to compute, because its logits are needed.
    pub(super) fn keep_common_prefix(&mut self, ids: &[u32]) -> Result<usize> {
        if self.cache.is_none() {
            self.cache = Some(self.model.cache()?);
        }
        let common = self.tokens.iter().zip(ids).take_while(|(a, b)| a == b).count();
        let common = common.min(ids.len() - 1);
        let kept = self.cache.as_mut().is_some_and(|cache| cache.truncate(common));
        let common = if kept { common } else { 0 };
        self.tokens.truncate(common);
        Ok(common)
    }

    /// Computes `ids` after what is in the cache; what `rows` wants of the last one's logits comes back in `logits`.
    pub(super) fn advance(&mut self, ids: &[u32], rows: Rows, logits: &mut Logits) -> Result<()> {
        let Some(cache) = &mut self.cache else {
            return Err(Error::bad_input("the session has no cache, expected it after the prompt"));
        };
        logits.clear();
        let cancel = self.cancel.clone();
        let result = self.model.run(ids, cache, rows, logits, &|| !cancel.is_cancelled());
        // A model with recurrent layers cannot go back: its cache may be empty now.
        self.tokens.truncate(cache.len());
        result?;
        self.tokens.extend_from_slice(ids);
        Ok(())
    }
}

/// Decodes what is generated, after other text or at the beginning of one.
fn stream(tokenizer: &Tokenizer, after_text: bool) -> TextStream {
    if after_text { tokenizer.stream_after_text() } else { tokenizer.stream() }
}
