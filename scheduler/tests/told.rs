//! What tells `auto` that a text has changed though nothing is drafted: the target's certainty, and drafts that are made for
//! nothing but to be compared with what comes.

mod worlds;

use drafthorse_draft::{Draft, UNREAD_MAX};
use drafthorse_offload::Residency;
use drafthorse_scheduler::{Controller, ControllerConfig, DraftEffort, DraftLen, Lessons, StepOutcome, Watched};
use worlds::{Cost, Machine, Run, STEADY, WORLD, World};

const SEEDS: u64 = 60;
/// Passes by drafted tokens, where few experts are in memory (eval/LOG.md: the demo pair's tenth).
const TENTH: Cost = |width| [1.0, 1.5, 1.8, 2.1, 2.4, 2.7, 3.0, 3.3, 3.5][width];
const NOISY: Machine = Machine { noise: 0.12, first: 0.1, ..STEADY };
/// A text of which nothing stands at first, as what repeats itself is still to come.
const LATE: World = World {
    verify: TENTH,
    draft_s: 0.1,
    acceptance: 0.97,
    astray: 24,
    tokens: 256,
    prompt: 40,
    machine: NOISY,
    ..WORLD
};

/// The same after what a text of `before` taught.
fn run(world: World, before: World, seed: u64) -> (Run, f64) {
    let world = World { seed, ..world };
    let lessons = World { seed: seed + SEEDS, ..before }.run(DraftLen::Auto).controller.lessons();
    let after = |mode, lessons: Option<&Lessons>| world.run_after(mode, lessons);
    let off = after(DraftLen::Fixed(0), None).seconds_a_token();
    let auto = after(DraftLen::Auto, lessons.as_ref());
    let gain = off / auto.seconds_a_token();
    (auto, gain)
}

/// Mean and least gain over off.
fn gains(world: World, before: World) -> (f64, f64) {
    let gains: Vec<f64> = (0..SEEDS).map(|seed| run(world, before, seed).1).collect();
    let least = gains.iter().copied().fold(f64::INFINITY, f64::min);
    println!("{:.3} {least:.3}", gains.iter().sum::<f64>() / SEEDS as f64);
    (gains.iter().sum::<f64>() / SEEDS as f64, least)
}

#[test]
fn a_target_that_has_become_certain_brings_drafting_back() {
    let easy = World { astray: 0, ..LATE };
    let tells = |world| World { certainty: Some((0.15, 0.95)), ..world };
    let (blind, told) = (gains(LATE, easy), gains(tells(LATE), tells(easy)));
    assert!(told.0 >= 1.1 * blind.0, "{told:?} {blind:?}");
    assert!(told.1 >= 0.97, "{told:?}");
}

#[test]
fn a_drafter_that_stands_nowhere_more_than_elsewhere_is_not_asked_for_the_targets_certainty() {
    // Certain or not, 0.3 stand; what came before was a text that was easy where the target was certain.
    let easy = World { certainty: Some((0.15, 0.95)), ..LATE };
    let hard = World { acceptance: 0.3, astray: 0, certainty: Some((0.95, 0.95)), ..LATE };
    assert!(gains(hard, hard).0 >= 0.98);
    assert!(gains(hard, easy).0 >= 0.97);
}

#[test]
fn free_drafts_are_compared_with_what_comes_instead_of_verified() {
    let free = World { draft_s: 0.0, prompt: 0, astray: 100, ..LATE };
    let mut verified = 0;
    for seed in 0..SEEDS {
        let (auto, gain) = run(free, free, seed);
        verified += auto.drafted_astray;
        assert!(gain >= 1.2, "seed {seed}: {gain}");
    }
    assert!(verified <= 8 * SEEDS as usize, "{verified} drafted tokens verified of which none could stand");
}

const RESIDENCY: Residency =
    Residency { slots: 0, resident: 0, experts_total: 0, hit_rate_recent: 1.0, is_filling: false };

/// A controller that a drafter of `draft_s` a token, of which nothing stood, has made leave off.
fn off(draft_s: f64) -> Controller {
    let config = ControllerConfig { mode: DraftLen::Auto, draft_len_max: 8 };
    let mut c = Controller::new(config, DraftEffort { token_share: draft_s, unread_max: UNREAD_MAX });
    c.begin_text((0.0, 0.0), 1000);
    for _ in 0..8 {
        let draft_len = c.plan(&RESIDENCY).draft_len;
        c.keep(&Draft::new(vec![1; draft_len], vec![0.8; draft_len]));
        let (draft_s, verify_s) = (draft_s * draft_len as f64, 1.0 + 0.5 * draft_len as f64);
        c.observe(&StepOutcome { draft_len, draft_s, verify_s, ..StepOutcome::default() });
    }
    c
}

/// A plain pass with what became of drafts, and seconds that went by beside it.
fn plain(c: &mut Controller, watched: &[Watched], draft_s: f64) -> usize {
    let plan = c.plan(&RESIDENCY);
    c.keep(&Draft::default());
    c.observe(&StepOutcome { watched, draft_s, verify_s: 1.0, ..StepOutcome::default() });
    plan.watch
}

#[test]
fn only_drafters_that_take_next_to_nothing_are_watched_and_only_as_long_as_that_is_so() {
    assert_eq!(plain(&mut off(0.1), &[], 0.0), 0);
    let mut free = off(0.001);
    assert!(plain(&mut free, &[], 0.001) > 0);
    let watched: Vec<usize> = (0..8).map(|_| plain(&mut free, &[], 0.02)).collect();
    assert_eq!(watched[4..], [0; 4], "it takes more than was thought");
    free.begin_text((0.0, 0.0), 1000);
    assert!(plain(&mut free, &[], 0.0) > 0, "a text is no reason for the next one");
}

#[test]
fn what_would_have_stood_is_drafted_and_what_cannot_be_teaches_nothing() {
    let draft = Draft::new(vec![1; 8], vec![0.8; 8]);
    let right = Watched { asked: 8, draft, stood: 8, certainty: vec![0.9; 8] };
    let (mut c, mut untold, mut misled) = (off(0.0), off(0.0), off(0.0));
    let planned = |c: &mut Controller, watched: &[Watched]| {
        plain(c, watched, 0.0);
        c.explanation().draft_len
    };
    let impossible = Watched { stood: 9, ..right.clone() };
    for _ in 0..6 {
        planned(&mut c, std::slice::from_ref(&right));
        planned(&mut untold, &[]);
        planned(&mut misled, std::slice::from_ref(&impossible));
    }
    let lengths = [&c, &untold, &misled].map(|c| c.explanation().draft_len);
    assert!(lengths[0] > 0, "{}", c.explanation().reason);
    assert_eq!(lengths[1..], [0, 0]);
}
