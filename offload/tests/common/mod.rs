//! Shared by the tests of this crate: a small bank of experts with recognisable bytes, and traces.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};

use drafthorse_offload::reader::{Faults, MemoryReader};
use drafthorse_offload::*;

/// Files and the experts in them, laid out as plain GGUF does: per layer a tensor of all gates, one of
/// all ups, one of all downs, at offsets that no page boundary knows of.
pub struct Bank {
    pub index: ExpertIndex,
    pub files: Vec<Vec<u8>>,
}

impl Bank {
    /// `layers` layers of `experts` experts over two files; part lengths differ by part and layer.
    pub fn new(layers: usize, experts: usize) -> Bank {
        let mut files = vec![vec![0xEE; 37], vec![0xEE; 4096 + 11]];
        let mut table = Vec::new();
        for layer in 0..layers {
            let file = layer % 2;
            let mut extents = vec![[Extent { file: 0, offset: 0, len: 0 }; PARTS]; experts];
            for part in 0..PARTS {
                let len = 1000 + 3001 * part + 17 * layer;
                for (expert, parts) in extents.iter_mut().enumerate() {
                    let offset = files[file].len() as u64;
                    files[file].extend(content(layer, expert, part, len));
                    parts[part] = Extent { file: file as u16, offset, len: len as u64 };
                }
            }
            table.push(extents);
        }
        Bank { index: ExpertIndex::new(table).unwrap(), files }
    }

    pub fn bytes(&self, extent: &Extent) -> &[u8] {
        &self.files[extent.file as usize][extent.offset as usize..][..extent.len as usize]
    }

    pub fn expert(&self, id: ExpertId) -> [&[u8]; PARTS] {
        self.index.extents(id).unwrap().each_ref().map(|extent| self.bytes(extent))
    }

    pub fn memory(&self, faults: &Faults, order_seed: Option<u64>) -> Box<dyn Reader> {
        let named = self.files.iter().enumerate();
        let files = named.map(|(i, bytes)| (PathBuf::from(format!("file-{i}.gguf")), bytes.clone()));
        Box::new(MemoryReader::new(files.collect(), faults.clone(), order_seed))
    }

    pub fn write(&self, folder: &Path) -> Vec<PathBuf> {
        let write = |(i, bytes): (usize, &Vec<u8>)| {
            let path = folder.join(format!("file-{i}.gguf"));
            std::fs::write(&path, bytes).unwrap();
            path
        };
        self.files.iter().enumerate().map(write).collect()
    }

    pub fn cache(&self, slots: usize, kind: PolicyKind, reader: Box<dyn Reader>) -> ExpertCache {
        let policy = kind.build(&PolicyConfig::new(&self.index, slots, 2));
        ExpertCache::new(CacheConfig { index: self.index.clone(), slots, policy, reader, threads: 1 })
            .unwrap()
    }
}

/// Bytes that depend on everything that could be mixed up.
fn content(layer: usize, expert: usize, part: usize, len: usize) -> impl Iterator<Item = u8> {
    (0..len).map(move |i| (i * 31 + i / 251 + layer * 101 + expert * 57 + part * 19) as u8)
}

/// Takes every expert out of a lease and releases it, checking its bytes; returns the experts in the
/// order in which they became whole.
pub fn drain(bank: &Bank, layer: u32, lease: &mut Lease<'_>) -> Result<Vec<u32>, OffloadError> {
    let mut order = Vec::new();
    while !lease.is_done() {
        order.extend(take(bank, layer, lease)?);
    }
    assert_eq!(lease.arrivals(true)?, []);
    Ok(order)
}

/// Waits for pieces, checks their bytes, releases and returns the experts that are whole now.
pub fn take(bank: &Bank, layer: u32, lease: &mut Lease<'_>) -> Result<Vec<u32>, OffloadError> {
    let mut whole = Vec::new();
    let arrivals = lease.arrivals(true)?.to_vec();
    for Arrival { expert, piece } in arrivals {
        let id = ExpertId { layer, expert };
        let wanted = bank.expert(id);
        match piece {
            Piece::Inner => assert!(lease.inner(expert).unwrap() == wanted[..2], "wrong bytes for {id}"),
            Piece::Down => {
                assert!(lease.inner(expert).is_some(), "{id}: down came before gate and up");
                assert!(lease.down(expert).unwrap() == wanted[2], "wrong bytes for {id}");
                lease.release(expert);
                whole.push(expert);
            }
        }
    }
    Ok(whole)
}

/// A trace of the shared data folder, or `None` with the reason printed.
pub fn shared_trace(name: &str) -> Option<Trace> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/traces").join(name);
    match std::fs::read(&path) {
        Ok(bytes) => Some(Trace::parse(&bytes).unwrap()),
        Err(error) => {
            eprintln!("skipped: {}: {error}", path.display());
            None
        }
    }
}
