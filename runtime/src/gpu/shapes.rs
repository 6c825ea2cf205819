//! How the kernels of quantization and matrix products are launched: names, grids, arguments.
//!
//! Owns what `kernels/{matmul,quantize}.cuh` and their callers must agree on. It must not know what the matrices
//! mean.

use crate::kernels::{Format, Side};

use super::driver::{DevicePtr, Grid};

/// Numbers of activation rows that there are kernels for. Those for 4 and 8 have code for fewer, too, which is what a
/// job of fewer rows runs.
pub const MATMUL_ROWS: [u32; 3] = [1, 4, 8];

/// Most jobs of one launch: what 4 KiB of arguments hold, the most that every driver takes.
pub const MATMUL_JOBS_MAX: usize = 96;

/// Most picks that come with a launch: `Picks` of `kernels/vector.cuh`.
pub const PICKS_MAX: usize = 128;

/// `x_step` of jobs whose `rows` are numbers themselves: `PACKED_ROWS` of `kernels/common.cuh`.
const PACKED_ROWS: u32 = u32::MAX;
/// Most rows of such a job, each below 256.
pub const PACKED_ROWS_MAX: usize = 8;

/// Matrices of plain floats with no more rows than this have a kernel of their own, if they have this many columns (with
/// fewer there is little to wait for) and no more activation rows than this: each is read once for every weight row.
const THIN_WEIGHT_ROWS_MAX: u32 = 1024;
const THIN_COLUMNS_MIN: usize = 512;
const THIN_COUNT_MAX: u32 = 16;
/// Activation rows of its block of threads: `matmul::THIN_ROWS`.
const THIN_ROWS: u32 = 8;
const THIN_THREADS: u32 = 256;

/// Weight rows of a block of threads: `matmul::COLUMNS`.
const MATMUL_COLUMNS: u32 = 16;

/// Threads of a block that quantizes: `quantize::THREADS`.
const QUANTIZE_THREADS: u32 = 32;

/// Words of a job, and of what jobs share: `Job` and `Jobs` of `kernels/common.cuh`.
const JOB_WORDS: usize = 5;
const SHARED_WORDS: usize = 2;

/// A matrix and the activation rows it multiplies. Jobs of one launch have `x`, `x_stride` and `x_step` in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MatmulJob {
    /// `n` weight rows, at a multiple of 16 bytes. Up to 3 bytes behind them may be read.
    pub w: DevicePtr,
    /// Activation rows as [`quantize_name`] says, at a multiple of 16 bytes (floats: of 4).
    pub x: DevicePtr,
    /// `count` numbers (u32) of activation rows, or null: then they are `x_first`, `x_first + x_step`, ...
    pub rows: DevicePtr,
    /// Product `c` of row `i` goes to float `i * out_stride + c`.
    pub out: DevicePtr,
    /// Weight rows; 0 for no work.
    pub n: u32,
    /// Activation rows; 0 for no work.
    pub count: u32,
    /// First activation row, where there is no list.
    pub x_first: u32,
    /// From one activation row to the next, where there is no list.
    pub x_step: u32,
    /// Bytes from one activation row to the next, a multiple of 16 (floats: of 4).
    pub x_stride: u32,
    /// Floats from one output row to the next.
    pub out_stride: u32,
}

impl MatmulJob {
    /// The same job for these activation rows, at most [`PACKED_ROWS_MAX`] of numbers below 256.
    #[must_use]
    pub fn of_rows(self, rows: &[u32]) -> MatmulJob {
        debug_assert!(rows.len() <= PACKED_ROWS_MAX && rows.iter().all(|row| *row < 256));
        let packed = rows.iter().rev().fold(0, |packed, row| packed << 8 | u64::from(*row));
        MatmulJob { rows: packed, count: rows.len() as u32, x_step: PACKED_ROWS, ..self }
    }

    fn words(self) -> [u64; JOB_WORDS] {
        [self.w, self.rows, self.out, pair(self.n, self.count), pair(self.x_first, self.out_stride)]
    }

    /// What all jobs of a launch have in common.
    fn shared(&self) -> (DevicePtr, u32, u32) {
        (self.x, self.x_stride, self.x_step)
    }
}

/// Two numbers in a word.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Heads of a register for `place_heads`: `Heads` of `kernels/attend.cuh`, where the fields are explained.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadsJob {
    pub x: DevicePtr,
    pub norm: DevicePtr,
    pub to: DevicePtr,
    pub cache: DevicePtr,
    pub heads: usize,
    pub len: usize,
    pub offset: usize,
    pub norm_len: usize,
    pub to_stride: usize,
    pub to_at: usize,
    pub quantized: usize,
    pub halves: usize,
    pub eps: f32,
}

/// The first argument of `place_heads`.
#[must_use]
pub fn heads_jobs(jobs: [HeadsJob; 3]) -> Vec<u64> {
    let pair = |low: usize, high: usize| low as u64 | (high as u64) << 32;
    let words = |job: HeadsJob| {
        [
            job.x,
            job.norm,
            job.to,
            job.cache,
            pair(job.heads, job.len),
            pair(job.offset, job.norm_len),
            pair(job.to_stride, job.to_at),
            pair(job.quantized, job.halves),
            u64::from(job.eps.to_bits()),
        ]
    };
    jobs.into_iter().flat_map(words).collect()
}

/// The first argument of a matmul kernel. At most [`MATMUL_JOBS_MAX`] jobs on rows of the same activations; the rest of
/// the struct is zero.
#[must_use]
pub fn matmul_jobs(jobs: &[MatmulJob]) -> Vec<u64> {
    debug_assert!(jobs.len() <= MATMUL_JOBS_MAX);
    let shared = jobs.first().map(MatmulJob::shared).unwrap_or_default();
    assert!(jobs.iter().all(|job| job.shared() == shared), "invariant: jobs of one launch share activations");
    let (x, x_stride, x_step) = shared;
    let mut words = Vec::with_capacity(SHARED_WORDS + MATMUL_JOBS_MAX * JOB_WORDS);
    words.extend([x, pair(x_stride, x_step)]);
    words.extend(jobs.iter().flat_map(|job| job.words()));
    words.resize(SHARED_WORDS + MATMUL_JOBS_MAX * JOB_WORDS, 0);
    words
}

/// The kernel that multiplies with a format, `rows` (of [`MATMUL_ROWS`]) activation rows at a time.
#[must_use]
pub fn matmul_name(format: Format, rows: u32) -> String {
    format!("matmul_{}_r{rows}", format!("{format:?}").to_lowercase())
}

/// How many activation rows at a time these jobs, at least one, are best done. Many save unpacking, few keep more of the
/// device busy: as many as leave `blocks_wanted` blocks of threads.
#[must_use]
pub fn matmul_rows(jobs: &[MatmulJob], blocks_wanted: u32) -> u32 {
    // Experts of a window have few rows each but for some: those go in several blocks.
    let mean = jobs.iter().map(|job| job.count).sum::<u32>().div_ceil(jobs.len() as u32);
    let blocks = |rows: u32| -> u32 {
        jobs.iter().map(|job| job.n.div_ceil(MATMUL_COLUMNS) * job.count.div_ceil(rows)).sum()
    };
    let most = MATMUL_ROWS.into_iter().find(|rows| *rows >= mean).unwrap_or(8);
    let busy = MATMUL_ROWS.into_iter().rev().find(|rows| *rows <= most && blocks(*rows) >= blocks_wanted);
    busy.unwrap_or(1)
}

/// Its grid for these jobs, of which there is at least one.
#[must_use]
pub fn matmul_grid(rows: u32, jobs: &[MatmulJob]) -> Grid {
    let most = |of: fn(&MatmulJob) -> u32| jobs.iter().map(of).max().unwrap_or(0).max(1);
    let blocks =
        [most(|job| job.n).div_ceil(MATMUL_COLUMNS), most(|job| job.count).div_ceil(rows), jobs.len() as u32];
    // With eight rows a thread has two columns.
    let threads = if rows == 8 { 64 } else { 128 };
    Grid { blocks, threads, shared_bytes: 0 }
}

/// The grid of the kernel for plain floats in few weight rows; `None` where the others are better.
#[must_use]
pub fn thin_matmul_grid(format: Format, cols: usize, jobs: &[MatmulJob]) -> Option<Grid> {
    let most = |of: fn(&MatmulJob) -> u32| jobs.iter().map(of).max().unwrap_or(0).max(1);
    let rows = most(|job| job.n);
    let count = most(|job| job.count);
    let is_thin = format.side() == Side::Float
        && rows <= THIN_WEIGHT_ROWS_MAX
        && cols >= THIN_COLUMNS_MIN
        && count <= THIN_COUNT_MAX;
    let blocks = [rows, count.div_ceil(THIN_ROWS), jobs.len() as u32];
    is_thin.then_some(Grid { blocks, threads: THIN_THREADS, shared_bytes: 0 })
}

/// The name of that kernel.
#[must_use]
pub fn thin_matmul_name(format: Format) -> String {
    format!("matmul_{}_thin", format!("{format:?}").to_lowercase())
}

/// The second argument of `combine_few`. At most [`PICKS_MAX`] picks; the rest of the struct is zero.
#[must_use]
pub fn picks(places: &[u32], weights: &[f32]) -> Vec<u64> {
    debug_assert!(places.len() <= PICKS_MAX && places.len() == weights.len());
    let mut words = vec![0u32; 2 * PICKS_MAX];
    words[..places.len()].copy_from_slice(places);
    for (word, weight) in words[PICKS_MAX..].iter_mut().zip(weights) {
        *word = weight.to_bits();
    }
    words.chunks_exact(2).map(|pair| u64::from(pair[0]) | u64::from(pair[1]) << 32).collect()
}

/// The kernel that makes activation rows what formats of this side multiply with; `None` where these are the
/// floats.
#[must_use]
pub fn quantize_name(side: Side) -> Option<&'static str> {
    match side {
        Side::Float => None,
        Side::X32 => Some("quantize_x32"),
        Side::X256 => Some("quantize_x256"),
    }
}

/// What kernels that quantize besides call the layout of that side; 0 is none.
#[must_use]
pub fn side_number(side: Side) -> u32 {
    match side {
        Side::Float => 0,
        Side::X32 => 1,
        Side::X256 => 2,
    }
}

/// Its grid for `rows` rows of `width` values, at least one of each.
#[must_use]
pub fn quantize_grid(rows: u32, width: u32) -> Grid {
    Grid { blocks: [rows * width.div_ceil(256), 1, 1], threads: QUANTIZE_THREADS, shared_bytes: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(n: u32, counts: &[u32]) -> Vec<MatmulJob> {
        counts.iter().map(|count| MatmulJob { n, count: *count, ..MatmulJob::default() }).collect()
    }

    #[test]
    fn rows_are_taken_together_only_where_enough_blocks_are_left() {
        assert_eq!(matmul_rows(&jobs(102_400, &[8]), 528), 8);
        assert_eq!(matmul_rows(&jobs(2048, &[8]), 528), 1);
        assert_eq!(matmul_rows(&jobs(2048, &[8]), 256), 4);
        assert_eq!(matmul_rows(&jobs(64, &[3]), 1), 4);
        assert_eq!(matmul_rows(&jobs(2048, &[512]), 528), 8);
    }

    #[test]
    fn routers_of_narrow_passes_have_a_kernel_of_their_own() {
        let is_thin = |format, cols, n, count| thin_matmul_grid(format, cols, &jobs(n, &[count])).is_some();
        assert!(is_thin(Format::F32, 2048, 160, 1) && is_thin(Format::F32, 5120, 256, 9));
        assert!(!is_thin(Format::F32, 5120, 160, 512), "a prompt's rows are read too often");
        assert!(!is_thin(Format::F16, 4096, 102_400, 1) && !is_thin(Format::F32, 64, 8, 1));
        assert!(!is_thin(Format::Q8_0, 2048, 160, 1));
    }

    #[test]
    fn experts_of_one_row_each_are_not_padded_for_one_that_many_want() {
        let counts: Vec<u32> = std::iter::repeat_n(1, 30).chain([8]).collect();
        assert_eq!(matmul_rows(&jobs(1408, &counts), 528), 4, "its kernel has code for one row, too");
        assert_eq!(matmul_rows(&jobs(1408, &[1, 1, 1]), 528), 1);
    }
}
