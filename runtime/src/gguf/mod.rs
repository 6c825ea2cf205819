//! GGUF, the model file format: reading its table of contents, writing files, block formats.
//!
//! [`Gguf::open`] answers what is in a model and where it lies, having checked every number in the
//! header against the file; it reads no weights (the loaders do, by [`TensorInfo`] extents). [`Writer`]
//! writes what the reader accepts and nothing else. Knows nothing of architectures: which keys and
//! tensors mean what is the models' business.

mod block;
mod cursor;
mod error;
pub mod limits;
mod metadata;
mod open;
mod parse;
mod quantize;
mod value;
mod writer;

pub use block::BlockType;
pub use error::{GgufError, quoted, shown};
pub use metadata::Metadata;
pub use open::Gguf;
pub use parse::{Header, TensorInfo, parse};
pub use quantize::{QUANTIZABLE, dequantize, quantize};
pub use value::{Array, Strings, Value, ValueType};
pub use writer::{FilePlan, TensorEntry, Writer};
