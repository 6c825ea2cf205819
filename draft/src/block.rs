//! Block verification: how much of a draft stands when drafter and target draw independently.
//!
//! Owns the probabilities of the algorithm ([`BlockOdds`]) and, apart from them, the draws that turn
//! them into a verdict. A prefix is judged as a whole, so a guess the target likes less can stand on
//! the credit of those before it: never fewer tokens than token-level rejection, and exactly the
//! target's law. (Sun et al., ICLR 2025, arXiv 2403.10444, algorithm 2.) It must not know logits.

use crate::noise::{Purpose, uniform};
use crate::{Draft, Law, TokenId};

/// The chances of a draft's prefixes, the draws left out.
///
/// The longest prefix whose own draw succeeds stands: prefix i does so with `stands[i - 1]`, whatever
/// became of shorter ones.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockOdds {
    /// `[K]`: `h_i` of the paper for i = 1..=K.
    pub stands: Vec<f64>,
    /// `[K + 1]`: `p_i` for i = 0..=K, how much likelier than the drafter the target is to have written
    /// the first i guesses, capped at 1 after each. The residual law after prefix i is the normalised
    /// [`Law::excess`] of the target's law there, scaled by this, over the drafter's.
    pub ratios: Vec<f64>,
}

impl BlockOdds {
    /// The odds of `draft`. `law(row)` is the target's law after the committed text and `row` drafted
    /// tokens; it is called for rows 0, 1, ... in order, and not beyond a guess the target excludes.
    ///
    /// The last token of `draft` is the last that was drawn: a draft that is cut short must be cut by
    /// what was known before the first dropped token was drawn ([`Draft::cut`]).
    pub fn new(draft: &Draft, mut law: impl FnMut(usize) -> Law) -> BlockOdds {
        let len = draft.tokens.len();
        let mut odds = BlockOdds { stands: vec![0.0; len], ratios: vec![0.0; len + 1] };
        let mut ratio = 1.0;
        odds.ratios[0] = ratio;
        for (row, &token) in draft.tokens.iter().enumerate() {
            let (target, drafted) = (law(row), draft.law(row));
            if row > 0 {
                odds.stands[row - 1] = stands(ratio, &target, &drafted);
            }
            let own = drafted.probability(token); // 0: a drafter that denies its own guess
            ratio = if own > 0.0 { (ratio * target.probability(token) / own).min(1.0) } else { 0.0 };
            if ratio <= 0.0 {
                return odds; // nothing from here on can stand
            }
            odds.ratios[row + 1] = ratio;
        }
        if len > 0 {
            odds.stands[len - 1] = ratio;
        }
        odds
    }

    /// How many guesses stand in the pass over a text of `committed` tokens.
    pub(crate) fn draw(&self, seed: u64, committed: usize) -> usize {
        let stands = |len: &usize| uniform(seed, Purpose::Stand, (committed, *len)) < self.stands[len - 1];
        (1..=self.stands.len()).rev().find(stands).unwrap_or(0)
    }
}

/// The chance that a prefix, not the longest, stands: `h_i`, 1 where target and drafter agree on what
/// follows.
fn stands(ratio: f64, target: &Law, drafted: &Law) -> f64 {
    let excess: f64 = target.excess(ratio, drafted).map(|(_, excess)| excess).sum();
    let rest = excess + 1.0 - ratio;
    if rest > 0.0 { excess / rest } else { 1.0 }
}

/// A draw from the residual law: the token that follows a prefix which stands, when a longer one was
/// drafted. `None` where rounding left nothing of it.
pub(crate) fn residual(
    ratio: f64,
    (target, drafted): (&Law, &Law),
    (seed, committed): (u64, usize),
) -> Option<TokenId> {
    let mass: f64 = target.excess(ratio, drafted).map(|(_, excess)| excess).sum();
    let goal = mass * uniform(seed, Purpose::Residual, (committed, 0));
    crate::law::token_at(target.excess(ratio, drafted), goal)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A draft of tokens 0, whose law gives them this much.
    fn draft(probabilities: &[f32]) -> Draft {
        let mut draft = Draft::new(vec![0; probabilities.len()], vec![0.5; probabilities.len()]);
        draft.laws = probabilities.iter().map(|p| Law::new([(0, *p), (1, 1.0 - p)])).collect();
        draft
    }

    fn odds(target: &[f32], drafted: &[f32]) -> BlockOdds {
        BlockOdds::new(&draft(drafted), |row| Law::new([(0, target[row]), (1, 1.0 - target[row])]))
    }

    #[test]
    fn one_guess_is_judged_as_by_rejection_sampling() {
        assert_eq!(odds(&[0.25], &[0.5]), BlockOdds { stands: vec![0.5], ratios: vec![1.0, 0.5] });
        assert_eq!(odds(&[0.5], &[0.25]).stands, [1.0], "a guess the target likes better stands");
    }

    #[test]
    fn a_block_is_judged_as_a_whole() {
        // By hand: p1 = 0.5; excess of 0.5 P over Q at row 1 is 0.5 * 0.75 - 0.5 < 0 and
        // 0.5 * 0.25 - 0.5 < 0, so h1 = 0; p2 = min(1, 0.5 * 0.75 / 0.5) = 0.75. Rejection sampling
        // would give both tokens 0.5 * 1.
        let odds = odds(&[0.25, 0.75], &[0.5, 0.5]);
        assert_eq!(odds, BlockOdds { stands: vec![0.0, 0.75], ratios: vec![1.0, 0.5, 0.75] });
    }

    #[test]
    fn laws_that_agree_stand_whole() {
        let odds = odds(&[0.3, 0.6, 0.9], &[0.3, 0.6, 0.9]);
        assert_eq!(odds, BlockOdds { stands: vec![1.0; 3], ratios: vec![1.0; 4] });
    }

    #[test]
    fn nothing_is_asked_of_the_target_beyond_a_guess_it_excludes() {
        let mut rows = Vec::new();
        let odds = BlockOdds::new(&draft(&[0.5, 0.5, 0.5]), |row| {
            rows.push(row);
            if row == 1 { Law::point(1) } else { Law::point(0) }
        });
        assert_eq!((rows, &odds.stands[1..]), (vec![0, 1], &[0.0, 0.0][..]));
        let nothing = BlockOdds::new(&Draft::default(), |_| unreachable!("no row decides"));
        assert_eq!((nothing.draw(1, 5), nothing.ratios), (0, vec![1.0]));
    }

    #[test]
    fn a_guess_that_its_own_law_or_an_empty_one_excludes_does_not_stand() {
        let mut denied = Draft::new(vec![3], vec![0.5]);
        denied.laws = vec![Law::point(2)];
        assert_eq!(BlockOdds::new(&denied, |_| Law::point(2)).stands, [0.0], "0 / 0");
        assert_eq!(BlockOdds::new(&denied, |_| Law::point(3)).stands, [0.0], "1 / 0");
        assert_eq!(BlockOdds::new(&draft(&[0.5]), |_| Law::default()).stands, [0.0], "a broken row");
    }
}
