//! Eight f32 lanes: what the attention kernels are written in.
//!
//! Owns the operations they need, once in plain Rust and once in AVX2, and the choice between the two.
//! Both give the same bits: a product with an addition is fused (rounded once), and the lanes of a sum
//! are added in one tree. On aarch64 the plain version compiles to fused NEON instructions. It must not
//! know what is computed.

use half::f16;

/// Lanes of a vector.
pub(super) const LANES: usize = 8;

/// A vector of [`LANES`] floats.
pub(super) trait Lanes: Copy {
    /// `value` in every lane.
    fn splat(value: f32) -> Self;

    /// Eight values.
    fn load(from: &[f32; LANES]) -> Self;

    /// Stores the eight values.
    fn store(self, to: &mut [f32; LANES]);

    /// `self * by`.
    fn mul(self, by: Self) -> Self;

    /// `self * by + add`, rounded once.
    fn mul_add(self, by: Self, add: Self) -> Self;

    /// The sums of four vectors' lanes, each `((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))`.
    fn sums(of: [Self; 4]) -> [f32; 4];

    /// Eight little-endian f16.
    fn from_halves(bytes: &[u8; 2 * LANES]) -> Self;

    /// Eight signed bytes.
    fn from_bytes(bytes: &[u8; LANES]) -> Self;

    /// Says that these bytes will be read soon.
    fn expect(bytes: &[u8]);
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; LANES]);

impl Lanes for Plain {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Plain([value; LANES])
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        Plain(*from)
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }

    #[inline(always)]
    fn mul(self, by: Self) -> Self {
        Plain(std::array::from_fn(|i| self.0[i] * by.0[i]))
    }

    #[inline(always)]
    fn mul_add(self, by: Self, add: Self) -> Self {
        Plain(std::array::from_fn(|i| self.0[i].mul_add(by.0[i], add.0[i])))
    }

    #[inline(always)]
    fn sums(of: [Self; 4]) -> [f32; 4] {
        of.map(|Plain(v)| ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])))
    }

    #[inline(always)]
    fn from_halves(bytes: &[u8; 2 * LANES]) -> Self {
        Plain(std::array::from_fn(|i| f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32()))
    }

    #[inline(always)]
    fn from_bytes(bytes: &[u8; LANES]) -> Self {
        Plain(bytes.map(|byte| f32::from(byte.cast_signed())))
    }

    /// There is no portable way to say so.
    #[inline(always)]
    fn expect(_bytes: &[u8]) {}
}

/// Whether code for AVX2, FMA and F16C may run (cached by the standard library).
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m128i, __m256, _MM_HINT_T0, _mm_add_ps, _mm_loadl_epi64, _mm_loadu_si128, _mm_prefetch,
        _mm_storeu_ps, _mm256_castps256_ps128, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtph_ps,
        _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_hadd_ps, _mm256_loadu_ps, _mm256_mul_ps,
        _mm256_set1_ps, _mm256_storeu_ps,
    };

    use super::{LANES, Lanes};

    /// One AVX register. Only functions that are compiled with AVX2, FMA and F16C, and run after
    /// [`super::has_avx2`] said so, may make one: every method below relies on that.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(__m256);

    impl Lanes for Avx2 {
        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: the CPU has AVX (see the type).
            Avx2(unsafe { _mm256_set1_ps(value) })
        }

        #[inline(always)]
        fn load(from: &[f32; LANES]) -> Self {
            // SAFETY: the CPU has AVX (see the type); eight floats are there.
            Avx2(unsafe { _mm256_loadu_ps(from.as_ptr()) })
        }

        #[inline(always)]
        fn store(self, to: &mut [f32; LANES]) {
            // SAFETY: the CPU has AVX (see the type); there is room for eight floats.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn mul(self, by: Self) -> Self {
            // SAFETY: the CPU has AVX (see the type).
            Avx2(unsafe { _mm256_mul_ps(self.0, by.0) })
        }

        #[inline(always)]
        fn mul_add(self, by: Self, add: Self) -> Self {
            // SAFETY: the CPU has FMA (see the type).
            Avx2(unsafe { _mm256_fmadd_ps(self.0, by.0, add.0) })
        }

        #[inline(always)]
        fn sums(of: [Self; 4]) -> [f32; 4] {
            let mut sums = [0f32; 4];
            // SAFETY: the CPU has AVX (see the type); there is room for four floats.
            unsafe {
                let pairs = [_mm256_hadd_ps(of[0].0, of[1].0), _mm256_hadd_ps(of[2].0, of[3].0)];
                let fours = _mm256_hadd_ps(pairs[0], pairs[1]);
                let (low, high) = (_mm256_castps256_ps128(fours), _mm256_extractf128_ps::<1>(fours));
                _mm_storeu_ps(sums.as_mut_ptr(), _mm_add_ps(low, high));
            }
            sums
        }

        #[inline(always)]
        fn from_halves(bytes: &[u8; 2 * LANES]) -> Self {
            // SAFETY: the CPU has F16C (see the type); sixteen bytes are there.
            Avx2(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast::<__m128i>())) })
        }

        #[inline(always)]
        fn from_bytes(bytes: &[u8; LANES]) -> Self {
            // SAFETY: the CPU has AVX2 (see the type); eight bytes are there.
            Avx2(unsafe {
                let wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(bytes.as_ptr().cast::<__m128i>()));
                _mm256_cvtepi32_ps(wide)
            })
        }

        #[inline(always)]
        fn expect(bytes: &[u8]) {
            for line in bytes.chunks(64) {
                // SAFETY: a hint about memory that is there.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast::<i8>()) };
            }
        }
    }
}
