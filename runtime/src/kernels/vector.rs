//! Element-wise and row-wise vector arithmetic: norm, softmax, activation, accumulation.
//!
//! Each function works on one row; rows never mix, so results are row-invariant by construction. The
//! exponential is ours, of plain products and sums (nothing fused): the same bits on every CPU, alone
//! or in a vector. Loops over it are compiled for AVX2 as well.

use super::lanes::LANES;

/// RMS normalisation (Zhang and Sennrich, arXiv 1910.07467) of one row: `out = x / rms(x) * weight`.
/// The mean of squares is taken in f64 so that the order of summation cannot show.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean_square = x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / x.len() as f64;
    let scale = (1.0 / (mean_square + f64::from(eps)).sqrt()) as f32;
    for ((o, v), w) in out.iter_mut().zip(x).zip(weight) {
        *o = v * scale * w;
    }
}

/// `e^x` within 2 units in the last place, subnormal results included; infinity above 88.73.
///
/// `e^x = 2^n e^r` with `r` within ln(2)/2 of 0; constants and polynomial are those of the Cephes
/// library (S. Moshier), `expf`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // ln(2) in two parts: a product of the first with any n here is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const COEFFICIENTS: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    /// Added to a number below 2^22 in size, it rounds it to an integer, which its last bits then are.
    const ROUND: f32 = 12_582_912.0;
    // Beyond these the result is 0 or infinity. Not a number stays what it is.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let [a, b, c, d, e, f] = COEFFICIENTS;
    let sum = ((((a * r + b) * r + c) * r + d) * r + e) * r + f;
    let power = (sum * (r * r) + r) + 1.0;
    // 2^n in two factors: n is -150 to 128, beyond what one holds.
    let n = (rounded.to_bits().wrapping_sub(ROUND.to_bits())).cast_signed();
    let half = n >> 1;
    power * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23).cast_unsigned())
}

/// The greater of two numbers: one instruction, where `f32::max` has an opinion on what is not a number.
#[inline(always)]
pub(super) fn greater(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Defines a function of slices whose body is compiled for AVX2 too. Nothing in it may be fused, so the
/// bits are the same.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $kind:ty),*) $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $kind),*) {
            #[inline(always)]
            fn plain($($arg: $kind),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $kind),*) {
                    plain($($arg),*);
                }
                if super::lanes::has_avx2() {
                    // SAFETY: AVX2 was detected.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*);
        }
    };
}

vectorized! {
    /// Softmax of one row in place; the maximum is subtracted first. Eight sums, then one.
    pub fn softmax(row: &mut [f32]) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, greater);
        let mut sums = [0f32; LANES];
        let (chunks, rest) = row.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for (value, sum) in chunk.iter_mut().zip(&mut sums) {
                *value = exp(*value - max);
                *sum += *value;
            }
        }
        for (value, sum) in rest.iter_mut().zip(&mut sums) {
            *value = exp(*value - max);
            *sum += *value;
        }
        let scale = 1.0 / sums.iter().sum::<f32>();
        row.iter_mut().for_each(|value| *value *= scale);
    }
}

vectorized! {
    /// `gate[i] = silu(gate[i]) * up[i]` (SwiGLU, Shazeer, arXiv 2002.05202).
    pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
        for (g, u) in gate.iter_mut().zip(up) {
            *g = gated(*g, *u);
        }
    }
}

/// One element of [`silu_mul`].
#[inline(always)]
pub(super) fn gated(gate: f32, up: f32) -> f32 {
    gate / (1.0 + exp(-gate)) * up
}

/// `out[i] += scale * x[i]`.
pub fn add_scaled(x: &[f32], scale: f32, out: &mut [f32]) {
    for (o, v) in out.iter_mut().zip(x) {
        *o += scale * v;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance from the exact value in units of the last place of an f32 there.
    fn error_ulp(x: f32) -> f64 {
        let exact = f64::from(x).exp();
        // Below the normal range the last place stays where it is.
        let place = exact.log2().floor().max(-126.0) - 23.0;
        (f64::from(exp(x)) - exact).abs() / place.exp2()
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place_over_its_whole_range() {
        let mut worst = (0.0, 0.0);
        // Every 997th float from the smallest in size to the limits, of both signs.
        for bits in (0..89f32.to_bits()).step_by(997) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                if x < 88.722 {
                    let error = error_ulp(x);
                    worst = if error > worst.0 { (error, x) } else { worst };
                }
            }
        }
        for step in 0..15_000_000u32.div_ceil(100) {
            let x = -104.0 + 1e-4 * 100.0 * step as f32;
            if x < 88.722 {
                let error = error_ulp(x);
                worst = if error > worst.0 { (error, x) } else { worst };
            }
        }
        println!("worst error of exp: {:.3} ulp at {}", worst.0, worst.1);
        assert!(worst.0 <= 2.0, "{worst:?}");
    }

    #[test]
    fn exp_is_exact_at_zero_and_right_at_the_ends() {
        assert_eq!(exp(0.0).to_bits(), 1f32.to_bits());
        assert_eq!(exp(-0.0).to_bits(), 1f32.to_bits());
        for (x, value) in
            [(f32::NEG_INFINITY, 0.0), (-200.0, 0.0), (89.0, f32::INFINITY), (1e30, f32::INFINITY)]
        {
            assert_eq!(exp(x), value, "{x}");
        }
        assert!(exp(88.72) < f32::INFINITY && exp(-103.0) > 0.0 && exp(f32::NAN).is_nan());
    }

    #[test]
    fn a_vector_of_activations_has_the_bits_of_single_ones() {
        let gate: Vec<f32> = (0..1003).map(|i| (i as f32 - 500.0) * 0.21).collect();
        let up: Vec<f32> = (0..1003).map(|i| (i % 17) as f32 - 8.0).collect();
        let mut together = gate.clone();
        silu_mul(&mut together, &up);
        for i in 0..gate.len() {
            assert_eq!(together[i].to_bits(), gated(gate[i], up[i]).to_bits(), "{}", gate[i]);
            let exact = f64::from(gate[i]) / (1.0 + (-f64::from(gate[i])).exp()) * f64::from(up[i]);
            assert!((f64::from(together[i]) - exact).abs() <= 1e-6 * exact.abs() + 1e-35, "{}", gate[i]);
        }
    }

    #[test]
    fn softmax_agrees_with_f64_at_every_length() {
        for len in [1usize, 7, 8, 9, 64, 160, 257] {
            let logits: Vec<f32> = (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f64> = logits.iter().map(|v| f64::from(*v - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let mut row = logits;
            softmax(&mut row);
            for (got, weight) in row.iter().zip(weights) {
                assert!((f64::from(*got) - weight / sum).abs() <= 5e-7 * weight / sum, "{got} of {len}");
            }
        }
    }

    #[test]
    fn softmax_sums_to_one_and_survives_huge_values() {
        let mut row = [1000.0, 999.0, -1000.0];
        softmax(&mut row);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((row[0] / row[1] - std::f32::consts::E).abs() < 1e-4);
    }

    #[test]
    fn rms_norm_gives_unit_rms_times_the_weight() {
        let x = [3.0f32, -4.0, 12.0, 0.5];
        let mut out = [0f32; 4];
        rms_norm(&x, &[2.0; 4], 0.0, &mut out);
        let rms = (out.iter().map(|v| v * v).sum::<f32>() / 4.0).sqrt();
        assert!((rms - 2.0).abs() < 1e-5);
    }
}
