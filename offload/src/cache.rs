//! The expert cache: pins what a layer needs, loads what is missing, reads ahead when nobody waits.
//!
//! Owns the order of events (observe, pin hits, evict, submit every miss at once, gate and up before
//! any down), the ring that predictions live in, and the counters. It must not know how victims are
//! chosen or how bytes are read.

use std::ptr::NonNull;
use std::time::Instant;

use crate::ExpertId;
use crate::error::OffloadError;
use crate::index::{ExpertIndex, PARTS};
use crate::lease::{Arrival, Lease, Piece, Wanted};
use crate::policy::Policy;
use crate::queue::{Idle, IoQueue, split_tag, tag};
use crate::reader::{Completion, Read, ReadError, Reader};
use crate::slots::{Outcome, SlotTable};
use crate::stats::{CacheStats, Meters, Recent, Residency};

/// Loads of one lease at the disk at once. A verification window's misses all fit; a prefill window's
/// go through in a stream, so that it does not turn the whole cache over.
const LOADS_MAX: usize = 24;
/// One slot in this many is kept for predictions (ALGORITHMS.md H.2: 4-8 %).
const SLOTS_PER_RING_SLOT: usize = 16;
/// Slots kept for predictions at most: more than two layers ever ask for.
const RING_MAX: usize = 64;

/// What a cache is made of.
pub struct CacheConfig {
    /// Where the experts lie.
    pub index: ExpertIndex,
    /// Slots, >= 1; more than there are experts are not allocated.
    pub slots: usize,
    /// Chooses what to evict, built for the same index and slots.
    pub policy: Box<dyn Policy>,
    /// Reads the files the index speaks of.
    pub reader: Box<dyn Reader>,
    /// Threads that make the slots' memory resident at start, >= 1.
    pub threads: usize,
}

/// The resident set of experts over a fixed arena of slots.
pub struct ExpertCache {
    index: ExpertIndex,
    slots: SlotTable,
    policy: Box<dyn Policy>,
    io: IoQueue,
    wanted: Wanted,
    verified: Vec<u8>, // by flat expert: a bit for each part whose checksum has been compared
    ring: usize,       // slots kept for predictions; 0 while nobody predicts
    stats: CacheStats,
    recent: Recent,
    meters: Meters,
    stopped: bool, // the reader is gone: buffers may be lost, so nothing is served any more
}

impl ExpertCache {
    /// Allocates all slots; their memory is resident from now on (DESIGN I1).
    ///
    /// # Errors
    /// No slots, or more memory than the system gives.
    pub fn new(config: CacheConfig) -> Result<ExpertCache, OffloadError> {
        let CacheConfig { index, slots, policy, reader, threads } = config;
        if slots == 0 {
            return Err(OffloadError::NoSlots);
        }
        let slots = SlotTable::new(&index, slots.min(index.experts_total()), threads)?;
        let stats = CacheStats {
            experts_total: index.experts_total(),
            slots: slots.len(),
            slot_bytes: index.slot_bytes(),
            ..CacheStats::default()
        };
        Ok(ExpertCache {
            recent: Recent::new(index.layers()),
            verified: vec![0; index.experts_total()],
            io: IoQueue::new(reader),
            wanted: Wanted::default(),
            ring: 0,
            meters: Meters::new(),
            stopped: false,
            index,
            slots,
            policy,
            stats,
        })
    }

    /// Pins `experts` of `layer` and starts reading those that are not resident: gate and up of every
    /// miss before any down. `counts[i]` is how many rows of the window the router gave `experts[i]`.
    /// The lease then hands the experts out; dropping it unpins them.
    ///
    /// # Errors
    /// An unknown layer or expert, an expert named twice, a stopped reader. Nothing has changed then.
    pub fn acquire(
        &mut self,
        layer: u32,
        experts: &[u32],
        counts: &[u32],
    ) -> Result<Lease<'_>, OffloadError> {
        self.check(layer, experts, counts)?;
        self.poll()?;
        self.slots.begin_lease();
        self.wanted = Wanted::new(layer);
        self.policy.observe(layer, experts, counts);
        self.call_off_predictions(layer, experts);
        let (hits, misses) = self.join(layer, experts)?;
        self.stats.hits += hits as u64;
        self.stats.misses += misses as u64;
        self.meters.hits.increment(hits as u64);
        self.meters.misses.increment(misses as u64);
        self.recent.add(hits, misses);
        self.start_pending()?;
        Ok(Lease::new(self))
    }

    /// Reads `experts` of `layer`, the likeliest first, while nobody waits for the disk, into the ring of
    /// slots kept for predictions. What does not fit there is left out; a later acquire of the layer
    /// takes what it wants out of the ring and calls off what is still to be read. Does nothing unless
    /// predictions were switched on. `experts` MUST be distinct.
    ///
    /// # Errors
    /// A stopped reader. Unknown experts are ignored: a prediction is a hint.
    pub fn prefetch(&mut self, layer: u32, experts: &[u32]) -> Result<(), OffloadError> {
        for &expert in experts {
            let id = ExpertId { layer, expert };
            let Some(flat) = self.index.flat(id).filter(|flat| self.slots.find(*flat).is_none()) else {
                continue;
            };
            if !self.make_room_on_probation() {
                break;
            }
            let slot = self.slots.begin_prediction(id, flat, self.next_visit(layer));
            let reads = (0..PARTS).map(|part| self.read(slot, id, part)).collect();
            self.io.idle(Idle::Prediction, reads)?;
        }
        self.count_issued();
        Ok(())
    }

    /// Keeps slots for predictions, or none (then all serve the policy).
    pub fn set_prefetch(&mut self, enabled: bool) {
        self.ring = if enabled { ring_slots(self.slots.len()) } else { 0 };
    }

    /// Whether a cache of `slots` slots has room for predictions.
    pub fn can_prefetch(slots: usize) -> bool {
        ring_slots(slots) > 0
    }

    /// Fills free slots with `experts`, the hottest first, while nobody waits for the disk. Nothing is
    /// evicted for it.
    ///
    /// # Errors
    /// A stopped reader. Unknown experts are ignored.
    pub fn warm_up(&mut self, experts: &[ExpertId]) -> Result<(), OffloadError> {
        for &id in experts {
            if self.slots.main() + self.ring >= self.slots.len() || !self.slots.has_free() {
                break;
            }
            let Some(flat) = self.index.flat(id).filter(|flat| self.slots.find(*flat).is_none()) else {
                continue;
            };
            self.policy.insert(id);
            let slot = self.slots.begin_load(id, flat);
            let reads = (0..PARTS).map(|part| self.read(slot, id, part)).collect();
            self.io.idle(Idle::WarmUp, reads)?;
        }
        Ok(())
    }

    /// Takes in what the disk has finished and lets idle reads go on; never blocks.
    ///
    /// # Errors
    /// A stopped reader.
    pub fn poll(&mut self) -> Result<(), OffloadError> {
        if self.stopped {
            return Err(OffloadError::ReaderStopped { reader: self.io.reader_name() });
        }
        while let Some(done) = self.io.poll().inspect_err(|_| self.stopped = true)? {
            self.take_in(done);
        }
        self.count_issued();
        Ok(())
    }

    /// Counters so far.
    pub fn stats(&self) -> CacheStats {
        CacheStats { io_busy_s: self.io.busy_s(), late_reads: self.io.late_reads(), ..self.stats }
    }

    /// The state of the cache for the scheduler.
    pub fn residency(&self) -> Residency {
        Residency {
            slots: self.slots.len(),
            resident: self.slots.resident(),
            experts_total: self.index.experts_total(),
            hit_rate_recent: self.recent.hit_rate(),
            is_filling: self.io.last_warm_up().is_some(),
        }
    }

    /// Whether the expert's bytes are in memory, or on their way.
    pub fn holds(&self, id: ExpertId) -> bool {
        self.index.flat(id).is_some_and(|flat| self.slots.find(flat).is_some())
    }

    /// All memory that experts are kept in, for whoever wants to tell a device of it. Behind every part of an expert
    /// some bytes can be read, the last one's included.
    pub fn memory(&self) -> (NonNull<u8>, usize) {
        self.slots.memory()
    }

    /// Where the experts lie.
    pub fn index(&self) -> &ExpertIndex {
        &self.index
    }

    /// The policy, for what it has learnt.
    pub fn policy(&self) -> &dyn Policy {
        self.policy.as_ref()
    }

    /// Forgets every resident expert, as a cold start would; counters and gating statistics stay.
    ///
    /// # Errors
    /// A stopped reader.
    pub fn clear(&mut self) -> Result<(), OffloadError> {
        self.poll()?;
        self.slots.begin_lease();
        self.wanted = Wanted::default();
        let loading: Vec<usize> = self.slots.held().filter(|slot| !self.slots.is_resident(*slot)).collect();
        loading.into_iter().for_each(|slot| self.call_off(slot));
        while self.io.in_flight() > 0 {
            let done = self.io.wait().inspect_err(|_| self.stopped = true)?;
            self.take_in(done);
        }
        for id in self.slots.held().filter_map(|slot| self.slots.expert(slot)).collect::<Vec<_>>() {
            self.evict(id);
        }
        Ok(())
    }

    fn check(&self, layer: u32, experts: &[u32], counts: &[u32]) -> Result<(), OffloadError> {
        let (known, layers) = (self.index.experts(layer), self.index.layers());
        if known == 0 {
            return Err(OffloadError::NoSuchLayer { layer, layers });
        }
        if experts.len() != counts.len() {
            return Err(OffloadError::CountsLength { experts: experts.len(), counts: counts.len() });
        }
        let mut seen = vec![false; known];
        for &expert in experts {
            let id = ExpertId { layer, expert };
            match seen.get_mut(expert as usize) {
                None => return Err(OffloadError::NoSuchExpert { id, experts: known }),
                Some(true) => return Err(OffloadError::DuplicateExpert { id }),
                Some(slot) => *slot = true,
            }
        }
        Ok(())
    }

    /// Pins what of `experts` is there or on its way and notes the rest as pending. Returns hits and
    /// misses.
    fn join(&mut self, layer: u32, experts: &[u32]) -> Result<(usize, usize), OffloadError> {
        let mut found = Vec::with_capacity(experts.len());
        for &expert in experts {
            match self.index.flat(ExpertId { layer, expert }).and_then(|flat| self.slots.find(flat)) {
                Some(slot) => found.push((expert, slot)),
                None => self.wanted.pending.push_back(expert),
            }
        }
        // All are pinned before any prediction among them makes another expert leave.
        found.iter().for_each(|(_, slot)| self.slots.pin(*slot));
        let mut hits = 0;
        for (expert, slot) in found {
            self.wanted.open += 1;
            if self.slots.is_probation(slot) {
                self.promote(slot, ExpertId { layer, expert });
            }
            if self.slots.is_resident(slot) {
                hits += 1;
            } else {
                self.wanted.loading += 1;
                self.io.hurry(slot).inspect_err(|_| self.stopped = true)?;
            }
            self.announce(slot, expert);
        }
        Ok((hits, experts.len() - hits))
    }

    /// A prediction came true: it becomes an expert like any other, and another one makes room.
    fn promote(&mut self, slot: usize, id: ExpertId) {
        self.stats.prefetch_used += 1;
        let extents = self.index.extents(id).expect("invariant: slots hold known experts");
        self.stats.prefetch_used_bytes += extents.iter().map(|extent| extent.len).sum::<u64>();
        self.meters.prefetch_used.increment(1);
        self.slots.promote(slot);
        self.policy.insert(id);
        if self.slots.main() + self.ring > self.slots.len() {
            self.evict_for(id.layer);
        }
    }

    /// Gives pending experts slots as far as there is room and submits their reads as one batch.
    fn start_pending(&mut self) -> Result<(), OffloadError> {
        let layer = self.wanted.layer;
        let mut started = Vec::new();
        while self.wanted.loading < LOADS_MAX
            && let Some(&expert) = self.wanted.pending.front()
            && self.make_room(layer)
        {
            self.wanted.pending.pop_front();
            let id = ExpertId { layer, expert };
            let flat = self.index.flat(id).expect("invariant: checked by acquire");
            self.policy.insert(id);
            let slot = self.slots.begin_load(id, flat);
            self.slots.pin(slot);
            self.wanted.open += 1;
            self.wanted.loading += 1;
            started.push((slot, id));
        }
        if started.is_empty() {
            return Ok(());
        }
        let mut reads = Vec::with_capacity(started.len() * PARTS);
        // Down comes last: computing can start with gate and up (ALGORITHMS.md H.3).
        for parts in [0..PARTS - 1, PARTS - 1..PARTS] {
            for (slot, id) in &started {
                reads.extend(parts.clone().map(|part| self.read(*slot, *id, part)));
            }
        }
        self.meters.reads_in_flight.record((self.io.in_flight() + reads.len()) as f64);
        self.io.demand(reads).inspect_err(|_| self.stopped = true)
    }

    fn read(&mut self, slot: usize, id: ExpertId, part: usize) -> Read {
        let extents = self.index.extents(id).expect("invariant: only known experts are loaded");
        Read { tag: tag(slot, part), extent: extents[part], buf: self.slots.take_buf(slot, part) }
    }

    /// Sees to it that a slot is free for an expert that is waited for, if one can be.
    fn make_room(&mut self, layer: u32) -> bool {
        while self.slots.main() + self.ring >= self.slots.len() {
            if !self.drop_warm_up() && !self.evict_for(layer) {
                break;
            }
        }
        // A window that holds on to nearly every slot takes those of predictions as well.
        self.slots.has_free() || self.drop_prediction() || self.evict_for(layer)
    }

    fn make_room_on_probation(&mut self) -> bool {
        let has_room = self.slots.on_probation() < self.ring && self.slots.has_free();
        has_room || (self.slots.on_probation() > 0 && self.drop_stale_prediction())
    }

    /// Evicts the policy's victim; false when there is none.
    fn evict_for(&mut self, layer: u32) -> bool {
        let (index, slots) = (&self.index, &self.slots);
        let evictable = |id| index.flat(id).is_some_and(|flat| slots.is_evictable(flat));
        let victim = self.policy.victim(layer, &evictable).filter(|id| evictable(*id));
        if let Some(victim) = victim {
            self.evict(victim);
        }
        victim.is_some()
    }

    fn evict(&mut self, id: ExpertId) {
        let flat = self.index.flat(id).expect("invariant: slots hold known experts");
        if self.slots.find(flat).is_some_and(|slot| self.slots.is_probation(slot)) {
            self.meters.prefetch_wasted.increment(1);
        } else {
            self.policy.remove(id);
        }
        self.slots.evict(flat);
    }

    /// Frees a slot on probation at any price short of a pin.
    fn drop_prediction(&mut self) -> bool {
        if self.drop_stale_prediction() {
            return true;
        }
        let loading: Vec<usize> = self.slots.loading_predictions().collect();
        for slot in loading {
            self.call_off(slot);
            if self.slots.has_free() {
                return true;
            }
        }
        false
    }

    /// Gives up the coldest expert of a warm-up that has not been read yet.
    fn drop_warm_up(&mut self) -> bool {
        let Some(slot) = self.io.last_warm_up() else { return false };
        self.call_off(slot);
        true
    }

    fn drop_stale_prediction(&mut self) -> bool {
        let Some(flat) = self.slots.stale_prediction() else { return false };
        self.slots.evict(flat);
        self.meters.prefetch_wasted.increment(1);
        true
    }

    /// The layer's turn has come: predictions for it that were wrong and are not read yet are not.
    fn call_off_predictions(&mut self, layer: u32, experts: &[u32]) {
        let wrong = |slot: &usize| {
            let id = self.slots.expert(*slot);
            id.is_some_and(|id| id.layer == layer && !experts.contains(&id.expert))
        };
        let wrong: Vec<usize> = self.slots.loading_predictions().filter(wrong).collect();
        wrong.into_iter().for_each(|slot| self.call_off(slot));
    }

    /// Ends a load nobody waits for: what is queued is taken back, what is at the disk drains.
    fn call_off(&mut self, slot: usize) {
        let Some(id) = self.slots.expert(slot) else { return };
        if self.slots.is_probation(slot) {
            self.meters.prefetch_wasted.increment(1);
        } else {
            self.policy.remove(id);
        }
        let unread = self.io.take_back(slot).into_iter();
        let unread = unread.map(|read| (split_tag(read.tag).1, read.buf)).collect();
        self.slots.call_off(slot, unread);
    }

    /// One read has ended.
    fn take_in(&mut self, done: Completion) {
        let (slot, part) = split_tag(done.tag);
        self.stats.read_s += done.read_s;
        self.meters.read_seconds.record(done.read_s);
        let data = match done.data {
            Ok(data) => {
                self.stats.bytes_read += data.len() as u64;
                self.meters.read_bytes.increment(data.len() as u64);
                self.verify(slot, part, &done.buf.as_slice()[data.clone()]).map(|()| data)
            }
            Err(error) => Err(error),
        };
        let is_pinned = self.slots.is_pinned(slot);
        let expert = self.slots.expert(slot).map_or(0, |id| id.expert);
        match self.slots.finish_part((slot, part), done.buf, data) {
            Outcome::Nothing => {}
            Outcome::Arrived { is_whole } => {
                self.wanted.loading -= usize::from(is_whole && is_pinned);
                if is_pinned {
                    self.announce(slot, expert);
                }
            }
            Outcome::Failed { id, counted, failure } => {
                if counted {
                    self.policy.remove(id);
                }
                if is_pinned {
                    self.slots.unpin(slot);
                    self.wanted.loading -= 1;
                    self.wanted.open -= 1;
                    self.wanted.news.retain(|arrival| arrival.expert != id.expert);
                    self.wanted.failures.push_back(failure);
                }
            }
        }
    }

    /// Compares a part with its checksum, where the file has one, at its first load.
    fn verify(&mut self, slot: usize, part: usize, bytes: &[u8]) -> Result<(), ReadError> {
        let Some(id) = self.slots.expert(slot) else { return Ok(()) };
        let Some(flat) = self.index.flat(id).filter(|flat| self.verified[*flat] & 1 << part == 0) else {
            return Ok(());
        };
        self.index.verify(id, part, bytes)?;
        self.verified[flat] |= 1 << part;
        Ok(())
    }

    /// Tells the lease what of a pinned slot is new.
    fn announce(&mut self, slot: usize, expert: u32) {
        for piece in self.slots.news(slot) {
            let piece = if piece == 0 { Piece::Inner } else { Piece::Down };
            self.wanted.open -= usize::from(piece == Piece::Down);
            self.wanted.news.push(Arrival { expert, piece });
        }
    }

    pub(crate) fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Moves what is new into `told`; see [`Lease::arrivals`].
    pub(crate) fn collect(&mut self, wait: bool, told: &mut Vec<Arrival>) -> Result<(), OffloadError> {
        let mut stalled = None;
        let outcome = loop {
            self.poll()?;
            self.start_pending()?;
            if let Some(failure) = self.wanted.failures.pop_front() {
                break Err(failure);
            }
            if !self.wanted.news.is_empty() {
                told.append(&mut self.wanted.news);
                break Ok(());
            }
            if !wait || (self.wanted.open == 0 && self.wanted.pending.is_empty()) {
                break Ok(());
            }
            if self.io.in_flight() == 0 {
                let (layer, slots) = (self.wanted.layer, self.slots.len());
                break Err(OffloadError::AllSlotsHeld { layer, slots });
            }
            stalled.get_or_insert_with(Instant::now);
            let done = self.io.wait().inspect_err(|_| self.stopped = true)?;
            self.take_in(done);
        };
        if let Some(began) = stalled {
            let stall_s = began.elapsed().as_secs_f64();
            self.stats.stall_s += stall_s;
            self.meters.stall_seconds.record(stall_s);
        }
        outcome
    }

    pub(crate) fn release(&mut self, id: ExpertId) {
        if let Some(slot) = self.index.flat(id).and_then(|flat| self.slots.find(flat))
            && self.slots.is_pinned(slot)
            && self.slots.is_resident(slot)
        {
            self.slots.unpin(slot);
        }
    }

    pub(crate) fn pinned_part(&self, id: ExpertId, part: usize) -> Option<&[u8]> {
        let slot = self.index.flat(id).and_then(|flat| self.slots.find(flat))?;
        self.slots.part(slot, part).filter(|_| self.slots.is_pinned(slot))
    }

    /// The lease under which `layer` will be acquired next, if every layer is acquired once a pass.
    fn next_visit(&self, layer: u32) -> u64 {
        let layers = self.index.layers() as u64;
        let ahead = (u64::from(layer) + layers - u64::from(self.wanted.layer)) % layers;
        self.slots.lease() + if ahead == 0 { layers } else { ahead }
    }

    fn count_issued(&mut self) {
        let issued = self.io.issued();
        self.meters.prefetch_issued.increment(issued.loads - self.stats.prefetch_issued);
        self.stats.prefetch_issued = issued.loads;
        self.stats.prefetch_bytes = issued.bytes;
    }
}

fn ring_slots(slots: usize) -> usize {
    (slots / SLOTS_PER_RING_SLOT).min(RING_MAX)
}
