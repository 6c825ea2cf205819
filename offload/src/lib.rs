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
mod error;
mod gating;
mod index;
pub mod policy;
pub mod reader;
mod replay;
mod slots;
mod trace;

pub use buf::{AlignedBuf, PAGE_BYTES};
pub use cache::{CacheConfig, CacheStats, ExpertCache, Lease, Residency};
pub use error::OffloadError;
pub use gating::{GatingStats, HalfLife};
pub use index::{ExpertIndex, Extent, PARTS, Widened};
pub use policy::{POLICIES, Policy, PolicyConfig, PolicyKind, WarmStats};
pub use reader::{Completion, READERS, Read, ReadError, Reader, ReaderKind};
pub use replay::{Replay, Window, Workload};
pub use slots::SlotView;
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
