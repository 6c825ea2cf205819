//! Exact products of signed bytes, with and without the instruction for them.
//!
//! Owns what differs between aarch64 processors. Must not know formats.

use std::arch::aarch64::*;
use std::arch::asm;

/// How bytes are multiplied. Weights are any bytes, activations -127..=127.
pub(in crate::kernels) trait Dot {
    /// The sum of every four products in their lane.
    ///
    /// # Safety
    /// The processor has the instructions of this type.
    unsafe fn fours(w: int8x16_t, x: int8x16_t) -> int32x4_t;

    /// 32 products summed in four parts of any kind.
    ///
    /// # Safety
    /// As [`Dot::fours`].
    unsafe fn any_order(w: [int8x16_t; 2], x: [int8x16_t; 2]) -> int32x4_t;
}

/// By widening multiplications, which every aarch64 has.
pub(in crate::kernels) struct Widening;

impl Dot for Widening {
    #[inline(always)]
    unsafe fn fours(w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: NEON is a part of aarch64. Two products are at most 2 * 128 * 127 < 2^15.
        unsafe {
            let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
            vpaddlq_s16(vpaddq_s16(low, vmull_high_s8(w, x)))
        }
    }

    #[inline(always)]
    unsafe fn any_order(w: [int8x16_t; 2], x: [int8x16_t; 2]) -> int32x4_t {
        // SAFETY: as above.
        unsafe {
            let low = vmull_s8(vget_low_s8(w[0]), vget_low_s8(x[0]));
            let low = vmlal_s8(low, vget_low_s8(w[1]), vget_low_s8(x[1]));
            let high = vmlal_high_s8(vmull_high_s8(w[0], x[0]), w[1], x[1]);
            vpadalq_s16(vpaddlq_s16(low), high)
        }
    }
}

/// By SDOT (FEAT_DotProd: nearly all from 2018 on).
pub(in crate::kernels) struct DotProd;

impl Dot for DotProd {
    #[inline(always)]
    unsafe fn fours(w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the caller has the instruction; NEON is a part of aarch64.
        unsafe { sdot(vdupq_n_s32(0), w, x) }
    }

    #[inline(always)]
    unsafe fn any_order(w: [int8x16_t; 2], x: [int8x16_t; 2]) -> int32x4_t {
        // SAFETY: as above.
        unsafe { sdot(sdot(vdupq_n_s32(0), w[0], x[0]), w[1], x[1]) }
    }
}

/// `vdotq_s32`, which is not stable (rust-lang/rust#117224). The directive lets the assembler, not the
/// compiler, know the instruction, so that this is inlined into functions compiled for any aarch64.
#[inline(always)]
unsafe fn sdot(mut acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: registers only; the caller has the instruction.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {acc:v}.4s, {w:v}.16b, {x:v}.16b",
            acc = inout(vreg) acc,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}
