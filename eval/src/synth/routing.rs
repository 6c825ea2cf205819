//! Skewed routing: how a router with random weights is made to prefer some experts.
//!
//! Every token's residual bears one constant channel, so a router weight on it is a bias:
//! `-zipf * ln(rank)`, ranks a random order per layer. The other weights give logits of the deviation
//! of Gumbel noise, so the best k are about k draws without replacement from a Zipf law with that
//! exponent. Everything here is arithmetic on numbers; the tensors are `plan.rs`'s.

use super::random::Random;
use super::shape::Shape;

/// Deviation of Gumbel noise: pi / sqrt(6).
pub const LOGIT_STD: f64 = 1.282_549_83;
/// Simulated tokens: the statistics below are then good to a percent or two.
const TOKENS: usize = 2000;

/// Biases of `experts` experts in order of rank, with mean 0.
pub fn biases(experts: usize, zipf: f64) -> Vec<f64> {
    let raw: Vec<f64> = (1..=experts).map(|rank| -zipf * (rank as f64).ln()).collect();
    let mean = raw.iter().sum::<f64>() / experts as f64;
    raw.into_iter().map(|bias| bias - mean).collect()
}

/// What the routing of a shape looks like.
#[derive(Clone, Copy, Debug)]
pub struct Routing {
    /// Share of the choices that fall on the most popular fifth of a layer's experts.
    pub top_fifth: f64,
    /// Root mean square over tokens of the length of the vector of chosen weights.
    pub weight_rms: f64,
}

/// Simulates tokens with the law of logits above.
pub fn simulate(shape: &Shape, zipf: f64, seed: u64) -> Routing {
    let (experts, used) = (shape.experts as usize, shape.used as usize);
    let biases = biases(experts, zipf);
    let mut random = Random::named(seed, "routing");
    let fifth = experts.div_ceil(5);
    let (mut in_fifth, mut squares) = (0usize, 0.0);
    for _ in 0..TOKENS {
        let logits: Vec<f64> = biases.iter().map(|bias| bias + LOGIT_STD * random.normal()).collect();
        let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let chosen = &order[..used];
        in_fifth += chosen.iter().filter(|expert| **expert < fifth).count();
        let scores: Vec<f64> = chosen.iter().map(|expert| logits[*expert].exp() / total).collect();
        let sum: f64 = if shape.weighting.normalised { scores.iter().sum() } else { 1.0 };
        let scale = f64::from(shape.weighting.scale) / sum;
        squares += scores.iter().map(|score| (score * scale).powi(2)).sum::<f64>();
    }
    Routing {
        top_fifth: in_fifth as f64 / (TOKENS * used) as f64,
        weight_rms: (squares / TOKENS as f64).sqrt(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_exponent_sets_the_skew() {
        let mid = Shape::find("mid").unwrap();
        let share = |zipf| simulate(&mid, zipf, 1).top_fifth;
        assert!((share(0.0) - 0.2).abs() < 0.02, "{}", share(0.0));
        assert!((0.62..0.78).contains(&share(0.8)), "{}", share(0.8));
        assert!((share(0.0)..share(0.8)).contains(&share(0.4)));
    }

    #[test]
    fn biases_are_ordered_and_centred() {
        let biases = biases(16, 0.8);
        assert!(biases.is_sorted_by(|a, b| a > b));
        assert!(biases.iter().sum::<f64>().abs() < 1e-9);
    }

    #[test]
    fn normalised_weights_are_shorter_than_their_sum() {
        let normalised = simulate(&Shape::find("mixtral-8x7b").unwrap(), 0.8, 1).weight_rms;
        assert!((0.7..1.0).contains(&normalised), "{normalised}");
    }
}
