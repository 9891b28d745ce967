//! ids → text, piece by piece, without ever cutting a character.
//!
//! The pieces of a stream, joined, are the text of all ids at once: the whole decode is a stream that
//! is fed in one go. Bytes that form no character become U+FFFD as [`String::from_utf8_lossy`] does it,
//! one for each longest beginning of a character.

use std::sync::Arc;

use super::vocab::{Start, Vocab};
use crate::error::Result;

/// Turns ids into text as they come.
///
/// It holds back bytes only while they are an unfinished character. Ids without a token (models pad
/// their vocabulary) stand for no text.
///
/// ```
/// # fn main() -> tramontane::Result<()> {
/// use tramontane::{files::ModelFiles, tokenizer::Tokenizer};
/// # if !ModelFiles::BuiltIn.has("tokenizer.json") { return Ok(()); }
/// let tokenizer = Tokenizer::load(&ModelFiles::BuiltIn)?.expect("the built-in model has a tokenizer");
/// let mut stream = tokenizer.stream();
/// let mut text = String::new();
/// for id in tokenizer.encode("Il était une fois")? {
///     text += &stream.push(id)?;
/// }
/// text += &stream.finish()?;
/// assert_eq!(text, "Il était une fois");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct TextStream {
    vocab: Arc<Vocab>,
    with_special: bool,
    /// The bytes of an unfinished character, three at most between two calls.
    pending: Vec<u8>,
    /// How many characters may still be stripped from the beginning.
    strip: usize,
    /// No token has been seen yet.
    first: bool,
    /// No text has been seen yet.
    empty: bool,
}

impl TextStream {
    pub(super) fn new(vocab: Arc<Vocab>, with_special: bool) -> Self {
        let strip = match vocab.start {
            Start::Strip { n, .. } => n,
            Start::Keep | Start::FirstTokenWithoutSpaces | Start::OneSpaceWhileEmpty => 0,
        };
        Self { vocab, with_special, pending: Vec::new(), strip, first: true, empty: true }
    }

    /// A stream that goes on after other text: its beginning is kept as it is.
    pub(super) fn after_text(vocab: Arc<Vocab>) -> Self {
        Self { strip: 0, first: false, empty: false, ..Self::new(vocab, false) }
    }

    /// Takes the next id and returns the text that is now certain; it may be empty.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let mut out = String::new();
        self.push_onto(id, &mut out);
        Ok(out)
    }

    /// Ends the stream: an unfinished character becomes one U+FFFD. The stream can then be used anew.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn finish(&mut self) -> Result<String> {
        let mut out = String::new();
        self.finish_onto(&mut out);
        *self = Self::new(Arc::clone(&self.vocab), self.with_special);
        Ok(out)
    }

    /// As [`Self::push`], appended to `out`.
    pub(super) fn push_onto(&mut self, id: u32, out: &mut String) {
        let vocab = Arc::clone(&self.vocab);
        let Some(mut bytes) = vocab.bytes(id) else { return };
        if vocab.is_special(id) && !self.with_special {
            return;
        }
        match vocab.start {
            Start::OneSpaceWhileEmpty if self.empty => {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
            Start::FirstTokenWithoutSpaces if self.first => {
                self.pending.extend(bytes.iter().filter(|b| **b != b' '));
                bytes = &[];
            }
            Start::Keep
            | Start::Strip { .. }
            | Start::FirstTokenWithoutSpaces
            | Start::OneSpaceWhileEmpty => {}
        }
        self.first = false;
        self.pending.extend_from_slice(bytes);
        self.empty &= self.pending.is_empty();
        self.emit(out);
    }

    /// Moves all finished characters from the pending bytes to `out`.
    fn emit(&mut self, out: &mut String) {
        let begin = out.len();
        let mut done = 0;
        loop {
            let rest = &self.pending[done..];
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    done = self.pending.len();
                    break;
                }
                Err(e) => {
                    let valid = e.valid_up_to();
                    out.push_str(&String::from_utf8_lossy(&rest[..valid]));
                    done += valid;
                    // No length: the bytes may still become a character.
                    let Some(bad) = e.error_len() else { break };
                    out.push(char::REPLACEMENT_CHARACTER);
                    done += bad;
                }
            }
        }
        self.pending.drain(..done);
        self.strip_start(out, begin);
    }

    fn finish_onto(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            self.pending.clear();
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }

    /// Removes from the new text, `out[begin..]`, what the beginning of a text must not have.
    fn strip_start(&mut self, out: &mut String, begin: usize) {
        let Start::Strip { c, .. } = self.vocab.start else { return };
        let mut end = begin;
        while self.strip > 0 && out[end..].starts_with(c) {
            end += c.len_utf8();
            self.strip -= 1;
        }
        if end < out.len() {
            self.strip = 0;
        }
        out.replace_range(begin..end, "");
    }
}

/// The text of `ids`: the stream, fed in one go.
pub(super) fn decode(vocab: &Arc<Vocab>, ids: &[u32], with_special: bool) -> String {
    let mut stream = TextStream::new(Arc::clone(vocab), with_special);
    let mut out = String::with_capacity(ids.len() * 4);
    for &id in ids {
        stream.push_onto(id, &mut out);
    }
    stream.finish_onto(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(start: Start, tokens: &[&[u8]]) -> TextStream {
        let mut vocab = Vocab::new(start);
        for (id, token) in tokens.iter().enumerate() {
            vocab.add(u32::try_from(id).unwrap(), token, None, token.starts_with(b"<")).unwrap();
        }
        TextStream::new(Arc::new(vocab), false)
    }

    fn pieces(stream: &mut TextStream, ids: &[u32]) -> Vec<String> {
        let mut out: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        out.push(stream.finish().unwrap());
        out
    }

    #[test]
    fn characters_are_never_cut() {
        let mut s = stream(Start::Keep, &[b"\xf0\x9f", b"\x98", b"\x80!", b"\xe2"]);
        assert_eq!(pieces(&mut s, &[0, 1, 2]), ["", "", "😀!", ""]);
        // One replacement for an unfinished character, at the end or where text goes on.
        assert_eq!(pieces(&mut s, &[0, 1]), ["", "", "\u{fffd}"]);
        assert_eq!(pieces(&mut s, &[3, 2]), ["", "\u{fffd}!", ""]);
    }

    #[test]
    fn the_space_nobody_typed_goes_once() {
        let tokens: [&[u8]; 3] = [b"<s>", b" ", b" mot"];
        let strip = Start::Strip { c: ' ', n: 1 };
        assert_eq!(pieces(&mut stream(strip, &tokens), &[0, 2, 2]), ["", "mot", " mot", ""]);
        assert_eq!(pieces(&mut stream(strip, &tokens), &[1, 2]), ["", " mot", ""]);
        let first = Start::FirstTokenWithoutSpaces;
        assert_eq!(pieces(&mut stream(first, &tokens), &[1, 2]), ["", " mot", ""]);
        let while_empty = Start::OneSpaceWhileEmpty;
        assert_eq!(pieces(&mut stream(while_empty, &tokens), &[1, 2]), ["", "mot", ""]);
        assert_eq!(pieces(&mut stream(Start::Keep, &tokens), &[1, 2]), [" ", " mot", ""]);
        for start in [strip, first, while_empty] {
            let mut after = TextStream::after_text(stream(start, &tokens).vocab);
            assert_eq!(pieces(&mut after, &[0, 2, 2]), ["", " mot", " mot", ""]);
        }
    }

    #[test]
    fn ids_without_a_token_are_no_text() {
        assert_eq!(pieces(&mut stream(Start::Keep, &[b"a"]), &[0, 7, u32::MAX]), ["a", "", "", ""]);
    }
}
