//! `--stats-file`: what one run wanted is there at the start of the next, and never changes the text.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::{golden, local};
use serde_json::Value;

fn run(model: &Path, more: &[&str]) -> Output {
    run_for("32", model, more)
}

fn run_for(tokens: &str, model: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_drafthorse"))
        .arg("run")
        .arg(model)
        .args(["--tokens", "11,12,13,14", "-n", tokens, "--ignore-eos", "--json", "--memory", "1GiB"])
        .args(["--threads", "2", "--context", "128"])
        .args(more)
        .output()
        .unwrap()
}

fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_second_run_starts_with_what_the_first_one_wanted_and_writes_the_same_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("demo.stats");
    let model = local("demo/target.gguf");
    let flags = ["--stats-file", file.to_str().unwrap(), "--slots", "64", "--prefetch", "off"];
    let first = report(&run(&model, &flags));
    let written = std::fs::read(&file).unwrap();
    let second = report(&run(&model, &flags));
    assert_eq!(first["tokens"], second["tokens"]);
    assert_ne!(std::fs::read(&file).unwrap(), written, "the second run was added");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing unfinished is left behind");
    // Whatever part of the warm-up the disk had time for: fewer experts are missed than from cold.
    let misses = |report: &Value| report["offload"]["misses"].as_u64().unwrap();
    assert!(misses(&second) <= misses(&first), "{} then {}", misses(&first), misses(&second));
}

/// The setups in a file with something known of `what`: drafter and slots, the latest first.
fn setups_with(what: &str, file: &Path) -> Vec<(String, u64)> {
    let bytes = std::fs::read(file).unwrap();
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap();
    let header: Value = serde_json::from_slice(line).unwrap();
    let notes: Value = serde_json::from_str(header["notes"].as_str().unwrap_or("[]")).unwrap();
    let setup = |known: &Value| {
        let setup = &known["setup"];
        let drafter = setup["drafter"].as_str().unwrap().trim_end_matches(", at most 8 tokens");
        (drafter.to_owned(), setup["slots"].as_u64().unwrap())
    };
    notes.as_array().unwrap().iter().filter(|known| known.get(what).is_some()).map(setup).collect()
}

/// Those whose drafts are known.
fn setups(file: &Path) -> Vec<(String, u64)> {
    setups_with("lessons", file)
}

#[test]
fn what_reading_ahead_gains_is_kept_by_setup_whether_or_not_anything_is_drafted() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("demo.stats");
    let model = local("demo/target.gguf");
    let none = |slots| ("none".to_owned(), slots);
    let tokens = |more: &[&str]| {
        let flags = [&["--stats-file", file.to_str().unwrap()], more].concat();
        report(&run_for("96", &model, &flags))["tokens"].clone()
    };
    let first = tokens(&["--draft", "none", "--slots", "64"]);
    // A disk that is busy all the time leaves nothing to compare.
    let noted = setups_with("prefetch", &file);
    assert!(noted.is_empty() || noted == [none(64)], "{noted:?}");
    assert_eq!(tokens(&["--draft", "none", "--slots", "64"]), first, "begun with it");
    assert_eq!(tokens(&["--draft", "none", "--slots", "48"]), first);
    let noted = setups_with("prefetch", &file);
    assert!(noted.iter().all(|noted| [none(48), none(64)].contains(noted)), "{noted:?}");
    // Nothing to be found out: what is there stays.
    assert_eq!(tokens(&["--draft", "none", "--slots", "64", "--prefetch", "on"]), first);
    assert_eq!(setups_with("prefetch", &file), noted);
    assert!(setups(&file).is_empty(), "nothing was drafted");
}

#[test]
fn what_drafts_cost_is_kept_by_setup_and_the_text_is_the_same_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("demo.stats");
    let (model, draft) = (local("demo/target.gguf"), local("demo/draft.gguf"));
    let flags = |more: &[&'static str]| {
        let given = ["--stats-file", file.to_str().unwrap()];
        given.iter().chain(more).map(|word| (*word).to_owned()).collect::<Vec<_>>()
    };
    let tokens = |flags: &[String]| {
        let words: Vec<&str> = flags.iter().map(String::as_str).collect();
        report(&run_for("96", &model, &words))["tokens"].clone()
    };
    let plain = tokens(&flags(&["--draft", "none", "--slots", "64"]));
    assert!(setups(&file).is_empty(), "nothing was drafted");
    let auto = flags(&["--draft", "ngram", "--slots", "64"]);
    assert_eq!(tokens(&auto), plain);
    let ngram = |slots| ("ngram".to_owned(), slots);
    assert_eq!(setups(&file), [ngram(64)]);
    assert_eq!(tokens(&auto), plain, "begun with lessons");
    assert_eq!(tokens(&flags(&["--draft", "ngram", "--slots", "62"])), plain);
    assert_eq!(setups(&file), [ngram(62)], "about as many slots are one setup");
    assert_eq!(tokens(&flags(&["--draft", "ngram", "--slots", "32"])), plain);
    let by_model = [flags(&["--slots", "64", "--draft"]), vec![draft.to_str().unwrap().to_owned()]].concat();
    assert_eq!(tokens(&by_model), plain);
    let all = setups(&file);
    // A machine that is busy may keep a draft model from being asked at all.
    let by_model = all.strip_suffix(&[ngram(32), ngram(62)]).unwrap();
    assert!(by_model.iter().all(|(drafter, _)| drafter.contains("draft.gguf (")), "{all:?}");
    // Nothing to be learned: a fixed length, no draft. What is there stays.
    let fixed = ["--draft", "ngram", "--draft-len", "2", "--slots", "62", "--prefetch", "off"];
    assert_eq!(tokens(&flags(&fixed)), plain);
    assert_eq!(tokens(&flags(&["--draft", "none"])), plain);
    assert_eq!(setups(&file), all);
    // Nor of drafts where reading ahead is.
    assert_eq!(tokens(&flags(&[&fixed[..6], &["--prefetch", "auto"]].concat())), plain);
    assert_eq!(setups(&file), all);
}

#[test]
fn lessons_that_cannot_be_are_said_so_and_counts_are_used_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("odd.stats");
    let model = local("demo/target.gguf");
    let flags = ["--stats-file", file.to_str().unwrap(), "--draft", "ngram"];
    let first = report(&run_for("64", &model, &flags));
    for (notes, reason) in [
        ("what is this", "expected value"),
        (r#"[{"setup":{"drafter":"ngram"},"lessons":{}}]"#, "missing field"),
        (
            r#"[{"setup":{"drafter":"x","machine":"y","slots":1},"prefetch":{"gain":-2.0,"error":0.1}}]"#,
            "reading ahead that gains -2",
        ),
        (
            r#"[{"setup":{"drafter":"x","machine":"y","slots":1},"lessons":{"passes":[],"drafts":[],"catch_up_s":null,
              "survival":{"offered":[],"stands":[],"all":{"value":0,"weight":0}},"calibration":{"sources":[]}}}]"#,
            "lessons of an earlier run: nothing of plain passes",
        ),
    ] {
        // As a program would write it that knows other notes: whole, and with its checksum.
        let bytes = std::fs::read(&file).unwrap();
        let line = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        let mut header: Value = serde_json::from_slice(&bytes[..line]).unwrap();
        let body = &bytes[line + 1..];
        header["notes"] = notes.into();
        let content = [body, notes.as_bytes()].concat();
        header["body_xxh3"] = format!("{:016x}", drafthorse_offload::checksum(&content)).into();
        std::fs::write(&file, [header.to_string().as_bytes(), b"\n", body].concat()).unwrap();
        let output = run_for("64", &model, &flags);
        assert_eq!(report(&output)["tokens"], first["tokens"]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains("odd.stats") && stderr.contains(reason), "{stderr}");
        assert!(stderr.contains("measured anew") && !stderr.contains("starting without"), "{stderr}");
        assert_eq!(setups(&file).len(), 1, "written anew");
    }
}

#[test]
fn a_damaged_file_or_one_of_another_model_is_said_so_and_written_anew() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("any.stats");
    let flags = ["--stats-file", file.to_str().unwrap()];
    report(&run(&golden("mixtral"), &flags));
    for damage in [false, true] {
        if damage {
            std::fs::write(&file, b"not a file of counts").unwrap();
        }
        let output = run(&golden("qwen3moe"), &flags);
        report(&output);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains("any.stats") && stderr.contains("starting without it"), "{stderr}");
        let again = run(&golden("qwen3moe"), &flags);
        assert!(!String::from_utf8_lossy(&again.stderr).contains("any.stats"), "now it is this model's");
    }
}

#[test]
fn a_stats_file_that_could_not_be_used_is_refused_with_the_reason() {
    let model = local("demo/target.gguf");
    for (model, flags, code, reason) in [
        (&model, &["--stats-file", "/nonexistent/x.stats"][..], 1, "/nonexistent"),
        (&model, &["--stats-file", "x.stats", "--policy", "lru"], 2, "lru keeps no counts"),
        (&golden("llama"), &["--stats-file", "x.stats"], 2, "no routed experts"),
    ] {
        let output = run(model, flags);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(reason) && output.stdout.is_empty(), "{stderr}");
    }
}
