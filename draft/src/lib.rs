//! Guess and verify: the half of speculative decoding that needs no model file.
//!
//! Owns [`TokenId`], the traits [`LanguageModel`] and [`Drafter`], the drafters, the one function
//! that turns logits into a token ([`Sampler::choose`]), the acceptance rule ([`verify`]) and
//! acceptance statistics. It must not know files, tensors or GGUF.
//!
//! The rule that makes everything exact (DESIGN I3): draft and target pick a token with the *same*
//! function and the same noise, keyed by (seed, position, token). A drafted token is accepted when
//! it equals the target's own choice; the first difference is replaced by the target's choice. The
//! text is therefore a function of the target and the seed alone, whatever was drafted
//! (drafter-invariant speculative decoding, Daliri, Musco and Suresh, arXiv 2408.07978).

mod error;
mod features;
mod heads;
mod medusa;
mod model;
mod ngram;
mod registry;
mod sampler;
mod stats;
mod verify;

pub use error::{DraftError, ModelError};
pub use features::{FeatureNeed, Features};
pub use heads::{HeadDrafter, HeadModel};
pub use medusa::{MedusaDrafter, ParallelHeads};
pub use model::ModelDrafter;
pub use ngram::{NgramConfig, NgramDrafter};
pub use registry::{DRAFTERS, DrafterEntry, DrafterKind, DrafterParts, HeadPart};
pub use sampler::{Choice, Sampler, SamplerConfig};
pub use stats::AcceptanceStats;
pub use verify::{Verdict, verify};

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

/// What a drafter is asked: to continue `context` by at most `max_tokens`.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Prompt and committed output so far; the draft continues after the last one.
    pub context: &'a [TokenId],
    /// Upper bound on the draft's length.
    pub max_tokens: usize,
    /// The sequence's sampler: the drafter chooses with the same law and the same noise.
    pub sampler: &'a Sampler,
    /// What the target's passes showed of the context, where [`Drafter::features`] asks for it.
    pub features: Option<Features<'a>>,
}

/// A guess at the next tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draft {
    /// The guessed tokens, the first one at position `context.len()`.
    pub tokens: Vec<TokenId>,
    /// The drafter's own probability of each guess, 0 to 1; same length as `tokens`.
    pub confidence: Vec<f32>,
}

impl Draft {
    /// A draft whose guesses bear these probabilities; both of one length.
    pub fn new(tokens: Vec<TokenId>, confidence: Vec<f32>) -> Draft {
        debug_assert_eq!(tokens.len(), confidence.len());
        Draft { tokens, confidence }
    }

    /// Shortens the draft to at most `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.confidence.truncate(len);
    }
}

/// Proposes tokens. A drafter may abstain (an empty [`Draft`]); it MUST NOT return more than
/// `max_tokens`, nor a token id outside the vocabulary.
pub trait Drafter: Send {
    /// The name used on the command line and in reports.
    fn name(&self) -> &'static str;

    /// Guesses the continuation of `request.context`. Contexts of one sequence grow and are rolled
    /// back between calls; the drafter finds the common prefix with what it has seen. Asked for no tokens, a
    /// drafter that needs features takes in those it is given.
    fn propose(&mut self, request: Request<'_>) -> Result<Draft, DraftError>;

    /// What it must be shown of the target's hidden states; most drafters need none. A drafter made of
    /// others MUST pass on what they need.
    fn features(&self) -> FeatureNeed {
        FeatureNeed::None
    }
}
