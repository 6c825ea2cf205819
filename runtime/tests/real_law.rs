//! The sampled law on real logits: texts of the demo pair, drafted and verified by either rule, follow
//! the product of the target's laws (chi-square over 100 000 texts).
//!
//! Logits are computed once for every prefix that occurs; filters keep the prefixes few. Of a row the first
//! ids are kept (bytes and the commonest pieces), so that a draw takes microseconds.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use common::{PLAIN, load, local};
use drafthorse_draft::{
    Draft, History, LanguageModel, LogitRows, Sampler, SamplerConfig, TokenId, VerifyRule,
};
use drafthorse_runtime::models::Model;

const TEXTS: u64 = 100_000;
/// Tokens of a text: a block of two guesses and what follows it, or several passes.
const TEXT: usize = 3;
const DRAFT_LEN: usize = 2;
/// Ids that texts are made of.
const IDS: usize = 320;

/// A model that remembers the logits after every text it was asked about.
struct Remembered {
    model: Model,
    rows: HashMap<Vec<TokenId>, Rc<[f32]>>,
}

impl Remembered {
    fn new(file: &str) -> Remembered {
        Remembered { model: load(&local(file), PLAIN), rows: HashMap::new() }
    }

    fn row(&mut self, text: &[TokenId]) -> Rc<[f32]> {
        if let Some(row) = self.rows.get(text) {
            return row.clone();
        }
        let mut logits = Vec::new();
        self.model.truncate(0);
        self.model.pass(text, LogitRows::Last, &mut logits).unwrap();
        let row: Rc<[f32]> = logits[..IDS].into();
        self.rows.insert(text.to_vec(), row.clone());
        row
    }
}

struct Pair {
    target: Remembered,
    draft: Remembered,
    prompt: Vec<TokenId>,
}

impl Pair {
    fn new() -> Pair {
        let (target, draft) = ("demo/target.gguf", "demo/draft.gguf");
        let prompt = vec![300, 41, 260, 300, 41, 260, 35];
        Pair { target: Remembered::new(target), draft: Remembered::new(draft), prompt }
    }

    /// One text, and how many guesses stood in it.
    fn text(&mut self, sampler: &Sampler) -> (Vec<TokenId>, usize) {
        let (mut text, mut stood) = (self.prompt.clone(), 0);
        while text.len() < self.prompt.len() + TEXT {
            let mut draft = Draft::default();
            while draft.tokens.len() < DRAFT_LEN {
                let row = self.draft.row(&[&text[..], &draft.tokens].concat());
                draft.push(sampler.guess(&row, History { committed: &text, drafted: &draft.tokens }));
            }
            let prefix = |len: usize| [&text[..], &draft.tokens[..len]].concat();
            let rows: Vec<_> = (0..=DRAFT_LEN).map(|len| self.target.row(&prefix(len))).collect();
            let verdict = sampler.verify(&text, &draft, |row| &rows[row]);
            text.extend(&draft.tokens[..verdict.accepted]);
            text.push(verdict.next);
            stood += verdict.accepted;
        }
        (text[self.prompt.len()..][..TEXT].to_vec(), stood)
    }

    /// The probability of every text of [`TEXT`] tokens that has one.
    fn law(&mut self, sampler: &Sampler) -> BTreeMap<Vec<TokenId>, f64> {
        let mut texts = BTreeMap::from([(Vec::new(), 1.0)]);
        for _ in 0..TEXT {
            let mut longer = BTreeMap::new();
            for (text, probability) in texts {
                let whole = [&self.prompt[..], &text].concat();
                let law = sampler.law(&self.target.row(&whole), History::of(&whole));
                longer.extend(law.iter().map(|(token, p)| ([&text[..], &[token]].concat(), probability * p)));
            }
            texts = longer;
        }
        texts
    }

    /// How often each of [`TEXTS`] texts came, and how many guesses stood in one.
    fn texts(&mut self, config: SamplerConfig) -> (HashMap<Vec<TokenId>, u64>, f64) {
        let (mut counts, mut stood) = (HashMap::new(), 0);
        for seed in 0..TEXTS {
            let (text, accepted) = self.text(&Sampler::new(SamplerConfig { seed, ..config }));
            *counts.entry(text).or_insert(0) += 1;
            stood += accepted;
        }
        (counts, stood as f64 / TEXTS as f64)
    }
}

/// Standard deviations by which texts miss a law.
fn surprise(counts: &HashMap<Vec<TokenId>, u64>, law: &BTreeMap<Vec<TokenId>, f64>) -> f64 {
    assert!(counts.keys().all(|text| law.contains_key(text)), "a text that the target cannot write");
    let count = |text| counts.get(text).copied().unwrap_or(0);
    chi_square(law.iter().map(|(text, p)| (count(text), p * TEXTS as f64)))
}

/// Chi-square of (count, expected) in standard deviations (Wilson and Hilferty); rare cells are one.
fn chi_square(cells: impl Iterator<Item = (u64, f64)>) -> f64 {
    let (often, seldom): (Vec<_>, Vec<_>) = cells.partition(|(_, expected)| *expected >= 10.0);
    let rare = seldom.iter().fold((0, 0.0), |sum, cell| (sum.0 + cell.0, sum.1 + cell.1));
    let cells = often.into_iter().chain((rare.1 > 0.0).then_some(rare));
    let terms: Vec<f64> = cells.map(|(count, e)| (count as f64 - e).powi(2) / e).collect();
    let (freedom, chi2) = ((terms.len() - 1) as f64, terms.iter().sum::<f64>());
    let spread = 2.0 / (9.0 * freedom);
    ((chi2 / freedom).cbrt() - (1.0 - spread)) / spread.sqrt()
}

#[test]
fn texts_of_the_demo_pair_follow_the_targets_law() {
    let mut pair = Pair::new();
    let filtered = SamplerConfig { top_k: 5, min_p: 0.02, ..SamplerConfig::plain(0.9, 0) };
    let penalised = SamplerConfig {
        repeat_penalty: 1.2,
        presence_penalty: 0.4,
        frequency_penalty: 0.2,
        repeat_last_n: 6,
        ..filtered
    };
    let cases =
        [(filtered, VerifyRule::Block), (penalised, VerifyRule::Coupled), (penalised, VerifyRule::Block)];
    for (config, verify) in cases {
        let config = SamplerConfig { verify, ..config };
        let (counts, stood) = pair.texts(config);
        let sigma = surprise(&counts, &pair.law(&Sampler::new(config)));
        println!("{config:?}: {sigma:.1} sigma, {stood:.2} guesses stood in {TEXT} tokens");
        assert!(sigma < 4.0, "{config:?}: {sigma:.1} sigma");
        assert!(stood > 0.3, "the draft took part: {stood:.2}");
        let warmer = SamplerConfig { temperature: 0.95, min_p: 0.0, ..config };
        let sigma = surprise(&counts, &pair.law(&Sampler::new(warmer)));
        assert!(sigma > 8.0, "the test has no power: {sigma:.1} sigma");
    }
}
