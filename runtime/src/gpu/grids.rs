//! Blocks and threads of the kernels over rows, elements, the cache and attention.
//!
//! Owns the numbers of `kernels/vector.cuh` and `kernels/attend.cuh` that a launch depends on. It must not know
//! what a kernel computes.

use super::driver::Grid;

/// Positions of a tile of `attend_scores`.
const TILE: u32 = 32;
/// Values that a block of `attend_values` computes.
const VALUES_PER_BLOCK: u32 = 64;
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
    grid([(start + rows).div_ceil(TILE), heads, rows], 256)
}

/// `attend_values`.
pub fn values_grid(rows: u32, heads: u32, value_dim: u32) -> Grid {
    grid([value_dim.div_ceil(VALUES_PER_BLOCK), heads, rows], VALUE_THREADS)
}
