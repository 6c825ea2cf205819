//! `logits`: the raw next-token logits of given ids, for comparison with other implementations.

use drafthorse_runtime::Error;
use drafthorse_runtime::tokenizer::Tokenizer;
use serde::Serialize;

use super::args::LogitsArgs;
use super::output;
use super::session::Session;

/// Tokens shown for each position without `--json`.
const SHOWN: usize = 10;

/// The object of `logits --json`; its names are stable (DESIGN.md).
#[derive(Debug, Serialize)]
struct LogitsReport {
    vocab: usize,
    /// `[positions, vocab]`
    positions: Vec<Vec<f32>>,
}

/// The command.
pub fn run(args: &LogitsArgs) -> Result<(), Error> {
    let mut config = args.config()?;
    config.run.stats = false;
    let mut session = Session::open(&config)?;
    let positions = session.engine.logits(&args.tokens, args.all)?;
    if config.run.json {
        return output::print_json(&LogitsReport { vocab: session.engine.vocab(), positions });
    }
    let first = args.tokens.len() - positions.len();
    for (row, logits) in positions.iter().enumerate() {
        output::print(&table(first + row, logits, session.engine.tokenizer()))?;
    }
    Ok(())
}

/// The likeliest tokens after one position.
fn table(position: usize, logits: &[f32], tokenizer: Option<&Tokenizer>) -> String {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let mut text = format!("after position {position}\n");
    for id in order.into_iter().take(SHOWN) {
        let piece = tokenizer.map(|t| format!("  {:?}", t.piece(id as u32))).unwrap_or_default();
        text.push_str(&format!("{:>12.5}  {id:>7}{piece}\n", logits[id]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_ties_by_id() {
        let text = table(4, &[1.0, 3.0, 3.0, -1.0], None);
        let ids: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().last()).collect();
        assert_eq!(ids, ["1", "2", "0", "3"]);
    }
}
