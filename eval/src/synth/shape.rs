//! The shapes of published models, as plain numbers, and their GGUF keys.
//!
//! Sources: the models' `config.json` (DeepSeek-V2, arXiv 2405.04434; Qwen3-30B-A3B; Mixtral-8x7B;
//! TinyLlama-1.1B; Qwen3-1.7B). Deviations, for files that every engine computes alike: no YaRN, and no
//! expert groups in V2 (engines disagree on how V2 ranks groups). Qwen3-1.7B gets a classifier of its own
//! where the original shares the embedding: a made-up embedding makes no sane logits. Knows no tensors
//! and no random numbers.

use drafthorse_runtime::gguf::Writer;

/// The architectures a shape can be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// MLA and shared experts.
    Deepseek2,
    /// Grouped-query attention with normed heads.
    Qwen3Moe,
    /// The same, dense.
    Qwen3,
    /// Dense, or Mixtral.
    Llama,
}

impl Architecture {
    /// `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Deepseek2 => "deepseek2",
            Architecture::Qwen3Moe => "qwen3moe",
            Architecture::Qwen3 => "qwen3",
            Architecture::Llama => "llama",
        }
    }

    /// Whether queries and keys are normed head by head.
    pub fn has_normed_heads(self) -> bool {
        matches!(self, Architecture::Qwen3Moe | Architecture::Qwen3)
    }
}

/// Widths of the attention.
#[derive(Clone, Copy, Debug)]
pub enum Attention {
    /// Grouped queries.
    Gqa { heads: u64, kv_heads: u64, head: u64 },
    /// Multi-head latent attention; `q_lora` 0: the query is projected directly.
    Mla { heads: u64, q_lora: u64, kv_lora: u64, nope: u64, rope: u64, value: u64 },
}

/// How the chosen experts' scores become weights.
#[derive(Clone, Copy, Debug)]
pub struct Weighting {
    /// Divided by their sum.
    pub normalised: bool,
    /// Factor on them.
    pub scale: f32,
}

/// One model's shape.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub name: &'static str,
    pub architecture: Architecture,
    pub blocks: u64,
    /// Blocks in front without routed experts.
    pub leading_dense: u64,
    pub width: u64,
    /// Inner width of dense feed-forward layers.
    pub inner: u64,
    /// Routed experts of a layer; 0: a dense model.
    pub experts: u64,
    pub used: u64,
    /// Inner width of a routed expert.
    pub expert_inner: u64,
    /// Shared experts, each of `expert_inner`.
    pub shared: u64,
    pub attention: Attention,
    pub weighting: Weighting,
    pub rope_base: f32,
    pub norm_eps: f32,
    pub context: u64,
    pub vocab: u64,
}

const SUM_TO_ONE: Weighting = Weighting { normalised: true, scale: 1.0 };

const DEEPSEEK_V2: Shape = Shape {
    name: "deepseek-v2",
    architecture: Architecture::Deepseek2,
    blocks: 60,
    leading_dense: 1,
    width: 5120,
    inner: 12288,
    experts: 160,
    used: 6,
    expert_inner: 1536,
    shared: 2,
    attention: Attention::Mla { heads: 128, q_lora: 1536, kv_lora: 512, nope: 128, rope: 64, value: 128 },
    weighting: Weighting { normalised: false, scale: 16.0 },
    rope_base: 10_000.0,
    norm_eps: 1e-6,
    context: 163_840,
    vocab: 102_400,
};

const DEEPSEEK_V2_LITE: Shape = Shape {
    name: "deepseek-v2-lite",
    blocks: 27,
    width: 2048,
    inner: 10944,
    experts: 64,
    expert_inner: 1408,
    attention: Attention::Mla { heads: 16, q_lora: 0, kv_lora: 512, nope: 128, rope: 64, value: 128 },
    weighting: Weighting { normalised: false, scale: 1.0 },
    ..DEEPSEEK_V2
};

const QWEN3_30B_A3B: Shape = Shape {
    name: "qwen3-30b-a3b",
    architecture: Architecture::Qwen3Moe,
    blocks: 48,
    leading_dense: 0,
    width: 2048,
    inner: 6144,
    experts: 128,
    used: 8,
    expert_inner: 768,
    shared: 0,
    attention: Attention::Gqa { heads: 32, kv_heads: 4, head: 128 },
    weighting: SUM_TO_ONE,
    rope_base: 1_000_000.0,
    norm_eps: 1e-6,
    context: 40_960,
    vocab: 151_936,
};

const MIXTRAL_8X7B: Shape = Shape {
    name: "mixtral-8x7b",
    architecture: Architecture::Llama,
    blocks: 32,
    leading_dense: 0,
    width: 4096,
    inner: 14336,
    experts: 8,
    used: 2,
    expert_inner: 14336,
    shared: 0,
    attention: Attention::Gqa { heads: 32, kv_heads: 8, head: 128 },
    weighting: SUM_TO_ONE,
    rope_base: 1_000_000.0,
    norm_eps: 1e-5,
    context: 32_768,
    vocab: 32_000,
};

const TINYLLAMA_1_1B: Shape = Shape {
    name: "tinyllama-1.1b",
    architecture: Architecture::Llama,
    blocks: 22,
    leading_dense: 0,
    width: 2048,
    inner: 5632,
    experts: 0,
    used: 0,
    expert_inner: 0,
    shared: 0,
    attention: Attention::Gqa { heads: 32, kv_heads: 4, head: 64 },
    weighting: SUM_TO_ONE,
    rope_base: 10_000.0,
    norm_eps: 1e-5,
    context: 2048,
    vocab: 32_000,
};

const QWEN3_1_7B: Shape = Shape {
    name: "qwen3-1.7b",
    architecture: Architecture::Qwen3,
    blocks: 28,
    inner: 6144,
    attention: Attention::Gqa { heads: 16, kv_heads: 8, head: 128 },
    rope_base: 1_000_000.0,
    norm_eps: 1e-6,
    context: 40_960,
    vocab: 151_936,
    ..TINYLLAMA_1_1B
};

/// The standard benchmark model: a few GB with the proportions of a large one.
const MID: Shape = Shape {
    name: "mid",
    blocks: 48,
    width: 2048,
    inner: 8192,
    experts: 80,
    expert_inner: 512,
    shared: 1,
    attention: Attention::Mla { heads: 16, q_lora: 768, kv_lora: 512, nope: 128, rope: 64, value: 128 },
    weighting: SUM_TO_ONE,
    context: 4096,
    ..DEEPSEEK_V2
};

/// A few MB; an expert's rows are no whole blocks of 256, as in V2-Lite.
const TINY_DEEPSEEK2: Shape = Shape {
    name: "tiny-deepseek2",
    blocks: 4,
    width: 256,
    inner: 512,
    experts: 20,
    used: 3,
    expert_inner: 352,
    shared: 1,
    attention: Attention::Mla { heads: 4, q_lora: 128, kv_lora: 64, nope: 32, rope: 32, value: 64 },
    weighting: Weighting { normalised: false, scale: 1.0 },
    context: 512,
    vocab: 512,
    ..DEEPSEEK_V2
};

const TINY_QWEN3MOE: Shape = Shape {
    name: "tiny-qwen3moe",
    blocks: 4,
    width: 256,
    inner: 512,
    experts: 20,
    used: 4,
    expert_inner: 128,
    attention: Attention::Gqa { heads: 8, kv_heads: 2, head: 32 },
    context: 512,
    vocab: 512,
    ..QWEN3_30B_A3B
};

const TINY_MIXTRAL: Shape = Shape {
    name: "tiny-mixtral",
    blocks: 4,
    width: 256,
    inner: 512,
    expert_inner: 512,
    attention: Attention::Gqa { heads: 8, kv_heads: 2, head: 32 },
    context: 512,
    vocab: 512,
    ..MIXTRAL_8X7B
};

const TINY_LLAMA: Shape = Shape {
    name: "tiny-llama",
    blocks: 4,
    width: 256,
    inner: 512,
    attention: Attention::Gqa { heads: 8, kv_heads: 2, head: 32 },
    context: 512,
    vocab: 512,
    ..TINYLLAMA_1_1B
};

const TINY_QWEN3: Shape = Shape {
    name: "tiny-qwen3",
    architecture: Architecture::Qwen3,
    rope_base: 1_000_000.0,
    norm_eps: 1e-6,
    ..TINY_LLAMA
};

/// All shapes, by name.
pub const SHAPES: &[Shape] = &[
    DEEPSEEK_V2,
    DEEPSEEK_V2_LITE,
    QWEN3_30B_A3B,
    MIXTRAL_8X7B,
    TINYLLAMA_1_1B,
    QWEN3_1_7B,
    MID,
    TINY_DEEPSEEK2,
    TINY_QWEN3MOE,
    TINY_MIXTRAL,
    TINY_LLAMA,
    TINY_QWEN3,
];

impl Shape {
    /// The shape of that name.
    pub fn find(name: &str) -> Option<Shape> {
        SHAPES.iter().copied().find(|shape| shape.name == name)
    }

    /// Whether no layer has routed experts.
    pub fn is_dense(&self) -> bool {
        self.experts == 0
    }

    /// Blocks with routed experts.
    pub fn routed_blocks(&self) -> u64 {
        if self.is_dense() { 0 } else { self.blocks - self.leading_dense }
    }

    /// Writes the architecture's keys.
    pub fn add_metadata(&self, writer: &mut Writer<'_>) {
        let architecture = self.architecture.name();
        let mut size = |key: &str, value: u64| {
            writer.metadata(format!("{architecture}.{key}"), value as u32);
        };
        size("vocab_size", self.vocab);
        size("context_length", self.context);
        size("embedding_length", self.width);
        size("block_count", self.blocks);
        size("feed_forward_length", self.inner);
        if !self.is_dense() {
            size("expert_count", self.experts);
            size("expert_used_count", self.used);
            if self.architecture != Architecture::Llama {
                size("expert_feed_forward_length", self.expert_inner);
            }
        }
        match self.attention {
            Attention::Gqa { heads, kv_heads, head } => {
                size("attention.head_count", heads);
                size("attention.head_count_kv", kv_heads);
                size("attention.key_length", head);
                size("attention.value_length", head);
                size("rope.dimension_count", head);
            }
            Attention::Mla { heads, q_lora, kv_lora, nope, rope, value } => {
                size("attention.head_count", heads);
                size("attention.head_count_kv", 1);
                if q_lora > 0 {
                    size("attention.q_lora_rank", q_lora);
                }
                size("attention.kv_lora_rank", kv_lora);
                size("attention.key_length", kv_lora + rope);
                size("attention.value_length", kv_lora);
                size("attention.key_length_mla", nope + rope);
                size("attention.value_length_mla", value);
                size("rope.dimension_count", rope);
            }
        }
        if self.architecture == Architecture::Deepseek2 {
            size("leading_dense_block_count", self.leading_dense);
            size("expert_shared_count", self.shared);
            size("expert_gating_func", 1); // softmax
            writer.metadata(format!("{architecture}.expert_weights_norm"), self.weighting.normalised);
            writer.metadata(format!("{architecture}.expert_weights_scale"), self.weighting.scale);
        }
        writer.metadata(format!("{architecture}.rope.freq_base"), self.rope_base);
        writer.metadata(format!("{architecture}.attention.layer_norm_rms_epsilon"), self.norm_eps);
    }

    /// Applies `--layers` and `--experts`, which may only make the shape smaller.
    ///
    /// # Errors
    /// A number outside what the shape allows, in words.
    pub fn cut(mut self, layers: Option<u64>, experts: Option<u64>) -> Result<Shape, String> {
        if let (true, Some(experts)) = (self.is_dense(), experts) {
            return Err(format!("--experts {experts}: {} has no experts", self.name));
        }
        let layers = layers.unwrap_or(self.blocks);
        let experts = experts.unwrap_or(self.experts);
        let (layers_min, experts_min) = (self.leading_dense + 1, self.used);
        if !(layers_min..=self.blocks).contains(&layers) {
            let range = format!("{layers_min} to {}", self.blocks);
            return Err(format!("--layers {layers}: {} takes {range}", self.name));
        }
        if !(experts_min..=self.experts).contains(&experts) {
            let range = format!("{experts_min} to {}", self.experts);
            return Err(format!("--experts {experts}: {} takes {range}", self.name));
        }
        (self.blocks, self.experts) = (layers, experts);
        Ok(self)
    }

    /// What the file is called inside: the shape, and what was cut off it.
    pub fn title(&self) -> String {
        let full = Shape::find(self.name).unwrap_or(*self);
        let mut title = format!("synthetic {}", self.name);
        for (what, is, was) in [("layers", self.blocks, full.blocks), ("experts", self.experts, full.experts)]
        {
            if is != was {
                title.push_str(&format!(", {is} of {was} {what}"));
            }
        }
        title
    }

    /// llama.cpp tells V2-Lite by its layer count and expects a low-rank query everywhere else.
    pub fn notice(&self) -> Option<&'static str> {
        let Attention::Mla { q_lora, .. } = self.attention else { return None };
        let is_lite = matches!(self.blocks, 26 | 27);
        (is_lite != (q_lora == 0)).then_some(
            "llama.cpp takes a deepseek2 file for V2-Lite exactly if it has 26 or 27 layers: it will refuse \
             this one",
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_cut_stays_within_the_shape_and_is_stated() {
        let shape = Shape::find("deepseek-v2").unwrap();
        assert_eq!(shape.title(), "synthetic deepseek-v2");
        let cut = shape.cut(Some(4), Some(32)).unwrap();
        assert_eq!(cut.title(), "synthetic deepseek-v2, 4 of 60 layers, 32 of 160 experts");
        for (layers, experts) in [(Some(1), None), (Some(61), None), (None, Some(5)), (None, Some(161))] {
            assert!(shape.cut(layers, experts).is_err());
        }
        assert!(Shape::find("gpt-5").is_none());
        let dense = Shape::find("tinyllama-1.1b").unwrap();
        assert_eq!(dense.cut(Some(2), None).unwrap().title(), "synthetic tinyllama-1.1b, 2 of 22 layers");
        assert!(dense.cut(None, Some(8)).unwrap_err().contains("no experts"));
    }

    #[test]
    fn a_layer_count_that_llama_cpp_misreads_is_said() {
        let lite = Shape::find("deepseek-v2-lite").unwrap();
        assert!(lite.notice().is_none());
        assert!(lite.cut(Some(8), None).unwrap().notice().is_some());
        let v2 = Shape::find("deepseek-v2").unwrap();
        assert!(v2.notice().is_none());
        assert!(v2.cut(Some(27), None).unwrap().notice().is_some());
        assert!(Shape::find("mixtral-8x7b").unwrap().cut(Some(27), None).unwrap().notice().is_none());
    }
}
