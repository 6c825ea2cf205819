//! Prompt lookup: the continuation of the longest earlier match of the context's end.
//!
//! Owns [`NgramDrafter`], which needs no model and keeps nothing between calls, so a rolled-back
//! context is just another context. It must not know probabilities: its confidence is a count of how
//! often the guess held before, which the scheduler calibrates. (Saxena, prompt lookup decoding, 2023.)

use crate::{Draft, DraftError, Drafter, Request, TokenId};

/// Bounds on the match length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NgramConfig {
    /// Shorter matches abstain. At least 1.
    pub min_match: usize,
    /// Longer matches are not looked for. At least `min_match`, at most 1024.
    pub max_match: usize,
}

impl NgramConfig {
    /// Checks both bounds.
    ///
    /// # Errors
    /// [`DraftError::Setting`] names the field outside its limits.
    pub fn validate(&self) -> Result<(), DraftError> {
        let wrong = |field, value: usize, limits| {
            Err(DraftError::Setting { field, value: value.to_string(), limits })
        };
        if self.min_match == 0 {
            return wrong("min_match", self.min_match, "at least 1");
        }
        if self.max_match < self.min_match || self.max_match > 1024 {
            return wrong("max_match", self.max_match, "from min_match to 1024");
        }
        Ok(())
    }
}

/// Drafts what followed the last time the context ended like this.
#[derive(Clone, Debug)]
pub struct NgramDrafter {
    config: NgramConfig,
}

/// An earlier place in the context where its end occurs: `context[..next]` ends in the same
/// `len` tokens.
#[derive(Clone, Copy)]
struct Match {
    next: usize,
    len: usize,
}

impl NgramDrafter {
    /// A drafter for a configuration that has passed [`NgramConfig::validate`].
    pub fn new(config: NgramConfig) -> Self {
        NgramDrafter { config }
    }

    /// The longest match of the context's end, the most recent one among equals.
    fn longest(&self, context: &[TokenId]) -> Option<Match> {
        let mut best: Option<Match> = None;
        for next in (1..context.len()).rev() {
            let len = self.match_len(context, next);
            if len > best.map_or(0, |b| b.len) {
                best = Some(Match { next, len });
            }
            if len == self.config.max_match {
                break;
            }
        }
        best.filter(|found| found.len >= self.config.min_match.max(1))
    }

    /// Tokens, up to `max_match`, that `context[..next]` and `context` have in common at their ends.
    fn match_len(&self, context: &[TokenId], next: usize) -> usize {
        let pairs = context[..next].iter().rev().zip(context.iter().rev());
        pairs.take(self.config.max_match).take_while(|(a, b)| a == b).count()
    }

    /// Confidence in each guess: of the earlier places that match by at least `min_match` tokens and
    /// went on like the draft so far, the share that went on with this guess too. Each matched token
    /// counts as one more place that agreed, and one place that did not is assumed.
    fn confidence(&self, context: &[TokenId], draft: &[TokenId], match_len: usize) -> Vec<f32> {
        let mut agreed = vec![0u32; draft.len() + 1]; // agreed[i]: places that went on like draft[..i]
        for next in 1..context.len() {
            if self.match_len(context, next) >= self.config.min_match {
                let same = context[next..].iter().zip(draft).take_while(|(a, b)| a == b).count();
                agreed[..=same].iter_mut().for_each(|n| *n += 1);
            }
        }
        let sure = match_len as f32;
        agreed.windows(2).map(|pair| (pair[1] as f32 + sure) / (pair[0] as f32 + sure + 1.0)).collect()
    }
}

/// `len` tokens from `next` on; where they run past the end they go on with the copy itself, so that
/// a repeating text is drafted at any length.
fn copy_from(context: &[TokenId], next: usize, len: usize) -> Vec<TokenId> {
    let period = context.len() - next;
    (0..len).map(|i| context[next + i % period]).collect()
}

impl Drafter for NgramDrafter {
    fn name(&self) -> &'static str {
        "ngram"
    }

    fn propose(&mut self, request: Request<'_>) -> Result<Draft, DraftError> {
        if request.max_tokens == 0 {
            return Ok(Draft::default());
        }
        let Some(found) = self.longest(request.context) else { return Ok(Draft::default()) };
        let tokens = copy_from(request.context, found.next, request.max_tokens);
        let confidence = self.confidence(request.context, &tokens, found.len);
        Ok(Draft::new(tokens, confidence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sampler, SamplerConfig};

    fn propose(min_match: usize, max_match: usize, context: &[TokenId], max_tokens: usize) -> Draft {
        let sampler = Sampler::new(SamplerConfig::plain(0.0, 0));
        let mut drafter = NgramDrafter::new(NgramConfig { min_match, max_match });
        drafter.propose(Request::new(context, max_tokens, &sampler)).expect("never fails")
    }

    #[test]
    fn the_longest_match_wins_over_a_more_recent_one() {
        // "2 3" is followed by 4 after "1", by 9 later; the context ends in "1 2 3".
        let draft = propose(1, 8, &[1, 2, 3, 4, 7, 2, 3, 9, 1, 2, 3], 2);
        assert_eq!(draft.tokens, [4, 7]);
    }

    #[test]
    fn among_equal_matches_the_most_recent_wins() {
        assert_eq!(propose(1, 8, &[5, 1, 6, 1, 7, 1], 1).tokens, [7]);
    }

    #[test]
    fn a_match_below_the_minimum_abstains() {
        let context = [1, 2, 9, 3, 2];
        assert_eq!(propose(1, 8, &context, 4).tokens[0], 9);
        assert_eq!(propose(2, 8, &context, 4), Draft::default());
    }

    #[test]
    fn a_repeating_text_is_drafted_past_its_end() {
        assert_eq!(propose(2, 4, &[8, 1, 2, 3, 1, 2, 3], 7).tokens, [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(propose(1, 4, &[5, 5, 5], 4).tokens, [5; 4]);
    }

    #[test]
    fn confidence_grows_with_match_length_and_falls_with_disagreement() {
        let short = propose(1, 8, &[2, 9, 4, 2], 1);
        let long = propose(1, 8, &[1, 2, 9, 4, 1, 2], 1);
        let contested = propose(1, 8, &[2, 7, 2, 7, 3, 2, 9, 4, 2], 1);
        assert_eq!(contested.tokens, [9]);
        assert!(contested.confidence[0] < short.confidence[0] && short.confidence[0] < long.confidence[0]);
        assert!(long.confidence.iter().all(|c| (0.0..=1.0).contains(c)));
    }

    #[test]
    fn bounds_are_checked_by_name() {
        assert!(NgramConfig { min_match: 1, max_match: 1 }.validate().is_ok());
        for (min_match, max_match, name) in [(0, 4, "min_match"), (5, 4, "max_match"), (1, 2000, "max_match")]
        {
            let error = NgramConfig { min_match, max_match }.validate().expect_err(name);
            assert!(error.to_string().starts_with(name), "{error}");
        }
    }
}
