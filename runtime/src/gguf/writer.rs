//! Writing a GGUF v3 file: metadata and tensors in the order given, atomically.
//!
//! The header it is about to write goes through [`parse`] first, so the writer refuses exactly what
//! the reader refuses. Tensor data is streamed from its source; nothing but the header is held in
//! memory. The file appears under its name complete and synced, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::block::BlockType;
use super::error::{GgufError, quoted};
use super::metadata::Metadata;
use super::parse::{MAGIC, alignment, parse, tensor_bytes};
use super::value::{Array, Value, ValueType};

/// The format version written.
const VERSION: u32 = 3;
/// Names tried for the temporary file before giving up (others are left over from a crash).
const TEMP_NAMES_MAX: u32 = 64;

/// Writes all of one tensor's bytes when its turn comes.
type TensorSource<'a> = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + 'a>;

/// A GGUF file to be: collect metadata and tensors, then [`Writer::write`].
#[derive(Default)]
pub struct Writer<'a> {
    metadata: Vec<(String, Value)>,
    tensors: Vec<TensorEntry>,
    sources: Vec<TensorSource<'a>>,
}

/// A tensor as it is announced to [`FilePlan::new`]: everything but its bytes and their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Name, unique in the file.
    pub name: String,
    /// Sizes, fastest-varying first.
    pub dims: Vec<u64>,
    /// How the elements are stored.
    pub block_type: BlockType,
}

impl<'a> Writer<'a> {
    /// A writer of an empty file.
    pub fn new() -> Writer<'a> {
        Writer::default()
    }

    /// Adds a pair. `general.alignment` sets the alignment of the file.
    pub fn metadata(&mut self, key: impl Into<String>, value: impl Into<Value>) -> &mut Self {
        self.metadata.push((key.into(), value.into()));
        self
    }

    /// Adds a tensor: `dims` fastest-varying first; `source` writes its bytes, exactly as many as shape
    /// and type ask for, when the file is written.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        dims: &[u64],
        block_type: BlockType,
        source: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'a,
    ) -> &mut Self {
        self.tensors.push(TensorEntry { name: name.into(), dims: dims.to_vec(), block_type });
        self.sources.push(Box::new(source));
        self
    }

    /// Writes the file and returns its length in bytes. A file of that name is replaced.
    ///
    /// # Errors
    /// Whatever the reader would say of this file; a source that gives another number of bytes than
    /// its tensor has; I/O. The temporary file is removed.
    pub fn write(self, path: &Path) -> Result<u64, GgufError> {
        let metadata = Metadata::from_entries(path, self.metadata)?;
        let layout = Layout::of(&metadata, &self.tensors, path)?;
        let (header, file_bytes) = checked_header(&metadata, &self.tensors, &layout, path)?;
        let mut temp =
            TempFile::create(path).map_err(|source| GgufError::io(path, "create the file", source))?;
        let mut out = BufWriter::new(&mut temp.file);
        let tensors = self.tensors.iter().zip(self.sources);
        let written = out.write_all(&header).and_then(|()| pour(&mut out, tensors, &layout));
        written.and_then(|()| out.flush()).map_err(|source| GgufError::io(path, "write the file", source))?;
        drop(out);
        temp.publish(path).map_err(|source| GgufError::io(path, "finish the file", source))?;
        Ok(file_bytes)
    }
}

/// A file to be whose data somebody else writes: its header, and where every tensor belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlan {
    /// The first bytes of the file, padded up to the data.
    pub header: Vec<u8>,
    /// First byte of each tensor, absolute in the file.
    pub offsets: Vec<u64>,
    /// Length of the file, padding behind the last tensor included.
    pub file_bytes: u64,
}

impl FilePlan {
    /// Lays out a file with these tensors in this order. The path is only named in errors.
    ///
    /// # Errors
    /// Whatever the reader would say of this file.
    pub fn new(path: &Path, metadata: &Metadata, tensors: &[TensorEntry]) -> Result<FilePlan, GgufError> {
        let layout = Layout::of(metadata, tensors, path)?;
        let (header, file_bytes) = checked_header(metadata, tensors, &layout, path)?;
        let data_start = header.len() as u64;
        let offsets = layout.offsets.iter().map(|offset| data_start + offset).collect();
        Ok(FilePlan { header, offsets, file_bytes })
    }
}

/// The header as the reader accepts it, and the length of the file.
fn checked_header(
    metadata: &Metadata,
    tensors: &[TensorEntry],
    layout: &Layout,
    path: &Path,
) -> Result<(Vec<u8>, u64), GgufError> {
    let header = encode_header(metadata, tensors, layout)?;
    let file_bytes = (header.len() as u64).saturating_add(layout.data_bytes);
    parse(&header, file_bytes, path)?;
    Ok((header, file_bytes))
}

/// Where the tensors will lie, relative to the data section.
struct Layout {
    alignment: u64,
    offsets: Vec<u64>,
    sizes: Vec<u64>, // bytes, without padding
    data_bytes: u64, // with padding, also behind the last tensor (llama.cpp reads it)
}

impl Layout {
    fn of(metadata: &Metadata, tensors: &[TensorEntry], path: &Path) -> Result<Layout, GgufError> {
        let alignment = alignment(metadata)?;
        let mut layout = Layout { alignment, offsets: Vec::new(), sizes: Vec::new(), data_bytes: 0 };
        for tensor in tensors {
            let bad = |problem| GgufError::BadTensor {
                file: path.to_owned(),
                tensor: tensor.name.clone(),
                problem,
            };
            let size = tensor_bytes(tensor.block_type, &tensor.dims).map_err(bad)?;
            layout.offsets.push(layout.data_bytes);
            layout.sizes.push(size);
            let end =
                layout.data_bytes.checked_add(size).and_then(|end| end.checked_next_multiple_of(alignment));
            layout.data_bytes = end.ok_or_else(|| bad("the file would pass 2^64 bytes".to_owned()))?;
        }
        Ok(layout)
    }
}

/// The header with the padding behind it.
fn encode_header(
    metadata: &Metadata,
    tensors: &[TensorEntry],
    layout: &Layout,
) -> Result<Vec<u8>, GgufError> {
    let mut header = Vec::new();
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    put_len(&mut header, tensors.len());
    put_len(&mut header, metadata.len());
    for (key, value) in metadata.iter() {
        put_string(&mut header, key.as_bytes());
        put_value(&mut header, value);
    }
    for (tensor, offset) in tensors.iter().zip(&layout.offsets) {
        put_string(&mut header, tensor.name.as_bytes());
        header.extend_from_slice(&(tensor.dims.len() as u32).to_le_bytes());
        tensor.dims.iter().for_each(|dim| header.extend_from_slice(&dim.to_le_bytes()));
        header.extend_from_slice(&tensor.block_type.id().to_le_bytes());
        header.extend_from_slice(&offset.to_le_bytes());
    }
    let padded = header.len().next_multiple_of(layout.alignment as usize);
    header.resize(padded, 0);
    Ok(header)
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&(len as u64).to_le_bytes());
}

fn put_string(out: &mut Vec<u8>, string: &[u8]) {
    put_len(out, string.len());
    out.extend_from_slice(string);
}

fn put_type(out: &mut Vec<u8>, value_type: ValueType) {
    out.extend_from_slice(&value_type.id().to_le_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    put_type(out, value.value_type());
    match value {
        Value::U8(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::I8(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::U16(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::I16(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::U32(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::I32(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::U64(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::I64(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::F32(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::F64(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::Bool(flag) => out.push(u8::from(*flag)),
        Value::String(string) => put_string(out, string.as_bytes()),
        Value::Array(array) => put_array(out, array),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    put_type(out, array.element_type());
    put_len(out, array.len());
    match array {
        Array::U8(numbers) => out.extend_from_slice(numbers),
        Array::I8(numbers) => put_all(out, numbers, |number| number.to_le_bytes()),
        Array::U16(numbers) => put_all(out, numbers, |number| number.to_le_bytes()),
        Array::I16(numbers) => put_all(out, numbers, |number| number.to_le_bytes()),
        Array::U32(numbers) => put_all(out, numbers, |number| number.to_le_bytes()),
        Array::I32(numbers) => put_all(out, numbers, |number| number.to_le_bytes()),
        Array::U64(numbers) => put_all(out, numbers, |number| number.to_le_bytes()),
        Array::I64(numbers) => put_all(out, numbers, |number| number.to_le_bytes()),
        Array::F32(numbers) => put_all(out, numbers, |number| number.to_le_bytes()),
        Array::F64(numbers) => put_all(out, numbers, |number| number.to_le_bytes()),
        Array::Bool(flags) => put_all(out, flags, |flag| [u8::from(flag)]),
        Array::Strings(strings) => strings.iter().for_each(|string| put_string(out, string)),
    }
}

fn put_all<T: Copy, const N: usize>(out: &mut Vec<u8>, values: &[T], encode: impl Fn(T) -> [u8; N]) {
    out.reserve(values.len() * N);
    values.iter().for_each(|&value| out.extend_from_slice(&encode(value)));
}

/// Writes every tensor and the padding behind it.
fn pour<'a>(
    out: &mut dyn Write,
    tensors: impl Iterator<Item = (&'a TensorEntry, TensorSource<'a>)>,
    layout: &Layout,
) -> io::Result<()> {
    for ((tensor, source), &size) in tensors.zip(&layout.sizes) {
        let mut exact = Exact { out, name: &tensor.name, left: size };
        source(&mut exact)?;
        if exact.left > 0 {
            let problem = format!(
                "tensor {}: its source is {} bytes short of {size}",
                quoted(&tensor.name),
                exact.left
            );
            return Err(io::Error::other(problem));
        }
        let padding = size.next_multiple_of(layout.alignment) - size;
        io::copy(&mut io::Read::take(io::repeat(0), padding), out)?;
    }
    Ok(())
}

/// Passes on at most `left` bytes; one more is an error.
struct Exact<'a> {
    out: &'a mut dyn Write,
    name: &'a str,
    left: u64,
}

impl Write for Exact<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            let problem = format!("tensor {}: its source gives more bytes than it has", quoted(self.name));
            return Err(io::Error::other(problem));
        }
        let written = self.out.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A file under another name in the same folder, removed unless published.
struct TempFile {
    path: PathBuf,
    file: File,
}

impl TempFile {
    fn create(target: &Path) -> io::Result<TempFile> {
        let name = target.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
        let mut last = io::Error::other("no free name for a temporary file");
        for attempt in 0..TEMP_NAMES_MAX {
            let mut temp_name = std::ffi::OsString::from(".");
            temp_name.push(name);
            temp_name.push(format!(".{}-{attempt}.tmp", std::process::id()));
            let path = target.with_file_name(temp_name);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(TempFile { path, file }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Syncs the file, gives it its name, and syncs the folder, so that the name survives a crash.
    fn publish(self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, target)?;
        #[cfg(unix)]
        if let Some(folder) = target.parent() {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // After `publish` the name is gone and this fails; before, it is the clean-up. Neither matters.
        let _ = fs::remove_file(&self.path);
    }
}
