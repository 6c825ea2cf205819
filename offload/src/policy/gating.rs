//! `gating`: decayed router selections, aware of layers (ALGORITHMS.md H.2).
//!
//! Evicts the expert whose next use is expected to be furthest away: a layer comes round once a pass,
//! and at each visit the expert is picked with the probability its decayed counts give. A layer keeps
//! at least a soft floor and at most a soft cap of slots, so that none starves or takes over.
//!
//! Why three half-lives: on real traces a single one of 48 rows loses to LRU where a text stays on one
//! subject (law, 12 % of the bank: 0.27 against 0.29), and a short one loses elsewhere; the blend of
//! very short, medium and long beats both on every trace and budget tried (`tests/replay.rs`).

use super::resident::Residents;
use super::{Policy, PolicyConfig};
use crate::ExpertId;
use crate::gating::HalfLife;

/// What the router picked just now, in this passage, and in this text.
const HALF_LIVES: [HalfLife; 3] = [
    HalfLife { rows: 1.0, weight: 0.2 },
    HalfLife { rows: 16.0, weight: 0.3 },
    HalfLife { rows: 256.0, weight: 0.5 },
];
/// A layer may hold this many times its equal share of the slots.
const CAP_SHARES: f64 = 2.5;

/// Layer-aware decayed frequency.
pub struct Gating {
    residents: Residents,
    floor: usize, // resident experts a layer keeps while others have more
    cap: usize,   // resident experts from which a layer makes its own room
}

impl Gating {
    /// Empty counts; floor and cap from slots, layers and experts per row.
    pub fn new(config: &PolicyConfig) -> Gating {
        let layers = config.experts.len().max(1);
        let used = config.experts_used as usize;
        let floor = used.min(config.slots / layers);
        let cap = ((config.slots as f64 / layers as f64 * CAP_SHARES) as usize).max(used);
        Gating { residents: Residents::new(config, &HALF_LIVES), floor, cap }
    }

    /// Of the least likely experts of the layers that hold more than `floor`, the one expected to be
    /// used last.
    fn furthest(
        &mut self,
        layer_now: u32,
        floor: usize,
        evictable: &dyn Fn(ExpertId) -> bool,
    ) -> Option<ExpertId> {
        let Gating { residents, .. } = self;
        let layers = residents.layers();
        let mut furthest: Option<(f64, ExpertId)> = None;
        for layer in 0..layers {
            if residents.count(layer) <= floor {
                continue;
            }
            let Some(least) = residents.least(layer, evictable) else { continue };
            let ahead = (layer + layers - layer_now - 1) % layers + 1;
            let distance = passes_to_use(f64::from(ahead) / f64::from(layers), least.probability);
            if furthest.is_none_or(|(most, _)| distance > most) {
                furthest = Some((distance, least.id));
            }
        }
        furthest.map(|(_, id)| id)
    }
}

/// Passes until an expert is expected to be used: `visit`, the part of a pass until its layer runs
/// next, and the mean number of visits in which the router passes it over.
fn passes_to_use(visit: f64, probability: f64) -> f64 {
    visit + 1.0 / probability - 1.0
}

impl Policy for Gating {
    fn name(&self) -> &'static str {
        "gating"
    }

    fn observe(&mut self, layer: u32, experts: &[u32], counts: &[u32]) {
        self.residents.observe(layer, experts, counts);
    }

    fn insert(&mut self, id: ExpertId) {
        self.residents.insert(id);
    }

    fn remove(&mut self, id: ExpertId) {
        self.residents.remove(id);
    }

    fn victim(&mut self, layer: u32, evictable: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        if self.residents.count(layer) >= self.cap
            && let Some(own) = self.residents.least(layer, evictable)
        {
            return Some(own.id);
        }
        self.furthest(layer, self.floor, evictable).or_else(|| self.furthest(layer, 0, evictable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &dyn Fn(ExpertId) -> bool = &|_| true;

    fn gating(layers: usize, slots: usize) -> Gating {
        let experts = vec![8; layers];
        Gating::new(&PolicyConfig { experts, slots, experts_used: 2, lfu_half_life_rows: 1.0 })
    }

    fn fill(policy: &mut Gating, layer: u32, experts: std::ops::Range<u32>) {
        experts.for_each(|expert| policy.insert(ExpertId { layer, expert }));
    }

    #[test]
    fn between_equals_the_layer_visited_last_from_now_makes_room() {
        let mut policy = gating(3, 9);
        (0..3).for_each(|layer| fill(&mut policy, layer, 0..3));
        (0..3).for_each(|layer| policy.observe(layer, &[0, 1, 2], &[1, 1, 1]));
        // Layer 1 runs: layer 2 is next, then 0, then 1 itself.
        assert_eq!(policy.victim(1, ALL), Some(ExpertId { layer: 1, expert: 0 }));
        assert_eq!(policy.victim(0, ALL), Some(ExpertId { layer: 0, expert: 0 }));
    }

    #[test]
    fn a_selected_expert_outlives_one_never_selected() {
        let mut policy = gating(2, 6);
        (0..2).for_each(|layer| fill(&mut policy, layer, 0..3));
        (0..2).for_each(|layer| policy.observe(layer, &[0, 1], &[1, 1]));
        assert_eq!(policy.victim(1, &|id| id.layer == 0), Some(ExpertId { layer: 0, expert: 2 }));
    }

    #[test]
    fn a_layer_at_its_floor_gives_only_when_no_other_can() {
        let mut policy = gating(2, 6); // floor 2
        fill(&mut policy, 0, 0..2);
        fill(&mut policy, 1, 0..4);
        (0..9).for_each(|_| policy.observe(1, &[0, 1, 2, 3], &[1, 1, 0, 0]));
        assert_eq!(policy.victim(1, ALL).map(|id| id.layer), Some(1));
        assert_eq!(policy.victim(1, &|id| id.layer == 0), Some(ExpertId { layer: 0, expert: 0 }));
    }

    #[test]
    fn a_layer_at_its_cap_makes_its_own_room() {
        let mut policy = gating(4, 8); // share 2, cap 5
        fill(&mut policy, 0, 0..5);
        fill(&mut policy, 1, 0..3);
        policy.observe(0, &[0, 1, 2, 3, 4], &[1; 5]);
        // Layer 1 holds experts nobody has ever selected, yet layer 0 has taken too much.
        assert_eq!(policy.victim(0, ALL).map(|id| id.layer), Some(0));
        policy.remove(ExpertId { layer: 0, expert: 4 });
        assert_eq!(policy.victim(0, ALL).map(|id| id.layer), Some(1));
    }
}
