//! What stands before the token being chosen.
//!
//! Owns [`History`], the view of committed and drafted tokens that both sides choose by. It must not
//! know logits or laws.

use crate::TokenId;

/// The tokens before the one being chosen: the text, and what of the present draft comes before it.
///
/// For drafted token r, draft and target both see the committed text and the first r drafted tokens,
/// so whatever depends on it (the position, the penalties) is the same on both sides.
#[derive(Clone, Copy, Debug)]
pub struct History<'a> {
    /// Prompt and committed output.
    pub committed: &'a [TokenId],
    /// Drafted tokens before the one being chosen.
    pub drafted: &'a [TokenId],
}

impl<'a> History<'a> {
    /// A text with nothing drafted after it.
    pub fn of(committed: &'a [TokenId]) -> History<'a> {
        History { committed, drafted: &[] }
    }

    /// The absolute index in the sequence of the token being chosen: 5 for the first one after a
    /// prompt of 5 tokens.
    pub fn position(&self) -> usize {
        self.committed.len() + self.drafted.len()
    }

    /// The last `count` tokens, the latest one first.
    pub fn recent(&self, count: usize) -> impl Iterator<Item = TokenId> + 'a {
        self.drafted.iter().rev().chain(self.committed.iter().rev()).copied().take(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafted_tokens_are_more_recent_than_committed_ones() {
        let history = History { committed: &[1, 2, 3], drafted: &[4, 5] };
        assert_eq!(history.position(), 5);
        assert_eq!(history.recent(3).collect::<Vec<_>>(), [5, 4, 3]);
        assert_eq!(history.recent(9).collect::<Vec<_>>(), [5, 4, 3, 2, 1]);
        assert_eq!(History::of(&[7]).recent(0).count(), 0);
    }
}
