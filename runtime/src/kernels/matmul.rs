//! Matrix product of activation rows with a quantized weight matrix.
//!
//! Owns the loop order and the split over threads. Weight rows are taken in runs that stay in the second
//! cache while all activation rows pass, eight at a time, so that memory is read once and a block is
//! unpacked once for eight rows. A long prefill is the same loop as a single row: there is no second
//! kernel class, and no result depends on the split. Must not know what the matrices mean.

use std::ops::Range;
use std::sync::OnceLock;

use parking_lot::Mutex;

use super::cpu::Isa;
use super::cpu::activations::{Activations, X32, X256};
use super::cpu::tile::{TILE_ROWS_MAX, Tile};
use super::format::{Format, Side};
use super::pool::{Pool, SharedOut};

/// Multiply-adds below which waking other threads costs more than it saves.
pub(super) const PARALLEL_MIN_MACS: usize = 128 * 1024;
/// Chunks per thread: enough to balance threads that are disturbed, few enough to stay cheap.
const CHUNKS_PER_THREAD: usize = 4;
/// Activations below which quantizing them is left to one thread.
const PARALLEL_MIN_VALUES: usize = 64 * 1024;
/// Rows that one thread quantizes at a time.
const QUANTIZED_ROWS: usize = 8;
/// Weight bytes of one run: a part of any second-level cache, large against a row.
const RUN_BYTES: usize = 128 * 1024;

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
        self.rows_at(index..index + 1)
    }

    fn rows_at(&self, range: Range<usize>) -> &'a [u8] {
        let len = self.row_bytes();
        &self.bytes[range.start * len..range.end * len]
    }

    /// Rows `range` as a matrix of their own.
    pub fn slice(&self, range: Range<usize>) -> MatrixRef<'a> {
        MatrixRef { rows: range.len(), bytes: self.rows_at(range), ..*self }
    }
}

/// Activation rows `[rows, width]`, quantized at most once per layout however many matrices read them.
pub struct Input<'a> {
    isa: Isa,
    values: &'a [f32],
    width: usize,
    x32: OnceLock<Vec<X32>>,
    x256: OnceLock<Vec<X256>>,
}

impl<'a> Input<'a> {
    /// Wraps `values`, whose length is a multiple of `width`.
    pub fn new(values: &'a [f32], width: usize) -> Input<'a> {
        debug_assert_eq!(values.len() % width, 0);
        Input { isa: Isa::best(), values, width, x32: OnceLock::new(), x256: OnceLock::new() }
    }

    /// Number of activation rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.width
    }

    /// Makes the quantized copy that formats of this side multiply with, once.
    pub(super) fn prepare(&self, side: Side) {
        match side {
            Side::Float => {}
            Side::X32 => {
                self.x32.get_or_init(|| self.quantized());
            }
            Side::X256 => {
                self.x256.get_or_init(|| self.quantized());
            }
        }
    }

    /// The same on all threads, where there is enough to do for it to pay.
    pub(super) fn prepare_on(&self, pool: &mut Pool, side: Side) {
        if self.values.len() < PARALLEL_MIN_VALUES {
            return self.prepare(side);
        }
        match side {
            Side::Float => {}
            Side::X32 => {
                self.x32.get_or_init(|| self.quantized_on(pool));
            }
            Side::X256 => {
                self.x256.get_or_init(|| self.quantized_on(pool));
            }
        }
    }

    fn quantized<X: Activations>(&self) -> Vec<X> {
        let mut out = vec![X::ZERO; self.rows() * self.width.div_ceil(256)];
        self.isa.quantize(self.values, self.width, &mut out);
        out
    }

    fn quantized_on<X: Activations + Send>(&self, pool: &mut Pool) -> Vec<X> {
        let per_row = self.width.div_ceil(256);
        let mut out = vec![X::ZERO; self.rows() * per_row];
        let values = self.values.chunks(QUANTIZED_ROWS * self.width);
        let parts: Vec<_> = values.zip(out.chunks_mut(QUANTIZED_ROWS * per_row).map(Mutex::new)).collect();
        pool.run(parts.len(), &|part| {
            let (values, out) = &parts[part];
            self.isa.quantize(values, self.width, &mut out.lock());
        });
        drop(parts);
        out
    }

    /// Where row `index` begins, as kernels of this side read it.
    fn row(&self, side: Side, index: usize) -> *const u8 {
        fn at<X>(blocks: &OnceLock<Vec<X>>, index: usize, width: usize) -> *const u8 {
            let blocks = blocks.get().expect("invariant: the input was prepared for this format");
            let per_row = width.div_ceil(256);
            blocks[index * per_row..(index + 1) * per_row].as_ptr().cast()
        }
        match side {
            Side::Float => self.values[index * self.width..(index + 1) * self.width].as_ptr().cast(),
            Side::X32 => at(&self.x32, index, self.width),
            Side::X256 => at(&self.x256, index, self.width),
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
        x.prepare_on(pool, w.format.side());
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
        unsafe { columns(w, start..(start + rows_each).min(w.rows), x, out).fill() };
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
    unsafe { columns(w, 0..w.rows, x, SharedOut::new(out)).fill() };
}

fn columns<'a>(w: MatrixRef<'a>, range: Range<usize>, x: &'a Input<'a>, out: SharedOut<'a>) -> Columns<'a> {
    Columns { w, range, x, rows: None, out }
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
    /// `out[i, n] = dot(weight row n, activation row i)` for every column of the range.
    ///
    /// # Safety
    /// Nobody else may touch those columns meanwhile.
    pub(super) unsafe fn fill(self) {
        let count = self.rows.map_or_else(|| self.x.rows(), <[u32]>::len);
        for run in runs(self.range.clone(), self.w.row_bytes()) {
            for rows in groups(count) {
                let out = self.out.pointer(
                    rows.start * self.w.rows + run.start,
                    rows.len(),
                    self.w.rows,
                    run.len(),
                );
                // SAFETY: the pointer was checked to lead to these rows and columns, which are ours.
                unsafe { self.tile(run.clone(), rows, out, self.w.rows) };
            }
        }
    }

    /// The products of weight rows `run` with activation rows `rows` (as many as a kernel takes), row
    /// after row from `out` on.
    ///
    /// # Safety
    /// `out` leads to that many rows, `out_stride` values apart, of `run.len()` values, which nobody else
    /// touches.
    pub(super) unsafe fn tile(
        &self,
        run: Range<usize>,
        rows: Range<usize>,
        out: *mut f32,
        out_stride: usize,
    ) {
        let side = self.w.format.side();
        let row_bytes = self.w.format.block_type().bytes_for(self.w.cols as u64);
        assert!(self.w.cols == self.x.width, "invariant: weight and activation rows are of one width");
        assert!(row_bytes == Some(self.w.row_bytes() as u64), "invariant: weight rows are whole");
        let mut x = [std::ptr::null(); TILE_ROWS_MAX];
        for (x, i) in x.iter_mut().zip(rows.clone()) {
            *x = self.x.row(side, self.rows.map_or(i, |rows| rows[i] as usize));
        }
        let weights = self.w.rows_at(run);
        let tile = Tile { weights, row_bytes: self.w.row_bytes(), x, cols: self.w.cols, out, out_stride };
        let kernel = self.x.isa.kernel(self.w.format).0[rows.len().ilog2() as usize];
        // SAFETY: the input was made for instructions that are there; `row` checked that the activation rows
        // are there, the assertions that both sides are as long as the tile says; the output is the caller's
        // promise.
        unsafe { kernel(&tile) };
    }
}

/// `range` in runs of about [`RUN_BYTES`].
pub(super) fn runs(range: Range<usize>, row_bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let len = (RUN_BYTES / row_bytes).max(1);
    range.clone().step_by(len).map(move |start| start..(start + len).min(range.end))
}

/// `0..count` in groups that kernels take: eights, then what is left in powers of two.
pub(super) fn groups(count: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let left = count - start;
        let len = if left == 0 { return None } else { TILE_ROWS_MAX.min(1 << left.ilog2()) };
        start += len;
        Some(start - len..start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::tests::{noise, random_weights};

    const ROWS: usize = 37;

    #[test]
    fn a_row_is_bitwise_the_same_alone_and_in_any_batch_on_any_threads() {
        for format in Format::all() {
            // Not whole blocks of 256 where the format allows it.
            let cols = if format.side() == Side::X256 { 512 } else { 544 };
            let x = noise(16 * cols, 3);
            let bytes = random_weights(format, ROWS * cols, 1);
            let w = MatrixRef { format, rows: ROWS, cols, bytes: &bytes };
            let mut alone = vec![0f32; 16 * ROWS];
            for (x, alone) in x.chunks(cols).zip(alone.chunks_mut(ROWS)) {
                matmul_serial(w, &Input::new(x, cols), alone);
            }
            for threads in [1, 2, 3] {
                let mut pool = Pool::new(threads, "test").expect("threads start");
                for m in 1..=16 {
                    let mut out = vec![0f32; m * ROWS];
                    matmul(&mut pool, w, &Input::new(&x[..m * cols], cols), &mut out);
                    assert_eq!(out, alone[..m * ROWS], "{format:?} {m} rows {threads} threads");
                }
            }
        }
    }

    #[test]
    fn activations_are_the_same_blocks_when_all_threads_quantize_them() {
        let mut pool = Pool::new(3, "test").expect("threads start");
        for (rows, width) in [(131, 544), (257, 256), (64, 2048)] {
            let x = noise(rows * width, 11);
            let (alone, together) = (Input::new(&x, width), Input::new(&x, width));
            assert!(x.len() >= PARALLEL_MIN_VALUES, "else it is one thread");
            alone.prepare(Side::X32);
            together.prepare_on(&mut pool, Side::X32);
            assert!(alone.x32.get().is_some() && alone.x32.get() == together.x32.get());
            if width.is_multiple_of(256) {
                alone.prepare(Side::X256);
                together.prepare_on(&mut pool, Side::X256);
                assert!(alone.x256.get().is_some() && alone.x256.get() == together.x256.get());
            }
        }
    }

    #[test]
    #[should_panic(expected = "one width")]
    fn rows_of_different_widths_are_refused_before_memory_is_read() {
        let bytes = random_weights(Format::Q8_0, 512, 1);
        let w = MatrixRef { format: Format::Q8_0, rows: 1, cols: 512, bytes: &bytes };
        let mut pool = Pool::new(1, "test").expect("threads start");
        let (x, mut out) = ([1f32; 256], [0f32]);
        let input = Input::new(&x, 256);
        input.prepare_on(&mut pool, Side::X32);
        let columns = Columns { w, range: 0..1, x: &input, rows: None, out: SharedOut::new(&mut out) };
        // SAFETY: nobody else has the output.
        unsafe { columns.fill() };
    }

    #[test]
    fn runs_and_groups_cover_everything_once() {
        for (range, row_bytes) in [(3..900, 1152), (0..1, 10 << 20), (5..5, 10), (0..7, 64 * 1024)] {
            let covered: Vec<usize> = runs(range.clone(), row_bytes).flatten().collect();
            assert_eq!(covered, range.collect::<Vec<_>>());
        }
        for count in 0..40 {
            let all: Vec<Range<usize>> = groups(count).collect();
            assert!(all.iter().all(|group| [1, 2, 4, 8].contains(&group.len())));
            assert_eq!(all.into_iter().flatten().collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
        }
    }
}
