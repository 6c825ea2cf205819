//! What a GPU has to do for us, as a trait: memory, two lanes of work, events between them, launches.
//!
//! Owns the vocabulary that host logic is written in, so that the same logic runs on a CUDA card and on the
//! emulated one that tests use. It must not know models, layers or experts.

use std::ptr::NonNull;

use thiserror::Error;

use super::profile::WorkTime;

/// An address in the device's memory.
pub type DevicePtr = u64;

/// What a device can fail with.
#[derive(Debug, Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
pub enum GpuError {
    #[error("no GPU can be used: {reason}")]
    Unavailable { reason: String },
    #[error("the GPU has no {bytes} bytes left for {what}")]
    Memory { what: &'static str, bytes: u64 },
    #[error("the GPU's kernels have no {name}")]
    NoKernel { name: String },
    #[error("the GPU failed to {action}: {reason}")]
    Failed { action: &'static str, reason: String },
}

/// Work of one lane runs in order; lanes run side by side unless an event orders them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Kernels, and copies that they need at once.
    Compute,
    /// Experts on their way into the device's memory.
    Copy,
}

/// A point in a lane's work. The number is the driver's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event(pub usize);

/// A kernel that was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelId(pub usize);

/// One argument of a kernel, as its signature has it.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    /// A pointer into the device's memory, or null.
    Ptr(DevicePtr),
    /// `unsigned`
    U32(u32),
    /// `float`
    F32(f32),
    /// A struct by value.
    Struct(&'a [u64]),
}

/// Blocks and threads of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Blocks in x, y and z, each >= 1; y and z at most 65535.
    pub blocks: [u32; 3],
    /// Threads of a block, all in x, at most 1024.
    pub threads: u32,
    /// Bytes of dynamic shared memory, at most 48 KiB.
    pub shared_bytes: u32,
}

/// What a device is.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// As the maker names it.
    pub name: String,
    /// Memory in bytes.
    pub total_bytes: u64,
    /// Of these, bytes nobody uses.
    pub free_bytes: u64,
    /// Multiprocessors: blocks of threads that run at the very least side by side.
    pub multiprocessors: u32,
    /// Whether its memory is the processor's, so that what is allocated on it comes out of the same.
    pub is_unified: bool,
    /// Whether its kernels can reach the host's memory where it lies, see [`Driver::mapped`].
    pub reads_host: bool,
}

/// A GPU. Calls return as soon as the work is queued, unless they say otherwise; an error of queued work may
/// come out of a later call.
pub trait Driver: Send {
    /// What it is, and how much memory is free now.
    fn info(&mut self) -> Result<DeviceInfo, GpuError>;

    /// Memory of its own until the driver is dropped, aligned to 256 bytes. Contents are unspecified.
    fn alloc(&mut self, what: &'static str, bytes: u64) -> Result<DevicePtr, GpuError>;

    /// Makes host memory one that copies run from and to at full speed, beside the caller. It is let go when the
    /// driver is dropped, or by [`Driver::unpin`].
    ///
    /// # Safety
    /// The memory outlives the driver or is unpinned before it goes.
    unsafe fn pin(&mut self, host: NonNull<u8>, len: usize) -> Result<(), GpuError>;

    /// Lets pinned memory go, once all work is done.
    fn unpin(&mut self, host: NonNull<u8>) -> Result<(), GpuError>;

    /// The device's address of `len` bytes of pinned memory of the host, which kernels may read and write there until it
    /// is unpinned. What the host has written before a launch is queued, the kernel sees; until it is done, the host
    /// leaves the bytes as they are. What a kernel has written, the host sees once an event behind it is reached.
    ///
    /// # Errors
    /// Memory that is not pinned, a device that cannot ([`DeviceInfo::reads_host`]).
    fn mapped(&mut self, host: *const u8, len: usize) -> Result<DevicePtr, GpuError>;

    /// Queues a copy to the device. Memory that is not pinned has been read when the call returns.
    ///
    /// # Safety
    /// Pinned memory at `from..from + len` stays as it is until the copy is done (an event behind it says so); the
    /// destination is allocated.
    unsafe fn upload(
        &mut self,
        lane: Lane,
        to: DevicePtr,
        from: *const u8,
        len: usize,
    ) -> Result<(), GpuError>;

    /// Queues a copy from the device.
    ///
    /// # Safety
    /// Nobody touches `to..to + len` until the copy is done; the source is allocated.
    unsafe fn download(
        &mut self,
        lane: Lane,
        to: *mut u8,
        from: DevicePtr,
        len: usize,
    ) -> Result<(), GpuError>;

    /// Queues filling with zeros.
    ///
    /// # Safety
    /// The memory is allocated.
    unsafe fn zero(&mut self, lane: Lane, at: DevicePtr, len: usize) -> Result<(), GpuError>;

    /// Looks a kernel up.
    fn kernel(&mut self, name: &str) -> Result<KernelId, GpuError>;

    /// Queues a kernel on the compute lane.
    ///
    /// # Safety
    /// Arguments are those of the kernel's signature, and what they point to is large enough.
    unsafe fn launch(&mut self, kernel: KernelId, grid: Grid, args: &[Arg<'_>]) -> Result<(), GpuError>;

    /// A point behind all work queued in the lane so far. Events are few: `reuse` is one that nobody waits for any
    /// more.
    fn record(&mut self, lane: Lane, reuse: Option<Event>) -> Result<Event, GpuError>;

    /// Work queued in the lane from now on waits for the event.
    fn order(&mut self, lane: Lane, after: Event) -> Result<(), GpuError>;

    /// Whether the event has been reached; never blocks.
    fn is_done(&mut self, event: Event) -> Result<bool, GpuError>;

    /// Blocks until the event has been reached.
    fn wait(&mut self, event: Event) -> Result<(), GpuError>;

    /// Seconds between two events of one lane that have been reached.
    fn seconds_between(&mut self, first: Event, second: Event) -> Result<f64, GpuError>;

    /// What each kind of work has taken since the last call, for a driver that measures it.
    fn take_times(&mut self) -> Vec<WorkTime> {
        Vec::new()
    }
}
