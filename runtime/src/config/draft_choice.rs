//! `draft.source` and `--draft`: one drafter, or several in the order in which they are asked.
//!
//! Owns the spelling: a name, a path, `script:FILE,key=value,...`, and lists of these with commas between or
//! as a TOML array (in which a path may hold commas). It must not know whether a file is there.

use std::fmt::Display;
use std::str::FromStr;

use drafthorse_draft::{ScriptConfidence, ScriptConfig};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use toml::Value;

use crate::api::ScriptChoice;

const SCRIPT: &str = "script:";
/// What may follow a script's file.
const SCRIPT_KEYS: [&str; 4] = ["accept", "us", "seed", "confidence"];

/// Which drafter to use.
#[derive(Clone, Debug, PartialEq)]
pub enum DraftChoice {
    /// No drafting.
    None,
    /// The n-gram drafter.
    Ngram,
    /// The suffix drafter.
    Suffix,
    /// The scripted drafter of measurements.
    Script(ScriptChoice),
    /// The prediction head in the target's own file.
    Mtp,
    /// The demo pair's draft.
    Demo,
    /// A GGUF.
    Path(std::path::PathBuf),
    /// Two or more of those above but the first.
    List(Vec<DraftChoice>),
}

impl<'de> Deserialize<'de> for DraftChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words = match Value::deserialize(deserializer)? {
            Value::String(text) => split(&text),
            Value::Array(items) => words(items).map_err(D::Error::custom)?,
            other => {
                return Err(D::Error::custom(format!(
                    "expected a drafter or a list of them, found {}",
                    other.type_str()
                )));
            }
        };
        list(&words).map_err(D::Error::custom)
    }
}

/// The drafters of a list with commas; the settings of a script stay with it.
fn split(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for part in text.split(',') {
        let is_setting = part.split_once('=').is_some_and(|(key, _)| SCRIPT_KEYS.contains(&key));
        match words.last_mut().filter(|last| is_setting && last.starts_with(SCRIPT)) {
            Some(script) => *script = format!("{script},{part}"),
            None => words.push(part.to_owned()),
        }
    }
    words
}

fn words(items: Vec<Value>) -> Result<Vec<String>, String> {
    let word = |item: Value| match item {
        Value::String(text) => Ok(text),
        other => Err(format!("expected a list of drafters, found {} in it", other.type_str())),
    };
    items.into_iter().map(word).collect()
}

fn list(words: &[String]) -> Result<DraftChoice, String> {
    let mut choices = words.iter().map(|word| single(word)).collect::<Result<Vec<_>, _>>()?;
    match choices.len() {
        0 => Err("expected a drafter, found an empty list".to_owned()),
        1 => Ok(choices.remove(0)),
        _ => check_list(&choices).map(|()| DraftChoice::List(choices)),
    }
}

fn single(word: &str) -> Result<DraftChoice, String> {
    if let Some(rest) = word.strip_prefix(SCRIPT) {
        return script(rest).map(DraftChoice::Script);
    }
    Ok(match word {
        "" => return Err("expected a drafter, found an empty name".to_owned()),
        "none" => DraftChoice::None,
        "ngram" => DraftChoice::Ngram,
        "suffix" => DraftChoice::Suffix,
        "mtp" => DraftChoice::Mtp,
        "demo" => DraftChoice::Demo,
        _ => DraftChoice::Path(word.into()),
    })
}

/// What is in no use at its place of the list is refused.
fn check_list(choices: &[DraftChoice]) -> Result<(), String> {
    let is_model =
        |choice: &DraftChoice| matches!(choice, DraftChoice::Demo | DraftChoice::Mtp | DraftChoice::Path(_));
    let (_, before) = choices.split_last().expect("invariant: a list has two members or more");
    if choices.contains(&DraftChoice::None) {
        return Err("\"none\" stands alone".to_owned());
    }
    if before.iter().any(is_model) {
        return Err("a draft model always has a guess: one at most, and last in the list".to_owned());
    }
    match (1..choices.len()).any(|index| choices[..index].contains(&choices[index])) {
        true => Err("a drafter is named twice".to_owned()),
        false => Ok(()),
    }
}

/// `FILE[,accept=0.8][,us=500][,seed=1][,confidence=flat|split]`
fn script(text: &str) -> Result<ScriptChoice, String> {
    let mut parts = text.split(',');
    let path = parts.next().unwrap_or_default();
    if path.is_empty() {
        return Err("script: names no file".to_owned());
    }
    let mut config =
        ScriptConfig { accept: 1.0, us_per_token: 0, seed: 0, confidence: ScriptConfidence::Flat };
    for part in parts {
        match part.split_once('=') {
            Some(("accept", value)) => config.accept = number(part, value)?,
            Some(("us", value)) => config.us_per_token = number(part, value)?,
            Some(("seed", value)) => config.seed = number(part, value)?,
            Some(("confidence", "flat")) => config.confidence = ScriptConfidence::Flat,
            Some(("confidence", "split")) => config.confidence = ScriptConfidence::Split,
            Some(("confidence", _)) => return Err(format!("script: {part}: expected flat or split")),
            _ => return Err(format!("script: {part:?} is none of {}", SCRIPT_KEYS.join(", "))),
        }
    }
    config.validate().map_err(|error| format!("script: {error}"))?;
    Ok(ScriptChoice { path: path.into(), config })
}

fn number<T: FromStr<Err: Display>>(part: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|error| format!("script: {part}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: impl Into<Value>) -> Result<DraftChoice, String> {
        DraftChoice::deserialize(value.into()).map_err(|error| error.message().to_owned())
    }

    fn path(text: &str) -> DraftChoice {
        DraftChoice::Path(text.into())
    }

    fn script_of(path: &str, accept: f64, us_per_token: u64, confidence: ScriptConfidence) -> DraftChoice {
        let config = ScriptConfig { accept, us_per_token, seed: 0, confidence };
        DraftChoice::Script(ScriptChoice { path: path.into(), config })
    }

    #[test]
    fn a_drafter_is_a_name_or_a_path_and_a_list_has_commas_or_brackets() {
        assert_eq!(read("none"), Ok(DraftChoice::None));
        assert_eq!(read("suffix"), Ok(DraftChoice::Suffix));
        assert_eq!(read("a/b.gguf"), Ok(path("a/b.gguf")));
        let both = DraftChoice::List(vec![DraftChoice::Ngram, path("b.gguf")]);
        assert_eq!(read("ngram,b.gguf"), Ok(both.clone()));
        assert_eq!(read(vec!["ngram", "b.gguf"]), Ok(both));
        assert_eq!(read(vec!["a,b.gguf"]), Ok(path("a,b.gguf")), "commas of a path, in a TOML array");
    }

    #[test]
    fn a_script_keeps_its_settings_in_a_list() {
        use ScriptConfidence::{Flat, Split};
        assert_eq!(read("script:a.ids"), Ok(script_of("a.ids", 1.0, 0, Flat)));
        let script = script_of("a.ids", 0.8, 500, Split);
        assert_eq!(read("script:a.ids,accept=0.8,us=500,confidence=split"), Ok(script.clone()));
        let list = DraftChoice::List(vec![script, DraftChoice::Suffix]);
        assert_eq!(read("script:a.ids,accept=0.8,us=500,confidence=split,suffix"), Ok(list));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "empty name"),
            ("ngram,", "empty name"),
            ("ngram,none", "stands alone"),
            ("a.gguf,b.gguf", "one at most"),
            ("demo,ngram", "last in the list"),
            ("ngram,suffix,ngram", "named twice"),
            ("script:", "names no file"),
            ("script:a,accept=2", "accept = 2"),
            ("script:a,accept=often", "accept=often"),
            ("script:a,us=-1", "us=-1"),
            ("script:a,us=9000000", "us = 9000000"),
            ("script:a,confidence=high", "flat or split"),
        ] {
            let said = read(text).expect_err(text);
            assert!(said.contains(reason), "{text}: {said}");
        }
        assert!(read(7).expect_err("a number").contains("integer"));
        assert!(read(Vec::<String>::new()).expect_err("nothing").contains("empty list"));
        assert!(read(vec![Value::from(7)]).expect_err("a number").contains("integer"));
        let typo = read(vec!["script:a,acept=1"]).expect_err("a typo");
        assert!(typo.contains("\"acept=1\" is none of accept, us"), "{typo}");
    }
}
