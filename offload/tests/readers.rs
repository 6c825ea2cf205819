//! One suite over every reader of the registry: what the trait's contract promises.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use common::Bank;
use drafthorse_offload::reader::{DiskSpec, SimulatedDisk};
use drafthorse_offload::*;

/// The least each reader can be told to do, so that reads queue up.
const NARROW: ReaderOptions = ReaderOptions { threads: 1, depth: 16, cached: false };

/// A disk that is simulated in front of every reader: slow enough to hold reads back, fast enough for a test.
const DISK: DiskSpec = DiskSpec { bytes_per_s: 4 << 30, latency: Duration::from_micros(60) };

/// Every reader this system has, with files open, by itself and, reading through the page cache, behind a simulated disk.
/// Containers often forbid rings: then `io_uring` is left out, with the reason printed, while `auto` must do without.
fn open_all(
    paths: &[PathBuf],
    options: &ReaderOptions,
) -> impl Iterator<Item = (&'static str, Box<dyn Reader>)> {
    let open = |cached: bool| {
        let options = ReaderOptions { cached, ..*options };
        READERS.iter().filter_map(move |kind| match (kind.open)(paths, &options) {
            Err(OffloadError::Ring { source }) if kind.name == "io_uring" => {
                eprintln!("skipped: io_uring: {source}");
                None
            }
            opened => Some((kind.name, opened.unwrap())),
        })
    };
    let simulate = |(name, reader)| (name, SimulatedDisk::new(DISK).in_front_of(reader, options));
    open(false).chain(open(true).map(simulate))
}

/// Runs a test on every reader of the registry, over the same bank on disk.
fn on_every_reader(test: impl Fn(&Bank, &mut dyn Reader)) {
    let folder = tempfile::tempdir().unwrap();
    let bank = Bank::new(3, 6);
    let paths = bank.write(folder.path());
    for (name, mut reader) in open_all(&paths, &ReaderOptions::default()) {
        assert!(reader.name() == name || name == "auto", "{name}");
        test(&bank, reader.as_mut());
        assert_eq!(reader.in_flight(), 0, "{name}");
    }
}

fn read(tag: u64, extent: Extent) -> Read {
    Read { tag, extent, buf: AlignedBuf::new(extent.widened().unwrap().len).unwrap() }
}

/// Reads into slots of one arena, which a ring may register.
fn reads_into_slots(extents: &[Extent]) -> Vec<Read> {
    let room = |extent: &Extent| extent.widened().unwrap().len;
    let mut arena = Arena::new(extents.len(), extents.iter().map(room).max().unwrap()).unwrap();
    let slot = extents.iter().map(room).max().unwrap();
    let read = |(tag, extent): (usize, &Extent)| Read {
        tag: tag as u64,
        extent: *extent,
        buf: arena.take(slot).unwrap(),
    };
    extents.iter().enumerate().map(read).collect()
}

fn all_extents(bank: &Bank) -> Vec<Extent> {
    let ids = (0..3).flat_map(|layer| (0..6).map(move |expert| ExpertId { layer, expert }));
    ids.flat_map(|id| *bank.index.extents(id).unwrap()).collect()
}

/// A file of `len` bytes in which no two pages are alike.
fn large_file(folder: &Path, len: usize) -> (PathBuf, Vec<u8>) {
    let mut next = numbers(11);
    let bytes: Vec<u8> = std::iter::repeat_with(|| next().to_le_bytes()).flatten().take(len).collect();
    let path = folder.join("large");
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

/// Numbers without a pattern, the same every time (Knuth's MMIX generator).
fn numbers(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state >> 20
    }
}

/// Checks one end against the file it was read from, and that no other had its tag.
fn check(done: &Completion, extents: &[Extent], bytes: &[u8], seen: &mut BTreeSet<u64>) {
    let Extent { offset, len, .. } = extents[done.tag as usize];
    let range = done.data.as_ref().unwrap().clone();
    assert!(done.buf.as_slice()[range] == bytes[offset as usize..][..len as usize], "{:?}", done.tag);
    assert!(seen.insert(done.tag), "read {} came twice", done.tag);
    assert!(done.read_s >= 0.0);
}

#[test]
fn every_reader_returns_every_read_once_with_the_files_bytes() {
    on_every_reader(|bank, reader| {
        let extents = all_extents(bank);
        reader.submit(extents.iter().enumerate().map(|(i, e)| read(i as u64, *e)).collect()).unwrap();
        assert_eq!(reader.in_flight(), extents.len());
        let mut seen = BTreeSet::new();
        while reader.in_flight() > 0 {
            let done = reader.wait().unwrap();
            let extent = &extents[done.tag as usize];
            assert_eq!(&done.buf.as_slice()[done.data.unwrap()], bank.bytes(extent));
            assert!(seen.insert(done.tag), "{}: read {} twice", reader.name(), done.tag);
        }
        assert_eq!(seen.len(), extents.len());
    });
}

#[test]
fn every_reader_serves_far_more_reads_than_it_begins_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (path, bytes) = large_file(folder.path(), 3_000_001);
    let mut next = numbers(3);
    let mut extent = || Extent { file: 0, offset: next() % 2_900_000, len: next() % 100_000 + 1 };
    let extents: Vec<Extent> = std::iter::repeat_with(&mut extent).take(330).collect();
    for (name, mut reader) in open_all(std::slice::from_ref(&path), &NARROW) {
        let mut seen = BTreeSet::new();
        reader.submit(reads_into_slots(&extents)).unwrap();
        while reader.in_flight() > 0 {
            check(&reader.wait().unwrap(), &extents, &bytes, &mut seen);
        }
        assert_eq!(seen.len(), extents.len(), "{name}");
    }
}

#[test]
fn every_reader_reads_from_one_byte_to_several_mebibytes_at_any_offset() {
    let folder = tempfile::tempdir().unwrap();
    let (path, bytes) = large_file(folder.path(), 9_437_191);
    let end = bytes.len() as u64;
    let mut extents = Vec::new();
    for len in [1, 2, 511, 4095, 4096, 4097, 524_287, 524_288, 524_289, 1_048_577, 5_000_003] {
        for offset in [0, 1, 4095, 4096, 65_535, end - len] {
            extents.push(Extent { file: 0, offset, len });
        }
    }
    for (name, mut reader) in open_all(std::slice::from_ref(&path), &NARROW) {
        let mut seen = BTreeSet::new();
        // Slots are as large as the largest read, so a batch at a time.
        for batch in extents.chunks(11) {
            seen.clear();
            reader.submit(reads_into_slots(batch)).unwrap();
            while reader.in_flight() > 0 {
                check(&reader.wait().unwrap(), batch, &bytes, &mut seen);
            }
            assert_eq!(seen.len(), batch.len(), "{name}");
        }
    }
}

#[test]
fn polling_alone_brings_every_read_of_every_reader_once() {
    on_every_reader(|bank, reader| {
        assert!(reader.poll().unwrap().is_none(), "{}: nothing was submitted", reader.name());
        let extents = all_extents(bank);
        let mut seen = BTreeSet::new();
        for round in 0..10 {
            reader.submit(extents.iter().enumerate().map(|(i, e)| read(i as u64, *e)).collect()).unwrap();
            while reader.in_flight() > 0 {
                let before = reader.in_flight();
                let Some(done) = reader.poll().unwrap() else {
                    std::thread::yield_now();
                    continue;
                };
                assert_eq!(reader.in_flight(), before - 1);
                assert_eq!(&done.buf.as_slice()[done.data.unwrap()], bank.bytes(&extents[done.tag as usize]));
                assert!(seen.insert((round, done.tag)), "{}: read {} twice", reader.name(), done.tag);
            }
            assert!(reader.poll().unwrap().is_none(), "{}: all were returned", reader.name());
        }
        assert_eq!(seen.len(), 10 * extents.len());
    });
}

#[test]
fn polls_waits_and_submits_mix_on_every_reader() {
    let folder = tempfile::tempdir().unwrap();
    let (path, bytes) = large_file(folder.path(), 2_000_003);
    for (name, mut reader) in open_all(std::slice::from_ref(&path), &NARROW) {
        let mut next = numbers(17);
        let (mut extents, mut seen) = (Vec::new(), BTreeSet::new());
        while extents.len() < 400 || reader.in_flight() > 0 {
            let done = match next() % 3 {
                0 if extents.len() < 400 => {
                    let extent = Extent { file: 0, offset: next() % 1_000_000, len: next() % 800_000 + 1 };
                    reader.submit(vec![read(extents.len() as u64, extent)]).unwrap();
                    extents.push(extent);
                    None
                }
                1 if reader.in_flight() > 0 => Some(reader.wait().unwrap()),
                _ => reader.poll().unwrap(),
            };
            done.iter().for_each(|done| check(done, &extents, &bytes, &mut seen));
        }
        assert_eq!(seen.len(), 400, "{name}");
    }
}

#[test]
fn every_reader_can_be_handed_to_another_thread_while_the_first_computes_or_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (path, bytes) = large_file(folder.path(), 3_000_001);
    let extents: Vec<Extent> =
        (0..30).map(|i| Extent { file: 0, offset: i * 80_001, len: 300_000 }).collect();
    for computes in [true, false] {
        for (name, mut reader) in open_all(std::slice::from_ref(&path), &NARROW) {
            let (hand, take) = mpsc::channel();
            let (finished, finish) = mpsc::channel::<()>();
            let reads = reads_into_slots(&extents);
            let first = std::thread::spawn(move || {
                reader.submit(reads).unwrap();
                hand.send(reader).unwrap();
                while computes && finish.try_recv() == Err(mpsc::TryRecvError::Empty) {
                    std::hint::spin_loop();
                }
            });
            let mut reader = take.recv().unwrap();
            let mut seen = BTreeSet::new();
            while reader.in_flight() > 0 {
                check(&reader.wait().unwrap(), &extents, &bytes, &mut seen);
            }
            assert_eq!(seen.len(), extents.len(), "{name}");
            drop(finished);
            first.join().unwrap();
        }
    }
}

#[test]
fn a_file_cut_short_after_it_was_opened_gives_short_reads_and_no_other_harm() {
    let folder = tempfile::tempdir().unwrap();
    let (path, bytes) = large_file(folder.path(), 3_000_001);
    for (name, mut reader) in open_all(std::slice::from_ref(&path), &NARROW) {
        if name == "memory" {
            continue; // it has read the whole file when it opened it
        }
        std::fs::write(&path, &bytes).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(1_500_000).unwrap();
        // Whole, across the new end within a request and between requests, and wholly beyond it.
        let extents =
            [(5, 1_000_000), (900_001, 1_000_000), (1_499_999, 2), (100, 2_000_000), (1_600_000, 7)];
        let extents = extents.map(|(offset, len)| Extent { file: 0, offset, len });
        let there = [1_000_000, 599_999, 1, 1_499_900, 0];
        for _ in 0..3 {
            reader.submit(reads_into_slots(&extents)).unwrap();
            while reader.in_flight() > 0 {
                let done = reader.wait().unwrap();
                let Extent { offset, len, .. } = extents[done.tag as usize];
                let present = there[done.tag as usize];
                match done.data {
                    Ok(range) => {
                        assert_eq!(present, len, "{name}: read {}", done.tag);
                        assert!(done.buf.as_slice()[range] == bytes[offset as usize..][..len as usize]);
                    }
                    Err(ReadError::Short { wanted, got, .. }) => {
                        assert_eq!((wanted, got), (len, present), "{name}: read {}", done.tag);
                    }
                    Err(other) => assert_eq!(other.to_string(), "a short read", "{name}"),
                }
            }
        }
    }
}

#[test]
fn every_reader_reports_the_end_of_the_file_as_a_short_read_and_goes_on() {
    on_every_reader(|bank, reader| {
        let end = bank.files[0].len() as u64;
        let good = all_extents(bank)[0];
        let past = [(end - 10, 11, 10), (end, 1, 0), (end - 9000, 9001, 9000), (end + 99_999, 5, 0)];
        for (offset, len, there) in past {
            reader.submit(vec![read(1, Extent { file: 0, offset, len })]).unwrap();
            match reader.wait().unwrap().data {
                Err(ReadError::Short { file, offset: at, wanted, got }) => {
                    assert_eq!((at, wanted, got), (offset, len, there), "{}", reader.name());
                    assert!(file.ends_with("file-0.gguf"));
                }
                other => assert_eq!(format!("{other:?}"), "a short read", "{}", reader.name()),
            }
            reader.submit(vec![read(2, good)]).unwrap();
            let done = reader.wait().unwrap();
            assert_eq!(&done.buf.as_slice()[done.data.unwrap()], bank.bytes(&good));
        }
    });
}

#[test]
fn every_reader_reads_the_last_bytes_of_a_file() {
    on_every_reader(|bank, reader| {
        for (file, bytes) in bank.files.iter().enumerate() {
            let len = 5000;
            let extent = Extent { file: file as u16, offset: bytes.len() as u64 - len, len };
            reader.submit(vec![read(0, extent)]).unwrap();
            let done = reader.wait().unwrap();
            assert_eq!(&done.buf.as_slice()[done.data.unwrap()], bank.bytes(&extent), "{}", reader.name());
        }
    });
}

#[test]
fn every_reader_returns_the_buffer_of_a_read_it_cannot_serve() {
    on_every_reader(|_, reader| {
        let unknown = Extent { file: 9, offset: 0, len: 10 };
        let large = Extent { file: 0, offset: 0, len: 5000 };
        let beyond = Extent { file: 0, offset: u64::MAX - 5, len: 100 };
        let buf = || AlignedBuf::new(4096).unwrap();
        let reads = [unknown, large, beyond].map(|extent| Read { tag: 3, extent, buf: buf() });
        reader.submit(reads.into()).unwrap();
        let mut failures = Vec::new();
        while reader.in_flight() > 0 {
            let done = reader.wait().unwrap();
            assert_eq!(done.buf.len(), 4096);
            failures.push(done.data.unwrap_err());
        }
        let unknown = |e: &&ReadError| matches!(e, ReadError::NoSuchFile { file: 9, files: 2 });
        assert_eq!(failures.iter().filter(unknown).count(), 1, "{}", reader.name());
        let large = |e: &&ReadError| matches!(e, ReadError::TooLarge { capacity: 4096, .. });
        assert_eq!(failures.iter().filter(large).count(), 2, "{}", reader.name());
    });
}

#[test]
fn waiting_for_nothing_is_an_error_on_every_reader() {
    on_every_reader(|_, reader| {
        assert!(matches!(reader.wait(), Err(OffloadError::NothingInFlight { .. })), "{}", reader.name());
    });
}

#[test]
fn every_reader_can_be_dropped_with_reads_in_flight() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = large_file(folder.path(), 3_000_001);
    let extents: Vec<Extent> =
        (0..24).map(|i| Extent { file: 0, offset: i * 90_001, len: 400_000 }).collect();
    for waited in [0, 1, 7] {
        for (_, mut reader) in open_all(std::slice::from_ref(&path), &NARROW) {
            reader.submit(reads_into_slots(&extents)).unwrap();
            (0..waited).for_each(|_| assert!(reader.wait().unwrap().data.is_ok()));
            drop(reader);
        }
    }
}

#[test]
fn every_reader_names_the_file_it_cannot_open() {
    for kind in READERS {
        let error =
            open_reader(kind.name, &[PathBuf::from("/nonexistent/model.gguf")], &ReaderOptions::default())
                .err()
                .unwrap();
        assert!(matches!(&error, OffloadError::Open { .. }), "{}", kind.name);
        assert!(error.to_string().contains("/nonexistent/model.gguf"), "{error}");
    }
}

#[test]
fn readers_are_found_by_name_and_an_unknown_one_is_told_what_there_is() {
    let names: BTreeSet<_> = READERS.iter().map(|kind| kind.name).collect();
    assert_eq!(names.len(), READERS.len());
    let error = open_reader("mmap", &[], &NARROW).err().unwrap();
    assert!(matches!(&error, OffloadError::NoSuchReader { name } if name == "mmap"));
    assert!(error.to_string().ends_with("auto, io_uring, pread, memory") || cfg!(not(target_os = "linux")));
}
