//! A small table beside the large one, for Markdown and the page alike: what follows from several rows.
//!
//! Owns which there are. What stands in one is its own file's business.

use super::report::Row;
use super::{auto, rules};

/// A table with its title and a line on what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct SideTable {
    pub title: &'static str,
    pub line: String,
    pub heads: Vec<&'static str>,
    /// A cell for each head.
    pub rows: Vec<Vec<String>>,
}

/// Those that these rows have something to say in.
pub fn side_tables(rows: &[Row]) -> Vec<SideTable> {
    [auto::table(rows), rules::table(rows)].into_iter().flatten().collect()
}
