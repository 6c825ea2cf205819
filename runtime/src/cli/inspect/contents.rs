//! What the header of a model file says, in tables.
//!
//! Owns the counting of bytes by block type and by expert, from tensor names alone. It must not know
//! how any architecture computes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use drafthorse_offload::CHECKSUM_NAME;
use drafthorse_runtime::Error;
use drafthorse_runtime::gguf::{BlockType, Gguf, Metadata, TensorInfo, Value};
use drafthorse_runtime::kernels;
use drafthorse_runtime::models::packed::PackedExperts;
use drafthorse_runtime::models::{ARCHITECTURES, is_head};
use serde::Serialize;

/// What is in a model file.
#[derive(Debug, Serialize)]
pub struct Contents {
    pub files: Vec<PathBuf>,
    pub name: Option<String>,
    pub architecture: String,
    pub architecture_is_supported: bool,
    /// Scalars of the architecture's own keys, without its prefix.
    pub hyperparameters: BTreeMap<String, serde_json::Value>,
    pub tensors: Tensors,
    /// None for a dense model, and for a file without tensors.
    pub experts: Option<Experts>,
    /// None unless `drafthorse pack` wrote the file.
    pub packed: Option<Packing>,
    /// Weight bytes one decoded token multiplies with.
    pub active_bytes_per_token: u64,
    /// Block types of the file that have no kernel in this build.
    pub unsupported_types: Vec<&'static str>,
}

/// All tensors.
#[derive(Debug, Serialize)]
pub struct Tensors {
    pub count: usize,
    pub bytes: u64,
    pub by_type: Vec<TypeRow>,
}

/// The tensors of one block type.
#[derive(Debug, Serialize)]
pub struct TypeRow {
    #[serde(rename = "type")]
    pub name: &'static str,
    pub count: usize,
    pub bytes: u64,
    pub is_supported: bool,
}

/// How experts are packed. Everything else in the tables is what the plain file's would say.
#[derive(Debug, Serialize)]
pub struct Packing {
    /// Alignment of every part.
    pub alignment: u64,
    /// The checksum every part has.
    pub checksum: &'static str,
    /// Bytes between parts.
    pub padding_bytes: u64,
}

/// The routed experts.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Experts {
    /// Layers that have routed experts.
    pub layers: u64,
    /// Experts of a layer.
    pub experts: u64,
    /// Experts a token uses in a layer.
    pub used: u64,
    /// Bytes of the largest expert.
    pub expert_bytes: u64,
    /// Bytes of all experts of all layers.
    pub bytes: u64,
    /// Bytes one token reads when no expert is in memory.
    pub cycle_bytes: u64,
}

impl Contents {
    /// Reads the tables.
    ///
    /// # Errors
    /// The file names no architecture, or a key has the wrong type.
    pub fn read(gguf: &Gguf) -> Result<Contents, Error> {
        let metadata = &gguf.metadata;
        let architecture = metadata.require_str("general.architecture")?.to_owned();
        let (tensors, packed) = match PackedExperts::read(gguf)? {
            None => (Cow::Borrowed(&gguf.tensors[..]), None),
            Some(packed) => {
                let tensors = plain_tensors(gguf, &packed);
                let padding_bytes = sum(&gguf.tensors).saturating_sub(sum(&tensors));
                let packing = Packing { alignment: packed.alignment, checksum: CHECKSUM_NAME, padding_bytes };
                (Cow::Owned(tensors), Some(packing))
            }
        };
        let experts = experts(&tensors, metadata, &architecture)?;
        let by_type = by_type(&tensors);
        Ok(Contents {
            files: gguf.files.clone(),
            name: metadata.str("general.name")?.map(str::to_owned),
            architecture_is_supported: is_head(&architecture)
                || ARCHITECTURES.iter().any(|(known, _)| *known == architecture),
            hyperparameters: hyperparameters(metadata, &architecture),
            active_bytes_per_token: active_bytes(&tensors, experts.as_ref()),
            unsupported_types: by_type.iter().filter(|row| !row.is_supported).map(|row| row.name).collect(),
            tensors: Tensors { count: tensors.len(), bytes: sum(&tensors[..]), by_type },
            architecture,
            experts,
            packed,
        })
    }
}

/// The tensors of a packed file with every block's records taken apart into what they were packed from.
fn plain_tensors(gguf: &Gguf, packed: &PackedExperts) -> Vec<TensorInfo> {
    let records = packed.tensor_names();
    let dense = gguf.tensors.iter().filter(|tensor| !records.contains(&tensor.name));
    let mut tensors: Vec<TensorInfo> = dense.cloned().collect();
    for block in &packed.blocks {
        let number = block.parts.block;
        let parts = ["gate", "up", "down"].into_iter().zip(block.parts.types).zip(block.parts.bytes);
        let experts = block.experts() as u64;
        tensors.extend(parts.map(|((part, block_type), bytes)| TensorInfo {
            name: format!("blk.{number}.ffn_{part}_exps.weight"),
            dims: vec![bytes, experts],
            block_type,
            file: 0,
            offset: 0,
            bytes: bytes.saturating_mul(experts),
        }));
    }
    tensors
}

fn sum<'a>(tensors: impl IntoIterator<Item = &'a TensorInfo>) -> u64 {
    tensors.into_iter().fold(0, |total, tensor| total.saturating_add(tensor.bytes))
}

fn by_type(tensors: &[TensorInfo]) -> Vec<TypeRow> {
    let mut rows: BTreeMap<BlockType, (usize, u64)> = BTreeMap::new();
    for tensor in tensors {
        let (count, bytes) = rows.entry(tensor.block_type).or_default();
        *count += 1;
        *bytes = bytes.saturating_add(tensor.bytes);
    }
    let row = |(block_type, (count, bytes)): (BlockType, (usize, u64))| TypeRow {
        name: block_type.name(),
        count,
        bytes,
        is_supported: kernels::is_supported(block_type),
    };
    rows.into_iter().map(row).collect()
}

fn hyperparameters(metadata: &Metadata, architecture: &str) -> BTreeMap<String, serde_json::Value> {
    let prefix = format!("{architecture}.");
    let own = metadata.iter().filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?, value)));
    own.map(|(key, value)| (key.to_owned(), json(value))).collect()
}

/// A metadata value as JSON; of an array its length, which may be a vocabulary's.
fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::U8(v) => (*v).into(),
        Value::I8(v) => (*v).into(),
        Value::U16(v) => (*v).into(),
        Value::I16(v) => (*v).into(),
        Value::U32(v) => (*v).into(),
        Value::I32(v) => (*v).into(),
        Value::U64(v) => (*v).into(),
        Value::I64(v) => (*v).into(),
        // Through its shortest decimal form: 1e-6 in f32 is not 9.999999974752427e-7 to a reader.
        Value::F32(v) => v.to_string().parse::<f64>().unwrap_or(f64::NAN).into(),
        Value::F64(v) => (*v).into(),
        Value::Bool(v) => (*v).into(),
        Value::String(v) => v.as_str().into(),
        Value::Array(array) => format!("{} values", array.len()).into(),
    }
}

/// The layer of a tensor with routed experts' weights: `blk.3.ffn_up_exps.weight` holds all of a
/// layer, `blk.3.ffn_up.5.weight` (early Mixtral files) one of them.
fn expert_layer(name: &str) -> Option<u64> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let part = rest.strip_suffix(".weight")?.strip_prefix("ffn_")?;
    let is_one = |(part, expert): (&str, &str)| {
        matches!(part, "gate" | "up" | "down") && expert.bytes().all(|byte| byte.is_ascii_digit())
    };
    let is_experts = part.ends_with("_exps") || part.split_once('.').is_some_and(is_one);
    if is_experts { layer.parse().ok() } else { None }
}

fn experts(
    tensors: &[TensorInfo],
    metadata: &Metadata,
    architecture: &str,
) -> Result<Option<Experts>, Error> {
    let count = metadata.u64(&format!("{architecture}.expert_count"))?.unwrap_or(0);
    let used = metadata.u64(&format!("{architecture}.expert_used_count"))?.unwrap_or(0);
    let mut layer_bytes: BTreeMap<u64, u64> = BTreeMap::new();
    for tensor in tensors {
        if let Some(layer) = expert_layer(&tensor.name) {
            let bytes = layer_bytes.entry(layer).or_default();
            *bytes = bytes.saturating_add(tensor.bytes);
        }
    }
    Ok(table(&layer_bytes, count, used))
}

fn table(layer_bytes: &BTreeMap<u64, u64>, experts: u64, used: u64) -> Option<Experts> {
    if experts == 0 || layer_bytes.is_empty() {
        return None;
    }
    let each = layer_bytes.values().map(|bytes| bytes / experts);
    Some(Experts {
        layers: layer_bytes.len() as u64,
        experts,
        used,
        expert_bytes: each.clone().max().unwrap_or(0),
        bytes: layer_bytes.values().fold(0, |total: u64, bytes| total.saturating_add(*bytes)),
        cycle_bytes: each.fold(0, |total: u64, bytes| total.saturating_add(bytes.saturating_mul(used))),
    })
}

/// Dense weights and one cycle of experts. Of the embedding a token reads one row, unless the same
/// table is the classifier.
fn active_bytes(tensors: &[TensorInfo], experts: Option<&Experts>) -> u64 {
    let has_output = tensors.iter().any(|tensor| tensor.name == "output.weight");
    let is_read = |tensor: &&TensorInfo| {
        expert_layer(&tensor.name).is_none() && !(has_output && tensor.name == "token_embd.weight")
    };
    sum(tensors.iter().filter(is_read)).saturating_add(experts.map_or(0, |experts| experts.cycle_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expert_tensors_are_known_by_name() {
        for (name, layer) in [
            ("blk.3.ffn_gate_exps.weight", Some(3)),
            ("blk.12.ffn_gate_up_exps.weight", Some(12)),
            ("blk.0.ffn_down.7.weight", Some(0)),
            ("blk.3.ffn_gate_shexp.weight", None),
            ("blk.3.ffn_gate_inp.weight", None),
            ("blk.3.ffn_gate.weight", None),
            ("blk.x.ffn_gate_exps.weight", None),
            ("output.weight", None),
        ] {
            assert_eq!(expert_layer(name), layer, "{name}");
        }
    }

    #[test]
    fn the_expert_table_counts_what_one_token_reads() {
        let layers = BTreeMap::from([(1, 800), (2, 1600)]);
        let expected =
            Experts { layers: 2, experts: 8, used: 2, expert_bytes: 200, bytes: 2400, cycle_bytes: 600 };
        assert_eq!(table(&layers, 8, 2), Some(expected));
        assert_eq!(table(&layers, 0, 2), None);
        assert_eq!(table(&BTreeMap::new(), 8, 2), None);
    }

    fn tensor(name: &str, bytes: u64) -> TensorInfo {
        TensorInfo {
            name: name.to_owned(),
            dims: vec![bytes],
            block_type: BlockType::I8,
            file: 0,
            offset: 0,
            bytes,
        }
    }

    #[test]
    fn the_embedding_counts_only_where_it_is_the_classifier() {
        let mut tensors = vec![tensor("token_embd.weight", 100), tensor("blk.0.attn_q.weight", 10)];
        assert_eq!(active_bytes(&tensors, None), 110);
        tensors.push(tensor("output.weight", 50));
        tensors.push(tensor("blk.0.ffn_up_exps.weight", 1000));
        assert_eq!(active_bytes(&tensors, None), 60);
    }
}
