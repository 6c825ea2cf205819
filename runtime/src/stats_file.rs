//! What the policy and the scheduler learned, kept between runs (`--stats-file`).
//!
//! Owns the file's name and the model's fingerprint in it, and what happens when either is not as
//! expected: a file that is not there yet is a first run, one of another model or a damaged one is said
//! so and written anew. Counts of experts are the model's; what drafts cost and how many of them stand holds for one
//! drafter on one machine, so that is kept for each ([`Setup`]). It must not know what either says.

use std::path::PathBuf;

use drafthorse_offload::{OffloadError, PolicyKind, WarmStats, checksum};
use drafthorse_scheduler::Lessons;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::api::Progress;
use crate::gguf::Gguf;
use crate::models::{ExpertLayers, Model};

/// Setups whose lessons are kept; the one used longest ago makes room.
const SETUPS_MAX: usize = 8;
/// How far the slots of two runs of one setup may be apart, relative: their number follows the memory that is free.
const SLOTS_WITHIN: f64 = 0.1;

/// A file of counts for one model.
pub struct StatsFile {
    path: PathBuf,
    fingerprint: String,
    known: Vec<Known>, // the latest first
}

/// What lessons hold for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// Who drafts.
    pub drafter: String,
    /// Threads, GPU and disk.
    pub machine: String,
    /// Experts in memory.
    pub slots: usize,
}

/// Lessons of one setup.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    setup: Setup,
    lessons: Lessons,
}

impl Setup {
    fn is_like(&self, other: &Setup) -> bool {
        let most = self.slots.max(other.slots) as f64;
        let names = |setup: &Setup| (setup.drafter.clone(), setup.machine.clone());
        names(self) == names(other) && self.slots.abs_diff(other.slots) as f64 <= SLOTS_WITHIN * most
    }
}

impl StatsFile {
    /// The file at `path`, for the model in `gguf`.
    ///
    /// # Errors
    /// A model without routed experts, a policy that learns nothing, a place that cannot be written to.
    pub fn new(path: PathBuf, gguf: &Gguf, (experts, policy): (bool, PolicyKind)) -> Result<Self, Error> {
        if !experts {
            return Err(Error::Usage("--stats-file: the model has no routed experts".into()));
        }
        if policy == PolicyKind::Lru {
            return Err(Error::Usage(format!("--stats-file: the policy {} keeps no counts", policy.name())));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::io("write into", folder, missing));
        }
        Ok(StatsFile { path, fingerprint: fingerprint(gguf), known: Vec::new() })
    }

    /// Counts of earlier runs, if they can be used; the user hears why not.
    pub fn load(
        &mut self,
        layers: &ExpertLayers,
        used: u32,
        progress: &mut dyn Progress,
    ) -> Option<WarmStats> {
        match WarmStats::load(&self.path, &self.fingerprint, &layers.experts(), used) {
            Ok((stats, notes)) => {
                self.known = known(&notes).unwrap_or_else(|problem| {
                    let file = self.path.display();
                    progress.notice(&format!("{file}: {problem}; what drafting costs is measured anew"));
                    Vec::new()
                });
                Some(stats)
            }
            Err(OffloadError::WarmStatsIo { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                None
            }
            Err(error) => {
                progress.notice(&format!("{error}; starting without it"));
                None
            }
        }
    }

    /// What was learned in the last run of a setup like this one, of those that [`StatsFile::load`] found.
    pub fn lessons(&self, setup: &Setup) -> Option<&Lessons> {
        self.known.iter().find(|known| known.setup.is_like(setup)).map(|known| &known.lessons)
    }

    /// Keeps what the model's policy has learned, and the scheduler in this setup, if anything.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&mut self, model: &Model, setup: &Setup, lessons: Option<Lessons>) -> Result<(), Error> {
        let Some(stats) = model.warm_stats() else { return Ok(()) };
        if let Some(lessons) = lessons {
            self.known.retain(|known| !known.setup.is_like(setup));
            self.known.insert(0, Known { setup: setup.clone(), lessons });
            self.known.truncate(SETUPS_MAX);
        }
        let notes = if self.known.is_empty() {
            String::new()
        } else {
            serde_json::to_string(&self.known).expect("invariant: numbers and strings are JSON")
        };
        Ok(stats.save(&self.path, &self.fingerprint, &notes)?)
    }
}

/// The setups noted in a file; those of a program that kept none are none.
fn known(notes: &str) -> Result<Vec<Known>, String> {
    if notes.is_empty() {
        return Ok(Vec::new());
    }
    let known: Vec<Known> = serde_json::from_str(notes).map_err(|error| error.to_string())?;
    known.iter().try_for_each(|known| known.lessons.validate()).map_err(|error| error.to_string())?;
    Ok(known)
}

/// Identifies a model by its tensor table: names, types, sizes and places. Two quantizations differ; a
/// renamed or moved file does not.
fn fingerprint(gguf: &Gguf) -> String {
    let mut table = String::new();
    for tensor in &gguf.tensors {
        table.push_str(&format!("{} {:?} {:?}\n", tensor.name, tensor.dims, tensor.block_type));
    }
    format!("{:016x}", checksum(table.as_bytes()))
}
