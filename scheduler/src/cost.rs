//! What a target pass costs: seconds by the number of drafted tokens it verifies (its width).
//!
//! Owns [`CostModel`], the T(K) of ALGORITHMS.md H.4:
//!
//! T(K) = dense + row * (K + 1) + expert * U(K) + wait * M(K)
//!
//! with U the distinct experts a pass of that width asks for and M those that are not resident. The
//! terms are fitted as passes run (least squares that forgets, no term below 0). A width that was run computes as
//! long as measured, at the pace that all widths show now ([`Pace`]), and waits as it did, more or less for the
//! misses that are expected now beyond those met then: so it follows a cache that fills while other widths run.
//! Other widths cost what the terms say, corrected by what they get wrong at the nearest widths measured. It must not
//! know plans, or when to measure.

use crate::estimate::Mean;
use crate::fit::{Fit, TERMS};
use crate::lessons::PassLesson;
use crate::pace::Pace;

/// Samples over which what a width takes is averaged.
const MEMORY: f64 = 16.0;
/// Passes over which the machine's pace is averaged.
const PACE_MEMORY: f64 = 12.0;
/// Samples over which the experts of a width are averaged against those of a plain pass.
const SHAPE_MEMORY: f64 = 64.0;
/// A first pass that took this many times the second one's time was no pass like others.
const ODD: f64 = 2.0;
/// Share of a pass's time that may be waiting: the rest is computing, of which there is always some.
const WAITING_MAX: f64 = 0.99;
/// One stalled pass counts at most this many times what is expected, so it decides nothing alone.
const CLIP: f64 = 3.0;
/// How the union of experts grows with the rows of a window where it was not measured (ALGORITHMS.md 0.1).
const UNION_POWER: f64 = 0.7;
/// Added to counts before they are compared, so that none and one are a step and not a gulf.
const COUNT_UNIT: f64 = 0.5;
/// Passes of each width that another run's are taken for at most.
const PASSES_RECALLED: u32 = 6;
/// What the level of an earlier run's misses and waiting weighs, in passes.
const LEVEL_RECALLED: f64 = 0.5;
/// Samples of a width after which its shape is known.
const SHAPE_MIN: f64 = 4.0;

/// One pass as the model learns from it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PassSample {
    /// Drafted tokens verified.
    pub(crate) width: usize,
    /// Seconds of the pass, waiting included.
    pub(crate) seconds: f64,
    /// Of these, seconds spent waiting for experts.
    pub(crate) stall_s: f64,
    /// Distinct experts, summed over layers.
    pub(crate) experts: f64,
    /// Of these, those that were not resident.
    pub(crate) misses: f64,
}

/// The fitted terms, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct CostTerms {
    /// What every pass costs.
    pub dense_s: f64,
    /// What each row adds.
    pub row_s: f64,
    /// What each distinct expert adds.
    pub expert_s: f64,
    /// What each miss makes the pass wait.
    pub miss_s: f64,
}

/// Seconds of a pass by width.
#[derive(Clone, Debug)]
pub(crate) struct CostModel {
    fit: Fit,
    expert_unit: f64,
    experts: Counts,
    misses: Counts,
    miss_s: Mean,
    pace: Pace,                 // computing
    pace_s: Mean,               // of plain passes, over a few
    waits: Vec<Option<Wait>>,   // by width
    expected: Vec<Option<f64>>, // by width: what `expect` answers, which is asked for often
    samples: usize,
}

/// What passes of one width waited, and missed: the means of the same passes.
#[derive(Clone, Copy, Debug)]
struct Wait {
    seconds: Mean,
    misses: Mean,
}

impl CostModel {
    /// A model of widths 0 to `width_max` that has seen nothing.
    pub(crate) fn new(width_max: usize) -> CostModel {
        CostModel {
            fit: Fit::new(),
            expert_unit: 1.0,
            experts: Counts::new(width_max),
            misses: Counts::new(width_max),
            miss_s: Mean::prior(0.0, 0.0),
            pace: Pace::new(width_max),
            pace_s: NONE,
            waits: vec![None; width_max + 1],
            expected: vec![None; width_max + 1],
            samples: 0,
        }
    }

    /// Learns from a pass. The very first, if it took more than twice the second, is dropped: it also warms
    /// caches.
    pub(crate) fn add(&mut self, sample: PassSample) {
        let width = sample.width;
        let was_odd = |expected: f64| expected > ODD * sample.seconds;
        if self.samples == 1 && self.pace.is_seen(width) && self.expect(width).is_some_and(was_odd) {
            *self = CostModel::new(self.waits.len() - 1);
        }
        let sample = self.clipped(sample);
        self.samples += 1;
        let compute_s = sample.seconds - sample.stall_s;
        let expected = self.expect(width).map(|seconds| (seconds - self.wait(width)).max(0.0));
        self.pace.add(width, compute_s, expected.filter(|seconds| *seconds > 0.0));
        self.pace_s.add(self.pace.level(), PACE_MEMORY);
        self.learn_terms(sample);
        self.waits[width].get_or_insert(Wait { seconds: NONE, misses: NONE }).add(sample);
        self.expected = (0..self.waits.len()).map(|width| self.estimate(width)).collect();
    }

    /// What was learned of the widths that ran, all at the pace of now.
    pub(crate) fn lessons(&self) -> Vec<PassLesson> {
        let lesson = |width: usize| {
            let Wait { seconds, misses } = self.waits[width]?;
            Some(PassLesson {
                width,
                passes: self.samples(width),
                compute_s: self.pace.seconds(width)?,
                stall_s: seconds.value(),
                experts: self.experts.expect(width, 1.0),
                misses: misses.value(),
            })
        };
        (0..self.waits.len()).filter_map(lesson).collect()
    }

    /// Begins with another run's lessons, as if a few passes had shown them, and not quite as sure.
    pub(crate) fn recall(&mut self, lessons: &[PassLesson]) {
        let width_max = self.waits.len() - 1;
        for round in 0..PASSES_RECALLED {
            for lesson in lessons.iter().filter(|lesson| lesson.width <= width_max && round < lesson.passes) {
                let &PassLesson { width, compute_s, stall_s, experts, misses, .. } = lesson;
                self.add(PassSample { width, seconds: compute_s + stall_s, stall_s, experts, misses });
            }
        }
        self.pace.doubt();
        self.pace_s.loosen(LEVEL_RECALLED);
        self.misses.doubt_level();
        // How long a miss makes it wait is the disk's matter, and what else that has to do.
        self.waits.iter_mut().flatten().for_each(Wait::doubt);
        self.miss_s.loosen(LEVEL_RECALLED);
    }

    /// A pass that changed its width on the way teaches what a miss makes it wait, and nothing of any width.
    pub(crate) fn learn_waiting(&mut self, stall_s: f64, misses: f64) {
        self.pace.pass_over();
        if misses > 0.0 {
            self.miss_s.add(stall_s / misses, MEMORY);
            self.expected = (0..self.waits.len()).map(|width| self.estimate(width)).collect();
        }
    }

    fn learn_terms(&mut self, sample: PassSample) {
        if self.samples == 1 {
            self.expert_unit = sample.experts.max(1.0);
        }
        self.experts.add(sample.width, sample.experts, 1.0);
        self.misses.add(sample.width, sample.misses, self.union(sample.width));
        if sample.misses > 0.0 {
            self.miss_s.add(sample.stall_s / sample.misses, MEMORY);
        }
        let in_plain_passes = (sample.seconds - sample.stall_s) / self.pace.level();
        self.fit.add(self.features(sample.width, sample.experts), in_plain_passes);
    }

    /// Nothing that a pass took beyond a few times what is expected, and always some of it computing.
    fn clipped(&self, sample: PassSample) -> PassSample {
        let settled = self.pace.samples(sample.width) > 1;
        let limit = self.expect(sample.width).filter(|_| settled).map_or(f64::INFINITY, |s| CLIP * s);
        let seconds = sample.seconds.min(limit);
        let stall_s = sample.stall_s * (seconds / sample.seconds);
        PassSample { seconds, stall_s: stall_s.clamp(0.0, WAITING_MAX * seconds), ..sample }
    }

    fn features(&self, width: usize, experts: f64) -> [f64; TERMS] {
        [1.0, (width + 1) as f64, experts / self.expert_unit]
    }

    /// What the terms alone say of `width`, without waiting.
    fn modelled(&self, width: usize) -> f64 {
        self.pace.level() * self.fit.predict(self.features(width, self.loads(width).0))
    }

    /// What passes of `width` are expected to wait: what they did, and for every miss more or less as long as they
    /// did for theirs or, if they hardly missed, as others do.
    fn wait(&self, width: usize) -> f64 {
        let misses_now = self.loads(width).1;
        let Some(Wait { seconds, misses }) = self.waits[width] else {
            return self.miss_s.value() * misses_now;
        };
        let (waited, met) = (seconds.value(), misses.value());
        let each_s = if met >= 1.0 { waited / met } else { self.miss_s.value() };
        (waited + each_s * (misses_now - met)).max(0.0)
    }

    /// The expected seconds at `width`; `None` with nothing measured. Beyond the widest one measured it
    /// is no less than there.
    pub(crate) fn expect(&self, width: usize) -> Option<f64> {
        self.expected[width]
    }

    /// What passes of `width` take if they meet `misses` and wait for each as they did for theirs: where few are
    /// read at once, each takes longer than [`CostTerms::miss_s`].
    pub(crate) fn expect_meeting(&self, width: usize, misses: f64) -> Option<f64> {
        let Wait { seconds, misses: met } = self.waits[width]?;
        let share = if met.value() > 0.0 { (misses / met.value()).min(1.0) } else { 1.0 };
        Some(self.pace.seconds(width)? + seconds.value() * share)
    }

    fn estimate(&self, width: usize) -> Option<f64> {
        Some(self.compute(width)? + self.wait(width))
    }

    /// Seconds of computing a pass of `width`: as measured, or what the terms say, corrected by what they get
    /// wrong at the nearest widths measured.
    fn compute(&self, width: usize) -> Option<f64> {
        let known = |w: usize| self.pace.seconds(w).map(|seconds| (w, seconds));
        if let Some((_, seconds)) = known(width) {
            return Some(seconds);
        }
        let below = (0..width).rev().find_map(known);
        let above = (width..self.waits.len()).find_map(known);
        // How far the terms are off at the neighbours that were measured.
        let off = |(w, seconds): (usize, f64)| {
            let modelled = self.modelled(w);
            if modelled > 0.0 { seconds / modelled } else { 1.0 }
        };
        let modelled = self.modelled(width);
        match (below, above) {
            (Some(a), Some(b)) => {
                let share = (width - a.0) as f64 / (b.0 - a.0) as f64;
                Some(modelled * (off(a) + share * (off(b) - off(a))))
            }
            (Some(a), None) => Some((modelled * off(a)).max(a.1)),
            (None, Some(b)) => Some((modelled * off(b)).min(b.1)),
            (None, None) => None,
        }
    }

    /// Whether passes of `width` were run.
    pub(crate) fn is_measured(&self, width: usize) -> bool {
        self.pace.is_seen(width)
    }

    /// How many of them.
    pub(crate) fn samples(&self, width: usize) -> u32 {
        self.pace.samples(width)
    }

    /// Whether the last pass, a plain one after drafted ones, took far less than expected: one more would tell whether it was
    /// an accident.
    pub(crate) fn is_surprised(&self) -> bool {
        self.pace.is_surprised()
    }

    /// The least that `width` can cost if wider is never cheaper.
    pub(crate) fn at_least(&self, width: usize) -> Option<f64> {
        (0..=width).rev().find(|w| self.is_measured(*w)).and_then(|w| self.expect(w))
    }

    /// Seconds that plain passes computed lately, as far as those that ran tell; `None` before any did. Steadier than the
    /// pace of now, for what is compared with something that ran long ago.
    pub(crate) fn pace_s(&self) -> Option<f64> {
        (self.samples > 0).then(|| self.pace_s.value())
    }

    /// Seconds that they compute at the pace of now, at which [`CostModel::lessons`] are.
    pub(crate) fn pace_now_s(&self) -> f64 {
        self.pace.level()
    }

    /// Relative standard deviation of what `width` costs in passes of width `other`.
    pub(crate) fn error(&self, width: usize, other: usize) -> f64 {
        self.pace.error(width, other)
    }

    /// The terms as fitted now.
    pub(crate) fn terms(&self) -> CostTerms {
        let [dense_s, row_s, expert_s] = self.fit.terms();
        let plain_s = self.pace.level();
        CostTerms {
            dense_s: dense_s * plain_s,
            row_s: row_s * plain_s,
            expert_s: expert_s * plain_s / self.expert_unit,
            miss_s: self.miss_s.value(),
        }
    }

    /// Distinct experts and misses expected of a pass of `width`.
    pub(crate) fn loads(&self, width: usize) -> (f64, f64) {
        let experts = self.experts.expect(width, 1.0);
        (experts, self.misses.expect(width, self.union(width)).min(experts))
    }

    /// The experts of a pass of `width` against those of a plain one. Of a wide pass no larger part is resident: what
    /// only its later rows ask for was asked for less lately. So it misses as many times more, at least.
    fn union(&self, width: usize) -> f64 {
        (self.experts.expect(width, 1.0) / self.experts.expect(0, 1.0).max(COUNT_UNIT)).max(1.0)
    }
}

impl Wait {
    fn add(&mut self, sample: PassSample) {
        self.seconds.add(sample.stall_s, MEMORY);
        self.misses.add(sample.misses, MEMORY);
    }

    fn doubt(&mut self) {
        self.seconds.loosen(LEVEL_RECALLED);
        self.misses.loosen(LEVEL_RECALLED);
    }
}

const NONE: Mean = Mean::prior(0.0, 0.0);

/// How many of something a pass meets, by width: a level (of a plain pass) that moves with every pass,
/// whatever its width, times the shape of its growth, which is a property of the model and the text.
#[derive(Clone, Debug)]
struct Counts {
    level: Option<Mean>,
    shape: Vec<Option<Mean>>,
}

impl Counts {
    fn new(width_max: usize) -> Counts {
        Counts { level: None, shape: vec![None; width_max + 1] }
    }

    /// A pass of `width` met `count`: `least` times what a plain one would have, or more.
    fn add(&mut self, width: usize, count: f64, least: f64) {
        // A width whose shape is not known yet says nothing about the level.
        let shape_known = width == 0 || self.shape[width].is_some_and(|shape| shape.weight() >= SHAPE_MIN);
        if shape_known || self.level.is_none() {
            let as_plain =
                ((count + COUNT_UNIT) / self.shape(width) - COUNT_UNIT).min(count / least).max(0.0);
            self.level.get_or_insert(NONE).add(as_plain, MEMORY);
        }
        let level = self.level.map_or(0.0, |level| level.value());
        if width > 0 {
            let grown = (count + COUNT_UNIT) / (level + COUNT_UNIT);
            self.shape[width].get_or_insert(NONE).add(grown, SHAPE_MEMORY);
        }
    }

    /// The shapes are another run's and so known; the level may be quite another, as caches begin empty.
    fn doubt_level(&mut self) {
        self.level.iter_mut().for_each(|level| level.loosen(LEVEL_RECALLED));
        self.shape.iter_mut().flatten().for_each(|shape| shape.tighten(SHAPE_MIN));
    }

    fn expect(&self, width: usize, least: f64) -> f64 {
        let level = self.level.map_or(0.0, |level| level.value());
        ((level + COUNT_UNIT) * self.shape(width) - COUNT_UNIT).max(least * level)
    }

    /// What a pass of `width` meets against a plain one: measured, or grown from the nearest narrower
    /// one that was.
    fn shape(&self, width: usize) -> f64 {
        let known =
            |w: usize| if w == 0 { Some((0, 1.0)) } else { self.shape[w].map(|mean| (w, mean.value())) };
        if let Some((_, shape)) = known(width) {
            // A plain pass would have asked for some of these: where it seems that it met more, it ran at another time.
            return shape.max(1.0);
        }
        let (nearest, shape) = (0..=width).rev().find_map(known).unwrap_or((0, 1.0));
        (shape * ((width + 1) as f64 / (nearest + 1) as f64).powf(UNION_POWER)).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(width: usize, seconds: f64) -> PassSample {
        PassSample { width, seconds, stall_s: 0.0, experts: 0.0, misses: 0.0 }
    }

    fn model(passes: &[(usize, f64)]) -> CostModel {
        let mut model = CostModel::new(8);
        passes.iter().for_each(|&(width, seconds)| model.add(pass(width, seconds)));
        model
    }

    fn close(a: Option<f64>, b: f64, share: f64) -> bool {
        a.is_some_and(|a| (a - b).abs() <= share * b)
    }

    #[test]
    fn costs_of_measured_widths_are_what_was_measured_even_where_no_term_fits() {
        let jump = |width: usize| if width == 0 { 1.0 } else { 1.8 + 0.05 * width as f64 };
        let passes: Vec<_> = (0..60).flat_map(|_| [0, 1, 2, 4].map(|w| (w, jump(w)))).collect();
        let model = model(&passes);
        for width in [0, 1, 2, 4] {
            assert!(close(model.expect(width), jump(width), 0.01), "{width}: {:?}", model.expect(width));
        }
        assert!(close(model.expect(3), jump(3), 0.1));
    }

    #[test]
    fn widths_beyond_those_measured_follow_the_terms_and_cost_no_less() {
        let passes: Vec<_> = (0..20).flat_map(|_| [0, 1, 2].map(|w| (w, 1.0 + 0.3 * w as f64))).collect();
        assert!(close(model(&passes).expect(8), 3.4, 0.05), "{:?}", model(&passes).expect(8));
        let cheaper = model(&[(0, 1.0), (0, 1.0), (1, 0.9)]);
        assert!(cheaper.expect(8) >= cheaper.expect(1));
        assert_eq!(cheaper.at_least(8), cheaper.expect(1));
        assert_eq!(cheaper.at_least(0), cheaper.expect(0));
    }

    #[test]
    fn one_outlier_neither_starts_nor_shifts_a_cost() {
        let mut model = model(&[(0, 50.0), (0, 1.0), (0, 1.0), (0, 1.0)]);
        assert!(close(model.expect(0), 1.0, 1e-6), "{:?}", model.expect(0));
        model.add(pass(0, 1000.0));
        assert!(model.expect(0) <= Some(1.5), "{:?}", model.expect(0));
    }

    #[test]
    fn passes_that_met_less_would_have_waited_less_in_their_own_way() {
        let mut model = CostModel::new(4);
        for _ in 0..20 {
            model.add(PassSample { width: 0, seconds: 3.0, stall_s: 2.0, experts: 10.0, misses: 3.5 });
            // Wide ones wait a tenth of that for a miss.
            model.add(PassSample { width: 4, seconds: 4.0, stall_s: 1.0, experts: 30.0, misses: 20.0 });
        }
        assert!(
            close(model.expect_meeting(0, 1.5), 1.0 + 2.0 * 1.5 / 3.5, 0.01),
            "{:?}",
            model.expect_meeting(0, 1.5)
        );
        assert!(close(model.expect_meeting(0, 9.0), 3.0, 0.01), "never more than was met");
        assert!(close(model.expect_meeting(0, 0.0), 1.0, 0.01), "none, no waiting");
        assert_eq!(model.expect_meeting(2, 1.0), None);
    }

    #[test]
    fn what_another_run_waited_is_soon_forgotten() {
        let mut before = CostModel::new(4);
        (0..20).for_each(|_| {
            before.add(PassSample { width: 0, seconds: 5.0, stall_s: 4.0, experts: 10.0, misses: 4.0 })
        });
        let mut model = CostModel::new(4);
        model.recall(&before.lessons());
        assert!(close(model.expect(0), 5.0, 0.01), "{:?}", model.expect(0));
        let pass = PassSample { width: 0, seconds: 2.0, stall_s: 1.0, experts: 10.0, misses: 4.0 };
        (0..2).for_each(|_| model.add(pass));
        assert!(model.expect(0) < Some(3.0), "two passes of its own: {:?}", model.expect(0));
    }

    #[test]
    fn a_wide_pass_misses_as_many_times_more_as_it_asks_for() {
        let mut model = CostModel::new(4);
        let pass = |width, experts, misses| PassSample { width, seconds: 1.0, stall_s: 0.0, experts, misses };
        // Plain passes ran beside a cold cache alone, drafted ones beside a warm one.
        (0..20).for_each(|_| model.add(pass(0, 10.0, 8.0)));
        (0..200).for_each(|_| model.add(pass(4, 30.0, 6.0)));
        let (plain, wide) = (model.loads(0).1, model.loads(4).1);
        assert!((plain - 2.0).abs() < 0.2 && (wide - 6.0).abs() < 0.5, "{plain} {wide}");
    }

    #[test]
    fn the_pace_follows_all_widths_and_another_runs_is_soon_forgotten() {
        assert_eq!(CostModel::new(4).pace_s(), None);
        let mut before = model(&[(0, 1.0), (2, 2.0)].repeat(20));
        (0..40).for_each(|_| before.add(pass(2, 4.0)));
        assert!(close(before.pace_s(), 2.0, 0.1) && close(Some(before.pace_now_s()), 2.0, 0.1), "{before:?}");
        let mut after = CostModel::new(4);
        after.recall(&before.lessons());
        assert!(close(after.pace_s(), 2.0, 0.1), "{:?}", after.pace_s());
        (0..3).for_each(|_| after.add(pass(0, 1.0)));
        assert!(after.pace_s() < Some(1.25), "{:?}", after.pace_s());
    }

    #[test]
    fn nothing_measured_is_said() {
        let model = CostModel::new(4);
        assert_eq!((model.expect(2), model.at_least(2)), (None, None));
    }

    /// A mixture whose terms are known: 20 ms dense, 2 ms a row, 0.1 ms an expert, 1 ms a miss.
    fn mixture(width: usize, miss_share: f64) -> PassSample {
        let experts = 100.0 * ((width + 1) as f64).powf(0.6);
        let misses = miss_share * experts;
        let stall_s = 1e-3 * misses;
        let seconds = 0.020 + 0.002 * (width + 1) as f64 + 1e-4 * experts + stall_s;
        PassSample { width, seconds, stall_s, experts, misses }
    }

    #[test]
    fn terms_of_a_mixture_are_found() {
        let mut model = CostModel::new(8);
        for _ in 0..100 {
            [0, 1, 2, 4, 8].iter().for_each(|width| model.add(mixture(*width, 0.2)));
        }
        let terms = model.terms();
        assert!((terms.dense_s - 0.020).abs() < 0.004, "{terms:?}");
        assert!((terms.row_s - 0.002).abs() < 0.001, "{terms:?}");
        assert!((terms.expert_s - 1e-4).abs() < 4e-5, "{terms:?}");
        assert!((terms.miss_s - 1e-3).abs() < 1e-6, "{terms:?}");
        assert!(close(model.expect(3), mixture(3, 0.2).seconds, 0.05));
    }

    #[test]
    fn a_cache_that_fills_shows_in_widths_that_were_not_run_since() {
        let mut model = CostModel::new(8);
        (0..40).for_each(|_| [0, 4].iter().for_each(|width| model.add(mixture(*width, 0.5))));
        // Only drafted passes from here on, and fewer and fewer misses.
        (0..60).for_each(|_| model.add(mixture(4, 0.05)));
        assert!(close(model.expect(0), mixture(0, 0.05).seconds, 0.1), "{:?}", model.expect(0));
    }
}
