//! Ours against another engine: the same file, the same ids, the same memory, in turns.
//!
//! Every run is a process of its own in a memory cgroup of the limit's size; the engines alternate, so
//! that a drifting machine hits both. What is quoted is tokens per second over given ids, cold and warm,
//! with the disk traffic and the peak beside it. Owns the order of the work and its report; the machine,
//! the cgroup, the processes and the table are the files beside this one.

mod cage;
mod fio;
mod job;
mod machine;
mod outcome;
mod plan;
mod process;
mod table;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use drafthorse_runtime::gguf::GgufError;
use serde::Serialize;
use thiserror::Error;

use cage::CageKind;
use fio::Bandwidth;
use job::Job;
use machine::{Cleanup, Guardian};
use plan::{Run, Side};
use process::Measured;
use table::Row;

pub use machine::{Device, Machine, drop_caches, load};
pub use process::shell_word;
pub use table::{markdown, text};

/// What to compare, and how.
pub struct CompareOptions {
    /// The GGUF.
    pub model: PathBuf,
    /// Shares of the file, or sizes.
    pub limits: Vec<String>,
    /// A number of random ids, or a file of ids.
    pub ids: String,
    /// Of the random ids.
    pub seed: u64,
    /// Passes over the ids in one process.
    pub passes: usize,
    /// Processes of each kind.
    pub repeats: usize,
    /// Our program.
    pub ours: PathBuf,
    /// More arguments for our program, as one string.
    pub ours_args: String,
    /// The peer's command line with `{model} {ids} {threads} {passes}`.
    pub peer: String,
    /// Read-aheads to run the peer with; none: as found.
    pub read_ahead_kb: Vec<u64>,
    /// Whether the page cache is dropped before every process.
    pub drop_caches: bool,
    /// Compute threads of both.
    pub threads: usize,
    /// Whether limits are enforced.
    pub cgroup: bool,
    /// Depth to measure the disk itself with; None: it is not measured.
    pub fio_depth: Option<u32>,
    /// The command line, for the report.
    pub command: String,
}

/// The settings of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    pub model: String,
    pub model_bytes: u64,
    pub ids: usize,
    pub ids_hash: String,
    pub threads: usize,
    pub passes: usize,
    pub repeats: usize,
    pub drop_caches: bool,
    /// None: limits were not enforced.
    pub cgroup: Option<CageKind>,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub command: String,
    pub date: String,
    pub machine: Machine,
    pub setup: Setup,
    pub load_before: Option<f64>,
    pub fio: Vec<Bandwidth>,
    pub rows: Vec<Row>,
    pub notes: Vec<String>,
    pub runs: Vec<Measured>,
}

impl Comparison {
    /// Whether any run of either side gave numbers.
    pub fn is_measured(&self) -> bool {
        self.runs.iter().any(|measured| measured.failure.is_none())
    }
}

/// Why there is no comparison.
#[derive(Debug, Error)]
pub enum CompareError {
    /// The command makes no sense as given.
    #[error("{0}")]
    Usage(String),
    /// The model's file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The machine.
    #[error("{what}")]
    Machine {
        /// What was done to what.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

impl CompareError {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            CompareError::Machine { .. } => 1,
            CompareError::Usage(_) => 2,
            CompareError::Gguf(_) => 3,
        }
    }
}

/// Runs everything; `tell` gets a line for every run.
///
/// # Errors
/// [`CompareError`]. Engines that fail are part of the result. Whatever was changed on the machine is
/// put back.
pub fn compare(options: &CompareOptions, tell: &mut dyn FnMut(&str)) -> Result<Comparison, CompareError> {
    let job = Job::prepare(options)?;
    let read_ahead = job.read_ahead()?;
    let ids_file = job.write_ids()?;
    let cleanup = Cleanup {
        read_ahead: read_ahead.clone(),
        cgroup: job.setup.cgroup.map(CageKind::folder),
        file: Some(ids_file.clone()),
    };
    let guardian = match Guardian::start(cleanup) {
        Ok(guardian) => guardian,
        Err(error) => {
            let _ = fs::remove_file(&ids_file);
            return Err(error);
        }
    };
    let mut comparison = job.comparison();
    job.fio(&mut comparison);
    comparison.runs = job.run_all(read_ahead.as_ref(), &ids_file, tell)?;
    job.fio(&mut comparison);
    guardian.finish()?;
    comparison.rows = table::rows(&comparison.runs, options.passes);
    comparison.notes.extend(other_next(&comparison.runs));
    comparison.notes.extend(busy(&comparison.runs, comparison.machine.cores));
    Ok(comparison)
}

/// How this program was called.
pub fn command_line() -> String {
    let words: Vec<String> = std::env::args().map(|word| shell_word(&word)).collect();
    words.join(" ")
}

/// One run on one line.
fn line(measured: &Measured) -> String {
    let Run { limit, side, read_ahead_kb, repeat } = &measured.run;
    let who = match (side, read_ahead_kb) {
        (Side::Ours, _) => "ours".to_owned(),
        (Side::Peer, None) => "peer".to_owned(),
        (Side::Peer, Some(kib)) => format!("peer, read-ahead {kib}"),
    };
    let rates: Vec<String> =
        measured.passes.iter().map(|pass| format!("{:.3} tok/s", pass.tokens_per_s())).collect();
    let what = measured.failure.clone().unwrap_or_else(|| rates.join(", then "));
    format!("limit {}, repeat {repeat}, {who}: {what}", limit.label)
}

/// A line when the engines do not end on the same likeliest token: they may not compute the same model.
fn other_next(runs: &[Measured]) -> Option<String> {
    let of = |side: Side| {
        let mut runs = runs.iter().filter(move |measured| measured.run.side == side);
        runs.find_map(|measured| measured.passes.last()?.next)
    };
    let (ours, peer) = (of(Side::Ours)?, of(Side::Peer)?);
    (ours != peer).then(|| {
        format!("the likeliest token after the last id is {ours} for ours and {peer} for the peer: a tie, or another model")
    })
}

/// A line when something else wanted the processors. The one-minute load before a run counts what the
/// run before it left, which is up to the engine's threads: one per core is no sign of others.
fn busy(runs: &[Measured], cores: usize) -> Option<String> {
    let loads = runs.iter().filter_map(|measured| measured.load_before);
    let most = loads.max_by(f64::total_cmp)?;
    (most > cores as f64 + 1.0).then(|| {
        format!("BUSY MACHINE: load {most:.1} on {cores} cores before a run; repeat this on a quiet one")
    })
}

/// `2026-11-21 08:05 UTC`; days to a date as in Howard Hinnant's `civil_from_days`.
pub fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, minutes) = (seconds / 86_400 + 719_468, seconds % 86_400 / 60);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) =
        if month < 10 { (era * 400 + year, month + 3) } else { (era * 400 + year + 1, month - 9) };
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::plan::Limit;
    use super::*;

    #[test]
    fn a_busy_machine_is_said() {
        let run = Run {
            limit: Limit { label: "1/2".into(), bytes: 1 },
            side: Side::Ours,
            read_ahead_kb: None,
            repeat: 1,
        };
        let measured = |load_before| Measured {
            run: run.clone(),
            command: String::new(),
            failure: None,
            passes: Vec::new(),
            peak_bytes: None,
            device_bytes: None,
            load_before,
        };
        assert_eq!(busy(&[measured(Some(2.9)), measured(None)], 2), None);
        let line = busy(&[measured(Some(0.2)), measured(Some(6.7))], 2);
        assert!(line.is_some_and(|line| line.contains("load 6.7 on 2 cores")));
    }

    #[test]
    fn a_date_is_civil() {
        let at = |seconds| date(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00 UTC");
        assert_eq!(at(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(at(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(at(1_795_248_300), "2026-11-21 08:05 UTC");
    }
}
