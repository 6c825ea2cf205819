//! Byte-level BPE on the `tokenizers` crate: words from the pre-tokenizer, written in the byte
//! alphabet, merged by rank.
//!
//! Of that crate only the model is used. Its pipeline keeps 16 bytes of alignment for every byte
//! of text; here words go through one at a time. Merges are checked before the crate sees them,
//! for its builder indexes out of bounds when a merge makes a text longer than the longest token.
//! Its word cache is off: it is per thread, has no bound in bytes and outlives the tokenizer.

use std::collections::HashSet;

use drafthorse_draft::TokenId;
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::byte_level;
use super::error::{TokenizerError, shorten};
use super::pre::{PreTokenizer, Splitter};
use super::vocabulary::{MERGES, TOKENS};

/// A byte-level BPE model with its pre-tokenizer.
#[derive(Debug)]
pub(super) struct Bpe {
    model: BPE,
    splitter: Splitter,
    /// By byte: whether the byte alone is a token.
    has_byte: Box<[bool; 256]>,
}

impl Bpe {
    /// Builds the model; `merges` are pairs of tokens with a space between, best first.
    ///
    /// # Errors
    /// Two tokens with one text, a merge that is no pair, repeats another or names no token.
    pub(super) fn new(tokens: &[&str], merges: &[&str], pre: &PreTokenizer) -> Result<Bpe, TokenizerError> {
        let splitter = Splitter::new(pre)?;
        let vocab = vocab(tokens)?;
        let has_byte = Box::new(std::array::from_fn(|byte| {
            let byte = u8::try_from(byte).expect("invariant: the array has 256 entries");
            vocab.contains_key(byte_level::char_of(byte).encode_utf8(&mut [0; 4]) as &str)
        }));
        let merges = checked_merges(&vocab, merges)?;
        let model = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .ignore_merges(pre.ignore_merges)
            .cache_capacity(0)
            .build()
            .map_err(|error| TokenizerError::Library { key: MERGES, problem: error.to_string() })?;
        Ok(Bpe { model, splitter, has_byte })
    }

    /// Appends the ids of `text`, which holds no special tokens.
    ///
    /// # Errors
    /// [`TokenizerError::ByteWithoutToken`].
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<TokenId>) -> Result<(), TokenizerError> {
        let mut written = String::new();
        self.splitter.split(text, &mut |word| {
            if let Some(byte) = word.bytes().find(|&byte| !self.has_byte[usize::from(byte)]) {
                return Err(TokenizerError::ByteWithoutToken { byte });
            }
            written.clear();
            byte_level::write_bytes(word.as_bytes(), &mut written);
            let tokens = self
                .model
                .tokenize(&written)
                .map_err(|error| TokenizerError::Library { key: TOKENS, problem: error.to_string() })?;
            ids.extend(tokens.iter().map(|token| token.id));
            Ok(())
        })
    }
}

fn vocab(tokens: &[&str]) -> Result<Vocab, TokenizerError> {
    let mut vocab = Vocab::with_capacity(tokens.len());
    for (id, &token) in (0..).zip(tokens) {
        // A token without text can be emitted but never encoded.
        if token.is_empty() {
            continue;
        }
        if let Some(first) = vocab.insert(token.to_owned(), id) {
            return Err(TokenizerError::DuplicateToken { text: shorten(token), first, second: id });
        }
    }
    Ok(vocab)
}

fn checked_merges(vocab: &Vocab, merges: &[&str]) -> Result<Merges, TokenizerError> {
    let mut seen = HashSet::with_capacity(merges.len());
    let mut checked = Merges::with_capacity(merges.len());
    let mut merged = String::new();
    for (index, merge) in merges.iter().enumerate() {
        let bad = |problem: String| TokenizerError::BadEntry { key: MERGES, index, problem };
        let (left, right) = pair(merge).ok_or_else(|| bad(format!("{:?} is not a pair", shorten(merge))))?;
        merged.clear();
        merged.extend([left, right]);
        let id = |text: &str| {
            vocab.get(text).copied().ok_or_else(|| bad(format!("{:?} is not a token", shorten(text))))
        };
        id(&merged)?;
        if !seen.insert((id(left)?, id(right)?)) {
            return Err(bad(format!("{:?} stands there twice", shorten(merge))));
        }
        checked.push((left.to_owned(), right.to_owned()));
    }
    Ok(checked)
}

/// The two sides of a merge. A space cannot be the first character of either.
fn pair(merge: &str) -> Option<(&str, &str)> {
    let first = merge.chars().next()?.len_utf8();
    let space = first + merge.get(first..)?.find(' ')?;
    let (left, right) = (&merge[..space], &merge[space + 1..]);
    (!right.is_empty()).then_some((left, right))
}
