//! Kernels with AVX-512 (F, BW, VL, DQ), and with its VNNI.
//!
//! Owns the integer part of every product in 512-bit registers, and float products. Loops, scales and
//! the float part of quantized products are `avx2`'s, in 256 bits: so are the bits. Formats of 32 weights
//! a block are here for VNNI only; without it `avx2`'s kernels serve them. Every function here is inlined
//! into one that has the instructions; must not be called from elsewhere without checking for them.

mod float;
mod k_quants;
mod legacy;

use std::arch::x86_64::*;
use std::marker::PhantomData;

pub(in crate::kernels) use float::tile_float;

use super::activations::{X32, X256};
use super::avx2::{self, Head, Lanes32, Lanes256, Wide32, Wide256, buffered_head, tile32_by, tile256_by};
use super::blocks::{Block32, Block256, Unpacked256};
use super::tile::Tile;

/// A 256 format in 512-bit registers.
pub(super) trait Wide512: Wide256 {
    /// The stored weights, 64 a vector.
    ///
    /// # Safety
    /// Inlined into a function with AVX-512; [`Wide256::head`] has been called for this block.
    #[inline(always)]
    unsafe fn weights(block: &[u8], buffer: &Unpacked256) -> [__m512i; 4] {
        // SAFETY: handed down.
        unsafe {
            let ([a, b, c, d], [e, f, g, h]) = (Self::half(block, buffer, 0), Self::half(block, buffer, 1));
            [join(a, b), join(c, d), join(e, f), join(g, h)]
        }
    }
}

/// Any 256 format by way of its plain unpacker.
pub(in crate::kernels) struct Buffered<B>(PhantomData<B>);

impl<B: Block256> Wide256 for Buffered<B> {
    type Block = B;

    #[inline(always)]
    unsafe fn head(block: &[u8], buffer: &mut Unpacked256) -> Head {
        // SAFETY: the caller has AVX-512, thus AVX2.
        unsafe {
            unpack::<B>(block, buffer);
            buffered_head(buffer)
        }
    }

    #[inline(always)]
    unsafe fn half(block: &[u8], buffer: &Unpacked256, half: usize) -> [__m256i; 4] {
        // SAFETY: the caller has AVX2.
        unsafe { avx2::Buffered::<B>::half(block, buffer, half) }
    }
}

/// Half vectors: whole ones would not find in the store buffer what was just written in smaller ones.
impl<B: Block256> Wide512 for Buffered<B> {}

/// [`Block256::unpack`] without AVX-512, in which the compiler would look codebooks up by gather
/// instructions. Many processors take longer for those than for the loads.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack<B: Block256>(block: &[u8], buffer: &mut Unpacked256) {
    B::unpack(block, buffer);
}

/// A 32 format in 512-bit registers.
pub(super) trait Wide64: Wide32 {
    /// The stored weights of two blocks.
    ///
    /// # Safety
    /// Inlined into a function with AVX-512; `blocks` are two.
    unsafe fn two(blocks: &[u8]) -> __m512i;
}

#[inline(always)]
unsafe fn join(low: __m256i, high: __m256i) -> __m512i {
    // SAFETY: the caller has AVX-512.
    unsafe { _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1) }
}

#[inline(always)]
unsafe fn add_halves(x: __m512i) -> __m256i {
    // SAFETY: the caller has AVX-512.
    unsafe { _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1)) }
}

/// Values `64 k..64 k + 64`.
#[inline(always)]
unsafe fn values(q: &[i8; 256], k: usize) -> __m512i {
    // SAFETY: the caller has AVX-512; 64 bytes.
    unsafe { _mm512_loadu_si512(q.as_chunks::<64>().0[k].as_ptr().cast()) }
}

/// Multiply and add in 512 bits.
pub(super) trait MulAdd: Copy {
    /// `sums + a * b`, the products of 16-bit neighbours added.
    ///
    /// # Safety
    /// Inlined into a function with the instructions that the implementor is named after.
    unsafe fn pairs(sums: __m512i, a: __m512i, b: __m512i) -> __m512i;
}

/// AVX-512 BW.
#[derive(Clone, Copy)]
struct Plain;

impl MulAdd for Plain {
    #[inline(always)]
    unsafe fn pairs(sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the caller has BW.
        unsafe { _mm512_add_epi32(sums, _mm512_madd_epi16(a, b)) }
    }
}

/// AVX-512 VNNI.
#[derive(Clone, Copy)]
struct Vnni;

impl MulAdd for Vnni {
    #[inline(always)]
    unsafe fn pairs(sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the caller has VNNI.
        unsafe { add_pairs(sums, a, b) }
    }
}

/// VNNI's 16-bit instruction. The compiler would take the intrinsic apart again where it sees a chain of
/// sums: the parts make a shorter one, which does not count where other blocks and rows run beside it.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_pairs(mut sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: registers only.
    unsafe {
        std::arch::asm!("vpdpwssd {0}, {1}, {2}", inout(zmm_reg) sums, in(zmm_reg) a, in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// Sums in 512-bit registers.
#[derive(Clone, Copy)]
struct Zmm<M>(PhantomData<M>);

/// A vector's worth of `T`, aligned.
#[repr(align(64))]
struct Aligned<T>(T);

/// Row `k`: where in [`Head::scales`] the scales of weights `64 k..64 k + 64` stand.
static ORDER: Aligned<[[i16; 32]; 4]> = {
    let mut order = [[0; 32]; 4];
    let mut i = 0;
    while i < 128 {
        let group = i as i16 / 8;
        order[i / 32][i % 32] = group % 2 * 8 + group / 2;
        i += 1;
    }
    Aligned(order)
};

impl<W: Wide512, M: MulAdd> Lanes256<W> for Zmm<M> {
    #[inline(always)]
    fn start() -> Self {
        Zmm(PhantomData)
    }

    #[inline(always)]
    unsafe fn lanes<const R: usize>(
        self,
        block: &[u8],
        buffer: &Unpacked256,
        head: &Head,
        x: [&X256; R],
    ) -> [__m256i; R] {
        // SAFETY: the caller has M's instructions.
        unsafe {
            let w = W::weights(block, buffer);
            let scales = _mm512_castsi256_si512(head.scales);
            let mut sums = [_mm512_setzero_si512(); R];
            for (k, w) in w.into_iter().enumerate() {
                let order = _mm512_load_si512(ORDER.0[k].as_ptr().cast());
                let scale = _mm512_permutexvar_epi16(order, scales);
                let is_negative = if W::Block::IS_SIGNED { _mm512_movepi8_mask(w) } else { 0 };
                let size = if W::Block::IS_SIGNED { _mm512_abs_epi8(w) } else { w };
                for r in 0..R {
                    let y = values(&x[r].q, k);
                    let y = _mm512_mask_sub_epi8(y, is_negative, _mm512_setzero_si512(), y);
                    let pairs = _mm512_maddubs_epi16(size, y);
                    sums[r] = if k == 0 {
                        _mm512_madd_epi16(scale, pairs)
                    } else {
                        M::pairs(sums[r], scale, pairs)
                    };
                }
            }
            let mut lanes = [_mm256_setzero_si256(); R];
            for r in 0..R {
                lanes[r] = add_halves(sums[r]);
            }
            lanes
        }
    }
}

/// Kernel of a 256 format.
///
/// # Safety
/// As [`TileFn`](super::tile::TileFn).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(in crate::kernels) unsafe fn tile256<W: Wide512, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise, and this function's instructions.
    unsafe { tile256_by::<W, Zmm<Plain>, R>(tile) }
}

/// [`tile256`] with VNNI.
///
/// # Safety
/// As [`TileFn`](super::tile::TileFn).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(in crate::kernels) unsafe fn tile256_vnni<W: Wide512, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise, and this function's instructions.
    unsafe { tile256_by::<W, Zmm<Vnni>, R>(tile) }
}

impl<W: Wide64> Lanes32<W> for Zmm<Vnni> {
    const OFFSET: i32 = if W::Block::IS_SIGNED { 128 } else { W::Block::OFFSET };

    #[inline(always)]
    unsafe fn lanes<const R: usize, const HIGH: bool>(blocks: &[u8], x: [&X32; R]) -> [__m256i; R] {
        // SAFETY: the caller has AVX-512 and VNNI.
        unsafe {
            let mut w = [_mm512_setzero_si512(); 4];
            for k in 0..4 {
                w[k] = W::two(&blocks[2 * k * W::Block::BYTES..][..2 * W::Block::BYTES]);
                if W::Block::IS_SIGNED {
                    w[k] = _mm512_xor_si512(w[k], _mm512_set1_epi8(-128));
                }
            }
            let mut lanes = [_mm256_setzero_si256(); R];
            for r in 0..R {
                let mut p = [_mm512_setzero_si512(); 4];
                for k in 0..4 {
                    p[k] = _mm512_dpbusd_epi32(p[k], w[k], values(&x[r].q, k));
                }
                lanes[r] = sums_of_eight(p);
            }
            lanes
        }
    }
}

/// Lane b is the sum of half `b % 2` of vector `b / 2`.
#[inline(always)]
unsafe fn sums_of_eight(p: [__m512i; 4]) -> __m256i {
    // SAFETY: the caller has AVX-512.
    unsafe {
        let twos = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        // Of every block four parts, in the lower or the upper half of either register: at 0, 2, 4, 6 of
        // the first vector's, at 1, 3, 5, 7 of the second's.
        let (a, b) = (twos(p[0], p[1]), twos(p[2], p[3]));
        let first = _mm512_setr_epi32(0, 8, 1, 9, 16, 24, 17, 25, 2, 10, 3, 11, 18, 26, 19, 27);
        let second = _mm512_setr_epi32(4, 12, 5, 13, 20, 28, 21, 29, 6, 14, 7, 15, 22, 30, 23, 31);
        add_halves(_mm512_add_epi32(
            _mm512_permutex2var_epi32(a, first, b),
            _mm512_permutex2var_epi32(a, second, b),
        ))
    }
}

/// Kernel of a 32 format with VNNI.
///
/// # Safety
/// As [`TileFn`](super::tile::TileFn).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(in crate::kernels) unsafe fn tile32<W: Wide64, const R: usize>(tile: &Tile<'_>) {
    // SAFETY: the tile's promise, and this function's instructions.
    unsafe { tile32_by::<W, Zmm<Vnni>, R>(tile) }
}
