//! Which length is planned next: the best one known, or one whose measurement is due.
//!
//! Owns what is planned and which of the drafted tokens are verified. Costs and acceptance are what the controller
//! has learnt: where drafting is tried again it believes them less, and the account may lend. It must not decide what a
//! measurement is worth.

use drafthorse_draft::Draft;

use super::measuring::PRICE_MIN;
use super::{Controller, GAIN_MIN, Probe, STALE_PASSES};
use crate::DraftLen;
use crate::prospect::{Prospect, READ_SHARE};

/// Part of [`READ_SHARE`] that reading is taken to need before it is measured: a guess that is too high keeps itself
/// from being put right.
const READ_HOPE: f64 = 0.75;
/// Passes in which drafting must earn back what reading up on the text costs.
const PAYBACK_PASSES: f64 = 16.0;
/// Loss it may make in passes in which the drafter abstains.
const ABSTAIN_LOSS_MAX: f64 = 0.005;
/// Share of a plain pass that a draft takes at most if it is made for nothing but to be compared with what comes.
pub(super) const WATCH_SHARE: f64 = 0.005;
/// Drafts that were compared before they count for more than what other texts showed.
const TOLD_MIN: u32 = 8;
/// How many samples the past is worth when drafting is measured again after having been off for long.
const RETRY_WEIGHT: f64 = 8.0;

/// How many times what is at stake a length must be worth for the account to lend that, and how many passes at most may
/// have run since a token stood: a few that failed, or plain ones that were measured.
const LEND_WORTH_KNOWN: f64 = 3.0;
const KNOWN_PASSES: u64 = 3;

/// The length that is used now.
#[derive(Clone, Copy, Debug)]
pub(super) struct InUse {
    pub(super) draft_len: usize,
    /// Its tokens a second.
    pub(super) rate: f64,
    /// Seconds that the account is to hold, if it has to lend for it.
    lent_s: Option<f64>,
}

impl Controller {
    pub(super) fn auto(&mut self) -> usize {
        if self.config.draft_len_max == 0 || self.passes < self.plain_first {
            return 0;
        }
        if let Some(probe) = self.probe {
            return probe.draft_len;
        }
        if self.planned_max > 0 && self.reads_text && !self.reading_pays() {
            return 0;
        }
        let InUse { draft_len: best, rate: reference, lent_s } = self.in_use();
        let Some(draft_len) = self.worth_measuring(best, reference) else {
            if !self.catch_up_pays(best, reference) {
                return 0;
            }
            if let Some(seconds) = lent_s {
                self.account.lend_up_to(seconds);
            }
            return best;
        };
        // As it was when it was found to be worth it.
        let passes_left = self.probe_passes(draft_len);
        if draft_len > 0 && best == 0 && (!self.reads_text || self.is_watched()) {
            self.account.lend_up_to(self.at_stake(draft_len, reference));
        }
        if draft_len == 0 {
            self.plain_lost_s += self.plain_price(reference);
        } else if self.passes - self.last_told >= STALE_PASSES {
            self.survival.loosen(RETRY_WEIGHT);
            self.calibration.loosen(RETRY_WEIGHT);
            self.certainty.loosen(RETRY_WEIGHT);
        }
        if draft_len > 0 && best == 0 {
            let keep = self.survival.grow_old((self.passes - self.last_told) as f64);
            self.certainty.grow_old(keep);
        }
        let is_look =
            best == 0 && self.reads_text && !self.is_watched() && self.looks_left > 0 && !self.look_is_owed();
        self.probe = Some(Probe { draft_len, passes_left, is_look, is_repeated: false });
        draft_len
    }

    /// The length that is planned unless something is measured: the best one that the account can pay for, or one that
    /// it lends for.
    pub(super) fn in_use(&self) -> InUse {
        let (draft_len, rate) = self.best_affordable();
        let affordable = InUse { draft_len, rate, lent_s: None };
        if draft_len > 0 { affordable } else { self.worth_lending_for(rate).unwrap_or(affordable) }
    }

    /// A length that gains over `reference` by all that is known of this text, though the account cannot pay for it: it
    /// lends what is at stake where the length is worth much more. One failed pass says less than those before it.
    fn worth_lending_for(&self, reference: f64) -> Option<InUse> {
        let is_known = self.last_stood.is_some_and(|pass| self.passes - pass <= KNOWN_PASSES);
        let plain_s = self.plain_s().filter(|_| is_known)?;
        let credit_s = self.account.balance() + self.credit();
        let worth = |draft_len: usize| {
            let rate = self.rate(draft_len);
            let stake_s = self.unlucky_s(draft_len).max(0.0) + self.catch_up();
            let gain = rate / reference - 1.0;
            let value_s = self.horizon(plain_s).min(self.prospect.tokens_left() * plain_s) * gain;
            let is_worth = value_s >= LEND_WORTH_KNOWN * stake_s.max(PRICE_MIN * plain_s);
            let lends = gain >= GAIN_MIN && is_worth && stake_s <= credit_s;
            lends.then_some((InUse { draft_len, rate, lent_s: Some(stake_s) }, value_s - stake_s))
        };
        let best = (1..=self.planned_max).filter_map(worth).max_by(|a, b| a.1.total_cmp(&b.1));
        best.map(|(length, _)| length)
    }

    /// The plan with the most tokens per second among those tried, and its rate. Off unless drafting
    /// promises [`GAIN_MIN`] in the passes that verify something.
    pub(super) fn best(&self) -> (usize, f64) {
        self.best_among(|_| true)
    }

    fn best_among(&self, is_allowed: impl Fn(usize) -> bool) -> (usize, f64) {
        let off = (0, self.rate(0));
        let lengths = (1..=self.planned_max).filter(|draft_len| is_allowed(*draft_len));
        let rates = lengths.map(|draft_len| (draft_len, self.rate(draft_len)));
        let best = rates.fold(off, |best, next| if next.1 > best.1 { next } else { best });
        // A drafter that abstains ties with off, and has to run to find its openings.
        let best = if best.0 == 0 && self.planned_max > 0 { (1, self.rate(1)) } else { best };
        let needed = 1.0 + GAIN_MIN * self.survival.offered(1) - ABSTAIN_LOSS_MAX;
        if best.0 > 0 && best.1 >= off.1 * needed { best } else { off }
    }

    /// The same, but no length above one of which an unlucky pass would lose more than drafting may, and off while it
    /// has: whatever is predicted, what it cost so far is known.
    pub(super) fn best_affordable(&self) -> (usize, f64) {
        if self.account.balance() < 0.0 {
            return (0, self.rate(0));
        }
        self.best_among(|draft_len| draft_len == 1 || self.unlucky_s(draft_len) <= self.account.balance())
    }

    /// Seconds that a pass with a whole draft is expected to lose of which no more stands than of a draft of one; and as long
    /// as nothing has stood on this text, nothing.
    pub(super) fn unlucky_s(&self, draft_len: usize) -> f64 {
        let costs = self.whole_seconds(draft_len).zip(self.plain_s());
        let tokens = if self.last_stood.is_none() { 1.0 } else { self.survival.tokens(1) };
        costs.map_or(f64::INFINITY, |(seconds, plain_s)| seconds - plain_s * tokens)
    }

    /// The first measurement of a drafter, unless it is hopeless or has too much to read. Where reading is
    /// dear, what a second row costs is measured without the drafter first.
    pub(super) fn first_look(&self) -> Option<usize> {
        let plain_s = self.verify_s.expect(0)?;
        if !self.prospect.reads_much(plain_s) || !self.verify_s.is_measured(1) {
            return Some(1);
        }
        (Prospect::is_hopeful(self.hoped()?) && self.prospect.is_affordable(plain_s)).then_some(1)
    }

    /// Whether reading this text may be worth what it takes: for what the drafter is known to gain, as it did on other texts,
    /// or for a look if that is nothing.
    pub(super) fn reading_pays(&self) -> bool {
        let Some(plain_s) = self.verify_s.expect(0) else { return true };
        let (best, rate) = self.best();
        if best == 0 {
            return self.prospect.is_affordable(plain_s);
        }
        let pays = self.prospect.is_small(plain_s) || self.prospect.pays(1.0 / self.rate(0) - 1.0 / rate);
        pays || self.look_is_owed()
    }

    /// Whether the next draft is any token: see [`Plan::is_blank`].
    ///
    /// [`Plan::is_blank`]: super::Plan::is_blank
    pub(super) fn looks_without_drafter(&self) -> bool {
        let plain_s = self.verify_s.expect(0).unwrap_or(0.0);
        self.planned_max == 0 && self.prospect.reads_much(plain_s) && !self.knows_second_row
    }

    /// Whether the drafter takes so little that it may be asked in every pass, for what its drafts would have brought.
    pub(super) fn may_watch(&self) -> bool {
        let is_off = self.probe.is_none() && self.config.mode == DraftLen::Auto;
        if !self.is_lookup || self.watch.is_over || self.planned_max == 0 || !is_off {
            return false;
        }
        let costs = self.drafting_s(self.planned_max).zip(self.plain_s());
        costs.is_some_and(|(draft_s, plain_s)| draft_s <= WATCH_SHARE * plain_s)
    }

    /// Whether it was told of this text what would have stood, while nothing is drafted.
    pub(super) fn is_watched(&self) -> bool {
        self.watch.told >= TOLD_MIN && !self.watch.is_over
    }

    /// Whether what `draft_len` gains over off in the near future is worth reading up on the text.
    fn catch_up_pays(&self, draft_len: usize, rate: f64) -> bool {
        let plain_s = 1.0 / self.rate(0);
        let gain_s = self.survival.tokens(draft_len) * (plain_s - 1.0 / rate);
        self.catch_up() <= PAYBACK_PASSES * gain_s.max(ABSTAIN_LOSS_MAX * plain_s)
    }

    /// Seconds the draft model needs to read what was written without it.
    pub(super) fn catch_up(&self) -> f64 {
        let unread = (self.passes - self.last_drafted).min(self.prospect.unread_max) as f64;
        let guess =
            || READ_HOPE * READ_SHARE * self.drafting_s(1.min(self.config.draft_len_max)).unwrap_or(0.0);
        unread
            * self.catching_up.map_or_else(guess, |mean| mean.value() * self.verify_s.pace_s().unwrap_or(0.0))
    }

    /// The prefix that maximises (expected tokens) - (seconds added) x (tokens per second we get anyway).
    pub(super) fn worth_verifying(&self, draft: &Draft) -> usize {
        let rate = self.going_rate();
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
