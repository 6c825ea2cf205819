//! `gating`: keeps the experts the router is likely to pick soon, as its selections so far tell
//! (ALGORITHMS.md H.2, and beyond it).
//!
//! Two estimates are averaged: how often an expert was picked lately (decayed counts, three
//! half-lives), and what followed the last times routing looked like now ([`Recall`]). A slot is worth
//! what it promises per time it is held: the chance of a pick divided by the part of a pass until the
//! expert's layer runs next. The least worthy goes.

use super::recall::Recall;
use super::resident::Residents;
use super::{Policy, PolicyConfig, WarmStats};
use crate::ExpertId;
use crate::gating::{GatingStats, HalfLife};

/// What the router picked just now, in this passage, and in this text.
const HALF_LIVES: [HalfLife; 3] = [
    HalfLife { rows: 1.0, weight: 0.2 },
    HalfLife { rows: 16.0, weight: 0.3 },
    HalfLife { rows: 256.0, weight: 0.5 },
];
/// Share of [`Recall`] in the estimate.
const RECALL_SHARE: f64 = 0.8;
/// Passes over which loads are averaged.
const LOADS_PASSES: f64 = 16.0;
/// A chance below which experts do not differ: then the layer that runs last gives.
const CHANCE_MIN: f64 = 1e-4;

/// Decayed selections and recalled passes, per time a slot is held.
pub struct Gating {
    stats: GatingStats,
    stale: Vec<bool>, // (layers): selections were observed that `residents` has not heard of
    recall: Recall,
    residents: Residents,
    life: Life,
    experts: Vec<u32>, // (layers)
    experts_used: u32,
}

/// How many passes an expert stays resident.
struct Life {
    slots: f64,
    layer: u32,
    loads: f64, // in this pass
    mean: f64,  // loads of a pass
}

impl Gating {
    /// Nothing counted and remembered, or what an earlier run has.
    pub fn new(config: &PolicyConfig) -> Gating {
        let PolicyConfig { experts, slots, experts_used, .. } = config;
        let stats = config.stats(&HALF_LIVES);
        let remembered = config.warm().map_or(&[][..], |warm| &warm.passes);
        Gating {
            stats,
            stale: vec![true; experts.len()],
            recall: Recall::new(experts, remembered),
            residents: Residents::new(experts),
            life: Life::new(*slots, experts.len(), *experts_used),
            experts: experts.clone(),
            experts_used: *experts_used,
        }
    }

    /// Rates the experts of every layer that was observed since. Here and not in `observe`: while nothing
    /// has to make room (a bank that fits, a pass without misses) this would be work for nobody.
    fn rate_stale(&mut self) {
        let Gating { stats, stale, recall, residents, life, .. } = self;
        let fade = life.fade() as f32;
        for (layer, stale) in stale.iter_mut().enumerate().filter(|(_, stale)| **stale) {
            *stale = false;
            recall.update(layer, fade);
            let counted = stats.probabilities(layer as u32);
            if recall.is_empty() {
                residents.want(layer as u32, counted);
                continue;
            }
            let chance = |(counted, recalled): (f64, &f32)| {
                (1.0 - RECALL_SHARE) * counted + RECALL_SHARE * f64::from(*recalled)
            };
            residents.want(layer as u32, counted.zip(recall.forecast(layer)).map(chance));
        }
    }
}

impl Life {
    /// Before anything is loaded: as if every pass loaded all it used.
    fn new(slots: usize, layers: usize, experts_used: u32) -> Life {
        let cycle = layers as f64 * f64::from(experts_used);
        Life { slots: slots as f64, layer: 0, loads: 0.0, mean: cycle }
    }

    fn observe(&mut self, layer: u32) {
        if layer < self.layer {
            self.mean += (self.loads - self.mean) / LOADS_PASSES;
            self.loads = 0.0;
        }
        self.layer = layer;
    }

    /// Weight of each pass ahead against the one before it: the chance that a slot lives on.
    fn fade(&self) -> f64 {
        let passes = self.slots / self.mean.max(1.0);
        (passes / (1.0 + passes)).min(0.9)
    }
}

impl Policy for Gating {
    fn name(&self) -> &'static str {
        "gating"
    }

    fn observe(&mut self, layer: u32, experts: &[u32], counts: &[u32]) {
        self.life.observe(layer);
        self.stats.observe(layer, experts, counts);
        let rows =
            counts.iter().map(|count| f64::from(*count)).sum::<f64>() / f64::from(self.experts_used.max(1));
        self.stale[self.recall.observe(layer, experts, rows)].fill(true);
    }

    fn insert(&mut self, id: ExpertId) {
        self.life.loads += 1.0;
        self.residents.insert(id);
    }

    fn remove(&mut self, id: ExpertId) {
        self.residents.remove(id);
    }

    fn victim(&mut self, layer: u32, evictable: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        self.rate_stale();
        let residents = &mut self.residents;
        let layers = residents.layers();
        let mut worst: Option<(f64, ExpertId)> = None;
        for candidate in (0..layers).filter_map(|layer| residents.least(layer, evictable)) {
            let ahead = (candidate.id.layer + layers - layer % layers - 1) % layers + 1;
            let worth = candidate.wanted.max(CHANCE_MIN) / f64::from(ahead);
            if worst.is_none_or(|(least, _)| worth < least) {
                worst = Some((worth, candidate.id));
            }
        }
        worst.map(|(_, id)| id)
    }

    fn warm_stats(&self) -> Option<WarmStats> {
        let stats = PolicyConfig::keep(&self.experts, self.experts_used, &self.stats);
        Some(WarmStats { passes: self.recall.remembered(), ..stats })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &dyn Fn(ExpertId) -> bool = &|_| true;

    fn config(layers: usize, slots: usize) -> PolicyConfig {
        let experts = vec![8; layers];
        PolicyConfig { experts, slots, experts_used: 2, lfu_half_life_rows: 1.0, warm: None }
    }

    fn gating(layers: usize, slots: usize) -> Gating {
        Gating::new(&config(layers, slots))
    }

    fn fill(policy: &mut Gating, layer: u32, experts: std::ops::Range<u32>) {
        experts.for_each(|expert| policy.insert(ExpertId { layer, expert }));
    }

    #[test]
    fn between_equals_the_layer_visited_last_from_now_makes_room() {
        let mut policy = gating(3, 9);
        (0..3).for_each(|layer| fill(&mut policy, layer, 0..3));
        // Layer 1 runs: layer 2 is next, then 0, then 1 itself.
        assert_eq!(policy.victim(1, ALL), Some(ExpertId { layer: 1, expert: 0 }));
        assert_eq!(policy.victim(0, ALL), Some(ExpertId { layer: 0, expert: 0 }));
        assert_eq!(policy.victim(1, &|id| id.layer != 1), Some(ExpertId { layer: 0, expert: 0 }));
    }

    #[test]
    fn a_selected_expert_outlives_one_never_selected() {
        let mut policy = gating(2, 6);
        (0..2).for_each(|layer| fill(&mut policy, layer, 0..3));
        (0..2).for_each(|layer| policy.observe(layer, &[0, 1], &[1, 1]));
        assert_eq!(policy.victim(1, &|id| id.layer == 0), Some(ExpertId { layer: 0, expert: 2 }));
    }

    /// Two words that alternate without pattern, each with experts of its own in every layer. The first
    /// layers tell which one it is, so the other's experts in the last can go, though picked as often.
    #[test]
    fn experts_that_never_go_with_what_this_pass_has_picked_give_way() {
        let mut policy = gating(6, 24);
        (0..6).for_each(|layer| fill(&mut policy, layer, 0..4));
        let mut run = |layers: std::ops::Range<u32>, word: u32| {
            policy.life.loads = 96.0; // slots do not live long, so the pass at hand counts most
            layers.for_each(|layer| policy.observe(layer, &[word * 2, word * 2 + 1], &[1, 1]));
            policy.victim(4, &|id| id.layer == 5).map(|id| id.expert)
        };
        for word in [0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 1] {
            run(0..6, word);
        }
        for (word, others) in [(0, [2, 3]), (1, [0, 1]), (1, [0, 1]), (0, [2, 3])] {
            let victim = run(0..5, word);
            assert!(victim.is_some_and(|expert| others.contains(&expert)), "word {word}: {victim:?}");
            run(5..6, word);
        }
    }

    #[test]
    fn a_long_prompt_does_not_make_everything_equal() {
        let mut policy = gating(2, 16);
        (0..2).for_each(|layer| fill(&mut policy, layer, 0..8));
        let every: Vec<u32> = (0..8).collect();
        for _ in 0..40 {
            (0..2).for_each(|layer| policy.observe(layer, &[0, 1], &[1, 1]));
        }
        (0..2).for_each(|layer| policy.observe(layer, &every, &[128, 128, 43, 43, 43, 43, 42, 42]));
        (0..2).for_each(|layer| policy.observe(layer, &[0, 1], &[1, 1]));
        let mut gone = Vec::new();
        while gone.len() < 12 {
            let victim = policy.victim(1, ALL).unwrap_or(ExpertId { layer: 9, expert: 9 });
            policy.remove(victim);
            gone.push(victim);
        }
        assert!(gone.iter().all(|id| id.layer < 2 && id.expert > 1), "{gone:?}");
    }

    #[test]
    fn a_policy_that_starts_warm_forecasts_as_the_one_that_learned() {
        let mut learned = gating(2, 8);
        for word in [0, 1, 0, 0, 1, 0] {
            (0..2).for_each(|layer| learned.observe(layer, &[word * 2, word * 2 + 1], &[1, 1]));
        }
        let warm = PolicyConfig { warm: learned.warm_stats(), ..config(2, 8) };
        let mut warmed = Gating::new(&warm);
        fill(&mut warmed, 1, 0..4);
        warmed.observe(0, &[2, 3], &[1, 1]);
        assert_eq!(warmed.victim(0, ALL), Some(ExpertId { layer: 1, expert: 0 }));
        let other = PolicyConfig { experts: vec![8; 3], ..warm };
        assert!(Gating::new(&other).recall.is_empty(), "another shape starts cold");
    }

    #[test]
    fn a_slot_lives_as_long_as_loads_are_few() {
        let mut life = Life::new(40, 2, 2);
        assert!((life.fade() - 0.9).abs() < 1e-9, "ten passes");
        for _ in 0..200 {
            (0..2).for_each(|layer| life.observe(layer));
            life.loads += 40.0;
        }
        assert!((life.fade() - 0.5).abs() < 1e-3, "one pass: {}", life.fade());
    }
}
