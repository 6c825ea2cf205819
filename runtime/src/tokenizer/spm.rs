//! SPM, the `llama` tokenizer: SentencePiece's BPE, where a merge is as good as the score of the
//! token it makes.
//!
//! Why not the `tokenizers` crate: its merges are ranked by *pair*, while here all pairs that make
//! one token are equally good and the leftmost wins; with repeated characters (runs of spaces) the
//! two differ. Scores may also tie between tokens, which a rank cannot. Characters without a token
//! become `<0xXX>` byte tokens, or the unknown token where there are none.
//! Algorithm: Kudo and Richardson 2018, as `bpe_model.cc` and llama.cpp have it.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use drafthorse_draft::TokenId;

use super::error::{TokenizerError, shorten};
use super::pieces::{self, SPACE};
use super::vocabulary::SCORES;

/// An SPM model.
#[derive(Debug)]
pub(super) struct Spm {
    ids: HashMap<Box<str>, TokenId>,
    scores: Vec<f32>,
    byte_tokens: Box<[Option<TokenId>; 256]>,
    unk: Option<TokenId>,
    token_bytes_max: usize,
    /// Whether text, and text after a special token, gets a space in front.
    add_space_prefix: bool,
}

/// A stretch of the text that is one token so far; `bytes == 0` once merged into its left.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    start: usize,
    bytes: usize,
    left: Option<usize>,
    right: Option<usize>,
}

/// Two neighbours that would make a token.
#[derive(Clone, Copy, Debug)]
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    bytes: usize,
}

impl Ord for Merge {
    /// Best score first, then leftmost. Scores are finite and -0 is 0 (checked in [`Spm::new`]).
    fn cmp(&self, other: &Merge) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Merge) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Merge) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

impl Spm {
    /// Builds the model from tokens and their scores.
    ///
    /// # Errors
    /// Two tokens with one text, scores of another length, a score that is no finite number.
    pub(super) fn new(tokens: &[&str], scores: &[f32], options: &SpmOptions) -> Result<Spm, TokenizerError> {
        let scores = checked_scores(scores, tokens.len())?;
        let mut ids = HashMap::with_capacity(tokens.len());
        let mut byte_tokens = Box::new([None; 256]);
        for (id, &token) in (0..).zip(tokens) {
            // A token without text can be emitted but never encoded.
            if token.is_empty() {
                continue;
            }
            if let Some(first) = ids.insert(token.into(), id) {
                return Err(TokenizerError::DuplicateToken { text: shorten(token), first, second: id });
            }
            if let Some(byte) = pieces::byte_of(token) {
                byte_tokens[usize::from(byte)] = Some(id);
            }
        }
        let token_bytes_max = tokens.iter().map(|token| token.len()).max().unwrap_or(0);
        let SpmOptions { unk, add_space_prefix } = *options;
        Ok(Spm { ids, scores, byte_tokens, unk, token_bytes_max, add_space_prefix })
    }

    /// Appends the ids of `text`, which holds no special tokens; `after_special` where it starts
    /// the input or follows a special token.
    ///
    /// # Errors
    /// [`TokenizerError::ByteWithoutToken`].
    pub(super) fn encode(
        &self,
        text: &str,
        after_special: bool,
        ids: &mut Vec<TokenId>,
    ) -> Result<(), TokenizerError> {
        let prefix = if self.add_space_prefix && after_special { " " } else { "" };
        let written: String = prefix.chars().chain(text.chars()).map(visible).collect();
        let symbols = self.merge(&written);
        let mut at = (!symbols.is_empty()).then_some(0);
        while let Some(index) = at {
            let Symbol { start, bytes, right, .. } = symbols[index];
            self.push(&written[start..start + bytes], ids)?;
            at = right;
        }
        Ok(())
    }

    /// Splits `text` into characters and merges until nothing can be merged.
    fn merge(&self, text: &str) -> Vec<Symbol> {
        let mut symbols = characters(text);
        let pairs = (1..symbols.len()).filter_map(|right| self.candidate(text, &symbols, Some(right - 1)));
        let mut queue: BinaryHeap<Merge> = pairs.collect();
        while let Some(Merge { left, right, bytes, .. }) = queue.pop() {
            let (first, second) = (symbols[left], symbols[right]);
            let is_stale = first.bytes == 0 || second.bytes == 0 || first.bytes + second.bytes != bytes;
            if is_stale {
                continue;
            }
            symbols[left] = Symbol { bytes, right: second.right, ..first };
            symbols[right].bytes = 0;
            if let Some(next) = second.right {
                symbols[next].left = Some(left);
            }
            queue.extend(self.candidate(text, &symbols, first.left));
            queue.extend(self.candidate(text, &symbols, Some(left)));
        }
        symbols
    }

    /// The merge of the symbol at `left` with the one after it, if that makes a token.
    fn candidate(&self, text: &str, symbols: &[Symbol], left: Option<usize>) -> Option<Merge> {
        let left = left?;
        let right = symbols[left].right?;
        let bytes = symbols[left].bytes + symbols[right].bytes;
        if bytes > self.token_bytes_max {
            return None;
        }
        let start = symbols[left].start;
        let id = *self.ids.get(&text[start..start + bytes])?;
        Some(Merge { score: self.scores[id as usize], left, right, bytes })
    }

    /// Appends the id of a finished symbol, or its bytes.
    fn push(&self, symbol: &str, ids: &mut Vec<TokenId>) -> Result<(), TokenizerError> {
        if let Some(&id) = self.ids.get(symbol) {
            ids.push(id);
            return Ok(());
        }
        let byte_token = |byte: u8| self.byte_tokens[usize::from(byte)];
        if symbol.bytes().all(|byte| byte_token(byte).is_some()) {
            ids.extend(symbol.bytes().filter_map(byte_token));
            return Ok(());
        }
        let byte = symbol.bytes().find(|&byte| byte_token(byte).is_none()).unwrap_or_default();
        ids.push(self.unk.ok_or(TokenizerError::ByteWithoutToken { byte })?);
        Ok(())
    }
}

/// What [`Spm::new`] needs beside tokens and scores.
#[derive(Clone, Copy, Debug)]
pub(super) struct SpmOptions {
    /// Stands for characters that have neither token nor byte tokens.
    pub(super) unk: Option<TokenId>,
    /// Whether text gets a space in front.
    pub(super) add_space_prefix: bool,
}

fn visible(character: char) -> char {
    if character == ' ' { SPACE } else { character }
}

fn characters(text: &str) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
    for (start, character) in text.char_indices() {
        let index = symbols.len();
        if let Some(last) = symbols.last_mut() {
            last.right = Some(index);
        }
        symbols.push(Symbol { start, bytes: character.len_utf8(), left: index.checked_sub(1), right: None });
    }
    symbols
}

fn checked_scores(scores: &[f32], tokens: usize) -> Result<Vec<f32>, TokenizerError> {
    if scores.len() != tokens {
        return Err(TokenizerError::WrongLength { key: SCORES, found: scores.len(), expected: tokens });
    }
    if let Some((index, score)) = scores.iter().enumerate().find(|(_, score)| !score.is_finite()) {
        let problem = format!("{score} is not a finite score");
        return Err(TokenizerError::BadEntry { key: SCORES, index, problem });
    }
    Ok(scores.iter().map(|score| score + 0.0).collect())
}
