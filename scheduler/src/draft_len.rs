//! Who sets the draft length: the user's word for it, in configuration files and on the command line.
//!
//! Owns [`DraftLen`], its spelling (`auto` or a number) and nothing of what `auto` does.

use crate::SchedulerError;

/// Who sets the draft length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "DraftLenText", into = "DraftLenText")]
pub enum DraftLen {
    /// The controller. Written `auto`.
    Auto,
    /// The user: always this many. Written as a number; 0 switches drafting off.
    Fixed(usize),
}

/// How a configuration file writes a [`DraftLen`]: a number or a word.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
enum DraftLenText {
    Number(usize),
    Word(String),
}

impl std::str::FromStr for DraftLen {
    type Err = SchedulerError;

    fn from_str(text: &str) -> Result<DraftLen, SchedulerError> {
        let refused = || SchedulerError::Setting {
            field: "draft_len",
            value: text.to_owned(),
            limits: "auto or a number of tokens".to_owned(),
        };
        if text == "auto" {
            Ok(DraftLen::Auto)
        } else {
            text.parse().map(DraftLen::Fixed).map_err(|_| refused())
        }
    }
}

impl std::fmt::Display for DraftLen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DraftLen::Auto => f.write_str("auto"),
            DraftLen::Fixed(draft_len) => write!(f, "{draft_len}"),
        }
    }
}

impl TryFrom<DraftLenText> for DraftLen {
    type Error = SchedulerError;

    fn try_from(text: DraftLenText) -> Result<DraftLen, SchedulerError> {
        match text {
            DraftLenText::Number(draft_len) => Ok(DraftLen::Fixed(draft_len)),
            DraftLenText::Word(word) => word.parse(),
        }
    }
}

impl From<DraftLen> for DraftLenText {
    fn from(mode: DraftLen) -> DraftLenText {
        match mode {
            DraftLen::Auto => DraftLenText::Word("auto".to_owned()),
            DraftLen::Fixed(draft_len) => DraftLenText::Number(draft_len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde::de::value::{Error, StrDeserializer, U64Deserializer};

    #[test]
    fn it_is_written_as_auto_or_a_number() {
        for (text, mode) in [("auto", DraftLen::Auto), ("0", DraftLen::Fixed(0)), ("7", DraftLen::Fixed(7))] {
            assert_eq!(text.parse::<DraftLen>(), Ok(mode));
            assert_eq!(mode.to_string(), text);
        }
        for wrong in ["", "Auto", "-1", "1.5", "many"] {
            let error = wrong.parse::<DraftLen>().expect_err(wrong).to_string();
            assert!(error.starts_with("draft_len") && error.contains("auto or a number"), "{error}");
        }
    }

    #[test]
    fn configuration_files_write_a_number_or_a_word() {
        let word = DraftLen::deserialize(StrDeserializer::<Error>::new("auto"));
        let number = DraftLen::deserialize(U64Deserializer::<Error>::new(3));
        assert_eq!((word, number), (Ok(DraftLen::Auto), Ok(DraftLen::Fixed(3))));
        assert!(DraftLen::deserialize(StrDeserializer::<Error>::new("often")).is_err());
    }
}
