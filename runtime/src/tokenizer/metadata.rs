//! Fills a [`Vocabulary`] from GGUF metadata. Only here does the tokenizer know GGUF.

use std::path::Path;

use super::error::TokenizerError;
use super::tokenizer::Tokenizer;
use super::vocabulary::{
    ADD_BOS, ADD_EOS, BOS, EOM, EOS, EOT, MERGES, PRE, SCORES, TOKENS, TYPES, UNK, Vocabulary,
};
use crate::gguf::{GgufError, Metadata};

const MODEL: &str = "tokenizer.ggml.model";
const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
const REMOVE_EXTRA_WHITESPACES: &str = "tokenizer.ggml.remove_extra_whitespaces";
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

impl From<GgufError> for TokenizerError {
    fn from(error: GgufError) -> TokenizerError {
        TokenizerError::Metadata(error.to_string())
    }
}

impl<'a> Vocabulary<'a> {
    /// Borrows the vocabulary from a file's metadata.
    ///
    /// # Errors
    /// A key that is missing, of another type, or not UTF-8.
    pub fn from_metadata(metadata: &'a Metadata) -> Result<Vocabulary<'a>, TokenizerError> {
        let tokens = metadata.strs(TOKENS)?.ok_or(TokenizerError::MissingKey { key: TOKENS })?;
        let model = metadata.str(MODEL)?.ok_or(TokenizerError::MissingKey { key: MODEL })?;
        let merges = metadata.strs(MERGES)?;
        if model == "gpt2" && merges.is_none() {
            return Err(TokenizerError::MissingKey { key: MERGES });
        }
        Ok(Vocabulary {
            model,
            pre: metadata.str(PRE)?,
            tokens,
            scores: metadata.f32s(SCORES)?.unwrap_or_default(),
            types: metadata.i32s(TYPES)?.unwrap_or_default(),
            merges: merges.unwrap_or_default(),
            bos: metadata.u64(BOS)?,
            eos: metadata.u64(EOS)?,
            eot: metadata.u64(EOT)?,
            eom: metadata.u64(EOM)?,
            unk: metadata.u64(UNK)?,
            add_bos: metadata.bool(ADD_BOS)?,
            add_eos: metadata.bool(ADD_EOS)?,
            add_space_prefix: metadata.bool(ADD_SPACE_PREFIX)?,
            remove_extra_whitespaces: metadata.bool(REMOVE_EXTRA_WHITESPACES)?,
            chat_template: metadata.str(CHAT_TEMPLATE)?,
        })
    }
}

impl Tokenizer {
    /// The tokenizer of a model file; `path` is named in errors about single values.
    ///
    /// # Errors
    /// As [`Vocabulary::from_metadata`] and [`Tokenizer::new`].
    pub fn from_metadata(metadata: &Metadata, path: &Path) -> Result<Tokenizer, TokenizerError> {
        let built = Vocabulary::from_metadata(metadata).and_then(|vocabulary| Tokenizer::new(&vocabulary));
        built.map_err(|error| error.in_file(path))
    }
}
