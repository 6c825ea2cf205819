//! Dot products of float weight rows (F32, F16, BF16) with an f32 activation row.
//!
//! Owns the run-time choice between AVX2+FMA+F16C code and portable code. Both add in one fixed
//! order (32 partial sums, then a fixed tree), so a result depends on the row alone. Weight rows are
//! read as bytes: streamed experts need not be aligned for floats.

use half::f16;

const LANES: usize = 32;

/// Sum of the 32 partial sums, in one fixed tree.
#[inline(always)]
fn reduce(acc: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    let mut acc = acc;
    while width > 0 {
        for i in 0..width {
            acc[i] += acc[i + width];
        }
        width /= 2;
    }
    acc[0]
}

/// `FMA` only where the instruction exists: without it `mul_add` is a library call.
#[inline(always)]
fn accumulate<const FMA: bool>(acc: f32, a: f32, b: f32) -> f32 {
    if FMA { a.mul_add(b, acc) } else { acc + a * b }
}

/// One dot product over elements decoded `LANES` at a time by `decode`.
#[inline(always)]
fn dot_with<const FMA: bool, const BYTES: usize>(
    row: &[u8],
    x: &[f32],
    decode: impl Fn(&[u8; BYTES]) -> f32,
) -> f32 {
    let mut acc = [0f32; LANES];
    let (row_cells, _) = row.as_chunks::<BYTES>();
    let (row_chunks, row_tail) = row_cells.as_chunks::<LANES>();
    let (x_chunks, x_tail) = x.as_chunks::<LANES>();
    for (w, x) in row_chunks.iter().zip(x_chunks) {
        for i in 0..LANES {
            acc[i] = accumulate::<FMA>(acc[i], decode(&w[i]), x[i]);
        }
    }
    for (i, (w, x)) in row_tail.iter().zip(x_tail).enumerate() {
        acc[i] = accumulate::<FMA>(acc[i], decode(w), *x);
    }
    reduce(acc)
}

#[inline(always)]
fn decode_f32(cell: &[u8; 4]) -> f32 {
    f32::from_le_bytes(*cell)
}

#[inline(always)]
fn decode_bf16(cell: &[u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(*cell)) << 16)
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! The same loops compiled with AVX2, FMA and F16C.

    use super::{LANES, decode_bf16, decode_f32, dot_with, reduce};
    use std::arch::x86_64::{
        __m128i, _mm_loadu_si128, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps,
        _mm256_storeu_ps,
    };

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn dot_f32_bytes(row: &[u8], x: &[f32]) -> f32 {
        dot_with::<true, 4>(row, x, decode_f32)
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn dot_bf16(row: &[u8], x: &[f32]) -> f32 {
        dot_with::<true, 2>(row, x, decode_bf16)
    }

    /// F16 conversion needs the intrinsic: the compiler does not vectorize `half`'s.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn dot_f16(row: &[u8], x: &[f32]) -> f32 {
        let mut acc = [_mm256_setzero_ps(); 4];
        let (chunks, tail) = row.as_chunks::<{ 2 * LANES }>();
        let (x_chunks, x_tail) = x.as_chunks::<LANES>();
        for (w, x) in chunks.iter().zip(x_chunks) {
            for (i, acc) in acc.iter_mut().enumerate() {
                // SAFETY: 16 bytes at 16 * i of a 64-byte chunk, 8 floats at 8 * i of 32.
                let (w, x) = unsafe {
                    (
                        _mm_loadu_si128(w.as_ptr().add(16 * i).cast::<__m128i>()),
                        _mm256_loadu_ps(x.as_ptr().add(8 * i)),
                    )
                };
                *acc = _mm256_fmadd_ps(_mm256_cvtph_ps(w), x, *acc);
            }
        }
        let mut lanes = [0f32; LANES];
        for (i, acc) in acc.into_iter().enumerate() {
            // SAFETY: 8 floats at 8 * i of 32.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr().add(8 * i), acc) };
        }
        for (i, (w, x)) in tail.as_chunks::<2>().0.iter().zip(x_tail).enumerate() {
            lanes[i] = half::f16::from_le_bytes(*w).to_f32().mul_add(*x, lanes[i]);
        }
        reduce(lanes)
    }
}

/// Whether the AVX2+FMA+F16C code may run (cached by the standard library).
#[cfg(target_arch = "x86_64")]
#[inline]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

macro_rules! dispatch {
    ($avx2:expr, $portable:expr) => {{
        #[cfg(target_arch = "x86_64")]
        if has_avx2() {
            // SAFETY: the features were detected.
            return unsafe { $avx2 };
        }
        $portable
    }};
}

/// Dot product of a little-endian F32 row (`4 * x.len()` bytes) with `x`.
pub(super) fn dot_f32_bytes(row: &[u8], x: &[f32]) -> f32 {
    dispatch!(avx2::dot_f32_bytes(row, x), dot_with::<false, 4>(row, x, decode_f32))
}

/// Dot product of a little-endian F16 row (`2 * x.len()` bytes) with `x`.
pub(super) fn dot_f16_bytes(row: &[u8], x: &[f32]) -> f32 {
    dispatch!(avx2::dot_f16(row, x), dot_with::<false, 2>(row, x, |cell| f16::from_le_bytes(*cell).to_f32()))
}

/// Dot product of a little-endian BF16 row (`2 * x.len()` bytes) with `x`.
pub(super) fn dot_bf16_bytes(row: &[u8], x: &[f32]) -> f32 {
    dispatch!(avx2::dot_bf16(row, x), dot_with::<false, 2>(row, x, decode_bf16))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(n: usize) -> (Vec<f32>, Vec<f32>) {
        let a = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
        let b = (0..n).map(|i| ((i * 53 % 97) as f32 - 48.0) / 32.0).collect();
        (a, b)
    }

    #[test]
    fn float_rows_agree_with_f64_arithmetic_at_every_length() {
        for n in [0, 1, 7, 31, 32, 33, 63, 64, 100, 576] {
            let (a, b) = ramp(n);
            let exact: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let halves: Vec<u8> = a.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
            let floats: Vec<u8> = a.iter().flat_map(|v| v.to_le_bytes()).collect();
            let bf: Vec<u8> = a.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
            assert!((f64::from(dot_f32_bytes(&floats, &b)) - exact).abs() < 1e-4, "f32 {n}");
            assert!((f64::from(dot_f16_bytes(&halves, &b)) - exact).abs() < 1e-4, "f16 {n}");
            assert!((f64::from(dot_bf16_bytes(&bf, &b)) - exact).abs() < 0.02 * n as f64 + 1e-6, "bf16 {n}");
        }
    }
}
