//! `auto`: the best reader this system allows, saying so when that is not the first choice.
//!
//! Owns the choice between io_uring and a pool of threads. Only a refusal of the ring itself leads to
//! the pool; a file that cannot be opened is an error with either.

use std::path::PathBuf;

use super::{PreadReader, Reader, ReaderOptions};
use crate::error::OffloadError;

/// The registry's way in.
#[cfg(target_os = "linux")]
pub(super) fn open(paths: &[PathBuf], options: &ReaderOptions) -> Result<Box<dyn Reader>, OffloadError> {
    choose(super::uring::open(paths, options), paths, options)
}

/// The registry's way in: elsewhere than on Linux there is nothing to choose.
#[cfg(not(target_os = "linux"))]
pub(super) fn open(paths: &[PathBuf], options: &ReaderOptions) -> Result<Box<dyn Reader>, OffloadError> {
    super::pread::open(paths, options)
}

#[cfg(target_os = "linux")]
fn choose(
    ring: Result<Box<dyn Reader>, OffloadError>,
    paths: &[PathBuf],
    options: &ReaderOptions,
) -> Result<Box<dyn Reader>, OffloadError> {
    let Err(OffloadError::Ring { source }) = ring else { return ring };
    let mut reader = PreadReader::open_as(paths, options)?;
    let threads = options.threads.max(1);
    let why = hint(&source);
    reader.tell(format!("io_uring is not available ({source}{why}): {threads} threads read instead"));
    Ok(Box::new(reader))
}

/// What usually stands behind the refusal.
#[cfg(target_os = "linux")]
fn hint(refusal: &std::io::Error) -> &'static str {
    use rustix::io::Errno;
    match Errno::from_io_error(refusal) {
        Some(Errno::PERM | Errno::ACCESS) => {
            "; a container's seccomp rules or the sysctl kernel.io_uring_disabled"
        }
        Some(Errno::NOSYS | Errno::OPNOTSUPP) => "; the kernel is too old or built without it",
        Some(Errno::NOMEM) => "; the limit on locked memory, see `ulimit -l`",
        _ => "",
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::super::source::tests::{check_all, pattern_file};
    use super::*;
    use rustix::io::Errno;

    fn refused(errno: Errno) -> Result<Box<dyn Reader>, OffloadError> {
        Err(OffloadError::Ring { source: std::io::Error::from_raw_os_error(errno.raw_os_error()) })
    }

    #[test]
    fn a_refused_ring_becomes_a_pool_that_names_the_refusal() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes = pattern_file(file.as_file_mut());
        let paths = [file.path().to_path_buf()];
        let options = ReaderOptions { threads: 3, depth: 16, cached: false };
        let cases =
            [(Errno::PERM, "io_uring_disabled"), (Errno::NOSYS, "too old"), (Errno::NOMEM, "ulimit -l")];
        for (errno, hint) in cases {
            let mut reader = choose(refused(errno), &paths, &options).unwrap();
            assert_eq!(reader.name(), "pread");
            let notice = reader.notice().unwrap().to_string();
            let said = std::io::Error::from_raw_os_error(errno.raw_os_error()).to_string();
            assert!([said.as_str(), hint, "3 threads"].iter().all(|part| notice.contains(part)), "{notice}");
            check_all(reader.as_mut(), &bytes);
        }
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_not_taken_for_a_refused_ring() {
        let missing = OffloadError::Open { path: "x".into(), source: std::io::ErrorKind::NotFound.into() };
        let outcome = choose(Err(missing), &[], &ReaderOptions::default());
        assert!(matches!(outcome.err(), Some(OffloadError::Open { .. })));
    }
}
