//! The token embedding: rows of a matrix in memory, or of a tensor that stays on disk.
//!
//! Owns the choice's consequences: a pass reads one row of a few KiB a token, so a table of a few
//! hundred MB serves better as room for experts when memory is short. The rows are the same bytes
//! either way (DESIGN I2). It must not know who decides.

use std::ops::Range;

use drafthorse_draft::TokenId;
use drafthorse_offload::{AlignedBuf, Extent, PAGE_BYTES, Read, Reader};

use crate::gguf::TensorInfo;
use crate::kernels::Format;
use crate::weights::{DenseStore, Matrix};

use super::LoadError;

/// Rows read at once: as deep as a disk likes, small against any budget.
const ROWS_IN_FLIGHT: usize = 16;

/// Where the rows are.
pub enum Embedding {
    /// In the dense store.
    Resident(Matrix),
    /// In the file.
    Streamed(StreamedTable),
}

/// A matrix of which rows are read when they are wanted.
pub struct StreamedTable {
    reader: Box<dyn Reader>,
    info: TensorInfo,
    format: Format,
    row_bytes: usize,
    buffers: Vec<AlignedBuf>,
    raw: Vec<u16>, // one row, aligned for any block format
}

impl StreamedTable {
    /// Over the tensor `info` of `[rows, cols]` values, read through `reader`.
    ///
    /// # Errors
    /// No memory.
    pub fn new(reader: Box<dyn Reader>, info: TensorInfo, matrix: &Matrix) -> Result<Self, LoadError> {
        let row_bytes = info.bytes as usize / matrix.rows;
        let buffers = (0..ROWS_IN_FLIGHT).map(|_| AlignedBuf::new(buffer_bytes(row_bytes)));
        Ok(StreamedTable {
            buffers: buffers.collect::<Result<_, _>>()?,
            raw: vec![0; row_bytes.div_ceil(2)],
            format: matrix.format,
            reader,
            info,
            row_bytes,
        })
    }

    /// Memory a table with rows of `row_bytes` takes.
    pub fn bytes(row_bytes: usize) -> u64 {
        (ROWS_IN_FLIGHT * buffer_bytes(row_bytes) + row_bytes) as u64
    }

    fn rows(&mut self, tokens: &[TokenId], out: &mut [f32]) -> Result<(), LoadError> {
        let width = out.len() / tokens.len().max(1);
        for (tokens, out) in
            tokens.chunks(ROWS_IN_FLIGHT).zip(out.chunks_mut(ROWS_IN_FLIGHT.saturating_mul(width)))
        {
            self.some_rows(tokens, width, out)?;
        }
        Ok(())
    }

    /// Reads at most [`ROWS_IN_FLIGHT`] rows; every buffer is back when it returns.
    fn some_rows(&mut self, tokens: &[TokenId], width: usize, out: &mut [f32]) -> Result<(), LoadError> {
        let buffers = self.buffers.drain(..tokens.len());
        let reads = tokens.iter().zip(buffers).enumerate().map(|(index, (token, buf))| {
            let offset = self.info.offset + u64::from(*token) * self.row_bytes as u64;
            let extent = Extent { file: self.info.file, offset, len: self.row_bytes as u64 };
            Read { tag: index as u64, extent, buf }
        });
        let reads = reads.collect();
        self.reader.submit(reads)?;
        let mut failure = None;
        for _ in tokens {
            let done = self.reader.wait()?;
            let at = done.tag as usize * width;
            match done.data {
                Ok(range) => self.decode(&done.buf, range, &mut out[at..at + width]),
                Err(source) => {
                    failure.get_or_insert(LoadError::Read { tensor: self.info.name.clone(), source });
                }
            }
            self.buffers.push(done.buf);
        }
        failure.map_or(Ok(()), Err)
    }

    fn decode(&mut self, buf: &AlignedBuf, range: Range<usize>, out: &mut [f32]) {
        // A row may start at any byte of its page; block formats want theirs on even ones.
        let bytes = &buf.as_slice()[range];
        for (word, pair) in self.raw.iter_mut().zip(bytes.chunks(2)) {
            *word = u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        }
        self.format.dequantize(&as_bytes(&self.raw)[..bytes.len()], out);
    }
}

impl Embedding {
    /// Writes the rows of `tokens` to `out`, `[tokens.len(), width]`.
    ///
    /// # Errors
    /// A row that could not be read, naming the tensor.
    pub fn rows(&mut self, dense: &DenseStore, tokens: &[TokenId], out: &mut [f32]) -> Result<(), LoadError> {
        match self {
            Embedding::Resident(matrix) => {
                let table = dense.matrix(matrix);
                for (row, token) in out.chunks_mut(table.cols).zip(tokens) {
                    table.format.dequantize(table.row(*token as usize), row);
                }
                Ok(())
            }
            Embedding::Streamed(table) => table.rows(tokens, out),
        }
    }
}

fn buffer_bytes(row_bytes: usize) -> usize {
    row_bytes.next_multiple_of(PAGE_BYTES) + PAGE_BYTES
}

fn as_bytes(words: &[u16]) -> &[u8] {
    // SAFETY: any u16 is two valid bytes, and the slice covers exactly those of `words`.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 2) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use drafthorse_offload::reader::{Fault, FaultKind, Faults, MemoryReader};

    use super::*;
    use crate::gguf::{BlockType, quantize};

    const ROWS: usize = 100;
    const WIDTH: usize = 64;
    const OFFSET: usize = 4096 + 33;

    fn table(block_type: BlockType) -> (StreamedTable, Vec<f32>, Faults) {
        let values: Vec<f32> = (0..ROWS * WIDTH).map(|i| (i as f32 * 0.37).sin()).collect();
        let bytes = quantize(block_type, &values).unwrap();
        let format = Format::of(block_type).unwrap();
        let mut wanted = vec![0f32; ROWS * WIDTH];
        let words: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|b| u16::from_ne_bytes(*b)).collect();
        format.dequantize(as_bytes(&words), &mut wanted);
        let info = TensorInfo {
            name: "token_embd.weight".into(),
            dims: vec![WIDTH as u64, ROWS as u64],
            block_type,
            file: 0,
            offset: OFFSET as u64,
            bytes: bytes.len() as u64,
        };
        let file = [vec![9; OFFSET], bytes].concat();
        let faults = Faults::default();
        let reader = MemoryReader::new(vec![("m.gguf".into(), file)], faults.clone(), Some(3));
        let matrix = Matrix::for_tests(format, ROWS, WIDTH);
        (StreamedTable::new(Box::new(reader), info, &matrix).unwrap(), wanted, faults)
    }

    #[test]
    fn streamed_rows_are_those_of_the_table_in_any_number_and_order() {
        for block_type in [BlockType::Q8_0, BlockType::F16, BlockType::F32, BlockType::Q4_0] {
            let (mut table, wanted, _) = table(block_type);
            for tokens in [vec![7], vec![99, 0, 99], (0..50).map(|i| i * 37 % 100).collect::<Vec<u32>>()] {
                let mut out = vec![0f32; tokens.len() * WIDTH];
                table.rows(&tokens, &mut out).unwrap();
                for (row, token) in out.chunks(WIDTH).zip(&tokens) {
                    assert_eq!(row, &wanted[*token as usize * WIDTH..][..WIDTH], "{block_type:?}");
                }
            }
        }
    }

    #[test]
    fn a_row_that_cannot_be_read_is_an_error_that_names_the_tensor_and_the_next_is_read_again() {
        let (mut table, wanted, faults) = table(BlockType::Q8_0);
        let offset = (OFFSET + 5 * table.row_bytes) as u64;
        faults.add(Fault { file: 0, offset, kind: FaultKind::Eio });
        let mut out = vec![0f32; 3 * WIDTH];
        let error = table.rows(&[4, 5, 6], &mut out).unwrap_err().to_string();
        assert!(error.contains("token_embd.weight") && error.contains("m.gguf"), "{error}");
        table.rows(&[4, 5, 6], &mut out).unwrap();
        assert_eq!(out, wanted[4 * WIDTH..7 * WIDTH]);
    }
}
