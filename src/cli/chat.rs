//! `chat`: hold a conversation, with line editing, history and commands.

mod commands;

use std::io::{BufRead as _, IsTerminal as _};
use std::process::ExitCode;

use rustyline::error::ReadlineError;
use tramontane::chat::{ChatRequest, Message};
use tramontane::error::Result;
use tramontane::generate::{CancelToken, FinishReason, Session, Summary};
use tramontane::sample::{Sampler, Sampling};
use tramontane::{Error, ErrorKind, Model};

use super::args::{ModelArgs, SamplingArgs};
use super::generate::{numerics, print, stream};
use super::reasoning::{Printer, Reasoning};
use super::{signals, talk};

/// Hold a conversation
///
/// Needs a model with a chat template. Type /help for the commands; """ begins and ends a message of several lines;
/// Ctrl-C stops the answer, Ctrl-D ends the program. If stdin is not a terminal, each line is one message.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A system message
    #[arg(long, value_name = "TEXT", env = "TRAMONTANE_SYSTEM")]
    system: Option<String>,

    /// What is shown of reasoning before an answer
    #[arg(long, value_enum, env = "TRAMONTANE_REASONING", default_value = "show")]
    reasoning: Reasoning,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    sampling: SamplingArgs,
}

/// The conversation and its settings.
struct Chat {
    model: Model,
    /// Taken while an answer is generated.
    session: Option<Session>,
    system: Option<String>,
    messages: Vec<Message>,
    sampling: Sampling,
    reasoning: Reasoning,
    last: Option<Summary>,
    /// What the first error was about.
    failed: Option<ErrorKind>,
    quiet: bool,
    cancel: CancelToken,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let sampling = args.sampling.sampling(None)?;
    let model = args.model.load()?;
    if model.chat_template().is_none() {
        return Err(no_template(&model));
    }
    // What makes no sense is told before the first message, not as the answer to it.
    let sampler = effective_sampler(&model, &sampling)?;
    if args.model.verbose {
        talk::say(&format!("sampler: {sampler}"));
    }
    let cancel = CancelToken::default();
    signals::cancel_on_interrupt(&cancel);
    let session = model.session().with_cancel_token(cancel.clone());
    let (quiet, system) = (args.model.quiet, args.system);
    let mut chat = Chat {
        model,
        session: Some(session),
        system,
        messages: Vec::new(),
        sampling,
        reasoning: args.reasoning,
        last: None,
        failed: None,
        quiet,
        cancel,
    };
    if std::io::stdin().is_terminal() { chat.interactive() } else { chat.piped() }
}

/// How tokens are chosen: by `sampling`, and by the model's own settings where that is silent.
fn effective_sampler(model: &Model, sampling: &Sampling) -> Result<String> {
    let sampling = sampling.clone().or(model.defaults());
    Ok(Sampler::new(&sampling, model.architecture().vocab)?.describe())
}

fn no_template(model: &Model) -> Error {
    let name = &model.info().name;
    Error::bad_input(format!("{name} has no chat template: it completes texts, and was not made for conversations"))
        .hint(
            "`tramontane generate` to complete a text, or a model for conversations: \
             tramontane chat -m mistralai/Ministral-3-3B-Instruct-2512, OpenLLM-France/Lucie-7B-Instruct-v1.1, \
             HuggingFaceTB/SmolLM3-3B",
        )
}

impl Chat {
    /// Reads lines from a terminal until /bye or the end of input.
    fn interactive(&mut self) -> Result<ExitCode> {
        let mut editor = rustyline::DefaultEditor::new().map_err(terminal_error)?;
        let mut history = history_path();
        if let Some(path) = &history {
            // There is no history the first time.
            let _ = editor.load_history(path);
        }
        if !self.quiet {
            talk::say(&format!("{} · /help for commands, Ctrl-D to end", self.model.info().name));
        }
        let mut block: Option<String> = None;
        loop {
            let line = match editor.readline(if block.is_some() { "… " } else { "> " }) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) if block.take().is_some() => continue,
                Err(ReadlineError::Interrupted) => {
                    talk::say("Ctrl-D or /bye ends the program");
                    continue;
                }
                Err(ReadlineError::Eof) => break,
                Err(e) => return Err(terminal_error(e)),
            };
            let Some(input) = collect(&mut block, &line) else { continue };
            if input.trim().is_empty() {
                continue;
            }
            let _ = editor.add_history_entry(input.as_str());
            // At once: a second Ctrl-C ends the program without another word.
            if let Some(path) = &history
                && let Err(e) = editor.append_history(path)
            {
                talk::say(&format!("the history could not be saved to {}: {e}", path.display()));
                history = None;
            }
            if !self.handle(&input)? {
                break;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Takes each line of stdin as a message or a command; the exit code is that of the first error.
    fn piped(&mut self) -> Result<ExitCode> {
        let mut block: Option<String> = None;
        let mut lines = std::io::stdin().lock().lines();
        loop {
            let line = lines.next().transpose();
            let line = line.map_err(|e| Error::io(std::path::Path::new("stdin"), e))?;
            let input = match &line {
                Some(line) => collect(&mut block, line),
                // What stands behind an open mark is a message too.
                None => block.take(),
            };
            let go_on = match input.filter(|input| !input.trim().is_empty()) {
                Some(input) => self.handle(&input)?,
                None => true,
            };
            let cancelled =
                self.last.as_ref().is_some_and(|s| s.finish_reason == FinishReason::Cancelled);
            if cancelled {
                return Ok(ExitCode::from(ErrorKind::Cancelled.exit_code()));
            }
            if !go_on || line.is_none() {
                let code = self.failed.map_or(0, ErrorKind::exit_code);
                return Ok(ExitCode::from(code));
            }
        }
    }

    /// Runs a command or answers a message; `false` ends the program. Only errors of stdout end it too: any
    /// other is shown, and the conversation goes on.
    fn handle(&mut self, input: &str) -> Result<bool> {
        let result = match input.strip_prefix('/') {
            Some(command) => commands::run(self, command),
            None => self.answer(input).map(|()| true),
        };
        match result {
            Err(e) if super::is_closed_pipe(&e) => Err(e),
            Err(e) => {
                talk::say(&format!("error: {e}"));
                self.failed.get_or_insert(e.kind());
                Ok(true)
            }
            ok => ok,
        }
    }

    fn answer(&mut self, text: &str) -> Result<()> {
        let system = self.system.as_deref().map(Message::system);
        let new = Message::user(text);
        let messages = system.into_iter().chain(self.messages.iter().cloned()).chain([new.clone()]);
        let request = ChatRequest::new(messages.collect());
        let new_session = || self.model.session().with_cancel_token(self.cancel.clone());
        let session = self.session.take().unwrap_or_else(new_session);
        self.cancel.reset();
        let mut generator = session.chat(&request, &self.sampling)?;
        let prompt = self.model.chat_template().map(|chat| chat.render(&request)).transpose()?;
        let mut printer =
            Printer::plain(true).splitting(&prompt.unwrap_or_default(), self.reasoning);
        let summary = stream(&mut generator, &self.model, &mut printer)?;
        print("\n")?;
        self.session = Some(generator.into_session());
        // Reasoning is not part of the conversation: models are trained without that of earlier turns.
        let answer = printer.into_answer();
        let nothing_came = answer.trim().is_empty()
            && matches!(summary.finish_reason, FinishReason::Cancelled | FinishReason::Error);
        if !nothing_came {
            self.messages.extend([new, Message::assistant(answer.trim_end())]);
        }
        if !self.quiet {
            talk::say_notes(&self.model);
            talk::say(&talk::speed(&summary));
        }
        let failed = summary.error.clone().map(|what| numerics(&self.model, what));
        self.last = Some(summary);
        failed.map_or(Ok(()), Err)
    }
}

/// Puts the lines between two `"""` together; `None` while the block is open.
fn collect(block: &mut Option<String>, line: &str) -> Option<String> {
    const MARK: &str = "\"\"\"";
    if let Some(mut text) = block.take() {
        if let Some(last) = line.trim_end().strip_suffix(MARK) {
            return Some(text + last);
        }
        text.push_str(line);
        text.push('\n');
        *block = Some(text);
        return None;
    }
    let Some(first) = line.trim_start().strip_prefix(MARK) else { return Some(line.to_owned()) };
    if let Some(all) = first.trim_end().strip_suffix(MARK) {
        return Some(all.to_owned());
    }
    *block = Some(if first.is_empty() { String::new() } else { format!("{first}\n") });
    None
}

fn terminal_error(e: ReadlineError) -> Error {
    Error::new(ErrorKind::Io, format!("the terminal cannot be read: {e}")).caused_by(e)
}

/// Where the history of inputs is kept, if this user has such a place.
fn history_path() -> Option<std::path::PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(std::path::PathBuf::from);
    let state = state
        .or_else(|| std::env::home_dir().map(|home| home.join(".local/state")))?
        .join("tramontane");
    std::fs::create_dir_all(&state).ok()?;
    Some(state.join("history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_between_marks_are_one_message() {
        let mut block = None;
        assert_eq!(collect(&mut block, "bonjour"), Some("bonjour".into()));
        assert_eq!(collect(&mut block, "\"\"\"un"), None);
        assert_eq!(collect(&mut block, ""), None);
        assert_eq!(collect(&mut block, "deux\"\"\""), Some("un\n\ndeux".into()));
        assert_eq!(collect(&mut block, "\"\"\"tout\"\"\""), Some("tout".into()));
        assert!(block.is_none());
    }
}
