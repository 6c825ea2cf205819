//! `drafthorse-eval compare`: arguments and report of the comparison with another engine.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;

use crate::compare::{CompareError, CompareOptions, command_line, compare, markdown, text};

/// `compare`
#[derive(Args)]
pub struct CompareArgs {
    /// The GGUF that both engines run.
    #[arg(long, value_name = "FILE.gguf")]
    model: PathBuf,
    /// Memory of a process: shares of the file or sizes.
    #[arg(long, value_name = "1/2,2GiB", value_delimiter = ',', required = true)]
    limit: Vec<String>,
    /// A number of random token ids, or a file of ids.
    #[arg(long, value_name = "N|FILE")]
    ids: String,
    /// Of the random ids.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Passes over the ids in one process: the first cold, the others warm.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = small)]
    passes: usize,
    /// Processes of each kind.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = small)]
    repeat: usize,
    /// The drafthorse program.
    #[arg(long, value_name = "PATH")]
    ours: PathBuf,
    /// More arguments for it, in one string.
    #[arg(long, value_name = "ARGS", default_value = "", allow_hyphen_values = true)]
    ours_args: String,
    /// The other engine's command line, with {model} {ids} {threads} {passes}; prints one JSON line a
    /// pass (scripts/peer/decode_ids.cpp is llama.cpp's).
    #[arg(long, value_name = "CMD")]
    peer: String,
    /// Read-aheads of the block device to run the peer with, in KiB; put back at the end (needs root).
    #[arg(long, value_name = "128,8192", value_delimiter = ',')]
    read_ahead: Vec<u64>,
    /// Drop the page cache before every process (needs root).
    #[arg(long)]
    drop_caches: bool,
    /// Compute threads of both.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = small)]
    threads: usize,
    /// Run without memory cgroups: limits are told to ours and not enforced.
    #[arg(long)]
    no_cgroup: bool,
    /// Measure the disk's random reads with fio too, at this depth.
    #[arg(long, value_name = "DEPTH", num_args = 0..=1, default_missing_value = "32")]
    fio: Option<u32>,
    /// Print everything as one JSON object on stdout instead of the table.
    #[arg(long)]
    json: bool,
    /// Write the table to this file, too.
    #[arg(long, value_name = "FILE.md")]
    markdown: Option<PathBuf>,
}

fn small(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=1000).contains(number));
    number.ok_or_else(|| "expected a number from 1 to 1000".to_owned())
}

/// Compares and reports.
pub fn run(args: CompareArgs) -> anyhow::Result<()> {
    let options = CompareOptions {
        model: args.model,
        limits: args.limit,
        ids: args.ids,
        seed: args.seed,
        passes: args.passes,
        repeats: args.repeat,
        ours: args.ours,
        ours_args: args.ours_args,
        peer: args.peer,
        read_ahead_kb: args.read_ahead,
        drop_caches: args.drop_caches,
        threads: args.threads,
        cgroup: !args.no_cgroup,
        fio_depth: args.fio,
        command: command_line(),
    };
    let comparison = compare(&options, &mut |line| eprintln!("{line}"))?;
    let report = if args.json { serde_json::to_string(&comparison)? + "\n" } else { text(&comparison) };
    std::io::stdout().lock().write_all(report.as_bytes())?;
    if let Some(file) = &args.markdown {
        std::fs::write(file, markdown(&comparison)).map_err(|source| CompareError::Machine {
            what: format!("cannot write {}", file.display()),
            source,
        })?;
    }
    anyhow::ensure!(comparison.is_measured(), "no run gave numbers");
    Ok(())
}
