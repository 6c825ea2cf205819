//! Hidden states that passes leave behind for a head, by position.
//!
//! Owns the buffer: it holds a stretch of positions without gaps, follows the KV cache's truncation, and
//! never grows beyond what the memory plan counted. A row does not depend on the pass it was in (DESIGN
//! I2), so neither does what a head makes of it. It must not know who reads it.

use drafthorse_draft::Features;

/// Recorded rows of one sequence.
pub struct FeatureTape {
    /// What is recorded of a position, in order: the input of block `i`, or for the number of blocks the
    /// last one's output after the output norm.
    taps: Vec<usize>,
    /// Width of the residual stream.
    width: usize,
    /// Most positions held; the oldest make room.
    rows_max: usize,
    start: usize,
    values: Vec<f32>,
}

impl FeatureTape {
    /// An empty tape of `rows_max` positions, its memory touched.
    pub fn new(taps: &[usize], width: usize, rows_max: usize) -> FeatureTape {
        let mut values = vec![0.0; rows_max * taps.len() * width];
        values.clear();
        FeatureTape { taps: taps.to_vec(), width, rows_max, start: 0, values }
    }

    /// Bytes `new` allocates.
    pub fn bytes(taps: usize, width: usize, rows_max: usize) -> u64 {
        (taps * width * rows_max * size_of::<f32>()) as u64
    }

    /// The rows held.
    pub fn features(&self) -> Features<'_> {
        Features { start: self.start, width: self.row_len(), values: &self.values }
    }

    /// Whether `rows` more fit beside those held.
    pub fn has_room(&self, rows: usize) -> bool {
        self.held() + rows <= self.rows_max
    }

    /// Prepares for a pass over `rows` rows from `position` on; what is held beyond that is forgotten, and
    /// all of it where it would leave a gap.
    pub fn begin(&mut self, position: usize, rows: usize) {
        self.truncate(position);
        if self.start + self.held() < position {
            self.values.clear();
            self.start = position;
        }
        self.forget((position + rows).saturating_sub(self.rows_max));
        self.values.resize((self.held() + rows) * self.row_len(), 0.0);
    }

    /// Records the rows of the pass begun last as tap `tap` shows them, `[rows, width]`.
    pub fn record(&mut self, tap: usize, rows: &[f32]) {
        let width = self.width;
        for index in self.places(tap) {
            let outs = self.pass_rows(rows.len(), index);
            outs.zip(rows.chunks(width)).for_each(|(out, row)| out.copy_from_slice(row));
        }
    }

    /// Whether it records this.
    pub fn has_tap(&self, tap: usize) -> bool {
        self.taps.contains(&tap)
    }

    /// Forgets every position from `len` on.
    pub fn truncate(&mut self, len: usize) {
        if len < self.start {
            self.start = len;
        }
        self.values.truncate((len - self.start) * self.row_len());
    }

    /// Forgets every position before `position`.
    pub fn forget(&mut self, position: usize) {
        let rows = position.saturating_sub(self.start).min(self.held());
        self.values.drain(..rows * self.row_len());
        self.start += rows;
    }

    /// Forgets all but the last position.
    pub fn keep_last(&mut self) {
        self.forget((self.start + self.held()).saturating_sub(1));
    }

    fn row_len(&self) -> usize {
        self.taps.len() * self.width
    }

    fn held(&self) -> usize {
        self.values.len() / self.row_len()
    }

    fn places(&self, tap: usize) -> Vec<usize> {
        (0..self.taps.len()).filter(|index| self.taps[*index] == tap).collect()
    }

    /// Place `index` of each of the last rows, of which a pass gave `len` values.
    fn pass_rows(&mut self, len: usize, index: usize) -> impl Iterator<Item = &mut [f32]> {
        let (width, row_len) = (self.width, self.row_len());
        let from = self.values.len() - len / width * row_len;
        self.values[from..].chunks_mut(row_len).map(move |row| &mut row[index * width..(index + 1) * width])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(tape: &mut FeatureTape, position: usize, rows: usize) {
        tape.begin(position, rows);
        let of = |tap: usize| (0..rows).map(move |row| (10 * (position + row) + tap) as f32);
        let wide = |tap: usize| of(tap).flat_map(|value| [value, -value]).collect::<Vec<f32>>();
        tape.record(3, &wide(3));
        tape.record(5, &wide(5));
        tape.record(4, &wide(4));
    }

    fn held(tape: &FeatureTape) -> (usize, Vec<f32>) {
        let features = tape.features();
        (features.start, features.values.chunks(2).map(|pair| pair[0]).collect())
    }

    #[test]
    fn rows_lie_by_position_and_tap_and_follow_truncation() {
        let mut tape = FeatureTape::new(&[5, 3], 2, 8);
        pass(&mut tape, 0, 3);
        assert_eq!(held(&tape), (0, vec![5.0, 3.0, 15.0, 13.0, 25.0, 23.0]));
        tape.truncate(2);
        pass(&mut tape, 2, 1);
        tape.forget(1);
        assert_eq!(held(&tape), (1, vec![15.0, 13.0, 25.0, 23.0]));
        tape.keep_last();
        assert_eq!(held(&tape), (2, vec![25.0, 23.0]));
        tape.truncate(0);
        assert_eq!(held(&tape), (0, vec![]));
        pass(&mut tape, 0, 1);
        assert_eq!(held(&tape), (0, vec![5.0, 3.0]));
    }

    #[test]
    fn the_oldest_make_room_and_a_gap_starts_anew() {
        let mut tape = FeatureTape::new(&[3], 2, 3);
        let room = tape.values.capacity();
        pass(&mut tape, 0, 2);
        assert!(tape.has_room(1) && !tape.has_room(2));
        pass(&mut tape, 2, 2);
        assert_eq!(held(&tape), (1, vec![13.0, 23.0, 33.0]));
        pass(&mut tape, 7, 3);
        assert_eq!(held(&tape), (7, vec![73.0, 83.0, 93.0]));
        assert_eq!(tape.values.capacity(), room, "the plan is what is used");
    }
}
