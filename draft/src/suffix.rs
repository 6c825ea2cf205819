//! Drafting from everything said so far: the commonest continuation of the longest match of the text's end,
//! in the text itself and in the earlier texts of the same engine.
//!
//! Owns [`SuffixDrafter`]: which texts the automaton holds, how a context is followed as it grows, is rolled
//! back or gives way to another one, and what is dropped when memory runs out. It must not know
//! probabilities: its confidence comes from counts, which the scheduler calibrates. (SuffixDecoding, Oliaro
//! et al., arXiv 2411.04975; REST, He et al., arXiv 2311.08252.)

use crate::automaton::{Automaton, Continuation, Place};
use crate::{Draft, DraftError, Drafter, Request, TokenId};
use std::collections::VecDeque;

/// Longer matches are not told apart; so much of a text's beginning is kept with a part that is put by.
const MATCH_MAX: usize = 64;
/// Fewer tokens taken back are a correction, not a text worth keeping.
const KEPT_MIN: usize = 8;
/// What is kept when memory is full, as a share of the limit: (of, parts). The rest makes room for as long.
const KEPT_SHARE: (usize, usize) = (3, 4);
/// Bytes a token of a text takes beside the automaton: its id in a vector that grows by doubling, and its
/// share of what a text takes.
const TEXT_BYTES_PER_TOKEN: u64 = 12;
/// Disagreements assumed beside those counted, for a match of one token; the fewer, the longer it is.
const DOUBT: f32 = 2.0;

/// Bounds of the suffix drafter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuffixConfig {
    /// Shorter matches abstain. 1 to 64.
    pub min_match: usize,
    /// Tokens of text that are kept, the present one and earlier ones together; the oldest go first. 256 to
    /// 4194304.
    pub tokens_max: usize,
}

impl SuffixConfig {
    /// Checks both bounds.
    ///
    /// # Errors
    /// [`DraftError::Setting`] names the field outside its limits.
    pub fn validate(&self) -> Result<(), DraftError> {
        let wrong = |field, value: usize, limits| {
            Err(DraftError::Setting { field, value: value.to_string(), limits })
        };
        if !(1..=MATCH_MAX).contains(&self.min_match) {
            return wrong("suffix_min_match", self.min_match, "from 1 to 64");
        }
        if !(256..=4 << 20).contains(&self.tokens_max) {
            return wrong("suffix_tokens_max", self.tokens_max, "from 256 to 4194304");
        }
        Ok(())
    }

    /// Bytes that a drafter of this configuration takes at most.
    pub fn memory_bytes(&self) -> u64 {
        Automaton::bytes(self.tokens_max) + self.tokens_max as u64 * TEXT_BYTES_PER_TOKEN
    }
}

/// A stretch of a context: its tokens from position `start` on.
#[derive(Clone, Debug, Default, PartialEq)]
struct Text {
    start: usize,
    tokens: Vec<TokenId>,
}

impl Text {
    /// Whether the context says the same at these positions.
    fn is_part_of(&self, context: &[TokenId]) -> bool {
        context.get(self.start..self.start + self.tokens.len()) == Some(&self.tokens[..])
    }

    /// Drops tokens from the front.
    fn drop_front(&mut self, count: usize) {
        self.tokens.drain(..count);
        self.tokens.shrink_to_fit();
        self.start += count;
    }
}

/// Drafts the commonest continuation of the longest match; see the module.
pub struct SuffixDrafter {
    config: SuffixConfig,
    automaton: Automaton,
    /// What the automaton holds: earlier texts, the oldest first, and the end of the present context.
    earlier: VecDeque<Text>,
    present: Text,
}

impl SuffixDrafter {
    /// A drafter for a configuration that has passed [`SuffixConfig::validate`].
    pub fn new(config: SuffixConfig) -> SuffixDrafter {
        SuffixDrafter {
            config,
            automaton: Automaton::new(config.tokens_max, MATCH_MAX + 1),
            earlier: VecDeque::new(),
            present: Text::default(),
        }
    }

    /// Makes the automaton hold the end of `context` as the present text.
    fn follow(&mut self, context: &[TokenId]) {
        if !self.present.is_part_of(context) {
            self.put_by(context);
        }
        let known = self.present.start + self.present.tokens.len();
        let mut new = &context[known..];
        let kept = self.config.tokens_max / KEPT_SHARE.1 * KEPT_SHARE.0;
        if self.tokens_kept() + new.len() > self.config.tokens_max {
            new = &new[new.len().saturating_sub(kept)..];
            self.make_room(kept - new.len());
            if self.present.tokens.is_empty() {
                self.present.start = context.len() - new.len();
            }
        }
        new.iter().for_each(|token| self.automaton.push(*token));
        self.present.tokens.extend_from_slice(new);
    }

    /// Another context than the present text's: what the new one does not say becomes an earlier text.
    fn put_by(&mut self, context: &[TokenId]) {
        let Text { start, tokens } = std::mem::take(&mut self.present);
        let told = context.get(start..).unwrap_or_default();
        let same = tokens.iter().zip(told).take_while(|(a, b)| a == b).count();
        if tokens.len() - same >= KEPT_MIN {
            let from = same.saturating_sub(MATCH_MAX);
            self.earlier.push_back(Text { start: start + from, tokens: tokens[from..].to_vec() });
        }
        // What the new context repeats word for word is counted once.
        self.earlier.retain(|text| !text.is_part_of(context));
        self.rebuild();
    }

    fn tokens_kept(&self) -> usize {
        self.present.tokens.len() + self.earlier.iter().map(|text| text.tokens.len()).sum::<usize>()
    }

    /// Drops the oldest tokens until at most `kept` are left, earlier texts before the present one.
    fn make_room(&mut self, kept: usize) {
        let mut excess = self.tokens_kept().saturating_sub(kept);
        while let Some(oldest) = self.earlier.front_mut().filter(|_| excess > 0) {
            let dropped = excess.min(oldest.tokens.len());
            excess -= dropped;
            oldest.drop_front(dropped);
            if oldest.tokens.len() < KEPT_MIN {
                excess = excess.saturating_sub(oldest.tokens.len());
                self.earlier.pop_front();
            }
        }
        self.present.drop_front(excess);
        self.rebuild();
    }

    /// Builds the automaton anew from the texts that are left.
    fn rebuild(&mut self) {
        self.automaton.clear();
        for text in self.earlier.iter().chain([&self.present]) {
            self.automaton.begin_text();
            text.tokens.iter().for_each(|token| self.automaton.push(*token));
        }
    }

    /// The commonest continuation, the latest among equals, and the confidence in it.
    fn guess(&self, place: Place) -> Option<(TokenId, f32)> {
        let rank = |continuation: &Continuation| (continuation.count, continuation.seen);
        let best = self.automaton.continuations(place).max_by_key(rank)?;
        let total: u64 = self.automaton.continuations(place).map(|other| u64::from(other.count)).sum();
        Some((best.token, best.count as f32 / (total as f32 + DOUBT / place.len as f32)))
    }
}

impl Drafter for SuffixDrafter {
    fn name(&self) -> &'static str {
        "suffix"
    }

    fn propose(&mut self, request: Request<'_>) -> Result<Draft, DraftError> {
        let mut draft = Draft::default();
        if request.max_tokens == 0 || request.context.is_empty() {
            return Ok(draft);
        }
        self.follow(request.context);
        let is_enough = |place: &Place| place.len >= self.config.min_match;
        let mut place = self.automaton.end().filter(is_enough);
        while let Some((token, confidence)) = place.and_then(|place| self.guess(place)) {
            draft.tokens.push(token);
            draft.confidence.push(confidence);
            if draft.tokens.len() == request.max_tokens {
                break;
            }
            place = place.and_then(|place| self.automaton.advance(place, token)).filter(is_enough);
        }
        Ok(draft)
    }

    fn forget(&mut self) {
        self.earlier.clear();
        self.present = Text::default();
        self.automaton.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sampler, SamplerConfig};

    fn drafter(min_match: usize) -> SuffixDrafter {
        SuffixDrafter::new(SuffixConfig { min_match, tokens_max: 256 })
    }

    fn propose(drafter: &mut SuffixDrafter, context: &[TokenId], max_tokens: usize) -> Draft {
        let sampler = Sampler::new(SamplerConfig::plain(0.0, 0));
        drafter.propose(Request::new(context, max_tokens, &sampler)).expect("never fails")
    }

    #[test]
    fn the_commonest_continuation_wins_and_the_latest_among_equals() {
        let often = [1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2];
        assert_eq!(propose(&mut drafter(2), &often, 2).tokens, [3, 8], "3 twice, then 8 later than 9");
        assert_eq!(propose(&mut drafter(2), &[1, 2, 3, 1, 2, 4, 1, 2], 1).tokens, [4]);
    }

    #[test]
    fn a_longer_match_wins_over_a_commoner_one_and_a_short_one_abstains() {
        let context = [5, 1, 2, 6, 1, 2, 7, 1, 2, 7, 5, 1, 2];
        assert_eq!(propose(&mut drafter(1), &context, 1).tokens, [6]);
        assert_eq!(propose(&mut drafter(3), &context, 1).tokens, [6]);
        assert_eq!(propose(&mut drafter(4), &context, 1), Draft::default());
    }

    #[test]
    fn a_repeating_text_is_drafted_past_its_end() {
        let mut drafter = drafter(2);
        assert_eq!(propose(&mut drafter, &[8, 1, 2, 3, 1, 2, 3], 7).tokens, [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(propose(&mut drafter, &[5; 200], 4).tokens, [5; 4]);
    }

    #[test]
    fn confidence_grows_with_match_length_and_falls_with_disagreement() {
        let confidence = |context: &[TokenId]| propose(&mut drafter(1), context, 1).confidence[0];
        let (short, long) = (confidence(&[2, 9, 4, 2]), confidence(&[1, 2, 9, 4, 1, 2]));
        let contested = confidence(&[2, 7, 2, 9, 3, 2, 9, 4, 2]);
        assert!(contested < long && short < long, "{short} {contested} {long}");
        assert!(confidence(&[2, 9, 4, 2, 9, 3, 2]) > short, "seen twice");
    }

    #[test]
    fn an_earlier_text_is_remembered_and_no_match_reaches_over_its_end() {
        let mut drafter = drafter(2);
        let first: Vec<TokenId> = (10..30).collect();
        assert_eq!(propose(&mut drafter, &first, 3), Draft::default());
        assert_eq!(propose(&mut drafter, &[1, 12, 13], 3).tokens, [14, 15, 16], "an earlier text");
        // The first text ended in 28, 29; what was said next began with 1, 12.
        assert_eq!(propose(&mut drafter, &[2, 28, 29], 3), Draft::default());
        drafter.forget();
        assert_eq!(propose(&mut drafter, &[1, 12, 13], 3), Draft::default());
    }

    #[test]
    fn a_text_taken_up_again_is_not_counted_twice() {
        let mut drafter = drafter(1);
        let text: Vec<TokenId> = (10..40).collect();
        propose(&mut drafter, &text, 1);
        propose(&mut drafter, &[1, 2, 3], 1);
        assert_eq!(drafter.earlier.len(), 1);
        let longer: Vec<TokenId> = (10..50).collect();
        propose(&mut drafter, &longer, 1);
        assert_eq!((drafter.earlier.len(), drafter.tokens_kept()), (0, 40), "the three were a correction");
    }

    #[test]
    fn what_was_taken_back_is_remembered_with_what_stood_before_it() {
        let mut drafter = drafter(3);
        propose(&mut drafter, &(1..30).collect::<Vec<TokenId>>(), 1);
        let other: Vec<TokenId> = (1..11).chain([50, 51, 9, 10, 11]).collect();
        assert_eq!(propose(&mut drafter, &other, 2).tokens, [12, 13], "9 and 10 are in both texts");
        assert_eq!(drafter.tokens_kept(), 29 + 15);
    }

    #[test]
    fn the_oldest_text_goes_first_and_the_limit_holds() {
        let mut drafter = drafter(2);
        for round in 0..40u32 {
            let context: Vec<TokenId> = (0..30).map(|i| 1000 * round + i).collect();
            propose(&mut drafter, &context, 1);
            assert!(drafter.tokens_kept() <= 256, "{}", drafter.tokens_kept());
        }
        assert_eq!(propose(&mut drafter, &[7, 38_010, 38_011], 2).tokens, [38_012, 38_013]);
        assert_eq!(propose(&mut drafter, &[7, 2010, 2011], 2), Draft::default(), "long dropped");
    }

    #[test]
    fn a_context_beyond_the_limit_keeps_its_end() {
        let mut drafter = drafter(3);
        let mut context: Vec<TokenId> = (0..1000).collect();
        context.extend([900, 901, 902]);
        assert_eq!(propose(&mut drafter, &context, 2).tokens, [903, 904]);
        context.extend([10, 11, 12]);
        assert_eq!(propose(&mut drafter, &context, 2), Draft::default(), "10, 11, 12 are too long ago");
        for token in 0..2000 {
            context.push(token % 100);
            propose(&mut drafter, &context, 2);
            assert!(drafter.tokens_kept() <= 256);
        }
        assert_eq!(propose(&mut drafter, &context, 2).tokens, [0, 1]);
    }

    #[test]
    fn bounds_are_checked_by_name() {
        let config = |min_match, tokens_max| SuffixConfig { min_match, tokens_max };
        assert!(config(5, 65_536).validate().is_ok());
        for (bad, name) in [
            (config(0, 65_536), "suffix_min_match"),
            (config(65, 65_536), "suffix_min_match"),
            (config(5, 255), "suffix_tokens_max"),
            (config(5, 5 << 20), "suffix_tokens_max"),
        ] {
            let error = bad.validate().expect_err(name).to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }
}
