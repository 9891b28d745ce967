//! A request in the shape that the formats lay out: turns of one role each, texts joined, JSON parsed.

use serde_json::{Map, Value, json};

use super::{Version, check, refusal};
use crate::chat::message::{ChatRequest, Message};
use crate::error::Result;

/// What stands between texts that are joined.
const JOIN: &str = "\n\n";

/// Neighbouring messages of one role, joined.
#[derive(Debug, PartialEq)]
pub(super) enum Turn {
    System(Vec<Chunk>),
    User(String),
    Assistant { chunks: Vec<Chunk>, calls: Vec<Call>, prefix: bool },
    Tool { name: Option<String>, id: Option<String>, content: String },
}

/// A part of a message. Texts next to each other are one.
#[derive(Debug, PartialEq)]
pub(super) enum Chunk {
    Text(String),
    /// Reasoning; not `closed` while the model is still at it.
    Thinking {
        text: String,
        closed: bool,
    },
}

/// A call of a tool.
#[derive(Debug, PartialEq)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) arguments: Value,
}

impl Call {
    /// Whether the call has an id of its own.
    pub(super) fn has_id(&self) -> bool {
        !self.id.is_empty() && self.id != "null"
    }

    fn read(call: &Value) -> Result<Self> {
        let function = call.get("function").unwrap_or(&Value::Null);
        let Some(name) = function.get("name").and_then(Value::as_str) else {
            return Err(refusal("a tool call has no `function.name`"));
        };
        let arguments = match function.get("arguments") {
            None | Some(Value::Null) => json!({}),
            Some(Value::String(text)) => parsed(text),
            Some(Value::Object(fields)) => Value::Object(fields.clone()),
            Some(_) => {
                return Err(refusal(format!(
                    "the arguments of the call of `{name}` are neither text nor an object"
                )));
            }
        };
        let id = call.get("id").and_then(Value::as_str).unwrap_or("null");
        Ok(Self { id: id.to_owned(), name: name.to_owned(), arguments })
    }
}

/// The value that `text` writes as JSON, or else `text` itself; no text is an empty object.
pub(super) fn parsed(text: &str) -> Value {
    if text.is_empty() {
        return json!({});
    }
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

/// The tool calls of a message.
pub(super) fn calls(message: &Message) -> Result<Vec<Call>> {
    match message.get("tool_calls") {
        None => Ok(Vec::new()),
        Some(Value::Array(calls)) => calls.iter().map(Call::read).collect(),
        Some(_) => Err(refusal("`tool_calls` is not a list")),
    }
}

/// The turns of a request.
///
/// # Errors
///
/// If the format does not allow the conversation.
pub(super) fn turns(version: Version, request: &ChatRequest) -> Result<Vec<Turn>> {
    check::check(version, request)?;
    let mut turns = Vec::new();
    let mut call_order: Vec<String> = Vec::new();
    let messages = &request.messages;
    for group in messages.chunk_by(|a, b| a.role() == b.role()) {
        match group[0].role() {
            "system" if version >= Version::V7 => {
                for message in group {
                    turns.push(Turn::System(chunks(version, std::slice::from_ref(message))?));
                }
            }
            // Before version 7 the system prompt is part of a user message.
            "system" => {}
            "user" => turns.push(Turn::User(text(version, group)?)),
            "assistant" => {
                let calls: Vec<Call> = group
                    .iter()
                    .map(calls)
                    .collect::<Result<Vec<_>>>()?
                    .into_iter()
                    .flatten()
                    .collect();
                call_order.extend(calls.iter().map(|call| call.id.clone()));
                let continued = request.continue_final_message
                    && messages
                        .last()
                        .is_some_and(|last| group.last().is_some_and(|m| std::ptr::eq(m, last)));
                let prefix = continued || group.iter().any(Message::is_prefix);
                turns.push(Turn::Assistant { chunks: chunks(version, group)?, calls, prefix });
            }
            _ => {
                let mut results =
                    group.iter().map(|m| tool_result(version, m)).collect::<Result<Vec<_>>>()?;
                if version >= Version::V11 {
                    sort_results(&mut results, &call_order);
                }
                call_order.clear();
                turns.append(&mut results);
            }
        }
    }
    let begins_with_user = matches!(turns.first(), Some(Turn::User(_)));
    if turns.is_empty() || (version < Version::V7 && !begins_with_user) {
        turns.insert(0, Turn::User(String::new()));
    }
    Ok(turns)
}

/// Puts the results of tools in the order in which the tools were called.
fn sort_results(results: &mut [Turn], call_order: &[String]) {
    results.sort_by_key(|result| {
        let Turn::Tool { id, .. } = result else { return usize::MAX };
        // Of calls with the same id, the last counts.
        call_order.iter().rposition(|call| Some(call) == id.as_ref()).unwrap_or(usize::MAX)
    });
}

fn tool_result(version: Version, message: &Message) -> Result<Turn> {
    let field = |name| message.get(name).and_then(Value::as_str).map(str::to_owned);
    Ok(Turn::Tool {
        name: field("name"),
        id: field("tool_call_id"),
        content: text(version, std::slice::from_ref(message))?,
    })
}

/// The system messages of a request as one text, for the formats that have no place of its own for it.
pub(super) fn joined_system(version: Version, request: &ChatRequest) -> Option<String> {
    if version >= Version::V7 {
        return None;
    }
    let systems = request.messages.iter().filter(|message| message.role() == "system");
    let texts: Vec<String> =
        systems.filter_map(|m| text(version, std::slice::from_ref(m)).ok()).collect();
    let texts: Vec<String> = texts.into_iter().filter(|text| !text.is_empty()).collect();
    (!texts.is_empty()).then(|| texts.join(JOIN))
}

/// The text of messages that hold nothing else.
fn text(version: Version, messages: &[Message]) -> Result<String> {
    match chunks(version, messages)?.pop() {
        None => Ok(String::new()),
        Some(Chunk::Text(text)) => Ok(text),
        Some(Chunk::Thinking { .. }) => {
            Err(refusal(format!("a {} message holds reasoning", messages[0].role())))
        }
    }
}

/// The parts of messages of one role, texts next to each other joined: those of one message without anything between
/// them, from version 15 on.
fn chunks(version: Version, messages: &[Message]) -> Result<Vec<Chunk>> {
    let within = if version >= Version::V15 { "" } else { JOIN };
    let mut chunks = Vec::new();
    for message in messages {
        let mut join = JOIN;
        if let Some(reasoning) = message.get("reasoning_content").or(message.get("reasoning")) {
            push(&mut chunks, thinking(reasoning, true)?, join);
        }
        match message.get("content") {
            Some(Value::String(text)) => push(&mut chunks, Chunk::Text(text.clone()), join),
            Some(Value::Array(parts)) => {
                for part in parts {
                    push(&mut chunks, self::part(part)?, join);
                    join = within;
                }
            }
            _ => {}
        }
    }
    Ok(chunks)
}

fn part(part: &Value) -> Result<Chunk> {
    match part.get("type").and_then(Value::as_str) {
        Some("text") => match part.get("text") {
            Some(Value::String(text)) => Ok(Chunk::Text(text.clone())),
            _ => Err(refusal("a text part has no `text`")),
        },
        Some("thinking") => {
            let closed = part.get("closed").and_then(Value::as_bool).unwrap_or(true);
            thinking(part.get("thinking").unwrap_or(&Value::Null), closed)
        }
        other => Err(refusal(format!(
            "a message holds a part of the type {}, expected text or thinking",
            other.unwrap_or("(none)")
        ))),
    }
}

/// Reasoning is text, or a list of text parts.
fn thinking(value: &Value, closed: bool) -> Result<Chunk> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part.get("text")?.as_str()).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            return Err(refusal("reasoning is neither text nor a list of text parts"));
        }
    };
    Ok(Chunk::Thinking { text, closed })
}

fn push(chunks: &mut Vec<Chunk>, chunk: Chunk, join: &str) {
    match (chunks.last_mut(), chunk) {
        (_, Chunk::Text(text)) if text.is_empty() => {}
        (Some(Chunk::Text(before)), Chunk::Text(text)) => {
            before.push_str(join);
            before.push_str(&text);
        }
        (_, chunk) => chunks.push(chunk),
    }
}

/// The tools of a request, with the fields that the formats know, in their order; `None` if there are none.
///
/// # Errors
///
/// If a tool has no proper name.
pub(super) fn tools(tools: Option<&Value>) -> Result<Option<Value>> {
    let Some(Value::Array(list)) = tools.filter(|tools| **tools != json!([])) else {
        return Ok(None);
    };
    let tools = list.iter().map(|tool| {
        let function = tool.get("function").unwrap_or(&Value::Null);
        let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
        check::function_name(name)?;
        if tool.get("type").is_some_and(|kind| kind != "function") {
            return Err(refusal(format!("the tool `{name}` is not of the type function")));
        }
        let field = |key: &str, default: Value| {
            function.get(key).filter(|value| !value.is_null()).cloned().unwrap_or(default)
        };
        let parameters = field("parameters", Value::Object(Map::new()));
        if !parameters.is_object() {
            return Err(refusal(format!(
                "the `parameters` of the tool `{name}` are not an object"
            )));
        }
        let description = field("description", "".into());
        Ok(json!({"type": "function",
            "function": {"name": name, "description": description, "parameters": parameters}}))
    });
    Ok(Some(Value::Array(tools.collect::<Result<_>>()?)))
}
