//! K-quants in 512-bit registers. Layouts: see `cpu::k_quants`, whose integers these are.

use std::arch::x86_64::*;

use super::super::avx2::{WideIq4Xs, WideQ2K, WideQ3K, WideQ4K, WideQ5K, WideQ6K, load};
use super::super::blocks::{Unpacked256, cell};
use super::super::legacy::NONLINEAR;
use super::legacy::low_and_high;
use super::{Wide512, join};

/// The same 32 bytes in both halves.
#[inline(always)]
unsafe fn twice(bytes: &[u8; 32]) -> __m512i {
    // SAFETY: the caller has AVX-512.
    unsafe { _mm512_broadcast_i64x4(load(bytes)) }
}

/// Bits moved down in the words of either half.
#[inline(always)]
unsafe fn down(bits: __m512i, low: i16, high: i16) -> __m512i {
    // SAFETY: the caller has AVX-512 BW.
    unsafe { _mm512_srlv_epi16(bits, join(_mm256_set1_epi16(low), _mm256_set1_epi16(high))) }
}

/// The `N` lowest bits of every byte.
#[inline(always)]
unsafe fn lowest<const N: u32>(bits: __m512i) -> __m512i {
    // SAFETY: the caller has AVX-512.
    unsafe { _mm512_and_si512(bits, _mm512_set1_epi8((1 << N) - 1)) }
}

/// Vector `k` of weights that take their low 4 bits from planes of 32 bytes.
#[inline(always)]
unsafe fn nibble_planes(bytes: &[u8; 32]) -> __m512i {
    // SAFETY: the caller has AVX-512 BW.
    unsafe { lowest::<4>(down(twice(bytes), 0, 4)) }
}

/// `weights` of vector `k`, plus `VALUE` where the bit is set: bit j of byte i is weight 32 j + i's.
#[inline(always)]
unsafe fn with_bit<const VALUE: i8>(weights: __m512i, bits: __m512i, k: usize) -> __m512i {
    // SAFETY: the caller has AVX-512 BW.
    unsafe {
        let bit = |j: usize| _mm256_set1_epi8((1u8 << j).cast_signed());
        let is_set = _mm512_test_epi8_mask(bits, join(bit(2 * k), bit(2 * k + 1)));
        _mm512_mask_add_epi8(weights, is_set, weights, _mm512_set1_epi8(VALUE))
    }
}

/// The 256 numbers of 2 bits in 64 bytes.
#[inline(always)]
unsafe fn pair_planes(bytes: &[u8; 64]) -> [__m512i; 4] {
    // SAFETY: the caller has AVX-512 BW.
    unsafe {
        let (a, b) = (twice(&cell(bytes, 0)), twice(&cell(bytes, 32)));
        [
            lowest::<2>(down(a, 0, 2)),
            lowest::<2>(down(a, 4, 6)),
            lowest::<2>(down(b, 0, 2)),
            lowest::<2>(down(b, 4, 6)),
        ]
    }
}

impl Wide512 for WideQ2K {
    #[inline(always)]
    unsafe fn weights(block: &[u8], _: &Unpacked256) -> [__m512i; 4] {
        // SAFETY: the caller has AVX-512 BW.
        unsafe { pair_planes(&cell(block, 16)) }
    }
}

impl Wide512 for WideQ3K {
    #[inline(always)]
    unsafe fn weights(block: &[u8], _: &Unpacked256) -> [__m512i; 4] {
        // SAFETY: the caller has AVX-512 BW.
        unsafe {
            let (mut w, high) = (pair_planes(&cell(block, 32)), twice(&cell(block, 0)));
            for (k, w) in w.iter_mut().enumerate() {
                *w = with_bit::<4>(*w, high, k);
            }
            w
        }
    }
}

impl Wide512 for WideQ4K {
    #[inline(always)]
    unsafe fn weights(block: &[u8], _: &Unpacked256) -> [__m512i; 4] {
        // SAFETY: the caller has AVX-512 BW.
        unsafe {
            let mut w = [_mm512_setzero_si512(); 4];
            for (k, w) in w.iter_mut().enumerate() {
                *w = nibble_planes(&cell(block, 16 + 32 * k));
            }
            w
        }
    }
}

impl Wide512 for WideQ5K {
    #[inline(always)]
    unsafe fn weights(block: &[u8], _: &Unpacked256) -> [__m512i; 4] {
        // SAFETY: the caller has AVX-512 BW.
        unsafe {
            let (mut w, high) = ([_mm512_setzero_si512(); 4], twice(&cell(block, 16)));
            for (k, w) in w.iter_mut().enumerate() {
                *w = with_bit::<16>(nibble_planes(&cell(block, 48 + 32 * k)), high, k);
            }
            w
        }
    }
}

impl Wide512 for WideQ6K {
    #[inline(always)]
    unsafe fn weights(block: &[u8], _: &Unpacked256) -> [__m512i; 4] {
        // SAFETY: the caller has AVX-512 BW; 64 bytes.
        unsafe {
            let mut w = [_mm512_setzero_si512(); 4];
            for half in 0..2 {
                let low = _mm512_loadu_si512(cell::<64>(block, 64 * half).as_ptr().cast());
                let high = twice(&cell(block, 128 + 32 * half));
                // The numbers of 2 bits, moved to bits 4 and 5.
                let up = _mm512_sllv_epi16(high, join(_mm256_set1_epi16(4), _mm256_set1_epi16(2)));
                w[2 * half] = six_bits(low, up);
                w[2 * half + 1] = six_bits(_mm512_srli_epi16(low, 4), down(high, 0, 2));
            }
            w
        }
    }
}

/// Bits 0-3 of `low`, bits 4 and 5 of `high`.
#[inline(always)]
unsafe fn six_bits(low: __m512i, high: __m512i) -> __m512i {
    // SAFETY: the caller has AVX-512.
    unsafe {
        let high = _mm512_and_si512(high, _mm512_set1_epi8(0x30));
        _mm512_or_si512(lowest::<4>(low), high)
    }
}

impl Wide512 for WideIq4Xs {
    #[inline(always)]
    unsafe fn weights(block: &[u8], _: &Unpacked256) -> [__m512i; 4] {
        // SAFETY: the caller has AVX-512 BW; 16 levels.
        unsafe {
            let levels = _mm512_broadcast_i32x4(_mm_loadu_si128(NONLINEAR.as_ptr().cast()));
            let mut w = [_mm512_setzero_si512(); 4];
            for (k, w) in w.iter_mut().enumerate() {
                // Quarters: low and high halves of the first 16 bytes, then of the others.
                let bytes = _mm512_castsi256_si512(load(&cell(block, 8 + 32 * k)));
                let bytes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3), bytes);
                *w = _mm512_shuffle_epi8(levels, low_and_high(bytes));
            }
            w
        }
    }
}
