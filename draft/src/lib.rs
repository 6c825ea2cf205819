//! Guess and verify: the half of speculative decoding that needs no model file.
//!
//! Owns [`TokenId`], the traits [`LanguageModel`] and [`Drafter`], the drafters, the one function
//! that turns logits into a token ([`Sampler::choose`]), the acceptance rules ([`Sampler::verify`])
//! and acceptance statistics. It must not know files, tensors or GGUF.
//!
//! The rule that makes everything exact (DESIGN I3): draft and target pick a token with the *same*
//! function and the same noise, keyed by (seed, position, token). A drafted token is accepted when
//! it equals the target's own choice; the first difference is replaced by the target's choice. The
//! text is therefore a function of the target and the seed alone, whatever was drafted
//! (drafter-invariant speculative decoding, Daliri, Musco and Suresh, arXiv 2408.07978).
//!
//! The other rule, block verification ([`VerifyRule::Block`]), gives up the last half of that: the
//! text follows the target's law exactly, but which text a seed gives depends on what was drafted.

mod automaton;
mod block;
mod chain;
mod config;
mod error;
mod features;
mod handover;
mod heads;
mod history;
mod law;
mod medusa;
mod model;
mod ngram;
mod noise;
mod penalties;
mod registry;
mod sampler;
mod scripted;
mod stats;
mod stop;
mod suffix;
mod verify;

pub use block::BlockOdds;
pub use chain::ChainDrafter;
pub use config::{SamplerConfig, VerifyRule};
pub use error::{DraftError, ModelError};
pub use features::{FeatureNeed, Features};
pub use heads::{HeadDrafter, HeadModel};
pub use history::History;
pub use law::Law;
pub use medusa::{MedusaDrafter, ParallelHeads};
pub use model::{ModelDrafter, SharedVocabulary};
pub use ngram::{NgramConfig, NgramDrafter};
pub use registry::{DRAFTERS, DrafterEntry, DrafterKind, DrafterParts, HeadPart};
pub use sampler::{Choice, DRAFT_LAW_TOKENS_MAX, Guess, Sampler};
pub use scripted::{Script, ScriptConfidence, ScriptConfig, ScriptedDrafter};
pub use stats::{AcceptanceStats, PositionAcceptance};
pub use stop::{CONFIDENCE_BINS, STOP_SOURCES, StopRule, confidence_bin};
pub use suffix::{SuffixConfig, SuffixDrafter};
pub use verify::Verdict;

use std::borrow::Cow;

/// A token's id in the vocabulary that draft and target share.
pub type TokenId = u32;

/// Which rows of a forward pass the caller wants logits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// None: the pass only fills the KV cache.
    None,
    /// The last row only (prefill).
    Last,
    /// Every row (verification, perplexity).
    All,
}

/// A causal language model with one sequence's KV cache inside.
///
/// Contract, checked by the conformance tests:
/// - positions are dense: `forward` appends rows at positions `len()..len() + tokens.len()`;
/// - a row's logits MUST NOT depend on how many rows ride along (DESIGN I2);
/// - after an error the cache holds the rows it held before the call.
pub trait LanguageModel: Send {
    /// Number of token ids; a logits row has this many values.
    fn vocab(&self) -> usize;

    /// Positions the KV cache can hold.
    fn context_len(&self) -> usize;

    /// Tokens now in the KV cache.
    fn len(&self) -> usize;

    /// Whether the KV cache is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Runs `tokens` and writes `[rows, vocab]` f32 logits into `logits` (cleared first), rows as
    /// chosen by `which`.
    fn forward(
        &mut self,
        tokens: &[TokenId],
        which: LogitRows,
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError>;

    /// Drops every position from `len` on, in O(1). A `len` beyond the present one changes nothing.
    fn truncate(&mut self, len: usize);
}

/// The most tokens that a draft model reads of those that were decoded without it, so that drafting can be tried again
/// at any time. What the model drafts behind a gap may stand less often: which text comes of it is not its to say.
pub const UNREAD_MAX: usize = 32;

/// What a drafter is asked: to continue `context` by at most `max_tokens`.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Prompt and committed output so far; the draft continues after the last one.
    pub context: &'a [TokenId],
    /// How many of them are the prompt (more: all are). Of those behind it that were decoded without a draft, a
    /// drafter that has to read each one may read the last [`UNREAD_MAX`] alone.
    pub prompt_len: usize,
    /// Upper bound on the draft's length.
    pub max_tokens: usize,
    /// The sequence's sampler: a drafter that has logits guesses with [`Sampler::guess`].
    pub sampler: &'a Sampler,
    /// When to stop before `max_tokens`; drafters whose tokens cost nothing need not ask.
    pub stop: StopRule,
    /// What the target's passes showed of the context, where [`Drafter::features`] asks for it.
    pub features: Option<Features<'a>>,
}

impl<'a> Request<'a> {
    /// To continue `context`, all of it a prompt, by at most `max_tokens`, without a rule to stop before and without
    /// features.
    pub fn new(context: &'a [TokenId], max_tokens: usize, sampler: &'a Sampler) -> Request<'a> {
        Request {
            context,
            prompt_len: usize::MAX,
            max_tokens,
            sampler,
            stop: StopRule::NEVER,
            features: None,
        }
    }
}

/// A guess at the next tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draft {
    /// The guessed tokens, the first one at position `context.len()`.
    pub tokens: Vec<TokenId>,
    /// How sure the drafter is of each guess, 0 to 1; same length as `tokens`.
    pub confidence: Vec<f32>,
    /// Which drafter guessed: its place in a [`ChainDrafter`], 0 for one that stands alone. A confidence means
    /// something only beside others of the same source.
    pub source: usize,
    /// The law each guess was drawn from, in block verification; same length as `tokens`. Empty for
    /// guesses that are a function of context and seed: each is then all of its law.
    pub laws: Vec<Law>,
}

impl Draft {
    /// A draft whose guesses were not drawn and bear these confidences; both of one length.
    pub fn new(tokens: Vec<TokenId>, confidence: Vec<f32>) -> Draft {
        debug_assert_eq!(tokens.len(), confidence.len());
        Draft { tokens, confidence, ..Draft::default() }
    }

    /// Adds a guess. All guesses of one draft come from the same sampler.
    pub fn push(&mut self, guess: Guess) {
        self.tokens.push(guess.token);
        self.confidence.push(guess.confidence);
        self.laws.extend(guess.law);
        debug_assert!(self.laws.is_empty() || self.laws.len() == self.tokens.len());
    }

    /// The law that guess number `index` was drawn from.
    pub fn law(&self, index: usize) -> Cow<'_, Law> {
        self.laws.get(index).map_or_else(|| Cow::Owned(Law::point(self.tokens[index])), Cow::Borrowed)
    }

    /// Shortens the draft to at most `len` tokens. Where the draft has laws, `len` must not depend on
    /// the tokens it drops: [`Draft::cut`].
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.confidence.truncate(len);
        self.laws.truncate(len);
    }

    /// Shortens the draft to as many tokens as `keep` wants of it.
    ///
    /// A guess that was drawn must not be dropped because of what it, or a later one, turned out to be:
    /// the guesses kept would no longer follow their laws, and block verification would not be exact.
    /// So a draft with laws is shown to `keep` token by token, and ends before the first token that is
    /// not wanted; a guess's confidence was known before it was drawn. The last call of `keep` is
    /// about what is left, or about the whole.
    pub fn cut(&mut self, mut keep: impl FnMut(&Draft) -> usize) {
        if self.laws.is_empty() {
            self.truncate(keep(self));
            return;
        }
        let start = |len: usize| Draft {
            source: self.source,
            ..Draft::new(self.tokens[..len].to_vec(), self.confidence[..len].to_vec())
        };
        let unwanted = (1..=self.tokens.len()).find(|len| keep(&start(*len)) < *len);
        if let Some(len) = unwanted {
            keep(&start(len - 1));
            self.truncate(len - 1);
        }
    }
}

/// Proposes tokens. A drafter may abstain (an empty [`Draft`]); it MUST NOT return more than
/// `max_tokens`, nor a token id outside the vocabulary. Guesses are either drawn with
/// [`Sampler::guess`] or a function of the context alone.
pub trait Drafter: Send {
    /// The name used on the command line and in reports.
    fn name(&self) -> &'static str;

    /// Guesses the continuation of `request.context`. Contexts of one sequence grow and are rolled
    /// back between calls; the drafter finds the common prefix with what it has seen. Asked for no tokens, a
    /// drafter that needs features takes in those it is given.
    fn propose(&mut self, request: Request<'_>) -> Result<Draft, DraftError>;

    /// The target is about to verify `draft` behind the request's context: a drafter with a thread of its own
    /// may go on meanwhile, as if all of it stood and a next request like this one followed. It MUST NOT
    /// change what it proposes, and MUST leave off when it is asked.
    fn run_ahead(&mut self, _request: Request<'_>, _draft: &Draft) {}

    /// Nothing will be asked for a while: what was begun with [`Drafter::run_ahead`] is left.
    fn rest(&mut self) {}

    /// Lines the user must see since this was last asked, such as a member that was put away.
    fn notices(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// Forgets every text seen so far, as if just made: for measurements that repeat a text.
    fn forget(&mut self) {}

    /// What it must be shown of the target's hidden states; most drafters need none. A drafter made of
    /// others MUST pass on what they need.
    fn features(&self) -> FeatureNeed {
        FeatureNeed::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A draft of as many tokens as confidences, drawn from laws or not.
    fn draft(confidence: &[f32], is_drawn: bool) -> Draft {
        let mut draft = Draft::default();
        for &confidence in confidence {
            draft.push(Guess { token: 1, confidence, law: is_drawn.then(|| Law::point(1)) });
        }
        draft
    }

    #[test]
    fn a_draft_that_was_not_drawn_is_cut_with_a_view_of_the_whole() {
        let mut whole = draft(&[0.9, 0.1, 0.8], false);
        whole.cut(|draft| {
            assert_eq!(draft.confidence, [0.9, 0.1, 0.8]);
            2
        });
        assert_eq!(whole.tokens.len(), 2);
        assert_eq!(whole.law(1).probability(1), 1.0);
    }

    #[test]
    fn a_drawn_draft_is_cut_without_looking_at_what_is_dropped() {
        // Wants all or nothing, by the last confidence it sees.
        let mut seen = Vec::new();
        let mut keep = |draft: &Draft| {
            seen.push(draft.tokens.len());
            if draft.confidence.last().is_none_or(|c| *c > 0.5) { draft.tokens.len() } else { 0 }
        };
        let mut cut = draft(&[0.9, 0.8, 0.1, 0.9], true);
        cut.cut(&mut keep);
        assert_eq!((cut.tokens.len(), cut.confidence.len(), cut.laws.len()), (2, 2, 2));
        let mut kept = draft(&[0.9, 0.9], true);
        kept.cut(&mut keep);
        assert_eq!(kept.tokens.len(), 2);
        assert_eq!(seen, [1, 2, 3, 2, 1, 2], "the last call is about what is left");
    }
}
