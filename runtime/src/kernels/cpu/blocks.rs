//! Quantized weight blocks as plain integers: what every block format comes down to.
//!
//! Owns the two shapes a format may have. A *256 format* (K- and I-quants) has one float scale for 256
//! weights and an integer scale for every 16 of them; a *32 format* has a float scale for every 32. The
//! unpackers (`legacy`, `k_quants`, `i_quants`) turn a block's bytes into these integers and are the one
//! description of each format: dequantization, the portable dot products and the tests of the vector
//! kernels all read weights through them. Must not know activations or threads.

/// Weights of one 256 block: `d * scales[i / 16] * (q[i] - OFFSET) - d_min * mins[i / 16]`.
#[repr(C, align(32))]
#[derive(Clone, Debug, PartialEq)]
pub(in crate::kernels) struct Unpacked256 {
    /// Stored integers, [`Block256::OFFSET`] too large. At most 127 in size, -128 included.
    pub(in crate::kernels) q: [i8; 256],
    /// One for every 16 weights (the same one twice where the format has one for 32).
    pub(in crate::kernels) scales: [i16; 16],
    /// As `scales`; 0 where the format has none.
    pub(in crate::kernels) mins: [i16; 16],
    /// Scale of the block.
    pub(in crate::kernels) d: f32,
    /// Scale of the minima.
    pub(in crate::kernels) d_min: f32,
}

impl Unpacked256 {
    /// All zero.
    pub(in crate::kernels) const ZERO: Unpacked256 =
        Unpacked256 { q: [0; 256], scales: [0; 16], mins: [0; 16], d: 0.0, d_min: 0.0 };
}

/// A format of 256 weights a block.
pub(in crate::kernels) trait Block256 {
    /// Bytes of a block.
    const BYTES: usize;
    /// What the stored integers are too large by; 0 for signed ones.
    const OFFSET: i32 = 0;
    /// Whether `mins` count.
    const HAS_MINS: bool = false;
    /// Whether stored integers may be negative.
    const IS_SIGNED: bool = false;

    /// Overwrites `out` with the block's integers; `block` has [`Block256::BYTES`] bytes.
    fn unpack(block: &[u8], out: &mut Unpacked256);
}

/// A format of 32 weights a block: `d * (q[i] - OFFSET) + m`.
pub(in crate::kernels) trait Block32 {
    /// Bytes of a block.
    const BYTES: usize;
    /// What the stored integers are too large by; 0 for signed ones.
    const OFFSET: i32 = 0;
    /// Whether a minimum is added.
    const HAS_MIN: bool = false;
    /// Whether stored integers may be negative.
    const IS_SIGNED: bool = false;

    /// Overwrites `q` and returns `(d, m)`; `m` is 0 without a minimum.
    fn unpack(block: &[u8], q: &mut [i8; 32]) -> (f32, f32);
}

/// `N` bytes at `at`, bounds checked.
#[inline(always)]
pub(in crate::kernels) fn cell<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("invariant: N bytes")
}

/// The half float at byte `at`.
#[inline(always)]
pub(in crate::kernels) fn half_at(bytes: &[u8], at: usize) -> f32 {
    let bits = u16::from_le_bytes(cell(bytes, at));
    // `half` asks the processor for FEAT_FP16 at every call; this conversion is older.
    #[cfg(target_arch = "aarch64")]
    return super::neon::half(bits);
    #[cfg(not(target_arch = "aarch64"))]
    half::f16::from_bits(bits).to_f32()
}

/// Writes the values of a row of 256 blocks.
pub(in crate::kernels) fn dequantize256<B: Block256>(row: &[u8], out: &mut [f32]) {
    let mut unpacked = Unpacked256::ZERO;
    for (block, out) in row.chunks_exact(B::BYTES).zip(out.as_chunks_mut::<256>().0) {
        B::unpack(block, &mut unpacked);
        let Unpacked256 { q, scales, mins, d, d_min } = &unpacked;
        for (i, (value, q)) in out.iter_mut().zip(q).enumerate() {
            let scale = d * f32::from(scales[i / 16]);
            let min = d_min * f32::from(mins[i / 16]);
            *value = scale * (i32::from(*q) - B::OFFSET) as f32 - min;
        }
    }
}

/// Writes the values of a row of 32 blocks.
pub(in crate::kernels) fn dequantize32<B: Block32>(row: &[u8], out: &mut [f32]) {
    let mut q = [0i8; 32];
    for (block, out) in row.chunks_exact(B::BYTES).zip(out.as_chunks_mut::<32>().0) {
        let (d, m) = B::unpack(block, &mut q);
        for (value, q) in out.iter_mut().zip(q) {
            let scaled = d * (i32::from(q) - B::OFFSET) as f32;
            *value = if B::HAS_MIN { scaled + m } else { scaled };
        }
    }
}
