//! The K-quants: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K.
//!
//! Layouts are facts of the GGUF format (ggml's `ggml-common.h`); each is compared with python's `gguf`
//! package (`tests/fixtures/blocks`). Owns nothing but the reading of bytes. Weights lie in planes: 32
//! bytes hold some bits of 32 neighbours, then of the next 32 above them.

use super::blocks::{Block256, Unpacked256, cell, half_at};

/// 16 scales and minima of 4 bits (one byte each, the scale low), 256 weights of 2 bits: every 32 bytes
/// hold 128 weights; d, dmin (f16).
pub(in crate::kernels) struct Q2K;

impl Block256 for Q2K {
    const BYTES: usize = 84;
    const HAS_MINS: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Unpacked256) {
        let block = &block[..Self::BYTES];
        (out.d, out.d_min) = (half_at(block, 80), half_at(block, 82));
        for (i, byte) in cell::<16>(block, 0).into_iter().enumerate() {
            out.scales[i] = i16::from(byte & 15);
            out.mins[i] = i16::from(byte >> 4);
        }
        low_pairs(cell(block, 16), &mut out.q);
    }
}

/// The third bits (32 bytes: bit j of byte i is weight 32 j + i's), the low 2 bits as in Q2_K, 16 scales of
/// 6 bits in 12 bytes, d (f16).
pub(in crate::kernels) struct Q3K;

impl Block256 for Q3K {
    const BYTES: usize = 110;
    const OFFSET: i32 = 4;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Unpacked256) {
        let block = &block[..Self::BYTES];
        (out.d, out.d_min) = (half_at(block, 108), 0.0);
        out.scales = q3_scales(cell(block, 96));
        out.mins = [0; 16];
        low_pairs(cell(block, 32), &mut out.q);
        high_bits(cell(block, 0), 2, &mut out.q);
    }
}

/// d, dmin (f16), 8 scales and 8 minima of 6 bits in 12 bytes, 256 weights of 4 bits: every 32 bytes
/// hold 64 weights, the low halves first.
pub(in crate::kernels) struct Q4K;

impl Block256 for Q4K {
    const BYTES: usize = 144;
    const HAS_MINS: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Unpacked256) {
        let block = &block[..Self::BYTES];
        (out.d, out.d_min) = (half_at(block, 0), half_at(block, 2));
        scales_and_mins(cell(block, 4), out);
        nibble_planes::<32>(cell(block, 16), &mut out.q);
    }
}

/// d, dmin, scales and minima as in Q4_K, the fifth bits as Q3_K's third ones, the low 4 bits as in Q4_K.
pub(in crate::kernels) struct Q5K;

impl Block256 for Q5K {
    const BYTES: usize = 176;
    const HAS_MINS: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Unpacked256) {
        let block = &block[..Self::BYTES];
        (out.d, out.d_min) = (half_at(block, 0), half_at(block, 2));
        scales_and_mins(cell(block, 4), out);
        nibble_planes::<32>(cell(block, 48), &mut out.q);
        high_bits(cell(block, 16), 4, &mut out.q);
    }
}

/// The low 4 bits (every 64 bytes hold 128 weights, the low halves first), the high 2 bits as Q2_K's
/// weights, 16 signed scales of 8 bits, d (f16).
pub(in crate::kernels) struct Q6K;

impl Block256 for Q6K {
    const BYTES: usize = 210;
    const OFFSET: i32 = 32;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Unpacked256) {
        let block = &block[..Self::BYTES];
        (out.d, out.d_min) = (half_at(block, 208), 0.0);
        out.scales = cell::<16>(block, 192).map(|scale| i16::from(scale.cast_signed()));
        out.mins = [0; 16];
        let mut high = [0; 256];
        low_pairs(cell(block, 128), &mut high);
        nibble_planes::<64>(cell(block, 0), &mut out.q);
        for (q, high) in out.q.iter_mut().zip(high) {
            *q |= high << 4;
        }
    }
}

/// Weights of 2 bits: of every 32 bytes the lowest bits of all, then the next.
#[inline(always)]
fn low_pairs(bytes: [u8; 64], q: &mut [i8; 256]) {
    for (q, bytes) in q.as_chunks_mut::<128>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
        for (plane, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (q, byte) in q.iter_mut().zip(bytes) {
                *q = (byte >> (2 * plane) & 3).cast_signed();
            }
        }
    }
}

/// Weights of 4 bits: of every `RUN` bytes the low halves, then the high ones.
#[inline(always)]
fn nibble_planes<const RUN: usize>(bytes: [u8; 128], q: &mut [i8; 256]) {
    for (q, bytes) in q.chunks_exact_mut(2 * RUN).zip(bytes.as_chunks::<RUN>().0) {
        let (low, high) = q.split_at_mut(RUN);
        for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
            *low = (byte & 15).cast_signed();
            *high = (byte >> 4).cast_signed();
        }
    }
}

/// Bit j of byte i, set at bit `place` of weight 32 j + i.
#[inline(always)]
fn high_bits(bytes: [u8; 32], place: u32, q: &mut [i8; 256]) {
    for (plane, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (q, byte) in q.iter_mut().zip(bytes) {
            *q |= ((byte >> plane & 1) << place).cast_signed();
        }
    }
}

/// The scales of Q3_K, stored 32 too large: the low 4 bits of scales 0-7 and 8-15 are the halves of bytes
/// 0-7, the high 2 bits of scales i, i + 4, i + 8, i + 12 are byte 8 + i, from below.
#[inline(always)]
fn q3_scales(packed: [u8; 12]) -> [i16; 16] {
    std::array::from_fn(|i| {
        let low = packed[i % 8] >> (4 * (i / 8)) & 15;
        let high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
        i16::from(low | high << 4) - 32
    })
}

/// The 6-bit scales and minima of Q4_K and Q5_K: the first four of each in the low 6 bits of bytes 0-3
/// and 4-7; of the others the low 4 bits in bytes 8-11, the high 2 on top of the first eight bytes.
#[inline(always)]
pub(in crate::kernels) fn six_bits(packed: [u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for i in 0..4 {
        scales[i] = packed[i] & 63;
        mins[i] = packed[i + 4] & 63;
        scales[i + 4] = packed[i + 8] & 15 | packed[i] >> 6 << 4;
        mins[i + 4] = packed[i + 8] >> 4 | packed[i + 4] >> 6 << 4;
    }
    (scales, mins)
}

#[inline(always)]
fn scales_and_mins(packed: [u8; 12], out: &mut Unpacked256) {
    let (scales, mins) = six_bits(packed);
    for i in 0..16 {
        out.scales[i] = i16::from(scales[i / 2]);
        out.mins[i] = i16::from(mins[i / 2]);
    }
}
