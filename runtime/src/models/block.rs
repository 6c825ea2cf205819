//! One transformer block in one pass: norm, attention, norm, feed-forward, each added to the residual stream.
//!
//! Owns the order of these steps, the same for a model's blocks and for a head's. It must not know which
//! block of which model it runs, nor what a row means.

use drafthorse_offload::ExpertCache;

use crate::backend::{Norm, Reg};
use crate::clock::Phase;
use crate::layers::{
    DemandLoads, Lookahead, MoeError, MoeLayer, Pass, RouteSink, RowGate, Target, feed_forward,
};
use crate::weights::Vector;

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
    /// Width of the residual stream, where the rows are.
    pub width: usize,
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
    /// Attention over the residual stream; leaves the feed-forward part's input in `Normed`. `index` is the
    /// block's place in the KV cache.
    pub fn attend(&self, pass: &mut Pass<'_>, index: usize) {
        self.norm(&self.block.attention_norm, pass);
        self.attend_normed(pass, index);
    }

    /// As [`BlockStep::attend`], over what `Normed` holds already.
    pub fn attend_normed(&self, pass: &mut Pass<'_>, index: usize) {
        self.block.attention.forward(pass, index);
        self.add_branch(pass);
        self.norm(&self.block.ffn_norm, pass);
        pass.clock.lap(Phase::Dense);
    }

    /// The feed-forward part, routed or dense. A gate may leave fewer rows in `pass`.
    ///
    /// # Errors
    /// An expert that could not be read, a GPU that failed.
    pub fn feed_forward(&self, pass: &mut Pass<'_>, mixture: Mixture<'_, '_>) -> Result<(), MoeError> {
        let Ffn::Routed(weights) = &self.block.ffn else {
            self.dense(pass);
            return Ok(());
        };
        let Mixture { spec, experts, lookahead, demand, next, sink, gate } = mixture;
        let layer = MoeLayer { spec, weights, experts, lookahead, demand, next, gate };
        layer.forward(pass, sink)?;
        self.add_branch(pass);
        Ok(())
    }

    /// The feed-forward part of a dense block.
    pub fn dense(&self, pass: &mut Pass<'_>) {
        let Ffn::Dense(expert) = &self.block.ffn else {
            unreachable!("invariant: a model with routed blocks is loaded with an expert cache")
        };
        feed_forward(pass.ops, pass.rows, expert);
        self.add_branch(pass);
        pass.clock.lap(Phase::Dense);
    }

    /// `Normed = norm(Residual)`.
    fn norm(&self, weight: &Vector, pass: &mut Pass<'_>) {
        let (rows, stride, eps) = (0..pass.rows, self.width, pass.norm_eps);
        pass.ops.norm(Norm { x: Reg::Residual, rows, stride, weight, eps, out: Reg::Normed });
    }

    /// `Residual += Branch`.
    fn add_branch(&self, pass: &mut Pass<'_>) {
        pass.ops.add(Reg::Branch, Reg::Residual, pass.rows * self.width);
    }
}
