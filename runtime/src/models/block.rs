//! One transformer block in one pass: norm, attention, norm, feed-forward, each added to the residual stream.
//!
//! Owns the order of these steps, the same for a model's blocks and for a head's. It must not know which
//! block of which model it runs, nor what a row means.

use drafthorse_offload::{ExpertCache, OffloadError};

use crate::clock::Phase;
use crate::kernels::{Input, add_scaled, rms_norm};
use crate::layers::{
    DemandLoads, Lookahead, MoeLayer, Pass, RouteSink, RowGate, Scratch, Target, feed_forward, sized,
};

use super::MoeSpec;
use super::assemble::{Block, Ffn};

/// What is predicted of a block.
pub fn target(block: &Block) -> Option<Target<'_>> {
    match &block.ffn {
        Ffn::Routed(weights) => Some(Target { norm: &block.ffn_norm, weights }),
        Ffn::Dense(_) => None,
    }
}

/// One block in one pass.
pub struct BlockStep<'a> {
    /// Its weights.
    pub block: &'a Block,
    /// Width of the residual stream.
    pub width: usize,
    /// Working memory; the rows are in its residual stream.
    pub scratch: &'a mut Scratch,
}

/// What a routed block needs beside its own weights.
pub struct Mixture<'a, 'g> {
    /// Routing rule.
    pub spec: &'a MoeSpec,
    /// Where the experts come from.
    pub experts: &'a mut ExpertCache,
    /// Who predicts later layers.
    pub lookahead: &'a mut Lookahead,
    /// Hears which rows made an expert be loaded.
    pub demand: &'a mut DemandLoads,
    /// The next block's routed layer, to be predicted.
    pub next: Option<Target<'a>>,
    /// Hears the choices.
    pub sink: Option<&'a mut dyn RouteSink>,
    /// Says how many rows go on.
    pub gate: Option<&'a mut RowGate<'g>>,
}

impl BlockStep<'_> {
    /// Attention over the residual stream; leaves the feed-forward part's input in `scratch.normed`. `index`
    /// is the block's place in the KV cache.
    pub fn attend(&mut self, pass: &mut Pass<'_>, index: usize) {
        self.norm(pass.dense.vector(&self.block.attention_norm), pass);
        self.attend_normed(pass, index);
    }

    /// As [`BlockStep::attend`], over what `scratch.normed` holds already.
    pub fn attend_normed(&mut self, pass: &mut Pass<'_>, index: usize) {
        self.block.attention.forward(pass, index, self.scratch);
        self.add_branch(pass.rows);
        self.norm(pass.dense.vector(&self.block.ffn_norm), pass);
        pass.clock.lap(Phase::Dense);
    }

    /// The feed-forward part, routed or dense. A gate may leave fewer rows in `pass`.
    ///
    /// # Errors
    /// An expert that could not be read.
    pub fn feed_forward(
        &mut self,
        pass: &mut Pass<'_>,
        mixture: Mixture<'_, '_>,
    ) -> Result<(), OffloadError> {
        let Ffn::Routed(weights) = &self.block.ffn else {
            self.dense(pass);
            return Ok(());
        };
        let Mixture { spec, experts, lookahead, demand, next, sink, gate } = mixture;
        let layer = MoeLayer { spec, weights, experts, lookahead, demand, next, gate };
        layer.forward(pass, self.scratch, sink)?;
        self.add_branch(pass.rows);
        Ok(())
    }

    /// The feed-forward part of a dense block.
    pub fn dense(&mut self, pass: &mut Pass<'_>) {
        let Ffn::Dense(expert) = &self.block.ffn else {
            unreachable!("invariant: a model with routed blocks is loaded with an expert cache")
        };
        let expert = expert.resolve(pass.dense);
        let x = Input::new(&self.scratch.normed[..pass.rows * expert.gate.cols], expert.gate.cols);
        let out = sized(&mut self.scratch.branch, pass.rows * expert.down.rows);
        feed_forward(pass.pool, expert, &x, (&mut self.scratch.gate, &mut self.scratch.up), out);
        self.add_branch(pass.rows);
        pass.clock.lap(Phase::Dense);
    }

    /// `normed = norm(residual)`.
    fn norm(&mut self, weight: &[f32], pass: &Pass<'_>) {
        let width = weight.len();
        let normed = sized(&mut self.scratch.normed, pass.rows * width);
        for (out, row) in normed.chunks_mut(width).zip(self.scratch.residual.chunks(width)) {
            rms_norm(row, weight, pass.norm_eps, out);
        }
    }

    /// `residual += branch`.
    fn add_branch(&mut self, rows: usize) {
        let len = rows * self.width;
        add_scaled(&self.scratch.branch[..len], 1.0, &mut self.scratch.residual[..len]);
    }
}
