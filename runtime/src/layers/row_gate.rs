//! Asks, layer by layer, how many rows of a pass go on.
//!
//! Owns the bookkeeping of one pass: which row was the first to want an expert that has to be read. Who answers
//! is the caller's affair. Rows are only ever dropped at the end, and never the first one: a row's result does
//! not depend on those behind it (DESIGN I2), so what is left is bit by bit the narrower pass. It must not know
//! costs, nor what a row means.

use drafthorse_scheduler::RowsSeen;

/// The rows of one pass that may be dropped while it runs.
pub struct RowGate<'a> {
    keep: &'a mut dyn FnMut(&RowsSeen<'_>) -> usize,
    layers: usize,
    layers_done: usize,
    misses: Vec<u32>,
}

impl<'a> RowGate<'a> {
    /// A gate of a pass of `rows` rows through `layers` layers with routed experts; `keep` says at each of
    /// them how many rows go on.
    pub fn new(
        keep: &'a mut dyn FnMut(&RowsSeen<'_>) -> usize,
        (rows, layers): (usize, usize),
    ) -> RowGate<'a> {
        RowGate { keep, layers, layers_done: 0, misses: vec![0; rows] }
    }

    /// The next layer has chosen for `rows` rows, and each expert that has to be read is the wish of a row in
    /// `first_rows`. Returns how many rows go on: 1 to `rows`.
    pub fn ask(&mut self, rows: usize, first_rows: &[usize]) -> usize {
        let mut here = vec![0; rows];
        first_rows.iter().for_each(|row| here[*row] += 1);
        let Self { keep, layers, layers_done, misses } = self;
        let seen =
            RowsSeen { layers_done: *layers_done, layers: *layers, misses: &misses[..rows], here: &here };
        let kept = keep(&seen).clamp(1, rows);
        misses.truncate(kept);
        misses.iter_mut().zip(here).for_each(|(all, here)| *all += here);
        *layers_done += 1;
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_add_up_their_misses_until_they_are_dropped_and_the_first_stays() {
        let mut asked = Vec::new();
        let mut answers = [9, 2, 0].into_iter();
        let mut keep = |seen: &RowsSeen<'_>| {
            asked.push((seen.layers_done, seen.layers, seen.misses.to_vec(), seen.here.to_vec()));
            answers.next().unwrap_or(usize::MAX)
        };
        let mut gate = RowGate::new(&mut keep, (3, 4));
        assert_eq!(gate.ask(3, &[0, 2, 2]), 3, "no more than there are");
        assert_eq!(gate.ask(3, &[1]), 2);
        assert_eq!(gate.ask(2, &[0]), 1, "never none");
        assert_eq!(gate.ask(1, &[]), 1);
        let expected = [
            (0, 4, vec![0, 0, 0], vec![1, 0, 2]),
            (1, 4, vec![1, 0, 2], vec![0, 1, 0]),
            (2, 4, vec![1, 1], vec![1, 0]),
            (3, 4, vec![2], vec![0]),
        ];
        assert_eq!(asked, expected);
    }
}
