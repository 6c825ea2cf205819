//! The 32 formats in 512-bit registers. Layouts: see `cpu::legacy`, whose integers these are.

use std::arch::x86_64::*;

use super::super::avx2::{WideIq4Nl, WideMxfp4, WideQ4_0, WideQ4_1, WideQ5_0, WideQ5_1, WideQ8_0, load};
use super::super::blocks::{Block32, cell};
use super::super::legacy::{DOUBLED_E2M1, Iq4Nl, Mxfp4, NONLINEAR, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use super::{Wide64, join};

/// Low halves of the bytes of quarters 0 and 2, high halves of those of 1 and 3.
#[inline(always)]
pub(super) unsafe fn low_and_high(quarters: __m512i) -> __m512i {
    // SAFETY: the caller has AVX-512 BW.
    unsafe {
        let shifted = _mm512_srlv_epi64(quarters, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4));
        _mm512_and_si512(shifted, _mm512_set1_epi8(0xF))
    }
}

/// The nibbles from byte `at` on of two blocks.
#[inline(always)]
unsafe fn nibbles<B: Block32>(blocks: &[u8], at: usize) -> __m512i {
    // SAFETY: the caller has AVX-512 DQ; 16 bytes each.
    unsafe {
        let block = |b: usize| _mm_loadu_si128(cell::<16>(blocks, b * B::BYTES + at).as_ptr().cast());
        let first = _mm512_broadcast_i64x2(block(0));
        low_and_high(_mm512_mask_broadcast_i64x2(first, 0xF0, block(1)))
    }
}

/// `weights` plus 16 where the bit is set: bit i of four bytes from `at` on is weight i's.
#[inline(always)]
unsafe fn with_fifth_bits<B: Block32>(weights: __m512i, blocks: &[u8], at: usize) -> __m512i {
    let bits = |b: usize| u64::from(u32::from_le_bytes(cell(blocks, b * B::BYTES + at)));
    // SAFETY: the caller has AVX-512 BW.
    unsafe { _mm512_mask_add_epi8(weights, bits(0) | bits(1) << 32, weights, _mm512_set1_epi8(16)) }
}

/// The levels that the nibbles from byte `at` on of two blocks name.
#[inline(always)]
unsafe fn looked_up<B: Block32>(blocks: &[u8], at: usize, levels: [i8; 16]) -> __m512i {
    // SAFETY: the caller has AVX-512 BW; 16 levels.
    unsafe {
        let levels = _mm512_broadcast_i32x4(_mm_loadu_si128(levels.as_ptr().cast()));
        _mm512_shuffle_epi8(levels, nibbles::<B>(blocks, at))
    }
}

/// Implements [`Wide64`]: what `$weights` makes of two blocks.
macro_rules! wide64 {
    ($name:ident, $blocks:ident, $weights:expr) => {
        impl Wide64 for $name {
            #[inline(always)]
            unsafe fn two($blocks: &[u8]) -> __m512i {
                // SAFETY: the caller has AVX-512.
                unsafe { $weights }
            }
        }
    };
}

wide64!(WideQ4_0, blocks, nibbles::<Q4_0>(blocks, 2));
wide64!(WideQ4_1, blocks, nibbles::<Q4_1>(blocks, 4));
wide64!(WideQ5_0, blocks, with_fifth_bits::<Q5_0>(nibbles::<Q5_0>(blocks, 6), blocks, 2));
wide64!(WideQ5_1, blocks, with_fifth_bits::<Q5_1>(nibbles::<Q5_1>(blocks, 8), blocks, 4));
wide64!(WideQ8_0, blocks, join(load(&cell(blocks, 2)), load(&cell(blocks, Q8_0::BYTES + 2))));
wide64!(WideIq4Nl, blocks, looked_up::<Iq4Nl>(blocks, 2, NONLINEAR));
wide64!(WideMxfp4, blocks, looked_up::<Mxfp4>(blocks, 1, DOUBLED_E2M1));
