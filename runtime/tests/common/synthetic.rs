//! Models made at test time: a mixture of any size, and a copy of a model with coarser weights.
//!
//! Weights are noise: what matters is where they lie and how large they are, not what they say.

use std::fs;
use std::path::Path;

use drafthorse_runtime::gguf::{BlockType, Gguf, QUANTIZABLE, Value, Writer, dequantize, quantize};
use drafthorse_runtime::kernels::Format;

/// A mixture of experts in Mixtral's layout.
#[derive(Clone, Copy)]
pub struct Mixture {
    pub width: u64,
    pub inner: u64,
    pub experts: u64,
    pub blocks: u64,
    /// Writes the tensors of this name end as TQ2_0, a type without a kernel.
    pub unsupported: Option<&'static str>,
}

pub const VOCAB: u64 = 128;
pub const USED: u64 = 2;
const HEADS: u64 = 8;

impl Mixture {
    /// Bytes of one expert's F16 matrices.
    pub fn expert_bytes(&self) -> u64 {
        3 * self.width * self.inner * 2
    }

    pub fn write(&self, path: &Path) {
        let mut writer = Writer::new();
        writer.metadata("general.architecture", "llama").metadata("tokenizer.ggml.model", "none");
        for (key, value) in [
            ("block_count", self.blocks),
            ("context_length", 256),
            ("embedding_length", self.width),
            ("feed_forward_length", self.inner),
            ("attention.head_count", HEADS),
            ("expert_count", self.experts),
            ("expert_used_count", USED),
        ] {
            writer.metadata(format!("llama.{key}"), value as u32);
        }
        writer.metadata("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
        let (width, inner, experts) = (self.width, self.inner, self.experts);
        self.matrix(&mut writer, "token_embd.weight".into(), &[width, VOCAB]);
        for block in 0..self.blocks {
            for (part, dims) in [
                ("attn_q", &[width, width][..]),
                ("attn_k", &[width, width]),
                ("attn_v", &[width, width]),
                ("attn_output", &[width, width]),
                ("ffn_gate_inp", &[width, experts]),
                ("ffn_gate_exps", &[width, inner, experts]),
                ("ffn_up_exps", &[width, inner, experts]),
                ("ffn_down_exps", &[inner, width, experts]),
            ] {
                self.matrix(&mut writer, format!("blk.{block}.{part}.weight"), dims);
            }
            ones(&mut writer, format!("blk.{block}.attn_norm.weight"), width);
            ones(&mut writer, format!("blk.{block}.ffn_norm.weight"), width);
        }
        ones(&mut writer, "output_norm.weight".into(), width);
        self.matrix(&mut writer, "output.weight".into(), &[width, VOCAB]);
        writer.write(path).unwrap();
    }

    fn matrix(&self, writer: &mut Writer<'_>, name: String, dims: &[u64]) {
        let elements: u64 = dims.iter().product();
        if self.unsupported.is_some_and(|part| name.ends_with(part)) {
            let bytes = vec![0; BlockType::TQ2_0.bytes_for(elements).unwrap() as usize];
            writer.tensor(name, dims, BlockType::TQ2_0, move |out| out.write_all(&bytes));
            return;
        }
        let noise = quantize(BlockType::F16, &noise(&name, elements.min(1 << 16))).unwrap();
        writer.tensor(name, dims, BlockType::F16, move |out| {
            // One stretch of noise again and again, shifted a little, so that no two rows are equal.
            let mut left = elements as usize * 2;
            while left > 0 {
                let from = 2 * (left / noise.len() % 97);
                let some = &noise[from..][..left.min(noise.len() - from)];
                out.write_all(some)?;
                left -= some.len();
            }
            Ok(())
        });
    }
}

fn ones(writer: &mut Writer<'_>, name: String, len: u64) {
    let bytes = 1f32.to_le_bytes().repeat(len as usize);
    writer.tensor(name, &[len], BlockType::F32, move |out| out.write_all(&bytes));
}

/// Values of both signs below 0.1, other ones for every name.
fn noise(name: &str, len: u64) -> Vec<f32> {
    let mut state =
        name.bytes().fold(1u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.2
    };
    (0..len).map(|_| next()).collect()
}

/// The model with its matrices (the router's apart) rounded to Q4_0: a draft that is often right and
/// often wrong.
pub fn write_coarse_copy(model: &Path, path: &Path) {
    write_copy_in(BlockType::Q4_0, model, path);
}

/// The model with its matrices (the router's apart) in another format: rounded, or noise where nothing
/// here writes that format.
pub fn write_copy_in(block_type: BlockType, model: &Path, path: &Path) {
    let gguf = Gguf::open(model).unwrap();
    let file = fs::read(model).unwrap();
    let mut writer = Writer::new();
    for (key, value) in gguf.metadata.iter() {
        writer.metadata(key, value.clone());
    }
    for info in &gguf.tensors {
        let bytes = &file[info.offset as usize..][..info.bytes as usize];
        let is_matrix = info.dims.len() > 1 && !info.name.contains("ffn_gate_inp");
        let (block_type, bytes) = match is_matrix {
            false => (info.block_type, bytes.to_vec()),
            true if QUANTIZABLE.contains(&block_type) => {
                (block_type, quantize(block_type, &dequantize(info.block_type, bytes).unwrap()).unwrap())
            }
            true => (block_type, random_blocks(block_type, info.elements(), &info.name)),
        };
        writer.tensor(info.name.clone(), &info.dims, block_type, move |out| out.write_all(&bytes));
    }
    writer.write(path).unwrap();
}

/// The model with more keys, or other values of those it has.
pub fn write_copy_with(model: &Path, path: &Path, keys: &[(&str, Value)]) {
    let gguf = Gguf::open(model).unwrap();
    let file = fs::read(model).unwrap();
    let mut writer = Writer::new();
    for (key, value) in gguf.metadata.iter().filter(|(key, _)| keys.iter().all(|(other, _)| other != key)) {
        writer.metadata(key, value.clone());
    }
    for (key, value) in keys {
        writer.metadata(*key, value.clone());
    }
    for info in &gguf.tensors {
        let bytes = file[info.offset as usize..][..info.bytes as usize].to_vec();
        writer.tensor(info.name.clone(), &info.dims, info.block_type, move |out| out.write_all(&bytes));
    }
    writer.write(path).unwrap();
}

/// Blocks of random bits whose values are of a weight's size.
fn random_blocks(block_type: BlockType, elements: u64, name: &str) -> Vec<u8> {
    let format = Format::of(block_type).unwrap();
    let mut values = vec![0f32; block_type.block_len() as usize];
    let mut state = name.len() as u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let mut block = || loop {
        let block: Vec<u8> = (0..block_type.block_bytes()).map(|_| next()).collect();
        format.dequantize(&block, &mut values);
        let largest = values.iter().map(|value| value.abs()).fold(0.0, f32::max);
        if values.iter().all(|value| value.is_finite()) && (0.02..0.3).contains(&largest) {
            return block;
        }
    };
    (0..elements / block_type.block_len()).flat_map(|_| block()).collect()
}

/// The model with other values for some keys (new ones are added) and, named so, one more vector.
pub fn write_changed_copy(model: &Path, path: &Path, changes: &[(&str, Value)], extra: Option<&str>) {
    let gguf = Gguf::open(model).unwrap();
    let file = fs::read(model).unwrap();
    let mut writer = Writer::new();
    for (key, value) in gguf.metadata.iter() {
        if changes.iter().all(|(changed, _)| *changed != key) {
            writer.metadata(key, value.clone());
        }
    }
    for (key, value) in changes {
        writer.metadata(*key, value.clone());
    }
    for info in &gguf.tensors {
        let bytes = file[info.offset as usize..][..info.bytes as usize].to_vec();
        writer.tensor(info.name.clone(), &info.dims, info.block_type, move |out| out.write_all(&bytes));
    }
    if let Some(name) = extra {
        ones(&mut writer, name.into(), 32);
    }
    writer.write(path).unwrap();
}
