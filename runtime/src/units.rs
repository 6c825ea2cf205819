//! Sizes as people type and read them.
//!
//! Owns the parsing of `16GiB`, `1.5GB` or plain bytes ([`ByteSize`]) and the short forms used in
//! reports. Binary suffixes count in 1024, decimal ones in 1000. It must not know what a size is for.

use std::fmt;
use std::str::FromStr;

/// Suffixes and the bytes they stand for, lower case.
const SUFFIXES: [(&str, u64); 10] = [
    ("", 1),
    ("b", 1),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
];

/// Digits accepted after the decimal point; more would be finer than a byte of any unit.
const FRACTION_DIGITS_MAX: usize = 12;

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// No number, or a suffix nobody knows.
    #[error("\"{0}\" is not a size: write a number with KiB, MiB, GiB, KB, MB or GB, such as 16GiB")]
    NotASize(String),
    /// More than 64 bits of bytes.
    #[error("\"{0}\" is more bytes than 64 bits can count")]
    TooLarge(String),
    /// Zero bytes hold nothing.
    #[error("\"{0}\" is a size of zero bytes")]
    Zero(String),
}

/// A number of bytes above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    /// Wraps a number of bytes.
    ///
    /// # Errors
    /// [`UnitError::Zero`] for 0.
    pub fn new(bytes: u64) -> Result<Self, UnitError> {
        if bytes == 0 { Err(UnitError::Zero("0".to_owned())) } else { Ok(ByteSize(bytes)) }
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let not_a_size = || UnitError::NotASize(text.to_owned());
        let trimmed = text.trim();
        let suffix_at = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, suffix) = trimmed.split_at(suffix_at);
        let suffix = suffix.trim_start().to_ascii_lowercase();
        let unit = SUFFIXES.iter().find(|(name, _)| *name == suffix).ok_or_else(not_a_size)?.1;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.contains('.') || fraction.len() > FRACTION_DIGITS_MAX {
            return Err(not_a_size());
        }
        if number.ends_with('.') || (unit == 1 && !fraction.is_empty()) {
            return Err(not_a_size());
        }
        match scaled(whole, fraction, unit) {
            None => Err(UnitError::TooLarge(text.to_owned())),
            Some(0) => Err(UnitError::Zero(text.to_owned())),
            Some(bytes) => Ok(ByteSize(bytes)),
        }
    }
}

/// `whole.fraction * unit`, rounded down; None beyond 64 bits. Both parts are digits only.
fn scaled(whole: &str, fraction: &str, unit: u64) -> Option<u64> {
    let whole: u64 = whole.parse().ok()?;
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let part_bytes = part * u128::from(unit) / 10u128.pow(fraction.len() as u32);
    whole.checked_mul(unit)?.checked_add(u64::try_from(part_bytes).ok()?)
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_bytes(self.0))
    }
}

impl<'de> serde::Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ByteSizeVisitor)
    }
}

struct ByteSizeVisitor;

impl serde::de::Visitor<'_> for ByteSizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as \"16GiB\", or a number of bytes")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
        let bytes = u64::try_from(bytes).map_err(|_| E::custom("a size is not negative"))?;
        ByteSize::new(bytes).map_err(E::custom)
    }
}

/// `bytes` in the largest binary unit that leaves a number of at least 1: `18.9 MiB`.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would print as 1024.0 of the smaller unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn bytes(text: &str) -> Result<u64, UnitError> {
        text.parse::<ByteSize>().map(ByteSize::bytes)
    }

    #[test]
    fn binary_decimal_and_plain_sizes_are_read() {
        for (text, expected) in [
            ("16GiB", 16u64 << 30),
            ("16 gib", 16 << 30),
            ("512MiB", 512 << 20),
            ("4KiB", 4096),
            ("1.5GiB", 3 << 29),
            ("2TiB", 2 << 40),
            ("16GB", 16_000_000_000),
            ("0.5kb", 500),
            ("4096", 4096),
            ("4096B", 4096),
            (" 7MB ", 7_000_000),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn garbage_is_not_a_size() {
        for text in [
            "", "GiB", "16G", "-1GiB", "1e9", "1..5GiB", "1.GiB", ".5GiB", "16GiBs", "0x10", "1,5GiB", "1.5",
            "١GiB",
        ] {
            assert_eq!(bytes(text), Err(UnitError::NotASize(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn overflow_and_zero_are_refused() {
        for text in [
            "18446744073709551616",
            "99999999999TiB",
            "16777216TiB",
            "340282366920938463463374607431768211456",
        ] {
            assert_eq!(bytes(text), Err(UnitError::TooLarge(text.to_owned())), "{text}");
        }
        for text in ["0", "0GiB", "0.0GiB", "0.0001KiB"] {
            assert_eq!(bytes(text), Err(UnitError::Zero(text.to_owned())), "{text}");
        }
        assert_eq!(bytes("18446744073709551615"), Ok(u64::MAX));
    }

    #[test]
    fn printed_sizes_keep_one_digit_and_the_largest_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (16 << 30, "16.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(format_bytes(bytes), text);
        }
    }
}
