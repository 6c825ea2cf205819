//! The fixed table of slots: which expert is where, and the buffers its parts lie in.
//!
//! Owns every slot's state machine (free -> loading -> resident -> free, or loading -> free when a
//! read failed) and the pins. It must not know policies, readers or why something is loaded.

use std::ops::Range;

use crate::ExpertId;
use crate::buf::{AlignedBuf, Arena};
use crate::error::OffloadError;
use crate::index::{ExpertIndex, PART_NAMES, PARTS};
use crate::reader::Completion;

/// The bytes of one resident expert.
#[derive(Clone, Copy, Debug)]
pub struct SlotView<'a> {
    /// Expert within the layer of the lease.
    pub expert: u32,
    /// Gate, up, down: exactly the extents' bytes.
    pub parts: [&'a [u8]; PARTS],
}

/// Slots and the map from experts to them.
pub(crate) struct SlotTable {
    slots: Vec<Slot>,
    slot_of: Vec<Option<usize>>, // (experts_total), by flat expert number
    free: Vec<usize>,
    resident: usize,
    lease: u64, // slots stamped with this number are pinned
}

struct Slot {
    state: State,
    parts: [Part; PARTS],
    lease: u64,
}

struct Part {
    buf: Option<AlignedBuf>, // None while a reader fills it
    data: Range<usize>,
}

enum State {
    Free,
    Loading { id: ExpertId, flat: usize, left: usize, failure: Option<OffloadError> },
    Resident { id: ExpertId },
}

/// A load that has ended: all of its buffers are back.
pub(crate) struct Loaded {
    pub(crate) slot: usize,
    pub(crate) failure: Option<OffloadError>,
}

impl SlotTable {
    /// Maps the arena and carves it into `slots` free slots.
    pub(crate) fn new(index: &ExpertIndex, slots: usize) -> Result<SlotTable, OffloadError> {
        let mut arena = Arena::new(slots, index.slot_bytes())?;
        let mut part = |len| {
            let buf = arena.take(len).expect("invariant: the arena holds slots * slot_bytes");
            Part { buf: Some(buf), data: 0..0 }
        };
        let slots: Vec<Slot> = (0..slots)
            .map(|_| Slot { state: State::Free, parts: index.part_bytes().map(&mut part), lease: 0 })
            .collect();
        let free = (0..slots.len()).rev().collect();
        Ok(SlotTable { slots, slot_of: vec![None; index.experts_total()], free, resident: 0, lease: 0 })
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn resident(&self) -> usize {
        self.resident
    }

    /// Forgets all pins; slots pinned from here on belong to the new lease.
    pub(crate) fn begin_lease(&mut self) {
        self.lease += 1;
    }

    pub(crate) fn pin(&mut self, slot: usize) {
        self.slots[slot].lease = self.lease;
    }

    /// The slot that holds the expert, or is being filled with it.
    pub(crate) fn find(&self, flat: usize) -> Option<usize> {
        self.slot_of.get(flat).copied().flatten()
    }

    pub(crate) fn is_evictable(&self, flat: usize) -> bool {
        let Some(slot) = self.find(flat).map(|slot| &self.slots[slot]) else { return false };
        slot.lease != self.lease && matches!(slot.state, State::Resident { .. })
    }

    pub(crate) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Frees the slot of a resident expert; its bytes are gone.
    pub(crate) fn evict(&mut self, flat: usize) {
        let slot = self.slot_of[flat].take().expect("invariant: an evicted expert has a slot");
        self.slots[slot].state = State::Free;
        self.resident -= 1;
        self.free.push(slot);
    }

    /// Gives the expert a free slot, pinned, in the loading state. Its buffers are then to be taken.
    pub(crate) fn begin_load(&mut self, id: ExpertId, flat: usize) -> usize {
        let slot = self.free.pop().expect("invariant: room is made before a load begins");
        self.slot_of[flat] = Some(slot);
        self.slots[slot].state = State::Loading { id, flat, left: PARTS, failure: None };
        self.pin(slot);
        slot
    }

    /// Hands out the buffer of one part of a loading slot.
    pub(crate) fn take_buf(&mut self, slot: usize, part: usize) -> AlignedBuf {
        self.slots[slot].parts[part].buf.take().expect("invariant: a loading part is taken once")
    }

    /// Takes one part's buffer back. Returns the load when this was its last part; a failed load has
    /// freed its slot by then.
    pub(crate) fn finish_part(&mut self, slot: usize, part: usize, done: Completion) -> Option<Loaded> {
        let entry = &mut self.slots[slot];
        entry.parts[part].buf = Some(done.buf);
        let State::Loading { id, flat, left, failure } = &mut entry.state else {
            unreachable!("invariant: only loading slots have reads in flight")
        };
        let (id, flat) = (*id, *flat);
        match done.data {
            Ok(data) => entry.parts[part].data = data,
            Err(source) => *failure = Some(OffloadError::Load { id, part: PART_NAMES[part], source }),
        }
        *left -= 1;
        if *left > 0 {
            return None;
        }
        let failure = failure.take();
        match failure {
            None => self.settle(slot, id),
            Some(_) => self.abandon(slot, flat),
        }
        Some(Loaded { slot, failure })
    }

    /// True for a resident slot pinned by the current lease.
    pub(crate) fn is_held(&self, slot: usize) -> bool {
        let Slot { state, lease, .. } = &self.slots[slot];
        *lease == self.lease && matches!(state, State::Resident { .. })
    }

    /// The bytes in a resident slot.
    pub(crate) fn view(&self, slot: usize) -> SlotView<'_> {
        let Slot { state: State::Resident { id }, parts, .. } = &self.slots[slot] else {
            unreachable!("invariant: only resident slots are viewed")
        };
        SlotView { expert: id.expert, parts: [bytes(&parts[0]), bytes(&parts[1]), bytes(&parts[2])] }
    }

    fn settle(&mut self, slot: usize, id: ExpertId) {
        self.slots[slot].state = State::Resident { id };
        self.resident += 1;
    }

    fn abandon(&mut self, slot: usize, flat: usize) {
        self.slots[slot].state = State::Free;
        self.slot_of[flat] = None;
        self.free.push(slot);
    }
}

fn bytes(part: &Part) -> &[u8] {
    let buf = part.buf.as_ref().expect("invariant: a resident part has its buffer");
    &buf.as_slice()[part.data.clone()]
}
