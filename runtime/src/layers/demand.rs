//! What the rows of one pass made the disk read at once.
//!
//! Owns the list of experts that were not in memory when their layer's turn came, each with the first row
//! that wanted it. A row that is rejected afterwards has then read for nothing, unless an earlier one wanted
//! the same expert: that difference is what speculation costs in bytes (ALGORITHMS.md 0.3). It must not know
//! the cache or what became of a draft.

/// Demand loads of the present pass.
#[derive(Debug, Default)]
pub struct DemandLoads {
    /// First row of the chunk at work, counted over the whole pass.
    first_row: usize,
    /// Row and bytes of each load.
    loads: Vec<(usize, u64)>,
}

impl DemandLoads {
    /// A pass begins.
    pub fn clear(&mut self) {
        self.first_row = 0;
        self.loads.clear();
    }

    /// A chunk of the pass begins, whose row 0 is the pass's row `first_row`.
    pub fn begin_chunk(&mut self, first_row: usize) {
        self.first_row = first_row;
    }

    /// An expert of `bytes` is read, which the chunk's row `row` is the first to want.
    pub fn note(&mut self, row: usize, bytes: u64) {
        self.loads.push((self.first_row + row, bytes));
    }

    /// Bytes that only rows after `last_row` of the pass wanted.
    pub fn bytes_after(&self, last_row: usize) -> u64 {
        self.loads.iter().filter(|(row, _)| *row > last_row).map(|(_, bytes)| bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rejected_rows_alone_wanted_is_told_apart() {
        let mut demand = DemandLoads::default();
        demand.begin_chunk(0);
        demand.note(0, 100); // the committed token's row
        demand.note(2, 10);
        demand.begin_chunk(3);
        demand.note(0, 1); // row 3 of the pass
        assert_eq!([0, 1, 2, 3].map(|row| demand.bytes_after(row)), [11, 11, 1, 0]);
        demand.clear();
        demand.note(1, 5);
        assert_eq!(demand.bytes_after(0), 5, "of this pass alone");
    }
}
