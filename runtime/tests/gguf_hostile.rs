//! The GGUF reader on bad files: each refused by the right rule, in one line that names the place.

#![allow(clippy::unwrap_used, reason = "tests")]

mod gguf_common;

use std::path::Path;

use drafthorse_runtime::gguf::limits::MAX_HEADER_BYTES;
use drafthorse_runtime::gguf::{Gguf, GgufError, parse};
use gguf_common::Raw;

// Type ids of the format.
const U8: u32 = 0;
const U32: u32 = 4;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;
const I64: u32 = 11;
const F32_TENSOR: u32 = 0;
const Q4_K_TENSOR: u32 = 12;

/// A file with one tensor.
fn one_tensor(dims: &[u64], type_id: u32, offset: u64, data: usize) -> Raw {
    Raw::new(1, 0).tensor("t", dims, type_id, offset).data(data)
}

/// A file with `general.alignment` and one tensor.
fn aligned(type_id: u32, alignment: &[u8]) -> Raw {
    let file = Raw::new(1, 1).key("general.alignment", type_id).bytes(alignment);
    file.tensor("t", &[4], F32_TENSOR, 0).data(1 << 17)
}

fn assert_contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn a_file_that_is_not_gguf_is_refused() {
    assert_contains(&Raw(b"\x08\0\0\0safetensors".to_vec()).refusal(), &["not a GGUF file"]);
    assert_contains(&Raw(Vec::new()).refusal(), &["truncated", "offset 0", "0 left"]);
    assert_contains(&Raw(b"GGUF".to_vec()).u32(4).refusal(), &["version 4", "only 2 and 3"]);
    assert_contains(&Raw(b"GGUF\0\0\0\x03".to_vec()).refusal(), &["big-endian"]);
}

#[test]
fn a_tensor_count_beyond_the_file_is_refused_before_allocation() {
    assert_contains(&Raw::new(1000, 0).refusal(), &["truncated", "33000 bytes"]);
    assert_contains(&Raw::new(u64::MAX, 0).refusal(), &["tensors 18446744073709551615", "limit is 262144"]);
}

#[test]
fn a_key_count_beyond_the_file_is_refused_before_allocation() {
    assert_contains(&Raw::new(0, 1000).refusal(), &["truncated", "14000 bytes"]);
    assert_contains(&Raw::new(0, 1 << 63).refusal(), &["metadata keys", "limit is 65536"]);
}

#[test]
fn a_string_longer_than_the_file_is_refused() {
    let file = Raw::new(0, 1).key("general.name", STRING).u64(1 << 20).bytes(&[b'x'; 100]);
    assert_contains(&file.refusal(), &["\"general.name\"", "1048576 bytes", "100 left"]);
    let file = Raw::new(0, 1).key("general.name", STRING).u64(u64::MAX).bytes(&[b'x'; 100]);
    assert_contains(&file.refusal(), &["string bytes", "limit is 16777216"]);
}

#[test]
fn a_key_longer_than_the_format_allows_is_refused() {
    let file = Raw::new(0, 1).string(&[b'k'; 70_000]).u32(U8).bytes(&[1]);
    assert_contains(&file.refusal(), &["metadata key 0", "string bytes 70000", "limit is 65535"]);
}

#[test]
fn an_array_longer_than_the_file_is_refused_before_allocation() {
    for (element, count) in [(U64, 1 << 24), (STRING, 1 << 24), (ARRAY, 1 << 24), (BOOL, 1 << 24)] {
        let file = Raw::new(0, 1).key("a", ARRAY).u32(element).u64(count).bytes(&[0; 64]);
        assert_contains(&file.refusal(), &["\"a\"", "truncated"]);
    }
    let file = Raw::new(0, 1).key("a", ARRAY).u32(U8).u64(u64::MAX);
    assert_contains(&file.refusal(), &["array elements", "limit is"]);
}

#[test]
fn an_array_of_arrays_is_refused() {
    let nest = |depth: usize| {
        let file = Raw::new(0, 1).key("a", ARRAY);
        (1..depth).fold(file, |file, _| file.u32(ARRAY).u64(1)).u32(U8).u64(0)
    };
    assert!(nest(1).parse().is_ok());
    assert_contains(&nest(2).refusal(), &["\"a\"", "an array of arrays"]);
    assert_contains(&nest(100_000).refusal(), &["\"a\"", "an array of arrays"]);
}

#[test]
fn an_unknown_or_negative_metadata_type_is_refused() {
    for id in [13, 14, u32::MAX] {
        let file = Raw::new(0, 1).key("a", id).u64(0);
        assert_contains(&file.refusal(), &["\"a\"", &format!("unknown metadata type id {id}")]);
        let file = Raw::new(0, 1).key("a", ARRAY).u32(id).u64(0);
        assert_contains(&file.refusal(), &[&format!("unknown metadata type id {id}")]);
    }
}

#[test]
fn a_bool_that_is_neither_0_nor_1_is_refused() {
    assert_contains(&Raw::new(0, 1).key("flag", BOOL).bytes(&[2]).refusal(), &["\"flag\"", "not 2"]);
    let array = Raw::new(0, 1).key("flags", ARRAY).u32(BOOL).u64(2).bytes(&[1, 255]);
    assert_contains(&array.refusal(), &["\"flags\"", "not 255"]);
}

#[test]
fn duplicate_keys_are_refused() {
    let file = Raw::new(0, 2).key("k", U8).bytes(&[1]).key("k", U8).bytes(&[2]);
    assert_contains(&file.refusal(), &["key \"k\" stands twice"]);
}

#[test]
fn keys_and_names_must_be_utf8_and_not_empty() {
    assert_contains(&Raw::new(0, 1).string(b"a\xff").u32(U8).bytes(&[1]).refusal(), &["key 0", "not UTF-8"]);
    assert_contains(&Raw::new(0, 1).string(b"").u32(U64).u64(1).refusal(), &["key 0", "empty"]);
    let value = Raw::new(0, 1).key("general.name", STRING).string(b"ok\xc3");
    assert_contains(&value.refusal(), &["\"general.name\"", "not UTF-8 from byte 2"]);
    let tensor = |name: &[u8]| Raw::new(1, 0).string(name).u32(1).u64(4).u32(0).u64(0).data(16);
    assert_contains(&tensor(b"\x80").refusal(), &["name of tensor 0", "not UTF-8"]);
    assert_contains(&tensor(b"").refusal(), &["name of tensor 0", "empty"]);
    assert_contains(&tensor(&[b'n'; 300]).refusal(), &["name of tensor 0", "300", "limit is 255"]);
}

#[test]
fn vocabulary_strings_may_hold_any_bytes() {
    let file = Raw::new(0, 1).key("tokens", ARRAY).u32(STRING).u64(2).string(b"\xff\xfe").string(b"a");
    let header = file.parse().unwrap();
    let tokens = header.metadata.strings("tokens").unwrap().unwrap();
    assert_eq!(tokens.iter().collect::<Vec<_>>(), [&b"\xff\xfe"[..], b"a"]);
    assert!(header.metadata.strs("tokens").is_err());
}

#[test]
fn an_alignment_that_is_no_power_of_two_in_range_is_refused() {
    for bad in [0u32, 1, 3, 4, 48, 1 << 17] {
        let message = aligned(U32, &bad.to_le_bytes()).refusal();
        assert_contains(&message, &["\"general.alignment\"", &format!("is {bad},"), "power of two"]);
    }
    assert_contains(&aligned(U64, &u64::MAX.to_le_bytes()).refusal(), &["power of two"]);
    assert_contains(&aligned(I64, &(-32i64).to_le_bytes()).refusal(), &["is i64"]);
    assert_contains(&aligned(STRING, b"\x02\x00\x00\x00\x00\x00\x00\x0032").refusal(), &["is string"]);
}

#[test]
fn an_alignment_of_any_integer_type_counts() {
    let file = aligned(U64, &64u64.to_le_bytes());
    let header = file.parse().unwrap();
    assert_eq!(header.alignment, 64);
    assert_eq!(header.tensors[0].offset % 64, 0);
}

#[test]
fn dims_whose_product_overflows_are_refused() {
    for dims in [vec![1 << 32, 1 << 32], vec![u64::MAX, 2], vec![1 << 62], vec![1 << 16; 4]] {
        assert_contains(&one_tensor(&dims, F32_TENSOR, 0, 64).refusal(), &["tensor \"t\"", "overflows"]);
    }
}

#[test]
fn a_zero_dim_is_refused() {
    assert_contains(&one_tensor(&[32, 0], F32_TENSOR, 0, 64).refusal(), &["tensor \"t\"", "zero"]);
    assert_contains(&one_tensor(&[0, u64::MAX, u64::MAX], F32_TENSOR, 0, 64).refusal(), &["zero"]);
}

#[test]
fn a_rank_outside_1_to_4_is_refused() {
    assert_contains(&one_tensor(&[], F32_TENSOR, 0, 64).refusal(), &["tensor \"t\"", "0 dimensions"]);
    assert_contains(&one_tensor(&[1; 5], F32_TENSOR, 0, 64).refusal(), &["5 dimensions"]);
    let file = Raw::new(1, 0).string(b"t").u32(u32::MAX).data(64);
    assert_contains(&file.refusal(), &["4294967295 dimensions"]);
}

#[test]
fn rows_that_are_not_whole_blocks_are_refused() {
    let message = one_tensor(&[128, 2], Q4_K_TENSOR, 0, 1024).refusal();
    assert_contains(&message, &["tensor \"t\"", "rows of 128", "Q4_K blocks of 256"]);
}

#[test]
fn an_unknown_block_type_is_refused_by_tensor_and_id() {
    assert_contains(&one_tensor(&[32], 43, 0, 64).refusal(), &["tensor \"t\"", "id 43"]);
    assert_contains(&one_tensor(&[32], u32::MAX, 0, 64).refusal(), &["id 4294967295"]);
    assert_contains(&one_tensor(&[32], 31, 0, 64).refusal(), &["id 31", "plain Q4_0"]);
}

#[test]
fn a_block_type_without_a_kernel_is_listed() {
    for id in [20, 23, 34, 39, 40] {
        assert_eq!(one_tensor(&[256], id, 0, 1024).parse().unwrap().tensors[0].block_type.id(), id);
    }
}

#[test]
fn a_tensor_beyond_the_file_is_refused() {
    let end = one_tensor(&[16], F32_TENSOR, 0, 63).refusal();
    assert_contains(&end, &["tensor \"t\"", "64 bytes at offset 64", "end of the file at 127"]);
    let far = one_tensor(&[16], F32_TENSOR, u64::MAX - 31, 64).refusal();
    assert_contains(&far, &["tensor \"t\"", "beyond the end"]);
    assert!(one_tensor(&[16], F32_TENSOR, 0, 64).parse().is_ok());
}

#[test]
fn a_misaligned_tensor_is_refused() {
    let message = one_tensor(&[4], F32_TENSOR, 16, 256).refusal();
    assert_contains(&message, &["tensor \"t\"", "offset 16", "alignment 32"]);
}

#[test]
fn duplicate_tensors_are_refused() {
    let file = Raw::new(2, 0).tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32).data(64);
    assert_contains(&file.refusal(), &["tensor \"t\" stands twice"]);
}

#[test]
fn overlapping_tensors_are_refused() {
    let two = |second| Raw::new(2, 0).tensor("a", &[16], 0, 0).tensor("b", &[8], 0, second).data(128);
    assert_contains(&two(32).refusal(), &["\"a\" and \"b\" overlap at offset"]);
    assert_contains(&two(0).refusal(), &["overlap"]);
    assert!(two(64).parse().is_ok());
}

#[test]
fn a_header_larger_than_the_window_is_refused() {
    // A file of a terabyte, of which the parser sees the first 100 bytes.
    let file = Raw::new(0, 1).key("a", ARRAY).u32(U8).u64(1 << 20).bytes(&[0; 40]);
    let message = parse(&file.0, 1 << 40, Path::new("m.gguf")).unwrap_err().to_string();
    assert_contains(&message, &["the file header", &format!("limit is {MAX_HEADER_BYTES}")]);
}

#[test]
fn a_name_with_control_characters_is_shown_escaped() {
    let file = Raw::new(1, 0).tensor("evil\n\x1b[2J", &[0], 0, 0).data(0);
    assert_contains(&file.refusal(), &[r#""evil\n\u{1b}[2J""#]);
}

#[test]
fn every_truncation_of_a_good_file_is_refused() {
    let bytes = std::fs::read(gguf_common::fixture("golden.gguf")).unwrap();
    let whole = parse(&bytes, bytes.len() as u64, Path::new("m.gguf")).unwrap();
    let data_end = whole.tensors.iter().map(|tensor| tensor.offset + tensor.bytes).max().unwrap() as usize;
    for len in 0..data_end {
        let error = parse(&bytes[..len], len as u64, Path::new("m.gguf")).expect_err("truncated");
        assert!(
            matches!(error, GgufError::Truncated { .. } | GgufError::TensorOutOfFile { .. }),
            "{len} bytes: {error}"
        );
    }
}

#[test]
fn a_missing_file_and_a_folder_are_errors_that_name_them() {
    let message = |path: &Path| Gguf::open(path).unwrap_err().to_string();
    assert_contains(&message(Path::new("/nonexistent/m.gguf")), &["/nonexistent/m.gguf: cannot open"]);
    assert_contains(&message(Path::new("/")), &["not a regular file"]);
    let empty = tempfile::NamedTempFile::new().unwrap();
    assert_contains(&message(empty.path()), &["truncated"]);
}
