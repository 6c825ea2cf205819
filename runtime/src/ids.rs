//! Token ids as text, and the fingerprint of a list of them.
//!
//! Owns the form in which ids are given to measurements (`bench --ids`, scripts of a drafter) and what both
//! sides of a comparison print of them. It must not know what ids mean.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use drafthorse_draft::TokenId;

use crate::Error;

/// Token ids in a text, separated by white space or commas. What is wrong is said with its place.
///
/// # Errors
/// A word that is no id; no ids at all.
pub fn parse_ids(text: &str) -> Result<Vec<TokenId>, String> {
    let words = text.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty());
    let ids = words.enumerate().map(|(index, word)| {
        let shown: String = word.chars().take(40).collect();
        word.parse::<TokenId>().map_err(|_| format!("word {}: {shown:?} is not a token id", index + 1))
    });
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    if ids.is_empty() { Err("no token ids".to_owned()) } else { Ok(ids) }
}

/// The token ids of a file, as [`parse_ids`] reads them.
///
/// # Errors
/// A file that cannot be read or is larger than 64 MiB; what [`parse_ids`] finds wrong, with the file.
pub fn read_ids(file: &Path) -> Result<Vec<TokenId>, Error> {
    const BYTES_MAX: u64 = 64 << 20;
    let failed = |source| Error::io("read", file, source);
    let mut text = String::new();
    let opened = File::open(file).map_err(failed)?;
    opened.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    let wrong = |problem: String| Error::Usage(format!("{}: {problem}", file.display()));
    if text.len() as u64 > BYTES_MAX {
        return Err(wrong(format!("more than {BYTES_MAX} bytes")));
    }
    parse_ids(&text).map_err(wrong)
}

/// Fingerprint of an id list: FNV-1a, 64 bits, over the ids' little-endian bytes, in hex.
pub fn ids_hash(ids: &[TokenId]) -> String {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    let hash = bytes.fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_words_between_spaces_lines_and_commas() {
        assert_eq!(parse_ids("1 2,3\n4,\n"), Ok(vec![1, 2, 3, 4]));
        assert_eq!(parse_ids("1 -2"), Err("word 2: \"-2\" is not a token id".to_owned()));
        assert_eq!(parse_ids("4294967296"), Err("word 1: \"4294967296\" is not a token id".to_owned()));
        assert_eq!(parse_ids(" ,\n"), Err("no token ids".to_owned()));
    }

    #[test]
    fn the_fingerprint_tells_order_and_length() {
        assert_eq!(ids_hash(&[]), "cbf29ce484222325");
        // FNV-1a of the bytes "a\0\0\0", computed by hand with its definition.
        let by_hand = b"a\0\0\0".iter().fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        assert_eq!(ids_hash(&[97]), format!("{by_hand:016x}"));
        assert_ne!(ids_hash(&[1, 2]), ids_hash(&[2, 1]));
        assert_ne!(ids_hash(&[1, 0]), ids_hash(&[1]));
    }
}
