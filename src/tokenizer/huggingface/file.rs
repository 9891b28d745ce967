//! The content of a `tokenizer.json`, read and checked.
//!
//! The model part is read here and not by the `tokenizers` crate: it is the large part, and the crate
//! trusts it more than a downloaded file deserves.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tokenizers::ModelWrapper;
use tokenizers::models::bpe::{BpeBuilder, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordlevel::WordLevel;

use super::super::vocab::check_id;
use crate::error::{Error, Result};

/// The parts of a `tokenizer.json` that matter here; truncation and padding are for batches.
#[derive(Deserialize)]
pub(super) struct File {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) added_tokens: Vec<Added>,
    pub(super) normalizer: Option<Value>,
    pub(super) pre_tokenizer: Option<Value>,
    pub(super) post_processor: Option<Value>,
    pub(super) decoder: Option<Value>,
    pub(super) model: Model,
}

/// A token beside the model's vocabulary: control tokens, and words that were added later.
#[derive(Deserialize)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) single_word: bool,
    #[serde(default)]
    pub(super) lstrip: bool,
    #[serde(default)]
    pub(super) rstrip: bool,
    pub(super) normalized: Option<bool>,
    #[serde(default)]
    pub(super) special: bool,
}

/// The vocabulary and how text is put together from it.
#[derive(Deserialize)]
pub(super) struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    pub(super) vocab: Tokens,
    merges: Option<Vec<Merge>>,
    unk_token: Option<String>,
    unk_id: Option<usize>,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
}

/// The vocabulary: tokens with ids, or in the order of ids with scores.
pub(super) enum Tokens {
    Ids(Vec<(String, u32)>),
    Scores(Vec<(String, f64)>),
}

/// Two tokens that become one, written as a pair or (older) with a space between.
struct Merge(String, String);

fn null_is_empty<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Vec<Added>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Tokens;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tokens and ids, or a list of tokens and scores")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Tokens, A::Error> {
                let mut tokens = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    tokens.push(entry);
                }
                Ok(Tokens::Ids(tokens))
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> std::result::Result<Tokens, A::Error> {
                let mut tokens = Vec::new();
                while let Some(entry) = seq.next_element()? {
                    tokens.push(entry);
                }
                Ok(Tokens::Scores(tokens))
            }
        }
        d.deserialize_any(Any)
    }
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pair of tokens, or two tokens with a space between")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Merge, E> {
                let pair = text.split_once(' ').filter(|(_, right)| !right.contains(' '));
                let (left, right) =
                    pair.ok_or_else(|| E::custom(format!("the merge `{text}` is no pair")))?;
                Ok(Merge(left.to_owned(), right.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> std::result::Result<Merge, A::Error> {
                match (seq.next_element()?, seq.next_element()?, seq.next_element::<String>()?) {
                    (Some(left), Some(right), None) => Ok(Merge(left, right)),
                    _ => Err(A::Error::custom("a merge has not two tokens")),
                }
            }
        }
        d.deserialize_any(Any)
    }
}

impl File {
    /// Reads the file.
    ///
    /// # Errors
    ///
    /// If it is no such file.
    pub(super) fn read(json: &[u8]) -> Result<Self> {
        let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
        serde_json::from_slice(json).map_err(|e| Error::bad_model(format!("not a tokenizer: {e}")))
    }
}

impl Model {
    /// All tokens with their ids.
    pub(super) fn tokens(&self) -> Box<dyn Iterator<Item = (&str, u32)> + '_> {
        match &self.vocab {
            Tokens::Ids(tokens) => Box::new(tokens.iter().map(|(token, id)| (token.as_str(), *id))),
            Tokens::Scores(tokens) => {
                Box::new(tokens.iter().zip(0..).map(|((token, _), id)| (token.as_str(), id)))
            }
        }
    }

    /// The tokens as the `tokenizers` crate takes them.
    ///
    /// # Errors
    ///
    /// If the parts do not fit each other, or the model is of a kind that is not done here.
    pub(super) fn build(self) -> Result<ModelWrapper> {
        for (token, id) in self.tokens() {
            check_id(id, token)?;
        }
        let kind = self.kind.clone().unwrap_or_else(|| match (&self.vocab, &self.merges) {
            (Tokens::Scores(_), _) => "Unigram".to_owned(),
            (Tokens::Ids(_), Some(_)) => "BPE".to_owned(),
            (Tokens::Ids(_), None) => "WordLevel".to_owned(),
        });
        match kind.as_str() {
            "BPE" => self.build_bpe(),
            "Unigram" => self.build_unigram(),
            "WordLevel" => self.build_word_level(),
            other => Err(Error::not_supported(format!(
                "`model.type` is `{other}`, expected BPE, Unigram or WordLevel"
            ))),
        }
    }

    fn build_bpe(self) -> Result<ModelWrapper> {
        let Tokens::Ids(tokens) = self.vocab else {
            return Err(Error::bad_model(
                "`model.vocab` is a list, expected tokens and ids for BPE",
            ));
        };
        // At random: for training only.
        if self.dropout.is_some_and(|p| p != 0.0) {
            return Err(Error::not_supported("`model.dropout` is set: the ids would be random"));
        }
        if self.continuing_subword_prefix.is_some_and(|prefix| !prefix.is_empty()) {
            return Err(Error::not_supported("`model.continuing_subword_prefix` is set"));
        }
        let longest = tokens.iter().map(|(token, _)| token.len()).max().unwrap_or(0);
        let merges = self.merges.unwrap_or_default();
        if let Some(Merge(left, right)) = merges.iter().find(|m| m.0.len() + m.1.len() > longest) {
            return Err(Error::bad_model(format!(
                "the merge of `{left}` and `{right}` makes a token that is not in the vocabulary"
            )));
        }
        let vocab: Vocab = tokens.into_iter().collect();
        let merges = merges.into_iter().map(|Merge(left, right)| (left, right)).collect();
        let mut builder = BpeBuilder::new()
            .vocab_and_merges(vocab, merges)
            .fuse_unk(self.fuse_unk.unwrap_or(false))
            .byte_fallback(self.byte_fallback.unwrap_or(false))
            .ignore_merges(self.ignore_merges.unwrap_or(false));
        if let Some(unk) = self.unk_token {
            builder = builder.unk_token(unk);
        }
        if let Some(suffix) = self.end_of_word_suffix.filter(|suffix| !suffix.is_empty()) {
            builder = builder.end_of_word_suffix(suffix);
        }
        let bpe = builder.build().map_err(|e| {
            Error::bad_model(format!("a merge names a token that is not in the vocabulary: {e}"))
        })?;
        Ok(ModelWrapper::BPE(bpe))
    }

    fn build_unigram(self) -> Result<ModelWrapper> {
        let Tokens::Scores(tokens) = self.vocab else {
            return Err(Error::bad_model(
                "`model.vocab` is an object, expected a list of tokens and scores for Unigram",
            ));
        };
        if let Some(at) = tokens.iter().position(|(token, _)| token.is_empty()) {
            return Err(Error::bad_model(format!("the token {at} of `model.vocab` is empty")));
        }
        Unigram::from(tokens, self.unk_id, self.byte_fallback.unwrap_or(false))
            .map(ModelWrapper::Unigram)
            .map_err(|e| Error::bad_model(format!("the unigram model is not usable: {e}")))
    }

    fn build_word_level(self) -> Result<ModelWrapper> {
        let Tokens::Ids(tokens) = self.vocab else {
            return Err(Error::bad_model(
                "`model.vocab` is a list, expected tokens and ids for WordLevel",
            ));
        };
        WordLevel::builder()
            .vocab(tokens.into_iter().collect())
            .unk_token(self.unk_token.unwrap_or_default())
            .build()
            .map(ModelWrapper::WordLevel)
            .map_err(|e| Error::bad_model(format!("the word model is not usable: {e}")))
    }
}
