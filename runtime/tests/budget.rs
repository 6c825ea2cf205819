//! I1: the budget is a hard limit, and what does not fit is refused with the sum and the way out.
//!
//! The measured part runs the program itself on a mixture several times its budget, so that a second
//! copy of the experts anywhere would show in its peak resident set, and inside a memory cgroup of
//! exactly the budget's size where one can be made.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::synthetic::{Mixture, USED, write_coarse_copy};
use common::{ask, generate, golden, open, plain_options, tokens};
use drafthorse_runtime::Error;
use drafthorse_runtime::api::{DraftSource, EngineOptions, KvType, Silent};
use drafthorse_runtime::engine::Engine;
use drafthorse_scheduler::{BudgetError, MemoryPlan};
use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// 32 experts of 3 MiB beside some 9 MiB of dense weights.
const LARGE: Mixture = Mixture { width: 512, inner: 1024, experts: 8, blocks: 4, unsupported: None };

/// The refusal of a budget that is certainly too small.
fn refusal(options: &EngineOptions, memory_bytes: u64) -> (Error, MemoryPlan) {
    let options = EngineOptions { memory_bytes: Some(memory_bytes), ..options.clone() };
    let error = Engine::plan(&options).unwrap_err();
    let Error::Budget(BudgetError::TooSmall { smallest }) = &error else { unreachable!("{error:?}") };
    let smallest = (**smallest).clone();
    let opened = Engine::open(&options, &mut Silent).err().unwrap();
    assert_eq!(opened.exit_code(), 4, "open refuses what plan refuses");
    (error, smallest)
}

/// What a refusal's last line says would do.
fn suggested(text: &str) -> u64 {
    let (_, rest) = text.split_once("the smallest budget that would do: ").unwrap();
    let (number, _) = rest.split_once("MiB").unwrap();
    number.parse::<u64>().unwrap() * MIB
}

#[test]
fn a_budget_too_small_is_refused_with_every_line_and_the_smallest_that_would_do() {
    let draft = DraftSource::Model(golden("mixtral"));
    for options in [
        plain_options(&golden("deepseek2_v3_yarn")),
        plain_options(&golden("llama")),
        EngineOptions { draft, ..plain_options(&golden("qwen3moe")) },
    ] {
        let (error, smallest) = refusal(&options, MIB);
        assert_eq!(error.exit_code(), 4);
        let text = error.to_string();
        for part in ["process", "dense weights", "KV cache", "scratch", "margin", "expert slots", "missing"] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
        let is_drafted = options.draft != DraftSource::None;
        let line = |name: &str| smallest.lines.iter().find(|line| line.name == name).unwrap().bytes;
        assert_eq!(line("draft") > 0, is_drafted);
        assert!(line("dense weights") > 0 && line("KV cache") > 0 && line("scratch") > 0);
        let spare = suggested(&text).checked_sub(smallest.planned_bytes).unwrap();
        assert!((MIB..=2 * MIB).contains(&spare), "room for a process of another size, no more: {spare}");
    }
}

#[test]
fn the_smallest_budget_opens_and_its_engine_generates_the_same_text() {
    for name in ["deepseek2_v3_yarn", "mixtral", "llama"] {
        let plenty = plain_options(&golden(name));
        let want = generate(&mut open(&plenty), &tokens(1, 12), &ask(16, 0.0));
        let mut budget = suggested(&refusal(&plenty, MIB).0.to_string());
        // The process itself is part of the sum, and other tests make it grow meanwhile.
        let mut engine = loop {
            let options = EngineOptions { memory_bytes: Some(budget), ..plenty.clone() };
            match Engine::open(&options, &mut Silent) {
                Ok(engine) => break engine,
                Err(error) => {
                    let next = suggested(&error.to_string());
                    assert!(next > budget && next < 1 << 30, "{error}");
                    budget = next;
                }
            }
        };
        let plan = engine.memory_plan().clone();
        assert!(plan.planned_bytes <= budget && plan.budget_bytes == budget);
        assert_eq!(plan.planned_bytes, plan.lines.iter().map(|line| line.bytes).sum::<u64>());
        let got = generate(&mut engine, &tokens(1, 12), &ask(16, 0.0));
        assert_eq!(got.tokens, want.tokens, "{name}");
        assert_eq!(got.memory.budget_bytes, budget);
        assert_eq!(got.offload.slots, plan.slots as u64);
    }
}

#[test]
fn slots_outside_the_models_range_are_a_usage_error_and_too_many_for_the_budget_are_not() {
    let options = plain_options(&golden("mixtral")); // 12 experts, 2 used
    for asked in [1, 13] {
        let options = EngineOptions { slots: Some(asked), ..options.clone() };
        let error = Engine::open(&options, &mut Silent).err().unwrap();
        assert_eq!(error.exit_code(), 2, "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("{asked} expert slots")) && text.contains("2 to 12"), "{text}");
    }
    let folder = tempfile::tempdir().unwrap();
    let model = large(&folder);
    let tightest = refusal(&plain_options(&model), MIB).1.planned_bytes;
    let wanting = EngineOptions { slots: Some(20), ..plain_options(&model) };
    let (error, with_slots) = refusal(&wanting, tightest + 4 * LARGE.expert_bytes());
    assert_eq!((error.exit_code(), with_slots.slots), (4, 20));
    assert!(error.to_string().contains("(20 x 3"), "{error}");
}

#[test]
fn what_the_budget_leaves_becomes_slots() {
    let folder = tempfile::tempdir().unwrap();
    let model = large(&folder);
    let smallest = refusal(&plain_options(&model), MIB).1;
    assert_eq!(smallest.slots as u64, USED);
    // Half a slot more than 10: the process may grow by some of it meanwhile, and more than that.
    let budget = smallest.planned_bytes + 10 * smallest.slot_bytes + smallest.slot_bytes / 2;
    let plan = Engine::plan(&EngineOptions { memory_bytes: Some(budget), ..plain_options(&model) }).unwrap();
    assert!((11..=12).contains(&plan.slots) && plan.planned_bytes <= budget, "{plan}");
    let all = Engine::plan(&plain_options(&model)).unwrap();
    assert_eq!(all.slots as u64, LARGE.experts * LARGE.blocks);
}

fn large(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("large.gguf");
    LARGE.write(&path);
    path
}

/// A run of the program on `model`, with a prompt long enough to fill its scratch; `more` are further
/// flags.
fn command(model: &Path, memory_bytes: u64, more: &[&str]) -> Vec<String> {
    let memory = memory_bytes.to_string();
    let model = model.to_str().unwrap();
    let prompt = tokens(1, 96).iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let words =
        ["run", model, "--tokens", &prompt, "-n", "24", "--ignore-eos", "--json", "--memory", &memory];
    words
        .iter()
        .chain(&["--threads", "2", "--context", "128"])
        .chain(more)
        .map(|word| (*word).to_owned())
        .collect()
}

fn run(args: &[String]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_drafthorse")).args(args).stdin(Stdio::null()).output().unwrap()
}

fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The budget that the program's refusal of the smallest one says would do.
fn tightest(model: &Path, more: &[&str]) -> u64 {
    let output = run(&command(model, MIB, more));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(output.stdout.is_empty() && stderr.lines().count() == 1, "{stderr}");
    suggested(&stderr)
}

/// Runs at a budget and checks what the run says of itself.
fn measured(model: &Path, budget: u64, more: &[&str]) -> Value {
    let report = report(&run(&command(model, budget, more)));
    let memory = |field: &str| report["memory"][field].as_u64().unwrap();
    println!(
        "budget {:6.1} MiB, planned {:6.1}, peak {:6.1}, {} slots, {} misses {more:?}",
        budget as f64 / MIB as f64,
        memory("planned_bytes") as f64 / MIB as f64,
        memory("peak_rss_bytes") as f64 / MIB as f64,
        report["offload"]["slots"],
        report["offload"]["misses"],
    );
    assert_eq!(memory("budget_bytes"), budget);
    assert!(memory("planned_bytes") <= budget);
    assert!(memory("peak_rss_bytes") <= memory("budget_bytes"), "{report}");
    report
}

#[test]
fn the_measured_peak_stays_under_every_budget_and_the_text_does_not_change() {
    let folder = tempfile::tempdir().unwrap();
    let model = large(&folder);
    let coarse = folder.path().join("coarse.gguf");
    write_coarse_copy(&model, &coarse);
    let resident = measured(&model, 1 << 30, &[]);
    assert_eq!(resident["offload"]["slots"], LARGE.experts * LARGE.blocks);
    for more in [
        &[][..],
        &["--draft", "ngram", "--draft-len", "8", "--policy", "lru"],
        &["--reader", "pread", "--io-threads", "8", "--prefetch", "on"],
        &["--draft", coarse.to_str().unwrap(), "--draft-len", "4"],
        &["--draft", "suffix,ngram", "--draft-len", "6"],
    ] {
        let tightest = tightest(&model, more);
        let experts = LARGE.expert_bytes() * LARGE.experts * LARGE.blocks;
        for budget in [tightest, tightest + 8 * LARGE.expert_bytes()] {
            let report = measured(&model, budget, more);
            assert_eq!(report["tokens"], resident["tokens"], "{more:?}");
            assert!(report["offload"]["misses"].as_u64() > resident["offload"]["misses"].as_u64());
            assert!(more.contains(&"--draft") || budget < experts, "the experts do not fit {budget} bytes");
        }
    }
}

#[test]
fn what_the_suffix_drafter_may_remember_is_planned_wherever_it_stands() {
    let plain = plain_options(&golden("qwen3moe"));
    let draft_bytes = |draft| {
        let plan = Engine::plan(&EngineOptions { draft, ..plain.clone() }).unwrap();
        plan.lines.iter().find(|line| line.name == "draft").unwrap().bytes
    };
    let suffix = plain.suffix.memory_bytes();
    assert!(suffix > 100 * plain.suffix.tokens_max as u64, "{suffix}");
    assert_eq!(draft_bytes(DraftSource::Ngram), 0);
    assert_eq!(draft_bytes(DraftSource::Suffix), suffix);
    let model = || DraftSource::Model(golden("qwen3"));
    let chain = DraftSource::Chain(vec![DraftSource::Suffix, model()]);
    assert_eq!(draft_bytes(chain), suffix + draft_bytes(model()));
}

#[test]
fn a_q8_0_cache_is_planned_as_17_bytes_for_32_and_stays_under_its_budget() {
    for (name, halves, blocks) in [
        // Bytes of a position and block: key and value rows, or the latent row with its rotated part.
        ("qwen3moe", 2 * 64, 2 * 34),
        ("llama_tied", 2 * 2 * 64, 2 * 2 * 34),
        ("deepseek2_v2_yarn", 2 * (64 + 32), 2 * 34 + 2 * 32),
    ] {
        let kv_bytes = |kv_type| {
            let options = EngineOptions { kv_type, ..plain_options(&golden(name)) };
            let plan = Engine::plan(&options).unwrap();
            plan.lines.iter().find(|line| line.name == "KV cache").unwrap().bytes
        };
        let cells = 2 * plain_options(&golden(name)).context_len as u64;
        assert_eq!(kv_bytes(KvType::F16), cells * halves, "{name}");
        assert_eq!(kv_bytes(KvType::Q8_0), cells * blocks, "{name}");
        let more = ["--kv-type", "q8_0"];
        measured(&golden(name), tightest(&golden(name), &more), &more);
    }
}

#[test]
fn golden_models_stay_under_their_tightest_budget() {
    for name in ["deepseek2_v3_yarn", "mixtral", "qwen3moe", "llama"] {
        let budget = tightest(&golden(name), &[]);
        measured(&golden(name), budget, &[]);
    }
}

/// A memory cgroup (version 1) of a given size, gone when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    /// None, with the reason printed, where this process may not make one.
    fn new(name: &str, limit_bytes: u64) -> Option<Cgroup> {
        let folder = Path::new("/sys/fs/cgroup/memory").join(format!("{name}-{}", std::process::id()));
        let limit = || fs::write(folder.join("memory.limit_in_bytes"), limit_bytes.to_string());
        match fs::create_dir(&folder).and_then(|()| limit()) {
            Ok(()) => Some(Cgroup(folder)),
            Err(error) => {
                eprintln!("skipped: no memory cgroup {}: {error}", folder.display());
                let _ = fs::remove_dir(&folder);
                None
            }
        }
    }

    fn run(&self, args: &[String]) -> Output {
        let join = "echo $$ > \"$0\"/cgroup.procs && exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", join]).arg(&self.0).arg(env!("CARGO_BIN_EXE_drafthorse")).args(args);
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap().trim().to_owned()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Page cache that is still charged to the group goes first; what fails here only leaves it behind.
        let _ = fs::write(self.0.join("memory.force_empty"), "0");
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_cgroup_of_exactly_the_budget_does_not_kill_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = large(&folder);
    for more in [
        &[][..],
        &["--draft", "ngram", "--draft-len", "8"],
        &["--reader", "pread", "--prefetch", "on"],
        &["--queue-depth", "64", "--prefetch", "on"],
    ] {
        let budget = tightest(&model, more);
        let free = report(&run(&command(&model, budget, more)));
        let Some(group) = Cgroup::new("drafthorse-test", budget) else { return };
        let capped = group.run(&command(&model, budget, more));
        let kills = group.read("memory.oom_control");
        println!(
            "cgroup of {budget} bytes: at most {} used, limit met {} times, {kills:?}",
            group.read("memory.max_usage_in_bytes"),
            group.read("memory.failcnt"),
        );
        assert!(!kills.contains("oom_kill ") || kills.contains("oom_kill 0"), "{kills}");
        assert_eq!(report(&capped)["tokens"], free["tokens"]);
    }
}
