//! `drafthorse-eval gguf` as a user runs it: the file it writes, its notices, its exit codes.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use drafthorse_runtime::gguf::{BlockType, Gguf, dequantize};
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

const META: &str = r#"{
  "metadata": [
    {"key": "general.architecture", "type": "string", "value": "llama"},
    {"key": "llama.block_count", "type": "uint32", "value": 2},
    {"key": "llama.rope.freq_base", "type": "float32", "value": 10000.0},
    {"key": "tokenizer.ggml.add_bos_token", "type": "bool", "value": false},
    {"key": "tokenizer.ggml.tokens", "type": "array", "of": "string", "value": ["a", "\u0120b"]},
    {"key": "tokenizer.ggml.token_type", "type": "array", "of": "int32", "value": [1, 3]}
  ],
  "keep_f32": ["kept.weight"]
}"#;

/// A folder with a checkpoint (shapes row-major) and its metadata.
struct Inputs {
    folder: TempDir,
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|index| (index as f32 * 0.7).sin()).collect()
}

impl Inputs {
    fn new(tensors: &[(&str, Vec<usize>)], meta: &str) -> Inputs {
        let folder = TempDir::new().unwrap();
        let data: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, shape)| values(shape.iter().product()).iter().flat_map(|v| v.to_le_bytes()).collect())
            .collect();
        let views = tensors.iter().zip(&data).map(|((name, shape), bytes)| {
            ((*name).to_owned(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
        });
        fs::write(folder.path().join("m.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        fs::write(folder.path().join("m.json"), meta).unwrap();
        Inputs { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn convert(&self, options: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_drafthorse-eval"))
            .arg("gguf")
            .args([
                Path::new("--weights"),
                &self.path("m.safetensors"),
                Path::new("--meta"),
                &self.path("m.json"),
            ])
            .args([Path::new("-o"), &self.path("m.gguf")])
            .args(options)
            .output()
            .unwrap()
    }

    /// The exit code and the one-line message of a refusal that leaves no file.
    fn refusal(&self, options: &[&str]) -> (i32, String) {
        let output = self.convert(options);
        assert!(!self.path("m.gguf").exists());
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }
}

#[test]
fn types_follow_role_and_row_length_and_fallbacks_are_said() {
    let inputs = Inputs::new(
        &[
            ("token_embd.weight", vec![3, 64]),
            ("output_norm.weight", vec![64]),
            ("blk.0.ffn_gate_inp.weight", vec![4, 64]),
            ("blk.0.ffn_gate_exps.weight", vec![2, 3, 256]),
            ("blk.0.ffn_down_exps.weight", vec![2, 3, 64]),
            ("odd.weight", vec![2, 20]),
            ("kept.weight", vec![2, 64]),
        ],
        META,
    );
    let output = inputs.convert(&["--quant", "q8_0", "--quant-experts", "Q4_K"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(output.stdout.is_empty());
    assert!(
        stderr.contains("blk.0.ffn_down_exps.weight: Q8_0, as rows of 64 are no whole Q4_K blocks"),
        "{stderr}"
    );
    assert!(stderr.contains("odd.weight: F16, as rows of 20 are no whole Q8_0 blocks"), "{stderr}");

    let gguf = Gguf::open(&inputs.path("m.gguf")).unwrap();
    let tensor = |name: &str| gguf.tensor(name).unwrap();
    let types = [
        ("token_embd.weight", BlockType::Q8_0),
        ("output_norm.weight", BlockType::F32),
        ("blk.0.ffn_gate_inp.weight", BlockType::F32),
        ("blk.0.ffn_gate_exps.weight", BlockType::Q4_K),
        ("blk.0.ffn_down_exps.weight", BlockType::Q8_0),
        ("odd.weight", BlockType::F16),
        ("kept.weight", BlockType::F32),
    ];
    for (name, block_type) in types {
        assert_eq!(tensor(name).block_type, block_type, "{name}");
    }
    assert_eq!(tensor("blk.0.ffn_gate_exps.weight").dims, [256, 3, 2]);

    let file = fs::read(inputs.path("m.gguf")).unwrap();
    for (name, error_max) in [("output_norm.weight", 0.0), ("token_embd.weight", 5e-3)] {
        let bytes = &file[tensor(name).offset as usize..][..tensor(name).bytes as usize];
        let read = dequantize(tensor(name).block_type, bytes).unwrap();
        let error = values(read.len()).iter().zip(&read).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error <= error_max, "{name}: {error}");
    }
}

#[test]
fn metadata_arrives_with_its_types_and_in_order() {
    let inputs = Inputs::new(&[("kept.weight", vec![2, 64])], META);
    assert!(inputs.convert(&["--quant", "q4_0"]).status.success());
    let metadata = Gguf::open(&inputs.path("m.gguf")).unwrap().metadata;
    let keys: Vec<&str> = metadata.iter().map(|(key, _)| key).collect();
    assert_eq!(keys[..2], ["general.architecture", "llama.block_count"]);
    assert_eq!(keys[6..], ["general.quantization_version", "general.file_type"]);
    assert_eq!(metadata.require_str("general.architecture").unwrap(), "llama");
    assert_eq!(metadata.u64("llama.block_count").unwrap(), Some(2));
    assert_eq!(metadata.f32("llama.rope.freq_base").unwrap(), Some(10_000.0));
    assert_eq!(metadata.bool("tokenizer.ggml.add_bos_token").unwrap(), Some(false));
    assert_eq!(metadata.strs("tokenizer.ggml.tokens").unwrap(), Some(vec!["a", "\u{120}b"]));
    assert_eq!(metadata.i32s("tokenizer.ggml.token_type").unwrap(), Some(&[1, 3][..]));
    assert_eq!(metadata.u64("general.file_type").unwrap(), Some(2));
}

#[test]
fn a_bad_input_is_refused_in_one_line_with_the_right_exit_code() {
    let tensors = [("kept.weight", vec![2, 64])];
    let inputs = Inputs::new(&tensors, META);
    let (code, message) = inputs.refusal(&["--quant", "iq2_s"]);
    assert_eq!(code, 2);
    assert!(message.contains("not one of f32, f16, bf16, q4_0, q4_1, q5_0,"), "{message}");

    let cases = [
        (META.replace("kept.weight", "absent"), "has no tensor \"absent\""),
        (META.replace("\"value\": 2}", "\"value\": -2}"), "key \"llama.block_count\": -2 is not a uint32"),
        (META.replace("keep_f32", "keep_f33"), "unknown field `keep_f33`"),
        (META.replace("llama.block_count", "general.architecture"), "stands twice"),
        (META.replace("\"of\": \"int32\"", "\"of\": \"int33\""), "unknown array type \"int33\""),
        ("{".to_owned(), "m.json: EOF"),
    ];
    for (meta, expected) in cases {
        let (code, message) = Inputs::new(&tensors, &meta).refusal(&["--quant", "q8_0"]);
        assert_eq!((code, message.lines().count()), (3, 1), "{message}");
        assert!(message.contains(expected), "{expected:?} is not in {message:?}");
    }
}

#[test]
fn a_damaged_or_missing_checkpoint_is_refused() {
    let inputs = Inputs::new(&[("kept.weight", vec![2, 64])], META);
    let checkpoint = fs::read(inputs.path("m.safetensors")).unwrap();
    fs::write(inputs.path("m.safetensors"), &checkpoint[..checkpoint.len() - 1]).unwrap();
    let (code, message) = inputs.refusal(&["--quant", "q8_0"]);
    assert_eq!((code, message.lines().count()), (3, 1), "{message}");
    fs::remove_file(inputs.path("m.safetensors")).unwrap();
    let (code, message) = inputs.refusal(&["--quant", "q8_0"]);
    assert_eq!(code, 1);
    assert!(message.contains("m.safetensors: cannot read the file"), "{message}");
}
