//! The multi-token prediction head of DeepSeek-V3-type files (arXiv 2412.19437, section 2.2).
//!
//! It is one more block behind the model's own, `blk.N` with N the number of blocks run: the token's
//! embedding and the target's final hidden state, each normed, are projected together
//! (`nextn.eh_proj`), go through the block, and the target's classifier reads the result. Hidden states are
//! taken after the output norm, in the first row as in the following ones (as llama.cpp does). Of
//! several heads the first is used again and again.

use std::sync::Arc;

use crate::gguf::Gguf;
use crate::kernels::{Input, matmul, rms_norm};
use crate::layers::{Scratch, sized};
use crate::weights::{DenseStore, Matrix, Vector};

use super::assemble::{Assembler, Block};
use super::experts::plain_layers;
use super::head::{HeadBlueprint, HeadInput, RowPass};
use super::{LoadError, ModelSpec, head_error};

/// Weights in front of the block.
struct MtpInput {
    /// `[width]`.
    embedding_norm: Vector,
    /// `[width]`.
    hidden_norm: Vector,
    /// `[width, 2 * width]`, embedding first.
    project: Matrix,
}

/// Reads the blueprint of the head in the target's own file.
///
/// # Errors
/// A file without a head; tensors that are missing or do not fit the target.
pub fn mtp_head(gguf: &Gguf, target: &ModelSpec) -> Result<HeadBlueprint, LoadError> {
    if target.prediction_heads == 0 {
        let problem = format!(
            "draft mtp: the file has no prediction head ({}.nextn_predict_layers)",
            target.architecture
        );
        return Err(head_error(gguf, problem));
    }
    let index = target.blocks;
    let mut spec = ModelSpec { blocks: 1, prediction_heads: 0, leading_dense: 0, ..target.clone() };
    let mut dense = DenseStore::new(gguf);
    spec.moe = spec.moe.filter(|_| dense.contains(&format!("blk.{index}.ffn_gate_inp.weight")));
    let experts = spec.moe.map(|moe| plain_layers(gguf, (&spec, &moe), index..index + 1)).transpose()?;
    let (width, vocab) = (spec.width, spec.vocab);
    let mut parts =
        Assembler { spec: &spec, dense: &mut dense, index, first_routed: index, attention_width: width };
    let input = MtpInput {
        project: parts.matrix("nextn.eh_proj.weight", width, 2 * width)?,
        embedding_norm: parts.vector("nextn.enorm.weight", width)?,
        hidden_norm: parts.vector("nextn.hnorm.weight", width)?,
    };
    let embedding = parts.optional_matrix("nextn.embed_tokens.weight", vocab, width)?;
    let output = parts.optional_matrix("nextn.shared_head_head.weight", vocab, width)?;
    let output_norm = parts.optional_vector("nextn.shared_head_norm.weight", width)?;
    let block = parts.block(experts.as_ref())?;
    let rope_factors = dense.optional_vector("rope_freqs.weight", spec.rope.dim / 2)?;
    Ok(HeadBlueprint {
        spec,
        dense: Arc::new(dense),
        block,
        experts,
        input: Box::new(input),
        embedding,
        streamed: None,
        output_norm,
        output,
        rope_factors,
        to_target: None,
        taps: vec![target.blocks],
        feature_len: width,
    })
}

impl HeadInput for MtpInput {
    fn fuse(&self, _pass: &mut RowPass<'_>, features: &[f32], hidden: &mut [f32]) {
        hidden.copy_from_slice(features);
    }

    fn enter(&self, pass: &mut RowPass<'_>, block: &Block, inputs: (&[f32], &[f32]), scratch: &mut Scratch) {
        let len = pass.rows * pass.width;
        let both = sized(&mut scratch.normed, 2 * len);
        pass.concat_normed([&self.embedding_norm, &self.hidden_norm], inputs, both);
        let residual = sized(&mut scratch.residual, len);
        matmul(pass.pool, pass.dense.matrix(&self.project), &Input::new(both, 2 * pass.width), residual);
        let norm = pass.dense.vector(&block.attention_norm);
        let normed = both[..len].chunks_mut(pass.width);
        for (out, row) in normed.zip(residual.chunks(pass.width)) {
            rms_norm(row, norm, pass.norm_eps, out);
        }
    }

    fn hands_on_normed(&self) -> bool {
        true
    }
}
