//! `--stats-file`: what one run wanted is there at the start of the next, and never changes the text.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::{golden, local};
use serde_json::Value;

fn run(model: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_drafthorse"))
        .arg("run")
        .arg(model)
        .args(["--tokens", "11,12,13,14", "-n", "32", "--ignore-eos", "--json", "--memory", "1GiB"])
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
