//! What measured costs and acceptance hold for: the pair, and the machine as far as it shows.
//!
//! Owns the names by which the file of counts tells one setup from another. It must not know what is measured.

use std::path::Path;

use super::Device;
use crate::api::{DraftSource, EngineOptions, ScriptChoice};
use crate::stats_file::Setup;

/// The setup of a run with `slots` experts in memory and `threads` threads.
pub(super) fn setup(options: &EngineOptions, slots: usize, threads: usize, device: Option<&Device>) -> Setup {
    let drafters: Vec<String> = options.draft.members().iter().map(name).collect();
    let gpu = device.map(|device| format!(", {} with {} slots", device.name, device.plan.slots));
    let disk = options.simulate_disk.as_ref().map(|disk| format!(", simulated disk of {}", disk.spec()));
    let machine = format!(
        "{threads} threads and {} for drafts{}{}",
        options.draft_threads,
        gpu.unwrap_or_default(),
        disk.unwrap_or_default()
    );
    let drafter = match drafters.is_empty() {
        true => "none".to_owned(),
        false => format!("{}, at most {} tokens", drafters.join(", "), options.draft_len_max),
    };
    Setup { drafter, machine, slots }
}

/// With the size of a file: another model may take its place.
fn file(path: &Path) -> String {
    let bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    format!("{} ({bytes} bytes)", path.display())
}

fn name(drafter: &DraftSource) -> String {
    match drafter {
        DraftSource::None | DraftSource::Chain(_) => "none".to_owned(),
        DraftSource::Ngram => "ngram".to_owned(),
        DraftSource::Suffix => "suffix".to_owned(),
        DraftSource::Mtp => "mtp".to_owned(),
        DraftSource::Script(ScriptChoice { path, config }) => format!("script {} {config:?}", path.display()),
        DraftSource::Model(path) => file(path),
    }
}
