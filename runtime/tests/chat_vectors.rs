//! Chat templates of real models, rendered as Python's Jinja renders them: the 33 vectors of
//! llama.cpp's tests, and every template in `../shared/data/templates` against a hash of what
//! `scripts/fixtures/chat_renders.py` got from transformers. Skips where the templates are absent.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::{Path, PathBuf};

use drafthorse_runtime::tokenizer::chat::{Date, Message, RenderOptions, render};
use serde_json::Value;

const DATE: Date = Date { year: 2026, month: 2, day: 7, hour: 9, minute: 5, second: 0 };

fn templates() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/templates");
    if !folder.exists() {
        eprintln!("skipped: {} is absent", folder.display());
        return None;
    }
    Some(folder)
}

fn messages(conversation: &Value) -> Vec<Message> {
    let text = |turn: &Value, key: &str| turn[key].as_str().unwrap().to_owned();
    let turns = conversation.as_array().unwrap().iter();
    turns.map(|turn| Message { role: text(turn, "role"), content: text(turn, "content") }).collect()
}

fn options<'a>(bos_token: &'a str, eos_token: &'a str) -> RenderOptions<'a> {
    RenderOptions { add_generation_prompt: true, bos_token, eos_token, date: Some(DATE) }
}

/// FNV-1a, 64 bits, as the script writes it.
fn fnv1a(text: &str) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    format!("{:016x}", text.bytes().fold(0xCBF2_9CE4_8422_2325, step))
}

#[test]
fn vectors_that_jinja2_matches_match() {
    let Some(folder) = templates() else { return };
    let file = std::fs::read_to_string(folder.join("chat-template-test-vectors.json")).unwrap();
    let vectors: Value = serde_json::from_str(&file).unwrap();
    let messages = messages(&vectors["conversation"]);
    let mut matching = 0;
    for case in vectors["cases"].as_array().unwrap() {
        let text = |key: &str| case[key].as_str().unwrap_or_default();
        let rendered =
            render(text("template_str"), &messages, &options(text("bos_token"), text("eos_token")));
        let expected = match text("expected_output_jinja") {
            "" => text("expected_output"),
            jinja => jinja,
        };
        if case["jinja2_render_matches"].as_bool().unwrap() {
            assert_eq!(rendered.unwrap(), expected, "{}", text("name"));
            matching += 1;
        } else {
            let outcome =
                rendered.map(|text| format!("{} bytes", text.len())).unwrap_or_else(|e| e.to_string());
            eprintln!("jinja2 does not match either: {}: {outcome}", text("name"));
        }
    }
    assert_eq!(matching, 24);
}

#[test]
fn every_real_template_renders_as_transformers_renders_it() {
    let Some(folder) = templates() else { return };
    let fixture: Value = serde_json::from_str(include_str!("fixtures/chat_renders.json")).unwrap();
    let mut wrong = Vec::new();
    let mut same = 0;
    for (name, hashes) in fixture["renders"].as_object().unwrap() {
        let template = std::fs::read_to_string(folder.join(name)).unwrap();
        for (key, conversation) in fixture["conversations"].as_object().unwrap() {
            let rendered = render(&template, &messages(conversation), &options("<s>", "</s>"));
            match (rendered, hashes[key].as_str()) {
                (Ok(text), Some(hash)) if fnv1a(&text) == hash => same += 1,
                (Ok(_), Some(_)) => wrong.push(format!("{name} ({key}): another text")),
                (Err(error), Some(_)) => wrong.push(format!("{name} ({key}): {error}")),
                (outcome, None) => eprintln!("{name} ({key}): transformers refuses, we: {outcome:?}"),
            }
        }
    }
    eprintln!("{same} renders are the same");
    assert!(wrong.is_empty(), "{}\n{same} same", wrong.join("\n"));
}
