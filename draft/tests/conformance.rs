//! What every drafter of the registry must do, run over every one of them.
#![expect(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]

mod common;

use common::{FEATURE_WIDTH, HashHead, HashHeads, HashModel, features_of, mix, sampler};
use drafthorse_draft::TokenId;
use drafthorse_draft::{DRAFTERS, Draft, Drafter, DrafterParts, Features, HeadPart, NgramConfig, Request};

const VOCAB: usize = 5;
const CONTEXT_LEN: usize = 64;

/// Every drafter of the registry, as the engine builds it.
fn drafters() -> impl Iterator<Item = Box<dyn Drafter>> {
    DRAFTERS.iter().map(|entry| {
        let ngram = NgramConfig { min_match: 1, max_match: 8 };
        let none = || DrafterParts { model: None, head: None, ngram };
        let model = Box::new(HashModel { context_len: CONTEXT_LEN, ..HashModel::new(VOCAB, 1) });
        let head = Box::new(HashHead { context_len: CONTEXT_LEN, ..HashHead::new(VOCAB) });
        let heads = Box::new(HashHeads { vocab: VOCAB, count: 4 });
        let parts = [
            DrafterParts { model: Some(model), ..none() },
            DrafterParts { head: Some(HeadPart::Chained(head)), ..none() },
            DrafterParts { head: Some(HeadPart::Parallel(heads)), ..none() },
            none(),
        ];
        let drafter = parts.into_iter().find_map(|parts| entry.kind.build(parts).ok()).unwrap();
        assert_eq!(drafter.name(), entry.name);
        assert!(!entry.doc.is_empty() && !entry.doc.contains('\n'));
        drafter
    })
}

fn propose(drafter: &mut dyn Drafter, context: &[TokenId], max_tokens: usize) -> Draft {
    let sampler = sampler(0.8, 9);
    let values = features_of(context);
    let features = Some(Features { start: 0, width: FEATURE_WIDTH, values: &values });
    let draft = drafter.propose(Request { context, max_tokens, sampler: &sampler, features }).unwrap();
    let name = drafter.name();
    assert!(draft.tokens.len() <= max_tokens, "{name} drafted too much");
    assert_eq!(draft.tokens.len(), draft.confidence.len(), "{name}: one confidence for each token");
    assert!(draft.tokens.iter().all(|t| (*t as usize) < VOCAB), "{name} left the vocabulary");
    assert!(draft.confidence.iter().all(|c| (0.0..=1.0).contains(c)), "{name}: {:?}", draft.confidence);
    draft
}

#[test]
fn asked_for_nothing_or_given_nothing_it_abstains() {
    for mut drafter in drafters() {
        assert_eq!(propose(drafter.as_mut(), &[], 4), Draft::default());
        assert_eq!(propose(drafter.as_mut(), &[], 0), Draft::default());
        assert_eq!(propose(drafter.as_mut(), &[1, 2, 1, 2], 0), Draft::default());
        assert!(!propose(drafter.as_mut(), &[1, 2, 1, 2], 3).tokens.is_empty(), "{}", drafter.name());
    }
}

#[test]
fn contexts_that_grow_shrink_and_change_are_drafted_as_if_new() {
    for mut used in drafters() {
        let mut context: Vec<TokenId> = vec![1, 2];
        for step in 0..300u64 {
            match mix(step) % 4 {
                0 => context.truncate(mix(step + 1000) as usize % (context.len() + 1)),
                1 => {
                    context = (0..mix(step) % 40).map(|i| (mix(i ^ step) % VOCAB as u64) as TokenId).collect()
                }
                _ => context.extend((0..mix(step) % 4).map(|i| (mix(i + step) % VOCAB as u64) as TokenId)),
            }
            context.truncate(CONTEXT_LEN);
            let max_tokens = mix(step + 2000) as usize % 6;
            let name = used.name();
            let mut new = drafters().find(|drafter| drafter.name() == name).unwrap();
            let drafted = propose(used.as_mut(), &context, max_tokens);
            assert_eq!(drafted, propose(new.as_mut(), &context, max_tokens), "{name}, step {step}");
        }
    }
}

#[test]
fn a_context_longer_than_the_drafters_own_is_no_error() {
    for mut drafter in drafters() {
        let context: Vec<TokenId> = (0..3 * CONTEXT_LEN).map(|i| (i % VOCAB) as TokenId).collect();
        for len in [CONTEXT_LEN - 2, CONTEXT_LEN, CONTEXT_LEN + 1, 3 * CONTEXT_LEN, 5] {
            propose(drafter.as_mut(), &context[..len], 8);
        }
        assert!(!propose(drafter.as_mut(), &context[..10], 8).tokens.is_empty(), "usable afterwards");
    }
}
