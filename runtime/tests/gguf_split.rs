//! Split models: any part opens the whole; parts that do not fit together are named.

#![allow(clippy::unwrap_used, reason = "tests")]

mod gguf_common;

use std::fs;
use std::path::{Path, PathBuf};

use drafthorse_runtime::gguf::{BlockType, Gguf, Value, Writer};
use gguf_common::fixture;
use tempfile::TempDir;

fn part_path(folder: &Path, number: u64, count: u64) -> PathBuf {
    folder.join(format!("m-{number:05}-of-{count:05}.gguf"))
}

/// Part `number` of `count`, with the given keys and one tensor.
fn write_part(path: &Path, keys: &[(&str, Value)], tensor: &str) {
    let mut writer = Writer::new();
    for (key, value) in keys {
        writer.metadata(*key, value.clone());
    }
    writer.tensor(tensor, &[8], BlockType::F32, |out| out.write_all(&[0; 32]));
    writer.write(path).unwrap();
}

/// Two parts with tensors `a` and `second`, and `total` as `split.tensors.count`.
fn two_parts(second: &str, total: i32) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (number, tensor) in [(1u16, "a"), (2, second)] {
        let keys = [
            ("split.no", Value::U16(number - 1)),
            ("split.count", Value::U16(2)),
            ("split.tensors.count", Value::I32(total)),
        ];
        write_part(&part_path(folder.path(), number.into(), 2), &keys, tensor);
    }
    folder
}

fn refusal(path: &Path) -> String {
    Gguf::open(path).expect_err("the split should be refused").to_string()
}

#[test]
fn any_part_of_pythons_split_opens_the_whole() {
    for number in 1..=3 {
        let gguf = Gguf::open(&fixture(&format!("split-0000{number}-of-00003.gguf"))).unwrap();
        assert_eq!(gguf.metadata.u64("llama.block_count").unwrap(), Some(1));
        let found: Vec<_> = gguf.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.file)).collect();
        assert_eq!(found, [("a", 0), ("b", 1), ("c", 2)]);
        assert_eq!(gguf.files.len(), 3);
        for tensor in &gguf.tensors {
            assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
            assert!(tensor.offset + tensor.bytes <= gguf.file_bytes[usize::from(tensor.file)]);
            assert_eq!(gguf.file_of(tensor), Some(gguf.files[usize::from(tensor.file)].as_path()));
        }
    }
}

#[test]
fn a_missing_part_is_named() {
    let folder = two_parts("b", 2);
    fs::remove_file(part_path(folder.path(), 1, 2)).unwrap();
    let message = refusal(&part_path(folder.path(), 2, 2));
    assert!(message.contains("m-00001-of-00002.gguf: split file: part 1 of 2 is missing"), "{message}");
}

#[test]
fn a_part_under_a_foreign_name_cannot_find_the_others() {
    let folder = two_parts("b", 2);
    let renamed = folder.path().join("model.gguf");
    fs::rename(part_path(folder.path(), 1, 2), &renamed).unwrap();
    let message = refusal(&renamed);
    assert!(message.contains("part 1 of 2") && message.contains("-00001-of-00002.gguf"), "{message}");
}

#[test]
fn a_part_that_is_another_ones_copy_is_named() {
    let folder = two_parts("b", 2);
    fs::copy(part_path(folder.path(), 1, 2), part_path(folder.path(), 2, 2)).unwrap();
    let message = refusal(&part_path(folder.path(), 1, 2));
    assert!(message.contains("m-00002-of-00002.gguf") && message.contains("says it is part 1"), "{message}");
}

#[test]
fn parts_that_disagree_about_their_count_are_named() {
    let folder = two_parts("b", 2);
    let keys = [("split.no", Value::U16(1)), ("split.count", Value::U16(3))];
    write_part(&part_path(folder.path(), 2, 2), &keys, "b");
    let message = refusal(&part_path(folder.path(), 1, 2));
    assert!(message.contains("m-00002-of-00002.gguf") && message.contains("one of 3 parts"), "{message}");
}

#[test]
fn a_part_without_split_keys_is_named() {
    let folder = two_parts("b", 2);
    write_part(&part_path(folder.path(), 2, 2), &[], "b");
    let message = refusal(&part_path(folder.path(), 1, 2));
    assert!(
        message.contains("m-00002-of-00002.gguf") && message.contains("\"split.count\" is missing"),
        "{message}"
    );
}

#[test]
fn a_wrong_total_of_tensors_is_refused() {
    let folder = two_parts("b", 3);
    let message = refusal(&part_path(folder.path(), 1, 2));
    assert!(message.contains("hold 3 tensors, they hold 2"), "{message}");
}

#[test]
fn a_tensor_in_two_parts_is_refused_with_both_files() {
    let folder = two_parts("a", 2);
    let message = refusal(&part_path(folder.path(), 1, 2));
    assert!(message.contains("tensor \"a\" stands twice"), "{message}");
    assert!(
        message.contains("m-00001-of-00002.gguf") && message.contains("m-00002-of-00002.gguf"),
        "{message}"
    );
}

#[test]
fn a_hostile_part_count_is_refused_before_any_sibling_is_opened() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.gguf");
    write_part(&path, &[("split.no", Value::U16(0)), ("split.count", Value::U64(u64::MAX))], "a");
    assert!(refusal(&path).contains("more than 1024 parts"));
    write_part(&path, &[("split.no", Value::U64(u64::MAX)), ("split.count", Value::U16(2))], "a");
    assert!(refusal(&path).contains("split file"));
}

#[test]
fn a_split_of_one_is_a_single_file() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.gguf");
    write_part(&path, &[("split.no", Value::U16(0)), ("split.count", Value::U16(1))], "a");
    assert_eq!(Gguf::open(&path).unwrap().files, [path]);
}
