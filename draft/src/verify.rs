//! The acceptance rule: which prefix of a draft stands, and the target's token after it.
//!
//! Owns [`verify`] and its [`Verdict`]. It must not know logits, models or the sampler: the target's
//! choice for a row comes in through a closure, so that rows after the first rejection are never
//! sampled.

use crate::{Choice, Draft, TokenId};

/// What the target made of a draft.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// How many drafted tokens stand, from the first one on.
    pub accepted: usize,
    /// The target's own token after the accepted prefix: the correction of the first rejected guess,
    /// or the bonus token when every guess stands.
    pub next: TokenId,
    /// The target's probability of `next`, as [`Choice::probability`].
    pub probability: f32,
}

/// Accepts the longest prefix of `draft` that equals the target's own choices.
///
/// `choose(row)` gives the target's choice after the committed text plus `row` drafted tokens; it is
/// called for rows 0, 1, ... in order, at most `draft.tokens.len() + 1` times and never past the
/// first rejection. The tokens that result are those the target alone would have chosen
/// (arXiv 2408.07978: both sides share their noise), whatever was drafted.
pub fn verify(draft: &Draft, mut choose: impl FnMut(usize) -> Choice) -> Verdict {
    let mut accepted = 0;
    let mut choice = choose(0);
    while draft.tokens.get(accepted) == Some(&choice.token) {
        accepted += 1;
        choice = choose(accepted);
    }
    Verdict { accepted, next: choice.token, probability: choice.probability }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(drafted: &[TokenId], target: &[TokenId]) -> (Verdict, usize) {
        let draft = Draft::new(drafted.to_vec(), vec![1.0; drafted.len()]);
        let mut rows = Vec::new();
        let verdict = verify(&draft, |row| {
            rows.push(row);
            Choice { token: target[row], probability: 0.5 }
        });
        assert_eq!(rows, (0..rows.len()).collect::<Vec<_>>(), "rows are asked for in order");
        (verdict, rows.len())
    }

    #[test]
    fn an_empty_draft_is_a_plain_step() {
        assert_eq!(run(&[], &[7]), (Verdict { accepted: 0, next: 7, probability: 0.5 }, 1));
    }

    #[test]
    fn a_draft_that_stands_earns_the_bonus_token() {
        let (verdict, rows) = run(&[1, 2, 3], &[1, 2, 3, 4]);
        assert_eq!((verdict.accepted, verdict.next, rows), (3, 4, 4));
    }

    #[test]
    fn the_first_difference_is_replaced_and_later_rows_are_not_sampled() {
        let (verdict, rows) = run(&[1, 9, 3], &[1, 2, 3, 4]);
        assert_eq!((verdict.accepted, verdict.next, rows), (1, 2, 2));
    }

    #[test]
    fn a_guess_that_is_right_only_by_a_shift_is_rejected() {
        let (verdict, rows) = run(&[2, 3], &[1, 2, 3]);
        assert_eq!((verdict.accepted, verdict.next, rows), (0, 1, 1));
    }
}
