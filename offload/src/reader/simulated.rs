//! A slower disk than this machine's, simulated: a reader that holds back what another has read.
//!
//! Owns the holding back and the count of reads for which the real disk was too slow to play its part.
//! Times are [`super::disk_model`]'s. It must not know which reader is behind it, or what is read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::disk_model::{Bus, Places, Stay};
use super::disk_spec::DiskSpec;
use super::{Completion, Read, Reader, ReaderOptions};
use crate::error::OffloadError;

/// The time a simulated disk lives in.
pub trait DiskClock: Send + Sync {
    /// Time since some moment; MUST never go back.
    fn now(&self) -> Duration;
    /// Blocks until `now` is at least `time`, without using the CPU.
    fn wait_until(&self, time: Duration);
}

/// A disk that reads no faster than its [`DiskSpec`]. Clones are the same disk: every reader in front of
/// which it is put shares its rate.
#[derive(Clone)]
pub struct SimulatedDisk {
    shared: Arc<Shared>,
}

struct Shared {
    spec: DiskSpec,
    clock: Box<dyn DiskClock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bus: Bus,
    late: u64,
}

impl SimulatedDisk {
    /// A disk in real time.
    pub fn new(spec: DiskSpec) -> SimulatedDisk {
        SimulatedDisk::with_clock(spec, Box::new(RealTime(Instant::now())))
    }

    /// A disk in the time of `clock`.
    pub fn with_clock(spec: DiskSpec, clock: Box<dyn DiskClock>) -> SimulatedDisk {
        SimulatedDisk { shared: Arc::new(Shared { spec, clock, state: Mutex::default() }) }
    }

    /// What it can do.
    pub fn spec(&self) -> DiskSpec {
        self.shared.spec
    }

    /// `reader`, as if its files lay on this disk. Of its reads as many are at the disk at once as
    /// `options` allow the reader: for `pread` its threads, else the depth of its queue.
    pub fn in_front_of(&self, reader: Box<dyn Reader>, options: &ReaderOptions) -> Box<dyn Reader> {
        let depth = if reader.name() == "pread" { options.threads } else { options.depth };
        Box::new(SimulatedReader {
            inner: reader,
            disk: self.clone(),
            places: Places::new(depth),
            submitted: 0,
            out: BTreeMap::new(),
            held: BTreeMap::new(),
            looked: Duration::ZERO,
        })
    }

    fn now(&self) -> Duration {
        self.shared.clock.now()
    }
}

/// Disks are equal that can do the same.
impl PartialEq for SimulatedDisk {
    fn eq(&self, other: &SimulatedDisk) -> bool {
        self.spec() == other.spec()
    }
}

impl fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimulatedDisk").field(&self.shared.spec).finish()
    }
}

/// Reads by number in order of submission, in which they also end on the simulated disk.
struct SimulatedReader {
    inner: Box<dyn Reader>,
    disk: SimulatedDisk,
    places: Places,
    submitted: u64,
    out: BTreeMap<u64, Promise>, // at the inner reader, where the number is the tag
    held: BTreeMap<u64, (Stay, Completion)>, // read, and to be held back until the end of its stay
    looked: Duration,            // when the inner reader last had nothing finished
}

/// What was promised for a read.
#[derive(Clone, Copy)]
struct Promise {
    tag: u64,
    queued: Duration,
    stay: Stay,
}

impl SimulatedReader {
    /// Takes over what the inner reader has finished.
    fn look(&mut self) -> Result<(), OffloadError> {
        loop {
            let now = self.disk.now();
            match self.inner.poll()? {
                // It was not there when last looked for.
                Some(done) => self.hold(done, self.looked),
                None => {
                    self.looked = now;
                    return Ok(());
                }
            }
        }
    }

    /// Holds a read back that did not end before `not_before`.
    fn hold(&mut self, done: Completion, not_before: Duration) {
        let number = done.tag;
        let Promise { tag, queued, stay } =
            self.out.remove(&number).expect("invariant: a reader returns each read once");
        let real_s = done.read_s;
        if not_before > stay.end || real_s > (stay.end - queued).as_secs_f64() {
            self.disk.shared.state.lock().late += 1;
        }
        let read_s = real_s.max((stay.end - stay.begin).as_secs_f64());
        self.held.insert(number, (stay, Completion { tag, read_s, ..done }));
    }

    /// The held read that ends first, and whether one that ends before it is still being read.
    fn next(&self) -> Option<(Stay, bool)> {
        let (number, (stay, _)) = self.held.first_key_value()?;
        let is_overtaken = self.out.first_key_value().is_some_and(|(other, _)| other < number);
        Some((*stay, is_overtaken))
    }

    fn hand_out(&mut self) -> Option<Completion> {
        self.held.pop_first().map(|(_, (_, done))| done)
    }
}

impl Reader for SimulatedReader {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn submit(&mut self, mut reads: Vec<Read>) -> Result<(), OffloadError> {
        let mut state = self.disk.shared.state.lock();
        let queued = self.disk.now();
        for read in &mut reads {
            // What cannot be read costs its latency: no bytes will come.
            let bytes = super::room(&read.extent, &read.buf).map_or(0, |widened| widened.len as u64);
            let stay = self.places.queue(&self.disk.shared.spec, &mut state.bus, queued, bytes);
            self.out.insert(self.submitted, Promise { tag: read.tag, queued, stay });
            read.tag = self.submitted;
            self.submitted += 1;
        }
        drop(state);
        self.inner.submit(reads)
    }

    fn wait(&mut self) -> Result<Completion, OffloadError> {
        loop {
            self.look()?;
            match self.next() {
                Some((stay, is_overtaken)) if !is_overtaken || stay.end <= self.disk.now() => {
                    self.disk.shared.clock.wait_until(stay.end);
                    if let Some(done) = self.hand_out() {
                        return Ok(done);
                    }
                }
                // An error when nothing is in flight at all.
                _ => {
                    let done = self.inner.wait()?;
                    self.hold(done, self.disk.now());
                }
            }
        }
    }

    fn poll(&mut self) -> Result<Option<Completion>, OffloadError> {
        self.look()?;
        match self.next() {
            Some((stay, _)) if stay.end <= self.disk.now() => Ok(self.hand_out()),
            _ => Ok(None),
        }
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.held.len()
    }

    fn notice(&self) -> Option<&str> {
        self.inner.notice()
    }

    fn late_reads(&self) -> u64 {
        self.disk.shared.state.lock().late
    }
}

/// Time as it passes.
struct RealTime(Instant);

impl DiskClock for RealTime {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn wait_until(&self, time: Duration) {
        let mut timer = None;
        while let Some(left) = time.checked_sub(self.now()).filter(|left| !left.is_zero()) {
            timer.get_or_insert_with(PreciseTimer::new);
            std::thread::sleep(left);
        }
    }
}

/// Keeps this thread's sleeps short of Linux's usual 50 us of slack, which would be most of a read's latency.
struct PreciseTimer {
    #[cfg(target_os = "linux")]
    slack_ns: Option<std::num::NonZeroU64>,
}

impl PreciseTimer {
    #[cfg(target_os = "linux")]
    fn new() -> PreciseTimer {
        let slack_ns = rustix::thread::current_timer_slack().ok().and_then(std::num::NonZeroU64::new);
        // A refusal leaves sleeps as long as they were.
        let _ = rustix::thread::set_current_timer_slack(Some(std::num::NonZeroU64::MIN));
        PreciseTimer { slack_ns }
    }

    #[cfg(not(target_os = "linux"))]
    fn new() -> PreciseTimer {
        PreciseTimer {}
    }
}

#[cfg(target_os = "linux")]
impl Drop for PreciseTimer {
    fn drop(&mut self) {
        let _ = rustix::thread::set_current_timer_slack(self.slack_ns);
    }
}

#[cfg(test)]
#[path = "simulated_tests.rs"]
mod tests;
