//! `auto` in a simulated engine whose costs and acceptance are known: never slower than off, close to
//! the best fixed length, and it says why it is off (DESIGN I4).

mod worlds;

use drafthorse_scheduler::DraftLen;
use worlds::{Cost, DRAFT_LEN_MAX, WORLD, World};

const SEEDS: u64 = 10;

/// With each, how close to the best fixed length `auto` has to come. Where short drafts lose and only
/// long ones win, finding that out is paid from a small account, so it takes longer.
const COSTS: [(&str, Cost, f64); 5] = [
    ("cheap", |n| 1.0 + 0.05 * n as f64, 1.085),
    ("cpu", |n| 1.0 + 0.3 * n as f64, 1.07),
    ("experts", |n| ((n + 1) as f64).powf(0.68), 1.065), // ALGORITHMS.md 0.1
    ("linear", |n| 1.0 + n as f64, 1.03),
    ("jump", |n| if n == 0 { 1.0 } else { 1.8 + 0.05 * n as f64 }, 1.19),
];

/// `auto`'s time a token as a share of off's and of the best fixed length's.
fn compare(world: World) -> (f64, f64) {
    let a_token = |len| world.run(len).seconds_a_token();
    let fixed: Vec<f64> = (0..=DRAFT_LEN_MAX).map(|len| a_token(DraftLen::Fixed(len))).collect();
    let best = fixed.iter().copied().fold(f64::INFINITY, f64::min);
    let auto = a_token(DraftLen::Auto);
    (auto / fixed[0], auto / best)
}

/// Mean over seeds of the time as a share of off's and of the best's, and the worst share of off's.
fn over_seeds(world: World) -> (f64, f64, f64) {
    let runs: Vec<_> = (0..SEEDS).map(|seed| compare(World { seed, ..world })).collect();
    let mean = |pick: fn(&(f64, f64)) -> f64| runs.iter().map(pick).sum::<f64>() / SEEDS as f64;
    (mean(|r| r.0), mean(|r| r.1), runs.iter().map(|r| r.0).fold(0.0, f64::max))
}

#[test]
fn auto_is_never_slower_than_off_and_near_the_best_fixed_length() {
    let mut failures = Vec::new();
    for (name, verify, best_max) in COSTS {
        for draft_s in [0.0, 0.05, 0.3] {
            for acceptance in [0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95] {
                let world = World { verify, draft_s, acceptance, ..WORLD };
                let (off, best, off_worst) = over_seeds(world);
                if off > 1.023 || off_worst > 1.03 || best > best_max {
                    let case = format!("{name}, draft {draft_s}, p {acceptance}");
                    failures.push(format!("{case}: {off:.3} of off ({off_worst:.3}), {best:.3} of best"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn a_short_text_behind_a_prompt_loses_little_and_gains_most_of_what_there_is() {
    let mut failures = Vec::new();
    // What has to be found out weighs more where long drafts would be by far the best.
    for ((name, verify, _), best_max) in COSTS.into_iter().zip([1.125, 1.11, 1.09, 1.045]) {
        for draft_s in [0.0, 0.05, 0.3, 0.6] {
            for acceptance in [0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95] {
                let world = World { verify, draft_s, acceptance, prompt: 40, tokens: 256, ..WORLD };
                let (off, best, off_worst) = over_seeds(world);
                // A draft model that may pay has to read the prompt before that can be known.
                let off_max = if draft_s < 0.1 { 1.0275 } else { 1.042 };
                if off > off_max || off_worst > 1.065 || best > best_max {
                    let case = format!("{name}, draft {draft_s}, p {acceptance}");
                    failures.push(format!("{case}: {off:.3} of off ({off_worst:.3}), {best:.3} of best"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn a_draft_model_with_no_chance_is_not_asked_to_read_a_long_prompt() {
    let hopeless =
        World { verify: COSTS[3].1, draft_s: 0.6, acceptance: 0.9, prompt: 400, tokens: 256, ..WORLD };
    let auto = hopeless.run(DraftLen::Auto);
    let off = hopeless.run(DraftLen::Fixed(0));
    assert!(auto.seconds_a_token() < 1.02 * off.seconds_a_token(), "{}", auto.seconds_a_token());
    let reason = auto.controller.off_reason().expect("off");
    assert!(reason.contains("even a good one would give"), "{reason}");
    let hopeful = World { verify: COSTS[0].1, draft_s: 0.05, ..hopeless };
    let (auto, off) = (hopeful.run(DraftLen::Auto), hopeful.run(DraftLen::Fixed(0)));
    assert!(auto.seconds_a_token() < 0.5 * off.seconds_a_token());
}

#[test]
fn a_drafter_that_rarely_speaks_is_left_on_to_find_its_openings() {
    for (offered, acceptance) in [(0.0, 0.0), (0.05, 0.9), (0.2, 0.9), (0.2, 0.1), (1.0, 0.0)] {
        let world = World { verify: COSTS[1].1, draft_s: 0.0005, acceptance, offered, ..WORLD };
        let (off, best, _) = over_seeds(world);
        assert!(
            off < 1.02 && best < 1.10,
            "offered {offered}, p {acceptance}: {off:.3} of off, {best:.3} of best"
        );
    }
}

#[test]
fn where_drafting_does_not_pay_it_says_so_with_numbers() {
    let world = World { verify: COSTS[3].1, draft_s: 0.05, acceptance: 0.5, seed: 1, ..WORLD };
    let reason = world.run(DraftLen::Auto).controller.off_reason().expect("off");
    assert!(reason.contains("x the time of a plain one and yields") && !reason.contains('\n'), "{reason}");
    assert!(!reason.contains("experts"), "none were loaded: {reason}");
}

#[test]
fn where_drafting_pays_there_is_no_reason_to_give() {
    let world = World { verify: COSTS[0].1, draft_s: 0.05, acceptance: 0.9, seed: 1, ..WORLD };
    assert_eq!(world.run(DraftLen::Auto).controller.off_reason(), None);
}
