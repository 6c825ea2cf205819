//! How the attention of one layer is cut into pieces of work, and the memory threads do them in.
//!
//! Owns the split over heads and rows and one [`Space`] for each thread, allocated once. A piece holds
//! queries that share a KV head, so that a tile of the cache is unpacked once for all of them; what a query
//! gets does not depend on its piece (DESIGN I2), so the split may follow the threads.

use std::ops::Range;

use parking_lot::Mutex;

use crate::kernels::{AttendSpace, QUERIES_MAX};
use crate::models::{AttentionSpec, ModelSpec};

/// Queries of one KV head that one thread attends together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Key/value head.
    pub kv_head: usize,
    /// Query heads.
    pub heads: Range<usize>,
    /// Rows of the pass.
    pub rows: Range<usize>,
}

/// The pieces of one layer and pass.
#[derive(Clone, Copy, Debug)]
pub struct Pieces {
    rows: usize,
    /// Query heads of a KV head.
    group: usize,
    kv_heads: usize,
    rows_each: usize,
    heads_each: usize,
}

impl Pieces {
    /// As large as a space holds, but enough of them for all threads. Rows are kept together before heads
    /// are: MLA multiplies all rows of a head with one matrix.
    pub fn new((heads, kv_heads): (usize, usize), rows: usize, threads: usize) -> Pieces {
        let most = (heads * rows).div_ceil(threads).clamp(1, QUERIES_MAX);
        let rows_each = rows.div_ceil(rows.div_ceil(most));
        let group = heads / kv_heads;
        Pieces { rows, group, kv_heads, rows_each, heads_each: (most / rows_each).clamp(1, group) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.kv_heads * self.head_blocks() * self.rows.div_ceil(self.rows_each)
    }

    /// One of them; those of the last rows, which see most, come first.
    pub fn get(&self, index: usize) -> Piece {
        let (index, heads) = (index / self.head_blocks(), index % self.head_blocks());
        let (rows, kv_head) = (index / self.kv_heads, index % self.kv_heads);
        let last = self.rows - rows * self.rows_each;
        let first = heads * self.heads_each;
        let end = self.group.min(first + self.heads_each);
        Piece {
            kv_head,
            heads: kv_head * self.group + first..kv_head * self.group + end,
            rows: last.saturating_sub(self.rows_each)..last,
        }
    }

    fn head_blocks(&self) -> usize {
        self.group.div_ceil(self.heads_each)
    }
}

/// Working memory of one thread.
pub struct Space {
    /// Queries, tiles and results.
    pub attend: AttendSpace,
    /// Rows of one head before or after its projection, narrow side (MLA).
    pub narrow: Vec<f32>,
    /// The same on the side of the latent (MLA).
    pub wide: Vec<f32>,
}

/// Widths of a space; all zero for one that is never used.
#[derive(Clone, Copy, Debug, Default)]
struct SpaceShape {
    key: usize,
    value: usize,
    is_latent: bool,
    narrow: usize,
    wide: usize,
}

impl SpaceShape {
    fn new(spec: &ModelSpec) -> SpaceShape {
        match spec.attention {
            AttentionSpec::Gqa { key_dim, value_dim, .. } => {
                SpaceShape { key: key_dim, value: value_dim, ..SpaceShape::default() }
            }
            AttentionSpec::Mla { kv_lora, nope, value_dim, .. } => SpaceShape {
                key: kv_lora + spec.rope.dim,
                value: kv_lora,
                is_latent: true,
                narrow: nope.max(value_dim),
                wide: kv_lora,
            },
        }
    }

    fn space(self) -> Space {
        Space {
            attend: AttendSpace::new(self.key, self.value, self.is_latent),
            narrow: vec![0.0; QUERIES_MAX * self.narrow],
            wide: vec![0.0; QUERIES_MAX * self.wide],
        }
    }

    fn floats(self) -> usize {
        // Beside the projections' rows as they are, their copies as quantized formats want them.
        let copies = 2 * QUERIES_MAX * self.wide.max(self.narrow);
        let rows = QUERIES_MAX * (self.narrow + self.wide);
        AttendSpace::floats(self.key, self.value, self.is_latent) + rows + copies
    }
}

/// The spaces of all threads.
#[derive(Default)]
pub struct Spaces {
    shape: SpaceShape,
    free: Mutex<Vec<Space>>,
}

impl Spaces {
    /// One space for each thread.
    pub fn new(spec: &ModelSpec, threads: usize) -> Spaces {
        let shape = SpaceShape::new(spec);
        let free = (0..threads).map(|_| shape.space()).collect();
        Spaces { shape, free: Mutex::new(free) }
    }

    /// Floats a thread takes.
    pub fn floats(spec: &ModelSpec) -> usize {
        SpaceShape::new(spec).floats()
    }

    /// Lends a space that nobody works in.
    pub fn with(&self, work: impl FnOnce(&mut Space)) {
        let free = self.free.lock().pop();
        // One was lost with the piece that panicked in it.
        let mut space = free.unwrap_or_else(|| self.shape.space());
        work(&mut space);
        self.free.lock().push(space);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_query_is_in_one_piece_which_holds_no_more_than_a_space() {
        for (heads, kv_heads) in [(16, 1), (16, 4), (28, 4), (8, 8), (128, 1), (1, 1)] {
            for rows in [1, 2, 5, 63, 64, 65, 200] {
                for threads in [1, 2, 3, 8] {
                    let pieces = Pieces::new((heads, kv_heads), rows, threads);
                    let mut seen = vec![0; heads * rows];
                    for piece in (0..pieces.count()).map(|index| pieces.get(index)) {
                        assert!(piece.heads.len() * piece.rows.len() <= QUERIES_MAX, "{piece:?}");
                        for head in piece.heads.clone() {
                            assert_eq!(head * kv_heads / heads, piece.kv_head);
                            piece.rows.clone().for_each(|row| seen[row * heads + head] += 1);
                        }
                    }
                    assert!(seen.iter().all(|count| *count == 1), "{heads} {kv_heads} {rows} {threads}");
                }
            }
        }
    }

    #[test]
    fn all_heads_of_a_latent_row_are_shared_out_to_the_threads() {
        let pieces = Pieces::new((16, 1), 1, 2);
        assert_eq!([pieces.get(0).heads, pieces.get(1).heads], [0..8, 8..16]);
        assert_eq!(Pieces::new((16, 4), 1, 2).count(), 4);
    }
}
