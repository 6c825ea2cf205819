//! The file being written: whole pages in order, past the page cache where the file system allows.
//!
//! Owns one buffer, the position and the fallback to buffered writes (whose pages are dropped from the
//! cache once they are on the disk). Must not know pieces or journals.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use drafthorse_offload::{AlignedBuf, PAGE_BYTES};

use super::PackError;

/// Bytes of one write.
const WRITE_BYTES: usize = 4 << 20;

/// A file that grows from front to back; its head is written last.
pub struct Output {
    path: PathBuf,
    file: File,
    direct: bool,
    buf: AlignedBuf,
    start: u64, // where `buf` belongs; a multiple of PAGE_BYTES
    filled: usize,
}

impl Output {
    /// Opens the existing file to go on from `start`, a multiple of [`PAGE_BYTES`].
    pub fn open(path: &Path, start: u64) -> Result<Output, PackError> {
        let buf = AlignedBuf::new(WRITE_BYTES)?;
        let (file, direct) = match open(path, true) {
            Ok(file) => (file, true),
            Err(_) => (open(path, false).map_err(PackError::io("open", path))?, false),
        };
        Ok(Output { path: path.to_owned(), file, direct, buf, start, filled: 0 })
    }

    /// Where the next byte goes.
    pub fn position(&self) -> u64 {
        self.start + self.filled as u64
    }

    /// Adds bytes.
    pub fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = &mut self.buf.as_mut_slice()[self.filled..];
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == self.buf.len() {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Adds zeros up to `position`.
    pub fn pad_to(&mut self, position: u64) -> io::Result<()> {
        const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
        while let Some(left) = position.checked_sub(self.position()).filter(|left| *left > 0) {
            self.append(&ZEROS[..left.min(PAGE_BYTES as u64) as usize])?;
        }
        Ok(())
    }

    /// Up to where bytes have been handed to the system.
    pub fn written(&self) -> u64 {
        self.start
    }

    /// Brings everything added to the disk. The position must be a multiple of [`PAGE_BYTES`].
    pub fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        self.sync_written()
    }

    /// Brings everything [`written`](Output::written) to the disk.
    pub fn sync_written(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        if !self.direct {
            forget(&self.file);
        }
        Ok(())
    }

    /// Ends the file at the position, puts `head` in front and brings all to the disk.
    pub fn finish(&mut self, head: &[u8]) -> io::Result<()> {
        self.sync()?;
        self.file.set_len(self.position())?;
        let file = open(&self.path, false)?; // a head need not be whole pages in aligned memory
        file.write_all_at(head, 0)?;
        file.sync_all()
    }

    fn flush(&mut self) -> io::Result<()> {
        debug_assert!(self.filled.is_multiple_of(PAGE_BYTES), "parts are padded to whole pages");
        let mut done = 0;
        while done < self.filled {
            match self.file.write_at(&self.buf.as_slice()[done..self.filled], self.start + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                // A write that ends inside a page is said again from that page on.
                Ok(n) => done = if self.direct { whole_pages(done + n, self.filled) } else { done + n },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if self.direct && is_refusal(&error) => {
                    self.file = open(&self.path, false)?;
                    self.direct = false;
                }
                Err(error) => return Err(error),
            }
        }
        self.start += self.filled as u64;
        self.filled = 0;
        Ok(())
    }
}

/// `done`, rounded down to a page unless it is the end.
fn whole_pages(done: usize, end: usize) -> usize {
    if done == end { done } else { done - done % PAGE_BYTES }
}

fn open(path: &Path, direct: bool) -> io::Result<File> {
    let flags = if direct { direct_flag() } else { 0 };
    OpenOptions::new().write(true).custom_flags(flags).open(path)
}

#[cfg(target_os = "linux")]
fn direct_flag() -> i32 {
    rustix::fs::OFlags::DIRECT.bits() as i32
}

/// Drops a file's written pages from the page cache: a hint, which cannot fail usefully.
#[cfg(target_os = "linux")]
fn forget(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
fn forget(_file: &File) {}

#[cfg(not(target_os = "linux"))]
fn direct_flag() -> i32 {
    0
}

/// Whether the system refuses unbuffered writes (some file systems do so at the first write only).
fn is_refusal(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::INVAL, Errno::OPNOTSUPP].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn bytes_and_padding_stand_where_they_belong() {
        for direct in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("f");
            std::fs::write(&path, vec![7; 9_000_000]).unwrap();
            let mut output = Output::open(&path, 8192).unwrap();
            if !direct {
                (output.file, output.direct) = (open(&path, false).unwrap(), false);
            }
            let bytes: Vec<u8> = (0..5_000_000u32).map(|i| (i * 13 + i / 255) as u8).collect();
            output.append(&bytes).unwrap();
            output.pad_to(6_004_736).unwrap();
            output.sync().unwrap();
            output.append(b"end").unwrap();
            output.pad_to(6_008_832).unwrap();
            output.finish(b"head").unwrap();
            let written = std::fs::read(&path).unwrap();
            assert_eq!(written.len(), 6_008_832);
            assert_eq!(&written[..5], b"head\x07");
            assert!(written[8192..5_008_192] == bytes && written[4..8192] == vec![7; 8188]);
            assert!(written[5_008_192..6_004_736].iter().all(|byte| *byte == 0));
            assert_eq!(&written[6_004_736..6_004_740], b"end\0");
        }
    }

    #[test]
    fn a_partial_write_goes_on_from_a_whole_page() {
        assert_eq!(
            (whole_pages(5000, 8192), whole_pages(8192, 8192), whole_pages(100, 8192)),
            (4096, 8192, 0)
        );
    }
}
