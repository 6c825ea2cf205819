//! What is to be run: the model's facts, prompts as ids, and the blocks that a sweep makes of them.
//!
//! Everything that can be refused is refused here, before anything runs. It must not know how runs are made.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use drafthorse_runtime::Error;
use drafthorse_runtime::api::DraftSource;
use drafthorse_runtime::config::{Config, Layer};
use drafthorse_runtime::gguf::Gguf;
use drafthorse_runtime::models::{Blueprint, Overrides};
use drafthorse_runtime::tokenizer::{AddSpecial, Tokenizer};

use super::SpeedupError;
use super::cell::{Bank, CacheSize, DraftLen, Start, Variant};
use super::prompts;
use super::record::sha256;
use super::sweep::Sweep;
use super::turns::{Turn, sliced_turns, turns};

/// Positions beyond prompt and text, so that no draft is cut short by the context.
const CONTEXT_SPARE: usize = 32;

/// A prompt in the model's vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptIds {
    /// Set and place in it.
    pub id: String,
    /// Its kind.
    pub task: String,
    /// Cut to `prompt_tokens_max`.
    pub ids: Vec<u32>,
}

/// Runs that are compared with one another.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// As written.
    pub cache: CacheSize,
    /// What that comes to; None for a dense model.
    pub slots: Option<u64>,
    pub start: Start,
    pub temperature: f64,
    /// Which prompt of the plan.
    pub prompt: usize,
}

/// A sweep made ready.
pub struct Plan {
    pub sweep: Sweep,
    pub model: PathBuf,
    /// All files of target and draft models.
    pub files: Vec<PathBuf>,
    pub bank: Bank,
    pub prompts: Vec<PromptIds>,
    pub variants: Vec<Variant>,
    /// As often as a setting is run at most; those of fewer repeats are their beginning.
    pub turns: Vec<Turn>,
    pub blocks: Vec<Block>,
    pub context: usize,
}

impl Plan {
    /// Reads the model's header and the prompts.
    ///
    /// # Errors
    /// A model or prompts that cannot be read; a cache size for a model that caches nothing.
    pub fn new(sweep: Sweep) -> Result<Plan, SpeedupError> {
        let model = model_path(&sweep.model)?;
        let gguf = Gguf::open(&model)?;
        let bank = bank(&gguf, &model)?;
        if bank.experts_total == 0 && sweep.cache != [CacheSize::Percent(100.0)] {
            let problem = format!("cache: {} has no routed experts to keep", model.display());
            return Err(SpeedupError::Usage(problem));
        }
        let prompts = encoded(&sweep, &gguf, &model)?;
        let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
        let variants = Variant::all(&sweep.drafters, &sweep.draft_lens, &sweep.verify);
        let mut files = gguf.files.clone();
        for name in sweep.drafters.iter().flat_map(|drafter| drafter.names()) {
            let path = if name == "demo" { demo_draft()? } else { Some(PathBuf::from(name)) };
            if let Some(path) = path.filter(|path| path.is_file()) {
                files.extend(Gguf::open(&path)?.files);
            }
        }
        Ok(Plan {
            turns: all_turns(&sweep, &variants, sweep.repeats_max()),
            blocks: blocks(&sweep, &bank, prompts.len()),
            context: sweep.context.unwrap_or(longest + sweep.tokens + CONTEXT_SPARE),
            model,
            files,
            bank,
            prompts,
            variants,
            sweep,
        })
    }

    /// Blocks that differ in their prompts alone.
    pub fn cells(&self) -> Vec<Range<usize>> {
        let is_same = |a: &Block, b: &Block| {
            (&a.cache, a.slots, a.start, a.temperature) == (&b.cache, b.slots, b.start, b.temperature)
        };
        ranges(self.blocks.chunk_by(is_same))
    }

    /// The run at that turn of a block: its key, and the variant, None being the run without a draft.
    pub fn key(&self, block: &Block, turn: usize) -> String {
        self.key_of(block, &turn.to_string(), self.turns[turn].variant)
    }

    fn key_of(&self, block: &Block, which: &str, variant: Option<usize>) -> String {
        let who = variant.map_or_else(|| "off".to_owned(), |at| self.variants[at].label());
        let Block { cache, start, temperature, prompt, .. } = block;
        let prompt = &self.prompts[*prompt].id;
        format!("{}|{}|t{temperature}|{prompt}|{which}|{who}", cache.label(), start.label())
    }

    /// Those of these turns of a block that are made together: those that share a run without a draft where they go on in
    /// slices, else each by itself.
    pub fn rounds(&self, turns: Range<usize>) -> Vec<Range<usize>> {
        let is_sliced = self.sweep.slice_tokens > 0;
        let rounds = ranges(self.turns[turns.clone()].chunk_by(|a, b| is_sliced && a.off == b.off));
        rounds.into_iter().map(|round| round.start + turns.start..round.end + turns.start).collect()
    }

    /// Key of the untimed run that fixes the ids.
    pub fn reference_key(&self, prompt: usize, temperature: f64) -> String {
        format!("reference|t{temperature}|{}", self.prompts[prompt].id)
    }

    /// Whether runs begin with statistics of an earlier one.
    pub fn needs_stats(&self) -> bool {
        self.bank.experts_total > 0 && self.sweep.starts.contains(&Start::Warm)
    }

    /// Whether the runs of a block begin with statistics.
    pub fn is_warm(&self, block: &Block) -> bool {
        block.start == Start::Warm && self.needs_stats()
    }

    /// The variants that have an untimed run in that block, with whose lessons timed ones begin; `None` is the run
    /// without a draft. Those of length auto have one each, and a drafter without any its first.
    pub fn learners(&self, block: &Block) -> Vec<Option<usize>> {
        if !self.is_warm(block) {
            return Vec::new();
        }
        let learns = |at: &usize| {
            let same = |other: &&Variant| other.drafter == self.variants[*at].drafter;
            let has_auto = self.variants.iter().filter(same).any(|other| other.len == DraftLen::Auto);
            let is_first = !self.variants[..*at].iter().any(|other| same(&other));
            if has_auto { self.variants[*at].len == DraftLen::Auto } else { is_first }
        };
        let variants = (0..self.variants.len()).filter(learns);
        std::iter::once(None).chain(variants.map(Some)).collect()
    }

    /// Whose lessons a variant's runs in that block begin with, if any's: its own, or those of the same drafter, rather
    /// with the same verification. A fixed length learns no length from it, but what reading ahead gains.
    pub fn learner_of(&self, block: &Block, variant: Option<usize>) -> Option<Option<usize>> {
        let learners = self.learners(block);
        let Some(own) = variant.filter(|_| !learners.contains(&variant)) else {
            return learners.contains(&variant).then_some(variant);
        };
        let own = &self.variants[own];
        let of_drafter =
            learners.into_iter().flatten().filter(|at| self.variants[*at].drafter == own.drafter);
        of_drafter.min_by_key(|at| self.variants[*at].verify != own.verify).map(Some)
    }

    /// Key of such a run.
    pub fn learning_key(&self, block: &Block, learner: Option<usize>) -> String {
        self.key_of(block, "learning", learner)
    }

    /// How many turns of a block there are of so many repeats.
    pub fn turns_of(&self, repeats: usize) -> usize {
        all_turns(&self.sweep, &self.variants, repeats).len()
    }

    /// All runs, but for those that short ones are repeated.
    pub fn runs(&self) -> usize {
        let learning: usize = self.blocks.iter().map(|block| self.learners(block).len()).sum();
        let timed = self.blocks.len() * self.turns_of(self.sweep.repeats);
        learning + timed + self.prompts.len() * self.sweep.temperatures.len()
    }

    /// What tells this sweep from another: its settings, prompts, model and program.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn fingerprint(&self, program: &Path) -> Result<String, SpeedupError> {
        let read = |path: &Path| fs::read(path).map_err(|source| SpeedupError::io("read", path, source));
        let mut facts = vec![format!("{:?} {:?} {:?}", self.sweep, self.prompts, self.bank)];
        facts.push(sha256(&read(program)?));
        for path in &self.files {
            let data = fs::metadata(path).map_err(|source| SpeedupError::io("look at", path, source))?;
            facts.push(format!("{} {}", path.display(), data.len()));
        }
        Ok(sha256(facts.join("\n").as_bytes()))
    }
}

fn model_path(model: &str) -> Result<PathBuf, SpeedupError> {
    let mut flags = Layer::command_line();
    flags.flag("model", ("model", "path"), Some(model));
    let path = Config::load(None, &flags).and_then(|config| config.model_path()).map_err(Error::from)?;
    Ok(path)
}

/// Where each of these pieces of one list lies in it.
fn ranges<'a, T: 'a>(pieces: impl Iterator<Item = &'a [T]>) -> Vec<Range<usize>> {
    let ends = pieces.scan(0, |end, piece| {
        let start = *end;
        *end += piece.len();
        Some(start..*end)
    });
    ends.collect()
}

fn all_turns(sweep: &Sweep, variants: &[Variant], repeats: usize) -> Vec<Turn> {
    if sweep.slice_tokens == 0 {
        return turns(variants.len(), repeats);
    }
    let ways = ranges(variants.chunk_by(|a, b| a.drafter == b.drafter));
    let nothing = [Range::default()];
    sliced_turns(if ways.is_empty() { &nothing } else { &ways }, repeats)
}

/// The draft of the pair that comes with the program.
fn demo_draft() -> Result<Option<PathBuf>, SpeedupError> {
    let mut flags = Layer::command_line();
    flags.flag("drafters", ("draft", "source"), Some("demo"));
    let options =
        Config::load(None, &flags).and_then(|config| config.engine_options()).map_err(Error::from)?;
    Ok(match options.draft {
        DraftSource::Model(path) => Some(path),
        _ => None,
    })
}

fn bank(gguf: &Gguf, model: &Path) -> Result<Bank, SpeedupError> {
    let blueprint = Blueprint::new(gguf, &Overrides::default())
        .map_err(|error| SpeedupError::Model(format!("{}: {error}", model.display())))?;
    let used = blueprint.spec.moe.map_or(0, |moe| moe.used);
    let bank = blueprint.experts.as_ref().map(|layers| Bank {
        experts_total: layers.index.experts_total() as u64,
        slot_bytes: layers.index.slot_bytes() as u64,
        slots_min: used as u64,
    });
    Ok(bank.unwrap_or_default())
}

fn encoded(sweep: &Sweep, gguf: &Gguf, model: &Path) -> Result<Vec<PromptIds>, SpeedupError> {
    let tokenizer = Tokenizer::from_metadata(&gguf.metadata, model).map_err(Error::from)?;
    let chosen = prompts::choose(&sweep.prompts, &sweep.tasks, (sweep.samples, sweep.seed))?;
    let encode = |prompt: prompts::Prompt| {
        let mut ids = tokenizer.encode(&prompt.text, AddSpecial::Yes).map_err(Error::from)?;
        ids.truncate(sweep.prompt_tokens_max);
        Ok(PromptIds { id: prompt.id, task: prompt.task, ids })
    };
    chosen.into_iter().map(encode).collect()
}

/// The cheapest to compare stand together: all drafters of one cache, start, temperature and prompt.
fn blocks(sweep: &Sweep, bank: &Bank, prompts: usize) -> Vec<Block> {
    let mut blocks = Vec::new();
    for cache in &sweep.cache {
        let slots = Some(cache.slots(bank)).filter(|slots| *slots > 0);
        for start in &sweep.starts {
            for temperature in &sweep.temperatures {
                blocks.extend((0..prompts).map(|prompt| Block {
                    cache: cache.clone(),
                    slots,
                    start: *start,
                    temperature: *temperature,
                    prompt,
                }));
            }
        }
    }
    blocks
}
