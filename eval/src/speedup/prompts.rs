//! What is continued: the built-in prompts, or Spec-Bench's.
//!
//! Owns the reading of both and the choice of samples, which a seed fixes. It must not know models: a
//! prompt is text here. Of Spec-Bench's conversations the first turn is taken, as plain text.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use serde::Deserialize;

use super::SpeedupError;
use crate::synth::Random;

const BUILTIN: &str = include_str!("../../prompts/builtin.toml");
/// Largest line of a benchmark file, and most lines.
const LINE_BYTES_MAX: u64 = 1 << 20;
const LINES_MAX: usize = 100_000;
/// Spec-Bench's first task is MT-bench; these are its categories (Xia et al. 2024, arXiv 2401.07851).
const MT_BENCH: [&str; 8] =
    ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"];

/// A text to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Set and place in it, unique in a sweep: `builtin/prose/1`.
    pub id: String,
    /// Its kind: `prose`.
    pub task: String,
    /// As it stands.
    pub text: String,
}

#[derive(Deserialize)]
struct Builtin {
    prompt: Vec<BuiltinPrompt>,
}

#[derive(Deserialize)]
struct BuiltinPrompt {
    task: String,
    text: String,
}

/// A line of Spec-Bench's question.jsonl; other keys are not needed.
#[derive(Deserialize)]
struct Question {
    question_id: serde_json::Value,
    category: String,
    turns: Vec<String>,
}

/// `samples` prompts of each task of the sets, or all where there are fewer.
///
/// # Errors
/// A set that is none, a file that cannot be read or holds something else (with its line), a task that no
/// set has.
pub fn choose(
    sets: &[String],
    tasks: &[String],
    (samples, seed): (usize, u64),
) -> Result<Vec<Prompt>, SpeedupError> {
    let mut chosen = Vec::new();
    for set in sets {
        let prompts = match set.split_once(':') {
            None if set == "builtin" => builtin()?,
            Some(("spec-bench", path)) => spec_bench(Path::new(path))?,
            _ => {
                let problem = format!("prompts: {set:?} is neither \"builtin\" nor \"spec-bench:PATH\"");
                return Err(SpeedupError::Usage(problem));
            }
        };
        chosen.extend(sample(prompts, samples, seed));
    }
    if let Some(absent) = tasks.iter().find(|task| !chosen.iter().any(|prompt| prompt.task == **task)) {
        let mut known: Vec<&str> = chosen.iter().map(|prompt| prompt.task.as_str()).collect();
        known.dedup();
        let problem = format!("tasks: there is no {absent:?} among {}", known.join(", "));
        return Err(SpeedupError::Usage(problem));
    }
    chosen.retain(|prompt| tasks.is_empty() || tasks.contains(&prompt.task));
    Ok(chosen)
}

fn builtin() -> Result<Vec<Prompt>, SpeedupError> {
    let parsed: Builtin =
        toml::from_str(BUILTIN).map_err(|error| SpeedupError::Usage(format!("built-in prompts: {error}")))?;
    let mut counts = BTreeMap::new();
    let prompt = |BuiltinPrompt { task, text }| {
        let count = counts.entry(task.clone()).or_insert(0);
        *count += 1;
        Prompt { id: format!("builtin/{task}/{count}"), task, text }
    };
    Ok(parsed.prompt.into_iter().map(prompt).collect())
}

fn spec_bench(file: &Path) -> Result<Vec<Prompt>, SpeedupError> {
    let read = |source| SpeedupError::io("read", file, source);
    let mut input = BufReader::new(File::open(file).map_err(read)?);
    let mut prompts = Vec::new();
    for number in 1.. {
        let bad = |problem: String| SpeedupError::Line { file: file.to_owned(), line: number, problem };
        let mut line = Vec::new();
        input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(read)?;
        if line.is_empty() {
            break;
        }
        if line.len() as u64 == LINE_BYTES_MAX || number > LINES_MAX {
            return Err(bad(format!("longer than {LINE_BYTES_MAX} bytes, or more than {LINES_MAX} lines")));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let question: Question = serde_json::from_slice(&line).map_err(|error| bad(error.to_string()))?;
        let text = question.turns.into_iter().next().filter(|text| !text.trim().is_empty());
        let text = text.ok_or_else(|| bad("turns: there is no text in the first".to_owned()))?;
        let task = if MT_BENCH.contains(&question.category.as_str()) {
            "mt_bench".to_owned()
        } else {
            question.category
        };
        prompts.push(Prompt { id: format!("spec-bench/{}", question.question_id), task, text });
    }
    if prompts.is_empty() {
        let problem = "there is no question in it".to_owned();
        return Err(SpeedupError::Line { file: file.to_owned(), line: 1, problem });
    }
    Ok(prompts)
}

/// `samples` of each task, in the order of the tasks' first prompts; each task has a stream of its own, so
/// that another task more or less changes nothing.
fn sample(prompts: Vec<Prompt>, samples: usize, seed: u64) -> Vec<Prompt> {
    let mut tasks: Vec<(String, Vec<Prompt>)> = Vec::new();
    for prompt in prompts {
        match tasks.iter_mut().find(|(task, _)| *task == prompt.task) {
            Some((_, prompts)) => prompts.push(prompt),
            None => tasks.push((prompt.task.clone(), vec![prompt])),
        }
    }
    let mut chosen = Vec::new();
    for (task, prompts) in tasks {
        let order = Random::named(seed, &task).order(prompts.len());
        chosen.extend(order.into_iter().take(samples).map(|at| prompts[at].clone()));
    }
    chosen
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn chosen(sets: &[&str], tasks: &[&str], samples: usize) -> Result<Vec<Prompt>, String> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        choose(&owned(sets), &owned(tasks), (samples, 1)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_builtin_prompts_are_of_four_tasks_and_a_seed_fixes_the_choice() {
        let all = chosen(&["builtin"], &[], 99).unwrap();
        assert_eq!(all.len(), 8);
        assert!(all.iter().all(|prompt| prompt.text.len() > 100 && !prompt.text.starts_with('\n')));
        let one = chosen(&["builtin"], &[], 1).unwrap();
        let tasks: Vec<&str> = one.iter().map(|prompt| prompt.task.as_str()).collect();
        assert_eq!(tasks, ["prose", "copy", "code", "list"]);
        assert_eq!(one, chosen(&["builtin"], &[], 1).unwrap());
        assert_eq!(chosen(&["builtin"], &["code"], 1).unwrap(), [one[2].clone()]);
    }

    #[test]
    fn spec_bench_has_its_six_tasks_and_bad_lines_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let write = |text: &str| {
            let file = folder.path().join("question.jsonl");
            std::fs::write(&file, text).unwrap();
            format!("spec-bench:{}", file.display())
        };
        let line = |id: usize, category: &str, turn: &str| {
            format!(
                "{{\"question_id\": {id}, \"category\": \"{category}\", \"turns\": [\"{turn}\"], \"x\": 1}}\n"
            )
        };
        let good = [line(81, "writing", "a"), line(82, "coding", "b"), line(241, "qa", "c")].concat();
        let all = chosen(&[&write(&good)], &[], 9).unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!((all[2].id.as_str(), all[2].task.as_str()), ("spec-bench/241", "qa"));
        assert!(all[..2].iter().all(|prompt| prompt.task == "mt_bench"));
        for (text, problem) in [
            ("", "line 1: there is no question"),
            ("{}\n", "line 1: missing field"),
            (&*(line(1, "qa", "x") + "not json\n"), "line 2: "),
            (&*line(1, "qa", " "), "line 1: turns"),
            ("{\"question_id\": 1, \"category\": \"qa\", \"turns\": []}", "line 1: turns"),
        ] {
            let error = chosen(&[&write(text)], &[], 1).unwrap_err();
            assert!(error.contains(problem) && error.contains("question.jsonl"), "{error}");
        }
        assert!(chosen(&["builtin"], &["law"], 1).unwrap_err().contains("\"law\" among prose"));
        assert!(chosen(&["mine"], &[], 1).unwrap_err().contains("mine"));
        assert!(chosen(&["spec-bench:/no/such"], &[], 1).unwrap_err().contains("/no/such"));
    }

    #[test]
    fn the_benchmark_itself_is_read() {
        let file =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/eval/spec_bench/question.jsonl");
        if !file.exists() {
            return eprintln!("skipped: {} is not here", file.display());
        }
        let all = chosen(&[&format!("spec-bench:{}", file.display())], &[], 999).unwrap();
        assert_eq!(all.len(), 480);
        let some = chosen(&[&format!("spec-bench:{}", file.display())], &[], 2).unwrap();
        assert_eq!(some.len(), 12);
    }
}
