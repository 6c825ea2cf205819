//! Seconds of a pass by width on a machine whose pace changes: a Kalman filter (Kalman 1960).
//!
//! Owns [`Pace`]: the logarithm of what a pass takes is that of a plain pass at the moment (the level, which cold
//! caches, other programs and the text move by a few per cent a pass) plus that of how many plain passes
//! its width is worth (the shape, which hardly moves unless plain passes show it to be wrong), plus noise. So widths
//! that ran at different times are compared as if they had run at the same, a plain pass run long ago is not
//! forgotten but moved with the level, and how sure a comparison is comes with it. It must not know what passes cost
//! apart from their time, or plans.

use crate::estimate::Mean;

/// Standard deviation of a pass's time, relative.
const NOISE: f64 = 0.06;
/// What passes are seen to differ by is averaged over so many, of which that counts for some at first. Where it is more
/// than is usual, what was measured is the less sure: what is expected still follows the passes as soon.
const NOISE_MEMORY: f64 = 64.0;
const NOISE_WEIGHT: f64 = 24.0;
const NOISE_USUAL: f64 = 0.08;
const NOISE_MAX: f64 = 0.2;
/// The same of the first pass of a width, which finds its buffers and kernels cold.
const NOISE_FIRST: f64 = 0.2;
/// By how much the level moves from one pass to the next.
const LEVEL_STEP: f64 = 0.03;
/// By how much a shape does.
const SHAPE_STEP: f64 = 0.003;
/// Of a width that never ran: how far from what is expected of it, for a doubling of the rows.
const UNSEEN: f64 = 0.15;
/// How far an earlier run's level and shapes may be from this one's.
const LEVEL_RECALLED: f64 = 0.4;
const SHAPE_RECALLED: f64 = 0.05;
/// A pass that is off by more than so many standard deviations counts as one that is off by as much.
const CLIP: f64 = 3.0;
/// Two plain passes in a row, the first to count since drafted ones, that take less by more than so many are no accident: what was
/// known of them against drafted ones no longer holds, as where they were measured beside a cold cache alone. That
/// they take more is no such sign: it may be another program's doing, and would be taken for theirs until they run again.
const SURPRISE: f64 = 2.0;

/// The filter. State 0 is the level, state w the shape of width w, whose 0 is 0 by definition.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    mean: Vec<f64>,
    covariance: Vec<Vec<f64>>,
    samples: Vec<u32>, // by width
    last: usize,       // width
    noise: Mean,       // variance of passes of widths that ran before
    /// Whether the last pass, plain and the first after drafted ones, took far less than expected.
    surprise: bool,
}

impl Pace {
    /// Of widths 0 to `width_max`, of which nothing is known.
    pub(crate) fn new(width_max: usize) -> Pace {
        let states = width_max + 1;
        Pace {
            mean: vec![0.0; states],
            covariance: vec![vec![0.0; states]; states],
            samples: vec![0; states],
            last: 0,
            noise: Mean::prior(NOISE * NOISE, NOISE_WEIGHT),
            surprise: false,
        }
    }

    pub(crate) fn is_seen(&self, width: usize) -> bool {
        self.samples[width] > 0
    }

    pub(crate) fn samples(&self, width: usize) -> u32 {
        self.samples[width]
    }

    /// Seconds of a pass of `width` now; `None` where none ran.
    pub(crate) fn seconds(&self, width: usize) -> Option<f64> {
        self.is_seen(width).then(|| (self.mean[0] + self.shape(width)).exp())
    }

    /// Seconds of a plain pass now, as far as passes of other widths tell.
    pub(crate) fn level(&self) -> f64 {
        self.mean[0].exp()
    }

    /// Learns from a pass of `width`, of which `expected` seconds were expected if none ran before.
    pub(crate) fn add(&mut self, width: usize, seconds: f64, expected: Option<f64>) {
        let is_first = self.samples.iter().all(|samples| *samples == 0);
        if !self.is_seen(width) {
            self.begin(width, seconds, expected, is_first);
        }
        self.let_time_pass();
        let is_usual = self.is_seen(width) || is_first;
        let noise = if is_usual { NOISE } else { NOISE_FIRST };
        self.samples[width] += 1;
        let (off, explained) = self.update(width, seconds.max(f64::MIN_POSITIVE).ln(), noise);
        if is_usual && !is_first {
            self.noise.add((off * off - explained).max(0.0), NOISE_MEMORY);
        }
    }

    /// Whether the last pass, a plain one after drafted ones, took far less than expected: one more would tell whether it was
    /// an accident.
    pub(crate) fn is_surprised(&self) -> bool {
        self.surprise
    }

    /// A drafted pass ran that is of no width: what comes next does not follow what came before it.
    pub(crate) fn pass_over(&mut self) {
        (self.surprise, self.last) = (false, 1);
    }

    /// Relative standard deviation of what `width` takes in passes of width `other`.
    pub(crate) fn error(&self, width: usize, other: usize) -> f64 {
        let (a, b) = (self.nearest(width), self.nearest(other));
        let seen = self.variance(a, a) + self.variance(b, b) - 2.0 * self.variance(a, b);
        let unseen = |seen, width| if self.is_seen(width) { 0.0 } else { unseen_variance(seen, width) };
        let seen = seen.max(0.0) * (self.noise() / NOISE_USUAL).max(1.0).powi(2);
        if width == other { 0.0 } else { (seen + unseen(a, width) + unseen(b, other)).sqrt() }
    }

    /// All so far was another run's, on a machine that may have had other things to do.
    pub(crate) fn doubt(&mut self) {
        self.covariance[0][0] += LEVEL_RECALLED * LEVEL_RECALLED;
        // What was handed on are means, which do not differ.
        self.noise = Mean::prior(NOISE * NOISE, NOISE_WEIGHT);
        for width in 1..self.samples.len() {
            if self.is_seen(width) {
                self.covariance[width][width] += SHAPE_RECALLED * SHAPE_RECALLED;
            }
        }
    }

    fn shape(&self, width: usize) -> f64 {
        if width == 0 { 0.0 } else { self.mean[width] }
    }

    fn variance(&self, a: usize, b: usize) -> f64 {
        if a == 0 || b == 0 { 0.0 } else { self.covariance[a][b] }
    }

    /// The width nearest to `width` of which passes ran; 0 where none did.
    fn nearest(&self, width: usize) -> usize {
        let below = (0..=width).rev().find(|w| self.is_seen(*w));
        let above = (width..self.samples.len()).find(|w| self.is_seen(*w));
        match (below, above) {
            (Some(a), Some(b)) if (b + 1) * (a + 1) < (width + 1) * (width + 1) => b,
            (Some(a), _) => a,
            (None, above) => above.unwrap_or(0),
        }
    }

    fn begin(&mut self, width: usize, seconds: f64, expected: Option<f64>, is_first: bool) {
        let expected = expected.unwrap_or(seconds).max(f64::MIN_POSITIVE).ln();
        if width > 0 {
            let nearest = if is_first { 0 } else { self.nearest(width) };
            self.mean[width] = if is_first { 0.0 } else { expected - self.mean[0] };
            self.covariance[width][width] = unseen_variance(nearest, width) + self.variance(nearest, nearest);
        }
        if is_first {
            self.mean[0] = expected;
            self.covariance[0][0] = NOISE * NOISE;
        }
    }

    fn let_time_pass(&mut self) {
        self.covariance[0][0] += LEVEL_STEP * LEVEL_STEP;
        for width in 1..self.samples.len() {
            if self.is_seen(width) {
                self.covariance[width][width] += SHAPE_STEP * SHAPE_STEP;
            }
        }
    }

    /// Covariance of every state with the logarithm of what a pass of `width` takes, and the variance of that.
    fn spread(&self, width: usize, noise: f64) -> (Vec<f64>, f64) {
        let with = |row: &[f64]| row[0] + if width == 0 { 0.0 } else { row[width] };
        let across: Vec<f64> = self.covariance.iter().map(|row| with(row)).collect();
        let variance = with(&across) + noise * noise;
        (across, variance)
    }

    /// What plain passes take against all others may be another by as much as `off`: the level, and every shape, which
    /// they are the measure of.
    fn doubt_plain(&mut self, off: f64) {
        let way = |(state, samples): (usize, &u32)| match state {
            0 => 1.0,
            _ if *samples > 0 => -1.0,
            _ => 0.0,
        };
        let ways: Vec<f64> = self.samples.iter().enumerate().map(way).collect();
        for (row, a) in self.covariance.iter_mut().zip(&ways) {
            row.iter_mut().zip(&ways).for_each(|(entry, b)| *entry += off * off * a * b);
        }
    }

    /// By how much passes differ that were expected to take the same, relative.
    fn noise(&self) -> f64 {
        self.noise.value().sqrt().min(NOISE_MAX)
    }

    /// `value` = level + shape of `width` + noise. Returns how far it was off, within limits, and the variance of that but
    /// for the noise.
    fn update(&mut self, width: usize, value: f64, noise: f64) -> (f64, f64) {
        let off = value - self.mean[0] - self.shape(width);
        let (across, variance) = self.spread(width, noise);
        let is_far = width == 0 && off < -SURPRISE * variance.sqrt();
        let was_no_accident = is_far && self.surprise;
        self.surprise = is_far && self.last > 0;
        self.last = width;
        if was_no_accident {
            self.doubt_plain(off);
        }
        let (across, variance) = if was_no_accident { self.spread(width, noise) } else { (across, variance) };
        let limit = CLIP * variance.sqrt();
        let off = off.clamp(-limit, limit);
        for ((mean, row), with) in self.mean.iter_mut().zip(&mut self.covariance).zip(&across) {
            let gain = with / variance;
            *mean += gain * off;
            row.iter_mut().zip(&across).for_each(|(entry, other)| *entry -= gain * other);
        }
        (off, variance - noise * noise)
    }
}

fn unseen_variance(seen: usize, width: usize) -> f64 {
    let doublings = ((width + 1) as f64 / (seen + 1) as f64).log2().abs();
    UNSEEN * UNSEEN * doublings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes of `widths` in turn, in which one of width w takes (1 + w / 2) times `level` of the pass.
    fn run(pace: &mut Pace, widths: &[usize], passes: usize, level: impl Fn(usize) -> f64) {
        for pass in 0..passes {
            let width = widths[pass % widths.len()];
            pace.add(width, (1.0 + 0.5 * width as f64) * level(pass), Some(1.0));
        }
    }

    fn near(a: Option<f64>, b: f64, share: f64) -> bool {
        a.is_some_and(|a| (a / b - 1.0).abs() < share)
    }

    #[test]
    fn widths_that_ran_at_different_times_are_compared_as_if_at_one() {
        let mut pace = Pace::new(8);
        run(&mut pace, &[0, 1], 40, |_| 1.0);
        // The machine becomes twice as slow while only one width runs.
        run(&mut pace, &[1], 60, |pass| 1.0 + pass as f64 / 60.0);
        assert!(near(pace.seconds(1), 3.0, 0.05) && near(pace.seconds(0), 2.0, 0.08), "{pace:?}");
        assert!(near(Some(pace.level()), 2.0, 0.08));
    }

    #[test]
    fn a_comparison_is_surer_the_more_passes_ran_and_the_later() {
        let mut pace = Pace::new(8);
        run(&mut pace, &[0, 2], 4, |_| 1.0);
        let few = pace.error(0, 2);
        run(&mut pace, &[0, 2], 40, |_| 1.0);
        let many = pace.error(0, 2);
        run(&mut pace, &[0], 200, |_| 1.0);
        let old = pace.error(0, 2);
        assert!(many < 0.6 * few && old > 1.2 * many, "{few} {many} {old}");
        assert!(pace.error(4, 2) > many && pace.error(8, 2) > pace.error(4, 2), "never run");
        assert_eq!((pace.error(2, 2), pace.error(2, 0)), (0.0, pace.error(0, 2)));
    }

    #[test]
    fn a_comparison_is_the_less_sure_the_more_passes_differ() {
        let error = |differ: f64| {
            let mut pace = Pace::new(8);
            run(&mut pace, &[0, 2], 80, |pass| if pass / 2 % 2 == 0 { 1.0 } else { 1.0 + differ });
            pace.error(0, 2)
        };
        assert!((error(0.0) / error(0.05) - 1.0).abs() < 1e-9, "as much as is usual");
        assert!(error(0.4) > 1.5 * error(0.0), "{} {}", error(0.4), error(0.0));
        let mut recalled = Pace::new(8);
        run(&mut recalled, &[0, 2], 80, |pass| if pass / 2 % 2 == 0 { 1.0 } else { 1.4 });
        let noisy = recalled.noise();
        recalled.doubt();
        assert!(noisy > 0.1 && recalled.noise() == NOISE, "another run's means do not tell: {noisy}");
    }

    #[test]
    fn one_pass_that_stalled_moves_little() {
        let mut pace = Pace::new(8);
        run(&mut pace, &[0, 1], 40, |_| 1.0);
        pace.add(1, 1000.0, None);
        assert!(near(pace.seconds(1), 1.5, 0.15) && near(pace.seconds(0), 1.0, 0.15), "{pace:?}");
    }

    #[test]
    fn two_plain_passes_amid_drafted_ones_that_agree_put_right_what_was_measured_cold() {
        let mut pace = Pace::new(8);
        // Plain passes ran beside a cold cache alone.
        run(&mut pace, &[0], 8, |_| 1.4);
        run(&mut pace, &[2], 40, |_| 1.0);
        assert!(near(pace.seconds(0), 1.4, 0.1), "{pace:?}");
        pace.add(0, 1.0, None);
        assert!(pace.is_surprised() && near(pace.seconds(0), 1.3, 0.1), "one may be an accident: {pace:?}");
        pace.add(0, 1.0, None);
        assert!(!pace.is_surprised() && near(pace.seconds(0), 1.0, 0.03), "{pace:?}");
        assert!(near(pace.seconds(2), 2.0, 0.1), "they are about as they were: {pace:?}");
        // What plain passes show by themselves is the machine's pace, and all widths'.
        run(&mut pace, &[0, 2], 8, |_| 1.0);
        run(&mut pace, &[0], 40, |pass| 1.0 + pass as f64 / 80.0);
        assert!(near(pace.seconds(2), 3.0, 0.1), "{pace:?}");
    }

    #[test]
    fn plain_passes_with_a_drafted_one_of_no_width_between_are_no_pair() {
        let mut pace = Pace::new(8);
        run(&mut pace, &[0], 8, |_| 1.4);
        run(&mut pace, &[2], 40, |_| 1.0);
        pace.add(0, 1.0, None);
        assert!(pace.is_surprised());
        pace.pass_over();
        assert!(!pace.is_surprised());
        pace.add(0, 1.0, None);
        assert!(pace.seconds(0) > Some(1.1), "{pace:?}");
    }

    #[test]
    fn nothing_is_said_of_widths_that_never_ran() {
        let mut pace = Pace::new(8);
        assert_eq!((pace.seconds(0), pace.is_seen(3)), (None, false));
        pace.add(3, 2.0, None);
        assert!(near(pace.seconds(3), 2.0, 0.01) && pace.seconds(0).is_none(), "{pace:?}");
        assert_eq!((pace.samples(3), pace.samples(0)), (1, 0));
    }
}
