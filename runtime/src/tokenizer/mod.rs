//! Text to token ids and back, as the model file's metadata says.
//!
//! [`Vocabulary`] is the seam: it borrows what `tokenizer.ggml.*` holds, and [`Tokenizer::new`]
//! checks all of it (ids in range, merges that name tokens, finite scores) before anything is
//! built, so that a hostile file ends in a [`TokenizerError`] and never in a panic. Byte-level BPE
//! runs on the `tokenizers` crate; SPM is our own (see `spm.rs` for why). [`StreamDecoder`] turns
//! ids into text without ever splitting a character, [`chat`] renders the file's Jinja template.
//! Nothing here knows tensors, models or the terminal.

mod bpe;
mod byte_level;
pub mod chat;
mod error;
mod metadata;
mod pieces;
mod pre;
mod special;
mod spm;
mod stream;
#[expect(clippy::module_inception, reason = "the file is named after the type it holds")]
mod tokenizer;
mod vocabulary;

pub use error::TokenizerError;
pub use stream::StreamDecoder;
pub use tokenizer::{AddSpecial, EncodeOptions, ParseSpecial, Tokenizer};
pub use vocabulary::Vocabulary;
