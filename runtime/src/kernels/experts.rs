//! The feed-forward pass of many experts at once: two jobs for all of them, however many there are.
//!
//! Owns the split of the work over (expert, range of weight rows), so that threads stay busy when
//! experts have different numbers of rows. Gate and up rows of one range are computed in one chunk,
//! with the activation behind them: no meeting of threads between. Every value is the dot product and
//! the activation of [`matmul`](super::matmul()) and [`silu_mul`](super::silu_mul()), so grouping
//! shows in no bit. It must not know where experts come from or who asked for them.

use std::ops::Range;

use super::cpu::tile::TILE_ROWS_MAX;
use super::matmul::{Columns, Input, MatrixRef, PARALLEL_MIN_MACS, groups, runs};
use super::pool::{Pool, SharedOut};
use super::vector::silu_mul;

/// Pieces of a job per thread: balances threads that are disturbed.
const CHUNKS_PER_THREAD: usize = 8;
/// Multiply-adds of the smallest piece worth handing out.
const CHUNK_MIN_MACS: usize = 64 * 1024;

/// The first half of one expert's work on its rows of the window.
#[derive(Debug)]
pub struct GateUp<'a> {
    /// `[inner, width]`.
    pub gate: MatrixRef<'a>,
    /// `[inner, width]`.
    pub up: MatrixRef<'a>,
    /// Its rows of the window's activations.
    pub rows: &'a [u32],
    /// Result, `[rows.len(), inner]`.
    pub hidden: &'a mut [f32],
}

/// The second half.
#[derive(Debug)]
pub struct Down<'a> {
    /// `[width, inner]`.
    pub down: MatrixRef<'a>,
    /// `[rows, inner]`.
    pub hidden: &'a [f32],
    /// Result, `[rows, width]`.
    pub out: &'a mut [f32],
}

/// `hidden = silu(x gate^T) * (x up^T)` of every expert on its own rows of `x`, as one job.
///
/// # Panics
/// When a row index is outside `x`.
pub fn gate_up_experts(pool: &mut Pool, x: &Input<'_>, experts: &mut [GateUp<'_>]) {
    let mut works = Vec::with_capacity(experts.len());
    let mut parts = Vec::with_capacity(experts.len());
    for expert in experts {
        let GateUp { gate, up, rows, .. } = *expert;
        debug_assert_eq!((gate.rows, gate.cols), (up.rows, up.cols));
        debug_assert_eq!(expert.hidden.len(), rows.len() * gate.rows);
        x.prepare_on(pool, gate.format.side());
        x.prepare_on(pool, up.format.side());
        works.push(Work { rows: gate.rows, macs_per_row: 2 * gate.cols * rows.len() });
        parts.push((gate, up, rows, SharedOut::new(expert.hidden)));
    }
    run(pool, &works, &|expert, range| {
        let (gate, up, rows, out) = parts[expert];
        // SAFETY: chunks own disjoint columns of disjoint outputs.
        unsafe { gate_up_columns((gate, up), x, rows, range, out) };
    });
}

/// Weight rows whose up products wait for their gates.
const UP_RUN_MAX: usize = 32;

/// Columns `range` of one expert's hidden values.
///
/// # Safety
/// Nobody else may touch those columns of `out` meanwhile.
unsafe fn gate_up_columns(
    (gate, up): (MatrixRef<'_>, MatrixRef<'_>),
    x: &Input<'_>,
    rows: &[u32],
    range: Range<usize>,
    out: SharedOut<'_>,
) {
    let columns = |w| Columns { w, range: range.clone(), x, rows: Some(rows), out };
    let (gate, up) = (columns(gate), columns(up));
    let mut ups = [0f32; TILE_ROWS_MAX * UP_RUN_MAX];
    let width = gate.w.rows;
    for run in runs(range.clone(), 2 * gate.w.row_bytes()) {
        for rows in groups(rows.len()) {
            for start in run.clone().step_by(UP_RUN_MAX) {
                let part = start..(start + UP_RUN_MAX).min(run.end);
                let hidden = out.pointer(rows.start * width + part.start, rows.len(), width, part.len());
                // SAFETY: the pointer was checked to lead to these rows and columns, which are ours.
                unsafe {
                    gate.tile(part.clone(), rows.clone(), hidden, width);
                    up.tile(part.clone(), rows.clone(), ups.as_mut_ptr(), UP_RUN_MAX);
                }
                for (r, ups) in ups.chunks(UP_RUN_MAX).take(rows.len()).enumerate() {
                    // SAFETY: as above; nobody else holds them.
                    let hidden = unsafe { out.range((rows.start + r) * width + part.start, part.len()) };
                    silu_mul(hidden, ups);
                }
            }
        }
    }
}

/// `out = hidden down^T` of every expert, as one job.
pub fn down_experts(pool: &mut Pool, experts: &mut [Down<'_>]) {
    let mut works = Vec::with_capacity(experts.len());
    let mut parts = Vec::with_capacity(experts.len());
    for expert in experts {
        let down = expert.down;
        let hidden = Input::new(expert.hidden, down.cols);
        debug_assert_eq!(expert.out.len(), hidden.rows() * down.rows);
        hidden.prepare_on(pool, down.format.side());
        works.push(Work { rows: down.rows, macs_per_row: down.cols * hidden.rows() });
        parts.push((down, hidden, SharedOut::new(expert.out)));
    }
    run(pool, &works, &|expert, range| {
        let (w, x, out) = &parts[expert];
        // SAFETY: chunks own disjoint columns of disjoint outputs.
        unsafe { Columns { w: *w, range, x, rows: None, out: *out }.fill() };
    });
}

/// What one expert has to compute.
struct Work {
    /// Weight rows.
    rows: usize,
    macs_per_row: usize,
}

/// Calls `chunk(expert, weight rows)` until all rows of all experts are covered, each once.
fn run(pool: &mut Pool, works: &[Work], chunk: &(dyn Fn(usize, Range<usize>) + Sync)) {
    let macs: usize = works.iter().map(|work| work.rows * work.macs_per_row).sum();
    if macs < PARALLEL_MIN_MACS || pool.threads() == 1 {
        works.iter().enumerate().for_each(|(expert, work)| chunk(expert, 0..work.rows));
        return;
    }
    let chunks = split(works, (macs / (pool.threads() * CHUNKS_PER_THREAD)).max(CHUNK_MIN_MACS));
    pool.run(chunks.len(), &|index| {
        let (expert, range) = &chunks[index];
        chunk(*expert, range.clone());
    });
}

/// Cuts every expert into equal ranges of at most about `target_macs`.
fn split(works: &[Work], target_macs: usize) -> Vec<(usize, Range<usize>)> {
    let mut chunks = Vec::new();
    for (expert, work) in works.iter().enumerate() {
        let pieces = (work.rows * work.macs_per_row).div_ceil(target_macs).max(1);
        let len = work.rows.div_ceil(pieces).max(1);
        let starts = (0..work.rows).step_by(len);
        chunks.extend(starts.map(|start| (expert, start..(start + len).min(work.rows))));
    }
    chunks
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::kernels::Format;
    use crate::kernels::cpu::tests::{noise, random_weights};
    use crate::kernels::{matmul, matmul_group};
    use crate::layers::{FeedForward, LoadedFeedForward};

    const WIDTH: usize = 512;
    const INNER: usize = 256;
    const EXPERTS: usize = 4;

    /// Three matrices an expert, as aligned bytes.
    struct Bank(Format, Vec<[Vec<u8>; 3]>);

    impl Bank {
        fn new(format: Format) -> Bank {
            let weights = |seed| random_weights(format, INNER * WIDTH, seed);
            Bank(format, (0..EXPERTS as u64).map(|e| [3 * e, 3 * e + 1, 3 * e + 2].map(weights)).collect())
        }

        fn expert(&self, expert: usize) -> LoadedFeedForward<'_> {
            let matrix = |part: usize, rows, cols| MatrixRef {
                format: self.0,
                rows,
                cols,
                bytes: &self.1[expert][part],
            };
            let (gate, up) = (matrix(0, INNER, WIDTH), matrix(1, INNER, WIDTH));
            FeedForward { gate, up, down: matrix(2, WIDTH, INNER), bias: [None; 3] }
        }

        /// Row by row through the plain path.
        fn one_by_one(&self, x: &[f32], rows: &[Vec<u32>]) -> Vec<Vec<f32>> {
            let mut pool = Pool::new(1, "test").unwrap();
            let row = |row: u32| &x[row as usize * WIDTH..(row as usize + 1) * WIDTH];
            let mut one = |expert, m| {
                let FeedForward { gate, up, down, .. } = self.expert(expert);
                let x = Input::new(row(m), WIDTH);
                let (mut hidden, mut ups, mut out) =
                    (vec![0f32; INNER], vec![0f32; INNER], vec![0f32; WIDTH]);
                matmul_group(&mut pool, &x, &mut [(gate, &mut hidden), (up, &mut ups)]);
                silu_mul(&mut hidden, &ups);
                matmul(&mut pool, down, &Input::new(&hidden, INNER), &mut out);
                out
            };
            rows.iter().enumerate().map(|(e, rows)| rows.iter().flat_map(|m| one(e, *m)).collect()).collect()
        }

        /// All experts of `group` at once.
        fn grouped(&self, pool: &mut Pool, x: &[f32], rows: &[Vec<u32>], group: &[usize]) -> Vec<Vec<f32>> {
            let values = |each: usize| group.iter().map(|e| vec![0f32; rows[*e].len() * each]).collect();
            let (mut hidden, mut out): (Vec<Vec<f32>>, Vec<Vec<f32>>) = (values(INNER), values(WIDTH));
            let mut jobs: Vec<GateUp<'_>> = group
                .iter()
                .zip(&mut hidden)
                .map(|(e, hidden)| {
                    let expert = self.expert(*e);
                    GateUp { gate: expert.gate, up: expert.up, rows: &rows[*e], hidden }
                })
                .collect();
            gate_up_experts(pool, &Input::new(x, WIDTH), &mut jobs);
            let mut jobs: Vec<Down<'_>> = group
                .iter()
                .zip(hidden.iter().zip(&mut out))
                .map(|(e, (hidden, out))| Down { down: self.expert(*e).down, hidden, out })
                .collect();
            down_experts(pool, &mut jobs);
            out
        }
    }

    /// Who gets which rows of a window of `rows`: all, some out of order, one, none.
    fn shares(rows: u32) -> Vec<Vec<u32>> {
        vec![(0..rows).collect(), (0..rows).rev().filter(|m| m % 3 != 1).collect(), vec![rows - 1], vec![]]
    }

    #[test]
    fn any_grouping_on_any_threads_is_bitwise_the_plain_pass_of_every_row() {
        let x = noise(16 * WIDTH, 3);
        for format in Format::all() {
            let bank = Bank::new(format);
            for m in [1, 2, 5, 16] {
                let rows = shares(m as u32);
                let x = &x[..m * WIDTH];
                let expected = bank.one_by_one(x, &rows);
                for threads in [1, 2, 3] {
                    let mut pool = Pool::new(threads, "test").unwrap();
                    for groups in [&[&[0, 1, 2, 3][..]][..], &[&[3, 1], &[0, 2]], &[&[2], &[0], &[3], &[1]]] {
                        for group in groups {
                            let got = bank.grouped(&mut pool, x, &rows, group);
                            let expected: Vec<_> = group.iter().map(|e| expected[*e].clone()).collect();
                            assert!(got == expected, "{format:?} {m} rows {threads} threads {group:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_weight_row_is_in_one_chunk_and_no_chunk_is_much_larger_than_asked() {
        for target in [1, 1000, 70_000, usize::MAX] {
            let sizes = [(1408, 2048), (1, 1 << 20), (37, 0), (0, 5), (64, 100_000)];
            let works = sizes.map(|(rows, macs_per_row)| Work { rows, macs_per_row });
            let mut covered = sizes.map(|(rows, _)| vec![0; rows]);
            for (expert, range) in split(&works, target) {
                assert!(!range.is_empty() && (range.len() - 1) * works[expert].macs_per_row <= target);
                covered[expert][range].iter_mut().for_each(|count| *count += 1);
            }
            assert!(covered.iter().flatten().all(|count| *count == 1));
        }
    }
}
