//! What passes are computed by: the operations that layers are written in.
//!
//! Owns the trait [`Backend`] and the names of the rows it works on. A layer says what follows from what, never
//! where it happens: on the processor ([`CpuBackend`]) operations are done when they return, on a GPU they are
//! queued, and an error of one comes out where results are read. Every backend gives every value the same bits
//! (DESIGN I2). It must not know what rows stand for.

mod cpu;

use std::ops::Range;

use drafthorse_offload::{Lease, WarmStats};

use crate::gpu::{GpuError, GpuStats, WorkTime};
use crate::layers::{DenseFeedForward, Mla, RopeTable, WindowPlan};
use crate::models::{LoadError, Routed};
use crate::weights::{DenseStore, Matrix, Vector};

pub use cpu::CpuBackend;
pub(crate) use cpu::{down_bytes, inner_bytes};

/// Rows of a pass, by what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reg {
    /// Residual stream, `[rows, width]`.
    Residual,
    /// Normed input of a layer, `[rows, width]`.
    Normed,
    /// Output of a layer before it is added, `[rows, width]`.
    Branch,
    /// Low-rank query, `[rows, q_lora]`.
    QLow,
    /// Queries, `[rows, heads, key]`.
    Q,
    /// Keys, or MLA's latent row, `[rows, kv]`.
    K,
    /// Values, `[rows, kv]`.
    V,
    /// Attention output of all heads, `[rows, heads, value]`.
    Heads,
    /// Rows as a later layer's router would see them, `[rows, width]` (look-ahead).
    Ahead,
    /// Gate activations, `[rows, inner]`.
    Gate,
    /// Up activations, `[rows, inner]`.
    Up,
    /// Hidden values of routed experts, expert after expert, `[rows * used, expert inner]`.
    Hidden,
    /// Outputs of routed experts in the same order, `[rows * used, width]`.
    Routed,
}

/// All of them.
pub const REGS: [Reg; 13] = [
    Reg::Residual,
    Reg::Normed,
    Reg::Branch,
    Reg::QLow,
    Reg::Q,
    Reg::K,
    Reg::V,
    Reg::Heads,
    Reg::Ahead,
    Reg::Gate,
    Reg::Up,
    Reg::Hidden,
    Reg::Routed,
];

/// Attention of one block over the pass's rows: row `m` is position `start + m` and sees `start + m + 1`.
#[derive(Clone, Copy, Debug)]
pub struct AttendRows {
    /// The block's place in the cache.
    pub block: usize,
    /// Positions cached before.
    pub start: usize,
    /// Rows.
    pub rows: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Values of a key.
    pub key_dim: usize,
    /// Values of a value.
    pub value_dim: usize,
}

/// Heads to be rotated by the angles of their rows.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// Heads of a row.
    pub heads: usize,
    /// Values of a head.
    pub len: usize,
    /// The first value of a head that is rotated.
    pub offset: usize,
    /// A norm before, over as many of a head's first values as its weight has, and its epsilon.
    pub norm: Option<(&'a Vector, f32)>,
}

/// Rows to be normed one by one; each row's first values, as many as the weight has.
#[derive(Clone, Debug)]
pub struct Norm<'a> {
    /// Where the rows are.
    pub x: Reg,
    /// Which of them.
    pub rows: Range<usize>,
    /// Values from row to row, on both sides.
    pub stride: usize,
    /// The weight.
    pub weight: &'a Vector,
    /// RMS norm epsilon.
    pub eps: f32,
    /// Where results go, from its first row on; `x` for in place.
    pub out: Reg,
}

/// A part of a window's routed work, and what it is done with.
pub struct ExpertWork<'a, 'l> {
    /// Weights of the layer.
    pub weights: &'a Routed,
    /// Which rows go to which expert.
    pub plan: &'a WindowPlan,
    /// Rows of the pass (`Normed`).
    pub rows: usize,
    /// Experts that the backend has claimed: gate, up and down.
    pub claimed: &'a [u32],
    /// Experts whose gate and up are due, ascending.
    pub inner: &'a [u32],
    /// Experts whose down is due, ascending; their gate and up were computed before or are due as well.
    pub down: &'a [u32],
    /// The bytes of both.
    pub lease: &'a Lease<'l>,
    /// The shared expert, all rows of which go to `Branch`, where it is due.
    pub shared: Option<&'a DenseFeedForward>,
}

/// Fills rows on the host.
pub type Fill<'a> = dyn FnMut(&DenseStore, &mut [f32]) -> Result<(), LoadError> + 'a;

/// A pass's arithmetic, its weights and its key/value cache.
pub trait Backend: Send {
    /// Dense weights, as the host has them.
    fn dense(&self) -> &DenseStore;

    /// Positions cached.
    fn len(&self) -> usize;

    /// Whether none is.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets every position from `len` on.
    fn truncate(&mut self, len: usize);

    /// Makes `rows` more positions count, once all blocks have cached them.
    fn commit(&mut self, rows: usize);

    /// Counters of a GPU; `None` on the processor.
    fn gpu_stats(&self) -> Option<GpuStats> {
        None
    }

    /// What the GPU's kernels have taken since the last call, where they are profiled.
    fn take_gpu_times(&mut self) -> Vec<WorkTime> {
        Vec::new()
    }

    /// Forgets every expert in memory of its own, as a cold start would.
    fn drop_experts(&mut self) {}

    /// What has been learnt of all experts wanted, those in memory of its own included; `None` on the processor, where
    /// the expert cache's policy sees them all.
    fn warm_stats(&self) -> Option<WarmStats> {
        None
    }

    /// A pass begins, whose rows are rotated by these angles.
    fn begin(&mut self, table: RopeTable);

    /// Writes `len` values to `reg`.
    ///
    /// # Errors
    /// Those of `with`.
    fn fill(&mut self, reg: Reg, len: usize, with: &mut Fill<'_>) -> Result<(), LoadError>;

    /// Values of a register, once they are there.
    ///
    /// # Errors
    /// Of anything that was queued before.
    fn values(&mut self, reg: Reg, range: Range<usize>) -> Result<&[f32], GpuError>;

    /// `out = x / rms(x) * weight`, row by row.
    fn norm(&mut self, norm: Norm<'_>);

    /// `out += x`, the first `len` values.
    fn add(&mut self, x: Reg, out: Reg, len: usize);

    /// `out = a + b`, the first `len` values.
    fn sum(&mut self, a: Reg, b: Reg, out: Reg, len: usize);

    /// Adds `bias` to each of `rows` rows of its length.
    fn add_bias(&mut self, bias: &Vector, out: Reg, rows: usize);

    /// `out = x w^T` for every matrix, `x` being `rows` rows of their width.
    fn matmul(&mut self, x: Reg, rows: usize, products: &[(&Matrix, Reg)]);

    /// As [`Backend::matmul`] for rows `rows` of one product that the host needs: `out` is
    /// `[rows, w.rows]`.
    ///
    /// # Errors
    /// As [`Backend::values`].
    fn product(&mut self, x: Reg, rows: usize, w: &Matrix, out: &mut [f32]) -> Result<(), GpuError>;

    /// As [`Backend::product`] for a router's logits, which the host cannot go on without: a backend that works beside
    /// it computes the layer's shared expert meanwhile, from `Normed` to `Branch`, and returns whether it does.
    ///
    /// # Errors
    /// As [`Backend::values`].
    fn route(
        &mut self,
        rows: usize,
        router: &Matrix,
        _shared: Option<&DenseFeedForward>,
        logits: &mut [f32],
    ) -> Result<bool, GpuError> {
        self.product(Reg::Normed, rows, router, logits)?;
        Ok(false)
    }

    /// `gate = silu(gate) * up`, `rows` rows of `width` values.
    fn silu_mul(&mut self, gate: Reg, up: Reg, rows: usize, width: usize);

    /// Rotates queries (`Q`) and keys (`K`), and caches keys and values (`V`; none where the cache's values are the
    /// front of its keys, as of latent rows).
    fn place_heads(&mut self, at: &AttendRows, queries: Rotation<'_>, keys: Rotation<'_>);

    /// Grouped-query attention: from `Q` and the cache to `Heads`.
    fn attend(&mut self, at: &AttendRows);

    /// Absorbed latent attention: from `Q` (`[rows, heads, nope + rope]`, placed) and the cache to `Heads`.
    /// `at`'s widths are those of the cached row and of what stands for a value in it.
    fn attend_latent(&mut self, layer: &Mla, at: &AttendRows);

    /// Whether it has the expert in memory of its own, beyond the expert cache's.
    fn holds(&self, layer: u32, expert: u32) -> bool;

    /// A window of routed work begins, whose picks have these weights: which of its experts (ascending) are in memory
    /// of the backend's own; they stay there for this window.
    fn claim(&mut self, layer: u32, plan: &WindowPlan, weights: &[f32]) -> Vec<u32>;

    /// Computes what is due of a window: hidden values to `Hidden` and outputs to `Routed` by place, the shared
    /// expert to `Branch`.
    fn experts(&mut self, work: &ExpertWork<'_, '_>);

    /// Blocks until the bytes of the last [`Backend::experts`] may be overwritten: at once if the window `wants_room`,
    /// else when the next window has been routed.
    ///
    /// # Errors
    /// As [`Backend::values`].
    fn settle(&mut self, wants_room: bool) -> Result<(), GpuError>;

    /// Sets `Branch` to zero, the first `len` values.
    fn clear_branch(&mut self, len: usize);

    /// Ends the window: adds the outputs in `Routed`, weighted, in router order to `Branch`; of row `m` those at
    /// `plan.place[m * used..]`, rows being `width` values. `plan` and `weights` are those it began with.
    fn combine(&mut self, plan: &WindowPlan, weights: &[f32], used: usize, width: usize);
}
