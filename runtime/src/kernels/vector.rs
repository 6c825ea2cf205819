//! Element-wise and row-wise vector arithmetic: norm, softmax, activation, accumulation.
//!
//! Each function works on one row; rows never mix, so results are row-invariant by construction.

/// RMS normalisation (Zhang and Sennrich, arXiv 1910.07467) of one row: `out = x / rms(x) * weight`.
/// The mean of squares is taken in f64 so that the order of summation cannot show.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean_square = x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / x.len() as f64;
    let scale = (1.0 / (mean_square + f64::from(eps)).sqrt()) as f32;
    for ((o, v), w) in out.iter_mut().zip(x).zip(weight) {
        *o = v * scale * w;
    }
}

/// Softmax of one row in place; the maximum is subtracted first.
pub fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0f64;
    for v in row.iter_mut() {
        *v = (*v - max).exp();
        sum += f64::from(*v);
    }
    let scale = (1.0 / sum) as f32;
    for v in row.iter_mut() {
        *v *= scale;
    }
}

/// `gate[i] = silu(gate[i]) * up[i]` (SwiGLU, Shazeer, arXiv 2002.05202).
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = gated(*g, *u);
    }
}

/// One element of [`silu_mul`].
#[inline(always)]
pub(super) fn gated(gate: f32, up: f32) -> f32 {
    gate / (1.0 + (-gate).exp()) * up
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
