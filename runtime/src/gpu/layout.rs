//! What lies where in the device's memory: the arithmetic before, and the allocations after.
//!
//! Owns the list of everything that takes memory for as long as a model is loaded, so that `--vram` bounds it
//! (DESIGN I1): nothing is allocated later. It must not know who reads or writes what.

use std::collections::BTreeMap;

use super::driver::{DevicePtr, Driver, GpuError, Lane};
use super::staging::Staging;
use crate::backend::{REGS, Reg};
use crate::kernels::{Format, RowLayout, quantized_bytes};
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
/// What drivers round large allocations up to; small ones share one.
const GRAIN: u64 = 2 << 20;
/// Lists of a window, each of a number for every pick: rows by place, places and weights by pick.
const WINDOW_LISTS: usize = 3;
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
    latent: [u64; 3],
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
            (reg, (rows * quantized_bytes(width)) as u64)
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
            staged: size_of::<f32>() * WINDOW_LISTS * rows * used.max(1),
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

    /// Host memory that results are copied or written to.
    pub fn mirror_bytes(&self) -> usize {
        let residual = self.regs.iter().filter(|(reg, _)| matches!(reg, Reg::Residual | Reg::Normed));
        residual.map(|(_, bytes)| *bytes).fold(self.product, u64::max) as usize
    }

    /// Pinned host memory beside experts.
    pub fn host_bytes(&self) -> u64 {
        Staging::ring_bytes(self.staged) + self.mirror_bytes() as u64
    }

    /// Dense weights on the device, one allocation.
    pub fn dense_bytes(&self) -> u64 {
        let vectors = self.vectors.iter().map(|len| align((len * size_of::<f32>()) as u64));
        grains(self.matrices.iter().map(|bytes| align(*bytes)).chain(vectors).sum())
    }

    /// The cache on the device, one allocation.
    pub fn kv_bytes(&self) -> u64 {
        grains(self.blocks as u64 * (align(self.keys) + align(self.values)))
    }

    /// Everything else on the device, experts apart.
    pub fn scratch_bytes(&self) -> u64 {
        let named = self.regs.iter().chain(&self.quantized).map(|(_, bytes)| *bytes);
        let ring = Staging::ring_bytes(self.staged);
        let rest = [self.product, self.scores, self.hidden_up, self.angles, self.angles, ring];
        let codebooks = GRAIN;
        named.chain(rest).chain(self.latent).map(grains).sum::<u64>() + codebooks
    }
}

/// What absorbed latent attention works in: queries, what they find, and the quantized rows of either projection.
fn latent(spec: AttentionSpec, rope: usize, rows: usize) -> [u64; 3] {
    let AttentionSpec::Mla { heads, kv_lora, nope, .. } = spec else { return [0; 3] };
    let floats = |width: usize| (rows * heads * width * size_of::<f32>()) as u64;
    let quantized = (rows * heads * quantized_bytes(nope.max(kv_lora))) as u64;
    [floats(kv_lora + rope), floats(kv_lora), quantized]
}

/// Matrix kernels read up to 3 bytes beyond a matrix.
fn align(bytes: u64) -> u64 {
    if bytes == 0 { 0 } else { (bytes + 3).next_multiple_of(ALIGN) }
}

/// As the driver's allocator counts.
fn grains(bytes: u64) -> u64 {
    if bytes < GRAIN / 2 { align(bytes) } else { align(bytes).next_multiple_of(GRAIN) }
}

/// An allocation that is handed out from the front.
struct Slab {
    at: DevicePtr,
    end: DevicePtr,
}

impl Slab {
    fn new(driver: &mut dyn Driver, what: &'static str, bytes: u64) -> Result<Slab, GpuError> {
        let at = driver.alloc(what, bytes.max(1))?;
        Ok(Slab { at, end: at + bytes })
    }

    /// The next `bytes`; null for none.
    fn take(&mut self, bytes: u64) -> DevicePtr {
        let at = if bytes == 0 { 0 } else { self.at };
        self.at += align(bytes);
        assert!(self.at <= self.end, "invariant: it was made for the sum");
        at
    }
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
    /// Latent queries, `[rows, heads, kv_lora + rope]`.
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
        let [query, narrow, head_rows] = plan.latent;
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
        let [product, scores] = [alloc("logits", plan.product)?, alloc("attention scores", plan.scores)?];
        let latent = [query, narrow, head_rows].map(|bytes| alloc("latent attention", bytes));
        let [query, narrow, head_rows] = latent;
        let hidden_up = alloc("experts' rows", plan.hidden_up)?;
        let angles = [alloc("angles", plan.angles)?, alloc("angles", plan.angles)?];
        let mut cache = Slab::new(driver, "the key/value cache", plan.kv_bytes())?;
        let mut rows = |bytes| -> Vec<DevicePtr> { (0..plan.blocks).map(|_| cache.take(bytes)).collect() };
        let (keys, values) = (rows(plan.keys), rows(plan.values));
        let mut weights = Slab::new(driver, "dense weights", plan.dense_bytes())?;
        let layout = Layout {
            regs,
            quantized,
            keys,
            values,
            product,
            scores,
            score_stride: plan.score_stride,
            query: query?,
            narrow: narrow?,
            head_rows: head_rows?,
            hidden_up,
            angles,
            matrices: upload_matrices(driver, &mut weights, (plan, dense))?,
            vectors: upload_vectors(driver, &mut weights, (plan, dense))?,
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
    slab: &mut Slab,
    (plan, dense): (&LayoutPlan, &DenseStore),
) -> Result<Vec<DevicePtr>, GpuError> {
    let upload = |(id, bytes): (usize, &u64)| {
        let at = slab.take(*bytes);
        if *bytes > 0 {
            let from = dense.matrix_at(id);
            // SAFETY: the place was made for it; memory that is not pinned is copied at the call.
            unsafe { driver.upload(Lane::Compute, at, from.as_ptr(), from.len()) }?;
        }
        Ok(at)
    };
    plan.matrices.iter().enumerate().map(upload).collect()
}

fn upload_vectors(
    driver: &mut dyn Driver,
    slab: &mut Slab,
    (plan, dense): (&LayoutPlan, &DenseStore),
) -> Result<Vec<DevicePtr>, GpuError> {
    let upload = |(id, len): (usize, &usize)| {
        let at = slab.take((len * size_of::<f32>()) as u64);
        let from = dense.vector_at(id);
        // SAFETY: as above.
        unsafe { driver.upload(Lane::Compute, at, from.as_ptr().cast(), size_of_val(from)) }?;
        Ok(at)
    };
    plan.vectors.iter().enumerate().map(upload).collect()
}
