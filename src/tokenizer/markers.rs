//! Finding control tokens that are written out in a text, as a chat template does.

use aho_corasick::{AhoCorasick, MatchKind};

use super::Segment;
use crate::error::{Error, Result};

/// The control tokens of a tokenizer, to be found in text: the leftmost, then the longest, wins.
#[derive(Debug)]
pub(super) struct Markers {
    finder: AhoCorasick,
    ids: Vec<u32>,
}

/// A piece of a prompt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A control token.
    Marker(u32),
    /// Text between control tokens.
    Text(String),
}

impl Markers {
    /// Control tokens with their ids.
    ///
    /// # Errors
    ///
    /// If there are too many of them for the search automaton.
    pub(super) fn new<'a>(tokens: impl IntoIterator<Item = (&'a str, u32)>) -> Result<Self> {
        // An empty name would be found everywhere.
        let (names, ids): (Vec<&str>, Vec<u32>) =
            tokens.into_iter().filter(|(name, _)| !name.is_empty()).unzip();
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&names)
            .map_err(|e| Error::bad_model(format!("the special tokens are too many: {e}")))?;
        Ok(Self { finder, ids })
    }

    /// The ids of the control tokens, each at least once.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// All control tokens in `text`, with their places.
    pub(super) fn find<'t>(
        &'t self,
        text: &'t str,
    ) -> impl Iterator<Item = (std::ops::Range<usize>, u32)> + 't {
        self.finder.find_iter(text).map(|m| (m.range(), self.ids[m.pattern().as_usize()]))
    }

    /// Cuts a prompt at the control tokens of its scaffold; content is never searched.
    pub(super) fn parts(&self, segments: &[Segment<'_>]) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut scaffold = String::new();
        for segment in segments {
            match segment {
                // Neighbours are joined: a token may stand across the seam of two pieces of scaffold.
                Segment::Scaffold(s) => scaffold.push_str(s),
                Segment::Content(s) => {
                    self.cut(&scaffold, &mut text, &mut parts);
                    scaffold.clear();
                    text.push_str(s);
                }
            }
        }
        self.cut(&scaffold, &mut text, &mut parts);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        parts
    }

    fn cut(&self, scaffold: &str, text: &mut String, parts: &mut Vec<Part>) {
        let mut done = 0;
        for (found, id) in self.find(scaffold) {
            text.push_str(&scaffold[done..found.start]);
            if !text.is_empty() {
                parts.push(Part::Text(std::mem::take(text)));
            }
            parts.push(Part::Marker(id));
            done = found.end;
        }
        text.push_str(&scaffold[done..]);
    }

    /// Whether reading `segments` as one text would find a control token that touches content.
    pub(super) fn touch_content(&self, segments: &[Segment<'_>]) -> bool {
        let joined: String = segments.iter().map(|s| s.text()).collect();
        let mut contents = Vec::new();
        let mut at = 0;
        for segment in segments {
            let end = at + segment.text().len();
            if matches!(segment, Segment::Content(_)) && end > at {
                contents.push(at..end);
            }
            at = end;
        }
        let mut contents = contents.into_iter().peekable();
        self.find(&joined).any(|(found, _)| {
            while contents.next_if(|c| c.end <= found.start).is_some() {}
            contents.peek().is_some_and(|c| c.start < found.end)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Segment::{Content, Scaffold};

    fn markers() -> Markers {
        Markers::new([("<s>", 1), ("</s>", 2), ("<s>x", 3), ("", 9)]).unwrap()
    }

    #[test]
    fn the_longest_marker_wins_and_content_is_never_searched() {
        let parts = markers().parts(&[
            Scaffold("<s>x a<"),
            Scaffold("/s>b"),
            Content("</s>"),
            Scaffold("<s>"),
        ]);
        let text = |s: &str| Part::Text(s.to_owned());
        assert_eq!(
            parts,
            [Part::Marker(3), text(" a"), Part::Marker(2), text("b</s>"), Part::Marker(1)]
        );
    }

    #[test]
    fn a_marker_across_the_seam_touches_content() {
        let m = markers();
        assert!(!m.touch_content(&[Scaffold("<s>"), Content("a"), Scaffold("</s>"), Content("")]));
        assert!(m.touch_content(&[Scaffold("<s>"), Content("a<"), Scaffold("/s>")]));
        assert!(m.touch_content(&[Scaffold("<s>"), Content("<s>"), Scaffold("b")]));
        assert!(m.touch_content(&[Scaffold("<s"), Content(">")]));
    }
}
