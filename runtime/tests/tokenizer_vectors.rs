//! Token ids of real vocabularies against the ids another implementation wrote down: the
//! `.inp`/`.out` pairs of `../shared/data/tokenizers` (llama.cpp). Skips where they are absent.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::{Path, PathBuf};

use drafthorse_runtime::gguf::Gguf;
use drafthorse_runtime::tokenizer::{AddSpecial, EncodeOptions, ParseSpecial, Tokenizer};

const RAW: EncodeOptions = EncodeOptions { add_special: AddSpecial::No, parse_special: ParseSpecial::No };

fn vocabulary(name: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/tokenizers");
    let path = folder.join(format!("ggml-vocab-{name}.gguf"));
    if !path.exists() {
        eprintln!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

fn open(path: &Path) -> Tokenizer {
    let gguf = Gguf::open(path).unwrap();
    Tokenizer::from_metadata(&gguf.metadata, path).unwrap()
}

fn check(name: &str) {
    let Some(path) = vocabulary(name) else { return };
    let tokenizer = open(&path);
    let read = |extension: &str| std::fs::read_to_string(format!("{}.{extension}", path.display())).unwrap();
    let (inputs, outputs) = (read("inp"), read("out"));
    let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
    let outputs: Vec<&str> = outputs.lines().collect();
    assert!(inputs.len() >= outputs.len() && outputs.len() > 40, "{} {}", inputs.len(), outputs.len());
    for (input, output) in inputs.iter().zip(&outputs) {
        let expected: Vec<u32> = output.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(tokenizer.encode_with(input, RAW).unwrap(), expected, "{name}: {input:?}");
        assert_eq!(tokenizer.decode(&expected), *input, "{name}");
    }
    eprintln!("{name}: {} texts agree", outputs.len());
}

#[test]
fn deepseek_llm_vectors_agree() {
    check("deepseek-llm");
}

#[test]
fn qwen2_vectors_agree() {
    check("qwen2");
}

#[test]
fn gpt2_vectors_agree() {
    check("gpt-2");
}

#[test]
fn llama_spm_vectors_agree() {
    check("llama-spm");
}
