//! The vocabulary by id: each token's text and kind in one allocation, and the bytes it prints.
//!
//! A token prints its text, unless it is written in the byte-level alphabet (BPE), with U+2581 for
//! spaces or as `<0xXX>` (SPM). Control and unknown tokens print nothing inside a text.

use drafthorse_draft::TokenId;

use super::byte_level;
use super::error::TokenizerError;
use super::vocabulary::{TOKENS, TYPES};

/// SPM's visible space.
pub(super) const SPACE: char = '\u{2581}';

/// Which alphabet normal tokens are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// GPT-2's printable bytes.
    ByteLevel,
    /// UTF-8 with U+2581 for spaces.
    Spm,
}

/// `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Byte,
}

impl Kind {
    fn from_id(id: i32) -> Option<Kind> {
        Some(match id {
            // 0 is "undefined", 5 "unused": text like any other, should a model ever emit it.
            0 | 1 | 5 => Kind::Normal,
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            6 => Kind::Byte,
            _ => return None,
        })
    }
}

/// Every token's text and kind.
#[derive(Debug)]
pub(super) struct Pieces {
    alphabet: Alphabet,
    /// All texts, one after the other.
    text: String,
    /// Where each text ends.
    ends: Vec<u32>,
    kinds: Vec<Kind>,
    /// Whether a text starts with a space that encoding added (SPM).
    pub(super) strips_first_space: bool,
}

impl Pieces {
    /// Copies `tokens` into one string.
    ///
    /// # Errors
    /// No tokens, more than a `u32` counts, types of another length or with unknown values.
    pub(super) fn new(
        alphabet: Alphabet,
        tokens: &[&str],
        types: &[i32],
        strips_first_space: bool,
    ) -> Result<Pieces, TokenizerError> {
        if tokens.is_empty() || u32::try_from(tokens.len()).is_err() {
            return Err(TokenizerError::TokenCount { count: tokens.len() });
        }
        let mut text = String::with_capacity(tokens.iter().map(|token| token.len()).sum());
        let mut ends = Vec::with_capacity(tokens.len());
        for (index, token) in tokens.iter().enumerate() {
            text.push_str(token);
            let problem = || "4 GiB of text".to_owned();
            let too_long = |_| TokenizerError::BadEntry { key: TOKENS, index, problem: problem() };
            ends.push(u32::try_from(text.len()).map_err(too_long)?);
        }
        Ok(Pieces { alphabet, text, ends, kinds: kinds(types, tokens.len())?, strips_first_space })
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The token's text as the file writes it.
    pub(super) fn text(&self, id: TokenId) -> Option<&str> {
        let index = usize::try_from(id).ok()?;
        let end = *self.ends.get(index)? as usize;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        self.text.get(start..end)
    }

    /// The token's kind; a normal one where there is no such token.
    pub(super) fn kind(&self, id: TokenId) -> Kind {
        usize::try_from(id).ok().and_then(|index| self.kinds.get(index)).copied().unwrap_or(Kind::Normal)
    }

    /// All ids of one of the kinds.
    pub(super) fn ids_of<'a>(&'a self, kinds: &'a [Kind]) -> impl Iterator<Item = TokenId> + 'a {
        (0..).zip(&self.kinds).filter(|(_, kind)| kinds.contains(kind)).map(|(id, _)| id)
    }

    /// Appends what the token prints inside a text: nothing for control and unknown tokens. An id
    /// outside the vocabulary prints U+FFFD.
    pub(super) fn write(&self, id: TokenId, out: &mut Vec<u8>) {
        match self.kind(id) {
            Kind::Control | Kind::Unknown => {}
            _ => self.write_visible(id, out),
        }
    }

    /// Appends what the token stands for, control tokens by their name.
    pub(super) fn write_visible(&self, id: TokenId, out: &mut Vec<u8>) {
        let Some(text) = self.text(id) else {
            out.extend_from_slice("\u{FFFD}".as_bytes());
            return;
        };
        match (self.kind(id), self.alphabet) {
            (Kind::Control | Kind::Unknown | Kind::UserDefined, _) => out.extend_from_slice(text.as_bytes()),
            (Kind::Byte, _) if byte_of(text).is_some() => out.extend(byte_of(text)),
            (_, Alphabet::ByteLevel) => byte_level::read_bytes(text, out),
            (_, Alphabet::Spm) => write_spaced(text, out),
        }
    }
}

/// The byte that a token `<0xXX>` stands for.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

fn write_spaced(text: &str, out: &mut Vec<u8>) {
    for (index, part) in text.split(SPACE).enumerate() {
        if index > 0 {
            out.push(b' ');
        }
        out.extend_from_slice(part.as_bytes());
    }
}

fn kinds(types: &[i32], tokens: usize) -> Result<Vec<Kind>, TokenizerError> {
    if types.is_empty() {
        return Ok(vec![Kind::Normal; tokens]);
    }
    if types.len() != tokens {
        return Err(TokenizerError::WrongLength { key: TYPES, found: types.len(), expected: tokens });
    }
    let kind = |(index, &id): (usize, &i32)| {
        let problem = || format!("{id} is not a token type (0 to 6)");
        Kind::from_id(id).ok_or_else(|| TokenizerError::BadEntry { key: TYPES, index, problem: problem() })
    };
    types.iter().enumerate().map(kind).collect()
}
