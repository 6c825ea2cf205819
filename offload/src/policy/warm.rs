//! What a policy has learned, kept from one run to the next in a file of the user's choice.
//!
//! Layout: one JSON header line (format, fingerprint of the model, shape, passes, notes, XXH3 of body and notes),
//! `\n`, then f32-LE probabilities (layers, experts), then u64-LE bit sets of remembered passes (passes,
//! layers, words). Hostile input is refused with the reason; a file of another model is never used. It
//! must not know how a policy learns, or what others note in its file.

use std::io::{Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ExpertId;
use crate::checksum::Checksummer;
use crate::error::OffloadError;

/// Value of `format` in the header.
const FORMAT: &str = "drafthorse-stats-v1";
/// Passes a file may hold.
pub(super) const PASSES_MAX: usize = 2048;
/// Bytes of the header line.
const HEADER_BYTES_MAX: usize = 1 << 20;

/// Selection probabilities, and for policies that remember passes those.
#[derive(Clone, Debug, PartialEq)]
pub struct WarmStats {
    pub(super) experts: Vec<u32>, // (layers)
    pub(super) experts_used: u32,
    pub(super) probabilities: Vec<f32>, // (layers, experts), layers end to end
    pub(super) passes: Vec<u64>,        // (passes, layers, words), the oldest first
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    fingerprint: String,
    experts: Vec<u32>,
    experts_used: u32,
    passes: usize,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    notes: String,
    body_xxh3: String,
}

impl WarmStats {
    /// Experts in the order in which to fill an empty cache: the likeliest first, at most `n`.
    pub fn hottest(&self, n: usize) -> Vec<ExpertId> {
        let layers = (0u32..).zip(&self.experts);
        let ids = layers.flat_map(|(layer, n)| (0..*n).map(move |expert| ExpertId { layer, expert }));
        let mut ranked: Vec<(f32, ExpertId)> = self.probabilities.iter().copied().zip(ids).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        ranked.into_iter().take(n).filter(|(p, _)| *p > 0.0).map(|(_, id)| id).collect()
    }

    /// Writes the file, with `notes` for its next reader: to a temporary one beside it first, so that a crash leaves
    /// the old one whole.
    ///
    /// # Errors
    /// [`OffloadError::WarmStatsIo`].
    pub fn save(&self, path: &Path, fingerprint: &str, notes: &str) -> Result<(), OffloadError> {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = Path::new(&name);
        let bytes = self.to_bytes(fingerprint, notes);
        let written = std::fs::File::create(temporary)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(temporary, path));
        written.map_err(|source| {
            // The error that matters is the first; a leftover is only untidy.
            std::fs::remove_file(temporary).ok();
            OffloadError::WarmStatsIo { path: path.to_path_buf(), source }
        })
    }

    /// Reads a file for a model of `experts[layer]` experts a layer, `experts_used` a row, whose
    /// identity is `fingerprint`; what was noted in it comes along.
    ///
    /// # Errors
    /// [`OffloadError::WarmStatsIo`] where it cannot be read, [`OffloadError::WarmStats`] where it is
    /// damaged or of another model.
    pub fn load(
        path: &Path,
        fingerprint: &str,
        experts: &[u32],
        experts_used: u32,
    ) -> Result<(WarmStats, String), OffloadError> {
        let unread = |source| OffloadError::WarmStatsIo { path: path.to_path_buf(), source };
        let refused = |what| OffloadError::WarmStats { path: path.to_path_buf(), what };
        let body_max = body_bytes(experts, PASSES_MAX).ok_or_else(|| refused("too large a shape".into()))?;
        let file = std::fs::File::open(path).map_err(unread)?;
        let mut bytes = Vec::new();
        // One byte more than can be right, so that a longer file is seen to be wrong.
        let limit = (HEADER_BYTES_MAX + body_max + 1) as u64;
        file.take(limit).read_to_end(&mut bytes).map_err(unread)?;
        let (stats, notes) = WarmStats::from_bytes(&bytes, fingerprint).map_err(refused)?;
        if (stats.experts.as_slice(), stats.experts_used) != (experts, experts_used) {
            let (ours, theirs) = (shape(experts, experts_used), shape(&stats.experts, stats.experts_used));
            return Err(refused(format!("it is of a model with {theirs}, this one has {ours}")));
        }
        Ok((stats, notes))
    }

    fn to_bytes(&self, fingerprint: &str, notes: &str) -> Vec<u8> {
        let probabilities = self.probabilities.iter().flat_map(|p| p.to_le_bytes());
        let body: Vec<u8> =
            probabilities.chain(self.passes.iter().flat_map(|set| set.to_le_bytes())).collect();
        let header = Header {
            format: FORMAT.into(),
            fingerprint: fingerprint.into(),
            experts: self.experts.clone(),
            experts_used: self.experts_used,
            passes: self.passes.len() / (self.experts.len() * words(&self.experts)).max(1),
            notes: notes.into(),
            body_xxh3: content_xxh3(&body, notes),
        };
        let mut bytes = serde_json::to_vec(&header).expect("invariant: numbers and strings are JSON");
        bytes.push(b'\n');
        bytes.extend(body);
        bytes
    }

    fn from_bytes(bytes: &[u8], fingerprint: &str) -> Result<(WarmStats, String), String> {
        let line = bytes.iter().take(HEADER_BYTES_MAX).position(|byte| *byte == b'\n');
        let (line, body) = bytes.split_at(line.ok_or("no header line")?);
        let mut header: Header = serde_json::from_slice(line).map_err(|e| format!("header: {e}"))?;
        let (body, passes) = (&body[1..], header.passes);
        if header.format != FORMAT {
            return Err(format!("format \"{}\", wanted \"{FORMAT}\"", header.format));
        }
        if header.fingerprint != fingerprint {
            return Err(format!("it is of model {}, this one is {fingerprint}", header.fingerprint));
        }
        let wanted = body_bytes(&header.experts, passes).filter(|_| passes <= PASSES_MAX);
        let wanted = wanted.ok_or_else(|| format!("{passes} passes, at most {PASSES_MAX}"))?;
        if body.len() != wanted {
            return Err(format!("wanted {wanted} bytes after the header, got {}", body.len()));
        }
        if header.body_xxh3 != content_xxh3(body, &header.notes) {
            return Err("the checksum of its content is wrong".into());
        }
        let notes = std::mem::take(&mut header.notes);
        Ok((WarmStats::from_body(header, body)?, notes))
    }

    fn from_body(header: Header, body: &[u8]) -> Result<WarmStats, String> {
        let Header { experts, experts_used, .. } = header;
        let bank: usize = experts.iter().map(|n| *n as usize).sum();
        let (probabilities, passes) = body.split_at(bank * 4);
        let probabilities: Vec<f32> =
            probabilities.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        if let Some(at) = probabilities.iter().position(|p| !(0.0..=1.0).contains(p)) {
            return Err(format!("expert {at} of {bank}: {} is not a probability", probabilities[at]));
        }
        let word = |b: &[u8]| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        let passes: Vec<u64> = passes.chunks_exact(8).map(word).collect();
        let words = words(&experts);
        for (at, set) in passes.chunks_exact(words.max(1)).enumerate() {
            let n = experts[at % experts.len()] as usize;
            let beyond = (0..).zip(set).any(|(word, set): (usize, _)| {
                let room = n.saturating_sub(word * 64).min(64) as u32;
                set.checked_shr(room).unwrap_or(0) != 0
            });
            if beyond {
                return Err(format!("pass {} names an expert beyond {n}", at / experts.len()));
            }
        }
        Ok(WarmStats { experts, experts_used, probabilities, passes })
    }
}

fn content_xxh3(body: &[u8], notes: &str) -> String {
    let mut checksum = Checksummer::new();
    checksum.update(body);
    checksum.update(notes.as_bytes());
    format!("{:016x}", checksum.finish())
}

/// Words of the bit set of a layer.
pub(super) fn words(experts: &[u32]) -> usize {
    experts.iter().max().map_or(0, |n| *n as usize).div_ceil(64)
}

/// Bytes after the header line; `None` where they do not fit the address space.
fn body_bytes(experts: &[u32], passes: usize) -> Option<usize> {
    let bank = experts.iter().try_fold(0usize, |sum, n| sum.checked_add(*n as usize))?;
    let sets = passes.checked_mul(experts.len())?.checked_mul(words(experts))?.checked_mul(8)?;
    bank.checked_mul(4)?.checked_add(sets).filter(|bytes| *bytes < isize::MAX as usize / 2)
}

fn shape(experts: &[u32], used: u32) -> String {
    let most = experts.iter().max().unwrap_or(&0);
    format!("{} MoE layers of up to {most} experts, {used} used", experts.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    fn sample() -> WarmStats {
        WarmStats {
            experts: vec![3, 70],
            experts_used: 2,
            probabilities: (0..73).map(|n| n as f32 / 100.0).collect(),
            passes: vec![0b101, 0, 1, 1 << 5, 0b11, 0, 2, 0],
        }
    }

    fn refusal(change: impl FnOnce(&mut WarmStats)) -> String {
        let mut stats = sample();
        change(&mut stats);
        WarmStats::from_bytes(&stats.to_bytes("m", ""), "m").unwrap_err()
    }

    #[test]
    fn what_was_saved_is_loaded_and_nothing_else_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats");
        sample().save(&path, "model a", "of no use").unwrap();
        let notes = "{\"what\": \"others\nknow\"}";
        sample().save(&path, "model a", notes).unwrap();
        let loaded = WarmStats::load(&path, "model a", &[3, 70], 2).unwrap();
        assert_eq!(loaded, (sample(), notes.to_owned()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_of_another_model_is_refused_with_the_difference() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats");
        sample().save(&path, "model a", "").unwrap();
        let load = |fingerprint, experts: &[u32], used| {
            WarmStats::load(&path, fingerprint, experts, used).unwrap_err().to_string()
        };
        assert!(load("model b", &[3, 70], 2).contains("model a, this one is model b"));
        assert!(load("model a", &[3, 71], 2).contains("70 experts, 2 used, this one has"));
        assert!(load("model a", &[3, 70], 1).contains("this one has 2 MoE layers of up to 70 experts, 1"));
        let absent = WarmStats::load(&folder.path().join("absent"), "m", &[1], 1).unwrap_err();
        assert!(matches!(absent, OffloadError::WarmStatsIo { .. }), "{absent}");
        let nowhere = sample().save(&folder.path().join("no/such"), "m", "").unwrap_err();
        assert!(matches!(nowhere, OffloadError::WarmStatsIo { .. }), "{nowhere}");
    }

    #[test]
    fn a_file_cut_anywhere_or_changed_anywhere_in_its_body_is_refused() {
        let bytes = sample().to_bytes("m", "noted");
        assert_eq!(WarmStats::from_bytes(&bytes, "m").unwrap(), (sample(), "noted".to_owned()));
        (0..bytes.len()).for_each(|cut| assert!(WarmStats::from_bytes(&bytes[..cut], "m").is_err(), "{cut}"));
        let body = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for at in body..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert!(WarmStats::from_bytes(&bytes, "m").unwrap_err().contains("checksum"), "{at}");
        }
        assert!(WarmStats::from_bytes(&[&bytes[..], &[0]].concat(), "m").unwrap_err().contains("wanted"));
        let noted = bytes.windows(5).position(|word| word == b"noted").unwrap();
        let other = [&bytes[..noted], b"wrong", &bytes[noted + 5..]].concat();
        assert!(
            WarmStats::from_bytes(&other, "m").unwrap_err().contains("checksum"),
            "notes are content, too"
        );
    }

    #[test]
    fn values_no_policy_writes_are_refused_even_with_a_right_checksum() {
        assert!(refusal(|stats| stats.probabilities[4] = f32::NAN).contains("expert 4 of 73: NaN"));
        assert!(refusal(|stats| stats.probabilities[0] = 1.5).contains("1.5"));
        assert!(refusal(|stats| stats.passes[0] = 8).contains("pass 0 names an expert beyond 3"));
        assert!(refusal(|stats| stats.passes[1] = 1).contains("pass 0 names an expert beyond 3"));
        assert!(refusal(|stats| stats.passes[7] = 1 << 6).contains("pass 1 names an expert beyond 70"));
        assert!(refusal(|stats| stats.passes.resize(4 * 2049, 0)).contains("at most 2048"));
    }

    #[test]
    fn hostile_headers_are_refused_before_anything_is_allocated() {
        let header = |experts: &str, passes: &str| {
            let text = format!(
                "{{\"format\":\"{FORMAT}\",\"fingerprint\":\"m\",\"experts\":{experts},\
                 \"experts_used\":2,\"passes\":{passes},\"body_xxh3\":\"0\"}}\n"
            );
            WarmStats::from_bytes(text.as_bytes(), "m").unwrap_err()
        };
        assert!(header("[4294967295,4294967295]", "2048").contains("wanted"));
        assert!(header("[4]", &usize::MAX.to_string()).contains("at most"));
        assert!(header("[]", "0").contains("checksum"));
        assert!(header("[-1]", "0").contains("header"));
        assert!(WarmStats::from_bytes(b"{}\n", "m").unwrap_err().contains("header"));
        assert!(WarmStats::from_bytes(b"", "m").unwrap_err().contains("no header line"));
        let old = String::from_utf8_lossy(&sample().to_bytes("m", "")).replacen("-v1", "-v0", 1);
        assert!(WarmStats::from_bytes(old.as_bytes(), "m").unwrap_err().contains("stats-v0"));
    }

    #[test]
    fn the_hottest_come_by_probability_then_by_id_and_never_the_unseen() {
        let mut stats = sample();
        stats.probabilities = vec![0.0; 73];
        (stats.probabilities[1], stats.probabilities[5], stats.probabilities[3]) = (0.2, 0.5, 0.2);
        let ids = |n| stats.hottest(n).iter().map(|id| (id.layer, id.expert)).collect::<Vec<_>>();
        assert_eq!(ids(9), [(1, 2), (0, 1), (1, 0)]);
        assert_eq!(ids(1), [(1, 2)]);
    }
}
