//! Small things on their way to the device: row lists, places and weights.
//!
//! Owns a ring of pinned host memory and its twin on the device. A place on the device may be written again as
//! soon as the compute lane gets there, since its readers are in the same lane before; one on the host only once
//! its copy is done, which an event at the end of every segment tells. It must not know what is staged.

use std::ptr::NonNull;

use drafthorse_offload::AlignedBuf;

use super::driver::{DevicePtr, Driver, Event, GpuError, Lane};

/// Segments of the ring: a wait for one leaves the others in flight.
const SEGMENTS: usize = 8;
/// Alignment of what is staged.
const ALIGN: usize = 256;

/// Pinned host memory of ours, let go by [`Pinned::unpin`].
pub struct Pinned {
    buf: AlignedBuf,
}

impl Pinned {
    /// At least `bytes` bytes.
    ///
    /// # Errors
    /// No memory on the host, or none that can be pinned.
    pub fn new(driver: &mut dyn Driver, bytes: usize) -> Result<Pinned, GpuError> {
        let failed = |error| GpuError::Failed { action: "get host memory", reason: format!("{error}") };
        let mut buf = AlignedBuf::new(bytes).map_err(failed)?;
        let host = NonNull::from(&mut buf.as_mut_slice()[0]);
        // SAFETY: the memory is unpinned before it goes (`GpuBackend::drop`).
        unsafe { driver.pin(host, buf.len()) }?;
        Ok(Pinned { buf })
    }

    /// The device's address of it, if kernels can reach it there.
    ///
    /// # Errors
    /// Of the driver.
    pub fn mapped(&mut self, driver: &mut dyn Driver) -> Result<Option<DevicePtr>, GpuError> {
        if !driver.info()?.reads_host {
            return Ok(None);
        }
        let bytes = self.buf.as_slice();
        driver.mapped(bytes.as_ptr(), bytes.len()).map(Some)
    }

    /// Lets it go; no copy may be in flight.
    pub fn unpin(&mut self, driver: &mut dyn Driver) -> Result<(), GpuError> {
        driver.unpin(NonNull::from(&mut self.buf.as_mut_slice()[0]))
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.buf.as_mut_slice()
    }

    /// The first `len` floats.
    pub fn floats(&self, len: usize) -> &[f32] {
        let bytes = &self.buf.as_slice()[..len * size_of::<f32>()];
        // SAFETY: a page-aligned buffer is aligned for floats, any four bytes are one, and the range was checked.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), len) }
    }
}

/// The ring.
pub struct Staging {
    host: Pinned,
    device: DevicePtr,
    segment_bytes: usize,
    /// The present segment, and where in it the next thing goes.
    at: (usize, usize),
    /// By segment: behind the last copy out of it.
    done: [Option<Event>; SEGMENTS],
}

impl Staging {
    /// A ring in which things of up to `bytes_max` bytes fit.
    ///
    /// # Errors
    /// No memory on either side.
    pub fn new(driver: &mut dyn Driver, bytes_max: usize) -> Result<Staging, GpuError> {
        let segment_bytes = Staging::segment_bytes(bytes_max);
        Ok(Staging {
            host: Pinned::new(driver, SEGMENTS * segment_bytes)?,
            device: driver.alloc("staging", (SEGMENTS * segment_bytes) as u64)?,
            segment_bytes,
            at: (0, 0),
            done: [None; SEGMENTS],
        })
    }

    /// Bytes `new` takes on each side.
    pub fn ring_bytes(bytes_max: usize) -> u64 {
        (SEGMENTS * Staging::segment_bytes(bytes_max)) as u64
    }

    fn segment_bytes(bytes_max: usize) -> usize {
        2 * bytes_max.next_multiple_of(ALIGN)
    }

    /// Queues `bytes` for the compute lane; they are on the device, at the address returned, for whatever is queued
    /// there before the ring comes round.
    ///
    /// # Errors
    /// Of the driver.
    pub fn put(&mut self, driver: &mut dyn Driver, bytes: &[u8]) -> Result<DevicePtr, GpuError> {
        let (mut segment, mut at) = self.at;
        if at + bytes.len() > self.segment_bytes {
            self.done[segment] = Some(driver.record(Lane::Compute, self.done[segment])?);
            (segment, at) = ((segment + 1) % SEGMENTS, 0);
            if let Some(event) = self.done[segment] {
                driver.wait(event)?;
            }
        }
        assert!(bytes.len() <= self.segment_bytes, "invariant: the ring was made for the largest thing");
        let place = segment * self.segment_bytes + at;
        self.host.bytes()[place..place + bytes.len()].copy_from_slice(bytes);
        let to = self.device + place as u64;
        // SAFETY: the host side is ours and is not written before its segment's event; the device side is as
        // large.
        unsafe { driver.upload(Lane::Compute, to, self.host.bytes()[place..].as_ptr(), bytes.len()) }?;
        self.at = (segment, at + bytes.len().next_multiple_of(ALIGN));
        Ok(to)
    }

    /// Lets the host side go; no copy may be in flight.
    pub fn unpin(&mut self, driver: &mut dyn Driver) -> Result<(), GpuError> {
        self.host.unpin(driver)
    }
}

/// The bytes of plain numbers.
pub fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` types are numbers without padding; the slice covers exactly theirs.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Numbers whose bytes are all theirs.
pub trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for u32 {}
