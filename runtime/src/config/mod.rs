//! Settings: `configs/default.toml`, then the user's file, then flags, checked once.
//!
//! [`Config`] is what the TOML holds, key for key; a test keeps it and `default.toml` equal. Layers
//! are applied key by key ([`Settings`]), so an error names the file and key (or the flag) it came
//! from. Nothing below this module reads a file of settings or re-checks a range.

mod draft_choice;
mod error;
mod layer;
mod limits;
mod resolve;
mod value;

use drafthorse_draft::VerifyRule;
use drafthorse_offload::PolicyKind;
use drafthorse_scheduler::{ElasticMode, PrefetchMode};
use serde::Deserialize;

pub use draft_choice::DraftChoice;
pub use error::ConfigError;
pub use layer::{Layer, Settings};
pub use value::{Auto, DeviceName, ModelChoice, OptionalPath, ReaderName, SimulateDisk, Vram};

use crate::kv::KvType;
use crate::units::ByteSize;

/// Every key with its default and a comment.
pub const DEFAULT_TOML: &str = include_str!("../../../configs/default.toml");

/// What the demo pair runs with.
pub const DEMO_TOML: &str = include_str!("../../../configs/demo.toml");

/// All settings, one field per section.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[model]`
    pub model: ModelSection,
    /// `[memory]`
    pub memory: MemorySection,
    /// `[gpu]`
    pub gpu: GpuSection,
    /// `[draft]`
    pub draft: DraftSection,
    /// `[scheduler]`
    pub scheduler: SchedulerSection,
    /// `[offload]`
    pub offload: OffloadSection,
    /// `[sampling]`
    pub sampling: SamplingSection,
    /// `[run]`
    pub run: RunSection,
    /// `[bench]`
    pub bench: BenchSection,
    /// `[tune]`
    pub tune: TuneSection,
}

/// `[model]`: the target and how it computes. The keys are explained in `default.toml`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct ModelSection {
    pub path: ModelChoice,
    pub context: Auto<usize>,
    pub kv_type: KvType,
    pub prefill_chunk: Auto<usize>,
    pub threads: Auto<usize>,
    pub expert_groups: Auto<usize>,
    pub expert_groups_used: Auto<usize>,
}

/// `[memory]`: the hard budget.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct MemorySection {
    pub budget: Auto<ByteSize>,
    pub share: f64,
}

/// `[gpu]`: where the target is computed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct GpuSection {
    pub vram: Vram,
    pub device: DeviceName,
    pub hybrid: bool,
    pub profile: bool,
    pub unified: Auto<bool>,
}

/// `[draft]`: who guesses.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct DraftSection {
    pub source: DraftChoice,
    pub threads: Auto<usize>,
    pub ngram_min_match: usize,
    pub ngram_max_match: usize,
    pub suffix_min_match: usize,
    pub suffix_tokens_max: usize,
}

/// `[scheduler]`: how much is guessed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct SchedulerSection {
    pub draft_len: Auto<usize>,
    pub draft_len_max: usize,
    pub elastic: ElasticMode,
}

/// `[offload]`: the expert cache.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct OffloadSection {
    pub policy: PolicyKind,
    pub half_life_rows: f64,
    pub slots: Auto<usize>,
    pub reader: ReaderName,
    pub io_threads: usize,
    pub queue_depth: usize,
    pub prefetch: PrefetchMode,
    pub simulate_disk: SimulateDisk,
    pub stats_file: OptionalPath,
    pub record_trace: OptionalPath,
}

/// `[sampling]`: the law tokens are drawn from.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct SamplingSection {
    pub repeat_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub repeat_last_n: usize,
    pub temperature: f32,
    pub top_k: usize,
    pub top_p: f32,
    pub min_p: f32,
    pub seed: u64,
    pub verify: VerifyRule,
}

/// `[run]`: what `run` writes, and how it reports.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct RunSection {
    pub prompt: String,
    pub max_tokens: usize,
    pub ignore_eos: bool,
    pub json: bool,
    pub stats: bool,
    pub verbose: bool,
    /// Say after the text why the draft length is what it is.
    pub explain: bool,
}

/// `[bench]`: what `bench` measures.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct BenchSection {
    pub prompt_tokens: usize,
    pub generate_tokens: usize,
    pub repeat: usize,
}

/// `[tune]`: how long `tune` measures.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct TuneSection {
    pub minutes: f64,
}

#[cfg(test)]
mod tests;
