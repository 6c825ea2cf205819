//! What the disk itself gives at our request size: `fio`, random reads around the page cache.

use std::path::Path;
use std::process::Command;

use drafthorse_runtime::gguf::Gguf;
use serde::Serialize;
use serde_json::Value;

/// Length of one measurement; two are made, before the runs and after them.
const SECONDS: u32 = 5;
/// Requests of a model without routed experts.
const DENSE_REQUEST_BYTES: u64 = 1 << 20;

/// One measurement.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Bandwidth {
    pub request_bytes: u64,
    pub depth: u32,
    pub bytes_per_s: f64,
}

/// The requests our reader makes: one part of an expert, widened to pages; an expert's largest counts.
pub fn request_bytes(gguf: &Gguf) -> u64 {
    let experts = gguf.tensors.iter().filter(|info| info.name.contains("_exps.") && info.dims.len() == 3);
    let largest = experts.map(|info| info.bytes / info.dims[2].max(1)).max();
    largest.unwrap_or(DENSE_REQUEST_BYTES).next_multiple_of(4096)
}

/// Reads `file` at random places for a few seconds.
///
/// # Errors
/// In words: no fio, or what it said.
pub fn measure(file: &Path, request_bytes: u64, depth: u32) -> Result<Bandwidth, String> {
    let output = Command::new("fio")
        .args(["--name=drafthorse", "--readonly", "--rw=randread", "--direct=1", "--ioengine=io_uring"])
        .args(["--time_based", "--output-format=json"])
        .arg(format!("--runtime={SECONDS}"))
        .arg(format!("--filename={}", file.display().to_string().replace(':', "\\:")))
        .arg(format!("--bs={request_bytes}"))
        .arg(format!("--iodepth={depth}"))
        .output()
        .map_err(|error| format!("cannot run fio: {error}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(format!("fio: {}", message.lines().last().unwrap_or("failed without a message")));
    }
    let bytes_per_s = read_bandwidth(&String::from_utf8_lossy(&output.stdout))?;
    Ok(Bandwidth { request_bytes, depth, bytes_per_s })
}

/// fio writes notes in front of its JSON.
fn read_bandwidth(text: &str) -> Result<f64, String> {
    let json = text.find('{').map_or("", |start| &text[start..]);
    let report: Value = serde_json::from_str(json).map_err(|error| format!("fio's report: {error}"))?;
    let found = report["jobs"][0]["read"]["bw_bytes"].as_f64().filter(|rate| *rate > 0.0);
    found.ok_or_else(|| "fio's report has no read bandwidth".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bandwidth_is_read_out_of_the_report() {
        let report = "note: both\n{\"jobs\": [{\"read\": {\"bw_bytes\": 1234567}}]}\n";
        assert_eq!(read_bandwidth(report), Ok(1_234_567.0));
        assert!(read_bandwidth("{\"jobs\": []}").is_err());
        assert!(read_bandwidth("fio: not here").is_err());
    }
}
