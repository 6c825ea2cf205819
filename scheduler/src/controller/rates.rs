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
        Some(verify + self.drop_s.expect(draft_len) + self.draft_s.expect(draft_len)?)
    }

    /// The same where the drafter says as much as it is asked for.
    pub(super) fn whole_seconds(&self, draft_len: usize) -> Option<f64> {
        let verify = self.verify_s.expect(draft_len)?;
        Some(verify + self.drop_s.expect(draft_len) + self.draft_s.expect(draft_len)?)
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
        Some(0.5 * (self.seconds(draft_len)? + verify? + self.draft_s.expect(draft_len)?))
    }

    /// Tokens per second if verifying widths never tried costs no more than the widest one tried.
    pub(super) fn rate_at_best(&self, draft_len: usize) -> f64 {
        let verify = self.survival.over_widths(draft_len, |width| self.verify_s.at_least(width));
        let seconds = verify.and_then(|verify| Some(verify + self.draft_s.expect(draft_len)?));
        seconds.map_or(0.0, |seconds| self.survival.tokens(draft_len) / seconds)
    }
}
