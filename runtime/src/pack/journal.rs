//! The journal beside a partial file: which model it belongs to, and the checksum of every piece that
//! has reached the disk.
//!
//! Text: one line that names the pack, then a line of 16 hex digits a piece. A torn last line is no
//! line. It is never trusted further than that: whoever resumes compares the checksums with the bytes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// Bytes of a piece's line.
const LINE_BYTES: u64 = 17;

/// An open journal, locked against other processes.
pub struct Journal {
    file: File,
    head_bytes: u64,
}

/// What an earlier run left.
#[derive(Debug, PartialEq, Eq)]
pub enum Left {
    /// No journal, or one that was never begun.
    Nothing,
    /// The journal of another pack, or no journal at all.
    Foreign,
    /// The checksums of the pieces written.
    Pieces(Vec<u64>),
}

impl Journal {
    /// Opens or creates the journal of the pack with this `fingerprint`, and says what it holds (at most
    /// `pieces_max` pieces). `None` when another process holds it.
    pub fn open(path: &Path, fingerprint: u64, pieces_max: usize) -> io::Result<Option<(Journal, Left)>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        if let Err(rustix::io::Errno::WOULDBLOCK) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            return Ok(None); // any other refusal: a file system without locks
        }
        let head = head(fingerprint);
        let mut journal = Journal { file, head_bytes: head.len() as u64 };
        let left = journal.read(&head, pieces_max)?;
        Ok(Some((journal, left)))
    }

    fn read(&mut self, head: &str, pieces_max: usize) -> io::Result<Left> {
        let mut bytes = Vec::new();
        let limit = self.head_bytes + LINE_BYTES * pieces_max as u64;
        (&self.file).take(limit).read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            return Ok(Left::Nothing);
        }
        let Some(lines) = bytes.strip_prefix(head.as_bytes()) else { return Ok(Left::Foreign) };
        let (lines, _) = lines.as_chunks::<{ LINE_BYTES as usize }>();
        Ok(Left::Pieces(lines.iter().map_while(piece).collect()))
    }

    /// Begins anew: nothing is written yet.
    pub fn begin(&mut self, fingerprint: u64) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(head(fingerprint).as_bytes())?;
        self.file.sync_all()
    }

    /// Forgets all but the first `pieces`.
    pub fn keep(&mut self, pieces: usize) -> io::Result<()> {
        let end = self.head_bytes + LINE_BYTES * pieces as u64;
        self.file.set_len(end)?;
        self.file.seek(SeekFrom::Start(end)).map(|_| ())
    }

    /// Adds pieces, whose bytes have reached the disk.
    pub fn append(&mut self, checksums: &[u64]) -> io::Result<()> {
        let lines: String = checksums.iter().map(|sum| format!("{sum:016x}\n")).collect();
        self.file.write_all(lines.as_bytes())?;
        self.file.sync_data()
    }
}

fn head(fingerprint: u64) -> String {
    format!("drafthorse pack journal 1 of {fingerprint:016x}\n")
}

fn piece(line: &[u8; LINE_BYTES as usize]) -> Option<u64> {
    let (digits, end) = line.split_at(LINE_BYTES as usize - 1);
    let digits = std::str::from_utf8(digits).ok().filter(|_| end == b"\n")?;
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn opened(path: &Path, fingerprint: u64) -> Left {
        Journal::open(path, fingerprint, 100).unwrap().unwrap().1
    }

    #[test]
    fn what_was_appended_is_found_again_by_its_own_pack_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j");
        let (mut journal, left) = Journal::open(&path, 7, 100).unwrap().unwrap();
        assert_eq!(left, Left::Nothing);
        assert!(Journal::open(&path, 7, 100).unwrap().is_none(), "it is locked");
        journal.begin(7).unwrap();
        journal.append(&[1, u64::MAX]).unwrap();
        journal.append(&[3]).unwrap();
        drop(journal);
        assert_eq!(opened(&path, 8), Left::Foreign);
        assert_eq!(opened(&path, 7), Left::Pieces(vec![1, u64::MAX, 3]));
        assert_eq!(Journal::open(&path, 7, 2).unwrap().unwrap().1, Left::Pieces(vec![1, u64::MAX]));
        let (mut journal, _) = Journal::open(&path, 7, 100).unwrap().unwrap();
        journal.keep(1).unwrap();
        journal.append(&[9]).unwrap();
        drop(journal);
        assert_eq!(opened(&path, 7), Left::Pieces(vec![1, 9]));
    }

    #[test]
    fn a_torn_line_ends_the_list() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j");
        for (text, pieces) in [("", 2), ("0123", 2), ("xyz3456789abcdef\n0000000000000004\n", 2)] {
            let lines = format!("{}{:016x}\n{:016x}\n{text}", head(5), 1, 2);
            std::fs::write(&path, lines).unwrap();
            assert_eq!(opened(&path, 5), Left::Pieces((1..=pieces).collect()), "{text}");
        }
        std::fs::write(&path, &head(5)[..10]).unwrap();
        assert_eq!(opened(&path, 5), Left::Foreign);
    }
}
