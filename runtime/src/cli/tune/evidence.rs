//! What `tune` found out: the object of `--json`, and the same as a table in comments.
//!
//! Owns the summary of samples and the words. It must not know how samples were drawn or what follows from
//! them.

use std::fmt::Write as _;

use drafthorse_runtime::units::format_bytes;
use serde::Serialize;

use super::decide::{Decision, Measured, Ratio, Reason};
use super::lab::{Row, Sample};
use super::settings::{Drafter, Setting};

/// Everything, in the order in which it is told.
#[derive(Debug, Serialize)]
pub struct Evidence {
    pub program: String,
    /// UTC, `2026-11-26`.
    pub date: String,
    pub machine: String,
    pub model: String,
    /// The drafter asked for; `none` without one.
    pub draft: String,
    pub budget_bytes: u64,
    /// The disk that was simulated.
    pub simulated_disk: Option<String>,
    /// Reads for which the real disk was slower than that.
    pub simulated_late_reads: u64,
    pub text: String,
    pub seconds: f64,
    /// Highest resident set of this process, whatever was tried.
    pub peak_rss_bytes: u64,
    pub stages: Vec<Stage>,
    pub chosen: Setting,
    pub not_measured: Vec<String>,
}

/// Settings that were compared with each other; the first is what the stage began with.
#[derive(Debug, Serialize)]
pub struct Stage {
    pub name: &'static str,
    pub cells: Vec<Cell>,
    /// Index of the cell that was taken.
    pub chosen: usize,
    pub reason: Reason,
}

/// One setting's figures.
#[derive(Debug, Serialize)]
pub struct Cell {
    #[serde(flatten)]
    pub setting: Setting,
    /// None for a setting that could not be run.
    pub tok_s: Option<Quantiles>,
    /// Tokens/s of every run in order.
    pub samples: Vec<f64>,
    /// Medians over the runs from here on.
    pub hit_rate: f64,
    pub accepted_per_pass: f64,
    pub major_faults: f64,
    pub slots_used: usize,
    pub planned_bytes: u64,
    pub peak_rss_bytes: u64,
    /// How many times as fast as the first cell, in rounds with both.
    pub ratio: Option<Ratio>,
    /// Why it could not be run.
    pub refused: Option<String>,
}

/// Of few values: p5 and p95 lie between the two lowest and the two highest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    pub median: f64,
    pub p5: f64,
    pub p95: f64,
}

impl Quantiles {
    /// `None` of no values.
    pub fn of(values: &[f64]) -> Option<Quantiles> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        // Linear between neighbours, as numpy does.
        let at = |share: f64| {
            let place = share * last as f64;
            let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
            low + (high - low) * place.fract()
        };
        Some(Quantiles { median: at(0.5), p5: at(0.05), p95: at(0.95) })
    }
}

/// What the decision needs of a row.
pub fn measured(row: &Row) -> Measured {
    let samples: Vec<&Sample> = row.samples.iter().flatten().collect();
    Measured {
        tok_s: row.samples.iter().map(|sample| sample.as_ref().map(|sample| sample.tok_s)).collect(),
        memory_bytes: median(&samples, |s| s.planned_bytes as f64) as u64,
        faults_per_token: median(&samples, |s| s.major_faults as f64 / s.tokens.max(1) as f64),
    }
}

fn median(samples: &[&Sample], pick: impl Fn(&Sample) -> f64) -> f64 {
    let values: Vec<f64> = samples.iter().map(|sample| pick(sample)).collect();
    Quantiles::of(&values).map_or(0.0, |quantiles| quantiles.median)
}

impl Stage {
    /// The figures of `rows`, and what was decided.
    pub fn new(name: &'static str, settings: &[Setting], rows: &[Row], decision: &Decision) -> Stage {
        let first = rows.first().map(measured).unwrap_or_default();
        let cells = settings.iter().zip(rows).map(|(setting, row)| Cell::new(*setting, row, &first));
        Stage { name, cells: cells.collect(), chosen: decision.chosen, reason: decision.reason }
    }

    /// The cell by what tells it from the others.
    fn name(&self, cell: &Cell) -> String {
        let Setting { drafter, draft_len, slots, threads } = cell.setting;
        let differs = |is_other: fn(&Setting, &Setting) -> bool| {
            self.cells.iter().any(|other| is_other(&other.setting, &cell.setting))
        };
        let mut name = match drafter {
            Drafter::None => "no draft".to_owned(),
            Drafter::Ngram => format!("ngram {draft_len}"),
            Drafter::Given => format!("draft {draft_len}"),
        };
        if differs(|a, b| a.slots != b.slots) {
            name.push_str(
                &slots.map_or(", all slots that fit".to_owned(), |slots| format!(", {slots} slots")),
            );
        }
        if differs(|a, b| a.threads != b.threads) {
            name.push_str(
                &threads.map_or(", all threads".to_owned(), |threads| format!(", {threads} threads")),
            );
        }
        name
    }

    fn verdict(&self) -> String {
        let cell = &self.cells[self.chosen];
        let name = self.name(cell);
        match (self.reason, &cell.ratio) {
            (Reason::DefaultNotRun, _) => {
                format!("{name}, as before: it could not be run here, so nothing was compared")
            }
            (Reason::TooFewRounds, _) => {
                format!("{name}, as before: there was no time for two rounds, so nothing was compared")
            }
            (Reason::NothingBetter, _) => {
                format!("{name}, as before: nothing beats it by more than the noise")
            }
            (Reason::Faster, Some(ratio)) => format!("{name}: {}", shown(ratio)),
            (Reason::FewerFaults, Some(ratio)) => {
                format!("{name}: {}, without the page faults", shown(ratio))
            }
            (_, None) => name,
        }
    }
}

fn shown(ratio: &Ratio) -> String {
    let Ratio { mean, low, high, pairs } = ratio;
    format!("{mean:.2} times as fast (95 % bounds {low:.2} and {high:.2}, {pairs} pairs)")
}

impl Cell {
    fn new(setting: Setting, row: &Row, first: &Measured) -> Cell {
        let samples: Vec<&Sample> = row.samples.iter().flatten().collect();
        let tok_s: Vec<f64> = samples.iter().map(|sample| sample.tok_s).collect();
        Cell {
            setting,
            tok_s: Quantiles::of(&tok_s),
            hit_rate: median(&samples, |s| s.hit_rate),
            accepted_per_pass: median(&samples, |s| s.accepted_per_pass),
            major_faults: median(&samples, |s| s.major_faults as f64),
            slots_used: median(&samples, |s| s.slots as f64) as usize,
            planned_bytes: median(&samples, |s| s.planned_bytes as f64) as u64,
            peak_rss_bytes: samples.iter().map(|s| s.peak_rss_bytes).max().unwrap_or(0),
            ratio: Ratio::of(&measured(row), first),
            refused: row.refused.clone(),
            samples: tok_s,
        }
    }

    fn line(&self, name: &str) -> String {
        let Some(Quantiles { median, p5, p95 }) = self.tok_s else {
            let why = self.refused.as_deref().unwrap_or("the time was over");
            return format!("{name:<34} not run: {why}");
        };
        let ratio = self.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.2}", ratio.mean));
        format!(
            "{name:<34} {median:>8.2} {p5:>8.2} {p95:>8.2} {ratio:>6} {:>6.1} {:>8.2} {:>6} {:>7.0} {:>10}",
            100.0 * self.hit_rate,
            self.accepted_per_pass,
            self.slots_used,
            self.major_faults,
            format_bytes(self.peak_rss_bytes),
        )
    }
}

impl Evidence {
    /// The evidence in lines for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!("Measured by {} on {}, in {:.0} s.", self.program, self.date, self.seconds),
            String::new(),
            format!("machine  {}", self.machine),
            format!("model    {}", self.model),
            format!("draft    {}", self.draft),
            format!(
                "memory   {} budget, {} peak over everything tried",
                format_bytes(self.budget_bytes),
                format_bytes(self.peak_rss_bytes)
            ),
        ];
        if let Some(disk) = &self.simulated_disk {
            let late = self.simulated_late_reads;
            lines.push(format!("disk     SIMULATED: {disk} ({late} reads were slower on the real one)"));
        }
        lines.push(format!("text     {}", self.text));
        for stage in &self.stages {
            lines.push(String::new());
            lines.push(format!(
                "{:<34} {:>8} {:>8} {:>8} {:>6} {:>6} {:>8} {:>6} {:>7} {:>10}",
                stage.name, "tok/s", "p5", "p95", "ratio", "hit %", "acc/pass", "slots", "majflt", "peak"
            ));
            lines.extend(stage.cells.iter().map(|cell| cell.line(&stage.name(cell))));
            lines.push(format!("-> {}", stage.verdict()));
        }
        if !self.not_measured.is_empty() {
            lines.push(String::new());
            lines.push("Not measured:".to_owned());
            lines.extend(self.not_measured.iter().map(|line| format!("- {line}")));
        }
        lines
    }

    /// The lines as comments of a TOML file.
    pub fn comments(&self) -> String {
        let mut text = String::new();
        for line in self.lines() {
            // A path may hold a line end, which would end the comment as well.
            let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            let _ = writeln!(text, "# {}", line.trim_end());
        }
        text.replace("# \n", "#\n")
    }
}

#[cfg(test)]
mod tests {
    use drafthorse_scheduler::DraftLen;

    use super::super::decide::decide;
    use super::*;

    fn sample(tok_s: f64) -> Option<Sample> {
        Some(Sample {
            tok_s,
            tokens: 64,
            hit_rate: 0.5,
            accepted_per_pass: 0.8,
            major_faults: 3,
            peak_rss_bytes: 9 << 20,
            planned_bytes: 10 << 20,
            slots: 32,
            simulated_late_reads: 0,
        })
    }

    fn evidence() -> Evidence {
        let plain =
            Setting { drafter: Drafter::None, draft_len: DraftLen::Fixed(0), slots: None, threads: None };
        let settings = [
            plain,
            Setting { drafter: Drafter::Ngram, draft_len: DraftLen::Auto, ..plain },
            Setting { slots: Some(9), ..plain },
        ];
        let row = |levels: [f64; 3]| Row { samples: levels.map(sample).to_vec(), refused: None };
        let refused = Row { samples: vec![None; 3], refused: Some("too small".to_owned()) };
        let rows = [row([10.0, 11.0, 10.0]), row([13.0, 14.0, 13.0]), refused];
        let decision = decide(&rows.iter().map(measured).collect::<Vec<_>>());
        Evidence {
            program: "drafthorse 1".to_owned(),
            date: "2026-11-26".to_owned(),
            machine: "a machine".to_owned(),
            model: "m\n[run]\njson = true".to_owned(),
            draft: "none".to_owned(),
            budget_bytes: 1 << 30,
            simulated_disk: Some("1 GB/s, 80 us".to_owned()),
            simulated_late_reads: 4,
            text: "3 texts".to_owned(),
            seconds: 3.0,
            peak_rss_bytes: 1 << 20,
            stages: vec![Stage::new("drafting", &settings, &rows, &decision)],
            chosen: settings[1],
            not_measured: vec!["reading ahead".to_owned()],
        }
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        let quantiles = Quantiles::of(&[3.0, 1.0, 2.0]).expect("values");
        assert_eq!((quantiles.median, quantiles.p5, quantiles.p95), (2.0, 1.1, 2.9));
        assert_eq!(Quantiles::of(&[7.0]), Some(Quantiles { median: 7.0, p5: 7.0, p95: 7.0 }));
        assert_eq!(Quantiles::of(&[]), None);
    }

    #[test]
    fn the_comments_are_nothing_but_comments_whatever_a_path_holds() {
        let comments = evidence().comments();
        assert!(comments.lines().all(|line| line.starts_with('#')), "{comments}");
        assert!(comments.parse::<toml::Table>().is_ok_and(|table| table.is_empty()));
        for part in [
            "2026-11-26",
            "a machine",
            "SIMULATED: 1 GB/s, 80 us (4 reads",
            "ngram auto",
            "1.29",
            "no draft, 9 slots ",
            " not run: too small",
            "no draft, all slots that fit",
            "-> ngram auto, all slots that fit: 1.29 times as fast",
            "- reading ahead",
        ] {
            assert!(comments.contains(part), "{part} in:\n{comments}");
        }
    }

    #[test]
    fn the_object_has_every_run_and_the_reason() {
        let json = serde_json::to_value(evidence()).expect("JSON");
        let stage = &json["stages"][0];
        assert_eq!((stage["chosen"].as_u64(), stage["reason"].as_str()), (Some(1), Some("faster")));
        let cell = &stage["cells"][1];
        assert_eq!((cell["drafter"].as_str(), cell["draft_len"].as_str()), (Some("ngram"), Some("auto")));
        assert_eq!(cell["samples"], serde_json::json!([13.0, 14.0, 13.0]));
        assert_eq!(
            (cell["tok_s"]["median"].as_f64(), cell["major_faults"].as_f64()),
            (Some(13.0), Some(3.0))
        );
        assert_eq!(stage["cells"][2]["refused"], "too small");
        assert!(stage["cells"][2]["tok_s"].is_null());
        assert_eq!(json["chosen"]["drafter"], "ngram");
    }
}
