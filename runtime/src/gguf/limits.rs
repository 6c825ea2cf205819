//! Every limit the reader puts on a file (and, through it, the writer), in one place.
//!
//! Each is well above what models need (an order of magnitude is said beside it) and low enough that a
//! hostile file costs little. Beyond these, every count is also bounded by the bytes left in the file.

/// Metadata and tensor table together. Qwen2's vocabulary of 152k tokens with merges: 6 MB.
pub const MAX_HEADER_BYTES: u64 = 256 << 20;
/// Metadata pairs. Usual: tens.
pub const MAX_METADATA_KEYS: u64 = 1 << 16;
/// Tensors of one file. Usual: hundreds; 60 layers of 384 experts, not stacked, would be 70,000.
pub const MAX_TENSORS: u64 = 1 << 18;
/// A metadata key (the format's own limit). Usual: tens.
pub const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
/// A tensor name. ggml allows 63.
pub const MAX_TENSOR_NAME_BYTES: u64 = 255;
/// One string value, or one string of an array. Usual longest: the chat template, kilobytes.
pub const MAX_STRING_BYTES: u64 = 16 << 20;
/// Elements of one array. Usual longest: the merges, hundreds of thousands.
pub const MAX_ARRAY_ELEMENTS: u64 = 1 << 25;
/// Dimensions of a tensor (ggml's own limit).
pub const MAX_DIMS: u32 = 4;
/// `general.alignment`: a power of two in this range (8 is the format's own lower bound). Usual: 32.
pub const MIN_ALIGNMENT: u64 = 8;
/// See [`MIN_ALIGNMENT`].
pub const MAX_ALIGNMENT: u64 = 64 << 10;
/// Files of one split model. Usual: up to tens.
pub const MAX_SPLIT_FILES: u64 = 1024;

/// Bytes of an empty string in a file: its length field.
pub(super) const SMALLEST_STRING_BYTES: usize = 8;
/// Bytes of the smallest metadata pair: key length, one byte of key, type, one byte of value.
pub(super) const SMALLEST_PAIR_BYTES: u64 = 8 + 1 + 4 + 1;
/// Bytes of the smallest tensor entry: name length, one byte of name, rank, one dim, type, offset.
pub(super) const SMALLEST_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;
