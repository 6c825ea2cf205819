//! What lies where in the device's memory: the arithmetic before, and the allocations after.
//!
//! Owns the list of everything that takes memory for as long as a model is loaded, so that `--vram` bounds it
//! (DESIGN I1): nothing is allocated later. It must not know who reads or writes what.

use std::collections::BTreeMap;

use super::backend::row_bytes;
use super::driver::{DevicePtr, Driver, GpuError, Lane};
use super::staging::Staging;
use crate::backend::{REGS, Reg};
use crate::kernels::{Format, RowLayout};
use crate::kv::KvShape;
use crate::models::{AttentionSpec, Blueprint, ModelOptions};
use crate::weights::{DenseStore, Matrix};

/// Alignment of everything.
const ALIGN: u64 = 256;
/// Rows of logits that are made at once at most.
const PRODUCT_ROWS: usize = 16;
/// Bytes of attention scores that are there at once, for more than one row.
const SCORE_BYTES: usize = 64 << 20;
/// Positions that scores are padded to.
const SCORE_ALIGN: usize = 32;
/// What a driver takes for itself, and what its allocator rounds up.
const DRIVER_BYTES: u64 = 32 << 20;
/// Registers that matrices read.
const INPUTS: [Reg; 6] = [Reg::Normed, Reg::QLow, Reg::Heads, Reg::Ahead, Reg::Gate, Reg::Hidden];

/// A piece of the device's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Where it starts.
    pub at: DevicePtr,
    /// How long it is.
    pub bytes: u64,
}

/// Sizes of everything but experts.
#[derive(Clone, Debug)]
pub struct LayoutPlan {
    /// Positions of the cache.
    pub context_len: usize,
    /// Rows of the cache.
    pub kv: KvShape,
    /// By matrix number; 0 for one that is not needed here.
    matrices: Vec<u64>,
    vectors: Vec<usize>,
    regs: Vec<(Reg, u64)>,
    quantized: Vec<(Reg, u64)>,
    product: u64,
    scores: u64,
    score_stride: usize,
    latent: [u64; 4],
    keys: u64,
    values: u64,
    blocks: usize,
    hidden_up: u64,
    angles: u64,
    staged: usize,
    formats: Vec<Format>,
}

impl LayoutPlan {
    /// For passes of up to `options.rows_max` rows.
    pub fn new(blueprint: &Blueprint, options: &ModelOptions) -> LayoutPlan {
        let (spec, rows) = (&blueprint.spec, options.rows_max);
        let scratch = options.scratch(blueprint);
        let floats = |values: usize| (values * size_of::<f32>()) as u64;
        let mut matrices: Vec<u64> = blueprint.dense.matrix_bytes().collect();
        if blueprint.embedding != blueprint.output {
            // Rows of the embedding are looked up on the host.
            matrices[blueprint.embedding.id()] = 0;
        }
        let moe = spec.moe.as_ref();
        let experts = moe.map_or(0, |moe| moe.experts);
        let product = floats((spec.vocab * PRODUCT_ROWS.min(rows)).max(experts * rows));
        let score_stride = options.context_len.next_multiple_of(SCORE_ALIGN);
        let heads = spec.attention.heads();
        let score_rows = (SCORE_BYTES / floats(heads * score_stride) as usize).clamp(1, rows);
        let rows_of = |layout: Option<RowLayout>| {
            let bytes = options.kv.heads * options.context_len * layout.map_or(0, RowLayout::bytes);
            bytes as u64
        };
        let quantized = INPUTS.map(|reg| {
            let (rows, width) = scratch.shape(reg);
            (reg, (rows * row_bytes(width)) as u64)
        });
        let mut formats: Vec<Format> = blueprint.dense.formats().collect();
        formats.extend(blueprint.expert_formats());
        formats.sort_by_key(|format| format.name());
        formats.dedup();
        let used = moe.map_or(0, |moe| moe.used);
        LayoutPlan {
            context_len: options.context_len,
            kv: options.kv,
            matrices,
            vectors: blueprint.dense.vector_lens().collect(),
            regs: REGS.map(|reg| (reg, floats(scratch.values(reg)))).to_vec(),
            quantized: quantized.to_vec(),
            product,
            scores: floats(score_rows * heads * score_stride),
            score_stride,
            latent: latent(spec.attention, spec.rope.dim, rows),
            keys: rows_of(Some(options.kv.key)),
            values: rows_of(options.kv.value),
            blocks: spec.blocks,
            hidden_up: floats(scratch.values(Reg::Hidden)),
            angles: floats(rows * spec.rope.dim.div_ceil(2)),
            staged: size_of::<f32>() * rows * used.max(1),
            formats,
        }
    }

    /// Formats that kernels are needed for.
    pub fn formats(&self) -> Vec<Format> {
        self.formats.clone()
    }

    /// The largest thing that is staged.
    pub fn staging_bytes(&self) -> usize {
        self.staged
    }

    /// Host memory that results are copied to.
    pub fn mirror_bytes(&self) -> usize {
        let residual = self.regs.iter().filter(|(reg, _)| matches!(reg, Reg::Residual | Reg::Normed));
        residual.map(|(_, bytes)| *bytes).fold(self.product, u64::max) as usize
    }

    /// Pinned host memory beside experts.
    pub fn host_bytes(&self) -> u64 {
        Staging::ring_bytes(self.staged) + self.mirror_bytes() as u64
    }

    /// Dense weights on the device.
    pub fn dense_bytes(&self) -> u64 {
        let vectors = self.vectors.iter().map(|len| align((len * size_of::<f32>()) as u64));
        self.matrices.iter().map(|bytes| align(*bytes)).chain(vectors).sum()
    }

    /// The cache on the device.
    pub fn kv_bytes(&self) -> u64 {
        self.blocks as u64 * (align(self.keys) + align(self.values))
    }

    /// Everything else on the device, experts apart.
    pub fn scratch_bytes(&self) -> u64 {
        let named = self.regs.iter().chain(&self.quantized).map(|(_, bytes)| align(*bytes));
        let ring = Staging::ring_bytes(self.staged);
        let rest = [self.product, self.scores, self.hidden_up, self.angles, self.angles, ring];
        named.chain(rest.into_iter().chain(self.latent).map(align)).sum::<u64>() + DRIVER_BYTES
    }
}

/// What absorbed latent attention works in: absorbed queries, whole queries, what they find, and the quantized rows
/// of either projection.
fn latent(spec: AttentionSpec, rope: usize, rows: usize) -> [u64; 4] {
    let AttentionSpec::Mla { heads, kv_lora, nope, .. } = spec else { return [0; 4] };
    let floats = |width: usize| (rows * heads * width * size_of::<f32>()) as u64;
    let quantized = (rows * heads * row_bytes(nope.max(kv_lora))) as u64;
    [floats(kv_lora), floats(kv_lora + rope), floats(kv_lora), quantized]
}

/// Matrix kernels read up to 3 bytes beyond a matrix.
fn align(bytes: u64) -> u64 {
    if bytes == 0 { 0 } else { (bytes + 3).next_multiple_of(ALIGN) }
}

/// Everything but experts, in place.
pub struct Layout {
    /// By matrix number; null for one that is not needed here.
    pub matrices: Vec<DevicePtr>,
    /// By vector number.
    pub vectors: Vec<DevicePtr>,
    /// Rows of the pass.
    pub regs: BTreeMap<Reg, Place>,
    /// Their quantized copies.
    pub quantized: BTreeMap<Reg, Place>,
    /// Products that the host reads.
    pub product: Place,
    /// Attention scores.
    pub scores: Place,
    /// Values from one (row, head) pair's scores to the next.
    pub score_stride: usize,
    /// Absorbed queries, `[rows, heads, kv_lora]`.
    pub absorbed: Place,
    /// Whole latent queries, `[rows, heads, kv_lora + rope]`.
    pub query: Place,
    /// What latent attention found, `[rows, heads, kv_lora]`.
    pub narrow: Place,
    /// Quantized rows of single heads.
    pub head_rows: Place,
    /// By block.
    pub keys: Vec<DevicePtr>,
    /// By block; null where values are the front of keys.
    pub values: Vec<DevicePtr>,
    /// Up products of routed experts.
    pub hidden_up: Place,
    /// Cosines and sines of the pass.
    pub angles: [Place; 2],
    row_bytes: Vec<u64>,
}

impl Layout {
    /// Allocates everything and uploads the weights.
    ///
    /// # Errors
    /// No memory, a device that fails.
    pub fn new(driver: &mut dyn Driver, plan: &LayoutPlan, dense: &DenseStore) -> Result<Layout, GpuError> {
        let [absorbed, query, narrow, head_rows] = plan.latent;
        let mut alloc = |what, bytes| place(driver, what, bytes);
        let regs = plan
            .regs
            .iter()
            .map(|(reg, bytes)| Ok((*reg, alloc("rows", *bytes)?)))
            .collect::<Result<_, _>>()?;
        let quantized = plan
            .quantized
            .iter()
            .map(|(reg, bytes)| Ok((*reg, alloc("quantized rows", *bytes)?)))
            .collect::<Result<_, _>>()?;
        let mut rows = |bytes| -> Result<Vec<DevicePtr>, GpuError> {
            (0..plan.blocks).map(|_| Ok(alloc("the key/value cache", bytes)?.at)).collect()
        };
        let (keys, values) = (rows(plan.keys)?, rows(plan.values)?);
        let layout = Layout {
            regs,
            quantized,
            keys,
            values,
            product: alloc("logits", plan.product)?,
            scores: alloc("attention scores", plan.scores)?,
            score_stride: plan.score_stride,
            absorbed: alloc("latent attention", absorbed)?,
            query: alloc("latent attention", query)?,
            narrow: alloc("latent attention", narrow)?,
            head_rows: alloc("latent attention", head_rows)?,
            hidden_up: alloc("experts' rows", plan.hidden_up)?,
            angles: [alloc("angles", plan.angles)?, alloc("angles", plan.angles)?],
            matrices: upload_matrices(driver, plan, dense)?,
            vectors: upload_vectors(driver, plan, dense)?,
            row_bytes: plan.matrices.clone(),
        };
        Ok(layout)
    }

    /// Rows whose scores fit at once.
    pub fn score_rows(&self, heads: usize) -> usize {
        (self.scores.bytes as usize / (heads * self.score_stride * size_of::<f32>())).max(1)
    }

    /// Bytes of one row of a matrix.
    pub fn row_bytes(&self, matrix: &Matrix) -> usize {
        self.row_bytes[matrix.id()] as usize / matrix.rows
    }
}

fn place(driver: &mut dyn Driver, what: &'static str, bytes: u64) -> Result<Place, GpuError> {
    let at = if bytes == 0 { 0 } else { driver.alloc(what, align(bytes))? };
    Ok(Place { at, bytes })
}

fn upload_matrices(
    driver: &mut dyn Driver,
    plan: &LayoutPlan,
    dense: &DenseStore,
) -> Result<Vec<DevicePtr>, GpuError> {
    let upload = |(id, bytes): (usize, &u64)| {
        let place = place(driver, "dense weights", *bytes)?;
        if *bytes > 0 {
            let from = dense.matrix_at(id);
            // SAFETY: the memory was allocated for it; pageable memory is copied at the call.
            unsafe { driver.upload(Lane::Compute, place.at, from.as_ptr(), from.len()) }?;
        }
        Ok(place.at)
    };
    plan.matrices.iter().enumerate().map(upload).collect()
}

fn upload_vectors(
    driver: &mut dyn Driver,
    plan: &LayoutPlan,
    dense: &DenseStore,
) -> Result<Vec<DevicePtr>, GpuError> {
    let upload = |(id, len): (usize, &usize)| {
        let place = place(driver, "dense weights", (len * size_of::<f32>()) as u64)?;
        let from = dense.vector_at(id);
        // SAFETY: as above.
        unsafe { driver.upload(Lane::Compute, place.at, from.as_ptr().cast(), size_of_val(from)) }?;
        Ok(place.at)
    };
    plan.vectors.iter().enumerate().map(upload).collect()
}
