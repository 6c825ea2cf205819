//! One request's text as the engine sees it: committed tokens and where its generation stands.
//!
//! Owns the invariant between text and KV cache: the cache holds every committed token but the last
//! (which is the next pass's first input row). Knows no models.

use drafthorse_draft::{Draft, Sampler, TokenId, Verdict};

/// Committed tokens of the prompt and of the output.
pub struct Sequence {
    tokens: Vec<TokenId>,
    prompt_len: usize,
    /// Chooses every token of this sequence.
    pub sampler: Sampler,
}

impl Sequence {
    /// A sequence that holds only its prompt.
    pub fn new(prompt: &[TokenId], sampler: Sampler) -> Sequence {
        Sequence { tokens: prompt.to_vec(), prompt_len: prompt.len(), sampler }
    }

    /// All committed tokens.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Committed tokens after the prompt.
    pub fn generated(&self) -> &[TokenId] {
        &self.tokens[self.prompt_len..]
    }

    /// Number of committed tokens: the position of the next one.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Input rows of the next pass: the last committed token and the guesses after it.
    pub fn pending(&self, draft: &Draft) -> Vec<TokenId> {
        let mut rows = Vec::with_capacity(1 + draft.tokens.len());
        rows.extend(self.tokens.last());
        rows.extend(&draft.tokens);
        rows
    }

    /// Commits one token.
    pub fn push(&mut self, token: TokenId) {
        self.tokens.push(token);
    }

    /// Commits what a verdict left of the draft and the target's own token; returns how many.
    pub fn commit(&mut self, draft: &Draft, verdict: &Verdict) -> usize {
        self.tokens.extend(&draft.tokens[..verdict.accepted]);
        self.tokens.push(verdict.next);
        verdict.accepted + 1
    }

    /// Takes back the last tokens, down to `len` (an end token inside an accepted run).
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len.max(self.prompt_len));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drafthorse_draft::SamplerConfig;

    #[test]
    fn a_verdict_commits_the_accepted_prefix_and_the_targets_token() {
        let mut sequence = Sequence::new(&[5, 6], Sampler::new(SamplerConfig::plain(0.0, 0)));
        let draft = Draft::new(vec![7, 8, 9], vec![1.0; 3]);
        assert_eq!(sequence.pending(&draft), [6, 7, 8, 9]);
        let verdict = Verdict { accepted: 1, next: 4, probability: 0.5, certainty: vec![0.5; 2] };
        assert_eq!(sequence.commit(&draft, &verdict), 2);
        assert_eq!(sequence.tokens(), [5, 6, 7, 4]);
        assert_eq!(sequence.generated(), [7, 4]);
        sequence.truncate(0);
        assert_eq!(sequence.tokens(), [5, 6], "the prompt stays");
    }
}
