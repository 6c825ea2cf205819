//! Gating statistics: how often the router chose each expert lately.
//!
//! Owns decayed selection counts per layer and expert (ALGORITHMS.md H.2: counts, not gate mass,
//! which replays 1-8 points worse). It must not know residency; policies combine the two.
//!
//! Time is counted per layer in rows routed there, so a window of n rows ages a layer by n: one
//! prefill window of 500 rows weighs as much as 500 single steps, not as one, and not 500-fold.

/// One time scale of a [`GatingStats`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HalfLife {
    /// Rows of a layer after which a selection counts half, > 0.
    pub rows: f64,
    /// Share of this scale in the estimate; the shares sum to 1.
    pub weight: f64,
}

/// Decayed counts of router selections, at one or several half-lives.
#[derive(Clone, Debug)]
pub struct GatingStats {
    layers: Vec<LayerCounts>,
    experts_used: f64,
    half_lives: Vec<HalfLife>,
}

#[derive(Clone, Debug)]
struct LayerCounts {
    rows: f64,        // rows this layer has routed so far
    at: Vec<f64>,     // (experts): `rows` when the expert was last selected
    counts: Vec<f64>, // (experts, half_lives): decayed selections as of `at`
}

impl GatingStats {
    /// Empty counts for `experts[layer]` experts a layer, of which one row selects `experts_used`.
    pub fn new(experts: &[u32], experts_used: u32, half_lives: &[HalfLife]) -> GatingStats {
        let layer = |n: &u32| LayerCounts {
            rows: 0.0,
            at: vec![0.0; *n as usize],
            counts: vec![0.0; *n as usize * half_lives.len()],
        };
        GatingStats {
            layers: experts.iter().map(layer).collect(),
            experts_used: f64::from(experts_used.max(1)),
            half_lives: half_lives.to_vec(),
        }
    }

    /// Adds one window: `counts[i]` of its rows chose `experts[i]`. The selections are taken as spread
    /// evenly over the window's rows; a window of one row adds exactly 1 to each. A window may come in
    /// pieces (several calls). Unknown layers and experts are ignored.
    pub fn observe(&mut self, layer: u32, experts: &[u32], counts: &[u32]) {
        let Some(stats) = self.layers.get_mut(layer as usize) else { return };
        let rows = counts.iter().map(|c| f64::from(*c)).sum::<f64>() / self.experts_used;
        if rows <= 0.0 {
            return;
        }
        stats.rows += rows;
        // Powers are what this costs; they stand between a router's word and its experts.
        let spreads: Vec<f64> = self.half_lives.iter().map(|scale| scale.decayed(rows) / rows).collect(); // 1 for a row
        for (expert, count) in experts.iter().zip(counts) {
            let expert = *expert as usize;
            let Some(at) = stats.at.get_mut(expert) else { continue };
            let age = stats.rows - std::mem::replace(at, stats.rows);
            let first = expert * self.half_lives.len();
            let scales = self.half_lives.iter().zip(&spreads);
            for (value, (scale, spread)) in stats.counts[first..].iter_mut().zip(scales) {
                *value = *value * scale.decay(age) + f64::from(*count) * spread;
            }
        }
    }

    /// Estimated probability that a row selects the expert, in 0..=1: decayed selections over decayed
    /// rows, averaged over the half-lives. 0 before the layer's first window and for unknown experts.
    pub fn probability(&self, layer: u32, expert: u32) -> f64 {
        let Some(stats) = self.layers.get(layer as usize).filter(|stats| stats.rows > 0.0) else {
            return 0.0;
        };
        let Some(at) = stats.at.get(expert as usize) else { return 0.0 };
        let first = expert as usize * self.half_lives.len();
        let scales = stats.counts[first..].iter().zip(&self.half_lives);
        let share = |(value, scale): (&f64, &HalfLife)| {
            scale.weight * value * scale.decay(stats.rows - at) / scale.decayed(stats.rows)
        };
        scales.map(share).sum::<f64>().clamp(0.0, 1.0)
    }

    /// The probability at the longest half-life alone: what is worth keeping for another run.
    pub fn long_run(&self, layer: u32, expert: u32) -> f64 {
        let longest = self.half_lives.iter().zip(0..).max_by(|a, b| a.0.rows.total_cmp(&b.0.rows));
        let stats = self.layers.get(layer as usize).filter(|stats| stats.rows > 0.0);
        let (Some((scale, at)), Some(stats)) = (longest, stats) else { return 0.0 };
        let Some(last) = stats.at.get(expert as usize) else { return 0.0 };
        let count = stats.counts[expert as usize * self.half_lives.len() + at];
        (count * scale.decay(stats.rows - last) / scale.decayed(stats.rows)).clamp(0.0, 1.0)
    }

    /// Starts a layer from the probabilities of an earlier run, as if `rows` (> 0) rows had shown them:
    /// so few that a new text soon outweighs them. What the layer has counted so far is forgotten.
    pub fn seed(&mut self, layer: u32, probabilities: &[f32], rows: f64) {
        let Some(stats) = self.layers.get_mut(layer as usize) else { return };
        stats.rows = rows;
        stats.at.fill(rows);
        let counts = stats.counts.chunks_exact_mut(self.half_lives.len().max(1));
        for (counts, probability) in counts.zip(probabilities) {
            let scales = counts.iter_mut().zip(&self.half_lives);
            scales.for_each(|(count, scale)| *count = f64::from(*probability) * scale.decayed(rows));
        }
    }

    /// [`GatingStats::probability`] of every expert of a layer in order; none for an unknown layer.
    pub fn probabilities(&self, layer: u32) -> impl Iterator<Item = f64> + '_ {
        let experts = self.layers.get(layer as usize).map_or(0, |stats| stats.at.len());
        (0..experts as u32).map(move |expert| self.probability(layer, expert))
    }
}

impl HalfLife {
    /// What is left of 1 after `rows` rows.
    fn decay(&self, rows: f64) -> f64 {
        (-rows / self.rows).exp2()
    }

    /// The decayed count of an expert that each of `rows` rows has selected: 1 for one row.
    fn decayed(&self, rows: f64) -> f64 {
        (1.0 - self.decay(rows)) / (1.0 - self.decay(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(experts: u32, rows: f64) -> GatingStats {
        GatingStats::new(&[experts], 1, &[HalfLife { rows, weight: 1.0 }])
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn a_selection_counts_half_after_one_half_life() {
        let mut stats = stats(4, 8.0);
        stats.observe(0, &[2], &[1]);
        assert!(close(stats.layers[0].counts[2], 1.0));
        (0..7).for_each(|_| stats.observe(0, &[1], &[1]));
        stats.observe(0, &[2], &[1]);
        assert!(close(stats.layers[0].counts[2], 1.5));
    }

    #[test]
    fn one_window_of_many_rows_weighs_as_much_as_single_rows() {
        let mut single = stats(2, 8.0);
        let mut window = stats(2, 8.0);
        (0..20).for_each(|_| single.observe(0, &[0], &[1]));
        window.observe(0, &[0], &[20]);
        assert!(close(single.layers[0].counts[0], window.layers[0].counts[0]));
        assert!(close(single.probability(0, 0), 1.0) && close(window.probability(0, 0), 1.0));
    }

    #[test]
    fn a_window_in_pieces_weighs_as_much_as_a_whole_one() {
        let mut whole = GatingStats::new(&[4], 2, &[HalfLife { rows: 1e6, weight: 1.0 }]);
        let mut pieces = whole.clone();
        whole.observe(0, &[0, 1, 2], &[4, 3, 1]);
        pieces.observe(0, &[0, 1], &[4, 3]);
        pieces.observe(0, &[2], &[1]);
        for expert in 0..3 {
            let (a, b) = (whole.probability(0, expert), pieces.probability(0, expert));
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }

    #[test]
    fn probability_is_the_share_of_rows_that_chose_the_expert() {
        let mut stats = stats(3, 1000.0);
        assert!(close(stats.probability(0, 0), 0.0));
        for step in 0..400 {
            stats.observe(0, &[if step % 4 == 0 { 0 } else { 1 }], &[1]);
        }
        assert!((stats.probability(0, 0) - 0.25).abs() < 0.01);
        assert!(close(stats.probability(0, 2), 0.0));
    }

    #[test]
    fn short_and_long_half_lives_are_averaged_by_weight() {
        let scales = [HalfLife { rows: 1.0, weight: 0.25 }, HalfLife { rows: 1e9, weight: 0.75 }];
        let mut stats = GatingStats::new(&[2], 1, &scales);
        stats.observe(0, &[0], &[1]);
        (0..59).for_each(|_| stats.observe(0, &[1], &[1]));
        // Long scale: 1 row in 60. Short scale: 59 half-lives ago, so nothing.
        assert!((stats.probability(0, 0) - 0.75 / 60.0).abs() < 1e-6);
    }

    #[test]
    fn a_seed_predicts_what_it_says_until_new_rows_outweigh_it() {
        let scales = [HalfLife { rows: 4.0, weight: 0.5 }, HalfLife { rows: 256.0, weight: 0.5 }];
        let mut stats = GatingStats::new(&[3], 1, &scales);
        stats.seed(0, &[0.75, 0.25, 0.0], 64.0);
        assert!(close(stats.probability(0, 0), 0.75) && close(stats.probability(0, 2), 0.0));
        assert!(close(stats.long_run(0, 1), 0.25));
        (0..64).for_each(|_| stats.observe(0, &[2], &[1]));
        assert!(stats.probability(0, 2) > 2.0 * stats.probability(0, 0), "64 rows against 64 rows");
        assert!(stats.long_run(0, 2) > 0.5 && stats.long_run(0, 2) < 0.6);
    }

    #[test]
    fn unknown_layers_and_experts_are_ignored() {
        let mut stats = stats(1, 8.0);
        stats.observe(7, &[0], &[1]);
        stats.observe(0, &[9], &[1]);
        assert!(close(stats.probability(0, 9), 0.0) && close(stats.probability(7, 0), 0.0));
    }
}
