//! The pre-tokenizer of a `tokenizer.json`: how text is cut into words before it is merged.
//!
//! Steps that cut by a regular expression are done by [`Splitter`], which is linear for the patterns in
//! use and gives up with an error on others; everything else is the `tokenizers` crate.

use std::sync::Arc;

use serde_json::Value;
use tokenizers::normalizer::SplitDelimiterBehavior;
use tokenizers::pattern::{Invert, Pattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{Offsets, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

use super::super::split::Splitter;
use crate::error::{Error, Result};

/// GPT-2's pattern, which the step `ByteLevel` brings along.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The steps of a pre-tokenizer, in order.
#[derive(Clone, Default)]
pub(super) struct Steps(Vec<Step>);

#[derive(Clone)]
enum Step {
    /// Cuts by a regular expression.
    Split { splitter: Arc<Splitter>, behavior: SplitDelimiterBehavior, invert: bool },
    /// Puts a space before text that does not begin with one.
    SpaceBefore,
    /// A step as the crate does it.
    Other(PreTokenizerWrapper),
}

impl Pattern for &Splitter {
    fn find_matches(&self, text: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        let mut found = Vec::new();
        self.split(text, |range, is_match| found.push(((range.start, range.end), is_match)))?;
        Ok(found)
    }
}

impl PreTokenizer for Steps {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        self.0.iter().try_for_each(|step| match step {
            Step::Split { splitter, behavior, invert: false } => {
                text.split(|_, part| part.split(&**splitter, *behavior))
            }
            Step::Split { splitter, behavior, invert: true } => {
                text.split(|_, part| part.split(Invert(&**splitter), *behavior))
            }
            Step::SpaceBefore => text.split(|_, mut part| {
                if !part.get().starts_with(' ') {
                    part.prepend(" ");
                }
                Ok([part])
            }),
            Step::Other(step) => step.pre_tokenize(text),
        })
    }
}

impl Steps {
    /// Reads the key `pre_tokenizer`.
    ///
    /// # Errors
    ///
    /// If a step is unknown or broken.
    pub(super) fn read(value: &Value) -> Result<Self> {
        let mut steps = Self::default();
        steps.add(value).map_err(|e| e.at("key `pre_tokenizer`"))?;
        Ok(steps)
    }

    fn add(&mut self, value: &Value) -> Result<()> {
        let flag = |key: &str| value[key].as_bool();
        match value["type"].as_str() {
            Some("Sequence") => {
                let Some(list) = value["pretokenizers"].as_array() else {
                    return Err(Error::bad_model("a sequence of steps has no `pretokenizers`"));
                };
                list.iter().try_for_each(|step| self.add(step))?;
            }
            Some("Split") if value["pattern"]["Regex"].is_string() => self.0.push(split(value)?),
            Some("ByteLevel") => {
                if flag("add_prefix_space").unwrap_or(false) {
                    self.0.push(Step::SpaceBefore);
                }
                if flag("use_regex").unwrap_or(true) {
                    self.0.push(Step::Split {
                        splitter: Arc::new(Splitter::new(GPT2)?),
                        behavior: SplitDelimiterBehavior::Isolated,
                        invert: false,
                    });
                }
                let bytes = ByteLevel::new(false, false, false);
                self.0.push(Step::Other(PreTokenizerWrapper::ByteLevel(bytes)));
            }
            Some("FixedLength") if value["length"] == 0 => {
                return Err(Error::bad_model("the step `FixedLength` has the length 0"));
            }
            kind => {
                let step = serde_json::from_value(value.clone()).map_err(|e| {
                    let kind = kind.unwrap_or("without a type");
                    Error::not_supported(format!("the step `{kind}` is not usable: {e}"))
                })?;
                self.0.push(Step::Other(step));
            }
        }
        Ok(())
    }

    /// The steps for text that follows a control token, if they differ: a space that is put before the
    /// first word only must not be put before this one.
    pub(super) fn after_marker(&self) -> Option<Self> {
        let mut steps = self.clone();
        let mut differ = false;
        for step in &mut steps.0 {
            if let Step::Other(PreTokenizerWrapper::Metaspace(space)) = step
                && space.prepend_scheme == PrependScheme::First
            {
                space.prepend_scheme = PrependScheme::Never;
                differ = true;
            }
        }
        differ.then_some(steps)
    }
}

fn split(value: &Value) -> Result<Step> {
    let pattern = value["pattern"]["Regex"].as_str().unwrap_or_default();
    let behavior = serde_json::from_value(value["behavior"].clone())
        .map_err(|e| Error::bad_model(format!("the key `behavior` of a step: {e}")))?;
    let Some(invert) = value["invert"].as_bool() else {
        return Err(Error::bad_model("the key `invert` of a step is not true or false"));
    };
    Ok(Step::Split { splitter: Arc::new(Splitter::new(pattern)?), behavior, invert })
}
