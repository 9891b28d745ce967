//! The command line program: parse, run, print the error, choose the exit code.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    match cli::run() {
        Ok(code) => code,
        Err(e) if cli::is_closed_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            cli::say(&format!("error: {e}"));
            ExitCode::from(e.kind().exit_code())
        }
    }
}
