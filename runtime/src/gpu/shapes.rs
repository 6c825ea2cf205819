//! The shapes that kernels are launched with: what `kernels/*.cuh` assume, said once for the host.

/// Threads of a block of the row kernels.
pub const ROW_THREADS: u32 = 256;
/// Threads of a block that packs or rotates one head.
pub const HEAD_THREADS: u32 = 128;
/// Positions of a tile of attention scores.
pub const SCORE_TILE: u32 = 32;
/// Jobs of one matrix launch at most.
pub const JOBS_MAX: usize = 64;
/// Words of a job (`struct Job`).
pub const JOB_WORDS: usize = 7;
