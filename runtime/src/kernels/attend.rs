//! Scaled dot-product attention of one query head over cached keys and values.
//!
//! Owns the one attention loop that GQA and absorbed MLA share: in MLA the value row is the first
//! part of the key row, so both are a view of cached f16 rows. Reads positions in order with f32
//! accumulation: the result depends on the query and the cache alone (DESIGN I2).

use half::f16;

use super::float::{add_scaled_f16, dot_f16};
use super::vector::softmax;

/// Cached rows of one KV head: position `t` starts at `t * stride`.
#[derive(Clone, Copy)]
pub struct KvView<'a> {
    /// f16 cells of all positions.
    pub keys: &'a [f16],
    /// f16 cells of all positions; may be the same memory as `keys`.
    pub values: &'a [f16],
    /// Cells from one key row to the next.
    pub key_stride: usize,
    /// Cells from one value row to the next.
    pub value_stride: usize,
}

/// Attends `query` (`[key_dim]`) to the first `scores.len()` positions and writes `[value_dim]` to
/// `out`; `scores` is scratch.
pub fn attend(query: &[f32], kv: KvView<'_>, scale: f32, scores: &mut [f32], out: &mut [f32]) {
    for (t, score) in scores.iter_mut().enumerate() {
        let start = t * kv.key_stride;
        *score = dot_f16(&kv.keys[start..start + query.len()], query) * scale;
    }
    softmax(scores);
    out.fill(0.0);
    for (t, weight) in scores.iter().enumerate() {
        let start = t * kv.value_stride;
        add_scaled_f16(&kv.values[start..start + out.len()], *weight, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_that_matches_one_key_returns_that_value() {
        let keys: Vec<f16> = [1.0f32, 0.0, 0.0, 1.0].iter().map(|v| f16::from_f32(*v)).collect();
        let values: Vec<f16> = [5.0f32, -3.0].iter().map(|v| f16::from_f32(*v)).collect();
        let kv = KvView { keys: &keys, values: &values, key_stride: 2, value_stride: 1 };
        let mut out = [0f32];
        attend(&[0.0, 100.0], kv, 1.0, &mut [0.0; 2], &mut out);
        assert!((out[0] + 3.0).abs() < 1e-6);
        attend(&[0.0, 100.0], kv, 1.0, &mut [0.0; 1], &mut out);
        assert!((out[0] - 5.0).abs() < 1e-6, "positions after the row's own are not seen");
    }
}
