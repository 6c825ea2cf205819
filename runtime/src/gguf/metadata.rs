//! The metadata of a file: keys in file order, looked up by name, with typed access.
//!
//! Absent is `Ok(None)`; present with another type is an error that names file and key, so that a
//! damaged value is never read as "not there". Knows no key by name: what keys mean is the models'
//! and the tokenizer's business.

use std::path::{Path, PathBuf};

use super::error::GgufError;
use super::value::{Array, Strings, Value};

/// Metadata key-value pairs of one model.
#[derive(Clone, Debug)]
pub struct Metadata {
    file: PathBuf,
    entries: Vec<(Box<str>, Value)>,
    by_key: Vec<u32>, // indices into `entries`, sorted by key
}

impl Metadata {
    /// Metadata from pairs in order; `file` is only named in errors.
    ///
    /// # Errors
    /// [`GgufError::DuplicateKey`] when a key stands twice.
    pub fn from_entries(
        file: &Path,
        entries: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<Metadata, GgufError> {
        let entries = entries.into_iter().map(|(key, value)| (key.into_boxed_str(), value)).collect();
        Metadata::new(file, entries)
    }

    pub(super) fn new(file: &Path, entries: Vec<(Box<str>, Value)>) -> Result<Metadata, GgufError> {
        let mut by_key: Vec<u32> = (0u32..).take(entries.len()).collect();
        by_key.sort_unstable_by_key(|&index| &entries[index as usize].0);
        let key = |index: u32| &entries[index as usize].0;
        if let Some(pair) = by_key.windows(2).find(|pair| key(pair[0]) == key(pair[1])) {
            return Err(GgufError::DuplicateKey { file: file.to_owned(), key: key(pair[0]).to_string() });
        }
        Ok(Metadata { file: file.to_owned(), entries, by_key })
    }

    /// The file the metadata came from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys and values in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (&**key, value))
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let entry = |&index: &u32| &self.entries[index as usize];
        let found = self.by_key.binary_search_by(|index| (*entry(index).0).cmp(key)).ok()?;
        Some(&entry(&self.by_key[found]).1)
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a string", |value| match value {
            Value::String(string) => Some(string.as_str()),
            _ => None,
        })
    }

    /// Any integer type that fits.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "an unsigned integer", Value::to_u64)
    }

    /// Any integer type that fits.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.typed(key, "an unsigned integer of 32 bits", |value| value.to_u64()?.try_into().ok())
    }

    /// Any integer type that fits.
    pub fn usize(&self, key: &str) -> Result<Option<usize>, GgufError> {
        self.typed(key, "an unsigned integer", |value| value.to_u64()?.try_into().ok())
    }

    /// A float (an f64 is rounded).
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.typed(key, "a float", |value| match *value {
            Value::F32(number) => Some(number),
            Value::F64(number) => Some(number as f32),
            _ => None,
        })
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a bool", |value| match *value {
            Value::Bool(flag) => Some(flag),
            _ => None,
        })
    }

    /// An array of strings, as bytes.
    pub fn strings(&self, key: &str) -> Result<Option<&Strings>, GgufError> {
        self.typed_array(key, "an array of strings", |array| match array {
            Array::Strings(strings) => Some(strings),
            _ => None,
        })
    }

    /// An array of strings that must all be UTF-8.
    pub fn strs(&self, key: &str) -> Result<Option<Vec<&str>>, GgufError> {
        let Some(strings) = self.strings(key)? else { return Ok(None) };
        let strs = strings.to_strs().map_err(|index| {
            self.wrong_type(key, "UTF-8 strings", format!("an array whose element {index} is not UTF-8"))
        })?;
        Ok(Some(strs))
    }

    /// An array of f32.
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        self.typed_array(key, "an array of f32", |array| match array {
            Array::F32(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// An array of i32.
    pub fn i32s(&self, key: &str) -> Result<Option<&[i32]>, GgufError> {
        self.typed_array(key, "an array of i32", |array| match array {
            Array::I32(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// An array of u32.
    pub fn u32s(&self, key: &str) -> Result<Option<&[u32]>, GgufError> {
        self.typed_array(key, "an array of u32", |array| match array {
            Array::U32(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// An array of u64.
    pub fn u64s(&self, key: &str) -> Result<Option<&[u64]>, GgufError> {
        self.typed_array(key, "an array of u64", |array| match array {
            Array::U64(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// The value just looked up, or [`GgufError::MissingKey`]: `m.require(key, m.f32s(key)?)`.
    pub fn require<T>(&self, key: &str, value: Option<T>) -> Result<T, GgufError> {
        value.ok_or_else(|| GgufError::MissingKey { file: self.file.clone(), key: key.to_owned() })
    }

    /// [`Metadata::str`], where absence is an error.
    pub fn require_str(&self, key: &str) -> Result<&str, GgufError> {
        self.require(key, self.str(key)?)
    }

    /// [`Metadata::u64`], where absence is an error.
    pub fn require_u64(&self, key: &str) -> Result<u64, GgufError> {
        self.require(key, self.u64(key)?)
    }

    /// [`Metadata::strings`], where absence is an error.
    pub fn require_strings(&self, key: &str) -> Result<&Strings, GgufError> {
        self.require(key, self.strings(key)?)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(self.wrong_type(key, expected, found(value))),
        }
    }

    fn typed_array<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Array) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        self.typed(key, expected, |value| match value {
            Value::Array(array) => convert(array),
            _ => None,
        })
    }

    fn wrong_type(&self, key: &str, expected: &'static str, found: String) -> GgufError {
        GgufError::WrongType { file: self.file.clone(), key: key.to_owned(), expected, found }
    }
}

/// A value in an error message: integers with their value, since "too large" is a common cause.
fn found(value: &Value) -> String {
    match value {
        Value::U64(number) => format!("the u64 {number}"),
        Value::I8(_) | Value::I16(_) | Value::I32(_) | Value::I64(_) => match value.to_u64() {
            Some(number) => format!("the {} {number}", value.describe()),
            None => format!("a negative {}", value.describe()),
        },
        other => other.describe(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn metadata(entries: Vec<(&str, Value)>) -> Result<Metadata, GgufError> {
        Metadata::from_entries(
            Path::new("m.gguf"),
            entries.into_iter().map(|(key, value)| (key.into(), value)),
        )
    }

    #[test]
    fn absent_is_none_and_a_wrong_type_is_an_error_that_names_file_and_key() {
        let metadata =
            metadata(vec![("b", Value::U8(1)), ("a", "text".into()), ("c", Value::I32(-5))]).unwrap();
        assert_eq!(metadata.u64("nothing").unwrap(), None);
        assert_eq!(metadata.usize("b").unwrap(), Some(1));
        assert_eq!(
            metadata.u64("a").unwrap_err().to_string(),
            "m.gguf: metadata key \"a\" is string, expected an unsigned integer"
        );
        assert!(metadata.u64("c").unwrap_err().to_string().contains("a negative i32"));
        assert_eq!(
            metadata.require_str("d").unwrap_err().to_string(),
            "m.gguf: metadata key \"d\" is missing"
        );
    }

    #[test]
    fn keys_keep_the_order_of_the_file() {
        let metadata = metadata(vec![("z", 1u8.into()), ("a", 2u8.into()), ("m", 3u8.into())]).unwrap();
        assert_eq!(metadata.iter().map(|(key, _)| key).collect::<Vec<_>>(), ["z", "a", "m"]);
    }

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        let error = metadata(vec![("k", 1u8.into()), ("k", 2u8.into())]).unwrap_err();
        assert!(matches!(error, GgufError::DuplicateKey { .. }), "{error}");
    }

    #[test]
    fn vocabulary_bytes_are_kept_and_the_utf8_view_names_the_bad_one() {
        let tokens = Strings::try_from_iter([&b"ok"[..], b"\xf0"]).unwrap();
        let metadata = metadata(vec![("tokens", tokens.into())]).unwrap();
        assert_eq!(metadata.strings("tokens").unwrap().unwrap().get(1), Some(&b"\xf0"[..]));
        assert!(metadata.strs("tokens").unwrap_err().to_string().contains("element 1"));
    }
}
