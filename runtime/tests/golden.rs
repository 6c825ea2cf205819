//! Logits against Hugging Face `transformers` on small random models of every architecture
//! (captured by scripts/golden/capture.py; each JSON says with what and what it exercises).

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::PathBuf;

use common::{PLAIN, load, local};
use drafthorse_draft::{LanguageModel, LogitRows, TokenId};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    name: String,
    vocab: usize,
    sequences: Vec<Sequence>,
    greedy: Greedy,
}

#[derive(Deserialize)]
struct Sequence {
    tokens: Vec<TokenId>,
    logits: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Greedy {
    prompt: Vec<TokenId>,
    ids: Vec<TokenId>,
}

fn fixtures() -> Vec<(PathBuf, Fixture)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(local("tests/golden")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let fixture = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            found.push((path.with_extension("gguf"), fixture));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(found.len() >= 20, "the fixtures are here");
    found
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]).then(b.cmp(a))).unwrap()
}

fn std_of(values: &[f32]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    (values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt()
}

#[test]
fn logits_agree_with_transformers_on_every_architecture() {
    let mut failures = Vec::new();
    for (path, fixture) in fixtures() {
        let mut worst = 0f64;
        for sequence in &fixture.sequences {
            let mut model = load(&path, PLAIN);
            let mut logits = Vec::new();
            model.forward(&sequence.tokens, LogitRows::All, &mut logits).unwrap();
            assert_eq!(logits.len(), sequence.tokens.len() * fixture.vocab);
            for (position, (got, want)) in logits.chunks(fixture.vocab).zip(&sequence.logits).enumerate() {
                let difference = got.iter().zip(want).map(|(g, w)| f64::from((g - w).abs()));
                let relative = difference.fold(0.0, f64::max) / std_of(want);
                worst = worst.max(relative);
                if argmax(got) != argmax(want) || relative.is_nan() || relative > 0.01 {
                    failures.push(format!(
                        "{} ({} tokens) position {position}: {relative:.4} std, argmax {} for {}",
                        fixture.name,
                        sequence.tokens.len(),
                        argmax(got),
                        argmax(want)
                    ));
                }
            }
        }
        println!("{:28} largest difference {:.5} of the logits' standard deviation", fixture.name, worst);
    }
    assert!(
        failures.is_empty(),
        "{} positions differ:\n{}",
        failures.len(),
        failures[..failures.len().min(40)].join("\n")
    );
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    for (path, fixture) in fixtures() {
        let mut model = load(&path, PLAIN);
        let mut logits = Vec::new();
        let mut pending = fixture.greedy.prompt.clone();
        for want in &fixture.greedy.ids {
            model.forward(&pending, LogitRows::Last, &mut logits).unwrap();
            assert_eq!(argmax(&logits), *want as usize, "{}", fixture.name);
            pending = vec![*want];
        }
    }
}
