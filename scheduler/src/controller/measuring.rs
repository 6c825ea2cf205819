//! Which measurement is due: of a length that may be better than it seems, by what it may bring.
//!
//! Owns what a measurement is expected to bring (the expected improvement of Jones, Schonlau and Welch 1998) and
//! to lose, and whether that can be paid for. It must not plan.

use std::borrow::Cow;

use super::learning::LOSS_SHARE_EARLY;
use super::{Controller, EARLY_PASSES, GAIN_MIN, RETRY_PASSES, STALE_PASSES};
use crate::estimate::Survival;
use crate::normal::expected_above;

/// Passes of plain decoding in which a better length is expected to be of use: as many as the text has had so
/// far, within these.
const HORIZON_MIN: f64 = 24.0;
const HORIZON_MAX: f64 = 96.0;
/// How many times its price a measurement must promise, and what it is taken to cost at least, in plain passes.
const WORTH: f64 = 3.0;
pub(super) const PRICE_MIN: f64 = 0.2;
/// Passes between measurements of lengths that were tried: they take drafts whole that would have been cut.
const AGAIN_PASSES: u64 = 16;
/// Those that ran less often than this need not wait,
const FEW: u32 = 3;
/// nor do any on a text that is not the first before it has had so many drafts,
pub(super) const LOOKS: u64 = 6;
/// or only so many passes while nothing is drafted.
const OFF_PASSES: u64 = 8;
/// Texts in a row without a look after which one is taken on trust.
const TEXTS_UNLOOKED_MAX: u32 = 8;
/// Texts in a row whose drafts gained less than this share of their time, after which, and for as many more each time, one
/// more text goes by between two looks. A look costs a hundredth of a text, and a text that gains brings a fifth or more:
/// until some sixteen have gained nothing, the next may be expected to be worth its look.
const TEXTS_VAIN: u32 = 16;
const VAIN_GAIN: f64 = 0.01;
/// What longer drafts must gain if they cost no more than those tried, to be tried where these lose, and how many
/// passes after the last measurement.
const LONGER_GAIN: f64 = 0.25;
const LONGER_PASSES: u64 = 4;

/// How many times what is at stake a measurement must be worth for the account to lend that.
const LEND_WORTH: f64 = 8.0;

/// A text has become easier if drafts are expected to fail so much less often than those verified did.
const EASIER_RATIO: f64 = 0.5;
/// What is lent in all for such a text, in plain passes, or for one of which it is known what would have stood; at most this
/// share of the tokens that are still to come.
const TOLD_PASSES: f64 = 8.0;
const TOLD_SHARE: f64 = 0.06;

/// Plain passes in one measurement, behind those that settle.
pub(super) const PLAIN_PROBE_LEN: usize = 1;
/// Share of the time spent that measuring plain passes again may lose while drafting pays, and what it may
/// lose at the start, in the time of plain passes: a comparison that is won by far needs no sharp figure.
const PLAIN_SHARE: f64 = 0.01;
const PLAIN_START_PASSES: f64 = 0.5;
/// Plain passes are measured after [`STALE_PASSES`], and as many more for each time that drafting wins by this much.
const STALE_GAIN: f64 = 0.1;
/// A hit rate that moved this much since the last plain pass makes its cost stale early,
const HIT_RATE_DRIFT: f64 = 0.05;
/// and so does a comparison less sure than this: what drafting gains is to be known to a few per cent.
const PLAIN_ERROR: f64 = 0.06;
/// Passes since the last plain one before either counts: a cold cache's hit rate moves all the time.
const DRIFT_PASSES: u64 = 16;

/// A length that may be measured.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    draft_len: usize,
    /// Seconds it is expected to bring, less what it is expected to lose.
    value_s: f64,
}

impl Controller {
    /// A draft length whose measurement is due and can be paid for, while `best` is in use at `reference` tokens a
    /// second.
    pub(super) fn worth_measuring(&self, best: usize, reference: f64) -> Option<usize> {
        if best > 0 && self.plain_is_due(best) && self.plain_is_affordable(reference) {
            return Some(0);
        }
        if self.planned_max == 0 {
            return self.first_look();
        }
        let affordable = |draft_len: &usize| self.is_affordable(*draft_len, reference);
        if best == 0 && self.reads_text && !self.is_watched() {
            return self.look_due().then_some(1);
        }
        if best == 0 && self.passes - self.last_drafted >= RETRY_PASSES {
            // What is most hopeful is saved up for: shorter drafts, which cost less, would spend it.
            return Some(self.most_promising(|c, k| c.rate_at_best(k))).filter(affordable);
        }
        if best == 0 && self.longer_may_pay(reference) {
            return Some(2 * self.planned_max).filter(affordable);
        }
        let others = self.ladder().filter(|k| *k != best && self.is_due(*k, best));
        let survival = self.survival_after(best);
        let candidates = others.filter_map(|k| self.candidate(k, &survival, (best, reference)));
        let candidates = candidates.filter(|candidate| self.is_paid(candidate, best, reference));
        candidates.max_by(|a, b| a.value_s.total_cmp(&b.value_s)).map(|candidate| candidate.draft_len)
    }

    /// Whether it is time for a look at a text that is not the first. What other texts showed is no reason not to: what
    /// seemed too dear may not have been. Unless something longer is being saved up for, or many texts gained nothing. The
    /// account pays for reading, or what the rest of a text brings in that has become easier.
    fn look_due(&self) -> bool {
        let waits =
            self.best().0 > 0 || self.texts_unlooked < (self.texts_vain / TEXTS_VAIN).min(TEXTS_UNLOOKED_MAX);
        let is_easy =
            || self.has_become_easier() && self.plain_s().is_some_and(|s| self.prospect.is_worth_a_look(s));
        let is_paid = self.account.balance() >= self.prospect.reading_s() || self.look_is_owed() || is_easy();
        !waits && self.passes - self.last_drafted >= OFF_PASSES && self.account.balance() >= 0.0 && is_paid
    }

    /// Whether drafts are expected to fail much less often than those verified did.
    fn has_become_easier(&self) -> bool {
        self.certainty.fails_ratio() <= EASIER_RATIO
    }

    /// Texts in a row on which nothing was drafted, and of those on which something was, that gained nothing by it: with
    /// this one.
    pub(super) fn texts_with_this(&self) -> (u32, u32) {
        if self.reads_text {
            return (self.texts_unlooked.saturating_add(1), self.texts_vain);
        }
        let text_s = self.prospect.tokens_written * self.plain_s().unwrap_or(0.0);
        let has_gained = self.text_gain_s > VAIN_GAIN * text_s;
        (0, if has_gained { 0 } else { self.texts_vain.saturating_add(1) })
    }

    /// Whether so many texts went by without a look that one is taken even if the account will never pay for reading, as
    /// a new controller would: no verdict is for ever.
    pub(super) fn look_is_owed(&self) -> bool {
        let is_affordable = |plain_s| self.prospect.is_affordable(plain_s);
        self.texts_unlooked >= TEXTS_UNLOOKED_MAX && self.plain_s().is_some_and(is_affordable)
    }

    /// Passes in one measurement. A drafter that has to read first says nothing in its first.
    pub(super) fn probe_passes(&self, draft_len: usize) -> usize {
        match draft_len {
            0 => self.settling() as usize + PLAIN_PROBE_LEN,
            // A look at another text, dear as far as is known.
            _ if self.looks_left > 0 && 2.0 * self.unlucky_s(draft_len) > self.account.balance() => 1,
            _ if self.passes == self.last_drafted && !self.reads_text => 1,
            _ => 2,
        }
    }

    /// Seconds that a measurement of plain passes loses against running at `reference`.
    pub(super) fn plain_price(&self, reference: f64) -> f64 {
        self.probe_passes(0) as f64 * self.plain_pass_price(reference)
    }

    /// The same of one of its passes.
    pub(super) fn plain_pass_price(&self, reference: f64) -> f64 {
        (1.0 / self.rate(0) - 1.0 / reference).max(0.0)
    }

    /// The draft length with the best `rate` among 1, 2, 4, ... up to twice the longest tried.
    pub(super) fn most_promising(&self, rate: impl Fn(&Controller, usize) -> f64) -> usize {
        self.ladder().map(|k| (k, rate(self, k))).fold((1, 0.0), |a, b| if b.1 > a.1 { b } else { a }).0
    }

    fn ladder(&self) -> impl Iterator<Item = usize> + use<> {
        let max = self.config.draft_len_max.min(2 * self.planned_max);
        std::iter::successors(Some(1), |k| Some(2 * k)).take_while(move |k| *k < max).chain([max])
    }

    /// Whether plain passes may be better than they seem, or were run too long ago to tell.
    fn plain_is_due(&self, best: usize) -> bool {
        let since = self.passes - self.last_plain;
        let drifted = (self.hit_rate - self.hit_rate_plain).abs() > HIT_RATE_DRIFT;
        // What a width costs that never ran is no better known with another plain pass.
        let is_measured = self.verify_s.is_measured(best);
        let unsure = is_measured && self.verify_s.error(0, best) > PLAIN_ERROR;
        let may_win = || is_measured && self.candidate(0, &self.survival, (best, self.rate(best))).is_some();
        // The further drafting wins, the less a comparison that has aged can be wrong about it.
        let gain = (self.rate(best) / self.rate(0) - 1.0).max(0.0);
        since as f64 >= STALE_PASSES as f64 * (1.0 + gain / STALE_GAIN)
            || (since >= DRIFT_PASSES && (drifted || unsure))
            || (since >= EARLY_PASSES && may_win())
    }

    fn plain_is_affordable(&self, reference: f64) -> bool {
        let allowed_s = PLAIN_SHARE * self.spent_s + PLAIN_START_PASSES / self.rate(0);
        self.plain_lost_s + self.plain_price(reference) <= allowed_s
    }

    /// Whether enough passes went by for `draft_len` to be measured.
    fn is_due(&self, draft_len: usize, best: usize) -> bool {
        let since = self.passes - self.last_probe;
        if best == 0 && self.passes - self.last_drafted < OFF_PASSES {
            return false;
        }
        let is_new = self.verify_s.samples(draft_len) < FEW || self.looks_left > 0;
        since >= AGAIN_PASSES || (is_new && (best > 0 || since >= OFF_PASSES))
    }

    /// Whether drafts longer than any tried would pay by far if they cost no more: where only the first drafted
    /// token is dear, short drafts do not tell.
    fn longer_may_pay(&self, reference: f64) -> bool {
        let next = 2 * self.planned_max;
        let longer = (next..=self.config.draft_len_max).map(|k| self.rate_at_best(k)).fold(0.0, f64::max);
        longer >= (1.0 + LONGER_GAIN) * reference && self.passes - self.last_probe >= LONGER_PASSES
    }

    /// Whether the account holds what the measurement is expected to lose, and what an unlucky pass does.
    fn is_affordable(&self, draft_len: usize, reference: f64) -> bool {
        self.at_stake(draft_len, reference) <= self.account.balance()
    }

    /// The same of a candidate, for which the account lends of what the rest of the text will bring in if it is worth
    /// many times that: where drafts brought much before, the first ones of a text may still fail.
    fn is_paid(&self, candidate: &Candidate, best: usize, reference: f64) -> bool {
        let stake_s = self.at_stake(candidate.draft_len, reference);
        let plain_s = 1.0 / self.rate(0);
        // It is of no use beyond the text.
        let of_use = (self.prospect.tokens_left() * plain_s / self.horizon(plain_s)).min(1.0);
        let lends = best == 0 && of_use * candidate.value_s >= LEND_WORTH * stake_s.max(PRICE_MIN * plain_s);
        stake_s <= self.account.balance() + if lends { self.credit() } else { 0.0 }
    }

    /// Seconds in which a better length is expected to be of use.
    pub(super) fn horizon(&self, plain_s: f64) -> f64 {
        (self.spent_s / plain_s).clamp(HORIZON_MIN, HORIZON_MAX) * plain_s
    }

    /// Seconds that a measurement is expected to lose, or an unlucky pass of it if that is more.
    pub(super) fn at_stake(&self, draft_len: usize, reference: f64) -> f64 {
        self.price(draft_len, reference).max(self.unlucky_s(draft_len))
    }

    /// Seconds that the rest of the text is going to bring in, and that were not lent yet; more where it is known that the
    /// text is no longer the one in which drafts failed.
    pub(super) fn credit(&self) -> f64 {
        let is_told = self.is_watched() || self.has_become_easier();
        let left = self.prospect.tokens_left();
        let passes = LOSS_SHARE_EARLY * left;
        let told = TOLD_PASSES.min(TOLD_SHARE * left);
        let coming_s = if is_told { passes.max(told) } else { passes } / self.rate(0);
        (coming_s - self.account.lent()).max(0.0)
    }

    /// Seconds that measuring `draft_len` is expected to lose against running at `reference`.
    fn price(&self, draft_len: usize, reference: f64) -> f64 {
        let Some(seconds) = self.seconds(draft_len) else { return f64::INFINITY };
        let at_best = self.survival.tokens(draft_len) / self.rate_at_best(draft_len);
        let pass = (0.5 * (seconds + at_best) - self.survival.tokens(draft_len) / reference).max(0.0);
        self.probe_passes(draft_len) as f64 * pass + self.catch_up()
    }

    /// What measuring `draft_len` is worth; `None` if not its price.
    fn candidate(
        &self,
        draft_len: usize,
        survival: &Survival,
        (best, reference): (usize, f64),
    ) -> Option<Candidate> {
        let plain_s = self.plain_s()?;
        let (seconds, tokens) = (self.seconds(draft_len)?, self.survival.tokens(draft_len));
        let reading_s = if draft_len > 0 { self.catch_up() } else { 0.0 };
        let lost_s = (seconds - tokens / reference).max(0.0);
        let price_s = self.probe_passes(draft_len) as f64 * lost_s + reading_s;
        let promise_s = self.horizon(plain_s) * self.promise(draft_len, survival, (best, reference));
        let is_worth = promise_s > WORTH * price_s.max(PRICE_MIN * plain_s);
        is_worth.then_some(Candidate { draft_len, value_s: promise_s - price_s })
    }

    /// The gain over `reference` that measuring `draft_len` may bring to light. While nothing is drafted, what stands of
    /// a short draft tells what would of longer ones.
    fn promise(&self, draft_len: usize, survival: &Survival, (best, reference): (usize, f64)) -> f64 {
        let above = |k: usize, needed| {
            let seconds = if best == 0 { self.hoped_seconds(k) } else { self.seconds(k) };
            let gain = seconds.map_or(-1.0, |seconds| survival.tokens(k) / seconds / reference - 1.0);
            expected_above(gain, self.gain_error(k, best), needed)
        };
        match (best, draft_len) {
            (0, _) => self.ladder().map(|k| above(k, GAIN_MIN)).fold(0.0, f64::max),
            (_, 0) => above(0, -GAIN_MIN),
            _ => above(draft_len, 0.0),
        }
    }

    /// What is believed to stand now: while nothing is drafted it grows old.
    fn survival_after(&self, best: usize) -> Cow<'_, Survival> {
        let mut survival = Cow::Borrowed(&self.survival);
        if best == 0 {
            survival.to_mut().grow_old((self.passes - self.last_told) as f64);
        }
        survival
    }

    /// Relative standard deviation of what `draft_len` gains over `best`. While something is drafted, what stands
    /// comes to be known anyway.
    fn gain_error(&self, draft_len: usize, best: usize) -> f64 {
        let age = (self.passes - self.last_told) as f64;
        let tokens = if best == 0 { self.survival.error(draft_len, age) } else { 0.0 };
        self.verify_s.error(draft_len, best).hypot(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ControllerConfig, DraftEffort, RESIDENCY, StepOutcome};
    use super::*;
    use crate::DraftLen;
    use drafthorse_draft::{Draft, UNREAD_MAX};

    /// At a text behind a prompt whose reading takes `reading_s` plain passes, after one of which nothing stood, or all did;
    /// the target's tokens are so certain there.
    fn at_another_text(reading_s: f64, stood: bool, certainty: f32) -> Controller {
        let row_s = if stood { 0.2 } else { 0.8 };
        let config = ControllerConfig { mode: DraftLen::Auto, draft_len_max: 8 };
        let effort = DraftEffort { token_share: 0.1, unread_max: UNREAD_MAX, is_lookup: false };
        let pass = |c: &mut Controller, certainty: f32| {
            let planned = c.plan(&RESIDENCY).draft_len;
            let draft_len = c.keep(&Draft::new(vec![1; planned], vec![0.9; planned]));
            let accepted = if stood { draft_len } else { 0 };
            let (draft_s, verify_s) = (0.1 * planned as f64, 1.0 + row_s * draft_len as f64);
            let certainty = &vec![certainty; accepted + 1];
            c.observe(&StepOutcome {
                draft_len,
                accepted,
                draft_s,
                verify_s,
                certainty,
                ..StepOutcome::default()
            });
        };
        let mut before = Controller::new(config, effort);
        before.begin_text((0.0, 0.0), 1000);
        (0..40).for_each(|_| pass(&mut before, 0.15));
        let mut c = Controller::new(config, effort);
        c.recall(&before.lessons().expect("it drafted"));
        c.begin_text((10.0 * reading_s, 10.0 * reading_s), 1000);
        // Plain ones, whatever is thought of drafting.
        for _ in 0..20 {
            c.planned = 0;
            c.observe(&StepOutcome { verify_s: 1.0, certainty: &[certainty], ..StepOutcome::default() });
        }
        c
    }

    #[test]
    fn a_text_that_has_become_easier_is_looked_at_though_the_account_does_not_pay_for_reading() {
        for (reading_s, certainty, looks) in [(2.5, 0.98, true), (2.5, 0.15, false), (4.5, 0.98, false)] {
            let c = at_another_text(reading_s, false, certainty);
            let ratio = c.certainty.fails_ratio();
            assert!(c.account.balance() < c.prospect.reading_s() && c.best().0 == 0, "{reading_s} {ratio}");
            assert_eq!(c.look_due(), looks, "{reading_s} {certainty}: {ratio}");
        }
        let mut owing = at_another_text(2.5, false, 0.98);
        owing.account.book(-2.0);
        assert!(!owing.look_due(), "what was lost comes first");
    }

    #[test]
    fn what_is_known_to_gain_is_read_where_that_is_cheap_or_won_back_and_after_eight_texts_anyway() {
        let mut c = at_another_text(2.0, true, 0.15);
        assert!(c.best().0 > 0 && c.reading_pays());
        let gain = |c: &Controller| 1.0 / c.rate(0) - 1.0 / c.best().1;
        c.prospect.prefill_compute_s = 10.0 * (0.25 * 256.0 * gain(&c) - 2.0);
        assert!(!c.prospect.is_small(1.0) && c.reading_pays(), "a quarter of what it gains");
        c.prospect.prefill_compute_s = 10.0 * (0.25 * 256.0 * gain(&c) + 1.0);
        c.prospect.prefill_s = 10_000.0;
        assert!(!c.reading_pays());
        c.texts_unlooked = TEXTS_UNLOOKED_MAX;
        assert!(c.reading_pays(), "no verdict is for ever");
        // What fails more often gains less.
        let mut c = at_another_text(1.8, true, 0.15);
        let gains_little = |ratio: &f64| {
            c.survival.expect_fails(*ratio);
            c.best().0 > 0 && !c.prospect.pays(gain(&c))
        };
        let ratio = (0..10_000).map(|i| 1.0 + 0.01 * f64::from(i)).find(gains_little);
        assert!(
            ratio.is_some() && c.prospect.is_small(1.0) && c.reading_pays(),
            "a hundredth of the text: {ratio:?}"
        );
    }

    #[test]
    fn nothing_is_lent_for_what_a_length_would_bring_beyond_the_text() {
        let config = ControllerConfig { mode: DraftLen::Auto, draft_len_max: 8 };
        let effort = DraftEffort { token_share: 0.0, unread_max: UNREAD_MAX, is_lookup: true };
        let mut c = Controller::new(config, effort);
        c.begin_text((0.0, 0.0), 1000);
        for _ in 0..12 {
            let planned = c.plan(&RESIDENCY).draft_len;
            let draft_len = c.keep(&Draft::new(vec![1; planned], vec![0.9; planned]));
            let verify_s = 1.0 + 0.1 * draft_len as f64;
            c.observe(&StepOutcome { draft_len, verify_s, ..StepOutcome::default() });
        }
        c.watch.told = 100;
        c.account.open(0.0);
        let candidate = Candidate { draft_len: 1, value_s: 2.0 };
        let reference = c.rate(0);
        assert!(c.at_stake(1, reference) <= 0.25, "{}", c.at_stake(1, reference));
        c.prospect.tokens_written = 0.0;
        assert!(c.is_paid(&candidate, 0, reference), "a long text");
        c.prospect.tokens_written = c.prospect.tokens_max - 10.0;
        assert!(c.credit() > c.at_stake(1, reference), "it could be lent");
        assert!(!c.is_paid(&candidate, 0, reference), "ten tokens are left of it");
    }
}
