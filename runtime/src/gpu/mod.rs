//! The GPU behind a pass: its memory, its lanes of work, and the kernels that run there.
//!
//! Owns the drivers, the kernels (`kernels/*.cuh`), the layout of the device's memory and the backend over them.
//! Host logic speaks to a [`Driver`], of which there are two: a CUDA card, and an emulated one that runs the same
//! kernels on the processor and is what tests use. It must not know tokens or files.

mod attend;
mod backend;
#[cfg(feature = "cuda")]
pub mod cuda;
mod driver;
#[cfg(feature = "gpu-emulator")]
mod emulated;
mod expert_kernels;
mod experts;
mod fuse;
mod grids;
mod host_lane;
mod in_place;
#[cfg(all(test, feature = "gpu-emulator"))]
mod kernel_tests;
mod lanes;
mod layout;
mod link;
mod mirror;
mod profile;
mod queue;
mod shapes;
mod staging;
mod tables;

use drafthorse_offload::{ExpertIndex, Policy};
use serde::Serialize;

use crate::kernels::Pool;

pub use backend::{GpuBackend, GpuParts};
pub use driver::{Arg, DeviceInfo, DevicePtr, Driver, Event, GpuError, Grid, KernelId, Lane};
#[cfg(feature = "gpu-emulator")]
pub use emulated::{EmulatedDriver, EmulatedOptions, Schedule};
pub use experts::{PART_ALIGN, slot_bytes};
pub use layout::LayoutPlan;
pub use link::{LinkRates, measure_link, measure_uploads};
pub use profile::{FILLER_BYTES, ProfiledDriver, WorkTime};
pub use tables::tables;

/// A kind of GPU.
pub struct Device {
    /// Name in settings.
    pub name: &'static str,
    /// Opens the first of its kind.
    pub open: fn() -> Result<Box<dyn Driver>, GpuError>,
}

/// Every kind. A new one is a file here and a line there.
pub const DEVICES: &[Device] = &[
    Device { name: "cuda", open: open_cuda },
    Device { name: "emulated", open: || open_emulated(false) },
    Device { name: "emulated-unified", open: || open_emulated(true) },
];

/// Opens a device by its registry name.
///
/// # Errors
/// [`GpuError::Unavailable`] with the reason.
pub fn open(name: &str) -> Result<Box<dyn Driver>, GpuError> {
    let device = DEVICES.iter().find(|device| device.name == name);
    let unknown = || GpuError::Unavailable { reason: format!("there is no kind \"{name}\"") };
    (device.ok_or_else(unknown)?.open)()
}

#[cfg(feature = "cuda")]
fn open_cuda() -> Result<Box<dyn Driver>, GpuError> {
    Ok(Box::new(cuda::CudaDriver::open(0)?))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda() -> Result<Box<dyn Driver>, GpuError> {
    let reason = "this build has no support for CUDA (scripts/cuda-build.sh makes one that has)";
    Err(GpuError::Unavailable { reason: reason.into() })
}

/// Memory of the emulated card that settings ask for: it is taken as it is used.
#[cfg(feature = "gpu-emulator")]
const EMULATED_BYTES: u64 = 64 << 30;

#[cfg(feature = "gpu-emulator")]
fn open_emulated(is_unified: bool) -> Result<Box<dyn Driver>, GpuError> {
    let (memory_bytes, schedule) = (EMULATED_BYTES, Schedule::Lazy);
    let options = EmulatedOptions { memory_bytes, is_unified, reads_host: true, schedule, failing: None };
    Ok(Box::new(EmulatedDriver::new(options)?))
}

#[cfg(not(feature = "gpu-emulator"))]
fn open_emulated(_is_unified: bool) -> Result<Box<dyn Driver>, GpuError> {
    let reason = "this build has no emulated GPU (it is for tests: feature gpu-emulator)";
    Err(GpuError::Unavailable { reason: reason.into() })
}

/// Counters of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct GpuStats {
    /// Experts there is room for.
    pub slots: usize,
    /// Experts wanted that were on the device.
    pub hits: u64,
    /// Experts wanted that were not.
    pub misses: u64,
    /// Experts that lost their slot to another.
    pub evicted: u64,
    /// Experts copied in.
    pub uploads: u64,
    /// Their bytes.
    pub upload_bytes: u64,
    /// Seconds the copies took.
    pub upload_s: f64,
    /// Seconds in which the host waited for copies.
    pub upload_wait_s: f64,
    /// Experts computed on the host's threads instead.
    pub host_experts: u64,
    /// Seconds that took.
    pub host_s: f64,
}

impl GpuStats {
    /// What was counted since `before`.
    #[must_use]
    pub fn since(&self, before: &GpuStats) -> GpuStats {
        GpuStats {
            slots: self.slots,
            hits: self.hits - before.hits,
            misses: self.misses - before.misses,
            evicted: self.evicted - before.evicted,
            uploads: self.uploads - before.uploads,
            upload_bytes: self.upload_bytes - before.upload_bytes,
            upload_s: self.upload_s - before.upload_s,
            upload_wait_s: self.upload_wait_s - before.upload_wait_s,
            host_experts: self.host_experts - before.host_experts,
            host_s: self.host_s - before.host_s,
        }
    }
}

/// Where a device's kernels find routed experts.
pub enum ExpertsPlan {
    /// In slots of the device's memory, into which they are copied.
    Slab(Box<SlabPlan>),
    /// In the host's memory, where they lie ([`GpuBackend::pin`]).
    InPlace,
}

/// How experts are kept on a device.
pub struct SlabPlan {
    /// The model's experts.
    pub index: ExpertIndex,
    /// Room for how many.
    pub slots: usize,
    /// Bytes of a slot, see [`slot_bytes`].
    pub slot_bytes: u64,
    /// Decides who makes room.
    pub policy: Box<dyn Policy>,
    /// Experts that a row wants in a layer.
    pub used: u32,
    /// Threads that compute experts which are not on the device; `None`: all are copied in.
    pub pool: Option<Pool>,
}
