//! The sampled law (DESIGN I3): over positions, and over seeds, `choose` follows `probabilities`, and
//! whole texts follow the product of the target's laws, whatever drafts and however it is verified.
#![expect(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]

mod common;

use common::{Adversary, HashModel, Plan, generate_cut, mix, unit};
use drafthorse_draft::{
    Draft, DraftError, Drafter, History, Law, ModelDrafter, NgramConfig, NgramDrafter, Request, Sampler,
    SamplerConfig, TokenId, VerifyRule,
};

const DRAWS: usize = 120_000;

fn configs() -> impl Iterator<Item = SamplerConfig> {
    let settings = [
        (1.0, 0, 1.0, 0.0),
        (0.7, 0, 1.0, 0.0),
        (1.6, 0, 1.0, 0.0),
        (1.0, 5, 1.0, 0.0),
        (0.8, 0, 0.9, 0.0),
        (1.2, 0, 1.0, 0.08),
        (0.8, 12, 0.95, 0.05),
        (1.5, 7, 0.8, 0.1),
    ];
    let penalties = [(1.0, 0.0, 0.0), (1.3, 0.0, 0.0), (1.0, 0.8, 0.0), (1.1, -0.3, 0.2)];
    settings.into_iter().zip(penalties.into_iter().cycle()).map(|(filters, penalties)| SamplerConfig {
        top_k: filters.1,
        top_p: filters.2,
        min_p: filters.3,
        repeat_penalty: penalties.0,
        presence_penalty: penalties.1,
        frequency_penalty: penalties.2,
        ..SamplerConfig::plain(filters.0, 42)
    })
}

/// A long text that says some things often.
fn text(len: usize) -> Vec<TokenId> {
    (0..len as u64).map(|i| (mix(i) % 12) as TokenId).collect()
}

/// 24 logits between -2 and 3.
fn logits() -> Vec<f32> {
    (0..24).map(|i| (unit(mix(i)) * 5.0 - 2.0) as f32).collect()
}

/// Chi-square of `counts` against `law`, as a number of standard deviations above what a true law
/// gives (Wilson and Hilferty's cube root makes it close to normal). Rare cells are counted as one.
fn surprise(counts: &[usize], law: &[f64]) -> f64 {
    let draws: usize = counts.iter().sum();
    let (mut chi2, mut cells, mut rare) = (0.0, 0, (0, 0.0));
    for (&count, &p) in counts.iter().zip(law) {
        let expected = p * draws as f64;
        if p == 0.0 {
            assert_eq!(count, 0, "a filtered token was drawn");
        } else if expected < 10.0 {
            rare = (rare.0 + count, rare.1 + expected);
        } else {
            chi2 += (count as f64 - expected).powi(2) / expected;
            cells += 1;
        }
    }
    if rare.1 > 0.0 {
        chi2 += (rare.0 as f64 - rare.1).powi(2) / rare.1;
        cells += 1;
    }
    let freedom = f64::from(cells - 1);
    let spread = 2.0 / (9.0 * freedom);
    ((chi2 / freedom).cbrt() - (1.0 - spread)) / spread.sqrt()
}

fn law(sampler: &Sampler, logits: &[f32], history: History<'_>) -> Vec<f64> {
    sampler.probabilities(logits, history).into_iter().map(f64::from).collect()
}

#[test]
fn over_positions_the_choice_follows_the_law() {
    for config in configs() {
        let config = SamplerConfig { repeat_last_n: 0, ..config }; // one law at all positions
        let (sampler, logits, text) = (Sampler::new(config), logits(), text(DRAWS));
        let mut counts = vec![0; logits.len()];
        for history in (0..DRAWS).map(|len| History::of(&text[..len])) {
            counts[sampler.choose(&logits, history).token as usize] += 1;
        }
        let surprise = surprise(&counts, &law(&sampler, &logits, History::of(&[])));
        assert!(surprise < 4.0, "{config:?}: {surprise:.1} sigma");
    }
}

#[test]
fn over_seeds_the_choice_follows_the_law() {
    for config in configs() {
        let (logits, text) = (logits(), text(17));
        let mut counts = vec![0; logits.len()];
        for seed in 0..DRAWS as u64 {
            let sampler = Sampler::new(SamplerConfig { seed, ..config });
            counts[sampler.choose(&logits, History::of(&text)).token as usize] += 1;
        }
        let surprise = surprise(&counts, &law(&Sampler::new(config), &logits, History::of(&text)));
        assert!(surprise < 4.0, "{config:?}: {surprise:.1} sigma");
    }
}

#[test]
fn neighbouring_positions_and_seeds_are_independent() {
    let (logits, mut counts, text) = (vec![0.0; 4], vec![0; 64], text(101));
    for seed in 0..1_200 {
        let sampler = common::sampler(1.0, seed);
        for position in 0..100 {
            let next_seed = common::sampler(1.0, seed + 1);
            let (here, there) = (History::of(&text[..position]), History::of(&text[..=position]));
            let triple = [sampler.choose(&logits, here), sampler.choose(&logits, there)];
            let third = next_seed.choose(&logits, here);
            counts[(triple[0].token * 16 + triple[1].token * 4 + third.token) as usize] += 1;
        }
    }
    let surprise = surprise(&counts, &[1.0 / 64.0; 64]);
    assert!(surprise < 4.0, "{surprise:.1} sigma");
}

#[test]
fn a_wrong_law_is_noticed() {
    let (sampler, logits, text) = (common::sampler(1.0, 1), logits(), text(DRAWS));
    let mut counts = vec![0; logits.len()];
    for len in 0..DRAWS {
        counts[sampler.choose(&logits, History::of(&text[..len])).token as usize] += 1;
    }
    let wrong = law(&common::sampler(1.05, 1), &logits, History::of(&[]));
    assert!(surprise(&counts, &wrong) > 10.0, "the test has no power");
}

#[test]
fn models_that_nearly_agree_choose_alike_far_more_often_than_by_chance() {
    // What the coupling is for: acceptance is high where the laws are close.
    let sampler = common::sampler(1.0, 3);
    let (target, text) = (logits(), text(10_000));
    let draft: Vec<f32> = target.iter().zip(0..).map(|(l, i)| l + 0.2 * unit(mix(99 + i)) as f32).collect();
    let alike = (0..10_000)
        .map(|len| History::of(&text[..len]))
        .filter(|&at| sampler.choose(&target, at).token == sampler.choose(&draft, at).token)
        .count();
    assert!(alike > 8_500, "{alike} of 10000");
    let laws = [target, draft].map(|logits| law(&sampler, &logits, History::of(&[])));
    let by_chance: f64 = laws[0].iter().zip(&laws[1]).map(|(p, q)| p * q).sum();
    assert!(by_chance < 0.2, "{by_chance}");
}

#[test]
fn probabilities_sum_to_one_under_every_filter() {
    for config in configs() {
        config.validate().unwrap();
        let total: f64 = law(&Sampler::new(config), &logits(), History::of(&text(30))).iter().sum();
        assert!((total - 1.0).abs() < 1e-5);
    }
}

const VOCAB: usize = 6;
const PROMPT: [TokenId; 5] = [3, 1, 3, 3, 5];
/// Tokens of a text whose joint law is tested; a few passes' worth.
const TEXT: usize = 4;
const TEXTS: usize = 100_000;

fn target() -> HashModel {
    HashModel { scale: 2.5, ..HashModel::new(VOCAB, 11) }
}

/// Guesses with a law near the target's, without a thread of its own.
struct Near {
    abstains: bool,
}

impl Near {
    fn logits(&self, text: &[TokenId]) -> Vec<f32> {
        let other = HashModel { scale: 3.0, ..HashModel::new(VOCAB, 12) };
        target().row_logits(text).zip(other.row_logits(text)).map(|(a, b)| a + b).collect()
    }
}

impl Drafter for Near {
    fn name(&self) -> &'static str {
        "near"
    }

    fn propose(&mut self, request: Request<'_>) -> Result<Draft, DraftError> {
        let (committed, mut draft) = (request.context, Draft::default());
        let abstains = self.abstains && committed.iter().sum::<TokenId>() % 3 == 0;
        while draft.tokens.len() < request.max_tokens && !abstains {
            let logits = self.logits(&[committed, &draft.tokens].concat());
            draft.push(request.sampler.guess(&logits, History { committed, drafted: &draft.tokens }));
        }
        Ok(draft)
    }
}

/// The joint law of the first [`TEXT`] tokens, every text as a number in base [`VOCAB`].
fn joint_law(config: SamplerConfig) -> Vec<f64> {
    let (sampler, model) = (Sampler::new(config), target());
    let mut joint = vec![1.0];
    for len in 0..TEXT {
        let longer = joint.iter().enumerate().flat_map(|(number, &p)| {
            let digit = |i: usize| (number / VOCAB.pow((len - 1 - i) as u32) % VOCAB) as TokenId;
            let text: Vec<TokenId> = PROMPT.into_iter().chain((0..len).map(digit)).collect();
            let logits: Vec<f32> = model.row_logits(&text).collect();
            law(&sampler, &logits, History::of(&text)).into_iter().map(move |q| p * q)
        });
        joint = longer.collect();
    }
    joint
}

/// How surprising the texts of [`TEXTS`] seeds are, and how many drafted tokens stood in each.
fn joint_surprise(
    config: SamplerConfig,
    drafter: &mut dyn Drafter,
    draft_len: &dyn Fn(usize) -> usize,
    cut: &dyn Fn(&mut Draft),
) -> (f64, f64) {
    let (mut counts, mut stood, mut model) = (vec![0; VOCAB.pow(TEXT as u32)], 0, target());
    for seed in 0..TEXTS as u64 {
        let sampler = Sampler::new(SamplerConfig { seed, ..config });
        model.rows.lock().unwrap().clear();
        let plan = Plan { count: TEXT, draft_len, cut };
        let (tokens, accepted) = generate_cut(&mut model, drafter, &sampler, &PROMPT, plan);
        stood += accepted;
        counts[tokens.iter().fold(0, |number, token| number * VOCAB + *token as usize)] += 1;
    }
    (surprise(&counts, &joint_law(config)), stood as f64 / TEXTS as f64)
}

fn whole(_: &mut Draft) {}

/// As the engine cuts, by a rule of the scheduler's kind: while the chance to stand is worth it.
fn cut_by_survival(draft: &mut Draft) {
    draft.cut(|draft| {
        let mut stands = 1.0;
        let worth = |confidence: &&f32| {
            stands *= **confidence;
            stands > 0.12
        };
        draft.confidence.iter().take_while(worth).count()
    });
}

fn rules() -> [SamplerConfig; 2] {
    [VerifyRule::Coupled, VerifyRule::Block]
        .map(|verify| SamplerConfig { verify, ..SamplerConfig::plain(0.9, 0) })
}

#[test]
fn texts_follow_the_targets_law_under_both_rules_with_penalties_and_filters() {
    let filters = |config| SamplerConfig { top_k: 5, top_p: 0.95, min_p: 0.06, ..config };
    let penalties = |config| SamplerConfig {
        repeat_penalty: 1.4,
        presence_penalty: 0.3,
        frequency_penalty: 0.2,
        repeat_last_n: 4,
        ..config
    };
    for rule in rules() {
        for config in [rule, filters(rule), penalties(rule), penalties(filters(rule))] {
            let (surprise, stood) = joint_surprise(config, &mut Near { abstains: false }, &|_| 3, &whole);
            println!("{config:?}: {surprise:.1} sigma, {stood:.2} stood");
            assert!(surprise < 4.0 && stood > 0.5, "{config:?}: {surprise:.1} sigma, {stood:.2} stood");
        }
    }
}

#[test]
fn texts_follow_the_targets_law_when_the_drafter_abstains_and_drafts_are_cut() {
    for config in rules() {
        let varying = |pass: usize| 3 - pass % 3;
        let (surprise, stood) =
            joint_surprise(config, &mut Near { abstains: true }, &varying, &cut_by_survival);
        assert!(surprise < 4.0 && stood > 0.2, "{config:?}: {surprise:.1} sigma, {stood:.2} stood");
    }
}

#[test]
fn texts_follow_the_targets_law_with_drafters_that_do_not_draw() {
    let lookup = || NgramDrafter::new(NgramConfig { min_match: 1, max_match: 4 });
    for config in rules() {
        let mut adversary = Adversary { vocab: VOCAB, state: 1 };
        let drafters: [&mut dyn Drafter; 2] = [&mut lookup(), &mut adversary];
        for drafter in drafters {
            let name = drafter.name();
            let (surprise, stood) = joint_surprise(config, drafter, &|_| 3, &cut_by_survival);
            assert!(
                surprise < 4.0 && stood > 0.05,
                "{name}, {config:?}: {surprise:.1} sigma, {stood:.2} stood"
            );
        }
    }
}

#[test]
fn more_of_a_draft_stands_in_block_verification() {
    let [coupled, block] =
        rules().map(|config| joint_surprise(config, &mut Near { abstains: false }, &|_| 3, &whole).1);
    assert!(block > coupled, "{block:.3} of {TEXT}, coupled {coupled:.3}");
}

#[test]
fn a_draft_cut_by_what_was_drawn_is_noticed() {
    // What `Draft::cut` is for: dropping a guess because it was unlikely bends the law.
    let by_own_probability = |draft: &mut Draft| {
        let likely = |i: &usize| draft.law(*i).probability(draft.tokens[*i]) > 0.2;
        draft.truncate((0..draft.tokens.len()).take_while(likely).count());
    };
    let (surprise, _) =
        joint_surprise(rules()[1], &mut Near { abstains: false }, &|_| 3, &by_own_probability);
    assert!(surprise > 10.0, "the test has no power: {surprise:.1} sigma");
}

#[test]
fn a_drafter_that_records_another_law_than_it_draws_from_is_noticed() {
    struct Liar;
    impl Drafter for Liar {
        fn name(&self) -> &'static str {
            "liar"
        }
        fn propose(&mut self, request: Request<'_>) -> Result<Draft, DraftError> {
            let mut told = Near { abstains: false }.propose(request)?;
            told.laws.fill(Law::new((0..VOCAB as TokenId).map(|token| (token, 1.0))));
            Ok(told)
        }
    }
    let (surprise, _) = joint_surprise(rules()[1], &mut Liar, &|_| 3, &whole);
    assert!(surprise > 10.0, "the test has no power: {surprise:.1} sigma");
}

#[test]
fn a_seed_fixes_the_text_of_block_verification_for_one_setting() {
    let run = |seed, draft_len: usize| {
        let mut drafter = ModelDrafter::spawn(Box::new(HashModel::new(VOCAB, 12))).unwrap();
        let plan = Plan { count: 40, draft_len: &|_| draft_len, cut: &whole };
        let sampler = Sampler::new(SamplerConfig { seed, ..rules()[1] });
        generate_cut(&mut target(), &mut drafter, &sampler, &PROMPT, plan).0
    };
    assert_eq!(run(1, 3), run(1, 3));
    assert_ne!(run(1, 3), run(2, 3));
    assert_ne!(run(1, 3), run(1, 2), "the draft is part of what fixes it");
}
