//! The interactive chat of `run`: lines in, answers out, a few commands.

use drafthorse_runtime::Error;
use drafthorse_runtime::api::{FinishReason, GenerateOptions, Generation};
use drafthorse_runtime::config::Config;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::conversation::Conversation;
use super::run::{TextWriter, answer};
use super::session::Session;
use super::slices::Slices;
use super::{explain, one_line, output, stats};

const HELP: &str = "/help   this list
/reset  forget the conversation
/stats  what the last answer cost
/exit   leave (Ctrl-D does too); Ctrl-C stops an answer";

/// What a line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line<'a> {
    Nothing,
    Help,
    Reset,
    Stats,
    Exit,
    Unknown(&'a str),
    Say(&'a str),
}

impl Line<'_> {
    fn parse(line: &str) -> Line<'_> {
        match line.trim() {
            "" => Line::Nothing,
            "/help" => Line::Help,
            "/reset" => Line::Reset,
            "/stats" => Line::Stats,
            "/exit" => Line::Exit,
            word if word.starts_with('/') && !word.contains(char::is_whitespace) => Line::Unknown(word),
            _ => Line::Say(line),
        }
    }
}

/// Talks until the user leaves.
pub fn run(session: &mut Session, config: &Config) -> Result<(), Error> {
    let Some(tokenizer) = session.engine.tokenizer() else {
        return Err(Error::NoTokenizer { path: config.model_path()? });
    };
    if tokenizer.chat_template().is_none() {
        output::note("This model has no chat template: your text is continued as it stands.");
    }
    output::note("/help lists the commands.");
    let terminal = |error| Error::Io {
        what: "cannot read the terminal".to_owned(),
        source: std::io::Error::other(error),
    };
    let mut editor = DefaultEditor::new().map_err(terminal)?;
    let mut chat = Chat {
        conversation: Conversation::default(),
        options: config.generate_options(),
        explains: config.run.explain,
        last: None,
    };
    loop {
        match editor.readline("> ") {
            Ok(line) => {
                // The history is a convenience: a line that does not enter it is no error.
                let _ = editor.add_history_entry(&line);
                if !chat.take(session, Line::parse(&line))? {
                    return Ok(());
                }
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(ReadlineError::Interrupted) => output::note("/exit or Ctrl-D leaves"),
            Err(error) => return Err(terminal(error)),
        }
    }
}

struct Chat {
    conversation: Conversation,
    options: GenerateOptions,
    /// Whether every answer is followed by the reasons for its draft length.
    explains: bool,
    last: Option<Generation>,
}

impl Chat {
    /// Does what a line asks for; false when it is to leave.
    fn take(&mut self, session: &mut Session, line: Line<'_>) -> Result<bool, Error> {
        match line {
            Line::Nothing => {}
            Line::Help => output::note(HELP),
            Line::Unknown(word) => output::note(&format!("{word}: no such command; /help lists them")),
            Line::Stats => match &self.last {
                Some(generation) => {
                    output::note(&stats::block(generation));
                    output::note(&explain::block(&generation.speculation));
                }
                None => output::note("nothing was generated yet"),
            },
            Line::Reset => {
                session.engine.reset();
                self.conversation = Conversation::default();
            }
            Line::Exit => return Ok(false),
            Line::Say(text) => self.say(session, text)?,
        }
        Ok(true)
    }

    /// One turn. What goes wrong in it (a disk error, a full context) is told, and the chat goes on;
    /// only a closed stdout ends it.
    fn say(&mut self, session: &mut Session, text: &str) -> Result<(), Error> {
        match self.turn(session, text) {
            Err(error) if error.is_broken_pipe() => Err(error),
            Err(error) => {
                output::complain(&one_line(&error.to_string()));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn turn(&mut self, session: &mut Session, text: &str) -> Result<(), Error> {
        let Some(tokenizer) = session.engine.tokenizer() else { return Ok(()) };
        let prompt = self.conversation.ask(tokenizer, text)?.to_vec();
        let mut writer = TextWriter::new(&session.engine, true);
        let generation = answer(session, &self.options, &prompt, (&mut writer, &mut Slices::default()));
        output::print("\n")?;
        let generation = generation.inspect_err(|_| self.conversation.unasked())?;
        self.conversation.answered(&writer.text, &generation.tokens);
        match generation.finish_reason {
            FinishReason::Context => output::note("The context is full: /reset starts afresh."),
            FinishReason::Length => output::note("(the answer was cut at -n tokens)"),
            FinishReason::Stop | FinishReason::Interrupted => {}
        }
        if self.explains {
            output::note(&explain::block(&generation.speculation));
        }
        self.last = Some(generation);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_text() {
        for (line, expected) in [
            ("", Line::Nothing),
            ("  \t", Line::Nothing),
            (" /exit ", Line::Exit),
            ("/reset", Line::Reset),
            ("/stats", Line::Stats),
            ("/help", Line::Help),
            ("/quit", Line::Unknown("/quit")),
            ("/usr/bin is a folder", Line::Say("/usr/bin is a folder")),
            (" an indented line", Line::Say(" an indented line")),
        ] {
            assert_eq!(Line::parse(line), expected);
        }
    }
}
