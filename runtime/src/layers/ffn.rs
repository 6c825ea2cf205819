//! The feed-forward pass of one expert: SwiGLU. A dense layer and a shared expert are one expert too.
//!
//! Owns the arithmetic `down(silu(gate(x)) * up(x))`; where the weights lie (dense memory or a cache
//! slot) is the caller's matter (DESIGN I7: one path).

use crate::kernels::{Input, MatrixRef, Pool, add_scaled, matmul, matmul_group, silu_mul};
use crate::weights::{DenseStore, Matrix, Vector};

use super::scratch::sized;

/// The three matrices of one expert, with their biases where the file has them.
#[derive(Clone, Copy)]
pub struct FeedForward<M, V> {
    /// `[inner, width]`.
    pub gate: M,
    /// `[inner, width]`.
    pub up: M,
    /// `[width, inner]`.
    pub down: M,
    /// Biases of gate, up and down.
    pub bias: [Option<V>; 3],
}

/// A feed-forward layer by its places in the dense store.
pub type DenseFeedForward = FeedForward<Matrix, Vector>;

/// A feed-forward layer with its bytes.
pub type LoadedFeedForward<'a> = FeedForward<MatrixRef<'a>, &'a [f32]>;

impl DenseFeedForward {
    /// The matrices with their bytes.
    pub fn resolve<'a>(&self, dense: &'a DenseStore) -> LoadedFeedForward<'a> {
        FeedForward {
            gate: dense.matrix(&self.gate),
            up: dense.matrix(&self.up),
            down: dense.matrix(&self.down),
            bias: self.bias.map(|bias| bias.map(|bias| dense.vector(&bias))),
        }
    }
}

/// Writes `[x.rows(), width]` to `out`; `gate` and `up` are scratch.
pub fn feed_forward(
    pool: &mut Pool,
    expert: LoadedFeedForward<'_>,
    x: &Input<'_>,
    (gate, up): (&mut Vec<f32>, &mut Vec<f32>),
    out: &mut [f32],
) {
    let inner = expert.gate.rows;
    let gate = sized(gate, x.rows() * inner);
    let up = sized(up, x.rows() * inner);
    matmul_group(pool, x, &mut [(expert.gate, &mut *gate), (expert.up, &mut *up)]);
    add_bias(expert.bias[0], gate);
    add_bias(expert.bias[1], up);
    silu_mul(gate, up);
    matmul(pool, expert.down, &Input::new(gate, inner), out);
    add_bias(expert.bias[2], out);
}

/// Adds `bias`, if there is one, to every row.
pub(super) fn add_bias(bias: Option<&[f32]>, rows: &mut [f32]) {
    if let Some(bias) = bias {
        rows.chunks_mut(bias.len()).for_each(|row| add_scaled(bias, 1.0, row));
    }
}
