//! Arithmetic on weight bytes: the only place that knows how a quantized block multiplies.
//!
//! Owns the thread pool, the kernels of every supported block format, and the matrix products and the
//! attention built on them. It must not know models, files or caches.
//!
//! Row invariance (DESIGN I2, ALGORITHMS.md H.6): an output value is one dot product over one
//! weight row and one activation row, in one fixed order (`cpu::portable`), whatever the number of rows,
//! threads or chunks around it, and whatever the processor. Weights are multiplied as they stand in a
//! GGUF: no copy, no repacking.

mod attend;
mod cpu;
mod experts;
mod format;
mod kv_rows;
mod lanes;
mod matmul;
mod pool;
mod vector;

pub use attend::{AttendSpace, KvView, QUERIES_MAX};
pub use cpu::Isa;
pub use cpu::activations::quantized_bytes;
pub(crate) use cpu::lookup::lookup_tables;
#[cfg(all(test, feature = "gpu-emulator"))]
pub(crate) use cpu::tests::{noise, quantized, random_weights};
pub use experts::{Down, GateUp, down_experts, gate_up_experts};
pub use format::{Format, Side, is_supported, supported_names};
pub use kv_rows::{KV_BLOCK, KvRows, RowLayout};
pub use matmul::{Input, MatrixRef, matmul, matmul_group, matmul_serial};
pub use pool::{Pool, SharedOut};
pub use vector::{add_scaled, rms_norm, silu_mul, softmax};
