//! What is run in which order: limits, read-aheads, and the alternation.
//!
//! Pure: text and numbers in, a list of runs out. A noisy machine drifts, so the engines take turns,
//! and every second repeat runs backwards (A B B A): a drift then falls on both alike.

use drafthorse_runtime::units::ByteSize;
use serde::Serialize;

/// A memory limit, as it was written and in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// `1/4` or `2GiB`.
    pub label: String,
    /// Whole pages.
    pub bytes: u64,
}

const PAGE_BYTES: u64 = 4096;

impl Limit {
    /// `1/4` (of `model_bytes`) or a size.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str, model_bytes: u64) -> Result<Limit, String> {
        let bytes = match text.split_once('/') {
            Some((part, whole)) => share(part, whole, model_bytes),
            None => text.parse::<ByteSize>().ok().map(ByteSize::bytes),
        };
        let pages = bytes.map(|bytes| bytes / PAGE_BYTES * PAGE_BYTES).filter(|bytes| *bytes > 0);
        let bytes =
            pages.ok_or_else(|| format!("--limit {text:?}: expected a share such as 1/4 or a size"))?;
        Ok(Limit { label: text.to_owned(), bytes })
    }
}

fn share(part: &str, whole: &str, model_bytes: u64) -> Option<u64> {
    let [part, whole] = [part, whole].map(|number| number.trim().parse::<u32>().ok());
    let (part, whole) = (part.filter(|it| *it > 0)?, whole.filter(|it| *it > 0)?);
    u64::try_from(u128::from(model_bytes) * u128::from(part) / u128::from(whole)).ok()
}

/// Who runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// This product.
    Ours,
    /// The other engine.
    Peer,
}

/// One process to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// Its limit.
    pub limit: Limit,
    /// Who.
    pub side: Side,
    /// Read-ahead of the block device meanwhile; None leaves it as it was found.
    pub read_ahead_kb: Option<u64>,
    /// 1-based.
    pub repeat: usize,
}

/// All runs in order. Read-ahead is for the peer, whose file is mapped; ours reads around the page cache.
pub fn schedule(limits: &[Limit], read_ahead_kb: &[u64], repeats: usize) -> Vec<Run> {
    let peers = match read_ahead_kb {
        [] => vec![None],
        some => some.iter().copied().map(Some).collect(),
    };
    let mut runs = Vec::new();
    for limit in limits {
        for repeat in 1..=repeats {
            let run = |side, read_ahead_kb| Run { limit: limit.clone(), side, read_ahead_kb, repeat };
            let mut turn = vec![run(Side::Ours, None)];
            turn.extend(peers.iter().map(|read_ahead| run(Side::Peer, *read_ahead)));
            if repeat % 2 == 0 {
                turn.reverse();
            }
            runs.append(&mut turn);
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_limit_is_a_share_of_the_file_or_a_size_in_whole_pages() {
        let bytes = |text| Limit::parse(text, 1_000_000).map(|limit| limit.bytes);
        assert_eq!(bytes("1/2"), Ok(499_712)); // 122 pages
        assert_eq!(bytes("3/4"), Ok(749_568));
        assert_eq!(bytes("1MiB"), Ok(1 << 20));
        for text in ["", "0/2", "1/0", "1/", "-1/2", "half", "1/1000000", "100B"] {
            assert!(bytes(text).unwrap_err().contains("--limit"), "{text}");
        }
    }

    #[test]
    fn the_engines_alternate_and_every_second_turn_is_reversed() {
        let limits = ["1/2", "1/4"].map(|text| Limit::parse(text, 1 << 30).unwrap());
        let order = |runs: &[Run]| -> String {
            let letter = |run: &Run| match (run.side, run.read_ahead_kb) {
                (Side::Ours, _) => 'o',
                (Side::Peer, None) => 'p',
                (Side::Peer, Some(128)) => 's',
                (Side::Peer, Some(_)) => 'l',
            };
            runs.iter().map(letter).collect()
        };
        assert_eq!(order(&schedule(&limits, &[], 2)), "oppooppo");
        let runs = schedule(&limits, &[128, 8192], 3);
        assert_eq!(order(&runs), "osllsooslosllsoosl");
        assert!(runs[..9].iter().all(|run| run.limit.label == "1/2"));
        assert_eq!(runs.iter().map(|run| run.repeat).take(6).collect::<Vec<_>>(), [1, 1, 1, 2, 2, 2]);
    }
}
