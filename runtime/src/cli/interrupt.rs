//! Ctrl-C: while text is generated it ends the text after the step; at any other time the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use drafthorse_runtime::Error;

use super::output;

/// What shells expect of a program that Ctrl-C ended: 128 + SIGINT.
const EXIT_INTERRUPTED: i32 = 130;

/// Whether Ctrl-C was pressed, shared with the signal's handler.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    generating: AtomicBool,
    asked: AtomicBool,
}

impl Interrupt {
    /// Takes Ctrl-C over. Once per process.
    pub fn install() -> Result<Interrupt, Error> {
        let interrupt = Interrupt::default();
        let seen = interrupt.clone();
        let handler = move || {
            if !seen.press() {
                output::note("");
                std::process::exit(EXIT_INTERRUPTED);
            }
        };
        let failed = |error| Error::Io {
            what: "cannot handle Ctrl-C".to_owned(),
            source: std::io::Error::other(error),
        };
        ctrlc::set_handler(handler).map_err(failed)?;
        Ok(interrupt)
    }

    /// Runs `generate`, which polls [`Interrupt::is_asked`]; a second Ctrl-C ends the program.
    pub fn during<T>(&self, generate: impl FnOnce() -> T) -> T {
        self.state.asked.store(false, Ordering::SeqCst);
        self.state.generating.store(true, Ordering::SeqCst);
        let result = generate();
        self.state.generating.store(false, Ordering::SeqCst);
        result
    }

    /// Whether Ctrl-C was pressed since `during` began.
    pub fn is_asked(&self) -> bool {
        self.state.asked.load(Ordering::SeqCst)
    }

    /// Ctrl-C: whether the running generation will see to it.
    fn press(&self) -> bool {
        self.state.generating.load(Ordering::SeqCst) && !self.state.asked.swap(true, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_press_ends_the_text_the_second_the_program() {
        let interrupt = Interrupt::default();
        assert!(!interrupt.press(), "nothing is generated");
        interrupt.during(|| {
            assert!(!interrupt.is_asked());
            assert!(interrupt.press());
            assert!(interrupt.is_asked());
            assert!(!interrupt.press());
        });
        interrupt.during(|| assert!(!interrupt.is_asked(), "a new answer starts afresh"));
        assert!(!interrupt.press());
    }
}
