//! Elastic verification in the engine: the scheduler's rule goes with the pass, and the draft is cut to the rows
//! that came through.
//!
//! Owns when that is allowed. What is dropped, and when, is [`RowRule`]'s; how, the model's.

use drafthorse_draft::{Draft, LogitRows, Sampler};
use drafthorse_scheduler::{ElasticMode, RowRule};

use super::Engine;
use crate::models::PassError;
use crate::sequence::Sequence;

impl Engine {
    /// The pass that verifies `draft`, which is then as long as the rows that were completed. Returns how many
    /// were dropped on the way.
    pub(super) fn verify_pass(&mut self, sequence: &Sequence, draft: &mut Draft) -> Result<usize, PassError> {
        let rows = sequence.pending(draft);
        let rule = self.row_rule(&sequence.sampler);
        let completed = self.decode_pass(&rows, LogitRows::All, rule.as_ref())?;
        draft.truncate(completed - 1);
        Ok(rows.len() - completed)
    }

    /// Block verification needs every guess that was drawn: a row's misses depend on its token, and a guess must
    /// not be dropped for what it is ([`Draft::truncate`]). Where drafts stand by equality any prefix will do.
    fn row_rule(&self, sampler: &Sampler) -> Option<RowRule> {
        let may_drop = self.elastic == ElasticMode::Auto && sampler.config().stands_by_equality();
        may_drop.then(|| self.controller.row_rule()).flatten()
    }
}
