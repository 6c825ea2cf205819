//! A card that exists in memory only: the kernels run on the processor, as late or as mixed as tests want.
//!
//! Owns two lanes of queued work and when it runs. An event that host logic forgot to order, or a buffer that it
//! used too early, shows as wrong bits; broken accesses are errors. It must not know what the work is for.

mod ffi;
mod memory;
mod schedule;

use std::collections::{BTreeMap, VecDeque};
use std::ptr::NonNull;
use std::time::Instant;

pub use schedule::Schedule;

use super::driver::{Arg, DeviceInfo, DevicePtr, Driver, Event, GpuError, Grid, KernelId, Lane};
use memory::{Memory, Pinned};
use schedule::Dice;

/// Multiprocessors of the emulated card: few, so that launches of small models take all kinds of kernels.
const MULTIPROCESSORS: u32 = 2;

/// What an emulated card is like.
#[derive(Clone, Copy, Debug)]
pub struct EmulatedOptions {
    /// Its memory.
    pub memory_bytes: u64,
    /// Whether it says that this is the processor's.
    pub is_unified: bool,
    /// Whether its kernels can reach the host's memory.
    pub reads_host: bool,
    /// When queued work runs.
    pub schedule: Schedule,
    /// The copy, fill or launch (counted from 0, as queued) that fails when it runs; `None`: none does.
    pub failing: Option<u64>,
}

/// A point in a lane: its `number`-th record, counted from 1.
#[derive(Clone, Copy, Debug)]
struct Point {
    lane: Lane,
    number: u64,
}

/// What an event stands for at present.
struct Moment {
    point: Point,
    /// When it was reached.
    at: Option<Instant>,
}

enum Source {
    /// An address of pinned memory, read when the copy runs.
    Pinned(usize),
    /// What pageable memory held when the copy was queued.
    Copied(Vec<u8>),
}

enum Work {
    Upload { to: DevicePtr, from: Source, len: usize },
    Download { to: usize, from: DevicePtr, len: usize },
    Zero { at: DevicePtr, len: usize },
    Launch { kernel: usize, launch: ffi::Launch },
}

enum Entry {
    /// Work and its number.
    Work(u64, Work),
    /// The lane's next record, of this event.
    Reach(Event, Point),
    /// Nothing behind runs before the point is reached.
    After(Point),
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<Entry>,
    /// Records queued so far.
    recorded: u64,
    /// Records reached so far.
    reached: u64,
}

/// The emulated card as a driver.
pub struct EmulatedDriver {
    is_unified: bool,
    reads_host: bool,
    schedule: Schedule,
    dice: Dice,
    failing: Option<u64>,
    memory: Memory,
    pinned: Pinned,
    /// By [`Lane`].
    queues: [Queue; 2],
    events: Vec<Moment>,
    /// Names of the kernels that were looked up.
    kernels: BTreeMap<usize, String>,
    /// Copies, fills and launches queued so far.
    queued: u64,
    /// The first failure: it is that of every call after it, as on a card.
    failure: Option<(&'static str, String)>,
}

impl EmulatedDriver {
    /// A card with nothing in it.
    ///
    /// # Errors
    /// The kernels were compiled for another processor.
    pub fn new(options: EmulatedOptions) -> Result<EmulatedDriver, GpuError> {
        if !ffi::runs_here() {
            let reason = "the emulated card was built for processors with fused products".into();
            return Err(GpuError::Unavailable { reason });
        }
        let seed = if let Schedule::Random(seed) = options.schedule { seed } else { 0 };
        Ok(EmulatedDriver {
            is_unified: options.is_unified,
            reads_host: options.reads_host,
            schedule: options.schedule,
            dice: Dice::new(seed),
            failing: options.failing,
            memory: Memory::new(options.memory_bytes),
            pinned: Pinned::default(),
            queues: [Queue::default(), Queue::default()],
            events: Vec::new(),
            kernels: BTreeMap::new(),
            queued: 0,
            failure: None,
        })
    }

    fn check(&self) -> Result<(), GpuError> {
        match &self.failure {
            Some((action, reason)) => Err(GpuError::Failed { action, reason: reason.clone() }),
            None => Ok(()),
        }
    }

    fn fail(&mut self, action: &'static str, reason: String) -> Result<(), GpuError> {
        self.failure.get_or_insert((action, reason));
        self.check()
    }

    fn queue(&mut self, lane: Lane) -> &mut Queue {
        &mut self.queues[lane as usize]
    }

    /// Queues work and lets the schedule run what it likes.
    fn push(&mut self, lane: Lane, work: Work) -> Result<(), GpuError> {
        let number = self.queued;
        self.queued += 1;
        self.queue(lane).entries.push_back(Entry::Work(number, work));
        self.run_some()
    }

    fn run_some(&mut self) -> Result<(), GpuError> {
        match self.schedule {
            Schedule::Eager => self.run_all(),
            Schedule::Lazy => Ok(()),
            Schedule::Random(_) => {
                let steps = [0, 0, 1, 3, 9][self.dice.throw(5) as usize];
                for _ in 0..steps {
                    let lane = if self.dice.throw(2) == 0 { Lane::Compute } else { Lane::Copy };
                    self.step(lane)?;
                }
                Ok(())
            }
        }
    }

    fn run_all(&mut self) -> Result<(), GpuError> {
        while self.step(Lane::Compute)? || self.step(Lane::Copy)? {}
        Ok(())
    }

    fn is_reached(&self, point: Point) -> bool {
        self.queues[point.lane as usize].reached >= point.number
    }

    /// Runs the lane's next entry, unless it has none or has to wait; whether it did.
    fn step(&mut self, lane: Lane) -> Result<bool, GpuError> {
        if let Some(Entry::After(point)) = self.queue(lane).entries.front() {
            let point = *point;
            if !self.is_reached(point) {
                return Ok(false);
            }
        }
        match self.queue(lane).entries.pop_front() {
            None => return Ok(false),
            Some(Entry::After(_)) => {}
            Some(Entry::Reach(event, point)) => self.reach(event, point),
            Some(Entry::Work(number, work)) => self.run(number, work)?,
        }
        Ok(true)
    }

    fn reach(&mut self, event: Event, point: Point) {
        self.queue(point.lane).reached = point.number;
        let moment = &mut self.events[event.0];
        // An event that was recorded anew stands for the later point.
        if moment.point.lane == point.lane && moment.point.number == point.number {
            moment.at = Some(Instant::now());
        }
    }

    /// Runs one entry that the point waits for, be it of the other lane.
    fn advance(&mut self, mut point: Point) -> Result<(), GpuError> {
        // An order refers to what was recorded before it, so this ends.
        while let Some(Entry::After(before)) = self.queue(point.lane).entries.front() {
            let before = *before;
            if self.is_reached(before) {
                break;
            }
            point = before;
        }
        self.step(point.lane).map(|_| ())
    }

    fn run(&mut self, number: u64, work: Work) -> Result<(), GpuError> {
        let action = match &work {
            Work::Upload { .. } => "copy to the device",
            Work::Download { .. } => "copy from the device",
            Work::Zero { .. } => "fill memory",
            Work::Launch { .. } => "run a kernel",
        };
        if self.failing == Some(number) {
            return self.fail(action, format!("operation {number} was to fail"));
        }
        match self.perform(work) {
            Ok(()) => Ok(()),
            Err(reason) => self.fail(action, reason),
        }
    }

    fn perform(&mut self, work: Work) -> Result<(), String> {
        match work {
            Work::Upload { to, from, len } => {
                let from = match &from {
                    Source::Pinned(at) => std::ptr::with_exposed_provenance(*at),
                    Source::Copied(bytes) => bytes.as_ptr(),
                };
                let to = self.place(to, len)?;
                // SAFETY: the destination is allocated; the source is there by `Driver::upload`'s promise.
                unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
            }
            Work::Download { to, from, len } => {
                let to = std::ptr::with_exposed_provenance_mut(to);
                let from = self.place(from, len)?;
                // SAFETY: the source is allocated; the destination is there by `Driver::download`'s promise.
                unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
            }
            // SAFETY: the memory is allocated.
            Work::Zero { at, len } => unsafe { self.place(at, len)?.write_bytes(0, len) },
            Work::Launch { kernel, launch } => {
                // SAFETY: `Driver::launch`'s promise.
                let outcome = unsafe { launch.run() };
                outcome.map_err(|reason| format!("{}: {reason}", self.kernels[&kernel]))?;
                if let Some(what) = self.memory.overrun() {
                    return Err(format!("{} wrote beyond the {what}", self.kernels[&kernel]));
                }
            }
        }
        Ok(())
    }

    fn place(&self, at: DevicePtr, len: usize) -> Result<*mut u8, String> {
        self.memory.range(at, len).ok_or_else(|| format!("no memory has {len} bytes at {at:#x}"))
    }

    fn moment(&self, event: Event) -> Result<&Moment, GpuError> {
        let unknown = || GpuError::Failed { action: "find an event", reason: format!("{event:?}") };
        self.events.get(event.0).ok_or_else(unknown)
    }
}

impl Driver for EmulatedDriver {
    fn info(&mut self) -> Result<DeviceInfo, GpuError> {
        self.check()?;
        let (total_bytes, free_bytes) = (self.memory.capacity(), self.memory.free());
        Ok(DeviceInfo {
            name: "emulated card".into(),
            total_bytes,
            free_bytes,
            multiprocessors: MULTIPROCESSORS,
            is_unified: self.is_unified,
            reads_host: self.reads_host,
        })
    }

    fn alloc(&mut self, what: &'static str, bytes: u64) -> Result<DevicePtr, GpuError> {
        self.check()?;
        self.memory.alloc(what, bytes)
    }

    unsafe fn pin(&mut self, host: NonNull<u8>, len: usize) -> Result<(), GpuError> {
        self.check()?;
        if self.pinned.insert(host.as_ptr().expose_provenance(), len) {
            return Ok(());
        }
        self.fail("pin host memory", format!("some of the {len} bytes are pinned, or there are none"))
    }

    fn unpin(&mut self, host: NonNull<u8>) -> Result<(), GpuError> {
        self.check()?;
        self.run_all()?;
        if self.pinned.remove(host.as_ptr().expose_provenance()) {
            return Ok(());
        }
        self.fail("unpin host memory", "it is not pinned".into())
    }

    fn mapped(&mut self, host: *const u8, len: usize) -> Result<DevicePtr, GpuError> {
        self.check()?;
        let address = host.expose_provenance();
        if self.reads_host && self.pinned.holds(address, len) {
            return Ok(address as DevicePtr);
        }
        let reason = if self.reads_host { "are not pinned" } else { "are out of its reach" };
        let reason = format!("{len} bytes at {address:#x} {reason}");
        Err(GpuError::Failed { action: "read host memory where it lies", reason })
    }

    unsafe fn upload(
        &mut self,
        lane: Lane,
        to: DevicePtr,
        from: *const u8,
        len: usize,
    ) -> Result<(), GpuError> {
        self.check()?;
        let address = from.expose_provenance();
        let from = if self.pinned.holds(address, len) {
            Source::Pinned(address)
        } else {
            // SAFETY: the caller's promise.
            Source::Copied(unsafe { std::slice::from_raw_parts(from, len) }.to_vec())
        };
        self.push(lane, Work::Upload { to, from, len })
    }

    unsafe fn download(
        &mut self,
        lane: Lane,
        to: *mut u8,
        from: DevicePtr,
        len: usize,
    ) -> Result<(), GpuError> {
        self.check()?;
        self.push(lane, Work::Download { to: to.expose_provenance(), from, len })
    }

    unsafe fn zero(&mut self, lane: Lane, at: DevicePtr, len: usize) -> Result<(), GpuError> {
        self.check()?;
        self.push(lane, Work::Zero { at, len })
    }

    fn kernel(&mut self, name: &str) -> Result<KernelId, GpuError> {
        self.check()?;
        let kernel = ffi::find(name).ok_or_else(|| GpuError::NoKernel { name: name.into() })?;
        self.kernels.insert(kernel, name.into());
        Ok(KernelId(kernel))
    }

    unsafe fn launch(&mut self, kernel: KernelId, grid: Grid, args: &[Arg<'_>]) -> Result<(), GpuError> {
        self.check()?;
        let Some(name) = self.kernels.get(&kernel.0) else {
            return self.fail("launch a kernel", format!("{kernel:?} was not looked up"));
        };
        match ffi::Launch::new(kernel.0, grid, args) {
            Ok(launch) => self.push(Lane::Compute, Work::Launch { kernel: kernel.0, launch }),
            Err(reason) => {
                let reason = format!("{name}: {reason}");
                self.fail("launch a kernel", reason)
            }
        }
    }

    fn record(&mut self, lane: Lane, reuse: Option<Event>) -> Result<Event, GpuError> {
        self.check()?;
        let queue = self.queue(lane);
        queue.recorded += 1;
        let point = Point { lane, number: queue.recorded };
        let event = reuse.unwrap_or(Event(self.events.len()));
        let moment = Moment { point, at: None };
        if reuse.is_some() {
            self.moment(event)?;
            self.events[event.0] = moment;
        } else {
            self.events.push(moment);
        }
        self.queue(lane).entries.push_back(Entry::Reach(event, point));
        self.run_some()?;
        Ok(event)
    }

    fn order(&mut self, lane: Lane, after: Event) -> Result<(), GpuError> {
        self.check()?;
        let point = self.moment(after)?.point;
        self.queue(lane).entries.push_back(Entry::After(point));
        self.run_some()
    }

    /// Asking is progress, however late work is to run: one who asks until it is done comes to an end.
    fn is_done(&mut self, event: Event) -> Result<bool, GpuError> {
        self.check()?;
        let point = self.moment(event)?.point;
        if self.is_reached(point) {
            return Ok(true);
        }
        self.advance(point)?;
        Ok(false)
    }

    fn wait(&mut self, event: Event) -> Result<(), GpuError> {
        self.check()?;
        let point = self.moment(event)?.point;
        while !self.is_reached(point) {
            self.advance(point)?;
        }
        Ok(())
    }

    fn seconds_between(&mut self, first: Event, second: Event) -> Result<f64, GpuError> {
        self.check()?;
        let (first, second) = (self.moment(first)?, self.moment(second)?);
        match (first.at, second.at) {
            (Some(from), Some(to)) if first.point.lane == second.point.lane => {
                Ok(to.saturating_duration_since(from).as_secs_f64())
            }
            _ => Err(GpuError::Failed {
                action: "measure time",
                reason: "the events are of different lanes, or not reached yet".into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests;
