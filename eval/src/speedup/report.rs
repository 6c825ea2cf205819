//! The result as data: what speedup.json holds, and all that tables and plots are drawn from.
//!
//! Whoever renders reads it back from the file, so that a later `report` writes the same bytes.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::cell::Bank;
use super::environment::Environment;
use super::stats::Spread;
use super::{SpeedupError, html, table};

/// The task of rows over all tasks, where there are several.
pub const ALL_TASKS: &str = "all";
/// Of the layout of speedup.json.
const FORMAT: u32 = 1;

/// A sweep's result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub format: u32,
    pub command: String,
    pub date: String,
    pub environment: Environment,
    /// The settings, as read.
    pub sweep: serde_json::Value,
    pub model: String,
    pub bank: Bank,
    pub rows: Vec<Row>,
    /// One for every prompt and temperature.
    pub texts: Vec<Text>,
    pub notes: Vec<String>,
}

/// A line of the table: a setting on the prompts of one task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub task: String,
    pub cache: String,
    /// None for a dense model.
    pub slots: Option<u64>,
    /// Slots over all experts.
    pub share: Option<f64>,
    pub start: String,
    pub temperature: f64,
    /// "none" for the run without a draft.
    pub drafter: String,
    /// Acceptance that a scripted drafter aims at.
    pub script_acceptance: Option<f64>,
    /// "auto", a number, or "-" without a drafter.
    pub draft_len: String,
    pub verify: String,
    /// Runs that gave numbers.
    pub runs: usize,
    pub failed: usize,
    /// How the last of them did.
    pub failure: Option<String>,
    pub tokens_per_s: Option<Spread>,
    /// Each run over its neighbour without a draft.
    pub speedup: Option<Spread>,
    /// What the controller expected, median.
    pub predicted_speedup: Option<f64>,
    /// Seconds a pass over those of the neighbour's, drafting included, median.
    pub t_ratio: Option<f64>,
    pub predicted_t_ratio: Option<f64>,
    /// Tokens a pass of the target committed.
    pub tau: Option<f64>,
    /// Drafted tokens a pass.
    pub draft_len_mean: Option<f64>,
    /// Accepted of verified, by place in the draft.
    pub acceptance_at: Vec<f64>,
    /// Of expert uses after the prompt.
    pub hit_rate: Option<f64>,
    pub hit_rate_with_prompt: Option<f64>,
    /// On the same text, token by token, with as many slots.
    pub hit_rate_lru: Option<f64>,
    pub hit_rate_belady: Option<f64>,
    /// Bytes read a committed token, after the prompt.
    pub bytes_per_token: Option<BytesPerToken>,
    /// Of the whole process, loading and prompt included; None: not available.
    pub joules_per_token: Option<f64>,
    pub stall_share: Option<f64>,
    pub peak_rss_bytes: u64,
    /// Of the ids; of several prompts, of their hashes one after the other. Empty where the runs differ.
    pub ids_sha256: String,
    pub ids: Identity,
    /// One line of a run on why nothing is drafted.
    pub off_reason: Option<String>,
}

impl Row {
    /// Who drafts, and how that is verified where it is not the default way.
    pub fn who(&self) -> String {
        match self.verify.as_str() {
            "coupled" => self.drafter.clone(),
            other => format!("{}, verify {other}", self.drafter),
        }
    }
}

/// Whether a row's ids are those of the run without a draft.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Identity {
    /// They are.
    Same,
    /// They should be and are not.
    Differs,
    /// They need not be: sampled text under a rule that does not keep it.
    Varies,
    /// There are none.
    #[default]
    Unknown,
}

/// Bytes a committed token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BytesPerToken {
    /// Read when needed, by rows that stood.
    pub demand: f64,
    /// Read ahead and then used.
    pub prefetch_useful: f64,
    /// Read ahead and not used.
    pub prefetch_wasted: f64,
    /// Read when needed, by rejected drafts alone.
    pub rejected_only: f64,
}

impl BytesPerToken {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.demand + self.prefetch_useful + self.prefetch_wasted + self.rejected_only
    }
}

/// The ids of one prompt at one temperature, over all settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Text {
    pub prompt: String,
    pub temperature: f64,
    /// Of the untimed run without a draft.
    pub ids_sha256: String,
    /// Runs that had to give these ids.
    pub runs: usize,
    /// Those that gave others, by name.
    pub differing: Vec<String>,
}

impl Report {
    /// The layout this program writes.
    pub fn format() -> u32 {
        FORMAT
    }

    /// Reads what [`Report::save`] wrote.
    ///
    /// # Errors
    /// A file that is not there, damaged, or of another layout.
    pub fn load(folder: &Path) -> Result<Report, SpeedupError> {
        let path = folder.join("speedup.json");
        let bytes = fs::read(&path).map_err(|source| SpeedupError::io("read", &path, source))?;
        let report: Report = serde_json::from_slice(&bytes)
            .map_err(|error| SpeedupError::Report { file: path.clone(), problem: error.to_string() })?;
        if report.format != FORMAT {
            let problem = format!("format {}; this program reads {FORMAT}", report.format);
            return Err(SpeedupError::Report { file: path, problem });
        }
        Ok(report)
    }

    /// Writes speedup.json.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), SpeedupError> {
        let path = folder.join("speedup.json");
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|error| SpeedupError::io("write", &path, error.into()))?;
        text.push(b'\n');
        write(&path, &text)
    }

    /// Writes the table as CSV and Markdown, and the page with the plots.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn render(&self, folder: &Path) -> Result<(), SpeedupError> {
        let csv = folder.join("speedup.csv");
        let rows = table::csv(&self.rows).map_err(|source| SpeedupError::io("write", &csv, source))?;
        write(&csv, &rows)?;
        write(&folder.join("speedup.md"), table::markdown(self).as_bytes())?;
        let page = folder.join("report.html");
        let text = html::page(self)
            .map_err(|error| SpeedupError::Report { file: page.clone(), problem: error.to_string() })?;
        write(&page, text.as_bytes())
    }

    /// Every run that should have given the reference's ids and did not.
    pub fn differing(&self) -> impl Iterator<Item = &String> {
        self.texts.iter().flat_map(|text| &text.differing)
    }

    /// Runs that failed.
    pub fn failed(&self) -> usize {
        self.rows.iter().filter(|row| row.task != ALL_TASKS).map(|row| row.failed).sum()
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), SpeedupError> {
    fs::write(path, bytes).map_err(|source| SpeedupError::io("write", path, source))
}
