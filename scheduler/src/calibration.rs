//! What a drafter's confidence is worth: the chance that a drafted token stands, learned as passes run.
//!
//! Owns [`Calibration`]: shares of tokens that stood, by the drafter that guessed them, their place in
//! the draft and their confidence (tenths). A cell with few samples leans on the same confidence at all
//! places, and that on the drafter as a whole. It must not know costs or plans.

use drafthorse_draft::{CONFIDENCE_BINS, confidence_bin};

/// What is believed before anything is measured, and for how many samples.
const PRIOR: f64 = 0.7;
const PRIOR_WEIGHT: f64 = 2.0;
/// Samples that a cell of one place must have to weigh as much as its confidence at all places.
const PLACE_WEIGHT: f64 = 12.0;
/// Samples a share is averaged over.
const MEMORY: f64 = 64.0;
/// Places told apart; the last stands for all behind it.
const PLACES: usize = 4;
/// More drafters than any chain has.
const SOURCES_MAX: usize = 64;

/// Acceptance by drafter, place and confidence.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Calibration {
    sources: Vec<Source>,
}

#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    all: Share,
    bins: [Share; CONFIDENCE_BINS],
    places: [[Share; CONFIDENCE_BINS]; PLACES],
}

/// Successes among trials, both fading.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Share {
    stood: f64,
    trials: f64,
}

impl Share {
    fn add(&mut self, stood: bool) {
        if self.trials + 1.0 > MEMORY {
            let keep = (MEMORY - 1.0) / self.trials;
            self.stood *= keep;
            self.trials *= keep;
        }
        self.stood += f64::from(stood);
        self.trials += 1.0;
    }

    /// The share, with `prior` counted as `weight` more trials.
    fn with_prior(&self, prior: f64, weight: f64) -> f64 {
        (self.stood + weight * prior) / (self.trials + weight)
    }

    fn is_sound(&self) -> bool {
        // A last digit may have been lost on the way through text.
        let most = self.trials * (1.0 + 1e-9);
        (0.0..f64::INFINITY).contains(&self.trials) && (0.0..=most).contains(&self.stood)
    }

    fn loosen(&mut self, weight: f64) {
        let keep = (weight / self.trials.max(weight)).min(1.0);
        self.stood *= keep;
        self.trials *= keep;
    }
}

impl Calibration {
    pub(crate) fn new() -> Calibration {
        Calibration::default()
    }

    /// Counts a drafted token that verification reached: every one before it (`place` of them) stood.
    pub(crate) fn add(&mut self, source: usize, place: usize, confidence: f32, stood: bool) {
        self.add_by_confidence(source, place, confidence, stood);
        self.sources[source].all.add(stood);
    }

    /// Counts a drafted token that was not worth verifying, all before it having stood, by its confidence: else such
    /// tokens would stay so for ever. Most of them are doubtful, so they say nothing of the drafter as a whole.
    pub(crate) fn add_by_confidence(&mut self, source: usize, place: usize, confidence: f32, stands: bool) {
        if self.sources.len() <= source {
            self.sources.resize_with(source + 1, Source::default);
        }
        let Source { bins, places, .. } = &mut self.sources[source];
        let bin = confidence_bin(confidence);
        [&mut bins[bin], &mut places[place.min(PLACES - 1)][bin]]
            .into_iter()
            .for_each(|share| share.add(stands));
    }

    /// The chance that a token stands, given that all before it do.
    pub(crate) fn acceptance(&self, source: usize, place: usize, confidence: f32) -> f64 {
        let Some(Source { all, bins, places }) = self.sources.get(source) else { return PRIOR };
        let bin = confidence_bin(confidence);
        let drafter = all.with_prior(PRIOR, PRIOR_WEIGHT);
        let at_all_places = bins[bin].with_prior(drafter, PRIOR_WEIGHT);
        places[place.min(PLACES - 1)][bin].with_prior(at_all_places, PLACE_WEIGHT)
    }

    /// What each tenth of confidence of a drafter is worth, wherever it stands in the draft.
    pub(crate) fn table(&self, source: usize) -> [f32; CONFIDENCE_BINS] {
        let Some(Source { all, bins, .. }) = self.sources.get(source) else {
            return [PRIOR as f32; CONFIDENCE_BINS];
        };
        let drafter = all.with_prior(PRIOR, PRIOR_WEIGHT);
        bins.map(|bin| bin.with_prior(drafter, PRIOR_WEIGHT) as f32)
    }

    /// The share of a drafter's tokens that stand, all confidences together.
    pub(crate) fn overall(&self, source: usize) -> f64 {
        self.sources.get(source).map_or(PRIOR, |source| source.all.with_prior(PRIOR, PRIOR_WEIGHT))
    }

    /// Whether it can have been counted: it may come from a file.
    pub(crate) fn is_sound(&self) -> bool {
        let shares = |source: &Source| {
            let Source { all, bins, places } = *source;
            places.into_iter().flatten().chain(bins).chain([all]).all(|share| share.is_sound())
        };
        self.sources.len() <= SOURCES_MAX && self.sources.iter().all(shares)
    }

    /// Believes the next few tokens more than the old ones.
    pub(crate) fn loosen(&mut self, weight: f64) {
        for Source { all, bins, places } in &mut self.sources {
            let shares = places.iter_mut().flatten().chain(bins).chain([all]);
            shares.for_each(|share| share.loosen(weight));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confidence_is_worth_what_it_proved_to_be_worth() {
        let mut calibration = Calibration::new();
        (0..200).for_each(|i| {
            calibration.add(0, 0, 0.95, i % 4 == 0);
            calibration.add(0, 0, 0.15, true);
        });
        assert!((calibration.acceptance(0, 0, 0.99) - 0.25).abs() < 0.06);
        assert!(calibration.acceptance(0, 0, 0.11) > 0.95);
        assert!((calibration.table(0)[9] - 0.25).abs() < 0.06);
    }

    #[test]
    fn what_was_not_verified_tells_of_its_confidence_and_not_of_the_drafter() {
        let mut calibration = Calibration::new();
        (0..100).for_each(|_| calibration.add(0, 0, 0.9, true));
        let overall = calibration.overall(0);
        (0..100).for_each(|_| calibration.add_by_confidence(0, 1, 0.2, false));
        assert_eq!(calibration.overall(0), overall);
        assert!(calibration.acceptance(0, 1, 0.2) < 0.1 && calibration.acceptance(0, 0, 0.9) > 0.9);
    }

    #[test]
    fn places_differ_once_they_have_shown_it_and_lean_on_each_other_before() {
        let mut calibration = Calibration::new();
        (0..300).for_each(|_| {
            calibration.add(0, 0, 0.9, true);
            calibration.add(0, 1, 0.9, false);
        });
        assert!(calibration.acceptance(0, 0, 0.9) > 0.85);
        assert!(calibration.acceptance(0, 1, 0.9) < 0.15);
        let unseen = calibration.acceptance(0, 2, 0.9);
        assert!((0.3..0.7).contains(&unseen), "as at all places: {unseen}");
    }

    #[test]
    fn drafters_are_told_apart_and_an_unknown_one_starts_from_the_prior() {
        let mut calibration = Calibration::new();
        (0..100).for_each(|_| calibration.add(1, 0, 0.9, false));
        assert!(calibration.acceptance(1, 0, 0.9) < 0.1);
        for unknown in [0, 7] {
            assert!((calibration.acceptance(unknown, 0, 0.9) - PRIOR).abs() < 1e-9);
        }
    }

    #[test]
    fn what_was_loosened_is_soon_believed_otherwise() {
        let mut calibration = Calibration::new();
        (0..200).for_each(|_| calibration.add(0, 0, 0.9, false));
        calibration.loosen(4.0);
        (0..16).for_each(|_| calibration.add(0, 0, 0.9, true));
        assert!(calibration.acceptance(0, 0, 0.9) > 0.6, "{}", calibration.acceptance(0, 0, 0.9));
    }
}
