//! Experts on disk, slots in memory.
//!
//! Owns [`ExpertId`] and the extents behind it, page-aligned buffers, the fixed arena of slots, the
//! resident set (pinning, one load in flight per expert), eviction policies, readers, gating
//! statistics and routing traces. It must not know tensors, GGUF, or what a token means.
//!
//! Invariants:
//! 1. All slot memory is allocated at start and never grows or is released (DESIGN I1).
//! 2. An expert has at most one load in flight; a pinned expert is never evicted.
//! 3. A read that returns fewer bytes than asked is an error, never data (DESIGN I6).
//! 4. Which policy, reader or slot count is used changes where bytes are, never what they are (I2).

mod buf;
mod cache;
mod checksum;
mod error;
mod gating;
mod index;
mod lease;
pub mod policy;
mod queue;
pub mod reader;
mod replay;
mod shadow;
mod slots;
mod stats;
mod tier;
mod trace;

pub use buf::{AlignedBuf, Arena, PAGE_BYTES};
pub use cache::{CacheConfig, ExpertCache};
pub use checksum::{CHECKSUM_NAME, Checksummer, checksum};
pub use error::OffloadError;
pub use gating::{GatingStats, HalfLife};
pub use index::{ExpertIndex, Extent, PARTS, Widened};
pub use lease::{Arrival, Lease, Piece};
pub use policy::{POLICIES, Policy, PolicyConfig, PolicyKind, WarmStats};
pub use reader::{Completion, READERS, Read, ReadError, Reader, ReaderKind, ReaderOptions, open_reader};
pub use replay::{Replay, Window, Workload};
pub use shadow::{Shadow, ShadowMisses};
pub use stats::{CacheStats, RECENT_PASSES, Residency};
pub use tier::{Tier, TierStats};
pub use trace::{Trace, TraceHeader, TraceRecorder};

/// One routed expert of one MoE layer. `layer` counts MoE layers from 0, not the model's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExpertId {
    /// MoE layer, 0-based.
    pub layer: u32,
    /// Expert within the layer, 0-based.
    pub expert: u32,
}

impl std::fmt::Display for ExpertId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "expert {} of MoE layer {}", self.expert, self.layer)
    }
}
