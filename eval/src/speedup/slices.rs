//! Runs side by side: all loaded, each going on a few tokens at a time while the others wait.
//!
//! What a machine does beside a measurement (other tenants, clocks, heat) changes within seconds; runs of ten seconds
//! one after another differ by it, slices of half a second hardly do. The processes are those of `run.rs` with
//! `--slice`, whose other side is `runtime/src/cli/slices.rs`: an empty line says "I wait", a line answers "go on".
//! It must not know which runs are compared with which.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

use super::SpeedupError;
use super::record::Record;
use super::run::{Around, Runner, Task};
use crate::compare::load;

impl Runner {
    /// Runs all to their ends, in slices of `tokens`. Loading and prompts come one after another, too.
    ///
    /// # Errors
    /// As [`Runner::run`]; none of them goes on then.
    pub fn run_in_slices(&self, tasks: &[Task<'_>], tokens: usize) -> Result<Vec<Record>, SpeedupError> {
        let failed = |source| SpeedupError::io("run", &self.program, source);
        let load_before = load();
        let mut runs = Vec::with_capacity(tasks.len());
        for task in tasks {
            self.prepare(task)?;
            let mut arguments = self.arguments(task);
            arguments.extend(["--slice".into(), tokens.to_string().into()]);
            let mut command = Command::new(&self.program);
            let mut run = Waiting::start(command.args(&arguments)).map_err(failed)?;
            run.until_it_waits().map_err(failed)?;
            runs.push((run, arguments));
        }
        let mut order: Vec<usize> = (0..runs.len()).collect();
        while runs.iter().any(|(run, _)| run.ended.is_none()) {
            for at in &order {
                runs[*at].0.go_on().map_err(failed)?;
            }
            // A B C C B A: a drift hits all alike.
            order.reverse();
        }
        let records = tasks.iter().zip(runs).map(|(task, (run, arguments))| {
            let (output, wall_s) = run.finish().map_err(failed)?;
            // Counters of the machine cannot tell one from another.
            self.record(task, &output, Around { arguments, wall_s, load_before, energy_j: None })
        });
        records.collect()
    }
}

/// A run that may be waiting for its next slice.
struct Waiting {
    child: Child,
    turn: ChildStdin,
    stdout: BufReader<ChildStdout>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    started: Instant,
    /// Its result, and how long it was there.
    ended: Option<(Vec<u8>, f64)>,
}

impl Waiting {
    fn start(command: &mut Command) -> io::Result<Waiting> {
        let started = Instant::now();
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(turn), Some(stdout), Some(mut stderr)) = pipes else {
            return Err(io::Error::other("a pipe that was asked for is missing"));
        };
        // A full pipe would hold it up.
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            text
        });
        let stdout = BufReader::new(stdout);
        Ok(Waiting { child, turn, stdout, stderr: Some(stderr), started, ended: None })
    }

    /// Blocks until it waits, or has ended.
    fn until_it_waits(&mut self) -> io::Result<()> {
        let mut said = Vec::new();
        self.stdout.read_until(b'\n', &mut said)?;
        if said != b"\n" {
            self.stdout.read_to_end(&mut said)?;
            self.ended = Some((said, self.started.elapsed().as_secs_f64()));
        }
        Ok(())
    }

    /// One more slice, if it has not ended.
    fn go_on(&mut self) -> io::Result<()> {
        if self.ended.is_some() {
            return Ok(());
        }
        // One that has died meanwhile says so by the end of its stdout.
        let _ = self.turn.write_all(b"\n");
        self.until_it_waits()
    }

    fn finish(mut self) -> io::Result<(Output, f64)> {
        let (stdout, wall_s) = self.ended.take().unwrap_or_default();
        let stderr = self.stderr.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        Ok((Output { status: self.child.wait()?, stdout, stderr }, wall_s))
    }
}

impl Drop for Waiting {
    /// One that waits would wait for ever, or go on unseen.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
