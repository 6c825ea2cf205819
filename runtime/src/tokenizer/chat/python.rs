//! What templates written for Python's Jinja expect beyond Jinja itself.

use minijinja::value::{Kwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::json;
use super::strftime::Date;

/// More spaces than anybody indents JSON by.
const INDENT_MAX: usize = 16;

/// Adds the functions and filters `transformers` gives templates, and Python's string methods.
pub(super) fn install(environment: &mut Environment<'static>, date: Option<Date>) {
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("the template refuses: {message}")))
    });
    if let Some(date) = date {
        environment.add_function("strftime_now", move |format: &str| date.format(format));
    }
    environment.add_test("iterable", is_iterable);
}

/// Python's methods of strings, lists and dicts: those of `pycompat`, and a few that templates use
/// beside.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (name, value.as_str()) {
        ("removeprefix", Some(text)) => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        ("removesuffix", Some(text)) => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// The `tojson` filter, refusing to write more than `bytes_max`. Of `json.dumps`' options only
/// `indent` is known; others are an error, not a silent difference.
pub(super) fn to_json(value: &Value, options: &Kwargs, bytes_max: usize) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    if options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson(ensure_ascii=true) is not supported"));
    }
    options.assert_all_used()?;
    json::dumps(value, indent.map(|spaces| spaces.min(INDENT_MAX)), bytes_max)
}

/// As in Python: `none` is not iterable, an undefined value is.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Line ends as Jinja reads them: CRLF and CR are LF.
pub(super) fn with_unix_newlines(template: &str) -> String {
    template.replace("\r\n", "\n").replace('\r', "\n")
}

/// `{% generation %}` marks the assistant's text for training and renders as if it were not there.
/// It becomes an `if true`, so that whitespace control at its ends keeps its meaning.
pub(super) fn without_generation_tags(template: &str) -> String {
    let mut rest = template;
    let mut source = String::with_capacity(template.len());
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        source.push_str(before);
        let Some(end) = tag.find("%}").map(|end| end + 2) else {
            rest = tag;
            break;
        };
        let word = tag[2..end - 2].trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        match word {
            "generation" => source.push_str(&tag[..end].replace(word, "if true")),
            "endgeneration" => source.push_str(&tag[..end].replace(word, "endif")),
            _ => source.push_str(&tag[..end]),
        }
        rest = &tag[end..];
    }
    source.push_str(rest);
    source
}
