//! Damaged files of every kind: the reader never panics and never allocates more than a few times the
//! file. A test binary of its own, because it counts every allocation.

#![allow(clippy::unwrap_used, reason = "tests")]

mod gguf_common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;

use drafthorse_runtime::gguf::{BlockType, Gguf, Strings, Writer, parse};
use gguf_common::{Raw, fixture, shared};
use proptest::prelude::*;

thread_local! {
    /// Bytes this thread holds now, and the most it held since the last `peak_of`.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// The system's allocator, counting per thread (tests run side by side).
struct Counting;

impl Counting {
    fn count(bytes: isize) {
        // A thread that is ending has no counter any more, and nothing left to measure.
        let _ = HELD.try_with(|held| {
            let (now, peak) = held.get();
            held.set((now + bytes, peak.max(now + bytes)));
        });
    }
}

// SAFETY: every call is passed to the system's allocator unchanged; counting allocates nothing (the
// thread-local has a const initializer and no destructor).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Counting::count(layout.size() as isize);
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Counting::count(-(layout.size() as isize));
        // SAFETY: the caller keeps `GlobalAlloc::dealloc`'s contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // Old and new may exist side by side for a moment: counted so.
        Counting::count(bytes as isize);
        Counting::count(-(layout.size() as isize));
        // SAFETY: the caller keeps `GlobalAlloc::realloc`'s contract.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes `work` held beyond what was held before it.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let start = HELD.get().0;
    HELD.set((start, start));
    let result = work();
    (result, (HELD.get().1 - start) as usize)
}

/// What parsing may hold: five times the file (a table of the smallest keys costs that), and room for the
/// first entries of the two tables and for an error message.
fn allowed_bytes(file_len: usize) -> usize {
    5 * file_len + (256 << 10)
}

fn parse_bounded(bytes: &[u8]) -> bool {
    let (result, peak) = peak_of(|| parse(bytes, bytes.len() as u64, Path::new("m.gguf")));
    assert!(
        peak <= allowed_bytes(bytes.len()),
        "{} bytes of file, {peak} held: {:?}",
        bytes.len(),
        result.err()
    );
    if let Ok(header) = &result {
        for tensor in &header.tensors {
            assert!(tensor.offset + tensor.bytes <= bytes.len() as u64);
        }
    }
    result.is_ok()
}

/// A file with something of everything: what mutations start from.
fn rich_file() -> Vec<u8> {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("m.gguf");
    let strings = || Strings::try_from_iter(["<s>", "the", "", "träume", "\n"]).unwrap();
    let mut writer = Writer::new();
    writer.metadata("general.architecture", "llama").metadata("general.alignment", 32u32);
    writer.metadata("tokens", strings()).metadata("scores", vec![0.5f32, -1.0, 2.0]);
    writer.metadata("types", vec![1i32, 3, 6]).metadata("flags", vec![true, false]);
    writer.metadata("numbers", vec![1u16, 2, 3]).metadata("more", strings());
    writer.metadata("f64", 0.25f64).metadata("bool", true).metadata("u64", u64::MAX);
    let types = [BlockType::F32, BlockType::F16, BlockType::Q8_0, BlockType::Q4_K, BlockType::IQ2_S];
    for (index, block_type) in types.into_iter().enumerate() {
        let bytes = block_type.bytes_for(512).unwrap() as usize;
        writer.tensor(format!("blk.{index}.weight"), &[256, 2], block_type, move |out| {
            out.write_all(&vec![7; bytes])
        });
    }
    writer.write(&path).unwrap();
    fs::read(&path).unwrap()
}

/// One kind of damage.
#[derive(Clone, Debug)]
enum Damage {
    FlipBit(usize, u8),
    SetByte(usize, u8),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Truncate(usize),
    HugeU32(usize, u32),
    HugeU64(usize, u64),
    Swap(usize, usize),
}

fn any_damage(len: usize) -> impl Strategy<Value = Damage> {
    // Most of the file is tensor data, where damage means nothing: aim at the header.
    let at = || prop_oneof![4 => 0..len.min(900), 1 => 0..len];
    let large = prop::sample::select(vec![
        0,
        1,
        255,
        1 << 16,
        1 << 20,
        1 << 25,
        (1 << 30) + 1,
        1 << 31,
        u64::from(u32::MAX),
        1 << 40,
        1 << 62,
        1 << 63,
        u64::MAX - 7,
        u64::MAX,
    ]);
    prop_oneof![
        (at(), 0..8u8).prop_map(|(at, bit)| Damage::FlipBit(at, bit)),
        (at(), any::<u8>()).prop_map(|(at, byte)| Damage::SetByte(at, byte)),
        (at(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (at(), 1..40usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        (0..len).prop_map(Damage::Truncate),
        (at(), any::<u32>()).prop_map(|(at, number)| Damage::HugeU32(at, number)),
        (at(), large).prop_map(|(at, number)| Damage::HugeU64(at, number)),
        (at(), at()).prop_map(|(a, b)| Damage::Swap(a, b)),
    ]
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    let at = at.min(bytes.len());
    let end = (at + with.len()).min(bytes.len());
    bytes[at..end].copy_from_slice(&with[..end - at]);
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    match damage {
        Damage::FlipBit(at, bit) => bytes.get_mut(*at).into_iter().for_each(|byte| *byte ^= 1 << bit),
        Damage::SetByte(at, value) => overwrite(bytes, *at, &[*value]),
        Damage::Insert(at, inserted) => {
            let at = (*at).min(bytes.len());
            bytes.splice(at..at, inserted.iter().copied());
        }
        Damage::Remove(at, count) => {
            let at = (*at).min(bytes.len());
            bytes.drain(at..(at + count).min(bytes.len()));
        }
        Damage::Truncate(len) => bytes.truncate(*len),
        Damage::HugeU32(at, number) => overwrite(bytes, *at, &number.to_le_bytes()),
        Damage::HugeU64(at, number) => overwrite(bytes, *at, &number.to_le_bytes()),
        Damage::Swap(a, b) => {
            if bytes.len() > *a.max(b) {
                bytes.swap(*a, *b);
            }
        }
    }
}

#[test]
fn a_file_with_any_one_to_six_damages_is_read_or_refused_within_bounds() {
    let good = rich_file();
    assert!(parse_bounded(&good));
    let strategy = prop::collection::vec(any_damage(good.len()), 1..6);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(20_000));
    let refused = Cell::new(0u32);
    runner
        .run(&strategy, |damages| {
            let mut bytes = good.clone();
            damages.iter().for_each(|damage| apply(&mut bytes, damage));
            refused.set(refused.get() + u32::from(!parse_bounded(&bytes)));
            Ok(())
        })
        .unwrap();
    assert!(refused.get() > 10_000, "only {} were refused: the damage misses the header", refused.get());
}

#[test]
fn every_single_byte_of_the_header_can_take_any_extreme_value() {
    let good = fs::read(fixture("golden.gguf")).unwrap();
    for at in 0..good.len().min(1400) {
        for value in [0x00, 0x01, 0x7f, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = value;
            parse_bounded(&bytes);
        }
    }
}

#[test]
fn random_bytes_behind_the_magic_are_refused_within_bounds() {
    proptest!(ProptestConfig::with_cases(5_000), |(tail in prop::collection::vec(any::<u8>(), 0..400))| {
        let bytes = Raw(b"GGUF".to_vec()).u32(3).bytes(&tail).0;
        parse_bounded(&bytes);
        parse_bounded(&tail);
    });
}

#[test]
fn large_arrays_take_no_more_memory_than_their_bytes_in_the_file() {
    const MIB: usize = 1 << 20;
    let bytes = Raw::new(0, 1).key("a", 9).u32(0).u64(16 * MIB as u64).bytes(&vec![7; 16 * MIB]).0;
    let (header, peak) = peak_of(|| parse(&bytes, bytes.len() as u64, Path::new("m.gguf")));
    assert!(header.is_ok());
    assert!(peak < bytes.len() + MIB, "{peak} bytes for an array of 16 MiB");

    let strings =
        (0..MIB).fold(Raw::new(0, 1).key("a", 9).u32(8).u64(MIB as u64), |file, _| file.string(b"ab"));
    let (header, peak) = peak_of(|| strings.parse());
    assert!(header.is_ok());
    assert!(peak < strings.0.len(), "{peak} bytes for strings of {} bytes", strings.0.len());
}

#[test]
fn a_table_of_the_smallest_tensors_stays_within_bounds() {
    let count = 100_000u64;
    let file = (0..count).fold(Raw::new(count, 0), |file, index| {
        file.tensor(&format!("{index:x}"), &[1], 24, index * 32) // I8
    });
    assert!(parse_bounded(&file.data(count as usize * 32).0));
}

#[test]
fn a_table_of_the_smallest_keys_stays_within_bounds() {
    let count = 65_536u64;
    let file =
        (0..count).fold(Raw::new(0, count), |file, index| file.key(&format!("{index:x}"), 0).bytes(&[1]));
    assert!(parse_bounded(&file.0));
}

#[test]
fn a_real_vocabulary_takes_less_memory_than_its_file() {
    let Some(path) = shared("data/tokenizers/ggml-vocab-qwen2.gguf") else { return };
    let (gguf, peak) = peak_of(|| Gguf::open(&path).unwrap());
    let file_len = gguf.file_bytes[0] as usize;
    assert!(peak < file_len + (64 << 10), "{peak} bytes for a file of {file_len}");
}
