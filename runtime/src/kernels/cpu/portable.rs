//! The kernels in plain Rust: the definition of every product, and what runs where no vector kernel
//! does.
//!
//! Owns the order of arithmetic that all kernels share, bit by bit. Integers are exact, so only floats
//! have an order:
//!
//! - 256 formats: eight sums. Lane `l` takes values `4 l .. 4 l + 4` of every 32 (what one vector
//!   instruction adds), and is multiplied and added once a block: `sum += (d * x.d) * lane`, fused; then
//!   the minima of group `l` of 32: `sum -= (d_min * x.d) * lane`, fused.
//! - 32 formats: eight sums. Block `b` belongs to lane `b % 8`: `sum += (d * x.d) * lane`, fused; then
//!   `sum += m * (x.d * x.sum)`, fused.
//! - Float formats: sixteen sums, value `i` in lane `i % 16`, fused.
//!
//! The sums are added by halves ([`add_lanes`]). Must not know threads.

use half::{bf16, f16};

use super::activations::{X32, X256};
use super::blocks::{Block32, Block256, Unpacked256};
use super::tile::Tile;

/// Sums of a float product.
pub(super) const FLOAT_LANES: usize = 16;

/// Sum of all lanes: the upper half to the lower, until one is left.
#[inline(always)]
pub(super) fn add_lanes<const N: usize>(mut lanes: [f32; N]) -> f32 {
    let mut half = N / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Kernel of a 256 format.
///
/// # Safety
/// As [`TileFn`](super::tile::TileFn).
pub(super) unsafe fn tile256<B: Block256, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise.
    let x: [&[X256]; R] = unsafe { tile.x(tile.cols / 256) };
    let mut w = Unpacked256::ZERO;
    for (n, row) in tile.rows() {
        let mut sums = [[0f32; 8]; R];
        for (b, block) in row.chunks_exact(B::BYTES).enumerate() {
            B::unpack(block, &mut w);
            for (sums, x) in sums.iter_mut().zip(x) {
                add256::<B>(&w, &x[b], sums);
            }
        }
        // SAFETY: the tile's promise.
        unsafe { tile.store(n, sums.map(add_lanes)) };
    }
}

#[inline(always)]
fn add256<B: Block256>(w: &Unpacked256, x: &X256, sums: &mut [f32; 8]) {
    let mut lanes = [0i32; 8];
    for i in 0..256 {
        lanes[i % 32 / 4] += i32::from(w.scales[i / 16]) * i32::from(w.q[i]) * i32::from(x.q[i]);
    }
    let of_sums = |factors: &[i16; 16], l: usize| {
        let product = |g: usize| i32::from(factors[g]) * i32::from(x.sums[g]);
        product(2 * l) + product(2 * l + 1)
    };
    for (l, sum) in sums.iter_mut().enumerate() {
        let lane = if B::OFFSET == 0 { lanes[l] } else { lanes[l] - B::OFFSET * of_sums(&w.scales, l) };
        *sum = (w.d * x.d).mul_add(lane as f32, *sum);
        if B::HAS_MINS {
            *sum = (-(w.d_min * x.d)).mul_add(of_sums(&w.mins, l) as f32, *sum);
        }
    }
}

/// Kernel of a 32 format.
///
/// # Safety
/// As [`TileFn`](super::tile::TileFn).
pub(super) unsafe fn tile32<B: Block32, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise.
    let x: [&[X32]; R] = unsafe { tile.x(tile.cols.div_ceil(256)) };
    let mut q = [0i8; 32];
    for (n, row) in tile.rows() {
        let mut sums = [[0f32; 8]; R];
        for (b, block) in row.chunks_exact(B::BYTES).enumerate() {
            let (d, m) = B::unpack(block, &mut q);
            for (sums, x) in sums.iter_mut().zip(x) {
                add32::<B>((&q, d, m), &x[b / 8], b % 8, &mut sums[b % 8]);
            }
        }
        // SAFETY: the tile's promise.
        unsafe { tile.store(n, sums.map(add_lanes)) };
    }
}

#[inline(always)]
fn add32<B: Block32>((q, d, m): (&[i8; 32], f32, f32), x: &X32, group: usize, sum: &mut f32) {
    let x_q = &x.q.as_chunks::<32>().0[group];
    let products = q.iter().zip(x_q).map(|(q, x)| i32::from(*q) * i32::from(*x));
    let lane = products.sum::<i32>() - B::OFFSET * x.sums[group];
    *sum = (d * x.d[group]).mul_add(lane as f32, *sum);
    if B::HAS_MIN {
        *sum = m.mul_add(x.d[group] * x.sums[group] as f32, *sum);
    }
}

/// A format of plain numbers, little-endian.
pub(in crate::kernels) trait Float {
    /// Bytes of a number.
    const BYTES: usize;

    /// The number in [`Float::BYTES`] bytes.
    fn decode(cell: &[u8]) -> f32;
}

/// 32-bit floats.
pub(in crate::kernels) struct F32;
/// IEEE half floats.
pub(in crate::kernels) struct F16;
/// Brain floats.
pub(in crate::kernels) struct BF16;

impl Float for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    fn decode(cell: &[u8]) -> f32 {
        f32::from_le_bytes(cell.try_into().expect("invariant: 4 bytes"))
    }
}

impl Float for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn decode(cell: &[u8]) -> f32 {
        f16::from_le_bytes(cell.try_into().expect("invariant: 2 bytes")).to_f32()
    }
}

impl Float for BF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn decode(cell: &[u8]) -> f32 {
        bf16::from_le_bytes(cell.try_into().expect("invariant: 2 bytes")).to_f32()
    }
}

/// Kernel of a float format.
///
/// # Safety
/// As [`TileFn`](super::tile::TileFn).
pub(super) unsafe fn tile_float<F: Float, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise.
    let x: [&[f32]; R] = unsafe { tile.x(tile.cols) };
    for (n, row) in tile.rows() {
        let mut sums = [[0f32; FLOAT_LANES]; R];
        for (i, cell) in row.chunks_exact(F::BYTES).enumerate() {
            let w = F::decode(cell);
            for (sums, x) in sums.iter_mut().zip(x) {
                let sum = &mut sums[i % FLOAT_LANES];
                *sum = w.mul_add(x[i], *sum);
            }
        }
        // SAFETY: the tile's promise.
        unsafe { tile.store(n, sums.map(add_lanes)) };
    }
}

/// Writes the values of a row of floats.
pub(in crate::kernels) fn dequantize_float<F: Float>(row: &[u8], out: &mut [f32]) {
    for (value, cell) in out.iter_mut().zip(row.chunks_exact(F::BYTES)) {
        *value = F::decode(cell);
    }
}
