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
mod window;

pub use attention::{Attention, Gqa, Mla, MlaQuery};
pub use demand::DemandLoads;
pub use ffn::{DenseFeedForward, FeedForward, LoadedFeedForward, feed_forward};
pub use lookahead::{Lookahead, RANKS_MAX, Target};
pub use moe::{ExpertShape, MoeError, MoeLayer, PartShape, RouteSink};
pub(crate) use pieces::{Piece, Pieces, Space};
pub use rope::{Rope, RopeTable};
pub use route::{Route, route};
pub use row_gate::RowGate;
pub use scratch::{Scratch, ScratchPlan, sized};
pub use window::WindowPlan;

use crate::backend::Backend;
use crate::clock::Clock;

/// What every layer of one forward pass works with.
pub struct Pass<'a> {
    /// Computes.
    pub ops: &'a mut dyn Backend,
    /// Positions cached before the pass.
    pub start: usize,
    /// Rows in this pass; row `m` is position `start + m`. A layer may leave fewer than it was given.
    pub rows: usize,
    /// RMS norm epsilon.
    pub norm_eps: f32,
    /// Where the time goes.
    pub clock: &'a mut Clock,
}
