//! GB/s of a reader on a file: `readers NAME FILE [REQUEST_KIB] [READS_IN_FLIGHT] [SECONDS] [DEPTH]`.
//!
//! Reads of one size at random offsets that no page boundary knows of (as a plain GGUF has them), a
//! fixed number of them in flight, into slots of one arena. Prints one line: GB/s, CPU seconds spent
//! per GB, reads done. `+0` after the name (`io_uring+0`) makes offsets whole pages, `-heap` takes
//! buffers of their own, which no ring registers.

use std::path::PathBuf;
use std::time::Instant;

use drafthorse_offload::{
    AlignedBuf, Arena, Extent, OffloadError, PAGE_BYTES, Read, ReaderOptions, open_reader,
};

struct Run {
    reader: String,
    file: PathBuf,
    bytes: u64,
    in_flight: usize,
    seconds: f64,
    options: ReaderOptions,
    aligned: bool,
    own: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, or: usize| args.get(at).map_or(Ok(or), |text| text.parse::<usize>());
    let name = args.first().ok_or("usage: readers NAME FILE [KIB] [IN_FLIGHT] [SECONDS] [DEPTH]")?;
    let run = Run {
        reader: name.replace("+0", "").replace("-heap", ""),
        file: args.get(1).ok_or("which file?")?.into(),
        bytes: number(2, 576)? as u64 * 1024,
        in_flight: number(3, 16)?,
        seconds: number(4, 3)? as f64,
        options: ReaderOptions { threads: number(3, 16)?, depth: number(5, 32)?, cached: false },
        aligned: name.contains("+0"),
        own: name.contains("-heap"),
    };
    println!("{}", measure(&run)?);
    Ok(())
}

fn measure(run: &Run) -> Result<String, Box<dyn std::error::Error>> {
    let mut reader = open_reader(&run.reader, std::slice::from_ref(&run.file), &run.options)?;
    let span = std::fs::metadata(&run.file)?.len() - run.bytes;
    let mut offsets = numbers();
    let mut read = |buf| {
        let offset = offsets() % span;
        let offset = if run.aligned { offset - offset % PAGE_BYTES as u64 } else { offset };
        Read { tag: 0, extent: Extent { file: 0, offset, len: run.bytes }, buf }
    };
    let (began, cpu_began) = (Instant::now(), cpu_seconds());
    reader.submit(buffers(run)?.into_iter().map(&mut read).collect())?;
    let mut reads = 0;
    while reader.in_flight() > 0 {
        let done = reader.wait()?;
        done.data?;
        reads += 1;
        if began.elapsed().as_secs_f64() < run.seconds {
            reader.submit(vec![read(done.buf)])?;
        }
    }
    let gigabytes = (reads * run.bytes) as f64 / 1e9;
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu_began);
    let notice = reader.notice().unwrap_or("");
    Ok(format!("{:.3} GB/s  {:.3} cpu s/GB  {reads} reads  {notice}", gigabytes / seconds, cpu / gigabytes))
}

fn buffers(run: &Run) -> Result<Vec<AlignedBuf>, OffloadError> {
    let room = run.bytes as usize + 2 * PAGE_BYTES;
    let slot = room.next_multiple_of(PAGE_BYTES);
    let mut arena = Arena::new(run.in_flight, slot)?;
    let mut buffer = |_| match run.own {
        true => AlignedBuf::new(room),
        false => Ok(arena.take(room).expect("invariant: a slot for each read in flight")),
    };
    (0..run.in_flight).map(&mut buffer).collect()
}

/// User and system time of the process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 =
        after_name.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum();
    ticks / 100.0
}

/// Numbers without a pattern, others in every run (Knuth's MMIX generator, seeded by the clock).
fn numbers() -> impl FnMut() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let mut state = now.map_or(1, |since| since.as_nanos() as u64);
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state >> 16
    }
}
