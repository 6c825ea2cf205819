//! Kernels with NEON, for aarch64.
//!
//! Owns the loops: a block's weights are unpacked into registers once for all activation rows of the
//! tile. What differs between formats is behind [`Wide256`] and [`Wide32`] (`k_quants`, `legacy`,
//! `i_quants`, and the formats that go through their plain unpacker); what differs between processors is
//! behind [`Dot`]. Bits are those of `portable`. NEON is a part of aarch64: only a [`Dot`] may ask for
//! more.

mod dot;
mod float;
mod i_quants;
mod k_quants;
mod legacy;

use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

pub(in crate::kernels) use dot::{Dot, DotProd, Widening};
pub(in crate::kernels) use float::tile_float;
pub(in crate::kernels) use i_quants::WideIq4Xs;
pub(in crate::kernels) use k_quants::{WideQ2K, WideQ3K, WideQ4K, WideQ5K, WideQ6K};
pub(in crate::kernels) use legacy::{WideIq4Nl, WideMxfp4, WideQ4_0, WideQ4_1, WideQ5_0, WideQ5_1, WideQ8_0};

use super::activations::{X32, X256};
use super::blocks::{Block32, Block256, Unpacked256, cell};
use super::tile::Tile;

/// What the loop needs to know of a 256 block beside its weights.
pub(in crate::kernels) struct Head {
    /// Scales of the 16 groups.
    scales: [int16x8_t; 2],
    /// Minima of the groups; read only where the format has them.
    mins: [int16x8_t; 2],
    d: f32,
    d_min: f32,
}

/// A 256 format in registers.
pub(in crate::kernels) trait Wide256 {
    /// The format.
    type Block: Block256;

    /// Reads scales. Formats without a vector unpacker unpack to `buffer` here.
    ///
    /// # Safety
    /// `block` is one block.
    unsafe fn head(block: &[u8], buffer: &mut Unpacked256) -> Head;

    /// Weights `128 half..128 half + 128` as stored, 16 a vector.
    ///
    /// # Safety
    /// `block` is one block, and [`Wide256::head`] has been called for it.
    unsafe fn half(block: &[u8], buffer: &Unpacked256, half: usize) -> [int8x16_t; 8];
}

/// A 32 format in registers.
pub(in crate::kernels) trait Wide32 {
    /// The format.
    type Block: Block32;

    /// The 32 stored weights.
    ///
    /// # Safety
    /// `block` is one block.
    unsafe fn weights(block: &[u8]) -> [int8x16_t; 2];

    /// Scales of four blocks.
    ///
    /// # Safety
    /// `blocks` are four.
    unsafe fn scales(blocks: &[u8]) -> float32x4_t;

    /// Minima of four blocks; read only where the format has them.
    ///
    /// # Safety
    /// As [`Wide32::scales`].
    #[inline(always)]
    unsafe fn mins(_blocks: &[u8]) -> float32x4_t {
        // SAFETY: NEON is a part of aarch64.
        unsafe { vdupq_n_f32(0.0) }
    }
}

/// Any 256 format by way of its plain unpacker.
pub(in crate::kernels) struct Buffered<B>(PhantomData<B>);

impl<B: Block256> Wide256 for Buffered<B> {
    type Block = B;

    #[inline(always)]
    unsafe fn head(block: &[u8], buffer: &mut Unpacked256) -> Head {
        B::unpack(block, buffer);
        // SAFETY: NEON is a part of aarch64.
        unsafe {
            let (scales, mins) = (load_i16(&buffer.scales), load_i16(&buffer.mins));
            Head { scales, mins, d: buffer.d, d_min: buffer.d_min }
        }
    }

    #[inline(always)]
    unsafe fn half(_block: &[u8], buffer: &Unpacked256, half: usize) -> [int8x16_t; 8] {
        let q = &buffer.q.as_chunks::<16>().0;
        // SAFETY: 16 bytes each.
        std::array::from_fn(|k| unsafe { vld1q_s8(q[8 * half + k].as_ptr()) })
    }
}

/// The 16 bytes at byte `at`, bounds checked.
#[inline(always)]
unsafe fn load(bytes: &[u8], at: usize) -> uint8x16_t {
    // SAFETY: 16 bytes are there.
    unsafe { vld1q_u8(cell::<16>(bytes, at).as_ptr()) }
}

#[inline(always)]
unsafe fn load_i16(values: &[i16; 16]) -> [int16x8_t; 2] {
    // SAFETY: 16 numbers are there.
    unsafe { [vld1q_s16(values.as_ptr()), vld1q_s16(values.as_ptr().add(8))] }
}

/// Vectors `2 j` and `2 j + 1` of 16 activations.
#[inline(always)]
unsafe fn activations(q: &[i8; 256], j: usize) -> [int8x16_t; 2] {
    let q = &q.as_chunks::<32>().0[j];
    // SAFETY: 32 bytes are there.
    unsafe { [vld1q_s8(q.as_ptr()), vld1q_s8(q.as_ptr().add(16))] }
}

/// A half float by the instruction for it, which every aarch64 has.
#[inline(always)]
pub(in crate::kernels) fn half(bits: u16) -> f32 {
    let value: f32;
    // SAFETY: registers only.
    unsafe {
        asm!(
            "fcvt {value:s}, {bits:h}",
            value = lateout(vreg) value,
            bits = in(vreg) bits,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    value
}

/// Four half floats (`vcvt_f32_f16` wants a newer compiler than the rest).
#[inline(always)]
unsafe fn halves(bits: uint16x4_t) -> float32x4_t {
    let values: float32x4_t;
    // SAFETY: registers only; every aarch64 has the instruction.
    unsafe {
        asm!(
            "fcvtl {values:v}.4s, {bits:v}.4h",
            values = lateout(vreg) values,
            bits = in(vreg) bits,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    values
}

/// Low and high 4 bits of every byte.
#[inline(always)]
unsafe fn nibbles(bits: uint8x16_t) -> [uint8x16_t; 2] {
    // SAFETY: NEON is a part of aarch64.
    unsafe { [vandq_u8(bits, vdupq_n_u8(15)), vshrq_n_u8::<4>(bits)] }
}

/// 16-bit numbers, each twice.
#[inline(always)]
unsafe fn twice(numbers: int16x8_t) -> [int16x8_t; 2] {
    // SAFETY: NEON is a part of aarch64.
    unsafe { [vzip1q_s16(numbers, numbers), vzip2q_s16(numbers, numbers)] }
}

/// `add_lanes` of eight floats.
#[inline(always)]
unsafe fn add_lanes(lanes: [float32x4_t; 2]) -> f32 {
    // SAFETY: NEON is a part of aarch64.
    unsafe {
        let four = vaddq_f32(lanes[0], lanes[1]);
        vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
    }
}

/// Kernel of a 256 format.
///
/// # Safety
/// As [`TileFn`](super::tile::TileFn).
pub(in crate::kernels) unsafe fn tile256<D: Dot, W: Wide256, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise.
    unsafe {
        let x: [&[X256]; R] = tile.x(tile.cols / 256);
        let mut buffer = Unpacked256::ZERO;
        for (n, row) in tile.rows() {
            let mut acc = [[vdupq_n_f32(0.0); 2]; R];
            for (b, block) in row.chunks_exact(W::Block::BYTES).enumerate() {
                let x: [&X256; R] = std::array::from_fn(|r| &x[r][b]);
                let head = W::head(block, &mut buffer);
                let mut sums = [[vdupq_n_s32(0); 2]; R];
                for half in 0..2 {
                    let w = W::half(block, &buffer, half);
                    add_half::<D, R>(w, head.scales[half], x, half, &mut sums);
                }
                add_block::<W, R>(&head, x, sums, &mut acc);
            }
            tile.store(n, acc.map(|acc| add_lanes(acc)));
        }
    }
}

/// Adds `scales * (w . x)` of half a block, every row in its lanes.
#[inline(always)]
unsafe fn add_half<D: Dot, const R: usize>(
    w: [int8x16_t; 8],
    scales: int16x8_t,
    x: [&X256; R],
    half: usize,
    sums: &mut [[int32x4_t; 2]; R],
) {
    // SAFETY: the caller has D's instructions.
    unsafe {
        let scales = [whole(vmovl_s16(vget_low_s16(scales))), whole(vmovl_high_s16(scales))];
        for k in 0..2 {
            let (w, j) = (&w[4 * k..], 4 * half + 2 * k);
            add_32::<D, 0, 1, R>([w[0], w[1]], scales[k], x, j, sums);
            add_32::<D, 2, 3, R>([w[2], w[3]], scales[k], x, j + 1, sums);
        }
    }
}

/// The vector it is given. The compiler knows nothing of its lanes, and so has no reason to make each of them
/// anew where one multiplies.
#[inline(always)]
unsafe fn whole(mut vector: int32x4_t) -> int32x4_t {
    // SAFETY: no instruction.
    unsafe {
        asm!("/* {0:v} */", inout(vreg) vector, options(pure, nomem, nostack, preserves_flags));
    }
    vector
}

/// Adds 32 weights' part, whose scales are in lanes `A` and `B`. All rows take these weights before the
/// next ones come.
#[inline(always)]
unsafe fn add_32<D: Dot, const A: i32, const B: i32, const R: usize>(
    w: [int8x16_t; 2],
    scales: int32x4_t,
    x: [&X256; R],
    j: usize,
    sums: &mut [[int32x4_t; 2]; R],
) {
    // SAFETY: the caller has D's instructions.
    unsafe {
        for r in 0..R {
            let x = activations(&x[r].q, j);
            sums[r] = [
                vmlaq_laneq_s32::<A>(sums[r][0], D::fours(w[0], x[0]), scales),
                vmlaq_laneq_s32::<B>(sums[r][1], D::fours(w[1], x[1]), scales),
            ];
        }
    }
}

/// One block's integers into the float sums of all rows.
#[inline(always)]
unsafe fn add_block<W: Wide256, const R: usize>(
    head: &Head,
    x: [&X256; R],
    sums: [[int32x4_t; 2]; R],
    acc: &mut [[float32x4_t; 2]; R],
) {
    // SAFETY: NEON is a part of aarch64.
    unsafe {
        for r in 0..R {
            let x_sums = load_i16(&x[r].sums);
            let (d, d_min) = (head.d * x[r].d, head.d_min * x[r].d);
            for i in 0..2 {
                let mut lanes = sums[r][i];
                if W::Block::OFFSET != 0 {
                    lanes = vmlsq_n_s32(lanes, of_sums(head.scales[i], x_sums[i]), W::Block::OFFSET);
                }
                acc[r][i] = vfmaq_n_f32(acc[r][i], vcvtq_f32_s32(lanes), d);
                if W::Block::HAS_MINS {
                    let mins = vcvtq_f32_s32(of_sums(head.mins[i], x_sums[i]));
                    acc[r][i] = vfmsq_n_f32(acc[r][i], mins, d_min);
                }
            }
        }
    }
}

/// Factors times sums of 16, two neighbours added.
#[inline(always)]
unsafe fn of_sums(factors: int16x8_t, sums: int16x8_t) -> int32x4_t {
    // SAFETY: NEON is a part of aarch64.
    unsafe {
        let low = vmull_s16(vget_low_s16(factors), vget_low_s16(sums));
        vpaddq_s32(low, vmull_high_s16(factors, sums))
    }
}

/// Bytes of the largest eight blocks of a 32 format.
const EIGHT_MAX: usize = 8 * 34;

/// Kernel of a 32 format.
///
/// # Safety
/// As [`TileFn`](super::tile::TileFn).
pub(in crate::kernels) unsafe fn tile32<D: Dot, W: Wide32, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise.
    unsafe {
        let x: [&[X32]; R] = tile.x(tile.cols.div_ceil(256));
        for (n, row) in tile.rows() {
            let mut acc = [[vdupq_n_f32(0.0); 2]; R];
            let mut eights = row.chunks_exact(8 * W::Block::BYTES);
            let whole = eights.len();
            for (b, blocks) in (&mut eights).enumerate() {
                add_eight::<D, W, R>(blocks, std::array::from_fn(|r| &x[r][b]), &mut acc);
            }
            let rest = eights.remainder();
            if !rest.is_empty() {
                // Zero blocks behind the row's end: they add 0 times 0.
                let mut padded = [0u8; EIGHT_MAX];
                padded[..rest.len()].copy_from_slice(rest);
                let blocks = &padded[..8 * W::Block::BYTES];
                add_eight::<D, W, R>(blocks, std::array::from_fn(|r| &x[r][whole]), &mut acc);
            }
            tile.store(n, acc.map(|acc| add_lanes(acc)));
        }
    }
}

/// Adds eight blocks, four at a time: their weights stay in registers while all rows pass.
#[inline(always)]
unsafe fn add_eight<D: Dot, W: Wide32, const R: usize>(
    blocks: &[u8],
    x: [&X32; R],
    acc: &mut [[float32x4_t; 2]; R],
) {
    // SAFETY: the caller has D's instructions; four numbers are at 0 and at 4.
    unsafe {
        for half in 0..2 {
            let blocks = &blocks[half * 4 * W::Block::BYTES..(half + 1) * 4 * W::Block::BYTES];
            let (d, m) = (W::scales(blocks), W::mins(blocks));
            let block = |b: usize| &blocks[b * W::Block::BYTES..(b + 1) * W::Block::BYTES];
            let w: [[int8x16_t; 2]; 4] = std::array::from_fn(|b| W::weights(block(b)));
            for r in 0..R {
                let mut lanes = products_of_four::<D>(w, x[r], 4 * half);
                let sums = vld1q_s32(x[r].sums.as_ptr().add(4 * half));
                let x_d = vld1q_f32(x[r].d.as_ptr().add(4 * half));
                if W::Block::OFFSET != 0 {
                    lanes = vmlsq_n_s32(lanes, sums, W::Block::OFFSET);
                }
                acc[r][half] = vfmaq_f32(acc[r][half], vmulq_f32(d, x_d), vcvtq_f32_s32(lanes));
                if W::Block::HAS_MIN {
                    acc[r][half] = vfmaq_f32(acc[r][half], m, vmulq_f32(x_d, vcvtq_f32_s32(sums)));
                }
            }
        }
    }
}

/// The exact products of four blocks with the groups of a row from `group` on, one a lane.
#[inline(always)]
unsafe fn products_of_four<D: Dot>(w: [[int8x16_t; 2]; 4], x: &X32, group: usize) -> int32x4_t {
    // SAFETY: the caller has D's instructions.
    unsafe {
        let product = |b: usize| D::any_order(w[b], activations(&x.q, group + b));
        vpaddq_s32(vpaddq_s32(product(0), product(1)), vpaddq_s32(product(2), product(3)))
    }
}
