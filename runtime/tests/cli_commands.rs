//! The program from outside: what a script sees of stdout, stderr and exit codes.
//!
//! Needs no weights beyond the demo pair's: a vocabulary-only GGUF is written by hand where a file is needed.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

fn drafthorse(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drafthorse"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs to the end with `stdin` as its input.
fn run(args: &[&str], stdin: &str) -> Output {
    let mut command = drafthorse(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that refuses its arguments does not read: a closed pipe is fine here.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

/// Asserts an exit code, one line of error that starts with our name, and a silent stdout.
fn refused(args: &[&str], code: i32) -> String {
    let output = run(args, "");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?} wrote to stdout");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("drafthorse: "), "{args:?}: {stderr}");
    stderr
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A folder with files in it.
struct Files(TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn add(&self, name: &str, bytes: &[u8]) -> String {
        let path: PathBuf = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// A GGUF of metadata alone: an SPM vocabulary of three specials, 256 bytes and `pieces`.
fn vocabulary(pieces: &[&str]) -> Vec<u8> {
    const STRING: u32 = 8;
    let specials = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let tokens: Vec<String> =
        specials.into_iter().chain(bytes).chain(pieces.iter().map(|p| (*p).to_owned())).collect();
    let kinds = (0..tokens.len()).map(|id| {
        if id == 0 {
            2
        } else if id < 3 {
            3
        } else if id < 259 {
            6
        } else {
            1
        }
    });
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend(0u64.to_le_bytes());
    out.extend(5u64.to_le_bytes());
    for (key, value) in [("general.architecture", "llama"), ("tokenizer.ggml.model", "llama")] {
        string(&mut out, key);
        out.extend(STRING.to_le_bytes());
        string(&mut out, value);
    }
    array(&mut out, ("tokenizer.ggml.tokens", STRING), tokens.len());
    tokens.iter().for_each(|token| string(&mut out, token));
    array(&mut out, ("tokenizer.ggml.scores", 6), tokens.len());
    (0..tokens.len()).for_each(|id| out.extend((-(id as f32)).to_le_bytes()));
    array(&mut out, ("tokenizer.ggml.token_type", 5), tokens.len());
    kinds.for_each(|kind: i32| out.extend(kind.to_le_bytes()));
    out
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn array(out: &mut Vec<u8>, (key, kind): (&str, u32), len: usize) {
    const ARRAY: u32 = 9;
    string(out, key);
    out.extend(ARRAY.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}

#[test]
fn a_command_line_that_makes_no_sense_exits_2() {
    for args in [
        &[][..],
        &["fly"],
        &["run", "--no-such-flag"],
        &["run", "m.gguf", "-p", "a", "--tokens", "1"],
        &["run", "m.gguf", "--tokens", "one"],
        &["logits", "m.gguf"],
        &["tokenize", "m.gguf"],
        &["run", "m.gguf", "--threads", "many"],
        &["run", "m.gguf", "--slice", "4", "--tokens", "1"],
        &["run", "m.gguf", "--slice", "4", "--json"],
        &["run", "m.gguf", "--slice", "0", "--json", "--tokens", "1"],
    ] {
        let output = run(args, "");
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    for args in [&["--help"][..], &["--version"], &["run", "--help"]] {
        let output = run(args, "");
        assert!(output.status.success() && output.stderr.is_empty() && !output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn settings_that_cannot_be_used_are_one_line_and_exit_2() {
    for (flags, part) in [
        (["--memory", "16G"], "--memory = \"16G\": "),
        (["--memory", "0GiB"], "zero bytes"),
        (["--memory", "99999999TiB"], "64 bits"),
        (["--policy", "mru"], "--policy = \"mru\": "),
        (["--slots", "0"], "--slots = 0: must be 1 to "),
        (["--temp", "1e9"], "--temp = "),
        (["--top-p", "0"], "--top-p = 0.0: must be above 0, at most 1"),
        (["--draft-len", "99"], "--draft-len = 99: must be 0 to 64"),
        (["-n", "0"], "-n = 0: must be 1 to "),
        (["--vram", "8G"], "--vram = \"8G\": "),
        (["--gpu", "abacus"], "expected one of cuda, emulated"),
        (["--config", "/no/such/file.toml"], "config file /no/such/file.toml: "),
    ] {
        let line = refused(&["run", "m.gguf", "-p", "a", flags[0], flags[1]], 2);
        assert!(line.contains(part), "{flags:?}: {line}");
    }
}

#[test]
fn a_config_file_with_a_bad_key_names_file_key_and_the_nearest_key() {
    let files = Files::new();
    let path = files.add("my.toml", b"[offload]\nio_thread = 3\n");
    let line = refused(&["run", "m.gguf", "-p", "a", "--config", &path], 2);
    assert_eq!(
        line,
        format!("drafthorse: {path}: unknown key offload.io_thread; did you mean offload.io_threads?\n")
    );
}

#[test]
fn a_model_that_is_missing_or_no_gguf_exits_3() {
    let files = Files::new();
    let missing = files.0.path().join("none.gguf").to_str().unwrap().to_owned();
    let garbage = files.add("garbage.gguf", b"this is no model file at all, only text");
    let truncated = files.add("truncated.gguf", &vocabulary(&[])[..200]);
    for model in [&missing, &garbage, &truncated] {
        for args in [
            &["run", model, "-p", "a"][..],
            &["logits", model, "--tokens", "1"],
            &["bench", model],
            &["tokenize", model, "-p", "a"],
            &["inspect", model],
        ] {
            let line = refused(args, 3);
            assert!(line.contains(Path::new(model).file_name().unwrap().to_str().unwrap()), "{line}");
        }
    }
}

#[test]
fn a_prompt_that_is_not_there_is_found_out_before_loading() {
    let line = refused(&["run", "no-model-is-opened.gguf"], 2);
    assert!(line.contains("the prompt is empty"), "{line}");
}

#[test]
fn a_vocabulary_is_enough_to_tokenize() {
    let files = Files::new();
    let model = files.add("vocab.gguf", &vocabulary(&["\u{2581}", "hi", "\u{2581}hi", "h", "i"]));
    let report = json(&run(&["tokenize", &model, "-p", "hi", "--json"], ""));
    assert_eq!(report, serde_json::json!({ "ids": [1, 261], "pieces": ["<s>", " hi"] }));
    let bare = json(&run(&["tokenize", &model, "-p", "-", "--no-special", "--json"], "hi\n"));
    assert_eq!(bare["ids"], serde_json::json!([261, 13]));
    let table = run(&["tokenize", &model, "-p", "hi"], "");
    assert_eq!(String::from_utf8(table.stdout).unwrap(), "      1  \"<s>\"\n    261  \" hi\"\n");
}

#[test]
fn what_a_file_without_weights_holds_is_described_and_why_it_does_not_run() {
    let files = Files::new();
    let model = files.add("vocab.gguf", &vocabulary(&["hi"]));
    let report = json(&run(&["inspect", &model, "--memory", "1GiB", "--json"], ""));
    assert_eq!(report["architecture"], "llama");
    assert_eq!(report["tensors"]["count"], 0);
    assert!(report["experts"].is_null() && report["outlook"]["plan"].is_null());
    assert!(report["outlook"]["refusal"].is_string());
    let page = run(&["inspect", &model], "");
    assert!(page.status.success());
    assert!(String::from_utf8(page.stdout).unwrap().contains("architecture    llama"));
}

#[test]
fn a_run_in_slices_waits_for_its_turns_and_counts_its_own_time_alone() {
    const PAUSE: Duration = Duration::from_millis(100);
    let words = [
        "run",
        "--tokens",
        "1,2,3",
        "-n",
        "9",
        "--ignore-eos",
        "--threads",
        "1",
        "--draft",
        "none",
        "--json",
    ];
    let whole = json(&drafthorse(&words).output().unwrap());

    let started = Instant::now();
    let mut command = drafthorse(&[&words[..], &["--slice", "4"]].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut turn, mut stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let mut waits = 0;
    let text = loop {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        if line != "\n" {
            break line;
        }
        waits += 1;
        std::thread::sleep(PAUSE);
        turn.write_all(b"\n").unwrap();
    };
    assert!(child.wait().unwrap().success());
    let sliced: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&sliced["tokens"], &sliced["text"]), (&whole["tokens"], &whole["text"]));
    assert_eq!(waits, 3, "after the prompt, and after four tokens and four more");
    let decode_s = sliced["timings"]["decode_s"].as_f64().unwrap();
    let own = started.elapsed() - waits * PAUSE;
    let seconds = |name: &str| sliced["timings"][name].as_f64().unwrap();
    let all_s = seconds("load_s") + seconds("prefill_s") + decode_s;
    assert!(0.0 < decode_s && all_s <= own.as_secs_f64(), "{all_s} s of {own:?}");
    assert_eq!(sliced["attribution"]["wall_s"], sliced["timings"]["decode_s"]);
    let rate = sliced["timings"]["decode_tps"].as_f64().unwrap();
    assert!((rate * decode_s - 8.0).abs() < 1e-6, "{rate} tok/s in {decode_s} s");

    // Whoever gave the turns is gone: it goes on to its end.
    let alone = json(&drafthorse(&[&words[..], &["--slice", "4"]].concat()).output().unwrap());
    assert_eq!(alone["tokens"], whole["tokens"]);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let files = Files::new();
    let model = files.add("vocab.gguf", &vocabulary(&["a"]));
    // Far more than a pipe holds, so that writing must fail.
    let text = files.add("long.txt", "word ".repeat(100_000).as_bytes());
    let mut command = drafthorse(&["tokenize", &model, "-p", "-"]);
    command.stdin(std::fs::File::open(text).unwrap()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}
