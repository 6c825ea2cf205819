//! runtime

pub mod gguf;
