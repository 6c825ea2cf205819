//! `pread`: positioned reads on a pool of threads, past the page cache where the file system allows.
//!
//! Owns the open files, the threads and the fallback: where `O_DIRECT` is refused, reads go through
//! the page cache, which is told to forget them, and [`Reader::notice`] says so. Requests of several
//! experts in flight are what fills an NVMe queue (ALGORITHMS.md C), so reads are not split.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use rustix::fs::{Advice, OFlags, fadvise};

use super::{Completion, Read, ReadError, Reader, ReaderOptions};
use crate::buf::{AlignedBuf, PAGE_BYTES};
use crate::error::OffloadError;
use crate::index::Widened;

/// Threads a pool has unless told otherwise.
pub const PREAD_THREADS: usize = 4;

/// A pool of reading threads over the model's files.
pub struct PreadReader {
    jobs: Option<Sender<Read>>, // None once dropping
    queue: Receiver<Read>,      // the threads' end, to empty on drop
    done: Receiver<Completion>,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
    notice: Option<String>,
}

impl PreadReader {
    /// Opens `paths` (in the order of the extents' file numbers) and starts `threads` threads.
    ///
    /// # Errors
    /// A file that cannot be opened, a thread that cannot be started.
    pub fn open(paths: &[PathBuf], threads: usize) -> Result<PreadReader, OffloadError> {
        let sources = paths.iter().map(|path| Source::open(path)).collect::<Result<Vec<_>, _>>()?;
        PreadReader::start(sources, threads)
    }

    fn start(sources: Vec<Source>, threads: usize) -> Result<PreadReader, OffloadError> {
        let notice = notice(&sources);
        let sources: Arc<[Source]> = sources.into();
        let (jobs, queue) = unbounded();
        let (finished, done) = unbounded();
        let mut reader =
            PreadReader { jobs: Some(jobs), queue, done, threads: Vec::new(), in_flight: 0, notice };
        for number in 0..threads.max(1) {
            let (sources, queue, finished) = (Arc::clone(&sources), reader.queue.clone(), finished.clone());
            let thread = std::thread::Builder::new()
                .name(format!("expert-read-{number}"))
                .spawn(move || serve(&sources, &queue, &finished))
                .map_err(|source| OffloadError::Thread { source })?;
            reader.threads.push(thread);
        }
        Ok(reader)
    }
}

impl Reader for PreadReader {
    fn name(&self) -> &'static str {
        "pread"
    }

    fn submit(&mut self, reads: Vec<Read>) -> Result<(), OffloadError> {
        let stopped = OffloadError::ReaderStopped { reader: "pread" };
        let Some(jobs) = &self.jobs else { return Err(stopped) };
        for read in reads {
            if jobs.send(read).is_err() {
                return Err(stopped);
            }
            self.in_flight += 1;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<Completion, OffloadError> {
        if self.in_flight == 0 {
            return Err(OffloadError::NothingInFlight { reader: "pread" });
        }
        let done = self.done.recv().map_err(|_| OffloadError::ReaderStopped { reader: "pread" })?;
        self.in_flight -= 1;
        Ok(done)
    }

    fn poll(&mut self) -> Result<Option<Completion>, OffloadError> {
        match self.done.try_recv() {
            Ok(done) => {
                self.in_flight -= 1;
                Ok(Some(done))
            }
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(OffloadError::ReaderStopped { reader: "pread" }),
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }
}

impl Drop for PreadReader {
    fn drop(&mut self) {
        self.jobs = None; // threads end when the queue is closed and empty
        self.queue.try_iter().for_each(drop);
        for thread in self.threads.drain(..) {
            // A panic of a thread has been reported on stderr by the runtime; there is nothing to add.
            let _ = thread.join();
        }
    }
}

/// The registry's way in.
pub(super) fn open(paths: &[PathBuf], options: &ReaderOptions) -> Result<Box<dyn Reader>, OffloadError> {
    Ok(Box::new(PreadReader::open(paths, options.threads)?))
}

/// What one thread does until the queue is closed.
fn serve(sources: &[Source], queue: &Receiver<Read>, finished: &Sender<Completion>) {
    for Read { tag, extent, mut buf } in queue {
        let began = Instant::now();
        let data = match sources.get(extent.file as usize) {
            Some(source) => super::room(&extent, &buf)
                .and_then(|widened| source.read(&widened, &mut buf).map(|()| widened.data)),
            None => Err(ReadError::NoSuchFile { file: extent.file, files: sources.len() }),
        };
        let completion = Completion { tag, buf, data, read_s: began.elapsed().as_secs_f64() };
        if finished.send(completion).is_err() {
            return;
        }
    }
}

/// One open file.
struct Source {
    file: File,
    path: PathBuf,
    direct: bool,
}

impl Source {
    fn open(path: &Path) -> Result<Source, OffloadError> {
        let failed = |source| OffloadError::Open { path: path.to_path_buf(), source };
        match open_direct(path) {
            Ok(file) => Ok(Source { file, path: path.to_path_buf(), direct: true }),
            Err(refusal) if is_refusal(&refusal) => Source::buffered(path).map_err(failed),
            Err(source) => Err(failed(source)),
        }
    }

    fn buffered(path: &Path) -> io::Result<Source> {
        let file = File::open(path)?;
        // Read-ahead would fill the page cache with experts nobody asked for; a refusal is harmless.
        let _ = fadvise(&file, 0, None, Advice::Random);
        Ok(Source { file, path: path.to_path_buf(), direct: false })
    }

    /// Fills `buf` with the widened range, as far as the file goes; an error unless all of
    /// `widened.data` is there.
    fn read(&self, widened: &Widened, buf: &mut AlignedBuf) -> Result<(), ReadError> {
        let buf = &mut buf.as_mut_slice()[..widened.len];
        let mut got = 0; // bytes of `buf` filled
        while got < widened.data.end {
            // A read must start on a page, also one that goes on after a partial one.
            let start = got - got % PAGE_BYTES;
            match self.file.read_at(&mut buf[start..], widened.offset + start as u64) {
                Ok(n) if start + n > got => got = start + n,
                Ok(_) => return Err(self.short(widened, got)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed(widened, source)),
            }
        }
        if !self.direct {
            let len = std::num::NonZeroU64::new(widened.len as u64);
            let _ = fadvise(&self.file, widened.offset, len, Advice::DontNeed); // a hint: cannot fail usefully
        }
        Ok(())
    }

    fn short(&self, widened: &Widened, got: usize) -> ReadError {
        ReadError::Short {
            file: self.path.clone(),
            offset: widened.offset + widened.data.start as u64,
            wanted: widened.data.len() as u64,
            got: got.saturating_sub(widened.data.start) as u64,
        }
    }

    fn failed(&self, widened: &Widened, source: io::Error) -> ReadError {
        let offset = widened.offset + widened.data.start as u64;
        ReadError::Io { file: self.path.clone(), offset, wanted: widened.data.len() as u64, source }
    }
}

/// Opens for unbuffered reads and tries one: some file systems refuse only then.
#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECT.bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let mut page = AlignedBuf::new(PAGE_BYTES).map_err(io::Error::other)?;
    file.read_at(page.as_mut_slice(), 0)?;
    Ok(file)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_path: &Path) -> io::Result<File> {
    Err(io::Error::from_raw_os_error(rustix::io::Errno::INVAL.raw_os_error()))
}

fn is_refusal(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::INVAL, Errno::OPNOTSUPP].iter().any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}

fn notice(sources: &[Source]) -> Option<String> {
    let first = sources.iter().find(|source| !source.direct)?;
    let path = first.path.display();
    Some(format!("{path}: the file system refuses unbuffered reads; experts are read through the page cache"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::index::Extent;

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
    }

    fn check_all(reader: &mut PreadReader, bytes: &[u8]) {
        let extents = [(0, 1), (4095, 2), (3, 20_000), (bytes.len() as u64 - 5001, 5001)];
        for (offset, len) in extents {
            let extent = Extent { file: 0, offset, len };
            let buf = AlignedBuf::new(extent.widened().unwrap().len).unwrap();
            reader.submit(vec![Read { tag: 0, extent, buf }]).unwrap();
            let done = reader.wait().unwrap();
            let wanted = &bytes[offset as usize..][..len as usize];
            assert_eq!(&done.buf.as_slice()[done.data.unwrap()], wanted);
        }
        let extent = Extent { file: 0, offset: bytes.len() as u64 - 4, len: 5 };
        let buf = AlignedBuf::new(extent.widened().unwrap().len).unwrap();
        reader.submit(vec![Read { tag: 0, extent, buf }]).unwrap();
        assert!(matches!(reader.wait().unwrap().data, Err(ReadError::Short { got: 4, wanted: 5, .. })));
    }

    #[test]
    fn buffered_reads_give_the_same_bytes_and_are_announced() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes = pattern(50_001);
        io::Write::write_all(&mut file, &bytes).unwrap();
        let mut reader = PreadReader::start(vec![Source::buffered(file.path()).unwrap()], 2).unwrap();
        assert!(reader.notice().unwrap().contains(file.path().to_str().unwrap()));
        check_all(&mut reader, &bytes);
    }

    #[test]
    fn a_file_on_tmpfs_is_read_with_or_without_the_page_cache() {
        let Ok(mut file) = tempfile::NamedTempFile::new_in("/dev/shm") else {
            eprintln!("skipped: no /dev/shm to write to");
            return;
        };
        let bytes = pattern(50_001);
        io::Write::write_all(&mut file, &bytes).unwrap();
        let mut reader = PreadReader::open(&[file.path().to_path_buf()], 2).unwrap();
        eprintln!("/dev/shm: {:?}", reader.notice());
        check_all(&mut reader, &bytes);
    }

    #[test]
    fn only_a_refusal_of_unbuffered_reads_falls_back() {
        let code = |errno: rustix::io::Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        assert!(is_refusal(&code(rustix::io::Errno::INVAL)));
        assert!(!is_refusal(&code(rustix::io::Errno::NOENT)) && !is_refusal(&code(rustix::io::Errno::IO)));
    }

    #[test]
    fn dropping_the_reader_ends_its_threads() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = PreadReader::open(&[file.path().to_path_buf()], 3).unwrap();
        let done = reader.done.clone();
        drop(reader);
        // Every thread held a sender: only when all have ended is the channel closed.
        assert!(done.recv().is_err());
    }
}
