//! Helpers of the GGUF tests: fixtures, and a builder that writes headers no writer would.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use drafthorse_runtime::gguf::{GgufError, Header, parse};

/// A committed fixture of `scripts/fixtures/make_gguf_fixtures.py`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

/// The shared folder beside the checkout, `None` (with the reason printed) where it is absent.
pub fn shared(path: &str) -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(path);
    if found.exists() {
        return Some(found);
    }
    eprintln!("skipped: {} is absent", found.display());
    None
}

/// A file written field by field, right or wrong.
pub struct Raw(pub Vec<u8>);

impl Raw {
    /// Magic, version 3 and the two counts.
    pub fn new(tensors: u64, pairs: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(3).u64(tensors).u64(pairs)
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn u32(self, number: u32) -> Raw {
        self.bytes(&number.to_le_bytes())
    }

    pub fn u64(self, number: u64) -> Raw {
        self.bytes(&number.to_le_bytes())
    }

    pub fn string(self, string: &[u8]) -> Raw {
        self.u64(string.len() as u64).bytes(string)
    }

    /// A key and the id of its type; the value follows.
    pub fn key(self, key: &str, type_id: u32) -> Raw {
        self.string(key.as_bytes()).u32(type_id)
    }

    /// An entry of the tensor table.
    pub fn tensor(self, name: &str, dims: &[u64], type_id: u32, offset: u64) -> Raw {
        let entry = self.string(name.as_bytes()).u32(dims.len() as u32);
        dims.iter().fold(entry, |entry, &dim| entry.u64(dim)).u32(type_id).u64(offset)
    }

    /// The end of the header, and `bytes` of data.
    pub fn data(mut self, bytes: usize) -> Raw {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + bytes, 0);
        self
    }

    pub fn parse(&self) -> Result<Header, GgufError> {
        parse(&self.0, self.0.len() as u64, Path::new("m.gguf"))
    }

    /// The message of the refusal: one line that names the file.
    pub fn refusal(&self) -> String {
        let message = self.parse().expect_err("the file should be refused").to_string();
        assert!(message.starts_with("m.gguf: "), "{message}");
        assert!(!message.contains('\n') && message.len() < 400, "{message}");
        message
    }
}
