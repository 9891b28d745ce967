//! The decoder of a `tokenizer.json`, token by token.
//!
//! The crate's decoders work on a whole list of tokens. Here every token is turned into bytes once, when
//! the file is loaded, so that text can be read back as it comes; what only concerns the beginning of
//! the text is left to [`Start`].

use serde_json::Value;

use super::super::split::Splitter;
use super::super::vocab::Start;
use crate::error::{Error, Result};

/// The longest text that a token may stand for, in bytes.
const MAX_TOKEN: usize = 64 << 10;
/// The longest token that is changed by a pattern, in bytes.
const MAX_PATTERN_TOKEN: usize = 256;

/// How a token becomes bytes.
pub(super) struct Decoding {
    steps: Vec<Step>,
    /// All that differs at the beginning of a text.
    pub(super) start: Start,
}

enum Step {
    /// Characters stand for bytes, as in GPT-2.
    ByteLevel,
    /// `<0x0A>` is a byte.
    ByteFallback,
    /// A string that is replaced.
    Replace(String, String),
    /// A pattern that is replaced.
    ReplaceRegex(Box<Splitter>, String),
    /// Characters that are removed from both ends.
    Strip { c: char, start: usize, stop: usize },
    /// Something that comes before each token.
    Before(String),
}

/// A token on its way to bytes.
enum Text {
    Chars(String),
    Bytes(Vec<u8>),
}

impl Decoding {
    /// Reads the key `decoder`.
    ///
    /// # Errors
    ///
    /// If a step is unknown, or cannot be done one token at a time.
    pub(super) fn read(value: Option<&Value>) -> Result<Self> {
        let mut decoding = Self { steps: Vec::new(), start: Start::Keep };
        match value {
            Some(value) => {
                let mut fused = false;
                decoding.add(value, &mut fused).map_err(|e| e.at("key `decoder`"))?;
            }
            // Without a decoder tokens are words with spaces between them.
            None => {
                decoding.steps.push(Step::Before(" ".to_owned()));
                decoding.start = Start::Strip { c: ' ', n: 1 };
            }
        }
        Ok(decoding)
    }

    fn add(&mut self, value: &Value, fused: &mut bool) -> Result<()> {
        let kind = value["type"].as_str().unwrap_or("without a type");
        let refuse = |why: &str| Err(Error::not_supported(format!("the step `{kind}` {why}")));
        match kind {
            "Sequence" => {
                let Some(list) = value["decoders"].as_array() else {
                    return Err(Error::bad_model("a sequence of steps has no `decoders`"));
                };
                return list.iter().try_for_each(|step| self.add(step, fused));
            }
            "Fuse" => *fused = true,
            "Strip" if *fused => {
                let (c, start, stop) = strip(value)?;
                if stop > 0 || self.start != Start::Keep {
                    return refuse("removes characters at the end of the text");
                }
                self.start = Start::Strip { c, n: start };
            }
            "Replace" => self.steps.push(replace(value, *fused)?),
            _ if *fused => return refuse("comes after the tokens were joined"),
            "Strip" => {
                let (c, start, stop) = strip(value)?;
                self.steps.push(Step::Strip { c, start, stop });
            }
            "ByteLevel" => {
                self.steps.push(Step::ByteLevel);
                *fused = true;
            }
            "ByteFallback" => self.steps.push(Step::ByteFallback),
            "Metaspace" => {
                let Some(space) = value["replacement"].as_str() else {
                    return Err(Error::bad_model("the step `Metaspace` has no `replacement`"));
                };
                self.steps.push(Step::Replace(space.to_owned(), " ".to_owned()));
                let never =
                    value["prepend_scheme"] == "never" || value["add_prefix_space"] == false;
                if !never {
                    self.start = Start::FirstTokenWithoutSpaces;
                }
            }
            _ => return refuse("is not supported"),
        }
        Ok(())
    }

    /// The bytes that the token `name` stands for.
    ///
    /// # Errors
    ///
    /// If the token is too long for what is to be done with it.
    pub(super) fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let mut text = Text::Chars(name.to_owned());
        for step in &self.steps {
            text = match text {
                Text::Chars(chars) => step.apply(chars)?,
                Text::Bytes(_) => break,
            };
            if matches!(&text, Text::Chars(chars) if chars.len() > MAX_TOKEN) {
                return Err(Error::bad_model(format!(
                    "a token stands for more than {MAX_TOKEN} bytes"
                ))
                .at("key `decoder`"));
            }
        }
        Ok(match text {
            Text::Chars(chars) => chars.into_bytes(),
            Text::Bytes(bytes) => bytes,
        })
    }
}

impl Step {
    fn apply(&self, token: String) -> Result<Text> {
        Ok(Text::Chars(match self {
            Self::ByteLevel => {
                let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
                return Ok(Text::Bytes(bytes.unwrap_or_else(|| token.into_bytes())));
            }
            Self::ByteFallback => match fallback_byte(&token) {
                Some(byte) => return Ok(Text::Bytes(vec![byte])),
                None => token,
            },
            Self::Replace(from, to) => token.replace(from.as_str(), to),
            // There may be a million of them, so each must be done at once.
            Self::ReplaceRegex(..) if token.len() > MAX_PATTERN_TOKEN => {
                return Err(Error::not_supported(format!(
                    "a token of {} bytes is to be changed by a pattern, expected at most {MAX_PATTERN_TOKEN}",
                    token.len()
                ))
                .at("key `decoder`"));
            }
            Self::ReplaceRegex(regex, to) => regex.replace_all(&token, to)?,
            Self::Strip { c, start, stop } => strip_ends(&token, *c, *start, *stop).to_owned(),
            Self::Before(text) => format!("{text}{token}"),
        }))
    }
}

fn strip(value: &Value) -> Result<(char, usize, usize)> {
    let mut chars = value["content"].as_str().unwrap_or_default().chars();
    let count = |key: &str| value[key].as_u64().and_then(|n| usize::try_from(n).ok());
    match (chars.next(), chars.next(), count("start"), count("stop")) {
        (Some(c), None, Some(start), Some(stop)) => Ok((c, start, stop)),
        _ => Err(Error::bad_model("the step `Strip` needs one character, `start` and `stop`")),
    }
}

fn replace(value: &Value, fused: bool) -> Result<Step> {
    let bad = || Error::bad_model("the step `Replace` needs `pattern` and `content`");
    let to = value["content"].as_str().ok_or_else(bad)?.to_owned();
    let pattern = &value["pattern"];
    match (pattern["String"].as_str(), pattern["Regex"].as_str()) {
        (Some(from), _) if !from.is_empty() => {
            if fused && from.chars().nth(1).is_some() {
                return Err(Error::not_supported(
                    "the step `Replace` could match across tokens that were joined before",
                ));
            }
            Ok(Step::Replace(from.to_owned(), to))
        }
        (None, Some(regex)) if !fused => {
            Ok(Step::ReplaceRegex(Box::new(Splitter::new(regex)?), to))
        }
        _ => Err(bad()),
    }
}

/// Removes up to `start` and `stop` times the character `c` from the ends of `text`.
fn strip_ends(mut text: &str, c: char, start: usize, stop: usize) -> &str {
    for _ in 0..start.min(text.len()) {
        text = text.strip_prefix(c).unwrap_or(text);
    }
    for _ in 0..stop.min(text.len()) {
        text = text.strip_suffix(c).unwrap_or(text);
    }
    text
}

/// The byte that `<0xXX>` names; anything else is no byte.
fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = hex.len() == 2 && hex.bytes().all(|c| c.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(hex, 16).ok())?
}

/// The byte that a character stands for in GPT-2's alphabet: itself where it can be printed, and the
/// other 68 bytes, in order, from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    match c {
        '!'..='~' | '\u{a1}'..='\u{ac}' | '\u{ae}'..='\u{ff}' => u8::try_from(c).ok(),
        // 0 to 32, then 127 to 160, then 173.
        '\u{100}'..='\u{120}' => u8::try_from(c as u32 - 0x100).ok(),
        '\u{121}'..='\u{142}' => u8::try_from(c as u32 - 0x121 + 127).ok(),
        '\u{143}' => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_alphabet_of_bytes() {
        assert_eq!(byte_of('A'), Some(b'A'));
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('\u{ad}'), None);
        assert_eq!(byte_of('Ń'), Some(0xad));
        assert_eq!((byte_of(' '), byte_of('ń'), byte_of('中')), (None, None, None));
        let all: std::collections::HashSet<_> = ('\0'..='\u{200}').filter_map(byte_of).collect();
        assert_eq!(all.len(), 256);
    }

    #[test]
    fn the_decoder_of_llama() {
        let d = Decoding::read(Some(&json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})))
        .unwrap();
        assert_eq!(d.start, Start::Strip { c: ' ', n: 1 });
        assert_eq!(d.bytes("▁mot▁").unwrap(), b" mot ");
        assert_eq!(d.bytes("<0xE2>").unwrap(), b"\xe2");
        for no_byte in ["<0x-1>", "<0xZZ>", "<0x+1>", "<0x1>", "<0x100>"] {
            assert_eq!(d.bytes(no_byte).unwrap(), no_byte.as_bytes());
        }
    }

    #[test]
    fn words_have_spaces_where_there_is_no_decoder() {
        let d = Decoding::read(None).unwrap();
        assert_eq!(
            (d.bytes("mot").unwrap(), d.start),
            (b" mot".to_vec(), Start::Strip { c: ' ', n: 1 })
        );
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        for (decoder, words) in [
            (json!({"type": "CTC"}), "`CTC` is not supported"),
            (json!({}), "`without a type`"),
            (json!(7), "`without a type`"),
            (json!({"type": "Sequence"}), "no `decoders`"),
            (json!({"type": "Strip", "content": "ab", "start": 1, "stop": 0}), "one character"),
            (json!({"type": "Replace", "pattern": {"Regex": "("}, "content": ""}), "pattern `(`"),
            (
                json!({"type": "Replace", "pattern": {"String": ""}, "content": ""}),
                "needs `pattern`",
            ),
            (json!({"type": "Metaspace"}), "no `replacement`"),
            (
                json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]}),
                "after the tokens were joined",
            ),
        ] {
            let e = Decoding::read(Some(&decoder)).err().unwrap().to_string();
            assert!(e.contains(words), "{words}: {e}");
        }
    }
}
