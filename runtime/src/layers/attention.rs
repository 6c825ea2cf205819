//! Self-attention of one block: grouped-query and absorbed multi-head latent attention.
//!
//! Owns projections, rope and the cache write. What a (row, head) pair gets depends on its query and the
//! cache alone ([`AttendSpace`](crate::kernels::AttendSpace)), so results are row-invariant. MLA is absorbed
//! for every pass, prefill included (DeepSeek-V2, arXiv 2405.04434, section 2.1.2): what is cached is the
//! latent row `[c_kv | k_rope]`; the key projection is applied to the query, the value projection to the
//! result.

use crate::kernels::{Input, KvView, MatrixRef, SharedOut, matmul, matmul_group, matmul_serial, rms_norm};
use crate::models::AttentionSpec;
use crate::weights::{Matrix, Vector};

use super::ffn::add_bias;
use super::pieces::{Piece, Pieces, Space};
use super::scratch::sized;
use super::{Pass, Scratch};

/// Attention of one block.
pub enum Attention {
    /// Grouped-query attention.
    Gqa(Gqa),
    /// Multi-head latent attention.
    Mla(Mla),
}

impl Attention {
    /// Attends the pass's rows (`scratch.normed`) and writes `[rows, width]` to `scratch.branch`;
    /// appends the rows' keys and values to block `block` of the cache.
    pub fn forward(&self, pass: &mut Pass<'_>, block: usize, scratch: &mut Scratch) {
        match self {
            Attention::Gqa(layer) => layer.forward(pass, block, scratch),
            Attention::Mla(layer) => layer.forward(pass, block, scratch),
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
    fn forward(&self, pass: &mut Pass<'_>, block: usize, scratch: &mut Scratch) {
        let AttentionSpec::Gqa { heads, kv_heads, key_dim, value_dim, .. } = self.spec else { return };
        let rows = pass.rows;
        let q = sized(&mut scratch.q, rows * heads * key_dim);
        let k = sized(&mut scratch.k, rows * kv_heads * key_dim);
        let v = sized(&mut scratch.v, rows * kv_heads * value_dim);
        self.project(pass, &scratch.normed, [&mut *q, &mut *k, &mut *v]);
        self.norm_and_rotate(pass, q, heads, 0);
        self.norm_and_rotate(pass, k, kv_heads, 1);
        let start = pass.kv.len();
        for (index, (key, value)) in k.chunks(key_dim).zip(v.chunks(value_dim)).enumerate() {
            pass.kv.write(block, index % kv_heads, start + index / kv_heads, key, value);
        }
        let shared = SharedOut::new(sized(&mut scratch.heads, rows * heads * value_dim));
        let (kv, spaces) = (&*pass.kv, &scratch.spaces);
        let scale = 1.0 / (key_dim as f32).sqrt();
        let pieces = Pieces::new((heads, kv_heads), rows, pass.pool.threads());
        pass.pool.run(pieces.count(), &|index| {
            let Piece { kv_head, heads: of, rows } = pieces.get(index);
            let queries =
                || of.clone().flat_map(|head| rows.clone().map(move |row| (row, row * heads + head)));
            spaces.with(|Space { attend, .. }| {
                attend.clear();
                for (row, at) in queries() {
                    scaled(&q[at * key_dim..(at + 1) * key_dim], scale, attend.push(start + row + 1));
                }
                attend.run(&kv.view(block, kv_head));
                for (index, (_, at)) in queries().enumerate() {
                    // SAFETY: each (row, head) pair is in one piece.
                    unsafe { shared.range(at * value_dim, value_dim) }.copy_from_slice(attend.output(index));
                }
            });
        });
        project_out(pass, &self.output, &scratch.heads[..rows * heads * value_dim], &mut scratch.branch);
        let bias = self.bias[3].as_ref().map(|bias| pass.dense.vector(bias));
        add_bias(bias, &mut scratch.branch[..rows * self.output.rows]);
    }

    fn project(&self, pass: &mut Pass<'_>, normed: &[f32], [q, k, v]: [&mut [f32]; 3]) {
        let dense = pass.dense;
        let x = Input::new(&normed[..pass.rows * self.q.cols], self.q.cols);
        let products = &mut [
            (dense.matrix(&self.q), &mut *q),
            (dense.matrix(&self.k), &mut *k),
            (dense.matrix(&self.v), &mut *v),
        ];
        matmul_group(pass.pool, &x, products);
        for (bias, out) in self.bias.iter().zip([q, k, v]) {
            add_bias(bias.as_ref().map(|bias| dense.vector(bias)), out);
        }
    }

    /// Norms (where the model does) and rotates the heads of `values` (`[rows, heads, key]`).
    fn norm_and_rotate(&self, pass: &Pass<'_>, values: &mut [f32], heads: usize, which: usize) {
        let key_dim = values.len() / (pass.rows * heads);
        let mut normed = vec![0f32; key_dim];
        for (index, head) in values.chunks_mut(key_dim).enumerate() {
            if let Some(norm) = &self.qk_norm {
                rms_norm(head, pass.dense.vector(&norm[which]), self.norm_eps, &mut normed);
                head.copy_from_slice(&normed);
            }
            pass.rope.rotate(index / heads, head);
        }
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
    fn forward(&self, pass: &mut Pass<'_>, block: usize, scratch: &mut Scratch) {
        let AttentionSpec::Mla { heads, nope, value_dim, .. } = self.spec else { return };
        let (rows, start) = (pass.rows, pass.kv.len());
        self.project(pass, scratch);
        self.cache_latent(pass, block, scratch);
        let key_dim = nope + self.rope_dim;
        let q = sized(&mut scratch.q, rows * heads * key_dim);
        for (index, head) in q.chunks_mut(key_dim).enumerate() {
            pass.rope.rotate(index / heads, &mut head[nope..]);
        }
        let heads_of = MlaHeads {
            layer: self,
            k_b: pass.dense.matrix(&self.k_b),
            v_b: pass.dense.matrix(&self.v_b),
            q,
            kv: pass.kv.view(block, 0),
            start,
        };
        let shared = SharedOut::new(sized(&mut scratch.heads, rows * heads * value_dim));
        let pieces = Pieces::new((heads, 1), rows, pass.pool.threads());
        let spaces = &scratch.spaces;
        pass.pool.run(pieces.count(), &|index| {
            spaces.with(|space| heads_of.compute(&pieces.get(index), space, shared));
        });
        project_out(pass, &self.output, &scratch.heads[..rows * heads * value_dim], &mut scratch.branch);
    }

    /// Queries into `scratch.q` and latent rows into `scratch.k`; both read the normed rows in one job.
    fn project(&self, pass: &mut Pass<'_>, scratch: &mut Scratch) {
        let AttentionSpec::Mla { heads, nope, .. } = self.spec else { return };
        let (rows, dense) = (pass.rows, pass.dense);
        let x = Input::new(&scratch.normed[..rows * self.kv_a.cols], self.kv_a.cols);
        let q = sized(&mut scratch.q, rows * heads * (nope + self.rope_dim));
        let latent = (dense.matrix(&self.kv_a), sized(&mut scratch.k, rows * self.kv_a.rows));
        match &self.query {
            MlaQuery::Direct(matrix) => matmul_group(pass.pool, &x, &mut [(dense.matrix(matrix), q), latent]),
            MlaQuery::LowRank { a, norm, b } => {
                let low = sized(&mut scratch.q_low, rows * a.rows);
                matmul_group(pass.pool, &x, &mut [(dense.matrix(a), &mut *low), latent]);
                norm_rows(low, dense.vector(norm), self.norm_eps);
                matmul(pass.pool, dense.matrix(b), &Input::new(low, a.rows), q);
            }
        }
    }

    /// Caches `[norm(c_kv) | rope(k)]` of every row.
    fn cache_latent(&self, pass: &mut Pass<'_>, block: usize, scratch: &mut Scratch) {
        let kv_lora = self.kv_a.rows - self.rope_dim;
        let rows = sized(&mut scratch.k, pass.rows * self.kv_a.rows);
        let start = pass.kv.len();
        for (index, row) in rows.chunks_mut(self.kv_a.rows).enumerate() {
            norm_rows(&mut row[..kv_lora], pass.dense.vector(&self.kv_a_norm), self.norm_eps);
            pass.rope.rotate(index, &mut row[kv_lora..]);
            pass.kv.write(block, 0, start + index, row, &[]);
        }
    }
}

/// One pass of one MLA layer, as its heads see it.
struct MlaHeads<'a> {
    layer: &'a Mla,
    k_b: MatrixRef<'a>,
    v_b: MatrixRef<'a>,
    /// `[rows, heads, nope + rope]`, rotated.
    q: &'a [f32],
    kv: KvView<'a>,
    start: usize,
}

impl MlaHeads<'_> {
    /// Computes a piece of `[rows, heads, value]`.
    fn compute(&self, piece: &Piece, space: &mut Space, out: SharedOut<'_>) {
        space.attend.clear();
        piece.heads.clone().for_each(|head| self.push_queries(head, piece, space));
        space.attend.run(&self.kv);
        piece.heads.clone().for_each(|head| self.project_values(head, piece, space, out));
    }

    /// Queries of the piece's rows against the latent: `[k_b q_nope | q_rope]`.
    fn push_queries(&self, head: usize, piece: &Piece, space: &mut Space) {
        let AttentionSpec::Mla { heads, kv_lora, nope, scale, .. } = self.layer.spec else { return };
        let Space { attend, narrow, wide } = space;
        let key_dim = nope + self.layer.rope_dim;
        let query_of = |row: usize| &self.q[(row * heads + head) * key_dim..][..key_dim];
        for (row, gathered) in piece.rows.clone().zip(narrow.chunks_exact_mut(nope)) {
            gathered.copy_from_slice(&query_of(row)[..nope]);
        }
        let (gathered, absorbed) =
            (&narrow[..piece.rows.len() * nope], &mut wide[..piece.rows.len() * kv_lora]);
        let k_b = self.k_b.slice(head * kv_lora..(head + 1) * kv_lora);
        matmul_serial(k_b, &Input::new(gathered, nope), absorbed);
        for (row, absorbed) in piece.rows.clone().zip(absorbed.chunks_exact(kv_lora)) {
            let (latent, rope) = attend.push(self.start + row + 1).split_at_mut(kv_lora);
            scaled(absorbed, scale, latent);
            scaled(&query_of(row)[nope..], scale, rope);
        }
    }

    /// Turns the latent rows that a head of the piece found into its values.
    fn project_values(&self, head: usize, piece: &Piece, space: &mut Space, out: SharedOut<'_>) {
        let AttentionSpec::Mla { heads, kv_lora, value_dim, .. } = self.layer.spec else { return };
        let Space { attend, narrow, wide } = space;
        let rows = piece.rows.len();
        for (index, latent) in wide.chunks_exact_mut(kv_lora).take(rows).enumerate() {
            latent.copy_from_slice(attend.output((head - piece.heads.start) * rows + index));
        }
        let (first, stride) = self.layer.v_b_rows;
        let v_b = self.v_b.slice(first + head * stride..first + head * stride + value_dim);
        let values = &mut narrow[..rows * value_dim];
        matmul_serial(v_b, &Input::new(&wide[..rows * kv_lora], kv_lora), values);
        for (row, value) in piece.rows.clone().zip(values.chunks_exact(value_dim)) {
            // SAFETY: each (row, head) pair is in one piece.
            unsafe { out.range((row * heads + head) * value_dim, value_dim) }.copy_from_slice(value);
        }
    }
}

/// `out = factor * values`.
fn scaled(values: &[f32], factor: f32, out: &mut [f32]) {
    out.iter_mut().zip(values).for_each(|(out, value)| *out = value * factor);
}

/// `branch = output(heads)`.
fn project_out(pass: &mut Pass<'_>, output: &Matrix, heads: &[f32], branch: &mut Vec<f32>) {
    let out = sized(branch, pass.rows * output.rows);
    matmul(pass.pool, pass.dense.matrix(output), &Input::new(heads, output.cols), out);
}

/// Norms rows in place; the row width is the weight's.
fn norm_rows(rows: &mut [f32], weight: &[f32], eps: f32) {
    let mut normed = vec![0f32; weight.len()];
    for row in rows.chunks_mut(weight.len()) {
        rms_norm(row, weight, eps, &mut normed);
        row.copy_from_slice(&normed);
    }
}
