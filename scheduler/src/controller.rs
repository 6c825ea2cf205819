//! The draft-length controller: how many tokens to draft and to verify, and why not.
//!
//! Owns [`Controller`]. `Fixed` obeys; `Auto` maximises expected tokens per second,
//! (1 + sum of s_j) / T(K) with s_j the share of passes in which drafted token j stands (Cascade,
//! arXiv 2506.20675, and ALGORITHMS.md H.4). Costs and acceptance are measured from the passes run
//! anyway. Drafted passes are paid from an account that grows by a small share of the time spent and by
//! what they gain, and shrinks by what they lose against plain ones: when it is empty drafting is off,
//! which bounds what it can lose whatever was predicted. It must not know clocks,
//! models or drafters.

use crate::calibration::Calibration;
use crate::cost::{CostModel, PassSample};
use crate::elastic::{DropCosts, RowRule};
use crate::estimate::{CostCurve, Mean, Survival};
use crate::explain::{Explanation, Ledger, LengthReport};
use crate::prospect::Prospect;
use crate::undrafted::Undrafted;
use crate::{DraftLen, SchedulerError};
use drafthorse_draft::{Draft, StopRule};
use drafthorse_offload::{Residency, ShadowMisses};

/// The longest draft any configuration may ask for.
pub const DRAFT_LEN_LIMIT: usize = 64;

/// Share of the time spent that drafting may lose against plain passes; with what it may lose at the start, it
/// is less in the first passes, so that a short text loses no more.
const LOSS_SHARE: f64 = 0.02;
const LOSS_SHARE_EARLY: f64 = 0.01;
const LOSS_EARLY_PASSES: u64 = 200;
/// What the account for that holds at the start, in the time of plain passes.
const ACCOUNT_START_PASSES: f64 = 2.0;
/// What it holds at most; gains above it are not saved up for later losses.
const ACCOUNT_MAX_PASSES: f64 = 16.0;
/// Share of drafted passes' time spent waiting for the disk from which on drafting ahead is worth it.
const RUN_AHEAD_STALL_MIN: f64 = 0.4;
/// A drafted pass is charged at most this many times what it was expected to take.
const CHARGE_MAX: f64 = 3.0;
/// Passes in one measurement of drafting. The first also lets the draft model catch up on the text.
const PROBE_LEN: usize = 2;
/// Passes in one measurement of plain decoding. The first ones follow a drafted pass, which leaves the
/// processor's caches to the draft model and the target's threads asleep: they do not count.
const PLAIN_PROBE_LEN: usize = 3;
const PLAIN_SETTLING: u64 = 2;
/// Share of the time spent that measuring plain passes again may lose while drafting pays, and what it may
/// lose at the start, in the time of plain passes: a comparison that is won by far needs no sharp figure.
const PLAIN_SHARE: f64 = 0.01;
const PLAIN_START_PASSES: f64 = 0.5;
/// Plain passes before the first measurement.
const PLAIN_FIRST: u64 = 2;
/// Passes after which what is not in use (plain passes or drafted ones) is measured again at first.
/// The gap doubles each time.
const EARLY_PASSES: u64 = 4;
/// The longest such gap.
const STALE_PASSES: u64 = 64;
/// Drafted passes before the gap grows: fewer say too little to leave drafting off for long.
const FIRST_LOOK_PASSES: u64 = 8;
/// Passes in which drafting must earn back what reading up on the text costs.
const PAYBACK_PASSES: f64 = 16.0;
/// Before it is measured: the time in which a draft model reads one token, in drafted tokens.
const READ_SHARE: f64 = 0.15;
/// A hit rate that moved this much since the last plain pass makes its cost stale early.
const HIT_RATE_DRIFT: f64 = 0.05;
/// Gain that drafting must promise in passes that verify something.
const GAIN_MIN: f64 = 0.03;
/// Loss it may make in passes in which the drafter abstains.
const ABSTAIN_LOSS_MAX: f64 = 0.005;
/// Acceptance below which the stop rule does not take a drafter's tokens to be.
const ACCEPTANCE_FLOOR: f64 = 0.05;
/// The chance to stand that is asked of no draft, however dear its tokens: an estimate may be wrong.
const SURVIVAL_MIN_MAX: f64 = 0.95;
/// Share of a token's time that is left at least when waiting for its experts is taken off.
const TOKEN_SHARE_MIN: f64 = 0.1;
/// How many samples the past is worth when drafting is measured again after having been off.
const RETRY_WEIGHT: f64 = 8.0;

/// Settings of the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerConfig {
    /// `auto` or a number.
    pub mode: DraftLen,
    /// The longest draft `auto` may plan; at most [`DRAFT_LEN_LIMIT`].
    pub draft_len_max: usize,
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
}

impl Plan {
    /// A pass without a draft.
    pub const PLAIN: Plan = Plan { draft_len: 0, stop: StopRule::NEVER, run_ahead: false, is_blank: false };
}

/// What one pass took and gave, measured by the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepOutcome {
    /// Drafted tokens that were verified: what [`Controller::keep`] and [`Controller::row_rule`] left.
    pub draft_len: usize,
    /// Drafted tokens whose rows the rule dropped while the pass ran.
    pub dropped: usize,
    /// How many of them stood.
    pub accepted: usize,
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
    planned: usize,
    is_blank: bool,
    probe: Option<Probe>,
    kept: Vec<f32>, // confidence of the tokens being verified
    source: usize,  // who drafted them
    verify_s: CostModel,
    draft_s: CostCurve,
    drop_s: DropCosts,
    undrafted: Undrafted,
    catch_up_s: Option<Mean>, // extra drafting time for each pass before it without a draft
    survival: Survival,
    calibration: Calibration,
    plain: PassMean,
    drafted: PassMean,
    planned_max: usize, // longest draft planned so far
    last_drafted: u64,
    /// The drafter has not drafted on this text yet: what it takes first is reading.
    reads_text: bool,
    prospect: Prospect,
    knows_second_row: bool,
    drafted_passes: u64,
    account_s: f64,
    spent_s: f64,
    plain_lost_s: f64, // in measurements of plain passes
    last_probe: u64,   // pass number
    last_plain: u64,
    plain_patience: u64,
    off_patience: u64,
    hit_rate: f64,
    hit_rate_plain: f64,
    ledger: Ledger,
}

/// A measurement under way.
#[derive(Clone, Copy, Debug)]
struct Probe {
    draft_len: usize,
    passes_left: usize,
}

/// What a kind of pass loads and waits for.
#[derive(Clone, Copy, Debug)]
struct PassMean {
    stall_share: Mean,
    misses: Mean,
}

impl Controller {
    /// A controller that has measured nothing yet, for a configuration that has passed
    /// [`ControllerConfig::validate`]. `token_share` is what one drafted token takes of the time of a plain pass that
    /// waits for no expert, as far as sizes tell: 0 for drafters that take next to nothing.
    pub fn new(config: ControllerConfig, token_share: f64) -> Self {
        let draft_len_max = config.draft_len_max.min(DRAFT_LEN_LIMIT);
        // A fixed length is measured too, for `explanation`.
        let width_max = match config.mode {
            DraftLen::Auto => draft_len_max,
            DraftLen::Fixed(draft_len) => draft_len_max.max(draft_len),
        };
        Controller {
            config: ControllerConfig { draft_len_max, ..config },
            passes: 0,
            planned: 0,
            is_blank: false,
            probe: None,
            kept: Vec::with_capacity(width_max),
            source: 0,
            verify_s: CostModel::new(width_max),
            draft_s: CostCurve::through_zero(width_max),
            drop_s: DropCosts::new(width_max),
            undrafted: Undrafted::new(),
            catch_up_s: None,
            survival: Survival::new(),
            calibration: Calibration::new(),
            plain: PassMean::new(),
            drafted: PassMean::new(),
            planned_max: 0,
            last_drafted: 0,
            reads_text: true,
            prospect: Prospect { token_share, ..Prospect::default() },
            knows_second_row: false,
            drafted_passes: 0,
            account_s: 0.0,
            spent_s: 0.0,
            plain_lost_s: 0.0,
            last_probe: 0,
            last_plain: 0,
            plain_patience: EARLY_PASSES,
            off_patience: EARLY_PASSES,
            hit_rate: 0.0,
            hit_rate_plain: 0.0,
            ledger: Ledger::new(width_max),
        }
    }

    /// Another text begins, whose prompt the target took `prefill_s` to read, `compute_s` of them computing. What
    /// the drafter will take to read it says nothing of what drafting costs.
    pub fn begin_text(&mut self, prefill_s: f64, compute_s: f64) {
        self.reads_text = true;
        self.last_drafted = self.passes;
        let token_share = self.prospect.token_share;
        self.prospect =
            Prospect { token_share, prefill_s, prefill_compute_s: compute_s, unread_compute_s: 0.0 };
    }

    /// The plan for the next pass. `residency` is the expert cache as it stands.
    pub fn plan(&mut self, residency: &Residency) -> Plan {
        self.hit_rate = residency.hit_rate_recent;
        self.kept.clear();
        self.planned = match self.config.mode {
            DraftLen::Fixed(draft_len) => draft_len,
            DraftLen::Auto => self.auto(),
        };
        self.is_blank =
            self.planned > 0 && self.config.mode == DraftLen::Auto && self.looks_without_drafter();
        let run_ahead =
            self.planned > 0 && !self.is_blank && self.drafted.stall_share.value() >= RUN_AHEAD_STALL_MIN;
        Plan { draft_len: self.planned, stop: self.stop_rule(), run_ahead, is_blank: self.is_blank }
    }

    /// A draft is continued while the next token, if it stands as often as this drafter's do, is worth the
    /// time of drafting and verifying it: s_j > dT_j tau / T (ALGORITHMS.md H.4). Measurements run whole.
    fn stop_rule(&self) -> StopRule {
        let measuring = self.probe.is_some() || self.config.mode != DraftLen::Auto;
        let width = self.planned;
        let costs = (self.draft_s.expect(width), self.verify_s.expect(width), self.verify_s.expect(0));
        let (false, true, (Some(draft), Some(wide), Some(plain))) = (measuring, width > 0, costs) else {
            return StopRule::NEVER;
        };
        let each_s = (draft + (wide - plain).max(0.0)) / width as f64;
        let stands = self.calibration.overall(self.source).max(ACCEPTANCE_FLOOR);
        let survival_min = (each_s * self.best().1 / stands).min(SURVIVAL_MIN_MAX) as f32;
        StopRule {
            acceptance: std::array::from_fn(|source| self.calibration.table(source)),
            source: 0,
            survival_min,
        }
    }

    /// How many of the drafted tokens are worth verifying: those whose chance to stand is worth more
    /// than the time they add. `Fixed`, and passes that measure, keep all.
    pub fn keep(&mut self, draft: &Draft) -> usize {
        let measuring = self.probe.is_some() || self.config.mode != DraftLen::Auto;
        if !draft.tokens.is_empty() {
            self.source = draft.source;
        }
        let kept = if measuring { draft.tokens.len() } else { self.worth_verifying(draft) };
        self.kept.clear();
        self.kept.extend(draft.confidence.iter().take(kept));
        kept
    }

    /// Which rows of what was kept are to be dropped while the pass runs; `None` where all go through, in
    /// measurements and before anything is known.
    pub fn row_rule(&self) -> Option<RowRule> {
        let (best, rate) = self.best();
        if self.probe.is_some() || self.kept.is_empty() || rate <= 0.0 {
            return None;
        }
        let waiting_s = self.verify_s.terms().miss_s * self.verify_s.loads(best).1;
        let token_s = (1.0 / rate - waiting_s / self.survival.tokens(best)).max(TOKEN_SHARE_MIN / rate);
        let stands = |before: &mut f64, (i, confidence): (usize, &f32)| {
            *before *= self.calibration.acceptance(self.source, i, *confidence);
            Some(*before)
        };
        Some(RowRule::new(self.kept.iter().enumerate().scan(1.0, stands), token_s, &self.verify_s))
    }

    /// Learns from the pass that the last plan led to. Times and lengths that cannot be teach nothing.
    pub fn observe(&mut self, outcome: &StepOutcome) {
        let valid = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
        let times_valid = valid(outcome.draft_s) && valid(outcome.verify_s) && outcome.verify_s > 0.0;
        let lengths_valid = outcome.accepted <= outcome.draft_len && outcome.rows_drafted() <= self.planned;
        if !times_valid || !lengths_valid {
            return;
        }
        self.passes += 1;
        self.learn_costs(outcome);
        if !self.is_blank {
            self.learn_acceptance(outcome);
        }
        self.settle(outcome);
        self.reads_text &= self.planned == 0 || self.is_blank;
    }

    /// One line on why drafting is off at the moment; `None` while it is on or still being measured.
    pub fn off_reason(&self) -> Option<String> {
        match self.config.mode {
            DraftLen::Fixed(0) => return Some("the draft length is set to 0".into()),
            DraftLen::Fixed(_) => return None,
            DraftLen::Auto if self.config.draft_len_max == 0 => return Some("draft_len_max is 0".into()),
            DraftLen::Auto => {}
        }
        if self.planned_max == 0 {
            return self.not_looked_at();
        }
        if self.best_affordable().0 > 0 {
            return None;
        }
        if self.best().0 > 0 {
            return Some(format!(
                "drafting has lately lost more than {:.0} % of the time; it is tried again when that is made up for",
                100.0 * LOSS_SHARE,
            ));
        }
        self.explain()
    }

    /// Why the drafter was never asked, if that is so for a reason.
    fn not_looked_at(&self) -> Option<String> {
        let (plain_s, hoped) = (self.verify_s.expect(0)?, self.hoped()?);
        if !self.knows_second_row {
            None
        } else if !Prospect::is_hopeful(hoped) {
            Some(format!(
                "the draft model is {:.2} of the target's size: even a good one would give {hoped:.2}x the tokens per \
                 second here, so it was not asked to read the text",
                self.prospect.token_share,
            ))
        } else if !self.prospect.is_affordable(plain_s) {
            Some(format!(
                "the draft model would take about {:.1} s to read the text, more than a small part of the time",
                self.prospect.reading_s(),
            ))
        } else {
            None
        }
    }

    /// What was predicted, what was measured, and what follows: for `--explain` and reports.
    pub fn explanation(&self) -> Explanation {
        let (draft_len, rate) = match self.config.mode {
            DraftLen::Fixed(draft_len) => (draft_len, self.rate(draft_len)),
            DraftLen::Auto => self.best_affordable(),
        };
        let lengths: Vec<LengthReport> = self
            .ledger
            .lengths()
            .map(|(length, tried)| LengthReport {
                draft_len: length,
                predicted_s: self.seconds(length),
                predicted_tokens: self.survival.tokens(length),
                experts: self.verify_s.loads(length).0,
                misses: self.verify_s.loads(length).1,
                ..tried
            })
            .collect();
        let plain_known = self.verify_s.is_measured(0);
        let passes: u64 = lengths.iter().map(|length| length.passes).sum();
        let predicted = lengths
            .iter()
            .map(|length| Some(length.passes as f64 * length.predicted_s?))
            .sum::<Option<f64>>();
        let t_ratio = predicted.zip(self.seconds(0)).map(|(sum, plain)| sum / passes as f64 / plain);
        Explanation {
            draft_len,
            reason: self.off_reason().unwrap_or_else(|| self.on_reason(draft_len, rate)),
            terms: self.verify_s.terms(),
            lengths,
            speedup: self.ledger.speedup().filter(|_| plain_known),
            t_ratio: t_ratio.filter(|_| plain_known && passes > 0),
        }
    }

    fn on_reason(&self, draft_len: usize, rate: f64) -> String {
        let plain = self.rate(0);
        match self.config.mode {
            DraftLen::Fixed(_) => format!("the draft length is set to {draft_len}"),
            DraftLen::Auto if self.planned_max == 0 || plain <= 0.0 => "nothing measured yet".into(),
            DraftLen::Auto => format!(
                "a draft of {draft_len} is expected to give {:.2}x the tokens per second of plain passes",
                rate / plain,
            ),
        }
    }

    fn explain(&self) -> Option<String> {
        let draft_len = self.most_promising(|c, k| c.rate(k));
        let (cost, plain) = (self.seconds(draft_len)?, self.seconds(0)?);
        let mut reason = format!(
            "a pass that drafts {draft_len} takes {:.2}x the time of a plain one and yields {:.2}x the tokens, short \
             of a gain of {:.0} %",
            cost / plain,
            self.survival.tokens(draft_len),
            100.0 * GAIN_MIN,
        );
        let (drafted, plain) = (&self.drafted, &self.plain);
        if drafted.misses.value() > 0.0 {
            reason += &format!(
                "; it loads {:.1} experts and waits for them {:.0} % of the time, a plain one {:.1} and {:.0} %",
                drafted.misses.value(),
                100.0 * drafted.stall_share.value(),
                plain.misses.value(),
                100.0 * plain.stall_share.value(),
            );
        }
        Some(reason)
    }

    fn auto(&mut self) -> usize {
        if self.config.draft_len_max == 0 || self.passes < PLAIN_FIRST {
            return 0;
        }
        if let Some(probe) = self.probe {
            return probe.draft_len;
        }
        let (best, reference) = self.best_affordable();
        let Some(draft_len) = self.worth_measuring(best, reference) else {
            return if self.catch_up_pays(best, reference) { best } else { 0 };
        };
        if draft_len > 0 && best == 0 {
            if self.off_patience == STALE_PASSES {
                self.survival.loosen(RETRY_WEIGHT);
                self.calibration.loosen(RETRY_WEIGHT);
            }
            if self.drafted_passes >= FIRST_LOOK_PASSES {
                self.off_patience = (2 * self.off_patience).min(STALE_PASSES);
            }
        }
        let passes_left = if draft_len == 0 { PLAIN_PROBE_LEN } else { PROBE_LEN };
        if draft_len == 0 {
            self.plain_lost_s += self.plain_price(reference);
        }
        self.probe = Some(Probe { draft_len, passes_left });
        draft_len
    }

    /// The plan with the most tokens per second among those tried, and its rate. Off unless drafting
    /// promises [`GAIN_MIN`] in the passes that verify something.
    fn best(&self) -> (usize, f64) {
        let off = (0, self.rate(0));
        let rates = (1..=self.planned_max).map(|draft_len| (draft_len, self.rate(draft_len)));
        let best = rates.fold(off, |best, next| if next.1 > best.1 { next } else { best });
        // A drafter that abstains ties with off, and has to run to find its openings.
        let best = if best.0 == 0 && self.planned_max > 0 { (1, self.rate(1)) } else { best };
        let needed = 1.0 + GAIN_MIN * self.survival.offered(1) - ABSTAIN_LOSS_MAX;
        if best.0 > 0 && best.1 >= off.1 * needed { best } else { off }
    }

    /// The same, but off while drafting has lost more than it may: whatever is predicted, what it cost so
    /// far is known.
    fn best_affordable(&self) -> (usize, f64) {
        if self.account_s < 0.0 { (0, self.rate(0)) } else { self.best() }
    }

    /// A draft length whose measurement is due and can be paid for.
    fn worth_measuring(&self, best: usize, reference: f64) -> Option<usize> {
        if best > 0 && self.plain_is_stale() && self.plain_is_affordable(reference) {
            return Some(0);
        }
        if self.planned_max == 0 {
            return self.first_look();
        }
        let hopeful = self.most_promising(|c, k| c.rate_at_best(k));
        let draft_len = if best == 0 { hopeful } else { (2 * best).min(self.config.draft_len_max) };
        let since = self.passes - self.last_probe;
        let untried = draft_len > self.planned_max && self.rate_at_best(draft_len) > reference;
        let due = untried || since >= if best == 0 { self.off_patience } else { STALE_PASSES };
        (draft_len != best && due && self.price(draft_len, reference) <= self.account_s).then_some(draft_len)
    }

    /// The longer drafting runs, the less often the plain pass it is compared with is measured, from
    /// every 4 to every [`STALE_PASSES`] passes.
    fn plain_is_stale(&self) -> bool {
        let since = self.passes - self.last_plain;
        let drifted = (self.hit_rate - self.hit_rate_plain).abs() > HIT_RATE_DRIFT;
        since >= self.plain_patience || (drifted && since >= EARLY_PASSES)
    }

    /// The first measurement of a drafter, unless it is hopeless or has too much to read. Where reading is
    /// dear, what a second row costs is measured without the drafter first.
    fn first_look(&self) -> Option<usize> {
        let plain_s = self.verify_s.expect(0)?;
        if !self.prospect.reads_much(plain_s) || !self.verify_s.is_measured(1) {
            return Some(1);
        }
        (Prospect::is_hopeful(self.hoped()?) && self.prospect.is_affordable(plain_s)).then_some(1)
    }

    /// Whether the next draft is any token: see [`Plan::is_blank`].
    fn looks_without_drafter(&self) -> bool {
        let plain_s = self.verify_s.expect(0).unwrap_or(0.0);
        self.planned_max == 0 && self.prospect.reads_much(plain_s) && !self.knows_second_row
    }

    fn hoped(&self) -> Option<f64> {
        let plain_s = self.verify_s.expect(0)?;
        let compute_s = plain_s * (1.0 - self.plain.stall_share.value());
        let verify_s = |width| self.verify_s.at_least(width).unwrap_or(plain_s);
        Some(self.prospect.hoped((plain_s, compute_s), self.config.draft_len_max, verify_s))
    }

    fn plain_is_affordable(&self, reference: f64) -> bool {
        let allowed_s = PLAIN_SHARE * self.spent_s + PLAIN_START_PASSES / self.rate(0);
        self.plain_lost_s + self.plain_price(reference) <= allowed_s
    }

    /// Seconds that a measurement of plain passes loses against running at `reference`.
    fn plain_price(&self, reference: f64) -> f64 {
        PLAIN_PROBE_LEN as f64 * (1.0 / self.rate(0) - 1.0 / reference).max(0.0)
    }

    /// The draft length with the best `rate` among 1, 2, 4, ... up to twice the longest tried.
    fn most_promising(&self, rate: impl Fn(&Controller, usize) -> f64) -> usize {
        let max = self.config.draft_len_max.min(2 * self.planned_max);
        let ladder = std::iter::successors(Some(1), |k| Some(2 * k)).take_while(|k| *k < max);
        ladder.chain([max]).map(|k| (k, rate(self, k))).fold((1, 0.0), |a, b| if b.1 > a.1 { b } else { a }).0
    }

    /// Expected seconds of a pass planned with `draft_len`, drafting included.
    fn seconds(&self, draft_len: usize) -> Option<f64> {
        if draft_len == 0 {
            return self.plain_s();
        }
        let verify = self.survival.over_widths(draft_len, |width| self.verify_s.expect(width))?;
        Some(verify + self.drop_s.expect(draft_len) + self.draft_s.expect(draft_len)?)
    }

    /// Expected seconds of a pass of plain decoding. A plain pass amid drafted ones takes longer: drafts have
    /// driven its experts out.
    fn plain_s(&self) -> Option<f64> {
        match self.undrafted.misses() {
            Some(misses) => self.verify_s.expect_meeting(0, misses),
            None => self.verify_s.expect(0),
        }
    }

    /// Expected tokens per second; 0 before anything is measured.
    fn rate(&self, draft_len: usize) -> f64 {
        self.seconds(draft_len).map_or(0.0, |seconds| self.survival.tokens(draft_len) / seconds)
    }

    /// Tokens per second if verifying widths never tried costs no more than the widest one tried.
    fn rate_at_best(&self, draft_len: usize) -> f64 {
        let verify = self.survival.over_widths(draft_len, |width| self.verify_s.at_least(width));
        let seconds = verify.and_then(|verify| Some(verify + self.draft_s.expect(draft_len)?));
        seconds.map_or(0.0, |seconds| self.survival.tokens(draft_len) / seconds)
    }

    /// Seconds that measuring `draft_len` is expected to lose against running at `reference`.
    fn price(&self, draft_len: usize, reference: f64) -> f64 {
        let Some(seconds) = self.seconds(draft_len) else { return f64::INFINITY };
        let at_best = self.survival.tokens(draft_len) / self.rate_at_best(draft_len);
        let pass = (0.5 * (seconds + at_best) - self.survival.tokens(draft_len) / reference).max(0.0);
        PROBE_LEN as f64 * pass + self.catch_up()
    }

    /// Whether what `draft_len` gains over off in the near future is worth reading up on the text.
    fn catch_up_pays(&self, draft_len: usize, rate: f64) -> bool {
        let plain_s = 1.0 / self.rate(0);
        let gain_s = self.survival.tokens(draft_len) * (plain_s - 1.0 / rate);
        self.catch_up() <= PAYBACK_PASSES * gain_s.max(ABSTAIN_LOSS_MAX * plain_s)
    }

    /// Seconds the draft model needs to read what was written without it.
    fn catch_up(&self) -> f64 {
        let unread = (self.passes - self.last_drafted) as f64;
        let guess = || READ_SHARE * self.draft_s.expect(1).unwrap_or(0.0);
        unread * self.catch_up_s.map_or_else(guess, |mean| mean.value())
    }

    /// The prefix that maximises (expected tokens) - (seconds added) x (tokens per second we get anyway).
    fn worth_verifying(&self, draft: &Draft) -> usize {
        let rate = self.best().1;
        let plain = self.verify_s.expect(0).unwrap_or(0.0);
        let (mut stands, mut tokens, mut best) = (1.0, 0.0, (0, 0.0));
        for (i, &confidence) in draft.confidence.iter().enumerate().take(self.planned) {
            stands *= self.calibration.acceptance(draft.source, i, confidence);
            tokens += stands;
            let added = self.verify_s.expect(i + 1).unwrap_or(plain) - plain;
            let gain = tokens - added * rate;
            best = if gain > best.1 { (i + 1, gain) } else { best };
        }
        best.0
    }

    fn learn_costs(&mut self, outcome: &StepOutcome) {
        let follows_draft =
            self.planned == 0 && self.last_drafted + PLAIN_SETTLING >= self.passes && self.last_drafted > 0;
        if follows_draft && self.verify_s.is_measured(0) {
            return;
        }
        self.undrafted.add(outcome);
        self.learn_pass(outcome);
        if outcome.rows_drafted() == 0 {
            self.plain.add(outcome);
        } else {
            self.drafted.add(outcome);
        }
        if self.planned == 0 || self.is_blank {
            return;
        }
        let unread = self.passes - 1 - self.last_drafted;
        if self.reads_text {
            // Reading, mostly: teaches nothing.
        } else if unread == 0 {
            // Drafts of a chain cost next to nothing or a model's time: a dear one is believed up to a pass.
            self.draft_s.add_above(self.planned, outcome.draft_s, self.verify_s.expect(0).unwrap_or(0.0));
        } else {
            let extra = (outcome.draft_s - self.draft_s.expect(self.planned).unwrap_or(0.0)).max(0.0);
            let each = extra / unread as f64;
            self.catch_up_s.get_or_insert(Mean::prior(each, 1.0)).add(each, 4.0);
        }
        self.last_drafted = self.passes;
        self.drafted_passes += 1;
        self.planned_max = self.planned_max.max(self.planned);
    }

    /// A pass that dropped rows is none of any width's: what it took beyond the width it ended with is a cost of
    /// its plan. Widths then cost what passes took that kept their rows, and a plan the mean of both kinds.
    fn learn_pass(&mut self, outcome: &StepOutcome) {
        let stall_s = outcome.stall_s.clamp(0.0, outcome.verify_s);
        let (experts, misses) = (outcome.experts as f64, outcome.misses as f64);
        if outcome.dropped == 0 {
            let (width, seconds) = (outcome.draft_len, outcome.verify_s);
            self.verify_s.add(PassSample { width, seconds, stall_s, experts, misses });
            self.drop_s.add(self.planned, 0.0);
        } else {
            self.verify_s.learn_waiting(stall_s, misses);
            let ended_as = self.verify_s.expect(outcome.draft_len).unwrap_or(outcome.verify_s);
            self.drop_s.add(self.planned, outcome.verify_s - ended_as);
        }
    }

    fn learn_acceptance(&mut self, outcome: &StepOutcome) {
        self.survival.add(self.planned, outcome.draft_len, outcome.accepted);
        for (i, &confidence) in self.kept.iter().enumerate().take(outcome.draft_len.min(outcome.accepted + 1))
        {
            self.calibration.add(self.source, i, confidence, i < outcome.accepted);
        }
    }

    /// Books the pass and ends a measurement that has run its passes.
    fn settle(&mut self, outcome: &StepOutcome) {
        let plain_s = self.plain_s().unwrap_or(outcome.verify_s);
        let spent = outcome.draft_s + outcome.verify_s;
        let as_plain = if self.planned == 0 { spent } else { (1 + outcome.accepted) as f64 * plain_s };
        self.ledger.book(self.planned, 1 + outcome.accepted, spent, as_plain);
        if self.passes == PLAIN_FIRST {
            self.account_s = ACCOUNT_START_PASSES * plain_s;
        }
        self.spent_s += spent;
        self.prospect.unread_compute_s += (outcome.verify_s - outcome.stall_s).max(0.0);
        let share = if self.passes < LOSS_EARLY_PASSES { LOSS_SHARE_EARLY } else { LOSS_SHARE };
        self.account_s += share * spent;
        if self.planned > 0 {
            self.account_s += as_plain - self.charged(outcome);
            self.last_probe = if self.probe.is_some() { self.passes } else { self.last_probe };
        }
        self.account_s = self.account_s.min(ACCOUNT_MAX_PASSES * plain_s);
        if outcome.rows_drafted() == 0 {
            self.last_plain = self.passes;
            self.hit_rate_plain = self.hit_rate;
        }
        let Some(probe) = &mut self.probe else { return };
        probe.passes_left -= 1;
        if probe.passes_left == 0 {
            if probe.draft_len == 0 {
                self.plain_patience = (2 * self.plain_patience).min(STALE_PASSES);
            }
            self.probe = None;
            self.knows_second_row |= self.is_blank;
        }
    }

    /// What a drafted pass costs the account. One that stalled counts a few times what is expected, and what
    /// the drafter needs to read a new text counts not at all: neither says what drafting costs.
    fn charged(&self, outcome: &StepOutcome) -> f64 {
        let expected = self.seconds(self.planned).unwrap_or(f64::INFINITY);
        let expected = expected.max(self.verify_s.expect(0).unwrap_or(0.0) + outcome.draft_s);
        let drafting = if self.reads_text { 0.0 } else { outcome.draft_s };
        (outcome.verify_s + drafting).min(CHARGE_MAX * expected)
    }
}

impl StepOutcome {
    /// Drafted tokens that the pass began with.
    fn rows_drafted(&self) -> usize {
        self.draft_len + self.dropped
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
