//! The block formats that have a kernel: how each multiplies and what it wants of the activations.
//!
//! Owns the map from [`BlockType`] to a kernel. Quantized dots and the activation quantizers are
//! candle's (`k_quants::GgmlType`), called on raw GGUF bytes block by block: candle's own matmul is
//! not used, because it repacks, and runs on a process-wide pool (CANDLE.md 1.4, 1.5).

use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
};
use half::{bf16, f16};

use crate::gguf::BlockType;

/// A block format with a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// IEEE half floats.
    F16,
    /// Brain floats.
    BF16,
    /// 4 bits, 32 weights, scale.
    Q4_0,
    /// 4 bits, 32 weights, scale and minimum.
    Q4_1,
    /// 5 bits, 32 weights, scale.
    Q5_0,
    /// 5 bits, 32 weights, scale and minimum.
    Q5_1,
    /// 8 bits, 32 weights, scale.
    Q8_0,
    /// 2-bit K-quant.
    Q2K,
    /// 3-bit K-quant.
    Q3K,
    /// 4-bit K-quant.
    Q4K,
    /// 5-bit K-quant.
    Q5K,
    /// 6-bit K-quant.
    Q6K,
}

/// Each supported block type and its kernel; a format without a line here is refused at load.
const FORMATS: &[(BlockType, Format)] = &[
    (BlockType::F32, Format::F32),
    (BlockType::F16, Format::F16),
    (BlockType::BF16, Format::BF16),
    (BlockType::Q4_0, Format::Q4_0),
    (BlockType::Q4_1, Format::Q4_1),
    (BlockType::Q5_0, Format::Q5_0),
    (BlockType::Q5_1, Format::Q5_1),
    (BlockType::Q8_0, Format::Q8_0),
    (BlockType::Q2_K, Format::Q2K),
    (BlockType::Q3_K, Format::Q3K),
    (BlockType::Q4_K, Format::Q4K),
    (BlockType::Q5_K, Format::Q5K),
    (BlockType::Q6_K, Format::Q6K),
];

/// What a format's dot product multiplies with: the activation row as it is, or quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    F32,
    Q8_0,
    Q8_1,
    Q8K,
}

/// Whether weights of this type can be computed with.
pub fn is_supported(block_type: BlockType) -> bool {
    Format::of(block_type).is_some()
}

/// The names of all supported types, for messages.
pub fn supported_names() -> String {
    FORMATS.iter().map(|(block_type, _)| block_type.name()).collect::<Vec<_>>().join(", ")
}

impl Format {
    /// The kernel for a block type, if there is one.
    pub fn of(block_type: BlockType) -> Option<Format> {
        FORMATS.iter().find(|(known, _)| *known == block_type).map(|(_, format)| *format)
    }

    /// The block type it computes with.
    pub fn block_type(self) -> BlockType {
        let known = FORMATS.iter().find(|(_, format)| *format == self);
        known.expect("invariant: every format stands in the table").0
    }

    /// Address alignment the kernel needs of a weight row, in bytes.
    pub fn alignment(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => 1,
            _ => align_of::<f16>(),
        }
    }

    pub(super) fn side(self) -> Side {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => Side::F32,
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => Side::Q8_0,
            Format::Q4_1 | Format::Q5_1 => Side::Q8_1,
            Format::Q2K | Format::Q3K | Format::Q4K | Format::Q5K | Format::Q6K => Side::Q8K,
        }
    }

    /// Writes a weight row's values to `out` (embedding look-up, one-time transformations).
    pub fn dequantize(self, row: &[u8], out: &mut [f32]) {
        match self {
            Format::F32 => decode(row, out, f32::from_le_bytes),
            Format::F16 => decode(row, out, |b| f16::from_le_bytes(b).to_f32()),
            Format::BF16 => decode(row, out, |b| bf16::from_le_bytes(b).to_f32()),
            Format::Q4_0 => BlockQ4_0::to_float(blocks(row), out),
            Format::Q4_1 => BlockQ4_1::to_float(blocks(row), out),
            Format::Q5_0 => BlockQ5_0::to_float(blocks(row), out),
            Format::Q5_1 => BlockQ5_1::to_float(blocks(row), out),
            Format::Q8_0 => BlockQ8_0::to_float(blocks(row), out),
            Format::Q2K => BlockQ2K::to_float(blocks(row), out),
            Format::Q3K => BlockQ3K::to_float(blocks(row), out),
            Format::Q4K => BlockQ4K::to_float(blocks(row), out),
            Format::Q5K => BlockQ5K::to_float(blocks(row), out),
            Format::Q6K => BlockQ6K::to_float(blocks(row), out),
        }
    }
}

fn decode<const N: usize>(row: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (o, cell) in out.iter_mut().zip(row.as_chunks::<N>().0) {
        *o = value(*cell);
    }
}

/// A weight row's bytes as candle blocks.
///
/// # Panics
/// When the bytes are not aligned for the block: the loader refuses such files beforehand.
pub(super) fn blocks<T: GgmlType>(row: &[u8]) -> &[T] {
    assert!(row.as_ptr().addr().is_multiple_of(align_of::<T>()), "invariant: weight rows are aligned");
    // SAFETY: candle's blocks are `repr(C)` structs of f16 and bytes without padding (their sizes are
    // asserted in candle), any byte pattern is valid, and the alignment was just checked.
    unsafe { std::slice::from_raw_parts(row.as_ptr().cast::<T>(), row.len() / size_of::<T>()) }
}
