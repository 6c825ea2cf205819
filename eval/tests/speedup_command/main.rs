//! `drafthorse-eval speedup` and `report` as a user runs them: on the demo pair, and with scripts that pretend
//! to be `drafthorse`, whose figures are known.

#![allow(clippy::unwrap_used, reason = "tests")]

mod bench;
mod slices;

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use bench::{Bench, page, product, stderr};
use serde_json::Value;

#[test]
fn the_demo_pair_gives_one_text_at_every_setting_and_a_whole_report() {
    let Some(program) = product() else { return };
    let bench = Bench::new();
    let sweep = bench.sweep(
        "drafters = [\"demo\", \"ngram\"]\ndraft_lens = [\"auto\", 2]\ncache = [\"25%\", \"100%\"]\n\
         starts = [\"cold\", \"warm\"]\ntemperatures = [0.0, 0.8]\nthreads = 1\nmemory = \"512MiB\"",
    );
    let output = bench.run(
        &sweep,
        &program,
        &["--quick", "--set", "tokens=16", "--set", "tasks=[\"code\", \"prose\"]"],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    let report = bench.report();
    let rows = report["rows"].as_array().unwrap();
    // Over all tasks and two of them; 2 caches, 2 starts, 2 temperatures; off and 2 drafters of 2 lengths.
    assert_eq!(rows.len(), 3 * 8 * 5);
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic_about(row, key));
    for row in rows {
        assert_eq!(row["ids"], "same", "{row}");
        assert!(number(&row["tokens_per_s"], "p5") > 0.0 && number(&row["speedup"], "median") > 0.0);
        let (lru, belady) = (number(row, "hit_rate_lru"), number(row, "hit_rate_belady"));
        assert!(lru <= belady + 1e-12, "{row}");
        let bytes = &row["bytes_per_token"];
        let rejected = number(bytes, "rejected_only");
        let is_off = row["drafter"] == "none";
        if is_off {
            assert_eq!(
                (rejected, number(row, "tau"), number(row, "draft_len_mean")),
                (0.0, 1.0, 0.0),
                "{row}"
            );
        }
        let slots = row["slots"].as_u64().unwrap();
        assert_eq!(slots, if row["cache"] == "25%" { 32 } else { 128 });
        if slots == 128 && is_off && row["start"] == "warm" {
            assert!(number(row, "hit_rate") > 0.5, "{row}");
        }
        if row["drafter"] == "demo" && row["draft_len"] == "2" {
            let places = row["acceptance_at"].as_array().unwrap();
            assert!(places.len() == 2 && places[0].as_f64() >= places[1].as_f64(), "{row}");
        }
    }
    assert!(rows.iter().any(|row| row["bytes_per_token"]["rejected_only"].as_f64() > Some(0.0)));
    let texts = report["texts"].as_array().unwrap();
    assert_eq!(texts.len(), 4, "2 prompts, 2 temperatures");
    assert_ne!(texts[0]["ids_sha256"], texts[2]["ids_sha256"], "0.8 is not greedy");
    check_files(&bench, rows.len());
}

fn panic_about(row: &Value, key: &str) -> f64 {
    unreachable!("{key} is no number in {row}")
}

/// Tables and page hold every row, and come out again byte for byte.
fn check_files(bench: &Bench, rows: usize) {
    let (csv, markdown, html) = (bench.out("speedup.csv"), bench.out("speedup.md"), bench.out("report.html"));
    assert_eq!(csv.lines().count(), rows + 1);
    assert!(csv.starts_with("task,cache,slots,share,start,temperature,drafter,draft_len"), "{csv}");
    // Two tables of rows, and "auto" of two drafters at eight settings against their fixed length.
    let autos = 8 * 2 + 1;
    assert_eq!(markdown.lines().filter(|line| line.starts_with("| ")).count(), rows + 2 + autos);
    assert!(markdown.contains("at least 0.98 of no draft in"), "{markdown}");
    for part in [
        "speedup",
        "--quick",
        " UTC",
        " cores",
        "commit of this harness ",
        "identical ids",
        "posix_fadvise",
        "Task by task",
    ] {
        assert!(markdown.contains(part), "{part}:\n{markdown}");
    }
    let document = page(&html);
    let count = |name: &str| document.descendants().filter(|node| node.has_tag_name(name)).count();
    assert_eq!(count("tr"), rows + 1 + autos);
    let svgs = document.descendants().filter(|node| node.tag_name().name() == "svg").count();
    assert!(svgs >= 4 * 2, "{svgs} plots");
    assert!(!html.contains("<script") && !html.contains("src=") && !html.contains("href="));

    let names = ["speedup.csv", "speedup.md", "report.html"];
    let before = names.map(|name| bench.out(name));
    names.iter().for_each(|name| fs::remove_file(bench.path("out").join(name)).unwrap());
    let output = Command::new(env!("CARGO_BIN_EXE_drafthorse-eval"))
        .arg("report")
        .arg(bench.path("out"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(before, names.map(|name| bench.out(name)));
}

#[test]
fn figures_of_known_runs_are_the_ones_counted_by_hand() {
    let bench = Bench::new();
    let sweep = bench.sweep("drafters = [\"ngram\"]\ndraft_lens = [2]\ncache = [3, \"100%\"]");
    let output = bench.run(&sweep, &bench.engine(""), &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report = bench.report();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4, "one task: no rows over all");
    let row = &rows[1];
    assert_eq!(row["slots"], 4, "a token of the demo uses four");
    assert_eq!(row["tokens_per_s"]["median"], 2.0);
    assert_eq!(row["speedup"]["median"], 2.0);
    assert_eq!(
        (&row["tau"], &row["t_ratio"], &row["predicted_speedup"]),
        (&2.0.into(), &1.0.into(), &1.9.into())
    );
    assert_eq!(row["acceptance_at"], serde_json::json!([1.0, 0.0]));
    assert_eq!((&row["hit_rate"], &row["hit_rate_with_prompt"]), (&0.75.into(), &0.75.into()));
    let bytes = serde_json::json!({"demand": 125.0, "prefetch_useful": 75.0, "prefetch_wasted": 25.0, "rejected_only": 25.0});
    assert_eq!(row["bytes_per_token"], bytes);
    // SHA-256 of 1 2 3 4 5 as little-endian 32-bit numbers, from python's hashlib.
    let hash = "4f6addc9659d6fb90fe94b6688a79f2a1fa8d36ec43f8f3e1d9b6528c448a384";
    assert_eq!(row["ids_sha256"], hash);

    // The untimed run, then A B B A in each block.
    let log = bench.log();
    let who: String = log.iter().map(|line| if line.contains("--draft none") { 'a' } else { 'b' }).collect();
    assert_eq!(who, "aabbaabba");
    assert!(log[0].contains("--record-trace") && !log[1].contains("--record-trace"), "{}", log[0]);
    assert!(log[1].contains("--slots 4 ") && log[5].contains("--slots 128 "), "{} {}", log[1], log[5]);
    let settings = ["-n 5 ", "--temp 0 ", "--seed 1 ", "--draft ngram --draft-len 2", "--ignore-eos --json"];
    assert!(settings.iter().all(|setting| log[2].contains(setting)), "{}", log[2]);
}

#[test]
fn ids_that_differ_fail_the_command_and_are_named() {
    let bench = Bench::new();
    let sweep = bench.sweep("drafters = [\"ngram\"]\ndraft_lens = [2, 3]\ncache = [8, 16]\nverify = [\"coupled\", \"block\"]\ntemperatures = [0.8]");
    let wrong = "if [ \"$len\" = 3 ] && [ \"$slots\" = 16 ]; then tokens=1,2,3,4,6; fi\n\
                 case \"$all\" in *'--verify block'*) tokens=9,9,9,9,9;; esac";
    let output = bench.run(&sweep, &bench.engine(wrong), &["--resume"]);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    let named = "IDS DIFFER in 2 of";
    assert!(message.contains(named) && message.contains("16|cold|t0.8|builtin/code/"), "{message}");
    assert!(message.contains("ngram, length 3") && !message.contains("|ngram, length 2; "), "{message}");
    let report = bench.report();
    let rows = report["rows"].as_array().unwrap();
    let differing: Vec<&Value> = rows.iter().filter(|row| row["ids"] == "differs").collect();
    assert_eq!(differing.len(), 1);
    assert_eq!((&differing[0]["cache"], &differing[0]["draft_len"]), (&"16".into(), &"3".into()));
    // Block verification keeps the law of sampled text, not the text.
    assert_eq!(rows.iter().filter(|row| row["ids"] == "varies").count(), 4);
    // Of 4 tokens after the first in 2 passes 1 a pass was drafted, whatever the rule.
    let line = "| 0.8 | ngram | 3 | 1.00 | 1.00 | 1.00 |";
    assert!(bench.out("speedup.md").contains(line), "{}", bench.out("speedup.md"));
    let html = bench.out("report.html");
    let heads = page(&html).descendants().filter(|node| node.has_tag_name("h2")).count();
    assert!(html.contains("<td>3</td><td>1.00</td><td>1.00</td><td>1.00</td>") && heads == 3, "{html}");
    assert!(
        bench.out("speedup.md").contains("DIFFERS") && bench.out("report.html").contains("class=\"bad\"")
    );
}

#[test]
fn a_sweep_that_stopped_goes_on_and_failed_runs_are_made_again() {
    let bench = Bench::new();
    let sweep = bench.sweep("drafters = [\"ngram\"]\ndraft_lens = [2]\ncache = [8]");
    let broken = bench.engine(
        "if [ -e 'LOG.broken' ] && [ \"$draft\" = ngram ]; then echo no room >&2; exit 4; fi"
            .replace("LOG", &bench.text("log"))
            .as_str(),
    );
    fs::write(bench.path("log.broken"), "").unwrap();
    let output = bench.run(&sweep, &broken, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("2 runs failed; --resume"), "{}", stderr(&output));
    assert!(bench.out("speedup.md").contains("FAILED: exit code 4: no room"), "{}", bench.out("speedup.md"));
    assert_eq!(bench.log().len(), 5);

    fs::remove_file(bench.path("log.broken")).unwrap();
    let output = bench.run(&sweep, &broken, &[]);
    assert_eq!(output.status.code(), Some(2), "not without being asked to");
    assert!(stderr(&output).contains("runs.jsonl has runs already"), "{}", stderr(&output));
    let output = bench.run(&sweep, &broken, &["--resume"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(bench.log().len(), 7, "the two that had failed");

    // A torn last line is that run again; nothing else.
    let runs = bench.out("runs.jsonl");
    fs::write(bench.path("out/runs.jsonl"), &runs[..runs.len() - 9]).unwrap();
    assert!(bench.run(&sweep, &broken, &["--resume"]).status.success());
    assert_eq!(bench.log().len(), 8);
    let output = bench.run(&sweep, &broken, &["--resume", "--set", "seed=2"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("another sweep"), "{}", stderr(&output));
}

#[test]
fn ctrl_c_keeps_what_was_measured() {
    let bench = Bench::new();
    let sweep = bench.sweep("drafters = [\"ngram\"]\ndraft_lens = [2]\ncache = [8]");
    let slow = bench.engine("[ -e 'LOG.fast' ] || sleep 0.3".replace("LOG", &bench.text("log")).as_str());
    let more = ["--set", "repeats=4"];
    let mut command = bench.command(&sweep, &slow, &more);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while bench.log().len() < 3 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was interrupted");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("interrupted: ") && message.contains("--resume"), "{message}");
    let (made, kept) = (bench.log().len(), bench.out("runs.jsonl").lines().count() - 1);
    assert!(kept >= 2 && made - kept <= 1, "{made} made, {kept} kept");

    fs::write(bench.path("log.fast"), "").unwrap();
    let output = bench.run(&sweep, &slow, &[&more[..], &["--resume"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(bench.log().len() - made + kept, 8, "1 untimed, 7 in turns");
}

#[test]
fn a_sweep_killed_at_any_moment_goes_on_to_the_table_of_one_that_was_not() {
    let lines = "drafters = [\"ngram\"]\ndraft_lens = [2]\ncache = [8]\nstarts = [\"warm\"]";
    let undisturbed = Bench::new();
    let output = undisturbed.run(&undisturbed.sweep(lines), &undisturbed.engine(""), &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let runs = undisturbed.log().len();

    let bench = Bench::new();
    let (sweep, slow) = (bench.sweep(lines), bench.engine("sleep 0.2"));
    // In its first run, and in a later one; the run under way is lost, nothing else.
    for (begun, more) in [(1, &[][..]), (4, &["--resume"])] {
        let mut command = bench.command(&sweep, &slow, more);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while bench.log().len() < begun {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), None, "killed");
    }
    let (made, kept) = (bench.log().len(), bench.out("runs.jsonl").lines().count() - 1);
    assert!(made - kept <= 2 && !bench.path("out/speedup.csv").exists(), "{made} made, {kept} kept");
    let output = bench.run(&sweep, &slow, &["--resume"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(bench.log().len() - made + kept, runs, "every run that was kept is not made again");
    assert_eq!(bench.out("speedup.csv"), undisturbed.out("speedup.csv"));
}

#[test]
fn a_run_that_was_to_learn_and_failed_stops_the_sweep_and_is_made_again() {
    let bench = Bench::new();
    let sweep =
        bench.sweep("drafters = [\"ngram\"]\ndraft_lens = [\"auto\"]\ncache = [8]\nstarts = [\"warm\"]");
    let fails =
        "case \"$all\" in *.learning*) [ -e DISK ] || { echo 'the disk is gone' >&2; exit 1; } ;; esac";
    let engine = bench.engine(&fails.replace("DISK", &format!("'{}'", bench.text("disk"))));
    let output = bench.run(&sweep, &engine, &[]);
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(message.contains("the untimed run failed") && message.contains("the disk is gone"), "{message}");
    let made = bench.log().len();
    assert_eq!(made, 2, "the one without a draft, and that");
    fs::write(bench.path("disk"), "").unwrap();
    let output = bench.run(&sweep, &engine, &["--resume"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let learning = |line: &&String| line.contains(".learning");
    assert_eq!(bench.log()[made..].iter().filter(learning).count(), 2);
    assert_eq!(bench.log().len() - made, 2 + 4, "the first is kept");
}

#[test]
fn a_scripted_drafter_gets_the_ids_of_the_run_without_a_draft() {
    let bench = Bench::new();
    let script = "script:accept=0.6,us=300";
    let sweep = bench.sweep(&format!(
        "drafters = [\"{script}\"]\ncache = [8]\nstarts = [\"warm\"]\nsimulate_disk = \"1GiB/s,80us\""
    ));
    let count = "set -- $all; while [ $# -gt 0 ]; do [ \"$1\" = --stats-file ] && wc -l <\"$2\" >>COUNTS; shift; done";
    let count = count.replace("COUNTS", &format!("'{}'", bench.text("counts")));
    let output = bench.run(&sweep, &bench.engine(&count), &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let log = bench.log();
    // Without a draft; twice untimed, for what the scheduler learns; without a draft; timed.
    let words: Vec<&str> = log[4].split(' ').collect();
    let after = |flag: &str| words[words.iter().position(|word| *word == flag).unwrap() + 1];
    let file = after("--draft").strip_prefix("script:").unwrap().strip_suffix(",accept=0.6,us=300").unwrap();
    let ids = fs::read_to_string(file).unwrap();
    let prompt = after("--tokens").replace(',', " ");
    assert_eq!(ids, format!("{prompt} 1 2 3 4 5\n"));
    assert_eq!(after("--simulate-disk"), "1GiB/s,80us");
    // Runs whose statistics each run's file held when it ended, its own among them. Warm ones begin with those of one
    // run and with what one more (the second or third) has learned.
    let counts = fs::read_to_string(bench.path("counts")).unwrap();
    assert_eq!(counts.split_whitespace().collect::<Vec<_>>(), ["1", "2", "2", "3", "3", "3", "3"]);
    let report = bench.report();
    assert_eq!(report["rows"][1]["script_acceptance"], 0.6);
    assert!(
        bench.out("speedup.md").contains("SIMULATED disk")
            && bench.out("report.html").contains("SIMULATED disk")
    );
}

#[test]
fn warm_runs_know_as_much_of_the_machine_whatever_they_draft() {
    let bench = Bench::new();
    let script = "script:accept=0.6,us=300";
    let settings = "cache = [4, 8]\nstarts = [\"warm\"]\ndraft_lens = [\"auto\", 2]";
    let sweep = bench.sweep(&format!("drafters = [\"{script}\"]\n{settings}"));
    let count = "set -- $all; while [ $# -gt 0 ]; do case \"$1\" in --draft-len | --slots) key=\"$key$1 $2 \";; \
                 --stats-file) file=$2;; esac; shift; done; echo \"$key$(wc -l <\"$file\")\" >>COUNTS";
    let count = count.replace("COUNTS", &format!("'{}'", bench.text("counts")));
    let output = bench.run(&sweep, &bench.engine(&count), &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let counts = fs::read_to_string(bench.path("counts")).unwrap();
    // Runs whose statistics a run's file held when it ended, its own among them, by slots and length.
    let of = |key: &str| {
        let runs: Vec<&str> = counts.lines().filter_map(|line| line.strip_prefix(key)).collect();
        runs.iter().filter_map(|run| run.trim().parse::<u32>().ok()).collect::<Vec<_>>()
    };
    assert_eq!(
        of("--slots 8 "),
        [1, 2, 3, 3, 3],
        "the reference, an untimed one, those that begin with it\n{counts}"
    );
    assert_eq!(of("--slots 4 "), [2, 3, 3, 3], "\n{counts}");
    for slots in [4, 8] {
        assert_eq!(of(&format!("--slots {slots} --draft-len auto ")), [2, 3, 3], "\n{counts}");
        assert_eq!(of(&format!("--slots {slots} --draft-len 2 ")), [3, 3], "\n{counts}");
    }
}

#[test]
fn what_cannot_be_run_is_refused_before_or_at_the_first_run() {
    let bench = Bench::new();
    let good = bench.engine("");
    let refusals: [(&str, &[&str], i32, &str); 7] = [
        ("drafters = [\"\"]", &[], 2, "empty name"),
        ("", &["--set", "model=/no/such.gguf"], 3, "/no/such.gguf"),
        ("", &["--set", "tasks=[\"law\"]"], 2, "law"),
        ("", &["--set", "prompts=[\"spec-bench:/no/such\"]"], 1, "/no/such"),
        ("", &["--set", "repeats=0"], 2, "repeats: 0"),
        ("", &["--set", "speed=1"], 2, "speed"),
        ("", &["--program", "/no/such"], 2, "--program"),
    ];
    for (lines, more, code, named) in refusals {
        let output = bench.run(&bench.sweep(lines), &good, more);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{more:?}: {message}");
        assert!(message.contains(named), "{more:?}: {message}");
    }
    assert!(bench.log().is_empty());
    // What the program does not take is not tried again and again.
    let picky = bench.engine("case \"$draft\" in script:*) echo 'unknown drafter script' >&2; exit 2;; esac");
    let output = bench.run(&bench.sweep("drafters = [\"script:accept=0.5\"]\ncache = [8]"), &picky, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("unknown drafter script"), "{}", stderr(&output));
    assert_eq!(bench.log().len(), 3, "untimed, off, and the one refused");
    let bench = Bench::new();
    let clap = bench
        .engine("printf \"error: unexpected argument '--slots'\\n\\nFor more, try --help\\n\" >&2; exit 2");
    let output = bench.run(&bench.sweep("cache = [8]"), &clap, &[]);
    assert!(stderr(&output).contains("unexpected argument '--slots'"), "{}", stderr(&output));
}

#[test]
fn a_report_of_nothing_or_of_something_else_is_an_error() {
    let bench = Bench::new();
    let report = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_drafthorse-eval"));
        command.arg("report").arg(bench.path("out")).output().unwrap()
    };
    assert_eq!(report().status.code(), Some(1));
    fs::create_dir(bench.path("out")).unwrap();
    for text in ["", "{}", "[1]", "{\"format\": 1, \"rows\": 3}"] {
        fs::write(bench.path("out/speedup.json"), text).unwrap();
        let output = report();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(stderr(&output).contains("speedup.json"), "{}", stderr(&output));
    }
}

#[test]
fn sweeps_of_other_cache_sizes_make_one_report_and_others_are_refused() {
    let bench = Bench::new();
    let engine = bench.engine("");
    let measure = |folder: &str, lines: &str| {
        let sweep = bench.sweep(&format!("drafters = [\"ngram\"]\n{lines}"));
        assert!(bench.run(&sweep, &engine, &[]).status.success());
        fs::rename(bench.path("out"), bench.path(folder)).unwrap();
    };
    measure("small", "draft_lens = [2]\ncache = [3]");
    measure("large", "draft_lens = [2]\ncache = [\"100%\"]");
    measure("longer", "draft_lens = [3]\ncache = [4]");
    measure("both", "draft_lens = [2]\ncache = [3, \"100%\"]");
    let report = |folders: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_drafthorse-eval"));
        command.arg("report").args(folders.iter().map(|name| bench.path(name)));
        command.arg("-o").arg(bench.path("out")).output().unwrap()
    };
    let output = report(&["small", "large"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let merged = bench.report();
    let whole: Value = serde_json::from_slice(&fs::read(bench.path("both/speedup.json")).unwrap()).unwrap();
    assert_eq!(merged["rows"], whole["rows"], "as one sweep of both sizes has them");
    assert_eq!(
        (&merged["sweep"], &merged["texts"][0]["runs"]),
        (&whole["sweep"], &whole["texts"][0]["runs"])
    );
    assert!(bench.out("speedup.csv").lines().count() == 5 && bench.out("report.html").contains("<svg"));
    assert!(bench.out("speedup.md").contains("2 sweeps, which may have run side by side"));
    for (folders, problem) in
        [(["small", "longer"], "another draft_lens"), (["small", "both"], "in another report")]
    {
        let output = report(&folders);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(problem), "{}", stderr(&output));
    }
}

#[test]
fn names_from_outside_cannot_break_the_page_or_the_table() {
    let bench = Bench::new();
    let sweep = bench.sweep("drafters = [\"<b>&'|\\\"x\"]\ncache = [8, 16]\ndraft_lens = [1, 2]");
    let output = bench.run(&sweep, &bench.engine(""), &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let html = bench.out("report.html");
    let document = page(&html);
    let cells = document.descendants().filter(|node| node.has_tag_name("td"));
    assert!(cells.filter_map(|node| node.text()).any(|text| text == "<b>&'|\"x"), "{html}");
    let markdown = bench.out("speedup.md");
    let row = markdown.lines().find(|line| line.contains("<b>")).unwrap();
    assert!(row.contains("<b>&'\\|\"x"), "{row}");
}
