//! `llama`: Llama 1-3, Mistral (dense) and Mixtral (mixture of experts).

use crate::gguf::Gguf;

use super::LoadError;
use super::spec::{Common, Gating, Keys, ModelSpec, MoeSpec, RopeLayout, WIDTH_MAX, expert_counts, rope};

/// Reads the blueprint.
pub fn spec(gguf: &Gguf) -> Result<ModelSpec, LoadError> {
    let keys = Keys::new(gguf, "llama");
    let common = Common::read(&keys)?;
    let attention = common.gqa(&keys, false)?;
    let rope = rope(&keys, attention.key_dim(), RopeLayout::Interleaved)?;
    let moe = match expert_counts(&keys)? {
        None => None,
        Some((experts, used)) => {
            keys.require_neutral("expert_gating_func", &[0.0, 1.0])?;
            keys.require_neutral("expert_weights_scale", &[0.0, 1.0])?;
            Some(MoeSpec {
                experts,
                used,
                gating: Gating::Softmax,
                normalise: true,
                scale: 1.0,
                groups: None,
                width: keys.size("feed_forward_length", WIDTH_MAX)?,
            })
        }
    };
    Ok(common.into_spec("llama", attention, rope, moe))
}
