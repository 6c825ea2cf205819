//! The rule of `tune` on measurements that were made up: noise, ties, and sizes where more is not better.

use proptest::prelude::*;

use super::*;

/// Rounds of a machine whose speed drifts by a third, the same for all, with 1 % of noise of each one's own.
fn cell(level: f64, memory_bytes: u64, salt: usize) -> Measured {
    let round = |round: usize| {
        let drift = 1.0 + (round % 3) as f64 / 6.0;
        let own = 1.0 + 0.01 * (((round * 7 + salt * 5) % 11) as f64 / 5.0 - 1.0);
        Some(level * drift * own)
    };
    Measured { tok_s: (0..5).map(round).collect(), memory_bytes, faults_per_token: 0.0 }
}

fn cells(levels: &[f64]) -> Vec<Measured> {
    levels.iter().enumerate().map(|(salt, level)| cell(*level, 1000, salt)).collect()
}

#[test]
fn the_fastest_is_taken_where_turns_show_it_through_the_drift() {
    let decision = decide(&cells(&[10.0, 9.0, 12.0, 11.0]));
    assert_eq!((decision.chosen, decision.reason), (2, Reason::Faster));
    let gain = decision.gain.expect("a gain");
    assert!((gain.mean - 1.2).abs() < 0.02 && gain.low > 1.15 && gain.high < 1.25, "{gain:?}");
    assert_eq!(gain.pairs, 5);
}

#[test]
fn the_default_stays_when_nothing_beats_it() {
    for levels in [&[10.0, 9.0, 8.0][..], &[10.0, 10.1, 9.9], &[10.0, 10.0]] {
        let decision = decide(&cells(levels));
        assert_eq!((decision.chosen, decision.reason, decision.gain), (0, Reason::NothingBetter, None));
    }
}

#[test]
fn a_gain_within_the_noise_is_none() {
    let mut all = cells(&[10.0, 10.0]);
    // 15 % faster on average, but slower in two rounds of five.
    for (round, factor) in [1.5, 0.9, 1.4, 0.8, 1.2].into_iter().enumerate() {
        all[1].tok_s[round] = all[0].tok_s[round].map(|tok_s| tok_s * factor);
    }
    assert_eq!(decide(&all).reason, Reason::NothingBetter);
}

#[test]
fn a_gain_too_small_to_matter_is_none_however_sure() {
    let default = Measured { tok_s: vec![Some(10.0); 9], ..Measured::default() };
    let other = Measured { tok_s: vec![Some(10.1); 9], ..Measured::default() };
    assert_eq!(decide(&[default, other]).chosen, 0);
}

#[test]
fn of_equals_that_beat_the_default_the_smaller_and_then_the_first_is_taken() {
    let tie = |memory: [u64; 3]| {
        let mut all = cells(&[10.0, 12.0, 12.05, 12.0]);
        all.iter_mut().skip(1).zip(memory).for_each(|(cell, bytes)| cell.memory_bytes = bytes);
        decide(&all).chosen
    };
    assert_eq!(tie([900, 700, 800]), 2);
    assert_eq!(tie([900, 900, 800]), 3);
    assert_eq!(tie([900, 895, 890]), 1, "plans that differ by a percent are the same");
}

#[test]
fn a_smaller_cache_that_is_slower_is_not_taken_for_its_memory() {
    let mut all = cells(&[10.0, 12.0, 11.0]);
    all[2].memory_bytes = 10;
    assert_eq!(decide(&all).chosen, 1);
}

#[test]
fn where_speed_grows_with_the_cache_the_default_of_all_memory_stays() {
    let sizes: Vec<Measured> = [(10.0, 1000), (9.0, 750), (7.0, 500), (4.0, 250)]
        .into_iter()
        .enumerate()
        .map(|(salt, (level, bytes))| cell(level, bytes, salt))
        .collect();
    assert_eq!(decide(&sizes).chosen, 0);
}

#[test]
fn where_the_largest_cache_is_slower_the_best_size_is_found_in_the_middle() {
    // mlx-lm #1438 (ALGORITHMS.md A): 75, 50, 35, 20 GB.
    let sizes: Vec<Measured> = [(0.17, 75), (0.45, 50), (0.57, 35), (0.48, 20)]
        .into_iter()
        .enumerate()
        .map(|(salt, (level, gb))| cell(level, gb << 30, salt))
        .collect();
    let decision = decide(&sizes);
    assert_eq!((decision.chosen, decision.reason), (2, Reason::Faster));
}

#[test]
fn a_default_short_of_memory_gives_way_to_an_equal_that_is_not() {
    let mut all = cells(&[10.0, 10.0, 9.0, 10.0]);
    all[0].faults_per_token = 40.0;
    all[1].faults_per_token = 30.0;
    let decision = decide(&all);
    assert_eq!((decision.chosen, decision.reason), (3, Reason::FewerFaults), "2 is slower, 1 is short, too");
    all[3].faults_per_token = 2.0;
    assert_eq!(decide(&all).reason, Reason::NothingBetter);
    // Among winners as well.
    let mut all = cells(&[10.0, 12.0, 12.0]);
    all[1].faults_per_token = 5.0;
    assert_eq!(decide(&all).chosen, 2);
    all[2] = cell(11.0, 1000, 2);
    assert_eq!(decide(&all).chosen, 1, "faults do not make up for speed that was measured");
}

#[test]
fn one_round_decides_nothing() {
    let once = |tok_s: f64| Measured { tok_s: vec![Some(tok_s)], ..Measured::default() };
    let decision = decide(&[once(10.0), once(30.0)]);
    assert_eq!((decision.chosen, decision.reason), (0, Reason::TooFewRounds));
    assert_eq!(decide(&[]).reason, Reason::TooFewRounds);
    assert_eq!(decide(&[once(10.0)]).reason, Reason::TooFewRounds);
    let ratio = Ratio::of(&once(30.0), &once(10.0)).expect("a pair");
    assert!((ratio.mean - 3.0).abs() < 1e-12 && ratio.low == 0.0 && ratio.high == f64::INFINITY);
}

#[test]
fn a_default_that_could_not_be_run_stays_and_says_so() {
    let mut all = cells(&[10.0, 20.0]);
    all[0].tok_s = vec![None; 5];
    let decision = decide(&all);
    assert_eq!((decision.chosen, decision.reason), (0, Reason::DefaultNotRun));
}

#[test]
fn rounds_without_a_setting_are_not_paired() {
    let mut all = cells(&[10.0, 20.0, 10.0]);
    all[1].tok_s = vec![None, None, Some(24.0), None, Some(23.0)];
    all[2].tok_s = vec![None; 5];
    let ratio = Ratio::of(&all[1], &all[0]).expect("two pairs");
    assert_eq!(ratio.pairs, 2);
    assert_eq!(Ratio::of(&all[2], &all[0]), None);
    all[1].tok_s = vec![Some(0.0); 5];
    assert_eq!(Ratio::of(&all[1], &all[0]), None, "nothing was generated");
}

proptest! {
    /// Whatever is measured, what is taken was not beaten by the default, and is one of the settings.
    #[test]
    fn what_is_taken_is_never_plainly_slower_than_the_default(
        runs in prop::collection::vec(
            (prop::collection::vec(prop::option::weighted(0.9, 0.0f64..50.0), 6), 0u64..100, 0.0f64..3.0),
            1..8,
        )
    ) {
        let all: Vec<Measured> = runs
            .into_iter()
            .map(|(tok_s, memory_bytes, faults_per_token)| Measured { tok_s, memory_bytes, faults_per_token })
            .collect();
        let decision = decide(&all);
        prop_assert!(decision.chosen < all.len());
        prop_assert!(!beats(&all[0], &all[decision.chosen]));
        prop_assert_eq!(decision.gain.is_some(), decision.chosen != 0);
    }
}
