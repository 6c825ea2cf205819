//! A trained model end to end: karpathy's stories260K, converted at test time, tells its story.
//!
//! The ids and the text come from an independent forward pass and equal llama2.c's own (see the data's
//! `expected_greedy.json`); scripts/golden/README.md documents the layout that is read here. The model
//! is never committed: without `../shared` these tests are skipped.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{ask, generate, logits_of, open, plain_options, shared};
use drafthorse_draft::TokenId;
use drafthorse_runtime::api::{DraftSource, EngineOptions};
use drafthorse_runtime::gguf::{BlockType, Strings, Writer};
use drafthorse_runtime::tokenizer::AddSpecial;
use drafthorse_scheduler::DraftLen;
use serde::Deserialize;
use tempfile::TempDir;

const FOLDER: &str = "models/stories260K";
const BOS: TokenId = 1;

#[derive(Deserialize)]
struct Expected {
    ids: Vec<TokenId>,
    text: String,
    first_step_top8_logits: Vec<(usize, f32)>,
}

/// The converted model, and what it should say.
struct Story {
    model: PathBuf,
    expected: Expected,
    _folder: TempDir,
}

impl Story {
    /// None, with the reason printed, where the data is absent.
    fn new() -> Option<Story> {
        let source = shared(FOLDER)?;
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("stories260K.gguf");
        convert(&source, &model);
        let expected =
            serde_json::from_slice(&fs::read(source.join("expected_greedy.json")).unwrap()).unwrap();
        Some(Story { model, expected, _folder: folder })
    }

    fn options(&self) -> EngineOptions {
        EngineOptions { context_len: 256, ..plain_options(&self.model) }
    }
}

/// Sizes in the order of the checkpoint's header.
struct Sizes {
    dim: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    context: usize,
}

fn convert(source: &Path, out: &Path) {
    let bytes = fs::read(source.join("stories260K.bin")).unwrap();
    let (header, mut floats) = bytes.split_at(28);
    let number = |i: usize| i32::from_le_bytes(header[4 * i..4 * i + 4].try_into().unwrap()) as usize;
    let [dim, hidden, layers, heads, kv_heads, vocab, context] = std::array::from_fn(number);
    let sizes = Sizes { dim, hidden, layers, heads, kv_heads, vocab, context };
    let mut writer = Writer::new();
    add_metadata(&mut writer, &sizes);
    add_tokenizer(&mut writer, &fs::read(source.join("tok512.bin")).unwrap(), vocab);
    for (name, dims, count) in table(&sizes) {
        let len = 4 * dims.iter().product::<usize>();
        let dims: Vec<u64> = dims.iter().map(|dim| *dim as u64).collect();
        for layer in 0..count.unwrap_or(1) {
            let (now, later) = floats.split_at(len);
            floats = later;
            let name = count.map_or_else(|| name.to_owned(), |_| format!("blk.{layer}.{name}"));
            writer.tensor(format!("{name}.weight"), &dims, BlockType::F32, move |out| out.write_all(now));
        }
    }
    assert_eq!(floats.len(), 4 * context * dim / heads, "what is left are the two unused rope tables");
    writer.write(out).unwrap();
}

/// Names, dimensions (fastest first) and, for those of a block, the number of blocks, as they follow
/// each other in the checkpoint.
fn table(sizes: &Sizes) -> Vec<(&'static str, Vec<usize>, Option<usize>)> {
    let Sizes { dim, hidden, layers, heads, kv_heads, vocab, .. } = *sizes;
    let (kv, each) = (dim / heads * kv_heads, Some(layers));
    vec![
        ("token_embd", vec![dim, vocab], None),
        ("attn_norm", vec![dim], each),
        ("attn_q", vec![dim, dim], each),
        ("attn_k", vec![dim, kv], each),
        ("attn_v", vec![dim, kv], each),
        ("attn_output", vec![dim, dim], each),
        ("ffn_norm", vec![dim], each),
        ("ffn_gate", vec![dim, hidden], each),
        ("ffn_down", vec![hidden, dim], each),
        ("ffn_up", vec![dim, hidden], each),
        ("output_norm", vec![dim], None),
    ]
}

fn add_metadata(writer: &mut Writer<'_>, sizes: &Sizes) {
    writer.metadata("general.architecture", "llama");
    for (key, value) in [
        ("context_length", sizes.context),
        ("embedding_length", sizes.dim),
        ("block_count", sizes.layers),
        ("feed_forward_length", sizes.hidden),
        ("attention.head_count", sizes.heads),
        ("attention.head_count_kv", sizes.kv_heads),
        ("rope.dimension_count", sizes.dim / sizes.heads),
    ] {
        writer.metadata(format!("llama.{key}"), value as u32);
    }
    writer.metadata("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
    writer.metadata("llama.rope.freq_base", 10_000f32);
}

/// An int32 (the longest token), then per token a score, a length and its bytes.
fn add_tokenizer(writer: &mut Writer<'_>, bytes: &[u8], vocab: usize) {
    let (mut texts, mut scores, mut at) = (Vec::new(), Vec::new(), 4);
    for _ in 0..vocab {
        scores.push(f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()));
        let len = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        let text = std::str::from_utf8(&bytes[at + 8..at + 8 + len]).unwrap();
        texts.push(text.replace(' ', "\u{2581}"));
        at += 8 + len;
    }
    assert_eq!(at, bytes.len());
    texts[..3].clone_from_slice(&["<unk>", "<s>", "</s>"].map(str::to_owned));
    let kind = |id: usize| match id {
        0 => 2,
        1 | 2 => 3,
        3..259 => 6,
        _ => 1,
    };
    writer.metadata("tokenizer.ggml.model", "llama");
    writer.metadata("tokenizer.ggml.tokens", Strings::try_from_iter(&texts).unwrap());
    writer.metadata("tokenizer.ggml.scores", scores);
    writer.metadata("tokenizer.ggml.token_type", (0..vocab).map(kind).collect::<Vec<i32>>());
    writer.metadata("tokenizer.ggml.unknown_token_id", 0u32);
    writer.metadata("tokenizer.ggml.bos_token_id", BOS);
    writer.metadata("tokenizer.ggml.eos_token_id", 2u32);
    writer.metadata("tokenizer.ggml.add_bos_token", true);
}

#[test]
fn the_story_is_the_expected_one_in_ids_and_text() {
    let Some(story) = Story::new() else { return };
    let mut engine = open(&story.options());
    let prompt = engine.tokenizer().unwrap().encode("", AddSpecial::Yes).unwrap();
    assert_eq!(prompt, [BOS]);
    let wanted = &story.expected.ids[1..];
    assert_eq!(wanted.len(), 200);
    let ids = generate(&mut engine, &prompt, &ask(wanted.len(), 0.0)).tokens;
    assert_eq!(ids, wanted);
    let text = engine.tokenizer().unwrap().decode(&story.expected.ids);
    // The data spells the byte token of a line break out and keeps the space before the first word.
    let wanted = story.expected.text.replace("<0x0A>", "\n");
    assert_eq!(text.trim_start(), wanted.trim_start());
}

#[test]
fn the_first_logits_are_the_expected_ones() {
    let Some(story) = Story::new() else { return };
    let logits = logits_of(&mut open(&story.options()), &[BOS], false);
    for (id, wanted) in story.expected.first_step_top8_logits {
        assert!((logits[0][id] - wanted).abs() < 1e-3, "token {id}: {} for {wanted}", logits[0][id]);
    }
}

#[test]
fn guessing_along_tells_the_same_story_in_fewer_passes() {
    let Some(story) = Story::new() else { return };
    let wanted = &story.expected.ids[1..];
    for draft in [DraftSource::Ngram, DraftSource::Model(story.model.clone())] {
        let options = EngineOptions { draft, draft_len: DraftLen::Fixed(4), threads: 2, ..story.options() };
        let generation = generate(&mut open(&options), &[BOS], &ask(wanted.len(), 0.0));
        assert_eq!(generation.tokens, wanted, "{:?}", options.draft);
        let passes = generation.speculation.target_passes;
        assert!(passes < 190, "{:?} took {passes} passes for 199 tokens", options.draft);
    }
}

#[test]
fn text_becomes_ids_and_text_again() {
    let Some(story) = Story::new() else { return };
    let engine = open(&story.options());
    let tokenizer = engine.tokenizer().unwrap();
    let text = "Once upon a time, there was a little girl named Lily.";
    let ids = tokenizer.encode(text, AddSpecial::Yes).unwrap();
    assert_eq!(ids, story.expected.ids[..ids.len()]);
    assert_eq!(tokenizer.decode(&ids).trim_start(), text);
}
