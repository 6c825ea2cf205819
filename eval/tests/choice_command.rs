//! `drafthorse-eval choice` as a user runs it, on the demo model.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use drafthorse_runtime::api::Silent;
use drafthorse_runtime::config::{Config, Layer};
use drafthorse_runtime::engine::Engine;
use drafthorse_runtime::tokenizer::AddSpecial;
use serde_json::Value;
use tempfile::TempDir;

const QUESTIONS: &str = "What colour is the sky?,green,blue,red,black,B\n\
    \"Which of them, then, is a fruit?\",apple,stone,river,cloud,A\n\
    How many legs has a dog?,two,three,four,five,C\n\
    Who rules the land?,the king,the cook,the cat,the sea,A\n";

struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench { folder: TempDir::new().unwrap() }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn choice(&self, file: &PathBuf, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_drafthorse-eval"));
        command
            .args(["choice", "demo", "--threads", "1", "--questions"])
            .arg(file)
            .args(more)
            .output()
            .unwrap()
    }

    fn json(&self, file: &PathBuf, more: &[&str]) -> Value {
        let output = self.choice(file, &[more, &["--json"]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// The likeliest of the four letters after the benchmark's prompt, found with the engine alone.
fn likeliest(engine: &mut Engine, prompt: &str) -> usize {
    let encode = |text: &str| engine.encode(text, AddSpecial::Yes).unwrap().unwrap();
    let ids = encode(prompt);
    let letters = ["A", "B", "C", "D"].map(|letter| {
        let with = encode(&format!("{prompt} {letter}"));
        assert_eq!(with.len(), ids.len() + 1, "a letter is one token of the demo's vocabulary");
        with[ids.len()]
    });
    let mut row = Vec::new();
    let mut keep = |logits: &[f32]| {
        row = logits.to_vec();
        Ok(())
    };
    engine.logits(&ids, false, &mut keep).unwrap();
    let logit = |at: &usize| row[letters[*at] as usize];
    (0..4).max_by(|a, b| logit(a).total_cmp(&logit(b)).then(b.cmp(a))).unwrap()
}

#[test]
fn the_answers_are_the_likeliest_letters_after_the_benchmarks_prompt() {
    let bench = Bench::new();
    let file = bench.file("general_knowledge_test.csv", QUESTIONS);
    let report = bench.json(&file, &["--shots", "1"]);
    let mut layer = Layer::command_line();
    layer.flag("MODEL", ("model", "path"), Some("demo"));
    layer.flag("--draft", ("draft", "source"), Some("none"));
    let options = Config::load(None, &layer).unwrap().engine_options().unwrap();
    let mut engine = Engine::open(&options, &mut Silent).unwrap();
    let head = "The following are multiple choice questions (with answers) about general knowledge.\n\n\
        What colour is the sky?\nA. green\nB. blue\nC. red\nD. black\nAnswer: B\n\n";
    let asked = [
        ("Which of them, then, is a fruit?\nA. apple\nB. stone\nC. river\nD. cloud\nAnswer:", 0),
        ("How many legs has a dog?\nA. two\nB. three\nC. four\nD. five\nAnswer:", 2),
        ("Who rules the land?\nA. the king\nB. the cook\nC. the cat\nD. the sea\nAnswer:", 0),
    ];
    let (mut chosen, mut right) = ([0u64; 4], 0u64);
    for (question, answer) in asked {
        let best = likeliest(&mut engine, &format!("{head}{question}"));
        chosen[best] += 1;
        right += u64::from(best == answer);
    }
    assert_eq!(report["chosen"], serde_json::json!(chosen));
    assert_eq!((&report["asked"], &report["right"], &report["shots"]), (&3.into(), &right.into(), &1.into()));
    let accuracy = right as f64 / 3.0;
    assert!((report["accuracy"].as_f64().unwrap() - accuracy).abs() < 1e-12);
    let error = (accuracy * (1.0 - accuracy) / 2.0).sqrt();
    assert!((report["accuracy_error"].as_f64().unwrap() - error).abs() < 1e-12);
}

#[test]
fn subjects_are_reported_one_by_one_and_limited_one_by_one() {
    let bench = Bench::new();
    let line = |subject: &str, question: &str| {
        format!(
            "{{\"subject\":\"{subject}\",\"question\":\"{question}\",\"choices\":[\"1\",\"2\",\"3\",\"4\"],\"answer\":\"D\"}}\n"
        )
    };
    let text = [line("law", "Q1?"), line("art", "Q2?"), line("law", "Q3?"), line("law", "Q4?")].concat();
    let file = bench.file("q.jsonl", &text);
    let report = bench.json(&file, &["--limit", "2"]);
    let subjects: Vec<(&str, u64)> = report["subjects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|subject| (subject["subject"].as_str().unwrap(), subject["asked"].as_u64().unwrap()))
        .collect();
    assert_eq!(subjects, [("law", 2), ("art", 1)]);
    let output = bench.choice(&file, &[]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        table.contains("law") && table.contains("of 3") && table.contains("all ") && table.contains("of 4"),
        "{table}"
    );
    // Examples may come from a file of their own, by subject.
    let dev = bench.file("dev.jsonl", &[line("law", "E1?"), line("art", "E2?")].concat());
    let report = bench.json(&file, &["--shots", "1", "--shots-from", dev.to_str().unwrap()]);
    assert_eq!(report["asked"], 4);
}

#[test]
fn what_cannot_be_asked_is_named_with_file_and_line() {
    let bench = Bench::new();
    let long = format!("Long {}?,1,2,3,4,A\n", "and longer ".repeat(400));
    for (text, more, code, named) in [
        (format!("{QUESTIONS}Q?,1,2,3,4,E\n"), vec![], 1, "q.csv: line 5: answer: \"E\""),
        (format!("{QUESTIONS}Q?,1,2\n"), vec![], 1, "q.csv: line 5: answer: missing"),
        (String::new(), vec![], 1, "q.csv: line 1: there is no question"),
        (format!("{QUESTIONS}{long}"), vec![], 1, "q.csv: line 5: "),
        (QUESTIONS.to_owned(), vec!["--shots", "4"], 2, "--shots 4"),
        (QUESTIONS.to_owned(), vec!["--shots", "999"], 2, "--shots"),
        (QUESTIONS.to_owned(), vec!["--limit", "0"], 2, "--limit"),
        (QUESTIONS.to_owned(), vec!["--memory", "1KiB"], 4, "memory"),
    ] {
        let output = bench.choice(&bench.file("q.csv", &text), &more);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{more:?}: {message}");
        assert!(message.contains(named), "{more:?}: {message}");
    }
    let absent = bench.folder.path().join("absent");
    let output = bench.choice(&absent, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("absent"));
}

#[test]
fn the_benchmarks_own_file_is_read() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/eval/mmlu/dev.jsonl.gz");
    if !file.exists() {
        return eprintln!("skipped: {} is not here", file.display());
    }
    let report = Bench::new().json(&file, &["--limit", "1", "--context", "2048", "--memory", "256MiB"]);
    assert_eq!(report["subjects"].as_array().unwrap().len(), 57);
}
