//! Which of two ways of running is faster: blocks of steps taken in turn, compared in pairs.
//!
//! Owns the arithmetic of a comparison under noise: trimmed means, so that one stalled step decides
//! nothing, and standard errors, so that a gain is believed only as far as it is known. It must not
//! know what the two ways are or when to compare them. A gain is a share: 0.1 is 10 % more tokens/s.

use crate::estimate::CostCurve;

/// Steps of one block.
pub(crate) const BLOCK_STEPS: usize = 32;
/// Steps of either block from which on a plain difference may end the pair early.
const EARLY_STEPS: usize = 8;
/// Standard errors that make a difference plain before its block is full: it is looked at often.
const EARLY_Z: f64 = 3.0;
/// One step in so many is cut off at either end.
const TRIM: usize = 8;

/// Steps of one way of running, by rows and seconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Block {
    steps: Vec<(usize, f64)>,
}

impl Block {
    pub(crate) fn push(&mut self, rows: usize, seconds: f64) {
        self.steps.push((rows, seconds));
    }

    pub(crate) fn clear(&mut self) {
        self.steps.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Trimmed mean of the seconds relative to what `curve` expects for as many rows, and its error.
    fn cost(&self, curve: &CostCurve) -> Option<(f64, f64)> {
        let relative = |&(rows, seconds): &(usize, f64)| Some(seconds / curve.expect(rows)?);
        let mut costs: Vec<f64> = self.steps.iter().filter_map(relative).collect();
        costs.sort_unstable_by(f64::total_cmp);
        let (n, cut) = (costs.len(), costs.len() / TRIM);
        let kept = n.checked_sub(2 * cut).filter(|kept| *kept >= 2)?;
        let mean = costs[cut..n - cut].iter().sum::<f64>() / kept as f64;
        // Winsorized: the ends count as the outermost values that were kept (Tukey and McLaughlin 1963).
        let (low, high) = (costs[cut], costs[n - cut - 1]);
        let all = || costs.iter().map(|cost| cost.clamp(low, high));
        let centre = all().sum::<f64>() / n as f64;
        let variance = all().map(|cost| (cost - centre).powi(2)).sum::<f64>() / (n - 1) as f64;
        Some((mean, variance.sqrt() * (n as f64).sqrt() / kept as f64))
    }
}

/// What one way gains over the other, and the standard error of that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Gain {
    pub(crate) mean: f64,
    pub(crate) error: f64,
}

impl Gain {
    /// What `on` gains over `off`; `None` while there are too few steps to say anything.
    pub(crate) fn of(off: &Block, on: &Block, curve: &CostCurve) -> Option<Gain> {
        let ((off, off_error), (on, on_error)) = (off.cost(curve)?, on.cost(curve)?);
        let ratio = off / on;
        Some(Gain { mean: ratio - 1.0, error: ratio * (off_error / off).hypot(on_error / on) })
    }

    /// The gain, if it is plainly above or below `least` before both blocks are full.
    pub(crate) fn early(off: &Block, on: &Block, curve: &CostCurve, least: f64) -> Option<Gain> {
        if off.len().min(on.len()) < EARLY_STEPS {
            return None;
        }
        Gain::of(off, on, curve).filter(|gain| (gain.mean - least).abs() > EARLY_Z * gain.error)
    }
}

/// The pairs of one comparison.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pairs {
    gains: Vec<Gain>,
}

impl Pairs {
    pub(crate) fn push(&mut self, gain: Gain) {
        self.gains.push(gain);
    }

    pub(crate) fn len(&self) -> usize {
        self.gains.len()
    }

    /// Mean gain. Its error is that of the steps or of the pairs among themselves, whichever is larger:
    /// steps that follow one another are not independent.
    pub(crate) fn gain(&self) -> Option<Gain> {
        let n = self.gains.len() as f64;
        if self.gains.is_empty() {
            return None;
        }
        let mean = self.gains.iter().map(|gain| gain.mean).sum::<f64>() / n;
        let within = self.gains.iter().map(|gain| gain.error.powi(2)).sum::<f64>() / n;
        let squares: f64 = self.gains.iter().map(|gain| (gain.mean - mean).powi(2)).sum();
        let between = if self.gains.len() > 2 { squares / (n - 1.0) } else { 0.0 };
        Some(Gain { mean, error: (within.max(between) / n).sqrt() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(seconds: impl IntoIterator<Item = f64>) -> Block {
        let mut block = Block::default();
        seconds.into_iter().for_each(|seconds| block.push(1, seconds));
        block
    }

    /// A curve that expects 1 s for 1 row and 3 s for 5.
    fn curve() -> CostCurve {
        let mut curve = CostCurve::new(8);
        curve.add(1, 1.0);
        curve.add(5, 3.0);
        curve
    }

    fn wave(level: f64) -> impl Iterator<Item = f64> {
        (0..BLOCK_STEPS).map(move |i| level * (1.0 + 0.1 * ((i * 7 % 16) as f64 / 7.5 - 1.0)))
    }

    #[test]
    fn a_gain_is_the_ratio_of_the_costs_and_outliers_do_not_move_it() {
        let (off, mut on) = (block(wave(1.2)), block(wave(1.0)));
        let plain = Gain::of(&off, &on, &curve()).expect("full blocks");
        assert!((plain.mean - 0.2).abs() < 1e-9 && (0.005..0.05).contains(&plain.error), "{plain:?}");
        on.push(1, 100.0);
        let disturbed = Gain::of(&off, &on, &curve()).expect("full blocks");
        assert!((disturbed.mean - 0.2).abs() < 0.02, "{disturbed:?}");
    }

    #[test]
    fn steps_of_other_widths_count_by_what_their_width_costs() {
        let mut wide = block(wave(1.0).take(16));
        wave(3.0).skip(16).for_each(|seconds| wide.push(5, seconds));
        let gain = Gain::of(&block(wave(1.0)), &wide, &curve()).expect("full blocks");
        assert!(gain.mean.abs() < 1e-9, "{gain:?}");
    }

    #[test]
    fn only_a_plain_difference_ends_a_pair_early() {
        let early = |steps: usize, level: f64| {
            Gain::early(&block(wave(1.0)), &block(wave(level).take(steps)), &curve(), 0.01)
        };
        assert!(early(16, 1.01).is_none());
        assert!(early(16, 1.3).is_some_and(|gain| gain.mean < -0.2));
        assert!(early(EARLY_STEPS - 1, 9.0).is_none());
    }

    #[test]
    fn pairs_that_disagree_make_the_gain_uncertain() {
        let gain = |means: &[f64]| {
            let mut pairs = Pairs::default();
            means.iter().for_each(|mean| pairs.push(Gain { mean: *mean, error: 0.01 }));
            pairs.gain()
        };
        assert_eq!(gain(&[]), None);
        let (agree, differ) =
            (gain(&[0.1; 4]).expect("pairs"), gain(&[0.3, -0.1, 0.3, -0.1]).expect("pairs"));
        assert!((agree.mean - 0.1).abs() < 1e-12 && (differ.mean - 0.1).abs() < 1e-12);
        assert!((agree.error - 0.005).abs() < 1e-12 && differ.error > 0.1);
    }

    #[test]
    fn too_few_steps_say_nothing() {
        assert_eq!(Gain::of(&block([]), &block(wave(1.0)), &curve()), None);
        assert_eq!(Gain::of(&block([1.0]), &block(wave(1.0)), &curve()), None);
    }
}
