//! Finding an NVIDIA card and getting hold of it: every reason why none can be used, as one line; the context, the
//! kernels and the two streams, let go together.

use std::ffi::c_void;
use std::ptr::null_mut;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::{failed, name_of};
use crate::gpu::driver::{GpuError, Lane};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Machine code starts at an address that any reader of its header is content with.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static KERNELS: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin")));

/// The least compute capability that has the instructions the kernels are written with.
const CAPABILITY_MIN: (i32, i32) = (7, 5);

/// What this file and its parent call of the driver's library, by the names it exports. cudarc panics at the first
/// call of one that is missing, so all are looked for before any is called.
const SYMBOLS: [&str; 36] = [
    "cuCtxGetStreamPriorityRange",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuGetErrorName",
    "cuInit",
    "cuLaunchKernelEx",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostGetDevicePointer_v2",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// A card in use. Handles are null until they are there; those that are there are let go on drop.
pub struct Card {
    device: sys::CUdevice,
    context: sys::CUcontext,
    pub(super) module: sys::CUmodule,
    streams: [sys::CUstream; 2],
    pub(super) name: String,
    pub(super) multiprocessors: u32,
    /// It is a part of the processor's chip, or shares its memory otherwise.
    pub(super) is_unified: bool,
    /// Pinned memory of the host has addresses that its kernels can read.
    pub(super) reads_host: bool,
}

impl Card {
    /// Takes the card of this number into use.
    pub fn open(ordinal: u32) -> Result<Self, GpuError> {
        start_driver()?;
        let device = find_device(ordinal)?;
        let name = result::device::get_name(device).map_err(|e| failed("name the card", e))?;
        check_capability(device, &name)?;
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY as CAN_MAP, CU_DEVICE_ATTRIBUTE_INTEGRATED as INTEGRATED,
            CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS,
        };
        let read = |attribute, action| {
            // SAFETY: the device comes from `device::get`.
            unsafe { result::device::get_attribute(device, attribute) }.map_err(|e| failed(action, e))
        };
        let multiprocessors = read(MULTIPROCESSORS, "count its multiprocessors")?.unsigned_abs().max(1);
        let is_unified = read(INTEGRATED, "say whose memory it has")? != 0;
        let reads_host = read(CAN_MAP, "say what it can read")? != 0;
        // SAFETY: the device comes from `device::get`.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(|e| reason(format!("{name} cannot be taken into use ({})", name_of(e))))?;
        let (module, streams) = (null_mut(), [null_mut(); 2]);
        let mut card =
            Self { device, context, module, streams, name, multiprocessors, is_unified, reads_host };
        card.make_current()?;
        card.load_kernels()?;
        card.make_streams()?;
        Ok(card)
    }

    /// Makes the calling thread one that works with this card.
    pub fn make_current(&self) -> Result<(), GpuError> {
        // SAFETY: the context was retained and is released on drop only.
        unsafe { result::ctx::set_current(self.context) }.map_err(|e| failed("enter its context", e))
    }

    /// The stream behind a lane.
    pub fn stream(&self, lane: Lane) -> sys::CUstream {
        match lane {
            Lane::Compute => self.streams[0],
            Lane::Copy => self.streams[1],
        }
    }

    fn load_kernels(&mut self) -> Result<(), GpuError> {
        let image = KERNELS.0.as_ptr().cast::<c_void>();
        // SAFETY: the image is what nvcc made, whole and aligned (the build script saw to its header).
        self.module = unsafe { result::module::load_data(image) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => reason(format!(
                "the kernels in this program are for compute capabilities {ARCHS}, and {} has another; build with \
                 `sh scripts/cuda-build.sh`",
                self.name
            )),
            _ => reason(format!("{} does not load the kernels ({})", self.name, name_of(e))),
        })?;
        Ok(())
    }

    /// Copies come first where both lanes have work: they are short of nothing but the link, and computing waits
    /// for them.
    fn make_streams(&mut self) -> Result<(), GpuError> {
        let (least, greatest) =
            result::stream::get_priority_range().map_err(|e| failed("make its streams", e))?;
        for (stream, priority) in self.streams.iter_mut().zip([least, greatest]) {
            *stream = result::stream::create_with_priority(result::stream::StreamKind::NonBlocking, priority)
                .map_err(|e| failed("make its streams", e))?;
        }
        Ok(())
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        let mut ends = vec![self.make_current()];
        for stream in self.streams.into_iter().filter(|stream| !stream.is_null()) {
            // SAFETY: made by `make_streams`, and destroyed here alone.
            ends.push(unsafe { result::stream::destroy(stream) }.map_err(|e| failed("end its streams", e)));
        }
        if !self.module.is_null() {
            // SAFETY: loaded by `load_kernels`, and unloaded here alone.
            ends.push(
                unsafe { result::module::unload(self.module) }.map_err(|e| failed("unload the kernels", e)),
            );
        }
        // SAFETY: the device's context was retained once, by `open`.
        let released = unsafe { result::primary_ctx::release(self.device) };
        ends.push(released.map_err(|e| failed("leave its context", e)));
        for error in ends.into_iter().filter_map(Result::err) {
            tracing::debug!("{error}");
        }
    }
}

fn reason(reason: String) -> GpuError {
    GpuError::Unavailable { reason }
}

fn unavailable<T>(why: String) -> Result<T, GpuError> {
    Err(reason(why))
}

/// Loads the driver's library and starts it, if it is there, whole and new enough.
fn start_driver() -> Result<(), GpuError> {
    // SAFETY: opens and closes a library; its initializers are NVIDIA's.
    if !unsafe { sys::is_culib_present() } {
        return unavailable("there is no NVIDIA driver (libcuda.so.1 is not found)".to_owned());
    }
    for symbol in SYMBOLS {
        // SAFETY: the library is there, as was just seen; the address is not used.
        if unsafe { sys::culib().get::<*mut c_void>(symbol.as_bytes()) }.is_err() {
            return unavailable(format!(
                "the NVIDIA driver is too old, or is none (libcuda has no {symbol})"
            ));
        }
    }
    result::init().map_err(|e| match e.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => {
            reason(format!("the NVIDIA driver finds no card ({})", name_of(e)))
        }
        _ => reason(format!("the NVIDIA driver does not start ({})", name_of(e))),
    })?;
    let mut version = 0;
    // SAFETY: the pointer is to a local.
    let asked = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    asked.result().map_err(|e| failed("state its driver's version", e))?;
    if version < DRIVER_NEEDED {
        return unavailable(format!(
            "its driver is of CUDA {}, and the kernels in this program need one of CUDA {} or newer",
            dotted(version),
            dotted(DRIVER_NEEDED)
        ));
    }
    Ok(())
}

/// `13000` is 13.0.
fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn find_device(ordinal: u32) -> Result<sys::CUdevice, GpuError> {
    let count = result::device::get_count().map_err(|e| failed("count cards", e))?;
    match i32::try_from(ordinal) {
        _ if count < 1 => unavailable("the NVIDIA driver finds no card".to_owned()),
        Ok(number) if number < count => result::device::get(number).map_err(|e| failed("get the card", e)),
        _ => unavailable(format!("there is no card {ordinal}; the driver finds {count}, counted from 0")),
    }
}

fn check_capability(device: sys::CUdevice, name: &str) -> Result<(), GpuError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    // SAFETY: the device comes from `device::get`.
    let read = |attribute| unsafe { result::device::get_attribute(device, attribute) };
    let both = |()| -> Result<_, DriverError> { Ok((read(MAJOR)?, read(MINOR)?)) };
    let capability = both(()).map_err(|e| failed("state its compute capability", e))?;
    if capability < CAPABILITY_MIN {
        return unavailable(format!(
            "{name} is of compute capability {}.{}, and the kernels need {}.{} or newer",
            capability.0, capability.1, CAPABILITY_MIN.0, CAPABILITY_MIN.1
        ));
    }
    Ok(())
}
