//! `lru`: evict the expert unused for longest. The baseline every other policy is measured against.
//!
//! Known weakness (ALGORITHMS.md 0.2): with fewer slots than one token cycles through, it evicts each
//! expert just before it is needed and the hit rate falls to zero.

use lru::LruCache;

use super::{Policy, PolicyConfig, WarmStats};
use crate::ExpertId;

/// Recency order over all layers, kept by the `lru` crate.
pub struct Lru {
    order: LruCache<ExpertId, ()>,
}

impl Lru {
    /// An empty order; the cache bounds it, so it is not bounded again here.
    pub fn new(_config: &PolicyConfig) -> Lru {
        Lru { order: LruCache::unbounded() }
    }
}

impl Policy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn observe(&mut self, layer: u32, experts: &[u32], _counts: &[u32]) {
        for &expert in experts {
            self.order.promote(&ExpertId { layer, expert });
        }
    }

    fn insert(&mut self, id: ExpertId) {
        self.order.put(id, ());
    }

    fn remove(&mut self, id: ExpertId) {
        self.order.pop(&id);
    }

    fn victim(&mut self, _layer: u32, evictable: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        self.order.iter().rev().map(|(id, ())| *id).find(|id| evictable(*id))
    }

    fn warm_stats(&self) -> Option<WarmStats> {
        None
    }
}
