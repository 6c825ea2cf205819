//! The forward pass over a model's blocks.
//!
//! Owns the order of work: rows of a window go through a block together, a long input in chunks, and a pass
//! that fails leaves the cache as it was. Rows at the end may be dropped on the way; what they have written is
//! beyond the cache's length. It must not know what rows stand for.

use std::ops::Range;

use drafthorse_draft::{LanguageModel as _, LogitRows, TokenId};
use drafthorse_scheduler::RowsSeen;
use thiserror::Error;

use super::Model;
use crate::backend::{Norm, Reg};
use crate::clock::Phase;
use crate::gpu::GpuError;
use crate::layers::{MoeError, Pass, RouteSink, RowGate};
use crate::models::block::{BlockStep, Mixture, target};
use crate::models::{Blueprint, LoadError};
use crate::weights::DenseStore;

/// What a pass can fail with.
#[derive(Debug, Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
pub enum PassError {
    #[error("token id {token} is outside the vocabulary of {vocab}")]
    Token { token: TokenId, vocab: usize },
    #[error("{rows} more tokens after {len} do not fit the context of {context_len} (model.context)")]
    Context { rows: usize, len: usize, context_len: usize },
    #[error(transparent)]
    Experts(#[from] drafthorse_offload::OffloadError),
    #[error(transparent)]
    Embedding(LoadError),
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

impl From<MoeError> for PassError {
    fn from(error: MoeError) -> PassError {
        match error {
            MoeError::Experts(error) => PassError::Experts(error),
            MoeError::Gpu(error) => PassError::Gpu(error),
        }
    }
}

impl Model {
    fn check(&self, tokens: &[TokenId]) -> Result<(), PassError> {
        let vocab = self.blueprint.spec.vocab;
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab) {
            return Err(PassError::Token { token: *token, vocab });
        }
        let (len, context_len) = (self.backend.len(), self.options.context_len);
        if tokens.len() > context_len - len {
            return Err(PassError::Context { rows: tokens.len(), len, context_len });
        }
        Ok(())
    }

    /// [`LanguageModel::forward`] with its own error type.
    ///
    /// # Errors
    /// A token outside the vocabulary, a full context, an expert that cannot be read; the cache then
    /// holds what it held before.
    pub fn pass(
        &mut self,
        tokens: &[TokenId],
        which: LogitRows,
        logits: &mut Vec<f32>,
    ) -> Result<(), PassError> {
        let len = self.backend.len();
        self.check(tokens)?;
        self.run_chunks(tokens, which, logits).inspect_err(|_| self.truncate(len))
    }

    /// A pass with the logits of every row, in which `keep` may drop rows at the end: it is asked at every layer
    /// with routed experts, before these are read. The first row always goes through; rows that were dropped
    /// have left nothing. Returns how many were completed. An input of more rows than one pass has goes through
    /// whole.
    ///
    /// # Errors
    /// As [`Model::pass`].
    pub fn elastic_pass(
        &mut self,
        tokens: &[TokenId],
        keep: &mut dyn FnMut(&RowsSeen<'_>) -> usize,
        logits: &mut Vec<f32>,
    ) -> Result<usize, PassError> {
        if tokens.is_empty() || tokens.len() > self.rows_max() {
            return self.pass(tokens, LogitRows::All, logits).map(|()| tokens.len());
        }
        let len = self.backend.len();
        self.check(tokens)?;
        self.demand.clear();
        let mut gate = RowGate::new(keep, (tokens.len(), self.moe_layers()));
        let mut logits = Logits { values: logits, len: 0 };
        let outcome = self.run_chunk((tokens, Some(&mut gate)), 0..tokens.len(), &mut logits);
        logits.finish();
        outcome.inspect_err(|_| self.truncate(len))
    }

    fn run_chunks(
        &mut self,
        tokens: &[TokenId],
        which: LogitRows,
        logits: &mut Vec<f32>,
    ) -> Result<(), PassError> {
        self.demand.clear();
        let mut logits = Logits { values: logits, len: 0 };
        let outcome = self.run_all(tokens, which, &mut logits);
        logits.finish();
        outcome
    }

    fn run_all(
        &mut self,
        tokens: &[TokenId],
        which: LogitRows,
        logits: &mut Logits<'_>,
    ) -> Result<(), PassError> {
        let chunks = tokens.chunks(self.options.rows_max);
        let last = chunks.len().saturating_sub(1);
        for (index, chunk) in chunks.enumerate() {
            let rows = match which {
                LogitRows::All => 0..chunk.len(),
                LogitRows::Last if index == last => chunk.len() - 1..chunk.len(),
                _ => 0..0,
            };
            self.demand.begin_chunk(index * self.options.rows_max);
            self.run_chunk((chunk, None), rows, logits)?;
        }
        Ok(())
    }

    /// One pass of at most `rows_max` rows; appends the logits of `logit_rows`, those dropped apart. Returns how
    /// many rows were completed.
    fn run_chunk(
        &mut self,
        (tokens, mut gate): (&[TokenId], Option<&mut RowGate<'_>>),
        logit_rows: Range<usize>,
        logits: &mut Logits<'_>,
    ) -> Result<usize, PassError> {
        self.clock.restart();
        let (start, width) = (self.backend.len(), self.blueprint.spec.width);
        let embedding = &mut self.embedding;
        let embed = &mut |dense: &DenseStore, out: &mut [f32]| embedding.rows(dense, tokens, out);
        self.backend.fill(Reg::Residual, tokens.len() * width, embed).map_err(PassError::Embedding)?;
        self.backend.begin(self.rope.table(start, tokens.len()));
        if let Some(tape) = &mut self.features {
            tape.begin(start, tokens.len());
        }
        let mut rows = tokens.len();
        for index in 0..self.blueprint.blocks.len() {
            rows = self.run_block(index, rows, gate.as_deref_mut())?;
        }
        self.record_final(rows)?;
        self.classify(logit_rows.start..logit_rows.end.min(rows), logits)?;
        self.backend.commit(rows);
        self.clock.lap(Phase::Dense);
        Ok(rows)
    }

    /// One block over the first `rows` rows; returns how many of them go on.
    fn run_block(
        &mut self,
        index: usize,
        rows: usize,
        gate: Option<&mut RowGate<'_>>,
    ) -> Result<usize, PassError> {
        let Blueprint { spec, blocks, .. } = &self.blueprint;
        if let Some(tape) = self.features.as_mut().filter(|tape| tape.has_tap(index)) {
            tape.record(index, self.backend.values(Reg::Residual, 0..rows * spec.width)?);
        }
        let start = self.backend.len();
        let ops = self.backend.as_mut();
        let mut pass = Pass { ops, start, rows, norm_eps: spec.norm_eps, clock: &mut self.clock };
        let step = BlockStep { block: &blocks[index], width: spec.width };
        step.attend(&mut pass, index);
        let Some((spec, experts)) = spec.moe.as_ref().zip(self.experts.as_mut()) else {
            step.dense(&mut pass);
            return Ok(rows);
        };
        experts.poll()?;
        let mixture = Mixture {
            spec,
            experts,
            lookahead: &mut self.lookahead,
            demand: &mut self.demand,
            next: blocks.get(index + 1).and_then(target),
            sink: self.sink.as_deref_mut().map(|sink| sink as &mut dyn RouteSink),
            gate,
        };
        step.feed_forward(&mut pass, mixture)?;
        let left = pass.rows;
        // Hidden states of rows that were dropped are not kept: the last ones held are the pass's.
        if let Some(tape) = self.features.as_mut().filter(|_| left < rows) {
            tape.truncate(start + left);
        }
        Ok(left)
    }

    /// The final norm of the given rows, into `Normed`.
    fn norm_output(&mut self, rows: Range<usize>) {
        let Blueprint { spec, output_norm, .. } = &self.blueprint;
        let (stride, eps) = (spec.width, spec.norm_eps);
        let (x, out, weight) = (Reg::Residual, Reg::Normed, output_norm);
        self.backend.norm(Norm { x, rows, stride, weight, eps, out });
    }

    /// Records the final state of the pass's rows where it is asked for.
    fn record_final(&mut self, rows: usize) -> Result<(), PassError> {
        let (width, tap) = (self.blueprint.spec.width, self.blueprint.spec.blocks);
        if !self.features.as_ref().is_some_and(|tape| tape.has_tap(tap)) {
            return Ok(());
        }
        self.norm_output(0..rows);
        let normed = self.backend.values(Reg::Normed, 0..rows * width)?;
        self.features.iter_mut().for_each(|tape| tape.record(tap, normed));
        Ok(())
    }

    /// Final norm and classifier of the given rows.
    fn classify(&mut self, rows: Range<usize>, logits: &mut Logits<'_>) -> Result<(), PassError> {
        if rows.is_empty() {
            return Ok(());
        }
        let count = rows.len();
        self.norm_output(rows);
        let len = count * self.blueprint.spec.vocab;
        self.backend.product(Reg::Normed, count, &self.blueprint.output, logits.next(len))?;
        logits.len += len;
        Ok(())
    }
}

/// The logits of a pass as they are written, over those of the pass before: a hundred thousand values a row are not
/// filled with zeros first.
struct Logits<'a> {
    values: &'a mut Vec<f32>,
    /// How many are this pass's.
    len: usize,
}

impl Logits<'_> {
    /// Place for `count` more, which are this pass's once they are written.
    fn next(&mut self, count: usize) -> &mut [f32] {
        let (start, end) = (self.len, self.len + count);
        if self.values.len() < end {
            self.values.resize(end, 0.0);
        }
        &mut self.values[start..end]
    }

    /// Leaves what this pass has written, and nothing else.
    fn finish(self) {
        self.values.truncate(self.len);
    }
}
