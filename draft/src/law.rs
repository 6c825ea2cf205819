//! A next-token law: which tokens may come, and how probable each is.
//!
//! Owns [`Law`], sparse because filters leave few tokens of a large vocabulary, and the drawing from
//! it. It must not know logits, settings or where a draw's number comes from.

use crate::TokenId;

/// A probability distribution over tokens: weights by ascending token id, and their sum.
///
/// Weights are f32 and the sum f64, so that a probability is one exact f64 division of what is stored.
/// A law is empty when the row it came from has no logit above -inf.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Law {
    weights: Vec<(TokenId, f32)>,
    mass: f64,
}

impl Law {
    /// The law with these weights; those that are not positive numbers count as 0. Each token at most
    /// once, in any order.
    pub fn new(weights: impl IntoIterator<Item = (TokenId, f32)>) -> Law {
        let is_possible = |(_, weight): &(TokenId, f32)| *weight > 0.0 && weight.is_finite();
        let weights: Vec<_> = weights.into_iter().filter(is_possible).collect();
        let mass = weights.iter().map(|(_, weight)| f64::from(*weight)).sum();
        Law::with_mass(weights, mass)
    }

    /// A law whose weights, all positive, are known to sum to `mass`.
    pub(crate) fn with_mass(mut weights: Vec<(TokenId, f32)>, mass: f64) -> Law {
        weights.sort_unstable_by_key(|(token, _)| *token);
        debug_assert!(weights.windows(2).all(|pair| pair[0].0 < pair[1].0), "a token occurs once");
        Law { weights, mass }
    }

    /// Memory of a law of `tokens` tokens, in bytes.
    pub const fn bytes_max(tokens: usize) -> usize {
        size_of::<Law>() + tokens * size_of::<(TokenId, f32)>()
    }

    /// The law of a drafter that could have guessed nothing else.
    pub fn point(token: TokenId) -> Law {
        Law { weights: vec![(token, 1.0)], mass: 1.0 }
    }

    /// Whether no token may come.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// Number of tokens that may come.
    pub fn len(&self) -> usize {
        self.weights.len()
    }

    /// A token's probability.
    pub fn probability(&self, token: TokenId) -> f64 {
        match self.weights.binary_search_by_key(&token, |(token, _)| *token) {
            Ok(at) => f64::from(self.weights[at].1) / self.mass,
            Err(_) => 0.0,
        }
    }

    /// Tokens that may come, by ascending id, with their probabilities.
    pub fn iter(&self) -> impl Iterator<Item = (TokenId, f64)> + '_ {
        self.weights.iter().map(|(token, weight)| (*token, f64::from(*weight) / self.mass))
    }

    /// The token at which the sum of probabilities passes `uniform`, which is in [0, 1): a draw from the
    /// law when `uniform` is. `None` from an empty law.
    pub fn draw(&self, uniform: f64) -> Option<TokenId> {
        let weights = self.weights.iter().map(|(token, weight)| (*token, f64::from(*weight)));
        token_at(weights, uniform * self.mass)
    }

    /// The chance that two draws agree: what a draw's own probability is on average, known before the
    /// draw.
    pub fn agreement(&self) -> f64 {
        self.iter().map(|(_, probability)| probability * probability).sum()
    }

    /// How much more probable than in `other` a token is when this law is scaled by `scale`: the tokens
    /// for which `scale * self - other` is positive, and the difference.
    pub fn excess<'a>(&'a self, scale: f64, other: &'a Law) -> impl Iterator<Item = (TokenId, f64)> + 'a {
        let mut others = other.iter().peekable();
        self.iter().filter_map(move |(token, probability)| {
            while others.next_if(|(id, _)| *id < token).is_some() {}
            let taken = others.next_if(|(id, _)| *id == token).map_or(0.0, |(_, probability)| probability);
            let excess = scale * probability - taken;
            (excess > 0.0).then_some((token, excess))
        })
    }
}

/// The token at which the running sum of weights passes `goal`; the last one when rounding leaves the
/// sum short of it.
pub(crate) fn token_at(weights: impl Iterator<Item = (TokenId, f64)>, goal: f64) -> Option<TokenId> {
    let (mut sum, mut last) = (0.0, None);
    for (token, weight) in weights {
        sum += weight;
        last = Some(token);
        if sum > goal {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn law() -> Law {
        Law::new([(7, 1.0), (2, 2.0), (9, f32::NAN), (5, 1.0), (3, 0.0)])
    }

    #[test]
    fn weights_become_probabilities_in_the_order_of_ids() {
        assert_eq!(law().iter().collect::<Vec<_>>(), [(2, 0.5), (5, 0.25), (7, 0.25)]);
        let of = |token| law().probability(token);
        assert_eq!([2, 3, 7, 9, 1000].map(of), [0.5, 0.0, 0.25, 0.0, 0.0]);
        assert_eq!((law().agreement(), Law::point(4).agreement()), (0.375, 1.0));
    }

    #[test]
    fn a_draw_inverts_the_running_sum() {
        let drawn = [0.0, 0.4999, 0.5, 0.7499, 0.75, 0.9999].map(|u| law().draw(u));
        assert_eq!(drawn, [2, 2, 5, 5, 7, 7].map(Some));
        assert_eq!((Law::point(4).draw(0.9), Law::default().draw(0.5)), (Some(4), None));
    }

    #[test]
    fn excess_is_the_positive_part_of_the_difference() {
        let other = Law::new([(1, 1.0), (5, 3.0), (7, 1.0), (8, 3.0)]);
        assert_eq!(law().excess(1.0, &other).collect::<Vec<_>>(), [(2, 0.5), (7, 0.125)]);
        assert_eq!(law().excess(0.5, &other).collect::<Vec<_>>(), [(2, 0.25)]);
        assert_eq!(law().excess(0.0, &other).count(), 0);
        assert_eq!(law().excess(1.0, &law()).count(), 0);
    }
}
