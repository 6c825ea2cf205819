//! Kernels with AVX2, FMA and F16C.
//!
//! Owns the loops: a block's weights are unpacked into registers once for all activation rows of the
//! tile. What differs between formats is behind [`Wide256`] and [`Wide32`] (`k_quants`, `legacy`, and
//! the formats that go through their plain unpacker). Bits are those of `portable`. Every function here
//! is inlined into one that has the instructions; must not be called from elsewhere without checking
//! for them.

mod float;
mod k_quants;
mod legacy;

use std::arch::x86_64::*;
use std::marker::PhantomData;

pub(in crate::kernels) use float::tile_float;
pub(in crate::kernels) use k_quants::{WideQ2K, WideQ3K, WideQ4K, WideQ5K, WideQ6K};
pub(in crate::kernels) use legacy::{WideIq4Nl, WideMxfp4, WideQ4_0, WideQ4_1, WideQ5_0, WideQ5_1, WideQ8_0};

use super::activations::{Activations, X32, X256};
use super::blocks::{Block32, Block256, Unpacked256};
use super::tile::Tile;

/// Rows of activations in 8 bits.
///
/// # Safety
/// Only where AVX2 is.
#[target_feature(enable = "avx2,fma")]
pub(in crate::kernels) unsafe fn quantize_rows<X: Activations>(values: &[f32], width: usize, out: &mut [X]) {
    super::activations::quantize_rows(values, width, out);
}

/// What the loop needs to know of a 256 block beside its weights.
pub(super) struct Head {
    /// Scales of the 16 groups as 16-bit numbers: even ones in the lower half, odd ones in the upper, so
    /// that one shuffle gives each half of a vector of 32 weights its own.
    pub(super) scales: __m256i,
    /// The same in natural order; read only where the format has an offset.
    pub(super) natural: __m256i,
    /// Minima in natural order; read only where the format has them.
    pub(super) mins: __m256i,
    pub(super) d: f32,
    pub(super) d_min: f32,
}

/// A 256 format in registers.
pub(super) trait Wide256 {
    /// The format.
    type Block: Block256;

    /// Reads scales. Formats without a vector unpacker unpack to `buffer` here.
    ///
    /// # Safety
    /// Inlined into a function with AVX2, FMA and F16C; `block` is one block.
    unsafe fn head(block: &[u8], buffer: &mut Unpacked256) -> Head;

    /// Weights `128 half..128 half + 128` as stored, 32 a vector.
    ///
    /// # Safety
    /// As [`Wide256::head`], which has been called for this block.
    unsafe fn half(block: &[u8], buffer: &Unpacked256, half: usize) -> [__m256i; 4];
}

/// A 32 format in registers.
pub(super) trait Wide32 {
    /// The format.
    type Block: Block32;

    /// The 32 stored weights.
    ///
    /// # Safety
    /// Inlined into a function with AVX2, FMA and F16C; `block` is one block.
    unsafe fn weights(block: &[u8]) -> __m256i;

    /// Scales of eight blocks.
    ///
    /// # Safety
    /// As [`Wide32::weights`], for eight blocks.
    unsafe fn scales(blocks: &[u8]) -> __m256;

    /// Minima of eight blocks; read only where the format has them.
    ///
    /// # Safety
    /// As [`Wide32::scales`].
    #[inline(always)]
    unsafe fn mins(_blocks: &[u8]) -> __m256 {
        // SAFETY: the caller has AVX.
        unsafe { _mm256_setzero_ps() }
    }
}

/// Any 256 format by way of its plain unpacker.
pub(in crate::kernels) struct Buffered<B>(PhantomData<B>);

impl<B: Block256> Wide256 for Buffered<B> {
    type Block = B;

    #[inline(always)]
    unsafe fn head(block: &[u8], buffer: &mut Unpacked256) -> Head {
        B::unpack(block, buffer);
        // SAFETY: the caller has AVX2; arrays of 16 16-bit numbers.
        unsafe {
            let natural = _mm256_loadu_si256(buffer.scales.as_ptr().cast());
            let mins = _mm256_loadu_si256(buffer.mins.as_ptr().cast());
            Head { scales: even_odd(natural), natural, mins, d: buffer.d, d_min: buffer.d_min }
        }
    }

    #[inline(always)]
    unsafe fn half(_block: &[u8], buffer: &Unpacked256, half: usize) -> [__m256i; 4] {
        let q = &buffer.q.as_chunks::<32>().0;
        // SAFETY: the caller has AVX2.
        std::array::from_fn(|k| unsafe { load_i8(&q[4 * half + k]) })
    }
}

/// 16-bit numbers in natural order -> even ones in the lower half, odd ones in the upper.
#[inline(always)]
unsafe fn even_odd(natural: __m256i) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        let order = _mm256_setr_epi8(
            0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11,
            14, 15,
        );
        _mm256_permute4x64_epi64(_mm256_shuffle_epi8(natural, order), 0b11_01_10_00)
    }
}

/// Shuffles that broadcast 16-bit number `j` of each half.
static BROADCAST: [[[u8; 2]; 16]; 8] = {
    let mut table = [[[0; 2]; 16]; 8];
    let mut j = 0;
    while j < 8 {
        table[j] = [[2 * j as u8, 2 * j as u8 + 1]; 16];
        j += 1;
    }
    table
};

#[inline(always)]
unsafe fn broadcast(numbers: __m256i, j: usize) -> __m256i {
    // SAFETY: the caller has AVX2; a row of the table is 32 bytes.
    unsafe { _mm256_shuffle_epi8(numbers, _mm256_loadu_si256(BROADCAST[j].as_ptr().cast())) }
}

#[inline(always)]
unsafe fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: 32 bytes are there; the caller has AVX2.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline(always)]
unsafe fn load_i8(values: &[i8; 32]) -> __m256i {
    // SAFETY: as `load`.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

/// `add_lanes` of eight floats.
#[inline(always)]
unsafe fn add_lanes(x: __m256) -> f32 {
    // SAFETY: the caller has AVX.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

/// Kernel of a 256 format.
///
/// # Safety
/// As [`TileFn`](super::tile::TileFn).
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) unsafe fn tile256<W: Wide256, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise, and this function's instructions.
    unsafe {
        let x: [&[X256]; R] = tile.x(tile.cols / 256);
        let mut buffer = Unpacked256::ZERO;
        for (n, row) in tile.rows() {
            let mut acc = [_mm256_setzero_ps(); R];
            for (b, block) in row.chunks_exact(W::Block::BYTES).enumerate() {
                let x: [&X256; R] = std::array::from_fn(|r| &x[r][b]);
                let head = W::head(block, &mut buffer);
                let mut sums = [_mm256_setzero_si256(); R];
                for half in 0..2 {
                    let w = W::half(block, &buffer, half);
                    add_half::<W, R>(w, head.scales, half, x, &mut sums);
                }
                for r in 0..R {
                    acc[r] = add_block::<W>(&head, x[r], sums[r], acc[r]);
                }
            }
            tile.store(n, std::array::from_fn::<f32, R, _>(|r| add_lanes(acc[r])));
        }
    }
}

/// `sums += scales * (w . x)` over half a block.
#[inline(always)]
unsafe fn add_half<W: Wide256, const R: usize>(
    w: [__m256i; 4],
    scales: __m256i,
    half: usize,
    x: [&X256; R],
    sums: &mut [__m256i; R],
) {
    // SAFETY: the caller has AVX2.
    unsafe {
        for (k, w) in w.into_iter().enumerate() {
            let j = 4 * half + k;
            let scale = broadcast(scales, j);
            let size = if W::Block::IS_SIGNED { _mm256_abs_epi8(w) } else { w };
            for r in 0..R {
                let y = load_i8(&x[r].q.as_chunks::<32>().0[j]);
                let y = if W::Block::IS_SIGNED { _mm256_sign_epi8(y, w) } else { y };
                let pairs = _mm256_maddubs_epi16(size, y);
                sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(scale, pairs));
            }
        }
    }
}

/// One block's integers into the float sums of a row.
#[inline(always)]
unsafe fn add_block<W: Wide256>(head: &Head, x: &X256, mut lanes: __m256i, acc: __m256) -> __m256 {
    // SAFETY: the caller has AVX2 and FMA; 16 16-bit sums.
    unsafe {
        let sums = _mm256_loadu_si256(x.sums.as_ptr().cast());
        if W::Block::OFFSET != 0 {
            let of_sums = _mm256_madd_epi16(head.natural, sums);
            lanes = _mm256_sub_epi32(lanes, _mm256_mullo_epi32(of_sums, _mm256_set1_epi32(W::Block::OFFSET)));
        }
        let acc = _mm256_fmadd_ps(_mm256_set1_ps(head.d * x.d), _mm256_cvtepi32_ps(lanes), acc);
        if !W::Block::HAS_MINS {
            return acc;
        }
        let mins = _mm256_cvtepi32_ps(_mm256_madd_epi16(head.mins, sums));
        _mm256_fmadd_ps(_mm256_set1_ps(-(head.d_min * x.d)), mins, acc)
    }
}

/// Bytes of the largest eight blocks of a 32 format.
const EIGHT_MAX: usize = 8 * 34;

/// Eight 32 blocks in memory: what all rows of a tile share.
struct Eight {
    w: [__m256i; 8],
    d: __m256,
    m: __m256,
}

/// Kernel of a 32 format.
///
/// # Safety
/// As [`TileFn`](super::tile::TileFn).
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) unsafe fn tile32<W: Wide32, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise, and this function's instructions.
    unsafe {
        let x: [&[X32]; R] = tile.x(tile.cols.div_ceil(256));
        for (n, row) in tile.rows() {
            let mut acc = [_mm256_setzero_ps(); R];
            let mut b = 0;
            let mut eights = row.chunks_exact(8 * W::Block::BYTES);
            for blocks in &mut eights {
                add_eight::<W, R>(blocks, std::array::from_fn(|r| &x[r][b]), &mut acc);
                b += 1;
            }
            let rest = eights.remainder();
            if !rest.is_empty() {
                // Zero blocks behind the row's end: they add 0 times 0.
                let mut padded = [0u8; EIGHT_MAX];
                padded[..rest.len()].copy_from_slice(rest);
                let blocks = &padded[..8 * W::Block::BYTES];
                add_eight::<W, R>(blocks, std::array::from_fn(|r| &x[r][b]), &mut acc);
            }
            tile.store(n, std::array::from_fn::<f32, R, _>(|r| add_lanes(acc[r])));
        }
    }
}

#[inline(always)]
unsafe fn add_eight<W: Wide32, const R: usize>(blocks: &[u8], x: [&X32; R], acc: &mut [__m256; R]) {
    // SAFETY: the caller has AVX2, FMA and F16C.
    unsafe {
        let block = |b: usize| &blocks[b * W::Block::BYTES..(b + 1) * W::Block::BYTES];
        let eight = Eight {
            w: std::array::from_fn(|b| W::weights(block(b))),
            d: W::scales(blocks),
            m: W::mins(blocks),
        };
        for r in 0..R {
            let lanes = lanes32::<W>(&eight.w, x[r]);
            let x_d = _mm256_loadu_ps(x[r].d.as_ptr());
            acc[r] = _mm256_fmadd_ps(_mm256_mul_ps(eight.d, x_d), _mm256_cvtepi32_ps(lanes), acc[r]);
            if W::Block::HAS_MIN {
                let sums = _mm256_cvtepi32_ps(_mm256_loadu_si256(x[r].sums.as_ptr().cast()));
                acc[r] = _mm256_fmadd_ps(eight.m, _mm256_mul_ps(x_d, sums), acc[r]);
            }
        }
    }
}

/// The exact products of eight blocks with eight groups of activations, one a lane.
#[inline(always)]
unsafe fn lanes32<W: Wide32>(w: &[__m256i; 8], x: &X32) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        let q = &x.q.as_chunks::<32>().0;
        let ones = _mm256_set1_epi16(1);
        let pairs = |b: usize| {
            if W::Block::IS_SIGNED {
                _mm256_maddubs_epi16(_mm256_abs_epi8(w[b]), _mm256_sign_epi8(load_i8(&q[b]), w[b]))
            } else {
                _mm256_maddubs_epi16(w[b], load_i8(&q[b]))
            }
        };
        // Unsigned weights have at most 5 bits: four pairs together still fit 16 bits.
        let fours = |b: usize| {
            if W::Block::IS_SIGNED {
                let p: [__m256i; 4] = std::array::from_fn(|i| _mm256_madd_epi16(pairs(b + i), ones));
                _mm256_hadd_epi32(_mm256_hadd_epi32(p[0], p[1]), _mm256_hadd_epi32(p[2], p[3]))
            } else {
                let p: [__m256i; 4] = std::array::from_fn(|i| pairs(b + i));
                let p = _mm256_hadd_epi16(_mm256_hadd_epi16(p[0], p[1]), _mm256_hadd_epi16(p[2], p[3]));
                _mm256_madd_epi16(p, ones)
            }
        };
        let (low, high) = (fours(0), fours(4));
        let lanes = _mm256_add_epi32(
            _mm256_permute2x128_si256(low, high, 0x20),
            _mm256_permute2x128_si256(low, high, 0x31),
        );
        if W::Block::OFFSET == 0 {
            return lanes;
        }
        let sums = _mm256_loadu_si256(x.sums.as_ptr().cast());
        _mm256_sub_epi32(lanes, _mm256_mullo_epi32(sums, _mm256_set1_epi32(W::Block::OFFSET)))
    }
}
