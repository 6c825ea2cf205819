//! Least frequently used as textbooks have it, for comparison only: the fewest requests since the start,
//! never decayed, the least recent on ties. A window is one request however many rows it has.

use std::collections::{BTreeSet, HashMap};

use drafthorse_offload::{ExpertId, Policy, WarmStats};

/// Requests and time of the last one; residents in that order.
#[derive(Default)]
pub struct PlainLfu {
    used: HashMap<ExpertId, (u64, u64)>,
    residents: BTreeSet<((u64, u64), ExpertId)>,
    now: u64,
}

impl PlainLfu {
    fn key(&self, id: ExpertId) -> ((u64, u64), ExpertId) {
        (self.used.get(&id).copied().unwrap_or_default(), id)
    }
}

impl Policy for PlainLfu {
    fn name(&self) -> &'static str {
        "lfu"
    }

    fn observe(&mut self, layer: u32, experts: &[u32], _counts: &[u32]) {
        self.now += 1;
        for &expert in experts {
            let id = ExpertId { layer, expert };
            let resident = self.residents.remove(&self.key(id));
            let (requests, last) = self.used.entry(id).or_default();
            (*requests, *last) = (*requests + 1, self.now);
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
