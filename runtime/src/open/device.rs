//! The GPU of an engine: opening it, and planning its memory (DESIGN I1 for `--vram`).
//!
//! Owns the order: the GPU is opened before the process's memory is planned, since its driver is a part of it, and
//! nothing is allocated there before its plan holds; and whether experts are copied to it or read where they lie. What
//! a GPU takes that shares the process's memory is a line of the process's plan. It must not know what is computed.

use drafthorse_offload::ExpertId;
use drafthorse_scheduler::{MemoryPlan, Needs};

use super::{Opened, PREFILL_CHUNK_MIN};
use crate::Error;
use crate::api::GpuOptions;
use crate::gpu::{self, DeviceInfo, Driver, FILLER_BYTES, GpuError, LayoutPlan, PART_ALIGN, ProfiledDriver};
use crate::models::ExpertLayers;
use crate::units::format_bytes;

/// Rows of a pass on a GPU, scores and the rest of its scratch may take its memory divided by this.
const VRAM_SCRATCH_SHARE: u64 = 8;
/// Of the GPU memory that is free, all but one part in so many may be used on "auto".
const VRAM_DIVISOR: u64 = 16;
/// Of the process's budget, one part in so many is a GPU's in the same memory, where experts are copied all the same.
const SHARED_DIVISOR: u64 = 2;

/// The GPU that a target is to be computed on, and what fits there.
pub struct Device {
    pub(super) driver: Box<dyn Driver>,
    /// As its maker names it.
    pub name: String,
    pub(super) layout: LayoutPlan,
    /// What its memory is planned for.
    pub plan: MemoryPlan,
    /// Whether its kernels read experts where they lie in the host's memory.
    pub is_in_place: bool,
    is_unified: bool,
    pub(super) hybrid: bool,
    pub(super) has_head: bool,
}

/// What is said of a GPU.
pub struct GpuInfo {
    /// As its maker names it.
    pub name: String,
    /// What its memory is planned for.
    pub plan: MemoryPlan,
    /// Whether its kernels read experts where they lie in the host's memory.
    pub is_in_place: bool,
}

impl Device {
    /// What is said of it.
    pub fn info(&self) -> GpuInfo {
        GpuInfo { name: self.name.clone(), plan: self.plan.clone(), is_in_place: self.is_in_place }
    }
}

/// A GPU, and the limit of its memory.
pub(super) struct OpenedDevice {
    options: GpuOptions,
    driver: Box<dyn Driver>,
    info: DeviceInfo,
    vram_bytes: u64,
    is_in_place: bool,
    notice: Option<String>,
}

impl OpenedDevice {
    /// Opens the GPU that is asked for; `budget` is the process's, `layers` are the target's experts.
    ///
    /// # Errors
    /// There is none that can be used, or it cannot do what it is asked for.
    pub(super) fn new(
        options: GpuOptions,
        budget: u64,
        layers: Option<&ExpertLayers>,
    ) -> Result<OpenedDevice, Error> {
        let mut driver = gpu::open(options.device)?;
        let info = driver.info()?;
        if options.unified == Some(true) && !info.reads_host {
            let reason = format!("{} cannot read the host's memory (gpu.unified = true)", info.name);
            return Err(Error::Gpu(GpuError::Unavailable { reason }));
        }
        let is_wanted = options.unified.unwrap_or(info.is_unified) && info.reads_host;
        let is_in_place = is_wanted && layers.is_none_or(can_be_read);
        let notice = (is_wanted && !is_in_place).then(|| {
            format!(
                "experts are copied to {}, and not read where they lie: in the file some do not begin at a multiple \
                 of {PART_ALIGN} bytes (drafthorse pack puts them there)",
                info.name
            )
        });
        let most = match (info.is_unified, is_in_place) {
            (true, true) => budget,
            (true, false) => budget / SHARED_DIVISOR,
            (false, _) => info.free_bytes / VRAM_DIVISOR * (VRAM_DIVISOR - 1),
        };
        let vram_bytes = options.vram_bytes.unwrap_or(most);
        Ok(OpenedDevice { options, driver, info, vram_bytes, is_in_place, notice })
    }

    /// What the user has to know of how it is used.
    pub(super) fn notice(&self) -> Option<String> {
        self.notice.clone()
    }

    /// Rows of a prefill pass: as many of `rows` as leave most of the memory to weights and experts.
    pub(super) fn prefill_chunk(&self, mut rows: usize, layout: impl Fn(usize) -> LayoutPlan) -> usize {
        let most = self.vram_bytes / VRAM_SCRATCH_SHARE;
        while rows > PREFILL_CHUNK_MIN && layout(rows).scratch_bytes() > most {
            rows /= 2;
        }
        rows
    }

    /// What it takes of the process's memory.
    ///
    /// # Errors
    /// As [`device`].
    pub(super) fn host_bytes(&self, target: &Opened) -> Result<u64, Error> {
        let planned = || self.plan(target).map(|(_, plan)| plan.planned_bytes);
        if self.info.is_unified { planned() } else { Ok(0) }
    }

    /// Everything dense there, and as many experts as fit beside it, unless they are read where they lie.
    fn plan(&self, target: &Opened) -> Result<(LayoutPlan, MemoryPlan), Error> {
        let layout = LayoutPlan::new(&target.blueprint, &target.options);
        let shapes = target.blueprint.experts.iter().flat_map(|layers| &layers.shapes);
        let dense = Needs {
            process_bytes: 0,
            dense_bytes: layout.dense_bytes(),
            kv_bytes: layout.kv_bytes(),
            scratch_bytes: layout.scratch_bytes() + if self.options.profile { FILLER_BYTES } else { 0 },
            draft_bytes: 0,
            device_bytes: 0,
            slot_bytes: 0,
            slots_min: 0,
            slots_max: 0,
        };
        let needs = if self.is_in_place {
            dense
        } else {
            Needs {
                slot_bytes: gpu::slot_bytes(shapes),
                slots_min: target.blueprint.spec.moe.map_or(0, |moe| moe.used),
                slots_max: target.experts_total(),
                ..dense
            }
        };
        let plan = MemoryPlan::fit(&needs, self.vram_bytes, None).map_err(Error::Vram)?;
        Ok((layout, plan))
    }
}

/// Whether kernels can read every matrix where readers put it: as far into a page as it is in the file.
fn can_be_read(layers: &ExpertLayers) -> bool {
    let experts = layers.experts().into_iter().zip(0..);
    let mut ids = experts.flat_map(|(count, layer)| (0..count).map(move |expert| ExpertId { layer, expert }));
    let begins_well = |id| {
        let extents = layers.index.extents(id);
        extents.is_some_and(|parts| parts.iter().all(|part| part.offset.is_multiple_of(PART_ALIGN as u64)))
    };
    ids.all(begins_well)
}

/// Plans the GPU's memory.
///
/// # Errors
/// Less than has to be there, or more than is free.
pub(super) fn device(opened: OpenedDevice, (target, has_head): (&Opened, bool)) -> Result<Device, Error> {
    let (layout, plan) = opened.plan(target)?;
    let OpenedDevice { options, mut driver, info, is_in_place, .. } = opened;
    // What is free of memory that all share says little: the system makes room. The process's plan is held to it.
    if plan.planned_bytes > info.free_bytes && !info.is_unified {
        let (planned, free) = (format_bytes(plan.planned_bytes), format_bytes(info.free_bytes));
        let reason = format!("{}: {planned} are planned, {free} are free", info.name);
        return Err(Error::Gpu(GpuError::Unavailable { reason }));
    }
    if options.profile {
        driver = Box::new(ProfiledDriver::new(driver)?);
    }
    let DeviceInfo { name, is_unified, .. } = info;
    let is_in_place = is_in_place && target.experts_total() > 0;
    let hybrid = options.hybrid;
    Ok(Device { driver, name, layout, plan, is_in_place, is_unified, hybrid, has_head })
}

pub(super) fn device_notice(device: &Device, target: &Opened) -> String {
    let planned = format_bytes(device.plan.planned_bytes);
    let whose = if device.is_unified { "the memory that it shares with the processor" } else { "its memory" };
    let experts = match target.experts_total() {
        0 => String::new(),
        _ if device.is_in_place => ", experts are read where they lie in the processor's".to_owned(),
        total => format!(", {} of {total} experts among it", device.plan.slots),
    };
    format!("{}: {planned} of {whose} are used{experts}", device.name)
}
