//! Blocks and threads of the kernels over rows, elements, the cache and attention.
//!
//! Owns the numbers of `kernels/vector.cuh` and `kernels/attend.cuh` that a launch depends on. It must not know
//! what a kernel computes.

use super::driver::Grid;

/// Positions of a tile of `attend_scores`.
const TILE: u32 = 32;
/// Rows that a block of either attention kernel takes at most: `ROWS_PER_BLOCK`. Of `attend_values` each has at least a
/// warp for its values.
const ROWS_PER_BLOCK: u32 = 4;
/// Values that a warp of `attend_values` computes.
const VALUES_PER_WARP: u32 = 64;
/// Threads of `attend_values`.
const VALUE_THREADS: u32 = 160;

/// Registers whose heads `place_heads` takes: queries, keys and values.
pub const HEAD_REGISTERS: u32 = 3;

fn grid(blocks: [u32; 3], threads: u32) -> Grid {
    Grid { blocks, threads, shared_bytes: 0 }
}

/// A thread for each of `len` elements: `add_rows`, `sum_rows`, `add_bias`.
pub fn element_grid(len: u32) -> Grid {
    grid([len.div_ceil(256), 1, 1], 256)
}

/// `rms_norm` of rows.
pub fn norm_grid(rows: u32) -> Grid {
    grid([rows, 1, 1], 256)
}

/// `silu_mul` of rows: a warp every 256 values of one.
pub fn silu_grid(rows: u32, width: u32) -> Grid {
    grid([(rows * width.div_ceil(256)).div_ceil(8), 1, 1], 256)
}

/// `place_heads` of registers with up to so many heads a row.
pub fn heads_grid(rows: u32, heads: u32) -> Grid {
    grid([rows * heads, HEAD_REGISTERS, 1], 128)
}

/// `combine` into rows of `width`.
pub fn combine_grid(rows: u32, width: u32) -> Grid {
    grid([width.div_ceil(256), rows, 1], 256)
}

/// `attend_scores` of `rows` that follow `start` positions.
pub fn scores_grid(rows: u32, heads: u32, start: u32) -> Grid {
    grid([(start + rows).div_ceil(TILE), heads, rows.div_ceil(ROWS_PER_BLOCK)], 256)
}

/// Rows that a block of `attend_values` takes best: several share what they read of the cache, where that leaves
/// `blocks_wanted` blocks; else each has the block's warps to itself, as far as there are values for them.
pub fn value_rows(rows: u32, heads: u32, value_dim: u32, blocks_wanted: u32) -> u32 {
    let shared = values_grid(rows, heads, value_dim, ROWS_PER_BLOCK).blocks.iter().product::<u32>();
    if rows == 1 || shared >= blocks_wanted {
        return ROWS_PER_BLOCK;
    }
    let warps = value_dim.div_ceil(VALUES_PER_WARP).next_power_of_two();
    ROWS_PER_BLOCK / warps.min(ROWS_PER_BLOCK)
}

/// `attend_values`, `rows_each` (1, 2 or 4) a block.
pub fn values_grid(rows: u32, heads: u32, value_dim: u32, rows_each: u32) -> Grid {
    let values_each = ROWS_PER_BLOCK / rows_each * VALUES_PER_WARP;
    grid([value_dim.div_ceil(values_each), heads, rows.div_ceil(rows_each)], VALUE_THREADS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_share_a_block_of_values_where_there_are_many_or_one() {
        assert_eq!(value_rows(1, 16, 512, 528), 4, "as many blocks as can be");
        assert_eq!(value_rows(8, 16, 512, 528), 1);
        assert_eq!(value_rows(8, 16, 128, 528), 2, "two warps have values");
        assert_eq!(value_rows(8, 16, 64, 528), 4);
        assert_eq!(value_rows(512, 16, 512, 528), 4);
    }

    #[test]
    fn every_value_of_every_row_has_a_warp() {
        assert_eq!(values_grid(9, 3, 512, 4).blocks, [8, 3, 3]);
        assert_eq!(values_grid(9, 3, 512, 1).blocks, [2, 3, 9]);
        assert_eq!(values_grid(9, 3, 99, 2).blocks, [1, 3, 5]);
    }
}
