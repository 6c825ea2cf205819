//! `drafthorse-eval speedup` and `report`: arguments, progress and exit code of the sweeps.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use crate::compare::command_line;
use crate::speedup::{Report, SpeedupError, SpeedupOptions, markdown, merge, render, speedup, verdict};

/// `speedup`
#[derive(Args)]
pub struct SpeedupArgs {
    /// The sweep; eval/sweeps/ has some, and every key is described in demo.toml there.
    sweep: PathBuf,
    /// Folder for runs.jsonl, speedup.json, .csv, .md and report.html.
    #[arg(short, long, value_name = "OUTDIR")]
    output: PathBuf,
    /// A key of the sweep with another value, in TOML or as text; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// One run of at most 32 tokens of every setting, on one prompt a task.
    #[arg(long)]
    quick: bool,
    /// Go on with the runs that are in OUTDIR.
    #[arg(long)]
    resume: bool,
    /// The drafthorse program [default: the one beside this].
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Before cold runs, drop the whole page cache instead of the models' files (needs root).
    #[arg(long)]
    drop_caches: bool,
    /// Print speedup.json instead of the table.
    #[arg(long)]
    json: bool,
}

/// `report`
#[derive(Args)]
pub struct ReportArgs {
    /// Folder of a sweep's result; several make one report of sweeps that differ in their cache sizes alone.
    #[arg(required = true, value_name = "OUTDIR")]
    folders: Vec<PathBuf>,
    /// Where the report of several sweeps goes.
    #[arg(short, long, value_name = "OUTDIR")]
    output: Option<PathBuf>,
}

/// Sweeps and reports; an error where ids differ or runs failed.
pub fn run(args: SpeedupArgs) -> anyhow::Result<()> {
    let options = SpeedupOptions {
        sweep: args.sweep,
        set: args.set,
        output: args.output,
        quick: args.quick,
        resume: args.resume,
        program: args.program.map_or_else(sibling, Ok)?,
        drop_caches: args.drop_caches,
        command: command_line(),
    };
    let report = speedup(&options, &mut |line| eprintln!("{line}"))?;
    let text = if args.json { serde_json::to_string(&report)? + "\n" } else { markdown(&report) };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    judge(&report)
}

/// Renders again, or makes one report of several.
pub fn report(args: &ReportArgs) -> anyhow::Result<()> {
    let report = match (args.folders.as_slice(), &args.output) {
        ([folder], None) => render(folder)?,
        (folders, Some(output)) => merge(folders, output, command_line())?,
        _ => {
            return Err(
                SpeedupError::Usage("several sweeps need --output for their report".to_owned()).into()
            );
        }
    };
    Ok(std::io::stdout().lock().write_all(markdown(&report).as_bytes())?)
}

fn judge(report: &Report) -> anyhow::Result<()> {
    anyhow::ensure!(report.differing().next().is_none(), "{}", verdict(report));
    let failed = report.failed();
    anyhow::ensure!(failed == 0, "{failed} runs failed; --resume makes them again");
    Ok(())
}

/// The program that was built with this one.
fn sibling() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let sibling = own.with_file_name("drafthorse").with_extension(std::env::consts::EXE_EXTENSION);
    let there = Some(sibling).filter(|path| Path::is_file(path));
    there.context("there is no drafthorse beside this program: give --program")
}
