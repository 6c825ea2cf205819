//! A simulated engine whose costs and acceptance are known, for the tests of `auto`.
//!
//! Time is in plain passes. Costs, acceptance and noise depend on the place in the text or on the pass alone, so
//! that ways of drafting meet the same text.

use drafthorse_draft::{Draft, UNREAD_MAX};
use drafthorse_offload::Residency;
use drafthorse_scheduler::{
    Controller, ControllerConfig, DraftEffort, DraftLen, Lessons, Plan, StepOutcome, Watched,
};

pub const DRAFT_LEN_MAX: usize = 8;

/// Seconds of a target pass over that many drafted tokens; a plain one takes 1.
pub type Cost = fn(usize) -> f64;

#[derive(Clone, Copy)]
pub struct World {
    pub verify: Cost,
    /// Seconds for one drafted token; reading one takes 0.3 of that.
    pub draft_s: f64,
    /// Chance that a drafted token stands,
    pub acceptance: f64,
    /// but for so many tokens at the start of the text, of which none does.
    pub astray: usize,
    /// How certain the target is of a token there, and behind it; `None` where nobody tells.
    pub certainty: Option<(f32, f32)>,
    /// Chance that the drafter has something to say.
    pub offered: f64,
    /// Tokens of the prompt, which the target read in a quarter of a pass each.
    pub prompt: u32,
    /// Tokens of the text.
    pub tokens: usize,
    pub machine: Machine,
    pub seed: u64,
}

/// What a machine adds to the costs.
#[derive(Clone, Copy)]
pub struct Machine {
    /// Of a pass, either way, each for itself.
    pub noise: f64,
    /// Of all passes and drafts in a stretch of the text, either way.
    pub drift: f64,
    /// Share that the first tokens' passes and drafts take longer; fades over `COLD_TOKENS`.
    pub cold: f64,
    /// Share that passes take longer while slots are filled, and tokens that this lasts.
    pub filling: (f64, usize),
    /// Share that the first pass of each width takes longer.
    pub first: f64,
    /// Share that a plain pass right after a drafted one takes longer; the next one half of that.
    pub after_draft: f64,
    /// Experts that a plain pass misses, and seconds that each makes it wait (part of the pass's cost).
    pub misses: f64,
    pub miss_s: f64,
}

/// Nothing but 10 % of noise.
pub const STEADY: Machine = Machine {
    noise: 0.1,
    drift: 0.0,
    cold: 0.0,
    filling: (0.0, 0),
    first: 0.0,
    after_draft: 0.0,
    misses: 0.0,
    miss_s: 0.0,
};

pub const WORLD: World = World {
    verify: |_| 1.0,
    draft_s: 0.0,
    acceptance: 0.0,
    astray: 0,
    certainty: None,
    offered: 1.0,
    prompt: 0,
    tokens: 2000,
    machine: STEADY,
    seed: 0,
};

/// Tokens over which a cold start fades.
const COLD_TOKENS: f64 = 40.0;
/// Tokens of a wave of the drift.
const DRIFT_TOKENS: f64 = 120.0;
/// Distinct experts of a plain pass; a wider one has this power of its rows more.
const EXPERTS: f64 = 66.0;
const UNION_POWER: f64 = 0.7;

/// How a text went.
pub struct Run {
    seconds: f64,
    /// Tokens written: the last pass may go beyond the text.
    tokens: usize,
    pub controller: Controller,
    /// Tokens drafted and verified before the place up to which none stands.
    #[allow(dead_code, reason = "not every file of tests asks")]
    pub drafted_astray: usize,
}

impl Run {
    pub fn seconds_a_token(&self) -> f64 {
        self.seconds / self.tokens as f64
    }
}

impl World {
    /// The text under `mode`.
    pub fn run(&self, mode: DraftLen) -> Run {
        self.run_after(mode, None)
    }

    /// The text under `mode`, by a controller that begins with what another one learned.
    pub fn run_after(&self, mode: DraftLen, lessons: Option<&Lessons>) -> Run {
        let config = ControllerConfig { mode, draft_len_max: DRAFT_LEN_MAX };
        let is_lookup = self.draft_s == 0.0;
        let mut controller = Controller::new(
            config,
            DraftEffort { token_share: self.draft_s, unread_max: UNREAD_MAX, is_lookup },
        );
        lessons.into_iter().for_each(|lessons| controller.recall(lessons));
        let prefill_s = 0.25 * f64::from(self.prompt);
        controller.begin_text((prefill_s, prefill_s), self.tokens);
        let residency =
            Residency { slots: 0, resident: 0, experts_total: 0, hit_rate_recent: 1.0, is_filling: false };
        let (mut tokens, mut seconds) = (0, 0.0);
        let (mut prompt_left, mut unread) = (self.prompt, 0);
        let mut passes = Vec::new(); // tokens planned and kept
        let (mut pending, mut drafted_astray): (Vec<(usize, Watched)>, _) = (Vec::new(), 0);
        let certain = |from: usize, to: usize| -> Vec<f32> {
            let (before, behind) = self.certainty.unzip();
            (from..to).filter_map(|at| if at < self.astray { before } else { behind }).collect()
        };
        while tokens < self.tokens {
            // A fixed length needs no controller, and these worlds are many.
            let plan = match mode {
                DraftLen::Fixed(draft_len) => Plan { draft_len, ..Plan::PLAIN },
                DraftLen::Auto => {
                    let is_filling = tokens < self.machine.filling.1;
                    controller.plan(&Residency { is_filling, ..residency })
                }
            };
            let (planned, asked) = (plan.draft_len, plan.draft_len > 0 && !plan.is_blank);
            let speaks = plan.is_blank || self.chance(1, tokens) < self.offered;
            let offered = if speaks { planned } else { 0 };
            if planned > 0 {
                pending.clear(); // as the engine does
            }
            if plan.watch > 0 {
                let len = if speaks { plan.watch } else { 0 };
                let draft = Draft::new(vec![1; len], vec![0.8; len]);
                pending.push((tokens, Watched { asked: plan.watch, draft, ..Watched::default() }));
            }
            let draft = Draft::new(vec![1; offered], vec![0.8; offered]);
            let kept = if mode == DraftLen::Auto { controller.keep(&draft) } else { offered };
            let stands = |at: usize| at >= self.astray && self.chance(2, at) < self.acceptance;
            let accepted = (0..kept).take_while(|i| asked && stands(tokens + i)).count();
            // The prompt is read whole, of what was written without it the end.
            let reading = f64::from(prompt_left + unread.min(UNREAD_MAX as u32));
            let drafting = if asked { planned as f64 + 0.3 * reading } else { 0.0 };
            let draft_s = self.draft_s * drafting * self.pace(tokens) * self.noise(4, passes.len());
            (prompt_left, unread) = if asked { (0, 0) } else { (prompt_left, unread + 1) };
            let is_told = asked && accepted == kept && kept < offered;
            let unverified = is_told.then(|| stands(tokens + kept));
            let came = tokens + accepted + 1;
            drafted_astray += if tokens < self.astray { kept } else { 0 };
            let mut watched = Vec::new();
            pending.retain_mut(|(at, seen)| {
                let drafted = seen.draft.tokens.len();
                seen.stood = (0..drafted.min(came - *at)).take_while(|i| stands(*at + i)).count();
                let is_known = seen.stood < came - *at || seen.stood == drafted;
                watched.extend(is_known.then(|| Watched { certainty: certain(*at, came), ..seen.clone() }));
                !is_known
            });
            let certainty = &certain(tokens, came);
            let pass = self.pass(kept, tokens, &passes);
            let outcome = StepOutcome { accepted, unverified, draft_s, certainty, watched: &watched, ..pass };
            if mode == DraftLen::Auto {
                controller.observe(&outcome);
            }
            (tokens, seconds) = (tokens + accepted + 1, seconds + draft_s + outcome.verify_s);
            passes.push((planned, kept));
        }
        Run { seconds, tokens, controller, drafted_astray }
    }

    /// A pass over `width` drafted tokens at `at` in the text, after `passes`.
    fn pass(&self, width: usize, at: usize, passes: &[(usize, usize)]) -> StepOutcome<'static> {
        let Machine { filling, first, after_draft, misses, miss_s, .. } = self.machine;
        let is_new = passes.iter().all(|pass| pass.1 != width);
        let since_draft = passes.iter().rev().take_while(|pass| pass.0 == 0).count();
        let disturbed = match since_draft {
            _ if width > 0 || since_draft == passes.len() => 0.0,
            0 => after_draft,
            1 => 0.5 * after_draft,
            _ => 0.0,
        };
        let union = ((width + 1) as f64).powf(UNION_POWER);
        let beside = if at < filling.1 { filling.0 } else { 0.0 };
        let extra = (1.0 + beside) * (1.0 + if is_new { first } else { 0.0 }) * (1.0 + disturbed);
        let missed = (misses * union * self.level(at)).round();
        StepOutcome {
            draft_len: width,
            verify_s: (self.verify)(width) * self.pace(at) * extra * self.noise(3, passes.len()),
            stall_s: missed * miss_s,
            experts: (EXPERTS * union) as u64,
            misses: missed as u64,
            ..StepOutcome::default()
        }
    }

    /// A number in [0, 1) that depends on the text position, not on the path taken to it.
    fn chance(&self, stream: u64, at: usize) -> f64 {
        let key = mix(self.seed ^ mix(stream));
        (mix(key ^ at as u64) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// What passes and drafts take at `at` in the text: a processor that is busy or cold is so for both.
    fn pace(&self, at: usize) -> f64 {
        self.level(at) * (1.0 + self.machine.cold * (-(at as f64) / COLD_TOKENS).exp())
    }

    fn level(&self, at: usize) -> f64 {
        let phase = self.chance(5, 0) + at as f64 / DRIFT_TOKENS;
        1.0 + self.machine.drift * (std::f64::consts::TAU * phase).sin()
    }

    fn noise(&self, stream: u64, pass: usize) -> f64 {
        1.0 + self.machine.noise * (2.0 * self.chance(stream, pass) - 1.0)
    }
}

/// SplitMix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
