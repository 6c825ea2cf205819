//! The simulated disk in a time of its own: when reads come back, in which order, and what is counted.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::super::{Fault, FaultKind, Faults, MemoryReader, ReadError};
use super::*;
use crate::buf::AlignedBuf;
use crate::index::Extent;

const US: fn(u64) -> Duration = Duration::from_micros;
/// Reads of one page are of this length on the bus.
const PAGE: u64 = 4096;

/// Time that passes only when somebody waits, or a test says so.
#[derive(Clone, Default)]
struct FakeTime(Arc<Mutex<Duration>>);

impl FakeTime {
    fn pass(&self, by: Duration) {
        *self.0.lock() += by;
    }
}

impl DiskClock for FakeTime {
    fn now(&self) -> Duration {
        *self.0.lock()
    }

    fn wait_until(&self, time: Duration) {
        let mut now = self.0.lock();
        *now = now.max(time);
    }
}

/// A page in 10 us, after 80 us.
const SPEC: DiskSpec = DiskSpec { bytes_per_s: PAGE * 100_000, latency: Duration::from_micros(80) };

struct World {
    time: FakeTime,
    disk: SimulatedDisk,
    faults: Faults,
}

impl World {
    fn new() -> World {
        let time = FakeTime::default();
        let disk = SimulatedDisk::with_clock(SPEC, Box::new(time.clone()));
        World { time, disk, faults: Faults::default() }
    }

    /// A reader of this disk over a file of bytes `i % 251`.
    fn reader(&self, depth: usize, seed: Option<u64>) -> Box<dyn Reader> {
        let bytes: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        let inner = MemoryReader::new(vec![("m".into(), bytes)], self.faults.clone(), seed);
        self.disk.in_front_of(Box::new(inner), &ReaderOptions { threads: 99, depth, cached: false })
    }

    fn us(&self) -> u128 {
        self.time.now().as_micros()
    }
}

/// The `n`th page.
fn page(tag: u64, n: u64) -> Read {
    let extent = Extent { file: 0, offset: n * PAGE, len: 100 };
    Read { tag, extent, buf: AlignedBuf::new(PAGE as usize).unwrap() }
}

fn check_bytes(done: &Completion, n: u64) {
    let bytes = &done.buf.as_slice()[done.data.as_ref().unwrap().clone()];
    assert!(bytes.iter().zip(0..).all(|(byte, i)| u64::from(*byte) == (n * PAGE + i) % 251), "page {n}");
}

#[test]
fn waits_return_reads_at_the_modelled_times_in_order_with_their_tags_and_bytes() {
    for (depth, ends) in [(1, [90, 180, 270, 360]), (2, [90, 100, 180, 190]), (8, [90, 100, 110, 120])] {
        for seed in [None, Some(3), Some(4)] {
            let world = World::new();
            let mut reader = world.reader(depth, seed);
            reader.submit((0..4).map(|n| page(70 + n, n)).collect()).unwrap();
            for (n, end) in (0..4).zip(ends) {
                assert_eq!(reader.in_flight() as u64, 4 - n);
                let done = reader.wait().unwrap();
                assert_eq!((done.tag, world.us()), (70 + n, end), "depth {depth}");
                check_bytes(&done, n);
            }
            assert_eq!((reader.in_flight(), reader.late_reads()), (0, 0));
        }
    }
}

#[test]
fn a_poll_finds_nothing_before_its_time_and_never_waits() {
    let world = World::new();
    let mut reader = world.reader(8, None);
    reader.submit(vec![page(1, 0), page(2, 1)]).unwrap();
    assert!(reader.poll().unwrap().is_none());
    world.time.pass(US(89));
    assert!(reader.poll().unwrap().is_none());
    world.time.pass(US(1));
    assert_eq!(reader.poll().unwrap().unwrap().tag, 1);
    assert!(reader.poll().unwrap().is_none());
    assert_eq!((reader.in_flight(), world.us()), (1, 90), "polls took no time");
    world.time.pass(US(10));
    assert_eq!(reader.poll().unwrap().unwrap().tag, 2);
    assert_eq!(reader.late_reads(), 0);
}

#[test]
fn the_service_time_is_that_of_the_simulated_disk() {
    let world = World::new();
    let mut reader = world.reader(1, None);
    reader.submit(vec![page(0, 0), page(0, 1)]).unwrap();
    for _ in 0..2 {
        // The second waits for its turn outside of the disk.
        assert!((reader.wait().unwrap().read_s - 90e-6).abs() < 1e-12);
    }
}

#[test]
fn readers_of_one_disk_share_its_rate_also_through_clones() {
    let world = World::new();
    let mut one = world.reader(8, None);
    let copy = World { disk: world.disk.clone(), time: world.time.clone(), faults: Faults::default() };
    let mut other = copy.reader(8, None);
    one.submit((0..10).map(|n| page(n, n)).collect()).unwrap();
    other.submit(vec![page(0, 0)]).unwrap();
    other.wait().unwrap();
    // Eight pages of `one` by 160, the two that had to wait for a place by 190.
    assert_eq!(world.us(), 200);
    (0..10).for_each(|_| assert!(one.wait().is_ok()));
    assert_eq!(world.us(), 200);
}

#[test]
fn failures_pass_with_their_buffers_and_the_reader_goes_on() {
    let world = World::new();
    let mut reader = world.reader(8, None);
    world.faults.add(Fault { file: 0, offset: PAGE, kind: FaultKind::Eio });
    world.faults.add(Fault { file: 0, offset: 2 * PAGE, kind: FaultKind::Short { got: 7 } });
    let mut reads: Vec<Read> = (0..4).map(|n| page(n, n)).collect();
    reads.push(Read {
        tag: 4,
        extent: Extent { file: 0, offset: 5, len: u64::MAX / 2 },
        buf: AlignedBuf::new(4096).unwrap(),
    });
    reader.submit(reads).unwrap();
    let mut done = (0..5).map(|_| reader.wait().unwrap()).collect::<Vec<_>>();
    assert!(done.iter().all(|done| done.buf.len() == 4096));
    done.sort_by_key(|done| done.tag);
    assert!(matches!(done[1].data, Err(ReadError::Io { .. })));
    assert!(matches!(done[2].data, Err(ReadError::Short { got: 7, .. })));
    assert!(matches!(done[4].data, Err(ReadError::TooLarge { .. })));
    [0, 3].into_iter().for_each(|n| check_bytes(&done[n], n as u64));
    assert_eq!(world.us(), 120, "a read that cannot be takes no rate");
    assert!(matches!(reader.wait(), Err(OffloadError::NothingInFlight { .. })));
}

/// A disk that takes its time for every read, in the same fake time.
struct Slow {
    inner: Box<dyn Reader>,
    time: FakeTime,
    takes: Duration,
    says: bool, // in its completions, as far as it knows
    ready: Vec<Duration>,
}

impl Reader for Slow {
    fn name(&self) -> &'static str {
        "memory"
    }
    fn submit(&mut self, reads: Vec<Read>) -> Result<(), OffloadError> {
        self.ready.extend(reads.iter().map(|_| self.time.now() + self.takes));
        self.inner.submit(reads)
    }
    fn wait(&mut self) -> Result<Completion, OffloadError> {
        self.time.wait_until(self.ready.remove(0));
        let read_s = if self.says { self.takes.as_secs_f64() } else { 0.0 };
        Ok(Completion { read_s, ..self.inner.wait()? })
    }
    fn poll(&mut self) -> Result<Option<Completion>, OffloadError> {
        if self.ready.first().is_none_or(|ready| *ready > self.time.now()) {
            return Ok(None);
        }
        self.wait().map(Some)
    }
    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }
    fn notice(&self) -> Option<&str> {
        Some("slow")
    }
}

/// A reader behind which reads take `takes`.
fn slow(world: &World, takes: Duration, says: bool) -> Box<dyn Reader> {
    let inner = MemoryReader::new(vec![("m".into(), vec![0; 100_000])], Faults::default(), None);
    let slow = Slow { inner: Box::new(inner), time: world.time.clone(), takes, says, ready: Vec::new() };
    world.disk.in_front_of(Box::new(slow), &ReaderOptions::default())
}

#[test]
fn a_real_disk_that_is_slower_is_counted() {
    for (takes, late) in [(60, 0), (90, 0), (95, 1), (105, 2), (500, 3)] {
        let world = World::new();
        let mut reader = slow(&world, US(takes), true);
        reader.submit((0..3).map(|n| page(n, n)).collect()).unwrap();
        (0..3).for_each(|n| assert_eq!(reader.wait().unwrap().tag, n));
        assert_eq!(reader.late_reads(), late, "{takes} us");
        assert_eq!(world.us(), u128::from(takes.max(110)));
    }
}

#[test]
fn a_reader_that_does_not_know_its_times_is_watched() {
    for (takes, late) in [(90, 0), (95, 1), (105, 2), (500, 3)] {
        let world = World::new();
        let mut reader = slow(&world, US(takes), false);
        reader.submit((0..3).map(|n| page(n, n)).collect()).unwrap();
        let mut returned = 0;
        while returned < 3 {
            returned += u64::from(reader.poll().unwrap().is_some());
            world.time.pass(US(1));
        }
        assert_eq!(reader.late_reads(), late, "polling, {takes} us");
        let mut reader = slow(&world, US(takes), false);
        reader.submit(vec![page(0, 0)]).unwrap();
        reader.wait().unwrap();
        assert_eq!(reader.late_reads() - late, u64::from(takes > 90), "waiting, {takes} us");
    }
}

#[test]
fn nobody_is_late_whose_caller_looks_late() {
    let world = World::new();
    let mut reader = slow(&world, US(10), false);
    reader.submit((0..3).map(|n| page(n, n)).collect()).unwrap();
    assert!(reader.poll().unwrap().is_none());
    world.time.pass(US(5000)); // the caller computes
    (0..3).for_each(|n| assert_eq!(reader.poll().unwrap().unwrap().tag, n));
    assert_eq!(reader.late_reads(), 0);
    assert_eq!((reader.name(), reader.notice()), ("memory", Some("slow")));
}

#[test]
fn real_time_is_waited_out_and_the_threads_timer_left_as_it_was() {
    #[cfg(target_os = "linux")]
    let slack = rustix::thread::current_timer_slack().unwrap();
    let clock = RealTime(Instant::now());
    for us in [0, 300, 900] {
        clock.wait_until(US(us));
        assert!(clock.now() >= US(us));
    }
    #[cfg(target_os = "linux")]
    assert_eq!(rustix::thread::current_timer_slack().unwrap(), slack);
}
