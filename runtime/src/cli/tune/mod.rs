//! `tune`: measures this machine, model and pair, and writes the settings that are fastest.
//!
//! Three comparisons, each beginning with what the one before chose: who drafts and how far, how many
//! experts are kept, how many threads compute. Owns their order and what becomes of the result; `lab`
//! runs, `settings` lists, `decide` decides, `evidence` tells and `write` writes.

mod decide;
mod evidence;
mod lab;
mod settings;
mod write;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use drafthorse_runtime::api::{DraftSource, EngineOptions, GenerateOptions};
use drafthorse_runtime::config::{Config, Layer, Settings};
use drafthorse_runtime::{Error, host};
use drafthorse_scheduler::DraftLen;
use toml::Value;

use super::args::TuneArgs;
use super::interrupt::Interrupt;
use super::output;
use decide::decide;
use evidence::{Evidence, Stage, measured};
use lab::{Lab, Warm};
use settings::{Drafter, Freedom, Setting, cache_sizes, drafting, thread_counts};
use write::Output;

/// Shares of the time at which the comparisons end, without and with experts to keep.
const DENSE_UNTIL: [f64; 3] = [0.7, 0.7, 1.0];
const EXPERTS_UNTIL: [f64; 3] = [0.5, 0.85, 1.0];
/// Share of the time that a comparison must have left to be begun.
const LEFT_MIN: f64 = 0.05;
/// What text is drawn at unless the settings say: greedy text falls into loops.
const TEMPERATURE: f32 = 0.8;
const MIB: u64 = 1 << 20;

/// The command.
pub fn run(args: &TuneArgs) -> Result<(), Error> {
    let flags = args.layer()?;
    let settings = Settings::load(args.engine.config.as_deref(), &flags)?;
    let config = settings.clone().finish()?;
    if config.offload.record_trace.0.is_some() {
        return super::usage("tune: --record-trace is for one text, and tune runs many");
    }
    if config.run.verbose {
        super::session::log_to_stderr();
    }
    let output = Output::check(&args.output, args.force)?;
    let interrupt = Interrupt::install()?;
    let draft = settings.get("draft", "source").and_then(Value::as_str).unwrap_or_default();
    let mut tuning = Tuning::new(args, (&config, draft), &interrupt)?;
    let evidence = interrupt.during(|| tuning.measure())?;
    let keys = chosen_keys(&settings, &evidence)?;
    output.publish(&format!("{}{}", evidence.comments(), write::keys(&keys)))?;
    if config.run.json {
        return output::print_json(&evidence);
    }
    output::print(&format!("{}\nwrote {}\n", evidence.lines().join("\n"), args.output.display()))
}

/// What is tuned, and within which limits.
struct Tuning<'a> {
    args: &'a TuneArgs,
    config: &'a Config,
    lab: Lab,
    budget_bytes: u64,
    default: Setting,
    has_given: bool,
    temperature: f32,
    disk: Option<String>,
    draft: String,
    stages: Vec<Stage>,
    not_measured: Vec<String>,
    late_reads: u64,
}

impl<'a> Tuning<'a> {
    /// `draft` is the drafter in the user's words.
    fn new(
        args: &'a TuneArgs,
        (config, draft): (&'a Config, &str),
        interrupt: &Interrupt,
    ) -> Result<Tuning<'a>, Error> {
        let mut options = config.engine_options()?;
        let budget_bytes = budget(&options)?;
        options.memory_bytes = Some(budget_bytes);
        // What a run before has left there would make the first runs here unlike the later ones.
        options.stats_file = None;
        let disk = options.simulate_disk.as_ref().map(|disk| disk.spec().to_string());
        let has_given = !matches!(options.draft, DraftSource::None | DraftSource::Ngram);
        let default = default_setting(config, &options);
        let is_planned = |len: usize| len <= options.draft_len_max;
        if args.draft.draft_len.is_none() && config.scheduler.draft_len.value().is_none_or(is_planned) {
            // Every engine is planned for the longest draft that is tried.
            options.draft_len = DraftLen::Auto;
        }
        let mut generate: GenerateOptions = config.generate_options();
        if args.sampling.temp.is_none() && generate.sampler.temperature == 0.0 {
            generate.sampler.temperature = TEMPERATURE;
        }
        let limit = Duration::from_secs_f64(60.0 * config.tune.minutes);
        let looks_up = args.draft.draft.as_deref() != Some("none");
        let temperature = generate.sampler.temperature;
        let lab = Lab::new(options, generate, (interrupt.clone(), limit, looks_up));
        Ok(Tuning {
            args,
            config,
            lab,
            budget_bytes,
            default,
            has_given,
            temperature,
            disk,
            draft: draft.to_owned(),
            stages: Vec::new(),
            not_measured: Vec::new(),
            late_reads: 0,
        })
    }

    fn measure(&mut self) -> Result<Evidence, Error> {
        let freedom = Freedom {
            has_given: self.has_given,
            is_plain_only: self.args.draft.draft.as_deref() == Some("none"),
            draft_len: self.args.draft.draft_len.as_ref().map(|_| self.default_draft_len()),
            draft_len_max: self.config.scheduler.draft_len_max,
        };
        let list = drafting(self.default, &freedom);
        let slots_max = self.lab.slots_max(&self.default)?;
        let until = if slots_max > 0 { EXPERTS_UNTIL } else { DENSE_UNTIL };
        self.lab.prepare(&list, until[0])?;
        let best = self.compare("drafting", &list, (Warm::SameText, until[0]))?;
        let best = self.sizes(best, slots_max, until[1])?;
        let best = self.threads(best, until[2])?;
        self.lab.finish();
        Ok(self.evidence(best))
    }

    fn default_draft_len(&self) -> DraftLen {
        self.config.scheduler.draft_len.value().map_or(DraftLen::Auto, DraftLen::Fixed)
    }

    /// How many experts to keep.
    fn sizes(&mut self, best: Setting, slots_max: usize, until: f64) -> Result<Setting, Error> {
        if slots_max == 0 {
            return Ok(best);
        }
        if self.args.engine.slots.is_some() {
            return Ok(self.skip("cache sizes: --slots was given", best));
        }
        if self.lab.left() < LEFT_MIN {
            return Ok(self.skip("cache sizes: the time was over", best));
        }
        let slots_max = self.lab.slots_max(&best)?;
        self.compare("cache size", &cache_sizes(best, (1, slots_max)), (Warm::OtherText, until))
    }

    /// How many threads compute.
    fn threads(&mut self, best: Setting, until: f64) -> Result<Setting, Error> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let list = thread_counts(best, cpus);
        if list.len() < 2 {
            return Ok(best);
        }
        if self.args.engine.threads.is_some() {
            return Ok(self.skip("threads: --threads was given", best));
        }
        if self.lab.left() < LEFT_MIN {
            return Ok(self.skip("threads: the time was over", best));
        }
        self.compare("threads", &list, (Warm::OtherText, until))
    }

    fn skip(&mut self, why: &str, best: Setting) -> Setting {
        self.not_measured.push(why.to_owned());
        best
    }

    /// Runs `list` in turns; the best of it.
    fn compare(
        &mut self,
        name: &'static str,
        list: &[Setting],
        (warm, until): (Warm, f64),
    ) -> Result<Setting, Error> {
        let rows = self.lab.rounds(name, list, (warm, until))?;
        let samples = rows.iter().flat_map(|row| row.samples.iter().flatten());
        self.late_reads += samples.map(|sample| sample.simulated_late_reads).sum::<u64>();
        let cells: Vec<_> = rows.iter().map(measured).collect();
        let decision = decide(&cells);
        self.stages.push(Stage::new(name, list, &rows, &decision));
        Ok(list[decision.chosen])
    }

    fn evidence(&mut self, chosen: Setting) -> Evidence {
        let mut not_measured = std::mem::take(&mut self.not_measured);
        if !self.lab.resets_peak {
            let why = "what needs another engine: this system does not let a process forget its peak memory";
            not_measured.push(why.to_owned());
        }
        if self.config.offload.stats_file.0.is_some() {
            not_measured.push("warm starts: the stats file was neither read nor written".to_owned());
        }
        not_measured.push(format!(
            "reading ahead: prefetch = \"{}\"{}",
            self.config.offload.prefetch,
            if self.args.engine.prefetch.is_none() { ", which measures while it runs" } else { "" }
        ));
        not_measured.push("policy, reader, queue depth, context and KV type: as they were set".to_owned());
        let (texts, prompt_tokens) = self.lab.texts();
        let text = format!(
            "{texts} texts in turns, prompts of at most {prompt_tokens} tokens, {} generated a run at temperature {}; \
             drafting behind the same text, the rest behind another",
            self.lab.tokens, self.temperature
        );
        Evidence {
            program: format!("drafthorse {} tune", env!("CARGO_PKG_VERSION")),
            date: today(),
            machine: host::description(),
            model: self.config.model_path().map_or_else(|e| e.to_string(), |path| path.display().to_string()),
            draft: self.draft.clone(),
            budget_bytes: self.budget_bytes,
            simulated_disk: self.disk.clone(),
            simulated_late_reads: self.late_reads,
            text,
            seconds: self.lab.seconds(),
            peak_rss_bytes: self.lab.peak_rss_bytes,
            stages: std::mem::take(&mut self.stages),
            chosen,
            not_measured,
        }
    }
}

/// The budget in bytes; one that was not stated is rounded to what the file can say.
fn budget(options: &EngineOptions) -> Result<u64, Error> {
    let free = || host::default_budget_bytes(options.memory_share).map(|bytes| bytes / MIB * MIB);
    options.memory_bytes.or_else(free).ok_or(Error::UnknownMemory)
}

/// What the settings say as they stand.
fn default_setting(config: &Config, options: &EngineOptions) -> Setting {
    let drafter = match options.draft {
        DraftSource::None => Drafter::None,
        DraftSource::Ngram => Drafter::Ngram,
        _ => Drafter::Given,
    };
    let draft_len = if drafter == Drafter::None { DraftLen::Fixed(0) } else { options.draft_len };
    Setting { drafter, draft_len, slots: config.offload.slots.value(), threads: config.model.threads.value() }
}

/// The keys of the file: what the chosen settings change of those that a run of the same model has anyway.
fn chosen_keys(settings: &Settings, evidence: &Evidence) -> Result<Vec<(String, String, Value)>, Error> {
    let Setting { drafter, draft_len, slots, threads } = evidence.chosen;
    let or_auto = |number: Option<usize>| number.map_or(Value::from("auto"), |n| Value::from(n as i64));
    let value = |section, key| settings.get(section, key).cloned().unwrap_or(Value::from("none"));
    let model = absolute(value("model", "path"));
    let mut tuned = Layer::command_line();
    tuned.flag("tune", ("model", "path"), Some(model.clone()));
    tuned.flag("tune", ("model", "threads"), Some(or_auto(threads)));
    tuned.flag("tune", ("memory", "budget"), Some(size(evidence.budget_bytes)));
    let source = match drafter {
        Drafter::None => Value::from("none"),
        Drafter::Ngram => Value::from("ngram"),
        Drafter::Given => absolute(value("draft", "source")),
    };
    tuned.flag("tune", ("draft", "source"), Some(source));
    let draft_len = match (drafter, draft_len) {
        (Drafter::None, _) | (_, DraftLen::Auto) => None,
        (_, DraftLen::Fixed(len)) => Some(len),
    };
    tuned.flag("tune", ("scheduler", "draft_len"), Some(or_auto(draft_len)));
    tuned.flag("tune", ("offload", "slots"), Some(or_auto(slots)));
    let mut chosen = settings.clone();
    chosen.apply(&tuned)?;
    let mut path = Layer::command_line();
    path.flag("MODEL", ("model", "path"), Some(model.clone()));
    let base = Settings::load(None, &path)?;
    let mut keys = vec![("model".to_owned(), "path".to_owned(), model)];
    let mut changed = chosen.differences(&base);
    changed.retain(|(section, key, _)| {
        // Whoever tunes for another disk than the one at hand does not want to run at its pace.
        !["run", "bench", "tune"].contains(&section.as_str()) && key != "simulate_disk"
    });
    // Sections come in the order of the alphabet: the model's go behind its path.
    changed.sort_by_key(|(section, _, _)| section != "model");
    keys.extend(changed);
    Ok(keys)
}

/// A path that leads to the same file from anywhere; words that are none stay.
fn absolute(path: Value) -> Value {
    let full = path
        .as_str()
        .filter(|path| Path::new(path).is_file())
        .and_then(|path| std::fs::canonicalize(path).ok()?.to_str().map(str::to_owned));
    full.map_or(path, Value::from)
}

fn size(bytes: u64) -> Value {
    if bytes.is_multiple_of(MIB) {
        Value::from(format!("{}MiB", bytes / MIB))
    } else {
        Value::from(bytes as i64)
    }
}

/// The date in UTC.
fn today() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    date_of((since.as_secs() / 86_400) as i64)
}

/// A number of days since 1970-01-01 as a date (Hinnant, "chrono-compatible low-level date algorithms").
fn date_of(days: i64) -> String {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153; // months from March
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        for (days, date) in
            [(0, "1970-01-01"), (59, "1970-03-01"), (11_016, "2000-02-29"), (20_783, "2026-11-26")]
        {
            assert_eq!(date_of(days), date);
        }
    }

    #[test]
    fn a_budget_is_written_as_it_was_measured() {
        assert_eq!(size(42 << 20), Value::from("42MiB"));
        assert_eq!(size(12_345_678), Value::from(12_345_678));
    }
}
