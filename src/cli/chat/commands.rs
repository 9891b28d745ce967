//! The commands of `chat`: everything that begins with a slash.

use std::path::Path;

use serde_json::{Value, json};
use tramontane::chat::{ChatRequest, Message, ROLES};
use tramontane::error::Result;
use tramontane::{Error, ErrorKind};

use super::super::talk::{self, say};
use super::{Chat, effective_sampler};

const HELP: &str = "\
/system [TEXT]      set the system message; without TEXT remove it
/set NAME VALUE     set a parameter: temperature, top_k, top_p, min_p, typical_p, repetition_penalty,
                    presence_penalty, frequency_penalty, max_tokens, seed, stop, ignore_eos (VALUE \"none\"
                    unsets it)
/show               show the model, the settings and the system message
/stats              show the last answer's counts and times, and the cache's size
/save FILE          save the conversation as JSON
/load FILE          load a saved conversation
/clear              forget the conversation
/help               this list
/bye                end the program
\"\"\"                 begins and ends a message of several lines";

/// Runs a command, given without its slash; `false` ends the program.
pub(super) fn run(chat: &mut Chat, command: &str) -> Result<bool> {
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    match name {
        "system" => system(chat, rest),
        "set" => set(chat, rest)?,
        "show" => show(chat),
        "stats" => stats(chat),
        "save" => save(chat, rest)?,
        "load" => load(chat, rest)?,
        "clear" => {
            chat.messages.clear();
            say("the conversation is forgotten");
        }
        "help" | "?" => say(HELP),
        "bye" | "exit" | "quit" => return Ok(false),
        _ => return Err(Error::bad_input(format!("there is no command /{name}")).hint("/help")),
    }
    Ok(true)
}

fn system(chat: &mut Chat, text: &str) {
    chat.system = (!text.is_empty()).then(|| text.to_owned());
    say(if text.is_empty() { "no system message" } else { "system message set" });
}

/// Sets a sampling parameter by the name it has in JSON, so that names and meanings are those of the library.
fn set(chat: &mut Chat, rest: &str) -> Result<()> {
    let Some((name, value)) = rest.split_once(char::is_whitespace) else {
        return Err(Error::bad_input("expected a name and a value").hint("/set temperature 0.7"));
    };
    let value = value.trim();
    let parsed = match (name, value) {
        ("stop", "none") => json!([]),
        ("logit_bias", "none") => json!({}),
        (_, "none") => Value::Null,
        ("stop", text) => json!([text]),
        (_, text) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
    };
    let bad = |e: &dyn std::fmt::Display| {
        Error::bad_input(format!("{name} cannot be {value}: {e}")).hint("/help for the names")
    };
    // What is not set stands in no field: a name that does not exist is told by what reads them.
    let mut all = serde_json::to_value(&chat.sampling).map_err(|e| bad(&e))?;
    all[name] = parsed;
    let sampling: tramontane::sample::Sampling =
        serde_json::from_value(all).map_err(|e| bad(&e))?;
    sampling.validate(chat.model.architecture().vocab)?;
    chat.sampling = sampling;
    say(&format!("{name} = {value}"));
    Ok(())
}

fn show(chat: &Chat) {
    let i = chat.model.info();
    say(&format!(
        "model    {} ({}, {} parameters, {}, context {})",
        i.name,
        i.family,
        talk::count(i.parameters),
        i.format,
        i.context
    ));
    match effective_sampler(&chat.model, &chat.sampling) {
        Ok(sampler) => say(&format!("sampler  {sampler}")),
        Err(e) => say(&format!("sampler  {e}")),
    }
    say(&format!("system   {}", chat.system.as_deref().unwrap_or("none")));
    say(&format!("messages {}", chat.messages.len()));
}

fn stats(chat: &Chat) {
    let Some(s) = &chat.last else { return say("there is no answer yet") };
    say(&talk::speed(s));
    say(&format!("{} tokens of the prompt were still in the cache", s.usage.cached_tokens));
    if let Some(session) = &chat.session {
        say(&format!(
            "cache: {} tokens, {}",
            session.tokens().len(),
            talk::bytes(session.cache_bytes())
        ));
    }
}

/// Writes the conversation as `template --messages` and other chat tools read it.
fn save(chat: &Chat, path: &str) -> Result<()> {
    let path = file_name(path)?;
    let system = chat.system.as_deref().map(Message::system);
    let messages: Vec<&Message> = system.iter().chain(&chat.messages).collect();
    let text = serde_json::to_string_pretty(&json!({ "messages": messages }))
        .map_err(|e| Error::bad_input(e.to_string()))?;
    std::fs::write(path, text + "\n").map_err(|e| unreadable("written", path, e))?;
    say(&format!("{} messages saved to {}", messages.len(), path.display()));
    Ok(())
}

/// Reads a list of messages, or an object with one; a system message at its beginning becomes that of the conversation.
fn load(chat: &mut Chat, path: &str) -> Result<()> {
    let path = file_name(path)?;
    let text = std::fs::read_to_string(path).map_err(|e| unreadable("read", path, e))?;
    let value: Value = serde_json::from_str(text.trim_start_matches('\u{feff}'))
        .map_err(|e| Error::bad_input(format!("this is not JSON: {e}")).at(path.display()))?;
    let request = ChatRequest::from_json(value).map_err(|e| e.at(path.display()))?;
    let (n, mut messages) = (request.messages.len(), request.messages);
    if let Some(other) = messages.iter().find(|message| !ROLES.contains(&message.role())) {
        let what = format!("a message has the role \"{}\"", other.role());
        return Err(Error::bad_input(format!("{what}, expected one of {}", ROLES.join(", ")))
            .at(path.display()));
    }
    let has_system = messages.first().is_some_and(|message| message.role() == "system");
    chat.system = has_system.then(|| messages.remove(0).text());
    chat.messages = messages;
    say(&format!("{n} messages loaded from {}", path.display()));
    Ok(())
}

/// The error for a file of a conversation.
fn unreadable(how: &str, path: &Path, e: std::io::Error) -> Error {
    let what = format!("the conversation cannot be {how}: {e}");
    Error::new(ErrorKind::Io, what).at(path.display()).caused_by(e)
}

fn file_name(path: &str) -> Result<&Path> {
    if path.is_empty() {
        return Err(Error::bad_input("expected the name of a file").hint("/save conversation.json"));
    }
    Ok(Path::new(path))
}
