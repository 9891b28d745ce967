//! `template`: a conversation → the prompt that the model's chat template makes of it.

use std::io::{IsTerminal as _, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};
use tramontane::chat::{ChatRequest, ChatTemplate};
use tramontane::error::Result;
use tramontane::files::{MAX_CONFIG, ModelFiles};
use tramontane::hub::{self, HubOptions, ModelRef};
use tramontane::tokenizer::Tokenizer;
use tramontane::{Error, ErrorKind};

use super::generate::print;
use super::talk::{self, LoadBar};

/// Turn a conversation into a prompt by the model's own chat template
///
/// Prints the prompt byte for byte and nothing else. A folder that holds only tokenizer_config.json and
/// chat_template.jinja is enough, unless --json asks for ids. Of a model on the hub no weights are fetched.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The conversation as JSON: a list of messages, or {"messages", "tools", "chat_template_kwargs"}; without
    /// it, or as -, stdin is read
    #[arg(long, env = "TRAMONTANE_MESSAGES", value_name = "FILE")]
    messages: Option<PathBuf>,

    /// Model: a folder, a *.safetensors file, organisation/name[@revision] or a short name of the catalogue; nothing for
    /// the built-in one
    #[arg(short, long, env = "TRAMONTANE_MODEL", value_name = "MODEL")]
    model: Option<String>,

    /// End the prompt after the last message, not where an answer begins
    #[arg(long, env = "TRAMONTANE_NO_GENERATION_PROMPT")]
    no_generation_prompt: bool,

    /// End the prompt inside the last message, for the model to go on with it
    #[arg(long, env = "TRAMONTANE_CONTINUE_FINAL_MESSAGE")]
    continue_final_message: bool,

    /// The time for templates that write the date [default: now]
    #[arg(long, env = "TRAMONTANE_NOW", value_name = "2026-01-15T12:34:56")]
    now: Option<String>,

    /// Print one JSON object: {"text", "ids"}
    #[arg(long, env = "TRAMONTANE_JSON")]
    json: bool,

    /// Never use the network
    #[arg(long, env = "TRAMONTANE_OFFLINE")]
    offline: bool,

    /// Say where the template came from
    #[arg(short, long, env = "TRAMONTANE_VERBOSE")]
    verbose: bool,

    /// Say nothing on stderr but errors
    #[arg(short, long, env = "TRAMONTANE_QUIET", conflicts_with = "verbose")]
    quiet: bool,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let request = args.request()?;
    let model = ModelRef::parse(args.model.as_deref())?;
    let files = args.files(&model)?;
    let (template, tokenizer) = args.load(&model, &files)?;
    if args.verbose {
        talk::say(&format!("template: {}", template.source()));
    }
    let text = template.render(&request)?;
    match tokenizer.filter(|_| args.json) {
        None => print(&text)?,
        Some(tokenizer) => {
            let ids = template.encode(&request, &tokenizer)?;
            print(&format!("{}\n", json!({ "text": text, "ids": ids })))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn files(&self, model: &ModelRef) -> Result<ModelFiles> {
        let mut options = HubOptions::from_env();
        options.offline |= self.offline;
        options.weights = false;
        let bar = LoadBar::new(!self.quiet);
        let files = hub::resolve(model, &options, &bar)?;
        bar.done();
        Ok(files)
    }

    /// The template, and the tokenizer if there is one. Text alone needs no sound tokenizer.
    fn load(
        &self,
        model: &ModelRef,
        files: &ModelFiles,
    ) -> Result<(ChatTemplate, Option<Tokenizer>)> {
        let tokenizer = match Tokenizer::load(files) {
            Err(_) if !self.json && ChatTemplate::load(files, None)?.is_some() => None,
            loaded => loaded?,
        };
        if self.json && tokenizer.is_none() {
            return Err(Error::bad_model(
                "the model has no tokenizer, expected tokenizer.json, tekken.json or tokenizer.model",
            )
            .at(model)
            .hint("without --json the prompt is text, for which no tokenizer is needed"));
        }
        let template = ChatTemplate::load(files, tokenizer.as_ref())?.ok_or_else(|| {
            Error::bad_model(
                "the model has no chat template, expected chat_template.jinja or `chat_template` in \
                 tokenizer_config.json",
            )
            .at(model)
            .hint("`tramontane generate` to complete a text")
        })?;
        let template = match &self.now {
            Some(now) => template.at_time(now)?,
            None => template,
        };
        Ok((template, tokenizer))
    }

    /// The request that the file of messages and the flags make.
    fn request(&self) -> Result<ChatRequest> {
        let (text, place) = self.input()?;
        let value: Value = serde_json::from_str(text.trim_start_matches('\u{feff}'))
            .map_err(|e| Error::bad_input(format!("this is not JSON: {e}")).at(&place))?;
        let mut request = ChatRequest::from_json(value).map_err(|e| e.at(&place))?;
        request.add_generation_prompt &= !self.no_generation_prompt;
        if self.continue_final_message {
            request.continue_final_message = true;
            request.add_generation_prompt = false;
        }
        Ok(request)
    }

    /// The conversation as it is written, and where.
    fn input(&self) -> Result<(String, String)> {
        let file = self.messages.as_deref().filter(|path| *path != Path::new("-"));
        if let Some(path) = file {
            let file = std::fs::File::open(path).map_err(|e| unreadable(path, e))?;
            return Ok((read(file, path)?, path.display().to_string()));
        }
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            return Err(Error::bad_input("there is no conversation")
                .hint("tramontane template -m MODEL --messages FILE.json"));
        }
        Ok((read(stdin.lock(), Path::new("stdin"))?, "stdin".to_owned()))
    }
}

/// Reads a conversation, which is no longer than a configuration may be.
fn read(from: impl Read, place: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    from.take(MAX_CONFIG + 1).read_to_end(&mut bytes).map_err(|e| unreadable(place, e))?;
    if bytes.len() as u64 > MAX_CONFIG {
        return Err(Error::bad_input(format!(
            "the conversation has more than {MAX_CONFIG} bytes, expected at most that"
        ))
        .at(place.display()));
    }
    String::from_utf8(bytes)
        .map_err(|_| Error::bad_input("the conversation is not UTF-8").at(place.display()))
}

/// A file that was named on the command line and cannot be read is a wrong flag.
fn unreadable(path: &Path, e: std::io::Error) -> Error {
    Error::new(ErrorKind::BadInput, format!("the conversation cannot be read: {e}"))
        .at(path.display())
        .caused_by(e)
}
