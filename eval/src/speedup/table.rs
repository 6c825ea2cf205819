//! The looks of the rows: cells for people, shared by Markdown and the page, and CSV for programs.
//!
//! Pure. What a column means stands in the legend, which every table carries.

use drafthorse_runtime::units::format_bytes;

use super::report::{ALL_TASKS, Identity, Report, Row};
use super::side_table::{SideTable, side_tables};
use super::stats::Spread;

/// A column for people.
struct Column {
    name: &'static str,
    cell: fn(&Row) -> String,
}

const COLUMNS: [Column; 18] = [
    Column { name: "task", cell: |row| row.task.clone() },
    Column { name: "cache", cell: cache },
    Column { name: "start", cell: |row| row.start.clone() },
    Column { name: "temp", cell: |row| row.temperature.to_string() },
    Column { name: "drafter", cell: Row::who },
    Column { name: "length", cell: |row| row.draft_len.clone() },
    Column { name: "tok/s [p5, p95]", cell: rate },
    Column { name: "speedup [p5, p95]", cell: |row| spread(row.speedup, 2) },
    Column { name: "predicted", cell: |row| number(row.predicted_speedup, 2) },
    Column { name: "tau", cell: |row| number(row.tau, 2) },
    Column { name: "T(K)/T(0)", cell: t_ratio },
    Column { name: "drafted a pass", cell: |row| number(row.draft_len_mean, 2) },
    Column { name: "accepted by place, %", cell: acceptance },
    Column { name: "hits %", cell: |row| percent(row.hit_rate) },
    Column { name: "LRU, Belady %", cell: bounds },
    Column { name: "KB/token: demand, useful, wasted, rejected", cell: bytes },
    Column { name: "J/token", cell: joules },
    Column { name: "ids", cell: ids },
];

/// Names of the columns.
pub fn heads() -> Vec<&'static str> {
    COLUMNS.iter().map(|column| column.name).collect()
}

/// The row's cells, one for each head.
pub fn cells(row: &Row) -> Vec<String> {
    COLUMNS.iter().map(|column| (column.cell)(row)).collect()
}

/// What the columns mean.
pub const LEGEND: [&str; 8] = [
    "tok/s: tokens after the first over the time they took; median over runs, with 5th and 95th percentile. \
     Loading and the prompt are not in it.",
    "speedup: each run over the run without a draft next to it (same cache, start, temperature, prompt); median \
     and percentiles of these quotients. predicted: what the controller expected, where it says so.",
    "tau: tokens a pass of the target committed. T(K)/T(0): seconds of such a pass, drafting included, over those \
     of the neighbour's passes (in brackets: as the controller expected). tau over T(K)/T(0) is the speedup.",
    "accepted by place: of the first, second, ... drafted tokens that were verified, those that stood.",
    "hits: uses of experts after the prompt that were in a slot. LRU, Belady: what those policies would have hit \
     on the same text with as many slots, token by token.",
    "KB/token: bytes of experts read a committed token, after the prompt: when needed by rows that stood; ahead of \
     need and used; ahead of need and not used; when needed, by rejected drafts alone. What a warm start fills free \
     slots with counts as needed.",
    "J/token: RAPL over the whole process; n/a where this machine shows none.",
    "ids: the first digits of the SHA-256 of the generated ids (of several prompts: of their hashes). \"varies\": \
     sampled under a rule that does not fix the text.",
];

fn cache(row: &Row) -> String {
    match row.slots {
        Some(slots) => format!("{} ({slots})", row.cache),
        None => row.cache.clone(),
    }
}

fn rate(row: &Row) -> String {
    match (&row.tokens_per_s, &row.failure) {
        (None, Some(failure)) => format!("FAILED: {failure}"),
        (Some(_), Some(_)) => {
            format!("{} ({} of {} failed)", spread(row.tokens_per_s, 1), row.failed, row.failed + row.runs)
        }
        _ => spread(row.tokens_per_s, 1),
    }
}

fn spread(spread: Option<Spread>, digits: usize) -> String {
    let Some(Spread { median, p5, p95 }) = spread else { return "-".to_owned() };
    format!("{median:.digits$} [{p5:.digits$}, {p95:.digits$}]")
}

fn number(number: Option<f64>, digits: usize) -> String {
    number.map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
}

fn percent(share: Option<f64>) -> String {
    number(share.map(|share| share * 100.0), 1)
}

fn t_ratio(row: &Row) -> String {
    match row.predicted_t_ratio {
        Some(predicted) => format!("{} ({predicted:.2})", number(row.t_ratio, 2)),
        None => number(row.t_ratio, 2),
    }
}

fn acceptance(row: &Row) -> String {
    let places: Vec<String> = row.acceptance_at.iter().map(|share| format!("{:.0}", share * 100.0)).collect();
    if places.is_empty() { "-".to_owned() } else { places.join(" ") }
}

fn bounds(row: &Row) -> String {
    match (row.hit_rate_lru, row.hit_rate_belady) {
        (None, None) => "-".to_owned(),
        (lru, belady) => format!("{}, {}", percent(lru), percent(belady)),
    }
}

fn bytes(row: &Row) -> String {
    let Some(bytes) = row.bytes_per_token else { return "-".to_owned() };
    let parts = [bytes.demand, bytes.prefetch_useful, bytes.prefetch_wasted, bytes.rejected_only];
    parts.map(|bytes| format!("{:.0}", bytes / 1e3)).join(", ")
}

fn joules(row: &Row) -> String {
    row.joules_per_token.map_or_else(|| "n/a".to_owned(), |joules| format!("{joules:.2}"))
}

fn ids(row: &Row) -> String {
    let digits: String = row.ids_sha256.chars().take(8).collect();
    match row.ids {
        Identity::Same => digits,
        Identity::Differs => format!("{digits} DIFFERS").trim().to_owned(),
        Identity::Varies => "varies".to_owned(),
        Identity::Unknown => "-".to_owned(),
    }
}

/// What was measured where, one line each.
pub fn facts(report: &Report) -> Vec<String> {
    let environment = &report.environment;
    let machine = &environment.machine;
    let mut facts = Vec::new();
    if let Some(disk) = &environment.simulated_disk {
        facts.push(format!(
            "SIMULATED disk: every read is slowed down to {disk}; no figure is this machine's disk's"
        ));
    }
    facts.push(report.date.clone());
    facts.push(format!(
        "{}, {} cores, {}, Linux {}, disk {}",
        machine.cpu,
        machine.cores,
        format_bytes(machine.memory_bytes),
        machine.kernel,
        machine.device.as_deref().unwrap_or("unknown")
    ));
    facts.push(format!(
        "load {} at the start; program {}, commit of this harness {}",
        environment.load_before.map_or_else(|| "unknown".to_owned(), |load| format!("{load:.2}")),
        environment.program,
        environment.commit
    ));
    facts.push(match report.bank.experts_total {
        0 => format!("model {} (dense)", report.model),
        experts => format!(
            "model {}: {experts} experts in slots of {}",
            report.model,
            format_bytes(report.bank.slot_bytes)
        ),
    });
    facts.push(format!("cold: {}", environment.cold));
    facts.push(format!("warm: {}", environment.warm));
    facts.push(format!("energy: {}", environment.energy));
    facts.push(verdict(report));
    facts.extend(report.notes.iter().cloned());
    facts
}

/// Whether settings left the text alone.
pub fn verdict(report: &Report) -> String {
    let runs: usize = report.texts.iter().map(|text| text.runs).sum();
    let differing: Vec<&str> = report.differing().map(String::as_str).collect();
    let texts = report.texts.len();
    if differing.is_empty() {
        return format!(
            "identical ids: all {runs} runs gave the ids of their text ({texts} texts: prompt and temperature)"
        );
    }
    format!("IDS DIFFER in {} of {runs} runs: {}", differing.len(), differing.join("; "))
}

/// Columns of the short table over all tasks: the rest stands in the long one.
const SHORT: [&str; 13] = [
    "cache",
    "start",
    "temp",
    "drafter",
    "length",
    "tok/s [p5, p95]",
    "speedup [p5, p95]",
    "predicted",
    "tau",
    "T(K)/T(0)",
    "accepted by place, %",
    "hits %",
    "ids",
];

/// The result as a Markdown file: over all tasks, where there are several, then task by task.
pub fn markdown(report: &Report) -> String {
    let mut text = format!("# Speedup of drafting\n\n`{}`\n\n", report.command.replace('`', "'"));
    let (over_all, by_task): (Vec<&Row>, Vec<&Row>) =
        report.rows.iter().partition(|row| row.task == ALL_TASKS);
    let long = grid(&COLUMNS.iter().collect::<Vec<_>>(), &by_task);
    let sides: String = side_tables(&report.rows).iter().map(side).collect();
    let facts: String = facts(report).iter().map(|fact| format!("- {fact}\n")).collect();
    if over_all.is_empty() {
        text.push_str(&format!("{long}\n{facts}\n{sides}"));
    } else {
        let short: Vec<&Column> = COLUMNS.iter().filter(|column| SHORT.contains(&column.name)).collect();
        let short = grid(&short, &over_all);
        text.push_str(&format!("{short}\n{facts}\n{sides}## Task by task\n\n{long}\n"));
    }
    LEGEND.iter().for_each(|line| text.push_str(&format!("{line}\n\n")));
    text.truncate(text.trim_end().len());
    text + "\n"
}

fn side(table: &SideTable) -> String {
    let SideTable { title, line, heads, rows } = table;
    let mut text = format!("## {title}\n\n{line}\n\n");
    text.push_str(&format!("| {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len())));
    rows.iter().for_each(|cells| text.push_str(&format!("| {} |\n", plain(cells).join(" | "))));
    text + "\n"
}

/// Cells that stay cells.
fn plain(cells: &[String]) -> Vec<String> {
    cells.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect()
}

fn grid(columns: &[&Column], rows: &[&Row]) -> String {
    let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
    let mut text = format!("| {} |\n|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for row in rows {
        let cells: Vec<String> = columns.iter().map(|column| (column.cell)(row)).collect();
        text.push_str(&format!("| {} |\n", plain(&cells).join(" | ")));
    }
    text
}

/// The rows with all digits.
///
/// # Errors
/// The writer's, which a buffer has none of.
pub fn csv(rows: &[Row]) -> std::io::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(CSV_HEADS)?;
    for row in rows {
        writer.write_record(csv_cells(row))?;
    }
    writer.into_inner().map_err(|error| std::io::Error::other(error.to_string()))
}

const CSV_HEADS: [&str; 38] = [
    "task",
    "cache",
    "slots",
    "share",
    "start",
    "temperature",
    "drafter",
    "draft_len",
    "verify",
    "runs",
    "failed",
    "tokens_per_s",
    "tokens_per_s_p5",
    "tokens_per_s_p95",
    "speedup",
    "speedup_p5",
    "speedup_p95",
    "predicted_speedup",
    "t_ratio",
    "predicted_t_ratio",
    "tau",
    "draft_len_mean",
    "acceptance_at",
    "hit_rate",
    "hit_rate_with_prompt",
    "hit_rate_lru",
    "hit_rate_belady",
    "bytes_per_token",
    "bytes_demand",
    "bytes_prefetch_useful",
    "bytes_prefetch_wasted",
    "bytes_rejected_only",
    "joules_per_token",
    "stall_share",
    "peak_rss_bytes",
    "ids_sha256",
    "ids",
    "off_reason",
];

fn csv_cells(row: &Row) -> Vec<String> {
    let maybe = |number: Option<f64>| number.map(|number| number.to_string()).unwrap_or_default();
    let three = |spread: Option<Spread>| {
        [spread.map(|it| it.median), spread.map(|it| it.p5), spread.map(|it| it.p95)].map(maybe)
    };
    let places: Vec<String> = row.acceptance_at.iter().map(f64::to_string).collect();
    let bytes = row.bytes_per_token;
    let split = [
        bytes.map(|it| it.total()),
        bytes.map(|it| it.demand),
        bytes.map(|it| it.prefetch_useful),
        bytes.map(|it| it.prefetch_wasted),
        bytes.map(|it| it.rejected_only),
    ];
    let ids = match row.ids {
        Identity::Same => "same",
        Identity::Differs => "differs",
        Identity::Varies => "varies",
        Identity::Unknown => "",
    };
    let mut cells = vec![row.task.clone(), row.cache.clone()];
    cells.push(row.slots.map(|slots| slots.to_string()).unwrap_or_default());
    cells.extend([maybe(row.share), row.start.clone(), row.temperature.to_string(), row.drafter.clone()]);
    cells.extend([row.draft_len.clone(), row.verify.clone(), row.runs.to_string(), row.failed.to_string()]);
    cells.extend(three(row.tokens_per_s));
    cells.extend(three(row.speedup));
    cells.extend(
        [row.predicted_speedup, row.t_ratio, row.predicted_t_ratio, row.tau, row.draft_len_mean].map(maybe),
    );
    cells.push(places.join(" "));
    cells.extend([row.hit_rate, row.hit_rate_with_prompt, row.hit_rate_lru, row.hit_rate_belady].map(maybe));
    cells.extend(split.map(maybe));
    cells.extend([row.joules_per_token, row.stall_share].map(maybe));
    cells.push(row.peak_rss_bytes.to_string());
    cells.extend([row.ids_sha256.clone(), ids.to_owned(), row.off_reason.clone().unwrap_or_default()]);
    cells
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn every_row_has_a_cell_for_every_head() {
        assert!(SHORT.iter().all(|name| heads().contains(name)));
        let row = Row { drafter: "a|b".into(), draft_len: "auto".into(), ..Row::default() };
        assert_eq!(cells(&row).len(), heads().len());
        assert_eq!(csv_cells(&row).len(), CSV_HEADS.len());
        let text = String::from_utf8(csv(&[row]).unwrap()).unwrap();
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn a_failure_is_shown_in_place_of_a_rate() {
        let failed = Row { failure: Some("exit code 4: too small".into()), failed: 2, ..Row::default() };
        assert_eq!(rate(&failed), "FAILED: exit code 4: too small");
        let half = Row { runs: 2, tokens_per_s: Spread::of([1.0]), ..failed };
        assert_eq!(rate(&half), "1.0 [1.0, 1.0] (2 of 4 failed)");
        assert_eq!(
            ids(&Row { ids: Identity::Differs, ids_sha256: "0123456789".into(), ..Row::default() }),
            "01234567 DIFFERS"
        );
    }
}
