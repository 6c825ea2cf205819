//! A comparison made ready: options checked against the model and the machine, command lines, runs.
//!
//! Everything that can be refused is refused in [`Job::prepare`], before anything runs or changes.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use drafthorse_runtime::engine::{ids_hash, parse_ids};
use drafthorse_runtime::gguf::Gguf;

use super::cage::CageKind;
use super::machine::{self, Device, Machine};
use super::outcome::Expected;
use super::plan::{Limit, Run, Side, schedule};
use super::process::{Measured, fill, is_program, measure, shell_word};
use super::{CompareError, CompareOptions, Comparison, Setup, date, fio, line};
use crate::synth::Random;

/// Positions of our context come in steps of this, as the peer's do.
const CONTEXT_STEP: usize = 256;
/// Read-ahead is counted in pages.
const PAGE_KIB: u64 = 4;

/// Checked options and what follows from them.
pub struct Job<'a> {
    options: &'a CompareOptions,
    pub setup: Setup,
    limits: Vec<Limit>,
    ids: Vec<u32>,
    expected: Expected,
    device: Option<Device>,
    request_bytes: u64,
}

impl<'a> Job<'a> {
    /// Checks.
    ///
    /// # Errors
    /// Options, programs, ids or a model that cannot be used; a machine without cgroups.
    pub fn prepare(options: &'a CompareOptions) -> Result<Job<'a>, CompareError> {
        let usage = CompareError::Usage;
        let gguf = Gguf::open(&options.model)?;
        check_programs(options).map_err(usage)?;
        let sizes = gguf.files.iter().map(|file| fs::metadata(file).map(|data| data.len()));
        let model_bytes = sizes.sum::<io::Result<u64>>().map_err(|source| CompareError::Machine {
            what: format!("cannot look at {}", options.model.display()),
            source,
        })?;
        let limits = options.limits.iter().map(|text| Limit::parse(text, model_bytes));
        let limits = limits.collect::<Result<Vec<_>, _>>().map_err(usage)?;
        let ids = ids(options, &gguf).map_err(usage)?;
        let hash = ids_hash(&ids);
        let setup = Setup {
            model: options.model.display().to_string(),
            model_bytes,
            ids: ids.len(),
            ids_hash: hash.clone(),
            threads: options.threads,
            passes: options.passes,
            repeats: options.repeats,
            drop_caches: options.drop_caches,
            cgroup: if options.cgroup { Some(CageKind::find()?) } else { None },
        };
        let device = Device::of(&options.model).ok().flatten();
        let expected = Expected { passes: options.passes, tokens: ids.len(), ids_hash: hash };
        let request_bytes = fio::request_bytes(&gguf);
        Ok(Job { options, setup, limits, ids, expected, device, request_bytes })
    }

    /// A file of the ids for both engines.
    pub fn write_ids(&self) -> Result<PathBuf, CompareError> {
        let path = std::env::temp_dir().join(format!("drafthorse-compare-{}.ids", std::process::id()));
        let words: Vec<String> = self.ids.iter().map(u32::to_string).collect();
        let failed =
            |source| CompareError::Machine { what: format!("cannot write {}", path.display()), source };
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
        file.write_all((words.join("\n") + "\n").as_bytes()).map_err(failed)?;
        Ok(path)
    }

    /// File and present value of the read-ahead, where runs are to change it.
    pub fn read_ahead(&self) -> Result<Option<(PathBuf, u64)>, CompareError> {
        if self.options.read_ahead_kb.is_empty() {
            return Ok(None);
        }
        if let Some(odd) = self.options.read_ahead_kb.iter().find(|kib| !kib.is_multiple_of(PAGE_KIB)) {
            let problem = format!("--read-ahead {odd}: the kernel takes whole pages of {PAGE_KIB} KiB");
            return Err(CompareError::Usage(problem));
        }
        let file = self.device.as_ref().and_then(Device::read_ahead_file);
        let found = file.and_then(|file| Some((file.to_owned(), machine::number(file)?)));
        let missing = || {
            let model = self.options.model.display();
            CompareError::Usage(format!("--read-ahead: {model} lies on no block device with a read-ahead"))
        };
        let found = found.ok_or_else(missing)?;
        // Setting what is set already changes nothing and tells whether one may.
        machine::set_number(&found.0, found.1).map_err(|error| match error {
            CompareError::Machine { source, .. } => {
                CompareError::Usage(format!("--read-ahead needs root to set {}: {source}", found.0.display()))
            }
            other => other,
        })?;
        Ok(Some(found))
    }

    /// The report before anything was run.
    pub fn comparison(&self) -> Comparison {
        Comparison {
            command: self.options.command.clone(),
            date: date(SystemTime::now()),
            machine: Machine::look(self.device.as_ref()),
            setup: self.setup.clone(),
            load_before: machine::load(),
            fio: Vec::new(),
            rows: Vec::new(),
            notes: Vec::new(),
            runs: Vec::new(),
        }
    }

    /// Measures the disk itself, where that was asked for.
    pub fn fio(&self, comparison: &mut Comparison) {
        let Some(depth) = self.options.fio_depth else { return };
        match fio::measure(&self.options.model, self.request_bytes, depth) {
            Ok(bandwidth) => comparison.fio.push(bandwidth),
            Err(problem) => comparison.notes.push(problem),
        }
    }

    /// Runs everything in turns.
    pub fn run_all(
        &self,
        read_ahead: Option<&(PathBuf, u64)>,
        ids_file: &Path,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Vec<Measured>, CompareError> {
        let runs = schedule(&self.limits, &self.options.read_ahead_kb, self.options.repeats);
        let mut all = Vec::new();
        for (index, run) in runs.iter().enumerate() {
            if let Some((file, found)) = read_ahead {
                machine::set_number(file, run.read_ahead_kb.unwrap_or(*found))?;
            }
            if self.options.drop_caches {
                machine::drop_caches()?;
            }
            let command = self.command(run, ids_file)?;
            let measured = measure(run, &command, self.setup.cgroup, self.device.as_ref(), &self.expected)?;
            tell(&format!("[{}/{}] {}", index + 1, runs.len(), line(&measured)));
            all.push(measured);
        }
        Ok(all)
    }

    fn command(&self, run: &Run, ids_file: &Path) -> Result<String, CompareError> {
        let options = self.options;
        let [model, ids] = [&options.model, ids_file].map(|path: &Path| path.display().to_string());
        let [threads, passes] = [options.threads, options.passes].map(|number| number.to_string());
        if run.side == Side::Peer {
            let values = [("model", &*model), ("ids", &*ids), ("threads", &*threads), ("passes", &*passes)];
            return fill(&options.peer, &values).map_err(CompareError::Usage);
        }
        let context = self.ids.len().next_multiple_of(CONTEXT_STEP).to_string();
        let memory = run.limit.bytes.to_string();
        let ours = options.ours.display().to_string();
        let words = [
            &*ours,
            "bench",
            &*model,
            "--ids",
            &*ids,
            "--passes",
            &*passes,
            "--json",
            "--memory",
            &*memory,
            "--threads",
            &*threads,
            "--context",
            &*context,
        ];
        let words = words.map(shell_word).join(" ");
        Ok(format!("{words} {}", options.ours_args).trim_end().to_owned())
    }
}

fn check_programs(options: &CompareOptions) -> Result<(), String> {
    let ours = options.ours.display().to_string();
    if !is_program(&ours) {
        return Err(format!("--ours {ours}: no such program"));
    }
    if !is_program(&options.peer) {
        return Err(format!("--peer {:?}: no such program", options.peer));
    }
    for name in ["{model}", "{ids}"] {
        if !options.peer.contains(name) {
            return Err(format!("--peer {:?} does not use {name}", options.peer));
        }
    }
    let values = ["model", "ids", "threads", "passes"].map(|name| (name, ""));
    fill(&options.peer, &values).map(drop).map_err(|problem| format!("--peer {problem}"))
}

/// The ids asked for, all in the model's vocabulary.
fn ids(options: &CompareOptions, gguf: &Gguf) -> Result<Vec<u32>, String> {
    let table = gguf.tensor("token_embd.weight").and_then(|info| info.dims.get(1).copied());
    let vocab =
        table.filter(|vocab| *vocab > 0).ok_or("the model has no token_embd.weight of two dimensions")?;
    if let Ok(count) = options.ids.parse::<usize>() {
        if !(1..=1 << 20).contains(&count) {
            return Err(format!("--ids {count}: expected 1 to {}", 1 << 20));
        }
        let mut random = Random::named(options.seed, "ids");
        return Ok((0..count).map(|_| random.below(vocab as usize) as u32).collect());
    }
    let text = fs::read_to_string(&options.ids).map_err(|error| format!("--ids {}: {error}", options.ids))?;
    let ids = parse_ids(&text).map_err(|problem| format!("--ids {}: {problem}", options.ids))?;
    match ids.iter().find(|id| u64::from(**id) >= vocab) {
        Some(id) => Err(format!("--ids {}: {id} is outside the vocabulary of {vocab}", options.ids)),
        None => Ok(ids),
    }
}
