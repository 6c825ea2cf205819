//! Block verification by exact enumeration: every draft of up to three tokens over three symbols, with
//! the uniform draws integrated out. What comes out follows the target's law to rounding, and as many
//! tokens stand as the theory says (arXiv 2403.10444), never fewer than by rejecting token by token.
#![expect(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]

mod common;

use common::{mix, unit};
use drafthorse_draft::{BlockOdds, Draft, Law, TokenId};

const SYMBOLS: TokenId = 3;

/// A law for every text, from a hash of it.
struct Laws {
    seed: u64,
    shape: Shape,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    /// Any weights.
    Any,
    /// Weights of which some are 0, as behind filters.
    Filtered,
    /// One token alone.
    Point,
}

impl Laws {
    fn after(&self, text: &[TokenId]) -> Law {
        let key = text.iter().fold(mix(self.seed), |key, token| mix(key ^ u64::from(*token)));
        let weight = |token: TokenId| (unit(mix(key ^ (1000 + u64::from(token)))) as f32).powi(3) + 0.01;
        let kept = |token: &TokenId| match self.shape {
            Shape::Any => true,
            Shape::Filtered => u64::from(*token) == key % 3 || mix(key ^ u64::from(*token)).is_multiple_of(2),
            Shape::Point => u64::from(*token) == key % 3,
        };
        Law::new((0..SYMBOLS).filter(kept).map(|token| (token, weight(token))))
    }
}

/// Every text of `len` symbols.
fn texts(len: usize) -> Vec<Vec<TokenId>> {
    (0..len).fold(vec![Vec::new()], |texts, _| {
        let longer = |text: &Vec<TokenId>| (0..SYMBOLS).map(|token| [&text[..], &[token]].concat()).collect();
        texts.iter().flat_map(|text| -> Vec<_> { longer(text) }).collect()
    })
}

/// The probability that `laws` write `text` after `before`.
fn probability(laws: &Laws, before: &[TokenId], text: &[TokenId]) -> f64 {
    let of = |i: usize| laws.after(&[before, &text[..i]].concat()).probability(text[i]);
    (0..text.len()).map(of).product()
}

/// What drafting `len` tokens and verifying them gives.
struct Outcome {
    /// Probability of each text of `len + 1` tokens, in the order of [`texts`].
    joint: Vec<f64>,
    /// Expected number of drafted tokens that stand.
    accepted: f64,
}

fn enumerate(target: &Laws, drafter: &Laws, len: usize) -> Outcome {
    let mut outcome = Outcome { joint: vec![0.0; texts(len + 1).len()], accepted: 0.0 };
    for tokens in texts(len) {
        let drawn = probability(drafter, &[], &tokens);
        if drawn > 0.0 {
            let mut draft = Draft::new(tokens.clone(), vec![0.5; len]);
            if drafter.shape != Shape::Point {
                draft.laws = (0..len).map(|i| drafter.after(&tokens[..i])).collect();
            }
            verify(target, &draft, drawn, &mut outcome);
        }
    }
    outcome
}

/// Adds what becomes of one draft, which is drawn with probability `drawn`.
fn verify(target: &Laws, draft: &Draft, drawn: f64, outcome: &mut Outcome) {
    let tokens = &draft.tokens;
    let odds = BlockOdds::new(draft, |row| target.after(&tokens[..row]));
    assert_eq!((odds.stands.len(), odds.ratios.len()), (tokens.len(), tokens.len() + 1));
    for stands in 0..=tokens.len() {
        let longer_fail: f64 = odds.stands[stands..].iter().map(|p| 1.0 - p).product();
        let own = if stands == 0 { 1.0 } else { odds.stands[stands - 1] };
        let weight = drawn * own * longer_fail;
        outcome.accepted += weight * stands as f64;
        let prefix = &tokens[..stands];
        let law = target.after(prefix);
        let next: Vec<(TokenId, f64)> = match stands == tokens.len() {
            true => law.iter().collect(),
            false => {
                let drafted = draft.law(stands);
                let excess: Vec<_> = law.excess(odds.ratios[stands], &drafted).collect();
                let mass: f64 = excess.iter().map(|(_, excess)| excess).sum();
                assert!(mass > 0.0 || weight < 1e-15, "a residual law that is needed is not empty");
                excess.into_iter().map(|(token, excess)| (token, excess / mass)).collect()
            }
        };
        for (token, probability) in next {
            go_on(target, &[prefix, &[token]].concat(), weight * probability, outcome);
        }
    }
}

/// What is missing to `len + 1` tokens, the target writes alone.
fn go_on(target: &Laws, text: &[TokenId], weight: f64, outcome: &mut Outcome) {
    let len = outcome.joint.len().ilog(SYMBOLS as usize) as usize;
    let mut index = text.iter().fold(0, |index, token| index * SYMBOLS as usize + *token as usize);
    let rest = texts(len - text.len());
    index *= rest.len();
    for (i, rest) in rest.iter().enumerate() {
        outcome.joint[index + i] += weight * probability(target, text, rest);
    }
}

/// Expected tokens that stand when each is accepted with min(1, P / Q) until one is not.
fn accepted_token_by_token(target: &Laws, drafter: &Laws, len: usize) -> f64 {
    let stand = |text: &Vec<TokenId>| {
        let both = |i: usize| {
            let (p, q) = (target.after(&text[..i]), drafter.after(&text[..i]));
            p.probability(text[i]).min(q.probability(text[i]))
        };
        (0..text.len()).map(both).product::<f64>()
    };
    (1..=len).flat_map(texts).map(|text| stand(&text)).sum()
}

/// The optimum: prefix x stands with probability Q(x) p(x), p capped at 1 after every token.
fn accepted_at_best(target: &Laws, drafter: &Laws, len: usize) -> f64 {
    let stand = |text: &Vec<TokenId>| {
        let (mut drawn, mut ratio) = (1.0, 1.0f64);
        for i in 0..text.len() {
            let (p, q) = (target.after(&text[..i]), drafter.after(&text[..i]));
            let (p, q) = (p.probability(text[i]), q.probability(text[i]));
            drawn *= q;
            ratio = if q > 0.0 { (ratio * p / q).min(1.0) } else { 0.0 };
        }
        drawn * ratio
    };
    (1..=len).flat_map(texts).map(|text| stand(&text)).sum()
}

#[test]
fn the_emitted_tokens_follow_the_targets_law_and_no_fewer_stand_than_token_by_token() {
    let (mut worst, mut more) = (0.0f64, 0);
    let shapes = [Shape::Any, Shape::Filtered, Shape::Point];
    for (target, drafter) in shapes.iter().flat_map(|a| shapes.map(|b| (*a, b))) {
        for (len, seed) in (1..=3).flat_map(|len| (0..40).map(move |seed| (len, seed))) {
            let target = Laws { seed, shape: target };
            let drafter = Laws { seed: seed + 1000, shape: drafter };
            let outcome = enumerate(&target, &drafter, len);
            for (text, got) in texts(len + 1).iter().zip(&outcome.joint) {
                worst = worst.max((got - probability(&target, &[], text)).abs());
            }
            let (single, best) =
                (accepted_token_by_token(&target, &drafter, len), accepted_at_best(&target, &drafter, len));
            assert!(outcome.accepted >= single - 1e-12, "{} < {single}", outcome.accepted);
            assert!((outcome.accepted - best).abs() < 1e-12, "{} is not {best}", outcome.accepted);
            more += usize::from(outcome.accepted > single + 1e-3);
        }
    }
    println!(
        "largest difference from the target's law: {worst:.1e}; more tokens stand in {more} of 1080 cases"
    );
    assert!(worst < 1e-12, "{worst}");
    assert!(more > 100, "a block is worth more than its tokens in some cases: {more}");
}

#[test]
fn a_drafter_with_the_targets_law_is_accepted_whole() {
    let laws = |_| Laws { seed: 5, shape: Shape::Any };
    let outcome = enumerate(&laws(0), &laws(1), 3);
    assert!((outcome.accepted - 3.0).abs() < 1e-12, "{}", outcome.accepted);
}

#[test]
fn a_wrong_law_is_noticed() {
    let target = Laws { seed: 5, shape: Shape::Any };
    let outcome = enumerate(&target, &Laws { seed: 6, shape: Shape::Any }, 2);
    let other = Laws { seed: 7, shape: Shape::Any };
    let off = texts(3).into_iter().zip(&outcome.joint);
    let off = off.map(|(text, p)| (p - probability(&other, &[], &text)).abs());
    assert!(off.fold(0.0, f64::max) > 1e-3, "the test has no power");
}
