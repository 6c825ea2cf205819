//! What can be wrong with a GGUF file, in words a user can act on.
//!
//! One enum for reader and writer. Every message is one line and names the file and, where there is
//! one, the key or tensor, the offset and the limit. Names come from the file and are hostile: they
//! are escaped and shortened before they are shown.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::block::BlockType;

/// Longest part of a name from a file that is shown, in characters.
const SHOWN_NAME_CHARS: usize = 80;

/// A GGUF file that cannot be read, written or used as asked.
#[derive(Debug, Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
pub enum GgufError {
    #[error("{}: cannot {action}: {source}", .file.display())]
    Io { file: PathBuf, action: &'static str, source: io::Error },

    #[error("{}: not a GGUF file (starts with {found:02x?}, not with \"GGUF\")", .file.display())]
    NotGguf { file: PathBuf, found: [u8; 4] },

    #[error("{}: big-endian GGUF files are not supported (convert it to little-endian)", .file.display())]
    BigEndian { file: PathBuf },

    #[error("{}: GGUF version {version} is not supported (only 2 and 3 are)", .file.display())]
    Version { file: PathBuf, version: u32 },

    #[error(
        "{}: truncated: {subject} needs {needed} bytes at offset {offset}, the file has {left} left",
        .file.display()
    )]
    Truncated { file: PathBuf, subject: String, offset: u64, needed: u64, left: u64 },

    #[error("{}: {subject} at offset {offset} has {quantity} {value}, the limit is {limit}", .file.display())]
    Limit { file: PathBuf, subject: String, offset: u64, quantity: &'static str, value: u64, limit: u64 },

    #[error("{}: {subject} at offset {offset}: {problem}", .file.display())]
    Malformed { file: PathBuf, subject: String, offset: u64, problem: String },

    #[error("{}: metadata key {} stands twice", .file.display(), quoted(.key))]
    DuplicateKey { file: PathBuf, key: String },

    #[error("{}: metadata key {} is missing", .file.display(), quoted(.key))]
    MissingKey { file: PathBuf, key: String },

    #[error("{}: metadata key {} is {found}, expected {expected}", .file.display(), quoted(.key))]
    WrongType { file: PathBuf, key: String, expected: &'static str, found: String },

    #[error("{}: tensor {} stands twice (also in {})", .file.display(), quoted(.tensor), .other.display())]
    DuplicateTensor { file: PathBuf, tensor: String, other: PathBuf },

    #[error(
        "{}: tensor {} has the unknown block type id {id}{}",
        .file.display(), quoted(.tensor), retired(*.id)
    )]
    UnknownBlockType { file: PathBuf, tensor: String, id: u32 },

    #[error("{}: tensor {}: {problem}", .file.display(), quoted(.tensor))]
    BadTensor { file: PathBuf, tensor: String, problem: String },

    #[error(
        "{}: tensor {} ({bytes} bytes at offset {offset}) reaches beyond the end of the file at {file_len}",
        .file.display(), quoted(.tensor)
    )]
    TensorOutOfFile { file: PathBuf, tensor: String, offset: u64, bytes: u64, file_len: u64 },

    #[error(
        "{}: tensors {} and {} overlap at offset {offset}",
        .file.display(), quoted(.tensor), quoted(.other)
    )]
    TensorsOverlap { file: PathBuf, tensor: String, other: String, offset: u64 },

    #[error("{}: split file: {problem}", .file.display())]
    Split { file: PathBuf, problem: String },

    #[error("{}: changed while it was being read", .file.display())]
    Changed { file: PathBuf },

    #[error("{block_type} blocks: {problem}")]
    Blocks { block_type: BlockType, problem: String },
}

impl GgufError {
    pub(super) fn io(file: &Path, action: &'static str, source: io::Error) -> GgufError {
        GgufError::Io { file: file.to_owned(), action, source }
    }
}

/// A name from a file, safe to print: escaped, at most [`SHOWN_NAME_CHARS`] long.
pub fn shown(name: &str) -> String {
    let mut shown: String = name.chars().take(SHOWN_NAME_CHARS).flat_map(char::escape_debug).collect();
    if name.chars().nth(SHOWN_NAME_CHARS).is_some() {
        shown.push_str("...");
    }
    shown
}

/// [`shown`], in quotes.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", shown(name))
}

fn retired(id: u32) -> String {
    super::block::retired_name(id).map(|name| format!(" ({name})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_shown_on_one_short_line() {
        assert_eq!(quoted("a\nb\"\u{1b}[31m"), r#""a\nb\"\u{1b}[31m""#);
        assert_eq!(quoted(&"x".repeat(5000)).len(), SHOWN_NAME_CHARS + 5);
    }

    #[test]
    fn a_retired_block_type_says_what_to_use_instead() {
        let error = GgufError::UnknownBlockType { file: "m.gguf".into(), tensor: "t".into(), id: 31 };
        assert!(error.to_string().contains("use the plain Q4_0 file"), "{error}");
    }
}
