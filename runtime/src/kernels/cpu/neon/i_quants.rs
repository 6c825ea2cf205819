//! IQ4_XS in registers; the other I-quants are looked up by their plain unpackers. Layout: see
//! `cpu::i_quants`, whose integers these are.

use std::arch::aarch64::*;

use super::super::blocks::{Unpacked256, cell, half_at};
use super::super::i_quants::Iq4Xs;
use super::super::legacy::NONLINEAR;
use super::legacy::levels;
use super::{Head, Wide256, load, twice};

/// Where the high bits of scale `i` have to go: from bit `2 i` to bit 4.
static UP: [i16; 8] = [4, 2, 0, -2, -4, -6, -8, -10];

/// [`Iq4Xs`].
pub(in crate::kernels) struct WideIq4Xs;

impl Wide256 for WideIq4Xs {
    type Block = Iq4Xs;

    #[inline(always)]
    unsafe fn head(block: &[u8], _: &mut Unpacked256) -> Head {
        let (high, low) = (u16::from_le_bytes(cell(block, 2)), u32::from_le_bytes(cell(block, 4)));
        // SAFETY: NEON is a part of aarch64; eight numbers are there.
        unsafe {
            let low = vcreate_u8(low.into());
            let low = vmovl_u8(vzip1_u8(vand_u8(low, vdup_n_u8(15)), vshr_n_u8::<4>(low)));
            let high = vandq_u16(vshlq_u16(vdupq_n_u16(high), vld1q_s16(UP.as_ptr())), vdupq_n_u16(0x30));
            let scales = vsubq_s16(vreinterpretq_s16_u16(vorrq_u16(low, high)), vdupq_n_s16(32));
            Head { scales: twice(scales), mins: [vdupq_n_s16(0); 2], d: half_at(block, 0), d_min: 0.0 }
        }
    }

    #[inline(always)]
    unsafe fn half(block: &[u8], _: &Unpacked256, half: usize) -> [int8x16_t; 8] {
        // SAFETY: loads check their bounds.
        unsafe {
            let [a, b] = levels(load(block, 8 + 64 * half), &NONLINEAR);
            let [c, d] = levels(load(block, 24 + 64 * half), &NONLINEAR);
            let [e, f] = levels(load(block, 40 + 64 * half), &NONLINEAR);
            let [g, h] = levels(load(block, 56 + 64 * half), &NONLINEAR);
            [a, b, c, d, e, f, g, h]
        }
    }
}
