//! What the time of a device goes to: a driver around another that times every kernel and copy.
//!
//! Owns the events between pieces of work and the sums by name. A device that waits for the host would show the
//! host's time as a kernel's, so after every wait it is given something to do first: what is queued meanwhile then
//! runs back to back. The whole is therefore slower than without. It must not know what is computed.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::time::Instant;

use serde::Serialize;

use super::driver::{Arg, DeviceInfo, DevicePtr, Driver, Event, GpuError, Grid, KernelId, Lane};

/// Memory that is filled with zeros to keep the device busy.
pub const FILLER_BYTES: u64 = 64 << 20;
/// How long it is kept busy after a wait: longer than the host takes to queue a layer with its events.
const BUSY_S: f64 = 600e-6;
/// Most fillings for that.
const FILLINGS_MAX: usize = 64;

/// What one kind of work took.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct WorkTime {
    /// The kernel, or what else the device was asked for.
    pub name: String,
    /// How often.
    pub count: u64,
    /// Seconds on the device, its way from the work before included.
    pub device_s: f64,
    /// Seconds the host took to queue it.
    pub host_s: f64,
}

/// A driver that times another's compute lane.
pub struct ProfiledDriver {
    inner: Box<dyn Driver>,
    filler: DevicePtr,
    fillings: usize,
    names: Vec<String>,
    /// Work queued since the last wait: what it was, and the event behind it.
    queued: Vec<(String, Event)>,
    /// The event before the first of it.
    begin: Option<Event>,
    spare: Vec<Event>,
    times: BTreeMap<String, WorkTime>,
}

impl ProfiledDriver {
    /// Times `inner` from now on. Takes [`FILLER_BYTES`] of its memory.
    ///
    /// # Errors
    /// No memory, a device that fails.
    pub fn new(mut inner: Box<dyn Driver>) -> Result<ProfiledDriver, GpuError> {
        let filler = inner.alloc("profiling", FILLER_BYTES)?;
        let mut driver = ProfiledDriver {
            inner,
            filler,
            fillings: 1,
            names: Vec::new(),
            queued: Vec::new(),
            begin: None,
            spare: Vec::new(),
            times: BTreeMap::new(),
        };
        driver.fill()?;
        let first = driver.mark()?;
        driver.fill()?;
        let second = driver.mark()?;
        driver.inner.wait(second)?;
        let each_s = driver.inner.seconds_between(first, second)?;
        driver.fillings = ((BUSY_S / each_s.max(1e-9)).ceil() as usize).clamp(1, FILLINGS_MAX);
        driver.spare.extend([first, second]);
        Ok(driver)
    }

    fn fill(&mut self) -> Result<(), GpuError> {
        for _ in 0..self.fillings {
            // SAFETY: the memory was allocated, as long as this, for nothing else.
            unsafe { self.inner.zero(Lane::Compute, self.filler, FILLER_BYTES as usize) }?;
        }
        Ok(())
    }

    fn mark(&mut self) -> Result<Event, GpuError> {
        let spare = self.spare.pop();
        self.inner.record(Lane::Compute, spare)
    }

    /// Does `work`, which queues something called `name` in the compute lane.
    fn timed(
        &mut self,
        name: String,
        work: impl FnOnce(&mut dyn Driver) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        if self.begin.is_none() {
            self.fill()?;
            self.begin = Some(self.mark()?);
        }
        let begun = Instant::now();
        work(self.inner.as_mut())?;
        let host_s = begun.elapsed().as_secs_f64();
        let behind = self.mark()?;
        self.at(&name).host_s += host_s;
        self.queued.push((name, behind));
        Ok(())
    }

    fn at(&mut self, name: &str) -> &mut WorkTime {
        self.times
            .entry(name.to_owned())
            .or_insert_with(|| WorkTime { name: name.to_owned(), ..WorkTime::default() })
    }

    /// Sums what has been queued, once it is done.
    fn settle(&mut self) -> Result<(), GpuError> {
        let Some(mut last) = self.begin.take() else { return Ok(()) };
        let queued = std::mem::take(&mut self.queued);
        if let Some((_, end)) = queued.last() {
            self.inner.wait(*end)?;
        }
        for (name, behind) in queued {
            let seconds = self.inner.seconds_between(last, behind)?;
            self.spare.push(std::mem::replace(&mut last, behind));
            let time = self.at(&name);
            time.count += 1;
            time.device_s += seconds;
        }
        self.spare.push(last);
        Ok(())
    }
}

impl Driver for ProfiledDriver {
    fn info(&mut self) -> Result<DeviceInfo, GpuError> {
        self.inner.info()
    }

    fn alloc(&mut self, what: &'static str, bytes: u64) -> Result<DevicePtr, GpuError> {
        self.inner.alloc(what, bytes)
    }

    unsafe fn pin(&mut self, host: NonNull<u8>, len: usize) -> Result<(), GpuError> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.pin(host, len) }
    }

    fn unpin(&mut self, host: NonNull<u8>) -> Result<(), GpuError> {
        self.inner.unpin(host)
    }

    fn mapped(&mut self, host: *const u8, len: usize) -> Result<DevicePtr, GpuError> {
        self.inner.mapped(host, len)
    }

    unsafe fn upload(
        &mut self,
        lane: Lane,
        to: DevicePtr,
        from: *const u8,
        len: usize,
    ) -> Result<(), GpuError> {
        // SAFETY: the caller's promise.
        let upload = |driver: &mut dyn Driver| unsafe { driver.upload(lane, to, from, len) };
        if lane == Lane::Copy {
            upload(self.inner.as_mut())
        } else {
            self.timed("(upload)".to_owned(), upload)
        }
    }

    unsafe fn download(
        &mut self,
        lane: Lane,
        to: *mut u8,
        from: DevicePtr,
        len: usize,
    ) -> Result<(), GpuError> {
        // SAFETY: the caller's promise.
        let download = |driver: &mut dyn Driver| unsafe { driver.download(lane, to, from, len) };
        if lane == Lane::Copy {
            download(self.inner.as_mut())
        } else {
            self.timed("(download)".to_owned(), download)
        }
    }

    unsafe fn zero(&mut self, lane: Lane, at: DevicePtr, len: usize) -> Result<(), GpuError> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.zero(lane, at, len) }
    }

    fn kernel(&mut self, name: &str) -> Result<KernelId, GpuError> {
        let id = self.inner.kernel(name)?;
        if self.names.len() <= id.0 {
            self.names.resize(id.0 + 1, String::new());
        }
        self.names[id.0] = name.to_owned();
        Ok(id)
    }

    unsafe fn launch(&mut self, kernel: KernelId, grid: Grid, args: &[Arg<'_>]) -> Result<(), GpuError> {
        let name = self.names.get(kernel.0).cloned().unwrap_or_default();
        // SAFETY: the caller's promise.
        self.timed(name, |driver| unsafe { driver.launch(kernel, grid, args) })
    }

    fn record(&mut self, lane: Lane, reuse: Option<Event>) -> Result<Event, GpuError> {
        self.inner.record(lane, reuse)
    }

    fn order(&mut self, lane: Lane, after: Event) -> Result<(), GpuError> {
        match lane {
            Lane::Copy => self.inner.order(lane, after),
            Lane::Compute => self.timed("(copies)".to_owned(), |driver| driver.order(lane, after)),
        }
    }

    fn is_done(&mut self, event: Event) -> Result<bool, GpuError> {
        self.inner.is_done(event)
    }

    fn wait(&mut self, event: Event) -> Result<(), GpuError> {
        self.inner.wait(event)?;
        self.settle()
    }

    fn seconds_between(&mut self, first: Event, second: Event) -> Result<f64, GpuError> {
        self.inner.seconds_between(first, second)
    }

    fn take_times(&mut self) -> Vec<WorkTime> {
        std::mem::take(&mut self.times).into_values().collect()
    }
}
