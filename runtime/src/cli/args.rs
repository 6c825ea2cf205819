//! What the user typed: every command, flag and its one-line help.
//!
//! Owns the `clap` tables and the map from flags to settings (`layer()`), in which a flag that was
//! not given sets nothing. Ranges are not checked here: the settings do, for files and flags alike.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use drafthorse_runtime::Error;
use drafthorse_runtime::config::{Config, Layer, Vram};
use drafthorse_runtime::units::ByteSize;
use toml::Value;

/// Runs language models larger than memory: a small draft guesses, experts stream from the disk.
#[derive(Debug, Parser)]
#[command(name = "drafthorse", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Continue a prompt, or chat
    Run(RunArgs),
    /// Print raw next-token logits
    Logits(LogitsArgs),
    /// Measure prefill and decode throughput, with a cold and a warm expert cache
    Bench(BenchArgs),
    /// Measure which draft length, cache size and threads are fastest here, and write them as settings
    Tune(TuneArgs),
    /// Show how a text becomes tokens
    Tokenize(TokenizeArgs),
    /// Show what is in a model file and what fits the memory
    Inspect(InspectArgs),
    /// Rewrite a model's experts aligned and with checksums, or check a packed file
    Pack(PackArgs),
}

/// What every command that opens an engine takes.
#[derive(Debug, Args)]
pub struct EngineArgs {
    /// Settings in TOML (see configs/default.toml); flags win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Hard limit of the whole process's memory, e.g. 16GiB
    #[arg(long, value_name = "SIZE", help_heading = "Engine")]
    pub memory: Option<String>,
    /// Compute the target on a GPU, with at most so much of its memory, or auto: most of what is free. Where that is the
    /// processor's, experts are read in place, and --memory bounds both
    #[arg(long, value_name = "SIZE", help_heading = "Engine")]
    pub vram: Option<String>,
    /// Which kind of GPU: cuda; emulated or emulated-unified (for tests: the kernels run on the processor)
    #[arg(long, value_name = "NAME", help_heading = "Engine")]
    pub gpu: Option<String>,
    /// Positions of the KV cache, or auto
    #[arg(long, value_name = "N", value_parser = auto_or_number, help_heading = "Engine")]
    pub context: Option<Value>,
    /// What cached keys and values are rounded to: f16, or q8_0 for about half the memory
    #[arg(long, value_name = "TYPE", help_heading = "Engine")]
    pub kv_type: Option<String>,
    /// Compute threads, or auto
    #[arg(long, value_name = "N", value_parser = auto_or_number, help_heading = "Engine")]
    pub threads: Option<Value>,
    /// Which expert makes room for another: gating, lfu or lru
    #[arg(long, value_name = "NAME", help_heading = "Engine")]
    pub policy: Option<String>,
    /// Experts kept in memory, or auto
    #[arg(long, value_name = "N", value_parser = auto_or_number, help_heading = "Engine")]
    pub slots: Option<Value>,
    /// How experts are read: auto, io_uring or pread
    #[arg(long, value_name = "NAME", help_heading = "Engine")]
    pub reader: Option<String>,
    /// Threads of the pread reader
    #[arg(long, value_name = "N", help_heading = "Engine")]
    pub io_threads: Option<i64>,
    /// Requests io_uring keeps at the disk at once
    #[arg(long, value_name = "N", help_heading = "Engine")]
    pub queue_depth: Option<i64>,
    /// Hold reads back as a disk of this rate and latency would, e.g. 3.5GiB/s,80us; figures are labelled
    #[arg(long, value_name = "RATE,LATENCY", help_heading = "Engine")]
    pub simulate_disk: Option<String>,
    /// Read expected experts while the disk is idle: auto, on or off
    #[arg(long, value_name = "WHEN", help_heading = "Engine")]
    pub prefetch: Option<String>,
    /// Remember which experts were wanted, what drafts cost and what reading ahead gained, for a warm
    /// start; none does not
    #[arg(long, value_name = "FILE|none", help_heading = "Engine")]
    pub stats_file: Option<String>,
    /// Write which experts every token chose to this file
    #[arg(long, value_name = "FILE", help_heading = "Engine")]
    pub record_trace: Option<String>,
    /// Print the memory plan and a log on stderr
    #[arg(short, long)]
    pub verbose: bool,
    /// Say why the draft length is what it is: time and yield of passes, predicted and measured
    #[arg(long, help_heading = "Drafting")]
    pub explain: bool,
}

/// Who guesses, and how far.
#[derive(Debug, Args)]
pub struct DraftArgs {
    /// Who guesses the next tokens: a small GGUF, the GGUF of an EAGLE-3 or Medusa head, mtp (the head in
    /// MODEL's own file), ngram, suffix, none, or a list asked in order (suffix,SMALL.gguf); script:FILE for
    /// measurements (see configs/default.toml)
    #[arg(long, value_name = "D", help_heading = "Drafting")]
    pub draft: Option<String>,
    /// Tokens drafted a step: auto (measured) or a number
    #[arg(long, value_name = "auto|N", value_parser = auto_or_number, help_heading = "Drafting")]
    pub draft_len: Option<Value>,
    /// Drop drafted rows of a pass whose experts turn out to cost more to read than they are worth: auto or
    /// off (the default, until it measures better)
    #[arg(long, value_name = "auto|off", help_heading = "Drafting")]
    pub elastic: Option<String>,
    /// Compute threads of the draft model, or auto
    #[arg(long, value_name = "N", value_parser = auto_or_number, help_heading = "Drafting")]
    pub draft_threads: Option<Value>,
}

/// How tokens are drawn.
#[derive(Debug, Args)]
pub struct SamplingArgs {
    /// Temperature; 0 takes the likeliest token
    #[arg(long, visible_alias = "temperature", value_name = "T", help_heading = "Sampling")]
    pub temp: Option<f64>,
    /// Keep the K likeliest tokens (0: all)
    #[arg(long, value_name = "K", help_heading = "Sampling")]
    pub top_k: Option<i64>,
    /// Keep the fewest tokens that reach this probability together (1: all)
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    pub top_p: Option<f64>,
    /// Keep tokens with this share of the likeliest one's probability (0: all)
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    pub min_p: Option<f64>,
    /// Make tokens the text has just used less likely: divides their logits (1: off)
    #[arg(long, value_name = "R", help_heading = "Sampling")]
    pub repeat_penalty: Option<f64>,
    /// The same, taken from their logits (0: off)
    #[arg(long, value_name = "A", allow_negative_numbers = true, help_heading = "Sampling")]
    pub presence_penalty: Option<f64>,
    /// The same, taken once for each time they were used (0: off)
    #[arg(long, value_name = "A", allow_negative_numbers = true, help_heading = "Sampling")]
    pub frequency_penalty: Option<f64>,
    /// How many of the last tokens the penalties look at
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub repeat_last_n: Option<i64>,
    /// The same seed gives the same text
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub seed: Option<i64>,
    /// What makes a drafted token stand: coupled (the draft never changes the text), or block (more of
    /// it stands; same law, but the text depends on the draft)
    #[arg(long, value_name = "RULE", help_heading = "Sampling")]
    pub verify: Option<String>,
}

/// `run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The GGUF to run; without one, the demo pair
    pub model: Option<String>,
    /// The text to continue; - reads it from stdin. Without one: a chat in a terminal, else stdin
    #[arg(short, long, allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// The prompt as token ids
    #[arg(long, value_name = "1,2,3", value_delimiter = ',', conflicts_with = "prompt")]
    pub tokens: Option<Vec<u32>>,
    /// Tokens to generate at most
    #[arg(short = 'n', long, value_name = "N")]
    pub max_tokens: Option<i64>,
    /// Go on past the model's end token
    #[arg(long)]
    pub ignore_eos: bool,
    /// Print one JSON object on stdout instead of the text
    #[arg(long)]
    pub json: bool,
    /// For measurements: wait for a line on stdin before every N tokens (slices.rs)
    #[arg(long, value_name = "N", hide = true, requires = "json", requires = "tokens")]
    pub slice: Option<NonZeroUsize>,
    /// No statistics after the text
    #[arg(long)]
    pub no_stats: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub draft: DraftArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `logits`
#[derive(Debug, Args)]
pub struct LogitsArgs {
    /// The GGUF
    pub model: String,
    /// The token ids to run
    #[arg(long, value_name = "1,2,3", value_delimiter = ',', required = true)]
    pub tokens: Vec<u32>,
    /// Every position, not the last one alone
    #[arg(long)]
    pub all: bool,
    /// Print one JSON object: {vocab, positions}
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The GGUF to measure; without one, the demo pair
    pub model: Option<String>,
    /// Tokens of the prompt
    #[arg(short, long, value_name = "N")]
    pub prompt_tokens: Option<i64>,
    /// Tokens to generate
    #[arg(short = 'n', long, value_name = "N")]
    pub generate_tokens: Option<i64>,
    /// Measurements of each kind
    #[arg(long, value_name = "R")]
    pub repeat: Option<i64>,
    /// Decode the token ids of this file instead, one at a time, without sampling or drafting
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt_tokens", "generate_tokens", "repeat", "draft"])]
    pub ids: Option<PathBuf>,
    /// Passes over the ids: the first with a cold expert cache, the others warm
    #[arg(long, value_name = "P", default_value_t = 2, value_parser = passes, requires = "ids")]
    pub passes: usize,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub draft: DraftArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `tune`
#[derive(Debug, Args)]
pub struct TuneArgs {
    /// The GGUF to tune for; without one, the demo pair
    pub model: Option<String>,
    /// The file to write, for --config
    #[arg(short, long, value_name = "FILE.toml")]
    pub output: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    pub force: bool,
    /// Minutes that measuring may take at most
    #[arg(long, value_name = "M")]
    pub minutes: Option<f64>,
    /// Print what was measured as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub draft: DraftArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// `tokenize`
#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// The GGUF; its vocabulary is enough
    pub model: String,
    /// The text; - reads it from stdin
    #[arg(short, long, allow_hyphen_values = true)]
    pub prompt: String,
    /// Without the tokens that the model puts around a text
    #[arg(long)]
    pub no_special: bool,
    /// Print one JSON object: {ids, pieces}
    #[arg(long)]
    pub json: bool,
}

/// `inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The GGUF
    pub model: String,
    /// Settings in TOML; flags win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The memory to plan for, e.g. 16GiB
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Positions of the KV cache to plan for, or auto
    #[arg(long, value_name = "N", value_parser = auto_or_number)]
    pub context: Option<Value>,
    /// What cached keys and values are rounded to in the plan: f16 or q8_0
    #[arg(long, value_name = "TYPE")]
    pub kv_type: Option<String>,
    /// Experts to plan for, or auto
    #[arg(long, value_name = "N", value_parser = auto_or_number)]
    pub slots: Option<Value>,
    /// The draft to plan for: a GGUF (small model or head), mtp, ngram, suffix, none, or a list
    #[arg(long, value_name = "D")]
    pub draft: Option<String>,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// `pack`
#[derive(Debug, Args)]
pub struct PackArgs {
    /// The GGUF to pack, or with --check the packed one
    pub model: PathBuf,
    /// The packed file; an interrupted pack goes on when it is called again
    #[arg(short, long, value_name = "OUT", required_unless_present = "check")]
    pub output: Option<PathBuf>,
    /// Alignment of every part: 4KiB, or 16KiB for Apple's pages
    #[arg(long, value_name = "SIZE", default_value = "4KiB")]
    pub align: ByteSize,
    /// Compare all checksums of a packed file instead; exit code 3 when it is damaged
    #[arg(long, conflicts_with_all = ["output", "align"])]
    pub check: bool,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// `auto` or a whole number, as a setting takes them.
fn auto_or_number(text: &str) -> Result<Value, String> {
    match text {
        "auto" => Ok(Value::from("auto")),
        _ => text.parse::<i64>().map(Value::from).map_err(|_| "expected auto or a whole number".to_owned()),
    }
}

/// A number of passes.
fn passes(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=1000).contains(number));
    number.ok_or_else(|| "expected a number from 1 to 1000".to_owned())
}

/// A switch sets something only when it is given.
fn given(switch: bool) -> Option<bool> {
    switch.then_some(true)
}

impl EngineArgs {
    fn add_to(&self, layer: &mut Layer) {
        layer.flag("--memory", ("memory", "budget"), self.memory.clone());
        layer.flag("--vram", ("gpu", "vram"), self.vram.clone());
        layer.flag("--gpu", ("gpu", "device"), self.gpu.clone());
        layer.flag("--context", ("model", "context"), self.context.clone());
        layer.flag("--kv-type", ("model", "kv_type"), self.kv_type.clone());
        layer.flag("--threads", ("model", "threads"), self.threads.clone());
        layer.flag("--policy", ("offload", "policy"), self.policy.clone());
        layer.flag("--slots", ("offload", "slots"), self.slots.clone());
        layer.flag("--reader", ("offload", "reader"), self.reader.clone());
        layer.flag("--io-threads", ("offload", "io_threads"), self.io_threads);
        layer.flag("--queue-depth", ("offload", "queue_depth"), self.queue_depth);
        layer.flag("--simulate-disk", ("offload", "simulate_disk"), self.simulate_disk.clone());
        layer.flag("--prefetch", ("offload", "prefetch"), self.prefetch.clone());
        layer.flag("--stats-file", ("offload", "stats_file"), self.stats_file.clone());
        layer.flag("--record-trace", ("offload", "record_trace"), self.record_trace.clone());
        layer.flag("--verbose", ("run", "verbose"), given(self.verbose));
        layer.flag("--explain", ("run", "explain"), given(self.explain));
    }
}

impl EngineArgs {
    /// The settings with these flags on top.
    fn load(&self, layer: &Layer) -> Result<Config, Error> {
        let config = Config::load(self.config.as_deref(), layer)?;
        if self.gpu.is_some() && config.gpu.vram == Vram::None {
            return super::usage("--gpu: nothing is computed on a GPU without --vram (a size, or auto)");
        }
        Ok(config)
    }
}

impl DraftArgs {
    fn add_to(&self, layer: &mut Layer) {
        layer.flag("--draft", ("draft", "source"), self.draft.clone());
        layer.flag("--draft-len", ("scheduler", "draft_len"), self.draft_len.clone());
        layer.flag("--elastic", ("scheduler", "elastic"), self.elastic.clone());
        layer.flag("--draft-threads", ("draft", "threads"), self.draft_threads.clone());
    }
}

impl SamplingArgs {
    fn add_to(&self, layer: &mut Layer) {
        layer.flag("--temp", ("sampling", "temperature"), self.temp);
        layer.flag("--top-k", ("sampling", "top_k"), self.top_k);
        layer.flag("--top-p", ("sampling", "top_p"), self.top_p);
        layer.flag("--min-p", ("sampling", "min_p"), self.min_p);
        layer.flag("--repeat-penalty", ("sampling", "repeat_penalty"), self.repeat_penalty);
        layer.flag("--presence-penalty", ("sampling", "presence_penalty"), self.presence_penalty);
        layer.flag("--frequency-penalty", ("sampling", "frequency_penalty"), self.frequency_penalty);
        layer.flag("--repeat-last-n", ("sampling", "repeat_last_n"), self.repeat_last_n);
        layer.flag("--seed", ("sampling", "seed"), self.seed);
        layer.flag("--verify", ("sampling", "verify"), self.verify.clone());
    }
}

impl RunArgs {
    /// The settings of this call.
    pub fn config(&self) -> Result<Config, Error> {
        let mut layer = Layer::command_line();
        layer.flag("MODEL", ("model", "path"), self.model.clone());
        layer.flag("-n", ("run", "max_tokens"), self.max_tokens);
        layer.flag("--ignore-eos", ("run", "ignore_eos"), given(self.ignore_eos));
        layer.flag("--json", ("run", "json"), given(self.json));
        layer.flag("--no-stats", ("run", "stats"), self.no_stats.then_some(false));
        self.sampling.add_to(&mut layer);
        self.draft.add_to(&mut layer);
        self.engine.add_to(&mut layer);
        self.engine.load(&layer)
    }
}

impl LogitsArgs {
    /// The settings of this call.
    pub fn config(&self) -> Result<Config, Error> {
        let mut layer = Layer::command_line();
        layer.flag("MODEL", ("model", "path"), Some(self.model.clone()));
        layer.flag("--json", ("run", "json"), given(self.json));
        // Logits are the target's alone: whatever the settings say, there is nothing to draft.
        layer.flag("logits", ("draft", "source"), Some("none"));
        self.engine.add_to(&mut layer);
        self.engine.load(&layer)
    }
}

impl BenchArgs {
    /// The settings of this call.
    pub fn config(&self) -> Result<Config, Error> {
        let mut layer = Layer::command_line();
        layer.flag("MODEL", ("model", "path"), self.model.clone());
        layer.flag("-p", ("bench", "prompt_tokens"), self.prompt_tokens);
        layer.flag("-n", ("bench", "generate_tokens"), self.generate_tokens);
        layer.flag("--repeat", ("bench", "repeat"), self.repeat);
        layer.flag("--json", ("run", "json"), given(self.json));
        // Given ids are decoded as they are: whatever the settings say, there is nothing to draft.
        layer.flag("--ids", ("draft", "source"), self.ids.as_ref().map(|_| "none"));
        self.draft.add_to(&mut layer);
        self.engine.add_to(&mut layer);
        self.engine.load(&layer)
    }
}

impl TuneArgs {
    /// What the flags of this call set.
    pub fn layer(&self) -> Result<Layer, Error> {
        let mut layer = Layer::command_line();
        layer.flag("MODEL", ("model", "path"), self.model.clone());
        layer.flag("--minutes", ("tune", "minutes"), self.minutes);
        layer.flag("--json", ("run", "json"), given(self.json));
        self.sampling.add_to(&mut layer);
        self.draft.add_to(&mut layer);
        self.engine.add_to(&mut layer);
        Ok(layer)
    }
}

impl InspectArgs {
    /// The settings of this call.
    pub fn config(&self) -> Result<Config, Error> {
        let mut layer = Layer::command_line();
        layer.flag("MODEL", ("model", "path"), Some(self.model.clone()));
        layer.flag("--memory", ("memory", "budget"), self.memory.clone());
        layer.flag("--context", ("model", "context"), self.context.clone());
        layer.flag("--kv-type", ("model", "kv_type"), self.kv_type.clone());
        layer.flag("--slots", ("offload", "slots"), self.slots.clone());
        layer.flag("--draft", ("draft", "source"), self.draft.clone());
        layer.flag("--json", ("run", "json"), given(self.json));
        Ok(Config::load(self.config.as_deref(), &layer)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use clap::CommandFactory as _;
    use drafthorse_draft::{SamplerConfig, VerifyRule};
    use drafthorse_scheduler::ElasticMode;

    use super::*;

    #[test]
    fn the_tables_are_consistent() {
        Cli::command().debug_assert();
    }

    fn run_args(words: &[&str]) -> RunArgs {
        let words = ["drafthorse", "run"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(args) => args,
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn flags_set_what_they_say_and_nothing_else() {
        let plain = run_args(&["m.gguf"]).config().unwrap();
        let words = "m.gguf --temp 0.5 --top-k 5 --seed 9 -n 3 --draft-len 2 --slots auto --no-stats --policy lru --elastic auto";
        let mut set = run_args(&words.split(' ').collect::<Vec<_>>()).config().unwrap();
        assert_eq!((set.sampling.temperature, set.sampling.top_k, set.sampling.seed), (0.5, 5, 9));
        assert_eq!((set.run.max_tokens, set.run.stats), (3, false));
        set.sampling = plain.sampling.clone();
        set.run = plain.run.clone();
        set.offload.policy = plain.offload.policy;
        assert_eq!((plain.scheduler.elastic, set.scheduler.elastic), (ElasticMode::Off, ElasticMode::Auto));
        set.scheduler = plain.scheduler.clone();
        assert_eq!(set, plain);
    }

    #[test]
    fn penalties_and_the_verification_rule_reach_the_sampler() {
        let words = "m.gguf --repeat-penalty 1.2 --presence-penalty -0.5 --frequency-penalty 0.25 --repeat-last-n 32 --verify block";
        let set = run_args(&words.split(' ').collect::<Vec<_>>()).config().unwrap();
        let expected = SamplerConfig {
            repeat_penalty: 1.2,
            presence_penalty: -0.5,
            frequency_penalty: 0.25,
            repeat_last_n: 32,
            verify: VerifyRule::Block,
            ..SamplerConfig::plain(0.0, 0)
        };
        assert_eq!(set.generate_options().sampler, expected);
    }

    #[test]
    fn a_prompt_may_look_like_a_flag_and_tokens_are_a_list() {
        assert_eq!(run_args(&["m.gguf", "-p", "-"]).prompt.as_deref(), Some("-"));
        assert_eq!(run_args(&["m.gguf", "-p", "--help me"]).prompt.as_deref(), Some("--help me"));
        assert_eq!(run_args(&["m.gguf", "--tokens", "1,2,3"]).tokens, Some(vec![1, 2, 3]));
    }

    #[test]
    fn gpu_memory_asks_for_a_gpu() {
        let gpu = |words: &[&str]| run_args(words).config().map(|c| c.engine_options().unwrap().gpu);
        let limited = gpu(&["m.gguf", "--vram", "8GiB"]).unwrap().unwrap();
        assert_eq!((limited.device, limited.vram_bytes, limited.hybrid), ("cuda", Some(8 << 30), true));
        assert_eq!(gpu(&["m.gguf", "--vram", "auto"]).unwrap().unwrap().vram_bytes, None);
        assert_eq!(limited.unified, None);
        assert_eq!(gpu(&["m.gguf", "--vram", "none"]).unwrap(), None);
        assert_eq!(gpu(&["m.gguf"]).unwrap(), None);
        let error = gpu(&["m.gguf", "--vram", "8GiB", "--gpu", "abacus"]).unwrap_err();
        assert!(error.to_string().contains("expected one of cuda, emulated"), "{error}");
        let error = gpu(&["m.gguf", "--gpu", "cuda"]).unwrap_err();
        assert!(error.to_string().contains("without --vram") && error.exit_code() == 2, "{error}");
    }
}
