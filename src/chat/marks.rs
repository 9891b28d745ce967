//! Telling what people wrote from what the template wrote, character by character.
//!
//! Before a template sees them, characters of the contents are exchanged for private-use characters that
//! occur nowhere in the request or the template. Whatever the template then does (trims, splits, quotes as
//! JSON, joins), the exchanged characters carry their origin into the prompt, where they are exchanged back.
//! Nobody can forge them, since they are chosen after the contents are known. Spaces, quotes and backslashes
//! stay as they are: templates trim and escape them, and no control token is made of them alone.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::message::ROLES;
use crate::error::{Error, Result};

/// Which characters of the contents are marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All that occur in control tokens: then each control token in the prompt is known to the letter.
    All,
    /// Only those that begin or end control tokens, such as `<`: for templates that look for words in the
    /// contents.
    Edges,
    /// As `Edges`, but not the reasoning tags in the answers of the model: for templates that look for them.
    EdgesButReasoning,
}

/// The tags around a model's reasoning; the model itself writes them into its answers.
pub(super) const REASONING_TAGS: [&str; 4] = ["<think>", "</think>", "[THINK]", "[/THINK]"];

/// A prompt whose characters know whether they are content.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Marked {
    pub(super) text: String,
    /// The places of content in `text`, in order, in bytes.
    pub(super) content: Vec<std::ops::Range<usize>>,
}

/// An exchange of characters for private-use ones.
pub(super) struct Marks {
    to_private: HashMap<char, char>,
    from_private: HashMap<char, char>,
    extent: Extent,
    /// Words that the template must recognise: names of fields and types it asks for.
    words: HashSet<String>,
}

impl Marks {
    /// Chooses private-use characters for a request.
    ///
    /// `controls` are the control tokens of the tokenizer, `source` is the template.
    ///
    /// # Errors
    ///
    /// If the request holds nearly all private-use characters there are.
    pub(super) fn new<'a>(
        extent: Extent,
        controls: impl Iterator<Item = &'a str>,
        source: &str,
        variables: &Map<String, Value>,
    ) -> Result<Self> {
        let mut marked = HashSet::new();
        let mut inner_words = HashSet::new();
        for control in controls {
            match extent {
                Extent::All => marked.extend(control.chars().filter(|c| can_be_marked(*c))),
                Extent::Edges | Extent::EdgesButReasoning => {
                    let edges = [control.chars().next(), control.chars().next_back()];
                    marked.extend(edges.into_iter().flatten().filter(|c| can_be_marked(*c)));
                }
            }
            inner_words.insert(control.trim_matches(|c: char| !c.is_alphanumeric()));
        }
        let mut taken: HashSet<char> = source.chars().filter(|c| is_private(*c)).collect();
        for variable in variables.values() {
            each_text(variable, &mut |text| taken.extend(text.chars().filter(|c| is_private(*c))));
        }
        let mut free = ('\u{e000}'..='\u{f8ff}')
            .chain('\u{f0000}'..='\u{ffffd}')
            .chain('\u{100000}'..='\u{10fffd}')
            .filter(|c| !taken.contains(c));
        let mut to_private = HashMap::new();
        for c in marked {
            let private = free.next().ok_or_else(|| {
                Error::bad_input("the conversation holds all private-use characters there are")
            })?;
            to_private.insert(c, private);
        }
        let from_private = to_private.iter().map(|(c, private)| (*private, *c)).collect();
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let words = source.split(|c| !is_word(c)).filter(|word| !inner_words.contains(word));
        Ok(Self { to_private, from_private, extent, words: words.map(str::to_owned).collect() })
    }

    /// Marks everything in `variables` that people may have written.
    pub(super) fn mark(
        &self,
        variables: &mut Map<String, Value>,
        special_tokens: &Map<String, Value>,
    ) {
        for (name, value) in variables.iter_mut() {
            if !special_tokens.contains_key(name) {
                self.value(value);
            }
        }
        if self.extent == Extent::EdgesButReasoning {
            self.restore_reasoning(variables);
        }
    }

    fn value(&self, value: &mut Value) {
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
            Value::String(text) => *text = self.text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.value(item)),
            Value::Object(fields) => {
                let named = std::mem::take(fields).into_iter().map(|(name, mut value)| {
                    // A role is one of a few words; a type is a word that the template asks for.
                    let known = value.as_str().is_some_and(|word| match name.as_str() {
                        "role" => ROLES.contains(&word),
                        "type" => self.words.contains(word),
                        _ => false,
                    });
                    if !known {
                        self.value(&mut value);
                    }
                    (if self.words.contains(&name) { name } else { self.text(&name) }, value)
                });
                *fields = named.collect();
            }
        }
    }

    fn text(&self, text: &str) -> String {
        text.chars().map(|c| self.to_private.get(&c).copied().unwrap_or(c)).collect()
    }

    /// Takes the marks off the reasoning tags in the model's own answers.
    fn restore_reasoning(&self, variables: &mut Map<String, Value>) {
        let messages = variables.get_mut("messages").and_then(Value::as_array_mut);
        for message in messages.into_iter().flatten().filter(|m| m["role"] == "assistant") {
            if let Some(Value::String(content)) = message.get_mut("content") {
                for tag in REASONING_TAGS {
                    *content = content.replace(&self.text(tag), tag);
                }
            }
        }
    }

    /// Takes the marks off a rendered prompt.
    pub(super) fn read(&self, rendered: &str) -> Marked {
        let mut marked =
            Marked { text: String::with_capacity(rendered.len()), content: Vec::new() };
        let mut rest = rendered;
        while let Some(c) = rest.chars().next() {
            let (original, length) = match self.from_private.get(&c) {
                Some(original) => (Some(*original), c.len_utf8()),
                None => self.escaped(rest),
            };
            let start = marked.text.len();
            match original {
                Some(original) => {
                    marked.text.push(original);
                    marked.note(start);
                }
                None => marked.text.push_str(&rest[..length]),
            }
            rest = &rest[length..];
        }
        marked
    }

    /// The original of a private-use character that stands at the start of `rest` as an escape of JSON
    /// (`\ue000`), and the length of what was read.
    fn escaped(&self, rest: &str) -> (Option<char>, usize) {
        let plain = rest.chars().next().map_or(0, char::len_utf8);
        let code = rest.strip_prefix("\\u").and_then(|hex| hex.get(..4));
        let private = code.and_then(|hex| char::from_u32(u32::from_str_radix(hex, 16).ok()?));
        match private.and_then(|private| self.from_private.get(&private)) {
            Some(original) => (Some(*original), 6),
            None => (None, plain),
        }
    }
}

impl Marked {
    /// Notes that the text from `start` on is content; spaces between two contents are content, too.
    fn note(&mut self, start: usize) {
        let end = self.text.len();
        match self.content.last_mut() {
            Some(last) if self.text[last.end..start].chars().all(char::is_whitespace) => {
                last.end = end
            }
            _ => self.content.push(start..end),
        }
    }
}

/// Whether `c` may be exchanged: not if templates and JSON treat it in a way of its own.
fn can_be_marked(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '\'' | '\\')
}

fn is_private(c: char) -> bool {
    matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{10ffff}')
}

/// Calls `each` with every text and every name in `value`.
fn each_text(value: &Value, each: &mut impl FnMut(&str)) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
        Value::String(text) => each(text),
        Value::Array(items) => items.iter().for_each(|item| each_text(item, each)),
        Value::Object(fields) => {
            for (name, value) in fields {
                each(name);
                each_text(value, each);
            }
        }
    }
}
