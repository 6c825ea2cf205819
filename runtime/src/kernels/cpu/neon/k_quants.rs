//! K-quants in registers. Layouts: see `cpu::k_quants`, whose integers these are.

use std::arch::aarch64::*;

use super::super::blocks::{Unpacked256, cell, half_at};
use super::super::k_quants::{Q2K, Q3K, Q4K, Q5K, Q6K};
use super::{Head, Wide256, load, nibbles, twice};

/// Unsigned bytes as 16-bit numbers.
#[inline(always)]
unsafe fn widen(bytes: uint8x16_t) -> [int16x8_t; 2] {
    // SAFETY: NEON is a part of aarch64.
    unsafe {
        let low = vmovl_u8(vget_low_u8(bytes));
        [vreinterpretq_s16_u16(low), vreinterpretq_s16_u16(vmovl_high_u8(bytes))]
    }
}

/// Signed bytes as 16-bit numbers.
#[inline(always)]
unsafe fn widen_signed(bytes: int8x16_t) -> [int16x8_t; 2] {
    // SAFETY: NEON is a part of aarch64.
    unsafe { [vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)] }
}

#[inline(always)]
unsafe fn none() -> [int16x8_t; 2] {
    // SAFETY: NEON is a part of aarch64.
    unsafe { [vdupq_n_s16(0); 2] }
}

/// Bits of every byte: moved up by `up` (down where negative), then masked.
#[inline(always)]
unsafe fn field(bytes: uint8x16_t, up: i8, mask: u8) -> uint8x16_t {
    // SAFETY: NEON is a part of aarch64.
    unsafe {
        let moved = if up == 0 { bytes } else { vshlq_u8(bytes, vdupq_n_s8(up)) };
        vandq_u8(moved, vdupq_n_u8(mask))
    }
}

/// Half a block made of eight vectors.
#[inline(always)]
unsafe fn stored(mut vector: impl FnMut(usize) -> uint8x16_t) -> [int8x16_t; 8] {
    // SAFETY: NEON is a part of aarch64.
    std::array::from_fn(|i| unsafe { vreinterpretq_s8_u8(vector(i)) })
}

/// Half a block's weights of 4 bits from byte `at` on: of every 32 bytes the low halves, then the high ones.
#[inline(always)]
unsafe fn nibble_planes(block: &[u8], at: usize) -> [uint8x16_t; 8] {
    // SAFETY: loads check their bounds.
    unsafe {
        let [a, c] = nibbles(load(block, at));
        let [b, d] = nibbles(load(block, at + 16));
        let [e, g] = nibbles(load(block, at + 32));
        let [f, h] = nibbles(load(block, at + 48));
        [a, b, c, d, e, f, g, h]
    }
}

/// The 32 bytes at byte `at`.
#[inline(always)]
unsafe fn load_pair(block: &[u8], at: usize) -> [uint8x16_t; 2] {
    // SAFETY: loads check their bounds.
    unsafe { [load(block, at), load(block, at + 16)] }
}

/// Head of Q4_K and Q5_K: 6-bit scales and minima of groups of 32, packed as `k_quants::six_bits` says.
#[inline(always)]
unsafe fn six_bit_head(block: &[u8]) -> Head {
    let word = |at| u32::from_le_bytes(cell(block, at));
    let (a, b, c) = (word(4), word(8), word(12));
    let high = |x: u32| ((x >> 6) & 0x0303_0303) << 4;
    let pair = |low: u32, high: u32| u64::from(low & 0x3f3f_3f3f) | u64::from(high) << 32;
    let scales = pair(a, (c & 0x0f0f_0f0f) | high(a));
    let mins = pair(b, ((c >> 4) & 0x0f0f_0f0f) | high(b));
    // SAFETY: NEON is a part of aarch64.
    unsafe {
        let numbers = |bytes: u64| twice(vreinterpretq_s16_u16(vmovl_u8(vcreate_u8(bytes))));
        Head { scales: numbers(scales), mins: numbers(mins), d: half_at(block, 0), d_min: half_at(block, 2) }
    }
}

/// [`Q2K`].
pub(in crate::kernels) struct WideQ2K;

impl Wide256 for WideQ2K {
    type Block = Q2K;

    #[inline(always)]
    unsafe fn head(block: &[u8], _: &mut Unpacked256) -> Head {
        // SAFETY: loads check their bounds.
        unsafe {
            let [scales, mins] = nibbles(load(block, 0));
            Head {
                scales: widen(scales),
                mins: widen(mins),
                d: half_at(block, 80),
                d_min: half_at(block, 82),
            }
        }
    }

    #[inline(always)]
    unsafe fn half(block: &[u8], _: &Unpacked256, half: usize) -> [int8x16_t; 8] {
        // SAFETY: loads check their bounds.
        unsafe {
            let bits = load_pair(block, 16 + 32 * half);
            stored(|i| field(bits[i % 2], -2 * (i / 2) as i8, 3))
        }
    }
}

/// [`Q3K`].
pub(in crate::kernels) struct WideQ3K;

impl Wide256 for WideQ3K {
    type Block = Q3K;

    #[inline(always)]
    unsafe fn head(block: &[u8], _: &mut Unpacked256) -> Head {
        let word = |at| u32::from_le_bytes(cell(block, at));
        let (a, b, high) = (word(96), word(100), word(104));
        let scale = |low: u32, shift: u32| (low & 0x0f0f_0f0f) | ((high >> shift) & 0x0303_0303) << 4;
        let scales = [scale(a, 0), scale(b, 2), scale(a >> 4, 4), scale(b >> 4, 6)];
        // SAFETY: 16 bytes are there.
        unsafe {
            let scales = vreinterpretq_s8_u32(vld1q_u32(scales.as_ptr()));
            let scales = widen_signed(vsubq_s8(scales, vdupq_n_s8(32)));
            Head { scales, mins: none(), d: half_at(block, 108), d_min: 0.0 }
        }
    }

    #[inline(always)]
    unsafe fn half(block: &[u8], _: &Unpacked256, half: usize) -> [int8x16_t; 8] {
        // SAFETY: loads check their bounds.
        unsafe {
            let (low, third) = (load_pair(block, 32 + 32 * half), load_pair(block, 0));
            stored(|i| {
                let k = (i / 2) as i8;
                vorrq_u8(field(low[i % 2], -2 * k, 3), field(third[i % 2], 2 - 4 * half as i8 - k, 4))
            })
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
    unsafe fn half(block: &[u8], _: &Unpacked256, half: usize) -> [int8x16_t; 8] {
        // SAFETY: handed down.
        unsafe {
            let low = nibble_planes(block, 16 + 64 * half);
            stored(|i| low[i])
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
    unsafe fn half(block: &[u8], _: &Unpacked256, half: usize) -> [int8x16_t; 8] {
        // SAFETY: loads check their bounds.
        unsafe {
            let (low, fifth) = (nibble_planes(block, 48 + 64 * half), load_pair(block, 16));
            stored(|i| vorrq_u8(low[i], field(fifth[i % 2], 4 - 4 * half as i8 - (i / 2) as i8, 16)))
        }
    }
}

/// [`Q6K`].
pub(in crate::kernels) struct WideQ6K;

impl Wide256 for WideQ6K {
    type Block = Q6K;

    #[inline(always)]
    unsafe fn head(block: &[u8], _: &mut Unpacked256) -> Head {
        // SAFETY: loads check their bounds.
        unsafe {
            let scales = widen_signed(vreinterpretq_s8_u8(load(block, 192)));
            Head { scales, mins: none(), d: half_at(block, 208), d_min: 0.0 }
        }
    }

    #[inline(always)]
    unsafe fn half(block: &[u8], _: &Unpacked256, half: usize) -> [int8x16_t; 8] {
        // SAFETY: loads check their bounds.
        unsafe {
            let low: [_; 4] = std::array::from_fn(|i| nibbles(load(block, 64 * half + 16 * i)));
            let high = load_pair(block, 128 + 32 * half);
            stored(|i| vorrq_u8(low[i % 4][i / 4], field(high[i % 2], 4 - 2 * (i / 2) as i8, 0x30)))
        }
    }
}
