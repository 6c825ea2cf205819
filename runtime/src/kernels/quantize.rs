//! Activation rows in 8 bits, as the integer dots want them.
//!
//! Owns the two quantizers that stand in front of nearly every product (Q8_0, Q8_K), compiled with
//! AVX2: candle's run one value at a time, with a library call to round each. Same arithmetic, same
//! bits: blocks equal `GgmlType::from_float`'s, which serves every other format and machine.

use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::{BlockQ8_0, BlockQ8_1, BlockQ8K};

/// A block of 8-bit activations.
pub(super) trait Quantized: GgmlType {
    /// Writes `values` as `out.len()` blocks.
    fn quantize(values: &[f32], out: &mut [Self]) {
        Self::from_float(values, out);
    }
}

impl Quantized for BlockQ8_1 {}

impl Quantized for BlockQ8_0 {
    #[cfg(target_arch = "x86_64")]
    fn quantize(values: &[f32], out: &mut [Self]) {
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was detected.
            return unsafe { avx2::q8_0(values, out) };
        }
        Self::from_float(values, out);
    }
}

impl Quantized for BlockQ8K {
    #[cfg(target_arch = "x86_64")]
    fn quantize(values: &[f32], out: &mut [Self]) {
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was detected.
            return unsafe { avx2::q8k(values, out) };
        }
        Self::from_float(values, out);
    }
}

/// `values` (a whole number of blocks) as blocks.
pub(super) fn quantize<T: Quantized>(values: &[f32]) -> Vec<T> {
    let mut out = vec![T::zeros(); values.len() / T::BLCK_SIZE];
    T::quantize(values, &mut out);
    out
}

#[cfg(target_arch = "x86_64")]
pub(super) mod twin {
    //! candle's blocks with their fields in reach. The layouts are ggml's, and fixed; a test compares
    //! every field through them.

    use candle_core::quantized::k_quants::{BlockQ8_0, BlockQ8K};
    use half::f16;

    /// [`BlockQ8_0`] with its fields in reach (ggml's `block_q8_0`).
    #[repr(C)]
    pub(in super::super) struct Q8_0 {
        pub(in super::super) d: f16,
        pub(in super::super) qs: [i8; 32],
    }

    /// [`BlockQ8K`] with its fields in reach (ggml's `block_q8_K`).
    #[repr(C)]
    pub(in super::super) struct Q8K {
        pub(in super::super) d: f32,
        pub(in super::super) qs: [i8; 256],
        pub(in super::super) sums: [i16; 16],
    }

    const _: () = assert!(size_of::<Q8_0>() == size_of::<BlockQ8_0>());
    const _: () = assert!(align_of::<Q8_0>() == align_of::<BlockQ8_0>());
    const _: () = assert!(size_of::<Q8K>() == size_of::<BlockQ8K>());
    const _: () = assert!(align_of::<Q8K>() == align_of::<BlockQ8K>());

    /// Reads blocks as their twins.
    #[inline(always)]
    pub(in super::super) fn q8_0(blocks: &[BlockQ8_0]) -> &[Q8_0] {
        // SAFETY: both are `repr(C)` with the same fields in the same order, of plain numbers.
        unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast::<Q8_0>(), blocks.len()) }
    }

    /// Reads blocks as their twins.
    #[inline(always)]
    pub(in super::super) fn q8k(blocks: &[BlockQ8K]) -> &[Q8K] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast::<Q8K>(), blocks.len()) }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! Plain loops over arrays of lanes, which the compiler turns into vector code.

    use candle_core::quantized::k_quants::{BlockQ8_0, BlockQ8K};
    use half::f16;

    use super::twin::{Q8_0, Q8K};

    const LANES: usize = 16;

    #[target_feature(enable = "avx2")]
    pub(super) fn q8_0(values: &[f32], out: &mut [BlockQ8_0]) {
        // SAFETY: both are `repr(C)` with the same fields in the same order (ggml's layout, and a test
        // compares them), so any value of one is a value of the other.
        let out = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<Q8_0>(), out.len()) };
        for (x, out) in values.as_chunks::<32>().0.iter().zip(out) {
            let (least, greatest) = range(x);
            let d = larger(greatest, -least) / 127.0;
            let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
            out.d = f16::from_f32(d);
            for (q, x) in out.qs.iter_mut().zip(x) {
                *q = nearest(x * inverse);
            }
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn q8k(values: &[f32], out: &mut [BlockQ8K]) {
        // SAFETY: as in `q8_0`.
        let out = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<Q8K>(), out.len()) };
        for (x, out) in values.as_chunks::<256>().0.iter().zip(out) {
            let max = extreme(x);
            if max == 0.0 {
                *out = Q8K { d: 0.0, qs: [0; 256], sums: [0; 16] };
                continue;
            }
            let scale = -127.0 / max;
            for (q, x) in out.qs.iter_mut().zip(x) {
                *q = nearest(scale * x);
            }
            for (sum, q) in out.sums.iter_mut().zip(out.qs.as_chunks::<16>().0) {
                *sum = q.iter().map(|q| i16::from(*q)).sum();
            }
            out.d = 1.0 / scale;
        }
    }

    /// `value.round() as i8`, in steps that have vector instructions: rounding halves away from zero is
    /// adding the float below 0.5 and cutting off.
    #[inline(always)]
    pub(super) fn nearest(value: f32) -> i8 {
        let rounded = (value + 0.5f32.next_down().copysign(value)).trunc();
        let bounded = if rounded.is_nan() { 0.0 } else { rounded.clamp(-128.0, 127.0) };
        // SAFETY: a number from -128 to 127.
        unsafe { bounded.to_int_unchecked::<i32>() as i8 }
    }

    /// The first value of the largest magnitude, with its sign.
    #[inline(always)]
    fn extreme(x: &[f32; 256]) -> f32 {
        let (least, greatest) = range(x);
        if greatest == -least {
            return x.iter().copied().find(|x| x.abs() == greatest).unwrap_or(0.0);
        }
        if greatest > -least { greatest } else { least }
    }

    /// The least and the greatest value, 0 included; NaN does not count.
    #[inline(always)]
    fn range(x: &[f32]) -> (f32, f32) {
        let (mut least, mut greatest) = ([0f32; LANES], [0f32; LANES]);
        for x in x.as_chunks::<LANES>().0 {
            for i in 0..LANES {
                least[i] = smaller(least[i], x[i]);
                greatest[i] = larger(greatest[i], x[i]);
            }
        }
        (least.into_iter().fold(0.0, smaller), greatest.into_iter().fold(0.0, larger))
    }

    #[inline(always)]
    fn smaller(best: f32, next: f32) -> f32 {
        if next < best { next } else { best }
    }

    #[inline(always)]
    fn larger(best: f32, next: f32) -> f32 {
        if next > best { next } else { best }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::matmul::tests::noise;

    /// Rows with what may go wrong in them: ties in size and in rounding, zeros, numbers that are none.
    fn rows() -> Vec<Vec<f32>> {
        let ramp = |scale: f32| (0..512).map(|i| (i as f32 - 255.0) * scale).collect::<Vec<f32>>();
        let with = |at: usize, value: f32| {
            let mut row = noise(512, at as u64);
            row[at] = value;
            row
        };
        let ties: Vec<f32> =
            (0..512).map(|i| [127.0, -127.0, 0.5, -0.5, 1.5, 126.5, -2.5, 0.0][i % 8]).collect();
        let opposite = ties.iter().map(|x| -x).collect();
        let mut rows = vec![vec![0.0; 512], vec![-0.0; 512], ramp(1.0), ramp(-0.125), ties, opposite];
        for value in
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45]
        {
            rows.extend([with(3, value), with(300, value), vec![value; 512]]);
        }
        rows.extend((0..200).map(|seed| noise(512, seed)));
        rows
    }

    /// Compares as text, in which NaN equals NaN and -0 differs from 0.
    fn same_as_candle<T: Quantized + std::fmt::Debug>() {
        for row in rows() {
            let mut expected = vec![T::zeros(); row.len() / T::BLCK_SIZE];
            T::from_float(&row, &mut expected);
            let got: Vec<T> = quantize(&row);
            assert_eq!(format!("{got:?}"), format!("{expected:?}"), "{row:?}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn rounding_is_that_of_the_standard_library() {
        let halves = (-600..600).map(|i| i as f32 / 4.0);
        for value in halves.flat_map(|x| [x.next_down(), x, x.next_up()]).chain(noise(100_000, 7)) {
            assert_eq!(avx2::nearest(value), value.round() as i8, "{value}");
        }
    }

    #[test]
    fn blocks_are_bitwise_those_of_candle() {
        same_as_candle::<BlockQ8_0>();
        same_as_candle::<BlockQ8K>();
    }
}
