//! The kernels compiled for the processor, as functions that can be looked up and run.
//!
//! Owns the C interface of `kernels/emulator.cpp` and checks arguments against signatures. It must not know memory
//! or lanes.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use super::super::driver::{Arg, Grid};

unsafe extern "C" {
    fn emulator_needs_fma() -> c_int;
    fn emulator_find(name: *const c_char) -> c_int;
    fn emulator_parameter(kernel: c_int, index: u32, kind: *mut u32, bytes: *mut u32) -> u32;
    fn emulator_misaligned(line: *mut u32) -> *const c_char;
    fn emulator_launch(
        kernel: c_int,
        blocks: *const u32,
        threads: u32,
        shared_bytes: u32,
        args: *mut *mut c_void,
    ) -> c_int;
}

/// Parameters of a kernel take no more, as on a card.
const PARAMETER_BYTES_MAX: u32 = 4096;

/// What a parameter is: the numbers of `emulator.cpp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ptr = 1,
    U32 = 2,
    F32 = 3,
    Struct = 4,
}

/// Whether this processor has what the kernels were compiled for.
pub fn runs_here() -> bool {
    // SAFETY: it returns a constant.
    let needs_fma = unsafe { emulator_needs_fma() } != 0;
    #[cfg(target_arch = "x86_64")]
    return !needs_fma || is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    return !needs_fma;
}

/// The number of a kernel.
pub fn find(name: &str) -> Option<usize> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name is a C string.
    usize::try_from(unsafe { emulator_find(name.as_ptr()) }).ok()
}

/// A launch with a copy of its arguments.
#[derive(Debug)]
pub struct Launch {
    kernel: usize,
    grid: Grid,
    /// The values, each from a word's beginning.
    args: Vec<Vec<u64>>,
}

impl Launch {
    /// Checks grid and arguments; what is wrong with them is the error.
    pub fn new(kernel: usize, grid: Grid, args: &[Arg<'_>]) -> Result<Launch, String> {
        check_grid(grid)?;
        check_args(kernel, args)?;
        let value = |arg: &Arg<'_>| match *arg {
            Arg::Ptr(pointer) => vec![pointer],
            Arg::U32(number) => vec![first_in_word(number.to_ne_bytes())],
            Arg::F32(number) => vec![first_in_word(number.to_ne_bytes())],
            Arg::Struct(words) => words.to_vec(),
        };
        Ok(Launch { kernel, grid, args: args.iter().map(value).collect() })
    }

    /// Runs it to its end; what went wrong is the error.
    ///
    /// # Safety
    /// The kernel may read and write what the pointers among its arguments point to.
    pub unsafe fn run(mut self) -> Result<(), String> {
        let mut args: Vec<*mut c_void> =
            self.args.iter_mut().map(|value| value.as_mut_ptr().cast::<c_void>()).collect();
        let Grid { blocks, threads, shared_bytes } = self.grid;
        // SAFETY: the arguments are of the kernel's signature; where they point is the caller's promise.
        let outcome = unsafe {
            emulator_launch(self.kernel as c_int, blocks.as_ptr(), threads, shared_bytes, args.as_mut_ptr())
        };
        match outcome {
            0 => Ok(()),
            1 => Err("threads of a block wait for others that never come".into()),
            3 => Err(format!("an address is not aligned at {}", misaligned_line())),
            _ => Err("no memory is left for the threads' stacks".into()),
        }
    }
}

/// Where this thread's last launch used an address that is not aligned.
fn misaligned_line() -> String {
    let mut line = 0;
    // SAFETY: the place may be written to.
    let file = unsafe { emulator_misaligned(&mut line) };
    if file.is_null() {
        return String::new();
    }
    // SAFETY: names of source files are constants.
    let file = unsafe { CStr::from_ptr(file) };
    format!("{}:{line}", file.to_string_lossy())
}

fn first_in_word(bytes: [u8; 4]) -> u64 {
    let mut word = [0; 8];
    word[..4].copy_from_slice(&bytes);
    u64::from_ne_bytes(word)
}

fn check_grid(grid: Grid) -> Result<(), String> {
    let [x, y, z] = grid.blocks;
    let fits = x >= 1
        && (1..=65535).contains(&y)
        && (1..=65535).contains(&z)
        && i32::try_from(x).is_ok()
        && (1..=1024).contains(&grid.threads)
        && grid.shared_bytes <= 48 << 10;
    if fits { Ok(()) } else { Err(format!("no card has {grid:?}")) }
}

fn check_args(kernel: usize, args: &[Arg<'_>]) -> Result<(), String> {
    let parameters = parameters(kernel);
    if parameters.len() != args.len() {
        return Err(format!("{} arguments for {} parameters", args.len(), parameters.len()));
    }
    for (index, ((kind, bytes), arg)) in parameters.iter().zip(args).enumerate() {
        let (got, got_bytes) = match arg {
            Arg::Ptr(_) => (Kind::Ptr, 8),
            Arg::U32(_) => (Kind::U32, 4),
            Arg::F32(_) => (Kind::F32, 4),
            Arg::Struct(words) => (Kind::Struct, 8 * words.len() as u32),
        };
        if (*kind, *bytes) != (got as u32, got_bytes) {
            return Err(format!(
                "argument {index} is a {got:?} of {got_bytes} bytes, not kind {kind} of {bytes}"
            ));
        }
    }
    let bytes: u32 = parameters.iter().map(|(_, bytes)| bytes).sum();
    if bytes > PARAMETER_BYTES_MAX {
        return Err(format!("{bytes} bytes of parameters: a card takes {PARAMETER_BYTES_MAX}"));
    }
    Ok(())
}

/// Kind and bytes of each parameter.
fn parameters(kernel: usize) -> Vec<(u32, u32)> {
    let parameter = |index| {
        let (mut kind, mut bytes) = (0, 0);
        // SAFETY: the kernel was found; both places may be written to.
        let count = unsafe { emulator_parameter(kernel as c_int, index, &mut kind, &mut bytes) };
        (index < count).then_some((kind, bytes))
    };
    (0..).map_while(parameter).collect()
}
