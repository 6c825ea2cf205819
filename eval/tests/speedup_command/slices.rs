//! Runs side by side.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::bench::{Bench, product, stderr};

/// An engine that goes on in three slices where it is asked to, and says each time who it is.
fn sliced(bench: &Bench, more: &str) -> String {
    let slices = "case \"$all\" in *'--slice 4') for at in 1 2 3; do echo; read -r turn || exit 1\n\
                  echo \"$draft$len\" >>'SLICES'; MORE\ndone ;; esac";
    bench.engine(&slices.replace("SLICES", &bench.text("slices")).replace("MORE", more))
}

#[test]
fn runs_side_by_side_take_turns_in_slices_and_are_compared_with_the_one_among_them() {
    let bench = Bench::new();
    let sweep = bench.sweep(
        "drafters = [\"ngram\", \"suffix\"]\ndraft_lens = [2, 3]\ncache = [8]\nslice_tokens = 4\nmemory = \"1GiB\"",
    );
    let output = bench.run(&sweep, &sliced(&bench, ":"), &["--set", "repeats=1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let slices = fs::read_to_string(bench.path("slices")).unwrap();
    let round = |a: &str| format!("none {a}2 {a}3 {a}2 {a}3 none {a}3 none {a}2");
    let turns = slices.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(turns, format!("{} {}", round("ngram"), round("suffix")));
    let report = bench.report();
    for row in report["rows"].as_array().unwrap() {
        let speedup = if row["drafter"] == "none" { 1.0 } else { 2.0 };
        assert_eq!(row["speedup"]["median"], speedup, "{row}");
        assert_eq!(row["ids"], "same", "{row}");
    }
    assert!(bench.out("speedup.md").contains("went on in turn, 4 tokens at a time"));
}

#[test]
fn short_runs_are_made_more_often_on_all_prompts_alike_and_none_again_by_a_sweep_that_goes_on() {
    let bench = Bench::new();
    let sweep = bench.sweep(
        "drafters = [\"ngram\"]\ndraft_lens = [2, 3]\ncache = [8]\nslice_tokens = 4\nmemory = \"1GiB\"\ndecode_s_min = 8.0",
    );
    // Without a draft one prompt's runs take 4 s and the other's 2: three repeats of 3 s bring 8, where two were asked for.
    let longer = "case \"$all\" in *'--tokens 2948,'*) ;; *) seconds=2.0 ;; esac;";
    let engine = sliced(&bench, longer);
    let both = ["--set", "tasks=[\"code\",\"list\"]"];
    let output = bench.run(&sweep, &engine, &both);
    assert!(output.status.success(), "{}", stderr(&output));
    let made = bench.log().len();
    let report = bench.report();
    for row in report["rows"].as_array().unwrap().iter().filter(|row| row["task"] != "all") {
        assert_eq!(row["runs"], 3, "{row}");
    }
    assert_eq!(made, 2 + 2 * 3 * 3);
    assert!(stderr(&output).contains("[20/20, "), "{}", stderr(&output));
    assert!(bench.out("speedup.md").contains("short runs more often, up to 8 times"));
    let output = bench.run(&sweep, &engine, &[&both[..], &["--resume"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(bench.log().len(), made);
}

#[test]
fn a_run_that_dies_among_others_fails_alone_and_its_round_is_made_again() {
    let bench = Bench::new();
    let sweep = bench.sweep(
        "drafters = [\"ngram\"]\ndraft_lens = [2, 3]\ncache = [8]\nslice_tokens = 4\nmemory = \"1GiB\"",
    );
    let dies = "if [ \"$at$len\" = 23 ] && [ -e 'SLICES.broken' ]; then echo no room >&2; exit 4; fi";
    let engine = sliced(&bench, &dies.replace("SLICES", &bench.text("slices")));
    fs::write(bench.path("slices.broken"), "").unwrap();
    let output = bench.run(&sweep, &engine, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("2 runs failed; --resume"), "{}", stderr(&output));
    assert!(bench.out("speedup.md").contains("FAILED: exit code 4: no room"), "{}", bench.out("speedup.md"));
    assert_eq!(bench.log().len(), 1 + 2 * 3);

    fs::remove_file(bench.path("slices.broken")).unwrap();
    let output = bench.run(&sweep, &engine, &["--resume"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(bench.log().len(), 1 + 2 * 3 + 2 * 3, "a run means something beside its round alone");
}

#[test]
fn an_engine_that_refuses_slices_stops_the_sweep_and_leaves_no_process_waiting() {
    let bench = Bench::new();
    let sweep = bench
        .sweep("drafters = [\"ngram\"]\ndraft_lens = [2]\ncache = [8]\nslice_tokens = 4\nmemory = \"1GiB\"");
    let refuses = "case \"$all\" in *--slice*) if [ \"$draft\" = none ]; then echo $$ >'PID'; echo; read -r turn\n\
                   else echo 'error: unexpected --slice' >&2; exit 2; fi ;; esac";
    let engine = bench.engine(&refuses.replace("PID", &bench.text("pid")));
    let output = bench.run(&sweep, &engine, &[]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("unexpected --slice"), "{}", stderr(&output));
    let waiting = fs::read_to_string(bench.path("pid")).unwrap();
    assert!(!Path::new("/proc").join(waiting.trim()).exists(), "it still waits");
}

#[test]
fn the_demo_pair_gives_the_same_texts_side_by_side() {
    let Some(program) = product() else { return };
    let bench = Bench::new();
    let sweep = bench.sweep(
        "drafters = [\"demo\"]\ndraft_lens = [\"auto\", 2]\ncache = [\"25%\"]\nstarts = [\"warm\"]\nslice_tokens = 3\nmemory = \"256MiB\"",
    );
    let settings = ["--set", "tokens=24", "--set", "threads=1"];
    let output = bench.run(&sweep, &program, &settings);
    assert!(output.status.success(), "{}", stderr(&output));
    let report = bench.report();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    for row in rows {
        assert!(row["ids"] == "same" && row["tokens_per_s"]["p5"].as_f64() > Some(0.0), "{row}");
    }
    assert_eq!(
        bench.out("runs.jsonl").matches("--json --slice 3").count(),
        2 * 3,
        "all but the untimed ones"
    );
}

#[test]
fn ctrl_c_amid_runs_side_by_side_ends_them_and_their_round_is_made_anew() {
    let bench = Bench::new();
    let sweep = bench
        .sweep("drafters = [\"ngram\"]\ndraft_lens = [2]\ncache = [8]\nslice_tokens = 4\nmemory = \"1GiB\"");
    let slow = "[ -e 'FAST' ] || [ \"$draft\" = none ] || { echo $PPID >'PARENT'; sleep 1; }";
    let slow = slow.replace("FAST", &bench.text("fast")).replace("PARENT", &bench.text("parent"));
    let engine = sliced(&bench, &slow);
    let mut child =
        bench.command(&sweep, &engine, &[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while !bench.path("parent").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was interrupted");
        std::thread::sleep(Duration::from_millis(20));
    }
    // The harness alone: its runs are not asked.
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("interrupted: 1 of"), "{}", stderr(&output));
    let made = bench.log().len();
    assert_eq!(made, 1 + 2);

    fs::write(bench.path("fast"), "").unwrap();
    let output = bench.run(&sweep, &engine, &["--resume"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(bench.log().len() - made, 2 * 2, "all but the untimed run");

    // What is left of a round beside runs of another is none.
    let runs = bench.out("runs.jsonl");
    let (line, round) = (runs.lines().last().unwrap(), "\"round\":");
    let at = line.find(round).unwrap() + round.len();
    fs::write(bench.path("out/runs.jsonl"), runs.replace(line, &format!("{}9{}", &line[..at], &line[at..])))
        .unwrap();
    assert!(bench.run(&sweep, &engine, &["--resume"]).status.success());
    assert_eq!(bench.log().len() - made, 2 * 2 + 2);
}
