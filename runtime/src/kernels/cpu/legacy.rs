//! The formats of 32 weights a block: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4.
//!
//! Layouts are facts of the GGUF format (ggml's `ggml-common.h`); each is compared with python's `gguf`
//! package (`tests/fixtures/blocks`). Owns nothing but the reading of bytes.

use super::blocks::{Block32, cell, half_at};

/// d (f16), 32 weights of 4 bits: the low halves of 16 bytes, then the high ones.
pub(in crate::kernels) struct Q4_0;

impl Block32 for Q4_0 {
    const BYTES: usize = 18;
    const OFFSET: i32 = 8;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8; 32]) -> (f32, f32) {
        nibbles(cell(block, 2), q);
        (half_at(block, 0), 0.0)
    }
}

/// d, m (f16), weights as in Q4_0.
pub(in crate::kernels) struct Q4_1;

impl Block32 for Q4_1 {
    const BYTES: usize = 20;
    const HAS_MIN: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8; 32]) -> (f32, f32) {
        nibbles(cell(block, 4), q);
        (half_at(block, 0), half_at(block, 2))
    }
}

/// d (f16), the fifth bit of weight i as bit i of a u32, the low 4 bits as in Q4_0.
pub(in crate::kernels) struct Q5_0;

impl Block32 for Q5_0 {
    const BYTES: usize = 22;
    const OFFSET: i32 = 16;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8; 32]) -> (f32, f32) {
        nibbles(cell(block, 6), q);
        fifth_bits(cell(block, 2), q);
        (half_at(block, 0), 0.0)
    }
}

/// d, m (f16), weights as in Q5_0.
pub(in crate::kernels) struct Q5_1;

impl Block32 for Q5_1 {
    const BYTES: usize = 24;
    const HAS_MIN: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8; 32]) -> (f32, f32) {
        nibbles(cell(block, 8), q);
        fifth_bits(cell(block, 4), q);
        (half_at(block, 0), half_at(block, 2))
    }
}

/// d (f16), 32 signed bytes; quantizers write no -128, files may.
pub(in crate::kernels) struct Q8_0;

impl Block32 for Q8_0 {
    const BYTES: usize = 34;
    const IS_SIGNED: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8; 32]) -> (f32, f32) {
        for (q, byte) in q.iter_mut().zip(cell::<32>(block, 2)) {
            *q = byte.cast_signed();
        }
        (half_at(block, 0), 0.0)
    }
}

/// d (f16), 32 indices into [`NONLINEAR`], packed as in Q4_0.
pub(in crate::kernels) struct Iq4Nl;

impl Block32 for Iq4Nl {
    const BYTES: usize = 18;
    const IS_SIGNED: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8; 32]) -> (f32, f32) {
        levels(cell(block, 2), &NONLINEAR, q);
        (half_at(block, 0), 0.0)
    }
}

/// The power of two (E8M0, one byte), 32 floats of 4 bits (E2M1) packed as in Q4_0. Stored integers are
/// the floats doubled, so d is half the power of two.
pub(in crate::kernels) struct Mxfp4;

impl Block32 for Mxfp4 {
    const BYTES: usize = 17;
    const IS_SIGNED: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8; 32]) -> (f32, f32) {
        levels(cell(block, 1), &DOUBLED_E2M1, q);
        (half_e8m0(block[0]), 0.0)
    }
}

/// The low halves of 16 bytes, then the high halves.
#[inline(always)]
fn nibbles(bytes: [u8; 16], q: &mut [i8; 32]) {
    for (i, byte) in bytes.into_iter().enumerate() {
        q[i] = (byte & 15).cast_signed();
        q[i + 16] = (byte >> 4).cast_signed();
    }
}

/// The levels that 32 indices packed as in Q4_0 name.
#[inline(always)]
pub(super) fn levels(indices: [u8; 16], levels: &[i8; 16], q: &mut [i8; 32]) {
    nibbles(indices, q);
    for q in q {
        *q = level(*q, levels);
    }
}

/// `levels[index]`, chosen bit by bit: unlike a look-up, compilers do this for many weights at once.
#[inline(always)]
fn level(index: i8, levels: &[i8; 16]) -> i8 {
    let mut left = *levels;
    let mut bit = 0;
    while bit < 4 {
        let mask = -(index >> bit & 1);
        let mut i = 0;
        while i < 8 >> bit {
            left[i] = left[2 * i] ^ mask & (left[2 * i] ^ left[2 * i + 1]);
            i += 1;
        }
        bit += 1;
    }
    left[0]
}

/// Adds 16 to the weights whose bit is set.
#[inline(always)]
fn fifth_bits(bits: [u8; 4], q: &mut [i8; 32]) {
    for (i, q) in q.iter_mut().enumerate() {
        *q |= (bits[i / 8] >> (i % 8) << 4 & 16).cast_signed();
    }
}

/// The 16 levels of IQ4_NL and IQ4_XS.
pub(in crate::kernels) const NONLINEAR: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the floats of sign bit 8, exponent bits 6 and mantissa bit 1.
pub(super) const DOUBLED_E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// 2^(e - 128). The two smallest are below f32's normal range; 255 (a NaN by the standard) is a power of
/// two to ggml, and so here.
#[inline(always)]
pub(super) fn half_e8m0(e: u8) -> f32 {
    let e = u32::from(e);
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 })
}
