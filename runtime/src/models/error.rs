//! Why a well-formed GGUF file cannot be run: each way to be wrong has a name.

use std::path::PathBuf;

use drafthorse_offload::{OffloadError, ReadError};
use thiserror::Error;

use crate::gguf::{BlockType, Gguf, GgufError, quoted, shown};
use crate::gpu::GpuError;
use crate::kernels::supported_names;

use super::ARCHITECTURES;

/// A model that cannot be loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
pub enum LoadError {
    #[error(transparent)]
    Gpu(#[from] GpuError),

    #[error(transparent)]
    Gguf(#[from] GgufError),

    #[error("{}: architecture {} is not supported (supported: {})", .path.display(), quoted(.name), architectures())]
    UnsupportedArchitecture { path: PathBuf, name: String },

    #[error("{}: metadata key {key} is missing", .path.display())]
    MissingKey { path: PathBuf, key: String },

    #[error("{}: metadata key {key}: {problem}", .path.display())]
    BadKey { path: PathBuf, key: String, problem: String },

    #[error("{}: tensor {} is missing", .path.display(), shown(.tensor))]
    MissingTensor { path: PathBuf, tensor: String },

    #[error("{}: tensor {} has shape {got}, the metadata asks for {want}", .path.display(), shown(.tensor))]
    Shape { path: PathBuf, tensor: String, got: String, want: String },

    #[error("{}: tensor {} is not part of this architecture as it is supported here; without it the text would be wrong", .path.display(), shown(.tensor))]
    UnusedTensor { path: PathBuf, tensor: String },

    #[error("{}: quant type {} of tensor {} is not supported yet (supported: {})", .path.display(), .block_type.name(), shown(.tensor), supported_names())]
    UnsupportedQuant { path: PathBuf, tensor: String, block_type: BlockType },

    #[error("{}: {problem}", .path.display())]
    Override { path: PathBuf, problem: String },

    #[error("{}: {problem}", .path.display())]
    Head { path: PathBuf, problem: String },

    #[error("cannot allocate {bytes} bytes for the dense weights: {source}")]
    Allocation { bytes: u64, source: std::io::Error },

    #[error("reading tensor {}: {source}", shown(.tensor))]
    Read { tensor: String, source: ReadError },

    #[error(transparent)]
    Offload(#[from] OffloadError),

    #[error("cannot start a compute thread: {0}")]
    Thread(std::io::Error),
}

/// An error about a head's file as a whole.
pub fn head_error(gguf: &Gguf, problem: String) -> LoadError {
    LoadError::Head { path: gguf.metadata.file().into(), problem }
}

fn architectures() -> String {
    ARCHITECTURES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}
