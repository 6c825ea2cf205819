//! DESIGN I2 and I3: the text is a function of the target, the prompt and the seed, whatever drafts.
#![expect(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]

mod common;

use common::{Adversary, HashModel, generate, mix, sampler};
use drafthorse_draft::{
    ChainDrafter, Drafter, ModelDrafter, NgramConfig, NgramDrafter, Sampler, SamplerConfig, SharedVocabulary,
    SuffixConfig, SuffixDrafter, TokenId,
};
use proptest::prelude::*;

const VOCAB: usize = 11; // small, so that n-grams repeat
const COUNT: usize = 40;

fn drafters(target_seed: u64, other_seed: u64) -> Vec<(&'static str, Box<dyn Drafter>)> {
    let same = ModelDrafter::spawn(Box::new(HashModel::new(VOCAB, target_seed))).unwrap();
    let other = ModelDrafter::spawn(Box::new(HashModel::new(VOCAB, other_seed))).unwrap();
    let flat = HashModel { scale: 4.0, ..HashModel::new(VOCAB, target_seed) };
    let near = ModelDrafter::spawn(Box::new(flat)).unwrap();
    let ngram = || NgramDrafter::new(NgramConfig { min_match: 1, max_match: 4 });
    let suffix = || SuffixDrafter::new(SuffixConfig { min_match: 2, tokens_max: 256 });
    let chain = |first: Box<dyn Drafter>| {
        let model = ModelDrafter::spawn(Box::new(HashModel::new(VOCAB, target_seed))).unwrap();
        Box::new(ChainDrafter::new(vec![first, Box::new(model)]))
    };
    let foreign = SharedVocabulary { target: VOCAB, shared: VOCAB, except: vec![2, 7] };
    let wider = HashModel::new(VOCAB + 3, target_seed);
    let wider = ModelDrafter::spawn_sharing(Box::new(wider), Some(foreign)).unwrap();
    vec![
        ("the target's own law", Box::new(same)),
        ("another law", Box::new(other)),
        ("a flatter law", Box::new(near)),
        ("ngram", Box::new(ngram())),
        ("suffix", Box::new(suffix())),
        ("ngram, model", chain(Box::new(ngram()))),
        ("suffix, model", chain(Box::new(suffix()))),
        ("another vocabulary", Box::new(wider)),
        ("adversary", Box::new(Adversary { vocab: VOCAB, state: other_seed })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_drafter_and_every_draft_length_give_the_same_tokens(
        target_seed in any::<u64>(),
        other_seed in any::<u64>(),
        noise_seed in any::<u64>(),
        prompt in prop::collection::vec(0..VOCAB as TokenId, 1..12),
    ) {
        let plain = [0.0, 0.8].map(|temperature| SamplerConfig::plain(temperature, noise_seed));
        let penalised = plain.map(|config| SamplerConfig {
            repeat_penalty: 1.3,
            presence_penalty: 0.4,
            frequency_penalty: 0.3,
            repeat_last_n: 1 + noise_seed as usize % 9,
            ..config
        });
        for config in plain.into_iter().chain(penalised) {
            let sampler = Sampler::new(config);
            let run = |drafter: &mut dyn Drafter, draft_len: &dyn Fn(usize) -> usize| {
                generate(&mut HashModel::new(VOCAB, target_seed), drafter, &sampler, &prompt, (COUNT, draft_len))
            };
            let (plain, _) = run(&mut Adversary { vocab: VOCAB, state: 0 }, &|_| 0);
            for (name, mut drafter) in drafters(target_seed, other_seed) {
                let varying = |pass: usize| mix(noise_seed ^ pass as u64) as usize % 7;
                let plans: [&dyn Fn(usize) -> usize; 6] = [&|_| 0, &|_| 1, &|_| 2, &|_| 5, &|_| 16, &varying];
                for (i, plan) in plans.into_iter().enumerate() {
                    let (tokens, _) = run(drafter.as_mut(), plan);
                    prop_assert_eq!(&tokens, &plain, "{}, plan {}, {:?}", name, i, config);
                }
            }
        }
    }
}

#[test]
fn a_draft_with_the_targets_law_is_accepted_whole_even_when_sampling() {
    for temperature in [0.0, 0.8, 1.5] {
        let mut drafter = ModelDrafter::spawn(Box::new(HashModel::new(VOCAB, 7))).unwrap();
        let sampler = sampler(temperature, 5);
        let (_, stood) =
            generate(&mut HashModel::new(VOCAB, 7), &mut drafter, &sampler, &[1, 2], (50, &|_| 4));
        assert_eq!(stood, 40, "ten passes of four drafted tokens and one of the target's");
    }
}

#[test]
fn the_seed_changes_the_text_only_when_sampling() {
    let text = |temperature, seed| {
        let mut none = Adversary { vocab: VOCAB, state: 0 };
        let sampler = sampler(temperature, seed);
        generate(&mut HashModel::new(VOCAB, 7), &mut none, &sampler, &[1, 2], (30, &|_| 0)).0
    };
    assert_eq!(text(0.0, 1), text(0.0, 2));
    assert_ne!(text(0.8, 1), text(0.8, 2));
    assert_eq!(text(0.8, 1), text(0.8, 1));
}
