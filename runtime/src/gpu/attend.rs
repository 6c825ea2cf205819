//! Attention on the device: scores of all positions, then the values they weigh.
//!
//! Owns how many rows go at once (their scores must fit) and the projections of the absorbed latent form. It must
//! not know what a block does before or after.

use super::backend::GpuBackend;
use super::driver::{Arg, DevicePtr};
use super::grids::{scores_grid, value_rows, values_grid};
use super::shapes::MatmulJob;
use crate::backend::{AttendRows, Reg};
use crate::kernels::{RowLayout, Side, quantized_bytes};
use crate::layers::Mla;
use crate::models::AttentionSpec;

impl GpuBackend {
    /// Queries at `q` (`[rows, heads, key]`) over `keys`, and what they find in `values` to `out`
    /// (`[rows, heads, value]`).
    pub(super) fn attend_rows(
        &mut self,
        at: &AttendRows,
        (q, keys, scale): (DevicePtr, DevicePtr, f32),
        (values, layout, out): (DevicePtr, RowLayout, DevicePtr),
    ) {
        let (scores, stride) = (self.layout.scores.at, self.layout.score_stride);
        let at_once = self.layout.score_rows(at.heads);
        let key = self.kv.key;
        let context_len = self.context_len as u32;
        for first in (0..at.rows).step_by(at_once) {
            let rows = at_once.min(at.rows - first);
            let start = at.start + first;
            let floats = |values: usize| (values * size_of::<f32>()) as u64;
            let args = [
                Arg::Ptr(q + floats(first * at.heads * at.key_dim)),
                Arg::Ptr(keys),
                Arg::Ptr(scores),
                Arg::U32(at.heads as u32),
                Arg::U32(at.kv_heads as u32),
                Arg::U32(key.quantized as u32),
                Arg::U32(key.halves as u32),
                Arg::U32(context_len),
                Arg::U32(start as u32),
                Arg::F32(scale),
                Arg::U32(stride as u32),
                Arg::U32(rows as u32),
            ];
            let grid = scores_grid(rows as u32, at.heads as u32, start as u32);
            self.queue.launch("attend_scores", grid, &args);
            let rows_each =
                value_rows(rows as u32, at.heads as u32, at.value_dim as u32, self.queue.blocks_wanted());
            let args = [
                Arg::Ptr(scores),
                Arg::Ptr(values),
                Arg::Ptr(out + floats(first * at.heads * at.value_dim)),
                Arg::U32(at.heads as u32),
                Arg::U32(at.kv_heads as u32),
                Arg::U32(at.value_dim as u32),
                Arg::U32(layout.quantized as u32),
                Arg::U32(layout.halves as u32),
                Arg::U32(context_len),
                Arg::U32(start as u32),
                Arg::U32(stride as u32),
                Arg::U32(rows as u32),
                Arg::U32(rows_each),
            ];
            let grid = values_grid(rows as u32, at.heads as u32, at.value_dim as u32, rows_each);
            self.queue.launch("attend_values", grid, &args);
        }
    }

    /// Absorbed latent attention: the key projection on the query, the cache, the value projection on the result.
    pub(super) fn attend_latent_rows(&mut self, layer: &Mla, at: &AttendRows) {
        let AttentionSpec::Mla { heads, nope, value_dim, scale, .. } = layer.spec else { return };
        let (kv_lora, rope, rows) = (at.value_dim, layer.rope_dim, at.rows);
        let [query, narrow] = [self.layout.query, self.layout.narrow].map(|place| place.at);
        // The rotated part of each query lies behind its absorbed one already (`place_heads`).
        self.per_head(HeadProduct {
            matrix: &layer.k_b,
            rows_of: (0, kv_lora),
            x: (self.at(Reg::Q, 0), nope + rope, nope),
            out: (query, kv_lora + rope, kv_lora),
            heads,
            rows,
        });
        let at = AttendRows { heads, ..*at };
        let (keys, key) = (self.layout.keys[at.block], self.kv.key);
        self.attend_rows(&at, (query, keys, scale), (keys, key, narrow));
        self.touch(Reg::Heads);
        self.per_head(HeadProduct {
            matrix: &layer.v_b,
            rows_of: layer.v_b_rows,
            x: (narrow, kv_lora, kv_lora),
            out: (self.at(Reg::Heads, 0), value_dim, value_dim),
            heads,
            rows,
        });
    }

    /// One matrix a head on the head's own part of every row.
    fn per_head(&mut self, product: HeadProduct<'_>) {
        let HeadProduct { matrix, rows_of: (first, each), x: (x, stride, width), out, heads, rows } = product;
        let (out, out_stride, out_len) = out;
        let side = matrix.format.side();
        let (x, x_stride) = match side {
            Side::Float => (x, stride * size_of::<f32>()),
            _ => {
                let place = self.layout.head_rows;
                self.quantize(x, (place, 0), side, (rows * heads, width, stride));
                (place.at, quantized_bytes(width))
            }
        };
        let row_bytes = self.layout.row_bytes(matrix);
        let w = self.layout.matrices[matrix.id()];
        let jobs: Vec<MatmulJob> = (0..heads)
            .map(|head| MatmulJob {
                w: w + ((first + head * each) * row_bytes) as u64,
                x,
                rows: 0,
                out: out + (head * out_stride * size_of::<f32>()) as u64,
                n: out_len as u32,
                count: rows as u32,
                x_first: head as u32,
                x_step: heads as u32,
                x_stride: x_stride as u32,
                out_stride: (heads * out_stride) as u32,
            })
            .collect();
        self.queue.matmul(matrix.format, width, &jobs);
    }
}

/// A stack of matrices, one a head.
struct HeadProduct<'a> {
    matrix: &'a crate::weights::Matrix,
    /// First row of head 0's matrix, and rows from one head's to the next.
    rows_of: (usize, usize),
    /// `[rows, heads, stride]`, of which the first `width` values count.
    x: (DevicePtr, usize, usize),
    /// `[rows, heads, stride]`, of which the first `len` values are written.
    out: (DevicePtr, usize, usize),
    heads: usize,
    rows: usize,
}
