//! `auto` in a simulated engine whose costs and acceptance are known: never slower than off, close to
//! the best fixed length, and it says why it is off (DESIGN I4).

use drafthorse_draft::Draft;
use drafthorse_offload::Residency;
use drafthorse_scheduler::{Controller, ControllerConfig, DraftLen, Plan, StepOutcome};

const DRAFT_LEN_MAX: usize = 8;
const TOKENS: usize = 2000;
const SEEDS: u64 = 10;

/// Seconds of a target pass over that many drafted tokens; a plain one takes 1.
type Cost = fn(usize) -> f64;

/// With each, how close to the best fixed length `auto` has to come. Where short drafts lose and only
/// long ones win, finding that out is paid from a small account, so it takes longer.
const COSTS: [(&str, Cost, f64); 5] = [
    ("cheap", |n| 1.0 + 0.05 * n as f64, 1.10),
    ("cpu", |n| 1.0 + 0.3 * n as f64, 1.10),
    ("experts", |n| ((n + 1) as f64).powf(0.68), 1.10), // ALGORITHMS.md 0.1
    ("linear", |n| 1.0 + n as f64, 1.10),
    ("jump", |n| if n == 0 { 1.0 } else { 1.8 + 0.05 * n as f64 }, 1.21),
];

#[derive(Clone, Copy)]
struct World {
    verify: Cost,
    /// Seconds for one drafted token; reading one takes 0.3 of that.
    draft_s: f64,
    /// Chance that a drafted token stands.
    acceptance: f64,
    /// Chance that the drafter has something to say.
    offered: f64,
    /// Tokens of the prompt, which the target read in a quarter of a pass each.
    prompt: u32,
    /// Tokens of the text.
    tokens: usize,
    seed: u64,
}

const WORLD: World = World {
    verify: |_| 1.0,
    draft_s: 0.0,
    acceptance: 0.0,
    offered: 1.0,
    prompt: 0,
    tokens: TOKENS,
    seed: 0,
};

impl World {
    /// Seconds that the text takes under `mode`, and the controller in the end.
    fn run(&self, mode: DraftLen) -> (f64, Controller) {
        let config = ControllerConfig { mode, draft_len_max: DRAFT_LEN_MAX };
        let mut controller = Controller::new(config, self.draft_s);
        let prefill_s = 0.25 * f64::from(self.prompt);
        controller.begin_text(prefill_s, prefill_s);
        let residency = Residency { slots: 0, resident: 0, experts_total: 0, hit_rate_recent: 1.0 };
        let (mut tokens, mut total_s, mut unread, mut pass) = (0, 0.0, self.prompt, 0);
        while tokens < self.tokens {
            // A fixed length needs no controller, and these worlds are many.
            let plan = match mode {
                DraftLen::Fixed(draft_len) => Plan { draft_len, ..Plan::PLAIN },
                DraftLen::Auto => controller.plan(&residency),
            };
            let (planned, asked) = (plan.draft_len, plan.draft_len > 0 && !plan.is_blank);
            let speaks = plan.is_blank || self.chance(1, tokens) < self.offered;
            let offered = if speaks { planned } else { 0 };
            let draft = Draft::new(vec![1; offered], vec![0.8; offered]);
            let kept = if mode == DraftLen::Auto { controller.keep(&draft) } else { offered };
            let accepted =
                (0..kept).take_while(|i| asked && self.chance(2, tokens + i) < self.acceptance).count();
            let verify_s = (self.verify)(kept) * self.noise(3, pass);
            let drafting = if asked { planned as f64 + 0.3 * f64::from(unread) } else { 0.0 };
            let draft_s = self.draft_s * drafting * self.noise(4, pass);
            unread = if asked { 0 } else { unread + 1 };
            let outcome = StepOutcome {
                draft_len: kept,
                dropped: 0,
                accepted,
                draft_s,
                verify_s,
                stall_s: 0.0,
                experts: 0,
                misses: 0,
                shadow: None,
            };
            if mode == DraftLen::Auto {
                controller.observe(&outcome);
            }
            (tokens, total_s, pass) = (tokens + accepted + 1, total_s + draft_s + verify_s, pass + 1);
        }
        (total_s, controller)
    }

    /// `auto`'s time as a share of off's and of the best fixed length's.
    fn compare(&self) -> (f64, f64) {
        let fixed = (0..=DRAFT_LEN_MAX).map(|len| self.run(DraftLen::Fixed(len)).0).collect::<Vec<_>>();
        let best = fixed.iter().copied().fold(f64::INFINITY, f64::min);
        let auto = self.run(DraftLen::Auto).0;
        (auto / fixed[0], auto / best)
    }

    /// A number in [0, 1) that depends on the text position, not on the path taken to it.
    fn chance(&self, stream: u64, at: usize) -> f64 {
        let key = mix(self.seed ^ mix(stream));
        (mix(key ^ at as u64) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// 10 % either way.
    fn noise(&self, stream: u64, pass: usize) -> f64 {
        0.9 + 0.2 * self.chance(stream, pass)
    }
}

/// SplitMix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Mean over seeds of the time as a share of off's and of the best's, and the worst share of off's.
fn over_seeds(world: World) -> (f64, f64, f64) {
    let runs: Vec<_> = (0..SEEDS).map(|seed| World { seed, ..world }.compare()).collect();
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
                if off > 1.025 || off_worst > 1.035 || best > best_max {
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
    for (name, verify, best_max) in COSTS.into_iter().take(4).map(|(name, verify, _)| (name, verify, 1.12)) {
        for draft_s in [0.0, 0.05, 0.3, 0.6] {
            for acceptance in [0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95] {
                let world = World { verify, draft_s, acceptance, prompt: 40, tokens: 256, ..WORLD };
                let (off, best, off_worst) = over_seeds(world);
                // A draft model that may pay has to read the prompt before that can be known.
                let off_max = if draft_s < 0.1 { 1.03 } else { 1.05 };
                if off > off_max || off_worst > 1.10 || best > best_max {
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
    let (total_s, controller) = hopeless.run(DraftLen::Auto);
    assert!(total_s < 1.02 * hopeless.run(DraftLen::Fixed(0)).0, "{total_s}");
    let reason = controller.off_reason().expect("off");
    assert!(reason.contains("even a good one would give"), "{reason}");
    let hopeful = World { verify: COSTS[0].1, draft_s: 0.05, ..hopeless };
    assert!(hopeful.run(DraftLen::Auto).0 < 0.5 * hopeful.run(DraftLen::Fixed(0)).0);
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
    let reason = world.run(DraftLen::Auto).1.off_reason().expect("off");
    assert!(reason.contains("x the time of a plain one and yields") && !reason.contains('\n'), "{reason}");
    assert!(!reason.contains("experts"), "none were loaded: {reason}");
}

#[test]
fn where_drafting_pays_there_is_no_reason_to_give() {
    let world = World { verify: COSTS[0].1, draft_s: 0.05, acceptance: 0.9, seed: 1, ..WORLD };
    assert_eq!(world.run(DraftLen::Auto).1.off_reason(), None);
}
