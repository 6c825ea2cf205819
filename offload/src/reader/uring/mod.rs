//! `io_uring`: reads through a kernel ring, without threads and past the page cache.
//!
//! Owns the ring, the order in which reads are begun and the bound on requests in the kernel; cutting
//! and putting together is in `job`, registered memory in `fixed`. A read is cut into pieces, so that a
//! few large ones fill the device's queue. What does not fit waits here and is begun by the next call.
//!
//! The ring is set up without `SINGLE_ISSUER` and what needs it: a reader may change threads.

mod fixed;
mod job;
mod slab;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};
use rustix::io::Errno;

use self::fixed::FixedBuffers;
use self::job::{Job, Piece};
use self::slab::Slab;
use super::source::{Source, notice};
use super::{Completion, DEPTH_MAX, DEPTH_MIN, Read, ReadError, Reader, ReaderOptions};
use crate::error::OffloadError;

/// Most bytes of one request.
const PIECE_BYTES: usize = 512 << 10;

/// How long to leave a kernel alone that has no memory for a request.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

const JOB: &str = "invariant: a job is kept until it is over";
const ASKED: &str = "invariant: the kernel answers each request once";

/// A kernel ring over the model's files.
pub struct UringReader {
    ring: IoUring,
    sources: Vec<Source>,
    buffers: FixedBuffers,
    depth: usize,
    jobs: Slab<Job>,
    queue: VecDeque<usize>, // jobs of which not every piece has been asked for, in order
    again: VecDeque<Asked>, // rests of pieces, which go first
    asked: Slab<Asked>,     // pieces in the kernel; their number is the request's user data
    done: VecDeque<Completion>,
    notice: Option<String>,
}

/// A piece of a job.
struct Asked {
    job: usize,
    piece: Piece,
}

impl UringReader {
    /// Opens `paths` (in the order of the extents' file numbers) and sets a ring up that keeps at most
    /// `options.depth` requests in the kernel (clamped to [`DEPTH_MIN`]..=[`DEPTH_MAX`]).
    ///
    /// # Errors
    /// A file that cannot be opened; [`OffloadError::Ring`] where the kernel refuses a ring.
    pub fn open(paths: &[PathBuf], options: &ReaderOptions) -> Result<UringReader, OffloadError> {
        let sources = Source::open_all(paths, options.cached)?;
        UringReader::start(sources, options.depth).map_err(|source| OffloadError::Ring { source })
    }

    fn start(sources: Vec<Source>, depth: usize) -> io::Result<UringReader> {
        let depth = depth.clamp(DEPTH_MIN, DEPTH_MAX);
        let ring = set_up(depth as u32)?;
        let files: Vec<_> = sources.iter().map(|source| source.file.as_raw_fd()).collect();
        ring.submitter().register_files(&files)?; // in the order of the extents' file numbers
        let buffers = FixedBuffers::new(&ring.submitter());
        let notice = notice(&sources);
        Ok(UringReader {
            ring,
            sources,
            buffers,
            depth,
            jobs: Slab::new(),
            queue: VecDeque::new(),
            again: VecDeque::new(),
            asked: Slab::new(),
            done: VecDeque::new(),
            notice,
        })
    }

    /// Queues a read, or ends it at once when it cannot be served.
    fn accept(&mut self, read: Read) {
        let files = self.sources.len();
        let checked = match self.sources.get(read.extent.file as usize) {
            Some(_) => super::room(&read.extent, &read.buf),
            None => Err(ReadError::NoSuchFile { file: read.extent.file, files }),
        };
        match checked {
            Ok(widened) => {
                let job = self.jobs.insert(Job::new(read, widened, PIECE_BYTES));
                self.queue.push_back(job);
            }
            Err(failure) => {
                let Read { tag, buf, .. } = read;
                self.done.push_back(Completion { tag, buf, data: Err(failure), read_s: 0.0 });
            }
        }
    }

    /// Takes answers and asks for more until there is nothing left to do without waiting; with `block`
    /// waits for a first completion.
    fn advance(&mut self, block: bool) -> Result<(), OffloadError> {
        // The ring's flag that answers wait for this thread to enter the kernel can be left behind by a
        // thread that has ended, so it is worth one entry per call and no more.
        let mut look = true;
        loop {
            self.take_answers();
            self.ask();
            let block = block && self.done.is_empty();
            let submission = self.ring.submission();
            let enter = block || !submission.is_empty() || (look && submission.taskrun());
            drop(submission);
            look = false;
            if !enter || !self.enter(block)? {
                return Ok(());
            }
        }
    }

    /// Fills the ring up to the depth.
    fn ask(&mut self) {
        while self.asked.len() < self.depth {
            let Some(asked) = self.again.pop_front().or_else(|| self.next_piece()) else { return };
            let entry = self.entry(&asked);
            let entry = entry.user_data(self.asked.insert(asked) as u64);
            // SAFETY: the entry's buffer belongs to a job, which is not given up before the kernel
            // has answered all of its pieces (`Job::is_over`, `drop`); its file lives in `sources`.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            pushed.expect("invariant: the ring has as many entries as there may be requests");
        }
    }

    fn next_piece(&mut self) -> Option<Asked> {
        loop {
            let number = *self.queue.front()?;
            match self.jobs.get_mut(number).expect(JOB).next_piece() {
                Some(piece) => return Some(Asked { job: number, piece }),
                None => self.queue.pop_front(),
            };
        }
    }

    /// The request for a piece.
    fn entry(&mut self, asked: &Asked) -> squeue::Entry {
        let Piece { start, end, .. } = asked.piece;
        let job = self.jobs.get_mut(asked.job).expect(JOB);
        let file = types::Fixed(u32::from(job.read.extent.file));
        let offset = job.widened.offset + start as u64;
        let bytes = (end - start) as u32; // a piece is at most `PIECE_BYTES`
        let fixed = self.buffers.entry(&self.ring.submitter(), &job.read.buf);
        // SAFETY: a piece lies in the widened range, for which the buffer has room (`super::room`).
        let to = unsafe { job.read.buf.start().add(start) }.as_ptr();
        match fixed {
            Some(entry) => opcode::ReadFixed::new(file, to, bytes, entry).offset(offset).build(),
            None => opcode::Read::new(file, to, bytes).offset(offset).build(),
        }
    }

    /// Takes every answer the kernel has given.
    fn take_answers(&mut self) {
        while let Some(answer) = self.next_answer() {
            let (number, result) = (answer.user_data() as usize, answer.result());
            let Asked { job: number, piece } = self.asked.remove(number).expect(ASKED);
            let job = self.jobs.get_mut(number).expect(JOB);
            if let Some(piece) = job.answer(piece, result) {
                self.again.push_back(Asked { job: number, piece });
            } else if job.is_over() {
                self.finish(number);
            }
        }
    }

    fn next_answer(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }

    fn finish(&mut self, number: usize) {
        // A job that failed half cut is still queued; its number is about to be given away.
        self.queue.retain(|queued| *queued != number);
        let job = self.jobs.remove(number).expect(JOB);
        let source = &self.sources[job.read.extent.file as usize];
        self.done.push_back(job.finish(source));
    }

    /// Hands requests to the kernel; with `block` waits for an answer. False when the kernel would
    /// have to be asked again and the caller does not want to wait.
    fn enter(&self, block: bool) -> Result<bool, OffloadError> {
        match self.ring.submit_and_wait(usize::from(block)) {
            Ok(_) => Ok(true),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR) => Ok(true),
                Some(Errno::AGAIN | Errno::BUSY) => {
                    if block {
                        std::thread::sleep(BUSY_PAUSE);
                    }
                    Ok(block)
                }
                _ => Err(OffloadError::Ring { source: error }),
            },
        }
    }
}

impl Reader for UringReader {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn submit(&mut self, reads: Vec<Read>) -> Result<(), OffloadError> {
        reads.into_iter().for_each(|read| self.accept(read));
        self.advance(false)
    }

    fn wait(&mut self) -> Result<Completion, OffloadError> {
        if self.in_flight() == 0 {
            return Err(OffloadError::NothingInFlight { reader: "io_uring" });
        }
        self.advance(true)?;
        self.done.pop_front().ok_or(OffloadError::ReaderStopped { reader: "io_uring" })
    }

    fn poll(&mut self) -> Result<Option<Completion>, OffloadError> {
        self.advance(false)?;
        Ok(self.done.pop_front())
    }

    fn in_flight(&self) -> usize {
        self.jobs.len() + self.done.len()
    }

    fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }
}

impl Drop for UringReader {
    fn drop(&mut self) {
        // Reads from a disk cannot be called back, so what was asked for is waited for.
        while self.asked.len() > 0 {
            self.take_answers();
            if self.asked.len() > 0 && self.enter(true).is_err() {
                // The kernel may still write to these buffers: better never freed than freed too early.
                std::mem::forget(std::mem::replace(&mut self.jobs, Slab::new()));
                return;
            }
        }
    }
}

/// The registry's way in.
pub(super) fn open(paths: &[PathBuf], options: &ReaderOptions) -> Result<Box<dyn Reader>, OffloadError> {
    Ok(Box::new(UringReader::open(paths, options)?))
}

/// A ring for `depth` requests, if this kernel can read through one.
fn set_up(depth: u32) -> io::Result<IoUring> {
    // Not being interrupted for every completion spares the kernels that compute meanwhile.
    let modern = IoUring::builder().setup_coop_taskrun().setup_taskrun_flag().build(depth);
    let ring = match modern {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => IoUring::new(depth)?,
        outcome => outcome?,
    };
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    match probe.is_supported(opcode::Read::CODE) {
        true => Ok(ring),
        false => Err(Errno::NOSYS.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::super::source::tests::{check_all, pattern_file, refused};
    use super::*;
    use crate::buf::Arena;
    use crate::index::Extent;

    /// A reader, unless this system has no rings: then the reason is printed.
    fn start(sources: Vec<Source>) -> Option<UringReader> {
        match UringReader::start(sources, 16) {
            Ok(reader) => Some(reader),
            Err(refusal) => {
                eprintln!("skipped: no io_uring: {refusal}");
                None
            }
        }
    }

    #[test]
    fn buffered_reads_give_the_same_bytes_and_are_announced() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes = pattern_file(file.as_file_mut());
        let Some(mut reader) = start(vec![refused(file.path())]) else { return };
        assert!(reader.notice().unwrap().contains(file.path().to_str().unwrap()));
        check_all(&mut reader, &bytes);
    }

    /// Reads the pattern file into the two halves of each of six slots, four times over.
    fn read_into_slots(reader: &mut UringReader, bytes: &[u8]) {
        let mut arena = Arena::new(6, 16384).unwrap();
        let mut buffers: Vec<_> = (0..12).map(|_| arena.take(8192).unwrap()).collect();
        for round in 0..4 {
            let extent = |tag: u64| Extent { file: 0, offset: tag * 4001 + round, len: 4090 };
            let read = |(tag, buf)| Read { tag, extent: extent(tag), buf };
            reader.submit((0..).zip(buffers.drain(..)).map(read).collect()).unwrap();
            while reader.in_flight() > 0 {
                let done = reader.wait().unwrap();
                let Extent { offset, len, .. } = extent(done.tag);
                let wanted = &bytes[offset as usize..][..len as usize];
                assert_eq!(&done.buf.as_slice()[done.data.unwrap()], wanted);
                buffers.push(done.buf);
            }
        }
    }

    #[test]
    fn a_slot_is_registered_once_when_it_is_first_read_into() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes = pattern_file(file.as_file_mut());
        let Some(mut reader) = start(Source::open_all(&[file.path().to_path_buf()], false).unwrap()) else {
            return;
        };
        check_all(&mut reader, &bytes);
        assert_eq!(reader.buffers.entries(), 0, "buffers of their own are not registered");
        read_into_slots(&mut reader, &bytes);
        match reader.buffers.refused() {
            true => eprintln!("skipped: this system locks no more memory"),
            false => assert_eq!(reader.buffers.entries(), 6),
        }
    }

    #[test]
    fn where_memory_cannot_be_registered_reads_are_plain() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes = pattern_file(file.as_file_mut());
        let Some(mut reader) = start(Source::open_all(&[file.path().to_path_buf()], false).unwrap()) else {
            return;
        };
        // Without a table every registration is refused, as it is without the right to lock memory.
        let _ = reader.ring.submitter().unregister_buffers();
        read_into_slots(&mut reader, &bytes);
        assert!(reader.buffers.refused() && reader.buffers.entries() == 0);
    }

    #[test]
    fn an_error_of_the_device_ends_its_read_and_no_other() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes = pattern_file(file.as_file_mut());
        let folder = tempfile::tempdir().unwrap();
        // A folder can be opened but not read: EISDIR stands in for EIO.
        let sources = [file.path(), folder.path()].map(|path| {
            let opened = std::fs::File::open(path);
            Source::choose(path, opened).unwrap()
        });
        let Some(mut reader) = start(sources.into()) else { return };
        let extent = Extent { file: 1, offset: 70_000, len: 9 };
        let buf = crate::buf::AlignedBuf::new(8192).unwrap();
        reader.submit(vec![Read { tag: 4, extent, buf }]).unwrap();
        let Err(ReadError::Io { file, offset, wanted, source }) = reader.wait().unwrap().data else {
            unreachable!("a folder has no bytes")
        };
        assert_eq!((file.as_path(), offset, wanted), (folder.path(), 70_000, 9));
        assert_eq!(Errno::from_io_error(&source), Some(Errno::ISDIR));
        check_all(&mut reader, &bytes);
    }

    #[test]
    fn the_depth_is_clamped() {
        for (asked, given) in [(0, DEPTH_MIN), (20, 20), (1000, DEPTH_MAX)] {
            let Ok(reader) = UringReader::start(Vec::new(), asked) else { return };
            assert_eq!(reader.depth, given);
        }
    }
}
