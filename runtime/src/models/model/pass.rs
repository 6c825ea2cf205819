//! The forward pass over a model's blocks.
//!
//! Owns the order of work: rows of a window go through a block together, a long input in chunks, and a pass
//! that fails leaves the cache as it was. It must not know what rows stand for.

use drafthorse_draft::{LanguageModel as _, LogitRows, TokenId};
use thiserror::Error;

use super::Model;
use crate::clock::Phase;
use crate::kernels::{Input, matmul, rms_norm};
use crate::layers::{Pass, RouteSink, sized};
use crate::models::block::{BlockStep, Mixture, target};
use crate::models::{Blueprint, LoadError};

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
}

impl Model {
    fn check(&self, tokens: &[TokenId]) -> Result<(), PassError> {
        let vocab = self.blueprint.spec.vocab;
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab) {
            return Err(PassError::Token { token: *token, vocab });
        }
        let (len, context_len) = (self.kv.len(), self.options.context_len);
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
        let len = self.kv.len();
        self.check(tokens)?;
        self.run_chunks(tokens, which, logits).inspect_err(|_| self.truncate(len))
    }

    fn run_chunks(
        &mut self,
        tokens: &[TokenId],
        which: LogitRows,
        logits: &mut Vec<f32>,
    ) -> Result<(), PassError> {
        logits.clear();
        self.demand.clear();
        let chunks = tokens.chunks(self.options.rows_max);
        let last = chunks.len().saturating_sub(1);
        for (index, chunk) in chunks.enumerate() {
            let rows = match which {
                LogitRows::All => 0..chunk.len(),
                LogitRows::Last if index == last => chunk.len() - 1..chunk.len(),
                _ => 0..0,
            };
            self.demand.begin_chunk(index * self.options.rows_max);
            self.run_chunk(chunk, rows, logits)?;
        }
        Ok(())
    }

    /// One pass of at most `rows_max` rows; appends the logits of `logit_rows`.
    fn run_chunk(
        &mut self,
        tokens: &[TokenId],
        logit_rows: std::ops::Range<usize>,
        logits: &mut Vec<f32>,
    ) -> Result<(), PassError> {
        self.clock.restart();
        let width = self.blueprint.spec.width;
        let residual = sized(&mut self.scratch.residual, tokens.len() * width);
        self.embedding.rows(&self.blueprint.dense, tokens, residual).map_err(PassError::Embedding)?;
        let table = self.rope.table(self.kv.len(), tokens.len());
        if let Some(tape) = &mut self.features {
            tape.begin(self.kv.len(), tokens.len());
        }
        for index in 0..self.blueprint.blocks.len() {
            if let Some(tape) = &mut self.features {
                tape.record(index, &self.scratch.residual[..tokens.len() * width]);
            }
            let mut pass = Pass {
                dense: &self.blueprint.dense,
                pool: &mut self.pool,
                kv: &mut self.kv,
                rope: &table,
                rows: tokens.len(),
                norm_eps: self.blueprint.spec.norm_eps,
                clock: &mut self.clock,
            };
            let mut step = BlockStep {
                block: &self.blueprint.blocks[index],
                width: self.blueprint.spec.width,
                scratch: &mut self.scratch,
            };
            step.attend(&mut pass, index);
            let Some((spec, experts)) = self.blueprint.spec.moe.as_ref().zip(self.experts.as_mut()) else {
                step.dense(&mut pass);
                continue;
            };
            experts.poll()?;
            let mixture = Mixture {
                spec,
                experts,
                lookahead: &mut self.lookahead,
                demand: &mut self.demand,
                next: self.blueprint.blocks.get(index + 1).and_then(target),
                sink: self.sink.as_deref_mut().map(|sink| sink as &mut dyn RouteSink),
            };
            step.feed_forward(&mut pass, mixture)?;
        }
        self.record_final(tokens.len());
        self.classify(logit_rows, logits);
        self.kv.commit(tokens.len());
        self.clock.lap(Phase::Dense);
        Ok(())
    }

    /// Records the final state of the pass's rows where it is asked for.
    fn record_final(&mut self, rows: usize) {
        let Blueprint { spec, dense, output_norm, .. } = &self.blueprint;
        if let Some(tape) = &mut self.features {
            let norm = dense.vector(output_norm);
            let residual = &self.scratch.residual[..rows * spec.width];
            tape.record_normed(spec.blocks, residual, |row, out| rms_norm(row, norm, spec.norm_eps, out));
        }
    }

    /// Final norm and classifier of the given rows.
    fn classify(&mut self, rows: std::ops::Range<usize>, logits: &mut Vec<f32>) {
        if rows.is_empty() {
            return;
        }
        let width = self.blueprint.spec.width;
        let dense = &self.blueprint.dense;
        let norm = dense.vector(&self.blueprint.output_norm);
        let normed = sized(&mut self.scratch.normed, rows.len() * width);
        let residual = &self.scratch.residual[rows.start * width..rows.end * width];
        for (out, row) in normed.chunks_mut(width).zip(residual.chunks(width)) {
            rms_norm(row, norm, self.blueprint.spec.norm_eps, out);
        }
        let start = logits.len();
        logits.resize(start + rows.len() * self.blueprint.spec.vocab, 0.0);
        let output = dense.matrix(&self.blueprint.output);
        matmul(&mut self.pool, output, &Input::new(normed, width), &mut logits[start..]);
    }
}
