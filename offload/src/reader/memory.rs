//! `memory`: files held in memory, with faults and reordering to order. The reader for tests.
//!
//! Single-threaded and deterministic: completions come in submission order and at once, or in an order
//! drawn from a seed, which also decides when a poll finds nothing yet. Faults are injected through a
//! shared handle, also after the reader is in a cache.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Completion, Read, ReadError, Reader, ReaderOptions};
use crate::error::OffloadError;

/// What a fault does to a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The read gives only this many of its bytes.
    Short {
        /// Bytes given.
        got: u64,
    },
    /// The device reports an I/O error.
    Eio,
    /// The read ends only after this many other reads have, while there are others.
    Delay {
        /// Other reads that go first.
        reads: usize,
    },
}

/// A fault, used up by the first read of exactly this file and offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// File number of the extent.
    pub file: u16,
    /// Offset of the extent.
    pub offset: u64,
    /// What happens.
    pub kind: FaultKind,
}

/// A handle on a reader's pending faults.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Vec<Fault>>>);

impl Faults {
    /// Arms one fault.
    pub fn add(&self, fault: Fault) {
        self.0.lock().push(fault);
    }

    /// Disarms all.
    pub fn clear(&self) {
        self.0.lock().clear();
    }

    /// Faults that no read has met yet.
    pub fn pending(&self) -> usize {
        self.0.lock().len()
    }

    fn take(&self, read: &Read) -> Option<FaultKind> {
        let mut faults = self.0.lock();
        let met = |f: &Fault| f.file == read.extent.file && f.offset == read.extent.offset;
        let at = faults.iter().position(met)?;
        Some(faults.remove(at).kind)
    }
}

/// Files in memory.
pub struct MemoryReader {
    files: Vec<(PathBuf, Vec<u8>)>,
    queue: VecDeque<Queued>,
    faults: Faults,
    order: Option<u64>, // state of the generator that picks the next completion
}

struct Queued {
    read: Read,
    fault: Option<FaultKind>,
    delay: usize,
}

impl MemoryReader {
    /// Serves `files`; the paths only name them in errors. With `order_seed` completions are shuffled,
    /// and half of all polls find nothing finished.
    pub fn new(files: Vec<(PathBuf, Vec<u8>)>, faults: Faults, order_seed: Option<u64>) -> MemoryReader {
        MemoryReader { files, queue: VecDeque::new(), faults, order: order_seed }
    }

    /// The queued read that ends next: one without delay if there is any.
    fn pick(&mut self) -> Option<Queued> {
        let least = self.queue.iter().map(|q| q.delay).min()?;
        let due: Vec<usize> = (0..self.queue.len()).filter(|i| self.queue[*i].delay == least).collect();
        let nth = match &mut self.order {
            Some(state) => (next_random(state) % due.len() as u64) as usize,
            None => 0,
        };
        let picked = self.queue.remove(due[nth]);
        self.queue.iter_mut().for_each(|q| q.delay = q.delay.saturating_sub(1));
        picked
    }

    fn copy(&self, queued: &mut Queued) -> Result<std::ops::Range<usize>, ReadError> {
        let Read { extent, buf, .. } = &mut queued.read;
        let (path, bytes) = self
            .files
            .get(extent.file as usize)
            .ok_or(ReadError::NoSuchFile { file: extent.file, files: self.files.len() })?;
        let widened = super::room(extent, buf)?;
        let (offset, wanted) = (extent.offset, extent.len);
        let short = |got| ReadError::Short { file: path.clone(), offset, wanted, got };
        match queued.fault {
            Some(FaultKind::Short { got }) => return Err(short(got)),
            Some(FaultKind::Eio) => {
                let source = std::io::Error::other("injected I/O error");
                return Err(ReadError::Io { file: path.clone(), offset, wanted, source });
            }
            Some(FaultKind::Delay { .. }) | None => {}
        }
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let there = &bytes[from..];
        let found = there.get(..widened.data.len()).ok_or_else(|| short(there.len() as u64))?;
        buf.as_mut_slice()[widened.data.clone()].copy_from_slice(found);
        Ok(widened.data)
    }
}

impl Reader for MemoryReader {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn submit(&mut self, reads: Vec<Read>) -> Result<(), OffloadError> {
        for read in reads {
            let fault = self.faults.take(&read);
            let delay = if let Some(FaultKind::Delay { reads }) = fault { reads } else { 0 };
            self.queue.push_back(Queued { read, fault, delay });
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<Completion, OffloadError> {
        let mut queued = self.pick().ok_or(OffloadError::NothingInFlight { reader: "memory" })?;
        let data = self.copy(&mut queued);
        Ok(Completion { tag: queued.read.tag, buf: queued.read.buf, data, read_s: 0.0 })
    }

    fn poll(&mut self) -> Result<Option<Completion>, OffloadError> {
        let late = self.order.as_mut().is_some_and(|state| next_random(state).is_multiple_of(2));
        if self.queue.is_empty() || late { Ok(None) } else { self.wait().map(Some) }
    }

    fn in_flight(&self) -> usize {
        self.queue.len()
    }

    fn notice(&self) -> Option<&str> {
        None
    }
}

/// Reads whole files into a memory reader.
pub(super) fn open(paths: &[PathBuf], _: &ReaderOptions) -> Result<Box<dyn Reader>, OffloadError> {
    let load = |path: &PathBuf| match std::fs::read(path) {
        Ok(bytes) => Ok((path.clone(), bytes)),
        Err(source) => Err(OffloadError::Open { path: path.clone(), source }),
    };
    let files = paths.iter().map(load).collect::<Result<_, _>>()?;
    Ok(Box::new(MemoryReader::new(files, Faults::default(), None)))
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::buf::AlignedBuf;
    use crate::index::Extent;

    /// Tags in completion order of ten reads, one of which is delayed by `delay` others.
    fn order(seed: Option<u64>, delay: Option<usize>) -> Vec<u64> {
        let faults = Faults::default();
        if let Some(reads) = delay {
            faults.add(Fault { file: 0, offset: 2, kind: FaultKind::Delay { reads } });
        }
        let mut reader = MemoryReader::new(vec![("m".into(), vec![7; 100])], faults.clone(), seed);
        let extent = |tag| Extent { file: 0, offset: tag, len: 5 };
        let read = |tag| Read { tag, extent: extent(tag), buf: AlignedBuf::new(1).unwrap() };
        reader.submit((0..10).map(read).collect()).unwrap();
        assert_eq!(faults.pending(), 0);
        (0..10).map(|_| reader.wait().unwrap().tag).collect()
    }

    #[test]
    fn completions_come_in_order_unless_a_seed_shuffles_them() {
        let plain: Vec<u64> = (0..10).collect();
        assert_eq!(order(None, None), plain);
        let mut shuffled = order(Some(5), None);
        assert_ne!(shuffled, plain);
        assert_eq!(shuffled, order(Some(5), None));
        shuffled.sort_unstable();
        assert_eq!(shuffled, plain);
    }

    #[test]
    fn polls_find_the_next_read_at_once_unless_a_seed_makes_them_late() {
        let mut late = [0, 0];
        for (late, seed) in late.iter_mut().zip([None, Some(5)]) {
            let mut reader = MemoryReader::new(vec![("m".into(), vec![7; 9])], Faults::default(), seed);
            let extent = Extent { file: 0, offset: 0, len: 5 };
            let read = |tag| Read { tag, extent, buf: AlignedBuf::new(1).unwrap() };
            reader.submit((0..20).map(read).collect()).unwrap();
            while reader.in_flight() > 0 {
                *late += usize::from(reader.poll().unwrap().is_none());
            }
        }
        assert_eq!(late[0], 0);
        assert!((5..60).contains(&late[1]), "{late:?}");
    }

    #[test]
    fn a_delayed_read_lets_others_pass() {
        assert_eq!(order(None, Some(4)), [0, 1, 3, 4, 2, 5, 6, 7, 8, 9]);
        assert_eq!(order(None, Some(99)).last(), Some(&2));
    }
}
