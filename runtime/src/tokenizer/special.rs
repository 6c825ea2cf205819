//! Special tokens: found in text before anything else, and the set that ends a text.
//!
//! User-defined tokens are always found; control and unknown tokens only when the caller lets text
//! contain them. Of several tokens that start at one place the longest wins. Which tokens end a
//! text follows the metadata ids, plus control tokens that are known end markers by their text,
//! because converters often set only one id.

use std::collections::HashMap;

use drafthorse_draft::TokenId;
use tokenizers::utils::SysRegex;

use super::error::TokenizerError;
use super::pieces::{Kind, Pieces};
use super::vocabulary::TOKENS;

/// Texts that end a turn or a text in the models we know.
const END_MARKERS: &[&str] = &[
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<｜end▁of▁sentence｜>",
    "<end_of_turn>",
    "[EOT]",
    "[EOS]",
    "</s>",
];

/// A stretch of the input: text to encode, or one special token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part<'t> {
    Text(&'t str),
    Token(TokenId),
}

/// Finds one set of special tokens in text.
#[derive(Debug)]
pub(super) struct Specials {
    matcher: Option<SysRegex>,
    ids: HashMap<Box<str>, TokenId>,
}

impl Specials {
    /// Builds the matcher for all tokens of `kinds`.
    ///
    /// # Errors
    /// The texts together are larger than the regex engine takes (about 10 MiB compiled).
    pub(super) fn new(pieces: &Pieces, kinds: &[Kind]) -> Result<Specials, TokenizerError> {
        let token = |id| Some((pieces.text(id)?, id));
        let mut tokens: Vec<(&str, TokenId)> = pieces.ids_of(kinds).filter_map(token).collect();
        tokens.retain(|(text, _)| !text.is_empty());
        // Alternatives are tried in order: longest first.
        tokens.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        let pattern: Vec<String> = tokens.iter().map(|(text, _)| escape(text)).collect();
        let matcher = if pattern.is_empty() { None } else { Some(compile(&pattern.join("|"))?) };
        Ok(Specials { matcher, ids: tokens.into_iter().map(|(text, id)| (text.into(), id)).collect() })
    }

    /// Cuts `text` at the special tokens; parts of text are never empty.
    pub(super) fn partition<'t>(&self, text: &'t str) -> Vec<Part<'t>> {
        let mut parts = Vec::new();
        let mut at = 0;
        for (start, end) in self.matcher.iter().flat_map(|matcher| matcher.find_iter(text)) {
            let Some(&id) = self.ids.get(&text[start..end]) else { continue };
            if at < start {
                parts.push(Part::Text(&text[at..start]));
            }
            parts.push(Part::Token(id));
            at = end;
        }
        if at < text.len() {
            parts.push(Part::Text(&text[at..]));
        }
        parts
    }
}

/// The tokens that end a text: `ids` from the metadata and every special token whose text is an
/// end marker; sorted.
pub(super) fn end_tokens(pieces: &Pieces, ids: impl IntoIterator<Item = TokenId>) -> Vec<TokenId> {
    let special = pieces.ids_of(&[Kind::Control, Kind::UserDefined]);
    let is_marker = |&id: &TokenId| pieces.text(id).is_some_and(|text| END_MARKERS.contains(&text));
    let mut ends: Vec<TokenId> = special.filter(is_marker).chain(ids).collect();
    ends.sort_unstable();
    ends.dedup();
    ends
}

fn compile(pattern: &str) -> Result<SysRegex, TokenizerError> {
    SysRegex::new(pattern)
        .map_err(|error| TokenizerError::Library { key: TOKENS, problem: error.to_string() })
}

/// `text` as a pattern that matches it alone.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}
