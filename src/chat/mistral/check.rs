//! Which conversations the formats allow: what the models were never trained on is refused, not guessed.

use std::collections::HashSet;

use serde_json::Value;

use super::normal::{Call, calls};
use super::{Version, refusal};
use crate::chat::message::{ChatRequest, Message};
use crate::error::Result;

/// Checks the order of the messages, then each message by itself.
///
/// # Errors
///
/// If mistral-common refuses the conversation, too.
pub(super) fn check(version: Version, request: &ChatRequest) -> Result<()> {
    let messages = &request.messages;
    order(messages)?;
    ends(request)?;
    if version >= Version::V11 {
        results_by_id(messages)?
    } else {
        results_by_number(messages)?
    }
    if version == Version::V2 {
        one_result_each(messages)?;
    }
    let last = messages.len().saturating_sub(1);
    messages.iter().enumerate().try_for_each(|(i, message)| {
        one(version, message, i == last).map_err(|e| e.at(format!("message {}", i + 1)))
    })
}

fn order(messages: &[Message]) -> Result<()> {
    for pair in messages.windows(2) {
        let (before, role) = (pair[0].role(), pair[1].role());
        let allowed: &[&str] = match before {
            "system" => &["user", "assistant", "system"],
            "user" => &["assistant", "system", "user"],
            "assistant" => &["assistant", "user", "tool"],
            _ => &["assistant", "tool", "user"],
        };
        if !allowed.contains(&role) {
            return Err(refusal(format!(
                "a {role} message follows a {before} message, expected one of {}",
                allowed.join(", ")
            )));
        }
    }
    Ok(())
}

/// A single message asks something; the last of several asks, or is an answer to go on with.
fn ends(request: &ChatRequest) -> Result<()> {
    match request.messages.as_slice() {
        [only] if !matches!(only.role(), "user" | "system") => {
            Err(refusal(format!("the conversation begins with a message of the {}", only.role())))
        }
        [.., last] if request.continue_final_message && last.role() != "assistant" => Err(refusal(
            format!("the final message is the {}'s: only an answer can be continued", last.role()),
        )),
        [_, .., last]
            if last.role() == "assistant"
                && !last.is_prefix()
                && !request.continue_final_message =>
        {
            Err(refusal("the last message is an answer already, expected a question")
                .hint("set `\"prefix\": true` in it to have the model go on with it"))
        }
        _ => Ok(()),
    }
}

/// As many results as calls before the assistant speaks again.
fn results_by_number(messages: &[Message]) -> Result<()> {
    let mut open = 0;
    for message in messages.iter().skip(1) {
        match message.role() {
            "tool" => open -= 1,
            "assistant" if open != 0 => {
                return Err(refusal("there are not as many tool results as tool calls"));
            }
            "assistant" => open = i64::try_from(calls(message)?.len()).unwrap_or(i64::MAX),
            _ => {}
        }
    }
    Ok(())
}

/// A result for each call, told by its id, before the assistant speaks again.
fn results_by_id(messages: &[Message]) -> Result<()> {
    let mut called = HashSet::new();
    let mut answered = HashSet::new();
    for message in messages.iter().skip(1) {
        match message.role() {
            "tool" => {
                let id = message.get("tool_call_id").and_then(Value::as_str).unwrap_or_default();
                if !called.contains(id) || !answered.insert(id.to_owned()) {
                    return Err(refusal(format!(
                        "the tool result `{id}` answers no open tool call"
                    )));
                }
            }
            "assistant" => {
                if called.len() != answered.len() {
                    return Err(refusal("there are not as many tool results as tool calls"));
                }
                called.clear();
                answered.clear();
                for call in calls(message)? {
                    if !called.insert(call.id.clone()) {
                        return Err(refusal(format!("two tool calls have the id `{}`", call.id)));
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Version 2 has room for one result after each turn of calls.
fn one_result_each(messages: &[Message]) -> Result<()> {
    let last_user = messages.iter().rposition(|message| message.role() == "user").unwrap_or(0);
    let recent = messages.get(last_user..).unwrap_or_default();
    if recent.windows(2).any(|pair| pair.iter().all(|message| message.role() == "tool")) {
        return Err(refusal("Mistral v2 has no room for two tool results in a row"));
    }
    Ok(())
}

fn one(version: Version, message: &Message, is_last: bool) -> Result<()> {
    match message.role() {
        "user" => Ok(()),
        "system" if message.get("content").is_none() => {
            Err(refusal("a system message has no `content`"))
        }
        "system" => Ok(()),
        "assistant" => assistant(version, message, is_last),
        "tool" => tool(version, message),
        role => Err(refusal(format!("the format has no role \"{role}\""))),
    }
}

fn assistant(version: Version, message: &Message, is_last: bool) -> Result<()> {
    let calls = calls(message)?;
    let has_content = match message.get("content") {
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(parts)) => !parts.is_empty(),
        _ => false,
    };
    if version < Version::V7 && has_content != calls.is_empty() {
        return Err(refusal(
            "an assistant message must have either `content` or `tool_calls`, not both",
        ));
    }
    for Call { id, name, .. } in &calls {
        function_name(name)?;
        call_id(version, id)?;
    }
    if message.is_prefix() && !is_last {
        return Err(refusal("an assistant message with `prefix` is not the last one"));
    }
    Ok(())
}

fn tool(version: Version, message: &Message) -> Result<()> {
    if let Some(name) = message.get("name").and_then(Value::as_str) {
        function_name(name)?;
    }
    call_id(version, message.get("tool_call_id").and_then(Value::as_str).unwrap_or_default())
}

/// The id of a tool call: nine letters or digits from version 3 on, anything that is there from version 13 on.
fn call_id(version: Version, id: &str) -> Result<()> {
    let good = match version {
        Version::V1 | Version::V2 => true,
        Version::V3 | Version::V7 | Version::V11 => {
            id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric())
        }
        Version::V13 | Version::V15 => !id.is_empty() && id != "null",
    };
    let expected = if version >= Version::V13 { "an id" } else { "nine letters or digits" };
    if good {
        Ok(())
    } else {
        Err(refusal(format!("the tool call id is `{id}`, expected {expected}")))
    }
}

/// The name of a function.
///
/// # Errors
///
/// If it is not 1 to 64 letters, digits, `_` and `-`.
pub(super) fn function_name(name: &str) -> Result<()> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if (1..=64).contains(&name.len()) && name.bytes().all(good) {
        return Ok(());
    }
    Err(refusal(format!(
        "the function name is `{name}`, expected 1 to 64 letters, digits, `_` and `-`"
    )))
}
