//! The suffix drafter against looking everything up by hand: longest match, counts, confidence.
#![expect(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]

mod common;

use common::{mix, sampler};
use drafthorse_draft::{Drafter, Request, SuffixConfig, SuffixDrafter, TokenId};
use proptest::prelude::*;
use std::collections::HashMap;

/// Longer matches are not told apart.
const MATCH_MAX: usize = 64;

/// What follows `end` anywhere: how often, and when last.
fn continuations(texts: &[Vec<TokenId>], end: &[TokenId]) -> HashMap<TokenId, (usize, usize)> {
    let mut found: HashMap<TokenId, (usize, usize)> = HashMap::new();
    let mut time = 0;
    for text in texts {
        for window in text.windows(end.len() + 1) {
            time += 1;
            let (before, token) = (&window[..end.len()], window[end.len()]);
            if before == end {
                let entry = found.entry(token).or_default();
                *entry = (entry.0 + 1, time);
            }
        }
    }
    found
}

/// The longest suffix of `end` that is followed by something.
fn followed<'a>(texts: &[Vec<TokenId>], end: &'a [TokenId], min_match: usize) -> Option<&'a [TokenId]> {
    let end = &end[end.len().saturating_sub(MATCH_MAX)..];
    let suffixes = (0..end.len()).map(|from| &end[from..]).filter(|suffix| suffix.len() >= min_match);
    suffixes.into_iter().find(|suffix| !continuations(texts, suffix).is_empty())
}

fn by_hand(texts: &[Vec<TokenId>], min_match: usize, max_tokens: usize) -> (Vec<TokenId>, Vec<f32>) {
    let (mut tokens, mut confidence) = (Vec::new(), Vec::new());
    let mut end = texts.last().unwrap().clone();
    while tokens.len() < max_tokens {
        let Some(found) = followed(texts, &end, min_match) else { break };
        let next = continuations(texts, found);
        let (token, (count, _)) = next.iter().max_by_key(|(_, rank)| **rank).unwrap();
        let total: usize = next.values().map(|(count, _)| count).sum();
        tokens.push(*token);
        confidence.push(*count as f32 / (total as f32 + 2.0 / found.len() as f32));
        end = [found, &[*token]].concat();
    }
    (tokens, confidence)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn drafts_are_those_of_looking_everything_up(
        seed in any::<u64>(),
        alphabet in 2..6u64,
        min_match in 1..5usize,
        lens in prop::collection::vec(9..90u64, 1..4),
    ) {
        let mut drafter = SuffixDrafter::new(SuffixConfig { min_match, tokens_max: 512 });
        let sampler = sampler(0.0, 0);
        let mut texts: Vec<Vec<TokenId>> = Vec::new();
        for (index, len) in lens.iter().enumerate() {
            // A beginning of its own, so that no text goes on with an earlier one.
            texts.push(vec![1000 + index as TokenId]);
            let mut drawn = 0;
            while (texts[index].len() as u64) < *len {
                // Runs of another seed's text, so that there are long matches.
                drawn += 1;
                let from = mix(seed ^ drawn) % 40;
                let run = (from..from + mix(drawn ^ seed) % 12).map(|i| (mix(i ^ seed) % alphabet) as TokenId);
                texts[index].extend(run);
                let max_tokens = 1 + mix(seed ^ drawn << 8) as usize % 8;
                let request = Request::new(&texts[index], max_tokens, &sampler);
                let draft = drafter.propose(request).unwrap();
                prop_assert_eq!((draft.tokens, draft.confidence), by_hand(&texts, min_match, max_tokens));
            }
        }
    }
}

#[test]
fn a_periodic_text_matches_by_no_more_than_the_longest_that_is_told_apart() {
    let text: Vec<TokenId> = (0..300).map(|i| i % 3).collect();
    let mut drafter = SuffixDrafter::new(SuffixConfig { min_match: 5, tokens_max: 512 });
    let sampler = sampler(0.0, 0);
    let draft = drafter.propose(Request::new(&text, 9, &sampler)).unwrap();
    assert_eq!((draft.tokens, draft.confidence), by_hand(&[text], 5, 9));
}
