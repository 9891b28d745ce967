//! The parameters of sampling: one set of names for the command line, the library and HTTP.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::GenerationDefaults;
use crate::error::{Error, Result};

/// The most entries that [`Sampling::logit_bias`] may have.
pub const MAX_LOGIT_BIAS: usize = 16_384;
/// The most entries that [`Sampling::stop`] may have.
pub const MAX_STOP: usize = 64;
/// The longest entry of [`Sampling::stop`], in bytes.
pub const MAX_STOP_BYTES: usize = 1024;
/// The largest [`Sampling::max_tokens`].
pub const MAX_TOKENS: usize = i32::MAX as usize;

/// How tokens are chosen, and when generation ends.
///
/// What is `None` comes from the model's `generation_config.json` ([`Self::or`]), or is off. The steps
/// and their order are those of Hugging Face transformers: see [`Sampler`](super::Sampler).
///
/// ```
/// # use tramontane::sample::Sampling;
/// let sampling: Sampling = serde_json::from_str(r#"{"temperature": 0.7, "seed": 42}"#).unwrap();
/// assert_eq!(sampling, Sampling { temperature: Some(0.7), seed: Some(42), ..Sampling::default() });
/// assert!(serde_json::from_str::<Sampling>(r#"{"temprature": 0.7}"#).is_err());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits: below 1 bolder choices become rarer, 0 takes the best token always. At least 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Keeps the `top_k` best tokens, and those that tie with the last of them; 0 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Keeps the fewest best tokens whose probabilities reach this sum. From 0 (the best alone) to 1 (all).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Keeps the tokens whose probability is at least this share of the best one's. From 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Keeps the tokens of the most typical surprise until their probabilities reach this sum. Above 0, up to 1 (all).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub typical_p: Option<f32>,
    /// Divides the positive and multiplies the negative logits of tokens in the context, the prompt
    /// included. From 0.01 to 100; 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// Taken once from the logit of each token that was generated. From -100 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// Taken from the logit of a token for each time it was generated. From -100 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// Added to the logits of these ids, before anything else. From -1e6 (never) to 1e6 (always).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub logit_bias: BTreeMap<u32, f32>,
    /// Where the random numbers start: the same seed gives the same choices. Any value is as good as
    /// another, 0 and 2⁶⁴ - 1 included; `None` takes one from the operating system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The most tokens to generate; 0 evaluates the prompt and generates nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Texts that end the generation where they appear.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Whether generation goes on after an end token.
    pub ignore_eos: bool,
}

impl Sampling {
    /// The best token always.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: Some(0.0), ..Self::default() }
    }

    /// These parameters, with what is not set taken from the model's `defaults`.
    ///
    /// As in transformers, a model whose defaults do not say `do_sample` is greedy, unless the caller asks
    /// for one of the things that only random choice can do. The temperature is then 1 where nobody set it.
    ///
    /// ```
    /// # use tramontane::sample::{GenerationDefaults, Sampling};
    /// let model = GenerationDefaults { do_sample: true, temperature: Some(0.7), ..Default::default() };
    /// assert_eq!(Sampling::default().or(&model).temperature, Some(0.7));
    /// assert_eq!(Sampling::greedy().or(&model).temperature, Some(0.0));
    /// let silent = GenerationDefaults::default();
    /// assert_eq!(Sampling::default().or(&silent).temperature, Some(0.0));
    /// assert_eq!(Sampling { top_p: Some(0.9), ..Default::default() }.or(&silent).temperature, Some(1.0));
    /// ```
    #[must_use]
    pub fn or(self, defaults: &GenerationDefaults) -> Self {
        let asks_for_chance = self.top_k.is_some()
            || self.top_p.is_some()
            || self.min_p.is_some()
            || self.typical_p.is_some();
        let temperature = if defaults.do_sample || asks_for_chance {
            defaults.temperature.unwrap_or(1.0)
        } else {
            0.0
        };
        let stop = if self.stop.is_empty() { defaults.stop_strings.clone() } else { self.stop };
        Self {
            stop,
            temperature: self.temperature.or(Some(temperature)),
            top_k: self.top_k.or(defaults.top_k),
            top_p: self.top_p.or(defaults.top_p),
            min_p: self.min_p.or(defaults.min_p),
            typical_p: self.typical_p.or(defaults.typical_p),
            repetition_penalty: self.repetition_penalty.or(defaults.repetition_penalty),
            max_tokens: self.max_tokens.or(defaults.max_new_tokens),
            ..self
        }
    }

    /// Checks every value against its range, for a model of `vocab` tokens.
    ///
    /// # Errors
    ///
    /// [`BadInput`](crate::ErrorKind::BadInput) for the first value out of its range; the message names it.
    pub fn validate(&self, vocab: usize) -> Result<()> {
        in_range("temperature", self.temperature, &TEMPERATURE)?;
        in_range("top_p", self.top_p, &TOP_P)?;
        in_range("min_p", self.min_p, &MIN_P)?;
        in_range("typical_p", self.typical_p, &TYPICAL_P)?;
        in_range("repetition_penalty", self.repetition_penalty, &REPETITION_PENALTY)?;
        in_range("presence_penalty", self.presence_penalty, &PENALTY)?;
        in_range("frequency_penalty", self.frequency_penalty, &PENALTY)?;
        if let Some(n) = self.max_tokens.filter(|&n| n > MAX_TOKENS) {
            return Err(out_of_range("max_tokens", n, format!("at most {MAX_TOKENS}")));
        }
        self.validate_bias(vocab)?;
        self.validate_stop()
    }

    fn validate_bias(&self, vocab: usize) -> Result<()> {
        let n = self.logit_bias.len();
        if n > MAX_LOGIT_BIAS {
            return Err(Error::bad_input(format!(
                "`logit_bias` has {n} entries, expected at most {MAX_LOGIT_BIAS}"
            )));
        }
        for (&id, &bias) in &self.logit_bias {
            if id as usize >= vocab {
                return Err(Error::bad_input(format!(
                    "`logit_bias` names token {id}, but the model has {vocab} tokens"
                )));
            }
            in_range(&format!("logit_bias[{id}]"), Some(bias), &BIAS)?;
        }
        Ok(())
    }

    fn validate_stop(&self) -> Result<()> {
        if self.stop.len() > MAX_STOP {
            let n = self.stop.len();
            return Err(Error::bad_input(format!(
                "`stop` has {n} texts, expected at most {MAX_STOP}"
            )));
        }
        for (i, text) in self.stop.iter().enumerate() {
            if !(1..=MAX_STOP_BYTES).contains(&text.len()) {
                let found = format!("a text of {} bytes", text.len());
                let expected = format!("from 1 to {MAX_STOP_BYTES} bytes");
                return Err(out_of_range(&format!("stop[{i}]"), found, expected));
            }
        }
        Ok(())
    }
}

/// The values that a parameter may take: `from..=to`, or without `from` itself if `open`.
pub(super) struct Range {
    from: f32,
    to: f32,
    open: bool,
}

pub(super) const TEMPERATURE: Range = Range { from: 0.0, to: f32::MAX, open: false };
pub(super) const TOP_P: Range = Range { from: 0.0, to: 1.0, open: false };
pub(super) const MIN_P: Range = Range { from: 0.0, to: 1.0, open: false };
pub(super) const TYPICAL_P: Range = Range { from: 0.0, to: 1.0, open: true };
pub(super) const REPETITION_PENALTY: Range = Range { from: 0.01, to: 100.0, open: false };
const PENALTY: Range = Range { from: -100.0, to: 100.0, open: false };
const BIAS: Range = Range { from: -1e6, to: 1e6, open: false };

impl Range {
    pub(super) fn contains(&self, x: f32) -> bool {
        x >= self.from && x <= self.to && !(self.open && x == self.from)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, open } = *self;
        match (to == f32::MAX, open) {
            (true, _) => write!(f, "a number, at least {from}"),
            (false, true) => write!(f, "a number above {from}, at most {to}"),
            (false, false) => write!(f, "a number from {from} to {to}"),
        }
    }
}

fn in_range(name: &str, value: Option<f32>, range: &Range) -> Result<()> {
    match value {
        // A NaN is in no range.
        Some(x) if !range.contains(x) => Err(out_of_range(name, x, range)),
        Some(_) | None => Ok(()),
    }
}

fn out_of_range(name: &str, found: impl fmt::Display, expected: impl fmt::Display) -> Error {
    Error::bad_input(format!("`{name}` is {found}, expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn each_bad_value_is_named_with_its_range() {
        let d = Sampling::default;
        let f = |x: f32| Some(x);
        let bias = |id: u32, b: f32| BTreeMap::from([(id, b)]);
        let cases = [
            (
                Sampling { temperature: f(f32::NAN), ..d() },
                "`temperature` is NaN, expected a number, at least 0",
            ),
            (Sampling { temperature: f(-1.0), ..d() }, "`temperature` is -1,"),
            (Sampling { temperature: f(f32::INFINITY), ..d() }, "`temperature` is inf"),
            (Sampling { top_p: f(1.1), ..d() }, "`top_p` is 1.1, expected a number from 0 to 1"),
            (Sampling { top_p: f(-0.1), ..d() }, "`top_p`"),
            (Sampling { min_p: f(2.0), ..d() }, "`min_p` is 2,"),
            (
                Sampling { typical_p: f(0.0), ..d() },
                "`typical_p` is 0, expected a number above 0, at most 1",
            ),
            (
                Sampling { repetition_penalty: f(0.0), ..d() },
                "`repetition_penalty` is 0, expected a number from 0.01 to 100",
            ),
            (Sampling { presence_penalty: f(f32::NAN), ..d() }, "`presence_penalty` is NaN"),
            (Sampling { frequency_penalty: f(1e30), ..d() }, "`frequency_penalty`"),
            (
                Sampling { max_tokens: Some(1 << 31), ..d() },
                "`max_tokens` is 2147483648, expected at most 2147483647",
            ),
            (
                Sampling { logit_bias: bias(100, 1.0), ..d() },
                "`logit_bias` names token 100, but the model has 100 tokens",
            ),
            (Sampling { logit_bias: bias(7, f32::INFINITY), ..d() }, "`logit_bias[7]` is inf"),
            (
                Sampling { logit_bias: (0..100_000).map(|i| (i, 0.0)).collect(), ..d() },
                "100000 entries, expected at most 16384",
            ),
            (Sampling { stop: vec!["a".into(); 1000], ..d() }, "`stop` has 1000 texts"),
            (
                Sampling { stop: vec!["a".into(), String::new()], ..d() },
                "`stop[1]` is a text of 0 bytes",
            ),
            (
                Sampling { stop: vec!["a".repeat(1 << 20)], ..d() },
                "`stop[0]` is a text of 1048576 bytes",
            ),
        ];
        for (sampling, words) in cases {
            let e = sampling.validate(100).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::BadInput);
            assert!(e.to_string().contains(words), "{e} lacks: {words}");
        }
    }

    #[test]
    fn the_ends_of_the_ranges_are_allowed() {
        for temperature in [0.0, 1e-30, 1e30, f32::MAX] {
            let s = Sampling { temperature: Some(temperature), ..Sampling::default() };
            assert!(s.validate(1).is_ok(), "{temperature}");
        }
        let s = Sampling {
            top_k: Some(0),
            top_p: Some(0.0),
            min_p: Some(1.0),
            typical_p: Some(1.0),
            seed: Some(u64::MAX),
            max_tokens: Some(0),
            logit_bias: BTreeMap::from([(9, -1e6)]),
            ..Sampling::default()
        };
        assert!(s.validate(10).is_ok());
    }

    #[test]
    fn json_refuses_what_no_integer_or_number_is() {
        for bad in [
            r#"{"top_k": -1}"#,
            r#"{"max_tokens": 1.5}"#,
            r#"{"max_tokens": "5"}"#,
            r#"{"seed": -1}"#,
        ] {
            assert!(serde_json::from_str::<Sampling>(bad).is_err(), "{bad}");
        }
        let all = Sampling {
            stop: vec!["\n".into()],
            logit_bias: BTreeMap::from([(3, -2.5)]),
            ..Sampling::greedy()
        };
        let json = serde_json::to_string(&all).unwrap();
        assert_eq!(
            json,
            r#"{"temperature":0.0,"logit_bias":{"3":-2.5},"stop":["\n"],"ignore_eos":false}"#
        );
        assert_eq!(serde_json::from_str::<Sampling>(&json).unwrap(), all);
    }

    #[test]
    fn defaults_fill_only_what_is_not_set() {
        let model = GenerationDefaults {
            do_sample: true,
            temperature: Some(0.7),
            top_p: Some(0.9),
            repetition_penalty: Some(1.1),
            max_new_tokens: Some(64),
            ..GenerationDefaults::default()
        };
        let s = Sampling { top_p: Some(0.5), ..Sampling::default() }.or(&model);
        assert_eq!((s.temperature, s.top_p), (Some(0.7), Some(0.5)));
        assert_eq!((s.repetition_penalty, s.max_tokens), (Some(1.1), Some(64)));
        // Without `do_sample` the model's temperature counts only if the caller wants chance.
        let silent = GenerationDefaults { do_sample: false, ..model };
        assert_eq!(Sampling::default().or(&silent).temperature, Some(0.0));
        let chance = Sampling { min_p: Some(0.1), ..Sampling::default() };
        assert_eq!(chance.or(&silent).temperature, Some(0.7));
    }
}
