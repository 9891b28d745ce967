//! What the files beside a tokenizer say about it: `tokenizer_config.json`, `special_tokens_map.json`,
//! `config.json`, `added_tokens.json`.

use serde_json::{Map, Value};
use tramontane_models::json;

use crate::error::{Error, Result};
use crate::files::{MAX_CONFIG, ModelFiles};

/// What is said about the first and last token of a text, and about added tokens.
#[derive(Debug, Default)]
pub(super) struct Settings {
    /// The token that begins a text, by name.
    pub(super) bos_token: Option<String>,
    /// The token that ends a text, by name.
    pub(super) eos_token: Option<String>,
    /// Whether a text gets the first token, where that is said.
    pub(super) add_bos: Option<bool>,
    /// The ids of both, for models that do not name them.
    pub(super) bos_id: Option<u32>,
    pub(super) eos_id: Option<u32>,
    /// Tokens beside a SentencePiece model.
    pub(super) added: Vec<AddedToken>,
}

/// A token that was added to a vocabulary.
#[derive(Debug)]
pub(super) struct AddedToken {
    pub(super) content: String,
    pub(super) id: u32,
    pub(super) special: bool,
}

impl Settings {
    /// Reads the files; none of them must be there.
    ///
    /// # Errors
    ///
    /// If one is there but broken.
    pub(super) fn read(files: &ModelFiles) -> Result<Self> {
        let mut settings = Self::default();
        if let Some(config) = object(files, "tokenizer_config.json")? {
            settings.bos_token = token(&config, "bos_token");
            settings.eos_token = token(&config, "eos_token");
            settings.add_bos = config.get("add_bos_token").and_then(Value::as_bool);
            let decoder = config.get("added_tokens_decoder").and_then(Value::as_object);
            for (id, value) in decoder.into_iter().flatten() {
                if let (Ok(id), Some(content)) = (id.parse(), value["content"].as_str()) {
                    let special = value["special"].as_bool().unwrap_or(false);
                    settings.added.push(AddedToken { content: content.to_owned(), id, special });
                }
            }
        }
        if let Some(map) = object(files, "special_tokens_map.json")? {
            settings.bos_token = settings.bos_token.or_else(|| token(&map, "bos_token"));
            settings.eos_token = settings.eos_token.or_else(|| token(&map, "eos_token"));
        }
        if let Some(tokens) = object(files, "added_tokens.json")? {
            for (content, id) in tokens {
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                    let what = format!("the token `{content}` has the id {id}, expected a number");
                    Error::bad_model(what).at(files.place("added_tokens.json"))
                })?;
                if settings.added.iter().all(|t| t.id != id) {
                    settings.added.push(AddedToken { content, id, special: true });
                }
            }
        }
        if let Some(config) = object(files, "config.json")? {
            settings.bos_id = first_id(&config, "bos_token_id");
            settings.eos_id = first_id(&config, "eos_token_id");
        }
        Ok(settings)
    }
}

/// The JSON object in a file.
fn object(files: &ModelFiles, name: &str) -> Result<Option<Map<String, Value>>> {
    let Some(text) = files.read_text(name, MAX_CONFIG)? else { return Ok(None) };
    match json::parse(&text) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        // Some configurations hold a bare `Infinity`; whoever reads them in full says so.
        Err(_) if name == "config.json" => Ok(None),
        Ok(_) => Err(Error::bad_model("found no JSON object").at(files.place(name))),
        Err(e) => Err(Error::bad_model(format!("not JSON: {e}")).at(files.place(name))),
    }
}

/// A token by name: a string, or an object with `content`.
fn token(map: &Map<String, Value>, key: &str) -> Option<String> {
    let value = map.get(key)?;
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// An id, or the first of a list of ids.
fn first_id(map: &Map<String, Value>, key: &str) -> Option<u32> {
    let value = map.get(key)?;
    value.as_u64().or_else(|| value[0].as_u64()).and_then(|id| u32::try_from(id).ok())
}
