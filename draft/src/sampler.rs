//! Logits to a token: the one function that draft and target both choose with.
//!
//! Owns temperature, top-k, top-p and min-p, and the noise that makes a sampled text a function of
//! the seed: a token is the argmax of its log-probability plus Gumbel noise keyed by (seed, position,
//! token), so two models that agree choose the same token, and re-running a position repeats its
//! choice (DESIGN I3). It must not know models, drafts or what came before.

use crate::{DraftError, TokenId};
use std::cmp::Ordering;

/// How the next token is chosen. The filters apply in the order of the fields.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerConfig {
    /// 0 takes the most likely token; otherwise logits are divided by it. 0 to 100.
    pub temperature: f32,
    /// Keeps the k most likely tokens (a tie goes to the lower id); 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest most likely tokens whose probabilities sum to this much; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this share as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Fixes the noise, and with it the text.
    pub seed: u64,
}

impl SamplerConfig {
    /// Checks every field against its limits.
    ///
    /// # Errors
    /// [`DraftError::Setting`] names the first field outside its limits.
    pub fn validate(&self) -> Result<(), DraftError> {
        let check = |ok: bool, field, value: f32, limits| match ok {
            true => Ok(()),
            false => Err(DraftError::Setting { field, value: value.to_string(), limits }),
        };
        check((0.0..=100.0).contains(&self.temperature), "temperature", self.temperature, "from 0 to 100")?;
        check(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")?;
        check((0.0..=1.0).contains(&self.min_p), "min_p", self.min_p, "from 0 to 1")
    }
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: TokenId,
    /// Its probability under the law it was drawn from; for the greedy choice, its softmax
    /// probability at temperature 1. 0 only when the row has no logit above -inf: the model is broken.
    pub probability: f32,
}

/// Chooses tokens. Holds no state: the same row at the same position gives the same token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    config: SamplerConfig,
}

/// A token that is still in the running, with its logit.
#[derive(Clone, Copy)]
struct Candidate {
    token: TokenId,
    logit: f32,
}

impl Sampler {
    /// A sampler for a configuration that has passed [`SamplerConfig::validate`]; one that has not
    /// never panics, but the law it follows is not specified.
    pub fn new(config: SamplerConfig) -> Self {
        Sampler { config }
    }

    /// The configuration given.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// Chooses the token at `position`, the absolute index in the sequence of the token being chosen
    /// (5 for the first one after a prompt of 5 tokens), from a row of `[vocab]` logits.
    ///
    /// A NaN logit counts as -inf. Without any logit above -inf the choice is token 0, probability 0.
    pub fn choose(&self, logits: &[f32], position: usize) -> Choice {
        if self.is_greedy() {
            return greedy(logits);
        }
        let survivors = self.survivors(logits);
        let Some(top) = most_likely(&survivors) else { return NO_CHOICE };
        let chosen = self.gumbel_argmax(&survivors, position);
        let probability = f64::from(self.weight(chosen, top)) / self.mass(&survivors, top);
        Choice { token: chosen.token, probability: probability as f32 }
    }

    /// The law that [`Sampler::choose`] follows over positions and seeds: `[vocab]` probabilities.
    /// Greedy: all of it on one token. All zero when no logit is above -inf.
    pub fn probabilities(&self, logits: &[f32]) -> Vec<f32> {
        let mut law = vec![0.0; logits.len()];
        if self.is_greedy() {
            let choice = greedy(logits);
            law.iter_mut().skip(choice.token as usize).take(1).for_each(|p| *p = choice.probability.ceil());
            return law;
        }
        let survivors = self.survivors(logits);
        let Some(top) = most_likely(&survivors) else { return law };
        let mass = self.mass(&survivors, top);
        for c in &survivors {
            law[c.token as usize] = (f64::from(self.weight(*c, top)) / mass) as f32;
        }
        law
    }

    fn is_greedy(&self) -> bool {
        self.config.temperature == 0.0
    }

    /// Tokens that pass every filter, in an order that depends on the logits alone.
    fn survivors(&self, logits: &[f32]) -> Vec<Candidate> {
        let mut all = Vec::with_capacity(logits.len());
        all.extend(candidates(logits));
        self.keep_top_k(&mut all);
        self.keep_top_p(&mut all);
        self.keep_min_p(&mut all);
        all
    }

    fn keep_top_k(&self, all: &mut Vec<Candidate>) {
        let k = self.config.top_k;
        if k > 0 && k < all.len() {
            all.select_nth_unstable_by(k - 1, by_likelihood);
            all.truncate(k);
            all.sort_unstable_by(by_likelihood);
        }
    }

    fn keep_top_p(&self, all: &mut Vec<Candidate>) {
        let (true, Some(top)) = (self.config.top_p < 1.0, most_likely(all)) else { return };
        let goal = f64::from(self.config.top_p) * self.mass(all, top);
        let (mut sorted, mut mass, mut kept) = (0, 0.0, 0);
        while mass < goal && kept < all.len() {
            if kept == sorted {
                sorted = sort_next_block(all, sorted);
            }
            mass += f64::from(self.weight(all[kept], top));
            kept += 1;
        }
        all.truncate(kept.max(1));
    }

    fn keep_min_p(&self, all: &mut Vec<Candidate>) {
        if let (true, Some(top)) = (self.config.min_p > 0.0, most_likely(all)) {
            all.retain(|c| self.weight(*c, top) >= self.config.min_p);
        }
    }

    /// Probability relative to the most likely token, which therefore weighs 1.
    fn weight(&self, candidate: Candidate, top: Candidate) -> f32 {
        exp((candidate.logit - top.logit) / self.config.temperature)
    }

    /// Sum of the weights.
    fn mass(&self, candidates: &[Candidate], top: Candidate) -> f64 {
        candidates.iter().map(|c| f64::from(self.weight(*c, top))).sum()
    }

    /// Argmax of `logit / temperature + noise`: a draw from the softmax over `survivors` (Gumbel-max).
    fn gumbel_argmax(&self, survivors: &[Candidate], position: usize) -> Candidate {
        let key = noise_key(self.config.seed, position);
        let mut best = (f64::NEG_INFINITY, survivors[0]);
        for &candidate in survivors {
            let base = f64::from(candidate.logit) / f64::from(self.config.temperature);
            let bits = noise_bits(key, candidate.token);
            if base + gumbel_bound(bits) < best.0 {
                continue; // spares two logarithms for nearly every token of a large vocabulary
            }
            let score = base + gumbel(bits);
            if score > best.0 || (score == best.0 && candidate.token < best.1.token) {
                best = (score, candidate);
            }
        }
        best.1
    }
}

/// Most likely first; equal logits by ascending id.
fn by_likelihood(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// The largest logit; the first one among equals, which is the lowest id in every order used here.
fn most_likely(candidates: &[Candidate]) -> Option<Candidate> {
    candidates.iter().copied().reduce(likelier)
}

fn likelier(a: Candidate, b: Candidate) -> Candidate {
    if b.logit > a.logit { b } else { a }
}

/// The tokens whose logit is above -inf, by ascending id; NaN is not above it. -0 becomes 0, so that
/// comparing and sorting agree.
fn candidates(logits: &[f32]) -> impl Iterator<Item = Candidate> {
    let above = (0..).zip(logits).filter(|(_, logit)| **logit > f32::NEG_INFINITY);
    above.map(|(token, &logit)| Candidate { token, logit: logit.min(f32::MAX) + 0.0 })
}

/// The choice of a row without any logit above -inf.
const NO_CHOICE: Choice = Choice { token: 0, probability: 0.0 };

fn greedy(logits: &[f32]) -> Choice {
    let Some(top) = candidates(logits).reduce(likelier) else { return NO_CHOICE };
    let mass: f64 = candidates(logits).map(|c| f64::from(exp(c.logit - top.logit))).sum();
    Choice { token: top.token, probability: (1.0 / mass) as f32 }
}

/// e^x for x <= 0, to 3e-7 of the value; below -87 as at -87. The same bits on every platform, and
/// free of calls and branches, because it runs for every token of the vocabulary.
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 x 2^23: adding it leaves the nearest integer in the low bits
    const LN_2_HIGH: f32 = 0.693_359_4; // ln 2 in two parts, the first one short, so that n x high is exact
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.max(-87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW; // |r| <= ln 2 / 2
    let tail = 1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0));
    let series = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * tail)));
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    series * f32::from_bits(exponent)
}

/// Sorts the next most likely candidates into place behind the `sorted` first ones and returns how
/// many are sorted now. Blocks grow, because a nucleus is rarely more than a few hundred tokens.
fn sort_next_block(all: &mut [Candidate], sorted: usize) -> usize {
    const FIRST_BLOCK: usize = 256;
    let block = FIRST_BLOCK.max(3 * sorted);
    let rest = &mut all[sorted..];
    if block < rest.len() {
        rest.select_nth_unstable_by(block - 1, by_likelihood);
    }
    let block = block.min(rest.len());
    rest[..block].sort_unstable_by(by_likelihood);
    sorted + block
}

/// SplitMix64's finaliser (Stafford's variant 13): every input bit reaches every output bit.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// SplitMix64's increment, 2^64 divided by the golden ratio.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// Where the noise stream of one position starts.
fn noise_key(seed: u64, position: usize) -> u64 {
    mix(mix(seed.wrapping_add(GAMMA)).wrapping_add((position as u64).wrapping_mul(GAMMA)))
}

/// Output number `token` of the SplitMix64 generator seeded with `key`.
fn noise_bits(key: u64, token: TokenId) -> u64 {
    mix(key.wrapping_add((u64::from(token) + 1).wrapping_mul(GAMMA)))
}

/// Standard Gumbel noise, `-ln(-ln u)`, from the upper 52 bits as u in (0, 1), both ends excluded.
fn gumbel(bits: u64) -> f64 {
    const STEP: f64 = 1.0 / (1u64 << 52) as f64;
    let uniform = ((bits >> 12) as f64 + 0.5) * STEP;
    -(-uniform.ln()).ln()
}

/// An upper bound of [`gumbel`] without logarithms: m leading ones mean 1 - u >= 2^-(m+1), and
/// -ln(-ln u) <= -ln(1 - u). The slack covers rounding.
fn gumbel_bound(bits: u64) -> f64 {
    const SLACK: f64 = 1e-9;
    f64::from(bits.leading_ones().min(52) + 1) * std::f64::consts::LN_2 + SLACK
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: SamplerConfig =
        SamplerConfig { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 1 };

    fn law(config: SamplerConfig, logits: &[f32]) -> Vec<f32> {
        Sampler::new(config).probabilities(logits)
    }

    fn close(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6)
    }

    /// ln of 0.5, 0.25, 0.15, 0.1, in another order.
    fn known() -> Vec<f32> {
        [0.15f32, 0.5, 0.1, 0.25].iter().map(|p| p.ln() + 3.0).collect()
    }

    #[test]
    fn the_greedy_choice_is_the_lowest_id_among_the_largest_logits() {
        let sampler = Sampler::new(SamplerConfig { temperature: 0.0, ..PLAIN });
        let choice = sampler.choose(&[0.0, 2.0, 1.0, 2.0], 9);
        assert_eq!(choice.token, 1);
        let e = std::f32::consts::E;
        assert!((choice.probability - e * e / (1.0 + 2.0 * e * e + e)).abs() < 1e-6);
    }

    #[test]
    fn filters_keep_what_they_document() {
        let logits = known();
        assert!(close(&law(PLAIN, &logits), &[0.15, 0.5, 0.1, 0.25]));
        assert!(close(&law(SamplerConfig { top_k: 2, ..PLAIN }, &logits), &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]));
        let nucleus = law(SamplerConfig { top_p: 0.8, ..PLAIN }, &logits);
        assert!(close(&nucleus, &[0.15 / 0.9, 0.5 / 0.9, 0.0, 0.25 / 0.9]));
        let relative = law(SamplerConfig { min_p: 0.4, ..PLAIN }, &logits);
        assert!(close(&relative, &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]));
    }

    #[test]
    fn top_p_sees_probabilities_renormalised_after_top_k() {
        // Alone, top-p 0.6 keeps two tokens (0.5 < 0.6); after top-k 2 the first one holds 0.667.
        let both = law(SamplerConfig { top_k: 2, top_p: 0.6, ..PLAIN }, &known());
        assert!(close(&both, &[0.0, 1.0, 0.0, 0.0]));
    }

    #[test]
    fn a_nucleus_beyond_the_first_sorted_block_is_found() {
        let logits = vec![0.0f32; 5000];
        let kept = law(SamplerConfig { top_p: 0.5, ..PLAIN }, &logits);
        let count = kept.iter().filter(|p| **p > 0.0).count();
        assert_eq!(count, 2500);
        assert!(kept[..2500].iter().all(|p| *p > 0.0), "ties go to the lower id");
    }

    #[test]
    fn tiny_top_p_keeps_one_token() {
        assert!(close(&law(SamplerConfig { top_p: 1e-9, ..PLAIN }, &known()), &[0.0, 1.0, 0.0, 0.0]));
    }

    #[test]
    fn broken_logits_never_panic_and_show() {
        for temperature in [0.0, 0.7] {
            let sampler =
                Sampler::new(SamplerConfig { temperature, top_k: 3, top_p: 0.9, min_p: 0.1, seed: 2 });
            for row in [&[][..], &[f32::NAN; 4], &[f32::NEG_INFINITY, f32::NAN]] {
                assert_eq!(sampler.choose(row, 0), Choice { token: 0, probability: 0.0 });
                assert!(sampler.probabilities(row).iter().all(|p| *p == 0.0));
            }
            assert_eq!(sampler.choose(&[f32::NAN, 1.0, f32::NEG_INFINITY], 0).token, 1);
            assert_eq!(sampler.choose(&[0.0, f32::INFINITY, 5.0], 0).token, 1);
        }
    }

    #[test]
    fn the_choice_reports_its_own_probability() {
        for config in [PLAIN, SamplerConfig { temperature: 0.5, top_k: 3, top_p: 0.95, min_p: 0.05, seed: 4 }]
        {
            let (sampler, law) = (Sampler::new(config), law(config, &known()));
            for position in 0..50 {
                let choice = sampler.choose(&known(), position);
                assert_eq!(choice.probability, law[choice.token as usize]);
            }
        }
    }

    #[test]
    fn the_bound_never_skips_a_winner() {
        let extremes = [0, 1, u64::MAX, u64::MAX << 12, u64::MAX - (1 << 12), 1 << 63, !(1 << 63)];
        for bits in extremes.into_iter().chain((0..100_000).map(|i| noise_bits(i, 7))) {
            let noise = gumbel(bits);
            assert!(noise.is_finite() && noise <= gumbel_bound(bits), "{bits:#x}: {noise}");
        }
    }

    #[test]
    fn exp_is_exp() {
        for i in 0..870_000u32 {
            let x = -(i as f32) * 1e-4;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / exact - 1.0).abs() < 3e-7, "{x}: {ours} {exact}");
        }
        assert_eq!((exp(0.0), exp(-0.0)), (1.0, 1.0));
        assert!(exp(f32::NEG_INFINITY) > 0.0 && exp(f32::NEG_INFINITY) < 2e-38);
    }

    #[test]
    fn a_setting_outside_its_limits_is_named() {
        assert!(PLAIN.validate().is_ok());
        let wrong = [
            (SamplerConfig { temperature: -0.1, ..PLAIN }, "temperature"),
            (SamplerConfig { temperature: f32::NAN, ..PLAIN }, "temperature"),
            (SamplerConfig { top_p: 0.0, ..PLAIN }, "top_p"),
            (SamplerConfig { top_p: f32::NAN, ..PLAIN }, "top_p"),
            (SamplerConfig { min_p: 1.5, ..PLAIN }, "min_p"),
        ];
        for (config, name) in wrong {
            let message = config.validate().expect_err(name).to_string();
            assert!(message.starts_with(name) && message.contains("must be"), "{message}");
        }
    }
}
