//! How many experts a pass of plain decoding would miss, were nothing drafted.
//!
//! Owns [`Undrafted`]: what the cache really misses, times how much less the shadow without drafts misses than the
//! one with them. It must not know caches, or what a miss costs.

use crate::StepOutcome;
use crate::estimate::Mean;

/// Passes over which misses are averaged.
const MEMORY: f64 = 48.0;
/// Part of the passes so far over which they are at most.
const YOUNG_SHARE: f64 = 0.5;
/// Passes before anything is said.
const PASSES_MIN: f64 = 4.0;

/// Running means over passes: a pass of many tokens tells as much more than one of a single one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Undrafted {
    real: Mean,
    as_run: Mean,
    plain: Mean,
    tokens: Mean,
    passes: f64,
}

impl Undrafted {
    pub(crate) fn new() -> Undrafted {
        let none = Mean::prior(0.0, 0.0);
        Undrafted { real: none, as_run: none, plain: none, tokens: none, passes: 0.0 }
    }

    pub(crate) fn add(&mut self, outcome: &StepOutcome) {
        let Some(shadow) = outcome.shadow else { return };
        self.passes += 1.0;
        // Caches begin empty: what was met first is to fade before the memory is full.
        let memory = (YOUNG_SHARE * self.passes).clamp(PASSES_MIN, MEMORY);
        self.real.add(outcome.misses as f64, memory);
        self.as_run.add(shadow.as_run as f64, memory);
        self.plain.add(shadow.plain as f64, memory);
        self.tokens.add((1 + outcome.accepted) as f64, memory);
    }

    /// Misses of a pass of plain decoding; `None` before enough is known, or where nothing was missed.
    pub(crate) fn misses(&self) -> Option<f64> {
        let is_known = self.real.weight() >= PASSES_MIN && self.as_run.value() > 0.0;
        let a_token = self.plain.value() / self.tokens.value();
        is_known.then(|| a_token * self.real.value() / self.as_run.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drafthorse_offload::ShadowMisses;

    fn pass(misses: u64, (as_run, plain): (u64, u64), accepted: usize) -> StepOutcome<'static> {
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
    fn a_pass_counts_by_its_tokens_and_the_first_ones_are_forgotten_first() {
        let mut undrafted = Undrafted::new();
        (0..8).for_each(|_| undrafted.add(&pass(4, (4, 4), 0)));
        (0..8).for_each(|_| undrafted.add(&pass(4, (4, 8), 7)));
        // 4 a token of the first eight, 1 of the other 64: 96 of 72 by tokens, 2.5 by passes.
        let misses = undrafted.misses().expect("enough");
        assert!(misses > 1.0 && misses < 1.33, "{misses}");
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
