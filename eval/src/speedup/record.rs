//! What is kept of a run: who ran, what `drafthorse run --json` said, or why it said nothing.
//!
//! Owns the reading of that JSON. Keys that an older or newer program lacks are left out, not made up. It
//! must not know how the runs are ordered or summed up.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A finished run, one line of runs.jsonl.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Which run of the sweep it is.
    pub key: String,
    /// What was run.
    pub command: String,
    /// Wall time of the process, loading and, side by side, the others' slices included.
    pub wall_s: f64,
    /// Of the whole process.
    pub energy_j: Option<f64>,
    /// Processes that wanted to run, just before it or the round it was made in.
    pub load_before: Option<f64>,
    /// Why there is no measurement.
    pub failure: Option<String>,
    /// Empty after a failure.
    pub measured: Option<Measured>,
    /// Which round it was made in: runs side by side mean something beside those of theirs alone.
    #[serde(default)]
    pub round: u64,
    /// The generated ids, where later runs need them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<u32>,
}

/// The figures of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Of the generated ids, little-endian, in hex.
    pub ids_sha256: String,
    pub prompt_tokens: u64,
    pub generated: u64,
    pub load_s: f64,
    pub prefill_s: f64,
    pub decode_s: f64,
    /// Passes of the target after the prompt.
    pub passes: u64,
    pub proposed: u64,
    pub accepted: u64,
    pub offered_at: Vec<u64>,
    pub accepted_at: Vec<u64>,
    /// One line on why nothing is drafted.
    pub off_reason: Option<String>,
    /// What the controller expected, where it says so.
    pub predicted_speedup: Option<f64>,
    pub predicted_t_ratio: Option<f64>,
    pub slots: u64,
    /// Prompt included.
    pub hits: u64,
    pub misses: u64,
    /// Time the target waited for experts.
    pub stall_s: f64,
    pub decode: Option<DecodeCache>,
    /// Bytes that only rejected drafts wanted.
    pub rejected_only_bytes: Option<u64>,
    pub peak_rss_bytes: u64,
}

/// The cache after the prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DecodeCache {
    pub hits: u64,
    pub misses: u64,
    pub bytes_read: u64,
    pub prefetch_bytes: u64,
    pub prefetch_used_bytes: u64,
}

impl Measured {
    /// Tokens that decoding made: the first comes out of the prompt's pass.
    pub fn decoded(&self) -> u64 {
        self.generated.saturating_sub(1)
    }

    /// The rate of decoding.
    pub fn tokens_per_s(&self) -> f64 {
        self.decoded() as f64 / self.decode_s
    }

    /// Seconds a pass took, drafting included.
    pub fn pass_s(&self) -> f64 {
        self.decode_s / self.passes as f64
    }
}

/// The object of `drafthorse run --json`, as far as it is needed here.
#[derive(Deserialize)]
struct RunJson {
    tokens: Vec<u32>,
    prompt_tokens: u64,
    finish_reason: String,
    timings: TimingsJson,
    speculation: SpeculationJson,
    offload: OffloadJson,
    memory: MemoryJson,
}

#[derive(Deserialize)]
struct TimingsJson {
    load_s: f64,
    prefill_s: f64,
    decode_s: f64,
}

#[derive(Deserialize)]
struct SpeculationJson {
    proposed: u64,
    accepted: u64,
    target_passes: u64,
    #[serde(default)]
    acceptance_by_position: Vec<PlaceJson>,
    off_reason: Option<String>,
    predicted_speedup: Option<f64>,
    t_ratio: Option<f64>,
}

#[derive(Deserialize)]
struct PlaceJson {
    offered: u64,
    accepted: u64,
}

#[derive(Deserialize)]
struct OffloadJson {
    slots: u64,
    hits: u64,
    misses: u64,
    stall_s: f64,
    rejected_only_bytes: Option<u64>,
    decode: Option<DecodeCache>,
}

#[derive(Deserialize)]
struct MemoryJson {
    peak_rss_bytes: u64,
}

/// Ids and figures of a run that was to generate `tokens` ids.
///
/// # Errors
/// In words: no such JSON, a run that was cut short, or one that took no time.
pub fn read(stdout: &[u8], tokens: usize) -> Result<(Vec<u32>, Measured), String> {
    let run: RunJson = serde_json::from_slice(stdout).map_err(|error| format!("its JSON: {error}"))?;
    let RunJson { tokens: ids, timings, speculation, offload, .. } = run;
    if run.finish_reason == "interrupted" {
        return Err("interrupted".to_owned());
    }
    if ids.len() < 2 {
        return Err(format!("{} of {tokens} tokens were generated ({})", ids.len(), run.finish_reason));
    }
    if !(timings.decode_s > 0.0 && timings.decode_s.is_finite() && speculation.target_passes > 0) {
        let passes = speculation.target_passes;
        return Err(format!("{passes} passes in {} s are no measurement", timings.decode_s));
    }
    let measured = Measured {
        ids_sha256: ids_sha256(&ids),
        prompt_tokens: run.prompt_tokens,
        generated: ids.len() as u64,
        load_s: timings.load_s,
        prefill_s: timings.prefill_s,
        decode_s: timings.decode_s,
        passes: speculation.target_passes,
        proposed: speculation.proposed,
        accepted: speculation.accepted,
        offered_at: speculation.acceptance_by_position.iter().map(|place| place.offered).collect(),
        accepted_at: speculation.acceptance_by_position.iter().map(|place| place.accepted).collect(),
        off_reason: speculation.off_reason,
        predicted_speedup: speculation.predicted_speedup,
        predicted_t_ratio: speculation.t_ratio,
        slots: offload.slots,
        hits: offload.hits,
        misses: offload.misses,
        stall_s: offload.stall_s,
        decode: offload.decode,
        rejected_only_bytes: offload.rejected_only_bytes,
        peak_rss_bytes: run.memory.peak_rss_bytes,
    };
    Ok((ids, measured))
}

/// SHA-256 of ids, each as four little-endian bytes, in hex.
pub fn ids_sha256(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    sha256(&bytes)
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const JSON: &str = r#"{"text":"x","tokens":[1,2,3,4,5],"prompt_tokens":3,"generated":5,"finish_reason":"length",
        "timings":{"load_s":0.1,"prefill_s":0.2,"decode_s":2.0,"prefill_tps":1,"decode_tps":2},
        "speculation":{"draft_len_mean":1,"proposed":3,"accepted":2,"target_passes":2,"off_reason":null},
        "offload":{"slots":4,"hits":1,"misses":2,"stall_s":0.5},"memory":{"peak_rss_bytes":7}}"#;

    #[test]
    fn figures_follow_from_what_was_counted() {
        let (ids, measured) = read(JSON.as_bytes(), 5).unwrap();
        assert_eq!(ids, [1, 2, 3, 4, 5]);
        assert_eq!((measured.tokens_per_s(), measured.decoded(), measured.pass_s()), (2.0, 4, 1.0));
        assert_eq!(
            (measured.decode, measured.rejected_only_bytes, measured.predicted_speedup),
            (None, None, None)
        );
    }

    #[test]
    fn what_is_no_measurement_is_refused() {
        for (from, to, problem) in [
            ("\"length\"", "\"interrupted\"", "interrupted"),
            ("[1,2,3,4,5]", "[1]", "1 of 5"),
            ("\"decode_s\":2.0", "\"decode_s\":0", "no measurement"),
            ("\"target_passes\":2", "\"target_passes\":0", "no measurement"),
            ("\"tokens\"", "\"ids\"", "missing field `tokens`"),
        ] {
            let error = read(JSON.replace(from, to).as_bytes(), 5).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
        assert!(read(b"", 5).is_err());
    }

    #[test]
    fn the_fingerprint_is_sha_256() {
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), abc);
        assert_eq!(ids_sha256(&[0x0063_6261]), sha256(b"abc\0"));
        assert_ne!(ids_sha256(&[1, 2]), ids_sha256(&[2, 1]));
    }
}
