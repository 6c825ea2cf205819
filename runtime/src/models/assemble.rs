//! From a file's table of contents to layers: which tensors a model needs, their shapes and types.
//!
//! Owns [`Blueprint`]: everything that can be known without reading weights (the memory plan and
//! `inspect` work on it). Tensor names are GGUF's, shared by all architectures; what differs is in
//! [`ModelSpec`]. A tensor that is missing, misshapen or of a type without a kernel is an error here,
//! before anything is allocated.

use std::collections::HashSet;
use std::sync::Arc;

use crate::gguf::{Gguf, TensorInfo};
use crate::kernels::Format;
use crate::kv::{KvShape, KvType, WidthError};
use crate::layers::{Attention, DenseFeedForward, ExpertShape, FeedForward, Gqa, Mla, MlaQuery};
use crate::weights::{DenseStore, Matrix, Vector};

use super::experts::{ExpertLayers, expert_layers};
use super::spec::{AttentionSpec, GroupScore, GroupSpec, ModelSpec, MoeSpec};
use super::{Gating, LoadError, read_spec};

/// What the user may say in place of a file's metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Expert groups and how many of them a token may use (DeepSeek-V2 files without group keys).
    pub expert_groups: Option<(usize, usize)>,
}

/// A model without its weights.
pub struct Blueprint {
    /// Checked metadata.
    pub spec: ModelSpec,
    /// Dense tensors, not yet loaded; shared with a head once they are.
    pub dense: Arc<DenseStore>,
    /// Blocks in order.
    pub blocks: Vec<Block>,
    /// Routed experts: where they lie and their shapes; `None` for a dense model.
    pub experts: Option<ExpertLayers>,
    /// Token embedding, `[vocab, width]`.
    pub embedding: Matrix,
    /// Where the embedding lies when it is to stay in the file.
    pub streamed_embedding: Option<TensorInfo>,
    /// Final norm, `[width]`.
    pub output_norm: Vector,
    /// Classifier, `[vocab, width]`; the embedding where the file ties them.
    pub output: Matrix,
    /// Divisors of the rope frequencies (Llama 3).
    pub rope_factors: Option<Vector>,
}

/// One transformer block.
pub struct Block {
    /// `[width]`.
    pub attention_norm: Vector,
    /// Attention.
    pub attention: Attention,
    /// `[width]`.
    pub ffn_norm: Vector,
    /// Feed-forward part.
    pub ffn: Ffn,
}

impl Block {
    /// Widest feed-forward row.
    pub fn inner(&self) -> usize {
        let of = |ffn: &DenseFeedForward| ffn.gate.rows;
        match &self.ffn {
            Ffn::Dense(ffn) => of(ffn),
            Ffn::Routed(routed) => routed.shape.gate.rows.max(routed.shared.as_ref().map_or(0, of)),
        }
    }
}

/// Feed-forward part of a block.
pub enum Ffn {
    /// One expert that every row uses with weight 1.
    Dense(DenseFeedForward),
    /// Routed experts, and possibly one that all rows share.
    Routed(Routed),
}

/// Dense weights of a mixture-of-experts layer.
pub struct Routed {
    /// MoE layer number, 0-based (the expert cache's key).
    pub layer: u32,
    /// Router, `[experts, width]`.
    pub router: Matrix,
    /// Selection bias, `[experts]` (DeepSeek-V3).
    pub bias: Option<Vector>,
    /// Shared expert.
    pub shared: Option<DenseFeedForward>,
    /// Shapes of this layer's routed experts.
    pub shape: ExpertShape,
}

impl Blueprint {
    /// Reads metadata and tensor table of an opened file.
    ///
    /// # Errors
    /// [`LoadError`] naming file, key or tensor.
    pub fn new(gguf: &Gguf, overrides: &Overrides) -> Result<Blueprint, LoadError> {
        let mut spec = read_spec(gguf)?;
        apply_overrides(&mut spec, overrides, gguf)?;
        let mut dense = DenseStore::new(gguf);
        let (width, vocab) = (spec.width, spec.vocab);
        let embedding = dense.matrix_of("token_embd.weight", vocab, width)?;
        let output_norm = dense.vector_of("output_norm.weight", width)?;
        let output = match gguf.tensor("output.weight") {
            Some(_) => dense.matrix_of("output.weight", vocab, width)?,
            None => embedding,
        };
        let rope_factors = dense.optional_vector("rope_freqs.weight", spec.rope.dim / 2)?;
        let experts = expert_layers(gguf, &spec)?;
        let blocks = (0..spec.blocks)
            .map(|index| {
                let first_routed = spec.leading_dense;
                Assembler { spec: &spec, dense: &mut dense, index, first_routed, attention_width: width }
                    .block(experts.as_ref())
            })
            .collect::<Result<Vec<_>, _>>()?;
        refuse_unused(gguf, &spec, &dense, experts.as_ref().map_or(&[], |layers| &layers.tensors))?;
        Ok(Blueprint {
            streamed_embedding: None,
            spec,
            dense: Arc::new(dense),
            blocks,
            experts,
            embedding,
            output_norm,
            output,
            rope_factors,
        })
    }

    /// Leaves the token embedding in the file: its rows are read as they are wanted. False where it is
    /// needed whole, as the classifier.
    pub fn stream_embedding(&mut self) -> bool {
        if self.output != self.embedding && self.streamed_embedding.is_none() {
            let dense = Arc::get_mut(&mut self.dense).expect("invariant: shared only once it is loaded");
            self.streamed_embedding = dense.leave_out(&self.embedding);
        }
        self.streamed_embedding.is_some()
    }

    /// As [`ModelSpec::kv_shape`].
    ///
    /// # Errors
    /// The type does not hold rows of this model's widths.
    pub fn kv_shape(&self, kv_type: KvType) -> Result<KvShape, WidthError> {
        self.spec.kv_shape(kv_type)
    }

    /// Matrices that the host reads where a GPU computes: the embedding's rows are looked up here, and a head's
    /// classifier may be the target's.
    pub fn host_matrices(&self, has_head: bool) -> Vec<Matrix> {
        if has_head { vec![self.embedding, self.output] } else { vec![self.embedding] }
    }

    /// Formats of the routed experts' matrices.
    pub fn expert_formats(&self) -> impl Iterator<Item = Format> + '_ {
        let shapes = self.experts.iter().flat_map(|layers| &layers.shapes);
        shapes.flat_map(|shape| [shape.gate.format, shape.up.format, shape.down.format])
    }

    /// Widest feed-forward row of any layer.
    pub fn inner_max(&self) -> usize {
        self.blocks.iter().map(Block::inner).max().unwrap_or(0)
    }

    /// Weight bytes that one decoded token multiplies with: all dense matrices and its experts.
    pub fn active_bytes_per_token(&self) -> u64 {
        let used = self.spec.moe.as_ref().map_or(0, |moe| moe.used as u64);
        let experts = self.experts.as_ref().map_or(0, |layers| layers.cycle_bytes(used));
        // Of the embedding table a token reads one row; tied, the classifier reads all of it.
        let table = if self.output == self.embedding { 0 } else { self.dense.bytes_of(&self.embedding) };
        self.dense.bytes() - table + experts
    }
}

/// A tensor that nothing reads would change the text silently (a bias, a norm of a variant this
/// architecture file does not know): refused by name, unless it is one of `also`. Blocks of prediction heads
/// are left unread.
pub fn refuse_unused(
    gguf: &Gguf,
    spec: &ModelSpec,
    dense: &DenseStore,
    also: &[String],
) -> Result<(), LoadError> {
    let mut used: HashSet<&str> = dense.registered().collect();
    used.extend(also.iter().map(String::as_str));
    for info in &gguf.tensors {
        let block = info.name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
        let is_ahead = block
            .is_some_and(|block: usize| (spec.blocks..spec.blocks + spec.prediction_heads).contains(&block));
        // Old converters wrote the rope frequencies, which follow from the metadata.
        let is_frequencies = info.name.ends_with(".attn_rot_embd.weight");
        if !is_ahead && !is_frequencies && !used.contains(info.name.as_str()) {
            return Err(LoadError::UnusedTensor {
                path: gguf.metadata.file().into(),
                tensor: info.name.clone(),
            });
        }
    }
    Ok(())
}

fn apply_overrides(spec: &mut ModelSpec, overrides: &Overrides, gguf: &Gguf) -> Result<(), LoadError> {
    let Some((count, used)) = overrides.expert_groups else { return Ok(()) };
    let fail = |problem: String| LoadError::Override { path: gguf.metadata.file().into(), problem };
    let Some(moe) = spec.moe.as_mut() else {
        return Err(fail("model.expert_groups is set, but the model has no routed experts".into()));
    };
    let score = match moe.gating {
        Gating::Softmax => GroupScore::Best,
        Gating::Sigmoid => GroupScore::BestTwo,
    };
    let groups = GroupSpec { count, used, score };
    groups.check(moe.experts, moe.used).map_err(|problem| fail(format!("model.expert_groups: {problem}")))?;
    moe.groups = Some(groups);
    spec.notices.retain(|line| !line.contains("expert_groups"));
    Ok(())
}

/// Assembles block `index` of a file.
pub struct Assembler<'a> {
    /// What the model is like.
    pub spec: &'a ModelSpec,
    /// Where tensors are registered.
    pub dense: &'a mut DenseStore,
    /// The block's number in tensor names.
    pub index: usize,
    /// The first block with routed experts, layer 0 of the expert cache.
    pub first_routed: usize,
    /// Width of the rows that grouped-query attention reads.
    pub attention_width: usize,
}

impl Assembler<'_> {
    /// `blk.N.part`.
    pub fn name(&self, part: &str) -> String {
        format!("blk.{}.{part}", self.index)
    }

    /// Registers `blk.N.part`, `[rows, cols]`.
    pub fn matrix(&mut self, part: &str, rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        self.dense.matrix_of(&self.name(part), rows, cols)
    }

    /// As [`Assembler::matrix`] where the file has the tensor.
    pub fn optional_matrix(
        &mut self,
        part: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Option<Matrix>, LoadError> {
        self.dense.optional_matrix_of(&self.name(part), rows, cols)
    }

    /// Registers `blk.N.part`, `[len]`.
    pub fn vector(&mut self, part: &str, len: usize) -> Result<Vector, LoadError> {
        self.dense.vector_of(&self.name(part), len)
    }

    /// As [`Assembler::vector`] where the file has the tensor.
    pub fn optional_vector(&mut self, part: &str, len: usize) -> Result<Option<Vector>, LoadError> {
        self.dense.optional_vector(&self.name(part), len)
    }

    /// The whole block.
    pub fn block(mut self, experts: Option<&ExpertLayers>) -> Result<Block, LoadError> {
        let width = self.spec.width;
        let routed = self.spec.moe.filter(|_| self.index >= self.first_routed);
        Ok(Block {
            attention_norm: self.vector("attn_norm.weight", width)?,
            attention: self.attention()?,
            ffn_norm: self.vector("ffn_norm.weight", width)?,
            ffn: match (routed, experts) {
                (Some(moe), Some(experts)) => Ffn::Routed(self.routed(&moe, experts)?),
                _ => Ffn::Dense(self.feed_forward()?),
            },
        })
    }

    fn attention(&mut self) -> Result<Attention, LoadError> {
        match self.spec.attention {
            AttentionSpec::Gqa { .. } => self.gqa().map(Attention::Gqa),
            AttentionSpec::Mla { .. } => self.mla().map(Attention::Mla),
        }
    }

    fn gqa(&mut self) -> Result<Gqa, LoadError> {
        let AttentionSpec::Gqa { heads, kv_heads, key_dim, value_dim, qk_norm } = self.spec.attention else {
            unreachable!("invariant: called for GQA only")
        };
        let (width, read) = (self.spec.width, self.attention_width);
        Ok(Gqa {
            spec: self.spec.attention,
            q: self.matrix("attn_q.weight", heads * key_dim, read)?,
            k: self.matrix("attn_k.weight", kv_heads * key_dim, read)?,
            v: self.matrix("attn_v.weight", kv_heads * value_dim, read)?,
            output: self.matrix("attn_output.weight", width, heads * value_dim)?,
            bias: [
                self.optional_vector("attn_q.bias", heads * key_dim)?,
                self.optional_vector("attn_k.bias", kv_heads * key_dim)?,
                self.optional_vector("attn_v.bias", kv_heads * value_dim)?,
                self.optional_vector("attn_output.bias", width)?,
            ],
            qk_norm: match qk_norm {
                true => Some([
                    self.vector("attn_q_norm.weight", key_dim)?,
                    self.vector("attn_k_norm.weight", key_dim)?,
                ]),
                false => None,
            },
            norm_eps: self.spec.norm_eps,
        })
    }

    fn mla(&mut self) -> Result<Mla, LoadError> {
        let AttentionSpec::Mla { heads, kv_lora, nope, value_dim, .. } = self.spec.attention else {
            unreachable!("invariant: called for MLA only")
        };
        let (width, rope_dim) = (self.spec.width, self.spec.rope.dim);
        let query = self.mla_query(heads * (nope + rope_dim))?;
        let (k_b, v_b, v_b_rows) = if self.dense.contains(&self.name("attn_k_b.weight")) {
            let k_b = self.dense.heads_of(&self.name("attn_k_b.weight"), heads, kv_lora, nope)?;
            let v_b = self.dense.heads_of(&self.name("attn_v_b.weight"), heads, value_dim, kv_lora)?;
            (k_b, v_b, (0, value_dim))
        } else {
            // Older files hold both in one matrix, a head's key rows before its value rows; the key
            // part is transposed once at load so that it can be applied to the query.
            let name = self.name("attn_kv_b.weight");
            let v_b = self.dense.matrix_of(&name, heads * (nope + value_dim), kv_lora)?;
            let k_b = self.dense.transposed_keys(&v_b, heads, nope)?;
            (k_b, v_b, (nope, nope + value_dim))
        };
        Ok(Mla {
            spec: self.spec.attention,
            rope_dim,
            query,
            kv_a: self.matrix("attn_kv_a_mqa.weight", kv_lora + rope_dim, width)?,
            kv_a_norm: self.vector("attn_kv_a_norm.weight", kv_lora)?,
            k_b,
            v_b,
            v_b_rows,
            output: self.matrix("attn_output.weight", width, heads * value_dim)?,
            norm_eps: self.spec.norm_eps,
        })
    }

    fn mla_query(&mut self, rows: usize) -> Result<MlaQuery, LoadError> {
        let width = self.spec.width;
        let AttentionSpec::Mla { q_lora: Some(rank), .. } = self.spec.attention else {
            return self.matrix("attn_q.weight", rows, width).map(MlaQuery::Direct);
        };
        Ok(MlaQuery::LowRank {
            a: self.matrix("attn_q_a.weight", rank, width)?,
            norm: self.vector("attn_q_a_norm.weight", rank)?,
            b: self.matrix("attn_q_b.weight", rows, rank)?,
        })
    }

    /// Dense expert.
    fn feed_forward(&mut self) -> Result<DenseFeedForward, LoadError> {
        let expert = self.shared("")?;
        let (width, inner) = (self.spec.width, expert.gate.rows);
        let bias = [("gate", inner), ("up", inner), ("down", width)];
        let [gate, up, down] =
            bias.map(|(part, rows)| self.optional_vector(&format!("ffn_{part}.bias"), rows));
        Ok(FeedForward { bias: [gate?, up?, down?], ..expert })
    }

    /// The matrices of the dense (`suffix` empty) or shared (`_shexp`) expert; its inner width is the gate's own.
    /// No architecture gives a shared expert biases.
    fn shared(&mut self, suffix: &str) -> Result<DenseFeedForward, LoadError> {
        let width = self.spec.width;
        let [gate, up, down] = ["gate", "up", "down"].map(|part| format!("ffn_{part}{suffix}.weight"));
        let inner = self.dense.rows_of(&self.name(&gate))?;
        Ok(FeedForward {
            gate: self.matrix(&gate, inner, width)?,
            up: self.matrix(&up, inner, width)?,
            down: self.matrix(&down, width, inner)?,
            bias: [None; 3],
        })
    }

    fn routed(&mut self, moe: &MoeSpec, experts: &ExpertLayers) -> Result<Routed, LoadError> {
        let layer = self.index - self.first_routed;
        let has_shared = self.dense.contains(&self.name("ffn_gate_shexp.weight"));
        Ok(Routed {
            layer: layer as u32,
            router: self.matrix("ffn_gate_inp.weight", moe.experts, self.spec.width)?,
            bias: self.optional_vector("exp_probs_b.bias", moe.experts)?,
            shared: if has_shared { Some(self.shared("_shexp")?) } else { None },
            shape: experts.shapes[layer],
        })
    }
}
