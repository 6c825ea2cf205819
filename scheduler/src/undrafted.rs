//! How many experts a pass of plain decoding would miss, were nothing drafted.
//!
//! Owns [`Undrafted`]: what the cache really misses, times how much less the shadow without drafts misses than the
//! one with them. It must not know caches, or what a miss costs.

use crate::StepOutcome;
use crate::estimate::Mean;

/// Passes over which misses are averaged.
const MEMORY: f64 = 48.0;
/// Passes before anything is said.
const PASSES_MIN: f64 = 4.0;

/// Running means of misses a pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Undrafted {
    real: Mean,
    as_run: Mean,
    /// A token.
    plain: Mean,
}

impl Undrafted {
    pub(crate) fn new() -> Undrafted {
        let none = Mean::prior(0.0, 0.0);
        Undrafted { real: none, as_run: none, plain: none }
    }

    pub(crate) fn add(&mut self, outcome: &StepOutcome) {
        let Some(shadow) = outcome.shadow else { return };
        self.real.add(outcome.misses as f64, MEMORY);
        self.as_run.add(shadow.as_run as f64, MEMORY);
        self.plain.add(shadow.plain as f64 / (1 + outcome.accepted) as f64, MEMORY);
    }

    /// Misses of a pass of plain decoding; `None` before enough is known, or where nothing was missed.
    pub(crate) fn misses(&self) -> Option<f64> {
        let is_known = self.real.weight() >= PASSES_MIN && self.as_run.value() > 0.0;
        is_known.then(|| self.plain.value() * self.real.value() / self.as_run.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drafthorse_offload::ShadowMisses;

    fn pass(misses: u64, (as_run, plain): (u64, u64), accepted: usize) -> StepOutcome {
        let shadow = Some(ShadowMisses { as_run, plain });
        StepOutcome { misses, accepted, draft_len: accepted, shadow, ..StepOutcome::default() }
    }

    #[test]
    fn the_shadows_difference_is_applied_to_what_was_really_missed() {
        let mut undrafted = Undrafted::new();
        // Two tokens a pass; as run 12 misses, without drafts 4 a token; the real policy misses half of that.
        (0..8).for_each(|_| undrafted.add(&pass(6, (12, 8), 1)));
        assert_eq!(undrafted.misses(), Some(2.0));
    }

    #[test]
    fn too_few_passes_or_none_with_a_shadow_say_nothing() {
        let mut undrafted = Undrafted::new();
        (0..3).for_each(|_| undrafted.add(&pass(6, (12, 8), 1)));
        assert_eq!(undrafted.misses(), None);
        (0..9).for_each(|_| undrafted.add(&StepOutcome::default()));
        assert_eq!(undrafted.misses(), None);
        let mut resident = Undrafted::new();
        (0..9).for_each(|_| resident.add(&pass(0, (0, 0), 1)));
        assert_eq!(resident.misses(), None);
    }
}
