//! runtime

pub mod api;
pub mod config;
pub mod engine;
mod error;
pub mod gguf;
pub mod host;
pub mod kernels;
pub mod models;
pub mod tokenizer;
pub mod units;

pub use error::Error;
