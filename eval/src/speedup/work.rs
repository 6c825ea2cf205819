//! Making the runs: first one untimed run of every prompt and temperature, then the blocks, round by round.
//!
//! The untimed run writes nothing of the table but what the others need: the ids that scripted drafters
//! follow, the routing that LRU and Belady are replayed on, and the statistics that warm runs begin with. They
//! begin with what the scheduler learned before, too, in one more untimed run of that drafter (or without a draft) and
//! cache: so all of them know as much of the machine.
//! Owns the order of the work, the files beside it, and stopping between two rounds.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::SpeedupError;
use super::cell::Start;
use super::journal::Journal;
use super::plan::{Block, Plan};
use super::record::Record;
use super::run::{Runner, Task, copy_stats};

/// Everything that making runs needs.
pub struct Work<'a> {
    pub plan: &'a Plan,
    pub runner: Runner,
    pub journal: Journal,
    /// Where ids, traces and statistics lie.
    pub scratch: PathBuf,
    pub interrupted: Arc<AtomicBool>,
    pub tell: &'a mut dyn FnMut(&str),
}

/// How far it is.
struct Pace {
    all: usize,
    done: usize,
    /// Of these, made since the start of this call.
    made: usize,
    started: Instant,
}

impl Pace {
    fn line(&self, what: &str) -> String {
        let left =
            (self.all - self.done) as f64 * self.started.elapsed().as_secs_f64() / self.made.max(1) as f64;
        let left = Duration::from_secs_f64(left).as_secs();
        let (minutes, seconds) = (left / 60, left % 60);
        format!("[{}/{}, about {minutes} min {seconds:02} s left] {what}", self.done, self.all)
    }
}

impl Work<'_> {
    /// Makes every run that the journal does not hold.
    ///
    /// # Errors
    /// The machine, a command line that the program refuses, an interruption. What was made is kept.
    pub fn all(&mut self) -> Result<(), SpeedupError> {
        let all = self.plan.runs();
        let mut pace = Pace { all, done: 0, made: 0, started: Instant::now() };
        for temperature in self.plan.sweep.temperatures.clone() {
            for prompt in 0..self.plan.prompts.len() {
                self.reference(prompt, temperature, &mut pace)?;
            }
        }
        let plan = self.plan;
        for cell in plan.cells() {
            self.cell(cell, &mut pace)?;
        }
        Ok(())
    }

    /// The blocks of one cache, start and temperature: all as often, or a median over prompts would be that of the shortest
    /// runs.
    fn cell(&mut self, cell: Range<usize>, pace: &mut Pace) -> Result<(), SpeedupError> {
        let plan = self.plan;
        let asked = plan.turns_of(plan.sweep.repeats);
        let blocks = || cell.clone().zip(&plan.blocks[cell.clone()]);
        for block in blocks() {
            for learner in plan.learners(block.1) {
                self.learn(block, learner, pace)?;
            }
            for round in plan.rounds(0..asked) {
                self.round(block, round, pace)?;
            }
        }
        let needed = plan.turns_of(plan.sweep.repeats_of(self.off_s(&plan.blocks[cell.clone()])));
        pace.all += cell.len() * (needed - asked);
        for block in blocks() {
            for round in plan.rounds(asked..needed) {
                self.round(block, round, pace)?;
            }
        }
        Ok(())
    }

    /// Mean seconds that the runs of these blocks without a draft decoded for, of those that are made in any case: so a
    /// sweep that is gone on with repeats as often, unless some of them had failed. Not a number where all did.
    fn off_s(&self, blocks: &[Block]) -> f64 {
        let asked = 0..self.plan.turns_of(self.plan.sweep.repeats);
        let off = asked.filter(|turn| self.plan.turns[*turn].variant.is_none());
        let runs = off.flat_map(|turn| blocks.iter().map(move |block| (block, turn)));
        let made = runs
            .filter_map(|(block, turn)| self.journal.find(&self.plan.key(block, turn))?.measured.as_ref());
        let seconds: Vec<f64> = made.map(|measured| measured.decode_s).collect();
        seconds.iter().sum::<f64>() / seconds.len() as f64
    }

    fn reference(&mut self, prompt: usize, temperature: f64, pace: &mut Pace) -> Result<(), SpeedupError> {
        let files = References::new(&self.scratch, prompt, temperature);
        let key = self.plan.reference_key(prompt, temperature);
        let trace = Some(files.trace.as_path()).filter(|_| self.plan.bank.experts_total > 0);
        let stats = Some(files.stats.as_path()).filter(|_| self.plan.needs_stats());
        let are_there = [trace, stats].into_iter().flatten().all(Path::is_file);
        if self.journal.find(&key).is_some() && are_there {
            pace.done += 1;
            return self.write_script(prompt, temperature);
        }
        // Statistics add up over runs: these are to be of one.
        let _ = fs::remove_file(&files.stats);
        let slots = self.plan.blocks.iter().filter_map(|block| block.slots).max();
        let task = Task {
            key,
            prompt: &self.plan.prompts[prompt].ids,
            temperature,
            slots,
            start: Start::Warm,
            variant: None,
            ids: &files.script,
            stats,
            trace,
            keep_ids: true,
        };
        let record = self.runner.run(&task)?;
        // Without ids there is nothing to compare with, to follow or to replay.
        if let Some(problem) = record.failure.clone().filter(|_| !self.is_interrupted()) {
            return Err(SpeedupError::Reference { command: record.command, problem });
        }
        self.keep(vec![record], pace)?;
        self.write_script(prompt, temperature)
    }

    /// Prompt and continuation, for scripted drafters.
    fn write_script(&self, prompt: usize, temperature: f64) -> Result<(), SpeedupError> {
        let Some(record) = self.journal.find(&self.plan.reference_key(prompt, temperature)) else {
            return Ok(());
        };
        let path = References::new(&self.scratch, prompt, temperature).script;
        let ids = self.plan.prompts[prompt].ids.iter().chain(&record.ids);
        let words: Vec<String> = ids.map(u32::to_string).collect();
        fs::write(&path, words.join(" ") + "\n").map_err(|source| SpeedupError::io("write", &path, source))
    }

    /// The untimed run of a variant, or without a draft, for what it learns.
    fn learn(
        &mut self,
        (at, block): (usize, &Block),
        learner: Option<usize>,
        pace: &mut Pace,
    ) -> Result<(), SpeedupError> {
        let key = self.plan.learning_key(block, learner);
        let stats = self.learned(at, learner);
        if self.journal.find(&key).is_some() && stats.is_file() {
            pace.done += 1;
            return Ok(());
        }
        let files = References::new(&self.scratch, block.prompt, block.temperature);
        // Under another name until it has learned: half of it would be taken for the whole.
        let learning = stats.with_extension("learning");
        copy_stats(&files.stats, &learning)?;
        let task = Task { key, stats: Some(&learning), ..self.task(block, learner, &files.script) };
        let record = self.runner.run(&task)?;
        if let Some(problem) = record.failure.clone().filter(|_| !self.is_interrupted()) {
            return Err(SpeedupError::Reference { command: record.command, problem });
        }
        if record.failure.is_none() {
            fs::rename(&learning, &stats).map_err(|source| SpeedupError::io("write", &stats, source))?;
        }
        self.keep(vec![record], pace)
    }

    /// What an untimed run in a block has learned.
    fn learned(&self, block: usize, learner: Option<usize>) -> PathBuf {
        let who = learner.map_or_else(|| "off".to_owned(), |variant| format!("variant{variant}"));
        self.scratch.join(format!("block{block}-{who}.stats"))
    }

    /// A run in a block, without a key and statistics.
    fn task<'a>(&'a self, block: &Block, variant: Option<usize>, ids: &'a Path) -> Task<'a> {
        Task {
            key: String::new(),
            prompt: &self.plan.prompts[block.prompt].ids,
            temperature: block.temperature,
            slots: block.slots,
            start: block.start,
            variant: variant.map(|at| &self.plan.variants[at]),
            ids,
            stats: None,
            trace: None,
            keep_ids: false,
        }
    }

    /// The runs at these turns, side by side where they are several.
    fn round(
        &mut self,
        (at, block): (usize, &Block),
        round: Range<usize>,
        pace: &mut Pace,
    ) -> Result<(), SpeedupError> {
        // Runs of another round under the same keys, where that one failed in part, were not made beside the others.
        let found = round.clone().map(|turn| self.journal.find(&self.plan.key(block, turn)));
        let made: Option<Vec<u64>> = found.map(|record| Some(record?.round)).collect();
        if made.is_some_and(|made| made.windows(2).all(|pair| pair[0] == pair[1])) {
            pace.done += round.len();
            return Ok(());
        }
        let files = References::new(&self.scratch, block.prompt, block.temperature);
        let own_stats: Vec<PathBuf> =
            (0..round.len()).map(|run| self.scratch.join(format!("run{run}.stats"))).collect();
        let is_warm = self.plan.is_warm(block);
        let mut tasks = Vec::with_capacity(round.len());
        for (turn, own_stats) in round.zip(&own_stats) {
            let variant = self.plan.turns[turn].variant;
            if is_warm {
                let learner = self.plan.learner_of(block, variant);
                let from = learner.map_or_else(|| files.stats.clone(), |learner| self.learned(at, learner));
                copy_stats(&from, own_stats)?;
            }
            let (key, stats) = (self.plan.key(block, turn), is_warm.then_some(own_stats.as_path()));
            tasks.push(Task { key, stats, ..self.task(block, variant, &files.script) });
        }
        let records = match self.plan.sweep.slice_tokens {
            0 => tasks.iter().map(|task| self.runner.run(task)).collect::<Result<_, _>>()?,
            tokens => {
                let records = self.runner.run_in_slices(&tasks, tokens, || self.is_interrupted())?;
                records.ok_or_else(|| self.interruption(pace))?
            }
        };
        let stamp = now_us();
        self.keep(records.into_iter().map(|record| Record { round: stamp, ..record }).collect(), pace)
    }

    fn keep(&mut self, records: Vec<Record>, pace: &mut Pace) -> Result<(), SpeedupError> {
        for record in records {
            // Ctrl-C reaches the run as well: what it says then is no measurement.
            if self.is_interrupted() && record.failure.is_some() {
                continue;
            }
            pace.done += 1;
            pace.made += 1;
            let figure = match (&record.failure, &record.measured) {
                (None, Some(measured)) => format!("{:.2} tok/s", measured.tokens_per_s()),
                (failure, _) => format!("FAILED: {}", failure.as_deref().unwrap_or("no figures")),
            };
            (self.tell)(&pace.line(&format!("{}: {figure}", record.key)));
            self.journal.add(record)?;
        }
        if self.is_interrupted() { Err(self.interruption(pace)) } else { Ok(()) }
    }

    fn interruption(&self, pace: &Pace) -> SpeedupError {
        SpeedupError::Interrupted { done: pace.done, all: pace.all }
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// What tells rounds apart: microseconds since 1970.
fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Files of an untimed run.
pub struct References {
    pub script: PathBuf,
    pub trace: PathBuf,
    pub stats: PathBuf,
}

impl References {
    /// Their names.
    pub fn new(scratch: &Path, prompt: usize, temperature: f64) -> References {
        let file = |ending: &str| scratch.join(format!("prompt{prompt}-t{temperature}.{ending}"));
        References { script: file("ids"), trace: file("moetrace"), stats: file("stats") }
    }
}
