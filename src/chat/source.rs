//! Where a model keeps its chat template and the names of its special tokens.

use serde_json::{Map, Value};
use tramontane_models::json;

use crate::error::{Error, Result};
use crate::files::{MAX_CONFIG, ModelFiles};

/// The templates of one model, as text.
#[derive(Debug)]
pub(super) struct Sources {
    /// The template for any conversation.
    pub(super) default: String,
    /// Another one for conversations with tools.
    pub(super) tool_use: Option<String>,
    /// The file they came from.
    pub(super) file: &'static str,
}

/// The special tokens that templates know by name.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Finds the chat templates of a model: `chat_template.jinja`, else the field `chat_template` of
/// `tokenizer_config.json`, else `chat_template.json`.
///
/// # Errors
///
/// If one of these files cannot be read, or the field is neither text nor a list of named templates.
pub(super) fn find(files: &ModelFiles) -> Result<Option<Sources>> {
    if let Some(default) = files.read_text("chat_template.jinja", MAX_CONFIG)? {
        let tool_use = files.read_text("additional_chat_templates/tool_use.jinja", MAX_CONFIG)?;
        return Ok(Some(Sources { default, tool_use, file: "chat_template.jinja" }));
    }
    for file in ["tokenizer_config.json", "chat_template.json"] {
        let Some(fields) = object(files, file)? else { continue };
        let Some(field) = fields.get("chat_template").filter(|field| !field.is_null()) else {
            continue;
        };
        let (default, tool_use) =
            named(field).map_err(|e| e.at("key `chat_template`").at(files.place(file)))?;
        return Ok(Some(Sources { default, tool_use, file }));
    }
    Ok(None)
}

/// The template for any conversation and the one for tools, of the field `chat_template`.
fn named(field: &Value) -> Result<(String, Option<String>)> {
    let shape = || Error::bad_model("found neither text nor a list of {\"name\", \"template\"}");
    match field {
        Value::String(text) => Ok((text.clone(), None)),
        Value::Array(list) => {
            let mut templates = Vec::new();
            for entry in list {
                let part = |name| entry.get(name).and_then(Value::as_str).ok_or_else(shape);
                templates.push((part("name")?, part("template")?));
            }
            let get = |wanted| {
                templates
                    .iter()
                    .find(|(name, _)| *name == wanted)
                    .map(|(_, text)| (*text).to_owned())
            };
            let names: Vec<&str> = templates.iter().map(|(name, _)| *name).collect();
            let default = get("default").ok_or_else(|| {
                Error::bad_model(format!(
                    "no template is named \"default\"; the names are {}",
                    names.join(", ")
                ))
            })?;
            Ok((default, get("tool_use")))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Err(shape()),
    }
}

/// The special tokens by name, such as `bos_token`: of `tokenizer_config.json`, else of
/// `special_tokens_map.json`.
///
/// # Errors
///
/// If one of these files cannot be read.
pub(super) fn special_tokens(files: &ModelFiles) -> Result<Map<String, Value>> {
    let mut tokens = Map::new();
    for file in ["tokenizer_config.json", "special_tokens_map.json"] {
        let Some(fields) = object(files, file)? else { continue };
        for name in NAMES {
            // A token is its text, or an object that holds it as `content`.
            let token =
                fields.get(name).and_then(|t| t.as_str().or_else(|| t.get("content")?.as_str()));
            if let Some(token) = token.filter(|_| !tokens.contains_key(name)) {
                tokens.insert(name.into(), token.into());
            }
        }
    }
    Ok(tokens)
}

/// The JSON object in `file`, if there is such a file.
fn object(files: &ModelFiles, file: &str) -> Result<Option<Map<String, Value>>> {
    let Some(text) = files.read_text(file, MAX_CONFIG)? else { return Ok(None) };
    match json::parse(&text) {
        Ok(Value::Object(fields)) => Ok(Some(fields)),
        Ok(_) => Err(Error::bad_model("the JSON is not an object").at(files.place(file))),
        Err(e) => Err(Error::bad_model(format!("this is not JSON: {e}")).at(files.place(file))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, ModelFiles) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let model = ModelFiles::folder(dir.path());
        (dir, model)
    }

    #[test]
    fn the_file_beside_wins_over_the_field() {
        let config = json!({"chat_template": "old"}).to_string();
        let (_dir, model) =
            folder(&[("chat_template.jinja", "new"), ("tokenizer_config.json", &config)]);
        let found = find(&model).unwrap().unwrap();
        assert_eq!((found.default.as_str(), found.file), ("new", "chat_template.jinja"));
        let (_dir, model) = folder(&[("tokenizer_config.json", &config)]);
        assert_eq!(find(&model).unwrap().unwrap().default, "old");
    }

    #[test]
    fn named_templates_are_told_apart() {
        let list = json!({"chat_template": [
            {"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]});
        let (_dir, model) = folder(&[("tokenizer_config.json", &list.to_string())]);
        let found = find(&model).unwrap().unwrap();
        assert_eq!((found.default.as_str(), found.tool_use.as_deref()), ("D", Some("T")));
        for (bad, words) in [
            (
                json!([{"name": "rag", "template": "R"}]),
                "no template is named \"default\"; the names are rag",
            ),
            (json!([{"name": "rag"}]), "neither text nor a list"),
            (json!(7), "neither text nor a list"),
        ] {
            assert!(named(&bad).unwrap_err().to_string().contains(words));
        }
    }

    #[test]
    fn no_file_is_no_template_and_a_broken_one_is_named() {
        let (_dir, model) = folder(&[]);
        assert!(find(&model).unwrap().is_none());
        let (_dir, model) = folder(&[("tokenizer_config.json", "[1")]);
        assert!(find(&model).unwrap_err().to_string().contains("tokenizer_config.json"));
    }

    #[test]
    fn special_tokens_may_be_objects() {
        let config = json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": null})
            .to_string();
        let map = json!({"bos_token": "<x>", "eos_token": "</s>"}).to_string();
        let (_dir, model) =
            folder(&[("tokenizer_config.json", &config), ("special_tokens_map.json", &map)]);
        let tokens = special_tokens(&model).unwrap();
        assert_eq!((&tokens["bos_token"], &tokens["eos_token"]), (&json!("<s>"), &json!("</s>")));
    }
}
