//! The 32 formats in registers. Layouts: see `cpu::legacy`, whose integers these are.

use std::arch::x86_64::*;

use super::super::blocks::{Block32, cell};
use super::super::legacy::{Iq4Nl, Mxfp4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use super::{Wide32, load};

/// The half floats at byte `at` of eight blocks of `BYTES` bytes.
#[inline(always)]
unsafe fn eight_halves<const BYTES: usize>(blocks: &[u8], at: usize) -> __m256 {
    let half = |b: usize| i16::from_le_bytes(cell(blocks, b * BYTES + at));
    // SAFETY: the caller has F16C.
    unsafe {
        _mm256_cvtph_ps(_mm_setr_epi16(
            half(0),
            half(1),
            half(2),
            half(3),
            half(4),
            half(5),
            half(6),
            half(7),
        ))
    }
}

/// Low halves of 16 bytes, then the high ones.
#[inline(always)]
unsafe fn nibbles(bytes: &[u8; 16]) -> __m256i {
    // SAFETY: the caller has AVX2; 16 bytes are there.
    unsafe {
        let bits = _mm_loadu_si128(bytes.as_ptr().cast());
        let both = _mm256_inserti128_si256(_mm256_castsi128_si256(bits), _mm_srli_epi16(bits, 4), 1);
        _mm256_and_si256(both, _mm256_set1_epi8(0xF))
    }
}

/// Bit `i` of four bytes as 16 in byte `i`, or 0.
#[inline(always)]
unsafe fn fifth_bits(bits: [u8; 4]) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        let copies = _mm256_set1_epi32(i32::from_le_bytes(bits));
        let spread = _mm256_shuffle_epi8(
            copies,
            _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303),
        );
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201u64.cast_signed());
        let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
        _mm256_and_si256(is_set, _mm256_set1_epi8(16))
    }
}

/// A format whose block is scale, maybe minimum, maybe fifth bits, then nibbles.
macro_rules! nibble_format {
    ($name:ident, $block:ty, $bits:expr, $min:expr, $fifth:expr) => {
        #[doc = concat!("[`", stringify!($block), "`].")]
        pub(in crate::kernels) struct $name;

        impl Wide32 for $name {
            type Block = $block;

            #[inline(always)]
            unsafe fn weights(block: &[u8]) -> __m256i {
                // SAFETY: the caller has AVX2.
                unsafe {
                    let low = nibbles(&cell(block, $bits));
                    let fifth: Option<usize> = $fifth;
                    match fifth {
                        Some(at) => _mm256_or_si256(low, fifth_bits(cell(block, at))),
                        None => low,
                    }
                }
            }

            #[inline(always)]
            unsafe fn scales(blocks: &[u8]) -> __m256 {
                // SAFETY: the caller has F16C.
                unsafe { eight_halves::<{ <$block>::BYTES }>(blocks, 0) }
            }

            #[inline(always)]
            unsafe fn mins(blocks: &[u8]) -> __m256 {
                let min: Option<usize> = $min;
                // SAFETY: the caller has F16C.
                unsafe {
                    match min {
                        Some(at) => eight_halves::<{ <$block>::BYTES }>(blocks, at),
                        None => _mm256_setzero_ps(),
                    }
                }
            }
        }
    };
}

nibble_format!(WideQ4_0, Q4_0, 2, None, None);
nibble_format!(WideQ4_1, Q4_1, 4, Some(2), None);
nibble_format!(WideQ5_0, Q5_0, 6, None, Some(2));
nibble_format!(WideQ5_1, Q5_1, 8, Some(2), Some(4));

/// [`Q8_0`].
pub(in crate::kernels) struct WideQ8_0;

impl Wide32 for WideQ8_0 {
    type Block = Q8_0;

    #[inline(always)]
    unsafe fn weights(block: &[u8]) -> __m256i {
        // SAFETY: the caller has AVX2.
        unsafe { load(&cell(block, 2)) }
    }

    #[inline(always)]
    unsafe fn scales(blocks: &[u8]) -> __m256 {
        // SAFETY: the caller has F16C.
        unsafe { eight_halves::<{ Q8_0::BYTES }>(blocks, 0) }
    }
}

/// Nibbles as indices into 16 signed values.
#[inline(always)]
pub(super) unsafe fn looked_up(bytes: &[u8; 16], values: [i8; 16]) -> __m256i {
    // SAFETY: the caller has AVX2; 16 values are there.
    unsafe {
        let values = _mm256_broadcastsi128_si256(_mm_loadu_si128(values.as_ptr().cast()));
        _mm256_shuffle_epi8(values, nibbles(bytes))
    }
}

/// [`Iq4Nl`].
pub(in crate::kernels) struct WideIq4Nl;

impl Wide32 for WideIq4Nl {
    type Block = Iq4Nl;

    #[inline(always)]
    unsafe fn weights(block: &[u8]) -> __m256i {
        // SAFETY: the caller has AVX2.
        unsafe { looked_up(&cell(block, 2), super::super::legacy::NONLINEAR) }
    }

    #[inline(always)]
    unsafe fn scales(blocks: &[u8]) -> __m256 {
        // SAFETY: the caller has F16C.
        unsafe { eight_halves::<{ Iq4Nl::BYTES }>(blocks, 0) }
    }
}

/// [`Mxfp4`].
pub(in crate::kernels) struct WideMxfp4;

impl Wide32 for WideMxfp4 {
    type Block = Mxfp4;

    #[inline(always)]
    unsafe fn weights(block: &[u8]) -> __m256i {
        // SAFETY: the caller has AVX2.
        unsafe { looked_up(&cell(block, 1), super::super::legacy::DOUBLED_E2M1) }
    }

    #[inline(always)]
    unsafe fn scales(blocks: &[u8]) -> __m256 {
        let scale = |b: usize| super::super::legacy::half_e8m0(blocks[b * Mxfp4::BYTES]);
        let scales: [f32; 8] = std::array::from_fn(scale);
        // SAFETY: the caller has AVX; eight floats are there.
        unsafe { _mm256_loadu_ps(scales.as_ptr()) }
    }
}
