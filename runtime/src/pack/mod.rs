//! `drafthorse pack`: a model's experts rewritten one after the other, aligned, each part with a
//! checksum; and the check of all of them.
//!
//! A packed file is a GGUF that the reader opens like any other (`models/packed.rs` has the layout):
//! the same tensors and metadata, with one record an expert instead of three slices of stacked tensors.
//! [`pack`] copies at the disk's rate in the memory of a few buffers, can be interrupted at any moment
//! and goes on when it is called again. Nothing here knows tokens or arithmetic.

mod error;
mod journal;
mod layout;
mod output;
mod partial;
mod stream;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use drafthorse_offload::{Checksummer, Extent, PARTS};
use serde::{Serialize, Serializer};

pub use error::PackError;

use crate::api::Progress;
use crate::gguf::{Gguf, GgufError};
use crate::models::packed::{self, PackedExperts};
use layout::{Layout, Source};
use partial::Partial;
use stream::{checksums_in_order, read_in_order};

/// Alignments of parts: the page of most disks, and that of Apple's memory.
pub const ALIGNMENTS: [u64; 2] = [4 << 10, 16 << 10];

/// How a model is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackOptions {
    /// Alignment of every part in bytes, one of [`ALIGNMENTS`].
    pub alignment: u64,
    /// Bytes after which what is written is made sure of: what an interruption loses at most.
    pub checkpoint_bytes: u64,
}

impl Default for PackOptions {
    fn default() -> PackOptions {
        PackOptions { alignment: ALIGNMENTS[0], checkpoint_bytes: 128 << 20 }
    }
}

/// What was packed; the object of `pack --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Packed {
    /// The packed file.
    pub output: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Length of the model's files.
    pub source_bytes: u64,
    /// Bytes of all experts, without padding.
    pub expert_bytes: u64,
    /// Layers with routed experts.
    pub layers: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// Alignment of every part.
    pub alignment: u64,
    /// Bytes an earlier run had written.
    pub resumed_bytes: u64,
    /// Duration in seconds.
    pub pack_s: f64,
}

/// Packs `model` (or the split model of which it is a part) into `out`, replacing a file of that name
/// once the new one is whole. Until then the bytes are in `out` + `.part`; called again after an
/// interruption, it goes on from there.
///
/// # Errors
/// [`PackError`]; a disk that is too full is refused before anything is written.
pub fn pack(
    model: &Path,
    out: &Path,
    options: &PackOptions,
    progress: &mut dyn Progress,
) -> Result<Packed, PackError> {
    let began = Instant::now();
    if !ALIGNMENTS.contains(&options.alignment) {
        return Err(PackError::Alignment { bytes: options.alignment });
    }
    let source = Source::open(model)?;
    refuse_same_file(source.files(), out)?;
    let layout = source.layout(out, options.alignment)?;
    let mut partial = Partial::open(out, &layout, progress)?;
    let resumed = partial.pieces();
    copy(&source, &layout, &mut partial, options, progress)?;
    if let Some(changed) = source.changed()? {
        let changed = changed.to_owned();
        partial.discard()?;
        return Err(GgufError::Changed { file: changed }.into());
    }
    let header = source.header(out, options.alignment, partial.checksums())?;
    partial.publish(&header)?;
    let (layers, experts) = source.experts();
    Ok(Packed {
        output: out.to_owned(),
        bytes: layout.file_bytes,
        source_bytes: source.bytes(),
        expert_bytes: source.expert_bytes(),
        layers,
        experts,
        alignment: options.alignment,
        resumed_bytes: if resumed == 0 { 0 } else { layout.start(resumed) },
        pack_s: began.elapsed().as_secs_f64(),
    })
}

/// A model cannot be rewritten into itself: it is read until the end.
fn refuse_same_file(files: &[PathBuf], out: &Path) -> Result<(), PackError> {
    let Ok(out_is) = fs::canonicalize(out) else { return Ok(()) };
    let same = files.iter().any(|file| fs::canonicalize(file).is_ok_and(|file| file == out_is));
    if same { Err(PackError::SameFile { path: out.to_owned() }) } else { Ok(()) }
}

/// Copies the pieces that are missing.
fn copy(
    source: &Source,
    layout: &Layout,
    partial: &mut Partial<'_>,
    options: &PackOptions,
    progress: &mut dyn Progress,
) -> Result<(), PackError> {
    let pieces = &layout.pieces[partial.pieces()..];
    progress.begin("packing", pieces.iter().map(|piece| piece.len).sum());
    let mut checksum = Checksummer::new();
    let mut since = 0; // bytes since the last checkpoint
    let copied = read_in_order(source.files(), pieces, &mut |chunk| {
        partial.append(chunk.bytes)?;
        checksum.update(chunk.bytes);
        since += chunk.bytes.len() as u64;
        if chunk.is_last {
            partial.end_piece(std::mem::take(&mut checksum).finish());
            if since >= options.checkpoint_bytes {
                partial.checkpoint()?;
                since = 0;
            }
        }
        progress.advance(chunk.bytes.len() as u64);
        Ok(true)
    });
    let done = copied.and_then(|()| partial.checkpoint());
    progress.end();
    done
}

/// What a check found; the object of `pack --check --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checked {
    /// The packed file.
    pub file: PathBuf,
    /// Expert parts and other tensors compared.
    pub pieces: usize,
    /// Bytes compared.
    pub bytes: u64,
    /// What differs.
    pub mismatches: Vec<Mismatch>,
    /// Duration in seconds.
    pub check_s: f64,
}

/// Bytes that are not those that were packed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// The tensor they are in.
    pub tensor: String,
    /// Which expert's; absent for a dense tensor.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub expert: Option<ExpertPart>,
    /// First byte in the file.
    pub offset: u64,
    /// Checksum they had.
    #[serde(serialize_with = "hex")]
    pub wanted: u64,
    /// Checksum they have.
    #[serde(serialize_with = "hex")]
    pub got: u64,
}

/// One part of one expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ExpertPart {
    /// MoE layer, 0-based.
    pub layer: usize,
    /// Expert of the layer, 0-based.
    pub expert: usize,
    /// `gate`, `up` or `down`.
    pub part: &'static str,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at offset {}", crate::gguf::shown(&self.tensor), self.offset)?;
        if let Some(ExpertPart { layer, expert, part }) = self.expert {
            write!(f, ", {part} of expert {expert} of MoE layer {layer}")?;
        }
        write!(f, ": checksum {:016x}, was packed with {:016x}", self.got, self.wanted)
    }
}

/// As people write checksums; a JSON number would lose bits.
fn hex<S: Serializer>(checksum: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{checksum:016x}"))
}

/// A run of bytes with a known checksum.
struct Sealed {
    tensor: String,
    expert: Option<ExpertPart>,
    extent: Extent,
    wanted: u64,
}

/// Reads every byte of weights in a packed file once and compares checksums.
///
/// # Errors
/// A file that is not packed or not sound; a read that fails. Damage is in the report, no error.
pub fn check(path: &Path, progress: &mut dyn Progress) -> Result<Checked, PackError> {
    let began = Instant::now();
    let gguf = Gguf::open(path)?;
    let table = PackedExperts::read(&gguf)?.ok_or_else(|| PackError::NotPacked { path: path.to_owned() })?;
    let sealed = sealed(&gguf, &table);
    let extents: Vec<Extent> = sealed.iter().map(|piece| piece.extent).collect();
    let bytes = extents.iter().map(|extent| extent.len).sum();
    let mut mismatches = Vec::new();
    progress.begin("checking", bytes);
    let read = checksums_in_order(
        &gguf.files,
        &extents,
        &mut |bytes| progress.advance(bytes),
        &mut |number, got| {
            let Sealed { tensor, expert, extent, wanted } = &sealed[number];
            if got != *wanted {
                let (tensor, offset) = (tensor.clone(), extent.offset);
                mismatches.push(Mismatch { tensor, expert: *expert, offset, wanted: *wanted, got });
            }
            true
        },
    );
    progress.end();
    read?;
    let check_s = began.elapsed().as_secs_f64();
    Ok(Checked { file: path.to_owned(), pieces: sealed.len(), bytes, mismatches, check_s })
}

/// Everything that has a checksum, in the order of the file.
fn sealed(gguf: &Gguf, table: &PackedExperts) -> Vec<Sealed> {
    const NAMES: [&str; PARTS] = ["gate", "up", "down"];
    let records = table.tensor_names();
    let dense = gguf.tensors.iter().filter(|info| !records.contains(&info.name));
    let dense = dense.zip(&table.dense_checksums);
    let mut sealed: Vec<Sealed> = dense
        .map(|(info, wanted)| Sealed {
            tensor: info.name.clone(),
            expert: None,
            extent: Extent { file: info.file, offset: info.offset, len: info.bytes },
            wanted: *wanted,
        })
        .collect();
    for (layer, block) in table.blocks.iter().enumerate() {
        let name = packed::tensor_name(block.parts.block);
        for (expert, checksums) in block.checksums.iter().enumerate() {
            let parts = block.extents(expert).into_iter().zip(checksums).zip(NAMES);
            sealed.extend(parts.map(|((extent, wanted), part)| Sealed {
                tensor: name.clone(),
                expert: Some(ExpertPart { layer, expert, part }),
                extent,
                wanted: *wanted,
            }));
        }
    }
    sealed
}
