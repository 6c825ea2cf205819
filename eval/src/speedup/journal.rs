//! runs.jsonl: every finished run on a line of its own, so that nothing measured is lost.
//!
//! The first line says which sweep the runs are of; going on with another one is refused. A line that was
//! being written when the machine went down is dropped. It must not know what a run means.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::SpeedupError;
use super::record::Record;

/// Longest line; a reference run holds its ids.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// The file, and the runs in it.
pub struct Journal {
    file: File,
    path: PathBuf,
    runs: HashMap<String, Record>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    sweep: String,
}

impl Journal {
    /// A new journal of the sweep with this fingerprint, or with `resume` the one that is there.
    ///
    /// # Errors
    /// Runs that are there and were not to be gone on with; runs of another sweep; a line that is none.
    pub fn open(path: &Path, sweep: &str, resume: bool) -> Result<Journal, SpeedupError> {
        let failed = |source| SpeedupError::io("write", path, source);
        if path.exists() && !resume {
            let problem = format!("{} has runs already: --resume goes on with them", path.display());
            return Err(SpeedupError::Usage(problem));
        }
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        let mut journal =
            Journal { runs: HashMap::new(), file: file.try_clone().map_err(failed)?, path: path.into() };
        let whole = journal.read(sweep)?;
        file.set_len(whole).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        journal.file = file;
        if whole == 0 {
            journal.write(&Head { sweep: sweep.to_owned() })?;
        }
        Ok(journal)
    }

    /// Takes in what is there; returns the length of its whole lines.
    fn read(&mut self, sweep: &str) -> Result<u64, SpeedupError> {
        let mut input = BufReader::new(&self.file);
        let mut whole = 0;
        for number in 1.. {
            let bad = |problem: String| SpeedupError::Line { file: self.path.clone(), line: number, problem };
            let mut line = Vec::new();
            let read = input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
            read.map_err(|source| SpeedupError::io("read", &self.path, source))?;
            if line.last() != Some(&b'\n') {
                break;
            }
            if number == 1 {
                let head: Head = serde_json::from_slice(&line).map_err(|error| bad(error.to_string()))?;
                if head.sweep != sweep {
                    let problem =
                        "the runs are of another sweep, model or program: take another folder".to_owned();
                    return Err(bad(problem));
                }
            } else {
                let run: Record = serde_json::from_slice(&line).map_err(|error| bad(error.to_string()))?;
                self.runs.insert(run.key.clone(), run);
            }
            whole += line.len() as u64;
        }
        Ok(whole)
    }

    /// A run that gave numbers; one that failed is made again.
    pub fn find(&self, key: &str) -> Option<&Record> {
        self.runs.get(key).filter(|run| run.failure.is_none())
    }

    /// Whatever became of it.
    pub fn get(&self, key: &str) -> Option<&Record> {
        self.runs.get(key)
    }

    /// Keeps a run.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, run: Record) -> Result<(), SpeedupError> {
        self.write(&run)?;
        self.runs.insert(run.key.clone(), run);
        Ok(())
    }

    fn write(&mut self, line: &impl Serialize) -> Result<(), SpeedupError> {
        let failed = |source| SpeedupError::io("write", &self.path, source);
        let mut text = serde_json::to_vec(line).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        self.file.write_all(&text).and_then(|()| self.file.sync_data()).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::fs;

    use super::*;

    fn run(key: &str, failure: Option<&str>) -> Record {
        Record {
            key: key.to_owned(),
            command: "c".to_owned(),
            wall_s: 1.0,
            energy_j: None,
            load_before: None,
            round: 0,
            failure: failure.map(str::to_owned),
            measured: None,
            ids: vec![1, 2],
        }
    }

    #[test]
    fn finished_runs_are_found_again_and_a_torn_line_is_not_missed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs.jsonl");
        let mut journal = Journal::open(&path, "s", false).unwrap();
        journal.add(run("a", None)).unwrap();
        journal.add(run("b", Some("killed"))).unwrap();
        drop(journal);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole[..], b"{\"key\":\"c\",\"comm"].concat()).unwrap();

        assert!(Journal::open(&path, "s", false).is_err(), "not asked to go on");
        let mut journal = Journal::open(&path, "s", true).unwrap();
        assert_eq!(journal.find("a").unwrap().ids, [1, 2]);
        assert!(journal.find("b").is_none() && journal.get("b").is_some() && journal.get("c").is_none());
        journal.add(run("b", None)).unwrap();
        drop(journal);
        let journal = Journal::open(&path, "s", true).unwrap();
        assert!(journal.find("b").is_some() && journal.find("a").is_some());
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 4);
    }

    #[test]
    fn runs_of_another_sweep_and_damaged_lines_are_refused_with_their_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs.jsonl");
        drop(Journal::open(&path, "s", false).unwrap());
        let error = Journal::open(&path, "other", true).err().unwrap().to_string();
        assert!(error.contains("line 1") && error.contains("another sweep"), "{error}");
        fs::write(&path, "{\"sweep\":\"s\"}\n{}\n").unwrap();
        let error = Journal::open(&path, "s", true).err().unwrap().to_string();
        assert!(error.contains("line 2: missing field `key`"), "{error}");
    }
}
