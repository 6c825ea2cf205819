//! The errors of this crate.
//!
//! Owns [`DraftError`] and the opaque [`ModelError`] that any [`crate::LanguageModel`] may return;
//! it must not know what a model's own errors look like inside.

/// Whatever a language model fails with. Callers that know the model downcast it.
pub type ModelError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What can go wrong while drafting or sampling.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DraftError {
    /// A setting lies outside its limits.
    #[error("{field} = {value}: must be {limits}")]
    Setting {
        /// The setting's name as users write it.
        field: &'static str,
        /// The value given.
        value: String,
        /// The values allowed, in words.
        limits: &'static str,
    },
    /// The draft model's forward pass failed; the drafter stays usable.
    #[error("the draft model failed: {0}")]
    Model(#[source] ModelError),
    /// The draft model broke the [`crate::LanguageModel`] contract.
    #[error("the draft model returned {got} logits where {want} were asked for")]
    LogitCount {
        /// Values returned.
        got: usize,
        /// Values expected: one row of the vocabulary.
        want: usize,
    },
    /// The context holds a token that the draft model does not have, though it is said to have it.
    #[error("token {token} is outside the draft model's vocabulary of {vocab}")]
    TokenOutOfVocabulary {
        /// The offending token id.
        token: crate::TokenId,
        /// Size of the draft's vocabulary.
        vocab: usize,
    },
    /// A drafter of this kind cannot be built without a draft model.
    #[error("drafter '{drafter}' needs a draft model and none was given")]
    ModelMissing {
        /// The drafter's name in the registry.
        drafter: &'static str,
    },
    /// A drafter of this kind cannot be built without a script.
    #[error("drafter '{drafter}' needs a script and none was given")]
    ScriptMissing {
        /// The drafter's name in the registry.
        drafter: &'static str,
    },
    /// A draft model was given to a drafter that would ignore it.
    #[error("drafter '{drafter}' takes no draft model, but one was given")]
    ModelUnused {
        /// The drafter's name in the registry.
        drafter: &'static str,
    },
    /// The last drafter of a chain failed.
    #[error("its last drafter, {name}: {source}")]
    LastMember {
        /// The drafter's name in the registry.
        name: &'static str,
        /// What it failed with.
        source: Box<DraftError>,
    },
    /// A drafter of this kind cannot be built without a head.
    #[error("drafter '{drafter}' needs a head of its kind and none was given")]
    HeadMissing {
        /// The drafter's name in the registry.
        drafter: &'static str,
    },
    /// A head was given to a drafter that would ignore it.
    #[error("drafter '{drafter}' takes no head, but one was given")]
    HeadUnused {
        /// The drafter's name in the registry.
        drafter: &'static str,
    },
    /// The target's hidden states that a head continues from were not handed over.
    #[error("the {drafter} head lacks the target's hidden state of position {position}")]
    FeaturesMissing {
        /// The drafter's name in the registry.
        drafter: &'static str,
        /// The first position it lacks.
        position: usize,
    },
    /// The operating system refused the draft thread.
    #[error("cannot start the draft thread: {0}")]
    Spawn(#[source] std::io::Error),
    /// The draft thread is gone; every later call fails the same way.
    #[error("the draft thread has stopped: {reason}")]
    Stopped {
        /// Why, for example the panic message.
        reason: String,
    },
}
