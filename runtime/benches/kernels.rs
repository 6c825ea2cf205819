//! Microbenchmarks of the kernels, with what the machine could do at best beside them.
//!
//! `cargo bench -p drafthorse-runtime --bench kernels [-- FILTER]`. Throughput is in bytes of weights and
//! in multiply-adds ("items"). `machine` holds the ceilings: memory read, and the product of 8-bit
//! numbers in registers. Weights come from memory, not from a cache: every call takes the next matrix
//! of a set that is larger than any. `scripts/kernel_table.py` makes a table of the output. Random bits
//! are as good as weights here; must not be used to judge results.

use std::fmt;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use drafthorse_runtime::kernels::{
    Down, Format, GateUp, Input, MatrixRef, Pool, down_experts, gate_up_experts, matmul,
};

/// Weights that are read in turn, in bytes: more than last-level caches hold.
const SET_BYTES: usize = 96 << 20;
const THREADS: [usize; 2] = [1, 2];
/// Weight rows, columns: an expert of Qwen3-30B-A3B and of DeepSeek-V2, a dense 1-3B projection.
const SHAPES: [(usize, usize); 3] = [(768, 2048), (1536, 5120), (2048, 5632)];
const ROWS: [usize; 6] = [1, 2, 4, 8, 64, 512];

fn main() {
    divan::main();
}

/// One matrix product.
#[derive(Clone, Copy)]
struct Case {
    format: Format,
    shape: (usize, usize),
    rows: usize,
    threads: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, (n, k)) = (self.format.block_type().name(), self.shape);
        write!(f, "{name} {n}x{k} rows={} threads={}", self.rows, self.threads)
    }
}

fn random_bytes(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn activations(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * i) as f32 * 0.37).sin()).collect()
}

fn matrix_bytes(format: Format, (rows, cols): (usize, usize)) -> usize {
    format.block_type().bytes_for((rows * cols) as u64).expect("whole blocks") as usize
}

fn pool(threads: usize) -> Pool {
    Pool::new(threads, "bench").expect("threads start")
}

fn cases() -> Vec<Case> {
    let quantized =
        Format::all().flat_map(|format| ROWS.map(|rows| Case { format, shape: SHAPES[0], rows, threads: 2 }));
    let common = [Format::Q4K, Format::Q6K, Format::Q8_0].into_iter().flat_map(|format| {
        SHAPES[1..].iter().flat_map(move |shape| {
            THREADS
                .into_iter()
                .flat_map(move |threads| ROWS.map(|rows| Case { format, shape: *shape, rows, threads }))
        })
    });
    quantized.chain(common).collect()
}

#[divan::bench(args = cases(), max_time = 0.4, min_time = 0.1)]
fn matrix(bencher: Bencher<'_, '_>, case: &Case) {
    let Case { format, shape: (n, k), rows, threads } = *case;
    let len = matrix_bytes(format, (n, k));
    let set = random_bytes(len * SET_BYTES.div_ceil(len));
    let x = activations(rows * k);
    let mut out = vec![0f32; rows * n];
    let mut pool = pool(threads);
    let mut at = 0;
    bencher.counter(BytesCount::new(len)).counter(ItemsCount::new(rows * n * k)).bench_local(|| {
        let bytes = &set[at..at + len];
        at = (at + len) % set.len();
        matmul(&mut pool, MatrixRef { format, rows: n, cols: k, bytes }, &Input::new(&x, k), &mut out);
        black_box(&out);
    });
}

/// A window of rows over the experts of one layer, as in Qwen3-30B-A3B: 128 of 768 x 2048, 8 a row.
#[derive(Clone, Copy)]
struct Window {
    format: Format,
    rows: usize,
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} 8 of 128 x 768x2048 rows={} threads=2", self.format.block_type().name(), self.rows)
    }
}

fn windows() -> Vec<Window> {
    let rows = [1, 2, 4, 8, 64, 512];
    [Format::Q4K, Format::Q6K]
        .into_iter()
        .flat_map(|format| rows.map(|rows| Window { format, rows }))
        .collect()
}

#[divan::bench(args = windows(), max_time = 1.0)]
fn experts(bencher: Bencher<'_, '_>, window: &Window) {
    const EXPERTS: usize = 128;
    const USED: usize = 8;
    let (Window { format, rows }, (inner, width)) = (*window, SHAPES[0]);
    let len = matrix_bytes(format, (inner, width));
    let set = random_bytes(3 * len * EXPERTS);
    let matrix = |expert: usize, part: usize, rows, cols| {
        let start = (3 * expert + part) * len;
        MatrixRef { format, rows, cols, bytes: &set[start..start + len] }
    };
    let mut turn = 0;
    let x = activations(rows * width);
    let mut pool = pool(2);
    bencher.counter(ItemsCount::new(3 * rows * USED * inner * width)).bench_local(|| {
        turn += 1;
        let mut shares = vec![Vec::new(); EXPERTS];
        for m in 0..rows {
            (0..USED).for_each(|k| shares[pick(m, k, turn)].push(m as u32));
        }
        let busy: Vec<usize> = (0..EXPERTS).filter(|e| !shares[*e].is_empty()).collect();
        let values = |each: usize| busy.iter().map(|e| vec![0f32; shares[*e].len() * each]).collect();
        let (mut hidden, mut out): (Vec<Vec<f32>>, Vec<Vec<f32>>) = (values(inner), values(width));
        let mut jobs: Vec<GateUp<'_>> = (busy.iter().zip(&mut hidden))
            .map(|(e, hidden)| GateUp {
                gate: matrix(*e, 0, inner, width),
                up: matrix(*e, 1, inner, width),
                rows: &shares[*e],
                hidden,
            })
            .collect();
        gate_up_experts(&mut pool, &Input::new(&x, width), &mut jobs);
        let mut jobs: Vec<Down<'_>> = (busy.iter().zip(hidden.iter().zip(&mut out)))
            .map(|(e, (hidden, out))| Down { down: matrix(*e, 2, width, inner), hidden, out })
            .collect();
        down_experts(&mut pool, &mut jobs);
        black_box(&out);
    });
}

/// The `k`-th expert of row `m`: eight different ones, all equally often.
fn pick(m: usize, k: usize, turn: usize) -> usize {
    (m.wrapping_mul(2_654_435_761) / 7 + turn * 13 + k * 16) % 128
}

mod machine {
    //! What the machine can do at best.

    use super::{BytesCount, ItemsCount, THREADS, black_box, pool};

    /// Reads memory that no cache holds.
    #[divan::bench(args = THREADS, max_time = 1.0)]
    fn read(bencher: divan::Bencher<'_, '_>, threads: usize) {
        const PART: usize = 1 << 17;
        let set = vec![1u64; 32 << 20];
        let mut pool = pool(threads);
        bencher.counter(BytesCount::of_slice(&set)).bench_local(|| {
            pool.run(set.len() / PART, &|part| {
                let sum = set[part * PART..(part + 1) * PART].iter().fold(0u64, |sum, v| sum ^ v);
                black_box(sum);
            });
        });
    }

    /// Multiply-adds of 8-bit numbers in registers, as the kernels do them.
    #[cfg(target_arch = "x86_64")]
    #[divan::bench(args = THREADS, max_time = 0.5)]
    fn multiply_add(bencher: divan::Bencher<'_, '_>, threads: usize) {
        const STEPS: usize = 100_000;
        const CHAINS: usize = 8;
        if !is_x86_feature_detected!("avx2") {
            return;
        }
        #[target_feature(enable = "avx2")]
        fn chains(weights: u8) -> i32 {
            use std::arch::x86_64::*;
            let (w, scale) = (_mm256_set1_epi8(weights.cast_signed()), _mm256_set1_epi16(3));
            let mut x = [_mm256_set1_epi8(2); CHAINS];
            let mut sums = [_mm256_setzero_si256(); CHAINS];
            for _ in 0..STEPS {
                for (sum, x) in sums.iter_mut().zip(&mut x) {
                    *x = black_box_vector(*x);
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(scale, _mm256_maddubs_epi16(w, *x)));
                }
            }
            let sum = sums.into_iter().fold(_mm256_setzero_si256(), |a, b| _mm256_add_epi32(a, b));
            _mm256_extract_epi32(sum, 0)
        }
        let mut pool = pool(threads);
        bencher.counter(ItemsCount::new(threads * STEPS * CHAINS * 32)).bench_local(|| {
            pool.run(threads, &|part| {
                // SAFETY: the feature was detected.
                black_box(unsafe { chains(black_box(part as u8)) });
            });
        });
    }

    /// Keeps the compiler from computing a product once for all steps, without touching memory.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2")]
    fn black_box_vector(mut x: std::arch::x86_64::__m256i) -> std::arch::x86_64::__m256i {
        // SAFETY: no instruction; the register is only said to have changed.
        unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) x, options(nomem, nostack, preserves_flags)) };
        x
    }
}
