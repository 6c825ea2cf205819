//! How the kernels of quantization and matrix products are launched: names, grids, arguments.
//!
//! Owns what `kernels/{matmul,quantize}.cuh` and their callers must agree on. It must not know what the matrices
//! mean.

use crate::kernels::{Format, Side};

use super::driver::{DevicePtr, Grid};

/// Numbers of activation rows that there are kernels for.
pub const MATMUL_ROWS: [u32; 4] = [1, 2, 4, 8];

/// Most jobs of one launch.
pub const MATMUL_JOBS_MAX: usize = 64;

/// Weight rows of a block of threads: `matmul::COLUMNS`.
const MATMUL_COLUMNS: u32 = 16;

/// Threads of a block that quantizes: `quantize::THREADS`.
const QUANTIZE_THREADS: u32 = 32;

/// Words of a job: `Job` of `kernels/common.cuh`.
const JOB_WORDS: usize = 7;

/// A matrix and the activation rows it multiplies.
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
    fn words(self) -> [u64; JOB_WORDS] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        [
            self.w,
            self.x,
            self.rows,
            self.out,
            pair(self.n, self.count),
            pair(self.x_first, self.x_step),
            pair(self.x_stride, self.out_stride),
        ]
    }
}

/// The first argument of a matmul kernel. At most [`MATMUL_JOBS_MAX`] jobs; the rest of the struct is zero.
#[must_use]
pub fn matmul_jobs(jobs: &[MatmulJob]) -> Vec<u64> {
    debug_assert!(jobs.len() <= MATMUL_JOBS_MAX);
    let mut words: Vec<u64> = jobs.iter().flat_map(|job| job.words()).collect();
    words.resize(MATMUL_JOBS_MAX * JOB_WORDS, 0);
    words
}

/// The kernel that multiplies with a format, `rows` (of [`MATMUL_ROWS`]) activation rows at a time.
#[must_use]
pub fn matmul_name(format: Format, rows: u32) -> String {
    format!("matmul_{}_r{rows}", format!("{format:?}").to_lowercase())
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

/// Its grid for `rows` rows of `width` values, at least one of each.
#[must_use]
pub fn quantize_grid(rows: u32, width: u32) -> Grid {
    Grid { blocks: [rows * width.div_ceil(256), 1, 1], threads: QUANTIZE_THREADS, shared_bytes: 0 }
}
