//! `inspect`: what is in a model file, and what a memory budget makes of it.
//!
//! Reads headers only. The tables come from the file itself (`contents.rs`), so that a model this
//! build cannot run is described too; the plan comes from the engine (`outlook.rs`).

mod contents;
mod display;
mod outlook;

use drafthorse_runtime::Error;
use drafthorse_runtime::gguf::Gguf;
use serde::Serialize;

use super::args::InspectArgs;
use super::output;
use contents::Contents;
use outlook::Outlook;

/// The object of `inspect --json`; `Display` is the page for people.
#[derive(Debug, Serialize)]
struct Inspection {
    #[serde(flatten)]
    contents: Contents,
    outlook: Outlook,
}

/// The command.
pub fn run(args: &InspectArgs) -> Result<(), Error> {
    let config = args.config()?;
    let options = config.engine_options()?;
    let gguf = Gguf::open(&options.model)?;
    let contents = Contents::read(&gguf)?;
    let outlook = Outlook::new(&options, &gguf, &contents);
    let inspection = Inspection { contents, outlook };
    if config.run.json { output::print_json(&inspection) } else { output::print(&inspection.to_string()) }
}
