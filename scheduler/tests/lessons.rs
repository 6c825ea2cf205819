//! What one run learned and the next begins with: what is kept, what it is worth, and what no controller wrote.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod worlds;

use drafthorse_draft::UNREAD_MAX;
use drafthorse_offload::Residency;
use drafthorse_scheduler::{Controller, ControllerConfig, DraftEffort, DraftLen, Lessons, StepOutcome};
use serde_json::Value;
use worlds::{DRAFT_LEN_MAX, WORLD, World};

const CHEAP: World = World { verify: |n| 1.0 + 0.1 * n as f64, draft_s: 0.02, acceptance: 0.9, ..WORLD };
const RESIDENCY: Residency =
    Residency { slots: 0, resident: 0, experts_total: 0, hit_rate_recent: 1.0, is_filling: false };

fn effort(token_share: f64) -> DraftEffort {
    DraftEffort { token_share, unread_max: UNREAD_MAX, is_lookup: false }
}

fn controller(mode: DraftLen) -> Controller {
    Controller::new(ControllerConfig { mode, draft_len_max: DRAFT_LEN_MAX }, effort(0.0))
}

/// What a run in a world that pays for drafts has learned, as it comes back from a file.
fn lessons() -> Lessons {
    let lessons = CHEAP.run(DraftLen::Auto).controller.lessons().unwrap();
    lessons.validate().unwrap();
    let text = serde_json::to_string(&lessons).unwrap();
    let back: Lessons = serde_json::from_str(&text).unwrap();
    back.validate().unwrap();
    back
}

#[test]
fn a_controller_that_remembers_drafts_in_its_first_pass() {
    let mut forgetful = controller(DraftLen::Auto);
    forgetful.begin_text((0.0, 0.0), 1000);
    assert_eq!(forgetful.plan(&RESIDENCY).draft_len, 0);
    let mut remembers = controller(DraftLen::Auto);
    remembers.recall(&lessons());
    remembers.begin_text((0.0, 0.0), 1000);
    assert!(remembers.plan(&RESIDENCY).draft_len > 0);
    assert_eq!(remembers.off_reason(), None);
}

#[test]
fn what_was_recalled_and_hardly_used_is_handed_on() {
    let before = lessons();
    let mut remembers = controller(DraftLen::Auto);
    remembers.recall(&before);
    remembers.lessons().unwrap().validate().unwrap();
    let second = World { tokens: 8, ..CHEAP }.run_after(DraftLen::Auto, Some(&before));
    let after = second.controller.lessons().unwrap();
    after.validate().unwrap();
    let third = World { tokens: 64, seed: 3, ..CHEAP }.run_after(DraftLen::Auto, Some(&after));
    let off = World { tokens: 64, seed: 3, ..CHEAP }.run(DraftLen::Fixed(0));
    assert!(third.seconds_a_token() < 0.5 * off.seconds_a_token(), "{}", third.seconds_a_token());
}

#[test]
fn nothing_is_kept_before_drafts_were_measured_or_where_the_length_was_given() {
    assert_eq!(controller(DraftLen::Auto).lessons(), None);
    assert_eq!(World { tokens: 3, ..CHEAP }.run(DraftLen::Auto).controller.lessons(), None);
    let mut fixed = controller(DraftLen::Fixed(2));
    fixed.recall(&lessons());
    assert_eq!((fixed.lessons(), fixed.plan(&RESIDENCY).draft_len), (None, 2));
}

#[test]
fn lengths_beyond_what_is_allowed_now_are_left_out() {
    let mut short = Controller::new(ControllerConfig { mode: DraftLen::Auto, draft_len_max: 2 }, effort(0.0));
    short.recall(&lessons());
    short.begin_text((0.0, 0.0), 1000);
    assert!((1..=2).contains(&short.plan(&RESIDENCY).draft_len));
    let mut none = Controller::new(ControllerConfig { mode: DraftLen::Auto, draft_len_max: 0 }, effort(0.0));
    none.recall(&lessons());
    assert_eq!(none.plan(&RESIDENCY).draft_len, 0);
}

#[test]
fn a_drafter_known_to_gain_is_not_asked_to_read_more_than_it_can_win_back() {
    let mut remembers = controller(DraftLen::Auto);
    remembers.recall(&lessons());
    let mut long = Controller::new(ControllerConfig { mode: DraftLen::Auto, draft_len_max: 8 }, effort(0.5));
    long.recall(&lessons());
    for controller in [&mut remembers, &mut long] {
        controller.begin_text((10_000.0, 10_000.0), 1000);
    }
    assert!(remembers.plan(&RESIDENCY).draft_len > 0, "it reads for nothing");
    assert_eq!(long.plan(&RESIDENCY).draft_len, 0);
    let reason = long.off_reason().unwrap();
    assert!(reason.contains("5000.0 s to read the text"), "{reason}");
    long.begin_text((10.0, 10.0), 1000);
    assert!(long.plan(&RESIDENCY).draft_len > 0, "another text");
}

#[test]
fn a_measurement_ends_with_its_text() {
    let mut c = Controller::new(ControllerConfig { mode: DraftLen::Auto, draft_len_max: 8 }, effort(0.5));
    c.begin_text((0.0, 0.0), 1000);
    let pass = |draft_len| StepOutcome {
        draft_len,
        verify_s: 1.0 + 0.1 * draft_len as f64,
        ..StepOutcome::default()
    };
    for draft_len in [0, 0, 0, 1] {
        assert_eq!(c.plan(&RESIDENCY).draft_len, draft_len);
        c.observe(&pass(draft_len));
    }
    assert_eq!(c.clone().plan(&RESIDENCY).draft_len, 1, "the second pass of two");
    c.begin_text((10_000.0, 10_000.0), 1000);
    assert_eq!(c.plan(&RESIDENCY).draft_len, 0, "it would have to read the prompt");
}

/// The lessons with every number of seconds, or those of drafts alone, so many times as large.
fn slowed(lessons: &Lessons, factor: f64, drafts_alone: bool) -> Lessons {
    let mut value = serde_json::to_value(lessons).unwrap();
    let mut slow = |list: &str, names: &[&str]| {
        for entry in value[list].as_array_mut().unwrap() {
            names.iter().for_each(|name| entry[*name] = (entry[*name].as_f64().unwrap() * factor).into());
        }
    };
    slow("drafts", &["seconds"]);
    if !drafts_alone {
        slow("passes", &["compute_s", "stall_s"]);
    }
    let slowed: Lessons = serde_json::from_value(value).unwrap();
    slowed.validate().unwrap();
    slowed
}

#[test]
fn drafts_that_seemed_too_dear_are_looked_at_again_and_put_right() {
    let mut lessons = slowed(&lessons(), 150.0, true);
    let text = |seed| World { tokens: 192, prompt: 20, seed, ..CHEAP };
    let first = text(1).run_after(DraftLen::Auto, Some(&lessons));
    let off = text(1).run(DraftLen::Fixed(0)).seconds_a_token();
    for seed in 1..4 {
        lessons = text(seed).run_after(DraftLen::Auto, Some(&lessons)).controller.lessons().unwrap();
    }
    let later = text(1).run_after(DraftLen::Auto, Some(&lessons));
    assert!(first.seconds_a_token() < 1.02 * off, "{} {off}", first.seconds_a_token());
    assert!(later.seconds_a_token() < 0.7 * off, "{} {off}", later.seconds_a_token());
}

#[test]
fn lessons_of_a_slower_machine_allow_no_greater_loss() {
    let dear = World { verify: |n| 1.0 + 0.3 * n as f64, acceptance: 0.95, ..CHEAP };
    let slow = slowed(&dear.run(DraftLen::Auto).controller.lessons().unwrap(), 4.0, false);
    for seed in 0..10 {
        let world = World { acceptance: 0.0, tokens: 192, seed, ..dear };
        let auto = world.run_after(DraftLen::Auto, Some(&slow)).seconds_a_token();
        let off = world.run(DraftLen::Fixed(0)).seconds_a_token();
        assert!(auto < 1.035 * off, "{seed}: {auto} {off}");
    }
}

#[test]
fn short_texts_behind_long_prompts_lose_little_whatever_texts_before_them_showed() {
    let mut failures = Vec::new();
    for (prompt, tokens) in [(80, 16), (400, 64), (40, 256)] {
        for (draft_s, was, acceptance) in
            [(0.05, 0.9, 0.9), (0.3, 0.9, 0.9), (0.3, 0.0, 0.0), (0.3, 0.9, 0.0), (0.05, 0.0, 0.0)]
        {
            let world = World { verify: |n| 1.0 + 0.3 * n as f64, draft_s, ..WORLD };
            let before = World { acceptance: was, ..world }.run(DraftLen::Auto).controller.lessons();
            let share = |seed| {
                let world = World { acceptance, prompt, tokens, seed, ..world };
                let auto = world.run_after(DraftLen::Auto, before.as_ref()).seconds_a_token();
                auto / world.run(DraftLen::Fixed(0)).seconds_a_token()
            };
            let mean = (0..20).map(share).sum::<f64>() / 20.0;
            let case = format!("prompt {prompt}, {tokens} tokens, draft {draft_s}");
            let line = format!("{case}, p {was} and then {acceptance}: {mean:.3}");
            println!("{line}");
            failures.extend((mean > 1.03).then_some(line));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn a_verdict_on_a_drafter_that_reads_long_prompts_is_not_for_ever() {
    let world = World { verify: |n| 1.0 + 0.2 * n as f64, draft_s: 0.08, prompt: 400, tokens: 256, ..WORLD };
    let mut lessons = World { acceptance: 0.0, ..world }.run(DraftLen::Auto).controller.lessons().unwrap();
    let (mut speedups, later) = (Vec::new(), World { acceptance: 0.9, ..world });
    for seed in 0..14 {
        let world = World { seed, ..later };
        let auto = world.run_after(DraftLen::Auto, Some(&lessons));
        speedups.push(world.run(DraftLen::Fixed(0)).seconds_a_token() / auto.seconds_a_token());
        lessons = auto.controller.lessons().unwrap();
    }
    assert!(speedups.iter().all(|speedup| *speedup > 0.95), "{speedups:.2?}");
    assert!(speedups[10..].iter().all(|speedup| *speedup > 1.1), "{speedups:.2?}");
}

#[test]
fn a_length_whose_unlucky_pass_cannot_be_paid_yet_waits_and_says_so() {
    // Short drafts lose, long ones win.
    let jump = |n: usize| if n == 0 { 1.0 } else { 1.8 + 0.05 * n as f64 };
    let world = World { verify: jump, draft_s: 0.0, acceptance: 0.8, ..WORLD };
    let before = world.run(DraftLen::Auto).controller.lessons().unwrap();
    let mut remembers = controller(DraftLen::Auto);
    remembers.recall(&before);
    remembers.begin_text((0.0, 0.0), 1000);
    assert_eq!(remembers.plan(&RESIDENCY).draft_len, 0);
    let reason = remembers.off_reason().unwrap();
    assert!(reason.contains("would gain") && reason.contains("when time has paid for that"), "{reason}");
    let world = World { seed: 5, ..world };
    let (auto, off) = (world.run_after(DraftLen::Auto, Some(&before)), world.run(DraftLen::Fixed(0)));
    assert!(auto.seconds_a_token() < 0.7 * off.seconds_a_token(), "{}", auto.seconds_a_token());
}

/// Where a draft of one costs half a pass and nothing stands.
const VAIN: World =
    World { verify: |n| 1.0 + 0.5 * n as f64, draft_s: 0.06, acceptance: 0.0, tokens: 192, ..WORLD };

/// Share of these texts' time that drafting lost, each text by a run that begins with the lessons of the one before;
/// and the lessons of the last.
fn lost_in(
    texts: std::ops::Range<u64>,
    world: World,
    mut lessons: Option<Lessons>,
) -> (f64, Option<Lessons>) {
    let count = (texts.end - texts.start) as f64;
    let mut lost = 0.0;
    for seed in texts {
        let run = World { seed, ..world }.run_after(DraftLen::Auto, lessons.as_ref());
        let off = World { seed, ..world }.run(DraftLen::Fixed(0));
        lost += (run.seconds_a_token() / off.seconds_a_token() - 1.0) / count;
        lessons = run.controller.lessons();
    }
    (lost, lessons)
}

#[test]
fn a_drafter_that_never_gains_anything_costs_less_and_less() {
    let (early, lessons) = lost_in(1..17, VAIN, lost_in(0..1, VAIN, None).1);
    let (late, lessons) = lost_in(100..164, VAIN, lost_in(17..100, VAIN, lessons).1);
    assert!((0.002..0.015).contains(&early), "{early}");
    assert!(late < 0.4 * early, "{late} after {early}");
    // Who gains all of a sudden is found out within nine texts, and then drafts on each.
    let gains = World { verify: |n| 1.0 + 0.1 * n as f64, acceptance: 0.9, ..VAIN };
    let (_, lessons) = lost_in(164..173, gains, lessons);
    let (gained, _) = lost_in(173..181, gains, lessons);
    assert!(gained < -0.4, "{gained}");
}

#[test]
fn lessons_of_before_what_is_usual_and_certainty_were_kept_are_read() {
    let mut value = serde_json::to_value(lessons()).unwrap();
    assert!(value.pointer_mut("/survival").unwrap().as_object_mut().unwrap().remove("usual").is_some());
    assert!(value.as_object_mut().unwrap().remove("certainty").is_some());
    let old = serde_json::from_value::<Lessons>(value).unwrap();
    old.validate().unwrap();
    let mut remembers = controller(DraftLen::Auto);
    remembers.recall(&old);
    remembers.begin_text((0.0, 0.0), 1000);
    assert!(remembers.plan(&RESIDENCY).draft_len > 0);
}

#[test]
fn lessons_that_no_controller_wrote_are_refused_with_the_reason() {
    let change = |path: &str, to: Value| {
        let mut value = serde_json::to_value(lessons()).unwrap();
        *value.pointer_mut(path).unwrap() = to;
        serde_json::from_value::<Lessons>(value).unwrap().validate().unwrap_err().to_string()
    };
    let cases = [
        ("/passes", Value::Array(Vec::new()), "plain passes"),
        ("/passes/0/width", 1.into(), "plain passes"),
        ("/passes/1/width", 0.into(), "ascend"),
        ("/passes/1/width", 65.into(), "ascend to at most 64"),
        ("/passes/0/compute_s", 0.0.into(), "width 0 that cannot be"),
        ("/passes/0/stall_s", (-1.0).into(), "width 0 that cannot be"),
        ("/passes/0/misses", 1e300.into(), "width 0 that cannot be"),
        ("/passes/0/passes", 0.into(), "width 0 that cannot be"),
        ("/drafts", Value::Array(Vec::new()), "draft lengths"),
        ("/drafts/0/draft_len", 99.into(), "draft lengths"),
        ("/drafts/0/seconds", (-0.5).into(), "-0.5 seconds of drafting"),
        ("/catch_up_s", 1e9.into(), "1000000000 seconds of drafting"),
        ("/certainty/then/0", 1e6.into(), "outside 0 to 1"),
        ("/certainty/stood/2", 1.5.into(), "outside 0 to 1"),
        ("/survival/all/value", 1.5.into(), "outside 0 to 1"),
        ("/survival/all/weight", (-1.0).into(), "outside 0 to 1"),
        ("/survival/usual/value", 1.5.into(), "outside 0 to 1"),
        ("/survival/usual/weight", 1e9.into(), "outside 0 to 1"),
        ("/survival/offered", Value::Array(Vec::new()), "outside 0 to 1"),
        ("/calibration/sources/0/all/stood", 1e9.into(), "outside 0 to 1"),
    ];
    for (path, to, reason) in cases {
        let error = change(path, to);
        assert!(
            error.starts_with("lessons of an earlier run: ") && error.contains(reason),
            "{path}: {error}"
        );
    }
    let value = serde_json::to_value(lessons()).unwrap();
    assert!(serde_json::from_value::<Lessons>(serde_json::json!({"passes": value["passes"]})).is_err());
}
