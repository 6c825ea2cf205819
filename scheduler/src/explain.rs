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
    /// taken; `None` before a plain pass was run.
    pub speedup: Option<f64>,
    /// T(K) / T(0) as predicted now, averaged over the passes run; `None` before a plain pass was run.
    pub t_ratio: Option<f64>,
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
    plain_s: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    passes: u64,
    tokens: usize,
    seconds: f64,
}

impl Ledger {
    pub(crate) fn new(draft_len_max: usize) -> Ledger {
        Ledger { entries: vec![Entry::default(); draft_len_max + 1], plain_s: 0.0 }
    }

    /// A pass planned with `draft_len` gave `tokens` in `seconds`, for which plain ones would have taken
    /// `plain_s`.
    pub(crate) fn book(&mut self, draft_len: usize, tokens: usize, seconds: f64, plain_s: f64) {
        if let Some(entry) = self.entries.get_mut(draft_len) {
            entry.passes += 1;
            entry.tokens += tokens;
            entry.seconds += seconds;
            self.plain_s += plain_s;
        }
    }

    /// Time of plain passes for the same tokens over the time taken.
    pub(crate) fn speedup(&self) -> Option<f64> {
        let spent: f64 = self.entries.iter().map(|entry| entry.seconds).sum();
        (spent > 0.0).then(|| self.plain_s / spent)
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
        assert_eq!(ledger.speedup(), None);
        ledger.book(0, 1, 1.0, 1.0);
        ledger.book(4, 3, 1.5, 3.0);
        ledger.book(4, 1, 1.5, 1.0);
        ledger.book(9, 99, 99.0, 1.0);
        assert_eq!(ledger.speedup(), Some(5.0 / 4.0));
        let lengths: Vec<_> = ledger.lengths().map(|(_, report)| report).collect();
        assert_eq!(lengths.iter().map(|l| (l.draft_len, l.passes)).collect::<Vec<_>>(), [(0, 1), (4, 2)]);
        assert_eq!((lengths[1].measured_s, lengths[1].measured_tokens), (1.5, 2.0));
    }
}
