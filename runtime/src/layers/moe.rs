//! The mixture-of-experts layer: route, fetch, compute what has arrived, add in router order.
//!
//! Owns the loop that computes gate and up of every expert that is in memory as one job, then down of every
//! expert whose down is, while the disk brings the rest. The shared expert is one more in the first two of
//! these jobs: every job is a meeting of threads. Which experts are resident, and where, changes only the
//! order of computing: outputs are kept apart and added by router rank (DESIGN I2). A read that fails leaves
//! nothing behind but its error. Rows that are not worth what they would read are dropped before it is asked for.

use drafthorse_offload::{ExpertCache, ExpertId, Lease, OffloadError, Piece};
use thiserror::Error;

use crate::backend::{Backend, ExpertWork, Reg};
use crate::clock::Phase;
use crate::gpu::GpuError;
use crate::kernels::{Format, MatrixRef};
use crate::models::{MoeSpec, Routed};

use super::Pass;
use super::demand::DemandLoads;
use super::ffn::DenseFeedForward;
use super::lookahead::{Lookahead, Target};
use super::route::{Route, route};
use super::row_gate::RowGate;
use super::window::WindowPlan;

/// Format and size of one matrix of an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartShape {
    /// Block format.
    pub format: Format,
    /// Output width.
    pub rows: usize,
    /// Input width.
    pub cols: usize,
}

impl PartShape {
    /// Bytes of the matrix.
    pub fn bytes(&self) -> u64 {
        let elements = self.rows as u64 * self.cols as u64;
        self.format.block_type().bytes_for(elements).expect("invariant: checked against the tensor")
    }

    pub(crate) fn with<'a>(&self, bytes: &'a [u8]) -> MatrixRef<'a> {
        MatrixRef { format: self.format, rows: self.rows, cols: self.cols, bytes }
    }
}

/// Shapes of the routed experts of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    /// `[inner, width]`.
    pub gate: PartShape,
    /// `[inner, width]`.
    pub up: PartShape,
    /// `[width, inner]`.
    pub down: PartShape,
}

impl ExpertShape {
    /// Bytes of one expert; `PARTS` matrices of whole rows.
    pub fn bytes(&self) -> u64 {
        [self.gate, self.up, self.down].iter().map(PartShape::bytes).sum()
    }
}

/// Hears which experts each row was sent to.
pub trait RouteSink {
    /// `routes` holds `used` choices a row, rows of the pass in order.
    fn routed(&mut self, layer: u32, used: usize, routes: &[Route]);
}

impl RouteSink for Vec<Box<dyn RouteSink + Send>> {
    fn routed(&mut self, layer: u32, used: usize, routes: &[Route]) {
        self.iter_mut().for_each(|sink| sink.routed(layer, used, routes));
    }
}

/// What a routed layer can fail with.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the message is the cause's")]
pub enum MoeError {
    #[error(transparent)]
    Experts(#[from] OffloadError),
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// A routed feed-forward layer at work in one pass.
pub struct MoeLayer<'a, 'g> {
    /// Routing rule.
    pub spec: &'a MoeSpec,
    /// Dense weights of the layer.
    pub weights: &'a Routed,
    /// Where the experts come from.
    pub experts: &'a mut ExpertCache,
    /// Who predicts later layers.
    pub lookahead: &'a mut Lookahead,
    /// Hears what has to be read at once.
    pub demand: &'a mut DemandLoads,
    /// The next block's routed layer, to be predicted.
    pub next: Option<Target<'a>>,
    /// Says how many rows go on; `None`: all.
    pub gate: Option<&'a mut RowGate<'g>>,
}

impl MoeLayer<'_, '_> {
    /// Runs the pass's rows (`Normed`) and writes `[rows, width]` to `Branch`. `pass.rows` is then how many went
    /// through: a gate may drop some at the end.
    ///
    /// # Errors
    /// An expert that could not be read, a GPU that failed.
    pub fn forward(mut self, pass: &mut Pass<'_>, sink: Option<&mut dyn RouteSink>) -> Result<(), MoeError> {
        let mut logits = vec![0f32; pass.rows * self.spec.experts];
        let shared = self.weights.shared.as_ref();
        let is_shared_done = pass.ops.route(pass.rows, &self.weights.router, shared, &mut logits)?;
        let mut routes = choices((self.spec, self.weights), &*pass.ops, &mut logits);
        let layer = self.weights.layer;
        let mut plan = WindowPlan::new(&routes, (self.spec.experts, self.spec.used));
        self.lookahead.settle(layer, &plan.experts);
        self.drop_rows(pass, &mut routes, &mut plan);
        if let Some(sink) = sink {
            sink.routed(layer, self.spec.used, &routes);
        }
        let shape = &self.weights.shape;
        missing(&*pass.ops, self.experts, layer, &plan).for_each(|row| self.demand.note(row, shape.bytes()));
        let weights: Vec<f32> = routes.iter().map(|route| route.weight).collect();
        let claimed = pass.ops.claim(layer, &plan, &weights);
        let rest: Vec<u32> =
            plan.experts.iter().filter(|expert| claimed.binary_search(expert).is_err()).copied().collect();
        let mut lease = self.experts.acquire(layer, &rest, &plan.counts(&rest))?;
        pass.clock.lap(Phase::Router);
        if shared.is_none() {
            pass.ops.clear_branch(pass.rows * self.weights.router.cols);
        }
        let shared = shared.filter(|_| !is_shared_done);
        let mut window = Window { weights: self.weights, plan: &plan, shared, claimed };
        if let Some(target) = self.next.filter(|_| self.lookahead.is_on(pass.rows)) {
            // What is predicted from includes the shared expert's output; the disk should know early.
            window.compute([&[], &[]], &lease, pass);
            pass.clock.lap(Phase::Experts);
            let mut likely = self.lookahead.predict(self.spec, &target, pass)?;
            likely.retain(|expert| !pass.ops.holds(target.weights.layer, *expert));
            lease.prefetch(target.weights.layer, &likely)?;
            pass.clock.lap(Phase::Router);
        }
        window.run(&mut lease, pass)?;
        drop(lease);
        pass.ops.combine(&plan, &weights, self.spec.used, self.weights.router.cols);
        pass.clock.lap(Phase::Experts);
        Ok(())
    }

    /// Drops the rows that the gate does not let through, before anything is read for them.
    fn drop_rows(&mut self, pass: &mut Pass<'_>, routes: &mut Vec<Route>, plan: &mut WindowPlan) {
        let Some(gate) = &mut self.gate else { return };
        let first_rows: Vec<usize> = missing(&*pass.ops, self.experts, self.weights.layer, plan).collect();
        let kept = gate.ask(pass.rows, &first_rows);
        if kept < pass.rows {
            pass.rows = kept;
            routes.truncate(kept * self.spec.used);
            *plan = WindowPlan::new(routes, (self.spec.experts, self.spec.used));
        }
    }
}

/// The first row that wants each expert of the window that is neither in memory nor on its way.
fn missing(
    ops: &dyn Backend,
    cache: &ExpertCache,
    layer: u32,
    plan: &WindowPlan,
) -> impl Iterator<Item = usize> {
    let is_missing = move |expert: &&u32| {
        !ops.holds(layer, **expert) && !cache.holds(ExpertId { layer, expert: **expert })
    };
    // Places of an expert are filled row by row, so the first is the earliest row's.
    plan.experts.iter().filter(is_missing).map(move |expert| plan.rows[plan.places(*expert).start] as usize)
}

/// What the layer's router chooses for the rows in `x`, `used` a row.
pub(super) fn choose(
    (spec, weights): (&MoeSpec, &Routed),
    pass: &mut Pass<'_>,
    x: Reg,
) -> Result<Vec<Route>, GpuError> {
    let mut logits = vec![0f32; pass.rows * spec.experts];
    pass.ops.product(x, pass.rows, &weights.router, &mut logits)?;
    Ok(choices((spec, weights), &*pass.ops, &mut logits))
}

/// The choices that a router's logits make.
fn choices((spec, weights): (&MoeSpec, &Routed), ops: &dyn Backend, logits: &mut [f32]) -> Vec<Route> {
    let bias = weights.bias.as_ref().map(|bias| ops.dense().vector(bias));
    let mut routes = Vec::with_capacity(logits.len() / spec.experts * spec.used);
    logits.chunks_mut(spec.experts).for_each(|row| route(spec, row, bias, &mut routes));
    routes
}

/// The experts of one window at work.
struct Window<'a> {
    weights: &'a Routed,
    plan: &'a WindowPlan,
    /// The shared expert, until it is computed.
    shared: Option<&'a DenseFeedForward>,
    /// Experts that the backend has by itself, until they are computed.
    claimed: Vec<u32>,
}

impl Window<'_> {
    /// Computes every expert as its pieces arrive: outputs go to `Routed` by place.
    fn run(&mut self, lease: &mut Lease<'_>, pass: &mut Pass<'_>) -> Result<(), MoeError> {
        while self.is_due() || !lease.is_done() {
            let [inner, down] = arrived(lease, !self.is_due())?;
            pass.clock.lap(Phase::Stall);
            self.compute([&inner, &down], lease, pass);
            pass.ops.settle(lease.wants_room())?;
            down.iter().for_each(|expert| lease.release(*expert));
            pass.clock.lap(Phase::Experts);
        }
        Ok(())
    }

    /// Whether there is something to compute that waits for nothing.
    fn is_due(&self) -> bool {
        self.shared.is_some() || !self.claimed.is_empty()
    }

    /// Gate and up of the first experts, down of the second, and what is due besides.
    fn compute(&mut self, [inner, down]: [&[u32]; 2], lease: &Lease<'_>, pass: &mut Pass<'_>) {
        let claimed = std::mem::take(&mut self.claimed);
        pass.ops.experts(&ExpertWork {
            weights: self.weights,
            plan: self.plan,
            rows: pass.rows,
            claimed: &claimed,
            inner,
            down,
            lease,
            shared: self.shared.take(),
        });
    }
}

/// What can be computed now: experts by gate and up, and by down; ascending. Waits for some if asked to.
fn arrived(lease: &mut Lease<'_>, wait: bool) -> Result<[Vec<u32>; 2], OffloadError> {
    let mut experts = [Vec::new(), Vec::new()];
    for arrival in lease.arrivals(wait)? {
        experts[usize::from(arrival.piece == Piece::Down)].push(arrival.expert);
    }
    experts.iter_mut().for_each(|experts| experts.sort_unstable());
    Ok(experts)
}
