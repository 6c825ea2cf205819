//! Experts that are not on the device, computed by the host's threads while it works (ALGORITHMS.md H.8).
//!
//! Owns the rows and results of that lane on the host. Both sides have the same bits, so that it shows in no text
//! which computed what. It must not know slots.

use std::time::Instant;

use super::backend::GpuBackend;
use super::driver::Lane;
use super::experts::Experts;
use super::lanes::Choice;
use crate::backend::{Backend as _, ExpertWork, Reg, down_bytes, inner_bytes};
use crate::kernels::{Down, GateUp, Input, down_experts, gate_up_experts};

impl GpuBackend {
    /// Which whole experts are computed here on the host, and which are copied in. The rows that the former need
    /// are fetched behind what was queued before, the shared expert for one.
    pub(super) fn choose_lanes(
        &mut self,
        own: &mut Experts,
        work: &ExpertWork<'_, '_>,
    ) -> (Vec<u32>, Vec<u32>) {
        if work.down.is_empty() || own.pool.is_none() {
            return (Vec::new(), work.down.to_vec());
        }
        let choices = own.rates.choose(work.weights.shape.bytes() as f64, &work.plan.counts(work.down));
        let mut here = Vec::new();
        let mut moved = Vec::new();
        for (expert, choice) in work.down.iter().zip(choices) {
            if choice == Choice::Host { here.push(*expert) } else { moved.push(*expert) }
        }
        if !here.is_empty() && !own.has_normed {
            own.has_normed = true;
            let len = work.rows * work.weights.router.cols;
            match self.values(Reg::Normed, 0..len) {
                Ok(normed) => {
                    own.normed.clear();
                    own.normed.extend_from_slice(normed);
                }
                Err(error) => self.queue.run(|_| Err::<(), _>(error)),
            }
            own.normed.resize(len, 0.0);
        }
        (here, moved)
    }

    /// Computes experts on the host's threads while the device works, and uploads what they give.
    pub(super) fn compute_here(&mut self, own: &mut Experts, work: &ExpertWork<'_, '_>, experts: &[u32]) {
        if experts.is_empty() {
            return;
        }
        let mut pool = own.pool.take().expect("invariant: without threads nothing is left to them");
        let began = Instant::now();
        let (plan, shape) = (work.plan, &work.weights.shape);
        let width = work.weights.router.cols;
        let x = Input::new(&own.normed[..work.rows * width], width);
        let places: usize = experts.iter().map(|expert| plan.places(*expert).len()).sum();
        own.hidden.resize(places * shape.gate.rows, 0.0);
        own.out.resize(places * width, 0.0);
        let mut left = own.hidden.as_mut_slice();
        let mut ways_in = Vec::with_capacity(experts.len());
        for expert in experts {
            let rows = &plan.rows[plan.places(*expert)];
            let [gate, up] = inner_bytes(work.lease, *expert);
            let (hidden, rest) = left.split_at_mut(rows.len() * shape.gate.rows);
            left = rest;
            ways_in.push(GateUp { gate: shape.gate.with(gate), up: shape.up.with(up), rows, hidden });
        }
        gate_up_experts(&mut pool, &x, &mut ways_in);
        let (mut hidden, mut left) = (own.hidden.as_slice(), own.out.as_mut_slice());
        let mut ways_out = Vec::with_capacity(experts.len());
        for expert in experts {
            let rows = plan.places(*expert).len();
            let (own_hidden, rest) = hidden.split_at(rows * shape.gate.rows);
            hidden = rest;
            let (out, rest) = left.split_at_mut(rows * width);
            left = rest;
            let down = shape.down.with(down_bytes(work.lease, *expert));
            ways_out.push(Down { down, hidden: own_hidden, out });
        }
        down_experts(&mut pool, &mut ways_out);
        let seconds = began.elapsed().as_secs_f64();
        let mut out = own.out.as_slice();
        for expert in experts {
            let places = plan.places(*expert);
            let (own_out, rest) = out.split_at(places.len() * width);
            out = rest;
            let to = self.at(Reg::Routed, places.start * width);
            // SAFETY: the register holds it; pageable memory is copied at the call.
            self.queue.run(|driver| unsafe {
                driver.upload(Lane::Compute, to, own_out.as_ptr().cast(), size_of_val(own_out))
            });
        }
        own.rates.learn_host(shape.bytes() as f64 * experts.len() as f64, seconds);
        own.stats.host_experts += experts.len() as u64;
        own.stats.host_s += seconds;
        own.pool = Some(pool);
    }
}
