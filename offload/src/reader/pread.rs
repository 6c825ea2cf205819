//! `pread`: positioned reads on a pool of threads, past the page cache where the file system allows.
//!
//! Owns the threads and their queue. Requests of several experts in flight are what fills an NVMe
//! queue (ALGORITHMS.md C), so reads are not split. It must not know how files are opened.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};

use super::source::{Source, notice};
use super::{Completion, Read, ReadError, Reader, ReaderOptions};
use crate::error::OffloadError;

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
        PreadReader::start(Source::open_all(paths, false)?, threads)
    }

    /// The same, as the registry's options say.
    ///
    /// # Errors
    /// As [`PreadReader::open`].
    pub(super) fn open_as(paths: &[PathBuf], options: &ReaderOptions) -> Result<PreadReader, OffloadError> {
        PreadReader::start(Source::open_all(paths, options.cached)?, options.threads)
    }

    /// Adds a line to what the user is told, before others.
    #[cfg(target_os = "linux")]
    pub(super) fn tell(&mut self, line: String) {
        self.notice =
            Some(self.notice.take().map_or_else(|| line.clone(), |first| format!("{line}; {first}")));
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
    Ok(Box::new(PreadReader::open_as(paths, options)?))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::super::source::tests::{check_all, pattern_file, refused};
    use super::*;

    #[test]
    fn buffered_reads_give_the_same_bytes_and_are_announced() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes = pattern_file(file.as_file_mut());
        let mut reader = PreadReader::start(vec![refused(file.path())], 2).unwrap();
        assert!(reader.notice().unwrap().contains(file.path().to_str().unwrap()));
        check_all(&mut reader, &bytes);
    }

    #[test]
    fn a_file_on_tmpfs_is_read_with_or_without_the_page_cache() {
        let Ok(mut file) = tempfile::NamedTempFile::new_in("/dev/shm") else {
            eprintln!("skipped: no /dev/shm to write to");
            return;
        };
        let bytes = pattern_file(file.as_file_mut());
        let mut reader = PreadReader::open(&[file.path().to_path_buf()], 2).unwrap();
        eprintln!("/dev/shm: {:?}", reader.notice());
        check_all(&mut reader, &bytes);
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
