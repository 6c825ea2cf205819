//! I2 and I3 through the public engine: settings change speed, never text.
//!
//! The type of the KV cache is a part of the model: each has a text of its own, and within it all of this
//! holds. Logits are compared bit by bit, generated ids one by one, greedy and sampled with a seed: each axis
//! alone against plain decoding, then combinations in which any two values of any two axes meet.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::pairwise::pairwise;
use common::synthetic::{Mixture, write_coarse_copy, write_copy_in};
use common::{PLAIN, Setup, ask, bits, generate, golden, load, logits_of, open, plain_options, tokens};
use drafthorse_draft::{LanguageModel, LogitRows, TokenId};
use drafthorse_offload::PolicyKind;
use drafthorse_runtime::api::{DraftSource, EngineOptions, KvType, Silent};
use drafthorse_runtime::gguf::Gguf;
use drafthorse_runtime::kernels::Format;
use drafthorse_runtime::models::{Blueprint, Model, Overrides};
use drafthorse_scheduler::DraftLen;
use tempfile::TempDir;

/// Targets, each with an unrelated model of the same vocabulary.
const PAIRS: [(&str, &str); 4] =
    [("deepseek2_v3_yarn", "mixtral"), ("mixtral", "llama_tied"), ("qwen3moe", "qwen3"), ("llama", "qwen2")];
/// Targets and others whose rows Q8_0 holds: with a latent row and with heads.
const Q8_0_PAIRS: [(&str, &str); 2] = [("deepseek2_v3_yarn", "qwen3"), ("qwen3moe", "qwen3")];
const GENERATED: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Drafter {
    Nobody,
    Ngram,
    /// The target's own file.
    Itself,
    /// The target with coarser weights.
    Coarse,
    /// Another model.
    Other,
    Suffix,
    /// Lookup, and the coarse model where it abstains.
    SuffixThenCoarse,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Slots {
    Minimum,
    Quarter,
    All,
}

/// One setting of every axis.
#[derive(Clone, Copy, Debug)]
struct Case {
    drafter: Drafter,
    draft_len: DraftLen,
    slots: Slots,
    policy: PolicyKind,
    threads: usize,
    prefill_chunk: usize,
}

const DRAFTERS: [Drafter; 7] = [
    Drafter::Nobody,
    Drafter::Ngram,
    Drafter::Itself,
    Drafter::Coarse,
    Drafter::Other,
    Drafter::Suffix,
    Drafter::SuffixThenCoarse,
];
const DRAFT_LENS: [DraftLen; 5] =
    [DraftLen::Fixed(0), DraftLen::Fixed(1), DraftLen::Fixed(3), DraftLen::Fixed(8), DraftLen::Auto];
const SLOTS: [Slots; 3] = [Slots::All, Slots::Quarter, Slots::Minimum];
const POLICIES: [PolicyKind; 3] = [PolicyKind::Lru, PolicyKind::Lfu, PolicyKind::Gating];
const THREADS: [usize; 3] = [1, 2, 3];
const CHUNKS: [usize; 3] = [64, 7, 1];
const SIZES: [usize; 6] = [7, 5, 3, 3, 3, 3];

impl Case {
    fn new(index: &[usize]) -> Case {
        Case {
            drafter: DRAFTERS[index[0]],
            draft_len: DRAFT_LENS[index[1]],
            slots: SLOTS[index[2]],
            policy: POLICIES[index[3]],
            threads: THREADS[index[4]],
            prefill_chunk: CHUNKS[index[5]],
        }
    }

    /// One axis after the other away from a case in the middle, then every pair of values.
    fn all() -> Vec<Case> {
        const MIDDLE: [usize; 6] = [3, 2, 2, 2, 1, 1];
        let single = |axis: usize| {
            (0..SIZES[axis]).map(move |value| {
                let mut index = MIDDLE;
                index[axis] = value;
                index.to_vec()
            })
        };
        (0..SIZES.len()).flat_map(single).chain(pairwise(&SIZES)).map(|index| Case::new(&index)).collect()
    }
}

/// The files of one row of [`PAIRS`].
struct Models {
    target: PathBuf,
    other: PathBuf,
    coarse: PathBuf,
    kv_type: KvType,
    /// Experts a token uses, experts of all layers.
    experts: Option<(usize, usize)>,
    _folder: TempDir,
}

impl Models {
    fn new((target, other): (&str, &str)) -> Models {
        let folder = tempfile::tempdir().unwrap();
        let coarse = folder.path().join("coarse.gguf");
        write_coarse_copy(&golden(target), &coarse);
        let blueprint = blueprint(&golden(target));
        let total = blueprint.experts.as_ref().map(|layers| layers.index.experts_total());
        let experts = total.map(|total| (blueprint.spec.moe.unwrap().used, total));
        let (target, other) = (golden(target), golden(other));
        Models { target, other, coarse, kv_type: KvType::F16, experts, _folder: folder }
    }

    /// Everything resident, one thread, nobody guesses.
    fn plain(&self) -> EngineOptions {
        EngineOptions { kv_type: self.kv_type, ..plain_options(&self.target) }
    }

    fn options(&self, case: &Case) -> EngineOptions {
        EngineOptions {
            draft: match case.drafter {
                Drafter::Nobody => DraftSource::None,
                Drafter::Ngram => DraftSource::Ngram,
                Drafter::Itself => DraftSource::Model(self.target.clone()),
                Drafter::Coarse => DraftSource::Model(self.coarse.clone()),
                Drafter::Other => DraftSource::Model(self.other.clone()),
                Drafter::Suffix => DraftSource::Suffix,
                Drafter::SuffixThenCoarse => {
                    DraftSource::Chain(vec![DraftSource::Suffix, DraftSource::Model(self.coarse.clone())])
                }
            },
            draft_len: case.draft_len,
            slots: self.experts.map(|(used, total)| match case.slots {
                Slots::Minimum => used,
                Slots::Quarter => (total / 4).max(used),
                Slots::All => total,
            }),
            policy: case.policy,
            threads: case.threads,
            prefill_chunk: Some(case.prefill_chunk),
            ..self.plain()
        }
    }
}

fn blueprint(model: &Path) -> Blueprint {
    Blueprint::new(&Gguf::open(model).unwrap(), &Overrides::default()).unwrap()
}

/// A prompt that says everything twice, so that there is something to look up.
fn prompt() -> Vec<TokenId> {
    tokens(1, 10).repeat(2)
}

/// Greedy and sampled ids, one after the other in one engine: the second finds the prompt cached.
fn texts(options: &EngineOptions) -> ([Vec<TokenId>; 2], u64, u64) {
    let mut engine = open(options);
    let runs = [0.0, 0.8].map(|temperature| generate(&mut engine, &prompt(), &ask(GENERATED, temperature)));
    let proposed = runs.iter().map(|run| run.speculation.proposed).sum();
    let accepted = runs.iter().map(|run| run.speculation.accepted).sum();
    (runs.map(|run| run.tokens), proposed, accepted)
}

/// Runs one target through all cases.
fn check_texts(names: (&str, &str), kv_type: KvType) {
    let models = Models { kv_type, ..Models::new(names) };
    let (reference, ..) = texts(&models.plain());
    assert!(reference.iter().all(|ids| ids.len() == GENERATED) && reference[0] != reference[1]);
    let (mut proposed, mut accepted) = ([0; DRAFTERS.len()], [0; DRAFTERS.len()]);
    for case in Case::all() {
        let (ids, drafted, stood) = texts(&models.options(&case));
        assert_eq!(ids, reference, "{} with {case:?}", names.0);
        let drafter = DRAFTERS.iter().position(|drafter| *drafter == case.drafter).unwrap();
        proposed[drafter] += drafted;
        accepted[drafter] += stood;
    }
    println!("{}: {DRAFTERS:?} proposed {proposed:?}, accepted {accepted:?}", names.0);
    assert_eq!((proposed[0], accepted[2]), (0, proposed[2]), "a model always agrees with itself");
    assert!(proposed[1..].iter().all(|drafted| *drafted > 0), "every drafter was used");
    assert!(
        accepted[1] < proposed[1] && accepted[4] < proposed[4],
        "guesses that do not know the model fail"
    );
    assert!(accepted[3] > 0 && accepted[3] < proposed[3], "the coarse draft was right and wrong");
    assert!(accepted[6] > 0, "the chain was right at times");
}

#[test]
fn the_text_of_a_deepseek_model_is_the_same_under_every_setting() {
    check_texts(PAIRS[0], KvType::F16);
}

#[test]
fn the_text_of_a_mixtral_model_is_the_same_under_every_setting() {
    check_texts(PAIRS[1], KvType::F16);
}

#[test]
fn the_text_of_a_qwen3moe_model_is_the_same_under_every_setting() {
    check_texts(PAIRS[2], KvType::F16);
}

#[test]
fn the_text_of_a_dense_model_is_the_same_under_every_setting() {
    check_texts(PAIRS[3], KvType::F16);
}

#[test]
fn the_text_over_a_q8_0_cache_is_the_same_under_every_other_setting() {
    check_texts(Q8_0_PAIRS[0], KvType::Q8_0);
}

#[test]
fn every_two_values_of_two_axes_meet_in_the_combinations() {
    let rows = pairwise(&SIZES);
    for (a, b) in (0..SIZES.len()).flat_map(|a| (a + 1..SIZES.len()).map(move |b| (a, b))) {
        let met: std::collections::HashSet<_> = rows.iter().map(|row| (row[a], row[b])).collect();
        assert_eq!(met.len(), SIZES[a] * SIZES[b]);
    }
    assert!(rows.len() < 60, "{} combinations", rows.len());
}

#[test]
fn logits_are_bitwise_equal_under_every_setting() {
    let all = PAIRS.map(|names| (names, KvType::F16)).into_iter();
    for (names, kv_type) in all.chain(Q8_0_PAIRS.map(|names| (names, KvType::Q8_0))) {
        let models = Models { kv_type, ..Models::new(names) };
        let tokens = tokens(2, 24);
        let logits = |options: &EngineOptions| {
            let rows = logits_of(&mut open(options), &tokens, true);
            assert_eq!(rows.len(), tokens.len());
            rows.iter().map(|row| bits(row)).collect::<Vec<_>>()
        };
        let reference = logits(&models.plain());
        for index in pairwise(&SIZES[2..]) {
            let case = Case::new(&[&[0, 0], &index[..]].concat());
            assert!(logits(&models.options(&case)) == reference, "{} with {case:?}", names.0);
        }
    }
}

/// Logits of all rows, run in passes of these lengths and then one of the rest.
fn passes(model: &mut Model, tokens: &[TokenId], lengths: &[usize]) -> Vec<u32> {
    let (mut all, mut logits, mut rest) = (Vec::new(), Vec::new(), tokens);
    for len in lengths.iter().copied().chain([usize::MAX]) {
        let (now, later) = rest.split_at(len.min(rest.len()));
        model.pass(now, LogitRows::All, &mut logits).unwrap();
        all.extend(bits(&logits));
        rest = later;
    }
    all
}

/// Few slots, two threads, chunks that do not divide the passes.
fn tight(model: &Path) -> Setup {
    let slots = blueprint(model).spec.moe.map_or(1, |moe| moe.used);
    Setup { slots, policy: PolicyKind::Gating, threads: 2, rows_max: 5, context_len: 128 }
}

#[test]
fn a_row_does_not_depend_on_how_a_text_is_split_into_passes() {
    for name in ["deepseek2_v2", "deepseek2_v3_yarn", "deepseek2_lite_legacy", "mixtral", "qwen3moe", "qwen2"]
    {
        let path = golden(name);
        let text = tokens(3, 24);
        let whole = passes(&mut load(&path, PLAIN), &text, &[]);
        for setup in [PLAIN, tight(&path)] {
            for lengths in [&[1; 24][..], &[11], &[1, 7], &[2, 3, 4, 5, 6], &[23]] {
                let mut model = load(&path, setup);
                assert!(passes(&mut model, &text, lengths) == whole, "{name} split {lengths:?}");
                assert_eq!(model.len(), text.len());
            }
        }
    }
}

#[test]
fn truncation_leaves_no_stale_rows() {
    for name in ["deepseek2_v2", "deepseek2_v3_yarn", "mixtral", "qwen3moe", "llama"] {
        let path = golden(name);
        let (first, second) = (tokens(4, 30), tokens(5, 20));
        for setup in [PLAIN, tight(&path)] {
            let mut model = load(&path, setup);
            passes(&mut model, &first, &[9, 1]);
            for kept in [17, 5, 0] {
                model.truncate(kept);
                let rolled_back = passes(&mut model, &second, &[3]);
                let mut fresh = load(&path, setup);
                passes(&mut fresh, &first[..kept], &[]);
                assert!(passes(&mut fresh, &second, &[]) == rolled_back, "{name} from {kept} on");
                model.truncate(kept);
            }
        }
    }
}

#[test]
fn a_cached_prefix_gives_the_text_of_a_fresh_engine() {
    for names in PAIRS {
        let models = Models::new(names);
        let case = Case::new(&[3, 2, 1, 2, 1, 1]);
        let mut used = open(&models.options(&case));
        let mut prompt = tokens(6, 18);
        for (round, kept) in [18, 18, 11, 18, 1].into_iter().enumerate() {
            // The second round asks the same again, later ones go another way from somewhere on.
            prompt.truncate(kept);
            prompt.extend(tokens(7 + round as u32, 18 - kept));
            let fresh = generate(&mut open(&models.options(&case)), &prompt, &ask(GENERATED, 0.8));
            let again = generate(&mut used, &prompt, &ask(GENERATED, 0.8));
            assert_eq!(again.tokens, fresh.tokens, "{} round {round}", names.0);
            assert_eq!(again.prompt_tokens, 18);
            // A continuation of its own answer, as in a chat.
            prompt = [&prompt[..], &again.tokens[..5]].concat();
        }
    }
}

#[test]
fn an_interrupted_generation_leaves_a_usable_cache() {
    let models = Models::new(PAIRS[0]);
    let options = models.options(&Case::new(&[3, 3, 1, 2, 1, 1]));
    let reference = generate(&mut open(&options), &prompt(), &ask(GENERATED, 0.8)).tokens;
    let mut engine = open(&options);
    for stop_after in [0, 1, 2, 5] {
        let mut calls = 0;
        let mut stop = |_: &[TokenId]| {
            calls += 1;
            if calls > stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let part = engine.generate(&prompt(), &ask(GENERATED, 0.8), &mut Silent, &mut stop).unwrap().tokens;
        assert!(part.len() < GENERATED && reference.starts_with(&part), "{part:?}");
        assert_eq!(generate(&mut engine, &prompt(), &ask(GENERATED, 0.8)).tokens, reference);
    }
}

#[test]
fn logits_in_between_do_not_disturb_a_text() {
    let models = Models::new(PAIRS[2]);
    let mut engine = open(&models.options(&Case::new(&[3, 2, 1, 2, 1, 1])));
    let before = generate(&mut engine, &prompt(), &ask(GENERATED, 0.0)).tokens;
    logits_of(&mut engine, &tokens(9, 30), false);
    assert_eq!(generate(&mut engine, &prompt(), &ask(GENERATED, 0.0)).tokens, before);
}

#[test]
fn in_every_block_format_a_draft_and_a_wide_pass_change_no_bit() {
    let folder = TempDir::new().unwrap();
    let (exact, model) = (folder.path().join("f16.gguf"), folder.path().join("model.gguf"));
    Mixture { width: 256, inner: 256, experts: 4, blocks: 2, unsupported: None }.write(&exact);
    for format in Format::all() {
        write_copy_in(format.block_type(), &exact, &model);
        let plain = EngineOptions { prefill_chunk: Some(1), threads: 1, ..plain_options(&model) };
        let wide = EngineOptions { prefill_chunk: Some(64), threads: 2, ..plain.clone() };
        let drafted = EngineOptions {
            draft: DraftSource::Model(model.clone()),
            draft_len: DraftLen::Fixed(4),
            ..wide.clone()
        };
        let prompt = tokens(7, 21);
        let (mut plain, mut wide, mut drafted) = (open(&plain), open(&wide), open(&drafted));
        let rows = |rows: Vec<Vec<f32>>| rows.iter().map(|row| bits(row)).collect::<Vec<_>>();
        let alone = rows(logits_of(&mut plain, &prompt, true));
        assert_eq!(rows(logits_of(&mut wide, &prompt, true)), alone, "{format:?}");
        assert_eq!(rows(logits_of(&mut wide, &prompt, false)), alone[20..], "{format:?}");
        let expected = generate(&mut plain, &prompt, &ask(24, 0.8)).tokens;
        let got = generate(&mut drafted, &prompt, &ask(24, 0.8));
        assert_eq!(got.tokens, expected, "{format:?}");
        assert!(got.speculation.accepted > 0, "{format:?}: nothing was verified");
    }
}
