//! Bytes from files into owned buffers: the [`Reader`] trait, its vocabulary and the registry.
//!
//! A reader takes a batch of reads, each with the buffer to fill, and hands the buffers back one by
//! one as they complete, in any order. It must not know experts, slots or policies.

mod memory;
mod pread;

use std::ops::Range;
use std::path::PathBuf;

pub use memory::{Fault, FaultKind, Faults, MemoryReader};
pub use pread::{PREAD_THREADS, PreadReader};

use crate::buf::AlignedBuf;
use crate::error::OffloadError;
use crate::index::{Extent, Widened};

/// One read: fill `buf` with the page-widened `extent`.
#[derive(Debug)]
pub struct Read {
    /// Comes back in the completion; means nothing to the reader.
    pub tag: u64,
    /// What is wanted.
    pub extent: Extent,
    /// Where to; MUST hold the widened extent ([`Extent::widened`]).
    pub buf: AlignedBuf,
}

/// The end of one read, successful or not. The buffer always comes back.
#[derive(Debug)]
pub struct Completion {
    /// The tag of the read.
    pub tag: u64,
    /// The buffer of the read.
    pub buf: AlignedBuf,
    /// Where in the buffer the extent's bytes lie.
    pub data: Result<Range<usize>, ReadError>,
    /// Service time in seconds: from when the read was begun (not queued) to its end.
    pub read_s: f64,
}

/// Why one read failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file ended early, or the device gave less than was asked.
    #[error("{}: short read at offset {offset}: wanted {wanted} bytes, got {got}", file.display())]
    Short {
        /// The file.
        file: PathBuf,
        /// First byte wanted.
        offset: u64,
        /// Bytes wanted from there.
        wanted: u64,
        /// Bytes there were.
        got: u64,
    },
    /// The system refused the read.
    #[error("{}: read of {wanted} bytes at offset {offset}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// First byte wanted.
        offset: u64,
        /// Bytes wanted from there.
        wanted: u64,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The bytes are not those that were packed: the disk or a copy damaged them.
    #[error(
        "{}: the bytes at offset {offset} have checksum {got:016x}, the file's index says {wanted:016x}: \
         the file is damaged",
        file.display()
    )]
    Checksum {
        /// The file.
        file: PathBuf,
        /// First byte of the part.
        offset: u64,
        /// The index's checksum ([`crate::checksum`]).
        wanted: u64,
        /// The checksum of what was read.
        got: u64,
    },
    /// The extent names a file the reader was not given.
    #[error("file {file} is not among the {files} files of the model")]
    NoSuchFile {
        /// File number asked for.
        file: u16,
        /// Files given at open.
        files: usize,
    },
    /// The buffer cannot hold the widened extent, or the extent overflows.
    #[error(
        "{len} bytes at offset {offset}, widened to whole pages, do not fit a buffer of {capacity} bytes"
    )]
    TooLarge {
        /// First byte wanted.
        offset: u64,
        /// Bytes wanted.
        len: u64,
        /// Bytes of the buffer.
        capacity: usize,
    },
}

/// A source of bytes.
///
/// Contract, tested for every implementation in `tests/conformance.rs`:
/// - every submitted read MUST come back through `wait` exactly once, with its buffer, even when it
///   failed; completions MAY come in any order;
/// - reads SHOULD be begun in the order they were submitted;
/// - fewer bytes than the extent's length MUST be [`ReadError::Short`], never `Ok`;
/// - after a failed read the reader MUST go on serving others;
/// - `submit` MUST NOT wait for the device; it fails only when the reader can serve nothing any more;
/// - dropping a reader MUST end its threads.
pub trait Reader: Send {
    /// The registry name.
    fn name(&self) -> &'static str;
    /// Queues a batch.
    fn submit(&mut self, reads: Vec<Read>) -> Result<(), OffloadError>;
    /// Blocks until one read has ended. An error when nothing is in flight.
    fn wait(&mut self) -> Result<Completion, OffloadError>;
    /// Reads submitted and not yet returned by `wait`.
    fn in_flight(&self) -> usize;
    /// One line for the user when the reader had to do something other than asked, decided at open.
    fn notice(&self) -> Option<&str>;
}

/// Opens files for reading experts.
pub type OpenFn = fn(&[PathBuf]) -> Result<Box<dyn Reader>, OffloadError>;

/// A reader that can be chosen by name.
pub struct ReaderKind {
    /// Name in configs.
    pub name: &'static str,
    /// One line of help.
    pub summary: &'static str,
    /// Opens the model's files, in the order of [`Extent::file`].
    pub open: OpenFn,
}

/// Every reader. A new one is a file here and a line there.
pub const READERS: &[ReaderKind] = &[
    ReaderKind { name: "pread", summary: "unbuffered reads on a pool of threads", open: pread::open },
    ReaderKind { name: "memory", summary: "whole files held in memory: for tests", open: memory::open },
];

/// The widened extent, if `buf` can hold it.
fn room(extent: &Extent, buf: &AlignedBuf) -> Result<Widened, ReadError> {
    let Extent { offset, len, .. } = *extent;
    extent.widened().filter(|widened| widened.len <= buf.len()).ok_or(ReadError::TooLarge {
        offset,
        len,
        capacity: buf.len(),
    })
}
