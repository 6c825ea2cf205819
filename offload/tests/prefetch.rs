//! Reading ahead: predictions live on probation, yield to demand, and cost no resident expert its slot.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::sync::Arc;

use common::{Bank, drain};
use drafthorse_offload::reader::{Fault, FaultKind, Faults};
use drafthorse_offload::*;
use parking_lot::Mutex;

const SLOTS: usize = 64; // so four of them are kept for predictions

/// A reader that notes the order of its reads; they end only when they are waited for, or when the
/// test lets `polls` of them end.
struct Slow {
    reader: Box<dyn Reader>,
    begun: Arc<Mutex<Vec<Extent>>>,
    polls: Arc<Mutex<usize>>,
}

impl Reader for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }
    fn submit(&mut self, reads: Vec<Read>) -> Result<(), OffloadError> {
        self.begun.lock().extend(reads.iter().map(|read| read.extent));
        self.reader.submit(reads)
    }
    fn wait(&mut self) -> Result<Completion, OffloadError> {
        self.reader.wait()
    }
    fn poll(&mut self) -> Result<Option<Completion>, OffloadError> {
        let mut polls = self.polls.lock();
        if *polls == 0 {
            return Ok(None);
        }
        *polls -= 1;
        self.reader.poll()
    }
    fn in_flight(&self) -> usize {
        self.reader.in_flight()
    }
    fn notice(&self) -> Option<&str> {
        None
    }
}

struct World {
    bank: Bank,
    cache: ExpertCache,
    faults: Faults,
    begun: Arc<Mutex<Vec<Extent>>>,
    polls: Arc<Mutex<usize>>,
}

impl World {
    fn new() -> World {
        let bank = Bank::new(4, 32);
        let (faults, begun, polls) = (Faults::default(), Arc::default(), Arc::default());
        let reader = bank.memory(&faults, None);
        let reader = Slow { reader, begun: Arc::clone(&begun), polls: Arc::clone(&polls) };
        let mut cache = bank.cache(SLOTS, PolicyKind::Gating, Box::new(reader));
        cache.set_prefetch(true);
        World { bank, cache, faults, begun, polls }
    }

    /// Uses experts to the end; returns the extents that were begun meanwhile.
    fn use_all(&mut self, layer: u32, experts: &[u32]) -> Vec<Extent> {
        self.begun.lock().clear();
        let mut lease = self.cache.acquire(layer, experts, &vec![1; experts.len()]).unwrap();
        let mut whole = drain(&self.bank, layer, &mut lease).unwrap();
        whole.sort_unstable();
        assert_eq!(whole, experts);
        self.begun.lock().clone()
    }

    /// Lets everything that is in flight or queued end.
    fn idle(&mut self) {
        *self.polls.lock() = 1000;
        self.cache.poll().unwrap();
        *self.polls.lock() = 0;
    }

    fn parts(&self, layer: u32, expert: u32) -> [Extent; PARTS] {
        *self.bank.index.extents(ExpertId { layer, expert }).unwrap()
    }
}

#[test]
fn an_expert_that_was_predicted_is_a_hit() {
    let mut world = World::new();
    world.cache.prefetch(1, &[5, 6]).unwrap();
    world.idle();
    assert_eq!(world.use_all(1, &[5, 6]), [], "nothing is left to read");
    let stats = world.cache.stats();
    assert_eq!((stats.hits, stats.misses), (2, 0));
    assert_eq!((stats.prefetch_issued, stats.prefetch_used), (2, 2));
    assert_eq!(stats.prefetch_bytes, 2 * world.bank.index.expert_bytes(1));
}

#[test]
fn predictions_wait_while_somebody_waits_for_the_disk() {
    let mut world = World::new();
    let lease = world.cache.acquire(0, &[1, 2], &[1, 1]).unwrap();
    drop(lease);
    let demanded = world.begun.lock().len();
    assert_eq!(demanded, 2 * PARTS);
    world.cache.prefetch(1, &[7]).unwrap();
    assert_eq!(world.begun.lock().len(), demanded, "nothing of the prediction yet");
    *world.polls.lock() = demanded - 1;
    world.cache.poll().unwrap();
    assert_eq!(world.begun.lock().len(), demanded, "one read is still waited for");
    world.idle();
    assert_eq!(world.begun.lock()[demanded..], world.parts(1, 7));
}

#[test]
fn a_demanded_expert_overtakes_the_predictions_before_it() {
    let mut world = World::new();
    world.cache.prefetch(1, &[1, 2, 3, 4]).unwrap();
    assert_eq!(world.begun.lock().len(), 4, "only a few idle reads are at the disk at once");
    let begun = world.use_all(1, &[4]);
    assert_eq!(begun, world.parts(1, 4), "what was queued of it went next, and nothing of the others");
}

#[test]
fn a_prediction_that_was_wrong_is_not_read_to_the_end() {
    let mut world = World::new();
    world.cache.prefetch(1, &[1, 2, 3]).unwrap();
    let first: Vec<Extent> = world.begun.lock().clone();
    world.use_all(1, &[9]);
    world.idle();
    let after = world.begun.lock().clone();
    assert!(after.iter().all(|extent| world.parts(1, 9).contains(extent)), "nothing wrong was begun");
    assert!(first.len() < 3 * PARTS);
    // Its slots are free again: as many predictions fit as before.
    world.cache.prefetch(2, &[1, 2, 3, 4]).unwrap();
    world.idle();
    assert_eq!(world.use_all(2, &[1, 2, 3, 4]), []);
}

#[test]
fn predictions_take_no_slot_from_the_policy_and_the_policy_none_from_them() {
    let mut world = World::new();
    for layer in [0, 1] {
        world.use_all(layer, &(0..32).collect::<Vec<_>>());
    }
    // 60 of 64 slots are the policy's, and all are taken.
    let resident = |world: &World| -> Vec<bool> {
        let ids = (0..2).flat_map(|layer| (0..32).map(move |expert| ExpertId { layer, expert }));
        ids.map(|id| world.cache.holds(id)).collect()
    };
    let before = resident(&world);
    assert_eq!(before.iter().filter(|held| **held).count(), 60);
    world.cache.prefetch(2, &(0..20).collect::<Vec<_>>()).unwrap();
    world.idle();
    assert_eq!(resident(&world), before, "nothing was evicted for a guess");
    assert_eq!(world.cache.residency().resident, SLOTS);
    assert_eq!(world.use_all(2, &[0, 1, 2, 3]), [], "the likeliest four were read");
    assert_eq!(world.cache.stats().prefetch_issued, 4);
}

#[test]
fn a_prediction_is_kept_until_its_layer_has_come() {
    let mut world = World::new();
    world.use_all(0, &[0]);
    world.cache.prefetch(3, &[1, 2, 3, 4]).unwrap();
    world.idle();
    world.cache.prefetch(1, &[9]).unwrap();
    world.use_all(1, &[0]);
    world.use_all(2, &[0]);
    assert_eq!(world.use_all(3, &[1, 2, 3, 4]), [], "none had made room for a later guess");
}

#[test]
fn a_stale_prediction_makes_room_for_a_new_one() {
    let mut world = World::new();
    world.use_all(0, &[0]);
    world.cache.prefetch(1, &[1, 2, 3, 4]).unwrap();
    world.idle();
    for layer in [1, 2, 3, 0] {
        world.use_all(layer, &[0]);
    }
    world.cache.prefetch(2, &[5, 6]).unwrap();
    world.idle();
    assert!(world.cache.holds(ExpertId { layer: 2, expert: 6 }));
    assert!(!world.cache.holds(ExpertId { layer: 1, expert: 1 }), "the oldest guess went");
}

#[test]
fn a_failed_prediction_is_forgotten_and_read_again_on_demand() {
    let mut world = World::new();
    let [gate, ..] = world.parts(1, 7);
    world.faults.add(Fault { file: gate.file, offset: gate.offset, kind: FaultKind::Eio });
    world.cache.prefetch(1, &[7]).unwrap();
    world.idle();
    assert!(!world.cache.holds(ExpertId { layer: 1, expert: 7 }));
    assert_eq!(world.use_all(1, &[7]), world.parts(1, 7));
}

#[test]
fn without_predictions_every_slot_serves_the_policy() {
    let mut world = World::new();
    world.cache.set_prefetch(false);
    world.cache.prefetch(1, &[7]).unwrap();
    assert!(world.begun.lock().is_empty(), "a hint nobody asked for");
    for layer in [0, 1] {
        world.use_all(layer, &(0..32).collect::<Vec<_>>());
    }
    assert_eq!(world.cache.residency().resident, SLOTS);
}

#[test]
fn a_cache_of_few_slots_keeps_none_for_predictions() {
    assert!(!ExpertCache::can_prefetch(15) && ExpertCache::can_prefetch(16));
    let bank = Bank::new(2, 8);
    let mut cache = bank.cache(8, PolicyKind::Lru, bank.memory(&Faults::default(), None));
    cache.set_prefetch(true);
    cache.prefetch(1, &[1, 2]).unwrap();
    assert_eq!(cache.stats().prefetch_issued, 0);
    drain(&bank, 0, &mut cache.acquire(0, &[0, 1, 2, 3, 4, 5, 6, 7], &[1; 8]).unwrap()).unwrap();
    assert_eq!(cache.residency().resident, 8);
}

#[test]
fn warming_up_fills_free_slots_in_order_and_evicts_nothing() {
    let mut world = World::new();
    world.use_all(0, &(0..32).collect::<Vec<_>>());
    let hottest: Vec<ExpertId> = (0..32).map(|expert| ExpertId { layer: 2, expert }).collect();
    assert!(!world.cache.residency().is_filling);
    world.cache.warm_up(&hottest).unwrap();
    assert!(world.cache.residency().is_filling, "most of it waits for the disk");
    world.idle();
    assert_eq!((world.cache.residency().resident, world.cache.residency().is_filling), (60, false));
    assert!((0..32).all(|expert| world.cache.holds(ExpertId { layer: 0, expert })));
    assert!((0..28).all(|expert| world.cache.holds(ExpertId { layer: 2, expert })));
    assert_eq!(world.use_all(2, &[0, 27]), []);
}

#[test]
fn demand_takes_the_slots_of_a_warm_up_that_is_not_read_yet_the_coldest_first() {
    let mut world = World::new();
    let hottest: Vec<ExpertId> = (0..64).map(|n| ExpertId { layer: 2 + n / 32, expert: n % 32 }).collect();
    world.cache.warm_up(&hottest).unwrap();
    assert_eq!(world.begun.lock().len(), 4, "the first is at the disk, the others wait");
    let begun = world.use_all(0, &[1, 2, 3]);
    let demanded: Vec<Extent> = [1, 2, 3].iter().flat_map(|expert| world.parts(0, *expert)).collect();
    assert!(begun[..3 * PARTS].iter().all(|extent| demanded.contains(extent)), "demand goes first");
    world.idle();
    assert!(world.cache.holds(hottest[0]) && world.cache.holds(hottest[56]));
    assert!(!world.cache.holds(hottest[57]), "60 slots: three for what was wanted, 57 for the hottest");
}
