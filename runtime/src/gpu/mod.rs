//! The GPU behind a pass: its memory, its lanes of work, and the kernels that run there.

mod driver;
#[cfg(feature = "gpu-emulator")]
mod emulated;
mod grids;
#[cfg(all(test, feature = "gpu-emulator"))]
mod kernel_tests;
mod shapes;
mod tables;

pub use driver::{Arg, DeviceInfo, DevicePtr, Driver, Event, GpuError, Grid, KernelId, Lane};
#[cfg(feature = "gpu-emulator")]
pub use emulated::{EmulatedDriver, EmulatedOptions, Schedule};
pub use grids::{combine_grid, element_grid, head_grid, norm_grid, scores_grid, values_grid};
pub use shapes::{
    MATMUL_JOBS_MAX, MATMUL_ROWS, MatmulJob, matmul_grid, matmul_jobs, matmul_name, quantize_grid,
    quantize_name,
};
pub use tables::tables;
