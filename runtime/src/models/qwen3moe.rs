//! `qwen3moe`: Qwen 3 mixture of experts: every layer routed, weights normalised, no shared expert.

use crate::gguf::Gguf;

use super::LoadError;
use super::spec::{Common, Gating, Keys, ModelSpec, MoeSpec, RopeLayout, WIDTH_MAX, expert_counts, rope};

/// Reads the blueprint.
pub fn spec(gguf: &Gguf) -> Result<ModelSpec, LoadError> {
    let keys = Keys::new(gguf, "qwen3moe");
    let common = Common::read(&keys)?;
    let attention = common.gqa(&keys, true)?;
    let rope = rope(&keys, attention.key_dim(), RopeLayout::Halves)?;
    let (experts, used) = expert_counts(&keys)?
        .ok_or_else(|| keys.invalid("expert_count", "a mixture of experts without experts".into()))?;
    keys.require_neutral("expert_gating_func", &[0.0, 1.0])?;
    let moe = MoeSpec {
        experts,
        used,
        gating: Gating::Softmax,
        // The format has no key for it in this architecture: converters write only models that do.
        normalise: keys.flag("expert_weights_norm")?.unwrap_or(true),
        scale: keys.float("expert_weights_scale")?.filter(|scale| *scale != 0.0).unwrap_or(1.0),
        groups: None,
        width: keys.size("expert_feed_forward_length", WIDTH_MAX)?,
    };
    Ok(common.into_spec("qwen3moe", attention, rope, Some(moe)))
}
