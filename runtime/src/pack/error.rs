//! Why a model cannot be packed or checked: each way has a name, and says what to do.

use std::io;
use std::path::{Path, PathBuf};

use drafthorse_offload::{OffloadError, ReadError};
use thiserror::Error;

use crate::gguf::GgufError;
use crate::models::LoadError;
use crate::units::format_bytes;

/// A pack or a check that did not succeed.
#[derive(Debug, Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
pub enum PackError {
    #[error(transparent)]
    Gguf(#[from] GgufError),

    #[error(transparent)]
    Load(#[from] LoadError),

    #[error(transparent)]
    Offload(#[from] OffloadError),

    #[error("{0}")]
    Read(ReadError),

    #[error("{}: the model has no routed experts: there is nothing to pack", .path.display())]
    NoExperts { path: PathBuf },

    #[error("{}: the file is packed already", .path.display())]
    AlreadyPacked { path: PathBuf },

    #[error("{}: the file is not packed: it carries no checksums", .path.display())]
    NotPacked { path: PathBuf },

    #[error("{}: the output would replace the model itself", .path.display())]
    SameFile { path: PathBuf },

    #[error("an alignment of {bytes} bytes is not supported (4KiB or 16KiB)")]
    Alignment { bytes: u64 },

    #[error(
        "{}: the disk is too full: {} for the packed file{}, {} are free; {} more are needed",
        .out.display(), format_bytes(*.file_bytes), written(*.there_bytes), format_bytes(*.free_bytes),
        format_bytes(.file_bytes.saturating_sub(*.there_bytes).saturating_sub(*.free_bytes))
    )]
    DiskFull { out: PathBuf, file_bytes: u64, there_bytes: u64, free_bytes: u64 },

    #[error(
        "{}: the disk is full after {} of {}; what is written stays: make room and run the same command again",
        .part.display(), format_bytes(*.written_bytes), format_bytes(*.file_bytes)
    )]
    OutOfSpace { part: PathBuf, written_bytes: u64, file_bytes: u64 },

    #[error(
        "{}: a part of another pack (another or a changed model, or another alignment); remove it, or choose \
         another output",
        .part.display()
    )]
    ForeignPart { part: PathBuf },

    #[error("{}: another process is writing it", .part.display())]
    Busy { part: PathBuf },

    #[error("{}: {damaged} of {pieces} expert parts and tensors are damaged", .path.display())]
    Damaged { path: PathBuf, damaged: usize, pieces: usize },

    #[error("cannot {action} {}: {source}", .path.display())]
    Io { path: PathBuf, action: &'static str, source: io::Error },
}

impl PackError {
    /// A [`PackError::Io`] as a function of what the system said.
    pub(super) fn io(action: &'static str, path: &Path) -> impl Fn(io::Error) -> PackError {
        move |source| PackError::Io { path: path.to_owned(), action, source }
    }
}

fn written(bytes: u64) -> String {
    if bytes == 0 { String::new() } else { format!(", of which {} are written", format_bytes(bytes)) }
}
