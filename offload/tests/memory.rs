//! I1 at this crate's level: whatever is loaded, the process grows by the arena and little else.
//! Alone in its binary, because other tests would move the resident set size.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{Bank, drain};
use drafthorse_offload::PolicyKind;
use drafthorse_offload::reader::PreadReader;

/// Threads, stacks, channels, statistics.
const SLACK_BYTES: usize = 4 << 20;

#[test]
#[cfg(target_os = "linux")]
fn resident_memory_grows_by_no_more_than_the_arena() {
    let folder = tempfile::tempdir().unwrap();
    let bank = Bank::new(16, 64);
    let paths = bank.write(folder.path());
    let slots = 256;
    let before = resident_bytes();
    let mut cache = bank.cache(slots, PolicyKind::Gating, Box::new(PreadReader::open(&paths, 4).unwrap()));
    let arena = slots * bank.index.slot_bytes();
    for pass in 0..6u32 {
        for layer in 0..16 {
            let experts: Vec<u32> = (0..16).map(|i| (i * 4 + pass * 3) % 64).collect();
            drain(&bank, layer, &mut cache.acquire(layer, &experts, &[1; 16]).unwrap()).unwrap();
        }
    }
    assert_eq!(cache.residency().resident, slots);
    assert!(cache.stats().misses > 2 * slots as u64, "the test must turn the cache over");
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown <= arena + SLACK_BYTES, "grew by {grown} bytes with an arena of {arena}");
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
