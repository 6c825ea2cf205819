//! Which length is planned next: the best one known, or one whose measurement is due and can be paid for.
//!
//! Owns the order in which lengths are tried and what a try may cost. Costs and acceptance are what the
//! controller has learnt; it must not change them.

use drafthorse_draft::Draft;

use super::{Controller, EARLY_PASSES, GAIN_MIN, Probe, STALE_PASSES};
use crate::prospect::Prospect;

/// Passes in one measurement of plain decoding, those that settle included.
const PLAIN_PROBE_LEN: usize = 3;
/// Share of the time spent that measuring plain passes again may lose while drafting pays, and what it may
/// lose at the start, in the time of plain passes: a comparison that is won by far needs no sharp figure.
const PLAIN_SHARE: f64 = 0.01;
const PLAIN_START_PASSES: f64 = 0.5;
/// Plain passes before the first measurement.
pub(super) const PLAIN_FIRST: u64 = 3;
/// Of these, passes that do not count: the first finds caches, pages and threads cold, and a plain pass that
/// seems dear makes drafting seem cheap.
pub(super) const PLAIN_COLD: u64 = 1;
/// Passes in which drafting must earn back what reading up on the text costs.
const PAYBACK_PASSES: f64 = 16.0;
/// Before it is measured: the time in which a draft model reads one token, in drafted tokens.
const READ_SHARE: f64 = 0.15;
/// Passes between measurements of lengths that were tried: they take drafts whole that would have been cut.
/// Those that ran less often than this need not wait.
const AGAIN_PASSES: u64 = 16;
const FEW: u32 = 4;
/// While nothing is drafted they wait a few passes.
const OFF_PASSES: u64 = 8;
/// What longer drafts must promise at best to be tried where shorter ones lose, and passes before that.
const LONGER_GAIN: f64 = 0.25;
const LONGER_PASSES: u64 = 4;
/// A hit rate that moved this much since the last plain pass makes its cost stale early.
const HIT_RATE_DRIFT: f64 = 0.05;
/// Passes from one plain pass to the next in which it counts: a cold cache's hit rate moves all the time.
const DRIFT_PASSES: u64 = 16;
/// And a comparison less sure than this: what drafting gains is to be known to a few per cent.
const PLAIN_ERROR: f64 = 0.06;
/// Loss it may make in passes in which the drafter abstains.
const ABSTAIN_LOSS_MAX: f64 = 0.005;
/// How many samples the past is worth when drafting is measured again after having been off.
const RETRY_WEIGHT: f64 = 8.0;

impl Controller {
    pub(super) fn auto(&mut self) -> usize {
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
        let passes_left = self.probe_passes(draft_len);
        if draft_len == 0 {
            self.plain_lost_s += self.plain_price(reference);
        }
        self.probe = Some(Probe { draft_len, passes_left });
        draft_len
    }

    /// Passes in one measurement. A drafter that has to read first says nothing in its first.
    fn probe_passes(&self, draft_len: usize) -> usize {
        match draft_len {
            0 => PLAIN_PROBE_LEN,
            _ if self.passes == self.last_drafted && !self.reads_text => 1,
            _ => 2,
        }
    }

    /// The plan with the most tokens per second among those tried, and its rate. Off unless drafting
    /// promises [`GAIN_MIN`] in the passes that verify something.
    pub(super) fn best(&self) -> (usize, f64) {
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
    pub(super) fn best_affordable(&self) -> (usize, f64) {
        if self.account_s < 0.0 { (0, self.rate(0)) } else { self.best() }
    }

    /// A draft length whose measurement is worth its price and can be paid for.
    fn worth_measuring(&self, best: usize, reference: f64) -> Option<usize> {
        if best > 0 && self.plain_is_due(best) && self.plain_is_affordable(reference) {
            return Some(0);
        }
        if self.planned_max == 0 {
            return self.first_look();
        }
        if best == 0 && self.passes - self.last_drafted.max(self.last_probe) >= STALE_PASSES {
            return Some(self.most_promising(|c, k| c.rate_at_best(k))).filter(|k| self.is_affordable(*k, reference));
        }
        if best == 0 && self.longer_may_pay(reference) {
            return Some(2 * self.planned_max).filter(|k| self.is_affordable(*k, reference));
        }
        let since = self.passes - self.last_probe;
        let is_due =
            |k: usize| since >= AGAIN_PASSES || (self.verify_s.samples(k) < FEW && (best > 0 || since >= OFF_PASSES));
        let others = self.ladder().filter(|k| *k != best && is_due(*k) && self.is_affordable(*k, reference));
        let candidates = others.filter_map(|k| self.candidate(k, best, self.probe_passes(k)));
        candidates.max_by(|a, b| a.value_s.total_cmp(&b.value_s)).map(|candidate| candidate.draft_len)
    }

    /// Whether drafts longer than any tried would pay by far if they cost no more: where only the first drafted
    /// token is dear, short drafts do not tell.
    fn longer_may_pay(&self, reference: f64) -> bool {
        let next = 2 * self.planned_max;
        let longer = (next..=self.config.draft_len_max).map(|k| self.rate_at_best(k)).fold(0.0, f64::max);
        longer >= (1.0 + LONGER_GAIN) * reference && self.passes - self.last_probe >= LONGER_PASSES
    }

    /// Whether the account holds what the measurement is expected to lose, and what a pass loses of which no more than
    /// of a draft of one stands.
    fn is_affordable(&self, draft_len: usize, reference: f64) -> bool {
        let Some((seconds, plain_s)) = self.seconds(draft_len).zip(self.plain_s()) else { return false };
        self.price(draft_len, reference).max(seconds - plain_s * self.survival.tokens(1)) <= self.account_s
    }

    /// Whether plain passes may be better than they seem, or were run too long ago to tell.
    fn plain_is_due(&self, best: usize) -> bool {
        let since = self.passes - self.last_plain;
        let drifted = (self.hit_rate - self.hit_rate_plain).abs() > HIT_RATE_DRIFT;
        since >= STALE_PASSES
            || (since >= DRIFT_PASSES && (drifted || self.verify_s.error(0, best) > PLAIN_ERROR))
            || (since >= EARLY_PASSES
                && self.verify_s.is_measured(best)
                && self.candidate(0, best, PLAIN_PROBE_LEN).is_some())
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
    pub(super) fn looks_without_drafter(&self) -> bool {
        let plain_s = self.verify_s.expect(0).unwrap_or(0.0);
        self.planned_max == 0 && self.prospect.reads_much(plain_s) && !self.knows_second_row
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
    pub(super) fn most_promising(&self, rate: impl Fn(&Controller, usize) -> f64) -> usize {
        self.ladder().map(|k| (k, rate(self, k))).fold((1, 0.0), |a, b| if b.1 > a.1 { b } else { a }).0
    }

    fn ladder(&self) -> impl Iterator<Item = usize> + use<> {
        let max = self.config.draft_len_max.min(2 * self.planned_max);
        std::iter::successors(Some(1), |k| Some(2 * k)).take_while(move |k| *k < max).chain([max])
    }

    /// Seconds that measuring `draft_len` is expected to lose against running at `reference`.
    fn price(&self, draft_len: usize, reference: f64) -> f64 {
        let Some(seconds) = self.seconds(draft_len) else { return f64::INFINITY };
        let at_best = self.survival.tokens(draft_len) / self.rate_at_best(draft_len);
        let pass = (0.5 * (seconds + at_best) - self.survival.tokens(draft_len) / reference).max(0.0);
        self.probe_passes(draft_len) as f64 * pass + self.catch_up()
    }

    /// Whether what `draft_len` gains over off in the near future is worth reading up on the text.
    fn catch_up_pays(&self, draft_len: usize, rate: f64) -> bool {
        let plain_s = 1.0 / self.rate(0);
        let gain_s = self.survival.tokens(draft_len) * (plain_s - 1.0 / rate);
        self.catch_up() <= PAYBACK_PASSES * gain_s.max(ABSTAIN_LOSS_MAX * plain_s)
    }

    /// Seconds the draft model needs to read what was written without it.
    pub(super) fn catch_up(&self) -> f64 {
        let unread = (self.passes - self.last_drafted) as f64;
        let guess = || READ_SHARE * self.draft_s.expect(1.min(self.config.draft_len_max)).unwrap_or(0.0);
        unread * self.catch_up_s.map_or_else(guess, |mean| mean.value())
    }

    /// The prefix that maximises (expected tokens) - (seconds added) x (tokens per second we get anyway).
    pub(super) fn worth_verifying(&self, draft: &Draft) -> usize {
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
}
