//! `drafthorse-eval speedup`: what drafting brings, setting by setting, and whether it leaves the text alone.
//!
//! A TOML sweep is crossed into cells; every drafted run stands next to a run without a draft of the same
//! cache, start, temperature and prompt (A B B A, or side by side in slices), and its speedup is the quotient of the
//! two. Runs are processes of `drafthorse run --json` (`run.rs` says why), kept one by one in runs.jsonl, so that an
//! interrupted sweep goes on. Owns the order of the work and its errors; each step is a file beside this one:
//!
//! sweep -> plan (prompts, cells, turns) -> work (run, record, journal) -> summary (stats, best) -> report
//! (table, auto, plot, html).

mod auto;
mod best;
mod cell;
mod energy;
mod environment;
mod html;
mod journal;
mod merge;
mod plan;
mod plot;
mod prompts;
mod record;
mod report;
mod rules;
mod run;
mod side_table;
mod slices;
mod stats;
mod summary;
mod sweep;
mod table;
mod turns;
mod work;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use drafthorse_runtime::Error as EngineError;
use drafthorse_runtime::gguf::GgufError;
use thiserror::Error;

use crate::compare::{CompareError, date};
use crate::replay::ReplayError;
use energy::Energy;
use environment::Environment;
use journal::Journal;
use plan::Plan;
use run::Runner;
use summary::Summary;
use sweep::{REPEATS_FACTOR_MAX, Sweep};
use work::Work;

pub use report::Report;
pub use table::{markdown, verdict};

/// What to sweep, and where the result goes.
pub struct SpeedupOptions {
    /// The sweep's file.
    pub sweep: PathBuf,
    /// Settings put over it, `key=value`.
    pub set: Vec<String>,
    /// The folder to write to.
    pub output: PathBuf,
    /// One short run of everything.
    pub quick: bool,
    /// Go on with what is in the folder.
    pub resume: bool,
    /// The `drafthorse` program.
    pub program: PathBuf,
    /// Whether the whole page cache is dropped before cold runs.
    pub drop_caches: bool,
    /// The command line, for the report.
    pub command: String,
}

/// Why there is no result.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SpeedupError {
    /// The command or the sweep makes no sense as given.
    #[error("{0}")]
    Usage(String),
    /// The model's header or settings.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The model's file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The model is of no use here.
    #[error("{0}")]
    Model(String),
    /// A line of a file of prompts or runs is wrong.
    #[error("{}: line {line}: {problem}", .file.display())]
    Line {
        /// Which file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A file or program.
    #[error("cannot {action} {}: {source}", .file.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The machine.
    #[error(transparent)]
    Machine(#[from] CompareError),
    /// A trace that a run wrote.
    #[error(transparent)]
    Trace(#[from] ReplayError),
    /// A run that others need failed: it fixes a text's ids, or learns what they begin with.
    #[error("the untimed run failed: {problem} (from {command})")]
    Reference {
        /// What was run.
        command: String,
        /// How it ended.
        problem: String,
    },
    /// Ctrl-C.
    #[error("interrupted: {done} of {all} runs are kept; the same command with --resume goes on")]
    Interrupted {
        /// Runs kept.
        done: usize,
        /// Runs of the sweep.
        all: usize,
    },
    /// speedup.json or the page.
    #[error("{}: {problem}", .file.display())]
    Report {
        /// Which file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl SpeedupError {
    fn io(action: &'static str, file: &Path, source: io::Error) -> SpeedupError {
        SpeedupError::Io { action, file: file.to_owned(), source }
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            SpeedupError::Usage(_) | SpeedupError::Line { .. } => 2,
            SpeedupError::Engine(error) => error.exit_code(),
            SpeedupError::Machine(error) => error.exit_code(),
            SpeedupError::Gguf(_) | SpeedupError::Model(_) => 3,
            SpeedupError::Io { .. }
            | SpeedupError::Trace(_)
            | SpeedupError::Reference { .. }
            | SpeedupError::Interrupted { .. }
            | SpeedupError::Report { .. } => 1,
        }
    }
}

/// Makes every run that is not there yet, then the report; `tell` gets a line for every run.
///
/// # Errors
/// [`SpeedupError`]. Runs that fail and ids that differ are part of the report.
pub fn speedup(options: &SpeedupOptions, tell: &mut dyn FnMut(&str)) -> Result<Report, SpeedupError> {
    let sweep = Sweep::load(&options.sweep, &options.set, options.quick)?;
    let plan = Plan::new(sweep)?;
    let scratch = options.output.join("scratch");
    fs::create_dir_all(&scratch).map_err(|source| SpeedupError::io("make", &scratch, source))?;
    let print = plan.fingerprint(&options.program)?;
    let journal = Journal::open(&options.output.join("runs.jsonl"), &print, options.resume)?;
    let runner = Runner {
        program: options.program.clone(),
        model: plan.model.clone(),
        files: plan.files.clone(),
        drop_caches: options.drop_caches,
        context: plan.context,
        energy: Energy::find(),
        sweep: plan.sweep.clone(),
    };
    let environment = Environment::look(&runner);
    let interrupted = listen()?;
    let mut work = Work { plan: &plan, runner, journal, scratch: scratch.clone(), interrupted, tell };
    work.all()?;
    let summary = Summary { plan: &plan, journal: &work.journal, scratch: &scratch };
    let report = Report {
        format: Report::format(),
        command: options.command.clone(),
        date: date(SystemTime::now()),
        environment,
        sweep: serde_json::to_value(&plan.sweep).map_err(|error| SpeedupError::Report {
            file: options.sweep.clone(),
            problem: error.to_string(),
        })?,
        model: plan.model.display().to_string(),
        bank: plan.bank,
        rows: summary.rows()?,
        texts: summary.texts(),
        notes: notes(&plan, options),
    };
    report.save(&options.output)?;
    render(&options.output)
}

/// Draws tables and plots from the folder's speedup.json; the report that is in it.
///
/// # Errors
/// No such file, a damaged one, or a file that cannot be written.
pub fn render(folder: &Path) -> Result<Report, SpeedupError> {
    let report = Report::load(folder)?;
    report.render(folder)?;
    Ok(report)
}

/// One report, in `output`, of the sweeps in `folders`, which differ in their cache sizes alone.
///
/// # Errors
/// As [`render`], and sweeps that do not go together.
pub fn merge(folders: &[PathBuf], output: &Path, command: String) -> Result<Report, SpeedupError> {
    let is_output = |folder: &&PathBuf| match (fs::canonicalize(folder), fs::canonicalize(output)) {
        (Ok(folder), Ok(output)) => folder == output,
        _ => false,
    };
    if let Some(folder) = folders.iter().find(is_output) {
        let problem = format!("{}: the report would replace the sweep it is made of", folder.display());
        return Err(SpeedupError::Usage(problem));
    }
    let load = |folder: &PathBuf| Ok((folder.display().to_string(), Report::load(folder)?));
    let reports = folders.iter().map(load).collect::<Result<Vec<_>, SpeedupError>>()?;
    let report = merge::merge(reports, command)?;
    fs::create_dir_all(output).map_err(|source| SpeedupError::io("make", output, source))?;
    report.save(output)?;
    render(output)
}

/// Lets Ctrl-C end the sweep after the run at work, which it ends as well, or amid runs side by side.
fn listen() -> Result<Arc<AtomicBool>, SpeedupError> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).map_err(|error| {
        SpeedupError::io("listen for Ctrl-C in", Path::new("this process"), io::Error::other(error))
    })?;
    Ok(interrupted)
}

/// What a reader of the table must know of how it was made.
fn notes(plan: &Plan, options: &SpeedupOptions) -> Vec<String> {
    let sweep = &plan.sweep;
    let mut notes = vec![format!(
        "{} prompts of at most {} tokens (longer ones lose their end), {} tokens a run, end tokens ignored, {} \
         repeats, seed {}",
        plan.prompts.len(),
        sweep.prompt_tokens_max,
        sweep.tokens,
        sweep.repeats,
        sweep.seed
    )];
    if sweep.decode_s_min > 0.0 {
        notes.push(format!(
            "short runs more often, up to {REPEATS_FACTOR_MAX} times: until those without a draft beside a drafter's decoded for {} s a \
             prompt",
            sweep.decode_s_min
        ));
    }
    if sweep.slice_tokens > 0 {
        notes.push(format!(
            "side by side: the runs of a drafter and one without a draft went on in turn, {} tokens at a time; energy \
             cannot be told apart",
            sweep.slice_tokens
        ));
    }
    if options.quick {
        notes.push(
            "--quick: one short run of every setting, which says whether it works and not how fast"
                .to_owned(),
        );
    }
    notes
}
