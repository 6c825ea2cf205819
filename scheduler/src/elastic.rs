//! Elastic verification: which rows of a pass go on once it shows what they cost.
//!
//! Owns [`RowRule`], one pass's rule. A draft is cut before its pass by what rows cost on average; the misses of
//! the first layers say more about this one (ALGORITHMS.md 0.5: those of the first quarter of the layers
//! correlate by 0.45 to 0.74 with the rest). So at each layer, once its router has chosen and before anything is
//! read, the rows at the end whose misses make them dearer than the tokens they may yield are dropped, as if
//! they had never been drafted (ALGORITHMS.md H.4). Only what is still to be paid counts: reads that are under
//! way and rows computed are spent either way. And only what would be paid for nothing: a token that stands is
//! the text's, whose experts the next pass would read if this one did not (ALGORITHMS.md 0.3), so a miss costs
//! its row the chance that the row falls.
//!
//! Under the coupled rule and greedily that is lossless: it only shortens the draft. In block verification it
//! would not be: a row's misses depend on the token drawn for it, and a guess must not be dropped for what
//! it is. It must not know tensors, experts or whose rows these are.

use crate::cost::CostModel;
use crate::estimate::Mean;

/// What is expected of a row before the pass weighs as much as its misses in this share of the layers: with
/// that, the first quarter of the layers correlates with the rest by 0.6.
const PRIOR_SHARE: f64 = 0.25;
/// Share of the layers that have shown their misses before a row is dropped.
const FIRST_LOOK_SHARE: f64 = 0.125;
/// A row is dropped when what is left of its cost is this many times what it is worth. Both are estimates, and
/// a row that is kept may still be dropped at the next layer; a dropped one does not come back.
const DEAR: f64 = 1.25;
/// Passes over which what dropping costs is averaged.
const MEMORY: f64 = 32.0;

/// Whether rows may be dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ElasticMode {
    /// Never.
    #[default]
    Off,
    /// Where their misses make them not worth their time.
    Auto,
}

/// What a pass has shown when the router of a layer has chosen and nothing of its choice was read.
#[derive(Clone, Copy, Debug)]
pub struct RowsSeen<'a> {
    /// Layers with routed experts that are behind the pass.
    pub layers_done: usize,
    /// Those of the model.
    pub layers: usize,
    /// By row: experts that it was the first to want and that had to be read, in the layers done.
    pub misses: &'a [u32],
    /// By row: the same of the present layer, which are not asked for yet. As many rows as are left.
    pub here: &'a [u32],
}

/// One pass's rule; row 0 is the committed token, row j the j-th drafted one.
#[derive(Clone, Debug, PartialEq)]
pub struct RowRule {
    miss_s: f64,
    rows: Vec<Row>,
}

/// A drafted token before the pass.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    /// The chance that it stands.
    stands: f64,
    /// Seconds that the token it may yield is worth.
    worth_s: f64,
    /// Misses expected of it in all layers.
    misses: f64,
    /// Seconds of computing it in all layers, its own experts included.
    compute_s: f64,
}

impl RowRule {
    /// A rule for a draft whose tokens stand with the chances `survival` (of the whole prefix, falling), where a
    /// token is worth `token_s` seconds: what it takes to get one otherwise, waiting for its experts apart.
    pub(crate) fn new(survival: impl Iterator<Item = f64>, token_s: f64, costs: &CostModel) -> RowRule {
        let terms = costs.terms();
        let rows = survival.enumerate().map(|(index, stands)| {
            let ((experts_before, before), (experts, misses)) = (costs.loads(index), costs.loads(index + 1));
            Row {
                stands,
                worth_s: stands * token_s,
                misses: (misses - before).max(0.0),
                compute_s: terms.row_s + terms.expert_s * (experts - experts_before).max(0.0),
            }
        });
        RowRule { rows: rows.collect(), miss_s: terms.miss_s }
    }

    /// How many rows go on: at least the committed token's, at most those that are left. A row without a miss of
    /// its own is dropped only behind one that is.
    #[must_use]
    pub fn keep_rows(&self, seen: &RowsSeen<'_>) -> usize {
        let left = seen.here.len();
        let looked_at = (seen.layers_done + 1) as f64;
        if left <= 1 || looked_at < FIRST_LOOK_SHARE * seen.layers as f64 {
            return left.max(1);
        }
        let (mut sum, mut best) = (0.0, (1, 0.0));
        for (index, row) in self.rows.iter().enumerate().take(left - 1) {
            sum += self.value(row, seen, index + 1);
            // Of equals the longest.
            best = if sum >= best.1 { (index + 2, sum) } else { best };
        }
        // Rows that the rule was not made for are none of its business.
        if self.rows.len() < left - 1 { left } else { best.0 }
    }

    /// What row `at` is worth beyond what is still to be paid for it, in seconds.
    fn value(&self, row: &Row, seen: &RowsSeen<'_>, at: usize) -> f64 {
        let here = f64::from(seen.here[at]);
        let so_far = here + seen.misses.get(at).map_or(0.0, |misses| f64::from(*misses));
        if so_far == 0.0 {
            // It costs less than expected, and it was worth that.
            return DEAR * row.worth_s;
        }
        let (layers, looked_at) = (seen.layers.max(1) as f64, (seen.layers_done + 1) as f64);
        let prior_layers = PRIOR_SHARE * layers;
        let each = (so_far + PRIOR_SHARE * row.misses) / (looked_at + prior_layers);
        let to_come = here + each * (layers - looked_at).max(0.0);
        let compute_s = row.compute_s * ((layers - seen.layers_done as f64) / layers).max(0.0);
        let wasted_s = (1.0 - row.stands).max(0.0) * self.miss_s * to_come;
        DEAR * row.worth_s - (wasted_s + compute_s)
    }
}

/// What passes that dropped rows took beyond a pass of the width they ended with, by planned length.
#[derive(Clone, Debug)]
pub(crate) struct DropCosts {
    by_length: Vec<Option<Mean>>,
}

impl DropCosts {
    /// For plans of up to `draft_len_max` drafted tokens.
    pub(crate) fn new(draft_len_max: usize) -> DropCosts {
        DropCosts { by_length: vec![None; draft_len_max + 1] }
    }

    /// A pass planned with `draft_len` took `extra_s` seconds more than one of the width it ended with; 0 for
    /// one that dropped nothing.
    pub(crate) fn add(&mut self, draft_len: usize, extra_s: f64) {
        if let Some(mean) = self.by_length.get_mut(draft_len) {
            mean.get_or_insert(Mean::prior(0.0, 0.0)).add(extra_s, MEMORY);
        }
    }

    /// The mean of passes planned so; of the next shorter length run where there were none.
    pub(crate) fn expect(&self, draft_len: usize) -> f64 {
        let known = self.by_length.iter().take(draft_len + 1).rev().find_map(|mean| *mean);
        known.map_or(0.0, |mean| mean.value().max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::PassSample;

    const LAYERS: usize = 16;

    /// A row is worth 10 ms when it is sure to stand, a miss costs 1 ms; two misses are expected of a row.
    fn rule(survival: &[f64]) -> RowRule {
        let row =
            |stands: &f64| Row { stands: *stands, worth_s: 0.010 * stands, misses: 2.0, compute_s: 0.001 };
        RowRule { miss_s: 0.001, rows: survival.iter().map(row).collect() }
    }

    fn keep(rule: &RowRule, layers_done: usize, misses: &[u32], here: &[u32]) -> usize {
        rule.keep_rows(&RowsSeen { layers_done, layers: LAYERS, misses, here })
    }

    /// Numbers that look drawn, the same every time.
    fn draws(seed: u64) -> impl Iterator<Item = u32> {
        let next =
            |x: &u64| Some(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
        std::iter::successors(next(&seed), next).map(|x| (x >> 33) as u32)
    }

    #[test]
    fn the_committed_row_is_never_dropped_and_no_more_rows_come_back_than_went_in() {
        let hopeless = rule(&[0.0, 0.0]);
        assert_eq!(keep(&hopeless, 8, &[900; 3], &[900; 3]), 1);
        assert_eq!(keep(&hopeless, 8, &[900], &[900]), 1);
        assert_eq!(keep(&rule(&[]), 8, &[900], &[900]), 1);
        for seed in 0..2000 {
            let mut draw = draws(seed);
            let mut next = |below: u32| draw.next().unwrap_or(0) % below;
            let survival: Vec<f64> = (0..6).map(|_| f64::from(next(100)) / 100.0).collect();
            let left = 1 + next(7) as usize;
            let rows: Vec<u32> = (0..2 * left).map(|_| next(6)).collect();
            let kept = keep(&rule(&survival), next(16) as usize, &rows[..left], &rows[left..]);
            assert!((1..=left).contains(&kept), "seed {seed}: {kept} of {left}");
        }
    }

    #[test]
    fn a_pass_without_misses_keeps_its_rows_however_unlikely_they_are() {
        for layers_done in 0..LAYERS {
            let unlikely = rule(&[0.01, 0.001, 0.0]);
            assert_eq!(
                keep(&unlikely, layers_done, &[7, 0, 0, 0], &[3, 0, 0, 0]),
                4,
                "the committed row's are paid anyway"
            );
        }
    }

    #[test]
    fn a_tail_whose_misses_are_dear_is_dropped_and_what_stands_before_it_stays() {
        let draft = rule(&[0.9, 0.8, 0.3, 0.2]);
        assert_eq!(keep(&draft, 4, &[5, 1, 0, 4, 3], &[1, 0, 0, 2, 1]), 3);
        // What rows read that are sure to stand would be read for their tokens anyway.
        assert_eq!(keep(&rule(&[1.0; 4]), 4, &[5, 1, 0, 400, 3], &[1, 0, 0, 90, 1]), 5);
        // A dear row before a tail that makes up for it stays, too.
        assert_eq!(keep(&rule(&[0.5, 0.5, 0.5, 0.5]), 4, &[0, 15, 0, 0, 0], &[0; 5]), 5);
    }

    #[test]
    fn nothing_is_dropped_at_a_first_glance_and_only_for_what_is_still_to_be_paid() {
        let draft = rule(&[0.1]);
        assert_eq!(keep(&draft, 0, &[0, 0], &[0, 5]), 2, "one layer of 16 says too little");
        assert_eq!(keep(&draft, 3, &[0, 9], &[0, 3]), 1);
        assert_eq!(keep(&draft, LAYERS - 1, &[0, 90], &[0, 0]), 2, "all of it is spent");
        assert_eq!(keep(&draft, LAYERS - 1, &[0, 0], &[0, 3]), 1, "the last layer's own reads can be saved");
    }

    #[test]
    fn more_misses_never_keep_more_rows() {
        for seed in 0..4000 {
            let mut draw = draws(seed);
            let mut next = |below: u32| draw.next().unwrap_or(0) % below;
            let survival: Vec<f64> = (0..5).map(|_| f64::from(next(100)) / 100.0).collect();
            let (rule, layers_done) = (rule(&survival), next(16) as usize);
            let mut rows: Vec<u32> = (0..12).map(|_| next(4)).collect();
            let before = keep(&rule, layers_done, &rows[..6], &rows[6..]);
            rows[next(12) as usize] += 1 + next(3);
            let after = keep(&rule, layers_done, &rows[..6], &rows[6..]);
            assert!(after <= before, "seed {seed}: {before} rows, then {after}");
        }
    }

    #[test]
    fn a_rule_is_made_of_what_passes_of_each_width_took() {
        let mut costs = CostModel::new(4);
        for _ in 0..20 {
            for width in 0..=4 {
                let misses = 10.0 + 2.0 * width as f64;
                let stall_s = 0.001 * misses;
                costs.add(PassSample { width, seconds: 0.1 + stall_s, stall_s, experts: 50.0, misses });
            }
        }
        let rule = RowRule::new([0.8, 0.4].into_iter(), 0.05, &costs);
        assert!((rule.miss_s - 0.001).abs() < 1e-9);
        assert!((rule.rows[1].worth_s - 0.02).abs() < 1e-12);
        assert!(
            rule.rows.iter().all(|row| (row.misses - 2.0).abs() < 0.3 && row.compute_s >= 0.0),
            "{rule:?}"
        );
    }

    #[test]
    fn what_dropping_costs_is_a_mean_over_all_passes_of_a_plan() {
        let mut costs = DropCosts::new(4);
        assert_eq!(costs.expect(4), 0.0);
        [0.0, 0.2, 0.0, 0.2].iter().for_each(|extra| costs.add(2, *extra));
        costs.add(99, 7.0);
        assert!((costs.expect(2) - 0.1).abs() < 1e-12);
        assert!((costs.expect(4) - 0.1).abs() < 1e-12, "as the next shorter one");
        assert_eq!(costs.expect(1), 0.0);
    }
}
