//! The product's one error: what any command can end with, and the exit code that goes with it.
//!
//! Wraps the enums of the modules below; each already names file, tensor, key or expert. Exit codes
//! are part of the command line (DESIGN.md): scripts tell a bad file from a budget that is too small.

use std::io;
use std::path::{Path, PathBuf};

use drafthorse_draft::DraftError;
use drafthorse_offload::OffloadError;
use drafthorse_scheduler::{BudgetError, SchedulerError};

use crate::config::ConfigError;
use crate::gguf::GgufError;
use crate::gpu::GpuError;
use crate::models::{LoadError, PassError};
use crate::pack::PackError;
use crate::tokenizer::TokenizerError;

/// Exit code of a failure at run time.
const EXIT_RUNTIME: u8 = 1;
/// Exit code of a command line or configuration that cannot be used.
const EXIT_USAGE: u8 = 2;
/// Exit code of a model file that is missing, invalid or unsupported.
const EXIT_MODEL: u8 = 3;
/// Exit code of a budget that cannot hold the model.
const EXIT_BUDGET: u8 = 4;
/// What shells expect after Ctrl-C: 128 + SIGINT.
const EXIT_INTERRUPTED: u8 = 130;

/// Whatever went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting of a file or flag.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A command that makes no sense as given; says what would.
    #[error("{0}")]
    Usage(String),
    /// The model file is missing or not a sound GGUF.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The model file is sound but cannot be run.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A model cannot be packed, or a packed one is damaged.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The vocabulary is unusable, or a text cannot be expressed in it.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model file has no vocabulary, and the command needs one.
    #[error("{}: no tokenizer in the file; give the prompt as --tokens", path.display())]
    NoTokenizer {
        /// The model.
        path: PathBuf,
    },
    /// Draft and target do not share their vocabulary.
    #[error("draft {} does not share the vocabulary of {}: {difference}", draft.display(), target.display())]
    Vocabulary {
        /// The target's file.
        target: PathBuf,
        /// The draft's file.
        draft: PathBuf,
        /// The first difference, in words: sizes, or a token id and its two texts.
        difference: String,
    },
    /// The budget cannot hold the model.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// No budget was given and the system does not say what is free.
    #[error("memory: the system does not say how much is free; give --memory")]
    UnknownMemory,
    /// The scheduler refused a setting.
    #[error(transparent)]
    Scheduler(SchedulerError),
    /// Experts could not be read or kept.
    #[error(transparent)]
    Offload(#[from] OffloadError),
    /// The GPU's memory cannot hold what has to be on it.
    #[error("--vram: {0}")]
    Vram(BudgetError),
    /// There is no GPU, or it failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// Sampling or drafting failed.
    #[error(transparent)]
    Draft(#[from] DraftError),
    /// A prompt holds a token the model does not have.
    #[error("token id {token} is outside the vocabulary of {vocab} tokens")]
    TokenOutOfVocabulary {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// The prompt leaves no position for an answer.
    #[error("the prompt has {prompt} tokens, the context holds {context}: raise --context or shorten it")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Positions of the KV cache.
        context: usize,
    },
    /// A text that no tokenization brings into the context.
    #[error(
        "the prompt has {bytes} bytes, the context holds {context} tokens of at most {token_bytes}: raise --context or shorten it"
    )]
    TextTooLong {
        /// Bytes of the text.
        bytes: usize,
        /// Positions of the KV cache.
        context: usize,
        /// Bytes of the longest token.
        token_bytes: usize,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty, and the vocabulary has no token to begin with")]
    EmptyPrompt,
    /// The user stopped work that leaves nothing behind when it is not finished.
    #[error("interrupted: {0}")]
    Interrupted(String),
    /// A file other than the model, or a pipe.
    #[error("{what}: {source}")]
    Io {
        /// What was done to which file.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// An [`Error::Io`] for `path`.
    pub fn io(action: &str, path: &Path, source: io::Error) -> Error {
        Error::Io { what: format!("cannot {action} {}", path.display()), source }
    }

    /// The process's exit code: 1 run time, 2 usage, 3 model file, 4 budget.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Config(ConfigError::DemoMissing { .. }) => EXIT_MODEL,
            Error::Config(_)
            | Error::Usage(_)
            | Error::UnknownMemory
            | Error::EmptyPrompt
            | Error::TextTooLong { .. } => EXIT_USAGE,
            Error::Vocabulary { .. } | Error::TokenOutOfVocabulary { .. } | Error::PromptTooLong { .. } => {
                EXIT_USAGE
            }
            Error::Interrupted(_) => EXIT_INTERRUPTED,
            Error::Gguf(_) | Error::NoTokenizer { .. } => EXIT_MODEL,
            Error::Tokenizer(TokenizerError::ByteWithoutToken { .. }) => EXIT_RUNTIME,
            Error::Tokenizer(_) => EXIT_MODEL,
            Error::Load(error) => load_exit_code(error),
            Error::Pack(error) => pack_exit_code(error),
            Error::Budget(BudgetError::Slots { .. }) => EXIT_USAGE,
            Error::Budget(_) | Error::Scheduler(SchedulerError::Budget(_)) => EXIT_BUDGET,
            Error::Scheduler(_) | Error::Draft(DraftError::Setting { .. }) => EXIT_USAGE,
            Error::Vram(_) => EXIT_BUDGET,
            Error::Gpu(GpuError::Unavailable { .. }) => EXIT_USAGE,
            Error::Gpu(GpuError::Memory { .. }) => EXIT_BUDGET,
            Error::Gpu(_) | Error::Offload(_) | Error::Draft(_) | Error::Io { .. } => EXIT_RUNTIME,
        }
    }

    /// Whether the reader of our output has gone, which is no failure of ours.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl From<SchedulerError> for Error {
    fn from(error: SchedulerError) -> Error {
        match error {
            SchedulerError::Budget(budget) => Error::Budget(budget),
            other => Error::Scheduler(other),
        }
    }
}

impl From<PassError> for Error {
    fn from(error: PassError) -> Error {
        match error {
            PassError::Experts(error) => Error::Offload(error),
            PassError::Embedding(error) => Error::Load(error),
            PassError::Gpu(error) => Error::Gpu(error),
            PassError::Token { token, vocab } => Error::TokenOutOfVocabulary { token, vocab },
            PassError::Context { rows, len, context_len } => {
                Error::PromptTooLong { prompt: len + rows, context: context_len }
            }
        }
    }
}

/// A sound file that cannot be run is the file's fault, unless the machine failed or a setting did.
fn load_exit_code(error: &LoadError) -> u8 {
    match error {
        LoadError::Override { .. } => EXIT_USAGE,
        LoadError::Gpu(GpuError::Memory { .. }) => EXIT_BUDGET,
        LoadError::Gpu(_) => EXIT_RUNTIME,
        LoadError::Allocation { .. } | LoadError::Read { .. } | LoadError::Thread(_) => EXIT_RUNTIME,
        LoadError::Offload(
            OffloadError::Arena { .. } | OffloadError::ReaderStopped { .. } | OffloadError::Thread { .. },
        ) => EXIT_RUNTIME,
        _ => EXIT_MODEL,
    }
}

fn pack_exit_code(error: &PackError) -> u8 {
    match error {
        PackError::Gguf(_) | PackError::Damaged { .. } => EXIT_MODEL,
        PackError::Load(error) => load_exit_code(error),
        PackError::NoExperts { .. }
        | PackError::AlreadyPacked { .. }
        | PackError::NotPacked { .. }
        | PackError::SameFile { .. }
        | PackError::Alignment { .. } => EXIT_USAGE,
        _ => EXIT_RUNTIME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_design() {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let gguf = GgufError::Io { file: "m.gguf".into(), action: "open", source: missing() };
        let config = ConfigError::Read { path: "c.toml".into(), source: missing() };
        assert_eq!(Error::io("write", Path::new("t"), missing()).exit_code(), 1);
        assert_eq!(Error::from(config).exit_code(), 2);
        assert_eq!(Error::from(gguf).exit_code(), 3);
        assert_eq!(Error::from(BudgetError::Overflow).exit_code(), 4);
        assert_eq!(Error::from(SchedulerError::Budget(BudgetError::Overflow)).exit_code(), 4);
        let slots = BudgetError::Slots { asked: 1, slots_min: 2, slots_max: 3 };
        assert_eq!(Error::from(slots).exit_code(), 2);
    }

    #[test]
    fn only_a_broken_pipe_is_one() {
        let pipe = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(Error::Io { what: "stdout".into(), source: pipe }.is_broken_pipe());
        assert!(!Error::EmptyPrompt.is_broken_pipe());
    }
}
