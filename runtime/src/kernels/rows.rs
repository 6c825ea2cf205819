//! Dot products of one weight row with several activation rows at once.
//!
//! Owns AVX2 kernels for the formats that models are mostly made of. They do candle's arithmetic in
//! candle's order, so every bit is that of `GgmlType::vec_dot` and of a row on its own; but half floats
//! are converted in place instead of by a call, and a weight block is unpacked once for all rows. It
//! must not know where rows come from.

use candle_core::quantized::k_quants::{BlockQ8_0, BlockQ8K};

/// Most activation rows of one call.
pub(super) const ROWS_MAX: usize = 4;

/// A format's dot products with activation rows chosen by index.
pub(super) trait RowDots {
    /// The dot product of weight row `row` with each of the activation rows `m`.
    fn dots<const R: usize>(&self, row: &[u8], m: [usize; R]) -> [f32; R];
}

/// Whether the kernels of this file may run (cached by the standard library).
pub(super) fn are_supported() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// A weight format's kernel for activation rows of `per_row` blocks of a type.
macro_rules! kernel {
    ($name:ident, $block:ty, $dots:path) => {
        pub(super) struct $name<'a> {
            blocks: &'a [$block],
            per_row: usize,
        }

        impl<'a> $name<'a> {
            /// # Safety
            /// Only where [`are_supported`].
            pub(super) unsafe fn new(blocks: &'a [$block], per_row: usize) -> Self {
                $name { blocks, per_row }
            }
        }

        impl RowDots for $name<'_> {
            fn dots<const R: usize>(&self, row: &[u8], m: [usize; R]) -> [f32; R] {
                let rows = m.map(|m| &self.blocks[m * self.per_row..(m + 1) * self.per_row]);
                // SAFETY: whoever made this has seen that the instructions are there.
                unsafe { $dots(row, rows) }
            }
        }
    };
}

kernel!(Q4K, BlockQ8K, avx2::q4k);
kernel!(Q6K, BlockQ8K, avx2::q6k);
kernel!(Q8_0, BlockQ8_0, avx2::q8_0);

mod avx2 {
    //! Weight blocks are read as bytes in ggml's layout, activation blocks through the twins of
    //! candle's types.

    use std::arch::x86_64::*;

    use candle_core::quantized::k_quants::{BlockQ8_0, BlockQ8K};

    use super::super::quantize::twin;

    /// ggml's `block_q4_K`: d, dmin (f16), 8 scales and 8 minima of 6 bits, 256 weights of 4 bits.
    const Q4K_BYTES: usize = 144;
    /// ggml's `block_q6_K`: low 4 bits of 256 weights, high 2 bits, 16 scales of 8 bits, d (f16).
    const Q6K_BYTES: usize = 210;
    /// ggml's `block_q8_0`: d (f16), 32 weights.
    const Q8_0_BYTES: usize = 34;

    /// Reads `N` bytes at `at`, bounds checked.
    #[inline(always)]
    fn cell<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        bytes[at..at + N].try_into().expect("invariant: N bytes")
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn half(bytes: &[u8], at: usize) -> f32 {
        let bits = i32::from(u16::from_le_bytes(cell(bytes, at)));
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load32(bytes: &[u8; 32]) -> __m256i {
        // SAFETY: 32 bytes are there.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load_i8(values: &[i8; 32]) -> __m256i {
        // SAFETY: 32 bytes are there.
        unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
    }

    /// Sum of 8 floats, in candle's order.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn sum8(x: __m256) -> f32 {
        let sum = _mm_add_ps(_mm256_extractf128_ps(x, 1), _mm256_castps256_ps128(x));
        sum4(sum)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn sum4(x: __m128) -> f32 {
        let sum = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)))
    }

    /// The 8 scales, then the 8 minima of a Q4_K block, as 16-bit numbers.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn scales_and_minima(block: &[u8; Q4K_BYTES]) -> __m256i {
        let word = |at| u32::from_le_bytes(cell(block, at));
        let (a, b, c) = (word(4), word(8), word(12));
        let high = |x: u32| ((x >> 6) & 0x0303_0303) << 4;
        let packed = _mm_set_epi32(
            (((c >> 4) & 0x0f0f_0f0f) | high(b)).cast_signed(),
            (b & 0x3f3f_3f3f).cast_signed(),
            ((c & 0x0f0f_0f0f) | high(a)).cast_signed(),
            (a & 0x3f3f_3f3f).cast_signed(),
        );
        _mm256_cvtepu8_epi16(packed)
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn q4k<const R: usize>(row: &[u8], x: [&[BlockQ8K]; R]) -> [f32; R] {
        let x = x.map(twin::q8k);
        let low_half = _mm256_set1_epi8(0xF);
        let (mut acc, mut acc_min) = ([_mm256_setzero_ps(); R], [_mm_setzero_ps(); R]);
        for (index, block) in row.as_chunks::<Q4K_BYTES>().0.iter().enumerate() {
            let (d, d_min) = (half(block, 0), half(block, 2));
            let both = scales_and_minima(block);
            let minima = _mm256_extracti128_si256(both, 1);
            let scales = _mm256_broadcastsi128_si256(_mm256_castsi256_si128(both));
            let mut sums = [_mm256_setzero_si256(); R];
            for j in 0..4 {
                // Bytes 2k and 2k + 1, the k-th scale, in every 16-bit lane.
                let lane = 0x0100 + 0x0404 * j as i16;
                let scale_low = _mm256_shuffle_epi8(scales, _mm256_set1_epi16(lane));
                let scale_high = _mm256_shuffle_epi8(scales, _mm256_set1_epi16(lane + 0x0202));
                let bits = load32(&cell(block, 16 + 32 * j));
                let low = _mm256_and_si256(bits, low_half);
                let high = _mm256_and_si256(_mm256_srli_epi16(bits, 4), low_half);
                for r in 0..R {
                    let eights = &x[r][index].qs.as_chunks::<32>().0;
                    let p = _mm256_maddubs_epi16(low, load_i8(&eights[2 * j]));
                    sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(scale_low, p));
                    let p = _mm256_maddubs_epi16(high, load_i8(&eights[2 * j + 1]));
                    sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(scale_high, p));
                }
            }
            for r in 0..R {
                let y = &x[r][index];
                // SAFETY: 16 sums of 2 bytes.
                let eights = unsafe { _mm256_loadu_si256(y.sums.as_ptr().cast()) };
                let eights =
                    _mm_hadd_epi16(_mm256_castsi256_si128(eights), _mm256_extracti128_si256(eights, 1));
                let min = _mm_cvtepi32_ps(_mm_madd_epi16(minima, eights));
                acc_min[r] = _mm_fmadd_ps(_mm_set1_ps(-y.d * d_min), min, acc_min[r]);
                acc[r] = _mm256_fmadd_ps(_mm256_set1_ps(y.d * d), _mm256_cvtepi32_ps(sums[r]), acc[r]);
            }
        }
        std::array::from_fn(|r| sum8(acc[r]) + sum4(acc_min[r]))
    }

    /// Weights 128 `half` + 0..128 of a Q6_K block, 32 a vector, each 32 too large.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn q6k_weights(block: &[u8; Q6K_BYTES], half: usize) -> [__m256i; 4] {
        let (low_four, low_two) = (_mm256_set1_epi8(0xF), _mm256_set1_epi8(3));
        let a = load32(&cell(block, 64 * half));
        let b = load32(&cell(block, 64 * half + 32));
        let h = load32(&cell(block, 128 + 32 * half));
        let high = |h| _mm256_slli_epi16(_mm256_and_si256(h, low_two), 4);
        let low = |x| _mm256_and_si256(x, low_four);
        [
            _mm256_or_si256(low(a), high(h)),
            _mm256_or_si256(low(b), high(_mm256_srli_epi16(h, 2))),
            _mm256_or_si256(low(_mm256_srli_epi16(a, 4)), high(_mm256_srli_epi16(h, 4))),
            _mm256_or_si256(low(_mm256_srli_epi16(b, 4)), high(_mm256_srli_epi16(h, 6))),
        ]
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn q6k<const R: usize>(row: &[u8], x: [&[BlockQ8K]; R]) -> [f32; R] {
        let x = x.map(twin::q8k);
        let offset = _mm256_set1_epi8(32);
        let mut acc = [_mm256_setzero_ps(); R];
        for (index, block) in row.as_chunks::<Q6K_BYTES>().0.iter().enumerate() {
            let d = half(block, 208);
            let mut sums = [_mm256_setzero_si256(); R];
            for j in 0..2 {
                for (k, w) in q6k_weights(block, j).into_iter().enumerate() {
                    let at = 192 + 8 * j + 2 * k;
                    let scale = |at: usize| i64::from_ne_bytes([block[at]; 8]);
                    let scales = _mm256_cvtepi8_epi16(_mm_set_epi64x(scale(at + 1), scale(at)));
                    for r in 0..R {
                        let eights = load_i8(&x[r][index].qs.as_chunks::<32>().0[4 * j + k]);
                        let p = _mm256_maddubs_epi16(w, eights);
                        let p = _mm256_sub_epi16(p, _mm256_maddubs_epi16(offset, eights));
                        sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(scales, p));
                    }
                }
            }
            for r in 0..R {
                let scale = _mm256_set1_ps(x[r][index].d * d);
                acc[r] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sums[r]), acc[r]);
            }
        }
        acc.map(|acc| sum8(acc))
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn q8_0<const R: usize>(row: &[u8], x: [&[BlockQ8_0]; R]) -> [f32; R] {
        let x = x.map(twin::q8_0);
        let ones = _mm256_set1_epi16(1);
        let mut acc = [_mm256_setzero_ps(); R];
        for (index, block) in row.as_chunks::<Q8_0_BYTES>().0.iter().enumerate() {
            let d = half(block, 0);
            let w = load32(&cell(block, 2));
            let size = _mm256_sign_epi8(w, w);
            for r in 0..R {
                let y = &x[r][index];
                let p = _mm256_maddubs_epi16(size, _mm256_sign_epi8(load_i8(&y.qs), w));
                let p = _mm256_cvtepi32_ps(_mm256_madd_epi16(ones, p));
                let y_d = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(y.d.to_bits()))));
                acc[r] = _mm256_fmadd_ps(_mm256_set1_ps(d * y_d), p, acc[r]);
            }
        }
        acc.map(|acc| sum8(acc))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::gguf::BlockType;
    use crate::kernels::format::blocks;
    use crate::kernels::matmul::tests::{SCALES, bytes_of, noise, random_weights};
    use crate::kernels::quantize::{Quantized, quantize};
    use candle_core::quantized::GgmlType;
    use candle_core::quantized::k_quants::{BlockQ4K, BlockQ6K};

    const COLS: usize = 1024;
    const ROWS: usize = 9;

    /// Compares `dots` with candle's on random rows, four at a time and one at a time.
    fn same_as_candle<T: GgmlType<VecDotType = X>, X: Quantized>(
        block_type: BlockType,
        dots: impl for<'a> Fn(&'a [X]) -> Box<dyn Fn(&[u8]) -> ([f32; 4], [f32; 1]) + 'a>,
    ) {
        let scales = SCALES.iter().find(|(t, _)| *t == block_type).unwrap().1;
        for seed in 0..20 {
            let words = random_weights(block_type, scales, ROWS * COLS, seed);
            let x: Vec<X> = quantize(&noise(4 * COLS, seed + 100));
            let per_row = COLS / X::BLCK_SIZE;
            let dots = dots(&x);
            for row in bytes_of(&words).chunks(words.len() * 2 / ROWS) {
                let expected = |m: usize| T::vec_dot(COLS, blocks(row), &x[m * per_row..(m + 1) * per_row]);
                let (four, one) = dots(row);
                assert_eq!(four.map(f32::to_bits), [0, 1, 2, 3].map(|m| expected(m).to_bits()));
                assert_eq!(one[0].to_bits(), expected(2).to_bits());
            }
        }
    }

    #[test]
    fn products_are_bitwise_those_of_candle() {
        if !are_supported() {
            eprintln!("skipped: no AVX2, FMA and F16C on this machine");
            return;
        }
        same_as_candle::<BlockQ4K, _>(BlockType::Q4_K, |x| {
            // SAFETY: checked above.
            let kernel = unsafe { Q4K::new(x, COLS / 256) };
            Box::new(move |row| (kernel.dots(row, [0, 1, 2, 3]), kernel.dots(row, [2])))
        });
        same_as_candle::<BlockQ6K, _>(BlockType::Q6_K, |x| {
            // SAFETY: checked above.
            let kernel = unsafe { Q6K::new(x, COLS / 256) };
            Box::new(move |row| (kernel.dots(row, [0, 1, 2, 3]), kernel.dots(row, [2])))
        });
        same_as_candle::<BlockQ8_0, _>(BlockType::Q8_0, |x| {
            // SAFETY: checked above.
            let kernel = unsafe { Q8_0::new(x, COLS / 32) };
            Box::new(move |row| (kernel.dots(row, [0, 1, 2, 3]), kernel.dots(row, [2])))
        });
    }
}
