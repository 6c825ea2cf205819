//! `gating`: keeps the experts the router is likely to pick soon, as its selections so far tell
//! (ALGORITHMS.md H.2, and beyond it).
//!
//! Two estimates are averaged: how often an expert was picked lately (decayed counts, three
//! half-lives), and what followed the last times routing looked like now ([`Recall`]). A slot is worth
//! what it promises per time it is held: the chance of a pick divided by the part of a pass until the
//! expert's layer runs next. The least worthy goes.

use super::recall::Recall;
use super::resident::Residents;
use super::{Policy, PolicyConfig};
use crate::ExpertId;
use crate::gating::{GatingStats, HalfLife};

/// What the router picked just now, in this passage, and in this text.
const HALF_LIVES: [HalfLife; 3] = [
    HalfLife { rows: 1.0, weight: 0.2 },
    HalfLife { rows: 16.0, weight: 0.3 },
    HalfLife { rows: 256.0, weight: 0.5 },
];
/// Share of [`Recall`] in the estimate.
const RECALL_SHARE: f64 = 0.6;
/// Passes over which loads are averaged.
const LOADS_PASSES: f64 = 16.0;
/// A chance below which experts do not differ: then the layer that runs last gives.
const CHANCE_MIN: f64 = 1e-4;

/// Decayed selections and recalled passes, per time a slot is held.
pub struct Gating {
    stats: GatingStats,
    counted: Vec<Vec<f64>>, // (layers, experts): probabilities by `stats`
    recall: Recall,
    residents: Residents,
    life: Life,
    experts_used: f64,
}

/// How many passes an expert stays resident.
struct Life {
    slots: f64,
    layer: u32,
    loads: f64, // in this pass
    mean: f64,  // loads of a pass
}

impl Gating {
    /// Nothing counted, nothing remembered.
    pub fn new(config: &PolicyConfig) -> Gating {
        let PolicyConfig { experts, slots, experts_used, .. } = config;
        let used = f64::from((*experts_used).max(1));
        let cycle = used * experts.len() as f64;
        Gating {
            stats: GatingStats::new(experts, *experts_used, &HALF_LIVES),
            counted: experts.iter().map(|n| vec![0.0; *n as usize]).collect(),
            recall: Recall::new(experts, *experts_used),
            residents: Residents::new(experts),
            life: Life { slots: *slots as f64, layer: 0, loads: 0.0, mean: cycle },
            experts_used: used,
        }
    }

    fn rate(&mut self, layer: usize) {
        let Gating { counted, recall, residents, .. } = self;
        let Some(counted) = counted.get(layer) else { return };
        if recall.is_empty() {
            return residents.want(layer as u32, counted.iter().copied());
        }
        let both = counted.iter().zip(recall.forecast(layer));
        let chance = |(counted, recalled): (&f64, &f32)| {
            (1.0 - RECALL_SHARE) * counted + RECALL_SHARE * f64::from(*recalled)
        };
        residents.want(layer as u32, both.map(chance));
    }
}

impl Life {
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
        let Gating { stats, counted, recall, .. } = self;
        stats.observe(layer, experts, counts);
        if let Some(counted) = counted.get_mut(layer as usize) {
            counted.iter_mut().zip(stats.probabilities(layer)).for_each(|(old, new)| *old = new);
        }
        let rows = counts.iter().map(|count| f64::from(*count)).sum::<f64>() / self.experts_used;
        let fade = self.life.fade() as f32;
        recall.observe(layer, experts, rows, fade).for_each(|layer| self.rate(layer));
    }

    fn insert(&mut self, id: ExpertId) {
        self.life.loads += 1.0;
        self.residents.insert(id);
    }

    fn remove(&mut self, id: ExpertId) {
        self.residents.remove(id);
    }

    fn victim(&mut self, layer: u32, evictable: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let Gating { residents, .. } = self;
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
}
