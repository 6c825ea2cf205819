//! Runs side by side: all loaded, each going on a few tokens at a time while the others wait.
//!
//! What a machine does beside a measurement (other tenants, clocks, heat) changes within seconds; runs of ten seconds
//! one after another differ by it, slices of half a second hardly do. The processes are those of `run.rs` with
//! `--slice`, whose other side is `runtime/src/cli/slices.rs`: an empty line says "I wait", a line answers "go on".
//! It must not know which runs are compared with which.

use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

use super::SpeedupError;
use super::record::Record;
use super::run::{Outside, Runner, Task};
use crate::compare::load;

impl Runner {
    /// Runs all to their ends, in slices of `tokens`. Loading and prompts come one after another, too. `None` if it
    /// `is_interrupted`, which is asked before every slice.
    ///
    /// # Errors
    /// As [`Runner::run`]. None of them goes on after an error or an interruption.
    pub fn run_in_slices(
        &self,
        tasks: &[Task<'_>],
        tokens: usize,
        is_interrupted: impl Fn() -> bool,
    ) -> Result<Option<Vec<Record>>, SpeedupError> {
        let failed = |source| SpeedupError::io("run", &self.program, source);
        let load_before = load();
        let mut runs = Vec::with_capacity(tasks.len());
        let record = |task, run: SlicedRun, arguments| {
            let (output, wall_s) = run.finish().map_err(failed)?;
            // Counters of the machine cannot tell one from another.
            self.record(task, &output, Outside { arguments, wall_s, load_before, energy_j: None })
        };
        for task in tasks {
            if is_interrupted() {
                return Ok(None);
            }
            self.prepare(task)?;
            let mut arguments = self.arguments(task);
            arguments.extend(["--slice".into(), tokens.to_string().into()]);
            let mut command = Command::new(&self.program);
            let mut run = SlicedRun::start(command.args(&arguments)).map_err(failed)?;
            run.until_it_waits().map_err(failed)?;
            // One that does not come to its first slice is told of before the others have gone all their way.
            runs.push(if run.has_ended() {
                OneOfMany::Ended(Box::new(record(task, run, arguments)?))
            } else {
                OneOfMany::Going(run, arguments)
            });
        }
        let mut order: Vec<usize> = (0..runs.len()).collect();
        while runs.iter().any(OneOfMany::is_going) {
            for at in &order {
                if is_interrupted() {
                    return Ok(None);
                }
                if let OneOfMany::Going(run, _) = &mut runs[*at] {
                    run.go_on().map_err(failed)?;
                }
            }
            next_round(&mut order);
        }
        let ends = tasks.iter().zip(runs).map(|(task, run)| match run {
            OneOfMany::Going(run, arguments) => record(task, run, arguments),
            OneOfMany::Ended(record) => Ok(*record),
        });
        ends.collect::<Result<_, _>>().map(Some)
    }
}

/// None follows itself while all go on: it would find its caches warm. Of three or more none is always first, either; two
/// would follow themselves if they changed places.
fn next_round(order: &mut [usize]) {
    if order.len() > 2 {
        order.rotate_left(1);
    }
}

/// One of the runs side by side.
enum OneOfMany {
    /// With its command line.
    Going(SlicedRun, Vec<OsString>),
    /// It came to no slice: it failed, or said all at once.
    Ended(Box<Record>),
}

impl OneOfMany {
    fn is_going(&self) -> bool {
        matches!(self, OneOfMany::Going(run, _) if !run.has_ended())
    }
}

/// A process that goes on in slices.
struct SlicedRun {
    child: Child,
    turn: ChildStdin,
    stdout: BufReader<ChildStdout>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    started: Instant,
    /// Once it has: what it printed at its end, and seconds since its start, those of the others included.
    ended: Option<(Vec<u8>, f64)>,
}

impl SlicedRun {
    fn start(command: &mut Command) -> io::Result<SlicedRun> {
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
        Ok(SlicedRun { child, turn, stdout, stderr: Some(stderr), started, ended: None })
    }

    fn has_ended(&self) -> bool {
        self.ended.is_some()
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
        if self.has_ended() {
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

impl Drop for SlicedRun {
    /// One that waits would wait for ever.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::next_round;

    #[test]
    fn no_run_follows_itself_from_one_round_to_the_next() {
        for runs in 2..6 {
            let mut order: Vec<usize> = (0..runs).collect();
            let mut turns = Vec::new();
            for _ in 0..2 * runs {
                turns.extend_from_slice(&order);
                next_round(&mut order);
            }
            assert!(turns.windows(2).all(|pair| pair[0] != pair[1]), "{turns:?}");
        }
    }
}
