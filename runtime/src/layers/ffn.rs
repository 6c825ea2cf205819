//! The feed-forward pass of one expert: SwiGLU. A dense layer and a shared expert are one expert too.
//!
//! Owns the arithmetic `down(silu(gate(x)) * up(x))`; where the weights lie (dense memory or a cache
//! slot) is the caller's matter (DESIGN I7: one path).

use crate::backend::{Backend, Reg};
use crate::kernels::MatrixRef;
use crate::weights::{DenseStore, Matrix, Vector};

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

/// From `Normed` to `Branch`, the first `rows` rows.
pub fn feed_forward(ops: &mut dyn Backend, rows: usize, expert: &DenseFeedForward) {
    ops.matmul(Reg::Normed, rows, &[(&expert.gate, Reg::Gate), (&expert.up, Reg::Up)]);
    for (bias, out) in expert.bias.iter().zip([Reg::Gate, Reg::Up]) {
        bias.iter().for_each(|bias| ops.add_bias(bias, out, rows));
    }
    ops.silu_mul(Reg::Gate, Reg::Up, rows, expert.gate.rows);
    ops.matmul(Reg::Gate, rows, &[(&expert.down, Reg::Branch)]);
    expert.bias[2].iter().for_each(|bias| ops.add_bias(bias, Reg::Branch, rows));
}
