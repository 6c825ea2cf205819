//! Writing the values of planned tensors as fast as a disk takes them.
//!
//! A matrix is put together from a pool of real quantized blocks: a few thousand runs of normal values,
//! quantized once per (type, deviation), drawn at random for every run of every row. So blocks have the
//! statistics of a quantized model, no two rows are alike, and the cost is that of copying. Holds one
//! pool per kind and one chunk; no tensor.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, Write};
use std::rc::Rc;

use drafthorse_runtime::gguf::{BlockType, GgufError, quantize};

use super::plan::{Content, Planned, constant};
use super::random::Random;
use super::routing::{LOGIT_STD, biases};

/// Values in a pool, at most.
const POOL_VALUES: usize = 1 << 20;
/// Values of a run where rows allow it: the largest block.
const RUN_MAX: u64 = 256;
/// Bytes written at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Everything that the tensors of a file share.
pub struct Filler<'a> {
    pub seed: u64,
    pub zipf: f64,
    /// Told of every chunk's bytes.
    pub progress: &'a dyn Fn(u64),
    pools: RefCell<HashMap<PoolKey, Rc<Pool>>>,
}

/// Type, run length, bits of the deviation, and whether the runs begin with the constant channel.
type PoolKey = (BlockType, usize, u64, Option<u64>);

/// Runs of quantized values of equal length.
struct Pool {
    bytes: Vec<u8>,
    run_bytes: usize,
}

impl Pool {
    fn draw(&self, random: &mut Random) -> &[u8] {
        let index = random.below(self.bytes.len() / self.run_bytes);
        &self.bytes[index * self.run_bytes..][..self.run_bytes]
    }
}

impl<'a> Filler<'a> {
    /// A filler without pools.
    pub fn new(seed: u64, zipf: f64, progress: &'a dyn Fn(u64)) -> Filler<'a> {
        Filler { seed, zipf, progress, pools: RefCell::default() }
    }

    /// Writes all bytes of one tensor.
    pub fn write(&self, tensor: &Planned, out: &mut dyn Write) -> io::Result<()> {
        match tensor.content {
            Content::Ones => self.put(out, &1f32.to_le_bytes().repeat(tensor.dims[0] as usize)),
            Content::Noise { std } => self.noise(tensor, std, out),
            Content::Embedding => self.embedding(tensor, out),
            Content::Router { block, constant } => self.router(tensor, (block, constant), out),
        }
    }

    fn put(&self, out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
        out.write_all(bytes)?;
        (self.progress)(bytes.len() as u64);
        Ok(())
    }

    fn noise(&self, tensor: &Planned, std: f64, out: &mut dyn Write) -> io::Result<()> {
        let elements: u64 = tensor.dims.iter().product();
        let run = run_len(tensor);
        let pool = self.pool((tensor.block_type, run, std.to_bits(), None), elements)?;
        let mut random = Random::named(self.seed, &tensor.name);
        self.runs(elements / run as u64, out, &mut |_| pool.draw(&mut random))
    }

    /// Noise of deviation 1 with the constant channel at the front of every row.
    fn embedding(&self, tensor: &Planned, out: &mut dyn Write) -> io::Result<()> {
        let elements: u64 = tensor.dims.iter().product();
        let run = run_len(tensor);
        let front = Some(constant(tensor.dims[0]).to_bits());
        let fronts = self.pool((tensor.block_type, run, 1f64.to_bits(), front), elements)?;
        let others = self.pool((tensor.block_type, run, 1f64.to_bits(), None), elements)?;
        let per_row = tensor.dims[0] / run as u64;
        let mut random = Random::named(self.seed, &tensor.name);
        self.runs(elements / run as u64, out, &mut |index| {
            let pool = if index.is_multiple_of(per_row) { &fronts } else { &others };
            pool.draw(&mut random)
        })
    }

    /// Writes `count` runs in chunks.
    fn runs<'p>(
        &self,
        count: u64,
        out: &mut dyn Write,
        next: &mut dyn FnMut(u64) -> &'p [u8],
    ) -> io::Result<()> {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES + RUN_MAX as usize * 4);
        for index in 0..count {
            chunk.extend_from_slice(next(index));
            if chunk.len() >= CHUNK_BYTES {
                self.put(out, &chunk)?;
                chunk.clear();
            }
        }
        self.put(out, &chunk)
    }

    /// Rows of a router: the bias over the constant channel, then noise.
    fn router(&self, tensor: &Planned, (block, constant): (u64, f64), out: &mut dyn Write) -> io::Result<()> {
        let (width, experts) = (tensor.dims[0] as usize, tensor.dims[1] as usize);
        let biases = biases(experts, self.zipf);
        let ranks = Random::named(self.seed, &format!("ranks of block {block}")).order(experts);
        let mut random = Random::named(self.seed, &tensor.name);
        let std = LOGIT_STD / (width as f64).sqrt();
        for rank in ranks {
            let mut row = Vec::with_capacity(width * 4);
            row.extend_from_slice(&((biases[rank] / constant) as f32).to_le_bytes());
            for _ in 1..width {
                row.extend_from_slice(&((std * random.normal()) as f32).to_le_bytes());
            }
            self.put(out, &row)?;
        }
        Ok(())
    }

    /// The pool of a kind, made when first needed; no larger than a tensor of `elements` has use for.
    fn pool(&self, key: PoolKey, elements: u64) -> io::Result<Rc<Pool>> {
        if let Some(pool) = self.pools.borrow().get(&key) {
            return Ok(Rc::clone(pool));
        }
        let (block_type, run, std, front) = key;
        let runs = (elements.min(POOL_VALUES as u64) as usize / run).max(1);
        let mut random = Random::named(self.seed, &format!("pool {key:?}"));
        let mut values = Vec::with_capacity(runs * run);
        for _ in 0..runs {
            let start = values.len();
            values.extend((0..run).map(|_| (f64::from_bits(std) * random.normal()) as f32));
            if let Some(front) = front {
                values[start] = f64::from_bits(front) as f32;
            }
        }
        let bytes = quantize(block_type, &values).map_err(|error: GgufError| io::Error::other(error))?;
        let pool = Rc::new(Pool { run_bytes: bytes.len() / runs, bytes });
        self.pools.borrow_mut().insert(key, Rc::clone(&pool));
        Ok(pool)
    }
}

/// Values drawn at a time: the largest of 256, 32 and a block that divides a row.
fn run_len(tensor: &Planned) -> usize {
    let block = tensor.block_type.block_len();
    let fits = |run: &u64| tensor.dims[0].is_multiple_of(*run) && run.is_multiple_of(block);
    [RUN_MAX, 32].into_iter().find(fits).unwrap_or(block) as usize
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use drafthorse_runtime::gguf::dequantize;

    fn written(tensor: &Planned) -> Vec<f32> {
        let filler = Filler::new(1, 0.8, &|_| {});
        let mut bytes = Vec::new();
        filler.write(tensor, &mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, tensor.bytes());
        dequantize(tensor.block_type, &bytes).unwrap()
    }

    fn tensor(block_type: BlockType, dims: &[u64], content: Content) -> Planned {
        Planned { name: "t".into(), dims: dims.to_vec(), block_type, content }
    }

    #[test]
    fn noise_has_the_deviation_that_was_asked_for_in_every_type() {
        for block_type in drafthorse_runtime::gguf::QUANTIZABLE {
            let values = written(&tensor(block_type, &[512, 200], Content::Noise { std: 0.02 }));
            let square = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            assert!((square.sqrt() / 0.02 - 1.0).abs() < 0.06, "{block_type}: {}", square.sqrt());
            assert!(mean.abs() < 0.002, "{block_type}: {mean}");
        }
    }

    #[test]
    fn rows_differ_and_a_seed_fixes_them() {
        let noise = tensor(BlockType::Q4_K, &[512, 64], Content::Noise { std: 1.0 });
        let values = written(&noise);
        let rows: Vec<&[f32]> = values.chunks(512).collect();
        assert!((1..rows.len()).all(|row| !rows[..row].contains(&rows[row])));
        assert_eq!(values, written(&noise));
    }

    #[test]
    fn every_embedding_begins_with_the_constant_to_within_its_type() {
        for block_type in [BlockType::Q2_K, BlockType::Q4_K, BlockType::Q8_0, BlockType::F16] {
            let values = written(&tensor(block_type, &[2048, 8], Content::Embedding));
            for row in values.chunks(2048) {
                let ratio = f64::from(row[0]) / constant(2048);
                assert!((0.85..1.15).contains(&ratio), "{block_type}: {ratio}");
            }
        }
    }

    #[test]
    fn a_routers_first_channel_carries_the_biases_in_random_order() {
        let router = Content::Router { block: 0, constant: 4.0 };
        let values = written(&tensor(BlockType::F32, &[64, 10], router));
        let mut got: Vec<f32> = values.chunks(64).map(|row| row[0] * 4.0).collect();
        let expected: Vec<f32> = biases(10, 0.8).into_iter().map(|bias| bias as f32).collect();
        assert_ne!(got, expected);
        got.sort_by(|a, b| b.total_cmp(a));
        assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn odd_rows_are_written_in_smaller_runs() {
        for (block_type, row) in [(BlockType::Q5_0, 352), (BlockType::F16, 40)] {
            let tensor = tensor(block_type, &[row, 3], Content::Noise { std: 1.0 });
            assert_eq!(written(&tensor).len() as u64, row * 3);
        }
    }
}
