//! Elastic verification: a pass that drops rows on the way is bit by bit the narrower pass, wherever it drops
//! them; texts do not depend on it; and it keeps out of block verification.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::Path;

use common::{PLAIN, Setup, ask, bits, generate, golden, load, local, open, plain_options, tokens};
use drafthorse_draft::{LanguageModel, LogitRows, TokenId, VerifyRule};
use drafthorse_offload::reader::SimulatedDisk;
use drafthorse_offload::{PolicyKind, Trace};
use drafthorse_runtime::api::{DraftSource, EngineOptions, GenerateOptions, Generation};
use drafthorse_runtime::models::Model;
use drafthorse_scheduler::{DraftLen, ElasticMode, RowsSeen};

const MODELS: [&str; 4] = ["deepseek2_v2", "deepseek2_v3_yarn", "mixtral", "qwen3moe"];
const ROWS: usize = 5;
const PREFIX: usize = 9;
const GENERATED: usize = 24;

/// A cache of as many slots as one token uses experts of a layer.
fn tight(model: &Path) -> Setup {
    let slots = load(model, PLAIN).blueprint().spec.moe.unwrap().used;
    Setup { slots, policy: PolicyKind::Gating, threads: 2, rows_max: 16, context_len: 64 }
}

/// What a pass left behind: logits, hidden states, and the logits of a text that goes on from it.
#[derive(PartialEq)]
struct Traces {
    logits: Vec<u32>,
    features: (usize, Vec<u32>),
    after: Vec<u32>,
}

/// Runs `pass` over the window behind the prefix, and what it left behind.
fn traces(model: &mut Model, kept: usize, pass: impl FnOnce(&mut Model, &mut Vec<f32>)) -> Traces {
    let mut logits = Vec::new();
    model.truncate(0);
    model.pass(&tokens(1, PREFIX), LogitRows::None, &mut logits).unwrap();
    pass(model, &mut logits);
    assert_eq!(model.len(), PREFIX + kept);
    let features = model.features().unwrap();
    let features = (features.start, bits(features.values));
    let mut after = Vec::new();
    model.pass(&tokens(3, 7), LogitRows::All, &mut after).unwrap();
    Traces { logits: bits(&logits), features, after: bits(&after) }
}

/// A model that keeps the states after some blocks.
fn recording(path: &Path, setup: Setup) -> Model {
    let mut model = load(path, setup);
    let blocks = model.blueprint().spec.blocks;
    model.record_features(&[0, blocks - 1, blocks]);
    model
}

#[test]
fn rows_dropped_at_any_layer_leave_what_a_narrower_pass_leaves() {
    let window = tokens(2, ROWS);
    for name in MODELS {
        let path = golden(name);
        for setup in [PLAIN, tight(&path)] {
            let (mut narrow, mut elastic) = (recording(&path, setup), recording(&path, setup));
            let layers = elastic.moe_layers();
            for kept in 1..=ROWS {
                let expected = traces(&mut narrow, kept, |model, logits| {
                    model.pass(&window[..kept], LogitRows::All, logits).unwrap();
                });
                for layer in 0..layers {
                    let got = traces(&mut elastic, kept, |model, logits| {
                        let mut keep = |seen: &RowsSeen<'_>| {
                            assert_eq!((seen.layers, seen.here.len()), (layers, seen.misses.len()));
                            if seen.layers_done == layer { kept } else { usize::MAX }
                        };
                        assert_eq!(model.elastic_pass(&window, &mut keep, logits).unwrap(), kept);
                    });
                    assert!(got == expected, "{name}: {kept} rows left at layer {layer}");
                }
            }
        }
    }
}

#[test]
fn rows_may_go_one_after_another_and_the_first_never_does() {
    let window = tokens(2, ROWS);
    for name in MODELS {
        let (mut narrow, mut elastic) = (recording(&golden(name), PLAIN), recording(&golden(name), PLAIN));
        let left = ROWS.saturating_sub(elastic.moe_layers()).max(1);
        let expected = traces(&mut narrow, left, |model, logits| {
            model.pass(&window[..left], LogitRows::All, logits).unwrap();
        });
        let got = traces(&mut elastic, left, |model, logits| {
            let mut one_less = |seen: &RowsSeen<'_>| seen.here.len() - 1;
            assert_eq!(model.elastic_pass(&window, &mut one_less, logits).unwrap(), left);
        });
        assert!(got == expected, "{name}");
        let mut none = |_: &RowsSeen<'_>| 0;
        elastic.truncate(PREFIX);
        assert_eq!(elastic.elastic_pass(&window, &mut none, &mut Vec::new()).unwrap(), 1);
    }
}

#[test]
fn what_was_dropped_before_a_layer_is_read_is_not_read() {
    for name in MODELS {
        let mut model = load(&golden(name), PLAIN);
        let mut logits = Vec::new();
        // Misses of a pass over an empty cache.
        let mut cold = |rows: usize, keep: &mut dyn FnMut(&RowsSeen<'_>) -> usize| {
            model.truncate(0);
            model.drop_experts().unwrap();
            let before = model.cache_stats().unwrap().misses;
            model.elastic_pass(&tokens(2, rows), keep, &mut logits).unwrap();
            model.cache_stats().unwrap().misses - before
        };
        let mut all = |seen: &RowsSeen<'_>| seen.here.len();
        let [one, three] = [1, 3].map(|rows| cold(rows, &mut all));
        assert!(one < three);
        assert_eq!(cold(ROWS, &mut |_| 3), three, "{name}: dropped at the first layer");
        let mut seen_by_gate = 0;
        let read = cold(ROWS, &mut |seen: &RowsSeen<'_>| {
            assert_eq!(seen.misses.iter().sum::<u32>(), seen_by_gate, "{name}: those of the layers before");
            seen_by_gate += seen.here.iter().sum::<u32>();
            assert!(seen.here[0] > 0, "every layer's first row reads");
            seen.here.len()
        });
        assert_eq!(read, u64::from(seen_by_gate), "{name}");
    }
}

#[test]
fn an_input_of_several_passes_goes_through_whole() {
    let mut model = load(&golden("mixtral"), Setup { rows_max: 4, ..PLAIN });
    let mut logits = Vec::new();
    let mut refuse = |_: &RowsSeen<'_>| 1;
    assert_eq!(model.elastic_pass(&tokens(2, 9), &mut refuse, &mut logits).unwrap(), 9);
    assert_eq!(logits.len(), 9 * model.vocab());
    let error = model.elastic_pass(&[u32::MAX], &mut refuse, &mut logits).unwrap_err().to_string();
    assert!(error.contains("outside the vocabulary") && model.len() == 9, "{error}");
}

/// The demo pair with few experts in memory and a disk on which a miss is dear.
fn dear_misses(draft: DraftSource, elastic: ElasticMode) -> EngineOptions {
    let target = local("demo/target.gguf");
    EngineOptions {
        draft,
        draft_len: DraftLen::Fixed(8),
        elastic,
        slots: Some(32),
        threads: 2,
        simulate_disk: Some(SimulatedDisk::new("100MB/s,2ms".parse().unwrap())),
        ..plain_options(&target)
    }
}

fn run(options: &EngineOptions, ask: &GenerateOptions) -> Generation {
    generate(&mut open(options), &tokens(3, 12).repeat(2), ask)
}

fn check_books(generation: &Generation) {
    let speculation = &generation.speculation;
    let places = &speculation.acceptance_by_position;
    assert_eq!(places.iter().map(|place| place.offered).sum::<u64>(), speculation.proposed);
    assert!(speculation.accepted <= speculation.proposed);
}

#[test]
fn the_text_and_its_trace_do_not_depend_on_what_was_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let demo_draft = DraftSource::Model(local("demo/draft.gguf"));
    let mut dropped = 0;
    for temperature in [0.0, 0.8] {
        let ask = ask(GENERATED, temperature);
        let plain = run(&plain_options(&local("demo/target.gguf")), &ask).tokens;
        for draft in [demo_draft.clone(), DraftSource::Ngram] {
            let trace = |elastic: ElasticMode| {
                let path = folder.path().join("routing.moetrace");
                let options =
                    EngineOptions { record_trace: Some(path.clone()), ..dear_misses(draft.clone(), elastic) };
                let generation = run(&options, &ask);
                assert_eq!(generation.tokens, plain, "{draft:?}, {elastic:?}, temperature {temperature}");
                check_books(&generation);
                (Trace::parse(&std::fs::read(path).unwrap()).unwrap(), generation.speculation)
            };
            let (whole, off) = trace(ElasticMode::Off);
            let (cut, on) = trace(ElasticMode::Auto);
            assert!(whole == cut, "the routing of the text is the same");
            assert_eq!(off.rows_dropped, 0);
            println!(
                "{draft:?}: {} dropped, {} verified, {} accepted",
                on.rows_dropped, on.proposed, on.accepted
            );
            dropped += on.rows_dropped;
        }
    }
    assert!(dropped > 0, "rows whose misses take milliseconds were not worth it");
}

#[test]
fn block_verification_drops_nothing() {
    let draft = DraftSource::Model(local("demo/draft.gguf"));
    let mut block = ask(GENERATED, 0.8);
    block.sampler.verify = VerifyRule::Block;
    let [off, auto] = [ElasticMode::Off, ElasticMode::Auto]
        .map(|elastic| run(&dear_misses(draft.clone(), elastic), &block));
    assert_eq!(auto.speculation.rows_dropped, 0);
    assert_eq!(auto.tokens, off.tokens, "a fixed draft length fixes the text");
}

#[test]
fn a_head_is_shown_the_states_of_the_rows_that_came_through() {
    let target = local("tests/heads/mtp.gguf");
    let slots = load(&target, PLAIN).blueprint().spec.moe.unwrap().used;
    let prompt: Vec<TokenId> = tokens(5, 23);
    let ask = ask(GENERATED, 4.0);
    let plain = generate(&mut open(&plain_options(&target)), &prompt, &ask).tokens;
    let options = EngineOptions {
        draft: DraftSource::Mtp,
        draft_len: DraftLen::Fixed(6),
        elastic: ElasticMode::Auto,
        slots: Some(slots),
        simulate_disk: Some(SimulatedDisk::new("100MB/s,2ms".parse().unwrap())),
        ..plain_options(&target)
    };
    let generation = generate(&mut open(&options), &prompt, &ask);
    assert_eq!(generation.tokens, plain);
    check_books(&generation);
    println!(
        "{} rows dropped, {} verified",
        generation.speculation.rows_dropped, generation.speculation.proposed
    );
    assert!(generation.speculation.accepted > 0, "where the law is nearly flat an untrained head is right");
}
