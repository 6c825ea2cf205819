//! `eagle3`: EAGLE-3 heads (arXiv 2503.01840), in files as llama.cpp's converter writes them.
//!
//! Three hidden states of the target (a low, a middle and a high one) are fused by `fc`; one block attends
//! over `[token embedding | state]`, each normed, and a classifier over a reduced vocabulary reads the result;
//! `d2t` gives the target's id of each of its rows. The state a row hands on is the one before the output
//! norm. Optional: own embedding, own classifier, `norm_before_residual`, `norm_before_fc`.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::Arc;

use drafthorse_draft::TokenId;

use crate::gguf::{BlockType, Gguf, TensorInfo};
use crate::kernels::{Input, matmul, rms_norm};
use crate::layers::{Scratch, sized};
use crate::weights::{DenseStore, Matrix, Vector};

use super::assemble::{Assembler, Block, refuse_unused};
use super::head::{HeadBlueprint, HeadInput, RowPass};
use super::spec::{Keys, ModelSpec, NORM_EPS, RopeLayout, WIDTH_MAX, gqa, rope};
use super::{LoadError, head_error};

/// `general.architecture` of such files.
pub const EAGLE3: &str = "eagle3";
/// Hidden states of the target that are fused.
const TAPS: usize = 3;
/// The target's id of each row of the classifier.
const MAP_TENSOR: &str = "d2t";

/// Weights in front of the block.
struct Eagle3Input {
    /// `[width, 3 * target width]`.
    fuse: Matrix,
    /// Norm of the three states together, `[3 * target width]`.
    fuse_norm: Option<Vector>,
    /// `[width]`.
    hidden_norm: Vector,
    /// Whether the normed state is what the block adds to.
    residual_is_normed: bool,
}

/// Reads the blueprint of a head trained for `target`.
///
/// # Errors
/// A file that is unsound, or made for another target.
pub fn eagle3_head(gguf: &Gguf, target: &ModelSpec) -> Result<HeadBlueprint, LoadError> {
    let keys = Keys::new(gguf, EAGLE3);
    let spec = spec(&keys, target)?;
    let taps = taps(&keys, target)?;
    let mut dense = DenseStore::new(gguf);
    let (width, vocab, fused) = (spec.width, spec.vocab, TAPS * target.width);
    let fuse = dense.matrix_of("fc.weight", width, fused)?;
    let fuse_norm = match keys.flag("norm_before_fc")?.unwrap_or(false) {
        true => Some(dense.vector_of("enc.output_norm.weight", fused)?),
        false => None,
    };
    let embedding = dense.optional_matrix_of("token_embd.weight", vocab, width)?;
    let (output, to_target) = output(gguf, &mut dense, &spec)?;
    if width != target.width && (embedding.is_none() || output.is_none()) {
        let problem = format!(
            "a head of width {width} without its own token_embd.weight and output.weight needs a target of \
             that width; this one's is {}",
            target.width
        );
        return Err(head_error(gguf, problem));
    }
    let output_norm = Some(dense.vector_of("output_norm.weight", width)?);
    let rope_factors = dense.optional_vector("rope_freqs.weight", spec.rope.dim / 2)?;
    let mut parts =
        Assembler { spec: &spec, dense: &mut dense, index: 0, first_routed: 1, attention_width: 2 * width };
    let hidden_norm = parts.vector("attn_norm_2.weight", width)?;
    let block = parts.block(None)?;
    let input = Eagle3Input {
        fuse,
        fuse_norm,
        hidden_norm,
        residual_is_normed: keys.flag("norm_before_residual")?.unwrap_or(false),
    };
    refuse_unused(gguf, &spec, &dense, &[MAP_TENSOR.to_owned()])?;
    Ok(HeadBlueprint {
        spec,
        dense: Arc::new(dense),
        block,
        experts: None,
        input: Box::new(input),
        embedding,
        streamed: None,
        output_norm,
        output,
        rope_factors,
        to_target,
        taps,
        feature_len: fused,
    })
}

/// Shape of the one block; the vocabulary is the target's.
fn spec(keys: &Keys<'_>, target: &ModelSpec) -> Result<ModelSpec, LoadError> {
    let blocks = keys.size("block_count", WIDTH_MAX)?;
    if blocks != 1 {
        return Err(keys.invalid("block_count", format!("{blocks}: such a head has one block")));
    }
    let width = keys.size("embedding_length", WIDTH_MAX)?;
    let made_for = keys.optional_size("target_hidden_size", WIDTH_MAX)?.unwrap_or(width);
    if made_for != target.width {
        let problem = format!("{made_for}, but the target's hidden states have {} values", target.width);
        return Err(keys.invalid("target_hidden_size", problem));
    }
    let norm_eps = keys.float(NORM_EPS)?.filter(|eps| *eps >= 0.0).ok_or_else(|| keys.missing(NORM_EPS))?;
    let attention = gqa(keys, (width, keys.size("attention.head_count", WIDTH_MAX)?), false)?;
    Ok(ModelSpec {
        architecture: EAGLE3,
        vocab: target.vocab,
        width,
        blocks: 1,
        context_train: target.context_train,
        norm_eps,
        rope: rope(keys, attention.key_dim(), RopeLayout::Interleaved)?,
        attention,
        prediction_heads: 0,
        leading_dense: 0,
        moe: None,
        notices: Vec::new(),
    })
}

/// Which states are fused: inputs of the target's blocks, their number naming its final state.
fn taps(keys: &Keys<'_>, target: &ModelSpec) -> Result<Vec<usize>, LoadError> {
    let layers = keys.integers("target_layers")?.ok_or_else(|| keys.missing("target_layers"))?;
    if layers.len() != TAPS {
        return Err(keys.invalid("target_layers", format!("{} layers, not {TAPS}", layers.len())));
    }
    let tap = |layer: &u64| match usize::try_from(*layer) {
        Ok(tap) if tap <= target.blocks => Ok(tap),
        _ => {
            let problem = format!("layer {layer}, but the target has {} blocks", target.blocks);
            Err(keys.invalid("target_layers", problem))
        }
    };
    layers.iter().map(tap).collect()
}

/// The own classifier, and the target's ids of its rows.
fn output(
    gguf: &Gguf,
    dense: &mut DenseStore,
    spec: &ModelSpec,
) -> Result<(Option<Matrix>, Option<Vec<TokenId>>), LoadError> {
    let map = gguf.tensor(MAP_TENSOR).map(|info| read_map(gguf, info, spec.vocab)).transpose()?;
    let rows = map.as_ref().map_or(spec.vocab, Vec::len);
    let output = match map.is_some() {
        true => Some(dense.matrix_of("output.weight", rows, spec.width)?),
        false => dense.optional_matrix_of("output.weight", rows, spec.width)?,
    };
    Ok((output, map))
}

/// Reads `d2t`: distinct ids of the target.
fn read_map(gguf: &Gguf, info: &TensorInfo, vocab: usize) -> Result<Vec<TokenId>, LoadError> {
    let bad = |problem: String| head_error(gguf, format!("tensor {MAP_TENSOR} {problem}"));
    let rows = info.dims.iter().product::<u64>();
    if info.block_type != BlockType::I64 || info.dims.len() != 1 || rows == 0 || rows > vocab as u64 {
        let got = format!("{} {:?}", info.block_type.name(), info.dims);
        return Err(bad(format!("is {got}, not I64 of 1 to {vocab} ids")));
    }
    let path = gguf.file_of(info).ok_or_else(|| bad("lies in no file".into()))?;
    let mut bytes = vec![0u8; info.bytes as usize];
    File::open(path)
        .and_then(|mut file| {
            file.seek(SeekFrom::Start(info.offset)).and_then(|_| file.read_exact(&mut bytes))
        })
        .map_err(|error| bad(format!("cannot be read: {error}")))?;
    let mut is_taken = vec![false; vocab];
    let ids = bytes.as_chunks::<8>().0.iter().enumerate().map(|(row, bytes)| {
        let id = i64::from_le_bytes(*bytes);
        let place = usize::try_from(id).ok().and_then(|id| is_taken.get_mut(id));
        let place =
            place.ok_or_else(|| bad(format!("row {row}: id {id} is outside the vocabulary of {vocab}")))?;
        if std::mem::replace(place, true) {
            return Err(bad(format!("row {row}: id {id} is there twice")));
        }
        Ok(id as TokenId)
    });
    ids.collect()
}

impl HeadInput for Eagle3Input {
    fn fuse(&self, pass: &mut RowPass<'_>, features: &[f32], hidden: &mut [f32]) {
        let cols = self.fuse.cols;
        let normed = self.fuse_norm.as_ref().map(|norm| {
            let mut normed = vec![0.0; features.len()];
            for (out, row) in normed.chunks_mut(cols).zip(features.chunks(cols)) {
                rms_norm(row, pass.dense.vector(norm), pass.norm_eps, out);
            }
            normed
        });
        let x = Input::new(normed.as_deref().unwrap_or(features), cols);
        matmul(pass.pool, pass.dense.matrix(&self.fuse), &x, hidden);
    }

    fn enter(&self, pass: &mut RowPass<'_>, block: &Block, inputs: (&[f32], &[f32]), scratch: &mut Scratch) {
        let len = pass.rows * pass.width;
        let normed = sized(&mut scratch.normed, 2 * len);
        pass.concat_normed([&block.attention_norm, &self.hidden_norm], inputs, normed);
        let residual = sized(&mut scratch.residual, len);
        if !self.residual_is_normed {
            residual.copy_from_slice(inputs.1);
            return;
        }
        for (out, row) in residual.chunks_mut(pass.width).zip(normed.chunks(2 * pass.width)) {
            out.copy_from_slice(&row[pass.width..]);
        }
    }

    fn hands_on_normed(&self) -> bool {
        false
    }
}
