//! The GPU behind a pass: its memory, its lanes of work, and the kernels that run there.

#[cfg(feature = "cuda")]
pub mod cuda;
mod driver;
#[cfg(feature = "gpu-emulator")]
mod emulated;
mod link;

pub use driver::{Arg, DeviceInfo, DevicePtr, Driver, Event, GpuError, Grid, KernelId, Lane};
#[cfg(feature = "gpu-emulator")]
pub use emulated::{EmulatedDriver, EmulatedOptions, Schedule};
pub use link::{LinkRates, measure_link};
