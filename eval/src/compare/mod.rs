//! Ours against another engine: the same file, the same ids, the same memory, in turns.
//!
//! Every run is a process of its own in a memory cgroup of the limit's size; the engines alternate, so
//! that a drifting machine hits both. What is quoted is tokens per second over given ids, cold and warm,
//! with the disk traffic and the peak beside it. Owns the order of the work and its report; the machine,
//! the cgroup, the processes and the table are the files beside this one.

mod cage;
mod fio;
mod machine;
mod outcome;
mod plan;
mod process;
mod table;

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use drafthorse_runtime::engine::{ids_hash, parse_ids};
use drafthorse_runtime::gguf::{Gguf, GgufError};
use serde::Serialize;
use thiserror::Error;

use crate::synth::Random;
use cage::CageKind;
use fio::Bandwidth;
use machine::{Cleanup, Device, Guardian, Machine};
use outcome::Expected;
use plan::{Limit, Run, Side, schedule};
use process::{Measured, fill, is_program, measure};
use table::Row;

pub use process::shell_word;
pub use table::{markdown, text};

/// Positions of our context come in steps of this, as the peer's do.
const CONTEXT_STEP: usize = 256;
/// Read-ahead is counted in pages.
const PAGE_KIB: u64 = 4;

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
    #[error("{what}: {source}")]
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
    let ids_file = write_ids(&job.ids)?;
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

/// Checked options and what follows from them.
struct Job<'a> {
    options: &'a CompareOptions,
    setup: Setup,
    limits: Vec<Limit>,
    ids: Vec<u32>,
    expected: Expected,
    device: Option<Device>,
    request_bytes: u64,
}

impl<'a> Job<'a> {
    fn prepare(options: &'a CompareOptions) -> Result<Job<'a>, CompareError> {
        let usage = CompareError::Usage;
        let gguf = Gguf::open(&options.model)?;
        check_programs(options).map_err(usage)?;
        let sizes = gguf.files.iter().map(|file| fs::metadata(file).map(|data| data.len()));
        let model_bytes = sizes.sum::<io::Result<u64>>().map_err(|source| CompareError::Machine {
            what: format!("cannot look at {}", options.model.display()),
            source,
        })?;
        let limits = options.limits.iter().map(|text| Limit::parse(text, model_bytes));
        let limits = limits.collect::<Result<Vec<_>, _>>().map_err(usage)?;
        let ids = ids(options, &gguf).map_err(usage)?;
        let hash = ids_hash(&ids);
        let setup = Setup {
            model: options.model.display().to_string(),
            model_bytes,
            ids: ids.len(),
            ids_hash: hash.clone(),
            threads: options.threads,
            passes: options.passes,
            repeats: options.repeats,
            drop_caches: options.drop_caches,
            cgroup: if options.cgroup { Some(CageKind::find()?) } else { None },
        };
        let device = Device::of(&options.model).ok().flatten();
        let expected = Expected { passes: options.passes, tokens: ids.len(), ids_hash: hash };
        let request_bytes = fio::request_bytes(&gguf);
        Ok(Job { options, setup, limits, ids, expected, device, request_bytes })
    }

    /// File and present value of the read-ahead, where runs are to change it.
    fn read_ahead(&self) -> Result<Option<(PathBuf, u64)>, CompareError> {
        if self.options.read_ahead_kb.is_empty() {
            return Ok(None);
        }
        if let Some(odd) = self.options.read_ahead_kb.iter().find(|kib| !kib.is_multiple_of(PAGE_KIB)) {
            let problem = format!("--read-ahead {odd}: the kernel takes whole pages of {PAGE_KIB} KiB");
            return Err(CompareError::Usage(problem));
        }
        let file = self.device.as_ref().and_then(Device::read_ahead_file);
        let found = file.and_then(|file| Some((file.to_owned(), machine::number(file)?)));
        let missing = || {
            let model = self.options.model.display();
            CompareError::Usage(format!("--read-ahead: {model} lies on no block device with a read-ahead"))
        };
        let found = found.ok_or_else(missing)?;
        // Setting what is set already changes nothing and tells whether one may.
        machine::set_number(&found.0, found.1).map_err(|error| match error {
            CompareError::Machine { source, .. } => {
                CompareError::Usage(format!("--read-ahead needs root to set {}: {source}", found.0.display()))
            }
            other => other,
        })?;
        Ok(Some(found))
    }

    fn comparison(&self) -> Comparison {
        Comparison {
            command: self.options.command.clone(),
            date: date(SystemTime::now()),
            machine: Machine::look(self.device.as_ref()),
            setup: self.setup.clone(),
            load_before: machine::load(),
            fio: Vec::new(),
            rows: Vec::new(),
            notes: Vec::new(),
            runs: Vec::new(),
        }
    }

    /// Measures the disk itself, where that was asked for.
    fn fio(&self, comparison: &mut Comparison) {
        let Some(depth) = self.options.fio_depth else { return };
        match fio::measure(&self.options.model, self.request_bytes, depth) {
            Ok(bandwidth) => comparison.fio.push(bandwidth),
            Err(problem) => comparison.notes.push(problem),
        }
    }

    fn run_all(
        &self,
        read_ahead: Option<&(PathBuf, u64)>,
        ids_file: &Path,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Vec<Measured>, CompareError> {
        let runs = schedule(&self.limits, &self.options.read_ahead_kb, self.options.repeats);
        let mut all = Vec::new();
        for (index, run) in runs.iter().enumerate() {
            if let Some((file, found)) = read_ahead {
                machine::set_number(file, run.read_ahead_kb.unwrap_or(*found))?;
            }
            if self.options.drop_caches {
                machine::drop_caches()?;
            }
            let command = self.command(run, ids_file)?;
            let measured = measure(run, &command, self.setup.cgroup, self.device.as_ref(), &self.expected)?;
            tell(&format!("[{}/{}] {}", index + 1, runs.len(), line(&measured)));
            all.push(measured);
        }
        Ok(all)
    }

    fn command(&self, run: &Run, ids_file: &Path) -> Result<String, CompareError> {
        let options = self.options;
        let [model, ids] = [&options.model, ids_file].map(|path: &Path| path.display().to_string());
        let [threads, passes] = [options.threads, options.passes].map(|number| number.to_string());
        if run.side == Side::Peer {
            let values = [("model", &*model), ("ids", &*ids), ("threads", &*threads), ("passes", &*passes)];
            return fill(&options.peer, &values).map_err(CompareError::Usage);
        }
        let context = self.ids.len().next_multiple_of(CONTEXT_STEP).to_string();
        let memory = run.limit.bytes.to_string();
        let ours = options.ours.display().to_string();
        let words = [
            &*ours,
            "bench",
            &*model,
            "--ids",
            &*ids,
            "--passes",
            &*passes,
            "--json",
            "--memory",
            &*memory,
            "--threads",
            &*threads,
            "--context",
            &*context,
        ];
        let words = words.map(shell_word).join(" ");
        Ok(format!("{words} {}", options.ours_args).trim_end().to_owned())
    }
}

fn check_programs(options: &CompareOptions) -> Result<(), String> {
    let ours = options.ours.display().to_string();
    if !is_program(&ours) {
        return Err(format!("--ours {ours}: no such program"));
    }
    if !is_program(&options.peer) {
        return Err(format!("--peer {:?}: no such program", options.peer));
    }
    for name in ["{model}", "{ids}"] {
        if !options.peer.contains(name) {
            return Err(format!("--peer {:?} does not use {name}", options.peer));
        }
    }
    let values = ["model", "ids", "threads", "passes"].map(|name| (name, ""));
    fill(&options.peer, &values).map(drop).map_err(|problem| format!("--peer {problem}"))
}

/// The ids asked for, all in the model's vocabulary.
fn ids(options: &CompareOptions, gguf: &Gguf) -> Result<Vec<u32>, String> {
    let table = gguf.tensor("token_embd.weight").and_then(|info| info.dims.get(1).copied());
    let vocab =
        table.filter(|vocab| *vocab > 0).ok_or("the model has no token_embd.weight of two dimensions")?;
    if let Ok(count) = options.ids.parse::<usize>() {
        if !(1..=1 << 20).contains(&count) {
            return Err(format!("--ids {count}: expected 1 to {}", 1 << 20));
        }
        let mut random = Random::named(options.seed, "ids");
        return Ok((0..count).map(|_| random.below(vocab as usize) as u32).collect());
    }
    let text = fs::read_to_string(&options.ids).map_err(|error| format!("--ids {}: {error}", options.ids))?;
    let ids = parse_ids(&text).map_err(|problem| format!("--ids {}: {problem}", options.ids))?;
    match ids.iter().find(|id| u64::from(**id) >= vocab) {
        Some(id) => Err(format!("--ids {}: {id} is outside the vocabulary of {vocab}", options.ids)),
        None => Ok(ids),
    }
}

/// A file of the ids for both engines.
fn write_ids(ids: &[u32]) -> Result<PathBuf, CompareError> {
    let path = std::env::temp_dir().join(format!("drafthorse-compare-{}.ids", std::process::id()));
    let words: Vec<String> = ids.iter().map(u32::to_string).collect();
    let failed = |source| CompareError::Machine { what: format!("cannot write {}", path.display()), source };
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
    file.write_all((words.join("\n") + "\n").as_bytes()).map_err(failed)?;
    Ok(path)
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
fn date(time: SystemTime) -> String {
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
