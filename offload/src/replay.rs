//! Replays router selections through a policy without reading a byte: unit-size slots, nothing but
//! residency.
//!
//! Owns [`Workload`] (which experts each window of rows asks for, layer by layer) and [`Replay`], which
//! drives a [`Policy`] exactly as [`crate::ExpertCache`] does: observe, pin what is resident, then make
//! room for each miss. It must not know files, time or how a policy chooses.

use crate::ExpertId;
use crate::error::OffloadError;
use crate::policy::{LFU_HALF_LIFE_ROWS, Policy, PolicyConfig};
use crate::trace::{Trace, TraceHeader};

/// What one layer asks for at one time: the distinct experts of a window of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    layer: u32,
    experts: Vec<u32>,
    counts: Vec<u32>, // (experts): rows that chose the expert
}

/// Everything a run asks of its cache, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    experts: Vec<u32>, // (layers)
    experts_used: u32,
    windows: Vec<Window>,
}

impl Window {
    /// The MoE layer.
    pub fn layer(&self) -> u32 {
        self.layer
    }

    /// The experts asked for, each once.
    pub fn experts(&self) -> &[u32] {
        &self.experts
    }
}

impl Workload {
    /// Nothing yet, for `experts[layer]` experts a layer of which a row uses `experts_used`.
    pub fn new(experts: Vec<u32>, experts_used: u32) -> Workload {
        Workload { experts, experts_used: experts_used.max(1), windows: Vec::new() }
    }

    /// The first `tokens` tokens of a trace in windows of `rows` (>= 1) tokens: 1 is decoding, more is
    /// a verification or prefill window. Windows do not cross from one sequence to the next.
    pub fn from_trace(trace: &Trace, tokens: usize, rows: usize) -> Workload {
        let TraceHeader { n_moe_layers, n_routed_experts, top_k, n_tokens, seq_lens, .. } = trace.header();
        let mut workload = Workload::new(vec![*n_routed_experts as u32; *n_moe_layers], *top_k as u32);
        let tokens = tokens.min(*n_tokens);
        let mut start = 0;
        for len in seq_lens {
            let end = (start + len).min(tokens);
            for first in (start..end).step_by(rows.max(1)) {
                let window = first..(first + rows.max(1)).min(end);
                for layer in 0..*n_moe_layers {
                    let picks = window.clone().filter_map(|token| trace.picks(token, layer)).flatten();
                    let pushed = workload.push(layer as u32, picks.map(|pick| u32::from(*pick)));
                    pushed.expect("invariant: a parsed trace names known experts");
                }
            }
            start += len;
        }
        workload
    }

    /// Adds a window of `layer`; `picks` names an expert once for each row that chose it.
    ///
    /// # Errors
    /// A layer or an expert that does not exist. Nothing is added then.
    pub fn push(&mut self, layer: u32, picks: impl Iterator<Item = u32>) -> Result<(), OffloadError> {
        let window = self.window(layer, picks)?;
        self.windows.push(window);
        Ok(())
    }

    /// A window as [`Workload::push`] would add it.
    pub(crate) fn window(
        &self,
        layer: u32,
        picks: impl Iterator<Item = u32>,
    ) -> Result<Window, OffloadError> {
        let layers = self.experts.len();
        let known = *self.experts.get(layer as usize).ok_or(OffloadError::NoSuchLayer { layer, layers })?;
        let (mut experts, mut counts) = (Vec::new(), Vec::new());
        for expert in picks {
            if expert >= known {
                let id = ExpertId { layer, expert };
                return Err(OffloadError::NoSuchExpert { id, experts: known as usize });
            }
            match experts.iter().position(|seen| *seen == expert) {
                Some(at) => counts[at] += 1,
                None => {
                    experts.push(expert);
                    counts.push(1);
                }
            }
        }
        Ok(Window { layer, experts, counts })
    }

    /// The windows in order.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// Experts of the model.
    pub fn bank(&self) -> usize {
        self.experts.iter().map(|n| *n as usize).sum()
    }

    /// What a policy for a cache of `slots` over this workload is built for.
    pub fn policy_config(&self, slots: usize) -> PolicyConfig {
        let (experts, experts_used) = (self.experts.clone(), self.experts_used);
        PolicyConfig { experts, slots, experts_used, lfu_half_life_rows: LFU_HALF_LIFE_ROWS, warm: None }
    }
}

/// A cache that holds nothing: which experts would be resident, and how often they are.
pub struct Replay {
    policy: Box<dyn Policy>,
    slots: usize,
    resident: usize,
    places: Vec<Vec<Place>>, // (layers, experts)
    hits: u64,
    accesses: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Out,
    In,
    Pinned,
}

impl Replay {
    /// An empty cache of `slots` (at least 1) for the shape of `workload`.
    pub fn new(workload: &Workload, slots: usize, policy: Box<dyn Policy>) -> Replay {
        let places = workload.experts.iter().map(|n| vec![Place::Out; *n as usize]).collect();
        Replay { policy, slots: slots.max(1), resident: 0, places, hits: 0, accesses: 0 }
    }

    /// Asks for a window of the same workload: each distinct expert is one access, a hit if it was
    /// resident when its turn came. More experts than slots come in pieces, one cacheful at a time.
    pub fn step(&mut self, window: &Window) {
        for (experts, counts) in window.experts.chunks(self.slots).zip(window.counts.chunks(self.slots)) {
            self.policy.observe(window.layer, experts, counts);
            self.serve(window.layer, experts);
        }
    }

    /// Experts asked for that were resident.
    pub fn hits(&self) -> u64 {
        self.hits
    }

    /// Experts asked for.
    pub fn accesses(&self) -> u64 {
        self.accesses
    }

    /// Share of accesses that were hits, 0..=1; 0 before the first.
    pub fn hit_rate(&self) -> f64 {
        self.hits as f64 / self.accesses.max(1) as f64
    }

    /// The policy, with what it has learned.
    pub fn policy(&self) -> &dyn Policy {
        &*self.policy
    }

    /// Makes an expert resident while there is a free slot, as preloading does; not an access.
    pub fn preload(&mut self, id: ExpertId) {
        let free = self.resident < self.slots;
        let Some(place) = self.place(id).filter(|place| free && **place == Place::Out) else { return };
        *place = Place::In;
        self.resident += 1;
        self.policy.insert(id);
    }

    fn serve(&mut self, layer: u32, experts: &[u32]) {
        let ids: Vec<ExpertId> = experts.iter().map(|expert| ExpertId { layer, expert: *expert }).collect();
        let missing: Vec<ExpertId> = ids.iter().copied().filter(|id| !self.pin_resident(*id)).collect();
        self.accesses += ids.len() as u64;
        self.hits += (ids.len() - missing.len()) as u64;
        for id in missing {
            if self.resident == self.slots {
                self.evict_for(layer);
            }
            self.policy.insert(id);
            self.set(id, Place::Pinned);
            self.resident += 1;
        }
        ids.iter().for_each(|id| self.set(*id, Place::In));
    }

    fn pin_resident(&mut self, id: ExpertId) -> bool {
        let resident = self.place(id).is_some_and(|place| *place != Place::Out);
        if resident {
            self.set(id, Place::Pinned);
        }
        resident
    }

    fn evict_for(&mut self, layer: u32) {
        let places = &self.places;
        let evictable = |id: ExpertId| {
            let place = places.get(id.layer as usize).and_then(|experts| experts.get(id.expert as usize));
            place == Some(&Place::In)
        };
        let victim = self.policy.victim(layer, &evictable);
        let victim = victim.expect("invariant: a policy names an evictable expert when there is one");
        self.policy.remove(victim);
        self.set(victim, Place::Out);
        self.resident -= 1;
    }

    fn place(&mut self, id: ExpertId) -> Option<&mut Place> {
        self.places.get_mut(id.layer as usize)?.get_mut(id.expert as usize)
    }

    fn set(&mut self, id: ExpertId, to: Place) {
        if let Some(place) = self.place(id) {
            *place = to;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::policy::{Belady, PolicyKind};

    fn workload(experts: u32, windows: &[(u32, &[u32])]) -> Workload {
        let layers = windows.iter().map(|(layer, _)| layer + 1).max().unwrap();
        let mut workload = Workload::new(vec![experts; layers as usize], 1);
        for (layer, picks) in windows {
            workload.push(*layer, picks.iter().copied()).unwrap();
        }
        workload
    }

    fn hits(workload: &Workload, slots: usize, policy: Box<dyn Policy>) -> u64 {
        let mut replay = Replay::new(workload, slots, policy);
        workload.windows().iter().for_each(|window| replay.step(window));
        replay.hits()
    }

    #[test]
    fn a_tiny_trace_hits_as_counted_by_hand() {
        // Two slots: 0 miss, 1 miss, 0 hit, 2 miss (lru drops 1), 0 hit, 1 miss (lru drops 2).
        let work = workload(4, &[(0, &[0]), (0, &[1]), (0, &[0]), (0, &[2]), (0, &[0]), (0, &[1])]);
        let lru = PolicyKind::Lru.build(&work.policy_config(2));
        assert_eq!(hits(&work, 2, lru), 2);
        assert_eq!(hits(&work, 2, Box::new(Belady::new(&work))), 2);
        assert_eq!(hits(&work, 3, Box::new(Belady::new(&work))), 3);
    }

    #[test]
    fn an_expert_of_several_rows_is_one_access_with_its_count() {
        let work = workload(4, &[(0, &[3, 1, 3, 3])]);
        assert_eq!(work.windows()[0].experts(), [3, 1]);
        assert_eq!(work.windows()[0].counts, [3, 1]);
        let mut replay = Replay::new(&work, 2, PolicyKind::Lru.build(&work.policy_config(2)));
        replay.step(&work.windows()[0]);
        assert_eq!((replay.accesses(), replay.hits()), (2, 0));
    }

    #[test]
    fn a_window_wider_than_the_cache_is_served_in_pieces() {
        let work = workload(8, &[(0, &[0, 1, 2, 3, 4]), (0, &[4])]);
        for kind in [PolicyKind::Lru, PolicyKind::Lfu, PolicyKind::Gating] {
            assert_eq!(hits(&work, 2, kind.build(&work.policy_config(2))), 1, "{}", kind.name());
        }
        assert_eq!(hits(&work, 2, Box::new(Belady::new(&work))), 1);
    }

    #[test]
    fn preloading_fills_free_slots_and_is_no_access() {
        let work = workload(4, &[(0, &[2, 3])]);
        let mut replay = Replay::new(&work, 1, PolicyKind::Lru.build(&work.policy_config(1)));
        for expert in [2, 2, 3, 9] {
            replay.preload(ExpertId { layer: 0, expert });
        }
        assert_eq!(replay.accesses(), 0);
        replay.step(&work.windows()[0]);
        assert_eq!((replay.accesses(), replay.hits()), (2, 1));
    }

    #[test]
    fn windows_outside_the_shape_are_refused() {
        let mut work = Workload::new(vec![4], 1);
        let layer = work.push(1, [0].into_iter()).unwrap_err();
        assert!(matches!(layer, OffloadError::NoSuchLayer { layer: 1, layers: 1 }), "{layer}");
        let expert = work.push(0, [4].into_iter()).unwrap_err();
        assert!(matches!(expert, OffloadError::NoSuchExpert { experts: 4, .. }), "{expert}");
        assert!(work.windows().is_empty());
    }
}
