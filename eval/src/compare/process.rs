//! One engine's process: its command line, its cage, and what came of it.
//!
//! Both sides are run the same way: a shell moves itself into the cgroup and becomes the engine.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};

use serde::Serialize;

use super::CompareError;
use super::cage::{Cage, CageKind};
use super::machine::{Device, load};
use super::outcome::{Expected, Pass, read_passes};
use super::plan::Run;

/// A run and what was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    #[serde(flatten)]
    pub run: Run,
    /// What was run.
    pub command: String,
    /// Why there are no passes: killed, failed, or not what was asked for.
    pub failure: Option<String>,
    /// Empty after a failure.
    pub passes: Vec<Pass>,
    /// Most memory of the cgroup, page cache included.
    pub peak_bytes: Option<u64>,
    /// Bytes the block device gave to the whole machine meanwhile, loading included.
    pub device_bytes: Option<u64>,
    /// Load of the machine just before.
    pub load_before: Option<f64>,
}

/// Text as one word of a shell.
pub fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A command line with values for `{names}`; values become single words.
///
/// # Errors
/// A name without a value.
pub fn fill(template: &str, values: &[(&str, &str)]) -> Result<String, String> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) =
            after.split_once('}').ok_or_else(|| format!("{template:?}: a {{ without a }}"))?;
        let known = values.iter().find(|(known, _)| *known == name);
        let (_, value) = known.ok_or_else(|| format!("{template:?}: {{{name}}} is not known"))?;
        text.push_str(before);
        text.push_str(&shell_word(value));
        rest = after;
    }
    Ok(text + rest)
}

/// Whether the first word of a command line is a program.
pub fn is_program(command: &str) -> bool {
    let Some(word) = command.split_whitespace().next() else { return false };
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", word]).stdout(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

/// Runs `command` to its end, in a cage of its own where there is a kind.
///
/// # Errors
/// The machine: no cgroup, no shell. An engine that fails is a [`Measured`].
pub fn measure(
    run: &Run,
    command: &str,
    cage_kind: Option<CageKind>,
    device: Option<&Device>,
    expected: &Expected,
) -> Result<Measured, CompareError> {
    let cage = cage_kind.map(|kind| Cage::new(kind, run.limit.bytes)).transpose()?;
    let load_before = load();
    let bytes_before = device.and_then(Device::bytes_read);
    let output = spawn(command, cage.as_ref().map(Cage::procs_file).as_deref())?;
    let bytes_after = device.and_then(Device::bytes_read);
    let killed = cage.as_ref().and_then(Cage::oom_kills).filter(|kills| *kills > 0).is_some();
    let outcome = judge(&output, killed, expected);
    Ok(Measured {
        run: run.clone(),
        command: command.to_owned(),
        failure: outcome.as_ref().err().cloned(),
        passes: outcome.unwrap_or_default(),
        peak_bytes: cage.as_ref().and_then(Cage::peak_bytes),
        device_bytes: bytes_after.zip(bytes_before).map(|(after, before)| after.saturating_sub(before)),
        load_before,
    })
}

fn spawn(command: &str, procs_file: Option<&Path>) -> Result<Output, CompareError> {
    let script = match procs_file {
        Some(_) => format!("echo $$ >\"$0\" || exit 125\nexec {command}"),
        None => format!("exec {command}"),
    };
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).arg(procs_file.unwrap_or(Path::new("sh"))).stdin(Stdio::null());
    shell.output().map_err(|source| CompareError::Machine { what: "cannot start sh".to_owned(), source })
}

fn judge(output: &Output, oom_killed: bool, expected: &Expected) -> Result<Vec<Pass>, String> {
    if !output.status.success() {
        return Err(failure(output.status, oom_killed, &output.stderr));
    }
    read_passes(&String::from_utf8_lossy(&output.stdout), expected)
}

fn failure(status: ExitStatus, oom_killed: bool, stderr: &[u8]) -> String {
    if oom_killed {
        return "killed for want of memory".to_owned();
    }
    let stderr = String::from_utf8_lossy(stderr);
    let last = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message");
    let last: String = last.chars().take(200).collect();
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("killed by signal {signal}: {last}"),
        (None, Some(code)) => format!("exit code {code}: {last}"),
        (None, None) => last,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn names_become_single_words_and_unknown_ones_are_refused() {
        let values = [("model", "a b.gguf"), ("threads", "2")];
        assert_eq!(fill("x -m {model} -t {threads}", &values), Ok("x -m 'a b.gguf' -t 2".into()));
        assert!(fill("x {modle}", &values).unwrap_err().contains("{modle}"));
        assert!(fill("x {model", &values).is_err());
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }

    #[test]
    fn how_a_process_ended_is_said_in_words() {
        let end = |command| {
            let output = Command::new("sh").args(["-c", command]).output().unwrap();
            let expected = Expected { passes: 1, tokens: 1, ids_hash: String::new() };
            judge(&output, false, &expected).unwrap_err()
        };
        assert_eq!(end("echo one >&2; echo two >&2; exit 4"), "exit code 4: two");
        assert_eq!(end("kill -9 $$"), "killed by signal 9: no message");
        assert_eq!(end("true"), "0 passes were reported, 1 asked for");
    }

    #[test]
    fn a_missing_program_is_found_out() {
        assert!(is_program("sh -c true"));
        assert!(!is_program("no-such-program-here --flag"));
        assert!(!is_program(""));
    }
}
