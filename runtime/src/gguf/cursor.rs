//! Bounded reading of the header's primitive fields, in little-endian order.
//!
//! Every length is compared with the bytes left before anything is allocated, so a file cannot make
//! the reader take more memory than a small multiple of its own size. Knows values, not keys.

use std::fmt;
use std::path::Path;

use super::error::{GgufError, quoted};
use super::limits::{MAX_ARRAY_ELEMENTS, MAX_HEADER_BYTES, MAX_STRING_BYTES, SMALLEST_STRING_BYTES};
use super::value::{Array, Strings, Value, ValueType};

/// What is being read, for the error message; formatted only when there is one.
#[derive(Clone, Copy)]
pub(super) enum Subject<'a> {
    Header,
    Key(u64),
    Value(&'a str),
    TensorName(u64),
    Tensor(&'a str),
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Header => f.write_str("the file header"),
            Subject::Key(index) => write!(f, "metadata key {index}"),
            Subject::Value(key) => write!(f, "the value of metadata key {}", quoted(key)),
            Subject::TensorName(index) => write!(f, "the name of tensor {index}"),
            Subject::Tensor(name) => write!(f, "the entry of tensor {}", quoted(name)),
        }
    }
}

/// A position in the header of one file.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    file_len: u64,
    file: &'a Path,
}

impl<'a> Cursor<'a> {
    /// `bytes` are the first bytes of a file of `file_len` bytes: all of them, or at least
    /// [`MAX_HEADER_BYTES`].
    pub fn new(bytes: &'a [u8], file_len: u64, file: &'a Path) -> Cursor<'a> {
        Cursor { bytes, at: 0, file_len, file }
    }

    pub fn offset(&self) -> u64 {
        self.at as u64
    }

    /// Bytes between here and the end of the file.
    pub fn left(&self) -> u64 {
        self.file_len.saturating_sub(self.offset())
    }

    pub fn take(&mut self, len: u64, subject: Subject<'_>) -> Result<&'a [u8], GgufError> {
        if len > self.left() {
            return Err(self.truncated(subject, len));
        }
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        match end.and_then(|end| self.bytes.get(self.at..end).map(|taken| (end, taken))) {
            Some((end, taken)) => {
                self.at = end;
                Ok(taken)
            }
            None => {
                let end = self.offset().saturating_add(len);
                Err(self.limit(Subject::Header, "bytes", end, MAX_HEADER_BYTES))
            }
        }
    }

    fn fixed<const N: usize>(&mut self, subject: Subject<'_>) -> Result<[u8; N], GgufError> {
        let bytes = self.take(N as u64, subject)?;
        Ok(*bytes.first_chunk().expect("invariant: take returns the length asked for"))
    }

    pub fn u32(&mut self, subject: Subject<'_>) -> Result<u32, GgufError> {
        self.fixed(subject).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, subject: Subject<'_>) -> Result<u64, GgufError> {
        self.fixed(subject).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `unit_bytes_min` each: bounded by `limit` and by the
    /// bytes left.
    pub fn count(
        &mut self,
        subject: Subject<'_>,
        quantity: &'static str,
        unit_bytes_min: u64,
        limit: u64,
    ) -> Result<u64, GgufError> {
        let count = self.u64(subject)?;
        if count > limit {
            return Err(self.limit(subject, quantity, count, limit));
        }
        let needed = count.saturating_mul(unit_bytes_min);
        if needed > self.left() {
            return Err(self.truncated(subject, needed));
        }
        Ok(count)
    }

    /// A string of at most `bytes_max` bytes, unchecked text.
    fn raw_string(&mut self, subject: Subject<'_>, bytes_max: u64) -> Result<&'a [u8], GgufError> {
        let len = self.count(subject, "string bytes", 1, bytes_max)?;
        self.take(len, subject)
    }

    /// A UTF-8 string of at most `bytes_max` bytes.
    pub fn string(&mut self, subject: Subject<'_>, bytes_max: u64) -> Result<&'a str, GgufError> {
        let bytes = self.raw_string(subject, bytes_max)?;
        std::str::from_utf8(bytes).map_err(|error| {
            self.malformed(subject, format!("not UTF-8 from byte {} of the string on", error.valid_up_to()))
        })
    }

    fn value_type(&mut self, subject: Subject<'_>) -> Result<ValueType, GgufError> {
        let id = self.u32(subject)?;
        ValueType::from_id(id).ok_or_else(|| {
            self.malformed(subject, format!("unknown metadata type id {id} (0..=12 are known)"))
        })
    }

    /// A value with its type in front.
    pub fn value(&mut self, subject: Subject<'_>) -> Result<Value, GgufError> {
        Ok(match self.value_type(subject)? {
            ValueType::U8 => Value::U8(u8::from_le_bytes(self.fixed(subject)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(self.fixed(subject)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(self.fixed(subject)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(self.fixed(subject)?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(self.fixed(subject)?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(self.fixed(subject)?)),
            ValueType::U64 => Value::U64(u64::from_le_bytes(self.fixed(subject)?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(self.fixed(subject)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(self.fixed(subject)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(self.fixed(subject)?)),
            ValueType::Bool => {
                let [byte] = self.fixed(subject)?;
                Value::Bool(self.flag(byte, subject)?)
            }
            ValueType::String => Value::String(self.string(subject, MAX_STRING_BYTES)?.to_owned()),
            ValueType::Array => Value::Array(self.array(subject)?),
        })
    }

    fn array(&mut self, subject: Subject<'_>) -> Result<Array, GgufError> {
        let element = self.value_type(subject)?;
        let count = self.count(subject, "array elements", element.bytes_min(), MAX_ARRAY_ELEMENTS)?;
        Ok(match element {
            ValueType::U8 => Array::U8(self.take(count, subject)?.to_vec()),
            ValueType::I8 => Array::I8(self.numbers(count, subject, i8::from_le_bytes)?),
            ValueType::U16 => Array::U16(self.numbers(count, subject, u16::from_le_bytes)?),
            ValueType::I16 => Array::I16(self.numbers(count, subject, i16::from_le_bytes)?),
            ValueType::U32 => Array::U32(self.numbers(count, subject, u32::from_le_bytes)?),
            ValueType::I32 => Array::I32(self.numbers(count, subject, i32::from_le_bytes)?),
            ValueType::U64 => Array::U64(self.numbers(count, subject, u64::from_le_bytes)?),
            ValueType::I64 => Array::I64(self.numbers(count, subject, i64::from_le_bytes)?),
            ValueType::F32 => Array::F32(self.numbers(count, subject, f32::from_le_bytes)?),
            ValueType::F64 => Array::F64(self.numbers(count, subject, f64::from_le_bytes)?),
            ValueType::Bool => Array::Bool(self.flags(count, subject)?),
            ValueType::String => Array::Strings(self.strings(count, subject)?),
            ValueType::Array => {
                let problem = "an array of arrays (no known file has one, and ggml refuses it too)";
                return Err(self.malformed(subject, problem.to_owned()));
            }
        })
    }

    fn numbers<const N: usize, T>(
        &mut self,
        count: u64,
        subject: Subject<'_>,
        decode: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, GgufError> {
        let bytes = self.take(count.saturating_mul(N as u64), subject)?;
        Ok(bytes.as_chunks().0.iter().map(|&chunk| decode(chunk)).collect())
    }

    fn flags(&mut self, count: u64, subject: Subject<'_>) -> Result<Vec<bool>, GgufError> {
        let bytes = self.take(count, subject)?;
        let mut flags = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            flags.push(self.flag(byte, subject)?);
        }
        Ok(flags)
    }

    fn flag(&self, byte: u8, subject: Subject<'_>) -> Result<bool, GgufError> {
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.malformed(subject, format!("a bool is 0 or 1, not {other}"))),
        }
    }

    /// Two passes: the first checks every length and sums them, so that the blob is allocated once.
    fn strings(&mut self, count: u64, subject: Subject<'_>) -> Result<Strings, GgufError> {
        let start = self.at;
        for _ in 0..count {
            self.raw_string(subject, MAX_STRING_BYTES)?;
        }
        let count = count as usize; // fits: `count * 8` bytes of an in-memory slice were just read
        let mut strings = Strings::with_capacity(count, self.at - start - count * SMALLEST_STRING_BYTES);
        self.at = start;
        for _ in 0..count {
            let string = self.raw_string(subject, MAX_STRING_BYTES)?;
            if !strings.push(string) {
                return Err(self.limit(subject, "string bytes in all", u64::MAX, u32::MAX.into()));
            }
        }
        Ok(strings)
    }

    pub fn truncated(&self, subject: Subject<'_>, needed: u64) -> GgufError {
        GgufError::Truncated {
            file: self.file.to_owned(),
            subject: subject.to_string(),
            offset: self.offset(),
            needed,
            left: self.left(),
        }
    }

    pub fn limit(&self, subject: Subject<'_>, quantity: &'static str, value: u64, limit: u64) -> GgufError {
        GgufError::Limit {
            file: self.file.to_owned(),
            subject: subject.to_string(),
            offset: self.offset(),
            quantity,
            value,
            limit,
        }
    }

    pub fn malformed(&self, subject: Subject<'_>, problem: String) -> GgufError {
        GgufError::Malformed {
            file: self.file.to_owned(),
            subject: subject.to_string(),
            offset: self.offset(),
            problem,
        }
    }
}
