//! A card that tests compute on: the machine's where the build supports it and there is one, else an emulated one.

use std::path::Path;

use drafthorse_draft::{LanguageModel, LogitRows, TokenId};
use drafthorse_offload::reader::PreadReader;
use drafthorse_offload::{PolicyConfig, PolicyKind};
use drafthorse_runtime::api::KvType;
use drafthorse_runtime::gguf::{BlockType, Gguf};
use drafthorse_runtime::gpu::{Driver, EmulatedDriver, EmulatedOptions, LayoutPlan, Schedule};
use drafthorse_runtime::models::{Blueprint, DeviceChoice, Model, ModelOptions};

use super::synthetic::{Mixture, write_copy_in};
use super::{Setup, bits, golden, load_shaped, load_with_kv, tokens};

/// Golden models with routed experts.
pub const MIXTURES: [&str; 7] = [
    "mixtral",
    "qwen3moe",
    "qwen3moe_unnormalised",
    "deepseek2_lite",
    "deepseek2_lite_legacy",
    "deepseek2_v2_yarn",
    "deepseek2_v3_yarn",
];
/// The card runs its queues as late or as mixed as it may.
pub const SCHEDULES: [Schedule; 3] = [Schedule::Lazy, Schedule::Random(1), Schedule::Random(2)];

/// The machine's card where the build supports it, there is one and nothing is to fail; else an emulated one.
pub fn driver(options: EmulatedOptions) -> Box<dyn Driver> {
    #[cfg(feature = "cuda")]
    if let (None, Ok(driver)) = (options.failing, drafthorse_runtime::gpu::cuda::CudaDriver::open(0)) {
        return Box::new(driver);
    }
    Box::new(EmulatedDriver::new(options).unwrap())
}

/// A card and what is kept on it.
#[derive(Clone, Copy, Debug)]
pub struct Card {
    pub schedule: Schedule,
    /// Slots beyond the fewest, of this many parts one.
    pub slots_part: usize,
    pub hybrid: bool,
    /// Its kernels read experts in the host's memory.
    pub is_in_place: bool,
    /// They can reach it at all.
    pub reads_host: bool,
    pub failing: Option<u64>,
}

/// Everything is on it, and late.
pub const CARD: Card = Card {
    schedule: Schedule::Lazy,
    slots_part: 1,
    hybrid: false,
    is_in_place: false,
    reads_host: true,
    failing: None,
};

impl Card {
    pub fn device(&self, blueprint: &Blueprint, options: &ModelOptions) -> DeviceChoice {
        let Card { schedule, failing, hybrid, is_in_place, reads_host, .. } = *self;
        let (memory_bytes, is_unified) = (1 << 30, is_in_place);
        let driver = driver(EmulatedOptions { memory_bytes, is_unified, reads_host, schedule, failing });
        let used = blueprint.spec.moe.map_or(1, |moe| moe.used);
        let total = blueprint.experts.as_ref().map_or(0, |layers| layers.index.experts_total());
        let has_slots = total > 0 && !is_in_place;
        let slots = if has_slots { used + (total - used) / self.slots_part } else { 0 };
        let policy =
            blueprint.experts.as_ref().filter(|_| has_slots).map(|layers| {
                PolicyKind::Gating.build(&PolicyConfig::new(&layers.index, slots, used as u32))
            });
        let layout = LayoutPlan::new(blueprint, options);
        DeviceChoice { driver, layout, slots, is_in_place, policy, hybrid, has_head: false }
    }

    pub fn load(&self, path: &Path, setup: Setup, kv_type: KvType) -> Model {
        let gguf = Gguf::open(path).unwrap();
        let reader = PreadReader::open(&gguf.files, 2).unwrap();
        let shape = |blueprint: &Blueprint| blueprint.kv_shape(kv_type).unwrap();
        let device = |blueprint: &Blueprint, options: &ModelOptions| Some(self.device(blueprint, options));
        load_shaped(&gguf, setup, Box::new(reader), (&shape, &device)).unwrap()
    }
}

/// Calls `check` with a name and a file of each kind of quantized mixture: wide enough for blocks of 256 in every row,
/// and for the kernel that routers have; and one with latent attention.
pub fn with_quantized(mut check: impl FnMut(&str, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    let (plain, path) = (dir.path().join("plain.gguf"), dir.path().join("quantized.gguf"));
    Mixture { width: 512, inner: 256, experts: 6, blocks: 2, unsupported: None }.write(&plain);
    let latent = golden("deepseek2_v3_yarn");
    let cases = [(BlockType::Q4_K, &plain), (BlockType::Q6_K, &plain), (BlockType::Q8_0, &plain)];
    for (block_type, model) in cases.into_iter().chain([(BlockType::Q8_0, &latent)]) {
        write_copy_in(block_type, model, &path);
        check(&format!("{block_type:?} of {}", model.display()), &path);
    }
}

pub fn on_processor(path: &Path, setup: Setup, kv_type: KvType) -> Model {
    load_with_kv(path, setup, |blueprint| blueprint.kv_shape(kv_type).unwrap())
}

/// A prompt in chunks, single tokens, a rejected draft, a wide pass: the logits of all rows.
pub fn story(model: &mut Model) -> Vec<f32> {
    let (ids, mut all, mut logits) = (tokens(3, 60), Vec::new(), Vec::new());
    let mut pass = |model: &mut Model, tokens: &[TokenId], which| {
        model.forward(tokens, which, &mut logits).unwrap();
        all.extend_from_slice(&logits);
    };
    pass(model, &ids[..21], LogitRows::All);
    for token in &ids[21..24] {
        pass(model, &[*token], LogitRows::Last);
    }
    pass(model, &tokens(9, 5), LogitRows::All);
    model.truncate(26);
    for len in [2, 3, 4, 8, 1] {
        pass(model, &ids[model.len()..][..len], LogitRows::All);
    }
    all
}

pub fn same_bits(name: &str, what: &str, card: &[f32], processor: &[f32]) {
    assert_eq!(card.len(), processor.len());
    let wrong = bits(card).iter().zip(bits(processor)).filter(|(a, b)| **a != *b).count();
    assert_eq!(wrong, 0, "{name}, {what}: {wrong} of {} logits differ", card.len());
}
