//! Launches: the driver with its kernels looked up, and the first error kept.
//!
//! Owns which kernels there are and how a matrix product is cut into jobs. Queuing never fails for the caller:
//! after an error nothing more is queued, and whoever waits for results hears of it. It must not know layers.

use std::collections::HashMap;

use super::driver::{Arg, DevicePtr, Driver, Event, GpuError, Grid, KernelId, Lane};
use super::grids::element_grid;
use super::shapes::{
    MATMUL_JOBS_MAX, MATMUL_ROWS, MatmulJob, matmul_grid, matmul_jobs, matmul_name, matmul_rows,
    thin_matmul_grid, thin_matmul_name,
};
use crate::kernels::{Format, Side};

/// Blocks of threads on each multiprocessor that hide each other's waits for memory.
const BLOCKS_EACH: u32 = 4;

/// Kernels without a format.
const NAMES: [&str; 12] = [
    "quantize_x32",
    "quantize_x256",
    "rms_norm",
    "add_rows",
    "sum_rows",
    "add_bias",
    "silu_mul",
    "place_heads",
    "attend_scores",
    "attend_values",
    "combine",
    "combine_few",
];

/// The two lanes of a device, with its kernels.
pub struct Queue {
    driver: Box<dyn Driver>,
    kernels: HashMap<&'static str, KernelId>,
    matmuls: HashMap<(&'static str, u32), KernelId>,
    thin_matmuls: HashMap<&'static str, KernelId>,
    tables: DevicePtr,
    /// Blocks of threads that a launch should have, so that no part of the device idles.
    blocks_wanted: u32,
    failed: Option<GpuError>,
}

impl Queue {
    /// Looks up every kernel, those of `formats` included, and uploads the codebooks.
    ///
    /// # Errors
    /// A kernel that is not there, no memory.
    pub fn new(mut driver: Box<dyn Driver>, formats: &[Format]) -> Result<Queue, GpuError> {
        let mut kernels = HashMap::new();
        for name in NAMES {
            kernels.insert(name, driver.kernel(name)?);
        }
        let (mut matmuls, mut thin_matmuls) = (HashMap::new(), HashMap::new());
        for format in formats {
            for rows in MATMUL_ROWS {
                matmuls.insert((format.name(), rows), driver.kernel(&matmul_name(*format, rows))?);
            }
            if format.side() == Side::Float {
                thin_matmuls.insert(format.name(), driver.kernel(&thin_matmul_name(*format))?);
            }
        }
        let blocks_wanted = BLOCKS_EACH * driver.info()?.multiprocessors;
        let bytes = super::tables();
        let tables = driver.alloc("codebooks", bytes.len().max(1) as u64)?;
        // SAFETY: the memory was allocated for them; pageable memory is copied at the call.
        unsafe { driver.upload(Lane::Compute, tables, bytes.as_ptr(), bytes.len()) }?;
        let done = driver.record(Lane::Compute, None)?;
        driver.wait(done)?;
        Ok(Queue { driver, kernels, matmuls, thin_matmuls, tables, blocks_wanted, failed: None })
    }

    /// The driver, for what is not queued.
    pub fn driver(&mut self) -> &mut dyn Driver {
        self.driver.as_mut()
    }

    /// Blocks of threads that a launch should have, so that no part of the device idles.
    pub fn blocks_wanted(&self) -> u32 {
        self.blocks_wanted
    }

    /// Does `work` unless something has failed before; keeps its error.
    pub fn run<T: Default>(&mut self, work: impl FnOnce(&mut dyn Driver) -> Result<T, GpuError>) -> T {
        if self.failed.is_some() {
            return T::default();
        }
        work(self.driver.as_mut()).unwrap_or_else(|error| {
            self.failed = Some(error);
            T::default()
        })
    }

    /// The error that stopped the queue.
    ///
    /// # Errors
    /// That one; later calls say that it has failed.
    pub fn check(&mut self) -> Result<(), GpuError> {
        let Some(error) = self.failed.take() else { return Ok(()) };
        self.failed = Some(GpuError::Failed { action: "go on", reason: format!("{error}") });
        Err(error)
    }

    /// Blocks until everything in the lane is done.
    ///
    /// # Errors
    /// Of anything queued before.
    pub fn finish(&mut self, lane: Lane) -> Result<(), GpuError> {
        self.check()?;
        let done = self.driver.record(lane, None)?;
        self.driver.wait(done)
    }

    /// Blocks until everything in the lane is done, whatever has failed: memory that it uses is about to go.
    pub fn drain(&mut self, lane: Lane) {
        // Nobody can be told any more.
        let _ = self.driver.record(lane, None).and_then(|done| self.driver.wait(done));
    }

    /// A point behind all copies queued so far; `reuse` is one that nobody waits for any more.
    pub fn copied(&mut self, reuse: Option<Event>) -> Option<Event> {
        self.run(|driver| driver.record(Lane::Copy, reuse).map(Some))
    }

    /// Orders the compute lane behind a point.
    pub fn compute_after(&mut self, event: Option<Event>) {
        if let Some(event) = event {
            self.run(|driver| driver.order(Lane::Compute, event));
        }
    }

    /// Queues a kernel over `len` values, one a thread.
    pub fn over(&mut self, name: &'static str, len: usize, args: &[Arg<'_>]) {
        self.launch(name, element_grid(len as u32), args);
    }

    /// Queues a kernel.
    pub fn launch(&mut self, name: &'static str, grid: Grid, args: &[Arg<'_>]) {
        if grid.blocks.contains(&0) {
            return;
        }
        let kernel = self.kernels[name];
        // SAFETY: callers pass what the kernel's signature asks for (checked bit by bit in `kernel_tests`).
        self.run(|driver| unsafe { driver.launch(kernel, grid, args) });
    }

    /// Queues products of matrices of one format and input width.
    pub fn matmul(&mut self, format: Format, cols: usize, jobs: &[MatmulJob]) {
        for jobs in jobs.chunks(MATMUL_JOBS_MAX) {
            let count = jobs.iter().map(|job| job.count).max().unwrap_or(0);
            if count == 0 {
                continue;
            }
            let rows = matmul_rows(jobs, self.blocks_wanted);
            let (kernel, grid) = match thin_matmul_grid(format, cols, jobs) {
                Some(grid) => (self.thin_matmuls[format.name()], grid),
                None => (self.matmuls[&(format.name(), rows)], matmul_grid(rows, jobs)),
            };
            let words = matmul_jobs(jobs);
            let args = [Arg::Struct(&words), Arg::U32(cols as u32), Arg::Ptr(self.tables)];
            // SAFETY: as in `launch`; jobs lie in registers and weights of this device, or in pinned memory of the host's
            // that nobody writes to until the kernels are done (see `in_place`), and that nobody reads before an event
            // behind them where it is written to (see `mirror`).
            self.run(|driver| unsafe { driver.launch(kernel, grid, &args) });
        }
    }
}
