//! What the target's own certainty says of a drafter: how much of its drafts will stand in the text as it is now.
//!
//! Owns [`Certainty`]. Every pass, with or without a draft, shows how probable the target's likeliest token was, and where
//! it is sure a good drafter mostly says the same. How much stands at which certainty is learned from what was verified, so
//! a drafter that stands anywhere alike is told little by it. It must not know costs or plans.

use crate::estimate::Survival;

/// Where bins of certainty begin: text that repeats itself is told from other text at the lower end by small models, at
/// the upper end by large ones.
const BOUNDS: [f64; 8] = [0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99];
const BINS: usize = BOUNDS.len() + 1;
/// Tokens of a bin over which is counted what stands,
const SHARE_MEMORY: f64 = 128.0;
/// and what is believed before, for how many tokens: halfway between these and what stands of all. Where the target is sure a
/// fair drafter misses about as often as it is not; where it is not, most of what stands is luck (eval/LOG.md, 2026-11-28, has
/// what stood of the demo pair's drafts: more at every certainty).
const PRIOR: [f64; BINS] = [0.35, 0.45, 0.5, 0.6, 0.72, 0.85, 0.92, 0.96, 0.98];
const PRIOR_WEIGHT: f64 = 4.0;
/// Tokens that this is worth beside those of all certainties.
const ALL_PRIOR_WEIGHT: f64 = 8.0;
/// Tokens that show what the text is like now.
const NOW_MEMORY: f64 = 16.0;
/// Tokens that another text, whose certainty says nothing of this one's, is worth.
const OTHER_TEXT_WEIGHT: f64 = 4.0;
/// A share of tokens that do not stand is taken to be at least this.
const FAILS_MIN: f64 = 0.01;
/// Drafts fail at most this many times as often as they did, or as rarely.
const RATIO_MAX: f64 = 8.0;

/// What stands by the target's certainty, and how certain it was when something was to be drafted and is now.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Certainty {
    stood: [f64; BINS],
    trials: [f64; BINS],
    /// The first tokens of passes that were to draft, as old ones fade in [`Survival`].
    then: [f64; BINS],
    /// The last tokens of the text.
    #[serde(skip)]
    now: [f64; BINS],
}

impl Certainty {
    pub(crate) fn new() -> Certainty {
        Certainty { stood: [0.0; BINS], trials: [0.0; BINS], then: [0.0; BINS], now: [0.0; BINS] }
    }

    /// Counts tokens of the text, by how certain the target was.
    pub(crate) fn see(&mut self, certainty: &[f32]) {
        certainty.iter().for_each(|certainty| count(&mut self.now, bin(*certainty), NOW_MEMORY));
    }

    /// Counts a pass that was to draft, as one of the last `memory`: what became of the `drafted` tokens that there were.
    /// The first `stood` of them did, where the target was that certain. Behind the first that did not, nothing is known.
    pub(crate) fn learn(&mut self, certainty: &[f32], (drafted, stood): (usize, usize), memory: f64) {
        certainty.first().into_iter().for_each(|first| count(&mut self.then, bin(*first), memory));
        for (i, &certainty) in certainty.iter().enumerate().take(drafted.min(stood + 1)) {
            let bin = bin(certainty);
            let keep = (SHARE_MEMORY / (self.trials[bin] + 1.0)).min(1.0);
            self.trials[bin] = keep * (self.trials[bin] + 1.0);
            self.stood[bin] = keep * (self.stood[bin] + f64::from(i < stood));
        }
    }

    /// Another text begins: what stood before is believed as far as `weight` passes, and this one is like that so far.
    pub(crate) fn begin_text(&mut self, weight: f64) {
        fade(&mut self.then, weight);
        self.now = self.then;
        fade(&mut self.now, OTHER_TEXT_WEIGHT);
    }

    /// What stood before is believed as far as `weight` passes.
    pub(crate) fn loosen(&mut self, weight: f64) {
        fade(&mut self.then, weight);
    }

    /// What stood before gives way, but for `keep` of it, to what is believed of the text as it is now.
    pub(crate) fn grow_old(&mut self, keep: f64) {
        let (then, now): (f64, f64) = (self.then.iter().sum(), self.now.iter().sum());
        let scale = if now > 0.0 { (1.0 - keep) * then / now } else { return };
        self.then.iter_mut().zip(&self.now).for_each(|(then, now)| *then = keep * *then + scale * now);
    }

    /// How many times as often drafts may be expected to fail now as in the passes that were to draft.
    pub(crate) fn fails_ratio(&self) -> f64 {
        match (self.fails(&self.now), self.fails(&self.then)) {
            (Some(now), Some(then)) => (now / then).clamp(1.0 / RATIO_MAX, RATIO_MAX),
            _ => 1.0,
        }
    }

    /// The share of `tokens` that does not stand; `None` of no tokens.
    fn fails(&self, tokens: &[f64; BINS]) -> Option<f64> {
        let all: f64 = tokens.iter().sum();
        let of_all = (self.stood.iter().sum(), self.trials.iter().sum());
        let each = tokens.iter().enumerate().map(|(bin, count)| count * (1.0 - self.share(bin, of_all)));
        (all > 0.0).then(|| (each.sum::<f64>() / all).max(FAILS_MIN))
    }

    fn share(&self, bin: usize, (stood, trials): (f64, f64)) -> f64 {
        let prior = PRIOR[bin];
        let of_all = (stood + ALL_PRIOR_WEIGHT * prior) / (trials + ALL_PRIOR_WEIGHT);
        let prior = 0.5 * (prior + of_all);
        (self.stood[bin] + PRIOR_WEIGHT * prior) / (self.trials[bin] + PRIOR_WEIGHT)
    }

    /// Whether it can have been counted: it may come from a file.
    pub(crate) fn is_sound(&self) -> bool {
        // A last digit may have been lost on the way through text.
        let is_count = |most: f64| move |count: &f64| (0.0..=most * (1.0 + 1e-9)).contains(count);
        let stood = self.stood.iter().zip(&self.trials).all(|(stood, trials)| is_count(*trials)(stood));
        let then = self.then.iter().all(is_count(Survival::MEMORY));
        stood && then && self.trials.iter().all(is_count(SHARE_MEMORY))
    }
}

fn bin(certainty: f32) -> usize {
    BOUNDS.iter().take_while(|bound| f64::from(certainty) >= **bound).count()
}

/// Counts one in `bin`, all fading so that they are at most `memory`.
fn count(bins: &mut [f64; BINS], bin: usize, memory: f64) {
    fade(bins, memory - 1.0);
    bins[bin] += 1.0;
}

/// Scales to at most `weight` in all.
fn fade(bins: &mut [f64; BINS], weight: f64) {
    let keep = weight / bins.iter().sum::<f64>().max(weight);
    bins.iter_mut().for_each(|count| *count *= keep);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After `tokens` verified one by one at each certainty, of which that share stood.
    fn after(tokens: usize, shares: [(f32, f64); 2]) -> Certainty {
        let mut certainty = Certainty::new();
        for i in 0..tokens {
            for (at, share) in shares {
                let stands = (i as f64 * share).fract() + share >= 1.0;
                certainty.see(&[at]);
                certainty.learn(&[at], (1, usize::from(stands)), Survival::MEMORY);
            }
        }
        certainty
    }

    #[test]
    fn a_drafter_that_stands_where_the_target_is_certain_is_expected_to_when_it_becomes_so() {
        let mut certainty = after(100, [(0.15, 0.5), (0.95, 0.9)]);
        // Verified at both alike, half and a tenth fail: 0.3.
        certainty.see(&[0.95; 64]);
        assert!((certainty.fails_ratio() - 0.1 / 0.3).abs() < 0.06, "{}", certainty.fails_ratio());
        certainty.see(&[0.15; 64]);
        assert!((certainty.fails_ratio() - 0.5 / 0.3).abs() < 0.1, "{}", certainty.fails_ratio());
    }

    #[test]
    fn a_drafter_that_stands_anywhere_alike_is_told_nothing() {
        let mut certainty = after(128, [(0.15, 0.5), (0.95, 0.5)]);
        certainty.see(&[0.95; 64]);
        assert!((certainty.fails_ratio() - 1.0).abs() < 0.06, "{}", certainty.fails_ratio());
    }

    #[test]
    fn nothing_is_said_before_a_text_was_seen_and_verified() {
        let mut certainty = Certainty::new();
        assert_eq!(certainty.fails_ratio(), 1.0);
        certainty.see(&[0.95; 64]);
        assert_eq!(certainty.fails_ratio(), 1.0, "nothing was verified");
        let mut another = after(100, [(0.15, 0.5), (0.95, 0.9)]);
        another.see(&[0.95; 64]);
        another.begin_text(4.0);
        assert_eq!(another.fails_ratio(), 1.0, "of the new text nothing is known");
    }

    #[test]
    fn behind_the_first_token_that_does_not_stand_nothing_is_counted() {
        let mut certainty = Certainty::new();
        certainty.learn(&[0.95, 0.95, 0.95, 0.95], (4, 1), Survival::MEMORY);
        assert_eq!(certainty.trials.iter().sum::<f64>(), 2.0);
        assert_eq!(certainty.stood.iter().sum::<f64>(), 1.0);
    }

    #[test]
    fn passes_without_a_draft_leave_nothing_to_compare_with_but_the_text_as_it_is() {
        let mut certainty = after(100, [(0.15, 0.5), (0.95, 0.9)]);
        certainty.see(&[0.95; 64]);
        let before = certainty.fails_ratio();
        certainty.grow_old(0.5);
        assert!(certainty.fails_ratio() > before && certainty.fails_ratio() < 1.0);
        certainty.grow_old(0.0);
        assert!((certainty.fails_ratio() - 1.0).abs() < 1e-9 && certainty.is_sound());
    }

    #[test]
    fn what_was_counted_is_sound_and_what_cannot_have_been_is_not() {
        let certainty = after(1000, [(0.15, 0.5), (0.95, 1.0)]);
        assert!(certainty.is_sound() && Certainty::new().is_sound());
        for broken in [f64::NAN, -1.0, 1e6] {
            let mut other = certainty.clone();
            other.stood[0] = broken;
            assert!(!other.is_sound());
            let mut other = certainty.clone();
            other.then[0] = broken;
            assert!(!other.is_sound());
        }
    }
}
