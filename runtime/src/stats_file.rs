//! What the policy and the scheduler learned, kept between runs (`--stats-file`).
//!
//! Owns the file's name and the model's fingerprint in it, and what happens when either is not as
//! expected: a file that is not there yet is a first run, one of another model or a damaged one is said
//! so and written anew. Counts of experts are the model's; what drafts cost and how many of them stand, and what reading
//! ahead gains, holds for one drafter on one machine, so that is kept for each ([`Setup`]). It must not know what either says.

use std::path::PathBuf;

use drafthorse_offload::{OffloadError, PolicyKind, WarmStats, checksum};
use drafthorse_scheduler::{Lessons, PrefetchLessons, SchedulerError};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::api::Progress;
use crate::gguf::Gguf;
use crate::models::{ExpertLayers, Model};

/// Setups whose lessons of a kind are kept; the one used longest ago makes room.
const SETUPS_MAX: usize = 8;
/// How far the slots of two runs of one setup may be apart, relative: their number follows the memory that is free.
const SLOTS_WITHIN: f64 = 0.1;

/// A file of counts for one model.
pub struct StatsFile {
    path: PathBuf,
    fingerprint: String,
    /// Experts a layer, and used by a row: what the file has to be for.
    shape: (Vec<u32>, u32),
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

/// What one setup taught.
#[derive(Clone, Debug, Default)]
pub struct Learned {
    /// Of drafting.
    pub lessons: Option<Lessons>,
    /// Of reading ahead.
    pub prefetch: Option<PrefetchLessons>,
}

/// Lessons of one kind as they are noted, with the setup they were learned in: another kind of the same setup is noted
/// apart, as the numbers of slots may differ, and programs that know one kind alone find it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    setup: Setup,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lessons: Option<Lessons>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefetch: Option<PrefetchLessons>,
}

impl Setup {
    fn is_like(&self, other: &Setup) -> bool {
        let most = self.slots.max(other.slots) as f64;
        let same_names = (&self.drafter, &self.machine) == (&other.drafter, &other.machine);
        same_names && self.slots.abs_diff(other.slots) as f64 <= SLOTS_WITHIN * most
    }
}

impl Known {
    fn is_drafting(&self) -> bool {
        self.lessons.is_some()
    }

    fn validate(&self) -> Result<(), SchedulerError> {
        if self.lessons.is_some() == self.prefetch.is_some() {
            return Err(SchedulerError::Lessons { what: "not of one kind".into() });
        }
        self.lessons.as_ref().map_or(Ok(()), Lessons::validate)?;
        self.prefetch.as_ref().map_or(Ok(()), PrefetchLessons::validate)
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
        Ok(StatsFile { path, fingerprint: fingerprint(gguf), shape: (Vec::new(), 0), known: Vec::new() })
    }

    /// Counts of earlier runs, if they can be used; the user hears why not.
    pub fn load(
        &mut self,
        layers: &ExpertLayers,
        used: u32,
        progress: &mut dyn Progress,
    ) -> Option<WarmStats> {
        self.shape = (layers.experts(), used);
        match self.read() {
            Ok((stats, notes)) => {
                let (known, problem) = known(&notes);
                self.known = known;
                if let Some(problem) = problem {
                    let file = self.path.display();
                    progress.notice(&format!("{file}: {problem}; what it was to say is measured anew"));
                }
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

    fn read(&self) -> Result<(WarmStats, String), OffloadError> {
        WarmStats::load(&self.path, &self.fingerprint, &self.shape.0, self.shape.1)
    }

    /// What was learned in the last runs of setups like this one, of those that [`StatsFile::load`] found.
    pub fn learned(&self, setup: &Setup) -> Learned {
        let like = || self.known.iter().filter(|known| known.setup.is_like(setup));
        Learned {
            lessons: like().find_map(|known| known.lessons.clone()),
            prefetch: like().find_map(|known| known.prefetch),
        }
    }

    /// Keeps what the model's policy has learned, and the scheduler in this setup, if anything, beside what other
    /// processes may have noted of theirs meanwhile. Where it learned nothing, what was known stays.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&mut self, model: &Model, setup: &Setup, learned: Learned) -> Result<(), Error> {
        let Some(stats) = model.warm_stats() else { return Ok(()) };
        // Two that end at once may still lose one's: then it is measured again.
        if let Ok((_, notes)) = self.read() {
            let (noted, problem) = known(&notes);
            self.known = if problem.is_none() { noted } else { std::mem::take(&mut self.known) };
        }
        if let Some(prefetch) = learned.prefetch {
            self.note(Known { setup: setup.clone(), lessons: None, prefetch: Some(prefetch) });
        }
        if let Some(lessons) = learned.lessons.filter(|lessons| lessons.validate().is_ok()) {
            self.note(Known { setup: setup.clone(), lessons: Some(lessons), prefetch: None });
        }
        let notes = if self.known.is_empty() {
            String::new()
        } else {
            serde_json::to_string(&self.known).expect("invariant: numbers and strings are JSON")
        };
        Ok(stats.save(&self.path, &self.fingerprint, &notes)?)
    }

    /// In place of what was known of this kind and setup.
    fn note(&mut self, known: Known) {
        self.known.retain(|old| old.is_drafting() != known.is_drafting() || !old.setup.is_like(&known.setup));
        let (is_drafting, mut kept) = (known.is_drafting(), 0);
        self.known.insert(0, known);
        self.known.retain(|known| {
            kept += usize::from(known.is_drafting() == is_drafting);
            known.is_drafting() != is_drafting || kept <= SETUPS_MAX
        });
    }
}

/// The setups noted in a file, those apart that cannot be, and what is wrong with the first of them. A program that kept
/// none noted nothing.
fn known(notes: &str) -> (Vec<Known>, Option<String>) {
    let all = match serde_json::from_str::<Vec<serde_json::Value>>(notes) {
        _ if notes.is_empty() => Vec::new(),
        Ok(all) => all,
        Err(error) => return (Vec::new(), Some(error.to_string())),
    };
    let sound = |value: serde_json::Value| {
        let known: Known = serde_json::from_value(value).map_err(|error| error.to_string())?;
        known.validate().map_err(|error| error.to_string())?;
        Ok(known)
    };
    let (known, problems): (Vec<_>, Vec<_>) = all.into_iter().map(sound).partition(Result::is_ok);
    (known.into_iter().flatten().collect(), problems.into_iter().find_map(Result::err))
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
