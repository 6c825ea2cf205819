//! `tojson` as `transformers` defines it for templates: `json.dumps` with `ensure_ascii` off, and
//! no escaping of HTML, unlike Jinja's own filter.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Deeper values are refused.
const DEPTH_MAX: usize = 64;

/// `value` as JSON; over several lines when `indent` says by how many spaces.
///
/// # Errors
/// More than `bytes_max` bytes, a value nested too deep, one that JSON has no form for.
pub(super) fn dumps(value: &Value, indent: Option<usize>, bytes_max: usize) -> Result<String, Error> {
    let mut json = Json { text: String::new(), indent, bytes_max };
    json.value(value, 0)?;
    Ok(json.text)
}

struct Json {
    text: String,
    indent: Option<usize>,
    bytes_max: usize,
}

impl Json {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::new(ErrorKind::BadSerialization, "tojson of a value nested too deep"));
        }
        if self.text.len() > self.bytes_max {
            return Err(Error::new(ErrorKind::BadSerialization, "tojson of a value larger than allowed"));
        }
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool if value.is_true() => self.text.push_str("true"),
            ValueKind::Bool => self.text.push_str("false"),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.sequence(value, depth)?,
            ValueKind::Map => self.map(value, depth)?,
            kind => return Err(Error::new(ErrorKind::BadSerialization, format!("tojson of {kind}"))),
        }
        Ok(())
    }

    fn number(&mut self, value: &Value) {
        // Writing to a string cannot fail. Floats keep their ".0".
        let _ = write!(self.text, "{value}");
    }

    fn sequence(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.text.push('[');
        let mut is_empty = true;
        for item in value.try_iter()?.checked() {
            self.separate(&mut is_empty, depth);
            self.value(&item?, depth + 1)?;
        }
        self.close(is_empty, depth, ']');
        Ok(())
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.text.push('{');
        let mut is_empty = true;
        for key in value.try_iter()?.checked() {
            let key = key?;
            self.separate(&mut is_empty, depth);
            self.string(&key.to_string());
            self.text.push_str(": ");
            self.value(&value.get_item(&key)?, depth + 1)?;
        }
        self.close(is_empty, depth, '}');
        Ok(())
    }

    fn separate(&mut self, is_first: &mut bool, depth: usize) {
        match (std::mem::take(is_first), self.indent) {
            (true, None) => {}
            (false, None) => self.text.push_str(", "),
            (is_first, Some(spaces)) => {
                self.text.push_str(if is_first { "\n" } else { ",\n" });
                self.text.extend(std::iter::repeat_n(' ', spaces * (depth + 1)));
            }
        }
    }

    fn close(&mut self, is_empty: bool, depth: usize, bracket: char) {
        if let (false, Some(spaces)) = (is_empty, self.indent) {
            self.text.push('\n');
            self.text.extend(std::iter::repeat_n(' ', spaces * depth));
        }
        self.text.push(bracket);
    }

    fn string(&mut self, string: &str) {
        self.text.push('"');
        for character in string.chars() {
            match character {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{C}' => self.text.push_str("\\f"),
                '\0'..='\u{1F}' => {
                    let _ = write!(self.text, "\\u{:04x}", u32::from(character));
                }
                _ => self.text.push(character),
            }
        }
        self.text.push('"');
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn parse(expression: &str) -> Value {
        minijinja::Environment::new().compile_expression(expression).unwrap().eval(()).unwrap()
    }

    #[test]
    fn json_looks_as_python_writes_it() {
        let value = parse(r#"{"a": [1, 2.0, "<é>\n", true, none], "b": {}}"#);
        assert_eq!(dumps(&value, None, 1000).unwrap(), r#"{"a": [1, 2.0, "<é>\n", true, null], "b": {}}"#);
        let value = parse(r#"{"a": [1], "b": []}"#);
        assert_eq!(dumps(&value, Some(1), 1000).unwrap(), "{\n \"a\": [\n  1\n ],\n \"b\": []\n}");
    }
}
