//! The GPU behind a pass: its memory, its lanes of work, and the kernels that run there.

mod driver;

pub use driver::{Arg, DeviceInfo, DevicePtr, Driver, Event, GpuError, Grid, KernelId, Lane};
