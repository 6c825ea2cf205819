//! `qwen2`: Qwen 2 and 2.5, dense, with biases on the query, key and value projections.

use crate::gguf::Gguf;

use super::LoadError;
use super::spec::{Common, Keys, ModelSpec, RopeLayout, rope};

/// Reads the blueprint.
pub fn spec(gguf: &Gguf) -> Result<ModelSpec, LoadError> {
    let keys = Keys::new(gguf, "qwen2");
    let common = Common::read(&keys)?;
    let attention = common.gqa(&keys, false)?;
    let rope = rope(&keys, attention.key_dim(), RopeLayout::Halves)?;
    Ok(common.into_spec("qwen2", attention, rope, None))
}
