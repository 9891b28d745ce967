//! The command line: one file per command.
//!
//! stdout carries the result, stderr the talk. A closed stdout is success.

mod args;
mod bench;
mod catalogue;
mod chat;
mod completions;
mod doctor;
mod download;
mod eval;
mod generate;
mod inspect;
#[cfg(feature = "hub")]
mod list;
mod logits;
#[cfg(feature = "hub")]
mod pull;
mod quantize;
mod reasoning;
mod signals;
mod talk;
mod template;
mod tokenize;
mod verify;

use std::ffi::OsStr;
use std::process::ExitCode;

use clap::builder::{FalseyValueParser, Resettable};
use clap::{ArgAction, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tramontane::error::Result;
use tramontane::{Error, ErrorKind};

pub(crate) use talk::say;

/// A small, fast inference engine for open French language models.
#[derive(Parser)]
#[command(
    name = "tramontane",
    version,
    about,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = AFTER_HELP
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
MODEL is nothing (the small French model that is built in), a folder, a file *.safetensors beside its
config.json, organisation/name[@revision] on the Hugging Face hub, or a short name of the catalogue
(tramontane list --catalogue).

Each flag --some-flag can be given as the environment variable TRAMONTANE_SOME_FLAG.

Exit codes: 0 success, 1 failure, 2 bad model, 3 not enough memory or disk, 4 network, 64 usage, 130 interrupted.";

#[derive(Subcommand)]
enum Command {
    /// Continue a text
    Generate(generate::Args),
    /// Hold a conversation
    Chat(chat::Args),
    /// Measure tokens per second
    Bench(bench::Args),
    /// Measure perplexity on a text
    Eval(eval::Args),
    /// Write the logits of given token ids to a file
    Logits(logits::Args),
    /// Pack a model's weights into a folder that loads at once
    Quantize(quantize::Args),
    /// Show what a model is: shapes, parameters, memory
    Inspect(inspect::Args),
    /// Turn text into token ids, or ids into text
    Tokenize(tokenize::Args),
    /// Turn a conversation into a prompt by the model's own chat template
    Template(template::Args),
    /// Download a model from the hub, or bring it up to date
    #[cfg(feature = "hub")]
    Pull(pull::Args),
    /// List the models on this machine, or the open French models that are known
    #[cfg(feature = "hub")]
    List(list::Args),
    /// Check a model on disk: hashes, weights, configuration, tokenizer, template, numbers
    Verify(verify::Args),
    /// Check this machine: instructions, threads, memory, devices, caches
    Doctor(doctor::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

/// Runs the command that the arguments name.
pub(crate) fn run() -> Result<ExitCode> {
    signals::exit_on_interrupt();
    signals::explain_cut_files();
    let parsed = command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    match cli.command {
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Logits(args) => logits::run(args),
        Command::Quantize(args) => quantize::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Template(args) => template::run(args),
        #[cfg(feature = "hub")]
        Command::Pull(args) => pull::run(args),
        #[cfg(feature = "hub")]
        Command::List(args) => list::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions(args) => completions::run(args, command()),
    }
}

/// The command line, in which each flag has its environment variable.
fn command() -> clap::Command {
    Cli::command().mut_subcommands(|command| command.mut_args(with_variable))
}

/// Gives a flag the variable that follows from its name.
fn with_variable(arg: clap::Arg) -> clap::Arg {
    let switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let arg = match arg.get_long() {
        Some(long) if arg.get_env().is_none() && (switch || value) => {
            let name = format!("TRAMONTANE_{}", long.replace('-', "_").to_uppercase());
            // Kept until the program ends, as the command line itself is.
            let name: &'static str = name.leak();
            arg.env(name)
        }
        _ => arg,
    };
    match arg.get_env() {
        // A variable that switches nothing on is none: flags must not conflict with it.
        Some(name) if switch && std::env::var_os(name).is_some_and(|value| is_off(&value)) => {
            arg.env(Resettable::Reset)
        }
        _ if switch => arg.value_parser(FalseyValueParser::new()),
        _ => arg,
    }
}

/// Whether the value of a variable means no. Everything else means yes.
fn is_off(value: &OsStr) -> bool {
    ["", "0", "f", "false", "n", "no", "off"].iter().any(|off| value.eq_ignore_ascii_case(off))
}

/// Prints what clap has to say: help and version are success, everything else is a usage error.
fn usage(e: &clap::Error) -> Result<ExitCode> {
    let is_help = !e.use_stderr();
    if e.print().is_err() || is_help {
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::from(ErrorKind::BadInput.exit_code()))
}

/// An error of writing to stdout.
fn stdout_error(e: std::io::Error) -> Error {
    Error::io(std::path::Path::new("stdout"), e)
}

/// Whether the reader of stdout has gone away.
pub(crate) fn is_closed_pipe(e: &Error) -> bool {
    let source = std::error::Error::source(e).and_then(|s| s.downcast_ref::<std::io::Error>());
    source.is_some_and(|s| s.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flag_has_the_variable_of_its_name() {
        for command in command().get_subcommands() {
            for arg in command.get_arguments().filter(|arg| arg.get_id() != "help") {
                let Some(long) = arg.get_long().filter(|long| *long != "version") else { continue };
                let name = format!("TRAMONTANE_{}", long.replace('-', "_").to_uppercase());
                let place = format!("{} --{long}", command.get_name());
                assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(&*name), "{place}");
            }
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }
}
