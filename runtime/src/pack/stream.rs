//! Runs of bytes from files, in order, with reads ahead: the memory of a few buffers, whatever the size.
//!
//! Reads go past the page cache through `offload`'s reader and overlap with whatever the sink does.
//! Must not know what the bytes are.

use std::collections::VecDeque;
use std::path::PathBuf;

use drafthorse_offload::reader::PreadReader;
use drafthorse_offload::{AlignedBuf, Checksummer, Completion, Extent, PAGE_BYTES, Read, Reader};

use super::PackError;

/// Bytes of one read: large enough for any disk's full speed.
const CHUNK_BYTES: u64 = 1 << 20;
/// Reads in flight or waiting for their turn.
const CHUNKS_AHEAD: usize = 8;
/// Threads that read.
const READ_THREADS: usize = 4;

/// Some bytes of one extent.
pub struct Chunk<'a> {
    /// Number of the extent.
    pub extent: usize,
    /// The next bytes of it.
    pub bytes: &'a [u8],
    /// Whether they are its last.
    pub is_last: bool,
}

/// A chunk that is asked for.
#[derive(Clone, Copy)]
struct Cut {
    number: usize,
    extent: Extent,
    is_last: bool,
}

/// Hands the bytes of all extents to `sink`, in order, until it says to stop (`false`).
///
/// # Errors
/// The first read that fails; whatever the sink fails with.
pub fn read_in_order(
    files: &[PathBuf],
    extents: &[Extent],
    sink: &mut dyn FnMut(Chunk<'_>) -> Result<bool, PackError>,
) -> Result<(), PackError> {
    let mut reader = PreadReader::open(files, READ_THREADS)?;
    let mut cuts = extents.iter().enumerate().flat_map(|(number, extent)| cut(number, *extent));
    let mut free = (0..CHUNKS_AHEAD)
        .map(|_| AlignedBuf::new(CHUNK_BYTES as usize + 2 * PAGE_BYTES))
        .collect::<Result<Vec<_>, _>>()?;
    let mut waiting: VecDeque<(Cut, Option<Completion>)> = VecDeque::new();
    let mut first = 0; // tag of the first one waiting
    loop {
        while let Some(buf) = free.pop() {
            let Some(cut) = cuts.next() else { break };
            let tag = first + waiting.len() as u64;
            reader.submit(vec![Read { tag, extent: cut.extent, buf }])?;
            waiting.push_back((cut, None));
        }
        let Some((cut, done)) = waiting.pop_front() else { return Ok(()) };
        first += 1;
        let done = match done {
            Some(done) => done,
            None => wait_for(&mut reader, &mut waiting, first)?,
        };
        let bytes = &done.buf.as_slice()[done.data.map_err(PackError::Read)?];
        if !sink(Chunk { extent: cut.number, bytes, is_last: cut.is_last })? {
            return Ok(());
        }
        free.push(done.buf);
    }
}

/// The read in front of those `waiting`, whose first tag is `first`; others that end before are kept.
fn wait_for(
    reader: &mut PreadReader,
    waiting: &mut VecDeque<(Cut, Option<Completion>)>,
    first: u64,
) -> Result<Completion, PackError> {
    loop {
        let done = reader.wait()?;
        match done.tag.checked_sub(first) {
            None => return Ok(done),
            Some(place) => waiting[place as usize].1 = Some(done),
        }
    }
}

fn cut(number: usize, whole: Extent) -> impl Iterator<Item = Cut> {
    (0..whole.len).step_by(CHUNK_BYTES as usize).map(move |at| {
        let len = (whole.len - at).min(CHUNK_BYTES);
        let extent = Extent { file: whole.file, offset: whole.offset + at, len };
        Cut { number, extent, is_last: at + len == whole.len }
    })
}

/// Hands the checksum of every extent to `sink`, in order, until it says to stop; `progress` hears of
/// bytes.
///
/// # Errors
/// The first read that fails.
pub fn checksums_in_order(
    files: &[PathBuf],
    extents: &[Extent],
    progress: &mut dyn FnMut(u64),
    sink: &mut dyn FnMut(usize, u64) -> bool,
) -> Result<(), PackError> {
    let mut sum = Checksummer::new();
    read_in_order(files, extents, &mut |chunk| {
        sum.update(chunk.bytes);
        progress(chunk.bytes.len() as u64);
        if !chunk.is_last {
            return Ok(true);
        }
        let whole = std::mem::take(&mut sum);
        Ok(sink(chunk.extent, whole.finish()))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use drafthorse_offload::{ReadError, checksum};

    use super::*;

    fn file(len: usize) -> (tempfile::TempDir, Vec<PathBuf>, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let bytes: Vec<u8> = (0..len).map(|i| (i * 31 + i / 4096) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        (folder, vec![path], bytes)
    }

    fn extent(offset: usize, len: usize) -> Extent {
        Extent { file: 0, offset: offset as u64, len: len as u64 }
    }

    #[test]
    fn extents_of_any_size_arrive_whole_and_in_order() {
        let (_folder, files, bytes) = file(5 << 20);
        let chunk = CHUNK_BYTES as usize;
        let mut places = vec![(17, 3 * chunk + 5), (4 << 20, 1), (0, chunk), (1, chunk + 1)];
        places.extend((0..40).map(|i| (i * 1000, 999)));
        places.push((bytes.len() - 7, 7));
        let extents: Vec<Extent> = places.iter().map(|(offset, len)| extent(*offset, *len)).collect();
        let mut seen: Vec<Vec<u8>> = vec![Vec::new()];
        read_in_order(&files, &extents, &mut |chunk| {
            assert_eq!(chunk.extent, seen.len() - 1);
            seen.last_mut().unwrap().extend(chunk.bytes);
            if chunk.is_last {
                seen.push(Vec::new());
            }
            Ok(true)
        })
        .unwrap();
        assert_eq!(seen.pop(), Some(Vec::new()));
        assert_eq!(seen.len(), places.len());
        for ((offset, len), seen) in places.iter().zip(&seen) {
            assert!(*seen == bytes[*offset..][..*len], "{len} bytes at {offset}");
        }
        let (mut sums, mut total) = (Vec::new(), 0);
        checksums_in_order(&files, &extents, &mut |bytes| total += bytes, &mut |number, sum| {
            sums.push((number, sum));
            number < 3
        })
        .unwrap();
        let wanted = (0..4).map(|i| (i, checksum(&bytes[places[i].0..][..places[i].1])));
        assert_eq!(sums, wanted.collect::<Vec<_>>());
        assert_eq!(total as usize, places[..4].iter().map(|place| place.1).sum::<usize>());
    }

    #[test]
    fn a_read_past_the_end_is_an_error_when_its_turn_comes() {
        let (_folder, files, _) = file(5000);
        let mut seen = 0;
        let extents = [extent(0, 5000), extent(4000, 1001), extent(0, 5000)];
        let error = checksums_in_order(&files, &extents, &mut |_| (), &mut |_, _| {
            seen += 1;
            true
        });
        assert!(matches!(error, Err(PackError::Read(ReadError::Short { wanted: 1001, got: 1000, .. }))));
        assert_eq!(seen, 1);
    }
}
