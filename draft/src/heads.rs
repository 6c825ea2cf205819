//! Drafting with a head on the target's hidden states, token after token: MTP and EAGLE-3.
//!
//! Owns the trait [`HeadModel`] and [`HeadDrafter`], which keeps a head's rows in step with the text:
//! row `p` is made of the target's hidden state at position `p` and the token after it, so a context of
//! `n` tokens gives `n - 1` rows, and the last one's logits are the first guess. Further guesses come
//! from rows that the head makes of its own hidden state (DeepSeek-V3, arXiv 2412.19437, section 2.2;
//! EAGLE-3, arXiv 2503.01840). It must not know what a head computes.

use crate::{Draft, DraftError, Drafter, FeatureNeed, History, ModelError, Request, TokenId};

/// A small causal network on top of a target's hidden states, with a KV cache of its own.
///
/// Contract, as [`crate::LanguageModel`]'s: rows are dense from 0; a row's logits MUST NOT depend on how
/// many rows ride along; after an error the cache holds the rows it held before the call.
pub trait HeadModel: Send {
    /// Number of the target's token ids; a logits row has this many values.
    fn vocab(&self) -> usize;

    /// Rows the KV cache can hold.
    fn context_len(&self) -> usize;

    /// Rows now in the KV cache.
    fn len(&self) -> usize;

    /// Whether the KV cache is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a row for each of `tokens`, made of the token and of `features[i]`, the target's hidden
    /// state at the position before it (`[tokens.len(), feature width]`); writes the `[vocab]` logits after
    /// the last row into `logits`.
    fn advance(
        &mut self,
        tokens: &[TokenId],
        features: &[f32],
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError>;

    /// Appends one row made of `token` and the head's own hidden state of the last row appended; writes
    /// its logits as [`HeadModel::advance`] does.
    fn step(&mut self, token: TokenId, logits: &mut Vec<f32>) -> Result<(), ModelError>;

    /// Drops every row from `len` on, in O(1). A `len` beyond the present one changes nothing.
    fn truncate(&mut self, len: usize);
}

/// Drafts with a [`HeadModel`], in the caller's thread.
pub struct HeadDrafter {
    name: &'static str,
    head: Box<dyn HeadModel>,
    /// The text whose rows the head holds: one token more than rows.
    history: Vec<TokenId>,
    logits: Vec<f32>,
}

impl HeadDrafter {
    /// A drafter of that registry name over `head`.
    pub fn new(name: &'static str, head: Box<dyn HeadModel>) -> HeadDrafter {
        HeadDrafter { name, head, history: Vec::new(), logits: Vec::new() }
    }

    /// Makes the head hold the rows of the request's context. Where tokens are asked for, the last row is
    /// made anew even if it is there: its logits are what the first guess comes from.
    fn sync(&mut self, request: &Request<'_>) -> Result<(), DraftError> {
        let context = request.context;
        let rows = context.len() - 1;
        let same = self.history.iter().zip(context).take_while(|(a, b)| a == b).count();
        let known = same.saturating_sub(1).min(self.head.len());
        let keep = if request.max_tokens > 0 { known.min(rows - 1) } else { known };
        self.head.truncate(keep);
        self.history.truncate(keep + 1);
        if keep == rows {
            return Ok(());
        }
        let missing = DraftError::FeaturesMissing { drafter: self.name, position: keep };
        let features = request.features.and_then(|features| features.rows(keep..rows)).ok_or(missing)?;
        self.check(&context[keep..])?;
        self.head.advance(&context[keep + 1..], features, &mut self.logits).map_err(DraftError::Model)?;
        self.history.clear();
        self.history.extend_from_slice(context);
        self.check_logits()
    }

    fn check(&self, tokens: &[TokenId]) -> Result<(), DraftError> {
        let vocab = self.head.vocab();
        match tokens.iter().find(|token| **token as usize >= vocab) {
            Some(&token) => Err(DraftError::TokenOutOfVocabulary { token, vocab }),
            None => Ok(()),
        }
    }

    fn check_logits(&self) -> Result<(), DraftError> {
        match (self.logits.len(), self.head.vocab()) {
            (got, want) if got != want => Err(DraftError::LogitCount { got, want }),
            _ => Ok(()),
        }
    }
}

impl Drafter for HeadDrafter {
    fn name(&self) -> &'static str {
        self.name
    }

    fn propose(&mut self, request: Request<'_>) -> Result<Draft, DraftError> {
        let mut draft = Draft::default();
        let (context, head_context) = (request.context, self.head.context_len());
        // The first row needs a token and the hidden state before it; the last guess needs no row.
        if context.len() < 2 || context.len() - 1 > head_context {
            return Ok(draft);
        }
        let len_max = request.max_tokens.min(head_context + 2 - context.len());
        self.sync(&request)?;
        let mut survival = 1.0;
        while draft.tokens.len() < len_max && !request.stop.stops(survival) {
            if let Some(&last) = draft.tokens.last() {
                self.head.step(last, &mut self.logits).map_err(DraftError::Model)?;
                self.check_logits()?;
            }
            let history = History { committed: context, drafted: &draft.tokens };
            let guess = request.sampler.guess(&self.logits, history);
            survival = request.stop.survival(survival, guess.confidence);
            draft.push(guess);
        }
        Ok(draft)
    }

    fn forget(&mut self) {
        self.head.truncate(0);
        self.history.clear();
    }

    fn features(&self) -> FeatureNeed {
        // The last row's, once more: see `sync`.
        FeatureNeed::Since(self.history.len().saturating_sub(2))
    }
}
