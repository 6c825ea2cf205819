//! The sampled law (DESIGN I3): over positions, and over seeds, `choose` follows `probabilities`.
#![expect(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]

mod common;

use common::{mix, unit};
use drafthorse_draft::{Sampler, SamplerConfig};

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
    settings.into_iter().map(|(temperature, top_k, top_p, min_p)| SamplerConfig {
        temperature,
        top_k,
        top_p,
        min_p,
        seed: 42,
    })
}

/// 24 logits between -2 and 3.
fn logits() -> Vec<f32> {
    (0..24).map(|i| (unit(mix(i)) * 5.0 - 2.0) as f32).collect()
}

/// Chi-square of `counts` against `law`, as a number of standard deviations above what a true law
/// gives (Wilson and Hilferty's cube root makes it close to normal).
fn surprise(counts: &[usize], law: &[f32]) -> f64 {
    let draws: usize = counts.iter().sum();
    let (mut chi2, mut cells) = (0.0, 0);
    for (&count, &p) in counts.iter().zip(law) {
        if p == 0.0 {
            assert_eq!(count, 0, "a filtered token was drawn");
            continue;
        }
        let expected = f64::from(p) * draws as f64;
        assert!(expected > 5.0, "the test needs more draws");
        chi2 += (count as f64 - expected).powi(2) / expected;
        cells += 1;
    }
    let freedom = f64::from(cells - 1);
    let spread = 2.0 / (9.0 * freedom);
    ((chi2 / freedom).cbrt() - (1.0 - spread)) / spread.sqrt()
}

#[test]
fn over_positions_the_choice_follows_the_law() {
    for config in configs() {
        let (sampler, logits) = (Sampler::new(config), logits());
        let mut counts = vec![0; logits.len()];
        (0..DRAWS).for_each(|position| counts[sampler.choose(&logits, position).token as usize] += 1);
        let surprise = surprise(&counts, &sampler.probabilities(&logits));
        assert!(surprise < 4.0, "{config:?}: {surprise:.1} sigma");
    }
}

#[test]
fn over_seeds_the_choice_follows_the_law() {
    for config in configs() {
        let logits = logits();
        let mut counts = vec![0; logits.len()];
        for seed in 0..DRAWS as u64 {
            counts[Sampler::new(SamplerConfig { seed, ..config }).choose(&logits, 17).token as usize] += 1;
        }
        let surprise = surprise(&counts, &Sampler::new(config).probabilities(&logits));
        assert!(surprise < 4.0, "{config:?}: {surprise:.1} sigma");
    }
}

#[test]
fn neighbouring_positions_and_seeds_are_independent() {
    let (logits, mut counts) = (vec![0.0; 4], vec![0; 64]);
    for seed in 0..1_200 {
        let sampler = common::sampler(1.0, seed);
        for position in 0..100 {
            let next_seed = common::sampler(1.0, seed + 1);
            let triple = [sampler.choose(&logits, position), sampler.choose(&logits, position + 1)];
            let third = next_seed.choose(&logits, position);
            counts[(triple[0].token * 16 + triple[1].token * 4 + third.token) as usize] += 1;
        }
    }
    let surprise = surprise(&counts, &[1.0 / 64.0; 64]);
    assert!(surprise < 4.0, "{surprise:.1} sigma");
}

#[test]
fn a_wrong_law_is_noticed() {
    let (sampler, logits) = (common::sampler(1.0, 1), logits());
    let mut counts = vec![0; logits.len()];
    (0..DRAWS).for_each(|position| counts[sampler.choose(&logits, position).token as usize] += 1);
    let wrong = common::sampler(1.05, 1).probabilities(&logits);
    assert!(surprise(&counts, &wrong) > 10.0, "the test has no power");
}

#[test]
fn models_that_nearly_agree_choose_alike_far_more_often_than_by_chance() {
    // What the coupling is for: acceptance is high where the laws are close.
    let sampler = common::sampler(1.0, 3);
    let target = logits();
    let draft: Vec<f32> = target.iter().zip(0..).map(|(l, i)| l + 0.2 * unit(mix(99 + i)) as f32).collect();
    let alike = (0..10_000)
        .filter(|&at| sampler.choose(&target, at).token == sampler.choose(&draft, at).token)
        .count();
    assert!(alike > 8_500, "{alike} of 10000");
    let by_chance: f32 =
        sampler.probabilities(&target).iter().zip(sampler.probabilities(&draft)).map(|(p, q)| p * q).sum();
    assert!(by_chance < 0.2, "{by_chance}");
}

#[test]
fn probabilities_sum_to_one_under_every_filter() {
    for config in configs() {
        config.validate().unwrap();
        let total: f32 = Sampler::new(config).probabilities(&logits()).iter().sum();
        assert!((total - 1.0).abs() < 1e-5);
    }
}
