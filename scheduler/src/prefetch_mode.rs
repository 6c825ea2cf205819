//! The prefetch setting: `auto`, `on` or `off`.
//!
//! Owns [`PrefetchMode`] and how it is written, on a command line and in a configuration file. What
//! `auto` decides belongs to the prefetch controller.

use crate::SchedulerError;

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrefetchMode {
    /// On where it pays.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl std::str::FromStr for PrefetchMode {
    type Err = SchedulerError;

    fn from_str(text: &str) -> Result<PrefetchMode, SchedulerError> {
        match text {
            "auto" => Ok(PrefetchMode::Auto),
            "on" => Ok(PrefetchMode::On),
            "off" => Ok(PrefetchMode::Off),
            _ => Err(SchedulerError::Setting {
                field: "prefetch",
                value: text.to_owned(),
                limits: "auto, on or off".to_owned(),
            }),
        }
    }
}

impl std::fmt::Display for PrefetchMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PrefetchMode::Auto => "auto",
            PrefetchMode::On => "on",
            PrefetchMode::Off => "off",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde::de::value::{Error, StrDeserializer};

    #[test]
    fn it_is_written_as_auto_on_or_off() {
        for (text, mode) in
            [("auto", PrefetchMode::Auto), ("on", PrefetchMode::On), ("off", PrefetchMode::Off)]
        {
            assert_eq!(text.parse::<PrefetchMode>(), Ok(mode));
            assert_eq!(mode.to_string(), text);
            assert_eq!(PrefetchMode::deserialize(StrDeserializer::<Error>::new(text)), Ok(mode));
        }
        let error = "sometimes".parse::<PrefetchMode>().expect_err("no such mode").to_string();
        assert!(error.starts_with("prefetch") && error.contains("auto, on or off"), "{error}");
        assert!(PrefetchMode::deserialize(StrDeserializer::<Error>::new("On")).is_err());
    }
}
