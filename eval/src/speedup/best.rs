//! What other caches would have hit on the text's own routing: LRU, and Belady's optimum.
//!
//! Owns the replay of a reference run's trace, token by token as plain decoding asks; the prompt fills the
//! caches and is not counted. The policies are the engine's (`drafthorse_offload::Replay`).

use std::path::Path;

use drafthorse_offload::policy::Belady;
use drafthorse_offload::{Policy, PolicyKind, Replay, Workload};

use crate::replay::{ReplayError, load};

/// Hits and uses of two policies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bounds {
    pub lru_hits: u64,
    pub belady_hits: u64,
    pub uses: u64,
}

impl Bounds {
    /// Replays a trace whose first `prompt_tokens` tokens are the prompt's.
    ///
    /// # Errors
    /// A trace that cannot be read.
    pub fn of(trace: &Path, prompt_tokens: usize, slots: usize) -> Result<Bounds, ReplayError> {
        let workload = load(trace, usize::MAX)?;
        let lru = PolicyKind::Lru.build(&workload.policy_config(slots));
        let (lru_hits, uses) = decoded(&workload, prompt_tokens, slots, lru);
        let (belady_hits, _) = decoded(&workload, prompt_tokens, slots, Box::new(Belady::new(&workload)));
        Ok(Bounds { lru_hits, belady_hits, uses })
    }

    /// Adds those of another prompt.
    pub fn add(&mut self, other: Bounds) {
        self.lru_hits += other.lru_hits;
        self.belady_hits += other.belady_hits;
        self.uses += other.uses;
    }
}

/// Hits and uses after the prompt.
fn decoded(workload: &Workload, prompt_tokens: usize, slots: usize, policy: Box<dyn Policy>) -> (u64, u64) {
    let layers = workload.windows().iter().map(|window| window.layer() as usize + 1).max().unwrap_or(0);
    let prompt = (prompt_tokens * layers).min(workload.windows().len());
    let mut replay = Replay::new(workload, slots, policy);
    let (before, after) = workload.windows().split_at(prompt);
    before.iter().for_each(|window| replay.step(window));
    let (hits, uses) = (replay.hits(), replay.accesses());
    after.iter().for_each(|window| replay.step(window));
    (replay.hits() - hits, replay.accesses() - uses)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_what_follows_the_prompt_counts() {
        // One layer of four experts, one a token: 0 1 | 0 2 0 1.
        let trace =
            b"{\"n_routed_experts\":4,\"top_k\":1,\"n_moe_layers\":1,\"n_tokens\":6,\"seq_lens\":[6]}\n\
            \x00\x01\x00\x02\x00\x01\0\0\0\0\0\0\0\0\0\0\0\0";
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.moetrace");
        std::fs::write(&file, trace).unwrap();
        // Two slots, by hand: 0 hits, 2 puts 1 out, 0 hits, 1 misses. Three: 0 hits, 2 misses, 0 and 1 hit.
        let bounds = |slots| Bounds::of(&file, 2, slots).unwrap();
        assert_eq!(bounds(2), Bounds { lru_hits: 2, belady_hits: 2, uses: 4 });
        assert_eq!(bounds(3), Bounds { lru_hits: 3, belady_hits: 3, uses: 4 });
        assert_eq!(Bounds::of(&file, 6, 2).unwrap().uses, 0);
    }
}
