//! A GPU that shares the processor's memory: its kernels read experts where the expert cache has them.
//!
//! The emulated card runs its queues as late as it may, so that a slot of the cache that is filled anew while kernels
//! still have to read it would show as wrong bits.

#![cfg(feature = "gpu-emulator")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::card::{CARD, Card, MIXTURES, SCHEDULES, on_processor, same_bits, story};
use common::synthetic::{Mixture, write_copy_in, write_copy_with};
use common::{Notices, PLAIN, Setup, ask, generate, golden, load_shaped, open, plain_options, tokens};
use drafthorse_draft::{LanguageModel, LogitRows};
use drafthorse_offload::ExpertId;
use drafthorse_offload::reader::PreadReader;
use drafthorse_runtime::Error;
use drafthorse_runtime::api::{DraftSource, EngineOptions, GpuOptions, GpuStats, KvType};
use drafthorse_runtime::engine::Engine;
use drafthorse_runtime::gguf::{BlockType, Gguf};
use drafthorse_runtime::gpu::{PART_ALIGN, Schedule};
use drafthorse_runtime::models::{Blueprint, ModelOptions};
use drafthorse_scheduler::{DraftLen, MemoryPlan, PrefetchMode};
use serde_json::Value;

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
        for rows_max in [16, 1] {
            let setup = Setup { rows_max, ..PLAIN };
            let expected = story(&mut on_processor(&path, setup, KvType::F16));
            for schedule in SCHEDULES {
                for slots in [usize::MAX, 8, used(&path)] {
                    let card = Card { schedule, ..IN_PLACE };
                    let mut model = card.load(&path, Setup { slots, ..setup }, KvType::F16);
                    let story = story(&mut model);
                    same_bits(
                        name,
                        &format!("{schedule:?}, {rows_max} rows, {slots} slots"),
                        &story,
                        &expected,
                    );
                    assert_eq!(
                        model.gpu_stats().unwrap(),
                        GpuStats::default(),
                        "no slot, no copy, no host lane"
                    );
                }
            }
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
    let dir = tempfile::tempdir().unwrap();
    let (plain, path) = (dir.path().join("plain.gguf"), dir.path().join("quantized.gguf"));
    Mixture { width: 512, inner: 256, experts: 6, blocks: 2, unsupported: None }.write(&plain);
    let latent = golden("deepseek2_v3_yarn");
    let cases = [(BlockType::Q4_K, &plain), (BlockType::Q6_K, &plain), (BlockType::Q8_0, &plain)];
    for (block_type, model) in cases.into_iter().chain([(BlockType::Q8_0, &latent)]) {
        write_copy_in(block_type, model, &path);
        let setup = Setup { rows_max: 16, ..PLAIN };
        let expected = story(&mut on_processor(&path, setup, KvType::F16));
        for slots in [usize::MAX, used(&path)] {
            let card = Card { schedule: Schedule::Lazy, ..IN_PLACE };
            let story = story(&mut card.load(&path, Setup { slots, ..setup }, KvType::F16));
            same_bits(
                &format!("{block_type:?} of {}", model.display()),
                &format!("{slots}"),
                &story,
                &expected,
            );
        }
    }
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
fn what_the_gpu_takes_of_shared_memory_is_none_for_slots_and_too_little_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("large.gguf");
    LARGE.write(&model);
    let plan = |gpu: GpuOptions, memory_bytes| {
        Engine::plan(&EngineOptions { memory_bytes: Some(memory_bytes), ..on(gpu, &model) })
    };
    let with = |gpu| {
        // The process grows while other tests run: each plan is made at the same budget, one behind the other.
        let plan = plan(gpu, 160 * MIB).unwrap();
        assert_eq!(plan.planned_bytes, plan.lines.iter().map(|line| line.bytes).sum::<u64>());
        assert!(plan.planned_bytes <= 160 * MIB);
        plan
    };
    let (shared, own) = (with(SHARED), with(DISCRETE));
    let taken = gpu_line(&shared).unwrap();
    let dense = 4 * 4 * LARGE.width * LARGE.width * 2;
    assert!(taken > dense && gpu_line(&own).is_none(), "{shared}");
    // By as many slots as the GPU takes, give or take what the process grew by.
    let fewer = (own.slots - shared.slots) as u64 * shared.slot_bytes;
    assert!(own.slots < 32 && fewer.abs_diff(taken) <= 2 * shared.slot_bytes, "{own}\n{shared}");
    let error = plan(SHARED, 40 * MIB).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(matches!(error, Error::Budget(_)) && error.to_string().contains("  GPU "), "{error}");
    let error = plan(GpuOptions { vram_bytes: Some(MIB), ..SHARED }, 1 << 30).unwrap_err();
    assert!(matches!(error, Error::Vram(_)) && error.to_string().contains("--vram"), "{error}");
    // Copies in the same memory are counted as well, and leave room to what they are made from.
    let copied = GpuOptions { unified: Some(false), ..SHARED };
    let both = with(copied);
    assert!(gpu_line(&both).unwrap() > taken && gpu_line(&both).unwrap() <= 80 * MIB, "{both}");
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

fn json(args: &[&str]) -> Value {
    let output = run(args);
    assert!(output.status.success(), "{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_run_in_shared_memory_stays_under_its_budget_and_says_what_is_shared() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("large.gguf");
    LARGE.write(&model);
    let model = model.to_str().unwrap();
    let prompt = tokens(1, 60).iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let words = ["run", model, "--tokens", &prompt, "-n", "6", "--ignore-eos", "--json", "--threads", "1"];
    let plain = json(&[&words[..], &["--context", "128", "--memory", "1GiB"]].concat());
    let gpu = ["--context", "128", "--vram", "auto", "--gpu", "emulated-unified", "--memory", "128MiB"];
    let shared = json(&[&words[..], &gpu].concat());
    assert_eq!(shared["tokens"], plain["tokens"]);
    let bytes = |field: &str| shared["memory"][field].as_u64().unwrap();
    println!(
        "{} slots, {} of {} bytes at the peak",
        shared["offload"]["slots"],
        bytes("peak_rss_bytes"),
        128 * MIB
    );
    assert!(
        bytes("peak_rss_bytes") <= 128 * MIB && bytes("planned_bytes") <= 128 * MIB,
        "{}",
        shared["memory"]
    );
    assert!(
        shared["offload"]["slots"].as_u64().unwrap() < 32
            && shared["offload"]["misses"] != plain["offload"]["misses"]
    );
    let gpu_object = &shared["gpu"];
    assert_eq!(
        (&gpu_object["unified"], &gpu_object["slots"], &gpu_object["upload_bytes"]),
        (&true.into(), &0.into(), &0.into())
    );
    let inspected = json(&[&["inspect", model, "--json"], &gpu[2..]].concat());
    let lines = inspected["outlook"]["plan"]["lines"].as_array().unwrap();
    assert!(
        lines.iter().any(|line| line["name"] == "GPU" && line["bytes"].as_u64() > Some(MIB)),
        "{lines:?}"
    );
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
