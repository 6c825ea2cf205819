//! The acceptance rule: which prefix of a draft stands, and the target's token after it.
//!
//! Owns [`Verdict`] and [`Sampler::verify`], which picks the rule the settings ask for: equality with
//! the target's own choices, or block verification. It must not know models, nor how laws and choices
//! come about.

use crate::block::{BlockOdds, residual};
use crate::{Choice, Draft, History, Sampler, TokenId};

/// What the target made of a draft.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// How many drafted tokens stand, from the first one on.
    pub accepted: usize,
    /// The target's own token after the accepted prefix: the correction of the first rejected guess,
    /// or the bonus token when every guess stands.
    pub next: TokenId,
    /// The target's probability of `next`, as [`Choice::probability`].
    pub probability: f32,
    /// How sure the target was of each of the tokens that come, `next` being the last ([`Sampler::certainty`]), where choosing
    /// them shows it: greedily. Else empty.
    pub certainty: Vec<f32>,
}

impl Verdict {
    /// Whether the first of `guesses` behind the `verified` ones is the token that came there. `None` where there is none
    /// or one before it was rejected. Only where guesses stand by being equal does that mean that it would have stood.
    pub fn tells_of_next(&self, guesses: &[TokenId], verified: usize) -> Option<bool> {
        let next = guesses.get(verified).filter(|_| self.accepted == verified)?;
        Some(*next == self.next)
    }
}

impl Sampler {
    /// What the target makes of `draft`, drafted after `committed`. `logits(row)` is the target's
    /// `[vocab]` row after the committed text and the first `row` drafted tokens, for rows 0 to the
    /// draft's length.
    ///
    /// [`VerifyRule::Coupled`](crate::VerifyRule): the tokens that result are those the target alone
    /// would have chosen, whatever was drafted. [`VerifyRule::Block`](crate::VerifyRule): they follow
    /// the same law; without a draft they are the same.
    pub fn verify<'l>(
        &self,
        committed: &[TokenId],
        draft: &Draft,
        logits: impl Fn(usize) -> &'l [f32],
    ) -> Verdict {
        let history = |row: usize| History { committed, drafted: &draft.tokens[..row] };
        let choose = |row: usize| self.choose(logits(row), history(row));
        if self.config().stands_by_equality() || draft.tokens.is_empty() {
            let verdict = longest_equal(draft, choose);
            // A greedy choice's probability is the likeliest token's.
            return if self.is_greedy() { verdict } else { Verdict { certainty: Vec::new(), ..verdict } };
        }
        let law = |row: usize| self.law(logits(row), history(row));
        let (seed, len) = (self.config().seed, committed.len());
        let odds = BlockOdds::new(draft, law);
        let accepted = odds.draw(seed, len);
        if accepted < draft.tokens.len() {
            let (target, drafted) = (law(accepted), draft.law(accepted));
            let next = residual(odds.ratios[accepted], (&target, &drafted), (seed, len));
            if let Some(next) = next {
                let probability = target.probability(next) as f32;
                return Verdict { accepted, next, probability, certainty: Vec::new() };
            }
        }
        let Choice { token, probability } = choose(accepted);
        Verdict { accepted, next: token, probability, certainty: Vec::new() }
    }
}

/// Accepts the longest prefix of `draft` that equals the target's own choices.
///
/// `choose(row)` gives the target's choice after the committed text plus `row` drafted tokens; it is
/// called for rows 0, 1, ... in order, at most `draft.tokens.len() + 1` times and never past the
/// first rejection. The tokens that result are those the target alone would have chosen
/// (arXiv 2408.07978: both sides share their noise), whatever was drafted.
fn longest_equal(draft: &Draft, mut choose: impl FnMut(usize) -> Choice) -> Verdict {
    let mut accepted = 0;
    let mut certainty = Vec::with_capacity(draft.tokens.len() + 1);
    let mut next = || {
        let choice = choose(certainty.len());
        certainty.push(choice.probability);
        choice
    };
    let mut choice = next();
    while draft.tokens.get(accepted) == Some(&choice.token) {
        accepted += 1;
        choice = next();
    }
    Verdict { accepted, next: choice.token, probability: choice.probability, certainty }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Law, SamplerConfig, VerifyRule};

    fn run(drafted: &[TokenId], target: &[TokenId]) -> (Verdict, usize) {
        let draft = Draft::new(drafted.to_vec(), vec![1.0; drafted.len()]);
        let mut rows = Vec::new();
        let verdict = longest_equal(&draft, |row| {
            rows.push(row);
            Choice { token: target[row], probability: 0.5 }
        });
        assert_eq!(rows, (0..rows.len()).collect::<Vec<_>>(), "rows are asked for in order");
        (verdict, rows.len())
    }

    #[test]
    fn what_came_tells_of_the_first_guess_that_was_not_verified_if_all_before_it_stand() {
        let guesses = [5, 6, 7];
        let verdict = |verified: usize, target: &[TokenId]| run(&guesses[..verified], target).0;
        assert_eq!(verdict(0, &[5]).tells_of_next(&guesses, 0), Some(true));
        assert_eq!(verdict(0, &[6]).tells_of_next(&guesses, 0), Some(false));
        assert_eq!(verdict(2, &[5, 6, 7]).tells_of_next(&guesses, 2), Some(true));
        assert_eq!(verdict(2, &[5, 6, 6]).tells_of_next(&guesses, 2), Some(false));
        assert_eq!(verdict(2, &[5, 7]).tells_of_next(&guesses, 2), None, "one before it was rejected");
        assert_eq!(verdict(3, &[5, 6, 7, 8]).tells_of_next(&guesses, 3), None, "all were verified");
        assert_eq!(verdict(0, &[5]).tells_of_next(&[], 0), None, "nothing was guessed");
    }

    #[test]
    fn an_empty_draft_is_a_plain_step() {
        let verdict = Verdict { accepted: 0, next: 7, probability: 0.5, certainty: vec![0.5] };
        assert_eq!(run(&[], &[7]), (verdict, 1));
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

    fn block(temperature: f32) -> Sampler {
        Sampler::new(SamplerConfig { verify: VerifyRule::Block, ..SamplerConfig::plain(temperature, 3) })
    }

    #[test]
    fn greedy_block_verification_matches_prefixes() {
        let rows = [[0.0, 9.0, 1.0], [0.0, 1.0, 9.0], [9.0, 0.0, 1.0]];
        let draft = Draft::new(vec![1, 0], vec![1.0; 2]);
        let verdict = block(0.0).verify(&[5], &draft, |row| &rows[row]);
        assert_eq!((verdict.accepted, verdict.next), (1, 2));
    }

    #[test]
    fn a_greedy_verdict_says_how_sure_the_target_was_and_others_are_asked_at_temperature_one() {
        let rows = [[0.0f32, 9.0, 1.0], [0.0, 1.0, 4.0], [2.0, 0.0, 1.0]];
        let softmax = |row: &[f32; 3]| {
            let top = row.iter().copied().fold(0.0f32, f32::max);
            1.0 / row.iter().map(|logit| (logit - top).exp()).sum::<f32>()
        };
        let draft = Draft::new(vec![1, 2], vec![1.0; 2]);
        for temperature in [0.0, 0.05] {
            let coupled = Sampler::new(SamplerConfig { top_k: 2, ..SamplerConfig::plain(temperature, 3) });
            for sampler in [coupled, block(temperature)] {
                let verdict = sampler.verify(&[5], &draft, |row| &rows[row]);
                assert_eq!(verdict.accepted, 2, "the logits leave no doubt");
                assert_eq!(verdict.certainty.len(), if temperature == 0.0 { 3 } else { 0 });
                let asked = rows.map(|row| sampler.certainty(&row, History::of(&[5])));
                let close = |(a, b): (&f32, &[f32; 3])| (a - softmax(b)).abs() < 1e-5;
                assert!(verdict.certainty.iter().zip(&rows).all(close));
                assert!(asked.iter().zip(&rows).all(close));
            }
        }
    }

    #[test]
    fn a_block_the_target_cannot_have_written_is_replaced_by_its_own_token() {
        let row = [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY];
        let mut draft = Draft::new(vec![2, 2], vec![0.5; 2]);
        for laws in [Vec::new(), vec![Law::new([(0, 0.5), (2, 0.5)]); 2]] {
            draft.laws = laws;
            let verdict = block(0.8).verify(&[5], &draft, |_| &row);
            assert_eq!((verdict.accepted, verdict.next, verdict.probability), (0, 1, 1.0));
        }
    }

    #[test]
    fn broken_rows_show_in_the_verdict_and_never_panic() {
        let draft = Draft::new(vec![1, 2], vec![0.5; 2]);
        let verdict = block(0.8).verify(&[5], &draft, |_| &[f32::NAN; 3]);
        assert_eq!((verdict.accepted, verdict.next, verdict.probability), (0, 0, 0.0));
    }

    #[test]
    fn without_a_draft_both_rules_choose_the_same_token() {
        let row: Vec<f32> = (0..50).map(|i| (i * 37 % 11) as f32 * 0.3).collect();
        let coupled = Sampler::new(SamplerConfig::plain(0.8, 3));
        for len in 1..40 {
            let text = vec![1; len];
            let of = |sampler: Sampler| sampler.verify(&text, &Draft::default(), |_| &row);
            assert_eq!(of(block(0.8)), of(coupled));
        }
    }
}
