//! Acceptance statistics: how many drafted tokens stood, in total and by their place in the draft.
//!
//! Owns the counters behind the `speculation` object of reports. It must not know time or costs.

/// Counts over the verification passes of one or more generations.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct AcceptanceStats {
    /// Drafted tokens that were verified.
    pub proposed: u64,
    /// Drafted tokens that stood.
    pub accepted: u64,
    /// Target passes, those with an empty draft included.
    pub passes: u64,
    /// `offered_at[i]`: passes that verified an (i+1)-th drafted token.
    pub offered_at: Vec<u64>,
    /// `accepted_at[i]`: passes in which the (i+1)-th drafted token stood.
    pub accepted_at: Vec<u64>,
}

/// How one place of the draft fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PositionAcceptance {
    /// Passes that verified a drafted token at this place.
    pub offered: u64,
    /// Passes in which it stood.
    pub accepted: u64,
}

impl AcceptanceStats {
    /// Counts one pass that verified `draft_len` drafted tokens, of which the first `accepted` stood.
    pub fn record(&mut self, draft_len: usize, accepted: usize) {
        debug_assert!(accepted <= draft_len, "a pass accepts no more than it verified");
        self.passes += 1;
        self.proposed += draft_len as u64;
        self.accepted += accepted as u64;
        if self.offered_at.len() < draft_len {
            self.offered_at.resize(draft_len, 0);
            self.accepted_at.resize(draft_len, 0);
        }
        self.offered_at[..draft_len].iter_mut().for_each(|n| *n += 1);
        self.accepted_at[..accepted].iter_mut().for_each(|n| *n += 1);
    }

    /// By place in the draft, the first drafted token first.
    pub fn by_position(&self) -> Vec<PositionAcceptance> {
        let counts = self.offered_at.iter().zip(&self.accepted_at);
        counts.map(|(&offered, &accepted)| PositionAcceptance { offered, accepted }).collect()
    }

    /// Mean number of drafted tokens verified in a pass; 0 before the first pass.
    pub fn draft_len_mean(&self) -> f64 {
        ratio(self.proposed, self.passes)
    }

    /// Mean number of drafted tokens that stood in a pass, the target's own token not counted.
    pub fn accepted_per_pass(&self) -> f64 {
        ratio(self.accepted, self.passes)
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_counted_by_position() {
        let mut stats = AcceptanceStats::default();
        stats.record(3, 2);
        stats.record(0, 0);
        stats.record(1, 1);
        assert_eq!((stats.proposed, stats.accepted, stats.passes), (4, 3, 3));
        assert_eq!(
            (stats.offered_at.as_slice(), stats.accepted_at.as_slice()),
            (&[2, 1, 1][..], &[2, 1, 0][..])
        );
        let at = |offered, accepted| PositionAcceptance { offered, accepted };
        assert_eq!(stats.by_position(), [at(2, 2), at(1, 1), at(1, 0)]);
        assert_eq!(stats.accepted_per_pass(), 1.0);
        assert!((stats.draft_len_mean() - 4.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn nothing_recorded_divides_by_nothing() {
        let stats = AcceptanceStats::default();
        assert_eq!((stats.draft_len_mean(), stats.accepted_per_pass()), (0.0, 0.0));
    }
}
