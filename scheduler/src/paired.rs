//! Which of two ways of running is faster: steps of both in turn, compared in units of a few steps.
//!
//! Owns the arithmetic of a comparison under noise. The two ways take turns within a few steps, there and back, as what
//! else goes on in a machine is alike in steps that follow one another and not in those of another second; means are
//! trimmed, so that one stalled step decides nothing. It must not know what the two ways are or when to compare them. A
//! gain is a share: 0.1 is 10 % more tokens/s. It is reckoned as the logarithm of the ratio, which is as far above for
//! one way as it is below for the other.

/// Which way the steps of a unit run: as it begins, the other one twice, and back, so that a steady trend favours
/// neither.
const TURNS: [bool; 4] = [true, false, false, true];
/// How many times as long, or as short, as was expected a step counts at most: one that stalls decides nothing, be it
/// among the first.
const STEP_RATIO_MAX: f64 = 2.0;
/// One unit in so many is cut off at either end.
const TRIM: usize = 8;
/// Standard deviation of what a unit says before any are known, and for how many of them.
const PRIOR_DEVIATION: f64 = 0.12;
const PRIOR_UNITS: f64 = 2.0;

/// What one way gains over the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Gain {
    /// Logarithm of its tokens a second over the other's,
    log: f64,
    /// and the standard error of that.
    error: f64,
}

impl Gain {
    /// A gain of `share`, more than -1, that is known to `error`, in parts of the ratio.
    pub(crate) fn new(share: f64, error: f64) -> Gain {
        Gain { log: share.ln_1p(), error }
    }

    /// Tokens a second over the other's, less 1.
    pub(crate) fn share(self) -> f64 {
        self.log.exp_m1()
    }

    /// What the other way gains over this one, less 1.
    pub(crate) fn reverse(self) -> f64 {
        (-self.log).exp_m1()
    }

    /// Standard error, in parts of the ratio.
    pub(crate) fn error(self) -> f64 {
        self.error
    }

    /// How far it is above a gain of `least`, as a logarithm.
    pub(crate) fn above(self, least: f64) -> f64 {
        self.log - least.ln_1p()
    }

    /// Both together: what two measurements of one thing say, by how sure they are.
    pub(crate) fn and(self, other: Gain) -> Gain {
        let (a, b) = (self.error.powi(-2), other.error.powi(-2));
        Gain { log: (self.log * a + other.log * b) / (a + b), error: (a + b).sqrt().recip() }
    }

    /// Whether both can be one thing: they are within `deviations` of what they may err by.
    pub(crate) fn agrees(self, other: Gain, deviations: f64) -> bool {
        (self.log - other.log).abs() <= deviations * self.error.hypot(other.error)
    }

    /// The same, believed less: things may have changed by `doubt` since.
    pub(crate) fn doubted(self, doubt: f64) -> Gain {
        Gain { error: self.error.hypot(doubt), ..self }
    }
}

/// A comparison under way of "on" and "off".
#[derive(Clone, Debug)]
pub(crate) struct Comparison {
    /// Whether units begin and end on.
    begins_on: bool,
    /// Logarithms of what the unit's steps took, relative to what was expected of them.
    unit: Vec<f64>,
    /// Of each unit, the logarithm of what "on" gains.
    gains: Vec<f64>,
}

impl Comparison {
    /// Steps of a unit that run either way.
    pub(crate) const EACH_WAY: usize = TURNS.len() / 2;

    /// A comparison that begins with what is in use: its first step costs nothing.
    pub(crate) fn new(begins_on: bool) -> Comparison {
        Comparison { begins_on, unit: Vec::with_capacity(TURNS.len()), gains: Vec::new() }
    }

    /// Whether the next step is on.
    pub(crate) fn is_on(&self) -> bool {
        TURNS[self.unit.len()] == self.begins_on
    }

    /// Counts the step that [`Comparison::is_on`] told of: seconds over those expected, more than 0. Returns whether it
    /// completed a unit.
    pub(crate) fn push(&mut self, relative: f64) -> bool {
        self.unit.push(relative.clamp(STEP_RATIO_MAX.recip(), STEP_RATIO_MAX).ln());
        if self.unit.len() < TURNS.len() {
            return false;
        }
        let each = self.unit.drain(..).zip(TURNS);
        let difference: f64 =
            each.map(|(step, first)| if first == self.begins_on { -step } else { step }).sum();
        self.gains.push(difference / Comparison::EACH_WAY as f64);
        true
    }

    /// Units completed.
    pub(crate) fn units(&self) -> usize {
        self.gains.len()
    }

    /// Steps of those that were on.
    pub(crate) fn steps_on(&self) -> usize {
        self.units() * Comparison::EACH_WAY
    }

    /// What "on" gains by the units so far: their trimmed mean, and its error, for which the ends count as the outermost
    /// values that were kept (Tukey and McLaughlin 1963). `None` before the first.
    pub(crate) fn gain(&self) -> Option<Gain> {
        let mut gains = self.gains.clone();
        gains.sort_unstable_by(f64::total_cmp);
        let (n, cut) = (gains.len(), gains.len() / TRIM);
        let kept = gains.get(cut..n - cut).filter(|kept| !kept.is_empty())?;
        let log = kept.iter().sum::<f64>() / kept.len() as f64;
        let clamped = || gains.iter().map(|gain| gain.clamp(kept[0], kept[kept.len() - 1]));
        let centre = clamped().sum::<f64>() / n as f64;
        let squares: f64 = clamped().map(|gain| (gain - centre).powi(2)).sum();
        let variance = (squares + PRIOR_UNITS * PRIOR_DEVIATION.powi(2)) / (n as f64 - 1.0 + PRIOR_UNITS);
        Some(Gain { log, error: (variance * n as f64).sqrt() / kept.len() as f64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A comparison of so many units whose steps take what is given of (step, whether it is on).
    fn compared(units: usize, begins_on: bool, took: impl Fn(usize, bool) -> f64) -> Comparison {
        let mut comparison = Comparison::new(begins_on);
        for step in 0..units * TURNS.len() {
            let is_on = comparison.is_on();
            comparison.push(took(step, is_on));
        }
        comparison
    }

    /// 10 % either way; comes round after 17 steps, so that turns meet all of it.
    fn wobble(step: usize) -> f64 {
        1.0 + 0.1 * ((step * 7 % 17) as f64 / 8.0 - 1.0)
    }

    #[test]
    fn a_gain_is_the_ratio_of_the_costs_whichever_way_it_begins() {
        for begins_on in [true, false] {
            let comparison = compared(16, begins_on, |_, on| if on { 1.0 } else { 1.2 });
            let gain = comparison.gain().expect("units");
            assert!((gain.share() - 0.2).abs() < 1e-9 && gain.error() < 0.02, "{gain:?}");
            assert_eq!((comparison.units(), comparison.steps_on()), (16, 32));
        }
    }

    #[test]
    fn steps_that_stall_and_machines_that_slow_down_do_not_move_it() {
        let gain = |took: &dyn Fn(usize, bool) -> f64| {
            let plain = compared(17, true, |step, on| took(step, on) * if on { 1.0 } else { 1.1 });
            plain.gain().expect("units").share()
        };
        // Two of the steps with it take fifty times as long: a mean would be off by a factor of 1.6.
        let stalls = |step, on| wobble(step) * if on && [7, 40].contains(&step) { 50.0 } else { 1.0 };
        let on: Vec<bool> = (0..17 * TURNS.len()).map(|step| TURNS[step % TURNS.len()]).collect();
        assert!(on[7] && on[40]);
        assert!((gain(&stalls) - 0.1).abs() < 0.04, "{}", gain(&stalls));
        let early = compared(2, true, |step, on| {
            if step == 1 {
                50.0
            } else if on {
                1.0
            } else {
                1.1
            }
        });
        let gain_early = early.gain().expect("units");
        assert!(gain_early.share() < 0.3 && gain_early.error() > 0.08, "{gain_early:?}");
        // A third slower from one end to the other, and by steps of many passes.
        assert!((gain(&|step, _| (0.005 * step as f64).exp()) - 0.1).abs() < 1e-9);
        assert!((gain(&|step, _| if step / 22 % 2 == 0 { 1.0 } else { 1.3 }) - 0.1).abs() < 0.02);
    }

    #[test]
    fn the_error_is_what_units_differ_by() {
        let error = |units, noise: f64| {
            let took = |step: usize, _| 1.0 + noise * (wobble(step * 5 + step / 3) - 1.0);
            compared(units, false, took).gain().expect("units").error()
        };
        assert!(error(32, 1.0) > 1.5 * error(32, 0.1), "{} {}", error(32, 1.0), error(32, 0.1));
        assert!(error(64, 1.0) < 0.8 * error(16, 1.0));
        assert!(error(1, 0.0) > 0.05, "a unit alone is not believed for agreeing with itself");
    }

    #[test]
    fn two_measurements_are_weighed_by_how_sure_they_are() {
        let (sure, unsure) = (Gain { log: 0.1, error: 0.01 }, Gain { log: 0.0, error: 0.03 });
        let both = sure.and(unsure);
        assert!((both.log - 0.09).abs() < 1e-12 && both.error < 0.01, "{both:?}");
        assert!((sure.doubted(0.03).error - 0.001f64.sqrt()).abs() < 1e-12);
        assert!(sure.agrees(unsure, 3.2) && !sure.agrees(unsure, 3.1));
        let twice = Gain::new(1.0, 0.01);
        assert!(
            (twice.share() - 1.0).abs() < 1e-12 && twice.above(1.0).abs() < 1e-12 && twice.above(0.0) > 0.69
        );
    }

    #[test]
    fn before_a_unit_is_complete_nothing_is_said() {
        let mut comparison = Comparison::new(true);
        let ended: Vec<bool> = (0..4).map(|_| comparison.gain().is_none() && comparison.push(1.0)).collect();
        assert_eq!(ended, [false, false, false, true]);
        assert!(comparison.gain().is_some());
    }
}
