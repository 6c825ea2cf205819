//! `drafthorse-eval choice`: arguments, progress bar and report of the multiple-choice measure.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;

use crate::choice::{ChoiceOptions, Report, choice};

/// `choice`
#[derive(Args)]
pub struct ChoiceArgs {
    /// The GGUF, or demo.
    model: String,
    /// The questions: CSV as MMLU has it (question,A,B,C,D,answer, with or without a header) or JSON lines
    /// ({subject, question, choices, answer}), gzipped or not.
    #[arg(long, value_name = "FILE")]
    questions: PathBuf,
    /// Solved questions of the same subject put in front (5 is what MMLU is quoted with).
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = small)]
    shots: usize,
    /// Where those come from (MMLU's dev file) [default: the first of each subject, which are not asked then].
    #[arg(long, value_name = "FILE", requires = "shots")]
    shots_from: Option<PathBuf>,
    /// Questions a subject at most.
    #[arg(long, value_name = "N", value_parser = positive)]
    limit: Option<usize>,
    /// Hard limit of the engine, as of `drafthorse run`.
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Compute threads.
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    /// Positions of the KV cache: the longest question with its examples.
    #[arg(long, value_name = "N", value_parser = positive)]
    context: Option<usize>,
    /// Print one JSON object on stdout instead of the table.
    #[arg(long)]
    json: bool,
}

fn small(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| *number <= 100)
        .ok_or_else(|| "expected a number from 0 to 100".to_owned())
}

fn positive(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=1 << 30).contains(number));
    number.ok_or_else(|| "expected a number from 1".to_owned())
}

/// Asks and reports.
pub fn run(args: ChoiceArgs) -> anyhow::Result<()> {
    let options = ChoiceOptions {
        model: args.model,
        questions: args.questions,
        shots: args.shots,
        shots_from: args.shots_from,
        limit: args.limit,
        memory: args.memory,
        threads: args.threads,
        context: args.context,
    };
    let bar = ProgressBar::no_length();
    let report = choice(
        &options,
        &mut |line| bar.suspend(|| eprintln!("drafthorse-eval: {line}")),
        &mut |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        },
    );
    bar.finish_and_clear();
    let report = report?;
    let text = if args.json { serde_json::to_string(&report)? + "\n" } else { table(&report) };
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

fn table(report: &Report) -> String {
    let width = report.subjects.iter().map(|it| it.subject.chars().count()).max().unwrap_or(0).max(7);
    let mut text = String::new();
    let mut line = |name: &str, accuracy: &crate::choice::Accuracy| {
        let percent = |share: f64| share * 100.0;
        let _ = writeln!(
            text,
            "{name:width$}  {:>6.2} % +- {:>5.2}  {} of {}",
            percent(accuracy.accuracy),
            percent(accuracy.accuracy_error),
            accuracy.right,
            accuracy.asked
        );
    };
    report.subjects.iter().for_each(|it| line(&it.subject, &it.accuracy));
    line("all", &report.all);
    let [a, b, c, d] = report.chosen;
    let _ = writeln!(text, "chosen   A {a}, B {b}, C {c}, D {d}; {} shots; {}", report.shots, report.model);
    text
}
