//! Bytes from files into owned buffers: the [`Reader`] trait, its vocabulary and the registry.
//!
//! A reader takes a batch of reads, each with the buffer to fill, and hands the buffers back one by
//! one as they complete, in any order. It must not know experts, slots or policies.

mod auto;
mod disk_model;
mod disk_spec;
mod memory;
mod pread;
mod simulated;
mod source;
#[cfg(target_os = "linux")]
mod uring;

use std::ops::Range;
use std::path::PathBuf;

pub use disk_spec::DiskSpec;
pub use memory::{Fault, FaultKind, Faults, MemoryReader};
pub use pread::{PREAD_THREADS, PreadReader};
pub use simulated::{DiskClock, SimulatedDisk};
#[cfg(target_os = "linux")]
pub use uring::UringReader;

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
/// Contract, tested for every implementation in `tests/readers.rs`:
/// - every submitted read MUST come back through `wait` or `poll` exactly once, with its buffer, even
///   when it failed; completions MAY come in any order;
/// - reads SHOULD be begun in the order they were submitted;
/// - fewer bytes than the extent's length MUST be [`ReadError::Short`], never `Ok`;
/// - after a failed read the reader MUST go on serving others;
/// - `submit` and `poll` MUST NOT wait for the device; they fail only when the reader can serve nothing
///   any more;
/// - reads beyond what the device takes at once MAY stay queued until the next call of any of the three;
/// - it MAY be used from one thread after another;
/// - dropping a reader MUST end its threads, and MUST NOT release a buffer that is still written to.
pub trait Reader: Send {
    /// The registry name of what reads, so never `auto`.
    fn name(&self) -> &'static str;
    /// Queues a batch.
    fn submit(&mut self, reads: Vec<Read>) -> Result<(), OffloadError>;
    /// Blocks until one read has ended. An error when nothing is in flight.
    fn wait(&mut self) -> Result<Completion, OffloadError>;
    /// A read that has ended, if there is one; never blocks. It MAY notice an end late: `None` means
    /// only that asking again, or `wait`, is worth it while something is in flight.
    fn poll(&mut self) -> Result<Option<Completion>, OffloadError>;
    /// Reads submitted and not yet returned by `wait` or `poll`.
    fn in_flight(&self) -> usize;
    /// One line for the user when the reader had to do something other than asked, decided at open.
    fn notice(&self) -> Option<&str>;
    /// Reads so far that took longer than on the disk this reader simulates ([`SimulatedDisk`]), by all
    /// readers of that disk.
    fn late_reads(&self) -> u64 {
        0
    }
}

/// What readers can be told; each takes what concerns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaderOptions {
    /// Threads of `pread`, at least 1.
    pub threads: usize,
    /// Requests `io_uring` keeps in the kernel at once, at least [`DEPTH_MIN`], at most [`DEPTH_MAX`].
    pub depth: usize,
    /// Reads go through the page cache, which keeps them: in front of a simulated disk, where the real one must not be
    /// seen. Without, they go past it where the file system allows.
    pub cached: bool,
}

/// Least depth: below, large requests alone no longer keep a fast NVMe busy.
pub const DEPTH_MIN: usize = 16;
/// Greatest depth: beyond, requests only wait in the device and delay the one that is needed first.
pub const DEPTH_MAX: usize = 64;

impl Default for ReaderOptions {
    fn default() -> ReaderOptions {
        ReaderOptions { threads: PREAD_THREADS, depth: 32, cached: false }
    }
}

/// Opens files for reading experts.
pub type OpenFn = fn(&[PathBuf], &ReaderOptions) -> Result<Box<dyn Reader>, OffloadError>;

/// A reader that can be chosen by name.
pub struct ReaderKind {
    /// Name in configs.
    pub name: &'static str,
    /// One line of help.
    pub summary: &'static str,
    /// Opens the model's files, in the order of [`Extent::file`].
    pub open: OpenFn,
}

/// Every reader, the default first. A new one is a file here and a line there.
pub const READERS: &[ReaderKind] = &[
    ReaderKind { name: "auto", summary: "io_uring where the system has it, else pread", open: auto::open },
    #[cfg(target_os = "linux")]
    ReaderKind { name: "io_uring", summary: "unbuffered reads through a kernel ring", open: uring::open },
    ReaderKind { name: "pread", summary: "unbuffered reads on a pool of threads", open: pread::open },
    ReaderKind { name: "memory", summary: "whole files held in memory: for tests", open: memory::open },
];

/// Opens `paths` (in the order of [`Extent::file`]) with the reader called `name`.
///
/// # Errors
/// An unknown name, a file that cannot be opened, a system that refuses what the reader needs.
pub fn open_reader(
    name: &str,
    paths: &[PathBuf],
    options: &ReaderOptions,
) -> Result<Box<dyn Reader>, OffloadError> {
    match READERS.iter().find(|kind| kind.name == name) {
        Some(kind) => (kind.open)(paths, options),
        None => Err(OffloadError::NoSuchReader { name: name.into() }),
    }
}

/// The widened extent, if `buf` can hold it.
fn room(extent: &Extent, buf: &AlignedBuf) -> Result<Widened, ReadError> {
    let Extent { offset, len, .. } = *extent;
    extent.widened().filter(|widened| widened.len <= buf.len()).ok_or(ReadError::TooLarge {
        offset,
        len,
        capacity: buf.len(),
    })
}
