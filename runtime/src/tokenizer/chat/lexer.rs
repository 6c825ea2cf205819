//! Where Jinja tags and their tokens begin and end, as minijinja's lexer sees them. Knows no grammar.

/// Splits a tag into its opening delimiter, what is inside, and its closing delimiter, whitespace
/// control included.
pub(super) fn delimiters(tag: &str) -> (&str, &str, &str) {
    let open = if tag[2..].starts_with(['-', '+']) { 3 } else { 2 };
    let end = tag.len() - 2;
    let close = if end > open && tag[..end].ends_with(['-', '+']) { end - 1 } else { end };
    (&tag[..open], &tag[open..close], &tag[close..])
}

/// Where the next tag starts.
pub(super) fn next_tag(source: &str) -> Option<usize> {
    source.as_bytes().windows(2).position(|pair| matches!(pair, b"{%" | b"{{" | b"{#"))
}

/// Where the tag that `source` starts with ends.
pub(super) fn tag_end(source: &str) -> Option<usize> {
    if let Some(comment) = source.strip_prefix("{#") {
        return comment.find("#}").map(|end| end + 4);
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

/// Whether a whole tag is the one-word statement `name`.
pub(super) fn is_statement(tag: &str, name: &str) -> bool {
    tag.starts_with("{%") && tokens(delimiters(tag).1) == [name]
}

/// Where the `{% endraw %}` tag starts.
pub(super) fn end_of_raw(source: &str) -> usize {
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

/// Whether a character belongs to names.
pub(super) fn is_word(character: char) -> bool {
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

/// The tokens of a tag's inside, without spaces.
pub(super) fn tokens(source: &str) -> Vec<&str> {
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

/// Line ends between tokens.
pub(super) fn newlines_outside_strings(source: &str) -> usize {
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
