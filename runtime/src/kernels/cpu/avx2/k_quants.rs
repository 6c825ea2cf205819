//! K-quants in registers. Layouts: see `cpu::k_quants`, whose integers these are.

use std::arch::x86_64::*;

use super::super::blocks::{Unpacked256, cell};
use super::super::k_quants::{Q2K, Q3K, Q4K, Q5K, Q6K};
use super::{Head, Wide256, half_float, load};

/// The 16 bytes in natural order -> even ones, then odd ones.
#[inline(always)]
unsafe fn even_odd_bytes(bytes: __m128i) -> __m128i {
    // SAFETY: the caller has SSSE3.
    unsafe { _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)) }
}

#[inline(always)]
unsafe fn load16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: 16 bytes are there.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Head of Q4_K and Q5_K: 6-bit scales and minima of groups of 32, packed as `k_quants::six_bits` says.
#[inline(always)]
unsafe fn six_bit_head(block: &[u8]) -> Head {
    // SAFETY: the caller has AVX2 and F16C.
    unsafe {
        let word = |at| u32::from_le_bytes(cell(block, at));
        let (a, b, c) = (word(4), word(8), word(12));
        let high = |x: u32| ((x >> 6) & 0x0303_0303) << 4;
        let scales =
            _mm_set_epi32(0, 0, ((c & 0x0f0f_0f0f) | high(a)).cast_signed(), (a & 0x3f3f_3f3f).cast_signed());
        let mins = _mm_set_epi32(
            0,
            0,
            (((c >> 4) & 0x0f0f_0f0f) | high(b)).cast_signed(),
            (b & 0x3f3f_3f3f).cast_signed(),
        );
        Head {
            scales: _mm256_broadcastsi128_si256(_mm_cvtepu8_epi16(scales)),
            natural: _mm256_setzero_si256(),
            mins: _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(mins, mins)),
            d: half_float(block, 0),
            d_min: half_float(block, 2),
        }
    }
}

/// Four vectors of 2-bit numbers, from the lowest bits up.
#[inline(always)]
unsafe fn two_bits(bits: __m256i) -> [__m256i; 4] {
    // SAFETY: the caller has AVX2.
    unsafe {
        let three = _mm256_set1_epi8(3);
        [
            _mm256_and_si256(bits, three),
            _mm256_and_si256(_mm256_srli_epi16(bits, 2), three),
            _mm256_and_si256(_mm256_srli_epi16(bits, 4), three),
            _mm256_and_si256(_mm256_srli_epi16(bits, 6), three),
        ]
    }
}

/// Low and high 4 bits of every byte.
#[inline(always)]
unsafe fn nibbles(bits: __m256i) -> [__m256i; 2] {
    // SAFETY: the caller has AVX2.
    unsafe {
        let low = _mm256_set1_epi8(0xF);
        [_mm256_and_si256(bits, low), _mm256_and_si256(_mm256_srli_epi16(bits, 4), low)]
    }
}

/// [`Q2K`].
pub(in crate::kernels) struct WideQ2K;

impl Wide256 for WideQ2K {
    type Block = Q2K;

    #[inline(always)]
    unsafe fn head(block: &[u8], _: &mut Unpacked256) -> Head {
        // SAFETY: the caller has AVX2 and F16C.
        unsafe {
            let both = load16(&cell(block, 0));
            let low = _mm_set1_epi8(0xF);
            Head {
                scales: _mm256_cvtepu8_epi16(even_odd_bytes(_mm_and_si128(both, low))),
                natural: _mm256_setzero_si256(),
                mins: _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(both, 4), low)),
                d: half_float(block, 80),
                d_min: half_float(block, 82),
            }
        }
    }

    #[inline(always)]
    unsafe fn half(block: &[u8], _: &Unpacked256, half: usize) -> [__m256i; 4] {
        // SAFETY: the caller has AVX2.
        unsafe { two_bits(load(&cell(block, 16 + 32 * half))) }
    }
}

/// [`Q3K`].
pub(in crate::kernels) struct WideQ3K;

impl Wide256 for WideQ3K {
    type Block = Q3K;

    #[inline(always)]
    unsafe fn head(block: &[u8], _: &mut Unpacked256) -> Head {
        // SAFETY: the caller has AVX2 and F16C.
        unsafe {
            let word = |at| u32::from_le_bytes(cell(block, at));
            let (a, b, high) = (word(96), word(100), word(104));
            let scale = |low: u32, shift: u32| {
                ((low & 0x0f0f_0f0f) | ((high >> shift) & 0x0303_0303) << 4).cast_signed()
            };
            let scales = _mm_set_epi32(scale(b >> 4, 6), scale(a >> 4, 4), scale(b, 2), scale(a, 0));
            let scales = _mm_sub_epi8(scales, _mm_set1_epi8(32));
            Head {
                scales: _mm256_cvtepi8_epi16(even_odd_bytes(scales)),
                natural: _mm256_cvtepi8_epi16(scales),
                mins: _mm256_setzero_si256(),
                d: half_float(block, 108),
                d_min: 0.0,
            }
        }
    }

    #[inline(always)]
    unsafe fn half(block: &[u8], _: &Unpacked256, half: usize) -> [__m256i; 4] {
        // SAFETY: the caller has AVX2.
        unsafe {
            // Bit j of the mask bytes is the third bit of vector j.
            let mask = load(&cell(block, 0));
            let mask = if half == 0 { mask } else { _mm256_srli_epi16(mask, 4) };
            let low = two_bits(load(&cell(block, 32 + 32 * half)));
            let four = _mm256_set1_epi8(4);
            [
                _mm256_or_si256(low[0], _mm256_and_si256(_mm256_slli_epi16(mask, 2), four)),
                _mm256_or_si256(low[1], _mm256_and_si256(_mm256_slli_epi16(mask, 1), four)),
                _mm256_or_si256(low[2], _mm256_and_si256(mask, four)),
                _mm256_or_si256(low[3], _mm256_and_si256(_mm256_srli_epi16(mask, 1), four)),
            ]
        }
    }
}

/// [`Q4K`].
pub(in crate::kernels) struct WideQ4K;

impl Wide256 for WideQ4K {
    type Block = Q4K;

    #[inline(always)]
    unsafe fn head(block: &[u8], _: &mut Unpacked256) -> Head {
        // SAFETY: handed down.
        unsafe { six_bit_head(block) }
    }

    #[inline(always)]
    unsafe fn half(block: &[u8], _: &Unpacked256, half: usize) -> [__m256i; 4] {
        // SAFETY: the caller has AVX2.
        unsafe {
            let [a, b] = nibbles(load(&cell(block, 16 + 64 * half)));
            let [c, d] = nibbles(load(&cell(block, 48 + 64 * half)));
            [a, b, c, d]
        }
    }
}

/// [`Q5K`].
pub(in crate::kernels) struct WideQ5K;

impl Wide256 for WideQ5K {
    type Block = Q5K;

    #[inline(always)]
    unsafe fn head(block: &[u8], _: &mut Unpacked256) -> Head {
        // SAFETY: handed down.
        unsafe { six_bit_head(block) }
    }

    #[inline(always)]
    unsafe fn half(block: &[u8], _: &Unpacked256, half: usize) -> [__m256i; 4] {
        // SAFETY: the caller has AVX2.
        unsafe {
            // Bit j of these bytes is the fifth bit of vector j.
            let high = load(&cell(block, 16));
            let high = if half == 0 { high } else { _mm256_srli_epi16(high, 4) };
            let [a, b] = nibbles(load(&cell(block, 48 + 64 * half)));
            let [c, d] = nibbles(load(&cell(block, 80 + 64 * half)));
            let bit = _mm256_set1_epi8(16);
            [
                _mm256_or_si256(a, _mm256_and_si256(_mm256_slli_epi16(high, 4), bit)),
                _mm256_or_si256(b, _mm256_and_si256(_mm256_slli_epi16(high, 3), bit)),
                _mm256_or_si256(c, _mm256_and_si256(_mm256_slli_epi16(high, 2), bit)),
                _mm256_or_si256(d, _mm256_and_si256(_mm256_slli_epi16(high, 1), bit)),
            ]
        }
    }
}

/// [`Q6K`].
pub(in crate::kernels) struct WideQ6K;

impl Wide256 for WideQ6K {
    type Block = Q6K;

    #[inline(always)]
    unsafe fn head(block: &[u8], _: &mut Unpacked256) -> Head {
        // SAFETY: the caller has AVX2 and F16C.
        unsafe {
            let scales = load16(&cell(block, 192));
            Head {
                scales: _mm256_cvtepi8_epi16(even_odd_bytes(scales)),
                natural: _mm256_cvtepi8_epi16(scales),
                mins: _mm256_setzero_si256(),
                d: half_float(block, 208),
                d_min: 0.0,
            }
        }
    }

    #[inline(always)]
    unsafe fn half(block: &[u8], _: &Unpacked256, half: usize) -> [__m256i; 4] {
        // SAFETY: the caller has AVX2.
        unsafe {
            let [a, c] = nibbles(load(&cell(block, 64 * half)));
            let [b, d] = nibbles(load(&cell(block, 64 * half + 32)));
            let high = two_bits(load(&cell(block, 128 + 32 * half)));
            let with = |low, k: usize| _mm256_or_si256(low, _mm256_slli_epi16(high[k], 4));
            [with(a, 0), with(b, 1), with(c, 2), with(d, 3)]
        }
    }
}
