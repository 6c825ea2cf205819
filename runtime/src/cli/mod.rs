//! The command line: the only part of the product that prints.
//!
//! `args.rs` is what the user typed, the library's `Config` what the program needs; each command is
//! one file that turns the one into calls of the engine. Results go to stdout, everything else (logs,
//! progress, statistics, errors) to stderr, so that a pipe sees the result alone.

mod args;
mod bench;
mod bench_ids;
mod bench_report;
mod chat;
mod conversation;
mod explain;
mod inspect;
mod interrupt;
mod logits;
mod output;
mod pack;
mod progress;
mod prompt;
mod run;
mod session;
mod slices;
mod stats;
mod tokenize;
mod tune;

use std::process::ExitCode;

use clap::Parser;
use drafthorse_runtime::Error;

use args::{Cli, Command};

/// Runs the program and says how it ended.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Command::Run(args) => run::run(args),
        Command::Logits(args) => logits::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Tune(args) => tune::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Pack(args) => pack::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // `drafthorse run ... | head`: whoever read us has what they wanted.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&one_line(&error.to_string()));
            ExitCode::from(error.exit_code())
        }
    }
}

/// An error is one line, so that scripts can read it; the lines of a refused budget's sum are joined.
fn one_line(text: &str) -> String {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = text.lines().map(words).filter(|line| !line.is_empty()).collect();
    lines.join("; ").replace(":;", ":")
}

/// Says that a command cannot be run as given.
fn usage<T>(text: &str) -> Result<T, Error> {
    Err(Error::Usage(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_budget_is_one_line() {
        let text =
            "the memory budget cannot hold the model:\n  process      20.0 MiB\n  sum      1.0 GiB\n\nmore";
        let line = "the memory budget cannot hold the model: process 20.0 MiB; sum 1.0 GiB; more";
        assert_eq!(one_line(text), line);
    }
}
