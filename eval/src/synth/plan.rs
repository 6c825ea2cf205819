//! Which tensors a shape has: names, dimensions, block types and what their values are like.
//!
//! The deviations below keep every activation of order 1: a matrix of n columns has 1/sqrt(n), branch
//! outputs add [`BRANCH_STD`] to a residual that starts at about 1, whatever the depth. Block types are
//! those of llama.cpp's quantizer without per-layer mixtures: one type for the matrices, Q6_K for the
//! classifier, and its table of substitutes for rows that are no whole blocks.

use drafthorse_runtime::gguf::BlockType;

use super::routing::Routing;
use super::shape::{Attention, Shape};

/// Deviation that one attention or feed-forward branch adds to the residual.
pub const BRANCH_STD: f64 = 0.15;
/// Square of the constant channel over the width: its share of a token's embedding, whose other
/// channels have variance 1.
pub const CONSTANT_SHARE: f64 = 0.2;
/// Root mean square of silu(a) * b for standard normal a and b.
const SWIGLU_RMS: f64 = 0.6;
/// A context's average of values is shorter than one value.
const ATTENTION_GAIN: f64 = 2.0;
/// Deviation of the logits.
const LOGIT_GAIN: f64 = 2.0;

/// What a tensor's values are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Content {
    /// All 1.
    Ones,
    /// Normal with this deviation.
    Noise { std: f64 },
    /// Rows of deviation 1 with the constant channel in front.
    Embedding,
    /// Rows of router weights; block number for the ranks, and the constant channel's value there.
    Router { block: u64, constant: f64 },
}

/// One tensor to write.
#[derive(Clone, Debug)]
pub struct Planned {
    pub name: String,
    /// Fastest-varying first.
    pub dims: Vec<u64>,
    pub block_type: BlockType,
    pub content: Content,
}

impl Planned {
    /// Bytes of its blocks.
    pub fn bytes(&self) -> u64 {
        self.dims
            .iter()
            .try_fold(1u64, |product, dim| product.checked_mul(*dim))
            .and_then(|elements| self.block_type.bytes_for(elements))
            .expect("invariant: shapes are small and types fit their rows")
    }

    /// Whether it holds routed experts.
    pub fn is_expert(&self) -> bool {
        self.name.contains("_exps.")
    }
}

/// The value of the constant channel in every embedding.
pub fn constant(width: u64) -> f64 {
    (CONSTANT_SHARE * width as f64).sqrt()
}

/// `wanted`, or what llama.cpp's quantizer takes where a row is no whole number of its blocks
/// (`tensor_type_fallback` in `llama-quant.cpp`).
pub fn fitting_type(wanted: BlockType, row: u64) -> BlockType {
    let fits = |block_type: &BlockType| row.is_multiple_of(block_type.block_len());
    let substitute = match wanted {
        BlockType::Q2_K | BlockType::Q3_K => BlockType::Q4_0,
        BlockType::Q4_K => BlockType::Q5_0,
        BlockType::Q5_K => BlockType::Q5_1,
        BlockType::Q6_K => BlockType::Q8_0,
        other => other,
    };
    [wanted, substitute].into_iter().find(fits).unwrap_or(BlockType::F16)
}

/// The classifier's type: finer than the other matrices where those are coarse.
fn output_type(quant: BlockType) -> BlockType {
    match quant {
        BlockType::F32 | BlockType::F16 | BlockType::BF16 | BlockType::Q8_0 => quant,
        _ => BlockType::Q6_K,
    }
}

/// All tensors of a shape, in file order; a dense shape has no `routing`.
pub fn plan(shape: &Shape, quant: BlockType, routing: Option<&Routing>) -> Vec<Planned> {
    let mut planner = Planner { shape, quant, routing, tensors: Vec::new() };
    planner.add("token_embd.weight".into(), &[shape.width, shape.vocab], (quant, Content::Embedding));
    for block in 0..shape.blocks {
        planner.block(block);
    }
    planner.ones("output_norm.weight".into(), shape.width);
    let std = LOGIT_GAIN / (shape.width as f64).sqrt();
    let content = (output_type(quant), Content::Noise { std });
    planner.add("output.weight".into(), &[shape.width, shape.vocab], content);
    planner.tensors
}

struct Planner<'a> {
    shape: &'a Shape,
    quant: BlockType,
    routing: Option<&'a Routing>,
    tensors: Vec<Planned>,
}

impl Planner<'_> {
    fn add(&mut self, name: String, dims: &[u64], (wanted, content): (BlockType, Content)) {
        let block_type = fitting_type(wanted, dims[0]);
        self.tensors.push(Planned { name, dims: dims.to_vec(), block_type, content });
    }

    fn ones(&mut self, name: String, len: u64) {
        self.add(name, &[len], (BlockType::F32, Content::Ones));
    }

    /// A matrix of `dims[0]` columns whose products have `gain` times the deviation of their input.
    fn matrix(&mut self, name: String, dims: &[u64], gain: f64) {
        let std = gain / (dims[0] as f64).sqrt();
        self.add(name, dims, (self.quant, Content::Noise { std }));
    }

    fn block(&mut self, block: u64) {
        let name = |part: &str| format!("blk.{block}.{part}.weight");
        let shape = *self.shape;
        self.ones(name("attn_norm"), shape.width);
        self.attention(&name);
        self.ones(name("ffn_norm"), shape.width);
        let gain = BRANCH_STD / SWIGLU_RMS;
        let Some(routing) = self.routing.filter(|_| block >= shape.leading_dense) else {
            self.feed_forward(&name, ("", shape.inner, None), gain);
            return;
        };
        // The residual has taken two branches of every block before, and this block's attention.
        let branches = (2 * block + 1) as f64 * BRANCH_STD.powi(2);
        let rms = (CONSTANT_SHARE + 1.0 + branches).sqrt();
        let content = Content::Router { block, constant: constant(shape.width) / rms };
        self.add(name("ffn_gate_inp"), &[shape.width, shape.experts], (BlockType::F32, content));
        let routed = ("_exps", shape.expert_inner, Some(shape.experts));
        self.feed_forward(&name, routed, gain / routing.weight_rms);
        if shape.shared > 0 {
            self.feed_forward(&name, ("_shexp", shape.expert_inner * shape.shared, None), gain);
        }
    }

    fn attention(&mut self, name: &dyn Fn(&str) -> String) {
        let width = self.shape.width;
        let out = BRANCH_STD * ATTENTION_GAIN;
        match self.shape.attention {
            Attention::Gqa { heads, kv_heads, head } => {
                self.matrix(name("attn_q"), &[width, heads * head], 1.0);
                self.matrix(name("attn_k"), &[width, kv_heads * head], 1.0);
                self.matrix(name("attn_v"), &[width, kv_heads * head], 1.0);
                if self.shape.architecture.has_normed_heads() {
                    self.ones(name("attn_q_norm"), head);
                    self.ones(name("attn_k_norm"), head);
                }
                self.matrix(name("attn_output"), &[heads * head, width], out);
            }
            Attention::Mla { heads, q_lora, kv_lora, nope, rope, value } => {
                self.mla_query(name, (heads * (nope + rope), q_lora));
                self.matrix(name("attn_kv_a_mqa"), &[width, kv_lora + rope], 1.0);
                self.ones(name("attn_kv_a_norm"), kv_lora);
                // Applied to the query, but made to give keys of deviation 1 from the latent.
                let key_gain = (nope as f64 / kv_lora as f64).sqrt();
                self.matrix(name("attn_k_b"), &[nope, kv_lora, heads], key_gain);
                self.matrix(name("attn_v_b"), &[kv_lora, value, heads], 1.0);
                self.matrix(name("attn_output"), &[heads * value, width], out);
            }
        }
    }

    fn mla_query(&mut self, name: &dyn Fn(&str) -> String, (rows, q_lora): (u64, u64)) {
        let width = self.shape.width;
        if q_lora == 0 {
            self.matrix(name("attn_q"), &[width, rows], 1.0);
            return;
        }
        self.matrix(name("attn_q_a"), &[width, q_lora], 1.0);
        self.ones(name("attn_q_a_norm"), q_lora);
        self.matrix(name("attn_q_b"), &[q_lora, rows], 1.0);
    }

    /// Gate, up and down of a dense layer, of shared experts, or of `experts` routed ones.
    fn feed_forward(
        &mut self,
        name: &dyn Fn(&str) -> String,
        (suffix, inner, experts): (&str, u64, Option<u64>),
        down_gain: f64,
    ) {
        let width = self.shape.width;
        for (part, cols, rows, gain) in
            [("gate", width, inner, 1.0), ("up", width, inner, 1.0), ("down", inner, width, down_gain)]
        {
            let dims: Vec<u64> = [cols, rows].into_iter().chain(experts).collect();
            self.matrix(name(&format!("ffn_{part}{suffix}")), &dims, gain);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use BlockType::{F16, Q2_K, Q3_K, Q4_0, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};

    #[test]
    fn odd_rows_take_llama_cpps_substitutes() {
        let substitutes = [Q2_K, Q3_K, Q4_K, Q5_K, Q6_K].map(|quant| fitting_type(quant, 1408));
        assert_eq!(substitutes, [Q4_0, Q4_0, Q5_0, Q5_1, Q8_0]);
        assert_eq!(fitting_type(Q4_K, 2048), Q4_K);
        assert_eq!(fitting_type(Q8_0, 1408), Q8_0);
        assert_eq!(fitting_type(Q4_K, 40), F16);
    }

    fn totals(name: &str, quant: BlockType) -> (u64, u64) {
        let routing = Routing { top_fifth: 0.2, weight_rms: 0.5 };
        let shape = Shape::find(name).unwrap();
        let tensors = plan(&shape, quant, Some(&routing).filter(|_| !shape.is_dense()));
        let elements = |tensor: &Planned| tensor.dims.iter().product::<u64>();
        let experts = tensors.iter().filter(|tensor| tensor.is_expert()).map(elements).sum();
        (tensors.iter().map(elements).sum(), experts)
    }

    #[test]
    fn parameter_counts_are_the_published_ones() {
        // 236B (235.74), 15.7B, 30.5B, 46.7B and 1.1B, of their model cards; Qwen3-1.7B's card counts its
        // shared embedding once (1.72B), the file has it twice.
        for (name, billions) in [
            ("deepseek-v2", 235.7),
            ("deepseek-v2-lite", 15.7),
            ("qwen3-30b-a3b", 30.5),
            ("mixtral-8x7b", 46.7),
            ("tinyllama-1.1b", 1.1),
            ("qwen3-1.7b", 1.72 + 0.311),
        ] {
            let (all, experts) = totals(name, Q4_K);
            let got = all as f64 / 1e9;
            assert!((got - billions).abs() < 0.01 * billions, "{name}: {got}");
            assert!(experts < all);
        }
        // One expert of V2: 3 x 5120 x 1536.
        assert_eq!(totals("deepseek-v2", Q4_K).1, 59 * 160 * 3 * 5120 * 1536);
    }

    #[test]
    fn rows_are_whole_blocks_in_every_shape_and_type() {
        for shape in super::super::shape::SHAPES {
            for quant in drafthorse_runtime::gguf::QUANTIZABLE {
                let routing = Routing { top_fifth: 0.2, weight_rms: 0.5 };
                for tensor in plan(shape, quant, Some(&routing).filter(|_| !shape.is_dense())) {
                    assert!(tensor.dims[0].is_multiple_of(tensor.block_type.block_len()), "{tensor:?}");
                    assert!(tensor.bytes() > 0);
                }
            }
        }
    }
}
