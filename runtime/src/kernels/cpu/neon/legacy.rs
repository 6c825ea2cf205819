//! The 32 formats in registers. Layouts: see `cpu::legacy`, whose integers these are.

use std::arch::aarch64::*;
use std::marker::PhantomData;

use super::super::blocks::{Block32, cell};
use super::super::legacy::{DOUBLED_E2M1, Iq4Nl, Mxfp4, NONLINEAR, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, half_e8m0};
use super::{Wide32, halves, load, nibbles};

/// The half floats at byte `at` of four blocks.
#[inline(always)]
unsafe fn halves_at<B: Block32>(blocks: &[u8], at: usize) -> float32x4_t {
    let bits: [u16; 4] = std::array::from_fn(|b| u16::from_le_bytes(cell(blocks, b * B::BYTES + at)));
    // SAFETY: four numbers are there.
    unsafe { halves(vld1_u16(bits.as_ptr())) }
}

/// The levels that the low halves of 16 bytes name, then the high ones.
#[inline(always)]
pub(super) unsafe fn levels(bits: uint8x16_t, levels: &[i8; 16]) -> [int8x16_t; 2] {
    // SAFETY: 16 levels are there.
    unsafe {
        let levels = vld1q_s8(levels.as_ptr());
        let [low, high] = nibbles(bits);
        [vqtbl1q_s8(levels, low), vqtbl1q_s8(levels, high)]
    }
}

/// Bits 0-15 and 16-31 of four bytes as 16 in their byte, or 0.
#[inline(always)]
unsafe fn fifth_bits(bits: [u8; 4]) -> [uint8x16_t; 2] {
    // SAFETY: NEON is a part of aarch64.
    unsafe {
        let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
        let spread = |low, high| {
            let copies = vcombine_u8(vdup_n_u8(low), vdup_n_u8(high));
            vandq_u8(vtstq_u8(copies, bit), vdupq_n_u8(16))
        };
        [spread(bits[0], bits[1]), spread(bits[2], bits[3])]
    }
}

/// A format whose block is scale, maybe minimum, maybe (`FIFTH`) fifth bits, then 16 bytes of nibbles.
pub(in crate::kernels) struct Nibbles<B, const FIFTH: bool>(PhantomData<B>);

/// [`Q4_0`].
pub(in crate::kernels) type WideQ4_0 = Nibbles<Q4_0, false>;
/// [`Q4_1`].
pub(in crate::kernels) type WideQ4_1 = Nibbles<Q4_1, false>;
/// [`Q5_0`].
pub(in crate::kernels) type WideQ5_0 = Nibbles<Q5_0, true>;
/// [`Q5_1`].
pub(in crate::kernels) type WideQ5_1 = Nibbles<Q5_1, true>;

impl<B: Block32, const FIFTH: bool> Wide32 for Nibbles<B, FIFTH> {
    type Block = B;

    #[inline(always)]
    unsafe fn weights(block: &[u8]) -> [int8x16_t; 2] {
        // SAFETY: loads check their bounds.
        unsafe {
            let [mut low, mut high] = nibbles(load(block, B::BYTES - 16));
            if FIFTH {
                let fifth = fifth_bits(cell(block, B::BYTES - 20));
                (low, high) = (vorrq_u8(low, fifth[0]), vorrq_u8(high, fifth[1]));
            }
            [vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high)]
        }
    }

    #[inline(always)]
    unsafe fn scales(blocks: &[u8]) -> float32x4_t {
        // SAFETY: loads check their bounds.
        unsafe { halves_at::<B>(blocks, 0) }
    }

    #[inline(always)]
    unsafe fn mins(blocks: &[u8]) -> float32x4_t {
        // SAFETY: loads check their bounds.
        unsafe { if B::HAS_MIN { halves_at::<B>(blocks, 2) } else { vdupq_n_f32(0.0) } }
    }
}

/// [`Q8_0`].
pub(in crate::kernels) struct WideQ8_0;

impl Wide32 for WideQ8_0 {
    type Block = Q8_0;

    #[inline(always)]
    unsafe fn weights(block: &[u8]) -> [int8x16_t; 2] {
        // SAFETY: loads check their bounds.
        unsafe { [vreinterpretq_s8_u8(load(block, 2)), vreinterpretq_s8_u8(load(block, 18))] }
    }

    #[inline(always)]
    unsafe fn scales(blocks: &[u8]) -> float32x4_t {
        // SAFETY: loads check their bounds.
        unsafe { halves_at::<Q8_0>(blocks, 0) }
    }
}

/// [`Iq4Nl`].
pub(in crate::kernels) struct WideIq4Nl;

impl Wide32 for WideIq4Nl {
    type Block = Iq4Nl;

    #[inline(always)]
    unsafe fn weights(block: &[u8]) -> [int8x16_t; 2] {
        // SAFETY: loads check their bounds.
        unsafe { levels(load(block, 2), &NONLINEAR) }
    }

    #[inline(always)]
    unsafe fn scales(blocks: &[u8]) -> float32x4_t {
        // SAFETY: loads check their bounds.
        unsafe { halves_at::<Iq4Nl>(blocks, 0) }
    }
}

/// [`Mxfp4`].
pub(in crate::kernels) struct WideMxfp4;

impl Wide32 for WideMxfp4 {
    type Block = Mxfp4;

    #[inline(always)]
    unsafe fn weights(block: &[u8]) -> [int8x16_t; 2] {
        // SAFETY: loads check their bounds.
        unsafe { levels(load(block, 1), &DOUBLED_E2M1) }
    }

    #[inline(always)]
    unsafe fn scales(blocks: &[u8]) -> float32x4_t {
        let scales: [f32; 4] = std::array::from_fn(|b| half_e8m0(blocks[b * Mxfp4::BYTES]));
        // SAFETY: four numbers are there.
        unsafe { vld1q_f32(scales.as_ptr()) }
    }
}
