//! Metadata values as they stand in a file: thirteen scalar and array types.
//!
//! Arrays are typed (`Vec<i32>`, not a list of enums) and strings share one blob, so a value takes no
//! more memory than it takes bytes in the file, give or take a small constant. Knows nothing of keys.
//!
//! Strings inside arrays are kept as raw bytes: vocabularies in the wild hold tokens that are not
//! UTF-8, and dropping or replacing bytes would change the model's text.

use std::fmt;

/// The type of a metadata value; the discriminant is the id in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[expect(missing_docs, reason = "names of the format")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::String,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    /// The type with this id, `None` for an id outside the list.
    pub fn from_id(id: u32) -> Option<ValueType> {
        Self::ALL.into_iter().find(|value_type| value_type.id() == id)
    }

    /// The id that stands in a file.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Fewest bytes one value of this type takes in a file (all of them, for the fixed-size types).
    pub const fn bytes_min(self) -> u64 {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
            ValueType::U16 | ValueType::I16 => 2,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
            ValueType::U64 | ValueType::I64 | ValueType::F64 | ValueType::String => 8,
            ValueType::Array => 12,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

/// One metadata value.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "names of the format")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// A typed array. Arrays of arrays, which the format allows, are refused as ggml refuses them.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "names of the format")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    Strings(Strings),
}

/// Many strings in one blob: bytes as in the file, not checked to be UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings {
    blob: Vec<u8>,
    ends: Vec<u32>, // ends[i] = where string i ends in the blob
}

impl Strings {
    /// Collects strings in order; `None` when together they pass 4 GiB.
    pub fn try_from_iter<S: AsRef<[u8]>>(strings: impl IntoIterator<Item = S>) -> Option<Strings> {
        let mut collected = Strings::default();
        strings.into_iter().all(|string| collected.push(string.as_ref())).then_some(collected)
    }

    pub(super) fn with_capacity(strings: usize, bytes: usize) -> Strings {
        Strings { blob: Vec::with_capacity(bytes), ends: Vec::with_capacity(strings) }
    }

    /// Appends one string; false when the blob would pass 4 GiB.
    pub(super) fn push(&mut self, string: &[u8]) -> bool {
        let Some(end) = self.blob.len().checked_add(string.len()).and_then(|end| u32::try_from(end).ok())
        else {
            return false;
        };
        self.blob.extend_from_slice(string);
        self.ends.push(end);
        true
    }

    /// How many strings there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of string `index`, `None` past the end.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        Some(&self.blob[start..end])
    }

    /// The strings in order, as bytes.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|index| self.get(index).unwrap_or_default())
    }

    /// The strings in order, or the index of the first that is not UTF-8.
    pub fn to_strs(&self) -> Result<Vec<&str>, usize> {
        self.iter().enumerate().map(|(index, bytes)| std::str::from_utf8(bytes).map_err(|_| index)).collect()
    }
}

impl Array {
    /// Elements in the array.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(values) => values.len(),
            Array::I8(values) => values.len(),
            Array::U16(values) => values.len(),
            Array::I16(values) => values.len(),
            Array::U32(values) => values.len(),
            Array::I32(values) => values.len(),
            Array::U64(values) => values.len(),
            Array::I64(values) => values.len(),
            Array::F32(values) => values.len(),
            Array::F64(values) => values.len(),
            Array::Bool(values) => values.len(),
            Array::Strings(strings) => strings.len(),
        }
    }

    /// Whether the array holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type of the elements.
    pub const fn element_type(&self) -> ValueType {
        match self {
            Array::U8(_) => ValueType::U8,
            Array::I8(_) => ValueType::I8,
            Array::U16(_) => ValueType::U16,
            Array::I16(_) => ValueType::I16,
            Array::U32(_) => ValueType::U32,
            Array::I32(_) => ValueType::I32,
            Array::U64(_) => ValueType::U64,
            Array::I64(_) => ValueType::I64,
            Array::F32(_) => ValueType::F32,
            Array::F64(_) => ValueType::F64,
            Array::Bool(_) => ValueType::Bool,
            Array::Strings(_) => ValueType::String,
        }
    }
}

impl Value {
    /// The type of the value.
    pub const fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F32(_) => ValueType::F32,
            Value::F64(_) => ValueType::F64,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
        }
    }

    /// The type in words: `u32`, or `array of string`.
    pub fn describe(&self) -> String {
        match self {
            Value::Array(array) => format!("array of {}", array.element_type()),
            scalar => scalar.value_type().to_string(),
        }
    }

    /// The value as `u64`: `None` when it is no integer or negative.
    pub fn to_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(value) => Some(value.into()),
            Value::U16(value) => Some(value.into()),
            Value::U32(value) => Some(value.into()),
            Value::U64(value) => Some(value),
            Value::I8(value) => value.try_into().ok(),
            Value::I16(value) => value.try_into().ok(),
            Value::I32(value) => value.try_into().ok(),
            Value::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }
}

macro_rules! value_from {
    ($($from:ty => $scalar:ident),*) => { $(
        impl From<$from> for Value {
            fn from(value: $from) -> Value {
                Value::$scalar(value)
            }
        }
        impl From<Vec<$from>> for Value {
            fn from(values: Vec<$from>) -> Value {
                Value::Array(Array::$scalar(values))
            }
        }
    )* };
}
value_from!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
    f32 => F32, f64 => F64, bool => Bool);

impl From<&str> for Value {
    fn from(string: &str) -> Value {
        Value::String(string.to_owned())
    }
}

impl From<String> for Value {
    fn from(string: String) -> Value {
        Value::String(string)
    }
}

impl From<Strings> for Value {
    fn from(strings: Strings) -> Value {
        Value::Array(Array::Strings(strings))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn strings_keep_bytes_that_are_not_utf8() {
        let strings = Strings::try_from_iter([&b"a"[..], b"", b"\xff\xfe", b"end"]).unwrap();
        assert_eq!(strings.len(), 4);
        assert_eq!(strings.iter().collect::<Vec<_>>(), [&b"a"[..], b"", b"\xff\xfe", b"end"]);
        assert_eq!(strings.get(4), None);
        assert_eq!(strings.to_strs(), Err(2));
    }

    #[test]
    fn a_negative_integer_is_no_u64() {
        assert_eq!(Value::I8(-1).to_u64(), None);
        assert_eq!(Value::I64(7).to_u64(), Some(7));
        assert_eq!(Value::F32(7.0).to_u64(), None);
    }
}
