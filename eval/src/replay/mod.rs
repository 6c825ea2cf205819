//! `drafthorse-eval replay`: how often a routing trace would hit, by policy and size of the cache.
//!
//! Owns reading traces of either layout, the list of policies that can be compared, and the table. The
//! policies are the engine's own, driven without bytes by [`drafthorse_offload::Replay`]; this must
//! not count or choose anything itself.

mod plain_lfu;
mod plot;
mod route_csv;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use drafthorse_offload::policy::Belady;
use drafthorse_offload::{OffloadError, Policy, PolicyConfig, PolicyKind, Replay, Trace, Workload};
use flate2::bufread::MultiGzDecoder;
use serde::Serialize;
use thiserror::Error;

use plain_lfu::PlainLfu;
pub use plot::svg;

/// Bytes of a `.moetrace`, decompressed.
const TRACE_BYTES_MAX: u64 = 1 << 30;

/// A policy to replay.
#[derive(Clone, Copy, Debug)]
pub struct Contender {
    /// Name on the command line and in the table.
    pub name: &'static str,
    /// One line of help.
    pub summary: &'static str,
    build: fn(&Workload, PolicyConfig) -> Box<dyn Policy>,
}

/// Every policy that can be replayed.
pub const CONTENDERS: &[Contender] = &[
    Contender {
        name: "lru",
        summary: "least recently used",
        build: |_, config| PolicyKind::Lru.build(&config),
    },
    Contender {
        name: "lfu",
        summary: "fewest requests since the start, never decayed (not in the engine)",
        build: |_, _| Box::new(PlainLfu::default()),
    },
    Contender {
        name: "decayed-lfu",
        summary: "fewest selections, half-life 48 tokens: what `drafthorse run --policy lfu` does",
        build: |_, config| PolicyKind::Lfu.build(&config),
    },
    Contender {
        name: "gating",
        summary: "the engine's default: least likely to be selected soon",
        build: |_, config| PolicyKind::Gating.build(&config),
    },
    Contender {
        name: "belady",
        summary: "offline optimum: furthest next use, known from the trace",
        build: |workload, _| Box::new(Belady::new(workload)),
    },
];

/// What to replay.
pub struct ReplayOptions {
    /// The trace.
    pub trace: PathBuf,
    /// Policies to compare.
    pub policies: Vec<Contender>,
    /// Cache sizes as shares of the bank, 0..=1.
    pub shares: Vec<f64>,
    /// Tokens of the trace to replay, at most.
    pub tokens_max: usize,
}

/// Hit rates of one trace.
#[derive(Debug, Serialize)]
pub struct ReplayReport {
    /// The trace.
    pub trace: String,
    /// Experts of the model.
    pub bank: usize,
    /// A line for each policy at each share.
    pub rows: Vec<ReplayRow>,
}

/// One cache.
#[derive(Debug, Serialize)]
pub struct ReplayRow {
    /// Name of the policy.
    pub policy: &'static str,
    /// Share asked for.
    pub share: f64,
    /// Slots that makes, rounded down, at least 1.
    pub slots: usize,
    /// Experts asked for that were resident.
    pub hits: u64,
    /// Experts asked for.
    pub accesses: u64,
    /// Their quotient.
    pub hit_rate: f64,
}

/// Why there is no report.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// The trace cannot be read.
    #[error("{}: {source}", .file.display())]
    Read {
        /// The trace.
        file: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A `.moetrace` is damaged.
    #[error("{}: {source}", .file.display())]
    Trace {
        /// The trace.
        file: PathBuf,
        /// What is wrong.
        source: OffloadError,
    },
    /// A line of a CSV trace is wrong.
    #[error("{}: line {line}: {problem}", .file.display())]
    Line {
        /// The trace.
        file: PathBuf,
        /// From 1.
        line: u64,
        /// The field and what is wrong with it.
        problem: String,
    },
    /// The plot cannot be made.
    #[error("{}: cannot write the plot: {problem}", .file.display())]
    Plot {
        /// The plot.
        file: PathBuf,
        /// The reason.
        problem: String,
    },
}

/// The contender of this name.
///
/// # Errors
/// The names there are, where it is none of them.
pub fn contender(name: &str) -> Result<Contender, String> {
    let known = || CONTENDERS.iter().map(|c| c.name).collect::<Vec<_>>().join(", ");
    CONTENDERS.iter().find(|c| c.name == name).copied().ok_or_else(|| format!("not one of {}", known()))
}

/// A share of the bank.
///
/// # Errors
/// Anything but a number above 0 and up to 1.
pub fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| "not a number above 0 and up to 1".to_owned())
}

/// Replays the trace through every policy at every share. `progress` is told windows done and windows
/// to do, over all replays.
///
/// # Errors
/// A trace that cannot be read or is malformed.
pub fn replay(
    options: &ReplayOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ReplayReport, ReplayError> {
    let workload = load(&options.trace, options.tokens_max)?;
    let windows = workload.windows().len() as u64;
    let all = windows * (options.policies.len() * options.shares.len()) as u64;
    let mut rows = Vec::new();
    for policy in &options.policies {
        for share in &options.shares {
            let before = windows * rows.len() as u64;
            let mut tick = |done| progress(before + done, all);
            rows.push(row(&workload, policy, *share, &mut tick));
        }
    }
    Ok(ReplayReport { trace: options.trace.display().to_string(), bank: workload.bank(), rows })
}

fn row(workload: &Workload, policy: &Contender, share: f64, tick: &mut dyn FnMut(u64)) -> ReplayRow {
    // Rounded down, but 0.29 x 100 is 29 although it is 28.999... in binary.
    let slots = ((share * workload.bank() as f64 + 1e-6) as usize).max(1);
    let policy_object = (policy.build)(workload, workload.policy_config(slots));
    let mut replay = Replay::new(workload, slots, policy_object);
    for (done, window) in (1..).zip(workload.windows()) {
        replay.step(window);
        tick(done);
    }
    let (hits, accesses, hit_rate) = (replay.hits(), replay.accesses(), replay.hit_rate());
    ReplayRow { policy: policy.name, share, slots, hits, accesses, hit_rate }
}

/// Reads a trace of either layout, gzipped or not, whatever its name.
///
/// # Errors
/// A file that cannot be read, or is malformed.
pub fn load(file: &Path, tokens: usize) -> Result<Workload, ReplayError> {
    let failed = |source| ReplayError::Read { file: file.to_path_buf(), source };
    let mut input = BufReader::new(File::open(file).map_err(failed)?);
    if input.fill_buf().map_err(failed)?.starts_with(&[0x1F, 0x8B]) {
        parse(file, BufReader::new(MultiGzDecoder::new(input)), tokens)
    } else {
        parse(file, input, tokens)
    }
}

fn parse(file: &Path, mut input: impl BufRead, tokens: usize) -> Result<Workload, ReplayError> {
    let failed = |source| ReplayError::Read { file: file.to_path_buf(), source };
    if !input.fill_buf().map_err(failed)?.starts_with(b"{") {
        return route_csv::read(input, tokens).map_err(|route_csv::BadLine { line, problem }| {
            ReplayError::Line { file: file.to_path_buf(), line, problem }
        });
    }
    let mut bytes = Vec::new();
    input.take(TRACE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    let trace =
        Trace::parse(&bytes).map_err(|source| ReplayError::Trace { file: file.to_path_buf(), source })?;
    Ok(Workload::from_trace(&trace, tokens, 1))
}

/// The report as a table: a line for each policy, a column for each share.
pub fn table(report: &ReplayReport) -> String {
    let mut shares: Vec<(f64, usize)> = Vec::new();
    let mut policies: Vec<&str> = Vec::new();
    for row in &report.rows {
        if !shares.contains(&(row.share, row.slots)) {
            shares.push((row.share, row.slots));
        }
        if !policies.contains(&row.policy) {
            policies.push(row.policy);
        }
    }
    let mut text = format!("{}: {} experts; hit rate in per cent\n{:12}", report.trace, report.bank, "slots");
    shares.iter().for_each(|(_, slots)| _ = write!(text, " {slots:>8}"));
    _ = write!(text, "\n{:12}", "of the bank");
    shares.iter().for_each(|(share, _)| _ = write!(text, " {:>7.1}%", share * 100.0));
    for policy in policies {
        _ = write!(text, "\n{policy:12}");
        for (share, _) in &shares {
            let row = report.rows.iter().find(|row| row.policy == policy && row.share == *share);
            _ = write!(text, " {:>8.2}", row.map_or(0.0, |row| row.hit_rate * 100.0));
        }
    }
    text
}
