//! The chat formats of Mistral's own tokenizers, for repositories that ship no template.
//!
//! Source of the semantics: mistral-common, whose versions v1 to v15 each name a format. A request is
//! checked, normalised (neighbouring messages of one role are joined, JSON is written anew), and laid out as
//! control tokens and texts; control tokens are inserted as ids, so no text can become one.
//!
//! | version | system prompt | tools | a call of a tool |
//! |---|---|---|---|
//! | v1 | before the first user message | none | none |
//! | v2 | before the last user message | before the last user message | `[TOOL_CALLS] [{name, arguments}]`, only after the last user message |
//! | v3 | before the last user message | before the last user message | `[TOOL_CALLS] [{name, arguments, id}]` |
//! | v7 | `[SYSTEM_PROMPT]`, where it stands | before the last user message | as v3, also after text |
//! | v11 | as v7 | before the last user message | `[TOOL_CALLS]name[CALL_ID]id[ARGS]{…}` |
//! | v13 | as v7 | before the first user message | `[TOOL_CALLS]name[ARGS]{…}` |
//! | v15 | as v7 | before the first user message, then `[MODEL_SETTINGS]` | as v13 |

mod check;
mod normal;
mod settings;

use serde_json::Value;

use super::json;
use super::message::ChatRequest;
use crate::error::{Error, ErrorKind, Result};
use crate::tokenizer::{Kind, Tokenizer};
use normal::{Call, Chunk, Turn};
pub(super) use settings::Settings;

/// A version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    V1,
    V2,
    V3,
    V7,
    V11,
    V13,
    V15,
}

/// A format: a version, in the spelling of one kind of tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    version: Version,
    /// SentencePiece puts a space before each text.
    spaced: bool,
    /// What a request may ask of the model, from version 15 on.
    settings: Settings,
}

/// A piece of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    /// A control token, by its name.
    Control(&'static str),
    /// Text, encoded by itself.
    Text(String),
}

use Piece::{Control, Text};

impl Format {
    /// The format that goes with a tokenizer.
    ///
    /// # Errors
    ///
    /// If the tokenizer is of a version whose format is not known here.
    pub(super) fn of(kind: &Kind, settings: Settings) -> Result<Option<Self>> {
        let (version, spaced) = match kind {
            Kind::HuggingFace => return Ok(None),
            Kind::Tekken { version } => (version, false),
            Kind::SentencePiece { version } => (version, true),
        };
        let version = match version.as_str() {
            "v1" => Version::V1,
            "v2" => Version::V2,
            "v3" => Version::V3,
            "v7" => Version::V7,
            "v11" => Version::V11,
            "v13" => Version::V13,
            "v15" => Version::V15,
            other => {
                return Err(Error::not_supported(format!(
                    "the chat format of Mistral tokenizers {other} is not known; known are v1, v2, v3, v7, \
                     v11, v13 and v15"
                )));
            }
        };
        Ok(Some(Self { version, spaced, settings }))
    }

    /// How people call the format.
    pub(super) fn name(self) -> &'static str {
        match (self.version, self.spaced) {
            (Version::V1, _) => "Mistral v1",
            (Version::V2, _) => "Mistral v2",
            (Version::V3, true) => "Mistral v3",
            (Version::V3, false) => "Mistral v3-tekken",
            (Version::V7, true) => "Mistral v7",
            (Version::V7, false) => "Mistral v7-tekken",
            (Version::V11, _) => "Mistral v11",
            (Version::V13, _) => "Mistral v13",
            (Version::V15, _) => "Mistral v15",
        }
    }

    /// The prompt as text, control tokens by name.
    ///
    /// # Errors
    ///
    /// If the format does not allow the request.
    pub(super) fn render(self, request: &ChatRequest) -> Result<String> {
        let mut out = String::new();
        for piece in self.pieces(request)? {
            match piece {
                Control(name) => out.push_str(name),
                Text(text) => {
                    if self.spaced && !text.is_empty() {
                        out.push(' ');
                    }
                    out.push_str(&text);
                }
            }
        }
        Ok(out)
    }

    /// The prompt as ids.
    ///
    /// # Errors
    ///
    /// As [`Self::render`], and if the tokenizer lacks a control token of the format.
    pub(super) fn encode(self, request: &ChatRequest, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for piece in self.pieces(request)? {
            match piece {
                Control(name) => ids.push(tokenizer.id(name).ok_or_else(|| {
                    Error::bad_model(format!(
                        "the tokenizer has no token {name}, which {} needs",
                        self.name()
                    ))
                })?),
                Text(text) => ids.extend(tokenizer.encode(&text)?),
            }
        }
        Ok(ids)
    }

    fn pieces(self, request: &ChatRequest) -> Result<Vec<Piece>> {
        let settings = self.settings.written(&request.template_kwargs, self.name())?;
        let turns = normal::turns(self.version, request)?;
        let tools = normal::tools(request.tools.as_ref())?;
        let users = || turns.iter().enumerate().filter(|(_, turn)| matches!(turn, Turn::User(_)));
        let first = users().next().map(|(i, _)| i);
        let last = users().next_back().map(|(i, _)| i);
        let system = normal::joined_system(self.version, request);
        let mut pieces = vec![Control("<s>")];
        for (i, turn) in turns.iter().enumerate() {
            match turn {
                Turn::System(chunks)
                    if self.version >= Version::V15
                        && chunks.iter().any(|c| matches!(c, Chunk::Thinking { .. })) =>
                {
                    return Err(refusal("a system message holds reasoning"));
                }
                Turn::System(chunks) => {
                    pieces.push(Control("[SYSTEM_PROMPT]"));
                    self.chunks(chunks, &mut pieces)?;
                    pieces.push(Control("[/SYSTEM_PROMPT]"));
                }
                Turn::User(text) => {
                    let with_tools = if self.version >= Version::V13 { first } else { last };
                    let with_system = if self.version == Version::V1 { first } else { last };
                    let tools = tools.as_ref().filter(|_| with_tools == Some(i));
                    let system = system.as_deref().filter(|_| with_system == Some(i));
                    let settings = settings.as_deref().filter(|_| first == Some(i));
                    self.user(text, tools, system, settings, &mut pieces);
                }
                Turn::Assistant { chunks, calls, prefix } => {
                    let past = Some(i) < last;
                    self.assistant(chunks, calls, *prefix, past, &mut pieces)?;
                }
                Turn::Tool { name, id, content } => {
                    let past = Some(i) < last;
                    self.tool(name.as_deref(), id.as_deref(), content, past, &mut pieces)?;
                }
            }
        }
        Ok(pieces)
    }

    fn user(
        self,
        text: &str,
        tools: Option<&Value>,
        system: Option<&str>,
        settings: Option<&str>,
        pieces: &mut Vec<Piece>,
    ) {
        let text = match system {
            Some(system) => format!("{system}\n\n{text}"),
            None => text.to_owned(),
        };
        if self.version == Version::V1 {
            // Version 1 has no control tokens: its brackets are text.
            pieces.push(Text(format!("[INST] {text} [/INST]")));
            return;
        }
        if let Some(tools) = tools {
            pieces.push(Control("[AVAILABLE_TOOLS]"));
            pieces.push(Text(json::dumps(tools)));
            pieces.push(Control("[/AVAILABLE_TOOLS]"));
        }
        if let Some(settings) = settings {
            pieces.push(Control("[MODEL_SETTINGS]"));
            pieces.push(Text(settings.to_owned()));
            pieces.push(Control("[/MODEL_SETTINGS]"));
        }
        pieces.extend([Control("[INST]"), Text(text), Control("[/INST]")]);
    }

    fn assistant(
        self,
        chunks: &[Chunk],
        calls: &[Call],
        prefix: bool,
        past: bool,
        pieces: &mut Vec<Piece>,
    ) -> Result<()> {
        if self.version == Version::V1 && !calls.is_empty() {
            return Err(refusal("Mistral v1 has no tools"));
        }
        if self.version == Version::V2 && !calls.is_empty() && past {
            // Version 2 forgets its calls once the user has spoken again.
            return Ok(());
        }
        if chunks.is_empty() && calls.is_empty() {
            return Err(refusal("an assistant message is empty"));
        }
        match chunks {
            // From version 2 on, a text by itself ends without spaces.
            [Chunk::Text(text)] if self.version >= Version::V2 => {
                pieces.push(Text(text.trim_end_matches(' ').to_owned()));
            }
            chunks => self.chunks(chunks, pieces)?,
        }
        self.calls(calls, pieces);
        if !prefix {
            pieces.push(Control("</s>"));
        }
        Ok(())
    }

    fn chunks(self, chunks: &[Chunk], pieces: &mut Vec<Piece>) -> Result<()> {
        for chunk in chunks {
            match chunk {
                Chunk::Text(text) => pieces.push(Text(text.clone())),
                Chunk::Thinking { .. } if self.version < Version::V13 => {
                    return Err(refusal(format!("{} has no reasoning parts", self.name())));
                }
                Chunk::Thinking { text, closed } => {
                    pieces.extend([Control("[THINK]"), Text(text.clone())]);
                    if *closed {
                        pieces.push(Control("[/THINK]"));
                    }
                }
            }
        }
        Ok(())
    }

    fn calls(self, calls: &[Call], pieces: &mut Vec<Piece>) {
        if calls.is_empty() {
            return;
        }
        if self.version < Version::V11 {
            let list = calls.iter().map(|call| {
                let mut entry =
                    serde_json::json!({"name": call.name, "arguments": call.arguments.clone()});
                if self.version >= Version::V3 && call.has_id() {
                    entry["id"] = call.id.as_str().into();
                }
                entry
            });
            pieces.push(Control("[TOOL_CALLS]"));
            pieces.push(Text(json::dumps(&Value::Array(list.collect()))));
            return;
        }
        for call in calls {
            pieces.extend([Control("[TOOL_CALLS]"), Text(call.name.clone())]);
            if self.version == Version::V11 && call.has_id() {
                pieces.extend([Control("[CALL_ID]"), Text(call.id.clone())]);
            }
            let arguments = json::dumps(&call.arguments);
            pieces.extend([Control("[ARGS]"), Text(arguments)]);
        }
    }

    fn tool(
        self,
        name: Option<&str>,
        id: Option<&str>,
        content: &str,
        past: bool,
        pieces: &mut Vec<Piece>,
    ) -> Result<()> {
        let result = |pieces: &mut Vec<Piece>, inner: Vec<Piece>| {
            pieces.push(Control("[TOOL_RESULTS]"));
            pieces.extend(inner);
            pieces.push(Control("[/TOOL_RESULTS]"));
        };
        let id = id.unwrap_or_default();
        match self.version {
            Version::V1 => return Err(refusal("Mistral v1 has no tools")),
            Version::V2 if past => {}
            Version::V2 => {
                let list = serde_json::json!([{"name": name, "content": normal::parsed(content)}]);
                result(pieces, vec![Text(json::dumps(&list))]);
            }
            Version::V3 => {
                let answer = serde_json::json!({"content": normal::parsed(content), "call_id": id});
                result(pieces, vec![Text(json::dumps(&answer))]);
            }
            Version::V7 | Version::V11 => {
                let content = Text(content.to_owned());
                result(pieces, vec![Text(id.to_owned()), Control("[TOOL_CONTENT]"), content]);
            }
            Version::V13 | Version::V15 => result(pieces, vec![Text(content.to_owned())]),
        }
        Ok(())
    }
}

/// An error that says why a format does not allow a request.
fn refusal(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Template, why).so("the model's chat format refuses this conversation")
}
