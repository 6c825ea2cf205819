//! Where a model's routed experts lie in its file, and their shapes.
//!
//! Owns the mapping from the three layouts to the extents that `offload` reads: stacked `ffn_*_exps`,
//! one tensor for all experts of a layer; the older `ffn_gate.N`, one tensor an expert; and our own
//! packed records (`packed.rs`). Everything behind [`expert_layers`] sees extents and shapes alone.

use std::ops::Range;

use drafthorse_offload::{ExpertIndex, Extent, PARTS};

use crate::gguf::{BlockType, Gguf, TensorInfo};
use crate::kernels::Format;
use crate::layers::{ExpertShape, PartShape};
use crate::weights::check_matrix;

use super::LoadError;
use super::packed::{self, PackedBlock, PackedExperts};
use super::spec::{ModelSpec, MoeSpec};

/// Most routed experts of a whole model (Kimi-K2 has 23,040): tables are kept of every one.
const EXPERTS_TOTAL_MAX: usize = 1 << 17;

const PART_NAMES: [&str; PARTS] = ["gate", "up", "down"];

/// Extents and shapes of all routed experts.
pub struct ExpertLayers {
    /// Extents by (layer, expert).
    pub index: ExpertIndex,
    /// Shapes by layer.
    pub shapes: Vec<ExpertShape>,
    /// Names of the tensors they lie in.
    pub tensors: Vec<String>,
}

impl ExpertLayers {
    /// Experts of each layer.
    pub fn experts(&self) -> Vec<u32> {
        (0..self.index.layers() as u32).map(|layer| self.index.experts(layer) as u32).collect()
    }

    /// Bytes of `used` experts in every layer: what a token reads when nothing is resident.
    pub fn cycle_bytes(&self, used: u64) -> u64 {
        self.shapes.iter().map(|shape| shape.bytes() * used).sum()
    }
}

/// Finds the experts of every routed block; `None` for a dense model.
pub fn expert_layers(gguf: &Gguf, spec: &ModelSpec) -> Result<Option<ExpertLayers>, LoadError> {
    let Some(moe) = spec.moe else { return Ok(None) };
    let total = (spec.blocks - spec.leading_dense) * moe.experts;
    if total > EXPERTS_TOTAL_MAX {
        return Err(LoadError::BadKey {
            path: gguf.metadata.file().into(),
            key: format!("{}.expert_count", spec.architecture),
            problem: format!("{total} routed experts in all layers, the limit is {EXPERTS_TOTAL_MAX}"),
        });
    }
    match PackedExperts::read(gguf)? {
        Some(packed) => packed_layers(gguf, (spec, &moe), packed).map(Some),
        None => plain_layers(gguf, (spec, &moe), spec.leading_dense..spec.blocks).map(Some),
    }
}

/// Experts of `blocks` in tensors as GGUF converters write them.
pub fn plain_layers(
    gguf: &Gguf,
    (spec, moe): (&ModelSpec, &MoeSpec),
    blocks: Range<usize>,
) -> Result<ExpertLayers, LoadError> {
    let mut extents = Vec::new();
    let mut shapes = Vec::new();
    let mut tensors = Vec::new();
    for block in blocks {
        let finder = Finder { gguf, block, moe, width: spec.width };
        let parts = [finder.part(0)?, finder.part(1)?, finder.part(2)?];
        tensors.extend(parts.iter().flat_map(|part| part.tensors.iter().cloned()));
        shapes.push(ExpertShape { gate: parts[0].shape, up: parts[1].shape, down: parts[2].shape });
        extents.push((0..moe.experts).map(|e| [0, 1, 2].map(|part: usize| parts[part].extents[e])).collect());
    }
    Ok(ExpertLayers { index: ExpertIndex::new(extents)?, shapes, tensors })
}

/// Experts in records; shapes follow from the metadata, and lengths must agree with them.
fn packed_layers(
    gguf: &Gguf,
    (spec, moe): (&ModelSpec, &MoeSpec),
    packed: PackedExperts,
) -> Result<ExpertLayers, LoadError> {
    let numbers = packed.blocks.iter().map(|block| block.parts.block);
    if !numbers.eq(spec.leading_dense..spec.blocks) {
        let problem = format!("not the blocks {} to {}", spec.leading_dense, spec.blocks - 1);
        return Err(packed::bad_key(gguf, packed::BLOCKS_KEY, problem));
    }
    let shapes = packed.blocks.iter().map(|block| packed_shape(gguf, (spec, moe), block));
    let shapes = shapes.collect::<Result<Vec<_>, _>>()?;
    let extents = |block: &PackedBlock| (0..block.experts()).map(|e| block.extents(e)).collect();
    let index = ExpertIndex::new(packed.blocks.iter().map(extents).collect())?;
    let tensors = packed.blocks.iter().map(|block| packed::tensor_name(block.parts.block)).collect();
    let checksums = packed.blocks.into_iter().map(|block| block.checksums).collect();
    Ok(ExpertLayers { index: index.with_checksums(gguf.files.clone(), checksums)?, shapes, tensors })
}

fn packed_shape(
    gguf: &Gguf,
    (spec, moe): (&ModelSpec, &MoeSpec),
    block: &PackedBlock,
) -> Result<ExpertShape, LoadError> {
    let tensor = packed::tensor_name(block.parts.block);
    if block.experts() != moe.experts {
        let (path, got) = (gguf.metadata.file().into(), format!("{} experts", block.experts()));
        return Err(LoadError::Shape { path, tensor, got, want: moe.experts.to_string() });
    }
    let shape = |part: usize| {
        let (rows, cols) = part_dims(spec.width, moe, part);
        let (block_type, bytes) = (block.parts.types[part], block.parts.bytes[part]);
        let unsupported = || LoadError::UnsupportedQuant {
            path: gguf.metadata.file().into(),
            tensor: tensor.clone(),
            block_type,
        };
        let format = Format::of(block_type).ok_or_else(unsupported)?;
        if matrix_bytes(block_type, rows, cols) != Some(bytes) {
            let name = PART_NAMES[part];
            let problem = format!("{bytes} bytes of {name} in {tensor} are no {block_type} [{cols}, {rows}]");
            return Err(packed::bad_key(gguf, packed::PART_BYTES_KEY, problem));
        }
        Ok(PartShape { format, rows, cols })
    };
    Ok(ExpertShape { gate: shape(0)?, up: shape(1)?, down: shape(2)? })
}

/// Rows and columns of gate and up (`[inner, width]`) or down (`[width, inner]`).
fn part_dims(width: usize, moe: &MoeSpec, part: usize) -> (usize, usize) {
    if part == 2 { (width, moe.width) } else { (moe.width, width) }
}

/// Bytes of a matrix of whole blocks a row.
fn matrix_bytes(block_type: BlockType, rows: usize, cols: usize) -> Option<u64> {
    block_type.bytes_for(cols as u64)?.checked_mul(rows as u64)
}

/// One part (gate, up or down) of every expert of a layer.
struct Part {
    shape: PartShape,
    extents: Vec<Extent>,
    tensors: Vec<String>,
}

/// Finds the experts of one block.
struct Finder<'a> {
    gguf: &'a Gguf,
    block: usize,
    moe: &'a MoeSpec,
    width: usize,
}

impl Finder<'_> {
    /// Shape and extents of part `part` of every expert.
    fn part(&self, part: usize) -> Result<Part, LoadError> {
        let (rows, cols) = part_dims(self.width, self.moe, part);
        let stacked = format!("blk.{}.ffn_{}_exps.weight", self.block, PART_NAMES[part]);
        if let Some(info) = self.gguf.tensor(&stacked) {
            let format = check_matrix(self.gguf, info, &[cols, rows, self.moe.experts])?;
            let each = info.bytes / self.moe.experts as u64;
            let at = |e: usize| extent(info, e as u64 * each, each);
            let shape = PartShape { format, rows, cols };
            let extents = (0..self.moe.experts).map(at).collect();
            return Ok(Part { shape, extents, tensors: vec![stacked] });
        }
        self.separate(part, rows, cols)
    }

    fn separate(&self, part: usize, rows: usize, cols: usize) -> Result<Part, LoadError> {
        let mut first = None;
        let mut extents = Vec::new();
        let mut tensors = Vec::new();
        for expert in 0..self.moe.experts {
            let name = format!("blk.{}.ffn_{}.{expert}.weight", self.block, PART_NAMES[part]);
            let info = self.gguf.tensor(&name).ok_or_else(|| LoadError::MissingTensor {
                path: self.gguf.metadata.file().into(),
                // The stacked name is what current files have.
                tensor: format!("blk.{}.ffn_{}_exps.weight (or {name})", self.block, PART_NAMES[part]),
            })?;
            let format = check_matrix(self.gguf, info, &[cols, rows])?;
            if *first.get_or_insert(format) != format {
                return Err(LoadError::UnsupportedQuant {
                    path: self.gguf.metadata.file().into(),
                    tensor: name,
                    block_type: info.block_type,
                });
            }
            extents.push(extent(info, 0, info.bytes));
            tensors.push(name);
        }
        let format = first.expect("invariant: a mixture has experts");
        Ok(Part { shape: PartShape { format, rows, cols }, extents, tensors })
    }
}

fn extent(info: &TensorInfo, offset: u64, len: u64) -> Extent {
    Extent { file: info.file, offset: info.offset + offset, len }
}
