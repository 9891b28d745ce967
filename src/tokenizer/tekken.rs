//! `tekken.json`: Mistral's byte-level tokenizer since Nemo.
//!
//! The file lists byte strings by rank. Text is cut by the pattern in the file; a piece that is a
//! token is that token, every other piece is merged, lowest rank first. The first
//! `default_num_special_tokens` ids belong to control tokens, so `id = rank + that number`, and only as
//! many ranks are used as fit into `default_vocab_size`: 130 072 of 150 000 in the published files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;

use super::bpe::Merger;
use super::markers::Markers;
use super::split::Splitter;
use super::vocab::{MAX_ID, Start, Vocab};
use super::{Encoder, Kind, Loaded, base64};
use crate::error::{Error, Result};

/// The control tokens of files that list none (versions up to v7).
const DEFAULT_SPECIAL: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

#[derive(Deserialize)]
struct File<'a> {
    config: Config,
    #[serde(borrow)]
    vocab: Vec<Token<'a>>,
    special_tokens: Option<Vec<Special>>,
}

#[derive(Deserialize)]
struct Config {
    pattern: String,
    default_vocab_size: u32,
    default_num_special_tokens: u32,
    version: String,
}

#[derive(Deserialize)]
struct Token<'a> {
    rank: u32,
    #[serde(borrow)]
    token_bytes: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Special {
    rank: u32,
    token_str: String,
}

/// Text → ids by ranks.
struct Tekken {
    splitter: Splitter,
    ranks: HashMap<Box<[u8]>, u32>,
    longest: usize,
    n_special: u32,
}

/// Reads a `tekken.json`.
///
/// # Errors
///
/// If the file is broken, contradicts itself, or is of a version that does not exist.
pub(super) fn load(json: &[u8]) -> Result<Loaded> {
    let file: File<'_> = serde_json::from_slice(json)
        .map_err(|e| Error::bad_model(format!("not a tekken tokenizer: {e}")))?;
    let n_special = file.config.default_num_special_tokens;
    let n_ranks = check_sizes(&file)?;
    let version = check_version(&file)?;
    let mut vocab = Vocab::new(Start::Keep);
    let special = special_tokens(&file)?;
    for (name, id) in special.iter().zip(0..) {
        vocab.add(id, name.as_bytes(), None, true)?;
    }
    let mut ranks = HashMap::with_capacity(n_ranks as usize);
    for (token, rank) in file.vocab.iter().take(n_ranks as usize).zip(0..) {
        let bytes = token_bytes(token, rank)?;
        vocab.add(n_special + rank, &bytes, None, false)?;
        if let Some(other) = ranks.insert(bytes.into_boxed_slice(), rank) {
            return Err(Error::bad_model(format!(
                "the ranks {other} and {rank} have the same bytes"
            )));
        }
    }
    let splitter = Splitter::new(&file.config.pattern).map_err(|e| e.at("key `config.pattern`"))?;
    let id_of = |name: &str| special.iter().position(|s| s == name).map(|i| i as u32);
    Ok(Loaded {
        markers: Arc::new(Markers::new(special.iter().map(String::as_str).zip(0..))?),
        bos: id_of("<s>"),
        eos: id_of("</s>"),
        prefix: Some(id_of("<s>").into_iter().collect()),
        kind: Kind::Tekken { version },
        names: special.into_iter().zip(0..).collect(),
        encoder: Box::new(Tekken { splitter, ranks, longest: vocab.longest(), n_special }),
        vocab: Arc::new(vocab),
    })
}

/// Checks the counts against each other; returns the number of ranks in use.
fn check_sizes(file: &File<'_>) -> Result<u32> {
    let Config { default_vocab_size: size, default_num_special_tokens: n_special, .. } =
        file.config;
    if size > MAX_ID {
        return Err(Error::bad_model(format!(
            "`config.default_vocab_size` is {size}, expected at most {MAX_ID}"
        )));
    }
    let Some(n_ranks) = size.checked_sub(n_special) else {
        return Err(Error::bad_model(format!(
            "`config.default_num_special_tokens` is {n_special}, expected at most the vocabulary size {size}"
        )));
    };
    if (file.vocab.len() as u64) < u64::from(n_ranks) {
        return Err(Error::bad_model(format!(
            "`vocab` has {} tokens, expected at least {n_ranks} (vocabulary size {size} less {n_special} special tokens)",
            file.vocab.len()
        )));
    }
    if n_ranks < 256 {
        return Err(Error::bad_model(format!(
            "the vocabulary has room for {n_ranks} ranks, expected at least the 256 bytes"
        )));
    }
    Ok(n_ranks)
}

fn check_version(file: &File<'_>) -> Result<String> {
    let version = &file.config.version;
    let number = version.strip_prefix('v').and_then(|n| n.parse::<u32>().ok());
    match (number, &file.special_tokens) {
        (None, _) => Err(Error::not_supported(format!(
            "`config.version` is `{version}`, expected v3, v7, v11, v13 or v15"
        ))),
        (Some(n), None) if n > 7 => Err(Error::bad_model(format!(
            "there is no `special_tokens`, expected in a file of version {version}"
        ))),
        (Some(_), _) => Ok(version.clone()),
    }
}

/// The names of all special tokens by id; ids that the file does not name are `<SPECIAL_n>`.
fn special_tokens(file: &File<'_>) -> Result<Vec<String>> {
    let n = file.config.default_num_special_tokens as usize;
    let mut names: Vec<Option<String>> = vec![None; n];
    let mut put = |rank: usize, name: &str| -> Result<()> {
        let Some(slot) = names.get_mut(rank) else {
            return Err(Error::bad_model(format!(
                "the special token `{name}` has the rank {rank}, expected less than {n}"
            )));
        };
        if name.is_empty() || slot.is_some() {
            return Err(Error::bad_model(format!(
                "the special token `{name}` of rank {rank} is empty or the second of its rank"
            )));
        }
        *slot = Some(name.to_owned());
        Ok(())
    };
    match &file.special_tokens {
        Some(tokens) => {
            tokens.iter().try_for_each(|t| put(t.rank as usize, &t.token_str))?;
        }
        None => {
            DEFAULT_SPECIAL.iter().enumerate().try_for_each(|(rank, name)| put(rank, name))?;
        }
    }
    let filled = names.into_iter().enumerate();
    let names: Vec<String> =
        filled.map(|(rank, name)| name.unwrap_or_else(|| format!("<SPECIAL_{rank}>"))).collect();
    let mut seen = std::collections::HashSet::new();
    match names.iter().find(|name| !seen.insert(name.as_str())) {
        Some(twice) => Err(Error::bad_model(format!("the special token `{twice}` is there twice"))),
        None => Ok(names),
    }
}

fn token_bytes(token: &Token<'_>, rank: u32) -> Result<Vec<u8>> {
    if token.rank != rank {
        return Err(Error::bad_model(format!(
            "`vocab[{rank}]` has the rank {}, expected ranks in order",
            token.rank
        )));
    }
    let bytes =
        base64::decode(&token.token_bytes).filter(|bytes| !bytes.is_empty()).ok_or_else(|| {
            Error::bad_model(format!("the bytes of `vocab[{rank}]` are not base64, or are empty"))
        })?;
    // Every byte must be a token of its own, or some text would have no ids.
    if u8::try_from(rank).is_ok_and(|b| bytes != [b]) {
        return Err(Error::bad_model(format!("`vocab[{rank}]` is not the byte {rank}")));
    }
    Ok(bytes)
}

impl Encoder for Tekken {
    fn encode(&self, text: &str, _at_start: bool, out: &mut Vec<u32>) -> Result<()> {
        let mut merger = Merger::default();
        let mut result = Ok(());
        self.splitter.split(text, |range, _| {
            if result.is_ok() {
                result = self.encode_piece(&text.as_bytes()[range], &mut merger, out);
            }
        })?;
        result
    }

    fn id(&self, token: &str) -> Option<u32> {
        Some(self.rank(token.as_bytes())? + self.n_special)
    }
}

impl Tekken {
    fn rank(&self, bytes: &[u8]) -> Option<u32> {
        self.ranks.get(bytes).copied()
    }

    fn encode_piece(&self, piece: &[u8], merger: &mut Merger, out: &mut Vec<u32>) -> Result<()> {
        if piece.len() <= self.longest
            && let Some(rank) = self.rank(piece)
        {
            out.push(rank + self.n_special);
            return Ok(());
        }
        let rank = |range: std::ops::Range<usize>| self.rank(&piece[range]);
        merger.merge(piece, 0..piece.len(), self.longest, rank, |range| {
            // What is left is a byte or was merged, and so has a rank.
            out.extend(self.rank(&piece[range]).map(|rank| rank + self.n_special));
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of the 256 bytes, `extra` tokens and 4 special tokens.
    fn file(extra: &[&str], edit: impl Fn(&mut serde_json::Value)) -> Result<Loaded> {
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|b| vec![b]).collect();
        tokens.extend(extra.iter().map(|t| t.as_bytes().to_vec()));
        let vocab: Vec<_> = tokens
            .iter()
            .enumerate()
            .map(|(rank, t)| serde_json::json!({"rank": rank, "token_bytes": base64::encode(t), "token_str": null}))
            .collect();
        let special: Vec<_> = ["<unk>", "<s>", "</s>"]
            .iter()
            .enumerate()
            .map(|(rank, t)| serde_json::json!({"rank": rank, "token_str": t, "is_control": true}))
            .collect();
        let mut json = serde_json::json!({
            "config": {"pattern": r"\w+|\s+(?!\S)|\s+", "num_vocab_tokens": vocab.len(),
                "default_vocab_size": vocab.len() + 4, "default_num_special_tokens": 4, "version": "v3"},
            "vocab": vocab, "special_tokens": special,
        });
        edit(&mut json);
        load(json.to_string().as_bytes())
    }

    #[test]
    fn special_tokens_come_first_and_holes_are_named() {
        let loaded = file(&["mo", "mot"], |_| ()).unwrap();
        let mut ids = Vec::new();
        loaded.encoder.encode("mot </s>", true, &mut ids).unwrap();
        let byte = |b: u8| u32::from(b) + 4;
        assert_eq!(ids, [261, byte(b' '), byte(b'<'), byte(b'/'), byte(b's'), byte(b'>')]);
        assert_eq!((loaded.bos, loaded.eos), (Some(1), Some(2)));
        assert_eq!(loaded.vocab.name(3).unwrap(), "<SPECIAL_3>");
    }

    #[test]
    fn hostile_files_are_named() {
        type Edit = fn(&mut serde_json::Value);
        let cases: [(Edit, &str); 12] = [
            (|j| j["config"]["version"] = "x1".into(), "`config.version` is `x1`"),
            (|j| j["config"]["version"] = 3.into(), "not a tekken tokenizer"),
            (|j| j["config"]["default_vocab_size"] = u32::MAX.into(), "expected at most"),
            (|j| j["config"]["default_vocab_size"] = 3.into(), "default_num_special_tokens"),
            (|j| j["config"]["default_vocab_size"] = 200.into(), "256 bytes"),
            (|j| j["config"]["default_vocab_size"] = 9999.into(), "`vocab` has 257 tokens"),
            (|j| j["config"]["pattern"] = "(".into(), "splitting pattern"),
            (|j| j["vocab"][7]["rank"] = 8.into(), "`vocab[7]` has the rank 8"),
            (|j| j["vocab"][256]["token_bytes"] = "?".into(), "`vocab[256]` are not base64"),
            (|j| j["vocab"][7]["token_bytes"] = "AAAA".into(), "`vocab[7]` is not the byte 7"),
            (|j| j["special_tokens"][1]["rank"] = 0.into(), "second of its rank"),
            (|j| j["special_tokens"][1]["token_str"] = "</s>".into(), "`</s>` is there twice"),
        ];
        for (edit, words) in cases {
            let e = file(&["ab"], edit).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(e.contains(words), "{words}: {e}");
        }
        let e = file(&["ab", "ab"], |_| ()).err().unwrap().to_string();
        assert!(e.contains("ranks 256 and 257 have the same bytes"), "{e}");
        let old = |j: &mut serde_json::Value| {
            j["special_tokens"] = serde_json::Value::Null;
            j["config"]["version"] = "v11".into();
        };
        assert!(file(&[], old).err().unwrap().to_string().contains("special_tokens"));
    }
}
