//! The file of logits through which two runs are compared, whichever engine wrote them.
//!
//! ```text
//! {"format":"drafthorse-logits-1","vocab":V,"context":C,"windows":W,"ids_hash":"16 hex digits","engine":"..."}\n
//! W x (C - 1 - C/2) rows of V little-endian f32: the raw logits of the scored positions, in order
//! ```
//!
//! `ids_hash` is the fingerprint of the W x C ids of all windows (`engine::ids_hash`), `engine` says who
//! wrote the file and how; more keys may stand there. `scripts/peer/logits_ids.cpp` writes the same from
//! llama.cpp. A file is input like any other: its header is bounded and its length is held against what
//! the header says before a row is read. Must not know what the rows are used for.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use drafthorse_runtime::engine::ids_hash;
use serde::{Deserialize, Serialize};

use super::PplError;
use super::windows::{CONTEXT_MIN, Windows, scored};

const FORMAT: &str = "drafthorse-logits-1";
/// Longest header line that is read.
const HEADER_BYTES_MAX: u64 = 64 << 10;
/// More tokens than any vocabulary has: bounds a row's buffer.
const VOCAB_MAX: usize = 1 << 22;
const BUFFER_BYTES: usize = 1 << 20;

/// The first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    format: String,
    /// Logits of a row.
    pub vocab: usize,
    /// Tokens of a window.
    pub context: usize,
    /// Windows.
    pub windows: usize,
    /// Fingerprint of their ids.
    pub ids_hash: String,
    /// Who wrote it, and with which settings.
    pub engine: String,
}

impl Header {
    /// Of a run over these windows.
    pub fn new(vocab: usize, windows: &Windows, engine: String) -> Header {
        Header {
            format: FORMAT.to_owned(),
            vocab,
            context: windows.context(),
            windows: windows.len(),
            ids_hash: ids_hash(windows.ids()),
            engine,
        }
    }

    /// Bytes of all rows; None where the numbers make no file.
    fn rows_bytes(&self) -> Option<u64> {
        if !(1..=VOCAB_MAX).contains(&self.vocab) || self.context < CONTEXT_MIN {
            return None;
        }
        let rows = self.windows.checked_mul(scored(self.context).len())?;
        u64::try_from(rows.checked_mul(self.vocab)?.checked_mul(size_of::<f32>())?).ok()
    }
}

/// Reads row after row.
#[derive(Debug)]
pub struct LogitsReader {
    path: PathBuf,
    header: Header,
    file: BufReader<File>,
    bytes: Vec<u8>,
    row: Vec<f32>,
}

impl LogitsReader {
    /// Opens a file and checks its header and length.
    ///
    /// # Errors
    /// It cannot be read, is none of this kind, or is shorter or longer than its header says.
    pub fn open(path: &Path) -> Result<LogitsReader, PplError> {
        let read = |source| PplError::Io { action: "read", file: path.to_owned(), source };
        let bad = |problem: String| PplError::Logits { file: path.to_owned(), problem };
        let file = File::open(path).map_err(read)?;
        let file_bytes = file.metadata().map_err(read)?.len();
        let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
        let mut line = Vec::new();
        file.by_ref().take(HEADER_BYTES_MAX).read_until(b'\n', &mut line).map_err(read)?;
        let header: Header = serde_json::from_slice(&line)
            .map_err(|error| bad(format!("no header of a file of logits: {error}")))?;
        if header.format != FORMAT || line.last() != Some(&b'\n') {
            return Err(bad(format!("not a file of logits of the format {FORMAT}")));
        }
        let expected = header.rows_bytes().and_then(|rows| rows.checked_add(line.len() as u64));
        let expected = expected.ok_or_else(|| bad("the header's sizes make no file".to_owned()))?;
        if file_bytes != expected {
            return Err(bad(format!("has {file_bytes} bytes, where its header says {expected}")));
        }
        let vocab = header.vocab;
        Ok(LogitsReader {
            path: path.to_owned(),
            header,
            file,
            bytes: vec![0; vocab * size_of::<f32>()],
            row: Vec::with_capacity(vocab),
        })
    }

    /// What the file says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Whether its rows are of the same positions as another's.
    ///
    /// # Errors
    /// The first difference, in words.
    pub fn check(&self, wanted: &Header) -> Result<(), PplError> {
        let Header { vocab, context, windows, ids_hash, .. } = &self.header;
        let problem = if *vocab != wanted.vocab {
            format!("has a vocabulary of {vocab} tokens, not {}", wanted.vocab)
        } else if *context != wanted.context || *windows != wanted.windows {
            format!("has {windows} windows of {context} tokens, not {} of {}", wanted.windows, wanted.context)
        } else if *ids_hash != wanted.ids_hash {
            format!("is of other ids (fingerprint {}, not {})", shown(ids_hash), wanted.ids_hash)
        } else {
            return Ok(());
        };
        Err(PplError::Logits { file: self.path.clone(), problem })
    }

    /// The next row.
    ///
    /// # Errors
    /// It cannot be read, as when the file has become shorter.
    pub fn row(&mut self) -> Result<&[f32], PplError> {
        let read = |source| PplError::Io { action: "read", file: self.path.clone(), source };
        self.file.read_exact(&mut self.bytes).map_err(read)?;
        self.row.clear();
        self.row.extend(self.bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)));
        Ok(&self.row)
    }
}

/// The start of a text that a hostile file chose.
fn shown(text: &str) -> String {
    text.chars().take(16).filter(char::is_ascii_graphic).collect()
}

/// Writes row after row. The file has its name only once it is whole, so a run may replace the file it
/// is compared with.
pub struct LogitsWriter {
    path: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
    is_whole: bool,
}

impl LogitsWriter {
    /// Begins a file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(path: &Path, header: &Header) -> Result<LogitsWriter, PplError> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let mut line = serde_json::to_vec(header).expect("invariant: a header is plain data");
        line.push(b'\n');
        let create = || {
            let mut file = BufWriter::with_capacity(BUFFER_BYTES, File::create(&partial)?);
            file.write_all(&line)?;
            Ok(file)
        };
        let file = create().map_err(|source| failed(path, source))?;
        Ok(LogitsWriter { path: path.to_owned(), partial, file, is_whole: false })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn push(&mut self, row: &[f32]) -> Result<(), PplError> {
        let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.file.write_all(&bytes).map_err(|source| failed(&self.path, source))
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// The rest cannot be written, or the file not renamed.
    pub fn finish(mut self) -> Result<(), PplError> {
        let named = self.file.flush().and_then(|()| fs::rename(&self.partial, &self.path));
        self.is_whole = named.is_ok();
        named.map_err(|source| failed(&self.path, source))
    }
}

impl Drop for LogitsWriter {
    fn drop(&mut self) {
        if !self.is_whole {
            // What is left of a failed run is of no use; that it stays is not worth a second error.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

fn failed(file: &Path, source: io::Error) -> PplError {
    PplError::Io { action: "write", file: file.to_owned(), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn header() -> Header {
        let windows = Windows::cut((0..10).collect(), (5, None), None).unwrap();
        Header::new(3, &windows, "test".to_owned())
    }

    /// 2 windows x 2 scored rows x 3 logits.
    fn whole(path: &Path) {
        let mut file = LogitsWriter::create(path, &header()).unwrap();
        for row in 0..4 {
            file.push(&[row as f32, -1.5, 0.25]).unwrap();
        }
        file.finish().unwrap();
    }

    #[test]
    fn rows_come_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.logits");
        whole(&path);
        let mut reader = LogitsReader::open(&path).unwrap();
        assert_eq!(reader.header(), &header());
        for row in 0..4 {
            assert_eq!(reader.row().unwrap(), [row as f32, -1.5, 0.25]);
        }
        assert!(matches!(reader.row(), Err(PplError::Io { .. })), "there is no fifth");
    }

    #[test]
    fn a_file_that_was_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        drop(LogitsWriter::create(&folder.path().join("a.logits"), &header()).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_of_another_length_is_refused_at_every_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.logits");
        whole(&path);
        let bytes = fs::read(&path).unwrap();
        let problem = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let error = LogitsReader::open(&path).unwrap_err();
            assert!(matches!(error, PplError::Logits { .. }), "{error}");
            error.to_string()
        };
        for len in 0..bytes.len() {
            problem(&bytes[..len]);
        }
        assert!(problem(&[&bytes[..], b"\0"].concat()).contains("its header says"));
    }

    #[test]
    fn headers_that_promise_too_much_are_refused_before_memory_is_spent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.logits");
        let refused = |vocab: &str, context: &str, windows: &str| {
            let text = format!(
                "{{\"format\":\"{FORMAT}\",\"vocab\":{vocab},\"context\":{context},\"windows\":{windows},\
                 \"ids_hash\":\"\",\"engine\":\"\"}}\n"
            );
            fs::write(&path, text).unwrap();
            assert!(matches!(LogitsReader::open(&path), Err(PplError::Logits { .. })), "{vocab} {context}");
        };
        let huge = u64::MAX.to_string();
        for (vocab, context, windows) in [
            (huge.as_str(), "512", "1"),
            ("32000", huge.as_str(), "1"),
            ("32000", "512", huge.as_str()),
            ("0", "512", "1"),
            ("32000", "3", "1"),
            ("-1", "512", "1"),
        ] {
            refused(vocab, context, windows);
        }
        fs::write(&path, vec![b' '; 1 << 20]).unwrap();
        assert!(matches!(LogitsReader::open(&path), Err(PplError::Logits { .. })));
    }

    #[test]
    fn the_first_difference_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.logits");
        whole(&path);
        let reader = LogitsReader::open(&path).unwrap();
        reader.check(&Header { engine: "another".into(), ..header() }).unwrap();
        for (other, reason) in [
            (Header { vocab: 4, ..header() }, "vocabulary of 3 tokens, not 4"),
            (Header { windows: 1, ..header() }, "2 windows of 5 tokens, not 1 of 5"),
            (Header { ids_hash: "0".into(), ..header() }, "other ids"),
        ] {
            assert!(reader.check(&other).unwrap_err().to_string().contains(reason), "{reason}");
        }
    }
}
