//! Generation: prefill the prompt, then decode token by token until something ends it.
//!
//! A [`Session`] keeps the cache between prompts, so a conversation only computes what is new. [`Generator`] is an
//! iterator that owns everything it needs: it can be sent to another thread, and stopped from anywhere by a
//! [`CancelToken`].

mod session;
mod stop;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, ErrorKind, Result};
use crate::model::too_long;
use crate::nn::graph::{Logits, Rows};
use crate::sample::{Sampler, Sampling};
use crate::tokenizer::TextStream;

pub use session::Session;
use stop::StopStrings;

/// Stops a generation from another thread, within one token, or one layer of a piece of the prompt.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Asks the generation to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Forgets that it was asked to stop.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// The flag itself, for a signal handler.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended the text, or a stop string appeared.
    Stop,
    /// The number of tokens or the context was used up.
    Length,
    /// The caller cancelled.
    Cancelled,
    /// The model computed something that is not a number.
    Error,
}

/// Counts of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were still in the cache.
    pub cached_tokens: usize,
    /// Tokens that were generated, without the one that ended the text.
    pub completion_tokens: usize,
}

/// Times of a generation. Tokenising and sampling are inside, loading is apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Timings {
    /// Loading the model, in milliseconds.
    pub load_ms: f64,
    /// Computing the prompt, in milliseconds.
    pub prefill_ms: f64,
    /// All tokens after the first, in milliseconds.
    pub decode_ms: f64,
    /// Tokens of the prompt that were computed, per second.
    pub prefill_tok_s: f64,
    /// Tokens after the first, per second.
    pub decode_tok_s: f64,
    /// From the call to the first token, in milliseconds.
    pub ttft_ms: f64,
}

/// What the last piece of a generation carries.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What went wrong, where it ended for [`FinishReason::Error`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The generated ids, without the one that ended the text.
    pub token_ids: Vec<u32>,
    /// Counts.
    pub usage: Usage,
    /// Times.
    pub timings: Timings,
    /// SHA-256 of the generated ids, each as 4 little-endian bytes, in hexadecimal: equal hashes mean equal texts.
    pub token_hash: String,
}

/// A piece of the text.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Text that is now certain; empty while a character or a stop string is incomplete.
    pub text: String,
    /// The id that was generated; `None` in the last piece.
    pub id: Option<u32>,
    /// In the last piece, how it went.
    pub summary: Option<Summary>,
}

/// An iterator over the pieces of a generated text.
///
/// After an error or the piece with the summary it is at its end.
pub struct Generator {
    session: Session,
    sampler: Sampler,
    prompt: Vec<u32>,
    cached: usize,
    generated: Vec<u32>,
    max_tokens: usize,
    ignore_eos: bool,
    /// Ids that end this text, beside those that end any.
    ends: Vec<u32>,
    text: Option<TextStream>,
    stop: StopStrings,
    logits: Logits,
    clock: Clock,
    state: Progress,
    error: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Prompt,
    Decode,
    Done,
}

struct Clock {
    start: Instant,
    prefill: Duration,
    /// Tokens of the prompt that were computed.
    prefilled: usize,
    first: Option<Instant>,
    last: Instant,
}

impl Generator {
    fn start(
        mut session: Session,
        ids: &[u32],
        sampling: &Sampling,
        text: Option<TextStream>,
        ends: Vec<u32>,
    ) -> Result<Self> {
        let start = Instant::now();
        let context = session.model.info().context;
        if ids.is_empty() {
            return Err(Error::bad_input(
                "the prompt is empty, and this model has no token that begins a text",
            )
            .hint("a prompt"));
        }
        if ids.len() >= context {
            return Err(too_long(ids.len(), context - 1));
        }
        let sampling = sampling.clone().or(session.model.defaults());
        let sampler = Sampler::new(&sampling, session.model.architecture().vocab)?;
        let cached = session.keep_common_prefix(ids)?;
        let room = context - ids.len();
        Ok(Self {
            sampler,
            prompt: ids.to_vec(),
            cached,
            generated: Vec::new(),
            max_tokens: sampling.max_tokens.unwrap_or(room).min(room),
            ignore_eos: sampling.ignore_eos,
            ends,
            text,
            stop: StopStrings::new(&sampling.stop),
            logits: Logits::default(),
            clock: Clock { start, prefill: Duration::ZERO, prefilled: 0, first: None, last: start },
            state: Progress::Prompt,
            error: None,
            session,
        })
    }

    /// The token that stops this generation.
    #[must_use]
    pub fn cancel_token(&self) -> CancelToken {
        self.session.cancel_token()
    }

    /// The sampler in use.
    #[must_use]
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// The ids of the prompt.
    #[must_use]
    pub fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// The session, with the cache as far as the generation came.
    #[must_use]
    pub fn into_session(self) -> Session {
        self.session
    }

    fn step(&mut self) -> Result<Piece> {
        let result = match self.state {
            Progress::Prompt => self.prefill(),
            Progress::Decode | Progress::Done => self.decode(),
        };
        match result {
            Err(e) if e.kind() == ErrorKind::Cancelled => {
                return self.finish(FinishReason::Cancelled);
            }
            Err(e) => return Err(e),
            Ok(()) => self.state = Progress::Decode,
        }
        if self.session.cancel.is_cancelled() {
            return self.finish(FinishReason::Cancelled);
        }
        if self.generated.len() >= self.max_tokens {
            return self.finish(FinishReason::Length);
        }
        let id = match self.sample() {
            Err(e) if e.kind() == ErrorKind::Numerics => {
                self.error = Some(e.what());
                return self.finish(FinishReason::Error);
            }
            sampled => sampled?,
        };
        self.clock.tick();
        let ends = self.session.model.eos_ids().contains(&id) || self.ends.contains(&id);
        if ends && !self.ignore_eos {
            return self.finish(FinishReason::Stop);
        }
        self.generated.push(id);
        let (text, stopped) = self.certain(id)?;
        if stopped {
            self.text = None;
            let last = self.finish(FinishReason::Stop)?;
            return Ok(Piece { text: text + &last.text, ..last });
        }
        Ok(Piece { text, id: Some(id), summary: None })
    }

    /// The next id, from the logits that were computed.
    fn sample(&mut self) -> Result<u32> {
        let Logits { values, ids } = &mut self.logits;
        if ids.is_empty() {
            self.sampler.sample(values, &self.prompt, &self.generated)
        } else {
            self.sampler.sample_largest(values, ids)
        }
    }

    /// Which logits the sampler needs.
    fn rows(&self) -> Rows {
        self.sampler.deciding().map_or(Rows::Last, Rows::Largest)
    }

    /// The text that became certain with `id`, and whether a stop string has appeared.
    fn certain(&mut self, id: u32) -> Result<(String, bool)> {
        let special = self.session.model.tokenizer().is_some_and(|t| t.is_special(id));
        let certain = self.text.as_mut().map(|text| text.push(id)).transpose()?.unwrap_or_default();
        let (mut text, stopped) = self.stop.push(&certain);
        if special && !stopped {
            // No stop string reaches across a control token, and what came before it is to be told before it.
            text += &self.stop.finish();
        }
        Ok((text, stopped))
    }

    fn prefill(&mut self) -> Result<()> {
        let (start, rows) = (Instant::now(), self.rows());
        let result = self.session.advance(&self.prompt[self.cached..], rows, &mut self.logits);
        self.clock.prefill = start.elapsed();
        // A prompt that was stopped counts as not computed.
        self.clock.prefilled = if result.is_ok() { self.prompt.len() - self.cached } else { 0 };
        result
    }

    /// Computes the logits after the last generated id, if there is one and another is wanted.
    fn decode(&mut self) -> Result<()> {
        let rows = self.rows();
        match self.generated.last() {
            Some(id) if self.generated.len() < self.max_tokens => {
                self.session.advance(&[*id], rows, &mut self.logits)
            }
            _ => Ok(()),
        }
    }

    fn finish(&mut self, finish_reason: FinishReason) -> Result<Piece> {
        self.state = Progress::Done;
        let rest = match &mut self.text {
            Some(text) => text.finish()?,
            None => String::new(),
        };
        let (mut text, stopped) = self.stop.push(&rest);
        if !stopped {
            text += &self.stop.finish();
        }
        let summary = Summary {
            finish_reason,
            error: self.error.take(),
            usage: Usage {
                prompt_tokens: self.prompt.len(),
                cached_tokens: self.cached,
                completion_tokens: self.generated.len(),
            },
            timings: self.timings(),
            token_hash: token_hash(&self.generated),
            token_ids: std::mem::take(&mut self.generated),
        };
        Ok(Piece { text, id: None, summary: Some(summary) })
    }

    fn timings(&self) -> Timings {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let rate =
            |n: usize, d: Duration| if d.is_zero() { 0.0 } else { n as f64 / d.as_secs_f64() };
        let first = self.clock.first.unwrap_or(self.clock.last);
        let decode = self.clock.last - first;
        Timings {
            load_ms: ms(self.session.model.load_time()),
            prefill_ms: ms(self.clock.prefill),
            decode_ms: ms(decode),
            prefill_tok_s: rate(self.clock.prefilled, self.clock.prefill),
            decode_tok_s: rate(self.generated.len().saturating_sub(1), decode),
            ttft_ms: self.clock.first.map_or(0.0, |first| ms(first - self.clock.start)),
        }
    }
}

impl Clock {
    /// A token has been sampled.
    fn tick(&mut self) {
        self.last = Instant::now();
        self.first.get_or_insert(self.last);
    }
}

impl Iterator for Generator {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == Progress::Done {
            return None;
        }
        let piece = self.step();
        if piece.is_err() {
            self.state = Progress::Done;
        }
        Some(piece)
    }
}

/// SHA-256 of `ids`, each as 4 little-endian bytes, in hexadecimal.
#[must_use]
pub fn token_hash(ids: &[u32]) -> String {
    let mut hash = Sha256::new();
    for id in ids {
        hash.update(id.to_le_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
