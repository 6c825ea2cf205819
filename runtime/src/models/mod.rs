//! Model architectures: one file each, assembled from shared layers.
//!
//! Owns the registry by `general.architecture`, the blueprint ([`ModelSpec`]), the assembly of
//! tensors into layers and the forward pass ([`Model`]). The same code serves as target or draft,
//! dense or mixture of experts, resident or offloaded (DESIGN I7). A new architecture is one file that
//! fills a `ModelSpec`, and one line in [`ARCHITECTURES`].

mod assemble;
mod block;
mod deepseek2;
mod eagle3;
mod embedding;
mod error;
mod experts;
mod features;
mod head;
mod llama;
mod medusa;
mod model;
mod mtp;
pub mod packed;
mod qwen2;
mod qwen3;
mod qwen3moe;
mod spec;

pub use assemble::{Block, Blueprint, Ffn, Overrides, Routed};
pub use eagle3::{EAGLE3, eagle3_head};
pub use embedding::{Embedding, StreamedTable};
pub use error::LoadError;
use error::head_error;
pub use experts::ExpertLayers;
pub use features::FeatureTape;
pub use head::{Head, HeadBlueprint, HeadOptions, HeadReaders};
pub use medusa::{MEDUSA, Medusa, MedusaBlueprint, medusa_heads};
pub use model::{DeviceChoice, ExpertsChoice, Model, ModelOptions, PassError, Readers, Shared};
pub use mtp::mtp_head;
pub use spec::{
    AttentionSpec, Gating, GroupScore, GroupSpec, ModelSpec, MoeSpec, RopeLayout, RopeScaling, RopeSpec,
};

use crate::gguf::Gguf;

/// Reads a model's blueprint from its metadata.
pub type ReadSpec = fn(&Gguf) -> Result<ModelSpec, LoadError>;

/// Every supported architecture.
pub const ARCHITECTURES: &[(&str, ReadSpec)] = &[
    ("llama", llama::spec),
    ("qwen2", qwen2::spec),
    ("qwen3", qwen3::spec),
    ("qwen3moe", qwen3moe::spec),
    ("deepseek2", deepseek2::spec),
];

/// The blueprint of a file, by its `general.architecture`.
///
/// # Errors
/// [`LoadError::UnsupportedArchitecture`] with the supported list; the architecture's own checks.
pub fn read_spec(gguf: &Gguf) -> Result<ModelSpec, LoadError> {
    let name = gguf.metadata.require_str("general.architecture")?;
    match ARCHITECTURES.iter().find(|(known, _)| *known == name) {
        Some((_, read)) => read(gguf),
        None if is_head(name) => {
            let problem =
                format!("architecture {name} is a head: give it as --draft to the model it was trained for");
            Err(head_error(gguf, problem))
        }
        None => {
            Err(LoadError::UnsupportedArchitecture { path: gguf.metadata.file().into(), name: name.into() })
        }
    }
}

/// Whether files of that `general.architecture` hold heads for a target.
pub fn is_head(architecture: &str) -> bool {
    [EAGLE3, MEDUSA].contains(&architecture)
}
