//! Log-probabilities of the four answers, and accuracy with its standard error.
//!
//! The answers share everything up to the letter, so one pass serves all four where a letter is one token,
//! as it is in the vocabularies we know; where it is more, each answer is run by itself.

use drafthorse_draft::TokenId;
use drafthorse_runtime::Error;
use drafthorse_runtime::engine::Engine;
use serde::Serialize;

/// Right answers of all.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// Questions asked.
    pub asked: usize,
    /// Answered with the right letter.
    pub right: usize,
    /// Their quotient.
    pub accuracy: f64,
    /// Its standard error, from the sample's variance; 0 for a single question.
    pub accuracy_error: f64,
}

impl Accuracy {
    /// Of these answers.
    pub fn of(answers: &[bool]) -> Accuracy {
        let (asked, right) = (answers.len(), answers.iter().filter(|right| **right).count());
        let accuracy = if asked > 0 { right as f64 / asked as f64 } else { 0.0 };
        let error = if asked > 1 { (accuracy * (1.0 - accuracy) / (asked as f64 - 1.0)).sqrt() } else { 0.0 };
        Accuracy { asked, right, accuracy, accuracy_error: error }
    }
}

/// Log-probability of what each of `texts` (`[answers][tokens]`) has after the beginning that all share; None
/// where a logit is not finite.
///
/// # Errors
/// The engine's.
pub fn letter_scores(engine: &mut Engine, texts: &[Vec<TokenId>]) -> Result<Option<Vec<f64>>, Error> {
    let shared = shared(texts);
    if texts.iter().all(|text| text.len() == shared + 1) {
        let mut scores = None;
        engine.logits(&texts[0][..shared], false, &mut |row| {
            scores = texts.iter().map(|text| log_probability(row, text[shared])).collect();
            Ok(())
        })?;
        return Ok(scores);
    }
    let mut scores = Vec::with_capacity(texts.len());
    for text in texts {
        let mut score = Some(0.0);
        let mut position = 0;
        engine.logits(&text[..text.len() - 1], true, &mut |row| {
            position += 1;
            if position >= shared {
                score = score.zip(log_probability(row, text[position])).map(|(sum, more)| sum + more);
            }
            Ok(())
        })?;
        scores.push(score);
    }
    Ok(scores.into_iter().collect())
}

/// Tokens that all begin with, at least one short of the shortest.
fn shared(texts: &[Vec<TokenId>]) -> usize {
    let shortest = texts.iter().map(Vec::len).min().unwrap_or(0);
    let is_same = |at: &usize| texts.iter().all(|text| text[*at] == texts[0][*at]);
    (0..shortest.saturating_sub(1)).take_while(is_same).count()
}

fn log_probability(row: &[f32], token: TokenId) -> Option<f64> {
    if row.iter().any(|logit| !logit.is_finite()) {
        return None;
    }
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|logit| (f64::from(*logit) - max).exp()).sum();
    Some(f64::from(*row.get(token as usize)?) - max - sum.ln())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn accuracy_counted_by_hand() {
        let four = Accuracy::of(&[true, false, true, true]);
        // The sample's deviation of 1 0 1 1 is 1/2; over the root of 4 that is 1/4.
        assert_eq!((four.right, four.accuracy, four.accuracy_error), (3, 0.75, 0.25));
        assert_eq!(Accuracy::of(&[true]).accuracy_error, 0.0);
    }

    #[test]
    fn a_probability_is_over_the_whole_vocabulary() {
        let row: Vec<f32> = [0.5f64, 0.25, 0.25].iter().map(|p| (p.ln() + 7.0) as f32).collect();
        assert!((log_probability(&row, 1).unwrap() - 0.25f64.ln()).abs() < 1e-6);
        assert_eq!(log_probability(&[f32::NAN, 0.0], 1), None);
    }

    #[test]
    fn the_shared_beginning_leaves_every_answer_a_token() {
        assert_eq!(shared(&[vec![1, 2, 3], vec![1, 2, 4]]), 2);
        assert_eq!(shared(&[vec![1, 2, 3], vec![1, 2, 3, 5]]), 2);
        assert_eq!(shared(&[vec![1, 9, 3], vec![1, 2, 4]]), 1);
    }
}
