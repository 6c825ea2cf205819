//! A sweep as the user wrote it: which settings are crossed, and what every run shares.
//!
//! Owns the TOML's keys, their defaults and their limits, `--set` and `--quick`. It must not know the model:
//! what a share of its experts comes to is `cell.rs`'s.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::SpeedupError;
use super::cell::{CacheSize, DraftLen, Drafter, Start, Verify};

/// Largest sweep that is read.
const SWEEP_BYTES_MAX: u64 = 1 << 20;
/// Values of one key.
const VALUES_MAX: usize = 64;
/// Prompts of a task, repeats, and the like.
const COUNT_MAX: usize = 10_000;
/// How many times as often as was asked for short runs are repeated at most.
pub const REPEATS_FACTOR_MAX: usize = 8;
/// The longest that they may be asked to take together.
const DECODE_S_MAX: f64 = 3600.0;
/// Tokens that `--quick` generates a run at most.
const QUICK_TOKENS: usize = 32;

/// The keys of a sweep file. Lists are crossed with one another.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// The GGUF, or "demo".
    pub model: String,
    /// What `--draft` takes, or `script:accept=0.8,us=500`; "none" always runs, listed or not.
    #[serde(default = "default_drafters")]
    pub drafters: Vec<Drafter>,
    /// Drafted tokens a step: "auto" or numbers.
    #[serde(default = "default_draft_lens")]
    pub draft_lens: Vec<DraftLen>,
    /// How drafts are verified: "coupled" is the default of `drafthorse run`, others are given as `--verify`.
    #[serde(default = "default_verify")]
    pub verify: Vec<Verify>,
    /// Experts in memory: "20%" of all, "64MiB", or a number of slots.
    #[serde(default = "default_cache")]
    pub cache: Vec<CacheSize>,
    /// "cold" and "warm".
    #[serde(default = "default_starts")]
    pub starts: Vec<Start>,
    /// 0 is greedy.
    #[serde(default = "default_temperatures")]
    pub temperatures: Vec<f64>,
    /// "builtin", or "spec-bench:PATH" of Spec-Bench's question.jsonl.
    #[serde(default = "default_prompts")]
    pub prompts: Vec<String>,
    /// Only these tasks of the prompt sets; empty: all.
    #[serde(default)]
    pub tasks: Vec<String>,
    /// Prompts of a task, drawn with `seed`.
    #[serde(default = "one")]
    pub samples: usize,
    /// Longer prompts lose their end.
    #[serde(default = "default_prompt_tokens_max")]
    pub prompt_tokens_max: usize,
    /// Tokens a run generates.
    #[serde(default = "default_tokens")]
    pub tokens: usize,
    /// Runs of every setting on every prompt; an even number makes whole A B B A turns.
    #[serde(default = "default_repeats")]
    pub repeats: usize,
    /// Short runs are repeated more often than that: until the runs without a draft beside those of one drafter decoded for
    /// so many seconds a prompt (on average over a setting's prompts, all of which run as often), but at most
    /// [`REPEATS_FACTOR_MAX`] times as often. What a machine does beside a run of a tenth of a second moves it by a tenth.
    /// 0: never. Needs `slice_tokens`.
    #[serde(default)]
    pub decode_s_min: f64,
    /// Runs of one drafter and the one without a draft go on in turn, so many tokens at a time: what the machine does
    /// beside them falls on all alike, and all are in memory at once, so `memory` must say how much each may take. 0: one
    /// run after another.
    #[serde(default)]
    pub slice_tokens: usize,
    /// Of sampling and of the choice of prompts.
    #[serde(default = "one_seed")]
    pub seed: u64,
    /// `--threads`.
    pub threads: Option<usize>,
    /// `--memory`.
    pub memory: Option<String>,
    /// `--context`; otherwise what prompts and tokens need.
    pub context: Option<usize>,
    /// `--simulate-disk`: every figure is then labelled simulated.
    pub simulate_disk: Option<String>,
    /// More arguments of `drafthorse run`, one a string.
    #[serde(default)]
    pub args: Vec<String>,
}

fn default_drafters() -> Vec<Drafter> {
    vec![Drafter("ngram".to_owned())]
}
fn default_draft_lens() -> Vec<DraftLen> {
    vec![DraftLen::Auto]
}
fn default_verify() -> Vec<Verify> {
    vec![Verify::coupled()]
}
fn default_cache() -> Vec<CacheSize> {
    vec![CacheSize::Percent(100.0)]
}
fn default_starts() -> Vec<Start> {
    vec![Start::Cold]
}
fn default_temperatures() -> Vec<f64> {
    vec![0.0]
}
fn default_prompts() -> Vec<String> {
    vec!["builtin".to_owned()]
}
fn one() -> usize {
    1
}
fn one_seed() -> u64 {
    1
}
fn default_prompt_tokens_max() -> usize {
    256
}
fn default_tokens() -> usize {
    256
}
fn default_repeats() -> usize {
    4
}

impl Sweep {
    /// How often each way of drafting is run on each prompt of a setting whose runs without a draft decode for `off_s`
    /// seconds.
    pub fn repeats_of(&self, off_s: f64) -> usize {
        // A time that is none leaves it at what was asked for.
        let needed = if off_s > 0.0 { (self.decode_s_min / off_s).ceil() } else { 0.0 };
        (needed.min(self.repeats_max() as f64) as usize).max(self.repeats)
    }

    /// The most of them.
    pub fn repeats_max(&self) -> usize {
        if self.decode_s_min > 0.0 { REPEATS_FACTOR_MAX * self.repeats } else { self.repeats }
    }

    /// Reads a sweep, with `key=value` settings put over it; `quick` cuts it to one run of every setting on
    /// one prompt a task.
    ///
    /// # Errors
    /// A file that cannot be read, and the first key that cannot be used, by name.
    pub fn load(file: &Path, set: &[String], quick: bool) -> Result<Sweep, SpeedupError> {
        let read = |source| SpeedupError::io("read", file, source);
        let wrong = |problem: String| SpeedupError::Usage(format!("{}: {problem}", file.display()));
        if fs::metadata(file).map_err(read)?.len() > SWEEP_BYTES_MAX {
            return Err(wrong(format!("more than {SWEEP_BYTES_MAX} bytes")));
        }
        let text = fs::read_to_string(file).map_err(read)?;
        let mut table = text.parse::<Table>().map_err(|error| wrong(one_line(&error.to_string())))?;
        for setting in set {
            let (key, value) = parse_set(setting).map_err(SpeedupError::Usage)?;
            table.insert(key, value);
        }
        let mut sweep: Sweep =
            Value::Table(table).try_into().map_err(|error| wrong(one_line(&format!("{error}"))))?;
        sweep.check().map_err(wrong)?;
        if quick {
            sweep.samples = 1;
            sweep.repeats = 1;
            sweep.decode_s_min = 0.0;
            sweep.tokens = sweep.tokens.min(QUICK_TOKENS);
        }
        Ok(sweep)
    }

    fn check(&mut self) -> Result<(), String> {
        let lists = [
            ("draft_lens", self.draft_lens.len()),
            ("verify", self.verify.len()),
            ("cache", self.cache.len()),
            ("starts", self.starts.len()),
            ("temperatures", self.temperatures.len()),
            ("prompts", self.prompts.len()),
        ];
        if let Some((key, len)) = lists.into_iter().find(|(_, len)| !(1..=VALUES_MAX).contains(len)) {
            return Err(format!("{key}: {len} values; expected 1 to {VALUES_MAX}"));
        }
        let counts = [
            ("samples", self.samples),
            ("prompt_tokens_max", self.prompt_tokens_max),
            ("repeats", self.repeats),
        ];
        if let Some((key, count)) = counts.into_iter().find(|(_, count)| !(1..=COUNT_MAX).contains(count)) {
            return Err(format!("{key}: {count}; expected 1 to {COUNT_MAX}"));
        }
        if !(2..=1 << 20).contains(&self.tokens) {
            return Err(format!("tokens: {}; a rate needs 2, and 1048576 is the most", self.tokens));
        }
        if !(0.0..=DECODE_S_MAX).contains(&self.decode_s_min) {
            return Err(format!("decode_s_min: {}; expected 0 to {DECODE_S_MAX}", self.decode_s_min));
        }
        if self.decode_s_min > 0.0 && self.slice_tokens == 0 {
            // One more would stand next to a run that was made minutes ago.
            let problem = "only runs side by side are repeated: give slice_tokens, too, or 0 here";
            return Err(format!("decode_s_min: {}; {problem}", self.decode_s_min));
        }
        if self.slice_tokens > COUNT_MAX {
            return Err(format!("slice_tokens: {}; expected 0 to {COUNT_MAX}", self.slice_tokens));
        }
        // What is found free when one opens is what those before it left.
        let takes_what_is_free = self.args.windows(2).any(|pair| pair == ["--vram", "auto"])
            || self.args.iter().any(|word| word == "--vram=auto");
        if self.slice_tokens > 0 && (self.memory.is_none() || takes_what_is_free) {
            let problem = "runs side by side need a size of their own in memory (and for --vram)";
            return Err(format!("slice_tokens: {}; {problem}", self.slice_tokens));
        }
        if let Some(odd) = self.temperatures.iter().find(|t| !(0.0..=100.0).contains(*t)) {
            return Err(format!("temperatures: {odd}; expected 0 to 100"));
        }
        self.drafters.retain(|drafter| !drafter.is_none());
        without_doubles(&mut self.drafters);
        without_doubles(&mut self.draft_lens);
        without_doubles(&mut self.cache);
        without_doubles(&mut self.verify);
        without_doubles(&mut self.starts);
        without_doubles(&mut self.temperatures);
        without_doubles(&mut self.prompts);
        Ok(())
    }
}

/// A value named twice would be measured twice under one name.
fn without_doubles<T: PartialEq>(values: &mut Vec<T>) {
    let mut kept: Vec<T> = Vec::with_capacity(values.len());
    for value in values.drain(..) {
        if !kept.contains(&value) {
            kept.push(value);
        }
    }
    *values = kept;
}

/// `key=value`, the value in TOML or, where it is none, a text.
fn parse_set(setting: &str) -> Result<(String, Value), String> {
    let (key, value) =
        setting.split_once('=').ok_or_else(|| format!("--set {setting:?}: expected key=value"))?;
    let parsed = format!("value = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    Ok((key.trim().to_owned(), parsed.unwrap_or_else(|| Value::String(value.to_owned()))))
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn load(text: &str, set: &[&str], quick: bool) -> Result<Sweep, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.toml");
        fs::write(&file, text).unwrap();
        let set: Vec<String> = set.iter().map(|text| (*text).to_owned()).collect();
        Sweep::load(&file, &set, quick).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_left_out_has_a_default_and_settings_win_over_the_file() {
        let sweep = load("model = \"demo\"", &[], false).unwrap();
        assert_eq!((sweep.repeats, sweep.tokens, sweep.samples), (4, 256, 1));
        let set = ["model=/m x.gguf", "cache=[\"5%\", \"2MiB\", 7, \"5%\"]", "tokens=99"];
        let sweep = load("model = \"demo\"\ndrafters = [\"none\", \"ngram\"]", &set, true).unwrap();
        assert_eq!(sweep.model, "/m x.gguf");
        let cache = [CacheSize::Percent(5.0), CacheSize::Bytes("2MiB".into()), CacheSize::Slots(7)];
        assert_eq!(sweep.cache, cache);
        assert_eq!((sweep.repeats, sweep.tokens, sweep.drafters.len()), (1, QUICK_TOKENS, 1));
    }

    #[test]
    fn short_runs_are_repeated_until_they_took_long_enough_within_a_limit() {
        let repeats = |set: &str, off_s: f64| {
            let text = "model = \"m\"\nrepeats = 4\nslice_tokens = 8\nmemory = \"1GiB\"";
            load(text, &[set], false).unwrap().repeats_of(off_s)
        };
        assert_eq!(repeats("decode_s_min=2.0", 1.0), 4, "as many as were asked for");
        assert_eq!(repeats("decode_s_min=2.0", 0.25), 8);
        assert_eq!(repeats("decode_s_min=2.0", 0.3), 7);
        assert_eq!(repeats("decode_s_min=2.0", 0.001), 32);
        assert_eq!(repeats("decode_s_min=2.0", f64::NAN), 4);
        assert_eq!(repeats("decode_s_min=2.0", 0.0), 4);
        assert_eq!(repeats("decode_s_min=0", 0.001), 4);
        let quick = ["decode_s_min=9.5", "slice_tokens=8", "memory=1GiB"];
        assert_eq!(load("model = \"m\"", &quick, true).unwrap().repeats_of(0.1), 1, "quick");
    }

    #[test]
    fn the_committed_sweeps_can_be_used() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sweeps");
        let mut count = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let sweep = Sweep::load(&entry.unwrap().path(), &[], false).unwrap();
            assert!(!sweep.drafters.is_empty() && sweep.repeats.is_multiple_of(2));
            count += 1;
        }
        assert_eq!(count, 3);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (text, named) in [
            ("", "model"),
            ("model = 1", "string"),
            ("model = \"m\"\nmodle = 1", "modle"),
            ("model = \"m\"\ncache = [\"0%\"]", "0%"),
            ("model = \"m\"\ncache = [\"101%\"]", "101%"),
            ("model = \"m\"\ncache = []", "cache: 0 values"),
            ("model = \"m\"\nstarts = [\"tepid\"]", "tepid"),
            ("model = \"m\"\ndraft_lens = [\"long\"]", "long"),
            ("model = \"m\"\ndraft_lens = [-1]", "-1"),
            ("model = \"m\"\ndrafters = [\"script:accept=2\"]", "accept"),
            ("model = \"m\"\ntokens = 1", "tokens: 1"),
            ("model = \"m\"\nrepeats = 0", "repeats: 0"),
            ("model = \"m\"\ndecode_s_min = -1.0", "decode_s_min: -1"),
            ("model = \"m\"\ndecode_s_min = nan", "decode_s_min: NaN"),
            ("model = \"m\"\ndecode_s_min = 1.0", "give slice_tokens"),
            ("model = \"m\"\nslice_tokens = 10001", "slice_tokens: 10001"),
            ("model = \"m\"\nslice_tokens = 1", "memory"),
            ("model = \"m\"\nslice_tokens = 1\nmemory = \"1GiB\"\nargs = [\"--vram\", \"auto\"]", "--vram"),
            ("model = \"m\"\ntemperatures = [-0.5]", "-0.5"),
            ("model = ", "line 1"),
        ] {
            let error = load(text, &[], false).unwrap_err();
            assert!(error.contains("s.toml") && error.contains(named), "{text}: {error}");
        }
        assert!(load("model = \"m\"", &["tokens"], false).unwrap_err().contains("key=value"));
        assert!(
            load("model = \"m\"", &["tokens=[1]"], false).unwrap_err().contains("invalid type: sequence")
        );
    }
}
