//! Draft models whose vocabulary is the target's up to tokens that stand for no text: used, with a line that
//! says so and a text that does not change; anything else is refused.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::synthetic::write_changed_copy;
use common::{ask, generate, golden, open, plain_options};
use drafthorse_draft::TokenId;
use drafthorse_runtime::Error;
use drafthorse_runtime::api::{DraftSource, EngineOptions, Generation, Progress, Silent};
use drafthorse_runtime::engine::Engine;
use drafthorse_runtime::gguf::{Array, Gguf, Strings, Value, Writer};
use drafthorse_scheduler::DraftLen;
use tempfile::TempDir;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
/// Tokens of the golden llama, a small dense model with a token list; some at its end are control tokens.
const VOCAB: TokenId = 288;

/// A copy of the golden llama with more tokens at the end of its vocabulary, whose rows are those of other
/// tokens, and perhaps another spelling of one.
fn copy_with(path: &Path, added: &[(&str, i32)], respelled: Option<(usize, &str)>) {
    let gguf = Gguf::open(&golden("llama")).unwrap();
    let file = std::fs::read(golden("llama")).unwrap();
    let mut writer = Writer::new();
    for (key, value) in gguf.metadata.iter() {
        let value = match (key, value) {
            (TOKENS, Value::Array(Array::Strings(tokens))) => {
                let mut tokens: Vec<&[u8]> = tokens.iter().collect();
                tokens.extend(added.iter().map(|(text, _)| text.as_bytes()));
                respelled.iter().for_each(|(id, text)| tokens[*id] = text.as_bytes());
                Value::from(Strings::try_from_iter(tokens).unwrap())
            }
            (TYPES, Value::Array(Array::I32(types))) => {
                Value::from([&types[..], &added.iter().map(|(_, kind)| *kind).collect::<Vec<_>>()].concat())
            }
            _ => value.clone(),
        };
        writer.metadata(key, value);
    }
    for info in &gguf.tensors {
        let mut bytes = file[info.offset as usize..][..info.bytes as usize].to_vec();
        let mut dims = info.dims.clone();
        if ["token_embd.weight", "output.weight"].contains(&info.name.as_str()) {
            let row = bytes.len() / dims[1] as usize;
            bytes.extend_from_within(..added.len() * row);
            dims[1] += added.len() as u64;
        }
        writer.tensor(info.name.clone(), &dims, info.block_type, move |out| out.write_all(&bytes));
    }
    writer.write(path).unwrap();
}

struct Files {
    folder: TempDir,
}

impl Files {
    fn add(&self, name: &str, added: &[(&str, i32)], respelled: Option<(usize, &str)>) -> PathBuf {
        let path = self.folder.path().join(name);
        copy_with(&path, added, respelled);
        path
    }
}

fn files() -> Files {
    Files { folder: tempfile::tempdir().unwrap() }
}

#[derive(Default)]
struct Lines(Vec<String>);

impl Progress for Lines {
    fn begin(&mut self, _what: &str, _total: u64) {}
    fn advance(&mut self, _by: u64) {}
    fn end(&mut self) {}
    fn notice(&mut self, line: &str) {
        self.0.push(line.to_owned());
    }
}

fn drafted(target: &Path, draft: &Path) -> EngineOptions {
    EngineOptions {
        draft: DraftSource::Model(draft.to_path_buf()),
        draft_len: DraftLen::Fixed(3),
        ..plain_options(target)
    }
}

/// What the pair writes at a temperature, having checked that the target alone writes the same and that one
/// line speaks of the vocabulary.
fn checked(target: &Path, draft: &Path, prompt: &[TokenId], temperature: f32) -> Generation {
    let mut lines = Lines::default();
    let mut engine = Engine::open(&drafted(target, draft), &mut lines).unwrap();
    let said: Vec<_> = lines.0.iter().filter(|line| line.contains("stand for no text")).collect();
    assert_eq!(said.len(), 1, "{:?}", lines.0);
    let mut go_on = |_: &[TokenId]| ControlFlow::Continue(());
    let text = engine.generate(prompt, &ask(40, temperature), &mut lines, &mut go_on).unwrap();
    let plain = generate(&mut open(&plain_options(target)), prompt, &ask(40, temperature));
    assert_eq!(text.tokens, plain.tokens);
    assert!(
        text.speculation.proposed > 20 && text.speculation.off_reason.is_none(),
        "{:?}",
        text.speculation
    );
    text
}

#[test]
fn a_draft_with_added_tokens_is_used_and_proposes_none_of_them() {
    let files = files();
    let draft = files.add("wide.gguf", &[("<|a|>", CONTROL), ("<|b|>", CONTROL)], None);
    for temperature in [0.0, 0.8] {
        // A proposed token outside the target's vocabulary would be an error of its pass.
        let text = checked(&golden("llama"), &draft, &[5, 60, 70, 80], temperature);
        assert!(text.speculation.accepted > 0, "it is the target itself");
    }
}

#[test]
fn a_target_with_added_tokens_is_drafted_for_past_those_the_draft_does_not_know() {
    let files = files();
    let target = files.add("wide.gguf", &[("<|a|>", CONTROL), ("<|b|>", CONTROL)], None);
    for temperature in [0.0, 0.8] {
        let text = checked(&target, &golden("llama"), &[5, VOCAB, 60, VOCAB + 1, 80], temperature);
        assert!(text.tokens.iter().all(|token| *token < VOCAB + 2));
    }
}

#[test]
fn a_control_token_put_to_another_use_is_left_out() {
    let files = files();
    let gguf = Gguf::open(&golden("llama")).unwrap();
    let types = gguf.metadata.i32s(TYPES).unwrap().unwrap();
    let control = types.iter().position(|kind| *kind == CONTROL).unwrap();
    let draft = files.add("reused.gguf", &[], Some((control, "<|fim|>")));
    let text = checked(&golden("llama"), &draft, &[5, control as TokenId, 70, 80], 0.0);
    assert!(text.speculation.accepted > 0);
}

#[test]
fn a_token_of_text_that_one_side_lacks_is_refused_by_name() {
    let files = files();
    let draft = files.add("word.gguf", &[("<|a|>", CONTROL), ("word", NORMAL)], None);
    for (target, draft) in [(golden("llama"), draft.clone()), (draft, golden("llama"))] {
        let error = Engine::open(&drafted(&target, &draft), &mut Silent).err().unwrap();
        assert!(matches!(error, Error::Vocabulary { .. }) && error.exit_code() == 2, "{error:?}");
        let text = error.to_string();
        assert!(text.contains("token 289 is") && text.contains("\"word\"") && text.contains("288"), "{text}");
    }
}

#[test]
fn a_token_list_longer_than_the_embedding_is_refused_by_file_and_numbers() {
    let files = files();
    let path = files.folder.path().join("long.gguf");
    let gguf = Gguf::open(&golden("llama")).unwrap();
    let tokens = gguf.metadata.strings(TOKENS).unwrap().unwrap();
    let listed = tokens.iter().chain([&b"<|a|>"[..], b"<|b|>"]);
    write_changed_copy(
        &golden("llama"),
        &path,
        &[(TOKENS, Value::from(Strings::try_from_iter(listed).unwrap()))],
        None,
    );
    let pairs = [drafted(&golden("llama"), &path), drafted(&path, &golden("llama")), plain_options(&path)];
    for options in pairs {
        let error = Engine::open(&options, &mut Silent).err().unwrap();
        assert_eq!(error.exit_code(), 3, "{error}");
        let text = error.to_string();
        for words in ["long.gguf", TOKENS, "290 tokens, the embedding has 288"] {
            assert!(text.contains(words), "{words} in {text}");
        }
    }
}
