//! A block's exact sums of products in 256-bit registers.
//!
//! Owns the integer part of every product; AVX-VNNI is another way to multiply and add here, no other
//! kernel. Must not know floats or the order of blocks.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::super::activations::{X32, X256};
use super::super::blocks::{Block32, Block256, Unpacked256};
use super::{Head, Lanes32, Lanes256, Wide32, Wide256, load_i8, opaque};

/// Multiply and add in 256 bits.
///
/// # Safety
/// All functions: inlined into a function with the instructions that the implementor is named after.
pub(in crate::kernels::cpu) trait MulAdd: Copy {
    /// Whether [`MulAdd::fours`] takes any unsigned bytes, not only those up to 128.
    const ANY_BYTES: bool;

    /// `sums + a * b`, the products of 16-bit neighbours added.
    unsafe fn pairs(sums: __m256i, a: __m256i, b: __m256i) -> __m256i;

    /// Unsigned bytes times signed ones, the products of four neighbours added.
    unsafe fn fours(unsigned: __m256i, signed: __m256i) -> __m256i;
}

/// AVX2.
#[derive(Clone, Copy)]
pub(in crate::kernels::cpu) struct Plain;

impl MulAdd for Plain {
    /// Two products have to fit 16 bits.
    const ANY_BYTES: bool = false;

    #[inline(always)]
    unsafe fn pairs(sums: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the caller has AVX2.
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(a, b)) }
    }

    #[inline(always)]
    unsafe fn fours(unsigned: __m256i, signed: __m256i) -> __m256i {
        // SAFETY: the caller has AVX2.
        unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned, signed), _mm256_set1_epi16(1)) }
    }
}

/// AVX-VNNI.
#[derive(Clone, Copy)]
pub(in crate::kernels::cpu) struct Vnni;

impl MulAdd for Vnni {
    const ANY_BYTES: bool = true;

    #[inline(always)]
    unsafe fn pairs(sums: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the caller has AVX-VNNI.
        unsafe { _mm256_dpwssd_avx_epi32(sums, a, b) }
    }

    #[inline(always)]
    unsafe fn fours(unsigned: __m256i, signed: __m256i) -> __m256i {
        // SAFETY: the caller has AVX-VNNI.
        unsafe { _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), unsigned, signed) }
    }
}

/// Sums in 256-bit registers.
#[derive(Clone, Copy)]
pub(in crate::kernels::cpu) struct Ymm<M> {
    /// [`BROADCAST`] as nothing but an address: the compiler shall not keep it in registers.
    table: *const __m256i,
    multiply: PhantomData<M>,
}

impl<M> Ymm<M> {
    #[inline(always)]
    fn new() -> Ymm<M> {
        Ymm { table: opaque(BROADCAST.as_ptr().cast()), multiply: PhantomData }
    }
}

/// Shuffles that broadcast 16-bit number `j` of each half.
static BROADCAST: [[[u8; 2]; 16]; 8] = {
    let mut table = [[[0; 2]; 16]; 8];
    let mut j = 0;
    while j < 8 {
        table[j] = [[2 * j as u8, 2 * j as u8 + 1]; 16];
        j += 1;
    }
    table
};

impl<W: Wide256, M: MulAdd> Lanes256<W> for Ymm<M> {
    #[inline(always)]
    fn start() -> Self {
        Ymm::new()
    }

    /// All rows take a vector of weights before the next one: `in_turn` keeps the compiler from finishing
    /// row after row, for which it would have to keep all weights somewhere and load each once a row.
    #[inline(always)]
    unsafe fn lanes<const R: usize>(
        self,
        block: &[u8],
        buffer: &Unpacked256,
        head: &Head,
        x: [&X256; R],
    ) -> [__m256i; R] {
        // SAFETY: the caller has M's instructions; `j` stays below 8.
        unsafe {
            let halves = [W::half(block, buffer, 0), W::half(block, buffer, 1)];
            let mut sums = [_mm256_setzero_si256(); R];
            for j in 0..8 {
                let w = halves[j / 4][j % 4];
                let scale = _mm256_shuffle_epi8(head.scales, _mm256_loadu_si256(self.table.add(j)));
                let size = if W::Block::IS_SIGNED { _mm256_abs_epi8(w) } else { w };
                for r in 0..R {
                    let y = load_i8(&x[r].q.as_chunks::<32>().0[j]);
                    let y = if W::Block::IS_SIGNED { _mm256_sign_epi8(y, w) } else { y };
                    let sum = M::pairs(sums[r], scale, _mm256_maddubs_epi16(size, y));
                    sums[r] = if R == 1 { sum } else { in_turn(sum) };
                }
            }
            sums
        }
    }
}

/// The vector it is given. Calls stay in the order they are written in.
#[inline]
#[target_feature(enable = "avx2")]
fn in_turn(mut vector: __m256i) -> __m256i {
    // SAFETY: no instruction.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) vector, options(nomem, nostack, preserves_flags)) };
    vector
}

impl<W: Wide32, M: MulAdd> Lanes32<W> for Ymm<M> {
    const OFFSET: i32 = if W::Block::IS_SIGNED && M::ANY_BYTES { 128 } else { W::Block::OFFSET };

    #[inline(always)]
    unsafe fn lanes<const R: usize, const HIGH: bool>(blocks: &[u8], x: [&X32; R]) -> [__m256i; R] {
        // SAFETY: the caller has M's instructions.
        unsafe {
            let low = fours::<W, M, R>(&blocks[..4 * W::Block::BYTES], x, 0);
            let mut lanes = [_mm256_setzero_si256(); R];
            if HIGH {
                lanes = fours::<W, M, R>(&blocks[4 * W::Block::BYTES..], x, 4);
            }
            for r in 0..R {
                lanes[r] = join_halves(low[r], lanes[r]);
            }
            lanes
        }
    }
}

/// The exact products of four blocks with the groups of every row from `group` on, one a lane: of the
/// first 16 weights in the lower half, of the others in the upper. Weights stay in registers while all
/// rows pass.
#[inline(always)]
unsafe fn fours<W: Wide32, M: MulAdd, const R: usize>(
    blocks: &[u8],
    x: [&X32; R],
    group: usize,
) -> [__m256i; R] {
    // SAFETY: the caller has M's instructions; plain loops, since intrinsics are not inlined into library
    // closures.
    unsafe {
        let (mut w, mut size) = ([_mm256_setzero_si256(); 4], [_mm256_setzero_si256(); 4]);
        for b in 0..4 {
            w[b] = W::weights(&blocks[b * W::Block::BYTES..(b + 1) * W::Block::BYTES]);
            size[b] = match (W::Block::IS_SIGNED, M::ANY_BYTES) {
                (true, true) => _mm256_xor_si256(w[b], _mm256_set1_epi8(-128)),
                (true, false) => _mm256_abs_epi8(w[b]),
                (false, _) => w[b],
            };
        }
        let mut fours = [_mm256_setzero_si256(); R];
        for r in 0..R {
            let mut p = [_mm256_setzero_si256(); 4];
            for b in 0..4 {
                let y = load_i8(&x[r].q.as_chunks::<32>().0[group + b]);
                p[b] = match (W::Block::IS_SIGNED, M::ANY_BYTES) {
                    (true, true) => M::fours(size[b], y),
                    (true, false) => M::fours(size[b], _mm256_sign_epi8(y, w[b])),
                    (false, _) => _mm256_maddubs_epi16(size[b], y),
                };
            }
            fours[r] = if W::Block::IS_SIGNED {
                _mm256_hadd_epi32(_mm256_hadd_epi32(p[0], p[1]), _mm256_hadd_epi32(p[2], p[3]))
            } else {
                // Unsigned weights have at most 5 bits: four pairs together still fit 16 bits.
                let p = _mm256_hadd_epi16(_mm256_hadd_epi16(p[0], p[1]), _mm256_hadd_epi16(p[2], p[3]));
                _mm256_madd_epi16(p, _mm256_set1_epi16(1))
            };
            if R > 1 {
                fours[r] = in_turn(fours[r]);
            }
        }
        fours
    }
}

/// Lanes 0-3 from `low`, 4-7 from `high`, each the sum of both halves.
#[inline(always)]
unsafe fn join_halves(low: __m256i, high: __m256i) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        _mm256_add_epi32(
            _mm256_permute2x128_si256(low, high, 0x20),
            _mm256_permute2x128_si256(low, high, 0x31),
        )
    }
}
