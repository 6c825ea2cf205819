//! The arithmetic and the looks of the result: medians, ranges, ratios; as text and as Markdown.
//!
//! A row is one limit, one pass and one read-ahead of the peer. Ours is measured under the machine's own
//! read-ahead, which it does not use; its numbers stand in every row of their limit and pass.

use std::fmt::Write as _;

use drafthorse_runtime::units::format_bytes;
use serde::Serialize;

use super::Comparison;
use super::outcome::Pass;
use super::plan::{Limit, Side};
use super::process::Measured;

/// Repeats of one number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// None of nothing.
    pub fn of(values: &[f64]) -> Option<Spread> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let is_odd = sorted.len() % 2 == 1;
        let median = if is_odd { sorted[half] } else { (sorted[half - 1] + sorted[half]) / 2.0 };
        Some(Spread { median, min, max })
    }
}

/// One engine's part of a row.
#[derive(Clone, Debug, Serialize)]
pub struct Column {
    /// None when every run failed.
    pub tokens_per_s: Option<Spread>,
    /// Bytes its process fetched from the disk per token, median.
    pub read_bytes_per_token: Option<f64>,
    /// Most memory of the cgroup in any run.
    pub peak_bytes: Option<u64>,
    /// Runs that failed, and how the last of them did.
    pub failed: usize,
    pub failure: Option<String>,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub limit: Limit,
    pub pass: usize,
    /// Of the peer's runs.
    pub read_ahead_kb: Option<u64>,
    pub ours: Column,
    pub peer: Column,
    /// Ours over the peer's median tokens per second.
    pub ratio: Option<f64>,
}

/// Sums the runs up, in the order of their limits.
pub fn rows(runs: &[Measured], passes: usize) -> Vec<Row> {
    let mut kinds: Vec<(&Limit, Option<u64>)> = Vec::new();
    for measured in runs.iter().filter(|measured| measured.run.side == Side::Peer) {
        let kind = (&measured.run.limit, measured.run.read_ahead_kb);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    // Reversed turns would otherwise decide: limits as given, read-aheads small to large.
    let first = |limit: &Limit| runs.iter().position(|measured| measured.run.limit == *limit);
    kinds.sort_by_key(|(limit, read_ahead)| (first(limit), *read_ahead));
    let mut rows = Vec::new();
    for pass in 1..=passes {
        rows.extend(kinds.iter().map(|(limit, read_ahead_kb)| row(runs, limit, pass, *read_ahead_kb)));
    }
    rows.sort_by_key(|row| first(&row.limit));
    rows
}

fn row(runs: &[Measured], limit: &Limit, pass: usize, read_ahead_kb: Option<u64>) -> Row {
    let of = |side: Side, read_ahead: Option<u64>| {
        let fits = |it: &&Measured| {
            it.run.side == side && it.run.limit == *limit && it.run.read_ahead_kb == read_ahead
        };
        column(&runs.iter().filter(fits).collect::<Vec<_>>(), pass)
    };
    let (ours, peer) = (of(Side::Ours, None), of(Side::Peer, read_ahead_kb));
    let ratio = ours.tokens_per_s.zip(peer.tokens_per_s).map(|(ours, peer)| ours.median / peer.median);
    Row { limit: limit.clone(), pass, read_ahead_kb, ours, peer, ratio }
}

fn column(runs: &[&Measured], pass: usize) -> Column {
    let passes: Vec<&Pass> = runs.iter().filter_map(|it| it.passes.get(pass - 1)).collect();
    let rates: Vec<f64> = passes.iter().map(|it| it.tokens_per_s()).collect();
    let read = |it: &&Pass| it.read_bytes.map(|bytes| bytes as f64 / it.tokens as f64);
    let reads: Vec<f64> = passes.iter().filter_map(read).collect();
    let failures: Vec<&String> = runs.iter().filter_map(|it| it.failure.as_ref()).collect();
    Column {
        tokens_per_s: Spread::of(&rates),
        read_bytes_per_token: Spread::of(&reads).map(|spread| spread.median),
        peak_bytes: runs.iter().filter_map(|it| it.peak_bytes).max(),
        failed: failures.len(),
        failure: failures.last().map(|text| (*text).clone()),
    }
}

/// The ratio against the peer's best read-ahead, for every limit and pass: the number to quote.
pub fn ratios_to_best(rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut done: Vec<(&Limit, usize)> = Vec::new();
    for row in rows {
        if done.contains(&(&row.limit, row.pass)) {
            continue;
        }
        done.push((&row.limit, row.pass));
        let same = rows.iter().filter(|it| it.limit == row.limit && it.pass == row.pass);
        let rate = |row: &Row| row.peer.tokens_per_s.map_or(0.0, |spread| spread.median);
        let best = same.max_by(|a, b| rate(a).total_cmp(&rate(b)));
        if let Some((best, ratio)) = best.and_then(|best| Some((best, best.ratio?))) {
            let setting = read_ahead(best.read_ahead_kb);
            lines.push(format!(
                "limit {}, pass {}: {ratio:.2}x the peer at its best read-ahead ({setting})",
                row.limit.label, row.pass
            ));
        }
    }
    lines
}

const HEAD: [&str; 9] = [
    "limit",
    "pass",
    "peer's read-ahead KiB",
    "ours tok/s",
    "peer tok/s",
    "ours / peer",
    "read MB/token, ours : peer",
    "peak, ours : peer",
    "failed, ours : peer",
];

/// The table's cells, row by row.
fn cells(rows: &[Row]) -> Vec<[String; 9]> {
    rows.iter()
        .map(|row| {
            let Row { ours, peer, .. } = row;
            let megabytes = |column: &Column| match column.read_bytes_per_token {
                Some(bytes) => format!("{:.1}", bytes / 1e6),
                None => "-".to_owned(),
            };
            let peak = |column: &Column| column.peak_bytes.map_or_else(|| "-".to_owned(), format_bytes);
            [
                format!("{} ({})", row.limit.label, format_bytes(row.limit.bytes)),
                format!("{}{}", row.pass, if row.pass == 1 { " cold" } else { " warm" }),
                read_ahead(row.read_ahead_kb),
                rate(ours),
                rate(peer),
                row.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
                format!("{} : {}", megabytes(ours), megabytes(peer)),
                format!("{} : {}", peak(ours), peak(peer)),
                format!("{} : {}", ours.failed, peer.failed),
            ]
        })
        .collect()
}

fn rate(column: &Column) -> String {
    match (column.tokens_per_s, &column.failure) {
        (Some(Spread { median, min, max }), _) => format!("{median:.3} ({min:.3}..{max:.3})"),
        (None, Some(failure)) => failure.clone(),
        (None, None) => "-".to_owned(),
    }
}

fn read_ahead(kib: Option<u64>) -> String {
    kib.map_or_else(|| "as found".to_owned(), |kib| kib.to_string())
}

/// The result for a terminal.
pub fn text(comparison: &Comparison) -> String {
    let cells = cells(&comparison.rows);
    let width = |column: usize| {
        let widths = cells.iter().map(|row| row[column].chars().count());
        widths.chain([HEAD[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let line = |row: [&str; 9]| {
        let padded: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(HEAD);
    cells.iter().for_each(|row| text.push_str(&line(row.each_ref().map(String::as_str))));
    facts(comparison).iter().for_each(|fact| {
        let _ = writeln!(text, "{fact}");
    });
    text
}

/// The result as a Markdown file.
pub fn markdown(comparison: &Comparison) -> String {
    let mut text = String::from("# Ours against a peer: decoding of given ids\n\n");
    let _ = writeln!(text, "`{}`\n", comparison.command);
    let _ = writeln!(text, "| {} |\n|{}", HEAD.join(" | "), "---|".repeat(HEAD.len()));
    for row in cells(&comparison.rows) {
        let _ = writeln!(text, "| {} |", row.map(|cell| cell.replace('|', "\\|")).join(" | "));
    }
    text.push('\n');
    for fact in facts(comparison) {
        let _ = writeln!(text, "- {fact}");
    }
    text
}

/// What the numbers rest on, one line each.
fn facts(comparison: &Comparison) -> Vec<String> {
    let Comparison { machine, setup, .. } = comparison;
    let mut facts = ratios_to_best(&comparison.rows);
    facts.push(format!("{}; load {} at the start", comparison.date, load(comparison.load_before)));
    facts.push(format!(
        "{}, {} cores, {}, Linux {}, disk {} with read-ahead {} KiB as found",
        machine.cpu,
        machine.cores,
        format_bytes(machine.memory_bytes),
        machine.kernel,
        machine.device.as_deref().unwrap_or("unknown"),
        machine.read_ahead_kb.map_or_else(|| "unknown".to_owned(), |kib| kib.to_string()),
    ));
    facts.push(format!(
        "{} ({}), {} ids with fingerprint {}, {} threads, {} repeats in turns (A B, B A): median (min..max)",
        setup.model,
        format_bytes(setup.model_bytes),
        setup.ids,
        setup.ids_hash,
        setup.threads,
        setup.repeats
    ));
    facts.push(match setup.cgroup {
        Some(kind) => format!("each process in a memory cgroup ({kind:?}) of the limit's size"),
        None => "NO cgroup: the limit was told to ours and not enforced; the peer had all memory".to_owned(),
    });
    facts.push(if setup.drop_caches {
        "the page cache was dropped before every process".to_owned()
    } else {
        "the page cache was NOT dropped: pass 1 is not cold for an engine that maps the file".to_owned()
    });
    facts.extend(comparison.fio.iter().map(|fio| {
        format!(
            "fio, random reads of {} at depth {}: {:.2} GB/s",
            format_bytes(fio.request_bytes),
            fio.depth,
            fio.bytes_per_s / 1e9
        )
    }));
    facts.extend(comparison.notes.iter().cloned());
    facts
}

fn load(load: Option<f64>) -> String {
    load.map_or_else(|| "unknown".to_owned(), |load| format!("{load:.2}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::plan::Run;
    use super::*;

    fn measured(side: Side, read_ahead_kb: Option<u64>, seconds: &[f64]) -> Measured {
        let limit = Limit { label: "1/2".into(), bytes: 4096 };
        let pass = |(index, seconds): (usize, &f64)| Pass {
            pass: index + 1,
            tokens: 10,
            seconds: *seconds,
            read_bytes: Some(5_000_000),
            ids_hash: None,
            next: None,
        };
        Measured {
            run: Run { limit, side, read_ahead_kb, repeat: 1 },
            command: String::new(),
            failure: seconds.is_empty().then(|| "killed for want of memory".to_owned()),
            passes: seconds.iter().enumerate().map(pass).collect(),
            peak_bytes: Some(4096),
            device_bytes: None,
            load_before: None,
        }
    }

    #[test]
    fn a_ratio_is_of_medians_per_pass_and_read_ahead() {
        let runs = [
            measured(Side::Ours, None, &[2.0, 1.0]),           // 5, 10 tok/s
            measured(Side::Peer, Some(8192), &[100.0, 100.0]), // 0.1
            measured(Side::Peer, Some(128), &[10.0, 5.0]),     // 1, 2
            measured(Side::Peer, Some(128), &[5.0, 5.0]),      // 2, 2
            measured(Side::Peer, Some(8192), &[50.0, 100.0]),  // 0.2, 0.1
            measured(Side::Ours, None, &[1.0, 1.0]),           // 10, 10
        ];
        let rows = rows(&runs, 2);
        let short: Vec<(usize, Option<u64>, f64)> =
            rows.iter().map(|row| (row.pass, row.read_ahead_kb, row.ratio.unwrap())).collect();
        let expected =
            [(1, Some(128), 5.0), (1, Some(8192), 50.0), (2, Some(128), 5.0), (2, Some(8192), 100.0)];
        for ((pass, kib, ratio), wanted) in short.into_iter().zip(expected) {
            assert_eq!((pass, kib), (wanted.0, wanted.1));
            assert!((ratio / wanted.2 - 1.0).abs() < 1e-9, "{pass} {kib:?}: {ratio}");
        }
        assert_eq!(rows[0].ours.tokens_per_s, Some(Spread { median: 7.5, min: 5.0, max: 10.0 }));
        assert_eq!(rows[0].peer.read_bytes_per_token, Some(500_000.0));
        let best = ratios_to_best(&rows);
        assert_eq!(best.len(), 2);
        assert_eq!(best[0], "limit 1/2, pass 1: 5.00x the peer at its best read-ahead (128)");
    }

    #[test]
    fn a_failure_is_shown_and_no_ratio_made_up() {
        let runs = [measured(Side::Ours, None, &[1.0]), measured(Side::Peer, None, &[])];
        let rows = rows(&runs, 1);
        assert_eq!((rows[0].ratio, rows[0].peer.failed), (None, 1));
        let cells = cells(&rows);
        assert_eq!(cells[0][4], "killed for want of memory");
        assert_eq!(cells[0][5], "-");
        assert!(ratios_to_best(&rows).is_empty());
    }

    #[test]
    fn a_median_of_an_even_number_is_the_middles_mean() {
        assert_eq!(Spread::of(&[4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of(&[4.0, 1.0, 9.0]).unwrap().median, 4.0);
        assert_eq!(Spread::of(&[]), None);
    }
}
