//! What a drafter that was never asked may be worth: whether it should read the text at all.
//!
//! Owns [`Prospect`]. A draft model has to read the prompt before its first draft, which can take longer than
//! drafting could win on a short text. Its time a token is known from its size against the target's, so hopeless
//! pairs are told before anything is spent. It must not know plans or measurements of drafts.

/// Time in which a model reads one of many tokens, in the time of a pass over one.
pub(crate) const READ_SHARE: f64 = 0.3;
/// Share of its tokens that a good drafter sees stand: what an unknown one is hoped to reach.
const HOPED_ACCEPTANCE: f64 = 0.85;
/// Share of the time that the prompt and the tokens below take which reading may cost.
const READING_SHARE: f64 = 0.03;
/// Share of the time that a text takes which reading may cost whatever it brings,
const SMALL_SHARE: f64 = 0.01;
/// and where the text has become one of which more stands.
const LOOK_SHARE: f64 = 0.015;
/// Part of a text's tokens in which a known gain must make up for reading.
const PAYBACK_SHARE: f64 = 0.25;
/// Tokens that a text is taken to have, if it may.
pub(crate) const TEXT_TOKENS: f64 = 256.0;
/// Gain that must be hoped for.
const HOPED_GAIN_MIN: f64 = 0.05;

/// A drafter before its first draft.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Prospect {
    /// Time of one drafted token as a share of a plain pass that waits for no expert; 0 where drafting is free.
    pub(crate) token_share: f64,
    /// Seconds the target took to read the prompt.
    pub(crate) prefill_s: f64,
    /// Of these, seconds in which it computed.
    pub(crate) prefill_compute_s: f64,
    /// Passes since,
    pub(crate) passes: u64,
    /// and seconds in which it computed them.
    pub(crate) compute_s: f64,
    /// Passes without a draft whose tokens the drafter reads at most before it drafts again.
    pub(crate) unread_max: u64,
    /// Tokens that the text may have, and has.
    pub(crate) tokens_max: f64,
    pub(crate) tokens_written: f64,
}

impl Prospect {
    /// Seconds that reading the text is expected to take.
    pub(crate) fn reading_s(&self) -> f64 {
        let unread = self.passes.min(self.unread_max) as f64;
        let unread_s = if self.passes > 0 { unread * self.compute_s / self.passes as f64 } else { 0.0 };
        self.token_share * (self.prefill_compute_s + READ_SHARE * unread_s)
    }

    /// Whether reading is too dear to be done on trust, plain passes taking `plain_s`.
    pub(crate) fn reads_much(&self, plain_s: f64) -> bool {
        self.reading_s() > plain_s
    }

    /// Whether reading costs no more than a small part of a text.
    pub(crate) fn is_affordable(&self, plain_s: f64) -> bool {
        self.reading_s() <= READING_SHARE * (self.prefill_s + TEXT_TOKENS.min(self.tokens_max) * plain_s)
    }

    /// Whether it costs next to nothing of what the text takes without its prompt.
    pub(crate) fn is_small(&self, plain_s: f64) -> bool {
        self.reading_s() <= SMALL_SHARE * TEXT_TOKENS.min(self.tokens_max) * plain_s
    }

    /// Whether it costs little of what is still to come.
    pub(crate) fn is_worth_a_look(&self, plain_s: f64) -> bool {
        self.reading_s() <= LOOK_SHARE * self.tokens_left() * plain_s
    }

    /// Tokens that are taken to be still to come.
    pub(crate) fn tokens_left(&self) -> f64 {
        (self.tokens_max - self.tokens_written).clamp(0.0, TEXT_TOKENS)
    }

    /// Whether a gain of `gain_s` a token, as other texts showed it, makes up for reading in a part of the tokens that
    /// the text is taken to have: it may end early.
    pub(crate) fn pays(&self, gain_s: f64) -> bool {
        self.reading_s() <= PAYBACK_SHARE * TEXT_TOKENS.min(self.tokens_max) * gain_s
    }

    /// The most that drafting can be hoped to gain: tokens per second against plain passes of `plain_s`, of
    /// which `compute_s` are not waiting. `verify_s` is the least that a pass of a width takes.
    pub(crate) fn hoped(
        &self,
        (plain_s, compute_s): (f64, f64),
        draft_len_max: usize,
        verify_s: impl Fn(usize) -> f64,
    ) -> f64 {
        let mut tokens = 1.0;
        let rates = (1..=draft_len_max).map(|draft_len| {
            tokens += HOPED_ACCEPTANCE.powi(draft_len as i32);
            let drafting_s = draft_len as f64 * self.token_share * compute_s;
            tokens * plain_s / (verify_s(draft_len) + drafting_s)
        });
        rates.fold(0.0, f64::max)
    }

    /// Whether a gain of that size is worth a try.
    pub(crate) fn is_hopeful(hoped: f64) -> bool {
        hoped >= 1.0 + HOPED_GAIN_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prospect(token_share: f64) -> Prospect {
        Prospect {
            token_share,
            prefill_s: 10.0,
            prefill_compute_s: 10.0,
            unread_max: 300,
            tokens_max: 1e6,
            ..Prospect::default()
        }
    }

    #[test]
    fn reading_is_small_up_to_a_hundredth_of_a_text_and_worth_a_look_up_to_little_more_of_what_is_left() {
        // 5 s of reading.
        let prospect = prospect(0.5);
        assert!(prospect.is_small(5.0 / 2.56 + 0.01) && !prospect.is_small(5.0 / 2.56 - 0.01));
        assert!(prospect.is_worth_a_look(5.0 / 3.84 + 0.01) && !prospect.is_worth_a_look(5.0 / 3.84 - 0.01));
        let ending = Prospect { tokens_max: 400.0, tokens_written: 300.0, ..prospect };
        assert!(ending.is_small(2.0) && !ending.is_worth_a_look(2.0) && ending.is_worth_a_look(3.4));
    }

    #[test]
    fn a_draft_model_of_half_the_target_is_hopeless_where_rows_cost_and_hopeful_where_they_do_not() {
        let free = prospect(0.5).hoped((1.0, 1.0), 8, |_| 1.0);
        let dear = prospect(0.5).hoped((1.0, 1.0), 8, |k| 1.0 + 0.45 * k as f64);
        assert!(Prospect::is_hopeful(free) && !Prospect::is_hopeful(dear), "{free} {dear}");
    }

    #[test]
    fn a_target_that_waits_for_the_disk_leaves_its_draft_model_time() {
        let waits = prospect(0.5).hoped((1.0, 0.1), 8, |k| 1.0 + 0.3 * k as f64);
        let computes = prospect(0.5).hoped((1.0, 1.0), 8, |k| 1.0 + 0.3 * k as f64);
        assert!(waits > 1.2 * computes, "{waits} {computes}");
    }

    #[test]
    fn reading_is_measured_against_the_text() {
        assert!(!prospect(0.0).reads_much(0.1) && prospect(0.0).is_affordable(0.1));
        assert!(prospect(0.5).reads_much(1.0) && prospect(0.5).is_affordable(1.0));
        assert!(!prospect(0.5).is_affordable(0.1));
        let later = Prospect { passes: 200, compute_s: 200.0, ..prospect(0.5) };
        assert!(!later.is_affordable(1.0), "it has grown");
        assert!(Prospect { unread_max: 8, ..later }.is_affordable(1.0), "it reads the end alone");
        let short = Prospect { tokens_max: 16.0, ..prospect(0.5) };
        assert!(!short.is_affordable(1.0), "the text may not last as long");
        assert!(prospect(0.5).pays(0.1) && !prospect(0.5).pays(0.05) && !short.pays(0.5));
    }
}
