//! The I-quants of 256 weights a block: IQ4_XS, IQ3_XXS, IQ3_S, IQ2_XXS, IQ2_XS, IQ2_S, IQ1_S, IQ1_M.
//!
//! Layouts are facts of the GGUF format (ggml's `ggml-common.h`); each is compared with python's `gguf`
//! package (`tests/fixtures/blocks`). But for IQ4_XS a block names rows of a codebook (`codebooks`) and
//! signs. Rows and sign masks are looked up whole and joined 32 weights at a time without a branch, since
//! the vector kernels multiply what is unpacked here. Float scales take the fixed powers of two, so that
//! the scales of 16 weights are integers. Owns nothing but the reading of bytes.

use super::blocks::{Block256, Unpacked256, cell, half_at};
use super::codebooks::{
    IQ1, IQ1_LEVELS, IQ2_S, IQ2_S_LEVELS, IQ2_XS, IQ2_XS_LEVELS, IQ2_XXS, IQ2_XXS_LEVELS, IQ3_S,
    IQ3_S_LEVELS, IQ3_XXS, IQ3_XXS_LEVELS,
};
use super::legacy::{NONLINEAR, levels};

/// d (f16), 8 scales of 6 bits (the high 2 bits of scale i at bit 2 i of a u16, then the low 4 bits, two a
/// byte), 256 indices into `NONLINEAR` of 4 bits: every 16 bytes as in Q4_0.
pub(in crate::kernels) struct Iq4Xs;

impl Block256 for Iq4Xs {
    const BYTES: usize = 136;
    const IS_SIGNED: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Unpacked256) {
        let block = &block[..Self::BYTES];
        clear_mins(out);
        out.d = half_at(block, 0);
        let (high, low) = (u16::from_le_bytes(cell(block, 2)), cell::<4>(block, 4));
        set_scales(out, |i| (nibble(&low, i) | (high >> (2 * i) & 3) << 4).cast_signed() - 32);
        for (q, bytes) in out.q.as_chunks_mut::<32>().0.iter_mut().zip(block[8..].as_chunks::<16>().0) {
            levels(*bytes, &NONLINEAR, q);
        }
    }
}

/// d (f16), 64 row numbers of 8 bits, for every 32 weights a u32 of four 7-bit sign sets and a scale.
pub(in crate::kernels) struct Iq3Xxs;

impl Block256 for Iq3Xxs {
    const BYTES: usize = 98;
    const IS_SIGNED: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Unpacked256) {
        let block = &block[..Self::BYTES];
        clear_mins(out);
        out.d = half_at(block, 0) / 4.0;
        let rows: [u8; 64] = cell(block, 2);
        let signs: [u32; 8] = words(block, 66);
        set_scales(out, |i| odd(signs[i] >> 28));
        for (j, q) in out.q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let row = |i: usize| u64::from(IQ3_XXS_ROWS[usize::from(rows[8 * j + i])]);
            let pairs = std::array::from_fn(|i| row(2 * i) | row(2 * i + 1) << 32);
            *q = signed(pairs, even_signs(signs[j]));
        }
    }
}

/// d (f16), the low 8 bits of 64 row numbers, their ninth bits, 256 signs, 8 scales of 4 bits.
pub(in crate::kernels) struct Iq3S;

impl Block256 for Iq3S {
    const BYTES: usize = 110;
    const IS_SIGNED: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Unpacked256) {
        let block = &block[..Self::BYTES];
        clear_mins(out);
        out.d = half_at(block, 0);
        let (low, high): ([u8; 64], [u8; 8]) = (cell(block, 2), cell(block, 66));
        let (signs, scales): ([u8; 32], [u8; 4]) = (cell(block, 74), cell(block, 106));
        set_scales(out, |i| odd(nibble(&scales, i).into()));
        for (j, q) in out.q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let high = usize::from(high[j]) << 8;
            let row = |i: usize| u64::from(IQ3_S_ROWS[usize::from(low[8 * j + i]) | high >> i & 0x100]);
            let pairs = std::array::from_fn(|i| row(2 * i) | row(2 * i + 1) << 32);
            *q = signed(pairs, std::array::from_fn(|i| SIGNS[usize::from(signs[4 * j + i])]));
        }
    }
}

/// d (f16), for every 32 weights four row numbers of 8 bits and a u32 as IQ3_XXS has it.
pub(in crate::kernels) struct Iq2Xxs;

impl Block256 for Iq2Xxs {
    const BYTES: usize = 66;
    const IS_SIGNED: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Unpacked256) {
        let block = &block[..Self::BYTES];
        clear_mins(out);
        out.d = half_at(block, 0) / 8.0;
        let words: [u32; 16] = words(block, 2);
        set_scales(out, |i| odd(words[2 * i + 1] >> 28));
        for (j, q) in out.q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let rows = words[2 * j].to_le_bytes().map(|row| IQ2_XXS_ROWS[usize::from(row)]);
            *q = signed(rows, even_signs(words[2 * j + 1]));
        }
    }
}

/// d (f16), 32 u16 of a row number (9 bits) and a 7-bit sign set, 16 scales of 4 bits.
pub(in crate::kernels) struct Iq2Xs;

impl Block256 for Iq2Xs {
    const BYTES: usize = 74;
    const IS_SIGNED: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Unpacked256) {
        let block = &block[..Self::BYTES];
        clear_mins(out);
        out.d = half_at(block, 0) / 8.0;
        out.scales = odd_nibbles(cell(block, 66));
        for (q, bytes) in out.q.as_chunks_mut::<32>().0.iter_mut().zip(block[2..66].as_chunks::<8>().0) {
            let codes: [u16; 4] = shorts(bytes, 0);
            let rows = codes.map(|code| IQ2_XS_ROWS[usize::from(code & 511)]);
            *q = signed(rows, codes.map(|code| EVEN_SIGNS[usize::from(code >> 9)]));
        }
    }
}

/// d (f16), the low 8 bits of 32 row numbers, 256 signs, the high 2 bits of the row numbers, 16 scales of
/// 4 bits.
pub(in crate::kernels) struct Iq2S;

impl Block256 for Iq2S {
    const BYTES: usize = 82;
    const IS_SIGNED: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Unpacked256) {
        let block = &block[..Self::BYTES];
        clear_mins(out);
        out.d = half_at(block, 0) / 8.0;
        let (low, signs): ([u8; 32], [u8; 32]) = (cell(block, 2), cell(block, 34));
        let high: [u8; 8] = cell(block, 66);
        out.scales = odd_nibbles(cell(block, 74));
        for (j, q) in out.q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let high = usize::from(high[j]) << 8;
            let rows =
                std::array::from_fn(|i| IQ2_S_ROWS[usize::from(low[4 * j + i]) | high >> (2 * i) & 0x300]);
            *q = signed(rows, std::array::from_fn(|i| SIGNS[usize::from(signs[4 * j + i])]));
        }
    }
}

/// d (f16), the low 8 bits of 32 row numbers, for every 32 weights a u16: the high 3 bits of four row
/// numbers, a scale of 3 bits, and whether an eighth is taken from the weights or added to them.
pub(in crate::kernels) struct Iq1S;

impl Block256 for Iq1S {
    const BYTES: usize = 50;
    const IS_SIGNED: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Unpacked256) {
        let block = &block[..Self::BYTES];
        clear_mins(out);
        out.d = half_at(block, 0) / 8.0;
        let low: [u8; 32] = cell(block, 2);
        let high: [u16; 8] = shorts(block, 34);
        set_scales(out, |i| odd((high[i] >> 12 & 7).into()));
        for (j, q) in out.q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let bits = usize::from(high[j]) << 8;
            let rows =
                std::array::from_fn(|i| IQ1_ROWS[usize::from(low[4 * j + i]) | bits >> (3 * i) & 0x700]);
            *q = eighths(rows, [u64::from(high[j] >> 15); 4]);
        }
    }
}

/// The low 8 bits of 32 row numbers, for each 4 bits (the high 3, and which way the eighth goes), four u16
/// of four 3-bit scales, whose top bits are d (f16), lowest first.
pub(in crate::kernels) struct Iq1M;

impl Block256 for Iq1M {
    const BYTES: usize = 56;
    const IS_SIGNED: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut Unpacked256) {
        let block = &block[..Self::BYTES];
        clear_mins(out);
        let (low, high): ([u8; 32], [u16; 8]) = (cell(block, 0), shorts(block, 32));
        let packed: [u16; 4] = shorts(block, 48);
        let d = packed.iter().rev().fold(0, |d, bits| d << 4 | bits >> 12);
        out.d = half_at(&d.to_le_bytes(), 0) / 8.0;
        out.scales = std::array::from_fn(|i| odd((packed[i / 4] >> (3 * (i % 4)) & 7).into()));
        for (j, q) in out.q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let bits = usize::from(high[j]) << 8;
            let rows =
                std::array::from_fn(|i| IQ1_ROWS[usize::from(low[4 * j + i]) | bits >> (4 * i) & 0x700]);
            *q = eighths(rows, std::array::from_fn(|i| (bits >> (4 * i + 11) & 1) as u64));
        }
    }
}

/// The rows with the bytes of `masks` (0 or 255) negated.
#[inline(always)]
fn signed(rows: [u64; 4], masks: [u64; 4]) -> [i8; 32] {
    // Two's complement a byte: no byte of a row is 0, so that adding 1 to its complement never carries.
    bytes(std::array::from_fn(|i| (rows[i] ^ masks[i]) + (masks[i] & ONES)))
}

/// 8 w + 1 for the weights w of [`IQ1_ROWS`], 8 w - 1 where `flags` is 1 (not 0).
#[inline(always)]
fn eighths(rows: [u64; 4], flags: [u64; 4]) -> [i8; 32] {
    // Rows are 128 too large, so that no byte borrows; the top bits turned over take that off again.
    bytes(std::array::from_fn(|i| (rows[i] - flags[i] * (2 * ONES)) ^ (128 * ONES)))
}

#[inline(always)]
fn bytes(rows: [u64; 4]) -> [i8; 32] {
    let mut q = [0; 32];
    for (q, row) in q.as_chunks_mut::<8>().0.iter_mut().zip(rows) {
        for (q, byte) in q.iter_mut().zip(row.to_le_bytes()) {
            *q = byte.cast_signed();
        }
    }
    q
}

/// The masks of four 7-bit sign sets, the first lowest.
#[inline(always)]
fn even_signs(bits: u32) -> [u64; 4] {
    std::array::from_fn(|i| EVEN_SIGNS[(bits >> (7 * i)) as usize & 127])
}

#[inline(always)]
fn clear_mins(out: &mut Unpacked256) {
    (out.mins, out.d_min) = ([0; 16], 0.0);
}

/// Sets the scales of 32 weights.
#[inline(always)]
fn set_scales(out: &mut Unpacked256, scale: impl Fn(usize) -> i16) {
    out.scales = std::array::from_fn(|i| scale(i / 2));
}

/// 16 scales of 4 bits.
#[inline(always)]
fn odd_nibbles(packed: [u8; 8]) -> [i16; 16] {
    std::array::from_fn(|i| odd(nibble(&packed, i).into()))
}

/// Scales are halves: s + 1/2 is stored as s.
#[inline(always)]
fn odd(scale: u32) -> i16 {
    2 * scale as i16 + 1
}

#[inline(always)]
fn nibble(bytes: &[u8], i: usize) -> u16 {
    u16::from(bytes[i / 2] >> (4 * (i % 2)) & 15)
}

/// `N` u16 from byte `at` on.
#[inline(always)]
fn shorts<const N: usize>(bytes: &[u8], at: usize) -> [u16; N] {
    std::array::from_fn(|i| u16::from_le_bytes(cell(bytes, at + 2 * i)))
}

/// `N` u32 from byte `at` on.
#[inline(always)]
fn words<const N: usize>(bytes: &[u8], at: usize) -> [u32; N] {
    std::array::from_fn(|i| u32::from_le_bytes(cell(bytes, at + 4 * i)))
}

/// A 1 in every byte.
const ONES: u64 = 0x0101_0101_0101_0101;

/// Byte i is 255 where bit i is set.
static SIGNS: [u64; 256] = sign_masks();

/// As `SIGNS` for 7 bits: the eighth weight's sign makes the number of negative ones even.
static EVEN_SIGNS: [u64; 128] = even_sign_masks();

pub(super) static IQ3_XXS_ROWS: [u32; 256] = rows_of_4(&IQ3_XXS, IQ3_XXS_LEVELS);
pub(super) static IQ3_S_ROWS: [u32; 512] = rows_of_4(&IQ3_S, IQ3_S_LEVELS);
pub(super) static IQ2_XXS_ROWS: [u64; 256] = rows_of_8(&IQ2_XXS, IQ2_XXS_LEVELS);
pub(super) static IQ2_XS_ROWS: [u64; 512] = rows_of_8(&IQ2_XS, IQ2_XS_LEVELS);
pub(super) static IQ2_S_ROWS: [u64; 1024] = rows_of_8(&IQ2_S, IQ2_S_LEVELS);
/// Bytes of 8 w + 129: what [`eighths`] wants.
pub(super) static IQ1_ROWS: [u64; 2048] = rows_of_8(&IQ1, iq1_eighths());

const fn iq1_eighths() -> [i8; 3] {
    let [minus, zero, plus] = IQ1_LEVELS;
    [(8 * minus + 1) ^ -128, (8 * zero + 1) ^ -128, (8 * plus + 1) ^ -128]
}

const fn sign_masks() -> [u64; 256] {
    let mut masks = [0; 256];
    let mut bits = 0;
    while bits < 256 {
        let mut i = 0;
        while i < 8 {
            masks[bits] |= (bits as u64 >> i & 1) * (255 << (8 * i));
            i += 1;
        }
        bits += 1;
    }
    masks
}

const fn even_sign_masks() -> [u64; 128] {
    let all = sign_masks();
    let mut masks = [0; 128];
    let mut bits = 0usize;
    while bits < 128 {
        masks[bits] = all[bits | (bits.count_ones() as usize & 1) << 7];
        bits += 1;
    }
    masks
}

const fn rows_of_8<const N: usize>(packed: &[u16; N], levels: [i8; 3]) -> [u64; N] {
    let mut rows = [0; N];
    let mut at = 0;
    while at < N {
        rows[at] = row(packed[at], 8, 2, &levels);
        at += 1;
    }
    rows
}

const fn rows_of_4<const N: usize>(packed: &[u16; N], levels: [i8; 8]) -> [u32; N] {
    let mut rows = [0; N];
    let mut at = 0;
    while at < N {
        rows[at] = row(packed[at], 4, 3, &levels) as u32;
        at += 1;
    }
    rows
}

/// A packed row as one byte a weight, the first lowest.
const fn row(packed: u16, num: usize, bits: usize, levels: &[i8]) -> u64 {
    let mut row = 0;
    let mut i = 0;
    while i < num {
        let place = packed as usize >> (bits * i) & ((1 << bits) - 1);
        row |= (levels[place].cast_unsigned() as u64) << (8 * i);
        i += 1;
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows have bytes 1 to 62; the trick itself holds for 1 to 255.
    #[test]
    fn signs_negate_their_bytes_and_no_other() {
        for bits in 0..=255u8 {
            for first in 1..=255u8 {
                let row: [u8; 8] = std::array::from_fn(|i| ((usize::from(first) + 37 * i) % 255 + 1) as u8);
                let q = signed([u64::from_le_bytes(row); 4], [SIGNS[usize::from(bits)]; 4]);
                for (i, q) in q.into_iter().enumerate() {
                    let byte = row[i % 8].cast_signed();
                    let is_negative = bits >> (i % 8) & 1 == 1;
                    assert_eq!(q, if is_negative { byte.wrapping_neg() } else { byte }, "{bits} {row:?}");
                }
            }
        }
    }

    #[test]
    fn seven_signs_have_an_eighth_that_makes_them_even() {
        for (bits, mask) in EVEN_SIGNS.into_iter().enumerate() {
            let byte = SIGNS.into_iter().position(|all| all == mask).expect("a mask of signs");
            assert_eq!((byte & 127, byte.count_ones() % 2), (bits, 0));
        }
    }

    #[test]
    fn codebook_rows_are_distinct_and_have_no_zero() {
        fn check<const N: usize>(rows: impl ExactSizeIterator<Item = [u8; N]>) {
            let (num, distinct) = (rows.len(), rows.collect::<std::collections::HashSet<_>>());
            assert_eq!(distinct.len(), num);
            assert!(distinct.iter().flatten().all(|byte| *byte != 0));
        }
        for rows in [&IQ3_XXS_ROWS[..], &IQ3_S_ROWS] {
            check(rows.iter().map(|row| row.to_le_bytes()));
        }
        for rows in [&IQ2_XXS_ROWS[..], &IQ2_XS_ROWS, &IQ2_S_ROWS, &IQ1_ROWS] {
            check(rows.iter().map(|row| row.to_le_bytes()));
        }
    }

    #[test]
    fn eighths_lie_around_eight_times_the_weights() {
        for (row, packed) in IQ1_ROWS.into_iter().zip(IQ1) {
            let q = eighths([row; 4], [0, 1, 1, 0]);
            for (i, q) in q.into_iter().enumerate() {
                let weight = IQ1_LEVELS[usize::from(packed >> (2 * (i % 8)) & 3)];
                assert_eq!(q, 8 * weight + if (8..24).contains(&i) { -1 } else { 1 });
            }
        }
    }
}
