//! A GPU that shares the processor's memory: its kernels read experts where the expert cache has them.
//!
//! The emulated card runs its queues as late as it may, so that a slot of the cache that is filled anew while kernels
//! still have to read it would show as wrong bits.

#![cfg(feature = "gpu-emulator")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::card::{CARD, Card, MIXTURES, on_processor, same_bits, story, with_quantized};
use common::synthetic::{Mixture, write_copy_with};
use common::{Notices, PLAIN, Setup, ask, generate, golden, load_shaped, open, plain_options, tokens};
use drafthorse_draft::{LanguageModel, LogitRows};
use drafthorse_offload::ExpertId;
use drafthorse_offload::reader::PreadReader;
use drafthorse_runtime::Error;
use drafthorse_runtime::api::{DraftSource, EngineOptions, GpuOptions, GpuStats, KvType};
use drafthorse_runtime::engine::Engine;
use drafthorse_runtime::gguf::Gguf;
use drafthorse_runtime::gpu::{PART_ALIGN, Schedule};
use drafthorse_runtime::models::{Blueprint, ModelOptions};
use drafthorse_scheduler::{DraftLen, MemoryPlan, PrefetchMode};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// 32 experts of 3 MiB beside some 9 MiB of dense weights.
const LARGE: Mixture = Mixture { width: 512, inner: 1024, experts: 8, blocks: 4, unsupported: None };
const IN_PLACE: Card = Card { is_in_place: true, ..CARD };
const SHARED: GpuOptions =
    GpuOptions { device: "emulated-unified", vram_bytes: None, hybrid: true, profile: false, unified: None };
const DISCRETE: GpuOptions = GpuOptions { device: "emulated", ..SHARED };

fn blueprint(path: &Path) -> Blueprint {
    Blueprint::new(&Gguf::open(path).unwrap(), &Default::default()).unwrap()
}

/// Experts that a row wants in a layer: as few slots as a pass can run with.
fn used(path: &Path) -> usize {
    blueprint(path).spec.moe.unwrap().used
}

#[test]
fn experts_are_read_in_place_with_the_processors_bits_and_nothing_is_copied() {
    for name in MIXTURES {
        let path = golden(name);
        // As late as may be is what shows a slot that is filled anew too early; in any order, what waits for nothing.
        let setups = [
            (16, Schedule::Lazy, used(&path)),
            (1, Schedule::Lazy, used(&path)),
            (16, Schedule::Random(3), 8),
        ];
        let expected = story(&mut on_processor(&path, Setup { rows_max: 16, ..PLAIN }, KvType::F16));
        for (rows_max, schedule, slots) in setups {
            let card = Card { schedule, ..IN_PLACE };
            let mut model = card.load(&path, Setup { slots, rows_max, ..PLAIN }, KvType::F16);
            let story = story(&mut model);
            same_bits(name, &format!("{schedule:?}, {rows_max} rows, {slots} slots"), &story, &expected);
            assert_eq!(model.gpu_stats().unwrap(), GpuStats::default(), "no slot, no copy, no host lane");
        }
    }
}

#[test]
fn a_slot_is_not_filled_anew_while_kernels_that_run_late_have_to_read_it() {
    let path = golden("qwen3moe");
    let slots = used(&path);
    let setup = Setup { rows_max: 16, slots, ..PLAIN };
    let (mut card, mut processor) =
        (IN_PLACE.load(&path, setup, KvType::F16), on_processor(&path, setup, KvType::F16));
    let ids = tokens(3, 16);
    let (mut logits, mut expected) = (Vec::new(), Vec::new());
    // Nothing is waited for between two windows but the routing of the second, and for the logits at the end.
    for rows in [&ids[..], &ids[..1], &ids[..9]] {
        card.forward(rows, LogitRows::All, &mut logits).unwrap();
        processor.forward(rows, LogitRows::All, &mut expected).unwrap();
        same_bits("qwen3moe", &format!("{} rows", rows.len()), &logits, &expected);
    }
    let (stats, layers) = (card.cache_stats().unwrap(), card.moe_layers());
    assert!(stats.misses as usize > 3 * layers * slots, "windows want more than there are slots: {stats:?}");
    assert_eq!(stats.misses, processor.cache_stats().unwrap().misses);
}

#[test]
fn quantized_experts_are_read_in_place_with_the_processors_bits() {
    with_quantized(|name, path| {
        let setup = Setup { rows_max: 16, ..PLAIN };
        let expected = story(&mut on_processor(path, setup, KvType::F16));
        for slots in [usize::MAX, used(path)] {
            let card = Card { schedule: Schedule::Lazy, ..IN_PLACE };
            let story = story(&mut card.load(path, Setup { slots, ..setup }, KvType::F16));
            same_bits(name, &format!("{slots}"), &story, &expected);
        }
    });
}

#[test]
fn a_card_that_fails_while_it_reads_in_place_is_an_error_and_nothing_hangs() {
    let mut failures = 0;
    for failing in (100..700).step_by(37) {
        let card = Card { failing: Some(failing), schedule: Schedule::Random(failing), ..IN_PLACE };
        let gguf = Gguf::open(&golden("qwen3moe")).unwrap();
        let reader = PreadReader::open(&gguf.files, 2).unwrap();
        let shape = |blueprint: &Blueprint| blueprint.kv_shape(KvType::F16).unwrap();
        let device = |blueprint: &Blueprint, options: &ModelOptions| Some(card.device(blueprint, options));
        let setup = Setup { slots: 4, ..PLAIN };
        let Ok(mut model) = load_shaped(&gguf, setup, Box::new(reader), (&shape, &device)) else { continue };
        let mut logits = Vec::new();
        let mut pass = || model.forward(&tokens(1, 9), LogitRows::All, &mut logits);
        let Some(error) = (0..6).find_map(|_| pass().err()) else { continue };
        assert!(error.to_string().contains("GPU"), "{error}");
        assert!(pass().is_err(), "a card that has failed stays so");
        failures += 1;
    }
    assert!(failures > 5, "{failures}");
}

fn on(gpu: GpuOptions, model: &Path) -> EngineOptions {
    EngineOptions { gpu: Some(gpu), ..plain_options(model) }
}

fn gpu_line(plan: &MemoryPlan) -> Option<u64> {
    plan.lines.iter().find(|line| line.name == "GPU").map(|line| line.bytes)
}

#[test]
fn text_is_the_same_with_drafts_predictions_and_few_slots_and_the_report_says_what_is_shared() {
    let target = golden("deepseek2_v3_yarn");
    let prompt = tokens(5, 17);
    for temperature in [0.0, 0.8] {
        let expected = generate(&mut open(&plain_options(&target)), &prompt, &ask(30, temperature));
        for (draft, draft_len) in [
            (DraftSource::None, DraftLen::Fixed(0)),
            (DraftSource::Ngram, DraftLen::Fixed(4)),
            (DraftSource::Model(golden("mixtral")), DraftLen::Auto),
        ] {
            for (slots, prefetch) in [(None, PrefetchMode::Off), (Some(20), PrefetchMode::On)] {
                let options =
                    EngineOptions { draft: draft.clone(), draft_len, slots, prefetch, ..on(SHARED, &target) };
                let text = generate(&mut open(&options), &prompt, &ask(30, temperature));
                assert_eq!(text.tokens, expected.tokens, "{draft:?} {draft_len:?} {slots:?}");
                let report = text.gpu.unwrap();
                assert!(report.unified && report.stats == GpuStats::default(), "{report:?}");
                assert!(report.planned_bytes <= report.vram_bytes && text.offload.hits > 0, "{report:?}");
            }
        }
    }
}

#[test]
fn experts_are_read_in_place_where_memory_is_shared_unless_the_setting_says_otherwise() {
    let target = golden("qwen3moe");
    let prompt = tokens(5, 17);
    let expected = generate(&mut open(&plain_options(&target)), &prompt, &ask(12, 0.0)).tokens;
    for (gpu, unified, is_in_place) in [
        (SHARED, None, true),
        (SHARED, Some(true), true),
        (SHARED, Some(false), false),
        (DISCRETE, None, false),
        (DISCRETE, Some(false), false),
        (DISCRETE, Some(true), true),
    ] {
        let options = on(GpuOptions { unified, ..gpu }, &target);
        let engine = &mut open(&options);
        let text = generate(engine, &prompt, &ask(12, 0.0));
        assert_eq!(text.tokens, expected, "{gpu:?} {unified:?}");
        let report = text.gpu.unwrap();
        assert_eq!((report.unified, report.stats.slots == 0), (is_in_place, is_in_place), "{report:?}");
        assert_eq!(report.stats.upload_bytes == 0, is_in_place, "{report:?}");
        let (plan, shares) = (engine.memory_plan(), gpu.device == SHARED.device);
        assert_eq!(gpu_line(plan), shares.then_some(report.planned_bytes), "{unified:?} {plan}");
        assert!(plan.planned_bytes <= plan.budget_bytes, "{plan}");
    }
}

#[test]
fn memory_too_small_for_what_the_gpu_takes_of_it_is_refused_with_its_line() {
    let model = golden("qwen3moe");
    let refused = |gpu: GpuOptions, memory_bytes| {
        Engine::plan(&EngineOptions { memory_bytes: Some(memory_bytes), ..on(gpu, &model) }).unwrap_err()
    };
    let error = refused(SHARED, 20 * MIB);
    assert_eq!(error.exit_code(), 4);
    assert!(matches!(error, Error::Budget(_)) && error.to_string().contains("  GPU "), "{error}");
    let error = refused(GpuOptions { vram_bytes: Some(MIB), ..SHARED }, 1 << 30);
    assert!(matches!(error, Error::Vram(_)) && error.to_string().contains("--vram"), "{error}");
}

#[test]
fn a_file_whose_experts_begin_where_kernels_cannot_is_copied_from_and_the_user_hears_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("odd.gguf");
    let is_odd = |path: &Path| {
        let layers = blueprint(path).experts.unwrap();
        let extents = layers.index.extents(ExpertId { layer: 0, expert: 0 }).unwrap();
        extents.iter().any(|part| !part.offset.is_multiple_of(PART_ALIGN as u64))
    };
    // Where tensors begin follows from the length of what stands before them.
    let found = (0..16).any(|len| {
        write_copy_with(
            &golden("qwen3moe"),
            &model,
            &[("general.alignment", 8u32.into()), ("general.description", "x".repeat(len).into())],
        );
        is_odd(&model)
    });
    assert!(found, "some length puts them at an odd multiple of 8");
    let prompt = tokens(5, 17);
    let expected = generate(&mut open(&plain_options(&golden("qwen3moe"))), &prompt, &ask(12, 0.0)).tokens;
    let mut notices = Notices::default();
    let mut engine = Engine::open(&on(SHARED, &model), &mut notices).unwrap();
    let text = generate(&mut engine, &prompt, &ask(12, 0.0));
    assert_eq!(text.tokens, expected);
    let report = text.gpu.unwrap();
    assert!(!report.unified && report.stats.slots > 0 && report.stats.uploads > 0, "{report:?}");
    let told = notices.0.iter().filter(|line| line.contains("copied") && line.contains("16 bytes"));
    assert_eq!(told.count(), 1, "{:?}", notices.0);
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_drafthorse")).args(args).stdin(Stdio::null()).output().unwrap()
}

fn json_of(args: &[&str]) -> Value {
    let output = run(args);
    assert!(output.status.success(), "{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Of a plan in JSON: slots, and the bytes of a line.
fn planned(inspected: &Value, line: &str) -> (u64, u64) {
    let plan = &inspected["outlook"]["plan"];
    let found = plan["lines"].as_array().unwrap().iter().find(|other| other["name"] == line);
    (plan["slots"].as_u64().unwrap(), found.map_or(0, |line| line["bytes"].as_u64().unwrap()))
}

#[test]
fn what_the_gpu_takes_of_shared_memory_leaves_fewer_slots_and_none_of_it_is_for_experts() {
    let folder = tempfile::tempdir().unwrap();
    let (model, config) = (folder.path().join("large.gguf"), folder.path().join("my.toml"));
    LARGE.write(&model);
    // Processes of their own: what one has needed before its plan is the same each time.
    let inspect = |device: &str, unified: &str| {
        std::fs::write(
            &config,
            format!("[gpu]\nvram = \"auto\"\ndevice = \"{device}\"\nunified = {unified}\n"),
        )
        .unwrap();
        let (model, config) = (model.to_str().unwrap(), config.to_str().unwrap());
        json_of(&["inspect", model, "--json", "--memory", "100MiB", "--context", "128", "--config", config])
    };
    let (own, shared) = (inspect("emulated", "\"auto\""), inspect("emulated-unified", "\"auto\""));
    let ((own_slots, nothing), (shared_slots, taken)) = (planned(&own, "GPU"), planned(&shared, "GPU"));
    let slot_bytes = shared["outlook"]["plan"]["slot_bytes"].as_u64().unwrap();
    let dense = LARGE.blocks * 4 * LARGE.width * LARGE.width * 2;
    assert!(nothing == 0 && taken > dense && taken < dense + 30 * MIB, "{taken}");
    assert!(own_slots > shared_slots && own_slots < 32, "{own_slots} {shared_slots}");
    assert!(
        ((own_slots - shared_slots) * slot_bytes).abs_diff(taken) <= 2 * slot_bytes,
        "{own_slots} {shared_slots}"
    );
    // Copies in the same memory are counted as well, and leave room to what they are made from.
    let (slots, both) = planned(&inspect("emulated-unified", "false"), "GPU");
    assert!(both > taken && both <= 50 * MIB && slots < shared_slots, "{both} {slots}");
    let (slots, nothing) = planned(&inspect("emulated", "true"), "GPU");
    assert!(nothing == 0 && slots.abs_diff(own_slots) <= 1, "{nothing} {slots}");
}

#[test]
fn a_run_in_shared_memory_stays_under_its_budget_and_says_what_is_shared() {
    let folder = tempfile::tempdir().unwrap();
    let [model, packed] = ["large.gguf", "packed.gguf"].map(|name| folder.path().join(name));
    LARGE.write(&model);
    let [model, packed] = [&model, &packed].map(|path| path.to_str().unwrap());
    let prompt = tokens(1, 20).iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let generated = |model: &str, more: &[&str]| {
        let words =
            ["run", model, "--tokens", &prompt, "-n", "4", "--ignore-eos", "--json", "--threads", "1"];
        json_of(&[&words[..], &["--context", "128"], more].concat())
    };
    let plain = generated(model, &["--memory", "1GiB"]);
    // Parts of packed experts fill their pages, those of the last slot included.
    assert!(run(&["pack", model, "-o", packed]).status.success());
    for model in [model, packed] {
        let gpu = ["--vram", "auto", "--gpu", "emulated-unified", "--memory", "100MiB"];
        let shared = generated(model, &gpu);
        assert_eq!(shared["tokens"], plain["tokens"]);
        let bytes = |field: &str| shared["memory"][field].as_u64().unwrap();
        let count = |field: &str| shared["offload"][field].as_u64().unwrap();
        println!("{} slots, {} of {} bytes at the peak", count("slots"), bytes("peak_rss_bytes"), 100 * MIB);
        assert!(
            bytes("peak_rss_bytes") <= 100 * MIB && bytes("planned_bytes") <= 100 * MIB,
            "{}",
            shared["memory"]
        );
        assert!(count("slots") < 32 && count("misses") > 32, "every slot has held an expert");
        let gpu = &shared["gpu"];
        let seen = [&gpu["unified"], &gpu["slots"], &gpu["uploads"], &gpu["upload_bytes"]];
        assert_eq!(seen, [&json!(true), &json!(0), &json!(0), &json!(0)]);
    }
}

#[test]
fn the_setting_without_a_gpu_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("my.toml");
    let model = golden("qwen3moe");
    for value in ["true", "false"] {
        std::fs::write(&config, format!("[gpu]\nunified = {value}\n")).unwrap();
        let output =
            run(&["run", model.to_str().unwrap(), "--tokens", "1,2", "--config", config.to_str().unwrap()]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(&format!("gpu.unified = {value}")) && stderr.contains("--vram"), "{stderr}");
    }
}
