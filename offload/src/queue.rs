//! Two queues in front of a reader: demand goes at once, idle reads wait until nobody is waiting.
//!
//! Owns the order in which reads reach the reader (ALGORITHMS.md H.3: demand preempts, at the grain of
//! one read) and whose turn it is. It must not know experts' meaning, slots or policies: a read is
//! known by its tag, and all reads of one load share `tag / PARTS`.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use crate::error::OffloadError;
use crate::index::PARTS;
use crate::reader::{Completion, Read, Reader};

/// Idle reads in flight at most: enough to keep a disk busy between two looks at the queue, few enough
/// that a demand read soon has the disk to itself.
const IDLE_IN_FLIGHT: usize = 4;

/// Why an idle read is made; predictions go before warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    /// An expert that a later layer of this pass is expected to want.
    Prediction,
    /// An expert that was wanted often in an earlier run.
    WarmUp,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Demand,
    Idle,
}

/// A reader and what waits in front of it.
pub(crate) struct IoQueue {
    reader: Box<dyn Reader>,
    predictions: VecDeque<Read>,
    warm_up: VecDeque<Read>,
    in_flight: HashMap<u64, Class>,
    demand: usize, // of `in_flight`
    issued: Issued,
    busy_since: Option<Instant>,
    busy_s: f64,
}

/// Predictions that have reached the reader.
#[derive(Clone, Copy, Default)]
pub(crate) struct Issued {
    /// Loads of which at least one read was begun.
    pub(crate) loads: u64,
    /// Bytes of their extents.
    pub(crate) bytes: u64,
}

impl IoQueue {
    pub(crate) fn new(reader: Box<dyn Reader>) -> IoQueue {
        let (predictions, warm_up, in_flight) = (VecDeque::new(), VecDeque::new(), HashMap::new());
        IoQueue {
            reader,
            predictions,
            warm_up,
            in_flight,
            demand: 0,
            issued: Issued::default(),
            busy_since: None,
            busy_s: 0.0,
        }
    }

    pub(crate) fn reader_name(&self) -> &'static str {
        self.reader.name()
    }

    /// As the reader's.
    pub(crate) fn late_reads(&self) -> u64 {
        self.reader.late_reads()
    }

    /// Reads at the reader, whoever wants them.
    pub(crate) fn in_flight(&self) -> usize {
        self.reader.in_flight()
    }

    /// Predictions begun so far.
    pub(crate) fn issued(&self) -> Issued {
        self.issued
    }

    /// Seconds with a read under way, up to the last time there was none.
    pub(crate) fn busy_s(&self) -> f64 {
        self.busy_s + self.busy_since.map_or(0.0, |since| since.elapsed().as_secs_f64())
    }

    /// Reads somebody waits for.
    pub(crate) fn demand(&mut self, reads: Vec<Read>) -> Result<(), OffloadError> {
        self.send(reads, Class::Demand)
    }

    /// Reads to be made when there is nothing better to do.
    pub(crate) fn idle(&mut self, why: Idle, reads: Vec<Read>) -> Result<(), OffloadError> {
        match why {
            Idle::Prediction => self.predictions.extend(reads),
            Idle::WarmUp => self.warm_up.extend(reads),
        }
        self.pump()
    }

    /// Somebody now waits for the load: what of it is queued is sent at once.
    pub(crate) fn hurry(&mut self, load: usize) -> Result<(), OffloadError> {
        for part in 0..PARTS {
            if let Some(class @ Class::Idle) = self.in_flight.get_mut(&tag(load, part)) {
                *class = Class::Demand;
                self.demand += 1;
            }
        }
        if self.predictions.is_empty() && self.warm_up.is_empty() {
            return Ok(());
        }
        let is_prediction = self.predictions.iter().any(|read| load_of(read.tag) == load);
        let reads = self.take_back(load);
        // Its first part may have waited as well: it counts as begun now.
        if is_prediction && reads.iter().any(|read| read.tag == tag(load, 0)) {
            self.issued.loads += 1;
        }
        if is_prediction {
            self.issued.bytes += reads.iter().map(|read| read.extent.len).sum::<u64>();
        }
        self.send(reads, Class::Demand)
    }

    /// Takes the queued reads of a load back; those at the reader go on.
    pub(crate) fn take_back(&mut self, load: usize) -> Vec<Read> {
        let mut taken = Vec::new();
        for queue in [&mut self.predictions, &mut self.warm_up] {
            if queue.iter().any(|read| load_of(read.tag) == load) {
                let (mine, others) = queue.drain(..).partition(|read: &Read| load_of(read.tag) == load);
                *queue = others;
                taken.extend::<VecDeque<Read>>(mine);
            }
        }
        taken
    }

    /// The warm-up load that would be read last.
    pub(crate) fn last_warm_up(&self) -> Option<usize> {
        self.warm_up.back().map(|read| load_of(read.tag))
    }

    /// One finished read, if there is one.
    pub(crate) fn poll(&mut self) -> Result<Option<Completion>, OffloadError> {
        let done = self.reader.poll()?;
        if let Some(done) = &done {
            self.ended(done.tag)?;
        }
        Ok(done)
    }

    /// Blocks until a read has ended.
    pub(crate) fn wait(&mut self) -> Result<Completion, OffloadError> {
        let done = self.reader.wait()?;
        self.ended(done.tag)?;
        Ok(done)
    }

    fn ended(&mut self, tag: u64) -> Result<(), OffloadError> {
        if self.in_flight.remove(&tag) == Some(Class::Demand) {
            self.demand -= 1;
        }
        if self.in_flight.is_empty()
            && let Some(since) = self.busy_since.take()
        {
            self.busy_s += since.elapsed().as_secs_f64();
        }
        self.pump()
    }

    /// Sends idle reads while nobody waits for the disk.
    fn pump(&mut self) -> Result<(), OffloadError> {
        while self.demand == 0 && self.in_flight.len() < IDLE_IN_FLIGHT {
            let prediction = self.predictions.pop_front();
            if let Some(read) = &prediction {
                self.issued.loads += u64::from(read.tag.is_multiple_of(PARTS as u64));
                self.issued.bytes += read.extent.len;
            }
            let Some(read) = prediction.or_else(|| self.warm_up.pop_front()) else { break };
            self.send(vec![read], Class::Idle)?;
        }
        Ok(())
    }

    fn send(&mut self, reads: Vec<Read>, class: Class) -> Result<(), OffloadError> {
        if reads.is_empty() {
            return Ok(());
        }
        self.busy_since.get_or_insert_with(Instant::now);
        for read in &reads {
            self.in_flight.insert(read.tag, class);
        }
        if class == Class::Demand {
            self.demand += reads.len();
        }
        self.reader.submit(reads)
    }
}

/// The tag of one part of a load.
pub(crate) fn tag(load: usize, part: usize) -> u64 {
    (load * PARTS + part) as u64
}

/// The load and part of a tag.
pub(crate) fn split_tag(tag: u64) -> (usize, usize) {
    (load_of(tag), tag as usize % PARTS)
}

fn load_of(tag: u64) -> usize {
    tag as usize / PARTS
}
