//! What becomes of a model's reasoning: shown beside the answer, hidden, or shown alone.

use std::io::IsTerminal as _;

use clap::ValueEnum;
use tramontane::chat::{ReasoningSplitter, Voice};
use tramontane::error::Result;
use tramontane::tokenizer::Tokenizer;

use super::generate::print;

/// What is shown of an answer that begins with reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Reasoning {
    /// Reasoning and answer: dimmed on a terminal, elsewhere between <think> and </think>
    Show,
    /// The answer alone
    Hide,
    /// The reasoning alone
    Only,
}

/// Escape sequences around reasoning, and what stands between it and the answer.
const DIM: (&str, &str) = ("\u{1b}[2m", "\u{1b}[0m\n\n");
const TAGS: (&str, &str) = ("<think>\n", "\n</think>\n\n");

/// Takes the pieces of an output, tells reasoning from answer, and prints what is wanted as it comes.
pub(super) struct Printer {
    /// `None`: the output is one text, whatever it holds.
    splitter: Option<ReasoningSplitter>,
    wanted: Reasoning,
    /// What stands around reasoning.
    around: (&'static str, &'static str),
    prints: bool,
    /// Whether the last thing printed was reasoning, whose end is still to be marked.
    open: bool,
    reasoning: String,
    answer: String,
}

impl Printer {
    /// A printer that shows the output as it is; it prints if `prints`, and collects in any case.
    pub(super) fn plain(prints: bool) -> Self {
        let fancy = std::io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self {
            splitter: None,
            wanted: Reasoning::Show,
            around: if fancy { DIM } else { TAGS },
            prints,
            open: false,
            reasoning: String::new(),
            answer: String::new(),
        }
    }

    /// The same for an output after `prompt` that may hold reasoning, of which `wanted` is shown.
    pub(super) fn splitting(mut self, prompt: &str, wanted: Reasoning) -> Self {
        (self.splitter, self.wanted) = (Some(ReasoningSplitter::after_prompt(prompt)), wanted);
        self
    }

    /// Takes the next piece: the text that became certain, and the id that was generated.
    pub(super) fn push(
        &mut self,
        text: &str,
        id: Option<u32>,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<()> {
        let Some(splitter) = &mut self.splitter else { return self.say(Voice::Answer, text) };
        let mut parts = splitter.push(text);
        // A tag that is a control token has no text.
        let special = id.and_then(|id| tokenizer.filter(|t| t.is_special(id))?.piece(id));
        if let Some(tag) = special.filter(|name| ReasoningSplitter::is_tag(name)) {
            parts.extend(splitter.push(&tag));
        }
        parts.into_iter().try_for_each(|(voice, text)| self.say(voice, &text))
    }

    /// Ends the output.
    pub(super) fn finish(&mut self) -> Result<()> {
        let rest = self.splitter.as_mut().map(ReasoningSplitter::finish).unwrap_or_default();
        rest.into_iter().try_for_each(|(voice, text)| self.say(voice, &text))?;
        self.close()
    }

    /// The answer; `None` where it is not wanted.
    pub(super) fn answer(&self) -> Option<&str> {
        (self.wanted != Reasoning::Only).then_some(&*self.answer)
    }

    /// The reasoning; `None` where it is not wanted, or none was looked for.
    pub(super) fn reasoning(&self) -> Option<&str> {
        (self.splitter.is_some() && self.wanted != Reasoning::Hide).then_some(&*self.reasoning)
    }

    /// The answer, wanted or not: what a conversation goes on from.
    pub(super) fn into_answer(mut self) -> String {
        std::mem::take(&mut self.answer)
    }

    fn say(&mut self, voice: Voice, text: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let shown = match (voice, self.wanted) {
            (Voice::Answer, Reasoning::Only) | (Voice::Reasoning, Reasoning::Hide) => false,
            (Voice::Answer, Reasoning::Show | Reasoning::Hide)
            | (Voice::Reasoning, Reasoning::Show | Reasoning::Only) => self.prints,
        };
        match voice {
            Voice::Answer => self.answer.push_str(text),
            Voice::Reasoning => self.reasoning.push_str(text),
        }
        if !shown {
            return Ok(());
        }
        match voice {
            Voice::Answer => self.close()?,
            Voice::Reasoning if self.wanted == Reasoning::Show && !self.open => {
                self.open = true;
                print(self.around.0)?;
            }
            Voice::Reasoning => {}
        }
        print(text)
    }

    /// Marks the end of reasoning that was begun.
    fn close(&mut self) -> Result<()> {
        if std::mem::take(&mut self.open) { print(self.around.1) } else { Ok(()) }
    }
}

impl Drop for Printer {
    /// An output that broke off must not leave the terminal dimmed; that stdout is gone was told already.
    fn drop(&mut self) {
        let _ = self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(wanted: Reasoning, prompt: &str) -> (Option<String>, Option<String>) {
        let mut printer = Printer::plain(false).splitting(prompt, wanted);
        for text in ["<thi", "nk>2+2", "=4</think>", "\n\nQua", "tre"] {
            printer.push(text, None, None).unwrap();
        }
        printer.finish().unwrap();
        (printer.reasoning().map(str::to_owned), printer.answer().map(str::to_owned))
    }

    #[test]
    fn what_is_not_wanted_is_left_out() {
        let (reasoning, answer) = (Some("2+2=4".to_owned()), Some("Quatre".to_owned()));
        assert_eq!(parts(Reasoning::Show, ""), (reasoning.clone(), answer.clone()));
        assert_eq!(parts(Reasoning::Hide, ""), (None, answer));
        assert_eq!(parts(Reasoning::Only, ""), (reasoning, None));
    }

    #[test]
    fn a_plain_output_keeps_its_tags() {
        let mut printer = Printer::plain(false);
        printer.push("<think>a</think>b", None, None).unwrap();
        printer.finish().unwrap();
        assert_eq!(printer.reasoning(), None);
        assert_eq!(printer.into_answer(), "<think>a</think>b");
    }
}
