//! `drafthorse-eval`: the harness's command line.
//!
//! Turns arguments into calls and errors into exit codes (0 success, 1 run-time failure, 2 usage,
//! 3 invalid model file); the work is in the modules. The only place of this crate that prints.

mod choice;
mod choice_command;
mod compare;
mod compare_command;
mod convert;
mod ppl;
mod ppl_command;
mod replay;
mod speedup;
mod speedup_command;
mod synth;
mod synth_command;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use convert::{ConvertError, ConvertOptions, convert};
use drafthorse_runtime::gguf::{BlockType, QUANTIZABLE};

/// Measures, compares and reports; makes the files that is done with.
#[derive(Parser)]
#[command(name = "drafthorse-eval", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Quantize a safetensors checkpoint, whose tensors bear GGUF names, into a GGUF file.
    Gguf(GgufArgs),
    /// Write a model of a published shape with random weights, for measurements.
    Synth(synth_command::SynthArgs),
    /// Measure ours against another engine: same file, ids and memory limit, in turns.
    Compare(compare_command::CompareArgs),
    /// Perplexity over a text, and the distance from another run's predictions.
    Ppl(ppl_command::PplArgs),
    /// Measure what drafting brings over a sweep of settings; one table, one page with plots.
    Speedup(speedup_command::SpeedupArgs),
    /// Draw a sweep's table and page again from its speedup.json.
    Report(speedup_command::ReportArgs),
    /// Accuracy on multiple-choice questions in MMLU's format, by log-probability.
    Choice(choice_command::ChoiceArgs),
    /// Replay a routing trace over eviction policies and cache sizes.
    Replay(ReplayArgs),
}

#[derive(Args)]
struct GgufArgs {
    /// Checkpoint with GGUF tensor names and layouts, in F32, F16 or BF16.
    #[arg(long, value_name = "FILE.safetensors")]
    weights: PathBuf,
    /// Metadata keys with their GGUF types, and the tensors to leave in F32.
    #[arg(long, value_name = "FILE.json")]
    meta: PathBuf,
    /// Block type of the weight matrices.
    #[arg(long, value_name = "TYPE", value_parser = block_type)]
    quant: BlockType,
    /// Block type of the routed experts [default: as --quant].
    #[arg(long, value_name = "TYPE", value_parser = block_type)]
    quant_experts: Option<BlockType>,
    /// The GGUF file to write.
    #[arg(short, long, value_name = "FILE.gguf")]
    output: PathBuf,
}

#[derive(Args)]
#[command(after_help = policy_help())]
struct ReplayArgs {
    /// A .moetrace file or a route_trace CSV, gzipped or not.
    trace: PathBuf,
    /// Policies to compare (listed below).
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = replay::contender,
          default_value = "lru,lfu,decayed-lfu,gating,belady")]
    policies: Vec<replay::Contender>,
    /// Cache sizes as shares of the model's experts.
    #[arg(long, value_name = "SHARES", value_delimiter = ',', value_parser = replay::share,
          default_value = "0.05,0.08,0.12,0.2")]
    shares: Vec<f64>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Also draw hit rate over share.
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    /// Replay at most the first N tokens.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_tokens: Option<u64>,
}

fn policy_help() -> String {
    let line = |c: &replay::Contender| format!("  {:12} {}\n", c.name, c.summary);
    let lines: String = replay::CONTENDERS.iter().map(line).collect();
    format!("Policies:\n{lines}")
}

/// A type that can be written, by its name in any letter case.
fn block_type(name: &str) -> Result<BlockType, String> {
    BlockType::from_name(name).filter(|block_type| QUANTIZABLE.contains(block_type)).ok_or_else(|| {
        let known: Vec<String> =
            QUANTIZABLE.iter().map(|block_type| block_type.name().to_lowercase()).collect();
        format!("not one of {}", known.join(", "))
    })
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Gguf(args) => gguf(args),
        Command::Synth(args) => synth_command::run(args),
        Command::Compare(args) => compare_command::run(args),
        Command::Ppl(args) => ppl_command::run(args),
        Command::Speedup(args) => speedup_command::run(args),
        Command::Report(args) => speedup_command::report(&args),
        Command::Choice(args) => choice_command::run(args),
        Command::Replay(args) => replay_trace(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("drafthorse-eval: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

/// What the failed command's own error says, else 1.
fn exit_code(error: &anyhow::Error) -> u8 {
    None.or_else(|| error.downcast_ref().map(ConvertError::exit_code))
        .or_else(|| error.downcast_ref().map(synth::SynthError::exit_code))
        .or_else(|| error.downcast_ref().map(compare::CompareError::exit_code))
        .or_else(|| error.downcast_ref().map(ppl::PplError::exit_code))
        .or_else(|| error.downcast_ref().map(speedup::SpeedupError::exit_code))
        .or_else(|| error.downcast_ref().map(choice::ChoiceError::exit_code))
        .unwrap_or(1)
}

fn gguf(args: GgufArgs) -> anyhow::Result<()> {
    let output = args.output.clone();
    let options = ConvertOptions {
        weights: args.weights,
        meta: args.meta,
        output: args.output,
        quant: args.quant,
        quant_experts: args.quant_experts.unwrap_or(args.quant),
    };
    let converted = convert(&options, &mut |notice| eprintln!("{notice}"))?;
    for (block_type, usage) in &converted.types {
        eprintln!("{:>5} tensors {block_type:6} {:>12} bytes", usage.tensors, usage.bytes);
    }
    eprintln!("{}: {} bytes", output.display(), converted.file_bytes);
    Ok(())
}

fn replay_trace(args: &ReplayArgs) -> anyhow::Result<()> {
    let options = replay::ReplayOptions {
        trace: args.trace.clone(),
        policies: args.policies.clone(),
        shares: args.shares.clone(),
        tokens_max: args.max_tokens.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX)),
    };
    let bar = indicatif::ProgressBar::new(0);
    let report = replay::replay(&options, &mut |done, all| {
        if done % 4096 == 0 {
            bar.set_length(all);
            bar.set_position(done);
        }
    })?;
    bar.finish_and_clear();
    if let Some(file) = &args.svg {
        replay::svg(&report, file)?;
    }
    match args.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => println!("{}", replay::table(&report)),
    }
    Ok(())
}
