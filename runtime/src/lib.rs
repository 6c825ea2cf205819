//! The Drafthorse product.

pub mod api;
pub mod backend;
mod clock;
pub mod config;
pub mod engine;
mod error;
pub mod gguf;
pub mod gpu;
mod heads;
pub mod host;
mod ids;
pub mod kernels;
pub mod kv;
pub mod layers;
pub mod models;
mod open;
pub mod pack;
mod recorder;
mod sequence;
mod shared_vocabulary;
mod stats_file;
pub mod telemetry;
pub mod tokenizer;
pub mod units;
pub mod weights;

pub use error::Error;
