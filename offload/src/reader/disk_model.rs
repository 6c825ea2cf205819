//! A disk as arithmetic: reads that each wait out a latency, then take turns on one bus of limited rate.
//!
//! Owns when a read begins and ends on such a disk. Pure: times go in and come out, as durations since
//! a moment the caller chose. It must not know clocks, files, buffers or readers.

use std::collections::VecDeque;
use std::time::Duration;

use super::disk_spec::DiskSpec;

impl DiskSpec {
    /// How long the bus is busy with `bytes`, rounded up: the rate is a limit.
    fn transfer(&self, bytes: u64) -> Duration {
        let rate = u128::from(self.bytes_per_s.max(1));
        let nanoseconds = (u128::from(bytes) * 1_000_000_000).div_ceil(rate);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// When a read is at the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stay {
    /// It gets one of its reader's places.
    pub(super) begin: Duration,
    /// Its last byte is there.
    pub(super) end: Duration,
}

/// What all readers of a disk share: bytes pass one read after another.
#[derive(Debug, Default)]
pub(super) struct Bus {
    free: Duration, // from when on nothing is promised
}

impl Bus {
    /// When `bytes` that may go from `ready` on have passed.
    fn pass(&mut self, spec: &DiskSpec, ready: Duration, bytes: u64) -> Duration {
        self.free = self.free.max(ready).saturating_add(spec.transfer(bytes));
        self.free
    }
}

/// One reader's queue at a disk: `depth` reads are there at once, the others wait their turn in order.
#[derive(Debug)]
pub(super) struct Places {
    depth: usize,
    ends: VecDeque<Duration>, // of the last `depth` reads, in order
}

impl Places {
    pub(super) fn new(depth: usize) -> Places {
        Places { depth: depth.max(1), ends: VecDeque::new() }
    }

    /// Queues a read at `now`. Reads of one queue end in the order in which they were queued, if `now`
    /// never goes back.
    pub(super) fn queue(&mut self, spec: &DiskSpec, bus: &mut Bus, now: Duration, bytes: u64) -> Stay {
        let is_full = self.ends.len() == self.depth;
        let freed = if is_full { self.ends.pop_front() } else { None };
        let begin = now.max(freed.unwrap_or_default());
        let end = bus.pass(spec, begin.saturating_add(spec.latency), bytes);
        self.ends.push_back(end);
        Stay { begin, end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const US: fn(u64) -> Duration = Duration::from_micros;

    /// 1 byte a nanosecond, 80 us.
    fn spec() -> DiskSpec {
        DiskSpec { bytes_per_s: 1_000_000_000, latency: US(80) }
    }

    /// Ends in us of `reads` reads of `kb` kilobytes, queued at 0.
    fn ends(depth: usize, reads: usize, kb: u64) -> Vec<u128> {
        let (mut places, mut bus) = (Places::new(depth), Bus::default());
        let mut end = || places.queue(&spec(), &mut bus, Duration::ZERO, kb * 1000).end;
        (0..reads).map(|_| end().as_micros()).collect()
    }

    #[test]
    fn one_read_takes_the_latency_and_its_bytes_over_the_rate() {
        assert_eq!(ends(1, 1, 20), [100]);
        assert_eq!(ends(32, 1, 0), [80]);
    }

    #[test]
    fn at_depth_one_every_read_waits_out_its_own_latency() {
        assert_eq!(ends(1, 4, 20), [100, 200, 300, 400]);
    }

    #[test]
    fn a_deep_queue_hides_all_latencies_but_the_first() {
        assert_eq!(ends(8, 5, 20), [100, 120, 140, 160, 180]);
    }

    #[test]
    fn a_shallow_queue_hides_as_many_latencies_as_it_is_deep() {
        // Two at once: the third begins when the first has ended, at 100.
        assert_eq!(ends(2, 6, 20), [100, 120, 200, 220, 300, 320]);
        // Where transfers take longer than the latency, two are enough for the full rate.
        assert_eq!(ends(2, 4, 100), [180, 280, 380, 480]);
    }

    #[test]
    fn a_full_queue_is_entered_when_the_first_has_left_it() {
        let (mut places, mut bus) = (Places::new(1), Bus::default());
        let mut at = |now| places.queue(&spec(), &mut bus, US(now), 20_000);
        assert_eq!(at(0), Stay { begin: US(0), end: US(100) });
        assert_eq!(at(10), Stay { begin: US(100), end: US(200) });
        assert_eq!(at(500), Stay { begin: US(500), end: US(600) }, "an idle disk owes nothing");
    }

    #[test]
    fn queues_share_the_rate_but_not_their_places() {
        let (mut one, mut other, mut bus) = (Places::new(1), Places::new(1), Bus::default());
        let first = one.queue(&spec(), &mut bus, US(0), 20_000);
        let second = other.queue(&spec(), &mut bus, US(0), 20_000);
        assert_eq!((first.end, second.end), (US(100), US(120)));
    }

    #[test]
    fn absurd_numbers_saturate() {
        let slow = DiskSpec { bytes_per_s: 0, latency: Duration::MAX };
        let (mut places, mut bus) = (Places::new(0), Bus::default());
        for _ in 0..3 {
            assert_eq!(places.queue(&slow, &mut bus, US(1), u64::MAX).end, Duration::MAX);
        }
    }

    proptest! {
        /// In no stretch of time do more bytes end than the rate allows it, whatever arrives when.
        #[test]
        fn the_rate_is_never_exceeded(
            reads in prop::collection::vec((0u64..200, 1u64..3_000_000), 1..60),
            depth in 1usize..9,
            mb_per_s in 1u64..8_000,
        ) {
            let spec = DiskSpec { bytes_per_s: mb_per_s * 1_000_000, latency: US(50) };
            let (mut places, mut bus, mut now) = (Places::new(depth), Bus::default(), Duration::ZERO);
            let mut ended: Vec<(Stay, u64)> = Vec::new();
            for (gap, bytes) in reads {
                now += US(gap);
                ended.push((places.queue(&spec, &mut bus, now, bytes), bytes));
                let Stay { begin, end } = ended[ended.len() - 1].0;
                prop_assert!(begin >= now && end >= begin + spec.latency + spec.transfer(bytes));
            }
            for (first, (from, _)) in ended.iter().enumerate() {
                let mut bytes = 0;
                for (to, more) in &ended[first + 1..] {
                    bytes += more;
                    prop_assert!(to.end >= from.end, "in order");
                    let allowed = (to.end - from.end).as_secs_f64() * spec.bytes_per_s as f64;
                    prop_assert!(bytes as f64 <= allowed + 1e-3, "{bytes} in room for {allowed}");
                }
            }
        }

        /// Never more than `depth` reads of one queue are at the disk.
        #[test]
        fn the_depth_is_never_exceeded(gaps in prop::collection::vec(0u64..300, 1..50), depth in 1usize..6) {
            let (mut places, mut bus, mut now) = (Places::new(depth), Bus::default(), Duration::ZERO);
            let mut stays = Vec::new();
            for gap in gaps {
                now += US(gap);
                stays.push(places.queue(&spec(), &mut bus, now, 30_000));
            }
            for stay in &stays {
                let there = stays.iter().filter(|other| other.begin <= stay.begin && stay.begin < other.end);
                prop_assert!(there.count() <= depth);
            }
        }
    }
}
