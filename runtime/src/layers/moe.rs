//! The mixture-of-experts layer: route, fetch, compute in arrival order, add in router order.
//!
//! Owns the window's routing table and the waves in which its experts are brought in when they are
//! more than the cache has slots. Which experts are resident changes only the order of computing:
//! weighted outputs are kept apart and added by router rank (DESIGN I2). A read that fails leaves
//! nothing behind but its error.

use drafthorse_offload::{ExpertCache, OffloadError, PARTS};

use crate::kernels::{Format, Input, MatrixRef, add_scaled, matmul};
use crate::models::{MoeSpec, Routed};

use super::Pass;
use super::ffn::{FeedForward, LoadedFeedForward, feed_forward};
use super::route::{Route, route};
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

    /// An expert's matrices from the bytes of its slot.
    fn matrices<'a>(&self, [gate, up, down]: [&'a [u8]; PARTS]) -> LoadedFeedForward<'a> {
        let (gate, up, down) = (self.gate.with(gate), self.up.with(up), self.down.with(down));
        FeedForward { gate, up, down, bias: [None; 3] }
    }
}

/// Hears which experts each row was sent to (trace recording).
pub trait RouteSink {
    /// `routes` holds `used` choices a row, rows of the pass in order.
    fn routed(&mut self, layer: u32, used: usize, routes: &[Route]);
}

/// A routed feed-forward layer at work in one pass.
pub struct MoeLayer<'a> {
    /// Routing rule.
    pub spec: &'a MoeSpec,
    /// Dense weights of the layer.
    pub weights: &'a Routed,
    /// Where the experts come from.
    pub experts: &'a mut ExpertCache,
}

impl MoeLayer<'_> {
    /// Runs the pass's rows (`scratch.normed`) and writes `[rows, width]` to `scratch.branch`.
    ///
    /// # Errors
    /// An expert that could not be read.
    pub fn forward(
        mut self,
        pass: &mut Pass<'_>,
        scratch: &mut Scratch,
        sink: Option<&mut dyn RouteSink>,
    ) -> Result<(), OffloadError> {
        let routes = self.route(pass, scratch);
        if let Some(sink) = sink {
            sink.routed(self.weights.layer, self.spec.used, &routes);
        }
        let plan = WindowPlan::new(&routes, self.spec.experts);
        // Never more at once than there are slots; a window that needs more comes in waves.
        let wave_len = self.experts.residency().slots.max(1);
        for (index, wave) in plan.experts.chunks(wave_len).enumerate() {
            self.run_wave(
                pass,
                scratch,
                &Wave { plan: &plan, experts: wave, is_first: index == 0 },
                &routes,
            )?;
        }
        self.combine(pass, scratch, &routes);
        Ok(())
    }

    /// Router logits and choices of every row, `used` a row.
    fn route(&self, pass: &mut Pass<'_>, scratch: &mut Scratch) -> Vec<Route> {
        let router = pass.dense.matrix(&self.weights.router);
        let x = Input::new(&scratch.normed[..pass.rows * router.cols], router.cols);
        let logits = sized(&mut scratch.router, pass.rows * router.rows);
        matmul(pass.pool, router, &x, logits);
        let bias = self.weights.bias.as_ref().map(|bias| pass.dense.vector(bias));
        let mut routes = Vec::with_capacity(pass.rows * self.spec.used);
        logits.chunks_mut(router.rows).for_each(|row| route(self.spec, row, bias, &mut routes));
        routes
    }

    /// Fetches and computes one wave. While the first wave's misses are read, the shared expert runs.
    fn run_wave(
        &mut self,
        pass: &mut Pass<'_>,
        scratch: &mut Scratch,
        wave: &Wave<'_>,
        routes: &[Route],
    ) -> Result<(), OffloadError> {
        let counts: Vec<u32> = wave.experts.iter().map(|e| wave.plan.picks_of(*e).len() as u32).collect();
        let mut lease = self.experts.acquire(self.weights.layer, wave.experts, &counts)?;
        if wave.is_first {
            run_shared(self.weights, pass, scratch);
        }
        while let Some(view) = lease.next()? {
            let expert = self.weights.shape.matrices(view.parts);
            run_expert(pass, scratch, expert, wave.plan.picks_of(view.expert), (self.spec.used, routes));
        }
        Ok(())
    }

    /// Adds the weighted outputs in router order, after the shared expert's.
    fn combine(&self, pass: &Pass<'_>, scratch: &mut Scratch, routes: &[Route]) {
        let width = self.weights.router.cols;
        let partial = &scratch.partial[..routes.len() * width];
        let branch = &mut scratch.branch[..pass.rows * width];
        for (row, out) in branch.chunks_mut(width).enumerate() {
            for pick in row * self.spec.used..(row + 1) * self.spec.used {
                add_scaled(&partial[pick * width..(pick + 1) * width], 1.0, out);
            }
        }
    }
}

/// Which picks (row * used + rank) go to which expert.
struct WindowPlan {
    /// Distinct experts, ascending.
    experts: Vec<u32>,
    /// Picks grouped by expert, ascending within each.
    picks: Vec<u32>,
    /// By expert id: where its picks start in `picks`; one more entry than experts.
    starts: Vec<u32>,
}

impl WindowPlan {
    fn new(routes: &[Route], experts: usize) -> WindowPlan {
        let mut starts = vec![0u32; experts + 1];
        routes.iter().for_each(|route| starts[route.expert as usize + 1] += 1);
        (0..experts).for_each(|e| starts[e + 1] += starts[e]);
        let mut fill = starts.clone();
        let mut picks = vec![0u32; routes.len()];
        for (pick, route) in routes.iter().enumerate() {
            let at = &mut fill[route.expert as usize];
            picks[*at as usize] = pick as u32;
            *at += 1;
        }
        let distinct = (0..experts as u32).filter(|e| starts[*e as usize] < starts[*e as usize + 1]);
        WindowPlan { experts: distinct.collect(), picks, starts }
    }

    fn picks_of(&self, expert: u32) -> &[u32] {
        let expert = expert as usize;
        &self.picks[self.starts[expert] as usize..self.starts[expert + 1] as usize]
    }
}

/// Experts that are fetched together.
struct Wave<'a> {
    plan: &'a WindowPlan,
    experts: &'a [u32],
    is_first: bool,
}

/// The shared expert's output, or zeros, into `scratch.branch`.
fn run_shared(weights: &Routed, pass: &mut Pass<'_>, scratch: &mut Scratch) {
    let width = weights.router.cols;
    let out = sized(&mut scratch.branch, pass.rows * width);
    match &weights.shared {
        None => out.fill(0.0),
        Some(shared) => {
            let x = Input::new(&scratch.normed[..pass.rows * width], width);
            let buffers = (&mut scratch.gate, &mut scratch.up);
            feed_forward(pass.pool, shared.resolve(pass.dense), &x, buffers, out);
        }
    }
}

/// One expert on the rows sent to it; its weighted outputs go to their own places in
/// `scratch.partial`.
fn run_expert(
    pass: &mut Pass<'_>,
    scratch: &mut Scratch,
    expert: LoadedFeedForward<'_>,
    picks: &[u32],
    (used, routes): (usize, &[Route]),
) {
    let width = expert.gate.cols;
    let gathered = sized(&mut scratch.gathered, picks.len() * width);
    for (to, pick) in gathered.chunks_mut(width).zip(picks) {
        let row = *pick as usize / used;
        to.copy_from_slice(&scratch.normed[row * width..(row + 1) * width]);
    }
    let out = sized(&mut scratch.expert_out, picks.len() * width);
    let buffers = (&mut scratch.gate, &mut scratch.up);
    feed_forward(pass.pool, expert, &Input::new(gathered, width), buffers, out);
    let partial = sized(&mut scratch.partial, routes.len() * width);
    for (from, pick) in out.chunks(width).zip(picks) {
        let pick = *pick as usize;
        let to = &mut partial[pick * width..(pick + 1) * width];
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from * routes[pick].weight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pick_is_planned_once_under_its_own_expert() {
        let experts = [3u32, 1, 1, 0, 3, 2, 1, 3];
        let routes: Vec<Route> = experts.iter().map(|e| Route { expert: *e, weight: 1.0 }).collect();
        let plan = WindowPlan::new(&routes, 5);
        assert_eq!(plan.experts, [0, 1, 2, 3]);
        assert_eq!(plan.picks_of(1), [1, 2, 6]);
        assert_eq!(plan.picks_of(3), [0, 4, 7]);
        assert!(plan.picks_of(4).is_empty());
    }
}
