//! Runs settings of `tune` in turns: one engine at a time, the same text for all settings of a round.
//!
//! Owns the open engine, the prompts and the clock. Settings that differ in the draft length alone share
//! an engine; a new one is opened only when the last is gone, so the budget holds for both (DESIGN I1). It
//! must not know what is decided from the samples.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use drafthorse_draft::TokenId;
use drafthorse_runtime::api::{
    DraftSource, EngineOptions, FinishReason, GenerateOptions, Generation, Progress as _, Silent,
};
use drafthorse_runtime::engine::Engine;
use drafthorse_runtime::tokenizer::AddSpecial;
use drafthorse_runtime::units::format_bytes;
use drafthorse_runtime::{Error, host};
use drafthorse_scheduler::PlanLine;
use serde::Serialize;

use super::super::bench::TEXT;
use super::super::interrupt::Interrupt;
use super::super::progress::Screen;
use super::settings::{EngineKey, Setting, engines, round_order};

/// Texts that take turns from round to round.
const PROMPTS: usize = 3;
/// Tokens of a prompt at most.
const PROMPT_TOKENS: usize = 48;
/// Tokens of a sample: the fewest that are more than a beginning, and as many as make it steady.
const TOKENS: (usize, usize) = (32, 256);
/// Rounds that the length of samples is chosen for, and the most that are run.
const ROUNDS_AIM: usize = 4;
const ROUNDS_MAX: usize = 9;
/// Fewer cannot be compared.
const ROUNDS_MIN: usize = 2;

/// One run of one setting.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    pub tok_s: f64,
    pub tokens: usize,
    pub hit_rate: f64,
    pub accepted_per_pass: f64,
    pub major_faults: u64,
    /// Of the process since the engine was opened, loading included.
    pub peak_rss_bytes: u64,
    pub planned_bytes: u64,
    pub slots: usize,
    pub simulated_late_reads: u64,
}

/// What a stage measured of one setting.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// By round.
    pub samples: Vec<Option<Sample>>,
    /// Why it could not be run.
    pub refused: Option<String>,
}

/// What text a sample finds in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warm {
    /// Its own: for settings that share engines, so that each finds the same.
    SameText,
    /// Another: for settings with an engine each.
    OtherText,
}

/// An engine at a time, and what it is tried with.
pub struct Lab {
    options: EngineOptions,
    given: DraftSource,
    generate: GenerateOptions,
    interrupt: Interrupt,
    screen: Screen,
    open: Option<(EngineKey, Engine)>,
    /// Which text the open engine has seen last.
    last_text: Option<usize>,
    /// Whether n-grams are tried where nobody else guesses.
    looks_up: bool,
    prompts: Vec<Vec<TokenId>>,
    /// Tokens of a sample.
    pub tokens: usize,
    /// Samples that were drawn.
    pub samples: usize,
    began: Instant,
    limit: Duration,
    shown: Duration,
    /// The longest turn of a setting so far: whether there is time for another.
    longest_turn: Duration,
    /// What the process needed before any engine.
    bare_rss_bytes: Option<u64>,
    /// KV cache and scratch of an engine: what it takes from the allocator's heap.
    heap_bytes: u64,
    /// Peak of the process over everything that was run.
    pub peak_rss_bytes: u64,
    /// Whether the peak can be forgotten between engines; without that only one can be planned for.
    pub resets_peak: bool,
}

impl Lab {
    /// `options` with a budget that is stated; its drafter is the given one. `looks_up` says whether n-grams
    /// are tried as well.
    pub fn new(
        options: EngineOptions,
        generate: GenerateOptions,
        (interrupt, limit, looks_up): (Interrupt, Duration, bool),
    ) -> Lab {
        let mut screen = Screen::new();
        screen.begin("tuning", limit.as_millis() as u64);
        Lab {
            given: options.draft.clone(),
            options,
            generate: GenerateOptions { stop_at_end: false, ..generate },
            interrupt,
            screen,
            open: None,
            last_text: None,
            looks_up,
            prompts: Vec::new(),
            tokens: TOKENS.0,
            samples: 0,
            began: Instant::now(),
            limit,
            shown: Duration::ZERO,
            longest_turn: Duration::ZERO,
            bare_rss_bytes: None,
            heap_bytes: 0,
            peak_rss_bytes: host::peak_rss_bytes(),
            resets_peak: host::reset_peak_rss(),
        }
    }

    /// Opens the engine of `setting`, learns the texts, and chooses how long samples are so that a stage of
    /// `settings` gets its rounds within `share` of the time.
    pub fn prepare(&mut self, settings: &[Setting], share: f64) -> Result<(), Error> {
        let first = settings[0];
        self.engine(&first)?;
        self.prompts = self.find_prompts()?;
        let (room, least) = (self.room(), TOKENS.0);
        if room < least {
            return Err(Error::Usage(format!(
                "--context leaves {room} tokens behind a prompt, and a run that says something has {least}"
            )));
        }
        // The first run finds the cache empty, the second says how fast it goes on.
        self.draw(&first, 0, TOKENS.0 / 2)?;
        let sample = self.draw(&first, 0, TOKENS.0 / 2)?;
        let load_s = self.open.as_ref().map_or(0.0, |(_, engine)| engine.load_s());
        let opened = engines(settings);
        let round_s = self.limit.as_secs_f64() * share / ROUNDS_AIM as f64 - load_s * opened as f64;
        let tokens = round_s.max(0.0) * sample.tok_s / (settings.len() + opened) as f64;
        self.tokens = (tokens as usize).clamp(TOKENS.0, TOKENS.1).min(self.room());
        Ok(())
    }

    /// Tokens that fit behind the longest prompt.
    fn room(&self) -> usize {
        let longest = self.prompts.iter().map(Vec::len).max().unwrap_or(1);
        let context = self.open.as_ref().map_or(0, |(_, engine)| engine.context_len());
        context.saturating_sub(longest).max(1)
    }

    fn find_prompts(&self) -> Result<Vec<Vec<TokenId>>, Error> {
        let Some((_, engine)) = &self.open else { return Ok(Vec::new()) };
        let len = PROMPT_TOKENS.min(engine.context_len() / 2).max(1);
        let texts = TEXT.split("\n\n").filter(|text| text.len() > PROMPT_TOKENS);
        let ids = |text: &str| match engine.tokenizer() {
            Some(tokenizer) => tokenizer.encode(text, AddSpecial::Yes),
            None => Ok((0..engine.vocab() as TokenId).cycle().skip(text.len()).take(len).collect()),
        };
        let prompts = texts
            .take(PROMPTS)
            .map(|text| ids(text).map(|ids| ids.into_iter().take(len).collect::<Vec<TokenId>>()));
        Ok(prompts.collect::<Result<_, _>>()?)
    }

    /// How many texts there are, and the tokens of the longest.
    pub fn texts(&self) -> (usize, usize) {
        (self.prompts.len(), self.prompts.iter().map(Vec::len).max().unwrap_or(0))
    }

    /// Rounds of `settings` until the share `until` of the time is over, at least two if the whole time
    /// allows them. A round that the time ends in is not complete.
    pub fn rounds(
        &mut self,
        name: &str,
        settings: &[Setting],
        (warm, until): (Warm, f64),
    ) -> Result<Vec<Row>, Error> {
        let mut rows = vec![Row::default(); settings.len()];
        let mut longest = Duration::ZERO;
        for round in 0..ROUNDS_MAX {
            let end = if round < ROUNDS_MIN { self.limit } else { self.limit.mul_f64(until) };
            if round > 0 && self.began.elapsed() + longest > end {
                break;
            }
            let began = Instant::now();
            rows.iter_mut().for_each(|row| row.samples.push(None));
            for index in round_order(settings, round) {
                self.turn(&settings[index], &mut rows[index], (warm, round))?;
            }
            longest = longest.max(began.elapsed());
            self.report(name, round, settings.len());
        }
        Ok(rows)
    }

    /// One setting's turn in a round.
    fn turn(&mut self, setting: &Setting, row: &mut Row, (warm, round): (Warm, usize)) -> Result<(), Error> {
        // The first round of the first stage is run whatever it takes: there is no result without it.
        let is_over = self.samples > 0 && self.began.elapsed() + self.longest_turn > self.limit;
        if row.refused.is_some() || is_over {
            return Ok(());
        }
        let began = Instant::now();
        let is_new = match self.engine(setting) {
            Ok(is_new) => is_new,
            Err(Error::Budget(refusal)) => {
                row.refused = Some(super::super::one_line(&refusal.to_string()));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if let Err(refusal) = self.check_peak() {
            row.refused = Some(refusal);
            return Ok(());
        }
        match warm {
            Warm::SameText if is_new || self.is_other_text(round) => {
                self.draw(setting, round, self.tokens)?;
            }
            Warm::OtherText => {
                self.draw(setting, round + 1, self.tokens)?;
            }
            Warm::SameText => {}
        }
        let sample = self.draw(setting, round, self.tokens)?;
        self.samples += 1;
        self.longest_turn = self.longest_turn.max(began.elapsed());
        if let Some(last) = row.samples.last_mut() {
            *last = Some(sample);
        }
        Ok(())
    }

    /// Whether the open engine has last seen another text than that of `round`.
    fn is_other_text(&self, round: usize) -> bool {
        self.last_text != Some(self.text(round))
    }

    fn text(&self, round: usize) -> usize {
        round % self.prompts.len().max(1)
    }

    /// The slots that the budget has room for beside what `setting` loads; 0 for a model without experts.
    ///
    /// # Errors
    /// As [`Engine::plan`].
    pub fn slots_max(&mut self, setting: &Setting) -> Result<usize, Error> {
        self.close();
        let plan = Engine::plan(&EngineOptions { slots: None, ..self.options_of(&setting.engine()) })?;
        // Planning has read headers and tokenizer, as every open does before it plans.
        self.bare_rss_bytes.get_or_insert_with(host::peak_rss_bytes);
        let is_heap = |line: &&PlanLine| ["KV cache", "scratch"].contains(&line.name);
        self.heap_bytes = plan.lines.iter().filter(is_heap).map(|line| line.bytes).sum();
        Ok(plan.slots)
    }

    /// Lets go of the engine, and of the memory that the plan of the next would count.
    fn close(&mut self) {
        self.open = None;
        self.last_text = None;
        self.resets_peak &= host::reset_peak_rss();
    }

    /// Opens what `setting` needs unless it is open; whether it was not.
    fn engine(&mut self, setting: &Setting) -> Result<bool, Error> {
        let key = setting.engine();
        if self.open.as_ref().is_some_and(|(open, _)| *open == key) {
            return Ok(false);
        }
        self.check_interrupt()?;
        self.close();
        let options = self.options_of(&key);
        // What there is to say about the model is said once.
        let engine = match self.prompts.is_empty() {
            true => Engine::open(&options, &mut Notices(&mut self.screen)),
            false => Engine::open(&options, &mut Silent),
        };
        self.open = Some((key, engine?));
        Ok(true)
    }

    fn options_of(&self, key: &EngineKey) -> EngineOptions {
        let draft = match key.is_given {
            true => self.given.clone(),
            false if self.given == DraftSource::None && !self.looks_up => DraftSource::None,
            false => DraftSource::Ngram,
        };
        EngineOptions {
            draft,
            slots: key.slots,
            threads: key.threads.unwrap_or(0),
            memory_bytes: self.options.memory_bytes.map(|bytes| bytes + self.kept_bytes()),
            ..self.options.clone()
        }
    }

    /// What the allocator has kept of engines that are gone and the next will take first. The plan counts it
    /// twice, as what the process holds and as what the engine needs, so it is given back to the budget once.
    fn kept_bytes(&self) -> u64 {
        let kept = self.bare_rss_bytes.map_or(0, |bare| host::peak_rss_bytes().saturating_sub(bare));
        kept.min(self.heap_bytes)
    }

    /// Refuses an engine that takes more than the budget after all.
    fn check_peak(&mut self) -> Result<(), String> {
        let (peak, budget) = (host::peak_rss_bytes(), self.options.memory_bytes.unwrap_or(u64::MAX));
        self.peak_rss_bytes = self.peak_rss_bytes.max(peak);
        if peak <= budget {
            return Ok(());
        }
        self.close();
        let [peak, budget] = [peak, budget].map(format_bytes);
        Err(format!("it took {peak} beside what other engines had left, the budget is {budget}"))
    }

    /// Runs `setting` on the text of `round`.
    fn draw(&mut self, setting: &Setting, round: usize, max_tokens: usize) -> Result<Sample, Error> {
        let text = self.text(round);
        let faults = host::major_faults();
        let generation = self.generate(setting, text, max_tokens)?;
        self.last_text = Some(text);
        self.peak_rss_bytes = self.peak_rss_bytes.max(generation.memory.peak_rss_bytes);
        self.advance();
        Ok(Sample {
            tok_s: generation.timings.decode_tps,
            tokens: generation.tokens.len(),
            hit_rate: generation.offload.hit_rate,
            accepted_per_pass: generation.speculation.accepted_per_pass,
            major_faults: host::major_faults() - faults,
            peak_rss_bytes: generation.memory.peak_rss_bytes,
            planned_bytes: generation.memory.planned_bytes,
            slots: generation.offload.slots as usize,
            simulated_late_reads: generation.offload.simulated_late_reads,
        })
    }

    fn generate(&mut self, setting: &Setting, text: usize, max_tokens: usize) -> Result<Generation, Error> {
        let Some((_, engine)) = &mut self.open else {
            return Err(Error::Usage("tune: no engine is open".to_owned()));
        };
        // What is opened without a drafter has no other length than 0.
        engine.set_draft_len(setting.draft_len)?;
        let options = GenerateOptions { max_tokens, ..self.generate };
        let interrupt = &self.interrupt;
        let mut on_tokens = |_: &[TokenId]| match interrupt.is_asked() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        // The same texts come again: they must not be looked up in what was generated before.
        engine.forget_texts();
        let generation = engine.generate(&self.prompts[text], &options, &mut Silent, &mut on_tokens)?;
        match generation.finish_reason {
            FinishReason::Interrupted => Err(interrupted()),
            _ => Ok(generation),
        }
    }

    fn check_interrupt(&self) -> Result<(), Error> {
        if self.interrupt.is_asked() { Err(interrupted()) } else { Ok(()) }
    }

    fn advance(&mut self) {
        let elapsed = self.began.elapsed().min(self.limit);
        self.screen.advance((elapsed - self.shown).as_millis() as u64);
        self.shown = elapsed;
    }

    /// A line on where things stand.
    fn report(&mut self, name: &str, round: usize, settings: usize) {
        let left = self.limit.saturating_sub(self.began.elapsed()).as_secs_f64();
        let round = round + 1;
        self.screen.notice(&format!(
            "tune: {name}, round {round} over {settings} settings done, at most {left:.0} s left"
        ));
    }

    /// Share of the time that is left.
    pub fn left(&self) -> f64 {
        1.0 - (self.began.elapsed().as_secs_f64() / self.limit.as_secs_f64()).min(1.0)
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Closes everything.
    pub fn finish(&mut self) {
        self.open = None;
        self.screen.end();
    }
}

fn interrupted() -> Error {
    Error::Interrupted("nothing was written".to_owned())
}

/// Shows notices, but no bars: there is one already.
struct Notices<'a>(&'a mut Screen);

impl drafthorse_runtime::api::Progress for Notices<'_> {
    fn begin(&mut self, _: &str, _: u64) {}
    fn advance(&mut self, _: u64) {}
    fn end(&mut self) {}
    fn notice(&mut self, line: &str) {
        self.0.notice(line);
    }
}
