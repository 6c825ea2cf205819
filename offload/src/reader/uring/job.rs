//! One read as the ring serves it: cut into pieces, each asked for until it is whole or the file ends.
//!
//! Owns the arithmetic of partial completions, which needs no ring and is tested without one. It must
//! not know the kernel's queues.

use std::io;
use std::time::Instant;

use crate::buf::PAGE_BYTES;
use crate::index::Widened;
use crate::reader::source::Source;
use crate::reader::{Completion, Read};

/// A read being served. Its buffer stays here for as long as the kernel may write to it.
pub(super) struct Job {
    pub(super) read: Read,
    pub(super) widened: Widened,
    piece_bytes: usize,
    cut: usize, // bytes of the widened range handed out as pieces
    out: usize, // pieces handed out that are neither whole nor given up
    end: usize, // bytes of the widened range up to where the file ends, as far as is known
    failure: Option<io::Error>,
    began: Option<Instant>,
}

/// A page-aligned run of a job's widened range: bytes `start..end`, counted from where that starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) start: usize,
    pub(super) end: usize,
    reached: usize, // bytes up to here are in the buffer
    refusals: u32,
}

/// Times the kernel may put a piece off before that counts as its failure.
const REFUSALS_MAX: u32 = 1000;

impl Job {
    /// `widened` is the read's extent, which its buffer can hold; pieces are of about `piece_bytes`.
    pub(super) fn new(read: Read, widened: Widened, piece_bytes: usize) -> Job {
        let pieces = widened.len.div_ceil(piece_bytes).max(1);
        // Equal pieces: the read is over when the last is, so a small rest would gain nothing.
        let piece_bytes = widened.len.div_ceil(pieces).next_multiple_of(PAGE_BYTES);
        let end = usize::MAX;
        Job { read, widened, piece_bytes, cut: 0, out: 0, end, failure: None, began: None }
    }

    /// The next piece to ask for; `None` when all were, or there is no use in more.
    pub(super) fn next_piece(&mut self) -> Option<Piece> {
        if self.is_cut() {
            return None;
        }
        let start = self.cut;
        let end = start.saturating_add(self.piece_bytes).min(self.widened.len);
        self.cut = end;
        self.out += 1;
        self.began.get_or_insert_with(Instant::now);
        Some(Piece { start, end, reached: start, refusals: 0 })
    }

    /// True when no further piece will be asked for.
    pub(super) fn is_cut(&self) -> bool {
        self.cut == self.widened.len || self.is_lost()
    }

    /// True when every piece is back, so that the kernel no longer knows of the buffer.
    pub(super) fn is_over(&self) -> bool {
        self.out == 0 && self.is_cut()
    }

    /// Takes the kernel's answer to a piece: bytes read, or an error number. Returns the rest to ask
    /// for, if any.
    pub(super) fn answer(&mut self, piece: Piece, result: i32) -> Option<Piece> {
        let rest = match usize::try_from(result) {
            Ok(got) => self.got(piece, got),
            Err(_) => self.refused(piece, io::Error::from_raw_os_error(result.saturating_neg())),
        };
        let rest = rest.and_then(|rest| self.unless_lost(rest));
        self.out -= usize::from(rest.is_none());
        rest
    }

    /// The end of the read.
    pub(super) fn finish(self, source: &Source) -> Completion {
        let Job { read, widened, end, failure, began, .. } = self;
        source.forget(&widened);
        let data = match failure {
            Some(failure) => Err(source.failed(&widened, failure)),
            None if end < widened.data.end => Err(source.short(&widened, end)),
            None => Ok(widened.data),
        };
        let read_s = began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        Completion { tag: read.tag, buf: read.buf, data, read_s }
    }

    /// True when the read cannot succeed any more.
    fn is_lost(&self) -> bool {
        self.failure.is_some() || self.end < self.widened.data.end
    }

    fn got(&mut self, mut piece: Piece, got: usize) -> Option<Piece> {
        let reached = piece.start.saturating_add(got).min(piece.end);
        let wanted = piece.end.min(self.widened.data.end);
        if reached >= wanted {
            return None;
        }
        if reached <= piece.reached {
            // Nothing new although asked for: the file ends here.
            self.end = self.end.min(piece.reached);
            return None;
        }
        piece.reached = reached;
        piece.start = reached - reached % PAGE_BYTES;
        Some(piece)
    }

    /// The rest of a piece, unless there is no use in it: then what it reached is where the read ends.
    fn unless_lost(&mut self, rest: Piece) -> Option<Piece> {
        if !self.is_lost() {
            return Some(rest);
        }
        self.end = self.end.min(rest.reached);
        None
    }

    fn refused(&mut self, mut piece: Piece, refusal: io::Error) -> Option<Piece> {
        piece.refusals += 1;
        if is_passing(&refusal) && piece.refusals <= REFUSALS_MAX {
            return Some(piece);
        }
        self.failure.get_or_insert(refusal);
        None
    }
}

/// Refusals that asking again cures: a signal, a full queue, and the cancelling of what a thread had
/// asked for that has ended since.
fn is_passing(refusal: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [Errno::INTR, Errno::AGAIN, Errno::CANCELED];
    Errno::from_io_error(refusal).is_some_and(|errno| passing.contains(&errno))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::buf::AlignedBuf;
    use crate::index::Extent;
    use crate::reader::ReadError;
    use crate::reader::source::tests::refused;

    const EIO: i32 = -5;
    const EAGAIN: i32 = -11;

    fn job(offset: u64, len: u64, piece_bytes: usize) -> Job {
        let extent = Extent { file: 0, offset, len };
        let widened = extent.widened().unwrap();
        let buf = AlignedBuf::new(widened.len).unwrap();
        Job::new(Read { tag: 0, extent, buf }, widened, piece_bytes)
    }

    fn pieces(job: &mut Job) -> Vec<Piece> {
        std::iter::from_fn(|| job.next_piece()).collect()
    }

    fn finish(job: Job) -> Result<std::ops::Range<usize>, ReadError> {
        assert!(job.is_over());
        let file = tempfile::NamedTempFile::new().unwrap();
        job.finish(&refused(file.path())).data
    }

    #[test]
    fn pieces_are_whole_pages_of_about_equal_size_and_cover_the_read() {
        for (offset, len, piece_bytes, wanted) in
            [(0, 1, 65536, 1), (4095, 2, 4096, 2), (7, 590_000, 524_288, 2), (0, 1 << 20, 1 << 19, 2)]
        {
            let mut job = job(offset, len, piece_bytes);
            let pieces = pieces(&mut job);
            assert_eq!(pieces.len(), wanted);
            let mut end = 0;
            for piece in &pieces {
                assert_eq!((piece.start, piece.start % 4096, piece.end % 4096), (end, 0, 0));
                assert!(piece.end - piece.start <= piece_bytes);
                end = piece.end;
            }
            assert_eq!(end, job.widened.len);
        }
    }

    #[test]
    fn a_job_is_over_when_all_pieces_are_back_in_any_order() {
        let mut job = job(100, 20_000, 8192);
        let pieces = pieces(&mut job);
        for (i, n) in [2, 0, 1].into_iter().enumerate() {
            assert!(!job.is_over(), "after {i} pieces");
            let bytes = (pieces[n].end - pieces[n].start) as i32;
            assert_eq!(job.answer(pieces[n], bytes), None);
        }
        assert_eq!(finish(job).unwrap(), 100..20_100);
    }

    #[test]
    fn a_partial_piece_is_asked_for_again_from_its_last_whole_page() {
        let mut job = job(0, 16384, 16384);
        let piece = job.next_piece().unwrap();
        let rest = job.answer(piece, 5000).unwrap();
        assert_eq!((rest.start, rest.end), (4096, 16384));
        let rest = job.answer(rest, 8192).unwrap();
        assert_eq!((rest.start, rest.end), (12288, 16384));
        assert_eq!(job.answer(rest, 4096), None);
        assert_eq!(finish(job).unwrap(), 0..16384);
    }

    #[test]
    fn the_lowest_end_of_file_any_piece_met_counts() {
        let mut job = job(10, 16_000, 4096);
        let pieces = pieces(&mut job);
        assert_eq!(job.answer(pieces[2], 0), None, "wholly beyond the end");
        let rest = job.answer(pieces[1], 1000);
        assert_eq!(rest, None, "a lost read is not asked on");
        assert_eq!(job.answer(pieces[0], 4096), None);
        assert!(!job.is_over());
        assert_eq!(job.answer(pieces[3], 0), None);
        let Err(ReadError::Short { wanted, got, .. }) = finish(job) else { unreachable!("a short read") };
        assert_eq!((wanted, got), (16_000, 4096 + 1000 - 10));
    }

    #[test]
    fn the_end_of_the_file_within_a_piece_is_found_by_asking_again() {
        let mut job = job(10, 8000, 8192);
        let piece = job.next_piece().unwrap();
        let rest = job.answer(piece, 5000).unwrap();
        assert_eq!(job.answer(rest, 5000 - 4096), None);
        let Err(ReadError::Short { got, .. }) = finish(job) else { unreachable!("a short read") };
        assert_eq!(got, 5000 - 10);
    }

    #[test]
    fn the_end_of_the_file_behind_the_extent_is_no_error() {
        let mut job = job(10, 5000, 8192);
        let piece = job.next_piece().unwrap();
        assert_eq!(job.answer(piece, 5010), None);
        assert_eq!(finish(job).unwrap(), 10..5010);
    }

    #[test]
    fn a_failed_piece_fails_the_read_once_the_others_are_back_and_no_more_are_asked_for() {
        let mut job = job(0, 16384, 4096);
        let (first, second) = (job.next_piece().unwrap(), job.next_piece().unwrap());
        assert_eq!(job.answer(second, EIO), None);
        assert!(job.next_piece().is_none() && !job.is_over());
        assert_eq!(job.answer(first, 4096), None);
        let Err(ReadError::Io { source, .. }) = finish(job) else { unreachable!("an I/O error") };
        assert_eq!(source.raw_os_error(), Some(5));
    }

    #[test]
    fn a_piece_put_off_is_asked_for_again_but_not_for_ever() {
        let mut job = job(0, 4096, 4096);
        let mut piece = job.next_piece().unwrap();
        for _ in 0..REFUSALS_MAX {
            piece = job.answer(piece, EAGAIN).unwrap();
            assert_eq!((piece.start, piece.end), (0, 4096));
        }
        assert_eq!(job.answer(piece, EAGAIN), None);
        assert!(matches!(finish(job), Err(ReadError::Io { .. })));
    }
}
