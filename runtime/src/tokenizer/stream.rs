//! Ids to text as they come, never splitting a character.
//!
//! Bytes that may still become a character are held back. Bytes that cannot any more become
//! U+FFFD, by the same rule as `String::from_utf8_lossy`, so that what a stream returns, put
//! together, is what decoding all ids at once gives.

use std::sync::Arc;

use drafthorse_draft::TokenId;

use super::pieces::Pieces;

/// Decodes a sequence of ids piece by piece. Owns what it needs, so it may outlive a borrow of the
/// tokenizer; made by [`Tokenizer::decode_stream`](super::Tokenizer::decode_stream).
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    pieces: Arc<Pieces>,
    /// Bytes not yet returned: the start of a character.
    pending: Vec<u8>,
    /// Whether a space that comes now is the one that encoding put in front.
    strips_space: bool,
}

impl StreamDecoder {
    pub(super) fn new(pieces: Arc<Pieces>, at_start: bool) -> StreamDecoder {
        let strips_space = at_start && pieces.strips_first_space;
        StreamDecoder { pieces, pending: Vec::new(), strips_space }
    }

    /// The text that `id` completes; empty for control tokens and in the middle of a character.
    pub fn push(&mut self, id: TokenId) -> String {
        let before = self.pending.len();
        self.pieces.write(id, &mut self.pending);
        if self.strips_space && self.pending.len() > before {
            self.strips_space = false;
            if self.pending[before] == b' ' {
                self.pending.remove(before);
            }
        }
        self.take_complete()
    }

    /// The rest: U+FFFD if the last character never became complete. The stream is empty after.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&rest).into_owned()
    }

    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut held = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let is_open = chunks.peek().is_none() && may_continue(chunk.invalid());
            if is_open {
                held = chunk.invalid().len();
            } else if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.pending.drain(..self.pending.len() - held);
        text
    }
}

/// Whether more bytes could make `bytes`, the end of the input, a character.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
