//! Whether experts are read ahead of the router's word, and how far down its guesses.
//!
//! Owns [`PrefetchController`] (ALGORITHMS.md H.3, point 4). Prefetch stays on while what it reads is
//! used, the disk would idle otherwise, and blocks of steps with it are faster than blocks without,
//! taken in turn. Comparing is paid from an account that grows by a small share of the steps, which
//! bounds what it can lose. It must not know clocks, caches or experts: the engine counts and reports
//! decode steps. A prefill asks nobody: it is run with [`PrefetchPlan::OFF`].

use crate::estimate::{CostCurve, Mean};
use crate::paired::{BLOCK_STEPS, Block, Gain, Pairs};
use crate::{DRAFT_LEN_LIMIT, PrefetchMode};

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
/// Standard errors by which the gain must exceed [`GAIN_MIN`] to turn prefetch on, to keep it on, and
/// by which it must fall short to turn it off.
const ON_Z: f64 = 2.5;
const KEEP_Z: f64 = 1.0;
const OFF_Z: f64 = 1.0;
/// Pairs of blocks after which a gain that is not plain counts as none.
const PAIRS_MAX: usize = 8;
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
/// The account for losing steps to comparisons, in steps: at the start, for each step, and at most.
const ACCOUNT_START: f64 = 8.0;
const ACCOUNT_SHARE: f64 = 0.005;
const ACCOUNT_MAX: f64 = 16.0;
/// Steps that a mean remembers.
const MEMORY: f64 = 64.0;

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
    trial: Option<Trial>,
    off_block: Block,
    on_block: Block,
    verdict: Option<Verdict>,
    step_s: CostCurve,
    /// The costs when the last comparison ended, and how the present ones relate to them.
    settled_s: Option<CostCurve>,
    drift: Mean,
    /// Experts a step that were not in memory, or are there because of prefetch.
    wanted: Mean,
    /// Of steps without prefetch: idle share of the disk.
    idle: Mean,
    issued: f64, // both fade
    used: f64,
    precision: [Mean; PREFETCH_RANKS_MAX],
}

/// A comparison under way.
#[derive(Clone, Debug)]
struct Trial {
    /// What the present block does.
    on: bool,
    /// Whether it is the second of its pair.
    is_second: bool,
    pairs: Pairs,
}

/// Why prefetch is off.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    NothingMisses,
    DiskBusy { idle: f64 },
    Unused { used: f64 },
    NoGain { gain: Gain, steps: usize },
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
            off_block: Block::default(),
            on_block: Block::default(),
            verdict: None,
            step_s: CostCurve::new(DRAFT_LEN_LIMIT + 1),
            settled_s: None,
            drift: Mean::prior(1.0, 1.0),
            wanted: unknown,
            idle: unknown,
            issued: 0.0,
            used: 0.0,
            precision: [Mean::prior(1.0, 1.0); PREFETCH_RANKS_MAX],
        }
    }

    /// The plan for the next decode step.
    pub fn plan(&self) -> PrefetchPlan {
        if self.enabled() { PrefetchPlan { enabled: true, ranks: self.ranks() } } else { PrefetchPlan::OFF }
    }

    fn enabled(&self) -> bool {
        match self.mode {
            PrefetchMode::On => true,
            PrefetchMode::Off => false,
            PrefetchMode::Auto => self.trial.as_ref().map_or(self.on, |trial| trial.on),
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
            self.learn(outcome);
            if self.mode == PrefetchMode::Auto {
                self.decide(outcome);
            }
        }
    }

    fn learn(&mut self, outcome: &PrefetchOutcome) {
        let rows = outcome.rows.min(DRAFT_LEN_LIMIT + 1);
        self.step_s.add(rows, outcome.seconds);
        if let Some(expected) = self.settled_s.as_ref().and_then(|settled| settled.expect(rows)) {
            self.drift.add((outcome.seconds / expected).min(2.0), BLOCK_STEPS as f64);
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

    fn decide(&mut self, outcome: &PrefetchOutcome) {
        self.since += 1;
        let last_rows = std::mem::replace(&mut self.last_rows, outcome.rows);
        self.account = (self.account + ACCOUNT_SHARE).min(ACCOUNT_MAX);
        let senseless = if self.trial.is_some() || self.on { self.senseless() } else { None };
        if senseless.is_some() {
            self.settle(false, senseless);
        } else if self.trial.is_some() {
            // A plain step behind a drafted one, or the other way round, pays for what the other left behind.
            if (outcome.rows > 1) != (last_rows > 1) {
                return;
            }
            self.advance(outcome.rows.min(DRAFT_LEN_LIMIT + 1), outcome.seconds);
        } else if self.is_due() {
            self.begin();
        }
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
        (idle < IDLE_MIN && !self.enabled()).then_some(Verdict::DiskBusy { idle })
    }

    /// Whether it is time for a comparison, and it can be paid for and makes sense.
    fn is_due(&mut self) -> bool {
        let drifted = self.since >= GAP_DRIFT && (self.drift.value() - 1.0).abs() > DRIFT;
        if self.account <= 0.0 || (self.since < self.gap && !drifted) {
            return false;
        }
        let senseless = self.senseless();
        self.verdict = senseless.or(self.verdict);
        senseless.is_none()
    }

    /// Starts a comparison with a block of what is in use: that costs nothing.
    fn begin(&mut self) {
        self.trial = Some(Trial { on: self.on, is_second: false, pairs: Pairs::default() });
        self.off_block.clear();
        self.on_block.clear();
        if !self.on {
            (self.issued, self.used) = (0.0, 0.0);
        }
    }

    fn advance(&mut self, rows: usize, seconds: f64) {
        let Some(trial) = &mut self.trial else { return };
        let block = if trial.on { &mut self.on_block } else { &mut self.off_block };
        block.push(rows, seconds);
        if let Some(gain) = Gain::early(&self.off_block, &self.on_block, &self.step_s, GAIN_MIN) {
            self.charge(gain);
            let steps = self.on_block.len();
            self.settle(gain.mean > GAIN_MIN, Some(Verdict::NoGain { gain, steps }));
        } else if block_is_full(trial, &self.off_block, &self.on_block) {
            self.next_block();
        }
    }

    /// Pairs go there and back again (off on, on off), so that a steady trend favours neither.
    fn next_block(&mut self) {
        let Some(trial) = &mut self.trial else { return };
        if !trial.is_second {
            (trial.on, trial.is_second) = (!trial.on, true);
        } else if let Some(gain) = Gain::of(&self.off_block, &self.on_block, &self.step_s) {
            trial.is_second = false;
            trial.pairs.push(gain);
            let (all, pairs) = (trial.pairs.gain().unwrap_or(gain), trial.pairs.len());
            self.charge(gain);
            if let Some(on) = self.judge(all, pairs) {
                self.settle(on, Some(Verdict::NoGain { gain: all, steps: pairs * BLOCK_STEPS }));
                return;
            }
        }
        let is_on = self.enabled();
        if is_on { self.on_block.clear() } else { self.off_block.clear() }
    }

    /// On or off, once the pairs suffice to say.
    fn judge(&self, gain: Gain, pairs: usize) -> Option<bool> {
        let on_z = if self.on { KEEP_Z } else { ON_Z };
        if gain.mean - on_z * gain.error >= GAIN_MIN {
            return Some(true);
        }
        let is_off = gain.mean + OFF_Z * gain.error < GAIN_MIN || pairs >= PAIRS_MAX || self.account <= 0.0;
        is_off.then_some(false)
    }

    /// Books what the slower block of a pair lost against what was in use.
    fn charge(&mut self, gain: Gain) {
        let (lost, block) = if self.on { (gain.mean, &self.off_block) } else { (-gain.mean, &self.on_block) };
        self.account -= lost.max(0.0) * block.len() as f64;
    }

    /// Ends a comparison. The longer its outcome stands, the rarer the next.
    fn settle(&mut self, on: bool, verdict: Option<Verdict>) {
        let doubled = (2 * self.gap).clamp(GAP_MIN, GAP_MAX);
        self.gap = if on == self.on { doubled } else { GAP_MIN };
        self.on = on;
        self.verdict = verdict;
        self.trial = None;
        self.since = 0;
        self.settled_s = Some(self.step_s.clone());
        self.drift = Mean::prior(1.0, BLOCK_STEPS as f64);
    }

    /// One line on why prefetch is off at the moment; `None` while it is on or still being measured.
    pub fn off_reason(&self) -> Option<String> {
        match self.mode {
            PrefetchMode::Off => Some("prefetch is set to off".to_owned()),
            PrefetchMode::On => None,
            PrefetchMode::Auto if self.on => None,
            PrefetchMode::Auto => self.verdict.map(|verdict| verdict.to_string()),
        }
    }
}

fn block_is_full(trial: &Trial, off: &Block, on: &Block) -> bool {
    (if trial.on { on } else { off }).len() >= BLOCK_STEPS
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
            Verdict::NoGain { gain, steps } => {
                let (mean, error, least) = (100.0 * gain.mean, 100.0 * gain.error, 100.0 * GAIN_MIN);
                write!(
                    f,
                    "{steps} steps with prefetch gained {mean:+.1} % +- {error:.1} over steps without, "
                )?;
                write!(f, "not surely {least:.0} %")
            }
        }
    }
}
