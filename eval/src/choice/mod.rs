//! `drafthorse-eval choice`: accuracy on multiple-choice questions, scored by log-probability.
//!
//! The method is the one MMLU is quoted with (Hendrycks et al. 2021, arXiv 2009.03300): the question with
//! its four answers, "Answer:", and the letter that the model finds likeliest next. Nothing is sampled. Owns
//! the order of the work and the report; reading, prompt and scoring are beside this file.

mod prompt;
mod questions;
mod score;

use std::io;
use std::path::{Path, PathBuf};

use drafthorse_runtime::Error;
use drafthorse_runtime::api::Progress;
use drafthorse_runtime::config::{Config, Layer};
use drafthorse_runtime::engine::Engine;
use drafthorse_runtime::tokenizer::{AddSpecial, TokenizerError};
use serde::Serialize;
use thiserror::Error as ThisError;

use questions::{LETTERS, Place, Question, read};
use score::letter_scores;

pub use score::Accuracy;

/// What to ask whom.
pub struct ChoiceOptions {
    /// The GGUF.
    pub model: String,
    /// Questions in MMLU's CSV or as JSON lines, gzipped or not.
    pub questions: PathBuf,
    /// Solved questions put in front, of the same subject.
    pub shots: usize,
    /// Where those come from; None: the subject's first questions, which are then not scored.
    pub shots_from: Option<PathBuf>,
    /// Questions a subject at most.
    pub limit: Option<usize>,
    pub memory: Option<String>,
    pub threads: Option<usize>,
    /// Positions; None: the engine's choice.
    pub context: Option<usize>,
}

/// What came out.
#[derive(Debug, Serialize)]
pub struct Report {
    pub engine: String,
    pub model: String,
    pub questions: String,
    pub shots: usize,
    #[serde(flatten)]
    pub all: Accuracy,
    pub subjects: Vec<Subject>,
    /// How often each letter was chosen, A first.
    pub chosen: [usize; 4],
}

/// One subject's questions.
#[derive(Debug, Serialize)]
pub struct Subject {
    pub subject: String,
    #[serde(flatten)]
    pub accuracy: Accuracy,
}

/// Why there is no report.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum ChoiceError {
    /// The command makes no sense as given.
    #[error("{0}")]
    Usage(String),
    /// The model, its settings, or a pass over it.
    #[error(transparent)]
    Engine(#[from] Error),
    /// A file of questions cannot be read.
    #[error("cannot read {}: {source}", .file.display())]
    Io {
        /// Which file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A question is none.
    #[error("{place}: {problem}")]
    Question {
        /// File and line.
        place: Place,
        /// The field and what is wrong with it.
        problem: String,
    },
    /// A logit is infinite or no number.
    #[error("{place}: a logit is not finite")]
    NotFinite {
        /// Of the question.
        place: Place,
    },
}

impl ChoiceError {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            ChoiceError::Usage(_) => 2,
            ChoiceError::Engine(error) => error.exit_code(),
            ChoiceError::Io { .. } | ChoiceError::Question { .. } | ChoiceError::NotFinite { .. } => 1,
        }
    }
}

/// A question and the solved ones in front of it.
struct Asked<'a> {
    question: &'a Question,
    shots: Vec<&'a Question>,
}

/// Asks everything; `notice` gets what the engine must say, `done` questions so far and in all.
///
/// # Errors
/// [`ChoiceError`].
pub fn choice(
    options: &ChoiceOptions,
    notice: &mut dyn FnMut(&str),
    done: &mut dyn FnMut(usize, usize),
) -> Result<Report, ChoiceError> {
    let questions = read(&options.questions)?;
    let examples = options.shots_from.as_deref().map(read).transpose()?;
    let asked = asked(options, &questions, examples.as_deref())?;
    let mut engine = open(options, notice)?;
    let mut by_subject: Vec<(String, Vec<bool>)> = Vec::new();
    let mut chosen = [0; LETTERS.len()];
    for (index, one) in asked.iter().enumerate() {
        let best = answer(&mut engine, one, &options.model)?;
        chosen[best] += 1;
        let (subject, is_right) = (&one.question.subject, best == one.question.answer);
        match by_subject.iter_mut().find(|(known, _)| known == subject) {
            Some((_, answers)) => answers.push(is_right),
            None => by_subject.push((subject.clone(), vec![is_right])),
        }
        done(index + 1, asked.len());
    }
    let all: Vec<bool> = by_subject.iter().flat_map(|(_, answers)| answers.iter().copied()).collect();
    let subject =
        |(subject, answers): (String, Vec<bool>)| Subject { subject, accuracy: Accuracy::of(&answers) };
    Ok(Report {
        engine: format!("drafthorse {}", env!("CARGO_PKG_VERSION")),
        model: options.model.clone(),
        questions: options.questions.display().to_string(),
        shots: options.shots,
        all: Accuracy::of(&all),
        subjects: by_subject.into_iter().map(subject).collect(),
        chosen,
    })
}

/// The questions that are scored, each with its examples.
fn asked<'a>(
    options: &ChoiceOptions,
    questions: &'a [Question],
    examples: Option<&'a [Question]>,
) -> Result<Vec<Asked<'a>>, ChoiceError> {
    let of = |all: &'a [Question], subject: &str| {
        all.iter().filter(|question| question.subject == subject).collect::<Vec<_>>()
    };
    let mut subjects: Vec<&str> = Vec::new();
    for question in questions {
        if !subjects.contains(&question.subject.as_str()) {
            subjects.push(&question.subject);
        }
    }
    let mut asked = Vec::new();
    for subject in subjects {
        let own = of(questions, subject);
        let (shots, scored) = match examples {
            Some(examples) => (of(examples, subject), own),
            None => (
                own.iter().take(options.shots).copied().collect(),
                own.into_iter().skip(options.shots).collect(),
            ),
        };
        if shots.len() < options.shots || scored.is_empty() {
            let file = options.shots_from.as_ref().unwrap_or(&options.questions).display();
            let problem = format!(
                "--shots {}: {file} has {} examples of {subject}, and {} questions are left to ask",
                options.shots,
                shots.len(),
                scored.len()
            );
            return Err(ChoiceError::Usage(problem));
        }
        let shots: Vec<&Question> = shots.into_iter().take(options.shots).collect();
        let scored = scored.into_iter().take(options.limit.unwrap_or(usize::MAX));
        asked.extend(scored.map(|question| Asked { question, shots: shots.clone() }));
    }
    Ok(asked)
}

/// Hands on what the engine must say; a bar is drawn by question instead.
struct Notices<'a>(&'a mut dyn FnMut(&str));

impl Progress for Notices<'_> {
    fn begin(&mut self, _what: &str, _total: u64) {}
    fn advance(&mut self, _by: u64) {}
    fn end(&mut self) {}
    fn notice(&mut self, line: &str) {
        (self.0)(line);
    }
}

fn open(options: &ChoiceOptions, notice: &mut dyn FnMut(&str)) -> Result<Engine, ChoiceError> {
    let mut flags = Layer::command_line();
    let whole = |number: Option<usize>| number.and_then(|number| i64::try_from(number).ok());
    flags.flag("MODEL", ("model", "path"), Some(options.model.as_str()));
    // Whatever the demo's settings say: nothing is drafted.
    flags.flag("choice", ("draft", "source"), Some("none"));
    flags.flag("--memory", ("memory", "budget"), options.memory.as_deref());
    flags.flag("--threads", ("model", "threads"), whole(options.threads));
    flags.flag("--context", ("model", "context"), whole(options.context));
    let options =
        Config::load(None, &flags).and_then(|config| config.engine_options()).map_err(Error::from)?;
    Ok(Engine::open(&options, &mut Notices(notice))?)
}

/// Which letter the model finds likeliest.
fn answer(engine: &mut Engine, asked: &Asked<'_>, model: &str) -> Result<usize, ChoiceError> {
    let place = &asked.question.place;
    let texts = LETTERS.map(|letter| prompt::answered(asked.question, &asked.shots, letter));
    let mut rows = Vec::with_capacity(texts.len());
    for text in &texts {
        rows.push(encode(engine, text, model)?);
    }
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    if longest > engine.context_len() {
        let problem = format!(
            "{longest} tokens with its examples do not fit the context of {} (--context, --shots)",
            engine.context_len()
        );
        return Err(ChoiceError::Question { place: place.clone(), problem });
    }
    let scores =
        letter_scores(engine, &rows)?.ok_or_else(|| ChoiceError::NotFinite { place: place.clone() })?;
    let better = |best: usize, at: usize| if scores[at] > scores[best] { at } else { best };
    Ok((0..scores.len()).fold(0, better))
}

fn encode(engine: &Engine, text: &str, model: &str) -> Result<Vec<u32>, ChoiceError> {
    let tokenizer =
        engine.tokenizer().ok_or_else(|| Error::NoTokenizer { path: Path::new(model).to_owned() })?;
    let ids = tokenizer.encode(text, AddSpecial::Yes).map_err(|error: TokenizerError| Error::from(error))?;
    Ok(ids)
}
