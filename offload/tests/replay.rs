//! Policies on real routing (DeepSeek-V2-Lite traces of the shared data folder, one token a window),
//! and the replay against a published conformance trace and against the cache itself.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::{Path, PathBuf};

use common::shared_trace;
use drafthorse_offload::policy::Belady;
use drafthorse_offload::reader::{Faults, MemoryReader};
use drafthorse_offload::*;

/// Tokens replayed: enough for every budget to fill many times over.
const TOKENS: usize = 1200;

fn hit_rate(workload: &Workload, slots: usize, policy: Box<dyn Policy>) -> f64 {
    let mut replay = Replay::new(workload, slots, policy);
    workload.windows().iter().for_each(|window| replay.step(window));
    replay.hit_rate()
}

/// Share of the gap between LRU and the optimum that `decayed LFU` and `gating` close, over four sizes.
fn gating_beats_the_others(name: &str, rows: usize) {
    let Some(trace) = shared_trace(name) else { return };
    let workload = Workload::from_trace(&trace, TOKENS, rows);
    let mut closed = [0.0, 0.0];
    for percent in [5, 8, 12, 20] {
        let slots = workload.bank() * percent / 100;
        let rate = |kind: PolicyKind| hit_rate(&workload, slots, kind.build(&workload.policy_config(slots)));
        let (lru, lfu, gating) = (rate(PolicyKind::Lru), rate(PolicyKind::Lfu), rate(PolicyKind::Gating));
        let belady = hit_rate(&workload, slots, Box::new(Belady::new(&workload)));
        eprintln!(
            "{name}, {rows} rows, {percent} % of the bank ({slots} slots): lru {lru:.3}, lfu {lfu:.3}, \
             gating {gating:.3}, belady {belady:.3}"
        );
        assert!(gating >= lru, "{name} at {percent} %");
        assert!(gating <= belady, "{name} at {percent} %: nothing beats the optimum");
        closed[0] += (lfu - lru) / (belady - lru) / 4.0;
        closed[1] += (gating - lru) / (belady - lru) / 4.0;
    }
    eprintln!("{name}, {rows} rows: mean gap closed by lfu {:.3}, gating {:.3}", closed[0], closed[1]);
    assert!(closed[1] >= closed[0] && closed[1] > 0.5, "{name}: {closed:?}");
}

#[test]
fn gating_closes_more_of_the_gap_than_lfu_on_the_intent_trace() {
    gating_beats_the_others("intent.moetrace", 1);
}

#[test]
fn gating_closes_more_of_the_gap_than_lfu_on_the_law_trace() {
    gating_beats_the_others("law.moetrace", 1);
}

/// Below one token cycle LRU hits nothing; windows of four rows move that cliff up, and gating off it.
#[test]
fn gating_has_no_cliff_below_a_token_cycle_nor_under_verification_windows() {
    let Some(trace) = shared_trace("intent.moetrace") else { return };
    for (rows, percent, wanted) in [(1, 2, 0.08), (1, 3, 0.12), (4, 8, 0.2), (4, 12, 0.3)] {
        let workload = Workload::from_trace(&trace, 800, rows);
        let slots = workload.bank() * percent / 100;
        let rate = |kind: PolicyKind| hit_rate(&workload, slots, kind.build(&workload.policy_config(slots)));
        let (lru, gating) = (rate(PolicyKind::Lru), rate(PolicyKind::Gating));
        eprintln!("{rows} rows, {percent} %: lru {lru:.3}, gating {gating:.3}");
        assert!(lru < 0.05 && gating > wanted, "{rows} rows, {percent} %: lru {lru}, gating {gating}");
    }
}

/// Hit rates of the first 128 tokens and of the 256 after them, from four places of a trace.
fn after_a_restart(trace: &Trace, slots: usize, warm: Option<&WarmStats>) -> [f64; 2] {
    let (workload, layers) = (Workload::from_trace(trace, usize::MAX, 1), trace.header().n_moe_layers);
    let mut counts = [[0, 0], [0, 0]];
    for start in [4000, 5000, 6000, 7000] {
        let config = PolicyConfig { warm: warm.cloned(), ..workload.policy_config(slots) };
        let mut replay = Replay::new(&workload, slots, PolicyKind::Gating.build(&config));
        warm.iter().flat_map(|warm| warm.hottest(slots)).for_each(|id| replay.preload(id));
        for (part, tokens) in [start..start + 128, start + 128..start + 384].into_iter().enumerate() {
            let before = [replay.hits(), replay.accesses()];
            workload.windows()[tokens.start * layers..tokens.end * layers]
                .iter()
                .for_each(|w| replay.step(w));
            counts[part][0] += replay.hits() - before[0];
            counts[part][1] += replay.accesses() - before[1];
        }
    }
    counts.map(|[hits, accesses]| hits as f64 / accesses as f64)
}

/// The statistics of 2000 tokens: they must help with more of the same text and not hurt with another.
#[test]
fn a_warm_start_helps_on_the_same_kind_of_text_and_never_hurts_on_another() {
    let names = ["intent.moetrace", "law.moetrace"];
    let [Some(intent), Some(law)] = names.map(shared_trace) else { return };
    for (from, to, gain) in [(&intent, &intent, 0.03), (&intent, &law, -0.005), (&law, &intent, -0.005)] {
        let workload = Workload::from_trace(from, 2000, 1);
        let slots = workload.bank() * 12 / 100;
        let policy = PolicyKind::Gating.build(&workload.policy_config(slots));
        let mut replay = Replay::new(&workload, slots, policy);
        workload.windows().iter().for_each(|window| replay.step(window));
        let warm = replay.policy().warm_stats();
        let (cold, warm) = (after_a_restart(to, slots, None), after_a_restart(to, slots, warm.as_ref()));
        let lengths = [from, to].map(|trace| trace.header().seq_lens.len());
        eprintln!("from {} to {} sequences: cold {cold:.3?}, warm {warm:.3?}", lengths[0], lengths[1]);
        assert!(warm[0] >= cold[0] + gain && warm[1] >= cold[1] - 0.005, "cold {cold:?}, warm {warm:?}");
    }
}

/// A prompt in windows of 256 rows between two stretches of decoding.
#[test]
fn a_prompt_does_not_flush_what_decoding_needs() {
    let Some(trace) = shared_trace("law.moetrace") else { return };
    let decode = Workload::from_trace(&trace, 900, 1);
    let layers = trace.header().n_moe_layers;
    let slots = decode.bank() * 20 / 100;
    let after = |prompt: bool| {
        let mut replay = Replay::new(&decode, slots, PolicyKind::Gating.build(&decode.policy_config(slots)));
        let (first, second) = decode.windows().split_at(600 * layers);
        first.iter().for_each(|window| replay.step(window));
        if prompt {
            let prefill = Workload::from_trace(&trace, 211, 256);
            prefill.windows().iter().for_each(|window| replay.step(window));
        }
        let before = [replay.hits(), replay.accesses()];
        second[..128 * layers].iter().for_each(|window| replay.step(window));
        (replay.hits() - before[0]) as f64 / (replay.accesses() - before[1]) as f64
    };
    let (without, with) = (after(false), after(true));
    eprintln!("128 tokens of decoding: {without:.3}, after a prompt of 211 tokens {with:.3}");
    assert!(with > without - 0.03, "{without} {with}");
}

/// event-atomic-toy: three layers with a cache of two slots each, hits and misses counted by hand.
#[test]
fn the_conformance_trace_hits_and_misses_event_by_event() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/traces/event-atomic-toy");
    let Ok(events) = std::fs::read_to_string(folder.join("events.csv")) else {
        return eprintln!("skipped: {}: cannot be read", folder.display());
    };
    let mut hits = [0, 0, 0];
    for (layer, total) in hits.iter_mut().enumerate() {
        let events = events.lines().skip(1).map(|line| line.split(',').collect::<Vec<_>>());
        let events: Vec<_> = events.filter(|event| event[2] == layer.to_string()).collect();
        let mut workload = Workload::new(vec![4], 2);
        for event in &events {
            workload.push(0, event[3].split(' ').map(|expert| expert.parse().unwrap())).unwrap();
        }
        let mut replay = Replay::new(&workload, 2, PolicyKind::Lru.build(&workload.policy_config(2)));
        for (window, event) in workload.windows().iter().zip(&events) {
            replay.step(window);
            let (hits, misses): (u64, u64) = (event[5].parse().unwrap(), event[4].parse().unwrap());
            *total += hits;
            assert_eq!((replay.hits(), window.experts().len() as u64), (*total, hits + misses), "{event:?}");
        }
    }
    let manifest = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["expected"]["hits"], hits.iter().sum::<u64>());
}

/// A little trace without the shared folder: tokens that repeat with a period.
fn periodic(tokens: u32) -> Workload {
    let mut workload = Workload::new(vec![16; 3], 2);
    for token in 0..tokens {
        for layer in 0..3 {
            let word = token * token % 7;
            workload.push(layer, [word * 2, (word + layer) % 8 * 2 + 1].into_iter()).unwrap();
        }
    }
    workload
}

#[test]
fn every_policy_stays_between_nothing_and_the_optimum_on_a_periodic_text() {
    let workload = periodic(300);
    for slots in [3, 8, 14, 20] {
        let belady = hit_rate(&workload, slots, Box::new(Belady::new(&workload)));
        let rates = POLICIES
            .iter()
            .map(|p| (p.name, hit_rate(&workload, slots, p.kind.build(&workload.policy_config(slots)))));
        let rates: Vec<_> = rates.collect();
        eprintln!("{slots} slots: {rates:.3?}, belady {belady:.3}");
        rates.iter().for_each(|(name, rate)| assert!(*rate <= belady, "{name}, {slots} slots"));
        let rate = |name| rates.iter().find(|(n, _)| *n == name).unwrap().1;
        assert!(rate("gating") > rate("lru"), "{slots} slots: {rates:?}");
    }
}

/// The replay counts as the cache does: same policy, same windows, same hits.
#[test]
fn the_replay_hits_exactly_when_the_cache_does() {
    let workload = periodic(60);
    for entry in POLICIES {
        let unit = [Extent { file: 0, offset: 0, len: 1 }; PARTS];
        let index = ExpertIndex::new(vec![vec![unit; 16]; 3]).unwrap();
        let reader = MemoryReader::new(vec![(PathBuf::from("unit"), vec![0])], Faults::default(), None);
        let policy = entry.kind.build(&PolicyConfig::new(&index, 9, 2));
        let config = CacheConfig { index, slots: 9, policy, reader: Box::new(reader), threads: 1 };
        let mut cache = ExpertCache::new(config).unwrap();
        let mut replay = Replay::new(&workload, 9, entry.kind.build(&workload.policy_config(9)));
        for (at, window) in workload.windows().iter().enumerate() {
            replay.step(window);
            let counts = vec![1; window.experts().len()];
            let mut lease = cache.acquire(window.layer(), window.experts(), &counts).unwrap();
            while !lease.is_done() {
                lease.arrivals(true).unwrap();
            }
            drop(lease);
            assert_eq!(replay.hits(), cache.stats().hits, "{}, window {at}", entry.name);
        }
    }
}
