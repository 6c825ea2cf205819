//! What a controller learned, for another run of the same model, drafter and machine.
//!
//! Owns [`Lessons`]: what passes and drafts cost by length, and how often drafted tokens stand; and whether what
//! somebody hands back can be that. Who keeps them, and which run they fit, is the caller's to know. It must not know
//! files.

use crate::calibration::Calibration;
use crate::certainty::Certainty;
use crate::estimate::Survival;
use crate::{DRAFT_LEN_LIMIT, SchedulerError};

/// No pass takes longer or less long, and none asks for more experts. A mean of counts may be a part of one.
const SECONDS_MAX: f64 = 1e6;
const SECONDS_MIN: f64 = 1e-9;
const COUNT_MAX: f64 = 1e9;
const COUNT_MIN: f64 = 1e-9;

/// Costs and acceptance of an earlier run, as data (serde). Not for reading: the fields are the controller's own.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lessons {
    /// Passes by drafted tokens verified, ascending, plain ones first.
    pub(crate) passes: Vec<PassLesson>,
    /// Drafting by tokens asked for, ascending.
    pub(crate) drafts: Vec<DraftLesson>,
    /// Texts in a row, the last among them, on which nothing was drafted.
    #[serde(default)]
    pub(crate) texts_unlooked: u32,
    /// Of the texts on which something was, the last in a row that gained nothing by it.
    #[serde(default)]
    pub(crate) texts_vain: u32,
    /// Extra seconds for each pass before a draft that had none.
    pub(crate) catch_up_s: Option<f64>,
    pub(crate) survival: Survival,
    pub(crate) calibration: Calibration,
    #[serde(default = "Certainty::new")]
    pub(crate) certainty: Certainty,
}

/// What passes of one width took.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PassLesson {
    /// Drafted tokens verified.
    pub(crate) width: usize,
    /// How many passes said so.
    pub(crate) passes: u32,
    /// Seconds of computing, at the pace of the run's end.
    pub(crate) compute_s: f64,
    /// Seconds of waiting for experts.
    pub(crate) stall_s: f64,
    /// Distinct experts, summed over layers.
    pub(crate) experts: f64,
    /// Of these, those that were not resident.
    pub(crate) misses: f64,
}

/// What drafting so many tokens took.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DraftLesson {
    /// Tokens asked for.
    pub(crate) draft_len: usize,
    /// Seconds.
    pub(crate) seconds: f64,
}

impl Lessons {
    /// Checks what was read from somewhere.
    ///
    /// # Errors
    /// [`SchedulerError::Lessons`] with the first thing that no controller writes.
    pub fn validate(&self) -> Result<(), SchedulerError> {
        let refuse = |what: String| Err(SchedulerError::Lessons { what });
        let ascend = |lengths: Vec<usize>| {
            lengths.is_sorted_by(|a, b| a < b) && lengths.last().is_some_and(|last| *last <= DRAFT_LEN_LIMIT)
        };
        if self.passes.first().is_none_or(|pass| pass.width != 0) {
            return refuse("nothing of plain passes".into());
        }
        if !ascend(self.passes.iter().map(|pass| pass.width).collect()) {
            return refuse(format!("widths that do not ascend to at most {DRAFT_LEN_LIMIT}"));
        }
        if !ascend(self.drafts.iter().map(|draft| draft.draft_len).collect()) {
            return refuse(format!("draft lengths that do not ascend to at most {DRAFT_LEN_LIMIT}, or none"));
        }
        let is_time = |seconds: f64| (0.0..=SECONDS_MAX).contains(&seconds);
        for pass in &self.passes {
            let times = is_time(pass.compute_s) && pass.compute_s >= SECONDS_MIN && is_time(pass.stall_s);
            let is_count = |count: f64| count == 0.0 || (COUNT_MIN..=COUNT_MAX).contains(&count);
            let counts = is_count(pass.experts) && is_count(pass.misses);
            if !times || !counts || pass.passes == 0 {
                return refuse(format!("passes of width {} that cannot be", pass.width));
            }
        }
        let drafts = self.drafts.iter().map(|draft| draft.seconds);
        if let Some(seconds) = drafts.chain(self.catch_up_s).find(|seconds| !is_time(*seconds)) {
            return refuse(format!("{seconds} seconds of drafting"));
        }
        if !self.survival.is_sound() || !self.calibration.is_sound() || !self.certainty.is_sound() {
            return refuse("shares of tokens that stand outside 0 to 1".into());
        }
        Ok(())
    }
}
