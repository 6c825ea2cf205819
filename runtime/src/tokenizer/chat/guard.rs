//! Rewrites a template so that whatever can make a value large asks the budget first.
//!
//! Fuel bounds the number of instructions, not their size: forty times `s = s ~ s` are a terabyte.
//! Jinja's operators cannot be hooked, so the source is rewritten before it is compiled: `a + b`,
//! `a ~ b` and `a * b` become calls of [`ADD`], [`CONCAT`] and [`MULTIPLY`], the results of filters,
//! calls and slices go through [`KEEP`], lists, maps, tuples and what `set` stores through [`NEST`],
//! and what a loop runs over through [`LOOP`] with the bytes of text in its body. `limits.rs` defines these functions. Text between tags, raw
//! blocks, comments, line numbers and whitespace control stay as they are. The grammar is Jinja's
//! as minijinja parses it; what is not understood is passed on for minijinja to refuse.

pub(super) const ADD: &str = "__add";
pub(super) const CONCAT: &str = "__concat";
pub(super) const MULTIPLY: &str = "__multiply";
pub(super) const KEEP: &str = "__keep";
pub(super) const NEST: &str = "__nest";
pub(super) const LOOP: &str = "__loop";

/// Deeper brackets are refused; minijinja itself goes to 150 levels of its own.
const DEPTH_MAX: usize = 40;

/// More operators, filters, calls and attributes in one tag are refused, as are more `elif` in a
/// template: each makes minijinja recurse once more, most without a limit of its own.
const OPERATORS_MAX: usize = 500;

/// Words inside expressions that are no operands.
const OPERATOR_WORDS: &[&str] = &["and", "or", "not", "in", "is", "if", "else"];

/// The rewritten template.
///
/// # Errors
/// What is wrong, in a few words: brackets nested too deep, a recursive loop.
pub(super) fn rewrite(template: &str) -> Result<String, String> {
    let mut output = Output { segments: Vec::new(), loops: Vec::new(), text_bytes: 0, elifs: 0 };
    let mut rest = template;
    while let Some(start) = rest.find("{%").into_iter().chain(rest.find("{{")).chain(rest.find("{#")).min() {
        let (text, tag) = rest.split_at(start);
        output.text(text);
        // Left to minijinja, the rest would run unguarded if the two disagreed on where tags end.
        let end = tag_end(tag).ok_or("a tag is not closed")?;
        output.tag(&tag[..end])?;
        rest = &tag[end..];
        if is_statement(&tag[..end], "raw") {
            let end = end_of_raw(rest);
            output.text(&rest[..end]);
            rest = &rest[end..];
        }
    }
    output.text(rest);
    Ok(output.segments.concat())
}

/// The rewritten template so far.
struct Output {
    segments: Vec<String>,
    /// For each open loop: the segment that takes the size of its body, and the text before it.
    loops: Vec<(usize, usize)>,
    text_bytes: usize,
    elifs: usize,
}

impl Output {
    fn text(&mut self, text: &str) {
        self.text_bytes += text.len();
        self.segments.push(text.to_owned());
    }

    /// A whole tag, delimiters included.
    fn tag(&mut self, tag: &str) -> Result<(), String> {
        let (open, inner, close) = delimiters(tag);
        if open == "{#" {
            self.segments.push(tag.to_owned());
            return Ok(());
        }
        let is_statement = open.starts_with("{%");
        let tokens = tokens(inner);
        if tokens.iter().filter(|token| is_operator(token)).count() > OPERATORS_MAX {
            return Err(format!("more than {OPERATORS_MAX} operators in one tag"));
        }
        let mut parser = Parser { tokens, at: 0, depth: 0 };
        let keyword = if is_statement { parser.next() } else { None };
        self.segments.push(format!("{open} {}", keyword.unwrap_or_default()));
        match keyword {
            Some("for") => self.loop_head(&mut parser)?,
            Some("endfor") => self.loop_end(),
            Some("elif") => self.elifs += 1,
            Some("macro" | "call" | "filter" | "raw" | "endraw") => self.segments.push(parser.verbatim()),
            Some("set") => self.segments.push(parser.assignment()?),
            _ => {}
        }
        if self.elifs > OPERATORS_MAX {
            return Err(format!("more than {OPERATORS_MAX} elif"));
        }
        let rest = parser.sequence(None)?;
        let lines = "\n".repeat(newlines_outside_strings(inner));
        self.segments.push(format!(" {rest} {lines}{close}"));
        Ok(())
    }

    /// `target in values [if condition]`: the values go through [`LOOP`].
    fn loop_head(&mut self, parser: &mut Parser<'_>) -> Result<(), String> {
        let target = parser.verbatim_until("in");
        parser.next();
        let values = parser.until(&["if", "recursive"])?;
        if parser.tokens[parser.at..].contains(&"recursive") {
            return Err("recursive loops are not supported".to_owned());
        }
        self.segments.push(format!(" {target} in {LOOP}(({values}), "));
        self.loops.push((self.segments.len(), self.text_bytes));
        self.segments.push("0".to_owned());
        self.segments.push(")".to_owned());
        Ok(())
    }

    fn loop_end(&mut self) {
        if let Some((segment, before)) = self.loops.pop() {
            self.segments[segment] = (self.text_bytes - before).to_string();
        }
    }
}

/// Splits a tag into its opening delimiter, what is inside, and its closing delimiter, whitespace
/// control included.
fn delimiters(tag: &str) -> (&str, &str, &str) {
    let open = if tag[2..].starts_with(['-', '+']) { 3 } else { 2 };
    let end = tag.len() - 2;
    let close = if end > open && tag[..end].ends_with(['-', '+']) { end - 1 } else { end };
    (&tag[..open], &tag[open..close], &tag[close..])
}

/// Where the tag that `source` starts with ends.
fn tag_end(source: &str) -> Option<usize> {
    if source.starts_with("{#") {
        return source.find("#}").map(|end| end + 2);
    }
    let close = if source.starts_with("{%") { "%}" } else { "}}" };
    let (mut at, mut depth) = (2, 0usize);
    while at < source.len() {
        let rest = &source[at..];
        if depth == 0 && rest.starts_with(close) {
            return Some(at + 2);
        }
        let token = token_len(rest);
        match &rest[..token] {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += token;
    }
    None
}

fn is_statement(tag: &str, name: &str) -> bool {
    tag.starts_with("{%") && tokens(delimiters(tag).1) == [name]
}

/// Where the `{% endraw %}` tag starts.
fn end_of_raw(source: &str) -> usize {
    let starts = source.match_indices("{%").map(|(start, _)| start);
    let is_end = |&start: &usize| {
        source[start + 2..].trim_start_matches(['-', '+']).trim_start().starts_with("endraw")
    };
    starts.into_iter().find(is_end).unwrap_or(source.len())
}

/// Length of the token or the run of spaces that `source` starts with; at least one character.
fn token_len(source: &str) -> usize {
    let Some(first) = source.chars().next() else { return 0 };
    let run = |is_in: fn(char) -> bool| source.find(|c: char| !is_in(c)).unwrap_or(source.len());
    match first {
        '\'' | '"' => string_len(source, first),
        '0'..='9' => number_len(source),
        _ if first.is_whitespace() => run(char::is_whitespace),
        _ if is_word(first) => run(is_word),
        _ if ["**", "//", "==", "!=", "<=", ">="].iter().any(|operator| source.starts_with(operator)) => 2,
        _ => first.len_utf8(),
    }
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn string_len(source: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, character) in source.char_indices().skip(1) {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    source.len()
}

/// `12`, `1_000`, `1.5`, `1e5`, `1.5e-7`.
fn number_len(source: &str) -> usize {
    let bytes = source.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let goes_on = match byte {
            b'.' => is_digit(at + 1),
            b'-' | b'+' => matches!(bytes[at - 1], b'e' | b'E') && is_digit(at + 1),
            _ => byte.is_ascii_alphanumeric() || byte == b'_',
        };
        if !goes_on {
            break;
        }
        at += 1;
    }
    at
}

fn tokens(source: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while !rest.is_empty() {
        let (token, after) = rest.split_at(token_len(rest));
        if !token.trim().is_empty() {
            tokens.push(token);
        }
        rest = after;
    }
    tokens
}

fn newlines_outside_strings(source: &str) -> usize {
    let mut rest = source;
    let mut lines = 0;
    while !rest.is_empty() {
        let (token, after) = rest.split_at(token_len(rest));
        if token.trim().is_empty() {
            lines += token.matches('\n').count();
        }
        rest = after;
    }
    lines
}

/// Reads the tokens of one tag and writes them with the guards in place.
struct Parser<'t> {
    tokens: Vec<&'t str>,
    at: usize,
    depth: usize,
}

impl<'t> Parser<'t> {
    fn peek(&self) -> Option<&'t str> {
        self.tokens.get(self.at).copied()
    }

    fn next(&mut self) -> Option<&'t str> {
        let token = self.peek()?;
        self.at += 1;
        Some(token)
    }

    fn take(&mut self, token: &str) -> bool {
        let is_next = self.peek() == Some(token);
        self.at += usize::from(is_next);
        is_next
    }

    /// Everything left, as it stands.
    fn verbatim(&mut self) -> String {
        let rest = &self.tokens[self.at..];
        self.at = self.tokens.len();
        format!(" {}", rest.join(" "))
    }

    /// Everything before `token`, as it stands.
    fn verbatim_until(&mut self, token: &str) -> String {
        let start = self.at;
        while self.peek().is_some_and(|next| next != token) {
            self.at += 1;
        }
        self.tokens[start..self.at].join(" ")
    }

    /// What follows `set`: `target = value`, or a block's target and filters, left alone.
    fn assignment(&mut self) -> Result<String, String> {
        let target = self.verbatim_until("=");
        if !self.take("=") {
            return Ok(format!(" {target}"));
        }
        let value = self.sequence(None)?;
        // What becomes an attribute is checked as part of a list, where no namespace may stand.
        match target.contains('.') {
            true => Ok(format!(" {target} = {NEST}([({value})])[0]")),
            false => Ok(format!(" {target} = {NEST}(({value}))")),
        }
    }

    /// Expressions and what stands between them, to the end or to one of the words.
    fn until(&mut self, words: &[&str]) -> Result<String, String> {
        let mut written = Vec::new();
        while let Some(token) = self.peek() {
            if words.contains(&token) {
                break;
            }
            written.push(self.item()?);
        }
        Ok(written.join(" "))
    }

    /// Expressions and what stands between them, to the closing bracket or the end.
    fn sequence(&mut self, close: Option<&str>) -> Result<String, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("brackets nested more than {DEPTH_MAX} deep"));
        }
        let mut written = Vec::new();
        while let Some(token) = self.peek() {
            if Some(token) == close {
                break;
            }
            written.push(self.item()?);
        }
        self.depth -= 1;
        Ok(written.join(" "))
    }

    fn item(&mut self) -> Result<String, String> {
        match self.peek() {
            Some(token) if is_operand(token) => self.sum(),
            _ => Ok(self.next().unwrap_or_default().to_owned()),
        }
    }

    fn sum(&mut self) -> Result<String, String> {
        self.chain(&["+", "-"], ADD, "+", Parser::concatenation)
    }

    fn concatenation(&mut self) -> Result<String, String> {
        self.chain(&["~"], CONCAT, "~", Parser::product)
    }

    fn product(&mut self) -> Result<String, String> {
        self.chain(&["*", "/", "//", "%"], MULTIPLY, "*", Parser::power)
    }

    /// Operands of one precedence, from the left. A run of the guarded operator is one call, so
    /// that a long sum does not become a deep nest.
    fn chain(
        &mut self,
        operators: &[&str],
        guard: &str,
        guarded: &str,
        operand: fn(&mut Parser<'t>) -> Result<String, String>,
    ) -> Result<String, String> {
        let mut arguments = vec![operand(self)?];
        let call = |arguments: &mut Vec<String>| match arguments.len() {
            1 => arguments.remove(0),
            _ => format!("{guard}({})", std::mem::take(arguments).join(", ")),
        };
        while let Some(operator) = self.peek().filter(|token| operators.contains(token)) {
            self.at += 1;
            let right = operand(self)?;
            if operator == guarded {
                arguments.push(right);
            } else {
                let left = call(&mut arguments);
                arguments = vec![format!("{left} {operator} {right}")];
            }
        }
        Ok(call(&mut arguments))
    }

    fn power(&mut self) -> Result<String, String> {
        let mut written = self.filtered()?;
        while self.take("**") {
            written = format!("{written} ** {}", self.filtered()?);
        }
        Ok(written)
    }

    /// An operand with its filters and tests.
    fn filtered(&mut self) -> Result<String, String> {
        let mut written = self.negated()?;
        loop {
            if self.take("|") {
                let name = self.dotted_name();
                let arguments = if self.take("(") { self.bracket("(", ")")? } else { String::new() };
                written = format!("{KEEP}({written} | {name}{arguments})");
            } else if self.take("is") {
                written = format!("{written} is {}", self.test()?);
            } else {
                return Ok(written);
            }
        }
    }

    /// What follows `is`.
    fn test(&mut self) -> Result<String, String> {
        let negation = if self.take("not") { "not " } else { "" };
        let name = self.dotted_name();
        let argument = match self.peek() {
            Some("(") => {
                self.at += 1;
                self.bracket("(", ")")?
            }
            Some(token) if is_operand(token) => format!(" {}", self.negated()?),
            _ => String::new(),
        };
        Ok(format!("{negation}{name}{argument}"))
    }

    fn negated(&mut self) -> Result<String, String> {
        let mut minus = String::new();
        while self.take("-") {
            minus.push_str("- ");
        }
        Ok(minus + &self.postfixed()?)
    }

    /// A name, literal or bracket with attributes, items and calls behind it.
    fn postfixed(&mut self) -> Result<String, String> {
        let mut written = match self.next() {
            Some("(") if self.has_own(",") => format!("{NEST}({})", self.bracket("(", ")")?),
            Some("(") => self.bracket("(", ")")?,
            Some("[") => format!("{NEST}({})", self.bracket("[", "]")?),
            Some("{") => format!("{NEST}({})", self.bracket("{", "}")?),
            token => token.unwrap_or_default().to_owned(),
        };
        loop {
            match self.peek() {
                Some(".") => {
                    self.at += 1;
                    written = format!("{written}.{}", self.next().unwrap_or_default());
                }
                Some("(") => {
                    self.at += 1;
                    written = format!("{KEEP}({written}{})", self.bracket("(", ")")?);
                }
                Some("[") => {
                    self.at += 1;
                    let is_slice = self.has_own(":");
                    let item = format!("{written}{}", self.bracket("[", "]")?);
                    written = if is_slice { format!("{KEEP}({item})") } else { item };
                }
                _ => return Ok(written),
            }
        }
    }

    /// The rest of a bracket whose opening was just read.
    fn bracket(&mut self, open: &str, close: &str) -> Result<String, String> {
        let inner = self.sequence(Some(close))?;
        let close = self.next().unwrap_or_default();
        Ok(format!("{open}{inner}{close}"))
    }

    /// Whether the bracket whose opening was just read holds `token` itself, not in a bracket
    /// within.
    fn has_own(&self, wanted: &str) -> bool {
        let mut depth = 0usize;
        for &token in &self.tokens[self.at..] {
            match token {
                "(" | "[" | "{" => depth += 1,
                _ if token == wanted && depth == 0 => return true,
                ")" | "]" | "}" if depth == 0 => return false,
                ")" | "]" | "}" => depth -= 1,
                _ => {}
            }
        }
        false
    }

    fn dotted_name(&mut self) -> String {
        let mut name = self.next().unwrap_or_default().to_owned();
        while self.take(".") {
            name = format!("{name}.{}", self.next().unwrap_or_default());
        }
        name
    }
}

/// Anything that is no name, number, string, separator or closing bracket.
fn is_operator(token: &str) -> bool {
    let is_plain = |c: char| is_word(c) || matches!(c, '\'' | '"' | ',' | ':' | ')' | ']' | '}' | '{');
    OPERATOR_WORDS.contains(&token) || (token != "=" && !token.starts_with(is_plain))
}

fn is_operand(token: &str) -> bool {
    let starts_operand = |c: char| is_word(c) || matches!(c, '\'' | '"' | '(' | '[' | '{' | '-');
    token.starts_with(starts_operand) && !OPERATOR_WORDS.contains(&token)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn check(template: &str, expected: &str) {
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeeze(&rewrite(template).unwrap()), squeeze(expected), "{template}");
    }

    #[test]
    fn operators_become_calls_with_their_precedence() {
        check("{{ a + b * c ~ d }}", "{{ __add(a, __concat(__multiply(b, c), d)) }}");
        check("{{- a + b + c - d + e -}}", "{{- __add(__add(a, b, c) - d, e) -}}");
        check("{{ (a + b) * -c ** 2 }}", "{{ __multiply((__add(a, b)), - c ** 2) }}");
        check(
            "{{ a + b if c == d + 1 else e.f + 'x' }}",
            "{{ __add(a, b) if c == __add(d, 1) else __add(e.f, 'x') }}",
        );
        check(
            "{{ a ~ b is string and not c + d in e }}",
            "{{ __concat(a, b is string) and not __add(c, d) in e }}",
        );
    }

    #[test]
    fn filters_calls_and_slices_are_kept_and_items_are_not() {
        check(
            "{{ a.b[0].c('x', y=1 + 2) | trim }}",
            "{{ __keep(__keep(a.b[0].c('x' , y = __add(1, 2))) | trim) }}",
        );
        check("{{ a[1:].b }}", "{{ __keep(a[1 :]).b }}");
        check("{{ {'a': b + 1}['a'] }}", "{{ __nest({'a' : __add(b, 1)})['a'] }}");
        check("{{ [(a), (a, b)] }}", "{{ __nest([(a) , __nest((a , b))]) }}");
    }

    #[test]
    fn statements_keep_their_form() {
        check("{% set a = b ~ c %}", "{% set a = __nest((__concat(b, c))) %}");
        check("{% set (a, b.c) = d, e %}", "{% set ( a , b . c ) = __nest([(d , e)])[0] %}");
        check("{% set a, b = d, e %}", "{% set a , b = __nest((d , e)) %}");
        check("{%- set a | upper -%}x{%- endset -%}", "{%- set a | upper -%}x{%- endset -%}");
        check("{% macro m(a, b=1) %}{% endmacro %}", "{% macro m ( a , b = 1 ) %}{% endmacro %}");
        check(
            "{% for a, b in c + d if a %}four{% endfor %}",
            "{% for a , b in __loop((__add(c, d)), 4) if a %}four{% endfor %}",
        );
        check("{% raw %}{{ a + b }}{% endraw %}{# a + b #}", "{% raw %}{{ a + b }}{% endraw %}{# a + b #}");
        check("text {{ '}}' + \"\\\"%}\" }} {", "text {{ __add('}}', \"\\\"%}\") }} {");
    }

    #[test]
    fn line_numbers_stay() {
        let rewritten = rewrite("a\n{{ b\n + c }}\n{% if\n\n x %}\n{{ '\n' }}").unwrap();
        assert_eq!(rewritten.matches('\n').count(), 7);
    }

    #[test]
    fn deep_nests_and_recursive_loops_are_refused() {
        assert!(rewrite(&format!("{{{{ {} }}}}", "(".repeat(100_000))).is_err());
        assert!(rewrite("{% for a in b recursive %}{{ loop(a) }}{% endfor %}").is_err());
    }
}
