//! The limits of every setting, in one list.
//!
//! Owns ranges and the checks of keys that must agree. It must not know where a value came from:
//! the caller adds the file and key, or the flag.

use std::fmt::Display;
use std::ops::RangeInclusive;

use drafthorse_offload::reader::{DEPTH_MAX, DEPTH_MIN};
use drafthorse_scheduler::DRAFT_LEN_LIMIT;

use super::{Auto, Config, ConfigError, Vram};

/// Longest context that is planned for: 16 times the longest any supported model was trained with.
const CONTEXT_MAX: usize = 1 << 21;

/// Threads and reads in flight beyond this are a mistake on any laptop.
const THREADS_MAX: usize = 1024;

/// Checks every range.
///
/// # Errors
/// The limits of the setting that is beyond them, in words.
pub(super) fn check(config: &Config) -> Result<(), String> {
    let Config { model, memory, gpu: _, draft, scheduler, offload, sampling, run, bench, tune } = config;
    auto_within(model.context, 1..=CONTEXT_MAX)?;
    auto_within(model.prefill_chunk, 1..=8192)?;
    auto_within(model.threads, 1..=THREADS_MAX)?;
    auto_within(model.expert_groups, 1..=1024)?;
    auto_within(model.expert_groups_used, 1..=1024)?;
    within(memory.share, 0.05..=0.95)?;
    auto_within(draft.threads, 1..=THREADS_MAX)?;
    within(draft.ngram_min_match, 1..=1024)?;
    within(draft.ngram_max_match, 1..=1024)?;
    within(draft.suffix_min_match, 1..=64)?;
    within(draft.suffix_tokens_max, 256..=4 << 20)?;
    auto_within(scheduler.draft_len, 0..=DRAFT_LEN_LIMIT)?;
    within(scheduler.draft_len_max, 1..=DRAFT_LEN_LIMIT)?;
    auto_within(offload.slots, 1..=10_000_000)?;
    within(offload.half_life_rows, 1.0..=1e6)?;
    within(offload.io_threads, 1..=256)?;
    within(offload.queue_depth, DEPTH_MIN..=DEPTH_MAX)?;
    within(sampling.repeat_penalty, 0.1..=10.0)?;
    within(sampling.presence_penalty, -10.0..=10.0)?;
    within(sampling.frequency_penalty, -10.0..=10.0)?;
    within(sampling.repeat_last_n, 0..=CONTEXT_MAX)?;
    within(sampling.temperature, 0.0..=100.0)?;
    within(sampling.top_k, 0..=10_000_000)?;
    within(sampling.min_p, 0.0..=1.0)?;
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        return Err("above 0, at most 1".to_owned());
    }
    within(run.max_tokens, 1..=CONTEXT_MAX)?;
    within(bench.prompt_tokens, 1..=CONTEXT_MAX)?;
    within(bench.generate_tokens, 1..=CONTEXT_MAX)?;
    within(bench.repeat, 1..=1000)?;
    within(tune.minutes, 0.05..=1440.0)
}

/// Checks the settings that limit each other.
///
/// # Errors
/// [`ConfigError::Conflict`] names both.
pub(super) fn check_pairs(config: &Config) -> Result<(), ConfigError> {
    let conflict = |text: String| Err(ConfigError::Conflict(text));
    let gpu = &config.gpu;
    let asked = gpu.unified.value().map(|asked| format!("gpu.unified = {asked}"));
    if let Some(asked) = asked.or_else(|| gpu.profile.then(|| "gpu.profile = true".to_owned()))
        && gpu.vram == Vram::None
    {
        return conflict(format!("{asked}: nothing is computed on a GPU without gpu.vram (--vram)"));
    }
    let (min, max) = (config.draft.ngram_min_match, config.draft.ngram_max_match);
    if min > max {
        return conflict(format!("draft.ngram_min_match = {min} is more than draft.ngram_max_match = {max}"));
    }
    match (config.model.expert_groups, config.model.expert_groups_used) {
        (Auto::Auto, Auto::Auto) => Ok(()),
        (Auto::Value(groups), Auto::Value(used)) if used <= groups => Ok(()),
        (Auto::Value(groups), Auto::Value(used)) => {
            conflict(format!("model.expert_groups_used = {used} is more than model.expert_groups = {groups}"))
        }
        _ => conflict(
            "model.expert_groups and model.expert_groups_used are set together or not at all".to_owned(),
        ),
    }
}

/// Not a number is within nothing.
fn within<T: PartialOrd + Display>(value: T, range: RangeInclusive<T>) -> Result<(), String> {
    if range.contains(&value) { Ok(()) } else { Err(format!("{} to {}", range.start(), range.end())) }
}

fn auto_within<T: PartialOrd + Display>(value: Auto<T>, range: RangeInclusive<T>) -> Result<(), String> {
    value
        .value()
        .map_or(Ok(()), |value| within(value, range))
        .map_err(|limits| format!("{limits}, or \"auto\""))
}
