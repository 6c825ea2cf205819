//! Seconds and tokens per second of a draft length, as expected now.
//!
//! Owns how cost and acceptance are put together. It must not know plans.

use super::Controller;

/// Passes of the length in use that what is expected of it is worth beside what the last ones made.
const GOING_PASSES: f64 = 2.0;

impl Controller {
    pub(super) fn hoped(&self) -> Option<f64> {
        let plain_s = self.verify_s.expect(0)?;
        let compute_s = plain_s * (1.0 - self.plain.stall_share.value());
        let verify_s = |width| self.verify_s.at_least(width).unwrap_or(plain_s);
        Some(self.prospect.hoped((plain_s, compute_s), self.config.draft_len_max, verify_s))
    }

    /// Expected seconds of a pass planned with `draft_len`, drafting included.
    pub(super) fn seconds(&self, draft_len: usize) -> Option<f64> {
        if draft_len == 0 {
            return self.plain_s();
        }
        let verify = self.survival.over_widths(draft_len, |width| self.verify_s.expect(width))?;
        Some(verify + self.drop_s.expect(draft_len) + self.drafting_s(draft_len)?)
    }

    /// The same where the drafter says as much as it is asked for.
    pub(super) fn whole_seconds(&self, draft_len: usize) -> Option<f64> {
        let verify = self.verify_s.expect(draft_len)?;
        Some(verify + self.drop_s.expect(draft_len) + self.drafting_s(draft_len)?)
    }

    /// Expected seconds of a draft of that many tokens.
    pub(super) fn drafting_s(&self, draft_len: usize) -> Option<f64> {
        Some(self.drafting.expect(draft_len)? * self.verify_s.pace_s()?)
    }

    /// Expected seconds of a pass of plain decoding. A plain pass amid drafted ones takes longer: drafts have
    /// driven its experts out.
    pub(super) fn plain_s(&self) -> Option<f64> {
        match self.undrafted.misses() {
            Some(misses) => self.verify_s.expect_meeting(0, misses),
            None => self.verify_s.expect(0),
        }
    }

    /// Expected tokens per second; 0 before anything is measured.
    pub(super) fn rate(&self, draft_len: usize) -> f64 {
        self.seconds(draft_len).map_or(0.0, |seconds| self.survival.tokens(draft_len) / seconds)
    }

    /// Tokens a second that a drafted token's time is weighed against: what the length in use is expected to make, unless
    /// what it made lately is less. Drafts that are cut to nothing, as dearer than a rate that is believed too high, would
    /// be cut for ever.
    pub(super) fn going_rate(&self) -> f64 {
        let (best, rate) = self.best_affordable();
        let Some(seconds) = self.seconds(best).filter(|_| best > 0) else { return rate };
        let expected_s = GOING_PASSES * seconds;
        let made = (self.made.tokens + expected_s * rate) / (self.made.seconds + expected_s);
        made.min(rate).max(self.rate(0))
    }

    /// Seconds of a pass planned with `draft_len`; of a length never tried, hoping halfway that its widths cost no more
    /// than the widest one tried and that no row is dropped.
    pub(super) fn hoped_seconds(&self, draft_len: usize) -> Option<f64> {
        if self.verify_s.is_measured(draft_len) {
            return self.seconds(draft_len);
        }
        let verify = self.survival.over_widths(draft_len, |width| self.verify_s.at_least(width));
        Some(0.5 * (self.seconds(draft_len)? + verify? + self.drafting_s(draft_len)?))
    }

    /// Tokens per second if verifying widths never tried costs no more than the widest one tried.
    pub(super) fn rate_at_best(&self, draft_len: usize) -> f64 {
        let verify = self.survival.over_widths(draft_len, |width| self.verify_s.at_least(width));
        let seconds = verify.and_then(|verify| Some(verify + self.drafting_s(draft_len)?));
        seconds.map_or(0.0, |seconds| self.survival.tokens(draft_len) / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Controller, ControllerConfig, DraftEffort, Made, RESIDENCY, StepOutcome};
    use crate::DraftLen;
    use drafthorse_draft::{Draft, UNREAD_MAX};

    fn controller() -> Controller {
        let config = ControllerConfig { mode: DraftLen::Auto, draft_len_max: 8 };
        let effort = DraftEffort { token_share: 0.0, unread_max: UNREAD_MAX, is_lookup: false };
        let mut c = Controller::new(config, effort);
        c.begin_text((0.0, 0.0), 1000);
        c
    }

    /// A pass of which all that is drafted stands, where the drafter speaks; each token takes `row_s`.
    fn pass(c: &mut Controller, speaks: bool, row_s: f64) {
        let planned = c.plan(&RESIDENCY).draft_len;
        let drafted = if speaks { planned } else { 0 };
        let draft_len = c.keep(&Draft::new(vec![1; drafted], vec![0.9; drafted]));
        let verify_s = 1.0 + row_s * draft_len as f64;
        c.observe(&StepOutcome { draft_len, accepted: draft_len, verify_s, ..StepOutcome::default() });
    }

    #[test]
    fn tokens_are_weighed_against_what_was_made_lately_where_that_is_less_and_never_less_than_plain() {
        let mut c = controller();
        (0..100).for_each(|_| pass(&mut c, true, 0.1));
        let (best, rate) = c.best_affordable();
        assert!(best == 8 && rate > 4.0 && c.going_rate() > 0.95 * rate, "{best} {rate}");
        c.made = Made { tokens: 8.0, seconds: 8.0 };
        // Beside two passes of 9 tokens in 1.8 s.
        assert!((c.going_rate() - 26.0 / 11.6).abs() < 0.15, "{}", c.going_rate());
        c.made = Made { tokens: 0.0, seconds: 1e6 };
        assert_eq!(c.going_rate(), c.rate(0));
        c.made = Made { tokens: 80.0, seconds: 8.0 };
        assert_eq!(c.going_rate(), rate);
        c.begin_text((0.0, 0.0), 1000);
        assert_eq!(c.made.seconds, 0.0);
    }

    #[test]
    fn an_unlucky_pass_has_a_whole_draft_however_rarely_there_is_one() {
        let mut c = controller();
        (0..120).for_each(|i| pass(&mut c, i % 8 == 0, 0.5));
        // 5 for a whole one, of which one token may stand; the mixture takes about 1.5.
        let after_some_stood = c.unlucky_s(8);
        assert!(after_some_stood > 2.5, "{after_some_stood}");
        c.begin_text((0.0, 0.0), 1000);
        assert!(c.unlucky_s(8) > after_some_stood, "nothing has stood on this one");
    }

    #[test]
    fn what_stood_and_how_certain_the_target_was_then_grow_old_alike() {
        let (mut c, mut was_off, mut aged) = (controller(), false, 0);
        for pass in 0..600 {
            let planned = c.plan(&RESIDENCY).draft_len;
            let mut again = c.survival.clone();
            again.expect_fails(c.certainty.fails_ratio());
            let (told, used) = (again.tokens(8), c.survival.tokens(8));
            assert!((told - used).abs() < 1e-9, "pass {pass}: {told} {used}");
            aged += usize::from(pass > 48 && planned > 0 && was_off);
            was_off = planned == 0;
            let draft_len = c.keep(&Draft::new(vec![1; planned], vec![0.8; planned]));
            let certainty = &[if pass < 40 { 0.15 } else { 0.95 }];
            let verify_s = 1.0 + 0.5 * draft_len as f64;
            c.observe(&StepOutcome { draft_len, certainty, verify_s, ..StepOutcome::default() });
        }
        assert!(aged > 0, "it was tried again");
    }
}
