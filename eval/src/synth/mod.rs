//! Synthetic models: GGUF files with the exact shapes of published models, random inside.
//!
//! For measuring where the weights' meaning does not matter: a machine without the real file, a disk
//! too small for it (`experts` and `layers` cut it down), a routing skew of one's choice. Activations
//! keep their size through all layers, logits are finite, and the file says that it is synthetic. Owns
//! the order of the work; shapes, tensors, values and tokenizer are the files beside this one.

mod fill;
mod plan;
mod random;
mod routing;
mod shape;
mod vocabulary;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use drafthorse_runtime::gguf::{BlockType, GgufError, Writer};
use drafthorse_runtime::units::format_bytes;
use thiserror::Error;

use fill::Filler;
use plan::{Planned, plan};
use routing::{Routing, simulate};
use shape::Shape;
use vocabulary::Vocabulary;

pub use random::Random;
pub use shape::SHAPES;

/// Version of the block layouts, as ggml counts them (`GGML_QNT_VERSION`).
const QUANTIZATION_VERSION: u32 = 2;
/// Room for the header's vocabulary, and for the file system itself.
const DISK_MARGIN_BYTES: u64 = 64 << 20;
/// The largest exponent: beyond it the same experts are always chosen.
const ZIPF_MAX: f64 = 8.0;
/// The exponent where none is asked for.
pub const ZIPF_DEFAULT: f64 = 0.8;

/// What to make.
pub struct SynthOptions {
    /// Name of one of [`SHAPES`].
    pub shape: String,
    /// Block type of the matrices.
    pub quant: BlockType,
    /// Experts a layer, fewer than the shape has.
    pub experts: Option<u64>,
    /// Layers, fewer than the shape has.
    pub layers: Option<u64>,
    /// Exponent of the experts' popularity, [`ZIPF_DEFAULT`] if None; 0 is even. An error for a dense shape.
    pub zipf: Option<f64>,
    /// The same seed gives the same bytes.
    pub seed: u64,
    /// The file whose tokenizer to copy; None makes one up.
    pub vocab: Option<PathBuf>,
    /// The file to write.
    pub output: PathBuf,
}

/// What was made.
pub struct Synthetic {
    /// Length of the file.
    pub file_bytes: u64,
    /// What of it is routed experts; None for a dense shape.
    pub experts: Option<Experts>,
}

/// The routed experts of a file.
pub struct Experts {
    /// Bytes of all of them.
    pub all_bytes: u64,
    /// Bytes of one in all its parts.
    pub each_bytes: u64,
    /// Bytes of those that one token uses.
    pub token_bytes: u64,
    /// Share of choices on the most popular fifth of the experts, as simulated.
    pub top_fifth: f64,
}

/// Who is told what.
pub struct Hooks<'a> {
    /// One line the user must see.
    pub notice: &'a mut dyn FnMut(&str),
    /// The bytes to come, before the first is written.
    pub begin: &'a dyn Fn(u64),
    /// Bytes written since the last call.
    pub advance: &'a dyn Fn(u64),
}

/// Why there is no file.
#[derive(Debug, Error)]
pub enum SynthError {
    /// An option cannot be used.
    #[error("{0}")]
    Option(String),
    /// The tokenizer's file, or the file to be written.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The disk is too small.
    #[error(
        "{}: needs {} and {} are free: take a coarser --quant, fewer --experts or --layers, or another disk",
        .folder.display(), format_bytes(*.needed), format_bytes(*.free)
    )]
    DiskFull {
        /// Where the file was to go.
        folder: PathBuf,
        /// Bytes of the file and a margin.
        needed: u64,
        /// Bytes free there.
        free: u64,
    },
}

impl SynthError {
    /// The process's exit code: 1 for the machine, 2 for an option, 3 for a bad file.
    pub fn exit_code(&self) -> u8 {
        match self {
            SynthError::DiskFull { .. } | SynthError::Gguf(GgufError::Io { .. }) => 1,
            SynthError::Option(_) => 2,
            SynthError::Gguf(_) => 3,
        }
    }
}

/// Writes the file.
///
/// # Errors
/// [`SynthError`]; nothing is left under the output's name.
pub fn synth(options: &SynthOptions, hooks: &mut Hooks<'_>) -> Result<Synthetic, SynthError> {
    let mut shape = shape(options)?;
    let vocabulary = match &options.vocab {
        Some(path) => Vocabulary::copy(path)?,
        None => Vocabulary::made_up(shape.vocab),
    };
    shape.vocab = vocabulary.tokens;
    if let Some(line) = shape.notice() {
        (hooks.notice)(line);
    }
    let zipf = options.zipf.unwrap_or(ZIPF_DEFAULT);
    let routing = (!shape.is_dense()).then(|| simulate(&shape, zipf, options.seed));
    let tensors = plan(&shape, options.quant, routing.as_ref());
    let bytes: u64 = tensors.iter().map(Planned::bytes).sum();
    check_disk(options, bytes, hooks)?;

    let filler = Filler::new(options.seed, zipf, hooks.advance);
    let mut writer = Writer::new();
    add_metadata(&mut writer, &shape, options);
    vocabulary.add_metadata(&mut writer);
    for tensor in &tensors {
        let filler = &filler;
        writer.tensor(tensor.name.clone(), &tensor.dims, tensor.block_type, |out| filler.write(tensor, out));
    }
    (hooks.begin)(bytes);
    let file_bytes = writer.write(&options.output)?;
    let experts = routing.map(|routing| experts(&shape, &tensors, &routing));
    Ok(Synthetic { file_bytes, experts })
}

fn shape(options: &SynthOptions) -> Result<Shape, SynthError> {
    if let Some(zipf) = options.zipf.filter(|zipf| !(0.0..=ZIPF_MAX).contains(zipf)) {
        return Err(SynthError::Option(format!("--zipf {zipf}: expected 0 to {ZIPF_MAX}")));
    }
    let shape = Shape::find(&options.shape).ok_or_else(|| {
        let names: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
        SynthError::Option(format!("--shape {}: not one of {}", options.shape, names.join(", ")))
    })?;
    if let (true, Some(zipf)) = (shape.is_dense(), options.zipf) {
        return Err(SynthError::Option(format!("--zipf {zipf}: {} routes to no experts", shape.name)));
    }
    shape.cut(options.layers, options.experts).map_err(SynthError::Option)
}

fn add_metadata(writer: &mut Writer<'_>, shape: &Shape, options: &SynthOptions) {
    let SynthOptions { quant, seed, .. } = options;
    let skew = match shape.is_dense() {
        true => String::new(),
        false => format!(", zipf {}", options.zipf.unwrap_or(ZIPF_DEFAULT)),
    };
    let recipe = format!("random weights: {}, {quant}{skew}, seed {seed}", shape.title());
    writer
        .metadata("general.architecture", shape.architecture.name())
        .metadata("general.name", shape.title())
        .metadata("general.quantization_version", QUANTIZATION_VERSION)
        .metadata("general.file_type", crate::convert::file_type(*quant))
        .metadata("drafthorse.synthetic", recipe);
    shape.add_metadata(writer);
}

fn experts(shape: &Shape, tensors: &[Planned], routing: &Routing) -> Experts {
    let all_bytes = tensors.iter().filter(|tensor| tensor.is_expert()).map(Planned::bytes).sum();
    let layers = shape.routed_blocks();
    let each_bytes = all_bytes / (layers * shape.experts);
    let token_bytes = each_bytes * layers * shape.used;
    Experts { all_bytes, each_bytes, token_bytes, top_fifth: routing.top_fifth }
}

impl fmt::Display for Synthetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.file_bytes)?;
        let Some(Experts { all_bytes, each_bytes, token_bytes, top_fifth }) = self.experts else {
            return Ok(());
        };
        write!(
            f,
            ", of which experts {} ({:.1} %); one expert {}, a token's experts {}; the top fifth of a \
             layer's experts takes {:.0} % of its choices",
            format_bytes(all_bytes),
            100.0 * all_bytes as f64 / self.file_bytes as f64,
            format_bytes(each_bytes),
            format_bytes(token_bytes),
            100.0 * top_fifth
        )
    }
}

/// Refuses a file that would not fit, before anything is written.
fn check_disk(options: &SynthOptions, bytes: u64, hooks: &mut Hooks<'_>) -> Result<(), SynthError> {
    let folder = match options.output.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let needed = bytes.saturating_add(DISK_MARGIN_BYTES);
    match free_bytes(folder) {
        Some(free) if free < needed => Err(SynthError::DiskFull { folder: folder.to_owned(), needed, free }),
        Some(_) => Ok(()),
        None => {
            (hooks.notice)("df does not say how much room is left on the disk: not checked beforehand");
            Ok(())
        }
    }
}

/// Bytes free for this user on the file system of a folder, as POSIX `df -Pk` says.
fn free_bytes(folder: &Path) -> Option<u64> {
    let output =
        Command::new("df").arg("-Pk").arg(folder).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().nth(1)?.split_whitespace().nth(3)?.parse::<u64>().ok()?.checked_mul(1024)
}
