//! `generation_config.json`: how the authors of a model want it sampled.

use serde_json::{Map, Value};
use tramontane_models::json;

use super::params::{MIN_P, REPETITION_PENALTY, Range, TEMPERATURE, TOP_P, TYPICAL_P};
use crate::error::{Error, Result};
use crate::files::{MAX_CONFIG, ModelFiles};

/// The file's name.
const FILE: &str = "generation_config.json";

/// What `generation_config.json` says; all unset for a model without this file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Whether tokens are drawn at random; else the best one is taken.
    pub do_sample: bool,
    /// See [`Sampling::temperature`](super::Sampling::temperature).
    pub temperature: Option<f32>,
    /// See [`Sampling::top_k`](super::Sampling::top_k).
    pub top_k: Option<usize>,
    /// See [`Sampling::top_p`](super::Sampling::top_p).
    pub top_p: Option<f32>,
    /// See [`Sampling::min_p`](super::Sampling::min_p).
    pub min_p: Option<f32>,
    /// See [`Sampling::typical_p`](super::Sampling::typical_p).
    pub typical_p: Option<f32>,
    /// See [`Sampling::repetition_penalty`](super::Sampling::repetition_penalty).
    pub repetition_penalty: Option<f32>,
    /// See [`Sampling::max_tokens`](super::Sampling::max_tokens).
    pub max_new_tokens: Option<usize>,
    /// See [`Sampling::stop`](super::Sampling::stop).
    pub stop_strings: Vec<String>,
    /// The token that begins a text, if the file names one.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a generation; `config.json` and the chat template may add others.
    pub eos_token_ids: Vec<u32>,
    /// Settings of the file that ask for something this version does not do, as `key value`: the text will
    /// differ from what the authors intended, and the reader should be told.
    pub not_done: Vec<String>,
}

impl GenerationDefaults {
    /// Reads the file among `files`; a model may have none.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, and as [`Self::parse`].
    pub fn read(files: &ModelFiles) -> Result<Self> {
        match files.read_text(FILE, MAX_CONFIG)? {
            Some(text) => Self::parse(&text).map_err(|e| e.at(files.place(FILE))),
            None => Ok(Self::default()),
        }
    }

    /// Reads the text of a `generation_config.json`.
    ///
    /// ```
    /// # use tramontane::sample::GenerationDefaults;
    /// let d = GenerationDefaults::parse(r#"{"do_sample": true, "top_p": 0.9, "eos_token_id": [2, 32000]}"#)?;
    /// assert_eq!((d.top_p, d.eos_token_ids), (Some(0.9), vec![2, 32000]));
    /// # Ok::<(), tramontane::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`BadModel`](crate::ErrorKind::BadModel), naming the key, if the text is no JSON object or a value
    /// is out of its range.
    pub fn parse(text: &str) -> Result<Self> {
        let keys = json::parse(text).and_then(serde_json::from_value::<Map<String, Value>>);
        let keys = keys.map_err(|e| {
            Error::bad_model(format!("found no valid JSON object: {e}"))
                .hint("fetch the file again, or delete it: it only holds defaults")
                .caused_by(e)
        })?;
        let number = |key, range| number(&keys, key, range);
        Ok(Self {
            do_sample: flag(&keys, "do_sample")?,
            temperature: number("temperature", &TEMPERATURE)?,
            top_k: count(&keys, "top_k")?,
            top_p: number("top_p", &TOP_P)?,
            min_p: number("min_p", &MIN_P)?,
            typical_p: number("typical_p", &TYPICAL_P)?,
            repetition_penalty: number("repetition_penalty", &REPETITION_PENALTY)?,
            max_new_tokens: count(&keys, "max_new_tokens")?,
            stop_strings: texts(&keys, "stop_strings")?,
            bos_token_id: ids(&keys, "bos_token_id")?.first().copied(),
            eos_token_ids: ids(&keys, "eos_token_id")?,
            not_done: not_done(&keys),
        })
    }
}

/// The value of `key`; a JSON null says nothing.
fn get<'a>(keys: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    keys.get(key).filter(|v| !v.is_null())
}

fn bad(key: &str, found: &Value, expected: impl std::fmt::Display) -> Error {
    Error::bad_model(format!("`{key}` is {found}, expected {expected}"))
}

fn flag(keys: &Map<String, Value>, key: &str) -> Result<bool> {
    match get(keys, key) {
        Some(v) => v.as_bool().ok_or_else(|| bad(key, v, "true or false")),
        None => Ok(false),
    }
}

fn number(keys: &Map<String, Value>, key: &str, range: &Range) -> Result<Option<f32>> {
    let Some(value) = get(keys, key) else { return Ok(None) };
    let x = value.as_f64().map(|x| x as f32).filter(|&x| range.contains(x));
    x.map(Some).ok_or_else(|| bad(key, value, range))
}

fn count(keys: &Map<String, Value>, key: &str) -> Result<Option<usize>> {
    let Some(value) = get(keys, key) else { return Ok(None) };
    let n =
        value.as_u64().and_then(|n| i32::try_from(n).ok()).and_then(|n| usize::try_from(n).ok());
    n.map(Some).ok_or_else(|| bad(key, value, "an integer, at least 0"))
}

/// One id, or a list of them.
fn ids(keys: &Map<String, Value>, key: &str) -> Result<Vec<u32>> {
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    one_or_more(keys, key, id, "a token id or a list of token ids")
}

/// One text, or a list of them.
fn texts(keys: &Map<String, Value>, key: &str) -> Result<Vec<String>> {
    one_or_more(keys, key, |v| v.as_str().map(str::to_owned), "a text or a list of texts")
}

fn one_or_more<T>(
    keys: &Map<String, Value>,
    key: &str,
    read: impl Fn(&Value) -> Option<T>,
    expected: &str,
) -> Result<Vec<T>> {
    let Some(value) = get(keys, key) else { return Ok(Vec::new()) };
    let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let items: Option<Vec<T>> = list.iter().map(read).collect();
    items.ok_or_else(|| bad(key, value, expected))
}

/// Keys of transformers that change which tokens come out and that this version does not do, each with
/// the value at which it does nothing.
const NOT_DONE: &[(&str, Idle)] = &[
    ("bad_words_ids", Idle::Absent),
    ("begin_suppress_tokens", Idle::Absent),
    ("constraints", Idle::Absent),
    ("diversity_penalty", Idle::At(0.0)),
    ("dola_layers", Idle::Absent),
    ("encoder_repetition_penalty", Idle::At(1.0)),
    ("epsilon_cutoff", Idle::At(0.0)),
    ("eta_cutoff", Idle::At(0.0)),
    ("exponential_decay_length_penalty", Idle::Absent),
    ("force_words_ids", Idle::Absent),
    ("forced_bos_token_id", Idle::Absent),
    ("forced_eos_token_id", Idle::Absent),
    ("guidance_scale", Idle::At(1.0)),
    ("min_length", Idle::At(0.0)),
    ("min_new_tokens", Idle::At(0.0)),
    ("no_repeat_ngram_size", Idle::At(0.0)),
    ("num_beams", Idle::At(1.0)),
    ("penalty_alpha", Idle::At(0.0)),
    ("sequence_bias", Idle::Absent),
    ("suppress_tokens", Idle::Absent),
    ("top_h", Idle::Absent),
    ("watermarking_config", Idle::Absent),
];

/// When a setting does nothing; a null or an empty list never does anything.
enum Idle {
    /// Only then.
    Absent,
    /// At this number too.
    At(f64),
}

impl Idle {
    fn holds_for(&self, value: &Value) -> bool {
        let empty = value.as_array().is_some_and(Vec::is_empty);
        match self {
            Self::Absent => empty,
            Self::At(x) => empty || value.as_f64() == Some(*x),
        }
    }
}

fn not_done(keys: &Map<String, Value>) -> Vec<String> {
    let active = |(key, idle): &(&str, Idle)| {
        get(keys, key).filter(|v| !idle.holds_for(v)).map(|v| format!("{key} {v}"))
    };
    NOT_DONE.iter().filter_map(active).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_usual_file_is_read() {
        let text = r#"{"_from_model_config": true, "bos_token_id": 1, "do_sample": true, "eos_token_id": 2, "pad_token_id": 0,
            "temperature": 0.6, "max_length": 4096, "top_k": 50, "top_p": null, "transformers_version": "4.31.0.dev0"}"#;
        let expected = GenerationDefaults {
            do_sample: true,
            temperature: Some(0.6),
            top_k: Some(50),
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
            ..GenerationDefaults::default()
        };
        assert_eq!(GenerationDefaults::parse(text).unwrap(), expected);
        assert_eq!(GenerationDefaults::parse("{}").unwrap(), GenerationDefaults::default());
    }

    #[test]
    fn bad_values_are_errors_that_name_the_key() {
        let cases = [
            (r#"{"temperature": -1}"#, "`temperature` is -1, expected a number, at least 0"),
            (r#"{"temperature": true}"#, "`temperature` is true"),
            (r#"{"top_p": 2}"#, "`top_p` is 2, expected a number from 0 to 1"),
            (r#"{"top_k": -1}"#, "`top_k` is -1, expected an integer, at least 0"),
            (r#"{"top_k": 1.5}"#, "`top_k` is 1.5"),
            (r#"{"do_sample": "yes"}"#, "`do_sample` is \"yes\", expected true or false"),
            (r#"{"repetition_penalty": 0}"#, "`repetition_penalty` is 0"),
            (r#"{"eos_token_id": -2}"#, "`eos_token_id` is -2, expected a token id"),
            (r#"{"eos_token_id": [2, "</s>"]}"#, "`eos_token_id` is [2,\"</s>\"]"),
            (r#"{"eos_token_id": 4294967296}"#, "`eos_token_id` is 4294967296"),
            (r#"{"temperature": NaN}"#, "found no valid JSON object"),
            ("[]", "found no valid JSON object"),
            ("", "found no valid JSON object"),
        ];
        for (text, words) in cases {
            let e = GenerationDefaults::parse(text).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::BadModel, "{text}");
            assert!(e.to_string().contains(words), "{text}: {e}");
        }
    }

    #[test]
    fn what_is_not_done_is_told() {
        let text = r#"{"num_beams": 1, "no_repeat_ngram_size": 3, "suppress_tokens": [], "guidance_scale": null,
            "begin_suppress_tokens": [5]}"#;
        let d = GenerationDefaults::parse(text).unwrap();
        assert_eq!(d.not_done, ["begin_suppress_tokens [5]", "no_repeat_ngram_size 3"]);
    }

    #[cfg(feature = "embedded")]
    #[test]
    fn the_built_in_model_has_defaults() {
        let d = GenerationDefaults::read(&ModelFiles::BuiltIn).unwrap();
        assert!(d.do_sample && d.eos_token_ids == [2]);
    }
}
