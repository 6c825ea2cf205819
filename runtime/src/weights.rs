//! Dense weights: everything but routed experts, read once into memory that is ours.
//!
//! Owns the table of needed tensors with their checked shapes, the memory they are loaded into (one
//! mapping, counted by the memory plan) and the loading itself, through the same unbuffered readers as
//! experts: nothing is left to the page cache's chance (DESIGN I1). Must not know what tensors mean.

use std::collections::VecDeque;
use std::sync::OnceLock;

use drafthorse_offload::{AlignedBuf, Extent, PAGE_BYTES, Read, Reader};
use memmap2::{MmapMut, UncheckedAdvice};

use crate::gguf::{BlockType, Gguf, TensorInfo, quantize};
use crate::kernels::{Format, MatrixRef};
use crate::models::LoadError;

/// Bytes of one read while loading: large enough for any disk's full speed.
const PIECE_BYTES: usize = 512 << 10;
/// Pieces in flight while loading.
const PIECES_IN_FLIGHT: usize = 4;
/// Memory of the reads in flight.
const LOAD_BUFFER_BYTES: u64 = (PIECES_IN_FLIGHT * (PIECE_BYTES + 2 * PAGE_BYTES)) as u64;
/// Tensors start at multiples of this in memory.
const ALIGN: usize = 64;

/// A dense matrix (or a stack of equal ones, as rows one after another), by its place in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    id: usize,
    /// Block format.
    pub format: Format,
    /// Output width.
    pub rows: usize,
    /// Input width.
    pub cols: usize,
}

impl Matrix {
    /// Its number in the store.
    pub(crate) fn id(&self) -> usize {
        self.id
    }
}

#[cfg(test)]
impl Matrix {
    pub(crate) fn for_tests(format: Format, rows: usize, cols: usize) -> Matrix {
        Matrix { id: 0, format, rows, cols }
    }
}

/// A dense vector of floats, by its place in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector {
    id: usize,
    len: usize,
}

impl Vector {
    /// Values.
    #[expect(clippy::len_without_is_empty, reason = "no tensor is empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Its number in the store.
    pub(crate) fn id(&self) -> usize {
        self.id
    }
}

/// Where a stored matrix comes from.
enum Source {
    /// A tensor of the file, byte for byte.
    Tensor(TensorInfo),
    /// The key rows of every head of a legacy `attn_kv_b`, transposed.
    TransposedKeys { of: Matrix, heads: usize, nope: usize, block_type: BlockType },
}

struct StoredMatrix {
    source: Source,
    format: Format,
    start: usize,
    bytes: usize, // 0 for one that was left out
}

struct StoredVector {
    info: TensorInfo,
    format: Format,
    values: Vec<f32>,
}

/// The dense tensors of one model.
pub struct DenseStore {
    path: std::path::PathBuf,
    infos: std::collections::HashMap<String, TensorInfo>,
    matrices: Vec<StoredMatrix>,
    vectors: Vec<StoredVector>,
    end: usize,
    memory: Option<MmapMut>,
    /// Numbers of the matrices that are still there, once others were let go.
    kept: OnceLock<Vec<usize>>,
}

impl DenseStore {
    /// An empty store over the tensors of `gguf`.
    pub fn new(gguf: &Gguf) -> DenseStore {
        DenseStore {
            path: gguf.metadata.file().into(),
            infos: gguf.tensors.iter().map(|info| (info.name.clone(), info.clone())).collect(),
            matrices: Vec::new(),
            vectors: Vec::new(),
            end: 0,
            memory: None,
            kept: OnceLock::new(),
        }
    }

    /// Whether the file has the tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.infos.contains_key(name)
    }

    /// Names of all tensors that have been registered to be loaded.
    pub fn registered(&self) -> impl Iterator<Item = &str> {
        let matrices = self.matrices.iter().filter_map(|stored| match &stored.source {
            Source::Tensor(info) => Some(info.name.as_str()),
            Source::TransposedKeys { .. } => None,
        });
        matrices.chain(self.vectors.iter().map(|vector| vector.info.name.as_str()))
    }

    /// Second dimension of a tensor, for widths that only the tensor itself states.
    pub fn rows_of(&self, name: &str) -> Result<usize, LoadError> {
        let info = self.info(name)?;
        let rows = info.dims.get(1).and_then(|rows| usize::try_from(*rows).ok()).filter(|rows| *rows > 0);
        rows.ok_or_else(|| shape_error(&self.path, info, "[width, inner width]".into()))
    }

    /// Registers `[rows, cols]`.
    pub fn matrix_of(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        self.register(name, rows, cols, &[cols, rows])
    }

    /// As [`DenseStore::matrix_of`] where the file has the tensor.
    pub fn optional_matrix_of(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Option<Matrix>, LoadError> {
        if self.contains(name) { self.matrix_of(name, rows, cols).map(Some) } else { Ok(None) }
    }

    /// Registers a stack of `heads` matrices `[rows, cols]`.
    pub fn heads_of(
        &mut self,
        name: &str,
        heads: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Matrix, LoadError> {
        self.register(name, heads * rows, cols, &[cols, rows, heads])
    }

    fn register(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
        dims: &[usize],
    ) -> Result<Matrix, LoadError> {
        let info = self.info(name)?.clone();
        let format = check_dims(&self.path, &info, dims)?;
        let bytes = info.bytes as usize;
        Ok(self.add(Source::Tensor(info), bytes, (format, rows, cols)))
    }

    /// Registers the keys of a legacy `attn_kv_b` (`kv_b`: per head `nope` key rows, then its value
    /// rows, each `[kv_lora]`) as `heads` matrices `[kv_lora, nope]`. Floats keep their precision (BF16
    /// becomes F32); quantized weights become Q8_0, as converters write this tensor.
    pub fn transposed_keys(&mut self, kv_b: &Matrix, heads: usize, nope: usize) -> Result<Matrix, LoadError> {
        let block_type = match kv_b.format {
            Format::F32 | Format::BF16 => BlockType::F32,
            Format::F16 => BlockType::F16,
            _ if (nope as u64).is_multiple_of(BlockType::Q8_0.block_len()) => BlockType::Q8_0,
            _ => BlockType::F16,
        };
        let format = Format::of(block_type).expect("invariant: the chosen formats have kernels");
        let rows = heads * kv_b.cols;
        let bytes = block_type.bytes_for((rows * nope) as u64).expect("invariant: whole blocks") as usize;
        let source = Source::TransposedKeys { of: *kv_b, heads, nope, block_type };
        Ok(self.add(source, bytes, (format, rows, nope)))
    }

    fn add(&mut self, source: Source, bytes: usize, (format, rows, cols): (Format, usize, usize)) -> Matrix {
        let start = self.end;
        self.end = (start + bytes).next_multiple_of(ALIGN);
        self.matrices.push(StoredMatrix { source, format, start, bytes });
        Matrix { id: self.matrices.len() - 1, format, rows, cols }
    }

    /// Leaves a tensor's matrix where it is: it takes no memory and is not loaded. Returns where it lies;
    /// `None` for a matrix that is not one of the file's.
    pub fn leave_out(&mut self, matrix: &Matrix) -> Option<TensorInfo> {
        let Source::Tensor(info) = &self.matrices[matrix.id].source else { return None };
        let info = info.clone();
        self.matrices[matrix.id].bytes = 0;
        self.end = 0;
        for stored in &mut self.matrices {
            stored.start = self.end;
            self.end = (stored.start + stored.bytes).next_multiple_of(ALIGN);
        }
        Some(info)
    }

    /// Registers a vector, which is kept as f32 whatever its type in the file.
    pub fn vector_of(&mut self, name: &str, len: usize) -> Result<Vector, LoadError> {
        let info = self.info(name)?.clone();
        let format = check_dims(&self.path, &info, &[len])?;
        self.vectors.push(StoredVector { info, format, values: Vec::new() });
        Ok(Vector { id: self.vectors.len() - 1, len })
    }

    /// As [`DenseStore::vector_of`] where the file has the tensor.
    pub fn optional_vector(&mut self, name: &str, len: usize) -> Result<Option<Vector>, LoadError> {
        if self.contains(name) { self.vector_of(name, len).map(Some) } else { Ok(None) }
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, LoadError> {
        let missing = || LoadError::MissingTensor { path: self.path.clone(), tensor: name.into() };
        self.infos.get(name).ok_or_else(missing)
    }

    /// Bytes the loaded store holds.
    pub fn bytes(&self) -> u64 {
        let vectors: u64 = self.vectors.iter().map(|vector| vector.info.elements() * 4).sum();
        self.end as u64 + vectors
    }

    /// Memory that loading needs beside the weights themselves: reads in flight, vectors as they are in
    /// the file, and the floats of a matrix that is derived from another.
    pub fn load_bytes(&self) -> u64 {
        let raw: u64 = self.vectors.iter().map(|vector| vector.info.bytes).sum();
        let derived = self.matrices.iter().map(|stored| match &stored.source {
            Source::Tensor(_) => 0,
            Source::TransposedKeys { of, heads, nope, .. } => {
                (heads * of.cols * nope * 4 + stored.bytes) as u64
            }
        });
        LOAD_BUFFER_BYTES + raw + derived.max().unwrap_or(0)
    }

    /// Bytes of one matrix.
    pub fn bytes_of(&self, matrix: &Matrix) -> u64 {
        self.matrices[matrix.id].bytes as u64
    }

    /// Reads everything that was registered; `progress` hears of the bytes as they arrive.
    ///
    /// # Errors
    /// A read that fails or is short, naming the tensor; no memory.
    pub fn load(&mut self, reader: &mut dyn Reader, progress: &mut dyn FnMut(u64)) -> Result<(), LoadError> {
        self.infos = Default::default();
        let bytes = self.end.max(1);
        let allocation = |source| LoadError::Allocation { bytes: bytes as u64, source };
        let mut memory = MmapMut::map_anon(bytes).map_err(allocation)?;
        // With prefetching, streaming through large pages was faster (eval/LOG.md, 2026-11-26); a system that
        // has none gives small ones.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        let mut raw: Vec<Vec<u8>> = self.vectors.iter().map(|v| vec![0; v.info.bytes as usize]).collect();
        let pieces = self.pieces();
        read_pieces(reader, &pieces, &self.names(), &mut |piece, bytes| {
            let out = match piece.target {
                Target::Matrix(id) => &mut memory[self.matrices[id].start..][..self.matrices[id].bytes],
                Target::Vector(id) => &mut raw[id][..],
            };
            out[piece.at..piece.at + bytes.len()].copy_from_slice(bytes);
            progress(bytes.len() as u64);
        })?;
        for (vector, raw) in self.vectors.iter_mut().zip(raw) {
            vector.values = vec![0.0; vector.info.elements() as usize];
            vector.format.dequantize(&raw, &mut vector.values);
        }
        self.derive(&mut memory)?;
        self.memory = Some(memory);
        Ok(())
    }

    fn pieces(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut cut = |target: Target, info: &TensorInfo| {
            for at in (0..info.bytes).step_by(PIECE_BYTES) {
                let len = (info.bytes - at).min(PIECE_BYTES as u64);
                let extent = Extent { file: info.file, offset: info.offset + at, len };
                pieces.push(Piece { target, at: at as usize, extent });
            }
        };
        for (id, matrix) in self.matrices.iter().enumerate().filter(|(_, matrix)| matrix.bytes > 0) {
            if let Source::Tensor(info) = &matrix.source {
                cut(Target::Matrix(id), info);
            }
        }
        self.vectors.iter().enumerate().for_each(|(id, vector)| cut(Target::Vector(id), &vector.info));
        pieces
    }

    fn names(&self) -> impl Fn(Target) -> String {
        move |target| match target {
            Target::Vector(id) => self.vectors[id].info.name.clone(),
            Target::Matrix(id) => match &self.matrices[id].source {
                Source::Tensor(info) => info.name.clone(),
                Source::TransposedKeys { .. } => String::new(),
            },
        }
    }

    /// Computes the matrices that are made from others.
    fn derive(&self, memory: &mut MmapMut) -> Result<(), LoadError> {
        for stored in &self.matrices {
            let Source::TransposedKeys { of, heads, nope, block_type } = stored.source else { continue };
            let from = self.matrices[of.id].start;
            let source = MatrixRef {
                format: of.format,
                rows: of.rows,
                cols: of.cols,
                bytes: &memory[from..from + self.matrices[of.id].bytes],
            };
            let transposed = transpose_keys(source, heads, nope);
            let bytes = quantize(block_type, &transposed)?;
            memory[stored.start..stored.start + stored.bytes].copy_from_slice(&bytes);
        }
        Ok(())
    }

    /// Gives the memory of all matrices but `keep` back to the system: they have been copied to where they are
    /// needed. Whoever still reads one of them is wrong.
    pub(crate) fn let_go(&self, keep: &[Matrix]) {
        let Some(memory) = &self.memory else { return };
        if self.kept.set(keep.iter().map(|matrix| matrix.id).collect()).is_err() {
            return;
        }
        for (_, stored) in self.matrices.iter().enumerate().filter(|(id, _)| !self.has(*id)) {
            // Whole pages of its own.
            let from = stored.start.next_multiple_of(PAGE_BYTES);
            let to = (stored.start + stored.bytes) / PAGE_BYTES * PAGE_BYTES;
            if from < to {
                // SAFETY: the range lies in the mapping, which is anonymous: it reads as zeros from now on. `matrix`
                // hands out nothing of it any more, and nobody holds what it handed out before: loading is over.
                let advised =
                    unsafe { memory.unchecked_advise_range(UncheckedAdvice::DontNeed, from, to - from) };
                // A system that keeps the pages costs memory, nothing else.
                let _ = advised;
            }
        }
    }

    /// Bytes that are left after [`DenseStore::let_go`].
    pub(crate) fn kept_bytes(&self, keep: &[Matrix]) -> u64 {
        let vectors: u64 = self.vectors.iter().map(|vector| vector.info.elements() * 4).sum();
        // A matrix shares its first and last page with its neighbours.
        let pages = (self.matrices.len() * PAGE_BYTES) as u64;
        let is_first = |at: usize| keep[..at].iter().all(|other| other.id != keep[at].id);
        let kept = (0..keep.len()).filter(|at| is_first(*at)).map(|at| self.bytes_of(&keep[at]));
        vectors + pages + kept.sum::<u64>()
    }

    fn has(&self, id: usize) -> bool {
        self.kept.get().is_none_or(|kept| kept.contains(&id))
    }

    /// A loaded matrix.
    pub fn matrix(&self, matrix: &Matrix) -> MatrixRef<'_> {
        assert!(self.has(matrix.id), "invariant: nobody reads a matrix that was let go");
        let stored = &self.matrices[matrix.id];
        let memory = self.memory.as_ref().expect("invariant: weights are loaded before a pass");
        MatrixRef {
            format: matrix.format,
            rows: matrix.rows,
            cols: matrix.cols,
            bytes: &memory[stored.start..stored.start + stored.bytes],
        }
    }

    /// Formats of all matrices that are loaded.
    pub(crate) fn formats(&self) -> impl Iterator<Item = Format> + '_ {
        self.matrices.iter().filter(|stored| stored.bytes > 0).map(|stored| stored.format)
    }

    /// Sizes of all matrices in bytes, by number; 0 for one that was left out.
    pub(crate) fn matrix_bytes(&self) -> impl Iterator<Item = u64> + '_ {
        self.matrices.iter().map(|stored| stored.bytes as u64)
    }

    /// Lengths of all vectors in values, by number.
    pub(crate) fn vector_lens(&self) -> impl Iterator<Item = usize> + '_ {
        self.vectors.iter().map(|stored| stored.info.elements() as usize)
    }

    /// The bytes of a loaded matrix by number.
    pub(crate) fn matrix_at(&self, id: usize) -> &[u8] {
        let memory = self.memory.as_ref().expect("invariant: weights are loaded before a pass");
        &memory[self.matrices[id].start..][..self.matrices[id].bytes]
    }

    /// A loaded vector by number.
    pub(crate) fn vector_at(&self, id: usize) -> &[f32] {
        &self.vectors[id].values
    }

    /// A loaded vector.
    pub fn vector(&self, vector: &Vector) -> &[f32] {
        &self.vectors[vector.id].values
    }
}

/// Writes head by head `[kv_lora, nope]` from rows `[heads, nope + value, kv_lora]`.
fn transpose_keys(kv_b: MatrixRef<'_>, heads: usize, nope: usize) -> Vec<f32> {
    let kv_lora = kv_b.cols;
    let stride = kv_b.rows / heads;
    let mut out = vec![0f32; heads * kv_lora * nope];
    let mut row = vec![0f32; kv_lora];
    for (head, out) in out.chunks_mut(kv_lora * nope).enumerate() {
        for key in 0..nope {
            kv_b.format.dequantize(kv_b.row(head * stride + key), &mut row);
            row.iter().enumerate().for_each(|(c, value)| out[c * nope + key] = *value);
        }
    }
    out
}

#[derive(Clone, Copy)]
enum Target {
    Matrix(usize),
    Vector(usize),
}

struct Piece {
    target: Target,
    /// Where in the target the piece belongs.
    at: usize,
    extent: Extent,
}

/// Reads all pieces, several at a time, and hands each to `sink` as it arrives.
fn read_pieces(
    reader: &mut dyn Reader,
    pieces: &[Piece],
    name: &dyn Fn(Target) -> String,
    sink: &mut dyn FnMut(&Piece, &[u8]),
) -> Result<(), LoadError> {
    let mut buffers = VecDeque::new();
    for _ in 0..PIECES_IN_FLIGHT.min(pieces.len()) {
        buffers.push_back(AlignedBuf::new(PIECE_BYTES + 2 * PAGE_BYTES)?);
    }
    let mut next = 0;
    let mut failure = None;
    while next < pieces.len() || reader.in_flight() > 0 {
        while next < pieces.len() && failure.is_none() {
            let Some(buf) = buffers.pop_front() else { break };
            reader.submit(vec![Read { tag: next as u64, extent: pieces[next].extent, buf }])?;
            next += 1;
        }
        if failure.is_some() && reader.in_flight() == 0 {
            break;
        }
        let done = reader.wait()?;
        let piece = &pieces[done.tag as usize];
        match done.data {
            Ok(range) => sink(piece, &done.buf.as_slice()[range]),
            Err(source) => {
                failure.get_or_insert(LoadError::Read { tensor: name(piece.target), source });
            }
        }
        buffers.push_back(done.buf);
    }
    failure.map_or(Ok(()), Err)
}

/// Checks a tensor's dimensions (ne0 first) and that its type has a kernel.
pub fn check_matrix(gguf: &Gguf, info: &TensorInfo, dims: &[usize]) -> Result<Format, LoadError> {
    check_dims(gguf.metadata.file(), info, dims)
}

fn check_dims(path: &std::path::Path, info: &TensorInfo, dims: &[usize]) -> Result<Format, LoadError> {
    // ggml drops trailing dimensions of 1.
    let padded = |i: usize| info.dims.get(i).copied().unwrap_or(1);
    let matches =
        info.dims.len() <= dims.len() && dims.iter().enumerate().all(|(i, d)| padded(i) == *d as u64);
    if !matches {
        return Err(shape_error(path, info, format!("{dims:?}")));
    }
    let unsupported = || LoadError::UnsupportedQuant {
        path: path.into(),
        tensor: info.name.clone(),
        block_type: info.block_type,
    };
    Format::of(info.block_type).ok_or_else(unsupported)
}

fn shape_error(path: &std::path::Path, info: &TensorInfo, want: String) -> LoadError {
    LoadError::Shape { path: path.into(), tensor: info.name.clone(), got: format!("{:?}", info.dims), want }
}
