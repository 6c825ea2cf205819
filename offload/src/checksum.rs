//! The checksum of an expert's part: xxh3, 64 bits, seed 0.
//!
//! Finds damage of disks and copies, not forgery: it is no signature. Fast enough (several GB/s on one
//! core) to be computed of every expert when it is first loaded.

use xxhash_rust::xxh3::Xxh3;

/// Name of the algorithm, as packed files state it.
pub const CHECKSUM_NAME: &str = "xxh3-64";

/// The checksum of `bytes`.
pub fn checksum(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// [`checksum`] of bytes that come piece by piece.
#[derive(Clone, Default)]
pub struct Checksummer(Xxh3);

impl Checksummer {
    /// Of no bytes yet.
    pub fn new() -> Checksummer {
        Checksummer::default()
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all bytes added.
    pub fn finish(&self) -> u64 {
        self.0.digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_xxh3() {
        // From the reference implementation's documentation: the empty input.
        assert_eq!(checksum(b""), 0x2D06_8005_38D3_94C2);
    }

    #[test]
    fn pieces_of_any_size_give_the_checksum_of_the_whole() {
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        for size in [1, 7, 64, 1023, 4096, 10_000] {
            let mut pieces = Checksummer::new();
            bytes.chunks(size).for_each(|piece| pieces.update(piece));
            assert_eq!(pieces.finish(), checksum(&bytes), "pieces of {size}");
        }
        assert_ne!(checksum(&bytes[1..]), checksum(&bytes));
    }
}
