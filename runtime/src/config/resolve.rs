//! From settings to what the engine takes: the one place where user words become program words.
//!
//! Owns the order of the layers and where the demo pair lies. It reads no model and measures nothing.

use std::path::{Path, PathBuf};

use drafthorse_draft::{NgramConfig, SamplerConfig, SuffixConfig};
use drafthorse_offload::ReaderOptions;
use drafthorse_offload::reader::SimulatedDisk;
use drafthorse_scheduler::DraftLen;

use super::{
    Auto, Config, ConfigError, DEMO_TOML, DraftChoice, GpuSection, Layer, ModelChoice, Settings, Vram,
};
use crate::api::{DraftSource, EngineOptions, ExpertGroups, GenerateOptions, GpuOptions};

/// The demo pair's target.
const DEMO_TARGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/target.gguf");

/// The demo pair's draft.
const DEMO_DRAFT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/draft.gguf");

impl Settings {
    /// As [`Config::load`], not yet checked for settings that must agree.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn load(file: Option<&Path>, flags: &Layer) -> Result<Settings, ConfigError> {
        let file = file.map(Layer::file).transpose()?;
        let mut settings = Settings::defaults()?;
        let asked = [Some(flags), file.as_ref()].into_iter().flatten().find_map(|l| l.get("model", "path"));
        if asked.is_none_or(|path| path.as_str() == Some("demo")) {
            settings.apply(&Layer::text("demo.toml", DEMO_TOML)?)?;
        }
        if let Some(file) = &file {
            settings.apply(file)?;
        }
        settings.apply(flags)?;
        Ok(settings)
    }
}

impl Config {
    /// Defaults, then the demo's settings if the demo pair is what will run, then `file`, then `flags`.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn load(file: Option<&Path>, flags: &Layer) -> Result<Config, ConfigError> {
        Settings::load(file, flags)?.finish()
    }

    /// What the engine is opened with.
    ///
    /// # Errors
    /// [`ConfigError::DemoMissing`] when the demo pair is asked for and is not there.
    pub fn engine_options(&self) -> Result<EngineOptions, ConfigError> {
        let Config { model, memory, gpu, draft, scheduler, offload, .. } = self;
        Ok(EngineOptions {
            model: self.model_path()?,
            draft: draft_source(&draft.source)?,
            memory_bytes: memory.budget.value().map(|size| size.bytes()),
            memory_share: memory.share,
            gpu: gpu_options(gpu),
            context_len: model.context.value().unwrap_or(0),
            kv_type: model.kv_type,
            prefill_chunk: model.prefill_chunk.value(),
            threads: model.threads.value().unwrap_or(0),
            draft_threads: draft.threads.value().unwrap_or(0),
            draft_len: scheduler.draft_len.value().map_or(DraftLen::Auto, DraftLen::Fixed),
            draft_len_max: scheduler.draft_len_max,
            elastic: scheduler.elastic,
            ngram: NgramConfig { min_match: draft.ngram_min_match, max_match: draft.ngram_max_match },
            suffix: SuffixConfig { min_match: draft.suffix_min_match, tokens_max: draft.suffix_tokens_max },
            policy: offload.policy,
            policy_half_life_rows: offload.half_life_rows,
            slots: offload.slots.value(),
            reader: offload.reader.0,
            io: ReaderOptions { threads: offload.io_threads, depth: offload.queue_depth, cached: false },
            simulate_disk: offload.simulate_disk.0.map(SimulatedDisk::new),
            prefetch: offload.prefetch,
            stats_file: offload.stats_file.0.clone(),
            expert_groups: self.expert_groups(),
            record_trace: offload.record_trace.0.clone(),
        })
    }

    /// What one answer is generated with.
    #[must_use]
    pub fn generate_options(&self) -> GenerateOptions {
        let sampling = &self.sampling;
        let sampler = SamplerConfig {
            repeat_penalty: sampling.repeat_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            repeat_last_n: sampling.repeat_last_n,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            seed: sampling.seed,
            verify: sampling.verify,
        };
        GenerateOptions { max_tokens: self.run.max_tokens, sampler, stop_at_end: !self.run.ignore_eos }
    }

    /// The target's file.
    ///
    /// # Errors
    /// [`ConfigError::DemoMissing`].
    pub fn model_path(&self) -> Result<PathBuf, ConfigError> {
        match &self.model.path {
            ModelChoice::Demo => demo_file(DEMO_TARGET),
            ModelChoice::Path(path) => Ok(path.clone()),
        }
    }

    fn expert_groups(&self) -> Option<ExpertGroups> {
        match (self.model.expert_groups, self.model.expert_groups_used) {
            (Auto::Value(groups), Auto::Value(groups_used)) => Some(ExpertGroups { groups, groups_used }),
            _ => None,
        }
    }
}

fn gpu_options(gpu: &GpuSection) -> Option<GpuOptions> {
    let vram_bytes = match gpu.vram {
        Vram::None => return None,
        Vram::Auto => None,
        Vram::Limit(size) => Some(size.bytes()),
    };
    Some(GpuOptions {
        device: gpu.device.0,
        vram_bytes,
        hybrid: gpu.hybrid,
        profile: gpu.profile,
        unified: gpu.unified.value(),
    })
}

fn draft_source(choice: &DraftChoice) -> Result<DraftSource, ConfigError> {
    Ok(match choice {
        DraftChoice::None => DraftSource::None,
        DraftChoice::Ngram => DraftSource::Ngram,
        DraftChoice::Suffix => DraftSource::Suffix,
        DraftChoice::Mtp => DraftSource::Mtp,
        DraftChoice::Script(script) => DraftSource::Script(script.clone()),
        DraftChoice::Demo => DraftSource::Model(demo_file(DEMO_DRAFT)?),
        DraftChoice::Path(path) => DraftSource::Model(path.clone()),
        DraftChoice::List(choices) => {
            DraftSource::Chain(choices.iter().map(draft_source).collect::<Result<_, _>>()?)
        }
    })
}

fn demo_file(path: &str) -> Result<PathBuf, ConfigError> {
    let path = PathBuf::from(path);
    if path.is_file() { Ok(path) } else { Err(ConfigError::DemoMissing { path }) }
}
