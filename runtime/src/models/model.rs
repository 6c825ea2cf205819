//! A loaded model: weights, cache, experts, and the forward pass over them (`model/pass.rs`).
//!
//! Owns everything one sequence needs and implements [`LanguageModel`], so that the same type is
//! target or draft. The pass is layer-major: all rows of a window go through a layer together, and
//! each expert they need is brought in once for all of them.

mod pass;

use std::sync::Arc;

use drafthorse_draft::{Features, LanguageModel, LogitRows, ModelError, TokenId};
use drafthorse_offload::{
    CacheConfig, CacheStats, ExpertCache, ExpertId, Policy, Reader, Residency, WarmStats,
};
use drafthorse_scheduler::RankOutcome;

use crate::backend::{Backend, CpuBackend};
use crate::clock::{Clock, Spans};
use crate::gguf::TensorInfo;
use crate::gpu::{
    Driver, ExpertsPlan, GpuBackend, GpuParts, GpuStats, LayoutPlan, SlabPlan, WorkTime, slot_bytes,
};
use crate::kernels::Pool;
use crate::kv::{KvCache, KvShape};
use crate::layers::{DemandLoads, Lookahead, RANKS_MAX, Rope, RouteSink, ScratchPlan};
use crate::weights::{DenseStore, Matrix, Vector};

use super::assemble::Blueprint;
use super::features::FeatureTape;
use super::{Embedding, LoadError, StreamedTable};

pub use pass::PassError;

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

    /// What computes the passes of a model whose weights are loaded.
    fn backend(&self, blueprint: &Blueprint) -> Result<Box<dyn Backend>, LoadError> {
        let pool = Pool::new(self.threads, self.thread_name).map_err(LoadError::Thread)?;
        let kv = KvCache::new(self.kv, blueprint.spec.blocks, self.context_len);
        let scratch = self.scratch(blueprint).allocate();
        Ok(Box::new(CpuBackend::new(blueprint.dense.clone(), pool, kv, scratch)))
    }

    /// The same on a GPU. The host keeps only the weights it reads itself.
    fn device(&self, blueprint: &Blueprint, device: DeviceChoice) -> Result<GpuBackend, LoadError> {
        let DeviceChoice { driver, layout, slots, is_in_place, policy, hybrid, has_head } = device;
        let experts = match (&blueprint.experts, policy) {
            (Some(_), _) if is_in_place => Some(ExpertsPlan::InPlace),
            (Some(layers), Some(policy)) => {
                let pool = hybrid.then(|| Pool::new(self.threads, self.thread_name)).transpose();
                Some(ExpertsPlan::Slab(Box::new(SlabPlan {
                    index: layers.index.clone(),
                    slots,
                    slot_bytes: slot_bytes(layers.shapes.iter()),
                    policy,
                    used: blueprint.spec.moe.map_or(1, |moe| moe.used as u32),
                    pool: pool.map_err(LoadError::Thread)?,
                })))
            }
            _ => None,
        };
        let parts = GpuParts { driver, dense: blueprint.dense.clone(), layout, experts };
        let backend = GpuBackend::new(parts)?;
        blueprint.dense.let_go(&blueprint.host_matrices(has_head));
        Ok(backend)
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

/// A GPU that computes a model, and what of its experts is kept there.
pub struct DeviceChoice {
    /// The GPU.
    pub driver: Box<dyn Driver>,
    /// What else lies there.
    pub layout: LayoutPlan,
    /// Experts there is room for.
    pub slots: usize,
    /// Whether its kernels read experts where the expert cache has them: slots, policy and processor have no part in it
    /// then.
    pub is_in_place: bool,
    /// Decides which are in its slots; `None` where there are none.
    pub policy: Option<Box<dyn Policy>>,
    /// Whether the processor computes experts, too.
    pub hybrid: bool,
    /// Whether a head on the processor shares the embedding and the classifier.
    pub has_head: bool,
}

/// A model and one sequence's cache.
pub struct Model {
    blueprint: Blueprint,
    options: ModelOptions,
    embedding: Embedding,
    // Dropped first: a GPU's copies read the experts' memory.
    backend: Box<dyn Backend>,
    experts: Option<ExpertCache>,
    rope: Rope,
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
        (experts, device): (Option<ExpertsChoice>, Option<DeviceChoice>),
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
        // Before there is room for experts: weights that are on a GPU leave theirs.
        let device = device.map(|device| options.device(&blueprint, device)).transpose()?;
        let experts = match (&blueprint.experts, experts) {
            (Some(layers), Some(ExpertsChoice { slots, policy, hottest })) => {
                let (index, threads) = (layers.index.clone(), options.threads);
                let mut cache = ExpertCache::new(CacheConfig { index, slots, policy, reader, threads })?;
                cache.warm_up(&hottest)?;
                Some(cache)
            }
            _ => None,
        };
        let backend: Box<dyn Backend> = match device {
            Some(mut device) => {
                if let Some(cache) = &experts {
                    // SAFETY: `Model` drops the backend before the cache.
                    unsafe { device.pin(cache.memory()) }?;
                }
                Box::new(device)
            }
            None => options.backend(&blueprint)?,
        };
        Ok(Model {
            embedding,
            rope,
            experts,
            backend,
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
    pub fn set_route_sinks(&mut self, sinks: Vec<Box<dyn RouteSink + Send>>) {
        self.sink = (!sinks.is_empty()).then(|| Box::new(sinks) as Box<_>);
    }

    /// Counters of the GPU; `None` on the processor.
    pub fn gpu_stats(&self) -> Option<GpuStats> {
        self.backend.gpu_stats()
    }

    /// What the GPU's kernels have taken since the last call, where they are profiled.
    pub fn take_gpu_times(&mut self) -> Vec<WorkTime> {
        self.backend.take_gpu_times()
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
        let of_cache = || self.experts.as_ref().and_then(|experts| experts.policy().warm_stats());
        self.backend.warm_stats().or_else(of_cache)
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
        self.backend.drop_experts();
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

    /// Rows of the widest single pass.
    pub fn rows_max(&self) -> usize {
        self.options.rows_max
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
        self.backend.len()
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
        self.backend.truncate(len);
        if let Some(tape) = &mut self.features {
            tape.truncate(len);
        }
    }
}
