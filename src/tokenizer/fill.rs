//! Filling a gap: the text before it and the text behind it → the ids of a prompt whose continuation fills it.
//!
//! Bavarian et al. 2022, arXiv:2207.14255: models learn it from texts whose parts were put in another order, each
//! behind a token that marks it, with the middle last. Mistral's models have the suffix first (the ids are those of
//! mistral-common's `encode_fim`), others the prefix.

use super::{Kind, Tokenizer};
use crate::error::{Error, Result};

/// The marks of Mistral's models: what is behind the gap, then what is before it.
const MISTRAL: [&str; 2] = ["[SUFFIX]", "[PREFIX]"];

/// The marks of other models: what is before the gap, what is behind it, the gap.
const OTHERS: [[&str; 3]; 3] = [
    // Qwen 2.5 and later.
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    // StarCoder and what took its vocabulary.
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
];

/// Where one of these follows, the gap is filled: the marks themselves, and what begins another file.
const ENDS: [&str; 12] = [
    "[SUFFIX]",
    "[PREFIX]",
    "[MIDDLE]",
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    "<|fim_pad|>",
    "<|file_sep|>",
    "<|repo_name|>",
    "<|endoftext|>",
    "<fim_pad>",
    "<file_sep>",
];

/// Stands before a text that begins in the midst of another: SentencePiece would put a space there.
const BEFORE: &str = "☺";

/// The way in which a tokenizer's models are asked for what stands between two texts.
///
/// Both texts are text and nothing else: a mark or another control token that is written out in them does not become
/// one. That a vocabulary has the marks does not mean that the model has learned to use them: models for source code
/// have, and of Mistral's others nobody promised it.
#[derive(Debug, Clone)]
pub struct FillIn {
    tokenizer: Tokenizer,
    order: Order,
    lacks: &'static [&'static str],
}

/// The order of the parts, with the ids of their marks.
#[derive(Debug, Clone, Copy)]
enum Order {
    SuffixFirst { suffix: u32, prefix: u32 },
    PrefixFirst { prefix: u32, suffix: u32, middle: u32 },
}

impl FillIn {
    /// The way that goes with `tokenizer`, told from the marks in its vocabulary.
    ///
    /// Version 2 of Mistral's tokenizers knows the way but lacks the marks: as in mistral-common, the unknown token
    /// stands in their place, and [`Self::lacks`] names them.
    ///
    /// # Errors
    ///
    /// If the vocabulary has no such marks.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let id = |name: &str| tokenizer.0.names.get(name).copied();
        let all = |names: [&str; 3]| Some([id(names[0])?, id(names[1])?, id(names[2])?]);
        let version_2 = |kind: &Kind| match kind {
            Kind::SentencePiece { version } => version == "v2",
            Kind::Tekken { .. } | Kind::HuggingFace => false,
        };
        let (order, lacks): (_, &[&str]) = if let Some(suffix) = id(MISTRAL[0])
            && let Some(prefix) = id(MISTRAL[1])
        {
            (Order::SuffixFirst { suffix, prefix }, &[])
        } else if let Some([prefix, suffix, middle]) = OTHERS.into_iter().find_map(all) {
            (Order::PrefixFirst { prefix, suffix, middle }, &[])
        } else if let Some(unknown) = id("<unk>").filter(|_| version_2(&tokenizer.0.kind)) {
            (Order::SuffixFirst { suffix: unknown, prefix: unknown }, &MISTRAL)
        } else {
            return Err(without_marks());
        };
        Ok(Self { tokenizer: tokenizer.clone(), order, lacks })
    }

    /// The marks for which the unknown token stands, because the vocabulary lacks them. Unless there are none, a model
    /// cannot tell what the prompt means.
    #[must_use]
    pub fn lacks(&self) -> &[&str] {
        self.lacks
    }

    /// Refuses a vocabulary that lacks marks.
    pub(crate) fn complete(self) -> Result<Self> {
        if self.lacks.is_empty() { Ok(self) } else { Err(without_marks()) }
    }

    /// The ids of the prompt that asks for what stands between `prefix` and `suffix`; one of them may be empty.
    ///
    /// ```no_run
    /// # fn main() -> tramontane::Result<()> {
    /// use tramontane::{files::ModelFiles, tokenizer::{FillIn, Tokenizer}};
    /// let codestral = Tokenizer::load(&ModelFiles::folder("Codestral-22B-v0.1"))?.expect("a tokenizer");
    /// let ids = FillIn::of(&codestral)?.encode("fn main() {", "}")?;
    /// assert_eq!(codestral.decode_with_special(&ids)?, "<s>[SUFFIX]}[PREFIX] fn main() {");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`].
    pub fn encode(&self, prefix: &str, suffix: &str) -> Result<Vec<u32>> {
        let mut ids = self.begin();
        match self.order {
            Order::SuffixFirst { suffix: behind, prefix: before } => {
                ids.push(behind);
                ids.extend(self.encode_inside(suffix)?);
                ids.push(before);
                ids.extend(self.tokenizer.encode(prefix)?);
            }
            Order::PrefixFirst { prefix: before, suffix: behind, middle } => {
                ids.push(before);
                ids.extend(self.tokenizer.encode(prefix)?);
                ids.push(behind);
                ids.extend(self.encode_inside(suffix)?);
                ids.push(middle);
            }
        }
        Ok(ids)
    }

    /// The tokens that end what fills the gap, beside those that end any text.
    #[must_use]
    pub fn ends(&self) -> Vec<u32> {
        let id = |name: &&str| self.tokenizer.0.names.get(*name).copied();
        ENDS.iter().filter_map(id).chain(self.tokenizer.eos_id()).collect()
    }

    /// What a prompt begins with. Mistral's prompts have the token that begins a text even where the file that says so
    /// is missing.
    fn begin(&self) -> Vec<u32> {
        let prefix = self.tokenizer.0.prefix.clone().unwrap_or_default();
        match self.order {
            Order::SuffixFirst { .. } if prefix.is_empty() => {
                let bos = self.tokenizer.bos_id().or_else(|| self.tokenizer.id("<s>"));
                bos.into_iter().collect()
            }
            Order::SuffixFirst { .. } | Order::PrefixFirst { .. } => prefix,
        }
    }

    /// The ids of a text that begins in the midst of another: without the space that goes before a first word.
    fn encode_inside(&self, text: &str) -> Result<Vec<u32>> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let before = self.tokenizer.encode(BEFORE)?;
        if !self.cuts_inside(&before) {
            return self.tokenizer.encode(text);
        }
        let both = self.tokenizer.encode(&format!("{BEFORE}{text}"))?;
        match both.strip_prefix(&before[..]) {
            Some(ids) => Ok(ids.to_vec()),
            // The text has grown together with what was put before it.
            None => self.tokenizer.encode(text),
        }
    }

    /// Whether a text inside another is to be told from one that stands alone: mistral-common does it for every
    /// tokenizer of Mistral's, others need it only where a first word gets a space.
    fn cuts_inside(&self, before: &[u32]) -> bool {
        match self.order {
            Order::SuffixFirst { .. } => true,
            Order::PrefixFirst { .. } => {
                let first = before.first().and_then(|id| self.tokenizer.piece(*id));
                first.is_some_and(|piece| piece.starts_with('▁'))
            }
        }
    }
}

fn without_marks() -> Error {
    let others: Vec<&str> = OTHERS.iter().map(|marks| marks[0]).collect();
    Error::bad_input(format!(
        "the tokenizer has no tokens for a gap in a text, expected {} and {}, or {} and what goes with it",
        MISTRAL[0],
        MISTRAL[1],
        others.join(", or ")
    ))
    .so("the model cannot be told what stands behind the gap")
    .hint("a model that was made for it, such as codestral-22b (mistralai/Codestral-22B-v0.1)")
}
