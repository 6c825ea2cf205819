//! Decoding of given tokens: what a comparison with another engine measures.
//!
//! Nothing is sampled or drafted, so two engines do exactly the same work whatever their logits' last
//! bits are. Every id is one pass of one row, as in plain decoding.

use std::time::Instant;

use drafthorse_draft::{LanguageModel, LogitRows, TokenId};

use super::Engine;
use crate::api::{Attribution, Memory, Offload, Progress};
use crate::{Error, host};

/// What [`Engine::replay_ids`] did and what it cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// Ids decoded.
    pub tokens: usize,
    /// From the first pass to the last, in seconds.
    pub seconds: f64,
    /// The likeliest token after the last id; the lowest of equals.
    pub next: TokenId,
    /// Where the time went.
    pub attribution: Attribution,
    /// What the expert cache did.
    pub offload: Offload,
    /// What was planned, and what was used.
    pub memory: Memory,
}

impl Engine {
    /// Seconds that [`Engine::open`] took.
    pub fn load_s(&self) -> f64 {
        self.load_s
    }

    /// Decodes `ids` from an empty sequence, one pass of one row each, with the logits of every row.
    /// Resident experts stay as they are before and after; the sequence is forgotten.
    ///
    /// # Errors
    /// As [`Engine::generate`]: no ids, too many, ids outside the vocabulary, experts that cannot be
    /// read. The engine stays usable.
    pub fn replay_ids(&mut self, ids: &[TokenId], progress: &mut dyn Progress) -> Result<Replay, Error> {
        self.check_prompt(ids)?;
        self.reset();
        let (before, spent) = (self.cache_stats(), self.target.spans());
        progress.begin("decode", ids.len() as u64);
        let started = Instant::now();
        let outcome = ids.iter().try_for_each(|&id| {
            self.decode_pass(&[id], LogitRows::Last, None)?;
            progress.advance(1);
            self.routes.commit(1, false).map(drop)
        });
        let seconds = started.elapsed().as_secs_f64();
        progress.end();
        self.reset();
        self.end_reading_ahead();
        self.routes.end(outcome)?;
        Ok(Replay {
            tokens: ids.len(),
            seconds,
            next: likeliest(&self.logits),
            attribution: Attribution { spans: self.target.spans() - spent, wall_s: seconds },
            offload: self.offload_report(before),
            memory: Memory {
                budget_bytes: self.plan.budget_bytes,
                planned_bytes: self.plan.planned_bytes,
                peak_rss_bytes: host::peak_rss_bytes(),
            },
        })
    }

    /// Seconds of one target pass over `tokens` behind the present sequence, with the logits of every row: what
    /// verifying `tokens.len() - 1` drafts costs. The sequence is rolled back, as after a rejection. `None` for
    /// more rows than one pass has here. No trace records it.
    ///
    /// # Errors
    /// No ids, more than the context has room for, experts that cannot be read.
    pub fn time_pass(&mut self, tokens: &[TokenId]) -> Result<Option<f64>, Error> {
        if tokens.len() > self.logit_rows.min(self.target.rows_max()) {
            return Ok(None);
        }
        self.check_prompt(tokens)?;
        let len = self.target.len();
        if len + tokens.len() > self.context_len() {
            return Err(Error::PromptTooLong { prompt: len + tokens.len(), context: self.context_len() });
        }
        let started = Instant::now();
        self.target.pass(tokens, LogitRows::All, &mut self.logits)?;
        let seconds = started.elapsed().as_secs_f64();
        self.target.truncate(len);
        Ok(Some(seconds))
    }
}

/// Index of the greatest value, the lowest of equals; NaN is never it.
fn likeliest(logits: &[f32]) -> TokenId {
    let mut best = 0;
    for (index, value) in logits.iter().enumerate() {
        if *value > logits[best] || logits[best].is_nan() {
            best = index;
        }
    }
    best as TokenId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_is_the_lowest_of_equals_and_never_nan() {
        assert_eq!(likeliest(&[1.0, 3.0, 3.0]), 1);
        assert_eq!(likeliest(&[f32::NAN, -5.0, f32::NAN]), 1);
        assert_eq!(likeliest(&[]), 0);
    }
}
