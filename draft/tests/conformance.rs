//! What every drafter of the registry must do, run over every one of them.
#![expect(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]

mod common;

use common::{HashModel, mix, sampler};
use drafthorse_draft::{
    DRAFT_LAW_TOKENS_MAX, DRAFTERS, Draft, Drafter, DrafterParts, NgramConfig, Request, Sampler,
    SamplerConfig, StopRule, TokenId, VerifyRule,
};

const VOCAB: usize = 5;
const CONTEXT_LEN: usize = 64;

/// Every drafter of the registry, as the engine builds it.
fn drafters() -> impl Iterator<Item = Box<dyn Drafter>> {
    DRAFTERS.iter().map(|entry| {
        let ngram = NgramConfig { min_match: 1, max_match: 8 };
        let model = || Box::new(HashModel { context_len: CONTEXT_LEN, ..HashModel::new(VOCAB, 1) });
        let with = entry.kind.build(DrafterParts { model: Some(model()), ngram });
        let drafter = with.or_else(|_| entry.kind.build(DrafterParts { model: None, ngram })).unwrap();
        assert_eq!(drafter.name(), entry.name);
        assert!(!entry.doc.is_empty() && !entry.doc.contains('\n'));
        drafter
    })
}

fn propose(drafter: &mut dyn Drafter, context: &[TokenId], max_tokens: usize) -> Draft {
    let draft = propose_with(&sampler(0.8, 9), drafter, context, max_tokens);
    assert!(draft.laws.is_empty(), "{}: nothing is drawn in coupled verification", drafter.name());
    draft
}

fn propose_with(
    sampler: &Sampler,
    drafter: &mut dyn Drafter,
    context: &[TokenId],
    max_tokens: usize,
) -> Draft {
    let draft = drafter.propose(Request { context, max_tokens, sampler, stop: StopRule::NEVER }).unwrap();
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

#[test]
fn in_block_verification_a_guess_is_drawn_from_its_law_or_a_function_of_the_context() {
    let contexts: Vec<Vec<TokenId>> =
        (0..20).map(|i| (0..12).map(|at| (mix(i / 2 * 99 + at) % 3) as TokenId).collect()).collect();
    for mut drafter in drafters() {
        let name = drafter.name();
        let mut run = |seed, temperature| {
            let config =
                SamplerConfig { verify: VerifyRule::Block, ..SamplerConfig::plain(temperature, seed) };
            let sampler = Sampler::new(config);
            let mut one = |context: &Vec<TokenId>| propose_with(&sampler, drafter.as_mut(), context, 5);
            contexts.iter().map(&mut one).collect::<Vec<Draft>>()
        };
        let (drafts, others) = (run(1, 0.8), run(2, 0.8));
        assert_eq!(drafts, run(1, 0.8), "{name}: reproducible");
        for (draft, other) in drafts.iter().zip(&others) {
            if draft.laws.is_empty() {
                assert_eq!(draft, other, "{name}: what depends on the seed bears its laws");
            } else {
                assert_eq!(draft.laws.len(), draft.tokens.len(), "{name}: one law for each token");
            }
            for (law, token) in draft.laws.iter().zip(&draft.tokens) {
                assert!(law.probability(*token) > 0.0 && law.len() <= DRAFT_LAW_TOKENS_MAX, "{name}");
            }
        }
        assert!(run(1, 0.0).iter().all(|draft| draft.laws.is_empty()), "{name}: greedy draws nothing");
    }
}

#[test]
fn a_drawn_guess_is_as_sure_as_its_law_whatever_was_drawn() {
    // What `Draft::cut` relies on: the first confidence is the same for every seed.
    for mut drafter in drafters() {
        let mut first = |seed| {
            let config = SamplerConfig { verify: VerifyRule::Block, ..SamplerConfig::plain(0.8, seed) };
            let draft = propose_with(&Sampler::new(config), drafter.as_mut(), &[1, 2, 1, 2], 2);
            draft.confidence[0]
        };
        let expected = first(0);
        assert!((1..50).all(|seed| first(seed) == expected), "{}", drafter.name());
    }
}
