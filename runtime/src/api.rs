//! The seam between the engine and whoever drives it (CLI, server, eval).
//!
//! Plain data only: what an engine is asked for ([`EngineOptions`], [`GenerateOptions`]) and what it
//! reports ([`Generation`]). Field names of the reports are the JSON names of DESIGN.md and stable.
//! It must not know how any of it is honoured: no files, tensors, threads or printing here.

use std::path::PathBuf;

use drafthorse_draft::{NgramConfig, PositionAcceptance, SamplerConfig, ScriptConfig, SuffixConfig, TokenId};
use drafthorse_offload::reader::SimulatedDisk;
use drafthorse_offload::{PolicyKind, ReaderOptions};
pub use drafthorse_scheduler::{CostTerms, Explanation, LengthReport};
use drafthorse_scheduler::{DraftLen, ElasticMode, PrefetchMode};
use serde::Serialize;

pub use crate::clock::Spans;
pub use crate::gpu::{GpuStats, WorkTime};
pub use crate::kv::KvType;

/// Who guesses the next tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum DraftSource {
    /// Nobody: plain decoding.
    None,
    /// The n-gram drafter: looks the last tokens up in the text so far.
    Ngram,
    /// The suffix drafter: looks the last tokens up in this text and in earlier ones.
    Suffix,
    /// For measurements: a known answer, right as often as told.
    Script(ScriptChoice),
    /// The prediction head in the target's own file.
    Mtp,
    /// A small model that shares the target's vocabulary, on its own CPU threads; or a head trained for the
    /// target (EAGLE-3, Medusa), as the file says.
    Model(PathBuf),
    /// Several of those above, asked in this order until one does not abstain; at most one is a model.
    Chain(Vec<DraftSource>),
}

impl DraftSource {
    /// The drafters by themselves, in the order in which they are asked; none for plain decoding.
    pub fn members(&self) -> &[DraftSource] {
        match self {
            DraftSource::None => &[],
            DraftSource::Chain(members) => members,
            single => std::slice::from_ref(single),
        }
    }
}

/// What the scripted drafter is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct ScriptChoice {
    /// Token ids of a prompt and of the target's own continuation, as text.
    pub path: PathBuf,
    /// How the drafter behaves.
    pub config: ScriptConfig,
}

/// Group-limited routing stated by the user because the file does not carry it (DeepSeek-V2 files
/// converted before the keys existed).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    /// Groups the experts of a layer are split into.
    pub groups: usize,
    /// Groups a token may choose experts from.
    pub groups_used: usize,
}

/// The GPU a target is computed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuOptions {
    /// Registry name of the device.
    pub device: &'static str,
    /// Hard limit of its memory. None: most of what is free on it.
    pub vram_bytes: Option<u64>,
    /// Whether experts that are not on it may be computed by the processor meanwhile.
    pub hybrid: bool,
    /// Whether its kernels are timed, which makes it slower.
    pub profile: bool,
    /// Whether its kernels read experts where they lie in the host's memory. None: where it shares that memory.
    pub unified: Option<bool>,
}

/// Everything [`crate::engine::Engine::open`] needs. Range-checked by the configuration before.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// The target's GGUF, or the first file of a split one.
    pub model: PathBuf,
    /// Who guesses.
    pub draft: DraftSource,
    /// Hard limit of the whole process. None: `memory_share` of [`crate::host::available_bytes`].
    pub memory_bytes: Option<u64>,
    /// Share of the memory that is free at start, used when `memory_bytes` is None; 0 to 1.
    pub memory_share: f64,
    /// The GPU that computes the target; None: the processor does.
    pub gpu: Option<GpuOptions>,
    /// Positions the KV cache holds; 0: the smaller of 4096 and what the target was trained for.
    pub context_len: usize,
    /// What cached keys and values are rounded to, in target and draft.
    pub kv_type: KvType,
    /// Rows of one prefill pass; None: chosen by the budget.
    pub prefill_chunk: Option<usize>,
    /// Compute threads of the target; 0: one per CPU the process may use.
    pub threads: usize,
    /// Compute threads of the draft model; 0: the engine's choice.
    pub draft_threads: usize,
    /// Drafted tokens a step: measured, or fixed.
    pub draft_len: DraftLen,
    /// The longest draft `DraftLen::Auto` may choose.
    pub draft_len_max: usize,
    /// Whether rows of a drafted pass may be dropped while it runs; never in block verification.
    pub elastic: ElasticMode,
    /// Match lengths of the n-gram drafter.
    pub ngram: NgramConfig,
    /// Bounds of the suffix drafter; its memory is a part of the plan.
    pub suffix: SuffixConfig,
    /// Which resident expert makes room for a missing one.
    pub policy: PolicyKind,
    /// Rows after which a router selection counts half for the policies that count.
    pub policy_half_life_rows: f64,
    /// Expert slots; None: as many as the budget holds. More than it holds is a budget error.
    pub slots: Option<usize>,
    /// Registry name of the reader.
    pub reader: &'static str,
    /// What readers are told.
    pub io: ReaderOptions,
    /// Reads are held back as if the files lay on this disk; None: they take what they take.
    pub simulate_disk: Option<SimulatedDisk>,
    /// Whether experts are read ahead of need.
    pub prefetch: PrefetchMode,
    /// Where the experts' counts, what drafts cost and what reading ahead gains are kept between runs.
    pub stats_file: Option<PathBuf>,
    /// Overrides the file's expert groups; an error for a model without routed experts.
    pub expert_groups: Option<ExpertGroups>,
    /// Where to write the routing trace (`.moetrace`); an error for a model without routed experts.
    pub record_trace: Option<PathBuf>,
}

/// What one call of [`crate::engine::Engine::generate`] is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// The law tokens are drawn from, its seed, and how drafts are verified against it.
    pub sampler: SamplerConfig,
    /// Whether an end token of the vocabulary ends the text (`--ignore-eos` clears it).
    pub stop_at_end: bool,
}

/// Where long work reports to. Library code never prints; the CLI turns this into bars and lines.
pub trait Progress {
    /// A piece of work starts; `total` in the unit that `advance` counts in, 0 when unknown.
    fn begin(&mut self, what: &str, total: u64);

    /// `by` more units are done.
    fn advance(&mut self, by: u64);

    /// The work begun last is over.
    fn end(&mut self);

    /// One line the user must see: a setting that took another form than asked (DESIGN I5).
    fn notice(&mut self, line: &str);
}

/// A [`Progress`] that tells nobody: for tests and for callers with no screen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&mut self, _what: &str, _total: u64) {}
    fn advance(&mut self, _by: u64) {}
    fn end(&mut self) {}
    fn notice(&mut self, _line: &str) {}
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model chose an end token.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The KV cache is full.
    Context,
    /// The caller asked to stop between two steps.
    Interrupted,
}

/// Where the decoding time went, in seconds; what is left of [`Timings::decode_s`] is the caller's
/// (printing) and the loop's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Attribution {
    /// Seconds by phase.
    #[serde(flatten)]
    pub spans: Spans,
    /// Wall time of the same stretch.
    pub wall_s: f64,
}

/// What one call generated and what it cost. All counters cover this call alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Generated ids in order, without the end token that stopped the text.
    pub tokens: Vec<TokenId>,
    /// Tokens of the prompt, those found in the KV cache included.
    pub prompt_tokens: usize,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Where the time went.
    pub timings: Timings,
    /// Where the decoding time went.
    pub attribution: Attribution,
    /// What was guessed, and how well.
    pub speculation: Speculation,
    /// What the expert cache did.
    pub offload: Offload,
    /// What was planned, and what was used.
    pub memory: Memory,
    /// What the GPU did; None without one.
    pub gpu: Option<GpuReport>,
}

/// Seconds and tokens per second. Rates are 0 where nothing was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Timings {
    /// Opening the engine, draft included.
    pub load_s: f64,
    /// From the call to the first generated token.
    pub prefill_s: f64,
    /// From the first generated token to the last.
    pub decode_s: f64,
    /// Prompt tokens that were not in the KV cache, per second of `prefill_s`.
    pub prefill_tps: f64,
    /// Generated tokens after the first, per second of `decode_s`.
    pub decode_tps: f64,
}

/// The drafted side of a generation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Speculation {
    /// Drafted tokens a pass on average, passes without a draft included.
    pub draft_len_mean: f64,
    /// Drafted tokens that were verified; those whose rows were dropped on the way are not among them.
    pub proposed: u64,
    /// Drafted tokens that stood.
    pub accepted: u64,
    /// Passes of the target over committed tokens (prefill apart).
    pub target_passes: u64,
    /// `accepted / target_passes`.
    pub accepted_per_pass: f64,
    /// One line on why drafting is off; None while it is on.
    pub off_reason: Option<String>,
    /// The time that plain passes would have taken for the same tokens, by the cost model, over the time taken,
    /// since the model was loaded; None without a drafter, and before a plain pass was run.
    pub predicted_speedup: Option<f64>,
    /// The time of a pass, drafting included, over that of a plain one, by the cost model and averaged over
    /// the passes run since the model was loaded; None as above.
    pub t_ratio: Option<f64>,
    /// What the controller predicted and measured, since the model was loaded; None without a drafter.
    pub explanation: Option<Explanation>,
    /// Drafted tokens whose rows were dropped while their pass ran (`--elastic`).
    pub rows_dropped: u64,
    /// How each place of the draft fared, the first drafted token first.
    pub acceptance_by_position: Vec<PositionAcceptance>,
}

/// The expert cache's side of a generation; all 0 for a model without routed experts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Offload {
    /// Routed experts of all layers.
    pub experts_total: u64,
    /// Experts the arena holds.
    pub slots: u64,
    /// Bytes of one slot.
    pub slot_bytes: u64,
    /// Expert uses found in a slot.
    pub hits: u64,
    /// Expert uses that had to wait for the disk.
    pub misses: u64,
    /// `hits / (hits + misses)`; 0 when nothing was used.
    pub hit_rate: f64,
    /// Bytes read from the disk, alignment included.
    pub bytes_read: u64,
    /// Sum of the reads' own durations; parallel reads add up.
    pub read_s: f64,
    /// Time the target waited for experts.
    pub stall_s: f64,
    /// Experts read ahead of need.
    pub prefetch_issued: u64,
    /// Experts read ahead that were then used.
    pub prefetch_used: u64,
    /// Bytes read ahead, used or not.
    pub prefetch_bytes: u64,
    /// Bytes of experts that were read at once and that only rejected or dropped drafts wanted.
    pub rejected_only_bytes: u64,
    /// What of this was decoding: the prompt is left out.
    pub decode: DecodeOffload,
    /// One line on why reading ahead is off; None while it is on, or where there is nothing to read.
    pub prefetch_off_reason: Option<String>,
    /// The disk that was simulated, such as `3.5 GiB/s, 80 us`; None for the machine's own.
    pub simulated_disk: Option<String>,
    /// Reads that took longer on the real disk than they would have on the simulated one: with many of
    /// them the figures are not that disk's.
    pub simulated_late_reads: u64,
}

impl Offload {
    /// How the simulated disk is named beside a figure: what it can do, and whether it was kept up with.
    #[must_use]
    pub fn disk_label(&self) -> Option<String> {
        let disk = self.simulated_disk.as_ref()?;
        Some(match self.simulated_late_reads {
            0 => format!("simulated disk {disk}"),
            late => format!("simulated disk {disk} ({late} reads were slower on the real one)"),
        })
    }
}

/// The expert cache while tokens were generated, the prompt left out; fields as in [`Offload`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct DecodeOffload {
    /// Expert uses found in a slot.
    pub hits: u64,
    /// Expert uses that had to wait for the disk.
    pub misses: u64,
    /// `hits / (hits + misses)`; 0 when nothing was used.
    pub hit_rate: f64,
    /// Bytes read from the disk.
    pub bytes_read: u64,
    /// Bytes read ahead, used or not.
    pub prefetch_bytes: u64,
    /// Bytes of experts read ahead that were then used.
    pub prefetch_used_bytes: u64,
}

/// The GPU's side of a generation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GpuReport {
    /// As its maker names it.
    pub name: String,
    /// The limit of its memory.
    pub vram_bytes: u64,
    /// What its plan adds up to.
    pub planned_bytes: u64,
    /// Whether its kernels read experts where they lie in the host's memory: it has no slots of its own then.
    pub unified: bool,
    /// What it counted.
    #[serde(flatten)]
    pub stats: GpuStats,
    /// What its kernels took, where they are profiled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<WorkTime>,
}

/// Memory of the whole process.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// The limit.
    pub budget_bytes: u64,
    /// What the plan adds up to.
    pub planned_bytes: u64,
    /// Highest resident set so far, as the kernel reports it ([`crate::host::peak_rss_bytes`]).
    pub peak_rss_bytes: u64,
}
