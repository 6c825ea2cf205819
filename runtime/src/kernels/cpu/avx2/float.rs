//! Float weights in registers.

use std::arch::x86_64::*;

use super::super::portable::{BF16, F16, F32, FLOAT_LANES, Float, add_lanes};
use super::super::tile::Tile;
use super::prefetch;

/// A float format in registers.
pub(in crate::kernels) trait WideFloat: Float {
    /// Eight numbers.
    ///
    /// # Safety
    /// Inlined into a function with AVX2 and F16C; eight numbers are at `cells`.
    unsafe fn load(cells: *const u8) -> __m256;
}

impl WideFloat for F32 {
    #[inline(always)]
    unsafe fn load(cells: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(cells.cast()) }
    }
}

impl WideFloat for F16 {
    #[inline(always)]
    unsafe fn load(cells: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(cells.cast())) }
    }
}

impl WideFloat for BF16 {
    #[inline(always)]
    unsafe fn load(cells: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(cells.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))
        }
    }
}

/// Kernel of a float format.
///
/// # Safety
/// As [`TileFn`](super::super::tile::TileFn).
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) unsafe fn tile_float<F: WideFloat, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise, and this function's instructions.
    unsafe {
        if R == 8 {
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
    // SAFETY: whole groups of 16 numbers lie in the row and in each `x`, which has a value for each.
    unsafe {
        let groups = x[0].len() / FLOAT_LANES;
        let (mut low, mut high) = ([_mm256_setzero_ps(); R], [_mm256_setzero_ps(); R]);
        for group in 0..groups {
            let at = group * FLOAT_LANES;
            prefetch(&row[at * F::BYTES..(at + FLOAT_LANES) * F::BYTES]);
            let (w_low, w_high) =
                (F::load(row.as_ptr().add(at * F::BYTES)), F::load(row.as_ptr().add((at + 8) * F::BYTES)));
            for r in 0..R {
                low[r] = _mm256_fmadd_ps(w_low, _mm256_loadu_ps(x[r].as_ptr().add(at)), low[r]);
                high[r] = _mm256_fmadd_ps(w_high, _mm256_loadu_ps(x[r].as_ptr().add(at + 8)), high[r]);
            }
        }
        let done = groups * FLOAT_LANES;
        let mut products = [0f32; R];
        for r in 0..R {
            let mut lanes = [0f32; FLOAT_LANES];
            _mm256_storeu_ps(lanes.as_mut_ptr(), low[r]);
            _mm256_storeu_ps(lanes.as_mut_ptr().add(8), high[r]);
            let rest = row[done * F::BYTES..].chunks_exact(F::BYTES);
            for (lane, (cell, x)) in lanes.iter_mut().zip(rest.zip(&x[r][done..])) {
                *lane = F::decode(cell).mul_add(*x, *lane);
            }
            products[r] = add_lanes(lanes);
        }
        products
    }
}
