//! The GPU behind a pass: its memory, its lanes of work, and the kernels that run there.

#[cfg(feature = "cuda")]
pub mod cuda;
mod driver;
mod link;

pub use driver::{Arg, DeviceInfo, DevicePtr, Driver, Event, GpuError, Grid, KernelId, Lane};
pub use link::{LinkRates, measure_link};
