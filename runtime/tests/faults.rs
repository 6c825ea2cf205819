//! Disks that fail: a read that is short, refused, late or out of order, a file cut while it is in use.
//!
//! Each failure is a typed error that names what could not be read, changes nothing, and is gone when
//! the disk is well again: the same pass then gives bitwise the same logits.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::{
    Notices, PLAIN, Setup, ask, bits, generate, golden, load, load_with, open, plain_options, tokens,
};
use common::{try_generate, try_load_with};
use drafthorse_draft::{LanguageModel, LogitRows, NgramConfig, TokenId};
use drafthorse_offload::reader::{Fault, FaultKind, Faults, MemoryReader};
use drafthorse_offload::{ExpertId, OffloadError, PARTS, PolicyKind, ReadError};
use drafthorse_runtime::Error;
use drafthorse_runtime::api::{DraftSource, EngineOptions};
use drafthorse_runtime::gguf::Gguf;
use drafthorse_runtime::layers::{Route, RouteSink};
use drafthorse_runtime::models::{Model, PassError};
use drafthorse_scheduler::DraftLen;
use tempfile::TempDir;

const MODELS: [&str; 3] = ["deepseek2_v3_yarn", "mixtral", "qwen3moe"];
const PART_NAMES: [&str; PARTS] = ["gate", "up", "down"];

fn reader(gguf: &Gguf, faults: &Faults, order_seed: Option<u64>) -> Box<MemoryReader> {
    let files = gguf.files.iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    Box::new(MemoryReader::new(files, faults.clone(), order_seed))
}

/// A golden model over a disk whose faults are in hand.
fn faulty(name: &str, setup: Setup) -> (Model, Faults) {
    let gguf = Gguf::open(&golden(name)).unwrap();
    let faults = Faults::default();
    let model = load_with(&gguf, setup, reader(&gguf, &faults, None));
    (model, faults)
}

/// As few slots as a pass can do with.
fn tight(name: &str) -> Setup {
    let used = load(&golden(name), PLAIN).blueprint().spec.moe.unwrap().used;
    Setup { slots: used, policy: PolicyKind::Gating, threads: 2, ..PLAIN }
}

fn layers(model: &Model) -> u32 {
    model.blueprint().experts.as_ref().unwrap().index.layers() as u32
}

/// Arms a fault for one part of every expert of a layer.
fn break_layer(model: &Model, faults: &Faults, (layer, part): (u32, usize), kind: FaultKind) {
    for expert in 0..model.blueprint().spec.moe.unwrap().experts as u32 {
        break_expert(model, faults, (ExpertId { layer, expert }, part), kind);
    }
}

fn break_expert(model: &Model, faults: &Faults, (id, part): (ExpertId, usize), kind: FaultKind) {
    let extent = model.blueprint().experts.as_ref().unwrap().index.extents(id).unwrap()[part];
    faults.add(Fault { file: extent.file, offset: extent.offset, kind });
}

fn run(model: &mut Model, tokens: &[TokenId]) -> Result<Vec<u32>, PassError> {
    let mut logits = Vec::new();
    model.pass(tokens, LogitRows::All, &mut logits)?;
    Ok(bits(&logits))
}

#[test]
fn an_unreadable_expert_is_named_and_the_same_pass_succeeds_later() {
    let text = tokens(1, 16);
    for name in MODELS {
        for setup in [PLAIN, tight(name)] {
            let mut undisturbed = load(&golden(name), setup);
            let want =
                [run(&mut undisturbed, &text[..5]).unwrap(), run(&mut undisturbed, &text[5..]).unwrap()];
            let (mut model, faults) = faulty(name, setup);
            for (layer, part) in (0..layers(&model)).flat_map(|l| (0..PARTS).map(move |p| (l, p))) {
                for kind in [FaultKind::Eio, FaultKind::Short { got: 10 }] {
                    model.truncate(0);
                    assert!(run(&mut model, &text[..5]).unwrap() == want[0]);
                    model.drop_experts().unwrap();
                    break_layer(&model, &faults, (layer, part), kind);
                    let error = run(&mut model, &text[5..]).unwrap_err();
                    check_error(&error, (layer, part), kind);
                    assert_eq!(model.len(), 5, "{name}: the cache is as before");
                    faults.clear();
                    assert!(run(&mut model, &text[5..]).unwrap() == want[1], "{name} after {error}");
                }
            }
        }
    }
}

fn check_error(error: &PassError, (layer, part): (u32, usize), kind: FaultKind) {
    let PassError::Experts(OffloadError::Load { id, part: failed, source }) = error else {
        unreachable!("{error:?}")
    };
    assert_eq!((id.layer, *failed), (layer, PART_NAMES[part]));
    match kind {
        FaultKind::Short { got } => assert!(matches!(source, ReadError::Short { got: g, .. } if *g == got)),
        _ => assert!(matches!(source, ReadError::Io { .. })),
    }
    let text = error.to_string();
    for word in [format!("expert {} of MoE layer {layer}", id.expert), ".gguf".into(), "offset".into()] {
        assert!(text.contains(&word), "{word} in {text}");
    }
}

#[test]
fn after_a_failed_pass_another_text_meets_no_stale_rows() {
    let (text, other) = (tokens(2, 16), tokens(3, 9));
    for name in MODELS {
        let mut fresh = load(&golden(name), PLAIN);
        run(&mut fresh, &text[..7]).unwrap();
        let want = run(&mut fresh, &other).unwrap();
        let (mut model, faults) = faulty(name, tight(name));
        run(&mut model, &text[..7]).unwrap();
        model.drop_experts().unwrap();
        break_layer(&model, &faults, (layers(&model) - 1, 2), FaultKind::Eio);
        run(&mut model, &text[7..]).unwrap_err();
        faults.clear();
        assert!(run(&mut model, &other).unwrap() == want, "{name}");
    }
}

/// A layer and the experts that one pass chose in it.
type LayerChoice = (u32, Vec<u32>);

/// Which experts of which layer each pass chose.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<LayerChoice>>>);

impl RouteSink for Heard {
    fn routed(&mut self, layer: u32, _used: usize, routes: &[Route]) {
        self.0.lock().unwrap().push((layer, routes.iter().map(|route| route.expert).collect()));
    }
}

impl Heard {
    /// The choices of each pass in one layer.
    fn in_layer(&self, layer: u32) -> Vec<BTreeSet<u32>> {
        let heard = self.0.lock().unwrap();
        heard
            .iter()
            .filter(|(l, _)| *l == layer)
            .map(|(_, experts)| experts.iter().copied().collect())
            .collect()
    }
}

/// Experts of the last layer by chunk of `rows` tokens.
fn routing(model: &Path, text: &[TokenId], rows: usize) -> Vec<BTreeSet<u32>> {
    let mut model = load(model, Setup { rows_max: rows, ..PLAIN });
    let heard = Heard::default();
    model.set_route_sinks(vec![Box::new(heard.clone())]);
    run(&mut model, text).unwrap();
    heard.in_layer(layers(&model) - 1)
}

#[test]
fn a_failure_in_a_later_chunk_takes_the_earlier_chunks_back() {
    const ROWS: usize = 2;
    let mut found = 0;
    for name in MODELS {
        let text = tokens(4, 6 * ROWS);
        let setup = Setup { rows_max: ROWS, ..PLAIN };
        let want = run(&mut load(&golden(name), setup), &text).unwrap();
        let chunks = routing(&golden(name), &text, ROWS);
        for (chunk, chosen) in chunks.iter().enumerate().skip(1) {
            let earlier: BTreeSet<u32> = chunks[..chunk].iter().flatten().copied().collect();
            let Some(expert) = chosen.difference(&earlier).next() else { continue };
            let (mut model, faults) = faulty(name, setup);
            let id = ExpertId { layer: layers(&model) - 1, expert: *expert };
            break_expert(&model, &faults, (id, 1), FaultKind::Eio);
            let error = run(&mut model, &text).unwrap_err();
            assert!(
                matches!(&error, PassError::Experts(OffloadError::Load { id: i, .. }) if *i == id),
                "{error}"
            );
            assert_eq!(model.len(), 0, "{name}: chunk {chunk} failed");
            assert!(run(&mut model, &text).unwrap() == want, "{name}: chunk {chunk} failed");
            found += 1;
        }
    }
    assert!(found > 3, "only {found} experts come up after the first chunk");
}

#[test]
fn late_and_reordered_reads_change_no_logit() {
    let text = tokens(5, 12);
    for name in MODELS {
        let gguf = Gguf::open(&golden(name)).unwrap();
        let tight = tight(name);
        let want = run(&mut load(&golden(name), PLAIN), &text).unwrap();
        for seed in 0..16 {
            for setup in [PLAIN, tight, Setup { slots: tight.slots + 1, ..tight }] {
                let faults = Faults::default();
                let mut model = load_with(&gguf, setup, reader(&gguf, &faults, Some(seed)));
                let delay = FaultKind::Delay { reads: 1 + seed as usize };
                break_layer(&model, &faults, (seed as u32 % layers(&model), seed as usize % PARTS), delay);
                assert!(
                    run(&mut model, &text).unwrap() == want,
                    "{name}, {} slots, order {seed}",
                    setup.slots
                );
            }
        }
    }
}

#[test]
fn a_dense_tensor_that_cannot_be_read_is_named() {
    for name in ["deepseek2_v3_yarn", "deepseek2_lite_legacy", "llama"] {
        let gguf = Gguf::open(&golden(name)).unwrap();
        for info in gguf.tensors.iter().filter(|info| !info.name.contains("_exps.")) {
            for kind in [FaultKind::Eio, FaultKind::Short { got: 3 }] {
                let faults = Faults::default();
                faults.add(Fault { file: info.file, offset: info.offset, kind });
                let error = try_load_with(&gguf, PLAIN, reader(&gguf, &faults, Some(1))).err();
                let text = error.unwrap_or_else(|| unreachable!("{} was read", info.name)).to_string();
                assert!(text.contains(&format!("tensor {}:", info.name)), "{text}");
            }
        }
    }
}

/// A copy of a golden model that can be cut short and made whole again while it is open.
struct Fragile {
    path: PathBuf,
    bytes: Vec<u8>,
    _folder: TempDir,
}

impl Fragile {
    fn new(name: &str) -> Fragile {
        let folder = tempfile::tempdir().unwrap();
        let (path, bytes) = (folder.path().join("fragile.gguf"), fs::read(golden(name)).unwrap());
        fs::write(&path, &bytes).unwrap();
        Fragile { path, bytes, _folder: folder }
    }

    /// Cuts through the middle of the last expert of the file.
    fn cut(&self) {
        let gguf = Gguf::open(&self.path).unwrap();
        let experts = gguf.tensors.iter().filter(|info| info.name.contains("_exps."));
        let last = experts.max_by_key(|info| info.offset).unwrap();
        let expert_bytes = last.bytes / last.dims[2];
        self.file().set_len(last.offset + last.bytes - expert_bytes / 2).unwrap();
    }

    fn mend(&self) {
        let mut file = self.file();
        let len = file.metadata().unwrap().len();
        file.seek(SeekFrom::Start(len)).unwrap();
        file.write_all(&self.bytes[len as usize..]).unwrap();
        file.sync_all().unwrap();
    }

    fn file(&self) -> File {
        File::options().write(true).open(&self.path).unwrap()
    }
}

/// A prompt after which the last expert of the last layer is first needed some tokens later, greedily.
fn prompt_that_spares_the_last_expert(name: &str) -> (Vec<TokenId>, Vec<TokenId>) {
    let last = load(&golden(name), PLAIN).blueprint().spec.moe.unwrap().experts as u32 - 1;
    for seed in 0..200 {
        let prompt = tokens(seed, 2);
        let answer = generate(&mut open(&plain_options(&golden(name))), &prompt, &ask(24, 0.0)).tokens;
        let text = [&prompt[..], &answer].concat();
        let first = routing(&golden(name), &text, 1).iter().position(|experts| experts.contains(&last));
        if first.is_some_and(|first| (8..text.len() - 8).contains(&first)) {
            return (prompt, answer);
        }
    }
    unreachable!("no such prompt for {name}")
}

#[test]
fn a_model_file_cut_while_in_use_is_an_error_and_the_engine_stays_usable() {
    for name in MODELS {
        let fragile = Fragile::new(name);
        let (prompt, answer) = prompt_that_spares_the_last_expert(name);
        let used = load(&golden(name), PLAIN).blueprint().spec.moe.unwrap().used;
        for slots in [None, Some(used)] {
            let mut engine = open(&EngineOptions { slots, ..plain_options(&fragile.path) });
            fragile.cut();
            let mut said = Vec::new();
            let mut listen = |tokens: &[TokenId]| {
                said.extend_from_slice(tokens);
                ControlFlow::Continue(())
            };
            let error =
                engine.generate(&prompt, &ask(24, 0.0), &mut Notices::default(), &mut listen).unwrap_err();
            assert!(!said.is_empty() && said.len() < 24 && answer.starts_with(&said), "{said:?}");
            assert!(matches!(&error, Error::Offload(OffloadError::Load { part: "down", .. })), "{error:?}");
            assert_eq!(error.exit_code(), 1);
            let text = error.to_string();
            assert!(text.contains("short read") && text.contains("fragile.gguf"), "{text}");
            assert!(try_generate(&mut engine, &prompt, &ask(24, 0.0)).is_err(), "it is still cut");
            fragile.mend();
            assert_eq!(generate(&mut engine, &prompt, &ask(24, 0.0)).tokens, answer, "{name}");
        }
    }
}

#[test]
fn a_draft_model_that_fails_midway_is_put_away_and_the_text_goes_on() {
    for name in MODELS {
        let draft = Fragile::new(name);
        let (prompt, answer) = prompt_that_spares_the_last_expert(name);
        let mut engine = open(&EngineOptions {
            draft: DraftSource::Model(draft.path.clone()),
            draft_len: DraftLen::Fixed(3),
            ..plain_options(&golden(name))
        });
        draft.cut();
        let mut notices = Notices::default();
        let go_on = &mut |_: &[TokenId]| ControlFlow::Continue(());
        let generation = engine.generate(&prompt, &ask(24, 0.0), &mut notices, go_on).unwrap();
        assert_eq!(generation.tokens, answer, "{name}");
        assert!(generation.speculation.accepted > 0, "{name}: it drafted before it failed");
        let [notice] = &notices.0[..] else { unreachable!("one line: {:?}", notices.0) };
        for word in ["the model drafter failed and was put away", "short read", "fragile.gguf"] {
            assert!(notice.contains(word), "{word} in {notice}");
        }
        assert_eq!(generation.speculation.off_reason.as_ref(), Some(notice));
        let later = generate(&mut engine, &prompt, &ask(24, 0.0));
        assert_eq!((later.tokens, later.speculation.proposed), (answer, 0));
    }
}

#[test]
fn in_a_chain_the_others_go_on_when_the_draft_model_fails() {
    for name in MODELS {
        let draft = Fragile::new(name);
        let (prompt, answer) = prompt_that_spares_the_last_expert(name);
        let members = vec![DraftSource::Ngram, DraftSource::Model(draft.path.clone())];
        let mut engine = open(&EngineOptions {
            draft: DraftSource::Chain(members),
            draft_len: DraftLen::Fixed(3),
            ngram: NgramConfig { min_match: 2, max_match: 4 },
            context_len: 512,
            ..plain_options(&golden(name))
        });
        draft.cut();
        let mut notices = Notices::default();
        let go_on = &mut |_: &[TokenId]| ControlFlow::Continue(());
        let generation = engine.generate(&prompt, &ask(24, 0.0), &mut notices, go_on).unwrap();
        assert_eq!(generation.tokens, answer, "{name}");
        let [notice] = &notices.0[..] else { unreachable!("one line: {:?}", notices.0) };
        for word in ["the model drafter failed and was put away, the others go on", "fragile.gguf"] {
            assert!(notice.contains(word), "{word} in {notice}");
        }
        assert_eq!(generation.speculation.off_reason, None, "drafting goes on");
        // A prompt in which 7 was followed by everything: whatever follows it now is found again.
        let all: Vec<TokenId> = (0..128).flat_map(|token| [7, token]).chain([7]).collect();
        let later = generate(&mut engine, &all, &ask(8, 0.0));
        assert!(later.speculation.proposed > 0, "{name}");
    }
}
