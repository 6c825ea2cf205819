//! A small thread pool for one model: `run` splits a job into chunks and returns when all are done.
//!
//! Owns its worker threads (joined on drop) and the hand-over of borrowed closures to them. Each
//! model has its own pool, so draft and target never wait for one another and nothing is global.
//! Results must not depend on which thread runs a chunk; the pool gives no order. A worker that is
//! late (asleep, or off its core) is not waited for: who comes after the last chunk finds no job.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

/// Polls before a thread that waits for others goes to sleep: about 20 us, less than a wake-up costs
/// and far less than anybody notices on an idle machine.
const SPINS_BEFORE_SLEEP: u32 = 2_000;
/// Polls after that, giving the core away after each: about 200 us on an idle machine. On a busy one
/// they cost nobody anything, and save what waking a thread costs (50 us and more in a virtual machine).
const YIELDS_BEFORE_SLEEP: u32 = 500;

/// A chunk closure whose borrow is erased; valid until `Pool::run` that published it returns.
#[derive(Clone, Copy)]
struct Job {
    call: *const (dyn Fn(usize) + Sync),
    chunks: usize,
}

// SAFETY: the pointee is `Sync`, and `Pool::run` keeps it alive until every worker that took the job has
// left it, and lets nobody take it later.
unsafe impl Send for Job {}

struct State {
    /// What workers may still join.
    job: Option<Job>,
    panic: Option<Box<dyn Any + Send>>,
    shutdown: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Counts published jobs; workers compare it with the last one they served.
    generation: AtomicU64,
    /// Workers inside the present job; changed under the lock only, so that nobody is missed.
    busy: AtomicUsize,
    next_chunk: AtomicUsize,
    start: Condvar,
    done: Condvar,
}

/// Worker threads plus the calling thread.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool that computes on `threads` threads, the caller included (at least 1).
    ///
    /// # Errors
    /// The operating system's error when a thread cannot be started.
    pub fn new(threads: usize, name: &str) -> std::io::Result<Pool> {
        let state = State { job: None, panic: None, shutdown: false };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            generation: AtomicU64::new(0),
            busy: AtomicUsize::new(0),
            next_chunk: AtomicUsize::new(0),
            start: Condvar::new(),
            done: Condvar::new(),
        });
        let mut pool = Pool { shared, workers: Vec::new() };
        for index in 1..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("{name}-{index}"));
            pool.workers.push(builder.spawn(move || work(&shared))?);
        }
        Ok(pool)
    }

    /// Threads that compute, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `chunk(0..chunks)`, each index once, on any of the threads; returns when all are done.
    /// A panic in a chunk reaches the caller after the others have finished.
    pub fn run(&mut self, chunks: usize, chunk: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || chunks <= 1 {
            (0..chunks).for_each(chunk);
            return;
        }
        self.publish(chunks, chunk);
        let own = catch_unwind(AssertUnwindSafe(|| self.shared.drain(chunks, chunk)));
        let panic = self.shared.finish();
        if let Some(payload) = own.err().or(panic) {
            resume_unwind(payload);
        }
    }

    fn publish(&self, chunks: usize, chunk: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime is erased. `run` (which takes `&mut self`, so one job at a time)
        // does not return before `finish` has closed the job and seen every worker leave it.
        let call = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(
                chunk,
            )
        };
        let mut state = self.shared.state.lock();
        state.job = Some(Job { call, chunks });
        self.shared.next_chunk.store(0, Ordering::Relaxed);
        self.shared.generation.fetch_add(1, Ordering::Release);
        drop(state);
        self.shared.start.notify_all();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.lock().shutdown = true;
        self.shared.generation.fetch_add(1, Ordering::Release);
        self.shared.start.notify_all();
        for worker in self.workers.drain(..) {
            // A worker's panic was already handed to the caller of `run`.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn drain(&self, chunks: usize, chunk: &(dyn Fn(usize) + Sync)) {
        loop {
            let index = self.next_chunk.fetch_add(1, Ordering::Relaxed);
            if index >= chunks {
                return;
            }
            chunk(index);
        }
    }

    /// Closes the job and waits until every worker that took it has left, so the closure may go.
    fn finish(&self) -> Option<Box<dyn Any + Send>> {
        self.state.lock().job = None;
        spin_until(|| self.busy.load(Ordering::Acquire) == 0);
        let mut state = self.state.lock();
        while self.busy.load(Ordering::Acquire) > 0 {
            self.done.wait(&mut state);
        }
        state.panic.take()
    }

    /// Sleeps until there is a job newer than `served`, and takes it; `None` means shut down.
    fn next_job(&self, served: &mut u64) -> Option<Job> {
        loop {
            spin_until(|| self.generation.load(Ordering::Acquire) != *served);
            let mut state = self.state.lock();
            while self.generation.load(Ordering::Acquire) == *served && !state.shutdown {
                self.start.wait(&mut state);
            }
            *served = self.generation.load(Ordering::Acquire);
            if state.shutdown {
                return None;
            }
            if state.job.is_some() {
                self.busy.fetch_add(1, Ordering::AcqRel);
                return state.job;
            }
        }
    }
}

/// Polls `done` for as long as that is cheaper than sleeping.
fn spin_until(done: impl Fn() -> bool) {
    for _ in 0..SPINS_BEFORE_SLEEP {
        if done() {
            return;
        }
        std::hint::spin_loop();
    }
    for _ in 0..YIELDS_BEFORE_SLEEP {
        if done() {
            return;
        }
        std::thread::yield_now();
    }
}

fn work(shared: &Shared) {
    let mut served = 0;
    while let Some(job) = shared.next_job(&mut served) {
        // SAFETY: this worker was counted in `busy`, so `Pool::run` still waits and the closure lives.
        let chunk = unsafe { &*job.call };
        let outcome = catch_unwind(AssertUnwindSafe(|| shared.drain(job.chunks, chunk)));
        let mut state = shared.state.lock();
        if let Err(payload) = outcome {
            state.panic.get_or_insert(payload);
        }
        if shared.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
            shared.done.notify_one();
        }
    }
}

/// A mutable slice that chunks of one job may write at disjoint places.
#[derive(Clone, Copy)]
pub struct SharedOut<'a> {
    base: *mut f32,
    len: usize,
    borrow: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: writes go through `range`, whose contract demands disjoint ranges.
unsafe impl Send for SharedOut<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedOut<'_> {}

impl<'a> SharedOut<'a> {
    /// Wraps `out` for the time of one job.
    pub fn new(out: &'a mut [f32]) -> SharedOut<'a> {
        SharedOut { base: out.as_mut_ptr(), len: out.len(), borrow: std::marker::PhantomData }
    }

    /// The `len` values from `start` on.
    ///
    /// # Safety
    /// No two live ranges may overlap.
    ///
    /// # Panics
    /// When the range leaves the slice.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's contract")]
    pub unsafe fn range(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(
            start.checked_add(len).is_some_and(|end| end <= self.len),
            "invariant: range inside the output"
        );
        // SAFETY: inside the borrowed slice, and disjoint by the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(start), len) }
    }

    /// Where `rows` rows of `len` values begin, `stride` values apart, the first at `start`. Writing through
    /// it is for whoever owns those values.
    ///
    /// # Panics
    /// When a value would lie outside the slice.
    pub(super) fn pointer(&self, start: usize, rows: usize, stride: usize, len: usize) -> *mut f32 {
        let end = rows.checked_sub(1).and_then(|last| last.checked_mul(stride)?.checked_add(start + len));
        assert!(end.is_some_and(|end| end <= self.len), "invariant: rows inside the output");
        // SAFETY: `start` is inside the slice.
        unsafe { self.base.add(start) }
    }

    /// The value at `index`.
    ///
    /// # Safety
    /// No other live reference may point to it.
    ///
    /// # Panics
    /// When `index` is outside the slice.
    #[inline]
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's contract")]
    pub unsafe fn at(&self, index: usize) -> &mut f32 {
        assert!(index < self.len, "invariant: index inside the output");
        // SAFETY: inside the borrowed slice, and not shared by the caller's contract.
        unsafe { &mut *self.base.add(index) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_exactly_once_on_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let mut pool = Pool::new(threads, "test").expect("threads start");
            for chunks in [0, 1, 2, 7, 100] {
                let counts: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(chunks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} {chunks}");
            }
        }
    }

    #[test]
    fn short_jobs_in_quick_succession_are_complete_when_run_returns() {
        let mut pool = Pool::new(4, "test").expect("threads start");
        for job in 0..20_000usize {
            // Each on its own stack value: a worker that came late would write to a dead one.
            let sum = AtomicUsize::new(0);
            pool.run(3, &|i| {
                sum.fetch_add(job + i, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 3 * job + 3);
        }
    }

    #[test]
    fn a_panicking_chunk_reaches_the_caller_and_leaves_the_pool_usable() {
        let mut pool = Pool::new(3, "test").expect("threads start");
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(16, &|i| assert!(i != 7, "chunk 7 fails"));
        }));
        assert!(outcome.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 45);
    }
}
