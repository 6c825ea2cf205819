//! What the controller says of itself: predicted and measured costs, and why drafting is on or off.
//!
//! Owns the sentences and the report. It decides nothing.

use super::choosing::InUse;
use super::learning::LOSS_SHARE;
use super::{Controller, GAIN_MIN};
use crate::DraftLen;
use crate::explain::{Explanation, LengthReport};
use crate::prospect::Prospect;

impl Controller {
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
        if self.reads_text && !self.reading_pays() {
            return Some(self.reading());
        }
        if self.in_use().draft_len > 0 {
            return None;
        }
        let best = self.best().0;
        if best > 0 && self.account.balance() >= 0.0 {
            return Some(format!(
                "a draft of {best} would gain, but one of which little stands would lose more than drafting may so far; it \
                 is used when time has paid for that",
            ));
        }
        if best > 0 {
            return Some(format!(
                "drafting has lately lost more than {:.0} % of the time; it is tried again when that is made up for",
                100.0 * LOSS_SHARE,
            ));
        }
        self.why_off()
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
            Some(self.reading())
        } else {
            None
        }
    }

    fn reading(&self) -> String {
        format!(
            "the draft model would take about {:.1} s to read the text, more than a small part of the time, or than it is \
             known to win back",
            self.prospect.reading_s(),
        )
    }

    /// What was predicted, what was measured, and what follows: for `--explain` and reports.
    pub fn explanation(&self) -> Explanation {
        let (draft_len, rate) = match self.config.mode {
            DraftLen::Fixed(draft_len) => (draft_len, self.rate(draft_len)),
            DraftLen::Auto => {
                let InUse { draft_len, rate, .. } = self.in_use();
                (draft_len, rate)
            }
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
        let (watched, watched_stood) = self.ledger.watched();
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
            speedup: self.ledger.speedup(|width| self.worth(width)).filter(|_| plain_known),
            t_ratio: t_ratio.filter(|_| plain_known && passes > 0),
            watched,
            watched_stood,
        }
    }

    /// How many plain passes one takes that verifies `width` drafted tokens.
    fn worth(&self, width: usize) -> Option<f64> {
        Some(self.verify_s.expect(width)? / self.plain_s()?)
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

    fn why_off(&self) -> Option<String> {
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
}
