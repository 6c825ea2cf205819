//! Matrix product of activation rows with a quantized weight matrix.
//!
//! Owns the loop order (weight rows outside, activation rows inside, so a weight row is read from
//! memory once per call) and the split over threads. Must not know what the matrices mean.

use std::ops::Range;
use std::sync::OnceLock;

use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
    BlockQ8_1, BlockQ8K,
};

use super::float::{dot_bf16_bytes, dot_f16_bytes, dot_f32_bytes};
use super::format::{Format, Side, blocks};
use super::pool::{Pool, SharedOut};
use super::quantize::quantize;
#[cfg(target_arch = "x86_64")]
use super::rows::{self, ROWS_MAX, RowDots};

/// Multiply-adds below which waking other threads costs more than it saves.
pub(super) const PARALLEL_MIN_MACS: usize = 128 * 1024;
/// Chunks per thread: enough to balance threads that are disturbed, few enough to stay cheap.
const CHUNKS_PER_THREAD: usize = 4;

/// A weight matrix `[rows, cols]` in a block format, row after row.
#[derive(Clone, Copy, Debug)]
pub struct MatrixRef<'a> {
    /// Block format of every row.
    pub format: Format,
    /// Output width.
    pub rows: usize,
    /// Input width, a multiple of the block length.
    pub cols: usize,
    /// `rows` rows of equal size.
    pub bytes: &'a [u8],
}

impl<'a> MatrixRef<'a> {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.bytes.len() / self.rows
    }

    /// The bytes of row `index`.
    pub fn row(&self, index: usize) -> &'a [u8] {
        let len = self.row_bytes();
        &self.bytes[index * len..(index + 1) * len]
    }

    /// Rows `range` as a matrix of their own.
    pub fn slice(&self, range: Range<usize>) -> MatrixRef<'a> {
        let len = self.row_bytes();
        MatrixRef { rows: range.len(), bytes: &self.bytes[range.start * len..range.end * len], ..*self }
    }
}

/// Activation rows `[rows, width]`, quantized at most once per format however many matrices read them.
pub struct Input<'a> {
    values: &'a [f32],
    width: usize,
    q8_0: OnceLock<Vec<BlockQ8_0>>,
    q8_1: OnceLock<Vec<BlockQ8_1>>,
    q8k: OnceLock<Vec<BlockQ8K>>,
}

impl<'a> Input<'a> {
    /// Wraps `values`, whose length is a multiple of `width`.
    pub fn new(values: &'a [f32], width: usize) -> Input<'a> {
        debug_assert_eq!(values.len() % width, 0);
        Input { values, width, q8_0: OnceLock::new(), q8_1: OnceLock::new(), q8k: OnceLock::new() }
    }

    /// Number of activation rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.width
    }

    fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..(index + 1) * self.width]
    }

    /// Makes the quantized copy that formats of this side multiply with, once.
    pub(super) fn prepare(&self, side: Side) {
        match side {
            Side::F32 => {}
            Side::Q8_0 => {
                self.q8_0.get_or_init(|| quantize(self.values));
            }
            Side::Q8_1 => {
                self.q8_1.get_or_init(|| quantize(self.values));
            }
            Side::Q8K => {
                self.q8k.get_or_init(|| quantize(self.values));
            }
        }
    }
}

/// One matrix of a [`matmul_group`] and where its product goes (`[x.rows(), w.rows]`).
pub type Product<'a, 'o> = (MatrixRef<'a>, &'o mut [f32]);

/// `out[m, n] = sum_k x[m, k] * w[n, k]`, split over the pool's threads; `out` is `[x.rows(), w.rows]`.
pub fn matmul(pool: &mut Pool, w: MatrixRef<'_>, x: &Input<'_>, out: &mut [f32]) {
    matmul_group(pool, x, &mut [(w, out)]);
}

/// The products of several matrices with the same activations, as one job: threads meet once.
pub fn matmul_group(pool: &mut Pool, x: &Input<'_>, products: &mut [Product<'_, '_>]) {
    let mut macs = 0;
    let mut parts = Vec::with_capacity(products.len());
    for (w, out) in products {
        debug_assert_eq!(out.len(), x.rows() * w.rows);
        debug_assert_eq!(w.cols, x.width);
        x.prepare(w.format.side());
        macs += w.rows * w.cols * x.rows();
        parts.push((*w, SharedOut::new(out)));
    }
    let is_small = macs < PARALLEL_MIN_MACS || pool.threads() == 1;
    let per_matrix = if is_small { 1 } else { pool.threads() * CHUNKS_PER_THREAD };
    let run = |chunk: usize| {
        let (w, out) = parts[chunk / per_matrix];
        let rows_each = w.rows.div_ceil(per_matrix);
        let start = (chunk % per_matrix * rows_each).min(w.rows);
        // SAFETY: chunks own disjoint columns of disjoint outputs.
        unsafe { columns(w, start..(start + rows_each).min(w.rows), x, out).fill(set) };
    };
    if is_small {
        (0..parts.len()).for_each(run);
    } else {
        pool.run(parts.len() * per_matrix, &run);
    }
}

/// The same product on the calling thread, for use inside a pool job.
pub fn matmul_serial(w: MatrixRef<'_>, x: &Input<'_>, out: &mut [f32]) {
    debug_assert_eq!(out.len(), x.rows() * w.rows);
    debug_assert_eq!(w.cols, x.width);
    x.prepare(w.format.side());
    // SAFETY: one call writes all columns.
    unsafe { columns(w, 0..w.rows, x, SharedOut::new(out)).fill(set) };
}

fn columns<'a>(w: MatrixRef<'a>, range: Range<usize>, x: &'a Input<'a>, out: SharedOut<'a>) -> Columns<'a> {
    Columns { w, range, x, rows: None, out }
}

/// Stores a product as it is.
pub(super) fn set(to: &mut f32, value: f32) {
    *to = value;
}

/// A range of output columns and what they are computed from.
pub(super) struct Columns<'a> {
    pub(super) w: MatrixRef<'a>,
    /// Columns of the output: rows of `w`.
    pub(super) range: Range<usize>,
    /// Prepared for the format of `w`.
    pub(super) x: &'a Input<'a>,
    /// The row of `x` behind each output row; `None` stands for all of them in order.
    pub(super) rows: Option<&'a [u32]>,
    /// `[rows, w.rows]`
    pub(super) out: SharedOut<'a>,
}

impl Columns<'_> {
    /// `store(out[i, n], dot(weight row n, activation row i))` for every column of the range.
    ///
    /// # Safety
    /// Nobody else may touch those columns meanwhile.
    pub(super) unsafe fn fill(self, store: impl Fn(&mut f32, f32)) {
        let (x, cols) = (self.x, self.w.cols);
        // SAFETY: handed down from the caller.
        unsafe {
            match self.w.format {
                Format::F32 => self.each(|row, m| dot_f32_bytes(row, x.row(m)), store),
                Format::F16 => self.each(|row, m| dot_f16_bytes(row, x.row(m)), store),
                Format::BF16 => self.each(|row, m| dot_bf16_bytes(row, x.row(m)), store),
                Format::Q4_0 => self.each(|row, m| dot::<BlockQ4_0>(row, &x.q8_0, m, cols), store),
                Format::Q4_1 => self.each(|row, m| dot::<BlockQ4_1>(row, &x.q8_1, m, cols), store),
                Format::Q5_0 => self.each(|row, m| dot::<BlockQ5_0>(row, &x.q8_0, m, cols), store),
                Format::Q5_1 => self.each(|row, m| dot::<BlockQ5_1>(row, &x.q8_1, m, cols), store),
                #[cfg(target_arch = "x86_64")]
                Format::Q8_0 if rows::are_supported() => {
                    self.in_groups(rows::Q8_0::new(prepared(&x.q8_0), cols / BlockQ8_0::BLCK_SIZE), store)
                }
                Format::Q8_0 => self.each(|row, m| dot::<BlockQ8_0>(row, &x.q8_0, m, cols), store),
                Format::Q2K => self.each(|row, m| dot::<BlockQ2K>(row, &x.q8k, m, cols), store),
                Format::Q3K => self.each(|row, m| dot::<BlockQ3K>(row, &x.q8k, m, cols), store),
                #[cfg(target_arch = "x86_64")]
                Format::Q4K if rows::are_supported() => {
                    self.in_groups(rows::Q4K::new(prepared(&x.q8k), cols / BlockQ8K::BLCK_SIZE), store)
                }
                Format::Q4K => self.each(|row, m| dot::<BlockQ4K>(row, &x.q8k, m, cols), store),
                Format::Q5K => self.each(|row, m| dot::<BlockQ5K>(row, &x.q8k, m, cols), store),
                #[cfg(target_arch = "x86_64")]
                Format::Q6K if rows::are_supported() => {
                    self.in_groups(rows::Q6K::new(prepared(&x.q8k), cols / BlockQ8K::BLCK_SIZE), store)
                }
                Format::Q6K => self.each(|row, m| dot::<BlockQ6K>(row, &x.q8k, m, cols), store),
            }
        }
    }

    /// As [`Columns::fill`], with the format's dot product.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn each(self, dot: impl Fn(&[u8], usize) -> f32, store: impl Fn(&mut f32, f32)) {
        for n in self.range.clone() {
            let row = self.w.row(n);
            for i in 0..self.count() {
                // SAFETY: column n is in our range.
                store(unsafe { self.out.at(i * self.w.rows + n) }, dot(row, self.source(i)));
            }
        }
    }

    /// As [`Columns::each`], several rows at a time.
    ///
    /// # Safety
    /// As there.
    #[cfg(target_arch = "x86_64")]
    unsafe fn in_groups(self, dots: impl RowDots, store: impl Fn(&mut f32, f32)) {
        let count = self.count();
        for n in self.range.clone() {
            let mut i = 0;
            // SAFETY: column n is in our range.
            unsafe {
                while count - i >= ROWS_MAX {
                    i = self.group::<ROWS_MAX>(n, i, &dots, &store);
                }
                if count - i >= 2 {
                    i = self.group::<2>(n, i, &dots, &store);
                }
                if count > i {
                    self.group::<1>(n, i, &dots, &store);
                }
            }
        }
    }

    /// Rows `i..i + R` of column `n`; returns the row after them.
    ///
    /// # Safety
    /// As [`Columns::fill`].
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn group<const R: usize>(
        &self,
        n: usize,
        i: usize,
        dots: &impl RowDots,
        store: &impl Fn(&mut f32, f32),
    ) -> usize {
        let values = dots.dots::<R>(self.w.row(n), std::array::from_fn(|r| self.source(i + r)));
        for (r, value) in values.into_iter().enumerate() {
            // SAFETY: the caller's column.
            store(unsafe { self.out.at((i + r) * self.w.rows + n) }, value);
        }
        i + R
    }

    /// Rows of the output.
    fn count(&self) -> usize {
        self.rows.map_or_else(|| self.x.rows(), <[u32]>::len)
    }

    /// The row of `x` behind output row `i`.
    #[inline(always)]
    fn source(&self, i: usize) -> usize {
        self.rows.map_or(i, |rows| rows[i] as usize)
    }
}

/// One weight row times activation row `m` of the quantized input.
fn dot<T: GgmlType>(row: &[u8], x: &OnceLock<Vec<T::VecDotType>>, m: usize, cols: usize) -> f32 {
    let per_row = cols / T::BLCK_SIZE;
    T::vec_dot(cols, blocks::<T>(row), &prepared(x)[m * per_row..(m + 1) * per_row])
}

fn prepared<T>(x: &OnceLock<Vec<T>>) -> &[T] {
    x.get().expect("invariant: the input was prepared for this format")
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::gguf::{BlockType, quantize as quantize_blocks};

    const COLS: usize = 512;
    const ROWS: usize = 37;

    /// Values around 0, the same for the same seed.
    pub fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..n).map(|_| next() + next() + next()).collect()
    }

    /// Every format, and where its f16 scales stand in a block.
    pub const SCALES: &[(BlockType, &[usize])] = &[
        (BlockType::F32, &[]),
        (BlockType::F16, &[]),
        (BlockType::BF16, &[]),
        (BlockType::Q8_0, &[0]),
        (BlockType::Q4_0, &[0]),
        (BlockType::Q4_1, &[0, 2]),
        (BlockType::Q5_0, &[0]),
        (BlockType::Q5_1, &[0, 2]),
        (BlockType::Q2_K, &[80, 82]),
        (BlockType::Q3_K, &[108]),
        (BlockType::Q4_K, &[0, 2]),
        (BlockType::Q5_K, &[0, 2]),
        (BlockType::Q6_K, &[208]),
    ];

    /// `count` weights in random blocks; floats are made from values, since random bits are not numbers.
    pub fn random_weights(block_type: BlockType, scales: &[usize], count: usize, seed: u64) -> Vec<u16> {
        if scales.is_empty() {
            return aligned(&quantize_blocks(block_type, &noise(count, seed)).unwrap());
        }
        let block_bytes = block_type.block_bytes() as usize;
        let len = block_type.bytes_for(count as u64).unwrap() as usize;
        let mut bytes: Vec<u8> = noise(len, seed).iter().map(|v| (v * 4096.0) as i32 as u8).collect();
        for (block, scale) in bytes.chunks_mut(block_bytes).zip(noise(len / block_bytes, seed + 1)) {
            for at in scales {
                block[*at..at + 2].copy_from_slice(&half::f16::from_f32(scale / 64.0).to_le_bytes());
            }
        }
        aligned(&bytes)
    }

    #[test]
    fn every_format_with_a_kernel_is_tested_here() {
        let tested: Vec<Format> = SCALES.iter().map(|(t, _)| Format::of(*t).unwrap()).collect();
        assert!(BlockType::ALL.iter().filter_map(|t| Format::of(*t)).all(|format| tested.contains(&format)));
    }

    /// An aligned copy: test buffers come from `Vec<u8>`.
    fn aligned(bytes: &[u8]) -> Vec<u16> {
        bytes.as_chunks::<2>().0.iter().map(|b| u16::from_ne_bytes(*b)).collect()
    }

    pub fn bytes_of(words: &[u16]) -> &[u8] {
        // SAFETY: any u16 is two valid bytes.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 2) }
    }

    #[test]
    fn a_row_is_bitwise_the_same_alone_and_in_any_batch_on_any_threads() {
        let x = noise(16 * COLS, 3);
        for (block_type, scales) in SCALES.iter().copied() {
            let words = random_weights(block_type, scales, ROWS * COLS, 1);
            let format = Format::of(block_type).unwrap();
            let w = MatrixRef { format, rows: ROWS, cols: COLS, bytes: bytes_of(&words) };
            let mut alone = vec![0f32; 16 * ROWS];
            for m in 0..16 {
                let row = Input::new(&x[m * COLS..(m + 1) * COLS], COLS);
                matmul_serial(w, &row, &mut alone[m * ROWS..(m + 1) * ROWS]);
            }
            for threads in [1, 2, 3] {
                let mut pool = Pool::new(threads, "test").unwrap();
                for m in [1, 2, 5, 16] {
                    let mut out = vec![0f32; m * ROWS];
                    matmul(&mut pool, w, &Input::new(&x[..m * COLS], COLS), &mut out);
                    assert_eq!(out, alone[..m * ROWS], "{block_type:?} {m} rows {threads} threads");
                }
            }
        }
    }

    #[test]
    fn products_agree_with_dequantized_arithmetic() {
        let x = noise(COLS, 5);
        for (block_type, scales) in SCALES.iter().copied() {
            let words = random_weights(block_type, scales, ROWS * COLS, 2);
            let format = Format::of(block_type).unwrap();
            let w = MatrixRef { format, rows: ROWS, cols: COLS, bytes: bytes_of(&words) };
            let mut out = vec![0f32; ROWS];
            matmul_serial(w, &Input::new(&x, COLS), &mut out);
            for (n, got) in out.iter().enumerate() {
                let mut row = vec![0f32; COLS];
                format.dequantize(w.row(n), &mut row);
                let products = || row.iter().zip(&x).map(|(a, b)| f64::from(*a) * f64::from(*b));
                let exact: f64 = products().sum();
                // 8-bit activations: an error of half a step, 1/254 of the largest, in each product.
                let size = products().map(|p| p * p).sum::<f64>().sqrt();
                let error = (f64::from(*got) - exact).abs();
                assert!(
                    error <= 0.05 * size + 1e-5,
                    "{block_type:?} row {n}: {got} for {exact}, size {size}"
                );
            }
        }
    }
}
