//! The file `tune` writes: evidence as comments, then the keys, whole or not at all.
//!
//! Owns the text of the keys and the publishing of the file. It must not know what was measured.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use drafthorse_runtime::Error;
use toml::Value;

/// A place for the file.
pub struct Output {
    path: PathBuf,
    temporary: PathBuf,
    replaces: bool,
}

impl Output {
    /// Makes sure that the file can be written, before minutes are spent on what goes into it.
    ///
    /// # Errors
    /// It exists and is not to be replaced, or its folder takes no file.
    pub fn check(path: &Path, replaces: bool) -> Result<Output, Error> {
        let taken = fs::symlink_metadata(path);
        if taken.as_ref().is_ok_and(fs::Metadata::is_dir) {
            return super::super::usage(&format!("{}: is a folder", path.display()));
        }
        if taken.is_ok() && !replaces {
            return Err(exists(path));
        }
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let output = Output { path: path.to_owned(), temporary: name.into(), replaces };
        output.create().map_err(|source| Error::io("write into the folder of", path, source))?;
        output.discard();
        Ok(output)
    }

    fn create(&self) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).open(&self.temporary)
    }

    fn discard(&self) {
        // A leftover is only untidy, and what failed before is told.
        let _ = fs::remove_file(&self.temporary);
    }

    /// Writes `text` and gives it its name in one step.
    ///
    /// # Errors
    /// The disk is full or gone; somebody else has put a file there meanwhile.
    pub fn publish(&self, text: &str) -> Result<(), Error> {
        let done = self.create().and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            self.name()
        });
        done.map_err(|source| {
            self.discard();
            match source.kind() {
                io::ErrorKind::AlreadyExists => exists(&self.path),
                _ => Error::io("write", &self.path, source),
            }
        })
    }

    fn name(&self) -> io::Result<()> {
        if self.replaces {
            return fs::rename(&self.temporary, &self.path);
        }
        // Unlike a rename, a link never takes another file's place.
        match fs::hard_link(&self.temporary, &self.path) {
            Ok(()) => fs::remove_file(&self.temporary),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
            // A file system without links.
            Err(_) if !self.path.exists() => fs::rename(&self.temporary, &self.path),
            Err(_) => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }
}

fn exists(path: &Path) -> Error {
    Error::Usage(format!("{}: exists; --force replaces it", path.display()))
}

/// Keys in TOML, a section each time its name changes.
pub fn keys(keys: &[(String, String, Value)]) -> String {
    let (mut text, mut open) = (String::new(), "");
    for (section, key, value) in keys {
        if open != section {
            text.push_str(&format!("\n[{section}]\n"));
            open = section;
        }
        text.push_str(&format!("{key} = {value}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn files(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        let output = Output::check(&path, false).unwrap();
        assert!(files(folder.path()).is_empty(), "checking leaves nothing");
        output.publish("x = 1\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "x = 1\n");
        assert_eq!(files(folder.path()), ["a.toml"]);
    }

    #[test]
    fn a_file_that_is_there_stays_unless_forced_also_when_it_comes_late() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        let late = Output::check(&path, false).unwrap();
        fs::write(&path, "mine").unwrap();
        for error in [Output::check(&path, false).err().unwrap(), late.publish("theirs").unwrap_err()] {
            assert!(error.to_string().contains("a.toml: exists; --force replaces it"), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), files(folder.path()).len()), ("mine", 1));
        Output::check(&path, true).unwrap().publish("theirs").unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), files(folder.path()).len()), ("theirs", 1));
    }

    #[test]
    fn a_folder_that_is_none_or_not_there_is_found_out_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Output::check(&folder.path().join("no/a.toml"), false).err().unwrap();
        assert!(missing.to_string().contains("no/a.toml"), "{missing}");
        assert!(Output::check(folder.path(), true).err().unwrap().to_string().ends_with("is a folder"));
    }

    #[test]
    fn keys_read_back_as_what_they_were() {
        let entry = |section: &str, key: &str, value: Value| (section.to_owned(), key.to_owned(), value);
        let list = [
            entry("model", "path", Value::from("/a \"b\"\n\\c.gguf")),
            entry("model", "threads", Value::from(3)),
            entry("memory", "budget", Value::from("42MiB")),
        ];
        let table = keys(&list).parse::<toml::Table>().unwrap();
        for (section, key, value) in &list {
            assert_eq!(&table[section][key], value);
        }
        assert_eq!(keys(&list).matches('[').count(), 2);
    }
}
