//! Perplexity of a model over a text, and how far its predictions are from another run's.
//!
//! The method is llama.cpp's, so that the figures can be held against its own: the text is cut into
//! windows, each is read from an empty context, and the predictions of its second half are scored. Two
//! runs are compared row by row through a file of logits, whoever wrote it. Owns the order of the work
//! and the report; windows, arithmetic and the file are beside this one. It knows no kernels: what a row
//! of logits is, the engine or the file says.

mod logits_file;
mod score;
mod windows;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use drafthorse_draft::TokenId;
use drafthorse_runtime::api::Progress;
use drafthorse_runtime::config::{Config, Layer};
use drafthorse_runtime::engine::{Engine, parse_ids};
use drafthorse_runtime::tokenizer::{AddSpecial, EncodeOptions, ParseSpecial, Tokenizer};
use drafthorse_runtime::{Error, tokenizer::TokenizerError};
use serde::Serialize;
use thiserror::Error as ThisError;

use logits_file::{Header, LogitsReader, LogitsWriter};
use score::Scores;
use windows::Windows;

pub use score::{Divergence, Perplexity};

/// Where rows of logits come from.
pub enum Source {
    /// A model, run by us with these settings of the engine.
    Model { path: PathBuf, memory: Option<String>, threads: Option<usize> },
    /// A file that we or another engine wrote.
    Logits(PathBuf),
}

/// What is read.
pub enum Reading {
    /// A text, in the model's own vocabulary.
    Text(PathBuf),
    /// Token ids, as `parse_ids` takes them.
    Ids(PathBuf),
}

/// What to evaluate, and what to keep of it.
pub struct PplOptions {
    pub source: Source,
    pub reading: Reading,
    /// Tokens of a window.
    pub context: usize,
    /// Windows at most.
    pub chunks: Option<usize>,
    /// Where the scored rows go.
    pub logits_out: Option<PathBuf>,
    /// Where the ids of the windows go, for another engine to read.
    pub ids_out: Option<PathBuf>,
    /// The run to compare with.
    pub kl_base: Option<PathBuf>,
}

/// What came out.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Who gave the rows.
    pub engine: String,
    pub vocab: usize,
    pub context: usize,
    pub windows: usize,
    /// Fingerprint of the windows' ids.
    pub ids_hash: String,
    #[serde(flatten)]
    pub perplexity: Perplexity,
    /// The comparison with the base.
    pub kl: Option<Divergence>,
}

/// Why there is no report.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum PplError {
    /// The command makes no sense as given.
    #[error("{0}")]
    Usage(String),
    /// The model, its settings, or a pass over it.
    #[error(transparent)]
    Engine(#[from] Error),
    /// A file other than the model cannot be read or written.
    #[error("cannot {action} {}: {source}", .file.display())]
    Io {
        /// Read or write.
        action: &'static str,
        /// Which file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of logits is damaged, or belongs to other ids or another vocabulary.
    #[error("{}: {problem}", .file.display())]
    Logits {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A logit is infinite or no number.
    #[error("{engine}: scored row {row} has a logit that is not finite")]
    NotFinite {
        /// Whose row.
        engine: String,
        /// Counted from 0 over all windows.
        row: usize,
    },
}

impl PplError {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            PplError::Usage(_) => 2,
            PplError::Engine(error) => error.exit_code(),
            PplError::Io { .. } | PplError::NotFinite { .. } => 1,
            PplError::Logits { .. } => 3,
        }
    }
}

/// Hands on what the engine must say; bars are drawn by window instead.
struct Notices<'a>(&'a mut dyn FnMut(&str));

impl Progress for Notices<'_> {
    fn begin(&mut self, _what: &str, _total: u64) {}
    fn advance(&mut self, _by: u64) {}
    fn end(&mut self) {}
    fn notice(&mut self, line: &str) {
        (self.0)(line);
    }
}

/// An opened [`Source`].
enum Rows {
    Engine(Box<Engine>),
    File(Box<LogitsReader>),
}

impl Rows {
    fn open(options: &PplOptions, notice: &mut dyn FnMut(&str)) -> Result<Rows, PplError> {
        match &options.source {
            Source::Logits(path) => Ok(Rows::File(Box::new(LogitsReader::open(path)?))),
            Source::Model { path, memory, threads } => {
                let path = path
                    .to_str()
                    .ok_or_else(|| PplError::Usage(format!("{}: the name is not UTF-8", path.display())))?;
                let mut flags = Layer::command_line();
                flags.flag("MODEL", ("model", "path"), Some(path));
                flags.flag("--context", ("model", "context"), i64::try_from(options.context).ok());
                flags.flag("--memory", ("memory", "budget"), memory.as_deref());
                flags.flag("--threads", ("model", "threads"), threads.and_then(|n| i64::try_from(n).ok()));
                let engine_options = Config::load(None, &flags)
                    .and_then(|config| config.engine_options())
                    .map_err(Error::from)?;
                Ok(Rows::Engine(Box::new(Engine::open(&engine_options, &mut Notices(notice))?)))
            }
        }
    }

    fn vocab(&self) -> usize {
        match self {
            Rows::Engine(engine) => engine.vocab(),
            Rows::File(file) => file.header().vocab,
        }
    }

    fn name(&self) -> String {
        match self {
            Rows::Engine(_) => format!("drafthorse {}", env!("CARGO_PKG_VERSION")),
            Rows::File(file) => file.header().engine.clone(),
        }
    }

    /// Hands `take` the rows of a window that are scored, in order.
    fn window(
        &mut self,
        window: &[TokenId],
        take: &mut dyn FnMut(&[f32]) -> Result<(), PplError>,
    ) -> Result<(), PplError> {
        let scored = windows::scored(window.len());
        match self {
            Rows::File(file) => scored.into_iter().try_for_each(|_| take(file.row()?)),
            Rows::Engine(engine) => {
                let (mut position, mut outcome) = (0, Ok(()));
                engine.logits(window, true, &mut |row| {
                    if outcome.is_ok() && scored.contains(&position) {
                        outcome = take(row);
                    }
                    position += 1;
                    Ok(())
                })?;
                outcome
            }
        }
    }
}

/// Runs everything; `notice` gets what the engine must say, `done` the windows so far and in all.
///
/// # Errors
/// [`PplError`]; a file of logits is left only under its own name when it is whole.
pub fn ppl(
    options: &PplOptions,
    notice: &mut dyn FnMut(&str),
    done: &mut dyn FnMut(usize, usize),
) -> Result<Report, PplError> {
    let mut rows = Rows::open(options, notice)?;
    let windows = windows(options, &rows)?;
    let header = Header::new(rows.vocab(), &windows, rows.name());
    if let Rows::File(file) = &rows {
        file.check(&header)?;
    }
    let mut base = options.kl_base.as_deref().map(LogitsReader::open).transpose()?;
    if let Some(base) = &base {
        base.check(&header)?;
    }
    if let Some(file) = &options.ids_out {
        let words: Vec<String> = windows.ids().iter().map(TokenId::to_string).collect();
        fs::write(file, words.join(" ") + "\n").map_err(|source| PplError::Io {
            action: "write",
            file: file.clone(),
            source,
        })?;
    }
    let mut kept =
        options.logits_out.as_deref().map(|file| LogitsWriter::create(file, &header)).transpose()?;

    let mut scores = Scores::default();
    for (index, window) in windows.iter().enumerate() {
        let mut targets = windows::targets(window).iter();
        rows.window(window, &mut |row| {
            let target = *targets.next().expect("invariant: a target for every scored row") as usize;
            let at = scores.len();
            let not_finite = |engine: &str| PplError::NotFinite { engine: engine.to_owned(), row: at };
            scores.add(row, target).ok_or_else(|| not_finite(&header.engine))?;
            if let Some(base) = &mut base {
                let base_row = base.row()?;
                scores.compare(base_row, row, target).ok_or_else(|| not_finite(&options.base_name()))?;
            }
            kept.as_mut().map_or(Ok(()), |file| file.push(row))
        })?;
        done(index + 1, windows.len());
    }
    kept.map_or(Ok(()), LogitsWriter::finish)?;
    Ok(Report {
        perplexity: scores.perplexity(),
        kl: scores.divergence(),
        engine: header.engine,
        vocab: header.vocab,
        context: header.context,
        windows: header.windows,
        ids_hash: header.ids_hash,
    })
}

impl PplOptions {
    fn base_name(&self) -> String {
        self.kl_base.as_deref().map(|file| file.display().to_string()).unwrap_or_default()
    }
}

fn read(file: &Path) -> Result<String, PplError> {
    fs::read_to_string(file).map_err(|source| PplError::Io { action: "read", file: file.to_owned(), source })
}

/// The windows of the text or of the ids.
fn windows(options: &PplOptions, rows: &Rows) -> Result<Windows, PplError> {
    let (ids, first) = match &options.reading {
        Reading::Ids(file) => {
            let named = |problem| PplError::Usage(format!("{}: {problem}", file.display()));
            (parse_ids(&read(file)?).map_err(named)?, None)
        }
        Reading::Text(file) => match (rows, &options.source) {
            (Rows::Engine(engine), Source::Model { path, .. }) => {
                let tokenizer =
                    engine.tokenizer().ok_or_else(|| Error::NoTokenizer { path: path.clone() })?;
                encoded(tokenizer, &read(file)?).map_err(Error::from)?
            }
            _ => return Err(PplError::Usage("a file of logits has no vocabulary: give --ids".into())),
        },
    };
    if let Some(&token) = ids.iter().find(|id| **id as usize >= rows.vocab()) {
        return Err(Error::TokenOutOfVocabulary { token, vocab: rows.vocab() }.into());
    }
    Windows::cut(ids, (options.context, options.chunks), first)
        .map_err(|problem| PplError::Usage(format!("{}: {problem}", options.reading.file().display())))
}

impl Reading {
    fn file(&self) -> &Path {
        match self {
            Reading::Text(file) | Reading::Ids(file) => file,
        }
    }
}

/// The ids of a text, in which control tokens are text, and what every window begins with.
fn encoded(tokenizer: &Tokenizer, text: &str) -> Result<(Vec<TokenId>, Option<TokenId>), TokenizerError> {
    let options = EncodeOptions { add_special: AddSpecial::Yes, parse_special: ParseSpecial::No };
    let ids = tokenizer.encode_with(text, options)?;
    let first = tokenizer.bos().filter(|bos| ids.first() == Some(bos));
    Ok((ids, first))
}
