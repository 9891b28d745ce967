//! text → ids, ids → text without cutting a character.
//!
//! Three kinds of files: `tekken.json` (Mistral since Nemo), `tokenizer.json` (Hugging Face) and
//! SentencePiece's `tokenizer.model`. All of them become the same [`Tokenizer`].
//!
//! **Text is never a command.** A control token such as `</s>` or `[INST]` that somebody types is
//! ordinary text for [`Tokenizer::encode`]; only the scaffold that a chat template writes can become
//! control tokens, by [`Tokenizer::encode_special`] or, mixed with content, by
//! [`Tokenizer::encode_segments`].

mod base64;
mod bpe;
mod charsmap;
mod fill;
mod huggingface;
mod markers;
mod protobuf;
mod sentencepiece;
mod settings;
mod split;
mod stream;
mod tekken;
mod vocab;

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::files::{MAX_TOKENIZER, ModelFiles};
pub use fill::FillIn;
use markers::{Markers, Part};
use settings::Settings;
pub use stream::TextStream;
use vocab::Vocab;

/// The longest text that is turned into ids at once, in bytes.
///
/// The `tokenizers` crate takes about 150 bytes of memory for each of them.
const MAX_TEXT: usize = 32 << 20;

/// The kind of file a tokenizer came from.
///
/// The version decides the chat format of Mistral's models: "v1", "v2", "v3", "v7", "v11", "v13" and "v15" are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `tokenizer.json`.
    HuggingFace,
    /// `tekken.json`.
    Tekken {
        /// The version that the file states.
        version: String,
    },
    /// `tokenizer.model` and its like.
    SentencePiece {
        /// The version that the file's name states (`tokenizer.model.v3`), or else the one whose
        /// control tokens are in the file.
        version: String,
    },
}

/// A piece of a prompt for [`Tokenizer::encode_segments`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    /// What a chat template wrote: control tokens in it become their ids.
    Scaffold(&'a str),
    /// What a person, a model or a tool wrote: all of it is text.
    Content(&'a str),
}

impl<'a> Segment<'a> {
    /// The text of the segment.
    #[must_use]
    pub fn text(&self) -> &'a str {
        match self {
            Self::Scaffold(text) | Self::Content(text) => text,
        }
    }
}

/// How one kind of file turns text into ids.
trait Encoder: Send + Sync {
    /// Appends the ids of ordinary text. `at_start`: nothing comes before it in the prompt.
    fn encode(&self, text: &str, at_start: bool, out: &mut Vec<u32>) -> Result<()>;

    /// Appends the ids of a prompt, or does nothing and returns `None`: then the prompt is to be cut
    /// at its control tokens.
    fn encode_segments(
        &self,
        _segments: &[Segment<'_>],
        _out: &mut Vec<u32>,
    ) -> Option<Result<()>> {
        None
    }

    /// The id of an ordinary token, as the file writes it.
    fn id(&self, token: &str) -> Option<u32>;
}

/// What a tokenizer file gives.
struct Loaded {
    encoder: Box<dyn Encoder>,
    vocab: Arc<Vocab>,
    /// The control tokens.
    markers: Arc<Markers>,
    /// The ids of control and added tokens.
    names: HashMap<String, u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    /// The ids that a text begins with; `None` where the file does not say.
    prefix: Option<Vec<u32>>,
    kind: Kind,
}

/// Turns text into ids and ids into text.
///
/// Cheap to clone, and usable from several threads at once.
///
/// ```
/// # fn main() -> tramontane::Result<()> {
/// use tramontane::{files::ModelFiles, tokenizer::Tokenizer};
/// # if !ModelFiles::BuiltIn.has("tokenizer.json") { return Ok(()); }
/// let tokenizer = Tokenizer::load(&ModelFiles::BuiltIn)?.expect("the built-in model has a tokenizer");
/// let ids = tokenizer.encode("Il était une fois")?;
/// assert_eq!(tokenizer.decode(&ids)?, "Il était une fois");
/// // A prompt begins with the token that says so; typed by a person it is only text.
/// assert_eq!(tokenizer.encode_prompt("Il était une fois")?[0], tokenizer.bos_id().unwrap());
/// assert!(!tokenizer.encode("<s>")?.contains(&tokenizer.bos_id().unwrap()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Tokenizer(Arc<Loaded>);

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("kind", &self.0.kind)
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the tokenizer among a model's files; `None` if there is none.
    ///
    /// Where there are several, `tekken.json` goes first (it is the reference for Mistral's models, and
    /// what is beside it is converted from it), then `tokenizer.json`, then SentencePiece: the highest
    /// of `*.model.v1`, `.v2`, `.v3`, `.v7`, or `tokenizer.model`.
    ///
    /// `tokenizer_config.json`, `special_tokens_map.json` and `config.json` say which tokens begin and
    /// end a text, where the tokenizer itself does not.
    ///
    /// # Errors
    ///
    /// If a file is broken or contradicts itself, or asks for something that is not done here.
    pub fn load(files: &ModelFiles) -> Result<Option<Self>> {
        let Some((name, mut loaded)) = load_file(files)? else { return Ok(None) };
        let settings = Settings::read(files)?;
        if matches!(loaded.kind, Kind::SentencePiece { .. }) {
            loaded.add_tokens(&settings).map_err(|e| e.at(files.place(&name)))?;
        }
        loaded.apply(&settings);
        Ok(Some(Self(Arc::new(loaded))))
    }

    /// The ids of `text`, without a first or last token. Control tokens in it are ordinary text.
    ///
    /// # Errors
    ///
    /// If the text has more than 32 MiB, or the tokenizer cannot read it: there is no token for a
    /// character, or its pattern takes too long.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        check_length(text.len())?;
        let mut ids = Vec::new();
        self.0.encoder.encode(text, true, &mut ids)?;
        Ok(ids)
    }

    /// The ids of the scaffold of a prompt: control tokens in `text` become their ids.
    ///
    /// # Errors
    ///
    /// As [`Self::encode`].
    pub fn encode_special(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_segments(&[Segment::Scaffold(text)])
    }

    /// The ids of a prompt of scaffold and content. It is read as one text, except that content holds
    /// no control tokens, nor halves of one.
    ///
    /// # Errors
    ///
    /// As [`Self::encode`].
    pub fn encode_segments(&self, segments: &[Segment<'_>]) -> Result<Vec<u32>> {
        check_length(segments.iter().map(|s| s.text().len()).sum())?;
        let mut ids = Vec::new();
        if let Some(result) = self.0.encoder.encode_segments(segments, &mut ids) {
            return result.map(|()| ids);
        }
        let mut at_start = true;
        for part in self.0.markers.parts(segments) {
            match part {
                Part::Marker(id) => ids.push(id),
                Part::Text(text) => self.0.encoder.encode(&text, at_start, &mut ids)?,
            }
            at_start = false;
        }
        Ok(ids)
    }

    /// The ids of a prompt that is plain text to be continued: as [`Self::encode`], after the first
    /// token that this tokenizer puts before a text, if it does.
    ///
    /// # Errors
    ///
    /// As [`Self::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        check_length(text.len())?;
        let mut ids = self.0.prefix.clone().unwrap_or_default();
        self.0.encoder.encode(text, true, &mut ids)?;
        Ok(ids)
    }

    /// The text of `ids`, without special tokens. Bytes that form no character become U+FFFD; ids that
    /// are no token stand for nothing.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        Ok(stream::decode(&self.0.vocab, ids, false))
    }

    /// As [`Self::decode`], with the special tokens written out.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String> {
        Ok(stream::decode(&self.0.vocab, ids, true))
    }

    /// Decodes ids as they come; all pieces together are what [`Self::decode`] returns.
    #[must_use]
    pub fn stream(&self) -> TextStream {
        TextStream::new(Arc::clone(&self.0.vocab), false)
    }

    /// As [`Self::stream`], for ids that go on after other text: SentencePiece begins a text with a space that nobody
    /// typed and that reading back removes, but in the midst of a text the space belongs there.
    #[must_use]
    pub fn stream_after_text(&self) -> TextStream {
        TextStream::after_text(Arc::clone(&self.0.vocab))
    }

    /// The token that begins a text.
    #[must_use]
    pub fn bos_id(&self) -> Option<u32> {
        self.0.bos
    }

    /// The token that ends a text.
    #[must_use]
    pub fn eos_id(&self) -> Option<u32> {
        self.0.eos
    }

    /// Whether [`Self::encode_prompt`] puts a token before the text.
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        self.0.prefix.as_ref().is_some_and(|prefix| !prefix.is_empty())
    }

    /// The id of a token, as the file writes it: `</s>`, `▁le`, `Ġle`.
    #[must_use]
    pub fn id(&self, token: &str) -> Option<u32> {
        self.0.names.get(token).copied().or_else(|| self.0.encoder.id(token))
    }

    /// The token as the file writes it.
    #[must_use]
    pub fn piece(&self, id: u32) -> Option<String> {
        self.0.vocab.name(id)
    }

    /// Whether `id` is a special token, one that [`Self::decode`] leaves out.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.0.vocab.is_special(id)
    }

    /// The ids of the tokens that structure a prompt: those that [`Self::encode`] never makes of text.
    #[must_use]
    pub fn control_ids(&self) -> &[u32] {
        self.0.markers.ids()
    }

    /// The largest id plus one. A model may have more rows than that: they are padding.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.0.vocab.len()
    }

    /// The kind of file this tokenizer came from.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind.clone()
    }
}

impl Loaded {
    /// Adds the tokens that are listed beside a SentencePiece model.
    fn add_tokens(&mut self, settings: &Settings) -> Result<()> {
        let Some(vocab) = Arc::get_mut(&mut self.vocab) else { return Ok(()) };
        let n = self.names.len();
        for token in &settings.added {
            if vocab.bytes(token.id).is_none() && !token.content.is_empty() {
                vocab.add(token.id, token.content.as_bytes(), None, token.special)?;
                self.names.insert(token.content.clone(), token.id);
            }
        }
        if self.names.len() > n {
            let tokens = self.names.iter().map(|(name, id)| (name.as_str(), *id));
            self.markers = Arc::new(Markers::new(tokens)?);
        }
        Ok(())
    }

    /// Settles which tokens begin and end a text.
    fn apply(&mut self, settings: &Settings) {
        let by_name = |name: &Option<String>| self.names.get(name.as_deref()?).copied();
        let known = |id: &u32| self.vocab.bytes(*id).is_some();
        let bos = by_name(&settings.bos_token).or(self.bos).or(settings.bos_id.filter(known));
        let eos = by_name(&settings.eos_token).or(self.eos).or(settings.eos_id.filter(known));
        (self.bos, self.eos) = (bos, eos);
        // What the file says goes first, as in transformers; SentencePiece's says nothing, and its models
        // were trained with the first token.
        let adds_bos = settings.add_bos.unwrap_or(matches!(self.kind, Kind::SentencePiece { .. }));
        self.prefix.get_or_insert_with(|| bos.filter(|_| adds_bos).into_iter().collect());
    }
}

fn check_length(bytes: usize) -> Result<()> {
    if bytes > MAX_TEXT {
        let what =
            format!("the text has {bytes} bytes, expected at most {} MiB at once", MAX_TEXT >> 20);
        return Err(Error::new(ErrorKind::TooLong, what).hint("shorten it, or pass it in parts"));
    }
    Ok(())
}

/// Reads the tokenizer file that goes first; also returns its name.
fn load_file(files: &ModelFiles) -> Result<Option<(String, Loaded)>> {
    type Load = fn(&[u8]) -> Result<Loaded>;
    let whole: [(&str, Load); 2] =
        [("tekken.json", tekken::load), ("tokenizer.json", huggingface::load)];
    for (name, load) in whole {
        if let Some(bytes) = files.read(name, MAX_TOKENIZER)? {
            let loaded = load(&bytes).map_err(|e| e.at(files.place(name)))?;
            return Ok(Some((name.to_owned(), loaded)));
        }
    }
    let Some((name, version)) = sentencepiece_name(files) else { return Ok(None) };
    let Some(bytes) = files.read(&name, MAX_TOKENIZER)? else { return Ok(None) };
    let loaded = sentencepiece::load(&bytes, version.as_deref());
    Ok(Some((name.clone(), loaded.map_err(|e| e.at(files.place(&name)))?)))
}

/// The SentencePiece file that goes first, and the version that its name states.
fn sentencepiece_name(files: &ModelFiles) -> Option<(String, Option<String>)> {
    let names: Vec<String> = match files {
        ModelFiles::BuiltIn => Vec::new(),
        ModelFiles::Folder { path, .. } => std::fs::read_dir(path)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect(),
    };
    let versioned = names.into_iter().filter_map(|name| Some((file_version(&name)?, name)));
    match versioned.max() {
        Some((version, name)) => Some((name, Some(format!("v{version}")))),
        None if files.has("tokenizer.model") => Some(("tokenizer.model".to_owned(), None)),
        None => None,
    }
}

/// The version in a name such as `tokenizer.model.v3` or, with an image part, `….model.v7m1`.
fn file_version(name: &str) -> Option<u32> {
    let (_, version) = name.rsplit_once(".model.v")?;
    let digits = version.split('m').next()?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_the_name() {
        assert_eq!(file_version("tokenizer.model.v3"), Some(3));
        assert_eq!(file_version("mistral_instruct_tokenizer_241114.model.v7m1"), Some(7));
        for none in
            ["tokenizer.model", "tokenizer.model.v", "tokenizer.model.v3.bak", "x.model.v+3"]
        {
            assert_eq!(file_version(none), None, "{none}");
        }
    }

    #[test]
    fn one_tokenizer_serves_several_threads() {
        fn assert_send_sync<T: Send + Sync + Clone + 'static>() {}
        assert_send_sync::<Tokenizer>();
        assert_send_sync::<TextStream>();
    }
}
