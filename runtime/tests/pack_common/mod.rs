//! What the tests of `pack` share.

#![allow(clippy::unwrap_used, dead_code, reason = "helpers of tests; each test binary uses its own part")]

use std::path::{Path, PathBuf};

use drafthorse_runtime::pack::PackOptions;
use tempfile::TempDir;

use crate::common::synthetic::Mixture;

/// One with few pieces.
pub const SMALL: Mixture = Mixture { width: 64, inner: 40, experts: 3, blocks: 1, unsupported: None };
/// Every piece is made sure of.
pub const EAGER: PackOptions = PackOptions { alignment: 4096, checkpoint_bytes: 1 };

pub fn aligned(alignment: u64) -> PackOptions {
    PackOptions { alignment, ..PackOptions::default() }
}

/// A folder in memory where there is one: these tests sync often.
pub fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

pub fn written(mixture: Mixture, folder: &Path) -> PathBuf {
    let path = folder.join("plain.gguf");
    mixture.write(&path);
    path
}
