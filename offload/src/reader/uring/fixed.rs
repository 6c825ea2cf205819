//! Slot memory the ring knows of, so that reads into it need not look its pages up each time.
//!
//! Owns the table of registered buffers: an entry per region of an arena, made when the region is
//! first read into, because registering makes its pages resident and locks them. Where the system
//! refuses (old kernels) or allows too little locked memory, reads are plain; nothing else changes.

use std::collections::HashMap;
use std::sync::Arc;

use io_uring::Submitter;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use crate::buf::{AlignedBuf, Mapping, REGIONS_MAX, Region};

/// Registered regions of one ring.
pub(super) struct FixedBuffers {
    entries: HashMap<(usize, usize), u16>, // (number in `mappings`, region) -> entry
    mappings: Vec<Arc<Mapping>>,           // kept alive: an entry must never outlive its memory
    lockable_bytes: u64,                   // what further arenas may take
    open: bool,                            // false once an entry was refused
}

/// `struct iovec` of the system.
#[repr(C)]
struct IoVec {
    base: *mut u8,
    len: usize,
}

impl FixedBuffers {
    /// Sets up an empty table.
    pub(super) fn new(ring: &Submitter<'_>) -> FixedBuffers {
        let open = ring.register_buffers_sparse(REGIONS_MAX as u32).is_ok();
        let lockable_bytes = lockable_bytes();
        FixedBuffers { entries: HashMap::new(), mappings: Vec::new(), lockable_bytes, open }
    }

    /// The entry that covers `buf`, made now if need be; `None` where the read must be a plain one.
    pub(super) fn entry(&mut self, ring: &Submitter<'_>, buf: &AlignedBuf) -> Option<u16> {
        let region = buf.region()?;
        let known = self.mappings.iter().position(|mapping| Arc::ptr_eq(mapping, region.mapping));
        if let Some(entry) = known.and_then(|mapping| self.entries.get(&(mapping, region.number))) {
            return Some(*entry);
        }
        let entry = u16::try_from(self.entries.len()).ok().filter(|_| self.open)?;
        self.open = (known.is_some() || self.admit(region.mapping)) && register(ring, entry, &region);
        if !self.open {
            return None;
        }
        self.entries.insert((known.unwrap_or(self.mappings.len() - 1), region.number), entry);
        Some(entry)
    }

    /// Whether all of an arena may be locked: a part of one is not worth using up what the user's
    /// other programs need for their rings.
    fn admit(&mut self, mapping: &Arc<Mapping>) -> bool {
        let Some(left) = self.lockable_bytes.checked_sub(mapping.bytes() as u64) else { return false };
        self.lockable_bytes = left;
        self.mappings.push(Arc::clone(mapping));
        true
    }

    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.entries.len()
    }

    #[cfg(test)]
    pub(super) fn refused(&self) -> bool {
        !self.open
    }
}

/// Half of the limit on locked memory, which does not bind the privileged.
fn lockable_bytes() -> u64 {
    let privileged = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    match getrlimit(Resource::Memlock).current {
        Some(limit) if !privileged => limit / 2,
        _ => u64::MAX,
    }
}

fn register(ring: &Submitter<'_>, entry: u16, region: &Region<'_>) -> bool {
    let iovec = IoVec { base: region.start.as_ptr(), len: region.len };
    // SAFETY: `IoVec` has the layout of the system's `iovec`, and one of them lives at `&iovec`.
    let iovecs = unsafe { std::slice::from_raw_parts((&raw const iovec).cast(), 1) };
    // SAFETY: the region lies in a mapping that `FixedBuffers` keeps until the ring is gone. The
    // kernel writes to it only for reads submitted with a buffer that is owned by their job.
    unsafe { ring.register_buffers_update(u32::from(entry), iovecs, None) }.is_ok()
}
