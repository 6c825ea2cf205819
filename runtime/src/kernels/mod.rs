//! Arithmetic on weight bytes: the only place that knows how a quantized block multiplies.
//!
//! Owns the thread pool, the row-by-row dot products of every supported block format, and the
//! matrix product built on them. It must not know models, files or caches.
//!
//! Row invariance (DESIGN I2, ALGORITHMS.md H.6): an output value is one dot product over one
//! weight row and one activation row, in one fixed order, whatever the number of rows, threads or
//! chunks around it. Block formats come from `candle_core::quantized::k_quants` (block layouts,
//! activation quantizers and integer dots on raw GGUF bytes: no copy, no repacking). Float rows are ours,
//! and for the commonest formats twins of candle's code with the same bits (`quantize`, `rows`).

mod attend;
mod experts;
mod float;
mod format;
mod kv_rows;
mod lanes;
mod matmul;
mod pool;
mod quantize;
#[cfg(target_arch = "x86_64")]
mod rows;
mod vector;

pub use attend::{AttendSpace, KvView, QUERIES_MAX};
pub use experts::{Down, GateUp, down_experts, gate_up_experts};
pub use format::{Format, is_supported, supported_names};
pub use kv_rows::{KV_BLOCK, KvRows, RowLayout};
pub use matmul::{Input, MatrixRef, matmul, matmul_group, matmul_serial};
pub use pool::{Pool, SharedOut};
pub use vector::{add_scaled, rms_norm, silu_mul, softmax};
