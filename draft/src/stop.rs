//! When a drafter should stop by itself: a draft is worth its time only while it is likely to stand.
//!
//! Owns [`StopRule`], which whoever plans the draft fills in and drafters whose tokens cost time ask
//! after each token. It must not know costs: they are folded into one threshold (SpecDec++,
//! arXiv 2405.19715; ALGORITHMS.md 0.4 and H.4).

/// Sources of a draft that are told apart; those beyond share the last one's table.
pub const STOP_SOURCES: usize = 4;
/// Bins of confidence that are told apart.
pub const CONFIDENCE_BINS: usize = 10;

/// The bin of a confidence in 0 to 1; NaN is in the lowest.
pub fn confidence_bin(confidence: f32) -> usize {
    ((confidence * CONFIDENCE_BINS as f32) as usize).min(CONFIDENCE_BINS - 1)
}

/// Draft on while the whole draft is likely enough to stand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StopRule {
    /// By source of the draft: the chance that a token of each bin of confidence stands, given that those
    /// before it do.
    pub acceptance: [[f32; CONFIDENCE_BINS]; STOP_SOURCES],
    /// Whose table counts.
    pub source: usize,
    /// Stop when the chance that all tokens so far stand is below this; 0 never stops.
    pub survival_min: f32,
}

impl StopRule {
    /// Drafts as many tokens as were asked for.
    pub const NEVER: StopRule =
        StopRule { acceptance: [[1.0; CONFIDENCE_BINS]; STOP_SOURCES], source: 0, survival_min: 0.0 };

    /// The rule for the drafter of that place in a chain.
    pub fn of(self, source: usize) -> StopRule {
        StopRule { source, ..self }
    }

    /// The chance that a draft stands which stood with chance `survival` before a token of `confidence`.
    pub fn survival(&self, survival: f32, confidence: f32) -> f32 {
        survival * self.acceptance[self.source.min(STOP_SOURCES - 1)][confidence_bin(confidence)]
    }

    /// Whether a draft with this chance to stand is not worth another token.
    pub fn stops(&self, survival: f32) -> bool {
        survival < self.survival_min
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_confidence_has_its_bin() {
        assert_eq!([0.0, 0.099, 0.1, 0.95, 1.0].map(confidence_bin), [0, 0, 1, 9, 9]);
        assert_eq!([f32::NAN, -1.0, 7.0].map(confidence_bin), [0, 0, 9]);
    }

    #[test]
    fn a_doubtful_token_ends_the_draft_and_a_sure_one_does_not() {
        let mut acceptance = [[0.2; CONFIDENCE_BINS]; STOP_SOURCES];
        acceptance[1][9] = 0.9;
        let rule = StopRule { acceptance, source: 0, survival_min: 0.5 };
        assert!(rule.stops(rule.survival(1.0, 0.95)), "another drafter's confidence");
        assert!(rule.of(99).stops(rule.of(99).survival(1.0, 0.95)));
        let rule = rule.of(1);
        let (sure, doubtful) = (rule.survival(1.0, 0.95), rule.survival(1.0, 0.3));
        assert!(!rule.stops(sure) && rule.stops(doubtful));
        assert!(!rule.stops(rule.survival(sure, 0.95)) && rule.stops(rule.survival(sure, 0.3)));
        assert!(!StopRule::NEVER.stops(StopRule::NEVER.survival(1.0, 0.0)));
    }
}
