//! `deepseek2`: DeepSeek V2, V2-Lite, V3, R1 and Kimi-K2: MLA, shared experts, group-limited routing.
//!
//! The variants differ in metadata and in which tensors exist, never by name or layer count: with
//! q_lora tensors the query is low-rank; sigmoid gating ranks groups by their best two experts (V3),
//! softmax by the best one (V2). `transformers` is the reference; llama.cpp uses the V3 rule for both.

use crate::gguf::Gguf;

use super::LoadError;
use super::spec::{
    AttentionSpec, Common, Gating, GroupScore, GroupSpec, Keys, ModelSpec, MoeSpec, RopeLayout, RopeScaling,
    RopeSpec, WIDTH_MAX, expert_counts, rope,
};

const GATING_SOFTMAX: usize = 1;
const GATING_SIGMOID: usize = 2;

/// Reads the blueprint.
pub fn spec(gguf: &Gguf) -> Result<ModelSpec, LoadError> {
    let keys = Keys::new(gguf, "deepseek2");
    let common = Common::read(&keys)?;
    let rope_dim = keys.size("rope.dimension_count", WIDTH_MAX)?;
    let mut rope = rope(&keys, rope_dim, RopeLayout::Interleaved)?;
    let attention = attention(&keys, common.heads, &mut rope)?;
    let moe = moe(&keys)?;
    let mut spec = common.into_spec("deepseek2", attention, rope, moe);
    spec.leading_dense = keys.count("leading_dense_block_count", spec.blocks)?;
    if spec.moe.is_some() && spec.leading_dense == spec.blocks {
        let problem = format!("{} leaves no block for the routed experts", spec.leading_dense);
        return Err(keys.invalid("leading_dense_block_count", problem));
    }
    spec.notices.extend(ungrouped_v2_notice(&spec));
    Ok(spec)
}

/// Head widths: `*_mla` keys where the file has them; before those, `key_length` and `value_length`
/// were the expanded heads' own.
fn attention(keys: &Keys<'_>, heads: usize, rope: &mut RopeSpec) -> Result<AttentionSpec, LoadError> {
    let (key_dim, value_dim) = match keys.optional_size("attention.key_length_mla", WIDTH_MAX)? {
        Some(key_dim) => (key_dim, keys.size("attention.value_length_mla", WIDTH_MAX)?),
        None => {
            (keys.size("attention.key_length", WIDTH_MAX)?, keys.size("attention.value_length", WIDTH_MAX)?)
        }
    };
    if key_dim <= rope.dim {
        let problem = format!("{key_dim} leaves nothing beside the rotated {}", rope.dim);
        return Err(keys.invalid("attention.key_length_mla", problem));
    }
    let has_q_lora = keys.gguf().tensor("blk.0.attn_q_a.weight").is_some();
    Ok(AttentionSpec::Mla {
        heads,
        q_lora: if has_q_lora { Some(keys.size("attention.q_lora_rank", WIDTH_MAX)?) } else { None },
        kv_lora: keys.size("attention.kv_lora_rank", WIDTH_MAX)?,
        nope: key_dim - rope.dim,
        value_dim,
        scale: score_scale(keys, key_dim, rope)?,
    })
}

/// DeepSeek moves YaRN's magnitude from cos/sin into the scores: `yarn_log_multiplier` is
/// 0.1 * mscale_all_dim, the scores are multiplied by (1 + that * ln factor)^2, and cos/sin by
/// mscale / mscale_all_dim, which the format takes as 1.
fn score_scale(keys: &Keys<'_>, key_dim: usize, rope: &mut RopeSpec) -> Result<f32, LoadError> {
    let plain = 1.0 / (key_dim as f32).sqrt();
    let RopeScaling::Yarn { factor, magnitude, .. } = &mut rope.scaling else { return Ok(plain) };
    *magnitude = 1.0;
    keys.require_neutral("rope.scaling.attn_factor", &[1.0])?;
    let multiplier = keys.float("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0);
    let mscale = 1.0 + multiplier * factor.ln();
    Ok(plain * mscale * mscale)
}

fn moe(keys: &Keys<'_>) -> Result<Option<MoeSpec>, LoadError> {
    let Some((experts, used)) = expert_counts(keys)? else { return Ok(None) };
    let gating = match keys.optional_size("expert_gating_func", usize::MAX)? {
        // Converters that omit it wrote softmax models (DESIGN.md, traps).
        None | Some(GATING_SOFTMAX) => Gating::Softmax,
        Some(GATING_SIGMOID) => Gating::Sigmoid,
        Some(other) => {
            let problem = format!("{other} is not supported (1 softmax, 2 sigmoid)");
            return Err(keys.invalid("expert_gating_func", problem));
        }
    };
    Ok(Some(MoeSpec {
        experts,
        used,
        gating,
        normalise: keys.flag("expert_weights_norm")?.unwrap_or(false),
        scale: keys.float("expert_weights_scale")?.filter(|scale| *scale != 0.0).unwrap_or(1.0),
        groups: groups(keys, experts, used, gating)?,
        width: keys.size("expert_feed_forward_length", WIDTH_MAX)?,
    }))
}

fn groups(
    keys: &Keys<'_>,
    experts: usize,
    used: usize,
    gating: Gating,
) -> Result<Option<GroupSpec>, LoadError> {
    let count = keys.optional_size("expert_group_count", experts)?.unwrap_or(1);
    let used_groups = keys.optional_size("expert_group_used_count", count)?.unwrap_or(count);
    let score = match gating {
        Gating::Softmax => GroupScore::Best,
        Gating::Sigmoid => GroupScore::BestTwo,
    };
    let group = GroupSpec { count, used: used_groups, score };
    group.check(experts, used).map_err(|problem| keys.invalid("expert_group_count", problem))?;
    Ok((used_groups < count).then_some(group))
}

/// Files converted before the group keys existed carry none, though V2 was trained with 8 groups,
/// best 3: the metadata is followed, and the user told.
fn ungrouped_v2_notice(spec: &ModelSpec) -> Option<String> {
    let moe = spec.moe.as_ref()?;
    let is_v2 = moe.experts == 160 && moe.used == 6 && moe.gating == Gating::Softmax && moe.groups.is_none();
    is_v2.then(|| {
        "the shape is DeepSeek-V2's, which was trained with 8 expert groups, best 3, but the file has no \
         group keys; routing is ungrouped as the file says (override: model.expert_groups and \
         model.expert_groups_used)"
            .into()
    })
}
