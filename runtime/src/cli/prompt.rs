//! Where the prompt comes from: ids, a flag, the settings, stdin, or a chat.

use std::io::IsTerminal as _;

use drafthorse_draft::TokenId;
use drafthorse_runtime::Error;
use drafthorse_runtime::config::Config;

use super::args::RunArgs;
use super::output;

/// What `run` is to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Ids as they are.
    Tokens(Vec<TokenId>),
    /// Text.
    Text(String),
    /// Whatever the user types.
    Chat,
}

impl Prompt {
    /// Decides, and reads stdin if that is where the prompt is.
    pub fn find(args: &RunArgs, config: &Config) -> Result<Prompt, Error> {
        match Prompt::stated(args, config) {
            Some(Prompt::Text(text)) if text == "-" && args.prompt.is_some() => piped(),
            Some(prompt) => Ok(prompt),
            None if !std::io::stdin().is_terminal() => piped(),
            None if config.run.json => super::usage("--json needs a prompt: give -p or --tokens"),
            None => Ok(Prompt::Chat),
        }
    }

    /// The prompt of flags or settings, if there is one.
    fn stated(args: &RunArgs, config: &Config) -> Option<Prompt> {
        let tokens = args.tokens.clone().map(Prompt::Tokens);
        let of_settings = Some(&config.run.prompt).filter(|text| !text.is_empty());
        tokens.or_else(|| args.prompt.as_ref().or(of_settings).cloned().map(Prompt::Text))
    }
}

fn piped() -> Result<Prompt, Error> {
    let text = output::read_stdin()?;
    if text.is_empty() {
        return super::usage("stdin: the prompt is empty; give -p, --tokens, or a text on stdin");
    }
    Ok(Prompt::Text(text))
}
