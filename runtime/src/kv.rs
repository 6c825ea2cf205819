//! The key/value cache of one sequence: fixed memory, O(1) truncation.
//!
//! Owns packed rows of every block and the number of positions that count. Rolling back rejected drafts
//! only lowers the length (DESIGN I2: a row is packed alone, and a later one overwrites what was left). It
//! must not know what a row means: GQA stores keys and values a head, MLA one latent row that serves as both.

use serde::Deserialize;
use thiserror::Error;

use crate::kernels::{KV_BLOCK, KvRows, KvView, RowLayout};

/// What cached values are rounded to. A setting of the model: it changes the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum KvType {
    /// Half precision.
    #[default]
    #[serde(rename = "f16")]
    F16,
    /// Blocks of 32 signed bytes with a factor.
    #[serde(rename = "q8_0")]
    Q8_0,
}

/// A row that cannot be cut into blocks.
#[derive(Debug, Error)]
#[error(
    "model.kv_type = \"q8_0\" takes rows of a multiple of {KV_BLOCK} values, this model's {what} have {dim} (\"f16\" takes any)"
)]
pub struct WidthError {
    /// Which rows.
    pub what: &'static str,
    /// Their values.
    pub dim: usize,
}

impl KvType {
    /// How rows of `dim` values are kept; `what` names them.
    ///
    /// # Errors
    /// The type does not hold rows of that width.
    pub fn layout(self, what: &'static str, dim: usize) -> Result<RowLayout, WidthError> {
        match self {
            KvType::F16 => Ok(RowLayout { quantized: 0, halves: dim }),
            KvType::Q8_0 if dim.is_multiple_of(KV_BLOCK) => Ok(RowLayout { quantized: dim, halves: 0 }),
            KvType::Q8_0 => Err(WidthError { what, dim }),
        }
    }
}

/// Shape of one block's cache rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Key/value heads (1 for MLA's shared latent).
    pub heads: usize,
    /// A key row of one head.
    pub key: RowLayout,
    /// A value row of one head; `None` when values are the front part of the keys.
    pub value: Option<RowLayout>,
}

impl KvShape {
    /// Bytes of one position in one block.
    pub fn position_bytes(&self) -> usize {
        self.heads * (self.key.bytes() + self.value.map_or(0, RowLayout::bytes))
    }
}

/// Cached rows of all blocks.
pub struct KvCache {
    shape: KvShape,
    context_len: usize,
    len: usize,
    /// Per block: `[heads][context]` key rows.
    keys: Vec<Vec<u8>>,
    /// Per block: `[heads][context]` value rows.
    values: Vec<Vec<u8>>,
}

impl KvCache {
    /// Allocates, and touches, everything the cache will ever use.
    pub fn new(shape: KvShape, blocks: usize, context_len: usize) -> KvCache {
        // All ones are not a number in any layout: a row that is read before it is written would show.
        let rows = |layout: Option<RowLayout>| {
            vec![vec![u8::MAX; shape.heads * context_len * layout.map_or(0, RowLayout::bytes)]; blocks]
        };
        KvCache { shape, context_len, len: 0, keys: rows(Some(shape.key)), values: rows(shape.value) }
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

    /// Whether values are rows of their own, not the front of keys.
    pub fn has_values(&self) -> bool {
        self.shape.value.is_some()
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

    /// Stores one head's key and value (empty where values are the front part of the keys) of `position`.
    pub fn write(&mut self, block: usize, head: usize, position: usize, key: &[f32], value: &[f32]) {
        let row = head * self.context_len + position;
        let pack = |layout: RowLayout, rows: &mut [u8], values: &[f32]| {
            let bytes = layout.bytes();
            layout.pack(values, &mut rows[row * bytes..(row + 1) * bytes]);
        };
        pack(self.shape.key, &mut self.keys[block], key);
        if let Some(layout) = self.shape.value {
            pack(layout, &mut self.values[block], value);
        }
    }

    /// One head's rows, from position 0.
    pub fn view(&self, block: usize, head: usize) -> KvView<'_> {
        KvView {
            keys: self.rows(&self.keys[block], head, self.shape.key),
            values: self.shape.value.map(|layout| self.rows(&self.values[block], head, layout)),
        }
    }

    fn rows<'a>(&self, block: &'a [u8], head: usize, layout: RowLayout) -> KvRows<'a> {
        let bytes = self.context_len * layout.bytes();
        KvRows { bytes: &block[head * bytes..(head + 1) * bytes], layout }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn shape(kv_type: KvType, heads: usize, key: usize, value: usize) -> KvShape {
        let layout = |dim| kv_type.layout("rows", dim).unwrap();
        KvShape { heads, key: layout(key), value: Some(layout(value)) }
    }

    #[test]
    fn truncation_forgets_positions_and_a_later_write_replaces_them() {
        for kv_type in [KvType::F16, KvType::Q8_0] {
            let mut kv = KvCache::new(shape(kv_type, 2, 32, 64), 1, 4);
            let write = |kv: &mut KvCache, head, position, value: f32| {
                kv.write(0, head, position, &[value; 32], &[-value; 64]);
            };
            for position in 0..3 {
                for head in 0..2 {
                    write(&mut kv, head, position, (10 * head + position) as f32);
                }
                kv.commit(1);
            }
            kv.truncate(1);
            assert_eq!(kv.len(), 1);
            kv.truncate(9);
            assert_eq!(kv.len(), 1, "truncation never lengthens");
            write(&mut kv, 1, 1, 7.0);
            let mut expected = KvCache::new(shape(kv_type, 2, 32, 64), 1, 4);
            write(&mut expected, 1, 0, 10.0);
            write(&mut expected, 1, 1, 7.0);
            write(&mut expected, 1, 2, 12.0);
            let (got, want) = (kv.view(0, 1), expected.view(0, 1));
            let rows = 3 * got.keys.layout.bytes();
            assert_eq!(got.keys.bytes[..rows], want.keys.bytes[..rows], "{kv_type:?}");
        }
    }

    #[test]
    fn planned_bytes_are_what_is_allocated() {
        for shape in [
            shape(KvType::F16, 3, 5, 2),
            shape(KvType::Q8_0, 3, 96, 64),
            KvShape { value: None, ..shape(KvType::Q8_0, 1, 576, 32) },
        ] {
            let kv = KvCache::new(shape, 4, 16);
            let bytes: usize = kv.keys.iter().chain(&kv.values).map(Vec::len).sum();
            assert_eq!(KvCache::bytes(shape, 4, 16), bytes as u64);
        }
        assert_eq!(shape(KvType::Q8_0, 2, 128, 128).position_bytes(), 2 * 2 * 128 / 32 * 34);
    }

    #[test]
    fn blocks_take_rows_of_a_multiple_of_32_and_halves_any() {
        assert!(KvType::F16.layout("keys", 24).is_ok());
        let error = KvType::Q8_0.layout("keys", 24).unwrap_err().to_string();
        assert!(error.contains("model.kv_type") && error.contains("keys have 24"), "{error}");
    }
}
