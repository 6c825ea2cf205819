//! The packed layout: all routed experts of a block in one tensor, a record an expert.
//!
//! Owns the names, the keys and the checks of what `drafthorse pack` writes: a plain GGUF v3 in which
//! `blk.N.ffn_experts.packed` (I8, `[record bytes, experts]`) stands in place of a block's expert
//! tensors. A record is gate, up, down in the block formats they had, each padded to
//! `general.alignment` (4 KiB or more), so that every part can be read unbuffered with nothing around
//! it. The keys carry what tensor entries said before: block types and lengths by part, and a checksum
//! of every part. Must not know how files are written, or what an architecture computes.

use std::collections::HashSet;

use drafthorse_offload::{CHECKSUM_NAME, Extent, PAGE_BYTES, PARTS};

use crate::gguf::{BlockType, Gguf, TensorInfo, Value, quoted};

use super::LoadError;

/// The layout's version: u32.
pub const VERSION_KEY: &str = "drafthorse.pack.version";
/// The blocks that have records, ascending: u32 array.
pub const BLOCKS_KEY: &str = "drafthorse.pack.blocks";
/// ggml's ids of the block types, [`PARTS`] a block: u32 array.
pub const TYPES_KEY: &str = "drafthorse.pack.types";
/// Bytes of one expert's parts without padding, [`PARTS`] a block: u64 array.
pub const PART_BYTES_KEY: &str = "drafthorse.pack.part_bytes";
/// Name of the checksum: string.
pub const CHECKSUM_KEY: &str = "drafthorse.pack.checksum";
/// A checksum of every part, by block, expert and part: u64 array.
pub const CHECKSUMS_KEY: &str = "drafthorse.pack.checksums";
/// A checksum of every other tensor, in the order of the file: u64 array.
pub const DENSE_CHECKSUMS_KEY: &str = "drafthorse.pack.dense_checksums";
/// Where a file states the alignment of tensors, and so of parts.
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// The version this build writes and reads.
pub const VERSION: u32 = 1;

/// Name of the tensor with a block's records.
pub fn tensor_name(block: usize) -> String {
    format!("blk.{block}.ffn_experts.packed")
}

/// Where the parts begin in a record, and its length; `None` when it overflows.
pub fn record_layout(part_bytes: [u64; PARTS], alignment: u64) -> Option<([u64; PARTS], u64)> {
    let mut starts = [0; PARTS];
    let mut end = 0u64;
    for (start, bytes) in starts.iter_mut().zip(part_bytes) {
        *start = end;
        end = end.checked_add(bytes)?.checked_next_multiple_of(alignment)?;
    }
    Some((starts, end))
}

/// What one expert of a block consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockParts {
    /// The model's block (not the MoE layer).
    pub block: usize,
    /// Block types of gate, up, down.
    pub types: [BlockType; PARTS],
    /// Bytes of gate, up, down, without padding.
    pub bytes: [u64; PARTS],
}

/// The records of one block.
#[derive(Clone, Debug)]
pub struct PackedBlock {
    /// Its parts, the same for every expert.
    pub parts: BlockParts,
    /// Checksums by expert.
    pub checksums: Vec<[u64; PARTS]>,
    starts: [u64; PARTS],
    record_bytes: u64,
    file: u16,
    offset: u64,
}

impl PackedBlock {
    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.checksums.len()
    }

    /// Where the parts of one expert lie; `expert` is one of the block's.
    pub fn extents(&self, expert: usize) -> [Extent; PARTS] {
        let record = self.offset + expert as u64 * self.record_bytes;
        std::array::from_fn(|part| Extent {
            file: self.file,
            offset: record + self.starts[part],
            len: self.parts.bytes[part],
        })
    }

    /// Bytes of one expert, padding included.
    pub fn record_bytes(&self) -> u64 {
        self.record_bytes
    }
}

/// The checked table of a packed file.
#[derive(Clone, Debug)]
pub struct PackedExperts {
    /// Every part begins at a multiple of this.
    pub alignment: u64,
    /// Blocks, ascending.
    pub blocks: Vec<PackedBlock>,
    /// Checksums of the tensors without records, in the order of the file.
    pub dense_checksums: Vec<u64>,
}

impl PackedExperts {
    /// Whether the file says that it is packed.
    pub fn are_in(gguf: &Gguf) -> bool {
        gguf.metadata.get(VERSION_KEY).is_some()
    }

    /// Names of the tensors that hold records.
    pub fn tensor_names(&self) -> HashSet<String> {
        self.blocks.iter().map(|block| tensor_name(block.parts.block)).collect()
    }

    /// Reads the table; `None` for a file that is not packed.
    ///
    /// # Errors
    /// [`LoadError`] naming the key or tensor that is missing or does not fit the others.
    pub fn read(gguf: &Gguf) -> Result<Option<PackedExperts>, LoadError> {
        if !PackedExperts::are_in(gguf) {
            return Ok(None);
        }
        let table = Table::read(gguf)?;
        let blocks = (0..table.blocks.len()).map(|at| table.block(at)).collect::<Result<Vec<_>, _>>()?;
        let wanted: usize = blocks.iter().map(|block| block.0 * PARTS).sum();
        if wanted != table.checksums.len() {
            let got = table.checksums.len();
            return Err(table.bad(CHECKSUMS_KEY, format!("{got} checksums, the records have {wanted} parts")));
        }
        let mut left = table.checksums;
        let blocks = blocks.into_iter().map(|(experts, block)| {
            let (own, rest) = left.split_at(experts * PARTS);
            left = rest;
            PackedBlock { checksums: own.as_chunks().0.to_vec(), ..block }
        });
        let (alignment, dense_checksums) = (table.alignment, table.dense_checksums.to_vec());
        Ok(Some(PackedExperts { alignment, blocks: blocks.collect(), dense_checksums }))
    }
}

/// The keys as they stand in the file.
struct Table<'a> {
    gguf: &'a Gguf,
    alignment: u64,
    blocks: &'a [u32],
    types: &'a [u32],
    part_bytes: &'a [u64],
    checksums: &'a [u64],
    dense_checksums: &'a [u64],
}

impl<'a> Table<'a> {
    fn read(gguf: &'a Gguf) -> Result<Table<'a>, LoadError> {
        let metadata = &gguf.metadata;
        check_version(gguf)?;
        let u32s = |key| metadata.require(key, metadata.u32s(key)?);
        let u64s = |key| metadata.require(key, metadata.u64s(key)?);
        let table = Table {
            gguf,
            alignment: metadata.require_u64(ALIGNMENT_KEY)?,
            blocks: u32s(BLOCKS_KEY)?,
            types: u32s(TYPES_KEY)?,
            part_bytes: u64s(PART_BYTES_KEY)?,
            checksums: u64s(CHECKSUMS_KEY)?,
            dense_checksums: u64s(DENSE_CHECKSUMS_KEY)?,
        };
        table.check()?;
        Ok(table)
    }

    fn check(&self) -> Result<(), LoadError> {
        if !self.alignment.is_multiple_of(PAGE_BYTES as u64) {
            let problem = format!("{} is no multiple of {PAGE_BYTES}", self.alignment);
            return Err(self.bad(ALIGNMENT_KEY, problem));
        }
        if self.blocks.is_empty() || !self.blocks.is_sorted_by(|a, b| a < b) {
            return Err(self.bad(BLOCKS_KEY, "not one or more ascending block numbers".into()));
        }
        let wanted = self.blocks.len() * PARTS;
        for (key, got) in [(TYPES_KEY, self.types.len()), (PART_BYTES_KEY, self.part_bytes.len())] {
            if got != wanted {
                return Err(self.bad(key, format!("{got} values, {BLOCKS_KEY} has {wanted} parts")));
            }
        }
        let (wanted, got) =
            (self.gguf.tensors.len().saturating_sub(self.blocks.len()), self.dense_checksums.len());
        if got != wanted {
            return Err(
                self.bad(DENSE_CHECKSUMS_KEY, format!("{got} checksums, there are {wanted} other tensors"))
            );
        }
        Ok(())
    }

    /// The block at this place of the list, without its checksums, and its number of experts.
    fn block(&self, at: usize) -> Result<(usize, PackedBlock), LoadError> {
        let block = self.blocks[at] as usize;
        let part_bytes: [u64; PARTS] = std::array::from_fn(|part| self.part_bytes[at * PARTS + part]);
        let name = tensor_name(block);
        let missing =
            || LoadError::MissingTensor { path: self.gguf.metadata.file().into(), tensor: name.clone() };
        let info = self.gguf.tensor(&name).ok_or_else(missing)?;
        let layout = record_layout(part_bytes, self.alignment).filter(|_| !part_bytes.contains(&0));
        let Some((starts, record_bytes)) = layout else {
            return Err(self.bad(PART_BYTES_KEY, format!("{part_bytes:?} of block {block} are no lengths")));
        };
        let experts = self.experts(info, record_bytes)?;
        let types = [self.block_type(at, 0)?, self.block_type(at, 1)?, self.block_type(at, 2)?];
        let (file, offset) = (info.file, info.offset);
        let parts = BlockParts { block, types, bytes: part_bytes };
        Ok((experts, PackedBlock { parts, checksums: Vec::new(), starts, record_bytes, file, offset }))
    }

    /// The number of experts, from a tensor that must be `[record_bytes, experts]` bytes.
    fn experts(&self, info: &TensorInfo, record_bytes: u64) -> Result<usize, LoadError> {
        let experts = match info.dims[..] {
            [bytes] if bytes == record_bytes => Some(1), // ggml drops trailing dimensions of 1
            [bytes, experts] if bytes == record_bytes => usize::try_from(experts).ok(),
            _ => None,
        };
        experts.filter(|_| info.block_type == BlockType::I8).ok_or_else(|| LoadError::Shape {
            path: self.gguf.metadata.file().into(),
            tensor: info.name.clone(),
            got: format!("{:?} of {}", info.dims, info.block_type),
            want: format!("[{record_bytes}, experts] of I8"),
        })
    }

    fn block_type(&self, at: usize, part: usize) -> Result<BlockType, LoadError> {
        let id = self.types[at * PARTS + part];
        BlockType::from_id(id).ok_or_else(|| self.bad(TYPES_KEY, format!("unknown block type id {id}")))
    }

    fn bad(&self, key: &str, problem: String) -> LoadError {
        bad_key(self.gguf, key, problem)
    }
}

/// Only what this build knows to read is read any further.
fn check_version(gguf: &Gguf) -> Result<(), LoadError> {
    let version = gguf.metadata.require_u64(VERSION_KEY)?;
    if version != u64::from(VERSION) {
        let problem = format!("layout {version}, this build reads {VERSION}");
        return Err(bad_key(gguf, VERSION_KEY, problem));
    }
    let name = gguf.metadata.require_str(CHECKSUM_KEY)?;
    if name != CHECKSUM_NAME {
        return Err(bad_key(
            gguf,
            CHECKSUM_KEY,
            format!("{}, this build knows {CHECKSUM_NAME}", quoted(name)),
        ));
    }
    Ok(())
}

/// An error about one of the layout's keys.
pub fn bad_key(gguf: &Gguf, key: &str, problem: String) -> LoadError {
    LoadError::BadKey { path: gguf.metadata.file().into(), key: key.into(), problem }
}

/// The keys that describe `blocks`, with their values: what [`PackedExperts::read`] finds again.
/// `dense` and `experts` are the checksums of the tensors without records and, by block, expert and part,
/// of the records.
pub fn keys(blocks: &[BlockParts], dense: Vec<u64>, experts: Vec<u64>) -> [(&'static str, Value); 7] {
    let numbers: Vec<u32> = blocks.iter().map(|parts| parts.block as u32).collect();
    let types: Vec<u32> = blocks.iter().flat_map(|parts| parts.types.map(BlockType::id)).collect();
    let bytes: Vec<u64> = blocks.iter().flat_map(|parts| parts.bytes).collect();
    [
        (VERSION_KEY, VERSION.into()),
        (BLOCKS_KEY, numbers.into()),
        (TYPES_KEY, types.into()),
        (PART_BYTES_KEY, bytes.into()),
        (CHECKSUM_KEY, CHECKSUM_NAME.into()),
        (CHECKSUMS_KEY, experts.into()),
        (DENSE_CHECKSUMS_KEY, dense.into()),
    ]
}
