//! Resident experts of each layer and the least likely one of each: what `lfu` and `gating` share.
//!
//! Probabilities of a layer change only when the layer is observed, so its least likely expert is
//! found once (O(experts of the layer)) and remembered; a victim then costs O(layers).

use super::PolicyConfig;
use crate::ExpertId;
use crate::gating::{GatingStats, HalfLife};

/// An expert and the probability that a row selects it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) probability: f64,
    pub(super) id: ExpertId,
}

/// Selection counts of all experts, and which are resident.
pub(super) struct Residents {
    stats: GatingStats,
    layers: Vec<Layer>,
}

struct Layer {
    resident: Vec<bool>, // (experts)
    count: usize,
    least: Option<Candidate>, // None when not known
}

impl Residents {
    pub(super) fn new(config: &PolicyConfig, half_lives: &[HalfLife]) -> Residents {
        let layer = |n: &u32| Layer { resident: vec![false; *n as usize], count: 0, least: None };
        Residents {
            stats: GatingStats::new(&config.experts, config.experts_used, half_lives),
            layers: config.experts.iter().map(layer).collect(),
        }
    }

    pub(super) fn layers(&self) -> u32 {
        self.layers.len() as u32
    }

    /// Resident experts of a layer.
    pub(super) fn count(&self, layer: u32) -> usize {
        self.layers.get(layer as usize).map_or(0, |layer| layer.count)
    }

    pub(super) fn observe(&mut self, layer: u32, experts: &[u32], counts: &[u32]) {
        self.stats.observe(layer, experts, counts);
        if let Some(layer) = self.layers.get_mut(layer as usize) {
            layer.least = None;
        }
    }

    pub(super) fn insert(&mut self, id: ExpertId) {
        self.set(id, true);
    }

    pub(super) fn remove(&mut self, id: ExpertId) {
        self.set(id, false);
    }

    /// The evictable expert of a layer that a row is least likely to select, the lowest on ties.
    pub(super) fn least(&mut self, layer: u32, evictable: &dyn Fn(ExpertId) -> bool) -> Option<Candidate> {
        let known = self.layers.get(layer as usize)?.least;
        let least = known.or_else(|| self.scan(layer, &|_| true));
        self.layers.get_mut(layer as usize)?.least = least;
        least.filter(|c| evictable(c.id)).or_else(|| self.scan(layer, evictable))
    }

    fn scan(&self, layer: u32, evictable: &dyn Fn(ExpertId) -> bool) -> Option<Candidate> {
        let resident = self.layers.get(layer as usize)?.resident.iter();
        let experts = (0..).zip(resident).filter(|(_, resident)| **resident);
        let ids = experts.map(|(expert, _)| ExpertId { layer, expert }).filter(|id| evictable(*id));
        ids.map(|id| Candidate { probability: self.stats.probability(id.layer, id.expert), id })
            .min_by(|a, b| a.probability.total_cmp(&b.probability))
    }

    fn set(&mut self, id: ExpertId, resident: bool) {
        let Some(layer) = self.layers.get_mut(id.layer as usize) else { return };
        let Some(was) = layer.resident.get_mut(id.expert as usize) else { return };
        match (std::mem::replace(was, resident), resident) {
            (false, true) => layer.count += 1,
            (true, false) => layer.count -= 1,
            _ => return,
        }
        layer.least = None;
    }
}
