//! The GGUF reader on good files: what python's `gguf` package wrote, and real vocabularies.

#![allow(clippy::unwrap_used, reason = "tests")]

mod gguf_common;

use std::fs;

use drafthorse_runtime::gguf::{Array, BlockType, Gguf, Header, Value, dequantize, parse, quantize};
use gguf_common::{fixture, shared};
use serde_json::Value as Json;

#[test]
fn block_sizes_equal_those_of_the_python_package() {
    let table = fs::read_to_string(fixture("block_sizes.txt")).unwrap();
    let mut rows = 0;
    for row in table.lines().filter(|row| !row.starts_with('#')) {
        let fields: Vec<&str> = row.split(' ').collect();
        let number = |index: usize| fields[index].parse::<u64>().unwrap();
        let block_type = BlockType::from_id(number(0) as u32).unwrap();
        assert_eq!(block_type.name(), fields[1]);
        assert_eq!(block_type.block_len(), number(2), "{block_type}");
        // The package lists Q8_1 with two f32 in front; ggml's block has two f16 (block_q8_1). No file
        // holds this type: it is made of activations, on the fly.
        let expected = if block_type == BlockType::Q8_1 { 36 } else { number(3) };
        assert_eq!(block_type.block_bytes(), expected, "{block_type}");
        rows += 1;
    }
    assert!(rows >= 34, "{rows} rows");
}

#[test]
fn metadata_and_tensors_equal_what_pythons_reader_finds() {
    let gguf = Gguf::open(&fixture("golden.gguf")).unwrap();
    let expected: Json = serde_json::from_slice(&fs::read(fixture("golden.json")).unwrap()).unwrap();
    assert_eq!(gguf.version, 3);

    let pairs = expected["metadata"].as_array().unwrap();
    assert_eq!(gguf.metadata.len(), pairs.len());
    for ((key, value), pair) in gguf.metadata.iter().zip(pairs) {
        assert_eq!(key, pair["key"].as_str().unwrap());
        assert_same(key, value, pair);
    }

    let tensors = expected["tensors"].as_array().unwrap();
    assert_eq!(gguf.tensors.len(), tensors.len());
    for (tensor, expected) in gguf.tensors.iter().zip(tensors) {
        assert_eq!(tensor.name, expected["name"].as_str().unwrap());
        assert_eq!(Json::from(tensor.dims.clone()), expected["dims"], "{}", tensor.name);
        assert_eq!(tensor.block_type.name(), expected["type"].as_str().unwrap());
        assert_eq!(Json::from(tensor.offset), expected["offset"], "{}", tensor.name);
        assert_eq!(Json::from(tensor.bytes), expected["bytes"], "{}", tensor.name);
        assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
    }
    assert_eq!(gguf.tensor("absent"), None);
}

fn assert_same(key: &str, value: &Value, pair: &Json) {
    let types: Vec<&str> =
        pair["types"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let (type_name, json) = match value {
        Value::U8(number) => ("uint8", Json::from(*number)),
        Value::I8(number) => ("int8", Json::from(*number)),
        Value::U16(number) => ("uint16", Json::from(*number)),
        Value::I16(number) => ("int16", Json::from(*number)),
        Value::U32(number) => ("uint32", Json::from(*number)),
        Value::I32(number) => ("int32", Json::from(*number)),
        Value::U64(number) => ("uint64", Json::from(*number)),
        Value::I64(number) => ("int64", Json::from(*number)),
        Value::F32(number) => ("float32", Json::from(f64::from(*number))),
        Value::F64(number) => ("float64", Json::from(*number)),
        Value::Bool(flag) => ("bool", Json::from(*flag)),
        Value::String(string) => ("string", Json::from(string.as_str())),
        Value::Array(array) => {
            assert_eq!(types[0], "array");
            match array {
                Array::I32(numbers) => ("int32", Json::from(numbers.clone())),
                Array::F32(numbers) => {
                    ("float32", numbers.iter().map(|&number| f64::from(number)).collect::<Vec<_>>().into())
                }
                Array::Bool(flags) => ("bool", Json::from(flags.clone())),
                Array::Strings(strings) => ("string", Json::from(strings.to_strs().unwrap())),
                other => unreachable!("the fixture has no array of {}", other.element_type()),
            }
        }
    };
    assert_eq!(types.last(), Some(&type_name), "{key}");
    assert_eq!(json, pair["value"], "{key}");
}

/// The bytes of a tensor of a fixture.
fn tensor_data(gguf: &Gguf, file: &[u8], name: &str) -> Vec<u8> {
    let tensor = gguf.tensor(name).unwrap();
    file[tensor.offset as usize..][..tensor.bytes as usize].to_vec()
}

#[test]
fn decoded_blocks_equal_those_of_the_python_package() {
    let gguf = Gguf::open(&fixture("codecs.gguf")).unwrap();
    let file = fs::read(fixture("codecs.gguf")).unwrap();
    let mut types = 0;
    for tensor in gguf.tensors.iter().filter(|tensor| tensor.name.ends_with(".blocks")) {
        let ours = dequantize(tensor.block_type, &tensor_data(&gguf, &file, &tensor.name)).unwrap();
        let values = tensor_data(&gguf, &file, &format!("{}.values", tensor.block_type));
        let theirs = dequantize(BlockType::F32, &values).unwrap();
        assert_eq!(ours.len(), theirs.len());
        for (index, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            // The two multiply in different orders; a wrong nibble would be off by a whole step.
            let tolerance = 1e-5 * b.abs().max(1e-6);
            assert!((a - b).abs() <= tolerance, "{} value {index}: {a} against {b}", tensor.block_type);
        }
        types += 1;
    }
    assert_eq!(types, 10);
}

#[test]
fn quantized_blocks_equal_those_of_the_python_package() {
    let gguf = Gguf::open(&fixture("codecs.gguf")).unwrap();
    let file = fs::read(fixture("codecs.gguf")).unwrap();
    let source = dequantize(BlockType::F32, &tensor_data(&gguf, &file, "source.values")).unwrap();
    for block_type in [BlockType::F16, BlockType::BF16, BlockType::Q4_0, BlockType::Q8_0] {
        let ours = quantize(block_type, &source).unwrap();
        assert_eq!(ours, tensor_data(&gguf, &file, &format!("source.{block_type}")), "{block_type}");
    }
}

#[test]
fn version_2_reads_like_version_3() {
    let mut bytes = fs::read(fixture("golden.gguf")).unwrap();
    let read = |bytes: &[u8]| -> Header { parse(bytes, bytes.len() as u64, "m.gguf".as_ref()).unwrap() };
    let v3 = read(&bytes);
    bytes[4] = 2;
    let v2 = read(&bytes);
    assert_eq!((v2.version, v3.version), (2, 3));
    assert_eq!(v2.tensors, v3.tensors);
    assert!(v2.metadata.iter().eq(v3.metadata.iter()));
}

#[test]
fn version_1_and_big_endian_files_are_refused_by_name() {
    let message = |name: &str| Gguf::open(&fixture(name)).unwrap_err().to_string();
    assert!(message("version_1.gguf").contains("version_1.gguf: GGUF version 1 is not supported"));
    assert!(message("big_endian.gguf").contains("big-endian GGUF files are not supported"));
}

#[test]
fn bytes_behind_the_last_tensor_are_tolerated() {
    let mut bytes = fs::read(fixture("golden.gguf")).unwrap();
    bytes.extend_from_slice(b"someone's signature");
    assert!(parse(&bytes, bytes.len() as u64, "m.gguf".as_ref()).is_ok());
}

#[test]
fn real_vocabularies_open() {
    let cases = [
        ("deepseek-llm", "deepseek-llm", 102_400),
        ("gpt-2", "gpt-2", 50_257),
        ("llama-spm", "default", 32_000),
        ("qwen2", "qwen2", 151_936),
    ];
    for (name, pre, tokens) in cases {
        let Some(path) = shared(&format!("data/tokenizers/ggml-vocab-{name}.gguf")) else { return };
        let gguf = Gguf::open(&path).unwrap();
        assert!(gguf.tensors.is_empty());
        let vocabulary = gguf.metadata.require_strings("tokenizer.ggml.tokens").unwrap();
        assert_eq!(vocabulary.len(), tokens, "{name}");
        let types = gguf.metadata.i32s("tokenizer.ggml.token_type").unwrap().unwrap();
        assert_eq!(types.len(), tokens, "{name}");
        assert_eq!(gguf.metadata.str("tokenizer.ggml.pre").unwrap().unwrap_or("default"), pre);
    }
}
