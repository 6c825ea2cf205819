//! A model on disk: one GGUF file, or the parts of a split one.
//!
//! Maps each header, parses it, and drops the map again, so that nothing of the file stays in the
//! process. Owns the split rules of llama.cpp's `gguf-split`: the keys `split.no`, `split.count`,
//! `split.tensors.count`, and names that end in `-00001-of-00006.gguf`. Any part opens the whole.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::MmapOptions;

use super::error::GgufError;
use super::limits::{MAX_HEADER_BYTES, MAX_SPLIT_FILES};
use super::metadata::Metadata;
use super::parse::{Header, TensorInfo, duplicate_name, parse, sorted_indices};

/// The checked table of contents of a model: what there is and where, but no weights.
#[derive(Clone, Debug)]
pub struct Gguf {
    /// Metadata (of the first part, for a split model).
    pub metadata: Metadata,
    /// All tensors in file order, parts one after the other.
    pub tensors: Vec<TensorInfo>,
    /// The files, in part order; [`TensorInfo::file`] is an index into them.
    pub files: Vec<PathBuf>,
    /// Length of each file in bytes when its header was read.
    pub file_bytes: Vec<u64>,
    /// Format version of the first file, 2 or 3.
    pub version: u32,
    by_name: Vec<u32>, // indices into `tensors`, sorted by name
}

/// One file with its header.
struct Part {
    path: PathBuf,
    file_bytes: u64,
    header: Header,
}

impl Gguf {
    /// Opens a model by its file, or by any part of a split one.
    ///
    /// # Errors
    /// [`GgufError`]: the file cannot be read, is damaged, or a part is missing or does not fit.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        let part = read_part(path)?;
        match split_count(&part.header.metadata)? {
            None => assemble(vec![part]),
            Some(count) => assemble(read_all_parts(&part, count)?),
        }
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let tensor = |&index: &u32| &self.tensors[index as usize];
        let found = self.by_name.binary_search_by(|index| tensor(index).name.as_str().cmp(name)).ok()?;
        Some(tensor(&self.by_name[found]))
    }

    /// The file a tensor lies in.
    pub fn file_of(&self, tensor: &TensorInfo) -> Option<&Path> {
        self.files.get(usize::from(tensor.file)).map(PathBuf::as_path)
    }
}

fn read_part(path: &Path) -> Result<Part, GgufError> {
    // A pipe would block in `open`, so the kind is asked before.
    let kind = fs::metadata(path).map_err(|source| GgufError::io(path, "open the file", source))?;
    if !kind.is_file() {
        let source = std::io::Error::other("not a regular file");
        return Err(GgufError::io(path, "open the file", source));
    }
    let file = File::open(path).map_err(|source| GgufError::io(path, "open the file", source))?;
    let file_bytes = file_len(&file, path)?;
    let header = read_header(&file, file_bytes, path)?;
    if file_len(&file, path)? != file_bytes {
        return Err(GgufError::Changed { file: path.to_owned() });
    }
    Ok(Part { path: path.to_owned(), file_bytes, header })
}

fn file_len(file: &File, path: &Path) -> Result<u64, GgufError> {
    file.metadata()
        .map(|metadata| metadata.len())
        .map_err(|source| GgufError::io(path, "read the length", source))
}

/// Parses through a map that is gone when this returns: its pages leave the process with it.
fn read_header(file: &File, file_bytes: u64, path: &Path) -> Result<Header, GgufError> {
    if file_bytes == 0 {
        return parse(&[], 0, path); // an empty map is an error of its own
    }
    let window = file_bytes.min(MAX_HEADER_BYTES) as usize;
    // SAFETY: the map is private to this function, read-only, and no longer than the file was a moment
    // ago. A process that shortens the file during these milliseconds can still end us with SIGBUS;
    // a map cannot rule that out, and weights are never read through one.
    let map = unsafe { MmapOptions::new().len(window).map(file) }
        .map_err(|source| GgufError::io(path, "map the header", source))?;
    // The header is read once, front to back; nothing behind it should be read ahead for long.
    #[cfg(unix)]
    map.advise(memmap2::Advice::Sequential)
        .map_err(|source| GgufError::io(path, "map the header", source))?;
    parse(&map, file_bytes, path)
}

/// `split.count` where it says more than one file.
fn split_count(metadata: &Metadata) -> Result<Option<u64>, GgufError> {
    let count = metadata.u64("split.count")?.filter(|&count| count > 1);
    if count.is_some_and(|count| count > MAX_SPLIT_FILES) {
        return Err(split_error(metadata.file(), format!("more than {MAX_SPLIT_FILES} parts")));
    }
    Ok(count)
}

fn read_all_parts(opened: &Part, count: u64) -> Result<Vec<Part>, GgufError> {
    let number = part_number(&opened.header.metadata)?;
    let prefix = split_prefix(&opened.path, number, count)?;
    let mut parts = Vec::new();
    for expected in 1..=count {
        let name = format!("{prefix}{}", split_suffix(expected, count));
        let part = read_part(&opened.path.with_file_name(name)).map_err(|error| match error {
            GgufError::Io { file, source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                split_error(&file, format!("part {expected} of {count} is missing"))
            }
            other => other,
        })?;
        check_part(&part, expected, count)?;
        parts.push(part);
    }
    check_tensor_total(&parts)?;
    Ok(parts)
}

/// The number of a part, counted from 1 (`split.no` counts from 0).
fn part_number(metadata: &Metadata) -> Result<u64, GgufError> {
    Ok(metadata.require_u64("split.no")?.saturating_add(1))
}

fn split_suffix(number: u64, count: u64) -> String {
    format!("-{number:05}-of-{count:05}.gguf")
}

/// The file name in front of the suffix, the same for all parts.
fn split_prefix(path: &Path, number: u64, count: u64) -> Result<String, GgufError> {
    let suffix = split_suffix(number, count);
    let prefix = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(&suffix));
    prefix.map(str::to_owned).ok_or_else(|| {
        let problem = format!(
            "part {number} of {count}, but its name does not end in \"{suffix}\": the others cannot be found"
        );
        split_error(path, problem)
    })
}

fn check_part(part: &Part, expected: u64, count: u64) -> Result<(), GgufError> {
    let metadata = &part.header.metadata;
    let found_count = metadata.require_u64("split.count")?;
    if found_count != count {
        return Err(split_error(
            &part.path,
            format!("says it is one of {found_count} parts, another part says {count}"),
        ));
    }
    let number = part_number(metadata)?;
    if number != expected {
        return Err(split_error(&part.path, format!("says it is part {number}, its name says {expected}")));
    }
    Ok(())
}

fn check_tensor_total(parts: &[Part]) -> Result<(), GgufError> {
    let found: u64 = parts.iter().map(|part| part.header.tensors.len() as u64).sum();
    for part in parts {
        match part.header.metadata.u64("split.tensors.count")? {
            Some(expected) if expected != found => {
                let problem = format!("says the parts hold {expected} tensors, they hold {found}");
                return Err(split_error(&part.path, problem));
            }
            _ => {}
        }
    }
    Ok(())
}

fn split_error(file: &Path, problem: String) -> GgufError {
    GgufError::Split { file: file.to_owned(), problem }
}

fn assemble(parts: Vec<Part>) -> Result<Gguf, GgufError> {
    let mut parts = parts.into_iter();
    let first = parts.next().expect("invariant: a model has at least one file");
    let mut gguf = Gguf {
        metadata: first.header.metadata,
        tensors: first.header.tensors,
        files: vec![first.path],
        file_bytes: vec![first.file_bytes],
        version: first.header.version,
        by_name: Vec::new(),
    };
    for (index, part) in (1u16..).zip(parts) {
        gguf.tensors
            .extend(part.header.tensors.into_iter().map(|tensor| TensorInfo { file: index, ..tensor }));
        gguf.files.push(part.path);
        gguf.file_bytes.push(part.file_bytes);
    }
    gguf.by_name = sorted_indices(&gguf.tensors, |tensor| &tensor.name);
    if let Some((tensor, other)) = duplicate_name(&gguf.tensors, &gguf.by_name) {
        let path = |tensor: &TensorInfo| gguf.files[usize::from(tensor.file)].clone();
        return Err(GgufError::DuplicateTensor {
            file: path(tensor),
            tensor: tensor.name.clone(),
            other: path(other),
        });
    }
    Ok(gguf)
}
