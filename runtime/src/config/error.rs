//! The ways a setting can be wrong, each said in one line that names the file and key, or the flag.

use std::path::PathBuf;

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file given with `--config` cannot be read.
    #[error("config file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is larger than any settings are.
    #[error("config file {}: more than {limit_bytes} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit_bytes: u64,
    },
    /// Not TOML.
    #[error("{origin}: line {line}: {message}")]
    Syntax {
        /// The file.
        origin: String,
        /// Line, from 1.
        line: usize,
        /// What the parser expected.
        message: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key {key}{}", suggestion(nearest.as_deref()))]
    UnknownKey {
        /// The file.
        origin: String,
        /// `section.key` as written.
        key: String,
        /// The existing key most like it.
        nearest: Option<String>,
    },
    /// A section that does not exist.
    #[error("{origin}: unknown section [{section}]{}", suggestion(nearest.as_deref()))]
    UnknownSection {
        /// The file.
        origin: String,
        /// Its name.
        section: String,
        /// The existing section most like it.
        nearest: Option<String>,
    },
    /// A value of the wrong kind.
    #[error("{place} = {value}: {reason}")]
    BadValue {
        /// File and key, or the flag.
        place: String,
        /// The value as written.
        value: String,
        /// What was expected.
        reason: String,
    },
    /// A value beyond its limits.
    #[error("{place} = {value}: must be {limits}")]
    OutOfRange {
        /// File and key, or the flag.
        place: String,
        /// The value as written.
        value: String,
        /// The limits.
        limits: String,
    },
    /// The program was built in a place that is gone, or without the demo pair.
    #[error("the demo pair is not there: {}: give a MODEL", path.display())]
    DemoMissing {
        /// The file looked for.
        path: PathBuf,
    },
    /// Two settings that contradict each other.
    #[error("{0}")]
    Conflict(String),
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}
