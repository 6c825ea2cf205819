//! The cache's contract: right bytes, pins, order, errors, and a property test against a model.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::collections::HashMap;
use std::sync::Arc;

use common::{Bank, drain};
use drafthorse_offload::reader::{Fault, FaultKind, Faults, PreadReader};
use drafthorse_offload::*;
use parking_lot::Mutex;
use proptest::prelude::*;

fn memory_cache(bank: &Bank, slots: usize) -> (ExpertCache, Faults) {
    let faults = Faults::default();
    (bank.cache(slots, PolicyKind::Gating, bank.memory(&faults, None)), faults)
}

fn fault(bank: &Bank, layer: u32, expert: u32, part: usize, kind: FaultKind) -> Fault {
    let extent = bank.index.extents(ExpertId { layer, expert }).unwrap()[part];
    Fault { file: extent.file, offset: extent.offset, kind }
}

#[test]
fn hits_come_first_then_misses_as_they_arrive() {
    let bank = Bank::new(2, 8);
    let (mut cache, faults) = memory_cache(&bank, 6);
    drain(&bank, 0, &mut cache.acquire(0, &[4, 1], &[1, 1]).unwrap()).unwrap();
    faults.add(fault(&bank, 0, 7, 2, FaultKind::Delay { reads: 50 }));
    let mut lease = cache.acquire(0, &[7, 1, 0, 4], &[1; 4]).unwrap();
    assert_eq!((lease.ready(), lease.left()), (2, 4));
    assert_eq!(drain(&bank, 0, &mut lease).unwrap(), [1, 4, 0, 7]);
    assert_eq!((lease.ready(), lease.left()), (0, 0));
    assert!(lease.next().unwrap().is_none());
}

/// A reader that notes what it is asked for.
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
fn several_experts_can_be_viewed_at_once() {
    let bank = Bank::new(1, 6);
    let (mut cache, _) = memory_cache(&bank, 4);
    let mut lease = cache.acquire(0, &[5, 2], &[1, 1]).unwrap();
    assert!(lease.view(5).is_none(), "it has not arrived");
    while lease.next().unwrap().is_some() {}
    let (five, two) = (lease.view(5).unwrap(), lease.view(2).unwrap());
    assert_eq!((five.expert, two.expert), (5, 2));
    for view in [five, two] {
        assert!(view.parts == bank.expert(ExpertId { layer: 0, expert: view.expert }));
    }
    assert!(lease.view(1).is_none() && lease.view(99).is_none());
    drop(lease);
    let lease = cache.acquire(0, &[2], &[1]).unwrap();
    assert!(lease.view(2).is_some(), "it is resident");
    assert!(lease.view(5).is_none(), "resident, but not of this lease");
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
    let all = refused(&mut cache, 0, &[0, 1, 2, 3], &[1; 4]);
    assert!(matches!(all, E::TooManyExperts { asked: 4, slots: 3, .. }));
    assert!(matches!(refused(&mut cache, 0, &[0], &[]), E::CountsLength { experts: 1, counts: 0 }));
    assert_eq!(cache.stats().hits + cache.stats().misses, 0);
    assert!(cache.acquire(0, &[], &[]).unwrap().next().unwrap().is_none());
}

#[test]
fn a_cache_without_slots_or_beyond_the_address_space_is_refused() {
    let build = |bytes: u64, slots: usize| {
        let extent = Extent { file: 0, offset: 0, len: bytes };
        let index = ExpertIndex::new(vec![vec![[extent; PARTS]; 4]]).unwrap();
        let policy = PolicyKind::Lru.build(&PolicyConfig::new(&index, slots, 1));
        let reader = Bank::new(1, 1).memory(&Faults::default(), None);
        ExpertCache::new(CacheConfig { index, slots, policy, reader }).err().unwrap()
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
            while lease.left() > 0 {
                match lease.next() {
                    Ok(view) => arrived.push(view.unwrap().expert),
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
            let _ = lease.next(); // may be the expert whose read fails
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
    assert_eq!((cache.stats().misses, cache.stats().hits), (2, 1), "it was read once");
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
    match lease.next().err().unwrap() {
        OffloadError::Load { id, part: "down", source: ReadError::Short { file, offset, wanted, got } } => {
            assert_eq!(id, ExpertId { layer: 1, expert: 4 });
            assert_eq!((file, offset, wanted, got), (paths[1].clone(), down.offset, down.len, 100));
        }
        other => assert_eq!(other.to_string(), "a short read of the down part"),
    }
    assert!(lease.next().unwrap().is_none());
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
    resident: HashMap<ExpertId, bool>, // true: pinned by the current lease
    slots: usize,
}

impl Policy for Watched {
    fn name(&self) -> &'static str {
        self.real.name()
    }
    fn observe(&mut self, layer: u32, experts: &[u32], counts: &[u32]) {
        self.real.observe(layer, experts, counts);
        let mut model = self.model.lock();
        model.resident.iter_mut().for_each(|(id, pinned)| {
            *pinned = id.layer == layer && experts.contains(&id.expert);
        });
    }
    fn insert(&mut self, id: ExpertId) {
        self.real.insert(id);
        let mut model = self.model.lock();
        assert_eq!(model.resident.insert(id, true), None, "{id} loaded twice");
        assert!(model.resident.len() <= model.slots, "more experts than slots");
    }
    fn remove(&mut self, id: ExpertId) {
        self.real.remove(id);
        assert!(self.model.lock().resident.remove(&id).is_some(), "{id} was not resident");
    }
    fn victim(&mut self, layer: u32, evictable: &dyn Fn(ExpertId) -> bool) -> Option<ExpertId> {
        let victim = self.real.victim(layer, evictable).unwrap();
        assert_eq!(self.model.lock().resident.get(&victim), Some(&false), "{victim} is pinned or gone");
        Some(victim)
    }
    fn warm_stats(&self) -> Option<WarmStats> {
        self.real.warm_stats()
    }
}

const LAYERS: u32 = 3;
const EXPERTS: u32 = 6;

/// One acquire: layer, experts (as a bit set), experts taken before the lease is dropped, a fault.
type Step = (u32, u8, usize, Option<(u32, usize, FaultKind)>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![
        (0u64..900).prop_map(|got| FaultKind::Short { got }),
        Just(FaultKind::Eio),
        (1usize..30).prop_map(|reads| FaultKind::Delay { reads }),
    ];
    let fault = proptest::option::weighted(0.3, (0..EXPERTS, 0..PARTS, kind));
    proptest::collection::vec((0..LAYERS, 0u8..64, prop_oneof![Just(9), 0usize..4], fault), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_cache_behaves_like_a_map_from_experts_to_bytes(
        steps in steps(),
        slots in 2usize..20,
        policy in 0..POLICIES.len(),
        order_seed in proptest::option::of(0u64..1000),
    ) {
        run_model(&steps, slots, POLICIES[policy].kind, order_seed);
    }
}

fn run_model(steps: &[Step], slots: usize, kind: PolicyKind, order_seed: Option<u64>) {
    let bank = Bank::new(LAYERS as usize, EXPERTS as usize);
    let faults = Faults::default();
    let slots = slots.min(bank.index.experts_total());
    let model = Arc::new(Mutex::new(Model { slots, ..Model::default() }));
    let real = kind.build(&PolicyConfig::new(&bank.index, slots, 2));
    let policy = Box::new(Watched { real, model: Arc::clone(&model) });
    let (index, reader) = (bank.index.clone(), bank.memory(&faults, order_seed));
    let mut cache = ExpertCache::new(CacheConfig { index, slots, policy, reader }).unwrap();
    let mut accesses = 0;
    for (layer, set, take, injected) in steps {
        if let Some((expert, part, kind)) = injected {
            faults.add(fault(&bank, *layer, *expert, *part, *kind));
        }
        let experts: Vec<u32> = (0..EXPERTS).filter(|e| set >> e & 1 == 1).take(slots).collect();
        accesses += experts.len() as u64;
        let mut lease = cache.acquire(*layer, &experts, &vec![1; experts.len()]).unwrap();
        take_some(&bank, *layer, &experts, *take, &mut lease);
        drop(lease);
        let stats = cache.stats();
        assert_eq!(stats.hits + stats.misses, accesses);
        assert!(cache.residency().resident <= model.lock().resident.len());
    }
}

/// Takes up to `take` experts out of the lease: each once, with the file's bytes, or with an error that
/// an injected fault explains.
fn take_some(bank: &Bank, layer: u32, experts: &[u32], take: usize, lease: &mut Lease<'_>) {
    let mut seen = Vec::new();
    while seen.len() < take && lease.left() > 0 {
        let left = lease.left();
        match lease.next() {
            Ok(view) => {
                let view = view.unwrap();
                let id = ExpertId { layer, expert: view.expert };
                assert!(view.parts == bank.expert(id), "wrong bytes for {id}");
                seen.push(id);
            }
            Err(OffloadError::Load { id, .. }) => seen.push(id),
            Err(other) => assert_eq!(other.to_string(), "a failed load"),
        }
        assert_eq!(lease.left(), left - 1);
    }
    let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!(distinct.len(), seen.len(), "an expert came twice");
    assert!(seen.iter().all(|id| id.layer == layer && experts.contains(&id.expert)));
    let wanted = experts.len().min(take);
    assert_eq!(seen.len(), wanted);
}
