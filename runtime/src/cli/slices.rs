//! Slices: a text that is generated a few tokens at a time, in turn with those of other processes.
//!
//! For measuring (`--slice N`, hidden; `drafthorse-eval speedup` uses it): runs that are to be compared are all loaded,
//! and each goes on only while the others wait, so that whatever else the machine does falls on all alike. An empty line
//! on stdout says that this process waits, a line on stdin lets it go on; stdin's end lets it go on without waiting. Blank
//! lines before an object are no part of its JSON. It must not know what is measured, nor who else runs.

use std::io::{self, BufRead, Write};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use drafthorse_runtime::Error;
use drafthorse_runtime::api::Generation;

/// Where a text stands in its slices.
#[derive(Debug, Default)]
pub struct Slices {
    /// Tokens of a slice; none: the text is not cut.
    tokens: Option<usize>,
    /// Tokens until it waits again; what a pass brought beyond the end of a slice is taken off the next one, so that all
    /// runs of a text take as many slices.
    left: i64,
    is_alone: bool,
    waited: Duration,
}

impl Slices {
    /// Slices of so many tokens. The first wait is before the first of them: model and prompt have been read then.
    pub fn new(tokens: Option<NonZeroUsize>) -> Slices {
        Slices { tokens: tokens.map(NonZeroUsize::get), left: 1, ..Slices::default() }
    }

    /// `fresh` more tokens are there: waits where a slice ends.
    ///
    /// # Errors
    /// stdout or stdin cannot be used.
    pub fn advance(&mut self, fresh: usize) -> Result<(), Error> {
        self.advance_with(fresh, &mut io::stdin().lock(), &mut io::stdout().lock())
            .map_err(|source| Error::Io { what: "cannot wait for the next slice".to_owned(), source })
    }

    fn advance_with(
        &mut self,
        fresh: usize,
        turn: &mut impl BufRead,
        waiting: &mut impl Write,
    ) -> io::Result<()> {
        let Some(tokens) = self.tokens else { return Ok(()) };
        let count = |tokens: usize| i64::try_from(tokens).unwrap_or(i64::MAX);
        self.left -= count(fresh);
        while fresh > 0 && self.left <= 0 {
            let since = Instant::now();
            // Said alone, too: it fails where nobody is left to read the result.
            waiting.write_all(b"\n")?;
            waiting.flush()?;
            self.is_alone = self.is_alone || turn.read_line(&mut String::new())? == 0;
            self.waited += since.elapsed();
            self.left = self.left.saturating_add(count(tokens));
        }
        Ok(())
    }

    /// Takes the time spent waiting, all of it after the first token, out of the figures. Reads that were under way end
    /// meanwhile for nothing, and what says how long they took (`offload.read_s`) holds the wait.
    pub fn take_out(&self, generation: &mut Generation) {
        let Generation { timings, attribution, .. } = generation;
        let all_s = timings.decode_s;
        timings.decode_s = (all_s - self.waited.as_secs_f64()).max(0.0);
        attribution.wall_s = (attribution.wall_s - self.waited.as_secs_f64()).max(0.0);
        if timings.decode_s > 0.0 {
            timings.decode_tps *= all_s / timings.decode_s;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// After how many tokens it waited, `lines` being there to be read.
    fn waits(tokens: Option<usize>, lines: &str, steps: &[usize]) -> Vec<usize> {
        let mut slices = Slices::new(tokens.and_then(NonZeroUsize::new));
        let (mut turn, mut said) = (lines.as_bytes(), Vec::new());
        let mut generated = 0;
        let mut waits: Vec<usize> = Vec::new();
        for fresh in steps {
            generated += fresh;
            let before = said.len();
            slices.advance_with(*fresh, &mut turn, &mut said).unwrap();
            waits.extend(std::iter::repeat_n(generated, said.len() - before));
        }
        assert!(said.iter().all(|byte| *byte == b'\n'));
        waits
    }

    #[test]
    fn it_waits_before_the_first_slice_and_after_each() {
        assert_eq!(waits(Some(4), "\n\n\n\n", &[0, 1, 1, 1, 1, 1, 3, 0, 1, 5]), [1, 5, 9, 14]);
        assert_eq!(waits(Some(1), "\n\n\n", &[1, 1, 1]), [1, 2, 3]);
        // Two slices' worth in one pass: it waits twice.
        assert_eq!(waits(Some(2), "\n\n\n\n", &[1, 5, 1]), [1, 6, 6, 7]);
    }

    #[test]
    fn it_goes_on_alone_when_nobody_gives_turns_any_more() {
        assert_eq!(waits(Some(2), "\n", &[1, 2, 2, 2]), [1, 3, 5, 7], "and says that it could wait");
        assert!(waits(None, "", &[1, 2, 3]).is_empty());
    }
}
