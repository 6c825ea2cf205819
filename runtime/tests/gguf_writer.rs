//! The GGUF writer: what it writes reads back equal, what it must not write leaves no file.

#![allow(clippy::unwrap_used, reason = "tests")]

mod gguf_common;

use std::fs;
use std::path::Path;

use drafthorse_runtime::gguf::{Array, BlockType, Gguf, Strings, Value, Writer};
use proptest::prelude::*;
use tempfile::TempDir;

/// A tensor of the property test: rank 1 or 2, whole blocks.
#[derive(Clone, Debug)]
struct Tensor {
    dims: Vec<u64>,
    block_type: BlockType,
    data: Vec<u8>,
}

fn any_tensor() -> impl Strategy<Value = Tensor> {
    let block_types = prop::sample::select(BlockType::ALL);
    (block_types, 1..3u64, prop::collection::vec(1..4u64, 0..3), any::<u8>()).prop_map(
        |(block_type, blocks, outer, fill)| {
            let dims = [vec![blocks * block_type.block_len()], outer].concat();
            let bytes = block_type.bytes_for(dims.iter().product()).unwrap();
            let data = (0..bytes).map(|index| (index as u8).wrapping_mul(fill)).collect();
            Tensor { dims, block_type, data }
        },
    )
}

fn any_strings() -> impl Strategy<Value = Strings> {
    let string = prop::collection::vec(any::<u8>(), 0..12);
    prop::collection::vec(string, 0..8).prop_map(|strings| Strings::try_from_iter(strings).unwrap())
}

/// Numbers of one type, as an array.
fn numbers<T: Arbitrary + Clone>(wrap: fn(Vec<T>) -> Array) -> impl Strategy<Value = Array> {
    prop::collection::vec(any::<T>(), 0..8).prop_map(wrap)
}

fn any_array() -> impl Strategy<Value = Array> {
    prop_oneof![
        numbers(Array::U8),
        numbers(Array::I8),
        numbers(Array::U16),
        numbers(Array::I16),
        numbers(Array::U32),
        numbers(Array::I32),
        numbers(Array::U64),
        prop_oneof![numbers(Array::I64), numbers(Array::F32), numbers(Array::F64), numbers(Array::Bool)],
        any_strings().prop_map(Array::Strings),
    ]
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        prop_oneof![any::<i32>().prop_map(Value::I32), any::<f32>().prop_map(Value::F32)],
        prop_oneof![any::<u64>().prop_map(Value::U64), any::<i64>().prop_map(Value::I64)],
        prop_oneof![any::<f64>().prop_map(Value::F64), any::<bool>().prop_map(Value::Bool)],
        ".*".prop_map(Value::String),
        any_array().prop_map(Value::Array),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_written_reads_back_equal(
        values in prop::collection::vec(any_value(), 0..12),
        tensors in prop::collection::vec(any_tensor(), 0..6),
        alignment in prop::sample::select(vec![8u32, 32, 256]),
    ) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("m.gguf");
        let mut writer = Writer::new();
        writer.metadata("general.alignment", alignment);
        for (index, value) in values.iter().enumerate() {
            writer.metadata(format!("key.{index}"), value.clone());
        }
        for (index, tensor) in tensors.iter().enumerate() {
            let source = |out: &mut dyn std::io::Write| out.write_all(&tensor.data);
            writer.tensor(format!("t{index}"), &tensor.dims, tensor.block_type, source);
        }
        let file_bytes = writer.write(&path).unwrap();

        let bytes = fs::read(&path).unwrap();
        prop_assert_eq!(bytes.len() as u64, file_bytes);
        prop_assert_eq!(file_bytes % u64::from(alignment), 0);
        let gguf = Gguf::open(&path).unwrap();
        prop_assert_eq!(gguf.metadata.len(), values.len() + 1);
        for (value, (key, read)) in values.iter().zip(gguf.metadata.iter().skip(1)) {
            // Compared as text, so that a NaN equals itself.
            prop_assert_eq!(format!("{read:?}"), format!("{value:?}"), "{}", key);
        }
        prop_assert_eq!(gguf.tensors.len(), tensors.len());
        for (tensor, read) in tensors.iter().zip(&gguf.tensors) {
            prop_assert_eq!((&read.dims, read.block_type), (&tensor.dims, tensor.block_type));
            prop_assert_eq!(&bytes[read.offset as usize..][..read.bytes as usize], &tensor.data[..]);
        }
    }
}

/// The refusal of a file, having checked that nothing was left in the folder.
fn refusal(fill: impl FnOnce(&mut Writer<'_>)) -> String {
    let folder = TempDir::new().unwrap();
    let mut writer = Writer::new();
    fill(&mut writer);
    let message = writer.write(&folder.path().join("m.gguf")).expect_err("should be refused").to_string();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "a file was left: {message}");
    assert!(message.contains("m.gguf: "), "{message}");
    message
}

fn zeros(bytes: usize) -> impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()> {
    move |out| out.write_all(&vec![0; bytes])
}

#[test]
fn what_the_reader_refuses_is_refused_and_leaves_no_file() {
    let twice = refusal(|w| {
        w.metadata("k", 1u8).metadata("k", 2u8);
    });
    assert!(twice.contains("stands twice"), "{twice}");
    let alignment = refusal(|w| {
        w.metadata("general.alignment", 24u32);
    });
    assert!(alignment.contains("power of two"), "{alignment}");
    let empty_key = refusal(|w| {
        w.metadata("", 1u8);
    });
    assert!(empty_key.contains("empty"), "{empty_key}");
    let long_name = refusal(|w| {
        w.tensor("n".repeat(256), &[1], BlockType::F32, zeros(4));
    });
    assert!(long_name.contains("limit is 255"), "{long_name}");
    let zero_dim = refusal(|w| {
        w.tensor("t", &[0], BlockType::F32, zeros(0));
    });
    assert!(zero_dim.contains("zero"), "{zero_dim}");
    let rank = refusal(|w| {
        w.tensor("t", &[1; 5], BlockType::F32, zeros(4));
    });
    assert!(rank.contains("5 dimensions"), "{rank}");
    let rankless = refusal(|w| {
        w.tensor("t", &[], BlockType::F32, zeros(4));
    });
    assert!(rankless.contains("0 dimensions"), "{rankless}");
    let blocks = refusal(|w| {
        w.tensor("t", &[40], BlockType::Q8_0, zeros(34));
    });
    assert!(blocks.contains("Q8_0 blocks of 32"), "{blocks}");
    let tensor_twice = refusal(|w| {
        w.tensor("t", &[1], BlockType::F32, zeros(4)).tensor("t", &[1], BlockType::F32, zeros(4));
    });
    assert!(tensor_twice.contains("stands twice"), "{tensor_twice}");
}

#[test]
fn a_source_of_the_wrong_length_is_refused_and_leaves_no_file() {
    let short = refusal(|w| {
        w.tensor("t", &[4], BlockType::F32, zeros(15));
    });
    assert!(short.contains("\"t\"") && short.contains("1 bytes short of 16"), "{short}");
    let long = refusal(|w| {
        w.tensor("t", &[4], BlockType::F32, zeros(17));
    });
    assert!(long.contains("\"t\"") && long.contains("more bytes than it has"), "{long}");
}

#[test]
fn a_failed_write_leaves_the_old_file_as_it_was() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.gguf");
    fs::write(&path, b"the old model").unwrap();
    let mut writer = Writer::new();
    writer.tensor("t", &[4], BlockType::F32, |_| Err(std::io::Error::other("the disk is gone")));
    let message = writer.write(&path).unwrap_err().to_string();
    assert!(message.contains("the disk is gone"), "{message}");
    assert_eq!(fs::read(&path).unwrap(), b"the old model");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_write_replaces_the_old_file_and_is_deterministic() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.gguf");
    let write = || {
        let mut writer = Writer::new();
        writer.metadata("general.architecture", "llama");
        writer.tensor("t", &[4], BlockType::F32, zeros(16));
        writer.write(&path).unwrap();
        fs::read(&path).unwrap()
    };
    assert_eq!(write(), write());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_folder_that_does_not_exist_is_named() {
    let message = Writer::new().write(Path::new("/nonexistent/m.gguf")).unwrap_err().to_string();
    assert!(message.contains("/nonexistent/m.gguf: cannot create the file"), "{message}");
}

#[test]
fn a_left_over_temporary_file_does_not_block_the_next_write() {
    let folder = TempDir::new().unwrap();
    let left_over = folder.path().join(format!(".m.gguf.{}-0.tmp", std::process::id()));
    fs::write(&left_over, b"from a crash").unwrap();
    Writer::new().write(&folder.path().join("m.gguf")).unwrap();
    assert!(Gguf::open(&folder.path().join("m.gguf")).is_ok());
}
