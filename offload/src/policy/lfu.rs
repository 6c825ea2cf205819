//! `lfu`: evict the expert with the fewest selections, counted per layer and decayed with one
//! half-life, whatever layer it belongs to.
//!
//! Ties go to the lowest [`ExpertId`]. It knows nothing of layer order; see `gating` for that.

use super::resident::{Candidate, Residents};
use super::{Policy, PolicyConfig, WarmStats};
use crate::ExpertId;
use crate::gating::{GatingStats, HalfLife};

/// Decayed frequency over all layers.
pub struct Lfu {
    stats: GatingStats,
    residents: Residents,
    experts: Vec<u32>, // (layers)
    experts_used: u32,
}

impl Lfu {
    /// Empty counts, or those of an earlier run.
    pub fn new(config: &PolicyConfig) -> Lfu {
        let half_life = HalfLife { rows: config.lfu_half_life_rows, weight: 1.0 };
        let PolicyConfig { experts, experts_used, .. } = config;
        let residents = Residents::new(experts);
        Lfu {
            stats: config.stats(&[half_life]),
            residents,
            experts: experts.clone(),
            experts_used: *experts_used,
        }
    }
}

impl Policy for Lfu {
    fn name(&self) -> &'static str {
        "lfu"
    }

    fn observe(&mut self, layer: u32, experts: &[u32], counts: &[u32]) {
        let Lfu { stats, residents, .. } = self;
        stats.observe(layer, experts, counts);
        residents.want(layer, stats.probabilities(layer));
    }

    fn insert(&mut self, id: ExpertId) {
        self.residents.insert(id);
    }

    fn remove(&mut self, id: ExpertId) {
        self.residents.remove(id);
    }

    fn victim(&mut self, _layer: u32, evictable: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let Lfu { residents, .. } = self;
        let least = (0..residents.layers()).filter_map(|layer| residents.least(layer, evictable));
        least.min_by(colder).map(|candidate| candidate.id)
    }

    fn warm_stats(&self) -> Option<WarmStats> {
        Some(PolicyConfig::keep(&self.experts, self.experts_used, &self.stats))
    }
}

fn colder(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    a.wanted.total_cmp(&b.wanted).then(a.id.cmp(&b.id))
}
