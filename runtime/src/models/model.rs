//! A loaded model: weights, cache, experts, and the forward pass over them.
//!
//! Owns everything one sequence needs and implements [`LanguageModel`], so that the same type is
//! target or draft. The pass is layer-major: all rows of a window go through a layer together, and
//! each expert they need is brought in once for all of them.

use std::sync::Arc;

use drafthorse_draft::{Features, LanguageModel, LogitRows, ModelError, TokenId};
use drafthorse_offload::{
    CacheConfig, CacheStats, ExpertCache, ExpertId, Policy, Reader, Residency, WarmStats,
};
use drafthorse_scheduler::RankOutcome;
use thiserror::Error;

use crate::clock::{Clock, Phase, Spans};
use crate::gguf::TensorInfo;
use crate::kernels::{Input, Pool, matmul, rms_norm};
use crate::kv::{KvCache, KvShape};
use crate::layers::{DemandLoads, Lookahead, Pass, RANKS_MAX, Rope, RouteSink, Scratch, ScratchPlan, sized};
use crate::weights::{DenseStore, Matrix, Vector};

use super::assemble::Blueprint;
use super::block::{BlockStep, Mixture, target};
use super::features::FeatureTape;
use super::{Embedding, LoadError, StreamedTable};

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

/// How a model is to be run.
pub struct ModelOptions {
    /// Positions of the cache.
    pub context_len: usize,
    /// Shape of a block's cache rows.
    pub kv: KvShape,
    /// Most rows of one pass; longer inputs are run in chunks of this.
    pub rows_max: usize,
    /// Compute threads.
    pub threads: usize,
    /// Name of the threads.
    pub thread_name: &'static str,
}

impl ModelOptions {
    /// Working memory of a pass.
    pub fn scratch<'a>(&self, blueprint: &'a Blueprint) -> ScratchPlan<'a> {
        let inner = blueprint.inner_max();
        ScratchPlan::new(&blueprint.spec, self.rows_max, inner, self.threads)
    }
}

/// What a model reads its file with.
pub struct Readers {
    /// Dense weights, then experts.
    pub experts: Box<dyn Reader>,
    /// Rows of an embedding that stays in the file; needed for one that does.
    pub embedding: Option<Box<dyn Reader>>,
}

/// How a model's experts are kept.
pub struct ExpertsChoice {
    /// Experts in memory.
    pub slots: usize,
    /// Decides which.
    pub policy: Box<dyn Policy>,
    /// Those to begin with, the hottest first.
    pub hottest: Vec<ExpertId>,
}

/// A model and one sequence's cache.
pub struct Model {
    blueprint: Blueprint,
    options: ModelOptions,
    embedding: Embedding,
    experts: Option<ExpertCache>,
    rope: Rope,
    pool: Pool,
    kv: KvCache,
    scratch: Scratch,
    sink: Option<Box<dyn RouteSink + Send>>,
    lookahead: Lookahead,
    demand: DemandLoads,
    features: Option<FeatureTape>,
    clock: Clock,
}

/// What a head borrows of its target.
pub struct Shared {
    /// The target's dense weights.
    pub dense: Arc<DenseStore>,
    /// Token embedding, `[vocab, width]`.
    pub embedding: Matrix,
    /// Where it lies when its rows stay in the file.
    pub streamed: Option<TensorInfo>,
    /// Final norm, `[width]`.
    pub output_norm: Vector,
    /// Classifier, `[vocab, width]`.
    pub output: Matrix,
}

impl Model {
    /// Loads the dense weights through `readers.experts`, which then serves the experts, if there are
    /// any. `readers.embedding` serves an embedding that stays in the file.
    ///
    /// # Errors
    /// [`LoadError`]: a failed or short read, no memory, no thread.
    pub fn load(
        mut blueprint: Blueprint,
        options: ModelOptions,
        mut readers: Readers,
        experts: Option<ExpertsChoice>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Model, LoadError> {
        let dense = Arc::get_mut(&mut blueprint.dense).expect("invariant: shared only once it is loaded");
        dense.load(readers.experts.as_mut(), progress)?;
        let embedding = match (blueprint.streamed_embedding.clone(), readers.embedding) {
            (Some(info), Some(reader)) => {
                Embedding::Streamed(StreamedTable::new(reader, info, &blueprint.embedding)?)
            }
            _ => Embedding::Resident(blueprint.embedding),
        };
        let reader = readers.experts;
        let factors = blueprint.rope_factors.as_ref().map(|factors| blueprint.dense.vector(factors));
        let rope = Rope::new(&blueprint.spec.rope, factors);
        let experts = match (&blueprint.experts, experts) {
            (Some(layers), Some(ExpertsChoice { slots, policy, hottest })) => {
                let (index, threads) = (layers.index.clone(), options.threads);
                let mut cache = ExpertCache::new(CacheConfig { index, slots, policy, reader, threads })?;
                cache.warm_up(&hottest)?;
                Some(cache)
            }
            _ => None,
        };
        Ok(Model {
            embedding,
            rope,
            experts,
            pool: Pool::new(options.threads, options.thread_name).map_err(LoadError::Thread)?,
            kv: KvCache::new(options.kv, blueprint.spec.blocks, options.context_len),
            scratch: options.scratch(&blueprint).allocate(),
            sink: None,
            lookahead: Lookahead::default(),
            demand: DemandLoads::default(),
            features: None,
            clock: Clock::new(),
            blueprint,
            options,
        })
    }

    /// The blueprint it was loaded from.
    pub fn blueprint(&self) -> &Blueprint {
        &self.blueprint
    }

    /// Where routing is reported from now on.
    pub fn set_route_sink(&mut self, sink: Option<Box<dyn RouteSink + Send>>) {
        self.sink = sink;
    }

    /// Counters of the expert cache; `None` for a dense model.
    pub fn cache_stats(&self) -> Option<CacheStats> {
        self.experts.as_ref().map(ExpertCache::stats)
    }

    /// What of the experts is in memory; `None` for a dense model.
    pub fn residency(&self) -> Option<Residency> {
        self.experts.as_ref().map(ExpertCache::residency)
    }

    /// The clock that passes lap, for whoever works between them.
    pub fn clock(&mut self) -> &mut Clock {
        &mut self.clock
    }

    /// Seconds by phase so far.
    pub fn spans(&self) -> Spans {
        self.clock.spans()
    }

    /// Predicts the `ranks` likeliest experts of the layers ahead and reads them while the disk is idle;
    /// 0 does not.
    pub fn set_prefetch(&mut self, ranks: usize) {
        if let Some(experts) = &mut self.experts {
            experts.set_prefetch(ranks > 0);
            self.lookahead.set_ranks(ranks);
        }
    }

    /// How often predictions came true, by rank.
    pub fn prediction_counts(&self) -> &[RankOutcome; RANKS_MAX] {
        self.lookahead.counts()
    }

    /// Experts that the last pass had to wait for, and which rows wanted them.
    pub fn demand(&self) -> &DemandLoads {
        &self.demand
    }

    /// What the policy has learned, for another run; `None` for a dense model or a policy that learns
    /// nothing.
    pub fn warm_stats(&self) -> Option<WarmStats> {
        self.experts.as_ref().and_then(|experts| experts.policy().warm_stats())
    }

    /// Layers with routed experts.
    pub fn moe_layers(&self) -> usize {
        self.experts.as_ref().map_or(0, |experts| experts.index().layers())
    }

    /// Forgets every resident expert (cold-cache measurements).
    ///
    /// # Errors
    /// A reader that has stopped.
    pub fn drop_experts(&mut self) -> Result<(), drafthorse_offload::OffloadError> {
        self.experts.as_mut().map_or(Ok(()), ExpertCache::clear)
    }

    /// What a head of this model borrows.
    pub fn shared(&self) -> Shared {
        let Blueprint { dense, embedding, streamed_embedding, output_norm, output, .. } = &self.blueprint;
        Shared {
            dense: dense.clone(),
            embedding: *embedding,
            streamed: streamed_embedding.clone(),
            output_norm: *output_norm,
            output: *output,
        }
    }

    /// Keeps hidden states of every row from now on, for a head: the inputs of the blocks named, the number
    /// of blocks naming the final state after the output norm. No taps: none are kept, and passes cost what
    /// they do without.
    pub fn record_features(&mut self, taps: &[usize]) {
        let tape = || FeatureTape::new(taps, self.blueprint.spec.width, self.feature_rows_max());
        self.features = (!taps.is_empty()).then(tape);
    }

    /// Positions whose hidden states are kept at most: those of the widest pass, and one more.
    pub fn feature_rows_max(&self) -> usize {
        self.options.rows_max + 1
    }

    /// The hidden states kept; `None` where none are.
    pub fn features(&self) -> Option<Features<'_>> {
        self.features.as_ref().map(FeatureTape::features)
    }

    /// Where hidden states are kept.
    pub fn feature_tape(&mut self) -> Option<&mut FeatureTape> {
        self.features.as_mut()
    }

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

    /// Rows of the widest single pass.
    pub fn rows_max(&self) -> usize {
        self.options.rows_max
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

impl LanguageModel for Model {
    fn vocab(&self) -> usize {
        self.blueprint.spec.vocab
    }

    fn context_len(&self) -> usize {
        self.options.context_len
    }

    fn len(&self) -> usize {
        self.kv.len()
    }

    fn forward(
        &mut self,
        tokens: &[TokenId],
        which: LogitRows,
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        self.pass(tokens, which, logits).map_err(Into::into)
    }

    fn truncate(&mut self, len: usize) {
        self.kv.truncate(len);
        if let Some(tape) = &mut self.features {
            tape.truncate(len);
        }
    }
}
