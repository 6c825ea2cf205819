//! What the integration tests share: opening models and the way to data that may be absent.

#![allow(clippy::unwrap_used, dead_code, reason = "helpers of tests; each test binary uses its own part")]

#[cfg(feature = "gpu-emulator")]
pub mod card;
pub mod pairwise;
pub mod synthetic;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use drafthorse_draft::{NgramConfig, SamplerConfig, SuffixConfig, TokenId};
use drafthorse_offload::reader::PreadReader;
use drafthorse_offload::{PolicyConfig, PolicyKind, Reader, ReaderOptions};
use drafthorse_runtime::Error;
use drafthorse_runtime::api::{
    DraftSource, EngineOptions, GenerateOptions, Generation, KvType, Progress, Silent,
};
use drafthorse_runtime::engine::Engine;
use drafthorse_runtime::gguf::Gguf;
use drafthorse_runtime::kv::KvShape;
use drafthorse_runtime::models::{
    Blueprint, DeviceChoice, ExpertsChoice, LoadError, Model, ModelOptions, Overrides, Readers,
};
use drafthorse_scheduler::{DraftLen, ElasticMode, PrefetchMode};

/// How a test runs a model.
#[derive(Clone, Copy)]
pub struct Setup {
    pub slots: usize,
    pub policy: PolicyKind,
    pub threads: usize,
    pub rows_max: usize,
    pub context_len: usize,
}

/// Everything resident, one thread, long passes.
pub const PLAIN: Setup =
    Setup { slots: usize::MAX, policy: PolicyKind::Lru, threads: 1, rows_max: 64, context_len: 128 };

impl Setup {
    /// The same with a cache of `context_len` positions.
    pub fn context(self, context_len: usize) -> Setup {
        Setup { context_len, ..self }
    }
}

pub fn load(path: &Path, setup: Setup) -> Model {
    let gguf = Gguf::open(path).unwrap();
    let reader = PreadReader::open(&gguf.files, 2).unwrap();
    load_with(&gguf, setup, Box::new(reader))
}

pub fn load_with(gguf: &Gguf, setup: Setup, reader: Box<dyn Reader>) -> Model {
    try_load_with(gguf, setup, reader).unwrap()
}

pub fn try_load_with(gguf: &Gguf, setup: Setup, reader: Box<dyn Reader>) -> Result<Model, LoadError> {
    load_shaped(gguf, setup, reader, (&|blueprint| blueprint.kv_shape(KvType::F16).unwrap(), &|_, _| None))
}

/// A model with a cache of any shape.
pub fn load_with_kv(path: &Path, setup: Setup, shape: impl Fn(&Blueprint) -> KvShape) -> Model {
    let gguf = Gguf::open(path).unwrap();
    let reader = PreadReader::open(&gguf.files, 2).unwrap();
    load_shaped(&gguf, setup, Box::new(reader), (&shape, &|_, _| None)).unwrap()
}

/// The GPU that a model is to be computed on, if any.
pub type ChooseDevice<'a> = dyn Fn(&Blueprint, &ModelOptions) -> Option<DeviceChoice> + 'a;

/// A model with a cache of any shape, on the processor or on a GPU.
pub fn load_shaped(
    gguf: &Gguf,
    setup: Setup,
    reader: Box<dyn Reader>,
    (shape, device): (&dyn Fn(&Blueprint) -> KvShape, &ChooseDevice<'_>),
) -> Result<Model, LoadError> {
    let blueprint = Blueprint::new(gguf, &Overrides::default()).unwrap();
    let options = ModelOptions {
        context_len: setup.context_len,
        kv: shape(&blueprint),
        rows_max: setup.rows_max,
        threads: setup.threads,
        thread_name: "test",
    };
    let experts = blueprint.experts.as_ref().map(|layers| {
        let slots = setup.slots.min(layers.index.experts_total());
        let used = blueprint.spec.moe.unwrap().used as u32;
        let policy = setup.policy.build(&PolicyConfig::new(&layers.index, slots, used));
        ExpertsChoice { slots, policy, hottest: Vec::new() }
    });
    let readers = Readers { experts: reader, embedding: None };
    let device = device(&blueprint, &options);
    Model::load(blueprint, options, readers, (experts, device), &mut |_| {})
}

/// The golden model of that name.
pub fn golden(name: &str) -> PathBuf {
    local("tests/golden").join(name).with_extension("gguf")
}

/// What an engine is opened with unless a test says otherwise: everything resident, one thread, nobody
/// guesses.
pub fn plain_options(model: &Path) -> EngineOptions {
    EngineOptions {
        model: model.to_path_buf(),
        draft: DraftSource::None,
        memory_bytes: Some(4 << 30),
        memory_share: 0.75,
        gpu: None,
        context_len: 128,
        kv_type: KvType::F16,
        prefill_chunk: Some(64),
        threads: 1,
        draft_threads: 1,
        draft_len: DraftLen::Fixed(0),
        draft_len_max: 8,
        elastic: ElasticMode::Off,
        ngram: NgramConfig { min_match: 1, max_match: 4 },
        suffix: SuffixConfig { min_match: 2, tokens_max: 4096 },
        policy: PolicyKind::Lru,
        policy_half_life_rows: 48.0,
        slots: None,
        reader: "auto",
        io: ReaderOptions { threads: 2, ..ReaderOptions::default() },
        simulate_disk: None,
        prefetch: PrefetchMode::Off,
        stats_file: None,
        expert_groups: None,
        record_trace: None,
    }
}

pub fn open(options: &EngineOptions) -> Engine {
    Engine::open(options, &mut Silent).unwrap()
}

/// What is generated: `max_tokens` at that temperature, with a fixed seed, past any end token.
pub fn ask(max_tokens: usize, temperature: f32) -> GenerateOptions {
    let sampler = SamplerConfig::plain(temperature, 20_261_121);
    GenerateOptions { max_tokens, sampler, stop_at_end: false }
}

pub fn try_generate(
    engine: &mut Engine,
    prompt: &[TokenId],
    options: &GenerateOptions,
) -> Result<Generation, Error> {
    engine.generate(prompt, options, &mut Silent, &mut |_| ControlFlow::Continue(()))
}

pub fn generate(engine: &mut Engine, prompt: &[TokenId], options: &GenerateOptions) -> Generation {
    try_generate(engine, prompt, options).unwrap()
}

/// `len` ids below 128, a sequence of its own for every `seed`.
pub fn tokens(seed: u32, len: usize) -> Vec<TokenId> {
    (1..=len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(40_503)) >> 9) % 128)
        .collect()
}

/// Floats as they lie in memory: equal bits, not merely equal numbers.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A file of this crate.
pub fn local(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// A file of the data beside the checkout; prints why the test is skipped when it is absent.
pub fn shared(relative: &str) -> Option<PathBuf> {
    let path = local("../../shared/data").join(relative);
    if !path.exists() {
        eprintln!("skipped: {} is not here", path.display());
        return None;
    }
    Some(path)
}

/// Rows of logits as the engine hands them out.
pub fn logits_of(engine: &mut Engine, tokens: &[TokenId], all: bool) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    engine
        .logits(tokens, all, &mut |row| {
            rows.push(row.to_vec());
            Ok(())
        })
        .unwrap();
    rows
}

/// Keeps what the user is told.
#[derive(Default)]
pub struct Notices(pub Vec<String>);

impl Progress for Notices {
    fn begin(&mut self, _what: &str, _total: u64) {}
    fn advance(&mut self, _by: u64) {}
    fn end(&mut self) {}
    fn notice(&mut self, line: &str) {
        self.0.push(line.to_owned());
    }
}
