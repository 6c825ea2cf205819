//! The key/value cache of one sequence: fixed memory, O(1) truncation.
//!
//! Owns f16 rows of every block and the number of positions that count. Rolling back rejected drafts
//! only lowers the length (DESIGN I2: a later row overwrites what was left). It must not know what a
//! row means: GQA stores keys and values a head, MLA one latent row that serves as both.

use half::f16;

use crate::kernels::{KvView, f32_to_f16};

/// Shape of one block's cache rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Key/value heads (1 for MLA's shared latent).
    pub heads: usize,
    /// Cells of a key row of one head.
    pub key_dim: usize,
    /// Cells of a value row of one head; 0 when values are the front part of the keys.
    pub value_dim: usize,
}

impl KvShape {
    /// Bytes of one position in one block.
    pub fn position_bytes(&self) -> usize {
        self.heads * (self.key_dim + self.value_dim) * size_of::<f16>()
    }
}

/// Cached rows of all blocks.
pub struct KvCache {
    shape: KvShape,
    context_len: usize,
    len: usize,
    /// Per block: `[heads][context][key_dim]`.
    keys: Vec<Vec<f16>>,
    /// Per block: `[heads][context][value_dim]`.
    values: Vec<Vec<f16>>,
}

impl KvCache {
    /// Allocates, and touches, everything the cache will ever use.
    pub fn new(shape: KvShape, blocks: usize, context_len: usize) -> KvCache {
        let rows = |dim: usize| vec![vec![f16::ZERO; shape.heads * context_len * dim]; blocks];
        KvCache { shape, context_len, len: 0, keys: rows(shape.key_dim), values: rows(shape.value_dim) }
    }

    /// Bytes `new` allocates.
    pub fn bytes(shape: KvShape, blocks: usize, context_len: usize) -> u64 {
        shape.position_bytes() as u64 * blocks as u64 * context_len as u64
    }

    /// Positions that count.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position counts.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions there is room for.
    pub fn context_len(&self) -> usize {
        self.context_len
    }

    /// Forgets every position from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes `rows` more positions count, once all blocks have written them.
    pub fn commit(&mut self, rows: usize) {
        self.len = (self.len + rows).min(self.context_len);
    }

    /// Stores one head's key (`[key_dim]`) and value (`[value_dim]`, or empty) of `position`.
    pub fn write(&mut self, block: usize, head: usize, position: usize, key: &[f32], value: &[f32]) {
        let row = head * self.context_len + position;
        let KvShape { key_dim, value_dim, .. } = self.shape;
        f32_to_f16(key, &mut self.keys[block][row * key_dim..(row + 1) * key_dim]);
        f32_to_f16(value, &mut self.values[block][row * value_dim..(row + 1) * value_dim]);
    }

    /// One head's rows, from position 0.
    pub fn view(&self, block: usize, head: usize) -> KvView<'_> {
        let KvShape { key_dim, value_dim, .. } = self.shape;
        let keys = &self.keys[block][head * self.context_len * key_dim..];
        if value_dim == 0 {
            return KvView { keys, values: keys, key_stride: key_dim, value_stride: key_dim };
        }
        let values = &self.values[block][head * self.context_len * value_dim..];
        KvView { keys, values, key_stride: key_dim, value_stride: value_dim }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncation_forgets_positions_and_a_later_write_replaces_them() {
        let shape = KvShape { heads: 2, key_dim: 1, value_dim: 1 };
        let mut kv = KvCache::new(shape, 1, 4);
        for position in 0..3 {
            for head in 0..2 {
                kv.write(0, head, position, &[(10 * head + position) as f32], &[0.0]);
            }
            kv.commit(1);
        }
        kv.truncate(1);
        assert_eq!(kv.len(), 1);
        kv.truncate(9);
        assert_eq!(kv.len(), 1, "truncation never lengthens");
        kv.write(0, 1, 1, &[7.0], &[0.0]);
        let keys = kv.view(0, 1).keys;
        assert_eq!([keys[0].to_f32(), keys[1].to_f32()], [10.0, 7.0]);
    }

    #[test]
    fn planned_bytes_are_what_is_allocated() {
        let shape = KvShape { heads: 3, key_dim: 5, value_dim: 2 };
        let kv = KvCache::new(shape, 4, 16);
        let cells: usize = kv.keys.iter().chain(&kv.values).map(Vec::len).sum();
        assert_eq!(KvCache::bytes(shape, 4, 16), (cells * size_of::<f16>()) as u64);
    }
}
