//! The header of one file: magic, metadata, tensor table; checked against the file's length.
//!
//! Pure: bytes in, [`Header`] out. Owns the layout rules of a single file (alignment, extents inside
//! the file, no overlap, no duplicates); split models are put together in `open.rs`. Format: GGUF v2
//! and v3 of the ggml project (`docs/gguf.md`).
//!
//! Stricter than ggml where leniency would hide damage: zero dims, rank 0, unknown block types,
//! misaligned or overlapping tensors and repeated names are errors. Bytes after the last tensor are
//! allowed, and so are gaps between tensors.

use std::path::Path;

use super::block::BlockType;
use super::cursor::{Cursor, Subject};
use super::error::GgufError;
use super::limits::{
    MAX_ALIGNMENT, MAX_DIMS, MAX_KEY_BYTES, MAX_METADATA_KEYS, MAX_TENSOR_NAME_BYTES, MAX_TENSORS,
    MIN_ALIGNMENT, SMALLEST_PAIR_BYTES, SMALLEST_TENSOR_BYTES,
};
use super::metadata::Metadata;
use super::value::Value;

/// The first four bytes of every file.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// Key of the data section's alignment.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
/// Alignment where the file does not say.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;

/// Where one tensor lies and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, unique in the model.
    pub name: String,
    /// 1 to 4 sizes, fastest-varying first (ggml's `ne0`): a `[out, in]` matrix has dims `[in, out]`.
    pub dims: Vec<u64>,
    /// How the elements are stored.
    pub block_type: BlockType,
    /// Index into [`super::Gguf::files`].
    pub file: u16,
    /// Bytes from the start of that file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl TensorInfo {
    /// Number of elements (the reader has checked that it does not overflow).
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }
}

/// The parsed header of one file.
#[derive(Clone, Debug)]
pub struct Header {
    /// Format version, 2 or 3.
    pub version: u32,
    /// Alignment of the tensors in bytes.
    pub alignment: u64,
    /// Metadata of this file.
    pub metadata: Metadata,
    /// Tensors in the order of the table, `file` 0.
    pub tensors: Vec<TensorInfo>,
}

/// Reads the header in `bytes`: the whole file, or at least its first
/// [`MAX_HEADER_BYTES`](super::limits::MAX_HEADER_BYTES). `file_len` is the length of the file, `path`
/// is only named in errors.
///
/// # Errors
/// Any [`GgufError`] but those of I/O and splits; never panics, and never allocates more than a few
/// times the bytes it was given.
pub fn parse(bytes: &[u8], file_len: u64, path: &Path) -> Result<Header, GgufError> {
    let mut cursor = Cursor::new(bytes, file_len, path);
    let version = read_version(&mut cursor, path)?;
    let tensor_count = cursor.count(Subject::Header, "tensors", SMALLEST_TENSOR_BYTES, MAX_TENSORS)?;
    let pair_count =
        cursor.count(Subject::Header, "metadata keys", SMALLEST_PAIR_BYTES, MAX_METADATA_KEYS)?;

    let metadata = Metadata::new(path, read_pairs(&mut cursor, pair_count)?)?;
    let alignment = alignment(&metadata)?;
    let mut tensors = read_tensors(&mut cursor, tensor_count, path)?;

    place_tensors(&mut tensors, &DataSection { start: cursor.offset(), alignment, file_len }, path)?;
    check_names_unique(&tensors, path)?;
    check_no_overlap(&tensors, path)?;
    Ok(Header { version, alignment, metadata, tensors })
}

fn read_version(cursor: &mut Cursor<'_>, path: &Path) -> Result<u32, GgufError> {
    let file = || path.to_owned();
    let found = cursor.u32(Subject::Header)?.to_le_bytes();
    if found != MAGIC {
        return Err(GgufError::NotGguf { file: file(), found });
    }
    match cursor.u32(Subject::Header)? {
        version @ (2 | 3) => Ok(version),
        swapped if matches!(swapped.swap_bytes(), 1..=3) => Err(GgufError::BigEndian { file: file() }),
        version => Err(GgufError::Version { file: file(), version }),
    }
}

/// An empty table with room for `count` entries, or for as many as the bytes left could hold: exact, as
/// a table that grows holds its entries twice.
fn table<T>(count: u64, entry_bytes_min: u64, cursor: &Cursor<'_>) -> Vec<T> {
    Vec::with_capacity(count.min(cursor.left() / entry_bytes_min) as usize)
}

fn read_pairs(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<(Box<str>, Value)>, GgufError> {
    let mut pairs = table(count, SMALLEST_PAIR_BYTES, cursor);
    for index in 0..count {
        let key = cursor.string(Subject::Key(index), MAX_KEY_BYTES)?;
        if key.is_empty() {
            return Err(cursor.malformed(Subject::Key(index), "the key is empty".to_owned()));
        }
        pairs.push((Box::from(key), cursor.value(Subject::Value(key))?));
    }
    Ok(pairs)
}

/// The alignment a file states, or the default.
pub(super) fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else { return Ok(DEFAULT_ALIGNMENT) };
    let alignment = value.to_u64();
    alignment
        .filter(|bytes| bytes.is_power_of_two() && (MIN_ALIGNMENT..=MAX_ALIGNMENT).contains(bytes))
        .ok_or_else(|| GgufError::WrongType {
            file: metadata.file().to_owned(),
            key: ALIGNMENT_KEY.to_owned(),
            expected: "a power of two from 8 to 65536",
            found: alignment.map_or_else(|| value.describe(), |bytes| bytes.to_string()),
        })
}

/// Reads the tensor table; `offset` is still relative to the data section.
fn read_tensors(cursor: &mut Cursor<'_>, count: u64, path: &Path) -> Result<Vec<TensorInfo>, GgufError> {
    let mut tensors = table(count, SMALLEST_TENSOR_BYTES, cursor);
    for index in 0..count {
        tensors.push(read_tensor(cursor, index, path)?);
    }
    Ok(tensors)
}

fn read_tensor(cursor: &mut Cursor<'_>, index: u64, path: &Path) -> Result<TensorInfo, GgufError> {
    let name = cursor.string(Subject::TensorName(index), MAX_TENSOR_NAME_BYTES)?;
    let subject = Subject::Tensor(name);
    if name.is_empty() {
        return Err(cursor.malformed(Subject::TensorName(index), "the name is empty".to_owned()));
    }
    let rank = cursor.u32(subject)?;
    if !(1..=MAX_DIMS).contains(&rank) {
        return Err(cursor.malformed(subject, format!("{rank} dimensions, must be 1 to {MAX_DIMS}")));
    }
    let dims = (0..rank).map(|_| cursor.u64(subject)).collect::<Result<Vec<u64>, _>>()?;
    let id = cursor.u32(subject)?;
    let offset = cursor.u64(subject)?;
    let file = || path.to_owned();
    let block_type = BlockType::from_id(id).ok_or_else(|| GgufError::UnknownBlockType {
        file: file(),
        tensor: name.to_owned(),
        id,
    })?;
    let bytes = tensor_bytes(block_type, &dims).map_err(|problem| GgufError::BadTensor {
        file: file(),
        tensor: name.to_owned(),
        problem,
    })?;
    Ok(TensorInfo { name: name.to_owned(), dims, block_type, file: 0, offset, bytes })
}

/// Bytes of a tensor of this shape, or what is wrong with the shape.
pub(super) fn tensor_bytes(block_type: BlockType, dims: &[u64]) -> Result<u64, String> {
    if dims.contains(&0) {
        return Err(format!("a dimension of {dims:?} is zero"));
    }
    let row = dims.first().copied().unwrap_or(0);
    if !row.is_multiple_of(block_type.block_len()) {
        return Err(format!(
            "rows of {row} elements are not whole {block_type} blocks of {}",
            block_type.block_len()
        ));
    }
    let elements = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
    elements
        .and_then(|elements| block_type.bytes_for(elements))
        .filter(|&bytes| bytes <= i64::MAX as u64)
        .ok_or_else(|| format!("the size of {dims:?} overflows"))
}

/// Where the tensor data of a file may lie; `start` is the end of the header.
struct DataSection {
    start: u64,
    alignment: u64,
    file_len: u64,
}

/// Turns relative offsets into absolute ones, each inside the file.
fn place_tensors(tensors: &mut [TensorInfo], section: &DataSection, path: &Path) -> Result<(), GgufError> {
    let data_start = section.start.next_multiple_of(section.alignment); // both far below 2^63
    for tensor in tensors {
        if !tensor.offset.is_multiple_of(section.alignment) {
            let problem =
                format!("offset {} is no multiple of the alignment {}", tensor.offset, section.alignment);
            return Err(GgufError::BadTensor { file: path.to_owned(), tensor: tensor.name.clone(), problem });
        }
        let offset = data_start.saturating_add(tensor.offset);
        if offset.checked_add(tensor.bytes).is_none_or(|end| end > section.file_len) {
            return Err(GgufError::TensorOutOfFile {
                file: path.to_owned(),
                tensor: tensor.name.clone(),
                offset,
                bytes: tensor.bytes,
                file_len: section.file_len,
            });
        }
        tensor.offset = offset;
    }
    Ok(())
}

fn check_names_unique(tensors: &[TensorInfo], path: &Path) -> Result<(), GgufError> {
    let by_name = sorted_indices(tensors, |tensor| &tensor.name);
    match duplicate_name(tensors, &by_name) {
        None => Ok(()),
        Some((tensor, _)) => Err(GgufError::DuplicateTensor {
            file: path.to_owned(),
            tensor: tensor.name.clone(),
            other: path.to_owned(),
        }),
    }
}

fn check_no_overlap(tensors: &[TensorInfo], path: &Path) -> Result<(), GgufError> {
    let by_offset = sorted_indices(tensors, |tensor| &tensor.offset);
    for pair in by_offset.windows(2) {
        let (first, second) = (&tensors[pair[0] as usize], &tensors[pair[1] as usize]);
        if first.offset.saturating_add(first.bytes) > second.offset {
            return Err(GgufError::TensorsOverlap {
                file: path.to_owned(),
                tensor: first.name.clone(),
                other: second.name.clone(),
                offset: second.offset,
            });
        }
    }
    Ok(())
}

/// Indices of the tensors in the order of a field (4 bytes a tensor, not a copy of the names).
pub(super) fn sorted_indices<K: Ord + ?Sized>(
    tensors: &[TensorInfo],
    key: impl Fn(&TensorInfo) -> &K,
) -> Vec<u32> {
    let mut indices: Vec<u32> = (0u32..).take(tensors.len()).collect();
    indices.sort_unstable_by(|&a, &b| key(&tensors[a as usize]).cmp(key(&tensors[b as usize])));
    indices
}

/// Two tensors of one name, if there are any, given the indices sorted by name.
pub(super) fn duplicate_name<'a>(
    tensors: &'a [TensorInfo],
    by_name: &[u32],
) -> Option<(&'a TensorInfo, &'a TensorInfo)> {
    let tensor = |index: u32| &tensors[index as usize];
    by_name
        .windows(2)
        .map(|pair| (tensor(pair[0]), tensor(pair[1])))
        .find(|(first, second)| first.name == second.name)
}
