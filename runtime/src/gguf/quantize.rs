//! f32 to blocks and back, through candle's reference quantizers.
//!
//! For converting and for tests; the kernels decode blocks themselves. Lengths and values are checked
//! before candle sees them, because it asserts. Knows no shapes: a row of a matrix must be whole blocks
//! for its blocks to be the concatenation of the rows' blocks.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{CpuStorage, Device, Tensor};
use half::{bf16, f16};

use super::block::BlockType;
use super::error::GgufError;

/// The types [`quantize`] makes.
pub const QUANTIZABLE: [BlockType; 13] = [
    BlockType::F32,
    BlockType::F16,
    BlockType::BF16,
    BlockType::Q4_0,
    BlockType::Q4_1,
    BlockType::Q5_0,
    BlockType::Q5_1,
    BlockType::Q8_0,
    BlockType::Q2_K,
    BlockType::Q3_K,
    BlockType::Q4_K,
    BlockType::Q5_K,
    BlockType::Q6_K,
];

/// Elements converted at a time: bounds the scratch, and is a multiple of every block length.
const CHUNK_ELEMENTS: usize = 1 << 18;
/// candle's blocks want their alignment; the largest is an f32's.
const BLOCK_ALIGN: usize = 8;

/// `values` as blocks of one of the [`QUANTIZABLE`] types.
///
/// # Errors
/// [`GgufError::Blocks`]: another type, a length that is not whole blocks, or a value that the type
/// cannot hold (not finite, or beyond f16's range where the type uses f16).
pub fn quantize(block_type: BlockType, values: &[f32]) -> Result<Vec<u8>, GgufError> {
    let bytes = bytes_for(block_type, values.len())?;
    let mut out = Vec::with_capacity(bytes);
    if !QUANTIZABLE.contains(&block_type) {
        let known = QUANTIZABLE.map(BlockType::name).join(" ");
        return Err(error(block_type, format!("cannot be written (only {known} can)")));
    }
    if !matches!(block_type, BlockType::F32 | BlockType::BF16) {
        check_f16_range(block_type, values)?;
    }
    if block_type.block_len() == 1 {
        write_floats(block_type, values, &mut out);
        return Ok(out);
    }
    let dtype = candle_dtype(block_type)?;
    for chunk in values.chunks(CHUNK_ELEMENTS) {
        let blocks = Tensor::from_slice(chunk, chunk.len(), &Device::Cpu)
            .and_then(|tensor| QTensor::quantize(&tensor, dtype))
            .map_err(|source| error(block_type, source.to_string()))?;
        out.extend_from_slice(&blocks.data().map_err(|source| error(block_type, source.to_string()))?);
    }
    Ok(out)
}

/// The values that blocks stand for: every type candle decodes (F32, F16, BF16, Q4_0 to Q8_0, Q2_K to
/// Q8_K).
///
/// # Errors
/// [`GgufError::Blocks`]: another type, or bytes that are not whole blocks.
pub fn dequantize(block_type: BlockType, bytes: &[u8]) -> Result<Vec<f32>, GgufError> {
    let block_bytes = block_type.block_bytes() as usize;
    let block_len = block_type.block_len() as usize;
    if !bytes.len().is_multiple_of(block_bytes) {
        return Err(error(
            block_type,
            format!("{} bytes are not whole blocks of {block_bytes}", bytes.len()),
        ));
    }
    let decode: fn(&[u8], &mut Vec<f32>) = match block_type {
        BlockType::F32 => |bytes, out| out.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))),
        BlockType::F16 => {
            |bytes, out| out.extend(bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()))
        }
        BlockType::BF16 => {
            |bytes, out| out.extend(bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()))
        }
        quantized => return dequantize_blocks(quantized, bytes, CHUNK_ELEMENTS / block_len * block_bytes),
    };
    let mut out = Vec::with_capacity(bytes.len() / block_bytes);
    decode(bytes, &mut out);
    Ok(out)
}

fn dequantize_blocks(block_type: BlockType, bytes: &[u8], chunk_bytes: usize) -> Result<Vec<f32>, GgufError> {
    let dtype = candle_dtype(block_type)?;
    let elements = |bytes: usize| bytes / block_type.block_bytes() as usize * block_type.block_len() as usize;
    let mut out = Vec::with_capacity(elements(bytes.len()));
    for chunk in bytes.chunks(chunk_bytes) {
        // candle asserts the alignment of what it is given, so it gets a copy that has it.
        let mut copy = vec![0u8; chunk.len() + BLOCK_ALIGN];
        let start = copy.as_ptr().align_offset(BLOCK_ALIGN).min(BLOCK_ALIGN);
        copy[start..start + chunk.len()].copy_from_slice(chunk);
        let blocks = dtype.from_data(Cow::Borrowed(&copy[start..start + chunk.len()]));
        match blocks.dequantize(elements(chunk.len())) {
            Ok(CpuStorage::F32(values)) => out.extend_from_slice(&values),
            Ok(_) => return Err(error(block_type, "candle gave another type than f32")),
            Err(source) => return Err(error(block_type, source.to_string())),
        }
    }
    Ok(out)
}

fn write_floats(block_type: BlockType, values: &[f32], out: &mut Vec<u8>) {
    for &value in values {
        match block_type {
            BlockType::F16 => out.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
            BlockType::BF16 => out.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
            _ => out.extend_from_slice(&value.to_le_bytes()),
        }
    }
}

fn bytes_for(block_type: BlockType, elements: usize) -> Result<usize, GgufError> {
    let bytes = block_type.bytes_for(elements as u64).and_then(|bytes| usize::try_from(bytes).ok());
    bytes.ok_or_else(|| {
        error(block_type, format!("{elements} values are not whole blocks of {}", block_type.block_len()))
    })
}

fn check_f16_range(block_type: BlockType, values: &[f32]) -> Result<(), GgufError> {
    let fits = |value: &f32| value.abs() <= f16::MAX.to_f32(); // false for NaN
    match values.iter().position(|value| !fits(value)) {
        None => Ok(()),
        Some(index) => {
            Err(error(block_type, format!("value {index} is {}, beyond the range of f16", values[index])))
        }
    }
}

fn candle_dtype(block_type: BlockType) -> Result<GgmlDType, GgufError> {
    Ok(match block_type {
        BlockType::Q4_0 => GgmlDType::Q4_0,
        BlockType::Q4_1 => GgmlDType::Q4_1,
        BlockType::Q5_0 => GgmlDType::Q5_0,
        BlockType::Q5_1 => GgmlDType::Q5_1,
        BlockType::Q8_0 => GgmlDType::Q8_0,
        BlockType::Q2_K => GgmlDType::Q2K,
        BlockType::Q3_K => GgmlDType::Q3K,
        BlockType::Q4_K => GgmlDType::Q4K,
        BlockType::Q5_K => GgmlDType::Q5K,
        BlockType::Q6_K => GgmlDType::Q6K,
        BlockType::Q8_K => GgmlDType::Q8K,
        _ => return Err(error(block_type, "decoding is not supported yet")),
    })
}

fn error(block_type: BlockType, problem: impl Into<String>) -> GgufError {
    GgufError::Blocks { block_type, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// A deterministic wave without symmetry: 1000 values would repeat no block.
    fn wave(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * i) as f32 * 0.37).sin() * 0.5 + (i as f32 * 0.011).cos() * 0.1).collect()
    }

    #[test]
    fn what_is_quantized_comes_back_within_the_types_error() {
        // More than one chunk, so that the seam between chunks is covered.
        let values = wave(CHUNK_ELEMENTS + 512);
        let cases = [
            (BlockType::F32, 0.0),
            (BlockType::F16, 4e-4),
            (BlockType::BF16, 4e-3),
            (BlockType::Q8_0, 4e-3),
            (BlockType::Q6_K, 3e-2),
            (BlockType::Q5_K, 5e-2),
            (BlockType::Q5_1, 3e-2),
            (BlockType::Q5_0, 5e-2),
            (BlockType::Q4_K, 8e-2),
            (BlockType::Q4_1, 6e-2),
            (BlockType::Q4_0, 8e-2),
            (BlockType::Q3_K, 0.2),
            (BlockType::Q2_K, 0.3),
        ];
        for (block_type, error_max) in cases {
            let bytes = quantize(block_type, &values).unwrap();
            assert_eq!(bytes.len() as u64, block_type.bytes_for(values.len() as u64).unwrap());
            let back = dequantize(block_type, &bytes).unwrap();
            assert_eq!(back.len(), values.len());
            let error = values.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error <= error_max, "{block_type}: {error}");
        }
    }

    #[test]
    fn a_length_that_is_not_whole_blocks_is_an_error() {
        assert!(quantize(BlockType::Q4_K, &wave(255)).is_err());
        assert!(quantize(BlockType::Q8_0, &wave(33)).is_err());
        assert!(dequantize(BlockType::Q6_K, &[0; 209]).is_err());
        assert!(dequantize(BlockType::F32, &[0; 3]).is_err());
        assert!(quantize(BlockType::Q4_K, &[]).unwrap().is_empty());
    }

    #[test]
    fn a_value_the_type_cannot_hold_is_an_error_that_names_it() {
        for bad in [f32::NAN, f32::INFINITY, -70000.0] {
            let mut values = wave(256);
            values[17] = bad;
            let error = quantize(BlockType::Q4_K, &values).unwrap_err().to_string();
            assert!(error.starts_with("Q4_K blocks: value 17 is"), "{error}");
        }
        assert!(quantize(BlockType::F32, &[f32::INFINITY]).is_ok());
    }

    #[test]
    fn a_type_without_a_codec_is_an_error_not_a_panic() {
        for &block_type in BlockType::ALL {
            let zeros = vec![0u8; block_type.block_bytes() as usize];
            let values = vec![0f32; block_type.block_len() as usize];
            match dequantize(block_type, &zeros) {
                Ok(decoded) => assert_eq!(decoded, values, "{block_type}"),
                Err(error) => assert!(error.to_string().contains("not supported yet"), "{error}"),
            }
            assert_eq!(
                quantize(block_type, &values).is_ok(),
                QUANTIZABLE.contains(&block_type),
                "{block_type}"
            );
        }
    }

    #[test]
    fn extreme_values_do_not_panic() {
        for block_type in [BlockType::Q4_0, BlockType::Q8_0, BlockType::Q4_K, BlockType::Q6_K] {
            for value in [65504.0, -65504.0, f32::MIN_POSITIVE, -0.0, 1e-40] {
                let mut values = vec![0.0; 512];
                values[3] = value;
                assert!(quantize(block_type, &values).is_ok());
                assert!(quantize(block_type, &[value; 512]).is_ok());
            }
        }
    }

    #[test]
    fn misaligned_bytes_decode_like_aligned_ones() {
        let bytes = quantize(BlockType::Q8_0, &wave(64)).unwrap();
        let mut shifted = vec![0u8];
        shifted.extend_from_slice(&bytes);
        assert_eq!(
            dequantize(BlockType::Q8_0, &shifted[1..]).unwrap(),
            dequantize(BlockType::Q8_0, &bytes).unwrap()
        );
    }
}
