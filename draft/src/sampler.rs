//! Logits to a law, and to a token: the one function that draft and target both choose with.
//!
//! Owns temperature, top-k, top-p and min-p, and the choice that makes a sampled text a function of
//! the seed: a token is the argmax of its log-probability plus Gumbel noise keyed by (seed, position,
//! token), so two models that agree choose the same token, and re-running a position repeats its
//! choice (DESIGN I3). It must not know models, nor what becomes of a guess.

use std::cmp::Ordering;

use crate::noise::{Purpose, gumbel, gumbel_bound, noise_bits, noise_key, uniform};
use crate::penalties::penalised;
use crate::{History, Law, SamplerConfig, TokenId};

/// Tokens that a drafter's own law keeps at most: the likeliest ones. A drafter may draw from any law
/// that it records, so this costs no exactness, and bounds what a draft of any vocabulary takes.
pub const DRAFT_LAW_TOKENS_MAX: usize = 4096;

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: TokenId,
    /// Its probability under the law it was drawn from; for the greedy choice, its softmax
    /// probability at temperature 1. 0 only when the row has no logit above -inf: the model is broken.
    pub probability: f32,
}

/// What a drafter guesses at one position.
#[derive(Clone, Debug, PartialEq)]
pub struct Guess {
    /// The token.
    pub token: TokenId,
    /// How sure the drafter is of it, 0 to 1.
    pub confidence: f32,
    /// The law it was drawn from, in block verification; `None` where the guess is a function of the
    /// seed.
    pub law: Option<Law>,
}

/// Chooses tokens. Holds no state: the same row after the same tokens gives the same token.
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

    /// Chooses the token after `history` from a row of `[vocab]` logits.
    ///
    /// A NaN logit counts as -inf. Without any logit above -inf the choice is token 0, probability 0.
    pub fn choose(&self, logits: &[f32], history: History<'_>) -> Choice {
        let logits = &penalised(&self.config, logits, history);
        if self.is_greedy() {
            return greedy(logits);
        }
        let survivors = self.survivors(logits);
        let Some(top) = most_likely(&survivors) else { return NO_CHOICE };
        let chosen = self.gumbel_argmax(&survivors, history.position());
        let probability = f64::from(self.weight(chosen, top)) / self.mass(&survivors, top);
        Choice { token: chosen.token, probability: probability as f32 }
    }

    /// How sure the model is of the token after `history`: the softmax probability at temperature 1 of its likeliest one,
    /// whatever temperature and filters make of it, so that texts sampled in different ways compare.
    pub fn certainty(&self, logits: &[f32], history: History<'_>) -> f32 {
        greedy(&penalised(&self.config, logits, history)).probability
    }

    /// What a drafter guesses after `history`, from its own row of `[vocab]` logits.
    ///
    /// Coupled: its choice with the noise it shares with the target. In block verification: a draw of
    /// its own, with its law; the confidence is then what such a draw's probability is on average, and
    /// so tells nothing about the token that was drawn (see [`crate::Draft::cut`]).
    pub fn guess(&self, logits: &[f32], history: History<'_>) -> Guess {
        if self.config.stands_by_equality() {
            let Choice { token, probability } = self.choose(logits, history);
            return Guess { token, confidence: probability, law: None };
        }
        let law = self.limited_law(logits, history, DRAFT_LAW_TOKENS_MAX);
        let at = (history.committed.len(), history.drafted.len());
        match law.draw(uniform(self.config.seed, Purpose::Guess, at)) {
            Some(token) => Guess { token, confidence: law.agreement() as f32, law: Some(law) },
            None => Guess { token: 0, confidence: 0.0, law: Some(Law::point(0)) },
        }
    }

    /// The law that [`Sampler::choose`] follows over seeds. Greedy: all of it on one token. Empty when no
    /// logit is above -inf.
    pub fn law(&self, logits: &[f32], history: History<'_>) -> Law {
        self.limited_law(logits, history, usize::MAX)
    }

    /// [`Sampler::law`] as `[vocab]` probabilities; all zero when no logit is above -inf.
    pub fn probabilities(&self, logits: &[f32], history: History<'_>) -> Vec<f32> {
        let mut dense = vec![0.0; logits.len()];
        for (token, probability) in self.law(logits, history).iter() {
            dense[token as usize] = probability as f32;
        }
        dense
    }

    /// The law of the `tokens_max` likeliest tokens that pass the filters.
    fn limited_law(&self, logits: &[f32], history: History<'_>, tokens_max: usize) -> Law {
        let logits = &penalised(&self.config, logits, history);
        if self.is_greedy() {
            let Choice { token, probability } = greedy(logits);
            return if probability > 0.0 { Law::point(token) } else { Law::default() };
        }
        let mut survivors = self.survivors(logits);
        if survivors.len() > tokens_max {
            survivors.select_nth_unstable_by(tokens_max - 1, by_likelihood);
            survivors.truncate(tokens_max);
        }
        let Some(top) = most_likely(&survivors) else { return Law::default() };
        let weights = survivors.iter().map(|c| (c.token, self.weight(*c, top))).collect();
        Law::with_mass(weights, self.mass(&survivors, top))
    }

    pub(crate) fn is_greedy(&self) -> bool {
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

/// The first of the largest logits, and its softmax probability. It runs for every drafted token and every pass over a
/// vocabulary of up to hundreds of thousands, so it goes [`LANES`] logits at a time; `draft` has no other instructions than
/// those compilers find.
fn greedy(logits: &[f32]) -> Choice {
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (most, logit) in most.iter_mut().zip(chunk) {
            *most = greater(*most, *logit);
        }
    }
    let top = most.iter().chain(rest).fold(f32::NEG_INFINITY, |most, logit| greater(most, *logit));
    if top == f32::NEG_INFINITY {
        return NO_CHOICE;
    }
    // As `candidates` has it: infinity counts as the largest number, and so do all that equal it.
    let top = top.min(f32::MAX);
    let is_top = |logit: &f32| *logit >= top;
    let chunk = chunks.iter().position(|chunk| chunk.iter().fold(false, |any, logit| any | is_top(logit)));
    let from = LANES * chunk.unwrap_or(chunks.len());
    let within = logits[from..].iter().position(is_top).expect("invariant: the largest logit is one of them");
    let weigh = |logit: f32| if logit > f32::NEG_INFINITY { exp(logit.min(f32::MAX) - top) } else { 0.0 };
    let mut mass: f64 = rest.iter().map(|logit| f64::from(weigh(*logit))).sum();
    for block in chunks.chunks(F32_SUMS) {
        let mut sums = [0f32; LANES];
        for chunk in block {
            for (sum, logit) in sums.iter_mut().zip(chunk) {
                *sum += weigh(*logit);
            }
        }
        mass += sums.iter().map(|sum| f64::from(*sum)).sum::<f64>();
    }
    Choice { token: (from + within) as TokenId, probability: (1.0 / mass) as f32 }
}

/// Logits looked at together.
const LANES: usize = 16;
/// Weights that are added in f32 before they are in f64: their sum is within 1e-6.
const F32_SUMS: usize = 16;

/// The greater of two; the first where the second is not a number.
fn greater(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// e^x for x <= 0, to 3e-7 of the value; below -87 as at -87. The same bits on every platform, and
/// free of calls and branches, because it runs for every token of the vocabulary.
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 x 2^23: adding it leaves the nearest integer in the low bits
    const LN_2_HIGH: f32 = 0.693_359_4; // ln 2 in two parts, the first one short, so that n x high is exact
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = greater(-87.0, x);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VerifyRule;

    const PLAIN: SamplerConfig = SamplerConfig::plain(1.0, 1);

    fn law(config: SamplerConfig, logits: &[f32]) -> Vec<f32> {
        Sampler::new(config).probabilities(logits, History::of(&[]))
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
        let choice = sampler.choose(&[0.0, 2.0, 1.0, 2.0], History::of(&[0; 9]));
        assert_eq!(choice.token, 1);
        let e = std::f32::consts::E;
        assert!((choice.probability - e * e / (1.0 + 2.0 * e * e + e)).abs() < 1e-6);
    }

    #[test]
    fn the_greedy_choice_is_that_of_one_logit_after_the_other_however_many_there_are() {
        // What is looked at in vectors, against the definition: the first of the largest, and the softmax.
        let value = |i: usize| ((i * 7919 % 613) as f32 / 40.0).sin() * 9.0;
        let odd = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -0.0, 0.0, f32::MAX];
        for len in [1, 2, 15, 16, 17, 255, 256, 257, 300, 4096, 5003] {
            for case in 0..24 {
                let mut logits: Vec<f32> = (0..len).map(|i| value(i + 37 * case)).collect();
                for n in 0..case / 6 {
                    logits[(case * 131 + n * 17) % len] = odd[case % 6];
                }
                let top = candidates(&logits).reduce(likelier);
                let mass = |top: Candidate| {
                    candidates(&logits).map(|c| f64::from(c.logit - top.logit).exp()).sum::<f64>()
                };
                let expected = top.map_or((0, 0.0), |top| (top.token, 1.0 / mass(top)));
                let got = greedy(&logits);
                let near = (f64::from(got.probability) - expected.1).abs() <= 2e-6 * expected.1;
                assert!(got.token == expected.0 && near, "{len} {case}: {got:?} {expected:?}");
            }
        }
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
            let config =
                SamplerConfig { top_k: 3, top_p: 0.9, min_p: 0.1, ..SamplerConfig::plain(temperature, 2) };
            let sampler = Sampler::new(SamplerConfig { repeat_penalty: 1.2, ..config });
            let text = History::of(&[0, 1, 9]);
            for row in [&[][..], &[f32::NAN; 4], &[f32::NEG_INFINITY, f32::NAN]] {
                assert_eq!(sampler.choose(row, text), Choice { token: 0, probability: 0.0 });
                assert!(sampler.law(row, text).is_empty());
                assert!(sampler.probabilities(row, text).iter().all(|p| *p == 0.0));
                let block = Sampler::new(SamplerConfig { verify: VerifyRule::Block, ..config });
                let guess = block.guess(row, text);
                assert_eq!((guess.token, guess.confidence), (0, 0.0));
            }
            assert_eq!(sampler.choose(&[f32::NAN, 1.0, f32::NEG_INFINITY], text).token, 1);
            assert_eq!(sampler.choose(&[0.0, f32::INFINITY, 5.0], text).token, 1);
        }
    }

    #[test]
    fn the_choice_reports_its_own_probability() {
        let filtered = SamplerConfig { top_k: 3, top_p: 0.95, min_p: 0.05, ..SamplerConfig::plain(0.5, 4) };
        for config in [PLAIN, filtered] {
            let (sampler, law) = (Sampler::new(config), law(config, &known()));
            for position in 0..50 {
                let choice = sampler.choose(&known(), History::of(&vec![0; position]));
                assert_eq!(choice.probability, law[choice.token as usize]);
            }
        }
    }

    #[test]
    fn a_penalised_token_gives_way_to_the_others() {
        let config = SamplerConfig { presence_penalty: 2.0f32.ln(), ..PLAIN };
        let law = Sampler::new(config).probabilities(&known(), History { committed: &[2], drafted: &[1] });
        assert!(close(&law, &[0.15 / 0.7, 0.25 / 0.7, 0.05 / 0.7, 0.25 / 0.7]));
        let greedy = Sampler::new(SamplerConfig { temperature: 0.0, presence_penalty: 2.0, ..config });
        assert_eq!(greedy.choose(&known(), History::of(&[1])).token, 3, "the next likely one");
    }

    #[test]
    fn a_coupled_guess_is_the_choice_and_a_drawn_one_bears_its_law() {
        let config = SamplerConfig { top_k: 3, ..PLAIN };
        let block = Sampler::new(SamplerConfig { verify: VerifyRule::Block, ..config });
        for position in 0..50 {
            let text = vec![0; position];
            let (coupled, history) = (Sampler::new(config), History::of(&text));
            let guess = coupled.guess(&known(), history);
            let choice = coupled.choose(&known(), history);
            assert_eq!(guess, Guess { token: choice.token, confidence: choice.probability, law: None });
            let (guess, law) = (block.guess(&known(), history), block.law(&known(), history));
            assert!(law.probability(guess.token) > 0.0);
            assert_eq!((guess.confidence, guess.law), (law.agreement() as f32, Some(law)));
        }
        let greedy = Sampler::new(SamplerConfig { temperature: 0.0, verify: VerifyRule::Block, ..PLAIN });
        assert_eq!(greedy.guess(&known(), History::of(&[])).law, None, "nothing is drawn");
    }

    #[test]
    fn a_drawn_guess_keeps_the_likeliest_tokens_of_a_large_vocabulary() {
        let logits: Vec<f32> = (0..3 * DRAFT_LAW_TOKENS_MAX).map(|i| (i % 3) as f32).collect();
        let block = Sampler::new(SamplerConfig { verify: VerifyRule::Block, ..PLAIN });
        let law = block.guess(&logits, History::of(&[])).law.expect("drawn");
        assert_eq!(law.len(), DRAFT_LAW_TOKENS_MAX);
        assert!(law.iter().all(|(token, _)| token % 3 == 2), "the likeliest third");
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
}
