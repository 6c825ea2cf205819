//! Layers of settings: defaults, the demo's, the user's file, flags.
//!
//! Owns the rule that a key is set one at a time and the whole is checked after each, so whatever is
//! wrong belongs to that key and that place. It must not know what any key means.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize as _;
use toml::{Table, Value};

use super::{Config, ConfigError, DEFAULT_TOML, limits};

/// Largest file of settings that is read.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Below this likeness (Jaro-Winkler, 0 to 1) no key is suggested.
const LIKENESS_MIN: f64 = 0.75;

/// One value for one key, and where it was written.
#[derive(Clone, Debug)]
struct Entry {
    section: String,
    key: String,
    value: Value,
    place: String,
}

/// A list of values from one origin.
#[derive(Clone, Debug)]
pub struct Layer {
    origin: String,
    sections: Vec<String>,
    entries: Vec<Entry>,
}

impl Layer {
    /// A layer of flags, filled with [`Layer::flag`].
    #[must_use]
    pub fn command_line() -> Layer {
        Layer { origin: "command line".to_owned(), sections: Vec::new(), entries: Vec::new() }
    }

    /// Sets `section.key` to what a flag gave, if it gave anything. Errors name `flag`.
    pub fn flag(&mut self, flag: &str, section_key: (&str, &str), value: Option<impl Into<Value>>) {
        let Some(value) = value else { return };
        self.entries.push(Entry {
            section: section_key.0.to_owned(),
            key: section_key.1.to_owned(),
            value: value.into(),
            place: flag.to_owned(),
        });
    }

    /// Reads a file of settings.
    ///
    /// # Errors
    /// The file is missing, unreadable, too large, not UTF-8 or not TOML.
    pub fn file(path: &Path) -> Result<Layer, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = File::open(path).map_err(failed)?;
        file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLarge { path: path.to_owned(), limit_bytes: CONFIG_BYTES_MAX });
        }
        Layer::text(&path.display().to_string(), &text)
    }

    /// Parses settings; `origin` names them in errors.
    ///
    /// # Errors
    /// The text is not TOML.
    pub fn text(origin: &str, text: &str) -> Result<Layer, ConfigError> {
        let table = text.parse::<Table>().map_err(|error| syntax(origin, text, &error))?;
        let mut layer = Layer { origin: origin.to_owned(), sections: Vec::new(), entries: Vec::new() };
        for (name, value) in table {
            match value {
                Value::Table(keys) => {
                    keys.into_iter().for_each(|(key, value)| layer.push(&name, key, value));
                    layer.sections.push(name);
                }
                // Above all sections there are no keys: refused when the layer is applied.
                value => layer.push("", name, value),
            }
        }
        Ok(layer)
    }

    fn push(&mut self, section: &str, key: String, value: Value) {
        let place = format!("{}: {section}.{key}", self.origin);
        self.entries.push(Entry { section: section.to_owned(), key, value, place });
    }

    /// The value this layer gives to `section.key`, if any.
    #[must_use]
    pub fn get(&self, section: &str, key: &str) -> Option<&Value> {
        self.entries.iter().rev().find(|entry| entry.section == section && entry.key == key).map(|e| &e.value)
    }
}

/// The settings so far: the defaults and every layer applied.
#[derive(Clone, Debug)]
pub struct Settings {
    table: Table,
    config: Config,
}

impl Settings {
    /// The defaults.
    ///
    /// # Errors
    /// Never for the `default.toml` this was compiled with; a test holds it to that.
    pub fn defaults() -> Result<Settings, ConfigError> {
        let origin = "default.toml";
        let table = DEFAULT_TOML.parse::<Table>().map_err(|error| syntax(origin, DEFAULT_TOML, &error))?;
        let config = Config::deserialize(table.clone()).map_err(|error| ConfigError::BadValue {
            place: origin.to_owned(),
            value: "default".to_owned(),
            reason: one_line(&error),
        })?;
        Ok(Settings { table, config })
    }

    /// Puts a layer on top.
    ///
    /// # Errors
    /// The first section or key that is unknown, or value of the wrong kind or out of range.
    pub fn apply(&mut self, layer: &Layer) -> Result<(), ConfigError> {
        if let Some(section) = layer.sections.iter().find(|section| !self.table.contains_key(*section)) {
            let nearest = nearest(self.table.keys().cloned(), |known| strsim::jaro_winkler(section, known));
            return Err(ConfigError::UnknownSection {
                origin: layer.origin.clone(),
                section: section.clone(),
                nearest,
            });
        }
        layer.entries.iter().try_for_each(|entry| self.set(&layer.origin, entry))
    }

    /// The settings, after a last look at those that must agree with each other.
    ///
    /// # Errors
    /// Two settings contradict each other.
    pub fn finish(self) -> Result<Config, ConfigError> {
        limits::check_pairs(&self.config)?;
        Ok(self.config)
    }

    /// The present value of `section.key`.
    #[must_use]
    pub fn get(&self, section: &str, key: &str) -> Option<&Value> {
        self.table.get(section)?.get(key)
    }

    /// What these settings change of `base`, as `(section, key, value)` in the order of the sections.
    #[must_use]
    pub fn differences(&self, base: &Settings) -> Vec<(String, String, Value)> {
        let keys_of = |(section, value): (&String, &Value)| {
            let keys = value.as_table().into_iter().flatten();
            let changed = keys.filter(|(key, value)| base.get(section, key) != Some(*value));
            changed.map(|(key, value)| (section.clone(), key.clone(), value.clone())).collect::<Vec<_>>()
        };
        self.table.iter().flat_map(keys_of).collect()
    }

    fn set(&mut self, origin: &str, entry: &Entry) -> Result<(), ConfigError> {
        let Some(slot) = self.slot(&entry.section, &entry.key) else {
            return Err(self.unknown_key(origin, &entry.section, &entry.key));
        };
        *slot = entry.value.clone();
        let bad =
            |reason| ConfigError::BadValue { place: entry.place.clone(), value: shown(&entry.value), reason };
        let config = Config::deserialize(self.table.clone()).map_err(|error| bad(one_line(&error)))?;
        limits::check(&config).map_err(|limits| ConfigError::OutOfRange {
            place: entry.place.clone(),
            value: shown(&entry.value),
            limits,
        })?;
        self.config = config;
        Ok(())
    }

    fn slot(&mut self, section: &str, key: &str) -> Option<&mut Value> {
        self.table.get_mut(section)?.as_table_mut()?.get_mut(key)
    }

    fn unknown_key(&self, origin: &str, section: &str, key: &str) -> ConfigError {
        let asked = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
        let nearest = nearest(self.keys().into_iter(), |known| likeness(&asked, known));
        ConfigError::UnknownKey { origin: origin.to_owned(), key: asked, nearest }
    }

    /// Every `section.key` there is.
    fn keys(&self) -> Vec<String> {
        let keys_of = |(section, value): (&String, &Value)| {
            let keys = value.as_table().into_iter().flat_map(Table::keys);
            keys.map(|key| format!("{section}.{key}")).collect::<Vec<_>>()
        };
        self.table.iter().flat_map(keys_of).collect()
    }
}

/// The name most like the one asked for, if any is like it at all.
fn nearest(names: impl Iterator<Item = String>, likeness: impl Fn(&str) -> f64) -> Option<String> {
    let best = names.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    best.filter(|name| likeness(name) >= LIKENESS_MIN)
}

/// How alike two dotted keys are. The key counts most, so that a right key in a wrong section is
/// found; the section a little, so that of two keys with one name the one next door is suggested.
fn likeness(asked: &str, known: &str) -> f64 {
    let key = |dotted: &str| dotted.rsplit('.').next().unwrap_or_default().to_owned();
    0.8 * strsim::jaro_winkler(&key(asked), &key(known)) + 0.2 * strsim::jaro_winkler(asked, known)
}

fn syntax(origin: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
    ConfigError::Syntax { origin: origin.to_owned(), line, message: one_line(error) }
}

/// The parser's message without the excerpt it draws below.
fn one_line(error: &toml::de::Error) -> String {
    error.message().lines().collect::<Vec<_>>().join("; ")
}

/// A value as written, short enough for one line.
fn shown(value: &Value) -> String {
    const CHARS_MAX: usize = 60;
    let text = value.to_string().replace('\n', " ");
    match text.char_indices().nth(CHARS_MAX) {
        None => text,
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}
