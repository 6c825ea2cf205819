//! The model's files as readers see them: opened past the page cache where the file system allows.
//!
//! Owns the fallback: where `O_DIRECT` is refused, reads of that file go through the page cache, which
//! is told to forget them, and [`notice`] says so. Where the page cache is asked for it keeps what was read. It must not
//! know who reads, or how many at a time.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, OFlags, fadvise};

use super::ReadError;
use crate::buf::{AlignedBuf, PAGE_BYTES};
use crate::error::OffloadError;
use crate::index::Widened;

/// One open file.
pub(super) struct Source {
    pub(super) file: File,
    path: PathBuf,
    page_cache: PageCache,
}

/// What reads of a file have to do with the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageCache {
    /// Nothing.
    Bypassed,
    /// They go through it, as the file system wants, and are forgotten.
    Imposed,
    /// They go through it and stay.
    Kept,
}

impl Source {
    /// Opens every file, in order; through the page cache if `cached`.
    pub(super) fn open_all(paths: &[PathBuf], cached: bool) -> Result<Vec<Source>, OffloadError> {
        let open = |path: &PathBuf| match cached {
            true => Source::new(path, open_buffered(path), PageCache::Kept),
            false => Source::choose(path, open_direct(path)),
        };
        paths.iter().map(open).collect()
    }

    /// The file, opened past the page cache if `direct` says that went well, else through it.
    pub(super) fn choose(path: &Path, direct: io::Result<File>) -> Result<Source, OffloadError> {
        match direct {
            Err(refusal) if is_refusal(&refusal) => {
                Source::new(path, open_buffered(path), PageCache::Imposed)
            }
            outcome => Source::new(path, outcome, PageCache::Bypassed),
        }
    }

    fn new(path: &Path, file: io::Result<File>, page_cache: PageCache) -> Result<Source, OffloadError> {
        let path = path.to_path_buf();
        match file {
            Ok(file) => Ok(Source { file, path, page_cache }),
            Err(source) => Err(OffloadError::Open { path, source }),
        }
    }

    /// Fills `buf` with the widened range, as far as the file goes; an error unless all of
    /// `widened.data` is there.
    pub(super) fn read(&self, widened: &Widened, buf: &mut AlignedBuf) -> Result<(), ReadError> {
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
        self.forget(widened);
        Ok(())
    }

    /// To be called after a read: gives back the page cache it used against its will.
    pub(super) fn forget(&self, widened: &Widened) {
        if self.page_cache == PageCache::Imposed {
            let len = std::num::NonZeroU64::new(widened.len as u64);
            let _ = fadvise(&self.file, widened.offset, len, Advice::DontNeed); // a hint: cannot fail usefully
        }
    }

    /// The error of a read that met the end of the file after `got` bytes of the widened range.
    pub(super) fn short(&self, widened: &Widened, got: usize) -> ReadError {
        ReadError::Short {
            file: self.path.clone(),
            offset: widened.offset + widened.data.start as u64,
            wanted: widened.data.len() as u64,
            got: got.saturating_sub(widened.data.start) as u64,
        }
    }

    /// The error of a read that the system refused.
    pub(super) fn failed(&self, widened: &Widened, source: io::Error) -> ReadError {
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

fn open_buffered(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    // Read-ahead would fill the page cache with experts nobody asked for; a refusal is harmless.
    let _ = fadvise(&file, 0, None, Advice::Random);
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

/// One line for the user where the page cache has to be used.
pub(super) fn notice(sources: &[Source]) -> Option<String> {
    let mut buffered = sources.iter().filter(|source| source.page_cache == PageCache::Imposed);
    let path = buffered.next()?.path.display();
    let others = match buffered.count() {
        0 => String::new(),
        others => format!(" (and {others} more)"),
    };
    Some(format!(
        "{path}{others}: the file system refuses unbuffered reads; experts are read through the page cache"
    ))
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::index::Extent;
    use crate::reader::{Read, Reader};

    /// A file of recognisable bytes, and the bytes.
    pub(crate) fn pattern_file(file: &mut File) -> Vec<u8> {
        let bytes: Vec<u8> = (0..50_001).map(|i| (i * 7 + i / 256) as u8).collect();
        io::Write::write_all(file, &bytes).unwrap();
        bytes
    }

    /// A file whose file system is said to refuse unbuffered reads.
    pub(crate) fn refused(path: &Path) -> Source {
        let refusal = io::Error::from_raw_os_error(rustix::io::Errno::INVAL.raw_os_error());
        Source::choose(path, Err(refusal)).unwrap()
    }

    /// Reads parts of the file [`pattern_file`] made, and past its end.
    pub(crate) fn check_all(reader: &mut dyn Reader, bytes: &[u8]) {
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
    fn only_a_refusal_of_unbuffered_reads_falls_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let code = |errno: rustix::io::Errno| Err(io::Error::from_raw_os_error(errno.raw_os_error()));
        let refused = Source::choose(file.path(), code(rustix::io::Errno::INVAL)).unwrap();
        assert_eq!(refused.page_cache, PageCache::Imposed);
        for errno in [rustix::io::Errno::NOENT, rustix::io::Errno::IO, rustix::io::Errno::ACCESS] {
            assert!(matches!(Source::choose(file.path(), code(errno)), Err(OffloadError::Open { .. })));
        }
        let direct = Source::choose(file.path(), File::open(file.path())).unwrap();
        assert_eq!(direct.page_cache, PageCache::Bypassed);
        assert!(matches!(
            Source::open_all(&[PathBuf::from("/nowhere")], true),
            Err(OffloadError::Open { .. })
        ));
    }

    #[test]
    fn the_notice_names_one_file_and_counts_the_others() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let direct = || Source::choose(file.path(), File::open(file.path())).unwrap();
        assert_eq!(notice(&[direct()]), None);
        let told = notice(&[direct(), refused(file.path()), refused(file.path())]).unwrap();
        assert!(told.starts_with(&format!("{} (and 1 more): ", file.path().display())), "{told}");
    }
}
