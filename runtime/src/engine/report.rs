//! What a generation did, as the caller is told.
//!
//! Owns the way from counters and clocks to a [`Generation`]. It measures nothing and decides nothing.

use drafthorse_offload::CacheStats;

use super::{Engine, Tally};
use crate::api::{
    Attribution, DecodeOffload, FinishReason, Generation, GpuReport, Memory, Offload, Speculation, Timings,
};
use crate::gpu::GpuStats;
use crate::host;
use crate::open::GpuInfo;
use crate::sequence::Sequence;

impl Engine {
    pub(super) fn report(
        &mut self,
        sequence: &Sequence,
        tally: Tally,
        finish_reason: FinishReason,
        before: CacheStats,
    ) -> Generation {
        let tokens = sequence.generated().to_vec();
        let per_second =
            |count: usize, seconds: f64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let explanation = self.drafter.is_some().then(|| self.controller.explanation());
        Generation {
            prompt_tokens: sequence.len() - tokens.len(),
            finish_reason,
            timings: Timings {
                load_s: self.load_s,
                prefill_s: tally.prefill_s,
                decode_s: tally.decode_s,
                prefill_tps: per_second(tally.prefilled, tally.prefill_s),
                decode_tps: per_second(tokens.len().saturating_sub(1), tally.decode_s),
            },
            attribution: Attribution { spans: tally.decode, wall_s: tally.decode_s },
            speculation: Speculation {
                draft_len_mean: tally.acceptance.draft_len_mean(),
                proposed: tally.acceptance.proposed,
                accepted: tally.acceptance.accepted,
                target_passes: tally.acceptance.passes,
                accepted_per_pass: tally.acceptance.accepted_per_pass(),
                off_reason: self.drafter_missing.clone().or_else(|| self.controller.off_reason()),
                predicted_speedup: explanation.as_ref().and_then(|explanation| explanation.speedup),
                t_ratio: explanation.as_ref().and_then(|explanation| explanation.t_ratio),
                explanation,
                rows_dropped: tally.rows_dropped,
                acceptance_by_position: tally.acceptance.by_position(),
            },
            offload: Offload {
                rejected_only_bytes: tally.rejected_only_bytes,
                decode: decode_offload(tally.decode_cache),
                ..self.offload_report(before)
            },
            memory: Memory {
                budget_bytes: self.plan.budget_bytes,
                planned_bytes: self.plan.planned_bytes,
                peak_rss_bytes: host::peak_rss_bytes(),
            },
            gpu: self.gpu_report(&tally.gpu_before),
            tokens,
        }
    }

    /// What the GPU has done since its counters stood at `before`.
    fn gpu_report(&mut self, before: &GpuStats) -> Option<GpuReport> {
        let kernels = self.target.take_gpu_times();
        let (GpuInfo { name, plan, is_in_place }, stats) = self.gpu.as_ref().zip(self.target.gpu_stats())?;
        Some(GpuReport {
            name: name.clone(),
            vram_bytes: plan.budget_bytes,
            planned_bytes: plan.planned_bytes,
            unified: *is_in_place,
            stats: stats.since(before),
            kernels,
        })
    }

    /// What the cache has done since its counters stood at `before`.
    pub(super) fn offload_report(&self, before: CacheStats) -> Offload {
        let after = self.cache_stats();
        let (hits, misses) = (after.hits - before.hits, after.misses - before.misses);
        let since = CacheStats { hits, misses, ..after };
        Offload {
            experts_total: after.experts_total as u64,
            slots: after.slots as u64,
            slot_bytes: after.slot_bytes as u64,
            hits,
            misses,
            hit_rate: since.hit_rate(),
            bytes_read: after.bytes_read - before.bytes_read,
            read_s: after.read_s - before.read_s,
            stall_s: after.stall_s - before.stall_s,
            prefetch_issued: after.prefetch_issued - before.prefetch_issued,
            prefetch_used: after.prefetch_used - before.prefetch_used,
            prefetch_bytes: after.prefetch_bytes - before.prefetch_bytes,
            prefetch_off_reason: self.read_ahead.off_reason().filter(|_| after.experts_total > 0),
            simulated_disk: self.disk.as_ref().map(|disk| disk.spec().to_string()),
            simulated_late_reads: after.late_reads - before.late_reads,
            rejected_only_bytes: 0,
            decode: DecodeOffload::default(),
        }
    }
}

/// What the cache did between two readings of its counters.
fn decode_offload([before, after]: [CacheStats; 2]) -> DecodeOffload {
    let (hits, misses) = (after.hits - before.hits, after.misses - before.misses);
    DecodeOffload {
        hits,
        misses,
        hit_rate: CacheStats { hits, misses, ..after }.hit_rate(),
        bytes_read: after.bytes_read - before.bytes_read,
        prefetch_bytes: after.prefetch_bytes - before.prefetch_bytes,
        prefetch_used_bytes: after.prefetch_used_bytes - before.prefetch_used_bytes,
    }
}
