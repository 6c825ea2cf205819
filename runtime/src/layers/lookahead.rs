//! Router look-ahead: which experts later layers are likely to want, from this layer's state.
//!
//! Owns the predictions of a pass and the count of how often they came true, by rank. The router of a
//! later layer is asked with the present residual stream (ALGORITHMS.md B and H.3 point 2; Eliseev and
//! Mazur, arXiv 2312.17238, section 3.2): the stream changes little from layer to layer. Predictions
//! only tell the cache what to read while nobody waits; the real router decides what is computed. It
//! must not know residency or files.

use drafthorse_scheduler::{PREFETCH_RANKS_MAX, RankOutcome};
use metrics::{Counter, counter};

use crate::backend::{Norm, Reg};
use crate::gpu::GpuError;
use crate::models::{MoeSpec, Routed};
use crate::weights::Vector;

use super::Pass;
use super::moe::choose;
use super::route::Route;

/// Ranks that are counted one by one; later ones are never asked for.
pub const RANKS_MAX: usize = PREFETCH_RANKS_MAX;
/// Passes of more rows are prefill: its windows want most experts anyway.
pub const ROWS_MAX: usize = 16;

/// A later layer to be predicted.
pub struct Target<'a> {
    /// Norm before its router, `[width]`.
    pub norm: &'a Vector,
    /// Its router.
    pub weights: &'a Routed,
}

/// The predictor's state over one pass, and its counts over all.
pub struct Lookahead {
    /// Predicted experts a layer that are worth asking for; 0 is off.
    ranks: usize,
    /// By layer: what was predicted for its next visit.
    pending: Vec<Vec<u32>>,
    counts: [RankOutcome; RANKS_MAX],
    predicted: Counter,
    right: Counter,
}

impl Default for Lookahead {
    fn default() -> Lookahead {
        Lookahead {
            ranks: 0,
            pending: Vec::new(),
            counts: [RankOutcome::default(); RANKS_MAX],
            predicted: counter!("drafthorse_lookahead_predicted_total"),
            right: counter!("drafthorse_lookahead_right_total"),
        }
    }
}

impl Lookahead {
    /// Asks for the `ranks` likeliest experts of each layer from now on; 0 switches predictions off.
    pub fn set_ranks(&mut self, ranks: usize) {
        self.ranks = ranks.min(RANKS_MAX);
        if ranks == 0 {
            self.pending.clear();
        }
    }

    /// Counts by rank since the start.
    pub fn counts(&self) -> &[RankOutcome; RANKS_MAX] {
        &self.counts
    }

    /// Whether a pass of `rows` rows is to be predicted.
    pub fn is_on(&self, rows: usize) -> bool {
        self.ranks > 0 && rows <= ROWS_MAX
    }

    /// Compares what was predicted for a layer with what its router chose.
    pub fn settle(&mut self, layer: u32, chosen: &[u32]) {
        let Some(predicted) = self.pending.get_mut(layer as usize) else { return };
        for (expert, count) in predicted.drain(..).zip(&mut self.counts) {
            let is_right = chosen.contains(&expert);
            count.predicted += 1;
            count.right += u64::from(is_right);
            self.predicted.increment(1);
            self.right.increment(u64::from(is_right));
        }
    }

    /// The experts `target` is likely to want for the pass's rows, the likeliest first, at most as many
    /// as were asked for. The state is the residual stream plus `Branch` (the shared expert's output,
    /// `[rows, width]`).
    ///
    /// # Errors
    /// A GPU that failed.
    pub fn predict(
        &mut self,
        spec: &MoeSpec,
        target: &Target<'_>,
        pass: &mut Pass<'_>,
    ) -> Result<Vec<u32>, GpuError> {
        let routes = predicted_routes(spec, target, pass)?;
        let mut weight = vec![0f32; spec.experts];
        routes.iter().for_each(|route| weight[route.expert as usize] += route.weight);
        let mut likely: Vec<u32> = (0..spec.experts as u32).filter(|e| weight[*e as usize] > 0.0).collect();
        likely.sort_by(|a, b| weight[*b as usize].total_cmp(&weight[*a as usize]).then(a.cmp(b)));
        likely.truncate(self.ranks);
        let layer = target.weights.layer as usize;
        if self.pending.len() <= layer {
            self.pending.resize(layer + 1, Vec::new());
        }
        self.pending[layer].clone_from(&likely);
        Ok(likely)
    }
}

/// What `target`'s router would choose for the pass's rows as they are now.
fn predicted_routes(
    spec: &MoeSpec,
    target: &Target<'_>,
    pass: &mut Pass<'_>,
) -> Result<Vec<Route>, GpuError> {
    let (rows, width) = (pass.rows, target.weights.router.cols);
    pass.ops.sum(Reg::Residual, Reg::Branch, Reg::Ahead, rows * width);
    pass.ops.norm(Norm {
        x: Reg::Ahead,
        rows: 0..rows,
        stride: width,
        weight: target.norm,
        eps: pass.norm_eps,
        out: Reg::Ahead,
    });
    choose((spec, target.weights), pass, Reg::Ahead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_are_counted_by_rank_once_their_layer_has_routed() {
        let mut ahead = Lookahead::default();
        ahead.set_ranks(3);
        ahead.pending = vec![Vec::new(), vec![7, 2, 5]];
        ahead.settle(1, &[5, 7, 0]);
        ahead.settle(1, &[5, 7, 0]);
        ahead.settle(9, &[1]);
        let right: Vec<u64> = ahead.counts()[..4].iter().map(|c| c.right).collect();
        let predicted: Vec<u64> = ahead.counts()[..4].iter().map(|c| c.predicted).collect();
        assert_eq!((right, predicted), (vec![1, 0, 1, 0], vec![1, 1, 1, 0]));
    }

    #[test]
    fn wide_passes_and_a_rank_of_zero_are_not_predicted() {
        let mut ahead = Lookahead::default();
        assert!(!ahead.is_on(1));
        ahead.set_ranks(2);
        assert!(ahead.is_on(1) && ahead.is_on(ROWS_MAX) && !ahead.is_on(ROWS_MAX + 1));
        ahead.set_ranks(0);
        assert!(!ahead.is_on(1));
    }
}
