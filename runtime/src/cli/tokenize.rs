//! `tokenize`: how a text becomes ids. Needs the file's vocabulary and nothing else.

use std::path::Path;

use drafthorse_draft::TokenId;
use drafthorse_runtime::Error;
use drafthorse_runtime::config::{Config, Layer};
use drafthorse_runtime::gguf::Gguf;
use drafthorse_runtime::tokenizer::{AddSpecial, Tokenizer};
use serde::Serialize;

use super::args::TokenizeArgs;
use super::output;

/// The object of `tokenize --json`; its names are stable (DESIGN.md).
#[derive(Debug, Serialize)]
struct TokenizeReport {
    ids: Vec<TokenId>,
    pieces: Vec<String>,
}

/// The command.
pub fn run(args: &TokenizeArgs) -> Result<(), Error> {
    let text = if args.prompt == "-" { output::read_stdin()? } else { args.prompt.clone() };
    let mut layer = Layer::command_line();
    layer.flag("MODEL", ("model", "path"), Some(args.model.clone()));
    let tokenizer = open(&Config::load(None, &layer)?.model_path()?)?;
    let add_special = if args.no_special { AddSpecial::No } else { AddSpecial::Yes };
    let ids = tokenizer.encode(&text, add_special)?;
    let pieces = ids.iter().map(|&id| tokenizer.piece(id)).collect();
    let report = TokenizeReport { ids, pieces };
    if args.json { output::print_json(&report) } else { output::print(&table(&report)) }
}

/// The tokenizer of a file; what it had to assume goes to stderr.
fn open(path: &Path) -> Result<Tokenizer, Error> {
    let gguf = Gguf::open(path)?;
    let tokenizer = Tokenizer::from_metadata(&gguf.metadata, path)?;
    tokenizer.notices().iter().for_each(|line| output::complain(line));
    Ok(tokenizer)
}

fn table(report: &TokenizeReport) -> String {
    report.ids.iter().zip(&report.pieces).map(|(id, piece)| format!("{id:>7}  {piece:?}\n")).collect()
}
