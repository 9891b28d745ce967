//! A conversation, as the chat APIs of our day write it in JSON.
//!
//! A message is kept as the JSON object it came from: templates read fields that nobody foresaw, and some
//! write a whole message back as JSON, so names, order and values stay what they were.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The roles a message may have; a role is the one field that a template may paste into a control token.
pub const ROLES: [&str; 7] =
    ["system", "developer", "user", "assistant", "tool", "function", "ipython"];

/// The names that `chat_template_kwargs` may not set: the engine sets them, or they are not the template's.
const RESERVED: [&str; 22] = [
    "messages",
    "conversation",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
    "return_dict",
    "return_tensors",
    "return_assistant_tokens_mask",
    "sanitize_control_tokens",
    "tokenizer_kwargs",
    "padding",
    "truncation",
    "max_length",
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// One message of a conversation: a JSON object with a `role`.
///
/// ```
/// use tramontane::chat::Message;
/// let asked = Message::user("Quelle heure est-il ?");
/// assert_eq!(asked.role(), "user");
/// assert_eq!(asked.text(), "Quelle heure est-il ?");
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Message {
    fields: Map<String, Value>,
}

impl Message {
    /// A message of `role` that says `content`.
    #[must_use]
    pub fn new(role: &str, content: &str) -> Self {
        let mut fields = Map::new();
        fields.insert("role".into(), role.into());
        fields.insert("content".into(), content.into());
        Self { fields }
    }

    /// What the person says.
    #[must_use]
    pub fn user(content: &str) -> Self {
        Self::new("user", content)
    }

    /// How the model is to behave.
    #[must_use]
    pub fn system(content: &str) -> Self {
        Self::new("system", content)
    }

    /// What the model said.
    #[must_use]
    pub fn assistant(content: &str) -> Self {
        Self::new("assistant", content)
    }

    /// The same message with one more field, for instance `tool_call_id`, `name` or `reasoning_content`.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    /// A message from its JSON object.
    ///
    /// # Errors
    ///
    /// If `value` is not an object with a text `role`, or `content` is neither text, a list of parts nor null.
    pub fn from_json(value: Value) -> Result<Self> {
        let Value::Object(fields) = value else {
            return Err(Error::bad_input(format!(
                "a message is {}, expected an object with `role` and `content`",
                kind(&value)
            )));
        };
        match fields.get("role") {
            Some(Value::String(_)) => {}
            None => return Err(Error::bad_input("a message has no `role`")),
            Some(other) => {
                return Err(Error::bad_input(format!(
                    "`role` is {}, expected one of {}",
                    kind(other),
                    ROLES.join(", ")
                )));
            }
        }
        match fields.get("content") {
            None | Some(Value::Null | Value::String(_)) => {}
            Some(Value::Array(parts)) if parts.iter().all(Value::is_object) => {}
            Some(other) => {
                return Err(Error::bad_input(format!(
                    "`content` is {}, expected text or a list of parts like {{\"type\": \"text\", \"text\": …}}",
                    kind(other)
                )));
            }
        }
        Ok(Self { fields })
    }

    /// Who speaks: see [`ROLES`].
    #[must_use]
    pub fn role(&self) -> &str {
        self.fields.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// The text of the message: its `content`, the text parts of a list one after the other.
    #[must_use]
    pub fn text(&self) -> String {
        match self.fields.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => {
                parts.iter().filter_map(|part| part.get("text")?.as_str()).collect()
            }
            _ => String::new(),
        }
    }

    /// The field `name`; a field that is null counts as absent.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// Whether this is an answer that the model is to go on with (`"prefix": true`).
    #[must_use]
    pub fn is_prefix(&self) -> bool {
        self.get("prefix") == Some(&Value::Bool(true))
    }

    /// The fields as a template sees them: nulls left out, reasoning under each of its usual names.
    ///
    /// Templates crash on a null `content` but handle a missing one. Reasoning is called `reasoning_content`
    /// by most, `thinking` and `reasoning` by others: whichever is there fills the first two.
    pub(super) fn for_template(&self) -> Map<String, Value> {
        let reasoning =
            ["reasoning_content", "thinking", "reasoning"].into_iter().find_map(|n| self.get(n));
        let mut fields = Map::new();
        if let Some(reasoning) = reasoning {
            fields.insert("thinking".into(), reasoning.clone());
        }
        for (name, value) in self.fields.iter().filter(|(_, value)| !value.is_null()) {
            fields.insert(name.clone(), value.clone());
        }
        if let Some(reasoning) = reasoning {
            fields.insert("reasoning_content".into(), reasoning.clone());
        }
        fields
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::from_json(value).map_err(|e| serde::de::Error::custom(e.what()))
    }
}

/// What a chat template turns into a prompt.
///
/// ```
/// use tramontane::chat::{ChatRequest, Message};
/// let request = ChatRequest::new(vec![Message::system("Sois bref."), Message::user("Bonjour !")]);
/// assert!(request.add_generation_prompt && !request.continue_final_message);
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ChatRequest {
    /// The conversation, oldest message first.
    pub messages: Vec<Message>,
    /// The tools the model may call: a list of JSON schemas, each as `{"type": "function", "function": …}`.
    pub tools: Option<Value>,
    /// Whether the prompt ends where the model's answer begins.
    pub add_generation_prompt: bool,
    /// Whether the model goes on with the last message instead of answering it.
    pub continue_final_message: bool,
    /// More variables for the template, for instance `enable_thinking`.
    pub template_kwargs: Map<String, Value>,
}

impl ChatRequest {
    /// A request for the answer to `messages`.
    #[must_use]
    pub fn new(messages: Vec<Message>) -> Self {
        Self {
            messages,
            tools: None,
            add_generation_prompt: true,
            continue_final_message: false,
            template_kwargs: Map::new(),
        }
    }

    /// A request from JSON: a list of messages, or an object `{messages, tools, chat_template_kwargs}`, which
    /// may also set `add_generation_prompt`, `continue_final_message` and `documents`.
    ///
    /// # Errors
    ///
    /// If the JSON has another shape, or names a field that is none of these.
    pub fn from_json(value: Value) -> Result<Self> {
        match value {
            Value::Array(_) => Ok(Self::new(messages(value)?)),
            Value::Object(fields) => Self::from_fields(fields),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                Err(Error::bad_input(format!(
                    "the conversation is {}, expected a list of messages or an object with `messages`",
                    kind(&value)
                )))
            }
        }
    }

    fn from_fields(fields: Map<String, Value>) -> Result<Self> {
        let mut request = Self::new(Vec::new());
        let mut seen = false;
        for (name, value) in fields {
            match name.as_str() {
                "messages" => (request.messages, seen) = (messages(value)?, true),
                "tools" => request.tools = Some(value).filter(|tools| !tools.is_null()),
                "add_generation_prompt" => request.add_generation_prompt = flag(&name, &value)?,
                "continue_final_message" => request.continue_final_message = flag(&name, &value)?,
                "documents" => drop(request.template_kwargs.insert(name, value)),
                "chat_template_kwargs" => match value {
                    Value::Object(kwargs) => request.template_kwargs.extend(kwargs),
                    Value::Null => {}
                    Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                        let found = kind(&value);
                        return Err(Error::bad_input(format!(
                            "`chat_template_kwargs` is {found}, expected an object"
                        )));
                    }
                },
                _ => {
                    return Err(Error::bad_input(format!(
                        "`{name}` is not a field of a conversation; known are messages, tools, \
                         chat_template_kwargs, documents, add_generation_prompt and continue_final_message"
                    )));
                }
            }
        }
        if request.continue_final_message {
            request.add_generation_prompt = false;
        }
        if seen { Ok(request) } else { Err(Error::bad_input("the conversation has no `messages`")) }
    }

    /// Refuses what no template may be asked to render.
    pub(super) fn check(&self) -> Result<()> {
        let Some(last) = self.messages.last() else {
            return Err(Error::bad_input(
                "the conversation is empty, expected at least one message",
            ));
        };
        for (i, message) in self.messages.iter().enumerate() {
            if !ROLES.contains(&message.role()) {
                return Err(Error::bad_input(format!(
                    "message {} has the role \"{}\", expected one of {}",
                    i + 1,
                    message.role(),
                    ROLES.join(", ")
                )));
            }
        }
        if let Some(tools) = &self.tools
            && !tools.as_array().is_some_and(|tools| tools.iter().all(Value::is_object))
        {
            return Err(Error::bad_input("`tools` is not a list of JSON schemas"));
        }
        if let Some(name) =
            self.template_kwargs.keys().find(|name| RESERVED.contains(&name.as_str()))
        {
            return Err(Error::bad_input(format!(
                "`{name}` is reserved: `chat_template_kwargs` cannot set it"
            )));
        }
        if self.continue_final_message && self.add_generation_prompt {
            return Err(Error::bad_input(
                "continue_final_message and add_generation_prompt exclude each other: the prompt ends \
                 either inside the last message or before a new one",
            ));
        }
        if self.continue_final_message && last.get("content").is_none() {
            return Err(Error::bad_input("the final message has no `content` to continue"));
        }
        Ok(())
    }
}

fn messages(value: Value) -> Result<Vec<Message>> {
    let Value::Array(list) = value else {
        return Err(Error::bad_input(format!("`messages` is {}, expected a list", kind(&value))));
    };
    let numbered = list.into_iter().enumerate();
    numbered
        .map(|(i, m)| Message::from_json(m).map_err(|e| e.at(format!("message {}", i + 1))))
        .collect()
}

fn flag(name: &str, value: &Value) -> Result<bool> {
    value.as_bool().ok_or_else(|| {
        Error::bad_input(format!("`{name}` is {}, expected true or false", kind(value)))
    })
}

/// What `value` is, for a message.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(value: Value) -> Result<ChatRequest> {
        let request = ChatRequest::from_json(value)?;
        request.check()?;
        Ok(request)
    }

    #[test]
    fn a_conversation_is_a_list_or_an_object() {
        let list = json!([{"role": "user", "content": "a"}]);
        let object = json!({"messages": list, "tools": null, "chat_template_kwargs": {"x": 1}});
        assert_eq!(request(list).unwrap().messages, request(object.clone()).unwrap().messages);
        assert_eq!(request(object).unwrap().template_kwargs["x"], 1);
    }

    #[test]
    fn every_misshapen_conversation_is_named() {
        let cases = [
            (json!("x"), "text"),
            (json!({}), "no `messages`"),
            (json!({"messages": 3}), "`messages` is a number"),
            (json!({"messages": [], "temperature": 1}), "`temperature`"),
            (json!([]), "empty"),
            (json!([3]), "a message is a number"),
            (json!([{"content": "x"}]), "no `role`"),
            (json!([{"role": "user", "content": 3}]), "`content` is a number"),
            (json!([{"role": "user", "content": ["x"]}]), "`content` is a list"),
            (json!([{"role": "user|>", "content": "x"}]), "role \"user|>\""),
            (json!({"messages": [{"role": "user"}], "tools": {}}), "`tools`"),
            (
                json!({"messages": [{"role": "user"}], "chat_template_kwargs": {"tokenize": true}}),
                "reserved",
            ),
            (
                json!({"messages": [{"role": "user"}], "continue_final_message": true}),
                "no `content`",
            ),
        ];
        for (value, words) in cases {
            let e = request(value.clone()).unwrap_err();
            assert!(e.to_string().contains(words), "{value}: {e}");
        }
    }

    #[test]
    fn a_template_sees_no_nulls_and_finds_the_reasoning() {
        let message =
            Message::assistant("4").with("tool_calls", Value::Null).with("reasoning", "2+2");
        let fields = message.for_template();
        let names: Vec<_> = fields.keys().map(String::as_str).collect();
        assert_eq!(names, ["thinking", "role", "content", "reasoning", "reasoning_content"]);
    }

    #[test]
    fn order_and_unknown_fields_survive_json() {
        let text = r#"{"content":"x","zeta":{"b":1,"a":2},"role":"user"}"#;
        let message: Message = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&message).unwrap(), text);
    }
}
