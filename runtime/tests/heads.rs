//! Heads on hidden states against a numpy implementation (scripts/heads), and as drafters: they change
//! speed, never text, and a file that does not fit its target is refused by what is wrong with it.
//!
//! Weights are F16 on both sides, and the reference rounds what the KV cache holds as the cache does, so that
//! only the order of float additions differs: 2e-5 of the logits' standard deviation is allowed (2e-6 was seen).

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::{Path, PathBuf};

use common::{PLAIN, Setup, bits, golden, load, local};
use drafthorse_draft::{HeadModel, LanguageModel, LogitRows, ParallelHeads, TokenId};
use drafthorse_offload::reader::PreadReader;
use drafthorse_offload::{OffloadError, Reader};
use drafthorse_runtime::gguf::Gguf;
use drafthorse_runtime::kv::KvType;
use drafthorse_runtime::models::{
    Head, HeadBlueprint, HeadOptions, HeadReaders, LoadError, Medusa, Model, ModelSpec, eagle3_head,
    medusa_heads, mtp_head,
};
use serde::Deserialize;

/// Allowed difference of a logit, in standard deviations of the logits.
const TOLERANCE: f64 = 2e-5;
/// Allowed difference of a hidden state's value; they are of order 1.
const STATE_TOLERANCE: f32 = 2e-4;
const VOCAB: usize = 128;

#[derive(Deserialize)]
struct Vectors {
    tokens: Vec<TokenId>,
    taps: Vec<usize>,
    /// Hidden states of the target at every position but the last.
    features: Vec<Vec<f32>>,
    /// Of every row: the head's logits (`None`: not in its vocabulary), or all heads' one after another.
    logits: Vec<Vec<Option<f32>>>,
    #[serde(default)]
    drafts: Vec<TokenId>,
    #[serde(default)]
    draft_logits: Vec<Vec<Option<f32>>>,
}

impl Vectors {
    fn flat(&self) -> Vec<f32> {
        self.features.concat()
    }

    /// The tokens that rows are made of.
    fn rows(&self) -> &[TokenId] {
        &self.tokens[1..]
    }
}

fn head_file(name: &str) -> PathBuf {
    local("tests/heads").join(name).with_extension("gguf")
}

fn vectors(name: &str) -> Vectors {
    serde_json::from_slice(&std::fs::read(head_file(name).with_extension("json")).unwrap()).unwrap()
}

/// A chained head of the fixtures: its name, its target's file, how its blueprint is read.
type Kind = (&'static str, fn() -> PathBuf, fn(&Gguf, &ModelSpec) -> Result<HeadBlueprint, LoadError>);

const CHAINED: [Kind; 3] = [
    ("mtp", || head_file("mtp"), mtp_head),
    ("eagle3", || golden("llama_tied"), eagle3_head),
    ("eagle3_variant", || golden("llama_tied"), eagle3_head),
];

fn chained(kind: Kind) -> Head {
    chained_with(kind, 1, 64)
}

fn chained_with((name, target, read): Kind, threads: usize, rows_max: usize) -> Head {
    let (gguf, target_path) = (Gguf::open(&head_file(name)).unwrap(), target());
    let target = load(&target_path, PLAIN);
    let blueprint = read(&gguf, &target.blueprint().spec).unwrap();
    let kv = blueprint.spec.kv_shape(KvType::F16).unwrap();
    let target_gguf = Gguf::open(&target_path).unwrap();
    let open = |gguf: &Gguf| -> Result<Box<dyn Reader>, OffloadError> {
        Ok(Box::new(PreadReader::open(&gguf.files, 2)?))
    };
    let readers = HeadReaders { own: &|| open(&gguf), target: &|| open(&target_gguf) };
    let options = HeadOptions { context_len: 64, rows_max, kv, threads };
    blueprint.load(options, target.shared(), &readers, &mut |_| {}).unwrap()
}

fn medusa(threads: usize) -> Medusa {
    let gguf = Gguf::open(&head_file("medusa")).unwrap();
    let target = load(&golden("llama_tied"), PLAIN);
    let reader = Box::new(PreadReader::open(&gguf.files, 2).unwrap());
    let blueprint = medusa_heads(&gguf, &target.blueprint().spec).unwrap();
    blueprint.load(threads, &target.shared(), reader, &mut |_| {}).unwrap()
}

/// The largest difference in standard deviations of what is wanted; infinite where one side has a token that
/// the other lacks.
fn distance(got: &[f32], want: &[Option<f32>]) -> f64 {
    assert_eq!(got.len(), want.len());
    let known: Vec<f64> = want.iter().flatten().map(|value| f64::from(*value)).collect();
    let mean = known.iter().sum::<f64>() / known.len() as f64;
    let std = (known.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / known.len() as f64).sqrt();
    let differences = got.iter().zip(want).map(|(got, want)| match want {
        None if *got == f32::NEG_INFINITY => 0.0,
        None => f64::INFINITY,
        Some(want) => f64::from((got - want).abs()) / std,
    });
    differences.fold(0.0, |worst, d| if d.is_nan() { f64::INFINITY } else { worst.max(d) })
}

fn argmax(row: &[f32]) -> TokenId {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]).then(b.cmp(a))).unwrap() as TokenId
}

fn recording(path: &Path, taps: &[usize], setup: Setup) -> Model {
    let mut model = load(path, setup);
    model.record_features(taps);
    model
}

#[test]
fn chained_heads_agree_with_the_reference_in_every_row_and_in_what_they_draft() {
    for kind in CHAINED {
        let (name, vectors) = (kind.0, vectors(kind.0));
        let (mut head, mut logits, mut worst) = (chained(kind), Vec::new(), 0f64);
        for ((token, features), want) in vectors.rows().iter().zip(&vectors.features).zip(&vectors.logits) {
            head.advance(&[*token], features, &mut logits).unwrap();
            worst = worst.max(distance(&logits, want));
        }
        for (index, want) in vectors.draft_logits.iter().enumerate() {
            assert_eq!(argmax(&logits), vectors.drafts[index], "{name}: draft {index}");
            head.step(vectors.drafts[index], &mut logits).unwrap();
            worst = worst.max(distance(&logits, want));
        }
        assert_eq!(Some(&argmax(&logits)), vectors.drafts.last(), "{name}");
        assert_eq!(head.len(), vectors.rows().len() + vectors.draft_logits.len());
        println!("{name}: largest difference {worst:.6} of the logits' standard deviation");
        assert!(worst < TOLERANCE, "{name}: {worst}");
    }
}

#[test]
fn medusa_heads_agree_with_the_reference() {
    let (vectors, mut heads, mut logits) = (vectors("medusa"), medusa(1), Vec::new());
    assert_eq!((heads.count(), heads.vocab()), (3, VOCAB));
    let mut worst = 0f64;
    for (features, want) in vectors.features.iter().zip(&vectors.logits) {
        heads.predict(features, 3, &mut logits).unwrap();
        for (got, want) in logits.chunks(VOCAB).zip(want.chunks(VOCAB)) {
            worst = worst.max(distance(got, want));
        }
        let all = logits.clone();
        heads.predict(features, 2, &mut logits).unwrap();
        assert_eq!(bits(&logits), bits(&all[..2 * VOCAB]), "fewer heads say the same");
    }
    println!("medusa: largest difference {worst:.6} of the logits' standard deviation");
    assert!(worst < TOLERANCE, "{worst}");
}

#[test]
fn a_row_of_a_head_does_not_depend_on_its_batch_or_threads_nor_on_rows_rolled_back() {
    for kind in CHAINED {
        let (name, vectors) = (kind.0, vectors(kind.0));
        let (mut single, mut expected) = (chained(kind), Vec::new());
        for (token, features) in vectors.rows().iter().zip(&vectors.features) {
            single.advance(&[*token], features, &mut expected).unwrap();
        }
        let mut stepped = Vec::new();
        single.step(7, &mut stepped).unwrap();
        let (features, width) = (vectors.flat(), vectors.features[0].len());
        for (threads, cut, rows_max) in [(1, 9, 64), (2, 9, 4), (2, 4, 64), (3, 1, 1)] {
            let (mut head, mut logits) = (chained_with(kind, threads, rows_max), Vec::new());
            for (tokens, features) in vectors.rows().chunks(cut).zip(features.chunks(cut * width)) {
                head.advance(tokens, features, &mut logits).unwrap();
            }
            assert_eq!(bits(&logits), bits(&expected), "{name}, {cut} rows at once");
            // Drafted rows and four of the text's are dropped, and the latter made anew.
            head.step(3, &mut logits).unwrap();
            head.step(99, &mut logits).unwrap();
            head.truncate(5);
            assert_eq!(head.len(), 5);
            head.advance(&vectors.rows()[5..], &features[5 * width..], &mut logits).unwrap();
            assert_eq!(bits(&logits), bits(&expected), "{name}, after a roll-back");
            head.step(7, &mut logits).unwrap();
            assert_eq!(bits(&logits), bits(&stepped), "{name}, a step after a roll-back");
        }
    }
}

#[test]
fn a_head_refuses_what_it_cannot_hold_and_goes_on() {
    for kind in CHAINED {
        let (vectors, mut head, mut logits) = (vectors(kind.0), chained(kind), Vec::new());
        let features = vectors.features[0].repeat(65);
        let error = head.advance(&[1; 65], &features, &mut logits).unwrap_err().to_string();
        assert!(error.contains("65 more tokens") && head.is_empty(), "{error}");
        let error = head.advance(&[VOCAB as TokenId], &vectors.features[0], &mut logits).unwrap_err();
        assert!(error.to_string().contains("token id 128"), "{error}");
        head.advance(&vectors.rows()[..1], &vectors.features[0], &mut logits).unwrap();
        assert!(distance(&logits, &vectors.logits[0]) < TOLERANCE);
    }
}

#[test]
fn the_target_hands_out_the_hidden_states_of_the_reference() {
    for (name, target) in
        [("mtp", head_file("mtp")), ("eagle3", golden("llama_tied")), ("medusa", golden("llama_tied"))]
    {
        let vectors = vectors(name);
        let mut model = recording(&target, &vectors.taps, PLAIN);
        model.forward(&vectors.tokens, LogitRows::None, &mut Vec::new()).unwrap();
        let features = model.features().unwrap();
        assert_eq!((features.start, features.width), (0, vectors.features[0].len()), "{name}");
        let got = features.rows(0..vectors.features.len()).unwrap();
        let worst = got.iter().zip(vectors.flat()).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        println!("{name}: largest difference of a hidden state's value {worst:.6}");
        assert!(worst < STATE_TOLERANCE, "{name}: {worst}");
    }
}

#[test]
fn hidden_states_do_not_depend_on_the_passes_and_follow_roll_backs() {
    let path = head_file("mtp");
    let tokens = common::tokens(3, 20);
    let mut whole = recording(&path, &[0, 1, 2], PLAIN);
    whole.forward(&tokens, LogitRows::None, &mut Vec::new()).unwrap();
    let expected = whole.features().unwrap();
    for (rows_max, threads) in [(64, 3), (7, 1), (20, 2)] {
        let mut model = recording(&path, &[0, 1, 2], Setup { rows_max, threads, ..PLAIN });
        let mut logits = Vec::new();
        model.forward(&tokens[..6], LogitRows::All, &mut logits).unwrap();
        model.forward(&[5, 6, 7], LogitRows::All, &mut logits).unwrap();
        model.truncate(5);
        model.forward(&tokens[5..], LogitRows::Last, &mut logits).unwrap();
        let features = model.features().unwrap();
        // A tape keeps the rows of the widest pass and one more: the oldest make room.
        assert_eq!((features.start, features.end()), (20usize.saturating_sub(rows_max + 1), 20));
        let same = expected.rows(features.start..20).unwrap();
        assert_eq!(bits(features.values), bits(same), "{rows_max} rows a pass");
    }
}

#[test]
fn a_prediction_head_in_the_file_leaves_the_target_as_it_is() {
    let tokens = common::tokens(1, 24);
    let logits = |path: &Path| {
        let mut logits = Vec::new();
        load(path, PLAIN).forward(&tokens, LogitRows::All, &mut logits).unwrap();
        bits(&logits)
    };
    assert_eq!(logits(&head_file("mtp")), logits(&golden("deepseek2_v3")));
}
