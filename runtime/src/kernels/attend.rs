//! Scaled dot-product attention of many queries over the cached rows they share.
//!
//! Owns the one attention loop of GQA and absorbed MLA (whose value row is the front of its key row).
//! Queries that share a KV head are computed together over tiles of [`TILE`] positions, each unpacked to
//! floats once. What one query gets depends on it and the cached rows alone (DESIGN I2): a score is
//! eight sums over the key's dimensions and one tree; the running maximum and the sums of weights (one
//! for each position modulo 8) change tile by tile, counted from position 0; an output value is one chain
//! of fused products over positions. Which queries are computed together only shares loads.

use super::kv_rows::KvRows;
use super::lanes::{LANES, Lanes, Plain};
use super::vector::{exp, greater};

/// Queries computed together at most.
pub const QUERIES_MAX: usize = 64;
/// Positions of a tile. Part of the arithmetic: weights are scaled anew where a tile begins.
const TILE: usize = 32;
/// Accumulators of an inner loop: enough to hide the latency of a fused product.
const ACCUMULATORS: usize = 8;
/// Floats of a cache line.
const LINE: usize = 16;

/// Cached rows of one KV head.
#[derive(Clone, Copy)]
pub struct KvView<'a> {
    /// Key rows.
    pub keys: KvRows<'a>,
    /// Value rows; `None` when a value is the front of its key.
    pub values: Option<KvRows<'a>>,
}

/// One query's progress.
#[derive(Clone, Copy)]
struct Progress {
    /// Positions it sees.
    limit: usize,
    /// Largest score so far.
    max: f32,
    /// Sums of the weights so far, by position modulo 8.
    sums: [f32; LANES],
}

impl Progress {
    /// Positions of the tile at `first` it sees.
    #[inline(always)]
    fn seen(&self, first: usize) -> usize {
        self.limit.saturating_sub(first).min(TILE)
    }
}

/// Working memory of one thread's attention: queries, tiles and results.
pub struct AttendSpace {
    key_dim: usize,
    value_dim: usize,
    progress: Vec<Progress>,
    /// `[QUERIES_MAX, row_len(key_dim)]`, zero behind each query.
    queries: Vec<f32>,
    /// `[QUERIES_MAX, row_len(value_dim)]`
    outputs: Vec<f32>,
    /// Scores, then weights of the present tile, `[QUERIES_MAX, TILE]`.
    weights: Vec<f32>,
    /// `[TILE, row_len(key_dim)]`, zero behind each key.
    keys: Vec<f32>,
    /// `[TILE, row_len(value_dim)]`; empty when a value is the front of its key.
    values: Vec<f32>,
}

/// Floats from one row to the next: an odd number of cache lines, so that a column of rows does not fall
/// on a few sets of the cache.
const fn row_len(dim: usize) -> usize {
    (dim.div_ceil(LINE) | 1) * LINE
}

impl AttendSpace {
    /// Memory for these widths.
    pub fn new(key_dim: usize, value_dim: usize, values_are_keys: bool) -> AttendSpace {
        let value_rows = if values_are_keys { 0 } else { TILE };
        AttendSpace {
            key_dim,
            value_dim,
            progress: Vec::with_capacity(QUERIES_MAX),
            queries: vec![0.0; QUERIES_MAX * row_len(key_dim)],
            outputs: vec![0.0; QUERIES_MAX * row_len(value_dim)],
            weights: vec![0.0; QUERIES_MAX * TILE],
            keys: vec![0.0; TILE * row_len(key_dim)],
            values: vec![0.0; value_rows * row_len(value_dim)],
        }
    }

    /// Floats `new` allocates.
    pub fn floats(key_dim: usize, value_dim: usize, values_are_keys: bool) -> usize {
        let value_rows = QUERIES_MAX + if values_are_keys { 0 } else { TILE };
        (QUERIES_MAX + TILE) * row_len(key_dim)
            + value_rows * row_len(value_dim)
            + QUERIES_MAX * (TILE + size_of::<Progress>() / size_of::<f32>())
    }

    /// Forgets all queries.
    pub fn clear(&mut self) {
        self.progress.clear();
    }

    /// One more query, which sees the first `limit` positions: the place (`[key_dim]`) to write it to,
    /// scaled.
    ///
    /// # Panics
    /// Beyond [`QUERIES_MAX`], or for a query that sees nothing.
    pub fn push(&mut self, limit: usize) -> &mut [f32] {
        let index = self.progress.len();
        assert!(index < QUERIES_MAX && limit > 0, "invariant: room for a query that sees something");
        self.progress.push(Progress { limit, max: f32::NEG_INFINITY, sums: [0.0; LANES] });
        let value_len = row_len(self.value_dim);
        self.outputs[index * value_len..(index + 1) * value_len].fill(0.0);
        &mut self.queries[index * row_len(self.key_dim)..][..self.key_dim]
    }

    /// What the query pushed as number `index` found (`[value_dim]`), after [`AttendSpace::run`].
    pub fn output(&self, index: usize) -> &[f32] {
        &self.outputs[index * row_len(self.value_dim)..][..self.value_dim]
    }

    /// Attends all queries.
    pub fn run(&mut self, kv: &KvView<'_>) {
        #[cfg(target_arch = "x86_64")]
        if super::lanes::has_avx2() {
            // SAFETY: the features were detected.
            return unsafe { run_avx2(self, kv) };
        }
        self.run_with::<Plain>(kv);
    }

    #[inline(always)]
    fn run_with<L: Lanes>(&mut self, kv: &KvView<'_>) {
        let end = self.progress.iter().map(|query| query.limit).max().unwrap_or(0);
        for first in (0..end).step_by(TILE) {
            let count = TILE.min(end - first);
            kv.keys.unpack::<L>(first, count, &mut self.keys, row_len(self.key_dim));
            if let Some(values) = kv.values {
                values.unpack::<L>(first, count, &mut self.values, row_len(self.value_dim));
            }
            self.score::<L>(first);
            self.weigh::<L>(first);
            self.add_values::<L>(first, kv.values.is_none());
        }
        self.divide::<L>();
    }

    /// Scores of all queries in the tile; those a query does not see are computed and not used.
    #[inline(always)]
    fn score<L: Lanes>(&mut self, first: usize) {
        let mut index = 0;
        while index < self.progress.len() {
            index += match self.progress.len() - index {
                4.. => self.score_block::<L, 4, 2>(index, first),
                2.. => self.score_block::<L, 2, 4>(index, first),
                _ => self.score_block::<L, 1, 8>(index, first),
            };
        }
    }

    /// `Q` queries from `index` on, `K` keys at a time; returns `Q`.
    #[inline(always)]
    fn score_block<L: Lanes, const Q: usize, const K: usize>(&mut self, index: usize, first: usize) -> usize {
        let len = row_len(self.key_dim);
        let chunks = self.key_dim.div_ceil(LANES);
        let seen = self.progress[index..index + Q].iter().map(|query| query.seen(first)).max().unwrap_or(0);
        let queries: [&[[f32; LANES]]; Q] =
            std::array::from_fn(|i| &self.queries[(index + i) * len..][..len].as_chunks().0[..chunks]);
        for t in (0..seen).step_by(K) {
            let keys: [&[[f32; LANES]]; K] =
                std::array::from_fn(|j| &self.keys[(t + j) * len..][..len].as_chunks().0[..chunks]);
            let sums = dots::<L, Q, K>(queries, keys, chunks);
            for i in 0..Q {
                for j in 0..K {
                    self.weights[(index + i) * TILE + t + j] = sums[i * K + j];
                }
            }
        }
        Q
    }

    /// Turns scores into weights, and scales what was added before where the maximum grew.
    #[inline(always)]
    fn weigh<L: Lanes>(&mut self, first: usize) {
        let len = row_len(self.value_dim);
        let rows = self.weights.as_chunks_mut::<TILE>().0.iter_mut().zip(self.outputs.chunks_exact_mut(len));
        for (query, (weights, output)) in self.progress.iter_mut().zip(rows) {
            let seen = query.seen(first);
            if seen == 0 {
                continue;
            }
            weights[seen..].fill(f32::NEG_INFINITY);
            let max = greater(query.max, largest(weights));
            if max != query.max {
                let factor = exp(query.max - max);
                query.sums.iter_mut().for_each(|sum| *sum *= factor);
                scale::<L>(output, factor);
                query.max = max;
            }
            weights.iter_mut().for_each(|weight| *weight = exp(*weight - max));
            for chunk in weights.as_chunks::<LANES>().0 {
                for (sum, weight) in query.sums.iter_mut().zip(chunk) {
                    *sum += weight;
                }
            }
        }
    }

    /// Adds the tile's values to all outputs, a column of two vectors at a time: it stays in the nearest
    /// cache for all queries.
    #[inline(always)]
    fn add_values<L: Lanes>(&mut self, first: usize, values_are_keys: bool) {
        let AttendSpace { key_dim, value_dim, progress, outputs, weights, keys, values, .. } = self;
        let (rows, stride) =
            if values_are_keys { (&*keys, row_len(*key_dim)) } else { (&*values, row_len(*value_dim)) };
        let tile = Tile { rows, stride, weights, output_len: row_len(*value_dim) };
        // What is left of the queries after blocks of four goes alone, as wide as the accumulators reach.
        let blocks = progress.len() / 4 * 4;
        for at in (0..*value_dim).step_by(2 * LANES) {
            for (block, index) in progress[..blocks].as_chunks::<4>().0.iter().zip((0..).step_by(4)) {
                let common = block.iter().map(|query| query.seen(first)).min().unwrap_or(0);
                tile.add::<L, 4, 2>(outputs, (index, at), 0..common);
                for (i, query) in block.iter().enumerate() {
                    tile.add::<L, 1, 2>(outputs, (index + i, at), common..query.seen(first));
                }
            }
        }
        for (index, query) in progress.iter().enumerate().skip(blocks) {
            let wide = *value_dim / (ACCUMULATORS * LANES) * (ACCUMULATORS * LANES);
            for at in (0..wide).step_by(ACCUMULATORS * LANES) {
                tile.add::<L, 1, ACCUMULATORS>(outputs, (index, at), 0..query.seen(first));
            }
            for at in (wide..*value_dim).step_by(2 * LANES) {
                tile.add::<L, 1, 2>(outputs, (index, at), 0..query.seen(first));
            }
        }
    }

    #[inline(always)]
    fn divide<L: Lanes>(&mut self) {
        let rows = self.outputs.chunks_exact_mut(row_len(self.value_dim));
        for (query, output) in self.progress.iter().zip(rows) {
            let [sum, ..] = Plain::sums([Plain::load(&query.sums); 4]);
            scale::<L>(output, 1.0 / sum);
        }
    }
}

/// Dot products of `Q` queries and `K` keys, `[Q][K]`.
#[inline(always)]
fn dots<L: Lanes, const Q: usize, const K: usize>(
    queries: [&[[f32; LANES]]; Q],
    keys: [&[[f32; LANES]]; K],
    chunks: usize,
) -> [f32; ACCUMULATORS] {
    const { assert!(Q * K == ACCUMULATORS) };
    let mut sums = [L::splat(0.0); ACCUMULATORS];
    for c in 0..chunks {
        for i in 0..Q {
            let query = L::load(&queries[i][c]);
            for j in 0..K {
                sums[i * K + j] = L::load(&keys[j][c]).mul_add(query, sums[i * K + j]);
            }
        }
    }
    let [a, b, c, d, e, f, g, h] = sums;
    let ([a, b, c, d], [e, f, g, h]) = (L::sums([a, b, c, d]), L::sums([e, f, g, h]));
    [a, b, c, d, e, f, g, h]
}

/// What values are added from.
struct Tile<'a> {
    /// Value rows.
    rows: &'a [f32],
    /// Floats from one row to the next.
    stride: usize,
    /// `[QUERIES_MAX, TILE]`
    weights: &'a [f32],
    /// Floats from one output to the next.
    output_len: usize,
}

impl Tile<'_> {
    /// Adds the values at `positions` to `D` vectors of `Q` outputs, from (`index`, `at`) on.
    #[inline(always)]
    fn add<L: Lanes, const Q: usize, const D: usize>(
        &self,
        outputs: &mut [f32],
        (index, at): (usize, usize),
        positions: std::ops::Range<usize>,
    ) {
        if positions.is_empty() {
            return;
        }
        let mut sums = [[L::splat(0.0); D]; Q];
        for i in 0..Q {
            let output = &outputs[(index + i) * self.output_len + at..][..D * LANES];
            for (sum, chunk) in sums[i].iter_mut().zip(output.as_chunks().0) {
                *sum = L::load(chunk);
            }
        }
        let weights: [&[f32]; Q] =
            std::array::from_fn(|i| &self.weights[(index + i) * TILE..][..TILE][..positions.end]);
        for t in positions {
            let row = self.rows[t * self.stride + at..][..D * LANES].as_chunks::<LANES>().0;
            for i in 0..Q {
                let weight = L::splat(weights[i][t]);
                for d in 0..D {
                    sums[i][d] = L::load(&row[d]).mul_add(weight, sums[i][d]);
                }
            }
        }
        for i in 0..Q {
            let output = &mut outputs[(index + i) * self.output_len + at..][..D * LANES];
            for (sum, chunk) in sums[i].iter().zip(output.as_chunks_mut().0) {
                sum.store(chunk);
            }
        }
    }
}

#[inline(always)]
fn largest(weights: &[f32; TILE]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in weights.as_chunks::<LANES>().0 {
        for (lane, weight) in lanes.iter_mut().zip(chunk) {
            *lane = greater(*lane, *weight);
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, greater)
}

#[inline(always)]
fn scale<L: Lanes>(values: &mut [f32], factor: f32) {
    for chunk in values.as_chunks_mut::<LANES>().0 {
        L::load(chunk).mul(L::splat(factor)).store(chunk);
    }
}

/// Compiled for AVX2; what is inlined into it is as well.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2(space: &mut AttendSpace, kv: &KvView<'_>) {
    space.run_with::<super::lanes::Avx2>(kv);
}

#[cfg(test)]
mod tests;
