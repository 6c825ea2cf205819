//! Every way a vocabulary, an encode or a chat template can be wrong, one line each.
//!
//! Errors about the file name its metadata key, and the file itself where it is known.

use std::path::{Path, PathBuf};

use drafthorse_draft::TokenId;

/// What can go wrong between text and token ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A metadata value has the wrong type or is not UTF-8; the message names file and key.
    #[error("{0}")]
    Metadata(String),
    /// A key that every vocabulary needs is absent.
    #[error("{key}: missing")]
    MissingKey {
        /// The metadata key.
        key: &'static str,
    },
    /// `tokenizer.ggml.model` names a tokenizer there is no code for.
    #[error("tokenizer.ggml.model: {model:?} is not supported (supported: gpt2, llama)")]
    UnsupportedModel {
        /// The value found.
        model: String,
    },
    /// `tokenizer.ggml.pre` names a pre-tokenizer there is no code for.
    #[error("tokenizer.ggml.pre: pre-tokenizer {pre:?} is not supported (supported: {supported})")]
    UnsupportedPreTokenizer {
        /// The value found.
        pre: String,
        /// The names that would have worked, comma-separated.
        supported: String,
    },
    /// An array does not have one entry per token.
    #[error("{key}: {found} entries for {expected} tokens")]
    WrongLength {
        /// The metadata key.
        key: &'static str,
        /// Entries in the array.
        found: usize,
        /// Tokens in the vocabulary.
        expected: usize,
    },
    /// The vocabulary is empty or larger than a `u32` can count.
    #[error("tokenizer.ggml.tokens: {count} tokens (1 to 4294967295 are possible)")]
    TokenCount {
        /// Tokens found.
        count: usize,
    },
    /// A token id outside the vocabulary, in metadata or in a call.
    #[error("{key}: token id {id} is outside the vocabulary of {vocab_len} tokens")]
    IdOutOfRange {
        /// The metadata key, or the call that was given the id.
        key: &'static str,
        /// The id.
        id: u64,
        /// Tokens in the vocabulary.
        vocab_len: usize,
    },
    /// Two ids with one text: encoding would be ambiguous.
    #[error("tokenizer.ggml.tokens: {text:?} is both token {first} and token {second}")]
    DuplicateToken {
        /// The text, shortened.
        text: String,
        /// The lower id.
        first: TokenId,
        /// The higher id.
        second: TokenId,
    },
    /// One entry of an array is not what the key allows.
    #[error("{key}: entry {index}: {problem}")]
    BadEntry {
        /// The metadata key.
        key: &'static str,
        /// Position in the array.
        index: usize,
        /// What is wrong, with the value.
        problem: String,
    },
    /// `add_bos_token` or `add_eos_token` is set and there is no such token.
    #[error("{add_key} is true, but {id_key} is missing")]
    NoSuchSpecial {
        /// The key that asks for the token.
        add_key: &'static str,
        /// The key that would name it.
        id_key: &'static str,
    },
    /// A byte of the text has no token, and there is no unknown token to stand for it.
    #[error("tokenizer.ggml.tokens: no token for byte 0x{byte:02X}, which the text needs")]
    ByteWithoutToken {
        /// The byte.
        byte: u8,
    },
    /// The tokens, merges or pattern were refused by a library; never seen on a sound file.
    #[error("{key}: {problem}")]
    Library {
        /// The metadata key the library was given.
        key: &'static str,
        /// The library's message.
        problem: String,
    },
    /// One of the errors above, with the file it is about.
    #[error("{}: {error}", file.display())]
    InFile {
        /// The model file.
        file: PathBuf,
        /// What is wrong in it.
        error: Box<TokenizerError>,
    },
    /// The chat template does not compile, failed, or used more than it may.
    #[error("tokenizer.chat_template: {0}")]
    Template(String),
}

impl TokenizerError {
    /// Adds the file's name to an error that does not have it yet.
    pub(super) fn in_file(self, file: &Path) -> TokenizerError {
        match self {
            TokenizerError::Metadata(_) | TokenizerError::InFile { .. } => self,
            error => TokenizerError::InFile { file: file.to_owned(), error: Box::new(error) },
        }
    }
}

/// `text` cut to what fits an error line.
pub(super) fn shorten(text: &str) -> String {
    shorten_to(text, 48)
}

/// `text` cut to at most `chars_max` characters.
pub(super) fn shorten_to(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
