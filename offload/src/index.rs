//! Where every expert's bytes lie: `ExpertId` -> three extents (gate, up, down) in the model's files.
//!
//! Owns the checks that make later arithmetic safe (nothing empty, nothing past `u64` or `usize`,
//! equal lengths within a layer), the size of a slot and, for packed files, the checksum of every part.
//! It must not know GGUF or who reads.

use std::ops::Range;
use std::path::PathBuf;

use crate::ExpertId;
use crate::buf::PAGE_BYTES;
use crate::checksum::checksum;
use crate::error::OffloadError;
use crate::reader::ReadError;

/// Parts of an expert, in this order: gate, up, down.
pub const PARTS: usize = 3;
/// Names of the parts, for messages.
pub(crate) const PART_NAMES: [&str; PARTS] = ["gate", "up", "down"];

/// A run of bytes in one of the model's files. Plain GGUF aligns tensors, not experts: `offset` and
/// `len` may be anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Which file of a split model, 0-based.
    pub file: u16,
    /// First byte, absolute in that file.
    pub offset: u64,
    /// Bytes, > 0.
    pub len: u64,
}

/// An extent grown to page boundaries, as unbuffered reads need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Widened {
    /// First byte to read, a multiple of [`PAGE_BYTES`].
    pub offset: u64,
    /// Bytes to read, a multiple of [`PAGE_BYTES`]; may reach past the end of the file.
    pub len: usize,
    /// Where the extent's own bytes lie in what was read.
    pub data: Range<usize>,
}

impl Extent {
    /// The page-aligned range around this extent; `None` when it does not fit `u64` or `usize`.
    pub fn widened(&self) -> Option<Widened> {
        let page = PAGE_BYTES as u64;
        let head = self.offset % page;
        let offset = self.offset - head;
        let len = head.checked_add(self.len)?.checked_next_multiple_of(page)?;
        offset.checked_add(len)?;
        let (head, wanted, len) = (as_usize(head)?, as_usize(self.len)?, as_usize(len)?);
        Some(Widened { offset, len, data: head..head + wanted })
    }
}

/// The checked table of all experts.
#[derive(Clone, Debug)]
pub struct ExpertIndex {
    layers: Vec<Vec<[Extent; PARTS]>>,
    first: Vec<usize>,          // (layers): flat number of each layer's expert 0
    part_bytes: [usize; PARTS], // room a slot needs for each part, whole pages
    experts_total: usize,
    bytes_total: u64,
    checksums: Option<Vec<Vec<[u64; PARTS]>>>, // as `layers`; None where the file states none
    files: Vec<PathBuf>,                       // to name in a mismatch; empty without checksums
}

impl ExpertIndex {
    /// Checks and stores `layers[layer][expert] = [gate, up, down]`.
    /// `files` are named when a part does not have its own.
    ///
    /// # Errors
    /// No layer or an empty layer, an empty or overflowing extent, parts of unequal length in a layer.
    pub fn new(layers: Vec<Vec<[Extent; PARTS]>>) -> Result<ExpertIndex, OffloadError> {
        if layers.is_empty() {
            return Err(OffloadError::EmptyIndex { what: "the model has no MoE layer".into() });
        }
        let mut index = ExpertIndex {
            layers: Vec::new(),
            first: Vec::with_capacity(layers.len()),
            part_bytes: [0; PARTS],
            experts_total: 0,
            bytes_total: 0,
            checksums: None,
            files: Vec::new(),
        };
        for (layer, experts) in layers.iter().enumerate() {
            index.add_layer(layer, experts)?;
        }
        index.layers = layers;
        Ok(index)
    }

    /// Adds what [`crate::checksum`] of every part must be: `checksums[layer][expert] = [gate, up, down]`.
    ///
    /// # Errors
    /// [`OffloadError::ChecksumTable`] unless every expert of the index has exactly one entry.
    pub fn with_checksums(
        self,
        files: Vec<PathBuf>,
        checksums: Vec<Vec<[u64; PARTS]>>,
    ) -> Result<ExpertIndex, OffloadError> {
        let fits = |what: String, wanted: usize, got: usize| match wanted == got {
            true => Ok(()),
            false => Err(OffloadError::ChecksumTable { what, wanted, got }),
        };
        fits("the layers of the model".into(), self.layers.len(), checksums.len())?;
        for (layer, (experts, sums)) in self.layers.iter().zip(&checksums).enumerate() {
            fits(format!("MoE layer {layer}"), experts.len(), sums.len())?;
        }
        Ok(ExpertIndex { checksums: Some(checksums), files, ..self })
    }

    /// What [`crate::checksum`] of this part's bytes must be; `None` where the file states none, and for
    /// an expert or part that does not exist.
    pub fn checksum(&self, id: ExpertId, part: usize) -> Option<u64> {
        let layer = self.checksums.as_ref()?.get(id.layer as usize)?;
        layer.get(id.expert as usize)?.get(part).copied()
    }

    /// Number of MoE layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Number of experts in `layer`, 0 when there is no such layer.
    pub fn experts(&self, layer: u32) -> usize {
        self.layers.get(layer as usize).map_or(0, Vec::len)
    }

    /// Number of experts in the whole model.
    pub fn experts_total(&self) -> usize {
        self.experts_total
    }

    /// The three extents of one expert.
    pub fn extents(&self, id: ExpertId) -> Option<&[Extent; PARTS]> {
        self.layers.get(id.layer as usize)?.get(id.expert as usize)
    }

    /// Bytes of one expert of `layer` on disk (gate + up + down), 0 when there is no such layer.
    pub fn expert_bytes(&self, layer: u32) -> u64 {
        self.extents(ExpertId { layer, expert: 0 }).map_or(0, |parts| parts.iter().map(|e| e.len).sum())
    }

    /// Bytes of all experts on disk.
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    /// Bytes one slot takes in the arena. Every slot can hold any expert, so each part is as large as
    /// the model's largest widened extent of that part (layers may differ in block type).
    pub fn slot_bytes(&self) -> usize {
        self.part_bytes.iter().sum()
    }

    /// Bytes a slot reserves for gate, up and down, each whole pages.
    pub(crate) fn part_bytes(&self) -> [usize; PARTS] {
        self.part_bytes
    }

    /// Number of the expert when all layers are counted through.
    pub(crate) fn flat(&self, id: ExpertId) -> Option<usize> {
        self.extents(id)?;
        Some(self.first.get(id.layer as usize)? + id.expert as usize)
    }

    /// Compares the bytes of one part with its checksum, if there is one.
    ///
    /// # Errors
    /// [`ReadError::Checksum`].
    pub fn verify(&self, id: ExpertId, part: usize, bytes: &[u8]) -> Result<(), ReadError> {
        let Some(wanted) = self.checksum(id, part) else { return Ok(()) };
        let got = checksum(bytes);
        if got == wanted {
            return Ok(());
        }
        let Extent { file, offset, .. } = self.extents(id).expect("invariant: it has a checksum")[part];
        let file = self.files.get(usize::from(file)).cloned().unwrap_or_default();
        Err(ReadError::Checksum { file, offset, wanted, got })
    }

    fn add_layer(&mut self, layer: usize, experts: &[[Extent; PARTS]]) -> Result<(), OffloadError> {
        let [first, ..] = experts else {
            return Err(OffloadError::EmptyIndex { what: format!("MoE layer {layer} has no expert") });
        };
        let wanted = first.map(|extent| extent.len);
        for (expert, parts) in experts.iter().enumerate() {
            let id = ExpertId { layer: number(layer)?, expert: number(expert)? };
            for part in 0..PARTS {
                self.add_part(id, part, parts[part], wanted[part])?;
            }
        }
        self.first.push(self.experts_total);
        self.experts_total += experts.len();
        Ok(())
    }

    fn add_part(
        &mut self,
        id: ExpertId,
        part: usize,
        extent: Extent,
        wanted: u64,
    ) -> Result<(), OffloadError> {
        let Extent { offset, len, .. } = extent;
        let bad = || OffloadError::BadExtent { id, part: PART_NAMES[part], offset, len };
        if len != wanted {
            return Err(OffloadError::PartLength { id, part: PART_NAMES[part], wanted, got: len });
        }
        let widened = extent.widened().filter(|_| len > 0).ok_or_else(bad)?;
        self.part_bytes[part] = self.part_bytes[part].max(widened.len);
        self.part_bytes.iter().try_fold(0usize, |sum, part| sum.checked_add(*part)).ok_or_else(bad)?;
        self.bytes_total = self.bytes_total.checked_add(len).ok_or_else(bad)?;
        Ok(())
    }
}

fn number(n: usize) -> Result<u32, OffloadError> {
    u32::try_from(n).map_err(|_| OffloadError::EmptyIndex { what: format!("number {n} exceeds 32 bits") })
}

fn as_usize(n: u64) -> Option<usize> {
    usize::try_from(n).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    fn extent(offset: u64, len: u64) -> Extent {
        Extent { file: 0, offset, len }
    }

    #[test]
    fn an_extent_is_widened_to_the_pages_around_it() {
        let widened = |offset, len| extent(offset, len).widened();
        assert_eq!(widened(0, 4096), Some(Widened { offset: 0, len: 4096, data: 0..4096 }));
        assert_eq!(widened(4095, 2), Some(Widened { offset: 0, len: 8192, data: 4095..4097 }));
        assert_eq!(widened(8200, 10), Some(Widened { offset: 8192, len: 4096, data: 8..18 }));
        assert_eq!(widened(u64::MAX - 1, 1), None);
        assert_eq!(widened(4095, u64::MAX), None);
    }

    #[test]
    fn a_slot_holds_the_largest_widened_part_of_any_layer() {
        let small = [extent(0, 4096), extent(4096, 4096), extent(8192, 100)];
        let large = [extent(1, 4096), extent(5000, 100), extent(9000, 9000)];
        let index = ExpertIndex::new(vec![vec![small; 2], vec![large]]).unwrap();
        assert_eq!(index.slot_bytes(), 8192 + 4096 + 12288);
        assert_eq!((index.layers(), index.experts(0), index.experts(1), index.experts(2)), (2, 2, 1, 0));
        assert_eq!((index.experts_total(), index.bytes_total()), (3, 2 * 8292 + 13196));
        assert_eq!((index.expert_bytes(0), index.expert_bytes(1), index.expert_bytes(9)), (8292, 13196, 0));
        assert_eq!(index.flat(ExpertId { layer: 1, expert: 0 }), Some(2));
        assert_eq!(index.flat(ExpertId { layer: 1, expert: 1 }), None);
    }

    #[test]
    fn every_part_has_the_checksum_it_was_given_or_none() {
        let part = extent(0, 8);
        let index = || ExpertIndex::new(vec![vec![[part; 3]; 2], vec![[part; 3]]]).unwrap();
        let id = |layer, expert| ExpertId { layer, expert };
        assert_eq!(index().checksum(id(0, 0), 0), None);
        let summed =
            index().with_checksums(Vec::new(), vec![vec![[1, 2, 3], [4, 5, 6]], vec![[7, 8, 9]]]).unwrap();
        assert_eq!(summed.checksum(id(0, 1), 2), Some(6));
        assert_eq!(summed.checksum(id(1, 0), 0), Some(7));
        for (id, part) in [(id(0, 0), 3), (id(0, 2), 0), (id(1, 1), 0), (id(2, 0), 0)] {
            assert_eq!(summed.checksum(id, part), None);
        }
        assert_eq!((summed.experts_total(), summed.bytes_total()), (3, 72));
    }

    #[test]
    fn a_table_of_checksums_of_another_shape_is_refused() {
        let index = || ExpertIndex::new(vec![vec![[extent(0, 8); 3]; 2]]).unwrap();
        for (table, message) in [
            (vec![], "expert index: 0 checksum entries for the layers of the model, which has 1"),
            (vec![vec![[0; 3]]], "expert index: 1 checksum entries for MoE layer 0, which has 2"),
        ] {
            assert_eq!(index().with_checksums(Vec::new(), table).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn an_index_without_layers_or_experts_is_refused() {
        for layers in [vec![], vec![vec![]], vec![vec![[extent(0, 1); PARTS]], vec![]]] {
            assert!(matches!(ExpertIndex::new(layers), Err(OffloadError::EmptyIndex { .. })));
        }
    }

    #[test]
    fn empty_and_overflowing_extents_are_refused() {
        for bad in [extent(5, 0), extent(u64::MAX - 10, 20), extent(0, u64::MAX)] {
            let layers = vec![vec![[extent(0, 1), bad, extent(0, 1)]]];
            assert!(matches!(ExpertIndex::new(layers), Err(OffloadError::BadExtent { part: "up", .. })));
        }
    }

    #[test]
    fn parts_of_unequal_length_within_a_layer_are_refused() {
        let one = [extent(0, 10), extent(0, 10), extent(0, 10)];
        let other = [extent(0, 10), extent(0, 10), extent(0, 11)];
        let error = ExpertIndex::new(vec![vec![one, other]]).unwrap_err().to_string();
        assert_eq!(
            error,
            "expert index: expert 1 of MoE layer 0, down: 11 bytes where expert 0 of the layer has 10"
        );
    }
}
