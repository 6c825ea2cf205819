//! Kernels with AVX2, FMA and F16C, and with AVX-VNNI.
//!
//! Owns the loops: a block's weights are unpacked into registers once for all activation rows of the
//! tile. What differs between formats is behind [`Wide256`] and [`Wide32`] (`k_quants`, `legacy`, and
//! the formats that go through their plain unpacker), what differs between instructions behind
//! [`Lanes256`] and [`Lanes32`] (`lanes`, `avx512`). Bits are those of `portable`. Every function here is
//! inlined into one that has the instructions; must not be called from elsewhere without checking for
//! them.

mod float;
mod i_quants;
mod k_quants;
mod lanes;
mod legacy;

use std::arch::x86_64::*;
use std::marker::PhantomData;

pub(super) use float::finish;
pub(in crate::kernels) use float::tile_float;
pub(in crate::kernels) use i_quants::WideIq4Xs;
pub(in crate::kernels) use k_quants::{WideQ2K, WideQ3K, WideQ4K, WideQ5K, WideQ6K};
pub(in crate::kernels) use legacy::{WideIq4Nl, WideMxfp4, WideQ4_0, WideQ4_1, WideQ5_0, WideQ5_1, WideQ8_0};

use super::activations::{Activations, X32, X256};
use super::blocks::{Block32, Block256, Unpacked256, cell};
use super::tile::{TILE_ROWS_MAX, Tile};
use lanes::{Plain, Vnni, Ymm};

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

/// How a 256 block's integers become the eight lanes of every row.
pub(super) trait Lanes256<W: Wide256>: Copy {
    /// What is the same for all blocks of a tile.
    fn start() -> Self;

    /// `scales * (w . x)` of one block.
    ///
    /// # Safety
    /// Inlined into a function with the implementor's instructions; [`Wide256::head`] made `head`.
    unsafe fn lanes<const R: usize>(
        self,
        block: &[u8],
        buffer: &Unpacked256,
        head: &Head,
        x: [&X256; R],
    ) -> [__m256i; R];
}

/// How eight 32 blocks' integers become the eight lanes of every row.
pub(super) trait Lanes32<W: Wide32> {
    /// What the integers in the lanes are too large by, times the activations.
    const OFFSET: i32;

    /// `w . x` of eight blocks; the upper four may be left out where `HIGH` is not set.
    ///
    /// # Safety
    /// Inlined into a function with the implementor's instructions; `blocks` are eight.
    unsafe fn lanes<const R: usize, const HIGH: bool>(blocks: &[u8], x: [&X32; R]) -> [__m256i; R];
}

/// Any 256 format by way of its plain unpacker.
pub(in crate::kernels) struct Buffered<B>(PhantomData<B>);

impl<B: Block256> Wide256 for Buffered<B> {
    type Block = B;

    #[inline(always)]
    unsafe fn head(block: &[u8], buffer: &mut Unpacked256) -> Head {
        B::unpack(block, buffer);
        // SAFETY: the caller has AVX2.
        unsafe { buffered_head(buffer) }
    }

    #[inline(always)]
    unsafe fn half(_block: &[u8], buffer: &Unpacked256, half: usize) -> [__m256i; 4] {
        let q = &buffer.q.as_chunks::<32>().0;
        // SAFETY: the caller has AVX2.
        std::array::from_fn(|k| unsafe { load_i8(&q[4 * half + k]) })
    }
}

/// The head of a block in `buffer`.
#[inline(always)]
pub(super) unsafe fn buffered_head(buffer: &Unpacked256) -> Head {
    // SAFETY: the caller has AVX2; arrays of 16 16-bit numbers.
    unsafe {
        let natural = _mm256_loadu_si256(buffer.scales.as_ptr().cast());
        let mins = _mm256_loadu_si256(buffer.mins.as_ptr().cast());
        Head { scales: even_odd(natural), natural, mins, d: buffer.d, d_min: buffer.d_min }
    }
}

/// 16-bit numbers in natural order -> even ones in the lower half, odd ones in the upper.
#[inline(always)]
unsafe fn even_odd(natural: __m256i) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        let order = _mm256_setr_epi8(
            0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10,
            11, 14, 15,
        );
        _mm256_permute4x64_epi64(_mm256_shuffle_epi8(natural, order), 0b11_01_10_00)
    }
}

#[inline(always)]
pub(super) unsafe fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: 32 bytes are there; the caller has AVX2.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline(always)]
unsafe fn load_i8(values: &[i8; 32]) -> __m256i {
    // SAFETY: as `load`.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

/// A half float by the instruction for it.
#[inline(always)]
unsafe fn half_float(block: &[u8], at: usize) -> f32 {
    // SAFETY: the caller has F16C.
    unsafe {
        let bits = i32::from(u16::from_le_bytes(cell(block, at)));
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)))
    }
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

/// Up to so many rows the weights' way from memory is what takes the time.
const STREAMED_ROWS_MAX: usize = 4;
/// How far ahead weights are asked for; half and twice as far were no better (eval/LOG.md, 2026-11-26).
const AHEAD_BYTES: usize = 1536;

/// Asks for as many bytes as are read now, some way ahead of them.
#[inline(always)]
pub(in crate::kernels) unsafe fn prefetch(read: &[u8]) {
    let ahead = read.as_ptr().wrapping_add(AHEAD_BYTES);
    for line in 0..read.len().div_ceil(64) {
        // SAFETY: a prefetch reads nothing that the program could see, whatever the address.
        unsafe { _mm_prefetch(ahead.wrapping_add(64 * line).cast(), _MM_HINT_T0) };
    }
}

/// `add_lanes` of every row.
#[inline(always)]
unsafe fn add_all<const R: usize>(acc: [__m256; R]) -> [f32; R] {
    let mut sums = [0.0; R];
    for r in 0..R {
        // SAFETY: the caller has AVX.
        sums[r] = unsafe { add_lanes(acc[r]) };
    }
    sums
}

/// Kernel of a 256 format.
///
/// # Safety
/// As [`TileFn`](super::tile::TileFn).
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) unsafe fn tile256<W: Wide256, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise, and this function's instructions.
    unsafe { tile256_by::<W, Ymm<Plain>, R>(tile) }
}

/// [`tile256`] with AVX-VNNI.
///
/// # Safety
/// As [`TileFn`](super::tile::TileFn).
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(in crate::kernels) unsafe fn tile256_vnni<W: Wide256, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise, and this function's instructions.
    unsafe { tile256_by::<W, Ymm<Vnni>, R>(tile) }
}

/// The loop of every 256 kernel. Plain loops: intrinsics are not inlined into library closures.
///
/// # Safety
/// As [`TileFn`](super::tile::TileFn); inlined into a function with AVX2, FMA, F16C and `L`'s instructions.
#[inline(always)]
pub(super) unsafe fn tile256_by<W: Wide256, L: Lanes256<W>, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise, and the caller's instructions.
    unsafe {
        let x: [&[X256]; R] = tile.x(tile.cols / 256);
        let x_d = scales_across(x);
        let by = L::start();
        let mut buffer = Unpacked256::ZERO;
        for (n, row) in tile.rows() {
            let mut acc = [_mm256_setzero_ps(); R];
            for (b, (block, x_d)) in row.chunks_exact(W::Block::BYTES).zip(&x_d).enumerate() {
                if R <= STREAMED_ROWS_MAX {
                    prefetch(block);
                }
                std::hint::assert_unchecked(block.len() == W::Block::BYTES);
                // In bounds: `x_d` is as long as every row.
                let x: [&X256; R] = x.map(|x| x.get_unchecked(b));
                let head = W::head(block, &mut buffer);
                let lanes = by.lanes(block, &buffer, &head, x);
                add_block::<W, R>(&head, x, x_d, lanes, &mut acc);
            }
            tile.store(n, add_all(acc));
        }
    }
}

/// For every block the scales of all rows.
fn scales_across<const R: usize>(x: [&[X256]; R]) -> Vec<[f32; TILE_ROWS_MAX]> {
    let of_block = |b: usize| {
        let mut d = [0.0; TILE_ROWS_MAX];
        d.iter_mut().zip(x).for_each(|(d, x)| *d = x[b].d);
        d
    };
    (0..x[0].len()).map(of_block).collect()
}

/// The pointer it is given, of which the compiler then knows nothing.
#[inline(always)]
fn opaque<T>(mut pointer: *const T) -> *const T {
    // SAFETY: no instruction.
    unsafe { std::arch::asm!("/* {0} */", inout(reg) pointer, options(nostack, preserves_flags)) };
    pointer
}

/// One block's integers into the float sums of all rows.
#[inline(always)]
unsafe fn add_block<W: Wide256, const R: usize>(
    head: &Head,
    x: [&X256; R],
    x_d: &[f32; TILE_ROWS_MAX],
    lanes: [__m256i; R],
    acc: &mut [__m256; R],
) {
    // SAFETY: the caller has AVX2 and FMA; 16 16-bit sums, eight floats.
    unsafe {
        let x_d = _mm256_loadu_ps(x_d.as_ptr());
        let scales =
            [_mm256_mul_ps(_mm256_set1_ps(head.d), x_d), _mm256_mul_ps(_mm256_set1_ps(head.d_min), x_d)];
        // The products of scales through memory: broadcasts from there cost no vector unit. One row would
        // wait for it.
        let stored = if R == 1 { scales.as_ptr() } else { opaque(scales.as_ptr()) }.cast::<[f32; 8]>();
        for r in 0..R {
            let sums = _mm256_load_si256(x[r].sums.as_ptr().cast());
            let mut lanes = lanes[r];
            if W::Block::OFFSET != 0 {
                let of_sums = _mm256_madd_epi16(head.natural, sums);
                lanes =
                    _mm256_sub_epi32(lanes, _mm256_mullo_epi32(of_sums, _mm256_set1_epi32(W::Block::OFFSET)));
            }
            acc[r] = _mm256_fmadd_ps(_mm256_broadcast_ss(&(*stored)[r]), _mm256_cvtepi32_ps(lanes), acc[r]);
            if W::Block::HAS_MINS {
                let mins = _mm256_cvtepi32_ps(_mm256_madd_epi16(head.mins, sums));
                acc[r] = _mm256_fnmadd_ps(_mm256_broadcast_ss(&(*stored.add(1))[r]), mins, acc[r]);
            }
        }
    }
}

/// Bytes of the largest eight blocks of a 32 format.
const EIGHT_MAX: usize = 8 * 34;

/// Kernel of a 32 format.
///
/// # Safety
/// As [`TileFn`](super::tile::TileFn).
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) unsafe fn tile32<W: Wide32, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise, and this function's instructions.
    unsafe {
        if W::Block::IS_SIGNED && R == 8 {
            return tile.fours().iter().for_each(|tile| tile32::<W, 4>(tile));
        }
        tile32_by::<W, Ymm<Plain>, R>(tile);
    }
}

/// [`tile32`] with AVX-VNNI.
///
/// # Safety
/// As [`TileFn`](super::tile::TileFn).
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(in crate::kernels) unsafe fn tile32_vnni<W: Wide32, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise, and this function's instructions.
    unsafe { tile32_by::<W, Ymm<Vnni>, R>(tile) }
}

/// The loop of every 32 kernel, as [`tile256_by`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn tile32_by<W: Wide32, L: Lanes32<W>, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise, and the caller's instructions.
    unsafe {
        let x: [&[X32]; R] = tile.x(tile.cols.div_ceil(256));
        let eight_bytes = 8 * W::Block::BYTES;
        let whole = tile.row_bytes / eight_bytes;
        let rest = tile.row_bytes / W::Block::BYTES % 8;
        let mask = lanes_below(rest);
        let every = lanes_below(8);
        let mut padded = [0u8; EIGHT_MAX];
        for (n, row) in tile.rows() {
            let mut acc = [_mm256_setzero_ps(); R];
            for (b, blocks) in row.chunks_exact(eight_bytes).enumerate() {
                if R <= STREAMED_ROWS_MAX {
                    prefetch(blocks);
                }
                let x = std::array::from_fn(|r| &x[r][b]);
                add_eight::<W, L, R, true>(blocks, every, x, &mut acc);
            }
            if rest > 0 {
                // What stands behind the row's end, mostly the next row, meets activations that are zero; its scales are
                // masked, as they need not be numbers.
                let behind = &tile.weights[n * tile.row_bytes + whole * eight_bytes..];
                let blocks = match behind.get(..eight_bytes) {
                    Some(blocks) => blocks,
                    None => {
                        padded[..behind.len()].copy_from_slice(behind);
                        &padded[..eight_bytes]
                    }
                };
                let x = std::array::from_fn(|r| &x[r][whole]);
                if rest <= 4 {
                    add_eight::<W, L, R, false>(blocks, mask, x, &mut acc);
                } else {
                    add_eight::<W, L, R, true>(blocks, mask, x, &mut acc);
                }
            }
            tile.store(n, add_all(acc));
        }
    }
}

/// All bits of the first `count` lanes.
#[inline(always)]
unsafe fn lanes_below(count: usize) -> __m256 {
    let lane = |l: usize| if l < count { -1 } else { 0 };
    // SAFETY: the caller has AVX.
    unsafe {
        let lanes = _mm256_setr_epi32(lane(0), lane(1), lane(2), lane(3), lane(4), lane(5), lane(6), lane(7));
        _mm256_castsi256_ps(lanes)
    }
}

/// The products of eight blocks, or of their first four where `HIGH` is not set, in the lanes of `mask`.
#[inline(always)]
unsafe fn add_eight<W: Wide32, L: Lanes32<W>, const R: usize, const HIGH: bool>(
    blocks: &[u8],
    mask: __m256,
    x: [&X32; R],
    acc: &mut [__m256; R],
) {
    // SAFETY: the caller has AVX2, FMA and F16C, and eight blocks.
    unsafe {
        std::hint::assert_unchecked(blocks.len() == 8 * W::Block::BYTES);
        let (d, m) = (_mm256_and_ps(W::scales(blocks), mask), _mm256_and_ps(W::mins(blocks), mask));
        let lanes = L::lanes::<R, HIGH>(blocks, x);
        for r in 0..R {
            let mut lanes = lanes[r];
            if L::OFFSET != 0 {
                let sums = _mm256_load_si256(x[r].sums.as_ptr().cast());
                lanes = _mm256_sub_epi32(lanes, _mm256_mullo_epi32(sums, _mm256_set1_epi32(L::OFFSET)));
            }
            let x_d = _mm256_load_ps(x[r].d.as_ptr());
            acc[r] = _mm256_fmadd_ps(_mm256_mul_ps(d, x_d), _mm256_cvtepi32_ps(lanes), acc[r]);
            if W::Block::HAS_MIN {
                let sums = _mm256_cvtepi32_ps(_mm256_load_si256(x[r].sums.as_ptr().cast()));
                acc[r] = _mm256_fmadd_ps(m, _mm256_mul_ps(x_d, sums), acc[r]);
            }
        }
    }
}
