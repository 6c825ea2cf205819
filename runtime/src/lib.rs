//! runtime
pub mod api;
pub mod host;
pub mod units;
