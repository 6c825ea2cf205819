//! A head of one block on a target's hidden states: what MTP and EAGLE-3 have in common.
//!
//! Owns the head's blueprint, its memory and the pass over new rows: hidden states and token embeddings go
//! in as the kind of head says ([`HeadInput`]), one block attends over the head's own cache, and the last
//! row's logits come out in the target's vocabulary. Embedding, output norm and classifier are the target's
//! own where the head brings none. It must not know who drafts with it.

use std::sync::Arc;

use drafthorse_draft::{HeadModel, ModelError, TokenId};
use drafthorse_offload::{CacheConfig, ExpertCache, OffloadError, PolicyConfig, PolicyKind, Reader};

use crate::backend::{Backend, CpuBackend};
use crate::clock::Clock;
use crate::gguf::TensorInfo;
use crate::kernels::{Input, Pool, matmul, quantized_bytes, rms_norm};
use crate::kv::{KvCache, KvShape};
use crate::layers::{DemandLoads, Lookahead, Pass, Rope, Scratch, ScratchPlan, sized};
use crate::weights::{DenseStore, Matrix, Vector};

use super::assemble::Block;
use super::block::{BlockStep, Mixture};
use super::experts::ExpertLayers;
use super::model::Shared;
use super::{Embedding, LoadError, ModelSpec, PassError, StreamedTable};

/// How a kind of head makes the rows of its block.
pub trait HeadInput: Send {
    /// Turns `features`, the target's hidden states (`[rows, taps * target width]`), into the head's own,
    /// `[rows, width]`.
    fn fuse(&self, pass: &mut RowPass<'_>, features: &[f32], hidden: &mut [f32]);

    /// Puts the block's rows into `scratch.residual` and what attention reads into `scratch.normed`, from
    /// the embeddings of the tokens and the hidden states before them, `[rows, width]` each.
    fn enter(&self, pass: &mut RowPass<'_>, block: &Block, inputs: (&[f32], &[f32]), scratch: &mut Scratch);

    /// Whether the hidden state a row hands on to the next is the one after the output norm.
    fn hands_on_normed(&self) -> bool;
}

/// What making rows works with.
pub struct RowPass<'a> {
    /// The head's weights.
    pub dense: &'a DenseStore,
    /// Threads.
    pub pool: &'a mut Pool,
    /// Rows at hand.
    pub rows: usize,
    /// Width of the head's residual stream.
    pub width: usize,
    /// RMS norm epsilon.
    pub norm_eps: f32,
}

impl RowPass<'_> {
    /// `out = [norm(embedded) | norm(hidden)]`, `[rows, 2 * width]`.
    pub fn concat_normed(&self, norms: [&Vector; 2], inputs: (&[f32], &[f32]), out: &mut [f32]) {
        let norms = norms.map(|norm| self.dense.vector(norm));
        let rows = inputs.0.chunks(self.width).zip(inputs.1.chunks(self.width));
        for (out, (embedded, hidden)) in out.chunks_mut(2 * self.width).zip(rows) {
            let (left, right) = out.split_at_mut(self.width);
            rms_norm(embedded, norms[0], self.norm_eps, left);
            rms_norm(hidden, norms[1], self.norm_eps, right);
        }
    }
}

/// A head without its weights.
pub struct HeadBlueprint {
    /// Shape of the block; `blocks` is 1 and `vocab` the target's.
    pub spec: ModelSpec,
    /// The head's tensors, not yet loaded.
    pub dense: Arc<DenseStore>,
    /// The block.
    pub block: Block,
    /// Its routed experts, all of which stay in memory; `None` for a dense block.
    pub experts: Option<ExpertLayers>,
    /// How rows are made.
    pub input: Box<dyn HeadInput>,
    /// Own token embedding, `[vocab, width]`.
    pub embedding: Option<Matrix>,
    /// Where it lies when it is to stay in the file.
    pub streamed: Option<TensorInfo>,
    /// Own output norm, `[width]`.
    pub output_norm: Option<Vector>,
    /// Own classifier, `[draft vocabulary, width]`.
    pub output: Option<Matrix>,
    /// Divisors of the rope frequencies.
    pub rope_factors: Option<Vector>,
    /// The target's id of each row of the own classifier; `None` where they are the same.
    pub to_target: Option<Vec<TokenId>>,
    /// Which hidden states of the target it takes, as [`super::Model::record_features`] names them.
    pub taps: Vec<usize>,
    /// Values of these states, for one row.
    pub feature_len: usize,
}

/// How a head is to be run.
#[derive(Clone, Copy)]
pub struct HeadOptions {
    /// Rows of its cache.
    pub context_len: usize,
    /// Rows of one pass at most: a long prompt is taken in piece by piece.
    pub rows_max: usize,
    /// Shape of the cache's rows.
    pub kv: KvShape,
    /// Compute threads.
    pub threads: usize,
}

/// What a head reads its file with, and the target's for an embedding that stays in it.
pub struct HeadReaders<'a> {
    /// Opens another reader of the head's files.
    pub own: &'a dyn Fn() -> Result<Box<dyn Reader>, OffloadError>,
    /// Opens another reader of the target's files.
    pub target: &'a dyn Fn() -> Result<Box<dyn Reader>, OffloadError>,
}

impl HeadBlueprint {
    /// Leaves an embedding of its own in the file, as the target's is left in its file when memory is short.
    pub fn stream_embedding(&mut self) {
        if let (Some(embedding), None) = (&self.embedding, &self.streamed) {
            self.streamed = unshared(&mut self.dense).leave_out(embedding);
        }
    }

    /// Routed experts, all of them kept in memory.
    pub fn experts_total(&self) -> usize {
        self.experts.as_ref().map_or(0, |layers| layers.index.experts_total())
    }

    /// Bytes of everything the loaded head holds and of what loading it takes, experts included.
    pub fn resident_bytes(&self, options: &HeadOptions) -> u64 {
        let slots = self
            .experts
            .as_ref()
            .map_or(0, |layers| layers.index.experts_total() as u64 * layers.index.slot_bytes() as u64);
        let plan = self.scratch(options);
        let (width, vocab, rows) = (self.spec.width, self.spec.vocab, options.rows_max);
        // Attention may read rows of twice the width; embeddings and hidden states lie beside them, and the
        // target's may be normed before they are fused.
        let floats = rows * (3 * width + self.feature_len) + width + 2 * vocab;
        let quantized = rows * 2 * quantized_bytes(self.feature_len.max(2 * width));
        let row_bytes = |info: &TensorInfo| StreamedTable::bytes(info.bytes as usize / vocab);
        let streamed = self.streamed.as_ref().map_or(0, row_bytes);
        let kv = KvCache::bytes(options.kv, 1, options.context_len);
        let map = self.to_target.as_ref().map_or(0, |map| map.len() * size_of::<TokenId>());
        let buffers = (floats * size_of::<f32>() + quantized + map) as u64;
        self.dense.bytes() + self.dense.load_bytes() + slots + kv + plan.bytes() + buffers + streamed
    }

    fn scratch(&self, options: &HeadOptions) -> ScratchPlan<'_> {
        ScratchPlan::new(&self.spec, options.rows_max, self.block.inner(), options.threads)
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// [`LoadError`]: a failed or short read, no memory, no thread.
    pub fn load(
        mut self,
        options: HeadOptions,
        shared: Shared,
        readers: &HeadReaders<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Head, LoadError> {
        let mut reader = (readers.own)()?;
        unshared(&mut self.dense).load(reader.as_mut(), progress)?;
        let embedding = match (&self.embedding, &self.streamed, &shared.streamed) {
            (Some(own), Some(info), _) => streamed((readers.own)()?, info, own)?,
            (Some(own), None, _) => Embedding::Resident(*own),
            (None, _, Some(info)) => streamed((readers.target)()?, info, &shared.embedding)?,
            (None, _, None) => Embedding::Resident(shared.embedding),
        };
        let factors = self.rope_factors.as_ref().map(|factors| self.dense.vector(factors));
        let rope = Rope::new(&self.spec.rope, factors);
        let experts = self.experts.as_ref().map(|layers| cache(layers, &self.spec, reader, options.threads));
        let mut scratch = self.scratch(&options).allocate();
        let (rows, width) = (options.rows_max, self.spec.width);
        sized(&mut scratch.normed, rows * 2 * width);
        Ok(Head {
            embedding,
            rope,
            experts: experts.transpose()?,
            backend: CpuBackend::new(
                self.dense.clone(),
                Pool::new(options.threads, "head").map_err(LoadError::Thread)?,
                KvCache::new(options.kv, 1, options.context_len),
                scratch,
            ),
            lookahead: Lookahead::default(),
            clock: Clock::new(),
            embedded: vec![0.0; rows * width],
            hidden: vec![0.0; rows * width],
            last: vec![0.0; width],
            own_logits: Vec::new(),
            rows_max: rows,
            blueprint: self,
            shared,
        })
    }
}

/// The tensors, while nobody else has them.
fn unshared(dense: &mut Arc<DenseStore>) -> &mut DenseStore {
    Arc::get_mut(dense).expect("invariant: shared only once it is loaded")
}

fn streamed(reader: Box<dyn Reader>, info: &TensorInfo, matrix: &Matrix) -> Result<Embedding, LoadError> {
    StreamedTable::new(reader, info.clone(), matrix).map(Embedding::Streamed)
}

/// A cache with a slot for every expert.
fn cache(
    layers: &ExpertLayers,
    spec: &ModelSpec,
    reader: Box<dyn Reader>,
    threads: usize,
) -> Result<ExpertCache, OffloadError> {
    let (index, slots) = (layers.index.clone(), layers.index.experts_total());
    let used = spec.moe.map_or(1, |moe| moe.used as u32);
    let policy = PolicyKind::Lru.build(&PolicyConfig::new(&layers.index, slots, used));
    ExpertCache::new(CacheConfig { index, slots, policy, reader, threads })
}

/// A loaded head and its cache of one sequence.
pub struct Head {
    blueprint: HeadBlueprint,
    shared: Shared,
    embedding: Embedding,
    rope: Rope,
    experts: Option<ExpertCache>,
    backend: CpuBackend,
    lookahead: Lookahead,
    clock: Clock,
    /// Embeddings of the pass's tokens, `[rows, width]`.
    embedded: Vec<f32>,
    /// Hidden states before them, `[rows, width]`.
    hidden: Vec<f32>,
    /// The hidden state the last row hands on, `[width]`.
    last: Vec<f32>,
    /// Logits in the own classifier's vocabulary.
    own_logits: Vec<f32>,
    rows_max: usize,
}

impl Head {
    /// The hidden state that the last row appended hands on, `[width]`.
    pub fn last_hidden(&self) -> &[f32] {
        &self.last
    }

    fn check(&self, tokens: &[TokenId]) -> Result<(), PassError> {
        let (vocab, len, context_len) =
            (self.blueprint.spec.vocab, self.backend.kv.len(), self.backend.kv.context_len());
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab) {
            return Err(PassError::Token { token: *token, vocab });
        }
        if tokens.len() > context_len - len {
            return Err(PassError::Context { rows: tokens.len(), len, context_len });
        }
        Ok(())
    }

    /// Appends rows whose hidden states are in `self.hidden`.
    fn run(&mut self, tokens: &[TokenId]) -> Result<(), PassError> {
        let (rows, width) = (tokens.len(), self.blueprint.spec.width);
        let own = self.blueprint.embedding.is_some();
        let store = if own { &self.blueprint.dense } else { &*self.shared.dense };
        self.embedding
            .rows(store, tokens, &mut self.embedded[..rows * width])
            .map_err(PassError::Embedding)?;
        let HeadBlueprint { input, block, dense, spec, .. } = &self.blueprint;
        let mut pass = RowPass { dense, pool: &mut self.backend.pool, rows, width, norm_eps: spec.norm_eps };
        let inputs = (&self.embedded[..rows * width], &self.hidden[..rows * width]);
        input.enter(&mut pass, block, inputs, &mut self.backend.scratch);
        self.run_block(rows)?;
        self.backend.kv.commit(rows);
        Ok(())
    }

    fn run_block(&mut self, rows: usize) -> Result<(), PassError> {
        let HeadBlueprint { block, spec, .. } = &self.blueprint;
        let start = self.backend.len();
        self.backend.begin(self.rope.table(start, rows));
        let (ops, clock) = (&mut self.backend, &mut self.clock);
        let mut pass = Pass { ops, start, rows, norm_eps: spec.norm_eps, clock };
        let step = BlockStep { block, width: spec.width };
        step.attend_normed(&mut pass, 0);
        let Some((moe, experts)) = spec.moe.as_ref().zip(self.experts.as_mut()) else {
            step.dense(&mut pass);
            return Ok(());
        };
        experts.poll()?;
        let lookahead = &mut self.lookahead;
        // Nobody asks what a guess read: all of a head's experts stay in memory.
        let demand = &mut DemandLoads::default();
        let mixture = Mixture { spec: moe, experts, lookahead, demand, next: None, sink: None, gate: None };
        step.feed_forward(&mut pass, mixture)?;
        Ok(())
    }

    /// Logits of the last of `rows` rows, and the hidden state it hands on.
    fn finish(&mut self, rows: usize, logits: &mut Vec<f32>) {
        let HeadBlueprint { dense, spec, output_norm, output, input, to_target, .. } = &self.blueprint;
        let (width, target) = (spec.width, &self.shared);
        let row = &self.backend.scratch.residual[(rows - 1) * width..rows * width];
        let norm = match output_norm {
            Some(own) => dense.vector(own),
            None => target.dense.vector(&target.output_norm),
        };
        let normed = sized(&mut self.backend.scratch.normed, width);
        rms_norm(row, norm, spec.norm_eps, normed);
        self.last.copy_from_slice(if input.hands_on_normed() { normed } else { row });
        let output = match output {
            Some(own) => dense.matrix(own),
            None => target.dense.matrix(&target.output),
        };
        let x = Input::new(normed, width);
        logits.clear();
        logits.resize(spec.vocab, f32::NEG_INFINITY);
        match to_target {
            None => matmul(&mut self.backend.pool, output, &x, logits),
            Some(ids) => {
                let own = sized(&mut self.own_logits, ids.len());
                matmul(&mut self.backend.pool, output, &x, own);
                ids.iter().zip(own).for_each(|(id, value)| logits[*id as usize] = *value);
            }
        }
    }

    fn advance_chunks(
        &mut self,
        tokens: &[TokenId],
        features: &[f32],
        logits: &mut Vec<f32>,
    ) -> Result<(), PassError> {
        self.check(tokens)?;
        if tokens.is_empty() {
            return Ok(());
        }
        let (width, norm_eps) = (self.blueprint.spec.width, self.blueprint.spec.norm_eps);
        let each = self.blueprint.feature_len;
        debug_assert_eq!(features.len(), tokens.len() * each, "one row of hidden states a token");
        let chunks = tokens.chunks(self.rows_max);
        for (tokens, features) in chunks.zip(features.chunks(each * self.rows_max)) {
            let rows = tokens.len();
            let HeadBlueprint { input, dense, .. } = &self.blueprint;
            let mut pass = RowPass { dense, pool: &mut self.backend.pool, rows, width, norm_eps };
            input.fuse(&mut pass, features, &mut self.hidden[..rows * width]);
            self.run(tokens)?;
            self.finish(rows, logits);
        }
        Ok(())
    }
}

impl HeadModel for Head {
    fn vocab(&self) -> usize {
        self.blueprint.spec.vocab
    }

    fn context_len(&self) -> usize {
        self.backend.kv.context_len()
    }

    fn len(&self) -> usize {
        self.backend.kv.len()
    }

    fn advance(
        &mut self,
        tokens: &[TokenId],
        features: &[f32],
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        let len = self.backend.kv.len();
        self.advance_chunks(tokens, features, logits).inspect_err(|_| self.backend.kv.truncate(len))?;
        Ok(())
    }

    fn step(&mut self, token: TokenId, logits: &mut Vec<f32>) -> Result<(), ModelError> {
        self.check(&[token])?;
        self.hidden[..self.last.len()].copy_from_slice(&self.last);
        self.run(&[token])?;
        self.finish(1, logits);
        Ok(())
    }

    fn truncate(&mut self, len: usize) {
        self.backend.kv.truncate(len);
    }
}
