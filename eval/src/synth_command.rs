//! `drafthorse-eval synth`: arguments, progress bar and report of the synthetic models.

use std::path::PathBuf;

use clap::Args;
use drafthorse_runtime::gguf::BlockType;
use indicatif::{ProgressBar, ProgressStyle};

use crate::synth::{Hooks, SHAPES, SynthOptions, synth};

/// `synth`
#[derive(Args)]
pub struct SynthArgs {
    /// Whose shapes to take.
    #[arg(long, value_name = "NAME", value_parser = SHAPES.iter().map(|shape| shape.name).collect::<Vec<_>>())]
    shape: String,
    /// Block type of the matrices; rows that are no whole blocks take llama.cpp's substitute.
    #[arg(long, value_name = "TYPE", value_parser = crate::block_type)]
    quant: BlockType,
    /// Experts a layer, fewer than the shape has, for small disks.
    #[arg(long, value_name = "N")]
    experts: Option<u64>,
    /// Layers, fewer than the shape has.
    #[arg(long, value_name = "N")]
    layers: Option<u64>,
    /// Skew of the routing: exponent of the experts' popularity, 0 is even [default: 0.8].
    #[arg(long, value_name = "S")]
    zipf: Option<f64>,
    /// The same seed gives the same file.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Copy the tokenizer of this file; without it one is made up.
    #[arg(long, value_name = "VOCAB.gguf")]
    vocab: Option<PathBuf>,
    /// The GGUF file to write.
    #[arg(short, long, value_name = "FILE.gguf")]
    output: PathBuf,
}

/// Writes the file and says what is in it.
pub fn run(args: SynthArgs) -> anyhow::Result<()> {
    let options = SynthOptions {
        shape: args.shape,
        quant: args.quant,
        experts: args.experts,
        layers: args.layers,
        zipf: args.zipf,
        seed: args.seed,
        vocab: args.vocab,
        output: args.output,
    };
    let bar = ProgressBar::no_length().with_style(style());
    let mut hooks = Hooks {
        notice: &mut |line| bar.suspend(|| eprintln!("drafthorse-eval: {line}")),
        begin: &|bytes| bar.set_length(bytes),
        advance: &|bytes| bar.inc(bytes),
    };
    let made = synth(&options, &mut hooks);
    bar.finish_and_clear();
    eprintln!("{}: {}", options.output.display(), made?);
    Ok(())
}

fn style() -> ProgressStyle {
    let template = "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
