//! Drafting with Medusa heads: each guesses one of the next tokens from the same hidden state.
//!
//! Owns the trait [`ParallelHeads`] and [`MedusaDrafter`]. Nothing is autoregressive, so nothing is kept
//! between calls (Medusa, arXiv 2401.10774, section 2.1.1; here the heads draft one chain, not a tree).
//! It must not know what a head computes.

use crate::{Draft, DraftError, Drafter, FeatureNeed, History, ModelError, Request};

/// Several heads on one hidden state of the target: head `i` predicts the token `i + 2` places after the
/// state's own (the target predicts the next one).
pub trait ParallelHeads: Send {
    /// Number of the target's token ids; a logits row has this many values.
    fn vocab(&self) -> usize;

    /// How many there are.
    fn count(&self) -> usize;

    /// Writes the logits of the first `heads` heads, `[heads, vocab]`, into `logits`; `features` is the
    /// target's hidden state.
    fn predict(&mut self, features: &[f32], heads: usize, logits: &mut Vec<f32>) -> Result<(), ModelError>;
}

/// Drafts with [`ParallelHeads`], in the caller's thread.
pub struct MedusaDrafter {
    heads: Box<dyn ParallelHeads>,
    logits: Vec<f32>,
}

impl MedusaDrafter {
    /// A drafter over `heads`.
    pub fn new(heads: Box<dyn ParallelHeads>) -> MedusaDrafter {
        MedusaDrafter { heads, logits: Vec::new() }
    }
}

impl Drafter for MedusaDrafter {
    fn name(&self) -> &'static str {
        "medusa"
    }

    fn propose(&mut self, request: Request<'_>) -> Result<Draft, DraftError> {
        let mut draft = Draft::default();
        let count = self.heads.count().min(request.max_tokens);
        // The state from which the target chose the last token of the context.
        let Some(position) = request.context.len().checked_sub(2).filter(|_| count > 0) else {
            return Ok(draft);
        };
        let missing = DraftError::FeaturesMissing { drafter: "medusa", position };
        let features = request.features.and_then(|rows| rows.rows(position..position + 1)).ok_or(missing)?;
        self.heads.predict(features, count, &mut self.logits).map_err(DraftError::Model)?;
        let vocab = self.heads.vocab();
        if self.logits.len() != count * vocab {
            return Err(DraftError::LogitCount { got: self.logits.len(), want: count * vocab });
        }
        for row in self.logits.chunks(vocab) {
            let history = History { committed: request.context, drafted: &draft.tokens };
            draft.push(request.sampler.guess(row, history));
        }
        Ok(draft)
    }

    fn features(&self) -> FeatureNeed {
        FeatureNeed::Latest
    }
}
