//! Whether experts are read ahead of the router's word, and how far down its guesses.
//!
//! Owns [`PrefetchController`] (ALGORITHMS.md H.3, point 4). Prefetch stays on while what it reads is
//! used, the disk would idle otherwise, and steps with it are faster than steps without, taken in turn. They are
//! compared for as long as knowing more is worth what it costs, and that is paid from an account that grows by a small
//! share of the steps, which bounds what it can lose. It must not know clocks, caches or experts: the engine counts and reports
//! decode steps. A prefill asks nobody: it is run with [`PrefetchPlan::OFF`].

use crate::estimate::{CostCurve, Mean};
use crate::normal::expected_above;
use crate::paired::{Comparison, Gain};
use crate::{DRAFT_LEN_LIMIT, PrefetchMode, SchedulerError};

/// Predicted experts of a layer, best first, whose fate is told apart; none beyond is asked for.
pub const PREFETCH_RANKS_MAX: usize = 8;

/// Share of what is read ahead that must be used.
const USED_MIN: f64 = 0.6;
/// Experts read ahead before that share is believed.
const ISSUED_MIN: f64 = 48.0;
/// Share of the time that the disk must be idle without prefetch.
const IDLE_MIN: f64 = 0.10;
/// Gain in tokens per second that prefetch must show.
const GAIN_MIN: f64 = 0.01;
/// How many times its price going on with a comparison must promise, by what would be run until the next one.
const WORTH: f64 = 1.0;
/// Units of a comparison, of four steps each: the least, as long as it can be paid for, and the most.
const UNITS_MIN: usize = 2;
const UNITS_MAX: usize = 32;
/// Steps that do not count, as they follow others of another kind, after which a comparison ends with what it has.
const SKIPPED_MAX: usize = 64;
/// By how much a gain may have changed until another run, until the next comparison, and where steps have.
const DOUBT_RECALLED: f64 = 0.02;
const DOUBT_AGED: f64 = 0.1;
const DOUBT_DRIFTED: f64 = 0.3;
/// Errors by which what was found before (by another run, too) and what is found now may differ before only this counts.
const AGREE_Z: f64 = 2.5;
/// What a gain and its error can be at most.
const GAIN_LIMIT: f64 = 100.0;
/// Steps without prefetch before the disk's idle time is believed.
const IDLE_STEPS: f64 = 4.0;
/// Experts missing in a step below which there is nothing to read ahead.
const WANTED_MIN: f64 = 0.05;
/// Steps before the first comparison: the cache fills.
const WARM_UP: u64 = 8;
/// Steps from one comparison to the next: the least, the most, and after a change of the text.
const GAP_MIN: u64 = 256;
const GAP_MAX: u64 = 4096;
const GAP_DRIFT: u64 = 64;
/// A change of the time of a step that counts as a change of the text.
const DRIFT: f64 = 0.15;
/// Steps after a comparison that say what steps usually take now: before, both ways were mixed.
const SETTLING: u64 = 16;
/// The account for losing steps to comparisons, in steps: at the start, for each step, and at most.
const ACCOUNT_START: f64 = 8.0;
const ACCOUNT_SHARE: f64 = 0.005;
const ACCOUNT_MAX: f64 = 16.0;
/// What it owes at most: one comparison that went wrong does not end all others.
const ACCOUNT_MIN: f64 = -8.0;
/// Steps that a mean remembers, and that of how steps compare with those of the last comparison.
const MEMORY: f64 = 64.0;
const DRIFT_MEMORY: f64 = 32.0;

/// What to read ahead in the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefetchPlan {
    /// Whether to predict experts at all.
    pub enabled: bool,
    /// Of a layer's predicted experts, ordered by router probability, the first this many are worth
    /// asking for where they are not in memory.
    pub ranks: usize,
}

impl PrefetchPlan {
    /// Nothing; also the plan of every prefill pass.
    pub const OFF: PrefetchPlan = PrefetchPlan { enabled: false, ranks: 0 };
}

/// How often the predicted expert of one rank was predicted, and chosen by the router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankOutcome {
    /// Predictions, whether they were asked for or in memory anyway.
    pub predicted: u64,
    /// Of these, right ones.
    pub right: u64,
}

/// What one decode step took and gave, measured by the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PrefetchOutcome {
    /// Rows of the pass: 1 and the drafted tokens.
    pub rows: usize,
    /// Seconds of the pass.
    pub seconds: f64,
    /// Of these, seconds with at least one read under way (not the sum over reads that overlap).
    pub io_busy_s: f64,
    /// Experts that were not in memory when demanded.
    pub misses: u64,
    /// Experts asked for ahead.
    pub issued: u64,
    /// Experts demanded that had been asked for ahead.
    pub used: u64,
    /// By rank of the prediction.
    pub by_rank: [RankOutcome; PREFETCH_RANKS_MAX],
}

/// What prefetch was found to gain, for another run of the same model and machine, as data (serde).
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefetchLessons {
    /// Tokens per second with it over those without, less 1.
    gain: f64,
    /// Standard error of that ratio, in parts of it.
    error: f64,
}

impl PrefetchLessons {
    /// Checks what was read from somewhere.
    ///
    /// # Errors
    /// [`SchedulerError::Lessons`] with what no controller writes.
    pub fn validate(&self) -> Result<(), SchedulerError> {
        let is_gain = self.gain > -1.0 && self.gain <= GAIN_LIMIT;
        if is_gain && self.error > 0.0 && self.error <= GAIN_LIMIT {
            return Ok(());
        }
        let what = format!("reading ahead that gains {} with an error of {}", self.gain, self.error);
        Err(SchedulerError::Lessons { what })
    }
}

/// Decides whether to prefetch. One per loaded model.
#[derive(Clone, Debug)]
pub struct PrefetchController {
    mode: PrefetchMode,
    /// In use while nothing is being compared.
    on: bool,
    /// Steps since the last comparison.
    since: u64,
    /// Rows of the last step.
    last_rows: usize,
    gap: u64,
    account: f64,
    trial: Option<Comparison>,
    /// Of it: steps that did not count, and steps run the other way than `on` that are not yet charged.
    skipped: usize,
    uncharged: usize,
    /// What earlier comparisons found, as far as that still holds.
    known: Option<Gain>,
    /// What another run handed on, as long as that is all there is to it.
    recalled: Option<PrefetchLessons>,
    verdict: Option<Verdict>,
    step_s: CostCurve,
    /// The costs shortly after the last comparison ended, and how the present ones relate to them.
    settled_s: CostCurve,
    drift: Mean,
    /// Experts a step that were not in memory, or are there because of prefetch.
    wanted: Mean,
    /// Of steps without prefetch: idle share of the disk.
    idle: Mean,
    issued: f64, // both fade
    used: f64,
    precision: [Mean; PREFETCH_RANKS_MAX],
}

/// Why prefetch is off.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    NothingMisses,
    DiskBusy {
        idle: f64,
    },
    Unused {
        used: f64,
    },
    /// As far as `steps` tell, and those of comparisons before them (`and_earlier`).
    NoGain {
        gain: Gain,
        steps: usize,
        and_earlier: bool,
    },
}

impl PrefetchController {
    /// A controller that has measured nothing.
    pub fn new(mode: PrefetchMode) -> PrefetchController {
        let unknown = Mean::prior(0.0, 0.0);
        PrefetchController {
            mode,
            on: true, // most disks have time: read ahead until a comparison says otherwise
            since: 0,
            last_rows: 0,
            gap: WARM_UP,
            account: ACCOUNT_START,
            trial: None,
            skipped: 0,
            uncharged: 0,
            known: None,
            recalled: None,
            verdict: None,
            step_s: CostCurve::new(DRAFT_LEN_LIMIT + 1),
            settled_s: CostCurve::new(DRAFT_LEN_LIMIT + 1),
            drift: Mean::prior(1.0, 1.0),
            wanted: unknown,
            idle: unknown,
            issued: 0.0,
            used: 0.0,
            precision: [Mean::prior(1.0, 1.0); PREFETCH_RANKS_MAX],
        }
    }

    /// What holds for another run of the same model and machine; `None` before anything was compared, and where the mode
    /// leaves nothing to find out.
    pub fn lessons(&self) -> Option<PrefetchLessons> {
        let measured = self.trial.as_ref().and_then(Comparison::gain);
        let lessons = match (measured.map(|gain| self.believed(gain).0), self.recalled, self.known) {
            (None, Some(recalled), _) => recalled,
            (Some(gain), _, _) | (None, None, Some(gain)) => {
                PrefetchLessons { gain: gain.share(), error: gain.error() }
            }
            (None, None, None) => return None,
        };
        (self.mode == PrefetchMode::Auto && lessons.validate().is_ok()).then_some(lessons)
    }

    /// Begins with the lessons of an earlier run, which have passed [`PrefetchLessons::validate`]: on, as without them,
    /// unless it was found not to pay. A few steps are compared all the same: the disk may be another.
    pub fn recall(&mut self, lessons: PrefetchLessons) {
        let gain = Gain::new(lessons.gain, lessons.error);
        self.known = Some(gain.doubted(DOUBT_RECALLED));
        self.recalled = Some(lessons);
        self.on = gain.share() > GAIN_MIN;
        self.verdict = Some(Verdict::NoGain { gain, steps: 0, and_earlier: true });
    }

    /// The plan for the next decode step.
    pub fn plan(&self) -> PrefetchPlan {
        if self.enabled() { PrefetchPlan { enabled: true, ranks: self.ranks() } } else { PrefetchPlan::OFF }
    }

    fn enabled(&self) -> bool {
        match self.mode {
            PrefetchMode::On => true,
            PrefetchMode::Off => false,
            PrefetchMode::Auto => self.trial.as_ref().map_or(self.on, Comparison::is_on),
        }
    }

    /// Ranks before the first that is wrong too often. There is no limit by the disk's idle time: the
    /// likeliest experts are mostly in memory already, so it is lower ranks that are read, and a read
    /// whose turn does not come before its layer's is called off (eval/LOG.md has the measurement).
    fn ranks(&self) -> usize {
        self.precision.iter().take_while(|precision| precision.value() >= USED_MIN).count().max(1)
    }

    /// Learns from the decode step that the last plan led to. Times that cannot be teach nothing.
    pub fn observe(&mut self, outcome: &PrefetchOutcome) {
        let valid = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
        if self.mode == PrefetchMode::Off || !valid(outcome.seconds) || !valid(outcome.io_busy_s) {
            return;
        }
        if outcome.seconds > 0.0 && outcome.rows > 0 {
            let expected_s = self.step_s.expect(outcome.rows.min(DRAFT_LEN_LIMIT + 1));
            self.learn(outcome);
            if self.mode == PrefetchMode::Auto {
                self.decide(outcome, expected_s);
            }
        }
    }

    fn learn(&mut self, outcome: &PrefetchOutcome) {
        let rows = outcome.rows.min(DRAFT_LEN_LIMIT + 1);
        self.step_s.add(rows, outcome.seconds);
        if self.trial.is_none() && self.since < SETTLING {
            self.settled_s.add(rows, outcome.seconds);
        } else if let Some(expected) = self.settled_s.expect(rows) {
            self.drift.add((outcome.seconds / expected).min(2.0), DRIFT_MEMORY);
        }
        self.wanted.add((outcome.misses + outcome.used) as f64, MEMORY);
        if !self.enabled() {
            let idle_s = (outcome.seconds - outcome.io_busy_s).max(0.0);
            self.idle.add(idle_s / outcome.seconds, MEMORY);
        }
        let fade = 1.0 - 1.0 / MEMORY;
        self.issued = fade * self.issued + outcome.issued as f64;
        self.used = fade * self.used + outcome.used as f64;
        for (mean, rank) in self.precision.iter_mut().zip(&outcome.by_rank) {
            if rank.predicted > 0 {
                mean.add((rank.right as f64 / rank.predicted as f64).min(1.0), MEMORY);
            }
        }
    }

    /// `expected_s` is what a step of as many rows was expected to take before this one.
    fn decide(&mut self, outcome: &PrefetchOutcome, expected_s: Option<f64>) {
        self.since += 1;
        let last_rows = std::mem::replace(&mut self.last_rows, outcome.rows);
        self.account = (self.account + ACCOUNT_SHARE).min(ACCOUNT_MAX);
        let senseless = if self.trial.is_some() || self.on { self.senseless() } else { None };
        if senseless.is_some() {
            self.settle(false, senseless);
        } else if self.trial.is_some() {
            self.uncharged += usize::from(self.enabled() != self.on);
            // A plain step behind a drafted one, or the other way round, pays for what the other left behind.
            let is_like = (outcome.rows > 1) == (last_rows > 1);
            self.advance(expected_s.filter(|_| is_like).map(|expected_s| outcome.seconds / expected_s));
        } else if let Some(has_drifted) = self.is_due() {
            self.begin(has_drifted);
        }
    }

    /// What a comparison found, with what those before it did, as long as that may be one thing; and whether it is.
    fn believed(&self, measured: Gain) -> (Gain, bool) {
        let known = self.known.filter(|known| known.agrees(measured, AGREE_Z));
        (known.map_or(measured, |known| known.and(measured)), known.is_some())
    }

    /// A reason to stop, or not to begin, that needs no comparison.
    fn senseless(&self) -> Option<Verdict> {
        let used = self.used / self.issued.max(1.0);
        if self.issued >= ISSUED_MIN && used < USED_MIN && self.enabled() {
            return Some(Verdict::Unused { used });
        }
        if self.wanted.value() < WANTED_MIN {
            return Some(Verdict::NothingMisses);
        }
        let idle = self.idle.value();
        let is_known = self.idle.weight() >= IDLE_STEPS && !self.enabled();
        (is_known && idle < IDLE_MIN).then_some(Verdict::DiskBusy { idle })
    }

    /// Whether the text has changed, if it is time for a comparison, which can be paid for and makes sense.
    fn is_due(&mut self) -> Option<bool> {
        let has_drifted = self.since >= GAP_DRIFT && (self.drift.value() - 1.0).abs() > DRIFT;
        if self.account <= 0.0 || (self.since < self.gap && !has_drifted) {
            return None;
        }
        let senseless = self.senseless();
        self.verdict = senseless.or(self.verdict);
        senseless.is_none().then_some(has_drifted)
    }

    /// Starts a comparison, unless what this run knows makes none worth it.
    fn begin(&mut self, has_drifted: bool) {
        if self.recalled.is_none() {
            let doubt = if has_drifted { DOUBT_DRIFTED } else { DOUBT_AGED };
            self.known = self.known.map(|known| known.doubted(doubt));
            if let Some(known) = self.known.filter(|known| !self.is_worth_comparing(*known)) {
                let verdict = Verdict::NoGain { gain: known, steps: 0, and_earlier: true };
                self.settle(self.is_better_on(known), Some(verdict));
                return;
            }
        }
        self.trial = Some(Comparison::new(self.on));
        (self.skipped, self.uncharged) = (0, 0);
        if !self.on {
            (self.issued, self.used) = (0.0, 0.0);
        }
    }

    /// Takes in a step of a comparison, by what it took of what was expected; `None` for one that does not count.
    fn advance(&mut self, relative: Option<f64>) {
        let Some(trial) = &mut self.trial else { return };
        let is_complete = relative.is_some_and(|relative| trial.push(relative));
        self.skipped += usize::from(relative.is_none());
        let is_stuck = self.skipped >= SKIPPED_MAX;
        if !is_complete && !is_stuck {
            return;
        }
        let (units, steps) = (trial.units(), trial.steps_on());
        let Some(measured) = trial.gain().filter(|_| units >= UNITS_MIN || !is_stuck) else {
            self.settle(self.on, self.verdict);
            return;
        };
        let (gain, and_earlier) = self.believed(measured);
        self.charge(gain);
        let is_worth = units < UNITS_MIN || (units < UNITS_MAX && self.is_worth_comparing(gain));
        if self.account <= 0.0 || !is_worth || is_stuck {
            let verdict = Verdict::NoGain { gain, steps, and_earlier };
            self.settle(self.is_better_on(gain), Some(verdict));
        }
    }

    /// Books what the steps lost that were run the other way, if that is the slower one.
    fn charge(&mut self, gain: Gain) {
        let slower = if self.on { gain.share() } else { gain.reverse() };
        let lost = slower.max(0.0) * std::mem::take(&mut self.uncharged) as f64;
        self.account = (self.account - lost).max(ACCOUNT_MIN);
    }

    /// Whether to run with prefetch. What gains as good as nothing is not turned on for a guess.
    fn is_better_on(&self, gain: Gain) -> bool {
        let doubt = if self.on { 0.0 } else { gain.error() };
        gain.above(GAIN_MIN) > doubt
    }

    /// Whether comparing (on) is worth it: what it may show of the way that seems worse, for as long as nothing will be
    /// compared again, against running that way in half of the steps.
    fn is_worth_comparing(&self, gain: Gain) -> bool {
        let ahead = gain.above(GAIN_MIN).abs();
        let promise = self.gap_after(true) as f64 * expected_above(-ahead, gain.error(), 0.0);
        promise > WORTH * ahead * Comparison::EACH_WAY as f64
    }

    /// Steps to the next comparison after one that confirms what is in use, or does not.
    fn gap_after(&self, is_confirmed: bool) -> u64 {
        if is_confirmed { (2 * self.gap).clamp(GAP_MIN, GAP_MAX) } else { GAP_MIN }
    }

    /// Ends a comparison, with what it has measured. The longer its outcome stands, the rarer the next.
    fn settle(&mut self, on: bool, verdict: Option<Verdict>) {
        let measured = self.trial.take().and_then(|trial| trial.gain());
        if let Some(measured) = measured {
            let (gain, _) = self.believed(measured);
            (self.known, self.recalled) = (Some(gain), None);
        }
        self.known.into_iter().for_each(|known| self.charge(known));
        self.gap = self.gap_after(on == self.on);
        self.on = on;
        self.verdict = verdict;
        self.since = 0;
        self.settled_s = CostCurve::new(DRAFT_LEN_LIMIT + 1);
        self.drift = Mean::prior(1.0, DRIFT_MEMORY);
    }

    /// One line on why prefetch is off, but for steps that are compared; `None` while it is on.
    pub fn off_reason(&self) -> Option<String> {
        match self.mode {
            PrefetchMode::Off => Some("prefetch is set to off".to_owned()),
            PrefetchMode::On => None,
            PrefetchMode::Auto if self.on => None,
            PrefetchMode::Auto => self.verdict.map(|verdict| verdict.to_string()),
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Verdict::NothingMisses => f.write_str("every expert is in memory when it is wanted"),
            Verdict::DiskBusy { idle } => {
                let (idle, least) = (100.0 * idle, 100.0 * IDLE_MIN);
                write!(f, "the disk is idle {idle:.0} % of the time, short of {least:.0} %")
            }
            Verdict::Unused { used } => {
                let (used, least) = (100.0 * used, 100.0 * USED_MIN);
                write!(f, "{used:.0} % of what was read ahead was used, short of {least:.0} %")
            }
            Verdict::NoGain { gain, steps, and_earlier } => {
                let (share, error) = (gain.share(), (1.0 + gain.share()) * gain.error());
                let (share, error, least) = (100.0 * share, 100.0 * error, 100.0 * GAIN_MIN);
                match (steps, and_earlier) {
                    (0, _) => f.write_str("earlier steps")?,
                    (_, true) => write!(f, "{steps} steps and earlier ones")?,
                    (_, false) => write!(f, "{steps} steps")?,
                }
                write!(
                    f,
                    " with prefetch gained {share:+.1} % +- {error:.1} over steps without, not surely {least:.0} %"
                )
            }
        }
    }
}
