//! What a packed file will be: its header, and which bytes of the model go where.
//!
//! Owns the order (dense tensors as they came, then a record an expert, block by block) and the
//! fingerprint that ties a partial file to its model. Reads tables of contents, never weights.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use drafthorse_offload::{Checksummer, ExpertId, Extent, PARTS};

use crate::gguf::{BlockType, FilePlan, Gguf, Metadata, TensorEntry, TensorInfo, Value};
use crate::models::packed::{self, BlockParts, PackedExperts};
use crate::models::{Blueprint, ExpertLayers, Overrides};

use super::PackError;

/// A model to be packed.
pub struct Source {
    gguf: Gguf,
    experts: ExpertLayers,
    blocks: Vec<BlockParts>,
    stamps: Vec<Stamp>,
}

/// What says that a file is still the same: length and time of its last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    changed_ns: i128,
}

/// Where everything goes.
pub struct Layout {
    /// Length of the file.
    pub file_bytes: u64,
    /// Where the bytes come from, in the order of the file: dense tensors, then gate, up, down of every
    /// expert.
    pub pieces: Vec<Extent>,
    /// Of the model's files and everything above.
    pub fingerprint: u64,
    starts: Vec<u64>, // of the pieces
}

impl Layout {
    /// Where this piece begins in the file; for the number behind the last one, the end of the file.
    pub fn start(&self, piece: usize) -> u64 {
        self.starts.get(piece).copied().unwrap_or(self.file_bytes)
    }

    /// Where this piece ends, without padding.
    pub fn end(&self, piece: usize) -> u64 {
        self.start(piece) + self.pieces[piece].len
    }

    /// Room the journal takes, rounded up generously.
    pub fn journal_bytes(&self) -> u64 {
        (64 + 32 * self.pieces.len() as u64).next_multiple_of(4096)
    }
}

impl Source {
    /// Opens a model and checks it as a run would.
    ///
    /// # Errors
    /// An unsound or unsupported file, a model without routed experts, a packed file.
    pub fn open(path: &Path) -> Result<Source, PackError> {
        let gguf = Gguf::open(path)?;
        let stamps = stamps(&gguf.files)?;
        if PackedExperts::are_in(&gguf) {
            return Err(PackError::AlreadyPacked { path: path.to_owned() });
        }
        let blueprint = Blueprint::new(&gguf, &Overrides::default())?;
        let experts = blueprint.experts.ok_or_else(|| PackError::NoExperts { path: path.to_owned() })?;
        let parts = |(block, shape): (usize, &crate::layers::ExpertShape)| {
            let parts = [shape.gate, shape.up, shape.down];
            let types = parts.map(|part| part.format.block_type());
            BlockParts { block, types, bytes: parts.map(|part| part.bytes()) }
        };
        let blocks = (blueprint.spec.leading_dense..).zip(&experts.shapes).map(parts).collect();
        Ok(Source { gguf, experts, blocks, stamps })
    }

    /// The files of the model.
    pub fn files(&self) -> &[PathBuf] {
        &self.gguf.files
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.gguf.file_bytes.iter().sum()
    }

    /// Layers with routed experts, and experts of one of them.
    pub fn experts(&self) -> (usize, usize) {
        (self.experts.index.layers(), self.experts.index.experts(0))
    }

    /// Bytes of all experts.
    pub fn expert_bytes(&self) -> u64 {
        self.experts.index.bytes_total()
    }

    /// The file of the model that has changed since it was opened.
    pub fn changed(&self) -> Result<Option<&Path>, PackError> {
        let now = stamps(&self.gguf.files)?;
        let changed = self.stamps.iter().zip(&now).position(|(then, now)| then != now);
        Ok(changed.map(|file| self.gguf.files[file].as_path()))
    }

    /// Where everything goes at this alignment; `out` is only named in errors.
    pub fn layout(&self, out: &Path, alignment: u64) -> Result<Layout, PackError> {
        let dense: Vec<&TensorInfo> = self.dense().collect();
        let zeros = vec![0; dense.len() + self.experts.index.experts_total() * PARTS];
        let plan = self.plan(out, alignment, &zeros)?;
        let mut pieces: Vec<Extent> = dense
            .iter()
            .map(|info| Extent { file: info.file, offset: info.offset, len: info.bytes })
            .collect();
        let mut starts = plan.offsets[..dense.len()].to_vec();
        for (layer, parts) in self.blocks.iter().enumerate() {
            let (in_record, record_bytes) = self.record(parts, alignment)?;
            let mut record = plan.offsets[dense.len() + layer];
            for expert in 0..self.experts.index.experts(layer as u32) {
                let id = ExpertId { layer: layer as u32, expert: expert as u32 };
                pieces.extend(self.experts.index.extents(id).expect("invariant: an expert of the index"));
                starts.extend(in_record.map(|start| record + start));
                record += record_bytes;
            }
        }
        Ok(Layout {
            file_bytes: plan.file_bytes,
            fingerprint: self.fingerprint(&plan.header, &pieces),
            pieces,
            starts,
        })
    }

    /// The header with the checksums of all pieces, as long as that of the layout.
    pub fn header(&self, out: &Path, alignment: u64, checksums: &[u64]) -> Result<Vec<u8>, PackError> {
        Ok(self.plan(out, alignment, checksums)?.header)
    }

    fn plan(&self, out: &Path, alignment: u64, checksums: &[u64]) -> Result<FilePlan, PackError> {
        let entry = |info: &TensorInfo| TensorEntry {
            name: info.name.clone(),
            dims: info.dims.clone(),
            block_type: info.block_type,
        };
        let mut tensors: Vec<TensorEntry> = self.dense().map(entry).collect();
        for (layer, parts) in self.blocks.iter().enumerate() {
            let experts = self.experts.index.experts(layer as u32) as u64;
            tensors.push(TensorEntry {
                name: packed::tensor_name(parts.block),
                dims: vec![self.record(parts, alignment)?.1, experts],
                block_type: BlockType::I8,
            });
        }
        let dense = tensors.len() - self.blocks.len();
        let metadata = Metadata::from_entries(out, self.entries(alignment, checksums.split_at(dense)))?;
        Ok(FilePlan::new(out, &metadata, &tensors)?)
    }

    /// All tensors that are no routed experts' (those of prediction heads, which nobody runs, included).
    fn dense(&self) -> impl Iterator<Item = &TensorInfo> {
        let experts: std::collections::HashSet<&str> =
            self.experts.tensors.iter().map(String::as_str).collect();
        self.gguf.tensors.iter().filter(move |info| !experts.contains(info.name.as_str()))
    }

    fn record(&self, parts: &BlockParts, alignment: u64) -> Result<([u64; PARTS], u64), PackError> {
        packed::record_layout(parts.bytes, alignment).ok_or_else(|| {
            let problem = format!("records of {:?} bytes overflow", parts.bytes);
            packed::bad_key(&self.gguf, packed::PART_BYTES_KEY, problem).into()
        })
    }

    /// The model's metadata, less what describes its split and alignment, and our keys.
    fn entries(
        &self,
        alignment: u64,
        (dense, experts): (&[u64], &[u64]),
    ) -> impl Iterator<Item = (String, Value)> {
        let is_kept = |key: &str| key != packed::ALIGNMENT_KEY && !key.starts_with("split.");
        let own = self.gguf.metadata.iter().filter(move |(key, _)| is_kept(key));
        let own = own.map(|(key, value)| (key.to_owned(), value.clone()));
        let alignment = (packed::ALIGNMENT_KEY, Value::from(alignment as u32));
        let ours = packed::keys(&self.blocks, dense.to_vec(), experts.to_vec());
        own.chain([alignment].into_iter().chain(ours).map(|(key, value)| (key.to_owned(), value)))
    }

    fn fingerprint(&self, header: &[u8], pieces: &[Extent]) -> u64 {
        let mut sum = Checksummer::new();
        sum.update(header);
        for stamp in &self.stamps {
            sum.update(&stamp.bytes.to_le_bytes());
            sum.update(&stamp.changed_ns.to_le_bytes());
        }
        for piece in pieces {
            sum.update(&piece.file.to_le_bytes());
            sum.update(&piece.offset.to_le_bytes());
        }
        sum.finish()
    }
}

fn stamps(files: &[PathBuf]) -> Result<Vec<Stamp>, PackError> {
    let stamp = |path: &PathBuf| {
        let metadata = fs::metadata(path).map_err(PackError::io("look at", path))?;
        let changed_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Ok(Stamp { bytes: metadata.len(), changed_ns })
    };
    files.iter().map(stamp).collect()
}
