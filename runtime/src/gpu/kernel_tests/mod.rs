//! Every kernel on the emulated card against the CPU path, bit by bit.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod attend;
mod cache;
mod matmul;
mod quantize;
mod vector;

use super::{Arg, DevicePtr, Driver, EmulatedDriver, EmulatedOptions, Grid, Lane, Schedule};

/// An emulated card for one test.
struct Card(EmulatedDriver);

impl Card {
    fn new() -> Card {
        let options = EmulatedOptions { memory_bytes: 256 << 20, schedule: Schedule::Eager, failing: None };
        Card(EmulatedDriver::new(options).unwrap())
    }

    /// Memory with these bytes.
    fn upload(&mut self, bytes: &[u8]) -> DevicePtr {
        let at = self.0.alloc("a test's bytes", bytes.len().max(1) as u64).unwrap();
        // SAFETY: the memory was allocated, and pageable memory is copied at once.
        unsafe { self.0.upload(Lane::Compute, at, bytes.as_ptr(), bytes.len()) }.unwrap();
        at
    }

    fn upload_floats(&mut self, values: &[f32]) -> DevicePtr {
        self.upload(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// Runs a kernel.
    fn run(&mut self, kernel: &str, grid: Grid, args: &[Arg<'_>]) {
        let kernel = self.0.kernel(kernel).unwrap();
        // SAFETY: tests pass what the kernel's signature says.
        unsafe { self.0.launch(kernel, grid, args) }.unwrap();
    }

    /// What stands in memory once all is done.
    fn read(&mut self, at: DevicePtr, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // SAFETY: the bytes stay where they are until the wait is over.
        unsafe { self.0.download(Lane::Compute, bytes.as_mut_ptr(), at, len) }.unwrap();
        let event = self.0.record(Lane::Compute, None).unwrap();
        self.0.wait(event).unwrap();
        bytes
    }

    /// The bits of floats in memory.
    fn read_bits(&mut self, at: DevicePtr, len: usize) -> Vec<u32> {
        let bytes = self.read(at, 4 * len);
        bytes.as_chunks().0.iter().map(|bits| u32::from_le_bytes(*bits)).collect()
    }
}
