//! What the controller predicted and what came of it, for people and reports.
//!
//! Owns [`Explanation`] and the [`Ledger`] of passes by planned draft length. It decides nothing.

use crate::cost::CostTerms;

/// Why the draft length is what it is, with the numbers behind it.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Explanation {
    /// The draft length in use; 0 is plain decoding.
    pub draft_len: usize,
    /// One line on why.
    pub reason: String,
    /// The fitted terms of a target pass.
    pub terms: CostTerms,
    /// Draft lengths that were planned, ascending.
    pub lengths: Vec<LengthReport>,
    /// Time that plain passes would have taken for the same tokens, by the cost model, over the time
    /// taken; `None` before a plain pass was run, in this run or in one whose lessons it has.
    pub speedup: Option<f64>,
    /// T(K) / T(0) as predicted now, averaged over the passes run; `None` before a plain pass was run.
    pub t_ratio: Option<f64>,
    /// Drafts that nobody verified, of which what came told what would have stood.
    pub watched: u64,
    /// Of their first tokens, those that would have.
    pub watched_stood: u64,
}

/// A planned draft length: T(K) and tau as predicted now and as measured so far.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct LengthReport {
    /// Tokens drafted at most.
    pub draft_len: usize,
    /// Passes planned so.
    pub passes: u64,
    /// Seconds a pass, drafting included, as the cost model has it now.
    pub predicted_s: Option<f64>,
    /// The mean of the passes run.
    pub measured_s: f64,
    /// Tokens a pass, as acceptance so far predicts.
    pub predicted_tokens: f64,
    /// The mean of the passes run.
    pub measured_tokens: f64,
    /// Distinct experts expected of a pass over that many drafted tokens.
    pub experts: f64,
    /// Of these, those not resident.
    pub misses: f64,
}

/// What passes gave and took, by planned draft length.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    entries: Vec<Entry>,
    /// Of passes without a draft.
    plain_s: f64,
    /// By drafted tokens verified: the passes' seconds, each times its tokens.
    token_seconds: Vec<f64>,
    /// Drafts that were watched, and those whose first token would have stood.
    watched: (u64, u64),
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    passes: u64,
    tokens: usize,
    seconds: f64,
}

impl Ledger {
    pub(crate) fn new(draft_len_max: usize) -> Ledger {
        Ledger {
            entries: vec![Entry::default(); draft_len_max + 1],
            plain_s: 0.0,
            token_seconds: vec![0.0; draft_len_max + 1],
            watched: (0, 0),
        }
    }

    /// A draft was compared with what came.
    pub(crate) fn book_watched(&mut self, first_stood: bool) {
        self.watched = (self.watched.0 + 1, self.watched.1 + u64::from(first_stood));
    }

    /// Drafts that were, and those whose first token would have stood.
    pub(crate) fn watched(&self) -> (u64, u64) {
        self.watched
    }

    /// A pass planned with `draft_len` verified `width` drafted tokens and gave `tokens` in `verify_s`, after
    /// `draft_s` of drafting.
    pub(crate) fn book(
        &mut self,
        (draft_len, width): (usize, usize),
        tokens: usize,
        (draft_s, verify_s): (f64, f64),
    ) {
        let (Some(entry), Some(weighted)) =
            (self.entries.get_mut(draft_len), self.token_seconds.get_mut(width))
        else {
            return;
        };
        entry.passes += 1;
        entry.tokens += tokens;
        entry.seconds += draft_s + verify_s;
        match draft_len {
            0 => self.plain_s += draft_s + verify_s,
            _ => *weighted += tokens as f64 * verify_s,
        }
    }

    /// Time of plain passes for the same tokens over the time taken. `worth` is how many plain passes one takes
    /// that verifies a width: so each pass is compared with a plain one at its own time, by what is known in the
    /// end. `None` before a pass was run, and where the worth of one is not known.
    pub(crate) fn speedup(&self, worth: impl Fn(usize) -> Option<f64>) -> Option<f64> {
        let spent: f64 = self.entries.iter().map(|entry| entry.seconds).sum();
        let drafted = self.token_seconds.iter().enumerate().filter(|(_, seconds)| **seconds > 0.0);
        let drafted = drafted.map(|(width, seconds)| Some(seconds / worth(width)?)).sum::<Option<f64>>()?;
        (spent > 0.0).then(|| (self.plain_s + drafted) / spent)
    }

    /// Passes planned with that length.
    pub(crate) fn passes(&self, draft_len: usize) -> u64 {
        self.entries.get(draft_len).map_or(0, |entry| entry.passes)
    }

    /// The lengths that were planned, with what was measured of each.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = (usize, LengthReport)> + '_ {
        let tried = self.entries.iter().enumerate().filter(|(_, entry)| entry.passes > 0);
        tried.map(|(draft_len, entry)| {
            let measured_s = entry.seconds / entry.passes as f64;
            let measured_tokens = entry.tokens as f64 / entry.passes as f64;
            let report = LengthReport {
                draft_len,
                passes: entry.passes,
                measured_s,
                measured_tokens,
                ..LengthReport::default()
            };
            (draft_len, report)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_compares_with_plain_passes_for_the_same_tokens() {
        let mut ledger = Ledger::new(4);
        let worth = |width: usize| [Some(1.0), None, Some(1.25), None, Some(1.5)][width];
        assert_eq!(ledger.speedup(worth), None);
        ledger.book((0, 0), 1, (0.0, 1.0));
        ledger.book((4, 4), 3, (0.0, 1.5));
        ledger.book((4, 2), 1, (0.25, 1.25));
        ledger.book((9, 9), 99, (0.0, 99.0));
        assert_eq!(ledger.speedup(worth), Some(5.0 / 4.0));
        assert_eq!(ledger.speedup(|_| None), None, "not known what they are worth");
        let lengths: Vec<_> = ledger.lengths().map(|(_, report)| report).collect();
        assert_eq!(lengths.iter().map(|l| (l.draft_len, l.passes)).collect::<Vec<_>>(), [(0, 1), (4, 2)]);
        assert_eq!((lengths[1].measured_s, lengths[1].measured_tokens), (1.5, 2.0));
    }
}
