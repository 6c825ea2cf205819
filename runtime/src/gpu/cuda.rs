//! An NVIDIA card as a [`Driver`], through CUDA's driver library, which is looked for at run time: a machine that has
//! none gets an error value. Knows no model and no kernel by name.

mod card;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr::NonNull;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::driver::{Arg, DeviceInfo, DevicePtr, Driver, Event, GpuError, Grid, KernelId, Lane};
use card::Card;

/// Up to this size the driver copies memory that is not pinned before it returns, whatever the system; beyond it waits.
const STAGED_BYTES: usize = 64 << 10;
/// A kernel has at most this many arguments.
const ARGS_MAX: usize = 32;
/// The capability that a kernel's PTX was made for, which is what its source saw, whatever card it was translated for.
const COMPILED_FOR: sys::CUfunction_attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION;
/// The first with kernels that overlap: 9.0.
const OVERLAPS_FROM: i32 = 90;

/// A card in use, with all it was asked to hold.
pub struct CudaDriver {
    card: Card,
    allocated: Vec<DevicePtr>,
    /// Where pinned memory starts, and how long it is.
    pinned: Vec<(NonNull<u8>, usize)>,
    events: Vec<sys::CUevent>,
    kernels: Vec<Kernel>,
    kernel_ids: HashMap<String, KernelId>,
}

/// A kernel as the driver knows it.
#[derive(Clone, Copy)]
struct Kernel {
    function: sys::CUfunction,
    /// Its blocks may come to the card while the kernel before still runs: it was compiled for cards on which it waits
    /// by itself (`after_previous` of `kernels/common.cuh`).
    overlaps: bool,
}

// SAFETY: handles of the driver may be used by any thread that has made the context current, which every method
// does; the driver's library locks what threads share. Pinned addresses are only given back to it.
unsafe impl Send for CudaDriver {}

impl CudaDriver {
    /// Takes card number `ordinal` into use, counted from 0 in the driver's order.
    ///
    /// # Errors
    /// [`GpuError::Unavailable`] says why there is none that can be used: no driver, no card, or too old a one.
    pub fn open(ordinal: u32) -> Result<Self, GpuError> {
        Ok(Self {
            card: Card::open(ordinal)?,
            allocated: Vec::new(),
            pinned: Vec::new(),
            events: Vec::new(),
            kernels: Vec::new(),
            kernel_ids: HashMap::new(),
        })
    }

    /// The pinned memory that `at..at + len` is a part of, and how far into it that begins.
    fn pinned(&self, at: *const u8, len: usize) -> Option<(NonNull<u8>, usize)> {
        self.pinned.iter().find_map(|(start, pinned)| {
            let skipped = (at as usize).checked_sub(start.as_ptr() as usize)?;
            let is_inside = skipped.checked_add(len).is_some_and(|end| end <= *pinned);
            is_inside.then_some((*start, skipped))
        })
    }

    fn event(&self, event: Event) -> Result<sys::CUevent, GpuError> {
        let unknown =
            || GpuError::Failed { action: "find an event", reason: format!("no event {}", event.0) };
        self.events.get(event.0).copied().ok_or_else(unknown)
    }
}

/// CUDA's name of an error. Its number where the driver has no name for it: never the binding's, which may not know
/// what a newer driver says.
fn name_of(error: DriverError) -> String {
    match error.error_name() {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => format!("CUDA error {}", error.0 as u32),
    }
}

fn failed(action: &'static str, error: DriverError) -> GpuError {
    GpuError::Failed { action, reason: name_of(error) }
}

impl Driver for CudaDriver {
    fn info(&mut self) -> Result<DeviceInfo, GpuError> {
        self.card.make_current()?;
        let (free, total) = result::mem_get_info().map_err(|e| failed("state its memory", e))?;
        let Card { name, multiprocessors, is_unified, reads_host, .. } = &self.card;
        Ok(DeviceInfo {
            name: name.clone(),
            total_bytes: total as u64,
            free_bytes: free as u64,
            multiprocessors: *multiprocessors,
            is_unified: *is_unified,
            reads_host: *reads_host,
        })
    }

    fn alloc(&mut self, what: &'static str, bytes: u64) -> Result<DevicePtr, GpuError> {
        self.card.make_current()?;
        let none = |_| GpuError::Memory { what, bytes };
        // Nothing is no size CUDA knows.
        let size = usize::try_from(bytes.max(1)).map_err(none)?;
        // SAFETY: the memory is used through the address alone, by work that callers answer for.
        let at = unsafe { result::malloc_sync(size) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => GpuError::Memory { what, bytes },
            _ => failed("allocate memory", e),
        })?;
        self.allocated.push(at);
        Ok(at)
    }

    unsafe fn pin(&mut self, host: NonNull<u8>, len: usize) -> Result<(), GpuError> {
        self.card.make_current()?;
        let at = host.as_ptr().cast::<c_void>();
        let map = if self.card.reads_host { sys::CU_MEMHOSTREGISTER_DEVICEMAP } else { 0 };
        // SAFETY: the caller keeps the memory until it is unpinned; on drop it is at the latest.
        let pinned = unsafe { sys::cuMemHostRegister_v2(at, len, sys::CU_MEMHOSTREGISTER_PORTABLE | map) };
        pinned.result().map_err(|e| failed("pin memory of the host", e))?;
        self.pinned.push((host, len));
        Ok(())
    }

    fn unpin(&mut self, host: NonNull<u8>) -> Result<(), GpuError> {
        const ACTION: &str = "unpin memory of the host";
        let Some(place) = self.pinned.iter().position(|(pinned, _)| *pinned == host) else {
            return Err(GpuError::Failed { action: ACTION, reason: format!("{host:p} is not pinned") });
        };
        self.card.make_current()?;
        result::ctx::synchronize().map_err(|e| failed("finish its work", e))?;
        self.pinned.swap_remove(place);
        // SAFETY: it is pinned, and no work uses it any more.
        let unpinned = unsafe { sys::cuMemHostUnregister(host.as_ptr().cast::<c_void>()) };
        unpinned.result().map_err(|e| failed(ACTION, e))
    }

    fn mapped(&mut self, host: *const u8, len: usize) -> Result<DevicePtr, GpuError> {
        const ACTION: &str = "read memory of the host where it lies";
        let Some((start, skipped)) = self.pinned(host, len) else {
            let reason = format!("{len} bytes at {host:p} are not pinned");
            return Err(GpuError::Failed { action: ACTION, reason });
        };
        self.card.make_current()?;
        let mut at: DevicePtr = 0;
        // SAFETY: the memory is pinned from `start` on; the result is a local. Flags have to be 0.
        let found =
            unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut at, start.as_ptr().cast::<c_void>(), 0) };
        found.result().map_err(|e| failed(ACTION, e))?;
        Ok(at + skipped as u64)
    }

    unsafe fn upload(
        &mut self,
        lane: Lane,
        to: DevicePtr,
        from: *const u8,
        len: usize,
    ) -> Result<(), GpuError> {
        if len == 0 {
            return Ok(());
        }
        self.card.make_current()?;
        let stream = self.card.stream(lane);
        // SAFETY: the caller answers for both ends.
        let copied = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast::<c_void>(), len, stream) };
        copied.result().map_err(|e| failed("copy to the card", e))?;
        if len > STAGED_BYTES && self.pinned(from, len).is_none() {
            // SAFETY: the stream is alive as long as the driver is.
            unsafe { result::stream::synchronize(stream) }.map_err(|e| failed("copy to the card", e))?;
        }
        Ok(())
    }

    unsafe fn download(
        &mut self,
        lane: Lane,
        to: *mut u8,
        from: DevicePtr,
        len: usize,
    ) -> Result<(), GpuError> {
        if len == 0 {
            return Ok(());
        }
        self.card.make_current()?;
        let stream = self.card.stream(lane);
        // SAFETY: the caller answers for both ends.
        let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast::<c_void>(), from, len, stream) };
        copied.result().map_err(|e| failed("copy from the card", e))
    }

    unsafe fn zero(&mut self, lane: Lane, at: DevicePtr, len: usize) -> Result<(), GpuError> {
        if len == 0 {
            return Ok(());
        }
        self.card.make_current()?;
        // SAFETY: the caller answers for the memory.
        let zeroed = unsafe { result::memset_d8_async(at, 0, len, self.card.stream(lane)) };
        zeroed.map_err(|e| failed("clear memory", e))
    }

    fn kernel(&mut self, name: &str) -> Result<KernelId, GpuError> {
        if let Some(&id) = self.kernel_ids.get(name) {
            return Ok(id);
        }
        self.card.make_current()?;
        let none = || GpuError::NoKernel { name: name.to_owned() };
        let symbol = CString::new(name).map_err(|_| none())?;
        // SAFETY: the module is loaded as long as the card is in use.
        let found = unsafe { result::module::get_function(self.card.module, symbol) };
        let function = found.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_NOT_FOUND => none(),
            _ => failed("look a kernel up", e),
        })?;
        let mut compiled_for = 0;
        // SAFETY: the function was just found; the place is a local.
        let asked = unsafe { sys::cuFuncGetAttribute(&raw mut compiled_for, COMPILED_FOR, function) };
        asked.result().map_err(|e| failed("say what a kernel was compiled for", e))?;
        let id = KernelId(self.kernels.len());
        self.kernels.push(Kernel { function, overlaps: compiled_for >= OVERLAPS_FROM });
        self.kernel_ids.insert(name.to_owned(), id);
        Ok(id)
    }

    unsafe fn launch(&mut self, kernel: KernelId, grid: Grid, args: &[Arg<'_>]) -> Result<(), GpuError> {
        const ACTION: &str = "launch a kernel";
        let refused = |reason| GpuError::Failed { action: ACTION, reason };
        let found = self.kernels.get(kernel.0).copied();
        let Kernel { function, overlaps } =
            found.ok_or_else(|| refused(format!("no kernel {}", kernel.0)))?;
        if args.len() > ARGS_MAX {
            return Err(refused(format!("{} arguments, more than {ARGS_MAX}", args.len())));
        }
        self.card.make_current()?;
        let mut slots = [0u64; ARGS_MAX];
        let mut places = [std::ptr::null_mut::<c_void>(); ARGS_MAX];
        for ((slot, place), arg) in slots.iter_mut().zip(&mut places).zip(args) {
            *place = place_arg(slot, arg);
        }
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid.blocks[0],
            gridDimY: grid.blocks[1],
            gridDimZ: grid.blocks[2],
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes,
            hStream: self.card.stream(Lane::Compute),
            attrs: &raw mut attribute,
            numAttrs: overlaps.into(),
        };
        // SAFETY: the caller answers for the arguments. CUDA copies them at the call, reading as many bytes at each
        // place as the kernel's signature says: at most 8 in a slot, and a struct's own words.
        let launched = unsafe {
            sys::cuLaunchKernelEx(&raw const config, function, places.as_mut_ptr(), std::ptr::null_mut())
        };
        launched.result().map_err(|e| failed(ACTION, e))
    }

    fn record(&mut self, lane: Lane, reuse: Option<Event>) -> Result<Event, GpuError> {
        const ACTION: &str = "record an event";
        self.card.make_current()?;
        let event = match reuse {
            Some(event) => event,
            None => {
                let made = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT);
                self.events.push(made.map_err(|e| failed(ACTION, e))?);
                Event(self.events.len() - 1)
            }
        };
        let handle = self.event(event)?;
        // SAFETY: event and stream are alive as long as the driver is.
        unsafe { result::event::record(handle, self.card.stream(lane)) }.map_err(|e| failed(ACTION, e))?;
        Ok(event)
    }

    fn order(&mut self, lane: Lane, after: Event) -> Result<(), GpuError> {
        self.card.make_current()?;
        let (event, flags) = (self.event(after)?, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT);
        // SAFETY: event and stream are alive as long as the driver is.
        let ordered = unsafe { result::stream::wait_event(self.card.stream(lane), event, flags) };
        ordered.map_err(|e| failed("order its work", e))
    }

    fn is_done(&mut self, event: Event) -> Result<bool, GpuError> {
        self.card.make_current()?;
        let event = self.event(event)?;
        // SAFETY: the event is alive as long as the driver is.
        match unsafe { result::event::query(event) } {
            Ok(()) => Ok(true),
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            Err(e) => Err(failed("compute", e)),
        }
    }

    fn wait(&mut self, event: Event) -> Result<(), GpuError> {
        self.card.make_current()?;
        let event = self.event(event)?;
        // SAFETY: the event is alive as long as the driver is.
        unsafe { result::event::synchronize(event) }.map_err(|e| failed("compute", e))
    }

    fn seconds_between(&mut self, first: Event, second: Event) -> Result<f64, GpuError> {
        self.card.make_current()?;
        let (first, second) = (self.event(first)?, self.event(second)?);
        // SAFETY: the events are alive as long as the driver is.
        let milliseconds = unsafe { result::event::elapsed(first, second) };
        Ok(f64::from(milliseconds.map_err(|e| failed("time its work", e))?) / 1e3)
    }
}

/// Where CUDA finds an argument: in its slot, or, for a struct, where it lies.
fn place_arg(slot: &mut u64, arg: &Arg<'_>) -> *mut c_void {
    // The first bytes of the slot are the value, on any machine CUDA runs on: all are little-endian.
    *slot = match arg {
        Arg::Ptr(at) => *at,
        Arg::U32(value) => u64::from(*value),
        Arg::F32(value) => u64::from(value.to_bits()),
        Arg::Struct(words) => return words.as_ptr().cast_mut().cast::<c_void>(),
    };
    std::ptr::from_mut(slot).cast::<c_void>()
}

impl Drop for CudaDriver {
    /// Ends all work, then lets everything go. What fails here fails because the card already did; that was reported.
    fn drop(&mut self) {
        let mut ends = vec![self.card.make_current()];
        ends.push(result::ctx::synchronize().map_err(|e| failed("finish its work", e)));
        for (host, _) in self.pinned.drain(..) {
            // SAFETY: it is pinned, and no work uses it any more.
            let unpinned = unsafe { sys::cuMemHostUnregister(host.as_ptr().cast::<c_void>()) };
            ends.push(unpinned.result().map_err(|e| failed("unpin memory of the host", e)));
        }
        for at in self.allocated.drain(..) {
            // SAFETY: allocated by `alloc`, freed here alone, and no work uses it any more.
            ends.push(unsafe { result::free_sync(at) }.map_err(|e| failed("free memory", e)));
        }
        for event in self.events.drain(..) {
            // SAFETY: made by `record`, and destroyed here alone.
            ends.push(unsafe { result::event::destroy(event) }.map_err(|e| failed("end an event", e)));
        }
        for error in ends.into_iter().filter_map(Result::err) {
            tracing::debug!("{error}");
        }
    }
}
