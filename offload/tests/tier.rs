//! The nearer memory of experts: who is in it, who must stay, who makes room.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::collections::BTreeMap;

use common::Bank;
use drafthorse_offload::*;
use proptest::prelude::*;

const LAYERS: usize = 3;
const EXPERTS: usize = 8;

fn tier(kind: PolicyKind, slots: usize) -> Tier {
    let bank = Bank::new(LAYERS, EXPERTS);
    let policy = kind.build(&PolicyConfig::new(&bank.index, slots, 2));
    Tier::new(bank.index, slots, policy, 2)
}

fn id(layer: u32, expert: u32) -> ExpertId {
    ExpertId { layer, expert }
}

#[test]
fn what_was_admitted_is_found_and_counted() {
    let mut tier = tier(PolicyKind::Lru, 4);
    assert_eq!(tier.begin(1, &[2, 5], &[1, 1]), [0u32; 0]);
    let slot = tier.admit(id(1, 5)).unwrap().unwrap();
    assert_eq!(tier.slot(id(1, 5)), Some(slot));
    assert_eq!(tier.begin(1, &[2, 5], &[1, 1]), [5]);
    assert_eq!(tier.begin(2, &[5], &[1]), [0u32; 0], "another layer's");
    let stats = tier.stats();
    assert_eq!((stats.hits, stats.misses, stats.admitted, stats.evicted), (1, 4, 1, 0));
}

#[test]
fn a_window_keeps_what_it_found_and_what_it_admitted_until_it_lets_go() {
    for entry in POLICIES {
        let mut tier = tier(entry.kind, 2);
        tier.begin(0, &[0], &[1]);
        tier.admit(id(0, 0)).unwrap().unwrap();
        assert_eq!(tier.begin(0, &[0, 1, 2], &[1, 1, 1]), [0]);
        tier.admit(id(0, 1)).unwrap().unwrap();
        assert_eq!(tier.admit(id(0, 2)).unwrap(), None, "{}: both are held", entry.name);
        let freed = tier.slot(id(0, 0));
        tier.release(id(0, 0));
        assert_eq!(tier.admit(id(0, 2)).unwrap(), freed, "{}", entry.name);
        assert_eq!(tier.slot(id(0, 0)), None);
    }
}

#[test]
fn an_expert_wanted_as_rarely_as_those_inside_is_not_worth_moving() {
    let mut tier = tier(PolicyKind::Lfu, 1);
    assert!(tier.is_worth_admitting(id(0, 3)), "there is room");
    for _ in 0..8 {
        tier.begin(0, &[0, 1], &[1, 1]);
    }
    tier.admit(id(0, 0)).unwrap().unwrap();
    tier.begin(0, &[0, 1], &[1, 1]);
    tier.release(id(0, 0));
    assert!(!tier.is_worth_admitting(id(0, 1)), "as likely as the one inside");
    assert!(!tier.is_worth_admitting(id(0, 0)), "it is inside");
    for _ in 0..8 {
        tier.begin(0, &[1, 2], &[1, 1]);
    }
    assert!(tier.is_worth_admitting(id(0, 1)), "the one inside is no longer wanted");
}

#[test]
fn an_unknown_expert_is_an_error_and_a_cleared_tier_is_empty() {
    let mut tier = tier(PolicyKind::Gating, 2);
    assert!(matches!(tier.admit(id(9, 0)), Err(OffloadError::NoSuchExpert { .. })));
    tier.begin(0, &[0], &[1]);
    tier.admit(id(0, 0)).unwrap().unwrap();
    tier.clear();
    assert_eq!(tier.begin(0, &[0], &[1]), [0u32; 0]);
    assert!(tier.admit(id(0, 0)).unwrap().is_some() && tier.admit(id(0, 1)).unwrap().is_some());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn slots_hold_one_expert_each_and_never_lose_one_that_is_held(
        kind in 0..POLICIES.len(),
        slots in 1usize..6,
        windows in proptest::collection::vec((0..LAYERS as u32, proptest::collection::btree_set(0..EXPERTS as u32, 1..5)), 1..40),
    ) {
        let mut tier = tier(POLICIES[kind].kind, slots);
        for (layer, experts) in windows {
            let experts: Vec<u32> = experts.into_iter().collect();
            let found = tier.begin(layer, &experts, &vec![1; experts.len()]);
            let mut held: BTreeMap<usize, u32> =
                found.iter().map(|expert| (tier.slot(id(layer, *expert)).unwrap(), *expert)).collect();
            for &expert in experts.iter().filter(|expert| !found.contains(expert)) {
                match tier.admit(id(layer, expert)).unwrap() {
                    Some(slot) => prop_assert_eq!(held.insert(slot, expert), None, "the slot was held"),
                    None => prop_assert_eq!(held.len(), slots, "only a full tier refuses"),
                }
            }
            for (slot, expert) in &held {
                prop_assert_eq!(tier.slot(id(layer, *expert)), Some(*slot));
            }
            let all = (0..LAYERS as u32).flat_map(|layer| (0..EXPERTS as u32).map(move |expert| id(layer, expert)));
            let mut taken: Vec<usize> = all.filter_map(|id| tier.slot(id)).collect();
            let count = taken.len();
            taken.sort_unstable();
            taken.dedup();
            prop_assert!(taken.len() == count && count <= slots, "one expert a slot");
        }
    }
}

#[test]
fn when_a_window_is_learnt_changes_nothing_but_when_its_time_is_spent() {
    for entry in POLICIES {
        let mut tiers = [tier(entry.kind, 4), tier(entry.kind, 4)];
        for step in 0..200u32 {
            let (layer, first) = (step % LAYERS as u32, step * step % 7);
            let experts = [first % EXPERTS as u32, (first + 1 + step % 3) % EXPERTS as u32];
            let found = tiers.each_mut().map(|tier| tier.begin(layer, &experts, &[1, 1]));
            assert_eq!(found[0], found[1], "{}, window {step}", entry.name);
            // One takes a window in at once, the other when it has to.
            tiers[0].learn();
            for expert in experts {
                let slots = tiers.each_mut().map(|tier| tier.admit(id(layer, expert)).unwrap());
                assert_eq!(slots[0], slots[1], "{}, window {step}", entry.name);
            }
        }
        tiers[1].learn();
        assert_eq!(tiers[0].warm_stats(), tiers[1].warm_stats(), "{}", entry.name);
        assert_eq!(tiers[0].stats(), tiers[1].stats());
        assert!(tiers[0].stats().evicted > 50, "{}: somebody has to go", entry.name);
    }
}
