//! `medusa`: Medusa heads (arXiv 2401.10774, section 2.1.1) in a GGUF of our own naming.
//!
//! Head `i` is `x + silu(W x + b)`, once or more, and a classifier, on the target's final hidden state after
//! the output norm. Keys: `medusa.head_count`, `medusa.block_count` (residual blocks of a head),
//! `medusa.embedding_length`, `medusa.vocab_size` (optional). Tensors: `head.I.block.J.weight`
//! `[width, width]`, `head.I.block.J.bias` `[width]`, and `head.I.output.weight` `[vocab, width]`, in whose
//! absence the target's classifier serves.

use std::sync::Arc;

use drafthorse_draft::{ModelError, ParallelHeads};
use drafthorse_offload::Reader;

use crate::gguf::Gguf;
use crate::kernels::{Input, Pool, add_scaled, matmul, silu_mul};
use crate::weights::{DenseStore, Matrix, Vector};

use super::LoadError;
use super::assemble::refuse_unused;
use super::model::Shared;
use super::spec::{Keys, ModelSpec, WIDTH_MAX};

/// `general.architecture` of such files.
pub const MEDUSA: &str = "medusa";
/// More heads, or blocks of one, than anybody trains.
const HEADS_MAX: usize = 64;

/// One head.
struct MedusaHead {
    /// `[width, width]` and `[width]` of each residual block.
    blocks: Vec<(Matrix, Vector)>,
    /// Own classifier, `[vocab, width]`.
    output: Option<Matrix>,
}

/// Heads without their weights.
pub struct MedusaBlueprint {
    /// The heads' tensors, not yet loaded.
    pub dense: DenseStore,
    heads: Vec<MedusaHead>,
    width: usize,
    vocab: usize,
    /// Which hidden state of the target they take.
    pub taps: Vec<usize>,
}

/// Reads the blueprint of heads trained for `target`.
///
/// # Errors
/// A file that is unsound, or made for another target.
pub fn medusa_heads(gguf: &Gguf, target: &ModelSpec) -> Result<MedusaBlueprint, LoadError> {
    let keys = Keys::new(gguf, MEDUSA);
    let count = keys.size("head_count", HEADS_MAX)?;
    let blocks = keys.size("block_count", HEADS_MAX)?;
    for (key, what, ours) in
        [("embedding_length", "width", target.width), ("vocab_size", "vocabulary", target.vocab)]
    {
        let theirs = keys.optional_size(key, WIDTH_MAX.max(1 << 24))?.unwrap_or(ours);
        if theirs != ours {
            return Err(keys.invalid(key, format!("{theirs}, but the target's {what} is {ours}")));
        }
    }
    let (width, vocab) = (target.width, target.vocab);
    let mut dense = DenseStore::new(gguf);
    let mut head = |head: usize| {
        let block = |block: usize, dense: &mut DenseStore| {
            let name = format!("head.{head}.block.{block}");
            let weight = dense.matrix_of(&format!("{name}.weight"), width, width)?;
            Ok((weight, dense.vector_of(&format!("{name}.bias"), width)?))
        };
        let blocks = (0..blocks).map(|index| block(index, &mut dense)).collect::<Result<_, LoadError>>()?;
        let output = dense.optional_matrix_of(&format!("head.{head}.output.weight"), vocab, width)?;
        Ok(MedusaHead { blocks, output })
    };
    let heads = (0..count).map(&mut head).collect::<Result<Vec<_>, LoadError>>()?;
    refuse_unused(gguf, target, &dense, &[])?;
    Ok(MedusaBlueprint { dense, heads, width, vocab, taps: vec![target.blocks] })
}

impl MedusaBlueprint {
    /// Bytes of the loaded heads and of what loading takes.
    pub fn resident_bytes(&self) -> u64 {
        let floats = 3 * self.width + self.heads.len() * self.vocab;
        self.dense.bytes() + self.dense.load_bytes() + (floats * size_of::<f32>()) as u64
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// [`LoadError`]: a failed or short read, no memory, no thread.
    pub fn load(
        mut self,
        threads: usize,
        shared: &Shared,
        mut reader: Box<dyn Reader>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Medusa, LoadError> {
        self.dense.load(reader.as_mut(), progress)?;
        Ok(Medusa {
            state: vec![0.0; self.width],
            inner: vec![0.0; self.width],
            ones: vec![1.0; self.width],
            pool: Pool::new(threads, "head").map_err(LoadError::Thread)?,
            target: shared.dense.clone(),
            target_output: shared.output,
            blueprint: self,
        })
    }
}

/// Loaded heads.
pub struct Medusa {
    blueprint: MedusaBlueprint,
    target: Arc<DenseStore>,
    target_output: Matrix,
    pool: Pool,
    /// A head's state between its blocks, `[width]`.
    state: Vec<f32>,
    inner: Vec<f32>,
    /// The second factor of SwiGLU, which a plain SiLU lacks.
    ones: Vec<f32>,
}

impl ParallelHeads for Medusa {
    fn vocab(&self) -> usize {
        self.blueprint.vocab
    }

    fn count(&self) -> usize {
        self.blueprint.heads.len()
    }

    fn predict(&mut self, features: &[f32], heads: usize, logits: &mut Vec<f32>) -> Result<(), ModelError> {
        let MedusaBlueprint { dense, heads: all, width, vocab, .. } = &self.blueprint;
        let count = heads.min(all.len());
        logits.clear();
        logits.resize(count * vocab, 0.0);
        for (head, logits) in all.iter().zip(logits.chunks_mut(*vocab)) {
            self.state.copy_from_slice(features);
            for (weight, bias) in &head.blocks {
                matmul(
                    &mut self.pool,
                    dense.matrix(weight),
                    &Input::new(&self.state, *width),
                    &mut self.inner,
                );
                add_scaled(dense.vector(bias), 1.0, &mut self.inner);
                silu_mul(&mut self.inner, &self.ones);
                add_scaled(&self.inner, 1.0, &mut self.state);
            }
            let output = match &head.output {
                Some(own) => dense.matrix(own),
                None => self.target.matrix(&self.target_output),
            };
            matmul(&mut self.pool, output, &Input::new(&self.state, *width), logits);
        }
        Ok(())
    }
}
