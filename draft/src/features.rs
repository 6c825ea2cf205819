//! What a target shows of its insides: hidden states of the rows of its passes.
//!
//! Owns [`Features`], the rows a drafter is handed, and [`FeatureNeed`], which rows it asks for. It must
//! not know which layers the values come from: a head and its target agree on that elsewhere.

/// Hidden states of the target, one row a token of the context, oldest first.
#[derive(Clone, Copy, Debug)]
pub struct Features<'a> {
    /// Position of the first row.
    pub start: usize,
    /// Values of a row.
    pub width: usize,
    /// `[rows, width]`.
    pub values: &'a [f32],
}

impl<'a> Features<'a> {
    /// Position after the last row.
    pub fn end(&self) -> usize {
        self.start + self.values.len() / self.width.max(1)
    }

    /// The rows of `positions`, `[positions.len(), width]`; `None` unless all of them are here.
    pub fn rows(&self, positions: std::ops::Range<usize>) -> Option<&'a [f32]> {
        let from = positions.start.checked_sub(self.start)?;
        let to = positions.end.checked_sub(self.start)?;
        self.values.get(from * self.width..to * self.width)
    }
}

/// Which of the target's hidden states a drafter must be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureNeed {
    /// None: nothing need be recorded.
    None,
    /// Those of every position from this one on.
    Since(usize),
    /// Those of the latest position.
    Latest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_position_or_not_at_all() {
        let values: Vec<f32> = (0..6u8).map(f32::from).collect();
        let features = Features { start: 4, width: 2, values: &values };
        assert_eq!(features.end(), 7);
        assert_eq!(features.rows(5..7), Some(&values[2..]));
        assert_eq!(features.rows(6..6), Some(&values[4..4]));
        assert_eq!((features.rows(3..5), features.rows(6..8)), (None, None));
    }
}
