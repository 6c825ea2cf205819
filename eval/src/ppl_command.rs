//! `drafthorse-eval ppl`: arguments, progress bar and report of the quality measure.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{ArgGroup, Args};
use indicatif::ProgressBar;

use crate::ppl::{PplOptions, Reading, Report, Source, ppl};

/// `ppl`
#[derive(Args)]
#[command(group(ArgGroup::new("source").required(true).args(["model", "logits"])))]
#[command(group(ArgGroup::new("reading").required(true).args(["text", "ids"])))]
pub struct PplArgs {
    /// The GGUF to run.
    model: Option<PathBuf>,
    /// Take the rows from this file of logits instead of a model.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["memory", "threads", "text"])]
    logits: Option<PathBuf>,
    /// The text to read.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// The token ids to read, taken as they are: no first token is put in.
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
    /// Tokens of a window; the predictions of its second half are scored.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = window)]
    context: usize,
    /// Windows at most [default: all that the text fills].
    #[arg(long, value_name = "N", value_parser = positive)]
    chunks: Option<usize>,
    /// Hard limit of the engine, as of `drafthorse run`.
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Compute threads.
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    /// Keep the logits of the scored positions in this file.
    #[arg(long, value_name = "FILE")]
    logits_out: Option<PathBuf>,
    /// Write the windows' ids to this file, for --ids and for other engines.
    #[arg(long, value_name = "FILE")]
    ids_out: Option<PathBuf>,
    /// Compare with the logits of this file: KL(file || this run).
    #[arg(long, value_name = "FILE")]
    kl_base: Option<PathBuf>,
    /// Print one JSON object on stdout instead of the table.
    #[arg(long)]
    json: bool,
}

fn window(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (4..=1 << 20).contains(number));
    number.ok_or_else(|| "expected a number from 4 to 1048576".to_owned())
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "expected a number from 1".to_owned())
}

/// Evaluates and reports.
pub fn run(args: PplArgs) -> anyhow::Result<()> {
    let options = PplOptions {
        source: match (args.model, args.logits) {
            (Some(path), _) => Source::Model { path, memory: args.memory, threads: args.threads },
            (None, Some(file)) => Source::Logits(file),
            (None, None) => anyhow::bail!("invariant: clap asks for a model or --logits"),
        },
        reading: match (args.text, args.ids) {
            (Some(file), _) => Reading::Text(file),
            (None, Some(file)) => Reading::Ids(file),
            (None, None) => anyhow::bail!("invariant: clap asks for --text or --ids"),
        },
        context: args.context,
        chunks: args.chunks,
        logits_out: args.logits_out,
        ids_out: args.ids_out,
        kl_base: args.kl_base,
    };
    let bar = ProgressBar::no_length();
    let report =
        ppl(&options, &mut |line| bar.suspend(|| eprintln!("drafthorse-eval: {line}")), &mut |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        });
    bar.finish_and_clear();
    let report = report?;
    let text = if args.json { serde_json::to_string(&report)? + "\n" } else { table(&report) };
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

fn table(report: &Report) -> String {
    let Report { engine, vocab, context, windows, ids_hash, perplexity, kl } = report;
    let mut text = format!(
        "rows        {} of {windows} windows of {context} tokens (fingerprint {ids_hash}), vocabulary {vocab}\n\
         from        {engine}\n\
         perplexity  {:.4} +- {:.4}\n",
        perplexity.positions, perplexity.ppl, perplexity.ppl_error
    );
    if let Some(kl) = kl {
        text.push_str(&format!(
            "base        perplexity {:.4}\n\
             KL          mean {:.3e} +- {:.1e}, median {:.3e}, 99 % {:.3e}, max {:.3e}\n\
             agreement   {:.3} % of the likeliest tokens\n",
            kl.base_ppl,
            kl.mean,
            kl.mean_error,
            kl.p50,
            kl.p99,
            kl.max,
            100.0 * kl.top1_agreement
        ));
    }
    text
}
