//! What every drafter of the registry must do, run over every one of them.
#![expect(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]

mod common;

use common::{FEATURE_WIDTH, HashHead, HashHeads, HashModel, features_of, mix, sampler};
use drafthorse_draft::{
    ChainDrafter, DRAFT_LAW_TOKENS_MAX, DRAFTERS, Draft, Drafter, DrafterKind, DrafterParts, Features,
    HeadPart, NgramConfig, Request, Sampler, SamplerConfig, Script, ScriptConfidence, ScriptConfig,
    SharedVocabulary, SuffixConfig, TokenId, VerifyRule,
};

const VOCAB: usize = 5;
const CONTEXT_LEN: usize = 64;

/// A drafter of a kind, as the engine builds it.
fn build(kind: DrafterKind) -> Box<dyn Drafter> {
    let ngram = NgramConfig { min_match: 1, max_match: 8 };
    let suffix = SuffixConfig { min_match: 1, tokens_max: 256 };
    let config = ScriptConfig { accept: 0.6, us_per_token: 0, seed: 1, confidence: ScriptConfidence::Split };
    let script = Some(Script { tokens: familiar(4 * CONTEXT_LEN), config });
    let none = || DrafterParts { script: script.clone(), ..DrafterParts::new(ngram, suffix) };
    let model = Box::new(HashModel { context_len: CONTEXT_LEN, ..HashModel::new(VOCAB, 1) });
    let head = Box::new(HashHead { context_len: CONTEXT_LEN, ..HashHead::new(VOCAB) });
    let heads = Box::new(HashHeads { vocab: VOCAB, count: 4 });
    let parts = [
        DrafterParts { model: Some(model), ..none() },
        DrafterParts { head: Some(HeadPart::Chained(head)), ..none() },
        DrafterParts { head: Some(HeadPart::Parallel(heads)), ..none() },
        none(),
    ];
    parts.into_iter().find_map(|parts| kind.build(parts).ok()).unwrap()
}

/// A model with a token more than the target and another one in its place, as the engine builds it.
fn other_vocabulary() -> Box<dyn Drafter> {
    let (ngram, suffix) =
        (NgramConfig { min_match: 1, max_match: 8 }, SuffixConfig { min_match: 1, tokens_max: 256 });
    let model = HashModel { context_len: CONTEXT_LEN, ..HashModel::new(VOCAB + 1, 1) };
    let vocabulary = Some(SharedVocabulary { target: VOCAB, shared: VOCAB, except: vec![3] });
    let parts = DrafterParts { model: Some(Box::new(model)), vocabulary, ..DrafterParts::new(ngram, suffix) };
    DrafterKind::Model.build(parts).unwrap()
}

/// Every drafter of the registry, chains of them, and a model with another vocabulary.
fn drafters() -> impl Iterator<Item = (String, Box<dyn Drafter>)> {
    let single = DRAFTERS.iter().map(|entry| {
        let drafter = build(entry.kind);
        assert_eq!(drafter.name(), entry.name);
        assert!(!entry.doc.is_empty() && !entry.doc.contains('\n'));
        (entry.name.to_owned(), drafter)
    });
    let chains = [DrafterKind::Ngram, DrafterKind::Suffix, DrafterKind::Script].map(|first| {
        let name = format!("{}, model", first.entry().name);
        (name, Box::new(ChainDrafter::new(vec![build(first), build(DrafterKind::Model)])) as Box<dyn Drafter>)
    });
    single.chain(chains).chain([("other vocabulary".to_owned(), other_vocabulary())])
}

/// A text on which no drafter abstains.
fn familiar(len: usize) -> Vec<TokenId> {
    [1, 2].into_iter().cycle().take(len).collect()
}

fn propose(drafter: &mut (String, Box<dyn Drafter>), context: &[TokenId], max_tokens: usize) -> Draft {
    let draft = propose_with(&sampler(0.8, 9), drafter, context, max_tokens);
    assert!(draft.laws.is_empty(), "{}: nothing is drawn in coupled verification", drafter.0);
    draft
}

fn propose_with(
    sampler: &Sampler,
    (name, drafter): &mut (String, Box<dyn Drafter>),
    context: &[TokenId],
    max_tokens: usize,
) -> Draft {
    let values = features_of(context);
    let features = Some(Features { start: 0, width: FEATURE_WIDTH, values: &values });
    let draft = drafter.propose(Request { features, ..Request::new(context, max_tokens, sampler) }).unwrap();
    assert!(draft.tokens.len() <= max_tokens, "{name} drafted too much");
    assert_eq!(draft.tokens.len(), draft.confidence.len(), "{name}: one confidence for each token");
    assert!(draft.tokens.iter().all(|t| (*t as usize) < VOCAB), "{name} left the vocabulary");
    assert!(draft.confidence.iter().all(|c| (0.0..=1.0).contains(c)), "{name}: {:?}", draft.confidence);
    assert_eq!(drafter.notices(), [""; 0], "{name}");
    draft
}

#[test]
fn asked_for_nothing_or_given_nothing_it_abstains() {
    for mut drafter in drafters() {
        assert_eq!(propose(&mut drafter, &[], 4), Draft::default());
        assert_eq!(propose(&mut drafter, &[], 0), Draft::default());
        assert_eq!(propose(&mut drafter, &familiar(4), 0), Draft::default());
        assert!(!propose(&mut drafter, &familiar(4), 3).tokens.is_empty(), "{}", drafter.0);
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
            let mut new = drafters().find(|(name, _)| *name == used.0).unwrap();
            // A corpus of earlier texts apart, which only some keep, a rolled-back context is like any other.
            used.1.forget();
            let drafted = propose(&mut used, &context, max_tokens);
            assert_eq!(drafted, propose(&mut new, &context, max_tokens), "{}, step {step}", used.0);
            propose(&mut used, &context[..context.len() / 2], max_tokens);
        }
    }
}

#[test]
fn a_context_longer_than_the_drafters_own_is_no_error() {
    for mut drafter in drafters() {
        let context = familiar(3 * CONTEXT_LEN);
        for len in [CONTEXT_LEN - 2, CONTEXT_LEN, CONTEXT_LEN + 1, 3 * CONTEXT_LEN, 5] {
            propose(&mut drafter, &context[..len], 8);
        }
        assert!(!propose(&mut drafter, &context[..10], 8).tokens.is_empty(), "usable afterwards");
    }
}

#[test]
fn in_block_verification_a_guess_is_drawn_from_its_law_or_a_function_of_the_context() {
    let contexts: Vec<Vec<TokenId>> =
        (0..20).map(|i| (0..12).map(|at| (mix(i / 2 * 99 + at) % 3) as TokenId).collect()).collect();
    for mut drafter in drafters() {
        let name = drafter.0.clone();
        let mut run = |seed, temperature| {
            drafter.1.forget();
            let config =
                SamplerConfig { verify: VerifyRule::Block, ..SamplerConfig::plain(temperature, seed) };
            let sampler = Sampler::new(config);
            let mut one = |context: &Vec<TokenId>| propose_with(&sampler, &mut drafter, context, 5);
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
            drafter.1.forget();
            let config = SamplerConfig { verify: VerifyRule::Block, ..SamplerConfig::plain(0.8, seed) };
            let draft = propose_with(&Sampler::new(config), &mut drafter, &[1, 2, 1, 2], 2);
            draft.confidence.first().copied()
        };
        let expected = first(0);
        assert!((1..50).all(|seed| first(seed) == expected), "{}", drafter.0);
    }
}

#[test]
fn the_same_requests_give_the_same_drafts_whatever_is_remembered() {
    let run = || -> Vec<Vec<Draft>> {
        let follow = |mut drafter: (String, Box<dyn Drafter>)| {
            (0..200u64)
                .map(|step| {
                    let len = 1 + mix(step) as usize % 50;
                    let word = |i| (mix((i / 4) ^ (step % 5)) % VOCAB as u64) as TokenId;
                    let context: Vec<TokenId> = (0..len as u64).map(word).collect();
                    propose(&mut drafter, &context, 5)
                })
                .collect()
        };
        drafters().map(follow).collect()
    };
    let drafts = run();
    assert_eq!(drafts, run());
    let asked = drafts.iter().map(|drafts| drafts.iter().filter(|draft| !draft.tokens.is_empty()).count());
    assert!(asked.filter(|count| *count > 100).count() >= 5, "most drafters had something to say");
}
