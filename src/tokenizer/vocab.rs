//! ids → bytes: what every token stands for, whatever file it came from.

use crate::error::{Error, Result};

/// The largest id that a tokenizer file may use; the tables here grow with it.
pub(super) const MAX_ID: u32 = (1 << 22) - 1;

/// How the beginning of a text differs from the middle when ids are read back.
///
/// SentencePiece writes a space before the first word that nobody typed; reading back removes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// Not at all.
    Keep,
    /// Up to `n` characters `c` are removed from the beginning of the text.
    Strip {
        /// The character to remove.
        c: char,
        /// How many of them at most.
        n: usize,
    },
    /// The first token loses all of its spaces.
    FirstTokenWithoutSpaces,
    /// Each token loses one leading space as long as there is no text yet.
    OneSpaceWhileEmpty,
}

/// The tokens of a tokenizer, by id: their names, the bytes they stand for, and which are special.
#[derive(Debug)]
pub(super) struct Vocab {
    entries: Vec<Option<Entry>>,
    /// The bytes of all tokens, one after the other.
    bytes: Vec<u8>,
    /// The names of all tokens that differ from their bytes, one after the other.
    names: String,
    pub(super) start: Start,
    longest: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    bytes: Span,
    /// `None`: the name is the (lossily decoded) bytes.
    name: Option<Span>,
    special: bool,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    start: u32,
    len: u32,
}

impl Span {
    fn of(start: usize, len: usize) -> Result<Self> {
        match (u32::try_from(start), u32::try_from(len)) {
            (Ok(start), Ok(len)) => Ok(Self { start, len }),
            _ => Err(Error::bad_model("the tokens together have more than 4 GiB")),
        }
    }

    fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

impl Vocab {
    /// An empty vocabulary.
    pub(super) fn new(start: Start) -> Self {
        Self { entries: Vec::new(), bytes: Vec::new(), names: String::new(), start, longest: 0 }
    }

    /// Adds a token that stands for `bytes`; `name` is how the file calls it, if that differs.
    ///
    /// # Errors
    ///
    /// If `id` is beyond [`MAX_ID`], or is already taken by another token.
    pub(super) fn add(
        &mut self,
        id: u32,
        bytes: &[u8],
        name: Option<&str>,
        special: bool,
    ) -> Result<()> {
        check_id(id, name.map_or_else(|| String::from_utf8_lossy(bytes), Into::into).as_ref())?;
        let at = id as usize;
        if at >= self.entries.len() {
            self.entries.resize(at + 1, None);
        }
        if self.entries[at].is_some() {
            let other = self.name(id).unwrap_or_default();
            let this = name.map_or_else(|| String::from_utf8_lossy(bytes).into_owned(), Into::into);
            return Err(Error::bad_model(format!(
                "the tokens `{other}` and `{this}` share the id {id}, expected one token for each id"
            )));
        }
        let bytes_span = Span::of(self.bytes.len(), bytes.len())?;
        self.bytes.extend_from_slice(bytes);
        let name = match name {
            Some(name) if name.as_bytes() != bytes => {
                let span = Span::of(self.names.len(), name.len())?;
                self.names.push_str(name);
                Some(span)
            }
            _ => None,
        };
        if !special {
            self.longest = self.longest.max(bytes.len());
        }
        self.entries[at] = Some(Entry { bytes: bytes_span, name, special });
        Ok(())
    }

    fn entry(&self, id: u32) -> Option<&Entry> {
        self.entries.get(id as usize)?.as_ref()
    }

    /// The bytes that `id` stands for; of a special token, its name.
    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        Some(&self.bytes[self.entry(id)?.bytes.range()])
    }

    /// The token as the file writes it.
    pub(super) fn name(&self, id: u32) -> Option<String> {
        let entry = self.entry(id)?;
        Some(match entry.name {
            Some(span) => self.names[span.range()].to_owned(),
            None => String::from_utf8_lossy(&self.bytes[entry.bytes.range()]).into_owned(),
        })
    }

    /// Whether `id` is a special token: one that structures a prompt and is no text.
    pub(super) fn is_special(&self, id: u32) -> bool {
        self.entry(id).is_some_and(|e| e.special)
    }

    /// The largest id plus one.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The length of the longest ordinary token, in bytes.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }
}

/// Refuses an id that no real vocabulary reaches and that would make the tables huge.
pub(super) fn check_id(id: u32, token: &str) -> Result<()> {
    if id <= MAX_ID {
        return Ok(());
    }
    Err(Error::bad_model(format!("the token `{token}` has the id {id}, expected at most {MAX_ID}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_no_tokens_and_ids_are_unique() {
        let mut v = Vocab::new(Start::Keep);
        v.add(3, b"abc", None, false).unwrap();
        v.add(1, b"</s>", None, true).unwrap();
        assert_eq!((v.len(), v.longest()), (4, 3));
        assert_eq!(v.bytes(0), None);
        assert_eq!(v.bytes(9), None);
        assert!(v.is_special(1) && !v.is_special(3) && !v.is_special(77));
        let e = v.add(3, b"x", Some("X"), false).unwrap_err().to_string();
        assert!(e.contains("`abc` and `X` share the id 3"), "{e}");
        assert!(v.add(u32::MAX, b"x", None, false).is_err());
    }
}
