//! Policies on real routing: DeepSeek-V2-Lite traces of the shared data folder, one token a window.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::PathBuf;

use common::shared_trace;
use drafthorse_offload::reader::{Faults, MemoryReader};
use drafthorse_offload::*;

/// Tokens replayed: enough for every budget to fill many times over.
const TOKENS: usize = 1500;

/// Hit rate of a cache of `slots` unit-size slots over the start of the trace.
fn hit_rate(trace: &Trace, slots: usize, kind: PolicyKind) -> f64 {
    let TraceHeader { n_moe_layers, n_routed_experts, top_k, n_tokens, .. } = *trace.header();
    let unit = [Extent { file: 0, offset: 0, len: 1 }; PARTS];
    let index = ExpertIndex::new(vec![vec![unit; n_routed_experts]; n_moe_layers]).unwrap();
    let policy = kind.build(&PolicyConfig::new(&index, slots, top_k as u32));
    let files = vec![(PathBuf::from("unit"), vec![0])];
    let reader = Box::new(MemoryReader::new(files, Faults::default(), None));
    let mut cache = ExpertCache::new(CacheConfig { index, slots, policy, reader, threads: 1 }).unwrap();
    let counts = vec![1; top_k];
    for token in 0..n_tokens.min(TOKENS) {
        for layer in 0..n_moe_layers {
            let picks = trace.picks(token, layer).unwrap();
            let experts: Vec<u32> = picks.iter().map(|id| u32::from(*id)).collect();
            let mut lease = cache.acquire(layer as u32, &experts, &counts).unwrap();
            while !lease.is_done() {
                lease.arrivals(true).unwrap();
            }
        }
    }
    cache.stats().hit_rate()
}

fn gating_is_no_worse_than_lru(name: &str) {
    let Some(trace) = shared_trace(name) else { return };
    let bank = trace.header().n_moe_layers * trace.header().n_routed_experts;
    for percent in [6, 12, 20, 40] {
        let slots = bank * percent / 100;
        let rates: Vec<(&str, f64)> =
            POLICIES.iter().map(|p| (p.name, hit_rate(&trace, slots, p.kind))).collect();
        eprintln!("{name}, {percent} % of the bank ({slots} slots): {rates:.3?}");
        let rate = |name| rates.iter().find(|(n, _)| *n == name).unwrap().1;
        assert!(rate("gating") >= rate("lru"), "{name} at {percent} %");
    }
}

#[test]
fn gating_hits_at_least_as_often_as_lru_on_the_intent_trace() {
    gating_is_no_worse_than_lru("intent.moetrace");
}

#[test]
fn gating_hits_at_least_as_often_as_lru_on_the_law_trace() {
    gating_is_no_worse_than_lru("law.moetrace");
}
