//! The processor as a backend: every operation is done when it returns.
//!
//! Owns the threads, the rows, the key/value cache and the loops over heads and experts. What a (row, head)
//! pair gets depends on its query and the cache alone ([`AttendSpace`](crate::kernels::AttendSpace)), so
//! results are row-invariant. It must not know the order of a layer's operations.

use std::ops::Range;
use std::sync::Arc;

use drafthorse_offload::Lease;

use super::{AttendRows, Backend, ExpertWork, Fill, Norm, Reg, Rotation};
use crate::gpu::GpuError;
use crate::kernels::{
    Down, GateUp, Input, KvView, MatrixRef, Pool, SharedOut, add_scaled, down_experts, gate_up_experts,
    matmul, matmul_group, matmul_serial, rms_norm, silu_mul,
};
use crate::kv::KvCache;
use crate::layers::{FeedForward, Mla, Piece, Pieces, RopeTable, Scratch, Space, WindowPlan, sized};
use crate::models::{AttentionSpec, LoadError};
use crate::weights::{DenseStore, Matrix, Vector};

/// Weights, threads, rows and cache in the machine's memory.
pub struct CpuBackend {
    /// Dense weights.
    pub dense: Arc<DenseStore>,
    /// Threads.
    pub pool: Pool,
    /// Cache of the sequence.
    pub kv: KvCache,
    /// Rows of the pass.
    pub scratch: Scratch,
    rope: RopeTable,
}

impl CpuBackend {
    /// Norms, where asked to, and rotates the heads of a register, in place.
    fn rotate(&mut self, reg: Reg, rows: usize, rotation: Rotation<'_>) {
        let Rotation { heads, len, offset, norm } = rotation;
        let mut normed = vec![0f32; norm.map_or(0, |(weight, _)| weight.len())];
        let values = &mut self.scratch.reg_mut(reg)[..rows * heads * len];
        for (index, head) in values.chunks_mut(len).enumerate() {
            if let Some((weight, eps)) = norm {
                let part = &mut head[..weight.len()];
                rms_norm(part, self.dense.vector(weight), eps, &mut normed);
                part.copy_from_slice(&normed);
            }
            self.rope.rotate(index / heads, &mut head[offset..]);
        }
    }

    /// Nothing is cached yet.
    pub fn new(dense: Arc<DenseStore>, pool: Pool, kv: KvCache, scratch: Scratch) -> CpuBackend {
        CpuBackend { dense, pool, kv, scratch, rope: RopeTable::default() }
    }

    /// Takes registers out, to be written while others are read.
    fn take<const N: usize>(&mut self, regs: [Reg; N]) -> [Vec<f32>; N] {
        regs.map(|reg| std::mem::take(self.scratch.reg_mut(reg)))
    }

    fn put<const N: usize>(&mut self, regs: [Reg; N], buffers: [Vec<f32>; N]) {
        for (reg, buffer) in regs.into_iter().zip(buffers) {
            *self.scratch.reg_mut(reg) = buffer;
        }
    }
}

impl Backend for CpuBackend {
    fn dense(&self) -> &DenseStore {
        &self.dense
    }

    fn len(&self) -> usize {
        self.kv.len()
    }

    fn truncate(&mut self, len: usize) {
        self.kv.truncate(len);
    }

    fn commit(&mut self, rows: usize) {
        self.kv.commit(rows);
    }

    fn begin(&mut self, table: RopeTable) {
        self.rope = table;
    }

    fn fill(&mut self, reg: Reg, len: usize, with: &mut Fill<'_>) -> Result<(), LoadError> {
        with(&self.dense, sized(self.scratch.reg_mut(reg), len))
    }

    fn values(&mut self, reg: Reg, range: Range<usize>) -> Result<&[f32], GpuError> {
        Ok(&self.scratch.reg(reg)[range])
    }

    fn norm(&mut self, norm: Norm<'_>) {
        let Norm { x, rows, stride, weight, eps, out } = norm;
        let count = rows.end - rows.start;
        let [mut buffer] = self.take([out]);
        let weight = self.dense.vector(weight);
        if x == out {
            debug_assert_eq!(rows.start, 0, "in place");
            let mut normed = vec![0f32; weight.len()];
            for row in buffer[..count * stride].chunks_mut(stride) {
                rms_norm(&row[..weight.len()], weight, eps, &mut normed);
                row[..weight.len()].copy_from_slice(&normed);
            }
        } else {
            let from = self.scratch.reg(x)[rows.start * stride..rows.end * stride].chunks(stride);
            for (out, row) in sized(&mut buffer, count * stride).chunks_mut(stride).zip(from) {
                rms_norm(&row[..weight.len()], weight, eps, &mut out[..weight.len()]);
            }
        }
        self.put([out], [buffer]);
    }

    fn add(&mut self, x: Reg, out: Reg, len: usize) {
        let [mut buffer] = self.take([out]);
        add_scaled(&self.scratch.reg(x)[..len], 1.0, &mut buffer[..len]);
        self.put([out], [buffer]);
    }

    fn sum(&mut self, a: Reg, b: Reg, out: Reg, len: usize) {
        let [mut buffer] = self.take([out]);
        sized(&mut buffer, len).copy_from_slice(&self.scratch.reg(a)[..len]);
        add_scaled(&self.scratch.reg(b)[..len], 1.0, &mut buffer[..len]);
        self.put([out], [buffer]);
    }

    fn add_bias(&mut self, bias: &Vector, out: Reg, rows: usize) {
        let bias = self.dense.vector(bias);
        let rows = self.scratch.reg_mut(out)[..rows * bias.len()].chunks_mut(bias.len());
        rows.for_each(|row| add_scaled(bias, 1.0, row));
    }

    fn matmul(&mut self, x: Reg, rows: usize, products: &[(&Matrix, Reg)]) {
        let Some((first, _)) = products.first() else { return };
        let mut outs: Vec<_> =
            products.iter().map(|(_, out)| std::mem::take(self.scratch.reg_mut(*out))).collect();
        let input = Input::new(&self.scratch.reg(x)[..rows * first.cols], first.cols);
        let mut jobs: Vec<_> = products
            .iter()
            .zip(&mut outs)
            .map(|((w, _), out)| (self.dense.matrix(w), sized(out, rows * w.rows)))
            .collect();
        matmul_group(&mut self.pool, &input, &mut jobs);
        for ((_, reg), out) in products.iter().zip(outs) {
            *self.scratch.reg_mut(*reg) = out;
        }
    }

    fn product(&mut self, x: Reg, rows: usize, w: &Matrix, out: &mut [f32]) -> Result<(), GpuError> {
        let input = Input::new(&self.scratch.reg(x)[..rows * w.cols], w.cols);
        matmul(&mut self.pool, self.dense.matrix(w), &input, out);
        Ok(())
    }

    fn silu_mul(&mut self, gate: Reg, up: Reg, rows: usize, width: usize) {
        let len = rows * width;
        let [mut buffer] = self.take([gate]);
        silu_mul(&mut buffer[..len], &self.scratch.reg(up)[..len]);
        self.put([gate], [buffer]);
    }

    fn place_heads(&mut self, at: &AttendRows, queries: Rotation<'_>, keys: Rotation<'_>) {
        self.rotate(Reg::Q, at.rows, queries);
        self.rotate(Reg::K, at.rows, keys);
        let AttendRows { block, start, rows, kv_heads, key_dim, value_dim, .. } = *at;
        let has_values = self.kv.has_values();
        for index in 0..rows * kv_heads {
            let key = &self.scratch.k[index * key_dim..(index + 1) * key_dim];
            let value = index * value_dim..(index + 1) * value_dim;
            let value = if has_values { &self.scratch.v[value] } else { &[] };
            self.kv.write(block, index % kv_heads, start + index / kv_heads, key, value);
        }
    }

    fn attend(&mut self, at: &AttendRows) {
        let AttendRows { block, start, rows, heads, kv_heads, key_dim, value_dim } = *at;
        let Scratch { q, heads: out, spaces, .. } = &mut self.scratch;
        let q = &q[..rows * heads * key_dim];
        let shared = SharedOut::new(sized(out, rows * heads * value_dim));
        let kv = &self.kv;
        let scale = 1.0 / (key_dim as f32).sqrt();
        let pieces = Pieces::new((heads, kv_heads), rows, self.pool.threads());
        self.pool.run(pieces.count(), &|index| {
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
    }

    fn attend_latent(&mut self, layer: &Mla, at: &AttendRows) {
        let AttentionSpec::Mla { heads, nope, value_dim, .. } = layer.spec else { return };
        let Scratch { q, heads: out, spaces, .. } = &mut self.scratch;
        let heads_of = MlaHeads {
            layer,
            k_b: self.dense.matrix(&layer.k_b),
            v_b: self.dense.matrix(&layer.v_b),
            q: &q[..at.rows * heads * (nope + layer.rope_dim)],
            kv: self.kv.view(at.block, 0),
            start: at.start,
        };
        let shared = SharedOut::new(sized(out, at.rows * heads * value_dim));
        let pieces = Pieces::new((heads, 1), at.rows, self.pool.threads());
        self.pool.run(pieces.count(), &|index| {
            spaces.with(|space| heads_of.compute(&pieces.get(index), space, shared));
        });
    }

    fn holds(&self, _layer: u32, _expert: u32) -> bool {
        false
    }

    fn claim(&mut self, _layer: u32, _plan: &WindowPlan, _weights: &[f32]) -> Vec<u32> {
        Vec::new()
    }

    fn experts(&mut self, work: &ExpertWork<'_, '_>) {
        let shape = &work.weights.shape;
        let Scratch { normed, hidden, routed, gate, branch, .. } = &mut self.scratch;
        let width = work.weights.router.cols;
        let x = Input::new(&normed[..work.rows * width], width);
        let hidden = sized(hidden, work.plan.rows.len() * shape.gate.rows);
        let routed = sized(routed, work.plan.rows.len() * shape.down.rows);
        let shared = work.shared.map(|shared| shared.resolve(&self.dense));
        let gate = sized(gate, work.rows * shared.map_or(0, |shared| shared.gate.rows));
        let every_row: Vec<u32> = (0..shared.map_or(0, |_| work.rows as u32)).collect();
        let mut ways_in = ways_in(work, hidden);
        ways_in.extend(shared.map(|FeedForward { gate: matrix, up, .. }| GateUp {
            gate: matrix,
            up,
            rows: &every_row,
            hidden: gate,
        }));
        gate_up_experts(&mut self.pool, &x, &mut ways_in);
        let mut ways_out = ways_out(work, (hidden, routed));
        let branch = sized(branch, work.rows * width);
        ways_out.extend(shared.map(|shared| Down { down: shared.down, hidden: gate, out: branch }));
        down_experts(&mut self.pool, &mut ways_out);
    }

    fn settle(&mut self, _wants_room: bool) -> Result<(), GpuError> {
        Ok(())
    }

    fn clear_branch(&mut self, len: usize) {
        sized(&mut self.scratch.branch, len).fill(0.0);
    }

    fn combine(&mut self, plan: &WindowPlan, weights: &[f32], used: usize, width: usize) {
        let routed = &self.scratch.routed[..plan.place.len() * width];
        let rows = self.scratch.branch.chunks_mut(width);
        for (out, (places, weights)) in rows.zip(plan.place.chunks(used).zip(weights.chunks(used))) {
            for (place, weight) in places.iter().zip(weights) {
                let place = *place as usize;
                add_scaled(&routed[place * width..(place + 1) * width], *weight, out);
            }
        }
    }
}

/// Experts ascend, so that each takes its part off the front of what is left of `hidden`.
fn ways_in<'w>(work: &'w ExpertWork<'_, '_>, hidden: &'w mut [f32]) -> Vec<GateUp<'w>> {
    let shape = &work.weights.shape;
    let mut hidden = Cut { left: hidden, each: shape.gate.rows, at: 0 };
    let way_in = |expert: &u32| {
        let places = work.plan.places(*expert);
        let [gate, up] = inner_bytes(work.lease, *expert);
        GateUp {
            gate: shape.gate.with(gate),
            up: shape.up.with(up),
            hidden: hidden.take(places.clone()),
            rows: &work.plan.rows[places],
        }
    };
    work.inner.iter().map(way_in).collect()
}

fn ways_out<'w>(work: &'w ExpertWork<'_, '_>, (hidden, routed): (&'w [f32], &'w mut [f32])) -> Vec<Down<'w>> {
    let shape = &work.weights.shape;
    let inner = shape.down.cols;
    let mut routed = Cut { left: routed, each: shape.down.rows, at: 0 };
    let way_out = |expert: &u32| {
        let places = work.plan.places(*expert);
        Down {
            down: shape.down.with(down_bytes(work.lease, *expert)),
            hidden: &hidden[places.start * inner..places.end * inner],
            out: routed.take(places),
        }
    };
    work.down.iter().map(way_out).collect()
}

/// Gate and up of an expert that is due.
pub(crate) fn inner_bytes<'a>(lease: &'a Lease<'_>, expert: u32) -> [&'a [u8]; 2] {
    lease.inner(expert).expect("invariant: it was announced and is held")
}

/// Down of an expert that is due.
pub(crate) fn down_bytes<'a>(lease: &'a Lease<'_>, expert: u32) -> &'a [u8] {
    lease.down(expert).expect("invariant: it was announced and is held")
}

/// A buffer of `each` values a place, handed out range by range from the front.
struct Cut<'a> {
    left: &'a mut [f32],
    each: usize,
    at: usize,
}

impl<'a> Cut<'a> {
    /// The values of `places`, which start no earlier than the last ones ended.
    fn take(&mut self, places: Range<usize>) -> &'a mut [f32] {
        let (_, rest) = std::mem::take(&mut self.left).split_at_mut((places.start - self.at) * self.each);
        let (taken, rest) = rest.split_at_mut(places.len() * self.each);
        self.left = rest;
        self.at = places.end;
        taken
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_buffer_gives_each_expert_its_own_places() {
        let mut values: Vec<f32> = (0..12u8).map(f32::from).collect();
        let mut cut = Cut { left: &mut values, each: 2, at: 0 };
        assert_eq!(cut.take(1..2), [2.0, 3.0]);
        assert_eq!(cut.take(2..4), [4.0, 5.0, 6.0, 7.0]);
        assert_eq!(cut.take(5..6), [10.0, 11.0]);
    }
}
