//! `logits`: the raw next-token logits of given ids, for comparison with other implementations.

use drafthorse_runtime::Error;
use drafthorse_runtime::engine::Engine;
use drafthorse_runtime::tokenizer::Tokenizer;

use super::args::LogitsArgs;
use super::output;
use super::session::Session;

/// Tokens shown for each position without `--json`.
const SHOWN: usize = 10;

/// The likeliest tokens after one position, best first, ties by id.
struct Row {
    position: usize,
    best: Vec<(u32, f32)>,
}

/// The command.
pub fn run(args: &LogitsArgs) -> Result<(), Error> {
    let mut config = args.config()?;
    config.run.stats = false;
    let mut session = Session::open(&config)?;
    if config.run.json {
        print_json(&mut session.engine, args)
    } else {
        print_tables(&mut session.engine, args)
    }
}

/// `{vocab, positions: [[f32...]...]}` (DESIGN.md). Rows go out as they come: those of a long text are
/// more than a budget holds.
fn print_json(engine: &mut Engine, args: &LogitsArgs) -> Result<(), Error> {
    let mut before = format!("{{\"vocab\":{},\"positions\":[", engine.vocab());
    engine.logits(&args.tokens, args.all, &mut |logits| {
        output::print(&before)?;
        before = ",".into();
        output::print(&output::json(&logits)?)
    })?;
    output::print("]}\n")
}

fn print_tables(engine: &mut Engine, args: &LogitsArgs) -> Result<(), Error> {
    let mut rows = Vec::new();
    let first = if args.all { 0 } else { args.tokens.len().saturating_sub(1) };
    engine.logits(&args.tokens, args.all, &mut |logits| {
        rows.push(Row { position: first + rows.len(), best: best(logits) });
        Ok(())
    })?;
    rows.iter().try_for_each(|row| output::print(&table(row, engine.tokenizer())))
}

fn best(logits: &[f32]) -> Vec<(u32, f32)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order.into_iter().take(SHOWN).map(|id| (id as u32, logits[id])).collect()
}

fn table(row: &Row, tokenizer: Option<&Tokenizer>) -> String {
    let mut text = format!("after position {}\n", row.position);
    for (id, logit) in &row.best {
        let piece = tokenizer.map(|t| format!("  {:?}", t.piece(*id))).unwrap_or_default();
        text.push_str(&format!("{logit:>12.5}  {id:>7}{piece}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_ties_by_id() {
        let text = table(&Row { position: 4, best: best(&[1.0, 3.0, 3.0, -1.0]) }, None);
        let ids: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().last()).collect();
        assert_eq!(ids, ["1", "2", "0", "3"]);
    }
}
