//! Heads as drafters: which hidden states they take, when, and what happens when some are missing.
#![expect(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]

mod common;

use common::{FEATURE_WIDTH, HashHead, HashHeads, features_of, generate, mix, sampler};
use drafthorse_draft::{
    DraftError, Drafter, FeatureNeed, Features, HeadDrafter, MedusaDrafter, Request, TokenId,
};

const VOCAB: usize = 7;

fn head() -> HeadDrafter {
    HeadDrafter::new("mtp", Box::new(HashHead::new(VOCAB)))
}

fn ask(
    drafter: &mut dyn Drafter,
    context: &[TokenId],
    start: usize,
    max_tokens: usize,
) -> Result<Vec<TokenId>, DraftError> {
    let values = features_of(context);
    let values = &values[start * FEATURE_WIDTH..];
    let features = Some(Features { start, width: FEATURE_WIDTH, values });
    let sampler = sampler(0.9, 4);
    let request = Request { features, ..Request::new(context, max_tokens, &sampler) };
    drafter.propose(request).map(|draft| draft.tokens)
}

#[test]
fn a_head_asks_for_no_more_than_it_will_need_and_drafts_as_if_it_saw_everything() {
    let mut used = head();
    let mut context: Vec<TokenId> = vec![3, 1];
    for step in 0..200u64 {
        let FeatureNeed::Since(start) = used.features() else { unreachable!("a head wants features") };
        assert!(start + 2 >= context.len().min(2), "rows that were taken in are not asked for again");
        let max_tokens = mix(step) as usize % 5;
        let drafted = ask(&mut used, &context, start, max_tokens).unwrap();
        assert_eq!(drafted, ask(&mut head(), &context, 0, max_tokens).unwrap(), "step {step}");
        assert_eq!(used.features(), FeatureNeed::Since(context.len() - 2));
        // Asked again about the same text, it answers the same from what it still may ask for.
        assert_eq!(drafted, ask(&mut used, &context, context.len() - 2, max_tokens).unwrap());
        context.extend((0..1 + mix(step + 9) % 3).map(|i| (mix(i ^ step) % VOCAB as u64) as TokenId));
    }
}

#[test]
fn a_gap_in_the_hidden_states_is_named_and_does_not_corrupt_the_head() {
    let context: Vec<TokenId> = (0..12).map(|i| i % 5).collect();
    let mut drafter = head();
    ask(&mut drafter, &context[..4], 0, 2).unwrap();
    let error = ask(&mut drafter, &context, 6, 2).unwrap_err();
    assert_eq!(error.to_string(), "the mtp head lacks the target's hidden state of position 3");
    let sampler = sampler(0.0, 0);
    let nothing = Request::new(&context, 1, &sampler);
    assert!(matches!(drafter.propose(nothing), Err(DraftError::FeaturesMissing { .. })));
    assert_eq!(ask(&mut drafter, &context, 2, 3).unwrap(), ask(&mut head(), &context, 0, 3).unwrap());
}

#[test]
fn a_failed_head_drafts_as_before_when_asked_again() {
    for fault in 0..3 {
        let mut drafter =
            HeadDrafter::new("eagle3", Box::new(HashHead { fault: Some(fault), ..HashHead::new(VOCAB) }));
        let context = [1, 2, 3, 4];
        assert!(matches!(ask(&mut drafter, &context, 0, 3), Err(DraftError::Model(_))), "{fault}");
        assert_eq!(ask(&mut drafter, &context, 0, 3).unwrap(), ask(&mut head(), &context, 0, 3).unwrap());
    }
}

#[test]
fn a_token_beyond_the_vocabulary_is_an_error() {
    let error = ask(&mut head(), &[1, 2, VOCAB as TokenId], 0, 1).unwrap_err();
    assert!(matches!(error, DraftError::TokenOutOfVocabulary { token: 7, vocab: VOCAB }));
}

#[test]
fn medusa_needs_the_latest_state_alone_and_drafts_no_more_than_it_has_heads() {
    let mut drafter = MedusaDrafter::new(Box::new(HashHeads { vocab: VOCAB, count: 3 }));
    assert_eq!(drafter.features(), FeatureNeed::Latest);
    let context = [1, 2, 3, 4, 5];
    let all = ask(&mut drafter, &context, 0, 9).unwrap();
    assert_eq!(all.len(), 3);
    assert_eq!(ask(&mut drafter, &context, 3, 2).unwrap(), all[..2]);
    assert!(matches!(
        ask(&mut drafter, &context, 4, 2),
        Err(DraftError::FeaturesMissing { drafter: "medusa", position: 3 })
    ));
    assert_eq!(ask(&mut drafter, &context[..1], 0, 2).unwrap(), [] as [TokenId; 0]);
}

#[test]
fn heads_never_change_the_text() {
    for temperature in [0.0, 0.8] {
        let sampler = sampler(temperature, 11);
        let target = || common::HashModel::new(VOCAB, 2);
        let plain = generate(&mut target(), &mut head(), &sampler, &[1, 2], (60, &|_| 0)).0;
        let chained = generate(&mut target(), &mut head(), &sampler, &[1, 2], (60, &|pass| pass % 4));
        let heads = HashHeads { vocab: VOCAB, count: 2 };
        let medusa = MedusaDrafter::new(Box::new(heads));
        let parallel = generate(&mut target(), &mut { medusa }, &sampler, &[1, 2], (60, &|_| 3));
        assert_eq!((&chained.0, &parallel.0), (&plain, &plain));
    }
}
