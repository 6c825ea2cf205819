//! Decoding of given ids: `Engine::replay_ids` and `bench --ids`, which comparisons rest on.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::fs;
use std::process::{Command, Output};

use common::{ask, generate, golden, logits_of, open, plain_options, tokens};
use drafthorse_runtime::Error;
use drafthorse_runtime::api::Silent;
use drafthorse_runtime::engine::ids_hash;
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn the_end_of_a_replay_is_what_the_logits_say() {
    for name in ["deepseek2_v2", "mixtral", "qwen3moe", "llama"] {
        let mut engine = open(&plain_options(&golden(name)));
        let ids = tokens(3, 20);
        let rows = logits_of(&mut engine, &ids, false);
        let best = (0..rows[0].len()).max_by(|&a, &b| rows[0][a].total_cmp(&rows[0][b])).unwrap();
        let replay = engine.replay_ids(&ids, &mut Silent).unwrap();
        assert_eq!((replay.tokens, replay.next as usize), (ids.len(), best), "{name}");
    }
}

#[test]
fn a_second_replay_finds_the_experts_and_an_empty_sequence() {
    let mut engine = open(&plain_options(&golden("mixtral")));
    let ids = tokens(5, 24);
    let cold = engine.replay_ids(&ids, &mut Silent).unwrap();
    let warm = engine.replay_ids(&ids, &mut Silent).unwrap();
    assert!(cold.offload.misses > 0);
    assert_eq!((warm.offload.misses, warm.offload.bytes_read), (0, 0));
    assert_eq!(warm.offload.hits, cold.offload.hits + cold.offload.misses);
    assert_eq!(warm.next, cold.next);
    // What was replayed is no part of what is generated next.
    let after = generate(&mut engine, &tokens(1, 6), &ask(8, 0.0)).tokens;
    let fresh = generate(&mut open(&plain_options(&golden("mixtral"))), &tokens(1, 6), &ask(8, 0.0)).tokens;
    assert_eq!(after, fresh);
}

#[test]
fn ids_that_cannot_be_decoded_are_refused_and_the_engine_stays_usable() {
    let mut engine = open(&plain_options(&golden("qwen3moe")));
    let vocab = engine.vocab() as u32;
    let outside = engine.replay_ids(&[1, vocab], &mut Silent);
    assert!(matches!(outside, Err(Error::TokenOutOfVocabulary { token, .. }) if token == vocab));
    assert!(matches!(engine.replay_ids(&[], &mut Silent), Err(Error::EmptyPrompt)));
    let long = vec![1; engine.context_len() + 1];
    assert!(matches!(engine.replay_ids(&long, &mut Silent), Err(Error::PromptTooLong { .. })));
    assert_eq!(engine.replay_ids(&[1, 2], &mut Silent).unwrap().tokens, 2);
}

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_drafthorse")).arg("bench").args(args).output().unwrap()
}

#[test]
fn the_command_reports_every_pass() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("ids.txt");
    fs::write(&file, "1, 2 3\n40\n").unwrap();
    let (model, file) = (golden("mixtral"), file.to_str().unwrap());
    let output = bench(&[model.to_str().unwrap(), "--ids", file, "--passes", "3", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let passes = report["passes"].as_array().unwrap();
    assert_eq!(passes.len(), 3);
    for (index, pass) in passes.iter().enumerate() {
        assert_eq!(pass["pass"], index + 1);
        assert_eq!(pass["tokens"], 4);
        assert_eq!(pass["ids_hash"], ids_hash(&[1, 2, 3, 40]));
        assert!(pass["tok_s"].as_f64().unwrap() > 0.0);
    }
    assert!(passes[0]["misses"].as_u64() > Some(0) && passes[1]["misses"] == 0);
    let table = String::from_utf8(bench(&[model.to_str().unwrap(), "--ids", file]).stdout).unwrap();
    assert_eq!(table.lines().count(), 3, "{table}");
}

#[test]
fn ids_that_make_no_sense_exit_2() {
    let folder = TempDir::new().unwrap();
    let (model, file) = (golden("mixtral"), folder.path().join("ids.txt"));
    let model = model.to_str().unwrap();
    for (text, reason) in [("1 two", "word 2"), ("", "no token ids"), ("1 999999", "999999")] {
        fs::write(&file, text).unwrap();
        let output = bench(&[model, "--ids", file.to_str().unwrap()]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(reason), "{message}");
    }
    for args in [&["--passes", "2"][..], &["--ids", "f", "-n", "3"], &["--ids", "f", "--passes", "0"]] {
        let output = bench(&[&[model], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}
