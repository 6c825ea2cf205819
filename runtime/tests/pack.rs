//! `drafthorse pack`: the same model in another order.
//!
//! Texts, logits and bytes are compared with the plain file's; what a file says of its records is not
//! trusted.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;
mod pack_common;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::synthetic::{Mixture, write_changed_copy};
use common::{ask, bits, generate, golden, local, logits_of, open, plain_options, tokens};
use drafthorse_offload::{ExpertId, PARTS, checksum};
use drafthorse_runtime::Error;
use drafthorse_runtime::api::{EngineOptions, Silent};
use drafthorse_runtime::gguf::{BlockType, Gguf, Value, Writer};
use drafthorse_runtime::models::packed::{self, PackedExperts};
use drafthorse_runtime::models::{Blueprint, Overrides};
use drafthorse_runtime::pack::{ALIGNMENTS, ExpertPart, check, pack};
use pack_common::{SMALL, aligned, folder, written};

/// A mixture whose parts are no whole pages.
const ODD: Mixture = Mixture { width: 96, inner: 40, experts: 5, blocks: 2, unsupported: None };
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
    let mut engine = open(&EngineOptions { slots: Some(slots), threads: 2, ..plain_options(model) });
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
    let before = Gguf::open(&plain).unwrap();
    let experts = blueprint(&plain).experts.unwrap();
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
        (packed::TYPES_KEY, vec![BlockType::TQ2_0.id(); 6].into(), "quant type TQ2_0 of tensor blk.0.ffn"),
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
