//! Kinds of values that TOML has no type for: a number or `"auto"`, a path or `"none"`, a model. Each reads itself from a TOML value and says what it expects when it cannot.

use std::path::PathBuf;

use drafthorse_offload::READERS;
use drafthorse_offload::reader::DiskSpec;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _};

use crate::gpu::DEVICES;
use crate::units::ByteSize;

/// `"auto"`, or a value that replaces the automatic choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auto<T> {
    /// The program chooses.
    Auto,
    /// The user chose.
    Value(T),
}

impl<T> Auto<T> {
    /// The user's value, if there is one.
    pub fn value(self) -> Option<T> {
        match self {
            Auto::Auto => None,
            Auto::Value(value) => Some(value),
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = toml::Value::deserialize(deserializer)?;
        if value.as_str() == Some("auto") {
            return Ok(Auto::Auto);
        }
        let read = T::deserialize(value)
            .map_err(|error| D::Error::custom(format!("{}, or \"auto\"", error.message())))?;
        Ok(Auto::Value(read))
    }
}

/// Which target to run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum ModelChoice {
    /// The pair that comes with Drafthorse.
    Demo,
    /// A GGUF.
    Path(PathBuf),
}

impl From<String> for ModelChoice {
    fn from(text: String) -> Self {
        match text.as_str() {
            "demo" => ModelChoice::Demo,
            _ => ModelChoice::Path(text.into()),
        }
    }
}

/// A path, or `"none"`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct OptionalPath(pub Option<PathBuf>);

impl From<String> for OptionalPath {
    fn from(text: String) -> Self {
        OptionalPath((text != "none").then(|| text.into()))
    }
}

/// A disk to simulate, or `"none"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimulateDisk(pub Option<DiskSpec>);

impl<'de> Deserialize<'de> for SimulateDisk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "none" {
            return Ok(SimulateDisk(None));
        }
        text.parse()
            .map(|spec| SimulateDisk(Some(spec)))
            .map_err(|e| D::Error::custom(format!("{e}, or none")))
    }
}

/// Memory of a GPU: a limit, `"auto"`, or `"none"` for no GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vram {
    /// No GPU.
    None,
    /// Most of what is free on it.
    Auto,
    /// At most this.
    Limit(ByteSize),
}

impl<'de> Deserialize<'de> for Vram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "none" | "0" => Ok(Vram::None),
            "auto" => Ok(Vram::Auto),
            size => {
                let size = size.parse().map(Vram::Limit);
                size.map_err(|error| D::Error::custom(format!("{error}; or \"auto\", or \"none\"")))
            }
        }
    }
}

/// Which GPU: a name of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceName(pub &'static str);

impl<'de> Deserialize<'de> for DeviceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let known = DEVICES.iter().find(|device| device.name == text).map(|device| DeviceName(device.name));
        let names: Vec<&str> = DEVICES.iter().map(|device| device.name).collect();
        known.ok_or_else(|| D::Error::custom(format!("expected one of {}", names.join(", "))))
    }
}

/// How experts are read: a name of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaderName(pub &'static str);

impl<'de> Deserialize<'de> for ReaderName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // The reader that holds whole files in memory is for tests: it knows no budget.
        let names: Vec<&'static str> =
            READERS.iter().map(|kind| kind.name).filter(|name| *name != "memory").collect();
        let known = names.iter().find(|name| **name == text).map(|name| ReaderName(name));
        known.ok_or_else(|| D::Error::custom(format!("expected one of {}", names.join(", "))))
    }
}
