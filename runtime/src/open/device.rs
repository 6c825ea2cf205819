//! The GPU of an engine: opening it, and planning its memory (DESIGN I1 for `--vram`).
//!
//! Owns the order: the GPU is opened before the process's memory is planned, since its driver is a part of it, and
//! nothing is allocated there before its plan holds. It must not know what is computed.

use drafthorse_scheduler::{MemoryPlan, Needs};

use super::{Opened, PREFILL_CHUNK_MIN};
use crate::Error;
use crate::api::GpuOptions;
use crate::gpu::{self, DeviceInfo, Driver, FILLER_BYTES, GpuError, LayoutPlan, ProfiledDriver};
use crate::units::format_bytes;

/// Rows of a pass on a GPU, scores and the rest of its scratch may take its memory divided by this.
const VRAM_SCRATCH_SHARE: u64 = 8;
/// Of the GPU memory that is free, all but one part in so many may be used on "auto".
const VRAM_DIVISOR: u64 = 16;
/// The GPU that a target is to be computed on, and what fits there.
pub struct Device {
    pub(super) driver: Box<dyn Driver>,
    /// As its maker names it.
    pub name: String,
    pub(super) layout: LayoutPlan,
    /// What its memory is planned for.
    pub plan: MemoryPlan,
    pub(super) hybrid: bool,
    pub(super) has_head: bool,
}

/// A GPU, and the limit of its memory.
pub(super) struct OpenedDevice {
    driver: Box<dyn Driver>,
    info: DeviceInfo,
    vram_bytes: u64,
}

impl OpenedDevice {
    /// Opens the GPU that is asked for.
    ///
    /// # Errors
    /// There is none that can be used.
    pub(super) fn new(gpu: GpuOptions) -> Result<OpenedDevice, Error> {
        let mut driver = gpu::open(gpu.device)?;
        let info = driver.info()?;
        let most = info.free_bytes / VRAM_DIVISOR * (VRAM_DIVISOR - 1);
        let vram_bytes = gpu.vram_bytes.unwrap_or(most);
        Ok(OpenedDevice { driver, info, vram_bytes })
    }

    /// Rows of a prefill pass: as many of `rows` as leave most of the memory to weights and experts.
    pub(super) fn prefill_chunk(&self, mut rows: usize, layout: impl Fn(usize) -> LayoutPlan) -> usize {
        let most = self.vram_bytes / VRAM_SCRATCH_SHARE;
        while rows > PREFILL_CHUNK_MIN && layout(rows).scratch_bytes() > most {
            rows /= 2;
        }
        rows
    }
}

/// Plans the GPU's memory: everything dense there, and as many experts as fit beside it.
pub(super) fn device(
    gpu: GpuOptions,
    opened: OpenedDevice,
    (target, has_head): (&Opened, bool),
) -> Result<Device, Error> {
    let OpenedDevice { mut driver, info, vram_bytes: budget } = opened;
    let layout = LayoutPlan::new(&target.blueprint, &target.options);
    let shapes = target.blueprint.experts.iter().flat_map(|layers| &layers.shapes);
    let needs = Needs {
        process_bytes: 0,
        dense_bytes: layout.dense_bytes(),
        kv_bytes: layout.kv_bytes(),
        scratch_bytes: layout.scratch_bytes() + if gpu.profile { FILLER_BYTES } else { 0 },
        draft_bytes: 0,
        slot_bytes: gpu::slot_bytes(shapes),
        slots_min: target.blueprint.spec.moe.map_or(0, |moe| moe.used),
        slots_max: target.experts_total(),
    };
    let plan = MemoryPlan::fit(&needs, budget, None).map_err(Error::Vram)?;
    if plan.planned_bytes > info.free_bytes {
        let (planned, free) = (format_bytes(plan.planned_bytes), format_bytes(info.free_bytes));
        let reason = format!("{}: {planned} are planned, {free} are free", info.name);
        return Err(Error::Gpu(GpuError::Unavailable { reason }));
    }
    if gpu.profile {
        driver = Box::new(ProfiledDriver::new(driver)?);
    }
    Ok(Device { driver, name: info.name, layout, plan, hybrid: gpu.hybrid, has_head })
}

pub(super) fn device_notice(device: &Device, target: &Opened) -> String {
    let planned = format_bytes(device.plan.planned_bytes);
    let experts = match target.experts_total() {
        0 => String::new(),
        total => format!(", {} of {total} experts among it", device.plan.slots),
    };
    format!("{}: {planned} of its memory are used{experts}", device.name)
}
