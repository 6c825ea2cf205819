//! stdout and stderr: results on the one, everything else on the other.
//!
//! Owns the writing and the naming of what failed; a reader that has gone (`| head`) is told apart in
//! `mod.rs`. It must not know what is written.

use std::io::{self, Read as _, Write as _};

use drafthorse_runtime::Error;
use serde::Serialize;

/// Longest text read from stdin.
const STDIN_BYTES_MAX: u64 = 64 << 20;

/// Writes to stdout and flushes, so that text appears as it is generated.
pub fn print(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(failed)
}

/// Writes one JSON object and a line end to stdout.
pub fn print_json(value: &impl Serialize) -> Result<(), Error> {
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    serde_json::to_writer(&mut stdout, value).map_err(|error| failed(error.into()))?;
    stdout.write_all(b"\n").and_then(|()| stdout.flush()).map_err(failed)
}

/// A value as JSON text.
pub fn json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| failed(error.into()))
}

/// Writes a line to stderr. Nobody can be told when that fails.
pub fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes an error or a notice to stderr.
pub fn complain(line: &str) {
    note(&format!("drafthorse: {line}"));
}

/// All of stdin.
pub fn read_stdin() -> Result<String, Error> {
    let mut text = String::new();
    let read = io::stdin().lock().take(STDIN_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|source| Error::Io { what: "cannot read stdin".to_owned(), source })?;
    if text.len() as u64 > STDIN_BYTES_MAX {
        return super::usage(&format!("stdin: more than {STDIN_BYTES_MAX} bytes of prompt"));
    }
    Ok(text)
}

fn failed(source: io::Error) -> Error {
    Error::Io { what: "cannot write to stdout".to_owned(), source }
}
