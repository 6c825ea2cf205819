//! `belady`: evict the expert whose next use lies furthest ahead, which no policy can better.
//!
//! It must be told the whole [`Workload`] beforehand, so it exists for replays only and is not in the
//! registry. L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", 1966.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::{Policy, WarmStats};
use crate::ExpertId;
use crate::replay::Workload;

/// The offline optimum for one workload, replayed from its start.
pub struct Belady {
    uses: Vec<Vec<Vec<usize>>>, // (layers, experts): windows to come, the next one last
    residents: BTreeSet<(Reverse<usize>, ExpertId)>, // the furthest next use first
}

impl Belady {
    /// Reads the future from `workload`.
    pub fn new(workload: &Workload) -> Belady {
        let layers = workload.policy_config(0).experts;
        let mut uses: Vec<Vec<Vec<usize>>> =
            layers.iter().map(|experts| vec![Vec::new(); *experts as usize]).collect();
        for (at, window) in workload.windows().iter().enumerate().rev() {
            for expert in window.experts() {
                uses[window.layer() as usize][*expert as usize].push(at);
            }
        }
        Belady { uses, residents: BTreeSet::new() }
    }

    fn key(&self, id: ExpertId) -> (Reverse<usize>, ExpertId) {
        let uses = self.uses.get(id.layer as usize).and_then(|experts| experts.get(id.expert as usize));
        (Reverse(uses.and_then(|uses| uses.last().copied()).unwrap_or(usize::MAX)), id)
    }
}

impl Policy for Belady {
    fn name(&self) -> &'static str {
        "belady"
    }

    fn observe(&mut self, layer: u32, experts: &[u32], _counts: &[u32]) {
        for &expert in experts {
            let id = ExpertId { layer, expert };
            let resident = self.residents.remove(&self.key(id));
            let uses = self.uses.get_mut(layer as usize).and_then(|experts| experts.get_mut(expert as usize));
            uses.and_then(Vec::pop);
            if resident {
                self.insert(id);
            }
        }
    }

    fn insert(&mut self, id: ExpertId) {
        self.residents.insert(self.key(id));
    }

    fn remove(&mut self, id: ExpertId) {
        self.residents.remove(&self.key(id));
    }

    fn victim(&mut self, _layer: u32, evictable: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        self.residents.iter().map(|(_, id)| *id).find(|id| evictable(*id))
    }

    fn warm_stats(&self) -> Option<WarmStats> {
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::replay::Replay;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const EXPERTS: u32 = 4;

    /// Most hits any choice of victims can have: all resident sets reachable, best count of each.
    fn most_hits(workload: &Workload, slots: usize) -> u64 {
        let mut states = BTreeMap::from([(BTreeSet::new(), 0u64)]);
        for window in workload.windows() {
            let flat = |expert: &u32| window.layer() * EXPERTS + expert;
            let asked: BTreeSet<u32> = window.experts().iter().map(flat).collect();
            let mut next: BTreeMap<BTreeSet<u32>, u64> = BTreeMap::new();
            for (resident, hits) in &states {
                let hits = hits + asked.intersection(resident).count() as u64;
                let rest: Vec<u32> = resident.difference(&asked).copied().collect();
                for keep in 0u32..1 << rest.len() {
                    let kept = (0..).zip(&rest).filter(|(bit, _)| keep >> bit & 1 == 1).map(|(_, e)| *e);
                    let after: BTreeSet<u32> = asked.iter().copied().chain(kept).collect();
                    if after.len() <= slots {
                        let best = next.entry(after).or_default();
                        *best = hits.max(*best);
                    }
                }
            }
            states = next;
        }
        states.into_values().max().unwrap()
    }

    proptest! {
        #[test]
        fn no_choice_of_victims_hits_more_often(
            windows in prop::collection::vec((0u32..2, prop::collection::vec(0..EXPERTS, 1..=3)), 1..14),
            slots in 3usize..=6,
        ) {
            let mut workload = Workload::new(vec![EXPERTS; 2], 1);
            for (layer, picks) in &windows {
                workload.push(*layer, picks.iter().copied()).unwrap();
            }
            let mut replay = Replay::new(&workload, slots, Box::new(Belady::new(&workload)));
            workload.windows().iter().for_each(|window| replay.step(window));
            prop_assert_eq!(replay.hits(), most_hits(&workload, slots));
        }
    }
}
