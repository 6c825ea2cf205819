//! The GPU backend on the emulated card: the processor's bits, whatever is where and whenever it runs.
//!
//! Everything but the driver is what runs on a real card, kernels included. The card runs its queues as late or as
//! mixed as it may, so that an order that nobody asked for would show as wrong bits.

#![cfg(feature = "gpu-emulator")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{
    PLAIN, Setup, ask, bits,
    card::{CARD, Card, MIXTURES, SCHEDULES, driver, on_processor, same_bits, story, with_quantized},
    generate, golden, load_shaped, open, plain_options, tokens,
};
use drafthorse_draft::{LanguageModel, LogitRows, TokenId};
use drafthorse_offload::PolicyKind;
use drafthorse_offload::reader::PreadReader;
use drafthorse_runtime::Error;
use drafthorse_runtime::api::{DraftSource, EngineOptions, GpuOptions, KvType, Silent, WorkTime};
use drafthorse_runtime::backend::{AttendRows, Backend, CpuBackend, Norm, Reg, Rotation};
use drafthorse_runtime::engine::Engine;
use drafthorse_runtime::gguf::Gguf;
use drafthorse_runtime::gpu::{EmulatedOptions, GpuBackend, GpuParts, LayoutPlan, Schedule};
use drafthorse_runtime::kernels::Pool;
use drafthorse_runtime::kv::KvCache;
use drafthorse_runtime::layers::{Rope, Route, WindowPlan};
use drafthorse_runtime::models::{AttentionSpec, Blueprint, Model, ModelOptions};
use drafthorse_scheduler::DraftLen;

const DENSE: [&str; 5] = ["llama", "llama_tied", "llama_bias", "qwen2", "qwen3"];

#[test]
fn logits_have_the_processors_bits_for_every_architecture_and_cache_type() {
    for name in DENSE.into_iter().chain(MIXTURES) {
        for kv_type in [KvType::F16, KvType::Q8_0] {
            let path = golden(name);
            let gguf = Gguf::open(&path).unwrap();
            let blueprint = Blueprint::new(&gguf, &Default::default()).unwrap();
            if blueprint.kv_shape(kv_type).is_err() {
                continue; // Rows that Q8_0 does not hold are refused by both.
            }
            let setup = Setup { rows_max: 16, ..PLAIN };
            let expected = story(&mut on_processor(&path, setup, kv_type));
            let card = story(&mut CARD.load(&path, setup, kv_type));
            same_bits(name, &format!("{kv_type:?}"), &card, &expected);
        }
    }
}

#[test]
fn quantized_models_have_the_processors_bits_however_wide_a_pass_is() {
    with_quantized(|name, path| {
        let setup = Setup { rows_max: 16, ..PLAIN };
        let expected = story(&mut on_processor(path, setup, KvType::F16));
        for (slots_part, hybrid) in [(1, false), (usize::MAX, false), (usize::MAX, true)] {
            let card = Card { schedule: Schedule::Random(3), slots_part, hybrid, ..CARD };
            let story = story(&mut card.load(path, setup, KvType::F16));
            same_bits(name, &format!("{card:?}"), &story, &expected);
        }
    });
}

#[test]
fn a_card_that_cannot_reach_the_hosts_memory_copies_what_the_host_reads() {
    let setup = Setup { rows_max: 16, ..PLAIN };
    for name in ["mixtral", "deepseek2_v3_yarn"] {
        let path = golden(name);
        let expected = story(&mut on_processor(&path, setup, KvType::F16));
        let card = Card { schedule: Schedule::Random(4), slots_part: 2, reads_host: false, ..CARD };
        same_bits(name, "copied", &story(&mut card.load(&path, setup, KvType::F16)), &expected);
    }
}

#[test]
fn logits_do_not_depend_on_where_experts_are_and_when_work_runs() {
    for name in ["mixtral", "qwen3moe", "deepseek2_lite_legacy", "deepseek2_v3_yarn"] {
        let path = golden(name);
        let setup = Setup { rows_max: 16, ..PLAIN };
        let expected = story(&mut on_processor(&path, setup, KvType::F16));
        for schedule in SCHEDULES {
            for (slots_part, hybrid) in
                [(1, true), (4, false), (4, true), (usize::MAX, false), (usize::MAX, true)]
            {
                let card = Card { schedule, slots_part, hybrid, ..CARD };
                for slots in [usize::MAX, 8] {
                    let story = story(&mut card.load(&path, Setup { slots, ..setup }, KvType::F16));
                    same_bits(name, &format!("{card:?}, {slots} in memory"), &story, &expected);
                }
            }
        }
    }
}

#[test]
fn the_counters_tell_what_was_copied_and_what_was_computed_here() {
    let run = |card: Card| {
        let mut model = card.load(&golden("qwen3moe"), PLAIN, KvType::F16);
        story(&mut model);
        model.gpu_stats().unwrap()
    };
    let all = run(CARD);
    assert_eq!((all.host_experts, all.evicted), (0, 0), "{all:?}");
    assert!(all.misses == all.uploads && all.hits > all.misses && all.upload_bytes > 0, "{all:?}");
    let few = run(Card { slots_part: usize::MAX, ..CARD });
    assert!(few.evicted > 0 && few.uploads > all.uploads, "{few:?}");
    let shared = run(Card { slots_part: usize::MAX, hybrid: true, ..CARD });
    assert!(shared.host_experts > 0 && shared.uploads < few.uploads, "{shared:?}");
}

#[test]
fn what_is_learnt_of_experts_does_not_depend_on_where_they_are() {
    let path = golden("qwen3moe");
    let setup = Setup { policy: PolicyKind::Gating, ..PLAIN };
    let mut processor = on_processor(&path, setup, KvType::F16);
    let mut card = CARD.load(&path, setup, KvType::F16);
    story(&mut processor);
    story(&mut card);
    let (expected, learnt) = (processor.warm_stats().unwrap(), card.warm_stats().unwrap());
    assert_eq!(learnt, expected);
    assert_eq!(expected.hottest(12).len(), 12);
}

#[test]
fn a_card_whose_experts_are_dropped_starts_cold_again() {
    let mut model = CARD.load(&golden("mixtral"), PLAIN, KvType::F16);
    let expected = story(&mut model);
    let first = model.gpu_stats().unwrap();
    model.truncate(0);
    story(&mut model);
    assert_eq!(model.gpu_stats().unwrap().uploads, first.uploads, "all are there");
    model.truncate(0);
    model.drop_experts().unwrap();
    same_bits("mixtral", "after a drop", &story(&mut model), &expected);
    assert_eq!(model.gpu_stats().unwrap().uploads, 2 * first.uploads);
}

#[test]
fn a_card_that_fails_is_an_error_now_and_afterwards_and_nothing_hangs() {
    let mut failures = 0;
    for failing in (0..800).step_by(23) {
        let card =
            Card { failing: Some(failing), slots_part: 4, schedule: Schedule::Random(failing), ..CARD };
        let path = golden("qwen3moe");
        let gguf = Gguf::open(&path).unwrap();
        let reader = PreadReader::open(&gguf.files, 2).unwrap();
        let shape = |blueprint: &Blueprint| blueprint.kv_shape(KvType::F16).unwrap();
        let device = |blueprint: &Blueprint, options: &ModelOptions| Some(card.device(blueprint, options));
        let Ok(mut model) = load_shaped(&gguf, PLAIN, Box::new(reader), (&shape, &device)) else {
            failures += 1;
            continue;
        };
        let mut logits = Vec::new();
        let mut pass = |model: &mut Model| model.forward(&tokens(1, 9), LogitRows::All, &mut logits);
        let first = (0..6).find_map(|_| pass(&mut model).err());
        let Some(error) = first else { continue };
        failures += 1;
        assert!(error.to_string().contains("GPU"), "{error}");
        let len = model.len();
        assert!(pass(&mut model).is_err() && model.len() == len, "a card that has failed stays so");
    }
    assert!(failures > 10, "{failures}");
}

const EMULATED: GpuOptions =
    GpuOptions { device: "emulated", vram_bytes: None, hybrid: true, profile: false, unified: None };

fn gpu(model: &Path) -> EngineOptions {
    EngineOptions { gpu: Some(EMULATED), ..plain_options(model) }
}

#[test]
fn text_is_the_same_with_and_without_a_card_and_a_draft() {
    let (target, draft): (PathBuf, PathBuf) = (golden("deepseek2_v3_yarn"), golden("mixtral"));
    let prompt = tokens(5, 17);
    for temperature in [0.0, 0.8] {
        let expected = generate(&mut open(&plain_options(&target)), &prompt, &ask(40, temperature));
        assert_eq!(expected.gpu, None);
        for draft in [DraftSource::None, DraftSource::Ngram, DraftSource::Model(draft.clone())] {
            for draft_len in [DraftLen::Auto, DraftLen::Fixed(4)] {
                let options = EngineOptions { draft: draft.clone(), draft_len, ..gpu(&target) };
                let text = generate(&mut open(&options), &prompt, &ask(40, temperature));
                assert_eq!(text.tokens, expected.tokens, "{draft:?} {draft_len:?}");
                let report = text.gpu.unwrap();
                assert!(report.stats.hits > 0 && report.planned_bytes <= report.vram_bytes, "{report:?}");
            }
        }
    }
}

#[test]
fn a_profile_names_every_kernel_and_changes_no_text() {
    let target = golden("deepseek2_v3_yarn");
    let prompt = tokens(5, 9);
    let ask = ask(6, 0.0);
    let plain = generate(&mut open(&gpu(&target)), &prompt, &ask);
    assert!(plain.gpu.unwrap().kernels.is_empty(), "nothing is timed unasked");
    let profiled = GpuOptions { profile: true, ..EMULATED };
    let engine = &mut open(&EngineOptions { gpu: Some(profiled), ..plain_options(&target) });
    let text = generate(engine, &prompt, &ask);
    assert_eq!(text.tokens, plain.tokens);
    let kernels = text.gpu.unwrap().kernels;
    // What a narrow pass gives is written to the host's memory by kernels: angles are copied, results hardly ever.
    for name in ["rms_norm", "silu_mul", "place_heads", "attend_scores", "attend_values", "(upload)"] {
        let kernel = kernels.iter().find(|kernel| kernel.name == name).expect(name);
        assert!(kernel.count >= 6 && kernel.device_s > 0.0 && kernel.host_s > 0.0, "{kernel:?}");
    }
    let again = generate(engine, &prompt, &ask).gpu.unwrap().kernels;
    let attended = |kernels: &[WorkTime]| kernels.iter().find(|k| k.name == "attend_scores").map(|k| k.count);
    assert!(attended(&again).is_some() && attended(&again) <= attended(&kernels), "each counts its own");
}

#[test]
fn memory_that_holds_too_little_is_refused_with_the_sum_and_more_holds_more_experts() {
    let target = golden("qwen3moe");
    let with = |bytes| {
        let gpu = Some(GpuOptions { vram_bytes: Some(bytes), hybrid: false, ..EMULATED });
        Engine::open(&EngineOptions { gpu, ..plain_options(&target) }, &mut Silent)
    };
    let error = with(1 << 20).map(|_| ()).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    let text = error.to_string();
    assert!(
        matches!(error, Error::Vram(_)) && text.contains("--vram") && text.contains("KV cache"),
        "{text}"
    );
    let slots = |bytes| {
        let text = generate(&mut with(bytes).unwrap(), &tokens(1, 4), &ask(3, 0.0));
        (text.gpu.unwrap().stats.slots, text.offload.experts_total as usize)
    };
    let (mut refused, mut enough) = (1u64 << 20, 4u64 << 30);
    while enough - refused > 1 {
        let middle = (refused + enough) / 2;
        *(if with(middle).is_ok() { &mut enough } else { &mut refused }) = middle;
    }
    let ((fewest, total), (more, _), (all, _)) =
        (slots(enough), slots(enough + (1 << 18)), slots(enough + (64 << 20)));
    assert!(fewest < more && more <= all && all == total, "{fewest} {more} {all} {total}");
}

/// A small mixture's weights, and both that compute with them: the card, the processor.
fn both_backends(rows_max: usize) -> (Blueprint, [Box<dyn Backend>; 2]) {
    let gguf = Gguf::open(&golden("qwen3moe")).unwrap();
    let mut blueprint = Blueprint::new(&gguf, &Default::default()).unwrap();
    let mut reader = PreadReader::open(&gguf.files, 2).unwrap();
    Arc::get_mut(&mut blueprint.dense).unwrap().load(&mut reader, &mut |_| {}).unwrap();
    let kv = blueprint.kv_shape(KvType::F16).unwrap();
    let options = ModelOptions { context_len: 64, kv, rows_max, threads: 1, thread_name: "test" };
    let dense = blueprint.dense.clone();
    let (memory_bytes, is_unified, schedule) = (1 << 30, false, Schedule::Lazy);
    let parts = GpuParts {
        driver: driver(EmulatedOptions {
            memory_bytes,
            is_unified,
            reads_host: true,
            schedule,
            failing: None,
        }),
        dense: dense.clone(),
        layout: LayoutPlan::new(&blueprint, &options),
        experts: None,
    };
    let card = Box::new(GpuBackend::new(parts).unwrap());
    let pool = Pool::new(1, "test").unwrap();
    let scratch = options.scratch(&blueprint).allocate();
    let cache = KvCache::new(kv, blueprint.spec.blocks, 64);
    (blueprint, [card, Box::new(CpuBackend::new(dense, pool, cache, scratch))])
}

/// The first `len` values of a register become numbers of both signs.
fn fill(ops: &mut dyn Backend, reg: Reg, len: usize) {
    let numbers = &mut |_: &_, out: &mut [f32]| {
        out.iter_mut().enumerate().for_each(|(i, value)| *value = (i as f32 * 0.37 + 1.0).sin());
        Ok(())
    };
    ops.fill(reg, len, numbers).unwrap();
}

#[test]
fn an_addition_joins_the_norm_behind_it_only_where_both_are_of_the_same_rows() {
    let rows = 4;
    let (blueprint, backends) = both_backends(rows);
    let width = blueprint.spec.width;
    let norm = |x, rows, out| {
        let (stride, weight, eps) = (width, &blueprint.output_norm, 1e-6);
        Norm { x, rows, stride, weight, eps, out }
    };
    let [card, processor] = backends.map(|mut ops| {
        let mut seen = Vec::new();
        let mut look = |ops: &mut dyn Backend, regs: &[Reg]| {
            for reg in regs {
                seen.push(bits(ops.values(*reg, 0..rows * width).unwrap()));
            }
        };
        let ops = ops.as_mut();
        for reg in [Reg::Residual, Reg::Branch, Reg::Normed, Reg::Ahead] {
            fill(ops, reg, rows * width);
        }
        // The same rows; fewer of them; the last alone, as for a prompt's logits; another register between.
        ops.add(Reg::Branch, Reg::Residual, rows * width);
        ops.norm(norm(Reg::Residual, 0..rows, Reg::Normed));
        look(ops, &[Reg::Normed, Reg::Residual]);
        ops.add(Reg::Branch, Reg::Residual, 2 * width);
        ops.norm(norm(Reg::Residual, 0..rows, Reg::Normed));
        look(ops, &[Reg::Residual, Reg::Normed]);
        ops.add(Reg::Branch, Reg::Residual, rows * width);
        ops.norm(norm(Reg::Residual, rows - 1..rows, Reg::Normed));
        look(ops, &[Reg::Residual, Reg::Normed]);
        ops.add(Reg::Branch, Reg::Residual, rows * width);
        ops.sum(Reg::Residual, Reg::Branch, Reg::Ahead, rows * width);
        ops.norm(norm(Reg::Ahead, 0..rows, Reg::Ahead));
        look(ops, &[Reg::Ahead, Reg::Residual]);
        ops.add(Reg::Branch, Reg::Ahead, rows * width);
        ops.norm(norm(Reg::Residual, 0..rows, Reg::Normed));
        ops.add(Reg::Normed, Reg::Residual, rows * width);
        ops.add(Reg::Branch, Reg::Residual, rows * width);
        look(ops, &[Reg::Ahead, Reg::Normed, Reg::Residual]);
        // What is pending belongs to the values before these.
        ops.add(Reg::Branch, Reg::Residual, rows * width);
        fill(ops, Reg::Branch, rows * width);
        ops.norm(norm(Reg::Residual, 0..rows, Reg::Branch));
        ops.clear_branch(width);
        look(ops, &[Reg::Residual, Reg::Branch]);
        seen
    });
    for (step, (card, processor)) in card.iter().zip(&processor).enumerate() {
        assert_eq!(card, processor, "look {step}");
    }
}

#[test]
fn the_angles_of_a_pass_outlast_whatever_is_staged_while_it_runs() {
    let (blueprint, backends) = both_backends(4);
    let AttentionSpec::Gqa { heads, kv_heads, key_dim, value_dim, .. } = blueprint.spec.attention else {
        unreachable!("qwen3moe has heads")
    };
    let rope = Rope::new(&blueprint.spec.rope, None);
    let (rows, len) = (4, 4 * heads * key_dim);
    let at = AttendRows { block: 0, start: 9, rows, heads, kv_heads, key_dim, value_dim };
    let rotation = |heads| Rotation { heads, len: key_dim, offset: 0, norm: None };
    let plan = WindowPlan::new(&[Route { expert: 0, weight: 0.5 }; 9], (1, 1));
    let [card, processor] = backends.map(|mut ops| {
        for (reg, width) in
            [(Reg::Q, heads * key_dim), (Reg::K, kv_heads * key_dim), (Reg::V, kv_heads * value_dim)]
        {
            fill(ops.as_mut(), reg, rows * width);
        }
        ops.begin(rope.table(9, rows));
        // Each window stages its lists: nine rows are too many to come with a launch.
        (0..1000).for_each(|_| drop(ops.claim(0, &plan, &[0.5; 9])));
        ops.place_heads(&at, rotation(heads), rotation(kv_heads));
        bits(ops.values(Reg::Q, 0..len).unwrap())
    });
    assert_eq!(card, processor);
}

/// Where a card departs from the processor, for whoever looks for the reason: the first block whose input differs,
/// and in which row. `MODEL=FILE ROWS=N cargo test --test gpu -- --ignored --nocapture first_difference`.
#[test]
#[ignore = "takes a model of one's own"]
fn first_difference_between_card_and_processor() {
    let path = PathBuf::from(std::env::var_os("MODEL").expect("MODEL names a GGUF"));
    let rows: usize = std::env::var("ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(64);
    let setup = Setup { rows_max: rows, context_len: 512, threads: 4, ..PLAIN };
    let gguf = Gguf::open(&path).unwrap();
    let blocks = Blueprint::new(&gguf, &Default::default()).unwrap().spec.blocks;
    let taps: Vec<usize> = (0..=blocks).collect();
    let ids: Vec<TokenId> = tokens(7, rows);
    let states = |mut model: Model| {
        model.record_features(&taps);
        model.forward(&ids, LogitRows::Last, &mut Vec::new()).unwrap();
        model.features().unwrap().values.to_vec()
    };
    let card = states(CARD.load(&path, setup, KvType::F16));
    let again = states(CARD.load(&path, setup, KvType::F16));
    let processor = states(on_processor(&path, setup, KvType::F16));
    let width = card.len() / rows / taps.len();
    for tap in &taps {
        let differing = |a: &[f32], b: &[f32]| -> Vec<(usize, usize)> {
            let row = |row: usize| (row * taps.len() + tap) * width..(row * taps.len() + tap + 1) * width;
            let count = |at: usize| {
                bits(&a[row(at)]).iter().zip(bits(&b[row(at)])).filter(|(a, b)| **a != *b).count()
            };
            (0..rows).map(|at| (at, count(at))).filter(|(_, count)| *count > 0).collect()
        };
        println!("input of block {tap}: {:?}", differing(&card, &processor));
        println!("   card against itself: {:?}", differing(&card, &again));
    }
    assert!(bits(&card) == bits(&processor) && bits(&card) == bits(&again), "the first lines say where");
}
