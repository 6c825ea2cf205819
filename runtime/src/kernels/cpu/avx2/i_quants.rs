//! The I-quant without a codebook in registers. Layout: see `cpu::i_quants`, whose integers these are.

use std::arch::x86_64::*;

use super::super::blocks::{Unpacked256, cell};
use super::super::i_quants::Iq4Xs;
use super::super::legacy::NONLINEAR;
use super::legacy::looked_up;
use super::{Head, Wide256, half_float};

/// [`Iq4Xs`].
pub(in crate::kernels) struct WideIq4Xs;

impl Wide256 for WideIq4Xs {
    type Block = Iq4Xs;

    #[inline(always)]
    unsafe fn head(block: &[u8], _: &mut Unpacked256) -> Head {
        // SAFETY: the caller has AVX2 and F16C.
        unsafe {
            let low = spread::<4>(u32::from_le_bytes(cell(block, 4)));
            let high = spread::<2>(u16::from_le_bytes(cell(block, 2)).into());
            let scales = _mm_cvtsi64_si128((low | high << 4).cast_signed());
            let scales = _mm_cvtepi8_epi16(_mm_sub_epi8(scales, _mm_set1_epi8(32)));
            Head {
                scales: _mm256_broadcastsi128_si256(scales),
                natural: _mm256_setzero_si256(),
                mins: _mm256_setzero_si256(),
                d: half_float(block, 0),
                d_min: 0.0,
            }
        }
    }

    #[inline(always)]
    unsafe fn half(block: &[u8], _: &Unpacked256, half: usize) -> [__m256i; 4] {
        // SAFETY: the caller has AVX2.
        unsafe {
            let mut w = [_mm256_setzero_si256(); 4];
            for (k, w) in w.iter_mut().enumerate() {
                *w = looked_up(&cell(block, 8 + 64 * half + 16 * k), NONLINEAR);
            }
            w
        }
    }
}

/// Eight numbers of `BITS` bits, a byte each.
#[inline(always)]
fn spread<const BITS: u32>(packed: u32) -> u64 {
    let mut spread = u64::from(packed);
    let mut together = 4;
    while together > 0 {
        // Of every 16 bytes' worth, the upper half of the numbers moves to the upper half of the bytes.
        let numbers = (1u64 << (together * BITS)) - 1;
        let mask = u64::MAX / ((1u64 << (8 * together)) - 1) * numbers;
        spread = (spread | spread << (together * (8 - BITS))) & mask;
        together /= 2;
    }
    spread
}
