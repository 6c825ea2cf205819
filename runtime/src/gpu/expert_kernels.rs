//! The kernels of routed experts, wherever in the device's reach their matrices are.
//!
//! Owns which rows of which register go through which matrix. It must not know who brought the matrices, or how
//! long they stay.

use std::ops::Range;

use super::backend::{Activations, GpuBackend};
use super::driver::DevicePtr;
use super::shapes::MatmulJob;
use crate::backend::{ExpertWork, Reg};
use crate::kernels::{Side, quantized_bytes};
use crate::layers::{PartShape, WindowPlan};

/// An expert, and where its gate, up and down begin.
pub(super) type ExpertAt = (u32, [DevicePtr; 3]);

impl GpuBackend {
    /// Queues the kernels of experts, ascending, whose matrices are where `at` says.
    pub(super) fn run_experts(&mut self, work: &ExpertWork<'_, '_>, at: &[ExpertAt]) {
        let (Some((first, _)), Some((last, _))) = (at.first(), at.last()) else { return };
        let (plan, shape) = (work.plan, &work.weights.shape);
        let (hidden, hidden_up) = (self.at(Reg::Hidden, 0), self.layout.hidden_up.at);
        let ways_in = [(shape.gate, 0, hidden), (shape.up, 1, hidden_up)];
        self.products_of(ways_in, at, plan, work.rows);
        let span = span(plan, [*first, *last]);
        let skipped = (span.start * shape.gate.rows * size_of::<f32>()) as u64;
        let side = shape.down.format.side();
        let packed = match side {
            Side::Float => 0,
            _ => {
                self.layout.quantized[&Reg::Hidden].at
                    + (span.start * quantized_bytes(shape.down.cols)) as u64
            }
        };
        self.touch(Reg::Hidden);
        self.queue_silu(
            (hidden + skipped, hidden_up + skipped),
            (packed, side),
            (span.len(), shape.gate.rows),
        );
        self.products_out(shape.down, at, plan);
    }

    /// Gate and up of experts, each on its rows of `Normed`.
    fn products_of(
        &mut self,
        parts: [(PartShape, usize, DevicePtr); 2],
        at: &[ExpertAt],
        plan: &WindowPlan,
        rows: usize,
    ) {
        let list = self.window.map(|window| window.rows);
        let jobs_of = |(part, which, out): (PartShape, usize, DevicePtr), x: Activations| {
            let job = move |(expert, parts): &ExpertAt| {
                let places = plan.places(*expert);
                let job = MatmulJob {
                    w: parts[which],
                    x: x.at,
                    rows: list.map_or(0, |list| list + (places.start * size_of::<u32>()) as u64),
                    out: out + (places.start * part.rows * size_of::<f32>()) as u64,
                    n: part.rows as u32,
                    count: places.len() as u32,
                    x_first: 0,
                    x_step: 0,
                    x_stride: x.stride_bytes as u32,
                    out_stride: part.rows as u32,
                };
                if list.is_some() { job } else { job.of_rows(&plan.rows[places]) }
            };
            at.iter().map(job).collect::<Vec<_>>()
        };
        let [gate, up] = parts;
        let x = self.activations(Reg::Normed, gate.0.format.side(), rows, gate.0.cols);
        let mut jobs = jobs_of(gate, x);
        if gate.0.format != up.0.format {
            // Another layout of the same rows may take this one's place: its products are queued first.
            self.queue.matmul(gate.0.format, gate.0.cols, &jobs);
            jobs.clear();
        }
        let x = self.activations(Reg::Normed, up.0.format.side(), rows, up.0.cols);
        jobs.extend(jobs_of(up, x));
        self.queue.matmul(up.0.format, up.0.cols, &jobs);
    }

    /// Down of experts: from `Hidden` to `Routed`, by place.
    fn products_out(&mut self, part: PartShape, at: &[ExpertAt], plan: &WindowPlan) {
        let (hidden, routed) = (self.at(Reg::Hidden, 0), self.at(Reg::Routed, 0));
        let side = part.format.side();
        let (x, stride) = match side {
            Side::Float => (hidden, part.cols * size_of::<f32>()),
            _ => (self.layout.quantized[&Reg::Hidden].at, quantized_bytes(part.cols)),
        };
        let jobs: Vec<MatmulJob> = at
            .iter()
            .map(|(expert, [_, _, down])| {
                let places = plan.places(*expert);
                MatmulJob {
                    w: *down,
                    x,
                    rows: 0,
                    out: routed + (places.start * part.rows * size_of::<f32>()) as u64,
                    n: part.rows as u32,
                    count: places.len() as u32,
                    x_first: places.start as u32,
                    x_step: 1,
                    x_stride: stride as u32,
                    out_stride: part.rows as u32,
                }
            })
            .collect();
        self.queue.matmul(part.format, part.cols, &jobs);
    }
}

/// From the first place of ascending experts to their last. Places between that are others' hold what nobody reads
/// any more, or what is computed anew before it is read: what is made of it does not matter.
fn span(plan: &WindowPlan, ends: [u32; 2]) -> Range<usize> {
    let [first, last] = ends.map(|expert| plan.places(expert));
    first.start..last.end
}
