//! The draft-length controller: how many tokens to draft and to verify, and why not.
//!
//! Owns [`Controller`]. `Fixed` obeys; `Auto` maximises expected tokens per second,
//! (1 + sum of s_j) / T(K) with s_j the share of passes in which drafted token j stands (Cascade,
//! arXiv 2506.20675, and ALGORITHMS.md H.4). Costs and acceptance are measured from the passes run
//! anyway. Drafted passes are paid from an account that grows by a small share of the time spent and by
//! what they gain, and shrinks by what they lose against plain ones: when it is empty drafting is off, but for
//! what the rest of the text is going to bring in. That bounds what drafting can lose, whatever was predicted. It must not
//! know clocks, models or drafters.

mod choosing;
mod explaining;
mod learning;
mod measuring;
mod rates;
mod recalling;

use crate::account::Account;
use crate::calibration::Calibration;
use crate::certainty::Certainty;
use crate::cost::CostModel;
use crate::elastic::{DropCosts, RowRule};
use crate::estimate::{CostCurve, Mean, Survival};
use crate::explain::Ledger;
use crate::lessons::Lessons;
use crate::prospect::{Prospect, TEXT_TOKENS};
use crate::undrafted::Undrafted;
use crate::{DraftLen, SchedulerError};
use drafthorse_draft::{Draft, StopRule};
use drafthorse_offload::{Residency, ShadowMisses};

/// The longest draft any configuration may ask for.
pub const DRAFT_LEN_LIMIT: usize = 64;

/// Plain passes before the first measurement.
const PLAIN_FIRST: u64 = 3;
/// How many samples other texts' acceptance is worth to a new one,
const TEXT_WEIGHT: f64 = 4.0;
/// and what tokens of a certain confidence were worth there: that is the drafter's way more than the text's.
const TEXT_WEIGHT_BY_CONFIDENCE: f64 = 8.0;
/// Share of drafted passes' time spent waiting for the disk from which on drafting ahead is worth it.
const RUN_AHEAD_STALL_MIN: f64 = 0.4;
/// Passes before plain ones are measured again while drafting is in use, however much that promises.
const EARLY_PASSES: u64 = 4;
/// Passes after which plain passes are measured again (later the further drafting wins): texts and caches change.
const STALE_PASSES: u64 = 64;
/// Passes after which drafting that is off is tried again where that can be paid for, however little it promises.
const RETRY_PASSES: u64 = 256;
/// Gain that drafting must promise in passes that verify something.
const GAIN_MIN: f64 = 0.03;
/// Longer drafts are not watched: one that is right is known of when it is through, one that is wrong at once.
const WATCH_LEN_MAX: usize = 8;
/// Acceptance below which the stop rule does not take a drafter's tokens to be.
const ACCEPTANCE_FLOOR: f64 = 0.05;
/// The chance to stand that is asked of no draft, however dear its tokens: an estimate may be wrong.
const SURVIVAL_MIN_MAX: f64 = 0.95;
/// Share of a token's time that is left at least when waiting for its experts is taken off.
const TOKEN_SHARE_MIN: f64 = 0.1;

/// Of a model without routed experts.
#[cfg(test)]
const RESIDENCY: Residency =
    Residency { slots: 0, resident: 0, experts_total: 0, hit_rate_recent: 1.0, is_filling: false };

/// Settings of the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerConfig {
    /// `auto` or a number.
    pub mode: DraftLen,
    /// The longest draft `auto` may plan; at most [`DRAFT_LEN_LIMIT`].
    pub draft_len_max: usize,
}

/// What is known of a drafter's effort before it drafts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DraftEffort {
    /// What one drafted token takes of the time of a plain pass that waits for no expert, as far as sizes tell: 0 for
    /// drafters that take next to nothing.
    pub token_share: f64,
    /// Of the tokens decoded without it, the most that it reads before it drafts again.
    pub unread_max: usize,
    /// Whether it only looks things up in texts: that takes next to nothing, and there is nothing to read first.
    pub is_lookup: bool,
}

/// What to do in the next pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// How many tokens to draft at most; 0 is a plain pass.
    pub draft_len: usize,
    /// When a drafter whose tokens cost time should stop before that.
    pub stop: StopRule,
    /// Whether the drafter may go on while the target verifies: where passes mostly wait for the disk, the
    /// processor has the time; elsewhere it would take the target's.
    pub run_ahead: bool,
    /// The drafter is not to be asked: the draft is any token, for what verifying one costs. It tells whether a
    /// drafter that would have to read a long text first has a chance.
    pub is_blank: bool,
    /// Of a pass without a draft: the drafter may be asked for so many tokens that nobody verifies. What comes tells what
    /// would have stood ([`StepOutcome::watched`]). Only drafters that take next to no time are watched.
    pub watch: usize,
}

impl Plan {
    /// A pass without a draft.
    pub const PLAIN: Plan =
        Plan { draft_len: 0, stop: StopRule::NEVER, run_ahead: false, is_blank: false, watch: 0 };
}

/// A draft that was compared with what the target wrote alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Watched {
    /// How many tokens the drafter was asked for.
    pub asked: usize,
    /// What it said.
    pub draft: Draft,
    /// How many of its tokens came as it said, from the first one on.
    pub stood: usize,
    /// How certain the target was of the tokens that came ([`StepOutcome::certainty`]), from the first one on.
    pub certainty: Vec<f32>,
}

/// What one pass took and gave, measured by the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepOutcome<'a> {
    /// Drafted tokens that were verified: what [`Controller::keep`] and [`Controller::row_rule`] left.
    pub draft_len: usize,
    /// Drafted tokens whose rows the rule dropped while the pass ran.
    pub dropped: usize,
    /// How many of them stood.
    pub accepted: usize,
    /// How probable the target's likeliest token was at the place of each token that came, the accepted ones and the
    /// target's own behind them; empty where nobody tells.
    pub certainty: &'a [f32],
    /// Where all of them did, and the draft had gone on with a token that was not verified: whether that is the one that
    /// came there. `None` where there is none, or where a token may stand without being the one that comes.
    pub unverified: Option<bool>,
    /// Drafts that nobody verified, of which it has become known what would have stood.
    pub watched: &'a [Watched],
    /// Seconds spent drafting.
    pub draft_s: f64,
    /// Seconds of the target's pass, waiting for experts included.
    pub verify_s: f64,
    /// Of these, seconds spent waiting for experts.
    pub stall_s: f64,
    /// Distinct experts asked for, summed over layers.
    pub experts: u64,
    /// Of these, experts that were not resident.
    pub misses: u64,
    /// What a cache without drafts would have missed, where drafts can drive experts out.
    pub shadow: Option<ShadowMisses>,
}

/// Decides the draft length from what passes cost and yield. One per loaded model: costs carry over
/// from one generation to the next.
#[derive(Clone, Debug)]
pub struct Controller {
    config: ControllerConfig,
    passes: u64,
    /// Plain passes before the first draft; 0 where an earlier run's lessons make up for them.
    plain_first: u64,
    planned: usize,
    is_blank: bool,
    probe: Option<Probe>,
    confidence: Vec<f32>, // of the drafted tokens
    kept: usize,          // of them, those that are verified
    source: usize,        // who drafted them
    verify_s: CostModel,
    drafting: CostCurve, // in plain passes' computing: a processor at another pace drafts at another, too
    drop_s: DropCosts,
    undrafted: Undrafted,
    catching_up: Option<Mean>, // extra drafting for each pass before it without a draft, in the same unit
    survival: Survival,
    calibration: Calibration,
    certainty: Certainty,
    plain: PassMean,
    drafted: PassMean,
    planned_max: usize, // longest draft planned so far
    last_drafted: u64,
    last_told: u64, // what stands: by a draft that was verified or watched
    is_lookup: bool,
    watch: WatchState,
    stall_left_s: f64,     // of drafts, that is not booked
    draft_expected_s: f64, // of the draft that was made last, before it was
    /// The drafter has not drafted on this text yet: what it takes first is reading.
    reads_text: bool,
    prospect: Prospect,
    knows_second_row: bool,
    gap: u64, // passes without a draft right before the last one that had one
    made: Made,
    looks_left: u64,         // drafts that show what this text is like, against those before it
    texts_unlooked: u32,     // in a row, on which nothing was drafted
    texts_vain: u32,         // among the last that were drafted on, in a row: those that gained nothing by it
    text_gain_s: f64,        // by drafts of this text
    last_stood: Option<u64>, // pass in which a token of this text did
    account: Account,
    spent_s: f64,
    plain_lost_s: f64, // in measurements of plain passes
    last_probe: u64,   // pass number
    last_plain: u64,
    hit_rate: f64,
    hit_rate_plain: f64,
    is_filling: bool, // slots, beside the pass that is planned
    ledger: Ledger,
}

/// A measurement under way.
#[derive(Clone, Copy, Debug)]
struct Probe {
    draft_len: usize,
    passes_left: usize,
    /// Of another text, while what others showed keeps drafting off.
    is_look: bool,
    /// Whether it was made longer, as what it found is far less than was expected.
    is_repeated: bool,
}

/// Drafts of this text that are compared with what comes.
#[derive(Clone, Copy, Debug, Default)]
struct WatchState {
    /// In the pass that is planned.
    is_on: bool,
    /// It took too long.
    is_over: bool,
    /// Seconds a pass, but for the first.
    seconds: Option<Mean>,
    /// Of the last pass.
    paid_s: f64,
    /// Drafts of which it is known what would have stood.
    told: u32,
}

/// What the last passes that were to draft brought, the older the less.
#[derive(Clone, Copy, Debug, Default)]
struct Made {
    tokens: f64,
    seconds: f64,
}

/// What a kind of pass loads and waits for.
#[derive(Clone, Copy, Debug)]
struct PassMean {
    stall_share: Mean,
    misses: Mean,
}

impl Controller {
    /// A controller that has measured nothing yet, for a configuration that has passed
    /// [`ControllerConfig::validate`].
    pub fn new(config: ControllerConfig, effort: DraftEffort) -> Self {
        let DraftEffort { token_share, unread_max, is_lookup } = effort;
        let draft_len_max = config.draft_len_max.min(DRAFT_LEN_LIMIT);
        // A fixed length is measured too, for `explanation`.
        let width_max = match config.mode {
            DraftLen::Auto => draft_len_max,
            DraftLen::Fixed(draft_len) => draft_len_max.max(draft_len),
        };
        Controller {
            config: ControllerConfig { draft_len_max, ..config },
            passes: 0,
            plain_first: PLAIN_FIRST,
            planned: 0,
            is_blank: false,
            probe: None,
            confidence: Vec::with_capacity(width_max),
            kept: 0,
            source: 0,
            verify_s: CostModel::new(width_max),
            drafting: CostCurve::through_zero(width_max),
            drop_s: DropCosts::new(width_max),
            undrafted: Undrafted::new(),
            catching_up: None,
            survival: Survival::new(),
            calibration: Calibration::new(),
            certainty: Certainty::new(),
            plain: PassMean::new(),
            drafted: PassMean::new(),
            planned_max: 0,
            last_drafted: 0,
            last_told: 0,
            is_lookup,
            watch: WatchState::default(),
            stall_left_s: 0.0,
            draft_expected_s: 0.0,
            reads_text: true,
            prospect: Prospect { token_share, unread_max: unread_max as u64, ..Prospect::default() },
            knows_second_row: false,
            gap: 0,
            made: Made::default(),
            looks_left: 0,
            texts_unlooked: 0,
            texts_vain: 0,
            text_gain_s: 0.0,
            last_stood: None,
            account: Account::default(),
            spent_s: 0.0,
            plain_lost_s: 0.0,
            last_probe: 0,
            last_plain: 0,
            hit_rate: 0.0,
            hit_rate_plain: 0.0,
            is_filling: false,
            ledger: Ledger::new(width_max),
        }
    }

    /// Another text begins, whose prompt the target took `prefill_s` to read, `compute_s` of them computing, and which
    /// may have `tokens_max` tokens. What the drafter will take to read it says nothing of what drafting costs, and
    /// what stood in other texts is believed less.
    pub fn begin_text(&mut self, (prefill_s, compute_s): (f64, f64), tokens_max: usize) {
        if self.passes > 0 {
            (self.texts_unlooked, self.texts_vain) = self.texts_with_this();
        }
        self.text_gain_s = 0.0;
        // The last one is not going to bring it in.
        let usual_s = learning::LOSS_SHARE_EARLY * TEXT_TOKENS * self.plain_s().unwrap_or(0.0);
        self.account.forgive_above(usual_s);
        self.reads_text = true;
        self.probe = None;
        self.looks_left = if self.planned_max > 0 { measuring::LOOKS } else { 0 };
        (self.last_drafted, self.last_told) = (self.passes, self.passes);
        self.watch = WatchState::default();
        self.survival.loosen(TEXT_WEIGHT);
        self.last_stood = None;
        self.made = Made::default();
        self.calibration.loosen(TEXT_WEIGHT_BY_CONFIDENCE);
        self.certainty.begin_text(TEXT_WEIGHT);
        self.survival.expect_fails(self.certainty.fails_ratio());
        let Prospect { token_share, unread_max, .. } = self.prospect;
        self.prospect = Prospect {
            token_share,
            unread_max,
            prefill_s,
            prefill_compute_s: compute_s,
            tokens_max: tokens_max as f64,
            ..Prospect::default()
        };
    }

    /// The plan for the next pass. `residency` is the expert cache as it stands.
    pub fn plan(&mut self, residency: &Residency) -> Plan {
        self.hit_rate = residency.hit_rate_recent;
        self.is_filling = residency.is_filling;
        self.confidence.clear();
        self.kept = 0;
        self.planned = match self.config.mode {
            DraftLen::Fixed(draft_len) => draft_len,
            DraftLen::Auto => self.auto(),
        };
        self.is_blank =
            self.planned > 0 && self.config.mode == DraftLen::Auto && self.looks_without_drafter();
        let run_ahead =
            self.planned > 0 && !self.is_blank && self.drafted.stall_share.value() >= RUN_AHEAD_STALL_MIN;
        let watch =
            if self.planned == 0 && self.may_watch() { self.planned_max.min(WATCH_LEN_MAX) } else { 0 };
        self.watch.is_on = watch > 0;
        Plan { draft_len: self.planned, stop: self.stop_rule(), run_ahead, is_blank: self.is_blank, watch }
    }

    /// A draft is continued while the next token, if it stands as often as this drafter's do, is worth the
    /// time of drafting and verifying it: s_j > dT_j tau / T (ALGORITHMS.md H.4). Measurements run whole.
    fn stop_rule(&self) -> StopRule {
        let measuring = self.probe.is_some() || self.config.mode != DraftLen::Auto;
        let width = self.planned;
        let costs = (self.drafting_s(width), self.verify_s.expect(width), self.verify_s.expect(0));
        let (false, true, (Some(draft), Some(wide), Some(plain))) = (measuring, width > 0, costs) else {
            return StopRule::NEVER;
        };
        let each_s = (draft + (wide - plain).max(0.0)) / width as f64;
        let stands = self.calibration.overall(self.source).max(ACCEPTANCE_FLOOR);
        let survival_min = (each_s * self.going_rate() / stands).min(SURVIVAL_MIN_MAX) as f32;
        StopRule {
            acceptance: std::array::from_fn(|source| self.calibration.table(source)),
            source: 0,
            survival_min,
        }
    }

    /// Whether it learns from how certain the target is ([`StepOutcome::certainty`]).
    pub fn wants_certainty(&self) -> bool {
        self.config.mode == DraftLen::Auto
    }

    /// How many of the drafted tokens are worth verifying: those whose chance to stand is worth more
    /// than the time they add. `Fixed`, and passes that measure, keep all.
    pub fn keep(&mut self, draft: &Draft) -> usize {
        let measuring = self.probe.is_some() || self.config.mode != DraftLen::Auto;
        if !draft.tokens.is_empty() {
            self.source = draft.source;
        }
        self.kept = if measuring { draft.tokens.len() } else { self.worth_verifying(draft) };
        self.confidence.clear();
        self.confidence.extend(&draft.confidence);
        self.kept
    }

    /// Which rows of what was kept are to be dropped while the pass runs; `None` where all go through, in
    /// measurements and before anything is known.
    pub fn row_rule(&self) -> Option<RowRule> {
        let (best, rate) = (self.best_affordable().0, self.going_rate());
        if self.probe.is_some() || self.kept == 0 || rate <= 0.0 {
            return None;
        }
        let waiting_s = self.verify_s.terms().miss_s * self.verify_s.loads(best).1;
        let token_s = (1.0 / rate - waiting_s / self.survival.tokens(best)).max(TOKEN_SHARE_MIN / rate);
        let stands = |before: &mut f64, (i, confidence): (usize, &f32)| {
            *before *= self.calibration.acceptance(self.source, i, *confidence);
            Some(*before)
        };
        let kept = self.confidence.iter().take(self.kept).enumerate();
        Some(RowRule::new(kept.scan(1.0, stands), token_s, &self.verify_s))
    }

    /// Learns from the pass that the last plan led to. Times and lengths that cannot be teach nothing.
    pub fn observe(&mut self, outcome: &StepOutcome) {
        let valid = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
        let times_valid = valid(outcome.draft_s) && valid(outcome.verify_s) && outcome.verify_s > 0.0;
        let tells_valid = (outcome.unverified.is_none() || outcome.accepted == outcome.draft_len)
            && (outcome.certainty.is_empty() || outcome.certainty.len() == outcome.accepted + 1)
            && outcome.watched.iter().all(Watched::is_sound);
        let lengths_valid = outcome.accepted <= outcome.draft_len && outcome.rows_drafted() <= self.planned;
        if !times_valid || !lengths_valid || !tells_valid {
            return;
        }
        self.passes += 1;
        self.undrafted.add(outcome);
        self.learn_costs(outcome);
        if !self.is_blank {
            self.learn_acceptance(outcome);
        }
        outcome.watched.iter().for_each(|watched| self.learn_watched(watched));
        self.survival.expect_fails(self.certainty.fails_ratio());
        self.settle(outcome);
        self.reads_text &= self.planned == 0 || self.is_blank;
    }
}

impl Watched {
    fn is_sound(&self) -> bool {
        let drafted = self.draft.tokens.len();
        self.stood <= drafted && drafted <= self.asked && self.asked <= DRAFT_LEN_LIMIT
    }
}

impl StepOutcome<'_> {
    /// Drafted tokens that the pass began with.
    fn rows_drafted(&self) -> usize {
        self.draft_len + self.dropped
    }
}

impl Made {
    const KEEP: f64 = 7.0 / 8.0;

    fn add(&mut self, tokens: f64, seconds: f64) {
        self.tokens = Made::KEEP * self.tokens + tokens;
        self.seconds = Made::KEEP * self.seconds + seconds;
    }
}

impl PassMean {
    const MEMORY: f64 = 32.0;

    fn new() -> PassMean {
        PassMean { stall_share: Mean::prior(0.0, 0.0), misses: Mean::prior(0.0, 0.0) }
    }

    fn add(&mut self, outcome: &StepOutcome) {
        self.stall_share.add((outcome.stall_s / outcome.verify_s).clamp(0.0, 1.0), PassMean::MEMORY);
        self.misses.add(outcome.misses as f64, PassMean::MEMORY);
    }
}

impl ControllerConfig {
    /// Checks the lengths against their limits.
    ///
    /// # Errors
    /// [`SchedulerError::Setting`] names the field.
    pub fn validate(&self) -> Result<(), SchedulerError> {
        let limits = format!("at most {DRAFT_LEN_LIMIT}");
        let check = |field, value: usize| match value <= DRAFT_LEN_LIMIT {
            true => Ok(()),
            false => Err(SchedulerError::Setting { field, value: value.to_string(), limits: limits.clone() }),
        };
        check("draft_len_max", self.draft_len_max)?;
        check("draft_len", if let DraftLen::Fixed(draft_len) = self.mode { draft_len } else { 0 })
    }
}
