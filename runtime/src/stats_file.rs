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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]
    use super::*;

    fn setup(slots: usize) -> Setup {
        Setup { drafter: "ngram".into(), machine: "2 threads".into(), slots }
    }

    fn file() -> StatsFile {
        StatsFile {
            path: PathBuf::new(),
            fingerprint: String::new(),
            shape: (Vec::new(), 0),
            known: Vec::new(),
        }
    }

    /// What a run noted of drafting, or of reading ahead, told apart by a figure.
    fn drafting(slots: usize, seconds: f64) -> Known {
        let survival = r#"{"offered":[],"stands":[],"all":{"value":0.5,"weight":1}}"#;
        let passes = r#"[{"width":0,"passes":1,"compute_s":1.0,"stall_s":0.0,"experts":6,"misses":1}]"#;
        let text = format!(
            r#"{{"passes":{passes},"drafts":[{{"draft_len":1,"seconds":{seconds}}}],"catch_up_s":null,
            "survival":{survival},"calibration":{{"sources":[]}}}}"#
        );
        Known { setup: setup(slots), lessons: Some(serde_json::from_str(&text).unwrap()), prefetch: None }
    }

    fn reading_ahead(slots: usize, gain: f64) -> Known {
        let prefetch = serde_json::from_str(&format!(r#"{{"gain":{gain},"error":0.1}}"#)).unwrap();
        Known { setup: setup(slots), lessons: None, prefetch: Some(prefetch) }
    }

    #[test]
    fn each_kind_of_a_setup_is_its_latest_whatever_the_other_was_learned_with() {
        let mut file = file();
        let known =
            [drafting(64, 0.1), reading_ahead(62, 0.2), reading_ahead(66, 0.3), reading_ahead(32, 0.4)];
        known.iter().for_each(|known| file.note(known.clone()));
        let learned = file.learned(&setup(63));
        assert_eq!((learned.lessons, learned.prefetch), (known[0].lessons.clone(), known[2].prefetch));
        assert_eq!(file.learned(&setup(33)).prefetch, known[3].prefetch);
        assert!(file.learned(&setup(33)).lessons.is_none() && file.learned(&setup(128)).prefetch.is_none());
        let slots: Vec<usize> = file.known.iter().map(|known| known.setup.slots).collect();
        assert_eq!(slots, [32, 66, 64], "the latest first, none twice");
    }

    #[test]
    fn the_setup_used_longest_ago_makes_room_among_its_kind() {
        let mut file = file();
        file.note(drafting(64, 0.1));
        (1..=SETUPS_MAX + 1).for_each(|n| file.note(reading_ahead(100 * n, 0.1)));
        assert_eq!(file.known.len(), 1 + SETUPS_MAX);
        assert!(file.learned(&setup(100)).prefetch.is_none() && file.learned(&setup(200)).prefetch.is_some());
        assert!(file.learned(&setup(64)).lessons.is_some());
    }

    #[test]
    fn what_was_noted_is_known_again_and_what_is_of_no_kind_or_of_two_is_refused() {
        let both = Known { prefetch: reading_ahead(64, 0.1).prefetch, ..drafting(64, 0.1) };
        let none = Known { lessons: None, ..drafting(64, 0.1) };
        let notes = |known: &[Known]| serde_json::to_string(known).unwrap();
        let (read, problem) = known(&notes(&[drafting(64, 0.1), reading_ahead(64, 0.2)]));
        assert!(read.len() == 2 && problem.is_none(), "{problem:?}");
        for odd in [both, none] {
            let (read, problem) = known(&notes(&[odd, reading_ahead(64, 0.2)]));
            assert!(read.len() == 1 && problem.is_some_and(|problem| problem.contains("not of one kind")));
        }
    }
}
