//! Reading `config.json` (Hugging Face) and `params.json` (Mistral) strictly.
//!
//! Every read is typed and bounded, and remembered. [`Config::finish`] then goes through the keys that nobody read:
//! those known to be harmless pass, those that may change numbers are errors, the rest are warnings. So no
//! feature of a model is ever dropped in silence.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};

use crate::json;

mod keys;

use keys::{HARMLESS, NATIVE_KEYS, NUMERIC_WORDS};

/// A configuration that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    what: String,
    unsupported: bool,
}

impl ConfigError {
    /// A value that is missing, of the wrong type or out of range.
    pub fn bad(what: impl Into<String>) -> Self {
        Self { what: what.into(), unsupported: false }
    }

    /// A value that is well formed but asks for something that is not implemented.
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self { what: what.into(), unsupported: true }
    }

    /// Whether the configuration asks for something that is not implemented.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        self.unsupported
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for ConfigError {}

/// The largest count that a configuration may hold: far above any model, far below any overflow.
const MAX_COUNT: u64 = 1 << 31;

/// A JSON object of a configuration, and which of its keys were read.
#[derive(Debug)]
pub struct Config {
    map: Map<String, Value>,
    /// Where this object stands within its parent, such as `rope_scaling.`.
    path: String,
    native: bool,
    read: RefCell<BTreeSet<String>>,
    warnings: RefCell<Vec<String>>,
}

impl Config {
    /// Reads the text of a `config.json`. A bare `Infinity` or `NaN`, which Python writes, is accepted.
    ///
    /// # Errors
    ///
    /// If the text is not a JSON object.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        Self::object(text, false)
    }

    /// Reads the text of Mistral's `params.json`.
    ///
    /// # Errors
    ///
    /// If the text is not a JSON object.
    pub fn parse_native(text: &str) -> Result<Self, ConfigError> {
        Self::object(text, true)
    }

    fn object(text: &str, native: bool) -> Result<Self, ConfigError> {
        if text.trim().is_empty() {
            return Err(ConfigError::bad("the configuration is empty, expected a JSON object"));
        }
        let value = json::parse(&json::quote_bare_floats(text))
            .map_err(|e| ConfigError::bad(format!("the configuration is not JSON: {e}")))?;
        let Value::Object(map) = value else {
            return Err(ConfigError::bad(format!(
                "the configuration is {}, expected a JSON object",
                kind(&value)
            )));
        };
        Ok(Self::from_map(map, String::new(), native))
    }

    fn from_map(map: Map<String, Value>, path: String, native: bool) -> Self {
        Self { map, path, native, read: RefCell::default(), warnings: RefCell::default() }
    }

    /// Whether this is Mistral's own `params.json`.
    #[must_use]
    pub fn is_native(&self) -> bool {
        self.native
    }

    /// The name of the architecture: the first of `architectures`.
    ///
    /// A `params.json` has no such key; its keys tell the family.
    ///
    /// # Errors
    ///
    /// If the key is missing, empty or not a list of names.
    pub fn architecture(&self) -> Result<String, ConfigError> {
        if self.native {
            return Ok(self.native_architecture().to_owned());
        }
        let known = || crate::FAMILIES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        match self.value("architectures") {
            Some(Value::Array(names)) => match names.first() {
                Some(Value::String(name)) => Ok(name.clone()),
                Some(other) => Err(self.wrong("architectures", other, "a list of names")),
                None => Err(ConfigError::bad(format!(
                    "`architectures` is empty, expected one of: {}",
                    known()
                ))),
            },
            None => Err(ConfigError::bad(format!(
                "`architectures` is missing, expected one of: {}",
                known()
            ))),
            Some(other) => Err(self.wrong("architectures", other, "a list of names")),
        }
    }

    /// The family that the keys of a `params.json` show.
    fn native_architecture(&self) -> &'static str {
        let has = |key: &str| self.map.get(key).is_some_and(|value| !is_neutral(value));
        if self.map.get("model_type").is_some_and(|kind| kind == "mamba") {
            "Mamba2ForCausalLM"
        } else if has("qk_nope_head_dim") {
            "Mistral4ForCausalLM"
        } else if has("moe") {
            "MixtralForCausalLM"
        } else if has("yarn") || has("llama_4_scaling") {
            "Ministral3ForCausalLM"
        } else {
            "MistralForCausalLM"
        }
    }

    /// The value of `key`, marked as read; `None` if missing or null.
    pub fn value(&self, key: &str) -> Option<&Value> {
        let key = self.file_key(key);
        self.read.borrow_mut().insert(key.to_owned());
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether `key` is there and not null.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// A required positive count.
    ///
    /// # Errors
    ///
    /// If missing, not a whole number, or outside `1..=2^31`.
    pub fn count(&self, key: &str) -> Result<usize, ConfigError> {
        self.maybe_count(key)?.ok_or_else(|| self.missing(key, "a positive whole number"))
    }

    /// A positive count, or `None` if missing or null.
    ///
    /// # Errors
    ///
    /// If not a whole number, or outside `1..=2^31`.
    pub fn maybe_count(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (1..=MAX_COUNT).contains(&n) => Ok(Some(n as usize)),
            Some(n) => Err(ConfigError::bad(format!(
                "{} is {n}, expected 1 to {MAX_COUNT}",
                self.name(key)
            ))),
            None => Err(self.wrong(key, value, "a positive whole number")),
        }
    }

    /// A required finite number above zero.
    ///
    /// # Errors
    ///
    /// If missing, not a number, or not above zero.
    pub fn positive(&self, key: &str) -> Result<f64, ConfigError> {
        self.maybe_positive(key)?.ok_or_else(|| self.missing(key, "a number above 0"))
    }

    /// A finite number above zero, or `None` if missing or null.
    ///
    /// # Errors
    ///
    /// If not a number, or not above zero.
    pub fn maybe_positive(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        match self.maybe_number(key)? {
            Some(x) if x <= 0.0 => Err(ConfigError::bad(format!(
                "{} is {x}, expected a number above 0",
                self.name(key)
            ))),
            other => Ok(other),
        }
    }

    /// A finite number, or `None` if missing or null.
    ///
    /// # Errors
    ///
    /// If not a finite number.
    pub fn maybe_number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() => Ok(Some(x)),
            _ => Err(self.wrong(key, value, "a finite number")),
        }
    }

    /// A truth value, or `default` if missing or null.
    ///
    /// # Errors
    ///
    /// If not `true` or `false`.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.value(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    /// A text, or `None` if missing or null.
    ///
    /// # Errors
    ///
    /// If not a text.
    pub fn maybe_text(&self, key: &str) -> Result<Option<&str>, ConfigError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.wrong(key, other, "a text")),
        }
    }

    /// A list of texts, or `None` if missing or null.
    ///
    /// # Errors
    ///
    /// If not a list of texts.
    pub fn maybe_texts(&self, key: &str) -> Result<Option<Vec<&str>>, ConfigError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let list = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        list.map(Some).ok_or_else(|| self.wrong(key, value, "a list of texts"))
    }

    /// One id or a list of ids below `vocab`; empty if missing or null.
    ///
    /// # Errors
    ///
    /// If not such ids.
    pub fn ids(&self, key: &str, vocab: usize) -> Result<Vec<u32>, ConfigError> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let one = std::slice::from_ref(value);
        let list = value.as_array().map_or(one, Vec::as_slice);
        let id = |v: &Value| match v.as_u64() {
            Some(id) if id < vocab as u64 => Ok(id as u32),
            Some(id) => Err(ConfigError::bad(format!(
                "{} is {id}, expected an id below the vocabulary's size {vocab}",
                self.name(key)
            ))),
            None => Err(self.wrong(key, v, "a token id")),
        };
        list.iter().map(id).collect()
    }

    /// An object within this one, or `None` if missing or null. Its unread keys are checked when
    /// [`Config::finish`] of that object is called.
    ///
    /// # Errors
    ///
    /// If not an object.
    pub fn section(&self, key: &str) -> Result<Option<Config>, ConfigError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Self::from_map(map.clone(), format!("{}{key}.", self.path), self.native)))
            }
            Some(other) => Err(self.wrong(key, other, "an object")),
        }
    }

    /// Marks `keys` as understood, whatever their values: they do not matter for this family.
    pub fn ignore(&self, keys: &[&str]) {
        self.read.borrow_mut().extend(keys.iter().map(|k| (*k).to_owned()));
    }

    /// Refuses every value of `key` but null and the listed ones.
    ///
    /// # Errors
    ///
    /// If the key has another value.
    pub fn only(&self, key: &str, allowed: &[Value]) -> Result<(), ConfigError> {
        match self.value(key) {
            Some(value) if !allowed.contains(value) => {
                let list: Vec<String> = allowed.iter().map(Value::to_string).collect();
                Err(ConfigError::unsupported(format!(
                    "{} is {}, which is not implemented (only {})",
                    self.name(key),
                    shorten(value),
                    list.join(", ")
                )))
            }
            _ => Ok(()),
        }
    }

    /// Adds a warning to those that [`Config::finish`] returns.
    pub fn warn(&self, warning: impl Into<String>) {
        self.warnings.borrow_mut().push(warning.into());
    }

    /// How an error names `key`: with its path, as the file spells it.
    #[must_use]
    pub fn name(&self, key: &str) -> String {
        format!("`{}{}`", self.path, self.file_key(key))
    }

    /// Checks the keys that nobody read, and returns the warnings.
    ///
    /// # Errors
    ///
    /// If one of them may change numbers and has a value that is neither null, false nor empty.
    pub fn finish(&self) -> Result<Vec<String>, ConfigError> {
        let read = self.read.borrow();
        let mut warnings = self.warnings.borrow().clone();
        let is_model = self.path.is_empty() || self.path == "text_config.";
        for (key, value) in &self.map {
            if read.contains(key)
                || is_neutral(value)
                || (is_model && HARMLESS.contains(&key.as_str()))
            {
                continue;
            }
            let lower = key.to_lowercase();
            if NUMERIC_WORDS.iter().any(|word| lower.contains(word)) {
                return Err(ConfigError::unsupported(format!(
                    "`{}{key}` is {}, which this family does not implement: the model would compute something else",
                    self.path,
                    shorten(value)
                )));
            }
            warnings
                .push(format!("unknown key `{}{key}` in the configuration is ignored", self.path));
        }
        Ok(warnings)
    }

    fn file_key<'a>(&self, key: &'a str) -> &'a str {
        let native = NATIVE_KEYS.iter().find(|(hf, _)| self.native && *hf == key);
        match native {
            // Newer files spell some keys as Hugging Face does.
            Some((hf, native)) if self.map.contains_key(*native) || !self.map.contains_key(*hf) => {
                native
            }
            Some(_) | None => key,
        }
    }

    fn missing(&self, key: &str, expected: &str) -> ConfigError {
        ConfigError::bad(format!("{} is missing, expected {expected}", self.name(key)))
    }

    fn wrong(&self, key: &str, found: &Value, expected: &str) -> ConfigError {
        ConfigError::bad(format!("{} is {}, expected {expected}", self.name(key), shorten(found)))
    }
}

/// Null, false, and empty lists and objects switch nothing on.
fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => false,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A value as an error shows it: whole if short.
fn shorten(value: &Value) -> String {
    let text = value.to_string();
    if text.len() <= 60 { text } else { kind(value).to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text).unwrap()
    }

    #[test]
    fn counts_are_strict() {
        for bad in ["0", "-1", "1e18", "\"64\"", "64.5", "[64]"] {
            let error =
                config(&format!("{{\"hidden_size\": {bad}}}")).count("hidden_size").unwrap_err();
            assert!(error.to_string().contains("`hidden_size` is "), "{bad}: {error}");
        }
        assert!(
            config("{\"hidden_size\": null}")
                .count("hidden_size")
                .unwrap_err()
                .to_string()
                .contains("missing")
        );
        assert_eq!(config("{\"hidden_size\": 64}").count("hidden_size"), Ok(64));
    }

    #[test]
    fn unread_keys_that_change_numbers_are_refused_by_name() {
        let error = config(r#"{"attn_logit_softcapping": 50.0}"#).finish().unwrap_err();
        assert!(error.is_unsupported() && error.to_string().contains("`attn_logit_softcapping`"));
        assert_eq!(
            config(r#"{"attn_logit_softcapping": null, "qk_norm": false}"#).finish(),
            Ok(vec![])
        );
        assert_eq!(config(r#"{"use_magic": true}"#).finish().unwrap().len(), 1);
    }

    #[test]
    fn native_errors_name_the_native_key() {
        let error = Config::parse_native("{}").unwrap().count("hidden_size").unwrap_err();
        assert!(error.to_string().contains("`dim`"), "{error}");
    }

    #[test]
    fn bare_infinity_parses_and_texts_keep_it() {
        let c = config(r#"{"a": [0.0, Infinity], "b": "Infinity \" NaN", "c": -Infinity}"#);
        assert_eq!(c.value("a").unwrap().to_string(), "[0.0,\"Infinity\"]");
        assert_eq!(c.maybe_text("b"), Ok(Some("Infinity \" NaN")));
    }

    #[test]
    fn not_an_object_is_said_so() {
        for (text, word) in
            [("", "empty"), ("[1]", "a list"), ("{", "not JSON"), ("{\"a\": 1,}", "not JSON")]
        {
            let error = Config::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
