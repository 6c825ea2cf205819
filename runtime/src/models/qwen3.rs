//! `qwen3`: Qwen 3, dense, with normed query and key heads.

use crate::gguf::Gguf;

use super::LoadError;
use super::spec::{Common, Keys, ModelSpec, RopeLayout, rope};

/// Reads the blueprint.
pub fn spec(gguf: &Gguf) -> Result<ModelSpec, LoadError> {
    let keys = Keys::new(gguf, "qwen3");
    let common = Common::read(&keys)?;
    let attention = common.gqa(&keys, true)?;
    let rope = rope(&keys, attention.key_dim(), RopeLayout::Halves)?;
    Ok(common.into_spec("qwen3", attention, rope, None))
}
