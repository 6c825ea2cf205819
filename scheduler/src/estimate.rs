//! What the controller has measured: means that forget, cost by width, acceptance by position.
//!
//! Owns the estimators and how they answer for widths that were never tried. It must not know plans
//! or when to measure. A width is the number of drafted tokens in a pass.

use crate::DRAFT_LEN_LIMIT;

/// A mean in which a sample's weight fades: an average of the first `memory` samples, exponential after.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mean {
    value: f64,
    weight: f64,
}

impl Mean {
    /// A mean that starts at `value` as if `weight` samples had said so.
    pub(crate) const fn prior(value: f64, weight: f64) -> Mean {
        Mean { value, weight }
    }

    pub(crate) fn value(&self) -> f64 {
        self.value
    }

    /// Samples it is worth.
    pub(crate) fn weight(&self) -> f64 {
        self.weight
    }

    pub(crate) fn add(&mut self, sample: f64, memory: f64) {
        self.weight = (self.weight + 1.0).min(memory);
        self.value += (sample - self.value) / self.weight;
    }

    /// Trusts the past at least as much as `weight` samples.
    pub(crate) fn tighten(&mut self, weight: f64) {
        self.weight = self.weight.max(weight);
    }

    /// Whether it is a share of at most `memory` samples.
    fn is_share(&self, memory: f64) -> bool {
        // A last digit may have been lost on the way through text.
        (0.0..=1.0 + 1e-9).contains(&self.value) && (0.0..=memory).contains(&self.weight)
    }

    /// Trusts the past as little as `weight` samples, so that new ones are believed soon.
    pub(crate) fn loosen(&mut self, weight: f64) {
        self.weight = self.weight.min(weight);
    }
}

/// Time by width, in whatever unit it is given, interpolated between the widths measured.
#[derive(Clone, Debug)]
pub(crate) struct CostCurve {
    at: Vec<Option<Mean>>,
}

impl CostCurve {
    const MEMORY: f64 = 16.0;
    /// One stalled pass counts at most this many times what is expected, so it decides nothing alone.
    const CLIP: f64 = 3.0;

    /// A curve for widths 0 to `width_max` with nothing measured.
    pub(crate) fn new(width_max: usize) -> CostCurve {
        CostCurve { at: vec![None; width_max + 1] }
    }

    /// A curve that is known to be 0 at width 0.
    pub(crate) fn through_zero(width_max: usize) -> CostCurve {
        let mut curve = CostCurve::new(width_max);
        curve.at[0] = Some(Mean::prior(0.0, CostCurve::MEMORY));
        curve
    }

    /// A first sample more than twice the second is dropped: the first pass of a kind also warms
    /// caches, and one outlier would otherwise condemn the width.
    pub(crate) fn add(&mut self, width: usize, seconds: f64) {
        self.add_above(width, seconds, 0.0);
    }

    /// As [`CostCurve::add`], but seconds up to `floor` are believed at once, however little was expected.
    pub(crate) fn add_above(&mut self, width: usize, seconds: f64, floor: f64) {
        match &mut self.at[width] {
            Some(mean) if mean.weight == 1.0 && mean.value > 2.0 * seconds => {
                *mean = Mean::prior(seconds, 2.0)
            }
            Some(mean) => mean.add(seconds.min((CostCurve::CLIP * mean.value).max(floor)), CostCurve::MEMORY),
            none => *none = Some(Mean::prior(seconds, 1.0)),
        }
    }

    /// The expected time at `width`: measured, or on the line between its measured neighbours, or
    /// beyond the widest one on the line through it from the narrowest. `None` with nothing measured.
    pub(crate) fn expect(&self, width: usize) -> Option<f64> {
        let (below, above) = (self.measured_below(width), self.measured_above(width));
        match (below, above) {
            (Some(a), Some(b)) => Some(line(a, b, width)),
            (Some(a), None) => self.measured_above(0).map(|first| line(first, a, width).max(a.1)),
            (None, Some(b)) => Some(b.1),
            (None, None) => None,
        }
    }

    /// Whether `width` itself was measured.
    pub(crate) fn is_measured(&self, width: usize) -> bool {
        self.at[width].is_some()
    }

    /// The widths measured, 0 apart, with their seconds.
    pub(crate) fn measured(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        let widths = self.at.iter().enumerate().skip(1);
        widths.filter_map(|(width, mean)| mean.map(|mean| (width, mean.value)))
    }

    fn measured_below(&self, width: usize) -> Option<(usize, f64)> {
        (0..=width).rev().find_map(|n| self.at[n].map(|mean| (n, mean.value)))
    }

    fn measured_above(&self, width: usize) -> Option<(usize, f64)> {
        (width..self.at.len()).find_map(|n| self.at[n].map(|mean| (n, mean.value)))
    }
}

fn line(a: (usize, f64), b: (usize, f64), width: usize) -> f64 {
    if a.0 == b.0 {
        return a.1;
    }
    let share = (width as f64 - a.0 as f64) / (b.0 as f64 - a.0 as f64);
    a.1 + share * (b.1 - a.1)
}

/// By position in the draft: how often a token is there to be verified, and how often it stands.
/// Both are shares of the passes planned that long, so a drafter that abstains is counted as is.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Survival {
    offered: Vec<Mean>,
    /// Of the passes in which all before it stood.
    stands: Vec<Mean>,
    /// Of all tokens verified behind ones that stood.
    all: Mean,
    /// The same over many texts.
    #[serde(default = "Survival::usual_at_first")]
    usual: Mean,
    /// How many times as often as then tokens are expected to fail now: [`crate::certainty`].
    #[serde(skip, default = "Survival::as_then")]
    fails_ratio: f64,
}

impl Survival {
    pub(crate) const MEMORY: f64 = 48.0;
    /// What is believed before anything is measured, and for how many samples.
    const PRIOR_ACCEPTANCE: f64 = 0.7;
    const PRIOR_WEIGHT: f64 = 2.0;
    /// Tokens over which is counted what usually stands; what that is believed to be at first, less than a text's own as
    /// it brings back drafts that failed, and for how many of them.
    const USUAL_MEMORY: f64 = 256.0;
    const USUAL_PRIOR: f64 = 0.6;
    const USUAL_PRIOR_WEIGHT: f64 = 8.0;
    /// Passes without a draft that make other texts worth one sample more.
    const USUAL_PASSES: f64 = 16.0;
    /// Samples of a position, not the first, that the tokens of all positions are worth to it.
    const ALL_WEIGHT: f64 = 6.0;

    pub(crate) fn new() -> Survival {
        let all = Mean::prior(Survival::PRIOR_ACCEPTANCE, Survival::PRIOR_WEIGHT);
        let usual = Survival::usual_at_first();
        Survival { offered: Vec::new(), stands: Vec::new(), all, usual, fails_ratio: Survival::as_then() }
    }

    fn as_then() -> f64 {
        1.0
    }

    /// From now on tokens are expected to fail so many times as often as those counted did.
    pub(crate) fn expect_fails(&mut self, ratio: f64) {
        self.fails_ratio = ratio;
    }

    fn usual_at_first() -> Mean {
        Mean::prior(Survival::USUAL_PRIOR, Survival::USUAL_PRIOR_WEIGHT)
    }

    /// Counts a pass planned with `planned` drafted tokens that verified `width` and accepted `accepted`, as one of the last
    /// `memory`.
    pub(crate) fn add(&mut self, planned: usize, (width, accepted): (usize, usize), memory: f64) {
        while self.offered.len() < planned {
            let offered = self.offered(self.offered.len() + 1);
            let first = self.stands.is_empty();
            self.offered.push(Mean::prior(offered, Survival::PRIOR_WEIGHT));
            let weight = if first { Survival::PRIOR_WEIGHT } else { 0.0 };
            self.stands.push(Mean::prior(Survival::PRIOR_ACCEPTANCE, weight));
        }
        for position in 1..=planned {
            self.offered[position - 1].add(f64::from(position <= width), memory);
            if position <= accepted + 1 {
                self.stands[position - 1].add(f64::from(position <= accepted), memory);
            }
        }
        // Watched drafts overlap: each token of the text is the first of one.
        let is_verified = memory >= Survival::MEMORY;
        let reached = width.min(accepted + 1).min(if is_verified { planned } else { 1 });
        for position in 1..=reached {
            self.all.add(f64::from(position <= accepted), memory);
            if is_verified {
                self.usual.add(f64::from(position <= accepted), Survival::USUAL_MEMORY);
            }
        }
    }

    /// Whether it can have been counted: it may come from a file.
    pub(crate) fn is_sound(&self) -> bool {
        let places = self.offered.len();
        let shares = self.offered.iter().chain(&self.stands).chain([&self.all]);
        places <= DRAFT_LEN_LIMIT
            && places == self.stands.len()
            && shares.copied().all(|mean| mean.is_share(Survival::MEMORY))
            && self.usual.is_share(Survival::USUAL_MEMORY)
    }

    /// Nothing was drafted for `age` passes: what stood before them is believed the less, and the more what stands in
    /// other texts, if that is more: who drafts well elsewhere may have been led astray.
    /// Returns the part of it that is left.
    pub(crate) fn grow_old(&mut self, age: f64) -> f64 {
        let (usual, grown) = (self.usual.value, age / Survival::USUAL_PASSES);
        let first = self.stands.first().unwrap_or(&self.all);
        let gives_way = grown > 0.0 && first.value < usual;
        let keep = if gives_way { first.weight / (first.weight + grown) } else { 1.0 };
        // What usually stands knows nothing of what this text was like when it was drafted.
        self.fails_ratio = self.fails_ratio / (keep + (1.0 - keep) * self.fails_ratio);
        let means = self.stands.iter_mut().chain([&mut self.all]);
        for mean in means.filter(|mean| mean.value < usual && mean.weight > 0.0) {
            mean.value = (mean.value * mean.weight + usual * grown) / (mean.weight + grown);
        }
        keep
    }

    /// Believes the next few passes more than the old ones.
    pub(crate) fn loosen(&mut self, weight: f64) {
        self.offered.iter_mut().chain(&mut self.stands).for_each(|mean| mean.loosen(weight));
        self.all.loosen(weight);
    }

    /// Relative standard deviation of the tokens that a pass planned with `draft_len` yields, `age` passes after
    /// the last that drafted: texts change. All positions err together.
    pub(crate) fn error(&self, draft_len: usize, age: f64) -> f64 {
        let trials = self.all.weight() / (1.0 + age / Survival::MEMORY);
        // One more success and one more failure (Agresti and Coull 1998): no share is certain.
        let all = 1.0 - ((1.0 - self.all.value()) * self.fails_ratio).min(1.0);
        let share = (all * trials + 1.0) / (trials + 2.0);
        let each = ((1.0 - share) / share / (trials + 2.0)).sqrt();
        let off = |position: usize| position as f64 * each * self.accepted(position);
        (1..=draft_len).map(off).sum::<f64>() / self.tokens(draft_len)
    }

    /// Tokens that a pass planned with `draft_len` drafted ones is expected to yield.
    pub(crate) fn tokens(&self, draft_len: usize) -> f64 {
        let stands = |before: &mut f64, position| {
            *before *= self.stands(position);
            Some(*before)
        };
        1.0 + (1..=draft_len).scan(1.0, stands).sum::<f64>()
    }

    /// Mean of `cost(width)` over the widths that a pass planned with `draft_len` comes to.
    pub(crate) fn over_widths(&self, draft_len: usize, cost: impl Fn(usize) -> Option<f64>) -> Option<f64> {
        let mut total = 0.0;
        let mut at_least = 1.0;
        for width in 0..=draft_len {
            let wider = if width == draft_len { 0.0 } else { self.offered(width + 1).min(at_least) };
            total += (at_least - wider) * cost(width)?;
            at_least = wider;
        }
        Some(total)
    }

    /// Share of the passes planned that long in which the `position`-th drafted token (from 1) is there. Beyond the
    /// last position planned, each step keeps the part that the last one kept.
    pub(crate) fn offered(&self, position: usize) -> f64 {
        if let Some(mean) = self.offered.get(position - 1) {
            return mean.value;
        }
        let Some(last) = self.offered.last() else { return 1.0 };
        let before = self.offered.len().checked_sub(2).map_or(1.0, |i| self.offered[i].value);
        let step = if before > 0.0 { (last.value / before).min(1.0) } else { 0.0 };
        last.value * step.powi((position - self.offered.len()) as i32)
    }

    /// Share in which it stands.
    pub(crate) fn accepted(&self, position: usize) -> f64 {
        (1..=position).map(|place| self.stands(place)).product()
    }

    /// Share of the passes in which it stands among those in which all before it do. Few samples of a position
    /// lean on the tokens of all.
    fn stands(&self, position: usize) -> f64 {
        let stood = self.stood(position);
        if self.fails_ratio == 1.0 {
            return stood;
        }
        // Certainty says nothing of tokens that are not there.
        let before = if position == 1 { 1.0 } else { self.offered(position - 1) };
        let there = if before > 0.0 { (self.offered(position) / before).max(stood).min(1.0) } else { 1.0 };
        (there - (there - stood) * self.fails_ratio).clamp(0.0, 1.0)
    }

    /// The same as it was when it was counted.
    fn stood(&self, position: usize) -> f64 {
        let own = self.stands.get(position - 1).copied().unwrap_or(Mean::prior(0.0, 0.0));
        if position == 1 && own.weight > 0.0 {
            return own.value;
        }
        let lent = Survival::ALL_WEIGHT * (1.0 - own.weight / Survival::MEMORY);
        (own.value * own.weight + lent * self.all.value) / (own.weight + lent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(usize, f64)]) -> CostCurve {
        let mut curve = CostCurve::new(8);
        points.iter().for_each(|&(width, seconds)| curve.add(width, seconds));
        curve
    }

    #[test]
    fn a_mean_averages_first_and_forgets_later() {
        let mut mean = Mean::prior(1.0, 1.0);
        mean.add(3.0, 4.0);
        assert_eq!(mean.value(), 2.0);
        (0..100).for_each(|_| mean.add(10.0, 4.0));
        assert!((mean.value() - 10.0).abs() < 1e-9);
    }

    #[test]
    fn costs_between_and_beyond_the_measured_widths_lie_on_lines() {
        let curve = curve(&[(0, 1.0), (2, 2.0), (4, 2.2)]);
        assert_eq!((curve.expect(1), curve.expect(4)), (Some(1.5), Some(2.2)));
        assert!((curve.expect(8).expect("measured") - 3.4).abs() < 1e-12);
    }

    #[test]
    fn a_width_that_seems_cheaper_makes_no_wider_one_cheap() {
        assert_eq!(curve(&[(0, 1.0), (1, 0.9)]).expect(8), Some(0.9));
    }

    #[test]
    fn one_outlier_neither_starts_nor_shifts_a_cost() {
        let mut curve = curve(&[(0, 50.0), (0, 1.0), (0, 1.0)]);
        assert_eq!(curve.expect(0), Some(1.0));
        curve.add(0, 1000.0);
        assert!(curve.expect(0) <= Some(1.5));
    }

    #[test]
    fn an_unmeasured_curve_says_so() {
        assert_eq!(CostCurve::new(4).expect(2), None);
        assert_eq!(CostCurve::through_zero(4).expect(0), Some(0.0));
    }

    #[test]
    fn survival_is_a_share_of_the_passes_planned_that_long() {
        let mut survival = Survival::new();
        for i in 0..400 {
            let width = if i % 2 == 0 { 2 } else { 0 }; // abstains every other time
            survival.add(2, (width, width.min(1)), Survival::MEMORY);
        }
        assert!((survival.offered(1) - 0.5).abs() < 0.02 && (survival.offered(2) - 0.5).abs() < 0.02);
        assert!((survival.accepted(1) - 0.5).abs() < 0.02 && survival.accepted(2) < 1e-3);
        assert!((survival.tokens(2) - 1.5).abs() < 0.03);
        let cost = survival.over_widths(2, |width| Some([1.0, 9.0, 3.0][width])).expect("known");
        assert!((cost - 2.0).abs() < 0.05, "{cost}");
    }

    #[test]
    fn what_stands_elsewhere_comes_back_where_it_is_more_and_a_place_never_reached_is_none() {
        let mut survival = Survival::new();
        (0..8).for_each(|_| survival.add(8, (8, 0), Survival::MEMORY));
        survival.usual = Mean::prior(0.9, 8.0);
        let before = survival.clone();
        survival.grow_old(0.0);
        assert_eq!(survival, before);
        survival.grow_old(64.0);
        assert!(survival.tokens(8).is_finite() && survival.is_sound());
        assert!(survival.tokens(8) > before.tokens(8), "{} {}", survival.tokens(8), before.tokens(8));
        let mut better = Survival { usual: Mean::prior(0.1, 8.0), ..Survival::new() };
        (0..8).for_each(|_| better.add(8, (8, 8), Survival::MEMORY));
        let mut aged = better.clone();
        aged.grow_old(64.0);
        assert_eq!(aged, better, "what stands here is more");
    }

    #[test]
    fn certainty_says_nothing_of_tokens_that_are_not_there_and_a_digit_too_many_is_no_panic() {
        let mut survival = Survival::new();
        for i in 0..480 {
            let width = usize::from(i % 5 == 0); // rarely there, and then right
            survival.add(1, (width, width), Survival::MEMORY);
        }
        let before = survival.accepted(1);
        survival.expect_fails(8.0);
        assert!((survival.accepted(1) - before).abs() < 0.01, "{} {before}", survival.accepted(1));
        survival.stands[0] = Mean::prior(1.0 + 5e-10, 8.0);
        assert!(survival.is_sound());
        assert!(survival.tokens(1) <= 2.0, "{}", survival.tokens(1));
    }

    #[test]
    fn where_nothing_grows_old_neither_does_what_is_said_of_it() {
        let mut survival = Survival { usual: Mean::prior(0.1, 8.0), ..Survival::new() };
        (0..8).for_each(|_| survival.add(8, (8, 8), Survival::MEMORY));
        survival.expect_fails(3.0);
        let before = survival.tokens(8);
        assert_eq!((survival.grow_old(64.0), survival.tokens(8)), (1.0, before));
    }

    #[test]
    fn of_drafts_that_overlap_each_token_counts_once_for_all_and_none_for_other_texts() {
        let (mut verified, mut watched) = (Survival::new(), Survival::new());
        verified.add(8, (8, 8), Survival::MEMORY);
        watched.add(8, (8, 8), 24.0);
        assert_eq!((verified.all.weight, watched.all.weight), (10.0, 3.0));
        assert_eq!(watched.usual, Survival::usual_at_first());
        assert!(watched.accepted(8) > Survival::new().accepted(8), "each place has its own");
    }

    #[test]
    fn positions_never_tried_follow_the_last_step_measured() {
        let mut survival = Survival::new();
        assert!((survival.accepted(2) - 0.49).abs() < 1e-12);
        (0..500).for_each(|_| survival.add(2, (2, 2), Survival::MEMORY));
        assert!(survival.accepted(8) > 0.999);
    }
}
