//! The program ended from outside in mid-text (kill -9, Ctrl-C), or its drafter lost: what was said is not
//! lost, no file is half written, and the next start is like any other.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::Duration;

use common::local;
use common::synthetic::Mixture;
use drafthorse_runtime::gguf::Gguf;
use serde_json::Value;
use tempfile::TempDir;

/// Bytes of text after which the program is ended: far from the end, and less than any buffer would hold.
const SAID: usize = 100;

/// Tokens of a text far longer than is waited for.
const LONG: &str = "1900";

/// `run` of the demo pair: a drawn text of so many tokens.
fn run(tokens: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drafthorse"));
    command.arg("run").arg(local("demo/target.gguf")).arg("--draft").arg(local("demo/draft.gguf"));
    command.args(["-p", "The old king said", "-n", tokens, "--ignore-eos", "--temp", "0.8", "--seed", "5"]);
    command.args(["--memory", "1GiB", "--context", "2048", "--threads", "1", "--policy", "lfu"]).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The first bytes of a child's text: they have to come while it is still at it.
fn hear(child: &mut Child) -> Vec<u8> {
    let mut said = vec![0; SAID];
    child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    said
}

/// Reads the child's messages up to the line that contains `words`; the rest of them.
fn wait_for(words: &str, child: &mut Child) -> BufReader<ChildStderr> {
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let is_there = log.by_ref().lines().map(Result::unwrap).any(|line| line.contains(words));
    assert!(is_there, "it ended without: {words}");
    log
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// Ends the child with `name` after its first bytes: all it said, and what is left of it.
fn ended(mut child: Child, name: &str) -> (Vec<u8>, Output) {
    let mut said = hear(&mut child);
    signal(&child, name);
    let output = child.wait_with_output().unwrap();
    said.extend(&output.stdout);
    (said, output)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn names(folder: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(folder.path()).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Asserts that a text is what a run says that nobody ends, as far as that is run here.
fn is_as_undisturbed(text: &[u8]) {
    let output = run("400", &["--no-stats"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let whole = output.stdout.strip_suffix(b"\n").unwrap();
    let shown = String::from_utf8_lossy(text);
    assert!(whole.starts_with(text) || text.starts_with(whole), "{shown}");
}

#[test]
fn a_run_killed_in_mid_text_has_said_what_it_said_and_left_its_files_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (stats, trace) = (path("counts.stats"), path("t.moetrace"));
    let files = ["--stats-file", &stats, "--record-trace", &trace];
    let first = run("60", &files).output().unwrap();
    assert!(first.status.success(), "{}", stderr(&first));
    let read = || [&stats, &trace].map(|file| fs::read(file).unwrap());
    let before = read();

    // Seconds long and half a kilobyte: had the text stood in a buffer, it would have come with the end.
    let slowly = ["--simulate-disk", "64MiB/s,100us", "--slots", "8"];
    let (said, output) = ended(run("150", &[&files[..], &slowly].concat()).spawn().unwrap(), "-KILL");
    assert_eq!(output.status.signal(), Some(9), "it was in mid-text: {}", stderr(&output));
    is_as_undisturbed(&said);
    assert!(read() == before, "files of the run before are as they were");
    assert_eq!(names(&folder), ["counts.stats", "t.moetrace"]);

    // Had it been killed while it wrote: the next run neither takes these for its files nor minds them.
    for name in ["counts.stats.4242.tmp", "t.moetrace.part"] {
        fs::write(path(name), "half").unwrap();
    }
    let which = || fs::metadata(&stats).unwrap().ino();
    let old = which();
    let next = run("60", &[&files[..], &["--json"]].concat()).output().unwrap();
    assert!(next.status.success(), "{}", stderr(&next));
    assert!(!stderr(&next).contains("starting without"), "counts were taken over: {}", stderr(&next));
    let report: Value = serde_json::from_slice(&next.stdout).unwrap();
    assert!(String::from_utf8(first.stdout).unwrap().starts_with(report["text"].as_str().unwrap()));
    assert!(!Path::new(&path("t.moetrace.part")).exists());
    // Not its bytes: the same text in the same passes leaves the same shares behind, however often it is counted.
    assert_ne!(which(), old, "counts were written anew, beside the old ones");
    assert!(read()[1] == before[1], "the same was routed");
}

#[test]
fn ctrl_c_in_mid_text_ends_it_after_the_step_and_says_what_it_cost() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (stats, trace) = (path("counts.stats"), path("t.moetrace"));
    let child = run(LONG, &["--stats-file", &stats, "--record-trace", &trace]).spawn().unwrap();
    let (said, output) = ended(child, "-INT");
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "the text up to here is a result: {message}");
    assert!(message.contains("speed     prompt") && message.contains("interrupted"), "{message}");
    is_as_undisturbed(said.strip_suffix(b"\n").unwrap());
    assert_eq!(names(&folder), ["counts.stats", "t.moetrace"], "what was learned is kept");
}

#[test]
fn ctrl_c_with_json_gives_the_whole_object() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("t.moetrace");
    let mut command = run(LONG, &["--json", "--verbose", "--record-trace", trace.to_str().unwrap()]);
    let mut child = command.spawn().unwrap();
    let log = wait_for("memory plan", &mut child);
    // It is the last thing before the text, of which nothing is shown until its end.
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, "-INT");
    let rest: Vec<_> = log.lines().map(Result::unwrap).collect();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{rest:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["finish_reason"], "interrupted");
    let (tokens, text) = (report["tokens"].as_array().unwrap(), report["text"].as_str().unwrap());
    assert_eq!(report["generated"].as_u64(), Some(tokens.len() as u64));
    is_as_undisturbed(text.as_bytes());
    assert_eq!(names(&folder), ["t.moetrace"]);
}

#[test]
fn a_tune_killed_while_measuring_leaves_no_settings_and_the_next_one_writes_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tuned.toml");
    let tune = |minutes: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_drafthorse"));
        command.arg("tune").arg(local("demo/target.gguf")).args(["--minutes", minutes, "--threads", "1"]);
        command.args(["--memory", "40MiB", "--context", "256", "--draft", "ngram", "-o"]).arg(&file);
        command.args(["--draft-len", "2", "--slots", "60", "--json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let mut child = tune("30").spawn().unwrap();
    let _log = wait_for("round 1", &mut child);
    signal(&child, "-KILL");
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_eq!(names(&folder), [] as [&str; 0], "whole or not at all");

    // Had it been killed while it wrote.
    fs::write(folder.path().join("tuned.toml.4242.tmp"), "[model]\npath = \"ha").unwrap();
    let output = tune("0.05").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let written: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
    assert_eq!(written["offload"]["slots"].as_integer(), Some(60));
}

/// A mixture on a disk so slow that its experts come in over seconds, drafted for by a copy of itself that is
/// cut down to its dense part when the first token is out.
#[test]
fn a_drafter_that_fails_in_mid_text_is_told_of_in_one_line_and_the_text_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (target, draft) = (path("target.gguf"), path("draft.gguf"));
    Mixture { width: 64, inner: 256, experts: 48, blocks: 4, unsupported: None }.write(Path::new(&target));
    fs::copy(&target, &draft).unwrap();
    let drafted = |draft: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_drafthorse"));
        command.args(["run", &target, "--tokens", "5,6,7,8", "-n", "60", "--memory", "1GiB"]);
        command.args(["--context", "128", "--threads", "1", "--draft", draft, "--draft-len", "3"]);
        command.args(["--temp", "1.5", "--seed", "3"]).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let plain = drafted("none").output().unwrap();
    assert!(plain.status.success(), "{}", stderr(&plain));

    let mut child = drafted(&draft).args(["--simulate-disk", "200MiB/s,2ms"]).spawn().unwrap();
    let mut first = [0; 1];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let gguf = Gguf::open(Path::new(&target)).unwrap();
    let experts = gguf.tensors.iter().filter(|info| info.name.contains("_exps."));
    let cut = experts.map(|info| info.offset).min().unwrap();
    fs::OpenOptions::new().write(true).open(&draft).unwrap().set_len(cut).unwrap();
    let output = child.wait_with_output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{message}");
    assert_eq!([&first[..], &output.stdout].concat(), plain.stdout, "{message}");
    let lines: Vec<&str> = message.lines().filter(|line| line.starts_with("drafthorse: ")).collect();
    let [line] = lines.iter().filter(|line| line.contains("put away")).collect::<Vec<_>>()[..] else {
        unreachable!("one line: {message}")
    };
    assert!(
        line.contains("the model drafter failed and was put away") && line.contains("draft.gguf"),
        "{line}"
    );
    assert!(message.contains("draft     off: the model drafter failed"), "{message}");
}
