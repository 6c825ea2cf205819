//! The engine: one target, one drafter, one sequence. `Engine::step` is the function to read first.
//!
//! Owns the loop `propose -> plan -> verify -> commit -> roll back` and its measurements. It knows no
//! tensors, files or backends: the target is a [`Model`], the drafter a trait, the decisions the
//! scheduler's. Plain decoding is the same loop with an empty draft (DESIGN I7).

mod ahead;
mod draft_len;
mod elastic;
mod forced;
mod report;
mod routes;
mod shown;
mod watch;

use std::ops::ControlFlow;
use std::time::Instant;

use drafthorse_draft::{AcceptanceStats, Drafter, History, LanguageModel, LogitRows, Sampler, TokenId};
use drafthorse_offload::reader::SimulatedDisk;
use drafthorse_offload::{CacheStats, Residency};
use drafthorse_scheduler::{
    Controller, ControllerConfig, DraftEffort, ElasticMode, MemoryPlan, Plan, StepOutcome,
};

use crate::Error;
use crate::api::{EngineOptions, FinishReason, GenerateOptions, Generation, Progress};
use crate::clock::{Phase, Spans};
use crate::gpu::GpuStats;
use crate::models::Model;
use crate::open::{CacheChoice, Device, GpuInfo, drafter, logit_rows, prepare};
use crate::recorder::Recording;
use crate::sequence::Sequence;
use crate::stats_file::{Learned, Setup, StatsFile};
use crate::tokenizer::{AddSpecial, Tokenizer};
use ahead::ReadAhead;
use draft_len::Lengths;
use routes::Routes;
use watch::Watch;

pub use crate::ids::{ids_hash, parse_ids, read_ids};
pub use forced::Replay;

/// A loaded model pair, ready to generate.
pub struct Engine {
    target: Model,
    drafter: Option<Box<dyn Drafter>>,
    /// Why there is no drafter, or no longer one.
    drafter_missing: Option<String>,
    controller: Controller,
    /// What a drafted token takes of a plain pass, by size.
    effort: DraftEffort,
    lengths: Lengths,
    watch: Watch,
    tokenizer: Option<Tokenizer>,
    plan: MemoryPlan,
    /// The GPU's name and memory.
    gpu: Option<GpuInfo>,
    routes: Routes,
    stats: Option<StatsFile>,
    /// What its lessons hold for.
    setup: Setup,
    read_ahead: ReadAhead,
    elastic: ElasticMode,
    /// Tokens whose rows the target's cache holds.
    cached: Vec<TokenId>,
    prefill_chunk: usize,
    /// Rows of logits that the memory plan counts.
    logit_rows: usize,
    load_s: f64,
    disk: Option<SimulatedDisk>,
    logits: Vec<f32>,
}

/// Whom a generation reports to.
struct Hooks<'a> {
    progress: &'a mut dyn Progress,
    on_tokens: &'a mut dyn FnMut(&[TokenId]) -> ControlFlow<()>,
}

/// Counters of one generation.
#[derive(Default)]
struct Tally {
    acceptance: AcceptanceStats,
    prefilled: usize,
    prefill_s: f64,
    decode_s: f64,
    decode: Spans,
    /// Counters when the prompt was done, and when the text was.
    decode_cache: [CacheStats; 2],
    rejected_only_bytes: u64,
    rows_dropped: u64,
    /// Counters of the GPU before the prompt.
    gpu_before: GpuStats,
}

impl Engine {
    /// Opens, checks, plans and loads.
    ///
    /// # Errors
    /// Everything that can be wrong with options, files, budget and machine, by name.
    pub fn open(options: &EngineOptions, progress: &mut dyn Progress) -> Result<Engine, Error> {
        let started = Instant::now();
        let mut prepared = prepare(options)?;
        prepared.notices.iter().for_each(|line| progress.notice(line));
        let recording = match &options.record_trace {
            Some(path) => Some(Recording::new(prepared.target.blueprint(), path.clone())?),
            None => None,
        };
        let config = ControllerConfig { mode: options.draft_len, draft_len_max: options.draft_len_max };
        config.validate()?;
        let (slots, warm) = (prepared.plan.slots, prepared.learned(progress));
        let cache = CacheChoice { slots, warm, ..CacheChoice::of(options) };
        let device = prepared.device;
        let gpu = device.as_ref().map(Device::info);
        let mut target = prepared.target.load(cache, device, progress)?;
        let effort = prepared.draft.effort(options, &target);
        let drafter = drafter(options, prepared.draft, &mut target, progress)?;
        let mut controller = Controller::new(config, effort);
        let mut read_ahead = ReadAhead::new(options.prefetch, &target);
        let learned = prepared.stats.as_ref().map(|stats| stats.learned(&prepared.setup)).unwrap_or_default();
        learned.lessons.iter().for_each(|lessons| controller.recall(lessons));
        learned.prefetch.into_iter().for_each(|lessons| read_ahead.recall(lessons));
        let routes = Routes::new(recording, drafter.is_some(), &mut target);
        Ok(Engine {
            read_ahead,
            elastic: options.elastic,
            target,
            drafter_missing: drafter.is_none().then(|| "no drafter was asked for".into()),
            drafter,
            controller,
            effort,
            lengths: Lengths::new(config),
            watch: Watch::default(),
            tokenizer: prepared.tokenizer,
            plan: prepared.plan,
            gpu,
            routes,
            stats: prepared.stats,
            setup: prepared.setup,
            cached: Vec::new(),
            prefill_chunk: prepared.prefill_chunk,
            logit_rows: logit_rows(options),
            load_s: started.elapsed().as_secs_f64(),
            disk: options.simulate_disk.clone(),
            logits: Vec::new(),
        })
    }

    /// The memory plan that `open` would follow, from headers alone.
    ///
    /// # Errors
    /// As `open`, weights apart.
    pub fn plan(options: &EngineOptions) -> Result<MemoryPlan, Error> {
        Ok(prepare(options)?.plan)
    }

    /// One step: draft, verify in one pass, commit, roll back. Returns how many tokens were committed;
    /// they are the last of `sequence`. `room` is how many may be.
    fn step(
        &mut self,
        sequence: &mut Sequence,
        room: usize,
        (tally, progress): (&mut Tally, &mut dyn Progress),
    ) -> Result<usize, Error> {
        let Plan { draft_len: wanted, stop, run_ahead, is_blank, watch } = match self.drafter {
            Some(_) => self.controller.plan(&self.residency()),
            None => Plan::PLAIN,
        };
        let started = Instant::now();
        self.target.clock().restart();
        let most = wanted.min(room - 1);
        self.make_feature_room((sequence, sequence.len()), 1 + most, progress);
        let mut draft = match most {
            0 => self.draft_to_watch(sequence, watch, progress),
            _ if is_blank => self.draft_blank(sequence.tokens()),
            most => self.ask(sequence, (most, stop), progress),
        };
        // What comes tells of the first token that is cut off, too, where tokens stand by being equal.
        let tells = !is_blank && sequence.sampler.config().stands_by_equality();
        let guesses = if tells { draft.tokens.clone() } else { Vec::new() };
        draft.cut(|draft| self.controller.keep(draft));
        if most > 0 {
            self.watch.end(); // verifying tells the same, and more
        }
        if run_ahead {
            self.draft_ahead(sequence, (most, stop), &draft);
        }
        let drafted = Instant::now();
        self.target.clock().lap(Phase::Draft);
        let before = self.cache_stats();
        let wanted_before = before.hits + before.misses + self.experts_on_gpu();

        let dropped = self.verify_pass(sequence, &mut draft)?;
        let vocab = self.target.vocab();
        let logits = |row: usize| &self.logits[row * vocab..(row + 1) * vocab];
        let verdict = sequence.sampler.verify(sequence.tokens(), &draft, logits);
        let unverified = verdict.tells_of_next(&guesses, draft.tokens.len());
        let certainty = &*self.certainty(sequence, &draft, &verdict);
        let committed = sequence.commit(&draft, &verdict);
        let watched = self.watch.told(sequence.tokens(), certainty);
        self.target.truncate(sequence.len() - 1);

        // A token that was nobody's guess counts if it stands: it is one pass less.
        let drafted_tokens = if is_blank { verdict.accepted } else { draft.tokens.len() };
        tally.acceptance.record(drafted_tokens, verdict.accepted);
        tally.rows_dropped += dropped as u64;
        tally.rejected_only_bytes += self.target.demand().bytes_after(verdict.accepted);
        let shadow = self.routes.commit(committed, false)?;
        let after = self.cache_stats();
        // A pass cut short by the end of the text says nothing about what its plan would have cost.
        if self.drafter.is_some() && wanted < room {
            self.controller.observe(&StepOutcome {
                draft_len: draft.tokens.len(),
                dropped,
                accepted: verdict.accepted,
                certainty,
                unverified,
                watched: &watched,
                draft_s: (drafted - started).as_secs_f64(),
                verify_s: drafted.elapsed().as_secs_f64(),
                stall_s: after.stall_s - before.stall_s,
                experts: (after.hits + after.misses + self.experts_on_gpu()) - wanted_before,
                misses: after.misses - before.misses,
                shadow,
            });
        }
        self.target.clock().lap(Phase::Sampling);
        Ok(committed)
    }

    /// Continues `prompt`. `on_tokens` gets every run of new tokens, and may stop the generation; it is
    /// also asked (with none) between the chunks of a long prompt.
    ///
    /// # Errors
    /// An empty or too long prompt, ids outside the vocabulary, experts that cannot be read. The engine
    /// stays usable.
    pub fn generate(
        &mut self,
        prompt: &[TokenId],
        options: &GenerateOptions,
        progress: &mut dyn Progress,
        on_tokens: &mut dyn FnMut(&[TokenId]) -> ControlFlow<()>,
    ) -> Result<Generation, Error> {
        options.sampler.validate()?;
        self.check_prompt(prompt)?;
        let mut sequence = Sequence::new(prompt, Sampler::new(options.sampler));
        let gpu_before = self.target.gpu_stats().unwrap_or_default();
        let mut tally = Tally { gpu_before, ..Tally::default() };
        let before = self.cache_stats();
        let hooks = Hooks { progress, on_tokens };
        let outcome = self.run(&mut sequence, options, &mut tally, hooks);
        self.drafter.iter_mut().for_each(|drafter| drafter.rest());
        self.watch.end();
        // Every committed token but the last has its row in the cache, an end token taken back too.
        self.cached = sequence.tokens().to_vec();
        self.cached.truncate(self.target.len());
        self.target.truncate(self.cached.len());
        self.end_reading_ahead();
        let finish_reason = self.routes.end(outcome)?;
        if let Some(stats) = &mut self.stats {
            let learned = Learned { lessons: self.controller.lessons(), prefetch: self.read_ahead.lessons() };
            stats.save(&self.target, &self.setup, learned)?;
        }
        Ok(self.report(&sequence, tally, finish_reason, before))
    }

    fn run(
        &mut self,
        sequence: &mut Sequence,
        options: &GenerateOptions,
        tally: &mut Tally,
        hooks: Hooks<'_>,
    ) -> Result<FinishReason, Error> {
        let started = Instant::now();
        let at_start = self.target.spans();
        let Hooks { progress, on_tokens } = hooks;
        if self.prefill(sequence, tally, Hooks { progress, on_tokens })?.is_break() {
            return Ok(FinishReason::Interrupted);
        }
        let mut fresh = 0;
        if options.max_tokens > 0 {
            let history = History::of(sequence.tokens());
            sequence.push(sequence.sampler.choose(&self.logits, history).token);
            fresh = 1;
        }
        tally.prefill_s = started.elapsed().as_secs_f64();
        let reading = self.target.spans() - at_start;
        let context_left = self.target.context_len() - self.target.len();
        let times = (tally.prefill_s, reading.sum() - reading.stall_s);
        self.controller.begin_text(times, options.max_tokens.min(context_left));
        let decoding = Instant::now();
        let (before, cache_before) = (self.target.spans(), self.cache_stats());
        let finish_reason = loop {
            let is_ended = options.stop_at_end && self.cut_at_end(sequence, &mut fresh);
            // Whoever takes the tokens may take long.
            self.drafter.iter_mut().for_each(|drafter| drafter.rest());
            if fresh > 0 && on_tokens(&sequence.tokens()[sequence.len() - fresh..]).is_break() {
                break FinishReason::Interrupted;
            }
            if is_ended {
                break FinishReason::Stop;
            }
            let left = options.max_tokens - sequence.generated().len();
            // The last committed token needs a row, too.
            let context_left = self.target.context_len() - self.target.len();
            if left == 0 {
                break FinishReason::Length;
            }
            if context_left == 0 {
                break FinishReason::Context;
            }
            fresh = self.step(sequence, left.min(context_left), (tally, progress))?;
        };
        tally.decode_s = decoding.elapsed().as_secs_f64();
        tally.decode = self.target.spans() - before;
        tally.decode_cache = [cache_before, self.cache_stats()];
        Ok(finish_reason)
    }

    /// Fills the cache with the prompt, whose part that is cached already is kept; leaves the logits
    /// after its last token in `self.logits`.
    fn prefill(
        &mut self,
        sequence: &Sequence,
        tally: &mut Tally,
        hooks: Hooks<'_>,
    ) -> Result<ControlFlow<()>, Error> {
        let Hooks { progress, on_tokens } = hooks;
        let prompt = sequence.tokens();
        let same = self.cached.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = self.rows_to_keep(same.min(prompt.len() - 1));
        self.target.truncate(kept);
        self.cached.truncate(kept);
        tally.prefilled = prompt.len() - kept;
        progress.begin("prefill", tally.prefilled as u64);
        let chunks = prompt[kept..].chunks(self.prefill_chunk);
        let last = chunks.len() - 1;
        for (index, chunk) in chunks.enumerate() {
            if on_tokens(&[]).is_break() {
                progress.end();
                return Ok(ControlFlow::Break(()));
            }
            let context_len = self.target.len() + 1;
            self.make_feature_room((sequence, context_len), chunk.len(), progress);
            let which = if index == last { LogitRows::Last } else { LogitRows::None };
            let outcome = self.target.pass(chunk, which, &mut self.logits);
            outcome.inspect_err(|_| progress.end())?;
            self.routes.commit(chunk.len(), true)?;
            progress.advance(chunk.len() as u64);
        }
        progress.end();
        Ok(ControlFlow::Continue(()))
    }

    /// Takes back what follows the first end token among the last `fresh` tokens, and the end token.
    fn cut_at_end(&self, sequence: &mut Sequence, fresh: &mut usize) -> bool {
        let Some(tokenizer) = &self.tokenizer else { return false };
        let start = sequence.len() - *fresh;
        match sequence.tokens()[start..].iter().position(|token| tokenizer.is_end(*token)) {
            None => false,
            Some(kept) => {
                sequence.truncate(start + kept);
                *fresh = kept;
                true
            }
        }
    }

    fn check_prompt(&self, prompt: &[TokenId]) -> Result<(), Error> {
        let (vocab, context) = (self.target.vocab(), self.target.context_len());
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if let Some(token) = prompt.iter().find(|token| **token as usize >= vocab) {
            return Err(Error::TokenOutOfVocabulary { token: *token, vocab });
        }
        if prompt.len() > context {
            return Err(Error::PromptTooLong { prompt: prompt.len(), context });
        }
        Ok(())
    }

    /// Hands `on_row` the raw logits (`[vocab]`) after each token (`all`) or after the last, in order;
    /// forgets the present sequence.
    ///
    /// # Errors
    /// As [`Engine::generate`], and whatever `on_row` returns.
    pub fn logits(
        &mut self,
        tokens: &[TokenId],
        all: bool,
        on_row: &mut dyn FnMut(&[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.check_prompt(tokens)?;
        self.reset();
        let outcome = self.run_logits(tokens, all, on_row);
        self.reset();
        self.routes.end(outcome)
    }

    fn run_logits(
        &mut self,
        tokens: &[TokenId],
        all: bool,
        on_row: &mut dyn FnMut(&[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // No more rows of logits at once than the memory plan counts.
        let chunks = tokens.chunks(if all { self.logit_rows } else { self.prefill_chunk });
        let last = chunks.len() - 1;
        for (index, chunk) in chunks.enumerate() {
            let which = match all {
                true => LogitRows::All,
                false if index == last => LogitRows::Last,
                false => LogitRows::None,
            };
            self.target.pass(chunk, which, &mut self.logits)?;
            self.logits.chunks(self.target.vocab()).try_for_each(&mut *on_row)?;
            self.routes.commit(chunk.len(), true)?;
        }
        Ok(())
    }

    /// Forgets the present sequence; resident experts stay, and what a drafter remembers of earlier texts.
    pub fn reset(&mut self) {
        self.target.truncate(0);
        self.cached.clear();
    }

    /// Forgets the present sequence and every text that the drafter remembers, so that the next one is
    /// drafted as if it were the first: what is measured must not be looked up in an earlier measurement.
    pub fn forget_texts(&mut self) {
        self.reset();
        self.drafter.iter_mut().for_each(|drafter| drafter.forget());
    }

    /// Forgets every resident expert, as if just started.
    ///
    /// # Errors
    /// A reader that has stopped.
    pub fn drop_experts(&mut self) -> Result<(), Error> {
        Ok(self.target.drop_experts()?)
    }

    /// The target's tokenizer; `None` for a file without a vocabulary.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The ids of a text, which must have a chance to fit the context: a longer one is refused before
    /// memory is spent on it. `None` for a file without a vocabulary.
    ///
    /// # Errors
    /// A text too long, or one that the vocabulary cannot express.
    pub fn encode(&self, text: &str, add_special: AddSpecial) -> Result<Option<Vec<TokenId>>, Error> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(None) };
        let (context, token_bytes) = (self.context_len(), tokenizer.token_bytes_max());
        if text.len() > context.saturating_mul(token_bytes) {
            return Err(Error::TextTooLong { bytes: text.len(), context, token_bytes });
        }
        Ok(Some(tokenizer.encode(text, add_special)?))
    }

    /// What was planned at start.
    pub fn memory_plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Weight bytes one decoded token multiplies with.
    pub fn active_bytes_per_token(&self) -> u64 {
        self.target.blueprint().active_bytes_per_token()
    }

    /// Token ids of the target.
    pub fn vocab(&self) -> usize {
        self.target.vocab()
    }

    /// Positions of the KV cache.
    pub fn context_len(&self) -> usize {
        self.target.context_len()
    }

    fn cache_stats(&self) -> CacheStats {
        self.target.cache_stats().unwrap_or_default()
    }

    /// Uses of experts so far that a GPU had in its own memory: the expert cache did not hear of them.
    fn experts_on_gpu(&self) -> u64 {
        self.target.gpu_stats().map_or(0, |stats| stats.hits)
    }

    /// A dense model is a cache that never misses.
    fn residency(&self) -> Residency {
        let resident =
            Residency { slots: 0, resident: 0, experts_total: 0, hit_rate_recent: 1.0, is_filling: false };
        self.target.residency().unwrap_or(resident)
    }
}
