//! Every limit the reader puts on a file (and, through it, the writer), in one place.
//!
//! Each is well above what real models use (said beside it) and low enough that a hostile file costs
//! little. Beyond these, every count is also bounded by the bytes left in the file.

/// Metadata and tensor table together. Real: 8 MB (a 256k-token vocabulary with merges).
pub const MAX_HEADER_BYTES: u64 = 256 << 20;
/// Metadata pairs. Real: below 100.
pub const MAX_METADATA_KEYS: u64 = 1 << 16;
/// Tensors of one file. Real: 1,100 (DeepSeek-V3); 70,000 were Kimi-K2's experts not stacked.
pub const MAX_TENSORS: u64 = 1 << 18;
/// A metadata key (the format's own limit). Real: 50.
pub const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
/// A tensor name. ggml allows 63.
pub const MAX_TENSOR_NAME_BYTES: u64 = 255;
/// One string value, or one string of an array. Real: 50 KB (chat templates).
pub const MAX_STRING_BYTES: u64 = 16 << 20;
/// Elements of one array. Real: 500,000 (merges).
pub const MAX_ARRAY_ELEMENTS: u64 = 1 << 25;
/// Dimensions of a tensor (ggml's own limit).
pub const MAX_DIMS: u32 = 4;
/// `general.alignment`: a power of two in this range (8 is the format's own lower bound). Real: 32.
pub const MIN_ALIGNMENT: u64 = 8;
/// See [`MIN_ALIGNMENT`].
pub const MAX_ALIGNMENT: u64 = 64 << 10;
/// Files of one split model. Real: 163 (the largest split seen is far below it).
pub const MAX_SPLIT_FILES: u64 = 1024;

/// Bytes of an empty string in a file: its length field.
pub(super) const SMALLEST_STRING_BYTES: usize = 8;
/// Bytes of the smallest metadata pair: key length, one byte of key, type, one byte of value.
pub(super) const SMALLEST_PAIR_BYTES: u64 = 8 + 1 + 4 + 1;
/// Bytes of the smallest tensor entry: name length, one byte of name, rank, one dim, type, offset.
pub(super) const SMALLEST_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;
