//! What a budget makes of a model: the plan, and how fast plain decoding can be at best.
//!
//! The estimate is deliberately plain, and says what it rests on: a token multiplies with the active
//! weights at an assumed memory bandwidth and reads the experts that have no slot at the disk's
//! measured one, as if every expert were used equally often. Real routing is skewed, so hit rates are
//! higher; reading and computing overlap, so their times do not add up in full.

use std::path::PathBuf;
use std::time::Instant;

use drafthorse_offload::reader::{PreadReader, Read, Reader as _};
use drafthorse_offload::{AlignedBuf, Extent, OffloadError, PAGE_BYTES};
use drafthorse_runtime::api::EngineOptions;
use drafthorse_runtime::engine::Engine;
use drafthorse_runtime::gguf::Gguf;
use drafthorse_scheduler::MemoryPlan;
use serde::Serialize;

use super::contents::{Contents, Experts};
use crate::cli::one_line;

/// What laptop CPUs multiply quantized weights with, when nothing is measured.
const MEMORY_GB_PER_S: f64 = 10.0;
/// A plain NVMe disk, when this one cannot be measured.
const DISK_GB_PER_S: f64 = 2.0;
/// How long the disk is measured.
const MEASURE_S: f64 = 0.4;
/// Smaller files say little about the disk.
const MEASURE_FILE_BYTES_MIN: u64 = 32 << 20;

/// The plan for a budget, or why there is none.
#[derive(Debug, Serialize)]
pub struct Outlook {
    pub plan: Option<MemoryPlan>,
    /// Why this build or this budget cannot run the model.
    pub refusal: Option<String>,
    pub prediction: Option<Prediction>,
}

/// An estimate of plain decoding, and what it rests on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prediction {
    pub tokens_per_s: f64,
    /// Slots over experts: the hit rate if all experts were used equally often.
    pub hit_rate: f64,
    pub disk_bytes_per_token: u64,
    pub disk_gb_per_s: f64,
    /// Whether the disk's rate was measured on this file, or assumed.
    pub disk_is_measured: bool,
    /// Assumed.
    pub memory_gb_per_s: f64,
}

impl Outlook {
    /// Plans, and measures the disk if experts would come from it.
    pub fn new(options: &EngineOptions, gguf: &Gguf, contents: &Contents) -> Outlook {
        match Engine::plan(options) {
            Err(error) => {
                Outlook { plan: None, refusal: Some(one_line(&error.to_string())), prediction: None }
            }
            Ok(plan) => {
                let streams = contents.experts.as_ref().is_some_and(|experts| hit_rate(&plan, experts) < 1.0);
                let measured = if streams { disk_gb_per_s(gguf, options.io.threads, contents) } else { None };
                let has_weights = contents.active_bytes_per_token > 0;
                let prediction = has_weights.then(|| predict(&plan, contents, measured));
                Outlook { plan: Some(plan), refusal: None, prediction }
            }
        }
    }
}

fn hit_rate(plan: &MemoryPlan, experts: &Experts) -> f64 {
    let total = experts.layers.saturating_mul(experts.experts).max(1);
    (plan.slots as f64 / total as f64).min(1.0)
}

fn predict(plan: &MemoryPlan, contents: &Contents, measured: Option<f64>) -> Prediction {
    let hit_rate = contents.experts.as_ref().map_or(1.0, |experts| hit_rate(plan, experts));
    let cycle_bytes = contents.experts.as_ref().map_or(0, |experts| experts.cycle_bytes);
    let disk_bytes = cycle_bytes as f64 * (1.0 - hit_rate);
    let disk_gb_per_s = measured.unwrap_or(DISK_GB_PER_S);
    let seconds =
        disk_bytes / (disk_gb_per_s * 1e9) + contents.active_bytes_per_token as f64 / (MEMORY_GB_PER_S * 1e9);
    Prediction {
        tokens_per_s: 1.0 / seconds,
        hit_rate,
        disk_bytes_per_token: disk_bytes as u64,
        disk_gb_per_s,
        disk_is_measured: measured.is_some(),
        memory_gb_per_s: MEMORY_GB_PER_S,
    }
}

/// The rate of unbuffered reads the size of an expert's part at scattered places of the model's
/// largest file; None where it cannot be measured honestly (a small file, no unbuffered reads).
fn disk_gb_per_s(gguf: &Gguf, io_threads: usize, contents: &Contents) -> Option<f64> {
    let (file, &file_bytes) = gguf.file_bytes.iter().enumerate().max_by_key(|(_, bytes)| **bytes)?;
    if file_bytes < MEASURE_FILE_BYTES_MIN {
        return None;
    }
    let part = contents.experts.as_ref()?.expert_bytes / 3;
    let block_bytes = part.clamp(64 << 10, 4 << 20).next_multiple_of(PAGE_BYTES as u64);
    let path = gguf.files.get(file)?.clone();
    measure(path, Blocks { file_bytes, block_bytes }, io_threads).ok().flatten()
}

#[derive(Clone, Copy, Debug)]
struct Blocks {
    file_bytes: u64,
    block_bytes: u64,
}

impl Blocks {
    /// The place of the n-th read: a fixed scatter (a step coprime to most block counts).
    fn extent(self, n: u64) -> Extent {
        let count = (self.file_bytes / self.block_bytes).max(1);
        let offset = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % count * self.block_bytes;
        Extent { file: 0, offset, len: self.block_bytes.min(self.file_bytes - offset) }
    }
}

fn measure(path: PathBuf, blocks: Blocks, io_threads: usize) -> Result<Option<f64>, OffloadError> {
    let mut reader = PreadReader::open(&[path], io_threads)?;
    if reader.notice().is_some() {
        return Ok(None); // buffered reads would measure the page cache
    }
    let began = Instant::now();
    for n in 0..io_threads as u64 {
        let buf = AlignedBuf::new(blocks.block_bytes as usize)?;
        reader.submit(vec![Read { tag: n, extent: blocks.extent(n), buf }])?;
    }
    let (mut bytes, mut next) = (0u64, io_threads as u64);
    while reader.in_flight() > 0 {
        let done = reader.wait()?;
        let Ok(range) = done.data else { return Ok(None) };
        bytes += range.len() as u64;
        if began.elapsed().as_secs_f64() < MEASURE_S {
            reader.submit(vec![Read { tag: next, extent: blocks.extent(next), buf: done.buf }])?;
            next += 1;
        }
    }
    Ok(Some(bytes as f64 / 1e9 / began.elapsed().as_secs_f64()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn scattered_reads_stay_inside_the_file() {
        let blocks = Blocks { file_bytes: 1_000_001, block_bytes: 65_536 };
        for n in 0..100 {
            let extent = blocks.extent(n);
            assert!(extent.offset + extent.len <= blocks.file_bytes && extent.len > 0);
            assert_eq!(extent.offset % PAGE_BYTES as u64, 0);
        }
    }

    #[test]
    fn a_real_file_has_a_rate_or_is_said_not_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, vec![1u8; 1 << 20]).unwrap();
        let rate = measure(path, Blocks { file_bytes: 1 << 20, block_bytes: 65_536 }, 2).unwrap();
        assert!(rate.is_none_or(|rate| rate > 0.0));
    }

    #[test]
    fn an_unreadable_file_is_no_panic() {
        let blocks = Blocks { file_bytes: 1 << 20, block_bytes: 65_536 };
        assert!(measure("/no/such/file".into(), blocks, 2).is_err());
    }
}
