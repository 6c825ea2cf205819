//! Float weights in registers.

use std::arch::x86_64::*;

use super::super::portable::{BF16, F16, F32, FLOAT_LANES, Float, add_lanes};
use super::super::tile::Tile;

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

/// Kernel of a float format. Eight rows are taken four at a time: more sums than registers would be
/// slower than reading the weights twice.
///
/// # Safety
/// As [`TileFn`](super::super::tile::TileFn).
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) unsafe fn tile_float<F: WideFloat, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise, and this function's instructions.
    unsafe {
        let x: [&[f32]; R] = tile.x(tile.cols);
        for (n, row) in tile.rows() {
            let mut products = [0f32; R];
            for (x, products) in x.chunks(4).zip(products.chunks_mut(4)) {
                match x {
                    [a, b, c, d] => products.copy_from_slice(&dots::<F, 4>(row, [a, b, c, d])),
                    [a, b] => products.copy_from_slice(&dots::<F, 2>(row, [a, b])),
                    _ => products.copy_from_slice(&dots::<F, 1>(row, [x[0]])),
                }
            }
            tile.store(n, products);
        }
    }
}

#[inline(always)]
unsafe fn dots<F: WideFloat, const R: usize>(row: &[u8], x: [&[f32]; R]) -> [f32; R] {
    // SAFETY: whole groups of 16 numbers lie in the row and in each `x`, which has a value for each.
    unsafe {
        let groups = x[0].len() / FLOAT_LANES;
        let mut acc = [[_mm256_setzero_ps(); 2]; R];
        for group in 0..groups {
            for part in 0..2 {
                let at = group * FLOAT_LANES + 8 * part;
                let w = F::load(row.as_ptr().add(at * F::BYTES));
                for r in 0..R {
                    acc[r][part] = _mm256_fmadd_ps(w, _mm256_loadu_ps(x[r].as_ptr().add(at)), acc[r][part]);
                }
            }
        }
        let done = groups * FLOAT_LANES;
        std::array::from_fn(|r| {
            let mut lanes = [0f32; FLOAT_LANES];
            _mm256_storeu_ps(lanes.as_mut_ptr(), acc[r][0]);
            _mm256_storeu_ps(lanes.as_mut_ptr().add(8), acc[r][1]);
            let rest = row[done * F::BYTES..].chunks_exact(F::BYTES);
            for (lane, (cell, x)) in lanes.iter_mut().zip(rest.zip(&x[r][done..])) {
                *lane = F::decode(cell).mul_add(*x, *lane);
            }
            add_lanes(lanes)
        })
    }
}
