//! `drafthorse tune` from outside, on the demo pair: the file it writes loads, changes no text, stays
//! within the budget it was measured in; and what it must not do. Also the engine's part: other draft
//! lengths without loading again.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{ask, generate, golden, local, open, plain_options, tokens};
use drafthorse_runtime::api::{DraftSource, EngineOptions};
use drafthorse_scheduler::DraftLen;
use serde_json::Value;

fn drafthorse(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drafthorse"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn succeeded(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// `tune` of the demo pair into `file`.
fn tune(file: &Path, minutes: &str) -> Command {
    let mut command = drafthorse(&["tune", local("demo/target.gguf").to_str().unwrap(), "--json"]);
    command.args(["--draft", local("demo/draft.gguf").to_str().unwrap(), "-o", file.to_str().unwrap()]);
    command.args(["--memory", "40MiB", "--context", "256", "--minutes", minutes]);
    command
}

/// The ids of a drawn text under further arguments.
fn text(arguments: &[&str]) -> Value {
    let fixed = ["run", "-p", "The old king said", "-n", "40", "--ignore-eos", "--json"];
    let mut command = drafthorse(&fixed);
    succeeded(&command.args(["--temp", "0.8", "--seed", "5"]).args(arguments).output().unwrap())
}

#[test]
fn the_file_it_writes_loads_names_its_evidence_and_changes_no_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tuned.toml");
    let report = succeeded(&tune(&file, "0.2").output().unwrap());

    let names: Vec<&str> =
        report["stages"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names[0], "drafting");
    let cells = report["stages"][0]["cells"].as_array().unwrap();
    let of = |drafter: &str| cells.iter().filter(|cell| cell["drafter"] == drafter).count();
    assert_eq!((of("none"), of("ngram"), of("given")), (1, 5, 5));
    assert!(cells[0]["tok_s"]["median"].as_f64().unwrap() > 0.0, "the default is always run");
    let budget = report["budget_bytes"].as_u64().unwrap();
    assert_eq!(budget, 40 << 20);
    let peak = report["peak_rss_bytes"].as_u64().unwrap();
    assert!(peak > 0 && peak <= budget, "{peak} of {budget}");

    let written = std::fs::read_to_string(&file).unwrap();
    for part in
        ["# Measured by drafthorse", "# machine  ", "# drafting", "tok/s", "majflt", "# Not measured:"]
    {
        assert!(written.contains(part), "{part} in:\n{written}");
    }
    let table: toml::Table = written.parse().unwrap();
    assert_eq!(table["memory"]["budget"].as_str(), Some("40MiB"));
    assert!(Path::new(table["model"]["path"].as_str().unwrap()).is_absolute());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing unfinished is left behind");

    let target = local("demo/target.gguf");
    let plain = text(&[target.to_str().unwrap(), "--memory", "1GiB"]);
    let tuned = text(&["--config", file.to_str().unwrap()]);
    assert_eq!(tuned["tokens"], plain["tokens"]);
    assert_eq!(tuned["memory"]["budget_bytes"], budget);
    let speculates = report["chosen"]["drafter"] != "none";
    assert_eq!(tuned["speculation"]["off_reason"] != "no drafter was asked for", speculates, "{tuned}");
}

#[test]
fn a_file_that_exists_is_not_touched_without_force() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    std::fs::write(&file, "mine").unwrap();
    let output = tune(&file, "5").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{stderr}");
    assert!(stderr.contains("mine.toml: exists; --force replaces it"), "{stderr}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn flags_are_not_tuned_and_a_forced_file_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    std::fs::write(&file, "mine").unwrap();
    let mut command = tune(&file, "0.05");
    let fixed = ["--force", "--draft-len", "2", "--slots", "20", "--threads", "1", "--policy", "lru"];
    command.args(fixed).args(["--simulate-disk", "400MB/s,50us"]);
    let report = succeeded(&command.output().unwrap());
    assert_eq!(report["simulated_disk"], "400 MB/s, 50 us");
    let cells = report["stages"][0]["cells"].as_array().unwrap();
    assert!(cells.iter().all(|cell| cell["drafter"] == "none" || cell["draft_len"] == "2"), "{report}");
    assert!(cells.iter().all(|cell| cell["slots"] == 20 && cell["threads"] == 1));
    let skipped = report["not_measured"].to_string();
    assert!(skipped.contains("--slots was given") && skipped.contains("--threads was given"), "{skipped}");
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(written.contains("# disk     SIMULATED: 400 MB/s, 50 us"), "{written}");
    let table: toml::Table = written.parse().unwrap();
    assert!(table["offload"].get("simulate_disk").is_none(), "measured for it, not to be run at its pace");
    assert_eq!(table["offload"]["slots"].as_integer(), Some(20));
    assert_eq!(table["offload"]["policy"].as_str(), Some("lru"), "what else was set is kept");
}

#[test]
fn what_cannot_be_tuned_is_refused_with_the_codes_of_the_design() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.toml");
    let refused = |arguments: &[&str], code: i32, part: &str| {
        let output = tune(&file, "0.1").args(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(part) && output.stdout.is_empty(), "{stderr}");
        assert!(!file.exists());
    };
    refused(&["--record-trace", "t.moetrace"], 2, "--record-trace");
    refused(&["--slots", "1000"], 2, "1000 expert slots");
    let missing = drafthorse(&["tune", "/no/such.gguf", "-o", file.to_str().unwrap()]).output().unwrap();
    assert_eq!(missing.status.code(), Some(3));
    let small = drafthorse(&["tune", "--memory", "4MiB", "-o", file.to_str().unwrap()]).output().unwrap();
    assert_eq!(small.status.code(), Some(4), "{}", String::from_utf8_lossy(&small.stderr));
    let folderless = drafthorse(&["tune", "-o", "/no/such/folder/t.toml"]).output().unwrap();
    assert_eq!(folderless.status.code(), Some(1));
    assert!(!file.exists());
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_writes_nothing_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.toml");
    let mut child = tune(&file, "30").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("round 1")), "it has begun to measure");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(rest.last().unwrap().contains("interrupted: nothing was written"), "{rest:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_open_engine_takes_other_draft_lengths_and_the_text_stays() {
    let ngram = EngineOptions {
        draft: DraftSource::Ngram,
        draft_len: DraftLen::Auto,
        draft_len_max: 9,
        ..plain_options(&golden("qwen3moe"))
    };
    let mut engine = open(&ngram);
    // A text that repeats itself, so that something is found.
    let prompt: Vec<u32> = tokens(3, 12).into_iter().cycle().take(48).collect();
    let plain = generate(&mut open(&plain_options(&golden("qwen3moe"))), &prompt, &ask(24, 0.0)).tokens;
    for mode in
        [DraftLen::Fixed(0), DraftLen::Fixed(3), DraftLen::Auto, DraftLen::Fixed(9), DraftLen::Fixed(0)]
    {
        engine.set_draft_len(mode).unwrap();
        let generation = generate(&mut engine, &prompt, &ask(24, 0.0));
        assert_eq!(generation.tokens, plain, "{mode}");
        match mode {
            DraftLen::Fixed(0) => assert_eq!(generation.speculation.proposed, 0),
            DraftLen::Fixed(_) => assert!(generation.speculation.proposed > 0, "{mode}"),
            DraftLen::Auto => {}
        }
    }
    let error = engine.set_draft_len(DraftLen::Fixed(10)).unwrap_err();
    assert!(error.to_string().contains("opened for at most 9"), "{error}");
    assert_eq!(generate(&mut engine, &prompt, &ask(24, 0.0)).tokens, plain, "the refusal changed nothing");

    // Auto may plan the longest draft there is: an engine that was opened for less cannot.
    let mut short = open(&EngineOptions { draft_len: DraftLen::Fixed(8), ..ngram });
    let error = short.set_draft_len(DraftLen::Auto).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("draft length 9"), "{error}");
    assert!(error.to_string().contains("opened for at most 8"), "{error}");
    short.set_draft_len(DraftLen::Fixed(8)).unwrap();
    assert_eq!(generate(&mut short, &prompt, &ask(24, 0.0)).tokens, plain);
}

/// The same texts are drawn again and again: who looks tokens up would find the last measurement's.
#[test]
fn a_drafter_that_remembers_texts_does_not_find_an_earlier_measurement() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = drafthorse(&["tune", local("demo/target.gguf").to_str().unwrap(), "--json"]);
    command.arg("-o").arg(folder.path().join("t.toml"));
    command.args(["--draft", "suffix", "--draft-len", "4", "--slots", "60", "--threads", "1", "--seed", "5"]);
    command.args(["--memory", "60MiB", "--context", "256", "--minutes", "0.05"]);
    let report = succeeded(&command.output().unwrap());
    let cells = report["stages"][0]["cells"].as_array().unwrap();
    let given = cells.iter().find(|cell| cell["drafter"] == "given").unwrap();
    let accepted = given["accepted_per_pass"].as_f64().unwrap();
    // Of 4 tokens: a text that was said before is guessed whole.
    assert!(
        accepted < 1.5,
        "{accepted} of 4 tokens stand in a text that is drawn for the first time: {given}"
    );
}
