//! Heads through the public engine: they change speed, never text (DESIGN I2); what they draft does not
//! depend on how they were shown the text; and what does not fit is refused in one clear line (I6).

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::synthetic::{Mixture, write_changed_copy};
use common::{Notices, ask, generate, golden, local, open, plain_options, tokens};
use drafthorse_draft::TokenId;
use drafthorse_offload::reader::{DiskClock, DiskSpec, SimulatedDisk};
use drafthorse_runtime::Error;
use drafthorse_runtime::api::{DraftSource, EngineOptions, Generation, Silent};
use drafthorse_runtime::engine::Engine;
use drafthorse_runtime::gguf::{Array, BlockType, Gguf, Strings, Value, Writer};
use drafthorse_scheduler::{BudgetError, DraftLen};

const GENERATED: usize = 40;

fn head_file(name: &str) -> PathBuf {
    local("tests/heads").join(name).with_extension("gguf")
}

/// Every head: the name of its drafter, its target, how it is asked for.
fn heads() -> [(&'static str, PathBuf, DraftSource); 4] {
    let of = |name: &str| DraftSource::Model(head_file(name));
    [
        ("mtp", head_file("mtp"), DraftSource::Mtp),
        ("eagle3", golden("llama_tied"), of("eagle3")),
        ("eagle3_variant", golden("llama_tied"), of("eagle3_variant")),
        ("medusa", golden("llama_tied"), of("medusa")),
    ]
}

fn drafted(target: &Path, draft: &DraftSource, draft_len: DraftLen) -> EngineOptions {
    EngineOptions { draft: draft.clone(), draft_len, ..plain_options(target) }
}

/// What was guessed and what came of it.
fn guesses(generation: &Generation) -> (u64, u64, u64) {
    let speculation = &generation.speculation;
    assert_eq!(speculation.off_reason, None);
    (speculation.proposed, speculation.accepted, speculation.target_passes)
}

#[test]
fn a_head_never_changes_the_text_and_is_sometimes_right() {
    for (name, target, draft) in heads() {
        let prompt = tokens(5, 23);
        // Where the law is nearly flat, the noise that both sides share decides: an untrained head is right.
        for temperature in [0.0, 0.8, 4.0] {
            let plain = generate(&mut open(&plain_options(&target)), &prompt, &ask(GENERATED, temperature));
            for draft_len in [DraftLen::Fixed(1), DraftLen::Fixed(3), DraftLen::Fixed(8), DraftLen::Auto] {
                let mut engine = open(&drafted(&target, &draft, draft_len));
                let got = generate(&mut engine, &prompt, &ask(GENERATED, temperature));
                assert_eq!(got.tokens, plain.tokens, "{name}, {draft_len:?}, temperature {temperature}");
                assert!(got.speculation.proposed > 0, "{name}, {draft_len:?}");
                if temperature == 4.0 && draft_len == DraftLen::Fixed(3) {
                    let (proposed, accepted, passes) = guesses(&got);
                    println!("{name}: {accepted} of {proposed} accepted in {passes} passes");
                    assert!(accepted > 4, "{name}: {accepted} of {proposed}");
                }
            }
        }
    }
}

#[test]
fn what_is_drafted_does_not_depend_on_chunks_threads_or_slots() {
    for (name, target, draft) in heads() {
        let prompt = tokens(6, 50);
        let options = drafted(&target, &draft, DraftLen::Fixed(3));
        let expected = generate(&mut open(&options), &prompt, &ask(GENERATED, 4.0));
        let tight = open(&options).memory_plan().slots.min(4);
        for (prefill_chunk, threads, slots) in
            [(7, 2, None), (1, 1, None), (64, 3, None), (16, 2, Some(tight))]
        {
            let slots = slots.filter(|slots| *slots > 0);
            let prefill_chunk = Some(prefill_chunk);
            let varied =
                EngineOptions { prefill_chunk, threads, draft_threads: threads, slots, ..options.clone() };
            let got = generate(&mut open(&varied), &prompt, &ask(GENERATED, 4.0));
            assert_eq!(got.tokens, expected.tokens, "{name}");
            assert_eq!(guesses(&got), guesses(&expected), "{name}, chunks of {prefill_chunk:?}");
        }
    }
}

/// An engine in hardly more than the smallest budget that opens: a mixture's embedding then stays in its file.
fn tightest(options: &EngineOptions) -> Engine {
    const SOME_SLOTS: u64 = 1 << 20;
    let mut budget = 1 << 20;
    loop {
        let options = EngineOptions { memory_bytes: Some(budget), ..options.clone() };
        // The process itself is part of the sum, and other tests make it grow meanwhile.
        match Engine::open(&options, &mut Silent) {
            Ok(engine) => return engine,
            Err(Error::Budget(BudgetError::TooSmall { smallest })) => {
                assert!(smallest.planned_bytes < 1 << 30);
                budget = smallest.planned_bytes + SOME_SLOTS;
            }
            Err(other) => unreachable!("{other}"),
        }
    }
}

#[test]
fn a_head_drafts_the_same_where_embeddings_stay_in_their_files() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("large.gguf");
    Mixture { width: 64, inner: 1024, experts: 16, blocks: 2, unsupported: None }.write(&target);
    // The first borrows the target's embedding, the second has one of its own, the third needs none.
    for name in ["eagle3", "eagle3_variant", "medusa"] {
        let draft = DraftSource::Model(head_file(name));
        let options = drafted(&target, &draft, DraftLen::Fixed(3));
        let expected = generate(&mut open(&options), &tokens(2, 20), &ask(GENERATED, 4.0));
        assert!(expected.speculation.accepted > 0, "{draft:?}");
        let dense = |engine: &Engine| {
            let lines = &engine.memory_plan().lines;
            lines.iter().find(|line| line.name == "dense weights").unwrap().bytes
        };
        let mut engine = tightest(&options);
        assert!(
            dense(&engine) < dense(&open(&options)),
            "{draft:?}: the target's embedding stays in its file"
        );
        assert!(
            (engine.memory_plan().slots as u64) < expected.offload.experts_total,
            "{draft:?}: it is tight"
        );
        let got = generate(&mut engine, &tokens(2, 20), &ask(GENERATED, 4.0));
        assert!(got.offload.misses > expected.offload.misses, "{draft:?}");
        assert_eq!(got.tokens, expected.tokens, "{draft:?}");
        assert_eq!(guesses(&got), guesses(&expected), "{draft:?}");
    }
}

#[test]
fn a_prediction_head_with_its_own_copies_of_the_targets_tensors_drafts_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (path, plain) = (folder.path().join("own.gguf"), folder.path().join("plain.gguf"));
    let borrowed = [
        ("token_embd.weight", "blk.2.nextn.embed_tokens.weight"),
        ("output.weight", "blk.2.nextn.shared_head_head.weight"),
        ("output_norm.weight", "blk.2.nextn.shared_head_norm.weight"),
    ];
    let is_own = |name: &str| borrowed.iter().any(|(_, own)| *own == name);
    write_with(&head_file("mtp"), &plain, |name, _, _| AS_IT_IS.filter(|_| !is_own(name)));
    let (gguf, file) = (Gguf::open(&plain).unwrap(), std::fs::read(&plain).unwrap());
    let mut writer = Writer::new();
    gguf.metadata.iter().for_each(|(key, value)| {
        writer.metadata(key, value.clone());
    });
    for info in &gguf.tensors {
        let bytes = file[info.offset as usize..][..info.bytes as usize].to_vec();
        let names = borrowed.iter().filter(|(from, _)| *from == info.name).map(|(_, own)| *own);
        for name in names.chain([info.name.as_str()]) {
            let bytes = bytes.clone();
            writer.tensor(name, &info.dims, info.block_type, move |out| out.write_all(&bytes));
        }
    }
    writer.write(&path).unwrap();
    let run = |path: &Path| {
        let options = drafted(path, &DraftSource::Mtp, DraftLen::Fixed(4));
        let expected = generate(&mut open(&options), &tokens(2, 20), &ask(GENERATED, 4.0));
        (expected.tokens.clone(), guesses(&expected))
    };
    assert_eq!(run(&path), run(&plain));
}

#[test]
fn a_head_that_fails_midway_is_put_away_and_the_text_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fragile.gguf");
    std::fs::copy(head_file("mtp"), &path).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let is_heads = |name: &str| name.starts_with("blk.2.") && name.contains("_exps");
    let cut = gguf.tensors.iter().filter(|info| is_heads(&info.name)).map(|info| info.offset).min().unwrap();
    assert!(gguf.tensors.iter().all(|info| info.offset < cut || info.name.starts_with("blk.2.")));
    let plain = generate(&mut open(&plain_options(&path)), &tokens(3, 9), &ask(20, 0.0));
    let mut engine = open(&drafted(&path, &DraftSource::Mtp, DraftLen::Fixed(2)));
    // The head's experts are read when they are first wanted.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
    let mut notices = Notices::default();
    let go_on = &mut |_: &[TokenId]| ControlFlow::Continue(());
    let got = engine.generate(&tokens(3, 9), &ask(20, 0.0), &mut notices, go_on).unwrap();
    assert_eq!(got.tokens, plain.tokens);
    let [notice] = &notices.0[..] else { unreachable!("one line: {:?}", notices.0) };
    assert!(
        notice.contains("the mtp drafter failed and was put away") && notice.contains("fragile"),
        "{notice}"
    );
    assert_eq!(got.speculation.off_reason.as_ref(), Some(notice));
    let later = generate(&mut engine, &tokens(3, 9), &ask(20, 0.0));
    assert_eq!((later.tokens, later.speculation.proposed), (plain.tokens, 0));
}

#[test]
fn what_becomes_of_a_files_prediction_head_is_said() {
    let said = |draft: DraftSource| {
        let mut notices = Notices::default();
        let options =
            EngineOptions { draft, draft_len: DraftLen::Fixed(1), ..plain_options(&head_file("mtp")) };
        Engine::open(&options, &mut notices).unwrap();
        notices.0.into_iter().filter(|line| line.contains("prediction head")).collect::<Vec<_>>()
    };
    assert_eq!(said(DraftSource::None), ["the file has a prediction head, which is not used (--draft mtp)"]);
    assert_eq!(said(DraftSource::Mtp), [] as [&str; 0]);
}

#[test]
fn a_heads_token_list_must_be_the_targets() {
    let folder = tempfile::tempdir().unwrap();
    let (target, head) = (folder.path().join("t.gguf"), folder.path().join("h.gguf"));
    let list = |last: &str| {
        let tokens = (0..127).map(|id| format!("t{id}")).chain([last.to_owned()]);
        Value::Array(Array::Strings(Strings::try_from_iter(tokens).unwrap()))
    };
    let key = "tokenizer.ggml.tokens";
    write_changed_copy(&golden("llama_tied"), &target, &[(key, list("end"))], None);
    let draft = DraftSource::Model(head.clone());
    write_changed_copy(&head_file("eagle3"), &head, &[(key, list("end"))], None);
    open(&drafted(&target, &draft, DraftLen::Fixed(1)));
    write_changed_copy(&head_file("eagle3"), &head, &[(key, list("END"))], None);
    let error = Engine::open(&drafted(&target, &draft, DraftLen::Fixed(1)), &mut Silent).err().unwrap();
    assert!(error.to_string().contains("token 127 is"), "{error}");
    // A file without one is taken at its word.
    open(&drafted(&target, &DraftSource::Model(head_file("eagle3")), DraftLen::Fixed(1)));
}

#[test]
fn a_later_prompt_is_drafted_for_as_by_a_new_engine() {
    for (name, target, draft) in heads() {
        let options = drafted(&target, &draft, DraftLen::Fixed(3));
        let mut engine = open(&options);
        let mut text = tokens(8, 12);
        let mut turns: Vec<Vec<TokenId>> = Vec::new();
        for cut in [0, 1, 2, 5, 9] {
            // The same again, its end changed, then longer.
            text.truncate(text.len() - cut);
            turns.push(text.clone());
            text.extend(tokens(cut as u32, cut + 4));
            turns.push(text.clone());
        }
        for prompt in &turns {
            let got = generate(&mut engine, prompt, &ask(10, 4.0));
            let new = generate(&mut open(&options), prompt, &ask(10, 4.0));
            assert_eq!(got.tokens, new.tokens, "{name}");
            assert_eq!(guesses(&got), guesses(&new), "{name}, a prompt of {}", prompt.len());
            // The answer goes on in the next prompt.
            let next = [&prompt[..], &got.tokens].concat();
            let (got, new) = (
                generate(&mut engine, &next, &ask(6, 4.0)),
                generate(&mut open(&options), &next, &ask(6, 4.0)),
            );
            assert_eq!((&got.tokens, guesses(&got)), (&new.tokens, guesses(&new)), "{name}");
        }
    }
}

#[test]
fn a_head_that_is_rarely_asked_takes_in_what_it_missed() {
    for (name, target, draft) in heads() {
        // Passes of at most 9 rows: what is kept for the head overflows many times while drafting is off.
        let options = EngineOptions { prefill_chunk: Some(1), ..drafted(&target, &draft, DraftLen::Auto) };
        let prompt = tokens(4, 6);
        let got = generate(&mut open(&options), &prompt, &ask(110, 0.0));
        let plain = generate(&mut open(&plain_options(&target)), &prompt, &ask(110, 0.0));
        assert_eq!(got.tokens, plain.tokens, "{name}");
        let reason = got.speculation.off_reason.unwrap_or_default();
        assert!(!reason.contains("put away"), "{name}: {reason}");
    }
}

#[test]
fn the_memory_plan_counts_the_head_and_what_is_kept_for_it() {
    for (name, target, draft) in heads() {
        let bytes_of = |options: &EngineOptions| {
            let plan = Engine::plan(options).unwrap();
            plan.lines.iter().find(|line| line.name == "draft").unwrap().bytes
        };
        assert_eq!(bytes_of(&plain_options(&target)), 0);
        let long = bytes_of(&drafted(&target, &draft, DraftLen::Fixed(3)));
        let weights: u64 = match draft {
            DraftSource::Model(path) => {
                Gguf::open(&path).unwrap().tensors.iter().map(|info| info.bytes).sum()
            }
            _ => {
                let gguf = Gguf::open(&target).unwrap();
                gguf.tensors
                    .iter()
                    .filter(|info| info.name.starts_with("blk.2."))
                    .map(|info| info.bytes)
                    .sum()
            }
        };
        assert!(long > weights, "{name}: {long} bytes for {weights} of weights");
    }
}

/// Time that passes only while somebody waits for the disk.
#[derive(Clone, Default)]
struct DiskTime(Arc<Mutex<Duration>>);

impl DiskClock for DiskTime {
    fn now(&self) -> Duration {
        *self.0.lock().unwrap()
    }

    fn wait_until(&self, time: Duration) {
        let mut now = self.0.lock().unwrap();
        *now = time.max(*now);
    }
}

#[test]
fn a_simulated_disk_holds_back_what_is_read_of_a_head() {
    const BYTES_PER_S: u64 = 1 << 20;
    let seconds_to_open = |target: &Path, draft: &DraftSource| {
        let (time, latency) = (DiskTime::default(), Duration::from_micros(1));
        let spec = DiskSpec { bytes_per_s: BYTES_PER_S, latency };
        let disk = Some(SimulatedDisk::with_clock(spec, Box::new(time.clone())));
        open(&EngineOptions { simulate_disk: disk, ..drafted(target, draft, DraftLen::Fixed(2)) });
        time.now().as_secs_f64()
    };
    for (name, target, draft) in heads() {
        // A head's experts are read when they are wanted, all else at once.
        let is_heads =
            |tensor: &str| name != "mtp" || tensor.starts_with("blk.2.") && !tensor.contains("_exps");
        let gguf = Gguf::open(&head_file(name)).unwrap();
        let tensors = gguf.tensors.iter().filter(|info| is_heads(&info.name));
        let bytes: u64 = tensors.map(|info| info.bytes).sum();
        let plain = seconds_to_open(&target, &DraftSource::None);
        let least = bytes as f64 / BYTES_PER_S as f64;
        let taken = seconds_to_open(&target, &draft) - plain;
        assert!(plain > 0.0 && taken >= least, "{name}: {taken} s for {bytes} bytes, {plain} s without");
    }
}

#[test]
fn a_head_that_was_shown_nothing_cannot_be_asked_to_draft_later() {
    for (name, target, draft) in heads() {
        let mut engine = open(&drafted(&target, &draft, DraftLen::Fixed(0)));
        let plain = generate(&mut engine, &tokens(3, 9), &ask(12, 0.0)).tokens;
        for mode in [DraftLen::Fixed(1), DraftLen::Fixed(7), DraftLen::Auto] {
            let error = engine.set_draft_len(mode).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.to_string().contains("its head was shown nothing"), "{name}, {mode}: {error}");
        }
        engine.set_draft_len(DraftLen::Fixed(0)).unwrap();
        assert_eq!(generate(&mut engine, &tokens(3, 9), &ask(12, 0.0)).tokens, plain, "{name}");
        let mut drafting = open(&drafted(&target, &draft, DraftLen::Fixed(2)));
        drafting.set_draft_len(DraftLen::Fixed(1)).unwrap();
        let got = generate(&mut drafting, &tokens(3, 9), &ask(12, 0.0));
        assert!(got.tokens == plain && got.speculation.proposed > 0, "{name}");
    }
}

/// The message that opening ends with; its exit code is that of a file that cannot be used.
fn refusal(target: &Path, draft: DraftSource) -> String {
    let error = Engine::open(&drafted(target, &draft, DraftLen::Fixed(2)), &mut Silent).err().unwrap();
    assert_eq!(error.exit_code(), 3, "{error}");
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

/// A copy of `from` in which `change` may replace a tensor's name, dimensions and bytes, or drop it.
fn write_with(
    from: &Path,
    to: &Path,
    change: impl Fn(&str, &mut Vec<u64>, &mut Vec<u8>) -> Option<BlockType>,
) {
    let (gguf, file) = (Gguf::open(from).unwrap(), std::fs::read(from).unwrap());
    let mut writer = Writer::new();
    gguf.metadata.iter().for_each(|(key, value)| {
        writer.metadata(key, value.clone());
    });
    for info in &gguf.tensors {
        let mut bytes = file[info.offset as usize..][..info.bytes as usize].to_vec();
        let mut dims = info.dims.clone();
        if let Some(kind) = change(&info.name, &mut dims, &mut bytes) {
            let kind = if kind == BlockType::I8 { info.block_type } else { kind };
            writer.tensor(info.name.clone(), &dims, kind, move |out| out.write_all(&bytes));
        }
    }
    writer.write(to).unwrap();
}

/// Leaves a tensor as it is.
const AS_IT_IS: Option<BlockType> = Some(BlockType::I8);

#[test]
fn heads_for_another_target_are_refused_by_what_differs() {
    let text = refusal(&golden("llama"), DraftSource::Mtp);
    assert!(text.contains("llama.gguf") && text.contains("llama.nextn_predict_layers"), "{text}");
    let text = refusal(&head_file("medusa"), DraftSource::None);
    assert!(text.contains("medusa is a head: give it as --draft"), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let changed = |name: &str, key: &str, value: Value| {
        let path = folder.path().join(format!("{}.gguf", key.replace('.', "_")));
        write_changed_copy(&head_file(name), &path, &[(key, value)], None);
        DraftSource::Model(path)
    };
    let target = golden("llama_tied");
    let layers = |layers: &[i32]| Value::Array(Array::I32(layers.to_vec()));
    for (name, key, value, words) in [
        ("eagle3", "eagle3.target_hidden_size", Value::U32(96), "96, but the target's hidden states have 64"),
        ("eagle3", "eagle3.target_layers", layers(&[0, 1, 3]), "layer 3, but the target has 2 blocks"),
        ("eagle3", "eagle3.target_layers", layers(&[0, -1, 2]), "not an array of integers from 0 on"),
        ("eagle3", "eagle3.target_layers", layers(&[0, 1]), "2 layers, not 3"),
        ("eagle3", "eagle3.target_layers", Value::U32(2), "not an array of integers from 0 on"),
        ("eagle3", "eagle3.block_count", Value::U32(2), "such a head has one block"),
        ("eagle3", "eagle3.attention.head_count_kv", Value::U32(3), "3 does not divide 2"),
        ("eagle3", "eagle3.embedding_length", Value::U32(u32::MAX), "is not in 1..="),
        ("medusa", "medusa.embedding_length", Value::U32(32), "32, but the target's width is 64"),
        ("medusa", "medusa.vocab_size", Value::U32(1000), "1000, but the target's vocabulary is 128"),
        ("medusa", "medusa.head_count", Value::U32(4), "head.3.block.0.weight"),
        ("medusa", "medusa.head_count", Value::U32(1 << 31), "is not in 1..="),
        ("medusa", "medusa.head_count", Value::U32(2), "head.2.block.0.weight"),
    ] {
        let text = refusal(&target, changed(name, key, value));
        assert!(text.contains(words), "{words} in {text}");
    }
    // A head for 64 values and 128 tokens on a target with 288 tokens.
    let text = refusal(&golden("llama"), DraftSource::Model(head_file("medusa")));
    assert!(text.contains("vocabulary is 288"), "{text}");
}

#[test]
fn head_files_with_missing_or_misshapen_tensors_or_a_wrong_map_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.gguf");
    let bad = || DraftSource::Model(path.clone());
    let target = golden("llama_tied");
    for missing in ["fc.weight", "blk.0.attn_norm_2.weight", "output.weight", "blk.0.ffn_up.weight"] {
        write_with(&head_file("eagle3"), &path, |name, _, _| AS_IT_IS.filter(|_| name != missing));
        let text = refusal(&target, bad());
        assert!(text.contains(missing) && text.contains("missing"), "{text}");
    }
    for missing in ["blk.2.nextn.eh_proj.weight", "blk.2.nextn.enorm.weight", "blk.2.ffn_up_exps.weight"] {
        write_with(&head_file("mtp"), &path, |name, _, _| AS_IT_IS.filter(|_| name != missing));
        let text = refusal(&path, DraftSource::Mtp);
        assert!(text.contains(missing) && text.contains("missing"), "{text}");
        // Without its head, the target runs as ever.
        generate(&mut open(&plain_options(&path)), &tokens(1, 4), &ask(3, 0.0));
    }
    let reshape = |from: &str, tensor: &str, dims: &[u64]| {
        write_with(&head_file(from), &path, |name, had, _| {
            if name == tensor {
                *had = dims.to_vec();
            }
            AS_IT_IS
        });
    };
    reshape("eagle3", "fc.weight", &[96, 128]);
    assert!(refusal(&target, bad()).contains("fc.weight has shape [96, 128]"));
    reshape("medusa", "head.1.block.0.weight", &[128, 32]);
    assert!(refusal(&target, bad()).contains("head.1.block.0.weight has shape [128, 32]"));
    reshape("mtp", "blk.2.nextn.eh_proj.weight", &[64, 128]);
    assert!(refusal(&path, DraftSource::Mtp).contains("nextn.eh_proj.weight has shape [64, 128]"));
    for (row, id, words) in [
        (5, 128i64, "row 5: id 128 is outside the vocabulary of 128"),
        (0, -1, "row 0: id -1 is outside"),
        (2, i64::MAX, "row 2: id 9223372036854775807 is outside"),
    ] {
        write_with(&head_file("eagle3"), &path, |name, _, bytes| {
            if name == "d2t" {
                bytes[8 * row..8 * row + 8].copy_from_slice(&id.to_le_bytes());
            }
            AS_IT_IS
        });
        let text = refusal(&target, bad());
        assert!(text.contains("tensor d2t") && text.contains(words), "{text}");
    }
    write_with(&head_file("eagle3"), &path, |name, _, bytes| {
        if name == "d2t" {
            bytes.copy_within(0..8, 8);
        }
        AS_IT_IS
    });
    assert!(refusal(&target, bad()).contains("is there twice"));
    write_with(&head_file("eagle3"), &path, |name, dims, _| match name {
        "d2t" => {
            dims[0] *= 2;
            Some(BlockType::I32)
        }
        _ => AS_IT_IS,
    });
    assert!(refusal(&target, bad()).contains("is I32 [192], not I64 of 1 to 128 ids"));
}
