//! Chat templates: the Jinja program a model file carries, rendered as `transformers` renders it.
//!
//! A template is a program by whoever made the file, so it runs with fuel, a recursion limit and a
//! budget of bytes, sees nothing but the conversation, and a clock only if the caller hands it a
//! date. What Python templates expect beyond Jinja (`raise_exception`, `strftime_now`, `tojson` as
//! `json.dumps`, string methods, `{% generation %}`) is in `python.rs`; limits are in `limits.rs`.

mod guard;
mod json;
mod limits;
mod python;
mod strftime;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Value, context};

pub use strftime::Date;

use super::error::TokenizerError;
use limits::Limits;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant` or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

/// What a template may use beside the messages.
#[derive(Clone, Copy, Debug)]
pub struct RenderOptions<'a> {
    /// Whether the rendering ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// The text of the BOS token; empty where there is none.
    pub bos_token: &'a str,
    /// The text of the EOS token; empty where there is none.
    pub eos_token: &'a str,
    /// Now, for `strftime_now`; without it the template has no clock.
    pub date: Option<Date>,
}

/// Renders a conversation. Encode the result with
/// [`AddSpecial::No`](super::AddSpecial::No): the template writes its own BOS.
///
/// # Errors
/// [`TokenizerError::Template`], one line: the template does not compile, refuses the conversation
/// (`raise_exception`), or needs more time or memory than a template may.
pub fn render(
    template: &str,
    messages: &[Message],
    options: &RenderOptions<'_>,
) -> Result<String, TokenizerError> {
    let limits = Limits::for_messages(messages);
    let source =
        limits.guard_source(&python::without_generation_tags(&python::with_unix_newlines(template)))?;
    let environment = environment(&limits, options.date).map_err(one_line)?;
    let compiled = environment.template_from_str(&source).map_err(one_line)?;
    let turn =
        |message: &Message| context! { role => message.role.as_str(), content => message.content.as_str() };
    let context = context! {
        messages => messages.iter().map(turn).collect::<Vec<Value>>(),
        tools => Value::from(()),
        documents => Value::from(()),
        add_generation_prompt => options.add_generation_prompt,
        bos_token => options.bos_token,
        eos_token => options.eos_token,
    };
    compiled.render(context).map_err(one_line)
}

fn environment(limits: &Limits, date: Option<Date>) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    // As transformers compiles chat templates (`_compile_jinja_template`).
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_debug(false);
    python::install(&mut environment, date);
    limits.install(&mut environment);
    Ok(environment)
}

fn one_line(error: minijinja::Error) -> TokenizerError {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let detail: Vec<&str> = detail.split_whitespace().collect();
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    TokenizerError::Template(format!("{}{line}", super::error::shorten_to(&detail.join(" "), 400)))
}
