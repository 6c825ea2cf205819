//! `OUT.part` and its journal: a packed file on its way, which an interrupted run leaves for the next.
//!
//! Owns the rule of what may be gone on with (this very pack, and only pieces whose bytes still have the
//! checksums of the journal), the checkpoints, and the last step in which the file gets its name.
//! Nothing half-written ever bears that name, and a partial file does not begin with GGUF's magic.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use drafthorse_offload::{Extent, ReadError};

use super::PackError;
use super::journal::{Journal, Left};
use super::layout::Layout;
use super::output::Output;
use super::stream::checksums_in_order;
use crate::api::Progress;
use crate::units::format_bytes;

/// A packed file on its way.
pub struct Partial<'a> {
    layout: &'a Layout,
    paths: Paths,
    output: Output,
    journal: Journal,
    checksums: Vec<u64>, // of the pieces written
    journaled: usize,    // of those, how many the journal names
}

/// Where the file is written, and under which names until it is whole.
struct Paths {
    out: PathBuf,
    part: PathBuf,
    journal: PathBuf,
}

impl Paths {
    fn new(out: &Path) -> Result<Paths, PackError> {
        let no_file = || PackError::io("write", out)(io::Error::other("the path names no file"));
        let name = out.file_name().filter(|_| !out.is_dir()).ok_or_else(no_file)?;
        let beside = |suffix: &str| {
            let mut name = name.to_owned();
            name.push(suffix);
            out.with_file_name(name)
        };
        Ok(Paths { out: out.to_owned(), part: beside(".part"), journal: beside(".part.journal") })
    }

    fn folder(&self) -> &Path {
        let folder = self.out.parent().filter(|folder| !folder.as_os_str().is_empty());
        folder.unwrap_or(Path::new("."))
    }

    fn sync_folder(&self) -> Result<(), PackError> {
        let synced = File::open(self.folder()).and_then(|folder| folder.sync_all());
        synced.map_err(PackError::io("sync", self.folder()))
    }
}

impl<'a> Partial<'a> {
    /// Begins the file, or goes on with what an earlier run left of the very same.
    ///
    /// # Errors
    /// Too little room on the disk (nothing is written then), a part of another pack, another process.
    pub fn open(
        out: &Path,
        layout: &'a Layout,
        progress: &mut dyn Progress,
    ) -> Result<Partial<'a>, PackError> {
        let paths = Paths::new(out)?;
        check_room(&paths, layout)?;
        let opened = Journal::open(&paths.journal, layout.fingerprint, layout.pieces.len());
        let opened = opened.map_err(PackError::io("open", &paths.journal))?;
        let (mut journal, left) = opened.ok_or_else(|| PackError::Busy { part: paths.part.clone() })?;
        let checksums = match left {
            _ if !paths.part.exists() => begin(&paths, &mut journal, layout.fingerprint)?,
            Left::Pieces(checksums) => still_there(&paths, layout, checksums, progress)?,
            left => {
                if left == Left::Nothing {
                    let _ = fs::remove_file(&paths.journal); // it is the one just created
                }
                return Err(PackError::ForeignPart { part: paths.part });
            }
        };
        let start = layout.start(checksums.len());
        journal.keep(checksums.len()).map_err(PackError::io("write", &paths.journal))?;
        let output = Output::open(&paths.part, start)?;
        Ok(Partial { layout, output, journal, journaled: checksums.len(), checksums, paths })
    }

    /// Pieces that are written.
    pub fn pieces(&self) -> usize {
        self.checksums.len()
    }

    /// Adds bytes of the next piece.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        // Does nothing once the piece has begun: the position is past its start then.
        let padded = self.output.pad_to(self.layout.start(self.checksums.len()));
        padded.and_then(|()| self.output.append(bytes)).map_err(|error| self.failed(error))
    }

    /// Ends the piece.
    pub fn end_piece(&mut self, checksum: u64) {
        self.checksums.push(checksum);
    }

    /// Brings all ended pieces to the disk and says so in the journal.
    pub fn checkpoint(&mut self) -> Result<(), PackError> {
        let padded = self.output.pad_to(self.layout.start(self.checksums.len()));
        padded.and_then(|()| self.output.sync()).map_err(|error| self.failed(error))?;
        self.journal_pieces(self.checksums.len()).map_err(|error| self.failed(error))
    }

    /// Checksums of all pieces.
    pub fn checksums(&self) -> &[u64] {
        &self.checksums
    }

    /// Puts the header in front and gives the file its name.
    pub fn publish(mut self, header: &[u8]) -> Result<(), PackError> {
        self.output.finish(header).map_err(|error| self.failed(error))?;
        let Paths { out, part, journal } = &self.paths;
        fs::rename(part, out).map_err(PackError::io("finish", out))?;
        self.paths.sync_folder()?;
        fs::remove_file(journal).map_err(PackError::io("remove", journal))
    }

    /// Removes what was written.
    pub fn discard(self) -> Result<(), PackError> {
        fs::remove_file(&self.paths.part).map_err(PackError::io("remove", &self.paths.part))?;
        fs::remove_file(&self.paths.journal).map_err(PackError::io("remove", &self.paths.journal))
    }

    fn journal_pieces(&mut self, pieces: usize) -> io::Result<()> {
        self.journal.append(&self.checksums[self.journaled..pieces])?;
        self.journaled = pieces;
        Ok(())
    }

    /// A failed write; on a full disk, what has reached it is noted for the next run.
    fn failed(&mut self, error: io::Error) -> PackError {
        let part = &self.paths.part;
        if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return PackError::io("write", part)(error);
        }
        let (part, file_bytes) = (part.clone(), self.layout.file_bytes);
        // The journal may not fit either: then the last checkpoint stands.
        let _ = self.note_written();
        PackError::OutOfSpace { part, written_bytes: self.layout.start(self.journaled), file_bytes }
    }

    /// Journals the ended pieces that the system has taken whole.
    fn note_written(&mut self) -> io::Result<()> {
        self.output.sync_written()?;
        let written = self.output.written();
        let is_missing = |piece: &usize| self.layout.end(*piece) > written;
        let whole = (self.journaled..self.checksums.len()).find(is_missing);
        self.journal_pieces(whole.unwrap_or(self.checksums.len()))
    }
}

/// Refuses a disk that cannot take the file, before anything is written.
fn check_room(paths: &Paths, layout: &Layout) -> Result<(), PackError> {
    let there_bytes = fs::metadata(&paths.part).map_or(0, |part| part.blocks().saturating_mul(512));
    let stat = rustix::fs::statvfs(paths.folder());
    let stat = stat.map_err(|errno| PackError::io("look at", paths.folder())(errno.into()))?;
    let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    let needed = layout.file_bytes.saturating_sub(there_bytes).saturating_add(layout.journal_bytes());
    if needed > free_bytes {
        let (out, file_bytes) = (paths.out.clone(), layout.file_bytes);
        return Err(PackError::DiskFull { out, file_bytes, there_bytes, free_bytes });
    }
    Ok(())
}

/// The journal comes first: a part without one is not ours.
fn begin(paths: &Paths, journal: &mut Journal, fingerprint: u64) -> Result<Vec<u64>, PackError> {
    journal.begin(fingerprint).map_err(PackError::io("write", &paths.journal))?;
    File::create_new(&paths.part).map_err(PackError::io("create", &paths.part))?;
    paths.sync_folder()?;
    Ok(Vec::new())
}

/// Of the pieces in the journal, those whose bytes are still what was written.
fn still_there(
    paths: &Paths,
    layout: &Layout,
    mut checksums: Vec<u64>,
    progress: &mut dyn Progress,
) -> Result<Vec<u64>, PackError> {
    let piece = |number| Extent { file: 0, offset: layout.start(number), len: layout.pieces[number].len };
    let pieces: Vec<Extent> = (0..checksums.len()).map(piece).collect();
    progress.begin("checking what is there", pieces.iter().map(|piece| piece.len).sum());
    let mut same = 0;
    let read = checksums_in_order(
        std::slice::from_ref(&paths.part),
        &pieces,
        &mut |bytes| progress.advance(bytes),
        &mut |number, checksum| {
            let is_same = checksums[number] == checksum;
            same += usize::from(is_same);
            is_same
        },
    );
    progress.end();
    match read {
        Ok(()) | Err(PackError::Read(ReadError::Short { .. })) => {}
        Err(error) => return Err(error),
    }
    let (there, all) = (format_bytes(layout.start(same)), format_bytes(layout.file_bytes));
    let part = paths.part.display();
    progress.notice(&match same == checksums.len() {
        true => format!("{part}: going on after {there} of {all}"),
        false => format!("{part}: damaged after {there} of {all}: going on from there"),
    });
    checksums.truncate(same);
    Ok(checksums)
}
