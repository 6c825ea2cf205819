//! A pack that is interrupted, disturbed or out of room: nothing half-written bears the name, and what
//! was written is gone on with, to the bytes of a pack that nobody disturbed.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;
mod pack_common;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::synthetic::Mixture;
use drafthorse_offload::PARTS;
use drafthorse_runtime::api::{Progress, Silent};
use drafthorse_runtime::gguf::{FilePlan, Gguf, Metadata, TensorEntry, Value};
use drafthorse_runtime::pack::{PackError, PackOptions, pack};
use pack_common::{EAGER, SMALL, aligned, folder, written};
use tempfile::TempDir;

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
    let metadata = Metadata::from_entries(path, metadata).unwrap();
    let wide = |dim: &u64| if *dim == 8 { width.max(inner) } else { *dim };
    let entries: Vec<_> = gguf
        .tensors
        .iter()
        .map(|info| TensorEntry {
            name: info.name.clone(),
            dims: info.dims.iter().map(wide).collect(),
            block_type: info.block_type,
        })
        .collect();
    let plan = FilePlan::new(path, &metadata, &entries).unwrap();
    fs::write(path, &plan.header).unwrap();
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(plan.file_bytes).unwrap();
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
