//! What a request may ask of a model of version 15: how much it reasons before it answers.
//!
//! The tokenizer's own file says which values there are, and which one is taken where none is asked for.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::refusal;
use crate::chat::json;
use crate::error::{Error, Result};
use crate::files::{MAX_TOKENIZER, ModelFiles};

/// The values that mistral-common knows.
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
/// How requests call it.
const KEY: &str = "reasoning_effort";

/// The values of `reasoning_effort`: bit `i` of `allowed` stands for `EFFORTS[i]`. The default knows none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::chat) struct Settings {
    allowed: u8,
    default: usize,
}

#[derive(Deserialize)]
struct File {
    model_settings_builder: Option<Builder>,
}

#[derive(Deserialize)]
struct Builder {
    reasoning_effort: Option<Effort>,
}

#[derive(Deserialize)]
struct Effort {
    values: Vec<String>,
    default: String,
}

impl Settings {
    /// The settings in the `tekken.json` among `files`.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or names a value that is not known here.
    pub(in crate::chat) fn read(files: &ModelFiles) -> Result<Self> {
        let name = "tekken.json";
        let Some(bytes) = files.read(name, MAX_TOKENIZER)? else { return Ok(Self::default()) };
        let file: File = serde_json::from_slice(&bytes).map_err(|e| {
            Error::bad_model(format!("`model_settings_builder` cannot be read: {e}"))
                .at(files.place(name))
        })?;
        let effort = file.model_settings_builder.and_then(|builder| builder.reasoning_effort);
        let Some(effort) = effort else { return Ok(Self::default()) };
        Self::new(&effort).map_err(|e| e.at(files.place(name)))
    }

    fn new(effort: &Effort) -> Result<Self> {
        let number = |value: &String| {
            EFFORTS.iter().position(|known| known == value).ok_or_else(|| {
                let known = EFFORTS.join(", ");
                Error::not_supported(format!("`{KEY}` may be \"{value}\", expected one of {known}"))
            })
        };
        let mut allowed = 0;
        for value in &effort.values {
            allowed |= 1 << number(value)?;
        }
        let default = number(&effort.default)?;
        if allowed >> default & 1 == 0 {
            let default = EFFORTS[default];
            return Err(Error::bad_model(format!(
                "`{KEY}` is \"{default}\" by default, which is not among its values"
            )));
        }
        Ok(Self { allowed, default })
    }

    /// The settings as the prompt has them, with what `wanted` asks for; `None` where the model has none. `name` is the
    /// format's.
    ///
    /// # Errors
    ///
    /// If `wanted` asks for something that the model does not know.
    pub(super) fn written(self, wanted: &Map<String, Value>, name: &str) -> Result<Option<String>> {
        let known = |key: &String| key == KEY && self.allowed != 0;
        if let Some(key) = wanted.keys().find(|key| !known(key)) {
            return Err(refusal(format!("{name} has no setting `{key}`")));
        }
        if self.allowed == 0 {
            return Ok(None);
        }
        let effort = match wanted.get(KEY) {
            None | Some(Value::Null) => EFFORTS[self.default],
            Some(value) => self.effort(value)?,
        };
        Ok(Some(json::dumps(&json!({ KEY: effort }))))
    }

    fn effort(self, value: &Value) -> Result<&'static str> {
        let mut allowed =
            EFFORTS.iter().enumerate().filter(|(i, _)| self.allowed >> i & 1 == 1).map(|(_, e)| *e);
        let list = allowed.clone().collect::<Vec<_>>().join(", ");
        allowed
            .find(|effort| value == effort)
            .ok_or_else(|| refusal(format!("`{KEY}` is {value}, expected one of {list}")))
    }
}
