//! Float weights in registers.

use std::arch::aarch64::*;

use super::super::portable::{BF16, F16, F32, FLOAT_LANES, Float, add_lanes};
use super::super::tile::Tile;
use super::halves;

/// A float format in registers.
pub(in crate::kernels) trait WideFloat: Float {
    /// Four numbers.
    ///
    /// # Safety
    /// Four numbers are at `cells`.
    unsafe fn load(cells: *const u8) -> float32x4_t;
}

impl WideFloat for F32 {
    #[inline(always)]
    unsafe fn load(cells: *const u8) -> float32x4_t {
        // SAFETY: the caller's promise; bytes have no alignment to keep.
        unsafe { vreinterpretq_f32_u8(vld1q_u8(cells)) }
    }
}

impl WideFloat for F16 {
    #[inline(always)]
    unsafe fn load(cells: *const u8) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { halves(vreinterpret_u16_u8(vld1_u8(cells))) }
    }
}

impl WideFloat for BF16 {
    #[inline(always)]
    unsafe fn load(cells: *const u8) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(cells)))) }
    }
}

/// Vectors of a group of [`FLOAT_LANES`].
const VECTORS: usize = FLOAT_LANES / 4;

/// Kernel of a float format.
///
/// # Safety
/// As [`TileFn`](super::super::tile::TileFn).
pub(in crate::kernels) unsafe fn tile_float<F: WideFloat, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise.
    unsafe {
        if R == 8 {
            // Eight rows' sums would take all registers.
            return tile.fours().iter().for_each(|tile| tile_float::<F, 4>(tile));
        }
        let x: [&[f32]; R] = tile.x(tile.cols);
        for (n, row) in tile.rows() {
            tile.store(n, dots::<F, R>(row, x));
        }
    }
}

#[inline(always)]
unsafe fn dots<F: WideFloat, const R: usize>(row: &[u8], x: [&[f32]; R]) -> [f32; R] {
    // SAFETY: whole groups lie in the row and in each `x`, which has a value for each.
    unsafe {
        let groups = x[0].len() / FLOAT_LANES;
        let mut sums = [[vdupq_n_f32(0.0); R]; VECTORS];
        for group in 0..groups {
            for (v, sums) in sums.iter_mut().enumerate() {
                let at = group * FLOAT_LANES + 4 * v;
                let w = F::load(row.as_ptr().add(at * F::BYTES));
                for r in 0..R {
                    sums[r] = vfmaq_f32(sums[r], w, vld1q_f32(x[r].as_ptr().add(at)));
                }
            }
        }
        let done = groups * FLOAT_LANES;
        let mut products = [0f32; R];
        for r in 0..R {
            let mut lanes = [0f32; FLOAT_LANES];
            for (lanes, sums) in lanes.as_chunks_mut::<4>().0.iter_mut().zip(&sums) {
                vst1q_f32(lanes.as_mut_ptr(), sums[r]);
            }
            let rest = row[done * F::BYTES..].chunks_exact(F::BYTES);
            for (lane, (cell, x)) in lanes.iter_mut().zip(rest.zip(&x[r][done..])) {
                *lane = F::decode(cell).mul_add(*x, *lane);
            }
            products[r] = add_lanes(lanes);
        }
        products
    }
}
