//! Progress on stderr: a bar in a terminal, plain lines elsewhere, nothing for work under a second.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use drafthorse_runtime::api::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;

/// Work shorter than this is not worth a word.
const QUIET: Duration = Duration::from_secs(1);

/// Shows the work the engine reports.
pub struct Screen {
    is_terminal: bool,
    style: &'static str,
    work: Option<Work>,
}

/// A bar of work in whatever unit.
const PLAIN: &str = "{msg} [{bar:32}] {percent:>3} % {eta} left";
/// A bar of work that is counted in bytes.
const BYTES: &str = "{msg} [{bar:32}] {percent:>3} % {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";

struct Work {
    what: String,
    total: u64,
    done: u64,
    began: Instant,
    bar: Option<ProgressBar>,
    is_announced: bool,
}

impl Screen {
    /// Looks once whether stderr is a terminal.
    pub fn new() -> Screen {
        Screen { is_terminal: std::io::stderr().is_terminal(), style: PLAIN, work: None }
    }

    /// A screen for work that is bytes throughout.
    pub fn of_bytes() -> Screen {
        Screen { style: BYTES, ..Screen::new() }
    }
}

impl Progress for Screen {
    fn begin(&mut self, what: &str, total: u64) {
        self.end();
        let what = what.to_owned();
        self.work =
            Some(Work { what, total, done: 0, began: Instant::now(), bar: None, is_announced: false });
    }

    fn advance(&mut self, by: u64) {
        let Some(work) = &mut self.work else { return };
        work.done = work.done.saturating_add(by);
        if work.began.elapsed() < QUIET {
            return;
        }
        if !self.is_terminal {
            work.announce();
            return;
        }
        let bar = work.bar.get_or_insert_with(|| bar(&work.what, work.total, self.style));
        bar.set_position(work.done);
    }

    fn end(&mut self) {
        let Some(work) = self.work.take() else { return };
        if let Some(bar) = work.bar {
            bar.finish_and_clear();
        }
        if work.is_announced {
            output::note(&format!("{}: done in {:.1} s", work.what, work.began.elapsed().as_secs_f64()));
        }
    }

    fn notice(&mut self, line: &str) {
        let say = || output::complain(line);
        match self.work.as_ref().and_then(|work| work.bar.as_ref()) {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }
}

impl Work {
    /// One line, once: a log file needs no more.
    fn announce(&mut self) {
        if !self.is_announced {
            self.is_announced = true;
            output::note(&format!("{} ...", self.what));
        }
    }
}

/// A bar with the time left, or a spinner when the amount of work is unknown.
fn bar(what: &str, total: u64, style: &str) -> ProgressBar {
    let target = ProgressDrawTarget::stderr();
    if total == 0 {
        let bar = ProgressBar::with_draw_target(None, target);
        return bar.with_message(what.to_owned());
    }
    let bar = ProgressBar::with_draw_target(Some(total), target).with_message(what.to_owned());
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}
