//! Page-aligned memory: one mapping made at start, carved into buffers that are owned one by one.
//!
//! Owns the mappings and their cutting: into buffers, and into regions that a kernel can be told of
//! once and for all. A buffer is moved to whoever fills or reads it, so a reader thread (or a kernel
//! ring) can hold one without aliasing. It must not know slots or experts.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::MmapMut;

use crate::error::OffloadError;

/// Alignment of buffers, and the unit reads are widened to: it suits every block device's `O_DIRECT`.
pub const PAGE_BYTES: usize = 4096;

/// Memory behind the last buffer of a mapping that may be read as well, though nothing is there: whoever reads whole
/// words may read beyond the end of the last one.
const TAIL_BYTES: usize = PAGE_BYTES;

/// What one thread makes resident at a time: whole large pages.
const POPULATE_BYTES: usize = 16 << 20;

/// An owned, page-aligned, zeroed piece of a mapping. Its length never changes; the mapping goes
/// back to the system when the last piece is dropped.
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize, // bytes, a multiple of PAGE_BYTES
    mapping: Arc<Mapping>,
}

/// Memory of an arena. After carving it is reached only through buffers.
pub(crate) struct Mapping {
    memory: MmapMut, // unmapped on drop
    base: NonNull<u8>,
    bytes: usize, // what buffers are cut from; TAIL_BYTES more are mapped
    #[cfg_attr(
        not(target_os = "linux"),
        expect(dead_code, reason = "only Linux has rings to register with")
    )]
    region_bytes: usize, // 0: no regions
}

// SAFETY: nothing is read or written through `Mapping`; it only says where memory is and frees it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

#[cfg(target_os = "linux")]
impl Mapping {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A run of an arena that holds whole slots: what is registered with a kernel ring in one go.
#[cfg(target_os = "linux")]
pub(crate) struct Region<'a> {
    pub(crate) mapping: &'a Arc<Mapping>,
    pub(crate) number: usize, // within the mapping
    pub(crate) start: NonNull<u8>,
    pub(crate) len: usize,
}

/// Most regions of an arena: Linux registers at most as many buffers with a ring.
pub(crate) const REGIONS_MAX: usize = 16384;
/// Most bytes of a region: Linux registers no larger buffer.
const REGION_BYTES_MAX: usize = 1 << 30;

// SAFETY: a piece owns its byte range exclusively (see `Arena::take`), has no thread affinity, and
// keeps the mapping alive through the `Arc`; moving it moves that exclusive right.
unsafe impl Send for AlignedBuf {}
// SAFETY: through `&AlignedBuf` the bytes can only be read.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A buffer with a mapping of its own, of at least `len` bytes (rounded up to whole pages).
    pub fn new(len: usize) -> Result<AlignedBuf, OffloadError> {
        let bytes = round_up(len.max(1))?;
        let mut arena = Arena::map(1, bytes, 0)?;
        Ok(arena.take(bytes).expect("invariant: the arena was made for exactly this buffer"))
    }

    /// Capacity in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a buffer is at least one page: never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `start..start + len` lies in the live mapping, is initialised (anonymous pages are
        // zeroed), and belongs to this value alone, which is borrowed shared.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The bytes, to be filled.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; the value is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Where the bytes start, for a kernel that writes to them while nobody borrows them.
    #[cfg(target_os = "linux")]
    pub(crate) fn start(&mut self) -> NonNull<u8> {
        self.start
    }

    /// The region this buffer lies in; `None` for a buffer of its own and one across two regions.
    #[cfg(target_os = "linux")]
    pub(crate) fn region(&self) -> Option<Region<'_>> {
        let Mapping { base, bytes, region_bytes, .. } = *self.mapping;
        let at = self.start.as_ptr() as usize - base.as_ptr() as usize;
        let number = at.checked_div(region_bytes)?;
        let from = number * region_bytes;
        let len = region_bytes.min(bytes - from);
        // SAFETY: `from <= at < bytes`, so the pointer stays inside the mapping.
        let start = unsafe { base.add(from) };
        let within = at + self.len <= from + len;
        within.then_some(Region { mapping: &self.mapping, number, start, len })
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

/// One mapping and how much of it has been handed out.
pub struct Arena {
    mapping: Arc<Mapping>,
    taken: usize,
}

impl Arena {
    /// Reserves `slots * slot_bytes` bytes. Pages become resident when first written, so the process
    /// never holds more of the arena than was asked for here. Buffers that do not cross from one slot
    /// into the next never cross a region either.
    ///
    /// # Errors
    /// More than the address space holds or the system gives.
    pub fn new(slots: usize, slot_bytes: usize) -> Result<Arena, OffloadError> {
        Arena::map(slots, slot_bytes, region_bytes(slots, slot_bytes))
    }

    /// Where it is, and how many bytes of it can be read: its buffers, and a little behind the last.
    pub(crate) fn memory(&self) -> (NonNull<u8>, usize) {
        (self.mapping.base, self.mapping.bytes + TAIL_BYTES)
    }

    /// The next `len` bytes (rounded up to whole pages), or `None` when the arena is used up.
    pub fn take(&mut self, len: usize) -> Option<AlignedBuf> {
        let len = round_up(len).ok()?;
        let end = self.taken.checked_add(len).filter(|end| *end <= self.mapping.bytes)?;
        // SAFETY: `taken <= end <= bytes`, so the pointer stays inside the mapping. Ranges are handed
        // out once and never overlap, and nothing else ever reads or writes through the mapping.
        let start = unsafe { self.mapping.base.add(self.taken) };
        self.taken = end;
        Some(AlignedBuf { start, len, mapping: Arc::clone(&self.mapping) })
    }

    /// Makes every page of the arena resident, on `threads` threads. What the system cannot give is then
    /// found out now and not in the middle of a pass, and no read waits for a page to be cleared: on a
    /// virtual machine whose host takes free pages back that is seconds a GiB.
    pub(crate) fn populate(&self, threads: usize) {
        let Mapping { memory, bytes, .. } = &*self.mapping;
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let from = next.fetch_add(POPULATE_BYTES, Ordering::Relaxed);
                if from >= *bytes || populate(memory, from, POPULATE_BYTES.min(bytes - from)).is_err() {
                    return; // an old kernel: pages come as they are used
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads.min(bytes.div_ceil(POPULATE_BYTES)) {
                // Without another thread this one does it all.
                let _ = std::thread::Builder::new().name("arena".into()).spawn_scoped(scope, work);
            }
            work();
        });
    }

    fn map(slots: usize, slot_bytes: usize, region_bytes: usize) -> Result<Arena, OffloadError> {
        let too_large = OffloadError::ArenaTooLarge { slots, slot_bytes };
        let within =
            |bytes: &usize| bytes.checked_add(TAIL_BYTES).is_some_and(|b| isize::try_from(b).is_ok());
        let bytes = slots.checked_mul(slot_bytes).filter(within).ok_or(too_large)?;
        let mapped = MmapMut::map_anon(bytes + TAIL_BYTES);
        let mut memory = mapped.map_err(|source| OffloadError::Arena { bytes, source })?;
        let base = NonNull::new(memory.as_mut_ptr()).expect("invariant: a mapping is never at null");
        // Large pages stay within the mapping; a system without them refuses, which changes nothing.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        let mapping = Mapping { memory, base, bytes, region_bytes };
        Ok(Arena { mapping: Arc::new(mapping), taken: 0 })
    }
}

#[cfg(target_os = "linux")]
fn populate(memory: &MmapMut, from: usize, len: usize) -> std::io::Result<()> {
    memory.advise_range(memmap2::Advice::PopulateWrite, from, len)
}

#[cfg(not(target_os = "linux"))]
fn populate(_memory: &MmapMut, _from: usize, _len: usize) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// As few whole slots as keep the number of regions within bounds: what is registered is resident, so
/// small regions keep an arena that is never filled small. 0 where regions would be too large.
fn region_bytes(slots: usize, slot_bytes: usize) -> usize {
    let slots_each = slots.div_ceil(REGIONS_MAX);
    slots_each.checked_mul(slot_bytes).filter(|bytes| *bytes <= REGION_BYTES_MAX).unwrap_or(0)
}

fn round_up(len: usize) -> Result<usize, OffloadError> {
    len.checked_next_multiple_of(PAGE_BYTES).ok_or(OffloadError::ArenaTooLarge { slots: 1, slot_bytes: len })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    #[test]
    fn buffers_are_page_aligned_zeroed_and_whole_pages() {
        let buf = AlignedBuf::new(5000).unwrap();
        assert_eq!(buf.len(), 8192);
        assert_eq!(buf.as_slice().as_ptr() as usize % PAGE_BYTES, 0);
        assert!(buf.as_slice().iter().all(|b| *b == 0));
    }

    #[test]
    fn pieces_of_an_arena_do_not_overlap_and_outlive_it() {
        let mut arena = Arena::new(3, PAGE_BYTES).unwrap();
        let mut pieces: Vec<AlignedBuf> = (0..3).map(|_| arena.take(PAGE_BYTES).unwrap()).collect();
        assert!(arena.take(1).is_none());
        drop(arena);
        for (i, piece) in pieces.iter_mut().enumerate() {
            piece.as_mut_slice().fill(i as u8 + 1);
        }
        for (i, piece) in pieces.iter().enumerate() {
            assert!(piece.as_slice().iter().all(|b| *b == i as u8 + 1));
        }
    }

    #[test]
    fn the_memory_of_an_arena_can_be_read_a_little_beyond_its_last_buffer() {
        let mut arena = Arena::new(2, PAGE_BYTES).unwrap();
        let (base, len) = arena.memory();
        let last =
            [arena.take(PAGE_BYTES).unwrap(), arena.take(PAGE_BYTES).unwrap()][1].as_slice().as_ptr_range();
        assert!(arena.take(1).is_none(), "none of it is handed out");
        assert_eq!(base.as_ptr() as usize + len, last.end as usize + TAIL_BYTES);
        // SAFETY: what the arena calls its memory is mapped, and nobody writes to it.
        assert_eq!(unsafe { last.end.add(TAIL_BYTES - 1).read() }, 0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_buffer_within_a_slot_lies_in_the_region_of_that_slot() {
        let mut arena = Arena::new(3, 3 * PAGE_BYTES).unwrap();
        let base = arena.mapping.base;
        for slot in 0..3 {
            for pages in [1, 2] {
                let buf = arena.take(pages * PAGE_BYTES).unwrap();
                let region = buf.region().unwrap();
                assert_eq!((region.number, region.len), (slot, 3 * PAGE_BYTES));
                assert_eq!(region.start.as_ptr() as usize, base.as_ptr() as usize + slot * 3 * PAGE_BYTES);
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_buffer_across_slots_or_of_its_own_has_no_region() {
        let mut arena = Arena::new(2, PAGE_BYTES).unwrap();
        assert!(arena.take(2 * PAGE_BYTES).unwrap().region().is_none());
        assert!(AlignedBuf::new(1).unwrap().region().is_none());
    }

    #[test]
    fn regions_are_whole_slots_within_the_bounds_of_the_kernel() {
        assert_eq!(region_bytes(1000, 8192), 8192);
        assert_eq!(region_bytes(REGIONS_MAX, 8192), 8192);
        assert_eq!(region_bytes(REGIONS_MAX + 1, 8192), 2 * 8192);
        assert_eq!(region_bytes(5, 2 << 30), 0);
    }

    #[test]
    fn an_arena_beyond_the_address_space_is_refused() {
        assert!(matches!(Arena::new(usize::MAX, 4096), Err(OffloadError::ArenaTooLarge { .. })));
        assert!(matches!(AlignedBuf::new(usize::MAX), Err(OffloadError::ArenaTooLarge { .. })));
    }

    #[test]
    fn a_buffer_can_be_filled_on_another_thread() {
        let mut buf = AlignedBuf::new(1).unwrap();
        let buf = std::thread::spawn(move || {
            buf.as_mut_slice()[4095] = 9;
            buf
        })
        .join()
        .unwrap();
        assert_eq!(buf.as_slice()[4095], 9);
    }
}
