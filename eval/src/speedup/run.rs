//! One run: the command line, the state of the caches before it, the process, what it said.
//!
//! Runs are processes of `drafthorse run --json`, not calls of the library: each begins with nothing in
//! memory that another left (slots, allocator, threads, the controller's measurements), the peak of memory
//! is its own, one that dies takes nothing with it, and every figure can be had again by typing the command
//! that stands beside it. The price is that the model is loaded each time, which no rate counts.
//!
//! It must not know which runs there are.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use super::SpeedupError;
use super::cell::{Start, Variant};
use super::energy::Energy;
use super::record::{Record, read};
use super::sweep::Sweep;
use crate::compare::{drop_caches, load, shell_word};

/// Exit code of a command line that the program does not take: no other run would fare better.
const USAGE: i32 = 2;

/// What all runs share.
pub struct Runner {
    pub program: PathBuf,
    pub model: PathBuf,
    /// Files to be forgotten by the page cache before a cold run.
    pub files: Vec<PathBuf>,
    /// Whether the whole page cache is dropped then.
    pub drop_caches: bool,
    pub context: usize,
    pub energy: Energy,
    pub sweep: Sweep,
}

/// What is particular to one.
pub struct Task<'a> {
    pub key: String,
    pub prompt: &'a [u32],
    pub temperature: f64,
    /// None for a dense model.
    pub slots: Option<u64>,
    pub start: Start,
    /// None: nothing is drafted.
    pub variant: Option<&'a Variant>,
    /// Prompt and continuation, for scripted drafters.
    pub ids: &'a Path,
    /// Statistics that a warm run begins with.
    pub stats: Option<&'a Path>,
    /// Where to write the routing; the run is then a reference and keeps its ids.
    pub trace: Option<&'a Path>,
    /// Whether the ids are to be kept.
    pub keep_ids: bool,
}

/// What is known of a run from outside.
pub(super) struct Outside {
    pub arguments: Vec<OsString>,
    pub wall_s: f64,
    pub load_before: Option<f64>,
    pub energy_j: Option<f64>,
}

impl Runner {
    /// Runs it to its end.
    ///
    /// # Errors
    /// The machine, and a command line that the program refuses. A run that fails is a [`Record`].
    pub fn run(&self, task: &Task<'_>) -> Result<Record, SpeedupError> {
        self.prepare(task)?;
        let arguments = self.arguments(task);
        let load_before = load();
        let energy = self.energy.read();
        let started = Instant::now();
        let output = Command::new(&self.program).args(&arguments).stdin(Stdio::null()).output();
        let output = output.map_err(|source| SpeedupError::io("run", &self.program, source))?;
        let wall_s = started.elapsed().as_secs_f64();
        self.record(
            task,
            &output,
            Outside { arguments, wall_s, load_before, energy_j: self.energy.since(energy) },
        )
    }

    /// Puts the page cache into the state that it begins with.
    ///
    /// # Errors
    /// The machine.
    pub(super) fn prepare(&self, task: &Task<'_>) -> Result<(), SpeedupError> {
        match task.start {
            Start::Cold => self.forget(),
            Start::Warm => Ok(()),
        }
    }

    /// What became of a process that has ended.
    ///
    /// # Errors
    /// A command line that the program refuses.
    pub(super) fn record(
        &self,
        task: &Task<'_>,
        output: &Output,
        outside: Outside,
    ) -> Result<Record, SpeedupError> {
        let Outside { arguments, wall_s, load_before, energy_j } = outside;
        let command = self.shown(&arguments);
        if output.status.code() == Some(USAGE) {
            return Err(SpeedupError::Usage(format!("{} (from {command})", last_line(output))));
        }
        let outcome = judge(output, self.sweep.tokens);
        let (failure, (ids, measured)) = match outcome {
            Ok((ids, measured)) => (None, (ids, Some(measured))),
            Err(problem) => (Some(problem), (Vec::new(), None)),
        };
        let ids = if task.keep_ids { ids } else { Vec::new() };
        Ok(Record {
            key: task.key.clone(),
            command,
            wall_s,
            energy_j,
            load_before,
            failure,
            measured,
            round: 0,
            ids,
        })
    }

    pub(super) fn arguments(&self, task: &Task<'_>) -> Vec<OsString> {
        let Sweep { tokens, seed, threads, memory, simulate_disk, args, .. } = &self.sweep;
        let ids: Vec<String> = task.prompt.iter().map(u32::to_string).collect();
        let mut words: Vec<OsString> = vec!["run".into(), self.model.clone().into()];
        let mut flag = |name: &str, value: Option<OsString>| {
            if let Some(value) = value {
                words.extend([name.into(), value]);
            }
        };
        flag("--tokens", Some(ids.join(",").into()));
        flag("-n", Some(tokens.to_string().into()));
        flag("--context", Some(self.context.to_string().into()));
        flag("--temp", Some(task.temperature.to_string().into()));
        flag("--seed", Some(seed.to_string().into()));
        flag("--slots", task.slots.map(|slots| slots.to_string().into()));
        flag("--threads", threads.map(|threads| threads.to_string().into()));
        flag("--memory", memory.clone().map(Into::into));
        flag("--simulate-disk", simulate_disk.clone().map(Into::into));
        flag("--stats-file", task.stats.map(Into::into));
        flag("--record-trace", task.trace.map(Into::into));
        match task.variant {
            None => flag("--draft", Some("none".into())),
            Some(Variant { drafter, len, verify }) => {
                flag("--draft", Some(drafter.argument(&task.ids.display().to_string()).into()));
                flag("--draft-len", Some(len.label().into()));
                flag("--verify", verify.argument().map(Into::into));
            }
        }
        words.extend(["--ignore-eos".into(), "--json".into()]);
        words.extend(args.iter().map(Into::into));
        words
    }

    fn shown(&self, arguments: &[OsString]) -> String {
        let words =
            std::iter::once(self.program.as_os_str()).chain(arguments.iter().map(OsString::as_os_str));
        words.map(|word| shell_word(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
    }

    /// Makes the page cache forget the models' files: only theirs, so that others on the machine keep what
    /// they have, or everything where that was asked for.
    fn forget(&self) -> Result<(), SpeedupError> {
        if self.drop_caches {
            return Ok(drop_caches()?);
        }
        for path in &self.files {
            let file = File::open(path).map_err(|source| SpeedupError::io("open", path, source))?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
                .map_err(|error| SpeedupError::io("drop from the page cache", path, error.into()))?;
        }
        Ok(())
    }
}

/// A fresh copy of the statistics: a run writes its own into its file.
pub fn copy_stats(from: &Path, to: &Path) -> Result<(), SpeedupError> {
    fs::copy(from, to).map(drop).map_err(|source| SpeedupError::io("copy", from, source))
}

fn judge(output: &Output, tokens: usize) -> Result<(Vec<u32>, super::record::Measured), String> {
    if output.status.success() {
        return read(&output.stdout, tokens);
    }
    let how = match output.status.code() {
        Some(code) => format!("exit code {code}"),
        None => output.status.to_string(),
    };
    Err(format!("{how}: {}", last_line(output)))
}

/// What a process said of its end: the line of an argument parser's error, else the last one.
fn last_line(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let error = stderr.lines().find(|line| line.starts_with("error:"));
    let last = error.or_else(|| stderr.lines().rfind(|line| !line.trim().is_empty()));
    last.unwrap_or("no message").chars().take(300).collect()
}
