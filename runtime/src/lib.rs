//! The Drafthorse product.

pub mod gguf;
pub mod kernels;
pub mod kv;
pub mod layers;
pub mod models;
pub mod weights;
