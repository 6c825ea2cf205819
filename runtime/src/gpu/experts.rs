//! Routed experts on the device: a slab of slots, and what becomes of an expert that is in none of them.
//!
//! Owns the slab and the order of copies and kernels; what is computed by the host instead is `host_lane`'s, and
//! experts that are read in the host's memory are `in_place`'s. A slot may be overwritten at once when a window
//! begins, since its routing was read from the compute lane behind everything before it; within a window only behind
//! an event. It must not know how experts got into the host's memory.

use std::collections::BTreeSet;
use std::time::Instant;

use drafthorse_offload::{ExpertId, Tier, WarmStats};

use super::backend::GpuBackend;
use super::driver::{DevicePtr, Driver, Event, GpuError, Lane};
use super::expert_kernels::ExpertAt;
use super::lanes::Rates;
use super::{GpuStats, SlabPlan};
use crate::backend::{ExpertWork, down_bytes, inner_bytes};
use crate::kernels::Pool;
use crate::layers::ExpertShape;

/// Alignment of an expert's parts in its slot.
const ALIGN: u64 = 256;
/// Experts of a window that are copied in for later at most.
const PROMOTED_MAX: usize = 2;
/// Experts that are computed together once they have been copied in.
const GROUP: usize = 4;

/// What lies between the parts of an expert in the host's memory at most, where one copy takes them all: what direct
/// reads begin before and end behind each.
const BETWEEN_PARTS: u64 = 24 << 10;
/// Where matrices may begin, in bytes.
pub const PART_ALIGN: usize = 16;
/// Bytes that kernels read beyond a matrix at most.
pub const READ_BEYOND: usize = 3;

/// Bytes of a slot that holds any of `shapes`.
pub fn slot_bytes<'a>(shapes: impl Iterator<Item = &'a ExpertShape>) -> u64 {
    let whole = shapes.map(|shape| offsets(shape)[2] + align(shape.down.bytes())).max();
    whole.map_or(0, |bytes| align(bytes + BETWEEN_PARTS))
}

/// Bytes from the front of the first part to the end of the last, and where each part begins in them, if one copy of
/// so many bytes at most can take them all.
fn as_one(parts: [&[u8]; 3], slot_bytes: u64) -> Option<(usize, [u64; 3])> {
    let first = parts[0].as_ptr() as usize;
    let starts = parts.map(|part| (part.as_ptr() as usize).wrapping_sub(first));
    let end = starts[2].checked_add(parts[2].len())?;
    let in_order = starts[1] >= parts[0].len() && starts[2] >= starts[1].checked_add(parts[1].len())?;
    let fits = end as u64 <= slot_bytes
        && align(end as u64) <= slot_bytes
        && starts.iter().all(|start| start.is_multiple_of(PART_ALIGN));
    (in_order && fits).then(|| (end, starts.map(|start| start as u64)))
}

/// Where gate, up and down begin in a slot.
fn offsets(shape: &ExpertShape) -> [u64; 3] {
    let up = align(shape.gate.bytes());
    [0, up, up + align(shape.up.bytes())]
}

/// A place for so many bytes of a matrix.
fn align(bytes: u64) -> u64 {
    (bytes + READ_BEYOND as u64).next_multiple_of(ALIGN)
}

/// Experts in the device's memory.
pub struct Experts {
    tier: Tier,
    slab: DevicePtr,
    slot_bytes: u64,
    /// By slot: where gate, up and down of its expert begin.
    parts: Vec<[u64; 3]>,
    /// Experts that the present window found, which are computed before any other.
    claimed: Vec<ExpertId>,
    /// Slots that kernels of the present window read or will read.
    used: BTreeSet<usize>,
    /// Behind the last copy of a window.
    copied: Option<Event>,
    /// Events that nobody waits for: an order that was given stands when its event is recorded anew.
    spare: Vec<Event>,
    /// Before the first copy since the last wait, and the bytes copied since.
    began: Option<Event>,
    copying_bytes: u64,
    pub(super) pool: Option<Pool>,
    pub(super) rates: Rates,
    pub(super) stats: GpuStats,
    pub(super) hidden: Vec<f32>,
    pub(super) out: Vec<f32>,
    /// The window's rows, once the host has needed them.
    pub(super) normed: Vec<f32>,
    pub(super) has_normed: bool,
}

impl Experts {
    /// Allocates the slab.
    ///
    /// # Errors
    /// No memory.
    pub fn new(driver: &mut dyn Driver, plan: SlabPlan) -> Result<Experts, GpuError> {
        let SlabPlan { index, slots, slot_bytes, policy, used, pool } = plan;
        let slab = driver.alloc("experts", slots as u64 * slot_bytes)?;
        Ok(Experts {
            tier: Tier::new(index, slots, policy, used),
            slab,
            slot_bytes,
            parts: vec![[0; 3]; slots],
            claimed: Vec::new(),
            used: BTreeSet::new(),
            copied: None,
            spare: Vec::new(),
            began: None,
            copying_bytes: 0,
            pool,
            rates: Rates::new(),
            stats: GpuStats { slots, ..GpuStats::default() },
            hidden: Vec::new(),
            out: Vec::new(),
            normed: Vec::new(),
            has_normed: false,
        })
    }

    /// Whether the expert is in the slab.
    pub fn holds(&self, layer: u32, expert: u32) -> bool {
        self.tier.slot(ExpertId { layer, expert }).is_some()
    }

    /// Begins a window; returns those of `experts` that are in the slab.
    pub fn claim(&mut self, layer: u32, experts: &[u32], counts: &[u32]) -> Vec<u32> {
        let found = self.tier.begin(layer, experts, counts);
        let slots = found.iter().filter_map(|expert| self.tier.slot(ExpertId { layer, expert: *expert }));
        self.used = slots.collect();
        self.has_normed = false;
        self.claimed = found.iter().map(|expert| ExpertId { layer, expert: *expert }).collect();
        found
    }

    /// Takes in what the window's router selected, now that the device is busy with it.
    pub fn learn(&mut self) {
        self.tier.learn();
    }

    /// Empties the slab, between passes: everything queued is done then.
    pub fn clear(&mut self) {
        self.claimed.clear();
        self.used.clear();
        self.tier.clear();
    }

    /// What the slab's policy has learnt: it sees every window whole.
    pub fn warm_stats(&self) -> Option<WarmStats> {
        self.tier.warm_stats()
    }

    /// Counters so far.
    pub fn stats(&self) -> GpuStats {
        let tier = self.tier.stats();
        GpuStats { hits: tier.hits, misses: tier.misses, evicted: tier.evicted, ..self.stats }
    }

    fn slot_at(&self, slot: usize) -> DevicePtr {
        self.slab + slot as u64 * self.slot_bytes
    }

    /// Where experts of a layer that are in slots lie.
    fn places(&self, layer: u32, experts: &[u32]) -> Vec<ExpertAt> {
        let place = |expert: &u32| {
            let id = ExpertId { layer, expert: *expert };
            let slot = self.tier.slot(id).expect("invariant: it was admitted");
            (*expert, self.parts[slot].map(|start| self.slot_at(slot) + start))
        };
        experts.iter().map(place).collect()
    }

    /// A slot for an expert, in which kernels queued so far may still be reading if it says so.
    fn admit(&mut self, id: ExpertId) -> Option<(usize, bool)> {
        let slot = self.tier.admit(id).ok().flatten()?;
        Some((slot, !self.used.insert(slot)))
    }
}

impl GpuBackend {
    /// Computes what is due of a window.
    pub(super) fn compute_experts(&mut self, work: &ExpertWork<'_, '_>) {
        let Some(mut own) = self.experts.take() else { return };
        let (here, moved) = self.choose_lanes(&mut own, work);
        debug_assert!(work.shared.is_none(), "`route` has queued it");
        if !work.claimed.is_empty() || !moved.is_empty() {
            self.run_experts(work, &own.places(work.weights.layer, work.claimed));
            self.copy_all(&mut own, work, &moved);
        }
        self.promote(&mut own, work, &here);
        if !here.is_empty() {
            // What was promoted as well; the threads' time is none of the link's.
            own.copied = self.queue.copied(own.copied);
        }
        self.compute_here(&mut own, work, &here);
        self.experts = Some(own);
    }

    /// Blocks until the bytes of copies queued so far have been read.
    pub(super) fn settle_copies(&mut self) -> Result<(), GpuError> {
        self.queue.check()?;
        let Some(own) = self.experts.as_mut().filter(|own| own.copying_bytes > 0) else { return Ok(()) };
        let bytes = std::mem::take(&mut own.copying_bytes);
        let waited = Instant::now();
        let driver = self.queue.driver();
        let Some(copied) = own.copied else { return Ok(()) };
        driver.wait(copied)?;
        own.stats.upload_wait_s += waited.elapsed().as_secs_f64();
        if let Some(began) = own.began {
            let seconds = driver.seconds_between(began, copied)?;
            own.rates.learn_link(bytes as f64, seconds);
            own.stats.upload_s += seconds;
        }
        Ok(())
    }

    /// Copies a few of the experts that the host is about to compute into slots, for later, where others there are
    /// less likely to be wanted: the link would be idle.
    fn promote(&mut self, own: &mut Experts, work: &ExpertWork<'_, '_>, experts: &[u32]) {
        let layer = work.weights.layer;
        for &expert in experts.iter().take(PROMOTED_MAX) {
            let id = ExpertId { layer, expert };
            if !own.tier.is_worth_admitting(id) {
                continue;
            }
            let Some((slot, is_in_use)) = own.admit(id) else { return };
            self.copies_after_kernels(own, is_in_use);
            self.upload_expert(own, work, (expert, slot));
            // Nothing of this window reads it there: whoever is computed there may have the slot.
            own.tier.release(id);
        }
    }

    /// Orders copies behind all kernels queued so far, where it matters.
    fn copies_after_kernels(&mut self, own: &mut Experts, matters: bool) {
        if matters {
            let spare = own.spare.pop();
            let event = self.queue.run(|driver| {
                let event = driver.record(Lane::Compute, spare)?;
                driver.order(Lane::Copy, event).map(|()| Some(event))
            });
            own.spare.extend(event);
        }
    }

    /// Brings experts into slots, as many as find one; returns how many. Groups of them are then computed one after
    /// another, each behind its own copies: the link is kept busy whatever the kernels take.
    fn copy_in(&mut self, own: &mut Experts, work: &ExpertWork<'_, '_>, experts: &[u32]) -> usize {
        let layer = work.weights.layer;
        let mut begun = Vec::with_capacity(experts.len().div_ceil(GROUP));
        let mut count = 0;
        for group in experts.chunks(GROUP) {
            let first = count;
            for &expert in group {
                let Some((slot, is_in_use)) = own.admit(ExpertId { layer, expert }) else { break };
                self.copies_after_kernels(own, is_in_use);
                self.upload_expert(own, work, (expert, slot));
                count += 1;
            }
            if count > first {
                let spare = own.spare.pop();
                begun.push((first..count, self.queue.copied(spare)));
            }
            if count < first + group.len() {
                break;
            }
        }
        // Before the kernels are queued: the time that takes is none of the link's.
        own.copied = self.queue.copied(own.copied);
        for (group, copied) in begun {
            self.queue.compute_after(copied);
            own.spare.extend(copied);
            self.run_experts(work, &own.places(layer, &experts[group]));
        }
        experts[..count].iter().for_each(|expert| own.tier.release(ExpertId { layer, expert: *expert }));
        count
    }

    /// All of them, however few slots there are.
    fn copy_all(&mut self, own: &mut Experts, work: &ExpertWork<'_, '_>, experts: &[u32]) {
        let mut left = experts;
        while !left.is_empty() {
            let mut count = self.copy_in(own, work, left);
            if count == 0 {
                // The window holds on to every slot: what has been computed makes room.
                std::mem::take(&mut own.claimed).into_iter().for_each(|id| own.tier.release(id));
                count = self.copy_in(own, work, left);
            }
            if count == 0 {
                let bytes = own.slot_bytes;
                return self.queue.run(|_| Err(GpuError::Memory { what: "experts", bytes }));
            }
            left = &left[count..];
        }
    }

    fn upload_expert(&mut self, own: &mut Experts, work: &ExpertWork<'_, '_>, (expert, slot): (u32, usize)) {
        let [gate, up] = inner_bytes(work.lease, expert);
        let down = down_bytes(work.lease, expert);
        let at = own.slot_at(slot);
        if own.copying_bytes == 0 {
            let last = own.began;
            own.began = self.queue.run(|driver| driver.record(Lane::Copy, last).map(Some));
        }
        let parts = [gate, up, down];
        let whole = as_one(parts, own.slot_bytes).and_then(|(len, starts)| {
            // The bytes between the parts belong to the same arena.
            Some((self.arena.as_ref()?.from(gate.as_ptr(), len)?, len, starts))
        });
        let (copies, starts) = match whole {
            Some((from, len, starts)) => (vec![(from, len, 0)], starts),
            None => {
                let starts = offsets(&work.weights.shape);
                let each = parts.iter().zip(starts).map(|(part, start)| (part.as_ptr(), part.len(), start));
                (each.collect(), starts)
            }
        };
        own.parts[slot] = starts;
        for (from, len, start) in copies {
            // SAFETY: the lease holds the bytes until `settle` has waited for the copy; the slot has room for them,
            // and nothing queued before reads it (see `admit`).
            self.queue.run(|driver| unsafe { driver.upload(Lane::Copy, at + start, from, len) });
            own.stats.upload_bytes += len as u64;
            own.copying_bytes += len as u64;
        }
        own.stats.uploads += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_lie_together_are_one_copy_and_others_are_not() {
        let memory = vec![0u8; 4096];
        let at = |start: usize, len: usize| &memory[start..start + len];
        let parts = [at(32, 640), at(1024 + 32, 640), at(2048 + 64, 480)];
        assert_eq!(as_one(parts, 4096), Some((2048 + 32 + 480, [0, 1024, 2048 + 32])));
        assert_eq!(as_one(parts, 2048), None, "longer than a slot");
        assert_eq!(as_one([parts[1], parts[0], parts[2]], 4096), None, "another order");
        assert_eq!(as_one([at(32, 640), at(600, 640), at(2048, 480)], 4096), None, "parts that overlap");
        assert_eq!(
            as_one([at(32, 640), at(1024 + 40, 640), at(2048, 480)], 4096),
            None,
            "no place for a matrix"
        );
    }
}
