//! `run`: continue a prompt, streaming the text, then say what it cost.

use std::ops::ControlFlow;

use drafthorse_draft::TokenId;
use drafthorse_runtime::Error;
use drafthorse_runtime::api::{GenerateOptions, Generation, Progress as _};
use drafthorse_runtime::config::Config;
use drafthorse_runtime::engine::Engine;
use drafthorse_runtime::telemetry;
use drafthorse_runtime::tokenizer::{AddSpecial, StreamDecoder};

use super::args::RunArgs;
use super::prompt::Prompt;
use super::session::Session;
use super::slices::Slices;
use super::stats::RunReport;
use super::{chat, explain, output, stats};

/// The command.
pub fn run(args: &RunArgs) -> Result<(), Error> {
    let config = args.config()?;
    // Before minutes of loading: a prompt that is not there, a terminal that is none.
    let prompt = Prompt::find(args, &config)?;
    // Before anything that counts is made.
    let telemetry = (config.run.json || config.run.verbose).then(telemetry::install).transpose();
    let telemetry = telemetry.map_err(|error| Error::Usage(error.to_string()))?;
    let mut session = Session::open(&config)?;
    match prompt {
        Prompt::Chat => chat::run(&mut session, &config),
        Prompt::Text(text) => {
            // A prompt of the settings was not typed just now: it is shown.
            if args.prompt.is_none() && text == config.run.prompt && config.run.stats && !config.run.json {
                output::note(&format!("prompt    {text}"));
            }
            let tokens = encode(&session.engine, &config, &text)?;
            complete(&mut session, &config, (&tokens, telemetry), Slices::new(None))
        }
        Prompt::Tokens(tokens) => {
            complete(&mut session, &config, (&tokens, telemetry), Slices::new(args.slice))
        }
    }
}

/// The ids of a plain text, with what the model wants in front of it.
fn encode(engine: &Engine, config: &Config, text: &str) -> Result<Vec<TokenId>, Error> {
    match engine.encode(text, AddSpecial::Yes)? {
        Some(tokens) => Ok(tokens),
        None => Err(Error::NoTokenizer { path: config.model_path()? }),
    }
}

/// One prompt, one answer.
fn complete(
    session: &mut Session,
    config: &Config,
    (prompt, telemetry): (&[TokenId], Option<telemetry::Handle>),
    mut slices: Slices,
) -> Result<(), Error> {
    let mut writer = TextWriter::new(&session.engine, !config.run.json);
    let mut generation = answer(session, &config.generate_options(), prompt, (&mut writer, &mut slices))?;
    slices.take_out(&mut generation);
    let metrics = telemetry.map(|handle| handle.snapshot());
    if config.run.json {
        return output::print_json(&RunReport::new(&generation, &writer.text, metrics.as_ref()));
    }
    output::print("\n")?;
    if config.run.stats {
        output::note(&stats::block(&generation));
    }
    if config.run.explain {
        output::note(&explain::block(&generation.speculation));
    }
    if let Some(metrics) = metrics {
        output::note(&telemetry::format_block(&metrics));
    }
    Ok(())
}

/// Generates into `writer`, slice by slice; Ctrl-C and a closed stdout end the text between two steps.
pub fn answer(
    session: &mut Session,
    options: &GenerateOptions,
    prompt: &[TokenId],
    (writer, slices): (&mut TextWriter, &mut Slices),
) -> Result<Generation, Error> {
    let Session { engine, screen, interrupt } = session;
    let mut on_tokens = |tokens: &[TokenId]| {
        let shown = writer.push(tokens);
        let waited = slices.advance(tokens.len()).map_err(|error| writer.fail(error));
        if shown.and(waited).is_err() || interrupt.is_asked() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let generation = interrupt.during(|| engine.generate(prompt, options, screen, &mut on_tokens));
    screen.end();
    writer.finish()?;
    generation
}

/// Turns ids into text as they come, and shows it.
pub struct TextWriter {
    /// None for a model without a vocabulary: ids are shown.
    decoder: Option<StreamDecoder>,
    is_shown: bool,
    failed: Option<Error>,
    /// Everything so far.
    pub text: String,
}

impl TextWriter {
    /// A writer for one answer of `engine`.
    pub fn new(engine: &Engine, is_shown: bool) -> TextWriter {
        let decoder = engine.tokenizer().map(|tokenizer| tokenizer.continue_stream());
        TextWriter { decoder, is_shown, failed: None, text: String::new() }
    }

    /// Takes the next ids. After a failure nothing more is written; `finish` returns it.
    fn push(&mut self, tokens: &[TokenId]) -> Result<(), ()> {
        let mut piece = String::new();
        for &token in tokens {
            match &mut self.decoder {
                Some(decoder) => piece.push_str(&decoder.push(token)),
                None => piece.push_str(&format!("{token} ")),
            }
        }
        self.show(&piece)
    }

    /// Nothing more is written; `finish` returns `error`, unless another came before it.
    fn fail(&mut self, error: Error) {
        self.failed.get_or_insert(error);
    }

    fn show(&mut self, piece: &str) -> Result<(), ()> {
        if self.decoder.is_some() {
            self.text.push_str(piece);
        }
        if self.is_shown && !piece.is_empty() && self.failed.is_none() {
            self.failed = output::print(piece).err();
        }
        if self.failed.is_some() { Err(()) } else { Ok(()) }
    }

    /// Writes what was held back (the start of a character) and returns the first failure.
    fn finish(&mut self) -> Result<(), Error> {
        let rest = self.decoder.as_mut().map(StreamDecoder::finish).unwrap_or_default();
        let _ = self.show(&rest);
        self.failed.take().map_or(Ok(()), Err)
    }
}
