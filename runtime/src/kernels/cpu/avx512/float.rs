//! Float weights in 512-bit registers.

use std::arch::x86_64::*;

use super::super::avx2::{finish, prefetch};
use super::super::portable::{BF16, F16, F32, FLOAT_LANES, Float};
use super::super::tile::Tile;

/// A float format in registers.
pub(in crate::kernels) trait WideFloat: Float {
    /// Sixteen numbers.
    ///
    /// # Safety
    /// Inlined into a function with AVX-512; sixteen numbers are at `cells`.
    unsafe fn load(cells: *const u8) -> __m512;
}

impl WideFloat for F32 {
    #[inline(always)]
    unsafe fn load(cells: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(cells.cast()) }
    }
}

impl WideFloat for F16 {
    #[inline(always)]
    unsafe fn load(cells: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(cells.cast())) }
    }
}

impl WideFloat for BF16 {
    #[inline(always)]
    unsafe fn load(cells: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(cells.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))
        }
    }
}

/// Kernel of a float format.
///
/// # Safety
/// As [`TileFn`](super::super::tile::TileFn).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(in crate::kernels) unsafe fn tile_float<F: WideFloat, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise, and this function's instructions.
    unsafe {
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
        let done = x[0].len() / FLOAT_LANES * FLOAT_LANES;
        let mut sums = [_mm512_setzero_ps(); R];
        for at in (0..done).step_by(FLOAT_LANES) {
            prefetch(&row[at * F::BYTES..(at + FLOAT_LANES) * F::BYTES]);
            let w = F::load(row.as_ptr().add(at * F::BYTES));
            for r in 0..R {
                sums[r] = _mm512_fmadd_ps(w, _mm512_loadu_ps(x[r].as_ptr().add(at)), sums[r]);
            }
        }
        let mut products = [0f32; R];
        for r in 0..R {
            let mut lanes = [0f32; FLOAT_LANES];
            _mm512_storeu_ps(lanes.as_mut_ptr(), sums[r]);
            products[r] = finish::<F>(lanes, &row[done * F::BYTES..], &x[r][done..]);
        }
        products
    }
}
