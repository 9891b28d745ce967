//! `tokenize`: text → ids, ids → text.

use std::io::{BufRead as _, IsTerminal as _, Read as _};
use std::path::Path;
use std::process::ExitCode;

use serde::Deserialize;
use serde_json::json;
use tramontane::Error;
use tramontane::error::{Result, printable};
use tramontane::hub::{self, HubOptions, ModelRef};
use tramontane::tokenizer::{FillIn, Tokenizer};

use super::generate::print;
use super::talk::{self, LoadBar};

/// Turn text into token ids, or ids into text
///
/// Without a flag that says otherwise, prints each token on a line: its id, a tab, the token as the
/// tokenizer's file writes it. A folder that holds only a tokenizer is enough; of a model on the hub no
/// weights are fetched.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The text, or with --decode the ids; without it, stdin is read
    #[arg(value_name = "TEXT", conflicts_with = "jsonl")]
    text: Option<String>,

    /// Model: a folder, a *.safetensors file, organisation/name[@revision] or a short name of the catalogue; nothing for
    /// the built-in one
    #[arg(short, long, env = "TRAMONTANE_MODEL", value_name = "MODEL")]
    model: Option<String>,

    /// Read {"text": …, "special": bool?, "suffix": …?} from each line of stdin, and answer each with {"ids": […]}
    #[arg(long, env = "TRAMONTANE_JSONL")]
    jsonl: bool,

    /// Turn ids (separated by commas or spaces; with --jsonl {"ids": […]}) into text
    #[arg(long, env = "TRAMONTANE_DECODE", conflicts_with_all = ["bos", "ids"])]
    decode: bool,

    /// Put the token before the text that begins one (BOS)
    #[arg(long, env = "TRAMONTANE_BOS")]
    bos: bool,

    /// Read control tokens such as </s> in the text as what they are; with --decode, write them out
    #[arg(long, env = "TRAMONTANE_SPECIAL")]
    special: bool,

    /// Lay out a text with a gap before this one, as generate --suffix does
    #[arg(long, value_name = "TEXT", env = "TRAMONTANE_SUFFIX", conflicts_with_all = ["decode", "bos", "special"])]
    suffix: Option<String>,

    /// Print only the ids, in one line with commas between, as --ids of other commands takes them
    #[arg(long, conflicts_with = "jsonl")]
    ids: bool,

    /// Print one JSON object: {"ids", "pieces", "count"}, or with --decode {"text"}
    #[arg(long, env = "TRAMONTANE_JSON", conflicts_with = "ids")]
    json: bool,

    /// Never use the network
    #[arg(long, env = "TRAMONTANE_OFFLINE")]
    offline: bool,

    /// Say nothing on stderr but errors
    #[arg(short, long, env = "TRAMONTANE_QUIET")]
    quiet: bool,
}

/// A line of stdin with `--jsonl`.
#[derive(Deserialize)]
struct Line {
    text: Option<String>,
    ids: Option<Vec<u32>>,
    special: Option<bool>,
    suffix: Option<String>,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let tokenizer = args.load()?;
    if args.jsonl {
        args.answer_lines(&tokenizer)?;
    } else if args.decode {
        let text = args.to_text(&tokenizer, &ids(&args.input()?)?, args.special)?;
        print(&format!(
            "{}\n",
            if args.json { json!({ "text": text }).to_string() } else { text }
        ))?;
    } else {
        let text = args.input()?;
        let ids = match &args.suffix {
            Some(suffix) => {
                let way = FillIn::of(&tokenizer)?;
                if !way.lacks().is_empty() && !args.quiet {
                    let lacks = way.lacks().join(" and ");
                    talk::say(&format!(
                        "warning: the tokenizer has no {lacks}: <unk> stands for them"
                    ));
                }
                way.encode(&text, suffix)?
            }
            None => args.to_ids(&tokenizer, &text, args.special)?,
        };
        print(&args.shown(&tokenizer, &ids))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn load(&self) -> Result<Tokenizer> {
        let model = ModelRef::parse(self.model.as_deref())?;
        let mut options = HubOptions::from_env();
        options.offline |= self.offline;
        options.weights = false;
        let bar = LoadBar::new(!self.quiet);
        let files = hub::resolve(&model, &options, &bar)?;
        bar.done();
        Tokenizer::load(&files)?.ok_or_else(|| {
            Error::bad_model(
                "the model has no tokenizer, expected tokenizer.json, tekken.json or tokenizer.model",
            )
            .at(&model)
        })
    }

    /// The text on the command line, or else stdin.
    fn input(&self) -> Result<String> {
        if let Some(text) = &self.text {
            return Ok(text.clone());
        }
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            return Err(Error::bad_input("there is no text")
                .hint("tramontane tokenize \"Il était une fois\""));
        }
        let mut text = String::new();
        stdin.lock().read_to_string(&mut text).map_err(stdin_error)?;
        // A shell adds a newline that nobody means.
        Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
    }

    fn to_ids(&self, tokenizer: &Tokenizer, text: &str, special: bool) -> Result<Vec<u32>> {
        let mut ids = match special {
            true => tokenizer.encode_special(text)?,
            false => tokenizer.encode(text)?,
        };
        if self.bos {
            let bos = tokenizer.bos_id().ok_or_else(|| {
                Error::bad_input("this tokenizer has no token that begins a text (--bos)")
            })?;
            // Never two: the text itself may have brought one.
            if ids.first() != Some(&bos) {
                ids.insert(0, bos);
            }
        }
        Ok(ids)
    }

    fn to_text(&self, tokenizer: &Tokenizer, ids: &[u32], special: bool) -> Result<String> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= tokenizer.vocab_size()) {
            return Err(Error::bad_input(format!(
                "the id {id} is no token, expected less than {}",
                tokenizer.vocab_size()
            )));
        }
        if special { tokenizer.decode_with_special(ids) } else { tokenizer.decode(ids) }
    }

    /// The ids as the flags want them.
    fn shown(&self, tokenizer: &Tokenizer, ids: &[u32]) -> String {
        let piece = |id: &u32| tokenizer.piece(*id).unwrap_or_default();
        if self.json {
            let pieces: Vec<String> = ids.iter().map(piece).collect();
            return line(&json!({ "ids": ids, "pieces": pieces, "count": ids.len() }));
        }
        if self.ids {
            let mut line = String::with_capacity(ids.len() * 6);
            for id in ids {
                line += if line.is_empty() { "" } else { "," };
                line += &id.to_string();
            }
            return line + "\n";
        }
        ids.iter().map(|id| format!("{id}\t{}\n", printable(&piece(id)))).collect()
    }

    /// Answers each line of stdin, at once.
    fn answer_lines(&self, tokenizer: &Tokenizer) -> Result<()> {
        for (question, number) in std::io::stdin().lock().lines().zip(1..) {
            let question = question.map_err(stdin_error)?;
            if question.trim().is_empty() {
                continue;
            }
            let answer = self.answer(tokenizer, &question);
            print(&line(&answer.map_err(|e| e.at(format!("line {number} of stdin")))?))?;
        }
        Ok(())
    }

    fn answer(&self, tokenizer: &Tokenizer, line: &str) -> Result<serde_json::Value> {
        let line: Line = serde_json::from_str(line)
            .map_err(|e| Error::bad_input(format!("the line is not the expected JSON: {e}")))?;
        let special = line.special.unwrap_or(self.special);
        let missing = |key| Error::bad_input(format!("the line has no `{key}`"));
        if self.decode {
            let ids = line.ids.ok_or_else(|| missing("ids"))?;
            return Ok(json!({ "text": self.to_text(tokenizer, &ids, special)? }));
        }
        let text = line.text.ok_or_else(|| missing("text"))?;
        let ids = match line.suffix.as_ref().or(self.suffix.as_ref()) {
            Some(suffix) => FillIn::of(tokenizer)?.encode(&text, suffix)?,
            None => self.to_ids(tokenizer, &text, special)?,
        };
        Ok(json!({ "ids": ids }))
    }
}

/// A line of JSON. Line breaks that only some programs know are escaped as well.
fn line(value: &serde_json::Value) -> String {
    let mut json = value.to_string();
    for c in ['\u{85}', '\u{2028}', '\u{2029}'] {
        if json.contains(c) {
            json = json.replace(c, &format!("\\u{:04x}", c as u32));
        }
    }
    json + "\n"
}

/// Ids with commas, spaces or brackets between them.
fn ids(text: &str) -> Result<Vec<u32>> {
    text.split(|c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']'))
        .filter(|word| !word.is_empty())
        .map(|word| {
            word.parse().map_err(|_| Error::bad_input(format!("`{word}` is not a token id")))
        })
        .collect()
}

fn stdin_error(e: std::io::Error) -> Error {
    if e.kind() == std::io::ErrorKind::InvalidData {
        return Error::bad_input("the text is not UTF-8").at("stdin");
    }
    Error::io(Path::new("stdin"), e)
}
