//! `drafthorse pack`: the same model in another order, whatever happens while it is written.
//!
//! Texts and logits are compared with the plain file's, bytes with those of a pack that nobody disturbed.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::synthetic::{Mixture, VOCAB, write_changed_copy};
use common::{ask, bits, generate, golden, local, logits_of, open, plain_options, tokens};
use drafthorse_offload::{ExpertId, PARTS, checksum};
use drafthorse_runtime::Error;
use drafthorse_runtime::api::{Progress, Silent};
use drafthorse_runtime::gguf::{BlockType, Gguf, Value, Writer};
use drafthorse_runtime::models::packed::{self, PackedExperts};
use drafthorse_runtime::models::{Blueprint, Overrides};
use drafthorse_runtime::pack::{ALIGNMENTS, ExpertPart, PackError, PackOptions, check, pack};
use tempfile::TempDir;

/// A mixture whose parts are no whole pages.
const ODD: Mixture = Mixture { width: 96, inner: 40, experts: 5, blocks: 2, unsupported: None };
/// One with few pieces.
const SMALL: Mixture = Mixture { width: 64, inner: 40, experts: 3, blocks: 1, unsupported: None };
/// Every piece is made sure of.
const EAGER: PackOptions = PackOptions { alignment: 4096, checkpoint_bytes: 1 };

fn aligned(alignment: u64) -> PackOptions {
    PackOptions { alignment, ..PackOptions::default() }
}

/// A folder in memory where there is one: these tests sync often.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn written(mixture: Mixture, folder: &Path) -> PathBuf {
    let path = folder.join("plain.gguf");
    mixture.write(&path);
    path
}

fn blueprint(path: &Path) -> Blueprint {
    Blueprint::new(&Gguf::open(path).unwrap(), &Overrides::default()).unwrap()
}

/// The golden models with routed experts.
fn golden_mixtures() -> Vec<PathBuf> {
    let files = fs::read_dir(local("tests/golden")).unwrap().map(|entry| entry.unwrap().path());
    let is_gguf = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "gguf");
    let mixtures = files.filter(|path| is_gguf(path) && blueprint(path).experts.is_some());
    let mixtures: Vec<PathBuf> = mixtures.collect();
    assert!(mixtures.len() >= 10, "{mixtures:?}");
    mixtures
}

/// The model split in two, its second part.
fn split(model: &Path, folder: &Path) -> PathBuf {
    let gguf = Gguf::open(model).unwrap();
    let file = fs::read(model).unwrap();
    let half = gguf.tensors.len() / 2;
    let part = |number: u16| folder.join(format!("split-{:05}-of-00002.gguf", number + 1));
    for (number, tensors) in [(0u16, &gguf.tensors[..half]), (1, &gguf.tensors[half..])] {
        let mut writer = Writer::new();
        if number == 0 {
            gguf.metadata.iter().for_each(|(key, value)| {
                writer.metadata(key, value.clone());
            });
        }
        writer.metadata("split.no", number).metadata("split.count", 2u16);
        writer.metadata("split.tensors.count", gguf.tensors.len() as i32);
        for info in tensors {
            let bytes = file[info.offset as usize..][..info.bytes as usize].to_vec();
            writer.tensor(info.name.clone(), &info.dims, info.block_type, move |out| out.write_all(&bytes));
        }
        writer.write(&part(number)).unwrap();
    }
    part(1)
}

/// Bits of the logits and the ids generated with this many slots.
fn behaviour(model: &Path, slots: usize) -> (Vec<Vec<u32>>, Vec<u32>) {
    let mut engine = open(&drafthorse_runtime::api::EngineOptions {
        slots: Some(slots),
        threads: 2,
        ..plain_options(model)
    });
    let logits = logits_of(&mut engine, &tokens(3, 20), true).iter().map(|row| bits(row)).collect();
    (logits, generate(&mut engine, &tokens(4, 8), &ask(16, 0.8)).tokens)
}

/// The packed file behaves as the plain one, whatever is in memory.
fn same_behaviour(plain: &Path, packed: &Path) {
    let blueprint = blueprint(plain);
    let (used, total) = (blueprint.spec.moe.unwrap().used, blueprint.experts.unwrap().index.experts_total());
    let reference = behaviour(plain, total);
    for slots in [used, (total / 3).max(used), total] {
        let here = behaviour(packed, slots);
        assert!(here.0 == reference.0, "logits of {} with {slots} slots", packed.display());
        assert_eq!(here.1, reference.1, "{} with {slots} slots", packed.display());
    }
}

#[test]
fn every_mixture_gives_the_same_text_and_the_same_logits_packed() {
    let folder = folder();
    for plain in golden_mixtures() {
        for alignment in ALIGNMENTS {
            let out = folder.path().join("packed.gguf");
            pack(&plain, &out, &aligned(alignment), &mut Silent).unwrap();
            same_behaviour(&plain, &out);
        }
    }
}

#[test]
fn experts_in_single_tensors_and_in_several_files_are_packed_alike() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    pack(&golden("mixtral"), &at("stacked"), &aligned(4096), &mut Silent).unwrap();
    pack(&golden("mixtral_per_expert"), &at("single"), &aligned(4096), &mut Silent).unwrap();
    pack(&split(&golden("mixtral"), folder.path()), &at("split"), &aligned(4096), &mut Silent).unwrap();
    let stacked = Gguf::open(&at("stacked")).unwrap();
    for name in ["single", "split"] {
        let gguf = Gguf::open(&at(name)).unwrap();
        assert_eq!(gguf.tensors.len(), stacked.tensors.len());
        let table = |gguf| PackedExperts::read(gguf).unwrap().unwrap();
        for (one, other) in table(&gguf).blocks.iter().zip(&table(&stacked).blocks) {
            assert_eq!((one.parts, &one.checksums), (other.parts, &other.checksums), "{name}");
        }
        same_behaviour(&golden("mixtral"), &at(name));
    }
    assert!(Gguf::open(&at("split")).unwrap().metadata.iter().all(|(key, _)| !key.starts_with("split.")));
}

#[test]
fn records_are_aligned_and_contiguous_and_everything_else_is_unchanged() {
    let folder = folder();
    let plain = written(ODD, folder.path());
    let source = fs::read(&plain).unwrap();
    let [before, layers] = [Gguf::open(&plain).unwrap(), Gguf::open(&plain).unwrap()];
    let experts = Blueprint::new(&layers, &Overrides::default()).unwrap().experts.unwrap();
    for alignment in ALIGNMENTS {
        let out = folder.path().join("packed.gguf");
        let report = pack(&plain, &out, &aligned(alignment), &mut Silent).unwrap();
        let bytes = fs::read(&out).unwrap();
        assert_eq!((report.bytes, report.source_bytes), (bytes.len() as u64, source.len() as u64));
        assert_eq!(report.expert_bytes, experts.index.bytes_total());
        let after = Gguf::open(&out).unwrap();
        for (key, value) in before.metadata.iter() {
            assert_eq!(after.metadata.get(key), Some(value), "{key}");
        }
        assert_eq!(after.metadata.u64("general.alignment").unwrap(), Some(alignment));
        let dense = before.tensors.iter().filter(|info| !info.name.contains("_exps"));
        for info in dense {
            let moved = after.tensor(&info.name).unwrap();
            assert_eq!((&moved.dims, moved.block_type), (&info.dims, info.block_type));
            let slice = |file: &[u8], at: u64| file[at as usize..][..info.bytes as usize].to_vec();
            assert!(slice(&bytes, moved.offset) == slice(&source, info.offset), "{}", info.name);
        }
        let loaded = blueprint(&out).experts.unwrap();
        let mut end = after.tensor("blk.0.ffn_experts.packed").unwrap().offset;
        for (layer, expert) in (0..2).flat_map(|layer| (0..5).map(move |expert| (layer, expert))) {
            let id = ExpertId { layer, expert };
            let parts = loaded.index.extents(id).unwrap().iter().zip(experts.index.extents(id).unwrap());
            for (part, (moved, info)) in parts.enumerate() {
                assert_eq!((moved.offset, moved.len), (end, info.len), "{id} {part}");
                end = (moved.offset + moved.len).next_multiple_of(alignment);
                let own = &bytes[moved.offset as usize..][..moved.len as usize];
                assert!(own == &source[info.offset as usize..][..info.len as usize], "{id} {part}");
                assert_eq!(loaded.index.checksum(id, part), Some(checksum(own)));
                let padding = &bytes[(moved.offset + moved.len) as usize..end as usize];
                assert!(!padding.is_empty() && padding.iter().all(|byte| *byte == 0));
            }
        }
        assert_eq!(end, bytes.len() as u64);
        same_behaviour(&plain, &out);
    }
}

/// Ends the process, as far as a test can, after so many reports.
struct Killer {
    reports_left: usize,
}

impl Progress for Killer {
    fn begin(&mut self, _what: &str, _total: u64) {}
    fn advance(&mut self, _by: u64) {
        assert!(self.reports_left > 0, "killed");
        self.reports_left -= 1;
    }
    fn end(&mut self) {}
    fn notice(&mut self, _line: &str) {}
}

/// A pack that dies after so many reports; whether it did.
fn killed(plain: &Path, out: &Path, options: &PackOptions, reports: usize) -> bool {
    let mut killer = Killer { reports_left: reports };
    catch_unwind(AssertUnwindSafe(|| pack(plain, out, options, &mut killer).unwrap())).is_err()
}

/// A model, its packed form, and where to pack it again.
struct Scene {
    folder: TempDir,
    plain: PathBuf,
    out: PathBuf,
    reference: Vec<u8>,
}

impl Scene {
    fn new() -> Scene {
        let folder = folder();
        let plain = written(SMALL, folder.path());
        let reference = folder.path().join("reference.gguf");
        pack(&plain, &reference, &aligned(4096), &mut Silent).unwrap();
        let out = folder.path().join("out.gguf");
        Scene { plain, out, reference: fs::read(reference).unwrap(), folder }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("out.gguf{suffix}"))
    }

    /// A partial file of some pieces.
    fn interrupt(&self) {
        assert!(killed(&self.plain, &self.out, &EAGER, 12));
        assert!(self.beside(".part").exists() && !self.out.exists());
    }

    /// Packs to the end, and compares with the undisturbed file.
    fn finish(&self) -> u64 {
        let report = pack(&self.plain, &self.out, &EAGER, &mut Silent).unwrap();
        assert!(fs::read(&self.out).unwrap() == self.reference, "the bytes differ");
        let mut left: Vec<_> =
            fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["out.gguf", "plain.gguf", "reference.gguf"]);
        fs::remove_file(&self.out).unwrap();
        report.resumed_bytes
    }

    fn refused(&self, options: &PackOptions) -> String {
        let [part, journal] = [".part", ".part.journal"].map(|suffix| fs::read(self.beside(suffix)).ok());
        let error = pack(&self.plain, &self.out, options, &mut Silent).unwrap_err();
        assert!(matches!(error, PackError::ForeignPart { .. }), "{error}");
        assert!(!self.out.exists() && fs::read(self.beside(".part")).ok() == part, "nothing is touched");
        assert_eq!(fs::read(self.beside(".part.journal")).ok(), journal);
        error.to_string()
    }
}

#[test]
fn a_pack_interrupted_anywhere_goes_on_to_the_same_bytes() {
    for checkpoint_bytes in [1, 20_000] {
        let scene = Scene::new();
        let options = PackOptions { checkpoint_bytes, ..EAGER };
        let (mut reports, mut resumed) = (0, Vec::new());
        while killed(&scene.plain, &scene.out, &options, reports) {
            assert!(!scene.out.exists(), "nothing half-written bears the name");
            assert!(Gguf::open(&scene.beside(".part")).is_err(), "a part is no GGUF");
            resumed.push(scene.finish());
            reports += 1;
        }
        // Every tensor and part was the last one once, and later interruptions lose no more.
        let gguf = Gguf::open(&scene.plain).unwrap();
        assert_eq!(reports, gguf.tensors.len() - PARTS + 3 * PARTS);
        assert!(resumed.is_sorted() && *resumed.last().unwrap() > 0, "{resumed:?}");
    }
}

#[test]
fn a_pack_interrupted_again_and_again_arrives() {
    let scene = Scene::new();
    let mut runs = 1;
    // The check of what is there reports as well: each run gets a little further than the last.
    while killed(&scene.plain, &scene.out, &EAGER, 2 * runs) {
        runs += 1;
    }
    assert!(runs > 5, "{runs}");
    assert!(fs::read(&scene.out).unwrap() == scene.reference);
}

#[test]
fn only_whole_and_unharmed_pieces_of_a_part_are_kept() {
    let scene = Scene::new();
    scene.interrupt();
    let whole = scene.finish();
    for cut in [0, 1, 5000, 20_000, 40_000] {
        scene.interrupt();
        let part = fs::OpenOptions::new().write(true).open(scene.beside(".part")).unwrap();
        part.set_len(cut).unwrap();
        let resumed = scene.finish();
        assert!(resumed <= cut && resumed < whole, "{resumed} of a part cut to {cut}");
    }
    for place in [4, 9] {
        scene.interrupt();
        let gguf = Gguf::open(&scene.plain).unwrap();
        let mut bytes = fs::read(scene.beside(".part")).unwrap();
        let at = scene.reference.len() - 9000;
        // The first byte of a dense tensor: they come in the order of the file.
        let name = &gguf.tensors.iter().filter(|info| !info.name.contains("_exps")).nth(place).unwrap().name;
        let packed = scene.folder.path().join("reference.gguf");
        let offset = Gguf::open(&packed).unwrap().tensor(name).unwrap().offset;
        bytes[offset as usize] ^= 1;
        assert!(offset < at as u64);
        fs::write(scene.beside(".part"), bytes).unwrap();
        assert_eq!(scene.finish(), offset, "it goes on where the damage is");
    }
    scene.interrupt();
    let journal = fs::read(scene.beside(".part.journal")).unwrap();
    fs::write(scene.beside(".part.journal"), &journal[..journal.len() - 5]).unwrap();
    let resumed = scene.finish();
    assert!(resumed > 0 && resumed < whole, "a torn line of the journal is no line");
    scene.interrupt();
    fs::remove_file(scene.beside(".part")).unwrap();
    assert_eq!(scene.finish(), 0, "a journal alone says nothing");
}

#[test]
fn the_part_of_another_pack_is_refused_and_left_alone() {
    let scene = Scene::new();
    scene.interrupt();
    let message = scene.refused(&PackOptions { alignment: 16 << 10, ..EAGER });
    assert!(message.contains("out.gguf.part") && message.contains("remove it"), "{message}");
    // The same bytes, written again: it may be another model.
    let bytes = fs::read(&scene.plain).unwrap();
    fs::write(&scene.plain, &bytes).unwrap();
    scene.refused(&EAGER);
    for journal in [&b""[..], b"drafthorse", b"whatever this is, it is long enough to be a journal of ours"] {
        fs::write(scene.beside(".part.journal"), journal).unwrap();
        let error = pack(&scene.plain, &scene.out, &EAGER, &mut Silent).unwrap_err();
        assert!(matches!(error, PackError::ForeignPart { .. }), "{error}");
    }
    let _ = fs::remove_file(scene.beside(".part.journal"));
    fs::write(scene.beside(".part"), b"somebody's own").unwrap();
    scene.refused(&EAGER);
    fs::remove_file(scene.beside(".part")).unwrap();
    assert_eq!(scene.finish(), 0);
}

/// Does something once, when the first bytes are reported.
struct Once<F: FnMut()>(Option<F>);

impl<F: FnMut()> Progress for Once<F> {
    fn begin(&mut self, _what: &str, _total: u64) {}
    fn advance(&mut self, _by: u64) {
        if let Some(mut action) = self.0.take() {
            action();
        }
    }
    fn end(&mut self) {}
    fn notice(&mut self, _line: &str) {}
}

#[test]
fn a_model_that_changes_while_it_is_packed_is_no_result() {
    let scene = Scene::new();
    let touch = || {
        let bytes = fs::read(&scene.plain).unwrap();
        fs::write(&scene.plain, bytes).unwrap();
    };
    let error = pack(&scene.plain, &scene.out, &EAGER, &mut Once(Some(touch))).unwrap_err();
    assert!(error.to_string().contains("plain.gguf: changed while it was being read"), "{error}");
    assert!(!scene.out.exists() && !scene.beside(".part").exists(), "what was mixed is gone");
    scene.finish();
}

#[test]
fn two_packs_of_one_output_do_not_mix() {
    let scene = Scene::new();
    let mut second = None;
    let again = || second = Some(pack(&scene.plain, &scene.out, &EAGER, &mut Silent).unwrap_err());
    pack(&scene.plain, &scene.out, &EAGER, &mut Once(Some(again))).unwrap();
    assert!(matches!(second, Some(PackError::Busy { .. })), "{second:?}");
    assert!(fs::read(&scene.out).unwrap() == scene.reference);
}

#[test]
fn a_full_disk_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain.gguf");
    write_sparse(&plain);
    let out = folder.path().join("out.gguf");
    let error = pack(&plain, &out, &EAGER, &mut Silent).unwrap_err();
    let Some(PackError::DiskFull { file_bytes, there_bytes: 0, free_bytes, .. }) = Some(&error) else {
        unreachable!("{error}")
    };
    assert!(file_bytes > free_bytes && *file_bytes > 2 << 40);
    let message = error.to_string();
    assert!(
        message.contains("TiB for the packed file, ") && message.contains("more are needed"),
        "{message}"
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the model is there");
}

/// A model of terabytes that takes no room: a header, and a file made long.
fn write_sparse(path: &Path) {
    let (width, inner, experts, blocks) = (16_384u64, 16_384u64, 128u64, 20u64);
    let small = Mixture { width: 8, inner: 8, experts, blocks, unsupported: None };
    let folder = tempfile::tempdir().unwrap();
    let template = written(small, folder.path());
    let gguf = Gguf::open(&template).unwrap();
    let mut metadata: Vec<(String, Value)> = Vec::new();
    for (key, value) in gguf.metadata.iter() {
        let value = match key {
            "llama.embedding_length" | "llama.feed_forward_length" => Value::from(width as u32),
            _ => value.clone(),
        };
        metadata.push((key.to_owned(), value));
    }
    let metadata = drafthorse_runtime::gguf::Metadata::from_entries(path, metadata).unwrap();
    let wide = |dim: &u64| if *dim == 8 { width.max(inner) } else { *dim };
    let entries: Vec<_> = gguf
        .tensors
        .iter()
        .map(|info| drafthorse_runtime::gguf::TensorEntry {
            name: info.name.clone(),
            dims: info.dims.iter().map(wide).collect(),
            block_type: info.block_type,
        })
        .collect();
    let plan = drafthorse_runtime::gguf::FilePlan::new(path, &metadata, &entries).unwrap();
    fs::write(path, &plan.header).unwrap();
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(plan.file_bytes).unwrap();
    assert_eq!(VOCAB, 128);
}

/// A file system of so many bytes; `None` (with the reason printed) where one cannot be mounted.
struct Mounted(TempDir);

impl Mounted {
    fn new(bytes: u64) -> Option<Mounted> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path());
        let is_mounted = mount.output().is_ok_and(|output| output.status.success());
        if !is_mounted {
            eprintln!("skipped: a tmpfs cannot be mounted here");
        }
        is_mounted.then_some(Mounted(folder))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_disk_that_fills_up_on_the_way_leaves_a_part_to_go_on_with() {
    let scene = Scene::new();
    let size = (scene.reference.len() as u64 + (64 << 10)).next_multiple_of(4096);
    for checkpoint_bytes in [1, u64::MAX] {
        let Some(disk) = Mounted::new(size) else { return };
        let (out, filler) = (disk.0.path().join("out.gguf"), disk.0.path().join("filler"));
        let options = PackOptions { checkpoint_bytes, ..EAGER };
        let fill = || fs::write(&filler, vec![1; 110 << 10]).unwrap();
        let error = pack(&scene.plain, &out, &options, &mut Once(Some(fill))).unwrap_err();
        assert!(matches!(error, PackError::OutOfSpace { .. }), "{error}");
        assert!(error.to_string().contains("make room and run the same command again"), "{error}");
        assert!(!out.exists());
        let refused = pack(&scene.plain, &out, &options, &mut Silent).unwrap_err();
        assert!(matches!(refused, PackError::DiskFull { .. }), "{refused}");
        fs::remove_file(&filler).unwrap();
        let report = pack(&scene.plain, &out, &options, &mut Silent).unwrap();
        assert!(fs::read(&out).unwrap() == scene.reference);
        assert!(checkpoint_bytes > 1 || report.resumed_bytes > 0);
    }
}

#[test]
fn hostile_tables_are_refused_by_name() {
    let folder = folder();
    let good = folder.path().join("good.gguf");
    pack(&written(ODD, folder.path()), &good, &aligned(4096), &mut Silent).unwrap();
    let f16 = BlockType::F16.id();
    let part = 96u64 * 40 * 2;
    let cases: Vec<(&str, Value, &str)> = vec![
        (packed::VERSION_KEY, 2u32.into(), "drafthorse.pack.version: layout 2, this build reads 1"),
        (packed::VERSION_KEY, "1".into(), "drafthorse.pack.version\" is string"),
        (packed::CHECKSUM_KEY, "md5".into(), "drafthorse.pack.checksum: \"md5\", this build knows xxh3-64"),
        (packed::BLOCKS_KEY, vec![0u32].into(), "drafthorse.pack.types: 6 values"),
        (packed::BLOCKS_KEY, vec![1u32, 0].into(), "drafthorse.pack.blocks: not one or more ascending"),
        (packed::BLOCKS_KEY, Vec::<u32>::new().into(), "drafthorse.pack.blocks: not one or more ascending"),
        (packed::BLOCKS_KEY, vec![0u32, 7].into(), "tensor blk.7.ffn_experts.packed is missing"),
        (packed::BLOCKS_KEY, vec![0i32, 1].into(), "drafthorse.pack.blocks\" is array of i32"),
        (packed::TYPES_KEY, vec![f16; 5].into(), "drafthorse.pack.types: 5 values"),
        (packed::TYPES_KEY, vec![99u32; 6].into(), "drafthorse.pack.types: unknown block type id 99"),
        (packed::TYPES_KEY, vec![BlockType::F32.id(); 6].into(), "7680 bytes of gate"),
        (packed::TYPES_KEY, vec![BlockType::IQ2_S.id(); 6].into(), "quant type IQ2_S of tensor blk.0.ffn"),
        (packed::TYPES_KEY, vec![BlockType::Q4_K.id(); 6].into(), "drafthorse.pack.part_bytes: 7680 bytes"),
        (packed::PART_BYTES_KEY, vec![part; 7].into(), "drafthorse.pack.part_bytes: 7 values"),
        (packed::PART_BYTES_KEY, vec![0u64; 6].into(), "drafthorse.pack.part_bytes: [0, 0, 0] of block 0"),
        (packed::PART_BYTES_KEY, vec![u64::MAX; 6].into(), "of block 0 are no lengths"),
        (packed::PART_BYTES_KEY, vec![u64::MAX / 3; 6].into(), "of block 0 are no lengths"),
        (packed::PART_BYTES_KEY, vec![part - 2; 6].into(), "drafthorse.pack.part_bytes: 7678 bytes of gate"),
        (packed::PART_BYTES_KEY, vec![part + 4096; 6].into(), "has shape [24576, 5] of I8"),
        (
            packed::CHECKSUMS_KEY,
            vec![0u64; 29].into(),
            "drafthorse.pack.checksums: 29 checksums, the records",
        ),
        (
            packed::CHECKSUMS_KEY,
            vec![0u64; 31].into(),
            "drafthorse.pack.checksums: 31 checksums, the records",
        ),
        (packed::DENSE_CHECKSUMS_KEY, vec![0u64; 2].into(), "drafthorse.pack.dense_checksums: 2 checksums"),
        (packed::ALIGNMENT_KEY, 32u32.into(), "general.alignment: 32 is no multiple of 4096"),
        (
            packed::ALIGNMENT_KEY,
            (16u32 << 10).into(),
            "has shape [24576, 5] of I8, the metadata asks for [49152",
        ),
        ("llama.expert_count", 4u32.into(), "tensor blk.0.ffn_experts.packed has shape 5 experts"),
        ("llama.expert_count", 6u32.into(), "tensor blk.0.ffn_experts.packed has shape 5 experts"),
        ("llama.feed_forward_length", 48u32.into(), "drafthorse.pack.part_bytes: 7680 bytes of gate"),
        ("llama.block_count", 1u32.into(), "drafthorse.pack.blocks: not the blocks 0 to 0"),
    ];
    for (key, value, message) in cases {
        let bad = folder.path().join("bad.gguf");
        write_changed_copy(&good, &bad, &[(key, value)], None);
        let opened = Gguf::open(&bad).map_err(Error::from);
        let refusal = opened.and_then(|gguf| Ok(Blueprint::new(&gguf, &Overrides::default())?)).err();
        let Some(refusal) = refusal else { unreachable!("{key}: accepted, not {message}") };
        assert_eq!(refusal.exit_code(), 3, "{refusal}");
        let line = refusal.to_string();
        assert!(line.contains(message) && line.contains("bad.gguf"), "{key}: {line}\n not {message}");
    }
    for missing in [packed::BLOCKS_KEY, packed::TYPES_KEY, packed::CHECKSUMS_KEY, packed::CHECKSUM_KEY] {
        let bad = folder.path().join("bad.gguf");
        write_without(&good, &bad, missing);
        let gguf = Gguf::open(&bad).unwrap();
        let line = PackedExperts::read(&gguf).unwrap_err().to_string();
        assert!(line.contains(missing) && line.contains("is missing"), "{line}");
    }
}

#[test]
fn no_byte_of_a_packed_header_can_make_the_loader_panic() {
    let folder = folder();
    let path = folder.path().join("packed.gguf");
    pack(&written(SMALL, folder.path()), &path, &aligned(4096), &mut Silent).unwrap();
    let first = Gguf::open(&path).unwrap().tensors.iter().map(|info| info.offset).min().unwrap();
    let header = fs::read(&path).unwrap()[..first as usize].to_vec();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let mut refused = 0;
    for (at, byte) in header.iter().enumerate() {
        for flip in [1, 0x80, 0xFF] {
            file.write_all_at(&[byte ^ flip], at as u64).unwrap();
            let opened = Gguf::open(&path).map_err(Error::from);
            let loaded = opened.and_then(|gguf| Ok(Blueprint::new(&gguf, &Overrides::default())?));
            refused += u32::from(loaded.is_err());
        }
        file.write_all_at(&[*byte], at as u64).unwrap();
    }
    assert!(refused > 1000, "{refused} of {} bytes were refused", 3 * header.len());
    Blueprint::new(&Gguf::open(&path).unwrap(), &Overrides::default()).unwrap();
}

fn write_without(model: &Path, path: &Path, missing: &str) {
    let gguf = Gguf::open(model).unwrap();
    let file = fs::read(model).unwrap();
    let mut writer = Writer::new();
    for (key, value) in gguf.metadata.iter().filter(|(key, _)| *key != missing) {
        writer.metadata(key, value.clone());
    }
    for info in &gguf.tensors {
        let bytes = file[info.offset as usize..][..info.bytes as usize].to_vec();
        writer.tensor(info.name.clone(), &info.dims, info.block_type, move |out| out.write_all(&bytes));
    }
    writer.write(path).unwrap();
}

#[test]
fn a_flipped_bit_anywhere_in_the_weights_is_found_and_named() {
    let folder = folder();
    let path = folder.path().join("packed.gguf");
    pack(&written(SMALL, folder.path()), &path, &aligned(4096), &mut Silent).unwrap();
    let report = check(&path, &mut Silent).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!((report.pieces, report.mismatches.len()), (gguf.tensors.len() - 1 + 9, 0));
    let good = fs::read(&path).unwrap();
    let index = blueprint(&path).experts.unwrap().index;
    for (expert, part) in (0..3).flat_map(|expert| (0..PARTS).map(move |part| (expert, part))) {
        let extent = index.extents(ExpertId { layer: 0, expert: expert as u32 }).unwrap()[part];
        for at in [extent.offset, extent.offset + extent.len - 1] {
            let mut bad = good.clone();
            bad[at as usize] ^= 0x10;
            fs::write(&path, bad).unwrap();
            let [mismatch] = &check(&path, &mut Silent).unwrap().mismatches[..] else {
                unreachable!("one part is damaged")
            };
            let name = ["gate", "up", "down"][part];
            assert_eq!(mismatch.expert, Some(ExpertPart { layer: 0, expert, part: name }));
            assert_eq!((mismatch.offset, mismatch.wanted == mismatch.got), (extent.offset, false));
            let line = mismatch.to_string();
            assert!(line.contains(&format!("{name} of expert {expert} of MoE layer 0")), "{line}");
        }
    }
    for info in gguf.tensors.iter().filter(|info| info.block_type != BlockType::I8) {
        let mut bad = good.clone();
        bad[info.offset as usize] ^= 1;
        fs::write(&path, bad).unwrap();
        let found = check(&path, &mut Silent).unwrap().mismatches;
        assert_eq!((found.len(), &found[0].tensor, found[0].expert), (1, &info.name, None));
    }
}

fn drafthorse(args: &[&Path]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_drafthorse")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_packs_checks_and_says_what_it_cannot_do() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (plain, out) = (golden("deepseek2_v3"), at("packed.gguf"));
    let word = |text: &'static str| Path::new(text);
    let (code, stdout, _) = drafthorse(&[word("pack"), &plain, word("-o"), &out, word("--json")]);
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, report["bytes"].as_u64()), (Some(0), Some(fs::metadata(&out).unwrap().len())));
    let (code, stdout, _) = drafthorse(&[word("pack"), word("--check"), &out]);
    assert!(code == Some(0) && stdout.ends_with("all as packed\n"), "{stdout}");

    let page = drafthorse(&[word("inspect"), &out, word("--memory"), word("1GiB")]).1;
    assert!(page.contains("packed          parts at 4.0 KiB, xxh3-64 checksums, "), "{page}");
    let contents = |path: &Path| {
        let stdout = drafthorse(&[word("inspect"), path, word("--memory"), word("1GiB"), word("--json")]).1;
        let mut contents: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        contents.as_object_mut().unwrap().retain(|key, _| !["outlook", "files", "packed"].contains(&&**key));
        contents
    };
    assert_eq!(contents(&out), contents(&plain));

    for (args, code, part) in [
        (vec![word("pack"), &out, word("-o"), &at("x")], 2, "is packed already"),
        (vec![word("pack"), &golden("llama"), word("-o"), &at("x")], 2, "no routed experts"),
        (vec![word("pack"), &plain, word("-o"), &plain], 2, "would replace the model itself"),
        (vec![word("pack"), &plain, word("-o"), &at("x"), word("--align"), word("8KiB")], 2, "4KiB or 16KiB"),
        (vec![word("pack"), word("--check"), &plain], 2, "is not packed"),
        (vec![word("pack"), &at("none"), word("-o"), &at("x")], 3, "none"),
        (vec![word("pack"), &plain, word("-o"), &at("no/folder/x")], 1, "cannot look at"),
        (vec![word("pack"), &plain, word("-o"), folder.path()], 1, "names no file"),
    ] {
        let (status, stdout, stderr) = drafthorse(&args);
        assert_eq!(status, Some(code), "{args:?}: {stderr}");
        assert!(stdout.is_empty() && stderr.contains(part) && stderr.lines().count() == 1, "{stderr}");
    }

    let mut bytes = fs::read(&out).unwrap();
    let end = bytes.len() - 20_000;
    bytes[end..].iter_mut().for_each(|byte| *byte ^= 1);
    fs::write(&out, bytes).unwrap();
    let (code, stdout, stderr) = drafthorse(&[word("pack"), word("--check"), &out, word("--json")]);
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let mismatch = &report["mismatches"][0];
    assert_eq!((code, mismatch["wanted"].as_str().unwrap().len()), (Some(3), 16), "{stderr}");
    assert_eq!(mismatch["tensor"], "blk.1.ffn_experts.packed");
    assert!(mismatch["expert"].is_u64() && mismatch["layer"] == 0 && mismatch["part"].is_string());
}
