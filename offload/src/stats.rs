//! What the cache counts: totals for reports, a recent hit rate for the scheduler, and the `metrics`
//! facade's handles (a no-op unless a binary installs a recorder).
//!
//! It must not know how the events come about.

use metrics::{Counter, Histogram, counter, histogram};

/// Where these experts live, as a label: GPU memory would be another tier.
const TIER: &str = "ram";

/// Counters since the cache was made.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CacheStats {
    /// Experts of the model.
    pub experts_total: usize,
    /// Slots of the cache.
    pub slots: usize,
    /// Bytes of one slot in the arena.
    pub slot_bytes: usize,
    /// Experts asked for whose bytes were all in memory.
    pub hits: u64,
    /// Experts asked for that had to be waited for: read on demand, or still being read ahead.
    pub misses: u64,
    /// Bytes of experts read (extents, without page widening), failed reads not counted.
    pub bytes_read: u64,
    /// Service time of all reads, seconds; reads overlap, so this may exceed the time that passed.
    pub read_s: f64,
    /// Time with at least one read under way, seconds; ends are noticed at the next look, so a little
    /// more than the disk's own.
    pub io_busy_s: f64,
    /// Time spent blocked on reads, seconds.
    pub stall_s: f64,
    /// Predicted experts whose reading was begun.
    pub prefetch_issued: u64,
    /// Of those, the ones asked for while they were on probation.
    pub prefetch_used: u64,
    /// Bytes of extents read, or being read, for predictions.
    pub prefetch_bytes: u64,
    /// Of those, the bytes of experts that were asked for while they were on probation.
    pub prefetch_used_bytes: u64,
    /// Reads that took longer than they would have on the simulated disk; see [`crate::Reader::late_reads`].
    pub late_reads: u64,
}

impl CacheStats {
    /// Share of accesses that were hits, 0..=1; 0 before the first access.
    pub fn hit_rate(&self) -> f64 {
        ratio(self.hits as f64, self.misses as f64)
    }
}

/// What the scheduler may know of the cache: plain data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Residency {
    /// Slots of the cache.
    pub slots: usize,
    /// Experts resident now.
    pub resident: usize,
    /// Experts of the model.
    pub experts_total: usize,
    /// Hit rate of late: accesses count half after [`RECENT_PASSES`] passes over all layers.
    pub hit_rate_recent: f64,
    /// Whether free slots are still to be filled with what earlier runs wanted: passes take longer beside that.
    pub is_filling: bool,
}

/// Half-life of [`Residency::hit_rate_recent`], in passes.
pub const RECENT_PASSES: f64 = 32.0;

/// Hits and misses, decayed once per acquire.
pub(crate) struct Recent {
    hits: f64,
    misses: f64,
    decay: f64,
}

impl Recent {
    pub(crate) fn new(layers: usize) -> Recent {
        Recent { hits: 0.0, misses: 0.0, decay: (-1.0 / (RECENT_PASSES * layers as f64)).exp2() }
    }

    pub(crate) fn add(&mut self, hits: usize, misses: usize) {
        self.hits = self.hits * self.decay + hits as f64;
        self.misses = self.misses * self.decay + misses as f64;
    }

    pub(crate) fn hit_rate(&self) -> f64 {
        ratio(self.hits, self.misses)
    }
}

fn ratio(hits: f64, misses: f64) -> f64 {
    let total = hits + misses;
    if total > 0.0 { hits / total } else { 0.0 }
}

/// Handles of the facade, registered once.
pub(crate) struct Meters {
    pub(crate) hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) read_bytes: Counter,
    pub(crate) read_seconds: Histogram,
    pub(crate) reads_in_flight: Histogram,
    pub(crate) stall_seconds: Histogram,
    pub(crate) prefetch_issued: Counter,
    pub(crate) prefetch_used: Counter,
    pub(crate) prefetch_wasted: Counter,
}

impl Meters {
    pub(crate) fn new() -> Meters {
        Meters {
            hits: counter!("drafthorse_expert_hits_total", "tier" => TIER),
            misses: counter!("drafthorse_expert_misses_total", "tier" => TIER),
            read_bytes: counter!("drafthorse_expert_read_bytes_total", "tier" => TIER),
            read_seconds: histogram!("drafthorse_read_seconds", "tier" => TIER),
            reads_in_flight: histogram!("drafthorse_reads_in_flight", "tier" => TIER),
            stall_seconds: histogram!("drafthorse_stall_seconds", "tier" => TIER),
            prefetch_issued: counter!("drafthorse_prefetch_issued_total", "tier" => TIER),
            prefetch_used: counter!("drafthorse_prefetch_used_total", "tier" => TIER),
            prefetch_wasted: counter!("drafthorse_prefetch_wasted_total", "tier" => TIER),
        }
    }
}
