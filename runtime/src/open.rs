//! From options to a loaded target and drafter: what is read, checked and planned before a token.
//!
//! Owns the order of opening (headers, tokenizer, vocabulary check, memory plan, weights) and the
//! numbers that the memory plan adds up (DESIGN I1). Nothing large is allocated before the plan
//! holds.

mod device;
mod drafters;
mod setup;

use drafthorse_draft::{DRAFT_LAW_TOKENS_MAX, Law};
use drafthorse_offload::reader::SimulatedDisk;
use drafthorse_offload::{
    OffloadError, PolicyConfig, PolicyKind, Reader, ReaderOptions, WarmStats, open_reader,
};
use drafthorse_scheduler::{DraftLen, ElasticMode, MemoryPlan, Needs};

use crate::api::{DraftSource, EngineOptions, Progress};
use crate::gguf::{Gguf, Strings};
use crate::gpu::LayoutPlan;
use crate::heads::OpenedHead;
use crate::kv::{KvCache, KvShape, KvType};
use crate::layers::ScratchPlan;
use crate::models::{
    Blueprint, DeviceChoice, ExpertLayers, ExpertsChoice, LoadError, Model, ModelOptions, ModelSpec,
    Overrides, Readers, StreamedTable,
};
use crate::stats_file::{Setup, StatsFile};
use crate::tokenizer::Tokenizer;
use crate::units::format_bytes;
use crate::{Error, host};

pub use device::{Device, GpuInfo};
use device::{OpenedDevice, device, device_notice};
pub use drafters::{DraftFiles, drafter};
use drafters::{draft_files, suffix_bytes};
use setup::setup;

/// Context used when neither the user nor the model asks for less.
const CONTEXT_DEFAULT: usize = 4096;
/// Stack and allocator memory a thread touches.
const THREAD_BYTES: u64 = 256 << 10;
/// Bytes the sampler works with, per token of the vocabulary and side.
pub const SAMPLER_BYTES_PER_TOKEN: u64 = 32;
/// Index, policy and statistics of one expert, beside its slot.
pub const EXPERT_BYTES: u64 = 256;
/// Rows of logits planned at least: `logits --all` works in passes of this many.
const LOGIT_ROWS_MIN: usize = 8;
/// Lengths of a prefill pass to choose from, the longest first.
const PREFILL_CHUNKS: [usize; 5] = [2048, 1024, 512, 256, 128];
/// Length when the budget allows none of those.
const PREFILL_CHUNK_MIN: usize = 64;
/// Scratch of an automatic prefill pass may take the budget divided by this.
const SCRATCH_SHARE: u64 = 24;
/// Metadata keys that make up a vocabulary.
const TOKENS_KEY: &str = "tokenizer.ggml.tokens";
const TOKENIZER_KEY: &str = "tokenizer.ggml.model";

/// A model whose header has been read and checked, but not its weights.
pub struct Opened {
    gguf_files: Vec<std::path::PathBuf>,
    blueprint: Blueprint,
    options: ModelOptions,
}

/// Everything known before weights are read.
pub struct Prepared {
    /// The target.
    pub target: Opened,
    /// What the drafters are made from.
    pub draft: DraftFiles,
    /// The target's tokenizer, where the file has a vocabulary.
    pub tokenizer: Option<Tokenizer>,
    /// What fits.
    pub plan: MemoryPlan,
    /// The GPU, where one is asked for.
    pub device: Option<Device>,
    /// Rows of one prefill pass.
    pub prefill_chunk: usize,
    /// Where counts are kept between runs.
    pub stats: Option<StatsFile>,
    /// What those of the scheduler hold for.
    pub setup: Setup,
    /// Lines the user must see.
    pub notices: Vec<String>,
}

impl Prepared {
    /// Reads what earlier runs have left in the file of counts, if there is one; the user hears why it cannot be
    /// used.
    pub fn learned(&mut self, progress: &mut dyn Progress) -> Option<WarmStats> {
        let layers = self.target.blueprint.experts.as_ref()?;
        self.stats.as_mut()?.load(layers, self.target.used(), progress)
    }
}

/// What a model's experts are kept and read with.
pub struct CacheChoice<'a> {
    /// Experts in memory.
    pub slots: usize,
    /// Which one makes room.
    pub policy: PolicyKind,
    /// For `lfu`.
    pub lfu_half_life_rows: f64,
    /// Registry name of the reader.
    pub reader: &'a str,
    /// What the reader is told.
    pub io: &'a ReaderOptions,
    /// The disk that the files are to seem to lie on.
    pub disk: Option<&'a SimulatedDisk>,
    /// Counts of earlier runs.
    pub warm: Option<WarmStats>,
}

impl<'a> CacheChoice<'a> {
    /// As the options say; no slots and no earlier counts yet.
    pub fn of(options: &'a EngineOptions) -> CacheChoice<'a> {
        CacheChoice {
            slots: 0,
            policy: options.policy,
            lfu_half_life_rows: options.policy_half_life_rows,
            reader: options.reader,
            io: &options.io,
            disk: options.simulate_disk.as_ref(),
            warm: None,
        }
    }
}

/// A reader of `files`, by its registry name, behind the simulated disk if there is one: every reader of the
/// engine is opened here. In front of a simulated disk the page cache stands for the real one, which may be slower than
/// it, or not as even.
///
/// # Errors
/// As [`open_reader`].
pub fn reader_of(
    files: &[std::path::PathBuf],
    (name, io, disk): (&str, &ReaderOptions, Option<&SimulatedDisk>),
) -> Result<Box<dyn Reader>, OffloadError> {
    let reader = open_reader(name, files, &ReaderOptions { cached: disk.is_some(), ..*io })?;
    Ok(match disk {
        Some(disk) => disk.in_front_of(reader, io),
        None => reader,
    })
}

impl Opened {
    /// The model's blueprint.
    pub fn blueprint(&self) -> &Blueprint {
        &self.blueprint
    }

    fn new(gguf: &Gguf, blueprint: Blueprint, options: ModelOptions) -> Opened {
        Opened { gguf_files: gguf.files.clone(), blueprint, options }
    }

    /// Experts that a row uses in a layer.
    fn used(&self) -> u32 {
        self.blueprint.spec.moe.map_or(1, |moe| moe.used as u32)
    }

    fn experts_total(&self) -> usize {
        self.blueprint.experts.as_ref().map_or(0, |layers| layers.index.experts_total())
    }

    fn slot_bytes(&self) -> u64 {
        self.blueprint.experts.as_ref().map_or(0, |layers| layers.index.slot_bytes() as u64)
    }

    fn policy_bytes(&self, options: &EngineOptions) -> u64 {
        let Some(layers) = &self.blueprint.experts else { return 0 };
        options.policy.memory_bytes(&layers.experts(), options.stats_file.is_some())
    }

    fn kv_bytes(&self) -> u64 {
        KvCache::bytes(self.options.kv, self.blueprint.spec.blocks, self.options.context_len)
    }

    /// Logits of `rows` rows and the sampler's copies of one.
    fn logits_bytes(&self, rows: u64) -> u64 {
        self.blueprint.spec.vocab as u64 * (rows * 4 + SAMPLER_BYTES_PER_TOKEN)
    }

    fn scratch_bytes(&self, logit_rows: u64) -> u64 {
        let streamed = self.blueprint.streamed_embedding.as_ref();
        let embedding =
            streamed.map_or(0, |info| StreamedTable::bytes(info.bytes as usize / self.blueprint.spec.vocab));
        self.options.scratch(&self.blueprint).bytes() + self.logits_bytes(logit_rows) + embedding
    }

    /// Everything the model needs when all its experts are resident.
    fn resident_bytes(&self) -> u64 {
        let slots = self.experts_total() as u64 * self.slot_bytes();
        let dense = &self.blueprint.dense;
        let own = slots + self.experts_total() as u64 * EXPERT_BYTES;
        dense.bytes() + dense.load_bytes() + self.kv_bytes() + self.scratch_bytes(1) + own
    }

    /// Reads the weights; `cache` is what the experts are kept and read with, `device` a GPU to compute on.
    pub fn load(
        self,
        cache: CacheChoice<'_>,
        device: Option<Device>,
        progress: &mut dyn Progress,
    ) -> Result<Model, Error> {
        let CacheChoice { slots, policy, lfu_half_life_rows, reader, io, disk, warm } = cache;
        let open = |name| reader_of(&self.gguf_files, (name, io, disk));
        let embedding = self.blueprint.streamed_embedding.is_some().then(|| open(reader)).transpose()?;
        let reader = open(reader)?;
        if let Some(notice) = reader.notice() {
            progress.notice(notice);
        }
        let used = self.used();
        let layers = self.blueprint.experts.as_ref();
        let policy = |layers: &ExpertLayers, slots: usize| {
            let warm = warm.clone();
            let config = PolicyConfig::new(&layers.index, slots, used);
            policy.build(&PolicyConfig { lfu_half_life_rows, warm, ..config })
        };
        let experts = layers.map(|layers| {
            let hottest = warm.as_ref().map(|warm| warm.hottest(slots)).unwrap_or_default();
            ExpertsChoice { slots, policy: policy(layers, slots), hottest }
        });
        let device = device.map(|device| {
            let Device { driver, layout, plan, is_in_place, hybrid, has_head, .. } = device;
            let policy = layers.filter(|_| !is_in_place).map(|layers| policy(layers, plan.slots));
            DeviceChoice { driver, layout, slots: plan.slots, is_in_place, policy, hybrid, has_head }
        });
        progress.begin("loading", self.blueprint.dense.bytes());
        let readers = Readers { experts: reader, embedding };
        let parts = (experts, device);
        let model = Model::load(self.blueprint, self.options, readers, parts, &mut |bytes| {
            progress.advance(bytes);
        })?;
        progress.end();
        Ok(model)
    }
}

/// Reads headers, checks the pair, and plans memory.
///
/// # Errors
/// A file that is missing, unsound or unsupported; vocabularies that differ; a budget too small.
pub fn prepare(options: &EngineOptions) -> Result<Prepared, Error> {
    let gguf = Gguf::open(&options.model)?;
    let groups = options.expert_groups.map(|groups| (groups.groups, groups.groups_used));
    let blueprint = Blueprint::new(&gguf, &Overrides { expert_groups: groups })?;
    let mut notices = blueprint.spec.notices.clone();
    notices.extend(disk_notice(options));
    let context_len = context_len(options, &blueprint);
    notices.extend(context_notice("", context_len, &blueprint));
    let threads = threads_or_default(options.threads);
    let budget = budget_bytes(options)?;
    let kv = kv_shape(options.kv_type, &gguf, &blueprint.spec)?;
    // Opened before memory is planned: its driver's part of the process is in use from here on.
    let layers = blueprint.experts.as_ref();
    let gpu = options.gpu.map(|gpu| OpenedDevice::new(gpu, budget, layers)).transpose()?;
    let mut prefill_chunk = prefill_chunk(options, &blueprint, (context_len, threads, budget));
    let mut shape = ModelShape { context_len, prefill_chunk, verify_rows: verify_rows(options) };
    if let (Some(device), None) = (&gpu, options.prefill_chunk) {
        prefill_chunk = device.prefill_chunk(prefill_chunk, |rows| {
            let shape = ModelShape { prefill_chunk: rows, ..shape };
            LayoutPlan::new(&blueprint, &shape.options(threads, "target", kv))
        });
        shape.prefill_chunk = prefill_chunk;
    }
    let mut target = Opened::new(&gguf, blueprint, shape.options(threads, "target", kv));
    let mut draft = draft_files(options, (&gguf, &target.blueprint), shape, &mut notices)?;
    notices.extend(heads_notice(options, &target.blueprint));
    notices.extend(elastic_notice(options, &target.blueprint));
    let tokenizer = tokenizer(&gguf, &target.blueprint)?;
    notices.extend(tokenizer.iter().flat_map(|tokenizer| tokenizer.notices().iter().cloned()));
    let has_experts = target.blueprint.experts.is_some();
    let stats = options.stats_file.clone();
    let stats = stats.map(|path| StatsFile::new(path, &gguf, (has_experts, options.policy))).transpose()?;
    drop(gguf);
    let plan = fit(options, (budget, gpu.as_ref()), &mut target, &mut draft)?;
    let has_head = draft.head.is_some();
    notices.extend(gpu.as_ref().and_then(OpenedDevice::notice));
    let device = gpu.map(|opened| device(opened, (&target, has_head))).transpose()?;
    notices.extend(device.as_ref().map(|device| device_notice(device, &target)));
    notices.extend(memory_notice(&plan));
    notices.extend(cycle_notice(&target.blueprint, &plan));
    let setup = setup(options, plan.slots, threads, device.as_ref());
    Ok(Prepared { target, draft, tokenizer, plan, device, prefill_chunk, stats, setup, notices })
}

/// What becomes of prediction heads in the target's file.
fn heads_notice(options: &EngineOptions, target: &Blueprint) -> Option<String> {
    match (target.spec.prediction_heads, options.draft.members().contains(&DraftSource::Mtp)) {
        (0, _) | (1, true) => None,
        (heads, true) => Some(format!("of {heads} prediction heads the first drafts every token")),
        (_, false) => Some("the file has a prediction head, which is not used (--draft mtp)".into()),
    }
}

/// Rows are dropped for the experts they want.
fn elastic_notice(options: &EngineOptions, target: &Blueprint) -> Option<String> {
    let is_idle = options.elastic == ElasticMode::Auto && target.experts.is_none();
    is_idle.then(|| "the model has no routed experts: elastic verification changes nothing".into())
}

/// What bounds the passes of target and draft alike.
#[derive(Clone, Copy)]
struct ModelShape {
    context_len: usize,
    prefill_chunk: usize,
    verify_rows: usize,
}

impl ModelShape {
    fn options(self, threads: usize, thread_name: &'static str, kv: KvShape) -> ModelOptions {
        let rows_max = self.prefill_chunk.max(self.verify_rows).min(self.context_len);
        ModelOptions { context_len: self.context_len, kv, rows_max, threads, thread_name }
    }
}

/// A cache type that does not hold a model's rows is refused: the text would not be what was asked for.
pub fn kv_shape(kv_type: KvType, gguf: &Gguf, spec: &ModelSpec) -> Result<KvShape, LoadError> {
    let path = || gguf.metadata.file().into();
    spec.kv_shape(kv_type).map_err(|error| LoadError::Override { path: path(), problem: error.to_string() })
}

/// Rows of one prefill pass: as asked, or the most whose scratch takes no more than a small share of the
/// budget. Every pass brings each expert in at most once for all its rows, so a longer one reads less.
fn prefill_chunk(
    options: &EngineOptions,
    blueprint: &Blueprint,
    (context_len, threads, budget): (usize, usize, u64),
) -> usize {
    let inner = blueprint.inner_max();
    let scratch =
        |rows: usize| ScratchPlan::new(&blueprint.spec, rows.min(context_len), inner, threads).bytes();
    let fits = |rows: &usize| scratch(*rows) <= budget / SCRATCH_SHARE;
    let chosen = options.prefill_chunk.or_else(|| PREFILL_CHUNKS.into_iter().find(fits));
    chosen.unwrap_or(PREFILL_CHUNK_MIN)
}

/// Rows of logits that are ever alive together.
pub fn logit_rows(options: &EngineOptions) -> usize {
    verify_rows(options).max(LOGIT_ROWS_MIN)
}

/// Rows of the widest verification pass.
fn verify_rows(options: &EngineOptions) -> usize {
    let longest = match options.draft_len {
        DraftLen::Auto => options.draft_len_max,
        DraftLen::Fixed(len) => len,
    };
    1 + if options.draft == DraftSource::None { 0 } else { longest }
}

/// The laws that the longest draft's guesses are drawn from in block verification.
fn laws_bytes(options: &EngineOptions, draft: &Opened) -> u64 {
    let guesses = verify_rows(options) - 1;
    (guesses * Law::bytes_max(draft.blueprint.spec.vocab.min(DRAFT_LAW_TOKENS_MAX))) as u64
}

fn context_len(options: &EngineOptions, blueprint: &Blueprint) -> usize {
    match options.context_len {
        0 => blueprint.spec.context_train.min(CONTEXT_DEFAULT),
        asked => asked,
    }
}

fn context_notice(whose: &str, context_len: usize, blueprint: &Blueprint) -> Option<String> {
    let trained = blueprint.spec.context_train;
    (context_len > trained).then(|| {
        format!("{whose}context {context_len} is longer than the {trained} the model was trained for")
    })
}

/// Figures of a simulated disk must never pass for this machine's.
fn disk_notice(options: &EngineOptions) -> Option<String> {
    let spec = options.simulate_disk.as_ref()?.spec();
    Some(format!("simulated disk {spec}: reads, loading included, are held back to that"))
}

/// Below one token's experts a cache serves little: LRU would serve nothing at all (ALGORITHMS.md 0.2).
fn cycle_notice(blueprint: &Blueprint, plan: &MemoryPlan) -> Option<String> {
    let cycle = blueprint.experts.as_ref()?.index.layers() * blueprint.spec.moe?.used;
    (plan.slots < cycle).then(|| {
        let slots = plan.slots;
        format!(
            "{slots} expert slots are fewer than the {cycle} experts of one token: most are read each time"
        )
    })
}

/// A budget beyond what the machine has left cannot be kept by us alone.
fn memory_notice(plan: &MemoryPlan) -> Option<String> {
    let available = host::available_bytes()?.saturating_add(host::peak_rss_bytes());
    (plan.planned_bytes > available).then(|| {
        let (planned, free) = (format_bytes(plan.planned_bytes), format_bytes(available));
        format!("the plan takes {planned}, and only {free} of memory is free: the system may swap or kill")
    })
}

fn threads_or_default(threads: usize) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

/// A file that names no tokenizer, or names none ("none", "no_vocab"), runs on token ids alone.
fn tokenizer(gguf: &Gguf, blueprint: &Blueprint) -> Result<Option<Tokenizer>, Error> {
    let (listed, vocab) = (gguf.metadata.strings(TOKENS_KEY)?.map_or(0, Strings::len), blueprint.spec.vocab);
    if listed > vocab {
        return Err(Error::Load(LoadError::BadKey {
            path: gguf.metadata.file().into(),
            key: TOKENS_KEY.into(),
            problem: format!("{listed} tokens, the embedding has {vocab}"),
        }));
    }
    match gguf.metadata.str(TOKENIZER_KEY)? {
        None | Some("none" | "no_vocab") => Ok(None),
        Some(_) => Ok(Some(Tokenizer::from_metadata(&gguf.metadata, gguf.metadata.file())?)),
    }
}

fn budget_bytes(options: &EngineOptions) -> Result<u64, Error> {
    match options.memory_bytes {
        Some(bytes) => Ok(bytes),
        None => host::default_budget_bytes(options.memory_share).ok_or(Error::UnknownMemory),
    }
}

/// The plan with everything dense in memory; where that leaves experts on disk, the token embedding
/// stays there as well: it is read a row at a time, and its room is worth more to experts.
fn fit(
    options: &EngineOptions,
    bounds: (u64, Option<&OpenedDevice>),
    target: &mut Opened,
    draft: &mut DraftFiles,
) -> Result<MemoryPlan, Error> {
    let roomy = plan(options, bounds, target, draft);
    let total = target.experts_total();
    let wanted = options.slots.unwrap_or(total).min(total);
    let is_tight = !matches!(&roomy, Ok(plan) if plan.slots >= wanted);
    if total > 0 && is_tight && target.blueprint.stream_embedding() {
        draft.head.iter_mut().for_each(OpenedHead::stream_embedding);
        return plan(options, bounds, target, draft);
    }
    roomy
}

fn plan(
    options: &EngineOptions,
    (budget, device): (u64, Option<&OpenedDevice>),
    target: &Opened,
    files: &DraftFiles,
) -> Result<MemoryPlan, Error> {
    let (draft, head) = (files.model.as_ref(), files.head.as_ref());
    let experts_total = target.experts_total();
    let used = target.blueprint.spec.moe.map_or(0, |moe| moe.used);
    let io_pools = 1 + usize::from(draft.is_some()) + 2 * usize::from(head.is_some());
    let threads = target.options.threads
        + draft.map_or(0, |draft| draft.options.threads + 1)
        + head.map_or(0, OpenedHead::threads);
    let threads = (threads + io_pools * options.io.threads) as u64;
    let gpu = device.map(|_| LayoutPlan::new(&target.blueprint, &target.options));
    let needs = Needs {
        // What the process has needed so far (headers, tokenizer) and what loading needs once.
        process_bytes: host::peak_rss_bytes()
            + threads * THREAD_BYTES
            + experts_total as u64 * EXPERT_BYTES
            + target.policy_bytes(options)
            + target.blueprint.dense.load_bytes(),
        dense_bytes: match &gpu {
            Some(_) => target.blueprint.dense.kept_bytes(&target.blueprint.host_matrices(head.is_some())),
            None => target.blueprint.dense.bytes(),
        },
        kv_bytes: if gpu.is_some() { 0 } else { target.kv_bytes() },
        scratch_bytes: target.scratch_bytes(logit_rows(options) as u64)
            + gpu.as_ref().map_or(0, LayoutPlan::host_bytes),
        draft_bytes: draft.map_or(0, |draft| draft.resident_bytes() + laws_bytes(options, draft))
            + head.map_or(0, |head| head.resident_bytes(&target.blueprint, target.options.rows_max))
            + head.map_or(0, |_| laws_bytes(options, target))
            + suffix_bytes(options),
        device_bytes: device.map_or(Ok(0), |device| device.host_bytes(target))?,
        slot_bytes: target.slot_bytes(),
        slots_min: used,
        slots_max: experts_total,
    };
    if gpu.is_some() {
        // On their way to the GPU all dense weights are here once, before there are experts, and on it as well.
        let dense_bytes = target.blueprint.dense.bytes();
        let scratch_bytes = gpu.as_ref().map_or(0, LayoutPlan::host_bytes);
        let loading = Needs { dense_bytes, scratch_bytes, slots_min: 0, slots_max: 0, ..needs };
        MemoryPlan::fit(&loading, budget, None)?;
    }
    Ok(MemoryPlan::fit(&needs, budget, options.slots)?)
}
