//! Rotary position embedding: frequencies, the table of one pass, and the rotation.
//!
//! Frequencies follow the file's metadata: plain, linear, YaRN (arXiv 2309.00071, as `transformers`
//! computes it) or divided by the factors of a `rope_freqs` tensor (Llama 3). Angles are computed in
//! f64 from the absolute position, so they do not depend on how a sequence was split into passes.

use crate::models::{RopeLayout, RopeScaling, RopeSpec};

/// Frequencies of one model.
#[derive(Clone, Debug)]
pub struct Rope {
    inv_freq: Vec<f64>,
    magnitude: f32,
    layout: RopeLayout,
}

impl Rope {
    /// Computes the frequencies; `factors` (`[dim / 2]`) divide them where the file has the tensor.
    pub fn new(spec: &RopeSpec, factors: Option<&[f32]>) -> Rope {
        let plain = |i: usize| f64::from(spec.base).powf(-2.0 * i as f64 / spec.dim as f64);
        let mut inv_freq: Vec<f64> = (0..spec.dim / 2).map(plain).collect();
        let mut magnitude = 1.0;
        match spec.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => inv_freq.iter_mut().for_each(|f| *f /= f64::from(factor)),
            RopeScaling::Yarn { factor, magnitude: m, .. } => {
                magnitude = m;
                for (i, freq) in inv_freq.iter_mut().enumerate() {
                    let kept = yarn_kept(spec, i);
                    *freq = *freq / f64::from(factor) * (1.0 - kept) + *freq * kept;
                }
            }
        }
        for (freq, factor) in inv_freq.iter_mut().zip(factors.unwrap_or_default()) {
            *freq /= f64::from(*factor);
        }
        Rope { inv_freq, magnitude, layout: spec.layout }
    }

    /// Angles of positions `start..start + rows`.
    pub fn table(&self, start: usize, rows: usize) -> RopeTable {
        let half = self.inv_freq.len();
        let mut table = RopeTable {
            cos: Vec::with_capacity(rows * half),
            sin: Vec::with_capacity(rows * half),
            half,
            layout: self.layout,
        };
        for position in start..start + rows {
            for freq in &self.inv_freq {
                let (sin, cos) = (position as f64 * freq).sin_cos();
                table.cos.push(cos as f32 * self.magnitude);
                table.sin.push(sin as f32 * self.magnitude);
            }
        }
        table
    }
}

/// How much of frequency `i` YaRN leaves alone: 1 for fast rotations, 0 for slow ones.
fn yarn_kept(spec: &RopeSpec, i: usize) -> f64 {
    let RopeScaling::Yarn { original_context, beta_fast, beta_slow, .. } = spec.scaling else { return 1.0 };
    let dim = spec.dim as f64;
    let boundary = |rotations: f32| {
        let ratio = original_context as f64 / (f64::from(rotations) * 2.0 * std::f64::consts::PI);
        dim * ratio.ln() / (2.0 * f64::from(spec.base).ln())
    };
    let low = boundary(beta_fast).floor().max(0.0);
    let high = boundary(beta_slow).ceil().min(dim - 1.0);
    let ramp = (i as f64 - low) / (high - low).max(0.001);
    1.0 - ramp.clamp(0.0, 1.0)
}

/// Cosines and sines of the positions of one pass, `[rows][half]`.
#[derive(Clone, Debug, Default)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    layout: RopeLayout,
}

impl RopeTable {
    /// Cosines and sines, `[rows, half]` each.
    pub fn angles(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// Angles of a row.
    pub fn half(&self) -> usize {
        self.half
    }

    /// Which elements are rotated together.
    pub fn layout(&self) -> RopeLayout {
        self.layout
    }

    /// Rotates the first `2 * half` elements of `head` by the angles of row `row`.
    pub fn rotate(&self, row: usize, head: &mut [f32]) {
        let cos = &self.cos[row * self.half..(row + 1) * self.half];
        let sin = &self.sin[row * self.half..(row + 1) * self.half];
        for i in 0..self.half {
            let (a, b) = match self.layout {
                RopeLayout::Interleaved => (2 * i, 2 * i + 1),
                RopeLayout::Halves => (i, i + self.half),
            };
            let (x, y) = (head[a], head[b]);
            head[a] = x * cos[i] - y * sin[i];
            head[b] = x * sin[i] + y * cos[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(layout: RopeLayout, scaling: RopeScaling) -> RopeSpec {
        RopeSpec { dim: 8, base: 10_000.0, layout, scaling }
    }

    #[test]
    fn a_rotation_keeps_lengths_and_depends_on_the_distance_only() {
        for layout in [RopeLayout::Interleaved, RopeLayout::Halves] {
            let rope = Rope::new(&spec(layout, RopeScaling::None), None);
            let q = [0.3, -1.0, 0.7, 0.2, 0.9, -0.4, 0.1, 0.5];
            let k = [1.0, 0.5, -0.3, 0.8, -0.6, 0.2, 0.4, -0.9];
            let score = |a: usize, b: usize| {
                let (mut q, mut k) = (q, k);
                rope.table(a, 1).rotate(0, &mut q);
                rope.table(b, 1).rotate(0, &mut k);
                q.iter().zip(&k).map(|(q, k)| q * k).sum::<f32>()
            };
            assert!((score(5, 3) - score(105, 103)).abs() < 1e-4);
            assert!((score(5, 3) - score(5, 4)).abs() > 1e-3);
        }
    }

    #[test]
    fn a_table_row_is_the_same_whatever_the_pass_it_is_in() {
        let rope = Rope::new(&spec(RopeLayout::Halves, RopeScaling::Linear { factor: 4.0 }), None);
        let long = rope.table(0, 9);
        let short = rope.table(7, 1);
        assert_eq!(long.cos[7 * 4..8 * 4], short.cos[..]);
        assert_eq!(long.sin[7 * 4..8 * 4], short.sin[..]);
    }
}
