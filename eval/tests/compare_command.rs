//! `drafthorse-eval compare` with engines that are shell scripts: turns, table, refusals. No root.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A tiny model and scripts that pretend to run it.
struct Bench {
    folder: TempDir,
}

/// A pass as the scripts print it; the seconds are arguments of the test.
fn pass(pass: usize, tokens: usize, seconds: &str) -> String {
    format!("{{\"pass\":{pass},\"tokens\":{tokens},\"seconds\":{seconds},\"read_bytes\":4000000,\"next\":7}}")
}

impl Bench {
    fn new() -> Bench {
        let folder = TempDir::new().unwrap();
        let model = folder.path().join("m.gguf");
        let status = Command::new(env!("CARGO_BIN_EXE_drafthorse-eval"))
            .args(["synth", "--shape", "tiny-mixtral", "--quant", "q4_0", "-o"])
            .arg(&model)
            .output()
            .unwrap()
            .status;
        assert!(status.success());
        Bench { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A program that notes that it ran, with its arguments, and then does `body`.
    fn script(&self, name: &str, body: &str) -> String {
        let log = self.text("log");
        let text = format!("#!/bin/sh\necho \"{name} $*\" >>'{log}'\n{body}\n");
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
        self.text(name)
    }

    /// Ours takes 1 s and then 0.5 s for 4 ids, the peer 4 s and 2 s.
    fn engines(&self) -> (String, String) {
        let ours = format!("echo '{{\"passes\":[{},{}]}}'", pass(1, 4, "1.0"), pass(2, 4, "0.5"));
        let peer = format!("echo '{}'\necho '{}'", pass(1, 4, "4.0"), pass(2, 4, "2.0"));
        let peer = self.script("peer", &peer);
        (self.script("ours", &ours), format!("{peer} -m {{model}} -i {{ids}} -t {{threads}} -p {{passes}}"))
    }

    fn compare(&self, ours: &str, peer: &str, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_drafthorse-eval"));
        command.args(["compare", "--model"]).arg(self.path("m.gguf"));
        command.args(["--ours", ours, "--peer", peer, "--no-cgroup"]).args(more);
        command.output().unwrap()
    }

    fn json(&self, ours: &str, peer: &str, more: &[&str]) -> Value {
        let output = self.compare(ours, peer, &[more, &["--json"]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Who ran, in order.
    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn the_engines_take_turns_with_the_same_ids_and_their_own_settings() {
    let bench = Bench::new();
    let (ours, peer) = bench.engines();
    let more = [
        "--limit",
        "1/2,4MiB",
        "--ids",
        "4",
        "--repeat",
        "2",
        "--threads",
        "3",
        "--ours-args",
        "--policy lru",
    ];
    bench.json(&ours, &peer, &more);
    let log = bench.log();
    let who: Vec<&str> = log.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(who, ["ours", "peer", "peer", "ours", "ours", "peer", "peer", "ours"]);
    let half = fs::metadata(bench.path("m.gguf")).unwrap().len() / 2 / 4096 * 4096;
    let model = bench.text("m.gguf");
    assert!(log[0].contains(&format!("bench {model} --ids")), "{}", log[0]);
    assert!(
        log[0].contains(&format!("--memory {half} --threads 3 --context 256 --policy lru")),
        "{}",
        log[0]
    );
    assert!(log[4].contains(&format!("--memory {} ", 4 << 20)), "{}", log[4]);
    assert!(log[1].contains(&format!("-m {model} -i ")) && log[1].ends_with("-t 3 -p 2"), "{}", log[1]);
    // The file of ids is gone.
    let ids = log[1].split(' ').nth(4).unwrap();
    assert!(!Path::new(ids).exists(), "{ids}");
}

#[test]
fn the_table_has_medians_and_ratios_of_each_pass() {
    let bench = Bench::new();
    let (ours, peer) = bench.engines();
    let more = ["--limit", "1/2", "--ids", "4", "--repeat", "3"];
    let report = bench.json(&ours, &peer, &more);
    let rows = report["rows"].as_array().unwrap();
    let column = |row: usize, side: &str| rows[row][side]["tokens_per_s"]["median"].as_f64().unwrap();
    assert_eq!((column(0, "ours"), column(0, "peer")), (4.0, 1.0));
    assert_eq!((column(1, "ours"), column(1, "peer")), (8.0, 2.0));
    assert_eq!(rows[0]["ratio"].as_f64(), Some(4.0));
    assert_eq!(rows[0]["peer"]["read_bytes_per_token"].as_f64(), Some(1e6));
    assert!(report["setup"]["cgroup"].is_null() && report["runs"][0]["peak_bytes"].is_null());
    assert_eq!(report["runs"].as_array().unwrap().len(), 6);

    let file = bench.text("table.md");
    let output = bench.compare(&ours, &peer, &[&more[..], &["--markdown", &file]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    let markdown = fs::read_to_string(file).unwrap();
    for shown in [&text, &markdown] {
        assert!(shown.contains("4.000 (4.000..4.000)") && shown.contains("4.00x the peer"), "{shown}");
        // Without a cgroup and without dropping caches, the report says so.
        assert!(shown.contains("NO cgroup") && shown.contains("NOT dropped"), "{shown}");
    }
    assert!(markdown.contains("compare --model") && markdown.contains(" UTC"), "{markdown}");
}

#[test]
fn an_engine_that_fails_is_part_of_the_result() {
    let bench = Bench::new();
    let (ours, _) = bench.engines();
    let killed = bench.script("killed", "kill -9 $$") + " {model} {ids}";
    let report = bench.json(&ours, &killed, &["--limit", "1/2", "--ids", "4", "--repeat", "1"]);
    assert!(report["rows"][0]["ratio"].is_null());
    assert_eq!(report["rows"][0]["peer"]["failed"], 1);
    assert!(report["runs"][1]["failure"].as_str().unwrap().contains("signal 9"));

    let other = format!("echo '{}'", pass(1, 5, "1.0"));
    let other = bench.script("other", &other) + " {model} {ids}";
    let report = bench.json(&ours, &other, &["--limit", "1/2", "--ids", "4", "--repeat", "1"]);
    assert!(report["runs"][1]["failure"].as_str().unwrap().contains("1 passes were reported"));

    let broken = bench.script("broken", "echo no memory >&2; exit 4");
    let output = bench.compare(&broken, &killed, &["--limit", "1/2", "--ids", "4", "--repeat", "1"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.contains("exit code 4: no memory") && message.contains("no run gave numbers"),
        "{message}"
    );
}

#[test]
fn engines_that_end_on_different_tokens_are_noticed() {
    let bench = Bench::new();
    let (ours, _) = bench.engines();
    let other = [pass(1, 4, "1.0"), pass(2, 4, "1.0")].map(|line| line.replace(":7}", ":8}"));
    let other = bench.script("other", &format!("echo '{}'; echo '{}'", other[0], other[1]));
    let more = ["--limit", "1/2", "--ids", "4", "--repeat", "1"];
    let report = bench.json(&ours, &(other + " {model} {ids}"), &more);
    assert!(report["notes"][0].as_str().unwrap().contains("7 for ours and 8 for the peer"), "{report}");
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_runs() {
    let bench = Bench::new();
    let (ours, peer) = bench.engines();
    fs::write(bench.path("ids"), "1 2 512").unwrap();
    let ids_file = bench.text("ids");
    let good = ["--limit", "1/2", "--ids", "4"];
    let refusals: [(&str, &str, &[&str], &str); 10] = [
        ("no-such-program", &peer, &good, "no-such-program"),
        (&ours, "no-such-peer {model} {ids}", &good, "no-such-peer"),
        (&ours, "sh {model}", &good, "{ids}"),
        (&ours, "sh {model} {ids} {speed}", &good, "{speed}"),
        (&ours, &peer, &["--limit", "half", "--ids", "4"], "--limit"),
        (&ours, &peer, &["--limit", "1/2", "--ids", "0"], "--ids 0"),
        (&ours, &peer, &["--limit", "1/2", "--ids", &ids_file], "512 is outside the vocabulary of 512"),
        (&ours, &peer, &["--limit", "1/2", "--ids", "no-such-file"], "no-such-file"),
        (&ours, &peer, &["--limit", "1/2", "--ids", "4", "--repeat", "0"], "--repeat"),
        (&ours, &peer, &["--limit", "1/2", "--ids", "4", "--read-ahead", "127"], "--read-ahead 127"),
    ];
    for (ours, peer, more, reason) in refusals {
        let output = bench.compare(ours, peer, more);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(reason), "{message}");
    }
    assert!(bench.log().is_empty(), "{:?}", bench.log());
}
