//! The expert cache: pins what a layer needs, loads what is missing, hands experts out as they arrive.
//!
//! Owns the order of events (observe, pin hits, evict, submit every miss at once, hits first, then
//! arrival order) and the statistics. It must not know how victims are chosen or how bytes are read.

use std::collections::VecDeque;
use std::time::Instant;

use crate::ExpertId;
use crate::error::OffloadError;
use crate::index::{ExpertIndex, PARTS};
use crate::policy::Policy;
use crate::reader::{Read, Reader};
use crate::slots::{Loaded, SlotTable, SlotView};

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
}

/// Counters since the cache was made.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CacheStats {
    /// Experts of the model.
    pub experts_total: usize,
    /// Slots of the cache.
    pub slots: usize,
    /// Bytes of one slot in the arena.
    pub slot_bytes: usize,
    /// Experts asked for that were resident.
    pub hits: u64,
    /// Experts asked for that had to be read.
    pub misses: u64,
    /// Bytes of experts read (extents, without page widening), failed reads not counted.
    pub bytes_read: u64,
    /// Service time of all reads, seconds; reads overlap, so this may exceed the time that passed.
    pub read_s: f64,
    /// Time spent blocked on reads, seconds.
    pub stall_s: f64,
    /// Experts read ahead of need: none, loads are on demand.
    pub prefetch_issued: u64,
    /// Of those, the ones asked for while they were resident.
    pub prefetch_used: u64,
}

impl CacheStats {
    /// Share of accesses that were hits, 0..=1; 0 before the first access.
    pub fn hit_rate(&self) -> f64 {
        ratio(self.hits as f64, self.misses as f64)
    }
}

/// What the scheduler may know of the cache: plain data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Residency {
    /// Slots of the cache.
    pub slots: usize,
    /// Experts resident now.
    pub resident: usize,
    /// Experts of the model.
    pub experts_total: usize,
    /// Hit rate of late: accesses count half after [`RECENT_PASSES`] passes over all layers.
    pub hit_rate_recent: f64,
}

/// Half-life of [`Residency::hit_rate_recent`], in passes.
pub const RECENT_PASSES: f64 = 32.0;

/// The resident set of experts over a fixed arena of slots.
pub struct ExpertCache {
    index: ExpertIndex,
    slots: SlotTable,
    policy: Box<dyn Policy>,
    reader: Box<dyn Reader>,
    stats: CacheStats,
    recent: Recent,
    stopped: bool, // the reader is gone: buffers may be lost, so nothing is served any more
}

impl ExpertCache {
    /// Allocates all slots. The memory is mapped now and becomes resident as slots are first filled.
    ///
    /// # Errors
    /// No slots, or more memory than the system gives.
    pub fn new(config: CacheConfig) -> Result<ExpertCache, OffloadError> {
        let CacheConfig { index, slots, policy, reader } = config;
        if slots == 0 {
            return Err(OffloadError::NoSlots);
        }
        let slots = SlotTable::new(&index, slots.min(index.experts_total()))?;
        let stats = CacheStats {
            experts_total: index.experts_total(),
            slots: slots.len(),
            slot_bytes: index.slot_bytes(),
            ..CacheStats::default()
        };
        let recent = Recent::new(index.layers());
        Ok(ExpertCache { index, slots, policy, reader, stats, recent, stopped: false })
    }

    /// Pins `experts` of `layer` and starts reading those that are not resident: gate and up of every
    /// miss before any down. `counts[i]` is how many rows of the window the router gave `experts[i]`.
    /// The lease then hands the experts out; dropping it unpins them.
    ///
    /// # Errors
    /// An unknown layer or expert, an expert named twice, more experts than slots, a stopped reader.
    /// Nothing has changed then.
    pub fn acquire(
        &mut self,
        layer: u32,
        experts: &[u32],
        counts: &[u32],
    ) -> Result<Lease<'_>, OffloadError> {
        self.check(layer, experts, counts)?;
        self.reap_abandoned()?;
        self.slots.begin_lease();
        self.policy.observe(layer, experts, counts);
        let (ready, missing) = self.pin_resident(layer, experts);
        let waiting = missing.len();
        self.stats.hits += ready.len() as u64;
        self.stats.misses += waiting as u64;
        self.recent.add(ready.len(), waiting);
        self.load(&missing)?;
        Ok(Lease { cache: self, layer, ready, waiting })
    }

    /// Counters so far.
    pub fn stats(&self) -> CacheStats {
        self.stats
    }

    /// The state of the cache for the scheduler.
    pub fn residency(&self) -> Residency {
        Residency {
            slots: self.slots.len(),
            resident: self.slots.resident(),
            experts_total: self.index.experts_total(),
            hit_rate_recent: self.recent.hit_rate(),
        }
    }

    /// Where the experts lie.
    pub fn index(&self) -> &ExpertIndex {
        &self.index
    }

    /// Forgets every resident expert, as a cold start would; counters and gating statistics stay.
    ///
    /// # Errors
    /// A stopped reader.
    pub fn clear(&mut self) -> Result<(), OffloadError> {
        self.reap_abandoned()?;
        self.slots.begin_lease();
        for layer in 0..self.index.layers() as u32 {
            for expert in 0..self.index.experts(layer) as u32 {
                let id = ExpertId { layer, expert };
                if let Some(flat) = self.index.flat(id).filter(|flat| self.slots.is_evictable(*flat)) {
                    self.policy.remove(id);
                    self.slots.evict(flat);
                }
            }
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
        if experts.len() > self.slots.len() {
            let (asked, slots) = (experts.len(), self.slots.len());
            return Err(OffloadError::TooManyExperts { layer, asked, slots });
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

    /// Takes back the buffers of loads whose lease was dropped early; what arrived whole stays resident.
    fn reap_abandoned(&mut self) -> Result<(), OffloadError> {
        if self.stopped {
            return Err(OffloadError::ReaderStopped { reader: self.reader.name() });
        }
        while self.reader.in_flight() > 0 {
            self.wait_part()?;
        }
        Ok(())
    }

    /// Splits `experts` into the slots of the resident ones, now pinned, and the missing.
    fn pin_resident(&mut self, layer: u32, experts: &[u32]) -> (VecDeque<usize>, Vec<ExpertId>) {
        let mut ready = VecDeque::with_capacity(experts.len());
        let mut missing = Vec::new();
        for &expert in experts {
            let id = ExpertId { layer, expert };
            match self.index.flat(id).and_then(|flat| self.slots.find(flat)) {
                Some(slot) => {
                    self.slots.pin(slot);
                    ready.push_back(slot);
                }
                None => missing.push(id),
            }
        }
        (ready, missing)
    }

    /// Gives every missing expert a slot and submits all reads as one batch.
    fn load(&mut self, missing: &[ExpertId]) -> Result<(), OffloadError> {
        if missing.is_empty() {
            return Ok(());
        }
        let slots: Vec<usize> = missing.iter().map(|id| self.begin_load(*id)).collect();
        let mut reads = Vec::with_capacity(missing.len() * PARTS);
        // Down comes last: computing can start with gate and up (ALGORITHMS.md H.3).
        for parts in [0..PARTS - 1, PARTS - 1..PARTS] {
            for (id, slot) in missing.iter().zip(&slots) {
                let extents = self.index.extents(*id).expect("invariant: checked by acquire");
                for part in parts.clone() {
                    let buf = self.slots.take_buf(*slot, part);
                    reads.push(Read { tag: (slot * PARTS + part) as u64, extent: extents[part], buf });
                }
            }
        }
        self.reader.submit(reads).inspect_err(|_| self.stopped = true)
    }

    fn begin_load(&mut self, id: ExpertId) -> usize {
        if !self.slots.has_free() {
            self.evict_for(id.layer);
        }
        let flat = self.index.flat(id).expect("invariant: checked by acquire");
        self.policy.insert(id);
        self.slots.begin_load(id, flat)
    }

    fn evict_for(&mut self, layer: u32) {
        let (index, slots) = (&self.index, &self.slots);
        let evictable = |id| index.flat(id).is_some_and(|flat| slots.is_evictable(flat));
        let victim = self.policy.victim(layer, &evictable);
        let victim =
            victim.filter(|id| evictable(*id)).expect("invariant: a policy names an evictable expert");
        self.policy.remove(victim);
        self.slots.evict(self.index.flat(victim).expect("invariant: victims are in the index"));
    }

    /// Waits for one read to end; returns the load it completed, if it did.
    fn wait_part(&mut self) -> Result<Option<Loaded>, OffloadError> {
        let began = Instant::now();
        let done = self.reader.wait().inspect_err(|_| self.stopped = true)?;
        self.stats.stall_s += began.elapsed().as_secs_f64();
        self.stats.read_s += done.read_s;
        self.stats.bytes_read += done.data.as_ref().map_or(0, |data| data.len() as u64);
        let (slot, part) = split_tag(done.tag);
        let loaded = self.slots.finish_part(slot, part, done);
        if let Some(Loaded { failure: Some(OffloadError::Load { id, .. }), .. }) = &loaded {
            self.policy.remove(*id);
        }
        Ok(loaded)
    }
}

/// Experts of one layer, pinned until this is dropped. While the caller computes on one, the reads of
/// the others go on.
pub struct Lease<'a> {
    cache: &'a mut ExpertCache,
    layer: u32,
    ready: VecDeque<usize>,
    waiting: usize,
}

impl Lease<'_> {
    /// The next expert: resident ones first, then the missing as they arrive (blocking); `None` when
    /// every expert has been handed out or has failed.
    ///
    /// # Errors
    /// [`OffloadError::Load`] when an expert could not be read: its slot is free again, the other
    /// experts of the lease still come, and a later acquire may try again.
    #[expect(clippy::should_implement_trait, reason = "a lending iterator: views borrow the lease")]
    pub fn next(&mut self) -> Result<Option<SlotView<'_>>, OffloadError> {
        let slot = match self.ready.pop_front() {
            Some(slot) => slot,
            None if self.waiting == 0 => return Ok(None),
            None => self.arrival()?,
        };
        Ok(Some(self.cache.slots.view(slot)))
    }

    /// An expert of the lease again, once `next` has handed it out (or would without blocking): for
    /// computing on several at once. `None` for any other.
    pub fn view(&self, expert: u32) -> Option<SlotView<'_>> {
        let flat = self.cache.index.flat(ExpertId { layer: self.layer, expert })?;
        let slot = self.cache.slots.find(flat).filter(|slot| self.cache.slots.is_held(*slot))?;
        Some(self.cache.slots.view(slot))
    }

    /// Experts not handed out yet.
    pub fn left(&self) -> usize {
        self.ready.len() + self.waiting
    }

    /// Experts not handed out yet that are known to be in memory, so `next` will not block for them.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    fn arrival(&mut self) -> Result<usize, OffloadError> {
        loop {
            let Some(loaded) = self.cache.wait_part()? else { continue };
            self.waiting -= 1;
            return match loaded.failure {
                None => Ok(loaded.slot),
                Some(failure) => Err(failure),
            };
        }
    }
}

fn split_tag(tag: u64) -> (usize, usize) {
    (tag as usize / PARTS, tag as usize % PARTS)
}

/// Hits and misses, decayed once per acquire.
struct Recent {
    hits: f64,
    misses: f64,
    decay: f64,
}

impl Recent {
    fn new(layers: usize) -> Recent {
        Recent { hits: 0.0, misses: 0.0, decay: (-1.0 / (RECENT_PASSES * layers as f64)).exp2() }
    }

    fn add(&mut self, hits: usize, misses: usize) {
        self.hits = self.hits * self.decay + hits as f64;
        self.misses = self.misses * self.decay + misses as f64;
    }

    fn hit_rate(&self) -> f64 {
        ratio(self.hits, self.misses)
    }
}

fn ratio(hits: f64, misses: f64) -> f64 {
    let total = hits + misses;
    if total > 0.0 { hits / total } else { 0.0 }
}
