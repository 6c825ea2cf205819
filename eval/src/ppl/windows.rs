//! A list of ids cut into windows, and which of a window's predictions are scored.
//!
//! llama-perplexity's rules: windows do not overlap, a rest that fills none is left out, each begins
//! with the vocabulary's first token where texts begin with one (it takes the place of a token, so that
//! windows stay in step), and the first half is context only. Pure: knows no models and no files.

use std::ops::Range;

use drafthorse_draft::TokenId;

/// Fewer tokens leave nothing to score.
pub const CONTEXT_MIN: usize = 4;

/// Positions of a window whose predictions are scored: the second half, but for the last, whose
/// prediction has no token to be held against.
pub fn scored(context: usize) -> Range<usize> {
    context / 2..context.saturating_sub(1)
}

/// The tokens that the scored positions should predict.
pub fn targets(window: &[TokenId]) -> &[TokenId] {
    let Range { start, end } = scored(window.len());
    &window[start + 1..end + 1]
}

/// Whole windows, one after the other.
#[derive(Debug, PartialEq)]
pub struct Windows {
    ids: Vec<TokenId>,
    context: usize,
}

impl Windows {
    /// Cuts `ids` into windows of `context`, `chunks` at most; each begins with `first`, if any.
    ///
    /// # Errors
    /// There is no whole window, in words.
    pub fn cut(
        mut ids: Vec<TokenId>,
        (context, chunks): (usize, Option<usize>),
        first: Option<TokenId>,
    ) -> Result<Windows, String> {
        if context < CONTEXT_MIN || ids.len() < context {
            return Err(format!("{} tokens do not fill a window of {context}", ids.len()));
        }
        let windows = (ids.len() / context).min(chunks.unwrap_or(usize::MAX));
        ids.truncate(windows * context);
        if let Some(first) = first {
            ids.iter_mut().step_by(context).for_each(|id| *id = first);
        }
        Ok(Windows { ids, context })
    }

    /// All ids, window after window.
    pub fn ids(&self) -> &[TokenId] {
        &self.ids
    }

    /// Tokens of one.
    pub fn context(&self) -> usize {
        self.context
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ids.len() / self.context
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &[TokenId]> {
        self.ids.chunks(self.context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn windows_are_whole_and_begin_with_the_first_token() {
        let cut = |chunks, first| Windows::cut((10..23).collect(), (5, chunks), first).unwrap();
        assert_eq!(cut(None, None).ids(), (10..20).collect::<Vec<_>>());
        assert_eq!(cut(None, Some(1)).ids(), [1, 11, 12, 13, 14, 1, 16, 17, 18, 19]);
        assert_eq!(cut(Some(1), None).iter().collect::<Vec<_>>(), [[10, 11, 12, 13, 14]]);
        assert_eq!((cut(Some(9), None).len(), cut(Some(9), None).context()), (2, 5));
        assert!(Windows::cut(vec![1; 4], (5, None), None).unwrap_err().contains("4 tokens"));
    }

    #[test]
    fn the_second_half_is_scored_but_for_the_last_position() {
        // llama-perplexity at 512: positions 256 to 510 predict tokens 257 to 511.
        assert_eq!(scored(512), 256..511);
        assert_eq!(targets(&[7, 8, 9, 10]), [10]);
        assert_eq!(targets(&[7, 8, 9, 10, 11]), [10, 11]);
    }
}
