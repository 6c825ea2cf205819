//! Working memory of a forward pass: allocated once, sized by the largest pass allowed.
//!
//! Owns the buffers and the arithmetic of their sizes, which the memory plan counts (DESIGN I1): passes
//! never grow them. What a pass allocates beside them (routes, quantized activations)
//! is small, freed at once, and counted here as well.

use crate::backend::{REGS, Reg};
use crate::kernels::quantized_bytes;
use crate::models::{AttentionSpec, ModelSpec};

use super::lookahead;
use super::pieces::Spaces;

/// A routed choice and its place in the window's plan, in values of 4 bytes.
const ROUTE_VALUES: usize = 4;

/// Buffers by what they hold; rows are those of the present pass.
#[derive(Default)]
pub struct Scratch {
    /// Residual stream, `[rows, width]`.
    pub residual: Vec<f32>,
    /// Normed input of a layer, `[rows, width]`.
    pub normed: Vec<f32>,
    /// Output of a layer before it is added, `[rows, width]`.
    pub branch: Vec<f32>,
    /// Low-rank query, `[rows, q_lora]`.
    pub q_low: Vec<f32>,
    /// Queries, `[rows, heads, key]`.
    pub q: Vec<f32>,
    /// Keys, or MLA's latent row, `[rows, kv]`.
    pub k: Vec<f32>,
    /// Values, `[rows, kv]`.
    pub v: Vec<f32>,
    /// Attention output of all heads, `[rows, heads, value]`.
    pub heads: Vec<f32>,
    /// Rows as a later layer's router would see them, `[rows, width]` (look-ahead).
    pub ahead: Vec<f32>,
    /// Gate activations, `[rows, inner]`.
    pub gate: Vec<f32>,
    /// Up activations, `[rows, inner]`.
    pub up: Vec<f32>,
    /// Hidden values of routed experts, expert after expert, `[rows * used, expert inner]`.
    pub hidden: Vec<f32>,
    /// Outputs of routed experts in the same order, `[rows * used, width]`.
    pub routed: Vec<f32>,
    /// What each thread attends in.
    pub spaces: Spaces,
}

impl Scratch {
    /// The buffer of a register.
    pub fn reg(&self, reg: Reg) -> &Vec<f32> {
        match reg {
            Reg::Residual => &self.residual,
            Reg::Normed => &self.normed,
            Reg::Branch => &self.branch,
            Reg::QLow => &self.q_low,
            Reg::Q => &self.q,
            Reg::K => &self.k,
            Reg::V => &self.v,
            Reg::Heads => &self.heads,
            Reg::Ahead => &self.ahead,
            Reg::Gate => &self.gate,
            Reg::Up => &self.up,
            Reg::Hidden => &self.hidden,
            Reg::Routed => &self.routed,
        }
    }

    /// The same, to be written.
    pub fn reg_mut(&mut self, reg: Reg) -> &mut Vec<f32> {
        match reg {
            Reg::Residual => &mut self.residual,
            Reg::Normed => &mut self.normed,
            Reg::Branch => &mut self.branch,
            Reg::QLow => &mut self.q_low,
            Reg::Q => &mut self.q,
            Reg::K => &mut self.k,
            Reg::V => &mut self.v,
            Reg::Heads => &mut self.heads,
            Reg::Ahead => &mut self.ahead,
            Reg::Gate => &mut self.gate,
            Reg::Up => &mut self.up,
            Reg::Hidden => &mut self.hidden,
            Reg::Routed => &mut self.routed,
        }
    }
}

/// `buffer` as exactly `len` values; contents are unspecified and must be overwritten.
pub fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Sizes of all buffers, in values.
#[derive(Clone, Copy, Debug)]
pub struct ScratchPlan<'a> {
    spec: &'a ModelSpec,
    threads: usize,
    rows: usize,
    width: usize,
    q_low: usize,
    q: usize,
    k: usize,
    v: usize,
    heads: usize,
    experts: usize,
    used: usize,
    inner: usize,
    /// Inner width of a routed expert.
    expert_inner: usize,
    /// Rows of the widest pass that is predicted.
    ahead: usize,
    /// Cosines and sines of a row.
    rope: usize,
}

impl<'a> ScratchPlan<'a> {
    /// Sizes for passes of up to `rows` rows; `inner` is the widest feed-forward row.
    pub fn new(spec: &'a ModelSpec, rows: usize, inner: usize, threads: usize) -> ScratchPlan<'a> {
        let (q_low, q, k, v, heads) = match spec.attention {
            AttentionSpec::Gqa { heads, kv_heads, key_dim, value_dim, .. } => {
                (0, heads * key_dim, kv_heads * key_dim, kv_heads * value_dim, heads * value_dim)
            }
            AttentionSpec::Mla { heads, q_lora, kv_lora, nope, value_dim, .. } => {
                let key = nope + spec.rope.dim;
                (q_lora.unwrap_or(0), heads * key, kv_lora + spec.rope.dim, 0, heads * value_dim)
            }
        };
        let moe = spec.moe.as_ref();
        ScratchPlan {
            spec,
            threads,
            rows,
            width: spec.width,
            q_low,
            q,
            k,
            v,
            heads,
            experts: moe.map_or(0, |m| m.experts),
            used: moe.map_or(0, |m| m.used),
            inner,
            expert_inner: moe.map_or(0, |m| m.width),
            ahead: moe.map_or(0, |_| rows.min(lookahead::ROWS_MAX)),
            rope: spec.rope.dim,
        }
    }

    /// Bytes of every buffer at its fullest, with the quantized copies of the widest activations.
    pub fn bytes(&self) -> u64 {
        let per_row = 3 * self.width
            + self.q_low
            + self.q
            + self.k
            + self.v
            + self.heads
            + 3 * self.experts
            + self.used * (self.width + self.expert_inner + ROUTE_VALUES)
            + 2 * self.inner
            + self.rope;
        // Quantized activations: what several matrices read, in up to two layouts at once, and what is made
        // from it meanwhile.
        let behind = quantized_bytes(self.inner)
            .max(self.used * quantized_bytes(self.expert_inner))
            .max(quantized_bytes(self.q_low));
        let both = 2 * quantized_bytes(self.width) + behind;
        let quantized = self.rows * both.max(quantized_bytes(self.heads));
        let ahead = self.ahead * self.width + self.ahead * (self.experts + self.used * ROUTE_VALUES);
        let attention = self.threads * Spaces::floats(self.spec);
        ((per_row * self.rows + ahead + attention) * size_of::<f32>() + quantized) as u64
    }

    /// Rows and their width that a register holds at most.
    pub fn shape(&self, reg: Reg) -> (usize, usize) {
        let rows = self.rows;
        match reg {
            Reg::Residual | Reg::Normed | Reg::Branch => (rows, self.width),
            Reg::QLow => (rows, self.q_low),
            Reg::Q => (rows, self.q),
            Reg::K => (rows, self.k),
            Reg::V => (rows, self.v),
            Reg::Heads => (rows, self.heads),
            Reg::Ahead => (self.ahead, self.width),
            Reg::Gate | Reg::Up => (rows, self.inner),
            Reg::Hidden => (rows * self.used, self.expert_inner),
            Reg::Routed => (rows * self.used, self.width),
        }
    }

    /// Values that a register holds at most.
    pub fn values(&self, reg: Reg) -> usize {
        let (rows, width) = self.shape(reg);
        rows * width
    }

    /// Reserves everything now, so that the plan is what is used.
    pub fn allocate(&self) -> Scratch {
        let mut scratch = Scratch::default();
        for reg in REGS {
            sized(scratch.reg_mut(reg), self.values(reg));
        }
        scratch.spaces = Spaces::new(self.spec, self.threads);
        scratch
    }
}
