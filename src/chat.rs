//! A conversation becomes a prompt, by the model's own chat template.
//!
//! In come [`Message`]s, out goes the text the model was trained to continue, or its token ids. The template
//! is the model's own Jinja program; Mistral repositories that ship none get the format that goes with the
//! version of their tokenizer. What people write can never become a control token: see
//! [`ChatTemplate::encode`].

mod encode;
mod json;
mod marks;
mod message;
mod mistral;
mod python;
mod reasoning;
mod source;
mod syntax;
mod template;
mod watch;

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::files::{MAX_CONFIG, ModelFiles};
use crate::tokenizer::{Kind, Tokenizer};
use encode::Prompt;
use template::Template;

pub use message::{ChatRequest, Message, ROLES};
pub use reasoning::{ReasoningSplitter, Voice};

/// The chat format of one model. Cheap to clone, and shared between threads as it is.
#[derive(Debug, Clone)]
pub struct ChatTemplate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    format: Format,
    special_tokens: Map<String, Value>,
    source: String,
}

/// How a conversation is laid out.
#[derive(Debug, Clone)]
enum Format {
    /// By a program that came with the model, or two: one for any conversation, one for tools.
    Jinja { default: Compiled, tool_use: Option<Compiled> },
    /// As Mistral's tokenizers do it.
    Mistral(mistral::Format),
    /// In a way that is not known here, for the reason given.
    Unknown(String),
}

/// A template, or why there is none: a broken template must not keep the model from completing plain text.
#[derive(Debug, Clone)]
enum Compiled {
    Ready(Template),
    Broken { what: String, place: String },
}

impl Compiled {
    fn new(source: &str, place: &str) -> Self {
        match Template::compile(source, place) {
            Ok(template) => Self::Ready(template),
            Err(e) => Self::Broken { what: e.what(), place: place.to_owned() },
        }
    }

    fn get(&self) -> Result<&Template> {
        match self {
            Self::Ready(template) => Ok(template),
            Self::Broken { what, place } => Err(Error::new(ErrorKind::Template, what.clone())
                .at(place)
                .so("no conversation can be rendered")
                .hint("complete plain text with `tramontane generate`")),
        }
    }
}

impl ChatTemplate {
    /// The chat format of a model, or `None` if it has none: its own template, else the format that goes with
    /// the version of a Mistral tokenizer.
    ///
    /// Templates are looked for in `chat_template.jinja`, `tokenizer_config.json` and `chat_template.json`.
    ///
    /// # Errors
    ///
    /// If a file cannot be read. A template that is no valid Jinja, or a format that is not known here, is an
    /// error when it is rendered, not before: such a model can still complete plain text.
    pub fn load(files: &ModelFiles, tokenizer: Option<&Tokenizer>) -> Result<Option<Self>> {
        let (format, source) = match source::find(files)? {
            Some(found) => {
                let place = files.place(found.file);
                let default = Compiled::new(&found.default, &place);
                let tool_use = found.tool_use.map(|text| Compiled::new(&text, &place));
                (Format::Jinja { default, tool_use }, found.file.to_owned())
            }
            None => {
                match tokenizer.map(|tokenizer| mistral_format(files, tokenizer)).transpose()? {
                    Some(Some((format, name))) => (format, name.to_owned()),
                    Some(None) | None => return Ok(None),
                }
            }
        };
        let mut special_tokens = source::special_tokens(files)?;
        if special_tokens.is_empty() {
            let tokens = tokenizer.map(|t| [("bos_token", t.bos_id()), ("eos_token", t.eos_id())]);
            for (name, id) in tokens.into_iter().flatten() {
                if let Some(token) = id.and_then(|id| tokenizer?.piece(id)) {
                    special_tokens.insert(name.into(), token.into());
                }
            }
        }
        Ok(Some(Self(Arc::new(Inner { format, special_tokens, source }))))
    }

    /// A chat format from the text of a Jinja template and the special tokens it knows by name, such as
    /// `("eos_token", "</s>")`.
    ///
    /// ```
    /// use tramontane::chat::{ChatRequest, ChatTemplate, Message};
    /// let text = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}";
    /// let template = ChatTemplate::from_source(text, &[("eos_token", "</s>")])?;
    /// let prompt = template.render(&ChatRequest::new(vec![Message::user("Bonjour")]))?;
    /// assert_eq!(prompt, "[user] Bonjour</s>");
    /// # Ok::<(), tramontane::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If `text` is no valid template; the message names the line.
    pub fn from_source(text: &str, special_tokens: &[(&str, &str)]) -> Result<Self> {
        let template = Template::compile(text, "the chat template")?;
        let special_tokens =
            special_tokens.iter().map(|(name, token)| ((*name).into(), (*token).into())).collect();
        Ok(Self(Arc::new(Inner {
            format: Format::Jinja { default: Compiled::Ready(template), tool_use: None },
            special_tokens,
            source: "the chat template".into(),
        })))
    }

    /// The same format, for which it is always `time`, written like `2026-01-15T12:34:56`.
    ///
    /// Some templates write the date into the prompt; prompts that must not change from day to day need this.
    ///
    /// # Errors
    ///
    /// If `time` is not a date and time.
    pub fn at_time(&self, time: &str) -> Result<Self> {
        let now: jiff::civil::DateTime = time.parse().map_err(|e| {
            Error::bad_input(format!("\"{}\" is not a date and time: {e}", time.escape_default()))
        })?;
        let fix = |compiled: &Compiled| match compiled {
            Compiled::Ready(template) => Compiled::Ready(template.clone().at_time(now)),
            Compiled::Broken { .. } => compiled.clone(),
        };
        let format = match &self.0.format {
            Format::Jinja { default, tool_use } => {
                Format::Jinja { default: fix(default), tool_use: tool_use.as_ref().map(fix) }
            }
            other @ (Format::Mistral(_) | Format::Unknown(_)) => other.clone(),
        };
        Ok(Self(Arc::new(Inner {
            format,
            special_tokens: self.0.special_tokens.clone(),
            source: self.0.source.clone(),
        })))
    }

    /// Where the format came from: a file name, or the name of a built-in format.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// The prompt for `request`, byte for byte as Hugging Face transformers renders it.
    ///
    /// # Errors
    ///
    /// If the request is malformed, or the template refuses it or breaks a limit.
    pub fn render(&self, request: &ChatRequest) -> Result<String> {
        request.check()?;
        match &self.0.format {
            Format::Jinja { .. } => {
                let template = self.template_for(request)?;
                render(template, self.variables(request), request.continue_final_message)
            }
            Format::Mistral(format) => format.render(request),
            Format::Unknown(why) => Err(unknown(why)),
        }
    }

    /// The ids of the prompt for `request`.
    ///
    /// Only what the template itself writes can become control tokens. Contents, tool results, arguments and
    /// schemas are text, even where they spell a control token or where halves of one meet. For contents
    /// without such spellings the ids are those of `apply_chat_template` in transformers, or of
    /// mistral-common for its formats. The template, not the tokenizer, decides about a token that begins the
    /// text: so there is one, never two.
    ///
    /// # Errors
    ///
    /// As [`Self::render`], and if the tokenizer cannot read the prompt.
    pub fn encode(&self, request: &ChatRequest, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        request.check()?;
        match &self.0.format {
            Format::Jinja { .. } => {
                let prompt = Prompt {
                    template: self.template_for(request)?,
                    variables: &self.variables(request),
                    special_tokens: &self.0.special_tokens,
                    continue_final: request.continue_final_message,
                };
                prompt.encode(tokenizer)
            }
            Format::Mistral(format) => format.encode(request, tokenizer),
            Format::Unknown(why) => Err(unknown(why)),
        }
    }

    /// The tokens that end an answer in this format, such as `<|im_end|>`: what follows an answer in a
    /// conversation. Empty if nothing can be said.
    #[must_use]
    pub fn stop_tokens(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        match &self.0.format {
            Format::Jinja { .. } => self.after_an_answer(tokenizer).into_iter().collect(),
            Format::Mistral(_) => tokenizer.id("</s>").into_iter().collect(),
            Format::Unknown(_) => Vec::new(),
        }
    }

    /// The control token that this template puts behind an answer.
    fn after_an_answer(&self, tokenizer: &Tokenizer) -> Option<u32> {
        const ANSWER: &str = "tramontane";
        let mut messages = vec![Message::user("mistral ?"), Message::assistant(ANSWER)];
        for _ in 0..2 {
            let mut request = ChatRequest::new(messages.clone());
            request.add_generation_prompt = false;
            let rendered = self.render(&request).unwrap_or_default();
            let after = rendered.rsplit_once(ANSWER).map_or("", |(_, after)| after.trim_start());
            let ids = tokenizer.encode_special(after).unwrap_or_default();
            if let Some(id) = ids.first().filter(|id| tokenizer.control_ids().contains(id)) {
                return Some(*id);
            }
            // Some formats end an answer only by the beginning of the next question.
            messages.push(Message::user("et alors ?"));
        }
        None
    }

    fn template_for(&self, request: &ChatRequest) -> Result<&Template> {
        match &self.0.format {
            Format::Jinja { default, tool_use } => {
                let tool_use = tool_use.as_ref().filter(|_| request.tools.is_some());
                tool_use.unwrap_or(default).get()
            }
            Format::Mistral(_) => Err(unknown("the format is not a template")),
            Format::Unknown(why) => Err(unknown(why)),
        }
    }

    /// What the template of `request` may read.
    fn variables(&self, request: &ChatRequest) -> Map<String, Value> {
        let messages = request.messages.iter().map(|m| Value::Object(m.for_template())).collect();
        let mut variables = self.0.special_tokens.clone();
        variables.insert("documents".into(), Value::Null);
        variables.extend(request.template_kwargs.clone());
        variables.insert("messages".into(), Value::Array(messages));
        variables.insert("tools".into(), request.tools.clone().unwrap_or_default());
        variables.insert("add_generation_prompt".into(), request.add_generation_prompt.into());
        variables
    }
}

/// The format that goes with a Mistral tokenizer, and its name.
fn mistral_format(
    files: &ModelFiles,
    tokenizer: &Tokenizer,
) -> Result<Option<(Format, &'static str)>> {
    let kind = tokenizer.kind();
    // Version 1 came with no control tokens: any SentencePiece file looks like it.
    if matches!(&kind, Kind::SentencePiece { version } if version == "v1") && !is_mistral(files)? {
        return Ok(None);
    }
    let settings = match &kind {
        Kind::Tekken { version } if version == "v15" => mistral::Settings::read(files)?,
        Kind::Tekken { .. } | Kind::SentencePiece { .. } | Kind::HuggingFace => {
            mistral::Settings::default()
        }
    };
    Ok(match mistral::Format::of(&kind, settings) {
        Ok(Some(format)) => Some((Format::Mistral(format), format.name())),
        Ok(None) => None,
        Err(e) => Some((Format::Unknown(e.what()), "an unknown Mistral format")),
    })
}

/// Whether the files may be those of one of Mistral's models: unless `config.json` names another family.
fn is_mistral(files: &ModelFiles) -> Result<bool> {
    let Some(config) = files.read_text("config.json", MAX_CONFIG)? else { return Ok(true) };
    let config: Value = serde_json::from_str(&config).unwrap_or_default();
    let family = config["model_type"].as_str().unwrap_or_default();
    let ours = ["mistral", "mixtral", "ministral"].iter().any(|name| family.starts_with(name));
    Ok(ours || files.has("params.json"))
}

fn unknown(why: &str) -> Error {
    Error::new(ErrorKind::NotSupported, why)
        .so("no conversation can be rendered")
        .hint("complete plain text with `tramontane generate`")
}

/// Renders `template`; with `continue_final`, the prompt ends where the text of the last message ends.
fn render(
    template: &Template,
    mut variables: Map<String, Value>,
    continue_final: bool,
) -> Result<String> {
    /// Follows the last message while it is rendered: a template that trims it takes the space away.
    const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
    let n_messages = variables.get("messages").and_then(Value::as_array).map_or(0, Vec::len);
    if !continue_final {
        return template.render(&variables, n_messages);
    }
    let gone = || {
        Error::new(ErrorKind::Template, "the chat template drops the final message")
            .so("there is nothing to continue")
    };
    let messages = variables.get_mut("messages").and_then(Value::as_array_mut);
    let text = messages
        .and_then(|list| final_text(list.last_mut()?))
        .ok_or_else(|| Error::bad_input("the final message has no text to continue"))?;
    let wanted = text.trim_matches(python::is_space).to_owned();
    text.push_str(TAG);
    if !template.source.contains("content") {
        return Err(gone());
    }
    let mut rendered = template.render(&variables, n_messages)?;
    let at = rendered.rfind(TAG.trim_end()).ok_or_else(gone)?;
    if !rendered.contains(&wanted) {
        return Err(gone());
    }
    let trimmed = !rendered[at..].starts_with(TAG);
    rendered.truncate(at);
    if trimmed {
        rendered.truncate(rendered.trim_end_matches(python::is_space).len());
    }
    Ok(rendered)
}

/// The text of a message that can be continued: its content, or the last text part of it.
fn final_text(message: &mut Value) -> Option<&mut String> {
    let mut content = message.get_mut("content")?;
    if let Value::Array(parts) = content {
        content = parts.iter_mut().rev().find_map(|part| part.get_mut("text"))?;
    }
    if let Value::String(text) = content { Some(text) } else { None }
}
