//! Every kernel against the CPU path, bit by bit: on the machine's card where the build supports it and there is one,
//! else on the emulated one.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod attend;
mod cache;
mod matmul;
mod quantize;
mod vector;

use super::{Arg, DevicePtr, Driver, EmulatedDriver, EmulatedOptions, Grid, Lane, Schedule};

#[test]
fn the_card_of_these_tests_has_a_name() {
    let name = Card::new().driver().info().unwrap().name;
    println!("kernel tests run on: {name}");
    assert!(!name.is_empty());
}

/// A real card, open for whichever test comes next: opening one takes longer than most tests.
#[cfg(feature = "cuda")]
static OPEN: parking_lot::Mutex<Vec<super::cuda::CudaDriver>> = parking_lot::Mutex::new(Vec::new());

/// A card for one test.
enum Card {
    #[cfg(feature = "cuda")]
    Real(Option<super::cuda::CudaDriver>),
    Emulated(EmulatedDriver),
}

#[cfg(feature = "cuda")]
impl Drop for Card {
    fn drop(&mut self) {
        if let Card::Real(driver) = self {
            OPEN.lock().extend(driver.take());
        }
    }
}

impl Card {
    fn new() -> Card {
        #[cfg(feature = "cuda")]
        if let Some(driver) = OPEN.lock().pop().or_else(|| super::cuda::CudaDriver::open(0).ok()) {
            return Card::Real(Some(driver));
        }
        let (is_unified, schedule) = (false, Schedule::Eager);
        let options = EmulatedOptions {
            memory_bytes: 256 << 20,
            is_unified,
            reads_host: true,
            schedule,
            failing: None,
        };
        Card::Emulated(EmulatedDriver::new(options).unwrap())
    }

    fn driver(&mut self) -> &mut dyn Driver {
        match self {
            #[cfg(feature = "cuda")]
            Card::Real(driver) => driver.as_mut().unwrap(),
            Card::Emulated(driver) => driver,
        }
    }

    /// Memory with these bytes.
    fn upload(&mut self, bytes: &[u8]) -> DevicePtr {
        let at = self.driver().alloc("a test's bytes", bytes.len().max(1) as u64).unwrap();
        // SAFETY: the memory was allocated, and pageable memory is copied at once.
        unsafe { self.driver().upload(Lane::Compute, at, bytes.as_ptr(), bytes.len()) }.unwrap();
        at
    }

    fn upload_floats(&mut self, values: &[f32]) -> DevicePtr {
        self.upload(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// Runs a kernel.
    fn run(&mut self, kernel: &str, grid: Grid, args: &[Arg<'_>]) {
        let kernel = self.driver().kernel(kernel).unwrap();
        // SAFETY: tests pass what the kernel's signature says.
        unsafe { self.driver().launch(kernel, grid, args) }.unwrap();
    }

    /// What stands in memory once all is done.
    fn read(&mut self, at: DevicePtr, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // SAFETY: the bytes stay where they are until the wait is over.
        unsafe { self.driver().download(Lane::Compute, bytes.as_mut_ptr(), at, len) }.unwrap();
        let event = self.driver().record(Lane::Compute, None).unwrap();
        self.driver().wait(event).unwrap();
        bytes
    }

    /// The bits of floats in memory.
    fn read_bits(&mut self, at: DevicePtr, len: usize) -> Vec<u32> {
        let bytes = self.read(at, 4 * len);
        bytes.as_chunks().0.iter().map(|bits| u32::from_le_bytes(*bits)).collect()
    }
}

/// The emulated card runs one kernel after another, so it shows no kernel that does not wait: the source has to.
#[test]
fn every_kernel_waits_for_those_before_it_before_anything_but_asking_for_weights() {
    const ALLOWED: [&str; 4] = [
        "const matmul::Work work(jobs, R)",
        "work.fetch(matmul::RUN##_bytes<formats::FORMAT>(cols))",
        "const matmul::Work work(jobs, matmul::THIN_ROWS)",
        "matmul::fetch_thin<formats::FORMAT>(work, cols)",
    ];
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gpu/kernels");
    let Ok(files) = std::fs::read_dir(&folder) else {
        println!("skipped: the sources are not at {}", folder.display());
        return;
    };
    let paths = files.map(|file| file.unwrap().path());
    // What else lies there is the emulated card's own.
    let of_card = paths.filter(|path| path.extension().is_some_and(|end| end == "cuh" || end == "cu"));
    let sources: String = of_card.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let kernels: Vec<&str> = sources.split("extern \"C\" __global__").skip(1).collect();
    assert!(kernels.len() >= 14, "{} kernels", kernels.len());
    for kernel in kernels {
        let (head, body) = kernel.split_once('{').expect("a kernel has a body");
        let (before, _) = body.split_once("after_previous();").unwrap_or((body, ""));
        let statements =
            before.split(';').map(|line| line.trim_matches(|c: char| c == '\\' || c.is_whitespace()));
        for statement in statements.filter(|statement| !statement.is_empty()) {
            assert!(ALLOWED.contains(&statement), "{head}: {statement}");
        }
    }
}
