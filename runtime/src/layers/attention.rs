//! Self-attention of one block: grouped-query and absorbed multi-head latent attention.
//!
//! Owns the order of projections, rope, cache write and attention; the backend does each. MLA is absorbed for
//! every pass, prefill included (DeepSeek-V2, arXiv 2405.04434, section 2.1.2): what is cached is the latent
//! row `[c_kv | k_rope]`; the key projection is applied to the query, the value projection to the result.

use crate::backend::{AttendRows, Norm, Reg, Rotation};
use crate::models::AttentionSpec;
use crate::weights::{Matrix, Vector};

use super::Pass;

/// Attention of one block.
pub enum Attention {
    /// Grouped-query attention.
    Gqa(Gqa),
    /// Multi-head latent attention.
    Mla(Mla),
}

impl Attention {
    /// Attends the pass's rows (`Normed`) and writes `[rows, width]` to `Branch`; appends the rows' keys and
    /// values to block `block` of the cache.
    pub fn forward(&self, pass: &mut Pass<'_>, block: usize) {
        match self {
            Attention::Gqa(layer) => layer.forward(pass, block),
            Attention::Mla(layer) => layer.forward(pass, block),
        }
    }
}

/// Weights of grouped-query attention.
pub struct Gqa {
    /// Shape.
    pub spec: AttentionSpec,
    /// `[heads * key, width]`.
    pub q: Matrix,
    /// `[kv_heads * key, width]`.
    pub k: Matrix,
    /// `[kv_heads * value, width]`.
    pub v: Matrix,
    /// `[width, heads * value]`.
    pub output: Matrix,
    /// Biases of q, k, v and the output, where the file has them.
    pub bias: [Option<Vector>; 4],
    /// Norms of query and key heads (`[key]`), where the architecture has them.
    pub qk_norm: Option<[Vector; 2]>,
    /// RMS norm epsilon.
    pub norm_eps: f32,
}

impl Gqa {
    fn forward(&self, pass: &mut Pass<'_>, block: usize) {
        let AttentionSpec::Gqa { heads, kv_heads, key_dim, value_dim, .. } = self.spec else { return };
        let (rows, start) = (pass.rows, pass.start);
        let at = AttendRows { block, start, rows, heads, kv_heads, key_dim, value_dim };
        let ops = &mut *pass.ops;
        let projections = [(&self.q, Reg::Q), (&self.k, Reg::K), (&self.v, Reg::V)];
        ops.matmul(Reg::Normed, rows, &projections);
        for (bias, (_, out)) in self.bias.iter().zip(projections) {
            bias.iter().for_each(|bias| ops.add_bias(bias, out, rows));
        }
        let norm = |which: usize| self.qk_norm.as_ref().map(|norms| (&norms[which], self.norm_eps));
        let rotation = |heads, which| Rotation { heads, len: key_dim, offset: 0, norm: norm(which) };
        ops.place_heads(&at, rotation(heads, 0), rotation(kv_heads, 1));
        ops.attend(&at);
        ops.matmul(Reg::Heads, rows, &[(&self.output, Reg::Branch)]);
        self.bias[3].iter().for_each(|bias| ops.add_bias(bias, Reg::Branch, rows));
    }
}

/// Weights of multi-head latent attention.
pub struct Mla {
    /// Shape.
    pub spec: AttentionSpec,
    /// Rotated width of a head.
    pub rope_dim: usize,
    /// Query projection.
    pub query: MlaQuery,
    /// `[kv_lora + rope, width]`.
    pub kv_a: Matrix,
    /// `[kv_lora]`.
    pub kv_a_norm: Vector,
    /// Key projection absorbed into the query: `heads` matrices `[kv_lora, nope]`, one after another.
    pub k_b: Matrix,
    /// Value projection: `heads` matrices `[value, kv_lora]`, placed as `v_b_rows` says.
    pub v_b: Matrix,
    /// First row of head 0's value matrix in `v_b`, and rows from one head's to the next.
    pub v_b_rows: (usize, usize),
    /// `[width, heads * value]`.
    pub output: Matrix,
    /// RMS norm epsilon.
    pub norm_eps: f32,
}

/// How queries are projected.
pub enum MlaQuery {
    /// One matrix `[heads * (nope + rope), width]` (V2-Lite).
    Direct(Matrix),
    /// `a` `[q_lora, width]`, norm `[q_lora]`, `b` `[heads * (nope + rope), q_lora]`.
    LowRank {
        /// Down projection.
        a: Matrix,
        /// Norm between.
        norm: Vector,
        /// Up projection.
        b: Matrix,
    },
}

impl Mla {
    fn forward(&self, pass: &mut Pass<'_>, block: usize) {
        let AttentionSpec::Mla { heads, kv_lora, nope, .. } = self.spec else { return };
        let (rows, row_len) = (pass.rows, self.kv_a.rows);
        self.project(pass);
        let (start, ops) = (pass.start, &mut *pass.ops);
        let at = AttendRows { block, start, rows, heads, kv_heads: 1, key_dim: row_len, value_dim: kv_lora };
        let norm = Some((&self.kv_a_norm, self.norm_eps));
        let latents = Rotation { heads: 1, len: row_len, offset: kv_lora, norm };
        let queries = Rotation { heads, len: nope + self.rope_dim, offset: nope, norm: None };
        ops.place_heads(&at, queries, latents);
        ops.attend_latent(self, &at);
        ops.matmul(Reg::Heads, rows, &[(&self.output, Reg::Branch)]);
    }

    /// Queries into `Q` and latent rows into `K`; both read the normed rows in one job.
    fn project(&self, pass: &mut Pass<'_>) {
        let (rows, ops) = (pass.rows, &mut *pass.ops);
        match &self.query {
            MlaQuery::Direct(matrix) => {
                ops.matmul(Reg::Normed, rows, &[(matrix, Reg::Q), (&self.kv_a, Reg::K)]);
            }
            MlaQuery::LowRank { a, norm, b } => {
                ops.matmul(Reg::Normed, rows, &[(a, Reg::QLow), (&self.kv_a, Reg::K)]);
                ops.norm(Norm {
                    x: Reg::QLow,
                    rows: 0..rows,
                    stride: a.rows,
                    weight: norm,
                    eps: self.norm_eps,
                    out: Reg::QLow,
                });
                ops.matmul(Reg::QLow, rows, &[(b, Reg::Q)]);
            }
        }
    }
}
