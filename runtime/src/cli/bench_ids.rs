//! `bench --ids`: tokens per second over given token ids, pass after pass in one process.
//!
//! The first pass finds no expert in memory, the others what the one before left; the KV cache is
//! emptied in between. Nothing is sampled or drafted: this is our side of `drafthorse-eval compare`.

use std::path::Path;

use drafthorse_draft::TokenId;
use drafthorse_runtime::Error;
use drafthorse_runtime::api::{Attribution, Offload};
use drafthorse_runtime::config::Config;
use drafthorse_runtime::engine::{Replay, ids_hash, read_ids};
use drafthorse_runtime::units::format_bytes;
use serde::Serialize;

use super::output;
use super::session::Session;

/// The object of `bench --ids --json`.
#[derive(Serialize)]
struct Report {
    load_s: f64,
    /// The disk that was simulated.
    simulated_disk: Option<String>,
    passes: Vec<Pass>,
}

/// One pass over the ids.
#[derive(Serialize)]
struct Pass {
    /// 1 is the cold one.
    pass: usize,
    tokens: usize,
    seconds: f64,
    tok_s: f64,
    hits: u64,
    misses: u64,
    /// Bytes the experts' reads brought, alignment included.
    bytes_read: u64,
    /// Bytes the whole process fetched from the block device meanwhile, as the kernel counts them.
    read_bytes: u64,
    stall_s: f64,
    prefetch_issued: u64,
    prefetch_used: u64,
    prefetch_bytes: u64,
    /// Reads that were slower than on the simulated disk.
    simulated_late_reads: u64,
    attribution: Attribution,
    peak_rss_bytes: u64,
    ids_hash: String,
    /// The likeliest token after the last id.
    next: TokenId,
}

/// Decodes the ids of `file` `passes` times.
pub fn run(config: &Config, file: &Path, passes: usize) -> Result<(), Error> {
    let ids = read_ids(file)?;
    let mut session = Session::open(config)?;
    let mut report = Report { load_s: session.engine.load_s(), simulated_disk: None, passes: Vec::new() };
    for pass in 1..=passes {
        let before = device_bytes();
        let replay = session.engine.replay_ids(&ids, &mut session.screen)?;
        let read_bytes = device_bytes().saturating_sub(before);
        report.simulated_disk = replay.offload.simulated_disk.clone();
        report.passes.push(Pass::new(pass, replay, read_bytes, ids_hash(&ids)));
    }
    if config.run.json { output::print_json(&report) } else { output::print(&table(&report)) }
}

/// Bytes this process has fetched from block devices so far; 0 where the system does not tell.
fn device_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("read_bytes:"));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

impl Pass {
    fn new(pass: usize, replay: Replay, read_bytes: u64, ids_hash: String) -> Pass {
        let Replay { tokens, seconds, next, attribution, offload, memory } = replay;
        Pass {
            pass,
            tokens,
            seconds,
            tok_s: if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 },
            hits: offload.hits,
            misses: offload.misses,
            bytes_read: offload.bytes_read,
            read_bytes,
            stall_s: offload.stall_s,
            prefetch_issued: offload.prefetch_issued,
            prefetch_used: offload.prefetch_used,
            prefetch_bytes: offload.prefetch_bytes,
            simulated_late_reads: offload.simulated_late_reads,
            attribution,
            peak_rss_bytes: memory.peak_rss_bytes,
            ids_hash,
            next,
        }
    }
}

fn table(report: &Report) -> String {
    let head = format!(
        "{:>4} {:>7} {:>9} {:>9} {:>8} {:>8} {:>10} {:>8} {:>10}\n",
        "pass", "tokens", "s", "tok/s", "hits", "misses", "read", "stall s", "peak"
    );
    let lines = report.passes.iter().map(|pass| {
        format!(
            "{:>4} {:>7} {:>9.3} {:>9.3} {:>8} {:>8} {:>10} {:>8.3} {:>10}\n",
            pass.pass,
            pass.tokens,
            pass.seconds,
            pass.tok_s,
            pass.hits,
            pass.misses,
            format_bytes(pass.bytes_read),
            pass.stall_s,
            format_bytes(pass.peak_rss_bytes)
        )
    });
    let late = report.passes.iter().map(|pass| pass.simulated_late_reads).sum();
    let simulated_disk = report.simulated_disk.clone();
    let offload = Offload { simulated_disk, simulated_late_reads: late, ..Offload::default() };
    let label = offload.disk_label().map(|label| format!("{label}\n"));
    std::iter::once(head).chain(lines).chain(label).collect()
}
