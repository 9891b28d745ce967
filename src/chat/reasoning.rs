//! Reasoning models think aloud before they answer; this tells the one from the other while text streams in.
//!
//! A block of reasoning stands between `<think>` and `</think>` or `[THINK]` and `[/THINK]`, at the beginning
//! of the output. Later such tags are part of the answer: somebody may have asked about them.

/// The tags that open and close a block of reasoning.
const TAGS: [(&str, &str); 2] = [("<think>", "</think>"), ("[THINK]", "[/THINK]")];

/// What a piece of output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    /// The model thinks aloud.
    Reasoning,
    /// The model answers.
    Answer,
}

/// Where in the output the splitter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before anything but space; `after_block`: a block of reasoning has ended.
    Before { after_block: bool },
    /// In a block that ends with `close`; `begun`: it has some text already.
    Inside { close: &'static str, begun: bool },
    /// In the answer, to the end.
    Answer,
}

/// Splits streamed output into reasoning and answer. Tags are left out, with the space around them.
///
/// No part of a tag ever comes out: text that may become one is held back until it is known.
///
/// ```
/// use tramontane::chat::{ReasoningSplitter, Voice};
/// let mut splitter = ReasoningSplitter::new();
/// assert_eq!(splitter.push("<thi"), []);
/// assert_eq!(splitter.push("nk>2+2"), [(Voice::Reasoning, "2+2".to_owned())]);
/// assert_eq!(splitter.push("=4</think>\n\nQuatre"),
///     [(Voice::Reasoning, "=4".to_owned()), (Voice::Answer, "Quatre".to_owned())]);
/// assert_eq!(splitter.finish(), []);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasoningSplitter {
    place: Place,
    held: String,
}

impl Default for ReasoningSplitter {
    fn default() -> Self {
        Self::new()
    }
}

impl ReasoningSplitter {
    /// A splitter for output from its beginning.
    #[must_use]
    pub fn new() -> Self {
        Self { place: Place::Before { after_block: false }, held: String::new() }
    }

    /// A splitter for the output after `prompt`, which may have opened a block of reasoning already.
    #[must_use]
    pub fn after_prompt(prompt: &str) -> Self {
        let end = prompt.trim_end();
        let open = TAGS.into_iter().find(|(open, _)| end.ends_with(open));
        let place = open.map_or(Place::Before { after_block: false }, |(_, close)| Place::Inside {
            close,
            begun: false,
        });
        Self { place, held: String::new() }
    }

    /// Whether `token` is one of the tags. Where tags are control tokens, decoding leaves them out: their
    /// names are to be pushed, too.
    #[must_use]
    pub fn is_tag(token: &str) -> bool {
        TAGS.iter().any(|(open, close)| *open == token || *close == token)
    }

    /// Takes the next piece of output; returns what is certain by now.
    pub fn push(&mut self, text: &str) -> Vec<(Voice, String)> {
        self.held.push_str(text);
        let mut out = Vec::new();
        while self.step(&mut out) {}
        out
    }

    /// Ends the output; returns what was held back.
    pub fn finish(&mut self) -> Vec<(Voice, String)> {
        let held = std::mem::take(&mut self.held);
        let (voice, text) = match self.place {
            Place::Before { after_block: true } => (Voice::Answer, held.trim_start()),
            Place::Before { after_block: false } | Place::Answer => (Voice::Answer, held.as_str()),
            Place::Inside { .. } => (Voice::Reasoning, held.trim_end()),
        };
        self.place = Place::Answer;
        let mut out = Vec::new();
        say(&mut out, voice, text);
        out
    }

    /// Settles the beginning of what is held; whether there may be more to settle.
    fn step(&mut self, out: &mut Vec<(Voice, String)>) -> bool {
        match self.place {
            Place::Before { after_block } => self.before(after_block),
            Place::Inside { close, begun } => self.inside(close, begun, out),
            Place::Answer => {
                say(out, Voice::Answer, &std::mem::take(&mut self.held));
                false
            }
        }
    }

    fn before(&mut self, after_block: bool) -> bool {
        let text = self.held.trim_start();
        if let Some((open, close)) = TAGS.iter().find(|(open, _)| text.starts_with(open)) {
            self.held = text[open.len()..].to_owned();
            self.place = Place::Inside { close, begun: false };
            return true;
        }
        if TAGS.iter().any(|(open, _)| open.starts_with(text)) {
            return false;
        }
        if after_block {
            self.held = text.to_owned();
        }
        self.place = Place::Answer;
        true
    }

    fn inside(&mut self, close: &'static str, begun: bool, out: &mut Vec<(Voice, String)>) -> bool {
        if !begun {
            self.held = self.held.trim_start().to_owned();
        }
        if let Some(at) = self.held.find(close) {
            say(out, Voice::Reasoning, self.held[..at].trim_end());
            self.held = self.held[at + close.len()..].to_owned();
            self.place = Place::Before { after_block: true };
            return true;
        }
        // Keep what may be the beginning of the tag, and the space before it.
        let partial =
            (1..close.len()).rev().find(|n| self.held.ends_with(&close[..*n])).unwrap_or(0);
        let certain = self.held[..self.held.len() - partial].trim_end().len();
        let rest = self.held.split_off(certain);
        say(out, Voice::Reasoning, &self.held);
        self.place = Place::Inside { close, begun: begun || certain > 0 };
        self.held = rest;
        false
    }
}

fn say(out: &mut Vec<(Voice, String)>, voice: Voice, text: &str) {
    if text.is_empty() {
        return;
    }
    match out.last_mut() {
        Some((last, before)) if *last == voice => before.push_str(text),
        _ => out.push((voice, text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reasoning and answer of `text`, pushed in pieces of `size` characters.
    fn split(mut splitter: ReasoningSplitter, text: &str, size: usize) -> (String, String) {
        let chars: Vec<char> = text.chars().collect();
        let mut parts = Vec::new();
        for piece in chars.chunks(size) {
            parts.extend(splitter.push(&piece.iter().collect::<String>()));
        }
        parts.extend(splitter.finish());
        let (mut reasoning, mut answer) = (String::new(), String::new());
        for (voice, text) in parts {
            match voice {
                Voice::Reasoning => reasoning.push_str(&text),
                Voice::Answer => answer.push_str(&text),
            }
        }
        (reasoning, answer)
    }

    #[test]
    fn the_cut_of_the_stream_makes_no_difference() {
        let cases = [
            ("Bonjour <think>", "", "Bonjour <think>"),
            ("  Bonjour ", "", "  Bonjour "),
            ("<think>\na < b\n\n</think>\n\nOui.\n", "a < b", "Oui.\n"),
            ("\n[THINK]é[/THINK]Oui </think> [THINK]", "é", "Oui </think> [THINK]"),
            ("<think>a</thin b</think>", "a</thin b", ""),
            ("<think></think>x", "", "x"),
            ("<think>a</think> <think>b</think> c", "ab", "c"),
            ("<think>jamais fini </thi", "jamais fini </thi", ""),
            ("<thin", "", "<thin"),
            ("[THINK]a</think>b[/THINK]c", "a</think>b", "c"),
            ("", "", ""),
        ];
        for (text, reasoning, answer) in cases {
            for size in [1, 2, 3, 7, 1000] {
                let found = split(ReasoningSplitter::new(), text, size);
                assert_eq!(found, (reasoning.to_owned(), answer.to_owned()), "{text:?} by {size}");
            }
        }
    }

    #[test]
    fn a_prompt_may_have_opened_the_block() {
        let splitter = ReasoningSplitter::after_prompt("<|im_start|>assistant\n<think>\n");
        let found = split(splitter, "facile\n</think>\n\n4", 2);
        assert_eq!(found, ("facile".to_owned(), "4".to_owned()));
        let closed = ReasoningSplitter::after_prompt("<think>\n\n</think>\n\n");
        assert_eq!(split(closed, "4", 1), (String::new(), "4".to_owned()));
    }
}
