//! The fixed table of slots: which expert is where, and the buffers its parts lie in.
//!
//! Owns every slot's state machine (free -> loading -> resident -> free; a load that fails or is
//! called off drains back to free), the pins of the present lease, and the ring of slots that hold
//! predictions. It must not know policies, readers or why something is loaded.

use std::collections::VecDeque;
use std::ops::Range;
use std::ptr::NonNull;

use crate::ExpertId;
use crate::buf::{AlignedBuf, Arena};
use crate::error::OffloadError;
use crate::index::{ExpertIndex, PART_NAMES, PARTS};
use crate::reader::ReadError;

/// Slots and the map from experts to them.
pub(crate) struct SlotTable {
    slots: Vec<Slot>,
    slot_of: Vec<Option<usize>>, // (experts_total), by flat expert number
    free: Vec<usize>,
    ring: VecDeque<usize>, // slots on probation, the oldest first
    main: usize,           // slots that count against the policy: loading or resident, not on probation
    resident: usize,
    lease: u64, // slots stamped with this number are pinned
    memory: ArenaMemory,
}

/// Where the arena is. It is never followed here.
struct ArenaMemory((NonNull<u8>, usize));

// SAFETY: an address that is only handed on may be handed on by any thread.
unsafe impl Send for ArenaMemory {}

struct Slot {
    state: State,
    parts: [Part; PARTS],
    lease: u64,
    told: u8,    // pieces announced to the lease that pins it
    spared: u64, // on probation: not given up before this lease
}

struct Part {
    buf: Option<AlignedBuf>, // None while a reader (or its queue) holds it
    data: Range<usize>,
    is_ready: bool,
}

enum State {
    Free,
    Loading {
        id: ExpertId,
        flat: usize,
        left: usize,
        failure: Option<OffloadError>,
        is_probation: bool,
    },
    Resident {
        id: ExpertId,
        flat: usize,
        is_probation: bool,
    },
    /// A load that was called off; its buffers are still to come back.
    Draining {
        left: usize,
    },
}

/// What the return of one part's buffer meant.
pub(crate) enum Outcome {
    /// The part is there, and possibly the whole expert.
    Arrived { is_whole: bool },
    /// The load has ended in failure and its slot is free; the expert was not on probation if `counted`.
    Failed { id: ExpertId, counted: bool, failure: OffloadError },
    /// Others of the load are still to come (after a failure), or the load had been called off.
    Nothing,
}

impl SlotTable {
    /// Maps the arena, makes it resident on `threads` threads and carves it into `slots` free slots.
    pub(crate) fn new(index: &ExpertIndex, slots: usize, threads: usize) -> Result<SlotTable, OffloadError> {
        let mut arena = Arena::new(slots, index.slot_bytes())?;
        arena.populate(threads);
        let memory = ArenaMemory(arena.memory());
        let mut part = |len| {
            let buf = arena.take(len).expect("invariant: the arena holds slots * slot_bytes");
            Part { buf: Some(buf), data: 0..0, is_ready: false }
        };
        let mut slot = || Slot {
            state: State::Free,
            parts: index.part_bytes().map(&mut part),
            lease: 0,
            told: 0,
            spared: 0,
        };
        let slots: Vec<Slot> = (0..slots).map(|_| slot()).collect();
        Ok(SlotTable {
            free: (0..slots.len()).rev().collect(),
            slot_of: vec![None; index.experts_total()],
            ring: VecDeque::new(),
            main: 0,
            resident: 0,
            memory,
            lease: 1, // 0 is the stamp of a slot nobody holds
            slots,
        })
    }

    /// The arena: all slots, one after another, and a little that can be read behind the last.
    pub(crate) fn memory(&self) -> (NonNull<u8>, usize) {
        self.memory.0
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Experts whose bytes are all there.
    pub(crate) fn resident(&self) -> usize {
        self.resident
    }

    /// Slots loading or holding an expert that the policy knows of.
    pub(crate) fn main(&self) -> usize {
        self.main
    }

    /// Slots loading or holding a prediction.
    pub(crate) fn on_probation(&self) -> usize {
        self.ring.len()
    }

    pub(crate) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Number of the present lease; grows by one with each.
    pub(crate) fn lease(&self) -> u64 {
        self.lease
    }

    /// Forgets all pins; slots pinned from here on belong to the new lease.
    pub(crate) fn begin_lease(&mut self) {
        self.lease += 1;
    }

    pub(crate) fn pin(&mut self, slot: usize) {
        self.slots[slot].lease = self.lease;
        self.slots[slot].told = 0;
    }

    pub(crate) fn unpin(&mut self, slot: usize) {
        self.slots[slot].lease = 0;
    }

    pub(crate) fn is_pinned(&self, slot: usize) -> bool {
        self.slots[slot].lease == self.lease
    }

    /// The slot that holds the expert, or is being filled with it.
    pub(crate) fn find(&self, flat: usize) -> Option<usize> {
        self.slot_of.get(flat).copied().flatten()
    }

    pub(crate) fn is_resident(&self, slot: usize) -> bool {
        matches!(self.slots[slot].state, State::Resident { .. })
    }

    pub(crate) fn is_probation(&self, slot: usize) -> bool {
        matches!(
            self.slots[slot].state,
            State::Resident { is_probation: true, .. } | State::Loading { is_probation: true, .. }
        )
    }

    /// True for an expert the policy may name as a victim.
    pub(crate) fn is_evictable(&self, flat: usize) -> bool {
        let Some(slot) = self.find(flat) else { return false };
        let is_main = matches!(self.slots[slot].state, State::Resident { is_probation: false, .. });
        is_main && !self.is_pinned(slot)
    }

    /// The expert in a slot, loading or resident.
    pub(crate) fn expert(&self, slot: usize) -> Option<ExpertId> {
        match self.slots[slot].state {
            State::Loading { id, .. } | State::Resident { id, .. } => Some(id),
            State::Free | State::Draining { .. } => None,
        }
    }

    /// Frees the slot of a resident expert; its bytes are gone.
    pub(crate) fn evict(&mut self, flat: usize) {
        let slot = self.slot_of[flat].take().expect("invariant: an evicted expert has a slot");
        self.leave_tier(slot);
        self.slots[slot].state = State::Free;
        self.resident -= 1;
        self.free.push(slot);
    }

    /// The prediction that has waited longest and may be given up: resident, not pinned, its layer past.
    pub(crate) fn stale_prediction(&self) -> Option<usize> {
        let stale = |slot: &&usize| {
            let entry = &self.slots[**slot];
            matches!(entry.state, State::Resident { .. })
                && !self.is_pinned(**slot)
                && entry.spared < self.lease
        };
        let slot = *self.ring.iter().find(stale)?;
        match self.slots[slot].state {
            State::Resident { flat, .. } => Some(flat),
            _ => None,
        }
    }

    /// Predictions still loading, the latest first.
    pub(crate) fn loading_predictions(&self) -> impl Iterator<Item = usize> {
        let loading = |slot: &&usize| matches!(self.slots[**slot].state, State::Loading { .. });
        self.ring.iter().rev().filter(loading).copied()
    }

    /// Gives the expert a free slot in the loading state. Its buffers are then to be taken.
    pub(crate) fn begin_load(&mut self, id: ExpertId, flat: usize) -> usize {
        self.begin(id, flat, false)
    }

    /// As [`SlotTable::begin_load`], on probation; not given up before lease `spared` has begun.
    pub(crate) fn begin_prediction(&mut self, id: ExpertId, flat: usize, spared: u64) -> usize {
        let slot = self.begin(id, flat, true);
        self.slots[slot].spared = spared;
        slot
    }

    fn begin(&mut self, id: ExpertId, flat: usize, is_probation: bool) -> usize {
        let slot = self.free.pop().expect("invariant: room is made before a load begins");
        self.slot_of[flat] = Some(slot);
        let entry = &mut self.slots[slot];
        entry.state = State::Loading { id, flat, left: PARTS, failure: None, is_probation };
        entry.lease = 0;
        entry.parts.iter_mut().for_each(|part| part.is_ready = false);
        if is_probation {
            self.ring.push_back(slot);
        } else {
            self.main += 1;
        }
        slot
    }

    /// Takes a slot off probation: from now on it counts against the policy.
    pub(crate) fn promote(&mut self, slot: usize) {
        if let State::Resident { is_probation, .. } | State::Loading { is_probation, .. } =
            &mut self.slots[slot].state
        {
            *is_probation = false;
            self.ring.retain(|other| *other != slot);
            self.main += 1;
        }
    }

    /// Hands out the buffer of one part of a loading slot.
    pub(crate) fn take_buf(&mut self, slot: usize, part: usize) -> AlignedBuf {
        self.slots[slot].parts[part].buf.take().expect("invariant: a loading part is taken once")
    }

    /// Calls off a load; `unread` are the parts that no reader has begun.
    pub(crate) fn call_off(&mut self, slot: usize, unread: Vec<(usize, AlignedBuf)>) {
        let State::Loading { flat, left, .. } = self.slots[slot].state else { return };
        self.leave_tier(slot);
        self.slot_of[flat] = None;
        let left = left - unread.len();
        for (part, buf) in unread {
            self.slots[slot].parts[part].buf = Some(buf);
        }
        self.slots[slot].state = State::Draining { left };
        self.free_if_drained(slot);
    }

    /// Takes one part's buffer back, with where its bytes lie or why not.
    pub(crate) fn finish_part(
        &mut self,
        (slot, part): (usize, usize),
        buf: AlignedBuf,
        data: Result<Range<usize>, ReadError>,
    ) -> Outcome {
        let entry = &mut self.slots[slot];
        entry.parts[part].buf = Some(buf);
        match &mut entry.state {
            State::Draining { left } => {
                *left -= 1;
                self.free_if_drained(slot);
                Outcome::Nothing
            }
            State::Loading { id, left, failure, .. } => {
                *left -= 1;
                match data {
                    Ok(data) => {
                        entry.parts[part].data = data;
                        entry.parts[part].is_ready = true;
                    }
                    Err(source) => {
                        let part = PART_NAMES[part];
                        failure.get_or_insert(OffloadError::Load { id: *id, part, source });
                    }
                }
                self.after_part(slot)
            }
            State::Free | State::Resident { .. } => {
                unreachable!("invariant: only loads have reads in flight")
            }
        }
    }

    fn after_part(&mut self, slot: usize) -> Outcome {
        let State::Loading { id, flat, left, failure, is_probation } = &mut self.slots[slot].state else {
            return Outcome::Nothing;
        };
        let (id, flat, left, is_probation) = (*id, *flat, *left, *is_probation);
        match (failure.take(), left) {
            (None, 0) => {
                self.slots[slot].state = State::Resident { id, flat, is_probation };
                self.resident += 1;
                Outcome::Arrived { is_whole: true }
            }
            (None, _) => Outcome::Arrived { is_whole: false },
            (Some(failure), 0) => {
                self.leave_tier(slot);
                self.slot_of[flat] = None;
                self.slots[slot].state = State::Free;
                self.free.push(slot);
                Outcome::Failed { id, counted: !is_probation, failure }
            }
            (reason, _) => {
                if let State::Loading { failure, .. } = &mut self.slots[slot].state {
                    *failure = reason;
                }
                Outcome::Nothing
            }
        }
    }

    /// What of a pinned slot is new to its lease: gate and up together, then down.
    pub(crate) fn news(&mut self, slot: usize) -> Range<u8> {
        let entry = &mut self.slots[slot];
        let ready = entry.parts.each_ref().map(|part| part.is_ready);
        let pieces = match ready {
            [true, true, true] => 2,
            [true, true, false] => 1,
            _ => 0,
        };
        let told = std::mem::replace(&mut entry.told, pieces);
        told..pieces
    }

    /// The bytes of one part that has arrived.
    pub(crate) fn part(&self, slot: usize, part: usize) -> Option<&[u8]> {
        let Part { buf, data, is_ready } = &self.slots[slot].parts[part];
        buf.as_ref().filter(|_| *is_ready).map(|buf| &buf.as_slice()[data.clone()])
    }

    /// Every expert in the table, loading or resident.
    pub(crate) fn held(&self) -> impl Iterator<Item = usize> {
        (0..self.slots.len()).filter(|slot| self.expert(*slot).is_some())
    }

    fn free_if_drained(&mut self, slot: usize) {
        if matches!(self.slots[slot].state, State::Draining { left: 0 }) {
            self.slots[slot].state = State::Free;
            self.free.push(slot);
        }
    }

    fn leave_tier(&mut self, slot: usize) {
        if self.is_probation(slot) {
            self.ring.retain(|other| *other != slot);
        } else {
            self.main -= 1;
        }
    }
}
