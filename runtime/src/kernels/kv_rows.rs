//! Rows of the key/value cache as bytes: how they are packed, and unpacked into tiles of floats.
//!
//! Owns the layout of a row: first values in Q8_0 blocks (32 signed bytes and one f16 factor), then
//! values in f16; either part may be empty. A row is packed and unpacked alone, so the cache can be cut
//! at any position. It must not know which part of a model a row belongs to.

use half::f16;

use super::lanes::{LANES, Lanes};

/// Values of a Q8_0 block.
pub const KV_BLOCK: usize = 32;
/// Bytes of a block: the values, then their factor.
const BLOCK_BYTES: usize = KV_BLOCK + 2;

/// How the values of a row are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowLayout {
    /// Values in Q8_0 blocks, a multiple of [`KV_BLOCK`].
    pub quantized: usize,
    /// Values in f16, after those.
    pub halves: usize,
}

impl RowLayout {
    /// Values of a row.
    pub fn dim(self) -> usize {
        self.quantized + self.halves
    }

    /// Bytes of a row.
    pub fn bytes(self) -> usize {
        self.quantized / KV_BLOCK * BLOCK_BYTES + 2 * self.halves
    }

    /// Packs `values` (`[dim]`) into `row` (`[bytes]`).
    pub fn pack(self, values: &[f32], row: &mut [u8]) {
        let (quantized, halves) = values.split_at(self.quantized);
        let (blocks, cells) = row.split_at_mut(self.bytes() - 2 * self.halves);
        for (values, block) in
            quantized.as_chunks::<KV_BLOCK>().0.iter().zip(blocks.as_chunks_mut::<BLOCK_BYTES>().0)
        {
            pack_block(values, block);
        }
        for (value, cell) in halves.iter().zip(cells.as_chunks_mut::<2>().0) {
            *cell = f16::from_f32(*value).to_le_bytes();
        }
    }

    /// Unpacks `row` into the first `dim` values of `out`.
    #[inline(always)]
    pub(super) fn unpack<L: Lanes>(self, row: &[u8], out: &mut [f32]) {
        let (blocks, cells) = row.split_at(self.bytes() - 2 * self.halves);
        let (quantized, halves) = out[..self.dim()].split_at_mut(self.quantized);
        for (block, out) in
            blocks.as_chunks::<BLOCK_BYTES>().0.iter().zip(quantized.as_chunks_mut::<KV_BLOCK>().0)
        {
            let (values, factor) = block.as_chunks::<LANES>();
            let factor = L::splat(f16::from_le_bytes([factor[0], factor[1]]).to_f32());
            for (values, out) in values.iter().zip(out.as_chunks_mut::<LANES>().0) {
                L::from_bytes(values).mul(factor).store(out);
            }
        }
        let (vectors, rest) = cells.as_chunks::<{ 2 * LANES }>();
        let (outs, out_rest) = halves.as_chunks_mut::<LANES>();
        for (cells, out) in vectors.iter().zip(outs) {
            L::from_halves(cells).store(out);
        }
        for (cell, out) in rest.as_chunks::<2>().0.iter().zip(out_rest) {
            *out = f16::from_le_bytes(*cell).to_f32();
        }
    }
}

/// The factor is rounded first, so that the values are the nearest to what unpacking gives.
fn pack_block(values: &[f32; KV_BLOCK], block: &mut [u8; BLOCK_BYTES]) {
    // As integers, in whose order infinity and NaN come last: a broken value must show, not vanish.
    let largest = values.iter().map(|value| value.to_bits() & 0x7fff_ffff).fold(0, u32::max);
    let largest = f32::from_bits(largest);
    let factor = if largest.is_finite() { f16::from_f32(largest / 127.0) } else { f16::NAN };
    let inverse = if factor == f16::ZERO { 0.0 } else { 1.0 / factor.to_f32() };
    let (cells, end) = block.split_at_mut(KV_BLOCK);
    for (cell, value) in cells.iter_mut().zip(values) {
        *cell = ((value * inverse).round_ties_even().clamp(-127.0, 127.0) as i8).cast_unsigned();
    }
    end.copy_from_slice(&factor.to_le_bytes());
}

/// Rows of one KV head from position 0 on, one after another.
#[derive(Clone, Copy)]
pub struct KvRows<'a> {
    /// Packed rows.
    pub bytes: &'a [u8],
    /// Layout of each.
    pub layout: RowLayout,
}

impl KvRows<'_> {
    /// Unpacks `count` rows from position `first` on into rows of `stride` floats. As many behind them are
    /// expected to be wanted next: they arrive while these are computed with.
    #[inline(always)]
    pub(super) fn unpack<L: Lanes>(self, first: usize, count: usize, out: &mut [f32], stride: usize) {
        let row_bytes = self.layout.bytes();
        let (rows, behind) = self.bytes[first * row_bytes..].split_at(count * row_bytes);
        let mut behind = behind.chunks_exact(row_bytes);
        for (row, out) in rows.chunks_exact(row_bytes).zip(out.chunks_exact_mut(stride)) {
            L::expect(behind.next().unwrap_or_default());
            self.layout.unpack::<L>(row, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::Plain;
    use super::*;

    fn round_trip(layout: RowLayout, values: &[f32]) -> Vec<f32> {
        let mut row = vec![0; layout.bytes()];
        layout.pack(values, &mut row);
        let mut out = vec![0f32; layout.dim()];
        layout.unpack::<Plain>(&row, &mut out);
        out
    }

    #[test]
    fn halves_are_rounded_to_the_nearest_and_blocks_within_half_a_step() {
        for scale in [1e-3f32, 1.0, 37.0, 6e4] {
            let values: Vec<f32> = (0..96).map(|i| scale * ((i * 37 % 97) as f32 / 48.0 - 1.0)).collect();
            let layout = RowLayout { quantized: 64, halves: 32 };
            let got = round_trip(layout, &values);
            for (block, got) in values.chunks(32).zip(got.chunks(32)).take(2) {
                let largest = block.iter().fold(0f32, |most, value| most.max(value.abs()));
                // The factor's own rounding to f16 adds up to 127 / 2048 of a step.
                let most = largest / 127.0 * (0.5 + 127.0 / 2048.0);
                assert!(block.iter().zip(got).all(|(a, b)| (a - b).abs() <= most), "{block:?} {got:?}");
            }
            for (value, got) in values[64..].iter().zip(&got[64..]) {
                assert_eq!(f16::from_f32(*value).to_f32(), *got);
            }
        }
    }

    #[test]
    fn a_block_of_zeros_stays_zero_and_its_size_is_that_of_q8_0() {
        let layout = RowLayout { quantized: 64, halves: 3 };
        assert_eq!((layout.dim(), layout.bytes()), (67, 2 * 34 + 6));
        assert_eq!(round_trip(layout, &[0.0; 67]), [0.0; 67]);
        for broken in [f32::INFINITY, f32::NAN] {
            let mut row = [1.0; 67];
            row[40] = broken;
            let back = round_trip(layout, &row);
            assert!(
                back[40].is_nan() && (back[0] - 1.0).abs() < 0.01,
                "broken values stay visible, and where they are"
            );
        }
    }
}
