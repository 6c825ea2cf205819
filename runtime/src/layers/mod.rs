//! The parts all architectures are assembled from.
//!
//! Owns embedding look-up, rope, attention (GQA and absorbed MLA), the feed-forward pass of one
//! expert, routing and the mixture-of-experts layer. Layers see weights and activations; they know
//! neither files nor tokens' meaning.

mod attention;
mod demand;
mod ffn;
mod lookahead;
mod moe;
mod pieces;
mod rope;
mod route;
mod row_gate;
mod scratch;

pub use attention::{Attention, Gqa, Mla, MlaQuery};
pub use demand::DemandLoads;
pub use ffn::{DenseFeedForward, FeedForward, LoadedFeedForward, feed_forward};
pub use lookahead::{Lookahead, RANKS_MAX, Target};
pub use moe::{ExpertShape, MoeLayer, PartShape, RouteSink};
pub use rope::{Rope, RopeTable};
pub use route::{Route, route};
pub use row_gate::RowGate;
pub use scratch::{Scratch, ScratchPlan, sized};

use crate::clock::Clock;
use crate::kernels::Pool;
use crate::kv::KvCache;
use crate::weights::DenseStore;

/// What every layer of one forward pass works with.
pub struct Pass<'a> {
    /// Dense weights.
    pub dense: &'a DenseStore,
    /// Threads.
    pub pool: &'a mut Pool,
    /// Cache of the sequence.
    pub kv: &'a mut KvCache,
    /// Rotations of this pass's positions.
    pub rope: &'a RopeTable,
    /// Rows in this pass; row `m` is position `kv.len() + m`. A layer may leave fewer than it was given.
    pub rows: usize,
    /// RMS norm epsilon.
    pub norm_eps: f32,
    /// Where the time goes.
    pub clock: &'a mut Clock,
}
