//! `tokenizer.json`, through the `tokenizers` crate.
//!
//! The file describes a pipeline: added tokens are cut out, the rest is normalised, cut into words, and
//! put together from the vocabulary. The crate does that; this module reads the file (strictly), keeps
//! control tokens out of ordinary text, and turns the decoder into a table.
//!
//! Two pipelines share one vocabulary: `scaffold` knows all added tokens and reads what a template
//! writes; `text` knows only those that are words, and reads what people write.

mod decoder;
mod file;
mod normalizer;
mod steps;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tokenizers::models::TrainerWrapper;
use tokenizers::{
    AddedToken, DecoderWrapper, Model, ModelWrapper, PostProcessorWrapper, Token, TokenizerImpl,
};

use self::decoder::Decoding;
use self::file::{Added, File};
use self::normalizer::Changes;
use self::steps::Steps;
use super::markers::Markers;
use super::vocab::{Vocab, check_id};
use super::{Encoder, Kind, Loaded, Segment};
use crate::error::{Error, Result};

type Pipeline = TokenizerImpl<Shared, Changes, Steps, PostProcessorWrapper, DecoderWrapper>;

/// A vocabulary that several pipelines share.
#[derive(Clone)]
struct Shared(Arc<Words>);

struct Words {
    model: ModelWrapper,
    /// The ids of added tokens, as the file gives them.
    added: HashMap<String, u32>,
    /// The ids of control tokens.
    control: HashSet<u32>,
}

/// Text → ids.
struct HuggingFace {
    scaffold: Pipeline,
    text: Pipeline,
    /// As `text`, for text that follows a control token, where that makes a difference.
    after_marker: Option<Pipeline>,
    markers: Arc<Markers>,
}

/// Reads a `tokenizer.json`.
///
/// # Errors
///
/// If the file is broken, contradicts itself, or asks for something that is not done here.
pub(super) fn load(json: &[u8]) -> Result<Loaded> {
    let file = File::read(json)?;
    let added = unique(&file.added_tokens)?;
    let vocab = vocabulary(&file)?;
    let prefix = file.post_processor.as_ref().map(prefix).transpose()?;
    if let Some(id) = prefix.iter().flatten().find(|id| vocab.bytes(**id).is_none()) {
        return Err(Error::bad_model(format!(
            "`post_processor` adds the id {id}, which is no token"
        )));
    }
    let control: Vec<&Added> = file.added_tokens.iter().filter(|t| t.is_control()).collect();
    let markers = Arc::new(Markers::new(control.iter().map(|t| (t.content.as_str(), t.id)))?);
    let words = Shared(Arc::new(Words {
        control: control.iter().map(|t| t.id).collect(),
        model: file.model.build()?,
        added: added.clone(),
    }));
    let normalizer = file.normalizer.as_ref().map(Changes::read).transpose()?;
    let steps = file.pre_tokenizer.as_ref().map(Steps::read).transpose()?;
    let pipeline = |steps: Option<&Steps>, added: &dyn Fn(&Added) -> bool| {
        pipeline(&words, normalizer.as_ref(), steps, file.added_tokens.iter().filter(|t| added(t)))
    };
    let after_marker = steps.as_ref().and_then(Steps::after_marker);
    let is_word = |t: &Added| !t.is_control();
    let encoder = HuggingFace {
        scaffold: pipeline(steps.as_ref(), &|_| true)?,
        text: pipeline(steps.as_ref(), &is_word)?,
        after_marker: after_marker.map(|steps| pipeline(Some(&steps), &is_word)).transpose()?,
        markers: Arc::clone(&markers),
    };
    Ok(Loaded {
        vocab: Arc::new(vocab),
        markers,
        names: added,
        bos: prefix.iter().flatten().next().copied(),
        eos: None,
        prefix,
        kind: Kind::HuggingFace,
        encoder: Box::new(encoder),
    })
}

impl Added {
    /// Whether the token structures a prompt, so that text must not become it.
    ///
    /// Files do not mark all of them as special: `<tool_call>` and `<think>` often are not, but have
    /// the form of one. Other added tokens are words: runs of spaces, names.
    fn is_control(&self) -> bool {
        let content = self.content.trim();
        let wrapped = |open, close| content.starts_with(open) && content.ends_with(close);
        self.special || wrapped('<', '>') || wrapped('[', ']')
    }
}

/// The ids of added tokens by name.
fn unique(tokens: &[Added]) -> Result<HashMap<String, u32>> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for token in tokens {
        check_id(token.id, &token.content)?;
        if let Some(other) = ids.insert(token.content.clone(), token.id)
            && other != token.id
        {
            return Err(Error::bad_model(format!(
                "the added token `{}` has the ids {other} and {}, expected one",
                token.content, token.id
            )));
        }
    }
    Ok(ids)
}

/// What each id stands for. An added token takes the place of a token of the model.
fn vocabulary(file: &File) -> Result<Vocab> {
    let decoding = Decoding::read(file.decoder.as_ref())?;
    let mut vocab = Vocab::new(decoding.start);
    let mut seen: HashMap<u32, &str> = HashMap::with_capacity(file.added_tokens.len());
    for token in &file.added_tokens {
        if seen.insert(token.id, &token.content) != Some(&token.content) {
            let bytes = decoding.bytes(&token.content)?;
            vocab.add(token.id, &bytes, Some(&token.content), token.special)?;
        }
    }
    for (token, id) in file.model.tokens() {
        if !seen.contains_key(&id) {
            vocab.add(id, &decoding.bytes(token)?, Some(token), false)?;
        }
    }
    Ok(vocab)
}

fn pipeline<'a>(
    words: &Shared,
    normalizer: Option<&Changes>,
    steps: Option<&Steps>,
    added: impl Iterator<Item = &'a Added>,
) -> Result<Pipeline> {
    let bad =
        |e: tokenizers::Error| Error::bad_model(format!("the added tokens are not usable: {e}"));
    let mut pipeline = Pipeline::new(words.clone());
    pipeline.with_normalizer(normalizer.cloned()).map_err(bad)?;
    pipeline.with_pre_tokenizer(steps.cloned());
    let tokens = added.map(|t| {
        AddedToken::from(t.content.clone(), t.special)
            .single_word(t.single_word)
            .lstrip(t.lstrip)
            .rstrip(t.rstrip)
            .normalized(t.normalized.unwrap_or(!t.special))
    });
    pipeline.add_tokens(tokens).map_err(bad)?;
    Ok(pipeline)
}

/// The ids that the post-processor puts before a text.
fn prefix(value: &Value) -> Result<Vec<u32>> {
    let bad = || Error::bad_model("the template is not usable").at("key `post_processor`");
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(bad);
    match value["type"].as_str() {
        Some("Sequence") => {
            // Each processor wraps what the one before made.
            let list = value["processors"].as_array().ok_or_else(bad)?;
            let parts: Result<Vec<_>> = list.iter().rev().map(prefix).collect();
            Ok(parts?.concat())
        }
        Some("TemplateProcessing") => {
            let mut ids = Vec::new();
            for piece in value["single"].as_array().ok_or_else(bad)? {
                let Some(name) = piece["SpecialToken"]["id"].as_str() else { break };
                let token = value["special_tokens"][name]["ids"].as_array().ok_or_else(bad)?;
                for value in token {
                    ids.push(id(value)?);
                }
            }
            Ok(ids)
        }
        Some("RobertaProcessing" | "BertProcessing") => Ok(vec![id(&value["cls"][1])?]),
        Some("ByteLevel") => Ok(Vec::new()),
        other => Err(Error::not_supported(format!(
            "`post_processor.type` is `{}`, expected TemplateProcessing",
            other.unwrap_or("missing")
        ))),
    }
}

impl Model for Shared {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, text: &str) -> tokenizers::Result<Vec<Token>> {
        let mut tokens = self.0.model.tokenize(text)?;
        if tokens.iter().any(|t| self.is_accident(t, text)) {
            tokens = self.without_accidents(tokens, text)?;
        }
        Ok(tokens)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.added.get(token).copied().or_else(|| self.0.model.token_to_id(token))
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.model.id_to_token(id)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.0.model.get_vocab()
    }

    fn get_vocab_size(&self) -> usize {
        self.0.model.get_vocab_size()
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        self.0.model.save(folder, prefix)
    }

    fn get_trainer(&self) -> Self::Trainer {
        self.0.model.get_trainer()
    }
}

impl Shared {
    /// Whether ordinary text was put together to a control token because the vocabulary holds it.
    ///
    /// The unknown token is no accident: it does not stand for its own letters.
    fn is_accident(&self, token: &Token, text: &str) -> bool {
        self.0.control.contains(&token.id)
            && text.get(token.offsets.0..token.offsets.1) == Some(token.value.as_str())
    }

    /// Spells out control tokens that came about by accident, letter by letter.
    fn without_accidents(&self, tokens: Vec<Token>, text: &str) -> tokenizers::Result<Vec<Token>> {
        let mut out = Vec::with_capacity(tokens.len() + 8);
        for token in tokens {
            if !self.is_accident(&token, text) {
                out.push(token);
                continue;
            }
            for (i, c) in token.value.char_indices() {
                let begin = token.offsets.0 + i;
                for mut letter in self.0.model.tokenize(&token.value[i..i + c.len_utf8()])? {
                    letter.offsets = (letter.offsets.0 + begin, letter.offsets.1 + begin);
                    out.push(letter);
                }
            }
        }
        Ok(out)
    }
}

impl Encoder for HuggingFace {
    fn encode(&self, text: &str, at_start: bool, out: &mut Vec<u32>) -> Result<()> {
        let pipeline = match &self.after_marker {
            Some(pipeline) if !at_start => pipeline,
            Some(_) | None => &self.text,
        };
        run(pipeline, text, out)
    }

    /// Where content holds no control token, the whole prompt goes through the crate as it is, which
    /// is what other programs do with it; else it is cut, and content is read as text.
    fn encode_segments(&self, segments: &[Segment<'_>], out: &mut Vec<u32>) -> Option<Result<()>> {
        if self.markers.touch_content(segments) {
            return None;
        }
        let text: String = segments.iter().map(|s| s.text()).collect();
        Some(run(&self.scaffold, &text, out))
    }

    fn id(&self, token: &str) -> Option<u32> {
        self.text.token_to_id(token)
    }
}

fn run(pipeline: &Pipeline, text: &str, out: &mut Vec<u32>) -> Result<()> {
    let encoding = pipeline.encode_fast(text, false).map_err(|e| match e.downcast::<Error>() {
        Ok(own) => *own,
        Err(e) => Error::bad_model(format!("the tokenizer cannot encode this text: {e}")),
    })?;
    out.extend_from_slice(encoding.get_ids());
    Ok(())
}
