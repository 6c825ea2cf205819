//! What a pass teaches: costs, acceptance, and what drafting may still lose.
//!
//! Owns what comes into the account from which drafted passes are paid, and what they take out. It must not plan.

use super::choosing::WATCH_SHARE;
use super::measuring::PLAIN_PROBE_LEN;
use super::{Controller, Made, StepOutcome, Watched};
use crate::cost::PassSample;
use crate::estimate::{Mean, Survival};

/// Passes that do not count: the first finds caches, pages and threads cold, and a plain pass that seems dear makes
/// drafting seem cheap.
const COLD_PASSES: u64 = 1;
/// Nor do those beside which slots are filled, up to so many: a slow disk may have to do for minutes.
const FILLING_PASSES_MAX: u64 = 24;
/// Share of the time spent that drafting may lose against plain passes; with what it may lose at the start, it
/// is less in the first passes, so that a short text loses no more, but for what the account lends.
pub(super) const LOSS_SHARE: f64 = 0.02;
pub(super) const LOSS_SHARE_EARLY: f64 = 0.0065;
const LOSS_EARLY_PASSES: u64 = 200;
/// What the account for that holds at the start, in the time of plain passes,
const ACCOUNT_START_PASSES: f64 = 1.4;
/// and with another run's lessons, which leave less to find out, in the time of its first pass.
const ACCOUNT_RECALLED_PASSES: f64 = 1.3;
/// What it holds at most, beside what reading up on the text would take; gains above it are not saved up for
/// later losses.
const ACCOUNT_MAX_PASSES: f64 = 16.0;
/// A drafted pass is charged at most this many times what it was expected to take.
const CHARGE_MAX: f64 = 3.0;
/// and the first of its length in a run hardly more than that: what it finds cold is paid for once, whatever is done after.
const CHARGE_FIRST_MAX: f64 = 1.25;
/// What of drafts may be taken for stalls, in the time of plain passes, and the share of the time in which it may be again.
const STALL_PASSES: f64 = 2.0;
const STALL_SHARE: f64 = 0.002;
/// Passes without a draft after which what those before made says nothing any more.
const MADE_GAP: u64 = 8;
/// Passes over which is measured what watching takes, and of which something is known,
const WATCH_MEMORY: f64 = 16.0;
const WATCH_PASSES_MIN: f64 = 4.0;
/// and what stands of what is watched: a pass brings one token, so many of them are as long a part of a text as more that
/// draft.
const WATCHED_MEMORY: f64 = 24.0;
/// A draft is believed to take so many times what the model's size says, and more only by and by.
const DRAFT_MAX: f64 = 2.0;
/// Passes after a drafted one in which plain passes do not count, where drafting takes more than this share of a plain
/// pass: it leaves the processor's caches to the draft model and the target's threads asleep.
const PLAIN_SETTLING: u64 = 2;
const UNSETTLING_SHARE: f64 = 0.02;

impl Controller {
    pub(super) fn learn_costs(&mut self, outcome: &StepOutcome) {
        let follows_draft =
            self.planned == 0 && self.last_drafted + self.settling() >= self.passes && self.last_drafted > 0;
        let is_cold = ((self.planned == 0 || self.plain_first == 0) && self.passes <= COLD_PASSES)
            || (self.is_filling && self.passes <= FILLING_PASSES_MAX);
        let says_nothing = is_cold || (follows_draft && self.verify_s.is_measured(0));
        if !says_nothing {
            self.learn_pass(outcome);
            let mean = if outcome.rows_drafted() == 0 { &mut self.plain } else { &mut self.drafted };
            mean.add(outcome);
        }
        self.watch.paid_s = 0.0;
        if self.watch.is_on {
            self.learn_watching(outcome.draft_s);
        }
        if self.planned == 0 || self.is_blank {
            return;
        }
        self.gap = self.passes - 1 - self.last_drafted;
        // Without a pass's time nothing says how fast the machine is.
        if let Some(pace_s) = self.verify_s.pace_s() {
            self.learn_draft(outcome.draft_s, pace_s);
        }
        self.last_drafted = self.passes;
        self.looks_left = self.looks_left.saturating_sub(1);
        self.planned_max = self.planned_max.max(self.planned);
    }

    /// What a draft took, with the reading that it needed first. Drafts are kept in passes of `pace_s`.
    fn learn_draft(&mut self, draft_s: f64, pace_s: f64) {
        let unread = self.gap.min(self.prospect.unread_max);
        let expected_s = self.drafting_s(self.planned).unwrap_or(0.0);
        self.draft_expected_s = expected_s;
        if (self.reads_text || unread > 0) && draft_s < expected_s {
            // With reading it took less than was expected without.
            self.drafting.add(self.planned, draft_s / pace_s);
            if let Some(catching_up) = self.catching_up.as_mut().filter(|_| !self.reads_text) {
                catching_up.add(0.0, 4.0);
            }
        } else if self.reads_text {
            // Reading, mostly: teaches nothing.
        } else if unread == 0 {
            self.learn_drafting(draft_s, pace_s);
        } else {
            // A model reads many tokens at once: none takes longer than one that it drafts.
            let each = (draft_s - expected_s) / unread as f64;
            let one_s = self.drafting_s(1).filter(|seconds| *seconds > 0.0);
            let each = one_s.map_or(each, |one_s| each.min(one_s));
            let each = each / pace_s;
            self.catching_up.get_or_insert(Mean::prior(each, 1.0)).add(each, 4.0);
        }
    }

    fn learn_drafting(&mut self, draft_s: f64, pace_s: f64) {
        let plain_s = self.verify_s.expect(0).unwrap_or(0.0);
        // Drafts of a chain cost next to nothing or a model's time: a dear one is believed, but for one that stalled, which
        // would keep the drafter from being asked again. A model's size says what it may take.
        let compute_s = plain_s * (1.0 - self.plain.stall_share.value());
        let by_size_s = DRAFT_MAX * self.planned as f64 * self.prospect.token_share * compute_s;
        let most_s = if by_size_s > 0.0 { by_size_s } else { plain_s };
        let is_first = !self.drafting.is_measured(self.planned) && most_s > 0.0;
        let draft_s = if is_first { draft_s.min(most_s) } else { draft_s };
        self.drafting.add_above(self.planned, draft_s / pace_s, most_s / pace_s);
    }

    /// One that takes longer than was thought is not watched any more in this text. The first draft may have a text to take
    /// in, and one that stalled says little.
    fn learn_watching(&mut self, seconds: f64) {
        let most_s = WATCH_SHARE * self.verify_s.expect(0).unwrap_or(0.0);
        let Some(mean) = &mut self.watch.seconds else {
            self.watch.seconds = Some(Mean::prior(0.0, 0.0));
            return;
        };
        self.watch.paid_s = seconds.min(CHARGE_MAX * mean.value().max(most_s));
        mean.add(self.watch.paid_s, WATCH_MEMORY);
        self.watch.is_over = mean.weight() >= WATCH_PASSES_MIN && mean.value() > most_s;
    }

    /// Plain passes after a drafted one that do not count.
    pub(super) fn settling(&self) -> u64 {
        let pace_s = self.verify_s.pace_s().unwrap_or(0.0);
        let drafting = self.drafting.measured().next().zip(self.verify_s.expect(0));
        let unsettles =
            drafting.is_none_or(|((_, drafting), plain_s)| drafting * pace_s > UNSETTLING_SHARE * plain_s);
        if unsettles { PLAIN_SETTLING } else { 0 }
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

    pub(super) fn learn_acceptance(&mut self, outcome: &StepOutcome) {
        let verified = (outcome.draft_len, outcome.accepted);
        self.survival.add(self.planned, verified, Survival::MEMORY);
        self.certainty.see(outcome.certainty);
        if self.planned > 0 {
            self.certainty.learn(outcome.certainty, verified, Survival::MEMORY);
        }
        self.last_stood = if outcome.accepted > 0 { Some(self.passes) } else { self.last_stood };
        self.last_told = if self.planned > 0 { self.passes } else { self.last_told };
        let verified = outcome.draft_len.min(outcome.accepted + 1);
        for (i, &confidence) in self.confidence.iter().enumerate().take(verified) {
            self.calibration.add(self.source, i, confidence, i < outcome.accepted);
        }
        let next = self.confidence.get(outcome.draft_len).zip(outcome.unverified);
        if let Some((&confidence, stands)) = next {
            self.calibration.add_by_confidence(self.source, outcome.draft_len, confidence, stands);
        }
    }

    /// Learns what stands from a draft that cost nothing. Each pass brings one, so each token of the text is the first of one
    /// and counts by its confidence and certainty there alone.
    pub(super) fn learn_watched(&mut self, watched: &Watched) {
        let Watched { asked, draft, stood, certainty } = watched;
        let drafted = draft.tokens.len();
        self.survival.add(*asked, (drafted, *stood), WATCHED_MEMORY);
        self.certainty.learn(certainty, (drafted.min(1), (*stood).min(1)), WATCHED_MEMORY);
        if let Some(&confidence) = draft.confidence.first() {
            self.calibration.add(draft.source, 0, confidence, *stood > 0);
        }
        self.last_stood = if *stood > 0 { Some(self.passes) } else { self.last_stood };
        self.last_told = self.passes;
        self.watch.told = self.watch.told.saturating_add(u32::from(drafted > 0));
        self.ledger.book_watched(*stood > 0);
    }

    /// Books the pass and ends a measurement that has run its passes.
    pub(super) fn settle(&mut self, outcome: &StepOutcome) {
        let plain_s = self.plain_s().unwrap_or(outcome.verify_s);
        let spent = outcome.draft_s + outcome.verify_s;
        let as_plain = if self.planned == 0 { spent } else { (1 + outcome.accepted) as f64 * plain_s };
        let lengths = (self.planned, outcome.draft_len);
        self.ledger.book(lengths, 1 + outcome.accepted, (outcome.draft_s, outcome.verify_s));
        // The first pass of a run that has another's lessons is cold and at a pace that is not known yet: nothing is booked.
        let is_first = self.plain_first == 0 && self.passes == 1;
        if is_first || self.passes == self.plain_first {
            let start = ACCOUNT_START_PASSES * plain_s;
            let recalled = ACCOUNT_RECALLED_PASSES * outcome.verify_s;
            self.account.open(if is_first { start.min(recalled) } else { start });
            self.stall_left_s = f64::INFINITY; // as much as there may be
        }
        self.spent_s += spent;
        self.prospect.compute_s += (outcome.verify_s - outcome.stall_s).max(0.0);
        self.prospect.passes += 1;
        let share = if self.passes < LOSS_EARLY_PASSES { LOSS_SHARE_EARLY } else { LOSS_SHARE };
        self.prospect.tokens_written += (1 + outcome.accepted) as f64;
        // What watching takes comes out of that.
        self.account.earn((share * spent - self.watch.paid_s).max(0.0));
        self.stall_left_s = (self.stall_left_s + STALL_SHARE * spent).min(STALL_PASSES * plain_s);
        if self.planned > 0 {
            self.text_gain_s += as_plain - spent;
            self.note_made(outcome);
            let gain_s = if is_first { 0.0 } else { as_plain - self.charged(outcome) };
            self.account.book(gain_s);
            self.last_probe = if self.probe.is_some() { self.passes } else { self.last_probe };
        }
        self.account.keep_at_most(ACCOUNT_MAX_PASSES * plain_s + self.catch_up());
        if outcome.rows_drafted() == 0 {
            self.last_plain = self.passes;
        }
        if outcome.rows_drafted() == 0 || self.passes == 1 {
            self.hit_rate_plain = self.hit_rate;
        }
        let Some(mut probe) = self.probe else { return };
        probe.passes_left -= 1;
        // Plain passes that take far less than was thought are run once more: it may have been an accident.
        let repeats = probe.draft_len == 0 && !probe.is_repeated && self.verify_s.is_surprised();
        if probe.passes_left == 0 && repeats {
            (probe.passes_left, probe.is_repeated) = (PLAIN_PROBE_LEN, true);
            self.plain_lost_s += self.plain_pass_price(self.in_use().rate);
        }
        self.probe = (probe.passes_left > 0).then_some(probe);
        self.knows_second_row |= self.probe.is_none() && self.is_blank;
    }

    fn note_made(&mut self, outcome: &StepOutcome) {
        if self.gap > MADE_GAP {
            self.made = Made::default();
        }
        if !self.is_blank {
            let draft_s = if self.reads_text { 0.0 } else { outcome.draft_s };
            self.made.add((1 + outcome.accepted) as f64, outcome.verify_s + draft_s);
        }
    }

    /// What of a model's draft is taken for a stall of the machine and not booked: what is far beyond what it is expected to
    /// take, once in a while. A drafter that is dear again and again is charged for it.
    fn stalled(&mut self, outcome: &StepOutcome) -> f64 {
        let is_model_alone = self.prospect.token_share > 0.0 && self.gap == 0 && !self.reads_text;
        let is_known = self.draft_expected_s > 0.0;
        let beyond_s = outcome.draft_s - CHARGE_MAX * self.draft_expected_s;
        let beyond_s = if is_model_alone && is_known { beyond_s } else { 0.0 };
        let stalled_s = beyond_s.clamp(0.0, self.stall_left_s);
        self.stall_left_s -= stalled_s;
        stalled_s
    }

    /// What a drafted pass costs the account. One that stalled counts a few times what is expected, and what
    /// the drafter needs to read a new text counts not at all: neither says what drafting costs. But a look at another
    /// text while drafting is off is paid with its reading: it may be as useless in every text there is.
    fn charged(&mut self, outcome: &StepOutcome) -> f64 {
        let expected = self.seconds(self.planned).unwrap_or(f64::INFINITY);
        let expected = expected.max(self.verify_s.expect(0).unwrap_or(0.0) + outcome.draft_s);
        let is_look = self.probe.is_some_and(|probe| probe.is_look);
        let drafting =
            if self.reads_text && !is_look { 0.0 } else { outcome.draft_s - self.stalled(outcome) };
        let most = if self.ledger.passes(self.planned) == 1 { CHARGE_FIRST_MAX } else { CHARGE_MAX };
        (outcome.verify_s + drafting).min(most * expected)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ControllerConfig, DraftEffort, RESIDENCY};
    use super::*;
    use crate::DraftLen;
    use drafthorse_draft::{Draft, UNREAD_MAX};

    fn controller(token_share: f64, is_lookup: bool) -> Controller {
        let config = ControllerConfig { mode: DraftLen::Auto, draft_len_max: 64 };
        let mut c = Controller::new(config, DraftEffort { token_share, unread_max: UNREAD_MAX, is_lookup });
        c.begin_text((0.0, 0.0), 1000);
        c
    }

    /// A pass whose first `stands` drafted tokens do; its draft takes `draft_s`.
    fn pass(c: &mut Controller, stands: usize, draft_s: f64, watched: &[Watched]) -> usize {
        let planned = c.plan(&RESIDENCY).draft_len;
        let draft_len = c.keep(&Draft::new(vec![1; planned], vec![0.9; planned]));
        let (accepted, verify_s) = (draft_len.min(stands), 1.0 + 0.1 * draft_len as f64);
        let draft_s = if planned > 0 { draft_s } else { 0.0 };
        c.observe(&StepOutcome { draft_len, accepted, draft_s, verify_s, watched, ..StepOutcome::default() });
        planned
    }

    #[test]
    fn a_models_draft_that_stalled_is_believed_up_to_twice_its_size_and_reading_up_to_drafting() {
        let mut c = controller(0.05, false);
        // Plain passes, then one that reads and one that stalls.
        (0..3).for_each(|_| _ = pass(&mut c, 8, 0.05, &[]));
        while c.drafting.measured().next().is_none() {
            pass(&mut c, 8, 7.0, &[]);
        }
        assert!(c.drafting_s(1).is_some_and(|seconds| seconds <= 2.0 * 0.05 + 1e-9), "{:?}", c.drafting);
        c.last_drafted = c.passes.saturating_sub(3);
        c.planned = 1;
        c.passes += 1;
        c.learn_costs(&StepOutcome { draft_len: 1, draft_s: 9.0, verify_s: 1.1, ..StepOutcome::default() });
        let each_s = c.catching_up.expect("it read what was written without it").value()
            * c.verify_s.pace_s().expect("passes ran");
        assert!(each_s <= 2.0 * 0.05 + 1e-9, "{each_s}");
    }

    #[test]
    fn drafts_are_expected_to_take_as_much_longer_or_less_as_passes_do() {
        let mut c = controller(0.05, false);
        (0..40).for_each(|_| _ = pass(&mut c, 8, 0.4, &[]));
        let (was_s, length) = (c.drafting_s(8).expect("it drafted"), c.planned_max);
        let before = c.lessons().expect("it drafted");
        for _ in 0..60 {
            c.planned = 0;
            c.observe(&StepOutcome { verify_s: 0.25, ..StepOutcome::default() });
        }
        let now_s = c.drafting_s(8).expect("it drafted");
        assert!((now_s / was_s - 0.25).abs() < 0.05, "{length}: {was_s} {now_s}");
        // And in another run: what is handed on is of one pace.
        let mut after = controller(0.05, false);
        after.recall(&before);
        let recalled_s = after.drafting_s(8).expect("as before");
        assert!((recalled_s / was_s - 1.0).abs() < 0.1, "{was_s} {recalled_s}");
    }

    #[test]
    fn a_draft_of_which_no_pass_tells_the_pace_teaches_nothing() {
        let config = ControllerConfig { mode: DraftLen::Fixed(2), draft_len_max: 8 };
        let effort = DraftEffort { token_share: 0.05, unread_max: UNREAD_MAX, is_lookup: false };
        let mut c = Controller::new(config, effort);
        c.begin_text((0.0, 0.0), 1000);
        let step = |c: &mut Controller, is_filling| {
            c.plan(&drafthorse_offload::Residency { is_filling, ..RESIDENCY });
            c.keep(&Draft::new(vec![1; 2], vec![0.9; 2]));
            let outcome =
                StepOutcome { draft_len: 2, draft_s: 0.01, verify_s: 0.05, ..StepOutcome::default() };
            c.observe(&outcome);
        };
        (0..10).for_each(|_| step(&mut c, true));
        assert_eq!(c.drafting_s(2), None);
        (0..40).for_each(|_| step(&mut c, false));
        assert!(
            c.drafting_s(2).is_some_and(|seconds| (seconds - 0.01).abs() < 0.001),
            "{:?}",
            c.drafting_s(2)
        );
    }

    #[test]
    fn a_stall_is_not_booked_while_there_is_a_reserve_for_it() {
        let mut c = controller(0.05, false);
        (0..40).for_each(|_| _ = pass(&mut c, 8, 0.05, &[]));
        (c.gap, c.reads_text, c.draft_expected_s, c.stall_left_s) = (0, false, 0.1, 2.0);
        let outcome = StepOutcome { draft_s: 1.3, ..StepOutcome::default() };
        assert!((c.stalled(&outcome) - 1.0).abs() < 1e-9, "beyond three times 0.1");
        assert!((c.stalled(&outcome) - 1.0).abs() < 1e-9);
        assert_eq!(c.stalled(&outcome), 0.0, "the reserve is used up");
        c.stall_left_s = 2.0;
        assert_eq!(c.stalled(&StepOutcome { draft_s: 0.2, ..outcome }), 0.0);
        c.gap = 4;
        assert_eq!(c.stalled(&outcome), 0.0, "it had tokens to read");
    }

    #[test]
    fn what_was_made_before_a_pause_says_nothing_of_what_is_made_behind_it() {
        let mut c = controller(0.0, false);
        let outcome = StepOutcome { accepted: 1, verify_s: 1.5, ..StepOutcome::default() };
        for (gap, seconds) in [(MADE_GAP, 8.5), (MADE_GAP + 1, 1.5)] {
            (c.made, c.gap) = (Made { tokens: 8.0, seconds: 8.0 }, gap);
            c.note_made(&outcome);
            assert!((c.made.seconds - seconds).abs() < 1e-9, "{gap}: {:?}", c.made);
        }
    }

    #[test]
    fn what_was_lent_to_a_text_ends_with_it_but_for_what_any_is_lent() {
        let mut c = controller(0.0, true);
        (0..10).for_each(|_| _ = pass(&mut c, 0, 0.0, &[]));
        c.account.lend_up_to(20.0);
        c.begin_text((0.0, 0.0), 1000);
        let most_s = LOSS_SHARE_EARLY * 256.0 * c.plain_s().expect("plain passes ran");
        assert!(c.account.lent() <= most_s + 1e-9, "{}", c.account.lent());
    }

    #[test]
    fn watching_comes_out_of_what_drafting_may_lose_asks_for_eight_and_is_told_by_drafts_alone() {
        let mut c = controller(0.0, true);
        (0..12).for_each(|_| _ = pass(&mut c, 0, 0.0, &[]));
        c.planned_max = 32;
        while c.plan(&RESIDENCY).watch == 0 {
            pass(&mut c, 0, 0.0, &[]);
        }
        assert_eq!(c.plan(&RESIDENCY).watch, 8);
        let silent = Watched { asked: 8, ..Watched::default() };
        let said = Watched { draft: Draft::new(vec![1], vec![0.9]), ..silent.clone() };
        (0..16).for_each(|_| c.learn_watched(&silent));
        assert!(!c.is_watched(), "nothing was said");
        (0..8).for_each(|_| c.learn_watched(&said));
        assert!(c.is_watched());
        let left = |c: &Controller| c.credit() * c.rate(0);
        assert!((left(&c) - 8.0).abs() < 1e-9, "{}", left(&c));
        c.prospect.tokens_written = c.prospect.tokens_max - 50.0;
        assert!((left(&c) - 3.0).abs() < 1e-9, "6 % of what is still to come: {}", left(&c));
        let earned = |watch_s: f64| {
            let mut c = c.clone();
            let before = c.account.balance();
            for _ in 0..2 {
                (c.planned, c.watch.is_on) = (0, true);
                c.observe(&StepOutcome { draft_s: watch_s, verify_s: 1.0, ..StepOutcome::default() });
            }
            c.account.balance() - before
        };
        assert!(earned(0.004) < earned(0.0), "{} {}", earned(0.004), earned(0.0));
    }
}
