//! The normaliser of a `tokenizer.json`: what happens to text before it is cut into words.
//!
//! Replacements are done here, with patterns that take linear time and a limit on what comes out;
//! everything else is the `tokenizers` crate.

use std::sync::Arc;

use serde_json::Value;
use tokenizers::pattern::Pattern as _;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

use super::super::charsmap::Charsmap;
use super::super::split::Splitter;
use super::super::{MAX_TEXT, base64};
use crate::error::{Error, Result};

/// How much longer than the longest text its normalised form may be.
const MAX_GROWTH: usize = 4;

/// The steps of a normaliser, in order.
#[derive(Clone, Default)]
pub(super) struct Changes(Vec<Step>);

#[derive(Clone)]
enum Step {
    /// Replaces each place of a text.
    ReplaceText(String, String),
    /// Replaces each match of a pattern.
    ReplaceMatch(Arc<Splitter>, String),
    /// A step as the crate does it.
    Other(NormalizerWrapper),
}

impl Normalizer for Changes {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        self.0.iter().try_for_each(|step| match step {
            Step::ReplaceText(from, to) => {
                let n = from.as_str().find_matches(text.get())?.iter().filter(|m| m.1).count();
                check_growth(text.len(), n, to)?;
                text.replace(from.as_str(), to)
            }
            Step::ReplaceMatch(pattern, to) => {
                let mut n = 0;
                pattern.split(text.get(), |_, found| n += usize::from(found))?;
                check_growth(text.len(), n, to)?;
                text.replace(&**pattern, to)
            }
            Step::Other(step) => step.normalize(text),
        })
    }
}

/// Refuses `n` replacements in a text of `len` bytes if they make it far too long.
fn check_growth(len: usize, n: usize, to: &str) -> Result<()> {
    if n.saturating_mul(to.len()).saturating_add(len) <= MAX_GROWTH * MAX_TEXT {
        return Ok(());
    }
    Err(Error::bad_model(format!(
        "the normaliser puts {} bytes into {n} places, expected a text of at most {} MiB",
        to.len(),
        (MAX_GROWTH * MAX_TEXT) >> 20
    )))
}

impl Changes {
    /// Reads the key `normalizer`.
    ///
    /// # Errors
    ///
    /// If a step is unknown or broken.
    pub(super) fn read(value: &Value) -> Result<Self> {
        let mut changes = Self::default();
        changes.add(value).map_err(|e| e.at("key `normalizer`"))?;
        Ok(changes)
    }

    fn add(&mut self, value: &Value) -> Result<()> {
        match value["type"].as_str() {
            Some("Sequence") => {
                let list = value["normalizers"].as_array().ok_or_else(|| {
                    Error::bad_model("a sequence of normalisers has no `normalizers`")
                })?;
                return list.iter().try_for_each(|step| self.add(step));
            }
            Some("Replace") => {
                self.0.push(replace(value)?);
                return Ok(());
            }
            Some("Precompiled") => check_charsmap(value)?,
            Some(_) | None => {}
        }
        let step = serde_json::from_value(value.clone())
            .map_err(|e| Error::not_supported(format!("the normaliser is not usable: {e}")))?;
        self.0.push(Step::Other(step));
        Ok(())
    }
}

fn replace(value: &Value) -> Result<Step> {
    let pattern = &value["pattern"];
    match (pattern["String"].as_str(), pattern["Regex"].as_str(), value["content"].as_str()) {
        (Some(from), None, Some(to)) if !from.is_empty() => {
            Ok(Step::ReplaceText(from.to_owned(), to.to_owned()))
        }
        (None, Some(from), Some(to)) => {
            Ok(Step::ReplaceMatch(Arc::new(Splitter::new(from)?), to.to_owned()))
        }
        _ => Err(Error::bad_model("the step `Replace` needs `pattern` and `content`")),
    }
}

/// Checks the table of a step `Precompiled`, which the crate takes as it is.
fn check_charsmap(value: &Value) -> Result<()> {
    let table = value["precompiled_charsmap"].as_str().and_then(base64::decode);
    let table = table.ok_or_else(|| {
        Error::bad_model("the key `precompiled_charsmap` is missing or is not base64")
    })?;
    Charsmap::read(&table).map(|_| ())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn apply(value: &Value, text: &str) -> Result<String> {
        let mut text = NormalizedString::from(text);
        let changed = Changes::read(value)?.normalize(&mut text);
        changed.map(|()| text.get().to_owned()).map_err(|e| *e.downcast::<Error>().unwrap())
    }

    #[test]
    fn replacements_are_those_of_the_crate() {
        let steps = json!({"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            {"type": "Replace", "pattern": {"String": "."}, "content": "…"},
            {"type": "Lowercase"},
            {"type": "Replace", "pattern": {"Regex": "É|é+"}, "content": ""}]});
        let of_crate: NormalizerWrapper = serde_json::from_value(steps.clone()).unwrap();
        for text in ["", "ÉTÉ  a.b   c.", "ééé..  ", "x"] {
            let mut expected = NormalizedString::from(text);
            of_crate.normalize(&mut expected).unwrap();
            assert_eq!(apply(&steps, text).unwrap(), expected.get(), "{text}");
        }
    }

    #[test]
    fn what_would_fill_the_memory_is_refused() {
        for pattern in [json!({"Regex": "a"}), json!({"String": "a"})] {
            let step =
                json!({"type": "Replace", "pattern": pattern, "content": "b".repeat(1 << 20)});
            assert_eq!(apply(&step, "ca").unwrap().len(), (1 << 20) + 1);
            let e = apply(&step, &"a".repeat(1 << 10)).unwrap_err().to_string();
            assert!(e.contains("1048576 bytes into 1024 places"), "{e}");
        }
    }
}
