//! A safetensors checkpoint and a JSON of metadata into one GGUF file.
//!
//! The checkpoint already bears GGUF names and layouts (`scripts/train_demo/export.py` writes both
//! files), so this knows no architecture: it picks a block type per tensor, quantizes and writes.
//! Norms, routers and everything of one dimension stay F32, as in llama.cpp's own quantizer.
//!
//! ```json
//! {"metadata": [{"key": "llama.block_count", "type": "uint32", "value": 4},
//!               {"key": "tokenizer.ggml.tokens", "type": "array", "of": "string", "value": ["a"]}],
//!  "keep_f32": ["output_norm.weight"]}
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use drafthorse_runtime::gguf::{self, BlockType, GgufError, Strings, Value, Writer};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;
use serde_json::Value as Json;
use thiserror::Error;

/// Version of the block layouts, as ggml counts them (`GGML_QNT_VERSION`).
const QUANTIZATION_VERSION: u32 = 2;

/// What to convert, and how.
pub struct ConvertOptions {
    /// The checkpoint.
    pub weights: PathBuf,
    /// Its metadata.
    pub meta: PathBuf,
    /// The file to write.
    pub output: PathBuf,
    /// Block type of the weight matrices.
    pub quant: BlockType,
    /// Block type of the routed experts.
    pub quant_experts: BlockType,
}

/// What was written.
pub struct Converted {
    /// Length of the file.
    pub file_bytes: u64,
    /// Tensors and their bytes by block type.
    pub types: BTreeMap<BlockType, TypeUsage>,
}

/// How much of a file is of one block type.
#[derive(Default)]
pub struct TypeUsage {
    /// Number of tensors.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Why there is no GGUF file.
#[derive(Debug, Error)]
pub enum ConvertError {
    /// An input cannot be read.
    #[error("{}: cannot read the file: {source}", .file.display())]
    Read {
        /// The input.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The checkpoint is damaged, or holds what cannot be converted.
    #[error("{}: {problem}", .file.display())]
    Weights {
        /// The checkpoint.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The metadata file is not what is expected.
    #[error("{}: {problem}", .file.display())]
    Meta {
        /// The metadata file.
        file: PathBuf,
        /// What is wrong, with the key.
        problem: String,
    },
    /// The GGUF file cannot be written.
    #[error(transparent)]
    Gguf(#[from] GgufError),
}

impl ConvertError {
    /// The process's exit code: 1 for a failure of the machine, 3 for invalid files.
    pub fn exit_code(&self) -> u8 {
        match self {
            ConvertError::Read { .. } | ConvertError::Gguf(GgufError::Io { .. }) => 1,
            ConvertError::Weights { .. } | ConvertError::Meta { .. } | ConvertError::Gguf(_) => 3,
        }
    }
}

/// The metadata file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Meta {
    metadata: Vec<Entry>,
    #[serde(default)]
    keep_f32: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    key: String,
    #[serde(rename = "type")]
    kind: String,
    of: Option<String>,
    value: Json,
}

/// Reads, quantizes and writes; `notice` gets a line for every matrix whose rows the wanted type does
/// not fit. Holds the checkpoint and one tensor at a time in memory.
///
/// # Errors
/// [`ConvertError`]; nothing is left under the output's name.
pub fn convert(options: &ConvertOptions, notice: &mut dyn FnMut(&str)) -> Result<Converted, ConvertError> {
    let meta = read_meta(&options.meta)?;
    let checkpoint = read(&options.weights)?;
    let bad_weights = |problem| ConvertError::Weights { file: options.weights.clone(), problem };
    let tensors = SafeTensors::deserialize(&checkpoint).map_err(|error| bad_weights(error.to_string()))?;
    if let Some(name) = meta.keep_f32.iter().find(|name| tensors.tensor(name).is_err()) {
        return Err(bad_weights(format!("has no tensor {name:?}, which keep_f32 names")));
    }

    let mut writer = Writer::new();
    add_metadata(&mut writer, &meta, options)?;
    let mut types: BTreeMap<BlockType, TypeUsage> = BTreeMap::new();
    for (name, view) in in_file_order(&tensors) {
        let tensor = Tensor::of(&name, view).map_err(bad_weights)?;
        let keep = meta.keep_f32.contains(&name);
        let wanted = if keep { BlockType::F32 } else { wanted_type(&tensor, options) };
        let chosen = fitting_type(wanted, tensor.dims[0]);
        if chosen != wanted {
            notice(&format!("{name}: {chosen}, as rows of {} are no whole {wanted} blocks", tensor.dims[0]));
        }
        let usage = types.entry(chosen).or_default();
        usage.tensors += 1;
        usage.bytes += chosen.bytes_for(tensor.dims.iter().product()).unwrap_or(0);
        tensor.add_to(&mut writer, chosen);
    }
    let file_bytes = writer.write(&options.output)?;
    Ok(Converted { file_bytes, types })
}

fn read(file: &Path) -> Result<Vec<u8>, ConvertError> {
    fs::read(file).map_err(|source| ConvertError::Read { file: file.to_owned(), source })
}

fn read_meta(file: &Path) -> Result<Meta, ConvertError> {
    serde_json::from_slice(&read(file)?)
        .map_err(|error| ConvertError::Meta { file: file.to_owned(), problem: error.to_string() })
}

/// The file's own keys, then what depends on the quantization (unless the file has it).
fn add_metadata(writer: &mut Writer<'_>, meta: &Meta, options: &ConvertOptions) -> Result<(), ConvertError> {
    for entry in &meta.metadata {
        let value = entry.value().map_err(|problem| ConvertError::Meta {
            file: options.meta.clone(),
            problem: format!("key {:?}: {problem}", entry.key),
        })?;
        writer.metadata(&entry.key, value);
    }
    let file_type = file_type(options.quant);
    for (key, number) in
        [("general.quantization_version", QUANTIZATION_VERSION), ("general.file_type", file_type)]
    {
        if !meta.metadata.iter().any(|entry| entry.key == key) {
            writer.metadata(key, number);
        }
    }
    Ok(())
}

/// llama.cpp's number for "mostly this type" (`llama_ftype`), which tools show.
pub(crate) fn file_type(quant: BlockType) -> u32 {
    match quant {
        BlockType::F16 => 1,
        BlockType::Q4_0 => 2,
        BlockType::Q4_1 => 3,
        BlockType::Q8_0 => 7,
        BlockType::Q5_0 => 8,
        BlockType::Q5_1 => 9,
        BlockType::Q2_K => 10,
        BlockType::Q3_K => 12,
        BlockType::Q4_K => 15,
        BlockType::Q5_K => 17,
        BlockType::Q6_K => 18,
        BlockType::BF16 => 32,
        _ => 0,
    }
}

impl Entry {
    fn value(&self) -> Result<Value, String> {
        let of = || self.of.as_deref().ok_or("an array needs \"of\"".to_owned());
        match self.kind.as_str() {
            "array" => array(of()?, self.value.as_array().ok_or("not a JSON array")?),
            _ if self.of.is_some() => Err("\"of\" is for arrays".to_owned()),
            kind => scalar(kind, &self.value),
        }
    }
}

fn scalar(kind: &str, json: &Json) -> Result<Value, String> {
    Ok(match kind {
        "uint8" => Value::U8(integer(kind, json)?),
        "int8" => Value::I8(integer(kind, json)?),
        "uint16" => Value::U16(integer(kind, json)?),
        "int16" => Value::I16(integer(kind, json)?),
        "uint32" => Value::U32(integer(kind, json)?),
        "int32" => Value::I32(integer(kind, json)?),
        "uint64" => Value::U64(integer(kind, json)?),
        "int64" => Value::I64(integer(kind, json)?),
        "float32" => Value::F32(float32(json)?),
        "float64" => Value::F64(json.as_f64().ok_or_else(|| not_a(kind, json))?),
        "bool" => Value::Bool(json.as_bool().ok_or_else(|| not_a(kind, json))?),
        "string" => Value::String(json.as_str().ok_or_else(|| not_a(kind, json))?.to_owned()),
        _ => return Err(format!("unknown type {kind:?}")),
    })
}

fn array(of: &str, items: &[Json]) -> Result<Value, String> {
    fn each<T>(items: &[Json], convert: impl Fn(&Json) -> Result<T, String>) -> Result<Vec<T>, String> {
        items.iter().map(convert).collect()
    }
    Ok(match of {
        "uint8" => each(items, |item| integer::<u8>(of, item))?.into(),
        "int8" => each(items, |item| integer::<i8>(of, item))?.into(),
        "uint16" => each(items, |item| integer::<u16>(of, item))?.into(),
        "int16" => each(items, |item| integer::<i16>(of, item))?.into(),
        "uint32" => each(items, |item| integer::<u32>(of, item))?.into(),
        "int32" => each(items, |item| integer::<i32>(of, item))?.into(),
        "uint64" => each(items, |item| integer::<u64>(of, item))?.into(),
        "int64" => each(items, |item| integer::<i64>(of, item))?.into(),
        "float32" => each(items, float32)?.into(),
        "float64" => each(items, |item| item.as_f64().ok_or_else(|| not_a(of, item)))?.into(),
        "bool" => each(items, |item| item.as_bool().ok_or_else(|| not_a(of, item)))?.into(),
        "string" => {
            let strings =
                each(items, |item| item.as_str().ok_or_else(|| not_a(of, item)).map(str::to_owned))?;
            Strings::try_from_iter(strings).ok_or("more than 4 GiB of strings")?.into()
        }
        _ => return Err(format!("unknown array type {of:?}")),
    })
}

fn integer<T: TryFrom<i128>>(kind: &str, json: &Json) -> Result<T, String> {
    let wide = json.as_i64().map(i128::from).or_else(|| json.as_u64().map(i128::from));
    wide.and_then(|wide| T::try_from(wide).ok()).ok_or_else(|| not_a(kind, json))
}

fn float32(json: &Json) -> Result<f32, String> {
    let number = json.as_f64().map(|number| number as f32).filter(|number| number.is_finite());
    number.ok_or_else(|| not_a("float32", json))
}

fn not_a(kind: &str, json: &Json) -> String {
    let shown: String = json.to_string().chars().take(60).collect();
    format!("{shown} is not a {kind}")
}

/// A tensor of the checkpoint, in GGUF's terms.
struct Tensor<'a> {
    name: String,
    dims: Vec<u64>, // ne0 first: the reverse of the checkpoint's shape
    stored: BlockType,
    bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    fn of(name: &str, view: TensorView<'a>) -> Result<Tensor<'a>, String> {
        let stored = match view.dtype() {
            Dtype::F32 => BlockType::F32,
            Dtype::F16 => BlockType::F16,
            Dtype::BF16 => BlockType::BF16,
            other => return Err(format!("tensor {name:?} is {other:?}, expected F32, F16 or BF16")),
        };
        let dims: Vec<u64> = view.shape().iter().rev().map(|&dim| dim as u64).collect();
        if dims.is_empty() {
            return Err(format!("tensor {name:?} is a scalar, which GGUF files do not hold"));
        }
        Ok(Tensor { name: name.to_owned(), dims, stored, bytes: view.data() })
    }

    /// Hands the tensor to the writer, to be quantized when its turn comes.
    fn add_to(self, writer: &mut Writer<'a>, block_type: BlockType) {
        let Tensor { name, dims, stored, bytes } = self;
        writer.tensor(name.clone(), &dims, block_type, move |out| {
            let blocks =
                gguf::dequantize(stored, bytes).and_then(|values| gguf::quantize(block_type, &values));
            out.write_all(&blocks.map_err(|error| io::Error::other(format!("tensor {name:?}: {error}")))?)
        });
    }
}

fn in_file_order<'a>(tensors: &SafeTensors<'a>) -> Vec<(String, TensorView<'a>)> {
    let mut views = tensors.tensors();
    views.sort_by_key(|(_, view)| view.data().as_ptr() as usize);
    views
}

fn wanted_type(tensor: &Tensor<'_>, options: &ConvertOptions) -> BlockType {
    let name = &tensor.name;
    if tensor.dims.len() == 1 || name.contains("_norm.") || name.contains("ffn_gate_inp") {
        return BlockType::F32;
    }
    if name.contains("_exps.") { options.quant_experts } else { options.quant }
}

/// The wanted type, or the first of Q8_0 and F16 whose blocks divide a row.
fn fitting_type(wanted: BlockType, row: u64) -> BlockType {
    let fits = |block_type: &BlockType| row.is_multiple_of(block_type.block_len());
    [wanted, BlockType::Q8_0].into_iter().find(fits).unwrap_or(BlockType::F16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_that_does_not_fit_falls_back_to_q8_0_and_then_to_f16() {
        assert_eq!(fitting_type(BlockType::Q4_K, 512), BlockType::Q4_K);
        assert_eq!(fitting_type(BlockType::Q4_K, 192), BlockType::Q8_0);
        assert_eq!(fitting_type(BlockType::Q4_K, 40), BlockType::F16);
        assert_eq!(fitting_type(BlockType::F32, 7), BlockType::F32);
    }

    #[test]
    fn a_number_that_its_type_cannot_hold_is_an_error() {
        assert_eq!(scalar("uint32", &json!(4_294_967_295u64)), Ok(Value::U32(u32::MAX)));
        assert_eq!(scalar("uint64", &json!(u64::MAX)), Ok(Value::U64(u64::MAX)));
        assert_eq!(scalar("uint32", &json!(-1)), Err("-1 is not a uint32".to_owned()));
        assert_eq!(scalar("uint8", &json!(256)), Err("256 is not a uint8".to_owned()));
        assert_eq!(scalar("uint32", &json!(1.5)), Err("1.5 is not a uint32".to_owned()));
        assert_eq!(scalar("float32", &json!(1e60)), Err("1e+60 is not a float32".to_owned()));
        assert_eq!(scalar("bool", &json!(1)), Err("1 is not a bool".to_owned()));
        assert!(array("int32", &[json!(1), json!("x")]).is_err());
    }
}
