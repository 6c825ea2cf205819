//! What a user sees of a bad file, pair, budget or setting: one line that names what and where, the
//! right exit code, nothing on stdout, no panic. Seen from outside, through every command that opens it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;
mod gguf_common;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::golden;
use common::synthetic::{Mixture, write_changed_copy};
use drafthorse_runtime::gguf::Value;
use gguf_common::Raw;
use tempfile::TempDir;

const STRING: u32 = 8;
const U32: u32 = 4;
const F32_TENSOR: u32 = 0;

/// Runs the program; its only line of error.
fn refused(args: &[&str], code: i32) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drafthorse"));
    let output = command.args(args).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?} wrote to stdout");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("drafthorse: ") && !stderr.contains("panicked"), "{args:?}: {stderr}");
    stderr
}

/// Asserts what the line says.
fn says(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "{part:?} in {line}");
    }
}

/// Every command that reads weights refuses the model with code 3 and names the file and `parts`.
fn no_model(path: &str, parts: &[&str]) {
    for args in [
        &["run", path, "--tokens", "1,2"][..],
        &["run", path, "--tokens", "1,2", "--json"],
        &["logits", path, "--tokens", "1,2", "--json"],
        &["bench", path, "-p", "4", "-n", "2", "--repeat", "1"],
    ] {
        let line = refused(args, 3);
        says(&line, &[path]);
        says(&line, parts);
    }
}

struct Files(TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn add(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }
}

fn golden_path(name: &str) -> String {
    golden(name).to_str().unwrap().to_owned()
}

/// The bytes of a golden model with the first `from` replaced by `to`, which is as long.
fn patched(name: &str, from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(golden(name)).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

#[test]
fn random_bytes_are_no_model() {
    let files = Files::new();
    let mut state = 20_261_121u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    for round in 0..4 {
        let bytes: Vec<u8> = (0..70_000).map(|_| next()).collect();
        no_model(&files.add(&format!("random-{round}.gguf"), &bytes), &["not a GGUF file"]);
        // Worse: noise behind a good beginning.
        let bytes = [b"GGUF\x03\0\0\0", &bytes[..]].concat();
        no_model(&files.add(&format!("noise-{round}.gguf"), &bytes), &[]);
    }
    no_model(&files.add("empty.gguf", b""), &["truncated"]);
}

#[test]
fn a_truncated_model_is_refused_wherever_it_ends() {
    let files = Files::new();
    let whole = fs::read(golden("mixtral")).unwrap();
    for (cut, parts) in [(7, &["offset 4"][..]), (300, &["offset"]), (whole.len() / 2, &["tensor", "offset"])]
    {
        no_model(&files.add("cut.gguf", &whole[..cut]), parts);
    }
    no_model(&files.add("cut.gguf", &whole[..whole.len() - 40]), &["output.weight"]);
}

#[test]
fn an_alignment_of_zero_is_refused() {
    let file = Raw::new(1, 2).key("general.architecture", STRING).string(b"llama");
    let file =
        file.key("general.alignment", U32).u32(0).tensor("token_embd.weight", &[4], F32_TENSOR, 0).data(64);
    no_model(&Files::new().add("m.gguf", &file.0), &["general.alignment", "power of two", "0"]);
}

#[test]
fn dims_that_overflow_are_refused() {
    for dims in [&[1 << 40, 1 << 40][..], &[1 << 62, 2, 1, 1], &[u64::MAX - 31, 3]] {
        let file = Raw::new(1, 1).key("general.architecture", STRING).string(b"llama");
        let file = file.tensor("token_embd.weight", dims, F32_TENSOR, 0).data(64);
        let files = Files::new();
        no_model(&files.add("m.gguf", &file.0), &["token_embd.weight", "overflows"]);
    }
}

#[test]
fn an_unknown_architecture_is_named_with_the_supported_ones() {
    let bytes = patched("mixtral", b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba");
    no_model(&Files::new().add("m.gguf", &bytes), &["\"mamba\" is not supported", "deepseek2", "qwen3moe"]);
}

#[test]
fn a_quant_type_without_a_kernel_is_named_with_its_tensor() {
    let files = Files::new();
    let shape = Mixture { width: 256, inner: 256, experts: 4, blocks: 2, unsupported: None };
    for (tensor, name) in
        [("1.ffn_down_exps.weight", "blk.1.ffn_down_exps.weight"), ("0.attn_v.weight", "blk.0.attn_v.weight")]
    {
        let path = files.path("m.gguf");
        Mixture { unsupported: Some(tensor), ..shape }.write(&path);
        let line = format!("quant type TQ2_0 of tensor {name} is not supported yet");
        no_model(path.to_str().unwrap(), &[&line, "Q4_K"]);
    }
}

#[test]
fn a_tensor_that_is_missing_or_misshapen_is_named() {
    let files = Files::new();
    let renamed = patched("mixtral", b"blk.1.attn_q.weight", b"blk.9.attn_q.weight");
    no_model(&files.add("m.gguf", &renamed), &["blk.1.attn_q.weight is missing"]);
    let resized = patched(
        "mixtral",
        b"llama.feed_forward_length\x04\0\0\0\x40",
        b"llama.feed_forward_length\x04\0\0\0\x60",
    );
    no_model(&files.add("m.gguf", &resized), &["blk.0.ffn_", "shape", "96"]);
}

#[test]
fn a_missing_file_is_named() {
    let files = Files::new();
    let path = files.path("none.gguf");
    no_model(path.to_str().unwrap(), &["No such file"]);
    let line =
        refused(&["run", &golden_path("mixtral"), "--tokens", "1", "--draft", path.to_str().unwrap()], 3);
    says(&line, &["none.gguf", "No such file"]);
}

#[test]
fn a_draft_with_another_vocabulary_is_refused() {
    let (target, larger) = (golden_path("mixtral"), golden_path("llama"));
    let line = refused(&["run", &target, "--tokens", "1,2", "--draft", &larger], 2);
    says(&line, &[&target, &larger, "vocabulary", "288", "128"]);
    // As many tokens, one of them spelled otherwise.
    let mut bytes = fs::read(golden("llama")).unwrap();
    let list = b"tokenizer.ggml.tokens\x09\0\0\0\x08\0\0\0\x20\x01\0\0\0\0\0\0\x01\0\0\0\0\0\0\0";
    let at = bytes.windows(list.len()).position(|window| window == list).unwrap() + list.len();
    bytes[at] = b'~' + u8::from(bytes[at] == b'~');
    let files = Files::new();
    let respelled = files.add("respelled.gguf", &bytes);
    let line = refused(&["run", &larger, "--tokens", "1,2", "--draft", &respelled], 2);
    says(&line, &["respelled.gguf", "vocabulary", "token 0 is"]);
}

#[test]
fn a_list_of_drafters_that_cannot_be_meant_is_refused_with_the_flag() {
    let files = Files::new();
    let (model, ids) = (golden_path("mixtral"), files.add("answer.ids", b"1 2 128"));
    let words = files.add("words.ids", b"1 2 three");
    for (draft, code, parts) in [
        ("ngram,,suffix", 2, &["--draft", "empty name"][..]),
        ("a.gguf,ngram", 2, &["--draft", "last in the list"]),
        ("script:x,accept=2", 2, &["--draft", "accept", "from 0 to 1"]),
        ("script:none.ids", 1, &["none.ids", "No such file"]),
        (&format!("ngram,script:{ids}"), 2, &["128", "vocabulary of 128"]),
        (&format!("script:{words}"), 2, &["words.ids", "word 3", "three"]),
    ] {
        says(&refused(&["run", &model, "--tokens", "1,2", "--draft", draft], code), parts);
    }
}

#[test]
fn a_budget_too_small_shows_the_sum_on_one_line() {
    for model in ["deepseek2_v3_yarn", "llama"] {
        for args in [&["run"][..], &["logits"]] {
            let model = golden_path(model);
            let line = refused(&[args, &[&model, "--tokens", "1,2", "--memory", "1MiB"]].concat(), 4);
            says(
                &line,
                &["dense weights", "KV cache", "sum", "budget 1024.0 KiB", "smallest budget that would do"],
            );
        }
    }
}

#[test]
fn slots_outside_the_models_range_say_the_range() {
    for slots in ["1", "13"] {
        let line = refused(&["run", &golden_path("mixtral"), "--tokens", "1", "--slots", slots], 2);
        says(&line, &[&format!("{slots} expert slots"), "2 to 12"]);
    }
    let line = refused(&["run", &golden_path("llama"), "--tokens", "1", "--slots", "4"], 2);
    says(&line, &["4 expert slots"]);
}

#[test]
fn a_cache_type_that_does_not_hold_a_models_rows_is_refused() {
    let (narrow, wide) = (golden_path("mixtral"), golden_path("llama_tied"));
    for draft in [&[][..], &["--draft", &narrow]] {
        let model = if draft.is_empty() { &narrow } else { &wide };
        let args = [&["run", model, "--tokens", "1,2", "--kv-type", "q8_0"], draft].concat();
        says(&refused(&args, 2), &[&narrow, "model.kv_type = \"q8_0\"", "multiple of 32", "keys have 16"]);
    }
}

#[test]
fn a_prompt_the_model_cannot_take_is_refused() {
    let model = golden_path("mixtral");
    let line = refused(&["run", &model, "--tokens", "1,128", "--json"], 2);
    says(&line, &["token id 128", "128 tokens"]);
    let line = refused(&["run", &model, "--tokens", "1,2,3,4,5", "--context", "4", "--json"], 2);
    says(&line, &["5 tokens", "4"]);
    let line = refused(&["run", &model, "-p", "text", "--json"], 3);
    says(&line, &[&model, "no tokenizer"]);
}

#[test]
fn a_setting_of_the_wrong_kind_names_file_and_key() {
    let files = Files::new();
    let model = golden_path("mixtral");
    for (text, parts) in [
        ("[offload]\npolicyy = \"lru\"\n", &["unknown key offload.policyy", "offload.policy"][..]),
        ("[offlad]\nslots = 3\n", &["offlad"]),
        ("[sampling]\ntop_k = \"many\"\n", &["sampling.top_k"]),
        ("[sampling]\ntop_p = 7\n", &["sampling.top_p", "7"]),
        ("[scheduler\n", &["line 1"]),
    ] {
        let path = files.add("my.toml", text.as_bytes());
        let line = refused(&["run", &model, "--tokens", "1", "--config", &path], 2);
        says(&line, &[&path]);
        says(&line, parts);
    }
}

#[test]
fn expert_settings_of_a_dense_model_are_refused_not_ignored() {
    let files = Files::new();
    let groups = files.add("my.toml", b"[model]\nexpert_groups = 4\nexpert_groups_used = 2\n");
    let dense = golden_path("llama");
    let line = refused(&["run", &dense, "--tokens", "1", "--config", &groups], 2);
    says(&line, &["expert_groups", "no routed experts"]);
    let trace = files.path("t.moetrace");
    let line = refused(&["run", &dense, "--tokens", "1", "--record-trace", trace.to_str().unwrap()], 2);
    says(&line, &["--record-trace", "no routed experts"]);
    assert!(!trace.exists());
}

#[test]
fn metadata_that_would_change_the_text_unseen_is_refused_by_key() {
    let files = Files::new();
    let path = files.path("changed.gguf");
    for (model, key, value) in [
        ("llama", "llama.rope.dimension_count", Value::from(4096u32)),
        ("qwen3", "qwen3.rope.dimension_count", Value::from(64u32)),
        ("mixtral", "llama.expert_gating_func", Value::from(2u32)),
        ("mixtral", "llama.expert_weights_scale", Value::from(2.5f32)),
        ("llama", "llama.attention.scale", Value::from(0.5f32)),
        ("qwen2", "qwen2.final_logit_softcapping", Value::from(30.0f32)),
        ("deepseek2_v3", "deepseek2.leading_dense_block_count", Value::from(2u32)),
        ("llama", "llama.rope.scaling.type", Value::from("x\u{1b}[31m".repeat(100))),
    ] {
        write_changed_copy(&golden(model), &path, &[(key, value)], None);
        no_model(path.to_str().unwrap(), &[key]);
    }
}

#[test]
fn a_tensor_that_nothing_reads_is_refused_by_name() {
    let files = Files::new();
    let path = files.path("extra.gguf");
    for tensor in ["output.bias", "output_norm.bias", "blk.0.ffn_down_exps.bias", "blk.9.attn_norm.weight"] {
        write_changed_copy(&golden("mixtral"), &path, &[], Some(tensor));
        no_model(path.to_str().unwrap(), &[tensor]);
    }
}
