//! `generate`: continue a text, or answer one message by the model's chat template.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;
use tramontane::chat::{ChatRequest, Message};
use tramontane::error::Result;
use tramontane::generate::{FinishReason, Generator, Summary};
use tramontane::sample::Sampling;
use tramontane::{Error, ErrorKind, Model};

use super::args::{IdsArgs, ModelArgs, SamplingArgs, read_text};
use super::reasoning::{Printer, Reasoning};
use super::{signals, stdout_error, talk};

/// Tokens that are generated where `-n` does not say.
const MAX_TOKENS: usize = 256;

/// Continue a text
///
/// The prompt comes from the command line, from a file, or from stdin if it is not a terminal.
/// A model with a chat template answers as an assistant with --chat or --system. A model for source code fills the gap
/// between the prompt and --suffix.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The text to continue
    #[arg(value_name = "PROMPT", conflicts_with = "prompt_flag")]
    prompt: Option<String>,

    /// The text to continue (as a flag)
    #[arg(short = 'p', long = "prompt", value_name = "PROMPT", env = "TRAMONTANE_PROMPT")]
    prompt_flag: Option<String>,

    /// Read the prompt from a file
    #[arg(short, long, value_name = "FILE", env = "TRAMONTANE_FILE", conflicts_with_all = ["prompt", "prompt_flag"])]
    file: Option<PathBuf>,

    #[command(flatten)]
    ids: IdsArgs,

    /// Fill the gap between the prompt and this text, by a model that was made for it (Codestral)
    #[arg(long, value_name = "TEXT", env = "TRAMONTANE_SUFFIX", conflicts_with_all = ["ids", "ids_file", "chat", "system"])]
    suffix: Option<String>,

    /// As --suffix, read from a file
    #[arg(long, value_name = "FILE", env = "TRAMONTANE_SUFFIX_FILE", conflicts_with_all = ["suffix", "ids", "ids_file", "chat", "system"])]
    suffix_file: Option<PathBuf>,

    /// Take the prompt as a user's message and answer by the model's chat template
    #[arg(long, env = "TRAMONTANE_CHAT", conflicts_with_all = ["ids", "ids_file"])]
    chat: bool,

    /// A system message; implies --chat
    #[arg(long, value_name = "TEXT", env = "TRAMONTANE_SYSTEM", conflicts_with_all = ["ids", "ids_file"])]
    system: Option<String>,

    /// Print only what was generated, not the prompt before it, nor the text behind a gap
    #[arg(long, env = "TRAMONTANE_NO_DISPLAY_PROMPT")]
    no_display_prompt: bool,

    /// What is shown of reasoning before an answer [default: show, where a chat template is used]
    #[arg(long, value_enum, env = "TRAMONTANE_REASONING")]
    reasoning: Option<Reasoning>,

    /// Print one JSON object instead of text
    #[arg(long, env = "TRAMONTANE_JSON")]
    json: bool,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    sampling: SamplingArgs,
}

/// What is to be continued.
enum Prompt {
    Ids(Vec<u32>),
    Text(String),
    /// Text with a gap: what is before it, and what is behind it.
    Gap(String, String),
    Chat(ChatRequest),
}

impl Prompt {
    /// What stands before and behind the text that is generated.
    fn around(&self) -> (&str, &str) {
        match self {
            Self::Text(before) => (before, ""),
            Self::Gap(before, behind) => (before, behind),
            Self::Ids(_) | Self::Chat(_) => ("", ""),
        }
    }
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let prompt = args.prompt()?;
    let sampling = args.sampling.sampling(Some(MAX_TOKENS))?;
    let model = args.model.load()?;
    let display = !args.no_display_prompt && !args.json;
    let mut generator = start(&model, &prompt, &sampling)?;
    signals::cancel_on_interrupt(&generator.cancel_token());
    if args.model.verbose {
        talk::say(&format!("sampler: {}", generator.sampler().describe()));
    }
    let (before, behind) = if display { prompt.around() } else { ("", "") };
    print(before)?;
    let mut printer = args.printer(&model, &prompt)?;
    let summary = stream(&mut generator, &model, &mut printer)?;
    if args.json {
        print(&format!("{}\n", report(&model, &printer, &summary)))?;
    } else {
        print(&format!("{behind}\n"))?;
    }
    if !args.model.quiet {
        talk::say_notes(&model);
        talk::say(&talk::speed(&summary));
    }
    match (summary.error, summary.finish_reason) {
        (Some(error), _) => Err(numerics(&model, error)),
        (None, FinishReason::Cancelled) => Ok(ExitCode::from(ErrorKind::Cancelled.exit_code())),
        (None, _) => Ok(ExitCode::SUCCESS),
    }
}

impl Args {
    /// Prints the output: as it is after plain text, unless reasoning is asked for.
    fn printer(&self, model: &Model, prompt: &Prompt) -> Result<Printer> {
        let printer = Printer::plain(!self.json);
        Ok(match (prompt, self.reasoning) {
            (Prompt::Chat(request), wanted) => {
                let prompt = model.chat_template().map(|chat| chat.render(request)).transpose()?;
                let wanted = wanted.unwrap_or(Reasoning::Show);
                printer.splitting(&prompt.unwrap_or_default(), wanted)
            }
            (Prompt::Ids(_) | Prompt::Text(_) | Prompt::Gap(..), Some(wanted)) => {
                printer.splitting("", wanted)
            }
            (Prompt::Ids(_) | Prompt::Text(_) | Prompt::Gap(..), None) => printer,
        })
    }

    fn prompt(&self) -> Result<Prompt> {
        if let Some(ids) = self.ids.read()? {
            return Ok(Prompt::Ids(ids));
        }
        let text = self.text()?;
        if let Some(suffix) = self.suffix()? {
            return Ok(Prompt::Gap(text, suffix));
        }
        if !self.chat && self.system.is_none() {
            return Ok(Prompt::Text(text));
        }
        let system = self.system.as_deref().map(Message::system);
        Ok(Prompt::Chat(ChatRequest::new(
            system.into_iter().chain([Message::user(&text)]).collect(),
        )))
    }

    /// The text behind the gap, if there is one.
    fn suffix(&self) -> Result<Option<String>> {
        match &self.suffix_file {
            Some(path) => read_text(path).map(Some),
            None => Ok(self.suffix.clone()),
        }
    }

    fn text(&self) -> Result<String> {
        if let Some(text) = self.prompt.as_ref().or(self.prompt_flag.as_ref()) {
            return Ok(text.clone());
        }
        if let Some(path) = &self.file {
            return read_text(path);
        }
        if std::io::stdin().is_terminal() {
            return Err(Error::bad_input("there is no prompt")
                .hint("tramontane generate \"Il était une fois\""));
        }
        let mut text = String::new();
        let read = std::io::stdin().read_to_string(&mut text);
        read.map_err(|e| Error::io(std::path::Path::new("stdin"), e))?;
        // A shell adds a newline that nobody means.
        Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
    }
}

fn start(model: &Model, prompt: &Prompt, sampling: &Sampling) -> Result<Generator> {
    match prompt {
        Prompt::Ids(ids) => model.session().generate_ids(ids, sampling),
        Prompt::Text(text) => model.session().generate(text, sampling),
        Prompt::Gap(before, behind) => model.session().fill_in(before, behind, sampling),
        Prompt::Chat(request) => model.session().chat(request, sampling),
    }
}

/// Runs the generation to its end; the pieces go to `printer` as they come.
pub(super) fn stream(
    generator: &mut Generator,
    model: &Model,
    printer: &mut Printer,
) -> Result<Summary> {
    for piece in generator {
        let piece = piece?;
        printer.push(&piece.text, piece.id, model.tokenizer())?;
        if let Some(summary) = piece.summary {
            printer.finish()?;
            return Ok(summary);
        }
    }
    Err(Error::new(ErrorKind::Io, "the generation ended without a summary"))
}

/// The error of a generation that ended because `what` is no number.
pub(super) fn numerics(model: &Model, what: String) -> Error {
    Error::new(ErrorKind::Numerics, what)
        .at(&model.info().name)
        .so("the model's weights are damaged, or overflow in this number format")
        .hint("--format f32, or pulling the model again")
}

/// Prints to stdout at once.
pub(super) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(stdout_error)
}

/// The JSON object of a generation: its field names are stable.
fn report(model: &Model, printer: &Printer, s: &Summary) -> serde_json::Value {
    let i = model.info();
    json!({
        "text": printer.answer().filter(|_| model.tokenizer().is_some()),
        "reasoning": printer.reasoning(),
        "token_ids": s.token_ids,
        "finish_reason": s.finish_reason,
        "usage": s.usage,
        "timings": s.timings,
        "model": {
            "name": i.name,
            "family": i.family,
            "parameters": i.parameters,
            "format": i.format,
            "device": i.device,
        },
        "token_hash": s.token_hash,
    })
}
