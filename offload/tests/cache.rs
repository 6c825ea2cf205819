//! The cache's contract: right bytes, pins, order, errors, and a property test against a model.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Bank, drain, take};
use drafthorse_offload::reader::{DiskSpec, Fault, FaultKind, Faults, PreadReader, SimulatedDisk};
use drafthorse_offload::*;
use parking_lot::Mutex;
use proptest::prelude::*;

fn memory_cache(bank: &Bank, slots: usize) -> (ExpertCache, Faults) {
    let faults = Faults::default();
    (bank.cache(slots, PolicyKind::Gating, bank.memory(&faults, None)), faults)
}

/// As [`memory_cache`]; one read ends at each wait, and none before.
fn patient_cache(bank: &Bank, slots: usize) -> (ExpertCache, Faults) {
    let faults = Faults::default();
    let reader = Box::new(Noting { reader: bank.memory(&faults, None), batches: Arc::default() });
    (bank.cache(slots, PolicyKind::Gating, reader), faults)
}

fn fault(bank: &Bank, layer: u32, expert: u32, part: usize, kind: FaultKind) -> Fault {
    let extent = bank.index.extents(ExpertId { layer, expert }).unwrap()[part];
    Fault { file: extent.file, offset: extent.offset, kind }
}

#[test]
fn a_cache_on_a_simulated_disk_gives_the_same_bytes_no_faster_than_the_disk() {
    let bank = Bank::new(3, 8);
    let faults = Faults::default();
    let spec = DiskSpec { bytes_per_s: 50_000_000, latency: Duration::from_micros(100) };
    let reader = bank.memory(&faults, Some(9));
    let reader = SimulatedDisk::new(spec).in_front_of(reader, &ReaderOptions::default());
    let mut cache = bank.cache(5, PolicyKind::Gating, reader);
    let began = Instant::now();
    for pass in 0..4 {
        for layer in 0..3 {
            let mut lease = cache.acquire(layer, &[pass, 7 - pass], &[1, 1]).unwrap();
            drain(&bank, layer, &mut lease).unwrap();
        }
    }
    let (stats, took_s) = (cache.stats(), began.elapsed().as_secs_f64());
    assert!(stats.misses > 10 && took_s >= stats.bytes_read as f64 / 50e6, "{stats:?} in {took_s} s");
    assert!(stats.read_s >= stats.misses as f64 * 3.0 * 100e-6, "every part waits out its latency");
    faults.add(fault(&bank, 0, 5, 1, FaultKind::Eio));
    let mut lease = cache.acquire(0, &[5], &[1]).unwrap();
    assert!(matches!(drain(&bank, 0, &mut lease), Err(OffloadError::Load { .. })));
    drop(lease);
    drain(&bank, 0, &mut cache.acquire(0, &[5], &[1]).unwrap()).unwrap();
}

#[test]
fn hits_come_first_then_misses_as_they_arrive() {
    let bank = Bank::new(2, 8);
    let (mut cache, faults) = patient_cache(&bank, 6);
    drain(&bank, 0, &mut cache.acquire(0, &[4, 1], &[1, 1]).unwrap()).unwrap();
    faults.add(fault(&bank, 0, 7, 2, FaultKind::Delay { reads: 50 }));
    let mut lease = cache.acquire(0, &[7, 1, 0, 4], &[1; 4]).unwrap();
    let whole: Vec<u32> = take(&bank, 0, &mut lease).unwrap();
    assert_eq!(whole, [1, 4], "without waiting for anything");
    assert!(!lease.is_done());
    assert_eq!(drain(&bank, 0, &mut lease).unwrap(), [0, 7]);
}

#[test]
fn gate_and_up_are_usable_before_down_has_arrived() {
    let bank = Bank::new(1, 8);
    let (mut cache, faults) = patient_cache(&bank, 6);
    faults.add(fault(&bank, 0, 3, 2, FaultKind::Delay { reads: 50 }));
    let mut lease = cache.acquire(0, &[3], &[1]).unwrap();
    assert_eq!(lease.arrivals(true).unwrap(), [Arrival { expert: 3, piece: Piece::Inner }]);
    assert!(lease.inner(3).is_some() && lease.down(3).is_none() && !lease.is_done());
    assert_eq!(lease.arrivals(true).unwrap(), [Arrival { expert: 3, piece: Piece::Down }]);
    assert!(lease.down(3).is_some() && lease.is_done());
}

#[test]
fn down_is_announced_after_gate_and_up_whatever_the_disk_does() {
    let bank = Bank::new(1, 8);
    let (mut cache, faults) = patient_cache(&bank, 6);
    faults.add(fault(&bank, 0, 3, 0, FaultKind::Delay { reads: 50 }));
    let mut lease = cache.acquire(0, &[3], &[1]).unwrap();
    let (inner, down) =
        (Arrival { expert: 3, piece: Piece::Inner }, Arrival { expert: 3, piece: Piece::Down });
    assert_eq!(lease.arrivals(true).unwrap(), [inner, down]);
}

/// A reader that notes what it is asked for, and whose reads end only when they are waited for.
struct Noting {
    reader: Box<dyn Reader>,
    batches: Arc<Mutex<Vec<Vec<Extent>>>>,
}

impl Reader for Noting {
    fn name(&self) -> &'static str {
        self.reader.name()
    }
    fn submit(&mut self, reads: Vec<Read>) -> Result<(), OffloadError> {
        self.batches.lock().push(reads.iter().map(|read| read.extent).collect());
        self.reader.submit(reads)
    }
    fn wait(&mut self) -> Result<Completion, OffloadError> {
        self.reader.wait()
    }
    fn poll(&mut self) -> Result<Option<Completion>, OffloadError> {
        Ok(None)
    }
    fn in_flight(&self) -> usize {
        self.reader.in_flight()
    }
    fn notice(&self) -> Option<&str> {
        self.reader.notice()
    }
}

#[test]
fn all_misses_are_one_batch_with_every_gate_and_up_before_any_down() {
    let bank = Bank::new(1, 6);
    let batches = Arc::default();
    let reader = bank.memory(&Faults::default(), None);
    let reader = Box::new(Noting { reader, batches: Arc::clone(&batches) });
    let mut cache = bank.cache(5, PolicyKind::Lru, reader);
    drain(&bank, 0, &mut cache.acquire(0, &[1], &[1]).unwrap()).unwrap();
    drain(&bank, 0, &mut cache.acquire(0, &[4, 1, 2], &[1; 3]).unwrap()).unwrap();
    drain(&bank, 0, &mut cache.acquire(0, &[4, 1, 2], &[1; 3]).unwrap()).unwrap();
    let part = |expert, part: usize| bank.index.extents(ExpertId { layer: 0, expert }).unwrap()[part];
    let first = vec![part(1, 0), part(1, 1), part(1, 2)];
    let second = vec![part(4, 0), part(4, 1), part(2, 0), part(2, 1), part(4, 2), part(2, 2)];
    assert_eq!(*batches.lock(), [first, second], "and nothing for the third, which only hits");
}

#[test]
fn counters_add_up() {
    let bank = Bank::new(2, 8);
    let (mut cache, _) = memory_cache(&bank, 5);
    drain(&bank, 1, &mut cache.acquire(1, &[0, 3, 5], &[2, 1, 1]).unwrap()).unwrap();
    drain(&bank, 1, &mut cache.acquire(1, &[3, 6], &[1, 1]).unwrap()).unwrap();
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.hit_rate()), (1, 4, 0.2));
    assert_eq!((stats.slots, stats.experts_total, stats.slot_bytes), (5, 16, bank.index.slot_bytes()));
    assert_eq!(stats.bytes_read, 4 * bank.index.expert_bytes(1));
    assert_eq!((stats.prefetch_issued, stats.prefetch_used), (0, 0));
    let residency = cache.residency();
    assert_eq!((residency.slots, residency.resident, residency.experts_total), (5, 4, 16));
    assert!((residency.hit_rate_recent - 0.2).abs() < 0.01);
}

#[test]
fn a_bank_that_fits_is_read_once() {
    let bank = Bank::new(3, 4);
    let (mut cache, _) = memory_cache(&bank, 1000);
    for _ in 0..3 {
        for layer in 0..3 {
            drain(&bank, layer, &mut cache.acquire(layer, &[0, 1, 2, 3], &[1; 4]).unwrap()).unwrap();
        }
    }
    assert_eq!(cache.stats().slots, 12, "no slot without an expert to hold");
    assert_eq!((cache.stats().misses, cache.stats().hits), (12, 24));
    assert_eq!(cache.stats().bytes_read, bank.index.bytes_total());
}

#[test]
fn experts_of_the_lease_are_seen_together_until_they_are_released() {
    let bank = Bank::new(1, 6);
    let (mut cache, _) = memory_cache(&bank, 4);
    let mut lease = cache.acquire(0, &[5, 2], &[1, 1]).unwrap();
    assert!(lease.inner(5).is_none(), "it has not arrived");
    while !lease.is_done() {
        lease.arrivals(true).unwrap();
    }
    for expert in [5, 2] {
        let [gate, up] = lease.inner(expert).unwrap();
        assert!([gate, up, lease.down(expert).unwrap()] == bank.expert(ExpertId { layer: 0, expert }));
    }
    assert!(lease.inner(1).is_none() && lease.down(99).is_none());
    lease.release(5);
    assert!(lease.inner(5).is_none() && lease.inner(2).is_some());
    drop(lease);
    let mut lease = cache.acquire(0, &[2], &[1]).unwrap();
    assert_eq!(lease.arrivals(false).unwrap().len(), 2, "it is resident");
    assert!(lease.inner(5).is_none(), "resident, but not of this lease");
}

#[test]
fn a_window_wider_than_the_cache_streams_through_it() {
    let bank = Bank::new(2, 40);
    for entry in POLICIES {
        for slots in [1, 2, 7, 39] {
            let mut cache = bank.cache(slots, entry.kind, bank.memory(&Faults::default(), Some(5)));
            for layer in [0, 1, 0] {
                let experts: Vec<u32> = (0..40).rev().collect();
                let mut lease = cache.acquire(layer, &experts, &[2; 40]).unwrap();
                let mut order = drain(&bank, layer, &mut lease).unwrap();
                order.sort_unstable();
                assert!(order.into_iter().eq(0..40), "{} {slots}", entry.name);
            }
            assert_eq!(cache.stats().hits + cache.stats().misses, 120);
        }
    }
}

#[test]
fn a_window_wider_than_the_cache_whose_experts_are_never_released_is_an_error_not_a_hang() {
    let bank = Bank::new(1, 8);
    let (mut cache, _) = memory_cache(&bank, 3);
    let mut lease = cache.acquire(0, &[0, 1, 2, 3], &[1; 4]).unwrap();
    let error = loop {
        if let Err(error) = lease.arrivals(true) {
            break error;
        }
    };
    assert!(matches!(error, OffloadError::AllSlotsHeld { layer: 0, slots: 3 }), "{error}");
    drop(lease);
    drain(&bank, 0, &mut cache.acquire(0, &[3], &[1]).unwrap()).unwrap();
}

#[test]
fn a_lease_of_as_many_experts_as_slots_works_layer_after_layer() {
    let bank = Bank::new(3, 8);
    for entry in POLICIES {
        let mut cache = bank.cache(4, entry.kind, bank.memory(&Faults::default(), Some(3)));
        for pass in 0..6 {
            for layer in 0..3 {
                let experts = [pass, pass + 1, (pass + 3) % 7, 7];
                let mut lease = cache.acquire(layer, &experts, &[1; 4]).unwrap();
                let mut order = drain(&bank, layer, &mut lease).unwrap();
                order.sort_unstable();
                let mut wanted = experts;
                wanted.sort_unstable();
                assert_eq!(order, wanted, "{}", entry.name);
            }
        }
    }
}

#[test]
fn impossible_requests_are_refused_and_change_nothing() {
    let bank = Bank::new(2, 4);
    let (mut cache, _) = memory_cache(&bank, 3);
    let refused = |cache: &mut ExpertCache, layer, experts: &[u32], counts: &[u32]| {
        cache.acquire(layer, experts, counts).err().unwrap()
    };
    use OffloadError as E;
    assert!(matches!(refused(&mut cache, 2, &[0], &[1]), E::NoSuchLayer { layer: 2, layers: 2 }));
    assert!(matches!(refused(&mut cache, 0, &[4], &[1]), E::NoSuchExpert { experts: 4, .. }));
    assert!(matches!(refused(&mut cache, 0, &[1, 1], &[1, 1]), E::DuplicateExpert { .. }));
    assert!(matches!(refused(&mut cache, 0, &[0], &[]), E::CountsLength { experts: 1, counts: 0 }));
    assert_eq!(cache.stats().hits + cache.stats().misses, 0);
    assert!(cache.acquire(0, &[], &[]).unwrap().is_done());
}

#[test]
fn a_cache_without_slots_or_beyond_the_address_space_is_refused() {
    let build = |bytes: u64, slots: usize| {
        let extent = Extent { file: 0, offset: 0, len: bytes };
        let index = ExpertIndex::new(vec![vec![[extent; PARTS]; 4]]).unwrap();
        let policy = PolicyKind::Lru.build(&PolicyConfig::new(&index, slots, 1));
        let reader = Bank::new(1, 1).memory(&Faults::default(), None);
        ExpertCache::new(CacheConfig { index, slots, policy, reader, threads: 1 }).err().unwrap()
    };
    assert!(matches!(build(1, 0), OffloadError::NoSlots));
    assert!(matches!(build(1 << 60, 4), OffloadError::ArenaTooLarge { .. }));
}

#[test]
fn a_failed_read_names_expert_and_file_frees_the_slot_and_can_be_retried() {
    let bank = Bank::new(2, 8);
    for kind in [FaultKind::Short { got: 12 }, FaultKind::Eio] {
        for part in 0..PARTS {
            let (mut cache, faults) = memory_cache(&bank, 3);
            faults.add(fault(&bank, 1, 6, part, kind));
            let mut lease = cache.acquire(1, &[2, 6, 0], &[1; 3]).unwrap();
            let (mut arrived, mut failed) = (Vec::new(), Vec::new());
            while !lease.is_done() {
                match take(&bank, 1, &mut lease) {
                    Ok(whole) => arrived.extend(whole),
                    Err(error) => failed.push(error),
                }
            }
            arrived.sort_unstable();
            assert_eq!(arrived, [0, 2], "the others still come");
            check_load_error(&bank, &failed, part, kind);
            assert_eq!(cache.residency().resident, 2);
            let mut retry = cache.acquire(1, &[6, 2, 0], &[1; 3]).unwrap();
            assert_eq!(drain(&bank, 1, &mut retry).unwrap(), [2, 0, 6]);
        }
    }
}

fn check_load_error(bank: &Bank, failed: &[OffloadError], part: usize, kind: FaultKind) {
    let [error @ OffloadError::Load { id, part: name, source }] = failed else {
        assert_eq!(failed.len(), 1, "{failed:?}");
        return;
    };
    assert_eq!((*id, *name), (ExpertId { layer: 1, expert: 6 }, ["gate", "up", "down"][part]));
    let extent = bank.index.extents(*id).unwrap()[part];
    match (kind, source) {
        (FaultKind::Short { got }, ReadError::Short { offset, wanted, got: there, .. }) => {
            assert_eq!((*offset, *wanted, *there), (extent.offset, extent.len, got));
        }
        (_, source) => assert!(matches!(source, ReadError::Io { .. }), "{source:?}"),
    }
    let text = error.to_string();
    assert!(text.contains("expert 6 of MoE layer 1") && text.contains("file-1.gguf"), "{text}");
}

#[test]
fn a_lease_dropped_with_loads_in_flight_loses_no_slot() {
    let bank = Bank::new(2, 8);
    let (mut cache, faults) = memory_cache(&bank, 4);
    for round in 0..10 {
        faults.add(fault(&bank, 0, round % 8, 1, FaultKind::Eio));
        let experts = [round % 8, (round + 1) % 8, (round + 2) % 8];
        let mut lease = cache.acquire(0, &experts, &[1; 3]).unwrap();
        if round % 2 == 0 {
            let _ = lease.arrivals(true); // may be the expert whose read fails
        }
    }
    faults.clear();
    for layer in [1, 0] {
        // As many as there are slots: every buffer must have come back.
        let mut lease = cache.acquire(layer, &[7, 6, 5, 4], &[1; 4]).unwrap();
        assert_eq!(drain(&bank, layer, &mut lease).unwrap().len(), 4);
    }
}

#[test]
fn an_expert_whose_load_was_abandoned_is_there_at_the_next_acquire() {
    let bank = Bank::new(1, 8);
    let (mut cache, _) = memory_cache(&bank, 4);
    drop(cache.acquire(0, &[3, 4], &[1, 1]).unwrap());
    drain(&bank, 0, &mut cache.acquire(0, &[4], &[1]).unwrap()).unwrap();
    drain(&bank, 0, &mut cache.acquire(0, &[3], &[1]).unwrap()).unwrap();
    assert_eq!(cache.stats().bytes_read, 2 * bank.index.expert_bytes(0), "each was read once");
}

#[test]
fn a_leaked_lease_pins_nothing_for_good() {
    let bank = Bank::new(1, 8);
    let (mut cache, _) = memory_cache(&bank, 2);
    std::mem::forget(cache.acquire(0, &[0, 1], &[1, 1]).unwrap());
    drain(&bank, 0, &mut cache.acquire(0, &[2, 3], &[1, 1]).unwrap()).unwrap();
}

#[test]
fn a_file_cut_off_in_an_expert_fails_that_expert_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let bank = Bank::new(2, 6);
    let paths = bank.write(folder.path());
    let down = bank.index.extents(ExpertId { layer: 1, expert: 4 }).unwrap()[2];
    let file = std::fs::File::options().write(true).open(&paths[1]).unwrap();
    file.set_len(down.offset + 100).unwrap();
    let mut cache = bank.cache(4, PolicyKind::Lru, Box::new(PreadReader::open(&paths, 4).unwrap()));
    let mut lease = cache.acquire(1, &[4], &[1]).unwrap();
    let error = loop {
        if let Err(error) = take(&bank, 1, &mut lease) {
            break error;
        }
    };
    match error {
        OffloadError::Load { id, part: "down", source: ReadError::Short { file, offset, wanted, got } } => {
            assert_eq!(id, ExpertId { layer: 1, expert: 4 });
            assert_eq!((file, offset, wanted, got), (paths[1].clone(), down.offset, down.len, 100));
        }
        other => assert_eq!(other.to_string(), "a short read of the down part"),
    }
    assert!(lease.is_done());
    drop(lease);
    drain(&bank, 1, &mut cache.acquire(1, &[0, 3], &[1, 1]).unwrap()).unwrap();
    drain(&bank, 0, &mut cache.acquire(0, &[5, 4], &[1, 1]).unwrap()).unwrap();
}

/// A policy that keeps a model of what is resident and checks every decision of the real one.
struct Watched {
    real: Box<dyn Policy>,
    model: Arc<Mutex<Model>>,
}

#[derive(Default)]
struct Model {
    resident: HashMap<ExpertId, bool>, // true: held by the current lease
    wanted: Vec<ExpertId>,             // by the current lease
    slots: usize,
}

impl Policy for Watched {
    fn name(&self) -> &'static str {
        self.real.name()
    }
    fn observe(&mut self, layer: u32, experts: &[u32], counts: &[u32]) {
        self.real.observe(layer, experts, counts);
        let mut model = self.model.lock();
        model.wanted = experts.iter().map(|&expert| ExpertId { layer, expert }).collect();
        let Model { resident, wanted, .. } = &mut *model;
        resident.iter_mut().for_each(|(id, held)| *held = wanted.contains(id));
    }
    fn insert(&mut self, id: ExpertId) {
        self.real.insert(id);
        let mut model = self.model.lock();
        let is_wanted = model.wanted.contains(&id);
        assert_eq!(model.resident.insert(id, is_wanted), None, "{id} loaded twice");
        assert!(model.resident.len() <= model.slots, "more experts than slots");
    }
    fn remove(&mut self, id: ExpertId) {
        self.real.remove(id);
        assert!(self.model.lock().resident.remove(&id).is_some(), "{id} was not resident");
    }
    fn victim(&mut self, layer: u32, evictable: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let victim = self.real.victim(layer, evictable)?;
        assert_eq!(self.model.lock().resident.get(&victim), Some(&false), "{victim} is held or gone");
        Some(victim)
    }
    fn warm_stats(&self) -> Option<WarmStats> {
        self.real.warm_stats()
    }
}

const LAYERS: u32 = 3;
const EXPERTS: u32 = 16;

#[derive(Clone, Debug)]
enum Step {
    /// Layer, experts as a bit set, calls of `arrivals` before the lease is dropped, a fault.
    Acquire(u32, u16, usize, Option<(u32, usize, FaultKind)>),
    Predict(u32, u16),
    WarmUp(u32, u16),
    Poll,
    Clear,
    Prefetching(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![
        (0u64..900).prop_map(|got| FaultKind::Short { got }),
        Just(FaultKind::Eio),
        (1usize..30).prop_map(|reads| FaultKind::Delay { reads }),
    ];
    let fault = proptest::option::weighted(0.3, (0..EXPERTS, 0..PARTS, kind));
    let acquire = (0..LAYERS, any::<u16>(), prop_oneof![Just(99), 0usize..4], fault);
    let step = prop_oneof![
        8 => acquire.prop_map(|(layer, set, take, fault)| Step::Acquire(layer, set, take, fault)),
        4 => (0..LAYERS, any::<u16>()).prop_map(|(layer, set)| Step::Predict(layer, set)),
        1 => (0..LAYERS, any::<u16>()).prop_map(|(layer, set)| Step::WarmUp(layer, set)),
        2 => Just(Step::Poll),
        1 => Just(Step::Clear),
        1 => any::<bool>().prop_map(Step::Prefetching),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_cache_behaves_like_a_map_from_experts_to_bytes(
        steps in steps(),
        slots in 1usize..48,
        policy in 0..POLICIES.len(),
        order_seed in proptest::option::of(0u64..1000),
    ) {
        run_model(&steps, slots, POLICIES[policy].kind, order_seed);
    }
}

fn members(set: u16) -> Vec<u32> {
    (0..EXPERTS).filter(|e| set >> e & 1 == 1).collect()
}

fn run_model(steps: &[Step], slots: usize, kind: PolicyKind, order_seed: Option<u64>) {
    let bank = Bank::new(LAYERS as usize, EXPERTS as usize);
    let faults = Faults::default();
    let model = Arc::new(Mutex::new(Model { slots, ..Model::default() }));
    let real = kind.build(&PolicyConfig::new(&bank.index, slots, 2));
    let policy = Box::new(Watched { real, model: Arc::clone(&model) });
    let (index, reader) = (bank.index.clone(), bank.memory(&faults, order_seed));
    let mut cache = ExpertCache::new(CacheConfig { index, slots, policy, reader, threads: 1 }).unwrap();
    cache.set_prefetch(true);
    let mut accesses = 0;
    for step in steps {
        match step {
            Step::Acquire(layer, set, take, injected) => {
                if let Some((expert, part, kind)) = injected {
                    faults.add(fault(&bank, *layer, *expert, *part, *kind));
                }
                let experts = members(*set);
                accesses += experts.len() as u64;
                let mut lease = cache.acquire(*layer, &experts, &vec![1; experts.len()]).unwrap();
                take_some(&bank, (*layer, &experts, *take), &mut lease, &model);
            }
            Step::Predict(layer, set) => cache.prefetch(*layer, &members(*set)).unwrap(),
            Step::WarmUp(layer, set) => {
                let ids = members(*set).into_iter().map(|expert| ExpertId { layer: *layer, expert });
                cache.warm_up(&ids.collect::<Vec<_>>()).unwrap();
            }
            Step::Poll => cache.poll().unwrap(),
            Step::Clear => {
                cache.clear().unwrap();
                assert_eq!((cache.residency().resident, model.lock().resident.len()), (0, 0));
            }
            Step::Prefetching(enabled) => cache.set_prefetch(*enabled),
        }
        let stats = cache.stats();
        assert_eq!(stats.hits + stats.misses, accesses);
        assert!(stats.prefetch_used <= stats.prefetch_issued + slots as u64);
        assert!(cache.residency().resident <= slots);
    }
    // Nothing was lost on the way: every expert can still be had, through every slot.
    faults.clear();
    cache.clear().unwrap();
    for layer in 0..LAYERS {
        let mut lease = cache.acquire(layer, &members(u16::MAX), &[1; EXPERTS as usize]).unwrap();
        let mut seen = 0;
        while !lease.is_done() {
            seen += released(&bank, layer, &mut lease, &model).unwrap().len();
        }
        assert_eq!(seen, EXPERTS as usize);
    }
}

/// [`take`], telling the model what has been released.
fn released(
    bank: &Bank,
    layer: u32,
    lease: &mut Lease<'_>,
    model: &Mutex<Model>,
) -> Result<Vec<u32>, OffloadError> {
    let whole = take(bank, layer, lease)?;
    let mut model = model.lock();
    for expert in &whole {
        model.resident.entry(ExpertId { layer, expert: *expert }).and_modify(|held| *held = false);
    }
    Ok(whole)
}

/// Takes experts out of the lease: each once, with the file's bytes, or with an error that an injected
/// fault explains.
fn take_some(
    bank: &Bank,
    (layer, experts, calls): (u32, &[u32], usize),
    lease: &mut Lease<'_>,
    model: &Mutex<Model>,
) {
    let mut seen = Vec::new();
    for _ in 0..calls {
        if lease.is_done() {
            break;
        }
        match released(bank, layer, lease, model) {
            Ok(whole) => seen.extend(whole),
            Err(OffloadError::Load { id, .. }) => {
                assert_eq!(id.layer, layer);
                seen.push(id.expert);
            }
            Err(other) => assert_eq!(other.to_string(), "a failed load"),
        }
    }
    let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!(distinct.len(), seen.len(), "an expert came twice");
    assert!(seen.iter().all(|expert| experts.contains(expert)));
    if lease.is_done() {
        assert_eq!(seen.len(), experts.len());
    }
}
