//! What `bench` measured, as a table and as JSON.
//!
//! Owns the summary of repeats: median, extremes, and the median distance from the median.

use std::fmt;

use drafthorse_draft::TokenId;
use drafthorse_runtime::api::{Generation, GpuReport, Memory, Offload};
use drafthorse_runtime::units::format_bytes;
use serde::Serialize;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The prompt, in batches.
    Prefill,
    /// One token after the other.
    Decode,
}

/// What was in the expert slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Nothing.
    Cold,
    /// What the same text left there.
    Warm,
}

/// The settings of the measurement.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Setup {
    pub prompt_tokens: usize,
    pub generate_tokens: usize,
    pub repeat: usize,
    /// Weight bytes that one decoded token multiplies with.
    pub active_bytes_per_token: u64,
    /// Instructions that the kernels were chosen for.
    pub kernels: &'static str,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    phase: Phase,
    cache: Cache,
    tokens_per_s: f64,
    disk_gb_per_s: f64,
    hit_rate: f64,
    bytes_read: u64,
    accepted_per_pass: f64,
    late_reads: u64,
}

impl Sample {
    /// What a generation that was timed for `phase` says.
    pub fn new(phase: Phase, cache: Cache, generation: &Generation) -> Sample {
        let timings = &generation.timings;
        let wall_s = timings.prefill_s + timings.decode_s;
        let read = generation.offload.bytes_read;
        Sample {
            phase,
            cache,
            tokens_per_s: if phase == Phase::Prefill { timings.prefill_tps } else { timings.decode_tps },
            disk_gb_per_s: if wall_s > 0.0 { read as f64 / 1e9 / wall_s } else { 0.0 },
            hit_rate: generation.offload.hit_rate,
            bytes_read: read,
            accepted_per_pass: generation.speculation.accepted_per_pass,
            late_reads: generation.offload.simulated_late_reads,
        }
    }
}

/// One timed pass.
#[derive(Clone, Copy, Debug)]
pub struct PassSample {
    pub rows: usize,
    pub seconds: f64,
}

/// Passes of one width.
#[derive(Clone, Copy, Debug, Serialize)]
struct PassRow {
    /// Tokens verified at once.
    rows: usize,
    seconds: Spread,
    /// Median time over that of one row.
    ratio: f64,
}

fn pass_rows(samples: &[PassSample]) -> Vec<PassRow> {
    let mut widths: Vec<usize> = samples.iter().map(|sample| sample.rows).collect();
    widths.sort_unstable();
    widths.dedup();
    let of = |rows: usize| -> Spread {
        let seconds = samples.iter().filter(|sample| sample.rows == rows).map(|sample| sample.seconds);
        Spread::of(&seconds.collect::<Vec<f64>>())
    };
    let one = of(1).median;
    let row = |rows| PassRow { rows, seconds: of(rows), ratio: of(rows).median / one };
    widths.into_iter().map(row).collect()
}

/// Repeats of one number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    median: f64,
    min: f64,
    max: f64,
    /// Median absolute deviation from the median.
    mad: f64,
}

impl Spread {
    /// The spread of at least one value.
    fn of(values: &[f64]) -> Spread {
        let mid = median(values);
        let distances: Vec<f64> = values.iter().map(|value| (value - mid).abs()).collect();
        let fold = |start: f64, pick: fn(f64, f64) -> f64| values.iter().copied().fold(start, pick);
        Spread {
            median: mid,
            min: fold(f64::INFINITY, f64::min),
            max: fold(f64::NEG_INFINITY, f64::max),
            mad: median(&distances),
        }
    }
}

/// The middle value, or the mean of the middle two; 0 of nothing.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    if sorted.len() % 2 == 1 || sorted.is_empty() {
        upper
    } else {
        (sorted[sorted.len() / 2 - 1] + upper) / 2.0
    }
}

/// One line of the table.
#[derive(Clone, Copy, Debug, Serialize)]
struct Row {
    phase: Phase,
    cache: Cache,
    tokens_per_s: Spread,
    /// Bytes read over wall time, medians of the repeats from here on.
    disk_gb_per_s: f64,
    /// Active weight bytes times tokens per second; None for prefill, which shares them among rows.
    memory_gb_per_s: Option<f64>,
    hit_rate: f64,
    bytes_read: u64,
    accepted_per_pass: f64,
}

/// The object of `bench --json`; `Display` is the table.
#[derive(Debug, Serialize)]
pub struct BenchReport {
    #[serde(flatten)]
    setup: Setup,
    /// The prompt's token ids.
    prompt: Vec<TokenId>,
    rows: Vec<Row>,
    passes: Vec<PassRow>,
    /// What the GPU did in the last decode, which was a warm one.
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<GpuReport>,
    memory: Memory,
    /// The disk that was simulated, and how often the real one was slower; None without one.
    simulated_disk: Option<String>,
    simulated_late_reads: u64,
}

impl BenchReport {
    /// Sums the repeats up.
    pub fn new(setup: Setup, memory: Memory, samples: &[Sample], passes: &[PassSample]) -> BenchReport {
        let kinds = [Cache::Cold, Cache::Warm].map(|cache| [(Phase::Prefill, cache), (Phase::Decode, cache)]);
        let rows = kinds.into_iter().flatten().filter_map(|(phase, cache)| {
            let of_kind: Vec<&Sample> =
                samples.iter().filter(|s| s.phase == phase && s.cache == cache).collect();
            (!of_kind.is_empty()).then(|| row(phase, cache, &of_kind, setup.active_bytes_per_token))
        });
        BenchReport {
            setup,
            prompt: Vec::new(),
            rows: rows.collect(),
            passes: pass_rows(passes),
            gpu: None,
            memory,
            simulated_disk: None,
            simulated_late_reads: samples.iter().map(|sample| sample.late_reads).sum(),
        }
    }

    /// Says what was read.
    pub fn of_prompt(self, prompt: Vec<TokenId>) -> BenchReport {
        BenchReport { prompt, ..self }
    }

    /// Shows what a GPU did, where there was one.
    pub fn on_gpu(self, gpu: Option<GpuReport>) -> BenchReport {
        BenchReport { gpu, ..self }
    }

    /// Names the disk that was simulated, if one was.
    pub fn on_disk(self, simulated_disk: Option<String>) -> BenchReport {
        BenchReport { simulated_disk, ..self }
    }
}

fn row(phase: Phase, cache: Cache, samples: &[&Sample], active_bytes: u64) -> Row {
    let all = |pick: fn(&Sample) -> f64| samples.iter().map(|sample| pick(sample)).collect::<Vec<f64>>();
    let tokens_per_s = Spread::of(&all(|sample| sample.tokens_per_s));
    let is_decode = phase == Phase::Decode;
    Row {
        phase,
        cache,
        tokens_per_s,
        disk_gb_per_s: median(&all(|sample| sample.disk_gb_per_s)),
        memory_gb_per_s: is_decode.then(|| active_bytes as f64 / 1e9 * tokens_per_s.median),
        hit_rate: median(&all(|sample| sample.hit_rate)),
        bytes_read: median(&all(|sample| sample.bytes_read as f64)) as u64,
        accepted_per_pass: median(&all(|sample| sample.accepted_per_pass)),
    }
}

impl fmt::Display for BenchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setup { prompt_tokens, generate_tokens, repeat, kernels, .. } = self.setup;
        writeln!(
            f,
            "prompt {prompt_tokens}, generated {generate_tokens}, repeats {repeat}, kernels {kernels}"
        )?;
        writeln!(
            f,
            "{:<13} {:>8} {:>8} {:>8} {:>8} {:>7} {:>10} {:>10} {:>10} {:>9}",
            "tok/s", "median", "min", "max", "mad", "hits", "read", "disk GB/s", "mem GB/s", "acc/pass"
        )?;
        self.rows.iter().try_for_each(|row| write_row(f, row))?;
        let (simulated_disk, simulated_late_reads) = (self.simulated_disk.clone(), self.simulated_late_reads);
        let offload = Offload { simulated_disk, simulated_late_reads, ..Offload::default() };
        if let Some(label) = offload.disk_label() {
            writeln!(f, "disk          {label}")?;
        }
        for pass in &self.passes {
            let (rows, milliseconds) = (pass.rows, 1e3 * pass.seconds.median);
            writeln!(f, "pass of {rows:<5} {milliseconds:>8.1} ms, {:.2} times one row", pass.ratio)?;
        }
        let Memory { budget_bytes, planned_bytes, peak_rss_bytes } = self.memory;
        let [budget, planned, peak] = [budget_bytes, planned_bytes, peak_rss_bytes].map(format_bytes);
        writeln!(f, "memory        {budget} budget, {planned} planned, {peak} peak")
    }
}

fn write_row(f: &mut fmt::Formatter<'_>, row: &Row) -> fmt::Result {
    let name = match (row.phase, row.cache) {
        (Phase::Prefill, Cache::Cold) => "prefill cold",
        (Phase::Prefill, Cache::Warm) => "prefill warm",
        (Phase::Decode, Cache::Cold) => "decode cold",
        (Phase::Decode, Cache::Warm) => "decode warm",
    };
    let Spread { median, min, max, mad } = row.tokens_per_s;
    let memory = row.memory_gb_per_s.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.2}"));
    writeln!(
        f,
        "{name:<13} {median:>8.1} {min:>8.1} {max:>8.1} {mad:>8.2} {:>5.1} % {:>10} {:>10.2} {memory:>10} {:>9.2}",
        100.0 * row.hit_rate,
        format_bytes(row.bytes_read),
        row.disk_gb_per_s,
        row.accepted_per_pass,
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_spread_is_robust_to_one_bad_repeat() {
        let spread = Spread::of(&[10.0, 11.0, 9.0, 10.0, 1.0]);
        assert_eq!(spread, Spread { median: 10.0, min: 1.0, max: 11.0, mad: 1.0 });
        assert_eq!(median(&[1.0, 2.0]), 1.5);
        assert_eq!(Spread::of(&[3.0]).mad, 0.0);
    }

    fn sample(phase: Phase, cache: Cache, tokens_per_s: f64) -> Sample {
        let rest = Sample {
            phase,
            cache,
            tokens_per_s,
            disk_gb_per_s: 2.0,
            hit_rate: 0.5,
            bytes_read: 1 << 20,
            accepted_per_pass: 0.0,
            late_reads: 2,
        };
        Sample { disk_gb_per_s: if cache == Cache::Cold { 2.0 } else { 0.0 }, ..rest }
    }

    #[test]
    fn rows_are_cold_then_warm_and_absent_when_not_measured() {
        let setup = Setup {
            prompt_tokens: 8,
            generate_tokens: 4,
            repeat: 1,
            active_bytes_per_token: 500_000_000,
            kernels: "portable",
        };
        let warm = [sample(Phase::Prefill, Cache::Warm, 100.0), sample(Phase::Decode, Cache::Warm, 10.0)];
        let passes = [(1, 2.0), (4, 3.0), (1, 2.0), (4, 9.0), (4, 3.0)];
        let passes = passes.map(|(rows, seconds)| PassSample { rows, seconds });
        let report = BenchReport::new(setup, Memory::default(), &warm, &passes);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["passes"][1]["rows"].as_u64(), Some(4));
        assert_eq!(json["passes"][1]["ratio"].as_f64(), Some(1.5), "the median of 3, 3 and 9 over 2");
        assert_eq!(json["rows"].as_array().unwrap().len(), 2);
        assert_eq!(json["rows"][1]["memory_gb_per_s"].as_f64(), Some(5.0));
        assert!(json["rows"][0]["memory_gb_per_s"].is_null());
        assert_eq!(json["prompt_tokens"].as_u64(), Some(8));

        let cold = [
            sample(Phase::Decode, Cache::Cold, 5.0),
            warm[0],
            warm[1],
            sample(Phase::Prefill, Cache::Cold, 50.0),
        ];
        let table = BenchReport::new(setup, Memory::default(), &cold, &[]).to_string();
        let names: Vec<&str> = table.lines().skip(2).map(|line| line[..12].trim_end()).take(4).collect();
        assert_eq!(names, ["prefill cold", "decode cold", "prefill warm", "decode warm"]);
        assert!(!table.contains("simulated"), "{table}");
        let simulated = BenchReport::new(setup, Memory::default(), &cold, &[]);
        let table = simulated.on_disk(Some("1 GB/s, 80 us".to_owned())).to_string();
        let label = "simulated disk 1 GB/s, 80 us (8 reads were slower on the real one)";
        assert!(table.contains(label), "{table}");
    }
}
