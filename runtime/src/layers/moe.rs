//! The mixture-of-experts layer: route, fetch, compute what has arrived, add in router order.
//!
//! Owns the window's routing table and the loop that computes gate and up of every expert that is in
//! memory as one job, then down of every expert whose down is, while the disk brings the rest. The shared
//! expert is one more in the first two of these jobs: every job is a meeting of threads. Which
//! experts are resident changes only the order of computing: outputs are kept apart and added by
//! router rank (DESIGN I2). A read that fails leaves nothing behind but its error. Rows that are not worth what
//! they would read are dropped before it is asked for.

use drafthorse_offload::{ExpertCache, ExpertId, Lease, OffloadError, Piece};

use crate::clock::Phase;
use crate::kernels::{
    Down, Format, GateUp, Input, MatrixRef, add_scaled, down_experts, gate_up_experts, matmul,
};
use crate::models::{MoeSpec, Routed};

use super::Pass;
use super::demand::DemandLoads;
use super::ffn::{FeedForward, LoadedFeedForward};
use super::lookahead::{Lookahead, Target};
use super::route::{Route, route};
use super::row_gate::RowGate;
use super::scratch::{Scratch, sized};

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

    fn with<'a>(&self, bytes: &'a [u8]) -> MatrixRef<'a> {
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
    /// Runs the pass's rows (`scratch.normed`) and writes `[rows, width]` to `scratch.branch`. `pass.rows` is then
    /// how many went through: a gate may drop some at the end.
    ///
    /// # Errors
    /// An expert that could not be read.
    pub fn forward(
        mut self,
        pass: &mut Pass<'_>,
        scratch: &mut Scratch,
        sink: Option<&mut dyn RouteSink>,
    ) -> Result<(), OffloadError> {
        let mut routes = self.route(pass, scratch);
        let layer = self.weights.layer;
        let mut plan = WindowPlan::new(&routes, (self.spec.experts, self.spec.used));
        self.lookahead.settle(layer, &plan.experts);
        self.drop_rows(pass, &mut routes, &mut plan);
        if let Some(sink) = sink {
            sink.routed(layer, self.spec.used, &routes);
        }
        note_demand(self.demand, self.experts, self.weights, &plan);
        let mut lease = self.experts.acquire(layer, &plan.experts, &plan.counts())?;
        pass.clock.lap(Phase::Router);
        let mut window = Window::new(self.weights, &plan, pass, scratch);
        if let Some(target) = self.next.filter(|_| self.lookahead.is_on(pass.rows)) {
            // What is predicted from includes the shared expert's output; the disk should know early.
            window.compute([&[], &[]], &lease, pass, scratch);
            pass.clock.lap(Phase::Experts);
            let likely = self.lookahead.predict(self.spec, &target, pass, scratch);
            lease.prefetch(target.weights.layer, &likely)?;
            pass.clock.lap(Phase::Router);
        }
        window.run(&mut lease, pass, scratch)?;
        drop(lease);
        combine(&plan, &routes, self.spec.used, self.weights.router.cols, scratch);
        pass.clock.lap(Phase::Experts);
        Ok(())
    }

    /// Drops the rows that the gate does not let through, before anything is read for them.
    fn drop_rows(&mut self, pass: &mut Pass<'_>, routes: &mut Vec<Route>, plan: &mut WindowPlan) {
        let Some(gate) = &mut self.gate else { return };
        let first_rows: Vec<usize> = missing(self.experts, self.weights.layer, plan).collect();
        let kept = gate.ask(pass.rows, &first_rows);
        if kept < pass.rows {
            pass.rows = kept;
            routes.truncate(kept * self.spec.used);
            *plan = WindowPlan::new(routes, (self.spec.experts, self.spec.used));
        }
    }

    /// Router logits and choices of every row, `used` a row.
    fn route(&self, pass: &mut Pass<'_>, scratch: &mut Scratch) -> Vec<Route> {
        let router = pass.dense.matrix(&self.weights.router);
        let x = Input::new(&scratch.normed[..pass.rows * router.cols], router.cols);
        let logits = sized(&mut scratch.router, pass.rows * router.rows);
        choose(self.spec, self.weights, pass, &x, logits)
    }
}

/// Notes the experts of the window that are neither in memory nor on their way.
fn note_demand(demand: &mut DemandLoads, cache: &ExpertCache, weights: &Routed, plan: &WindowPlan) {
    missing(cache, weights.layer, plan).for_each(|row| demand.note(row, weights.shape.bytes()));
}

/// The first row that wants each expert of the window that is neither in memory nor on its way.
fn missing(cache: &ExpertCache, layer: u32, plan: &WindowPlan) -> impl Iterator<Item = usize> {
    let is_missing = move |expert: &&u32| !cache.holds(ExpertId { layer, expert: **expert });
    // Places of an expert are filled row by row, so the first is the earliest row's.
    plan.experts.iter().filter(is_missing).map(move |expert| plan.rows[plan.places(*expert).start] as usize)
}

/// What the layer's router chooses for the rows of `x`, `used` a row; `logits` is `[rows, experts]`.
pub(super) fn choose(
    spec: &MoeSpec,
    weights: &Routed,
    pass: &mut Pass<'_>,
    x: &Input<'_>,
    logits: &mut [f32],
) -> Vec<Route> {
    matmul(pass.pool, pass.dense.matrix(&weights.router), x, logits);
    let bias = weights.bias.as_ref().map(|bias| pass.dense.vector(bias));
    let mut routes = Vec::with_capacity(x.rows() * spec.used);
    logits.chunks_mut(spec.experts).for_each(|row| route(spec, row, bias, &mut routes));
    routes
}

/// Adds the weighted outputs in router order to what `scratch.branch` holds (the shared expert's).
fn combine(plan: &WindowPlan, routes: &[Route], used: usize, width: usize, scratch: &mut Scratch) {
    let routed = &scratch.routed[..routes.len() * width];
    let rows = scratch.branch.chunks_mut(width);
    let picks = routes.chunks(used).zip(plan.place.chunks(used));
    for (out, (routes, places)) in rows.zip(picks) {
        for (route, place) in routes.iter().zip(places) {
            let place = *place as usize;
            add_scaled(&routed[place * width..(place + 1) * width], route.weight, out);
        }
    }
}

/// Which picks (row * used + rank) go to which expert. Picks are placed expert after expert: hidden
/// values and outputs of one expert lie together.
struct WindowPlan {
    /// Distinct experts, ascending.
    experts: Vec<u32>,
    /// By place: the row of the pick there.
    rows: Vec<u32>,
    /// By pick: its place.
    place: Vec<u32>,
    /// By expert id: where its places start; one more entry than experts.
    starts: Vec<u32>,
}

impl WindowPlan {
    fn new(routes: &[Route], (experts, used): (usize, usize)) -> WindowPlan {
        let mut starts = vec![0u32; experts + 1];
        routes.iter().for_each(|route| starts[route.expert as usize + 1] += 1);
        (0..experts).for_each(|e| starts[e + 1] += starts[e]);
        let mut fill = starts.clone();
        let (mut rows, mut place) = (vec![0u32; routes.len()], vec![0u32; routes.len()]);
        for (pick, route) in routes.iter().enumerate() {
            let at = &mut fill[route.expert as usize];
            rows[*at as usize] = (pick / used) as u32;
            place[pick] = *at;
            *at += 1;
        }
        let distinct = (0..experts as u32).filter(|e| starts[*e as usize] < starts[*e as usize + 1]);
        WindowPlan { experts: distinct.collect(), rows, place, starts }
    }

    /// Places of an expert's picks.
    fn places(&self, expert: u32) -> std::ops::Range<usize> {
        let expert = expert as usize;
        self.starts[expert] as usize..self.starts[expert + 1] as usize
    }

    /// Rows that chose each of `experts`.
    fn counts(&self) -> Vec<u32> {
        self.experts.iter().map(|expert| self.places(*expert).len() as u32).collect()
    }
}

/// The experts of one window at work.
struct Window<'a> {
    weights: &'a Routed,
    plan: &'a WindowPlan,
    /// The shared expert, until it is computed.
    shared: Option<LoadedFeedForward<'a>>,
    /// Its rows: all of them.
    every_row: Vec<u32>,
}

impl<'a> Window<'a> {
    /// Nothing is computed yet; `scratch.branch` is what the experts' outputs are added to.
    fn new(weights: &'a Routed, plan: &'a WindowPlan, pass: &Pass<'a>, scratch: &mut Scratch) -> Window<'a> {
        let branch = sized(&mut scratch.branch, pass.rows * weights.router.cols);
        let shared = weights.shared.as_ref().map(|shared| shared.resolve(pass.dense));
        if shared.is_none() {
            branch.fill(0.0);
        }
        Window { weights, plan, shared, every_row: (0..pass.rows as u32).collect() }
    }

    /// Computes every expert as its pieces arrive: outputs go to `scratch.routed` by place.
    fn run(
        &mut self,
        lease: &mut Lease<'_>,
        pass: &mut Pass<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), OffloadError> {
        while self.shared.is_some() || !lease.is_done() {
            let [inner, down] = arrived(lease, self.shared.is_none())?;
            pass.clock.lap(Phase::Stall);
            self.compute([&inner, &down], lease, pass, scratch);
            down.iter().for_each(|expert| lease.release(*expert));
            pass.clock.lap(Phase::Experts);
        }
        Ok(())
    }

    /// Gate and up of the first experts, down of the second, and the shared expert if it is still due.
    fn compute(
        &mut self,
        [inner, down]: [&[u32]; 2],
        lease: &Lease<'_>,
        pass: &mut Pass<'_>,
        scratch: &mut Scratch,
    ) {
        let shape = &self.weights.shape;
        let Scratch { normed, hidden, routed, gate, branch, .. } = scratch;
        let width = self.weights.router.cols;
        let x = Input::new(&normed[..pass.rows * width], width);
        let hidden = sized(hidden, self.plan.rows.len() * shape.gate.rows);
        let routed = sized(routed, self.plan.rows.len() * shape.down.rows);
        let shared = self.shared.take();
        let inner_shared = shared.map_or(0, |shared| shared.gate.rows);
        let gate = sized(gate, pass.rows * inner_shared);
        let mut ways_in = self.ways_in(inner, lease, hidden);
        ways_in.extend(shared.map(|FeedForward { gate: matrix, up, .. }| GateUp {
            gate: matrix,
            up,
            rows: &self.every_row,
            hidden: gate,
        }));
        gate_up_experts(pass.pool, &x, &mut ways_in);
        let mut ways_out = self.ways_out(down, lease, (hidden, routed));
        let branch = &mut branch[..pass.rows * width];
        ways_out.extend(shared.map(|shared| Down { down: shared.down, hidden: gate, out: branch }));
        down_experts(pass.pool, &mut ways_out);
    }

    /// `experts` ascend, so that each takes its part off the front of what is left of `hidden`.
    fn ways_in<'w>(
        &'w self,
        experts: &[u32],
        lease: &'w Lease<'_>,
        hidden: &'w mut [f32],
    ) -> Vec<GateUp<'w>> {
        let shape = &self.weights.shape;
        let mut hidden = Cut { left: hidden, each: shape.gate.rows, at: 0 };
        let way_in = |expert: &u32| {
            let places = self.plan.places(*expert);
            let [gate, up] = lease.inner(*expert).expect("invariant: it was announced and is held");
            GateUp {
                gate: shape.gate.with(gate),
                up: shape.up.with(up),
                hidden: hidden.take(places.clone()),
                rows: &self.plan.rows[places],
            }
        };
        experts.iter().map(way_in).collect()
    }

    fn ways_out<'w>(
        &self,
        experts: &[u32],
        lease: &'w Lease<'_>,
        (hidden, routed): (&'w [f32], &'w mut [f32]),
    ) -> Vec<Down<'w>> {
        let shape = &self.weights.shape;
        let inner = shape.down.cols;
        let mut routed = Cut { left: routed, each: shape.down.rows, at: 0 };
        let way_out = |expert: &u32| {
            let places = self.plan.places(*expert);
            let down = lease.down(*expert).expect("invariant: it was announced and is held");
            Down {
                down: shape.down.with(down),
                hidden: &hidden[places.start * inner..places.end * inner],
                out: routed.take(places),
            }
        };
        experts.iter().map(way_out).collect()
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

/// A buffer of `each` values a place, handed out range by range from the front.
struct Cut<'a> {
    left: &'a mut [f32],
    each: usize,
    at: usize,
}

impl<'a> Cut<'a> {
    /// The values of `places`, which start no earlier than the last ones ended.
    fn take(&mut self, places: std::ops::Range<usize>) -> &'a mut [f32] {
        let (_, rest) = std::mem::take(&mut self.left).split_at_mut((places.start - self.at) * self.each);
        let (taken, rest) = rest.split_at_mut(places.len() * self.each);
        self.left = rest;
        self.at = places.end;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pick_has_one_place_among_those_of_its_expert() {
        let experts = [3u32, 1, 1, 0, 3, 2, 1, 3];
        let routes: Vec<Route> = experts.iter().map(|e| Route { expert: *e, weight: 1.0 }).collect();
        let plan = WindowPlan::new(&routes, (5, 2));
        assert_eq!(plan.experts, [0, 1, 2, 3]);
        assert_eq!(plan.counts(), [1, 3, 1, 3]);
        assert_eq!(&plan.rows[plan.places(1)], [0, 1, 3]);
        assert_eq!(&plan.rows[plan.places(3)], [0, 2, 3]);
        assert!(plan.places(4).is_empty());
        for (pick, expert) in experts.iter().enumerate() {
            let place = plan.place[pick] as usize;
            assert!(plan.places(*expert).contains(&place));
            assert_eq!(plan.rows[place] as usize, pick / 2);
        }
    }

    #[test]
    fn a_cut_buffer_gives_each_expert_its_own_places() {
        let mut values: Vec<f32> = (0..12u8).map(f32::from).collect();
        let mut cut = Cut { left: &mut values, each: 2, at: 0 };
        assert_eq!(cut.take(1..2), [2.0, 3.0]);
        assert_eq!(cut.take(2..4), [4.0, 5.0, 6.0, 7.0]);
        assert_eq!(cut.take(5..6), [10.0, 11.0]);
    }
}
