//! Reading ahead in the engine: the scheduler's plan goes to the model, what the pass measured comes back.
//!
//! Owns the bookkeeping between two readings of the cache's counters. It must not know how plans are
//! made or predictions come about.

use std::time::Instant;

use drafthorse_draft::{LogitRows, TokenId};
use drafthorse_offload::{CacheStats, ExpertCache};
use drafthorse_scheduler::{
    PREFETCH_RANKS_MAX, PrefetchController, PrefetchLessons, PrefetchMode, PrefetchOutcome, RankOutcome,
    RowRule,
};

use super::Engine;
use crate::models::{Model, PassError};

/// The scheduler's half of reading ahead, or why there is none.
pub(super) struct ReadAhead {
    controller: PrefetchController,
    impossible: Option<String>,
}

impl ReadAhead {
    /// For a loaded target.
    pub(super) fn new(mode: PrefetchMode, target: &Model) -> ReadAhead {
        let residency = target.residency();
        let slots = residency.map_or(0, |residency| residency.slots);
        let layers = target.moe_layers();
        let impossible = (layers > 0 && !ExpertCache::can_prefetch(slots))
            .then(|| format!("{slots} slots are too few to keep some for predictions"));
        let mode = if layers == 0 || impossible.is_some() { PrefetchMode::Off } else { mode };
        ReadAhead { controller: PrefetchController::new(mode), impossible }
    }

    /// Begins with what an earlier run of this setup learned.
    pub(super) fn recall(&mut self, lessons: PrefetchLessons) {
        self.controller.recall(lessons);
    }

    /// What this one has, for a later one.
    pub(super) fn lessons(&self) -> Option<PrefetchLessons> {
        self.controller.lessons()
    }

    /// One line on why nothing is read ahead.
    pub(super) fn off_reason(&self) -> Option<String> {
        self.impossible.clone().or_else(|| self.controller.off_reason())
    }
}

impl Engine {
    /// A pass of the target over a decoding step's rows, read ahead for as planned. With a `rule` (and then the
    /// logits of every row) it may drop rows. Returns how many were completed.
    pub(super) fn decode_pass(
        &mut self,
        rows: &[TokenId],
        which: LogitRows,
        rule: Option<&RowRule>,
    ) -> Result<usize, PassError> {
        let plan = self.read_ahead.controller.plan();
        self.target.set_prefetch(if plan.enabled { plan.ranks } else { 0 });
        let (before, ranks) = (self.cache_stats(), *self.target.prediction_counts());
        let started = Instant::now();
        let completed = match rule {
            Some(rule) => {
                self.target.elastic_pass(rows, &mut |seen| rule.keep_rows(seen), &mut self.logits)?
            }
            None => self.target.pass(rows, which, &mut self.logits).map(|()| rows.len())?,
        };
        let seconds = started.elapsed().as_secs_f64();
        let after = self.cache_stats();
        let mut by_rank = [RankOutcome::default(); PREFETCH_RANKS_MAX];
        for (rank, (now, then)) in self.target.prediction_counts().iter().zip(&ranks).enumerate() {
            by_rank[rank] =
                RankOutcome { predicted: now.predicted - then.predicted, right: now.right - then.right };
        }
        self.read_ahead.controller.observe(&PrefetchOutcome {
            rows: rows.len(),
            seconds,
            by_rank,
            ..between(&before, &after)
        });
        Ok(completed)
    }

    /// As `step` and `replay_ids` end: nothing is predicted for passes that are not decoding.
    pub(super) fn end_reading_ahead(&mut self) {
        self.target.set_prefetch(0);
    }
}

fn between(before: &CacheStats, after: &CacheStats) -> PrefetchOutcome {
    PrefetchOutcome {
        io_busy_s: after.io_busy_s - before.io_busy_s,
        misses: after.misses - before.misses,
        issued: after.prefetch_issued - before.prefetch_issued,
        used: after.prefetch_used - before.prefetch_used,
        ..PrefetchOutcome::default()
    }
}
