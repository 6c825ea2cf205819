//! The router: which experts a row is sent to, and with what weights.
//!
//! Pure arithmetic on one row of router logits. Ties go to the lower expert id, so routing is a
//! function of the logits alone. References: DeepSeek-V2 (arXiv 2405.04434) and V3 (2412.19437) as
//! `transformers` computes them, Mixtral (2401.04088), Qwen3.

use crate::kernels::softmax;
use crate::models::{Gating, GroupScore, GroupSpec, MoeSpec};

/// One routed choice of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Route {
    /// Expert id.
    pub expert: u32,
    /// Factor on the expert's output.
    pub weight: f32,
}

/// Chooses `spec.used` experts for one row, best first. `logits` (`[experts]`) is overwritten;
/// `bias` (`[experts]`) shifts the choice, never the weights (DeepSeek-V3).
pub fn route(spec: &MoeSpec, logits: &mut [f32], bias: Option<&[f32]>, out: &mut Vec<Route>) {
    let scores = logits;
    match spec.gating {
        Gating::Softmax => softmax(scores),
        Gating::Sigmoid => scores.iter_mut().for_each(|s| *s = 1.0 / (1.0 + (-*s).exp())),
    }
    let mut choice: Vec<f32> = scores.to_vec();
    if let Some(bias) = bias {
        choice.iter_mut().zip(bias).for_each(|(c, b)| *c += b);
    }
    if let Some(groups) = spec.groups {
        exclude_weak_groups(&groups, &mut choice);
    }
    let chosen = best(&choice, spec.used);
    let sum: f32 = chosen.iter().map(|&e| scores[e]).sum();
    // The smallest normal half, as llama.cpp guards the division; far below any real sum.
    let scale = if spec.normalise { spec.scale / sum.max(6.103_515_6e-5) } else { spec.scale };
    out.extend(chosen.iter().map(|&e| Route { expert: e as u32, weight: scores[e] * scale }));
}

/// Sets the choice scores of all but the best groups to minus infinity.
fn exclude_weak_groups(groups: &GroupSpec, choice: &mut [f32]) {
    let size = choice.len() / groups.count;
    let worth: Vec<f32> = choice
        .chunks(size)
        .map(|group| match groups.score {
            GroupScore::Best => group.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            GroupScore::BestTwo => best(group, 2).iter().map(|&i| group[i]).sum(),
        })
        .collect();
    let kept = best(&worth, groups.used);
    for (index, group) in choice.chunks_mut(size).enumerate() {
        if !kept.contains(&index) {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

/// Indices of the `count` greatest values, greatest first; ties to the lower index. A NaN counts as
/// the least value: broken weights give broken text, never a panic.
fn best(values: &[f32], count: usize) -> Vec<usize> {
    let key = |i: &usize| if values[*i].is_nan() { f32::NEG_INFINITY } else { values[*i] };
    let order = |a: &usize, b: &usize| key(b).total_cmp(&key(a)).then(a.cmp(b));
    let mut indices: Vec<usize> = (0..values.len()).collect();
    let count = count.min(indices.len());
    if count < indices.len() {
        indices.select_nth_unstable_by(count, order);
        indices.truncate(count);
    }
    indices.sort_unstable_by(order);
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(gating: Gating) -> MoeSpec {
        MoeSpec { experts: 8, used: 2, gating, normalise: false, scale: 1.0, groups: None, width: 1 }
    }

    fn routed(spec: &MoeSpec, logits: &[f32], bias: Option<&[f32]>) -> Vec<u32> {
        let mut out = Vec::new();
        route(spec, &mut logits.to_vec(), bias, &mut out);
        out.iter().map(|r| r.expert).collect()
    }

    #[test]
    fn ties_go_to_the_lower_expert() {
        assert_eq!(routed(&spec(Gating::Softmax), &[1.0; 8], None), [0, 1]);
        let two = [0.0, 3.0, 1.0, 3.0, 3.0, 0.0, 0.0, 0.0];
        assert_eq!(routed(&spec(Gating::Softmax), &two, None), [1, 3]);
    }

    #[test]
    fn a_v2_group_counts_as_its_best_expert_and_a_v3_group_as_its_best_two() {
        // Group 0 holds the best expert, group 1 the best pair.
        let logits = [3.0, -9.0, -9.0, -9.0, 2.0, 2.0, -9.0, -9.0];
        let groups = |score| Some(GroupSpec { count: 2, used: 1, score });
        let v2 = MoeSpec { groups: groups(GroupScore::Best), ..spec(Gating::Softmax) };
        let v3 = MoeSpec { groups: groups(GroupScore::BestTwo), ..spec(Gating::Sigmoid) };
        assert_eq!(routed(&v2, &logits, None), [0, 1]);
        assert_eq!(routed(&v3, &logits, None), [4, 5]);
    }

    #[test]
    fn the_bias_moves_the_choice_and_leaves_the_weight() {
        let logits = [0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0];
        let mut bias = [0.0; 8];
        bias[0] = 10.0;
        let mut out = Vec::new();
        route(&spec(Gating::Sigmoid), &mut logits.to_vec(), Some(&bias), &mut out);
        assert_eq!(out[0], Route { expert: 0, weight: 0.5 });
        assert_eq!(out[1].expert, 3);
    }

    #[test]
    fn normalised_weights_sum_to_the_scale() {
        let spec = MoeSpec { normalise: true, scale: 2.5, used: 3, ..spec(Gating::Sigmoid) };
        let mut out = Vec::new();
        route(&spec, &mut [0.3, -1.0, 2.0, 0.0, 1.0, -2.0, 0.5, 0.1], None, &mut out);
        assert!((out.iter().map(|r| r.weight).sum::<f32>() - 2.5).abs() < 1e-5);
    }

    #[test]
    fn nan_logits_do_not_panic() {
        assert_eq!(routed(&spec(Gating::Sigmoid), &[f32::NAN; 8], None).len(), 2);
    }
}
