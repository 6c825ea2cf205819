//! Activation rows in 8 bits, as the integer dot products want them.
//!
//! Owns the two layouts (one scale for 256 values, or for 32) and their quantizer. Rounding is to the
//! nearest, halves to even, by arithmetic that is the same on every processor; so are the bits. A row
//! with a value that is not finite becomes NaN as a whole block: it must show, not vanish. Must not know
//! weights.

/// 256 activations for the 256 formats.
#[repr(C, align(64))]
#[derive(Clone, Debug, PartialEq)]
pub(in crate::kernels) struct X256 {
    /// -127..=127.
    pub(in crate::kernels) q: [i8; 256],
    /// Sum of every 16 of `q`.
    pub(in crate::kernels) sums: [i16; 16],
    /// Value of 1 in `q`.
    pub(in crate::kernels) d: f32,
}

/// Up to eight groups of 32 activations for the 32 formats; groups beyond the row are zero.
#[repr(C, align(64))]
#[derive(Clone, Debug, PartialEq)]
pub(in crate::kernels) struct X32 {
    /// -127..=127.
    pub(in crate::kernels) q: [i8; 256],
    /// Value of 1 in each group of `q`.
    pub(in crate::kernels) d: [f32; 8],
    /// Sum of each group of `q`.
    pub(in crate::kernels) sums: [i32; 8],
}

/// A layout of quantized activations.
pub(in crate::kernels) trait Activations: Clone {
    /// All zero.
    const ZERO: Self;

    /// Quantizes up to 256 values.
    fn quantize(values: &[f32], out: &mut Self);
}

/// Bytes that a row of `values` activations takes in a layout.
#[must_use]
pub const fn quantized_bytes(values: usize) -> usize {
    values.div_ceil(256) * size_of::<X256>()
}

const _: () = assert!(size_of::<X256>() == 320 && size_of::<X32>() == 320);

impl Activations for X256 {
    const ZERO: X256 = X256 { q: [0; 256], sums: [0; 16], d: 0.0 };

    #[inline(always)]
    fn quantize(values: &[f32], out: &mut X256) {
        let values: &[f32; 256] = values.try_into().expect("invariant: rows of 256 formats are whole blocks");
        out.d = round(values, &mut out.q);
        for (sum, q) in out.sums.iter_mut().zip(out.q.as_chunks::<16>().0) {
            *sum = q.iter().map(|q| i16::from(*q)).sum();
        }
    }
}

impl Activations for X32 {
    const ZERO: X32 = X32 { q: [0; 256], d: [0.0; 8], sums: [0; 8] };

    #[inline(always)]
    fn quantize(values: &[f32], out: &mut X32) {
        if values.len() < 256 {
            *out = X32::ZERO;
        }
        for (group, values) in values.as_chunks::<32>().0.iter().enumerate() {
            let q = &mut out.q.as_chunks_mut::<32>().0[group];
            out.d[group] = round(values, q);
            out.sums[group] = q.iter().map(|q| i32::from(*q)).sum();
        }
    }
}

/// Scales `values` to -127..=127 and rounds; returns what 1 stands for.
#[inline(always)]
fn round<const N: usize>(values: &[f32; N], q: &mut [i8; N]) -> f32 {
    let size = largest(values);
    if !size.is_finite() {
        *q = [0; N];
        return f32::NAN;
    }
    // Below this 127 / size would overflow; such rows are zero in any model.
    if size < 1e-30 {
        *q = [0; N];
        return 0.0;
    }
    let inverse = 127.0 / size;
    for (q, value) in q.iter_mut().zip(values) {
        *q = nearest(value * inverse);
    }
    size / 127.0
}

/// The largest magnitude. Compared as integers, in whose order infinity and NaN come last.
#[inline(always)]
fn largest<const N: usize>(values: &[f32; N]) -> f32 {
    let bits = values.iter().map(|value| value.to_bits() & 0x7fff_ffff).fold(0, u32::max);
    f32::from_bits(bits)
}

/// Rounds a number of at most 2^22: adding 1.5 * 2^23 leaves the integer in the low bits.
#[inline(always)]
fn nearest(value: f32) -> i8 {
    const SHIFT: f32 = 12_582_912.0;
    ((value + SHIFT).to_bits().wrapping_sub(SHIFT.to_bits())) as i8
}

/// `rows` of `width` values as blocks, row after row.
#[inline(always)]
pub(super) fn quantize_rows<X: Activations>(values: &[f32], width: usize, out: &mut [X]) {
    let per_row = width.div_ceil(256);
    for (values, out) in values.chunks(width).zip(out.chunks_mut(per_row)) {
        for (values, out) in values.chunks(256).zip(out) {
            X::quantize(values, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|i| ((i * i) as f32 * 0.37).sin() * scale).collect()
    }

    #[test]
    fn values_come_back_within_half_a_step_and_sums_are_those_of_the_integers() {
        for scale in [1e-20f32, 0.003, 1.0, 7e4, 1e30] {
            let values = wave(256, scale);
            let (mut wide, mut narrow) = (X256::ZERO, X32::ZERO);
            X256::quantize(&values, &mut wide);
            X32::quantize(&values, &mut narrow);
            for (i, value) in values.iter().enumerate() {
                assert!((f32::from(wide.q[i]) * wide.d - value).abs() <= 0.5001 * wide.d);
                let d = narrow.d[i / 32];
                assert!((f32::from(narrow.q[i]) * d - value).abs() <= 0.5001 * d);
                assert!(wide.q[i] >= -127 && narrow.q[i] >= -127);
            }
            let sum = |q: &[i8]| q.iter().map(|q| i32::from(*q)).sum::<i32>();
            assert!((0..16).all(|g| i32::from(wide.sums[g]) == sum(&wide.q[16 * g..16 * g + 16])));
            assert!((0..8).all(|g| narrow.sums[g] == sum(&narrow.q[32 * g..32 * g + 32])));
        }
    }

    #[test]
    fn halves_are_rounded_to_even_and_nothing_leaves_the_range() {
        for (value, rounded) in
            [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (126.5, 126), (127.0, 127)]
        {
            assert_eq!(nearest(value), rounded, "{value}");
        }
        for steps in -508..=508 {
            let value = steps as f32 / 4.0;
            assert_eq!(f32::from(nearest(value)), value.round_ties_even(), "{value}");
        }
    }

    #[test]
    fn a_value_that_is_no_number_shows_and_a_zero_row_is_zero() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = wave(256, 1.0);
            values[77] = bad;
            let (mut wide, mut narrow) = (X256::ZERO, X32::ZERO);
            X256::quantize(&values, &mut wide);
            X32::quantize(&values, &mut narrow);
            assert!(wide.d.is_nan() && narrow.d[2].is_nan() && narrow.d[1].is_finite());
        }
        let mut wide = X256::ZERO;
        X256::quantize(&[-0.0; 256], &mut wide);
        assert_eq!(wide, X256::ZERO);
    }

    #[test]
    fn a_row_that_ends_within_a_block_leaves_zeros_behind_it() {
        let mut out = vec![X32 { q: [9; 256], d: [9.0; 8], sums: [9; 8] }; 4];
        quantize_rows(&wave(2 * 320, 1.0), 320, &mut out);
        for row in out.chunks(2) {
            assert!(row[1].q[64..].iter().all(|q| *q == 0) && row[1].d[2..].iter().all(|d| *d == 0.0));
            assert!(row[0].d.iter().chain(&row[1].d[..2]).all(|d| *d > 0.0));
        }
    }
}
