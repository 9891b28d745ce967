//! `tokenizer.model`: SentencePiece (Kudo & Richardson 2018, arXiv:1808.06226).
//!
//! The file is a protocol buffer: the pieces with their scores, and how text is prepared. Prepared text
//! is either merged pair by pair, best score first (BPE: Mistral, Llama), or cut where the sum of
//! scores is highest (unigram). Characters that no piece covers become bytes `<0xXX>`.

mod file;

use std::collections::HashMap;
use std::sync::Arc;

use super::bpe::Merger;
use super::markers::Markers;
use super::vocab::{Start, Vocab};
use super::{Encoder, Kind, Loaded};
use crate::error::{Error, Result};
use file::{File, ModelType, Normalizer, PieceType, byte_value};

/// How SentencePiece writes a space.
const SPACE: &str = "\u{2581}";

/// Text → ids.
struct SentencePiece {
    model: ModelType,
    normalizer: Normalizer,
    /// Pieces that text can become, with id and score.
    pieces: HashMap<Box<str>, (u32, f32)>,
    /// Pieces that are always taken whole, and of these the longest.
    user_defined: Option<Markers>,
    /// The ids of the 256 bytes, if there is byte fallback.
    bytes: Option<Box<[u32; 256]>>,
    unk: Option<u32>,
    /// The length of the longest piece, in bytes.
    longest: usize,
    /// In all pieces, spaces are at the beginning only.
    spaces_lead: bool,
    /// The score of a character without a piece (unigram).
    unk_score: f32,
}

/// Reads a SentencePiece model. `version` is the one that the file's name tells (`tokenizer.model.v3`).
///
/// # Errors
///
/// If the file is broken, contradicts itself, or asks for something that is not done here.
pub(super) fn load(model: &[u8], version: Option<&str>) -> Result<Loaded> {
    let file = File::read(model)?;
    let start = match (file.normalizer.remove_extra_whitespaces, file.normalizer.add_dummy_prefix) {
        (true, _) => Start::OneSpaceWhileEmpty,
        (false, true) => Start::Strip { c: ' ', n: 1 },
        (false, false) => Start::Keep,
    };
    let mut vocab = Vocab::new(start);
    for (piece, id) in file.pieces.iter().zip(0..) {
        let text = match piece.kind {
            PieceType::Byte => vec![byte_value(piece.text)?],
            PieceType::Normal | PieceType::UserDefined if file.normalizer.escape_whitespaces => {
                piece.text.replace(SPACE, " ").into_bytes()
            }
            PieceType::Normal
            | PieceType::UserDefined
            | PieceType::Control
            | PieceType::Unknown => piece.text.as_bytes().to_vec(),
        };
        vocab.add(id, &text, Some(piece.text), piece.kind.is_special())?;
    }
    let names: HashMap<String, u32> = file
        .pieces
        .iter()
        .zip(0..)
        .filter(|(piece, _)| piece.kind.is_special())
        .map(|(piece, id)| (piece.text.to_owned(), id))
        .collect();
    let bos = file.control("trainer_spec.bos_id", file.trainer.bos)?;
    let eos = file.control("trainer_spec.eos_id", file.trainer.eos)?;
    let version = version.map_or_else(|| guess_version(&names).to_owned(), str::to_owned);
    Ok(Loaded {
        markers: Arc::new(Markers::new(names.iter().map(|(name, id)| (name.as_str(), *id)))?),
        names,
        bos,
        eos,
        prefix: None,
        kind: Kind::SentencePiece { version },
        encoder: Box::new(SentencePiece::new(file)?),
        vocab: Arc::new(vocab),
    })
}

/// The version of Mistral's prompt format, told from the control tokens that came with each.
fn guess_version(names: &HashMap<String, u32>) -> &'static str {
    let has = |name: &str| names.contains_key(name);
    match (has("[INST]"), has("[PREFIX]"), has("[SYSTEM_PROMPT]")) {
        (true, _, true) => "v7",
        (true, true, false) => "v3",
        (true, false, false) => "v2",
        (false, _, _) => "v1",
    }
}

impl Normalizer {
    /// Prepares `text`; what `keep` finds is not replaced by the table.
    fn apply(&self, text: &str, at_start: bool, keep: Option<&Markers>) -> String {
        let mut out = Prepared {
            text: String::with_capacity(text.len() + 8),
            space: if self.escape_whitespaces { SPACE } else { " " },
            single: self.remove_extra_whitespaces,
            // Spaces at the beginning go like those after a space.
            after_space: at_start && self.remove_extra_whitespaces,
        };
        let mut done = 0;
        for (kept, _) in keep.into_iter().flat_map(|keep| keep.find(text)) {
            self.map(&text[done..kept.start], &mut out);
            out.push(&text[kept.clone()]);
            done = kept.end;
        }
        self.map(&text[done..], &mut out);
        let Prepared { text: mut prepared, space, single, .. } = out;
        if single {
            prepared.truncate(prepared.trim_end_matches(space).len());
        }
        if self.add_dummy_prefix && at_start && !prepared.is_empty() {
            prepared.insert_str(0, space);
        }
        prepared
    }

    /// Replaces by the table.
    fn map(&self, text: &str, out: &mut Prepared) {
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let n = match self.charsmap.as_ref().and_then(|table| table.longest(rest)) {
                Some((n, replacement)) => {
                    out.push(replacement);
                    n
                }
                None => {
                    out.push(&rest[..c.len_utf8()]);
                    c.len_utf8()
                }
            };
            rest = &rest[n..];
        }
    }
}

/// Text that is being prepared.
struct Prepared {
    text: String,
    /// How a space is written.
    space: &'static str,
    /// Of several spaces, one is kept.
    single: bool,
    after_space: bool,
}

impl Prepared {
    /// Adds what one step of the replacement gave.
    fn push(&mut self, chunk: &str) {
        let chunk = if self.after_space { chunk.trim_start_matches(' ') } else { chunk };
        for c in chunk.chars() {
            match c {
                ' ' => self.text.push_str(self.space),
                c => self.text.push(c),
            }
        }
        if !chunk.is_empty() {
            self.after_space = self.single && chunk.ends_with(' ');
        }
    }
}

/// A text on its way to ids.
struct Work<'a> {
    merger: Merger,
    /// The last id is the unknown token.
    after_unk: bool,
    out: &'a mut Vec<u32>,
}

impl SentencePiece {
    fn new(file: File<'_>) -> Result<Self> {
        let with_ids = || file.pieces.iter().zip(0u32..);
        let mut pieces: HashMap<Box<str>, (u32, f32)> = HashMap::with_capacity(file.pieces.len());
        let max_score = file.scores().fold(f32::MIN, f32::max);
        let min_score = file.scores().fold(f32::MAX, f32::min);
        for (piece, id) in with_ids() {
            let score = match (piece.kind, file.trainer.model) {
                (PieceType::Normal, _) | (PieceType::UserDefined, ModelType::Bpe) => piece.score,
                // A piece of the user always wins against any way to build it from others.
                (PieceType::UserDefined, ModelType::Unigram) => {
                    piece.text.len() as f32 * max_score - 0.1
                }
                (PieceType::Unknown | PieceType::Control | PieceType::Byte, _) => continue,
            };
            if pieces.insert(piece.text.into(), (id, score)).is_some() {
                return Err(Error::bad_model(format!("the piece `{}` is there twice", piece.text)));
            }
        }
        let longest = pieces.keys().map(|text| text.len()).max().unwrap_or(0);
        if file.trainer.model == ModelType::Unigram && longest > 1024 {
            return Err(Error::bad_model(format!(
                "the longest piece has {longest} bytes, expected at most 1024"
            )));
        }
        let spaces_lead = !pieces.keys().any(|p| p.trim_start_matches(SPACE).contains(SPACE));
        let kept: Vec<_> =
            with_ids().filter(|(piece, _)| piece.kind == PieceType::UserDefined).collect();
        let user_defined = match kept.is_empty() {
            true => None,
            false => Some(Markers::new(kept.iter().map(|(piece, id)| (piece.text, *id)))?),
        };
        Ok(Self {
            model: file.trainer.model,
            bytes: file.bytes()?,
            unk: with_ids().find(|(p, _)| p.kind == PieceType::Unknown).map(|(_, id)| id),
            unk_score: min_score - 10.0,
            normalizer: file.normalizer,
            user_defined,
            pieces,
            longest,
            spaces_lead,
        })
    }

    /// Adds the ids of a symbol: itself, or its bytes, or the unknown token once for a row of such.
    fn push(&self, symbol: &str, work: &mut Work<'_>) -> Result<()> {
        let after_unk = std::mem::replace(&mut work.after_unk, false);
        if let Some((id, _)) = self.pieces.get(symbol) {
            work.out.push(*id);
        } else if let Some(bytes) = &self.bytes {
            work.out.extend(symbol.bytes().map(|b| bytes[usize::from(b)]));
        } else if let Some(unk) = self.unk {
            work.after_unk = true;
            if !after_unk {
                work.out.push(unk);
            }
        } else {
            return Err(Error::bad_model(format!(
                "the tokenizer has no piece for `{symbol}` and no unknown token"
            )));
        }
        Ok(())
    }

    /// Merges by score. Pieces of the user are never merged with anything.
    fn encode_bpe(&self, text: &str, work: &mut Work<'_>) -> Result<()> {
        let mut done = 0;
        for (kept, _) in self.user_defined.iter().flat_map(|keep| keep.find(text)) {
            self.words(&text[done..kept.start]).try_for_each(|word| self.merge(word, work))?;
            self.push(&text[kept.clone()], work)?;
            done = kept.end;
        }
        self.words(&text[done..]).try_for_each(|word| self.merge(word, work))
    }

    /// Cuts text before each run of spaces if no piece reaches across such a place: the parts can then
    /// be merged one by one, which gives the same ids and is faster.
    fn words<'t>(&self, text: &'t str) -> impl Iterator<Item = &'t str> {
        let mut rest = text;
        let whole = !self.spaces_lead;
        std::iter::from_fn(move || {
            let word = rest.trim_start_matches(SPACE);
            let begin = rest.len() - word.len();
            let end = word.find(SPACE).filter(|_| !whole).map_or(rest.len(), |n| begin + n);
            let (word, after) = rest.split_at(end);
            rest = after;
            (!word.is_empty()).then_some(word)
        })
    }

    fn merge(&self, text: &str, work: &mut Work<'_>) -> Result<()> {
        let rank = |range| self.pieces.get(&text[range]).map(|(_, score)| rank_of(*score));
        let starts = text.char_indices().map(|(i, _)| i);
        let mut merger = std::mem::take(&mut work.merger);
        let mut result = Ok(());
        merger.merge(text.as_bytes(), starts, self.longest, rank, |range| {
            if result.is_ok() {
                result = self.push(&text[range], work);
            }
        })?;
        work.merger = merger;
        result
    }

    /// Cuts where the sum of scores is highest (Viterbi).
    fn encode_unigram(&self, text: &str, work: &mut Work<'_>) -> Result<()> {
        // For each byte position: the best score of the text before it, and where its last piece began.
        let mut best: Vec<(f32, u32)> = vec![(f32::NEG_INFINITY, 0); text.len() + 1];
        best[0].0 = 0.0;
        for (at, c) in text.char_indices() {
            let before = best[at].0;
            let mut relax = |end: usize, score: f32| {
                if before + score > best[end].0 {
                    best[end] = (before + score, at as u32);
                }
            };
            let window = &text[at..];
            let ends = window.char_indices().map(|(i, c)| i + c.len_utf8());
            let mut single = false;
            for end in ends.take_while(|end| *end <= self.longest) {
                if let Some((_, score)) = self.pieces.get(&window[..end]) {
                    single |= end == c.len_utf8();
                    relax(at + end, *score);
                }
            }
            if !single {
                relax(at + c.len_utf8(), self.unk_score);
            }
        }
        let mut cuts = vec![text.len()];
        while let Some(&end) = cuts.last()
            && end > 0
        {
            cuts.push(best[end].1 as usize);
        }
        cuts.reverse();
        cuts.windows(2).try_for_each(|cut| self.push(&text[cut[0]..cut[1]], work))
    }
}

/// Orders scores for a merge: the highest score has the lowest rank.
fn rank_of(score: f32) -> u32 {
    // Adding zero makes −0 and 0 the same.
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 1 { bits } else { !(bits | 1 << 31) }
}

impl Encoder for SentencePiece {
    fn encode(&self, text: &str, at_start: bool, out: &mut Vec<u32>) -> Result<()> {
        let text = self.normalizer.apply(text, at_start, self.user_defined.as_ref());
        if u32::try_from(text.len()).is_err() {
            return Err(Error::bad_input("the text has 4 GiB or more, expected less"));
        }
        let mut work = Work { merger: Merger::default(), after_unk: false, out };
        match self.model {
            ModelType::Bpe => self.encode_bpe(&text, &mut work),
            ModelType::Unigram => self.encode_unigram(&text, &mut work),
        }
    }

    fn id(&self, token: &str) -> Option<u32> {
        let byte = || Some(self.bytes.as_ref()?[usize::from(byte_value(token).ok()?)]);
        self.pieces.get(token).map(|(id, _)| *id).or_else(byte)
    }
}
