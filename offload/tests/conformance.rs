//! One suite over every policy: what the trait's contract promises. Readers have theirs in `readers.rs`.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;

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
