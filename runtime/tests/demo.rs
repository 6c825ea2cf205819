//! The main job on the demo pair, through the program itself: a budget that holds a quarter of the
//! experts gives the text of the run with everything resident, drafted or not, and stays inside it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::process::Command;

use common::local;
use serde_json::Value;

const PROMPT: &str = "The old king looked at his daughter and said";

/// A quarter of the demo target's 128 experts.
const QUARTER: usize = 32;

fn run(arguments: &[&str]) -> Value {
    run_for("48", arguments)
}

fn run_for(tokens: &str, arguments: &[&str]) -> Value {
    let target = local("demo/target.gguf");
    let output = Command::new(env!("CARGO_BIN_EXE_drafthorse"))
        .arg("run")
        .arg(target)
        .args(["-p", PROMPT, "-n", tokens, "--context", "256"])
        .args(["--ignore-eos", "--json", "--threads", "2"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The smallest budget in whole MiB that holds a quarter of the experts beside the draft: what the
/// refusal of a smaller one says would do.
fn quarter_budget() -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_drafthorse"))
        .arg("run")
        .arg(local("demo/target.gguf"))
        .args(["-p", "x", "--context", "256", "--threads", "2", "--memory", "4MiB"])
        .args(["--draft", local("demo/draft.gguf").to_str().unwrap(), "--slots", &QUARTER.to_string()])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let (_, budget) = stderr.split_once("would do: ").expect("a refusal names a budget");
    budget.trim().to_owned()
}

#[test]
fn a_quarter_of_the_experts_gives_the_text_of_all_of_them_at_every_draft_length() {
    let draft = local("demo/draft.gguf");
    let draft = draft.to_str().unwrap();
    let quarter = QUARTER.to_string();
    for temperature in ["0", "0.8"] {
        let sampling = ["--temp", temperature, "--seed", "7"];
        let resident = run(&[&sampling[..], &["--memory", "1GiB"]].concat());
        assert_eq!(resident["offload"]["slots"], resident["offload"]["experts_total"]);
        let offloaded = ["--memory", "1GiB", "--slots", &quarter];
        let mut runs = vec![run(&[&sampling[..], &offloaded].concat())];
        for drafter in [draft, "ngram"] {
            for draft_len in ["1", "4", "8", "auto"] {
                let drafted = ["--draft", drafter, "--draft-len", draft_len];
                runs.push(run(&[&sampling[..], &offloaded, &drafted].concat()));
            }
        }
        for drafted in runs {
            assert_eq!(drafted["tokens"], resident["tokens"], "temperature {temperature}");
            assert_eq!(drafted["text"], resident["text"]);
            assert_eq!(drafted["offload"]["slots"], QUARTER);
            assert!(drafted["offload"]["misses"].as_u64().unwrap() > QUARTER as u64, "experts were streamed");
        }
    }
}

/// The prompt's ids followed by a run's.
fn script(report: &Value) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_drafthorse"))
        .arg("tokenize")
        .arg(local("demo/target.gguf"))
        .args(["-p", PROMPT, "--json"])
        .output()
        .unwrap();
    let prompt: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ids = |list: &Value| list.as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>();
    [ids(&prompt["ids"]), ids(&report["tokens"])].concat().join(" ")
}

#[test]
fn drafters_without_a_model_and_chains_of_them_leave_the_text_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let draft = local("demo/draft.gguf");
    let draft = draft.to_str().unwrap();
    for temperature in ["0", "0.8"] {
        let sampling = ["--temp", temperature, "--seed", "7", "--memory", "1GiB"];
        let plain = run(&sampling);
        let path = folder.path().join(format!("{temperature}.ids"));
        std::fs::write(&path, script(&plain)).unwrap();
        let script = |settings: &str| format!("script:{}{settings}", path.display());
        let of = |drafter: &str, draft_len: &str| {
            run(&[&sampling[..], &["--draft", drafter, "--draft-len", draft_len]].concat())
        };
        for drafter in [
            "suffix".to_owned(),
            format!("ngram,{draft}"),
            format!("suffix,ngram,{draft}"),
            script(",accept=0.6,us=200,seed=3,confidence=split"),
            format!("{},suffix", script(",accept=0")),
        ] {
            for draft_len in ["1", "6", "auto"] {
                let report = of(&drafter, draft_len);
                assert_eq!(report["tokens"], plain["tokens"], "{drafter}, {draft_len}, {temperature}");
            }
        }
        let told = of(&script(""), "5");
        let (proposed, accepted) = (&told["speculation"]["proposed"], &told["speculation"]["accepted"]);
        assert!(
            proposed == accepted && accepted.as_u64() > Some(35),
            "right always: {}",
            told["speculation"]
        );
        assert_eq!(of(&script(",accept=0"), "5")["speculation"]["accepted"], 0, "wrong always");
    }
}

#[test]
fn the_draft_model_is_accepted_often_enough_to_matter() {
    let draft = local("demo/draft.gguf");
    let arguments = ["--memory", "1GiB", "--draft", draft.to_str().unwrap(), "--draft-len", "4"];
    let report = run(&[&arguments[..], &["--temp", "0"]].concat());
    let speculation = &report["speculation"];
    assert!(speculation["accepted_per_pass"].as_f64().unwrap() > 0.5, "{speculation}");
    assert!(speculation["target_passes"].as_u64().unwrap() < 40, "48 tokens in fewer passes");
}

#[test]
fn peak_memory_stays_under_a_budget_that_holds_a_quarter_of_the_experts() {
    let draft = local("demo/draft.gguf");
    let budget = quarter_budget();
    let report = run(&["--memory", &budget, "--draft", draft.to_str().unwrap(), "--draft-len", "4"]);
    let memory = &report["memory"];
    let (peak, limit) =
        (memory["peak_rss_bytes"].as_u64().unwrap(), memory["budget_bytes"].as_u64().unwrap());
    assert!(peak <= limit, "{memory}");
    let slots = report["offload"]["slots"].as_u64().unwrap();
    // The budget named is whole MiB, with room for what a process cannot know of itself: up to 2 MiB, 18 slots.
    assert!(
        (QUARTER as u64..=QUARTER as u64 + 24).contains(&slots),
        "about a quarter of the experts fits: {slots}"
    );
    assert!(report["offload"]["bytes_read"].as_u64().unwrap() > 0);
}

#[test]
fn a_recorded_trace_is_the_routing_of_the_text_whatever_was_drafted() {
    let folder = tempfile::tempdir().unwrap();
    let draft = local("demo/draft.gguf");
    let record = |name: &str, arguments: &[&str]| {
        let path = folder.path().join(name);
        let trace = ["--record-trace", path.to_str().unwrap(), "--memory", "1GiB"];
        let report = run(&[&trace[..], arguments].concat());
        (std::fs::read(path).unwrap(), report)
    };
    let (plain, report) = record("plain.moetrace", &[]);
    let (drafted, _) = record(
        "drafted.moetrace",
        &["--draft", draft.to_str().unwrap(), "--draft-len", "4", "--slots", "32"],
    );
    assert_eq!(plain, drafted, "rows of rejected drafts are not part of it");
    let trace = drafthorse_offload::Trace::parse(&plain).unwrap();
    let rows = report["prompt_tokens"].as_u64().unwrap() + report["generated"].as_u64().unwrap() - 1;
    assert_eq!(trace.header().n_tokens as u64, rows, "every token that was an input has its row");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing unfinished is left behind");
}

#[test]
fn a_trace_that_cannot_be_written_is_refused_before_the_text() {
    let output = Command::new(env!("CARGO_BIN_EXE_drafthorse"))
        .args(["run", local("demo/target.gguf").to_str().unwrap(), "-p", "The", "-n", "4"])
        .args(["--memory", "1GiB", "--record-trace", "/nonexistent/trace.moetrace"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty(), "no text was generated");
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/trace.moetrace"));
}

#[test]
fn a_simulated_disk_takes_its_time_is_named_and_changes_no_text() {
    let slots = ["--memory", "1GiB", "--slots", "32", "--prefetch", "off"];
    let own = run_for("12", &slots);
    assert!(own["offload"]["simulated_disk"].is_null());
    assert_eq!(own["offload"]["simulated_late_reads"], 0);
    let slow = run_for("12", &[&slots[..], &["--simulate-disk", "20MB/s,1ms"]].concat());
    assert_eq!(slow["tokens"], own["tokens"]);
    let offload = &slow["offload"];
    assert_eq!(offload["simulated_disk"], "20 MB/s, 1000 us");
    assert_eq!(offload["bytes_read"], own["offload"]["bytes_read"]);
    // The bytes took at least their time on that disk.
    let took =
        ["prefill_s", "decode_s"].map(|key| slow["timings"][key].as_f64().unwrap()).iter().sum::<f64>();
    let bytes = offload["bytes_read"].as_f64().unwrap();
    assert!(took >= bytes / 20e6, "{bytes} bytes in {took} s");
}

#[test]
fn lookups_are_compared_with_a_text_that_they_do_not_help_and_leave_it_as_it_is() {
    // Two rows bring half as many experts again, each from a slow disk, and of prose little stands: drafting is off.
    let slow =
        ["--memory", "1GiB", "--slots", "13", "--simulate-disk", "0.5GiB/s,80us", "--draft-len", "auto"];
    let text = |arguments: &[&str]| run_for("120", &[&slow[..], arguments].concat());
    let watched = |report: &Value| report["speculation"]["explanation"]["watched"].as_u64().unwrap();
    for (temperature, rule) in [("0", "coupled"), ("0.8", "coupled"), ("0.8", "block")] {
        let sampling = ["--temp", temperature, "--seed", "7", "--verify", rule];
        let drafted = text(&[&sampling[..], &["--draft", "ngram"]].concat());
        match rule {
            "coupled" => {
                assert_eq!(drafted["tokens"], text(&sampling)["tokens"]);
                assert!(watched(&drafted) > 0, "{}", drafted["speculation"]);
            }
            _ => assert_eq!(watched(&drafted), 0, "what is equal is not what would have stood"),
        }
    }
    let chain = text(&["--temp", "0", "--draft", &format!("ngram,{}", local("demo/draft.gguf").display())]);
    assert_eq!(watched(&chain), 0, "a draft model takes its time");
}
