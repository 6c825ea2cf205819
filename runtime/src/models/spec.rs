//! The blueprint of a model: what its metadata says, as checked plain data.
//!
//! Owns [`ModelSpec`] and its parts and the reading of keys that architectures share. Each
//! architecture file fills one; nothing here knows tensors' bytes.

use crate::gguf::{Array, Gguf, GgufError, Value, quoted};

use crate::kernels::RowLayout;
use crate::kv::{KvShape, KvType, WidthError};

use super::LoadError;

/// Limits on what a file may ask for; beyond them a file is hostile or not a language model.
pub const BLOCKS_MAX: usize = 1024;
/// Widest residual stream, attention or feed-forward row.
pub const WIDTH_MAX: usize = 1 << 20;
/// Most routed experts in a layer.
pub const EXPERTS_MAX: usize = 4096;

/// Key of the RMS norm epsilon.
pub const NORM_EPS: &str = "attention.layer_norm_rms_epsilon";

/// Keys of other architectures' arithmetic, and the values with which they change nothing.
const NEUTRAL: &[(&str, &[f32])] = &[
    ("attention.scale", &[0.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("embedding_scale", &[0.0, 1.0]),
];

/// Blueprint of one model.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Token ids.
    pub vocab: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Transformer blocks that are run (prediction heads behind them are not counted).
    pub blocks: usize,
    /// Context the model was trained for.
    pub context_train: usize,
    /// RMS norm epsilon.
    pub norm_eps: f32,
    /// Attention of every block.
    pub attention: AttentionSpec,
    /// Rotary position embedding.
    pub rope: RopeSpec,
    /// Blocks behind those, for predicting further tokens; they are not run.
    pub prediction_heads: usize,
    /// Blocks in front that have a dense feed-forward layer even in a mixture of experts.
    pub leading_dense: usize,
    /// Routed experts, `None` for a dense model.
    pub moe: Option<MoeSpec>,
    /// What the user should be told about this file, one line each.
    pub notices: Vec<String>,
}

impl ModelSpec {
    /// Shape of a block's cache rows.
    ///
    /// # Errors
    /// The type does not hold rows of this model's widths.
    pub fn kv_shape(&self, kv_type: KvType) -> Result<KvShape, WidthError> {
        Ok(match self.attention {
            AttentionSpec::Gqa { kv_heads, key_dim, value_dim, .. } => KvShape {
                heads: kv_heads,
                key: kv_type.layout("keys", key_dim)?,
                value: Some(kv_type.layout("values", value_dim)?),
            },
            AttentionSpec::Mla { kv_lora, .. } => {
                // The rotated part stays in f16: it is a ninth of the row, and says where a position is.
                let latent = kv_type.layout("latent rows", kv_lora)?;
                let key = RowLayout { halves: latent.halves + self.rope.dim, ..latent };
                KvShape { heads: 1, key, value: None }
            }
        })
    }
}

/// Shape of attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttentionSpec {
    /// Grouped-query attention (Ainslie et al., arXiv 2305.13245).
    Gqa {
        /// Query heads.
        heads: usize,
        /// Key/value heads; divides `heads`.
        kv_heads: usize,
        /// Width of a query and key head.
        key_dim: usize,
        /// Width of a value head.
        value_dim: usize,
        /// Whether each query and key head is RMS-normed before rope (Qwen3).
        qk_norm: bool,
    },
    /// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), absorbed form.
    Mla {
        /// Query heads.
        heads: usize,
        /// Rank of the query's low-rank projection, `None` when projected directly (V2-Lite).
        q_lora: Option<usize>,
        /// Rank of the key/value latent.
        kv_lora: usize,
        /// Width of a head's part without rope.
        nope: usize,
        /// Width of a value head.
        value_dim: usize,
        /// Factor on the scores: 1/sqrt(nope + rope), times YaRN's correction.
        scale: f32,
    },
}

impl AttentionSpec {
    /// Query heads.
    pub fn heads(&self) -> usize {
        match *self {
            AttentionSpec::Gqa { heads, .. } | AttentionSpec::Mla { heads, .. } => heads,
        }
    }

    /// Width of a query head as it is multiplied with a cached key row.
    pub fn key_dim(&self) -> usize {
        match *self {
            AttentionSpec::Gqa { key_dim, .. } => key_dim,
            AttentionSpec::Mla { nope, .. } => nope,
        }
    }
}

/// Which elements of a head form a rotated pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RopeLayout {
    /// (0, 1), (2, 3), ...: llama, deepseek2 as GGUF stores them.
    #[default]
    Interleaved,
    /// (0, d/2), (1, d/2 + 1), ...: the Qwen family.
    Halves,
}

/// Rotary position embedding (Su et al., arXiv 2104.09864).
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Rotated elements of a head; even.
    pub dim: usize,
    /// Frequency base.
    pub base: f32,
    /// Pairing.
    pub layout: RopeLayout,
    /// Stretching of the context.
    pub scaling: RopeScaling,
}

/// How positions beyond the original context are brought back into it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions divided by the factor (Chen et al., arXiv 2306.15595).
    Linear {
        /// Context stretch.
        factor: f32,
    },
    /// YaRN (Peng et al., arXiv 2309.00071).
    Yarn {
        /// Context stretch.
        factor: f32,
        /// Context the unstretched model was trained for.
        original_context: usize,
        /// Rotations above which a frequency is kept.
        beta_fast: f32,
        /// Rotations below which a frequency is interpolated.
        beta_slow: f32,
        /// Factor on cos and sin.
        magnitude: f32,
    },
}

/// How router logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid of each (DeepSeek-V3).
    Sigmoid,
}

/// What a group of experts is worth in group-limited routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScore {
    /// Its best expert (DeepSeek-V2, "group_limited_greedy").
    Best,
    /// The sum of its best two (DeepSeek-V3, "noaux_tc").
    BestTwo,
}

/// Group-limited routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupSpec {
    /// Groups of equal size.
    pub count: usize,
    /// Groups a token may use.
    pub used: usize,
    /// How groups are ranked.
    pub score: GroupScore,
}

impl GroupSpec {
    /// Checks that groups divide the experts and that the groups used hold enough of them.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self, experts: usize, used: usize) -> Result<(), String> {
        if self.count == 0 || !experts.is_multiple_of(self.count) {
            return Err(format!("{} groups do not divide {experts} experts", self.count));
        }
        if self.used == 0 || self.used > self.count || self.used * (experts / self.count) < used {
            return Err(format!("{} of {} groups do not hold {used} experts", self.used, self.count));
        }
        Ok(())
    }
}

/// Routed experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MoeSpec {
    /// Routed experts of a layer.
    pub experts: usize,
    /// Experts a token is sent to.
    pub used: usize,
    /// Logits to scores.
    pub gating: Gating,
    /// Whether the chosen weights are divided by their sum.
    pub normalise: bool,
    /// Factor on the weights, after normalisation.
    pub scale: f32,
    /// Group-limited routing.
    pub groups: Option<GroupSpec>,
    /// Inner width of an expert.
    pub width: usize,
}

/// Reads `<architecture>.*` keys with the file's name in every error.
pub struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    /// Keys of `architecture` in `gguf`.
    pub fn new(gguf: &'a Gguf, architecture: &'a str) -> Keys<'a> {
        Keys { gguf, architecture }
    }

    /// The file being read.
    pub fn gguf(&self) -> &'a Gguf {
        self.gguf
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// An integer that must be present and lie in `1..=max`.
    pub fn size(&self, key: &str, max: usize) -> Result<usize, LoadError> {
        let value = self.optional_size(key, max)?;
        value.ok_or_else(|| self.missing(key))
    }

    /// An error about a key that must be there.
    pub fn missing(&self, key: &str) -> LoadError {
        LoadError::MissingKey { path: self.gguf.metadata.file().into(), key: self.full(key) }
    }

    /// Refuses a key that changes the arithmetic in a way that is not implemented: where present it must
    /// have one of the values that change nothing.
    pub fn require_neutral(&self, key: &str, neutral: &[f32]) -> Result<(), LoadError> {
        let number = match self.gguf.metadata.get(&self.full(key)) {
            None => return Ok(()),
            Some(value) => match value.to_u64() {
                Some(integer) => integer as f32,
                None => self.float(key)?.unwrap_or(0.0),
            },
        };
        if neutral.contains(&number) {
            return Ok(());
        }
        Err(self.invalid(key, format!("{number} is not supported for this architecture")))
    }

    /// An integer that lies in `1..=max` where present.
    pub fn optional_size(&self, key: &str, max: usize) -> Result<Option<usize>, LoadError> {
        let key = self.full(key);
        let Some(value) = self.gguf.metadata.u64(&key)? else { return Ok(None) };
        match usize::try_from(value) {
            Ok(value) if (1..=max).contains(&value) => Ok(Some(value)),
            _ => Err(self.bad(key, format!("{value} is not in 1..={max}"))),
        }
    }

    /// A count that may be 0 and is 0 where absent.
    pub fn count(&self, key: &str, max: usize) -> Result<usize, LoadError> {
        let key = self.full(key);
        match self.gguf.metadata.u64(&key)?.unwrap_or(0) {
            value if value <= max as u64 => Ok(value as usize),
            value => Err(self.bad(key, format!("{value} is more than {max}"))),
        }
    }

    /// A finite float.
    pub fn float(&self, key: &str) -> Result<Option<f32>, LoadError> {
        let key = self.full(key);
        match self.gguf.metadata.f32(&key)? {
            Some(value) if !value.is_finite() => Err(self.bad(key, format!("{value} is not finite"))),
            value => Ok(value),
        }
    }

    /// A boolean.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        Ok(self.gguf.metadata.bool(&self.full(key))?)
    }

    /// An array of integers of any type that are not negative.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<u64>>, LoadError> {
        let unsigned = |numbers: &[i64]| numbers.iter().map(|number| u64::try_from(*number).ok()).collect();
        let widened = |numbers: &[i32]| unsigned(&numbers.iter().map(|n| i64::from(*n)).collect::<Vec<_>>());
        let read = match self.gguf.metadata.get(&self.full(key)) {
            None => return Ok(None),
            Some(Value::Array(Array::I32(numbers))) => widened(numbers),
            Some(Value::Array(Array::I64(numbers))) => unsigned(numbers),
            Some(Value::Array(Array::U32(numbers))) => Some(numbers.iter().map(|n| u64::from(*n)).collect()),
            Some(Value::Array(Array::U64(numbers))) => Some(numbers.clone()),
            Some(_) => None,
        };
        let problem = || self.invalid(key, "not an array of integers from 0 on".into());
        read.map(Some).ok_or_else(problem)
    }

    /// A string.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        self.gguf.metadata.str(&self.full(key))
    }

    /// An error about one of this architecture's keys.
    pub fn invalid(&self, key: &str, problem: String) -> LoadError {
        self.bad(self.full(key), problem)
    }

    fn bad(&self, key: String, problem: String) -> LoadError {
        LoadError::BadKey { path: self.gguf.metadata.file().into(), key, problem }
    }
}

/// The parts every architecture reads the same way.
pub struct Common {
    /// Token ids.
    pub vocab: usize,
    /// Residual width.
    pub width: usize,
    /// Blocks run.
    pub blocks: usize,
    /// Trained context.
    pub context_train: usize,
    /// Norm epsilon.
    pub norm_eps: f32,
    /// Query heads.
    pub heads: usize,
    /// Blocks behind the ones run.
    pub prediction_heads: usize,
    /// What the user should be told.
    pub notices: Vec<String>,
}

impl Common {
    /// Reads the shared keys; the vocabulary's size is the embedding table's.
    pub fn read(keys: &Keys<'_>) -> Result<Common, LoadError> {
        let gguf = keys.gguf();
        let table = gguf.tensor("token_embd.weight").ok_or_else(|| LoadError::MissingTensor {
            path: gguf.metadata.file().into(),
            tensor: "token_embd.weight".into(),
        })?;
        let rows = table.dims.get(1).copied().unwrap_or(0);
        let vocab =
            usize::try_from(rows).ok().filter(|rows| (1..=1 << 24).contains(rows)).ok_or_else(|| {
                LoadError::Shape {
                    path: gguf.metadata.file().into(),
                    tensor: table.name.clone(),
                    got: format!("{:?}", table.dims),
                    want: "[width, vocabulary]".into(),
                }
            })?;
        let blocks = keys.size("block_count", BLOCKS_MAX)?;
        let heads_ahead = keys.count("nextn_predict_layers", blocks - 1)?;
        let norm_eps = keys.float(NORM_EPS)?.ok_or_else(|| keys.missing(NORM_EPS))?;
        if norm_eps < 0.0 {
            return Err(keys.invalid(NORM_EPS, format!("{norm_eps} is negative")));
        }
        for (key, neutral) in NEUTRAL {
            keys.require_neutral(key, neutral)?;
        }
        let mut notices = Vec::new();
        if let Some(window) = keys.optional_size("attention.sliding_window", 1 << 30)? {
            notices.push(format!("attention.sliding_window {window} is not applied: attention is full"));
        }
        Ok(Common {
            prediction_heads: heads_ahead,
            notices,
            vocab,
            width: keys.size("embedding_length", WIDTH_MAX)?,
            blocks: blocks - heads_ahead,
            context_train: keys.size("context_length", 1 << 30)?,
            norm_eps,
            heads: keys.size("attention.head_count", WIDTH_MAX)?,
        })
    }

    /// As [`gqa`], for these heads.
    pub fn gqa(&self, keys: &Keys<'_>, qk_norm: bool) -> Result<AttentionSpec, LoadError> {
        gqa(keys, (self.width, self.heads), qk_norm)
    }

    /// Assembles the blueprint.
    pub fn into_spec(
        self,
        architecture: &'static str,
        attention: AttentionSpec,
        rope: RopeSpec,
        moe: Option<MoeSpec>,
    ) -> ModelSpec {
        ModelSpec {
            architecture,
            vocab: self.vocab,
            width: self.width,
            blocks: self.blocks,
            context_train: self.context_train,
            norm_eps: self.norm_eps,
            attention,
            rope,
            prediction_heads: self.prediction_heads,
            leading_dense: 0,
            moe,
            notices: self.notices,
        }
    }
}

/// Grouped-query attention of `heads` query heads with the usual defaults: head width = width / heads.
pub fn gqa(
    keys: &Keys<'_>,
    (width, heads): (usize, usize),
    qk_norm: bool,
) -> Result<AttentionSpec, LoadError> {
    let kv_heads = keys.optional_size("attention.head_count_kv", WIDTH_MAX)?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        let problem = format!("{kv_heads} does not divide {heads} query heads");
        return Err(keys.invalid("attention.head_count_kv", problem));
    }
    let key_dim = match keys.optional_size("attention.key_length", WIDTH_MAX)? {
        Some(dim) => dim,
        None if width.is_multiple_of(heads) => width / heads,
        None => {
            let problem = format!("{heads} heads do not divide the width {width}");
            return Err(keys.invalid("attention.head_count", problem));
        }
    };
    let value_dim = keys.optional_size("attention.value_length", WIDTH_MAX)?.unwrap_or(key_dim);
    Ok(AttentionSpec::Gqa { heads, kv_heads, key_dim, value_dim, qk_norm })
}

/// Reads the rope keys; the rotated width is at most `head_dim`, and that where the key is absent.
pub fn rope(keys: &Keys<'_>, head_dim: usize, layout: RopeLayout) -> Result<RopeSpec, LoadError> {
    let dim = keys.optional_size("rope.dimension_count", WIDTH_MAX)?.unwrap_or(head_dim);
    if dim > head_dim || dim % 2 != 0 {
        let problem = format!("{dim} is not an even number up to the head's width {head_dim}");
        return Err(keys.invalid("rope.dimension_count", problem));
    }
    let base = keys.float("rope.freq_base")?.unwrap_or(10_000.0);
    if base <= 1.0 {
        return Err(keys.invalid("rope.freq_base", format!("{base} is not above 1")));
    }
    Ok(RopeSpec { dim, base, layout, scaling: rope_scaling(keys)? })
}

fn rope_scaling(keys: &Keys<'_>) -> Result<RopeScaling, LoadError> {
    // A factor without a type means linear; before there were types, the key was `rope.scale_linear`.
    let stated = keys.float("rope.scaling.factor")?.or(keys.float("rope.scale_linear")?);
    let kind = keys.text("rope.scaling.type")?.unwrap_or(if stated.is_some() { "linear" } else { "none" });
    if kind == "none" {
        return Ok(RopeScaling::None);
    }
    let factor = stated.unwrap_or(1.0);
    if factor < 1.0 {
        return Err(keys.invalid("rope.scaling.factor", format!("{factor} is below 1")));
    }
    match kind {
        "linear" => Ok(RopeScaling::Linear { factor }),
        "yarn" => yarn(keys, factor),
        other => {
            let other = quoted(other);
            Err(keys.invalid("rope.scaling.type", format!("{other} is not supported (none, linear, yarn)")))
        }
    }
}

fn yarn(keys: &Keys<'_>, factor: f32) -> Result<RopeScaling, LoadError> {
    let original_context = keys.size("rope.scaling.original_context_length", 1 << 30)?;
    let attention_factor = keys.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
    Ok(RopeScaling::Yarn {
        factor,
        original_context,
        beta_fast: keys.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        magnitude: attention_factor * (1.0 + 0.1 * factor.ln()),
    })
}

/// Expert counts of a mixture of experts; `None` where `expert_count` is 0 or absent.
pub fn expert_counts(keys: &Keys<'_>) -> Result<Option<(usize, usize)>, LoadError> {
    let experts = keys.count("expert_count", EXPERTS_MAX)?;
    if experts == 0 {
        return Ok(None);
    }
    Ok(Some((experts, keys.size("expert_used_count", experts)?)))
}
