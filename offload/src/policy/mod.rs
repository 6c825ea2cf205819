//! Which resident expert goes when room is needed: the [`Policy`] trait, its configuration and registry.
//!
//! A policy sees router selections and residency, never bytes, buffers or time. It is asked once per
//! miss, so `victim` costs O(layers) in the usual case, not O(experts).

mod belady;
mod gating;
mod lfu;
mod lru;
mod recall;
mod resident;
mod warm;

use serde::{Deserialize, Serialize};

use crate::ExpertId;
use crate::gating::{GatingStats, HalfLife};
use crate::index::ExpertIndex;

pub use belady::Belady;
pub use gating::Gating;
pub use lfu::Lfu;
pub use lru::Lru;
pub use warm::WarmStats;

/// Default of [`PolicyConfig::lfu_half_life_rows`]: ALGORITHMS.md H.2 gives 32-64.
pub const LFU_HALF_LIFE_ROWS: f64 = 48.0;

/// What a policy is built for.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyConfig {
    /// Experts in each MoE layer.
    pub experts: Vec<u32>,
    /// Slots of the cache.
    pub slots: usize,
    /// Experts the router picks for one row in one layer (top-k), >= 1.
    pub experts_used: u32,
    /// For `lfu`: rows (tokens) of a layer after which a selection counts half, > 0.
    pub lfu_half_life_rows: f64,
    /// What an earlier run has learned; ignored by policies without statistics, or of another shape.
    pub warm: Option<WarmStats>,
}

/// Rows for which the statistics of an earlier run count: enough to start from, too few to dominate.
const WARM_ROWS: f64 = 64.0;

impl PolicyConfig {
    /// The configuration for a model's experts, with the default half-life.
    pub fn new(index: &ExpertIndex, slots: usize, experts_used: u32) -> PolicyConfig {
        let experts = (0..index.layers() as u32).map(|layer| index.experts(layer) as u32).collect();
        let (experts_used, lfu_half_life_rows) = (experts_used.max(1), LFU_HALF_LIFE_ROWS);
        PolicyConfig { experts, slots, experts_used, lfu_half_life_rows, warm: None }
    }

    /// Empty counts, or those of an earlier run.
    fn stats(&self, half_lives: &[HalfLife]) -> GatingStats {
        let mut stats = GatingStats::new(&self.experts, self.experts_used, half_lives);
        let Some(warm) = self.warm() else { return stats };
        let mut rest = warm.probabilities.as_slice();
        for (layer, experts) in (0u32..).zip(&self.experts) {
            let (probabilities, after) = rest.split_at((*experts as usize).min(rest.len()));
            stats.seed(layer, probabilities, WARM_ROWS);
            rest = after;
        }
        stats
    }

    /// `warm`, if it is of this shape.
    fn warm(&self) -> Option<&WarmStats> {
        let same =
            |warm: &&WarmStats| (&warm.experts, warm.experts_used) == (&self.experts, self.experts_used);
        self.warm.as_ref().filter(same)
    }

    /// What to keep of `stats` for another run.
    fn keep(experts: &[u32], experts_used: u32, stats: &GatingStats) -> WarmStats {
        let layers = (0u32..).zip(experts);
        let ids = layers.flat_map(|(layer, n)| (0..*n).map(move |expert| (layer, expert)));
        let probabilities = ids.map(|(layer, expert)| stats.long_run(layer, expert) as f32).collect();
        WarmStats { experts: experts.to_vec(), experts_used, probabilities, passes: Vec::new() }
    }
}

/// An eviction policy.
///
/// Contract, tested for every implementation in `tests/conformance.rs`:
/// - `victim` MUST name an expert that was inserted, not removed since, and is `evictable`; it MUST
///   name one when there is any, and `None` otherwise; it MUST NOT change what is resident;
/// - the same calls MUST give the same victims: ties go to the lowest [`ExpertId`];
/// - `observe` MAY name experts that are not resident; `insert` and `remove` of the same expert
///   alternate.
pub trait Policy: Send {
    /// The registry name.
    fn name(&self) -> &'static str;
    /// The router chose `experts` of `layer` for a window of rows; `counts[i]` rows chose `experts[i]`.
    /// Called once per acquire, before any victim is asked for.
    fn observe(&mut self, layer: u32, experts: &[u32], counts: &[u32]);
    /// The expert has been given a slot.
    fn insert(&mut self, id: ExpertId);
    /// The expert has lost its slot.
    fn remove(&mut self, id: ExpertId);
    /// The expert to evict so that one of `layer` can be loaded.
    fn victim(&mut self, layer: u32, evictable: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId>;
    /// What is worth keeping for another run; `None` for a policy without statistics. To start from it,
    /// build the policy with [`PolicyConfig::warm`].
    fn warm_stats(&self) -> Option<WarmStats>;
}

/// A policy by name; serialised as its registry name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyKind {
    /// Least recently used.
    Lru,
    /// Least frequently used, decayed.
    Lfu,
    /// Decayed router selections, aware of layers.
    Gating,
}

/// One line of the registry.
pub struct PolicyEntry {
    /// The kind.
    pub kind: PolicyKind,
    /// Name on the command line and in configs.
    pub name: &'static str,
    /// One line of help.
    pub summary: &'static str,
    build: fn(&PolicyConfig) -> Box<dyn Policy>,
}

/// Every policy. A new one is a file here and a line there.
pub const POLICIES: &[PolicyEntry] = &[
    PolicyEntry {
        kind: PolicyKind::Gating,
        name: "gating",
        summary: "evict the expert the router is least likely to pick soon, layer by layer",
        build: |config| Box::new(Gating::new(config)),
    },
    PolicyEntry {
        kind: PolicyKind::Lfu,
        name: "lfu",
        summary: "evict the expert with the fewest recent selections",
        build: |config| Box::new(Lfu::new(config)),
    },
    PolicyEntry {
        kind: PolicyKind::Lru,
        name: "lru",
        summary: "evict the expert unused for longest",
        build: |config| Box::new(Lru::new(config)),
    },
];

impl PolicyKind {
    /// The kind with this registry name.
    pub fn from_name(name: &str) -> Option<PolicyKind> {
        POLICIES.iter().find(|entry| entry.name == name).map(|entry| entry.kind)
    }

    /// The registry name.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// Memory it takes beside the counts of each expert, for `experts[layer]` experts a layer; `is_kept`
    /// when what it learns is written to a file, of which there are then copies.
    pub fn memory_bytes(self, experts: &[u32], is_kept: bool) -> u64 {
        match self {
            PolicyKind::Gating => recall::Recall::bytes(experts) * if is_kept { 4 } else { 1 },
            PolicyKind::Lru | PolicyKind::Lfu => 0,
        }
    }

    /// A fresh policy.
    pub fn build(self, config: &PolicyConfig) -> Box<dyn Policy> {
        (self.entry().build)(config)
    }

    fn entry(self) -> &'static PolicyEntry {
        POLICIES.iter().find(|entry| entry.kind == self).expect("invariant: every kind has a registry line")
    }
}
