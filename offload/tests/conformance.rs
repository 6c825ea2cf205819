//! One suite over every policy and one over every reader: what the traits' contracts promise.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use common::Bank;
use drafthorse_offload::policy::PolicyEntry;
use drafthorse_offload::*;

const LAYERS: u32 = 4;
const EXPERTS: u32 = 8;

fn config() -> PolicyConfig {
    let experts = vec![EXPERTS; LAYERS as usize];
    PolicyConfig { experts, slots: 10, experts_used: 2, lfu_half_life_rows: 16.0, warm: None }
}

fn id(n: u32) -> ExpertId {
    ExpertId { layer: n / EXPERTS % LAYERS, expert: n % EXPERTS }
}

/// Numbers without a pattern, the same every time (Knuth's MMIX generator).
fn numbers(mut state: u64) -> impl FnMut() -> u32 {
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as u32
    }
}

/// Drives a policy as a cache of ten slots would for 600 acquires; returns every victim.
fn drive(entry: &PolicyEntry) -> Vec<ExpertId> {
    let mut policy = entry.kind.build(&config());
    let mut next = numbers(7);
    let mut resident = BTreeSet::new();
    let mut victims = Vec::new();
    for step in 0..600 {
        let layer = step % LAYERS;
        let experts: Vec<u32> = BTreeSet::from([next() % 3, next() % EXPERTS]).into_iter().collect();
        policy.observe(layer, &experts, &vec![1; experts.len()]);
        let pinned: BTreeSet<_> = experts.iter().map(|&expert| ExpertId { layer, expert }).collect();
        for id in &pinned {
            if resident.contains(id) {
                continue;
            }
            if resident.len() == 10 {
                let victim = policy.victim(layer, &|id| !pinned.contains(&id)).unwrap();
                assert!(resident.remove(&victim), "{}: {victim} is not resident", entry.name);
                assert!(!pinned.contains(&victim), "{}: {victim} is pinned", entry.name);
                policy.remove(victim);
                victims.push(victim);
            }
            policy.insert(*id);
            resident.insert(*id);
        }
    }
    victims
}

#[test]
fn every_policy_names_only_resident_evictable_experts() {
    for entry in POLICIES {
        assert!(drive(entry).len() > 50, "{} was hardly asked", entry.name);
    }
}

#[test]
fn every_policy_is_deterministic() {
    for entry in POLICIES {
        assert_eq!(drive(entry), drive(entry), "{}", entry.name);
    }
}

#[test]
fn every_policy_finds_the_only_evictable_expert() {
    for entry in POLICIES {
        let mut policy = entry.kind.build(&config());
        (0..LAYERS * EXPERTS).for_each(|n| policy.insert(id(n)));
        for n in 0..LAYERS * EXPERTS {
            let found = policy.victim(n % LAYERS, &|candidate| candidate == id(n));
            assert_eq!(found, Some(id(n)), "{}", entry.name);
        }
    }
}

#[test]
fn no_policy_names_a_victim_when_there_is_none() {
    for entry in POLICIES {
        let mut policy = entry.kind.build(&config());
        policy.observe(0, &[1, 2], &[1, 1]);
        assert_eq!(policy.victim(0, &|_| true), None, "{}: nothing was inserted", entry.name);
        policy.insert(id(1));
        assert_eq!(policy.victim(0, &|_| false), None, "{}: nothing is evictable", entry.name);
        policy.remove(id(1));
        assert_eq!(policy.victim(0, &|_| true), None, "{}: it was removed", entry.name);
    }
}

#[test]
fn asking_for_a_victim_changes_nothing() {
    for entry in POLICIES {
        let mut policy = entry.kind.build(&config());
        (0..12).for_each(|n| policy.insert(id(n)));
        let first = policy.victim(1, &|_| true);
        assert_eq!(policy.victim(1, &|_| true), first, "{}", entry.name);
    }
}

#[test]
fn no_policy_evicts_the_expert_in_use_at_every_step_before_one_used_once() {
    for entry in POLICIES {
        let mut policy = entry.kind.build(&config());
        for step in 0..20 {
            policy.observe(0, &[0], &[1]);
            if step == 0 {
                policy.insert(id(0));
                policy.observe(0, &[5], &[1]);
                policy.insert(id(5));
            }
        }
        assert_eq!(policy.victim(0, &|_| true), Some(id(5)), "{}", entry.name);
    }
}

#[test]
fn names_of_policies_are_unique_and_lead_back_to_their_kind() {
    for entry in POLICIES {
        assert_eq!(PolicyKind::from_name(entry.name), Some(entry.kind));
        assert_eq!(entry.kind.name(), entry.name);
        assert_eq!(entry.kind.build(&config()).name(), entry.name);
        assert_eq!(serde_json::to_value(entry.kind).unwrap(), entry.name);
    }
    assert_eq!(PolicyKind::from_name("none"), None);
}

/// Runs a test on every reader of the registry, over the same bank on disk.
fn on_every_reader(test: impl Fn(&Bank, &mut dyn Reader)) {
    let folder = tempfile::tempdir().unwrap();
    let bank = Bank::new(3, 6);
    let paths = bank.write(folder.path());
    for kind in READERS {
        let mut reader = (kind.open)(&paths).unwrap();
        assert_eq!(reader.name(), kind.name);
        test(&bank, reader.as_mut());
        assert_eq!(reader.in_flight(), 0, "{}", kind.name);
    }
}

fn read(tag: u64, extent: Extent) -> Read {
    Read { tag, extent, buf: AlignedBuf::new(extent.widened().unwrap().len).unwrap() }
}

fn all_extents(bank: &Bank) -> Vec<Extent> {
    let ids = (0..3).flat_map(|layer| (0..6).map(move |expert| ExpertId { layer, expert }));
    ids.flat_map(|id| *bank.index.extents(id).unwrap()).collect()
}

#[test]
fn every_reader_returns_every_read_once_with_the_files_bytes() {
    on_every_reader(|bank, reader| {
        let extents = all_extents(bank);
        reader.submit(extents.iter().enumerate().map(|(i, e)| read(i as u64, *e)).collect()).unwrap();
        assert_eq!(reader.in_flight(), extents.len());
        let mut seen = BTreeMap::new();
        while reader.in_flight() > 0 {
            let done = reader.wait().unwrap();
            let range = done.data.unwrap();
            assert_eq!(&done.buf.as_slice()[range], bank.bytes(&extents[done.tag as usize]));
            assert!(seen.insert(done.tag, ()).is_none(), "{}: read {} twice", reader.name(), done.tag);
            assert!(done.read_s >= 0.0);
        }
        assert_eq!(seen.len(), extents.len());
    });
}

#[test]
fn every_reader_reports_the_end_of_the_file_as_a_short_read_and_goes_on() {
    on_every_reader(|bank, reader| {
        let end = bank.files[0].len() as u64;
        let good = all_extents(bank)[0];
        let past = [(end - 10, 11, 10), (end, 1, 0), (end - 9000, 9001, 9000), (end + 99_999, 5, 0)];
        for (offset, len, there) in past {
            reader.submit(vec![read(1, Extent { file: 0, offset, len })]).unwrap();
            match reader.wait().unwrap().data {
                Err(ReadError::Short { file, offset: at, wanted, got }) => {
                    assert_eq!((at, wanted, got), (offset, len, there), "{}", reader.name());
                    assert!(file.ends_with("file-0.gguf"));
                }
                other => assert_eq!(format!("{other:?}"), "a short read", "{}", reader.name()),
            }
            reader.submit(vec![read(2, good)]).unwrap();
            let done = reader.wait().unwrap();
            assert_eq!(&done.buf.as_slice()[done.data.unwrap()], bank.bytes(&good));
        }
    });
}

#[test]
fn every_reader_reads_the_last_bytes_of_a_file() {
    on_every_reader(|bank, reader| {
        for (file, bytes) in bank.files.iter().enumerate() {
            let len = 5000;
            let extent = Extent { file: file as u16, offset: bytes.len() as u64 - len, len };
            reader.submit(vec![read(0, extent)]).unwrap();
            let done = reader.wait().unwrap();
            assert_eq!(&done.buf.as_slice()[done.data.unwrap()], bank.bytes(&extent), "{}", reader.name());
        }
    });
}

#[test]
fn every_reader_returns_the_buffer_of_a_read_it_cannot_serve() {
    on_every_reader(|_, reader| {
        let unknown = Extent { file: 9, offset: 0, len: 10 };
        let large = Extent { file: 0, offset: 0, len: 5000 };
        let beyond = Extent { file: 0, offset: u64::MAX - 5, len: 100 };
        let buf = || AlignedBuf::new(4096).unwrap();
        let reads = [unknown, large, beyond].map(|extent| Read { tag: 3, extent, buf: buf() });
        reader.submit(reads.into()).unwrap();
        let mut failures = Vec::new();
        while reader.in_flight() > 0 {
            let done = reader.wait().unwrap();
            assert_eq!(done.buf.len(), 4096);
            failures.push(done.data.unwrap_err());
        }
        let unknown = |e: &&ReadError| matches!(e, ReadError::NoSuchFile { file: 9, files: 2 });
        assert_eq!(failures.iter().filter(unknown).count(), 1, "{}", reader.name());
        let large = |e: &&ReadError| matches!(e, ReadError::TooLarge { capacity: 4096, .. });
        assert_eq!(failures.iter().filter(large).count(), 2, "{}", reader.name());
    });
}

#[test]
fn waiting_for_nothing_is_an_error_on_every_reader() {
    on_every_reader(|_, reader| {
        assert!(matches!(reader.wait(), Err(OffloadError::NothingInFlight { .. })), "{}", reader.name());
    });
}

#[test]
fn every_reader_can_be_dropped_with_reads_in_flight() {
    let folder = tempfile::tempdir().unwrap();
    let bank = Bank::new(3, 6);
    let paths = bank.write(folder.path());
    for kind in READERS {
        let mut reader = (kind.open)(&paths).unwrap();
        reader.submit(all_extents(&bank).iter().map(|e| read(0, *e)).collect()).unwrap();
        drop(reader);
    }
}

#[test]
fn every_reader_names_the_file_it_cannot_open() {
    for kind in READERS {
        let error = (kind.open)(&[PathBuf::from("/nonexistent/model.gguf")]).err().unwrap();
        assert!(matches!(&error, OffloadError::Open { .. }), "{}", kind.name);
        assert!(error.to_string().contains("/nonexistent/model.gguf"), "{error}");
    }
}
